//! What one directory holds: entries as the server tells them, and what we know better.
//!
//! A listing is sorted and cut into chunks that are never changed: a change writes one chunk anew
//! and shares the others, so that a file made in a folder of 100,000 costs the same few
//! microseconds whether somebody holds the old listing or not.

use std::sync::Arc;

use super::attr::Shown;
use crate::ftp::{Entries, Entry, Kind, Precision, Timestamp};

/// Entries in a chunk after a load. A change copies one chunk (256 × 60 bytes: 15 KiB) and the
/// list of chunks (100,000 / 256 × 8 bytes: 3 KiB).
const CHUNK: usize = 256;

/// A chunk that has grown beyond this is halved.
const MOST_IN_CHUNK: usize = 2 * CHUNK;

/// One name in a directory: what the server says, and what we know better.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) entry: Entry,
    /// What a program set and the server cannot keep; boxed, as few entries have it.
    local: Option<Box<Local>>,
    /// The time is the one of our clock after an upload; the server's is not known yet.
    pub(crate) is_guess: bool,
    /// Created through the mount and not yet on the server.
    pub(crate) is_unsent: bool,
}

/// Attributes remembered for the life of the mount, each with what the server showed then: when
/// that changes, somebody else changed the file, and the memory ends.
#[derive(Clone, Debug, Default)]
struct Local {
    mtime: Option<(Timestamp, Option<Timestamp>)>,
    mode: Option<(u16, Option<u16>)>,
}

impl Item {
    pub(crate) fn new(entry: Entry) -> Self {
        Self { entry, local: None, is_guess: false, is_unsent: false }
    }

    pub(crate) fn shown_mtime(&self) -> Option<Timestamp> {
        let local = self.local.as_ref().and_then(|local| local.mtime);
        local.map(|(shown, _)| shown).or(self.entry.mtime)
    }

    /// What `stat` shows. A symbolic link is as long as its target (POSIX lstat); programs size
    /// buffers by it.
    pub(crate) fn shown(&self) -> Shown {
        let size = match &self.entry.target {
            Some(target) if self.entry.kind == Kind::Symlink => Some(target.len() as u64),
            _ => self.entry.size,
        };
        let kind = self.entry.kind;
        Shown { kind, size, mtime: self.shown_mtime(), mode: self.shown_mode() }
    }

    pub(crate) fn shown_mode(&self) -> Option<u16> {
        let local = self.local.as_ref().and_then(|local| local.mode);
        local.map(|(shown, _)| shown).or(self.entry.mode)
    }

    /// The server has this time now.
    pub(crate) fn set_mtime(&mut self, time: Timestamp) {
        self.entry.mtime = Some(time);
        self.is_guess = false;
        if let Some(local) = &mut self.local {
            local.mtime = None;
        }
    }

    /// The server cannot be told the time.
    pub(crate) fn remember_mtime(&mut self, time: Timestamp) {
        // A guess is not what the server shows: whatever it shows first is taken for it.
        let theirs = if self.is_guess { None } else { self.entry.mtime };
        self.local.get_or_insert_default().mtime = Some((time, theirs));
    }

    pub(crate) fn set_mode(&mut self, mode: u16) {
        self.entry.mode = Some(mode);
        if let Some(local) = &mut self.local {
            local.mode = None;
        }
    }

    pub(crate) fn remember_mode(&mut self, mode: u16) {
        self.local.get_or_insert_default().mode = Some((mode, self.entry.mode));
    }

    /// Takes over what the older item knew better.
    fn inherit(&mut self, older: &Self) {
        if older.entry.kind != self.entry.kind || older.entry.size != self.entry.size {
            return;
        }
        if let (Some(old), Some(new)) = (older.entry.mtime, self.entry.mtime)
            && new.precision != Precision::Second
            && old.precision == Precision::Second
            && old.agrees_with(&new)
        {
            // LIST tells minutes or days; MDTM, or our own MFMT, had told the second.
            self.entry.mtime = Some(old);
            self.is_guess = older.is_guess;
        }
        let Some(local) = &older.local else { return };
        let mut local = local.clone();
        if let Some((_, theirs)) = &mut local.mtime {
            match theirs {
                None => *theirs = self.entry.mtime,
                Some(theirs) if Some(*theirs) == self.entry.mtime => {}
                Some(_) => local.mtime = None,
            }
        }
        if local.mode.is_some_and(|(_, theirs)| theirs.is_some() && theirs != self.entry.mode) {
            local.mode = None;
        }
        self.local = Some(local);
    }
}

