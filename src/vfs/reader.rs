//! Reads a file over downloads, carrying out the window's plan.
//!
//! A download is taken from the pool at the start of a read and parked there at its end. All bytes
//! that one reader gives out belong to one version of the file: before a second transfer is opened
//! the server is asked whether the file is still the same (one round trip).

use super::attr::Version;
use super::error::{Error, Result};
use super::window::{Plan, TAIL, Window};
use crate::ftp::{self, Download, Pool, RemotePath};

/// How often a read that lost its connection is taken up again where it stopped.
const TRIES: usize = 3;

/// The reading side of one open file.
#[derive(Debug)]
pub(crate) struct Reader {
    version: Version,
    window: Window,
    /// A transfer was opened before, so another one must bring the same version.
    was_opened: bool,
    /// Every byte given out so far came over one transfer from the file's beginning.
    is_one_stretch: bool,
    /// Data that end here need no further proof: the size as listed, where it does not bind.
    expected: Option<u64>,
}

impl Reader {
    pub(crate) fn new(version: Version) -> Self {
        Self {
            version,
            window: Window::default(),
            was_opened: false,
            is_one_stretch: true,
            expected: None,
        }
    }

    /// To the true end of the file, which may be beyond the one that was listed a while ago.
    pub(crate) fn to_end(version: Version) -> Self {
        let expected = version.size;
        Self { expected, ..Self::new(Version { size: None, ..version }) }
    }

    /// The bytes at `offset`: exactly `length` of them, fewer only at the end of the file; no
    /// more than 2 MiB (the kernel asks for 1 MiB at most). The download is parked under `key`.
    pub(crate) fn read(
        &mut self,
        pool: &Pool,
        path: &RemotePath,
        key: u64,
        offset: u64,
        length: usize,
    ) -> Result<&[u8]> {
        if length > TAIL {
            return Err(Error::Invalid);
        }
        let mut tries = 0;
        let length = loop {
            let length = self.clip(offset, length);
            if length == 0 || self.window.plan(offset, length) == Plan::Serve {
                break length;
            }
            match self.fetch(pool, path, key, offset, length) {
                Ok(()) => {}
                Err(Error::Io(text) | Error::Unreachable(text)) if tries + 1 < TRIES => {
                    tries += 1;
                    log::info!("reading {path}: {text}; going on at {}", self.window.end());
                }
                Err(error) => return Err(error),
            }
        };
        Ok(self.window.bytes(offset, length))
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
        offset: u64,
        length: usize,
    ) -> Result<()> {
        let mut download = self.download(pool, path, key, offset, length)?;
        let wanted = offset + length as u64;
        while self.window.end() < wanted {
            let left = self.version.size.unwrap_or(u64::MAX).saturating_sub(self.window.end());
            let count = download.read(self.window.room(left))?;
            if count == 0 {
                return self.end_early(download, pool, path);
            }
            self.window.filled(count);
        }
        if self.version.size.is_some_and(|size| self.window.end() >= size) {
            download.leave(true);
        } else {
            pool.park(key, download);
        }
        Ok(())
    }

    /// The parked download if it is the one to go on with, else a new one.
    fn download(
        &mut self,
        pool: &Pool,
        path: &RemotePath,
        key: u64,
        offset: u64,
        length: usize,
    ) -> Result<Download> {
        let parked = pool.resume(key);
        let plan = self.window.plan(offset, length);
        if let Some(download) = parked {
            if plan == Plan::ReadThrough && download.position() == self.window.end() {
                return Ok(download);
            }
            download.leave(false);
        }
        if self.was_opened {
            self.confirm(pool, path)?;
        }
        let from = if plan == Plan::Reopen { offset } else { self.window.end() };
        let download = pool.download(path, from)?;
        if from != self.window.end() {
            self.window.restart(from);
            self.is_one_stretch = false;
        }
        self.was_opened = true;
        Ok(download)
    }

    /// Asks whether the file on the server is still the version that was opened.
    fn confirm(&mut self, pool: &Pool, path: &RemotePath) -> Result<()> {
        let now = Version::of_stat(&pool.ask(|session| session.stat(path))?);
        if !self.version.agrees_with(&now) {
            return Err(Error::Stale(format!("{path} changed on the server while it was read")));
        }
        // What the listing left open, or told coarsely, is exact from now on.
        self.version.mtime = now.mtime.or(self.version.mtime);
        self.version.size = self.version.size.or(now.size);
        self.is_one_stretch = false;
        Ok(())
    }

    /// The data ended before the size that was listed, or where no size is known. The transfer was
    /// cut (a proxy may do that properly, and the server may not notice), or the file became
    /// shorter: then what was read is still one version if it is one stretch.
    fn end_early(&mut self, download: Download, pool: &Pool, path: &RemotePath) -> Result<()> {
        let end = self.window.end();
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
