//! What is unsent must outlive this process, on the local disk.
//!
//! A *note* lies beside the local copy of a file that the server does not have yet, and tells where
//! it belongs; the next mount of that server sends it. What belongs to a living process is locked
//! (flock(2)), and left alone by all others.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use serde::{Deserialize, Serialize};

use super::attr::Version;
use super::content::Layout;
use crate::ftp::{Precision, RemotePath, Timestamp};

/// The names of notes end so, after the name of the local copy.
const SUFFIX: &str = ".note";

/// The names of notes that are being written end so.
const UNFINISHED: &str = ".new";

/// The names of local copies begin so; what follows is random, without a dot.
pub(crate) const COPY: &str = "upload-";

/// What a note becomes that cannot be understood.
const DAMAGED: &str = ".damaged";

/// Where a local copy belongs, and what it is to replace.
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
    /// Which bytes are here. The local copy may be longer, by what was added later and promised to
    /// nobody.
    pub(crate) layout: Layout,
    /// Parts of it may be under its name already: an attempt to send it had begun.
    pub(crate) may_be_partly_there: bool,
    /// When it was promised, in nanoseconds since 1970: of two notes for one name (a rename that a
    /// kill cut short) the later one holds.
    written: u64,
    /// A rename of this file, percent-encoded, to the name was under way: where it has happened,
    /// nothing is to be sent any more.
    #[serde(default)]
    yields_to: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Base {
    size: Option<u64>,
    mtime: Option<i64>,
}

/// Must it be on the disk before anything else happens, or is it enough that it outlives this
/// process?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    Process,
    Disk,
}

impl Note {
    pub(crate) fn new(server: String, path: &[u8], layout: Layout) -> Self {
        Self {
            server,
            path: encode(path),
            base: None,
            mode: None,
            mtime: None,
            layout,
            may_be_partly_there: false,
            written: now(),
            yields_to: None,
        }
    }

    pub(crate) fn yielding_to(self, path: Option<&RemotePath>) -> Self {
        Self { yields_to: path.map(|path| encode(path.as_bytes())), ..self }
    }

    /// The name of a directory above it changed.
    pub(crate) fn moved(self, path: &RemotePath) -> Self {
        Self { path: encode(path.as_bytes()), ..self }
    }

    /// It belongs under another name now, over `base`: all of it is to be sent.
    pub(crate) fn retargeted(mut self, path: &RemotePath, base: Option<Version>) -> Self {
        self.layout.replace_whole();
        self.may_be_partly_there = false;
        self.moved(path).with_base(base)
    }

    pub(crate) fn yields_to(&self) -> Option<RemotePath> {
        decode(self.yields_to.as_ref()?)
    }

    pub(crate) fn with_base(self, base: Option<Version>) -> Self {
        let seconds = |time: Timestamp| time.seconds;
        let base = base.map(|base| Base { size: base.size, mtime: base.mtime.map(seconds) });
        Self { base, ..self }
    }

    pub(crate) fn with_attributes(self, mode: Option<u16>, mtime: Option<Timestamp>) -> Self {
        Self { mode, mtime: mtime.map(|time| time.seconds), ..self }
    }

    pub(crate) fn path(&self) -> Vec<u8> {
        percent_decode_str(&self.path).collect()
    }

    /// What was there when the file was opened. The seconds may have been told as minutes.
    pub(crate) fn base(&self) -> Option<Version> {
        self.base.map(|base| Version { size: base.size, mtime: base.mtime.map(minute) })
    }

    pub(crate) fn mtime(&self) -> Option<Timestamp> {
        let precision = Precision::Second;
        self.mtime.map(|seconds| Timestamp { seconds, nanos: 0, precision })
    }

    /// Writes it beside the local copy, whole or not at all.
    pub(crate) fn write(&self, copy: &Path, durability: Durability) -> io::Result<()> {
        let note = note_of(copy);
        let new = copy.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        if durability == Durability::Disk {
            file.sync_all()?;
        }
        fs::rename(new, &note)?;
        match note.parent() {
            Some(dir) if durability == Durability::Disk => File::open(dir)?.sync_all(),
            _ => Ok(()),
        }
    }
}

