//! Reads a file over downloads, carrying out the windows' plan.
//!
//! A download is taken from the pool at the start of a read and parked there at its end, one for
//! each window. All bytes that one reader gives out belong to one version of the file: before a
//! second transfer is opened the server is asked whether the file is still the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::attr::Version;
use super::error::{Error, Result};
use super::streams::{Pace, Proof, Rules, Streams};
use super::window::{MOST, Plan, TAIL, Window, plan};
use crate::ftp::{self, Checked, Download, Look, Pool, RemotePath, Timestamp};

/// How often a read that lost its connection is taken up again where it stopped.
const TRIES: usize = 3;

/// The bits of a key that name the window; the handle is in those below, which count from 1.
const WINDOW_SHIFT: u32 = 56;

/// What all readers hold together, in bytes.
pub(crate) type Memory = Arc<AtomicUsize>;

/// The reading side of one open file.
#[derive(Debug)]
pub(crate) struct Reader {
    version: Version,
    /// The same before the last read: what that learnt may be of another file.
    before: Version,
    windows: Vec<Window>,
    /// Counts reads, so that it is known which window was used last.
    uses: u64,
    /// A transfer was opened before, so another one must bring the same version.
    was_opened: bool,
    /// One was opened for the last read, or several brought what was read.
    has_opened: bool,
    /// Every byte given out so far came over one transfer from the file's beginning.
    is_one_stretch: bool,
    /// Data that end here need no further proof: the size as listed, where it does not bind.
    expected: Option<u64>,
    /// How fast the transfer of the window that was read last is.
    pace: Pace,
    /// May a large file have several streams, and by what rules?
    rules: Option<Arc<Rules>>,
    /// What they bring.
    streams: Option<Streams>,
    memory: Memory,
    /// The part of `memory` that is ours.
    held: usize,
}

/// Bytes that are at hand until the next read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stretch {
    index: usize,
    offset: u64,
    length: usize,
}

impl Reader {
    pub(crate) fn new(version: Version) -> Self {
        Self::counted(version, &Memory::default())
    }

    /// One of those whose memory is limited together.
    pub(crate) fn counted(version: Version, memory: &Memory) -> Self {
        Self {
            version,
            before: version,
            windows: Vec::new(),
            uses: 0,
            was_opened: false,
            has_opened: false,
            is_one_stretch: true,
            expected: None,
            pace: Pace::default(),
            rules: None,
            streams: None,
            memory: Arc::clone(memory),
            held: 0,
        }
    }

    /// Bytes of this version are given out from elsewhere: the first transfer, too, must bring
    /// exactly this version.
    pub(crate) fn must_agree(&mut self) {
        self.was_opened = true;
        self.is_one_stretch = false;
    }

    /// Nothing was given out, and this version is not wanted any more: whatever comes first is.
    pub(crate) fn start_over(&mut self) {
        self.was_opened = false;
        self.is_one_stretch = true;
    }

    /// Asks whether the file is still this version, and from now on lets no transfer bring another
    /// one. False if the server does not tell enough to know.
    pub(crate) fn prove(&mut self, pool: &Pool, path: &RemotePath) -> Result<bool> {
        self.must_agree();
        let now = self.confirm(pool, path)?;
        Ok(now.size.is_some() && now.mtime.is_some())
    }

    /// Would a read of these bytes open one more transfer?
    pub(crate) fn would_jump(&self, offset: u64, length: usize) -> bool {
        self.was_opened && matches!(plan(&self.windows, offset, length), Plan::Open(_))
    }

    /// A large file may have several streams.
    pub(crate) fn with_streams(mut self, rules: Option<&Arc<Rules>>) -> Self {
        self.rules = rules.map(Arc::clone);
        self
    }

    /// The server took this time at our wish: the content is the same.
    pub(crate) fn note_server_mtime(&mut self, mtime: Timestamp) {
        self.version.mtime = Some(mtime);
    }

    /// Of bytes that belong to others which are here already: the first transfer, too, must bring
    /// exactly this version.
    pub(crate) fn of_part(version: Version) -> Self {
        let mut reader = Self::new(version);
        reader.must_agree();
        reader
    }

    /// To the true end of the file, which may be beyond the one that was listed a while ago.
    pub(crate) fn to_end(version: Version) -> Self {
        let mut reader = Self::new(Version { size: None, ..version });
        reader.expected = version.size;
        reader
    }

