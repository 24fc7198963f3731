//! The only owner of connections between requests.
//!
//! A session is *free*, *leased* (owned by one running call) or *parked* (a half-read download,
//! keyed by its handle). Whoever needs a connection takes a free one, opens a new one while the
//! limit allows, or takes the oldest parked one, whose reader opens again when it reads on. So
//! idle readers never starve anybody, and no call holds one connection while it waits for another.

mod spare;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::Write;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;

use super::connect::{Connector, Target};
use super::error::Error;
use super::lane::{self, Ask, Look};
use super::listing::Entries;
use super::path::RemotePath;
use super::server::{Habit, Verdict, lock};
use super::session::Session;
use super::store::{
    Ended, Placement, Ready, Renamed, Step as Rename, Store, StoreOutcome, Stored, complete,
    may_travel,
};
use super::transfer::{Checked, Download, Upload};

pub use spare::{Ends, Fetched, Reserved, Spare};

/// The first pause after a failed connection; doubled with each further failure.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// The longest pause: a server that is back is used again within this time.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A session idle for so long is ended by us, politely: FileZilla Server does it after 120 s,
/// vsftpd and ProFTPD after 300 and 600, and a NAT may forget it without a word.
const IDLE_LIMIT: Duration = Duration::from_secs(100);

/// How long to wait before asking again a server that has no connection left.
const TURN: Duration = Duration::from_millis(200);

/// How often a connection that breaks while it logs in is tried for one caller.
const CONNECT_TRIES: usize = 3;

/// How often idle sessions are looked for; small beside [`IDLE_LIMIT`].
const ROUND: Duration = Duration::from_secs(10);

/// How many connections there are, and what they do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSnapshot {
    /// The most there may be, as configured or learnt from a refusal.
    pub limit: usize,
    /// All there are: free, parked and leased.
    pub open: usize,
    /// Waiting for work.
    pub free: usize,
    /// Half-read downloads between two reads.
    pub parked: usize,
    /// In the hands of a running call.
    pub leased: usize,
}

/// What REST and STOR do to what lies behind the bytes they write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TailHabit {
    /// It stays: a file may be changed in its middle.
    Keeps,
    /// It is cut off (Pure-FTPd 1.0.50): a file may be cut.
    Cuts,
    /// An offset is not heeded, or nobody can tell.
    Loses,
}

/// All connections to one server.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
}

