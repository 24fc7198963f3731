//! What holds for the streams of all files of a mount.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::MOST;
use crate::ftp::Pool;

/// Where more streams brought no more, it is not tried again for so long.
pub(super) const PAUSE: Duration = Duration::from_secs(300);

/// The same where a connection was needed elsewhere or could not be had, or a part did not come.
pub(super) const TROUBLE: Duration = Duration::from_secs(30);

/// How many streams for one file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StreamLimit {
    /// As many as bring more.
    #[default]
    Auto,
    /// No more than this; 1: off.
    Most(usize),
}

/// What holds for all files of a mount.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(super) pool: Arc<Pool>,
    pub(super) most: usize,
    /// Some file has several streams: one at a time, so that memory is bounded.
    pub(super) is_taken: AtomicBool,
    /// Not before this.
    quiet_until: Mutex<Option<Instant>>,
}

impl Rules {
    pub(crate) fn new(pool: Arc<Pool>, limit: StreamLimit) -> Arc<Self> {
        let most = match limit {
            StreamLimit::Auto => MOST,
            StreamLimit::Most(count) => count.min(MOST),
        };
        let (is_taken, quiet_until) = (AtomicBool::new(false), Mutex::new(None));
        Arc::new(Self { pool, most, is_taken, quiet_until })
    }

    pub(super) fn is_quiet(&self, now: Instant) -> bool {
        let until = *self.quiet_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| now < until)
    }

    pub(super) fn be_quiet(&self, pause: Duration) {
        let until = Some(Instant::now() + pause);
        *self.quiet_until.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }
}
