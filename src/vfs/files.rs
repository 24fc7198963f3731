//! Content: open, create, write, flush, release.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::attr::Version;
use super::cached::Cached;
use super::commit::Committed;
use super::dircache::Item;
use super::error::{Error, Result};
use super::handles::{Access, Shared};
use super::names::entry_of_now;
use super::pages::Kept;
use super::patch::tail;
use super::reader::leave_parked;
use super::staging::{Place, Staged, Start, Urgency};
use super::tree::Ino;
use super::{Found, Known, PATIENCE, Vfs, now_mtime, restless};
use crate::ftp::{self, Kind, Precision, RemotePath, Timestamp};

/// An open file handle, and what the kernel may assume of it.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    pub fh: u64,
    /// The kernel must ask for every byte: it cannot trust its length, as the size is not known,
    /// or the user wants nothing kept.
    pub is_direct: bool,
    /// What the kernel read of the file at an earlier open is still right.
    pub keeps_pages: bool,
}

/// Under which a transfer that fills a staged file is parked: handles count from 1 and never get
/// there.
fn fill_key(ino: Ino) -> u64 {
    ino.0 | 1 << 63
}

/// How long the end of a mount waits for threads that put files of our own away on the server: some
/// round trips of a far one. After that the next mount does it.
const TIDYING: Duration = Duration::from_secs(5);

impl Vfs {
    /// Opens an existing file.
    pub fn open(&self, ino: Ino, access: Access, truncate: bool) -> Result<Opened> {
        if access.write || truncate {
            self.require_writable()?;
        }
        for _ in 0..PATIENCE {
            if let Some(opened) = self.open_once(ino, access, truncate)? {
                return Ok(opened);
            }
            self.settle_name(ino);
        }
        Err(restless())
    }

    /// Nothing if the file gets another name meanwhile: which bytes are its own is not sure then.
    fn open_once(&self, ino: Ino, access: Access, truncate: bool) -> Result<Option<Opened>> {
        let Known { parent, name, fresh, item } = self.entry(ino)?;
        match item.entry.kind {
            Kind::File => {}
            Kind::Directory => return Err(Error::IsADirectory),
            // A symbolic link is resolved by the kernel; a device or pipe on the server would
            // block the transfer.
            Kind::Symlink | Kind::Special => return Err(Error::Unsupported),
        }
        let mut version = Version::of(&item);
        if version.size.is_none() && !access.write {
            let path = self.path(ino)?;
            version = Version::of_stat(&self.pool.ask(|session| session.stat(&path))?);
        }
        let is_unsized = version.size.is_none() && !access.write;
        let (kept, cached) = if access.write || truncate {
            (Kept::No, None)
        } else {
            self.sources(ino, &item, &version, fresh.listed)
        };
        let is_lost = Cell::new(false);
        let opened = self.open_handle(ino, access, version, cached, || {
            // From here on who renames it, or something over it, sees that it is open.
            // And whoever sent another version until now has left it in the listing.
            is_lost.set(self.is_moving(ino) || !self.is_listed_so(ino, (parent, &name), &item));
            if is_lost.get() {
                return Err(restless());
            }
            if access.write || truncate {
                let staged = self.stage_existing(ino, &item)?;
                if truncate {
                    staged.truncate(&self.at(ino, &self.path(ino)?), 0)?;
                }
            }
            Ok(())
        });
        if is_lost.get() {
            return Ok(None);
        }
        let fh = opened?;
        if !access.write && !truncate {
            self.prefetch.opened(parent, &fresh.listing, ino, &name);
        }
        self.prepare(fh, kept)?;
        let is_direct = is_unsized || (self.options.direct_io && !access.write);
        Ok(Some(Opened { fh, is_direct, keeps_pages: kept != Kept::No }))
    }

