//! The file system: knows no kernel types and no FTP verbs beyond those of a session.
//!
//! Invariants: one parent for each node, (parent, name) unique; look-up counts exact; changes made
//! through the mount are seen at once; dirty bytes live in one staged file until the server
//! confirmed them; bytes of two versions never meet in one open file; a name is absent only when a
//! complete listing says so.
//!
//! Locks: a reader or a staged file is held during I/O, and before `Tree`, `DirCache`, `Handles`
//! and `Pool`; those four are leaves, never nested, never held across I/O. So is the plan of
//! `Prefetch`, but for I/O: it too is held before the leaves. `Pages`, and what `Blocks` has of
//! locks, are leaves as well, and `Moves`; a block's file needs none. `Names` is before `Tree` and
//! `DirCache`.

mod append;
mod attr;
mod attributes;
mod blocks;
mod cached;
mod commit;
mod compare;
mod content;
mod dircache;
mod directories;
mod error;
mod files;
mod grace;
mod handles;
mod hidden;
mod journal;
mod links;
mod listing;
mod marks;
mod memory;
mod moves;
mod names;
mod pages;
mod patch;
mod pending;
mod pin;
mod policy;
mod prefetch;
mod ranges;
mod reader;
mod reads;
mod recovery;
mod refresh;
mod replace;
mod room;
mod sender;
mod shelf;
mod staging;
mod streams;
mod tree;
mod turns;
mod window;
mod writeback;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use attr::{Attr, Mtime};
pub use attributes::{Changes, When};
pub use blocks::CacheReport;
pub use directories::DirEntry;
pub use error::{Error, Result};
pub use files::Opened;
pub use handles::Access;
pub use names::RenameMode;
pub use pending::Pending;
pub use pin::{Pinned, Pinning};
pub use policy::{OnConflict, UploadMode, WritePolicy};
pub use prefetch::ReadAhead;
pub use recovery::{LeftOver, TakenUp, forget_left_over, left_over};
pub use refresh::{Outdated, Refresh};
pub use shelf::AheadBytes;
pub use streams::StreamLimit;
pub use tree::{Ino, ROOT};

use attr::{Ownership, Shown};
use blocks::Blocks;
use dircache::{DirCache, Fresh, Item};
use handles::{Handles, Unstaged};
use marks::Marks;
use memory::Memory;
use moves::{Moves, Names};
use pages::Pages;
use prefetch::{Parts, Prefetch};
use refresh::Absent;
use replace::is_own_name;
use room::Room;
use staging::View;
use streams::Rules;
use tree::{Name, Tree};
use writeback::Queue;

use crate::ftp::{self, Entries, Kind, Pool, RemotePath};

/// How the mount behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// How old a listing may be; zero: every look asks the server.
    pub ttl: Duration,
    /// For how much longer an old one is shown while a new one is asked for in the background.
    pub ttl_grace: Duration,
    pub read_only: bool,
    /// Whose files they are shown as.
    pub uid: u32,
    pub gid: u32,
    /// Taken away from permission bits that the server does not tell.
    pub umask: u16,
    /// Refuse chown to somebody else, instead of accepting it without effect.
    pub strict_owner: bool,
    /// Reads go past the kernel's page cache: a third of the work, and nothing kept for a second.
    pub direct_io: bool,
    /// Where files being written are kept; private to the user.
    pub staging_dir: PathBuf,
    pub writing: WritePolicy,
    /// Work ahead of those who walk through the tree.
    pub read_ahead: ReadAhead,
    /// The most bytes of contents of files in memory, beyond what the kernel keeps: fetched ahead,
    /// read lately by open files, and on the way to the disk.
    pub memory: usize,
    /// Where contents are kept across mounts. The bound is that of [`WritePolicy::cache_size`].
    pub cache_dir: Option<PathBuf>,
    /// Connections for one large file.
    pub streams: StreamLimit,
}

/// An answer to a look-up.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    pub attr: Attr,
    /// How long it may be believed without asking again.
    pub valid: Duration,
}

/// The file system on one server.
#[derive(Debug)]
pub struct Vfs {
    pool: Arc<Pool>,
    options: Options,
    ownership: Ownership,
    base: RemotePath,
    mounted: Mtime,
    tree: Arc<Mutex<Tree>>,
    cache: Arc<DirCache>,
    handles: Arc<Handles>,
    prefetch: Prefetch,
    streams: Arc<Rules>,
    absent: Absent,
    moves: Moves,
    names: Names,
    pages: Pages,
    blocks: Option<Arc<Blocks>>,
    /// Names held for what was pinned through this mount. Leaf lock.
    pinned: Mutex<HashMap<RemotePath, Vec<Ino>>>,
    room: Arc<Room>,
    marks: Marks,
    queue: Arc<Queue>,
    /// What an earlier mount left and this one looks at. Leaf lock.
    taken_up: Mutex<Vec<Pending>>,
}

