//! What is not a call of a program: the other client, and the beginning and end of the mount.

use super::policy::{
    ON_CONFLICT, OnConflict, cleans_the_server_after_a_kill, is_conflict_copy,
    knows_what_it_replaces, sends_what_is_cut_beside_readers,
};
use super::reference::{Call, File, Node, Reply, brief, brief_bytes, is_within, parent, show};
use super::world::{Check, End, Mode, World};
use crate::drivers::Direct;

impl World {
    pub(super) fn their_put(&mut self, path: &str, length: u16) {
        let above = self.model.server.get(parent(path));
        let is_possible = parent(path).is_empty() || above == Some(&Node::Directory);
        let old = self.model.server.get(path);
        if !is_possible || old == Some(&Node::Directory) {
            return;
        }
        let mode = if let Some(Node::File(file)) = old { file.mode } else { Some(0o644) };
        let mtime = self.new_time();
        let bytes: Vec<u8> = (0..length).map(|at| (mtime / 86_400) as u8 ^ at as u8).collect();
        self.server.put(format!("/{path}"), &bytes);
        self.server.set_mtime(format!("/{path}"), mtime);
        let file = File { bytes, mtime: Some(mtime), mode };
        self.model.server.insert(path.to_owned(), Node::File(file));
        self.model.contest(path);
    }

    pub(super) fn their_delete(&mut self, path: &str) {
        if matches!(self.model.server.get(path), Some(Node::File(_))) {
            self.server.remove(format!("/{path}"));
            self.model.server.remove(path);
            self.model.contest(path);
        }
    }

    pub(super) fn their_rename(&mut self, from: &str, to: &str) {
        let Some(Node::File(file)) = self.model.server.get(from).cloned() else { return };
        let above = self.model.server.get(parent(to));
        let is_possible = parent(to).is_empty() || above == Some(&Node::Directory);
        if from == to || !is_possible || self.model.server.get(to) == Some(&Node::Directory) {
            return;
        }
        self.server.rename(format!("/{from}"), format!("/{to}"));
        // Their version of `to` must be seen to differ from the one before.
        let mtime = self.new_time();
        self.server.set_mtime(format!("/{to}"), mtime);
        self.model.server.remove(from);
        let file = File { mtime: Some(mtime), ..file };
        self.model.server.insert(to.to_owned(), Node::File(file));
        self.model.contest(from);
        self.model.contest(to);
    }

    // ---- files that both changed ----

    /// Reads give one version or an error; writes work or fail; neither touches what is theirs.
    pub(super) fn run_contested(&mut self, call: &Call) -> Check<End> {
        let before = self.model.clone();
        let expected = self.model.apply(call);
        let actual = self.perform(call);
        match (call, &actual) {
            (Call::Fsync { handle }, _) => {
                let id = before.handles[*handle].live;
                self.model = before;
                self.compare_contest(id, actual.is_ok())?;
                self.model.lives.get_mut(&id).unwrap().is_contested = true;
            }
            (_, Err(_)) => self.model = before,
            (Call::Read { handle, offset, length }, Ok(Reply::Bytes(bytes))) => {
                let path = self.live_of(*handle).path.clone().unwrap_or_default();
                // As long as the file was when it was opened: no more is asked for.
                let theirs = match self.model.server.get(&path) {
                    Some(Node::File(file)) => file.bytes.clone(),
                    _ => Vec::new(),
                };
                let is_cut =
                    bytes.len() == self.live_of(*handle).bytes.len().saturating_sub(*offset);
                let from = (*offset).min(theirs.len());
                let theirs = &theirs[from..(from + length).min(theirs.len())];
                let both = self.live_of(*handle).over_theirs.clone().unwrap_or_default();
                let from = (*offset).min(both.len());
                let both = &both[from..(from + length).min(both.len())];
                let is_theirs = bytes == theirs || (is_cut && theirs.starts_with(bytes));
                if actual != expected && !is_theirs && bytes != both {
                    let ours = show(&expected);
                    return Err(format!(
                        "{call:?} of a file that others changed gave {}; ours {ours}, theirs {}",
                        brief_bytes(bytes),
                        brief_bytes(theirs)
                    ));
                }
            }
            _ => {}
        }
        Ok(End::Not)
    }

