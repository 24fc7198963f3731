//! Who goes first of several that wait for the reader of one file.
//!
//! The kernel asks for up to four pieces of 1 MiB ahead of a program that says that it reads in order
//! (`cat`, `cp`), each on a thread of ours. Whoever took the reader first would make it jump over the
//! pieces before his, with a transfer of its own, and leave the one under way to fill its buffers.

use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// How many may go before one who has waited for longer: more than the kernel asks for at a time,
/// so that one who reads in order is not disturbed without need.
const PATIENCE: u32 = 8;

/// Something that is used by one after the other, in the order of what they want of it.
#[derive(Debug, Default)]
pub(crate) struct InTurn<T> {
    queue: Mutex<Queue>,
    /// Signalled when a turn ends.
    changed: Condvar,
    value: Mutex<T>,
}

#[derive(Debug, Default)]
struct Queue {
    is_used: bool,
    /// The offset of the one whose turn it is or was.
    at: u64,
    waiting: Vec<Waiting>,
    tickets: u64,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    ticket: u64,
    offset: u64,
    /// So many who came later went before.
    passed: u32,
}

/// One's turn; ends with the value.
pub(crate) struct Turn<'a, T> {
    // Dropped in this order: whoever is next finds the value free.
    value: MutexGuard<'a, T>,
    _place: Place<'a, T>,
}

struct Place<'a, T>(&'a InTurn<T>);

impl<T> InTurn<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { queue: Mutex::default(), changed: Condvar::new(), value: Mutex::new(value) }
    }

    /// Waits for one's turn to use it at `offset`.
    pub(crate) fn enter(&self, offset: u64) -> Turn<'_, T> {
        let mut queue = self.queue();
        queue.tickets += 1;
        let ticket = queue.tickets;
        queue.waiting.push(Waiting { ticket, offset, passed: 0 });
        while !queue.admits(ticket) {
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        drop(queue);
        let place = Place(self);
        Turn { value: self.value.lock().unwrap_or_else(PoisonError::into_inner), _place: place }
    }

    /// For a moment, in no order.
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same if nobody uses it.
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.value.try_lock().ok()
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// Is it this one's turn? Then it is taken.
    fn admits(&mut self, ticket: u64) -> bool {
        if self.is_used || self.next() != Some(ticket) {
            return false;
        }
        let Some(index) = self.waiting.iter().position(|one| one.ticket == ticket) else {
            return false;
        };
        let one = self.waiting.swap_remove(index);
        (self.is_used, self.at) = (true, one.offset);
        for other in self.waiting.iter_mut().filter(|other| other.ticket < ticket) {
            other.passed += 1;
        }
        true
    }

    /// The first one behind the place where it was used last, or the first of all; but who has
    /// waited for too long goes before.
    fn next(&self) -> Option<u64> {
        let oldest = self.waiting.iter().filter(|one| one.passed >= PATIENCE);
        let oldest = oldest.min_by_key(|one| one.ticket);
        let in_order =
            || self.waiting.iter().min_by_key(|one| (one.offset < self.at, one.offset, one.ticket));
        oldest.or_else(in_order).map(|one| one.ticket)
    }
}

impl<T> Drop for Place<'_, T> {
    fn drop(&mut self) {
        self.0.queue().is_used = false;
        self.0.changed.notify_all();
    }
}

impl<T> Deref for Turn<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Turn<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits until so many wait.
    fn await_waiting<T>(turns: &InTurn<T>, count: usize) {
        while turns.queue().waiting.len() < count {
            std::thread::yield_now();
        }
    }

    /// In which order those go who wait for these offsets, having come in the order given, while one
    /// is at `at`.
    fn order(at: u64, offsets: &[u64]) -> Vec<u64> {
        let turns = InTurn::new(Vec::new());
        std::thread::scope(|scope| {
            let first = turns.enter(at);
            for (index, offset) in offsets.iter().enumerate() {
                let turns = &turns;
                scope.spawn(move || turns.enter(*offset).push(*offset));
                await_waiting(turns, index + 1);
            }
            drop(first);
        });
        turns.lock().clone()
    }

    #[test]
    fn they_go_in_the_order_of_the_file() {
        assert_eq!(order(0, &[3, 2, 4, 1]), [1, 2, 3, 4]);
        assert_eq!(
            order(5, &[3, 9, 7, 1]),
            [7, 9, 1, 3],
            "behind where it is, then from the front"
        );
    }

    #[test]
    fn who_waits_long_goes_before() {
        let before: Vec<u64> = (0..20).map(|index| 10 + index).collect();
        let all = [&[5][..], &before].concat();
        let gone = order(9, &all);
        assert_eq!(gone.iter().position(|offset| *offset == 5), Some(PATIENCE as usize));
        assert_eq!(gone.len(), 21);
    }

    #[test]
    fn nobody_is_left_waiting() {
        let turns = InTurn::new(0_u32);
        std::thread::scope(|scope| {
            for thread in 0..8_u64 {
                let turns = &turns;
                scope.spawn(move || {
                    for round in 0..500 {
                        *turns.enter(round * 7 % 13 + thread) += 1;
                    }
                });
            }
        });
        assert_eq!(*turns.lock(), 4000);
        assert!(turns.try_lock().is_some());
    }
}
