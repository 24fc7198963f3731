//! Names: mkdir, mknod, symlink, unlink, rmdir, rename.
//!
//! A refusal is explained by a look at the directory, never by the server's words. A reply that
//! was lost is asked for again on a fresh connection; a refusal then may mean that the first
//! attempt had worked, and the look decides that too.

use std::time::Instant;

use super::attr::Version;
use super::dircache::Item;
use super::error::{Error, Result};
use super::files::{new_item, now_stamp};
use super::handles::Shared;
use super::replace::{move_once, remove_if_possible, replace};
use super::staging::{Staged, Urgency};
use super::tree::Ino;
use super::{Found, Vfs};
use crate::ftp::{self, Entry, Kind, RemotePath};

/// May a rename replace an existing target?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    Replace,
    /// RENAME_NOREPLACE of renameat2(2).
    NoReplace,
}

impl Vfs {
    /// Makes a directory.
    pub fn mkdir(&self, parent: Ino, name: &[u8], mode: u16) -> Result<Found> {
        self.require_absent(parent, name)?;
        let path = self.child_path(parent, name)?;
        let (made, retried) = self.pool.ask_noting(|session| session.make_directory(&path));
        if let Err(error) = made {
            let (there, error) = self.look_again(parent, name, error)?;
            let Some(item) = there else { return Err(error.into()) };
            // After a lost reply the directory is the one that was just made.
            if !(retried && item.entry.kind == Kind::Directory) {
                return Err(Error::Exists);
            }
        }
        let item =
            Item::new(Entry { kind: Kind::Directory, size: None, ..entry_of_now(name, mode) });
        self.show_new(parent, name, item)
    }

    /// Makes an empty regular file, on the server at once.
    pub fn mknod(&self, parent: Ino, name: &[u8], mode: u16) -> Result<Found> {
        self.require_absent(parent, name)?;
        let found = self.show_new(parent, name, new_item(name, mode))?;
        let ino = found.attr.ino;
        let wanted = Some(mode).filter(|mode| *mode != 0o644);
        let staged = self.handles.stage(ino, || Staged::of_new(&self.room, wanted))?;
        if let Err(error) = self.commit(ino, &staged, Urgency::Foreground) {
            staged.unlink(|_| {});
            self.drop_name(parent, name);
            self.unstage(ino);
            return Err(error);
        }
        self.unstage(ino);
        Ok(found)
    }

    /// Makes a symbolic link, where the server has a command for it.
    pub fn symlink(&self, parent: Ino, name: &[u8], target: &[u8]) -> Result<Found> {
        self.require_absent(parent, name)?;
        let path = self.child_path(parent, name)?;
        if !self.pool.ask(|session| session.make_symlink(target, &path))? {
            return Err(Error::NotOwner);
        }
        let item = Item::new(Entry {
            kind: Kind::Symlink,
            target: Some(target.into()),
            ..entry_of_now(name, 0o777)
        });
        self.show_new(parent, name, item)
    }

