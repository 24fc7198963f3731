//! One large file over several connections: parts at growing offsets, fetched into memory while the
//! reader takes those before them.
//!
//! Tried only where one stream has levelled off below what processors do, and kept only while
//! more streams were measured to bring more. Uses connections that nobody else needs (the pool's
//! rules for spare ones) on threads of its own, which end with the work. Whatever goes wrong here is
//! nobody's error: the reader opens a transfer of its own where the parts end. Each part is asked
//! for only if the file on the server is still the version that was opened.
//!
//! Locks: the state is a leaf, never held across I/O.

mod pace;
mod rules;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub(crate) use pace::Pace;
use pace::rate;
pub(crate) use rules::Rules;
pub use rules::StreamLimit;
use rules::{PAUSE, TROUBLE};

use super::attr::Version;
use crate::ftp::{Ends, Fetched, Look, RemotePath};

/// One part: at the 2 MB/s that servers like to allow for one connection it takes 1.5 s, of which
/// opening and breaking off cost four round trips, 0.16 s at 40 ms.
const PART: u64 = 3 * 1024 * 1024;

/// The most parts in memory, those on their way included: 24 MiB.
const ROOM: usize = 8;

/// The most streams; one part is being taken by the reader.
const MOST: usize = ROOM - 1;

/// So much of the first part is compared with what the reader's own stream brought.
const PROOF: usize = 64 * 1024;

/// So far ahead of the reader's own stream the first part begins: while that gets there, another
/// connection logs in and brings a part at the same speed.
const LEAD: u64 = 3 * PART;

/// Less is not worth it: the first part, and as much again for each of two streams.
const LEAST: u64 = LEAD + 4 * PART;

/// How long a thread waits for a connection.
const TURN: Duration = Duration::from_millis(200);

/// What the first part shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    /// The reader is not there yet.
    Missing,
    /// It brings what the reader's own transfer brought.
    Same,
    /// Or not: nothing is taken from here.
    Over,
}

/// The further streams of one reader. Ends with the value.
#[derive(Debug)]
pub(crate) struct Streams {
    shared: Arc<Shared>,
    /// The window that is filled.
    window: u64,
    /// The reader's own transfer is not needed any more.
    has_left_own: bool,
}

#[derive(Debug)]
struct Shared {
    rules: Arc<Rules>,
    path: RemotePath,
    size: u64,
    /// Where the reader is.
    passed: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// That was opened; exact as soon as the server was asked.
    version: Version,
    /// In order, without gaps.
    parts: VecDeque<Part>,
    /// Where the next part begins.
    next: u64,
    threads: usize,
    wanted: usize,
    /// How many were wanted before the last change.
    before: usize,
    phase: Phase,
    /// Bytes in a second of the reader's stream alone.
    alone: u64,
    /// The same of the present number of streams, as last measured.
    best: u64,
    /// The measurement under way.
    since: Instant,
    bytes: u64,
    /// The reader had to wait.
    waited: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// One part beside the reader's own stream.
    Trial,
    /// Twice as many are tried after each measurement.
    Growing,
    /// More brought no more.
    Grown,
    Over,
}

#[derive(Debug)]
struct Part {
    start: u64,
    length: u64,
    /// `None`: on its way.
    bytes: Option<Vec<u8>>,
}

impl Part {
    fn end(&self) -> u64 {
        self.start + self.length
    }
}