impl Pool {
    /// Connects and logs in once, so that a wrong host, user or directory is known at once.
    pub fn open(target: Target) -> Result<Arc<Self>, Error> {
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
            last_parked: None,
            no_spare_until: None,
        };
        let shared = Arc::new(Shared {
            connector: Connector::new(target)?,
            state: Mutex::new(state),
            changed: Condvar::new(),
            born: Instant::now(),
            progress_millis: AtomicU64::new(0),
            login_micros: AtomicU64::new(0),
        });
        let pool = Arc::new(Self { shared });
        pool.lease()?.give_back();
        let shared = Arc::downgrade(&pool.shared);
        let tend = move || {
            loop {
                std::thread::sleep(ROUND);
                let Some(shared) = shared.upgrade() else { return };
                shared.end_idle(IDLE_LIMIT);
            }
        };
        // Without the thread sessions end when the server ends them, which is noticed.
        let _ = std::thread::Builder::new().name("idle sessions".into()).spawn(tend);
        Ok(pool)
    }

    /// The server's greeting.
    pub fn welcome(&self) -> String {
        self.shared.connector.server().welcome()
    }

    /// Version of TLS and why the server is trusted; empty for clear text.
    pub fn protection(&self) -> String {
        self.shared.connector.server().protection()
    }

    /// User, host and port, without secrets.
    pub fn server_name(&self) -> String {
        self.shared.connector.target().to_string()
    }

    /// The directory on the server that is the root of the mount.
    pub fn base(&self) -> RemotePath {
        self.shared.connector.server().base().unwrap_or_else(RemotePath::root)
    }

    /// The longest wait without progress.
    pub fn timeout(&self) -> Duration {
        self.shared.connector.target().timeout
    }

    /// Does the server rename over an existing file? Unknown until it was tried.
    pub fn renames_over(&self) -> bool {
        self.shared.connector.server().may(Habit::RenameOver)
    }

    /// What a rename over an existing file came to.
    pub fn learn_renames_over(&self, works: bool) {
        let verdict = if works { Verdict::Yes } else { Verdict::No };
        self.shared.connector.server().learn(Habit::RenameOver, verdict);
    }

    /// True the first time that a file had to be replaced in place.
    pub fn note_in_place(&self) -> bool {
        let server = self.shared.connector.server();
        let is_first = server.verdict(Habit::InPlace) == Verdict::Unknown;
        server.learn(Habit::InPlace, Verdict::Yes);
        is_first
    }

    /// Runs `verb`, and once more on a fresh connection if the first one was lost. For questions,
    /// and for what may be done twice.
    pub fn ask<T>(&self, verb: impl Fn(&mut Session) -> Result<T, Error>) -> Result<T, Error> {
        self.ask_noting(verb).0
    }

    /// The same, and whether it was run twice: a refusal may then come from the first run's
    /// success.
    pub fn ask_noting<T>(
        &self,
        verb: impl Fn(&mut Session) -> Result<T, Error>,
    ) -> (Result<T, Error>, bool) {
        match self.run(Age::Any, &verb) {
            Err(error) if error.lost_session() => {
                log::info!("{error}; once more on a fresh connection");
                (self.run(Age::Fresh, &verb), true)
            }
            result => (result, false),
        }
    }

    /// Runs a verb and returns the session unless the verb lost it.
    fn run<T>(
        &self,
        age: Age,
        verb: impl Fn(&mut Session) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut session = self.shared.lease(age)?;
        let result = verb(&mut session);
        if result.as_ref().err().is_none_or(Error::leaves_session_usable) {
            session.give_back();
        }
        result
    }

    /// A download from `offset` on.
    pub fn download(&self, path: &RemotePath, offset: u64) -> Result<Download, Error> {
        self.open_download(|session| Download::open(session, path, offset))
    }

    /// The same, if what the server tells of the file now is as `check` wants it.
    pub fn download_checked(
        &self,
        path: &RemotePath,
        offset: u64,
        check: &dyn Fn(&Look) -> bool,
    ) -> Result<Checked, Error> {
        self.open_download(|session| Download::open_checked(session, path, offset, check))
    }

    fn open_download<T>(&self, open: impl Fn(Session) -> Result<T, Error>) -> Result<T, Error> {
        match open(self.shared.lease(Age::Owing)?) {
            Err(error) if error.lost_session() => {
                log::info!("{error}; once more on a fresh connection");
                open(self.shared.lease(Age::Fresh)?)
            }
            result => result,
        }
    }

    /// Everything in a directory.
    pub fn list(&self, directory: &RemotePath) -> Result<Entries, Error> {
        match self.run(Age::Owing, |session| session.list(directory)) {
            Err(error) if error.lost_session() => {
                log::info!("{error}; once more on a fresh connection");
                self.run(Age::Fresh, |session| session.list(directory))
            }
            result => result,
        }
    }

    /// Uploads with everything that belongs to it: see [`Store`]. Before the first byte a lost
    /// connection is replaced, after the last one it is found out whether only the replies were
    /// lost. In between it is an error, and what is under `path` then is for the caller to remove.
    pub fn store(&self, store: &Store) -> Result<StoreOutcome, Error> {
        let ready = match self.ready(Age::Any, store) {
            Err(error) if error.lost_session() => {
                log::info!("{error}; once more on a fresh connection");
                self.ready(Age::Fresh, store)?
            }
            ready => ready?,
        };
        let before = ready.before;
        if let (Some((_, agrees)), Some(look)) = (store.guard, before)
            && !agrees(&look)
        {
            ready.leave();
            return Ok(StoreOutcome::Guarded(look));
        }
        let mut is_sent = false;
        let could_tls13 = self.may_tls13();
        let mut sent = ready.send(store, &mut is_sent);
        // Refused for the TLS session: ProFTPD 1.3.8 says so (425) when all bytes have left, and has
        // stored none. What is under the name now, a file of no length, is no reason for the guard to
        // say no. Appending is done once more only if nothing can have arrived.
        let may_repeat = !is_sent || store.placement != Placement::Append;
        if could_tls13 && !self.may_tls13() && may_repeat && lost(&sent) {
            is_sent = false;
            let mut again = self.ready(Age::Fresh, &Store { guard: None, ..store.clone() })?;
            again.before = before;
            sent = again.send(store, &mut is_sent);
        }
        let ended = match sent {
            // Nothing but this upload can have made what is there.
            Err(error) if is_sent && error.lost_session() && store.is_new(before.as_ref()) => {
                log::info!("upload of {}: {error}; is all of it there?", store.path);
                self.is_all_there(store).then_some((None, Ended::unanswered())).ok_or(error)?
            }
            sent => {
                let (session, ended) = sent?;
                (ended.is_in_step.then_some(session), ended)
            }
        };
        self.complete(store, before.as_ref(), ended).map(StoreOutcome::Done)
    }

    fn may_tls13(&self) -> bool {
        self.shared.connector.server().may(Habit::Tls13)
    }

    fn ready(&self, age: Age, store: &Store) -> Result<Ready, Error> {
        let guard = store.guard.map(|(path, _)| path);
        Ready::ask(self.shared.lease(age)?, guard, store.offset())
    }

    fn is_all_there(&self, store: &Store) -> bool {
        let size = self.run(Age::Fresh, |session| lane::look(session, store.path));
        let length = store.range.end.saturating_sub(store.range.start);
        matches!(size, Ok(Look::There(stat)) if stat.size == Some(length))
    }

    /// What is left to do is done again on a fresh session if the first one is lost: questions, and
    /// attributes, which may be set twice.
    fn complete(
        &self,
        store: &Store,
        before: Option<&Look>,
        (session, ended): (Option<Session>, Ended),
    ) -> Result<Stored, Error> {
        let step = Cell::new(Rename::Before);
        if let Some(mut session) = session {
            let result = complete(&mut session, store, before, ended, &step);
            match result {
                Err(error) if error.lost_session() => log::info!("{error}; once more"),
                result => {
                    if result.as_ref().err().is_none_or(Error::leaves_session_usable) {
                        session.give_back();
                    }
                    return result;
                }
            }
        }
        let was_renaming = step.get() == Rename::Renaming;
        let again = |session: &mut Session| {
            if was_renaming && let Some(to) = store.rename_to {
                // Its reply was lost, which may have been a success.
                let there = lane::look(session, to)?;
                let gone = lane::look(session, store.path)?;
                if let (Look::Absent, Look::There(stat)) = (gone, there) {
                    let length = store.range.end.saturating_sub(store.range.start);
                    if stat.size.is_none_or(|size| size == length) {
                        return Ok(Stored {
                            size: stat.size,
                            mtime: stat.mtime,
                            mode_set: store.mode.is_some(),
                            mtime_set: store.mtime.is_some(),
                            renamed: Renamed::Done,
                        });
                    }
                }
            }
            complete(session, store, before, Ended::unanswered(), &step)
        };
        self.run(Age::Fresh, again)
    }

    /// What the server has of `path` now.
    pub fn look(&self, path: &RemotePath) -> Result<Look, Error> {
        let look = self.ask(|session| lane::look(session, path))?;
        if look != Look::Unknown {
            return Ok(look);
        }
        // MLSD in FEAT, and no MLST: SIZE and MDTM tell.
        match self.ask(|session| session.stat_by_size(path)) {
            Ok(stat) if stat.size.is_some() || stat.mtime.is_some() => Ok(Look::There(stat)),
            Ok(_) | Err(Error::Refused(_)) => Ok(Look::Unknown),
            Err(error) => Err(error),
        }
    }

    /// Does APPE work? Unknown until it was tried: then yes.
    pub fn appends(&self) -> bool {
        self.shared.connector.server().may(Habit::Appe)
    }

    /// What an upload at an offset does to what lies behind it: tried once on `scratch`, a name of
    /// our own where nothing is, and remembered.
    pub fn tail_habit(&self, scratch: &RemotePath) -> Result<TailHabit, Error> {
        let server = self.shared.connector.server();
        let known = (server.verdict(Habit::KeepsTail), server.verdict(Habit::CutsTail));
        match known {
            (Verdict::Yes, _) => return Ok(TailHabit::Keeps),
            (_, Verdict::Yes) => return Ok(TailHabit::Cuts),
            (Verdict::No, Verdict::No) => return Ok(TailHabit::Loses),
            _ => {}
        }
        let tried = self.try_offset(scratch);
        // Also after an error: something may be there.
        let _ = self.ask(|session| session.remove_file(scratch));
        let habit = tried?;
        let is = |is: bool| if is { Verdict::Yes } else { Verdict::No };
        server.learn(Habit::KeepsTail, is(habit == TailHabit::Keeps));
        server.learn(Habit::CutsTail, is(habit == TailHabit::Cuts));
        Ok(habit)
    }

    /// Eight bytes, and two of them written again in the middle.
    fn try_offset(&self, scratch: &RemotePath) -> Result<TailHabit, Error> {
        let file = tempfile::tempfile().map_err(Error::Broken)?;
        (&file).write_all(b"01234567").map_err(Error::Broken)?;
        let size = |range: Range<u64>, placement| {
            let store = Store {
                path: scratch,
                file: &file,
                range,
                placement,
                guard: None,
                mode: None,
                mtime: None,
                rename_to: None,
                is_cancelled: &|| false,
            };
            match self.store(&store) {
                Ok(StoreOutcome::Done(stored)) => Ok(stored.size),
                Ok(StoreOutcome::Guarded(_)) => Ok(None),
                // Not of the offset, but of the name: that says nothing of the server.
                Err(error @ Error::Refused(_)) if placement == Placement::Whole => Err(error),
                Err(Error::Refused(_)) => Ok(None),
                Err(Error::WrongSize { has, .. }) => Ok(Some(has)),
                Err(error) => Err(error),
            }
        };
        if size(0..8, Placement::Whole)? != Some(8) {
            return Ok(TailHabit::Loses);
        }
        Ok(match size(0..2, Placement::At(4))? {
            Some(8) if self.starts_with(scratch, b"01230167")? => TailHabit::Keeps,
            Some(6) if self.starts_with(scratch, b"012301")? => TailHabit::Cuts,
            _ => TailHabit::Loses,
        })
    }

    /// Are the first bytes these?
    fn starts_with(&self, path: &RemotePath, wanted: &[u8]) -> Result<bool, Error> {
        let mut download = self.download(path, 0)?;
        let mut bytes = vec![0; wanted.len()];
        let mut count = 0;
        while count < bytes.len() {
            match download.read(bytes.get_mut(count..).unwrap_or_default())? {
                0 => break,
                more => count += more,
            }
        }
        download.leave(false);
        Ok(bytes == wanted)
    }

    /// Begins an upload whose bytes are still being made; the question for its size travels with
    /// it.
    pub fn begin_upload(&self, path: &RemotePath) -> Result<Upload, Error> {
        let server = self.shared.connector.server();
        let behind = if may_travel(server) { Ask::look(server, path) } else { Vec::new() };
        let could_tls13 = self.may_tls13();
        let upload = match Upload::open(self.lease()?, path, behind) {
            Err(error) if error.lost_session() && could_tls13 && !self.may_tls13() => {
                Upload::open(self.shared.lease(Age::Fresh)?, path, Vec::new())
            }
            upload => upload,
        };
        Ok(upload?.asking())
    }

    /// Does anybody wait for a connection?
    pub fn is_wanted(&self) -> bool {
        self.shared.is_wanted()
    }

    /// Keeps a half-read download for the handle until it reads on or somebody needs its
    /// connection.
    pub fn park(&self, handle: u64, download: Download) {
        let replaced = {
            let mut state = lock(&self.shared.state);
            if state.closed {
                Some((handle, (download, Instant::now())))
            } else {
                state.last_parked = Some(Instant::now());
                state.parked.push(handle, (download, Instant::now()))
            }
        };
        drop(replaced);
        self.shared.changed.notify_all();
    }

    /// The download that was parked for the handle, if it is still there.
    pub fn resume(&self, handle: u64) -> Option<Download> {
        lock(&self.shared.state).parked.pop(&handle).map(|(download, _)| download)
    }

    /// What is open now.
    pub fn snapshot(&self) -> PoolSnapshot {
        let state = lock(&self.shared.state);
        let (free, parked) = (state.free.len(), state.parked.len());
        let leased = state.open.saturating_sub(free + parked);
        PoolSnapshot { limit: state.limit, open: state.open, free, parked, leased }
    }

    /// Why nothing is asked of the server just now, if that is so.
    pub fn trouble(&self) -> Option<String> {
        lock(&self.shared.state).down.as_ref().map(|down| down.cause.clone())
    }

    /// Ends all idle connections politely and lets none return.
    pub fn close(&self) {
        let (free, parked) = {
            let mut state = lock(&self.shared.state);
            state.closed = true;
            let mut parked = Vec::new();
            while let Some((_, (download, _))) = state.parked.pop_lru() {
                parked.push(download);
            }
            (std::mem::take(&mut state.free), parked)
        };
        drop(parked);
        for session in free {
            session.quit();
        }
    }

    fn lease(&self) -> Result<Session, Error> {
        self.shared.lease(Age::Any)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.close();
    }
}

