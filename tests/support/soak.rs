//! `soak`: works in a mount for a long time while a proxy kills its connections, and looks for
//! wrong bytes, lost files, hanging calls and leaks.
//!
//! Operations may fail meanwhile, and what they left is unknown then (see `soak/model.rs`). At the
//! end the served directory itself is compared. Needs root or the same user, Linux and /dev/fuse;
//! `scripts/soak` starts it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::print_stdout)]

#[path = "soak/model.rs"]
mod model;
#[path = "soak/mount.rs"]
mod mount;
#[path = "soak/proxy.rs"]
mod proxy;
#[path = "soak/random.rs"]
mod random;
#[path = "mod.rs"]
mod support;
#[path = "soak/worker.rs"]
mod worker;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use clap::Parser;

use model::Model;
use mount::{Mount, Usage};
use proxy::{Cut, Kind, Proxy};
use random::Random;
use support::dialect::Dialect;
use support::server::{self, Server};
use worker::{Shared, Worker, directory_name};

/// How long ftpfs waits for the server.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How long a call may take: a few waits, one after the other.
const LIMIT: Duration = Duration::from_secs(20);

/// After the last kill everything works again by then. ftpfs pauses for at most 15 s, and a quarter
/// of that, after failed connections.
const RECOVERY: Duration = Duration::from_secs(30);

/// Works in a mount whose connections are killed.
#[derive(Parser)]
#[command(name = "soak")]
struct Arguments {
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// The mean time between two kills
    #[arg(long, value_name = "MS", default_value_t = 200)]
    kill_ms: u64,
    /// How connections are killed
    #[arg(long, default_value = "both", value_parser = ["both", "reset", "close"])]
    cut: String,
    /// Repeats a run, as far as threads allow
    #[arg(long)]
    seed: Option<u64>,
    #[arg(long, default_value_t = 4)]
    workers: usize,
    /// MiB per second through one data connection
    #[arg(long, value_name = "MIB", default_value_t = 16.0)]
    rate: f64,
    /// A directory for everything that is made
    #[arg(long, value_name = "DIR")]
    work: PathBuf,
    /// The directory that the server serves
    #[arg(long, value_name = "DIR")]
    served: PathBuf,
    /// An FTP server for that directory, in place of the scripted one
    #[arg(long, value_name = "ADDRESS:PORT")]
    server: Option<SocketAddr>,
    /// The ftpfs to try
    #[arg(long, value_name = "FILE")]
    ftpfs: PathBuf,
    /// Everything that ftpfs says goes into this file
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
}

fn main() -> ExitCode {
    match soak(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("soak: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Is all well?
fn soak(arguments: &Arguments) -> io::Result<bool> {
    let seed = arguments.seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |since| since.as_secs())
    });
    println!("seed {seed}, {} s, a kill every {} ms", arguments.seconds, arguments.kill_ms);
    let work = arguments.work.canonicalize()?;
    let (_scripted, upstream) = match arguments.server {
        Some(address) => (None, address),
        None => {
            let storage = server::disk(&arguments.served)?;
            let server = Server::bind(Dialect::default(), storage, 0)?;
            let address = server.addr();
            (Some(server), address)
        }
    };
    let proxy = Proxy::start(upstream, arguments.rate * 1024.0 * 1024.0)?;
    let mut mount =
        Mount::start(&arguments.ftpfs, &work, proxy.address(), TIMEOUT, arguments.log.as_deref())?;
    for number in 0..arguments.workers {
        fs::create_dir(mount.directory.join(directory_name(number)))?;
    }
    probe(&mount.directory)?;
    let start = mount.usage()?;
    print_usage("start", &start);

    let shared = Arc::new(Shared::new(LIMIT, work.join("evidence")));
    let (models, kills) = work_and_kill(arguments, seed, &mut mount, &proxy, &shared);
    print_work(&shared, &kills);

    let stopped = Instant::now();
    if mount::wait(RECOVERY, || probe(&mount.directory).is_ok()) {
        println!("works again {:.1} s after the last kill", stopped.elapsed().as_secs_f64());
    } else {
        shared.wrong(&format!("nothing works {} s after the last kill", RECOVERY.as_secs()));
    }
    look_for_leaks(&mount, &start, &shared);
    let asked = Instant::now();
    if let Err(message) = mount.umount() {
        shared.wrong(&message);
        mount.destroy();
    } else {
        println!("unmounted in {:.1} s", asked.elapsed().as_secs_f64());
        for left in mount.left_over() {
            shared.wrong(&left);
        }
    }
    check_served(&arguments.served, &models, &shared);

    let wrong = std::mem::take(&mut shared.record().wrong);
    let messages = mount.messages();
    if messages.contains("fault in ftpfs") || messages.contains("panicked") {
        println!("FAILED: ftpfs panicked:\n{messages}");
        return Ok(false);
    }
    match wrong.len() {
        0 => println!("soak: all is well (seed {seed})"),
        count => println!("soak: {count} things are wrong (seed {seed})"),
    }
    Ok(wrong.is_empty())
}

