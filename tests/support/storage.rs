//! The files the scripted server serves: in memory, or a directory on disk.
//!
//! Names and paths are bytes. Every change takes the time it happens at, so
//! that a server may have a wrong clock. Knows no FTP.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use super::path::ServerPath;
use super::tree::{Body, Tree, fill_generated};

/// Where the files are.
pub enum Storage {
    Memory(Mutex<Tree>),
    Disk(PathBuf),
}

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
            Storage::Memory(tree) => lock(tree).insert(path, Body::directory(), now).map(drop),
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
            Storage::Memory(tree) => lock(tree).set_mtime(path, mtime),
            Storage::Disk(root) => {
                let seconds = u64::try_from(mtime).map_err(|_| Cause::Denied)?;
                let file = fs::File::open(disk_path(root, path)?)?;
                Ok(file.set_modified(UNIX_EPOCH + Duration::from_secs(seconds))?)
            }
        }
    }

    pub fn set_mode(&self, path: &ServerPath, mode: u32) -> Result<(), Cause> {
        match self {
            Storage::Memory(tree) => lock(tree).set_mode(path, mode & 0o7777),
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
            Storage::Memory(tree) => lock(tree).generate(path, size, seed, now),
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
                // Computed bytes are computed after the lock is let go.
                let (length, seed) = lock(tree).read(*inode, offset, buffer);
                if let Some(seed) = seed {
                    fill_generated(seed, offset, &mut buffer[..length]);
                }
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
                Ok(lock(tree).write(*inode, offset, bytes, now)?)
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

impl From<Cause> for io::Error {
    fn from(cause: Cause) -> io::Error {
        io::Error::other(format!("{cause:?}"))
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
fn disk_path(root: &Path, path: &ServerPath) -> Result<PathBuf, Cause> {
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
fn disk_parent(root: &Path, path: &ServerPath) -> Result<PathBuf, Cause> {
    let root = root.canonicalize()?;
    let Some((parent, name)) = path.split() else { return Ok(root) };
    let mut local = root.clone();
    local.extend(parent.components().iter().map(|component| OsStr::from_bytes(component)));
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

fn read_link(local: &Path) -> Vec<u8> {
    fs::read_link(local).map_or_else(|_| Vec::new(), |target| target.into_os_string().into_vec())
}
