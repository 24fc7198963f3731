//! Open handles, and the staged file of each inode that is being written.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::attr::Version;
use super::dircache::{Item, Listing};
use super::error::{Error, Result};
use super::marks::Mark;
use super::reader::{Memory, Reader};
use super::staging::{Staged, View};
use super::streams::Rules;
use super::tree::Ino;
use super::turns::InTurn;

use super::cached::Cached;
use crate::ftp::Timestamp;

/// What a file was opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    pub read: bool,
    pub write: bool,
    /// Every write goes to the end (O_APPEND).
    pub append: bool,
}

/// An open file.
#[derive(Debug)]
pub(crate) struct OpenFile {
    pub(crate) ino: Ino,
    pub(crate) access: Access,
    /// Of the content when it was opened.
    pub(crate) version: Version,
    /// That content if it was fetched ahead, once it was looked for.
    pub(crate) ahead: OnceLock<Option<Arc<Vec<u8>>>>,
    /// What of it is, and may be put, in the cache on the disk.
    pub(crate) cached: Option<Cached>,
    /// Held during I/O: one transfer for one handle. Before Tree, DirCache and Pool.
    pub(crate) reader: InTurn<Reader>,
}

/// An open directory: what it held when it was opened, so that an offset is an index.
#[derive(Debug)]
pub(crate) struct OpenDirectory {
    pub(crate) ino: Ino,
    pub(crate) listing: Arc<Listing>,
}

#[derive(Clone, Debug)]
enum Handle {
    File(Arc<OpenFile>),
    Directory(Arc<OpenDirectory>),
}

/// The staged file of one inode, which has locks of its own.
pub(crate) type Shared = Arc<Staged>;

/// All handles.
#[derive(Debug)]
pub(crate) struct Handles {
    /// Leaf lock.
    state: Mutex<State>,
    /// What the readers of all handles hold.
    memory: Memory,
    /// The most of it.
    most: usize,
}

#[derive(Debug, Default)]
struct State {
    last: u64,
    handles: HashMap<u64, Handle>,
    staged: HashMap<Ino, Shared>,
    /// How many file handles an inode has.
    opens: HashMap<Ino, usize>,
    /// Removed while open, and kept under another name until the last handle is closed: what was
    /// listed of it.
    doomed: HashMap<Ino, (Item, Option<Mark>)>,
    /// Being sent: how often, and what to show until the listing tells what was sent. A staged file
    /// itself shows nothing more as soon as the server has confirmed it.
    sending: HashMap<Ino, (usize, Option<View>)>,
    /// Staged files with unsent bytes that nobody has open; their inodes are pinned for that.
    kept: HashSet<Ino>,
}

/// What became of the staged file of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unstaged {
    AsBefore,
    /// From now on only its unsent bytes hold it: the name must not be forgotten.
    Kept,
    /// They are sent, or not wanted any more.
    NoLongerKept,
}

impl Handles {
    /// All readers together hold no more than `most` bytes, but for those at work.
    pub(crate) fn new(most: usize) -> Self {
        Self { state: Mutex::default(), memory: Memory::default(), most }
    }

    /// Opens a file, of which a large one may have several streams.
    pub(crate) fn open_file(
        &self,
        ino: Ino,
        access: Access,
        version: Version,
        cached: Option<Cached>,
        rules: Option<&Arc<Rules>>,
    ) -> u64 {
        let reader = InTurn::new(Reader::counted(version, &self.memory).with_streams(rules));
        let file = OpenFile { ino, access, version, ahead: OnceLock::new(), cached, reader };
        let mut state = self.lock();
        *state.opens.entry(ino).or_insert(0) += 1;
        state.insert(Handle::File(Arc::new(file)))
    }

