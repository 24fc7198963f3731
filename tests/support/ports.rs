//! Ports to listen on, by number.
//!
//! A closed connection keeps its two ports for a minute (TIME_WAIT). The kernel hands out a free
//! port only where nothing at all is left of others, from 28,232 of them
//! (`net.ipv4.ip_local_port_range`), and a suite that opens 14,000 connections in a minute has
//! none left: “425 Cannot open a passive connection.” A port that is asked for by number may be
//! had again beside such leftovers, and then the kernel's own are the clients' alone, who share
//! them as long as they go to different ones here.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};

use socket2::{Domain, Socket, Type};

/// Below what the kernel hands out by itself, above what services are known by.
const FIRST: u16 = 10_000;
const COUNT: u16 = 22_768;

/// Each process begins elsewhere: several run side by side.
static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| {
    let place = std::process::id().wrapping_mul(977) % u32::from(COUNT);
    AtomicU16::new(u16::try_from(place).unwrap_or(0))
});

/// A socket that listens on this port, or on any if it is 0; bound by number, so that it keeps its
/// port when it stops listening.
pub fn listen(address: IpAddr, port: u16, backlog: i32) -> io::Result<(Socket, u16)> {
    if port != 0 {
        return Ok((listen_on(address, port, backlog)?, port));
    }
    let mut taken = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..COUNT {
        let port = FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        match listen_on(address, port, backlog) {
            Ok(socket) => return Ok((socket, port)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => taken = error,
            Err(error) => return Err(error),
        }
    }
    Err(taken)
}

fn listen_on(address: IpAddr, port: u16, backlog: i32) -> io::Result<Socket> {
    let address = SocketAddr::from((address, port));
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // Beside what is left of earlier connections, see above.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    // Two may have bound the same one; only one may listen.
    socket.listen(backlog)?;
    Ok(socket)
}
