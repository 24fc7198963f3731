//! The connections themselves, plain or under TLS: the control connection, over which suppaftp
//! runs, and data connections.
//!
//! The control connection gives at most one line to a read. What the server sent beyond it stays
//! here, where `has_unread` sees it: so a reply that nobody asked for is noticed before it is
//! taken for the answer to the next command. It can change to TLS and back (RFC 4217) under the
//! client that uses it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ProtocolVersion, StreamOwned};
use socket2::SockRef;
use suppaftp::{FtpError, FtpResult, TlsConnector, TlsStream};

/// One segment's worth; replies are lines.
const CONTROL_BUFFER: usize = 4096;

/// How long to wait after an upload for the server's last TLS records. The ticket among them
/// saves a refused session later; without it the upload is as complete.
const DRAIN: Duration = Duration::from_secs(2);

/// The control connection as suppaftp reads and writes it.
#[derive(Debug)]
pub(crate) struct Stream(Arc<Control>);

impl TlsStream for Stream {
    type InnerStream = Self;

    fn tcp_stream(self) -> FtpResult<TcpStream> {
        self.0.socket.try_clone().map_err(FtpError::ConnectionError)
    }

    fn get_ref(&self) -> &TcpStream {
        &self.0.socket
    }

    fn mut_ref(&mut self) -> &mut Self {
        self
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read_line_part(buffer)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Gives suppaftp the control connection, which exists already.
#[derive(Debug)]
pub(crate) struct Maker(Mutex<Option<Arc<Control>>>);

impl Maker {
    pub(crate) fn new(control: Arc<Control>) -> Self {
        Self(Mutex::new(Some(control)))
    }
}

impl TlsConnector for Maker {
    type Stream = Stream;

    fn connect(&self, _domain: &str, _socket: TcpStream) -> FtpResult<Stream> {
        // A second one would be a data connection, and those are made by `Session::open_data`.
        let control = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        control.map(Stream).ok_or(FtpError::DataConnectionAlreadyOpen)
    }
}

/// The control connection; shared by suppaftp's client and the session, which take turns.
#[derive(Debug)]
pub(crate) struct Control {
    socket: TcpStream,
    line: Mutex<Line>,
}

#[derive(Debug)]
struct Line {
    tls: Option<ClientConnection>,
    config: Option<Arc<ClientConfig>>,
    /// Received and not yet read.
    unread: Vec<u8>,
}

impl Control {
    pub(crate) fn new(socket: TcpStream) -> Self {
        Self { socket, line: Mutex::new(Line { tls: None, config: None, unread: Vec::new() }) }
    }

    /// For deadlines, and to shut it while somebody waits.
    pub(crate) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Begins TLS: the handshake is done when this returns.
    pub(crate) fn protect(
        &self,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> io::Result<()> {
        let mut tls = ClientConnection::new(Arc::clone(&config), name).map_err(io::Error::other)?;
        let mut line = self.lock();
        if !line.unread.is_empty() {
            // Bytes in clear text behind the 234 would be taken for protected ones (CVE-2011-0411
            // and its kin).
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "text before the TLS handshake",
            ));
        }
        complete_handshake(&mut tls, &self.socket)?;
        line.tls = Some(tls);
        line.config = Some(config);
        Ok(())
    }

    /// What TLS began with; its tickets belong to this connection.
    pub(crate) fn config(&self) -> Option<Arc<ClientConfig>> {
        self.lock().config.clone()
    }

    /// Ends TLS after CCC (RFC 4217 §12.3): the server and we say close_notify, and go on in clear.
    pub(crate) fn unprotect(&self) -> io::Result<()> {
        let mut line = self.lock();
        if let Some(mut tls) = line.tls.take() {
            tls.send_close_notify();
            while tls.wants_write() {
                tls.write_tls(&mut &self.socket)?;
            }
            // The server's close_notify must be out of the way before clear text follows.
            while !tls.process_new_packets().map_err(io::Error::other)?.peer_has_closed() {
                if tls.read_tls(&mut &self.socket)? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
        Ok(())
    }

    /// The version of TLS, if there is any.
    pub(crate) fn protocol(&self) -> Option<ProtocolVersion> {
        self.lock().tls.as_ref()?.protocol_version()
    }

    /// Has the server said anything that nobody asked for, or closed the connection? Waits for
    /// nothing.
    pub(crate) fn has_unread(&self) -> bool {
        let mut line = self.lock();
        if !line.unread.is_empty() || self.socket.set_nonblocking(true).is_err() {
            return true;
        }
        let unread = match &mut line.tls {
            None => !is_silence(&self.socket.peek(&mut [0])),
            Some(tls) => loop {
                // Tickets are not words: only text and the end count.
                let read = tls.read_tls(&mut &self.socket);
                let state = tls.process_new_packets();
                let has_text = state.is_ok_and(|state| {
                    state.plaintext_bytes_to_read() == 0 && !state.peer_has_closed()
                });
                if is_silence(&read) && has_text {
                    break false;
                }
                if !matches!(read, Ok(count) if count > 0) || !has_text {
                    break true;
                }
            },
        };
        self.socket.set_nonblocking(false).is_err() || unread
    }

    /// At most one line, so that what follows it stays here.
    pub(crate) fn read_line_part(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut line = self.lock();
        if line.unread.is_empty() {
            let mut block = [0; CONTROL_BUFFER];
            let count = match &mut line.tls {
                None => (&self.socket).read(&mut block)?,
                Some(tls) => read_tls(tls, &self.socket, &mut block)?,
            };
            line.unread.extend_from_slice(block.get(..count).unwrap_or_default());
        }
        let end = line.unread.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
        let count = end.unwrap_or(line.unread.len()).min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(line.unread.drain(..count)) {
            *to = from;
        }
        Ok(count)
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut line = self.lock();
        match &mut line.tls {
            None => (&self.socket).write(bytes),
            Some(tls) => {
                let mut socket = &self.socket;
                let mut stream = rustls::Stream::new(tls, &mut socket);
                let count = stream.write(bytes)?;
                stream.flush()?;
                Ok(count)
            }
        }
    }

    /// All of `bytes`, in one segment or TLS record where they fit.
    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let count = self.write(rest)?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            rest = rest.get(count..).unwrap_or_default();
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_silence<T>(result: &io::Result<T>) -> bool {
    matches!(result, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// A control connection that ends without close_notify has ended all the same.
fn read_tls(
    tls: &mut ClientConnection,
    mut socket: &TcpStream,
    block: &mut [u8],
) -> io::Result<usize> {
    match rustls::Stream::new(tls, &mut socket).read(block) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
        result => result,
    }
}

fn complete_handshake(tls: &mut ClientConnection, mut socket: &TcpStream) -> io::Result<()> {
    while tls.is_handshaking() {
        tls.complete_io(&mut socket)?;
    }
    while tls.wants_write() {
        tls.write_tls(&mut socket)?;
    }
    Ok(())
}

/// A data connection.
#[derive(Debug)]
pub(crate) enum DataSocket {
    Plain(TcpStream),
    Tls(Box<Protected>),
}

/// A data connection under TLS.
#[derive(Debug)]
pub(crate) struct Protected {
    stream: StreamOwned<ClientConnection, TcpStream>,
    /// The connection ended without close_notify: perhaps not by the server.
    was_cut: bool,
    has_sent: bool,
    /// To be closed at once: by a reset.
    is_abandoned: bool,
}

impl DataSocket {
    /// Under TLS if `protection` is wanted; the handshake is done when this returns.
    pub(crate) fn new(socket: TcpStream, protection: Option<&DataProtection>) -> io::Result<Self> {
        let Some(DataProtection { config, name }) = protection else {
            return Ok(Self::Plain(socket));
        };
        let mut tls =
            ClientConnection::new(Arc::clone(config), name.clone()).map_err(io::Error::other)?;
        complete_handshake(&mut tls, &socket)?;
        let stream = StreamOwned::new(tls, socket);
        let protected = Protected { stream, was_cut: false, has_sent: false, is_abandoned: false };
        Ok(Self::Tls(Box::new(protected)))
    }

    /// The socket, if bytes may go to it as they are.
    pub(crate) fn plain(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(socket) => Some(socket),
            Self::Tls(_) => None,
        }
    }

    pub(crate) fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(protected) => &protected.stream.sock,
        }
    }

    /// Did the data end in a way that somebody on the line could have made?
    pub(crate) fn was_cut(&self) -> bool {
        matches!(self, Self::Tls(protected) if protected.was_cut)
    }

    /// Closes without a proper end: what was sent must not be taken for the whole, and what still
    /// comes is not wanted.
    pub(crate) fn reset(mut self) {
        if let Self::Tls(protected) = &mut self {
            protected.is_abandoned = true;
        }
        // Fails only when the connection is gone already.
        let _ = SockRef::from(self.tcp()).set_linger(Some(Duration::ZERO));
    }
}

impl Read for DataSocket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let protected = match self {
            Self::Plain(socket) => return socket.read(buffer),
            Self::Tls(protected) => protected,
        };
        match protected.stream.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                protected.was_cut = true;
                Ok(0)
            }
            result => result,
        }
    }
}

