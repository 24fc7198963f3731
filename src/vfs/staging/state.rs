//! What is known of one file being written; its own lock is held around it, for local I/O only.

use super::{Job, Place, Traces, Urgency};
use crate::ftp::{Pool, RemotePath, Timestamp};
use crate::vfs::attr::Version;
use crate::vfs::commit::{Committed, Sent};
use crate::vfs::content::Content;
use crate::vfs::error::{Error, Result};
use crate::vfs::files::now_stamp;
use crate::vfs::journal::{self, Durability, Note};
use crate::vfs::sender::Sender;

/// The content, how it stands to the server's, and what was asked and promised of it.
#[derive(Debug)]
pub(super) struct State {
    pub(super) content: Content,
    /// What the server has under this name; `None` when it has nothing.
    pub(super) base: Option<Version>,
    /// The permission bits of what the server has.
    pub(super) base_mode: Option<u16>,
    /// The length of what the server has is known.
    pub(super) is_sized: bool,
    /// Something here is not on the server.
    pub(super) is_changed: bool,
    /// Was ever changed: reads are answered from here.
    pub(super) was_changed: bool,
    /// The name is gone: nothing is ever sent again.
    pub(super) is_unlinked: bool,
    /// Of the last change of content, by our clock.
    pub(super) changed_at: Option<Timestamp>,
    /// Set by programs before the content is on the server.
    pub(super) mtime: Option<Timestamp>,
    pub(super) mode: Option<u16>,
    pub(super) last_error: Option<String>,
    /// A note on the disk promises exactly what is here.
    pub(super) is_promised: bool,
    /// But for a time or bits that were set since.
    pub(super) is_note_outdated: bool,
    /// Every byte was written at the end, from an empty file on: what is there will hardly change.
    pub(super) is_sequential: bool,
    /// Every byte was written by a handle opened to append.
    pub(super) is_append_only: bool,
    /// Sends what is there while more is written.
    pub(super) sender: Option<Sender>,
    /// A sender was started for this content; one that gave up is not replaced.
    pub(super) had_sender: bool,
    pub(super) traces: Traces,
    pub(super) sending: Option<Urgency>,
    /// This file is being renamed to the name.
    pub(super) yields_to: Option<RemotePath>,
}

impl State {
    pub(super) fn new(content: Content, is_sized: bool) -> Self {
        Self {
            // From an empty file on.
            is_sequential: is_sized && content.length() == 0,
            content,
            base: None,
            base_mode: None,
            is_sized,
            is_changed: false,
            was_changed: false,
            is_unlinked: false,
            changed_at: None,
            mtime: None,
            mode: None,
            last_error: None,
            is_promised: false,
            is_note_outdated: false,
            is_append_only: true,
            sender: None,
            had_sender: false,
            traces: Traces::default(),
            sending: None,
            yields_to: None,
        }
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.is_changed && !self.is_unlinked
    }

    /// Changes what is promised on the disk, if something is; what was written since the promise
    /// stays out of it.
    pub(super) fn amend_note(&self, change: impl FnOnce(Note) -> Note) -> Result<()> {
        if !self.is_dirty() {
            return Ok(());
        }
        Ok(journal::amend(self.content.noted(), change)?)
    }

    /// A change of content: it ends a time set before it (utimensat, then write).
    pub(super) fn touch(&mut self) {
        self.is_changed = true;
        self.was_changed = true;
        self.is_promised = false;
        self.mtime = None;
        self.changed_at = Some(now_stamp());
    }

    /// Something before the end changes: what was sent is worth nothing.
    pub(super) fn stop_sender(&mut self) {
        self.is_sequential = false;
        self.sender = None;
    }

    /// Begins to send to a name beside the file's. Failing costs nothing: the commit sends all.
    pub(super) fn send_ahead(&mut self, place: &Place<'_>) {
        self.had_sender = true;
        let length = self.content.length();
        let started = self
            .content
            .reopen()
            .map_err(Error::from)
            .and_then(|file| Sender::start(place, file, length));
        match started {
            Ok(sender) => self.sender = Some(sender),
            Err(error) => log::info!("{} is sent when it is closed: {error}", place.path),
        }
    }

    /// Writes down where the content belongs, and lets it be as it is from now on.
    pub(super) fn note(
        &mut self,
        pool: &Pool,
        path: &RemotePath,
        durability: Durability,
    ) -> Result<()> {
        let base = self.base.filter(|_| !self.is_unlinked);
        let mut note =
            Note::new(pool.server_name(), path.as_bytes(), self.content.layout().clone())
                .with_base(base)
                .with_attributes(self.mode, self.mtime)
                .yielding_to(self.yields_to.as_ref());
        note.may_be_partly_there =
            self.traces.may_be_partly_there || self.traces.appended_from.is_some();
        note.write(self.content.path(), durability)?;
        if let Some(older) = self.content.promised() {
            journal::strike(older);
        }
        self.content.seal();
        Ok(())
    }

    /// Without a note it is sent all the same, by this process.
    pub(super) fn note_or_warn(&mut self, pool: &Pool, path: &RemotePath, durability: Durability) {
        if let Err(error) = self.note(pool, path, durability) {
            log::warn!("no note of what is unsent, {}: {error}", self.content.path().display());
        }
    }

    pub(super) fn strike(&self) {
        journal::strike(self.content.path());
        if let Some(older) = self.content.promised() {
            journal::strike(older);
        }
    }

    /// The server has everything.
    pub(super) fn settle(&mut self, job: &Job, sent: Sent) -> std::io::Result<Committed> {
        self.strike();
        self.is_changed = false;
        self.is_promised = false;
        self.is_append_only = true;
        self.traces = Traces::default();
        self.last_error = None;
        let length = match sent.size {
            // Others added to it too: what it is now only the server knows.
            Some(size) if size != self.content.length() => {
                self.content.forget(size)?;
                size
            }
            _ => {
                self.content.settle();
                self.content.length()
            }
        };
        let committed = Committed::new(job, &sent, length);
        self.mode = None;
        self.mtime = None;
        self.changed_at = None;
        self.base_mode = sent.mode.or(self.base_mode);
        // As far as the server told it, so that what others change from now on is noticed.
        self.base = Some(Version { size: Some(length), mtime: committed.mtime });
        Ok(committed)
    }
}
