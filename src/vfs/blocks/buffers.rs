//! Buffers used again: one of 1 MiB made anew costs 256 page faults, as much time as its checksum.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The most that are kept: those of a few reads, and of the queue behind them.
const MOST: usize = 8;

/// Spare ones. Leaf lock.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    spare: Mutex<Vec<Vec<u8>>>,
}

impl Buffers {
    /// One with something in it, or nothing.
    pub(crate) fn take(&self) -> Vec<u8> {
        self.lock().pop().unwrap_or_default()
    }

    pub(crate) fn give_back(&self, buffer: Vec<u8>) {
        let mut spare = self.lock();
        if spare.len() < MOST {
            spare.push(buffer);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
