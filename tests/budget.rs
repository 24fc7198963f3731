//! The round-trip budget: the commands that each operation sends on a warm session, so that nobody
//! adds one unseen.

use std::time::Duration;

use ftpfs::ftp::Target;

use crate::drivers::{Direct, Driver, How, target};
use crate::support::dialect::Dialect;
use crate::support::faults::What;
use crate::support::server::{PATIENCE, Server};

/// The verbs sent while `work` ran.
fn verbs(server: &Server, work: impl FnOnce()) -> Vec<String> {
    server.clear_commands();
    work();
    let verb = |line: &String| line.split(' ').next().unwrap_or_default().to_owned();
    server.commands().iter().map(verb).collect()
}

/// A mount whose only session has logged in, with the root listed.
fn warm(dialect: Dialect) -> (Server, Direct) {
    let server = Server::start(dialect);
    server.put("/dir/file", "content");
    server.put("/big", vec![b'x'; 2_000_000]);
    server.put("/small", "content");
    let fs = Direct::new(&server, 1, Duration::from_secs(600));
    fs.names(b"").unwrap();
    (server, fs)
}

#[test]
fn a_listed_name_costs_nothing() {
    let (server, fs) = warm(Dialect::proftpd());
    let sent = verbs(&server, || {
        fs.stat(b"small").unwrap();
        fs.stat(b"absent").unwrap_err();
        fs.open(b"small", How::READ).unwrap().close().unwrap();
        fs.names(b"").unwrap();
    });
    assert!(sent.is_empty(), "{sent:?}");
}

#[test]
fn a_new_directory_costs_one_listing() {
    let (server, fs) = warm(Dialect::proftpd());
    assert_eq!(verbs(&server, || drop(fs.names(b"dir").unwrap())), ["EPSV", "MLSD"]);
    let (server, fs) = warm(Dialect::vsftpd());
    assert_eq!(verbs(&server, || drop(fs.names(b"dir").unwrap())), ["EPSV", "LIST"]);
}

#[test]
fn a_small_file_costs_one_transfer() {
    for dialect in [Dialect::proftpd(), Dialect::vsftpd()] {
        let (server, fs) = warm(dialect);
        let sent = verbs(&server, || assert_eq!(fs.read(b"small").unwrap(), b"content"));
        assert_eq!(sent, ["EPSV", "RETR"]);
    }
}

#[test]
fn an_offset_costs_one_rest() {
    let (server, fs) = warm(Dialect::proftpd());
    let sent = verbs(&server, || {
        let mut file = fs.open(b"big", How::READ).unwrap();
        assert_eq!(file.read_at(1_500_000, 10).unwrap(), b"xxxxxxxxxx");
    });
    assert_eq!(sent, ["EPSV", "REST", "RETR"]);
}

#[test]
fn another_offset_proves_the_version_first() {
    let (server, fs) = warm(Dialect::proftpd());
    let sent = verbs(&server, || {
        let mut file = fs.open(b"big", How::READ).unwrap();
        file.read_at(1_900_000, 10).unwrap();
        file.read_at(10, 10).unwrap();
    });
    assert_eq!(sent, ["EPSV", "REST", "RETR", "EPSV", "MLST", "REST", "RETR"]);
}

#[test]
fn several_places_of_one_file_are_read_side_by_side() {
    let server = Server::start(Dialect::proftpd());
    server.put("/film", vec![b'x'; 40_000_000]);
    let fs = Direct::new(&server, 4, Duration::from_secs(600));
    let mut file = fs.open(b"film", How::READ).unwrap();
    let places = [0, 20_000_000, 38_000_000];
    for step in 0..2 {
        for place in places {
            file.read_at(place + step * 100_000, 100_000).unwrap();
            file.read_at(place + step * 100_000 + 50_000, 60_000).unwrap();
        }
    }
    server.clear_commands();
    for place in places {
        assert_eq!(file.read_at(place + 210_000, 10_000).unwrap(), vec![b'x'; 10_000]);
    }
    assert_eq!(server.commands(), [""; 0]);
}

#[test]
fn a_new_file_costs_one_transfer() {
    let (server, fs) = warm(Dialect::proftpd());
    assert_eq!(
        verbs(&server, || fs.write(b"new", b"x").unwrap()),
        ["EPSV", "MLST", "STOR", "MLST"]
    );
    assert!(verbs(&server, || assert_eq!(fs.stat(b"new").unwrap().size, 1)).is_empty());
}

