//! One logged-in control connection and what can be said over it.
//!
//! Invariant: between two calls no reply is unread, except one that is `owed`: the reply of a
//! transfer whose data are already at hand. The next call reads it first.

mod attributes;
mod lists;
mod way;

use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ProtocolVersion;
use rustls::pki_types::ServerName;
use suppaftp::{Encoding, FtpError, ImplFtpStream};

use super::connect::{encoding, quoted_path};
use super::error::{Error, Reply};
use super::lane::{Ask, may_share};
use super::network::Network;
use super::open::Stock;
use super::path::RemotePath;
use super::pool::Slot;
use super::server::{Habit, Probe, Server, Verdict};
use super::stream::{Control, DataProtection, Stream};

pub use attributes::Stat;
pub(crate) use attributes::{mlst_entry, reply_argument};
pub(crate) use way::Way;

pub(crate) type Client = ImplFtpStream<Stream>;

/// The longest reply: FEAT and STAT of talkative servers have a few KiB.
const REPLY_LIMIT: usize = 64 * 1024;

/// One logged-in control connection.
pub struct Session {
    client: Client,
    /// What `client` talks over.
    control: Arc<Control>,
    network: Arc<Network>,
    /// How data connections are protected, if they are (PROT P).
    protection: Option<DataProtection>,
    /// A transfer whose reply is still to come.
    owed: Option<Owed>,
    /// The address for the next data connection, asked for with the last transfer.
    pub(crate) stock: Option<Stock>,
    /// The NOOP that travels with this session's transfer.
    pub(crate) probe: Option<Probe>,
    server: Arc<Server>,
    /// When it was last given back.
    last_use: Instant,
    slot: Slot,
}

impl Session {
    pub(crate) fn new(
        client: Client,
        control: Arc<Control>,
        network: Arc<Network>,
        server: Arc<Server>,
        slot: Slot,
    ) -> Self {
        let mut client = client;
        client.set_encoding(encoding());
        let last_use = Instant::now();
        Self {
            client,
            control,
            network,
            protection: None,
            owed: None,
            stock: None,
            probe: None,
            server,
            last_use,
            slot,
        }
    }

    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    pub(crate) fn server_handle(&self) -> Arc<Server> {
        Arc::clone(&self.server)
    }

    /// Runs `work`, whose waits for replies end after `most` at the latest.
    pub(crate) fn with_timeout<T>(
        &mut self,
        most: Duration,
        work: impl FnOnce(&mut Self) -> T,
    ) -> Result<T, Error> {
        let control = Arc::clone(&self.control);
        let usual = control.socket().read_timeout().map_err(Error::Broken)?;
        let least = usual.map_or(most, |usual| usual.min(most));
        control.socket().set_read_timeout(Some(least)).map_err(Error::Broken)?;
        let result = work(self);
        control.socket().set_read_timeout(usual).map_err(Error::Broken)?;
        Ok(result)
    }

    pub(crate) fn control(&self) -> &Control {
        &self.control
    }

    /// The version of TLS on the control connection.
    pub(crate) fn protocol(&self) -> Option<ProtocolVersion> {
        self.control.protocol()
    }

    /// Data connections are under TLS from now on, resuming the control connection's session.
    pub(crate) fn protect_data(&mut self, name: ServerName<'static>) {
        self.protection = self.control.config().map(|config| DataProtection { config, name });
    }

    /// A data connection that did not resume the TLS session is refused with 522 (vsftpd 3.0.3)
    /// or 425 (ProFTPD 1.3.8). That cannot happen with TLS 1.2: the caller tries again with it.
    pub(crate) fn sort_refusal(&self, error: Error) -> Error {
        let is_refusal = match &error {
            Error::Refused(reply) => matches!(reply.code, 425 | 522),
            Error::DataTls(_) => true,
            _ => false,
        };
        if is_refusal && self.speaks_tls13() && self.protection.is_some() {
            self.server.learn(Habit::Tls13, Verdict::No);
            return Error::Broken(std::io::Error::other(format!("{error}; TLS 1.2 from now on")));
        }
        error
    }

    fn speaks_tls13(&self) -> bool {
        self.protocol() == Some(ProtocolVersion::TLSv1_3)
    }

    pub(crate) fn note_use(&mut self) {
        self.last_use = Instant::now();
    }

    /// For how long nobody has used it.
    pub(crate) fn idle_for(&self) -> Duration {
        self.last_use.elapsed()
    }

    /// Back to the pool. Only for a session whose last reply was read, or is `owed`.
    pub(crate) fn give_back(self) {
        let pool = self.slot.pool();
        pool.take_back(self);
    }

    /// Something moved: those who wait for a connection go on waiting.
    pub(crate) fn note_progress(&self) {
        self.slot.note_progress();
    }

    /// Reads the reply that is still to come, if there is one. What it says no longer matters:
    /// the bytes of that transfer were complete, or nobody wanted them.
    pub(crate) fn settle(&mut self) -> Result<(), Error> {
        match self.owed.take() {
            Some(owed) => self.read_owed(owed),
            None => Ok(()),
        }
    }

