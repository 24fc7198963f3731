//! What is added at the end of a file: sent alone, behind an end that is where it was.

use super::attr::Version;
use super::commit::{Attempt, Conflict, Errand, Sent};
use super::compare::is_same;
use super::error::Result;
use super::policy::OnConflict;
use crate::ftp::{self, Look, Placement, Store, StoreOutcome};

/// Up to this length a file whose append was cut is sent whole, and replaced by a rename: the server
/// may still be writing what it has of the cut one, at the end of whatever file it has open. 256 MiB
/// come and go in 45 s at 100 Mbit/s; of larger files only the rest is sent, and the size proves it.
const MENDED_WHOLE: u64 = 256 * 1024 * 1024;

impl Errand<'_> {
    pub(super) fn may_append(&self, from: u64) -> bool {
        self.place.pool.appends() && (from > 0 || self.job.length() > 0)
    }

    /// APPE of what is new, at an end that is where it was. A part of it that an attempt before
    /// this one left there is not sent again.
    pub(super) fn append(&mut self, from: u64) -> Attempt {
        if self.job.traces.appended_from.is_some() {
            return self.mend_append(from);
        }
        let is_end = |look: &Look| size_of(look) == Some(from) && self.agrees(look);
        let look = match self.append_if(from, &is_end) {
            Ok(StoreOutcome::Done(stored)) => return Ok(Ok(self.sent(&stored))),
            Ok(StoreOutcome::Guarded(look)) => look,
            Err(error) => return self.append_failed(from, error),
        };
        let Some(there) = size_of(&look) else { return self.append_to_nothing(&look) };
        if self.job.is_append_only && there > from {
            // O_APPEND means: behind whatever others appended.
            return self.append_behind(there, from, from);
        }
        if self.policy.on_conflict == OnConflict::Overwrite {
            return self.store_whole();
        }
        Ok(Err(Conflict))
    }

    /// An attempt before this one left some of it there, and the server may be adding more of that
    /// one even now.
    fn mend_append(&mut self, from: u64) -> Attempt {
        let look = self.place.pool.look(self.place.path)?;
        let length = self.job.length();
        let there = match size_of(&look) {
            None => return self.append_to_nothing(&look),
            Some(there) if self.agrees(&look) => there,
            Some(_) if self.policy.on_conflict == OnConflict::Overwrite => {
                self.job.traces.appended_from = None;
                return self.store_whole();
            }
            Some(_) => return Ok(Err(Conflict)),
        };
        if !self.is_ours(from, there)? {
            return Ok(Err(Conflict));
        }
        if length > MENDED_WHOLE {
            return self.append_behind(there, from, there);
        }
        // What is before our part is as it was: whatever the size has become, it belongs to ours.
        self.staged.rebase(self.place, Version { size: None, mtime: None });
        self.fetch_missing()?;
        self.store_beside()
    }

    /// The file is gone, or its size is not told: all of it is sent, if all of it can be had.
    fn append_to_nothing(&mut self, look: &Look) -> Attempt {
        // What only the server had is gone with it.
        let is_lost = *look == Look::Absent && !self.job.layout.missing().is_empty();
        if is_lost { Ok(Err(Conflict)) } else { self.store_whole() }
    }

    /// The bytes from `begin` on, behind the `there` bytes that the server has.
    fn append_behind(&mut self, there: u64, from: u64, begin: u64) -> Attempt {
        match self.append_if(begin, &|look| size_of(look) == Some(there)) {
            Err(error) => self.append_failed(from, error),
            Ok(StoreOutcome::Guarded(_)) => Ok(Err(Conflict)),
            Ok(StoreOutcome::Done(stored)) => {
                let size = Some(there + (self.job.length() - begin));
                Ok(Ok(Sent { size, ..self.sent(&stored) }))
            }
        }
    }

    fn append_failed(&mut self, from: u64, error: ftp::Error) -> Attempt {
        if let ftp::Error::Refused(reply) = &error
            && reply.is_unknown_command()
        {
            return self.store_whole();
        }
        // A beginning of it may be there.
        self.job.traces.appended_from = Some(from);
        self.note_own_part();
        Err(error.into())
    }

    /// Are the server's bytes between these ends the ones that are here?
    fn is_ours(&self, from: u64, to: u64) -> Result<bool> {
        let there = Version { size: None, mtime: None };
        let (pool, path) = (self.place.pool, self.place.path);
        is_same(pool, path, there, &self.job.file, std::slice::from_ref(&(from..to)))
    }

    fn append_if(
        &self,
        begin: u64,
        agrees: &dyn Fn(&Look) -> bool,
    ) -> std::result::Result<StoreOutcome, ftp::Error> {
        let path = self.place.path;
        self.place.pool.store(&Store {
            guard: Some((path, agrees)),
            mode: self.job.mode,
            ..self.plain_store(path, Placement::Append, begin..self.job.length())
        })
    }
}

fn size_of(look: &Look) -> Option<u64> {
    match look {
        Look::There(stat) => stat.size,
        Look::Absent | Look::Unknown => None,
    }
}
