//! Ways to the server: active mode, proxies, local addresses, and passive mode that leads nowhere.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ftpfs::ftp::{Active, Proxy, Target};

use crate::drivers::{Direct, Driver, target};
use crate::support::dialect::{Dialect, Pasv};
use crate::support::faults::{Fault, What};
use crate::support::server::Server;

const LONG: Duration = Duration::from_secs(600);

fn start(dialect: Dialect) -> Server {
    let server = Server::start(dialect);
    server.put("/f", vec![b'x'; 300_000]);
    server
}

/// Everything that moves data, through a mount with this target.
fn exercise(server: &Server, target: Target) -> Direct {
    let fs = Direct::over(target, LONG).unwrap();
    assert!(fs.read(b"f").unwrap() == vec![b'x'; 300_000]);
    fs.write(b"new", &[b'n'; 200_000]).unwrap();
    assert_eq!(server.get("/new").unwrap().len(), 200_000);
    assert_eq!(fs.names(b"").unwrap(), [&b"f"[..], b"new"]);
    fs
}

#[test]
fn active_mode() {
    let server = start(Dialect::proftpd());
    let mut target = target(&server, 2);
    target.network.active = Some(Active::default());
    exercise(&server, target.clone());
    assert_eq!(server.count("EPSV") + server.count("PASV"), 0);
    assert!(server.count("PORT") >= 3);
    // A range of ports is kept to.
    let ports = 47_100..=47_120;
    target.network.active = Some(Active { ports: Some(ports.clone()), address: None });
    server.clear_commands();
    exercise(&server, target);
    for line in server.commands().iter().filter(|line| line.starts_with("PORT")) {
        let numbers: Vec<u16> = line[5..].split(',').map(|n| n.parse().unwrap()).collect();
        assert!(ports.contains(&(numbers[4] * 256 + numbers[5])), "{line}");
    }
}

#[test]
fn epsv_that_leads_nowhere_is_followed_by_pasv() {
    let server = start(Dialect::proftpd());
    // Port 1 of the server: nobody is there.
    server.fault(Fault::always("EPSV", What::Reply(229, "Extended passive (|||1|)")));
    let fs = exercise(&server, target(&server, 2));
    assert_eq!(server.count("EPSV"), 1, "asked once, and remembered");
    drop(fs);
}

#[test]
fn the_address_in_pasv_is_not_believed() {
    // 192.0.2.1 is nobody's (RFC 5737): believing it would end with the time-out.
    let elsewhere = Pasv::Address(Ipv4Addr::new(192, 0, 2, 1));
    let server = start(Dialect { epsv: false, pasv: elsewhere, ..Dialect::proftpd() });
    exercise(&server, target(&server, 2));
    // If the user says so it is, here with one that is right.
    let near = Pasv::Address(Ipv4Addr::LOCALHOST);
    let server = start(Dialect { epsv: false, pasv: near, ..Dialect::proftpd() });
    let mut target = target(&server, 2);
    target.network.passive_host = true;
    exercise(&server, target);
}

#[test]
fn a_local_address_can_be_chosen() {
    let server = start(Dialect::proftpd());
    let mut target = target(&server, 2);
    target.network.bind = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
    exercise(&server, target.clone());
    target.network.bind = Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)));
    assert!(Direct::over(target, LONG).is_err(), "not an address of this machine");
}

/// A SOCKS5 proxy for names and IPv4 addresses; counts its tunnels.
fn socks() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let tunnels = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&tunnels);
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let count = Arc::clone(&count);
            std::thread::spawn(move || tunnel(client, &count));
        }
    });
    (port, tunnels)
}

fn tunnel(mut client: TcpStream, count: &AtomicUsize) -> io::Result<()> {
    let mut hello = [0; 3];
    client.read_exact(&mut hello)?;
    client.write_all(&[5, 0])?;
    let mut head = [0; 4];
    client.read_exact(&mut head)?;
    let host = if head[3] == 1 {
        let mut octets = [0; 4];
        client.read_exact(&mut octets)?;
        Ipv4Addr::from(octets).to_string()
    } else {
        let mut length = [0];
        client.read_exact(&mut length)?;
        let mut name = vec![0; usize::from(length[0])];
        client.read_exact(&mut name)?;
        String::from_utf8(name).unwrap()
    };
    let mut port = [0; 2];
    client.read_exact(&mut port)?;
    let server = TcpStream::connect((host.as_str(), u16::from_be_bytes(port)))?;
    count.fetch_add(1, Ordering::Relaxed);
    client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])?;
    let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
    let there = std::thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let (mut from, mut to) = (server, client);
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
    let _ = there.join();
    Ok(())
}

#[test]
fn control_and_data_go_through_the_proxy() {
    let server = start(Dialect::proftpd());
    let (port, tunnels) = socks();
    let mut target = target(&server, 2);
    target.network.proxy = Some(Proxy::parse(&format!("socks5://127.0.0.1:{port}")).unwrap());
    exercise(&server, target.clone());
    assert!(tunnels.load(Ordering::Relaxed) >= 4, "one control and three data connections");
    // And a proxy that is not there is told as such.
    target.network.proxy = Some(Proxy::parse("socks5://127.0.0.1:1").unwrap());
    let error = Direct::over(target, LONG).err().unwrap().to_string();
    assert!(error.contains("127.0.0.1:1"), "{error}");
}
