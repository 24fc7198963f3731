//! Two ways to the same file system: calls of the Vfs, and a real mount. The functional suite
//! runs once over each.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ftpfs::ftp::{Kind, NetworkSettings, Pool, Secret, Target, TlsSettings};
use ftpfs::fuse::{self, MountSettings, Mounted};
use ftpfs::vfs::{
    self, Access, Changes, Ino, Mtime, Options, ROOT, ReadAhead, RenameMode, StreamLimit, Vfs, When,
};

use crate::support::server::Server;

/// Kind of failure, in the words of errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fail {
    NotFound,
    Exists,
    NotEmpty,
    NotADirectory,
    IsADirectory,
    Denied,
    ReadOnly,
    Invalid,
    NameTooLong,
    NotOwner,
    Unsupported,
    NoSpace,
    Quota,
    TimedOut,
    Stale,
    Io,
}

pub type Result<T> = std::result::Result<T, Fail>;

/// What `stat` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    pub is_dir: bool,
    pub is_link: bool,
    pub size: u64,
    pub mtime: i64,
    pub mode: u32,
}

/// A file opened by a driver.
pub trait Open {
    fn read_at(&mut self, offset: u64, length: usize) -> Result<Vec<u8>>;
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()>;
    fn sync(&mut self) -> Result<()>;
    /// The result that a program's `close` gets.
    fn close(self: Box<Self>) -> Result<()>;
}

/// How to open.
#[derive(Clone, Copy, Debug, Default)]
pub struct How {
    pub read: bool,
    pub write: bool,
    pub append: bool,
    pub truncate: bool,
    pub create: bool,
    pub exclusive: bool,
}

impl How {
    pub const READ: Self = Self { read: true, ..Self::NONE };
    pub const UPDATE: Self = Self { read: true, write: true, ..Self::NONE };
    pub const APPEND: Self = Self { write: true, append: true, ..Self::NONE };
    pub const CREATE: Self = Self { write: true, create: true, truncate: true, ..Self::NONE };
    pub const NEW: Self = Self { exclusive: true, ..Self::CREATE };
    const NONE: Self = Self {
        read: false,
        write: false,
        append: false,
        truncate: false,
        create: false,
        exclusive: false,
    };
}

/// A mounted file system, by paths of bytes relative to its root.
pub trait Driver {
    fn open(&self, path: &[u8], how: How) -> Result<Box<dyn Open + '_>>;
    fn stat(&self, path: &[u8]) -> Result<Stat>;
    fn names(&self, path: &[u8]) -> Result<Vec<Vec<u8>>>;
    fn mkdir(&self, path: &[u8]) -> Result<()>;
    fn rmdir(&self, path: &[u8]) -> Result<()>;
    fn unlink(&self, path: &[u8]) -> Result<()>;
    fn rename(&self, from: &[u8], to: &[u8]) -> Result<()>;
    fn rename_noreplace(&self, from: &[u8], to: &[u8]) -> Result<()>;
    fn truncate(&self, path: &[u8], size: u64) -> Result<()>;
    fn chmod(&self, path: &[u8], mode: u32) -> Result<()>;
    fn set_mtime(&self, path: &[u8], seconds: i64) -> Result<()>;
    fn readlink(&self, path: &[u8]) -> Result<Vec<u8>>;
    fn symlink(&self, target: &[u8], path: &[u8]) -> Result<()>;
    fn xattrs(&self, path: &[u8]) -> Result<BTreeMap<String, Vec<u8>>>;

    fn read(&self, path: &[u8]) -> Result<Vec<u8>> {
        let size = self.stat(path)?.size;
        let mut file = self.open(path, How::READ)?;
        let bytes = file.read_at(0, usize::try_from(size).unwrap() + 1)?;
        file.close()?;
        Ok(bytes)
    }

