//! Values as the kernel has them, and as the file system has them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileType, FopenFlags, Generation, INodeNo, OpenAccMode, OpenFlags, ReplyAttr,
    ReplyEmpty, ReplyEntry, ReplyXattr,
};

use super::MAX_WRITE;
use crate::ftp::Kind;
use crate::vfs::{Access, Attr, Found, Ino, Mtime, Opened};

pub(super) fn ino(number: INodeNo) -> Ino {
    Ino(number.0)
}

pub(super) fn attr(attr: &Attr) -> FileAttr {
    let since = Duration::new(attr.mtime.seconds.unsigned_abs(), attr.mtime.nanos);
    let mtime = if attr.mtime.seconds < 0 { UNIX_EPOCH - since } else { UNIX_EPOCH + since };
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        // st_blocks counts 512 bytes, whatever st_blksize says (POSIX stat).
        blocks: attr.size.div_ceil(512),
        atime: mtime,
        mtime,
        ctime: mtime,
        crtime: mtime,
        kind: kind(attr.kind),
        perm: attr.mode & 0o7777,
        // 1 for directories too: `find` then does not count subdirectories to save stats.
        nlink: 1,
        uid: attr.uid,
        gid: attr.gid,
        rdev: 0,
        // st_blksize: what cp and cat read and write at a time; the largest write request.
        blksize: MAX_WRITE,
        flags: 0,
    }
}

pub(super) fn kind(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        // A device of the server is none here.
        Kind::File | Kind::Special => FileType::RegularFile,
    }
}

pub(super) fn mtime(time: SystemTime) -> Mtime {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => Mtime {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanos: since.subsec_nanos(),
        },
        Err(before) => Mtime {
            seconds: -i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX),
            nanos: 0,
        },
    }
}

pub(super) fn access(flags: OpenFlags) -> Access {
    let (read, write) = match flags.acc_mode() {
        OpenAccMode::O_RDONLY => (true, false),
        OpenAccMode::O_WRONLY => (false, true),
        OpenAccMode::O_RDWR => (true, true),
    };
    Access { read, write, append: flags.0 & libc::O_APPEND != 0 }
}

pub(super) fn mode_bits(mode: u32) -> u16 {
    u16::try_from(mode & 0o7777).unwrap_or(0)
}

pub(super) fn open_reply(opened: &Opened) -> FopenFlags {
    if opened.is_direct {
        // Without a size the kernel would stop at the length it believes in.
        FopenFlags::FOPEN_DIRECT_IO
    } else if opened.keeps_pages {
        FopenFlags::FOPEN_KEEP_CACHE
    } else {
        FopenFlags::empty()
    }
}

pub(super) fn entry_reply(result: Result<Found, Errno>, reply: ReplyEntry) {
    match result {
        Ok(found) => reply.entry(&found.valid, &attr(&found.attr), Generation(0)),
        Err(errno) => reply.error(errno),
    }
}

pub(super) fn attr_reply(result: Result<Found, Errno>, reply: ReplyAttr) {
    match result {
        Ok(found) => reply.attr(&found.valid, &attr(&found.attr)),
        Err(errno) => reply.error(errno),
    }
}

pub(super) fn empty_reply(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

pub(super) fn xattr_reply(result: Result<Vec<u8>, Errno>, size: u32, reply: ReplyXattr) {
    match result {
        Err(errno) => reply.error(errno),
        // getxattr(2): size 0 asks how much there is.
        Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
    }
}

/// The attributes in a negative answer, of which the kernel looks only at the inode number.
pub(super) fn absent_attr() -> Attr {
    Attr {
        ino: Ino(0),
        kind: Kind::File,
        size: 0,
        mtime: Mtime::default(),
        mode: 0,
        uid: 0,
        gid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_survive() {
        let early = UNIX_EPOCH - Duration::from_secs(86_400);
        assert_eq!(mtime(early), Mtime { seconds: -86_400, nanos: 0 });
        let shown = attr(&Attr { mtime: mtime(early), ..absent_attr() });
        assert_eq!(shown.mtime, early);
    }
}
