//! Listings of directories: one answers every look-up below it, also for absent names.
//!
//! Never does I/O itself: the caller loads, once for all who wait. A change made through the mount
//! while a listing is under way is applied to that listing when it arrives, since nobody knows
//! whether the server looked before or after; so one's own changes are seen at once, and no
//! listing is thrown away for them.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use lru::LruCache;

use super::attr::Shown;
use super::error::{Error, Result};
use super::listing::Change;
use super::tree::Ino;
use crate::ftp::{Entries, Pool};

pub(crate) use super::listing::{Item, Listing};

/// The most entries of all listings together: at about 60 bytes each, 30 MiB. The directory in
/// use is kept whatever its size.
const MAX_ENTRIES: usize = 500_000;

/// The most directories listed anew in the background at once: half of the default connections
/// stay for those who wait.
const MOST_RELISTINGS: usize = 4;

/// The listings. One lock, before the pool's only, never held across I/O.
#[derive(Debug)]
pub(crate) struct DirCache {
    ttl: Duration,
    /// How long to wait for somebody else's load; the load itself has deadlines of its own.
    patience: Duration,
    /// Whoever waits for somebody else's load lends its turn for a connection.
    pool: Option<Arc<Pool>>,
    state: Mutex<State>,
    /// Signalled when a load ends.
    loaded: Condvar,
}

#[derive(Debug)]
struct State {
    listings: LruCache<Ino, Cached>,
    /// Directories being loaded.
    loading: HashMap<Ino, Loading>,
    /// How many of them are loaded in the background.
    relistings: usize,
    /// Entries of all `listings` together.
    entries: usize,
    /// The most of them.
    capacity: usize,
}

#[derive(Debug)]
struct Cached {
    listing: Arc<Listing>,
    /// When the load began; `None` once it must not be trusted any more.
    begun: Option<Instant>,
    /// The same by the clock that outlives this process.
    listed: SystemTime,
    next: Next,
}

/// What the next look at a listing does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// What its age says.
    ByAge,
    /// The same, but it is not listed anew within the grace: that failed already.
    OldUntilGraceEnds,
    /// Asks the server; only if that is away, the listing is still good enough.
    AsksServer,
}

/// A load under way.
#[derive(Debug, Default)]
struct Loading {
    /// Made since it began.
    changes: Vec<Change>,
    /// The directory was expired since then: what arrives may be older than that.
    is_outdated: bool,
}

/// What a look gets that need not be the newest.
#[derive(Debug)]
pub(crate) struct Aged {
    pub(crate) listing: Arc<Listing>,
    /// To be carried out in the background by whoever got it.
    pub(crate) relisting: Option<Relisting>,
}

/// The right to list one directory anew in the background. Dropped without `done`, it has failed.
#[derive(Debug)]
pub(crate) struct Relisting {
    load: LoadEnds<Arc<DirCache>>,
    begun: Begun,
    is_done: bool,
}

/// When a load began, by both clocks.
type Begun = (Instant, SystemTime);

/// A listing and the time until which it may be used without asking again.
#[derive(Clone, Debug)]
pub(crate) struct Fresh {
    pub(crate) listing: Arc<Listing>,
    pub(crate) until: Instant,
    /// The server was asked then.
    pub(crate) listed: SystemTime,
    /// Older than the TTL, as the server does not answer: it proves no absence.
    pub(crate) is_stale: bool,
}

impl Fresh {
    /// The entry of a name; a stale listing answers for what is there, but not for what is not.
    pub(crate) fn find(&self, name: &[u8]) -> Result<Option<Item>> {
        self.or_unknown(self.listing.get(name))
    }

    /// The same, with only what `stat` shows.
    pub(crate) fn shown(&self, name: &[u8]) -> Result<Option<Shown>> {
        self.or_unknown(self.listing.shown(name))
    }

    fn or_unknown<T>(&self, found: Option<T>) -> Result<Option<T>> {
        if found.is_none() && self.is_stale {
            let message = "the server does not answer, and the name is unknown";
            return Err(Error::Unreachable(message.into()));
        }
        Ok(found)
    }
}

