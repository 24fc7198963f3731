//! An upload on the wire: the way for its data, the bytes, the replies to them and to what travels
//! with them.

use std::fs::File;
use std::ops::Range;
use std::time::Instant;

use super::error::{Error, Reply};
use super::flow::{Direction, Flow};
use super::lane::{Ask, Look, ends_transfer, look, looked, read_behind};
use super::network::await_handshake;
use super::open::{Door, prepare};
use super::path::RemotePath;
use super::server::{Habit, Verdict};
use super::session::{Session, Way, out_of_step};
use super::store::{Placement, Store};
use super::stream::DataSocket;
use super::transfer::send_part;

/// The bytes that go out before the server said that it wants them: one that refuses reads none,
/// and so much always fits into the buffers of a socket (tcp_wmem begins at 16 KiB and grows; the
/// peer takes 64 KiB).
const EARLY: u64 = 64 * 1024;

/// One block between two looks at whether it is still wanted.
const BLOCK: u64 = 256 * 1024;

/// A session on which the way for the data is known.
pub(crate) struct Ready {
    pub(crate) session: Session,
    door: Door,
    offset: u64,
    pub(crate) before: Option<Look>,
}

impl Ready {
    /// Asks for a data connection, the look of the guard, and the offset: in one segment.
    pub(crate) fn ask(
        mut session: Session,
        guard: Option<&RemotePath>,
        offset: u64,
    ) -> Result<Self, Error> {
        match prepare(&mut session, None, guard, offset) {
            Ok((door, before)) => Ok(Self { session, door, offset, before }),
            Err(error) => Err(give_up(session, error)),
        }
    }

    /// Nothing is sent.
    pub(crate) fn leave(mut self) {
        // The offset must not be there for the next transfer.
        if self.offset == 0 || self.session.command("REST 0").is_ok() {
            self.session.give_back();
        }
    }

    /// The whole transfer: Ok once the server confirmed it. `is_sent`: every byte has left.
    pub(crate) fn send(self, store: &Store, is_sent: &mut bool) -> Result<(Session, Ended), Error> {
        let behind = store.travelling(self.session.server(), self.before.as_ref());
        let server = self.session.server_handle();
        let mut lane = self.begin(&store.command(), behind)?;
        let sent = lane.send(store.file, store.range.clone(), store.is_cancelled);
        let ended = sent.and_then(|()| {
            *is_sent = true;
            lane.end()
        });
        if store.placement == Placement::Append {
            match &ended {
                Ok(_) => server.learn(Habit::Appe, Verdict::Yes),
                Err(Error::Refused(reply)) if reply.is_unknown_command() => {
                    server.learn(Habit::Appe, Verdict::No);
                }
                Err(_) => {}
            }
        }
        match ended {
            Ok(ended) => Ok((lane.into_session(), ended)),
            Err(error) => Err(lane.give_up(error)),
        }
    }

    /// Sends the command and what travels with it; the data connection is made meanwhile.
    pub(crate) fn begin(self, line: &str, behind: Vec<Ask>) -> Result<Lane, Error> {
        let Self { mut session, door, offset, .. } = self;
        let begun = (|| {
            let way = match door {
                Door::Passive(reply) => session.dial_reply(&reply)?,
                Door::Open(way) => way,
            };
            session.send_lines(
                std::iter::once(line).chain(behind.iter().map(|ask| ask.line.as_str())),
            )?;
            Ok(way)
        })();
        let way = match begun {
            Ok(way) => way,
            Err(error) => return Err(give_up(session, error)),
        };
        Ok(Lane { session, line: Some(Data::Waiting(way)), behind, offset, has_started: false })
    }
}

/// The data connection of a transfer.
enum Data {
    Waiting(Way),
    Open(DataSocket),
}

/// An upload under way, and the questions that travel with it.
pub(crate) struct Lane {
    session: Session,
    line: Option<Data>,
    behind: Vec<Ask>,
    offset: u64,
    /// The 150 was read.
    has_started: bool,
}

impl Lane {
    /// Waits for the server's 150.
    pub(crate) fn wait_for_start(&mut self) -> Result<(), Error> {
        if self.has_started {
            return Ok(());
        }
        let reply = self.session.read_reply()?;
        if (100..200).contains(&reply.code) {
            self.has_started = true;
            return Ok(());
        }
        if reply.code == 421 {
            return Err(Error::Closing(reply));
        }
        if reply.code < 400 {
            return Err(out_of_step("a reply to another command"));
        }
        // The others in its segment are answered all the same.
        let behind = std::mem::take(&mut self.behind);
        read_behind(&mut self.session, &behind)?;
        if self.offset > 0 {
            self.session.command("REST 0")?;
        }
        Err(self.session.sort_refusal(Error::from_reply(reply)))
    }

    /// The data connection, for the first bytes before the 150 where that is safe.
    fn socket(&mut self) -> Result<&mut DataSocket, Error> {
        if let Some(Data::Waiting(way)) = &self.line
            && !self.session.may_send_early(way)
        {
            self.wait_for_start()?;
        }
        if let Some(Data::Waiting(way)) = self.line.take_if(|data| matches!(data, Data::Waiting(_)))
        {
            self.line = Some(Data::Open(self.session.data_socket(way)?));
        }
        match &mut self.line {
            Some(Data::Open(socket)) => Ok(socket),
            _ => Err(Error::Broken(std::io::ErrorKind::NotConnected.into())),
        }
    }

