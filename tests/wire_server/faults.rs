//! Every fault does what it says, and none outlives the server.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::client::Client;
use crate::support::dialect::Dialect;
use crate::support::faults::{Fault, What};
use crate::support::server::{PATIENCE, Server};

fn start() -> (Server, Client) {
    let server = Server::start(Dialect::default());
    server.put("/file", b"0123456789");
    let client = Client::login(&server);
    (server, client)
}

#[test]
fn the_nth_command_fails_as_often_as_asked() {
    let (server, mut client) = start();
    let what = What::Reply(450, "Busy.");
    server.fault(Fault { on: "NOOP", nth: 2, times: 2, what });
    let codes: Vec<u16> = (0..5)
        .map(|_| {
            client.send("NOOP");
            client.reply().0
        })
        .collect();
    assert_eq!(codes, [200, 450, 450, 200, 200]);
    server.fault(Fault::always("*", What::Reply(500, "No.")));
    client.expect("NOOP", 500);
    client.expect("MKD /x", 500);
    assert!(!server.exists("/x"));
    server.clear_faults();
    client.expect("NOOP", 200);
}

#[test]
fn connections_close_or_reset() {
    let (server, mut client) = start();
    server.fault_once("NOOP", What::Close);
    client.send("NOOP");
    assert_eq!(client.rest().unwrap(), b"");
    let mut client = Client::login(&server);
    server.fault_once("NOOP", What::Reset);
    client.send("NOOP");
    assert_eq!(client.rest().unwrap_err().kind(), ErrorKind::ConnectionReset);
    server.fault_once("CONNECT", What::Reply(421, "Full."));
    let mut client = Client::connect(&server);
    assert_eq!(client.reply().0, 421);
    assert_eq!(client.rest().unwrap(), b"");
}

#[test]
fn replies_are_spoilt() {
    let (server, mut client) = start();
    server.fault_once("MKD", What::LoseReply);
    client.send("MKD /lost");
    assert_eq!(client.rest().unwrap(), b"");
    assert!(server.exists("/lost"));

    let mut client = Client::login(&server);
    server.fault_once("MKD", What::CutReply(5));
    client.send("MKD /cut");
    assert_eq!(client.rest().unwrap(), b"257 \"");

    let mut client = Client::login(&server);
    server.fault_once("NOOP", What::DoubleReply);
    client.expect("NOOP", 200);
    assert_eq!(client.reply().0, 200);
    server.fault_once("NOOP", What::PreReply(226, "Late."));
    client.expect("NOOP", 226);
    assert_eq!(client.reply().0, 200);
    server.fault_once("FEAT", What::SplitReply);
    client.expect("FEAT", 211);
    server.fault_once("NOOP", What::Garbage(b"\x00\xff\r\n"));
    client.send("NOOP");
    client.send("QUIT");
    assert!(client.rest().unwrap().starts_with(b"\x00\xff\r\n221 "));
}

#[test]
fn replies_come_late_and_early_when_released() {
    let (server, mut client) = start();
    let late = Duration::from_millis(50);
    for what in [What::Delay(late), What::HoldReply(late)] {
        server.fault_once("NOOP", what);
        let start = Instant::now();
        client.expect("NOOP", 200);
        assert!(start.elapsed() >= late);
    }
    server.fault_once("NOOP", What::Delay(Duration::from_secs(3600)));
    client.send("NOOP");
    assert!(server.wait_until(|server| server.stuck() == 1, PATIENCE));
    server.release();
    assert_eq!(client.reply().0, 200);
    assert_eq!(server.stuck(), 0);
}

#[test]
fn an_unanswered_abor_does_not_spoil_the_next_silence() {
    let (server, mut client) = start();
    server.fault_once("ABOR", What::Silence);
    client.send("ABOR");
    assert!(server.wait_until(|server| server.stuck() == 1, PATIENCE));
    server.release();
    server.fault_once("NOOP", What::Silence);
    client.send("NOOP");
    assert!(server.wait_until(|server| !server.faults_pending(), PATIENCE));
    assert!(server.wait_until(|server| server.stuck() == 1, PATIENCE));
    server.release();
    client.expect("SYST", 215);
}

#[test]
fn data_is_cut_at_the_byte() {
    let (server, mut client) = start();
    let cut = |client: &mut Client, what: What| {
        server.fault_once("RETR", what);
        let mut data = client.data();
        client.expect("RETR /file", 150);
        let mut bytes = Vec::new();
        data.read_to_end(&mut bytes).unwrap();
        bytes
    };
    assert_eq!(cut(&mut client, What::CutData(4)), b"0123");
    assert_eq!(client.reply().0, 426);
    assert_eq!(cut(&mut client, What::CutDataReply(10, 451, "Disk.")), b"0123456789");
    assert_eq!(client.reply().0, 451);
    // Past the end there is nothing to cut.
    assert_eq!(cut(&mut client, What::CutData(11)), b"0123456789");
    assert_eq!(client.reply().0, 226);
    assert_eq!(cut(&mut client, What::CutDataReply(0, 226, "A lie.")), b"");
    assert_eq!(client.reply().0, 226);
    assert_eq!(cut(&mut client, What::CutControlAfter(3)), b"012");
    assert_eq!(client.rest().unwrap(), b"");

    let mut client = Client::login(&server);
    assert_eq!(cut(&mut client, What::CutDataSilence(3)), b"012");
    client.set_read_timeout(Duration::from_millis(50));
    assert!(client.try_reply().is_none());

    let mut client = Client::login(&server);
    server.fault_once("RETR", What::ResetAfter(3));
    let _data = client.data();
    client.expect("RETR /file", 150);
    assert_eq!(client.rest().unwrap_err().kind(), ErrorKind::ConnectionReset);

    let mut client = Client::login(&server);
    server.fault_once("LIST", What::CutData(7));
    let mut data = client.data();
    client.expect("LIST /", 150);
    let mut bytes = Vec::new();
    data.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"-rw-r--");
}

