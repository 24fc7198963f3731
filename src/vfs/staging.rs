//! The local file behind a file that is being written.
//!
//! Its bytes stay until the server confirmed them. An existing file is fetched whole before its
//! first change; a commit sends the whole file. A file that is there already is never replaced by
//! a half-written one: the upload goes to a name beside it, which is then renamed over it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tempfile::{NamedTempFile, TempPath};

use super::attr::Version;
use super::error::{Error, Result};
use super::journal::{self, Note, Orphan};
use super::reader::Reader;
use super::sender::Sender;
use crate::ftp::{self, Before, Pool, RemotePath, Reply, Timestamp};

/// From this size on a new file is sent while it is still being written. Below it, sending takes
/// about as long as the round trips that a sender costs more (RNFR, RNTO).
const SEND_AHEAD_FROM: u64 = 1024 * 1024;

/// The block in which an existing file is fetched: two of the kernel's read-ahead windows.
const FETCH_BLOCK: usize = 256 * 1024;

/// What others may know of a staged file without waiting for whoever works on it (a read, or the
/// upload of a large file).
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    pub(crate) length: u64,
    /// As far as it is not the server's.
    pub(crate) mtime: Option<Timestamp>,
}

/// The view, once the content is local. A leaf lock, held to copy a value.
#[derive(Debug, Default)]
pub(crate) struct Shown(Mutex<Option<View>>);

impl Shown {
    pub(crate) fn view(&self) -> Option<View> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, view: View) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(view);
    }
}

/// A file being written.
#[derive(Debug)]
pub(crate) struct Staged {
    file: NamedTempFile,
    length: u64,
    /// Told of every change of length and time.
    shown: Arc<Shown>,
    /// What the server has under this name; `None` when it has nothing.
    base: Option<Version>,
    /// The permission bits of what the server has.
    base_mode: Option<u16>,
    /// The local file holds the content; before that it is empty and stands for the base.
    is_filled: bool,
    /// Something here is not on the server.
    is_dirty: bool,
    /// The name is gone: nothing is ever sent again.
    is_unlinked: bool,
    /// Set by programs before the content is on the server.
    mtime: Option<Timestamp>,
    mode: Option<u16>,
    last_error: Option<String>,
    /// Every byte was written at the end, from an empty file on: what is there will hardly change.
    is_sequential: bool,
    /// Sends what is there while more is written.
    sender: Option<Sender>,
    /// A sender was started for this content; one that gave up is not replaced.
    had_sender: bool,
    /// The time that the server gave to what was sent last.
    sent_mtime: Option<Timestamp>,
    /// A new file that was once sent under its own name, and not completely.
    may_be_partly_there: bool,
}

/// What a commit changed on the server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Committed {
    pub(crate) length: u64,
    /// As a program set it and the server took it.
    pub(crate) mtime: Option<Timestamp>,
    /// A program set it, but the server takes no times.
    pub(crate) mtime_to_remember: Option<Timestamp>,
    pub(crate) mode: Option<u16>,
    pub(crate) mode_to_remember: Option<u16>,
    /// The content was sent, so that the server's clock gave it a new time.
    pub(crate) was_sent: bool,
}

impl Staged {
    /// For a file that is on the server.
    pub(crate) fn of_existing(dir: &Path, base: Version, mode: Option<u16>) -> Result<Self> {
        Ok(Self { base: Some(base), base_mode: mode, ..Self::empty(dir)? })
    }

    /// For a file that is on the server under no name yet. It is dirty from the start, so that an
    /// empty file is sent too.
    pub(crate) fn of_new(dir: &Path, mode: Option<u16>) -> Result<Self> {
        let new = Self { is_filled: true, is_dirty: true, mode, ..Self::empty(dir)? };
        new.show();
        Ok(new)
    }

