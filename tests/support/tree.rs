//! A file system in memory, for `storage`. Knows no FTP.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::path::ServerPath;
use super::storage::{Cause, Kind, Start, Stat};

/// A file system in memory: inodes, so that an upload goes on into a file
/// that is renamed meanwhile, as it does on a real server.
pub struct Tree {
    nodes: HashMap<u64, Node>,
    next: u64,
}

struct Node {
    body: Body,
    mtime: i64,
    mode: u32,
    /// Is in a directory.
    linked: bool,
    opens: u32,
}

pub enum Body {
    Directory(BTreeMap<Vec<u8>, u64>),
    Bytes(Vec<u8>),
    Generated { size: u64, seed: u64 },
    Link(Vec<u8>),
}

const ROOT: u64 = 1;
/// The limit of Linux (MAXSYMLINKS).
const MAX_LINKS: u32 = 40;
/// Owner bits of a mode: the session is always the owner.
const READ: u32 = 0o400;
const WRITE: u32 = 0o200;

impl Tree {
    pub fn new(now: i64) -> Tree {
        let root =
            Node { body: Body::directory(), mtime: now, mode: 0o755, linked: true, opens: 0 };
        Tree { nodes: HashMap::from([(ROOT, root)]), next: ROOT + 1 }
    }

    pub fn stat(&self, path: &ServerPath, follow: bool) -> Result<Stat, Cause> {
        self.stat_inode(self.find(path, follow)?)
    }

    pub fn list(&self, path: &ServerPath) -> Result<Vec<(Vec<u8>, Stat)>, Cause> {
        let inode = self.find(path, true)?;
        self.allowed(inode, READ)?;
        let entries = self.entries(inode)?;
        entries.iter().map(|(name, child)| Ok((name.clone(), self.stat_inode(*child)?))).collect()
    }

    pub fn open_read(&mut self, path: &ServerPath) -> Result<u64, Cause> {
        let inode = self.find(path, true)?;
        self.allowed(inode, READ)?;
        let node = self.node(inode)?;
        if matches!(node.body, Body::Directory(_)) {
            return Err(Cause::IsDirectory);
        }
        node.opens += 1;
        Ok(inode)
    }

    pub fn open_write(
        &mut self,
        path: &ServerPath,
        start: Start,
        now: i64,
    ) -> Result<(u64, u64), Cause> {
        let inode = match self.find(path, true) {
            Ok(inode) => inode,
            Err(Cause::Missing) => self.insert(path, Body::Bytes(Vec::new()), now)?,
            Err(cause) => return Err(cause),
        };
        self.allowed(inode, WRITE)?;
        let node = self.node(inode)?;
        if matches!(node.body, Body::Directory(_)) {
            return Err(Cause::IsDirectory);
        }
        let offset = match start {
            Start::Truncate => {
                node.body = Body::Bytes(Vec::new());
                node.mtime = now;
                0
            }
            Start::At(offset) => offset,
            Start::Append => node.size(),
        };
        node.opens += 1;
        Ok((inode, offset))
    }

    pub fn close(&mut self, inode: u64) {
        if let Some(node) = self.nodes.get_mut(&inode) {
            node.opens -= 1;
        }
        self.forget(inode);
    }

    pub fn insert(&mut self, path: &ServerPath, body: Body, now: i64) -> Result<u64, Cause> {
        let (parent, name) = path.split().ok_or(Cause::Exists)?;
        let parent = self.find(&parent, true)?;
        self.allowed(parent, WRITE)?;
        let inode = self.next;
        match self.entries_mut(parent, now)?.entry(name.to_vec()) {
            std::collections::btree_map::Entry::Occupied(_) => return Err(Cause::Exists),
            std::collections::btree_map::Entry::Vacant(place) => place.insert(inode),
        };
        let mode = match body {
            Body::Directory(_) => 0o755,
            Body::Link(_) => 0o777,
            Body::Bytes(_) | Body::Generated { .. } => 0o644,
        };
        self.next += 1;
        self.nodes.insert(inode, Node { body, mtime: now, mode, linked: true, opens: 0 });
        Ok(inode)
    }

