//! How `status`, `umount` and others talk to the process behind a mount: JSON lines over a Unix socket
//! that only the same user and root can use.

use std::fs::{self, DirBuilder};
use std::io::{self, BufRead, BufReader, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::exit::Failure;
use super::system;
use crate::vfs::{Pinning, Refresh};

/// A process that has not answered by then is taken for stuck; answers come from memory.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often somebody who waits for a drain hears how much is left.
const PROGRESS: Duration = Duration::from_millis(500);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    Status,
    /// Send everything; then stay on the line until the process ends.
    Drain,
    /// Send everything.
    Retry,
    /// Send nothing more when the mount ends; then stay on the line.
    Leave,
    /// The next look at a path, relative to the mount and perhaps no UTF-8, asks the server.
    Refresh {
        path: Vec<u8>,
        /// Also at what is known below it.
        recursive: bool,
    },
    /// Keep a file, or all below a directory, in the cache.
    Pin {
        path: Vec<u8>,
    },
    Unpin {
        path: Vec<u8>,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Status(Box<Report>),
    /// Still sending.
    Draining {
        files: usize,
        bytes: u64,
    },
    /// All is sent, or why not.
    Drained {
        error: Option<String>,
    },
    /// Done, if the exit status is 0.
    Refreshed {
        status: u8,
        error: String,
    },
    /// Still fetching; so much is here.
    Pinning {
        files: usize,
        bytes: u64,
    },
}

/// What `status` shows of one mount; its JSON is an interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) mountpoint: PathBuf,
    /// Without a password.
    pub(crate) source: String,
    pub(crate) pid: u32,
    pub(crate) version: String,
    pub(crate) read_only: bool,
    pub(crate) ttl_seconds: f64,
    pub(crate) welcome: String,
    /// Version of TLS and why the server is trusted; empty for clear text.
    pub(crate) protection: String,
    /// Why nothing is asked of the server just now.
    pub(crate) trouble: Option<String>,
    pub(crate) connections: Connections,
    pub(crate) read_ahead: Ahead,
    /// Nothing without `--cache`.
    pub(crate) cache: Option<Cache>,
    pub(crate) pending: Vec<Unsent>,
}

/// See [`crate::ftp::PoolSnapshot`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Connections {
    pub(crate) limit: usize,
    pub(crate) open: usize,
    pub(crate) free: usize,
    pub(crate) parked: usize,
    pub(crate) leased: usize,
}

/// See [`crate::vfs::AheadBytes`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ahead {
    pub(crate) fetched_bytes: u64,
    pub(crate) read_bytes: u64,
    pub(crate) unread_bytes: u64,
}

/// See [`crate::vfs::CacheReport`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cache {
    pub(crate) directory: PathBuf,
    pub(crate) limit_bytes: u64,
    pub(crate) used_bytes: u64,
    /// Since the mount began.
    pub(crate) hit_bytes: u64,
    pub(crate) miss_bytes: u64,
    /// On the server, for people to read.
    pub(crate) pins: Vec<String>,
}

/// A file that is not on the server yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unsent {
    pub(crate) path: String,
    pub(crate) bytes: u64,
    pub(crate) error: Option<String>,
    /// The bytes on the local disk.
    pub(crate) local: PathBuf,
}

/// What the process behind a mount can tell and do.
pub(crate) trait Served: Send + Sync {
    fn report(&self) -> Report;
    fn drain(&self) -> Result<(), String>;
    /// What is unsent is kept for the next mount.
    fn leave(&self);
    fn refresh(&self, path: &[u8], how: Refresh) -> Result<(), Failure>;
    fn pin(&self, path: &[u8], told: &dyn Fn(Pinning) -> ControlFlow<()>) -> Result<(), Failure>;
    fn unpin(&self, path: &[u8]) -> Result<(), Failure>;
}

/// The socket of this process; removed with it.
#[derive(Debug)]
pub(crate) struct Control {
    path: PathBuf,
}

impl Control {
    /// Listens, on threads of its own.
    pub(crate) fn listen(served: Arc<dyn Served>) -> io::Result<Self> {
        let path = runtime_dir()?.join(format!("{}.sock", std::process::id()));
        // One of a dead process with the same number.
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        std::thread::Builder::new().name("control".into()).spawn(move || {
            for socket in listener.incoming().flatten() {
                let served = Arc::clone(&served);
                let answering = std::thread::Builder::new().name("answer".into());
                // Without a thread nobody can be answered, and who asked sees the end of the line.
                let _ = answering.spawn(move || answer(&socket, served));
            }
        })?;
        Ok(Self { path })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn answer(socket: &UnixStream, served: Arc<dyn Served>) -> io::Result<()> {
    let peer = system::peer_user(socket)?;
    if peer != system::user_id() && peer != 0 {
        return Ok(());
    }
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(socket).read_line(&mut line)?;
    match serde_json::from_str(&line)? {
        Request::Status => send(socket, &Answer::Status(Box::new(served.report()))),
        Request::Retry => drain(socket, &*served),
        Request::Refresh { path, recursive } => {
            let how = if recursive { Refresh::Below } else { Refresh::One };
            send_done(socket, served.refresh(&path, how))
        }
        Request::Pin { path } => pin(socket, &*served, &path),
        Request::Unpin { path } => send_done(socket, served.unpin(&path)),
        request @ (Request::Drain | Request::Leave) => {
            if request == Request::Drain {
                drain(socket, &*served)?;
            } else {
                served.leave();
                send(socket, &Answer::Drained { error: None })?;
            }
            drop(served);
            // The end of this process ends the line, which is what the other side waits for.
            loop {
                std::thread::park();
            }
        }
    }
}

fn drain(socket: &UnixStream, served: &dyn Served) -> io::Result<()> {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || tell.send(served.drain()));
        loop {
            match told.recv_timeout(PROGRESS) {
                Ok(result) => return send(socket, &Answer::Drained { error: result.err() }),
                Err(_) => {
                    let pending = served.report().pending;
                    let bytes = pending.iter().map(|file| file.bytes).sum();
                    send(socket, &Answer::Draining { files: pending.len(), bytes })?;
                }
            }
        }
    })
}

