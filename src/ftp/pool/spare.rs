//! Connections for work ahead of need, which nobody waits for yet.
//!
//! Such work takes a connection only when no request waits for one, leaves one to the next request
//! (unless that waits for what is done ahead), and never takes a half-read download away. A new
//! connection is opened only if the work at hand gains more by it than the login costs. While a
//! request waits all the same, transfers are given up and listings read to their end, so that it
//! waits for one short transfer at most.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Pool;
use super::slots::{Shared, Slot, State};
use crate::ftp::error::Error;
use crate::ftp::lane::Look;
use crate::ftp::listing::Entries;
use crate::ftp::open::Ahead;
use crate::ftp::path::RemotePath;
use crate::ftp::server::lock;
use crate::ftp::session::Session;
use crate::ftp::transfer::{Checked, Download};

/// How much is read between two looks at whether somebody waits: 30 ms at 20 Mbit/s.
const BLOCK: usize = 64 * 1024;

/// Somebody reads a large file if a half-read download was parked within this time; at 128 KiB a
/// read (the kernel's read-ahead) that is any line from 2 Mbit/s on.
const STREAM: Duration = Duration::from_millis(500);

/// After a connection could not be made, none is tried for this long: whoever needs one tries.
const PAUSE: Duration = Duration::from_secs(10);

/// The right to a connection that still has to be made ready.
pub struct Reserved {
    claim: Claim,
    way: Way,
}

enum Way {
    Free(Box<Session>),
    Connect(Slot),
}

/// A connection for one listing or one small file.
pub struct Spare {
    /// Before the claim, so that it is back in the pool when the claim ends.
    session: Session,
    claim: Claim,
}

/// One of the connections that work ahead of need has.
struct Claim {
    shared: Arc<Shared>,
}

/// One request waits for work ahead. Ends with the value.
pub struct LentTurn {
    shared: Arc<Shared>,
}

impl Drop for LentTurn {
    fn drop(&mut self) {
        lock(&self.shared.state).lent -= 1;
    }
}

/// What came of fetching a file.
#[derive(Debug, PartialEq, Eq)]
pub enum Fetched {
    /// All of it, of exactly the size that was expected.
    Whole(Vec<u8>),
    /// It has another size now, or somebody needed the connection; so many bytes were read in vain.
    GivenUp(usize),
}

/// What ends with a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    Part,
    /// No byte may follow.
    File,
}

impl Pool {
    /// A connection for work that would take one connection `work` long; `None` if there is none to
    /// spare within `patience`.
    pub fn reserve(&self, work: Duration, patience: Duration) -> Option<Reserved> {
        let until = Instant::now() + patience;
        let mut state = lock(&self.shared.state);
        loop {
            if let Some(way) = self.shared.try_spare(&mut state, work) {
                state.spares += 1;
                drop(state);
                return Some(Reserved { claim: Claim { shared: Arc::clone(&self.shared) }, way });
            }
            let left = until.checked_duration_since(Instant::now())?;
            let (woken, _) = self
                .shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            state = woken;
        }
    }

    /// A request waits for what is done ahead: while it does, such work may have the connection that
    /// is left to it.
    pub fn lend_turn(&self) -> LentTurn {
        lock(&self.shared.state).lent += 1;
        self.shared.changed.notify_all();
        LentTurn { shared: Arc::clone(&self.shared) }
    }

    /// Does somebody read a large file just now?
    pub fn is_streaming(&self) -> bool {
        lock(&self.shared.state).last_parked.is_some_and(|time| time.elapsed() < STREAM)
    }
}

impl Shared {
    fn try_spare(self: &Arc<Self>, state: &mut State, work: Duration) -> Option<Way> {
        let is_paused = state.no_spare_until.is_some_and(|until| Instant::now() < until);
        if state.closed || !state.waiting.is_empty() || state.down.is_some() {
            return None;
        }
        let free = state.free.len();
        if state.spares >= state.most_spares() {
            return None;
        }
        // One is left to the next request, unless a request is at work on its own, or has lent it.
        if free > 1 || (free == 1 && (state.foreground() > 0 || state.lent > 0)) {
            let clean = state.free.iter().rposition(|session| !session.owes());
            let session = state.free.remove(clean.unwrap_or(free - 1));
            return Some(Way::Free(Box::new(session)));
        }
        if state.open < state.limit && !is_paused && self.is_worth_a_login(state.open, work) {
            state.open += 1;
            state.connecting += 1;
            return Some(Way::Connect(Slot { shared: Arc::clone(self) }));
        }
        None
    }

    /// Work shared by `n` connections takes `work / n`; by one more, `work / (n + 1)`: the gain is
    /// the difference, `work / (n * (n + 1))`.
    fn is_worth_a_login(&self, open: usize, work: Duration) -> bool {
        let open = u32::try_from(open.max(1)).unwrap_or(u32::MAX);
        work / open.saturating_mul(open.saturating_add(1)) > self.login_time()
    }
}

impl State {
    /// Connections that requests have: leased, or parked for them.
    fn foreground(&self) -> usize {
        self.open.saturating_sub(self.free.len() + self.spares)
    }

