//! `ftpfs pin`: contents that are wholly in the cache on the disk, and stay there.

use std::io;
use std::ops::ControlFlow;
use std::time::Instant;

use super::blocks::{Blocks, now_millis};
use super::error::{Error, Result};
use super::handles::Access;
use super::tree::Ino;
use super::{Vfs, lock};
use crate::ftp::Kind;

/// How much is fetched at a time: what the kernel asks for at most.
const STEP: u64 = 1024 * 1024;

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pinning {
    /// Files that are here.
    pub files: usize,
    /// Bytes that are here, fetched now or before.
    pub bytes: u64,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pinned {
    pub here: Pinning,
    /// Files that cannot be kept now.
    pub left_out: usize,
    /// The first of them, and why.
    pub first: Option<(String, String)>,
}

/// One pinning.
struct Run<'a> {
    blocks: &'a Blocks,
    pinned: Pinned,
    /// Names that are not to be forgotten.
    held: &'a mut Vec<Ino>,
    told: &'a dyn Fn(Pinning) -> ControlFlow<()>,
}

/// What became of one file.
enum Outcome {
    Here,
    /// Nothing can be kept of it, for this reason.
    LeftOut(&'static str),
}

impl Vfs {
    /// Keeps a file, or all files below a directory, and fetches what is not here yet. `path` is
    /// relative to the mount; `told` hears how far it is,
    /// and may end it.
    pub fn pin(&self, path: &[u8], told: &dyn Fn(Pinning) -> ControlFlow<()>) -> Result<Pinned> {
        let blocks = self.require_cache()?;
        // Held as long as it is pinned, with all directories below: without their names the
        // listings would go, and without those nothing is found while the server is away.
        let mut held = Vec::new();
        let result = self.walk(path, &mut held, &mut Vec::new()).and_then(|(ino, kind)| {
            let place = self.path(ino)?;
            // Before anything is fetched, so that nothing of it goes again.
            blocks.pin(&place)?;
            let mut run = Run { blocks, pinned: Pinned::default(), held: &mut held, told };
            self.pin_below(&mut run, ino, kind)?;
            Ok((place, run.pinned))
        });
        let (place, pinned) = match result {
            Ok((place, pinned)) => (Some(place), Ok(pinned)),
            Err(error) => (None, Err(error)),
        };
        let no_longer = match place {
            Some(place) => lock(&self.pinned).insert(place, held).unwrap_or_default(),
            None => held,
        };
        no_longer.into_iter().for_each(|ino| self.forget(ino, 1));
        pinned
    }

    /// What was pinned may go again. Nothing is asked of the server.
    pub fn unpin_path(&self, path: &[u8]) -> Result<()> {
        let blocks = self.require_cache()?;
        let mut pinned = self.base.clone();
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            pinned = pinned.join(name)?;
        }
        let was_there = blocks.unpin(&pinned)?;
        let no_longer = lock(&self.pinned).remove(&pinned).unwrap_or_default();
        no_longer.into_iter().for_each(|ino| self.forget(ino, 1));
        if was_there { Ok(()) } else { Err(Error::NotFound) }
    }

    fn require_cache(&self) -> Result<&Blocks> {
        self.blocks.as_deref().ok_or(Error::Unsupported)
    }

    /// Folder by folder, so that no depth is too deep.
    fn pin_below(&self, run: &mut Run<'_>, ino: Ino, kind: Kind) -> Result<()> {
        let mut left = vec![(ino, kind)];
        while let Some((ino, kind)) = left.pop() {
            match kind {
                Kind::File => self.pin_file(run, ino)?,
                // A link leads to what is pinned or not by itself.
                Kind::Symlink | Kind::Special => {}
                Kind::Directory => {
                    let fresh = self.listing(ino, Instant::now())?;
                    for (name, shown) in fresh.listing.rows(0) {
                        let child = self.tree().intern(ino, name, 1);
                        if shown.kind == Kind::Directory {
                            run.held.push(child);
                            left.push((child, shown.kind));
                            continue;
                        }
                        let done = match shown.kind {
                            Kind::File => self.pin_file(run, child),
                            _ => Ok(()),
                        };
                        self.forget(child, 1);
                        done?;
                    }
                }
            }
        }
        Ok(())
    }

