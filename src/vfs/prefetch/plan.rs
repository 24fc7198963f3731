//! Which walk is under way, and what it will ask for next. Pure: knows no server and no clock.
//!
//! A program that walks a tree opens directories, or files, in the order in which they are listed;
//! depth first it goes down before it goes on, breadth first it goes on before it goes down. Two
//! steps in order make a walk. What comes next is then the rest of the listing from there on, with
//! what is below it, and above it the rest of each listing that the walk came through. The window
//! grows with the evidence and shrinks when names are left out, so that opens at random cost
//! nothing, and a walk that stops costs one window at most.

use std::sync::Arc;

use crate::ftp::Kind;

use crate::vfs::attr::Version;
use crate::vfs::dircache::{Item, Listing};
use crate::vfs::tree::Ino;

/// Walks followed at the same time: a shell's, a file manager's, and two more.
const WALKS: usize = 4;

/// Steps in order that make a walk.
const EVIDENCE: usize = 2;

/// How many names a walk may leave out between two steps: `*.c` among headers.
const SKIPPED: usize = 3;

/// Directories ahead: four for each of the 8 connections of a usual mount, so that none waits for
/// the walk.
const FOLDERS: usize = 32;

/// Files ahead once the evidence is good, by the same reckoning.
const FILES: usize = 32;

/// Bytes ahead in all files together: with four walks the shelf's 32 MiB.
const BYTES: u64 = 8 * 1024 * 1024;

/// The largest file that is fetched ahead. Larger ones come as streams at the speed of the line,
/// and the 3 round trips before the first byte no longer matter.
pub(crate) const LARGEST: u64 = 1024 * 1024;

/// Names looked at in one look ahead; a directory of any size costs no more.
const LOOKED_AT: usize = 1024;

/// How far below the next directories known listings are followed.
const DEPTH: usize = 3;

/// The levels of one walk that are kept, from the deepest up.
const LEVELS: usize = 64;

/// What may be done ahead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    List { parent: Ino, name: Box<[u8]> },
    Fetch { parent: Ino, name: Box<[u8]>, version: Version, size: usize },
}

/// A directory as it was just listed, and where it lies.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    pub(crate) ino: Ino,
    pub(crate) listing: Arc<Listing>,
    /// The directory above; `None` for the root.
    pub(crate) above: Option<Above>,
}

/// The directory above another one.
#[derive(Clone, Debug)]
pub(crate) struct Above {
    pub(crate) ino: Ino,
    /// The name of the other one in it.
    pub(crate) name: Arc<[u8]>,
    /// Where it is known.
    pub(crate) listing: Option<Arc<Listing>>,
}

/// Tells the inode and the listing of a name that is a directory and was listed already.
pub(crate) type Known<'a> = &'a dyn Fn(Ino, &[u8]) -> Option<(Ino, Arc<Listing>)>;

/// What comes next.
#[derive(Debug, Default)]
pub(crate) struct Outlook {
    /// In the order in which the walk will ask.
    pub(crate) steps: Vec<Step>,
    /// How many more there are beyond the window, as far as they were looked at.
    pub(crate) beyond: usize,
}

/// The walks, the most recent first.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    walks: Vec<Walk>,
}

#[derive(Debug, Default)]
struct Walk {
    /// From the top down to where the walk is.
    levels: Vec<Level>,
    /// How many directories were opened in order.
    folders: usize,
    /// How many files were.
    files: usize,
}

/// A directory that the walk is in.
#[derive(Debug)]
struct Level {
    ino: Ino,
    listing: Arc<Listing>,
    /// The index after the directory, and after the file, that was opened last.
    next_folder: usize,
    next_file: usize,
    /// The walk came down from here to the next level by a step in order.
    is_followed: bool,
}

/// How an opened name lies to the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    Again,
    Next,
    /// Some names were left out.
    Near,
    Elsewhere,
}

impl Plan {
    /// A directory was opened.
    pub(crate) fn entered(&mut self, folder: &Folder) {
        if self.bring_forward(folder.ino).is_some() {
            return;
        }
        let above = folder.above.as_ref();
        let found = above.and_then(|above| self.bring_forward(above.ino));
        if found.is_none() {
            self.begin(folder);
        }
        let Some(walk) = self.walks.first_mut() else { return };
        if let (Some(at), Some(above)) = (found, above) {
            walk.levels.truncate(at + 1);
            walk.step_down(&above.name);
        }
        walk.levels.push(Level::new(folder.ino, Arc::clone(&folder.listing)));
        if walk.levels.len() > LEVELS {
            walk.levels.remove(0);
        }
    }

    /// A file of the directory was opened to be read.
    pub(crate) fn opened(&mut self, folder: &Folder, name: &[u8]) {
        // Not every walk opens a directory before it opens what is in it: the kernel may know it.
        self.entered(folder);
        let Some(at) = self.bring_forward(folder.ino) else { return };
        let Some(walk) = self.walks.first_mut() else { return };
        walk.levels.truncate(at + 1);
        let Some(level) = walk.levels.last_mut() else { return };
        walk.files = match level.step(Kind::File, name) {
            Move::Again => walk.files,
            Move::Next => walk.files + 1,
            Move::Near => walk.files / 2,
            Move::Elsewhere => 0,
        };
    }

    /// What the walk that moved last will ask for.
    pub(crate) fn outlook(&self, known: Known<'_>) -> Outlook {
        let Some(walk) = self.walks.first() else { return Outlook::default() };
        let mut look = Look {
            known,
            outlook: Outlook::default(),
            wants_folders: walk.folders >= EVIDENCE,
            wants_files: walk.files >= EVIDENCE,
            folders: FOLDERS,
            files: walk.files_ahead(),
            bytes: BYTES,
            names: LOOKED_AT,
        };
        for (depth, level) in walk.levels.iter().rev().enumerate() {
            // Above, only where the walk is known to go on.
            if depth > 0 && !(look.wants_folders && level.is_followed) {
                break;
            }
            look.along(level.ino, &level.listing, level.next_folder, level.next_file, DEPTH);
        }
        look.outlook
    }

