//! Ways to the server: addresses, proxies, data connections in both directions. Every wait has the
//! time-out.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::ops::RangeInclusive;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};

use super::error::Error;
use super::proxy::Proxy;

/// The head start of one address before the next is tried beside it (RFC 8305 §5).
const HEAD_START: Duration = Duration::from_millis(250);

/// How long the very first data connection of a kind may take: an EPSV that a firewall does not
/// understand is accepted and then leads nowhere. Long for a round trip, short for a person.
const FIRST_DATA: Duration = Duration::from_secs(8);

/// What the user says of the network.
#[derive(Clone, Debug, Default)]
pub struct NetworkSettings {
    /// The local address of all connections.
    pub bind: Option<IpAddr>,
    pub proxy: Option<Proxy>,
    /// The server connects to us for data (PORT, EPRT).
    pub active: Option<Active>,
    /// Believe the address in PASV's reply, not only its port.
    pub passive_host: bool,
}

/// How the server reaches us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Active {
    /// Told to the server instead of the address of the control connection: that of a router.
    pub address: Option<IpAddr>,
    /// Ports that a firewall lets in; any free one without.
    pub ports: Option<RangeInclusive<u16>>,
}

/// Opens connections for one target.
#[derive(Debug)]
pub(crate) struct Network {
    settings: NetworkSettings,
    host: String,
    port: u16,
    timeout: Duration,
}

impl Network {
    pub(crate) fn new(
        settings: NetworkSettings,
        host: String,
        port: u16,
        timeout: Duration,
    ) -> Self {
        Self { settings, host, port, timeout }
    }

    pub(crate) fn active(&self) -> Option<&Active> {
        self.settings.active.as_ref()
    }

    pub(crate) fn has_proxy(&self) -> bool {
        self.settings.proxy.is_some()
    }

    pub(crate) fn believes_passive_host(&self) -> bool {
        self.settings.passive_host
    }

    /// A control connection; `first` is the address that worked last.
    pub(crate) fn dial_control(&self, first: Option<SocketAddr>) -> Result<TcpStream, Error> {
        let (host, port) = match &self.settings.proxy {
            Some(proxy) => (proxy.host(), proxy.port()),
            None => (self.host.as_str(), self.port),
        };
        let mut addresses = resolve(host, port, self.timeout)?;
        // The one that worked last first, so that a name with several stays on one server (mirrors
        // differ); then the families in turns (RFC 8305 §4).
        addresses = interleave(addresses, first);
        let mut stream = self.race(addresses).map_err(|(address, cause)| Error::Connect {
            address: address
                .map_or_else(|| format!("{host}:{port}"), |address| address.to_string()),
            cause,
        })?;
        if let Some(proxy) = &self.settings.proxy {
            proxy.ask(&mut stream, &self.host, self.port).map_err(|cause| Error::Connect {
                address: format!("{}:{} through {proxy}", self.host, self.port),
                cause,
            })?;
        }
        Ok(stream)
    }

