//! Data connections: how they come about, and how bytes, faults and aborts
//! meet on them. Never looks at names.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::faults::What;
use super::hub::{Ending, Gone, Hub, Line, State, hang_up};
use super::ports;

/// Where the next data connection comes from.
#[derive(Default)]
pub enum Way {
    #[default]
    Unset,
    Passive(Arc<Socket>),
    Active(SocketAddr),
}

/// An open data connection and what is to go wrong on it.
pub struct Data {
    hub: Arc<Hub>,
    session: u64,
    socket: Arc<TcpStream>,
    cut: Option<Cut>,
    moved: u64,
    ascii: bool,
    /// The last byte that came was a CR, in ASCII type.
    pending_cr: bool,
}

/// What happens at a byte of the transfer.
#[derive(Clone, Debug)]
pub struct Cut {
    pub after: u64,
    pub then: Then,
}

#[derive(Clone, Debug)]
pub enum Then {
    Reply(u16, &'static str),
    Silence,
    Close,
    Reset,
    DrainLate(u64),
    Stall,
}

/// How a transfer went.
pub enum Finish {
    Complete,
    /// The client closed or broke the data connection, or sent ABOR.
    Broken,
    Cut(Then),
}

/// How long a data connection is waited for: shorter than any test's patience.
const ACCEPT: Duration = Duration::from_secs(10);
/// How long a client may take from the handshake to its end, on loopback.
const EARLY: Duration = Duration::from_millis(30);
/// One block of a transfer: large enough for GiB/s, small enough that a cut
/// upload is not much further in memory than on the wire.
const BLOCK: usize = 64 * 1024;

impl Cut {
    /// What `what` means for a transfer; nothing for other faults.
    pub fn of(what: &What) -> Option<Cut> {
        let (after, then) = match *what {
            What::CutData(after) => {
                (after, Then::Reply(426, "Connection closed; transfer aborted."))
            }
            What::CutDataReply(after, code, text) => (after, Then::Reply(code, text)),
            What::CutDataSilence(after) => (after, Then::Silence),
            What::CutControlAfter(after) => (after, Then::Close),
            What::ResetAfter(after) => (after, Then::Reset),
            What::DrainsLate(after, late) => (after, Then::DrainLate(late)),
            What::StallData(after) => (after, Then::Stall),
            _ => return None,
        };
        Some(Cut { after, then })
    }
}

impl Way {
    /// A listening socket on `local`, known to the hub so that it can be woken.
    pub fn passive(hub: &Hub, session: u64, local: IpAddr) -> io::Result<(Way, u16)> {
        // Two: a stranger's connection must not keep the client's out.
        let (socket, port) = ports::listen(local, 0, 2)?;
        socket.set_read_timeout(Some(ACCEPT))?;
        let socket = Arc::new(socket);
        hub.change(|state| {
            if let Some(line) = state.lines.get_mut(&session) {
                line.passive = Arc::downgrade(&socket);
            }
        });
        Ok((Way::Passive(socket), port))
    }

    /// The connection itself; nothing when nobody came, or a stranger did.
    fn open(self, peer: IpAddr) -> Option<TcpStream> {
        match self {
            Way::Unset => None,
            Way::Active(address) => TcpStream::connect_timeout(&address, ACCEPT).ok(),
            Way::Passive(listener) => loop {
                let (socket, address) = listener.accept().ok()?;
                if address.as_socket().is_some_and(|address| address.ip() == peer) {
                    return Some(socket.into());
                }
            },
        }
    }
}

impl Data {
    /// Opens the data connection of `session`. `Ok(None)` asks for a 425.
    pub fn open(
        hub: &Arc<Hub>,
        session: u64,
        way: Way,
        peer: IpAddr,
        cut: Option<Cut>,
        ascii: bool,
    ) -> Result<Option<Data>, Gone> {
        let Some(stream) = way.open(peer) else {
            return match hub.look(|state| is_over(state, session)) {
                true => Err(Gone),
                false => Ok(None),
            };
        };
        let _ = stream.set_nodelay(true);
        if let Some(bytes) = hub.look(|state| state.send_buffer) {
            let _ = socket2::SockRef::from(&stream).set_send_buffer_size(bytes);
        }
        let socket = Arc::new(stream);
        hub.change(|state| {
            let over = is_over(state, session);
            let line = state.lines.get_mut(&session).ok_or(Gone)?;
            line.data = Arc::downgrade(&socket);
            // What is sent now is decided.
            line.inside = false;
            // An ABOR that came before the socket was known finds it now.
            if line.aborted {
                hang_up(&socket, Ending::Close, false);
            }
            if over { Err(Gone) } else { Ok(()) }
        })?;
        let hub = hub.clone();
        Ok(Some(Data { hub, session, socket, cut, moved: 0, ascii, pending_cr: false }))
    }

