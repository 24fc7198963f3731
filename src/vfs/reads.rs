//! What an open file holds: given by what is staged, fetched ahead, kept, or by a transfer of its own.

use std::sync::Arc;

use super::blocks::now_millis;
use super::error::{Error, Result};
use super::handles::OpenFile;
use super::reader::{Reader, Stretch};
use super::tree::Ino;
use super::{PATIENCE, Vfs, restless};
use crate::ftp::RemotePath;

impl Vfs {
    /// Gives the bytes at `offset` to `take`: exactly `length`, fewer only at the end of the file.
    pub fn read<T>(
        &self,
        fh: u64,
        offset: u64,
        length: usize,
        take: impl FnOnce(&[u8]) -> T,
    ) -> Result<T> {
        let file = self.handles.file(fh)?;
        if !file.access.read {
            return Err(Error::BadHandle);
        }
        let (mut take, mut taken) = (Some(take), None);
        let mut give = |bytes: &[u8]| taken = take.take().map(|take| take(bytes));
        for _ in 0..PATIENCE {
            let path = self.path(file.ino).ok();
            let result = self.read_under(path.as_ref(), (&file, fh), (offset, length), &mut give);
            let is_right = match &result {
                Ok(is_right) => *is_right,
                // The bytes of a staged file may have been looked for under a name that it had.
                Err(Error::Stale(_) | Error::Denied(_)) => self.is_still(file.ino, path.as_ref()),
                Err(_) => true,
            };
            if !is_right {
                self.settle_name(file.ino);
                continue;
            }
            if let Err(Error::Stale(_) | Error::Denied(_)) = &result {
                // What was listed is no longer true.
                self.expire_parent(file.ino);
            }
            result?;
            return taken.ok_or(Error::Invalid);
        }
        Err(restless())
    }

    /// Is this the name on the server, and was it while `path` was used? Whoever got it before a move
    /// finds that under way, or another name.
    pub(super) fn is_still(&self, ino: Ino, path: Option<&RemotePath>) -> bool {
        !self.is_moving(ino) && self.path(ino).ok().as_ref() == path
    }

    /// The same of a file that has this name now; false, and nothing given, if what was opened may be
    /// another file.
    fn read_under(
        &self,
        path: Option<&RemotePath>,
        (file, fh): (&OpenFile, u64),
        (offset, length): (u64, usize),
        give: &mut dyn FnMut(&[u8]),
    ) -> Result<bool> {
        if let Some(staged) = self.handles.staged(file.ino).filter(|staged| staged.serves()) {
            // A file without a name has no path, and needs none: all of it is here.
            let nowhere = RemotePath::root();
            let place = self.at(file.ino, path.unwrap_or(&nowhere));
            give(&staged.read(&place, offset, length)?);
            return Ok(true);
        }
        let mut give = |bytes: &[u8]| {
            self.pages.note(file.ino, &file.version, bytes.len(), now_millis());
            give(bytes);
        };
        if let Some(bytes) = self.read_ahead_of(file) {
            let begin = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
            let end = begin.saturating_add(length).min(bytes.len());
            give(bytes.get(begin..end).unwrap_or_default());
            return Ok(true);
        }
        let path = path.ok_or(Error::NotFound)?;
        match self.cached(file, path, (offset, length))? {
            Some(cached) => self.read_blocks(cached, (file, fh), offset, length, give),
            None => self.read_transfer(file, fh, path, offset, length, give),
        }
    }

    fn read_transfer(
        &self,
        file: &OpenFile,
        fh: u64,
        path: &RemotePath,
        offset: u64,
        length: usize,
        give: impl FnOnce(&[u8]),
    ) -> Result<bool> {
        let mut reader = file.reader.enter(offset);
        let Some(found) = self.find(&mut reader, (file, fh), path, (offset, length))? else {
            return Ok(false);
        };
        give(reader.bytes(&found));
        drop(reader);
        self.handles.limit_memory(fh);
        Ok(true)
    }

    /// Nothing if what the reader found, or did not, may be of another file.
    pub(super) fn find(
        &self,
        reader: &mut Reader,
        (file, fh): (&OpenFile, u64),
        path: &RemotePath,
        (offset, length): (u64, usize),
    ) -> Result<Option<Stretch>> {
        let found = reader.find(&self.pool, path, fh, offset, length);
        if (found.is_ok() && !reader.has_opened()) || self.is_still(file.ino, Some(path)) {
            return found.map(Some);
        }
        reader.begin_again(&self.pool, fh);
        Ok(None)
    }

    /// The whole content, if it was fetched before it was asked for; looked for once, so that one
    /// handle has one source.
    pub(super) fn read_ahead_of<'a>(&self, file: &'a OpenFile) -> Option<&'a Arc<Vec<u8>>> {
        let look = || {
            let bytes = self.prefetch.take(file.ino, &file.version)?;
            self.keep_whole(file, &bytes);
            Some(bytes)
        };
        file.ahead.get_or_init(|| if file.access.write { None } else { look() }).as_ref()
    }
}
