//! Commands that travel together.
//!
//! Plans which commands share a segment, and matches the replies to them. Whatever else the server
//! sends ends the session: a reply is never taken for that of another command. One place decides
//! that a server does not follow ([`Habit::Pipelines`], [`Habit::Queues`]); from then on it is
//! asked one by one.
//!
//! What the servers do with commands in the segment of a STOR, and in one of their own while the
//! bytes are on their way:
//! - vsftpd 3.0.3 reads neither before the transfer is over, and answers in order.
//! - ProFTPD 1.3.8 answers those of the STOR's segment in order; of a later one it carries out the
//!   first at once (`250-…size=0` before the 226).
//! - Pure-FTPd 1.0.50 answers those of the STOR's segment in order; a later one it reads away with
//!   one `500 Unknown command`. So nothing is ever sent while bytes are on their way.
//! - pyftpdlib 2.0.1 carries out both at once, before the 226.

use std::time::Duration;

use super::error::{Error, Reply};
use super::listing::Timestamp;
use super::path::RemotePath;
use super::server::{Habit, Server, Verdict};
use super::session::{Session, Stat, mlst_entry, out_of_step, reply_argument};

/// How long the reply to the second command of a segment may take the first time: many round trips,
/// and short for somebody who waits for a server that threw the command away.
const FIRST_ANSWER: Duration = Duration::from_secs(5);

/// What the server has of one name just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// 550 to every question. A server says that also of what it does not let us see.
    Absent,
    There(Stat),
    /// It does not tell.
    Unknown,
}

/// One command and the replies that can be its own.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) line: String,
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Passive,
    Rest,
    Mlst,
    Size,
    Mdtm,
    Mode,
    Time,
    RenameFrom,
    /// NOOP, OPTS, TYPE: nothing is told.
    Nothing,
}

impl Ask {
    pub(crate) fn new(kind: Kind, line: impl Into<String>) -> Self {
        Self { line: line.into(), kind }
    }

    fn of(kind: Kind, verb: &str, path: &RemotePath) -> Self {
        Self::new(kind, format!("{verb} {}", path.to_wire()))
    }

    /// The first half of a rename.
    pub(crate) fn rename_from(path: &RemotePath) -> Self {
        Self::of(Kind::RenameFrom, "RNFR", path)
    }

    /// The questions for size and time: MLST, else SIZE and MDTM.
    pub(crate) fn look(server: &Server, path: &RemotePath) -> Vec<Self> {
        if server.verdict(Habit::Mlsd) == Verdict::Yes {
            return vec![Self::of(Kind::Mlst, "MLST", path)];
        }
        let ways = [(Habit::Size, Kind::Size, "SIZE"), (Habit::Mdtm, Kind::Mdtm, "MDTM")];
        let may = ways.into_iter().filter(|(habit, ..)| server.may(*habit));
        may.map(|(_, kind, verb)| Self::of(kind, verb, path)).collect()
    }

    /// Permission bits, where it is known how they are set.
    pub(crate) fn mode(server: &Server, path: &RemotePath, mode: u16) -> Option<Self> {
        let line = || format!("SITE CHMOD {mode:03o} {}", path.to_wire());
        let known = server.verdict(Habit::SiteChmod) == Verdict::Yes;
        known.then(|| Self::new(Kind::Mode, line()))
    }

    /// The time, where it is known how it is set.
    pub(crate) fn time(server: &Server, path: &RemotePath, seconds: i64) -> Option<Self> {
        let verb = [(Habit::Mfmt, "MFMT"), (Habit::MdtmSet, "MDTM")];
        let (_, verb) =
            verb.into_iter().find(|(habit, _)| server.verdict(*habit) == Verdict::Yes)?;
        let time = Timestamp::format_mdtm(seconds);
        Some(Self::new(Kind::Time, format!("{verb} {time} {}", path.to_wire())))
    }

    /// Can this be the reply to it?
    pub(crate) fn fits(&self, reply: &Reply) -> bool {
        if (400..600).contains(&reply.code) {
            return true;
        }
        let is_done = (200..300).contains(&reply.code) && !ends_transfer_for_sure(reply);
        match self.kind {
            Kind::Passive => matches!(reply.code, 227 | 229),
            Kind::Rest | Kind::RenameFrom => reply.code == 350,
            Kind::Mlst => is_done && reply.body.iter().filter(|byte| **byte == b'\n').count() > 1,
            Kind::Size | Kind::Mdtm => reply.code == 213,
            Kind::Mode => is_done && reply.code != 213 && mlst_entry(reply).is_none(),
            Kind::Nothing => is_done && !matches!(reply.code, 227 | 229),
            Kind::Time => is_done && mlst_entry(reply).is_none(),
        }
    }
}

fn ends_transfer_for_sure(reply: &Reply) -> bool {
    reply.code == 226
}