    /// Sends what `source` reads from `offset` on, to its end.
    pub fn send(
        &mut self,
        mut offset: u64,
        mut source: impl FnMut(u64, &mut [u8]) -> io::Result<usize>,
    ) -> Result<Finish, Gone> {
        let mut block = vec![0; BLOCK];
        let begun = Instant::now();
        loop {
            self.gate()?;
            let rate = self.hub.look(|state| state.rate);
            if let Some(micros) = (self.moved * 1_000_000).checked_div(rate) {
                wait_for(&self.hub, self.session, begun + Duration::from_micros(micros))?;
            }
            let length = match source(offset, &mut block) {
                Ok(0) => break,
                Ok(length) => length,
                Err(_) => return Ok(Finish::Broken),
            };
            offset += length as u64;
            let finish = if self.ascii {
                self.send_block(&lines_out(&block[..length]))?
            } else {
                self.send_block(&block[..length])?
            };
            if let Some(finish) = finish {
                return Ok(finish);
            }
        }
        // A cut that lies exactly at the end still happens.
        match self.send_block(&[])? {
            Some(finish) => Ok(finish),
            None => Ok(Finish::Complete),
        }
    }

    /// Hands all that comes to `sink` as it comes, up to the client's end.
    pub fn receive(
        &mut self,
        mut sink: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<Finish, Gone> {
        let mut block = vec![0; BLOCK];
        loop {
            self.gate()?;
            let most = match &self.cut {
                Some(cut) => usize::try_from(cut.after - self.moved).unwrap_or(usize::MAX),
                None => usize::MAX,
            };
            if most == 0 {
                if let Some(then) = self.strike()? {
                    return Ok(Finish::Cut(then));
                }
                continue;
            }
            let read = (&*self.socket).read(&mut block[..most.min(BLOCK)]);
            let length = match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return self.broken(),
                Ok(0) if self.aborted() => return self.broken(),
                Ok(0) => break,
                Ok(length) => length,
            };
            self.moved += length as u64;
            let stored = if self.ascii {
                let bytes = self.lines_in(&block[..length]);
                sink(&bytes)
            } else {
                sink(&block[..length])
            };
            self.hub.touch();
            if stored.is_err() {
                return Ok(Finish::Cut(Then::Reply(552, "Storage refused the data.")));
            }
        }
        if self.pending_cr && sink(b"\r").is_err() {
            return Ok(Finish::Broken);
        }
        Ok(Finish::Complete)
    }

    /// What the client sent beyond a cut, so many bytes.
    pub fn beyond(&self, length: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        match (&*self.socket).read_exact(&mut bytes) {
            Ok(()) => bytes,
            Err(_) => Vec::new(),
        }
    }

    /// Has the client closed its end before anything was sent? It gets a moment to do so.
    pub fn ended_early(&self) -> bool {
        let _ = self.socket.set_read_timeout(Some(EARLY));
        let ended = matches!(self.socket.peek(&mut [0]), Ok(0));
        let _ = self.socket.set_read_timeout(None);
        ended
    }

    /// Says that this was all, and waits for the client to close.
    pub fn linger(&self) {
        let _ = self.socket.shutdown(Shutdown::Write);
        // That of the listening socket is its too.
        let _ = self.socket.set_read_timeout(None);
        while matches!((&*self.socket).read(&mut [0; 512]), Ok(1..)) {}
    }

    /// Closes the data connection as `finish` asks.
    pub fn close(self, finish: &Finish) {
        let ending = match finish {
            Finish::Cut(Then::Reset | Then::DrainLate(_)) => Ending::Reset,
            _ => Ending::Close,
        };
        hang_up(&self.socket, ending, false);
        let hub = self.hub.clone();
        drop(self);
        hub.touch();
    }

    /// Sends one block, up to where it is to be cut.
    fn send_block(&mut self, bytes: &[u8]) -> Result<Option<Finish>, Gone> {
        let mut rest = bytes;
        loop {
            let most = match &self.cut {
                Some(cut) => usize::try_from(cut.after - self.moved).unwrap_or(usize::MAX),
                None => usize::MAX,
            };
            let (now, later) = rest.split_at(most.min(rest.len()));
            if !now.is_empty() && (&*self.socket).write_all(now).is_err() {
                return self.broken().map(Some);
            }
            self.moved += now.len() as u64;
            self.hub.change(|state| state.sent += now.len() as u64);
            rest = later;
            if most == now.len()
                && let Some(then) = self.strike()?
            {
                return Ok(Some(Finish::Cut(then)));
            }
            if rest.is_empty() {
                return Ok(None);
            }
        }
    }