impl Vfs {
    /// Over a pool that has connected once.
    pub fn new(pool: Arc<Pool>, options: Options) -> std::io::Result<Self> {
        std::fs::create_dir_all(&options.staging_dir)?;
        let ownership = Ownership { uid: options.uid, gid: options.gid, umask: options.umask };
        // A load may retry on a second connection, each within the time-out at every step:
        // waiting for somebody else's load four times as long means that it hangs.
        let patience = pool.timeout() * 4;
        let memory = Memory::of(&options);
        let open = |dir: &PathBuf| {
            let (staging, cap) = (&options.staging_dir, options.writing.cache_size);
            Blocks::open(dir, pool.server_name(), staging, cap, memory.unwritten).map(Arc::new)
        };
        let blocks = options.cache_dir.as_ref().map(open).transpose()?;
        let room = Room::new(&options.staging_dir, options.writing.cache_size, blocks.clone());
        let parts = Parts {
            pool: Arc::clone(&pool),
            base: pool.base(),
            tree: Arc::new(Mutex::new(Tree::new())),
            cache: Arc::new(DirCache::new(options.ttl, patience).lending_to(&pool)),
            handles: Arc::new(Handles::new(memory.readers)),
            ttl: options.ttl,
            memory: memory.ahead,
            blocks: blocks.clone(),
        };
        Ok(Self {
            ownership,
            base: pool.base(),
            mounted: now_mtime(),
            tree: Arc::clone(&parts.tree),
            cache: Arc::clone(&parts.cache),
            handles: Arc::clone(&parts.handles),
            prefetch: Prefetch::new(parts, options.read_ahead),
            streams: Rules::new(Arc::clone(&pool), options.streams),
            absent: Absent::default(),
            moves: Moves::default(),
            names: Names::default(),
            pages: Pages::default(),
            blocks,
            pinned: Mutex::default(),
            room: Arc::new(room),
            marks: Marks::new(options.staging_dir.clone(), pool.server_name()),
            queue: Arc::default(),
            taken_up: Mutex::default(),
            pool,
            options,
        })
    }

    /// The connections, for a status report.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// What was read before it was asked for.
    pub fn ahead(&self) -> AheadBytes {
        self.prefetch.counted()
    }