    /// The most that work ahead of need may have now: all but one, which may be lent; where several
    /// requests are at work, all but theirs and one. A single connection has none: what it fetched
    /// meanwhile would be no sooner there, and the program that has just opened a file would wait for
    /// the next.
    fn most_spares(&self) -> usize {
        let kept = match self.foreground() {
            0 if self.lent > 0 && self.limit > 1 => 0,
            0 | 1 => 1,
            busy => busy + 1,
        };
        self.limit.saturating_sub(kept)
    }
}

impl Reserved {
    /// Reads what the free session still owes, or logs in. `None` if there is no connection after
    /// all; nobody is told, as nobody waits.
    pub fn ready(self) -> Option<Spare> {
        let Self { claim, way } = self;
        match way {
            Way::Free(mut session) => {
                let is_alive = !session.is_stale() && session.settle_unless_overlapping().is_ok();
                is_alive.then_some(Spare { session: *session, claim })
            }
            Way::Connect(slot) => {
                let session = claim.shared.connect_ahead(slot)?;
                Some(Spare { session, claim })
            }
        }
    }
}

impl Shared {
    /// Unlike [`Shared::connect`] a failure does not count as the server being down: that is for
    /// those to find out who need the connection.
    fn connect_ahead(self: &Arc<Self>, slot: Slot) -> Option<Session> {
        let started = Instant::now();
        let opened = self.connector.open(slot);
        let mut state = lock(&self.state);
        state.connecting -= 1;
        let session = match opened {
            Ok(session) => {
                self.note_login(started.elapsed());
                Some(session)
            }
            Err(Error::TooMany(reply)) if state.open > 0 => {
                log::warn!("the server allows {} connections: {reply}", state.open);
                state.limit = state.open;
                None
            }
            Err(error) => {
                log::info!("no further connection for reading ahead: {error}");
                state.no_spare_until = Some(Instant::now() + PAUSE);
                None
            }
        };
        drop(state);
        self.changed.notify_all();
        session
    }
}

impl Spare {
    /// What is in a directory.
    pub fn list(self, directory: &RemotePath) -> Result<Entries, Error> {
        let Self { mut session, claim } = self;
        let listed = session.list_with(directory, Ahead::Try);
        if listed.as_ref().err().is_none_or(Error::leaves_session_usable) {
            session.give_back();
        } else {
            drop(session);
        }
        drop(claim);
        listed
    }

    /// A whole file of `size` bytes.
    pub fn fetch(self, path: &RemotePath, size: usize) -> Result<Fetched, Error> {
        let Self { session, claim } = self;
        let mut download = Download::open_ahead(session, path, size)?;
        let mut bytes = vec![0; size];
        let mut filled = 0;
        let mut beyond = [0];
        loop {
            if claim.shared.is_wanted() {
                download.leave(false);
                return Ok(Fetched::GivenUp(filled));
            }
            let end = (filled + BLOCK).min(size);
            // After the last byte one more is asked for: a file that has grown is another version.
            let room = match bytes.get_mut(filled..end) {
                Some(room) if !room.is_empty() => room,
                _ => &mut beyond,
            };
            let read = download.read(room);
            if read.is_err() {
                download.blame_early_end();
            }
            match read? {
                0 if filled == size && !download.was_cut() => {
                    download.leave(true);
                    return Ok(Fetched::Whole(bytes));
                }
                0 => {
                    download.blame_early_end();
                    download.leave(true);
                    return Ok(Fetched::GivenUp(filled));
                }
                _ if filled == size => {
                    download.leave(false);
                    return Ok(Fetched::GivenUp(filled));
                }
                count => filled += count,
            }
        }
    }

    /// `length` bytes of a file from `offset` on, if the file is as `check` wants it. Between blocks
    /// it is asked whether they are still wanted.
    pub fn fetch_part(
        self,
        path: &RemotePath,
        (offset, length): (u64, usize),
        ends: Ends,
        check: &dyn Fn(&Look) -> bool,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<Fetched, Error> {
        let Self { session, claim } = self;
        let mut download = match Download::open_part(session, path, offset, check)? {
            Checked::Opened(download, _) => download,
            Checked::Other(_) => return Ok(Fetched::GivenUp(0)),
        };
        let mut bytes = vec![0; length];
        let mut filled = 0;
        while filled < length {
            if claim.shared.is_wanted() || !is_wanted() {
                download.leave(false);
                return Ok(Fetched::GivenUp(filled));
            }
            let end = (filled + BLOCK).min(length);
            match download.read(bytes.get_mut(filled..end).unwrap_or_default())? {
                0 => {
                    download.leave(true);
                    return Ok(Fetched::GivenUp(filled));
                }
                count => filled += count,
            }
        }
        let is_over = ends == Ends::File && download.read(&mut [0])? == 0;
        download.leave(is_over);
        if ends == Ends::File && !is_over {
            Ok(Fetched::GivenUp(filled))
        } else {
            Ok(Fetched::Whole(bytes))
        }
    }

    /// Nothing was left to do.
    pub fn give_back(self) {
        let Self { session, claim } = self;
        session.give_back();
        drop(claim);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        lock(&self.shared.state).spares -= 1;
        self.shared.changed.notify_all();
    }
}