    /// What an earlier process left unsent: its whole content is here.
    pub(crate) fn of_orphan(orphan: Orphan, base: Option<Version>) -> Result<Self> {
        let Orphan { note, file, path } = orphan;
        let length = file.metadata()?.len();
        let mut file = NamedTempFile::from_parts(file, TempPath::try_from_path(path)?);
        // Until `own_file`: if somebody else stages the file first, this one must not go.
        file.disable_cleanup(true);
        let adopted = Self {
            length,
            base,
            is_filled: true,
            is_dirty: true,
            is_sequential: false,
            mode: note.mode,
            mtime: note.mtime(),
            may_be_partly_there: true,
            ..Self::around(file)
        };
        adopted.show();
        Ok(adopted)
    }

    /// The local file goes when it is no longer needed.
    pub(crate) fn own_file(&mut self) {
        self.file.disable_cleanup(false);
    }

    fn empty(dir: &Path) -> Result<Self> {
        let file = tempfile::Builder::new().prefix("upload-").tempfile_in(dir)?;
        // Held until this process ends, so that another one leaves it alone.
        file.as_file().lock()?;
        Ok(Self::around(file))
    }

    fn around(file: NamedTempFile) -> Self {
        Self {
            file,
            length: 0,
            shown: Arc::default(),
            base: None,
            base_mode: None,
            is_filled: false,
            is_dirty: false,
            is_unlinked: false,
            mtime: None,
            mode: None,
            last_error: None,
            is_sequential: true,
            sender: None,
            had_sender: false,
            sent_mtime: None,
            may_be_partly_there: false,
        }
    }

    /// Are reads and attributes to be taken from here?
    pub(crate) fn is_filled(&self) -> bool {
        self.is_filled
    }

    pub(crate) fn is_dirty(&self) -> bool {
        self.is_dirty && !self.is_unlinked
    }

    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    pub(crate) fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    /// Writes down where the content belongs. Without a note it is sent all the same, by this
    /// process.
    fn note(&self, pool: &Pool, path: &RemotePath) {
        let base = self.base.filter(|_| !self.is_unlinked);
        let note = Note::new(pool.server_name(), path.as_bytes(), base, self.mode, self.mtime);
        if let Err(error) = note.write(self.file.path()) {
            log::warn!("no note of what is unsent: {}: {error}", self.file.path().display());
        }
    }

    /// The local file stays when this process ends, with a note of where it belongs; where it is.
    pub(crate) fn keep(&mut self, pool: &Pool, path: Option<&RemotePath>) -> PathBuf {
        if let Some(path) = path {
            self.note(pool, path);
        }
        self.file.disable_cleanup(true);
        self.file.path().to_owned()
    }

    pub(crate) fn shown(&self) -> &Arc<Shown> {
        &self.shown
    }

    fn show(&self) {
        self.shown.set(View { length: self.length, mtime: self.mtime });
    }

    /// The server has nothing under this name, refused to have it, and nothing would be lost.
    pub(crate) fn is_refused_and_empty(&self) -> bool {
        self.is_dirty() && self.base.is_none() && self.length == 0 && self.last_error.is_some()
    }

    /// The name was removed: the content is for those who have the file open.
    pub(crate) fn unlink(&mut self) {
        journal::strike(self.file.path());
        self.is_unlinked = true;
        self.base = None;
        self.stop_sender();
    }

    /// Up to `length` bytes at `offset`; fewer only at the end.
    pub(crate) fn read_at(&self, offset: u64, length: usize) -> Result<Vec<u8>> {
        let left = usize::try_from(self.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; length.min(left)];
        self.local().read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// Writes at `offset`, with zeros before it if the file was shorter (pwrite(2)).
    pub(crate) fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        if offset != self.length {
            self.stop_sender();
        }
        self.local().write_all_at(bytes, offset)?;
        self.length = self.length.max(offset + bytes.len() as u64);
        self.touch();
        if let Some(sender) = &self.sender {
            sender.advance(self.length);
        }
        Ok(())
    }