fn pin(socket: &UnixStream, served: &dyn Served, path: &[u8]) -> io::Result<()> {
    let (tell, told) = std::sync::mpsc::channel();
    let latest = Mutex::new((Pinning::default(), ControlFlow::Continue(())));
    std::thread::scope(|scope| {
        let latest = &latest;
        let lock = || latest.lock().unwrap_or_else(PoisonError::into_inner);
        let note = move |here| {
            let mut latest = latest.lock().unwrap_or_else(PoisonError::into_inner);
            latest.0 = here;
            latest.1
        };
        scope.spawn(move || tell.send(served.pin(path, &note)));
        loop {
            match told.recv_timeout(PROGRESS) {
                Ok(result) => return send_done(socket, result),
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {
                    let Pinning { files, bytes } = lock().0;
                    let said = send(socket, &Answer::Pinning { files, bytes });
                    if said.is_err() {
                        // Who asked has gone, and so goes the wish.
                        lock().1 = ControlFlow::Break(());
                        return said;
                    }
                }
            }
        }
    })
}

fn send_done(socket: &UnixStream, result: Result<(), Failure>) -> io::Result<()> {
    let (status, error) = match result {
        Ok(()) => (0, String::new()),
        Err(failure) => (failure.status as u8, failure.message),
    };
    send(socket, &Answer::Refreshed { status, error })
}

fn send<T: Serialize>(mut socket: &UnixStream, message: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    socket.write_all(&line)
}

/// A conversation with the process behind one mount.
#[derive(Debug)]
pub(crate) struct Line {
    reader: BufReader<UnixStream>,
    /// Of the process at the other end.
    pid: u32,
}

impl Line {
    fn open(path: &Path) -> io::Result<Self> {
        let socket = UnixStream::connect(path)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        // The socket's name is the number of its process.
        let pid = path.file_stem().and_then(|name| name.to_str()?.parse().ok()).unwrap_or(0);
        Ok(Self { reader: BufReader::new(socket), pid })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn ask(&mut self, request: Request) -> io::Result<()> {
        send(self.reader.get_ref(), &request)
    }

    /// The next answer; `None` when the other process has ended.
    pub(crate) fn hear(&mut self, patience: Duration) -> io::Result<Option<Answer>> {
        self.reader.get_ref().set_read_timeout(Some(patience))?;
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Ok(_) => Ok(Some(serde_json::from_str(&line)?)),
            Err(error) => Err(error),
        }
    }
}

/// The reports of all live mounts of this user; for root, of all users.
pub(crate) fn reports() -> Vec<Report> {
    let mut found: Vec<Report> = sockets().iter().filter_map(|path| report(path)).collect();
    found.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
    found
}

/// A line to the process behind this mount.
pub(crate) fn line_to(mountpoint: &Path) -> Option<Line> {
    let is_it = |path: &PathBuf| report(path).is_some_and(|report| report.mountpoint == mountpoint);
    let path = sockets().into_iter().find(is_it)?;
    Line::open(&path).ok()
}

fn report(path: &Path) -> Option<Report> {
    let mut line = Line::open(path).ok()?;
    line.ask(Request::Status).ok()?;
    match line.hear(PATIENCE) {
        Ok(Some(Answer::Status(report))) => Some(*report),
        _ => None,
    }
}

fn sockets() -> Vec<PathBuf> {
    let mut directories: Vec<PathBuf> = runtime_dir().into_iter().collect();
    if system::user_id() == 0 {
        let below = |root: &str, name: fn(&Path) -> PathBuf| -> Vec<PathBuf> {
            let found = fs::read_dir(root).into_iter().flatten().flatten();
            found.map(|entry| name(&entry.path())).collect()
        };
        directories.extend(below("/run/user", |user| user.join("ftpfs")));
        directories.extend(below("/tmp", Path::to_owned).into_iter().filter(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ftpfs-"))
        }));
    }
    let entries = directories.iter().filter_map(|path| fs::read_dir(path).ok()).flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()))
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sock"))
        .collect()
}

/// A directory that only this user can enter, made if need be.
fn runtime_dir() -> io::Result<PathBuf> {
    let user = system::user_id();
    let path = match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
        Some(path) if path.is_absolute() => path.join("ftpfs"),
        _ if user == 0 => PathBuf::from("/run/ftpfs"),
        _ => PathBuf::from(format!("/tmp/ftpfs-{user}")),
    };
    DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
    let found = fs::symlink_metadata(&path)?;
    // In /tmp anybody may have made it before.
    if !found.is_dir() || found.uid() != user || found.mode() & 0o077 != 0 {
        let message = format!("{} must be a directory of mode 0700 and yours", path.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    Ok(path)
}