    /// Lets readers other than that of `fh`, which has just read, give up what they hold, until
    /// all together hold little enough. Those at work keep theirs.
    pub(crate) fn limit_memory(&self, fh: u64) {
        if self.memory.load(Ordering::Relaxed) <= self.most {
            return;
        }
        let mut files: Vec<_> = (self.lock().handles.iter())
            .filter_map(|(other, handle)| match handle {
                Handle::File(file) if *other != fh => Some((*other, Arc::clone(file))),
                _ => None,
            })
            .collect();
        // Those opened first are the likeliest to be idle.
        files.sort_by_key(|(other, _)| *other);
        for (_, file) in files {
            if let Some(mut reader) = file.reader.try_lock() {
                reader.rest();
            }
            if self.memory.load(Ordering::Relaxed) <= self.most / 2 {
                return;
            }
        }
    }

    pub(crate) fn open_directory(&self, directory: OpenDirectory) -> u64 {
        self.lock().insert(Handle::Directory(Arc::new(directory)))
    }

    pub(crate) fn file(&self, fh: u64) -> Result<Arc<OpenFile>> {
        match self.lock().handles.get(&fh) {
            Some(Handle::File(file)) => Ok(Arc::clone(file)),
            _ => Err(Error::BadHandle),
        }
    }

    pub(crate) fn directory(&self, fh: u64) -> Result<Arc<OpenDirectory>> {
        match self.lock().handles.get(&fh) {
            Some(Handle::Directory(directory)) => Ok(Arc::clone(directory)),
            _ => Err(Error::BadHandle),
        }
    }

    pub(crate) fn open_files(&self) -> Vec<u64> {
        let state = self.lock();
        let files = state.handles.iter().filter(|(_, handle)| matches!(handle, Handle::File(_)));
        files.map(|(fh, _)| *fh).collect()
    }

    /// Ends a handle; its inode.
    pub(crate) fn close(&self, fh: u64) -> Option<Closed> {
        let mut state = self.lock();
        match state.handles.remove(&fh)? {
            Handle::Directory(directory) => {
                Some(Closed { ino: directory.ino, was_last: false, doomed: None })
            }
            Handle::File(file) => {
                let ino = file.ino;
                let left = state.opens.get_mut(&ino).map_or(0, |count| {
                    *count -= 1;
                    *count
                });
                let was_last = left == 0;
                if was_last {
                    state.opens.remove(&ino);
                }
                let doomed = if was_last { state.doomed.remove(&ino) } else { None };
                Some(Closed { ino, was_last, doomed: doomed.map(|(_, mark)| mark) })
            }
        }
    }

    /// The server took this time at our wish: those who read the file go on with it.
    pub(crate) fn note_server_mtime(&self, ino: Ino, mtime: Timestamp) {
        let files: Vec<_> = (self.lock().handles.values())
            .filter_map(|handle| match handle {
                Handle::File(file) if file.ino == ino => Some(Arc::clone(file)),
                _ => None,
            })
            .collect();
        for file in files {
            file.reader.lock().note_server_mtime(mtime);
        }
    }

    /// Does any handle have this file open for writing?
    pub(crate) fn has_writer(&self, ino: Ino) -> bool {
        let state = self.lock();
        state.handles.values().any(
            |handle| matches!(handle, Handle::File(file) if file.ino == ino && file.access.write),
        )
    }

    /// Does any handle have this file open?
    pub(crate) fn is_open(&self, ino: Ino) -> bool {
        self.lock().opens.contains_key(&ino)
    }

    /// The file is to be removed when the last handle is closed. If that is so already (the kernel
    /// tells it late), the mark comes back, and removing is up to the caller.
    pub(crate) fn doom(
        &self,
        ino: Ino,
        item: Item,
        mark: Option<Mark>,
    ) -> std::result::Result<(), Option<Mark>> {
        let mut state = self.lock();
        if !state.opens.contains_key(&ino) {
            return Err(mark);
        }
        state.doomed.insert(ino, (item, mark));
        Ok(())
    }

    /// All that are open and removed.
    pub(crate) fn all_doomed(&self) -> Vec<Ino> {
        self.lock().doomed.keys().copied().collect()
    }

    /// One has another name now, and another mark. If its last handle was closed, as with `doom`.
    pub(crate) fn mark_doomed(
        &self,
        ino: Ino,
        mark: Option<Mark>,
    ) -> std::result::Result<(), Option<Mark>> {
        match self.lock().doomed.get_mut(&ino) {
            Some((_, old)) => *old = mark,
            None => return Err(mark),
        }
        Ok(())
    }

