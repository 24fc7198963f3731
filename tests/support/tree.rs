//! The files the scripted server serves: in memory, or a directory on disk.
//!
//! Names and paths are bytes. Every change takes the time it happens at, so
//! that a server may have a wrong clock. Knows no FTP.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

/// Where the files are.
pub enum Storage {
    Memory(Mutex<Tree>),
    Disk(PathBuf),
}

/// An absolute path as its components; `.` and `..` are already resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerPath(Vec<Vec<u8>>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Link(Vec<u8>),
}

#[derive(Clone, Debug)]
pub struct Stat {
    pub kind: Kind,
    pub size: u64,
    /// Seconds since 1970, UTC.
    pub mtime: i64,
    /// Permission bits only.
    pub mode: u32,
    /// The same for as long as the file exists: the inode number.
    pub unique: u64,
}

/// Why an operation was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    Missing,
    Exists,
    NotEmpty,
    NotDirectory,
    IsDirectory,
    Denied,
}

/// Where a write into a file starts.
#[derive(Clone, Copy, Debug)]
pub enum Start {
    Truncate,
    At(u64),
    Append,
}

/// An open file. It stays readable and writable when it is renamed or deleted.
pub enum Content {
    Memory { storage: Arc<Storage>, inode: u64 },
    Disk(fs::File),
}

impl ServerPath {
    /// The root, or what `bytes` names from the root.
    pub fn absolute(bytes: impl AsRef<[u8]>) -> ServerPath {
        ServerPath::default().join(bytes.as_ref())
    }

    /// What `argument` means for a session that is in this directory.
    pub fn join(&self, argument: &[u8]) -> ServerPath {
        let mut components =
            if argument.first() == Some(&b'/') { Vec::new() } else { self.0.clone() };
        for component in argument.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => {
                    components.pop();
                }
                name => components.push(name.to_vec()),
            }
        }
        ServerPath(components)
    }

    pub fn child(&self, name: &[u8]) -> ServerPath {
        let mut components = self.0.clone();
        components.push(name.to_vec());
        ServerPath(components)
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        if self.0.is_empty() {
            return b"/".to_vec();
        }
        self.0.iter().flat_map(|name| [b"/", name.as_slice()].concat()).collect()
    }

    /// The last component; empty for the root.
    pub fn name(&self) -> &[u8] {
        self.0.last().map_or(b"", Vec::as_slice)
    }

    /// The directory and the name in it; nothing for the root.
    pub fn split(&self) -> Option<(ServerPath, &[u8])> {
        let (name, parents) = self.0.split_last()?;
        Some((ServerPath(parents.to_vec()), name))
    }

    fn begins_with(&self, other: &ServerPath) -> bool {
        self.0.starts_with(&other.0)
    }
}

impl Storage {
    pub fn memory(now: i64) -> Storage {
        Storage::Memory(Mutex::new(Tree::new(now)))
    }

    /// The state of `path`, symlinks followed.
    pub fn stat(&self, path: &ServerPath) -> Result<Stat, Cause> {
        match self {
            Storage::Memory(tree) => lock(tree).stat(path, true),
            Storage::Disk(root) => Ok(disk_stat(&fs::metadata(disk_path(root, path)?)?, Vec::new)),
        }
    }

    /// The state of `path`, a symlink seen as itself.
    pub fn stat_link(&self, path: &ServerPath) -> Result<Stat, Cause> {
        match self {
            Storage::Memory(tree) => lock(tree).stat(path, false),
            Storage::Disk(root) => {
                let local = disk_parent(root, path)?;
                Ok(disk_stat(&fs::symlink_metadata(&local)?, || read_link(&local)))
            }
        }
    }

    /// The entries of a directory, sorted by name, symlinks as themselves.
    pub fn list(&self, path: &ServerPath) -> Result<Vec<(Vec<u8>, Stat)>, Cause> {
        match self {
            Storage::Memory(tree) => lock(tree).list(path),
            Storage::Disk(root) => {
                let mut entries = Vec::new();
                for entry in fs::read_dir(disk_path(root, path)?)? {
                    let entry = entry?;
                    // Deleted by another program since read_dir: simply not there.
                    if let Ok(metadata) = fs::symlink_metadata(entry.path()) {
                        let stat = disk_stat(&metadata, || read_link(&entry.path()));
                        entries.push((entry.file_name().into_vec(), stat));
                    }
                }
                entries.sort_by(|left, right| left.0.cmp(&right.0));
                Ok(entries)
            }
        }
    }

