//! Names that change.
//!
//! On the server that takes some round trips, in which nobody here knows the name that a file has
//! there: whoever needs it waits, or looks afterwards whether it was the right one ([`Moves`]). Here it
//! takes a moment, in which nobody looks at a name, its inode and its entry ([`Names`]).

use std::sync::{Condvar, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use super::lock;
use super::tree::Ino;

/// Files and directories that get another name on the server right now, or lose it. Leaf lock.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    moving: Mutex<Vec<Ino>>,
    /// Signalled when one has ended.
    ended: Condvar,
}

/// One of them; ends with the value.
pub(crate) struct Moving<'a>(&'a Moves, Ino);

impl Moves {
    pub(crate) fn begin(&self, ino: Ino) -> Moving<'_> {
        lock(&self.moving).push(ino);
        Moving(self, ino)
    }

    /// Is one under way that `concerns` the caller?
    pub(crate) fn concern(&self, concerns: impl Fn(Ino) -> bool) -> bool {
        // Whom it concerns is asked of the tree, which is a leaf too.
        let some = lock(&self.moving).clone();
        some.into_iter().any(concerns)
    }

    /// Returns when none is under way that `concerns` the caller, or after `most`.
    pub(crate) fn settle(&self, most: Duration, concerns: impl Fn(Ino) -> bool) {
        let until = Instant::now() + most;
        let mut moving = lock(&self.moving);
        while !moving.is_empty() {
            let some = moving.clone();
            drop(moving);
            if !some.iter().copied().any(&concerns) {
                return;
            }
            let Some(left) = until.checked_duration_since(Instant::now()) else { return };
            moving = lock(&self.moving);
            if *moving == some {
                let woken = self.ended.wait_timeout(moving, left);
                (moving, _) = woken.unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        let mut moving = lock(&self.0.moving);
        if let Some(index) = moving.iter().position(|ino| *ino == self.1) {
            moving.swap_remove(index);
        }
        self.0.ended.notify_all();
    }
}

/// Which inode has a name is in the tree, what it is in the listing of its directory. Before `Tree`
/// and `DirCache`, never held across I/O.
#[derive(Debug, Default)]
pub(crate) struct Names(RwLock<()>);

impl Names {
    /// The two agree while the value lives.
    pub(crate) fn look(&self) -> RwLockReadGuard<'_, ()> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody looks while the value lives.
    pub(crate) fn change(&self) -> RwLockWriteGuard<'_, ()> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
