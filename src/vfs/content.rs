//! The local copy of a file being written: sparse, with what is here and what is changed.
//!
//! Knows no server. Bytes that are neither here nor beyond the end are the server's; whoever needs
//! them asks for the gaps and fills them in.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tempfile::{NamedTempFile, TempPath};

use super::journal;
use super::ranges::Ranges;
use super::room::Room;

/// What is known of the bytes; with the local file this is all of the content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layout {
    /// As programs see it, in bytes.
    pub(crate) length: u64,
    /// The length of the server's version.
    pub(crate) base_length: u64,
    /// The server's bytes up to here may still be part of the content: no cut went below.
    pub(crate) kept: u64,
    /// Valid in the local file.
    pub(crate) present: Ranges,
    /// Not as on the server.
    pub(crate) dirty: Ranges,
}

/// The least that must be sent so that the server has the content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Delta {
    Nothing,
    /// Everything up to here is as on the server, and the rest is new.
    Append {
        from: u64,
    },
    /// The server's version without its end.
    Cut,
    /// As long as on the server or longer; these ranges differ.
    Patch(Vec<Range<u64>>),
    Whole,
}

impl Layout {
    pub(crate) fn of_existing(length: u64) -> Self {
        Self { length, base_length: length, kept: length, ..Self::default() }
    }

    pub(crate) fn delta(&self) -> Delta {
        let is_all_kept = self.kept == self.base_length;
        match self.dirty.first() {
            None if self.length == self.base_length && is_all_kept => Delta::Nothing,
            None if self.length > 0 && self.length == self.kept => Delta::Cut,
            Some(from) if is_all_kept && from >= self.base_length => {
                Delta::Append { from: self.base_length }
            }
            Some(_) if is_all_kept && self.length >= self.base_length => {
                Delta::Patch(self.dirty.iter().collect())
            }
            _ => Delta::Whole,
        }
    }

    /// What must be fetched before the whole content is here.
    pub(crate) fn missing(&self) -> Vec<Range<u64>> {
        self.present.gaps(0..self.length)
    }

    /// The first part of `range` that only the server has.
    pub(crate) fn missing_in(&self, range: Range<u64>) -> Option<Range<u64>> {
        self.present.first_gap(range)
    }

    fn write(&mut self, offset: u64, length: u64) {
        let start = self.length.min(offset);
        let end = offset + length;
        self.present.insert(start..end);
        self.dirty.insert(start..end);
        self.length = self.length.max(end);
    }

    fn truncate(&mut self, length: u64) {
        if length < self.length {
            self.present.cut(length);
            self.dirty.cut(length);
            self.kept = self.kept.min(length);
        } else {
            self.present.insert(self.length..length);
            self.dirty.insert(self.length..length);
        }
        self.length = length;
    }

    /// It is to be sent as a whole, whatever the server has.
    pub(crate) fn replace_whole(&mut self) {
        self.base_length = u64::MAX;
        self.kept = 0;
    }

    /// The server has all of it now.
    fn settle(&mut self) {
        self.base_length = self.length;
        self.kept = self.length;
        self.dirty.clear();
    }
}

/// The local copy.
#[derive(Debug)]
pub(crate) struct Content {
    file: NamedTempFile,
    layout: Layout,
    /// A note promises what is here to the next mount, up to this length: nothing below it may
    /// change in this file.
    sealed: Option<u64>,
    /// The file that was promised before, until the new one is.
    promised: Option<NamedTempFile>,
}

impl Content {
    /// A new and empty local file for what the layout says.
    pub(crate) fn new(dir: &Path, layout: Layout) -> io::Result<Self> {
        Ok(Self { file: local_file(dir)?, layout, sealed: None, promised: None })
    }

    /// What an earlier process left. Until `own` the local file stays whatever happens.
    pub(crate) fn of_left_over(file: File, path: PathBuf, layout: Layout) -> io::Result<Self> {
        let mut file = NamedTempFile::from_parts(file, TempPath::try_from_path(path)?);
        file.disable_cleanup(true);
        let sealed = Some(layout.length);
        Ok(Self { file, layout, sealed, promised: None })
    }

    /// The local file goes when it is no longer needed.
    pub(crate) fn own(&mut self) {
        self.file.disable_cleanup(false);
    }

