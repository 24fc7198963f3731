//! Work done before it is asked for: it is done once, hurts nobody, and never shows old bytes.

use std::time::{Duration, Instant};

use ftpfs::vfs::{AheadBytes, ReadAhead};

use crate::drivers::{Direct, Driver, How};
use crate::support::dialect::{Dialect, EarlyEnd, Limit};
use crate::support::faults::{Fault, What};
use crate::support::server::{PATIENCE, Server};

const LONG: Duration = Duration::from_secs(600);

/// A reply takes so long that further connections are worth their login: 40 listings of 2 replies
/// each are 400 ms of work, half of which is more than a login of 7 replies takes.
const DELAY: Duration = Duration::from_millis(5);

/// 40 directories of 3 files, and 40 files beside each other.
fn start(connections: usize) -> (Server, Direct) {
    let server = Server::start(Dialect::proftpd());
    for index in 0..40 {
        for file in 0..3 {
            server.put(format!("/tree/d{index:02}/f{file}"), content(index * 3 + file));
        }
        server.put(format!("/flat/f{index:02}"), content(index));
    }
    server.put("/other/x", "x");
    let fs = Direct::new(&server, connections, LONG);
    server.set_delay(DELAY);
    fs.names(b"").unwrap();
    server.clear_commands();
    (server, fs)
}

fn content(index: usize) -> Vec<u8> {
    format!("{index:04}").repeat(100 + index).into_bytes()
}

fn folder(index: usize) -> Vec<u8> {
    format!("tree/d{index:02}").into_bytes()
}

fn file(index: usize) -> Vec<u8> {
    format!("flat/f{index:02}").into_bytes()
}

fn has_command(server: &Server, line: &str) -> bool {
    server.commands().iter().any(|command| command == line)
}

/// How often the most frequent of these commands came.
fn most_frequent(server: &Server, verb: &str) -> usize {
    let commands = server.commands();
    let of_verb = commands.iter().filter(|line| line.starts_with(verb));
    of_verb.map(|line| commands.iter().filter(|other| *other == line).count()).max().unwrap_or(0)
}

/// Nothing more is under way.
fn settle(fs: &Direct) {
    let until = Instant::now() + PATIENCE;
    while fs.vfs.pool().snapshot().leased > 0 {
        assert!(Instant::now() < until, "{:?}", fs.vfs.pool().snapshot());
        std::thread::yield_now();
    }
}

#[test]
fn a_walk_finds_its_next_folders_listed() {
    let (server, fs) = start(8);
    fs.names(b"tree").unwrap();
    for index in 0..2 {
        fs.names(&folder(index)).unwrap();
    }
    let is_listed = |server: &Server| has_command(server, "MLSD /tree/d09");
    assert!(server.wait_until(is_listed, PATIENCE), "{:?}", server.commands());
    for index in 2..40 {
        assert_eq!(fs.names(&folder(index)).unwrap().len(), 3);
    }
    assert_eq!(server.count("MLSD"), 41, "each once");
    assert_eq!(server.count("RETR"), 0, "nobody reads files");
    assert!(server.sessions_peak() <= 8);
}

#[test]
fn a_row_of_files_is_fetched_before_it_is_read() {
    for connections in [8, 3, 2] {
        let (server, fs) = start(connections);
        for index in 0..4 {
            assert_eq!(fs.read(&file(index)).unwrap(), content(index));
        }
        let is_fetched = |server: &Server| has_command(server, "RETR /flat/f10");
        assert!(server.wait_until(is_fetched, PATIENCE), "{:?}", server.commands());
        for index in 4..40 {
            assert_eq!(fs.read(&file(index)).unwrap(), content(index), "{connections}");
        }
        assert_eq!(most_frequent(&server, "RETR"), 1, "none twice");
        let AheadBytes { fetched, read, unread } = fs.vfs.ahead();
        assert_eq!((fetched, unread), (read, 0), "{connections}: all that came was read");
        assert!(fetched > 0);
        assert!(server.sessions_peak() <= connections);
    }
}