    fn read_owed(&mut self, owed: Owed) -> Result<(), Error> {
        match self.end_with(owed.next) {
            Ok(()) | Err(Error::Refused(_)) => {}
            Err(error) => return Err(error),
        }
        for _ in 0..owed.behind {
            self.read_final()?;
        }
        Ok(())
    }

    /// Reads the reply that is still to come, unless it may come behind a question for an address,
    /// as a transfer begins with.
    pub(crate) fn settle_unless_overlapping(&mut self) -> Result<(), Error> {
        if self.can_overlap() { Ok(()) } else { self.settle() }
    }

    /// May a question be sent before the reply that is owed is read? All data were read, so that the
    /// server has nothing more to do for that transfer but to say so; but one that does not leave
    /// commands alone meanwhile (pyftpdlib 2.0.1) may break off what it takes to be under way.
    pub(crate) fn can_overlap(&self) -> bool {
        may_share(&self.server)
            && self.server.verdict(Habit::Queues) == Verdict::Yes
            && self.passive_command().is_some()
            && self
                .owed
                .as_ref()
                .is_some_and(|owed| owed.is_all_read && owed.next.is_none() && owed.behind == 0)
    }

    pub(crate) fn owes(&self) -> bool {
        self.owed.is_some()
    }

    /// Leaves the reply of a transfer, and that to what travelled with it, to whoever uses the session
    /// next. Its data connection is closed; were all bytes read that there are?
    pub(crate) fn owe(&mut self, is_all_read: bool, next: Option<Ask>) {
        self.owed = Some(Owed { is_all_read, next, behind: 0 });
    }

    /// The reply of a transfer that was broken off, and so many behind it to commands that travelled
    /// with it.
    pub(crate) fn owe_behind(&mut self, behind: usize) {
        self.owed = Some(Owed { is_all_read: false, next: None, behind });
    }

    /// The reply at the end of a transfer, after the data connection was closed: 226 or 250
    /// (RFC 959 §5.4), or any other success.
    pub(crate) fn end_of_transfer(&mut self) -> Result<(), Error> {
        self.end_reply().map(drop)
    }

    pub(crate) fn end_reply(&mut self) -> Result<Reply, Error> {
        loop {
            let reply = self.read_reply()?;
            match reply.code {
                // Pure-FTPd 1.0.50 ends a download whose data connection was reset with “150 0.005
                // seconds (measured here), 1016.82 Mbytes per second”, and says no more.
                100..200 if reply.text().contains("(measured here)") => {
                    return Err(Error::Refused(reply));
                }
                // A second “150 Opening …” of a server that says it twice.
                100..200 => {}
                200..300 => return Ok(reply),
                _ => return Err(self.sort_refusal(Error::from_reply(reply))),
            }
        }
    }

    /// The next reply that ends a command.
    pub(crate) fn read_final(&mut self) -> Result<Reply, Error> {
        loop {
            let reply = self.read_reply()?;
            match reply.code {
                100..200 => {}
                421 => return Err(Error::Closing(reply)),
                _ => return Ok(reply),
            }
        }
    }

