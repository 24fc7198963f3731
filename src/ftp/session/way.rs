//! The ways for data: asked for, dialled, opened.

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

use super::{Session, out_of_step};
use crate::ftp::error::{Error, Reply};
use crate::ftp::network::{active_command, await_handshake, parse_epsv, parse_pasv};
use crate::ftp::server::{Habit, Verdict};
use crate::ftp::stream::DataSocket;

/// How the data connection comes to be.
pub(crate) enum Way {
    Passive(TcpStream),
    Active(TcpListener),
}

impl Way {
    /// Says already now that nothing will come from here, if the connection comes about.
    pub(crate) fn end_early(&self) -> bool {
        let Self::Passive(socket) = self else { return false };
        // Before its handshake a shutdown would be the end of the connection (inet_shutdown).
        await_handshake(socket).is_ok() && socket.shutdown(Shutdown::Write).is_ok()
    }
}

impl Session {
    /// Opens the way for data, waiting for each step.
    pub(crate) fn way(&mut self) -> Result<Way, Error> {
        let Some(active) = self.network.active().cloned() else {
            return Ok(Way::Passive(self.dial_data()?));
        };
        let local = self.control.socket().local_addr().map_err(Error::Broken)?.ip();
        let (listener, address) = self.network.listen(local, &active).map_err(Error::Broken)?;
        self.expect(&active_command(address))?;
        Ok(Way::Active(listener))
    }

    /// The data connection of a transfer that has begun.
    pub(crate) fn data_socket(&mut self, way: Way) -> Result<DataSocket, Error> {
        let socket = match way {
            Way::Passive(socket) => socket,
            Way::Active(listener) => {
                let server = self.control.socket().peer_addr().map_err(Error::Broken)?.ip();
                let accepted = self.network.accept(&listener, server);
                accepted.map_err(|error| Error::from_io(error, "the server's data connection"))?
            }
        };
        DataSocket::new(socket, self.protection.as_ref()).map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => {
                Error::TimedOut("the TLS handshake of a data connection")
            }
            _ => self.sort_refusal(Error::DataTls(format!("data connection: {error}"))),
        })
    }

    /// May bytes go out before the server said that it wants them? Not under TLS: its handshake
    /// in front of the 150 locks up ProFTPD 1.3.8 and Pure-FTPd 1.0.50.
    pub(crate) fn may_send_early(&self, way: &Way) -> bool {
        self.protection.is_none() && matches!(way, Way::Passive(_))
    }

    /// The command that asks for an address, where it was seen to lead somewhere: then others may
    /// travel with it.
    pub(crate) fn passive_command(&self) -> Option<&'static str> {
        if self.network.active().is_some() || self.network.has_proxy() {
            return None;
        }
        match self.server.verdict(Habit::Epsv) {
            Verdict::Yes => Some("EPSV"),
            Verdict::No => Some("PASV"),
            Verdict::Unknown => None,
        }
    }

    /// A data connection to where `reply` says; it is not waited for.
    pub(crate) fn dial_reply(&mut self, reply: &Reply) -> Result<Way, Error> {
        let address = self.data_address(reply, reply.code == 229);
        let address = address.ok_or_else(|| out_of_step("no address for data"))?;
        let dialled = self.network.dial_data(address, false);
        dialled.map(Way::Passive).map_err(|error| Error::from_io(error, "a data connection"))
    }

    /// A data connection to the address that EPSV (RFC 2428) names, or PASV where EPSV is not
    /// known or leads nowhere.
    fn dial_data(&mut self) -> Result<TcpStream, Error> {
        loop {
            let is_extended = self.server.may(Habit::Epsv);
            let is_first = self.server.verdict(Habit::Epsv) == Verdict::Unknown;
            let reply = self.command(if is_extended { "EPSV" } else { "PASV" })?;
            let address = self.data_address(&reply, is_extended);
            let address = match (address, is_extended) {
                (Some(address), _) => address,
                (None, true) if reply.code >= 500 => {
                    self.server.learn(Habit::Epsv, Verdict::No);
                    continue;
                }
                (None, _) if reply.is_success() => return Err(out_of_step("no address for data")),
                (None, _) => return Err(Error::from_reply(reply)),
            };
            match self.network.dial_data(address, is_first) {
                Ok(socket) => {
                    if is_extended {
                        self.server.learn(Habit::Epsv, Verdict::Yes);
                    }
                    return Ok(socket);
                }
                Err(error) if is_extended && is_first => {
                    log::warn!("data connection to {address}: {error}; PASV from now on");
                    self.server.learn(Habit::Epsv, Verdict::No);
                }
                Err(error) => return Err(Error::from_io(error, "a data connection")),
            }
        }
    }

    /// Data connections go to the control connection's peer, whatever PASV says (RFC 2577 §2 names
    /// the bounce attack; servers behind NAT tell a private address), unless the user says so.
    fn data_address(&self, reply: &Reply, is_extended: bool) -> Option<SocketAddr> {
        let peer = self.control.socket().peer_addr().ok()?.ip();
        match (reply.code, is_extended) {
            (229, true) => Some(SocketAddr::new(peer, parse_epsv(&reply.body)?)),
            (227, false) => {
                let (host, port) = parse_pasv(&reply.body)?;
                let believed = self.network.believes_passive_host();
                Some(SocketAddr::new(if believed { host.into() } else { peer }, port))
            }
            _ => None,
        }
    }
}
