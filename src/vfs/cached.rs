//! Reads of one open file out of the cache on the disk, and into it.
//!
//! All bytes that a handle gives out are of one version, wherever they come from:
//! - Blocks are kept under the version that was listed when the file was opened, though the
//!   transfer may have brought a later one. They count from when a later listing, or the server
//!   when asked, shows that version still: then it was that version all the while, since only
//!   versions are kept that no later change can look like (`blocks::is_settled`).
//! - A handle reads from a transfer as without a cache, or *beside* it: then each transfer, the
//!   first too, begins with the question whether the file is still this version.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use super::Vfs;
use super::attr::Version;
use super::blocks::{BlockFile, Blocks, CacheReport, is_settled, millis, now_millis};
use super::dircache::Item;
use super::error::{Error, Result};
use super::handles::OpenFile;
use super::pages::{Identity, Kept};
use super::tree::Ino;
use crate::ftp::RemotePath;

/// What an open file has in the cache.
#[derive(Debug)]
pub(crate) struct Cached {
    file: Arc<BlockFile>,
    /// Where it was when it was opened; a file that moves is not looked for any more.
    path: RemotePath,
    /// What came before this is of the version that was opened. In milliseconds since 1970.
    proven: AtomicU64,
    /// Every transfer must bring the version that was opened.
    is_beside: AtomicBool,
    /// It is too late for another version: bytes were given out, or the kernel has some, or the
    /// server was asked.
    is_sure: AtomicBool,
    /// The server had another version before any byte was given out: the handle goes on with that,
    /// as without a cache.
    is_lost: AtomicBool,
}

impl Cached {
    fn new(file: BlockFile, path: RemotePath, listed: u64, kept: Kept) -> Self {
        let is_beside = kept != Kept::No || file.is_begun();
        // What the kernel has must be proven before anything is put beside it.
        let proven = if kept == Kept::Unproven { 0 } else { listed };
        let proven = if is_beside { proven } else { 0 };
        Self {
            file: Arc::new(file),
            path,
            proven: AtomicU64::new(proven),
            is_beside: AtomicBool::new(is_beside),
            is_sure: AtomicBool::new(kept != Kept::No),
            is_lost: AtomicBool::new(false),
        }
    }

    pub(super) fn file(&self) -> &Arc<BlockFile> {
        &self.file
    }

    fn is_beside(&self) -> bool {
        self.is_beside.load(Ordering::Acquire)
    }

    /// May blocks be given out that came at `stamp`?
    fn is_proven(&self, stamp: u64) -> bool {
        let own = self.proven.load(Ordering::Acquire);
        // What others proved counts once what this handle gave out is proven too.
        let theirs = if own > 0 { self.file.proven() } else { 0 };
        stamp < own.max(theirs)
    }

    /// All that this handle gave out, and all that came before `stamp`, is of its version.
    pub(super) fn note_proof(&self, stamp: u64) {
        self.proven.fetch_max(stamp, Ordering::AcqRel);
        self.is_beside.store(true, Ordering::Release);
    }
}

impl Vfs {
    /// What is kept on the disk for reading, if anything.
    pub fn cache_report(&self) -> Option<CacheReport> {
        self.blocks.as_ref().map(|blocks| blocks.report())
    }

    /// Returns when what was read until now is in the cache.
    pub fn settle_cache(&self) {
        if let Some(blocks) = &self.blocks {
            blocks.settle();
        }
    }

    /// For a file opened to be read only: what the kernel may keep of it, and what is in the
    /// cache.
    pub(super) fn sources(
        &self,
        ino: Ino,
        item: &Item,
        version: &Version,
        listed: SystemTime,
    ) -> (Kept, Option<Cached>) {
        let listed = millis(listed);
        if !is_settled(version, i64::try_from(listed / 1000).unwrap_or(0)) {
            self.pages.forget(ino);
            return (Kept::No, None);
        }
        let kept = if self.options.direct_io || self.prefetch.holds(ino, version) {
            // One source for one handle; and nothing of direct reads stays.
            self.pages.forget(ino);
            Kept::No
        } else {
            let unique = unique(item).map(Into::into);
            self.pages.open(ino, Identity { version: *version, unique }, listed)
        };
        let Some(blocks) = &self.blocks else { return (kept, None) };
        let Ok(path) = self.path(ino) else { return (kept, None) };
        let Some(file) = blocks.file(&path, version, unique(item)) else { return (kept, None) };
        // What is pinned must be there without a question, which may find no answer.
        let is_sure = file.proven() > 0;
        let kept = if is_sure && kept == Kept::Unproven { Kept::No } else { kept };
        (kept, Some(Cached::new(file, path, listed, kept)))
    }

    /// A handle with these sources is open: how must its reader behave?
    pub(super) fn prepare(&self, fh: u64, kept: Kept) -> Result<()> {
        let file = self.handles.file(fh)?;
        if kept != Kept::No || file.cached.as_ref().is_some_and(Cached::is_beside) {
            file.reader.lock().must_agree();
        }
        if kept != Kept::No {
            // What was fetched ahead may be of another version than what the kernel has.
            let _ = file.ahead.set(None);
        }
        Ok(())
    }

