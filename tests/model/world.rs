//! A server, a mount of it, and the reference beside them.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use ftpfs::ftp::Pool;
use ftpfs::vfs::Vfs;

use super::operations::{Op, PATHS};
use super::policy::{self, may_be_partly_there, stays_staged_after_a_kill, write_back};
use super::reference::{
    Call, Live, Node, Reference, Reply, brief, how_of, is_within, same_content, show,
};
use super::trouble::{Trouble, may_fail_with};
use crate::drivers::{self, Direct, Driver, Fail, How};
use crate::support::dialect::Dialect;
use crate::support::server::{PATIENCE, Server};

/// When does `close` return?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// When the server has it.
    Through,
    /// When the local disk has it.
    WriteBack,
}

pub enum End {
    /// Go on.
    Not,
    /// Nobody can tell what should come next.
    Here,
}

pub type Check<T = ()> = Result<T, String>;

pub struct World {
    pub(super) server: Server,
    pub(super) mount: Option<Direct>,
    pub(super) model: Reference,
    /// The mount's number of each handle of the model.
    pub(super) fhs: Vec<u64>,
    pub(super) trouble: Option<Trouble>,
    /// Something went wrong so far, and files of our own may be left on the server.
    pub(super) may_leave_own: bool,
    /// A directory moved with something unsent in it.
    has_old_notes: bool,
    /// The server does what it should not.
    is_failing: bool,
    pub(super) mode: Mode,
    timeout: Duration,
    /// Of contents and of times.
    count: u64,
}

impl World {
    pub fn new(mode: Mode, timeout: Duration) -> Self {
        let server = Server::start_at(Dialect::proftpd(), next_address());
        let mut world = Self {
            server,
            mount: None,
            model: Reference::default(),
            fhs: Vec::new(),
            trouble: None,
            may_leave_own: false,
            has_old_notes: false,
            is_failing: false,
            mode,
            timeout,
            count: 0,
        };
        world.mount = Some(world.mount_in(tempfile::tempdir().unwrap()));
        world
    }

    pub(super) fn mount_in(&self, staging: tempfile::TempDir) -> Direct {
        let mut target = drivers::target(&self.server, 2);
        target.timeout = self.timeout;
        target.host = self.server.addr().ip().to_string();
        let options = drivers::options(Duration::ZERO, staging.path());
        let options = match self.mode {
            Mode::Through => options,
            Mode::WriteBack => write_back(options).unwrap(),
        };
        let vfs = Vfs::new(Pool::open(target).unwrap(), options).unwrap();
        Direct { vfs, staging }
    }

    pub(super) fn fs(&self) -> &Direct {
        self.mount.as_ref().unwrap()
    }

    /// Runs one operation, and compares.
    pub fn step(&mut self, op: &Op) -> Check<End> {
        match *op {
            Op::Fault { what, on, nth, times } => {
                self.trouble = Some(Trouble::new(what, on, nth, times));
                return Ok(End::Not);
            }
            Op::TheirPut { .. } | Op::TheirDelete { .. } | Op::TheirRename { .. }
                if !self.send_promised()? =>
            {
                return Ok(End::Not);
            }
            Op::TheirPut { path, length } => self.their_put(PATHS[path as usize], length),
            Op::TheirDelete { path } => self.their_delete(PATHS[path as usize]),
            Op::TheirRename { from, to } => {
                self.their_rename(PATHS[from as usize], PATHS[to as usize]);
            }
            Op::Remount => match self.remount() {
                Err(_) if self.keeps_a_part() => return Ok(End::Here),
                remounted => remounted?,
            },
            Op::Kill if self.has_old_notes => return Ok(End::Here),
            Op::Kill => {
                self.resolve_all_contests()?;
                if self.keeps_a_part() {
                    return Ok(End::Here);
                }
                self.kill()?;
            }
            Op::Drain => match self.drain() {
                Err(_) if self.keeps_a_part() => return Ok(End::Here),
                drained => drained?,
            },
            _ => {
                let Some(call) = self.call_of(op) else { return Ok(End::Not) };
                if let Call::SetMtime { path, .. } | Call::Chmod { path, .. } = &call
                    && self.model.live_at(path).is_some_and(|id| self.model.lives[&id].was_seen)
                {
                    // Of what the server has, or of what will be sent?
                    return Ok(End::Here);
                }
                self.resolve_contests(&call)?;
                if self.keeps_a_part() {
                    return Ok(End::Here);
                }
                let end = self.run(&call);
                return if end.is_ok() && self.keeps_a_part() { Ok(End::Here) } else { end };
            }
        }
        self.trouble = None;
        self.compare_server()?;
        Ok(End::Not)
    }

