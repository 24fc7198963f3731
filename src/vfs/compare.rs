//! Are the server's bytes those of a local file?

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::attr::Version;
use super::error::Result;
use super::reader::{Reader, leave_parked};
use crate::ftp::{Pool, RemotePath};

/// How much is compared at a time; a reader gives up to 2 MiB.
const BLOCK: u64 = 256 * 1024;

/// The keys under which transfers that compare are parked begin here: neither handles nor inodes
/// get there.
const COMPARE_KEYS: u64 = 1 << 62;

/// Has the server in these ranges the very bytes that are here?
pub(crate) fn is_same(
    pool: &Pool,
    path: &RemotePath,
    version: Version,
    local: &File,
    ranges: &[Range<u64>],
) -> Result<bool> {
    /// Keys below the bits that name a reader's windows.
    const KEYS: u64 = 1 << 32;
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let key = COMPARE_KEYS | (COUNT.fetch_add(1, Ordering::Relaxed) % KEYS);
    let mut reader = Reader::new(version);
    let mut block = vec![0; BLOCK as usize];
    let mut compare = || {
        for range in ranges {
            let mut at = range.start;
            while at < range.end {
                let length = usize::try_from(BLOCK.min(range.end - at)).unwrap_or(0);
                let theirs = reader.read(pool, path, key, at, length)?;
                let ours = block.get_mut(..theirs.len()).unwrap_or_default();
                if theirs.is_empty() || local.read_exact_at(ours, at).is_err() || ours != theirs {
                    return Ok(false);
                }
                at += theirs.len() as u64;
            }
        }
        Ok(true)
    };
    let is_same = compare();
    leave_parked(pool, key);
    is_same
}