    /// The bytes at `offset`: exactly `length` of them, fewer only at the end of the file; no
    /// more than 2 MiB (the kernel asks for 1 MiB at most). Downloads are parked under `key`.
    pub(crate) fn read(
        &mut self,
        pool: &Pool,
        path: &RemotePath,
        key: u64,
        offset: u64,
        length: usize,
    ) -> Result<&[u8]> {
        let found = self.find(pool, path, key, offset, length)?;
        Ok(self.bytes(&found))
    }

    /// The same in two steps: brings them here, and tells where they are.
    pub(crate) fn find(
        &mut self,
        pool: &Pool,
        path: &RemotePath,
        key: u64,
        offset: u64,
        length: usize,
    ) -> Result<Stretch> {
        if length > TAIL {
            return Err(Error::Invalid);
        }
        self.uses += 1;
        self.has_opened = false;
        self.before = self.version;
        if self.streams.as_ref().is_some_and(|streams| streams.path() != path) {
            // They go by a name that it had.
            self.streams = None;
        }
        let mut tries = 0;
        let (index, length) = loop {
            let length = self.clip(offset, length);
            if length == 0 {
                return Ok(Stretch::default());
            }
            let plan = plan(&self.windows, offset, length);
            if let Plan::Serve(index) = plan {
                break (index, length);
            }
            let fetched = self.fetch(pool, path, key, plan, offset, length);
            self.count_memory();
            match fetched {
                Ok(()) => {}
                Err(Error::Io(text) | Error::Unreachable(text)) if tries + 1 < TRIES => {
                    tries += 1;
                    log::info!("reading {path}: {text}; once more");
                }
                Err(error) => return Err(error),
            }
        };
        if let Some(window) = self.windows.get_mut(index) {
            window.note_use(self.uses);
        }
        Ok(Stretch { index, offset, length })
    }

    pub(crate) fn bytes(&self, found: &Stretch) -> &[u8] {
        let window = self.windows.get(found.index);
        window.map_or(&[], |window| window.bytes(found.offset, found.length))
    }

    /// Did what was asked for last need a transfer of its own?
    pub(crate) fn has_opened(&self) -> bool {
        self.has_opened
    }

    /// The transfers may be of another file: nothing of them is kept.
    pub(crate) fn begin_again(&mut self, pool: &Pool, key: u64) {
        self.version = self.before;
        self.streams = None;
        self.pace.reset();
        for window in self.windows.drain(..) {
            if let Some(download) = pool.resume(parked_key(key, window.number())) {
                download.leave(false);
            }
        }
        // From here on exactly the version that was opened.
        self.must_agree();
        self.count_memory();
    }

    /// Gives all memory back; a read that goes on where one stopped needs none of it.
    pub(crate) fn rest(&mut self) {
        self.streams = None;
        self.windows.iter_mut().for_each(Window::forget);
        self.count_memory();
    }

    fn count_memory(&mut self) {
        let windows: usize = self.windows.iter().map(Window::memory).sum();
        let now = windows + self.streams.as_ref().map_or(0, Streams::memory);
        self.memory.fetch_add(now, Ordering::Relaxed);
        self.memory.fetch_sub(self.held, Ordering::Relaxed);
        self.held = now;
    }

    /// No more than the file has. A size that nobody knows is found by reading to the end.
    fn clip(&self, offset: u64, length: usize) -> usize {
        let left = self.version.size.unwrap_or(u64::MAX).saturating_sub(offset);
        usize::try_from(left).unwrap_or(usize::MAX).min(length)
    }