    /// What the server must have; with write-back it has that later, and often the mount is looked
    /// at instead.
    fn compare(&mut self) -> Check {
        if self.mode == Mode::WriteBack && self.keeps_a_part() {
            return Ok(());
        }
        if self.mode == Mode::WriteBack && !self.is_contested() && !self.count.is_multiple_of(4) {
            return self.compare_visible("");
        }
        if self.send_promised()? { self.compare_server() } else { Ok(()) }
    }

    /// What write-back would do by and by. False if something stays unsent: where a conflict is to
    /// be settled first, nothing is sent.
    fn send_promised(&mut self) -> Check<bool> {
        if self.mode == Mode::Through {
            return Ok(true);
        }
        if self.keeps_a_part() {
            return Ok(false);
        }
        if self.is_contested() {
            return Ok(self.fs().vfs.pending().is_empty());
        }
        self.drain()?;
        self.compare_server()?;
        Ok(true)
    }

    fn is_contested(&self) -> bool {
        self.model.lives.values().any(|live| live.is_contested)
    }

    /// Everything is closed, sent and compared.
    pub fn finish(mut self) -> Check {
        self.trouble = None;
        self.close_all()?;
        let drained = self.fs().vfs.drain();
        // As a mount ends: what was sent in vain goes first.
        self.fs().vfs.release_all();
        if self.keeps_a_part() {
            return Ok(());
        }
        drained.map_err(|error| format!("the last drain: {error}"))?;
        let ids: Vec<u32> = self.model.lives.keys().copied().collect();
        for id in ids {
            self.model.commit(id);
            self.model.lives.remove(&id);
        }
        self.compare_server()?;
        self.compare_visible("")?;
        self.compare_left_over()
    }

    /// Others changed a file of which only a part is here: it cannot be put beside theirs, its writer
    /// got ESTALE, and it stays here. From then on the model, which knows only wholes, is no help.
    fn keeps_a_part(&self) -> bool {
        let pending = self.mount.as_ref().map(|mount| mount.vfs.pending()).unwrap_or_default();
        pending.iter().any(|file| {
            file.error.as_ref().is_some_and(|error| {
                ["was changed by others", "changed on the server"]
                    .iter()
                    .any(|why| error.contains(why))
            })
        })
    }

    fn compare_left_over(&self) -> Check {
        let pending = self.fs().vfs.pending();
        if !pending.is_empty() {
            return Err(format!("after a drain there is still {pending:?}"));
        }
        let staged: Vec<_> = std::fs::read_dir(self.fs().staging.path()).unwrap().collect();
        if !staged.is_empty() && !stays_staged_after_a_kill() {
            return Err(format!("left in the staging directory: {staged:?}"));
        }
        let (_, own) = self.tree();
        if !own.is_empty() && !self.may_leave_own {
            return Err(format!("left on the server: {own:?}"));
        }
        Ok(())
    }

    /// An operation with its arguments taken modulo what there is.
    fn call_of(&mut self, op: &Op) -> Option<Call> {
        let path = |index: u8| PATHS[index as usize].to_owned();
        self.count += 1;
        let bytes = |count: u64, length: usize| -> Vec<u8> {
            (0..length).map(|at| (count * 37 + at as u64 * 11 + at as u64 / 256) as u8).collect()
        };
        let count = self.count;
        Some(match *op {
            Op::Open { path: index, how } => Call::Open { path: path(index), how: how_of(how) },
            Op::Write { handle, at, length } => {
                let handle = self.handle(handle, |how| how.write)?;
                let offset = at as usize % (self.length_of(handle) + 60);
                Call::Write { handle, offset, bytes: bytes(count, length as usize + 1) }
            }
            Op::Append { handle, length } => {
                let handle = self.handle(handle, |how| how.write)?;
                let offset = self.length_of(handle);
                Call::Write { handle, offset, bytes: bytes(count, length as usize + 1) }
            }
            Op::AppendMuch { handle } => {
                let handle = self.handle(handle, |how| how.write)?;
                let offset = self.length_of(handle);
                Call::Write { handle, offset, bytes: bytes(count, 1_100_000) }
            }
            Op::Read { handle, at, length } => {
                let handle = self.handle(handle, |how| how.read)?;
                let offset = at as usize % (self.length_of(handle) + 10);
                Call::Read { handle, offset, length: length as usize + 1 }
            }
            Op::Fsync { handle } => Call::Fsync { handle: self.handle(handle, |how| how.write)? },
            Op::Close { handle } => Call::Close { handle: self.handle(handle, |_| true)? },
            Op::Truncate { path: index, size } => {
                Call::Truncate { path: path(index), size: size as usize }
            }
            Op::Mkdir { path: index } => Call::Mkdir { path: path(index) },
            Op::Rmdir { path: index } => Call::Rmdir { path: path(index) },
            Op::Unlink { path: index } => Call::Unlink { path: path(index) },
            Op::Rename { from, to } => Call::Rename { from: path(from), to: path(to) },
            Op::SetMtime { path: index } => {
                Call::SetMtime { path: path(index), seconds: self.new_time() }
            }
            Op::Chmod { path: index, mode } => {
                let mode = [0o600, 0o640, 0o755, 0o644][mode as usize % 4];
                Call::Chmod { path: path(index), mode }
            }
            Op::List { path: index } => Call::List { path: path(index) },
            Op::Look { path: index } => match count % 2 {
                0 => Call::Stat { path: path(index) },
                _ => Call::ReadAll { path: path(index) },
            },
            _ => return None,
        })
    }

