//! A session together with its open data connection.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use super::error::Error;
use super::path::RemotePath;
use super::server::{Habit, Verdict};
use super::session::Session;
use super::store::Placement;
use super::stream::DataSocket;

/// How much is handed to the kernel at a time: four of the largest write requests, so that the
/// cost of a call is nothing beside the copy.
const UPLOAD_BLOCK: usize = 4 * 1024 * 1024;

/// The same where the bytes are copied: 16 TLS records of 16 KiB, within the second-level cache.
const COPY_BLOCK: usize = 256 * 1024;

/// A RETR under way.
pub struct Download {
    session: Session,
    data: DataSocket,
    position: u64,
}

impl Download {
    /// RETR from `offset` on. After a refusal the session is back in the pool.
    pub(crate) fn open(
        mut session: Session,
        path: &RemotePath,
        offset: u64,
    ) -> Result<Self, Error> {
        let command = format!("RETR {}", path.to_wire());
        if offset > 0 && session.server().may(Habit::Rest) {
            match session.open_data(&command, offset) {
                Err(Error::Refused(reply)) if reply.is_unknown_command() => {
                    session.server().learn(Habit::Rest, Verdict::No);
                }
                Ok(data) => return Ok(Self { session, data, position: offset }),
                Err(error) => return Err(lose_or_give_back(session, error)),
            }
        }
        // From the beginning; without REST what is before the offset is read and thrown away.
        match session.open_data(&command, 0) {
            Ok(data) => Self { session, data, position: 0 }.skip_to(offset),
            Err(error) => Err(lose_or_give_back(session, error)),
        }
    }

    fn skip_to(mut self, offset: u64) -> Result<Self, Error> {
        let mut block = vec![0; COPY_BLOCK];
        while self.position < offset {
            let left = usize::try_from(offset - self.position).unwrap_or(usize::MAX);
            let part = block.len().min(left);
            if self.read(block.get_mut(..part).unwrap_or_default())? == 0 {
                break;
            }
        }
        Ok(self)
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
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::from_io(error, "data of a download")),
            }
        }
    }

    /// Under TLS: did the data end without the close_notify that nobody in between can make?
    pub fn was_cut(&self) -> bool {
        self.data.was_cut()
    }

    /// At the end of the data: asks whether the server says it was all (226 or 250).
    pub fn finish(self) -> Result<(), Error> {
        let Self { session, data, .. } = self;
        complete(session, Some(data))
    }

    /// Enough was read, or as much as there is: the session returns at once and its next user
    /// reads the reply. A data connection that may still carry bytes is closed with a reset, so
    /// that the server stops sending; it answers 426, which is read like any other reply.
    pub fn leave(self, at_end: bool) {
        let Self { mut session, data, .. } = self;
        session.owe(if at_end {
            Some(data)
        } else {
            data.reset();
            None
        });
        session.give_back();
    }
}

/// A STOR under way.
pub struct Upload {
    /// `None` once the transfer has ended, one way or another.
    under_way: Option<(Session, DataSocket)>,
}

impl Upload {
    /// STOR or APPE. After a refusal the session is back in the pool.
    pub(crate) fn open(
        mut session: Session,
        path: &RemotePath,
        placement: Placement,
    ) -> Result<Self, Error> {
        let (verb, offset) = match placement {
            Placement::Whole => ("STOR", 0),
            Placement::Append => ("APPE", 0),
            Placement::At(offset) => ("STOR", offset),
        };
        match session.open_data(&format!("{verb} {}", path.to_wire()), offset) {
            Ok(data) => Ok(Self { under_way: Some((session, data)) }),
            Err(Error::Refused(reply))
                if placement == Placement::Append && reply.is_unknown_command() =>
            {
                session.server().learn(Habit::Appe, Verdict::No);
                Err(lose_or_give_back(session, Error::Refused(reply)))
            }
            Err(error) => Err(lose_or_give_back(session, error)),
        }
    }