    fn write(&self, path: &[u8], bytes: &[u8]) -> Result<()> {
        let mut file = self.open(path, How::CREATE)?;
        file.write_at(0, bytes)?;
        file.close()
    }
}

/// The target of a server of the tests.
pub fn target(server: &Server, connections: usize) -> Target {
    Target {
        host: "127.0.0.1".into(),
        port: server.port(),
        user: "user".into(),
        password: Secret::new(b"password".to_vec()),
        account: None,
        directory: Vec::new(),
        timeout: Duration::from_secs(5),
        connections,
        tls: TlsSettings::default(),
        facts: false,
        network: NetworkSettings::default(),
    }
}

/// Options for a mount of the test's own user, with a staging directory of its own.
pub fn options(ttl: Duration, staging: &Path) -> Options {
    // One’s own ids: those of a directory just made.
    let own = staging.metadata().unwrap();
    Options {
        ttl,
        ttl_grace: Duration::ZERO,
        read_only: false,
        uid: own.uid(),
        gid: own.gid(),
        umask: 0o022,
        strict_owner: false,
        direct_io: false,
        staging_dir: staging.to_owned(),
        writing: vfs::WritePolicy::default(),
        read_ahead: ReadAhead::Auto,
        memory: Options::MEMORY,
        cache_dir: None,
        streams: StreamLimit::Auto,
    }
}

/// The Vfs itself, without a kernel.
pub struct Direct {
    pub vfs: Vfs,
    pub staging: tempfile::TempDir,
}

impl Direct {
    pub fn new(server: &Server, connections: usize, ttl: Duration) -> Self {
        Self::over(target(server, connections), ttl).unwrap()
    }

    /// With work ahead as wanted, not by the default.
    pub fn reading_ahead(
        server: &Server,
        connections: usize,
        ttl: Duration,
        read_ahead: ReadAhead,
    ) -> Self {
        let staging = tempfile::tempdir().unwrap();
        let pool = Pool::open(target(server, connections)).unwrap();
        let options = Options { read_ahead, ..options(ttl, staging.path()) };
        Self { vfs: Vfs::new(pool, options).unwrap(), staging }
    }

    pub fn over(target: Target, ttl: Duration) -> std::result::Result<Self, ftpfs::ftp::Error> {
        Self::staged_in(tempfile::tempdir().unwrap(), target, ttl)
    }

    /// With a staging directory in which another one may have left something.
    pub fn staged_in(
        staging: tempfile::TempDir,
        target: Target,
        ttl: Duration,
    ) -> std::result::Result<Self, ftpfs::ftp::Error> {
        let pool = Pool::open(target)?;
        let vfs = Vfs::new(pool, options(ttl, staging.path())).unwrap();
        Ok(Self { vfs, staging })
    }

    /// Opens or makes a file, as open(2) does; its handle, for whoever calls the Vfs with it.
    pub fn open_handle(&self, path: &[u8], how: How) -> Result<u64> {
        let access = Access { read: how.read, write: how.write, append: how.append };
        let opened = match self.find(path) {
            Ok(_) if how.exclusive => return Err(Fail::Exists),
            Ok(ino) => self.vfs.open(ino, access, how.truncate)?,
            Err(Fail::NotFound) if how.create => {
                let (parent, name) = self.parent(path)?;
                self.vfs.create(parent, name, 0o644, access, how.exclusive)?.1
            }
            Err(fail) => return Err(fail),
        };
        Ok(opened.fh)
    }

    fn find(&self, path: &[u8]) -> Result<Ino> {
        let mut at = ROOT;
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            at = self.vfs.lookup(at, name)?.map_err(|_| Fail::NotFound)?.attr.ino;
        }
        Ok(at)
    }

    fn parent<'a>(&self, path: &'a [u8]) -> Result<(Ino, &'a [u8])> {
        let cut = path.iter().rposition(|byte| *byte == b'/');
        let (directory, name) = match cut {
            Some(cut) => (&path[..cut], &path[cut + 1..]),
            None => (&b""[..], path),
        };
        Ok((self.find(directory)?, name))
    }
}