    /// Reads on until `length` bytes at `offset` are at hand, or the data end.
    fn fetch(
        &mut self,
        pool: &Pool,
        path: &RemotePath,
        key: u64,
        plan: Plan,
        offset: u64,
        length: usize,
    ) -> Result<()> {
        if let Plan::ReadThrough(index) = plan
            && self.take_from_streams(pool, key, index, offset.saturating_add(length as u64))
        {
            return Ok(());
        }
        let (index, mut download) = match plan {
            Plan::Serve(_) => return Ok(()),
            Plan::ReadThrough(index) => self.go_on(pool, path, key, index, offset)?,
            Plan::Open(place) => self.jump(pool, path, key, place, offset)?,
        };
        let size = self.version.size.unwrap_or(u64::MAX);
        let wanted = offset.saturating_add(length as u64);
        let Some(window) = self.windows.get_mut(index) else { return Err(Error::Invalid) };
        while window.end() < wanted {
            let left = size.saturating_sub(window.end());
            let asked = Instant::now();
            let count = download.read(window.room(wanted - window.end(), left))?;
            if count == 0 {
                let end = window.end();
                return self.end_early(download, pool, path, end);
            }
            window.filled(count);
            if let Some(rules) = self.rules.as_ref().filter(|_| window.goes_on()) {
                let now = Instant::now();
                let alone = self.pace.note(count, now.duration_since(asked), now);
                let alone = alone.filter(|_| !download.fills_the_line());
                if let (Some(alone), None) = (alone, &self.streams) {
                    let (number, end) = (window.number(), window.end());
                    self.streams = Streams::begin(rules, path, self.version, number, end, alone);
                }
            }
        }
        if window.end() >= size {
            download.leave(true);
        } else {
            pool.park(parked_key(key, window.number()), download);
        }
        Ok(())
    }

    /// Fills a window up to `wanted` by what further streams have brought; false where the window's
    /// own transfer has to go on.
    fn take_from_streams(&mut self, pool: &Pool, key: u64, index: usize, wanted: u64) -> bool {
        let Some(streams) = &mut self.streams else { return false };
        let Some(window) = self.windows.get_mut(index) else { return false };
        if streams.window() != window.number() {
            return false;
        }
        if !streams.has_left_own() {
            match streams.prove(window.end(), |from, length| window.bytes(from, length)) {
                Proof::Same => {}
                Proof::Missing => return false,
                Proof::Over => {
                    self.streams = None;
                    return false;
                }
            }
            if let Some(download) = pool.resume(parked_key(key, window.number())) {
                download.leave(false);
            }
        }
        window.go_on();
        self.pace.reset();
        self.has_opened = true;
        // Not one stretch of one transfer any more.
        self.is_one_stretch = false;
        self.version = streams.version();
        let size = self.version.size.unwrap_or(u64::MAX);
        while window.end() < wanted {
            let end = window.end();
            let room = window.room(wanted - end, size.saturating_sub(end));
            match streams.take(end, room) {
                Some(count) => window.filled(count),
                None => {
                    self.streams = None;
                    return false;
                }
            }
        }
        true
    }

    /// The parked download of a window, or another one that takes its place.
    fn go_on(
        &mut self,
        pool: &Pool,
        path: &RemotePath,
        key: u64,
        index: usize,
        offset: u64,
    ) -> Result<(usize, Download)> {
        let Some(window) = self.windows.get_mut(index) else { return Err(Error::Invalid) };
        window.go_on();
        let end = window.end();
        if let Some(download) = pool.resume(parked_key(key, window.number())) {
            if download.position() == end {
                return Ok((index, download));
            }
            download.leave(false);
        }
        if offset > end {
            // Without a transfer under way nothing is gained by reading through the gap.
            return self.jump(pool, path, key, Some(index), offset);
        }
        Ok((index, self.open_at(pool, path, end)?))
    }

    /// A window and a transfer that begin at `offset`, in the place of a window if one is named.
    /// What was only looked at is over with a jump: its connection is used for this one.
    fn jump(
        &mut self,
        pool: &Pool,
        path: &RemotePath,
        key: u64,
        place: Option<usize>,
        offset: u64,
    ) -> Result<(usize, Download)> {
        self.pace.reset();
        if place.and_then(|place| self.windows.get(place)).map(Window::number)
            == self.streams.as_ref().map(Streams::window)
        {
            self.streams = None;
        }
        for (index, window) in self.windows.iter().enumerate() {
            if (!window.goes_on() || place == Some(index))
                && let Some(download) = pool.resume(parked_key(key, window.number()))
            {
                download.leave(false);
            }
        }
        let download = self.open_at(pool, path, offset)?;
        let goes_on = place.and_then(|place| self.windows.get(place)).is_some_and(|window| {
            // The same reader after a small gap: its download was only taken away.
            window.goes_on() && window.is_near(offset)
        });
        let mut window = Window::at(offset, self.free_number(place));
        if goes_on {
            window.go_on();
        }
        let index = place.unwrap_or(self.windows.len());
        match self.windows.get_mut(index) {
            Some(old) => *old = window,
            None => self.windows.push(window),
        }
        Ok((index, download))
    }