    /// Sends a range of `file`; between blocks it asks whether it is still wanted.
    pub fn send_unless(
        &mut self,
        file: &File,
        range: Range<u64>,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<(), Error> {
        let mut at = range.start;
        while at < range.end {
            if is_cancelled() {
                self.throw_away();
                return Err(Error::Cancelled);
            }
            let part = (range.end - at).min(UPLOAD_BLOCK as u64);
            self.send(file, at, part)?;
            at += part;
        }
        Ok(())
    }

    /// Sends `length` bytes of `file` from `offset` on. An error is the server's reason where it
    /// gave one (452, 552): that is worth more than “broken pipe”.
    pub fn send(&mut self, file: &File, offset: u64, length: u64) -> Result<(), Error> {
        self.send_blocks(file, offset, length).map_err(|error| self.reason(error))
    }

    fn send_blocks(&mut self, file: &File, offset: u64, length: u64) -> Result<(), Error> {
        let Some((session, data)) = &mut self.under_way else {
            return Err(Error::Broken(io::ErrorKind::NotConnected.into()));
        };
        let mut at = offset;
        let end = offset.saturating_add(length);
        while at < end {
            let part = usize::try_from(end - at).unwrap_or(usize::MAX).min(UPLOAD_BLOCK);
            at += send_part(data, file, at, part)?;
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
        data.reset();
        match complete(session, None) {
            Err(Error::Refused(reply)) => Error::Refused(reply),
            _ => error,
        }
    }

    /// Everything was sent: waits for the server to confirm it.
    pub fn finish(mut self) -> Result<(), Error> {
        match self.under_way.take() {
            Some((session, data)) => complete(session, Some(data)),
            None => Err(Error::Broken(io::ErrorKind::NotConnected.into())),
        }
    }

    /// What was sent is not wanted. The session returns to the pool, owing the reply.
    pub fn abort(mut self) {
        self.throw_away();
    }

    fn throw_away(&mut self) {
        if let Some((mut session, data)) = self.under_way.take() {
            data.reset();
            session.owe(None);
            session.give_back();
        }
    }
}

impl Drop for Upload {
    /// After an error: a reset instead of a proper end, as the server must not take the part for
    /// the whole.
    fn drop(&mut self) {
        if let Some((session, data)) = self.under_way.take() {
            data.reset();
            session.shut();
        }
    }
}

/// After a failed command: the session returns to the pool if it is in step. A success without a
/// transfer belongs to something else.
fn lose_or_give_back(session: Session, error: Error) -> Error {
    if let Error::Refused(reply) = &error
        && reply.is_success()
    {
        let text = format!("{reply} instead of a transfer");
        return Error::Broken(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    if error.leaves_session_usable() {
        session.give_back();
    }
    error
}

/// Sends up to `length` bytes from `offset` on; how many it were.
fn send_part(data: &mut DataSocket, file: &File, offset: u64, length: usize) -> Result<u64, Error> {
    let sent = match data.plain() {
        Some(socket) => send_file(socket, file, offset, length),
        None => send_copy(data, file, offset, length),
    };
    match sent {
        Ok(0) => Err(Error::Broken(io::ErrorKind::UnexpectedEof.into())),
        Ok(count) => Ok(count as u64),
        Err(error) => Err(Error::from_io(error, "room to send")),
    }
}

/// File to socket without a copy through here: sendfile(2). The socket's write deadline holds.
fn send_file(socket: &TcpStream, file: &File, offset: u64, length: usize) -> io::Result<usize> {
    let mut offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    loop {
        // SAFETY: both descriptors are open, as they are borrowed; the kernel writes only to
        // `offset`, which lives until the call returns.
        #[allow(unsafe_code)]
        let sent = unsafe {
            libc::sendfile(socket.as_raw_fd(), file.as_raw_fd(), &raw mut offset, length)
        };
        match usize::try_from(sent) {
            Ok(sent) => return Ok(sent),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

/// Where the bytes must pass through here.
fn send_copy(data: &mut DataSocket, file: &File, offset: u64, length: usize) -> io::Result<usize> {
    let mut block = vec![0; length.min(COPY_BLOCK)];
    let count = file.read_at(&mut block, offset)?;
    data.write_all(block.get(..count).unwrap_or_default())?;
    Ok(count)
}

/// Closes the data connection, reads the reply, and returns the session when it is in step.
fn complete(mut session: Session, data: Option<DataSocket>) -> Result<(), Error> {
    // The server sees the end of an upload by the close.
    drop(data);
    let finished = session.end_of_transfer();
    match &finished {
        Ok(()) => session.give_back(),
        Err(error) if error.leaves_session_usable() => session.give_back(),
        Err(_) => {}
    }
    finished
}
