//! A client as simple as can be: lines out, replies in, every wait bounded.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::support::server::Server;

pub struct Client {
    input: BufReader<TcpStream>,
}

/// Longer than anything here takes, shorter than the patience of a person.
const TIMEOUT: Duration = Duration::from_secs(10);

impl Client {
    /// Connects and reads nothing.
    pub fn connect(server: &Server) -> Client {
        let stream = TcpStream::connect(server.addr()).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        Client { input: BufReader::new(stream) }
    }

    /// Connects, logs in and chooses TYPE I.
    pub fn login(server: &Server) -> Client {
        let mut client = Client::connect(server);
        assert_eq!(client.reply().0, 220);
        client.expect("USER u", 331);
        client.expect("PASS p", 230);
        client.expect("TYPE I", 200);
        client
    }

    pub fn set_read_timeout(&mut self, timeout: Duration) {
        self.input.get_ref().set_read_timeout(Some(timeout)).unwrap();
    }

    /// The code of a reply of one line, if one begins before the time-out.
    pub fn try_reply(&mut self) -> Option<u16> {
        match self.input.fill_buf() {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
            Ok(_) => Some(self.reply().0),
        }
    }

    pub fn send(&mut self, line: impl AsRef<[u8]>) {
        self.input.get_mut().write_all(&[line.as_ref(), b"\r\n"].concat()).unwrap();
    }

    /// Sends a command and returns the whole reply, which must have this code.
    pub fn expect(&mut self, line: impl AsRef<[u8]>, code: u16) -> Vec<u8> {
        self.send(line.as_ref());
        let (got, text) = self.reply();
        assert_eq!(got, code, "{}: {}", line.as_ref().escape_ascii(), text.escape_ascii());
        text
    }

    /// One reply, all its lines.
    pub fn reply(&mut self) -> (u16, Vec<u8>) {
        let mut text = Vec::new();
        let mut code = Vec::new();
        loop {
            let mut line = Vec::new();
            self.input.read_until(b'\n', &mut line).unwrap();
            assert!(line.ends_with(b"\r\n"), "no reply, but {:?}", line.escape_ascii().to_string());
            text.extend_from_slice(&line);
            if code.is_empty() {
                code = line[..3].to_vec();
            }
            if line.starts_with(&code) && line[3] == b' ' {
                let number = std::str::from_utf8(&code).unwrap().parse().unwrap();
                return (number, text);
            }
        }
    }

    /// What the control connection gives until it ends: `Err` is a reset.
    pub fn rest(&mut self) -> std::io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        self.input.read_to_end(&mut rest)?;
        Ok(rest)
    }

    /// EPSV and the connection to it.
    pub fn data(&mut self) -> TcpStream {
        let text = String::from_utf8(self.expect("EPSV", 229)).unwrap();
        let port = text.split('|').nth(3).unwrap().parse::<u16>().unwrap();
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream
    }

    /// A whole download; `command` is RETR or a listing.
    pub fn download(&mut self, command: impl AsRef<[u8]>) -> Vec<u8> {
        let mut data = self.data();
        self.expect(command, 150);
        let mut bytes = Vec::new();
        data.read_to_end(&mut bytes).unwrap();
        assert_eq!(self.reply().0, 226);
        bytes
    }

    /// A whole upload; returns the code at its end.
    pub fn upload(&mut self, command: impl AsRef<[u8]>, bytes: &[u8]) -> u16 {
        let mut data = self.data();
        self.expect(command, 150);
        data.write_all(bytes).unwrap();
        drop(data);
        self.reply().0
    }
}
