//! Who gets a connection, in which order, and what is done meanwhile.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;

use crate::ftp::connect::{Connector, Target};
use crate::ftp::error::Error;
use crate::ftp::server::lock;
use crate::ftp::session::Session;
use crate::ftp::transfer::Download;

/// The first pause after a failed connection; doubled with each further failure.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// The longest pause: a server that is back is used again within this time.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How long to wait before asking again a server that has no connection left.
const TURN: Duration = Duration::from_millis(200);

/// How often a connection that breaks while it logs in is tried for one caller.
const CONNECT_TRIES: usize = 3;

/// Does any session do, or must it be a new one?
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Age {
    Any,
    /// The same, and it may still owe the reply of a transfer that is over: what is sent first is
    /// the question for another one.
    Owing,
    Fresh,
}

/// What pool and sessions share.
pub(crate) struct Shared {
    pub(super) connector: Connector,
    /// Leaf lock: never held across I/O, and no session is dropped under it (its slot locks too).
    pub(super) state: Mutex<State>,
    /// Signalled when a connection becomes free, is parked or ends.
    pub(super) changed: Condvar,
    pub(super) born: Instant,
    /// When something last moved on any connection, in milliseconds since `born`.
    pub(super) progress_millis: AtomicU64,
    /// How long a login takes, in microseconds: a mean in which the last counts for a quarter.
    pub(super) login_micros: AtomicU64,
}

pub(super) struct State {
    pub(super) free: Vec<Session>,
    /// By handle, each with the time of parking; the least recently parked is given up first.
    pub(super) parked: LruCache<u64, (Download, Instant)>,
    pub(super) open: usize,
    /// How many of these are not logged in yet.
    pub(super) connecting: usize,
    pub(super) limit: usize,
    /// Tickets of those who wait; the smallest goes first.
    pub(super) waiting: BTreeSet<u64>,
    pub(super) tickets: u64,
    pub(super) down: Option<Down>,
    pub(super) closed: bool,
    /// How many connections work ahead of need has; none of them is free or parked.
    pub(super) spares: usize,
    /// How many requests wait for work ahead of need.
    pub(super) lent: usize,
    /// When a half-read download was last parked.
    pub(super) last_parked: Option<Instant>,
    /// No connection is opened for work ahead of need before this.
    pub(super) no_spare_until: Option<Instant>,
}

/// The server did not answer: until `until` nobody tries again.
pub(super) struct Down {
    until: Instant,
    pause: Duration,
    pub(super) cause: String,
}

/// What somebody who needs a connection does next.
enum Step {
    Use(Session),
    Connect(Slot),
    /// Give up this download; its connection is free then.
    Steal(Download),
    /// A session that is too old to be trusted.
    Discard(Session),
    Wait,
    Fail(Error),
}

impl Shared {
    /// None of them is open yet.
    pub(super) fn new(target: Target) -> Result<Self, Error> {
        let limit = target.connections.max(1);
        let state = State {
            free: Vec::new(),
            parked: LruCache::unbounded(),
            open: 0,
            connecting: 0,
            limit,
            waiting: BTreeSet::new(),
            tickets: 0,
            down: None,
            closed: false,
            spares: 0,
            lent: 0,
            last_parked: None,
            no_spare_until: None,
        };
        Ok(Self {
            connector: Connector::new(target)?,
            state: Mutex::new(state),
            changed: Condvar::new(),
            born: Instant::now(),
            progress_millis: AtomicU64::new(0),
            login_micros: AtomicU64::new(0),
        })
    }

