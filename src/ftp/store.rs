//! An upload with everything that belongs to it: the look before, the bytes, the questions and
//! attributes behind them, and the rename.
//!
//! A new small file costs two segments of commands, one that is renamed into place three: by the
//! sum three and four round trips; vsftpd 3.0.3 and ProFTPD 1.3.8 took one more at 40 ms. What
//! travels together is in `lane`. Nothing is renamed before the size on the server was found right.

use std::fs::File;
use std::ops::Range;
use std::time::Instant;

use super::error::{Error, Reply};
use super::flow::{Direction, Flow};
use super::lane::{Ask, Kind, Look, converse, ends_transfer, look, looked, may_share, read_behind};
use super::listing::{Precision, Timestamp};
use super::network::await_handshake;
use super::open::{Door, prepare};
use super::path::RemotePath;
use super::server::{Habit, Server, Verdict};
use super::session::{Session, Way, out_of_step};
use super::stream::DataSocket;
use super::transfer::send_part;

/// The bytes that go out before the server said that it wants them: one that refuses reads none,
/// and so much always fits into the buffers of a socket (tcp_wmem begins at 16 KiB and grows; the
/// peer takes 64 KiB).
const EARLY: u64 = 64 * 1024;

/// One block between two looks at whether it is still wanted.
const BLOCK: u64 = 256 * 1024;

/// What an upload does to what is there under its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// STOR.
    Whole,
    /// APPE.
    Append,
    /// REST and STOR.
    At(u64),
}

/// The name that is looked at before an upload, and whether to go on with what is there.
pub type Guard<'a> = (&'a RemotePath, &'a dyn Fn(&Look) -> bool);

/// What is asked of one upload.
#[derive(Clone)]
pub struct Store<'a> {
    pub path: &'a RemotePath,
    pub file: &'a File,
    /// The bytes of the local file that are sent.
    pub range: Range<u64>,
    pub placement: Placement,
    /// Asked together with the data connection; false: nothing is sent.
    pub guard: Option<Guard<'a>>,
    /// Set behind the data, on `path`.
    pub mode: Option<u16>,
    /// Likewise, in seconds since 1970.
    pub mtime: Option<i64>,
    /// Where the file goes once its size was found right. `path` is then a name of our own, where
    /// nothing was before.
    pub rename_to: Option<&'a RemotePath>,
    /// Looked at between blocks; true ends the upload with [`Error::Cancelled`].
    pub is_cancelled: &'a dyn Fn() -> bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreOutcome {
    Done(Stored),
    /// The guard said no to this.
    Guarded(Look),
}

/// What the server has of an upload that it confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// `None` where it tells no sizes.
    pub size: Option<u64>,
    /// The time it gave, or the one that was set.
    pub mtime: Option<Timestamp>,
    pub mode_set: bool,
    pub mtime_set: bool,
    pub renamed: Renamed,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Renamed {
    NotAsked,
    Done,
    /// The upload is complete under its own name.
    Refused(Reply),
}

impl Stored {
    pub(crate) fn of(look: Look) -> Self {
        let (size, mtime) = match look {
            Look::There(stat) => (stat.size, stat.mtime),
            Look::Absent | Look::Unknown => (None, None),
        };
        Self { size, mtime, mode_set: false, mtime_set: false, renamed: Renamed::NotAsked }
    }
}

impl std::fmt::Debug for Store<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} of {:?} to {}", self.placement, self.range, self.path)
    }
}