#[test]
fn a_replaced_file_costs_a_rename_more() {
    let (server, fs) = warm(Dialect::proftpd());
    let sent = verbs(&server, || fs.write(b"small", b"x").unwrap());
    assert_eq!(sent, ["EPSV", "MLST", "STOR", "MLST", "RNFR", "RNTO"]);
}

#[test]
fn names_cost_one_command_each() {
    let (server, fs) = warm(Dialect::proftpd());
    assert_eq!(verbs(&server, || fs.mkdir(b"d").unwrap()), ["MKD"]);
    assert_eq!(verbs(&server, || fs.rename(b"small", b"x").unwrap()), ["RNFR", "RNTO"]);
    assert_eq!(verbs(&server, || fs.unlink(b"x").unwrap()), ["DELE"]);
}

#[test]
fn a_file_not_changed_is_not_sent() {
    let (server, fs) = warm(Dialect::proftpd());
    let sent = verbs(&server, || fs.open(b"small", How::UPDATE).unwrap().close().unwrap());
    assert!(sent.is_empty(), "{sent:?}");
}

#[test]
fn a_directory_of_twenty_thousand_files_is_listed_once() {
    let server = Server::start(Dialect::proftpd());
    for index in 0..20_000 {
        server.put(format!("/flat/file-{index:05}"), "");
    }
    let fs = Direct::new(&server, 2, Duration::from_secs(600));
    server.clear_commands();
    assert_eq!(fs.names(b"flat").unwrap().len(), 20_000);
    for index in (0..20_000).step_by(97) {
        fs.stat(format!("flat/file-{index:05}").as_bytes()).unwrap();
    }
    assert_eq!(server.count("MLSD"), 2, "the root and the directory");
}

/// The verbs of each segment of one session, in order.
fn segments(server: &Server, session: u64) -> Vec<String> {
    let mut segments: Vec<(u64, String)> = Vec::new();
    for command in server.history().into_iter().filter(|command| command.session == session) {
        match segments.last_mut() {
            Some((segment, verbs)) if *segment == command.segment => {
                verbs.push(' ');
                verbs.push_str(&command.verb);
            }
            _ => segments.push((command.segment, command.verb)),
        }
    }
    segments.into_iter().map(|(_, verbs)| verbs).collect()
}

#[test]
fn what_opens_a_transfer_is_one_segment_and_the_transfer_the_next() {
    for (dialect, look) in [(Dialect::proftpd(), "MLST"), (Dialect::vsftpd(), "SIZE MDTM")] {
        let (server, fs) = warm(dialect);
        server.clear_commands();
        let mut file = fs.open(b"big", How::READ).unwrap();
        file.read_at(1_900_000, 10).unwrap();
        file.read_at(10, 10).unwrap();
        let first = ["EPSV REST", "RETR"].map(String::from);
        // The look is as close to the transfer as it can be.
        let second = ["EPSV".into(), format!("{look} REST RETR")];
        assert_eq!(segments(&server, 1), [first, second].concat());
    }
}

/// pyftpdlib 2.0.1 breaks off what it takes to be under way when an EPSV comes; where nothing is known
/// of the server, its 226 is waited for.
#[test]
fn nothing_is_asked_before_an_owed_226_of_a_server_that_nobody_knows() {
    let (server, fs) = warm(Dialect::pyftpdlib());
    server.fault_once("RETR", What::HoldReply(PATIENCE));
    assert_eq!(fs.read(b"small").unwrap(), b"content");
    assert!(server.wait_until(|server| server.stuck() == 1, PATIENCE));
    server.clear_commands();
    std::thread::scope(|scope| {
        let listed = scope.spawn(|| fs.names(b"dir").unwrap());
        let is_asked = |server: &Server| !server.commands().is_empty();
        assert!(!server.wait_until(is_asked, Duration::from_millis(200)));
        server.release();
        assert_eq!(listed.join().unwrap(), [b"file"]);
    });
    assert_eq!(server.sessions_total(), 1);
}