    /// The entry of a name. Counts as one look-up of its inode. An absent name is an error only
    /// with the time for which it may be believed, so it is `Ok(Err(valid))`.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<std::result::Result<Found, Duration>> {
        ftp::check_name(name)?;
        let now = Instant::now();
        for _ in 0..PATIENCE {
            let fresh = self.listing_or_aged(parent, now)?;
            let known = self.tree().find(parent, name);
            let view = known.and_then(|ino| self.handles.view(ino));
            let _names = self.names.look();
            if self.tree().find(parent, name) != known {
                continue;
            }
            let fresh = self.newest(parent, fresh);
            let valid = fresh.until.saturating_duration_since(now);
            let Some(shown) = fresh.shown(name)? else {
                if !valid.is_zero() {
                    self.absent.note(parent, name);
                }
                return Ok(Err(valid));
            };
            let ino = self.tree().intern(parent, name, 1);
            let attr = overlaid(self.ownership.attr(ino, &shown), view.as_ref());
            return Ok(Ok(Found { attr, valid }));
        }
        Err(restless())
    }

    /// The kernel drops look-ups.
    pub fn forget(&self, ino: Ino, count: u64) {
        if self.tree().forget(ino, count) {
            self.cache.forget(ino);
        }
    }

    /// The attributes of an inode.
    pub fn getattr(&self, ino: Ino) -> Result<Found> {
        let now = Instant::now();
        if ino == ROOT {
            let attr = self.ownership.root(ino, self.mounted);
            return Ok(Found { attr, valid: self.options.ttl });
        }
        for _ in 0..PATIENCE {
            let Some((parent, name)) = self.place(ino) else { return self.attr_of_unlinked(ino) };
            if let Some(item) = self.handles.doomed(ino) {
                return Ok(Found { attr: self.attr_of(ino, &item.shown()), valid: Duration::ZERO });
            }
            let fresh = self.listing_or_aged(parent, now)?;
            // Before the newest listing: what was sent in between is in that.
            let view = self.handles.view(ino);
            let _names = self.names.look();
            if self.place(ino) == Some((parent, name.clone())) {
                let fresh = self.newest(parent, fresh);
                let shown = fresh.shown(&name)?.ok_or(Error::NotFound)?;
                let valid = fresh.until.saturating_duration_since(now);
                let attr = overlaid(self.ownership.attr(ino, &shown), view.as_ref());
                return Ok(Found { attr, valid });
            }
        }
        Err(restless())
    }

    /// The place of an inode and what the server says of it, by a listing within the TTL. One without a
    /// name is stale: the kernel then looks its path up anew.
    fn entry(&self, ino: Ino) -> Result<Known> {
        for _ in 0..PATIENCE {
            let lost = || Error::Stale("a file that lost its name".into());
            let (parent, name) = self.place(ino).ok_or_else(lost)?;
            let fresh = self.listing(parent, Instant::now())?;
            let _names = self.names.look();
            if self.place(ino) == Some((parent, name.clone())) {
                let fresh = self.newest(parent, fresh);
                let item = fresh.find(&name)?.ok_or(Error::NotFound)?;
                return Ok(Known { parent, name, fresh, item });
            }
        }
        Err(restless())
    }

    /// The same listing with what has changed since.
    fn newest(&self, directory: Ino, fresh: Fresh) -> Fresh {
        match self.cache.newer_than(directory, &fresh.listing) {
            (Some(listing), _) => Fresh { listing, ..fresh },
            (None, _) => fresh,
        }
    }

    /// Only those who have it open still ask.
    fn attr_of_unlinked(&self, ino: Ino) -> Result<Found> {
        let view = self.handles.view(ino).ok_or(Error::NotFound)?;
        let mut attr = Attr { kind: Kind::File, ..self.ownership.root(ino, now_mtime()) };
        attr.size = view.length;
        attr.mode &= 0o666;
        Ok(Found { attr, valid: Duration::ZERO })
    }

    /// The listing of a directory, asked of the server if the known one is too old.
    fn listing(&self, directory: Ino, now: Instant) -> Result<Fresh> {
        match self.cache.listing(directory, now, || self.load(directory)) {
            Err(error @ (Error::Unreachable(_) | Error::TimedOut(_))) => {
                self.cache.stale(directory, now).ok_or(error)
            }
            result => result,
        }
    }

    fn load(&self, directory: Ino) -> Result<Entries> {
        let path = self.path(directory)?;
        let begun = Instant::now();
        match list(&self.pool, &path) {
            Ok(entries) => {
                self.prefetch.note_step(begun.elapsed());
                Ok(entries)
            }
            Err(error @ ftp::Error::Refused(_)) => Err(self.why_refused(directory, error)),
            Err(error) => Err(error.into()),
        }
    }

    /// A listing was refused: because the directory is gone, or is none, or is forbidden? The
    /// directory above tells.
    fn why_refused(&self, directory: Ino, error: ftp::Error) -> Error {
        let Some((parent, name)) = self.place(directory) else { return Error::NotFound };
        if directory == ROOT {
            return error.into();
        }
        self.cache.expire(parent);
        match self.listing(parent, Instant::now()) {
            Err(error) => error,
            Ok(fresh) => match fresh.listing.shown(&name) {
                None => Error::NotFound,
                Some(shown) if shown.kind != Kind::Directory => Error::NotADirectory,
                Some(_) => error.into(),
            },
        }
    }

    /// What is listed, overlaid by what is written and not yet sent.
    fn attr_of(&self, ino: Ino, shown: &Shown) -> Attr {
        overlaid(self.ownership.attr(ino, shown), self.handles.view(ino).as_ref())
    }

    fn path(&self, ino: Ino) -> Result<RemotePath> {
        let names = self.tree().names(ino).ok_or(Error::NotFound)?;
        let mut path = self.base.clone();
        for name in names {
            path = path.join(&name)?;
        }
        Ok(path)
    }

    fn child_path(&self, parent: Ino, name: &[u8]) -> Result<RemotePath> {
        Ok(self.path(parent)?.join(name)?)
    }

    fn place(&self, ino: Ino) -> Option<(Ino, Name)> {
        self.tree().place(ino)
    }

    /// Drops what is staged and not needed; a name whose bytes are unsent stays known.
    fn unstage(&self, ino: Ino) {
        match self.handles.unstage(ino) {
            Unstaged::AsBefore => {}
            Unstaged::Kept => self.tree().pin(ino),
            Unstaged::NoLongerKept => self.unpin(ino),
        }
    }

    fn unpin(&self, ino: Ino) {
        if self.tree().unpin(ino) {
            self.cache.forget(ino);
        }
    }

    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn require_writable(&self) -> Result<()> {
        if self.options.read_only { Err(Error::ReadOnly) } else { Ok(()) }
    }
}

/// An inode at one moment.
struct Known {
    parent: Ino,
    name: Name,
    fresh: Fresh,
    item: Item,
}

/// A file gets another name every few round trips at most: who meets that so often in a row does
/// so without end.
const PATIENCE: usize = 16;

fn restless() -> Error {
    Error::Stale("a file that gets one name after the other".into())
}

/// What a directory on the server holds, without our own temporary names.
fn list(pool: &Pool, path: &RemotePath) -> std::result::Result<Entries, ftp::Error> {
    Ok(pool.list(path)?.without(is_own_name))
}

/// A file shows what is written to it and not yet sent.
fn overlaid(mut attr: Attr, view: Option<&View>) -> Attr {
    if let Some(view) = view
        && attr.kind == Kind::File
    {
        attr.size = view.length;
        if let Some(mtime) = view.mtime {
            attr.mtime = Mtime { seconds: mtime.seconds, nanos: mtime.nanos };
        }
    }
    attr
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now_mtime() -> Mtime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Mtime { seconds: i64::try_from(since.as_secs()).unwrap_or(0), nanos: since.subsec_nanos() }
}
