//! What a file system on a server should do, in the simplest words: a tree, and open files over it.
//!
//! Pure: no server, no mount. Every decision that POSIX or the design leaves open is a function with
//! a name of its own.

use std::collections::BTreeMap;

use super::policy::keeps_bits_set_while_open;
use crate::drivers::{Fail, How};

/// Names from the root on, joined by `/`; the root is empty.
pub type Path = String;

/// What the server has under a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    Directory,
    File(File),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub bytes: Vec<u8>,
    /// Seconds, where somebody has set them since the content came.
    pub mtime: Option<i64>,
    /// As far as it is known.
    pub mode: Option<u32>,
}

/// A file that is open, or that could not be sent yet.
#[derive(Clone, Debug)]
pub struct Live {
    /// `None` once it was unlinked or replaced.
    pub path: Option<Path>,
    /// What those who have it open see.
    pub bytes: Vec<u8>,
    /// Must be sent before a `close` may succeed.
    pub is_dirty: bool,
    /// The server has nothing under its name.
    pub is_new: bool,
    /// Set while it was dirty.
    pub mtime: Option<i64>,
    pub mode: Option<u32>,
    pub handles: usize,
    /// The other client did something to its name.
    pub is_contested: bool,
    /// A call that should have sent it failed: it will be tried again, whatever happens.
    pub was_refused: bool,
    /// What it was then.
    pub refused: Option<Vec<u8>>,
    /// The server has it, or may have it, though nobody had asked for that.
    pub was_seen: bool,
    /// What it is if the bytes that were there before ours are theirs: nobody had asked for them.
    pub over_theirs: Option<Vec<u8>>,
}

#[derive(Clone, Copy, Debug)]
pub struct Handle {
    pub live: u32,
    pub how: How,
}

/// One call of a program, with everything decided.
#[derive(Clone, Debug)]
pub enum Call {
    Open { path: Path, how: How },
    Write { handle: usize, offset: usize, bytes: Vec<u8> },
    Read { handle: usize, offset: usize, length: usize },
    Fsync { handle: usize },
    Close { handle: usize },
    Truncate { path: Path, size: usize },
    Mkdir { path: Path },
    Rmdir { path: Path },
    Unlink { path: Path },
    Rename { from: Path, to: Path },
    SetMtime { path: Path, seconds: i64 },
    Chmod { path: Path, mode: u32 },
    List { path: Path },
    Stat { path: Path },
    ReadAll { path: Path },
}

/// What a call that succeeded tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Done,
    Bytes(Vec<u8>),
    Names(Vec<String>),
    /// Directory?, size, time where it is known.
    Stat(bool, usize, Option<i64>),
}

#[derive(Clone, Debug, Default)]
pub struct Reference {
    pub server: BTreeMap<Path, Node>,
    pub lives: BTreeMap<u32, Live>,
    pub handles: Vec<Handle>,
    last_live: u32,
}

pub fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

