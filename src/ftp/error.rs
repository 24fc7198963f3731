//! What can go wrong with the server, and whether the session survives it.
//!
//! Owns no policy: what an error means to a program is decided in `vfs`.

use std::fmt;
use std::io;

use suppaftp::FtpError;

use super::path::BadName;

/// A server's answer: its three-digit code and everything it said (RFC 959 §4.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The code of the last line; 0 when the server sent none.
    pub code: u16,
    /// The whole reply as sent, codes and line ends included.
    pub body: Vec<u8>,
}

impl Reply {
    /// Takes a reply apart; the code is that of its last line, as servers disagree about the rest.
    pub(crate) fn parse(body: Vec<u8>) -> Self {
        let code = body
            .split(|byte| *byte == b'\n')
            .rev()
            .find(|line| line.iter().any(|byte| !byte.is_ascii_whitespace()))
            .and_then(|line| line.get(..3))
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| digits.parse().ok())
            .unwrap_or(0);
        Self { code, body }
    }

    /// 2xx: done.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.code)
    }

    /// 500, 501, 502, 504: the server does not know the command or this form of it.
    pub fn is_unknown_command(&self) -> bool {
        matches!(self.code, 500 | 501 | 502 | 504)
    }

    /// The words of the last line, readable and on one line.
    pub fn text(&self) -> String {
        let all = String::from_utf8_lossy(&self.body);
        let last = all.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        last.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
    }

    /// Does the server refuse because of the number of connections? The words are those of
    /// ProFTPD 1.3.8 (`530 Sorry, the maximum number of clients …`), vsftpd 3.0.3 (`421 There are
    /// too many connected users`, `421 There are too many connections from your internet
    /// address.`), Pure-FTPd 1.0.50 (`421 Too many connections (N) from this IP`, `421 N users
    /// (the maximum) are already logged in`), pyftpdlib 2 (`421 Too many connections. …`) and
    /// FileZilla Server (`421 Too many users are connected`).
    pub fn is_too_many(&self) -> bool {
        const WORDS: [&str; 6] =
            ["too many", "maximum", "already logged in", "limit", "max ", "connections"];
        let text = String::from_utf8_lossy(&self.body).to_lowercase();
        matches!(self.code, 421 | 530 | 450 | 500) && WORDS.iter().any(|word| text.contains(word))
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "“{}”", self.text())
    }
}

/// Why an exchange with the server failed.
#[derive(Debug)]
pub enum Error {
    /// The server said no; the session is in step and may be used again.
    Refused(Reply),
    /// 421 at any moment: the server is closing this session (RFC 959 §5.4).
    Closing(Reply),
    /// The connection broke, or what came over it cannot be followed.
    Broken(io::Error),
    /// Nothing moved for the time-out; the text says what was waited for.
    TimedOut(&'static str),
    /// The host name has no address.
    Resolve { host: String, cause: io::Error },
    /// No control connection could be opened.
    Connect { address: String, cause: io::Error },
    /// User or password were refused.
    Login(Reply),
    /// The server wants an account (332) and none was given.
    NeedAccount(Reply),
    /// TLS failed, or the server's certificate is not trusted; the text says what to do.
    Tls(String),
    /// TLS on a data connection failed; the session is out of step.
    DataTls(String),
    /// The server has all the connections it allows, and none of them is ours.
    TooMany(Reply),
    /// The directory to be mounted is not there.
    NoDirectory(Reply),
    /// The server failed a short while ago; it is not asked again before the pause is over.
    Down(String),
    /// The name cannot be sent to a server.
    BadName(BadName),
    /// What the server has after an upload that it confirmed is not what was sent.
    WrongSize { has: u64, wanted: u64 },
    /// The caller no longer wanted it.
    Cancelled,
    /// The listing passed the limits that keep memory bounded.
    ListingTooLarge,
}

impl Error {
    /// May the session be used again after this error?
    pub fn leaves_session_usable(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::BadName(_) | Self::WrongSize { .. })
    }

    /// Was the session lost, so that the same request may succeed on a fresh one?
    pub fn lost_session(&self) -> bool {
        matches!(self, Self::Broken(_) | Self::Closing(_) | Self::DataTls(_))
    }

    /// The reply, if it was a refusal of the request itself.
    pub fn refusal(&self) -> Option<&Reply> {
        match self {
            Self::Refused(reply) => Some(reply),
            _ => None,
        }
    }

