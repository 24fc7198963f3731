//! Through a proxy: SOCKS5 (RFC 1928, RFC 1929) and HTTP CONNECT (RFC 9110 §9.3.6).
//!
//! Written here and not taken from a crate: those for blocking sockets connect by themselves,
//! without the deadlines and the local address that every other connection has.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpStream};

use data_encoding::BASE64;
use percent_encoding::percent_decode_str;

use super::secret::Secret;

/// More than any proxy says before the empty line.
const HTTP_HEADER: usize = 16 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Socks5,
    Http,
}

/// Where the proxy is and who we are there.
#[derive(Clone, Debug)]
pub struct Proxy {
    kind: Kind,
    host: String,
    port: u16,
    login: Option<(String, Secret)>,
}

impl Proxy {
    /// `socks5://[user:password@]host[:port]` or `http://…`; the ports are 1080 and 8080 if none
    /// is named.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("", ""));
        let (kind, usual) = match scheme {
            "socks5" | "socks5h" => (Kind::Socks5, 1080),
            "http" => (Kind::Http, 8080),
            _ => return Err("must be socks5://host:port or http://host:port".into()),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (login, place) = match rest.rsplit_once('@') {
            Some((login, place)) => (Some(login), place),
            None => (None, rest),
        };
        let (host, port) = match place.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
            Some((host, port)) => (host, port.strip_prefix(':').unwrap_or(port)),
            None => place.split_once(':').unwrap_or((place, "")),
        };
        let port = if port.is_empty() { Some(usual) } else { port.parse().ok() };
        let port = port.filter(|port| *port != 0).ok_or("its port must be from 1 to 65535")?;
        if host.is_empty() {
            return Err("names no host".into());
        }
        let login = login.map(|login| {
            let (user, password) = login.split_once(':').unwrap_or((login, ""));
            let user = percent_decode_str(user).decode_utf8_lossy().into_owned();
            (user, Secret::new(percent_decode_str(password).collect()))
        });
        Ok(Self { kind, host: host.to_owned(), port, login })
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Asks for a tunnel to `host`, over a stream that is connected to the proxy. Reads not one
    /// byte more than the proxy's answer: the server may speak at once.
    pub(crate) fn ask(&self, stream: &mut TcpStream, host: &str, port: u16) -> io::Result<()> {
        match self.kind {
            Kind::Socks5 => self.ask_socks(stream, host, port),
            Kind::Http => self.ask_http(stream, host, port),
        }
    }

    fn ask_socks(&self, stream: &mut TcpStream, host: &str, port: u16) -> io::Result<()> {
        const NO_LOGIN: u8 = 0;
        const PASSWORD: u8 = 2;
        match self.login {
            Some(_) => stream.write_all(&[5, 2, NO_LOGIN, PASSWORD])?,
            None => stream.write_all(&[5, 1, NO_LOGIN])?,
        }
        let [version, chosen] = read_array(stream)?;
        if version != 5 {
            return Err(refused("it is no SOCKS5 proxy"));
        }
        match (chosen, &self.login) {
            (NO_LOGIN, _) | (PASSWORD, Some(_)) => {}
            (_, Some(_)) => return Err(refused("it takes no login by password")),
            (_, None) => {
                return Err(refused("it wants a login: socks5://user:password@host"));
            }
        }
        if let (PASSWORD, Some((user, password))) = (chosen, &self.login) {
            let mut request = vec![1];
            push_counted(&mut request, user.as_bytes())?;
            push_counted(&mut request, password.expose())?;
            stream.write_all(&request)?;
            let [_, status] = read_array(stream)?;
            if status != 0 {
                return Err(refused("it does not accept user and password"));
            }
        }
        let mut request = vec![5, 1, 0];
        match host.parse() {
            Ok(IpAddr::V4(address)) => {
                request.push(1);
                request.extend(address.octets());
            }
            Ok(IpAddr::V6(address)) => {
                request.push(4);
                request.extend(address.octets());
            }
            Err(_) => {
                request.push(3);
                push_counted(&mut request, host.as_bytes())?;
            }
        }
        request.extend(port.to_be_bytes());
        stream.write_all(&request)?;
        let [version, status, _, kind] = read_array(stream)?;
        if version != 5 {
            return Err(refused("its answer makes no sense"));
        }
        if status != 0 {
            return Err(refused(socks_status(status)));
        }
        // The address from which the proxy connects; its length depends on its kind.
        let length = match kind {
            1 => 4,
            4 => 16,
            3 => usize::from(read_array::<1>(stream)?[0]),
            _ => return Err(refused("its answer makes no sense")),
        };
        // And two bytes of port.
        stream.read_exact(&mut vec![0; length + 2])
    }

