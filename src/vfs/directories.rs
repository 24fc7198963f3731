//! Open directories.

use std::time::{Duration, Instant};

use super::attr::Attr;
use super::error::Result;
use super::handles::OpenDirectory;
use super::tree::{Ino, ROOT};
use super::{Vfs, overlaid};

/// One entry of an open directory.
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    pub name: &'a [u8],
    pub attr: Attr,
    /// The offset of the entry after this one.
    pub next: u64,
    /// How long the attributes may be believed.
    pub valid: Duration,
}

impl Vfs {
    /// Opens a directory: what it holds now.
    pub fn opendir(&self, ino: Ino) -> Result<u64> {
        let fresh = self.listing_or_aged(ino, Instant::now())?;
        self.tree().pin(ino);
        self.prefetch.entered(ino, &fresh.listing);
        let directory = OpenDirectory { ino, listing: fresh.listing };
        Ok(self.handles.open_directory(directory))
    }

    /// Gives the entries from `offset` on to `take` until it has no more room (false). The first
    /// two are `.` and `..`. With `count_lookups` each entry taken counts as a look-up.
    pub fn readdir(
        &self,
        fh: u64,
        offset: u64,
        count_lookups: bool,
        mut take: impl FnMut(DirEntry<'_>) -> bool,
    ) -> Result<()> {
        let directory = self.handles.directory(fh)?;
        // One look at what is being written, before the one at the listing: what is sent in between
        // is in the listing then.
        let views = self.handles.views();
        let _names = self.names.look();
        // The kernel keeps what it is told here: that must not be older than what was changed since
        // the directory was opened.
        let (newer, until) = self.cache.newer_than(directory.ino, &directory.listing);
        let valid =
            until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()));
        let this = self.ownership.root(directory.ino, self.mounted);
        let parent = self.place(directory.ino).map_or(ROOT, |(parent, _)| parent);
        let above = Attr { ino: parent, ..this };
        for (index, (name, attr)) in [(&b"."[..], this), (b"..", above)].into_iter().enumerate() {
            let next = index as u64 + 1;
            if offset < next && !take(DirEntry { name, attr, next, valid: Duration::ZERO }) {
                return Ok(());
            }
        }
        let skip = usize::try_from(offset.saturating_sub(2)).unwrap_or(usize::MAX);
        // One lock of the tree for all that one reply takes: `take` only copies.
        let mut tree = self.tree();
        for (index, (name, shown)) in directory.listing.rows(skip).enumerate() {
            let shown = match &newer {
                None => shown,
                Some(newer) => match newer.shown(name) {
                    Some(shown) => shown,
                    // Removed or renamed since.
                    None => continue,
                },
            };
            let ino = tree.intern(directory.ino, name, u64::from(count_lookups));
            let attr = overlaid(self.ownership.attr(ino, &shown), views.get(&ino));
            let next = (skip + index) as u64 + 3;
            if !take(DirEntry { name, attr, next, valid }) {
                let is_gone = count_lookups && tree.forget(ino, 1);
                drop(tree);
                if is_gone {
                    self.cache.forget(ino);
                }
                return Ok(());
            }
        }
        Ok(())
    }

    /// Ends a directory handle.
    pub fn releasedir(&self, fh: u64) {
        if let Some(closed) = self.handles.close(fh) {
            self.unpin(closed.ino);
        }
    }
}