    /// Registers the handle before its file is staged: the last of the other handles, closed
    /// meanwhile, must see that the staged file is still wanted.
    fn open_handle(
        &self,
        ino: Ino,
        access: Access,
        version: Version,
        cached: Option<Cached>,
        stage: impl FnOnce() -> Result<()>,
    ) -> Result<u64> {
        self.tree().pin(ino);
        let fh = self.handles.open_file(ino, access, version, cached, Some(&self.streams));
        match stage() {
            Ok(()) => Ok(fh),
            Err(error) => {
                self.release(fh);
                Err(error)
            }
        }
    }

    fn stage_existing(&self, ino: Ino, item: &Item) -> Result<Shared> {
        self.prefetch.forget(ino);
        self.pages.forget(ino);
        self.handles
            .stage(ino, || Staged::of_existing(&self.room, Version::of(item), item.shown_mode()))
    }

    /// The staged file of one that need not be open.
    fn stage_listed(&self, ino: Ino) -> Result<Shared> {
        for _ in 0..PATIENCE {
            let Known { parent, name, item, .. } = self.entry(ino)?;
            if item.entry.kind != Kind::File {
                return Err(Error::IsADirectory);
            }
            let staged = self.stage_existing(ino, &item)?;
            if self.is_listed_so(ino, (parent, &name), &item) {
                return Ok(staged);
            }
            drop(staged);
            self.unstage(ino);
        }
        Err(restless())
    }

    /// Has the inode this name still, and is this version still the one that is listed?
    fn is_listed_so(&self, ino: Ino, place: (Ino, &[u8]), item: &Item) -> bool {
        let _names = self.names.look();
        let is_there = self.tree().find(place.0, place.1) == Some(ino);
        let now = self.cache.known(place.0).and_then(|listing| listing.get(place.1));
        is_there && now.is_none_or(|now| Version::of(&now) == Version::of(item))
    }

    /// Makes a file and opens it. It reaches the server when it is closed. With `exclusive` an
    /// existing file is an error, otherwise it is opened.
    pub fn create(
        &self,
        parent: Ino,
        name: &[u8],
        mode: u16,
        access: Access,
        exclusive: bool,
    ) -> Result<(Found, Opened)> {
        self.require_writable()?;
        ftp::check_name(name)?;
        let now = Instant::now();
        let fresh = self.listing(parent, now)?;
        if fresh.find(name)?.is_some() {
            if exclusive {
                return Err(Error::Exists);
            }
            let found = self.lookup(parent, name)?.map_err(|_| Error::NotFound)?;
            return Ok((found, self.open(found.attr.ino, access, false)?));
        }
        let item = new_item(name, mode);
        let ino = self.tree().intern(parent, name, 1);
        // 0644 is what servers give to new files: nothing to be said then.
        let wanted = Some(mode).filter(|mode| *mode != 0o644);
        let version = Version { size: Some(0), mtime: None };
        let opened = self.open_handle(ino, access, version, None, || {
            let make = || Staged::of_new(&self.room, wanted);
            self.handles.stage(ino, make).map(drop)
        });
        let fh = opened.inspect_err(|_| self.forget(ino, 1))?;
        let attr = self.ownership.attr(ino, &item.shown());
        self.cache.put(parent, item);
        let valid = fresh.until.saturating_duration_since(now);
        Ok((Found { attr, valid }, Opened { fh, is_direct: false, keeps_pages: false }))
    }

    /// Writes at `offset`, or at the end for a handle opened to append.
    pub fn write(&self, fh: u64, offset: u64, bytes: &[u8]) -> Result<()> {
        let file = self.handles.file(fh)?;
        if !file.access.write {
            return Err(Error::BadHandle);
        }
        let staged = self.handles.staged(file.ino).ok_or(Error::BadHandle)?;
        let start = if file.access.append { Start::End } else { Start::At(offset) };
        // As in `read`.
        let path = self.path(file.ino).unwrap_or_else(|_| RemotePath::root());
        staged.write(&self.at(file.ino, &path), start, bytes)
    }