    fn ask_http(&self, stream: &mut TcpStream, host: &str, port: u16) -> io::Result<()> {
        let place = match host.parse() {
            Ok(IpAddr::V6(address)) => format!("[{address}]:{port}"),
            _ => format!("{host}:{port}"),
        };
        let mut request = format!("CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n").into_bytes();
        if let Some((user, password)) = &self.login {
            let mut pair = user.clone().into_bytes();
            pair.push(b':');
            pair.extend(password.expose());
            let line = format!("Proxy-Authorization: Basic {}\r\n", BASE64.encode(&pair));
            request.extend(line.into_bytes());
        }
        request.extend(b"\r\n");
        stream.write_all(&request)?;
        let mut header = Vec::new();
        while !header.ends_with(b"\r\n\r\n") {
            if header.len() >= HTTP_HEADER {
                return Err(refused("its answer has no end"));
            }
            header.extend(read_array::<1>(stream)?);
        }
        let text = String::from_utf8_lossy(&header);
        let line = text.lines().next().unwrap_or_default();
        let code = line.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1));
        match code {
            Some(code) if code.len() == 3 && code.starts_with('2') => Ok(()),
            Some("407") if self.login.is_some() => {
                Err(refused("it does not accept user and password"))
            }
            Some("407") => Err(refused("it wants a login: http://user:password@host")),
            _ => Err(refused(
                &line.chars().filter(|c| !c.is_control()).take(100).collect::<String>(),
            )),
        }
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.kind == Kind::Http { "http" } else { "socks5" };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

/// RFC 1928 §6.
fn socks_status(status: u8) -> &'static str {
    match status {
        2 => "its rules do not allow this connection",
        3 => "it cannot reach the network",
        4 => "it cannot reach the host",
        5 => "the server refuses its connection",
        6 => "the way to the server is too long (TTL)",
        7 => "it does not tunnel",
        8 => "it does not know this kind of address",
        _ => "it failed",
    }
}

fn refused(why: &str) -> io::Error {
    io::Error::other(format!("the proxy refuses: {why}"))
}

fn push_counted(request: &mut Vec<u8>, bytes: &[u8]) -> io::Result<()> {
    let count = u8::try_from(bytes.len());
    request.push(count.map_err(|_| refused("a name or password is longer than 255 bytes"))?);
    request.extend(bytes);
    Ok(())
}