impl DirCache {
    pub(crate) fn new(ttl: Duration, patience: Duration) -> Self {
        let state = State {
            listings: LruCache::unbounded(),
            loading: HashMap::new(),
            relistings: 0,
            entries: 0,
            capacity: MAX_ENTRIES,
        };
        Self { ttl, patience, pool: None, state: Mutex::new(state), loaded: Condvar::new() }
    }

    pub(crate) fn lending_to(self, pool: &Arc<Pool>) -> Self {
        Self { pool: Some(Arc::clone(pool)), ..self }
    }

    /// The listing of a directory, not older than the TTL, or begun after `now`. `load` asks the
    /// server; of several callers one does, and the others wait for it.
    pub(crate) fn listing(
        &self,
        directory: Ino,
        now: Instant,
        load: impl FnOnce() -> Result<Entries>,
    ) -> Result<Fresh> {
        let mut lent = None;
        let mut state = self.lock();
        loop {
            if let Some(fresh) = state.fresh(directory, now, self.ttl) {
                return Ok(fresh);
            }
            if !state.loading.contains_key(&directory) {
                break;
            }
            if lent.is_none() {
                lent = self.pool.as_ref().map(|pool| pool.lend_turn());
            }
            let (woken, timed_out) = self
                .loaded
                .wait_timeout(state, self.patience)
                .unwrap_or_else(PoisonError::into_inner);
            state = woken;
            if timed_out.timed_out() {
                return Err(Error::TimedOut("timed out waiting for a listing".into()));
            }
        }
        state.loading.insert(directory, Loading::default());
        drop(state);
        drop(lent);

        // Ends the load also when `load` fails or panics.
        let load_ends = LoadEnds { cache: self, directory };
        let (begun, listed) = (Instant::now(), SystemTime::now());
        let entries = load()?;
        let (listing, next) = self.install(directory, (begun, listed), &entries);
        drop(load_ends);
        // Who asked before the directory was expired is answered, but not for long.
        let until = if next == Next::ByAge { begun + self.ttl } else { begun };
        Ok(Fresh { listing, until, listed, is_stale: false })
    }

    /// A listing older than the TTL, but by no more than `grace`; of several callers one gets the
    /// right to list it anew. Nothing where each look asks the server.
    pub(crate) fn aged(
        self: &Arc<Self>,
        directory: Ino,
        now: Instant,
        grace: Duration,
    ) -> Option<Aged> {
        if self.ttl.is_zero() || grace.is_zero() {
            return None;
        }
        let mut state = self.lock();
        let cached = state.listings.get(&directory)?;
        let (begun, next) = (cached.begun?, cached.next);
        let is_aged = begun + self.ttl <= now && now < begun + self.ttl + grace;
        if !is_aged || next == Next::AsksServer {
            return None;
        }
        let listing = Arc::clone(&cached.listing);
        let is_wanted = next == Next::ByAge
            && state.relistings < MOST_RELISTINGS
            && !state.loading.contains_key(&directory);
        let relisting = is_wanted.then(|| {
            state.relistings += 1;
            state.loading.insert(directory, Loading::default());
            let load = LoadEnds { cache: Arc::clone(self), directory };
            Relisting { load, begun: (Instant::now(), SystemTime::now()), is_done: false }
        });
        Some(Aged { listing, relisting })
    }

    /// What was known before the server stopped answering, unless the user wants each look to
    /// ask, or the listing is known to be wrong.
    pub(crate) fn stale(&self, directory: Ino, now: Instant) -> Option<Fresh> {
        let state = self.lock();
        let cached = state.listings.peek(&directory)?;
        let is_usable = cached.begun.is_some() && !self.ttl.is_zero();
        let listing = Arc::clone(&cached.listing);
        is_usable.then_some(Fresh { listing, until: now, listed: cached.listed, is_stale: true })
    }

    /// The listing that is there, however old; nothing is asked of the server.
    pub(crate) fn known(&self, directory: Ino) -> Option<Arc<Listing>> {
        self.lock().listings.peek(&directory).map(|cached| Arc::clone(&cached.listing))
    }

