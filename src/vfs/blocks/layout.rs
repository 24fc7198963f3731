//! How one cached file lies on the disk, and what of it counts. Pure.
//!
//! A head that names server, path and version; a table with one entry for each block; the blocks,
//! each where it would be in the file itself, after that. Nothing but holes until it is written.
//! A block counts only if its entry agrees with its bytes, so whatever a crash, a full disk, a
//! faulty one or another mount at work leaves behind is at worst absent. No order of writes
//! matters, and nothing must be locked.

use std::ops::Range;

use ring::digest;

use super::checksum::xxh64;
use crate::ftp::{Precision, Timestamp};
use crate::vfs::attr::Version;

/// The unit that is kept or not: what a server sends before it hears of us again (the first window
/// of TCP), and so the least that a reader takes from a transfer. The kernel's requests, 128 KiB
/// and 1 MiB, are multiples of it. A checksum of it takes some 10 µs, so that a random read of
/// 4 KiB can afford one.
pub(crate) const BLOCK: u64 = 64 * 1024;

/// One entry of the table: the time at which the block came, and its check.
pub(crate) const ENTRY: usize = 16;

/// The head before its text.
pub(crate) const FIXED: usize = 64;

/// Where the time of the last proof stands, with its check.
pub(crate) const PROOF: Range<usize> = 48..64;

const MAGIC: &[u8; 16] = b"ftpfs blocks v1\n";

/// The blocks begin at a page of the disk.
const PAGE: u64 = 4096;

/// The longest text: PATH_MAX, and as much again for the name of a server.
const LONGEST_TEXT: usize = 8192;

/// How long ago, at least, a file must have changed when it is listed, for its time to tell it from
/// every later version of the same size. A time told to the second: two seconds, as FAT keeps
/// them, and a minute by which clocks may differ.
const SECONDS_SETTLED: i64 = 62;

/// The same for a time told to the minute, which may be that of any zone: 14 hours at most, and
/// as clocks differ a day.
const MINUTES_SETTLED: i64 = 86_400;

/// The same for a day.
const DAYS_SETTLED: i64 = 3 * 86_400;

/// Can a later version of the file be told from this one, which was listed at `listed` (seconds
/// since 1970 by our clock)? Not if size or time is unknown, or so recent that another change may
/// leave both as they are.
pub(crate) fn is_settled(version: &Version, listed: i64) -> bool {
    let (Some(_), Some(time)) = (version.size, version.mtime) else { return false };
    let needed = match time.precision {
        Precision::Second => SECONDS_SETTLED,
        Precision::Minute => MINUTES_SETTLED,
        Precision::Day => DAYS_SETTLED,
    };
    listed.saturating_sub(time.seconds) >= needed
}

/// Which version of which file a cached file holds, and where its parts are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Of the file, in bytes.
    pub(crate) size: u64,
    /// Of size, time and what else tells versions apart.
    version: u64,
    /// The server, a line break, the path.
    text: Vec<u8>,
}

/// What is known of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// When it came, in milliseconds since 1970. Never 0.
    pub(crate) stamp: u64,
    check: u64,
}

impl Layout {
    /// `None` for what cannot be kept: no size, no time, or a path longer than any.
    pub(crate) fn new(
        server: &str,
        path: &[u8],
        version: &Version,
        unique: Option<&[u8]>,
    ) -> Option<Self> {
        let (size, mtime) = (version.size?, version.mtime?);
        let text = text_of(server, path);
        if text.len() > LONGEST_TEXT {
            return None;
        }
        Some(Self { size, version: version_hash(size, &mtime, unique), text })
    }

    /// What the head of a cached file says; `None` if it is none, or damaged.
    pub(crate) fn read(head: &[u8]) -> Option<Self> {
        let number = |at: usize| number(head, at);
        if head.get(..16)? != MAGIC {
            return None;
        }
        let length = usize::try_from(number(32)?).ok().filter(|length| *length <= LONGEST_TEXT)?;
        let text = head.get(FIXED..FIXED + length)?.to_vec();
        let layout = Self { size: number(16)?, version: number(24)?, text };
        (number(40)? == layout.head_check()).then_some(layout)
    }

    /// The most bytes that a head takes.
    pub(crate) const fn longest_head() -> usize {
        FIXED + LONGEST_TEXT
    }

    /// The head, with nothing proven yet.
    pub(crate) fn head(&self) -> Vec<u8> {
        let mut head = self.checked_head();
        head.extend(self.head_check().to_le_bytes());
        head.extend(self.proof(0));
        head.extend(&self.text);
        head
    }

