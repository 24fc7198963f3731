//! Reads ahead of a walk: lists the next directories and fetches the next files by connections
//! that nobody else needs, on threads of its own that come and go with the work.
//!
//! Decides nothing of what comes next (the plan does) nor of who gets a connection (the pool
//! does). A failure here is nobody's: whoever needs what failed asks for it in the usual way.
//!
//! Locks: the state is held before `Tree`, `DirCache`, `Handles` and the shelf's, never across
//! I/O.

mod plan;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;

use plan::{Above, Folder, Outlook, Plan, Step};

use super::attr::Version;
use super::blocks::Blocks;
use super::cached::is_whole_here;
use super::dircache::{DirCache, Item, Listing};
use super::handles::Handles;
use super::shelf::{AheadBytes, Shelf, Ticket};
use super::tree::{Ino, ROOT, Tree};
use super::{Error, is_own_name};
use crate::ftp::{Entries, Fetched, Pool, RemotePath, Spare};

/// A walk that has not moved for so long has stopped: nothing more is done for it.
const STOPPED: Duration = Duration::from_secs(2);

/// How long a file waits for its reader, if the TTL allows it: a walk may be busy with a large file
/// meanwhile. A thread without work outlives it, and then frees the memory.
const LIFE: Duration = Duration::from_secs(60);

/// How long a thread waits for a connection before it looks whether the work is still wanted.
const TURN: Duration = Duration::from_millis(100);

/// A server whose listings take less is near: what they cost is work of the processors at both ends,
/// and there is no wait that work ahead could fill. Measured on loopback: 1 ms a listing, and walks
/// up to half as slow again with further connections.
const NEAR: Duration = Duration::from_millis(4);

/// Names kept in the tree for what was done ahead; a walk has at most 64 in its window.
const HELD: usize = 2048;

/// Shall work be done before it is asked for?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadAhead {
    Off,
    /// For walks, by connections that nobody else needs.
    #[default]
    Auto,
}

/// What it works on.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) pool: Arc<Pool>,
    pub(super) base: RemotePath,
    pub(super) tree: Arc<Mutex<Tree>>,
    pub(super) cache: Arc<DirCache>,
    pub(super) handles: Arc<Handles>,
    pub(super) ttl: Duration,
    /// The most bytes of files that wait for their readers.
    pub(super) memory: usize,
    pub(super) blocks: Option<Arc<Blocks>>,
}

/// Reads ahead. Ends with the value.
#[derive(Debug)]
pub(super) struct Prefetch {
    /// `None`: off.
    shared: Option<Arc<Shared>>,
}

#[derive(Debug)]
struct Shared {
    parts: Parts,
    shelf: Shelf,
    state: Mutex<State>,
    /// Signalled when there is work, or no more.
    changed: Condvar,
    /// How long one listing or file takes, in microseconds: a mean in which the last counts for a
    /// quarter.
    step_micros: AtomicU64,
}

#[derive(Debug)]
struct State {
    plan: Plan,
    queue: VecDeque<Step>,
    /// Steps of the walk beyond the queue.
    beyond: usize,
    /// When the walk moved last.
    moved: Instant,
    threads: usize,
    /// Of these, the ones that have a connection.
    busy: usize,
    /// Done, or tried, ahead, and when: not again before it is asked for. Each holds its name in
    /// the tree until then.
    held: LruCache<Ino, Instant>,
    is_closed: bool,
}

/// One step with what it needs.
enum Job {
    List { ino: Ino, path: RemotePath },
    Fetch { ticket: Ticket, path: RemotePath, size: usize, item: Option<Item> },
}

impl Prefetch {
    /// With a TTL of zero each look asks the server, so there is nothing to be known ahead.
    pub(super) fn new(parts: Parts, wanted: ReadAhead) -> Self {
        if wanted == ReadAhead::Off || parts.ttl.is_zero() {
            return Self { shared: None };
        }
        let state = State {
            plan: Plan::default(),
            queue: VecDeque::new(),
            beyond: 0,
            moved: Instant::now(),
            threads: 0,
            busy: 0,
            held: LruCache::unbounded(),
            is_closed: false,
        };
        let shelf = Shelf::new(parts.ttl.min(LIFE), parts.memory);
        let shared = Shared {
            parts,
            shelf,
            state: Mutex::new(state),
            changed: Condvar::new(),
            step_micros: AtomicU64::new(0),
        };
        Self { shared: Some(Arc::new(shared)) }
    }

    /// A directory was opened.
    pub(super) fn entered(&self, directory: Ino, listing: &Arc<Listing>) {
        let Some(shared) = &self.shared else { return };
        let folder = shared.folder(directory, listing);
        let mut state = shared.lock();
        shared.let_go(&mut state, directory);
        state.plan.entered(&folder);
        shared.plan_on(&mut state, Instant::now());
    }