struct DirectFile<'a> {
    vfs: &'a Vfs,
    fh: u64,
    is_closed: bool,
}

impl Open for DirectFile<'_> {
    fn read_at(&mut self, offset: u64, length: usize) -> Result<Vec<u8>> {
        // A mebibyte at a time, as the kernel asks.
        let mut bytes = Vec::new();
        while bytes.len() < length {
            let want = (length - bytes.len()).min(1 << 20);
            let got = self.vfs.read(self.fh, offset + bytes.len() as u64, want, <[u8]>::to_vec)?;
            let is_end = got.len() < want;
            bytes.extend(got);
            if is_end {
                break;
            }
        }
        Ok(bytes)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        Ok(self.vfs.write(self.fh, offset, bytes)?)
    }

    fn sync(&mut self) -> Result<()> {
        Ok(self.vfs.fsync(self.fh)?)
    }

    fn close(mut self: Box<Self>) -> Result<()> {
        let flushed = self.vfs.flush(self.fh);
        self.vfs.release(self.fh);
        self.is_closed = true;
        Ok(flushed?)
    }
}

impl Drop for DirectFile<'_> {
    fn drop(&mut self) {
        if !self.is_closed {
            self.vfs.release(self.fh);
        }
    }
}

impl Driver for Direct {
    fn open(&self, path: &[u8], how: How) -> Result<Box<dyn Open + '_>> {
        let fh = self.open_handle(path, how)?;
        Ok(Box::new(DirectFile { vfs: &self.vfs, fh, is_closed: false }))
    }

    fn stat(&self, path: &[u8]) -> Result<Stat> {
        let attr = self.vfs.getattr(self.find(path)?)?.attr;
        Ok(Stat {
            is_dir: attr.kind == Kind::Directory,
            is_link: attr.kind == Kind::Symlink,
            size: attr.size,
            mtime: attr.mtime.seconds,
            mode: u32::from(attr.mode),
        })
    }

    fn names(&self, path: &[u8]) -> Result<Vec<Vec<u8>>> {
        let fh = self.vfs.opendir(self.find(path)?)?;
        let mut names = Vec::new();
        let mut offset = 0;
        // Three at a time, as a kernel with a small buffer would.
        loop {
            let before = names.len();
            self.vfs.readdir(fh, offset, true, |entry| {
                if names.len() == before + 3 {
                    return false;
                }
                offset = entry.next;
                names.push(entry.name.to_vec());
                true
            })?;
            if names.len() == before {
                break;
            }
        }
        self.vfs.releasedir(fh);
        names.retain(|name| name != b"." && name != b"..");
        names.sort();
        Ok(names)
    }

    fn mkdir(&self, path: &[u8]) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        self.vfs.mkdir(parent, name, 0o755)?;
        Ok(())
    }

    fn rmdir(&self, path: &[u8]) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        Ok(self.vfs.rmdir(parent, name)?)
    }

    fn unlink(&self, path: &[u8]) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        Ok(self.vfs.unlink(parent, name)?)
    }

    fn rename(&self, from: &[u8], to: &[u8]) -> Result<()> {
        Ok(self.vfs.rename(self.parent(from)?, self.parent(to)?, RenameMode::Replace)?)
    }

    fn rename_noreplace(&self, from: &[u8], to: &[u8]) -> Result<()> {
        Ok(self.vfs.rename(self.parent(from)?, self.parent(to)?, RenameMode::NoReplace)?)
    }

    fn truncate(&self, path: &[u8], size: u64) -> Result<()> {
        let changes = Changes { size: Some(size), ..Changes::default() };
        self.vfs.setattr(self.find(path)?, &changes)?;
        Ok(())
    }

    fn chmod(&self, path: &[u8], mode: u32) -> Result<()> {
        let changes = Changes { mode: Some(u16::try_from(mode).unwrap()), ..Changes::default() };
        self.vfs.setattr(self.find(path)?, &changes)?;
        Ok(())
    }

    fn set_mtime(&self, path: &[u8], seconds: i64) -> Result<()> {
        let when = When::At(Mtime { seconds, nanos: 0 });
        let changes = Changes { mtime: Some(when), ..Changes::default() };
        self.vfs.setattr(self.find(path)?, &changes)?;
        Ok(())
    }

    fn readlink(&self, path: &[u8]) -> Result<Vec<u8>> {
        Ok(self.vfs.readlink(self.find(path)?)?)
    }

    fn symlink(&self, target: &[u8], path: &[u8]) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        self.vfs.symlink(parent, name, target)?;
        Ok(())
    }

    fn xattrs(&self, path: &[u8]) -> Result<BTreeMap<String, Vec<u8>>> {
        let ino = self.find(path)?;
        let names = self.vfs.listxattr(ino)?;
        names.into_iter().map(|name| Ok((name.clone(), self.vfs.getxattr(ino, &name)?))).collect()
    }
}

