//! What earlier processes left unsent, sent by this one.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::Vfs;
use super::attr::Version;
use super::compare::is_same;
use super::content::Delta;
use super::dircache::Item;
use super::error::{Error, Result};
use super::files::new_item;
use super::journal::{self, LeftBehind, damaged, left_behind};
use super::marks::{Leftover, Purpose, leftovers};
use super::names::conflict_name;
use super::policy::OnConflict;
use super::replace::{is_there, move_once, remove_if_possible};
use super::staging::{Staged, Traces, Urgency};
use super::tree::{Ino, ROOT};
use super::{Pending, lock};
use crate::ftp::{Look, RemotePath};

/// A file that an ended process left on the local disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOver {
    /// User, host and port; sent when that is mounted again. `None`: its note is damaged, so that
    /// nobody knows where it belongs.
    pub server: Option<String>,
    pub path: String,
    pub bytes: u64,
    /// All of it is in the local file, from the beginning on.
    pub is_whole: bool,
    pub local: PathBuf,
}

/// What lies in a staging directory and is nobody's.
pub fn left_over(staging_dir: &Path) -> Vec<LeftOver> {
    let describe = |found: LeftBehind| LeftOver {
        path: String::from_utf8_lossy(&found.note.path()).into_owned(),
        bytes: found.note.layout.length,
        is_whole: found.note.layout.missing().is_empty(),
        server: Some(found.note.server),
        local: found.path,
    };
    let nameless = |local: PathBuf| LeftOver {
        server: None,
        path: "(unknown)".into(),
        bytes: local.metadata().map_or(0, |about| about.len()),
        is_whole: false,
        local,
    };
    let known = left_behind(staging_dir).into_iter().map(describe);
    known.chain(damaged(staging_dir).into_iter().map(nameless)).collect()
}

/// It is not wanted any more: neither its bytes nor its note.
pub fn forget_left_over(local: &Path) -> std::io::Result<()> {
    journal::forget(local)
}

fn pending(found: &LeftBehind) -> Pending {
    Pending {
        path: String::from_utf8_lossy(&found.note.path()).into_owned(),
        bytes: found.note.layout.length,
        error: None,
        local: found.path.clone(),
    }
}

/// What becomes of a left-behind file, after a look at the server.
enum Fate {
    /// It had arrived, and only its process did not live to see it.
    Arrived,
    /// To be sent under its name, over this version, with these traces of an attempt before.
    Send(Option<Version>, Traces),
    /// Others changed what it was to replace.
    Conflict,
}

/// Files larger than this are compared with the server's in the background, so that a mount does
/// not wait: 16 MiB take a second at 128 Mbit/s.
const COMPARED_AT_ONCE: u64 = 16 * 1024 * 1024;

/// What an earlier mount left, taken up by this one.
#[derive(Debug, Default)]
pub struct TakenUp {
    /// Shown to programs already, and to be sent.
    staged: Vec<Ino>,
    /// To be compared with what the server has first.
    later: Vec<LeftBehind>,
    /// To be put away on the server.
    leftovers: Vec<Leftover>,
}

impl Vfs {
    /// Takes up what earlier mounts of this server left unsent, so that programs see it at once.
    /// For a mount that nobody uses yet; nothing is sent.
    pub fn take_up(&self) -> TakenUp {
        journal::sweep(&self.options.staging_dir);
        let server = self.pool.server_name();
        let mut taken = TakenUp::default();
        for leftover in leftovers(&self.options.staging_dir, &server) {
            if leftover.purpose == Purpose::Aside {
                // A file of the user's has its name back before anybody looks.
                self.put_away(leftover);
            } else {
                taken.leftovers.push(leftover);
            }
        }
        for found in left_behind(&self.options.staging_dir) {
            if found.note.server != server {
                continue;
            }
            if found.note.layout.length > COMPARED_AT_ONCE {
                lock(&self.taken_up).push(pending(&found));
                taken.later.push(found);
            } else if let Some(ino) = self.adopt_or_tell(found) {
                taken.staged.push(ino);
            }
        }
        taken
    }