    /// What of an open file may be in the cache, if it is still where it was, and what it was.
    pub(super) fn cached<'a>(
        &'a self,
        file: &'a OpenFile,
        path: &RemotePath,
        (offset, length): (u64, usize),
    ) -> Result<Option<(&'a Blocks, &'a Cached)>> {
        let (Some(blocks), Some(cached)) = (self.blocks.as_deref(), &file.cached) else {
            return Ok(None);
        };
        if cached.path != *path {
            return Ok(None);
        }
        self.make_sure(cached, file, &cached.file.layout().span(offset, length))?;
        Ok((!cached.is_lost.load(Ordering::Acquire)).then_some((blocks, cached)))
    }

    /// Before a handle beside the cache gives out its first byte: is the server's file its version?
    /// Proven blocks say so. If it is another one, the handle goes on as one without a cache.
    fn make_sure(&self, cached: &Cached, file: &OpenFile, span: &Range<u64>) -> Result<()> {
        let is_sure = || !cached.is_beside() || cached.is_sure.load(Ordering::Acquire);
        if is_sure() || span.is_empty() {
            return Ok(());
        }
        if cached.file.newest(span).is_some_and(|newest| cached.is_proven(newest)) {
            return Ok(());
        }
        let mut reader = file.reader.lock();
        if is_sure() {
            return Ok(());
        }
        let now = now_millis();
        match reader.prove(&self.pool, &cached.path) {
            Ok(is_proof) => {
                if is_proof {
                    cached.note_proof(now);
                }
                cached.is_sure.store(true, Ordering::Release);
                Ok(())
            }
            Err(Error::Stale(text)) => {
                log::info!("{text}; it is read as it is now");
                reader.start_over();
                cached.is_lost.store(true, Ordering::Release);
                cached.is_sure.store(true, Ordering::Release);
                self.expire_parent(file.ino);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// As [`Vfs::read`], in whole blocks: from the disk if all are there, else from a transfer.
    pub(super) fn read_blocks(
        &self,
        (blocks, cached): (&Blocks, &Cached),
        (file, fh): (&OpenFile, u64),
        offset: u64,
        length: usize,
        give: impl FnOnce(&[u8]),
    ) -> Result<bool> {
        let layout = cached.file.layout();
        let span = layout.span(offset, length);
        if span.is_empty() {
            give(&[]);
            return Ok(true);
        }
        let range = layout.range(span.start).start..layout.range(span.end - 1).end;
        let part = |bytes: &[u8]| {
            let from = usize::try_from(offset - range.start).unwrap_or(usize::MAX).min(bytes.len());
            from..from.saturating_add(length).min(bytes.len())
        };
        let (start, wanted) = (range.start, usize::try_from(range.end - range.start));
        let wanted = wanted.unwrap_or(usize::MAX);
        if let Some(bytes) = self.find_blocks((blocks, cached), file, &span, (start, wanted))? {
            cached.is_sure.store(true, Ordering::Release);
            let part = part(&bytes);
            blocks.count_hit(part.len());
            give(bytes.get(part).unwrap_or_default());
            blocks.buffers().give_back(bytes);
            return Ok(true);
        }
        let mut reader = file.reader.enter(start);
        let found = self.find(&mut reader, (file, fh), &cached.path, (start, wanted))?;
        let Some(found) = found else { return Ok(false) };
        let bytes = reader.bytes(&found);
        // Fewer: the file became shorter, and is another version.
        if bytes.len() == wanted {
            blocks.keep(&cached.file, span.start, bytes);
        }
        cached.is_sure.store(true, Ordering::Release);
        let part = part(bytes);
        blocks.count_miss(part.len());
        give(bytes.get(part).unwrap_or_default());
        drop(reader);
        self.handles.limit_memory(fh);
        Ok(true)
    }

    /// The blocks, if they are all here and of the handle's version.
    fn find_blocks(
        &self,
        (blocks, cached): (&Blocks, &Cached),
        file: &OpenFile,
        span: &Range<u64>,
        (start, length): (u64, usize),
    ) -> Result<Option<Vec<u8>>> {
        let lock = || file.reader.lock();
        if !cached.is_beside() {
            // It goes on with its transfer as long as it can.
            if !cached.file.has(span) || !lock().would_jump(start, length) {
                return Ok(None);
            }
        }
        if !cached.file.has(span) {
            return Ok(None);
        }
        let buffer = blocks.buffers().take();
        let Some(found) = cached.file.read(span.clone(), buffer) else { return Ok(None) };
        if cached.is_proven(found.newest) {
            return Ok(Some(found.bytes));
        }
        let mut reader = lock();
        if !cached.is_proven(found.newest) {
            let now = now_millis();
            if !reader.prove(&self.pool, &cached.path)? {
                return Ok(None);
            }
            cached.note_proof(now);
        }
        Ok(Some(found.bytes))
    }

    /// A whole content that was fetched ahead is kept too.
    pub(super) fn keep_whole(&self, file: &OpenFile, bytes: &[u8]) {
        if let (Some(blocks), Some(cached)) = (&self.blocks, &file.cached)
            && cached.file.layout().size == bytes.len() as u64
        {
            blocks.keep(&cached.file, 0, bytes);
        }
    }

    /// The content under a name is changed through the mount, or gone.
    pub(super) fn forget_content(&self, ino: Ino, path: &RemotePath) {
        self.pages.forget(ino);
        if let Some(blocks) = &self.blocks {
            blocks.forget(path);
        }
    }
}

/// The fact that tells files apart whatever their names (RFC 3659 §7.5.2).
pub(super) fn unique(item: &Item) -> Option<&[u8]> {
    let facts = item.entry.facts.as_deref()?.split(|byte| *byte == b';');
    let mut facts = facts.filter_map(|fact| {
        let (name, value) = fact.split_at_checked(7)?;
        name.eq_ignore_ascii_case(b"unique=").then_some(value)
    });
    facts.next()
}

/// Is all of a file in the cache, so that nothing need be fetched ahead?
pub(super) fn is_whole_here(blocks: &Blocks, path: &RemotePath, item: &Item) -> bool {
    let file = blocks.file(path, &Version::of(item), unique(item));
    file.is_some_and(|file| file.is_begun() && file.has(&(0..file.layout().blocks())))
}
