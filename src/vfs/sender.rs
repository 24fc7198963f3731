//! Sends a file to the server while it is still being written.
//!
//! Owns a thread and, through it, one upload to a name beside the file. It never decides what the
//! file becomes: the commit renames it into place, or throws it away and sends everything again.

use std::fs::File;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::staging::remove_quietly;
use crate::ftp::{self, Pool, RemotePath};

/// A writer that pauses this long while others wait for a connection loses its own: longer than a
/// program needs for a page fault or a busy disk, short for somebody who waits for `ls`.
const PAUSE: Duration = Duration::from_millis(200);

/// An upload that follows a writer.
#[derive(Debug)]
pub(crate) struct Sender {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<(), ftp::Error>>>,
    path: RemotePath,
}

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
}

impl Sender {
    /// Begins to send `file`, opened anew so that its position is the sender's own, to `path`.
    pub(crate) fn start(
        pool: &Arc<Pool>,
        path: RemotePath,
        file: File,
        written: u64,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        shared.lock().written = written;
        let work =
            Work { shared: Arc::clone(&shared), pool: Arc::clone(pool), path: path.clone(), file };
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

    /// The file has `length` bytes: waits until the server confirmed them all.
    pub(crate) fn finish(mut self, length: u64) -> Result<(), ftp::Error> {
        {
            let mut state = self.shared.lock();
            state.written = length;
            state.is_complete = true;
        }
        self.shared.changed.notify_all();
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) | None => Err(ftp::Error::TimedOut("an upload that stopped")),
        }
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

/// What the thread does.
struct Work {
    shared: Arc<Shared>,
    pool: Arc<Pool>,
    path: RemotePath,
    file: File,
}

impl Work {
    fn run(self) -> Result<(), ftp::Error> {
        let result = self.send();
        let is_cancelled = self.shared.lock().is_cancelled;
        if result.is_err() || is_cancelled {
            remove_quietly(&self.pool, &self.path);
        }
        result
    }

    fn send(&self) -> Result<(), ftp::Error> {
        let mut upload = self.pool.begin_upload(&self.path)?;
        let mut sent = 0;
        loop {
            let state = self.shared.wait(sent);
            if state.is_cancelled {
                upload.abort();
                return Err(ftp::Error::TimedOut("a writer who changed what was sent"));
            }
            if state.written > sent {
                upload.send(&self.file, sent, state.written - sent)?;
                sent = state.written;
            } else if state.is_complete {
                return upload.finish().map(drop);
            } else if self.pool.is_wanted() {
                log::info!("{}: the writer pauses and others wait; sent again later", self.path);
                upload.abort();
                return Err(ftp::Error::TimedOut("a writer who paused"));
            }
        }
    }
}
