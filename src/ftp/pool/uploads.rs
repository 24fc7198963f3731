//! Uploads: on which session each step is done, and what is done once more on another one.

use std::cell::Cell;
use std::io::Write;
use std::ops::Range;

use super::Pool;
use super::slots::Age;
use crate::ftp::error::Error;
use crate::ftp::lane::{self, Ask, Look};
use crate::ftp::path::RemotePath;
use crate::ftp::server::{Habit, Verdict};
use crate::ftp::session::Session;
use crate::ftp::store::{
    Placement, Renamed, Step as Rename, Store, StoreOutcome, Stored, complete, may_travel,
};
use crate::ftp::transfer::Upload;
use crate::ftp::upload::{Ended, Ready};

/// What REST and STOR do to what lies behind the bytes they write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TailHabit {
    /// It stays: a file may be changed in its middle.
    Keeps,
    /// It is cut off (Pure-FTPd 1.0.50): a file may be cut.
    Cuts,
    /// An offset is not heeded, or nobody can tell.
    Loses,
}

impl Pool {
    /// Uploads with everything that belongs to it: see [`Store`]. Before the first byte a lost
    /// connection is replaced, after the last one it is found out whether only the replies were
    /// lost. In between it is an error, and what is under `path` then is for the caller to remove.
    pub fn store(&self, store: &Store) -> Result<StoreOutcome, Error> {
        let ready = match self.ready(Age::Any, store) {
            Err(error) if error.lost_session() => {
                log::info!("{error}; once more on a fresh connection");
                self.ready(Age::Fresh, store)?
            }
            ready => ready?,
        };
        let before = ready.before;
        if let (Some((_, agrees)), Some(look)) = (store.guard, before)
            && !agrees(&look)
        {
            ready.leave();
            return Ok(StoreOutcome::Guarded(look));
        }
        let mut is_sent = false;
        let could_tls13 = self.may_tls13();
        let mut sent = ready.send(store, &mut is_sent);
        // Refused for the TLS session: ProFTPD 1.3.8 says so (425) when all bytes have left, and has
        // stored none. What is under the name now, a file of no length, is no reason for the guard to
        // say no. Appending is done once more only if nothing can have arrived.
        let may_repeat = !is_sent || store.placement != Placement::Append;
        if could_tls13 && !self.may_tls13() && may_repeat && lost(&sent) {
            is_sent = false;
            let mut again = self.ready(Age::Fresh, &Store { guard: None, ..store.clone() })?;
            again.before = before;
            sent = again.send(store, &mut is_sent);
        }
        let ended = match sent {
            // Nothing but this upload can have made what is there.
            Err(error) if is_sent && error.lost_session() && store.is_new(before.as_ref()) => {
                log::info!("upload of {}: {error}; is all of it there?", store.path);
                self.is_all_there(store).then_some((None, Ended::unanswered())).ok_or(error)?
            }
            sent => {
                let (session, ended) = sent?;
                (ended.is_in_step.then_some(session), ended)
            }
        };
        self.complete(store, before.as_ref(), ended).map(StoreOutcome::Done)
    }

    fn may_tls13(&self) -> bool {
        self.shared.connector.server().may(Habit::Tls13)
    }

    fn ready(&self, age: Age, store: &Store) -> Result<Ready, Error> {
        let guard = store.guard.map(|(path, _)| path);
        Ready::ask(self.shared.lease(age)?, guard, store.offset())
    }

    fn is_all_there(&self, store: &Store) -> bool {
        let size = self.run(Age::Fresh, |session| lane::look(session, store.path));
        let length = store.range.end.saturating_sub(store.range.start);
        matches!(size, Ok(Look::There(stat)) if stat.size == Some(length))
    }

    /// What is left to do is done again on a fresh session if the first one is lost: questions, and
    /// attributes, which may be set twice.
    fn complete(
        &self,
        store: &Store,
        before: Option<&Look>,
        (session, ended): (Option<Session>, Ended),
    ) -> Result<Stored, Error> {
        let step = Cell::new(Rename::Before);
        if let Some(mut session) = session {
            let result = complete(&mut session, store, before, ended, &step);
            match result {
                Err(error) if error.lost_session() => log::info!("{error}; once more"),
                result => {
                    if result.as_ref().err().is_none_or(Error::leaves_session_usable) {
                        session.give_back();
                    }
                    return result;
                }
            }
        }
        let was_renaming = step.get() == Rename::Renaming;
        let again = |session: &mut Session| {
            if was_renaming && let Some(to) = store.rename_to {
                // Its reply was lost, which may have been a success.
                let there = lane::look(session, to)?;
                let gone = lane::look(session, store.path)?;
                if let (Look::Absent, Look::There(stat)) = (gone, there) {
                    let length = store.range.end.saturating_sub(store.range.start);
                    if stat.size.is_none_or(|size| size == length) {
                        return Ok(Stored {
                            size: stat.size,
                            mtime: stat.mtime,
                            mode_set: store.mode.is_some(),
                            mtime_set: store.mtime.is_some(),
                            renamed: Renamed::Done,
                        });
                    }
                }
            }
            complete(session, store, before, Ended::unanswered(), &step)
        };
        self.run(Age::Fresh, again)
    }

