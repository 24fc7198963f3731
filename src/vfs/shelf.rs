//! Small files fetched before they are asked for: whole contents in memory.
//!
//! Keyed by inode and version. A content is given out only for exactly the version that the open
//! handle has, and not for longer than a listing is believed: what others change within one second
//! or one minute of a coarse time-stamp is seen as soon as anything else is. Bounded in bytes and
//! number; what was read goes first, then the oldest. Counts what was fetched in vain.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::attr::Version;
use super::tree::Ino;

/// The most files: at the 4 KiB that a small one has, 4 MiB.
const MOST: usize = 1024;

/// What was fetched ahead, in bytes since the mount began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AheadBytes {
    /// All that came over the wire.
    pub fetched: u64,
    /// Of these, in files that somebody then read.
    pub read: u64,
    /// Of these, thrown away and never read.
    pub unread: u64,
}

/// The contents. One lock, before the pool's only, never held across I/O.
#[derive(Debug)]
pub(crate) struct Shelf {
    /// How long a content may be given out.
    ttl: Duration,
    /// The most bytes, those on their way included.
    capacity: usize,
    state: Mutex<State>,
    /// Signalled when a fetch ends.
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<Ino, Entry>,
    /// Of all entries together.
    bytes: usize,
    /// Numbers the fetches, so that one whose entry was dropped meanwhile finds none.
    last: u64,
    counted: AheadBytes,
}

#[derive(Debug)]
struct Entry {
    version: Version,
    size: usize,
    /// Which fetch made it.
    number: u64,
    begun: Instant,
    content: Content,
}

#[derive(Debug)]
enum Content {
    OnItsWay,
    Unread(Arc<Vec<u8>>),
    Read(Arc<Vec<u8>>),
}

/// One fetch; the content comes under its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    ino: Ino,
    number: u64,
}

impl Shelf {
    pub(crate) fn new(ttl: Duration, capacity: usize) -> Self {
        Self { ttl, capacity, state: Mutex::default(), ended: Condvar::new() }
    }

    /// Makes room for a file that is going to be fetched; `None` if this version is here or on its
    /// way, or there is no room.
    pub(crate) fn claim(
        &self,
        ino: Ino,
        version: Version,
        size: usize,
        now: Instant,
    ) -> Option<Ticket> {
        let mut state = self.lock();
        match state.entries.get(&ino) {
            Some(Entry { content: Content::OnItsWay, .. }) => return None,
            Some(entry)
                if entry.version == version && now.duration_since(entry.begun) < self.ttl =>
            {
                return None;
            }
            _ => state.drop_entry(ino),
        }
        while state.bytes + size > self.capacity || state.entries.len() >= MOST {
            state.drop_oldest()?;
        }
        state.last += 1;
        let number = state.last;
        state.bytes += size;
        let entry = Entry { version, size, number, begun: now, content: Content::OnItsWay };
        state.entries.insert(ino, entry);
        Some(Ticket { ino, number })
    }

    /// The whole file has come; not kept if its entry was dropped meanwhile.
    pub(crate) fn put(&self, ticket: Ticket, bytes: Vec<u8>) {
        let mut state = self.lock();
        let count = bytes.len() as u64;
        state.counted.fetched += count;
        match state.entries.get_mut(&ticket.ino) {
            Some(entry) if entry.number == ticket.number && entry.size == bytes.len() => {
                entry.content = Content::Unread(Arc::new(bytes));
            }
            _ => state.counted.unread += count,
        }
        drop(state);
        self.ended.notify_all();
    }

    /// It did not come; so many bytes of it did.
    pub(crate) fn give_up(&self, ticket: Ticket, bytes: usize) {
        let mut state = self.lock();
        state.counted.fetched += bytes as u64;
        state.counted.unread += bytes as u64;
        if state.entries.get(&ticket.ino).is_some_and(|entry| entry.number == ticket.number) {
            state.drop_entry(ticket.ino);
        }
        drop(state);
        self.ended.notify_all();
    }

