//! What goes wrong on the wire: the caller gets the right answer, and the mount goes on.

use std::time::Duration;

use crate::drivers::{Direct, Driver, Fail, How};
use crate::support::dialect::{Dialect, Limit};
use crate::support::faults::{Fault, What};
use crate::support::server::{PATIENCE, Server};

const LONG: Duration = Duration::from_secs(600);

fn start() -> (Server, Direct) {
    let server = Server::start(Dialect::proftpd());
    server.put("/f", vec![b'x'; 1_000_000]);
    server.put("/dir/g", "g");
    let fs = Direct::new(&server, 2, LONG);
    fs.names(b"").unwrap();
    (server, fs)
}

/// After any trouble everything works again, without a remount.
fn assert_healthy(server: &Server, fs: &Direct) {
    server.clear_faults();
    server.release();
    assert_eq!(fs.read(b"dir/g").unwrap(), b"g");
    fs.write(b"after", b"fine").unwrap();
    assert_eq!(server.get("/after").unwrap(), b"fine");
    fs.unlink(b"after").unwrap();
    let open = fs.vfs.pool().snapshot();
    assert_eq!(open.leased, 0, "{open:?}");
}

#[test]
fn a_connection_that_the_server_closed_is_replaced() {
    let (server, fs) = start();
    server.kill_sessions();
    assert!(server.wait_until(|server| server.sessions_open() == 0, PATIENCE));
    assert_eq!(fs.names(b"dir").unwrap(), [b"g"]);
    server.kill_sessions();
    assert!(server.wait_until(|server| server.sessions_open() == 0, PATIENCE));
    fs.write(b"new", b"x").unwrap();
    assert_eq!(server.get("/new").unwrap(), b"x");
    assert_healthy(&server, &fs);
}

#[test]
fn a_listing_cut_short_is_never_the_truth() {
    let (server, _) = start();
    for index in 0..200 {
        server.put(format!("/many/{index}"), "");
    }
    let fs = Direct::new(&server, 2, LONG);
    for what in [What::CutData(1000), What::CutControlAfter(1000), What::ResetAfter(1000)] {
        server.fault(Fault::always("MLSD", what.clone()));
        assert_eq!(fs.names(b"many").err(), Some(Fail::Io), "{what:?}");
        assert_eq!(fs.stat(b"many/199").err(), Some(Fail::Io), "{what:?}: not ENOENT");
        server.clear_faults();
    }
    assert_eq!(fs.names(b"many").unwrap().len(), 200);
    assert_healthy(&server, &fs);
}

#[test]
fn a_refused_listing_is_not_absence() {
    let (server, fs) = start();
    server.fault(Fault::always("MLSD", What::Reply(550, "no")));
    assert_eq!(fs.stat(b"dir/g").err(), Some(Fail::Denied));
    server.clear_faults();
    server.fault(Fault::always("MLSD", What::Reply(451, "local error")));
    assert_eq!(fs.stat(b"dir/g").err(), Some(Fail::Io));
    assert_healthy(&server, &fs);
}

#[test]
fn a_directory_gone_behind_our_back_is_not_found() {
    let (server, fs) = start();
    server.remove("/dir");
    assert_eq!(fs.names(b"dir").err(), Some(Fail::NotFound));
    server.put("/dir/g", "g");
    fs.vfs.getattr(ftpfs::vfs::ROOT).unwrap();
}

#[test]
fn a_download_cut_in_the_middle_goes_on_where_it_stopped() {
    for what in [What::CutData(300_000), What::CutControlAfter(300_000), What::ResetAfter(300_000)]
    {
        let (server, fs) = start();
        server.fault_once("RETR", what.clone());
        assert!(fs.read(b"f").unwrap() == vec![b'x'; 1_000_000], "{what:?}");
        assert_healthy(&server, &fs);
    }
}

#[test]
fn a_file_changed_between_two_transfers_is_stale_never_mixed() {
    let (server, fs) = start();
    server.put("/h", vec![b'1'; 5_000_000]);
    let fresh = Direct::new(&server, 2, LONG);
    let mut file = fresh.open(b"h", How::READ).unwrap();
    assert_eq!(file.read_at(4_900_000, 4).unwrap(), b"1111");
    server.put("/h", vec![b'2'; 5_000_000]);
    server.set_mtime("/h", 1_000_000_000);
    assert_eq!(file.read_at(0, 4).err(), Some(Fail::Stale));
    drop(file);
    assert_eq!(fresh.read(b"h").unwrap()[..4], *b"2222");
    assert_healthy(&server, &fs);
}