    /// Sorts an error of a socket: a time-out of SO_RCVTIMEO shows as `WouldBlock`.
    pub(crate) fn from_io(error: io::Error, waiting_for: &'static str) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::TimedOut(waiting_for),
            _ => Self::Broken(error),
        }
    }

    /// Sorts a reply that was not the expected one.
    pub(crate) fn from_reply(reply: Reply) -> Self {
        if reply.code == 421 {
            Self::Closing(reply)
        } else if reply.code == 0 {
            Self::Broken(io::Error::new(io::ErrorKind::InvalidData, "a reply without a code"))
        } else {
            Self::Refused(reply)
        }
    }

    /// Sorts an error of suppaftp.
    pub(crate) fn from_suppaftp(error: FtpError) -> Self {
        match error {
            FtpError::ConnectionError(cause) => Self::from_io(cause, "a reply"),
            FtpError::SecureError(why) => Self::DataTls(why),
            FtpError::UnexpectedResponse(response) => Self::from_reply(Reply::parse(response.body)),
            other => Self::Broken(io::Error::new(io::ErrorKind::InvalidData, other.to_string())),
        }
    }
}

impl From<BadName> for Error {
    fn from(bad: BadName) -> Self {
        Self::BadName(bad)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(reply) => write!(f, "the server refused: {reply}"),
            Self::Closing(reply) => write!(f, "the server closes the connection: {reply}"),
            Self::Broken(cause) => write!(f, "the connection broke: {cause}"),
            Self::TimedOut(what) => write!(f, "timed out waiting for {what}"),
            Self::Resolve { host, cause } => write!(f, "cannot find the host {host}: {cause}"),
            Self::Connect { address, cause } => write!(f, "cannot connect to {address}: {cause}"),
            Self::Login(reply) => write!(f, "login refused: {reply}"),
            Self::NeedAccount(reply) => {
                write!(f, "the server asks for an account (netrc “account”): {reply}")
            }
            Self::DataTls(why) | Self::Tls(why) => f.write_str(why),
            Self::TooMany(reply) => write!(f, "the server has no connection left: {reply}"),
            Self::NoDirectory(reply) => write!(f, "no such directory on the server: {reply}"),
            Self::Down(cause) => write!(f, "the server is not reachable just now: {cause}"),
            Self::BadName(bad) => write!(f, "{bad}"),
            Self::WrongSize { has, wanted } => {
                write!(f, "the server has {has} bytes of what was sent, not {wanted}")
            }
            Self::Cancelled => f.write_str("it is no longer wanted"),
            Self::ListingTooLarge => write!(f, "the listing is larger than ftpfs accepts"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Broken(cause) | Self::Resolve { cause, .. } | Self::Connect { cause, .. } => {
                Some(cause)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_that_of_the_last_line() {
        let reply = Reply::parse(b"220-Welcome\r\n220 ready\r\n".to_vec());
        assert_eq!(reply.code, 220);
        assert_eq!(reply.text(), "220 ready");
        assert_eq!(Reply::parse(b"hello\r\n".to_vec()).code, 0);
        assert_eq!(Reply::parse(Vec::new()).code, 0);
        assert_eq!(Reply::parse(b"42".to_vec()).code, 0);
    }

    #[test]
    fn refusals_for_the_number_of_connections_are_recognised() {
        for text in [
            "421 There are too many connected users, please try later.",
            "421 There are too many connections from your internet address.",
            "530 Sorry, the maximum number of clients (3) from your host are already connected.",
            "421 Too many connections (3) from this IP",
            "421 3 users (the maximum) are already logged in, sorry",
        ] {
            assert!(Reply::parse(text.as_bytes().to_vec()).is_too_many(), "{text}");
        }
        for text in ["530 Login incorrect.", "530 Login authentication failed", "550 No such file"]
        {
            assert!(!Reply::parse(text.as_bytes().to_vec()).is_too_many(), "{text}");
        }
    }

    #[test]
    fn a_421_is_the_end_of_the_session_and_a_550_is_not() {
        let closing = Error::from_reply(Reply::parse(b"421 Timeout.\r\n".to_vec()));
        assert!(closing.lost_session() && !closing.leaves_session_usable());
        let refused = Error::from_reply(Reply::parse(b"550 No.\r\n".to_vec()));
        assert!(refused.leaves_session_usable() && !refused.lost_session());
    }
}
