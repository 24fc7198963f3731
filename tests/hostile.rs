//! A server that means harm: nothing gets in, nothing gets out, nothing grows without bound, and the
//! truth is never made up.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use ftpfs::ftp::{NetworkSettings, Secret, Target, TlsMode, TlsSettings};

use crate::drivers::{Direct, Driver, Fail};
use crate::support::dialect::Dialect;
use crate::support::faults::What;
use crate::support::server::Server;

const LONG: Duration = Duration::from_secs(600);
const TIMEOUT: Duration = Duration::from_secs(2);

/// A server that says what it is told to: a listing for every MLSD, `data` for every RETR.
fn liar(listing: Vec<u8>, data: Vec<u8>) -> Target {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let (listing, data) = (listing.clone(), data.clone());
            std::thread::spawn(move || converse(client, &listing, &data));
        }
    });
    Target {
        host: "127.0.0.1".into(),
        port,
        user: "user".into(),
        password: Secret::new(b"password".to_vec()),
        account: None,
        directory: Vec::new(),
        timeout: TIMEOUT,
        connections: 2,
        facts: false,
        tls: TlsSettings::default(),
        network: NetworkSettings::default(),
    }
}

fn converse(client: TcpStream, listing: &[u8], data: &[u8]) -> Option<()> {
    let mut lines = BufReader::new(client.try_clone().ok()?);
    let mut say = client;
    say.write_all(b"220 welcome\r\n").ok()?;
    let mut passive: Option<TcpListener> = None;
    loop {
        let mut line = Vec::new();
        if lines.read_until(b'\n', &mut line).ok()? == 0 {
            return None;
        }
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        let reply = match line.split(' ').next()? {
            "USER" => "331 password".into(),
            "PASS" => "230 in".into(),
            "FEAT" => "211-Features\r\n MLSD\r\n MLST type*;size*;modify*;\r\n211 End".into(),
            "PWD" => "257 \"/\"".into(),
            "EPSV" => {
                let listener = TcpListener::bind("127.0.0.1:0").ok()?;
                let port = listener.local_addr().ok()?.port();
                passive = Some(listener);
                format!("229 ok (|||{port}|)")
            }
            verb @ ("MLSD" | "RETR") => {
                let (mut to, _) = passive.take()?.accept().ok()?;
                say.write_all(b"150 here\r\n").ok()?;
                let sent = to.write_all(if verb == "MLSD" { listing } else { data });
                drop(to);
                if sent.is_err() { "426 aborted".into() } else { "226 done".to_owned() }
            }
            _ => "200 fine".into(),
        };
        say.write_all(format!("{reply}\r\n").as_bytes()).ok()?;
    }
}

fn names(listing: &[u8]) -> Result<Vec<Vec<u8>>, Fail> {
    Direct::over(liar(listing.to_vec(), Vec::new()), LONG).unwrap().names(b"")
}

#[test]
fn names_that_lead_elsewhere_do_not_come_in() {
    let long = vec![b'n'; 4096];
    let mut listing = Vec::new();
    for name in [
        &b".."[..],
        b".",
        b"../up",
        b"/etc/passwd",
        b"a/b",
        b"a\0b",
        b"",
        b"good",
        b"good",
        &long,
        b"fine\rx",
    ] {
        listing.extend_from_slice(b"type=file;size=1; ");
        listing.extend_from_slice(name);
        listing.extend_from_slice(b"\r\n");
    }
    let mut shown = names(&listing).unwrap();
    shown.dedup();
    assert_eq!(shown, [b"good"], "one of two of the same name, and nothing else");
    let fs = Direct::over(liar(listing, Vec::new()), LONG).unwrap();
    for name in [&b".."[..], b".", b"a\0b", b"", b"x\ny", b"x\ry"] {
        let found = fs.vfs.lookup(ftpfs::vfs::ROOT, name);
        assert!(!matches!(found, Ok(Ok(_))), "{name:?}");
    }
}