#[test]
fn a_refused_upload_is_told_to_close_and_the_old_file_stays() {
    for (code, fail) in [(552, Fail::Quota), (452, Fail::NoSpace), (553, Fail::Denied)] {
        let (server, fs) = start();
        server.fault(Fault::always("STOR", What::Reply(code, "no")));
        assert_eq!(fs.write(b"f", b"new"), Err(fail));
        assert_eq!(server.get("/f").unwrap().len(), 1_000_000);
        let pending = fs.vfs.pending();
        assert_eq!(pending.len(), 1, "it is kept here");
        assert!(pending[0].error.is_some());
        server.clear_faults();
        fs.vfs.drain().unwrap();
        assert_eq!(server.get("/f").unwrap(), b"new", "and sent when it can be");
        assert!(fs.vfs.pending().is_empty());
        assert_healthy(&server, &fs);
    }
}

#[test]
fn an_upload_cut_short_is_sent_again() {
    for what in [
        What::CutControlAfter(300_000),
        What::ResetAfter(300_000),
        What::LoseReply,
        What::CutReply(2),
    ] {
        let (server, fs) = start();
        server.fault_once("STOR", what.clone());
        fs.write(b"new", &vec![b'y'; 700_000]).unwrap();
        assert!(server.get("/new").unwrap() == vec![b'y'; 700_000], "{what:?}");
        assert_healthy(&server, &fs);
    }
}

#[test]
fn a_half_written_file_never_replaces_a_good_one() {
    for what in [What::CutData(300_000), What::CutControlAfter(300_000)] {
        let (server, fs) = start();
        server.fault(Fault::always("STOR", what.clone()));
        assert!(fs.write(b"f", &vec![b'y'; 700_000]).is_err(), "{what:?}");
        assert!(server.get("/f").unwrap() == vec![b'x'; 1_000_000], "{what:?}");
        server.clear_faults();
        fs.vfs.drain().unwrap();
        assert!(server.get("/f").unwrap() == vec![b'y'; 700_000], "{what:?}");
        assert_healthy(&server, &fs);
    }
}

#[test]
fn lost_replies_of_names_are_judged_by_a_look() {
    for what in [What::LoseReply, What::CutReply(2)] {
        let (server, fs) = start();
        server.fault_once("MKD", what.clone());
        fs.mkdir(b"d").unwrap();
        server.fault_once("RMD", what.clone());
        fs.rmdir(b"d").unwrap();
        server.fault_once("DELE", what.clone());
        fs.unlink(b"f").unwrap();
        server.fault_once("RNTO", what.clone());
        fs.rename(b"dir", b"moved").unwrap();
        assert_eq!(server.names("/"), [b"moved"]);
        assert_eq!(fs.names(b"").unwrap(), [b"moved"]);
    }
}

#[test]
fn silence_ends_with_the_time_out() {
    for verb in ["MLSD", "RETR", "STOR", "MKD", "EPSV"] {
        let (server, fs) = start();
        server.fault(Fault::always(verb, What::Silence));
        let result = match verb {
            "RETR" => fs.read(b"f").map(drop),
            "STOR" => fs.write(b"new", b"x"),
            "MKD" => fs.mkdir(b"d"),
            _ => fs.names(b"dir").map(drop),
        };
        assert_eq!(result, Err(Fail::TimedOut), "{verb}");
        assert_healthy(&server, &fs);
    }
}

#[test]
fn a_stalled_transfer_ends_with_the_time_out() {
    let (server, fs) = start();
    server.fault(Fault::always("RETR", What::StallData(1000)));
    assert_eq!(fs.read(b"f").err(), Some(Fail::TimedOut));
    assert_healthy(&server, &fs);
}