    /// The local file stays when this process ends; where it is.
    pub(crate) fn keep(&mut self) -> &Path {
        self.file.disable_cleanup(true);
        self.file.path()
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn length(&self) -> u64 {
        self.layout.length
    }

    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    pub(crate) fn reopen(&self) -> io::Result<File> {
        self.file.reopen()
    }

    /// Bytes that are here.
    pub(crate) fn read(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        let length = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
        let mut bytes = vec![0; length];
        self.file.as_file().read_exact_at(&mut bytes, range.start)?;
        Ok(bytes)
    }

    /// pwrite(2): zeros between the end and an `offset` beyond it.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8], room: &Room) -> io::Result<()> {
        let end = offset.checked_add(bytes.len() as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        room.check(bytes.len() as u64)?;
        if self.sealed.is_some_and(|sealed| offset < sealed) {
            self.unseal(self.layout.length)?;
        }
        self.file.as_file().write_all_at(bytes, offset)?;
        room.note(bytes.len() as u64);
        self.layout.write(offset, end - offset);
        Ok(())
    }

    pub(crate) fn truncate(&mut self, length: u64) -> io::Result<()> {
        if self.sealed.is_some_and(|sealed| length < sealed) {
            self.unseal(length)?;
        }
        // Cut here too: what was beyond must not show again when the file grows.
        self.file.as_file().set_len(length)?;
        self.layout.truncate(length);
        Ok(())
    }

    /// Only the server knows what is there now, and it is this long.
    pub(crate) fn forget(&mut self, length: u64) -> io::Result<()> {
        self.settle();
        self.file.as_file().set_len(0)?;
        self.layout = Layout::of_existing(length);
        Ok(())
    }

    /// Puts bytes of the server where nothing is yet.
    pub(crate) fn fill(&mut self, offset: u64, bytes: &[u8], room: &Room) -> io::Result<()> {
        let end = (offset + bytes.len() as u64).min(self.layout.kept.min(self.layout.length));
        if end <= offset {
            return Ok(());
        }
        room.check(end - offset)?;
        for gap in self.layout.present.gaps(offset..end) {
            let from = usize::try_from(gap.start - offset).map_err(io::Error::other)?;
            let to = usize::try_from(gap.end - offset).map_err(io::Error::other)?;
            let part = bytes.get(from..to).unwrap_or_default();
            self.file.as_file().write_all_at(part, gap.start)?;
            room.note(part.len() as u64);
        }
        self.layout.present.insert(offset..end);
        Ok(())
    }

    /// The server's version turned out to be this long; only while nothing was changed.
    pub(crate) fn set_base_length(&mut self, length: u64) {
        self.layout.length = length;
        self.layout.base_length = length;
        self.layout.kept = length;
    }

    /// The server has everything now. What the local file lacks can be asked for there again.
    pub(crate) fn settle(&mut self) {
        self.layout.settle();
        self.sealed = None;
        self.promised = None;
    }

    /// It belongs under another name now: all of it is to be sent.
    pub(crate) fn replace_whole(&mut self) {
        self.layout.replace_whole();
    }

    /// Is every byte here?
    pub(crate) fn is_complete(&self) -> bool {
        self.layout.missing().is_empty()
    }

    /// Makes the bytes durable (fsync(2)).
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.as_file().sync_data()
    }

    /// A note that promises all of this is on the disk: from now on the bytes stay as they are.
    pub(crate) fn seal(&mut self) {
        self.sealed = Some(self.layout.length);
        self.promised = None;
    }

    /// The file beside which a note may lie: the one here, or an older one that it goes on from.
    pub(crate) fn noted(&self) -> &Path {
        self.promised().unwrap_or_else(|| self.path())
    }

    /// The file with a note that promises an older content, if it is another one.
    pub(crate) fn promised(&self) -> Option<&Path> {
        self.promised.as_ref().map(NamedTempFile::path)
    }

    /// Leaves the promised file alone and goes on with a copy of its first `length` bytes.
    fn unseal(&mut self, length: u64) -> io::Result<()> {
        let dir = self.file.path().parent().unwrap_or(Path::new("/"));
        let copy = local_file(dir)?;
        let length = length.min(self.layout.length);
        copy.as_file().set_len(length)?;
        for part in self.layout.present.iter() {
            copy_range(self.file.as_file(), copy.as_file(), part.start..part.end.min(length))?;
        }
        let promised = std::mem::replace(&mut self.file, copy);
        // Of several only the first is promised.
        self.promised.get_or_insert(promised);
        self.sealed = None;
        Ok(())
    }
}

/// A local file with a lock that ends with this process, so that another one leaves it alone.
fn local_file(dir: &Path) -> io::Result<NamedTempFile> {
    let file = tempfile::Builder::new().prefix(journal::COPY).tempfile_in(dir)?;
    file.as_file().lock()?;
    Ok(file)
}