pub fn is_within(path: &str, above: &str) -> bool {
    above.is_empty()
        || path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The path after a rename of `from` to `to`.
fn moved(path: &str, from: &str, to: &str) -> Option<Path> {
    is_within(path, from).then(|| format!("{to}{}", &path[from.len()..]))
}

impl Reference {
    /// The files that are seen under a path: what is open covers what the server has.
    pub fn visible(&self, path: &str) -> Option<Node> {
        if path.is_empty() {
            return Some(Node::Directory);
        }
        let there = self.server.get(path);
        match self.live_at(path).map(|id| &self.lives[&id]) {
            None => there.cloned(),
            Some(live) => {
                let (mtime, mode) = match there {
                    Some(Node::File(file)) => (file.mtime, file.mode),
                    _ => (None, Some(0o644)),
                };
                let mtime = if live.is_dirty { live.mtime } else { mtime };
                let mode = live.mode.or(mode);
                Some(Node::File(File { bytes: live.bytes.clone(), mtime, mode }))
            }
        }
    }

    pub fn live_at(&self, path: &str) -> Option<u32> {
        let at = |live: &Live| live.path.as_deref() == Some(path);
        self.lives.iter().find(|(_, live)| at(live)).map(|(id, _)| *id)
    }

    pub fn visible_names(&self, directory: &str) -> Vec<String> {
        let new = self.lives.values().filter(|live| live.is_new).filter_map(|l| l.path.as_ref());
        let mut names: Vec<String> = self
            .server
            .keys()
            .chain(new)
            .filter(|path| !path.is_empty() && parent(path) == directory)
            .map(|path| path.rsplit('/').next().unwrap().to_owned())
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// Predicts a call, and does what it does.
    pub fn apply(&mut self, call: &Call) -> Result<Reply, Fail> {
        match call {
            Call::Open { path, how } => self.open(path, *how),
            Call::Write { handle, offset, bytes } => self.write(*handle, *offset, bytes),
            Call::Read { handle, offset, length } => {
                let bytes = &self.lives[&self.handles[*handle].live].bytes;
                let from = (*offset).min(bytes.len());
                Ok(Reply::Bytes(bytes[from..(from + length).min(bytes.len())].to_vec()))
            }
            Call::Fsync { handle } => {
                self.commit(self.handles[*handle].live);
                Ok(Reply::Done)
            }
            Call::Close { handle } => {
                if self.handles[*handle].how.write {
                    self.commit(self.handles[*handle].live);
                }
                self.drop_handle(*handle);
                Ok(Reply::Done)
            }
            Call::Truncate { path, size } => self.truncate(path, *size),
            Call::Mkdir { path } => self.mkdir(path),
            Call::Rmdir { path } => self.rmdir(path),
            Call::Unlink { path } => self.unlink(path),
            Call::Rename { from, to } => self.rename(from, to),
            Call::SetMtime { path, seconds } => self.set_mtime(path, *seconds),
            Call::Chmod { path, mode } => self.chmod(path, *mode),
            Call::List { path } => {
                self.require_parent(path)?;
                match self.visible(path).ok_or(Fail::NotFound)? {
                    Node::Directory => Ok(Reply::Names(self.visible_names(path))),
                    Node::File(_) => Err(Fail::NotADirectory),
                }
            }
            Call::Stat { path } => {
                self.require_parent(path)?;
                Ok(match self.visible(path).ok_or(Fail::NotFound)? {
                    Node::Directory => Reply::Stat(true, 0, None),
                    Node::File(file) => Reply::Stat(false, file.bytes.len(), file.mtime),
                })
            }
            Call::ReadAll { path } => {
                self.require_parent(path)?;
                match self.visible(path).ok_or(Fail::NotFound)? {
                    Node::Directory => Err(Fail::IsADirectory),
                    Node::File(file) => Ok(Reply::Bytes(file.bytes)),
                }
            }
        }
    }

    fn require_parent(&self, path: &str) -> Result<(), Fail> {
        for (cut, _) in path.match_indices('/') {
            match self.visible(&path[..cut]) {
                None => return Err(Fail::NotFound),
                Some(Node::File(_)) => return Err(Fail::NotADirectory),
                Some(Node::Directory) => {}
            }
        }
        Ok(())
    }

    fn require(&self, path: &str) -> Result<Node, Fail> {
        self.require_parent(path)?;
        self.visible(path).ok_or(Fail::NotFound)
    }

    fn open(&mut self, path: &str, how: How) -> Result<Reply, Fail> {
        self.require_parent(path)?;
        let live = match self.visible(path) {
            Some(_) if how.exclusive => return Err(Fail::Exists),
            Some(Node::Directory) => return Err(Fail::IsADirectory),
            None if !how.create => return Err(Fail::NotFound),
            Some(Node::File(file)) => {
                self.live_at(path).unwrap_or_else(|| self.bring_to_life(path, file.bytes, false))
            }
            None => self.bring_to_life(path, Vec::new(), true),
        };
        let file = self.lives.get_mut(&live).unwrap();
        file.handles += 1;
        if how.truncate {
            *file = Live { bytes: Vec::new(), is_dirty: true, mtime: None, ..file.clone() };
        }
        self.handles.push(Handle { live, how });
        Ok(Reply::Done)
    }

    fn bring_to_life(&mut self, path: &str, bytes: Vec<u8>, is_new: bool) -> u32 {
        self.last_live += 1;
        let live = Live {
            path: Some(path.to_owned()),
            bytes,
            // An empty file is sent too.
            is_dirty: is_new,
            is_new,
            mtime: None,
            mode: None,
            handles: 0,
            is_contested: false,
            was_refused: false,
            refused: None,
            was_seen: false,
            over_theirs: None,
        };
        self.lives.insert(self.last_live, live);
        self.last_live
    }

    fn write(&mut self, handle: usize, offset: usize, bytes: &[u8]) -> Result<Reply, Fail> {
        let Handle { live, how } = self.handles[handle];
        let live = self.lives.get_mut(&live).unwrap();
        for content in [Some(&mut live.bytes), live.over_theirs.as_mut()].into_iter().flatten() {
            let offset = if how.append { content.len() } else { offset };
            let end = offset + bytes.len();
            if content.len() < end {
                content.resize(end, 0);
            }
            content[offset..end].copy_from_slice(bytes);
        }
        live.is_dirty = true;
        live.was_seen = false;
        // A write ends a time set before it.
        live.mtime = None;
        Ok(Reply::Done)
    }

    /// Sends what is unsent.
    pub fn commit(&mut self, id: u32) {
        let live = self.lives.get_mut(&id).unwrap();
        let (true, Some(path)) = (live.is_dirty, live.path.clone()) else { return };
        live.is_dirty = false;
        live.is_new = false;
        let kept = match self.server.get(&path) {
            Some(Node::File(file)) => file.mode,
            _ => Some(0o644),
        };
        let file = File {
            bytes: live.bytes.clone(),
            mtime: live.mtime.take(),
            mode: live.mode.take().or(kept),
        };
        self.server.insert(path, Node::File(file));
    }

    pub fn drop_handle(&mut self, handle: usize) {
        let id = self.handles.remove(handle).live;
        let live = self.lives.get_mut(&id).unwrap();
        live.handles -= 1;
        if live.handles == 0 && (!live.is_dirty || live.path.is_none()) {
            self.lives.remove(&id);
        }
    }

    fn truncate(&mut self, path: &str, size: usize) -> Result<Reply, Fail> {
        let Node::File(mut file) = self.require(path)? else { return Err(Fail::IsADirectory) };
        file.bytes.resize(size, 0);
        let id = self.live_at(path).unwrap_or_else(|| self.bring_to_life(path, Vec::new(), false));
        let live = self.lives.get_mut(&id).unwrap();
        *live = Live { bytes: file.bytes, is_dirty: true, mtime: None, ..live.clone() };
        let has_writer = self.handles.iter().any(|handle| handle.live == id && handle.how.write);
        if !has_writer {
            // Nobody would send it by closing it.
            self.commit(id);
        }
        if self.lives[&id].handles == 0 {
            self.lives.remove(&id);
        }
        Ok(Reply::Done)
    }

    fn mkdir(&mut self, path: &str) -> Result<Reply, Fail> {
        self.require_parent(path)?;
        if self.visible(path).is_some() {
            return Err(Fail::Exists);
        }
        self.server.insert(path.to_owned(), Node::Directory);
        Ok(Reply::Done)
    }

    fn rmdir(&mut self, path: &str) -> Result<Reply, Fail> {
        if self.require(path)? != Node::Directory {
            return Err(Fail::NotADirectory);
        }
        if !self.visible_names(path).is_empty() {
            return Err(Fail::NotEmpty);
        }
        self.server.remove(path);
        Ok(Reply::Done)
    }

    fn unlink(&mut self, path: &str) -> Result<Reply, Fail> {
        if self.require(path)? == Node::Directory {
            return Err(Fail::IsADirectory);
        }
        self.server.remove(path);
        self.forsake(path);
        Ok(Reply::Done)
    }

    /// Those who have it open go on with it; nobody else sees it.
    fn forsake(&mut self, path: &str) {
        let Some(id) = self.live_at(path) else { return };
        let live = self.lives.get_mut(&id).unwrap();
        live.path = None;
        live.is_contested = false;
        live.over_theirs = None;
        if live.handles == 0 {
            self.lives.remove(&id);
        }
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<Reply, Fail> {
        // Are the directories there? Whether they are directories is asked after that.
        self.require(parent(from))?;
        self.require(parent(to))?;
        self.require_parent(from)?;
        let source = self.visible(from).ok_or(Fail::NotFound)?;
        self.require_parent(to)?;
        if from == to {
            return Ok(Reply::Done);
        }
        if is_within(to, from) {
            return Err(Fail::Invalid);
        }
        // What is to be moved is sent before, also if the rename fails then.
        for live in self.lives.values_mut() {
            let is_moved = live.path.as_ref().is_some_and(|path| is_within(path, from));
            live.was_seen |= is_moved && live.is_dirty;
        }
        if let Some(id) = self.live_at(from) {
            self.commit(id);
        }
        match (&source, self.visible(to)) {
            (Node::File(_), Some(Node::Directory)) => return Err(Fail::IsADirectory),
            (Node::Directory, Some(Node::File(_))) => return Err(Fail::NotADirectory),
            (Node::Directory, Some(Node::Directory)) if !self.visible_names(to).is_empty() => {
                return Err(Fail::NotEmpty);
            }
            _ => {}
        }
        self.forsake(to);
        self.server.remove(to);
        self.server = std::mem::take(&mut self.server)
            .into_iter()
            .map(|(path, node)| (moved(&path, from, to).unwrap_or(path), node))
            .collect();
        for live in self.lives.values_mut() {
            let path = live.path.take();
            live.path = path.map(|path| moved(&path, from, to).unwrap_or(path));
        }
        Ok(Reply::Done)
    }

    fn set_mtime(&mut self, path: &str, seconds: i64) -> Result<Reply, Fail> {
        self.require(path)?;
        if let Some(id) = self.live_at(path)
            && let live = self.lives.get_mut(&id).unwrap()
            && live.is_dirty
        {
            live.mtime = Some(seconds);
        } else if let Some(Node::File(file)) = self.server.get_mut(path) {
            file.mtime = Some(seconds);
        }
        Ok(Reply::Done)
    }

    fn chmod(&mut self, path: &str, mode: u32) -> Result<Reply, Fail> {
        self.require(path)?;
        let is_open = self.live_at(path).is_some();
        if let Some(id) = self.live_at(path)
            && let live = self.lives.get_mut(&id).unwrap()
            && live.is_dirty
        {
            live.mode = Some(mode);
        } else if let Some(Node::File(file)) = self.server.get_mut(path) {
            file.mode = Some(mode).filter(|_| !is_open || keeps_bits_set_while_open());
        }
        Ok(Reply::Done)
    }

    /// The other client changed or removed what is under a path.
    pub fn contest(&mut self, path: &str) {
        if let Some(id) = self.live_at(path) {
            let live = self.lives.get_mut(&id).unwrap();
            live.is_contested = true;
            if !live.is_dirty
                && let Some(Node::File(theirs)) = self.server.get(path)
            {
                live.over_theirs = Some(theirs.bytes.clone());
            }
        }
    }

    /// A file that nobody has open and that could not be sent.
    pub fn keep_unsent(&mut self, path: &str, bytes: Vec<u8>) {
        let id = self.bring_to_life(path, bytes, !self.server.contains_key(path));
        let live = self.lives.get_mut(&id).unwrap();
        live.is_dirty = true;
        live.was_refused = true;
    }

    /// Is this the unsent content of the path? It may be sent at any time before it must be.
    pub fn may_be_sent(&self, path: &str, is: Option<&Node>) -> bool {
        let Some(live) = self.live_at(path).map(|id| &self.lives[&id]) else { return false };
        matches!(is, Some(Node::File(file)) if live.is_dirty && file.bytes == live.bytes)
    }

    /// The server is like this, and that is allowed.
    pub fn adopt(&mut self, server: BTreeMap<Path, Node>) {
        self.server = server;
    }
}

pub fn same_content(one: Option<&Node>, other: Option<&Node>) -> bool {
    match (one, other) {
        (Some(Node::File(one)), Some(Node::File(other))) => one.bytes == other.bytes,
        (one, other) => one == other,
    }
}

/// For people to read.
pub fn brief(node: Option<&Node>) -> String {
    match node {
        None => "absent".into(),
        Some(Node::Directory) => "a directory".into(),
        Some(Node::File(file)) => {
            format!(
                "{}, mode {:o}, time {:?}",
                brief_bytes(&file.bytes),
                file.mode.unwrap_or(0),
                file.mtime
            )
        }
    }
}

pub fn brief_bytes(bytes: &[u8]) -> String {
    format!("{} bytes {:?}…", bytes.len(), &bytes[..bytes.len().min(6)])
}

pub fn show(result: &Result<Reply, Fail>) -> String {
    match result {
        Ok(Reply::Bytes(bytes)) => brief_bytes(bytes),
        result => format!("{result:?}"),
    }
}

pub fn how_of(index: u8) -> How {
    let read_append = How { read: true, ..How::APPEND };
    let keep = How { truncate: false, read: true, ..How::CREATE };
    let cut = How { truncate: true, ..How::UPDATE };
    let write_only = How { read: false, ..How::UPDATE };
    [
        How::READ,
        How::UPDATE,
        How::APPEND,
        How::CREATE,
        How::NEW,
        read_append,
        keep,
        cut,
        write_only,
        How { read: true, ..How::CREATE },
    ][index as usize % 10]
}

impl Live {
    /// Is this what those who wrote it want to be kept?
    pub fn is_ours(&self, node: &Node) -> bool {
        let Node::File(file) = node else { return false };
        file.bytes == self.bytes || Some(&file.bytes) == self.over_theirs.as_ref()
    }
}