#[test]
fn a_server_that_allows_few_connections_gets_few() {
    for allowed in [1, 2, 3] {
        let mut dialect = Dialect::proftpd();
        dialect.limit = Limit::AtLogin(allowed, 530, "Sorry, the maximum number of clients");
        let server = Server::start(dialect);
        for index in 0..20 {
            server.put(format!("/d{index}/f"), format!("{index}"));
        }
        let fs = Direct::new(&server, 8, LONG);
        std::thread::scope(|scope| {
            for worker in 0..6 {
                let fs = &fs;
                scope.spawn(move || {
                    for index in 0..20 {
                        let path = format!("d{}/f", (index + worker * 3) % 20);
                        let want = format!("{}", (index + worker * 3) % 20);
                        assert_eq!(fs.read(path.as_bytes()).unwrap(), want.as_bytes());
                    }
                    fs.write(format!("w{worker}").as_bytes(), b"written").unwrap();
                });
            }
        });
        assert_eq!(fs.vfs.pool().snapshot().limit, allowed);
    }
}

#[test]
fn idle_readers_do_not_starve_anybody() {
    let (server, _) = start();
    server.put("/h", vec![b'h'; 9_000_000]);
    let fs = Direct::new(&server, 1, LONG);
    let mut idle = fs.open(b"h", How::READ).unwrap();
    idle.read_at(0, 10).unwrap();
    assert_eq!(fs.vfs.pool().snapshot().parked, 1);
    assert_eq!(fs.names(b"dir").unwrap(), [b"g"]);
    assert_eq!(fs.read(b"dir/g").unwrap(), b"g");
    assert_eq!(idle.read_at(8_000_000, 3).unwrap(), b"hhh");
    assert_eq!(server.sessions_total(), 2, "the first mount’s, and one that is used again");
}

#[test]
fn a_server_that_is_down_fails_fast_and_comes_back() {
    let (server, fs) = start();
    server.refuse_connections(true);
    server.kill_sessions();
    assert!(server.wait_until(|server| server.sessions_open() == 0, PATIENCE));
    assert_eq!(fs.names(b"dir").err(), Some(Fail::Io));
    assert_eq!(fs.names(b"").unwrap().len(), 2, "what is known is still shown");
    server.refuse_connections(false);
    let deadline = std::time::Instant::now() + PATIENCE;
    while fs.names(b"dir").is_err() {
        assert!(std::time::Instant::now() < deadline, "it never came back");
        std::thread::yield_now();
    }
    assert_healthy(&server, &fs);
}

#[test]
fn what_was_known_is_shown_while_the_server_is_away() {
    let (server, _) = start();
    let fs = Direct::new(&server, 2, Duration::from_millis(1));
    assert_eq!(fs.names(b"dir").unwrap(), [b"g"]);
    server.refuse_connections(true);
    server.kill_sessions();
    assert!(server.wait_until(|server| server.sessions_open() == 0, PATIENCE));
    // Until the TTL is over nothing is asked, and nothing noticed.
    while fs.stat(b"dir/other").err() == Some(Fail::NotFound) {
        std::thread::yield_now();
    }
    assert_eq!(fs.names(b"dir").unwrap(), [b"g"], "older than the TTL, and better than nothing");
    assert_eq!(fs.stat(b"dir/g").unwrap().size, 1);
    assert_eq!(fs.stat(b"dir/other").err(), Some(Fail::Io), "no proof that it is absent");
    assert!(fs.vfs.pool().trouble().is_some());
    server.refuse_connections(false);
    let deadline = std::time::Instant::now() + PATIENCE;
    while fs.write(b"dir/new", b"x").is_err() {
        assert!(std::time::Instant::now() < deadline, "it never came back");
        std::thread::yield_now();
    }
    assert!(fs.vfs.pool().trouble().is_none());
}

#[test]
fn a_file_that_could_not_be_sent_keeps_its_name() {
    let (server, fs) = start();
    fs.names(b"dir").unwrap();
    server.refuse_connections(true);
    server.kill_sessions();
    assert!(fs.write(b"dir/unsent", b"precious").is_err());
    // The kernel forgets what nobody uses.
    let found = fs.vfs.lookup(ftpfs::vfs::ROOT, b"dir").unwrap().unwrap().attr.ino;
    fs.vfs.forget(found, 1000);
    assert_eq!(fs.vfs.pending()[0].path, "/dir/unsent");
    server.refuse_connections(false);
    let deadline = std::time::Instant::now() + PATIENCE;
    while fs.vfs.drain().is_err() {
        assert!(std::time::Instant::now() < deadline, "it never came back");
        std::thread::yield_now();
    }
    assert_eq!(server.get("/dir/unsent").unwrap(), b"precious");
    assert!(fs.vfs.pending().is_empty());
}