impl From<vfs::Error> for Fail {
    fn from(error: vfs::Error) -> Self {
        match error {
            vfs::Error::NotFound => Self::NotFound,
            vfs::Error::Exists => Self::Exists,
            vfs::Error::NotEmpty => Self::NotEmpty,
            vfs::Error::NotADirectory => Self::NotADirectory,
            vfs::Error::IsADirectory => Self::IsADirectory,
            vfs::Error::Denied(_) => Self::Denied,
            vfs::Error::ReadOnly => Self::ReadOnly,
            vfs::Error::Invalid | vfs::Error::BadName(_) => Self::Invalid,
            vfs::Error::NameTooLong => Self::NameTooLong,
            vfs::Error::NotOwner => Self::NotOwner,
            vfs::Error::Unsupported => Self::Unsupported,
            vfs::Error::NoSpace(_) => Self::NoSpace,
            vfs::Error::Quota(_) => Self::Quota,
            vfs::Error::TimedOut(_) => Self::TimedOut,
            vfs::Error::Stale(_) => Self::Stale,
            _ => Self::Io,
        }
    }
}

/// Is there a FUSE device that may be opened?
pub fn has_fuse() -> bool {
    std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok()
}

/// A real mount, ended with the value.
pub struct Kernel {
    pub root: PathBuf,
    mounted: Option<Mounted>,
    _staging: tempfile::TempDir,
    mountpoint: Option<tempfile::TempDir>,
}

impl Kernel {
    pub fn new(server: &Server, connections: usize, ttl: Duration) -> Self {
        // Shown when a test fails: the kernel passes on only the number of an error.
        let _ = env_logger::builder().is_test(true).try_init();
        let staging = tempfile::tempdir().unwrap();
        let mountpoint = tempfile::tempdir().unwrap();
        let pool = Pool::open(target(server, connections)).unwrap();
        let vfs = Arc::new(Vfs::new(pool, options(ttl, staging.path())).unwrap());
        Self::over(vfs, connections, mountpoint, staging)
    }

    /// A mount of this file system.
    pub fn over(
        vfs: Arc<Vfs>,
        connections: usize,
        mountpoint: tempfile::TempDir,
        staging: tempfile::TempDir,
    ) -> Self {
        let settings = MountSettings {
            source: "ftpfs-test".into(),
            read_only: false,
            allow_other: false,
            no_exec: false,
            facts: true,
            threads: connections + 4,
        };
        let mounted = fuse::mount(Arc::clone(&vfs), mountpoint.path(), &settings).unwrap();
        Self {
            root: mountpoint.path().to_owned(),
            mounted: Some(mounted),
            _staging: staging,
            mountpoint: Some(mountpoint),
        }
    }

