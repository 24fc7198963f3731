//! Files that are safe here and still to be sent: which is next, and when.
//!
//! Pure but for the waiting. Small files go first, as many of them are done while a large one
//! is still under way; one that has waited long goes before all others.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::error::Result;
use super::staging::Urgency;
use super::tree::Ino;
use super::{Vfs, WritePolicy};

/// The pause after a failure; doubled with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(5);

/// The longest pause: whoever frees some quota sees the file go within this time.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// A file that waited so long beyond its time goes first whatever its size.
const LATE: Duration = Duration::from_secs(30);

/// How long a worker sleeps with nothing to do: it looks then whether the mount has ended.
const ROUND: Duration = Duration::from_secs(1);

/// More than this at once, and those who wait for an answer find all connections busy.
const MOST_WORKERS: usize = 8;

#[derive(Clone, Copy, Debug)]
struct Waiting {
    due: Instant,
    bytes: u64,
    failures: u32,
}

#[derive(Debug, Default)]
struct State {
    waiting: HashMap<Ino, Waiting>,
    running: HashSet<Ino>,
}

/// The files that wait. One leaf lock.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

impl Queue {
    /// A file is to be sent at `due`, or later if it was changed again meanwhile.
    pub(crate) fn put(&self, ino: Ino, bytes: u64, due: Instant) {
        self.lock().waiting.insert(ino, Waiting { due, bytes, failures: 0 });
        self.changed.notify_one();
    }

    /// It is sent, or not wanted any more.
    pub(crate) fn drop_one(&self, ino: Ino) {
        self.lock().waiting.remove(&ino);
    }

    /// The next file whose time has come; `None` after a round without one.
    fn next(&self) -> Option<(Ino, Waiting)> {
        let mut state = self.lock();
        let ends = Instant::now() + ROUND;
        loop {
            let now = Instant::now();
            if let Some(ino) = state.first(now) {
                let waiting = state.waiting.remove(&ino)?;
                state.running.insert(ino);
                return Some((ino, waiting));
            }
            if now >= ends {
                return None;
            }
            let next = state.waiting.values().map(|waiting| waiting.due).min().unwrap_or(ends);
            let pause = next.min(ends).saturating_duration_since(now).max(Duration::from_millis(1));
            let woken = self.changed.wait_timeout(state, pause);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn done(&self, ino: Ino, waiting: Waiting, result: &Result<()>) {
        let mut state = self.lock();
        state.running.remove(&ino);
        if result.is_err() && !state.waiting.contains_key(&ino) {
            let due = Instant::now() + pause(waiting.failures);
            let failures = waiting.failures + 1;
            state.waiting.insert(ino, Waiting { due, failures, ..waiting });
        }
        drop(state);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn first(&self, now: Instant) -> Option<Ino> {
        let due = self
            .waiting
            .iter()
            .filter(|(ino, waiting)| waiting.due <= now && !self.running.contains(ino));
        due.min_by_key(|(ino, waiting)| {
            let is_late = waiting.due + LATE <= now;
            (!is_late, waiting.bytes, **ino)
        })
        .map(|(ino, _)| *ino)
    }
}

fn pause(failures: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(failures)).min(LONGEST_PAUSE)
}

impl Vfs {
    /// Starts to send in the background what waits, if the user chose so. The threads end with
    /// the file system.
    pub fn start_write_back(self: &Arc<Self>) -> std::io::Result<()> {
        if !self.options.writing.writes_back() {
            return Ok(());
        }
        for _ in 0..self.pool.snapshot().limit.clamp(1, MOST_WORKERS) {
            let vfs = Arc::downgrade(self);
            let queue = Arc::clone(&self.queue);
            let work = move || while work_once(&vfs, &queue) {};
            std::thread::Builder::new().name("write-back".into()).spawn(work)?;
        }
        Ok(())
    }
}

/// False when the file system has ended.
fn work_once(vfs: &Weak<Vfs>, queue: &Queue) -> bool {
    let next = queue.next();
    let Some(vfs) = vfs.upgrade() else { return false };
    let Some((ino, waiting)) = next else { return true };
    let result = match vfs.handles.staged(ino) {
        Some(staged) => vfs.commit(ino, &staged, Urgency::Background),
        None => Ok(()),
    };
    if let Err(error) = &result {
        log::warn!("not on the server yet, and tried again: {error}");
    }
    queue.done(ino, waiting, &result);
    vfs.unstage(ino);
    true
}

impl WritePolicy {
    fn writes_back(&self) -> bool {
        self.write_back.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_ones_go_first_and_late_ones_before_them() {
        let now = Instant::now();
        let waiting = |due, bytes| Waiting { due, bytes, failures: 0 };
        let mut state = State::default();
        state.waiting.insert(Ino(2), waiting(now, 100));
        state.waiting.insert(Ino(3), waiting(now, 10));
        state.waiting.insert(Ino(4), waiting(now + LATE, 1));
        assert_eq!(state.first(now), Some(Ino(3)));
        state.running.insert(Ino(3));
        assert_eq!(state.first(now), Some(Ino(2)), "one is not sent twice at once");
        state.running.clear();
        state.waiting.insert(Ino(5), waiting(now - LATE, 1 << 40));
        assert_eq!(state.first(now), Some(Ino(5)));
    }

    #[test]
    fn pauses_grow_to_a_limit() {
        assert_eq!(pause(0), FIRST_PAUSE);
        assert_eq!(pause(1), FIRST_PAUSE * 2);
        assert_eq!(pause(99), LONGEST_PAUSE);
    }

    #[test]
    fn a_failed_one_waits_and_one_put_again_keeps_its_new_time() {
        let queue = Queue::default();
        queue.put(Ino(2), 1, Instant::now());
        let (ino, waiting) = queue.next().unwrap();
        queue.done(ino, waiting, &Err(super::super::Error::Invalid));
        let again = queue.lock().waiting[&Ino(2)];
        assert!(again.failures == 1 && again.due > Instant::now());
        queue.drop_one(Ino(2));
        assert!(queue.lock().waiting.is_empty());
    }
}
