//! A scripted FTP server on 127.0.0.1, in this process, for tests.
//!
//! Owns the listening socket and the acceptor; what sessions share is in `hub`.
//! Never interprets a command: that is `session` and `verbs`.
//!
//! Two threads per session: one reads command lines as they come, so that an
//! ABOR is seen during a transfer and pipelined commands keep their arrival
//! times; one does the work. All waiting is on one condition variable, so
//! whatever is blocked, also in a fault, ends when the server is dropped.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::Socket;

use super::dialect::Dialect;
use super::faults::{Fault, What};
use super::hub::{Command, Ending, Hub, State, unix_now};
use super::path::ServerPath;
use super::ports;
use super::session::Session;
use super::storage::{Kind, Start, Stat, Storage};

/// A running server. Dropping it ends every session and joins every thread.
///
/// The methods on files are "the other client": they act at once, whatever
/// faults are set, and panic where a test asks for the impossible.
pub struct Server {
    hub: Arc<Hub>,
    listener: Arc<Socket>,
    address: SocketAddr,
    acceptor: Option<JoinHandle<()>>,
}

/// What a test may ask for before giving up on it: generous, because the
/// machine may be busy; nothing waits that long when all is well.
pub const PATIENCE: Duration = Duration::from_secs(20);

impl Server {
    /// Serves an empty tree in memory.
    pub fn start(dialect: Dialect) -> Server {
        Server::start_at(dialect, Ipv4Addr::LOCALHOST)
    }

    /// The same on another address of the loopback. Each has its own ports, of which a minute of
    /// short connections uses up more than there are (TIME_WAIT).
    pub fn start_at(dialect: Dialect, address: Ipv4Addr) -> Server {
        let storage = Storage::memory(unix_now() + dialect.clock_skew);
        Server::bind_at(dialect, storage, address, 0).unwrap()
    }

    /// Serves `storage` on `port`; 0 takes a free one.
    pub fn bind(dialect: Dialect, storage: Storage, port: u16) -> io::Result<Server> {
        Server::bind_at(dialect, storage, Ipv4Addr::LOCALHOST, port)
    }

    fn bind_at(
        dialect: Dialect,
        storage: Storage,
        address: Ipv4Addr,
        port: u16,
    ) -> io::Result<Server> {
        let (listener, port) = ports::listen(address.into(), port, BACKLOG)?;
        let address = SocketAddr::from((address, port));
        let listener = Arc::new(listener);
        let hub = Arc::new(Hub::new(dialect, storage));
        let acceptor = {
            let (hub, listener) = (hub.clone(), listener.clone());
            thread::Builder::new()
                .name("ftp-accept".into())
                .spawn(move || accept(&hub, &listener))?
        };
        Ok(Server { hub, listener, address, acceptor: Some(acceptor) })
    }

    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    // ---- the other client ----

    /// Writes a file in place, as STOR would, and makes missing directories.
    pub fn put(&self, path: impl AsRef<[u8]>, bytes: impl AsRef<[u8]>) {
        let path = self.with_parents(path);
        let now = self.hub.now();
        let (file, _) = self.hub.storage.create(&path, Start::Truncate, now).unwrap();
        file.write_at(0, bytes.as_ref(), now).unwrap();
        self.hub.touch();
    }

    /// A file of any size that needs no memory; see `tree::fill_generated`.
    pub fn put_generated(&self, path: impl AsRef<[u8]>, size: u64, seed: u64) {
        let path = self.with_parents(path);
        self.hub.storage.generate(&path, size, seed, self.hub.now()).unwrap();
        self.hub.touch();
    }

    /// The bytes of a file; nothing when there is no such file.
    pub fn get(&self, path: impl AsRef<[u8]>) -> Option<Vec<u8>> {
        let file = self.hub.storage.open(&ServerPath::absolute(path)).ok()?;
        let mut bytes = Vec::new();
        let mut block = vec![0; 64 * 1024];
        loop {
            match file.read_at(bytes.len() as u64, &mut block).unwrap() {
                0 => return Some(bytes),
                length => bytes.extend_from_slice(&block[..length]),
            }
        }
    }

    /// Makes a directory and those above it; one that exists is fine.
    pub fn mkdir(&self, path: impl AsRef<[u8]>) {
        self.with_parents([path.as_ref(), b"/x"].concat());
        self.hub.touch();
    }

    /// Deletes a file, a symlink, or a directory and all in it.
    pub fn remove(&self, path: impl AsRef<[u8]>) {
        self.remove_all(&ServerPath::absolute(path));
        self.hub.touch();
    }

    pub fn rename(&self, from: impl AsRef<[u8]>, to: impl AsRef<[u8]>) {
        let (from, to) = (ServerPath::absolute(from), ServerPath::absolute(to));
        self.hub.storage.rename(&from, &to, self.hub.now()).unwrap();
        self.hub.touch();
    }

