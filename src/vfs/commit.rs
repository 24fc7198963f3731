//! How the content of a file gets to the server: the least that must be sent, never over what
//! others changed, and never half over what was whole.

use std::ops::Range;

use super::attr::Version;
use super::compare::is_same;
use super::content::Delta;
use super::error::{Error, Result};
use super::marks::Purpose;
use super::names::conflict_name;
use super::policy::{OnConflict, UploadMode, WritePolicy};
use super::replace::{beside, put_away, replace, replace_by_turns};
use super::sender::Sender;
use super::staging::{Job, Place, SEND_AHEAD_FROM, Staged};
use crate::ftp::{
    self, Guard, Look, Placement, RemotePath, Renamed, Stat, Store, StoreOutcome, Stored, Timestamp,
};

/// Of a part that may be ours so much is compared at its beginning and at its end: what others wrote
/// differs there, and 8 MiB come in 0.7 s at 100 Mbit/s.
const COMPARED: u64 = 4 * 1024 * 1024;

/// What a commit changed on the server.
#[derive(Clone, Debug)]
pub(crate) struct Committed {
    pub(crate) length: u64,
    /// As the server told it, or took it.
    pub(crate) mtime: Option<Timestamp>,
    /// A program set it, but the server takes no times.
    pub(crate) mtime_to_remember: Option<Timestamp>,
    pub(crate) mode: Option<u16>,
    pub(crate) mode_to_remember: Option<u16>,
    /// The name it got, as its own was taken by somebody else meanwhile.
    pub(crate) conflict: Option<Box<[u8]>>,
}

impl Committed {
    pub(crate) fn new(job: &Job, sent: &Sent, length: u64) -> Self {
        let mtime_was_set = sent.mtime_was_set;
        Self {
            length,
            mtime: if mtime_was_set { job.mtime } else { sent.mtime },
            mtime_to_remember: job.mtime.filter(|_| !mtime_was_set),
            mode: sent.mode,
            mode_to_remember: job.wanted_mode().filter(|_| sent.mode.is_none()),
            conflict: sent.conflict.clone(),
        }
    }
}

/// What the server has of it now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sent {
    pub(crate) size: Option<u64>,
    pub(crate) mtime: Option<Timestamp>,
    /// The wished time is the server's.
    pub(crate) mtime_was_set: bool,
    /// The bits that it took.
    pub(crate) mode: Option<u16>,
    pub(crate) conflict: Option<Box<[u8]>>,
}

impl Job {
    /// What programs asked for; 0644 is what servers give to new files.
    fn wanted_mode(&self) -> Option<u16> {
        self.mode.or(self.base_mode.filter(|mode| *mode != 0o644))
    }

    pub(super) fn length(&self) -> u64 {
        self.layout.length
    }
}

/// One commit.
pub(crate) struct Errand<'a> {
    pub(crate) staged: &'a Staged,
    pub(crate) place: &'a Place<'a>,
    pub(crate) policy: &'a WritePolicy,
    pub(crate) job: &'a mut Job,
    pub(crate) is_cancelled: &'a dyn Fn() -> bool,
}

/// The guard said no.
pub(super) struct Conflict;

/// What an attempt came to: what the server has now, or that others changed it.
pub(super) type Attempt = Result<std::result::Result<Sent, Conflict>>;

