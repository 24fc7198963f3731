//! What the threads of one server share, and how they wait for each other.
//!
//! One mutex, one condition variable: commands, replies, faults and the end of
//! the server are all changes of one state. Never interprets a command.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use socket2::{SockRef, Socket};

use super::dialect::Dialect;
use super::faults::Faults;
use super::storage::{Content, Storage};

/// What the threads of a server share.
pub struct Hub {
    pub storage: Arc<Storage>,
    /// A leaf: nothing is locked and nothing is sent while it is held, but the
    /// one line of `Ending::Farewell`.
    state: Mutex<State>,
    changed: Condvar,
}

pub struct State {
    /// Counts changes, so that none is missed between looking and waiting.
    pub version: u64,
    pub stopping: bool,
    pub frozen: bool,
    pub refusing: bool,
    pub releases: u64,
    pub delay: Duration,
    /// Bytes a second of each data connection that sends; 0: as fast as it goes.
    pub rate: u64,
    /// Of each data connection, in bytes; `None`: what the kernel likes.
    pub send_buffer: Option<usize>,
    /// Bytes that went into data connections.
    pub sent: u64,
    /// Downloads whose client had closed its end when they began.
    pub early_ends: usize,
    pub dialect: Dialect,
    pub faults: Faults,
    pub commands: Vec<Command>,
    pub lines: BTreeMap<u64, Line>,
    pub total: u64,
    pub peak: usize,
    pub threads: Vec<JoinHandle<()>>,
    /// Bytes that came before a cut and are not in their file yet, and where they go.
    pub late: Vec<(Content, u64, Vec<u8>)>,
}

/// What others may see of a session, and its sockets, so that they can end it.
#[derive(Default)]
pub struct Line {
    pub inbox: VecDeque<Received>,
    /// The client closed its side.
    pub hung_up: bool,
    /// Waits in a fault or a delay.
    pub stuck: bool,
    /// Carries out a command, or one that came in the same segment is about to follow.
    pub inside: bool,
    /// An ABOR is in the inbox.
    pub aborted: bool,
    pub ended: Option<Ending>,
    pub logged_in: bool,
    pub control: Weak<TcpStream>,
    pub data: Weak<TcpStream>,
    pub passive: Weak<Socket>,
}

/// A command line as it came.
#[derive(Clone, Debug)]
pub struct Command {
    /// Which session sent it, counted from 1.
    pub session: u64,
    /// Which segment of that session brought it, counted from 1: commands of one number came
    /// together.
    pub segment: u64,
    /// In capitals.
    pub verb: String,
    /// The whole line, bytes outside ASCII and backslashes escaped, the
    /// argument of PASS blanked.
    pub line: String,
}

/// A command line that waits to be carried out.
pub struct Received {
    pub line: Vec<u8>,
    pub at: Instant,
    /// Another one came with it.
    pub has_more: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Close,
    Reset,
    /// 421, then close.
    Farewell,
}

/// The session is over: the client left, or the server ended it.
#[derive(Debug)]
pub struct Gone;

impl Hub {
    pub fn new(dialect: Dialect, storage: Storage) -> Hub {
        let state = State {
            version: 0,
            stopping: false,
            frozen: false,
            refusing: false,
            releases: 0,
            delay: Duration::ZERO,
            rate: 0,
            send_buffer: None,
            sent: 0,
            early_ends: 0,
            dialect,
            faults: Faults::default(),
            commands: Vec::new(),
            lines: BTreeMap::new(),
            total: 0,
            peak: 0,
            threads: Vec::new(),
            late: Vec::new(),
        };
        Hub { storage: Arc::new(storage), state: Mutex::new(state), changed: Condvar::new() }
    }

    /// The server's clock.
    pub fn now(&self) -> i64 {
        unix_now() + self.look(|state| state.dialect.clock_skew)
    }

    pub fn look<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        look(&self.lock())
    }

    /// Changes the state and wakes all who wait.
    pub fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.lock();
        let result = change(&mut state);
        state.version += 1;
        self.changed.notify_all();
        result
    }

    /// Says that a file changed.
    pub fn touch(&self) {
        self.change(|_| ());
    }

    /// Waits until `ready` gives something; nothing after the deadline.
    pub fn wait<R>(
        &self,
        deadline: Option<Instant>,
        mut ready: impl FnMut(&mut State) -> Option<R>,
    ) -> Option<R> {
        let mut state = self.lock();
        loop {
            if let Some(result) = ready(&mut state) {
                return Some(result);
            }
            state = match deadline {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return None;
                    }
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    /// Wakes whatever the session is blocked in and makes it leave.
    pub fn end(&mut self, ending: Ending) {
        if self.ended.is_some() {
            return;
        }
        self.ended = Some(ending);
        if let Some(passive) = self.passive.upgrade() {
            let _ = passive.shutdown(Shutdown::Both);
        }
        for (socket, is_control) in [(self.data.upgrade(), false), (self.control.upgrade(), true)] {
            let Some(socket) = socket else { continue };
            if is_control && ending == Ending::Farewell {
                let _ = (&*socket).write_all(b"421 Timeout.\r\n");
            }
            hang_up(&socket, ending, is_control);
        }
    }
}

/// Closes a connection for all its owners.
pub fn hang_up(socket: &TcpStream, ending: Ending, is_control: bool) {
    if ending == Ending::Reset {
        // The RST goes out when the last owner lets go of the socket. A data
        // connection may be blocked in a write, which only a full shutdown ends.
        let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
        if is_control {
            let _ = socket.shutdown(Shutdown::Read);
            return;
        }
    }
    let _ = socket.shutdown(Shutdown::Both);
}

/// The clock of this machine.
pub fn unix_now() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX)
}
