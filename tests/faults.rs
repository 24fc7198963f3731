//! The fault matrix: every command that ftpfs sends, with everything that can go wrong. The caller
//! gets an answer in time, the mount is healthy afterwards without a remount, no session is used out
//! of step, and no file on the server is damaged.

use std::time::{Duration, Instant};

use crate::drivers::{Direct, Driver, Fail, How, Result, target};
use crate::matrix::{self, FAULTS};
use crate::support::dialect::Dialect;
use crate::support::faults::What;
use crate::support::server::{PATIENCE, Server};

const LONG: Duration = Duration::from_secs(600);

/// Of the mounts here. Two tries, each with a few commands: a case ends well within ten of them.
const TIMEOUT: Duration = Duration::from_millis(1000);

/// Bytes that differ from place to place, so that a wrong offset shows.
fn bytes(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|index| ((index + seed) * 31 + index / 251) as u8).collect()
}

fn old() -> Vec<u8> {
    bytes(1, 60_000)
}

fn new() -> Vec<u8> {
    bytes(2, 40_000)
}

fn big() -> Vec<u8> {
    bytes(3, 6_000_000)
}

fn much() -> Vec<u8> {
    bytes(4, 1_500_000)
}

type Operation = fn(&Direct) -> Result<()>;

/// What is done, on which server, and the commands that it sends.
struct Case {
    name: &'static str,
    dialect: fn() -> Dialect,
    operation: Operation,
    verbs: &'static [&'static str],
    /// The session is lost before, so that a new one must log in.
    is_fresh: bool,
}

const CASES: &[Case] = &[
    case("read", Dialect::proftpd, read, &["EPSV", "RETR"]),
    case("read by PASV", without_epsv, read, &["PASV", "RETR"]),
    case("read elsewhere", Dialect::proftpd, read_elsewhere, &["REST", "MLST", "RETR"]),
    case("read elsewhere", Dialect::vsftpd, read_elsewhere, &["REST", "SIZE", "MDTM"]),
    case("list", Dialect::proftpd, list, &["EPSV", "MLSD"]),
    case("list", Dialect::vsftpd, list, &["EPSV", "LIST"]),
    case("list", Dialect::minimal, list, &["LIST"]),
    case("list an odd name", Dialect::vsftpd, list_odd, &["CWD", "LIST"]),
    case("write", Dialect::proftpd, write_new, &["EPSV", "STOR"]),
    case("write", Dialect::vsftpd, write_new, &["SIZE"]),
    case("write much", Dialect::proftpd, write_much, &["STOR", "MLST", "RNFR", "RNTO"]),
    case("replace", Dialect::proftpd, replace, &["STOR", "RNFR", "RNTO"]),
    case("replace", Dialect::iis, replace, &["STOR", "RNFR", "RNTO", "DELE"]),
    case("make a directory", Dialect::proftpd, make_directory, &["MKD"]),
    case("remove a directory", Dialect::proftpd, remove_directory, &["RMD"]),
    case("remove a file", Dialect::proftpd, remove_file, &["DELE"]),
    case("rename", Dialect::proftpd, rename, &["RNFR", "RNTO"]),
    case("set a mode", Dialect::proftpd, set_mode, &["SITE"]),
    case("set a time", Dialect::proftpd, set_time, &["MFMT"]),
    case("set a time", Dialect::vsftpd, set_time, &["MDTM"]),
    Case {
        is_fresh: true,
        ..case("log in", Dialect::proftpd, list, &["CONNECT", "USER", "PASS", "OPTS", "TYPE"])
    },
];

const fn case(
    name: &'static str,
    dialect: fn() -> Dialect,
    operation: Operation,
    verbs: &'static [&'static str],
) -> Case {
    Case { name, dialect, operation, verbs, is_fresh: false }
}

fn without_epsv() -> Dialect {
    Dialect { epsv: false, ..Dialect::proftpd() }
}

/// Of commands that open a data connection.
const DATA_FAULTS: &[What] = &[
    What::CutData(0),
    What::CutData(500),
    What::CutDataReply(500, 451, "Disk trouble"),
    What::CutDataSilence(500),
    What::CutControlAfter(500),
    What::ResetAfter(500),
    What::StallData(500),
];