    fn checked_head(&self) -> Vec<u8> {
        let mut head = MAGIC.to_vec();
        head.extend(self.size.to_le_bytes());
        head.extend(self.version.to_le_bytes());
        head.extend((self.text.len() as u64).to_le_bytes());
        head
    }

    fn head_check(&self) -> u64 {
        xxh64(&self.text, xxh64(&self.checked_head(), 0))
    }

    /// What stands at [`PROOF`]: everything that came before `stamp` was proven to be of this
    /// version.
    pub(crate) fn proof(&self, stamp: u64) -> [u8; 16] {
        let check = xxh64(&stamp.to_le_bytes(), self.head_check());
        pair(stamp, check)
    }

    /// The other way round; 0 if it is damaged.
    pub(crate) fn proven(&self, bytes: &[u8]) -> u64 {
        let stamp = number(bytes, 0).unwrap_or(0);
        if bytes == self.proof(stamp) { stamp } else { 0 }
    }

    /// The server and the path.
    pub(crate) fn text(&self) -> &[u8] {
        &self.text
    }

    pub(crate) fn blocks(&self) -> u64 {
        self.size.div_ceil(BLOCK)
    }

    /// Where the entry of a block stands.
    pub(crate) fn entry_at(&self, block: u64) -> u64 {
        let table = (FIXED + self.text.len()).next_multiple_of(ENTRY) as u64;
        table + block * ENTRY as u64
    }

    /// Where a block stands.
    pub(crate) fn block_at(&self, block: u64) -> u64 {
        self.entry_at(self.blocks()).next_multiple_of(PAGE) + block * BLOCK
    }

    /// The bytes of the file that a block holds.
    pub(crate) fn range(&self, block: u64) -> Range<u64> {
        let start = (block * BLOCK).min(self.size);
        start..(start + BLOCK).min(self.size)
    }

    /// The blocks that hold `length` bytes at `offset`.
    pub(crate) fn span(&self, offset: u64, length: usize) -> Range<u64> {
        let end = offset.saturating_add(length as u64).min(self.size);
        if offset >= end {
            return 0..0;
        }
        offset / BLOCK..end.div_ceil(BLOCK)
    }

    /// The entry for these bytes.
    pub(crate) fn entry(&self, block: u64, bytes: &[u8], stamp: u64) -> Entry {
        let seed = self.version ^ block.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let check = xxh64(bytes, seed) ^ xxh64(&stamp.to_le_bytes(), seed);
        // 0 is what a hole has.
        Entry { stamp, check: check.max(1) }
    }
}

impl Entry {
    /// Of an entry as it stands in the table; `None`: no block.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let (stamp, check) = (number(bytes, 0)?, number(bytes, 8)?);
        (stamp != 0 && check != 0).then_some(Self { stamp, check })
    }

    pub(crate) fn bytes(&self) -> [u8; ENTRY] {
        pair(self.stamp, self.check)
    }
}

/// By which a pin, and an eviction, know a file.
pub(crate) fn text_of(server: &str, path: &[u8]) -> Vec<u8> {
    [server.as_bytes(), b"\n", path].concat()
}

/// The name of the cached file for a server and path: one version of each is kept.
pub(crate) fn name_of(text: &[u8]) -> String {
    let hash = digest::digest(&digest::SHA256, text);
    data_encoding::HEXLOWER.encode(hash.as_ref().get(..20).unwrap_or_default())
}

fn version_hash(size: u64, mtime: &Timestamp, unique: Option<&[u8]>) -> u64 {
    let precision = match mtime.precision {
        Precision::Second => 0_u8,
        Precision::Minute => 1,
        Precision::Day => 2,
    };
    let mut all = Vec::new();
    all.extend(size.to_le_bytes());
    all.extend(mtime.seconds.to_le_bytes());
    all.extend(mtime.nanos.to_le_bytes());
    all.push(precision);
    all.push(u8::from(unique.is_some()));
    all.extend(unique.unwrap_or_default());
    let hash = digest::digest(&digest::SHA256, &all);
    number(hash.as_ref(), 0).unwrap_or(0)
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    let part = bytes.get(at..)?.first_chunk::<8>()?;
    Some(u64::from_le_bytes(*part))
}