    /// A name is used on which others worked while it was open: first that is settled.
    pub(super) fn resolve_contests(&mut self, call: &Call) -> Check {
        let touched: Vec<&str> = match call {
            Call::Open { path, .. }
            | Call::Truncate { path, .. }
            | Call::Mkdir { path }
            | Call::Rmdir { path }
            | Call::Unlink { path }
            | Call::SetMtime { path, .. }
            | Call::Chmod { path, .. }
            | Call::List { path }
            | Call::Stat { path }
            | Call::ReadAll { path } => vec![path],
            Call::Rename { from, to } => vec![from, to],
            _ => return Ok(()),
        };
        let contested = self.model.lives.iter().filter(|(_, live)| {
            live.is_contested
                && live.path.as_deref().is_some_and(|path| {
                    touched.iter().any(|t| is_within(path, t) || is_within(t, path))
                        || matches!(call, Call::List { .. })
                })
        });
        let contested: Vec<u32> = contested.map(|(id, _)| *id).collect();
        contested.into_iter().try_for_each(|id| self.resolve_contest(id))
    }

    pub(super) fn resolve_all_contests(&mut self) -> Check {
        self.trouble = None;
        let contested = self.model.lives.iter().filter(|(_, live)| live.is_contested);
        let contested: Vec<u32> = contested.map(|(id, _)| *id).collect();
        contested.into_iter().try_for_each(|id| self.resolve_contest(id))
    }

    /// Closes it everywhere.
    pub(super) fn resolve_contest(&mut self, id: u32) -> Check {
        let mut is_fine = true;
        while let Some(handle) = self.model.handles.iter().position(|handle| handle.live == id) {
            let how = self.model.handles[handle].how;
            let closed = self.perform(&Call::Close { handle });
            is_fine &= closed.is_ok() || !how.write;
            // Without the commit of the reference.
            let mut live = self.model.lives[&id].clone();
            live.handles += 1;
            self.model.drop_handle(handle);
            live.handles = self.model.handles.iter().filter(|handle| handle.live == id).count();
            self.model.lives.insert(id, live);
        }
        let path = self.model.lives[&id].path.clone().unwrap_or_default();
        // Ours may have another name by now.
        if self.is_pending(&path) || self.mode == Mode::WriteBack {
            is_fine = self.mount.as_ref().unwrap().vfs.drain().is_ok();
        }
        self.compare_contest(id, is_fine)?;
        self.model.lives.remove(&id);
        Ok(())
    }

    /// What became of ours and theirs, when ours was closed or synced with or without success.
    fn compare_contest(&mut self, id: u32, is_fine: bool) -> Check {
        let live = self.model.lives[&id].clone();
        let Some(path) = live.path.clone() else { return Ok(()) };
        let (actual, _) = self.tree();
        let is = actual.get(&path);
        let name = path.rsplit('/').next().unwrap();
        let is_ours = |node: &Node| live.is_ours(node);
        let copied = actual.iter().any(|(other, node)| {
            parent(other) == parent(&path)
                && is_conflict_copy(other.rsplit('/').next().unwrap(), name)
                && is_ours(node)
        });
        let theirs = self.model.server.get(&path);
        let is_theirs = super::reference::same_content(is, theirs);
        let is_right = match (live.is_dirty, is_fine, ON_CONFLICT) {
            (false, ..) | (true, false, _) => is_theirs,
            (true, true, OnConflict::Overwrite) => is.is_some_and(is_ours),
            (true, true, OnConflict::Copy) => match theirs {
                None => is.is_some_and(is_ours) || copied,
                Some(_) if is_appended_behind(is, theirs, &live.bytes) => true,
                Some(_) => is_theirs && (copied || is.is_some_and(is_ours)),
            },
        };
        let is_right = is_right || (live.was_seen && is_theirs);
        let is_behind = is_appended_behind(is, theirs, &live.bytes);
        if !is_right {
            return Err(format!(
                "others changed {path} to {}, ours is {}, {}; then it is {}{}",
                brief(theirs),
                brief_bytes(&live.bytes),
                if live.is_dirty { "unsent" } else { "unchanged" },
                brief(is),
                if copied { ", and a copy of ours is beside it" } else { "" },
            ));
        }
        if is_fine && live.is_dirty {
            let live = self.model.lives.get_mut(&id).unwrap();
            live.is_dirty = false;
            live.is_new = false;
            // Now it is known which.
            if let Some(Node::File(sent)) = is
                && (live.over_theirs.take().as_ref() == Some(&sent.bytes) || is_behind)
            {
                live.bytes = sent.bytes.clone();
            }
        }
        self.adopt_server();
        Ok(())
    }

