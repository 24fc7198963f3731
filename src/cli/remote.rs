//! What is mounted: the first argument, `ftp://user:password@host:port/dir` (or `ftps`, `ftpes`), or
//! the same without a scheme.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use percent_encoding::percent_decode;

use super::exit::Failure;
use crate::ftp::{Secret, TlsMode};

/// The port of the control connection (RFC 959 §8).
const FTP_PORT: u16 = 21;

/// The same where TLS comes first (IANA's `ftps`).
const IMPLICIT_PORT: u16 = 990;

/// The parts of a source; what was not said is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remote {
    /// What the scheme says of TLS: `ftps` implicit, `ftpes` explicit, `ftp` nothing.
    pub(crate) tls: Option<TlsMode>,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<Secret>,
    pub(crate) host: String,
    pub(crate) port: u16,
    /// As [`crate::ftp::Target::directory`] has it.
    pub(crate) directory: Vec<u8>,
}

impl Remote {
    /// Parses `ftp://[user[:password]@]host[:port][/dir]`, percent-decoded (RFC 1738 §3.2), or
    /// `[user[:password]@]host[:port][/dir]` and `host:/dir`, taken literally.
    pub(crate) fn parse(source: &OsStr) -> Result<Self, Failure> {
        let bytes = source.as_bytes();
        let scheme = bytes.windows(3).position(|window| window == b"://");
        let (rest, is_url, tls) = match scheme.map(|at| (bytes.get(..at), bytes.get(at + 3..))) {
            Some((Some(b"ftp"), Some(rest))) => (rest, true, None),
            Some((Some(b"ftps"), Some(rest))) => (rest, true, Some(TlsMode::Implicit)),
            Some((Some(b"ftpes"), Some(rest))) => (rest, true, Some(TlsMode::Explicit)),
            // A `://` further on belongs to a directory or a password.
            Some((Some(word), _)) if word.iter().all(u8::is_ascii_alphanumeric) => {
                return Err(Failure::usage(format!(
                    "{}:// is not a scheme that ftpfs knows; write ftp://, ftps:// or ftpes://",
                    String::from_utf8_lossy(word)
                )));
            }
            _ => (bytes, false, None),
        };
        // RFC 1738: the first slash ends the authority, so one in a password is written %2F; the
        // last @ before it ends the password, so that an e-mail address serves as a user name.
        let slash = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
        let (authority, directory) = rest.split_at(slash);
        let (login, place) = match authority.iter().rposition(|byte| *byte == b'@') {
            Some(at) => (authority.get(..at), authority.get(at + 1..).unwrap_or_default()),
            None => (None, authority),
        };
        let decode =
            |text: &[u8]| if is_url { percent_decode(text).collect() } else { text.to_vec() };
        let (user, password) = match login.map(|login| split_once(login, b':')) {
            Some((user, password)) => (Some(decode(user)), password.map(&decode)),
            None => (None, None),
        };
        let (host, port) = split_host(place)?;
        let usual = if tls == Some(TlsMode::Implicit) { IMPLICIT_PORT } else { FTP_PORT };
        let directory = decode(directory.strip_prefix(b"/").unwrap_or(directory));
        Ok(Self {
            tls,
            user: user.filter(|user| !user.is_empty()).map(text).transpose()?,
            password: password.map(Secret::new),
            host,
            port: port.unwrap_or(usual),
            directory,
        })
    }
}

fn split_once(bytes: &[u8], separator: u8) -> (&[u8], Option<&[u8]>) {
    match bytes.iter().position(|byte| *byte == separator) {
        Some(at) => (bytes.get(..at).unwrap_or_default(), bytes.get(at + 1..)),
        None => (bytes, None),
    }
}

/// `host`, `host:port`, `host:` (before an absolute directory, as scp and NFS write it), `[v6]`,
/// `[v6]:port`, or a bare IPv6 address.
fn split_host(place: &[u8]) -> Result<(String, Option<u16>), Failure> {
    let place = text(place.to_vec())?;
    let (host, port) = if let Some(inner) = place.strip_prefix('[') {
        let Some((host, rest)) = inner.split_once(']') else {
            return Err(Failure::usage(format!("the ] after the address is missing in “{place}”")));
        };
        (host, rest.strip_prefix(':').unwrap_or(rest))
    } else if place.matches(':').count() > 1 {
        (place.as_str(), "")
    } else {
        place.split_once(':').unwrap_or((place.as_str(), ""))
    };
    if host.is_empty() || host.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(Failure::usage("no host is named; write [user@]host[:port][/dir]".to_owned()));
    }
    let port = match port {
        "" => None,
        digits => Some(digits.parse().ok().filter(|port| *port != 0).ok_or_else(|| {
            Failure::usage(format!("“{digits}” is not a port; it must be a number from 1 to 65535"))
        })?),
    };
    Ok((host.to_owned(), port))
}

fn text(bytes: Vec<u8>) -> Result<String, Failure> {
    String::from_utf8(bytes).map_err(|_| {
        Failure::usage("user and host must be UTF-8; only the directory may hold other bytes")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(source: &str) -> Remote {
        Remote::parse(OsStr::new(source)).unwrap()
    }

    fn shown(source: &str) -> String {
        let Remote { user, password, host, port, directory, .. } = parse(source);
        let password = password.map(|password| String::from_utf8(password.expose().to_vec()));
        format!(
            "{} {} {host} {port} {}",
            user.unwrap_or("-".into()),
            password.map_or("-".into(), Result::unwrap),
            String::from_utf8_lossy(&directory)
        )
    }

    #[test]
    fn all_forms() {
        assert_eq!(shown("nas"), "- - nas 21 ");
        assert_eq!(shown("bob@nas:2121/pub/new"), "bob - nas 2121 pub/new");
        assert_eq!(shown("nas:/pub"), "- - nas 21 pub");
        assert_eq!(shown("nas//pub"), "- - nas 21 /pub");
        assert_eq!(shown("ftp://nas"), "- - nas 21 ");
        assert_eq!(shown("ftp://bob:s%3Acr%2Fet@nas/a%20b"), "bob s:cr/et nas 21 a b");
        assert_eq!(shown("ftp://nas/%2Fetc"), "- - nas 21 /etc");
        assert_eq!(shown("me@home.org:pw@nas"), "me@home.org pw nas 21 ");
        assert_eq!(shown("bob:100%25@nas/50%25"), "bob 100%25 nas 21 50%25");
        assert_eq!(shown("ftp://[::1]:2121/x"), "- - ::1 2121 x");
        assert_eq!(shown("fe80::1%eth0/x"), "- - fe80::1%eth0 21 x");
        assert_eq!(shown("ftp://bob:@nas"), "bob  nas 21 ");
        assert_eq!(shown("ftps://nas"), "- - nas 990 ");
        assert_eq!(shown("ftpes://nas"), "- - nas 21 ");
        assert_eq!(parse("ftpes://nas").tls, Some(TlsMode::Explicit));
    }

    #[test]
    fn what_makes_no_sense_is_refused_without_showing_the_password() {
        for bad in [
            "",
            "ftp://",
            "ftp://bob:secret@",
            "nas:0",
            "nas:99999",
            "ftp://b:secret@h:x/",
            "http://nas",
            "[::1",
            "a b",
        ] {
            let failure = Remote::parse(OsStr::new(bad)).unwrap_err();
            assert!(!failure.message.contains("secret"), "{failure}");
        }
    }
}
