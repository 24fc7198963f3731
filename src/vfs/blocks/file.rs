//! One version of one file in the cache directory: blocks are read from it and put into it.
//!
//! Several handles and several processes may have it open, and read and write at once: what a
//! block's entry does not vouch for is absent (see `layout`).

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::layout::{BLOCK, ENTRY, Entry, Layout, PROOF, name_of};

/// A version of a file that may be in the cache.
#[derive(Debug)]
pub(crate) struct BlockFile {
    /// The local file; it holds this version, another one, or is not there.
    local: PathBuf,
    layout: Layout,
    /// Open once it is known to hold this version.
    file: OnceLock<File>,
    /// Blocks that came before this were proven to be of this version, by whoever keeps the file
    /// too.
    proven: AtomicU64,
}

/// Blocks that are here.
#[derive(Debug)]
pub(crate) struct Found {
    /// Of all of them.
    pub(crate) bytes: Vec<u8>,
    /// When the last of them came.
    pub(crate) newest: u64,
}

impl BlockFile {
    /// Whatever of this version is in `dir`.
    pub(crate) fn new(dir: &Path, layout: Layout) -> Self {
        let local = dir.join(name_of(layout.text()));
        let this = Self { local, layout, file: OnceLock::new(), proven: AtomicU64::new(0) };
        this.look();
        this
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn local(&self) -> &Path {
        &self.local
    }

    /// Is anything of this version here?
    pub(crate) fn is_begun(&self) -> bool {
        self.file.get().is_some()
    }

    /// Up to when blocks came that need no further proof.
    pub(crate) fn proven(&self) -> u64 {
        self.proven.load(Ordering::Relaxed)
    }

    /// Opens the local file if it holds this version; marks it as used now.
    fn look(&self) -> Option<&File> {
        if let Some(file) = self.file.get() {
            return Some(file);
        }
        let file = OpenOptions::new().read(true).write(true).open(&self.local).ok()?;
        let mut head = vec![0; Layout::longest_head()];
        let length = read_up_to(&file, &mut head, 0).ok()?;
        let head = head.get(..length)?;
        if Layout::read(head).as_ref() != Some(&self.layout) {
            return None;
        }
        self.proven.store(self.layout.proven(head.get(PROOF)?), Ordering::Relaxed);
        // What is used least goes first; if this fails it is older than it should be.
        let _ = file.set_modified(std::time::SystemTime::now());
        let _ = self.file.set(file);
        self.file.get()
    }

    /// The same, with the local file made if need be, in place of that of another version.
    fn make(&self) -> io::Result<&File> {
        if let Some(file) = self.look() {
            return Ok(file);
        }
        let dir = self.local.parent().unwrap_or(Path::new("/"));
        let new = tempfile::Builder::new().prefix(super::UNFINISHED).tempfile_in(dir)?;
        new.as_file().write_all_at(&self.layout.head(), 0)?;
        let file = new.persist(&self.local).map_err(|error| error.error)?;
        let _ = self.file.set(file);
        self.file.get().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// All of these blocks, if they are here and whole, in `bytes`.
    pub(crate) fn read(&self, span: Range<u64>, mut bytes: Vec<u8>) -> Option<Found> {
        let file = self.file.get()?;
        let entries = self.entries(file, &span)?;
        let newest = entries.iter().map(|entry| entry.stamp).max()?;
        let range = self.layout.range(span.start).start..self.layout.range(span.end - 1).end;
        bytes.resize(usize::try_from(range.end - range.start).ok()?, 0);
        let at = self.layout.block_at(span.start);
        let length = read_up_to(file, &mut bytes, at).ok()?;
        let mut is_whole = true;
        let blocks = bytes.chunks(BLOCK as usize);
        for ((block, part), entry) in span.clone().zip(blocks).zip(entries) {
            let end = (block - span.start) * BLOCK + part.len() as u64;
            if length as u64 >= end && self.layout.entry(block, part, entry.stamp) == entry {
                continue;
            }
            is_whole = false;
            log::warn!("a block of {} in the cache is damaged", self.local.display());
            // Fetched anew, it will be kept again.
            let _ = file.write_all_at(&[0; ENTRY], self.layout.entry_at(block));
        }
        if !is_whole {
            return None;
        }
        Some(Found { bytes, newest })
    }

    /// Does the table say that all of these blocks are here?
    pub(crate) fn has(&self, span: &Range<u64>) -> bool {
        self.look().is_some_and(|file| self.entries(file, span).is_some())
    }

    /// When the last of these blocks came, if all are here.
    pub(crate) fn newest(&self, span: &Range<u64>) -> Option<u64> {
        let entries = self.entries(self.file.get()?, span)?;
        entries.iter().map(|entry| entry.stamp).max()
    }

    fn entries(&self, file: &File, span: &Range<u64>) -> Option<Vec<Entry>> {
        if span.is_empty() {
            return None;
        }
        let count = usize::try_from(span.end - span.start).ok()?;
        let mut table = vec![0; count * ENTRY];
        read_up_to(file, &mut table, self.layout.entry_at(span.start)).ok()?;
        table.chunks(ENTRY).map(Entry::read).collect()
    }

    /// Puts blocks that came at `stamp` where none are yet. What of it is missing after a failure
    /// is absent.
    pub(crate) fn put(&self, first: u64, bytes: &[u8], stamp: u64) -> io::Result<()> {
        let file = self.make()?;
        if file.metadata()?.nlink() == 0 {
            // Evicted, or replaced by another version: it would take room that nobody counts.
            return Err(io::ErrorKind::NotFound.into());
        }
        let parts: Vec<_> = (first..).zip(bytes.chunks(BLOCK as usize)).collect();
        let is_wanted = |(block, part): &(u64, &[u8])| {
            let range = self.layout.range(*block);
            let is_block = part.len() as u64 == range.end - range.start;
            is_block && self.entries(file, &(*block..block + 1)).is_none()
        };
        let is_next = |(a, _): &(u64, &[u8]), (b, _): &(u64, &[u8])| a + 1 == *b;
        let wanted: Vec<_> = parts.into_iter().filter(is_wanted).collect();
        for run in wanted.chunk_by(is_next) {
            let (Some((start, _)), Some((end, last))) = (run.first(), run.last()) else { continue };
            let from = usize::try_from((start - first) * BLOCK).map_err(io::Error::other)?;
            let to = usize::try_from((end - first) * BLOCK).map_err(io::Error::other)? + last.len();
            let together = bytes.get(from..to).unwrap_or_default();
            file.write_all_at(together, self.layout.block_at(*start))?;
            let entries = run.iter().map(|(block, part)| self.layout.entry(*block, part, stamp));
            let entries: Vec<u8> = entries.flat_map(|entry| entry.bytes()).collect();
            file.write_all_at(&entries, self.layout.entry_at(*start))?;
        }
        Ok(())
    }

    /// All that came before `stamp` is of this version, as the server has just said.
    pub(crate) fn prove(&self, stamp: u64) {
        self.proven.fetch_max(stamp, Ordering::Relaxed);
        if let Some(file) = self.file.get() {
            // If it cannot be noted, the server is asked again.
            let _ = file.write_all_at(&self.layout.proof(self.proven()), PROOF.start as u64);
        }
    }
}

/// The text of a cached file: whose it is.
pub(crate) fn text_of_file(local: &Path) -> Option<Vec<u8>> {
    let file = File::open(local).ok()?;
    let mut head = vec![0; Layout::longest_head()];
    let length = read_up_to(&file, &mut head, 0).ok()?;
    Layout::read(head.get(..length)?).map(|layout| layout.text().to_vec())
}

/// As many bytes as there are.
fn read_up_to(file: &File, mut buffer: &mut [u8], mut at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while !buffer.is_empty() {
        match file.read_at(buffer, at) {
            Ok(0) => break,
            Ok(count) => {
                buffer = buffer.get_mut(count..).unwrap_or_default();
                at += count as u64;
                filled += count;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ftp::{Precision, Timestamp};
    use crate::vfs::attr::Version;

    fn layout(size: u64, seconds: i64) -> Layout {
        let mtime = Some(Timestamp { seconds, nanos: 0, precision: Precision::Second });
        Layout::new("s", b"/f", &Version { size: Some(size), mtime }, None).unwrap()
    }

    fn bytes(length: usize, seed: u8) -> Vec<u8> {
        (0..length).map(|index| (index % 251) as u8 ^ seed).collect()
    }

    const SIZE: usize = 2 * BLOCK as usize + 10;

    #[test]
    fn blocks_come_back_also_through_another_handle() {
        let dir = tempfile::tempdir().unwrap();
        let first = BlockFile::new(dir.path(), layout(SIZE as u64, 1));
        assert!(!first.is_begun() && first.read(0..1, Vec::new()).is_none());
        let all = bytes(SIZE, 1);
        first.put(1, &all[BLOCK as usize..], 7).unwrap();
        assert!(first.read(0..3, Vec::new()).is_none(), "the first one is missing");
        let second = BlockFile::new(dir.path(), layout(SIZE as u64, 1));
        let found = second.read(1..3, Vec::new()).unwrap();
        assert_eq!((found.bytes, found.newest), (all[BLOCK as usize..].to_vec(), 7));
        second.put(0, &all[..BLOCK as usize], 9).unwrap();
        assert_eq!(first.read(0..3, Vec::new()).unwrap().newest, 9);
        second.put(0, &all, 11).unwrap();
        assert_eq!(
            first.read(0..3, Vec::new()).unwrap().newest,
            9,
            "what is here is not put again"
        );
        second.prove(10);
        let third = BlockFile::new(dir.path(), layout(SIZE as u64, 1));
        assert_eq!(third.proven(), 10);
    }

    #[test]
    fn another_version_takes_the_place_and_nothing_of_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let old = BlockFile::new(dir.path(), layout(SIZE as u64, 1));
        old.put(0, &bytes(SIZE, 1), 7).unwrap();
        let new = BlockFile::new(dir.path(), layout(SIZE as u64, 2));
        assert!(!new.is_begun());
        new.put(0, &bytes(BLOCK as usize, 2), 8).unwrap();
        assert!(new.read(0..2, Vec::new()).is_none());
        assert_eq!(new.read(0..1, Vec::new()).unwrap().bytes, bytes(BLOCK as usize, 2));
        assert_eq!(
            old.read(0..3, Vec::new()).unwrap().bytes,
            bytes(SIZE, 1),
            "who has it open keeps it"
        );
        assert!(old.put(0, &bytes(SIZE, 1), 9).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_damaged_or_cut_is_absent_and_can_be_put_again() {
        let dir = tempfile::tempdir().unwrap();
        let all = bytes(SIZE, 1);
        let file = BlockFile::new(dir.path(), layout(SIZE as u64, 1));
        file.put(0, &all, 7).unwrap();
        let local = OpenOptions::new().write(true).open(file.local()).unwrap();
        local.write_all_at(b"!", file.layout().block_at(1) + 5).unwrap();
        assert!(file.read(0..3, Vec::new()).is_none());
        assert!(file.read(0..1, Vec::new()).is_some() && !file.has(&(1..2)));
        file.put(1, &all[BLOCK as usize..], 8).unwrap();
        assert_eq!(file.read(0..3, Vec::new()).unwrap().bytes, all);
        for length in [file.layout().block_at(2) + 3, file.layout().entry_at(1) + 5, 20, 0] {
            local.set_len(length).unwrap();
            assert!(file.read(0..3, Vec::new()).is_none(), "{length}");
            let again = BlockFile::new(dir.path(), layout(SIZE as u64, 1));
            // A damaged one beside an absent one is found out the second time.
            for stamp in [9, 10] {
                assert!(again.read(0..3, Vec::new()).is_none_or(|found| found.bytes == all));
                again.put(0, &all, stamp).unwrap();
            }
            assert_eq!(again.read(0..3, Vec::new()).unwrap().bytes, all, "{length}");
        }
    }
}