impl Store<'_> {
    fn length(&self) -> u64 {
        self.range.end.saturating_sub(self.range.start)
    }

    pub(crate) fn offset(&self) -> u64 {
        match self.placement {
            Placement::At(offset) => offset,
            Placement::Whole | Placement::Append => 0,
        }
    }

    fn command(&self) -> String {
        let verb = if self.placement == Placement::Append { "APPE" } else { "STOR" };
        format!("{verb} {}", self.path.to_wire())
    }

    /// Was nothing there under the name? Then all that is there is ours.
    pub(crate) fn is_new(&self, before: Option<&Look>) -> bool {
        let guards_itself = self.guard.is_some_and(|(path, _)| path == self.path);
        self.rename_to.is_some() || (guards_itself && before == Some(&Look::Absent))
    }

    /// Is this the size that the file must have now?
    fn check(&self, has: Option<u64>, before: Option<&Look>) -> Result<(), Error> {
        let Some(has) = has else { return Ok(()) };
        let guards_itself = self.guard.is_some_and(|(path, _)| path == self.path);
        let old = match before {
            Some(Look::There(stat)) if guards_itself => stat.size,
            Some(Look::Absent) if guards_itself => Some(0),
            _ => None,
        };
        let end = self.offset().saturating_add(self.length());
        let (wanted, is_right) = match (self.placement, old) {
            (Placement::Whole, _) => (end, has == end),
            (Placement::Append, Some(old)) => (old + end, has == old + end),
            (Placement::At(_), Some(old)) => (old.max(end), has == old.max(end)),
            (_, None) => (end, has >= end),
        };
        if is_right { Ok(()) } else { Err(Error::WrongSize { has, wanted }) }
    }

    /// What is said about the file behind its bytes. The rename's first half only where nothing
    /// comes between it and the second.
    fn plan(&self, server: &Server) -> Vec<Ask> {
        let mut asks = Ask::look(server, self.path);
        let mode = self.mode.map(|mode| Ask::mode(server, self.path, mode));
        // After the bits, as some servers count a change of bits as a change of the file.
        let time = self.mtime.map(|seconds| Ask::time(server, self.path, seconds));
        let wanted = mode.iter().chain(&time).count();
        let known: Vec<Ask> = mode.into_iter().chain(time).flatten().collect();
        let is_all_known = known.len() == wanted;
        asks.extend(known);
        if self.rename_to.is_some() && is_all_known {
            asks.push(Ask::rename_from(self.path));
        }
        asks
    }

    /// As much of the plan as may travel with STOR: if that is refused, the attributes must not
    /// become those of what is there.
    fn travelling(&self, server: &Server, before: Option<&Look>) -> Vec<Ask> {
        if !may_travel(server) {
            return Vec::new();
        }
        let mut asks = self.plan(server);
        if !self.is_new(before) {
            asks.retain(|ask| matches!(ask.kind, Kind::Mlst | Kind::Size | Kind::Mdtm));
        }
        asks
    }
}

/// May questions travel with a transfer?
pub(crate) fn may_travel(server: &Server) -> bool {
    may_share(server) && server.may(Habit::Queues)
}

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

    /// What was sent is not wanted. The session returns to the pool, owing the replies.
    pub(crate) fn abort(mut self) {
        let has_opened = matches!(self.line, Some(Data::Open(_)));
        self.reset();
        if has_opened {
            self.session.owe_behind(self.behind.len());
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
    asks: Vec<Ask>,
    replies: Vec<Reply>,
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

/// How far the rename has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Before,
    /// RNTO was sent: a lost reply may hide a success.
    Renaming,
}

/// What is still to be done about an upload that the server confirmed, on a session in step: the
/// size, what was not yet set, the rename.
pub(crate) fn complete(
    session: &mut Session,
    store: &Store,
    before: Option<&Look>,
    ended: Ended,
    step: &std::cell::Cell<Step>,
) -> Result<Stored, Error> {
    let server = session.server_handle();
    let Ended { mut asks, mut replies, .. } = ended;
    if asks.is_empty() {
        asks = store.plan(&server);
        replies = converse(session, &asks)?;
    }
    let look = looked(&server, &asks, &replies);
    let mut stored = Stored::of(look);
    store.check(stored.size, before)?;
    let answer = |kind: Kind| {
        asks.iter().zip(&replies).find(|(ask, _)| ask.kind == kind).map(|(_, reply)| reply)
    };
    let can_rename = set_attributes(session, store, &mut stored, answer)?;
    let Some(to) = store.rename_to else { return Ok(stored) };
    let from = answer(Kind::RenameFrom).filter(|_| can_rename);
    let renamed = match from.map(|reply| reply.code) {
        Some(350) => {
            step.set(Step::Renaming);
            session.rename_to(to)
        }
        _ => {
            step.set(Step::Renaming);
            session.rename(store.path, to)
        }
    };
    stored.renamed = match renamed {
        Ok(()) => Renamed::Done,
        Err(Error::Refused(reply)) => Renamed::Refused(reply),
        Err(error) => return Err(error),
    };
    Ok(stored)
}

/// Sets what did not travel. The content is safe, so that a refusal is only noted. True if nothing
/// was said on the wire.
fn set_attributes<'a>(
    session: &mut Session,
    store: &Store,
    stored: &mut Stored,
    answer: impl Fn(Kind) -> Option<&'a Reply>,
) -> Result<bool, Error> {
    let mut is_silent = true;
    if let Some(mode) = store.mode {
        stored.mode_set = match answer(Kind::Mode) {
            Some(reply) => reply.is_success(),
            None => {
                is_silent = false;
                allowed(session.set_mode(store.path, mode))?
            }
        };
    }
    if let Some(seconds) = store.mtime {
        stored.mtime_set = match answer(Kind::Time) {
            Some(reply) => reply.is_success(),
            None => {
                is_silent = false;
                allowed(session.set_modified(store.path, seconds))?
            }
        };
        if stored.mtime_set {
            stored.mtime = Some(Timestamp { seconds, nanos: 0, precision: Precision::Second });
        }
    }
    Ok(is_silent)
}

fn allowed(result: Result<bool, Error>) -> Result<bool, Error> {
    match result {
        Err(Error::Refused(_)) => Ok(false),
        result => result,
    }
}
