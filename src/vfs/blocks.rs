//! The content cache on the disk (`--cache`): blocks of files, kept across mounts.
//!
//! Knows no server: whoever reads asks here first, and gives what came from elsewhere. A thread
//! writes it down; if the disk does not keep up, some of it is not kept. What is unsent goes before
//! what is only kept: the room is shared, and this side gives way. What is pinned stays.
//!
//! Right or absent: see `layout` for what counts, and `cached` for when.

mod buffers;
mod checksum;
mod evict;
mod file;
mod layout;
mod pins;

use std::collections::VecDeque;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub(crate) use file::BlockFile;
pub(crate) use layout::{Layout, is_settled};

use buffers::Buffers;
use evict::{Kept, victims};
use layout::{name_of, text_of};
use pins::{Pins, covers};

use super::attr::Version;
use super::room;
use crate::ftp::RemotePath;

/// The names of files that are being made begin so.
const UNFINISHED: &str = "new-";

/// How much is written between two looks at the disk: a look at 10,000 files takes some 30 ms, and
/// so much some 10 ms.
const ROUND: u64 = 16 * 1024 * 1024;

/// What a file takes beyond its blocks: a page of head and table, and the rest of its last page.
const OVERHEAD: u64 = 8192;

/// How long nothing is kept after there was no room: a look at each block would cost more than it
/// can bring.
const FULL: Duration = Duration::from_secs(1);

/// What it is, and what it did since the mount began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheReport {
    pub dir: PathBuf,
    /// The most bytes that it may take now.
    pub limit: u64,
    /// What it takes.
    pub used: u64,
    /// Read from it.
    pub hits: u64,
    /// What it was asked for and did not have.
    pub misses: u64,
    /// On this server, absolute.
    pub pins: Vec<Vec<u8>>,
}

/// The cache of one mount. What is under way is written when it ends.
#[derive(Debug)]
pub(crate) struct Blocks {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// As the user named it.
    dir: PathBuf,
    /// In it, the blocks.
    blocks: PathBuf,
    server: String,
    pins: Pins,
    /// Where unsent files are; they count, and go before.
    staging: PathBuf,
    /// The most bytes of both; `None`: a tenth of the disk for the blocks.
    cap: Option<u64>,
    /// What may be written before the next look at the disk.
    left: AtomicU64,
    /// The same for unsent files.
    promised: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    buffers: Buffers,
    /// Leaf lock.
    queue: Mutex<Queue>,
    /// Signalled when there is something to write, when it is written, and at the end.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// How many there ever were, and how many of these are done with.
    given: u64,
    written: u64,
    /// Of them, and of the one that is being written.
    bytes: usize,
    /// The most of them.
    most: usize,
    /// There were too many: nothing is taken until half is written, so that what is missing is
    /// one long part and not many short ones.
    is_jammed: bool,
    is_closed: bool,
    full_since: Option<Instant>,
}

#[derive(Debug)]
struct Job {
    file: Arc<BlockFile>,
    first: u64,
    bytes: Vec<u8>,
    stamp: u64,
}

impl Blocks {
    /// In a directory that is made if need be. No more than `memory` waits to be written.
    pub(crate) fn open(
        dir: &Path,
        server: String,
        staging: &Path,
        cap: Option<u64>,
        memory: usize,
    ) -> io::Result<Self> {
        let blocks = dir.join("blocks");
        // What is in it is as private as on the server.
        DirBuilder::new().recursive(true).mode(0o700).create(&blocks)?;
        // Backup programs leave such directories out (bford.info/cachedir).
        let tag = b"Signature: 8a477f597d28d172789f06886806bc55\n# A cache of ftpfs.\n";
        fs::write(dir.join("CACHEDIR.TAG"), tag)?;
        let shared = Arc::new(Shared {
            pins: Pins::new(dir),
            dir: dir.to_owned(),
            blocks,
            server,
            staging: staging.to_owned(),
            cap,
            left: AtomicU64::new(0),
            promised: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            buffers: Buffers::default(),
            queue: Mutex::new(Queue { most: memory, ..Queue::default() }),
            changed: Condvar::new(),
        });
        let writes = Arc::clone(&shared);
        let writer = std::thread::Builder::new().name("cache".into());
        let writer = Some(writer.spawn(move || writes.write())?);
        Ok(Self { shared, writer })
    }

