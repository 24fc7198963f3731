//! Files and directories that get another name on the server, or lose it, right now: until that is
//! done nobody here knows their names there.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::lock;
use super::tree::Ino;

/// Those under way. Leaf lock.
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

    /// Returns when none is under way that `concerns` the caller, or after `most`.
    pub(crate) fn settle(&self, most: Duration, concerns: impl Fn(Ino) -> bool) {
        let until = Instant::now() + most;
        let mut moving = lock(&self.moving);
        while !moving.is_empty() {
            // Whom it concerns is asked of the tree, which is a leaf too.
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