/// What we know of an entry beyond the server's word; few entries have it.
#[derive(Clone, Debug)]
struct Extra {
    local: Option<Box<Local>>,
    is_guess: bool,
    is_unsent: bool,
}

/// A part of a listing.
#[derive(Debug, Default)]
struct Chunk {
    entries: Entries,
    /// By index, sorted.
    extras: Vec<(u16, Extra)>,
}

impl Chunk {
    fn extra(&self, index: usize) -> Option<&Extra> {
        let index = u16::try_from(index).ok()?;
        let at = self.extras.binary_search_by_key(&index, |(index, _)| *index).ok()?;
        self.extras.get(at).map(|(_, extra)| extra)
    }

    fn item(&self, index: usize) -> Option<Item> {
        let entry = self.entries.get(index)?;
        Some(match self.extra(index) {
            None => Item::new(entry),
            Some(Extra { local, is_guess, is_unsent }) => {
                Item { entry, local: local.clone(), is_guess: *is_guess, is_unsent: *is_unsent }
            }
        })
    }

    fn shown(&self, index: usize) -> Option<Shown> {
        let mut shown = self.entries.brief(index)?;
        if let Some(local) = self.extra(index).and_then(|extra| extra.local.as_ref()) {
            shown.mtime = local.mtime.map(|(time, _)| time).or(shown.mtime);
            shown.mode = local.mode.map(|(mode, _)| mode).or(shown.mode);
        }
        Some(shown)
    }

    fn push(&mut self, item: Item) {
        let Item { entry, local, is_guess, is_unsent } = item;
        // Refused are only entries longer than a line, which neither a line nor a path can bring.
        if self.entries.push(&entry) && (local.is_some() || is_guess || is_unsent) {
            let index = u16::try_from(self.entries.len() - 1).unwrap_or(u16::MAX);
            self.extras.push((index, Extra { local, is_guess, is_unsent }));
        }
    }

    fn push_from(&mut self, others: &Self, index: usize) {
        self.entries.push_from(&others.entries, index);
        if let Some(extra) = others.extra(index) {
            let index = u16::try_from(self.entries.len().saturating_sub(1)).unwrap_or(u16::MAX);
            self.extras.push((index, extra.clone()));
        }
    }

    fn position(&self, name: &[u8]) -> std::result::Result<usize, usize> {
        let (mut low, mut high) = (0, self.entries.len());
        while low < high {
            let middle = low.midpoint(high);
            match self.entries.name(middle).cmp(name) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Ok(middle),
            }
        }
        Err(low)
    }
}

/// A directory's entries, sorted by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Listing {
    /// None is empty.
    chunks: Vec<Arc<Chunk>>,
    length: usize,
}

/// Puts a listing together, in the order of names.
#[derive(Default)]
struct Builder {
    listing: Listing,
    chunk: Chunk,
}

impl Builder {
    fn room(&mut self) -> &mut Chunk {
        if self.chunk.entries.len() >= CHUNK {
            self.close();
        }
        self.listing.length += 1;
        &mut self.chunk
    }

    fn close(&mut self) {
        let mut chunk = std::mem::take(&mut self.chunk);
        if !chunk.entries.is_empty() {
            chunk.entries.shrink();
            chunk.extras.shrink_to_fit();
            self.listing.chunks.push(Arc::new(chunk));
        }
    }

    fn finish(mut self) -> Listing {
        self.close();
        self.listing
    }
}

impl Listing {
    /// Of two entries with one name (a server that lists a directory twice) the first stays.
    #[cfg(test)]
    pub(crate) fn new(entries: &Entries) -> Self {
        Self::after(entries, &Self::default())
    }

    /// A new listing, with whatever the older one knew better and what is not on the server yet.
    pub(crate) fn after(entries: &Entries, older: &Self) -> Self {
        let mut order: Vec<u32> = (0..u32::try_from(entries.len()).unwrap_or(u32::MAX)).collect();
        let name = |index: &u32| entries.name(*index as usize);
        // Stable, so that of equal names the first comes first; servers that sort cost one pass.
        order.sort_by(|a, b| name(a).cmp(name(b)));
        order.dedup_by(|later, earlier| name(later) == name(earlier));
        let mut built = Builder::default();
        let mut olds = older.places().peekable();
        for index in order.iter().map(|index| *index as usize) {
            let name = entries.name(index);
            while let Some((chunk, at)) = olds.next_if(|(chunk, at)| chunk.entries.name(*at) < name)
            {
                keep_unsent(&mut built, chunk, at);
            }
            let old = olds.next_if(|(chunk, at)| chunk.entries.name(*at) == name);
            let knows_better = old.is_some_and(|(chunk, at)| {
                chunk.extra(at).is_some()
                    || is_exact(&chunk.entries, at) && !is_exact(entries, index)
            });
            if let (true, Some((chunk, at))) = (knows_better, old)
                && let (Some(entry), Some(old)) = (entries.get(index), chunk.item(at))
            {
                let mut item = Item::new(entry);
                item.inherit(&old);
                built.room().push(item);
            } else {
                built.room().entries.push_from(entries, index);
            }
        }
        for (chunk, at) in olds {
            keep_unsent(&mut built, chunk, at);
        }
        built.finish()
    }

