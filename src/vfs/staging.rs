//! A file being written: its local copy, what the server has of it, and who works on it.
//!
//! Bytes stay here until the server confirmed them. Nothing is fetched before it is needed. While
//! the content is sent it does not change: a writer waits for a send that somebody waits for, and
//! stops one that runs in the background. Readers never wait for a send.

mod send;
mod source;
mod state;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::attr::Version;
use super::content::{Content, Layout};
use super::error::Result;
use super::journal::{Durability, LeftBehind};
use super::marks::Marks;
use super::reader::Reader;
use super::room::Room;
use crate::ftp::{Pool, RemotePath, Timestamp};
pub(crate) use send::Job;
use send::SendEnds;
use state::State;

/// From this size on a file is sent while it is still being written. Below it, sending takes about
/// as long as the round trips that a sender costs more (RNFR, RNTO).
pub(crate) const SEND_AHEAD_FROM: u64 = 1024 * 1024;

/// Where a file is on the server, and how to get there.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) pool: &'a Arc<Pool>,
    pub(crate) marks: &'a Marks,
    pub(crate) path: &'a RemotePath,
    /// Under which a transfer that fetches is parked.
    pub(crate) key: u64,
}

/// What others may know of a changed file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    pub(crate) length: u64,
    /// As far as it is not the server's.
    pub(crate) mtime: Option<Timestamp>,
}

/// Who waits for a send?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// A program.
    Foreground,
    /// Nobody: it stops when somebody writes.
    Background,
}

/// Where a write begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    At(u64),
    /// O_APPEND.
    End,
}

/// A file being written.
#[derive(Debug)]
pub(crate) struct Staged {
    room: Arc<Room>,
    /// Held for local I/O only, never for the server's; after `source`.
    state: Mutex<State>,
    /// Signalled when a send ends.
    ended: Condvar,
    /// Fetches what is not here; held during I/O, before Tree, DirCache and Pool.
    source: Mutex<Option<Reader>>,
    /// The send that is under way is to stop.
    is_unwanted: AtomicBool,
}

/// What attempts that failed may have left on the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traces {
    /// A part of it stands under its name.
    pub(crate) may_be_partly_there: bool,
    /// A part of what is appended from here on.
    pub(crate) appended_from: Option<u64>,
}

impl Staged {
    /// For a file that is on the server.
    pub(crate) fn of_existing(
        room: &Arc<Room>,
        base: Version,
        base_mode: Option<u16>,
    ) -> Result<Self> {
        let layout = match base.size {
            Some(size) => Layout::of_existing(size),
            // Longer than anything: as long as it is not known, only the whole can be sent.
            None => Layout { base_length: u64::MAX, ..Layout::default() },
        };
        let content = Content::new(room.dir(), layout)?;
        let state =
            State { base: Some(base), base_mode, ..State::new(content, base.size.is_some()) };
        Ok(Self::around(room, state))
    }

    /// For a file that is on the server under no name yet. It counts as changed from the start, so
    /// that an empty file is sent too.
    pub(crate) fn of_new(room: &Arc<Room>, mode: Option<u16>) -> Result<Self> {
        let content = Content::new(room.dir(), Layout::default())?;
        let state = State::new(content, true);
        Ok(Self::around(room, State { is_changed: true, was_changed: true, mode, ..state }))
    }

    /// What an earlier process left unsent, to replace `base`.
    pub(crate) fn of_left_behind(
        room: &Arc<Room>,
        found: LeftBehind,
        base: Option<Version>,
        traces: Traces,
    ) -> Result<Self> {
        let LeftBehind { note, file, path } = found;
        let (mode, mtime) = (note.mode, note.mtime());
        let content = Content::of_left_over(file, path, note.layout)?;
        let state = State {
            base,
            is_changed: true,
            was_changed: true,
            is_sequential: false,
            is_promised: true,
            is_append_only: false,
            mode,
            mtime,
            traces,
            ..State::new(content, true)
        };
        Ok(Self::around(room, state))
    }

