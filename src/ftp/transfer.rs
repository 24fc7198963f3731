//! A session together with its open data connection.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::TcpStream;

use socket2::{Domain, SockRef, Socket, Type};
use suppaftp::DataStream;

use super::error::Error;
use super::path::RemotePath;
use super::session::{Data, Session};

/// How much is sent between two notes of progress: 30 s for it would be 140 kB/s, and slower lines
/// move some bytes in that time too, which the socket's own deadline sees.
const UPLOAD_BLOCK: u64 = 4 * 1024 * 1024;

/// A RETR under way.
pub struct Download {
    // Dropped first: it shuts the control connection, so that dropping `data` waits for nobody.
    session: Session,
    data: Data,
    position: u64,
}

impl Download {
    /// RETR from `offset` on. After a refusal the session is back in the pool.
    pub(crate) fn open(
        mut session: Session,
        path: &RemotePath,
        offset: u64,
    ) -> Result<Self, Error> {
        match session.open_data(&format!("RETR {}", path.to_wire()), offset) {
            Ok(data) => Ok(Self { session, data, position: offset }),
            Err(error) => {
                if error.leaves_session_usable() {
                    session.give_back();
                }
                Err(error)
            }
        }
    }

    /// The offset of the next byte.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next bytes, 0 at the end of the data. After an error the transfer is of no use.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        loop {
            match self.data.read(buffer) {
                Ok(count) => {
                    self.session.note_progress();
                    self.position += count as u64;
                    return Ok(count);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::from_io(error, "data of a download")),
            }
        }
    }

    /// At the end of the data: asks whether the server says it was all (226 or 250).
    pub fn finish(self) -> Result<(), Error> {
        let Self { session, data, .. } = self;
        complete(session, data)
    }

    /// Enough was read, or as much as there is: the session returns at once and its next user
    /// reads the reply. A data connection that may still carry bytes is closed with a reset, so
    /// that the server stops sending; it answers 426, which is read like any other reply.
    pub fn leave(self, at_end: bool) {
        let Self { mut session, mut data, .. } = self;
        if !at_end && !close_early(&mut data) {
            // Without a descriptor to spare the session is given up.
            return session.shut();
        }
        session.owe(data);
        session.give_back();
    }
}

/// A STOR under way.
pub struct Upload {
    /// `None` once the transfer has ended, one way or another.
    under_way: Option<(Session, Data)>,
}

impl Upload {
    /// STOR. After a refusal the session is back in the pool.
    pub(crate) fn open(mut session: Session, path: &RemotePath) -> Result<Self, Error> {
        match session.open_data(&format!("STOR {}", path.to_wire()), 0) {
            Ok(data) => Ok(Self { under_way: Some((session, data)) }),
            Err(error) => {
                if error.leaves_session_usable() {
                    session.give_back();
                }
                Err(error)
            }
        }
    }

    /// Sends `length` bytes of `file` from `offset` on. An error is the server's reason where it
    /// gave one (452, 552): that is worth more than “broken pipe”.
    pub fn send(&mut self, file: &File, offset: u64, length: u64) -> Result<(), Error> {
        self.send_blocks(file, offset, length).map_err(|error| self.reason(error))
    }

    fn send_blocks(&mut self, mut file: &File, offset: u64, length: u64) -> Result<(), Error> {
        file.seek(SeekFrom::Start(offset)).map_err(Error::Broken)?;
        let mut left = length;
        while left > 0 {
            let part = left.min(UPLOAD_BLOCK);
            let Some((session, data)) = &self.under_way else {
                return Err(Error::Broken(std::io::ErrorKind::NotConnected.into()));
            };
            let DataStream::Tcp(socket) = data.get_ref() else {
                return Err(Error::Broken(std::io::ErrorKind::Unsupported.into()));
            };
            // File to socket: the standard library uses sendfile(2), no copy through here.
            let sent = std::io::copy(&mut file.take(part), &mut &*socket)
                .map_err(|error| Error::from_io(error, "room to send"))?;
            if sent < part {
                return Err(Error::Broken(std::io::ErrorKind::UnexpectedEof.into()));
            }
            left -= part;
            session.note_progress();
        }
        Ok(())
    }

    /// The data connection failed. The server usually says why on the other one.
    fn reason(&mut self, error: Error) -> Error {
        if !error.lost_session() {
            return error;
        }
        let Some((session, data)) = self.under_way.take() else { return error };
        reset(&data);
        match complete(session, data) {
            Err(Error::Refused(reply)) => Error::Refused(reply),
            _ => error,
        }
    }

    /// Everything was sent: waits for the server to confirm it.
    pub fn finish(mut self) -> Result<(), Error> {
        match self.under_way.take() {
            Some((session, data)) => complete(session, data),
            None => Err(Error::Broken(std::io::ErrorKind::NotConnected.into())),
        }
    }

    /// What was sent is not wanted. The session returns to the pool, owing the reply.
    pub fn abort(mut self) {
        if let Some((mut session, mut data)) = self.under_way.take() {
            reset(&data);
            if close_early(&mut data) {
                session.owe(data);
                session.give_back();
            } else {
                session.shut();
            }
        }
    }
}

impl Drop for Upload {
    /// After an error: a reset instead of a proper end, as the server must not take the part for
    /// the whole.
    fn drop(&mut self) {
        if let Some((session, data)) = &self.under_way {
            reset(data);
            session.shut();
        }
    }
}

/// Closing the data connection sends a reset from now on.
fn reset(data: &Data) {
    let socket = SockRef::from(data.get_ref().get_ref());
    // Fails only when the connection is gone already.
    let _ = socket.set_linger(Some(std::time::Duration::ZERO));
}

/// Closes the data connection although the transfer goes on, by putting another socket in its
/// place: suppaftp would wait for the reply. False without a descriptor to spare.
fn close_early(data: &mut Data) -> bool {
    match Socket::new(Domain::IPV4, Type::STREAM, None) {
        Ok(stand_in) => {
            let stand_in = DataStream::Tcp(TcpStream::from(stand_in));
            drop(std::mem::replace(data.get_mut(), stand_in));
            true
        }
        Err(_) => false,
    }
}

/// Closes the data connection, reads the reply, and returns the session when it is in step.
fn complete(session: Session, data: Data) -> Result<(), Error> {
    let finished = data.finish().map_err(Error::from_suppaftp);
    match &finished {
        Ok(()) => session.give_back(),
        Err(error) if error.leaves_session_usable() => session.give_back(),
        Err(_) => {}
    }
    finished
}