    pub fn open(self: &Arc<Storage>, path: &ServerPath) -> Result<Content, Cause> {
        match &**self {
            Storage::Memory(tree) => {
                let inode = lock(tree).open_read(path)?;
                Ok(Content::Memory { storage: self.clone(), inode })
            }
            Storage::Disk(root) => {
                let local = disk_path(root, path)?;
                if fs::metadata(&local)?.is_dir() {
                    return Err(Cause::IsDirectory);
                }
                Ok(Content::Disk(fs::File::open(local)?))
            }
        }
    }

    /// Opens for writing, creating or truncating as real servers do: before
    /// the first byte has come. Returns the offset of that first byte.
    pub fn create(
        self: &Arc<Storage>,
        path: &ServerPath,
        start: Start,
        now: i64,
    ) -> Result<(Content, u64), Cause> {
        match &**self {
            Storage::Memory(tree) => {
                let (inode, offset) = lock(tree).open_write(path, start, now)?;
                Ok((Content::Memory { storage: self.clone(), inode }, offset))
            }
            Storage::Disk(root) => {
                let truncate = matches!(start, Start::Truncate);
                let file = fs::OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(truncate)
                    .open(disk_path(root, path)?)?;
                let offset = match start {
                    Start::Truncate => 0,
                    Start::At(offset) => offset,
                    Start::Append => file.metadata()?.len(),
                };
                Ok((Content::Disk(file), offset))
            }
        }
    }

    pub fn make_directory(&self, path: &ServerPath, now: i64) -> Result<(), Cause> {
        match self {
            Storage::Memory(tree) => {
                lock(tree).insert(path, Body::Directory(BTreeMap::new()), now).map(drop)
            }
            Storage::Disk(root) => Ok(fs::create_dir(disk_parent(root, path)?)?),
        }
    }

    pub fn make_link(&self, path: &ServerPath, target: &[u8], now: i64) -> Result<(), Cause> {
        match self {
            Storage::Memory(tree) => {
                lock(tree).insert(path, Body::Link(target.to_vec()), now).map(drop)
            }
            Storage::Disk(root) => {
                let local = disk_parent(root, path)?;
                Ok(std::os::unix::fs::symlink(OsStr::from_bytes(target), local)?)
            }
        }
    }

    pub fn remove_file(&self, path: &ServerPath, now: i64) -> Result<(), Cause> {
        match self {
            Storage::Memory(tree) => lock(tree).remove(path, false, now),
            Storage::Disk(root) => {
                let local = disk_parent(root, path)?;
                if fs::symlink_metadata(&local)?.is_dir() {
                    return Err(Cause::IsDirectory);
                }
                Ok(fs::remove_file(local)?)
            }
        }
    }

    pub fn remove_directory(&self, path: &ServerPath, now: i64) -> Result<(), Cause> {
        match self {
            Storage::Memory(tree) => lock(tree).remove(path, true, now),
            Storage::Disk(root) => Ok(fs::remove_dir(disk_parent(root, path)?)?),
        }
    }

    /// rename(2): replaces a file, or an empty directory by a directory.
    pub fn rename(&self, from: &ServerPath, to: &ServerPath, now: i64) -> Result<(), Cause> {
        match self {
            Storage::Memory(tree) => lock(tree).rename(from, to, now),
            Storage::Disk(root) => {
                Ok(fs::rename(disk_parent(root, from)?, disk_parent(root, to)?)?)
            }
        }
    }

