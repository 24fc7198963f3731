//! `ftpfs refresh`: the next look asks the server, whatever the TTL says.
//!
//! Tells what the kernel should forget, and never talks to it.

use std::sync::Mutex;
use std::time::Instant;

use lru::LruCache;

use super::error::{Error, Result};
use super::tree::{Ino, ROOT};
use super::{Vfs, lock};
use crate::ftp::{self, Kind};

/// How much is refreshed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refresh {
    /// One file, or one directory with the names in it.
    One,
    /// Also all that is known below it.
    Below,
}

/// Something that the kernel may remember and should not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outdated {
    Attributes(Ino),
    /// The name, or its absence.
    Name(Ino, Box<[u8]>),
}

/// The most absent names remembered, some 100 bytes each: what is beyond ends with the TTL.
const MOST_ABSENT: usize = 4096;

/// A name in a directory.
type Name = (Ino, Box<[u8]>);

/// Names of which the kernel was told that they are absent. One leaf lock.
#[derive(Debug)]
pub(super) struct Absent {
    names: Mutex<LruCache<Name, ()>>,
}

impl Default for Absent {
    fn default() -> Self {
        Self { names: Mutex::new(LruCache::unbounded()) }
    }
}

impl Absent {
    pub(super) fn note(&self, parent: Ino, name: &[u8]) {
        let mut names = lock(&self.names);
        names.put((parent, name.into()), ());
        if names.len() > MOST_ABSENT {
            names.pop_lru();
        }
    }

    /// Those in some directories, for the last time.
    fn take(&self, is_in: impl Fn(Ino) -> bool) -> Vec<Outdated> {
        let mut names = lock(&self.names);
        let found: Vec<_> = names
            .iter()
            .map(|(key, ())| key)
            .filter(|(parent, _)| is_in(*parent))
            .cloned()
            .collect();
        for key in &found {
            names.pop(key);
        }
        found.into_iter().map(|(parent, name)| Outdated::Name(parent, name)).collect()
    }
}

impl Vfs {
    /// The next look at `path`, which is relative to the mount, asks the server. What the kernel
    /// should forget is put into `outdated`, also if this fails half-way.
    pub fn refresh(&self, path: &[u8], how: Refresh, outdated: &mut Vec<Outdated>) -> Result<()> {
        // Held, so that nothing on the way is forgotten meanwhile.
        let mut held = Vec::new();
        let result = self.walk(path, &mut held, outdated).map(|(ino, kind)| {
            self.expire_names(ino, kind, how, outdated);
        });
        for ino in held {
            self.forget(ino, 1);
        }
        result
    }

    /// The inode of a path. On the way only the last directory is asked anew, and others where a
    /// name is not in what is known of them.
    pub(super) fn walk(
        &self,
        path: &[u8],
        held: &mut Vec<Ino>,
        outdated: &mut Vec<Outdated>,
    ) -> Result<(Ino, Kind)> {
        let (mut at, mut kind) = (ROOT, Kind::Directory);
        let mut names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).peekable();
        while let Some(name) = names.next() {
            ftp::check_name(name)?;
            if kind != Kind::Directory {
                return Err(Error::NotADirectory);
            }
            let known = self.cache.known(at).and_then(|listing| listing.shown(name));
            let is_last = names.peek().is_none();
            if is_last || known.is_none() {
                self.cache.refresh(at);
                outdated.push(Outdated::Attributes(at));
                outdated.extend(self.outdated_name(at, name));
            }
            let fresh = self.listing(at, Instant::now())?;
            kind = fresh.shown(name)?.ok_or(Error::NotFound)?.kind;
            at = self.tree().intern(at, name, 1);
            held.push(at);
        }
        Ok((at, kind))
    }

    /// What the kernel should forget of one name. A directory, or what may be one, stays linked: a
    /// shell may stand in it. So does a file that somebody has open.
    fn outdated_name(&self, parent: Ino, name: &[u8]) -> Vec<Outdated> {
        let by_name = Outdated::Name(parent, name.into());
        let Some(ino) = self.tree().find(parent, name) else { return vec![by_name] };
        let shown = self.cache.known(parent).and_then(|listing| listing.shown(name));
        let is_file = shown.is_some_and(|shown| shown.kind != Kind::Directory);
        if is_file && !self.handles.is_open(ino) {
            vec![Outdated::Attributes(ino), by_name]
        } else {
            vec![Outdated::Attributes(ino)]
        }
    }

    /// The listings of a directory and of all that is known below it.
    fn expire_names(&self, ino: Ino, kind: Kind, how: Refresh, outdated: &mut Vec<Outdated>) {
        if kind != Kind::Directory {
            return;
        }
        let below = match how {
            Refresh::One => self.tree().children(ino),
            Refresh::Below => self.tree().all_below(ino),
        };
        outdated.push(Outdated::Attributes(ino));
        // What the names are is known only until their listings are dropped.
        for node in &below {
            if let Some((parent, name)) = self.place(*node) {
                outdated.extend(self.outdated_name(parent, &name));
            }
        }
        self.cache.refresh(ino);
        match how {
            Refresh::One => outdated.extend(self.absent.take(|parent| parent == ino)),
            Refresh::Below => {
                below.iter().for_each(|node| self.cache.refresh(*node));
                let directories: std::collections::HashSet<_> =
                    below.into_iter().chain([ino]).collect();
                outdated.extend(self.absent.take(|parent| directories.contains(&parent)));
            }
        }
    }
}