    fn at(&self, path: &[u8]) -> PathBuf {
        self.root.join(std::ffi::OsStr::from_bytes(path))
    }
}

/// Without a process of its own: a child between fork and exec would hold what this process has
/// open on the mount, and closing that waits for the file system, which is this process.
fn unmount(root: &Path) {
    let path = std::ffi::CString::new(root.as_os_str().as_bytes()).unwrap();
    for flags in [0, libc::MNT_DETACH] {
        // SAFETY: the path is a NUL-ended string that lives until the call returns (umount2(2)).
        #[allow(unsafe_code)]
        if unsafe { libc::umount2(path.as_ptr(), flags) } == 0 {
            return;
        }
    }
    // Who is not root needs the helper of FUSE.
    let _ = std::process::Command::new("fusermount3").arg("-uz").arg(root).output();
}

impl Drop for Kernel {
    fn drop(&mut self) {
        unmount(&self.root);
        if let Some(mounted) = self.mounted.take() {
            mounted.wait().unwrap();
        }
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let is_left = table.contains(self.root.to_str().unwrap());
        drop(self.mountpoint.take());
        if !std::thread::panicking() {
            assert!(!is_left, "the test left a mount behind");
        }
    }
}

struct KernelFile(std::fs::File);

impl Open for KernelFile {
    fn read_at(&mut self, offset: u64, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        let mut filled = 0;
        self.0.seek(SeekFrom::Start(offset))?;
        loop {
            match self.0.read(&mut bytes[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        Ok(self.0.write_all_at(bytes, offset)?)
    }

    fn sync(&mut self) -> Result<()> {
        self.0.flush()?;
        Ok(self.0.sync_all()?)
    }

    fn close(self: Box<Self>) -> Result<()> {
        // `File` closes without telling; close(2) has the answer that matters.
        use std::os::fd::IntoRawFd;
        let fd = self.0.into_raw_fd();
        // SAFETY: the descriptor is ours and not used again.
        #[allow(unsafe_code)]
        let result = unsafe { libc::close(fd) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error().into()) }
    }
}

impl Driver for Kernel {
    fn open(&self, path: &[u8], how: How) -> Result<Box<dyn Open + '_>> {
        let mut options = std::fs::OpenOptions::new();
        options.read(how.read).append(how.append).truncate(how.truncate);
        options.write(how.write && !how.append);
        options.create(how.create).create_new(how.exclusive);
        Ok(Box::new(KernelFile(options.open(self.at(path))?)))
    }

    fn stat(&self, path: &[u8]) -> Result<Stat> {
        let meta = std::fs::symlink_metadata(self.at(path))?;
        Ok(Stat {
            is_dir: meta.is_dir(),
            is_link: meta.is_symlink(),
            size: meta.len(),
            mtime: meta.mtime(),
            mode: meta.permissions().mode() & 0o7777,
        })
    }

    fn names(&self, path: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.at(path))? {
            names.push(entry?.file_name().as_bytes().to_vec());
        }
        names.sort();
        Ok(names)
    }

    fn mkdir(&self, path: &[u8]) -> Result<()> {
        Ok(std::fs::create_dir(self.at(path))?)
    }

    fn rmdir(&self, path: &[u8]) -> Result<()> {
        Ok(std::fs::remove_dir(self.at(path))?)
    }

    fn unlink(&self, path: &[u8]) -> Result<()> {
        Ok(std::fs::remove_file(self.at(path))?)
    }

    fn rename(&self, from: &[u8], to: &[u8]) -> Result<()> {
        Ok(std::fs::rename(self.at(from), self.at(to))?)
    }

    fn rename_noreplace(&self, from: &[u8], to: &[u8]) -> Result<()> {
        use std::ffi::CString;
        let text = |path| CString::new(self.at(path).as_os_str().as_bytes()).unwrap();
        let (from, to) = (text(from), text(to));
        // SAFETY: both are NUL-terminated and live until the call returns.
        #[allow(unsafe_code)]
        let result = unsafe {
            libc::renameat2(
                libc::AT_FDCWD,
                from.as_ptr(),
                libc::AT_FDCWD,
                to.as_ptr(),
                libc::RENAME_NOREPLACE,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error().into()) }
    }