    /// This version of a file, whatever of it is here.
    pub(crate) fn file(
        &self,
        path: &RemotePath,
        version: &Version,
        unique: Option<&[u8]>,
    ) -> Option<BlockFile> {
        let layout = Layout::new(&self.shared.server, path.as_bytes(), version, unique)?;
        Some(BlockFile::new(&self.shared.blocks, layout))
    }

    /// Blocks that just came are written, soon; if the disk does not keep up, they are not.
    pub(crate) fn keep(&self, file: &Arc<BlockFile>, first: u64, bytes: &[u8]) {
        let mut copy = self.shared.buffers.take();
        let mut queue = self.shared.lock();
        queue.is_jammed &= queue.bytes > queue.most / 2;
        queue.is_jammed |= queue.bytes + bytes.len() > queue.most;
        let is_full = queue.full_since.is_some_and(|since| since.elapsed() < FULL);
        if queue.is_jammed || is_full {
            drop(queue);
            return self.shared.buffers.give_back(copy);
        }
        copy.clear();
        copy.extend_from_slice(bytes);
        queue.bytes += bytes.len();
        queue.given += 1;
        let stamp = now_millis();
        queue.jobs.push_back(Job { file: Arc::clone(file), first, bytes: copy, stamp });
        drop(queue);
        self.shared.changed.notify_all();
    }

    /// Blocks are written now; false if there is no room.
    pub(crate) fn keep_now(&self, file: &BlockFile, first: u64, bytes: &[u8]) -> io::Result<bool> {
        let stamp = now_millis();
        if !self.shared.has_room(bytes.len() as u64, file.local()) {
            return Ok(false);
        }
        file.put(first, bytes, stamp).map(|()| true)
    }