    /// Is it time to begin sending, before the writer is done?
    pub(crate) fn wants_sender(&self) -> bool {
        self.is_sequential && !self.had_sender && self.length >= SEND_AHEAD_FROM
    }

    /// Begins to send to a name beside `path`. Failing costs nothing: the commit sends everything.
    pub(crate) fn send_ahead(&mut self, pool: &Arc<Pool>, path: &RemotePath) {
        self.had_sender = true;
        let started = beside(path)
            .and_then(|beside| Ok(Sender::start(pool, beside, self.file.reopen()?, self.length)?));
        match started {
            Ok(sender) => self.sender = Some(sender),
            Err(error) => log::info!("{path} is sent when it is closed: {error}"),
        }
    }

    /// Something before the end changes: what was sent is worth nothing.
    fn stop_sender(&mut self) {
        self.is_sequential = false;
        self.sender = None;
    }

    /// Cuts the file, or lengthens it with zeros.
    pub(crate) fn truncate(&mut self, length: u64) -> Result<()> {
        self.stop_sender();
        self.local().set_len(length)?;
        self.length = length;
        self.is_filled = true;
        if length == 0 {
            self.is_sequential = true;
            self.had_sender = false;
        }
        self.touch();
        Ok(())
    }

    /// A change of content: it ends a time set before it (utimensat, then write).
    fn touch(&mut self) {
        self.is_dirty = true;
        self.mtime = None;
        self.show();
    }

    /// A time or mode to be set once the content is on the server. True if it was taken: without
    /// unsent content the server is told at once, by the caller.
    pub(crate) fn set_mtime(&mut self, mtime: Timestamp) -> bool {
        if self.is_dirty {
            self.mtime = Some(mtime);
            self.show();
        }
        self.is_dirty
    }

    pub(crate) fn set_mode(&mut self, mode: u16) -> bool {
        if self.is_dirty {
            self.mode = Some(mode);
        }
        self.is_dirty
    }

    /// Fetches the content from the server, unless it is here. A connection lost on the way is
    /// taken up again where it stopped, if the file is still the same.
    pub(crate) fn fill(&mut self, pool: &Pool, path: &RemotePath, key: u64) -> Result<()> {
        if self.is_filled {
            return Ok(());
        }
        let version = self.base.unwrap_or(Version { size: None, mtime: None });
        let mut reader = Reader::to_end(version);
        let mut length = 0;
        loop {
            let block = reader.read(pool, path, key, length, FETCH_BLOCK)?;
            if block.is_empty() {
                break;
            }
            self.file.as_file().write_all_at(block, length)?;
            length += block.len() as u64;
        }
        self.length = length;
        self.is_filled = true;
        self.is_sequential = false;
        self.show();
        Ok(())
    }

    /// Brings everything to the server; `None` when there was nothing to bring. After an error
    /// the content is still here.
    pub(crate) fn commit(&mut self, pool: &Pool, path: &RemotePath) -> Result<Option<Committed>> {
        if !self.is_dirty() {
            return Ok(None);
        }
        // Before the first byte, so that it is known where this belongs if the process is killed.
        self.note(pool, path);
        let sent = self.send(pool, path);
        self.last_error = sent.as_ref().err().map(ToString::to_string);
        sent?;
        journal::strike(self.file.path());
        self.is_dirty = false;
        self.may_be_partly_there = false;
        self.base = Some(Version { size: Some(self.length), mtime: None });
        let committed = self.set_attributes(pool, path)?;
        // As far as the server told it, so that what others change from now on is noticed.
        self.base = Some(Version { size: Some(self.length), mtime: committed.mtime });
        Ok(Some(committed))
    }

