//! A session together with its open data connection.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use super::error::Error;
use super::flow::{Direction, Flow};
use super::lane::{Ask, Look};
use super::open::{Ahead, Begun, Check, Opening, retrieve};
use super::path::RemotePath;
use super::server::{Habit, Verdict};
use super::session::{Session, out_of_step};
use super::store::Stored;
use super::stream::DataSocket;
use super::upload::{Lane, Ready};

/// How much is copied at a time: 16 TLS records of 16 KiB, within the second-level cache.
const COPY_BLOCK: usize = 256 * 1024;

/// Up to here our end of a download's connection may be closed early. Longer ones take several round
/// trips anyway (slow start: 14, 43, 101 KiB), and what is on the way may forget a connection of which
/// one end is closed (after 60 s in Linux's conntrack, `nf_conntrack_tcp_timeout_close_wait`).
const SHORT: usize = 64 * 1024;

/// A RETR under way.
pub struct Download {
    session: Session,
    data: DataSocket,
    position: u64,
    /// What travelled with it.
    next: Option<Ask>,
    /// Our end of the data connection is closed.
    is_half_closed: bool,
    flow: Flow,
}

/// What became of a download that is wanted only of one version.
pub enum Checked {
    Opened(Box<Download>, Look),
    /// The check said no to this.
    Other(Look),
}

impl Download {
    /// RETR from `offset` on. After a refusal the session is back in the pool.
    pub(crate) fn open(session: Session, path: &RemotePath, offset: u64) -> Result<Self, Error> {
        Self::open_with(session, path, offset, Ahead::No)
    }

    /// The same for work ahead of need, with which the question for the next data connection
    /// travels. `size` is what the file is believed to have.
    pub(crate) fn open_ahead(
        session: Session,
        path: &RemotePath,
        size: usize,
    ) -> Result<Self, Error> {
        let ahead = if size <= SHORT { Ahead::Short } else { Ahead::Try };
        Self::open_with(session, path, 0, ahead)
    }

    fn open_with(
        mut session: Session,
        path: &RemotePath,
        offset: u64,
        ahead: Ahead,
    ) -> Result<Self, Error> {
        let command = retrieve(path);
        if offset > 0 && session.server().may(Habit::Rest) {
            match session.open_data(&command, offset, ahead) {
                Err(Error::Refused(reply)) if reply.is_unknown_command() => {
                    session.server().learn(Habit::Rest, Verdict::No);
                }
                Ok(begun) => return Ok(Self::of(session, begun, offset)),
                Err(error) => return Err(lose_or_give_back(session, error)),
            }
        }
        // From the beginning; without REST what is before the offset is read and thrown away.
        match session.open_data(&command, 0, ahead) {
            Ok(begun) => Self::of(session, begun, 0).skip_to(offset),
            Err(error) => Err(lose_or_give_back(session, error)),
        }
    }

    fn of(session: Session, begun: Begun, position: u64) -> Self {
        let Begun { data, next, is_half_closed } = begun;
        let flow = Flow::new(session.server_handle(), Direction::Down);
        Self { session, data, position, next, is_half_closed, flow }
    }

    /// RETR from `offset` on, if the server's look at the file, which travels with what opens the
    /// transfer, is as `check` wants it.
    pub(crate) fn open_checked(
        session: Session,
        path: &RemotePath,
        offset: u64,
        check: Check,
    ) -> Result<Checked, Error> {
        let mut session = session;
        if offset > 0 && session.server().may(Habit::Rest) {
            match session.open_checked(path, offset, check) {
                Err(Error::Refused(_)) if !session.server().may(Habit::Rest) => {}
                opening => return Self::checked(session, offset, opening),
            }
        }
        let opening = session.open_checked(path, 0, check);
        match Self::checked(session, 0, opening)? {
            Checked::Opened(download, look) => {
                Ok(Checked::Opened(Box::new(download.skip_to(offset)?), look))
            }
            other => Ok(other),
        }
    }

    /// The same without reading through what is before: a refusal where there is no REST.
    pub(crate) fn open_part(
        mut session: Session,
        path: &RemotePath,
        offset: u64,
        check: Check,
    ) -> Result<Checked, Error> {
        let opening = session.open_checked(path, offset, check);
        Self::checked(session, offset, opening)
    }

    fn checked(
        session: Session,
        position: u64,
        opening: Result<Opening, Error>,
    ) -> Result<Checked, Error> {
        match opening {
            Ok(Opening::Data(data, look)) => {
                let begun = Begun { data, next: None, is_half_closed: false };
                let download = Self::of(session, begun, position);
                Ok(Checked::Opened(Box::new(download), look))
            }
            Ok(Opening::Other(look)) => {
                session.give_back();
                Ok(Checked::Other(look))
            }
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
            let asked = Instant::now();
            match self.data.read(buffer) {
                Ok(count) => {
                    self.session.note_progress();
                    self.flow.note(count as u64, asked, self.data.tcp());
                    self.position += count as u64;
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::from_io(error, "data of a download")),
            }
        }
    }

