//! The only owner of connections between requests.
//!
//! A session is *free*, *leased* (owned by one running call) or *parked* (a half-read download,
//! keyed by its handle). Whoever needs a connection takes a free one, opens a new one while the
//! limit allows, or takes the oldest parked one, whose reader opens again when it reads on. So
//! idle readers never starve anybody, and no call holds one connection while it waits for another.

mod slots;
mod spare;
mod uploads;

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connect::Target;
use super::error::Error;
use super::lane::{self, Look};
use super::listing::Entries;
use super::path::RemotePath;
use super::server::{Habit, Verdict, lock};
use super::session::Session;
use super::transfer::{Checked, Download};
use slots::{Age, Shared};

pub(crate) use slots::Slot;
pub use spare::{Ends, Fetched, LentTurn, Reserved, Spare};
pub use uploads::TailHabit;

/// A session idle for so long is ended by us, politely: FileZilla Server does it after 120 s,
/// vsftpd and ProFTPD after 300 and 600, and a NAT may forget it without a word.
const IDLE_LIMIT: Duration = Duration::from_secs(100);

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

/// All connections to one server.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
}

impl Pool {
    /// Connects and logs in once, so that a wrong host, user or directory is known at once.
    pub fn open(target: Target) -> Result<Arc<Self>, Error> {
        let shared = Arc::new(Shared::new(target)?);
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