    fn send(&mut self, pool: &Pool, path: &RemotePath) -> Result<()> {
        if let Some(sender) = self.sender.take() {
            match self.finish_sender(pool, path, sender) {
                Ok(()) => return Ok(()),
                Err(error) => log::info!("{path} is sent again from its beginning: {error}"),
            }
        }
        if self.base.is_none() && !self.may_be_partly_there {
            match self.store(pool, path, Before::Nothing) {
                Err(error) if error.is_transient() => {
                    // The server may go on writing what it has of this under its name: from now
                    // on the file comes whole, by a rename.
                    self.may_be_partly_there = true;
                    log::warn!("upload of {path}: {error}; once more from the beginning");
                }
                result => return result,
            }
        }
        match self.send_beside(pool, path) {
            Err(error) if error.is_transient() => {
                log::warn!("upload of {path}: {error}; once more from the beginning");
                self.send_beside(pool, path)
            }
            result => result,
        }
    }

    /// To a new name in the same directory, and from there by a rename.
    fn send_beside(&mut self, pool: &Pool, path: &RemotePath) -> Result<()> {
        let beside = beside(path)?;
        match self.store(pool, &beside, Before::Nothing) {
            Ok(()) => {}
            // No new names in this folder: the file itself is all there is to write to.
            Err(Error::Denied(text)) => {
                log::warn!("{path} is replaced in place, not by a rename: {text}");
                return self.store(pool, path, Before::Something);
            }
            Err(error) => {
                remove_quietly(pool, &beside);
                return Err(error);
            }
        }
        replace(pool, &beside, path).inspect_err(|_| remove_quietly(pool, &beside))
    }

    /// Was it tried to send it under its own name, without success?
    pub(crate) fn may_be_partly_there(&self) -> bool {
        self.may_be_partly_there
    }

    /// What was sent ahead becomes the file. The writer may go on after this (fsync): what is added
    /// then is sent with everything before it.
    fn finish_sender(&mut self, pool: &Pool, path: &RemotePath, sender: Sender) -> Result<()> {
        self.is_sequential = false;
        let beside = sender.path().clone();
        sender.finish(self.length)?;
        self.check(pool, &beside)
            .and_then(|()| replace(pool, &beside, path))
            .inspect_err(|_| remove_quietly(pool, &beside))
    }

    /// STOR, and the question whether all of it arrived.
    fn store(&mut self, pool: &Pool, path: &RemotePath, before: Before) -> Result<()> {
        pool.upload(path, self.local(), self.length, before)?;
        self.check(pool, path)
    }