    pub fn set_mtime(&self, path: &ServerPath, mtime: i64) -> Result<(), Cause> {
        match self {
            Storage::Memory(tree) => lock(tree).with(path, |node| node.mtime = mtime),
            Storage::Disk(root) => {
                let seconds = u64::try_from(mtime).map_err(|_| Cause::Denied)?;
                let file = fs::File::open(disk_path(root, path)?)?;
                Ok(file.set_modified(UNIX_EPOCH + Duration::from_secs(seconds))?)
            }
        }
    }

    pub fn set_mode(&self, path: &ServerPath, mode: u32) -> Result<(), Cause> {
        match self {
            Storage::Memory(tree) => lock(tree).with(path, |node| node.mode = mode & 0o7777),
            Storage::Disk(root) => {
                let permissions = fs::Permissions::from_mode(mode & 0o7777);
                Ok(fs::set_permissions(disk_path(root, path)?, permissions)?)
            }
        }
    }

    /// Puts a file there whose bytes are computed, see `generated_byte`.
    /// In memory only.
    pub fn generate(&self, path: &ServerPath, size: u64, seed: u64, now: i64) -> Result<(), Cause> {
        match self {
            Storage::Memory(tree) => {
                let mut tree = lock(tree);
                let (inode, _) = tree.open_write(path, Start::Truncate, now)?;
                tree.node(inode)?.body = Body::Generated { size, seed };
                tree.close(inode);
                Ok(())
            }
            Storage::Disk(_) => Err(Cause::Denied),
        }
    }
}

