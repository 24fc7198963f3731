//! An upload with everything that belongs to it: the look before, the bytes, the questions and
//! attributes behind them, and the rename.
//!
//! A new small file costs two segments of commands, one that is renamed into place three: by the
//! sum three and four round trips; vsftpd 3.0.3 and ProFTPD 1.3.8 took one more at 40 ms. What
//! travels together is in `lane`. Nothing is renamed before the size on the server was found right.

use std::fs::File;
use std::ops::Range;

use super::error::{Error, Reply};
use super::lane::{Ask, Kind, Look, converse, looked, may_share};
use super::listing::{Precision, Timestamp};
use super::path::RemotePath;
use super::server::{Habit, Server};
use super::session::Session;
use super::upload::Ended;

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

    pub(super) fn command(&self) -> String {
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
    pub(super) fn travelling(&self, server: &Server, before: Option<&Look>) -> Vec<Ask> {
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
