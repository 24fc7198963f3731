//! What earlier processes left unsent, sent by this one.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::attr::Version;
use super::error::{Error, Result};
use super::files::{lock, new_item};
use super::journal::{self, Orphan};
use super::reader::Reader;
use super::staging::Staged;
use super::tree::{Ino, ROOT};
use super::{Vfs, journal::orphans};
use crate::ftp::RemotePath;

/// How much is compared at a time; a reader gives up to 2 MiB.
const BLOCK: usize = 256 * 1024;

/// A file that an ended process left on the local disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOver {
    /// User, host and port; sent when that is mounted again.
    pub server: String,
    pub path: String,
    pub bytes: u64,
    pub local: PathBuf,
}

/// What lies in a staging directory and is nobody's.
pub fn left_over(staging_dir: &Path) -> Vec<LeftOver> {
    let describe = |orphan: Orphan| LeftOver {
        path: String::from_utf8_lossy(&orphan.note.path()).into_owned(),
        bytes: orphan.file.metadata().map_or(0, |about| about.len()),
        server: orphan.note.server,
        local: orphan.path,
    };
    orphans(staging_dir).into_iter().map(describe).collect()
}

impl Vfs {
    /// Sends what earlier mounts of this server left unsent. What somebody changed meanwhile is not
    /// overwritten: the unsent file is put beside it. What fails stays, and is tried again.
    pub fn recover(&self) {
        let server = self.pool.server_name();
        for orphan in orphans(&self.options.staging_dir) {
            if orphan.note.server != server {
                continue;
            }
            let path = String::from_utf8_lossy(&orphan.note.path()).into_owned();
            let local = orphan.path.clone();
            match self.adopt(orphan) {
                Ok(()) => log::warn!("{path}, unsent by an earlier mount, is on the server now"),
                Err(error) => log::error!(
                    "{path}, unsent by an earlier mount, could not be sent: {error}; it stays as {}",
                    local.display()
                ),
            }
        }
    }

    fn adopt(&self, orphan: Orphan) -> Result<()> {
        let path = RemotePath::parse(&orphan.note.path())?;
        let below = self.below_base(&path).ok_or(Error::NotFound)?;
        let (name, directories) = below.split_last().ok_or(Error::Invalid)?;
        let mut parent = ROOT;
        for directory in directories {
            let found = self.listing(parent, Instant::now())?;
            found.find(directory)?.ok_or(Error::NotFound)?;
            parent = self.tree().intern(parent, directory, 0);
        }
        let there = self.listing(parent, Instant::now())?.find(name)?;
        let mut name = name.clone();
        let mut base = None;
        if let Some(item) = &there {
            let version = Version::of(item);
            if self.is_same(&path, version, &orphan.file)? {
                // It had arrived, and only its process did not live to see it.
                journal::strike(&orphan.path);
                return Ok(std::fs::remove_file(&orphan.path)?);
            }
            if orphan.note.replaces(&version) {
                base = Some(version);
            } else {
                name = conflict_name(&name).into();
                log::warn!("{path} was changed meanwhile: what was unsent is put beside it");
            }
        }
        let ino = self.tree().intern(parent, &name, 0);
        self.send_orphan(parent, ino, &name, orphan, base)
    }

    fn send_orphan(
        &self,
        parent: Ino,
        ino: Ino,
        name: &[u8],
        orphan: Orphan,
        base: Option<Version>,
    ) -> Result<()> {
        if self.handles.staged(ino).is_some() {
            return Err(Error::Io("a program writes to it now".into()));
        }
        let mode = orphan.note.mode.unwrap_or(0o644);
        let staged = Staged::of_orphan(orphan, base)?;
        let length = staged.length();
        if base.is_none() {
            let mut item = new_item(name, mode);
            item.entry.size = Some(length);
            self.cache.put(parent, item);
        }
        let mine = Arc::clone(staged.shown());
        let shared = self.handles.stage(ino, || Ok(staged))?;
        if !Arc::ptr_eq(&mine, lock(&shared).shown()) {
            return Err(Error::Io("a program writes to it now".into()));
        }
        lock(&shared).own_file();
        let sent = self.commit(ino, &shared);
        drop(shared);
        self.unstage(ino);
        sent
    }

    /// The names from the mount's root on.
    fn below_base(&self, path: &RemotePath) -> Option<Vec<Box<[u8]>>> {
        let mut rest = path.components();
        for component in self.base.components() {
            if rest.next()? != component {
                return None;
            }
        }
        Some(rest.map(Into::into).collect())
    }

    /// Has the server the very bytes that are here?
    fn is_same(&self, path: &RemotePath, version: Version, local: &File) -> Result<bool> {
        let length = local.metadata()?.len();
        if version.size != Some(length) {
            return Ok(false);
        }
        let mut reader = Reader::new(version);
        let mut block = vec![0; BLOCK];
        let mut at = 0;
        while at < length {
            let theirs = reader.read(&self.pool, path, u64::MAX, at, BLOCK)?;
            let ours = block.get_mut(..theirs.len()).unwrap_or_default();
            if theirs.is_empty() || local.read_exact_at(ours, at).is_err() || ours != theirs {
                if let Some(download) = self.pool.resume(u64::MAX) {
                    download.leave(false);
                }
                return Ok(false);
            }
            at += theirs.len() as u64;
        }
        Ok(true)
    }
}

/// `report.txt` -> `report (unsent 2026-11-24 05.00.00).txt`
fn conflict_name(name: &[u8]) -> Vec<u8> {
    let mark = chrono::Utc::now().format(" (unsent %Y-%m-%d %H.%M.%S)").to_string();
    let dot = name.iter().rposition(|byte| *byte == b'.').filter(|at| *at > 0);
    let (stem, extension) = name.split_at(dot.unwrap_or(name.len()));
    [stem, mark.as_bytes(), extension].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conflict_names_keep_the_extension() {
        let name = |name: &str| String::from_utf8(conflict_name(name.as_bytes())).unwrap();
        assert!(name("a.b.txt").starts_with("a.b (unsent 2") && name("a.txt").ends_with(").txt"));
        assert!(name(".hidden").starts_with(".hidden (unsent "));
        assert!(name("plain").ends_with(')'));
    }
}