    pub(crate) fn len(&self) -> usize {
        self.length
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0
    }

    pub(crate) fn get(&self, name: &[u8]) -> Option<Item> {
        let (chunk, at) = self.place(name)?;
        chunk.item(at)
    }

    /// What `stat` shows of a name.
    pub(crate) fn shown(&self, name: &[u8]) -> Option<Shown> {
        let (chunk, at) = self.place(name)?;
        chunk.shown(at)
    }

    /// All of it, in the order of names; each made when it is asked for.
    #[cfg(test)]
    pub(crate) fn items(&self) -> impl Iterator<Item = Item> {
        self.places().filter_map(|(chunk, at)| chunk.item(at))
    }

    /// The index of a name.
    pub(crate) fn position(&self, name: &[u8]) -> Option<usize> {
        let number = self.chunk_of(name);
        let at = self.chunks.get(number)?.position(name).ok()?;
        let before = self.chunks.get(..number)?.iter().map(|chunk| chunk.entries.len());
        Some(before.sum::<usize>() + at)
    }

    /// Each made when it is asked for, from an index on.
    pub(crate) fn items_from(&self, from: usize) -> impl Iterator<Item = Item> {
        self.places_from(from).filter_map(|(chunk, at)| chunk.item(at))
    }

    /// Names, and what `stat` shows of them, from an index on.
    pub(crate) fn rows(&self, from: usize) -> impl Iterator<Item = (&[u8], Shown)> {
        let places = self.places_from(from);
        places.filter_map(|(chunk, at)| Some((chunk.entries.name(at), chunk.shown(at)?)))
    }

    fn places_from(&self, from: usize) -> impl Iterator<Item = (&Chunk, usize)> {
        let mut skip = from;
        let mut first = 0;
        while let Some(chunk) = self.chunks.get(first)
            && chunk.entries.len() <= skip
        {
            skip -= chunk.entries.len();
            first += 1;
        }
        let chunks = self.chunks.get(first..).unwrap_or_default().iter();
        let places =
            chunks.flat_map(|chunk| (0..chunk.entries.len()).map(move |at| (&**chunk, at)));
        places.skip(skip)
    }

    fn places(&self) -> impl Iterator<Item = (&Chunk, usize)> {
        self.chunks.iter().flat_map(|chunk| (0..chunk.entries.len()).map(move |at| (&**chunk, at)))
    }

    fn place(&self, name: &[u8]) -> Option<(&Chunk, usize)> {
        let chunk = self.chunks.get(self.chunk_of(name))?;
        Some((chunk, chunk.position(name).ok()?))
    }

    /// The chunk in which a name is, or would be.
    fn chunk_of(&self, name: &[u8]) -> usize {
        self.chunks.partition_point(|chunk| chunk.entries.name(0) <= name).saturating_sub(1)
    }

    fn put(&mut self, item: Item) {
        let number = self.chunk_of(&item.entry.name);
        let empty = Chunk::default();
        let old = self.chunks.get(number).map_or(&empty, |chunk| chunk);
        let (at, after) = match old.position(&item.entry.name) {
            Ok(at) => (at, at + 1),
            Err(at) => (at, at),
        };
        let grown = old.entries.len() + 1 - (after - at);
        // Where it is halved, if at all.
        let half = if grown > MOST_IN_CHUNK { grown / 2 } else { grown };
        let mut new = [Chunk::default(), Chunk::default()];
        let mut item = Some(item);
        for index in 0..grown {
            let [first, second] = &mut new;
            let chunk = if index < half { first } else { second };
            match index.cmp(&at) {
                std::cmp::Ordering::Less => chunk.push_from(old, index),
                std::cmp::Ordering::Equal => {
                    if let Some(item) = item.take() {
                        chunk.push(item);
                    }
                }
                std::cmp::Ordering::Greater => chunk.push_from(old, index - 1 + (after - at)),
            }
        }
        self.length = self.length + 1 - (after - at);
        let new = new.into_iter().filter(|chunk| !chunk.entries.is_empty()).map(Arc::new);
        self.chunks.splice(number..(number + 1).min(self.chunks.len()), new);
    }