    /// The listing that may be used without asking.
    pub(crate) fn fresh(&self, directory: Ino, now: Instant) -> Option<Arc<Listing>> {
        self.lock().fresh(directory, now, self.ttl).map(|fresh| fresh.listing)
    }

    /// Lists a directory before it is asked for; whoever asks meanwhile waits for it. Nothing is
    /// done, and nobody waited for, where that is under way or not needed: the caller has a
    /// connection that others may need.
    pub(crate) fn list_ahead(
        &self,
        directory: Ino,
        load: impl FnOnce() -> Result<Entries>,
    ) -> Result<()> {
        let begun = (Instant::now(), SystemTime::now());
        {
            let mut state = self.lock();
            if state.loading.contains_key(&directory)
                || state.fresh(directory, begun.0, self.ttl).is_some()
            {
                return Ok(());
            }
            state.loading.insert(directory, Loading::default());
        }
        let load_ends = LoadEnds { cache: self, directory };
        let entries = load()?;
        self.install(directory, begun, &entries);
        drop(load_ends);
        Ok(())
    }

    /// The listing that is there, if it is not `listing`, and until when either may be believed.
    pub(crate) fn newer_than(
        &self,
        directory: Ino,
        listing: &Arc<Listing>,
    ) -> (Option<Arc<Listing>>, Option<Instant>) {
        let state = self.lock();
        let Some(cached) = state.listings.peek(&directory) else { return (None, None) };
        let newer = (!Arc::ptr_eq(&cached.listing, listing)).then(|| Arc::clone(&cached.listing));
        let begun = cached.begun.filter(|_| cached.next != Next::AsksServer);
        (newer, begun.map(|begun| begun + self.ttl))
    }

    /// The older listing is merged without the lock: what changes meanwhile is in `loading`, and is
    /// applied after that.
    fn install(&self, directory: Ino, begun: Begun, entries: &Entries) -> (Arc<Listing>, Next) {
        let older = self.known(directory).unwrap_or_default();
        let mut listing = Listing::after(entries, &older);
        let mut state = self.lock();
        let load = state.loading.get_mut(&directory).map(std::mem::take).unwrap_or_default();
        for change in load.changes {
            listing.apply(change);
        }
        let next = if load.is_outdated { Next::AsksServer } else { Next::ByAge };
        let listing = Arc::new(listing);
        let replaced = state.take(directory);
        state.entries += listing.len();
        let (begun, listed) = (Some(begun.0), begun.1);
        let cached = Cached { listing: Arc::clone(&listing), begun, listed, next };
        state.listings.put(directory, cached);
        let evicted = state.evict();
        drop(state);
        // Large ones take their time to be freed: nobody should wait for that.
        drop((replaced, evicted));
        (listing, next)
    }

    /// This entry exists now, as the server confirmed or as a program wants it.
    pub(crate) fn put(&self, directory: Ino, item: Item) {
        self.change(directory, Change::Put(item));
    }

    /// This name is gone now, as the server confirmed.
    pub(crate) fn remove(&self, directory: Ino, name: &[u8]) {
        self.change(directory, Change::Remove(name.into()));
    }

    /// Changes one entry, if it is known.
    pub(crate) fn update(&self, directory: Ino, name: &[u8], change: impl FnOnce(&mut Item)) {
        let item = self.known(directory).and_then(|listing| listing.get(name));
        if let Some(mut item) = item {
            change(&mut item);
            self.put(directory, item);
        }
    }

    /// The next look asks the server.
    pub(crate) fn expire(&self, directory: Ino) {
        let mut state = self.lock();
        state.outdate_load(directory);
        if let Some(cached) = state.listings.peek_mut(&directory) {
            cached.begun = None;
        }
    }

    /// The same, but if the server is away, what is known is still shown: nothing says that it is
    /// wrong.
    pub(crate) fn refresh(&self, directory: Ino) {
        let mut state = self.lock();
        state.outdate_load(directory);
        if let Some(cached) = state.listings.peek_mut(&directory) {
            cached.next = Next::AsksServer;
        }
    }