    /// Does APPE work? Unknown until it was tried: then yes.
    pub fn appends(&self) -> bool {
        self.shared.connector.server().may(Habit::Appe)
    }

    /// What an upload at an offset does to what lies behind it: tried once on `scratch`, a name of
    /// our own where nothing is, and remembered.
    pub fn tail_habit(&self, scratch: &RemotePath) -> Result<TailHabit, Error> {
        let server = self.shared.connector.server();
        let known = (server.verdict(Habit::KeepsTail), server.verdict(Habit::CutsTail));
        match known {
            (Verdict::Yes, _) => return Ok(TailHabit::Keeps),
            (_, Verdict::Yes) => return Ok(TailHabit::Cuts),
            (Verdict::No, Verdict::No) => return Ok(TailHabit::Loses),
            _ => {}
        }
        let tried = self.try_offset(scratch);
        // Also after an error: something may be there.
        let _ = self.ask(|session| session.remove_file(scratch));
        let habit = tried?;
        let is = |is: bool| if is { Verdict::Yes } else { Verdict::No };
        server.learn(Habit::KeepsTail, is(habit == TailHabit::Keeps));
        server.learn(Habit::CutsTail, is(habit == TailHabit::Cuts));
        Ok(habit)
    }

    /// Eight bytes, and two of them written again in the middle.
    fn try_offset(&self, scratch: &RemotePath) -> Result<TailHabit, Error> {
        let file = tempfile::tempfile().map_err(Error::Broken)?;
        (&file).write_all(b"01234567").map_err(Error::Broken)?;
        let size = |range: Range<u64>, placement| {
            let store = Store {
                path: scratch,
                file: &file,
                range,
                placement,
                guard: None,
                mode: None,
                mtime: None,
                rename_to: None,
                is_cancelled: &|| false,
            };
            match self.store(&store) {
                Ok(StoreOutcome::Done(stored)) => Ok(stored.size),
                Ok(StoreOutcome::Guarded(_)) => Ok(None),
                // Not of the offset, but of the name: that says nothing of the server.
                Err(error @ Error::Refused(_)) if placement == Placement::Whole => Err(error),
                Err(Error::Refused(_)) => Ok(None),
                Err(Error::WrongSize { has, .. }) => Ok(Some(has)),
                Err(error) => Err(error),
            }
        };
        if size(0..8, Placement::Whole)? != Some(8) {
            return Ok(TailHabit::Loses);
        }
        Ok(match size(0..2, Placement::At(4))? {
            Some(8) if self.starts_with(scratch, b"01230167")? => TailHabit::Keeps,
            Some(6) if self.starts_with(scratch, b"012301")? => TailHabit::Cuts,
            _ => TailHabit::Loses,
        })
    }

    /// Are the first bytes these?
    fn starts_with(&self, path: &RemotePath, wanted: &[u8]) -> Result<bool, Error> {
        let mut download = self.download(path, 0)?;
        let mut bytes = vec![0; wanted.len()];
        let mut count = 0;
        while count < bytes.len() {
            match download.read(bytes.get_mut(count..).unwrap_or_default())? {
                0 => break,
                more => count += more,
            }
        }
        download.leave(false);
        Ok(bytes == wanted)
    }

    /// Begins an upload whose bytes are still being made; the question for its size travels with
    /// it.
    pub fn begin_upload(&self, path: &RemotePath) -> Result<Upload, Error> {
        let server = self.shared.connector.server();
        let behind = if may_travel(server) { Ask::look(server, path) } else { Vec::new() };
        let could_tls13 = self.may_tls13();
        let upload = match Upload::open(self.lease()?, path, behind) {
            Err(error) if error.lost_session() && could_tls13 && !self.may_tls13() => {
                Upload::open(self.shared.lease(Age::Fresh)?, path, Vec::new())
            }
            upload => upload,
        };
        Ok(upload?.asking())
    }
}

fn lost<T>(result: &Result<T, Error>) -> bool {
    result.as_ref().err().is_some_and(Error::lost_session)
}
