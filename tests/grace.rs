//! Old listings shown while new ones are on their way, and `refresh`.

use std::time::{Duration, Instant};

use ftpfs::ftp::Pool;
use ftpfs::vfs::{Options, Outdated, Refresh, Vfs};

use crate::drivers::{Direct, Driver, Fail, How, options, target};
use crate::support::dialect::Dialect;
use crate::support::faults::{Fault, What};
use crate::support::server::{PATIENCE, Server};

const LONG: Duration = Duration::from_secs(600);

/// Every listing is too old as soon as it is there, and within the grace for long.
fn graceful() -> (Server, Direct) {
    let server = Server::start(Dialect::proftpd());
    server.put("/dir/a", "a");
    let staging = tempfile::tempdir().unwrap();
    let options = Options { ttl_grace: LONG, ..options(Duration::from_nanos(1), staging.path()) };
    let vfs = Vfs::new(Pool::open(target(&server, 4)).unwrap(), options).unwrap();
    let fs = Direct { vfs, staging };
    assert_eq!(fs.names(b"dir").unwrap(), [b"a"]);
    (server, fs)
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn an_old_listing_answers_while_one_new_one_is_asked_for() {
    let (server, fs) = graceful();
    wait_until("nothing is under way", || fs.vfs.pool().snapshot().leased == 0);
    server.put("/dir/b", "b");
    server.fault(Fault::always("MLSD", What::Delay(LONG)));
    server.clear_commands();
    assert_eq!(fs.names(b"dir").unwrap(), [b"a"]);
    assert!(
        server.wait_until(|server| server.stuck() == 2, PATIENCE),
        "the root and the directory"
    );
    for _ in 0..10 {
        assert_eq!(fs.names(b"dir").unwrap(), [b"a"]);
        assert_eq!(fs.stat(b"dir/a").unwrap().size, 1);
        assert_eq!(fs.stat(b"dir/b").err(), Some(Fail::NotFound));
    }
    assert_eq!(server.count("MLSD"), 2);
    server.clear_faults();
    server.release();
    wait_until("the new one is there", || fs.names(b"dir").unwrap() == [b"a", b"b"]);
}

#[test]
fn a_failed_one_is_not_tried_again_within_the_grace() {
    let (server, fs) = graceful();
    wait_until("nothing is under way", || fs.vfs.pool().snapshot().leased == 0);
    // The root may have been listed anew on the way: now its turn is over too.
    server.fault(Fault::always("MLSD", What::Reply(451, "not now")));
    server.clear_commands();
    assert_eq!(fs.names(b"dir").unwrap(), [b"a"]);
    assert!(server.wait_until(|server| server.count("MLSD") == 2, PATIENCE));
    for _ in 0..50 {
        assert_eq!(fs.names(b"dir").unwrap(), [b"a"]);
    }
    assert_eq!(server.count("MLSD"), 2);
    // Whoever must know asks, and ends the old one.
    server.clear_faults();
    server.put("/dir/b", "b");
    assert_eq!(fs.read(b"dir/a").unwrap(), b"a");
    wait_until("it is shown", || fs.names(b"dir").unwrap() == [b"a", b"b"]);
}

#[test]
fn what_opens_or_changes_goes_by_a_new_listing() {
    let (server, fs) = graceful();
    for name in ["b", "c", "d"] {
        server.put(format!("/dir/{name}"), "x");
    }
    wait_until("they are shown", || fs.names(b"dir").unwrap().len() == 4);
    // Going by the old listing, the first would succeed, and the others would ask by their verbs.
    // No MLSD is counted: one that a look began may have told already.
    server.clear_commands();
    server.remove("/dir/a");
    assert_eq!(fs.open(b"dir/a", How::READ).err(), Some(Fail::NotFound));
    server.remove("/dir/b");
    assert_eq!(fs.unlink(b"dir/b").err(), Some(Fail::NotFound));
    assert_eq!(server.count("DELE"), 0);
    server.remove("/dir/c");
    assert_eq!(fs.rename(b"dir/c", b"dir/e").err(), Some(Fail::NotFound));
    assert_eq!(server.count("RNFR"), 0);
    server.put("/dir/n", "theirs");
    assert_eq!(fs.open(b"dir/n", How::NEW).err(), Some(Fail::Exists));
    assert_eq!(server.count("STOR"), 0);
    assert_eq!(server.get("/dir/n").unwrap(), b"theirs");
}

#[test]
fn own_changes_are_seen_at_once() {
    let (_server, fs) = graceful();
    fs.write(b"dir/new", b"four").unwrap();
    assert_eq!(fs.stat(b"dir/new").unwrap().size, 4);
    fs.rename(b"dir/new", b"dir/z").unwrap();
    assert_eq!(fs.names(b"dir").unwrap(), [b"a", b"z"]);
    fs.unlink(b"dir/a").unwrap();
    assert_eq!(fs.stat(b"dir/a").err(), Some(Fail::NotFound));
    fs.mkdir(b"dir/sub").unwrap();
    assert!(fs.stat(b"dir/sub").unwrap().is_dir);
    fs.rmdir(b"dir/sub").unwrap();
    fs.chmod(b"dir/z", 0o600).unwrap();
    assert_eq!(fs.stat(b"dir/z").unwrap().mode & 0o777, 0o600);
    assert_eq!(fs.names(b"dir").unwrap(), [b"z"]);
}

#[test]
fn without_grace_an_old_listing_is_asked_for_anew() {
    let server = Server::start(Dialect::proftpd());
    server.put("/dir/a", "a");
    let fs = Direct::new(&server, 2, Duration::from_nanos(1));
    assert_eq!(fs.names(b"dir").unwrap(), [b"a"]);
    server.put("/dir/b", "b");
    assert_eq!(fs.names(b"dir").unwrap(), [b"a", b"b"]);
}

#[test]
fn an_open_directory_shows_what_was_changed_since_it_was_opened() {
    let server = Server::start(Dialect::proftpd());
    for name in ["grows", "goes", "stays"] {
        server.put(format!("/dir/{name}"), "x");
    }
    let fs = Direct::new(&server, 2, LONG);
    fs.stat(b"dir/grows").unwrap();
    let dir = fs.vfs.lookup(ftpfs::vfs::ROOT, b"dir").unwrap().unwrap().attr.ino;
    let fh = fs.vfs.opendir(dir).unwrap();
    fs.write(b"dir/grows", b"longer").unwrap();
    fs.unlink(b"dir/goes").unwrap();
    let rows = || {
        let mut rows = Vec::new();
        let take = |entry: ftpfs::vfs::DirEntry<'_>| {
            rows.push((entry.name.to_vec(), entry.attr.size, !entry.valid.is_zero()));
            true
        };
        fs.vfs.readdir(fh, 2, true, take).unwrap();
        rows
    };
    assert_eq!(rows(), [(b"grows".to_vec(), 6, true), (b"stays".to_vec(), 1, true)]);
    fs.vfs.refresh(b"dir", Refresh::One, &mut Vec::new()).unwrap();
    assert_eq!(rows(), [(b"grows".to_vec(), 6, false), (b"stays".to_vec(), 1, false)]);
    fs.vfs.releasedir(fh);
}