    // ---- beginning and end ----

    pub(super) fn close_all(&mut self) -> Check {
        self.resolve_all_contests()?;
        while !self.fhs.is_empty() {
            self.run(&Call::Close { handle: 0 })?;
        }
        Ok(())
    }

    pub(super) fn drain(&mut self) -> Check {
        self.resolve_all_contests()?;
        self.mount.as_ref().unwrap().vfs.drain().map_err(|error| format!("drain: {error}"))?;
        let ids: Vec<u32> = self.model.lives.keys().copied().collect();
        for id in ids {
            self.model.commit(id);
            if self.model.lives[&id].handles == 0 {
                self.model.lives.remove(&id);
            }
        }
        Ok(())
    }

    pub(super) fn remount(&mut self) -> Check {
        self.trouble = None;
        self.close_all()?;
        self.drain()?;
        let Direct { vfs, staging } = self.mount.take().unwrap();
        let kept = vfs.keep_unsent();
        drop(vfs);
        if !kept.is_empty() {
            return Err(format!("kept at the end: {kept:?}"));
        }
        self.begin_again(staging)?;
        self.compare_visible("")
    }

    /// As by SIGKILL: nothing is closed or sent; what is on the local disk stays as it is.
    pub(super) fn kill(&mut self) -> Check {
        self.trouble = None;
        self.may_leave_own |= !cleans_the_server_after_a_kill();
        let Direct { vfs, staging } = self.mount.take().unwrap();
        self.server.kill_sessions();
        let copy = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(staging.path()).unwrap().flatten() {
            std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
        drop(vfs);
        self.fhs.clear();
        self.model.handles.clear();
        self.begin_again(copy)?;
        let lives = std::mem::take(&mut self.model.lives);
        let (actual, _) = self.tree();
        for live in lives.into_values().filter(|live| live.is_dirty) {
            let Some(path) = live.path.clone() else { continue };
            let is = actual.get(&path);
            // Or as it was when a `close` failed: that was noted.
            let is_ours = matches!(is, Some(Node::File(file))
                if file.bytes == live.bytes || live.refused.as_ref() == Some(&file.bytes));
            let name = path.rsplit('/').next().unwrap();
            let copy = actual.iter().find(|(other, node)| {
                let other_name = other.rsplit('/').next().unwrap();
                let is_beside =
                    parent(other) == parent(&path) && is_conflict_copy(other_name, name);
                is_beside && live.is_ours(node)
            });
            if let (false, Some((other, node)), false) = (is_ours, copy, knows_what_it_replaces()) {
                self.model.server.insert(other.clone(), node.clone());
                continue;
            }
            // Whoever had it open was promised nothing; a failed `close` was promised another try.
            let is_promised = live.was_refused || sends_what_is_cut_beside_readers();
            if live.handles == 0 && is_promised && !is_ours {
                let ours = brief_bytes(&live.bytes);
                return Err(format!("unsent {path} ({ours}) is {} after a kill", brief(is)));
            }
            if is_ours {
                self.model.server.insert(path, is.cloned().unwrap());
            }
        }
        self.adopt_attributes();
        self.compare_server()?;
        self.compare_visible("")
    }

    fn begin_again(&mut self, staging: tempfile::TempDir) -> Check {
        let mount = self.mount_in(staging);
        mount.vfs.recover();
        mount.vfs.drain().map_err(|error| format!("drain after a recovery: {error}"))?;
        self.mount = Some(mount);
        Ok(())
    }
}

/// O_APPEND: what was written at the end of ours stands behind what others have there now.
fn is_appended_behind(is: Option<&Node>, theirs: Option<&Node>, ours: &[u8]) -> bool {
    let (Some(Node::File(is)), Some(Node::File(theirs))) = (is, theirs) else { return false };
    let tail = is.bytes.strip_prefix(theirs.bytes.as_slice());
    tail.is_some_and(|tail| !tail.is_empty() && ours.ends_with(tail))
}