impl Content {
    /// Reads at `offset`; 0 is the end of the file as it is now.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Content::Disk(file) => file.read_at(buffer, offset),
            Content::Memory { storage, inode } => {
                let Storage::Memory(tree) = &**storage else { return Ok(0) };
                let (seed, length) = match lock(tree).nodes.get(inode).map(|node| &node.body) {
                    Some(Body::Bytes(bytes)) => {
                        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                        let length = buffer.len().min(bytes.len() - start);
                        buffer[..length].copy_from_slice(&bytes[start..start + length]);
                        return Ok(length);
                    }
                    Some(Body::Generated { size, seed }) => {
                        let left = size.saturating_sub(offset);
                        (*seed, buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX)))
                    }
                    _ => return Ok(0),
                };
                fill_generated(seed, offset, &mut buffer[..length]);
                Ok(length)
            }
        }
    }

    /// Writes at `offset`; a gap before it reads as zeros.
    pub fn write_at(&self, offset: u64, bytes: &[u8], now: i64) -> io::Result<()> {
        match self {
            Content::Disk(file) => file.write_all_at(bytes, offset),
            Content::Memory { storage, inode } => {
                let Storage::Memory(tree) = &**storage else { return Ok(()) };
                let mut tree = lock(tree);
                let Some(node) = tree.nodes.get_mut(inode) else { return Ok(()) };
                node.mtime = now;
                let Body::Bytes(old) = &mut node.body else {
                    return Err(io::ErrorKind::PermissionDenied.into());
                };
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let end = start.saturating_add(bytes.len());
                if old.len() < end {
                    old.resize(end, 0);
                }
                old[start..end].copy_from_slice(bytes);
                Ok(())
            }
        }
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        if let Content::Memory { storage, inode } = self
            && let Storage::Memory(tree) = &**storage
        {
            lock(tree).close(*inode);
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
    let mut at = position;
    let mut rest = buffer;
    while !rest.is_empty() {
        let word = generated_word(seed, at / 8).to_le_bytes();
        let skip = (at % 8) as usize;
        let length = rest.len().min(8 - skip);
        let (now, later) = rest.split_at_mut(length);
        now.copy_from_slice(&word[skip..skip + length]);
        at += length as u64;
        rest = later;
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

enum Body {
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
    fn new(now: i64) -> Tree {
        let root = Node {
            body: Body::Directory(BTreeMap::new()),
            mtime: now,
            mode: 0o755,
            linked: true,
            opens: 0,
        };
        Tree { nodes: HashMap::from([(ROOT, root)]), next: ROOT + 1 }
    }

    fn stat(&self, path: &ServerPath, follow: bool) -> Result<Stat, Cause> {
        self.stat_inode(self.find(path, follow)?)
    }

    fn list(&self, path: &ServerPath) -> Result<Vec<(Vec<u8>, Stat)>, Cause> {
        let inode = self.find(path, true)?;
        self.allowed(inode, READ)?;
        let entries = self.entries(inode)?;
        entries.iter().map(|(name, child)| Ok((name.clone(), self.stat_inode(*child)?))).collect()
    }

    fn open_read(&mut self, path: &ServerPath) -> Result<u64, Cause> {
        let inode = self.find(path, true)?;
        self.allowed(inode, READ)?;
        let node = self.node(inode)?;
        if matches!(node.body, Body::Directory(_)) {
            return Err(Cause::IsDirectory);
        }
        node.opens += 1;
        Ok(inode)
    }

    fn open_write(
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

    fn close(&mut self, inode: u64) {
        if let Some(node) = self.nodes.get_mut(&inode) {
            node.opens -= 1;
        }
        self.forget(inode);
    }

    fn insert(&mut self, path: &ServerPath, body: Body, now: i64) -> Result<u64, Cause> {
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

    fn remove(&mut self, path: &ServerPath, directory: bool, now: i64) -> Result<(), Cause> {
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

    fn rename(&mut self, from: &ServerPath, to: &ServerPath, now: i64) -> Result<(), Cause> {
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

    fn with(&mut self, path: &ServerPath, change: impl FnOnce(&mut Node)) -> Result<(), Cause> {
        let inode = self.find(path, true)?;
        change(self.node(inode)?);
        Ok(())
    }

    fn find(&self, path: &ServerPath, follow: bool) -> Result<u64, Cause> {
        let mut way = vec![ROOT];
        let mut rest: VecDeque<Vec<u8>> = path.0.iter().cloned().collect();
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

impl From<io::Error> for Cause {
    fn from(error: io::Error) -> Cause {
        match error.kind() {
            io::ErrorKind::NotFound => Cause::Missing,
            io::ErrorKind::AlreadyExists => Cause::Exists,
            io::ErrorKind::DirectoryNotEmpty => Cause::NotEmpty,
            io::ErrorKind::NotADirectory => Cause::NotDirectory,
            io::ErrorKind::IsADirectory => Cause::IsDirectory,
            _ => Cause::Denied,
        }
    }
}

fn lock(tree: &Mutex<Tree>) -> MutexGuard<'_, Tree> {
    tree.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The local file behind `path`, its last symlink followed. Refuses what a
/// symlink leads out of the served directory.
fn disk_path(root: &std::path::Path, path: &ServerPath) -> Result<PathBuf, Cause> {
    let local = disk_parent(root, path)?;
    match local.canonicalize() {
        Ok(real) if real.starts_with(root.canonicalize()?) => Ok(real),
        Ok(_) => Err(Cause::Denied),
        // A dangling symlink would be followed out of the directory by open.
        Err(_) if local.is_symlink() => Err(Cause::Missing),
        Err(_) => Ok(local),
    }
}

/// The same, a symlink in the last place taken as itself.
fn disk_parent(root: &std::path::Path, path: &ServerPath) -> Result<PathBuf, Cause> {
    let root = root.canonicalize()?;
    let Some((parent, name)) = path.split() else { return Ok(root) };
    let mut local = root.clone();
    local.extend(parent.0.iter().map(|component| OsStr::from_bytes(component)));
    let local = local.canonicalize()?;
    if !local.starts_with(&root) {
        return Err(Cause::Denied);
    }
    Ok(local.join(OsStr::from_bytes(name)))
}

fn disk_stat(metadata: &fs::Metadata, target: impl FnOnce() -> Vec<u8>) -> Stat {
    let kind = if metadata.is_dir() {
        Kind::Directory
    } else if metadata.is_symlink() {
        Kind::Link(target())
    } else {
        Kind::File
    };
    Stat {
        kind,
        size: metadata.len(),
        mtime: metadata.mtime(),
        mode: metadata.mode() & 0o7777,
        unique: metadata.ino(),
    }
}

fn read_link(local: &std::path::Path) -> Vec<u8> {
    fs::read_link(local).map_or_else(|_| Vec::new(), |target| target.into_os_string().into_vec())
}
