//! One thread that works in a directory of its own and knows what must be there.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::model::{Content, Model, State};
use super::random::Random;

/// The largest file that is made at once, and the largest that is still appended to.
const LARGEST: usize = 3 * 1024 * 1024;
const APPEND_UP_TO: usize = 5 * 1024 * 1024;

/// Names in one directory: few enough that they meet again and again.
const NAMES: usize = 16;

/// So many bytes tell where they come from.
const ORIGIN: usize = 16;

/// With so many possible states of one name, only removing it makes it certain again.
const STATES: usize = 6;

/// After a failure nobody tries again at once: while the server cannot be reached, thousands of
/// operations would fail in a second.
const PAUSE: Duration = Duration::from_millis(50);

/// What all threads share.
pub(crate) struct Shared {
    started: Instant,
    /// A call that takes longer hangs.
    pub(crate) limit: Duration,
    evidence: PathBuf,
    abandoned: AtomicBool,
    record: Mutex<Record>,
}

#[derive(Default)]
pub(crate) struct Record {
    pub(crate) operations: BTreeMap<&'static str, usize>,
    pub(crate) failed: BTreeMap<&'static str, usize>,
    /// By errno and call.
    pub(crate) errors: BTreeMap<(i32, &'static str), usize>,
    pub(crate) read: u64,
    pub(crate) written: u64,
    pub(crate) longest: Option<(Duration, String)>,
    /// What must not be.
    pub(crate) wrong: Vec<String>,
    /// Where bytes come from, by the first of them.
    origins: BTreeMap<Vec<u8>, String>,
    /// Calls under way, by worker.
    pub(crate) current: BTreeMap<usize, (Instant, String)>,
}

impl Shared {
    pub(crate) fn new(limit: Duration, evidence: PathBuf) -> Self {
        Self {
            started: Instant::now(),
            limit,
            evidence,
            abandoned: AtomicBool::new(false),
            record: Mutex::default(),
        }
    }

    /// The mount is gone: nobody goes on.
    pub(crate) fn abandon(&self) {
        self.abandoned.store(true, Ordering::SeqCst);
    }

    fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::SeqCst)
    }

    pub(crate) fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Something is wrong: the run fails.
    pub(crate) fn wrong(&self, text: &str) {
        let clock = chrono::DateTime::<chrono::Utc>::from(std::time::SystemTime::now());
        let text = format!("{:.1} s ({}): {text}", self.seconds(), clock.format("%H:%M:%S%.3f"));
        println!("WRONG after {text}");
        self.record().wrong.push(text);
    }

    /// Keeps bytes that should have been others.
    fn keep(&self, name: &str, bytes: &[u8]) {
        let path = self.evidence.join(name);
        let kept = fs::create_dir_all(&self.evidence).and_then(|()| fs::write(&path, bytes));
        if let Err(error) = kept {
            println!("cannot keep {}: {error}", path.display());
        }
    }
}

pub(crate) struct Worker {
    shared: Arc<Shared>,
    number: usize,
    directory: PathBuf,
    random: Random,
    model: Model,
}

impl Worker {
    pub(crate) fn new(shared: Arc<Shared>, number: usize, mount: &Path, seed: u64) -> Self {
        let directory = mount.join(directory_name(number));
        Self { shared, number, directory, random: Random::new(seed), model: Model::default() }
    }

    /// Works until then; what the directory must hold at the end.
    pub(crate) fn run(mut self, until: Instant) -> Model {
        while Instant::now() < until && !self.shared.is_abandoned() {
            let (kind, result) = self.step();
            let mut record = self.shared.record();
            *record.operations.entry(kind).or_insert(0) += 1;
            if result.is_err() {
                *record.failed.entry(kind).or_insert(0) += 1;
                drop(record);
                std::thread::sleep(PAUSE);
            }
        }
        self.model
    }

    fn step(&mut self) -> (&'static str, io::Result<()>) {
        let name = format!("f{:02}", self.random.below(NAMES));
        let choice = self.random.below(100);
        if self.model.must_be_absent(&name) {
            return match choice {
                0..15 => ("list", self.list()),
                _ => ("create", self.create(&name)),
            };
        }
        if self.model.states(&name).len() > STATES {
            return ("delete", self.delete(&name));
        }
        match choice {
            0..35 => ("read", self.read_all(&name)),
            35..45 => ("read a range", self.read_range(&name)),
            45..52 => ("list", self.list()),
            52..64 => ("overwrite", self.overwrite(&name)),
            64..76 => ("append", self.append(&name)),
            76..90 => {
                let to = format!("f{:02}", self.random.below(NAMES));
                if to == name { ("list", self.list()) } else { ("rename", self.rename(&name, &to)) }
            }
            _ => ("delete", self.delete(&name)),
        }
    }

