//! A session together with its open data connection.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;

use socket2::{Domain, SockRef, Socket, Type};
use suppaftp::DataStream;

use super::error::Error;
use super::path::RemotePath;
use super::session::{Data, Session};

/// How much of a staged file is read and sent at a time: large enough that the cost of a call is
/// nothing beside the copy, small enough to stay in the second-level cache.
const UPLOAD_BLOCK: usize = 256 * 1024;

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
        if !at_end {
            match Socket::new(Domain::IPV4, Type::STREAM, None) {
                Ok(stand_in) => {
                    let stand_in = DataStream::Tcp(TcpStream::from(stand_in));
                    drop(std::mem::replace(data.get_mut(), stand_in));
                }
                // Without a descriptor to spare the session is given up.
                Err(_) => return session.shut(),
            }
        }
        session.owe(data);
        session.give_back();
    }
}

/// A STOR under way.
pub(crate) struct Upload {
    session: Session,
    data: Data,
}

impl Upload {
    /// STOR. After a refusal the session is back in the pool.
    pub(crate) fn open(mut session: Session, path: &RemotePath) -> Result<Self, Error> {
        match session.open_data(&format!("STOR {}", path.to_wire()), 0) {
            Ok(data) => Ok(Self { session, data }),
            Err(error) => {
                if error.leaves_session_usable() {
                    session.give_back();
                }
                Err(error)
            }
        }
    }

    /// Sends the first `length` bytes of `file` and waits for the server to confirm them.
    pub(crate) fn send(mut self, file: &File, length: u64) -> Result<(), Error> {
        if let Err(error) = self.send_blocks(file, length) {
            return self.give_up(error);
        }
        let Self { session, data } = self;
        complete(session, data)
    }

    fn send_blocks(&mut self, file: &File, length: u64) -> Result<(), Error> {
        let mut block = vec![0; UPLOAD_BLOCK];
        let mut offset = 0;
        while offset < length {
            let want = block.len().min(usize::try_from(length - offset).unwrap_or(usize::MAX));
            let part = block.get_mut(..want).unwrap_or_default();
            file.read_exact_at(part, offset).map_err(Error::Broken)?;
            self.data.write_all(part).map_err(|error| Error::from_io(error, "room to send"))?;
            offset += want as u64;
            self.session.note_progress();
        }
        self.data.flush().map_err(|error| Error::from_io(error, "room to send"))
    }

    /// The data connection failed. The server usually says why (452, 552, 426), and its reason is
    /// worth more than “broken pipe”.
    fn give_up(self, error: Error) -> Result<(), Error> {
        let Self { session, data } = self;
        // A reset instead of a proper end: the server must not take the part for the whole.
        let socket = SockRef::from(data.get_ref().get_ref());
        let _ = socket.set_linger(Some(std::time::Duration::ZERO));
        if !error.lost_session() {
            session.shut();
            return Err(error);
        }
        match complete(session, data) {
            Err(Error::Refused(reply)) => Err(Error::Refused(reply)),
            _ => Err(error),
        }
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