impl Streams {
    /// Begins with one part ahead of the reader, who is at `at` in a window and gets `alone` bytes
    /// in a second; `None` where that cannot help.
    pub(crate) fn begin(
        rules: &Arc<Rules>,
        path: &RemotePath,
        version: Version,
        window: u64,
        at: u64,
        alone: u64,
    ) -> Option<Self> {
        let size = version.size.filter(|size| size.saturating_sub(at) >= LEAST)?;
        // Without a time nothing tells one version from another of the same size.
        version.mtime?;
        let now = Instant::now();
        if rules.most < 2 || rules.is_quiet(now) || rules.is_taken.swap(true, Ordering::AcqRel) {
            return None;
        }
        let state = State {
            version,
            parts: VecDeque::new(),
            next: at + LEAD,
            threads: 0,
            wanted: 1,
            before: 1,
            phase: Phase::Trial,
            alone,
            best: 0,
            since: now,
            bytes: 0,
            waited: false,
        };
        let shared = Arc::new(Shared {
            rules: Arc::clone(rules),
            path: path.clone(),
            size,
            passed: AtomicU64::new(at),
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        log::info!("{path}: {alone} bytes/s by one connection; trying one more");
        shared.staff(&mut shared.lock());
        Some(Self { shared, window, has_left_own: false })
    }

    /// Of which file they are.
    pub(crate) fn path(&self) -> &RemotePath {
        &self.shared.path
    }

    /// Which window is filled.
    pub(crate) fn window(&self) -> u64 {
        self.window
    }

    /// Is the reader's own transfer needed no more?
    pub(crate) fn has_left_own(&self) -> bool {
        self.has_left_own
    }

    /// The version that the parts have.
    pub(crate) fn version(&self) -> Version {
        self.shared.lock().version
    }

    /// How much memory the parts take.
    pub(crate) fn memory(&self) -> usize {
        self.shared.lock().parts.len().saturating_mul(PART as usize)
    }

    /// Before anything is taken: the reader's own bytes before `end`, which `own` gives, must be
    /// those of the first part. A server may accept an offset and not heed it.
    pub(crate) fn prove<'a>(&mut self, end: u64, own: impl Fn(u64, usize) -> &'a [u8]) -> Proof {
        self.shared.passed.store(end, Ordering::Relaxed);
        let mut state = self.shared.lock();
        state.drop_passed(end);
        if state.phase == Phase::Over {
            return Proof::Over;
        }
        let from = end.saturating_sub(PROOF as u64);
        let part = state.parts.front().filter(|part| part.start <= from);
        let Some(Part { start, bytes: Some(bytes), .. }) = part else { return Proof::Missing };
        if state.phase == Phase::Trial {
            return Proof::Missing;
        }
        let from_start = usize::try_from(from - start).unwrap_or(usize::MAX);
        let there = bytes.get(from_start..from_start.saturating_add(PROOF));
        if there == Some(own(from, PROOF)) {
            self.has_left_own = true;
            return Proof::Same;
        }
        log::warn!("{}: the server does not heed offsets, or the file changed", self.shared.path);
        self.shared.rules.be_quiet(PAUSE);
        self.shared.end(&mut state);
        Proof::Over
    }

    /// The bytes at `at`, as many as there are in one part, which is waited for. `None`: nothing
    /// more comes from here.
    pub(crate) fn take(&mut self, at: u64, room: &mut [u8]) -> Option<usize> {
        let shared = &self.shared;
        shared.passed.store(at, Ordering::Relaxed);
        let until = Instant::now() + shared.rules.pool.timeout();
        let mut state = shared.lock();
        loop {
            state.drop_passed(at);
            let is_on_its_way = match state.parts.front() {
                Some(Part { start, bytes: Some(bytes), .. }) if *start <= at => {
                    let from = usize::try_from(at - start).unwrap_or(usize::MAX);
                    let there = bytes.get(from..).unwrap_or_default();
                    let count = there.len().min(room.len());
                    room.get_mut(..count)?.copy_from_slice(there.get(..count)?);
                    state.drop_passed(at + count as u64);
                    shared.changed.notify_all();
                    return Some(count);
                }
                Some(Part { start, bytes: None, .. }) => *start <= at,
                // It is about to be begun.
                None => state.next == at && state.threads > 0,
                Some(_) => false,
            };
            if !is_on_its_way || state.phase == Phase::Over {
                return None;
            }
            let left = until.checked_duration_since(Instant::now())?;
            state.waited = true;
            let woken = shared.changed.wait_timeout(state, left);
            (state, _) = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.shared.end(&mut self.shared.lock());
        self.shared.rules.is_taken.store(false, Ordering::Release);
    }
}

impl Shared {
    fn end(&self, state: &mut State) {
        state.phase = Phase::Over;
        state.parts.clear();
        self.changed.notify_all();
    }

    /// As many threads as are wanted.
    fn staff(self: &Arc<Self>, state: &mut State) {
        while state.threads < state.wanted {
            let shared = Arc::clone(self);
            let spawned =
                std::thread::Builder::new().name("stream".into()).spawn(move || shared.work());
            if spawned.is_err() {
                return;
            }
            state.threads += 1;
        }
    }

    fn work(self: Arc<Self>) {
        while let Some(work) = self.await_room() {
            let reserved = self.rules.pool.reserve(work, TURN);
            let Some(spare) = reserved.and_then(|reserved| reserved.ready()) else {
                // All are needed, or the server allows no more.
                return self.leave(|state| state.wanted = state.wanted.saturating_sub(1));
            };
            let Some((start, length)) = self.next_part() else {
                spare.give_back();
                continue;
            };
            let begun = std::cell::OnceCell::new();
            let is_wanted = || {
                begun.get_or_init(|| (Instant::now(), self.passed.load(Ordering::Relaxed)));
                self.is_wanted(start)
            };
            let check = |look: &Look| self.is_same(look);
            let ends = if start + length == self.size { Ends::File } else { Ends::Part };
            let count = usize::try_from(length).unwrap_or(usize::MAX);
            match spare.fetch_part(&self.path, (start, count), ends, &check, &is_wanted) {
                Ok(Fetched::Whole(bytes)) => self.put(start, bytes, begun.get().copied()),
                Ok(Fetched::GivenUp(_)) => return self.fail(start, "given up"),
                Err(error) => return self.fail(start, &error.to_string()),
            }
        }
    }

    /// Waits until a part may be begun; how long the rest would take one stream. `None`: this
    /// thread is of no more use.
    fn await_room(&self) -> Option<Duration> {
        let mut state = self.lock();
        loop {
            let has_part = state.next < self.size;
            if state.phase == Phase::Over || !has_part || state.threads > state.wanted {
                state.threads -= 1;
                self.changed.notify_all();
                return None;
            }
            let room = if state.phase == Phase::Trial { 1 } else { ROOM };
            if state.parts.len() < room {
                let left = Duration::from_secs((self.size - state.next) / state.alone.max(1));
                return Some(left);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn next_part(&self) -> Option<(u64, u64)> {
        let mut state = self.lock();
        if state.phase == Phase::Over || state.next >= self.size || state.parts.len() >= ROOM {
            return None;
        }
        let (start, length) = (state.next, PART.min(self.size - state.next));
        state.next += length;
        state.parts.push_back(Part { start, length, bytes: None });
        Some((start, length))
    }

    /// Is this the version that was opened, as far as anybody can tell?
    fn is_same(&self, look: &Look) -> bool {
        let Look::There(stat) = look else { return false };
        let now = Version::of_stat(stat);
        let mut state = self.lock();
        let is_told = now.size.is_some() && now.mtime.is_some();
        let is_same = is_told && state.version.agrees_with(&now);
        if is_same {
            // What the listing told coarsely is exact from now on.
            state.version.mtime = now.mtime;
        }
        is_same
    }

    fn is_wanted(&self, start: u64) -> bool {
        let state = self.lock();
        state.phase != Phase::Over && state.parts.iter().any(|part| part.start == start)
    }

    /// A part has come. Are more streams better?
    fn put(self: &Arc<Self>, start: u64, bytes: Vec<u8>, begun: Option<(Instant, u64)>) {
        let mut state = self.lock();
        let count = bytes.len() as u64;
        if let Some(part) = state.parts.iter_mut().find(|part| part.start == start) {
            part.bytes = Some(bytes);
        }
        match (state.phase, begun) {
            (Phase::Trial, Some((since, passed))) => {
                let own = self.passed.load(Ordering::Relaxed).saturating_sub(passed);
                let together = rate(count + own, since.elapsed());
                if together / 13 * 10 < state.alone {
                    log::info!("{}: {together} bytes/s by two: no gain", self.path);
                    self.rules.be_quiet(PAUSE);
                    self.end(&mut state);
                } else {
                    state.phase = Phase::Growing;
                    state.before = 2;
                    state.wanted = 2;
                    state.begin_measuring();
                    self.staff(&mut state);
                }
            }
            (Phase::Growing | Phase::Grown, _) => self.measure(&mut state, count),
            _ => {}
        }
        self.changed.notify_all();
    }

    fn measure(self: &Arc<Self>, state: &mut State, count: u64) {
        state.bytes += count;
        if state.bytes < PART * 2 * state.wanted as u64 {
            return;
        }
        let now = rate(state.bytes, state.since.elapsed());
        // Of a reader who does not wait nothing is learnt.
        if state.waited {
            log::info!("{}: {now} bytes/s by {} connections", self.path, state.wanted);
            if now / 11 * 10 < state.alone {
                self.rules.be_quiet(PAUSE);
                return self.end(state);
            }
            if state.phase == Phase::Growing {
                if now / 23 * 20 < state.best {
                    state.wanted = state.before;
                    state.phase = Phase::Grown;
                } else if state.wanted < self.rules.most {
                    state.before = state.wanted;
                    state.wanted = (state.wanted * 2).min(self.rules.most);
                    self.staff(state);
                }
                state.best = now;
            }
        }
        state.begin_measuring();
    }

    /// A part will not come: nothing behind it is of use.
    fn fail(&self, start: u64, why: &str) {
        self.leave(|state| {
            if state.phase == Phase::Over {
                return;
            }
            log::info!("{}: a part at {start}: {why}", self.path);
            match state.parts.iter().position(|part| part.start == start) {
                // Those before it are.
                Some(index) if index > 0 && state.phase != Phase::Trial => {
                    state.parts.truncate(index);
                    state.next = self.size;
                }
                _ => {
                    state.phase = Phase::Over;
                    state.parts.clear();
                }
            }
            self.rules.be_quiet(TROUBLE);
        });
    }

    /// This thread ends; with the last one, so does all.
    fn leave(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        state.threads -= 1;
        if state.threads == 0 && state.phase == Phase::Trial {
            self.rules.be_quiet(TROUBLE);
            self.end(&mut state);
        }
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn drop_passed(&mut self, at: u64) {
        while self.parts.front().is_some_and(|part| part.end() <= at) {
            self.parts.pop_front();
        }
    }

    fn begin_measuring(&mut self) {
        self.since = Instant::now();
        self.bytes = 0;
        self.waited = false;
    }
}
