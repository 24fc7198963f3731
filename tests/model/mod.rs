//! The model test: random sequences of operations on a mount, each predicted by a simple reference.
//!
//! `reference` says what should happen and `policy` what was decided; `operations` draws sequences;
//! `world` runs one against the scripted server, with `trouble` (what goes wrong) and `others` (the
//! other client, and the end of the mount), and `compare` looks at everything.
//!
//! Each failure names its seed and the shortest sequence that fails, as Rust: keep it below as a
//! test of its own. `FTPFS_MODEL_SEQUENCES=10000 FTPFS_MODEL_SEED=7 cargo test model::` runs longer.

mod compare;
mod operations;
mod others;
mod policy;
#[path = "../support/soak/random.rs"]
#[allow(dead_code)]
mod random;
mod reference;
mod trouble;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use operations::{Mood, Op, draw};
use random::Random;
use trouble::Trouble;
use world::{End, Mode, World};

/// Sequences of one run in `cargo test`: a few seconds.
const SEQUENCES: usize = 300;

/// Nothing waits so long unless the server is silent on purpose; then this is what it costs.
const SLOW: Duration = Duration::from_millis(700);
const PATIENT: Duration = Duration::from_secs(20);

/// Runs a sequence; what was wrong, if anything was.
fn run(ops: &[Op], mode: Mode) -> Result<(), String> {
    let is_slow = ops.iter().any(|op| match *op {
        Op::Fault { what, on, nth, times } => Trouble::new(what, on, nth, times).is_slow(),
        _ => false,
    });
    let result = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(mode, if is_slow { SLOW } else { PATIENT });
        for (index, op) in ops.iter().enumerate() {
            match world.step(op) {
                Ok(End::Not) => {}
                Ok(End::Here) => return Ok(()),
                Err(wrong) => return Err(format!("operation {index}, {op:?}: {wrong}")),
            }
        }
        world.finish().map_err(|wrong| format!("at the end: {wrong}"))
    }));
    result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(format!("panic: {}", text.unwrap_or_default()))
    })
}

/// The shortest sequence that still fails, by leaving out ever smaller parts.
fn shrink(ops: &[Op], mode: Mode) -> Vec<Op> {
    let mut ops = ops.to_vec();
    let until = Instant::now() + Duration::from_secs(60);
    let mut part = ops.len() / 2;
    while part > 0 {
        let mut at = 0;
        let mut is_shorter = false;
        while at < ops.len() && Instant::now() < until {
            let end = (at + part).min(ops.len());
            let fewer = [&ops[..at], &ops[end..]].concat();
            if run(&fewer, mode).is_err() {
                ops = fewer;
                is_shorter = true;
            } else {
                at = end;
            }
        }
        if !is_shorter {
            part /= 2;
        }
    }
    ops
}

fn environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

fn run_many(mode: Mode) {
    let count = environment("FTPFS_MODEL_SEQUENCES").map_or(SEQUENCES, |count| count as usize);
    // The short run is the same each time; scripts/soak draws others.
    let seed = environment("FTPFS_MODEL_SEED").unwrap_or(2026);
    println!("seed {seed}, {count} sequences, {mode:?}");
    let started = Instant::now();
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    // More than there are processors, as some wait for a silent server.
    let workers = std::thread::available_parallelism().map_or(2, usize::from) * 2;
    let wanted = environment("FTPFS_MODEL_FAILURES").unwrap_or(1) as usize;
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count || failed.lock().unwrap().len() >= wanted {
                        return;
                    }
                    let ops = sequence(seed, index);
                    if let Err(wrong) = run(&ops, mode) {
                        failed.lock().unwrap().push((index, wrong));
                    }
                }
            });
        }
    });
    let ran = next.into_inner().min(count);
    let seconds = started.elapsed().as_secs_f64();
    println!("{ran} sequences in {seconds:.1} s, {:.0} in a second", ran as f64 / seconds);
    let failed = failed.into_inner().unwrap();
    for (index, wrong) in &failed {
        let ops = shrink(&sequence(seed, *index), mode);
        println!("\nseed {seed}, sequence {index} ({:?}): {wrong}", Mood::of(*index));
        println!("shrunk: {}", run(&ops, mode).err().unwrap_or_else(|| "not always".into()));
        println!("    check(&[");
        for op in &ops {
            println!("        Op::{op:?},");
        }
        println!("    ]);");
    }
    assert!(failed.is_empty(), "seed {seed}: {} sequences are not as predicted", failed.len());
}

/// The sequence of a seed and a number.
fn sequence(seed: u64, index: usize) -> Vec<Op> {
    let mut random = Random::new(seed.wrapping_mul(0x1_0000_0001).wrapping_add(index as u64));
    random.next();
    draw(&mut random, Mood::of(index))
}

#[test]
fn random_sequences_are_as_predicted() {
    run_many(Mode::Through);
}