    /// A file of the directory was opened to be read.
    pub(super) fn opened(&self, directory: Ino, listing: &Arc<Listing>, ino: Ino, name: &[u8]) {
        let Some(shared) = &self.shared else { return };
        let folder = shared.folder(directory, listing);
        let mut state = shared.lock();
        shared.let_go(&mut state, ino);
        state.plan.opened(&folder, name);
        shared.plan_on(&mut state, Instant::now());
    }

    /// The whole content of this version, if it was fetched, or is being fetched, ahead.
    pub(super) fn take(&self, ino: Ino, version: &Version) -> Option<Arc<Vec<u8>>> {
        let shared = self.shared.as_ref()?;
        let pool = &shared.parts.pool;
        shared.shelf.take(ino, version, pool.timeout(), || pool.lend_turn())
    }

    /// Is it here, or on its way?
    pub(super) fn holds(&self, ino: Ino, version: &Version) -> bool {
        self.shared.as_ref().is_some_and(|shared| shared.shelf.holds(ino, version))
    }

    /// The file is changed through the mount.
    pub(super) fn forget(&self, ino: Ino) {
        if let Some(shared) = &self.shared {
            shared.shelf.forget(ino);
        }
    }

    /// A request for a listing took so long.
    pub(super) fn note_step(&self, took: Duration) {
        if let Some(shared) = &self.shared {
            shared.note_step(took);
        }
    }

    /// What was fetched ahead so far.
    pub(super) fn counted(&self) -> AheadBytes {
        let Some(shared) = &self.shared else { return AheadBytes::default() };
        shared.shelf.expire(Instant::now());
        shared.shelf.counted()
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        let Some(shared) = &self.shared else { return };
        let mut state = shared.lock();
        state.is_closed = true;
        state.queue.clear();
        shared.changed.notify_all();
    }
}

impl Shared {
    /// Where a directory lies.
    fn folder(&self, ino: Ino, listing: &Arc<Listing>) -> Folder {
        let place = self.tree().place(ino).filter(|_| ino != ROOT);
        let above = place.map(|(parent, name)| Above {
            ino: parent,
            name: Arc::from(&*name),
            listing: self.parts.cache.known(parent),
        });
        Folder { ino, listing: Arc::clone(listing), above }
    }

    /// The walk moved: what is wanted now?
    fn plan_on(self: &Arc<Self>, state: &mut State, now: Instant) {
        state.moved = now;
        if Duration::from_micros(self.step_micros.load(Ordering::Relaxed)) < NEAR {
            state.queue.clear();
            return;
        }
        self.refill(state, now);
        if !state.queue.is_empty() {
            self.changed.notify_one();
            self.staff(state);
        }
    }

    /// What the plan wants and was not tried yet.
    fn refill(&self, state: &mut State, now: Instant) {
        let fresh = |parent: Ino, name: &[u8]| {
            let ino = self.tree().find(parent, name)?;
            Some((ino, self.parts.cache.fresh(ino, now)?))
        };
        let Outlook { mut steps, beyond } = state.plan.outlook(&fresh);
        while let Some((ino, since)) = state.held.peek_lru().map(|(ino, since)| (*ino, *since)) {
            let is_over = now.duration_since(since) > self.parts.ttl;
            if !is_over && state.held.len() <= HELD {
                break;
            }
            self.let_go(state, ino);
        }
        steps.retain(|step| {
            let (Step::List { parent, name } | Step::Fetch { parent, name, .. }) = step;
            let ino = self.tree().find(*parent, name);
            !ino.is_some_and(|ino| state.held.contains(&ino))
        });
        state.queue = steps.into();
        state.beyond = beyond;
    }

    /// One more thread, if all there are have work.
    fn staff(self: &Arc<Self>, state: &mut State) {
        let most = self.parts.pool.snapshot().limit;
        if most < 2 || state.threads > state.busy || state.threads >= most || state.is_closed {
            return;
        }
        let shared = Arc::clone(self);
        let spawned =
            std::thread::Builder::new().name("read ahead".into()).spawn(move || shared.work());
        if spawned.is_ok() {
            state.threads += 1;
        }
    }

    fn work(self: Arc<Self>) {
        while let Some(work) = self.await_work() {
            let Some(reserved) = self.parts.pool.reserve(work, TURN) else { continue };
            self.change_busy(|busy| busy + 1);
            if let Some(spare) = reserved.ready() {
                match self.next_job() {
                    Some(job) => self.perform(job, spare),
                    None => spare.give_back(),
                }
            }
            self.change_busy(|busy| busy - 1);
        }
    }