    fn remove(&mut self, name: &[u8]) {
        let number = self.chunk_of(name);
        let Some(old) = self.chunks.get(number) else { return };
        let Ok(at) = old.position(name) else { return };
        let mut new = Chunk::default();
        for index in (0..old.entries.len()).filter(|index| *index != at) {
            new.push_from(old, index);
        }
        self.length -= 1;
        let new = Some(new).filter(|chunk| !chunk.entries.is_empty()).map(Arc::new);
        self.chunks.splice(number..=number, new);
    }

    pub(crate) fn apply(&mut self, change: Change) {
        match change {
            Change::Put(item) => self.put(item),
            Change::Remove(name) => self.remove(&name),
        }
    }

    pub(crate) fn has_unsent(&self) -> bool {
        self.chunks.iter().any(|chunk| chunk.extras.iter().any(|(_, extra)| extra.is_unsent))
    }
}

/// An older entry that the new listing does not have stays only if just we know of it.
fn keep_unsent(built: &mut Builder, chunk: &Chunk, at: usize) {
    if chunk.extra(at).is_some_and(|extra| extra.is_unsent) {
        built.room().push_from(chunk, at);
    }
}

/// Is the time told to the second?
fn is_exact(entries: &Entries, index: usize) -> bool {
    let time = entries.brief(index).and_then(|brief| brief.mtime);
    time.is_some_and(|time| time.precision == Precision::Second)
}

/// A change made through the mount.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Put(Item),
    Remove(Box<[u8]>),
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn item(name: &str, size: u64) -> Item {
        Item::new(Entry {
            name: name.as_bytes().into(),
            kind: Kind::File,
            size: Some(size),
            mtime: None,
            mode: None,
            target: None,
            facts: None,
        })
    }

    proptest! {
        /// Whatever is put and removed, over chunks of all sizes: as a sorted map has it.
        #[test]
        fn a_listing_is_a_sorted_map(
            start in 0..1500_u32,
            ops in proptest::collection::vec((0..2000_u32, 0..3_u8), 0..600),
        ) {
            let mut model = BTreeMap::new();
            let mut entries = Entries::default();
            for number in 0..start {
                let item = item(&format!("{number:04}"), 1);
                prop_assert!(entries.push(&item.entry));
                model.insert(format!("{number:04}"), (1, false));
            }
            let mut listing = Listing::new(&entries);
            for (at, (number, op)) in ops.into_iter().enumerate() {
                let name = format!("{number:04}");
                if op == 0 {
                    listing.apply(Change::Remove(name.as_bytes().into()));
                    model.remove(&name);
                } else {
                    let mut item = item(&name, at as u64);
                    item.is_unsent = op == 1;
                    listing.apply(Change::Put(item));
                    model.insert(name, (at as u64, op == 1));
                }
            }
            prop_assert_eq!(listing.len(), model.len());
            let found: Vec<_> = listing
                .items()
                .map(|item| {
                    let name = String::from_utf8(item.entry.name.to_vec()).unwrap();
                    (name, (item.entry.size.unwrap(), item.is_unsent))
                })
                .collect();
            let expected: Vec<_> = model.clone().into_iter().collect();
            prop_assert_eq!(&found, &expected);
            for (name, (size, _)) in &model {
                prop_assert_eq!(listing.get(name.as_bytes()).unwrap().entry.size, Some(*size));
            }
            for from in [0, 1, model.len() / 2, model.len(), model.len() + 1] {
                let names: Vec<_> = listing.rows(from).map(|(name, _)| name.to_vec()).collect();
                let expected: Vec<_> =
                    model.keys().skip(from).map(|name| name.as_bytes().to_vec()).collect();
                prop_assert_eq!(names, expected);
            }
        }
    }

    #[test]
    fn a_change_leaves_those_alone_who_hold_the_old_listing() {
        let mut entries = Entries::default();
        for number in 0..1000 {
            assert!(entries.push(&item(&format!("{number:04}"), 1).entry));
        }
        let old = Listing::new(&entries);
        let mut new = old.clone();
        new.apply(Change::Put(item("0500x", 2)));
        new.apply(Change::Remove(b"0000"[..].into()));
        assert_eq!((old.len(), new.len()), (1000, 1000));
        assert!(old.get(b"0500x").is_none() && old.get(b"0000").is_some());
        let shared = new.chunks.iter().filter(|new| old.chunks.iter().any(|o| Arc::ptr_eq(o, new)));
        assert_eq!(shared.count(), 2, "of four chunks, two were written anew");
    }
}