    /// Asks whether every byte arrived: a proxy or NAT that ends the data connection properly, but
    /// too early, leaves the server with a part and a good conscience (226). One round trip.
    fn check(&mut self, pool: &Pool, path: &RemotePath) -> Result<()> {
        self.sent_mtime = None;
        if self.length == 0 {
            return Ok(());
        }
        match pool.ask(|session| session.size_and_time(path)) {
            Ok((Some(size), _)) if size != self.length => Err(Error::Io(format!(
                "the server has {size} bytes of {path}, {} were sent",
                self.length
            ))),
            Ok((_, mtime)) => {
                self.sent_mtime = mtime;
                Ok(())
            }
            // A server or folder that tells no sizes (write-only drop boxes): 226 must do.
            Err(ftp::Error::Refused(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Times and bits that programs set while the content was still here. The content is safe, so
    /// that a refusal here is only worth a warning: `cp -p` checks for itself.
    fn set_attributes(&mut self, pool: &Pool, path: &RemotePath) -> Result<Committed> {
        let mut committed = Committed {
            length: self.length,
            mtime: self.sent_mtime,
            mtime_to_remember: None,
            mode: None,
            mode_to_remember: None,
            was_sent: true,
        };
        // A replaced file keeps its bits; 0644 is what servers give to new files.
        let kept = self.base_mode.filter(|mode| *mode != 0o644);
        if let Some(mode) = self.mode.take().or(kept) {
            match pool.ask(|session| session.set_mode(path, mode)) {
                Ok(true) => committed.mode = Some(mode),
                Ok(false) | Err(ftp::Error::Refused(_)) => committed.mode_to_remember = Some(mode),
                Err(error) => return Err(error.into()),
            }
            self.base_mode = Some(mode);
        }
        // After the bits, as some servers count a change of bits as a change of the file.
        if let Some(mtime) = self.mtime.take() {
            match pool.ask(|session| session.set_modified(path, mtime.seconds)) {
                Ok(true) => committed.mtime = Some(mtime),
                Ok(false) | Err(ftp::Error::Refused(_)) => {
                    committed.mtime_to_remember = Some(mtime);
                }
                Err(error) => return Err(error.into()),
            }
        }
        // The time is the server's from now on.
        self.show();
        Ok(committed)
    }

    fn local(&self) -> &File {
        self.file.as_file()
    }
}

/// The names that ftpfs gives to files that nobody should see begin like this.
pub(crate) const OWN_PREFIX: &[u8] = b".ftpfs-";

/// A new name in the same directory.
pub(crate) fn beside(path: &RemotePath) -> Result<RemotePath> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    // The process and the time make it differ from what another mount, or a crash, left.
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64);
    let pid = std::process::id();
    let name = format!("{}{pid:x}-{nanos:x}-{count:x}~", String::from_utf8_lossy(OWN_PREFIX));
    let parent = path.parent().ok_or(Error::Invalid)?;
    Ok(parent.join(name.as_bytes())?)
}

/// Renames `from` over the existing `to`. Where the server refuses to (IIS, FileZilla Server: 550
/// or 553), the old file is moved aside first and comes back if the second step fails.
pub(crate) fn replace(pool: &Pool, from: &RemotePath, to: &RemotePath) -> Result<()> {
    if pool.renames_over() && move_once(pool, from, to)?.is_ok() {
        return Ok(());
    }
    let aside = beside(to)?;
    // If it is refused there is nothing to move, or nothing that may be moved: the next step tells.
    let had_old = move_once(pool, to, &aside)?.is_ok();
    match move_once(pool, from, to) {
        Ok(Ok(())) => {
            if had_old {
                pool.learn_renames_over(false);
                remove_quietly(pool, &aside);
            }
            Ok(())
        }
        failed => {
            if had_old && !matches!(move_once(pool, &aside, to), Ok(Ok(()))) {
                log::error!("{to} is now called {aside}: it could not be renamed back");
            }
            failed?.map_err(|reply| ftp::Error::Refused(reply).into())
        }
    }
}

/// Renames; the inner error is the server's refusal. A refusal of a second try, after the first one's
/// reply was lost, may come from the first one's success: then a look tells.
pub(crate) fn move_once(
    pool: &Pool,
    from: &RemotePath,
    to: &RemotePath,
) -> Result<std::result::Result<(), Reply>> {
    let (result, was_tried_twice) = pool.ask_noting(|session| session.rename(from, to));
    match result {
        Ok(()) => Ok(Ok(())),
        Err(ftp::Error::Refused(reply)) => {
            let is_done = was_tried_twice && !is_there(pool, from)? && is_there(pool, to)?;
            Ok(if is_done { Ok(()) } else { Err(reply) })
        }
        Err(error) => Err(error.into()),
    }
}

/// By the directory's listing, which alone proves absence.
fn is_there(pool: &Pool, path: &RemotePath) -> Result<bool> {
    let (Some(parent), Some(name)) = (path.parent(), path.name()) else { return Ok(true) };
    let entries = pool.ask(|session| session.list(&parent))?;
    Ok(entries.iter().any(|entry| entry.name.as_ref() == name))
}

/// Removes a file of our own; one that stays behind is only clutter.
pub(crate) fn remove_quietly(pool: &Pool, path: &RemotePath) {
    if let Err(error) = pool.ask(|session| session.remove_file(path)) {
        log::info!("{path} could not be removed: {error}");
    }
}
