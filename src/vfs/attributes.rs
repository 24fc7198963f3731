//! Attributes that programs set, and the facts that servers tell (extended attributes).

use super::dircache::Item;
use super::error::{Error, Result};
use super::files::now_stamp;
use super::tree::{Ino, ROOT};
use super::{Found, Mtime, Vfs};
use crate::ftp::{self, Precision, Timestamp};

/// What setattr is to change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub size: Option<u64>,
    pub mode: Option<u16>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub mtime: Option<When>,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Now,
    At(Mtime),
}

/// The names of the extended attributes begin like this.
const PREFIX: &str = "user.ftp.";

impl Vfs {
    /// Changes attributes; the result is what is shown from now on.
    pub fn setattr(&self, ino: Ino, changes: &Changes) -> Result<Found> {
        self.require_writable()?;
        let stranger = |wanted: Option<u32>, shown: u32| wanted.is_some_and(|id| id != shown);
        let gives_away =
            stranger(changes.uid, self.options.uid) || stranger(changes.gid, self.options.gid);
        if gives_away && self.options.strict_owner {
            return Err(Error::NotOwner);
        }
        if let Some(size) = changes.size {
            self.set_size(ino, size)?;
        }
        if let Some(mode) = changes.mode {
            self.set_mode(ino, mode)?;
        }
        if let Some(when) = changes.mtime {
            self.set_mtime(ino, when)?;
        }
        self.getattr(ino)
    }

    fn set_mode(&self, ino: Ino, mode: u16) -> Result<()> {
        // The root of the mount is not ours to change; `cp -a` of a tree tries.
        if ino == ROOT {
            return Ok(());
        }
        let Some((parent, name)) = self.place(ino) else { return Ok(()) };
        let waits = self.handles.staged(ino).is_some_and(|staged| staged.set_mode(mode));
        if waits {
            self.renew_note(ino);
        }
        if !waits && self.shown(ino)?.shown_mode() == Some(mode) {
            return Ok(());
        }
        let done = !waits && {
            let path = self.path(ino)?;
            self.pool.ask(|session| session.set_mode(&path, mode))?
        };
        if done && let Some(staged) = self.handles.staged(ino) {
            staged.note_server_mode(mode);
        }
        self.cache.update(parent, &name, |item| {
            if done { item.set_mode(mode) } else { item.remember_mode(mode) }
        });
        Ok(())
    }

    /// What was promised of an unsent file is to be sent with these attributes.
    fn renew_note(&self, ino: Ino) {
        if let (Some(staged), Ok(path)) = (self.handles.staged(ino), self.path(ino)) {
            staged.renew_note(&self.pool, &path);
        }
    }

    fn set_mtime(&self, ino: Ino, when: When) -> Result<()> {
        if ino == ROOT {
            return Ok(());
        }
        let Some((parent, name)) = self.place(ino) else { return Ok(()) };
        let stamp = match when {
            When::Now => now_stamp(),
            // Servers keep whole seconds (RFC 3659 §2.3 leaves fractions to the server, and none
            // of the four takes them back in MFMT).
            When::At(time) => {
                Timestamp { seconds: time.seconds, nanos: 0, precision: Precision::Second }
            }
        };
        let staged = self.handles.staged(ino);
        if staged.as_ref().is_some_and(|staged| staged.set_mtime(stamp)) {
            self.renew_note(ino);
            return Ok(());
        }
        let path = self.path(ino)?;
        let done = match self.pool.ask(|session| session.set_modified(&path, stamp.seconds)) {
            Ok(done) => done,
            Err(ftp::Error::Refused(_)) => false,
            Err(error) => return Err(error.into()),
        };
        if done {
            self.handles.note_server_mtime(ino, stamp);
        }
        if let Some(staged) = staged.filter(|_| done) {
            staged.note_server_mtime(stamp);
        }
        self.cache.update(parent, &name, |item| {
            if done { item.set_mtime(stamp) } else { item.remember_mtime(stamp) }
        });
        Ok(())
    }

    /// The names of an inode's extended attributes.
    pub fn listxattr(&self, ino: Ino) -> Result<Vec<String>> {
        Ok(self.facts(ino)?.into_iter().map(|(name, _)| name).collect())
    }

    /// The value of one extended attribute.
    pub fn getxattr(&self, ino: Ino, name: &str) -> Result<Vec<u8>> {
        if !name.starts_with(PREFIX) {
            // Asked for by the kernel and by ls all the time (security.*, system.*).
            return Err(Error::NoAttribute);
        }
        let facts = self.facts(ino)?;
        let found = facts.into_iter().find(|(fact, _)| fact == name);
        found.map(|(_, value)| value).ok_or(Error::NoAttribute)
    }

    /// The facts of the listing (RFC 3659 §7.5) that no ordinary attribute shows.
    fn facts(&self, ino: Ino) -> Result<Vec<(String, Vec<u8>)>> {
        if ino == ROOT || self.place(ino).is_none() {
            return Ok(Vec::new());
        }
        let item = self.shown(ino)?;
        let facts = item.entry.facts.as_deref().unwrap_or_default();
        let facts = facts.split(|byte| *byte == b';').filter_map(|fact| {
            let cut = fact.iter().position(|byte| *byte == b'=')?;
            let (name, value) = fact.split_at(cut);
            let name = String::from_utf8_lossy(name).to_lowercase();
            Some((format!("{PREFIX}{name}"), value.get(1..)?.to_vec()))
        });
        Ok(facts.collect())
    }

    fn shown(&self, ino: Ino) -> Result<Item> {
        Ok(self.entry(ino)?.item)
    }
}