type Kills = BTreeMap<(Kind, Cut), usize>;

/// The work itself. Returns what each directory must hold.
fn work_and_kill(
    arguments: &Arguments,
    seed: u64,
    mount: &mut Mount,
    proxy: &Proxy,
    shared: &Arc<Shared>,
) -> (Vec<Model>, Kills) {
    let until = Instant::now() + Duration::from_secs(arguments.seconds);
    let directory = mount.directory.clone();
    std::thread::scope(|scope| {
        let (stop, stopped) = mpsc::channel::<()>();
        let killer = scope.spawn(move || kill(arguments, seed, proxy, &stopped));
        let workers: Vec<_> = (0..arguments.workers)
            .map(|number| {
                let seed = seed.wrapping_mul(1000).wrapping_add(number as u64);
                let worker = Worker::new(Arc::clone(shared), number, &directory, seed);
                scope.spawn(move || worker.run(until))
            })
            .collect();
        // A call that hangs is waited for twice as long as it may take, to see whether it ends.
        let patience = Duration::from_secs(arguments.seconds) + LIMIT * 3;
        mount::wait(patience, || {
            let longest = shared.record().current.values().map(|(since, _)| since.elapsed()).max();
            if longest.is_some_and(|longest| longest > LIMIT * 2) {
                let calls: Vec<String> =
                    shared.record().current.values().map(|(_, label)| label.clone()).collect();
                shared.wrong(&format!("hangs: {}", calls.join(", ")));
                shared.abandon();
                mount.destroy();
                return true;
            }
            if let Some(status) = mount.ended() {
                shared.wrong(&format!("ftpfs ended: {status}"));
                shared.abandon();
                mount.destroy();
                return true;
            }
            workers.iter().all(std::thread::ScopedJoinHandle::is_finished)
        });
        let models = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
        drop(stop);
        (models, killer.join().unwrap())
    })
}

/// Kills until it is told to stop.
fn kill(arguments: &Arguments, seed: u64, proxy: &Proxy, stopped: &mpsc::Receiver<()>) -> Kills {
    let mut random = Random::new(!seed);
    let mut kills = Kills::new();
    for count in 0_u64.. {
        let pause = random.wait(arguments.kill_ms as f64 / 1000.0);
        let told = stopped.recv_timeout(Duration::from_secs_f64(pause));
        if told != Err(RecvTimeoutError::Timeout) {
            break;
        }
        let cut = match (arguments.cut.as_str(), count % 2) {
            ("reset", _) | ("both", 0) => Cut::Reset,
            _ => Cut::Close,
        };
        if let Some(kind) = proxy.kill(&mut random, cut) {
            *kills.entry((kind, cut)).or_insert(0) += 1;
        }
    }
    kills
}