#[test]
fn a_walk_that_reads_goes_on_in_the_next_folders() {
    let (server, fs) = start(8);
    fs.names(b"tree").unwrap();
    for index in 0..40 {
        for (number, name) in fs.names(&folder(index)).unwrap().iter().enumerate() {
            let path = [&folder(index)[..], name].join(&b'/');
            assert_eq!(fs.read(&path).unwrap(), content(index * 3 + number));
        }
        if index == 2 {
            let is_fetched = |server: &Server| has_command(server, "RETR /tree/d05/f0");
            assert!(server.wait_until(is_fetched, PATIENCE), "{:?}", server.commands());
        }
    }
    assert_eq!(server.count("MLSD"), 41, "each once");
    assert_eq!(server.count("RETR"), 120);
    assert_eq!(fs.vfs.ahead().unread, 0);
}

#[test]
fn opens_at_random_fetch_nothing() {
    let (server, fs) = start(8);
    for index in [20, 3, 30, 11, 1, 35, 17, 8, 26, 0, 39, 14] {
        assert_eq!(fs.read(&file(index)).unwrap(), content(index));
    }
    assert_eq!(server.count("RETR"), 12);
    assert_eq!(fs.vfs.ahead(), AheadBytes::default());
}

#[test]
fn a_walk_that_stops_costs_one_window() {
    let (server, fs) = start(8);
    for index in 0..3 {
        fs.read(&file(index)).unwrap();
    }
    let is_fetched = |server: &Server| has_command(server, "RETR /flat/f10");
    assert!(server.wait_until(is_fetched, PATIENCE), "{:?}", server.commands());
    settle(&fs);
    assert!(server.count("RETR") <= 3 + 32, "{:?}", server.commands());
}

#[test]
fn a_file_changed_by_another_client_is_never_served_from_before() {
    let server = Server::start(Dialect::proftpd());
    for index in 0..40 {
        server.put(format!("/flat/f{index:02}"), content(index));
        server.set_mtime(format!("/flat/f{index:02}"), 1_000_000_000);
    }
    let fs = Direct::new(&server, 4, Duration::from_millis(300));
    server.set_delay(DELAY);
    for index in 0..4 {
        assert_eq!(fs.read(&file(index)).unwrap(), content(index));
    }
    assert!(server.wait_until(|server| has_command(server, "RETR /flat/f04"), PATIENCE));
    settle(&fs);
    for index in 4..40 {
        server.put(format!("/flat/f{index:02}"), vec![b'n'; content(index).len()]);
    }
    // A listing that is newer than the change shows it, and what was fetched is of no more use.
    let since = Instant::now();
    while since.elapsed() < Duration::from_millis(301) {
        std::thread::yield_now();
    }
    for index in 4..40 {
        assert!(fs.read(&file(index)).unwrap().iter().all(|byte| *byte == b'n'), "{index}");
    }
}

#[test]
fn ones_own_changes_are_seen_at_once() {
    let (server, fs) = start(4);
    for index in 0..4 {
        fs.read(&file(index)).unwrap();
    }
    assert!(server.wait_until(|server| has_command(server, "RETR /flat/f05"), PATIENCE));
    for index in [4, 5, 6, 7] {
        fs.write(&file(index), &vec![b'w'; content(index).len()]).unwrap();
    }
    fs.rename(b"flat/f20", b"flat/f08").unwrap();
    for index in [4, 5, 6, 7] {
        assert!(fs.read(&file(index)).unwrap().iter().all(|byte| *byte == b'w'), "{index}");
    }
    assert_eq!(fs.read(&file(8)).unwrap(), content(20));
}

#[test]
fn a_ttl_of_zero_and_the_option_turn_it_off() {
    let server = Server::start(Dialect::proftpd());
    for index in 0..40 {
        server.put(format!("/flat/f{index:02}"), content(index));
    }
    let off = Direct::reading_ahead(&server, 4, LONG, ReadAhead::Off);
    for fs in [Direct::new(&server, 4, Duration::ZERO), off] {
        server.clear_commands();
        for index in 0..10 {
            assert_eq!(fs.read(&file(index)).unwrap(), content(index));
        }
        assert_eq!(server.count("RETR"), 10);
        assert_eq!(fs.vfs.ahead(), AheadBytes::default());
        assert!(server.sessions_open() <= 2);
    }
}

