//! What the kernel remembers of a mount, and how it is made to forget.
//!
//! Never called while a request is answered, nor with a lock held: dropping a name waits for the
//! kernel's lock on its directory, which a request that waits for us may hold.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use fuser::{INodeNo, Notifier};

use crate::vfs::Outdated;

/// The kernel's attributes and names of one mount.
#[derive(Clone, Debug)]
pub struct KernelCache {
    pub(super) notifier: Notifier,
}

impl KernelCache {
    /// The kernel asks again for these. What it does not know is no failure; if it cannot be
    /// told, it asks when the TTL ends.
    pub fn forget(&self, outdated: &[Outdated]) {
        for one in outdated {
            let told = match one {
                // A negative offset: attributes only. Waiting for pages would wait for whoever
                // reads them.
                Outdated::Attributes(ino) => self.notifier.inval_inode(INodeNo(ino.0), -1, 0),
                Outdated::Name(parent, name) => {
                    self.notifier.inval_entry(INodeNo(parent.0), OsStr::from_bytes(name))
                }
            };
            if let Err(error) = told {
                log::info!("the kernel cannot be told to ask again: {error}");
            }
        }
    }
}