#[test]
fn a_new_file_that_is_removed_before_it_could_be_sent_leaves_nothing() {
    let (server, fs) = start();
    server.fault(Fault::always("STOR", What::CutDataReply(300_000, 451, "Disk trouble")));
    assert!(fs.write(b"dir/part", &vec![b'p'; 700_000]).is_err());
    server.clear_faults();
    fs.unlink(b"dir/part").unwrap();
    assert_eq!(server.names("/dir"), [b"g"]);
}

/// A file that could not be sent, as a process that ended leaves it.
fn leave_unsent(server: &Server, path: &[u8], bytes: &[u8]) -> tempfile::TempDir {
    let Direct { vfs, staging } = {
        let fs = Direct::new(server, 2, LONG);
        server.fault(Fault::always("STOR", What::Reply(552, "no room")));
        assert_eq!(fs.write(path, bytes), Err(Fail::Quota));
        assert_eq!(fs.vfs.keep_unsent().len(), 1);
        fs
    };
    drop(vfs);
    server.clear_faults();
    staging
}

fn recover(server: &Server, staging: tempfile::TempDir) -> Direct {
    let target = crate::drivers::target(server, 2);
    let fs = Direct::staged_in(staging, target, LONG).unwrap();
    fs.vfs.recover();
    fs
}

#[test]
fn what_an_ended_process_left_unsent_is_sent_by_the_next() {
    let (server, _) = start();
    for path in [&b"dir/new"[..], b"f"] {
        let staging = leave_unsent(&server, path, b"precious");
        let found = ftpfs::vfs::left_over(staging.path());
        assert_eq!((found.len(), found[0].bytes), (1, 8));
        let fs = recover(&server, staging);
        assert_eq!(server.get([b"/", path].concat()).unwrap(), b"precious");
        assert_eq!(fs.read(path).unwrap(), b"precious");
        assert!(fs.vfs.pending().is_empty());
        assert_eq!(std::fs::read_dir(fs.staging.path()).unwrap().count(), 0);
    }
    assert_eq!(server.names("/dir"), [&b"g"[..], b"new"]);
}

#[test]
fn what_others_changed_meanwhile_is_not_overwritten() {
    let (server, _) = start();
    for (path, theirs) in [(&b"dir/new"[..], "another new one"), (b"f", "another version")] {
        let staging = leave_unsent(&server, path, b"precious");
        server.put([b"/", path].concat(), theirs);
        drop(recover(&server, staging));
        assert_eq!(server.get([b"/", path].concat()).unwrap(), theirs.as_bytes());
    }
    for directory in ["/", "/dir"] {
        let names = server.names(directory);
        let beside = names.iter().find(|name| name.windows(9).any(|w| w == b" (unsent ")).unwrap();
        let path = [directory.as_bytes(), b"/", beside].concat();
        assert_eq!(server.get(path).unwrap(), b"precious");
    }
}

#[test]
fn what_had_arrived_is_not_sent_again() {
    let (server, _) = start();
    let staging = leave_unsent(&server, b"dir/new", b"precious");
    server.put("/dir/new", "precious");
    server.clear_commands();
    let fs = recover(&server, staging);
    assert_eq!(server.count("STOR"), 0);
    assert_eq!(server.names("/dir"), [&b"g"[..], b"new"]);
    assert_eq!(std::fs::read_dir(fs.staging.path()).unwrap().count(), 0);
}

#[test]
fn a_lost_reply_to_a_replacing_rename_is_no_refusal() {
    let (server, fs) = start();
    server.fault_once("RNTO", What::LoseReply);
    fs.write(b"f", b"new").unwrap();
    assert_eq!(server.get("/f").unwrap(), b"new");
    assert_eq!(server.names("/"), [&b"dir"[..], b"f"]);
}

#[test]
fn a_transfer_that_ends_properly_but_too_early_is_taken_up_again() {
    // A proxy or NAT may end a data connection so, and a server that had sent all says 226.
    let (server, fs) = start();
    server.fault_once("RETR", What::CutDataReply(300_000, 226, "Transfer complete"));
    assert!(fs.read(b"f").unwrap() == vec![b'x'; 1_000_000]);
    server.fault_once("STOR", What::CutDataReply(1000, 226, "Transfer complete"));
    fs.write(b"new", &[b'n'; 5000]).unwrap();
    assert_eq!(server.get("/new").unwrap().len(), 5000);
    assert_healthy(&server, &fs);
}