    /// The content of exactly this version. One that is on its way is waited for, no longer than
    /// `patience`; what `waits` gives is held meanwhile.
    pub(crate) fn take<W>(
        &self,
        ino: Ino,
        version: &Version,
        patience: Duration,
        waits: impl Fn() -> W,
    ) -> Option<Arc<Vec<u8>>> {
        let until = Instant::now() + patience;
        let mut waiting = None;
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let state_now = &mut *state;
            let entry =
                state_now.entries.get_mut(&ino).filter(|entry| entry.version == *version)?;
            let bytes = match &entry.content {
                Content::OnItsWay => {
                    let left = until.checked_duration_since(now)?;
                    waiting.get_or_insert_with(&waits);
                    let (woken, _) = self
                        .ended
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner);
                    state = woken;
                    continue;
                }
                Content::Unread(_) | Content::Read(_)
                    if now.duration_since(entry.begun) >= self.ttl =>
                {
                    return None;
                }
                Content::Unread(bytes) => {
                    state_now.counted.read += bytes.len() as u64;
                    Arc::clone(bytes)
                }
                Content::Read(bytes) => Arc::clone(bytes),
            };
            entry.content = Content::Read(Arc::clone(&bytes));
            return Some(bytes);
        }
    }

    /// Is this version here, or on its way?
    pub(crate) fn holds(&self, ino: Ino, version: &Version) -> bool {
        self.lock().entries.get(&ino).is_some_and(|entry| entry.version == *version)
    }

    /// The file is changed through the mount, or gone.
    pub(crate) fn forget(&self, ino: Ino) {
        self.lock().drop_entry(ino);
        self.ended.notify_all();
    }

    /// Drops what may not be given out any more.
    pub(crate) fn expire(&self, now: Instant) {
        let mut state = self.lock();
        let is_old = |entry: &Entry| {
            !matches!(entry.content, Content::OnItsWay)
                && now.duration_since(entry.begun) >= self.ttl
        };
        let old: Vec<_> =
            state.entries.iter().filter(|(_, entry)| is_old(entry)).map(|(ino, _)| *ino).collect();
        for ino in old {
            state.drop_entry(ino);
        }
    }

    pub(crate) fn counted(&self) -> AheadBytes {
        self.lock().counted
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn drop_entry(&mut self, ino: Ino) {
        let Some(entry) = self.entries.remove(&ino) else { return };
        self.bytes -= entry.size;
        if let Content::Unread(bytes) = entry.content {
            self.counted.unread += bytes.len() as u64;
        }
    }

    /// What was read first, then the oldest; nothing that is on its way.
    fn drop_oldest(&mut self) -> Option<()> {
        let age = |entry: &Entry| match entry.content {
            Content::OnItsWay => None,
            Content::Read(_) => Some((0, entry.begun)),
            Content::Unread(_) => Some((1, entry.begun)),
        };
        let oldest = self.entries.iter().filter_map(|(ino, entry)| Some((age(entry)?, *ino))).min();
        self.drop_entry(oldest?.1);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ftp::{Precision, Timestamp};

    const TTL: Duration = Duration::from_secs(10);

    const CAPACITY: usize = 1024 * 1024;

    fn has(shelf: &Shelf, ino: u64) -> bool {
        shelf.lock().entries.contains_key(&Ino(ino))
    }

    fn version(size: u64, seconds: i64) -> Version {
        let mtime = Timestamp { seconds, nanos: 0, precision: Precision::Second };
        Version { size: Some(size), mtime: Some(mtime) }
    }

    #[test]
    fn only_the_very_version_is_given_out_and_it_is_fetched_once() {
        let (shelf, now) = (Shelf::new(TTL, CAPACITY), Instant::now());
        let ticket = shelf.claim(Ino(5), version(3, 1), 3, now).unwrap();
        assert_eq!(shelf.claim(Ino(5), version(3, 1), 3, now), None, "on its way");
        shelf.put(ticket, b"abc".to_vec());
        assert_eq!(shelf.claim(Ino(5), version(3, 1), 3, now), None, "here");
        assert!(shelf.take(Ino(5), &version(3, 2), TTL, || ()).is_none());
        assert!(shelf.take(Ino(5), &version(4, 1), TTL, || ()).is_none());
        assert_eq!(*shelf.take(Ino(5), &version(3, 1), TTL, || ()).unwrap(), b"abc");
        assert_eq!(shelf.counted(), AheadBytes { fetched: 3, read: 3, unread: 0 });
        assert!(shelf.claim(Ino(5), version(3, 2), 3, now).is_some(), "a newer one");
    }

    #[test]
    fn what_is_changed_while_it_comes_is_not_kept() {
        let (shelf, now) = (Shelf::new(TTL, CAPACITY), Instant::now());
        let ticket = shelf.claim(Ino(5), version(3, 1), 3, now).unwrap();
        shelf.forget(Ino(5));
        shelf.put(ticket, b"old".to_vec());
        assert!(shelf.take(Ino(5), &version(3, 1), TTL, || ()).is_none());
        assert_eq!(shelf.counted(), AheadBytes { fetched: 3, read: 0, unread: 3 });
    }

    #[test]
    fn a_content_is_not_believed_for_longer_than_a_listing() {
        let (shelf, now) = (Shelf::new(TTL, CAPACITY), Instant::now());
        let long_ago = now.checked_sub(TTL).unwrap();
        let ticket = shelf.claim(Ino(5), version(3, 1), 3, long_ago).unwrap();
        shelf.put(ticket, b"abc".to_vec());
        assert!(shelf.take(Ino(5), &version(3, 1), TTL, || ()).is_none());
        shelf.expire(now);
        assert_eq!(shelf.counted().unread, 3);
    }

    #[test]
    fn room_is_made_by_what_was_read_and_then_by_the_oldest() {
        let (shelf, now) = (Shelf::new(TTL, CAPACITY), Instant::now());
        let size = CAPACITY / 2;
        for (ino, age) in [(1, 3), (2, 2)] {
            let begun = now.checked_sub(Duration::from_secs(age)).unwrap();
            let ticket = shelf.claim(Ino(ino), version(size as u64, 1), size, begun).unwrap();
            shelf.put(ticket, vec![0; size]);
        }
        shelf.take(Ino(2), &version(size as u64, 1), TTL, || ()).unwrap();
        let third = shelf.claim(Ino(3), version(1, 1), 1, now).unwrap();
        assert!(!has(&shelf, 2), "it had been read");
        assert!(has(&shelf, 1));
        assert_eq!(shelf.counted().unread, 0);
        shelf.give_up(third, 0);
        assert!(shelf.claim(Ino(4), version(1, 1), CAPACITY, now).is_some());
        assert_eq!(shelf.counted().unread, size as u64);
        assert!(shelf.claim(Ino(5), version(1, 1), 1, now).is_none(), "no room but for what comes");
    }

    #[test]
    fn who_asks_for_what_is_on_its_way_waits_for_it() {
        let shelf = Shelf::new(TTL, CAPACITY);
        let ticket = shelf.claim(Ino(5), version(3, 1), 3, Instant::now()).unwrap();
        std::thread::scope(|scope| {
            let asks = scope.spawn(|| shelf.take(Ino(5), &version(3, 1), TTL, || ()));
            shelf.put(ticket, b"abc".to_vec());
            assert_eq!(*asks.join().unwrap().unwrap(), b"abc");
        });
        let ticket = shelf.claim(Ino(6), version(3, 1), 3, Instant::now()).unwrap();
        std::thread::scope(|scope| {
            let asks = scope.spawn(|| shelf.take(Ino(6), &version(3, 1), TTL, || ()));
            shelf.give_up(ticket, 1);
            assert!(asks.join().unwrap().is_none());
        });
    }
}