    /// The byte of the cut is reached. A stall goes on here when released.
    fn strike(&mut self) -> Result<Option<Then>, Gone> {
        match self.cut.take() {
            None => Ok(None),
            Some(Cut { then: Then::Stall, .. }) => {
                wait_released(&self.hub, self.session)?;
                Ok(None)
            }
            Some(cut) => Ok(Some(cut.then)),
        }
    }

    /// Waits while the server is frozen.
    fn gate(&self) -> Result<(), Gone> {
        pass(&self.hub, self.session)
    }

    fn aborted(&self) -> bool {
        self.hub.look(|state| state.lines.get(&self.session).is_some_and(|line| line.aborted))
    }

    fn broken(&self) -> Result<Finish, Gone> {
        pass(&self.hub, self.session)?;
        Ok(Finish::Broken)
    }

    /// ASCII type, RFC 959 section 3.1.1.1: CRLF on the wire is LF here.
    fn lines_in(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut converted = Vec::with_capacity(bytes.len() + 1);
        for byte in bytes {
            if self.pending_cr && *byte != b'\n' {
                converted.push(b'\r');
            }
            self.pending_cr = *byte == b'\r';
            if !self.pending_cr {
                converted.push(*byte);
            }
        }
        converted
    }
}

/// LF here is CRLF on the wire.
fn lines_out(bytes: &[u8]) -> Vec<u8> {
    let mut converted = Vec::with_capacity(bytes.len() * 2);
    for byte in bytes {
        if *byte == b'\n' {
            converted.push(b'\r');
        }
        converted.push(*byte);
    }
    converted
}

/// Has the server ended this session?
pub fn is_over(state: &State, session: u64) -> bool {
    state.stopping || state.lines.get(&session).is_none_or(|line| line.ended.is_some())
}

/// Waits while the server is frozen; fails when the session is over.
pub fn pass(hub: &Hub, session: u64) -> Result<(), Gone> {
    let ready = |state: &mut State| match is_over(state, session) {
        true => Some(Err(Gone)),
        false => (!state.frozen).then_some(Ok(())),
    };
    hub.wait(None, ready).unwrap_or(Err(Gone))
}

/// Does nothing until the test releases it, the client aborts, or either side
/// ends the session.
pub fn wait_released(hub: &Hub, session: u64) -> Result<(), Gone> {
    stuck(hub, session, None, |line| line.hung_up)
}

/// Lets time pass; ends early when released, fails when the session is over.
pub fn wait_for(hub: &Hub, session: u64, until: Instant) -> Result<(), Gone> {
    stuck(hub, session, Some(until), |_| false)
}

/// Being stuck is shown while it lasts, so that a test can release what it
/// knows to be stuck: a release is for those that are stuck at that moment.
fn stuck(
    hub: &Hub,
    session: u64,
    until: Option<Instant>,
    left: fn(&Line) -> bool,
) -> Result<(), Gone> {
    let before = hub.change(|state| {
        if let Some(line) = state.lines.get_mut(&session) {
            line.stuck = true;
        }
        state.releases
    });
    let ready = |state: &mut State| {
        let line = state.lines.get(&session);
        if is_over(state, session) || line.is_none_or(left) {
            return Some(Err(Gone));
        }
        let aborted = until.is_none() && line.is_some_and(|line| line.aborted);
        (state.releases != before || aborted).then_some(Ok(()))
    };
    let result = hub.wait(until, ready).unwrap_or(Ok(()));
    hub.change(|state| {
        if let Some(line) = state.lines.get_mut(&session) {
            line.stuck = false;
        }
    });
    result
}

/// The address in PORT and EPRT; nothing when it is malformed.
pub fn parse_port(argument: &str) -> Option<SocketAddr> {
    let numbers: Vec<u8> =
        argument.split(',').map(|part| part.trim().parse().ok()).collect::<Option<_>>()?;
    let [a, b, c, d, high, low] = numbers.as_slice() else { return None };
    let port = u16::from(*high) * 256 + u16::from(*low);
    Some((Ipv4Addr::new(*a, *b, *c, *d), port).into())
}

/// RFC 2428 section 2: `|1|132.235.1.2|6275|`.
pub fn parse_eprt(argument: &str) -> Option<SocketAddr> {
    let delimiter = argument.chars().next()?;
    let parts: Vec<&str> = argument.split(delimiter).collect();
    let [_, _, address, port, _] = parts.as_slice() else { return None };
    Some(SocketAddr::new(address.parse().ok()?, port.parse().ok()?))
}