    fn truncate(&self, path: &[u8], size: u64) -> Result<()> {
        use std::ffi::CString;
        let path = CString::new(self.at(path).as_os_str().as_bytes()).unwrap();
        let size = libc::off_t::try_from(size).unwrap();
        // SAFETY: the path is NUL-terminated and lives until the call returns.
        #[allow(unsafe_code)]
        let result = unsafe { libc::truncate(path.as_ptr(), size) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error().into()) }
    }

    fn chmod(&self, path: &[u8], mode: u32) -> Result<()> {
        Ok(std::fs::set_permissions(self.at(path), std::fs::Permissions::from_mode(mode))?)
    }

    fn set_mtime(&self, path: &[u8], seconds: i64) -> Result<()> {
        let since = Duration::from_secs(seconds.unsigned_abs());
        let file = std::fs::File::open(self.at(path))?;
        Ok(file.set_modified(std::time::UNIX_EPOCH + since)?)
    }

    fn readlink(&self, path: &[u8]) -> Result<Vec<u8>> {
        Ok(std::fs::read_link(self.at(path))?.as_os_str().as_bytes().to_vec())
    }

    fn symlink(&self, target: &[u8], path: &[u8]) -> Result<()> {
        let target = std::ffi::OsStr::from_bytes(target);
        Ok(std::os::unix::fs::symlink(target, self.at(path))?)
    }

    fn xattrs(&self, path: &[u8]) -> Result<BTreeMap<String, Vec<u8>>> {
        use std::ffi::CString;
        let path = CString::new(self.at(path).as_os_str().as_bytes()).unwrap();
        let mut list = vec![0u8; 4096];
        // SAFETY: both buffers are as long as told, and live until the calls return.
        #[allow(unsafe_code)]
        let length =
            unsafe { libc::listxattr(path.as_ptr(), list.as_mut_ptr().cast(), list.len()) };
        let length = usize::try_from(length).map_err(|_| Fail::from(io::Error::last_os_error()))?;
        let mut found = BTreeMap::new();
        for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let mut value = vec![0u8; 4096];
            let text = CString::new(name).unwrap();
            // SAFETY: as above.
            #[allow(unsafe_code)]
            let length = unsafe {
                libc::getxattr(path.as_ptr(), text.as_ptr(), value.as_mut_ptr().cast(), value.len())
            };
            let length =
                usize::try_from(length).map_err(|_| Fail::from(io::Error::last_os_error()))?;
            value.truncate(length);
            found.insert(String::from_utf8(name.to_vec()).unwrap(), value);
        }
        Ok(found)
    }
}

impl From<io::Error> for Fail {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOENT) => Self::NotFound,
            Some(libc::EEXIST) => Self::Exists,
            Some(libc::ENOTEMPTY) => Self::NotEmpty,
            Some(libc::ENOTDIR) => Self::NotADirectory,
            Some(libc::EISDIR) => Self::IsADirectory,
            Some(libc::EACCES) => Self::Denied,
            Some(libc::EROFS) => Self::ReadOnly,
            Some(libc::EINVAL) => Self::Invalid,
            Some(libc::ENAMETOOLONG) => Self::NameTooLong,
            Some(libc::EPERM) => Self::NotOwner,
            Some(libc::EOPNOTSUPP) => Self::Unsupported,
            Some(libc::ENOSPC) => Self::NoSpace,
            Some(libc::EDQUOT) => Self::Quota,
            Some(libc::ETIMEDOUT) => Self::TimedOut,
            Some(libc::ESTALE) => Self::Stale,
            _ => Self::Io,
        }
    }
}