#[test]
fn a_row_of_files_costs_one_segment_each_where_the_server_queues() {
    const FILES: usize = 60;
    for (dialect, follows) in [
        (Dialect::proftpd(), true),
        (Dialect::vsftpd(), true),
        (Dialect::pureftpd(), true),
        (Dialect::pyftpdlib(), false),
    ] {
        let server = Server::start(dialect);
        for index in 0..FILES {
            server.put(format!("/row/f{index:02}"), "content");
        }
        let fs = Direct::new(&server, 2, Duration::from_secs(600));
        server.set_delay(Duration::from_millis(5));
        for index in 0..FILES {
            assert_eq!(fs.read(format!("row/f{index:02}").as_bytes()).unwrap(), b"content");
        }
        assert_eq!(server.sessions_total(), 2, "none was lost");
        // Work ahead and requests share the two connections.
        let sent: Vec<Vec<String>> = (1..=2).map(|session| segments(&server, session)).collect();
        let count = |wanted: &str| sent.iter().flatten().filter(|verbs| *verbs == wanted).count();
        assert_eq!(count("RETR NOOP"), 1, "{sent:?}");
        if follows {
            assert!(count("RETR EPSV") > FILES / 6, "{sent:?}");
            let asks_again = |pair: &[String]| pair == ["RETR EPSV", "EPSV"];
            assert!(!sent.iter().any(|sent| sent.windows(2).any(asks_again)), "{sent:?}");
        } else {
            assert_eq!(count("RETR EPSV"), 0, "{sent:?}");
        }
    }
}

/// The port that was asked for with the transfer before is closed once another one is asked for.
#[test]
fn an_upload_in_a_row_of_files_takes_away_the_port_that_was_asked_for_before_it() {
    const FILES: usize = 60;
    let server = Server::start(Dialect::proftpd());
    for index in 0..FILES {
        server.put(format!("/row/f{index:02}"), "content");
    }
    server.mkdir("/dir");
    let fs = Direct::new(&server, 2, Duration::from_secs(600));
    server.set_delay(Duration::from_millis(5));
    for index in 0..FILES {
        assert_eq!(fs.read(format!("row/f{index:02}").as_bytes()).unwrap(), b"content");
        if index % 5 == 4 {
            std::thread::scope(|scope| {
                for name in ["dir/a", "dir/b"] {
                    scope.spawn(|| fs.write(name.as_bytes(), b"new").unwrap());
                }
            });
        }
    }
    assert_eq!(server.sessions_total(), 2, "none was lost");
    let sent = [1, 2].map(|session| segments(&server, session));
    let is_late = |pair: &[String]| pair[0].starts_with("STOR") && pair[1].starts_with("RETR");
    assert!(!sent.iter().any(|sent| sent.windows(2).any(is_late)), "{sent:?}");
}

/// ProFTPD 1.3.8 says 226 when the client has closed the data connection, so that is done with the
/// file, not with the next one.
#[test]
fn the_226_is_there_before_the_next_transfer() {
    let (server, fs) = warm(Dialect { lingers: true, ..Dialect::proftpd() });
    assert_eq!(fs.read(b"small").unwrap(), b"content");
    assert!(server.wait_until(|server| server.transfers_open() == 0, PATIENCE));
}

/// OPTS MLST, of the first login and of the second.
fn facts_asked_for(all: bool, fault: Option<What>) -> Vec<String> {
    let server = Server::start(Dialect::proftpd());
    server.put("/file", "content");
    if let Some(what) = fault {
        // The first OPTS is that of the facts.
        server.fault_once("OPTS", what);
    }
    let target = Target { facts: all, ..target(&server, 1) };
    let fs = Direct::over(target, Duration::from_nanos(1)).unwrap();
    for _ in 0..2 {
        assert_eq!(fs.stat(b"file").unwrap().size, 7);
        server.kill_sessions();
        assert!(server.wait_until(|server| server.sessions_open() == 0, PATIENCE));
    }
    let commands = server.commands().into_iter();
    commands.filter_map(|line| Some(line.strip_prefix("OPTS MLST ")?.to_owned())).collect()
}

#[test]
fn facts_that_nobody_needs_are_not_asked_for() {
    let least = "modify;size;type;unique;unix.mode;";
    assert_eq!(facts_asked_for(false, None), [least, least]);
    assert!(facts_asked_for(true, None).is_empty());
    // It may have taken the command or not: what it told before is asked for.
    let asked = facts_asked_for(false, Some(What::Reply(200, "OK")));
    assert_eq!(asked[0], least);
    assert!(asked[1].contains("size;") && asked[1].contains("perm;"), "{asked:?}");
    assert_eq!(asked.len(), 2);
    let asked = facts_asked_for(false, Some(What::Reply(501, "What?")));
    assert_eq!(asked, [least]);
}
