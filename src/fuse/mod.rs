//! Kernel request -> one Vfs call -> one reply.
//!
//! Decides nothing. Each failure is logged once, here. A panic below becomes EIO: a dead loop
//! would go unnoticed until every loop was dead.

mod cache;
mod errno;
mod mount;
mod values;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    AccessFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use errno::{errno, log_failure};
use values::{
    absent_attr, access, attr, attr_reply, empty_reply, entry_reply, ino, kind, mode_bits, mtime,
    open_reply, xattr_reply,
};

pub use cache::KernelCache;
pub use mount::{MountSettings, Mounted, mount};

use crate::vfs::{self, Attr, Changes, Ino, RenameMode, Vfs, When};

/// The largest write request: fewer requests for the same bytes; larger ones bring nothing more.
const MAX_WRITE: u32 = 1024 * 1024;

/// Requests the kernel may have under way in the background (read-ahead): more than all loops.
const MAX_BACKGROUND: u16 = 64;

/// What fuser calls.
#[derive(Debug)]
struct Kernel {
    vfs: Arc<Vfs>,
    shows_facts: bool,
}

impl Kernel {
    /// Runs one operation; its failure is logged and turned into the number for the kernel.
    fn run<T>(
        &self,
        name: &'static str,
        operation: impl FnOnce(&Vfs) -> vfs::Result<T>,
    ) -> Result<T, Errno> {
        let result = catch_unwind(AssertUnwindSafe(|| operation(&self.vfs)));
        match result {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                let errno = errno(&error);
                log_failure(name, &error, errno);
                Err(errno)
            }
            Err(_) => {
                log::error!("{name}: a fault in ftpfs, please report it; the program gets EIO");
                Err(Errno::EIO)
            }
        }
    }
}