    /// The directory is gone, or nobody knows it any more.
    pub(crate) fn forget(&self, directory: Ino) {
        self.lock().take(directory);
    }

    fn change(&self, directory: Ino, change: Change) {
        let mut state = self.lock();
        if let Some(load) = state.loading.get_mut(&directory) {
            load.changes.push(change.clone());
        }
        let Some(cached) = state.listings.peek_mut(&directory) else { return };
        let before = cached.listing.len();
        Arc::make_mut(&mut cached.listing).apply(change);
        let after = cached.listing.len();
        state.entries = state.entries + after - before;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn fresh(&mut self, directory: Ino, now: Instant, ttl: Duration) -> Option<Fresh> {
        let cached = self.listings.get(&directory)?;
        if cached.next == Next::AsksServer {
            return None;
        }
        let until = cached.begun? + ttl;
        let begun_after = cached.begun? >= now;
        let (listing, listed) = (Arc::clone(&cached.listing), cached.listed);
        (now < until || begun_after).then_some(Fresh { listing, until, listed, is_stale: false })
    }

    fn outdate_load(&mut self, directory: Ino) {
        if let Some(load) = self.loading.get_mut(&directory) {
            load.is_outdated = true;
        }
    }

    fn take(&mut self, directory: Ino) -> Option<Cached> {
        let cached = self.listings.pop(&directory)?;
        self.entries -= cached.listing.len();
        Some(cached)
    }

    /// Drops the listings used longest ago, but none with files that only we know of.
    fn evict(&mut self) -> Vec<Cached> {
        let mut tries = self.listings.len();
        let mut evicted = Vec::new();
        while self.entries > self.capacity && tries > 1 {
            tries -= 1;
            let Some((directory, cached)) = self.listings.pop_lru() else { break };
            if cached.listing.has_unsent() {
                self.listings.put(directory, cached);
            } else {
                self.entries -= cached.listing.len();
                evicted.push(cached);
            }
        }
        evicted
    }
}

impl Relisting {
    /// The server has answered.
    pub(crate) fn done(mut self, entries: &Entries) {
        self.load.cache.install(self.load.directory, self.begun, entries);
        self.is_done = true;
    }
}

impl Drop for Relisting {
    fn drop(&mut self) {
        let mut state = self.load.cache.lock();
        state.relistings -= 1;
        if self.is_done {
            return;
        }
        if let Some(cached) = state.listings.peek_mut(&self.load.directory)
            && cached.next == Next::ByAge
        {
            cached.next = Next::OldUntilGraceEnds;
        }
    }
}

/// Takes a directory out of the loading ones and wakes those who wait.
#[derive(Debug)]
struct LoadEnds<C: Deref<Target = DirCache>> {
    cache: C,
    directory: Ino,
}

impl<C: Deref<Target = DirCache>> Drop for LoadEnds<C> {
    fn drop(&mut self) {
        self.cache.lock().loading.remove(&self.directory);
        self.cache.loaded.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::ftp::{Entry, Kind, Precision, Timestamp};

    const DIR: Ino = Ino(7);

    fn entry(name: &str, size: u64) -> Entry {
        Entry {
            name: name.as_bytes().into(),
            kind: Kind::File,
            size: Some(size),
            mtime: None,
            mode: None,
            target: None,
            facts: None,
        }
    }

    fn listed(all: &[Entry]) -> Entries {
        let mut entries = Entries::default();
        assert!(all.iter().all(|entry| entries.push(entry)));
        entries
    }

    fn stamp(seconds: i64, precision: Precision) -> Timestamp {
        Timestamp { seconds, nanos: 0, precision }
    }

    fn cache(ttl: Duration) -> DirCache {
        DirCache::new(ttl, Duration::from_secs(30))
    }

    fn names(listing: &Listing) -> Vec<String> {
        listing.items().map(|i| String::from_utf8_lossy(&i.entry.name).into()).collect()
    }

    #[test]
    fn one_listing_serves_until_its_time_is_over() {
        let cache = cache(Duration::from_secs(10));
        let loads = AtomicUsize::new(0);
        let now = Instant::now();
        let load = || {
            loads.fetch_add(1, Ordering::Relaxed);
            Ok(listed(&[entry("b", 1), entry("a", 1)]))
        };
        let first = cache.listing(DIR, now, load).unwrap();
        assert_eq!(names(&first.listing), ["a", "b"]);
        cache.listing(DIR, now + Duration::from_secs(9), load).unwrap();
        assert_eq!(loads.load(Ordering::Relaxed), 1);
        cache.listing(DIR, now + Duration::from_secs(11), load).unwrap();
        assert_eq!(loads.load(Ordering::Relaxed), 2);
        cache.expire(DIR);
        cache.listing(DIR, now, load).unwrap();
        assert_eq!(loads.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn a_change_during_a_load_survives_it() {
        let cache = cache(Duration::from_secs(10));
        let fresh = cache
            .listing(DIR, Instant::now(), || {
                cache.put(DIR, Item::new(entry("new", 5)));
                cache.remove(DIR, b"gone");
                Ok(listed(&[entry("gone", 1), entry("old", 1)]))
            })
            .unwrap();
        assert_eq!(names(&fresh.listing), ["new", "old"]);
    }

    #[test]
    fn those_who_ask_at_the_same_time_share_one_load() {
        let cache = cache(Duration::from_secs(10));
        let loads = AtomicUsize::new(0);
        let barrier = Barrier::new(4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    barrier.wait();
                    let load = || {
                        loads.fetch_add(1, Ordering::Relaxed);
                        Ok(listed(&[entry("a", 1)]))
                    };
                    cache.listing(DIR, Instant::now(), load).unwrap();
                });
            }
        });
        assert_eq!(loads.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_failed_load_is_nobodys_answer() {
        let cache = cache(Duration::from_secs(10));
        assert!(cache.listing(DIR, Instant::now(), || Err(Error::NotFound)).is_err());
        let fresh = cache.listing(DIR, Instant::now(), || Ok(listed(&[entry("a", 1)]))).unwrap();
        assert_eq!(names(&fresh.listing), ["a"]);
    }

    #[test]
    fn within_the_grace_one_gets_the_right_to_list_anew() {
        let (ttl, grace) = (Duration::from_secs(10), Duration::from_secs(60));
        let cache = Arc::new(cache(ttl));
        let begun = Instant::now();
        cache.listing(DIR, begun, || Ok(listed(&[entry("a", 1)]))).unwrap();
        let at = |seconds| begun + Duration::from_secs(seconds);
        assert!(cache.aged(DIR, at(9), grace).is_none(), "fresh");
        assert!(cache.aged(DIR, at(11), Duration::ZERO).is_none(), "no grace");
        assert!(cache.aged(DIR, at(80), grace).is_none(), "too old");
        let relisting = cache.aged(DIR, at(11), grace).unwrap().relisting.unwrap();
        cache.put(DIR, Item::new(entry("mine", 1)));
        let aged = cache.aged(DIR, at(11), grace).unwrap();
        assert!(aged.relisting.is_none(), "one at a time");
        assert_eq!(names(&aged.listing), ["a", "mine"]);
        relisting.done(&listed(&[entry("b", 1)]));
        assert_eq!(names(&cache.known(DIR).unwrap()), ["b", "mine"]);
        drop(cache.aged(DIR, at(11), grace).unwrap());
        assert!(cache.aged(DIR, at(12), grace).unwrap().relisting.is_none(), "it failed");
        cache.refresh(DIR);
        assert!(cache.aged(DIR, at(12), grace).is_none(), "the user wants the next look to ask");
    }

    #[test]
    fn few_are_listed_anew_at_once() {
        let cache = Arc::new(cache(Duration::from_nanos(1)));
        let aged = |directory| cache.aged(Ino(directory), Instant::now(), Duration::from_secs(60));
        for directory in 0..6 {
            cache.listing(Ino(directory), Instant::now(), || Ok(listed(&[]))).unwrap();
        }
        let held: Vec<_> = (0..6).filter_map(|directory| aged(directory)?.relisting).collect();
        assert_eq!(held.len(), MOST_RELISTINGS);
        drop(held);
        assert!(aged(5).unwrap().relisting.is_some());
    }

    #[test]
    fn a_load_begun_before_the_directory_was_expired_is_not_believed_afterwards() {
        let cache = cache(Duration::from_secs(10));
        for expire in [DirCache::expire, DirCache::refresh] {
            let loads = AtomicUsize::new(0);
            let load = || {
                if loads.fetch_add(1, Ordering::Relaxed) == 0 {
                    expire(&cache, DIR);
                }
                Ok(listed(&[]))
            };
            let fresh = cache.listing(DIR, Instant::now(), load).unwrap();
            assert!(fresh.until <= Instant::now());
            cache.listing(DIR, Instant::now(), load).unwrap();
            cache.listing(DIR, Instant::now(), load).unwrap();
            assert_eq!(loads.load(Ordering::Relaxed), 2);
            cache.forget(DIR);
        }
    }

    #[test]
    fn exact_times_survive_a_coarse_listing() {
        let cache = cache(Duration::ZERO);
        let told = |size, seconds| {
            let mut entry = entry("f", size);
            entry.mtime = Some(stamp(seconds, Precision::Minute));
            move || Ok(listed(&[entry]))
        };
        cache.listing(DIR, Instant::now(), told(1, 600)).unwrap();
        cache.update(DIR, b"f", |item| item.set_mtime(stamp(642, Precision::Second)));
        let shown = |fresh: Fresh| fresh.listing.get(b"f").unwrap().shown_mtime().unwrap().seconds;
        assert_eq!(shown(cache.listing(DIR, Instant::now(), told(1, 600)).unwrap()), 642);
        assert_eq!(shown(cache.listing(DIR, Instant::now(), told(2, 660)).unwrap()), 660);
    }

    #[test]
    fn remembered_attributes_end_when_somebody_else_changes_the_file() {
        let cache = cache(Duration::ZERO);
        let told = |seconds, mode| {
            let mut entry = entry("f", 1);
            entry.mtime = Some(stamp(seconds, Precision::Second));
            entry.mode = Some(mode);
            move || Ok(listed(&[entry]))
        };
        cache.listing(DIR, Instant::now(), told(100, 0o644)).unwrap();
        cache.update(DIR, b"f", |item| {
            item.remember_mtime(stamp(50, Precision::Second));
            item.remember_mode(0o600);
        });
        let fresh = cache.listing(DIR, Instant::now(), told(100, 0o644)).unwrap();
        let item = fresh.listing.get(b"f").unwrap();
        assert_eq!(item.shown_mtime().unwrap().seconds, 50);
        assert_eq!(item.shown_mode(), Some(0o600));
        let fresh = cache.listing(DIR, Instant::now(), told(200, 0o640)).unwrap();
        let item = fresh.listing.get(b"f").unwrap();
        assert_eq!(item.shown_mtime().unwrap().seconds, 200);
        assert_eq!(item.shown_mode(), Some(0o640));
    }

    #[test]
    fn files_not_yet_sent_stay_in_view() {
        let cache = cache(Duration::ZERO);
        cache.listing(DIR, Instant::now(), || Ok(Entries::default())).unwrap();
        let mut unsent = Item::new(entry("new", 0));
        unsent.is_unsent = true;
        cache.put(DIR, unsent);
        let fresh = cache.listing(DIR, Instant::now(), || Ok(listed(&[entry("a", 1)]))).unwrap();
        assert_eq!(names(&fresh.listing), ["a", "new"]);
    }

    #[test]
    fn memory_is_bounded_by_the_number_of_entries() {
        let cache = cache(Duration::from_secs(10));
        cache.lock().capacity = 20;
        let many = || (0..11).map(|i| entry(&i.to_string(), 1)).collect::<Vec<_>>();
        for directory in 0..3 {
            cache.listing(Ino(directory), Instant::now(), || Ok(listed(&many()))).unwrap();
        }
        assert!(cache.known(Ino(2)).is_some());
        assert!(cache.known(Ino(0)).is_none());
        assert_eq!(cache.lock().entries, 11);
    }
}
