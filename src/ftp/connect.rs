//! From a target to a logged-in session: TCP with deadlines, login, FEAT, TYPE I.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use suppaftp::FtpError;

use super::error::{Error, Reply};
use super::facts::Offered;
use super::lane::{Ask, Kind, converse};
use super::network::{Network, NetworkSettings};
use super::path::{ByteEncoding, RemotePath, to_wire};
use super::pool::Slot;
use super::secret::Secret;
use super::server::{Habit, Server, Verdict, lock};
use super::session::{Client, Session};
use super::stream::{Control, Maker};
use super::tls::{Tls, TlsMode, TlsSettings};

/// Which server, who, and how patiently.
#[derive(Clone, Debug)]
pub struct Target {
    /// Name or address.
    pub host: String,
    /// TCP port of the control connection; 21 by RFC 959.
    pub port: u16,
    /// `anonymous` when no one is named.
    pub user: String,
    /// Sent by PASS when the server asks for it.
    pub password: Secret,
    /// Sent by ACCT when the server answers 332.
    pub account: Option<Secret>,
    /// Bytes; empty: the login directory; with a leading `/` absolute, else below the login
    /// directory (RFC 1738 §3.2.2).
    pub directory: Vec<u8>,
    /// The longest wait without progress, for anything.
    pub timeout: Duration,
    /// The most control connections at once.
    pub connections: usize,
    /// Ask for every fact of a file that people may want to see, not only for what is used.
    pub facts: bool,
    pub tls: TlsSettings,
    pub network: NetworkSettings,
}

/// Opens sessions to one target.
#[derive(Debug)]
pub(crate) struct Connector {
    target: Target,
    server: Arc<Server>,
    tls: Tls,
    network: Arc<Network>,
    /// The address that worked last; tried first, so that a name with several addresses stays on
    /// one server (mirrors differ). Leaf lock, never held across I/O.
    pinned: Mutex<Option<SocketAddr>>,
}

impl Connector {
    pub(crate) fn new(target: Target) -> Result<Self, Error> {
        let tls = Tls::new(&target.tls, &target.host, target.port)?;
        let network =
            Network::new(target.network.clone(), target.host.clone(), target.port, target.timeout);
        Ok(Self {
            target,
            server: Arc::new(Server::new()),
            tls,
            network: Arc::new(network),
            pinned: Mutex::new(None),
        })
    }

    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    pub(crate) fn server(&self) -> &Arc<Server> {
        &self.server
    }

    /// Connects and logs in. The first session also finds out what the server can and where the
    /// mount begins; the others only repeat what each session needs.
    pub(crate) fn open(&self, slot: Slot) -> Result<Session, Error> {
        let control = Arc::new(Control::new(self.dial()?));
        let only_tls12 = !self.server.may(Habit::Tls13);
        if self.tls.settings().mode == TlsMode::Implicit {
            self.protect_control(&control, only_tls12)?;
        }
        let client = greet(Maker::new(Arc::clone(&control)))?;
        let welcome = client.get_welcome_msg().unwrap_or_default().to_owned();
        let server = Arc::clone(&self.server);
        let mut session = Session::new(client, control, Arc::clone(&self.network), server, slot);
        let first = self.server.base().is_none();
        if first {
            log::info!("welcome: {welcome}");
            self.server.set_welcome(welcome);
            self.ask_features(&mut session)?;
        }
        self.protect(&mut session, only_tls12)?;
        self.login(&mut session)?;
        if first {
            self.ask_features(&mut session)?;
        }
        if self.tls.settings().clear_control && session.protocol().is_some() {
            let reply = session.command("CCC")?;
            if !reply.is_success() {
                return Err(Error::Tls(format!("the server keeps TLS (CCC refused): {reply}")));
            }
            session.control().unprotect().map_err(Error::Broken)?;
        }
        self.prepare(&mut session)?;
        self.server.route().look_at(session.control().socket());
        if first {
            let base = self.find_base(&mut session)?;
            self.server.set_base(base);
        }
        Ok(session)
    }