fn pair(first: u64, second: u64) -> [u8; 16] {
    (u128::from(first) | u128::from(second) << 64).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn version(size: Option<u64>, seconds: i64, precision: Precision) -> Version {
        Version { size, mtime: Some(Timestamp { seconds, nanos: 0, precision }) }
    }

    fn layout(size: u64, seconds: i64) -> Layout {
        let version = version(Some(size), seconds, Precision::Second);
        Layout::new("ftp://a@b:21", b"/x", &version, None).unwrap()
    }

    #[test]
    fn only_what_no_later_change_can_look_like_is_settled() {
        let listed = 1_000_000_000;
        let settled =
            |ago: i64, precision| is_settled(&version(Some(1), listed - ago, precision), listed);
        assert!(!settled(61, Precision::Second) && settled(62, Precision::Second));
        assert!(!settled(3600, Precision::Minute) && settled(86_400, Precision::Minute));
        assert!(!settled(86_400, Precision::Day) && settled(3 * 86_400, Precision::Day));
        assert!(!settled(-5, Precision::Second), "in the future");
        assert!(!is_settled(&version(None, 0, Precision::Second), listed));
        assert!(!is_settled(&Version { size: Some(1), mtime: None }, listed));
    }

    #[test]
    fn versions_and_paths_are_told_apart() {
        let base = layout(10, 1);
        assert_ne!(base, layout(11, 1));
        assert_ne!(base, layout(10, 2));
        let with = |path: &[u8], unique, precision| {
            Layout::new("ftp://a@b:21", path, &version(Some(10), 1, precision), unique).unwrap()
        };
        assert_eq!(base, with(b"/x", None, Precision::Second));
        assert_ne!(base, with(b"/y", None, Precision::Second));
        assert_ne!(base, with(b"/x", Some(b"801U1"), Precision::Second));
        assert_ne!(base, with(b"/x", None, Precision::Minute));
        assert_ne!(name_of(&text_of("a", b"/b")), name_of(&text_of("a", b"/c")));
    }

    #[test]
    fn a_head_is_read_as_it_was_written_and_a_damaged_one_is_none() {
        let layout = layout(1 << 40, 77);
        let head = layout.head();
        assert_eq!(Layout::read(&head), Some(layout.clone()));
        for at in (0..PROOF.start).chain(PROOF.end..head.len()) {
            let mut damaged = head.clone();
            damaged[at] ^= 1;
            assert_eq!(Layout::read(&damaged), None, "{at}");
        }
        assert_eq!(Layout::read(&head[..head.len() - 1]), None);
        assert_eq!(layout.proven(&head[PROOF]), 0);
        let mut proof = layout.proof(123);
        assert_eq!(layout.proven(&proof), 123);
        proof[0] ^= 1;
        assert_eq!(layout.proven(&proof), 0);
    }

    proptest! {
        /// No parts overlap, and all bytes have one block.
        #[test]
        fn the_parts_lie_beside_each_other(size in 0_u64..1 << 40, offset in 0_u64..1 << 40, length in 0_usize..3 << 20) {
            let layout = layout(size, 1);
            prop_assert!(layout.entry_at(0) >= layout.head().len() as u64);
            prop_assert!(layout.block_at(0) >= layout.entry_at(layout.blocks()));
            prop_assert_eq!(layout.block_at(0) % 4096, 0);
            let span = layout.span(offset, length);
            let end = offset.saturating_add(length as u64).min(size);
            if offset < end {
                prop_assert!(layout.range(span.start).contains(&offset));
                prop_assert!(layout.range(span.end - 1).contains(&(end - 1)));
                prop_assert!(span.end <= layout.blocks());
            } else {
                prop_assert!(span.is_empty());
            }
        }

        /// A block with any bit changed, in another place, of another time or version is none.
        #[test]
        fn a_block_counts_only_as_it_was_written(
            bytes in proptest::collection::vec(any::<u8>(), 1..300),
            block in 0_u64..1 << 24,
            stamp in 1_u64..1 << 45,
            bit in any::<proptest::sample::Index>(),
        ) {
            let layout = layout(1 << 40, 1);
            let entry = layout.entry(block, &bytes, stamp);
            prop_assert_eq!(Entry::read(&entry.bytes()), Some(entry));
            let mut damaged = bytes.clone();
            let bit = bit.index(bytes.len() * 8);
            damaged[bit / 8] ^= 1 << (bit % 8);
            prop_assert_ne!(layout.entry(block, &damaged, stamp), entry);
            prop_assert_ne!(layout.entry(block + 1, &bytes, stamp), entry);
            prop_assert_ne!(layout.entry(block, &bytes, stamp + 1).check, entry.check);
            let other = super::Layout { version: layout.version ^ 1, ..layout.clone() };
            prop_assert_ne!(other.entry(block, &bytes, stamp), entry);
        }
    }
}