fn lost<T>(result: &Result<T, Error>) -> bool {
    result.as_ref().err().is_some_and(Error::lost_session)
}

/// Does any session do, or must it be a new one?
#[derive(Clone, Copy, PartialEq, Eq)]
enum Age {
    Any,
    /// The same, and it may still owe the reply of a transfer that is over: what is sent first is
    /// the question for another one.
    Owing,
    Fresh,
}

/// What pool and sessions share.
pub(crate) struct Shared {
    connector: Connector,
    /// Leaf lock: never held across I/O, and no session is dropped under it (its slot locks too).
    state: Mutex<State>,
    /// Signalled when a connection becomes free, is parked or ends.
    changed: Condvar,
    born: Instant,
    /// When something last moved on any connection, in milliseconds since `born`.
    progress_millis: AtomicU64,
    /// How long a login takes, in microseconds: a mean in which the last counts for a quarter.
    login_micros: AtomicU64,
}

struct State {
    free: Vec<Session>,
    /// By handle, each with the time of parking; the least recently parked is given up first.
    parked: LruCache<u64, (Download, Instant)>,
    open: usize,
    /// How many of these are not logged in yet.
    connecting: usize,
    limit: usize,
    /// Tickets of those who wait; the smallest goes first.
    waiting: BTreeSet<u64>,
    tickets: u64,
    down: Option<Down>,
    closed: bool,
    /// How many connections work ahead of need has; none of them is free or parked.
    spares: usize,
    /// When a half-read download was last parked.
    last_parked: Option<Instant>,
    /// No connection is opened for work ahead of need before this.
    no_spare_until: Option<Instant>,
}

/// The server did not answer: until `until` nobody tries again.
struct Down {
    until: Instant,
    pause: Duration,
    cause: String,
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
    fn lease(self: &Arc<Self>, age: Age) -> Result<Session, Error> {
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
    fn connect(self: &Arc<Self>, slot: Slot, tries: usize) -> Result<Option<Session>, Error> {
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
    fn end_idle(&self, limit: Duration) {
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

    fn is_wanted(&self) -> bool {
        !lock(&self.state).waiting.is_empty()
    }

    fn note_login(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let before = self.login_micros.load(Ordering::Relaxed);
        let mean = if before == 0 { micros } else { before / 4 * 3 + micros / 4 };
        self.login_micros.store(mean, Ordering::Relaxed);
    }

    fn login_time(&self) -> Duration {
        Duration::from_micros(self.login_micros.load(Ordering::Relaxed))
    }

    fn note_progress(&self) {
        let millis = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.progress_millis.store(millis, Ordering::Relaxed);
    }

    fn since_progress(&self) -> Duration {
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
    shared: Arc<Shared>,
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