#[test]
fn a_server_without_epsv_is_asked_by_pasv() {
    let mut dialect = Dialect::proftpd();
    dialect.epsv = false;
    let server = Server::start(dialect);
    server.put("/f", "x");
    let fs = Direct::new(&server, 1, LONG);
    assert_eq!(fs.read(b"f").unwrap(), b"x");
    assert_eq!(server.count("EPSV"), 1, "learnt at the first refusal");
    assert!(server.count("PASV") >= 2);
}

#[test]
fn opening_and_closing_by_several_at_once_loses_no_write() {
    let server = Server::start(Dialect::proftpd());
    server.put("/log", "");
    let fs = Direct::new(&server, 4, LONG);
    fs.names(b"").unwrap();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..400 {
                    let mut file = fs.open(b"log", How::APPEND).unwrap();
                    file.write_at(0, b"x").unwrap();
                    file.close().unwrap();
                }
            });
        }
    });
    assert_eq!(server.get("/log").unwrap().len(), 800);
}

/// A program reads on while its file gets another name, or loses it, through this mount: in between
/// the server has it under a name that nobody here knows yet.
#[test]
fn a_file_that_gets_another_name_is_read_on() {
    let far = 8_000_000;
    let content: Vec<u8> = (0..far + 1000).map(|at: usize| (at / 1000) as u8).collect();
    for is_removed in [false, true] {
        let server = Server::start(Dialect::proftpd());
        server.put("/big", content.clone());
        let fs = Direct::new(&server, 4, LONG);
        let mut file = fs.open(b"big", How::READ).unwrap();
        assert_eq!(file.read_at(0, 10).unwrap(), content[..10]);
        server.fault_once("RNTO", What::HoldReply(PATIENCE));
        std::thread::scope(|scope| {
            let moves = scope
                .spawn(|| if is_removed { fs.unlink(b"big") } else { fs.rename(b"big", b"moved") });
            assert!(server.wait_until(|server| !server.exists("/big"), PATIENCE));
            server.clear_commands();
            let asks = scope.spawn(|| {
                let is_asked = |server: &Server| server.count("RETR") + server.count("MLST") > 0;
                let asked = server.wait_until(is_asked, PATIENCE);
                server.release();
                asked
            });
            let read = file.read_at(far as u64, 10).unwrap();
            assert!(read == content[far..far + 10], "removed: {is_removed}");
            assert!(asks.join().unwrap(), "by its old name");
            moves.join().unwrap().unwrap();
        });
        drop(file);
        assert_eq!(fs.names(b"").unwrap().len(), usize::from(!is_removed));
    }
}

/// What is written to a file while it gets another name through this mount goes where the file went.
#[test]
fn what_is_written_during_a_rename_follows_the_file() {
    for (name, moved_name) in [("f", "moved"), ("dir/g", "moved/g")] {
        let (server, fs) = start();
        let fs = &fs;
        let (from, to) = if name == "f" { ("f", "moved") } else { ("dir", "moved") };
        fs.names(b"dir").unwrap();
        let mut file = fs.open(name.as_bytes(), How::UPDATE).unwrap();
        let moved = format!("/{to}");
        // Long enough for a close to begin meanwhile.
        server.fault_once("RNTO", What::HoldReply(Duration::from_millis(300)));
        std::thread::scope(|scope| {
            let moves = scope.spawn(|| fs.rename(from.as_bytes(), to.as_bytes()));
            assert!(server.wait_until(|server| server.exists(&moved), PATIENCE));
            file.write_at(0, b"new").unwrap();
            file.close().unwrap();
            moves.join().unwrap().unwrap();
        });
        let content = server.get(format!("/{moved_name}")).unwrap();
        assert!(content.starts_with(b"new"), "{name}: {:?}", &content[..content.len().min(10)]);
        assert!(!server.exists(format!("/{name}")), "{name} is there again");
        assert_eq!(fs.read(moved_name.as_bytes()).unwrap(), content);
    }
}