    fn handle(&self, index: u8, wanted: impl Fn(How) -> bool) -> Option<usize> {
        let fitting: Vec<usize> =
            (0..self.fhs.len()).filter(|at| wanted(self.model.handles[*at].how)).collect();
        fitting.get(index as usize % fitting.len().max(1)).copied()
    }

    pub(super) fn live_of(&self, handle: usize) -> &Live {
        &self.model.lives[&self.model.handles[handle].live]
    }

    fn length_of(&self, handle: usize) -> usize {
        self.live_of(handle).bytes.len()
    }

    /// Days apart, and in the past: a version that differs is seen to differ.
    pub(super) fn new_time(&mut self) -> i64 {
        self.count += 1;
        1_000_000_000 + self.count as i64 * 86_400
    }

    // ---- calls ----

    pub(super) fn run(&mut self, call: &Call) -> Check<End> {
        let is_contested = match call {
            Call::Write { handle, .. } | Call::Read { handle, .. } | Call::Fsync { handle } => {
                self.live_of(*handle).is_contested
            }
            Call::Close { handle } => {
                let live = self.live_of(*handle);
                if live.is_contested {
                    let id = self.model.handles[*handle].live;
                    self.trouble = None;
                    self.resolve_contest(id)?;
                    return Ok(End::Not);
                }
                false
            }
            _ => false,
        };
        if is_contested {
            self.trouble = None;
            return self.run_contested(call);
        }
        if let Call::Rename { from, .. } = call {
            // What is sent ahead into a directory that moves is lost sight of.
            let is_ahead = |live: &Live| live.bytes.len() > 1_000_000 && live.handles > 0;
            let mut below = self.model.lives.values().filter(|live| is_ahead(live));
            let is_moved = |live: &Live| live.path.as_ref().is_some_and(|p| is_within(p, from));
            let mut unsent = self.model.lives.values().filter(|live| live.was_refused);
            let is_below = |live: &Live| {
                live.path.as_ref().is_some_and(|path| path != from && is_within(path, from))
            };
            self.has_old_notes |= !policy::notes_follow_a_directory() && unsent.any(is_below);
            self.may_leave_own |= !policy::follows_what_is_sent_ahead() && below.any(is_moved);
        }
        let trouble = self.trouble.take();
        if trouble.is_some() && !self.send_promised()? {
            return Ok(End::Here);
        }
        let before = self.model.clone();
        let expected = self.model.apply(call);
        if let Some(trouble) = &trouble {
            self.may_leave_own = true;
            self.is_failing = true;
            trouble.begin(&self.server);
        }
        let actual = self.perform(call);
        self.is_failing = false;
        if trouble.is_some() {
            self.end_trouble()?;
            return self.judge(call, before, expected, actual);
        }
        if actual != expected {
            return Err(format!("{call:?} gave {}, not {}", show(&actual), show(&expected)));
        }
        self.compare()?;
        Ok(End::Not)
    }