    /// Returns when everything that was given so far is written.
    pub(crate) fn settle(&self) {
        let mut queue = self.shared.lock();
        let given = queue.given;
        while queue.written < given {
            queue = self.shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Room for blocks that are read.
    pub(crate) fn buffers(&self) -> &Buffers {
        &self.shared.buffers
    }

    /// So many bytes were read from here.
    pub(crate) fn count_hit(&self, bytes: usize) {
        self.shared.hits.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// So many bytes were not here.
    pub(crate) fn count_miss(&self, bytes: usize) {
        self.shared.misses.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// The content under this path is changed through the mount, or gone.
    pub(crate) fn forget(&self, path: &RemotePath) {
        // What came before that must not be written after it.
        self.settle();
        let text = text_of(&self.shared.server, path.as_bytes());
        let _ = fs::remove_file(self.shared.blocks.join(name_of(&text)));
    }

    /// The same for all below a directory, which has got another path, or given its own away.
    pub(crate) fn forget_below(&self, path: &RemotePath) {
        self.settle();
        let pin = [text_of(&self.shared.server, path.as_bytes())];
        for kept in evict::all(&self.shared.blocks).unwrap_or_default() {
            if file::text_of_file(&kept.path).is_some_and(|text| covers(&pin, &text)) {
                let _ = fs::remove_file(&kept.path);
            }
        }
    }

    pub(crate) fn pin(&self, path: &RemotePath) -> io::Result<()> {
        self.shared.pins.add(&self.shared.server, path.as_bytes())
    }

    /// False if it was not pinned.
    pub(crate) fn unpin(&self, path: &RemotePath) -> io::Result<bool> {
        self.shared.pins.remove(&self.shared.server, path.as_bytes())
    }

    /// What it takes on the disk.
    pub(crate) fn used(&self) -> u64 {
        let all = evict::all(&self.shared.blocks).unwrap_or_default();
        all.iter().map(|kept| kept.bytes).sum()
    }

    /// The same, with what may be written before the next look.
    pub(crate) fn used_or_promised(&self) -> u64 {
        self.used() + self.shared.left.load(Ordering::Relaxed)
    }

    /// So much may be written to unsent files before they are looked at again.
    pub(crate) fn note_promised(&self, bytes: u64) {
        self.shared.promised.store(bytes, Ordering::Relaxed);
    }

    /// Unsent files need room: what they have too little of, if it can be had from here.
    pub(crate) fn give_way(&self, bytes: u64, dir: &Path) {
        let device = |path: &Path| fs::metadata(path).map(|about| about.dev()).ok();
        if self.shared.cap.is_none() && device(dir) != device(&self.shared.blocks) {
            return;
        }
        self.shared.left.store(0, Ordering::Relaxed);
        let Ok(all) = evict::all(&self.shared.blocks) else { return };
        self.shared.remove(all, bytes, Path::new(""));
    }

    pub(crate) fn report(&self) -> CacheReport {
        CacheReport {
            dir: self.shared.dir.clone(),
            limit: self.shared.limit().unwrap_or(0),
            used: self.used(),
            hits: self.shared.hits.load(Ordering::Relaxed),
            misses: self.shared.misses.load(Ordering::Relaxed),
            pins: self.shared.pins.of(&self.shared.server),
        }
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.changed.notify_all();
        if let Some(writer) = self.writer.take() {
            // It has nothing to say.
            let _ = writer.join();
        }
    }
}

impl Shared {
    /// Writes until the end, and then what is left.
    fn write(&self) {
        loop {
            let job = {
                let mut queue = self.lock();
                loop {
                    match queue.jobs.pop_front() {
                        Some(job) => break job,
                        None if queue.is_closed => return,
                        None => {}
                    }
                    queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                }
            };
            let has_room = self.has_room(job.bytes.len() as u64, job.file.local());
            if has_room && let Err(error) = job.file.put(job.first, &job.bytes, job.stamp) {
                log::debug!("not kept in the cache: {error}");
            }
            let mut queue = self.lock();
            queue.bytes -= job.bytes.len();
            queue.written += 1;
            queue.full_since = if has_room { None } else { Some(Instant::now()) };
            drop(queue);
            self.buffers.give_back(job.bytes);
            self.changed.notify_all();
        }
    }

    /// Is there room for so many bytes, perhaps in place of others, but not of `file`?
    fn has_room(&self, bytes: u64, file: &Path) -> bool {
        let bytes = bytes + OVERHEAD;
        let take = |left: u64| left.checked_sub(bytes);
        if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
            return true;
        }
        match self.look(bytes, file) {
            Ok(room) if room >= bytes => {
                self.left.store(room.min(ROUND).saturating_sub(bytes), Ordering::Relaxed);
                true
            }
            Ok(_) => false,
            Err(error) => {
                log::warn!("{}: {error}", self.blocks.display());
                false
            }
        }
    }

    /// How much may be written now, after what was used longest ago is gone, if need be.
    fn look(&self, bytes: u64, file: &Path) -> io::Result<u64> {
        let all = evict::all(&self.blocks)?;
        let used: u64 = all.iter().map(|kept| kept.bytes).sum();
        let (limit, free) = (self.limit()?, room::free(&self.blocks)?);
        let room = limit.saturating_sub(used).min(free);
        if room >= bytes {
            return Ok(room);
        }
        // A little more, so that the next look is not at once.
        let wanted = bytes + (limit / 16).min(ROUND);
        let needed = (used + wanted).saturating_sub(limit).max(wanted.saturating_sub(free));
        let freed = self.remove(all, needed, file);
        Ok(limit.saturating_sub(used.saturating_sub(freed)).min(free + freed))
    }

    /// Removes what was used longest ago, until `bytes` are free or nothing is left that may go.
    fn remove(&self, all: Vec<Kept>, bytes: u64, file: &Path) -> u64 {
        let pins = self.pins.texts();
        let stays = |path: &Path| {
            let is_pinned = || file::text_of_file(path).is_some_and(|text| covers(&pins, &text));
            path == file || !pins.is_empty() && is_pinned()
        };
        let gone = victims(all, bytes, stays).into_iter();
        let gone = gone.filter(|kept| fs::remove_file(&kept.path).is_ok());
        gone.map(|kept| kept.bytes).sum()
    }

    /// The most bytes that blocks may take now.
    fn limit(&self) -> io::Result<u64> {
        match self.cap {
            Some(cap) => {
                let promised = self.promised.load(Ordering::Relaxed);
                Ok(cap.saturating_sub(room::used(&self.staging)? + promised))
            }
            None => Ok(room::total(&self.blocks)? / 10),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// By our clock, since 1970.
pub(crate) fn now_millis() -> u64 {
    millis(SystemTime::now())
}

pub(crate) fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