    /// Sends what was taken up, and puts away files on the server. What somebody changed meanwhile
    /// is not overwritten. What fails stays, and is tried again.
    pub fn send_taken_up(&self, taken: TakenUp) {
        // First, so that nothing of them is left once everything is sent.
        for leftover in taken.leftovers {
            self.put_away(leftover);
        }
        for ino in taken.staged {
            self.send_adopted(ino);
        }
        for found in taken.later {
            let local = found.path.clone();
            let adopted = self.adopt_or_tell(found);
            lock(&self.taken_up).retain(|pending| pending.local != local);
            if let Some(ino) = adopted {
                self.send_adopted(ino);
            }
        }
    }

    /// Both at once.
    pub fn recover(&self) {
        self.send_taken_up(self.take_up());
    }

    fn adopt_or_tell(&self, found: LeftBehind) -> Option<Ino> {
        let path = String::from_utf8_lossy(&found.note.path()).into_owned();
        let local = found.path.clone();
        self.adopt(found).unwrap_or_else(|error| {
            log::error!(
                "{path}, unsent by an earlier mount, cannot be sent: {error}; it stays as {}",
                local.display()
            );
            None
        })
    }

    fn send_adopted(&self, ino: Ino) {
        let Some(staged) = self.handles.staged(ino) else { return };
        let path = self.path(ino).map_or_else(|_| "(removed)".into(), |path| path.to_string());
        match self.commit(ino, &staged, Urgency::Foreground) {
            Ok(()) => log::warn!("{path}, unsent by an earlier mount, is on the server now"),
            Err(error) => {
                log::error!("{path}, unsent by an earlier mount, could not be sent: {error}");
            }
        }
        drop(staged);
        self.unstage(ino);
    }

    /// What could not be put away on the server when its time had come, as the server was not there.
    pub(super) fn put_away_leftovers(&self) {
        for leftover in leftovers(&self.options.staging_dir, &self.pool.server_name()) {
            self.put_away(leftover);
        }
    }

    fn put_away(&self, leftover: Leftover) {
        if let Err(error) = self.try_to_put_away(leftover) {
            log::info!("a file of our own stays on the server: {error}");
        }
    }

    fn try_to_put_away(&self, leftover: Leftover) -> Result<()> {
        let Leftover { path, owner, purpose, .. } = &leftover;
        match purpose {
            Purpose::Scratch => remove_if_possible(&self.pool, path)?,
            // The name was free when the process ended: the old file goes back to it.
            Purpose::Aside if self.pool.look(owner)? == Look::Absent => {
                if move_once(&self.pool, path, owner)?.is_ok() {
                    log::warn!("{owner}, moved aside by an earlier mount, has its name again");
                }
            }
            Purpose::Aside => remove_if_possible(&self.pool, path)?,
        }
        leftover.strike();
        Ok(())
    }

    /// Its inode, staged; `None` where nothing is left to do.
    fn adopt(&self, found: LeftBehind) -> Result<Option<Ino>> {
        let path = RemotePath::parse(&found.note.path())?;
        let below = self.below_base(&path).ok_or(Error::NotFound)?;
        let (name, directories) = below.split_last().ok_or(Error::Invalid)?;
        let mut parent = ROOT;
        for directory in directories {
            let fresh = self.listing(parent, Instant::now())?;
            fresh.find(directory)?.ok_or(Error::NotFound)?;
            parent = self.tree().intern(parent, directory, 0);
        }
        let there = self.listing(parent, Instant::now())?.find(name)?;
        let mut name = name.clone();
        let (base, traces) = match self.fate(&path, &found, there.as_ref())? {
            Fate::Arrived => {
                journal::strike(&found.path);
                std::fs::remove_file(&found.path)?;
                return Ok(None);
            }
            Fate::Send(base, traces) => (base, traces),
            Fate::Conflict => match self.options.writing.on_conflict {
                OnConflict::Overwrite => (there.as_ref().map(Version::of), Traces::default()),
                OnConflict::Copy if found.note.layout.missing().is_empty() => {
                    name = conflict_name(&name, "unsent").into();
                    log::warn!("{path} was changed meanwhile: what was unsent is put beside it");
                    (None, Traces::default())
                }
                OnConflict::Copy | OnConflict::Error => {
                    return Err(Error::Stale("others changed it meanwhile".into()));
                }
            },
        };
        let ino = self.tree().intern(parent, &name, 0);
        self.stage_left_behind(parent, ino, &name, found, base, traces)?;
        Ok(Some(ino))
    }