    /// The same at a moment when no session is at a command, or between two of one segment: a real
    /// server needs microseconds for these.
    pub fn rename_between(&self, from: impl AsRef<[u8]>, to: impl AsRef<[u8]>) {
        let (from, to) = (ServerPath::absolute(from), ServerPath::absolute(to));
        let rename = |state: &mut State| {
            if state.lines.values().any(|line| line.inside) {
                return None;
            }
            self.hub.storage.rename(&from, &to, unix_now()).unwrap();
            Some(())
        };
        self.hub.wait(Some(Instant::now() + PATIENCE), rename).unwrap();
    }

    pub fn symlink(&self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) {
        let path = self.with_parents(path);
        self.hub.storage.make_link(&path, target.as_ref(), self.hub.now()).unwrap();
        self.hub.touch();
    }

    pub fn set_mtime(&self, path: impl AsRef<[u8]>, unix_seconds: i64) {
        self.hub.storage.set_mtime(&ServerPath::absolute(path), unix_seconds).unwrap();
        self.hub.touch();
    }

    /// Without the owner's bit 0400 a file cannot be read or a directory
    /// listed, without 0200 neither be changed: 550.
    pub fn set_mode(&self, path: impl AsRef<[u8]>, mode: u32) {
        self.hub.storage.set_mode(&ServerPath::absolute(path), mode).unwrap();
        self.hub.touch();
    }

    pub fn exists(&self, path: impl AsRef<[u8]>) -> bool {
        self.hub.storage.stat_link(&ServerPath::absolute(path)).is_ok()
    }

    /// The state of a file or directory, a symlink as itself.
    pub fn stat(&self, path: impl AsRef<[u8]>) -> Option<Stat> {
        self.hub.storage.stat_link(&ServerPath::absolute(path)).ok()
    }

    /// The names in a directory, sorted.
    pub fn names(&self, path: impl AsRef<[u8]>) -> Vec<Vec<u8>> {
        let entries = self.hub.storage.list(&ServerPath::absolute(path)).unwrap();
        entries.into_iter().map(|(name, _)| name).collect()
    }

    // ---- what came in ----

    /// The command lines of all sessions in the order in which they arrived.
    pub fn commands(&self) -> Vec<String> {
        self.hub.look(|state| state.commands.iter().map(|command| command.line.clone()).collect())
    }

    /// The same with the session of each.
    pub fn history(&self) -> Vec<Command> {
        self.hub.look(|state| state.commands.clone())
    }

    pub fn clear_commands(&self) {
        self.hub.change(|state| state.commands.clear());
    }

    /// How often `verb` (in capitals) came.
    pub fn count(&self, verb: &str) -> usize {
        self.hub.look(|state| state.commands.iter().filter(|command| command.verb == verb).count())
    }

    /// Control connections that are open now.
    pub fn sessions_open(&self) -> usize {
        self.hub.look(|state| state.lines.len())
    }

    /// The same, only those that are logged in.
    pub fn sessions_logged_in(&self) -> usize {
        self.hub.look(|state| state.lines.values().filter(|line| line.logged_in).count())
    }

    /// The most control connections that were open at one time.
    pub fn sessions_peak(&self) -> usize {
        self.hub.look(|state| state.peak)
    }

    /// Control connections there ever were.
    pub fn sessions_total(&self) -> usize {
        self.hub.look(|state| usize::try_from(state.total).unwrap_or(usize::MAX))
    }

    /// Downloads whose client had closed its end when they began, where the dialect looks.
    pub fn early_ends(&self) -> usize {
        self.hub.look(|state| state.early_ends)
    }

    /// Transfers and listings that have a data connection open now.
    pub fn transfers_open(&self) -> usize {
        self.hub
            .look(|state| state.lines.values().filter(|line| line.data.strong_count() > 0).count())
    }

    /// Waits for a change that makes `condition` true: a command, a reply, a
    /// session, a block of a file. False when `patience` ran out first.
    pub fn wait_until(&self, condition: impl Fn(&Server) -> bool, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        loop {
            let version = self.hub.look(|state| state.version);
            if condition(self) {
                return true;
            }
            let changed = |state: &mut State| (state.version != version).then_some(());
            if self.hub.wait(Some(deadline), changed).is_none() {
                return condition(self);
            }
        }
    }

    // ---- what goes wrong ----

    pub fn fault(&self, fault: Fault) {
        self.hub.change(|state| state.faults.add(fault));
    }

    /// The next `verb` fails so, once.
    pub fn fault_once(&self, verb: &'static str, what: What) {
        self.fault(Fault::once(verb, what));
    }

    /// Forgets all faults; sessions that are stuck in one stay stuck.
    pub fn clear_faults(&self) {
        self.hub.change(|state| state.faults.clear());
    }

    /// Is there a fault that has not struck as often as it was asked to?
    pub fn faults_pending(&self) -> bool {
        self.hub.look(|state| state.faults.pending())
    }

    /// Sessions that are stuck now in Silence, StallData or any delay.
    pub fn stuck(&self) -> usize {
        self.hub.look(|state| state.lines.values().filter(|line| line.stuck).count())
    }