    /// Makes the walk that is in this directory the most recent one; the level of the directory.
    fn bring_forward(&mut self, directory: Ino) -> Option<usize> {
        let level = |walk: &Walk| walk.levels.iter().rposition(|level| level.ino == directory);
        let (index, at) =
            self.walks.iter().enumerate().find_map(|(index, walk)| Some((index, level(walk)?)))?;
        let walk = self.walks.remove(index);
        self.walks.insert(0, walk);
        Some(at)
    }

    /// A walk that begins in the directory above this one; this one is its first step. A walk that
    /// had come to the end of its level goes on in it, as one that is breadth first does.
    fn begin(&mut self, folder: &Folder) {
        let before = self.walks.first().filter(|walk| walk.folders >= EVIDENCE && walk.is_at_end());
        let (folders, files) = before.map_or((0, 0), |walk| (walk.folders, walk.files));
        let mut walk = Walk { levels: Vec::new(), folders, files };
        if let Some(Above { ino, name, listing: Some(listing) }) = &folder.above {
            walk.levels.push(Level::new(*ino, Arc::clone(listing)));
            walk.step_down(name);
        }
        self.walks.insert(0, walk);
        self.walks.truncate(WALKS);
    }
}

impl Walk {
    /// From the deepest level into one of its directories.
    fn step_down(&mut self, name: &[u8]) {
        let Some(level) = self.levels.last_mut() else { return };
        let step = level.step(Kind::Directory, name);
        level.is_followed = matches!(step, Move::Next | Move::Near);
        self.folders = match step {
            Move::Again => self.folders,
            Move::Next => self.folders + 1,
            Move::Near => self.folders / 2,
            Move::Elsewhere => 0,
        };
        if step == Move::Elsewhere {
            self.files = 0;
        }
    }

    /// How many files to fetch ahead.
    fn files_ahead(&self) -> usize {
        match self.files.checked_sub(EVIDENCE) {
            None => 0,
            Some(0) => FILES / 4,
            Some(_) => FILES,
        }
    }

    /// Was the directory that it went into the last one beside it?
    fn is_at_end(&self) -> bool {
        self.levels.iter().rev().nth(1).is_some_and(|level| {
            let mut left = level.listing.items_from(level.next_folder).take(LOOKED_AT);
            !left.any(|item| item.entry.kind == Kind::Directory)
        })
    }
}

impl Level {
    fn new(ino: Ino, listing: Arc<Listing>) -> Self {
        Self { ino, listing, next_folder: 0, next_file: 0, is_followed: false }
    }

    fn step(&mut self, kind: Kind, name: &[u8]) -> Move {
        let Some(position) = self.listing.position(name) else { return Move::Elsewhere };
        let next = match kind {
            Kind::Directory => &mut self.next_folder,
            _ => &mut self.next_file,
        };
        let from = std::mem::replace(next, position + 1);
        if position + 1 == from {
            return Move::Again;
        }
        let Some(between) = position.checked_sub(from) else { return Move::Elsewhere };
        let between = self.listing.items_from(from).take(between.min(LOOKED_AT));
        match between.filter(|item| item.entry.kind == kind).take(SKIPPED + 1).count() {
            0 => Move::Next,
            left_out if left_out <= SKIPPED => Move::Near,
            _ => Move::Elsewhere,
        }
    }
}

/// One look ahead and what it may still take.
struct Look<'a> {
    known: Known<'a>,
    outlook: Outlook,
    wants_folders: bool,
    wants_files: bool,
    folders: usize,
    files: usize,
    bytes: u64,
    names: usize,
}

impl Look<'_> {
    /// Along a listing, directories from one index on and files from another, and down into what
    /// is known.
    fn along(&mut self, ino: Ino, listing: &Listing, folder: usize, file: usize, depth: usize) {
        let begin = if self.wants_files { folder.min(file) } else { folder };
        for (index, item) in (begin..).zip(listing.items_from(begin)) {
            if self.names == 0 {
                return;
            }
            self.names -= 1;
            match item.entry.kind {
                Kind::Directory if index >= folder && self.wants_folders => {
                    self.folder(ino, &item.entry.name, depth);
                }
                Kind::File if index >= file && self.wants_files => self.file(ino, &item),
                _ => {}
            }
        }
    }

    fn folder(&mut self, parent: Ino, name: &[u8], depth: usize) {
        if self.folders == 0 || depth == 0 {
            self.outlook.beyond += 1;
            return;
        }
        self.folders -= 1;
        match (self.known)(parent, name) {
            Some((ino, listing)) => self.along(ino, &listing, 0, 0, depth - 1),
            None => self.outlook.steps.push(Step::List { parent, name: name.into() }),
        }
    }

    fn file(&mut self, parent: Ino, item: &Item) {
        let version = Version::of(item);
        let Some(size) = version.size.filter(|size| (1..=LARGEST).contains(size)) else { return };
        // Without a time nothing tells one version from another of the same size.
        if version.mtime.is_none() || item.is_unsent {
            return;
        }
        let bytes = usize::try_from(size).unwrap_or(usize::MAX);
        if self.files == 0 || size > self.bytes {
            // What comes later must not come before it.
            self.files = 0;
            self.outlook.beyond += 1;
            return;
        }
        self.bytes -= size;
        self.files -= 1;
        let name = item.entry.name.clone();
        self.outlook.steps.push(Step::Fetch { parent, name, version, size: bytes });
    }
}

#[cfg(test)]
mod tests;
