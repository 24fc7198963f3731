//! What is unsent, on disk: beside each staged file, while the server does not have it, lies a note
//! that tells where it belongs. So it outlives a process that was killed, and the next mount of that
//! server sends it.
//!
//! A staged file is locked (flock(2)) by the process that works on it; one that can be locked is
//! nobody's any more.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use serde::{Deserialize, Serialize};

use super::attr::Version;
use crate::ftp::{Precision, Timestamp};

/// The names of notes end so.
const SUFFIX: &str = ".note";

/// Where a staged file belongs, and what it is to replace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    /// User, host and port.
    pub(crate) server: String,
    /// Absolute on the server, percent-encoded, as names are bytes.
    path: String,
    /// The version on the server when it was opened; a new file has none.
    base: Option<Base>,
    pub(crate) mode: Option<u16>,
    /// Seconds since 1970, as a program set it.
    mtime: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Base {
    size: Option<u64>,
    mtime: Option<i64>,
}

impl Note {
    pub(crate) fn new(
        server: String,
        path: &[u8],
        base: Option<Version>,
        mode: Option<u16>,
        mtime: Option<Timestamp>,
    ) -> Self {
        let seconds = |time: Timestamp| time.seconds;
        Self {
            server,
            path: percent_encode(path, NON_ALPHANUMERIC).to_string(),
            base: base.map(|base| Base { size: base.size, mtime: base.mtime.map(seconds) }),
            mode,
            mtime: mtime.map(seconds),
        }
    }

    pub(crate) fn path(&self) -> Vec<u8> {
        percent_decode_str(&self.path).collect()
    }

    /// Is this what was there when the file was opened?
    pub(crate) fn replaces(&self, now: &Version) -> bool {
        self.base.is_some_and(|base| {
            base.size == now.size && base.mtime == now.mtime.map(|time| time.seconds)
        })
    }

    pub(crate) fn mtime(&self) -> Option<Timestamp> {
        let precision = Precision::Second;
        self.mtime.map(|seconds| Timestamp { seconds, nanos: 0, precision })
    }

    /// Writes it beside the staged file, whole or not at all.
    pub(crate) fn write(&self, staged: &Path) -> io::Result<()> {
        let note = note_of(staged);
        let new = note.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        fs::rename(new, note)
    }
}

/// The server has it: no note any more.
pub(crate) fn strike(staged: &Path) {
    // It may never have been written.
    let _ = fs::remove_file(note_of(staged));
}

fn note_of(staged: &Path) -> PathBuf {
    let mut name = staged.as_os_str().to_owned();
    name.push(SUFFIX);
    name.into()
}

/// A staged file whose process has ended; locked now, so that nobody else takes it.
#[derive(Debug)]
pub(crate) struct Orphan {
    pub(crate) note: Note,
    pub(crate) file: File,
    pub(crate) path: PathBuf,
}

/// All of them in the staging directory. Notes that cannot be read are left for people to look at.
pub(crate) fn orphans(dir: &Path) -> Vec<Orphan> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.path());
    names
        .filter_map(|note| {
            let path = PathBuf::from(note.to_str()?.strip_suffix(SUFFIX)?);
            let file = OpenOptions::new().read(true).write(true).open(&path).ok()?;
            file.try_lock().ok()?;
            match serde_json::from_slice(&fs::read(&note).ok()?) {
                Ok(note) => Some(Orphan { note, file, path }),
                Err(error) => {
                    log::warn!("{} is damaged: {error}; left as it is", note.display());
                    None
                }
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note() -> Note {
        let base = Version { size: Some(7), mtime: None };
        Note::new("ftp://bob@nas:21".into(), b"/a\xff b", Some(base), Some(0o600), None)
    }

    #[test]
    fn a_note_comes_back_when_its_process_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("upload-1");
        let held = File::create(&path).unwrap();
        held.lock().unwrap();
        note().write(&path).unwrap();
        assert!(orphans(dir.path()).is_empty(), "somebody works on it");
        drop(held);
        let found = orphans(dir.path());
        assert_eq!((found.len(), &found[0].note), (1, &note()));
        assert_eq!(found[0].note.path(), b"/a\xff b");
        assert!(orphans(dir.path()).is_empty(), "one takes it");
        drop(found);
        strike(&path);
        assert!(orphans(dir.path()).is_empty());
    }

    #[test]
    fn a_damaged_note_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("upload-1");
        fs::write(&path, "precious").unwrap();
        fs::write(note_of(&path), "{\"server\":").unwrap();
        assert!(orphans(dir.path()).is_empty());
        assert!(path.exists() && note_of(&path).exists());
    }

    #[test]
    fn what_is_replaced_is_known_again() {
        let base = Version { size: Some(7), mtime: None };
        assert!(note().replaces(&base));
        assert!(!note().replaces(&Version { size: Some(8), ..base }));
    }
}
