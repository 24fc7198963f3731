//! Sends a file to the server while it is still being written.
//!
//! Owns a thread and, through it, one upload to a name beside the file. It never decides what the
//! file becomes: the commit renames it into place, or throws it away and sends everything again.

use std::fs::File;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::error::Result;
use super::marks::{Mark, Purpose};
use super::replace::{beside, put_away};
use super::staging::Place;
use crate::ftp::{self, Pool, RemotePath, Stored};

/// A writer that pauses this long while others wait for a connection loses its own: longer than a
/// program needs for a page fault or a busy disk, short for somebody who waits for `ls`.
const PAUSE: Duration = Duration::from_millis(200);

/// An upload that follows a writer.
#[derive(Debug)]
pub(crate) struct Sender {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<End>>,
    path: RemotePath,
}

/// How the thread ended. The mark is for the time until the file has its name.
type End = std::result::Result<(Stored, Option<Mark>), ftp::Error>;

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// This many bytes are in the file and will not change.
    written: u64,
    /// No more will come.
    is_complete: bool,
    /// The file is not what was sent: stop and clean up.
    is_cancelled: bool,
    /// The thread is done.
    has_ended: bool,
}

impl Sender {
    /// Begins to send the first `written` bytes of `file`, and what is to follow, to a name beside
    /// the file's.
    pub(crate) fn start(place: &Place<'_>, file: File, written: u64) -> Result<Self> {
        let path = beside(place.path)?;
        let mark = place.marks.set(Purpose::Scratch, &path, place.path);
        let shared = Arc::new(Shared::default());
        shared.lock().written = written;
        let work = Work {
            shared: Arc::clone(&shared),
            pool: Arc::clone(place.pool),
            path: path.clone(),
            file,
            mark,
        };
        let thread = std::thread::Builder::new().name("sender".into()).spawn(|| work.run())?;
        Ok(Self { shared, thread: Some(thread), path })
    }

    /// Where the bytes go.
    pub(crate) fn path(&self) -> &RemotePath {
        &self.path
    }

    /// The first `written` bytes are there now.
    pub(crate) fn advance(&self, written: u64) {
        self.shared.lock().written = written;
        self.shared.changed.notify_all();
    }

    /// The file has `length` bytes: waits until the server confirmed them; what it has.
    pub(crate) fn finish(mut self, length: u64, is_cancelled: &dyn Fn() -> bool) -> End {
        {
            let mut state = self.shared.lock();
            state.written = length;
            state.is_complete = true;
        }
        self.shared.changed.notify_all();
        let Some(thread) = self.thread.take() else { return Err(ftp::Error::Cancelled) };
        while !thread.is_finished() {
            if is_cancelled() {
                self.shared.lock().is_cancelled = true;
                self.shared.changed.notify_all();
            }
            self.shared.wait_for_end();
        }
        thread.join().unwrap_or(Err(ftp::Error::Cancelled))
    }
}

impl Drop for Sender {
    /// Not finished: the thread stops and removes what it sent. It is not waited for, as it may be
    /// waiting for the server.
    fn drop(&mut self) {
        self.shared.lock().is_cancelled = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change after `sent` bytes, but no longer than the pause.
    fn wait(&self, sent: u64) -> State {
        let state = self.lock();
        if state.written > sent || state.is_complete || state.is_cancelled {
            return *state;
        }
        let (state, _) =
            self.changed.wait_timeout(state, PAUSE).unwrap_or_else(PoisonError::into_inner);
        *state
    }
}

impl Shared {
    /// Waits a moment for the end of the thread, which tells it.
    fn wait_for_end(&self) {
        let state = self.lock();
        if !state.has_ended {
            // The time-out is for whoever cancels meanwhile.
            drop(self.changed.wait_timeout(state, PAUSE));
        }
    }
}

/// Tells the end of the thread, also if it panics.
struct TellEnd(Arc<Shared>);

impl Drop for TellEnd {
    fn drop(&mut self) {
        self.0.lock().has_ended = true;
        self.0.changed.notify_all();
    }
}

/// What the thread does.
struct Work {
    shared: Arc<Shared>,
    pool: Arc<Pool>,
    path: RemotePath,
    file: File,
    mark: Option<Mark>,
}

impl Work {
    fn run(mut self) -> End {
        let _end = TellEnd(Arc::clone(&self.shared));
        let result = self.send();
        let mark = self.mark.take();
        match result {
            Ok(stored) if !self.shared.lock().is_cancelled => Ok((stored, mark)),
            result => {
                put_away(&self.pool, &self.path, mark);
                Err(result.err().unwrap_or(ftp::Error::Cancelled))
            }
        }
    }

    fn send(&self) -> std::result::Result<Stored, ftp::Error> {
        let mut upload = self.pool.begin_upload(&self.path)?;
        let mut sent = 0;
        loop {
            let state = self.shared.wait(sent);
            if state.is_cancelled {
                upload.abort();
                return Err(ftp::Error::Cancelled);
            }
            if state.written > sent {
                let is_cancelled = || self.shared.lock().is_cancelled;
                upload.send(&self.file, sent..state.written, &is_cancelled)?;
                sent = state.written;
            } else if state.is_complete {
                return upload.finish();
            } else if self.pool.is_wanted() {
                log::info!("{}: the writer pauses and others wait; sent again later", self.path);
                upload.abort();
                return Err(ftp::Error::Cancelled);
            }
        }
    }
}