    /// One system call on the mount: timed, and its failure counted.
    fn call<T>(
        &mut self,
        what: &'static str,
        name: &str,
        call: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        let label = format!("{what} {}/{name}", directory_name(self.number));
        let started = Instant::now();
        self.shared.record().current.insert(self.number, (started, label.clone()));
        let result = call();
        let took = started.elapsed();
        let mut record = self.shared.record();
        record.current.remove(&self.number);
        if let Err(error) = &result {
            let errno = error.raw_os_error().unwrap_or(0);
            *record.errors.entry((errno, what)).or_insert(0) += 1;
        }
        if record.longest.as_ref().is_none_or(|(longest, _)| took > *longest) {
            record.longest = Some((took, label.clone()));
        }
        drop(record);
        if took > self.shared.limit {
            self.shared.wrong(&format!("{label} took {:.1} s", took.as_secs_f64()));
        }
        if let Err(error) = &result {
            self.judge(&label, name, error);
        }
        result
    }

    /// Errors of connections are expected. What is said of names must be true all the same.
    fn judge(&mut self, label: &str, name: &str, error: &io::Error) {
        let lie = match error.raw_os_error() {
            Some(libc::ENOENT) => self.model.must_be_there(name),
            Some(libc::EEXIST) => self.model.must_be_absent(name),
            // Errors that no broken connection explains.
            Some(
                libc::EISDIR
                | libc::ENOTDIR
                | libc::EINVAL
                | libc::EBADF
                | libc::ENOTCONN
                | libc::ENODATA
                | libc::EPERM
                | libc::EROFS
                | libc::EOPNOTSUPP
                | libc::ENOSYS,
            ) => true,
            _ => false,
        };
        if lie && !self.shared.is_abandoned() {
            let states = self.model.describe(name);
            self.shared.wrong(&format!("{label}: {error}; but it is {states}"));
            if !name.is_empty() {
                self.model.give_up(name);
            }
        }
    }

    fn note_origin(&self, what: &str, name: &str, bytes: &[u8]) {
        let Some(first) = bytes.get(..ORIGIN) else { return };
        let label = format!(
            "{what} {}/{name} after {:.1} s",
            directory_name(self.number),
            self.shared.seconds()
        );
        self.shared.record().origins.insert(first.to_vec(), label);
    }

    fn content(&mut self, largest: usize) -> (u64, usize) {
        let length = match self.random.below(10) {
            0 => 0,
            1..5 => self.random.below(64 * 1024),
            _ => self.random.below(largest),
        };
        (self.random.next(), length)
    }

    fn create(&mut self, name: &str) -> io::Result<()> {
        let (seed, length) = self.content(LARGEST);
        let content = Content::new(seed, length);
        self.model.touch(name);
        let path = self.directory.join(name);
        let options = OpenOptions::new().write(true).create_new(true).clone();
        let file = self.call("create", name, || options.open(&path))?;
        // From here on the new name may be there, with any part of the content.
        self.model.add(name, [State::Part { of: content.clone(), least: 0 }]);
        self.store("create", name, file, &content.bytes())?;
        self.model.set(name, vec![State::Whole(content)]);
        Ok(())
    }

    fn overwrite(&mut self, name: &str) -> io::Result<()> {
        let (seed, length) = self.content(LARGEST);
        let content = Content::new(seed, length);
        self.model.touch(name);
        let path = self.directory.join(name);
        let options = OpenOptions::new().write(true).truncate(true).clone();
        let file = self.call("open to overwrite", name, || options.open(&path))?;
        // A part may be there only where no good file was.
        let is_good = |state: &State| matches!(state, State::Whole(_));
        let whole = State::Whole(content.clone());
        if self.model.states(name).iter().all(is_good) {
            self.model.add(name, [whole.clone()]);
        } else {
            self.model.add(name, [State::Part { of: content.clone(), least: 0 }]);
        }
        self.store("overwrite", name, file, &content.bytes())?;
        self.model.set(name, vec![whole]);
        Ok(())
    }

    fn append(&mut self, name: &str) -> io::Result<()> {
        let before = self.model.states(name);
        let fits = |state: &State| match state {
            State::Absent => true,
            State::Whole(content) => content.length() <= APPEND_UP_TO,
            State::Part { .. } | State::Anything => false,
        };
        if !before.iter().all(fits) {
            return self.overwrite(name);
        }
        let (seed, length) = self.content(LARGEST / 4);
        self.model.touch(name);
        let path = self.directory.join(name);
        let options = OpenOptions::new().append(true).clone();
        let file = self.call("open to append", name, || options.open(&path))?;
        let longer: Vec<State> = before
            .iter()
            .filter_map(|state| match state {
                State::Whole(content) => Some(State::Whole(content.and(seed, length))),
                _ => None,
            })
            .collect();
        self.model.add(name, longer.clone());
        let added = Content::new(seed, length).bytes();
        self.store("append", name, file, &added)?;
        self.model.set(name, longer);
        Ok(())
    }