fn read_array<const N: usize>(stream: &mut TcpStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::time::Duration;

    /// A proxy that answers each request with the next of `answers`, in pieces of one byte.
    fn asked(
        proxy: &str,
        host: &str,
        answers: &'static [&'static [u8]],
    ) -> (io::Result<()>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let scripted = std::thread::spawn(move || {
            let (mut peer, _) = listener.accept().unwrap();
            peer.set_nodelay(true).unwrap();
            let mut heard = Vec::new();
            for answer in answers {
                let mut block = [0; 1000];
                let count = peer.read(&mut block).unwrap();
                heard.extend_from_slice(&block[..count]);
                answer.iter().for_each(|byte| peer.write_all(&[*byte]).unwrap());
            }
            heard
        });
        let result = Proxy::parse(proxy).unwrap().ask(&mut stream, host, 21);
        let mut rest = Vec::new();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let heard = scripted.join().unwrap();
        stream.read_to_end(&mut rest).unwrap();
        if result.is_ok() {
            assert_eq!(rest, b"220", "the server's words are left for the client");
        }
        (result, heard)
    }

    #[test]
    fn socks_by_name_and_by_address() {
        let (done, heard) = asked(
            "socks5://p",
            "nas",
            &[&[5, 0], &[5, 0, 0, 1, 1, 2, 3, 4, 0, 9, b'2', b'2', b'0']],
        );
        done.unwrap();
        assert_eq!(heard, b"\x05\x01\x00\x05\x01\x00\x03\x03nas\x00\x15");
        let (done, heard) = asked(
            "socks5://p",
            "1.2.3.4",
            &[&[5, 0], &[5, 0, 0, 3, 1, b'x', 0, 9, b'2', b'2', b'0']],
        );
        done.unwrap();
        assert!(heard.ends_with(&[1, 1, 2, 3, 4, 0, 21]));
    }

    #[test]
    fn socks_with_a_login() {
        let answers: &[&[u8]] =
            &[&[5, 2], &[1, 0], &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0, b'2', b'2', b'0']];
        let (done, heard) = asked("socks5://bob:p%40ss@p", "nas", answers);
        done.unwrap();
        assert!(heard.windows(10).any(|window| window == b"\x01\x03bob\x04p@ss"));
        let (done, _) = asked("socks5://bob:pass@p", "nas", &[&[5, 2], &[1, 1]]);
        assert!(done.unwrap_err().to_string().contains("user and password"));
    }

    #[test]
    fn refusals_say_why() {
        const CASES: [(&[&[u8]], &str); 7] = [
            (&[&[5, 255]], "wants a login"),
            (&[b"HT"], "no SOCKS5"),
            (&[&[5, 0], &[5, 2, 0, 1]], "rules"),
            (&[&[5, 0], &[5, 5, 0, 1]], "refuses its connection"),
            (&[&[5, 0], &[5, 0, 0, 77]], "no sense"),
            (&[&[5, 0], &[77, 0, 0, 1]], "no sense"),
            (&[&[5, 0], &[5, 0, 0, 1]], "fill"),
        ];
        for (answers, said) in CASES {
            let (refused, _) = asked("socks5://p", "nas", answers);
            let text = refused.unwrap_err().to_string();
            assert!(text.contains(said), "{text}");
        }
    }

    #[test]
    fn http_connect() {
        let (done, heard) =
            asked("http://bob:pass@p", "::1", &[b"HTTP/1.1 200 fine\r\nVia: x\r\n\r\n220"]);
        done.unwrap();
        let heard = String::from_utf8(heard).unwrap();
        assert!(heard.starts_with("CONNECT [::1]:21 HTTP/1.1\r\n"), "{heard}");
        assert!(heard.contains("Basic Ym9iOnBhc3M=\r\n"), "{heard}");
        let (refused, _) = asked("http://p", "nas", &[b"HTTP/1.1 407 no\r\n\r\n"]);
        assert!(refused.unwrap_err().to_string().contains("login"));
        let (refused, _) = asked("http://p", "nas", &[b"garbage 200 x\r\n\r\n"]);
        assert!(refused.is_err());
        let (refused, _) = asked("http://p", "nas", &[b"HTTP/1.1 403 Forbidden\r\n\r\n"]);
        assert!(refused.unwrap_err().to_string().contains("403 Forbidden"));
    }

    #[test]
    fn forms_of_a_proxy() {
        let shown = |text: &str| Proxy::parse(text).map(|proxy| proxy.to_string());
        assert_eq!(shown("socks5://p").as_deref(), Ok("socks5://p:1080"));
        assert_eq!(shown("http://u:secret@[::1]:3128/").as_deref(), Ok("http://::1:3128"));
        for bad in ["p", "ftp://p", "socks5://", "http://u:secret@p:0"] {
            assert!(!shown(bad).unwrap_err().contains("secret"));
        }
        assert!(!format!("{:?}", Proxy::parse("http://u:secret@p").unwrap()).contains("secret"));
    }
}