impl Filesystem for Kernel {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_ATOMIC_O_TRUNC
            | InitFlags::FUSE_AUTO_INVAL_DATA
            | InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP;
        // Filtered, as fuser refuses the whole set when the kernel lacks one of it.
        let _ = config.add_capabilities(wanted & config.capabilities());
        // Both are clipped to what the kernel offers.
        let _ = config.set_max_write(MAX_WRITE);
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.run("lookup", |vfs| vfs.lookup(ino(parent), name.as_bytes())) {
            Ok(Ok(found)) => reply.entry(&found.valid, &attr(&found.attr), Generation(0)),
            // Inode 0: absent, and to be believed for a while.
            Ok(Err(valid)) => {
                let absent = Attr { ino: Ino(0), ..absent_attr() };
                reply.entry(&valid, &attr(&absent), Generation(0));
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn forget(&self, _request: &Request, number: INodeNo, count: u64) {
        // Has no reply; a failure cannot be told.
        let _ = self.run("forget", |vfs| {
            vfs.forget(ino(number), count);
            Ok(())
        });
    }

    fn getattr(
        &self,
        _request: &Request,
        number: INodeNo,
        _fh: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        attr_reply(self.run("getattr", |vfs| vfs.getattr(ino(number))), reply);
    }

    fn setattr(
        &self,
        _request: &Request,
        number: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        new_mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changes = Changes {
            size,
            mode: mode.map(mode_bits),
            uid,
            gid,
            mtime: new_mtime.map(|time| match time {
                TimeOrNow::SpecificTime(time) => When::At(mtime(time)),
                TimeOrNow::Now => When::Now,
            }),
        };
        attr_reply(self.run("setattr", |vfs| vfs.setattr(ino(number), &changes)), reply);
    }

    fn readlink(&self, _request: &Request, number: INodeNo, reply: ReplyData) {
        match self.run("readlink", |vfs| vfs.readlink(ino(number))) {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(errno),
        }
    }

    fn mknod(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        let kind = mode & libc::S_IFMT;
        if kind != libc::S_IFREG && kind != 0 {
            // FTP knows no devices, pipes or sockets.
            return reply.error(Errno::EPERM);
        }
        let mode = mode_bits(mode & !umask);
        let made = self.run("mknod", |vfs| vfs.mknod(ino(parent), name.as_bytes(), mode));
        entry_reply(made, reply);
    }

    fn mkdir(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let mode = mode_bits(mode & !umask);
        let made = self.run("mkdir", |vfs| vfs.mkdir(ino(parent), name.as_bytes(), mode));
        entry_reply(made, reply);
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty_reply(self.run("unlink", |vfs| vfs.unlink(ino(parent), name.as_bytes())), reply);
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty_reply(self.run("rmdir", |vfs| vfs.rmdir(ino(parent), name.as_bytes())), reply);
    }

    fn symlink(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let target = target.as_os_str().as_bytes();
        let made = self.run("symlink", |vfs| vfs.symlink(ino(parent), name.as_bytes(), target));
        entry_reply(made, reply);
    }

    fn link(
        &self,
        _request: &Request,
        _number: INodeNo,
        _new_parent: INodeNo,
        _new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        // link(2): what a file system without hard links says.
        reply.error(Errno::EPERM);
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mode = if flags.is_empty() {
            RenameMode::Replace
        } else if flags == RenameFlags::RENAME_NOREPLACE {
            RenameMode::NoReplace
        } else {
            // RENAME_EXCHANGE and RENAME_WHITEOUT have no counterpart in FTP.
            return reply.error(Errno::EINVAL);
        };
        let (from, to) = ((ino(parent), name.as_bytes()), (ino(new_parent), new_name.as_bytes()));
        empty_reply(self.run("rename", |vfs| vfs.rename(from, to, mode)), reply);
    }

    fn open(&self, _request: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let truncate = flags.0 & libc::O_TRUNC != 0;
        match self.run("open", |vfs| vfs.open(ino(number), access(flags), truncate)) {
            Ok(opened) => reply.opened(FileHandle(opened.fh), open_reply(&opened)),
            Err(errno) => reply.error(errno),
        }
    }

    fn create(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let access = access(OpenFlags(flags));
        let exclusive = flags & libc::O_EXCL != 0;
        let mode = mode_bits(mode & !umask);
        let name = name.as_bytes();
        let made = self.run("create", |vfs| vfs.create(ino(parent), name, mode, access, exclusive));
        match made {
            Ok((found, opened)) => reply.created(
                &found.valid,
                &attr(&found.attr),
                Generation(0),
                FileHandle(opened.fh),
                open_reply(&opened),
            ),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _request: &Request,
        _number: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        // The reply is sent while the bytes are still where the socket put them; it is taken out
        // of the option only once, by whichever side answers.
        let mut reply = Some(reply);
        let result = self.run("read", |vfs| {
            vfs.read(fh.0, offset, size as usize, |bytes| {
                if let Some(reply) = reply.take() {
                    reply.data(bytes);
                }
            })
        });
        if let (Err(errno), Some(reply)) = (result, reply) {
            reply.error(errno);
        }
    }

    fn write(
        &self,
        _request: &Request,
        _number: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.run("write", |vfs| vfs.write(fh.0, offset, data)) {
            Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX)),
            Err(errno) => reply.error(errno),
        }
    }

    fn flush(
        &self,
        _request: &Request,
        _number: INodeNo,
        fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        empty_reply(self.run("close", |vfs| vfs.flush(fh.0)), reply);
    }

    fn release(
        &self,
        _request: &Request,
        _number: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let released = self.run("release", |vfs| {
            vfs.release(fh.0);
            Ok(())
        });
        empty_reply(released, reply);
    }

    fn fsync(
        &self,
        _request: &Request,
        _number: INodeNo,
        fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        empty_reply(self.run("fsync", |vfs| vfs.fsync(fh.0)), reply);
    }

    fn opendir(&self, _request: &Request, number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.run("opendir", |vfs| vfs.opendir(ino(number))) {
            Ok(fh) => reply.opened(FileHandle(fh), FopenFlags::empty()),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(
        &self,
        _request: &Request,
        _number: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let result = self.run("readdir", |vfs| {
            vfs.readdir(fh.0, offset, false, |entry| {
                let number = INodeNo(entry.attr.ino.0);
                !reply.add(number, entry.next, kind(entry.attr.kind), OsStr::from_bytes(entry.name))
            })
        });
        match result {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        _number: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let result = self.run("readdirplus", |vfs| {
            vfs.readdir(fh.0, offset, true, |entry| {
                let name = OsStr::from_bytes(entry.name);
                let number = INodeNo(entry.attr.ino.0);
                let attr = attr(&entry.attr);
                !reply.add(number, entry.next, name, &entry.valid, &attr, Generation(0))
            })
        });
        match result {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn releasedir(
        &self,
        _request: &Request,
        _number: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        let released = self.run("releasedir", |vfs| {
            vfs.releasedir(fh.0);
            Ok(())
        });
        empty_reply(released, reply);
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        _number: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        // Names are on the server when the operation that changed them returns.
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _number: INodeNo, reply: ReplyStatfs) {
        match self.run("statfs", |vfs| Ok(vfs.statfs())) {
            Ok(room) => reply.statfs(
                room.blocks,
                room.free,
                room.free,
                room.files,
                room.files,
                room.block_size,
                room.name_max,
                room.block_size,
            ),
            Err(errno) => reply.error(errno),
        }
    }

    fn setxattr(
        &self,
        _request: &Request,
        _number: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        // The kernel says EOPNOTSUPP, and does not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn removexattr(&self, _request: &Request, _number: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(
        &self,
        _request: &Request,
        number: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        if !self.shows_facts {
            return reply.error(Errno::ENOSYS);
        }
        let name = name.to_string_lossy();
        let value = self.run("getxattr", |vfs| vfs.getxattr(ino(number), &name));
        xattr_reply(value, size, reply);
    }

    fn listxattr(&self, _request: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        if !self.shows_facts {
            return reply.error(Errno::ENOSYS);
        }
        let names = self.run("listxattr", |vfs| vfs.listxattr(ino(number)));
        // Each name ends with a NUL (listxattr(2)).
        let list =
            names.map(|names| names.into_iter().flat_map(|n| (n + "\0").into_bytes()).collect());
        xattr_reply(list, size, reply);
    }

    fn ioctl(
        &self,
        _request: &Request,
        _number: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        // Programs ask whether they write to a terminal (TCGETS).
        reply.error(Errno::ENOTTY);
    }

    fn fallocate(
        &self,
        _request: &Request,
        _number: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        // Room on a server cannot be reserved; the C library then writes zeros by itself.
        reply.error(Errno::EOPNOTSUPP);
    }

    fn lseek(
        &self,
        _request: &Request,
        _number: INodeNo,
        _fh: FileHandle,
        _offset: i64,
        _whence: i32,
        reply: ReplyLseek,
    ) {
        // On purpose: the kernel then treats a file as having no holes.
        reply.error(Errno::ENOSYS);
    }

    fn access(&self, _request: &Request, _number: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // On purpose: the kernel stops asking. What the server allows is known when it is tried.
        reply.error(Errno::ENOSYS);
    }

    fn copy_file_range(
        &self,
        _request: &Request,
        _ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _fh_out: FileHandle,
        _offset_out: u64,
        _length: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // On purpose: the kernel stops asking and copies through the page cache.
        reply.error(Errno::ENOSYS);
    }
}
