//! A file of the server's changed where it is: a range written over, or its end cut off.

use std::ops::Range;

use super::attr::Version;
use super::commit::{Attempt, Conflict, Errand, check_size};
use super::error::{Error, Result};
use super::marks::{Marks, Purpose};
use super::replace::beside;
use crate::ftp::{self, Look, Placement, Pool, RemotePath, Store, StoreOutcome, TailHabit};

/// Below this size a file is sent whole rather than patched in place: the whole then takes no
/// longer than the patch, and a whole is replaced at one moment.
const PATCH_FROM: u64 = 256 * 1024;

impl Errand<'_> {
    pub(super) fn may_patch(&self) -> Result<bool> {
        let is_wanted = self.policy.patch_in_place && self.job.length() >= PATCH_FROM;
        Ok(is_wanted && self.tail()? == TailHabit::Keeps)
    }

    pub(super) fn may_cut(&self) -> Result<bool> {
        Ok(self.job.length() >= PATCH_FROM && self.tail()? == TailHabit::Cuts)
    }

    fn tail(&self) -> Result<TailHabit> {
        tail(self.place.pool, self.place.marks, self.place.path)
    }

    /// Each changed range over the old bytes.
    pub(super) fn patch(&mut self, ranges: &[Range<u64>]) -> Attempt {
        let (path, pool) = (self.place.path, self.place.pool);
        // Before the first range only: after it the file is neither theirs nor quite ours.
        let is_unpatched = !self.job.traces.may_be_partly_there;
        let agrees = |look: &Look| {
            let Some(base) = self.job.base else { return true };
            let Look::There(stat) = look else { return true };
            base.agrees_with(&Version::of_stat(stat))
        };
        let mut size = self.job.layout.base_length;
        let mut last = None;
        for (index, range) in ranges.iter().enumerate() {
            let is_last = index + 1 == ranges.len();
            size = size.max(range.end);
            let store = Store {
                guard: self.guard(&agrees).filter(|_| is_unpatched && index == 0),
                mode: self.job.mode.filter(|_| is_last),
                mtime: self.job.mtime.map(|time| time.seconds).filter(|_| is_last),
                ..self.plain_store(path, Placement::At(range.start), range.clone())
            };
            let stored = match pool.store(&store) {
                Ok(StoreOutcome::Guarded(_)) => return Ok(Err(Conflict)),
                Ok(StoreOutcome::Done(stored)) => check_size(&stored, size).map(|()| stored),
                Err(error) => Err(error.into()),
            };
            match stored {
                Ok(stored) => last = Some(stored),
                Err(error) => {
                    self.job.traces.may_be_partly_there = true;
                    self.note_own_part();
                    return Err(error);
                }
            }
        }
        let stored = last.ok_or(Error::Invalid)?;
        Ok(Ok(self.sent(&stored)))
    }

    /// The end goes: nothing, stored at the new length.
    pub(super) fn cut(&mut self) -> Attempt {
        let length = self.job.length();
        let agrees = |look: &Look| self.agrees(look);
        let store = Store {
            guard: self.guard(&agrees),
            mode: self.job.mode,
            ..self.plain_store(self.place.path, Placement::At(length), length..length)
        };
        match self.place.pool.store(&store)? {
            StoreOutcome::Guarded(_) => Ok(Err(Conflict)),
            StoreOutcome::Done(stored) => {
                check_size(&stored, length)?;
                Ok(Ok(self.sent(&stored)))
            }
        }
    }
}

/// What an upload at an offset does to what is behind it; tried once, on a file beside this one.
pub(super) fn tail(pool: &Pool, marks: &Marks, path: &RemotePath) -> Result<TailHabit> {
    let scratch = beside(path)?;
    let _mark = marks.set(Purpose::Scratch, &scratch, path);
    match pool.tail_habit(&scratch) {
        // Not here, perhaps elsewhere.
        Err(ftp::Error::Refused(_)) => Ok(TailHabit::Loses),
        habit => Ok(habit?),
    }
}