    /// Tries one after the other, each with a head start; the first that connects is taken.
    fn race(
        &self,
        addresses: Vec<SocketAddr>,
    ) -> Result<TcpStream, (Option<SocketAddr>, io::Error)> {
        let deadline = Instant::now() + self.timeout;
        let (tell, told) = mpsc::channel();
        let mut last = (None, io::Error::from(io::ErrorKind::TimedOut));
        let mut under_way = 0_usize;
        let mut rest = addresses.into_iter().peekable();
        loop {
            if let Some(address) = rest.next() {
                let (tell, bind, timeout) = (tell.clone(), self.settings.bind, self.timeout);
                let attempt = move || {
                    // Nobody listens any more once another address has won.
                    let _ = tell.send((address, dial(address, bind, Some(timeout), timeout)));
                };
                match std::thread::Builder::new().name("dial".into()).spawn(attempt) {
                    Ok(_) => under_way += 1,
                    Err(error) => last = (Some(address), error),
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || (under_way == 0 && rest.peek().is_none()) {
                return Err(last);
            }
            let wait = if rest.peek().is_some() { HEAD_START.min(left) } else { left };
            match told.recv_timeout(wait) {
                Ok((_, Ok(stream))) => return Ok(stream),
                Ok((address, Err(error))) => {
                    under_way -= 1;
                    last = (Some(address), error);
                }
                Err(_) => {}
            }
        }
    }

    /// A data connection to `address`. It is not waited for, so that REST and RETR travel
    /// together with its handshake: one round trip less; reads and writes wait for it by
    /// themselves. `is_first`: nobody knows yet whether this way leads anywhere, so it is waited for.
    pub(crate) fn dial_data(&self, address: SocketAddr, is_first: bool) -> io::Result<TcpStream> {
        if let Some(proxy) = &self.settings.proxy {
            // The control connection's peer is the proxy; the server is where the proxy leads.
            let places =
                resolve(proxy.host(), proxy.port(), self.timeout).map_err(io::Error::other)?;
            let mut stream = self.race(places).map_err(|(_, error)| error)?;
            let host = match self.settings.passive_host {
                true => address.ip().to_string(),
                false => self.host.clone(),
            };
            proxy.ask(&mut stream, &host, address.port())?;
            return Ok(stream);
        }
        let wait = is_first.then(|| self.timeout.min(FIRST_DATA));
        dial(address, self.settings.bind, wait, self.timeout)
    }

    /// Where the server is to connect to, reachable as `local`, our end of the control connection.
    pub(crate) fn listen(
        &self,
        local: IpAddr,
        active: &Active,
    ) -> io::Result<(TcpListener, SocketAddr)> {
        let ports = active.ports.clone().unwrap_or(0..=0);
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for port in ports {
            match TcpListener::bind((local, port)) {
                Ok(listener) => {
                    // accept(2) obeys this too.
                    SockRef::from(&listener).set_read_timeout(Some(self.timeout))?;
                    let port = listener.local_addr()?.port();
                    return Ok((listener, SocketAddr::new(active.address.unwrap_or(local), port)));
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The server's data connection; whoever else comes is sent away.
    pub(crate) fn accept(&self, listener: &TcpListener, server: IpAddr) -> io::Result<TcpStream> {
        let deadline = Instant::now() + self.timeout;
        while Instant::now() < deadline {
            let (stream, peer) = listener.accept()?;
            if peer.ip().to_canonical() == server.to_canonical() {
                prepare(&stream, self.timeout)?;
                return Ok(stream);
            }
            log::warn!("{peer} is not the server and is not let in");
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}

/// Connects, waiting no longer than `wait`, or not at all.
fn dial(
    address: SocketAddr,
    bind: Option<IpAddr>,
    wait: Option<Duration>,
    timeout: Duration,
) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(local) = bind {
        socket.bind(&SockAddr::from(SocketAddr::new(local, 0)))?;
    }
    match wait {
        Some(wait) => socket.connect_timeout(&address.into(), wait)?,
        None => {
            socket.set_nonblocking(true)?;
            match socket.connect(&address.into()) {
                Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
                _ => socket.set_nonblocking(false)?,
            }
        }
    }
    let stream = TcpStream::from(socket);
    prepare(&stream, timeout)?;
    Ok(stream)
}

/// Waits for the handshake of a data connection that was not waited for, with the deadline of all
/// writes: a write of nothing does.
pub(crate) fn await_handshake(mut socket: &TcpStream) -> io::Result<()> {
    socket.write(&[]).map(drop)
}

/// Deadlines on every read and write; no Nagle (with it ProFTPD's answers take 34-48 ms on
/// loopback instead of 3-5); keep-alive, so that a NAT does not forget a control connection
/// during a long transfer and a vanished peer is noticed.
fn prepare(stream: &TcpStream, timeout: Duration) -> io::Result<()> {
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.set_nodelay(true)?;
    // 60 s is below the 5 minutes after which home routers commonly forget a connection.
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15))
        .with_retries(4);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Asks the system's resolver, on a thread of its own, as getaddrinfo knows no deadline.
fn resolve(host: &str, port: u16, timeout: Duration) -> Result<Vec<SocketAddr>, Error> {
    let failed = |cause| Error::Resolve { host: host.to_owned(), cause };
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let (send, receive) = mpsc::channel();
    let name = host.to_owned();
    let ask = move || {
        // Nobody listens any more when the deadline has passed: nothing to do then.
        let _ = send.send((name.as_str(), port).to_socket_addrs().map(Iterator::collect));
    };
    std::thread::Builder::new().name("resolve".into()).spawn(ask).map_err(failed)?;
    let found: io::Result<Vec<SocketAddr>> =
        receive.recv_timeout(timeout).unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let found = found.map_err(failed)?;
    if found.is_empty() {
        return Err(failed(io::Error::new(io::ErrorKind::NotFound, "it has no address")));
    }
    Ok(found)
}

fn interleave(addresses: Vec<SocketAddr>, first: Option<SocketAddr>) -> Vec<SocketAddr> {
    let known = first.filter(|first| addresses.contains(first));
    let (six, four): (Vec<_>, Vec<_>) = addresses
        .into_iter()
        .filter(|address| Some(*address) != known)
        .partition(SocketAddr::is_ipv6);
    let mut all: Vec<SocketAddr> = known.into_iter().collect();
    let (mut six, mut four) = (six.into_iter(), four.into_iter());
    loop {
        let pair = (six.next(), four.next());
        if pair == (None, None) {
            return all;
        }
        all.extend(pair.0);
        all.extend(pair.1);
    }
}

/// The port in `229 Entering Extended Passive Mode (|||6446|)` (RFC 2428 §3).
pub(crate) fn parse_epsv(text: &[u8]) -> Option<u16> {
    let start = text.iter().position(|byte| *byte == b'(')? + 1;
    let inner = text.get(start..)?;
    let delimiter = *inner.first()?;
    let port = inner.split(|byte| *byte == delimiter).nth(3)?;
    std::str::from_utf8(port).ok()?.parse().ok().filter(|port| *port != 0)
}

/// The address in `227 Entering Passive Mode (h1,h2,h3,h4,p1,p2)` (RFC 959 §4.2); some servers
/// leave the brackets out.
pub(crate) fn parse_pasv(text: &[u8]) -> Option<(Ipv4Addr, u16)> {
    let start = text.iter().skip(3).position(u8::is_ascii_digit)? + 3;
    let rest = text.get(start..)?;
    let end = rest.iter().position(|byte| !byte.is_ascii_digit() && *byte != b',');
    let list = std::str::from_utf8(rest.get(..end.unwrap_or(rest.len()))?).ok()?;
    let numbers: Vec<u8> = list.split(',').map(str::parse).collect::<Result<_, _>>().ok()?;
    let [a, b, c, d, high, low] = numbers.try_into().ok()?;
    let port = u16::from_be_bytes([high, low]);
    (port != 0).then(|| (Ipv4Addr::new(a, b, c, d), port))
}

/// `PORT` (RFC 959 §4.1.2) or `EPRT` (RFC 2428 §2) for an address of ours.
pub(crate) fn active_command(address: SocketAddr) -> String {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            let [high, low] = address.port().to_be_bytes();
            format!("PORT {a},{b},{c},{d},{high},{low}")
        }
        IpAddr::V6(ip) => format!("EPRT |2|{ip}|{}|", address.port()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passive_replies() {
        assert_eq!(parse_epsv(b"229 Entering Extended Passive Mode (|||6446|)\r\n"), Some(6446));
        assert_eq!(parse_epsv(b"229 ok (!!!70000!)"), None);
        assert_eq!(parse_epsv(b"229 ok (|||0|)"), None);
        assert_eq!(parse_epsv(b"229 nothing"), None);
        let address = Ipv4Addr::new(10, 0, 0, 1);
        assert_eq!(
            parse_pasv(b"227 Entering Passive Mode (10,0,0,1,4,1).\r\n"),
            Some((address, 1025))
        );
        assert_eq!(parse_pasv(b"227 =10,0,0,1,4,1"), Some((address, 1025)));
        for bad in ["227", "227 (1,2,3)", "227 (1,2,3,4,5,256)", "227 (1,2,3,4,0,0)", ""] {
            assert_eq!(parse_pasv(bad.as_bytes()), None);
        }
    }

    #[test]
    fn active_commands() {
        let v4 = SocketAddr::from((Ipv4Addr::new(10, 0, 0, 1), 1025));
        assert_eq!(active_command(v4), "PORT 10,0,0,1,4,1");
        assert_eq!(active_command("[::1]:1025".parse().unwrap()), "EPRT |2|::1|1025|");
        assert_eq!(active_command("[::ffff:10.0.0.1]:1025".parse().unwrap()), "PORT 10,0,0,1,4,1");
    }

    #[test]
    fn families_take_turns_after_the_one_that_worked() {
        let all =
            |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let given = all(&["1.1.1.1:1", "2.2.2.2:1", "[::1]:1", "[::2]:1"]);
        assert_eq!(
            interleave(given.clone(), Some("2.2.2.2:1".parse().unwrap())),
            all(&["2.2.2.2:1", "[::1]:1", "1.1.1.1:1", "[::2]:1"])
        );
        assert_eq!(interleave(given, None)[0], "[::1]:1".parse().unwrap());
    }

    #[test]
    fn the_first_address_that_answers_wins() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let good = listener.local_addr().unwrap();
        let closed = {
            let gone = TcpListener::bind("127.0.0.1:0").unwrap();
            gone.local_addr().unwrap()
        };
        let network =
            Network::new(NetworkSettings::default(), "x".into(), 21, Duration::from_secs(5));
        let stream = network.race(vec![closed, good]).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
        let (address, error) = network.race(vec![closed]).unwrap_err();
        assert_eq!((address, error.kind()), (Some(closed), io::ErrorKind::ConnectionRefused));
    }
}
