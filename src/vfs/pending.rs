//! What is not on the server yet: told, sent, and kept when the process ends.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use super::error::Result;
use super::handles::Shared;
use super::staging::{Staged, Urgency};
use super::tree::Ino;
use super::{Vfs, lock};

/// A file that is not on the server yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// On the server, for people to read.
    pub path: String,
    pub bytes: u64,
    /// Why the last attempt failed.
    pub error: Option<String>,
    /// The bytes on the local disk.
    pub local: PathBuf,
}

impl Vfs {
    /// Files that are not on the server yet.
    pub fn pending(&self) -> Vec<Pending> {
        let all = self.handles.all_staged();
        let dirty = all.into_iter().filter(|(_, staged)| staged.is_dirty());
        let mut pending = lock(&self.taken_up).clone();
        pending.extend(dirty.map(|(ino, staged)| self.pending_of(ino, &staged)));
        pending
    }

    /// Sends everything that is not on the server yet, over several connections; the first error,
    /// after trying all.
    pub fn drain(&self) -> Result<()> {
        // The small ones first: if time is short most of them are there.
        let mut all = self.handles.all_staged();
        all.sort_by_key(|(_, staged)| std::cmp::Reverse(staged.view().map_or(0, |v| v.length)));
        let threads = self.pool.snapshot().limit.min(all.len());
        let (left, first) = (Mutex::new(all), Mutex::new(Ok(())));
        let work = || {
            while let Some((ino, staged)) = lock(&left).pop() {
                let sent = self.commit(ino, &staged, Urgency::Foreground);
                drop(staged);
                self.unstage(ino);
                let mut first = lock(&first);
                if first.is_ok() {
                    *first = sent;
                }
            }
        };
        std::thread::scope(|scope| {
            // What cannot be started does not work; this thread always does.
            for _ in 1..threads {
                let _ = std::thread::Builder::new().name("drain".into()).spawn_scoped(scope, work);
            }
            work();
        });
        first.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves what could not be sent on the local disk when this process ends, and tells where.
    pub fn keep_unsent(&self) -> Vec<Pending> {
        let all = self.handles.all_staged();
        let dirty = all.into_iter().filter(|(_, staged)| staged.is_dirty());
        let keep = |(ino, staged): (Ino, Shared)| {
            staged.keep(&self.pool, self.path(ino).ok().as_ref());
            self.pending_of(ino, &staged)
        };
        dirty.map(keep).collect()
    }

    fn pending_of(&self, ino: Ino, staged: &Staged) -> Pending {
        let path = self.path(ino).map_or_else(|_| "(removed)".into(), |path| path.to_string());
        let bytes = staged.view().map_or(0, |view| view.length);
        Pending { path, bytes, error: staged.last_error(), local: staged.local_path() }
    }
}
