//! Several programs at once at a few names, through the kernel: whatever one reads is one version of
//! one file, whole, while others rename files over it.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::drivers::{Kernel, has_fuse};
use crate::support::dialect::Dialect;
use crate::support::server::{PATIENCE, Server};

const PROGRAMS: u64 = 6;

/// What each of them does, by default; `FTPFS_TOGETHER_STEPS` says otherwise (`scripts/soak`).
const STEPS: u64 = 120;

/// Few, so that they meet.
const NAMES: [&str; 5] = ["a", "b", "c", "d/x", "d/y"];

/// Below a page, several pages, several requests.
const SIZES: [usize; 6] = [40, 500, 5_000, 70_000, 300_000, 2_000_000];

/// Every line of a version tells which one it is, and how long.
fn version(number: u64, size: usize) -> Vec<u8> {
    let line = format!("{number:09} {size:09}\n").into_bytes();
    line.iter().copied().cycle().take(size.max(line.len())).collect()
}

/// Is it one version, whole?
fn check(bytes: &[u8]) -> Result<(), String> {
    let line = bytes.get(..20).and_then(|line| std::str::from_utf8(line).ok());
    let mut words = line.unwrap_or_default().split_whitespace().map(str::parse::<u64>);
    let (Some(Ok(number)), Some(Ok(size))) = (words.next(), words.next()) else {
        return Err(format!("{} bytes that nobody wrote", bytes.len()));
    };
    let wanted = version(number, usize::try_from(size).unwrap());
    let differs = bytes.iter().zip(&wanted).position(|(got, wanted)| got != wanted);
    match differs {
        None if bytes.len() == wanted.len() => Ok(()),
        _ => Err(format!(
            "version {number} of {size} bytes: {} are there, wrong at {differs:?}",
            bytes.len()
        )),
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        // xorshift64* (Vigna 2016).
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % end
    }

    fn name(&mut self) -> &'static str {
        NAMES[self.below(NAMES.len())]
    }
}

/// One program's step.
fn step(root: &Path, program: u64, random: &mut Random, last: &AtomicU64) -> Result<(), String> {
    let name = random.name();
    let path = root.join(name);
    let fresh = |path: &Path, random: &mut Random| -> std::io::Result<()> {
        let number = last.fetch_add(1, Ordering::Relaxed);
        fs::File::create(path)?.write_all(&version(number, SIZES[random.below(SIZES.len())]))
    };
    let done = match random.below(10) {
        0..3 => {
            let aside = path.with_file_name(format!("new{program}"));
            fresh(&aside, random).and_then(|()| fs::rename(&aside, &path))
        }
        3..6 => fs::read(&path).and_then(|bytes| check(&bytes).map_err(std::io::Error::other)),
        6 => fs::File::open(&path).and_then(|mut file| {
            let (mut bytes, mut block) = (Vec::new(), vec![0; 1 + random.below(200_000)]);
            loop {
                match file.read(&mut block)? {
                    0 => return check(&bytes).map_err(std::io::Error::other),
                    count => bytes.extend_from_slice(&block[..count]),
                }
            }
        }),
        7 => fs::rename(&path, root.join(random.name())),
        8 => fs::metadata(&path).map(drop),
        _ => {
            let own = root.join(format!("own{program}"));
            fresh(&own, random)
                .and_then(|()| fs::read(&own))
                .and_then(|bytes| check(&bytes).map_err(std::io::Error::other))
                .and_then(|()| fs::remove_file(&own))
        }
    };
    unless_gone(name, done)
}

/// A step of a program that writes files where they are: what is in them then is whoever's, but each
/// call does what it says.
fn rewrite(root: &Path, random: &mut Random, last: &AtomicU64) -> Result<(), String> {
    let name = random.name();
    let path = root.join(name);
    let number = last.fetch_add(1, Ordering::Relaxed);
    let done = match random.below(10) {
        0..3 => fs::write(&path, version(number, SIZES[random.below(SIZES.len())])),
        3..5 => {
            let append = fs::OpenOptions::new().append(true).create(true).open(&path);
            append.and_then(|mut file| file.write_all(&version(number, 20)))
        }
        5 => fs::read(&path).map(drop),
        6..8 => fs::rename(&path, root.join(random.name())),
        8 => fs::remove_file(&path),
        _ => fs::OpenOptions::new().write(true).truncate(true).open(&path).map(drop),
    };
    unless_gone(name, done)
}

/// Names come and go; who is always a step behind is told so.
fn unless_gone(name: &str, done: std::io::Result<()>) -> Result<(), String> {
    match done {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::ESTALE) => Ok(()),
        done => done.map_err(|error| format!("{name}: {error}")),
    }
}

/// All programs at work in one mount; then the server has what the mount shows, and nothing of our own.
fn run(
    step: impl Fn(&Path, u64, &mut Random, &AtomicU64) -> Result<(), String> + Sync,
) -> Option<(Server, Kernel)> {
    if !has_fuse() {
        println!("SKIPPED: several programs at once: /dev/fuse cannot be opened");
        return None;
    }
    let steps = std::env::var("FTPFS_TOGETHER_STEPS");
    let steps = steps.map_or(STEPS, |steps| steps.parse().expect("a number of steps"));
    let server = Server::start(Dialect::proftpd());
    server.mkdir("/d");
    server.set_delay(Duration::from_millis(1));
    let kernel = Kernel::new(&server, 8, Duration::from_secs(10));
    let (last, wrong) = (AtomicU64::new(1), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for program in 1..=PROGRAMS {
            let (root, step, last, wrong) = (&kernel.root, &step, &last, &wrong);
            scope.spawn(move || {
                let mut random = Random(program.wrapping_mul(0x9E37_79B9_7F4A_7C15));
                for _ in 0..steps {
                    if let Err(what) = step(root, program, &mut random, last) {
                        wrong.lock().unwrap().push(what);
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} times:\n{}", wrong.len(), wrong.join("\n"));
    for directory in ["", "d"] {
        let entries = fs::read_dir(kernel.root.join(directory)).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_encoded_bytes()).collect();
        names.sort();
        let known = |name: &Vec<u8>| {
            NAMES
                .iter()
                .any(|known| Path::new(known).file_name().unwrap().as_encoded_bytes() == name)
                || name == b"d"
        };
        assert!(names.iter().all(known), "{names:?}");
        let there = |server: &Server| {
            let mut there = server.names(format!("/{directory}"));
            there.sort();
            there
        };
        let is_same = |server: &Server| there(server) == names;
        assert!(server.wait_until(is_same, PATIENCE), "{:?} and {names:?}", there(&server));
        for name in names.iter().filter(|name| *name != b"d") {
            let path = Path::new(directory).join(std::str::from_utf8(name).unwrap());
            let there = server.get(format!("/{}", path.display())).unwrap();
            assert!(fs::read(kernel.root.join(&path)).unwrap() == there, "{}", path.display());
        }
    }
    Some((server, kernel))
}

#[test]
fn what_one_reads_is_one_version_whatever_the_others_do() {
    let Some((server, _kernel)) = run(step) else { return };
    for name in NAMES {
        server.get(format!("/{name}")).iter().for_each(|bytes| check(bytes).unwrap());
    }
}

#[test]
fn programs_that_write_the_same_files_meet_no_errors_and_leave_nothing_behind() {
    run(|root, _, random, last| rewrite(root, random, last));
}