#[test]
fn sizes_that_make_no_sense() {
    for size in
        ["9223372036854775808", "18446744073709551616", "-1", "1e9", "", "99999999999999999999999"]
    {
        let listing = format!("type=file;size={size};modify=99999999999999; f\r\n");
        let fs = Direct::over(liar(listing.into_bytes(), b"data".to_vec()), LONG).unwrap();
        let stat = fs.stat(b"f").unwrap();
        assert!(i64::try_from(stat.size).is_ok(), "{size}: {}", stat.size);
    }
}

#[test]
fn a_size_that_is_a_lie_brings_no_wrong_bytes() {
    // Longer than the data: the server's word at the end decides, and here it has none.
    let fs = Direct::over(liar(b"type=file;size=1000; f\r\n".to_vec(), b"short".to_vec()), LONG)
        .unwrap();
    let read = fs.read(b"f");
    assert!(read.as_ref().map_or(true, |bytes| bytes == b"short"), "{read:?}");
    // Shorter than the data: what was listed is what there is.
    let fs =
        Direct::over(liar(b"type=file;size=4; f\r\n".to_vec(), b"longer".to_vec()), LONG).unwrap();
    assert_eq!(fs.read(b"f").unwrap(), b"long");
}

#[test]
fn a_line_without_end_and_a_listing_without_end_are_given_up() {
    assert_eq!(names(&vec![b'x'; 3_000_000]).err(), Some(Fail::Io));
    let server = Server::start(Dialect::proftpd());
    server.put("/dir/f", "x");
    let mut target = crate::drivers::target(&server, 2);
    target.timeout = TIMEOUT;
    let fs = Direct::over(target, LONG).unwrap();
    fs.names(b"").unwrap();
    server.fault_once("MLSD", What::EndlessReply);
    let started = Instant::now();
    assert!(fs.names(b"dir").is_err() || started.elapsed() < TIMEOUT * 4);
    server.release();
    assert_eq!(fs.names(b"dir").unwrap(), [b"f"]);
}

#[test]
fn a_million_entries_are_listed_in_bounded_memory() {
    let mut listing = Vec::new();
    for index in 0..1_000_000 {
        listing.extend_from_slice(format!("type=file;size=1; file-{index}\r\n").as_bytes());
    }
    assert_eq!(names(&listing).unwrap().len(), 1_000_000);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    // This process holds the listing as text too, once for the server and once for the sending.
    assert!(peak < 2 << 20, "{peak} KiB");
}

#[test]
fn links_out_of_the_mount_are_shown_as_they_are() {
    let server = Server::start(Dialect::vsftpd());
    server.put("/d/f", "x");
    server.symlink("/d/out", "../../../../etc/passwd");
    let fs = Direct::new(&server, 2, LONG);
    assert_eq!(fs.readlink(b"d/out").unwrap(), b"../../../../etc/passwd");
}

#[test]
fn tls_is_not_stripped() {
    // A server that offers TLS and then will not have it, and one that never heard of it.
    let server = Server::start(Dialect::proftpd());
    let mut target = crate::drivers::target(&server, 2);
    target.tls.mode = TlsMode::Explicit;
    let error = Direct::over(target.clone(), LONG).err().unwrap().to_string();
    assert!(error.contains("AUTH TLS"), "{error}");
    assert_eq!(server.count("USER") + server.count("PASS"), 0, "no password in clear text");
    target.tls.mode = TlsMode::Implicit;
    target.timeout = Duration::from_secs(1);
    assert!(Direct::over(target, LONG).is_err());
    assert_eq!(server.count("USER") + server.count("PASS"), 0);
}

#[test]
fn text_smuggled_in_behind_the_answer_to_auth_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut target = liar(Vec::new(), Vec::new());
    target.port = listener.local_addr().unwrap().port();
    target.tls.mode = TlsMode::Explicit;
    std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        client.write_all(b"220 welcome\r\n").unwrap();
        let mut lines = BufReader::new(client.try_clone().unwrap());
        let mut line = String::new();
        while lines.read_line(&mut line).unwrap_or(0) > 0 {
            let reply: &[u8] = match line.starts_with("AUTH") {
                true => b"234 go\r\n230 you are in\r\n",
                false => b"500 what\r\n",
            };
            let _ = client.write_all(reply);
            line.clear();
        }
    });
    assert!(Direct::over(target, LONG).is_err());
}
