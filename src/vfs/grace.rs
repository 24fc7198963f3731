//! Listings that are a little too old: shown at once, and listed anew meanwhile (`--ttl-grace`).
//!
//! Only for looks (look-up, getattr, opendir). What changes something, and `open`, go by the
//! strict [`Vfs::listing`].

use std::time::{Instant, UNIX_EPOCH};

use super::dircache::{Aged, Fresh, Relisting};
use super::error::Result;
use super::tree::Ino;
use super::{Vfs, list, lock};

impl Vfs {
    /// The listing of a directory; within the grace time an old one, which the kernel must not
    /// keep, while a new one is on its way.
    pub(super) fn listing_or_aged(&self, directory: Ino, now: Instant) -> Result<Fresh> {
        match self.cache.aged(directory, now, self.options.ttl_grace) {
            Some(Aged { listing, relisting }) => {
                if let Some(relisting) = relisting {
                    self.start(relisting, directory);
                }
                // How old it is nobody asks who only looks.
                Ok(Fresh { listing, until: now, listed: UNIX_EPOCH, is_stale: false })
            }
            None => self.listing(directory, now),
        }
    }

    /// Without a thread, or a path, the re-listing has failed: dropping it says so.
    fn start(&self, relisting: Relisting, directory: Ino) {
        let names = self.tree().names(directory);
        let Ok(path) = self.path(directory) else { return };
        let (pool, tree) = (self.pool.clone(), self.tree.clone());
        let work = move || {
            match list(&pool, &path) {
                // Moved or removed meanwhile: these may be the entries of another directory.
                Ok(_) if lock(&tree).names(directory) != names => {}
                Ok(entries) => relisting.done(&entries),
                Err(error) => log::info!("{path} is shown as it was: {error}"),
            }
        };
        let started = std::thread::Builder::new().name("re-list".into()).spawn(work);
        if let Err(error) = started {
            log::info!("no thread to list a directory anew: {error}");
        }
    }
}
