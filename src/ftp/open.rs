//! How a transfer that brings bytes is opened, and what is said at its end.
//!
//! The question for a data connection and the offset travel in one segment; a look at the file
//! travels with the transfer that it is for. Where the server leaves commands alone until a transfer
//! is over, the question for the *next* data connection travels with this transfer: its answer, a
//! [`Door`], is at hand with the 226, and the next transfer costs two round trips instead of three.
//!
//! Some servers say 226 only when the client has closed the data connection too (ProFTPD 1.3.8):
//! one round trip that the next transfer would wait for. As a download needs nothing from us, our end
//! of the connection of a short one may be closed as soon as there is one ([`Habit::EarlyEnd`]).
//!
//! What the servers do with `RETR` and `EPSV` in one segment: vsftpd 3.0.3, ProFTPD 1.3.8 and
//! Pure-FTPd 1.0.50 answer 150, 226, 229. pyftpdlib 2.0.1 carries out the EPSV at once and closes
//! the data connection for it. So a harmless NOOP is sent first, by work that nobody waits for:
//! only a server that answers it after the 226 is ever sent the other ([`Habit::Queues`]).

use std::ops::Range;
use std::time::{Duration, Instant};

use super::error::{Error, Reply};
use super::lane::{Ask, Kind, Look, converse, ends_transfer, looked, may_share, read_behind};
use super::path::RemotePath;
use super::server::{Habit, Verdict};
use super::session::{Session, Way, out_of_step};
use super::stream::DataSocket;

/// How long an address that was asked for ahead is believed: servers, and what translates addresses
/// on the way, keep a port open for a minute or more, but nobody gains by an old one.
const DOOR_LIFE: Duration = Duration::from_secs(5);

/// Where a data connection will come from.
pub(crate) enum Door {
    Passive(Reply),
    Open(Way),
}

/// The answer to a question that travelled with the transfer before.
pub(crate) struct Stock {
    reply: Reply,
    since: Instant,
}

/// Shall the question for the next data connection travel with a transfer?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ahead {
    No,
    /// Where the server is known to leave it alone.
    Known,
    /// And where nothing is known, it is found out.
    Try,
    /// The same for a transfer that is soon over: our end of it is closed before it begins.
    Short,
}

/// A transfer that has begun.
pub(crate) struct Begun {
    pub(crate) data: DataSocket,
    /// What travelled with it.
    pub(crate) next: Option<Ask>,
    /// Our end is closed.
    pub(crate) is_half_closed: bool,
}

/// What has to hold of the file as it is now.
pub(crate) type Check<'a> = &'a dyn Fn(&Look) -> bool;

/// What became of a transfer that was to be opened.
pub(crate) enum Opening {
    Data(DataSocket, Look),
    /// The check said no to this; nothing comes.
    Other(Look),
}

/// Asks for a data connection, a look at `guard`, and the offset: in one segment.
pub(crate) fn prepare(
    session: &mut Session,
    stock: Option<Reply>,
    guard: Option<&RemotePath>,
    offset: u64,
) -> Result<(Door, Option<Look>), Error> {
    let passive = if stock.is_some() { None } else { session.passive_command() };
    let open = match (&stock, passive) {
        (None, None) => Some(session.way()?),
        _ => None,
    };
    let server = session.server_handle();
    let look = guard.map(|path| Ask::look(&server, path)).unwrap_or_default();
    let mut asks: Vec<Ask> =
        passive.map(|line| Ask::new(Kind::Passive, line)).into_iter().collect();
    let looks = asks.len()..asks.len() + look.len();
    asks.extend(look);
    if offset > 0 {
        asks.push(Ask::new(Kind::Rest, format!("REST {offset}")));
    }
    let mut replies = converse(session, &asks)?;
    let before = guard.map(|_| {
        let part = |range: Range<usize>| (asks.get(range.clone()), replies.get(range));
        match part(looks) {
            (Some(asks), Some(replies)) => looked(&server, asks, replies),
            _ => Look::Unknown,
        }
    });
    let refusal = asks.iter().zip(&replies).find(|(ask, reply)| match ask.kind {
        Kind::Passive => !reply.is_success(),
        Kind::Rest => reply.code != 350,
        _ => false,
    });
    if let Some((ask, reply)) = refusal {
        let (kind, reply) = (ask.kind, reply.clone());
        if kind == Kind::Rest && reply.is_unknown_command() {
            server.learn(Habit::Rest, Verdict::No);
        }
        if kind == Kind::Passive && offset > 0 {
            session.command("REST 0")?;
        }
        if kind == Kind::Passive && reply.code >= 500 && server.may(Habit::Epsv) {
            server.learn(Habit::Epsv, Verdict::No);
            return prepare(session, None, guard, offset);
        }
        return Err(Error::from_reply(reply));
    }
    let door = match (stock, open) {
        (Some(reply), _) => Door::Passive(reply),
        (None, Some(way)) => Door::Open(way),
        (None, None) => Door::Passive(replies.swap_remove(0)),
    };
    Ok((door, before))
}