    /// Removes a file. Those who have it open go on with it.
    pub fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let item = self.require_present(parent, name)?;
        if item.entry.kind == Kind::Directory {
            return Err(Error::IsADirectory);
        }
        let ino = self.tree().find(parent, name);
        let _moving = ino.map(|ino| self.moves.begin(ino));
        if let Some(ino) = ino
            && item.is_unsent
        {
            let path = self.child_path(parent, name)?;
            self.forsake_after(ino, |may_be_there| {
                if may_be_there && let Err(error) = remove_if_possible(&self.pool, &path) {
                    log::warn!("a part of {path} may stay on the server: {error}");
                }
            });
            self.drop_name(parent, name);
            return Ok(());
        }
        // What is sent just now would be there again.
        let staged = ino.and_then(|ino| self.handles.staged(ino));
        let held = staged.as_ref().map(|staged| staged.seize());
        if let Some(ino) = ino
            && self.needs_server_copy(ino)
            && self.hide(parent, name, ino, &item)?
        {
            staged.iter().for_each(|staged| staged.disown());
            drop(held);
            self.forsake(ino);
            return Ok(());
        }
        let path = self.child_path(parent, name)?;
        let (removed, was_tried_twice) = self.pool.ask_noting(|session| session.remove_file(&path));
        if let Err(error) = removed {
            let (there, error) = self.look_again(parent, name, error)?;
            if there.is_some() {
                return Err(error.into());
            }
            if !was_tried_twice {
                // Somebody else was faster.
                return Err(Error::NotFound);
            }
        }
        staged.iter().for_each(|staged| staged.disown());
        drop(held);
        if let Some(ino) = ino {
            self.forsake(ino);
        }
        if let Some(blocks) = &self.blocks {
            blocks.forget(&path);
        }
        self.drop_name(parent, name);
        Ok(())
    }

    /// Removes an empty directory. Whether it is empty is looked up first: some servers remove
    /// what is inside as well.
    pub fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let item = self.require_present(parent, name)?;
        if item.entry.kind != Kind::Directory {
            return Err(Error::NotADirectory);
        }
        let ino = self.tree().intern(parent, name, 0);
        let inside = self.listing(ino, Instant::now())?;
        if !inside.listing.is_empty() {
            return Err(Error::NotEmpty);
        }
        let path = self.child_path(parent, name)?;
        self.take_out_hidden(ino, &path)?;
        let remove = || self.pool.ask(|session| session.remove_directory(&path));
        if let Err(error) = remove() {
            let (there, error) = self.look_again(parent, name, error)?;
            if there.is_some() {
                self.cache.expire(ino);
                if !self.listing(ino, Instant::now())?.listing.is_empty() {
                    return Err(Error::NotEmpty);
                }
                // A file of our own was about to go, or others removed what was there.
                self.take_out_hidden(ino, &path)?;
                remove().map_err(|_| Error::from(error))?;
            }
        }
        self.cache.forget(ino);
        self.drop_name(parent, name);
        Ok(())
    }

    /// Moves a file or directory, over an existing target if the mode and POSIX allow.
    pub fn rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), mode: RenameMode) -> Result<()> {
        let item = self.require_present(from.0, from.1)?;
        ftp::check_name(to.1)?;
        let target = self.listing(to.0, Instant::now())?.find(to.1)?;
        if target.is_some() && mode == RenameMode::NoReplace {
            return Err(Error::Exists);
        }
        if from == to {
            return Ok(());
        }
        let ino = self.tree().intern(from.0, from.1, 0);
        if self.tree().is_within(to.0, ino) {
            return Err(Error::Invalid);
        }
        // Whoever opens one of the two from here on waits, or is seen to have it open.
        let target_ino = self.tree().find(to.0, to.1);
        let begin = || (self.moves.begin(ino), target_ino.map(|ino| self.moves.begin(ino)));
        if let Some(staged) = self.handles.staged(ino) {
            let is_later = self.options.writing.write_back.is_some();
            let moving = begin();
            if is_later && self.rename_here(ino, &staged, from, to, target.as_ref())? {
                return Ok(());
            }
            drop(moving);
            // The server moves what it has; so it must have all of it.
            self.commit(ino, &staged, Urgency::Foreground)?;
        }
        if item.entry.kind == Kind::Directory {
            self.commit_below(ino);
        }
        // What is written from here on is sent when it is known where the file is.
        let moving = begin();
        // What is unsent of the target is not sent any more, but kept until the rename is done.
        let replaced = target_ino.and_then(|ino| Some((ino, self.handles.staged(ino)?)));
        let held = replaced.as_ref().map(|(_, staged)| staged.seize());
        if let Some(target) = &target {
            self.clear_target(&item, to, target)?;
        }
        let (source, destination) =
            (self.child_path(from.0, from.1)?, self.child_path(to.0, to.1)?);
        let own = self.handles.staged(ino);
        let own_held = own.as_ref().map(|staged| staged.hold());
        if let Some((_, staged)) = &replaced {
            staged.yield_to(Some(&source))?;
        }
        let over_file = target.as_ref().is_some_and(|item| item.entry.kind != Kind::Directory);
        self.move_on_server(from, &source, &destination, over_file).inspect_err(|_| {
            // Nobody knows how far it came.
            self.cache.expire(from.0);
            self.cache.expire(to.0);
            if let Some((_, staged)) = &replaced
                && let Err(error) = staged.yield_to(None)
            {
                log::warn!("the note of what is unsent of {destination} is old: {error}");
            }
        })?;
        {
            let _names = self.names.change();
            self.tree().relink(from, to);
            self.show_moved(from, to, item.clone());
        }
        // Fetched ahead by names that they had.
        self.prefetch.forget(ino);
        if let Some(target) = target_ino {
            self.prefetch.forget(target);
        }
        drop((moving, own_held));
        if let Some(own) = own {
            own.renote(&destination);
            drop(own);
            self.unstage(ino);
        }
        self.forget_moved(&item, &source, &destination);
        replaced.iter().for_each(|(_, staged)| staged.disown());
        drop(held);
        if let Some((ino, staged)) = replaced {
            drop(staged);
            self.forsake(ino);
        }
        if item.entry.kind == Kind::Directory {
            self.renote_below(ino);
        }
        Ok(())
    }

    /// What is kept of contents is known by its path.
    fn forget_moved(&self, item: &Item, from: &RemotePath, to: &RemotePath) {
        let Some(blocks) = &self.blocks else { return };
        for path in [from, to] {
            match item.entry.kind {
                Kind::Directory => blocks.forget_below(path),
                _ => blocks.forget(path),
            }
        }
    }

    fn show_moved(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), item: Item) {
        let moved = self.cache.known(from.0).and_then(|known| known.get(from.1));
        self.cache.remove(from.0, from.1);
        let mut item = moved.unwrap_or(item);
        item.entry.name = to.1.into();
        self.cache.put(to.0, item);
    }

    /// Moves a file that the server does not have: only its name here changes, and where it will
    /// be sent. False if the server has some of it, or must have it first, as somebody has the target
    /// open.
    fn rename_here(
        &self,
        ino: Ino,
        staged: &Shared,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        target: Option<&Item>,
    ) -> Result<bool> {
        let held = staged.hold();
        if !staged.is_only_here() {
            return Ok(false);
        }
        let mut base = None;
        let other = self.tree().find(to.0, to.1);
        if let Some(target) = target {
            if target.entry.kind == Kind::Directory {
                return Err(Error::IsADirectory);
            }
            if let Some(other) = other
                && !target.is_unsent
                && self.needs_server_copy(other)
            {
                return Ok(false);
            }
            if !target.is_unsent {
                base = Some(Version::of(target));
            }
        }
        let moved = self.cache.known(from.0).and_then(|known| known.get(from.1));
        {
            let _names = self.names.change();
            self.tree().relink(from, to);
            self.cache.remove(from.0, from.1);
            if let Some(moved) = moved {
                // What the server has under the name stays known: it is what will be replaced.
                let there = target.filter(|target| !target.is_unsent).cloned();
                let mut item = there.unwrap_or_else(|| moved.clone());
                item.entry.name = to.1.into();
                item.entry.mode = moved.shown_mode();
                self.cache.put(to.0, item);
            }
        }
        staged.retarget(base, &self.path(ino)?)?;
        drop(held);
        // Only now: until here what was promised of the target held.
        if let Some(other) = other {
            self.forsake(other);
        }
        Ok(true)
    }

    /// What is unsent below a directory is sent before its path changes. What cannot be sent goes
    /// with the directory.
    fn commit_below(&self, directory: Ino) {
        for (ino, staged) in self.handles.all_staged() {
            if staged.is_dirty() && self.tree().is_within(ino, directory) {
                let _ = self.commit(ino, &staged, Urgency::Foreground);
                drop(staged);
                self.unstage(ino);
            }
        }
    }

    fn renote_below(&self, directory: Ino) {
        for (ino, staged) in self.handles.all_staged() {
            if self.tree().is_within(ino, directory)
                && let Ok(path) = self.path(ino)
            {
                staged.renote(&path);
            }
        }
    }

    /// Makes way for a rename: checks what POSIX demands of the target, removes an empty
    /// directory, and keeps a file that is open elsewhere.
    fn clear_target(&self, source: &Item, to: (Ino, &[u8]), target: &Item) -> Result<()> {
        let ino = self.tree().find(to.0, to.1);
        match (source.entry.kind, target.entry.kind) {
            (Kind::Directory, Kind::Directory) => return self.rmdir(to.0, to.1),
            (Kind::Directory, _) => return Err(Error::NotADirectory),
            (_, Kind::Directory) => return Err(Error::IsADirectory),
            _ => {}
        }
        let Some(ino) = ino else { return Ok(()) };
        if !target.is_unsent && self.needs_server_copy(ino) {
            self.hide(to.0, to.1, ino, target)?;
        }
        Ok(())
    }

    fn move_on_server(
        &self,
        from: (Ino, &[u8]),
        source: &RemotePath,
        destination: &RemotePath,
        over_file: bool,
    ) -> Result<()> {
        if over_file {
            return replace(&self.pool, &self.marks, source, destination);
        }
        let Err(reply) = move_once(&self.pool, source, destination)? else { return Ok(()) };
        match self.look_again(from.0, from.1, ftp::Error::Refused(reply))? {
            (Some(_), error) => Err(error.into()),
            // Somebody else was faster.
            (None, _) => Err(Error::NotFound),
        }
    }

    /// The name of a file is gone, or another's: what is staged for it is never sent again.
    fn forsake(&self, ino: Ino) {
        self.forsake_after(ino, |_| {});
    }

    /// The same once `remove` is done, which hears whether the server may have something of it.
    fn forsake_after(&self, ino: Ino, remove: impl FnOnce(bool)) {
        let Some(staged) = self.handles.staged(ino) else { return };
        staged.unlink(remove);
        drop(staged);
        self.queue.drop_one(ino);
        self.unstage(ino);
    }

    fn require_present(&self, parent: Ino, name: &[u8]) -> Result<Item> {
        self.require_writable()?;
        let fresh = self.listing(parent, Instant::now())?;
        fresh.find(name)?.ok_or(Error::NotFound)
    }

    fn require_absent(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.require_writable()?;
        ftp::check_name(name)?;
        let fresh = self.listing(parent, Instant::now())?;
        if fresh.find(name)?.is_some() { Err(Error::Exists) } else { Ok(()) }
    }

    /// After a refusal: what does the directory say now? Any other error is passed on.
    fn look_again(
        &self,
        parent: Ino,
        name: &[u8],
        error: ftp::Error,
    ) -> Result<(Option<Item>, ftp::Error)> {
        if error.refusal().is_none() {
            return Err(error.into());
        }
        self.cache.expire(parent);
        let fresh = self.listing(parent, Instant::now())?;
        Ok((fresh.find(name)?, error))
    }

    fn show_new(&self, parent: Ino, name: &[u8], item: Item) -> Result<Found> {
        let now = Instant::now();
        let ino = self.tree().intern(parent, name, 1);
        let attr = self.ownership.attr(ino, &item.shown());
        self.cache.put(parent, item);
        // The directory was listed for the check before: it says for how long it is believed.
        let until = self.listing(parent, now)?.until;
        Ok(Found { attr, valid: until.saturating_duration_since(now) })
    }

    fn drop_name(&self, parent: Ino, name: &[u8]) {
        self.cache.remove(parent, name);
        self.tree().unlink(parent, name);
    }
}