/// LIST tells minutes, and a note does not say what told its time: a minute is close enough to
/// know a file again whose size is the same.
fn minute(seconds: i64) -> Timestamp {
    Timestamp { seconds, nanos: 0, precision: Precision::Minute }
}

/// Changes the note beside the local copy, if there is one; what it promises was promised before
/// whatever was written since.
pub(crate) fn amend(copy: &Path, change: impl FnOnce(Note) -> Note) -> io::Result<()> {
    let text = match fs::read(note_of(copy)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        text => text?,
    };
    let note = change(serde_json::from_slice(&text)?);
    Note { written: now(), ..note }.write(copy, Durability::Disk)
}

fn now() -> u64 {
    UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64)
}

pub(super) fn encode(path: &[u8]) -> String {
    percent_encode(path, NON_ALPHANUMERIC).to_string()
}

pub(super) fn decode(text: &str) -> Option<RemotePath> {
    RemotePath::parse(&percent_decode_str(text).collect::<Vec<_>>()).ok()
}

/// The server has it: no note any more.
pub(crate) fn strike(copy: &Path) {
    // It may never have been written.
    let _ = fs::remove_file(note_of(copy));
}

/// Nobody wants it any more: neither the note, damaged or not, nor the local copy.
pub(crate) fn forget(copy: &Path) -> io::Result<()> {
    strike(copy);
    let mut damaged = note_of(copy).into_os_string();
    damaged.push(DAMAGED);
    let _ = fs::remove_file(damaged);
    fs::remove_file(copy)
}

fn note_of(copy: &Path) -> PathBuf {
    let mut name = copy.as_os_str().to_owned();
    name.push(SUFFIX);
    name.into()
}

/// A local copy whose process has ended; locked now, so that nobody else takes it.
#[derive(Debug)]
pub(crate) struct LeftBehind {
    pub(crate) note: Note,
    pub(crate) file: File,
    pub(crate) path: PathBuf,
}

/// All of them in the staging directory. A damaged note is set aside, with a message; it and the
/// local copy stay for people to look at.
pub(crate) fn left_behind(dir: &Path) -> Vec<LeftBehind> {
    let mut latest: HashMap<(String, String), LeftBehind> = HashMap::new();
    for found in all_left_behind(dir) {
        match latest.entry((found.note.server.clone(), found.note.path.clone())) {
            Entry::Vacant(place) => drop(place.insert(found)),
            Entry::Occupied(mut place) => {
                let is_later = found.note.written > place.get().note.written;
                let older = if is_later { place.insert(found) } else { found };
                // It would have been removed a moment later.
                let _ = forget(&older.path);
            }
        }
    }
    latest.into_values().collect()
}

fn all_left_behind(dir: &Path) -> Vec<LeftBehind> {
    let notes = names(dir).into_iter().filter_map(|note| {
        let path = PathBuf::from(note.to_str()?.strip_suffix(SUFFIX)?);
        let file = OpenOptions::new().read(true).write(true).open(&path).ok()?;
        file.try_lock().ok()?;
        match read_note(&note, &file) {
            Ok(note) => Some(LeftBehind { note, file, path }),
            Err(error) => {
                set_aside(&note, &path, &error);
                None
            }
        }
    });
    notes.collect()
}

fn read_note(note: &Path, copy: &File) -> io::Result<Note> {
    let note: Note = serde_json::from_slice(&fs::read(note)?)?;
    let needed = note.layout.present.iter().map(|range| range.end).max().unwrap_or(0);
    if copy.metadata()?.len() < needed {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the local copy is too short"));
    }
    Ok(note)
}