    fn pin_file(&self, run: &mut Run<'_>, ino: Ino) -> Result<()> {
        let Run { blocks, pinned, told, .. } = run;
        let access = Access { read: true, write: false, append: false };
        let before = pinned.here;
        let opened = match self.open(ino, access, false) {
            Ok(opened) => opened,
            // Somebody was faster.
            Err(Error::NotFound) => return Ok(()),
            Err(error) => return Err(error),
        };
        let fetched = self.fetch_whole(blocks, opened.fh, &mut |bytes| {
            pinned.here.bytes += bytes;
            told(pinned.here)
        });
        self.release(opened.fh);
        let why = match fetched {
            Ok(Outcome::Here) => {
                pinned.here.files += 1;
                return if told(pinned.here).is_break() { Err(given_up()) } else { Ok(()) };
            }
            Ok(Outcome::LeftOut(why)) => why.to_owned(),
            Err(error @ (Error::Denied(_) | Error::Stale(_))) => error.to_string(),
            Err(error) => return Err(error),
        };
        pinned.here = before;
        pinned.left_out += 1;
        let path = self.path(ino).map_or_else(|_| String::new(), |path| path.to_string());
        pinned.first.get_or_insert((path, why));
        Ok(())
    }

    /// Puts all blocks of an open file into the cache, and has the server prove them.
    fn fetch_whole(
        &self,
        blocks: &Blocks,
        fh: u64,
        came: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<Outcome> {
        let file = self.handles.file(fh)?;
        if self.handles.staged(file.ino).is_some_and(|staged| staged.is_dirty()) {
            return Ok(Outcome::LeftOut("it is not on the server yet"));
        }
        let Some(cached) = &file.cached else {
            let why = "its size or time is not known, or it changed a moment ago: the cache cannot \
                       tell such a version from the next one";
            return Ok(Outcome::LeftOut(why));
        };
        let path = self.path(file.ino)?;
        let here = cached.file();
        let layout = here.layout();
        let ahead = self.read_ahead_of(&file);
        let mut reader = file.reader.lock();
        let mut at = 0;
        while at < layout.size {
            let span = layout.span(at, usize::try_from(STEP).unwrap_or(usize::MAX));
            let end = layout.range(span.end.saturating_sub(1)).end;
            // Read, not only looked up: one that is damaged is fetched again.
            let found = here.read(span.clone(), blocks.buffers().take());
            if let Some(found) = found {
                blocks.buffers().give_back(found.bytes);
            } else {
                let wanted = usize::try_from(end - at).unwrap_or(usize::MAX);
                let from = usize::try_from(at).unwrap_or(usize::MAX);
                let part = || ahead?.get(from..from.saturating_add(wanted));
                let bytes = match part() {
                    Some(bytes) => bytes,
                    None => reader.read(&self.pool, &path, fh, at, wanted)?,
                };
                if bytes.len() != wanted {
                    return Err(Error::Stale(format!("{path} became shorter while it was read")));
                }
                if !blocks.keep_now(here, span.start, bytes)? {
                    return Err(full());
                }
            }
            if came(end - at).is_break() {
                return Err(given_up());
            }
            at = end;
        }
        let now = now_millis();
        if !reader.prove(&self.pool, &path)? {
            let why = "the server does not tell size and time of one file, so nothing proves it";
            return Ok(Outcome::LeftOut(why));
        }
        here.prove(now.saturating_add(1));
        Ok(Outcome::Here)
    }
}

fn given_up() -> Error {
    Error::Io("given up".into())
}

fn full() -> Error {
    Error::Local(io::Error::from_raw_os_error(libc::ENOSPC))
}