    /// Several command lines in one segment; the replies are read by the caller. A reply that is
    /// owed is read after they are sent where that is safe, so that it costs no time.
    pub(crate) fn send_lines<'a>(
        &mut self,
        lines: impl Iterator<Item = &'a str>,
    ) -> Result<(), Error> {
        let owed = if self.can_overlap() { self.owed.take() } else { None };
        self.settle()?;
        // Between a question for an address and its transfer comes nothing.
        self.stock = None;
        if owed.is_none() && self.control.has_unread() {
            return Err(out_of_step("a reply that nobody asked for"));
        }
        let mut segment = Vec::new();
        for line in lines {
            log::trace!(target: "suppaftp", "CC OUT: {line}");
            let text = encoding().encode(line);
            segment.extend_from_slice(&text.map_err(Error::Broken)?);
            segment.extend_from_slice(b"\r\n");
        }
        let sent = self.control.send(&segment);
        sent.map_err(|error| Error::from_io(error, "room for a command"))?;
        owed.map_or(Ok(()), |owed| self.read_owed(owed))
    }

    /// One reply that no command of the client's asks for.
    pub(crate) fn read_reply(&mut self) -> Result<Reply, Error> {
        let mut body = Vec::new();
        let mut block = [0; 512];
        loop {
            let begin = body.len();
            loop {
                let count = self.control.read_line_part(&mut block);
                let count = count.map_err(|error| Error::from_io(error, "a reply"))?;
                if count == 0 {
                    return Err(Error::Broken(std::io::ErrorKind::UnexpectedEof.into()));
                }
                body.extend_from_slice(block.get(..count).unwrap_or_default());
                if body.len() > REPLY_LIMIT {
                    return Err(out_of_step("a reply without end"));
                }
                if body.ends_with(b"\n") {
                    break;
                }
            }
            let line = body.get(begin..).unwrap_or_default();
            log::trace!(target: "suppaftp", "CC IN: {line:?}");
            // RFC 959 §4.2: three digits and a blank end a reply; some servers leave the text out.
            let digits = line.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let after = line.get(3).copied();
            if digits == 3 && after != Some(b'-') {
                return Ok(Reply::parse(body));
            }
            if begin == 0 && digits != 3 {
                return Err(out_of_step("a reply without a code"));
            }
        }
    }

    /// Has the server closed the idle connection, or said something that nobody asked for? Looks
    /// without waiting and without a word on the wire.
    pub(crate) fn is_stale(&self) -> bool {
        let is_outdated = self.speaks_tls13() && !self.server.may(Habit::Tls13);
        is_outdated || (!self.owes() && self.control.has_unread())
    }

    /// Ends the conversation so that nothing waits for it any more.
    pub(crate) fn shut(&self) {
        // Fails only when it is shut already.
        let _ = self.control.socket().shutdown(Shutdown::Both);
    }

    /// One command, one reply, whatever it says; but not the 1xx or 226 of a transfer, which belong
    /// to something else.
    pub(crate) fn command(&mut self, line: &str) -> Result<Reply, Error> {
        let reply = self.exchange(line)?;
        match reply.code {
            100..200 | 226 => Err(out_of_step("a reply to another command")),
            _ => Ok(reply),
        }
    }

    fn exchange(&mut self, line: &str) -> Result<Reply, Error> {
        self.settle()?;
        self.stock = None;
        if self.control.has_unread() {
            // Whatever it is, it would be taken for the reply to this command.
            return Err(out_of_step("a reply that nobody asked for"));
        }
        // No status is expected, so every reply comes back as “unexpected”, with its true code:
        // suppaftp knows only some codes.
        match self.client.custom_command(line, &[]) {
            Ok(response) => Ok(Reply::parse(response.body)),
            Err(FtpError::UnexpectedResponse(response)) => {
                let reply = Reply::parse(response.body);
                if reply.code == 0 { Err(Error::from_reply(reply)) } else { Ok(reply) }
            }
            Err(error) => Err(Error::from_suppaftp(error)),
        }
    }

    /// One command that must be answered by 2xx. A 3xx asks for more of a command that was not given.
    pub(crate) fn expect(&mut self, line: &str) -> Result<Reply, Error> {
        let reply = self.command(line)?;
        match reply.code {
            200..300 => Ok(reply),
            300..400 => Err(out_of_step("a reply to another command")),
            _ => Err(Error::from_reply(reply)),
        }
    }

    fn expect_path(&mut self, verb: &str, path: &RemotePath) -> Result<Reply, Error> {
        self.expect(&format!("{verb} {}", path.to_wire()))
    }

    /// PWD. A server that cannot tell has its root as the working directory.
    pub(crate) fn working_directory(&mut self) -> Result<RemotePath, Error> {
        let reply = self.command("PWD")?;
        let path = quoted_path(&reply).filter(|_| reply.is_success());
        Ok(path.and_then(|path| RemotePath::parse(&path).ok()).unwrap_or_else(RemotePath::root))
    }

    /// CWD.
    pub(crate) fn enter(&mut self, directory: &RemotePath) -> Result<(), Error> {
        self.expect_path("CWD", directory).map(drop)
    }

    pub(crate) fn make_directory(&mut self, path: &RemotePath) -> Result<(), Error> {
        self.expect_path("MKD", path).map(drop)
    }

    pub(crate) fn remove_directory(&mut self, path: &RemotePath) -> Result<(), Error> {
        self.expect_path("RMD", path).map(drop)
    }

    pub(crate) fn remove_file(&mut self, path: &RemotePath) -> Result<(), Error> {
        self.expect_path("DELE", path).map(drop)
    }

    /// RNFR and RNTO.
    pub(crate) fn rename(&mut self, from: &RemotePath, to: &RemotePath) -> Result<(), Error> {
        let reply = self.command(&format!("RNFR {}", from.to_wire()))?;
        if reply.code != 350 {
            return Err(Error::from_reply(reply));
        }
        self.rename_to(to)
    }

    /// RNTO, behind an RNFR that was answered by 350.
    pub(crate) fn rename_to(&mut self, to: &RemotePath) -> Result<(), Error> {
        self.expect_path("RNTO", to).map(drop)
    }

    /// Says good-bye, so that the server frees the slot at once instead of at its time-out.
    pub(crate) fn quit(mut self) {
        // 1 s: it is a courtesy, the connection is closed either way.
        let _ = self.control.socket().set_read_timeout(Some(Duration::from_secs(1)));
        let _ = self.command("QUIT");
    }
}

/// What is still to be read of a transfer that nobody waits for.
struct Owed {
    /// The server has nothing more to do for it but to say so.
    is_all_read: bool,
    /// What travelled with it.
    next: Option<Ask>,
    /// How many replies follow that of the transfer.
    behind: usize,
}

pub(crate) fn out_of_step(what: &'static str) -> Error {
    Error::Broken(std::io::Error::new(std::io::ErrorKind::InvalidData, what))
}