#[test]
fn uploads_are_cut_at_the_byte() {
    let (server, mut client) = start();
    server.fault_once("STOR", What::CutDataReply(5, 552, "Quota exceeded."));
    assert_eq!(client.upload("STOR /up", b"0123456789"), 552);
    assert_eq!(server.get("/up").unwrap(), b"01234");
    server.fault_once("STOR", What::LoseReply);
    let mut data = client.data();
    client.expect("STOR /up", 150);
    data.write_all(b"all of it").unwrap();
    drop(data);
    assert_eq!(client.rest().unwrap(), b"");
    assert_eq!(server.get("/up").unwrap(), b"all of it");
}

#[test]
fn a_stall_goes_on_when_released() {
    let (server, mut client) = start();
    server.fault_once("RETR", What::StallData(4));
    let mut data = client.data();
    client.expect("RETR /file", 150);
    let mut bytes = [0; 4];
    data.read_exact(&mut bytes).unwrap();
    data.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert_eq!(data.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert!(server.wait_until(|server| server.stuck() == 1, PATIENCE));
    server.release();
    let mut rest = Vec::new();
    data.set_read_timeout(None).unwrap();
    data.read_to_end(&mut rest).unwrap();
    assert_eq!((&bytes, &rest[..]), (b"0123", &b"456789"[..]));
    assert_eq!(client.reply().0, 226);
}

#[test]
fn sessions_are_killed_expired_frozen_and_refused() {
    let (server, mut client) = start();
    server.put_generated("/big", 1 << 40, 1);
    let mut busy = Client::login(&server);
    let _data = busy.data();
    busy.expect("RETR /big", 150);
    server.kill_sessions();
    assert_eq!(server.sessions_open(), 0);
    assert_eq!(client.rest().unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(busy.rest().unwrap_err().kind(), ErrorKind::ConnectionReset);

    let mut client = Client::login(&server);
    server.expire_sessions();
    assert_eq!(client.rest().unwrap(), b"421 Timeout.\r\n");

    for _ in 0..3 {
        server.refuse_connections(true);
        let error = TcpStream::connect(server.addr()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        server.refuse_connections(false);
        Client::login(&server).expect("NOOP", 200);
    }

    let mut client = Client::login(&server);
    server.freeze();
    client.send("NOOP");
    let mut other = Client::connect(&server);
    client.set_read_timeout(Duration::from_millis(50));
    other.set_read_timeout(Duration::from_millis(50));
    assert!(client.try_reply().is_none() && other.try_reply().is_none());
    server.thaw();
    client.set_read_timeout(PATIENCE);
    other.set_read_timeout(PATIENCE);
    assert_eq!((client.reply().0, other.reply().0), (200, 220));
}

#[test]
fn an_idle_session_ends() {
    let idle = Some(Duration::from_millis(30));
    let server = Server::start(Dialect { idle, ..Dialect::default() });
    let mut client = Client::connect(&server);
    assert!(client.rest().unwrap().ends_with(b"421 Timeout.\r\n"));
}

/// The server ends although every session is stuck somewhere else.
#[test]
fn dropping_the_server_ends_whatever_is_stuck() {
    let server = Server::start(Dialect::default());
    server.put_generated("/big", 1 << 40, 1);
    let mut clients = Vec::new();
    let mut sockets = Vec::new();
    let stuck = [
        ("NOOP", What::Silence),
        ("NOOP", What::Delay(Duration::from_secs(3600))),
        ("NOOP", What::HoldReply(Duration::from_secs(3600))),
        ("NOOP", What::EndlessReply),
        ("RETR /big", What::StallData(100)),
        ("RETR /big", What::CutDataSilence(100)),
        ("LIST /", What::EndlessListing),
        ("STOR /up", What::StallData(0)),
    ];
    for (command, what) in stuck {
        let mut client = Client::login(&server);
        server.fault_once(command.split(' ').next().unwrap(), what);
        if command != "NOOP" {
            sockets.push(client.data());
        }
        client.send(command);
        // The next session must not meet this fault.
        assert!(server.wait_until(|server| !server.faults_pending(), PATIENCE));
        clients.push(client);
    }
    // Waits for bytes, waits for a data connection, is not even logged in.
    let mut client = Client::login(&server);
    sockets.push(client.data());
    client.expect("STOR /other", 150);
    clients.push(client);
    let mut client = Client::login(&server);
    client.expect("EPSV", 229);
    client.send("RETR /big");
    clients.push(client);
    clients.push(Client::connect(&server));
    assert!(server.wait_until(|server| server.count("RETR") == 3, PATIENCE));

    let start = Instant::now();
    let address = server.addr();
    drop(server);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert!(TcpStream::connect(address).is_err());
}
