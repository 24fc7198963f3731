//! Compares the server and the mount with the reference.

use std::collections::BTreeMap;

use super::reference::{File, Node, Path, Reference, brief, brief_bytes, same_content};
use super::world::{Check, Mode, World};
use crate::drivers::Driver;
use crate::support::storage::Kind;

impl World {
    /// What the server has, and apart from it what ftpfs keeps there under names of its own.
    pub(super) fn tree(&self) -> (BTreeMap<Path, Node>, Vec<Path>) {
        let (mut tree, mut own) = (BTreeMap::new(), Vec::new());
        let mut directories = vec![String::new()];
        while let Some(directory) = directories.pop() {
            for name in self.server.names(format!("/{directory}")) {
                let name = String::from_utf8(name).unwrap();
                let path =
                    if directory.is_empty() { name.clone() } else { format!("{directory}/{name}") };
                let Some(stat) = self.server.stat(format!("/{path}")) else { continue };
                if name.starts_with(".ftpfs-") && name.ends_with('~') {
                    own.push(path);
                } else if stat.kind == Kind::Directory {
                    tree.insert(path.clone(), Node::Directory);
                    directories.push(path);
                } else {
                    let bytes = self.server.get(format!("/{path}")).unwrap();
                    let file = File { bytes, mtime: Some(stat.mtime), mode: Some(stat.mode) };
                    tree.insert(path, Node::File(file));
                }
            }
        }
        (tree, own)
    }

    /// The server has what it must have. What is unsent may be there already.
    pub(super) fn compare_server(&mut self) -> Check {
        let (actual, _) = self.tree();
        let mut sent = Vec::new();
        for path in actual.keys().chain(self.model.server.keys()) {
            let (is, should) = (actual.get(path), self.model.server.get(path));
            if !same_content(is, should) {
                let is_contested =
                    self.model.live_at(path).is_some_and(|id| self.model.lives[&id].is_contested);
                if self.model.may_be_sent(path, is) && !is_contested {
                    sent.push((path.clone(), is.cloned().unwrap()));
                    continue;
                }
                return Err(format!(
                    "on the server {path} is {}, it should be {}",
                    brief(is),
                    brief(should)
                ));
            }
            if let (Some(Node::File(is)), Some(Node::File(should))) = (is, should) {
                let is_time_right = should.mtime.is_none() || is.mtime == should.mtime;
                let is_mode_right = should.mode.is_none() || is.mode == should.mode;
                if !is_mode_right || !is_time_right {
                    let (is, should) = (actual.get(path), self.model.server.get(path));
                    return Err(format!("{path} is {}, not {}", brief(is), brief(should)));
                }
            }
        }
        for (path, node) in sent {
            if let Some(live) =
                self.model.live_at(&path).and_then(|id| self.model.lives.get_mut(&id))
            {
                live.was_seen = true;
            }
            self.model.server.insert(path, node);
        }
        Ok(())
    }

    /// After a fault nobody knows whether times and bits arrived.
    pub(super) fn adopt_attributes(&mut self) {
        let (actual, _) = self.tree();
        for (path, node) in &mut self.model.server {
            if let (Node::File(file), Some(Node::File(is))) = (node, actual.get(path)) {
                file.mode = file.mode.filter(|mode| is.mode == Some(*mode));
                file.mtime = file.mtime.filter(|mtime| is.mtime == Some(*mtime));
            }
        }
    }

    /// All that is seen through the mount below a directory.
    pub(super) fn compare_visible(&self, directory: &str) -> Check {
        let fs = self.mount.as_ref().unwrap();
        let names = fs.names(directory.as_bytes()).map_err(|fail| format!("{fail:?}"))?;
        let names: Vec<_> =
            names.into_iter().map(|name| String::from_utf8(name).unwrap()).collect();
        let wanted = self.model.visible_names(directory);
        if names != wanted {
            return Err(format!("/{directory} shows {names:?}, not {wanted:?}"));
        }
        for name in names {
            let path = if directory.is_empty() { name } else { format!("{directory}/{name}") };
            match self.model.visible(&path) {
                Some(Node::Directory) => self.compare_visible(&path)?,
                Some(Node::File(file)) => {
                    let read = fs.read(path.as_bytes());
                    if read.as_ref() != Ok(&file.bytes) {
                        let read = read.map(|bytes| brief_bytes(&bytes));
                        let wanted = brief_bytes(&file.bytes);
                        return Err(format!("/{path} reads as {read:?}, not {wanted}"));
                    }
                }
                None => unreachable!(),
            }
        }
        Ok(())
    }

    /// The same bytes as the server has, forgetting which times we should know.
    pub(super) fn adopt_server(&mut self) {
        let (mut actual, _) = self.tree();
        let known: &Reference = &self.model;
        for (path, node) in &mut actual {
            let Node::File(file) = node else { continue };
            let time = match known.server.get(path) {
                Some(Node::File(known)) if known.bytes == file.bytes => known.mtime,
                _ => None,
            };
            file.mtime = file.mtime.filter(|mtime| time == Some(*mtime));
            if !matches!(known.server.get(path), Some(Node::File(known)) if known.mode == file.mode)
            {
                file.mode = None;
            }
        }
        // What was promised and is not sent yet.
        for (path, node) in &known.server {
            if self.mode == Mode::WriteBack && self.is_pending(path) {
                actual.insert(path.clone(), node.clone());
            }
        }
        self.model.adopt(actual);
    }
}