    pub(crate) fn doomed(&self, ino: Ino) -> Option<Item> {
        self.lock().doomed.get(&ino).map(|(item, _)| item.clone())
    }

    pub(crate) fn staged(&self, ino: Ino) -> Option<Shared> {
        self.lock().staged.get(&ino).map(Arc::clone)
    }

    /// Length and time of what is staged for an inode, without waiting for anybody.
    pub(crate) fn view(&self, ino: Ino) -> Option<View> {
        // In this order: what the staged file shows no more is in `sending` until it is listed.
        let staged = self.staged(ino).and_then(|staged| staged.view());
        staged.or_else(|| self.sending(ino))
    }

    fn sending(&self, ino: Ino) -> Option<View> {
        self.lock().sending.get(&ino).and_then(|(_, view)| *view)
    }

    /// A staged file is about to be sent; the result ends when the listing tells what was sent.
    pub(crate) fn begin_sending(&self, ino: Ino, staged: &Staged) -> Sending<'_> {
        let view = staged.view();
        let mut state = self.lock();
        let (count, shown) = state.sending.entry(ino).or_default();
        *count += 1;
        *shown = view.or(*shown);
        Sending { handles: self, ino }
    }

    /// The same for all that is staged, without waiting for anybody.
    pub(crate) fn views(&self) -> HashMap<Ino, View> {
        let staged = self.all_staged().into_iter();
        let mut views: HashMap<_, _> =
            staged.filter_map(|(ino, staged)| Some((ino, staged.view()?))).collect();
        for (ino, (_, view)) in &self.lock().sending {
            if let Some(view) = view {
                views.entry(*ino).or_insert(*view);
            }
        }
        views
    }

    /// The staged file of an inode, made by `make` if there is none.
    pub(crate) fn stage(&self, ino: Ino, make: impl FnOnce() -> Result<Staged>) -> Result<Shared> {
        if let Some(staged) = self.staged(ino) {
            return Ok(staged);
        }
        // Made outside the lock, as it touches the disk; another thread may have been faster.
        let made = make()?;
        let made = Arc::new(made);
        Ok(Arc::clone(self.lock().staged.entry(ino).or_insert(made)))
    }

    /// Drops the staged file of an inode that nobody has open and that holds nothing unsent.
    pub(crate) fn unstage(&self, ino: Ino) -> Unstaged {
        let mut state = self.lock();
        if state.opens.contains_key(&ino) {
            return Unstaged::AsBefore;
        }
        let unsent = state.staged.get(&ino).is_some_and(|staged| staged.is_dirty());
        if unsent {
            return if state.kept.insert(ino) { Unstaged::Kept } else { Unstaged::AsBefore };
        }
        state.staged.remove(&ino);
        if state.kept.remove(&ino) { Unstaged::NoLongerKept } else { Unstaged::AsBefore }
    }

    /// Everything staged, to be sent or shown.
    pub(crate) fn all_staged(&self) -> Vec<(Ino, Shared)> {
        let mut all: Vec<_> =
            self.lock().staged.iter().map(|(ino, staged)| (*ino, Arc::clone(staged))).collect();
        all.sort_by_key(|(ino, _)| *ino);
        all
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn insert(&mut self, handle: Handle) -> u64 {
        self.last += 1;
        self.handles.insert(self.last, handle);
        self.last
    }
}

/// A file is being sent, or what was sent is being put into the listing.
#[derive(Debug)]
pub(crate) struct Sending<'a> {
    handles: &'a Handles,
    ino: Ino,
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        let mut state = self.handles.lock();
        let Some((count, _)) = state.sending.get_mut(&self.ino) else { return };
        *count -= 1;
        if *count == 0 {
            state.sending.remove(&self.ino);
        }
    }
}

/// What ended with a handle.
pub(crate) struct Closed {
    pub(crate) ino: Ino,
    /// The file has no other handle.
    pub(crate) was_last: bool,
    /// It is to be removed now; the mark says so until it is.
    pub(crate) doomed: Option<Option<Mark>>,
}