    /// Sends the bytes of `range`. An error is the server's reason where it gave one (452, 552):
    /// that is worth more than “broken pipe”.
    pub(crate) fn send(
        &mut self,
        file: &File,
        range: Range<u64>,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<(), Error> {
        self.send_blocks(file, range, is_cancelled).map_err(|error| {
            if !error.lost_session() || self.line.is_none() {
                return error;
            }
            self.reset();
            match self.end() {
                Err(Error::Refused(reply)) => Error::Refused(reply),
                _ => error,
            }
        })
    }

    fn send_blocks(
        &mut self,
        file: &File,
        range: Range<u64>,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<(), Error> {
        // Also without a byte to be sent: the server would never see a connection that is closed
        // while it is being made. TLS has waited.
        if let Some(socket) = self.socket()?.plain() {
            let made = await_handshake(socket);
            made.map_err(|error| Error::from_io(error, "a data connection"))?;
        }
        let mut flow = Flow::new(self.session.server_handle(), Direction::Up);
        let mut at = range.start;
        while at < range.end {
            if is_cancelled() {
                return Err(Error::Cancelled);
            }
            let most = if self.has_started { BLOCK } else { EARLY };
            let part = usize::try_from((range.end - at).min(most)).unwrap_or(usize::MAX);
            let asked = Instant::now();
            let sent = send_part(self.socket()?, file, at, part)?;
            at += sent;
            self.session.note_progress();
            flow.note(sent, asked, self.socket()?.tcp());
            if at < range.end {
                self.wait_for_start()?;
            }
        }
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(Data::Open(socket)) = self.line.take() {
            socket.reset();
        }
    }

    /// Everything was sent: closes the data connection and reads what the server says to all of
    /// it. Ok: the upload is confirmed.
    pub(crate) fn end(&mut self) -> Result<Ended, Error> {
        self.line = None;
        self.wait_for_start()?;
        let behind = std::mem::take(&mut self.behind);
        loop {
            let reply = self.session.read_reply()?;
            match reply.code {
                // See `Session::end_of_transfer`.
                100..200 if reply.text().contains("(measured here)") => {
                    return Err(Error::Refused(reply));
                }
                100..200 => {}
                421 => return Err(Error::Closing(reply)),
                200..400 if behind.is_empty() || ends_transfer(&reply) => {
                    if reply.code >= 300 {
                        return Err(out_of_step("a reply to another command"));
                    }
                    return Ok(match read_behind(&mut self.session, &behind) {
                        Ok(replies) => Ended { asks: behind, replies, is_in_step: true },
                        Err(error) => {
                            log::info!("behind an upload: {error}");
                            Ended { asks: Vec::new(), replies: Vec::new(), is_in_step: false }
                        }
                    });
                }
                200..400 => return self.sort_early(reply, &behind),
                _ => {
                    read_behind(&mut self.session, &behind)?;
                    return Err(self.session.sort_refusal(Error::from_reply(reply)));
                }
            }
        }
    }

    /// The server answered a question before the transfer was over. That proves nothing about the
    /// file, so that the answers are thrown away.
    fn sort_early(&mut self, first: Reply, behind: &[Ask]) -> Result<Ended, Error> {
        self.session.server().learn(Habit::Queues, Verdict::No);
        let mut waiting = behind.iter();
        let mut end = None;
        let mut reply = first;
        loop {
            if end.is_none() && (ends_transfer(&reply) || waiting.len() == 0) {
                end = Some(reply);
            } else if let Some(ask) = waiting.next()
                && ask.fits(&reply)
                // A refusal may be that of the transfer.
                && (end.is_some() || reply.code < 400)
            {
            } else {
                return Err(out_of_step("a reply to another command"));
            }
            match end.take() {
                Some(reply) if waiting.len() == 0 => {
                    return match reply.code {
                        200..300 => {
                            Ok(Ended { asks: Vec::new(), replies: Vec::new(), is_in_step: true })
                        }
                        _ => Err(Error::from_reply(reply)),
                    };
                }
                unfinished => end = unfinished,
            }
            reply = self.session.read_reply()?;
            if reply.code < 200 {
                return Err(out_of_step("a reply to another command"));
            }
        }
    }

    /// After an error: the session returns to the pool if it is in step.
    pub(crate) fn give_up(mut self, error: Error) -> Error {
        if matches!(error, Error::Cancelled) {
            self.abort();
            return error;
        }
        self.reset();
        let Self { session, .. } = self;
        give_up(session, error)
    }

    /// What was sent is not wanted. Waits until the server has said so too: it makes the file at any
    /// time before, and nobody could remove it for good.
    pub(crate) fn abort(mut self) {
        self.reset();
        self.session.owe_behind(self.behind.len());
        if self.session.settle().is_ok() {
            self.session.give_back();
        }
    }

    pub(crate) fn into_session(self) -> Session {
        self.session
    }
}

/// What came back at the end of an upload that the server confirmed.
pub(crate) struct Ended {
    /// The questions that were answered, in order.
    pub(super) asks: Vec<Ask>,
    pub(super) replies: Vec<Reply>,
    /// May the session be used on?
    pub(crate) is_in_step: bool,
}

impl Ended {
    /// What the server has of `path`, of which nothing else was asked.
    pub(crate) fn look(self, session: &mut Session, path: &RemotePath) -> Result<Look, Error> {
        if self.asks.is_empty() {
            return look(session, path);
        }
        Ok(looked(session.server(), &self.asks, &self.replies))
    }

    pub(crate) fn unanswered() -> Self {
        Self { asks: Vec::new(), replies: Vec::new(), is_in_step: false }
    }
}

fn give_up(session: Session, error: Error) -> Error {
    if error.leaves_session_usable() {
        session.give_back();
    } else {
        session.shut();
    }
    error
}