/// `report.txt` -> `report (conflict 2026-11-24 05.00.00).txt`
pub(super) fn conflict_name(name: &[u8], why: &str) -> Vec<u8> {
    let mark = format!(" ({why} {})", chrono::Utc::now().format("%Y-%m-%d %H.%M.%S%.3f"));
    let dot = name.iter().rposition(|byte| *byte == b'.').filter(|at| *at > 0);
    let (stem, extension) = name.split_at(dot.unwrap_or(name.len()));
    // NAME_MAX: what is too long is cut, at the end of the stem.
    let room = 255usize.saturating_sub(mark.len() + extension.len());
    let stem = stem.get(..room).unwrap_or(stem);
    [stem, mark.as_bytes(), extension].concat()
}

/// An entry made just now.
pub(super) fn entry_of_now(name: &[u8], mode: u16) -> Entry {
    Entry {
        name: name.into(),
        kind: Kind::File,
        size: Some(0),
        mtime: Some(now_stamp()),
        mode: Some(mode),
        target: None,
        facts: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conflict_names_keep_the_extension() {
        let name =
            |name: &str| String::from_utf8(conflict_name(name.as_bytes(), "conflict")).unwrap();
        assert!(name("a.b.txt").starts_with("a.b (conflict 2") && name("a.txt").ends_with(").txt"));
        assert!(name(".hidden").starts_with(".hidden (conflict "));
        assert!(name("plain").ends_with(')'));
        assert_eq!(name(&"x".repeat(255)).len(), 255);
    }
}