pub(crate) fn retrieve(path: &RemotePath) -> String {
    format!("RETR {}", path.to_wire())
}

impl Stock {
    fn new(reply: Reply) -> Self {
        Self { reply, since: Instant::now() }
    }

    fn fresh(self) -> Option<Reply> {
        (self.since.elapsed() < DOOR_LIFE).then_some(self.reply)
    }
}

impl Session {
    /// Opens the data connection for `command` and sends it, from `offset` on.
    pub(crate) fn open_data(
        &mut self,
        command: &str,
        offset: u64,
        ahead: Ahead,
    ) -> Result<Begun, Error> {
        let stock = self.take_stock()?;
        let (door, _) = prepare(self, stock, None, offset)?;
        self.begin_data(door, command, offset, ahead)
    }

    /// The same for a file that must be as `check` wants it. The look and the transfer are in one
    /// segment, so that nobody can replace the file in between but within the server's own
    /// microseconds.
    pub(crate) fn open_checked(
        &mut self,
        path: &RemotePath,
        offset: u64,
        check: Check,
    ) -> Result<Opening, Error> {
        let stock = self.take_stock()?;
        if !may_share(self.server()) {
            return self.open_checked_slowly(path, offset, check);
        }
        let (door, _) = prepare(self, stock, None, 0)?;
        let way = self.way_through(door)?;
        let mut asks = Ask::look(self.server(), path);
        if offset > 0 {
            asks.push(Ask::new(Kind::Rest, format!("REST {offset}")));
        }
        let command = retrieve(path);
        let lines = asks.iter().map(|ask| ask.line.as_str()).chain(std::iter::once(&*command));
        self.send_lines(lines)?;
        let replies = read_behind(self, &asks)?;
        let reply = self.read_reply()?;
        let look = looked(self.server(), &asks, &replies);
        let refused = asks.iter().zip(replies).find_map(|(ask, reply)| {
            (ask.kind == Kind::Rest && reply.code != 350).then_some(reply)
        });
        let is_good = check(&look) && refused.is_none();
        match reply.code {
            100..200 if is_good => return Ok(Opening::Data(self.data_socket(way)?, look)),
            100..200 => {
                self.data_socket(way)?.reset();
                self.owe(false, None);
            }
            421 => return Err(Error::Closing(reply)),
            _ => {
                self.forget_offset(offset)?;
                if is_good {
                    return Err(self.sort_refusal(Error::from_reply(reply)));
                }
            }
        }
        let Some(reply) = refused else { return Ok(Opening::Other(look)) };
        if reply.is_unknown_command() {
            self.server().learn(Habit::Rest, Verdict::No);
        }
        Err(Error::from_reply(reply))
    }

    /// One by one.
    fn open_checked_slowly(
        &mut self,
        path: &RemotePath,
        offset: u64,
        check: Check,
    ) -> Result<Opening, Error> {
        let (door, look) = prepare(self, None, Some(path), offset)?;
        let look = look.unwrap_or(Look::Unknown);
        if !check(&look) {
            self.forget_offset(offset)?;
            return Ok(Opening::Other(look));
        }
        let begun = self.begin_data(door, &retrieve(path), offset, Ahead::No)?;
        Ok(Opening::Data(begun.data, look))
    }

    fn way_through(&mut self, door: Door) -> Result<Way, Error> {
        match door {
            Door::Passive(reply) => self.dial_reply(&reply),
            Door::Open(way) => Ok(way),
        }
    }