    /// Lets everything go on that `stuck` counts. What gets stuck later stays
    /// so: wait until `stuck` says what is expected before releasing it.
    pub fn release(&self) {
        self.hub.change(|state| state.releases += 1);
    }

    /// A poor man's round trip: a reply leaves no earlier than so long after
    /// its command arrived, or after the last byte of its upload. Commands
    /// sent together wait together. Connecting costs nothing.
    pub fn set_delay(&self, delay: Duration) {
        self.hub.change(|state| state.delay = delay);
    }

    /// No data connection sends more bytes a second; 0: as fast as it goes.
    pub fn set_rate(&self, rate: u64) {
        self.hub.change(|state| state.rate = rate);
    }

    /// How much of what is sent may wait in the kernel, so that it counts as sent when it is.
    pub fn set_send_buffer(&self, bytes: usize) {
        self.hub.change(|state| state.send_buffer = Some(bytes));
    }

    /// Bytes sent over data connections so far.
    pub fn bytes_sent(&self) -> u64 {
        self.hub.look(|state| state.sent)
    }

    /// Turns switches while sessions are open.
    pub fn set_dialect(&self, change: impl FnOnce(&mut Dialect)) {
        self.hub.change(|state| change(&mut state.dialect));
    }

    /// Resets every connection and returns when the sessions are gone.
    pub fn kill_sessions(&self) {
        self.end_sessions(Ending::Reset);
    }

    /// Says `421 Timeout.` on every control connection and closes it, as for
    /// idleness, and returns when the sessions are gone.
    pub fn expire_sessions(&self) {
        self.end_sessions(Ending::Farewell);
    }

    /// True: nobody listens on the port (ECONNREFUSED), which stays ours.
    /// Sessions that are open go on.
    pub fn refuse_connections(&self, refuse: bool) {
        if refuse {
            self.hub.change(|state| state.refusing = true);
            // On Linux this takes a socket out of the listening state and
            // wakes accept(); listen() puts it back.
            let _ = self.listener.shutdown(Shutdown::Both);
        } else {
            self.listener.listen(BACKLOG).unwrap();
            self.hub.change(|state| state.refusing = false);
        }
    }

    /// Accepts nothing and answers nothing until `thaw`; connections are
    /// still established by the kernel, and commands still recorded.
    pub fn freeze(&self) {
        self.hub.change(|state| state.frozen = true);
    }

    pub fn thaw(&self) {
        self.hub.change(|state| state.frozen = false);
    }

    fn end_sessions(&self, ending: Ending) {
        let ended = self.hub.change(|state| {
            for line in state.lines.values_mut() {
                line.end(ending);
            }
            state.total
        });
        let gone = |state: &mut State| state.lines.keys().all(|id| *id > ended).then_some(());
        self.hub.wait(Some(Instant::now() + PATIENCE), gone).unwrap();
    }

    fn with_parents(&self, path: impl AsRef<[u8]>) -> ServerPath {
        let path = ServerPath::absolute(path);
        let mut missing = Vec::new();
        let mut here = path.clone();
        while let Some((parent, _)) = here.split() {
            if self.hub.storage.stat(&parent).is_ok() {
                break;
            }
            missing.push(parent.clone());
            here = parent;
        }
        for parent in missing.iter().rev() {
            self.hub.storage.make_directory(parent, self.hub.now()).unwrap();
        }
        path
    }

    fn remove_all(&self, path: &ServerPath) {
        let now = self.hub.now();
        if self.hub.storage.stat_link(path).unwrap().kind != Kind::Directory {
            return self.hub.storage.remove_file(path, now).unwrap();
        }
        for (name, _) in self.hub.storage.list(path).unwrap() {
            self.remove_all(&path.child(&name));
        }
        self.hub.storage.remove_directory(path, now).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.hub.change(|state| {
            state.stopping = true;
            for line in state.lines.values_mut() {
                line.end(Ending::Close);
            }
        });
        let _ = self.listener.shutdown(Shutdown::Both);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        for session in self.hub.change(|state| std::mem::take(&mut state.threads)) {
            let _ = session.join();
        }
    }
}

/// Connections that the kernel holds while nobody accepts: more than a test opens.
const BACKLOG: i32 = 256;

fn accept(hub: &Arc<Hub>, listener: &Socket) {
    loop {
        let may_accept = |state: &mut State| {
            (state.stopping || !(state.frozen || state.refusing)).then_some(state.stopping)
        };
        if hub.wait(None, may_accept) == Some(true) {
            return;
        }
        // An error means that the socket stopped listening: the gate above
        // knows why.
        let Ok((socket, _)) = listener.accept() else { continue };
        let thawed = |state: &mut State| (state.stopping || !state.frozen).then_some(());
        hub.wait(None, thawed);
        let _ = Session::begin(hub, socket.into());
    }
}

/// Serves the directory `root` on disk.
pub fn disk(root: &Path) -> io::Result<Storage> {
    Ok(Storage::Disk(root.canonicalize()?))
}