#[test]
fn trouble_ahead_is_nobodys_trouble() {
    for what in [
        What::Reply(550, "no"),
        What::Close,
        What::Reset,
        What::CutData(200),
        What::CutDataReply(200, 226, "Transfer complete"),
        What::CutControlAfter(200),
        What::LoseReply,
        What::Garbage(b"what?\r\n"),
    ] {
        let (server, fs) = start(4);
        for index in 0..4 {
            fs.read(&file(index)).unwrap();
        }
        // Every second one fails, whoever asks for it; asked again, it works.
        for nth in (1..12).step_by(2) {
            server.fault(Fault { on: "RETR", nth, times: 1, what: what.clone() });
        }
        for index in 4..40 {
            let mut read = fs.read(&file(index));
            // A refusal of what was asked for is an answer; there are six.
            for _ in 0..6 {
                if read.is_err() && matches!(what, What::Reply(..) | What::Garbage(_)) {
                    read = fs.read(&file(index));
                }
            }
            assert_eq!(read, Ok(content(index)), "{index} {what:?}");
        }
        settle(&fs);
    }
}

#[test]
fn listings_that_fail_ahead_are_asked_for_again() {
    for what in [What::Close, What::Reset, What::CutData(20), What::LoseReply] {
        let (server, fs) = start(4);
        fs.names(b"tree").unwrap();
        for index in 0..3 {
            fs.names(&folder(index)).unwrap();
        }
        server.fault(Fault { on: "MLSD", nth: 1, times: 3, what: what.clone() });
        for index in 3..40 {
            let mut names = fs.names(&folder(index));
            for _ in 0..3 {
                if names.is_err() {
                    names = fs.names(&folder(index));
                }
            }
            assert_eq!(names.unwrap().len(), 3, "{index} {what:?}");
        }
    }
}

#[test]
fn a_request_goes_before_work_ahead() {
    let (server, fs) = start(2);
    for index in 0..3 {
        fs.read(&file(index)).unwrap();
    }
    // All further downloads hang, and with them whatever is done ahead.
    assert!(server.wait_until(|server| server.count("RETR") > 3, PATIENCE));
    server.fault(Fault::always("RETR", What::StallData(100)));
    assert!(server.wait_until(|server| server.stuck() == 1, PATIENCE));
    assert_eq!(fs.names(b"other").unwrap(), [b"x"], "one connection is left");
    fs.write(b"other/y", b"y").unwrap();
    server.clear_faults();
    server.release();
    for index in 3..40 {
        assert_eq!(fs.read(&file(index)).unwrap(), content(index));
    }
}

/// The connection that is left to the next request is of no use to it then.
#[test]
fn a_request_that_waits_for_work_ahead_lends_it_its_connection() {
    let (server, fs) = start(2);
    for index in 0..2 {
        fs.names(&folder(index)).unwrap();
    }
    assert!(server.wait_until(|server| server.count("MLSD") > 4, PATIENCE));
    server.fault(Fault::always("MLSD", What::StallData(1)));
    assert!(server.wait_until(|server| server.stuck() == 1, PATIENCE));
    let hangs = server.commands().into_iter().rfind(|line| line.starts_with("MLSD /")).unwrap();
    let hangs = hangs.trim_start_matches("MLSD /").as_bytes();
    std::thread::scope(|scope| {
        scope.spawn(|| fs.names(hangs).unwrap());
        assert!(server.wait_until(|server| server.stuck() == 2, PATIENCE));
        server.clear_faults();
        server.release();
    });
}

#[test]
fn a_single_connection_does_nothing_ahead() {
    let (server, fs) = start(1);
    for index in 0..40 {
        assert_eq!(fs.read(&file(index)).unwrap(), content(index));
    }
    for index in 0..10 {
        fs.names(&folder(index)).unwrap();
    }
    assert_eq!((server.count("RETR"), server.count("MLSD")), (40, 12));
    assert_eq!(fs.vfs.ahead(), AheadBytes::default());
}