    /// Finds out how the server takes changes in the middle of a file, before the first one is
    /// waited for. What cannot be found out now is when it is needed.
    pub fn try_patching(&self) {
        if self.options.writing.patch_in_place
            && let Ok(path) = self.base.join(b"scratch")
            && let Err(error) = tail(&self.pool, &self.marks, &path)
        {
            log::info!("changes in place are not tried yet: {error}");
        }
    }

    /// How to get to a file on the server.
    pub(super) fn at<'a>(&'a self, ino: Ino, path: &'a RemotePath) -> Place<'a> {
        Place { pool: &self.pool, marks: &self.marks, path, key: fill_key(ino) }
    }

    /// Somebody closes a descriptor of the file: everything written must be on the server, or the
    /// error is theirs.
    pub fn flush(&self, fh: u64) -> Result<()> {
        let file = self.handles.file(fh)?;
        if !file.access.write {
            return Ok(());
        }
        let Some(delay) = self.options.writing.write_back else { return self.fsync(fh) };
        let Some(staged) = self.handles.staged(file.ino) else { return Ok(()) };
        // A file without a name is nowhere to be sent to.
        let Ok(path) = self.path(file.ino) else { return Ok(()) };
        match staged.promise(&self.pool, &path) {
            Ok(true) => {
                let bytes = staged.view().map_or(0, |view| view.length);
                self.queue.put(file.ino, bytes, Instant::now() + delay);
                Ok(())
            }
            Ok(false) => Ok(()),
            Err(error) => {
                log::warn!("{path} is sent at once, as it is not safe here: {error}");
                self.fsync(fh)
            }
        }
    }

    /// Everything written through any handle of the file is on the server after this.
    pub fn fsync(&self, fh: u64) -> Result<()> {
        let file = self.handles.file(fh)?;
        match self.handles.staged(file.ino) {
            Some(staged) => self.commit(file.ino, &staged, Urgency::Foreground),
            None => Ok(()),
        }
    }

    /// The last descriptor is closed. Nobody hears an error any more: what is unsent stays staged.
    pub fn release(&self, fh: u64) {
        leave_parked(&self.pool, fh);
        let Some(closed) = self.handles.close(fh) else { return };
        if closed.was_last {
            self.forsake_if_worthless(closed.ino);
            self.unstage(closed.ino);
        }
        if let Some(mark) = closed.doomed {
            self.remove_hidden(closed.ino, mark);
        }
        self.unpin(closed.ino);
    }

    /// The kernel tells of no handle any more. What it did not tell, as it was unmounted meanwhile,
    /// is done now, and what the server was not there for.
    pub fn release_all(&self) {
        for fh in self.handles.open_files() {
            self.release(fh);
        }
        self.marks.wait_until_none(TIDYING);
        self.put_away_leftovers();
    }

    /// A new file that the server refused and that holds no byte: `touch` was told so, and there
    /// is nothing to keep.
    fn forsake_if_worthless(&self, ino: Ino) {
        let Some(staged) = self.handles.staged(ino) else { return };
        let is_worthless = staged.is_refused_and_empty();
        if is_worthless && let Some((parent, name)) = self.place(ino) {
            staged.unlink(|_| {});
            self.cache.remove(parent, &name);
            self.tree().unlink(parent, &name);
        }
    }

    pub(super) fn is_moving(&self, ino: Ino) -> bool {
        self.moves.concern(|moving| self.tree().is_within(ino, moving))
    }

    /// Waits until its name on the server is known here.
    pub(super) fn settle_name(&self, ino: Ino) {
        self.moves.settle(self.pool.timeout(), |moving| self.tree().is_within(ino, moving));
    }

