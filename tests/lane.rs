//! Uploads whose commands travel together: in which segments they come, on every kind of server,
//! and what becomes of them when anything goes wrong.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ftpfs::ftp::{
    Error, Look, Placement, Pool, RemotePath, Renamed, Store, StoreOutcome, TailHabit,
};

use crate::drivers::target;
use crate::matrix::{self, FAULTS};
use crate::support::dialect::{Dialect, Rest};
use crate::support::faults::{Fault, What};
use crate::support::server::{PATIENCE, Server};

/// Three tries with a few commands each end well within this.
const TIMEOUT: Duration = Duration::from_millis(600);

fn path(text: &str) -> RemotePath {
    RemotePath::parse(text.as_bytes()).unwrap()
}

fn pool(server: &Server) -> Arc<Pool> {
    patient_pool(server, TIMEOUT)
}

fn patient_pool(server: &Server, timeout: Duration) -> Arc<Pool> {
    let mut target = target(server, 2);
    target.timeout = timeout;
    Pool::open(target).unwrap()
}

fn file(bytes: &[u8]) -> std::fs::File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

const NEW: &[u8] = b"new content";

fn absent(look: &Look) -> bool {
    *look == Look::Absent
}

fn any(_: &Look) -> bool {
    true
}

/// A new file under its own name, with attributes.
fn store_new(pool: &Pool, name: &str) -> Result<StoreOutcome, Error> {
    let (path, file) = (path(name), file(NEW));
    pool.store(&Store {
        path: &path,
        file: &file,
        range: 0..NEW.len() as u64,
        placement: Placement::Whole,
        guard: Some((&path, &absent)),
        mode: Some(0o640),
        mtime: Some(1_000_000_000),
        rename_to: None,
        is_cancelled: &|| false,
    })
}

/// A file beside `name`, which then takes its place.
fn replace(pool: &Pool, name: &str) -> Result<StoreOutcome, Error> {
    let (beside, path, file) = (path(&format!("{name}~")), path(name), file(NEW));
    pool.store(&Store {
        path: &beside,
        file: &file,
        range: 0..NEW.len() as u64,
        placement: Placement::Whole,
        guard: Some((&path, &any)),
        mode: Some(0o640),
        mtime: Some(1_000_000_000),
        rename_to: Some(&path),
        is_cancelled: &|| false,
    })
}

fn change(
    pool: &Pool,
    name: &str,
    bytes: &[u8],
    placement: Placement,
) -> Result<StoreOutcome, Error> {
    let (path, file) = (path(name), file(bytes));
    pool.store(&Store {
        path: &path,
        file: &file,
        range: 0..bytes.len() as u64,
        placement,
        guard: Some((&path, &any)),
        mode: None,
        mtime: None,
        rename_to: None,
        is_cancelled: &|| false,
    })
}

/// The verbs of each segment that came while `work` ran.
fn segments(server: &Server, work: impl FnOnce()) -> Vec<String> {
    server.clear_commands();
    work();
    let mut segments: Vec<(u64, u64, String)> = Vec::new();
    for command in server.history() {
        match segments.last_mut() {
            Some((session, segment, verbs))
                if (*session, *segment) == (command.session, command.segment) =>
            {
                verbs.push(' ');
                verbs.push_str(&command.verb);
            }
            _ => segments.push((command.session, command.segment, command.verb)),
        }
    }
    segments.into_iter().map(|(_, _, verbs)| verbs).collect()
}

/// One that nothing is known of.
fn cold(dialect: Dialect, timeout: Duration) -> (Server, Arc<Pool>) {
    let server = Server::start(dialect);
    server.put("/old", "old content, which is longer");
    let pool = patient_pool(&server, timeout);
    (server, pool)
}

/// One that has learnt what it can.
fn warm(dialect: Dialect) -> (Server, Arc<Pool>) {
    patient_warm(dialect, TIMEOUT)
}

fn patient_warm(dialect: Dialect, timeout: Duration) -> (Server, Arc<Pool>) {
    let (server, pool) = cold(dialect, timeout);
    store_new(&pool, "/first").unwrap();
    (server, pool)
}

