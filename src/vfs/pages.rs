//! Of which files the kernel holds what it read: their pages are kept at the next open if the file
//! is the same.
//!
//! Pages are of the version that was listed only if a listing newer than they are, or a question
//! before the next transfer, says so.

use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use super::attr::Version;
use super::tree::Ino;

/// The most files remembered, at some 100 bytes each; what is beyond is read anew.
const MOST: NonZeroUsize = NonZeroUsize::new(16_384).unwrap();

/// What the kernel may do at an open with what it read at earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Drop it.
    No,
    /// Keep it; nobody knows yet that the server had this very version then.
    Unproven,
    /// Keep it.
    Proven,
}

/// What tells a content from all others of its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) version: Version,
    pub(crate) unique: Option<Box<[u8]>>,
}

/// What was read of the files of one mount. One leaf lock.
#[derive(Debug)]
pub(crate) struct Pages {
    files: Mutex<LruCache<Ino, Pulled>>,
}

#[derive(Debug)]
struct Pulled {
    identity: Identity,
    /// Given to the kernel; some of it perhaps twice.
    bytes: u64,
    /// When the last of them were, in milliseconds since 1970.
    last: u64,
}

impl Default for Pages {
    fn default() -> Self {
        Self { files: Mutex::new(LruCache::new(MOST)) }
    }
}

impl Pages {
    /// A file is opened that was listed so at `listed`. Kept is only what was read wholly: of the
    /// rest less would be saved than the question costs.
    pub(crate) fn open(&self, ino: Ino, identity: Identity, listed: u64) -> Kept {
        let mut files = self.lock();
        if let Some(pulled) = files.get(&ino)
            && pulled.identity == identity
            && identity.version.size.is_some_and(|size| pulled.bytes >= size)
        {
            return if pulled.last < listed { Kept::Proven } else { Kept::Unproven };
        }
        files.put(ino, Pulled { identity, bytes: 0, last: 0 });
        Kept::No
    }

    /// The kernel got so many bytes of this version.
    pub(crate) fn note(&self, ino: Ino, version: &Version, bytes: usize, now: u64) {
        if let Some(pulled) = self.lock().get_mut(&ino)
            && pulled.identity.version == *version
        {
            pulled.bytes = pulled.bytes.saturating_add(bytes as u64);
            pulled.last = pulled.last.max(now);
        }
    }

    /// The file is changed through the mount, or one that cannot be known again.
    pub(crate) fn forget(&self, ino: Ino) {
        self.lock().pop(&ino);
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<Ino, Pulled>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ftp::{Precision, Timestamp};

    fn identity(seconds: i64) -> Identity {
        let mtime = Timestamp { seconds, nanos: 0, precision: Precision::Second };
        Identity { version: Version { size: Some(10), mtime: Some(mtime) }, unique: None }
    }

    #[test]
    fn pages_of_the_same_version_that_was_read_wholly_are_kept() {
        let pages = Pages::default();
        let (ino, one) = (Ino(5), identity(1));
        assert_eq!(pages.open(ino, one.clone(), 100), Kept::No);
        pages.note(ino, &one.version, 9, 110);
        assert_eq!(pages.open(ino, one.clone(), 120), Kept::No, "not all of it; dropped");
        pages.note(ino, &one.version, 9, 130);
        pages.note(ino, &one.version, 1, 131);
        assert_eq!(pages.open(ino, one.clone(), 120), Kept::Unproven);
        assert_eq!(pages.open(ino, one.clone(), 131), Kept::Unproven);
        assert_eq!(pages.open(ino, one.clone(), 132), Kept::Proven);
        assert_eq!(pages.open(ino, identity(2), 132), Kept::No);
        pages.note(ino, &one.version, 10, 140);
        assert_eq!(pages.open(ino, identity(2), 150), Kept::No, "read by a handle of before");
        let other = Identity { unique: Some(b"1U2"[..].into()), ..identity(2) };
        pages.note(ino, &other.version, 10, 160);
        assert_eq!(pages.open(ino, other, 170), Kept::No);
        pages.forget(ino);
        assert_eq!(pages.open(ino, identity(2), 180), Kept::No);
    }
}