#[test]
fn random_sequences_are_as_predicted_with_write_back() {
    let staging = tempfile::tempdir().unwrap();
    let options = crate::drivers::options(Duration::ZERO, staging.path());
    if policy::write_back(options).is_none() {
        println!("SKIPPED: 1 model test: there is no write-back yet");
        return;
    }
    run_many(Mode::WriteBack);
}

// ---- what was found once ----

fn check(ops: &[Op]) {
    run(ops, Mode::Through).unwrap();
}

/// Appending to a file that others replaced after it was opened keeps what they wrote.
#[test]
fn regression_append_after_the_others_replaced_it() {
    check(&[
        Op::TheirPut { path: 1, length: 6 },
        Op::Open { path: 1, how: 5 },
        Op::TheirPut { path: 1, length: 117 },
        Op::Write { handle: 0, at: 0, length: 165 },
    ]);
}

/// A bit set while the file is open and unchanged is not undone by the upload after it.
#[test]
fn regression_chmod_of_an_open_file_outlasts_the_upload() {
    use crate::drivers::{Direct, Driver, How, Open};
    let server = crate::support::server::Server::start(crate::support::dialect::Dialect::proftpd());
    server.put("/f", "old");
    let fs = Direct::new(&server, 2, Duration::ZERO);
    let mut file: Box<dyn Open> = fs.open(b"f", How::UPDATE).unwrap();
    fs.chmod(b"f", 0o755).unwrap();
    file.write_at(0, b"new").unwrap();
    file.close().unwrap();
    assert_eq!(server.stat("/f").unwrap().mode, 0o755);
}

/// What was sent ahead is found again when its directory has moved.
#[test]
fn regression_nothing_is_left_of_what_was_sent_ahead_into_a_moved_directory() {
    use crate::drivers::{Direct, Driver, How, Open};
    let server = crate::support::server::Server::start(crate::support::dialect::Dialect::proftpd());
    server.mkdir("/d");
    let fs = Direct::new(&server, 2, Duration::ZERO);
    let mut file: Box<dyn Open> = fs.open(b"d/f", How::CREATE).unwrap();
    file.write_at(0, &vec![1; 1_100_000]).unwrap();
    assert!(server.wait_until(|server| !server.names("/d").is_empty(), Duration::from_secs(20)));
    fs.rename(b"d", b"e").unwrap();
    file.close().unwrap();
    assert_eq!(server.names("/e"), [b"f"]);
}

