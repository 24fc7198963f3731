//! Uploads as the file system asks for them: look at what is there, store, see whether all of it
//! arrived, set attributes, rename.

use std::cell::Cell;
use std::fs::File;
use std::ops::Range;

use super::error::{Error, Reply};
use super::listing::Timestamp;
use super::path::RemotePath;
use super::pool::Pool;
use super::server::{Habit, Verdict};
use super::session::{Session, Stat};
use super::transfer::Upload;

/// What an upload does to what is there under its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// STOR: what is there is replaced.
    Whole,
    /// APPE: it stays, and the bytes are added.
    Append,
    /// REST and STOR: the bytes from this offset on are overwritten.
    At(u64),
}

/// What the server has under one name just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    Absent,
    There(Stat),
    /// It does not tell.
    Unknown,
}

/// May the upload begin, after a look at what is there?
pub type Guard<'a> = (&'a RemotePath, &'a dyn Fn(&Look) -> bool);

/// What is asked of one upload.
pub struct Store<'a> {
    pub path: &'a RemotePath,
    pub file: &'a File,
    /// The bytes of the local file that are sent.
    pub range: Range<u64>,
    pub placement: Placement,
    /// The size of the whole file afterwards; `None`: nobody knows.
    pub expected: Option<u64>,
    pub guard: Option<Guard<'a>>,
    pub mode: Option<u16>,
    /// Seconds since 1970.
    pub mtime: Option<i64>,
    /// The name it gets once its size was found right.
    pub rename_to: Option<&'a RemotePath>,
    /// Asked between blocks; true ends the upload.
    pub is_cancelled: &'a dyn Fn() -> bool,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Stored(Stored),
    /// The guard said no; nothing was sent.
    Guarded(Look),
}

/// What the server has now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub size: Option<u64>,
    pub mtime: Option<Timestamp>,
    pub mode_set: bool,
    pub mtime_set: bool,
    /// Why it does not have the name it should get.
    pub not_renamed: Option<Reply>,
}

/// What happens to the end of a file that is overwritten from an offset on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    Kept,
    Cut,
    /// REST does not work for uploads, or does something else.
    Unsafe,
}

impl Pool {
    /// Asks what is there.
    pub fn look(&self, path: &RemotePath) -> Result<Look, Error> {
        self.ask(|session| session.look(path))
    }

    /// Stores bytes, in one attempt; `Stored` means that the server confirmed them all. If the
    /// connection is lost after the last byte, the size tells whether only the reply was, provided
    /// that nothing was there before.
    pub fn store(&self, store: &Store<'_>) -> Result<Outcome, Error> {
        let mut was_absent = store.rename_to.is_some();
        if let Some((path, agrees)) = store.guard {
            let look = self.look(path)?;
            if !agrees(&look) {
                return Ok(Outcome::Guarded(look));
            }
            was_absent |= look == Look::Absent && path == store.path;
        }
        self.send(store, was_absent && store.placement == Placement::Whole)?;
        let mut stored = self.settle_stored(store.path, store.expected, store.mode, store.mtime)?;
        if let Some(to) = store.rename_to {
            stored.not_renamed = self.rename_once(store.path, to)?;
        }
        Ok(Outcome::Stored(stored))
    }

    fn send(&self, store: &Store<'_>, was_absent: bool) -> Result<(), Error> {
        let is_sent = Cell::new(false);
        let send = || {
            let mut upload = self.begin_placed(store.path, store.placement)?;
            upload.send_unless(store.file, store.range.clone(), store.is_cancelled)?;
            is_sent.set(true);
            upload.finish()
        };
        let error = match send() {
            Err(error) if error.lost_session() && is_sent.get() && was_absent => error,
            result => return result,
        };
        let size = self.ask_afresh(|session| session.size(store.path));
        if size.is_ok_and(|size| size.is_some() && size == store.expected) {
            log::info!("upload of {}: {error}; but all of it is there", store.path);
            return Ok(());
        }
        Err(error)
    }

    /// Asks whether every byte arrived: a proxy or NAT that ends the data connection properly, but
    /// too early, leaves the server with a part and a good conscience (226). Then sets attributes.
    pub fn settle_stored(
        &self,
        path: &RemotePath,
        expected: Option<u64>,
        mode: Option<u16>,
        mtime: Option<i64>,
    ) -> Result<Stored, Error> {
        let (size, told) = match self.ask(|session| session.size_and_time(path)) {
            Ok(told) => told,
            // A server or folder that tells no sizes (write-only drop boxes): 226 must do.
            Err(Error::Refused(_)) => (None, None),
            Err(error) => return Err(error),
        };
        if let (Some(size), Some(expected)) = (size, expected)
            && size != expected
        {
            return Err(Error::WrongSize { path: path.to_string(), size, expected });
        }
        let mode_set = match mode {
            Some(mode) => unless_refused(self.ask(|session| session.set_mode(path, mode)))?,
            None => false,
        };
        // After the bits, as some servers count a change of bits as a change of the file.
        let mtime_set = match mtime {
            Some(time) => unless_refused(self.ask(|session| session.set_modified(path, time)))?,
            None => false,
        };
        Ok(Stored { size, mtime: told, mode_set, mtime_set, not_renamed: None })
    }