    fn begin_data(
        &mut self,
        door: Door,
        command: &str,
        offset: u64,
        ahead: Ahead,
    ) -> Result<Begun, Error> {
        let way = self.way_through(door)?;
        let next = self.next_ask(ahead);
        self.send_lines(std::iter::once(command).chain(next.iter().map(|ask| ask.line.as_str())))?;
        let is_half_closed =
            ahead == Ahead::Short && self.may_end_early(next.as_ref(), &way) && way.end_early();
        let reply = self.read_reply()?;
        if (100..200).contains(&reply.code) {
            return Ok(Begun { data: self.data_socket(way)?, next, is_half_closed });
        }
        if reply.code == 421 {
            return Err(Error::Closing(reply));
        }
        // What servers say of a data connection that they find closed (RFC 959 §4.2.1).
        if is_half_closed && matches!(reply.code, 425 | 426) {
            self.server().learn(Habit::EarlyEnd, Verdict::No);
        }
        if let Some(next) = next {
            self.read_next(next);
        }
        self.forget_offset(offset)?;
        Err(self.sort_refusal(Error::from_reply(reply)))
    }

    /// An offset must not be there for the next transfer, which may be an upload.
    fn forget_offset(&mut self, offset: u64) -> Result<(), Error> {
        if offset > 0 {
            self.command("REST 0")?;
        }
        Ok(())
    }

    /// What travels with a transfer that is about to begin.
    fn next_ask(&mut self, ahead: Ahead) -> Option<Ask> {
        let passive = self.passive_command().filter(|_| may_share(self.server()))?;
        match (ahead, self.server().verdict(Habit::Queues)) {
            (Ahead::No, _) | (_, Verdict::No) | (Ahead::Known, Verdict::Unknown) => None,
            (_, Verdict::Yes) => Some(Ask::new(Kind::Passive, passive)),
            (Ahead::Try | Ahead::Short, Verdict::Unknown) => {
                self.probe = Some(self.server_handle().probe()?);
                Some(Ask::new(Kind::Nothing, "NOOP"))
            }
        }
    }

    /// Nothing is gained but by whoever asked for the next address, and TLS has its own end to say.
    fn may_end_early(&self, next: Option<&Ask>, way: &Way) -> bool {
        next.is_some_and(|next| next.kind == Kind::Passive)
            && self.server().may(Habit::EarlyEnd)
            && self.may_send_early(way)
    }

    /// What is said at the end of a transfer, after the data connection was closed; then the answer
    /// to what travelled with it. Ok: the server says that it was all.
    pub(crate) fn end_with(&mut self, next: Option<Ask>) -> Result<(), Error> {
        let Some(next) = next else { return self.end_of_transfer() };
        // What is learnt here is known before another session may ask.
        let _probe = self.probe.take();
        let end = self.end_reply();
        match &end {
            // It was answered while the transfer went on.
            Ok(reply) if !ends_transfer(reply) => {
                self.server().learn(Habit::Queues, Verdict::No);
                match next.kind {
                    Kind::Nothing if next.fits(reply) => self.end_of_transfer(),
                    _ => Err(out_of_step("a reply before the end of a transfer")),
                }
            }
            Ok(_) | Err(Error::Refused(_)) => {
                self.read_next(next);
                end.map(drop)
            }
            Err(_) => end.map(drop),
        }
    }

    /// The answer to what travelled with a transfer that is over. Whatever it is, it changes
    /// nothing about that: where it cannot be followed, the session ends.
    fn read_next(&mut self, next: Ask) {
        let kind = next.kind;
        match read_behind(self, &[next]) {
            Ok(mut replies) => match (kind, replies.pop()) {
                (Kind::Passive, Some(reply)) if reply.is_success() => {
                    self.stock = Some(Stock::new(reply));
                }
                (Kind::Nothing, Some(_)) if self.server().may(Habit::Queues) => {
                    self.server().learn(Habit::Queues, Verdict::Yes);
                }
                _ => {}
            },
            Err(error) => {
                log::info!("behind a transfer: {error}");
                self.shut();
            }
        }
    }

    /// The address that was asked for with the transfer before, whose end is read for it.
    fn take_stock(&mut self) -> Result<Option<Reply>, Error> {
        if !self.can_overlap() {
            self.settle()?;
        }
        Ok(self.stock.take().and_then(Stock::fresh))
    }
}