/// The names in what the kernel should forget.
fn names(outdated: &[Outdated]) -> Vec<&[u8]> {
    let mut names = Vec::new();
    for one in outdated {
        if let Outdated::Name(_, name) = one {
            names.push(&**name);
        }
    }
    names.sort_unstable();
    names
}

#[test]
fn a_refreshed_directory_is_asked_for_at_the_next_look() {
    let server = Server::start(Dialect::proftpd());
    server.put("/dir/a", "a");
    server.put("/dir/open", "o");
    server.put("/dir/sub/x", "x");
    let fs = Direct::new(&server, 2, LONG);
    let open = fs.open(b"dir/open", How::READ).unwrap();
    fs.stat(b"dir/a").unwrap();
    fs.stat(b"dir/sub/x").unwrap();
    assert_eq!(fs.stat(b"dir/b").err(), Some(Fail::NotFound));
    for name in ["/dir/b", "/dir/sub/y"] {
        server.put(name, "new");
    }
    let mut outdated = Vec::new();
    fs.vfs.refresh(b"dir", Refresh::One, &mut outdated).unwrap();
    // Neither what is open nor a directory: both stay linked.
    assert_eq!(names(&outdated), [&b"a"[..], b"b"]);
    assert_eq!(fs.names(b"dir").unwrap(), [&b"a"[..], b"b", b"open", b"sub"]);
    assert_eq!(fs.names(b"dir/sub").unwrap(), [b"x"], "not below it");
    outdated.clear();
    fs.vfs.refresh(b"", Refresh::Below, &mut outdated).unwrap();
    assert!(names(&outdated).contains(&&b"x"[..]));
    assert_eq!(fs.names(b"dir/sub").unwrap(), [b"x", b"y"]);
    open.close().unwrap();
}

#[test]
fn a_refresh_tells_what_is_not_there_and_keeps_what_is_unsent() {
    let server = Server::start(Dialect::proftpd());
    server.put("/dir/a", "a");
    let fs = Direct::new(&server, 2, LONG);
    let mut file = fs.open(b"dir/mine", How::NEW).unwrap();
    file.write_at(0, b"mine").unwrap();
    let refresh = |path: &[u8]| {
        let result = fs.vfs.refresh(path, Refresh::One, &mut Vec::new());
        result.map_err(Fail::from)
    };
    assert_eq!(refresh(b"dir/none"), Err(Fail::NotFound));
    assert_eq!(refresh(b"none/x"), Err(Fail::NotFound));
    assert_eq!(refresh(b"dir/a/x"), Err(Fail::NotADirectory));
    server.put("/dir/late", "x");
    assert_eq!(refresh(b"dir/late"), Ok(()), "asked for, though believed to be absent");
    assert_eq!(refresh(b"dir"), Ok(()));
    assert_eq!(fs.stat(b"dir/mine").unwrap().size, 4);
    file.close().unwrap();
    assert_eq!(server.get("/dir/mine").unwrap(), b"mine");
}

#[test]
fn what_is_known_is_shown_if_the_server_is_away_after_a_refresh() {
    let server = Server::start(Dialect::proftpd());
    server.put("/dir/a", "a");
    let fs = Direct::new(&server, 2, LONG);
    assert_eq!(fs.names(b"dir").unwrap(), [b"a"]);
    fs.vfs.refresh(b"dir", Refresh::One, &mut Vec::new()).unwrap();
    server.refuse_connections(true);
    server.kill_sessions();
    assert_eq!(fs.names(b"dir").unwrap(), [b"a"]);
}