    pub(super) fn perform(&mut self, call: &Call) -> Result<Reply, Fail> {
        let fs = self.mount.as_ref().unwrap();
        match call {
            Call::Open { path, how } => {
                let fh = fs.open_handle(path.as_bytes(), *how)?;
                self.fhs.push(fh);
            }
            Call::Write { handle, offset, bytes } => {
                fs.vfs.write(self.fhs[*handle], *offset as u64, bytes)?;
            }
            Call::Read { handle, offset, length } => {
                let take = |bytes: &[u8]| bytes.to_vec();
                let fh = self.fhs[*handle];
                return Ok(Reply::Bytes(fs.vfs.read(fh, *offset as u64, *length, take)?));
            }
            Call::Fsync { handle } => fs.vfs.fsync(self.fhs[*handle])?,
            Call::Close { handle } => {
                let fh = self.fhs.remove(*handle);
                let flushed = fs.vfs.flush(fh);
                // What close promised is sent while the server fails.
                let flushed = match self.mode {
                    Mode::WriteBack if self.is_failing => flushed.and_then(|()| fs.vfs.fsync(fh)),
                    _ => flushed,
                };
                fs.vfs.release(fh);
                flushed?;
            }
            Call::Truncate { path, size } => fs.truncate(path.as_bytes(), *size as u64)?,
            Call::Mkdir { path } => fs.mkdir(path.as_bytes())?,
            Call::Rmdir { path } => fs.rmdir(path.as_bytes())?,
            Call::Unlink { path } => fs.unlink(path.as_bytes())?,
            Call::Rename { from, to } => fs.rename(from.as_bytes(), to.as_bytes())?,
            Call::SetMtime { path, seconds } => fs.set_mtime(path.as_bytes(), *seconds)?,
            Call::Chmod { path, mode } => fs.chmod(path.as_bytes(), *mode)?,
            Call::List { path } => {
                let names = fs.names(path.as_bytes())?;
                let text = |name: Vec<u8>| String::from_utf8(name).unwrap();
                return Ok(Reply::Names(names.into_iter().map(text).collect()));
            }
            Call::Stat { path } => {
                let stat = fs.stat(path.as_bytes())?;
                if stat.is_dir {
                    return Ok(Reply::Stat(true, 0, None));
                }
                // Only a time that somebody has set is predicted.
                let known = match self.model.visible(path) {
                    Some(Node::File(file)) => file.mtime.map(|_| stat.mtime),
                    _ => None,
                };
                return Ok(Reply::Stat(false, stat.size as usize, known));
            }
            Call::ReadAll { path } => return Ok(Reply::Bytes(fs.read(path.as_bytes())?)),
        }
        Ok(Reply::Done)
    }