    fn around(room: &Arc<Room>, state: State) -> Self {
        Self {
            room: Arc::clone(room),
            state: Mutex::new(state),
            ended: Condvar::new(),
            source: Mutex::new(None),
            is_unwanted: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, once nobody sends it. One that sends in the background stops for us.
    fn lock_quiet(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        while let Some(urgency) = state.sending {
            if urgency == Urgency::Background {
                self.is_unwanted.store(true, Ordering::Relaxed);
            }
            // Each step of a send has a deadline, so that it ends.
            state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state
    }

    /// The local file goes when it is no longer needed.
    pub(crate) fn own_file(&self) {
        self.lock().content.own();
    }

    /// Are reads to be answered from here?
    pub(crate) fn serves(&self) -> bool {
        self.lock().was_changed
    }

    pub(crate) fn is_dirty(&self) -> bool {
        self.lock().is_dirty()
    }

    /// Is everything that a reader may ask for here?
    pub(crate) fn is_complete(&self) -> bool {
        let state = self.lock();
        state.is_sized && state.content.is_complete()
    }

    /// Has the server nothing of it at all? To be asked by who holds it, as it may be sent just now.
    pub(crate) fn is_only_here(&self) -> bool {
        let state = self.lock();
        state.base.is_none() && !state.traces.may_be_partly_there && state.is_dirty()
    }

    pub(crate) fn last_error(&self) -> Option<String> {
        self.lock().last_error.clone()
    }

    /// Length and time, as far as they are not the server's.
    pub(crate) fn view(&self) -> Option<View> {
        let state = self.lock();
        let differs = state.is_changed || state.is_unlinked;
        let mtime = state.mtime.or(state.changed_at);
        differs.then_some(View { length: state.content.length(), mtime })
    }

    /// The server has nothing under this name, refused to have it, and nothing would be lost.
    pub(crate) fn is_refused_and_empty(&self) -> bool {
        let state = self.lock();
        let is_empty = state.base.is_none() && state.content.length() == 0;
        state.is_dirty() && is_empty && state.last_error.is_some()
    }

    /// The name was removed, or given to another file: the content is for those who have the file
    /// open. `remove` hears whether the server may have something under the name; until it returns
    /// the note holds.
    pub(crate) fn unlink(&self, remove: impl FnOnce(bool)) {
        let mut state = self.lock();
        state.is_unlinked = true;
        self.is_unwanted.store(true, Ordering::Relaxed);
        drop(state);
        state = self.lock_quiet();
        state.stop_sender();
        let may_be_there = state.base.is_some() || state.traces.may_be_partly_there;
        drop(state);
        remove(may_be_there);
        self.lock().strike();
    }

    /// `from` is about to be renamed to the name, or (`None`) could not be. A kill in between must
    /// not bring back what is replaced.
    pub(crate) fn yield_to(&self, from: Option<&RemotePath>) -> Result<()> {
        let mut state = self.lock();
        // What could not be noted is not done either: no later note may tell of it.
        state.yields_to = None;
        state.amend_note(|note| note.yielding_to(from))?;
        state.yields_to = from.cloned();
        Ok(())
    }

    /// The same as `hold`, at once: a send that is under way stops, and begins anew if the name stays
    /// its own.
    pub(crate) fn seize(&self) -> impl Drop + '_ {
        self.is_unwanted.store(true, Ordering::Relaxed);
        self.hold()
    }

    /// The name is not its own any more: who waits to send it need not.
    pub(crate) fn disown(&self) {
        self.lock().is_unlinked = true;
    }

    /// Nothing is sent while the value lives.
    pub(crate) fn hold(&self) -> impl Drop + '_ {
        self.lock_quiet().sending = Some(Urgency::Foreground);
        SendEnds(self)
    }

    /// The name is another one now, `path`, at which the server has `base`. Nothing is sent meanwhile:
    /// the caller holds it.
    pub(crate) fn retarget(&self, base: Option<Version>, path: &RemotePath) -> Result<()> {
        let mut state = self.lock();
        state.base = base;
        // The bits are those of what is renamed, not of what it replaces.
        state.base_mode = None;
        state.content.replace_whole();
        // What was sent ahead lies beside the old name.
        state.stop_sender();
        state.amend_note(|note| note.retargeted(path, base))
    }

    /// The directory above was renamed: a note must tell the new path.
    pub(crate) fn renote(&self, path: &RemotePath) {
        if let Err(error) = self.lock().amend_note(|note| note.moved(path)) {
            log::warn!("{path} is unsent, and its note tells an older path: {error}");
        }
    }

    /// Writes (pwrite(2)).
    pub(crate) fn write(&self, place: &Place<'_>, start: Start, bytes: &[u8]) -> Result<()> {
        self.size_up(place)?;
        let mut state = self.lock_quiet();
        let length = state.content.length();
        let offset = match start {
            Start::At(offset) => offset,
            Start::End => length,
        };
        if offset != length {
            state.stop_sender();
        }
        state.is_append_only &= start == Start::End;
        state.content.write(offset, bytes, &self.room)?;
        state.touch();
        let length = state.content.length();
        if let Some(sender) = &state.sender {
            sender.advance(length);
        }
        if state.is_sequential && !state.had_sender && length >= SEND_AHEAD_FROM {
            state.send_ahead(place);
        }
        Ok(())
    }

    /// Cuts the file, or lengthens it with zeros.
    pub(crate) fn truncate(&self, place: &Place<'_>, length: u64) -> Result<()> {
        if length > 0 {
            self.size_up(place)?;
        }
        let mut state = self.lock_quiet();
        // To nothing counts also for an empty file, as O_TRUNC gives it a new time.
        if length > 0 && state.content.length() == length {
            return Ok(());
        }
        state.stop_sender();
        state.content.truncate(length)?;
        state.is_sized = true;
        state.is_append_only = false;
        if length == 0 {
            state.is_sequential = true;
            state.had_sender = false;
        }
        state.touch();
        Ok(())
    }

    /// A time to be set once the content is on the server. True if it was taken: without unsent
    /// content the server is told at once, by the caller.
    pub(crate) fn set_mtime(&self, mtime: Timestamp) -> bool {
        let mut state = self.lock_quiet();
        if state.is_changed {
            state.mtime = Some(mtime);
            state.is_note_outdated = true;
        }
        state.is_changed
    }

    pub(crate) fn set_mode(&self, mode: u16) -> bool {
        let mut state = self.lock_quiet();
        if state.is_changed {
            state.mode = Some(mode);
            state.is_note_outdated = true;
        }
        state.is_changed
    }

    /// The server took this time for what it has, at our wish.
    pub(crate) fn note_server_mtime(&self, mtime: Timestamp) {
        if let Some(base) = &mut self.lock().base {
            base.mtime = Some(mtime);
        }
    }

    /// The server took these bits for what it has, at our wish.
    pub(crate) fn note_server_mode(&self, mode: u16) {
        self.lock().base_mode = Some(mode);
    }

    /// A time or bits were set after the promise, which is to keep them too.
    pub(crate) fn renew_note(&self, pool: &Pool, path: &RemotePath) {
        let mut state = self.lock();
        if state.is_dirty() && state.is_promised && state.is_note_outdated {
            state.note_or_warn(pool, path, Durability::Disk);
            state.is_note_outdated = false;
        }
    }

    /// Makes the content and where it belongs durable here; true unless there was nothing to
    /// promise. From now on it reaches the server, also if this process ends.
    pub(crate) fn promise(&self, pool: &Pool, path: &RemotePath) -> Result<bool> {
        let mut state = self.lock();
        if !state.is_dirty() {
            return Ok(false);
        }
        if !state.is_promised || state.is_note_outdated {
            // Whoever saw this time sees it again when the server has the file.
            state.mtime = state.mtime.or(state.changed_at);
            state.content.sync()?;
            state.note(pool, path, Durability::Disk)?;
            state.is_promised = true;
            state.is_note_outdated = false;
        }
        Ok(true)
    }

    /// The local file stays when this process ends, with a note of where it belongs; where it is.
    pub(crate) fn keep(&self, pool: &Pool, path: Option<&RemotePath>) -> PathBuf {
        let mut state = self.lock();
        if let Err(error) = state.content.sync() {
            log::warn!("{}: {error}", state.content.path().display());
        }
        if let Some(path) = path {
            state.note_or_warn(pool, path, Durability::Disk);
        }
        state.content.keep().to_owned()
    }

    pub(crate) fn layout(&self) -> Layout {
        self.lock().content.layout().clone()
    }

    /// Where the local file is.
    pub(crate) fn local_path(&self) -> PathBuf {
        self.lock().content.path().to_owned()
    }
}