fn read(fs: &Direct) -> Result<()> {
    assert!(fs.read(b"f")? == old(), "wrong bytes");
    Ok(())
}

fn read_elsewhere(fs: &Direct) -> Result<()> {
    let mut file = fs.open(b"big", How::READ)?;
    let big = big();
    assert_eq!(file.read_at(5_900_000, 4)?, big[5_900_000..5_900_004]);
    assert_eq!(file.read_at(7, 4)?, big[7..11]);
    file.close()
}

fn list(fs: &Direct) -> Result<()> {
    // `g` and more than the cuts leave.
    assert_eq!(fs.names(b"dir")?.len(), 61);
    Ok(())
}

fn list_odd(fs: &Direct) -> Result<()> {
    assert_eq!(fs.names(b"[odd] dir")?, [b"inside"]);
    Ok(())
}

fn write_new(fs: &Direct) -> Result<()> {
    fs.write(b"new", &new())
}

fn write_much(fs: &Direct) -> Result<()> {
    // From 1 MiB on it is sent while it is written, and its size is asked for.
    fs.write(b"much", &much())
}

fn replace(fs: &Direct) -> Result<()> {
    fs.write(b"f", &new())
}

fn make_directory(fs: &Direct) -> Result<()> {
    fs.mkdir(b"made")
}

fn remove_directory(fs: &Direct) -> Result<()> {
    fs.rmdir(b"empty")
}

fn remove_file(fs: &Direct) -> Result<()> {
    fs.unlink(b"gone")
}

fn rename(fs: &Direct) -> Result<()> {
    fs.rename(b"from", b"to")
}

fn set_mode(fs: &Direct) -> Result<()> {
    fs.chmod(b"f", 0o600)
}

fn set_time(fs: &Direct) -> Result<()> {
    fs.set_mtime(b"f", 1_000_000_000)
}

/// One cell; why it is wrong, if it is.
fn run(
    case: &Case,
    verb: &'static str,
    what: &What,
    timeout: Duration,
) -> std::result::Result<(), String> {
    let server = Server::start((case.dialect)());
    server.put("/f", old());
    server.put("/big", big());
    for index in 0..60 {
        server.put(format!("/dir/file-{index:03}"), "x");
    }
    server.put("/[odd] dir/inside", "x");
    for path in ["/dir/g", "/gone", "/from"] {
        server.put(path, "content");
    }
    server.mkdir("/empty");
    let mut target = target(&server, 2);
    target.timeout = timeout;
    let fs = Direct::over(target, LONG).unwrap();
    fs.names(b"").map_err(|fail| format!("the mount is not well before: {fail:?}"))?;
    if case.is_fresh {
        server.kill_sessions();
        server.wait_until(|server| server.sessions_open() == 0, timeout);
    }
    server.clear_commands();
    server.fault_once(verb, what.clone());
    let started = Instant::now();
    let result = (case.operation)(&fs);
    if started.elapsed() > timeout * 10 {
        return Err(format!("took {:?}", started.elapsed()));
    }
    if server.faults_pending() {
        return Err(format!("the command was never sent: {result:?}"));
    }
    server.clear_faults();
    server.release();
    heal(&fs, timeout)?;
    judge(case, &server, &fs, result, timeout)
}

/// Within a few pauses everything works again.
fn heal(fs: &Direct, timeout: Duration) -> std::result::Result<(), String> {
    let until = Instant::now() + timeout * 8;
    let works = || -> Result<bool> {
        let names = fs.names(b"dir")?;
        fs.write(b"dir/after", b"fine")?;
        let read = fs.read(b"dir/after")?;
        fs.rename(b"dir/after", b"dir/moved")?;
        fs.unlink(b"dir/moved")?;
        Ok(names.contains(&b"g".to_vec()) && read == b"fine" && fs.read(b"dir/g")? == b"content")
    };
    loop {
        match works() {
            Ok(true) => return Ok(()),
            Ok(false) => return Err(format!("wrong answers afterwards: {:?}", fs.names(b"dir"))),
            Err(fail) if Instant::now() > until => return Err(format!("ill afterwards: {fail:?}")),
            Err(_) => std::thread::yield_now(),
        }
    }
}

