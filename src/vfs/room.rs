//! How much of the local disk may be used: a cap of the user's, and a floor of free space that
//! other programs need. Whoever would pass either is told ENOSPC; nothing unsent is ever thrown
//! away to make room. What is only kept for reading (`blocks`) counts, and gives way.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::blocks::Blocks;

/// How much is written between two looks at the disk: rare enough to cost nothing beside the
/// writing (statvfs takes 1 µs, 64 MiB some 30 ms), and little beside the floor.
const ROUND: u64 = 64 * 1024 * 1024;

/// The floor: a twentieth of the disk, but no more than this; what a system needs for its logs and
/// for whoever cleans up.
const FLOOR: u64 = 1024 * 1024 * 1024;

/// The room for local copies.
#[derive(Debug)]
pub(crate) struct Room {
    dir: PathBuf,
    /// The most bytes of all files in the directory, and of what is kept for reading; `None`: as
    /// the floor allows.
    cap: Option<u64>,
    /// Gives way.
    blocks: Option<Arc<Blocks>>,
    /// What may be written before the next look. Only a hint, hence no lock.
    left: AtomicU64,
}

impl Room {
    pub(crate) fn new(dir: &Path, cap: Option<u64>, blocks: Option<Arc<Blocks>>) -> Self {
        Self { dir: dir.to_owned(), cap, blocks, left: AtomicU64::new(0) }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    #[cfg(test)]
    pub(crate) fn unlimited(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), cap: None, blocks: None, left: AtomicU64::new(u64::MAX) }
    }

    /// May so many bytes be written?
    pub(crate) fn check(&self, bytes: u64) -> io::Result<()> {
        if self.left.load(Ordering::Relaxed) >= bytes {
            return Ok(());
        }
        let mut room = self.look()?;
        if room < bytes
            && let Some(blocks) = &self.blocks
        {
            blocks.give_way(bytes - room, &self.dir);
            room = self.look()?;
        }
        if room < bytes {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        self.left.store(room.min(self.round()).max(bytes), Ordering::Relaxed);
        self.tell_promised();
        Ok(())
    }

    /// How much is written between two looks. What is promised here is lost to blocks: of a small
    /// cap only a little.
    fn round(&self) -> u64 {
        match (self.cap, &self.blocks) {
            (Some(cap), Some(_)) => ROUND.min(cap / 16),
            _ => ROUND,
        }
    }

    /// What may be written here before the next look is not there for blocks.
    fn tell_promised(&self) {
        if let Some(blocks) = &self.blocks {
            blocks.note_promised(self.left.load(Ordering::Relaxed));
        }
    }

    /// So many bytes were written.
    pub(crate) fn note(&self, bytes: u64) {
        let less = |left: u64| Some(left.saturating_sub(bytes));
        // The closure never refuses.
        let _ = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        self.tell_promised();
    }

    /// What may be written now.
    fn look(&self) -> io::Result<u64> {
        let free = free(&self.dir)?;
        let Some(cap) = self.cap else { return Ok(free) };
        let kept = self.blocks.as_ref().map_or(0, |blocks| blocks.used_or_promised());
        Ok(free.min(cap.saturating_sub(used(&self.dir)? + kept)))
    }
}

/// What a disk has, in bytes: all of it, and what this user may still write.
fn disk(path: &Path) -> io::Result<(u64, u64)> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut about = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path is NUL-ended; the kernel fills one struct at `about` (statvfs(3)), which
    // is read only after it succeeded.
    let about = unsafe {
        if libc::statvfs(path.as_ptr(), about.as_mut_ptr()) == -1 {
            return Err(io::Error::last_os_error());
        }
        about.assume_init()
    };
    let bytes = |blocks: u64| blocks.saturating_mul(about.f_frsize);
    Ok((bytes(about.f_blocks), bytes(about.f_bavail)))
}

/// Free above the floor, on the disk that holds a directory.
pub(crate) fn free(dir: &Path) -> io::Result<u64> {
    let (total, free) = disk(dir)?;
    Ok(free.saturating_sub((total / 20).min(FLOOR)))
}

/// All of that disk.
pub(crate) fn total(dir: &Path) -> io::Result<u64> {
    Ok(disk(dir)?.0)
}

/// What the files in a directory take up; holes do not count.
pub(crate) fn used(dir: &Path) -> io::Result<u64> {
    let mut used = 0;
    for entry in std::fs::read_dir(dir)? {
        // One that has just gone takes up nothing.
        used += entry?.metadata().map_or(0, |about| about.blocks() * 512);
    }
    Ok(used)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cap_holds_and_room_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let room = Room::new(dir.path(), Some(1024 * 1024), None);
        room.check(512 * 1024).unwrap();
        std::fs::write(dir.path().join("a"), vec![1; 768 * 1024]).unwrap();
        room.note(768 * 1024);
        let error = room.check(512 * 1024).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        std::fs::remove_file(dir.path().join("a")).unwrap();
        room.check(512 * 1024).unwrap();
    }
}