    pub(super) fn lease(self: &Arc<Self>, age: Age) -> Result<Session, Error> {
        let started = Instant::now();
        let mut tries = 0;
        let ticket = {
            let mut state = lock(&self.state);
            state.tickets += 1;
            state.tickets
        };
        loop {
            match self.next_step(ticket, age, started) {
                Step::Use(mut session) => {
                    // A session found dead is dropped, and the next one looked at.
                    let settled = match age {
                        _ if session.is_stale() => continue,
                        Age::Owing => session.settle_unless_overlapping(),
                        Age::Any | Age::Fresh => session.settle(),
                    };
                    if settled.is_ok() {
                        return Ok(session);
                    }
                }
                Step::Connect(slot) => match self.connect(slot, tries) {
                    Ok(Some(session)) => return Ok(session),
                    Ok(None) => {}
                    // Broken while logging in, which says nothing about the server: once more.
                    Err(error) if error.lost_session() && tries + 1 < CONNECT_TRIES => {
                        log::info!("{error}; connecting once more");
                        tries += 1;
                    }
                    Err(Error::TooMany(reply)) if self.may_wait(started) => {
                        log::info!("{reply}; waiting for a connection");
                        std::thread::sleep(TURN);
                    }
                    Err(error) => return Err(error),
                },
                Step::Steal(download) => download.leave(false),
                Step::Discard(session) => drop(session),
                Step::Wait => {}
                Step::Fail(error) => return Err(error),
            }
        }
    }

    /// May somebody who has waited since `started` wait for others to end their connections? Not
    /// for the first of all, as whoever mounts wants to know.
    fn may_wait(&self, started: Instant) -> bool {
        let target = self.connector.target();
        self.connector.server().base().is_some() && started.elapsed() + TURN < target.timeout
    }

    /// Decides under the lock, waiting if there is nothing to do.
    fn next_step(self: &Arc<Self>, ticket: u64, age: Age, started: Instant) -> Step {
        let timeout = self.connector.target().timeout;
        let mut state = lock(&self.state);
        state.waiting.insert(ticket);
        if state.waiting.first() == Some(&ticket)
            && let Some(step) = self.try_step(&mut state, age)
        {
            state.waiting.remove(&ticket);
            self.changed.notify_all();
            return step;
        }
        // As long as others move bytes the wait is not in vain: a single connection that carries
        // a large upload must not make everything else fail.
        let idle = started.elapsed().min(self.since_progress());
        if idle >= timeout {
            state.waiting.remove(&ticket);
            self.changed.notify_all();
            return Step::Fail(Error::TimedOut("a free connection"));
        }
        let (mut state, _) = self
            .changed
            .wait_timeout(state, timeout - idle)
            .unwrap_or_else(PoisonError::into_inner);
        state.waiting.remove(&ticket);
        Step::Wait
    }

    fn try_step(self: &Arc<Self>, state: &mut State, age: Age) -> Option<Step> {
        if state.closed {
            return Some(Step::Fail(Error::Down("the mount is ending".into())));
        }
        if !state.free.is_empty() {
            // One that owes no reply first, and of those the one used last: the others grow old
            // enough to be closed by the server, and none is needed for them to be kept.
            let clean = state.free.iter().rposition(|session| !session.owes());
            let session = state.free.remove(clean.unwrap_or(state.free.len() - 1));
            return Some(match age {
                Age::Any | Age::Owing => Step::Use(session),
                Age::Fresh => Step::Discard(session),
            });
        }
        // One finds out whether the server is there; the others wait for that, or, if it was not a
        // moment ago, do not.
        if let Some(down) = &state.down
            && (state.connecting > 0 || Instant::now() < down.until)
        {
            return Some(Step::Fail(Error::Down(down.cause.clone())));
        }
        let is_unsure = state.connecting > 0 && state.connecting == state.open;
        if state.open < state.limit && !is_unsure {
            state.open += 1;
            state.connecting += 1;
            return Some(Step::Connect(Slot { shared: Arc::clone(self) }));
        }
        state.parked.pop_lru().map(|(_, (download, _))| Step::Steal(download))
    }

    /// A new session; `None` when the server allows no more than there are: then the caller waits
    /// its turn.
    pub(super) fn connect(
        self: &Arc<Self>,
        slot: Slot,
        tries: usize,
    ) -> Result<Option<Session>, Error> {
        let started = Instant::now();
        let opened = self.connector.open(slot);
        lock(&self.state).connecting -= 1;
        if opened.is_ok() {
            self.note_login(started.elapsed());
        }
        let result = self.sort_opened(opened, tries);
        // Whoever waited for the outcome sees it now.
        self.changed.notify_all();
        result
    }