    /// TLS as the user wants it and the server can, before the password is sent.
    fn protect(&self, session: &mut Session, only_tls12: bool) -> Result<(), Error> {
        let settings = self.tls.settings();
        match settings.mode {
            TlsMode::Off => return Ok(()),
            TlsMode::Implicit => {}
            TlsMode::Auto if self.server.has_features() && !self.server.offers("AUTH") => {
                return self.stay_in_clear("does not offer TLS");
            }
            TlsMode::Auto if !self.server.may(Habit::Auth) => {
                return self.stay_in_clear("refuses TLS");
            }
            TlsMode::Auto | TlsMode::Explicit => {
                let reply = session.command("AUTH TLS")?;
                match reply.code {
                    // 234 by RFC 4217 §4; 334 was a draft's.
                    234 | 334 => self.protect_control(session.control(), only_tls12)?,
                    421 => return Err(Error::Closing(reply)),
                    _ if settings.mode == TlsMode::Auto => {
                        self.server.learn(Habit::Auth, Verdict::No);
                        return self.stay_in_clear("refuses TLS");
                    }
                    _ => return Err(Error::Tls(format!("the server refuses AUTH TLS: {reply}"))),
                }
            }
        }
        // RFC 4217 §9: PBSZ comes first, and its only value for TLS is 0.
        session.command("PBSZ 0")?;
        if settings.clear_data {
            session.expect("PROT C")?;
        } else {
            let reply = session.command("PROT P")?;
            if !reply.is_success() {
                return Err(Error::Tls(format!(
                    "the server refuses to protect data: {reply}; --tls-data=clear does without"
                )));
            }
            session.protect_data(self.tls.name());
        }
        let version = match session.protocol() {
            Some(rustls::ProtocolVersion::TLSv1_3) => "TLS 1.3",
            _ => "TLS 1.2",
        };
        let data = if settings.clear_data { ", data in clear text" } else { "" };
        self.server.set_protection(format!("{version}, {}{data}", self.tls.verifier().verdict()));
        Ok(())
    }

    fn protect_control(&self, control: &Control, only_tls12: bool) -> Result<(), Error> {
        let config = self.tls.session_config(only_tls12)?;
        let Err(error) = control.protect(config, self.tls.name()) else { return Ok(()) };
        if let Some(why) = self.tls.verifier().take_refusal() {
            return Err(Error::Tls(why));
        }
        Err(match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                Error::TimedOut("the TLS handshake")
            }
            io::ErrorKind::InvalidData | io::ErrorKind::Other => {
                Error::Tls(format!("the TLS handshake failed: {error}"))
            }
            _ => Error::Broken(error),
        })
    }

    /// Clear text, if that server never spoke TLS.
    fn stay_in_clear(&self, why: &str) -> Result<(), Error> {
        let host = &self.target.host;
        if self.tls.verifier().knows_host() {
            return Err(Error::Tls(format!(
                "{host} spoke TLS before and now {why}; somebody may be in between. If clear text \
                 is all right, say --tls=off"
            )));
        }
        // What stays on this machine (a server here, a tunnel's end) is heard by nobody else.
        let is_local = lock(&self.pinned).is_some_and(|address| address.ip().is_loopback());
        if self.server.base().is_none() && self.target.user != "anonymous" && !is_local {
            log::warn!("{host} {why}: the password and all data travel in clear text");
        }
        Ok(())
    }

    /// A control socket; of several addresses the one that worked last is tried first.
    fn dial(&self) -> Result<TcpStream, Error> {
        let first = *lock(&self.pinned);
        let dialled = self.network.dial_control(first);
        *lock(&self.pinned) = dialled.as_ref().ok().and_then(|stream| stream.peer_addr().ok());
        dialled
    }

    /// USER, PASS and ACCT (RFC 959 §5.4), each only as far as the server asks.
    fn login(&self, session: &mut Session) -> Result<(), Error> {
        let mut reply =
            session.command(&format!("USER {}", to_wire(self.target.user.as_bytes())))?;
        if reply.code == 331 {
            reply = session.command(&format!("PASS {}", to_wire(self.target.password.expose())))?;
        }
        if reply.code == 332 {
            let Some(account) = &self.target.account else {
                return Err(Error::NeedAccount(reply));
            };
            reply = session.command(&format!("ACCT {}", to_wire(account.expose())))?;
        }
        match reply {
            // 202: not needed here, RFC 959's answer to a superfluous PASS.
            reply if reply.is_success() => Ok(()),
            reply if reply.is_too_many() => Err(Error::TooMany(reply)),
            reply if reply.code == 421 => Err(Error::Closing(reply)),
            reply => Err(Error::Login(reply)),
        }
    }

    /// FEAT (RFC 2389); a server without it answers 500 or 502, one that wants a login first 530.
    fn ask_features(&self, session: &mut Session) -> Result<(), Error> {
        let reply = session.command("FEAT")?;
        if reply.code == 211 {
            self.server.learn_features(&reply.body);
        }
        Ok(())
    }

    /// What every session needs before its first transfer.
    fn prepare(&self, session: &mut Session) -> Result<(), Error> {
        let mut asks = Vec::new();
        if self.server.offers("UTF8") {
            // Names pass through byte for byte either way; IIS and FileZilla Server convert them
            // to a code page unless told so.
            asks.push(Ask::new(Kind::Nothing, "OPTS UTF8 ON"));
        }
        let line = self.server.mlst_line();
        let offered = line.as_deref().and_then(Offered::parse);
        let facts = offered.map_or(Ok(None), |offered| self.choose_facts(session, &offered))?;
        asks.extend(facts.map(|command| Ask::new(Kind::Nothing, command)));
        // Before anything else that transfers or asks for a size: SIZE in ASCII type is refused
        // or counts other bytes (RFC 3659 §4).
        let binary = Ask::new(Kind::Nothing, "TYPE I");
        if self.server.verdict(Habit::Pipelines) == Verdict::Yes {
            asks.push(binary);
            return match converse(session, &asks)?.pop() {
                Some(reply) if !reply.is_success() => Err(Error::from_reply(reply)),
                _ => Ok(()),
            };
        }
        for ask in asks {
            session.command(&ask.line)?;
        }
        session.expect(&binary.line).map(drop)
    }

    /// The command that chooses the facts, if one is needed. The first session finds out whether the
    /// server follows; one that does not tells what it would have told.
    fn choose_facts(
        &self,
        session: &mut Session,
        offered: &Offered,
    ) -> Result<Option<String>, Error> {
        let usual = offered.most(self.target.facts).map(|chosen| chosen.command());
        let Some(least) = offered.least().filter(|_| !self.target.facts) else { return Ok(usual) };
        match self.server.verdict(Habit::Facts) {
            Verdict::Yes => return Ok(Some(least.command())),
            Verdict::No => return Ok(usual),
            Verdict::Unknown => {}
        }
        let reply = session.command(&least.command())?;
        if least.are_granted(&reply) {
            self.server.learn(Habit::Facts, Verdict::Yes);
            return Ok(None);
        }
        self.server.learn(Habit::Facts, Verdict::No);
        // What it made of the command nobody knows.
        let before = offered.on().command();
        Ok(usual.or_else(|| reply.is_success().then_some(before)))
    }

    /// The directory that becomes the root of the mount.
    fn find_base(&self, session: &mut Session) -> Result<RemotePath, Error> {
        let wanted = &self.target.directory;
        if wanted.is_empty() || !wanted.starts_with(b"/") {
            let mut base = session.working_directory()?;
            if !wanted.is_empty() {
                for component in RemotePath::parse(wanted)?.components() {
                    base = base.join(component)?;
                }
                session.enter(&base).map_err(no_directory)?;
            }
            return Ok(base);
        }
        let base = RemotePath::parse(wanted)?;
        session.enter(&base).map_err(no_directory)?;
        Ok(base)
    }
}