    /// How long the work at hand would take one connection; `None` when this thread is of no more
    /// use.
    fn await_work(self: &Arc<Self>) -> Option<Duration> {
        let mut state = self.lock();
        let life = self.parts.ttl.min(LIFE);
        let mut until = Instant::now() + life;
        loop {
            let now = Instant::now();
            if now.duration_since(state.moved) > STOPPED {
                state.queue.clear();
            }
            // While somebody reads a large file the line is theirs.
            let waits = match state.queue.front() {
                Some(Step::Fetch { .. }) => self.parts.pool.is_streaming(),
                Some(Step::List { .. }) => false,
                None => true,
            };
            if !waits {
                let steps = u32::try_from(state.queue.len() + state.beyond).unwrap_or(u32::MAX);
                let micros = self.step_micros.load(Ordering::Relaxed);
                return Some(Duration::from_micros(micros).saturating_mul(steps));
            }
            if !state.queue.is_empty() {
                until = now + life;
            }
            if state.is_closed || now >= until {
                state.threads -= 1;
                self.shelf.expire(now);
                return None;
            }
            let patience = if state.queue.is_empty() { until - now } else { TURN };
            let (woken, _) =
                self.changed.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner);
            state = woken;
        }
    }

    fn change_busy(self: &Arc<Self>, change: impl FnOnce(usize) -> usize) {
        let mut state = self.lock();
        state.busy = change(state.busy);
        if !state.queue.is_empty() {
            self.staff(&mut state);
        }
    }

    /// The next step that is still of use, with its name held in the tree.
    fn next_job(&self) -> Option<Job> {
        let now = Instant::now();
        let mut state = self.lock();
        while let Some(step) = state.queue.pop_front() {
            let (Step::List { parent, name } | Step::Fetch { parent, name, .. }) = &step;
            let Some(ino) = self.hold(&mut state, *parent, name, now) else { continue };
            let Some(path) = self.path(ino) else { continue };
            match step {
                Step::List { .. } => return Some(Job::List { ino, path }),
                Step::Fetch { ref parent, ref name, version, size } => {
                    let handles = &self.parts.handles;
                    if handles.is_open(ino) || handles.staged(ino).is_some() {
                        continue;
                    }
                    let known = self.parts.cache.known(*parent);
                    let item = known.and_then(|known| known.get(name));
                    if let Some(ticket) = self.shelf.claim(ino, version, size, now) {
                        return Some(Job::Fetch { ticket, path, size, item });
                    }
                }
            }
        }
        None
    }

    fn perform(self: &Arc<Self>, job: Job, spare: Spare) {
        let started = Instant::now();
        let done = match job {
            Job::List { ino, path } => {
                let mut spare = Some(spare);
                let listed = self.parts.cache.list_ahead(ino, || {
                    let Some(spare) = spare.take() else { return Ok(Entries::default()) };
                    Ok(spare.list(&path)?.without(is_own_name))
                });
                if let Some(spare) = spare {
                    return spare.give_back();
                }
                listed
            }
            Job::Fetch { ticket, path, item, .. } if self.is_on_disk(&path, item.as_ref()) => {
                self.shelf.give_up(ticket, 0);
                return spare.give_back();
            }
            Job::Fetch { ticket, path, size, .. } => self.fetch(ticket, &path, size, spare),
        };
        match done {
            Ok(()) => {
                self.note_step(started.elapsed());
                let mut state = self.lock();
                self.refill(&mut state, Instant::now());
            }
            Err(error) => log::info!("reading ahead: {error}"),
        }
    }

    /// Would the reader not ask the server for it?
    fn is_on_disk(&self, path: &RemotePath, item: Option<&Item>) -> bool {
        let (Some(blocks), Some(item)) = (&self.parts.blocks, item) else { return false };
        is_whole_here(blocks, path, item)
    }

    fn fetch(
        &self,
        ticket: Ticket,
        path: &RemotePath,
        size: usize,
        spare: Spare,
    ) -> Result<(), Error> {
        match spare.fetch(path, size) {
            Ok(Fetched::Whole(bytes)) => self.shelf.put(ticket, bytes),
            Ok(Fetched::GivenUp(count)) => self.shelf.give_up(ticket, count),
            Err(error) => {
                // Whatever happens, nobody waits for it any longer.
                self.shelf.give_up(ticket, 0);
                return Err(error.into());
            }
        }
        Ok(())
    }

    fn note_step(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let before = self.step_micros.load(Ordering::Relaxed);
        let mean = if before == 0 { micros } else { before / 4 * 3 + micros / 4 };
        self.step_micros.store(mean, Ordering::Relaxed);
    }

    /// Keeps the name for what is done ahead.
    fn hold(&self, state: &mut State, parent: Ino, name: &[u8], now: Instant) -> Option<Ino> {
        let ino = {
            let mut tree = self.tree();
            tree.names(parent)?;
            let ino = tree.intern(parent, name, 0);
            if !state.held.contains(&ino) {
                tree.pin(ino);
            }
            ino
        };
        state.held.put(ino, now);
        Some(ino)
    }

    fn let_go(&self, state: &mut State, ino: Ino) {
        if state.held.pop(&ino).is_some() {
            let is_gone = self.tree().unpin(ino);
            if is_gone {
                self.parts.cache.forget(ino);
                self.shelf.forget(ino);
            }
        }
    }

    fn path(&self, ino: Ino) -> Option<RemotePath> {
        let names = self.tree().names(ino)?;
        let mut path = self.parts.base.clone();
        for name in names {
            path = path.join(&name).ok()?;
        }
        Some(path)
    }

    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.parts.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
