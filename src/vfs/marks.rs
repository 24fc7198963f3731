//! Files of our own on the server, noted on the local disk while they are there.
//!
//! A *mark* names one; where it cannot be put away when its time has come, the end of the mount does
//! it, or the next one. The marks of a living process are locked (flock(2)), and left alone by all
//! others.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use super::journal::{decode, encode, names};
use super::lock;
use crate::ftp::RemotePath;

/// The names of marks begin so.
const MARK: &str = "mark-";

/// Why there is a file of our own on the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Purpose {
    /// An upload that is not complete, or a removed file that is still open: not needed any more.
    Scratch,
    /// The old version of a file that is being replaced: it goes back if nothing took its place.
    Aside,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct MarkText {
    server: String,
    purpose: Purpose,
    /// Both percent-encoded.
    path: String,
    owner: String,
}

impl MarkText {
    /// With both of its paths.
    fn read(text: &[u8]) -> Option<(Self, RemotePath, RemotePath)> {
        let text: Self = serde_json::from_slice(text).ok()?;
        let (path, owner) = (decode(&text.path)?, decode(&text.owner)?);
        Some((text, path, owner))
    }
}

/// On the local disk while there is a file of our own on the server; gone with the value.
#[derive(Debug)]
pub(crate) struct Mark {
    file: NamedTempFile,
    /// Dropped after the file.
    _counted: Counted,
}

impl Mark {
    /// Stays: the end of this mount, or the next one, puts the file away.
    pub(crate) fn leave(mut self) {
        self.file.disable_cleanup(true);
    }
}

/// Where marks are set, and for which server.
#[derive(Clone, Debug)]
pub(crate) struct Marks {
    dir: PathBuf,
    server: String,
    /// How many of this process there are.
    set: Arc<(Mutex<usize>, Condvar)>,
}

impl Marks {
    pub(crate) fn new(dir: PathBuf, server: String) -> Self {
        Self { dir, server, set: Arc::default() }
    }

    fn count(&self) -> Counted {
        *lock(&self.set.0) += 1;
        Counted(Arc::clone(&self.set))
    }

    /// Returns when none of this process is left, or after `most`: threads may still be at work that
    /// put files away.
    pub(crate) fn wait_until_none(&self, most: Duration) {
        let (count, changed) = &*self.set;
        // Who waits in vain leaves them to the next mount.
        drop(changed.wait_timeout_while(lock(count), most, |count| *count > 0));
    }

    /// Another process that looks for what is left may take an empty one before it is locked, and
    /// throw it away.
    fn locked(&self) -> io::Result<NamedTempFile> {
        loop {
            let file = tempfile::Builder::new().prefix(MARK).tempfile_in(&self.dir)?;
            file.as_file().lock()?;
            if file.as_file().metadata()?.nlink() > 0 {
                return Ok(file);
            }
        }
    }

    /// Before the file is made. Without a mark a crash leaves the file there, which is no reason
    /// not to go on.
    pub(crate) fn set(
        &self,
        purpose: Purpose,
        path: &RemotePath,
        owner: &RemotePath,
    ) -> Option<Mark> {
        let [path_text, owner] = [path, owner].map(|path| encode(path.as_bytes()));
        let text = MarkText { server: self.server.clone(), purpose, path: path_text, owner };
        let write = || -> io::Result<Mark> {
            let mut file = self.locked()?;
            file.write_all(&serde_json::to_vec(&text)?)?;
            Ok(Mark { file, _counted: self.count() })
        };
        write().map_err(|error| log::info!("no mark for {path}: {error}")).ok()
    }
}

/// One mark among those of this process.
#[derive(Debug)]
struct Counted(Arc<(Mutex<usize>, Condvar)>);

impl Drop for Counted {
    fn drop(&mut self) {
        let (count, changed) = &*self.0;
        *lock(count) -= 1;
        changed.notify_all();
    }
}

/// A file on the server that was not put away, and that no process works on.
#[derive(Debug)]
pub(crate) struct Leftover {
    pub(crate) purpose: Purpose,
    pub(crate) path: RemotePath,
    /// The file that it was made for.
    pub(crate) owner: RemotePath,
    mark: PathBuf,
    _lock: File,
}

impl Leftover {
    /// It is put away.
    pub(crate) fn strike(self) {
        let _ = fs::remove_file(&self.mark);
    }
}

/// All of them on this server.
pub(crate) fn leftovers(dir: &Path, server: &str) -> Vec<Leftover> {
    let is_mark = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(MARK))
    };
    let read = |mark: PathBuf| {
        let file = File::open(&mark).ok()?;
        file.try_lock().ok()?;
        let Some((text, path, owner)) = fs::read(&mark).ok().and_then(|text| MarkText::read(&text))
        else {
            // Its process ended while it wrote this, before there was anything to put away.
            let _ = fs::remove_file(&mark);
            return None;
        };
        let purpose = text.purpose;
        (text.server == server).then_some(Leftover { purpose, path, owner, mark, _lock: file })
    };
    names(dir).into_iter().filter(is_mark).filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_mark_is_found_when_its_process_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let (path, owner) =
            (RemotePath::parse(b"/.x~").unwrap(), RemotePath::parse(b"/x").unwrap());
        let marks = Marks::new(dir.path().to_owned(), "here".into());
        let mark = marks.set(Purpose::Aside, &path, &owner).unwrap();
        assert!(leftovers(dir.path(), "here").is_empty());
        let text = fs::read(mark.file.path()).unwrap();
        drop(mark);
        fs::write(dir.path().join("mark-1"), text).unwrap();
        assert!(leftovers(dir.path(), "elsewhere").is_empty());
        let mut found = leftovers(dir.path(), "here");
        assert_eq!((found.len(), &found[0].path, &found[0].owner), (1, &path, &owner));
        found.remove(0).strike();
        assert!(leftovers(dir.path(), "here").is_empty());
        // One that was only begun is nobody's.
        fs::write(dir.path().join("mark-2"), "").unwrap();
        assert!(leftovers(dir.path(), "here").is_empty());
        assert_eq!(names(dir.path()), Vec::<PathBuf>::new());
    }

    #[test]
    fn marks_are_kept_while_others_look_for_what_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = RemotePath::parse(b"/x").unwrap();
        let marks = Marks::new(dir.path().to_owned(), "here".into());
        let is_done = AtomicBool::new(false);
        let is_kept = std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !is_done.load(Ordering::Relaxed) {
                        assert!(leftovers(dir.path(), "here").is_empty());
                    }
                });
            }
            let set = || marks.set(Purpose::Scratch, &path, &path);
            let is_kept = (0..1000).all(|_| set().is_some_and(|mark| mark.file.path().exists()));
            is_done.store(true, Ordering::Relaxed);
            is_kept
        });
        assert!(is_kept);
    }
}