/// suppaftp reads the greeting. It would connect by itself, without deadlines and without TLS of
/// ours; so it is given an address of this very machine, where nobody speaks, and `maker` puts
/// the true connection in its place.
fn greet(maker: Maker) -> Result<Client, Error> {
    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(Error::Broken)?;
    let address = nobody.local_addr().map_err(Error::Broken)?;
    // The name is not used: `maker` knows it.
    Client::connect_secure_implicit(address, maker, "").map_err(sort_greeting)
}

/// A greeting other than 220 speaks of the number of connections or of a server going down.
fn sort_greeting(error: FtpError) -> Error {
    match Error::from_suppaftp(error) {
        Error::Closing(reply) | Error::Refused(reply) if reply.is_too_many() => {
            Error::TooMany(reply)
        }
        Error::Refused(reply) => Error::Closing(reply),
        other => other,
    }
}

fn no_directory(error: Error) -> Error {
    match error {
        Error::Refused(reply) => Error::NoDirectory(reply),
        other => other,
    }
}

/// For messages and logs: never the password.
impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ftp://{}@{}:{}", self.user, self.host, self.port)
    }
}

/// What suppaftp is told about names: bytes are bytes.
pub(crate) fn encoding() -> ByteEncoding {
    ByteEncoding
}

/// Kept with the connector, as it is the other thing a login needs to know of a reply.
pub(crate) fn quoted_path(reply: &Reply) -> Option<Vec<u8>> {
    // RFC 959 §5.3.1 and appendix II: 257 "path" with quotes inside doubled.
    let start = reply.body.iter().position(|byte| *byte == b'"')? + 1;
    let mut path = Vec::new();
    let mut rest = reply.body.get(start..)?.iter().copied().peekable();
    while let Some(byte) = rest.next() {
        match byte {
            b'"' if rest.peek() == Some(&b'"') => {
                rest.next();
                path.push(byte);
            }
            b'"' => return Some(path),
            _ => path.push(byte),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_in_a_path_are_undoubled() {
        let path = |text: &str| quoted_path(&Reply::parse(text.as_bytes().to_vec()));
        assert_eq!(path("257 \"/a b\" is current\r\n"), Some(b"/a b".to_vec()));
        assert_eq!(path("257 \"/say \"\"hi\"\"\" ok\r\n"), Some(b"/say \"hi\"".to_vec()));
        assert_eq!(path("257 none\r\n"), None);
        assert_eq!(path("257 \"/open\r\n"), None);
    }
}