    /// Is it the line that this download waits for, not the server or a window?
    pub fn fills_the_line(&self) -> bool {
        self.flow.fills_the_line()
    }

    /// Less came than there is: is it because our end was closed early? Then this was the last time.
    pub(crate) fn blame_early_end(&self) {
        if self.is_half_closed {
            self.session.server().learn(Habit::EarlyEnd, Verdict::No);
        }
    }

    /// Under TLS: did the data end without the close_notify that nobody in between can make?
    pub fn was_cut(&self) -> bool {
        self.data.was_cut()
    }

    /// At the end of the data: asks whether the server says it was all (226 or 250).
    pub fn finish(self) -> Result<(), Error> {
        let Self { session, data, next, .. } = self;
        complete(session, data, next)
    }

    /// Enough was read, or as much as there is: the session returns at once and its next user
    /// reads the reply. A data connection that may still carry bytes is closed with a reset, so
    /// that the server stops sending; it answers 426, which is read like any other reply. The other
    /// is closed now, as ProFTPD 1.3.8 says 226 only then, and the next user would wait for that.
    pub fn leave(self, at_end: bool) {
        let Self { mut session, data, next, .. } = self;
        if at_end {
            drop(data);
        } else {
            data.reset();
        }
        session.owe(at_end, next);
        session.give_back();
    }
}

/// A STOR under way.
pub struct Upload {
    /// `None` once the transfer has ended, one way or another.
    lane: Option<Lane>,
    path: RemotePath,
    end: End,
}

/// What is asked at the end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Nothing,
    Size,
}

impl Upload {
    /// STOR, and questions that travel with it. After a refusal the session is back in the pool.
    pub(crate) fn open(
        session: Session,
        path: &RemotePath,
        behind: Vec<Ask>,
    ) -> Result<Self, Error> {
        let ready = Ready::ask(session, None, 0)?;
        let mut lane = ready.begin(&format!("STOR {}", path.to_wire()), behind)?;
        match lane.wait_for_start() {
            Ok(()) => Ok(Self { lane: Some(lane), path: path.clone(), end: End::Nothing }),
            Err(error) => Err(lane.give_up(error)),
        }
    }

    /// At the end the server is asked for the size, also where that could not travel with STOR.
    pub(crate) fn asking(mut self) -> Self {
        self.end = End::Size;
        self
    }

    /// Sends a range of `file`; between blocks it asks whether it is still wanted. An error is the
    /// server's reason where it gave one (452, 552): that is worth more than “broken pipe”.
    pub fn send(
        &mut self,
        file: &File,
        range: Range<u64>,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<(), Error> {
        let lane = self.lane.as_mut().ok_or_else(ended)?;
        let sent = lane.send(file, range, is_cancelled);
        match (sent, self.lane.take()) {
            (Err(error), Some(lane)) => Err(lane.give_up(error)),
            (sent, lane) => {
                self.lane = lane;
                sent
            }
        }
    }

    /// Everything was sent: waits for the server to confirm it; what it then has.
    pub fn finish(mut self) -> Result<Stored, Error> {
        let mut lane = self.lane.take().ok_or_else(ended)?;
        let ended = match lane.end() {
            Ok(ended) => ended,
            Err(error) => return Err(lane.give_up(error)),
        };
        let mut session = lane.into_session();
        if !ended.is_in_step {
            return Err(out_of_step("replies behind an upload"));
        }
        let look = match self.end {
            End::Nothing => Look::Unknown,
            End::Size => ended.look(&mut session, &self.path)?,
        };
        session.give_back();
        Ok(Stored::of(look))
    }

    /// What was sent is not wanted. The session returns to the pool, owing the reply.
    pub fn abort(mut self) {
        if let Some(lane) = self.lane.take() {
            lane.abort();
        }
    }
}

fn ended() -> Error {
    Error::Broken(io::ErrorKind::NotConnected.into())
}

impl Drop for Upload {
    /// After an error: a reset instead of a proper end, as the server must not take the part for
    /// the whole.
    fn drop(&mut self) {
        if let Some(lane) = self.lane.take() {
            lane.give_up(ended());
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
pub(crate) fn send_part(
    data: &mut DataSocket,
    file: &File,
    offset: u64,
    length: usize,
) -> Result<u64, Error> {
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
fn complete(mut session: Session, data: DataSocket, next: Option<Ask>) -> Result<(), Error> {
    drop(data);
    let finished = session.end_with(next);
    match &finished {
        Ok(()) => session.give_back(),
        Err(error) if error.leaves_session_usable() => session.give_back(),
        Err(_) => {}
    }
    finished
}