/// What a killed process had staged for a file that was never closed does not stay for ever.
#[test]
fn regression_a_killed_process_leaves_nothing_staged_that_was_promised_to_nobody() {
    use crate::drivers::{Direct, Driver, How, Open, target};
    let server = crate::support::server::Server::start(crate::support::dialect::Dialect::proftpd());
    let copy = tempfile::tempdir().unwrap();
    {
        let fs = Direct::new(&server, 2, Duration::ZERO);
        let mut file: Box<dyn Open> = fs.open(b"f", How::CREATE).unwrap();
        file.write_at(0, b"unsent").unwrap();
        for entry in std::fs::read_dir(fs.staging.path()).unwrap().flatten() {
            std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
    }
    let fs = Direct::staged_in(copy, target(&server, 2), Duration::ZERO).unwrap();
    fs.vfs.recover();
    let is_sent = server.exists("/f");
    let left = std::fs::read_dir(fs.staging.path()).unwrap().count();
    assert!(is_sent || left == 0, "neither sent nor removed: {left} files");
}

/// An unsent file replaces what nobody else changed, also if the time of that was never told.
#[test]
fn regression_a_file_whose_time_was_not_known_is_recovered_in_its_place() {
    use crate::drivers::{Direct, Driver, Fail, How, target};
    use crate::support::faults::{Fault, What};
    let server = crate::support::server::Server::start(crate::support::dialect::Dialect::proftpd());
    let fs = Direct::new(&server, 2, Duration::ZERO);
    let mut file = fs.open(b"f", How::CREATE).unwrap();
    // An empty file is not asked for its time.
    file.sync().unwrap();
    file.write_at(0, b"new").unwrap();
    for verb in ["STOR", "APPE"] {
        server.fault(Fault::always(verb, What::Reply(552, "no room")));
    }
    assert_eq!(file.close(), Err(Fail::Quota));
    fs.vfs.keep_unsent();
    let Direct { vfs, staging } = fs;
    drop(vfs);
    server.clear_faults();
    let fs = Direct::staged_in(staging, target(&server, 2), Duration::ZERO).unwrap();
    fs.vfs.recover();
    assert_eq!(server.names("/"), [b"f"]);
    assert_eq!(server.get("/f").unwrap(), b"new");
}

/// truncate(2) of a file that somebody reads arrives before it returns, or with the close at the latest.
#[test]
fn regression_a_truncation_beside_a_reader_is_sent() {
    use crate::drivers::{Direct, Driver, How};
    let server = crate::support::server::Server::start(crate::support::dialect::Dialect::proftpd());
    server.put("/f", "old content");
    let fs = Direct::new(&server, 2, Duration::ZERO);
    let reader = fs.open(b"f", How::READ).unwrap();
    fs.truncate(b"f", 3).unwrap();
    reader.close().unwrap();
    assert_eq!(server.get("/f").unwrap(), b"old");
}

/// A file that is replaced while it is open is for those who have it open: it is never sent, and never
/// pending.
#[test]
fn regression_a_replaced_file_that_is_written_to_is_not_pending() {
    use crate::drivers::{Direct, Driver, How};
    use crate::support::faults::{Fault, What};
    let server = crate::support::server::Server::start(crate::support::dialect::Dialect::proftpd());
    server.put("/old", "old");
    server.put("/new", "new");
    let fs = Direct::new(&server, 2, Duration::ZERO);
    let mut file = fs.open(b"old", How::APPEND).unwrap();
    fs.rename(b"new", b"old").unwrap();
    file.write_at(3, b"more").unwrap();
    server.fault(Fault::always("STOR", What::Reply(552, "no room")));
    let _ = file.close();
    server.clear_faults();
    assert_eq!(fs.vfs.pending(), []);
    fs.vfs.drain().unwrap();
    assert_eq!(server.names("/"), [b"old"]);
}

/// What is unsent in a directory that is renamed is sent to its new place by the next mount.
#[test]
fn regression_what_is_unsent_follows_its_directory_over_a_kill() {
    use crate::drivers::{Direct, Driver, Fail, target};
    use crate::support::faults::{Fault, What};
    let server = crate::support::server::Server::start(crate::support::dialect::Dialect::proftpd());
    server.mkdir("/d");
    let fs = Direct::new(&server, 2, Duration::ZERO);
    server.fault(Fault::always("STOR", What::Reply(552, "no room")));
    assert_eq!(fs.write(b"d/f", b"precious"), Err(Fail::Quota));
    server.clear_faults();
    fs.rename(b"d", b"e").unwrap();
    // As a kill leaves it.
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fs.staging.path()).unwrap().flatten() {
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    drop(fs);
    let fs = Direct::staged_in(copy, target(&server, 2), Duration::ZERO).unwrap();
    fs.vfs.recover();
    assert_eq!(server.get("/e/f").as_deref(), Some(&b"precious"[..]));
}

/// A file that is open is hidden, and the reply to that is lost.
#[test]
fn regression_removing_an_open_file_is_done_though_the_reply_is_lost() {
    check(&[
        Op::TheirPut { path: 1, length: 6 },
        Op::Open { path: 1, how: 11 },
        Op::Fault { what: 50, on: 98, nth: 1, times: 3 },
        Op::Unlink { path: 1 },
    ]);
}

/// What others put where a part of ours was is theirs.
#[test]
fn regression_what_others_put_over_a_part_of_ours_stays() {
    check(&[
        Op::Mkdir { path: 1 },
        Op::Open { path: 4, how: 93 },
        Op::Append { handle: 0, length: 5443 },
        Op::Fault { what: 19, on: 1, nth: 1, times: 9 },
        Op::Close { handle: 148 },
        Op::TheirPut { path: 4, length: 132 },
    ]);
}

/// A directory takes along what was sent when it moved, and what others remove of that is gone.
#[test]
fn regression_what_moved_with_its_directory_may_be_removed_by_others() {
    check(&[
        Op::Mkdir { path: 1 },
        Op::Open { path: 5, how: 29 },
        Op::Rename { from: 1, to: 0 },
        Op::TheirDelete { path: 3 },
    ]);
}

/// What is renamed before it was sent keeps its bits.
#[test]
fn regression_an_unsent_file_does_not_take_the_bits_of_what_it_replaces() {
    let ops = [
        Op::Mkdir { path: 0 },
        Op::Mkdir { path: 4 },
        Op::TheirPut { path: 2, length: 148 },
        Op::Mkdir { path: 3 },
        Op::Write { handle: 97, at: 39977, length: 9 },
        Op::Chmod { path: 2, mode: 161 },
        Op::Open { path: 4, how: 243 },
        Op::Open { path: 1, how: 21 },
        Op::Open { path: 1, how: 143 },
        Op::Rename { from: 1, to: 2 },
    ];
    run(&ops, Mode::WriteBack).unwrap();
}

/// A file that is open keeps no directory.
#[test]
fn regression_a_directory_goes_though_a_removed_file_of_it_is_open() {
    check(&[
        Op::Mkdir { path: 0 },
        Op::TheirPut { path: 3, length: 2 },
        Op::Open { path: 3, how: 48 },
        Op::Unlink { path: 3 },
        Op::Rmdir { path: 0 },
    ]);
}