impl Errand<'_> {
    /// Once more from the beginning if a connection was lost, but not what was refused for a
    /// reason, and not after a time-out, as the caller has waited long enough.
    pub(crate) fn run(mut self) -> Result<Sent> {
        let attempt = match self.attempt() {
            Err(error) if error.is_transient() && !(self.is_cancelled)() => {
                log::warn!("upload of {}: {error}; once more", self.place.path);
                self.attempt()
            }
            result => result,
        };
        match attempt? {
            Ok(sent) => Ok(sent),
            Err(Conflict) => self.resolve(),
        }
    }

    fn attempt(&mut self) -> Attempt {
        if let Some(sender) = self.job.sender.take() {
            match self.finish_sender(sender) {
                Err(error) if !(self.is_cancelled)() => {
                    log::info!("{} is sent again from its beginning: {error}", self.place.path);
                }
                result => return result,
            }
        }
        if self.job.base.is_none() {
            if !self.job.traces.may_be_partly_there {
                return self.store_new();
            }
            if !self.is_part_ours()? {
                return Ok(Err(Conflict));
            }
        }
        if self.policy.upload == UploadMode::Safe && self.job.base.is_some() {
            match self.job.layout.delta() {
                Delta::Nothing => {
                    let look = self.place.pool.look(self.place.path)?;
                    let overwrites = self.policy.on_conflict == OnConflict::Overwrite;
                    // What others removed is sent again; what they changed is theirs.
                    if look != Look::Absent && (overwrites || self.agrees(&look)) {
                        return self.set_attributes();
                    } else if look != Look::Absent {
                        return Ok(Err(Conflict));
                    }
                }
                Delta::Append { from } if self.may_append(from) => return self.append(from),
                Delta::Cut if self.may_cut()? => return self.cut(),
                Delta::Patch(ranges) if self.may_patch()? => return self.patch(&ranges),
                _ => {}
            }
        }
        self.store_whole()
    }

    /// Is what is there under a new file's name what an attempt before this one left, and not
    /// something that others put there since?
    fn is_part_ours(&self) -> Result<bool> {
        let Place { pool, path, .. } = self.place;
        if self.policy.on_conflict == OnConflict::Overwrite {
            return Ok(true);
        }
        let size = match pool.look(path)? {
            Look::There(Stat { size: Some(size), .. }) => size,
            Look::There(_) | Look::Absent | Look::Unknown => return Ok(true),
        };
        if size > self.job.length() {
            return Ok(false);
        }
        let ends = [0..size.min(COMPARED), size.saturating_sub(COMPARED).max(COMPARED)..size];
        is_same(pool, path, Version { size: None, mtime: None }, &self.job.file, &ends)
    }

    /// Under its own name, where nothing is; in `SafeAll` beside it.
    fn store_new(&mut self) -> Attempt {
        if self.policy.upload == UploadMode::SafeAll {
            return self.store_beside();
        }
        let length = self.job.length();
        let stored = self.store(self.place.path, Placement::Whole, 0..length);
        if let Err(error) = &stored
            && !matches!(error, Error::Denied(_))
        {
            // The server may go on writing what it has of this under its name: from now on the
            // file comes whole, by a rename.
            self.job.traces.may_be_partly_there = true;
        }
        stored
    }

    pub(super) fn store_whole(&mut self) -> Attempt {
        if self.policy.upload == UploadMode::Direct {
            self.fetch_missing()?;
            return self.store_in_place();
        }
        let missing: u64 = self.job.layout.missing().iter().map(|gap| gap.end - gap.start).sum();
        // With two connections one fetches while the other sends.
        if missing >= SEND_AHEAD_FROM && self.place.pool.snapshot().limit > 1 {
            let sender = Sender::start(
                self.place,
                self.job.file.try_clone()?,
                self.job.layout.present.prefix(),
            )?;
            self.fetch_and(|prefix| sender.advance(prefix))?;
            match self.finish_sender(sender) {
                Err(error) if !(self.is_cancelled)() => {
                    log::info!("{} is sent from the local copy: {error}", self.place.path);
                }
                result => return result,
            }
        }
        self.fetch_missing()?;
        self.store_beside()
    }

    fn store_in_place(&mut self) -> Attempt {
        let is_new = self.job.base.is_none();
        self.job.traces.may_be_partly_there |= is_new;
        let stored = self.store(self.place.path, Placement::Whole, 0..self.job.length());
        if stored.is_err() && !is_new {
            self.note_own_part();
        }
        stored
    }

    /// To a new name in the same directory, and from there by a rename.
    pub(super) fn store_beside(&mut self) -> Attempt {
        let beside = beside(self.place.path)?;
        let mark = self.place.marks.set(Purpose::Scratch, &beside, self.place.path);
        let agrees = |look: &Look| self.agrees(look);
        let store = Store {
            mode: self.job.wanted_mode(),
            rename_to: self.place.pool.renames_over().then_some(self.place.path),
            guard: self.guard(&agrees),
            ..self.plain_store(&beside, Placement::Whole, 0..self.job.length())
        };
        match self.place.pool.store(&store).map_err(Error::from) {
            Ok(StoreOutcome::Guarded(_)) => Ok(Err(Conflict)),
            Ok(StoreOutcome::Done(stored)) => {
                if let Err(error) = self.put_in_place(&beside, &stored.renamed) {
                    put_away(self.place.pool, &beside, mark);
                    return match error {
                        Error::Denied(text) => self.fall_back(&text),
                        error => Err(error),
                    };
                }
                Ok(Ok(self.sent(&stored)))
            }
            // No new names in this folder: the file itself is all there is to write to.
            Err(Error::Denied(text)) => self.fall_back(&text),
            Err(error) => {
                put_away(self.place.pool, &beside, mark);
                Err(error)
            }
        }
    }

    /// What is left to do after the upload's own attempt to rename.
    fn put_in_place(&self, beside: &RemotePath, renamed: &Renamed) -> Result<()> {
        let Place { pool, marks, path, .. } = self.place;
        match renamed {
            Renamed::Done => Ok(()),
            Renamed::NotAsked => replace(pool, marks, beside, path),
            Renamed::Refused(_) => replace_by_turns(pool, marks, beside, path),
        }
    }

    fn fall_back(&mut self, why: &str) -> Attempt {
        if self.place.pool.note_in_place() {
            log::warn!(
                "{} is replaced in place, not by a rename (said once): {why}",
                self.place.path
            );
        }
        self.store_in_place()
    }

    /// What was sent ahead becomes the file.
    fn finish_sender(&mut self, sender: Sender) -> Attempt {
        let Place { pool, marks, path, .. } = self.place;
        let beside = sender.path().clone();
        let length = self.job.length();
        let (stored, mark) = sender.finish(length, self.is_cancelled)?;
        let finish = || -> Attempt {
            check_size(&stored, length)?;
            let stored = self.with_attributes(&beside, stored, self.job.wanted_mode())?;
            if self.policy.on_conflict != OnConflict::Overwrite && !self.agrees(&pool.look(path)?) {
                return Ok(Err(Conflict));
            }
            replace(pool, marks, &beside, path)?;
            Ok(Ok(self.sent(&stored)))
        };
        let finished = finish();
        if !matches!(finished, Ok(Ok(_))) {
            put_away(pool, &beside, mark);
        }
        finished
    }

    /// What is there has changed, and by ourselves: that is what the rest belongs to from now on.
    pub(super) fn note_own_part(&mut self) {
        self.job.base = Some(match self.place.pool.look(self.place.path) {
            Ok(Look::There(stat)) => Version::of_stat(&stat),
            // Nothing is known of it, which agrees with anything.
            _ => Version { size: None, mtime: None },
        });
    }

    /// The content is the server's already: only what programs set.
    fn set_attributes(&mut self) -> Attempt {
        let size = Some(self.job.length());
        let (mode_set, mtime_set, renamed) = (false, false, Renamed::NotAsked);
        let stored = Stored { size, mtime: None, mode_set, mtime_set, renamed };
        let stored = self.with_attributes(self.place.path, stored, self.job.mode)?;
        Ok(Ok(self.sent(&stored)))
    }

    /// Sets what programs asked for; what the server refuses is no failure of the upload.
    fn with_attributes(
        &self,
        path: &RemotePath,
        stored: Stored,
        mode: Option<u16>,
    ) -> Result<Stored> {
        let pool = self.place.pool;
        let mode_set = match mode {
            Some(mode) => unless_refused(pool.ask(|session| session.set_mode(path, mode)))?,
            None => false,
        };
        // After the bits, as some servers count a change of bits as a change of the file.
        let mtime_set = match self.job.mtime {
            Some(time) => {
                unless_refused(pool.ask(|session| session.set_modified(path, time.seconds)))?
            }
            None => false,
        };
        Ok(Stored { mode_set, mtime_set, ..stored })
    }

    /// Others changed the file since it was opened.
    fn resolve(&mut self) -> Result<Sent> {
        let path = self.place.path;
        let stale = |what: &str| Err(Error::Stale(format!("{path} was changed by others; {what}")));
        if self.policy.on_conflict == OnConflict::Error {
            return stale("ours is kept here");
        }
        if !self.job.layout.missing().is_empty() {
            return stale("what was written to it is kept here");
        }
        let (Some(parent), Some(name)) = (path.parent(), path.name()) else {
            return stale("ours is kept here");
        };
        let name = conflict_name(name, "conflict");
        let copy = parent.join(&name)?;
        self.job.traces.may_be_partly_there = false;
        self.job.base = None;
        match self.store(&copy, Placement::Whole, 0..self.job.length())? {
            Ok(sent) => {
                log::warn!("{path} was changed by others since it was opened: ours is {copy}");
                Ok(Sent { conflict: Some(name.into()), ..sent })
            }
            Err(Conflict) => stale("and so is the name of the copy"),
        }
    }

    fn store(&self, path: &RemotePath, placement: Placement, range: Range<u64>) -> Attempt {
        let agrees = |look: &Look| self.agrees(look);
        let guard = self.guard(&agrees).map(|(_, agrees)| (path, agrees));
        let store = Store {
            mode: self.job.wanted_mode(),
            guard,
            ..self.plain_store(path, placement, range)
        };
        match self.place.pool.store(&store)? {
            StoreOutcome::Guarded(_) => Ok(Err(Conflict)),
            StoreOutcome::Done(stored) => Ok(Ok(self.sent(&stored))),
        }
    }

    pub(super) fn plain_store<'s>(
        &'s self,
        path: &'s RemotePath,
        placement: Placement,
        range: Range<u64>,
    ) -> Store<'s> {
        Store {
            path,
            file: &self.job.file,
            range,
            placement,
            guard: None,
            mode: None,
            mtime: self.job.mtime.map(|time| time.seconds),
            rename_to: None,
            is_cancelled: self.is_cancelled,
        }
    }

    pub(super) fn guard<'g>(&'g self, agrees: &'g dyn Fn(&Look) -> bool) -> Option<Guard<'g>> {
        let is_wanted = self.policy.on_conflict != OnConflict::Overwrite;
        is_wanted.then_some((self.place.path, agrees))
    }

    /// Is what is there what we know, so that nothing of others is lost?
    pub(super) fn agrees(&self, look: &Look) -> bool {
        match (look, self.job.base) {
            // Whoever removed it lost it already.
            (Look::Absent | Look::Unknown, _) => true,
            // Of a new file perhaps a part of ours, from an attempt before this one.
            (Look::There(stat), None) => {
                let is_part = stat.size.is_none_or(|size| size <= self.job.length());
                self.job.traces.may_be_partly_there && is_part
            }
            (Look::There(stat), Some(base)) => match self.job.traces.appended_from {
                None => base.agrees_with(&Version::of_stat(stat)),
                // With a part of ours at its end, of which more may have come since.
                Some(from) => {
                    stat.size.is_none_or(|size| (from..=self.job.length()).contains(&size))
                }
            },
        }
    }

    pub(super) fn sent(&self, stored: &Stored) -> Sent {
        Sent {
            size: stored.size,
            mtime: stored.mtime,
            mtime_was_set: stored.mtime_set,
            mode: self.job.wanted_mode().filter(|_| stored.mode_set),
            conflict: None,
        }
    }

    fn is_gone(&self) -> bool {
        matches!(self.place.pool.look(self.place.path), Ok(Look::Absent))
    }

    pub(super) fn fetch_missing(&mut self) -> Result<()> {
        self.fetch_and(|_| {})
    }

    /// Fetches what only the server has; `told` hears up to where all is here.
    fn fetch_and(&mut self, told: impl Fn(u64)) -> Result<()> {
        while let Some(gap) = self.job.layout.missing().into_iter().next() {
            if (self.is_cancelled)() {
                return Err(ftp::Error::Cancelled.into());
            }
            match self.staged.fetch(self.place, gap) {
                Err(Error::Denied(_)) if self.is_gone() => {
                    let path = self.place.path;
                    return Err(Error::Stale(format!("{path} was changed by others: it is gone")));
                }
                fetched => fetched?,
            }
            self.job.layout = self.staged.layout();
            told(self.job.layout.present.prefix());
        }
        Ok(())
    }
}

pub(super) fn check_size(stored: &Stored, wanted: u64) -> Result<()> {
    match stored.size {
        Some(has) if has != wanted => Err(ftp::Error::WrongSize { has, wanted }.into()),
        _ => Ok(()),
    }
}

fn unless_refused(done: std::result::Result<bool, ftp::Error>) -> Result<bool> {
    match done {
        Err(ftp::Error::Refused(_)) => Ok(false),
        result => Ok(result?),
    }
}
