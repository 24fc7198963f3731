//! A proxy for FTP that kills connections.
//!
//! Control connections are relayed line by line from the server: the port in a reply to EPSV or PASV
//! becomes one of the proxy, so that data connections pass through it too. Resets are passed on as
//! resets, and the end of one direction as just that.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use socket2::SockRef;

use super::random::Random;

/// How much is relayed at a time.
const BLOCK: usize = 32 * 1024;

/// Who waits for room to write looks this often whether the connection was killed.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Control,
    Data,
}

/// How a connection is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cut {
    Reset,
    Close,
}

pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: SocketAddr,
    /// Bytes per second through one data connection.
    rate: f64,
    links: Mutex<BTreeMap<u64, Arc<Link>>>,
    last: AtomicU64,
}

/// One connection of the client, and the one to the server that belongs to it.
struct Link {
    kind: Kind,
    client: TcpStream,
    server: TcpStream,
    ended: AtomicBool,
}

impl Proxy {
    pub(crate) fn start(upstream: SocketAddr, rate: f64) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let (links, last) = (Mutex::default(), AtomicU64::new(0));
        let shared = Arc::new(Shared { upstream, rate, links, last });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = Arc::clone(&accepting);
                std::thread::spawn(move || {
                    // Without a server the client sees its connection closed.
                    if let Ok(server) = TcpStream::connect(shared.upstream) {
                        relay(&shared, Kind::Control, client, server);
                    }
                });
            }
        });
        Ok(Self { address, shared })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Kills one connection, of either kind equally often where there are both.
    pub(crate) fn kill(&self, random: &mut Random, cut: Cut) -> Option<Kind> {
        let links = lock(&self.shared.links);
        let kind = if random.below(2) == 0 { Kind::Control } else { Kind::Data };
        let of_kind = |link: &&Arc<Link>| link.kind == kind;
        let pick = if links.values().any(|link| link.kind == kind) { Some(()) } else { None };
        let candidates: Vec<Arc<Link>> = match pick {
            Some(()) => links.values().filter(of_kind).cloned().collect(),
            None => links.values().cloned().collect(),
        };
        drop(links);
        let link = candidates.get(random.below(candidates.len()))?;
        link.end(cut).then_some(link.kind)
    }
}

