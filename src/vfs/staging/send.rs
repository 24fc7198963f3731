//! One send of a file being written: begun, noted on the disk, carried out, settled.

use std::cell::Cell;
use std::fs::File;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::{Place, Staged, Traces, Urgency};
use crate::ftp::{Pool, RemotePath, Timestamp};
use crate::vfs::attr::Version;
use crate::vfs::commit::{Committed, Errand, Sent};
use crate::vfs::content::Layout;
use crate::vfs::error::Result;
use crate::vfs::journal::Durability;
use crate::vfs::marks::Marks;
use crate::vfs::policy::WritePolicy;
use crate::vfs::reader::leave_parked;
use crate::vfs::sender::Sender;

/// What is to be sent, as it was when the send began.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) file: File,
    pub(crate) layout: Layout,
    pub(crate) base: Option<Version>,
    pub(crate) base_mode: Option<u16>,
    pub(crate) mode: Option<u16>,
    pub(crate) mtime: Option<Timestamp>,
    pub(crate) sender: Option<Sender>,
    pub(crate) is_append_only: bool,
    pub(crate) traces: Traces,
}

impl Staged {
    /// Brings everything to the server; `None` when there was nothing to bring. After an error the
    /// content is still here.
    pub(crate) fn commit(
        &self,
        pool: &Arc<Pool>,
        marks: &Marks,
        key: u64,
        policy: &WritePolicy,
        urgency: Urgency,
        find: &dyn Fn() -> Result<RemotePath>,
    ) -> Result<Option<Committed>> {
        loop {
            let was_stopped = Cell::new(false);
            let place = (pool, marks, key);
            match self.commit_once(place, policy, urgency, find, &was_stopped) {
                // Its name is gone, and with it whatever was to be sent.
                Err(error) if self.lock().is_unlinked => {
                    log::info!("not sent, as it was removed meanwhile: {error}");
                    return Ok(None);
                }
                // It was to make way for a removal that did not come about.
                Err(_) if urgency == Urgency::Foreground && was_stopped.get() => {}
                sent => return sent,
            }
        }
    }

    fn commit_once(
        &self,
        (pool, marks, key): (&Arc<Pool>, &Marks, u64),
        policy: &WritePolicy,
        urgency: Urgency,
        find: &dyn Fn() -> Result<RemotePath>,
        was_stopped: &Cell<bool>,
    ) -> Result<Option<Committed>> {
        let Some(mut job) = self.begin(urgency)? else { return Ok(None) };
        let ends = SendEnds(self);
        let path = find()?;
        let place = Place { pool, marks, path: &path, key };
        self.note_before_sending(&place, policy);
        let is_cancelled = || {
            was_stopped.set(was_stopped.get() || self.is_unwanted.load(Ordering::Relaxed));
            was_stopped.get()
        };
        let errand = Errand {
            staged: self,
            place: &place,
            policy,
            job: &mut job,
            is_cancelled: &is_cancelled,
        };
        let sent = errand.run();
        let committed = self.apply(&place, job, sent);
        drop(ends);
        committed.map(Some)
    }

    fn begin(&self, urgency: Urgency) -> Result<Option<Job>> {
        let mut state = self.lock_quiet();
        // In the background only what a close made complete; somebody may be writing right now.
        let is_ready = urgency == Urgency::Foreground || state.is_promised;
        if !state.is_dirty() || !is_ready {
            return Ok(None);
        }
        let job = Job {
            file: state.content.reopen()?,
            layout: state.content.layout().clone(),
            base: state.base,
            base_mode: state.base_mode,
            mode: state.mode,
            mtime: state.mtime,
            sender: state.sender.take(),
            is_append_only: state.is_append_only,
            traces: state.traces,
        };
        state.sending = Some(urgency);
        self.is_unwanted.store(false, Ordering::Relaxed);
        Ok(Some(job))
    }

    /// Before the first byte, so that it is known where this belongs if the process is killed.
    fn note_before_sending(&self, place: &Place<'_>, policy: &WritePolicy) {
        let mut state = self.lock();
        let before = state.traces;
        state.traces.may_be_partly_there |= policy.sends_in_place(state.base, &state.content);
        let durability = match policy.write_back {
            Some(_) => Durability::Disk,
            None => Durability::Process,
        };
        state.note_or_warn(place.pool, place.path, durability);
        // What really happened is told by the send.
        state.traces = before;
    }

    fn apply(&self, place: &Place<'_>, job: Job, sent: Result<Sent>) -> Result<Committed> {
        // Whatever was fetched before is of the old version. Taken before the state, as always.
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.lock();
        state.traces = job.traces;
        state.is_sequential = false;
        let sent = match sent {
            Ok(sent) => sent,
            Err(error) => {
                if job.base != state.base && state.base.is_some() && job.base.is_some() {
                    // A part of ours changed it.
                    state.base = job.base;
                    *source = None;
                    leave_parked(place.pool, place.key);
                }
                state.last_error = Some(error.to_string());
                return Err(error);
            }
        };
        *source = None;
        leave_parked(place.pool, place.key);
        Ok(state.settle(&job, sent)?)
    }
}

/// Ends a send, also if it panics.
pub(super) struct SendEnds<'a>(pub(super) &'a Staged);

impl Drop for SendEnds<'_> {
    fn drop(&mut self) {
        self.0.lock().sending = None;
        self.0.ended.notify_all();
    }
}