    /// Writes in odd steps, then asks for everything to be safe. A file closed after an error is
    /// sent by its close, so that part of the content may be taken for the whole: the model hears.
    fn store(
        &mut self,
        what: &'static str,
        name: &str,
        mut file: File,
        bytes: &[u8],
    ) -> io::Result<()> {
        self.note_origin(what, name, bytes);
        let mut at = 0;
        let mut result = Ok(());
        while at < bytes.len() && result.is_ok() {
            let step = 1 + self.random.below(300_000);
            let part = bytes.get(at..(at + step).min(bytes.len())).unwrap_or_default();
            result = self.call("write", name, || file.write_all(part));
            at += part.len();
        }
        let is_cut = result.is_err();
        if !is_cut {
            result = self.call("fsync", name, || file.sync_all());
        }
        self.call("close", name, || {
            drop(file);
            Ok(())
        })?;
        if is_cut {
            self.model.admit_cut(name);
        }
        if result.is_ok() {
            self.shared.record().written += bytes.len() as u64;
        }
        result
    }

    fn read_all(&mut self, name: &str) -> io::Result<()> {
        let path = self.directory.join(name);
        let mut file = self.call("open to read", name, || File::open(&path))?;
        let mut bytes = Vec::new();
        let mut block = vec![0; 1 + self.random.below(400_000)];
        let result = loop {
            match self.call("read", name, || file.read(&mut block)) {
                Ok(0) => break Ok(()),
                Ok(count) => bytes.extend_from_slice(block.get(..count).unwrap_or_default()),
                Err(error) => break Err(error),
            }
        };
        self.call("close", name, || {
            drop(file);
            Ok(())
        })?;
        // Also what came before an error must be right.
        let asked = if result.is_ok() { usize::MAX } else { bytes.len() };
        self.compare(name, &bytes, 0, asked);
        result
    }

    fn read_range(&mut self, name: &str) -> io::Result<()> {
        let path = self.directory.join(name);
        let mut file = self.call("open to read", name, || File::open(&path))?;
        let (offset, length) = (self.random.below(LARGEST), 1 + self.random.below(200_000));
        let mut bytes = vec![0; length];
        let mut filled = 0;
        let result = self.call("read", name, || {
            file.seek(SeekFrom::Start(offset as u64))?;
            loop {
                match file.read(bytes.get_mut(filled..).unwrap_or_default())? {
                    0 => return Ok(()),
                    count => filled += count,
                }
            }
        });
        self.call("close", name, || {
            drop(file);
            Ok(())
        })?;
        bytes.truncate(filled);
        self.compare(name, &bytes, offset, if result.is_ok() { length } else { filled });
        result
    }

    fn compare(&mut self, name: &str, bytes: &[u8], offset: usize, length: usize) {
        self.shared.record().read += bytes.len() as u64;
        if self.model.allows(name, bytes, offset, length) {
            return;
        }
        let label = format!("{}/{name}", directory_name(self.number));
        let origin = bytes.get(..ORIGIN).unwrap_or_default();
        let origin = self.shared.record().origins.get(origin).cloned();
        let what = if offset == 0 {
            let origin = origin.map(|origin| format!(" (begins like {origin})"));
            self.model.compare(name, bytes) + &origin.unwrap_or_default()
        } else {
            format!("{} of {length} bytes at {offset}", bytes.len())
        };
        let states = self.model.describe(name);
        self.shared.wrong(&format!("{label} was read as {what}; allowed: {states}"));
        self.shared.keep(&format!("{}-{name}-{:.1}", self.number, self.shared.seconds()), bytes);
        self.model.give_up(name);
    }

    fn list(&mut self) -> io::Result<()> {
        let directory = self.directory.clone();
        let names = self.call("list", "", || {
            let entries: io::Result<Vec<_>> = fs::read_dir(&directory)?.collect();
            Ok(entries?
                .iter()
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect::<Vec<_>>())
        })?;
        let missing = self
            .model
            .names()
            .filter(|name| self.model.must_be_there(name) && !names.contains(name))
            .map(|name| (name.clone(), "is not listed, but it is"));
        let surplus = names
            .iter()
            .filter(|name| self.model.must_be_absent(name))
            .map(|name| (name.clone(), "is listed, but it is"));
        let lies: Vec<(String, &str)> = missing.chain(surplus).collect();
        for (name, lie) in lies {
            let states = self.model.describe(&name);
            let label = directory_name(self.number);
            self.shared.wrong(&format!("list of {label}: {name} {lie} {states}"));
            self.model.give_up(&name);
        }
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.model.touch(from);
        self.model.touch(to);
        let (old, new) = (self.directory.join(from), self.directory.join(to));
        let result = self.call("rename", from, || fs::rename(&old, &new));
        let moved = self.model.states(from).into_iter().filter(|state| *state != State::Absent);
        if result.is_ok() {
            let moved = moved.collect();
            self.model.set(to, moved);
            self.model.set(from, vec![State::Absent]);
        } else {
            let moved: Vec<State> = moved.collect();
            self.model.add_move(from, to);
            self.model.add(to, moved);
            self.model.add(from, [State::Absent]);
        }
        result
    }

    fn delete(&mut self, name: &str) -> io::Result<()> {
        self.model.touch(name);
        let path = self.directory.join(name);
        let result = self.call("delete", name, || fs::remove_file(&path));
        if result.is_ok() {
            self.model.set(name, vec![State::Absent]);
        } else {
            self.model.add(name, [State::Absent]);
        }
        result
    }
}

pub(crate) fn directory_name(number: usize) -> String {
    format!("worker{number}")
}