/// What is on the server now fits what the caller was told.
fn judge(
    case: &Case,
    server: &Server,
    fs: &Direct,
    result: Result<()>,
    timeout: Duration,
) -> std::result::Result<(), String> {
    let there = server.get("/f").ok_or("/f is gone")?;
    if there != old() && there != new() {
        return Err(format!("/f is damaged: {} bytes", there.len()));
    }
    let done = |server: &Server| match case.name {
        "replace" => server.get("/f").is_some_and(|bytes| bytes == new()),
        "write" => server.get("/new").is_some_and(|bytes| bytes == new()),
        "write much" => server.get("/much").is_some_and(|bytes| bytes == much()),
        "make a directory" => server.exists("/made"),
        "remove a directory" => !server.exists("/empty"),
        "remove a file" => !server.exists("/gone"),
        "rename" => server.exists("/to") && !server.exists("/from"),
        _ => true,
    };
    // Of a refusal before the work nobody can know that it is done all the same.
    let has_moved = matches!(case.name, "remove a file" | "remove a directory" | "rename");
    // A reply that came before its command may be believed before the work is done.
    let may_be_done = result.is_ok() || result == Err(Fail::NotFound);
    let done = server.wait_until(done, if may_be_done { timeout } else { Duration::ZERO });
    let strange = [Err(Fail::Exists), Err(Fail::NotADirectory), Err(Fail::IsADirectory)];
    // A refusal that came before the work, which was done all the same.
    let is_beyond_knowing = done && result == Err(Fail::Exists);
    if strange.contains(&result) && !is_beyond_knowing {
        return Err(format!("a wrong reason: {result:?}"));
    }
    if result == Err(Fail::NotFound) && !(done && has_moved) {
        return Err("“not found” about what is there".into());
    }
    if result.is_ok() && !done {
        return Err("told to be done, and is not".into());
    }
    // What could not be sent is here and can be sent now.
    fs.vfs.drain().map_err(|error| format!("cannot be sent afterwards: {error}"))?;
    if case.name == "replace" && server.get("/f") != Some(new()) {
        return Err("lost".into());
    }
    // What is read ahead may be under way; a connection that is lost stays so.
    let returned = |_: &Server| fs.vfs.pool().snapshot().leased == 0;
    if !returned(server) && !server.wait_until(returned, PATIENCE) {
        let open = fs.vfs.pool().snapshot();
        return Err(format!("a connection is lost: {open:?}"));
    }
    Ok(())
}

/// The very first connection: it may fail, and the next attempt works.
#[test]
fn every_command_of_the_first_login() {
    let verbs = ["CONNECT", "USER", "PASS", "FEAT", "OPTS", "TYPE", "PWD"];
    let cells: Vec<(&'static str, &What)> =
        verbs.iter().flat_map(|verb| FAULTS.iter().map(|what| (*verb, what))).collect();
    matrix::check(&cells, TIMEOUT, |(verb, what), timeout| {
        let server = Server::start(Dialect::proftpd());
        server.put("/f", old());
        server.fault_once(verb, (*what).clone());
        let mut target = target(&server, 2);
        target.timeout = timeout;
        let started = Instant::now();
        let opened = Direct::over(target.clone(), LONG);
        let took = started.elapsed();
        server.clear_faults();
        server.release();
        let fs = opened.or_else(|_| Direct::over(target, LONG));
        let read = fs.map_err(|error| error.to_string()).map(|fs| fs.read(b"f"));
        let is_right = read.as_ref().is_ok_and(|read| read.as_ref() == Ok(&old()));
        if is_right && took < timeout * 10 {
            return Ok(());
        }
        Err(format!("{verb} · {what:?}: after {took:?} {read:?}"))
    });
}

#[test]
fn every_command_with_every_fault() {
    let cells: Vec<(&Case, &'static str, &What)> = CASES
        .iter()
        .flat_map(|case| case.verbs.iter().map(move |verb| (case, *verb)))
        .flat_map(|(case, verb)| {
            let has_data = matches!(verb, "RETR" | "STOR" | "MLSD" | "LIST");
            let more = if has_data { DATA_FAULTS } else { &[] };
            FAULTS.iter().chain(more).map(move |what| (case, verb, what))
        })
        .collect();
    matrix::check(&cells, TIMEOUT, |(case, verb, what), timeout| {
        run(case, verb, what, timeout)
            .map_err(|why| format!("{} · {verb} · {what:?}: {why}", case.name))
    });
}