    fn sort_opened(
        &self,
        opened: Result<Session, Error>,
        tries: usize,
    ) -> Result<Option<Session>, Error> {
        match opened {
            Ok(session) => {
                lock(&self.state).down = None;
                self.note_progress();
                Ok(Some(session))
            }
            Err(Error::TooMany(reply)) => {
                let mut state = lock(&self.state);
                if state.open == 0 {
                    // Others have taken what the server allows, or it still counts a connection of
                    // ours that has just ended (Pure-FTPd 1.0.50 does for some milliseconds).
                    return Err(Error::TooMany(reply));
                }
                log::warn!("the server allows {} connections: {reply}", state.open);
                state.limit = state.open;
                Ok(None)
            }
            Err(error) => {
                let mut state = lock(&self.state);
                // As long as others work, one that broke is no reason to fail everybody.
                let others_work = state.open > state.connecting;
                if !error.lost_session() || (tries + 1 >= CONNECT_TRIES && !others_work) {
                    state.note_down(error.to_string());
                }
                Err(error)
            }
        }
    }

    /// Ends sessions, and gives up half-read downloads, that nobody used for a while.
    pub(super) fn end_idle(&self, limit: Duration) {
        let (free, parked) = {
            let mut state = lock(&self.state);
            let all = std::mem::take(&mut state.free);
            let (old, young): (Vec<_>, Vec<_>) =
                all.into_iter().partition(|session| session.idle_for() >= limit);
            state.free = young;
            let is_old = |(_, (_, since)): (&u64, &(Download, Instant))| since.elapsed() >= limit;
            let mut parked = Vec::new();
            while state.parked.peek_lru().is_some_and(is_old) {
                parked.extend(state.parked.pop_lru());
            }
            (old, parked)
        };
        free.into_iter().for_each(Session::quit);
        drop(parked);
        self.changed.notify_all();
    }

    /// From [`Session::give_back`].
    pub(crate) fn take_back(&self, mut session: Session) {
        session.note_use();
        self.note_progress();
        let surplus = {
            let mut state = lock(&self.state);
            if state.closed || state.open > state.limit {
                Some(session)
            } else {
                state.free.push(session);
                None
            }
        };
        drop(surplus);
        self.changed.notify_all();
    }

    pub(super) fn is_wanted(&self) -> bool {
        !lock(&self.state).waiting.is_empty()
    }

    pub(super) fn note_login(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let before = self.login_micros.load(Ordering::Relaxed);
        let mean = if before == 0 { micros } else { before / 4 * 3 + micros / 4 };
        self.login_micros.store(mean, Ordering::Relaxed);
    }

    pub(super) fn login_time(&self) -> Duration {
        Duration::from_micros(self.login_micros.load(Ordering::Relaxed))
    }

    pub(super) fn note_progress(&self) {
        let millis = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.progress_millis.store(millis, Ordering::Relaxed);
    }

    pub(super) fn since_progress(&self) -> Duration {
        let last = Duration::from_millis(self.progress_millis.load(Ordering::Relaxed));
        self.born.elapsed().saturating_sub(last)
    }
}

impl State {
    /// Pauses double, and vary by up to a quarter so that many mounts do not come back in step.
    fn note_down(&mut self, cause: String) {
        let now = Instant::now();
        let pause = match &self.down {
            Some(down) => (down.pause * 2).min(LONGEST_PAUSE),
            None => FIRST_PAUSE,
        };
        let jitter = pause / 4 * (self.tickets % 4) as u32 / 4;
        self.down = Some(Down { until: now + pause + jitter, pause, cause });
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool of {}", self.connector.target())
    }
}

/// The right to one connection; counted as open while it lives.
pub(crate) struct Slot {
    pub(super) shared: Arc<Shared>,
}

impl Slot {
    pub(crate) fn pool(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    pub(crate) fn note_progress(&self) {
        self.shared.note_progress();
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.shared.state).open -= 1;
        self.shared.changed.notify_all();
    }
}