/// Can this be the reply at the end of a transfer, and not that of a question?
pub(crate) fn ends_transfer(reply: &Reply) -> bool {
    match reply.code {
        226 => true,
        // RFC 959 §5.4 allows it.
        250 => mlst_entry(reply).is_none(),
        _ => false,
    }
}

/// May commands share a segment?
pub(crate) fn may_share(server: &Server) -> bool {
    server.may(Habit::Pipelines)
}

/// Asks all of `asks`, together where the server follows, and returns the replies in order.
pub(crate) fn converse(session: &mut Session, asks: &[Ask]) -> Result<Vec<Reply>, Error> {
    let (Some((first, rest)), true) = (asks.split_first(), may_share(session.server())) else {
        return asks.iter().map(|ask| one(session, ask)).collect();
    };
    if session.can_overlap() {
        // The reply that is owed comes first, and is read with them.
        session.send_lines(asks.iter().map(|ask| ask.line.as_str()))?;
        return read_behind(session, asks);
    }
    if rest.is_empty() {
        return Ok(vec![one(session, first)?]);
    }
    session.send_lines(asks.iter().map(|ask| ask.line.as_str()))?;
    let reply = session.read_reply()?;
    let mut replies = vec![checked(first, reply)?];
    replies.extend(read_behind(session, rest)?);
    Ok(replies)
}

fn one(session: &mut Session, ask: &Ask) -> Result<Reply, Error> {
    let reply = session.command(&ask.line)?;
    checked(ask, reply)
}

fn checked(ask: &Ask, reply: Reply) -> Result<Reply, Error> {
    match reply.code {
        421 => Err(Error::Closing(reply)),
        _ if ask.fits(&reply) => Ok(reply),
        _ => Err(out_of_step("a reply to another command")),
    }
}

/// Reads the replies to commands that travelled behind another one, whose reply was read.
pub(crate) fn read_behind(session: &mut Session, asks: &[Ask]) -> Result<Vec<Reply>, Error> {
    if asks.is_empty() {
        return Ok(Vec::new());
    }
    let is_new = session.server().verdict(Habit::Pipelines) == Verdict::Unknown;
    let read = |session: &mut Session| {
        asks.iter().map(|ask| checked(ask, session.read_reply()?)).collect()
    };
    let replies: Result<Vec<Reply>, Error> =
        if is_new { session.with_timeout(FIRST_ANSWER, read)? } else { read(session) };
    match replies {
        Ok(replies) => {
            session.server().learn(Habit::Pipelines, Verdict::Yes);
            Ok(replies)
        }
        Err(error) => Err(distrust(session.server(), error, is_new)),
    }
}

/// The server did not follow a segment of several commands: it is not sent another one. A lost
/// connection says nothing about that, and neither does a time-out of a server that has followed
/// before.
pub(crate) fn distrust(server: &Server, error: Error, is_new: bool) -> Error {
    let is_astray = match &error {
        Error::Broken(cause) => cause.kind() == std::io::ErrorKind::InvalidData,
        Error::TimedOut(_) => is_new,
        _ => false,
    };
    if !is_astray {
        return error;
    }
    server.learn(Habit::Pipelines, Verdict::No);
    log::warn!("{error}: commands are sent one by one from now on");
    out_of_step("the server lost commands that were sent together")
}

/// What the replies to [`Ask::look`] say.
pub(crate) fn looked(server: &Server, asks: &[Ask], replies: &[Reply]) -> Look {
    let mut stat = Stat { kind: None, size: None, mtime: None };
    let (mut is_known, mut refusals, mut questions) = (false, 0, 0);
    for (ask, reply) in asks.iter().zip(replies) {
        let habit = match ask.kind {
            Kind::Mlst => Habit::Mlsd,
            Kind::Size => Habit::Size,
            Kind::Mdtm => Habit::Mdtm,
            _ => continue,
        };
        if reply.is_unknown_command() {
            // A server that has MLSD may be without MLST.
            if habit != Habit::Mlsd {
                server.learn(habit, Verdict::No);
            }
            continue;
        }
        questions += 1;
        refusals += usize::from(reply.code == 550);
        if !reply.is_success() {
            continue;
        }
        is_known = true;
        let argument = reply_argument(reply);
        match ask.kind {
            Kind::Mlst => {
                if let Some(entry) = mlst_entry(reply) {
                    stat = Stat { kind: Some(entry.kind), size: entry.size, mtime: entry.mtime };
                }
            }
            Kind::Size => {
                stat.size = argument.and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
            }
            _ => stat.mtime = argument.and_then(Timestamp::parse_mdtm),
        }
    }
    match (is_known, refusals) {
        (true, _) => Look::There(stat),
        (false, refusals) if refusals > 0 && refusals == questions => Look::Absent,
        _ => Look::Unknown,
    }
}

/// One question of its own.
pub(crate) fn look(session: &mut Session, path: &RemotePath) -> Result<Look, Error> {
    let asks = Ask::look(session.server(), path);
    let replies = converse(session, &asks)?;
    Ok(looked(session.server(), &asks, &replies))
}