    /// A number for a new window: that of the one it replaces, or one that no window has.
    fn free_number(&self, place: Option<usize>) -> u64 {
        match place.and_then(|place| self.windows.get(place)) {
            Some(old) => old.number(),
            None => self.windows.len() as u64,
        }
    }

    /// A transfer from `offset` on, of the version that was opened.
    fn open_at(&mut self, pool: &Pool, path: &RemotePath, offset: u64) -> Result<Download> {
        if self.was_opened {
            if let Some(download) = self.open_confirmed(pool, path, offset)? {
                return Ok(download);
            }
            self.confirm(pool, path)?;
        }
        let download = pool.download(path, offset)?;
        self.has_opened = true;
        self.is_one_stretch &= offset == 0 && !self.was_opened;
        self.was_opened = true;
        Ok(download)
    }

    /// What proves the version travels with the transfer. `None` where the server does
    /// not tell, or says that nothing is there.
    fn open_confirmed(
        &mut self,
        pool: &Pool,
        path: &RemotePath,
        offset: u64,
    ) -> Result<Option<Download>> {
        let version = self.version;
        let checked = pool.download_checked(path, offset, &|look| {
            told(look).is_some_and(|now| version.agrees_with(&now))
        })?;
        match checked {
            Checked::Opened(download, look) => {
                self.has_opened = true;
                if let Some(now) = told(&look) {
                    self.note_confirmed(&now);
                }
                Ok(Some(*download))
            }
            Checked::Other(look) => match told(&look) {
                Some(_) => Err(changed(path)),
                None => Ok(None),
            },
        }
    }

    /// Asks whether the file on the server is still the version that was opened.
    fn confirm(&mut self, pool: &Pool, path: &RemotePath) -> Result<Version> {
        let now = Version::of_stat(&pool.ask(|session| session.stat(path))?);
        if !self.version.agrees_with(&now) {
            return Err(changed(path));
        }
        self.note_confirmed(&now);
        Ok(now)
    }

    /// What the listing left open, or told coarsely, is exact from now on.
    fn note_confirmed(&mut self, now: &Version) {
        self.version.mtime = now.mtime.or(self.version.mtime);
        self.version.size = self.version.size.or(now.size);
        self.is_one_stretch = false;
    }

    /// The data ended before the size that was listed, or where no size is known. The transfer was
    /// cut (a proxy may do that properly, and the server may not notice), or the file became
    /// shorter: then what was read is still one version if it is one stretch.
    fn end_early(
        &mut self,
        download: Download,
        pool: &Pool,
        path: &RemotePath,
        end: u64,
    ) -> Result<()> {
        let was_cut = download.was_cut();
        download.finish()?;
        if self.expected != Some(end) {
            match pool.ask(|session| session.size_and_time(path)) {
                Ok((Some(size), _)) if size == end => {}
                // Nothing but the server's 226 tells; under TLS it must be backed by close_notify.
                Ok((None, _)) | Err(ftp::Error::Refused(_)) if !was_cut => {}
                Ok(_) | Err(ftp::Error::Refused(_)) => {
                    return Err(Error::Io(format!("the data of {path} ended early, at {end}")));
                }
                Err(error) => return Err(error.into()),
            }
        }
        if self.version.size.is_some() && !self.is_one_stretch {
            return Err(Error::Stale(format!("{path} became shorter while it was read")));
        }
        self.version.size = Some(end);
        Ok(())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.memory.fetch_sub(self.held, Ordering::Relaxed);
    }
}

/// The handle is closed: no download waits for it any more.
pub(crate) fn leave_parked(pool: &Pool, key: u64) {
    for number in 0..MOST as u64 {
        if let Some(download) = pool.resume(parked_key(key, number)) {
            download.leave(false);
        }
    }
}

/// The version that a look tells, if it tells any.
fn told(look: &Look) -> Option<Version> {
    match look {
        Look::There(stat) => Some(Version::of_stat(stat))
            .filter(|version| version.size.is_some() || version.mtime.is_some()),
        Look::Absent | Look::Unknown => None,
    }
}

fn changed(path: &RemotePath) -> Error {
    Error::Stale(format!("{path} changed on the server while it was read"))
}

fn parked_key(key: u64, number: u64) -> u64 {
    key | number << WINDOW_SHIFT
}
