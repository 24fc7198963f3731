//! Attributes of a file as programs see them, and the version of its content.

use crate::ftp::{Kind, Stat, Timestamp};

/// What a listing shows of a name, with what we know better.
pub(crate) use crate::ftp::Brief as Shown;

use super::dircache::Item;
use super::tree::Ino;

/// What `stat` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    pub ino: Ino,
    pub kind: Kind,
    /// Bytes; 0 where the server does not tell.
    pub size: u64,
    pub mtime: Mtime,
    /// Permission bits.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
}

/// Seconds since 1970 and the nanoseconds beyond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mtime {
    pub seconds: i64,
    pub nanos: u32,
}

/// Whose files they are shown as, and with which permission bits where the server tells none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ownership {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Taken away from the bits that the server does not tell.
    pub(crate) umask: u16,
}

impl Ownership {
    /// The attributes of one entry of a listing.
    pub(crate) fn attr(&self, ino: Ino, shown: &Shown) -> Attr {
        let default = if shown.kind == Kind::Directory { 0o777 } else { 0o666 };
        Attr {
            ino,
            kind: shown.kind,
            size: shown.size.unwrap_or(0),
            mtime: shown
                .mtime
                .map(|time| Mtime { seconds: time.seconds, nanos: time.nanos })
                .unwrap_or_default(),
            mode: shown.mode.unwrap_or(default & !self.umask),
            uid: self.uid,
            gid: self.gid,
        }
    }

    /// The root of the mount, of which no listing tells.
    pub(crate) fn root(&self, ino: Ino, mounted: Mtime) -> Attr {
        Attr {
            ino,
            kind: Kind::Directory,
            size: 0,
            mtime: mounted,
            mode: 0o777 & !self.umask,
            uid: self.uid,
            gid: self.gid,
        }
    }
}

/// Which content a file has: bytes of two versions are never mixed within one open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) size: Option<u64>,
    pub(crate) mtime: Option<Timestamp>,
}

impl Version {
    /// As listed. A time that we only assume, after an upload, proves nothing and is left out.
    pub(crate) fn of(item: &Item) -> Self {
        let mtime = if item.is_guess { None } else { item.entry.mtime };
        Self { size: item.entry.size, mtime }
    }

    /// As just asked for.
    pub(crate) fn of_stat(stat: &Stat) -> Self {
        Self { size: stat.size, mtime: stat.mtime }
    }

    /// May both be the same content? What either side does not know proves nothing.
    pub(crate) fn agrees_with(&self, other: &Self) -> bool {
        let sizes = match (self.size, other.size) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        };
        let times = match (&self.mtime, &other.mtime) {
            (Some(a), Some(b)) => a.agrees_with(b),
            _ => true,
        };
        sizes && times
    }
}