#[test]
fn a_file_on_its_way_is_waited_for() {
    let (server, fs) = start(2);
    // Hits what is longer than the second file: what is fetched ahead.
    server.fault(Fault::always("RETR", What::StallData(content(1).len() as u64 + 1)));
    for index in 0..2 {
        assert_eq!(fs.read(&file(index)).unwrap(), content(index));
    }
    let hangs = |server: &Server| has_command(server, "RETR /flat/f02") && server.stuck() == 1;
    assert!(server.wait_until(hangs, PATIENCE), "{:?}", server.commands());
    server.clear_faults();
    std::thread::scope(|scope| {
        let reads = scope.spawn(|| fs.read(&file(2)).unwrap());
        // More than once, as a reply that is delayed counts as stuck, too.
        while !reads.is_finished() {
            server.release();
            std::thread::yield_now();
        }
        assert_eq!(reads.join().unwrap(), content(2));
    });
    assert_eq!(most_frequent(&server, "RETR"), 1);
}

#[test]
fn a_server_with_few_connections_is_not_pressed() {
    let mut dialect = Dialect::proftpd();
    dialect.limit = Limit::AtLogin(2, 530, "Sorry, the maximum number of clients");
    let server = Server::start(dialect);
    for index in 0..40 {
        server.put(format!("/flat/f{index:02}"), content(index));
    }
    let fs = Direct::new(&server, 8, LONG);
    server.set_delay(DELAY);
    for index in 0..40 {
        assert_eq!(fs.read(&file(index)).unwrap(), content(index));
    }
    assert!(fs.vfs.ahead().fetched > 0);
    assert!(fs.vfs.pool().trouble().is_none());
}

/// Our end of a short download is closed at its beginning, where the server takes it well: so
/// that ProFTPD 1.3.8 does not wait for it with its 226.
#[test]
fn the_end_of_short_downloads_comes_early_where_it_may() {
    for (early_end, connections) in
        [(EarlyEnd::Counted, 4), (EarlyEnd::Aborts, 4), (EarlyEnd::Aborts, 2)]
    {
        // A reader who has waited long enough, on a busy machine, fetches a file again.
        let unread: Vec<u64> = (0..3).map(|_| read_short(early_end, connections)).collect();
        assert!(unread.contains(&0), "{unread:?}");
    }
}

/// Reads short files in a row; the bytes that were fetched in vain.
fn read_short(early_end: EarlyEnd, connections: usize) -> u64 {
    let mut dialect = Dialect::proftpd();
    (dialect.lingers, dialect.early_end) = (true, early_end);
    let server = Server::start(dialect);
    for index in 0..40 {
        server.put(format!("/flat/f{index:02}"), content(index));
    }
    let fs = Direct::new(&server, connections, LONG);
    server.set_delay(DELAY);
    for index in 0..40 {
        assert_eq!(fs.read(&file(index)).unwrap(), content(index), "{early_end:?}");
    }
    let count = server.early_ends();
    match early_end {
        EarlyEnd::Aborts => {
            assert!((1..=connections).contains(&count), "{count}: once for each at most");
        }
        _ => assert!(count > 10, "{count}"),
    }
    assert!(fs.vfs.pool().trouble().is_none());
    fs.vfs.ahead().unread
}

#[test]
fn links_are_not_followed() {
    let server = Server::start(Dialect::proftpd());
    for index in 0..6 {
        server.put(format!("/tree/d{index}/f"), "x");
        server.symlink(format!("/tree/d{index}/up"), "..");
    }
    let fs = Direct::new(&server, 4, LONG);
    server.set_delay(DELAY);
    for index in 0..6 {
        fs.names(format!("tree/d{index}").as_bytes()).unwrap();
    }
    settle(&fs);
    assert!(!server.commands().iter().any(|line| line.contains("/up")));
}

#[test]
fn how_open_handles_see_a_replaced_file() {
    let (server, fs) = start(4);
    for index in 0..4 {
        fs.read(&file(index)).unwrap();
    }
    assert!(server.wait_until(|server| has_command(server, "RETR /flat/f04"), PATIENCE));
    let mut open = fs.open(&file(4), How::READ).unwrap();
    assert_eq!(open.read_at(0, 4).unwrap(), content(4)[..4]);
    fs.rename(b"flat/f30", b"flat/f04").unwrap();
    assert_eq!(open.read_at(4, 8).unwrap(), content(4)[4..12], "one version to its end");
    drop(open);
    assert_eq!(fs.read(&file(4)).unwrap(), content(30));
}