/// Writes a file, reads it back and removes it.
fn probe(mount: &Path) -> io::Result<()> {
    let path = mount.join("probe");
    let file = fs::File::create(&path)?;
    io::Write::write_all(&mut &file, b"is it there?")?;
    file.sync_all()?;
    drop(file);
    let read = fs::read(&path)?;
    fs::remove_file(&path)?;
    if read == b"is it there?" { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

fn print_usage(when: &str, usage: &Usage) {
    println!(
        "{when}: {} KiB of memory, {} threads, {} descriptors, {} connections ({} at work), \
         {} files not on the server",
        usage.rss_kib,
        usage.threads,
        usage.descriptors,
        usage.connections,
        usage.leased,
        usage.pending
    );
}

fn print_work(shared: &Shared, kills: &Kills) {
    let record = shared.record();
    let all: usize = record.operations.values().sum();
    let failed: usize = record.failed.values().sum();
    println!(
        "{all} operations, {failed} failed; {} MiB read, {} MiB written and synced",
        record.read >> 20,
        record.written >> 20
    );
    for (kind, count) in &record.operations {
        println!("  {kind}: {count}, {} failed", record.failed.get(kind).unwrap_or(&0));
    }
    println!("{} kills", kills.values().sum::<usize>());
    for ((kind, cut), count) in kills {
        println!("  {kind:?}, {cut:?}: {count}");
    }
    println!("{} errors", record.errors.values().sum::<usize>());
    for ((errno, call), count) in &record.errors {
        println!("  {count} × {call}: {}", io::Error::from_raw_os_error(*errno));
    }
    if let Some((longest, label)) = &record.longest {
        println!("the longest call: {:.1} s, {label}", longest.as_secs_f64());
    }
}

/// Compares with the start, once nothing is at work.
fn look_for_leaks(mount: &Mount, start: &Usage, shared: &Shared) {
    let mut end = *start;
    let settled = mount::wait(RECOVERY, || {
        let Ok(now) = mount.usage() else { return false };
        end = now;
        now.leased == 0 && leaks(start, &now).is_empty()
    });
    print_usage("end", &end);
    if settled {
        return;
    }
    for leak in leaks(start, &end) {
        shared.wrong(&leak);
    }
    if end.leased > 0 {
        shared.wrong(&format!("{} connections are at work, though nobody works", end.leased));
    }
    println!("  open: {}", mount.descriptors().join(" "));
}

fn leaks(start: &Usage, end: &Usage) -> Vec<String> {
    // Two descriptors for a control connection (one of them a copy, to shut it), one for a transfer
    // whose reply is still to be read; one for each file that waits to be sent; and two for whoever
    // asks for the state at this moment.
    let more = end.connections.saturating_sub(start.connections);
    let descriptors = start.descriptors + 3 * more + end.pending + 2;
    // The thread that answers who asks for the state, and one that is just ending.
    let threads = start.threads + 2;
    let mut leaks = Vec::new();
    if end.descriptors > descriptors {
        leaks.push(format!("{} descriptors, at most {descriptors} are right", end.descriptors));
    }
    if end.threads > threads {
        leaks.push(format!("{} threads, at most {threads} are right", end.threads));
    }
    leaks
}

/// The served directory itself holds what was promised, and nothing else.
fn check_served(served: &Path, models: &[Model], shared: &Shared) {
    let mut clutter = 0;
    let mut files = 0;
    for (number, model) in models.iter().enumerate() {
        let directory = served.join(directory_name(number));
        let mut names = Vec::new();
        for path in mount::files_below(&directory) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with(".ftpfs-") { clutter += 1 } else { names.push(name) }
        }
        files += names.len();
        for wrong in model.check(&names, |name| fs::read(directory.join(name)).ok()) {
            shared.wrong(&format!("on the server: {}/{wrong}", directory_name(number)));
        }
    }
    println!("on the server: {files} files, {clutter} left over with names of ftpfs's own");
}