    pub fn remove(&mut self, path: &ServerPath, directory: bool, now: i64) -> Result<(), Cause> {
        let (parent, name) = path.split().ok_or(Cause::Denied)?;
        let parent = self.find(&parent, true)?;
        let inode = self.find(path, false)?;
        self.allowed(parent, WRITE)?;
        match (self.entries(inode), directory) {
            (Ok(_), false) => return Err(Cause::IsDirectory),
            (Err(cause), true) => return Err(cause),
            (Ok(entries), true) if !entries.is_empty() => return Err(Cause::NotEmpty),
            _ => {}
        }
        self.entries_mut(parent, now)?.remove(name);
        self.unlink(inode);
        Ok(())
    }

    pub fn rename(&mut self, from: &ServerPath, to: &ServerPath, now: i64) -> Result<(), Cause> {
        let (from_parent, from_name) = from.split().ok_or(Cause::Denied)?;
        let (to_parent, to_name) = to.split().ok_or(Cause::Denied)?;
        let moved = self.find(from, false)?;
        let from_inode = self.find(&from_parent, true)?;
        let to_inode = self.find(&to_parent, true)?;
        self.allowed(from_inode, WRITE)?;
        self.allowed(to_inode, WRITE)?;
        if to == from {
            return Ok(());
        }
        let moves_directory = self.entries(moved).is_ok();
        if moves_directory && to.begins_with(from) {
            return Err(Cause::Denied);
        }
        if let Ok(replaced) = self.find(to, false) {
            match (self.entries(replaced), moves_directory) {
                (Ok(_), false) => return Err(Cause::IsDirectory),
                (Err(cause), true) => return Err(cause),
                (Ok(entries), true) if !entries.is_empty() => return Err(Cause::NotEmpty),
                _ => {}
            }
            self.unlink(replaced);
        }
        self.entries_mut(from_inode, now)?.remove(from_name);
        self.entries_mut(to_inode, now)?.insert(to_name.to_vec(), moved);
        Ok(())
    }

    pub fn set_mtime(&mut self, path: &ServerPath, mtime: i64) -> Result<(), Cause> {
        let inode = self.find(path, true)?;
        self.node(inode)?.mtime = mtime;
        Ok(())
    }

    pub fn set_mode(&mut self, path: &ServerPath, mode: u32) -> Result<(), Cause> {
        let inode = self.find(path, true)?;
        self.node(inode)?.mode = mode;
        Ok(())
    }

    pub fn generate(
        &mut self,
        path: &ServerPath,
        size: u64,
        seed: u64,
        now: i64,
    ) -> Result<(), Cause> {
        let (inode, _) = self.open_write(path, Start::Truncate, now)?;
        self.node(inode)?.body = Body::Generated { size, seed };
        self.close(inode);
        Ok(())
    }

    /// How many bytes there are for `buffer`. They are in it, unless a seed
    /// comes too: then the caller computes them.
    pub fn read(&self, inode: u64, offset: u64, buffer: &mut [u8]) -> (usize, Option<u64>) {
        let Some(node) = self.nodes.get(&inode) else { return (0, None) };
        let left = usize::try_from(node.size().saturating_sub(offset)).unwrap_or(usize::MAX);
        let length = buffer.len().min(left);
        match &node.body {
            Body::Bytes(bytes) if length > 0 => {
                let start = bytes.len() - left;
                buffer[..length].copy_from_slice(&bytes[start..start + length]);
                (length, None)
            }
            Body::Generated { seed, .. } => (length, Some(*seed)),
            _ => (0, None),
        }
    }

    pub fn write(&mut self, inode: u64, offset: u64, bytes: &[u8], now: i64) -> Result<(), Cause> {
        let node = self.node(inode)?;
        node.mtime = now;
        let Body::Bytes(old) = &mut node.body else { return Err(Cause::Denied) };
        let start = usize::try_from(offset).map_err(|_| Cause::Denied)?;
        let end = start.saturating_add(bytes.len());
        if old.len() < end {
            old.resize(end, 0);
        }
        old[start..end].copy_from_slice(bytes);
        Ok(())
    }