fn copy_range(from: &File, to: &File, range: Range<u64>) -> io::Result<()> {
    /// Half of a second-level cache; the disk is slower than the copy anyway.
    const BLOCK: usize = 256 * 1024;
    let mut block = vec![0; BLOCK];
    let mut at = range.start;
    while at < range.end {
        let part = usize::try_from(range.end - at).unwrap_or(BLOCK).min(BLOCK);
        let bytes = block.get_mut(..part).unwrap_or_default();
        from.read_exact_at(bytes, at)?;
        to.write_all_at(bytes, at)?;
        at += part as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layout(base: u64, changes: impl FnOnce(&mut Layout)) -> Layout {
        let mut layout = Layout::of_existing(base);
        changes(&mut layout);
        layout
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init)]
    fn the_least_is_sent() {
        assert_eq!(layout(10, |_| {}).delta(), Delta::Nothing);
        assert_eq!(layout(10, |l| l.write(10, 5)).delta(), Delta::Append { from: 10 });
        assert_eq!(layout(10, |l| l.write(12, 5)).delta(), Delta::Append { from: 10 });
        assert_eq!(layout(10, |l| l.truncate(12)).delta(), Delta::Append { from: 10 });
        assert_eq!(layout(10, |l| l.truncate(5)).delta(), Delta::Cut);
        assert_eq!(layout(10, |l| l.truncate(0)).delta(), Delta::Whole);
        assert_eq!(layout(10, |l| l.write(3, 2)).delta(), Delta::Patch(vec![3..5]));
        assert_eq!(layout(10, |l| l.write(8, 5)).delta(), Delta::Patch(vec![8..13]));
        let cut_and_grown = layout(10, |l| {
            l.truncate(5);
            l.write(5, 5);
        });
        assert_eq!(cut_and_grown.delta(), Delta::Whole);
        assert_eq!(layout(0, |l| l.write(0, 5)).delta(), Delta::Append { from: 0 });
    }

    #[test]
    fn what_is_promised_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let room = Room::unlimited(dir.path());
        let mut content = Content::new(dir.path(), Layout::default()).unwrap();
        content.write(0, b"promised", &room).unwrap();
        content.seal();
        let promised = content.path().to_owned();
        content.write(8, b" and more", &room).unwrap();
        assert_eq!(content.path(), promised, "what is added leaves it whole");
        content.write(0, b"P", &room).unwrap();
        assert_ne!(content.path(), promised);
        assert_eq!(&std::fs::read(&promised).unwrap()[..8], b"promised");
        assert_eq!(content.read(0..17).unwrap(), b"Promised and more");
        assert_eq!(content.promised(), Some(promised.as_path()));
        content.truncate(0).unwrap();
        content.seal();
        assert!(!promised.exists());
    }

    #[derive(Clone, Debug)]
    enum Op {
        Write(u64, Vec<u8>),
        Truncate(u64),
        Fill(u64, usize),
        Seal,
        Settle,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (0u64..60, proptest::collection::vec(1u8.., 1..20))
                .prop_map(|(at, bytes)| Op::Write(at, bytes)),
            2 => (0u64..60).prop_map(Op::Truncate),
            2 => (0u64..60, 1usize..20).prop_map(|(at, length)| Op::Fill(at, length)),
            1 => Just(Op::Seal),
            1 => Just(Op::Settle),
        ]
    }

    proptest! {
        /// Whatever is written, cut and filled in: with the missing parts taken from the server it
        /// is what a plain file would be, and the delta applied to the server's version gives it.
        #[test]
        fn content_is_that_of_a_file(
            base in proptest::collection::vec(1u8.., 0..50),
            ops in proptest::collection::vec(op(), 0..30),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let room = Room::unlimited(dir.path());
            let mut server = base;
            let mut plain = server.clone();
            let layout = Layout::of_existing(server.len() as u64);
            let mut content = Content::new(dir.path(), layout).unwrap();
            for op in ops {
                match op {
                    Op::Write(at, bytes) => {
                        content.write(at, &bytes, &room).unwrap();
                        let end = at as usize + bytes.len();
                        plain.resize(plain.len().max(end), 0);
                        plain[at as usize..end].copy_from_slice(&bytes);
                    }
                    Op::Truncate(length) => {
                        content.truncate(length).unwrap();
                        plain.resize(length as usize, 0);
                    }
                    Op::Fill(at, length) => {
                        let from = (at as usize).min(server.len());
                        let to = (from + length).min(server.len());
                        content.fill(from as u64, &server[from..to], &room).unwrap();
                    }
                    Op::Seal => content.seal(),
                    Op::Settle => {
                        server = plain.clone();
                        content.settle();
                    }
                }
            }
            let mut whole = vec![0; plain.len()];
            prop_assert_eq!(content.length(), plain.len() as u64);
            for part in content.layout().present.iter() {
                let bytes = content.read(part.clone()).unwrap();
                whole[part.start as usize..part.end as usize].copy_from_slice(&bytes);
            }
            for gap in content.layout().missing() {
                prop_assert!(gap.end <= content.layout().kept);
                let gap = gap.start as usize..gap.end as usize;
                whole[gap.clone()].copy_from_slice(&server[gap]);
            }
            prop_assert_eq!(&whole, &plain);
            let sent = match content.layout().delta() {
                Delta::Nothing => server.clone(),
                Delta::Append { from } => {
                    prop_assert_eq!(from as usize, server.len());
                    [&server[..], &plain[from as usize..]].concat()
                }
                Delta::Cut => server[..plain.len()].to_vec(),
                Delta::Patch(ranges) => {
                    let mut patched = server.clone();
                    patched.resize(plain.len(), 0);
                    for range in ranges {
                        let range = range.start as usize..range.end as usize;
                        patched[range.clone()].copy_from_slice(&plain[range]);
                    }
                    patched
                }
                Delta::Whole => plain.clone(),
            };
            prop_assert_eq!(sent, plain);
        }
    }
}