    /// Sends what is staged for an inode, and shows the result.
    pub(super) fn commit(&self, ino: Ino, staged: &Shared, urgency: Urgency) -> Result<()> {
        // Not to a name that it is losing.
        self.settle_name(ino);
        let _sending = self.handles.begin_sending(ino, staged);
        let find = || self.path(ino);
        let policy = &self.options.writing;
        let key = fill_key(ino);
        let committed = staged
            .commit(&self.pool, &self.marks, key, policy, urgency, &find)
            // After a failure nobody knows what the server has.
            .inspect_err(|_| self.expire_parent(ino))?;
        let Some(committed) = committed else { return Ok(()) };
        self.queue.drop_one(ino);
        self.prefetch.forget(ino);
        if let Ok(path) = self.path(ino) {
            self.forget_content(ino, &path);
        }
        if let Some((parent, name)) = self.place(ino) {
            self.show_committed(parent, &name, &committed);
        }
        Ok(())
    }

    /// The name belongs to what others put there; ours goes on under another, with all who have it
    /// open.
    fn show_conflict(&self, parent: Ino, name: &[u8], copy: &[u8]) {
        self.tree().relink((parent, name), (parent, copy));
        let known = self.cache.known(parent).and_then(|known| known.get(name));
        if let Some(mut item) = known {
            item.entry.name = copy.into();
            self.cache.put(parent, item);
        }
        self.cache.remove(parent, name);
        self.cache.expire(parent);
    }

    /// The entry as it must be on the server now. Nothing is asked: size and times are known, but
    /// for the time of a file whose writer set none; that is our clock's until the next listing.
    fn show_committed(&self, parent: Ino, name: &[u8], committed: &Committed) {
        if let Some(copy) = &committed.conflict {
            self.show_conflict(parent, name, copy);
        }
        let name = committed.conflict.as_deref().unwrap_or(name);
        self.cache.update(parent, name, |item| {
            item.is_unsent = false;
            item.entry.size = Some(committed.length);
            item.set_mtime(now_stamp());
            item.is_guess = true;
            if let Some(mtime) = committed.mtime {
                item.set_mtime(mtime);
            }
            if let Some(mtime) = committed.mtime_to_remember {
                item.remember_mtime(mtime);
            }
            if let Some(mode) = committed.mode {
                item.set_mode(mode);
            }
            if let Some(mode) = committed.mode_to_remember {
                item.remember_mode(mode);
            }
        });
    }

    /// The next look at the file asks the server.
    pub(super) fn expire_parent(&self, ino: Ino) {
        if let Some((parent, _)) = self.place(ino) {
            self.cache.expire(parent);
        }
    }

    /// Changes the length of a file that may or may not be open. Without a writer the result goes
    /// to the server at once.
    pub(super) fn set_size(&self, ino: Ino, size: u64) -> Result<()> {
        let staged = self.stage_listed(ino)?;
        let path = self.path(ino)?;
        let result = staged.truncate(&self.at(ino, &path), size).and_then(|()| {
            if self.handles.has_writer(ino) {
                Ok(())
            } else {
                self.commit(ino, &staged, Urgency::Foreground)
            }
        });
        drop(staged);
        self.unstage(ino);
        result
    }

    /// A file system is never full here that is not full there, and asking would cost a round
    /// trip that few servers answer: a large and constant amount of room.
    pub fn statfs(&self) -> StatFs {
        // 1 TiB of 4 KiB blocks, and as many names as blocks: enough for any installer's check,
        // small enough for programs that count in signed 64-bit bytes.
        const BLOCKS: u64 = 1 << 28;
        StatFs { block_size: 4096, blocks: BLOCKS, free: BLOCKS, files: BLOCKS, name_max: 255 }
    }
}

/// What `df` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatFs {
    pub block_size: u32,
    pub blocks: u64,
    pub free: u64,
    pub files: u64,
    pub name_max: u32,
}

/// A file that exists here and will exist on the server when it is closed.
pub(super) fn new_item(name: &[u8], mode: u16) -> Item {
    let mut item = Item::new(entry_of_now(name, mode));
    item.is_guess = true;
    item.is_unsent = true;
    item
}

/// Now, in whole seconds as servers keep it.
pub(super) fn now_stamp() -> Timestamp {
    Timestamp { seconds: now_mtime().seconds, nanos: 0, precision: Precision::Second }
}