    /// The fault is over: everything works again, if not at once.
    pub(super) fn end_trouble(&self) -> Check {
        self.server.clear_faults();
        self.server.release();
        let until = Instant::now() + PATIENCE;
        while self.fs().names(b"").is_err() {
            if Instant::now() > until {
                return Err("nothing works any more after a fault".into());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// After a call during which something went wrong.
    fn judge(
        &mut self,
        call: &Call,
        before: Reference,
        expected: Result<Reply, Fail>,
        actual: Result<Reply, Fail>,
    ) -> Check<End> {
        let told = format!("{call:?} during a fault gave {}", show(&actual));
        match (&actual, &expected) {
            (Ok(actual), Ok(expected)) if actual == expected => {
                self.adopt_attributes();
                self.compare_server().map_err(|wrong| format!("{told}: {wrong}"))?;
                // Where it cannot be hidden for those who have it open, they lose it.
                let has_lost = |id: &u32| {
                    let live = self.model.lives.get(id);
                    live.is_some_and(|live| live.path.is_none() && !live.is_dirty)
                };
                let is_lost = before.lives.keys().any(has_lost);
                return Ok(if is_lost { End::Here } else { End::Not });
            }
            (Err(fail), Err(_)) if actual == expected || may_fail_with(*fail) => {
                self.model = before;
                self.adopt_attributes();
                self.compare_server().map_err(|wrong| format!("{told}: {wrong}"))?;
                return Ok(End::Not);
            }
            (Err(fail), Ok(_)) if may_fail_with(*fail) => {}
            _ => return Err(format!("{told}, not {}", show(&expected))),
        }
        let after = std::mem::replace(&mut self.model, before);
        self.before_or_after(&after).map_err(|wrong| format!("{told}: {wrong}"))?;
        match call {
            Call::Close { handle } => {
                let live = self.model.handles[*handle].live;
                if self.live_of(*handle).path.is_none() && !policy::never_sends_what_is_unlinked() {
                    return Ok(End::Here);
                }
                self.model.drop_handle(*handle);
                self.after_failed_commit(live, &after).map_err(|wrong| format!("{told}: {wrong}"))
            }
            Call::Truncate { path, .. } => {
                // It may be cut here and unsent, or as it was: what is shown tells.
                let cut = after.visible(path);
                let kept = self.model.live_at(path).filter(|id| self.model.lives[id].handles == 0);
                if let (Some(kept), false) = (kept, self.is_pending(path)) {
                    // Sent, and only the answer to the program was lost.
                    if !same_content(self.model.server.get(path), cut.as_ref()) {
                        return Err(format!("{told}: {path} is neither sent nor pending"));
                    }
                    self.model.lives.remove(&kept);
                    return Ok(End::Not);
                }
                let (true, Some(Node::File(cut))) = (self.is_pending(path), cut) else {
                    return Ok(End::Not);
                };
                let shown = self.fs().stat(path.as_bytes());
                if shown.is_ok_and(|shown| shown.size == cut.bytes.len() as u64) {
                    match self.model.live_at(path) {
                        Some(id) => {
                            let live = self.model.lives.get_mut(&id).unwrap();
                            live.refused = Some(cut.bytes.clone());
                            (live.bytes, live.is_dirty, live.was_refused) = (cut.bytes, true, true);
                        }
                        None => self.model.keep_unsent(path, cut.bytes),
                    }
                }
                Ok(End::Not)
            }
            Call::Rename { .. } | Call::Unlink { .. } | Call::Rmdir { .. }
                if self.is_anybody_affected(&after) =>
            {
                // Which name the open files have now, only the mount knows.
                Ok(End::Here)
            }
            // Whether it will be set with the content, nobody can tell.
            Call::Chmod { path, .. } | Call::SetMtime { path, .. }
                if self.model.live_at(path).is_some() =>
            {
                Ok(End::Here)
            }
            _ => Ok(End::Not),
        }
    }

    /// A call failed: every file is as it was before, or as it should be after.
    fn before_or_after(&mut self, after: &Reference) -> Check {
        let (actual, _) = self.tree();
        let before = &self.model;
        let paths = actual.keys().chain(before.server.keys()).chain(after.server.keys());
        for path in paths {
            let is = actual.get(path);
            let same = |state: &Reference| same_content(is, state.server.get(path));
            if same(before) || same(after) || before.may_be_sent(path, is) {
                continue;
            }
            if may_be_partly_there(before, after, path, is) || policy::made_way(before, path, is) {
                continue;
            }
            return Err(format!(
                "{path} is {}, before {}, after {}",
                brief(is),
                brief(before.server.get(path)),
                brief(after.server.get(path))
            ));
        }
        self.adopt_server();
        Ok(())
    }

    /// `close` told an error: what it was about is pending, or it is on the server.
    fn after_failed_commit(&mut self, id: u32, after: &Reference) -> Check<End> {
        let Some(live) = self.model.lives.get(&id) else { return Ok(End::Not) };
        let Some(path) = live.path.clone() else { return Ok(End::Not) };
        if live.handles > 0 || self.is_pending(&path) {
            let live = self.model.lives.get_mut(&id).unwrap();
            live.was_refused = true;
            live.refused = Some(live.bytes.clone());
            return Ok(End::Not);
        }
        let (is_empty, is_new) = (live.bytes.is_empty(), live.is_new);
        let there = self.model.server.get(&path);
        let is_there = same_content(there, after.server.get(&path));
        // A new file without a byte that was refused: nothing is lost with it.
        if is_there || (is_empty && is_new) {
            self.model.lives.remove(&id);
            return Ok(End::Not);
        }
        Err(format!("{path} is neither on the server nor pending"))
    }

    fn is_anybody_affected(&self, after: &Reference) -> bool {
        let path =
            |reference: &Reference, id: &u32| reference.lives.get(id).map(|live| live.path.clone());
        self.model.lives.keys().any(|id| path(&self.model, id) != path(after, id))
    }

    pub(super) fn is_pending(&self, path: &str) -> bool {
        self.fs().vfs.pending().iter().any(|pending| pending.path == format!("/{path}"))
    }
}

/// Each world has its own.
fn next_address() -> Ipv4Addr {
    static COUNT: AtomicU16 = AtomicU16::new(0);
    let [high, low] = COUNT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    Ipv4Addr::new(127, 1, high, low.clamp(1, 254))
}