fn done(outcome: Result<StoreOutcome, Error>) -> ftpfs::ftp::Stored {
    match outcome {
        Ok(StoreOutcome::Done(stored)) => stored,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_new_file_is_two_segments_and_a_replaced_one_three() {
    for (dialect, look) in [
        (Dialect::proftpd(), "MLST"),
        (Dialect::pureftpd(), "MLST"),
        (Dialect::vsftpd(), "SIZE MDTM"),
    ] {
        let (server, pool) = warm(dialect.clone());
        let time = if dialect.mfmt { "MFMT" } else { "MDTM" };
        let sent = segments(&server, || {
            let stored = done(store_new(&pool, "/new"));
            assert_eq!(stored.size, Some(NEW.len() as u64));
            assert!(stored.mode_set && stored.mtime_set && stored.mtime.is_some());
        });
        assert_eq!(sent, [format!("EPSV {look}"), format!("STOR {look} SITE {time}")]);
        let sent = segments(&server, || {
            assert_eq!(done(replace(&pool, "/old")).renamed, Renamed::Done);
        });
        let second = format!("STOR {look} SITE {time} RNFR");
        assert_eq!(sent, [format!("EPSV {look}"), second, "RNTO".into()]);
        for name in ["/new", "/old"] {
            let stat = server.stat(name).unwrap();
            assert_eq!((stat.mode & 0o777, stat.mtime), (0o640, 1_000_000_000));
            assert_eq!(server.get(name).unwrap(), NEW);
        }
        assert!(!server.exists("/old~"));
    }
}

#[test]
fn a_further_login_is_three_segments() {
    let (server, pool) = warm(Dialect::proftpd());
    server.kill_sessions();
    assert!(server.wait_until(|server| server.sessions_open() == 0, PATIENCE));
    let sent = segments(&server, || drop(done(store_new(&pool, "/new"))));
    assert_eq!(sent[..3], ["USER", "PASS", "OPTS OPTS TYPE"]);
}

#[test]
fn a_server_that_answers_at_once_is_asked_afterwards() {
    let (server, pool) = warm(Dialect::pyftpdlib());
    // Whether the questions of an upload overtake it, which teaches it, is the server's to say.
    let is_asked_afterwards = |_| {
        let sent = segments(&server, || drop(done(replace(&pool, "/old"))));
        assert_eq!(sent[0], "EPSV MLST");
        let stat = server.stat("/old").unwrap();
        assert_eq!((stat.mode & 0o777, stat.mtime), (0o640, 1_000_000_000));
        sent[2..] == ["MLST SITE MFMT RNFR", "RNTO"]
    };
    assert!((0..100).any(is_asked_afterwards));
    assert_eq!(server.sessions_total(), 1, "the first one stayed in step");
}

#[test]
fn a_server_that_loses_commands_is_asked_one_by_one() {
    let server = Server::start(Dialect::proftpd());
    let pool = pool(&server);
    // The first one is the guard's, the second came with STOR.
    server.fault(Fault { on: "MLST", nth: 2, times: 1, what: What::Silence });
    assert_eq!(done(replace(&pool, "/f")).renamed, Renamed::Done);
    assert_eq!(server.get("/f").unwrap(), NEW);
    server.release();
    let sent = segments(&server, || drop(done(replace(&pool, "/f"))));
    assert!(sent.iter().all(|segment| !segment.contains(' ')), "{sent:?}");
}

#[test]
fn an_append_and_a_patch_are_two_segments() {
    let (server, pool) = warm(Dialect::proftpd());
    server.put("/log", "one,");
    let sent = segments(&server, || {
        assert_eq!(done(change(&pool, "/log", b"two", Placement::Append)).size, Some(7));
    });
    assert_eq!(sent, ["EPSV MLST", "APPE MLST"]);
    let sent = segments(&server, || drop(done(change(&pool, "/log", b"2", Placement::At(7)))));
    assert_eq!(sent, ["EPSV MLST REST", "STOR MLST"]);
    assert_eq!(server.get("/log").unwrap(), b"one,two2");
}

#[test]
fn a_guard_that_says_no_sends_nothing_and_leaves_no_offset() {
    let (server, pool) = warm(Dialect::proftpd());
    let (name, content) = (path("/old"), file(NEW));
    let outcome = pool.store(&Store {
        path: &name,
        file: &content,
        range: 0..3,
        placement: Placement::At(4),
        guard: Some((&name, &absent)),
        mode: None,
        mtime: None,
        rename_to: None,
        is_cancelled: &|| false,
    });
    assert!(matches!(outcome, Ok(StoreOutcome::Guarded(Look::There(_)))), "{outcome:?}");
    done(store_new(&pool, "/new"));
    assert_eq!(server.get("/new").unwrap(), NEW);
    assert_eq!(server.get("/old").unwrap(), b"old content, which is longer");
}

#[test]
fn a_refused_offset_is_not_there_for_the_next_upload() {
    let (server, pool) = warm(Dialect::proftpd());
    server.fault_once("STOR", What::Reply(550, "no"));
    assert!(matches!(change(&pool, "/old", b"x", Placement::At(4)), Err(Error::Refused(_))));
    done(store_new(&pool, "/new"));
    assert_eq!(server.get("/new").unwrap(), NEW);
}

#[test]
fn a_cancelled_upload_ends_and_the_pool_is_well() {
    let (server, pool) = warm(Dialect::proftpd());
    let (name, content) = (path("/big~"), file(&vec![b'x'; 3_000_000]));
    let count = std::cell::Cell::new(0);
    let outcome = pool.store(&Store {
        path: &name,
        file: &content,
        range: 0..3_000_000,
        placement: Placement::Whole,
        guard: None,
        mode: None,
        mtime: None,
        rename_to: Some(&path("/big")),
        is_cancelled: &|| {
            count.set(count.get() + 1);
            count.get() > 3
        },
    });
    assert!(matches!(outcome, Err(Error::Cancelled)), "{outcome:?}");
    assert!(!server.exists("/big"));
    done(store_new(&pool, "/new"));
    assert_eq!(pool.snapshot().leased, 0);
}

#[test]
fn tails_are_tried_once() {
    let scratch = path("/scratch~");
    for (rest, habit) in [(Rest::Works, TailHabit::Keeps), (Rest::Ignored, TailHabit::Loses)] {
        let (server, pool) = warm(Dialect { rest, ..Dialect::proftpd() });
        assert_eq!(pool.tail_habit(&scratch).unwrap(), habit);
        assert!(!server.exists("/scratch~"));
        assert!(pool.appends());
        server.clear_commands();
        assert_eq!(pool.tail_habit(&scratch).unwrap(), habit);
        assert!(server.commands().is_empty());
    }
    let (_server, pool) = warm(Dialect::minimal());
    assert_eq!(pool.tail_habit(&scratch).unwrap(), TailHabit::Loses);
}

#[test]
fn a_cut_upload_is_no_success_and_nothing_is_renamed() {
    let (server, pool) = warm(Dialect::proftpd());
    // Ended properly, but too early, and the server is content.
    server.fault_once("STOR", What::CutDataReply(4, 226, "Transfer complete."));
    let outcome = replace(&pool, "/old");
    assert!(
        matches!(outcome, Err(Error::WrongSize { has: 4, .. } | Error::Broken(_))),
        "{outcome:?}"
    );
    assert_eq!(server.get("/old").unwrap(), b"old content, which is longer");
}

#[test]
fn every_fault_at_every_command_of_an_upload() {
    const MORE: &[What] = &[
        // Believed, as nothing tells it from the right one; the work is done a moment later.
        What::PreReply(250, "for another command"),
        What::CutData(4),
        What::CutDataSilence(4),
        What::CutControlAfter(4),
        What::ResetAfter(4),
        What::StallData(4),
    ];
    type Start = fn(Dialect, Duration) -> (Server, Arc<Pool>);
    type Operation = fn(&Pool, &str) -> Result<StoreOutcome, Error>;
    let operations: [(&str, Operation); 2] = [("/new", store_new), ("/old", replace)];
    let dialects = [Dialect::proftpd, Dialect::vsftpd, Dialect::pyftpdlib];
    let mut cells = Vec::new();
    for dialect in dialects {
        for (name, operation) in operations {
            for verb in ["EPSV", "MLST", "SIZE", "MDTM", "STOR", "SITE", "MFMT", "RNFR", "RNTO"] {
                for nth in 1..=2 {
                    for what in FAULTS.iter().chain(MORE) {
                        cells.push((
                            dialect,
                            patient_warm as Start,
                            name,
                            operation,
                            verb,
                            nth,
                            what,
                        ));
                        cells.push((dialect, cold as Start, name, operation, verb, nth, what));
                    }
                }
            }
        }
    }
    let struck = AtomicUsize::new(0);
    matrix::check(&cells, TIMEOUT, |cell, timeout| {
        let (dialect, start, name, operation, verb, nth, what) = cell;
        let (server, pool) = start(dialect(), timeout);
        server.fault(Fault { on: verb, nth: *nth, times: 1, what: (*what).clone() });
        let outcome = operation(&pool, name);
        if server.faults_pending() {
            // There is no such command in it.
            return Ok(());
        }
        struck.fetch_add(1, Ordering::Relaxed);
        server.clear_faults();
        server.release();
        judge(&server, &pool, name, &outcome, timeout).map_err(|why| {
            let greeting = dialect().greeting.join(" ");
            format!("{greeting} {name} · {verb} {nth} · {what:?}: {why}: {outcome:?}")
        })
    });
    let struck = struck.into_inner();
    println!("{struck} of {} faults struck", cells.len());
    assert!(struck * 4 > cells.len());
}

fn judge(
    server: &Server,
    pool: &Pool,
    name: &str,
    outcome: &Result<StoreOutcome, Error>,
    timeout: Duration,
) -> Result<(), String> {
    let is_done = |stored: &ftpfs::ftp::Stored| match name {
        "/old" => stored.renamed == Renamed::Done,
        _ => true,
    };
    if let Ok(StoreOutcome::Done(stored)) = outcome
        && is_done(stored)
        && !server.wait_until(|server| server.get(name).as_deref() == Some(NEW), timeout)
    {
        return Err("told to be done, and is not".into());
    }
    let old = server.get("/old").ok_or("the old file is gone")?;
    if old != b"old content, which is longer" && old != NEW {
        return Err("the old file is damaged".into());
    }
    for attempt in 0.. {
        match store_new(pool, &format!("/after-{attempt}")) {
            Ok(StoreOutcome::Done(_)) => break,
            other if attempt == 20 => return Err(format!("ill afterwards: {other:?}")),
            _ => {}
        }
    }
    match pool.snapshot().leased {
        0 => Ok(()),
        _ => Err("a connection is lost".into()),
    }
}