    fn find(&self, path: &ServerPath, follow: bool) -> Result<u64, Cause> {
        let mut way = vec![ROOT];
        let mut rest: VecDeque<Vec<u8>> = path.components().iter().cloned().collect();
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            let here = way.last().copied().unwrap_or(ROOT);
            // Only the target of a link can still hold these.
            if name.is_empty() || name == b"." {
                continue;
            }
            if name == b".." {
                way.truncate(way.len().saturating_sub(1).max(1));
                continue;
            }
            let inode = *self.entries(here)?.get(&name).ok_or(Cause::Missing)?;
            let node = self.nodes.get(&inode).ok_or(Cause::Missing)?;
            if let Body::Link(target) = &node.body
                && (follow || !rest.is_empty())
            {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Cause::Missing);
                }
                if target.first() == Some(&b'/') {
                    way.truncate(1);
                }
                for component in target.split(|byte| *byte == b'/').rev() {
                    rest.push_front(component.to_vec());
                }
                continue;
            }
            way.push(inode);
        }
        Ok(way.last().copied().unwrap_or(ROOT))
    }

    fn stat_inode(&self, inode: u64) -> Result<Stat, Cause> {
        let node = self.nodes.get(&inode).ok_or(Cause::Missing)?;
        let kind = match &node.body {
            Body::Directory(_) => Kind::Directory,
            Body::Link(target) => Kind::Link(target.clone()),
            Body::Bytes(_) | Body::Generated { .. } => Kind::File,
        };
        Ok(Stat { kind, size: node.size(), mtime: node.mtime, mode: node.mode, unique: inode })
    }

    fn allowed(&self, inode: u64, bit: u32) -> Result<(), Cause> {
        let node = self.nodes.get(&inode).ok_or(Cause::Missing)?;
        if node.mode & bit == 0 { Err(Cause::Denied) } else { Ok(()) }
    }

    fn node(&mut self, inode: u64) -> Result<&mut Node, Cause> {
        self.nodes.get_mut(&inode).ok_or(Cause::Missing)
    }

    fn entries(&self, inode: u64) -> Result<&BTreeMap<Vec<u8>, u64>, Cause> {
        match self.nodes.get(&inode).map(|node| &node.body) {
            Some(Body::Directory(entries)) => Ok(entries),
            Some(_) => Err(Cause::NotDirectory),
            None => Err(Cause::Missing),
        }
    }

    fn entries_mut(&mut self, inode: u64, now: i64) -> Result<&mut BTreeMap<Vec<u8>, u64>, Cause> {
        let node = self.node(inode)?;
        match &mut node.body {
            Body::Directory(entries) => {
                node.mtime = now;
                Ok(entries)
            }
            _ => Err(Cause::NotDirectory),
        }
    }

    fn unlink(&mut self, inode: u64) {
        if let Some(node) = self.nodes.get_mut(&inode) {
            node.linked = false;
        }
        self.forget(inode);
    }

    /// Lets go of an inode that is neither in a directory nor open.
    fn forget(&mut self, inode: u64) {
        if self.nodes.get(&inode).is_some_and(|node| !node.linked && node.opens == 0) {
            self.nodes.remove(&inode);
        }
    }
}

impl Body {
    pub fn directory() -> Body {
        Body::Directory(BTreeMap::new())
    }
}

impl Node {
    fn size(&self) -> u64 {
        match &self.body {
            // What ext4 says of a small directory.
            Body::Directory(_) => 4096,
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::Generated { size, .. } => *size,
            Body::Link(target) => target.len() as u64,
        }
    }
}

/// The byte at `position` of every generated file with this seed.
pub fn generated_byte(seed: u64, position: u64) -> u8 {
    let mut byte = [0];
    fill_generated(seed, position, &mut byte);
    byte[0]
}

/// Fills `buffer` with the bytes of a generated file from `position` on.
pub fn fill_generated(seed: u64, position: u64, buffer: &mut [u8]) {
    // Bytes up to the first whole word; a word is eight bytes of the file.
    let skip = (position % 8) as usize;
    let head = if skip == 0 { 0 } else { buffer.len().min(8 - skip) };
    let (first, rest) = buffer.split_at_mut(head);
    let mut index = position / 8;
    if head > 0 {
        first.copy_from_slice(&generated_word(seed, index).to_le_bytes()[skip..skip + head]);
        index += 1;
    }
    for (word, index) in rest.chunks_mut(8).zip(index..) {
        let length = word.len();
        word.copy_from_slice(&generated_word(seed, index).to_le_bytes()[..length]);
    }
}

/// splitmix64 of the position: no two blocks of a file are alike, so a block
/// served from a wrong offset is seen.
fn generated_word(seed: u64, index: u64) -> u64 {
    let mut word = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}