    /// The server's refusal, if it refused. A refusal of a second try, after the first one's reply
    /// was lost, may come from the first one's success: the caller looks.
    fn rename_once(&self, from: &RemotePath, to: &RemotePath) -> Result<Option<Reply>, Error> {
        let (renamed, was_tried_twice) = self.ask_noting(|session| session.rename(from, to));
        match renamed {
            Ok(()) => Ok(None),
            Err(Error::Refused(_)) if was_tried_twice && self.look(from)? == Look::Absent => {
                Ok(None)
            }
            Err(Error::Refused(reply)) => Ok(Some(reply)),
            Err(error) => Err(error),
        }
    }

    /// Is APPE known not to work?
    pub fn may_append(&self) -> bool {
        self.server().may(Habit::Appe)
    }

    /// What becomes of the end of a file that is overwritten from an offset on: tried once, on a
    /// scratch file, and remembered.
    pub fn tail(&self, scratch: &RemotePath) -> Result<Tail, Error> {
        let told = |habit| self.server().verdict(habit);
        match (told(Habit::RestKeepsTail), told(Habit::RestCutsTail)) {
            (Verdict::Yes, _) => return Ok(Tail::Kept),
            (_, Verdict::Yes) => return Ok(Tail::Cut),
            (Verdict::No, Verdict::No) => return Ok(Tail::Unsafe),
            _ => {}
        }
        let probed = self.probe_tail(scratch);
        // Clutter at worst.
        let _ = self.ask(|session| session.remove_file(scratch));
        let tail = match probed {
            Err(Error::Refused(_) | Error::WrongSize { .. }) => Tail::Unsafe,
            result => result?,
        };
        let verdict = |is_so| if is_so { Verdict::Yes } else { Verdict::No };
        self.server().learn(Habit::RestKeepsTail, verdict(tail == Tail::Kept));
        self.server().learn(Habit::RestCutsTail, verdict(tail == Tail::Cut));
        Ok(tail)
    }

    /// `abcdefgh`, then `XY` from offset 4 on: `abcdXYgh`, or `abcdXY`, or something else.
    fn probe_tail(&self, scratch: &RemotePath) -> Result<Tail, Error> {
        let local = |bytes: &[u8]| {
            use std::io::Write;
            let mut file = tempfile::tempfile()?;
            file.write_all(bytes).map(|()| file)
        };
        let (whole, part) =
            (local(b"abcdefgh").map_err(Error::Broken)?, local(b"XY").map_err(Error::Broken)?);
        self.begin_placed(scratch, Placement::Whole)?.store_all(&whole, 8)?;
        self.begin_placed(scratch, Placement::At(4))?.store_all(&part, 2)?;
        let mut download = self.download(scratch, 0)?;
        let mut bytes = Vec::new();
        let mut block = [0; 16];
        loop {
            match download.read(&mut block)? {
                0 => break,
                count => bytes.extend_from_slice(block.get(..count).unwrap_or_default()),
            }
        }
        download.finish()?;
        Ok(match bytes.as_slice() {
            b"abcdXYgh" => Tail::Kept,
            b"abcdXY" => Tail::Cut,
            _ => Tail::Unsafe,
        })
    }
}

impl Session {
    /// What is there under this name?
    pub(crate) fn look(&mut self, path: &RemotePath) -> Result<Look, Error> {
        match self.stat(path) {
            Ok(Stat { kind: None, size: None, mtime: None }) => Ok(Look::Unknown),
            Ok(stat) => Ok(Look::There(stat)),
            Err(Error::Refused(reply)) if reply.code == 550 => Ok(Look::Absent),
            Err(Error::Refused(_)) => Ok(Look::Unknown),
            Err(error) => Err(error),
        }
    }
}

impl Upload {
    fn store_all(mut self, file: &File, length: u64) -> Result<(), Error> {
        self.send(file, 0, length)?;
        self.finish()
    }
}

/// Attributes that a server refuses are no failure of the upload.
fn unless_refused(done: Result<bool, Error>) -> Result<bool, Error> {
    match done {
        Err(Error::Refused(_)) => Ok(false),
        result => result,
    }
}