impl Link {
    /// False if it had ended before. Nothing goes onto the wire yet: that happens when both
    /// threads, woken by this, have let go of the sockets.
    fn end(&self, cut: Cut) -> bool {
        if self.ended.swap(true, Ordering::SeqCst) {
            return false;
        }
        for socket in [&self.client, &self.server] {
            if cut == Cut::Reset {
                let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
            }
            // Wakes who reads, and tells the other side nothing.
            let _ = socket.shutdown(Shutdown::Read);
        }
        true
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Writes everything, unless the connection ends before.
    fn write(&self, mut to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.has_ended() {
                return Err(ErrorKind::ConnectionAborted.into());
            }
            match to.write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }

    /// One direction, to its end. `take` gets each block and passes it on.
    fn pump(
        &self,
        mut from: &TcpStream,
        to: &TcpStream,
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) {
        let mut block = vec![0; BLOCK];
        loop {
            let result = match from.read(&mut block) {
                _ if self.has_ended() => return,
                Ok(0) => {
                    let _ = to.shutdown(Shutdown::Write);
                    return;
                }
                Ok(count) => take(block.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
                Err(error) => Err(error),
            };
            if result.is_err() {
                self.end(Cut::Reset);
                return;
            }
        }
    }
}

fn relay(shared: &Arc<Shared>, kind: Kind, client: TcpStream, server: TcpStream) {
    for socket in [&client, &server] {
        let _ = socket.set_nodelay(true);
        let _ = socket.set_write_timeout(Some(LOOK));
    }
    let link = Arc::new(Link { kind, client, server, ended: AtomicBool::new(false) });
    let number = shared.last.fetch_add(1, Ordering::Relaxed);
    lock(&shared.links).insert(number, Arc::clone(&link));
    std::thread::scope(|scope| {
        let link = &*link;
        scope.spawn(move || {
            link.pump(&link.client, &link.server, |bytes| {
                shared.brake(kind, bytes);
                link.write(&link.server, bytes)
            });
        });
        let mut replies = Replies { shared, line: Vec::new(), pending: None };
        link.pump(&link.server, &link.client, |bytes| {
            shared.brake(kind, bytes);
            match kind {
                Kind::Data => link.write(&link.client, bytes),
                Kind::Control => link.write(&link.client, &replies.rewrite(bytes)?),
            }
        });
    });
    lock(&shared.links).remove(&number);
}

impl Shared {
    /// A transfer takes a while, so that it is there to be killed.
    fn brake(&self, kind: Kind, bytes: &[u8]) {
        if kind == Kind::Data {
            std::thread::sleep(Duration::from_secs_f64(bytes.len() as f64 / self.rate));
        }
    }
}

/// The server's side of one control connection.
struct Replies<'a> {
    shared: &'a Arc<Shared>,
    /// What came after the last whole line.
    line: Vec<u8>,
    pending: Option<Pending>,
}

impl Replies<'_> {
    /// Whole lines, with our port in place of the server's.
    fn rewrite(&mut self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut whole = Vec::new();
        for byte in bytes {
            self.line.push(*byte);
            if *byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                whole.extend(self.rewrite_line(line)?);
            }
        }
        Ok(whole)
    }

    fn rewrite_line(&mut self, line: Vec<u8>) -> io::Result<Vec<u8>> {
        let text = String::from_utf8_lossy(&line).into_owned();
        let Some(port) = data_port(&text) else { return Ok(line) };
        let pending = Pending::listen(self.shared, port)?;
        let ours = pending.address.port();
        self.pending = Some(pending);
        let reply = if text.starts_with("229") {
            format!("229 Entering Extended Passive Mode (|||{ours}|)\r\n")
        } else {
            format!("227 Entering Passive Mode (127,0,0,1,{},{}).\r\n", ours >> 8, ours & 255)
        };
        Ok(reply.into_bytes())
    }
}

/// The port in `229 … (|||port|)` or `227 … (h,h,h,h,p,p)`.
fn data_port(reply: &str) -> Option<u16> {
    let inside = reply.split_once('(')?.1.split_once(')')?.0;
    if reply.starts_with("229 ") {
        return inside.strip_prefix("|||")?.strip_suffix('|')?.parse().ok();
    }
    if !reply.starts_with("227 ") {
        return None;
    }
    let numbers: Vec<u16> = inside.split(',').map_while(|part| part.trim().parse().ok()).collect();
    match numbers.as_slice() {
        [_, _, _, _, high, low] => Some(high * 256 + low),
        _ => None,
    }
}

/// A port at which one data connection is awaited; no longer when this is dropped.
struct Pending {
    address: SocketAddr,
    state: Arc<Waiting>,
}

#[derive(Default)]
struct Waiting {
    taken: AtomicBool,
    cancelled: AtomicBool,
}

impl Pending {
    fn listen(shared: &Arc<Shared>, port: u16) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let state = Arc::new(Waiting::default());
        let (shared, waiting) = (Arc::clone(shared), Arc::clone(&state));
        std::thread::spawn(move || {
            let Ok((client, _)) = listener.accept() else { return };
            waiting.taken.store(true, Ordering::SeqCst);
            drop(listener);
            if waiting.cancelled.load(Ordering::SeqCst) {
                return;
            }
            if let Ok(server) = TcpStream::connect((shared.upstream.ip(), port)) {
                relay(&shared, Kind::Data, client, server);
            }
        });
        Ok(Self { address, state })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.state.cancelled.store(true, Ordering::SeqCst);
        if !self.state.taken.load(Ordering::SeqCst) {
            // Wakes who accepts.
            let _ = TcpStream::connect(self.address);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