fn set_aside(note: &Path, copy: &Path, error: &io::Error) {
    let mut aside = note.as_os_str().to_owned();
    aside.push(DAMAGED);
    // If it cannot be renamed it is found, and told of, again.
    let _ = fs::rename(note, &aside);
    log::error!(
        "a note of what is unsent is damaged ({error}): nothing is guessed, the bytes are {}, and \
         the note is {} now",
        copy.display(),
        Path::new(&aside).display()
    );
}

/// Removes what a process that ended left here and promised to nobody: local copies without a
/// note, and notes that were not finished.
pub(crate) fn sweep(dir: &Path) {
    let is_promised = |copy: &Path| {
        let mut damaged = note_of(copy).into_os_string();
        damaged.push(DAMAGED);
        note_of(copy).exists() || Path::new(&damaged).exists()
    };
    for path in names(dir) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // A note that was begun lies beside its copy, and has its name but for the end.
        let copy = if name.ends_with(UNFINISHED) { path.with_extension("") } else { path.clone() };
        let is_copy = name.starts_with(COPY) && path.extension().is_none();
        if !is_copy && !name.ends_with(UNFINISHED) {
            continue;
        }
        let is_nobodys = File::open(&copy).map_or(true, |file| file.try_lock().is_ok());
        if is_nobodys && (copy != path || !is_promised(&path)) {
            let _ = fs::remove_file(&path);
        }
    }
}

/// Notes that were set aside, each with its local copy.
pub(crate) fn damaged(dir: &Path) -> Vec<PathBuf> {
    let copy =
        |note: PathBuf| Some(note.to_str()?.strip_suffix(DAMAGED)?.strip_suffix(SUFFIX)?.into());
    names(dir).into_iter().filter_map(copy).collect()
}

pub(super) fn names(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note() -> Note {
        let base = Version { size: Some(7), mtime: None };
        let layout = Layout::of_existing(7);
        Note::new("ftp://bob@nas:21".into(), b"/a\xff b", layout)
            .with_base(Some(base))
            .with_attributes(Some(0o600), None)
    }

    #[test]
    fn a_note_comes_back_when_its_process_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("upload-1");
        let held = File::create(&path).unwrap();
        held.lock().unwrap();
        note().write(&path, Durability::Disk).unwrap();
        assert!(left_behind(dir.path()).is_empty(), "somebody works on it");
        drop(held);
        let found = left_behind(dir.path());
        let written = found[0].note.written;
        assert_eq!((found.len(), &found[0].note), (1, &Note { written, ..note() }));
        assert_eq!(found[0].note.path(), b"/a\xff b");
        assert!(left_behind(dir.path()).is_empty(), "one takes it");
        drop(found);
        strike(&path);
        assert!(left_behind(dir.path()).is_empty());
    }

    #[test]
    fn what_nobody_was_promised_is_swept_away() {
        let dir = tempfile::tempdir().unwrap();
        let [held, promised, lost] = ["held", "promised", "lost"].map(|name| {
            let path = dir.path().join(format!("{COPY}{name}"));
            (File::create(&path).unwrap(), path)
        });
        held.0.lock().unwrap();
        note().write(&promised.1, Durability::Process).unwrap();
        fs::write(lost.1.with_extension("new"), "{").unwrap();
        sweep(dir.path());
        assert!(held.1.exists() && promised.1.exists() && note_of(&promised.1).exists());
        assert!(!lost.1.exists() && !lost.1.with_extension("new").exists());
    }

    #[test]
    fn what_is_damaged_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("upload-1");
        fs::write(&path, "precious").unwrap();
        fs::write(note_of(&path), "{\"server\":").unwrap();
        assert!(left_behind(dir.path()).is_empty());
        assert_eq!(damaged(dir.path()), std::slice::from_ref(&path));
        assert!(path.exists() && !note_of(&path).exists());
        let mut too_long = note();
        too_long.layout.present.insert(0..9);
        too_long.write(&path, Durability::Process).unwrap();
        assert!(left_behind(dir.path()).is_empty(), "eight bytes are there, nine were promised");
    }
}