impl Write for DataSocket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(bytes),
            Self::Tls(protected) => {
                protected.has_sent = true;
                protected.stream.write(bytes)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(protected) => protected.stream.flush(),
        }
    }
}

impl Drop for Protected {
    /// Says close_notify and, after an upload, reads what the server still sends: its ticket is
    /// needed for the next data connection, and unread bytes would make the kernel reset the
    /// connection, which servers answer with 426.
    fn drop(&mut self) {
        if self.is_abandoned {
            return;
        }
        self.stream.conn.send_close_notify();
        // From here on nothing can be told to anybody: the control connection tells the outcome.
        let _ = self.stream.flush();
        if !self.has_sent && self.was_cut {
            return;
        }
        let socket = &self.stream.sock;
        let _ = socket.shutdown(Shutdown::Write);
        let _ = socket.set_read_timeout(Some(DRAIN));
        let mut rest = [0; CONTROL_BUFFER];
        while matches!(self.stream.read(&mut rest), Ok(count) if count > 0) {}
    }
}

/// What TLS on data connections needs.
#[derive(Clone, Debug)]
pub(crate) struct DataProtection {
    pub(crate) config: Arc<ClientConfig>,
    pub(crate) name: ServerName<'static>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn pair() -> (Control, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let here = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (Control::new(here), listener.accept().unwrap().0)
    }

    #[test]
    fn a_read_ends_with_the_line_and_the_rest_is_seen() {
        let (control, mut server) = pair();
        assert!(!control.has_unread());
        server.write_all(b"200 yes\r\n426 no\r\n").unwrap();
        let mut buffer = [0; 100];
        let count = control.read_line_part(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"200 yes\r\n");
        assert!(control.has_unread());
        let count = control.read_line_part(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"426 no\r\n");
        assert!(!control.has_unread());
        drop(server);
        while !control.has_unread() {
            std::thread::yield_now();
        }
    }
}