    fn fate(&self, path: &RemotePath, found: &LeftBehind, there: Option<&Item>) -> Result<Fate> {
        let note = &found.note;
        let layout = &note.layout;
        let Some(item) = there else {
            // What only the server had is gone with it.
            let is_whole = layout.missing().is_empty();
            return Ok(if is_whole { Fate::Send(None, Traces::default()) } else { Fate::Conflict });
        };
        if let Some(from) = note.yields_to()
            && !is_there(&self.pool, &from)?
        {
            // Another file was renamed over what this was to replace.
            return Ok(Fate::Arrived);
        }
        let now = Version::of(item);
        let size = now.size.unwrap_or(u64::MAX);
        let is_same = |up_to: u64| {
            let here = layout.present.iter().filter(|range| range.start < up_to);
            let here = here.map(|range| range.start..range.end.min(up_to)).collect::<Vec<_>>();
            is_same(&self.pool, path, now, &found.file, &here)
        };
        if note.base().is_some_and(|base| base.agrees_with(&now)) {
            return Ok(Fate::Send(Some(now), Traces::default()));
        }
        if size == layout.length && is_same(size)? {
            return Ok(Fate::Arrived);
        }
        // An attempt in place was cut short: what is there is a part of ours.
        if !note.may_be_partly_there {
            return Ok(Fate::Conflict);
        }
        let partly = Traces { may_be_partly_there: true, appended_from: None };
        Ok(match (note.base(), layout.delta()) {
            (None, _) if size <= layout.length && is_same(size)? => Fate::Send(None, partly),
            (Some(_), Delta::Append { from }) if size > from && size <= layout.length => {
                if is_same(size)? {
                    let traces = Traces { may_be_partly_there: false, appended_from: Some(from) };
                    Fate::Send(Some(now), traces)
                } else {
                    Fate::Conflict
                }
            }
            (Some(_), Delta::Patch(_)) if size <= layout.length => Fate::Send(Some(now), partly),
            _ => Fate::Conflict,
        })
    }

    fn stage_left_behind(
        &self,
        parent: Ino,
        ino: Ino,
        name: &[u8],
        found: LeftBehind,
        base: Option<Version>,
        traces: Traces,
    ) -> Result<()> {
        if self.handles.staged(ino).is_some() {
            return Err(Error::Io("a program writes to it now".into()));
        }
        let mode = found.note.mode.unwrap_or(0o644);
        let length = found.note.layout.length;
        let staged = Staged::of_left_behind(&self.room, found, base, traces)?;
        if base.is_none() {
            let mut item = new_item(name, mode);
            item.entry.size = Some(length);
            self.cache.put(parent, item);
        }
        let mut mine = Some(staged);
        let shared = self.handles.stage(ino, || mine.take().ok_or(Error::Invalid))?;
        if mine.is_some() {
            return Err(Error::Io("a program writes to it now".into()));
        }
        shared.own_file();
        drop(shared);
        // Nobody has it open: its unsent bytes hold its name.
        self.unstage(ino);
        Ok(())
    }

    /// The names from the mount's root on.
    fn below_base(&self, path: &RemotePath) -> Option<Vec<Box<[u8]>>> {
        let mut rest = path.components();
        for component in self.base.components() {
            if rest.next()? != component {
                return None;
            }
        }
        Some(rest.map(Into::into).collect())
    }
}
