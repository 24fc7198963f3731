//! Files that are removed while they are open: kept on the server under a name of our own until the last
//! handle is closed.

use super::Vfs;
use super::dircache::Item;
use super::error::Result;
use super::marks::{Mark, Purpose};
use super::replace::{beside, move_once, put_away};
use super::tree::{Ino, ROOT};
use crate::ftp::RemotePath;

impl Vfs {
    /// Is the file on the server still needed after its name is gone? Yes while it is open and its
    /// content is not here.
    pub(super) fn needs_server_copy(&self, ino: Ino) -> bool {
        let local = self.handles.staged(ino).is_some_and(|s| s.serves() && s.is_complete());
        self.handles.is_open(ino) && !local
    }

    /// Renames an open file to a name that nobody sees; it is removed with its last handle. False
    /// where the server does not allow it: then those who have it open lose it.
    pub(super) fn hide(&self, parent: Ino, name: &[u8], ino: Ino, item: &Item) -> Result<bool> {
        let path = self.child_path(parent, name)?;
        let hidden = beside(&path)?;
        let mark = self.marks.set(Purpose::Scratch, &hidden, &path);
        let _moving = self.moves.begin(ino);
        if let Err(reply) = move_once(&self.pool, &path, &hidden)? {
            log::info!("{path} cannot be kept for those who have it open: {reply}");
            return Ok(false);
        }
        let doomed = {
            let _names = self.names.change();
            self.cache.remove(parent, name);
            // Before anybody may remove it under the name that it has by then.
            if let Some(hidden) = hidden.name() {
                self.tree().relink((parent, name), (parent, hidden));
            }
            self.handles.doom(ino, item.clone(), mark)
        };
        self.prefetch.forget(ino);
        if let Err(mark) = doomed {
            self.remove_hidden(ino, mark);
        }
        Ok(true)
    }

    /// Files that are removed and still open keep no directory (rmdir(2)): they go to the one above.
    pub(super) fn take_out_hidden(&self, directory: Ino, path: &RemotePath) -> Result<()> {
        let is_inside = |ino| self.place(ino).filter(|(parent, _)| *parent == directory);
        // Some may be going right now.
        self.moves.settle(self.pool.timeout(), |ino| is_inside(ino).is_some());
        let above = self.place(directory).map_or(ROOT, |(above, _)| above);
        for ino in self.handles.all_doomed() {
            let Some((_, name)) = is_inside(ino) else { continue };
            let (from, to) = (path.join(&name)?, beside(path)?);
            let mark = self.marks.set(Purpose::Scratch, &to, &from);
            let _moving = self.moves.begin(ino);
            if let Err(reply) = move_once(&self.pool, &from, &to)? {
                log::info!("{from} is in the way of removing its directory: {reply}");
                continue;
            }
            if let Some(hidden) = to.name() {
                self.tree().relink((directory, &name), (above, hidden));
            }
            if let Err(mark) = self.handles.mark_doomed(ino, mark) {
                self.remove_hidden(ino, mark);
            }
        }
        Ok(())
    }

    /// Nobody has it open any more: the name that nobody sees goes too.
    pub(super) fn remove_hidden(&self, ino: Ino, mark: Option<Mark>) {
        let _moving = self.moves.begin(ino);
        let Ok(path) = self.path(ino) else {
            // Its directory is gone from here: the mark tells the end of the mount where it was.
            return mark.into_iter().for_each(Mark::leave);
        };
        put_away(&self.pool, &path, mark);
        if let Some((parent, name)) = self.place(ino) {
            self.tree().unlink(parent, &name);
        }
    }
}
