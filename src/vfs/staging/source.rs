//! Bytes of a file being written that only the server has: fetched when they are needed.

use std::ops::Range;
use std::sync::PoisonError;

use super::{Place, Staged};
use crate::vfs::attr::Version;
use crate::vfs::error::{Error, Result};
use crate::vfs::reader::{Reader, leave_parked};

/// The block in which the server's bytes are fetched: two of the kernel's read-ahead windows.
const FETCH_BLOCK: u64 = 256 * 1024;

impl Staged {
    /// Up to `length` bytes at `offset`; fewer only at the end.
    pub(crate) fn read(&self, place: &Place<'_>, offset: u64, length: usize) -> Result<Vec<u8>> {
        self.size_up(place)?;
        loop {
            let gap = {
                let state = self.lock();
                let end = state.content.length().min(offset.saturating_add(length as u64));
                let wanted = offset.min(end)..end;
                match state.content.layout().missing_in(wanted.clone()) {
                    None => return Ok(state.content.read(wanted)?),
                    Some(gap) => gap,
                }
            };
            self.fetch(place, gap)?;
        }
    }

    /// Where the size is not told, the whole file is fetched before its first change.
    pub(super) fn size_up(&self, place: &Place<'_>) -> Result<()> {
        if self.lock().is_sized {
            return Ok(());
        }
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        let version = self.lock().base.unwrap_or(Version { size: None, mtime: None });
        let reader = source.insert(Reader::to_end(version));
        let mut length = 0;
        loop {
            let block =
                reader.read(place.pool, place.path, place.key, length, FETCH_BLOCK as usize)?;
            let mut state = self.lock();
            if state.is_sized {
                return Ok(());
            }
            if block.is_empty() {
                state.content.set_base_length(length);
                state.is_sized = true;
                return Ok(());
            }
            let end = length + block.len() as u64;
            state.content.set_base_length(end);
            state.content.fill(length, block, &self.room)?;
            length = end;
        }
    }

    /// Brings the first part of `gap` here.
    pub(crate) fn fetch(&self, place: &Place<'_>, gap: Range<u64>) -> Result<()> {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = {
            let state = self.lock();
            if source.is_none() {
                *source = state.base.map(Reader::of_part);
            }
            state.content.layout().kept
        };
        let Some(reader) = source.as_mut() else {
            return Err(Error::Io(format!("{} is gone from the server", place.path)));
        };
        // Whole blocks, as the next gap is likely to be behind this one.
        let start = gap.start / FETCH_BLOCK * FETCH_BLOCK;
        let end = (start + FETCH_BLOCK).min(kept);
        let length = usize::try_from(end.saturating_sub(start)).unwrap_or(0);
        let bytes = reader.read(place.pool, place.path, place.key, start, length)?;
        if start + bytes.len() as u64 <= gap.start {
            return Err(Error::Stale(format!(
                "{} was changed by others: it became shorter",
                place.path
            )));
        }
        Ok(self.lock().content.fill(start, bytes, &self.room)?)
    }

    /// What the server has now is this: what is fetched from here on is of it.
    pub(crate) fn rebase(&self, place: &Place<'_>, base: Version) {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        self.lock().base = Some(base);
        *source = None;
        leave_parked(place.pool, place.key);
    }
}
