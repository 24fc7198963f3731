//! Paths on the server, as bytes.
//!
//! Pure. A path that exists here is safe to send: it holds no byte that ends a command line.

use std::fmt;
use std::io;

/// The longest name that Linux, and any program on it, can take (NAME_MAX).
const NAME_MAX: usize = 255;

/// Why a name can be neither shown nor sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadName {
    /// Empty, `.` or `..`: these are not names of entries.
    Reserved,
    /// A slash: it would lead into another directory.
    Slash,
    /// NUL, CR or LF: it would end the command line (RFC 959 §5.3.1), or the C string.
    LineEnd,
    /// More than 255 bytes.
    TooLong,
}

impl fmt::Display for BadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reserved => "an empty name, “.” or “..” names no entry",
            Self::Slash => "a name cannot hold a slash",
            Self::LineEnd => "a name with a line break or NUL cannot be sent over FTP",
            Self::TooLong => "a name of more than 255 bytes is too long",
        })
    }
}

impl std::error::Error for BadName {}

/// Checks one component of a path.
pub fn check_name(name: &[u8]) -> Result<(), BadName> {
    if name.is_empty() || name == b"." || name == b".." {
        Err(BadName::Reserved)
    } else if name.contains(&b'/') {
        Err(BadName::Slash)
    } else if name.iter().any(|byte| matches!(byte, b'\0' | b'\r' | b'\n')) {
        Err(BadName::LineEnd)
    } else if name.len() > NAME_MAX {
        Err(BadName::TooLong)
    } else {
        Ok(())
    }
}

/// An absolute path on the server, without a slash at the end except for the root.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RemotePath {
    /// Begins with a slash; each component passed [`check_name`].
    bytes: Vec<u8>,
}

impl RemotePath {
    /// `/`.
    pub fn root() -> Self {
        Self { bytes: b"/".to_vec() }
    }

    /// An absolute path, or one below the root; several slashes count as one.
    pub fn parse(path: &[u8]) -> Result<Self, BadName> {
        let mut parsed = Self::root();
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            parsed = parsed.join(name)?;
        }
        Ok(parsed)
    }

    /// The path of an entry of this directory.
    pub fn join(&self, name: &[u8]) -> Result<Self, BadName> {
        check_name(name)?;
        let mut bytes = Vec::with_capacity(self.bytes.len() + 1 + name.len());
        bytes.extend_from_slice(&self.bytes);
        if !self.is_root() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name);
        Ok(Self { bytes })
    }

    /// As sent, before telnet's doubling of 0xFF (RFC 854).
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Is it `/`?
    pub fn is_root(&self) -> bool {
        self.bytes.len() == 1
    }

    /// The names from the root down.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.split(|byte| *byte == b'/').filter(|name| !name.is_empty())
    }

    /// The directory of the entry; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        let cut = self.last_slash()?;
        Some(Self { bytes: self.bytes.get(..cut.max(1))?.to_vec() })
    }

    /// The name of the entry; `None` for the root.
    pub fn name(&self) -> Option<&[u8]> {
        self.bytes.get(self.last_slash()? + 1..)
    }

    /// The path as suppaftp wants it, see `ByteEncoding`.
    pub fn to_wire(&self) -> String {
        to_wire(&self.bytes)
    }

    /// May a server take part of the path, as an argument of LIST, for a pattern, an option, or a
    /// blank to cut away? Then the directory is entered first and LIST gets no argument. Seen:
    /// Pure-FTPd 1.0.50 and vsftpd 3.0.3 expand `[`, `*`, `?` and `{`; ProFTPD 1.3.8 cuts blanks
    /// at the end and takes `-` after a blank for an option.
    pub fn needs_cwd(&self) -> bool {
        const PATTERN: &[u8] = b"*?[]{}~\\";
        self.bytes.iter().any(|byte| PATTERN.contains(byte) || byte.is_ascii_whitespace())
    }

    fn last_slash(&self) -> Option<usize> {
        if self.is_root() {
            return None;
        }
        self.bytes.iter().rposition(|byte| *byte == b'/')
    }
}

impl fmt::Display for RemotePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in String::from_utf8_lossy(&self.bytes).chars() {
            if c.is_control() {
                write!(f, "{}", c.escape_default())?;
            } else {
                write!(f, "{c}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for RemotePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.bytes.escape_ascii())
    }
}

/// Bytes as text for suppaftp: byte b becomes the character U+00b. [`ByteEncoding`] undoes it, so
/// that every byte reaches the server as it is.
pub(crate) fn to_wire(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

/// The encoding that makes suppaftp carry bytes.
#[derive(Debug)]
pub(crate) struct ByteEncoding;

impl suppaftp::Encoding for ByteEncoding {
    fn decode(&self, bytes: &[u8]) -> String {
        to_wire(bytes)
    }

    fn encode(&self, text: &str) -> io::Result<Vec<u8>> {
        let byte = |c: char| {
            u8::try_from(u32::from(c))
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "not a byte"))
        };
        text.chars().map(byte).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use suppaftp::Encoding;

    use super::*;

    #[test]
    fn names_that_would_lead_astray_are_refused() {
        for (name, why) in [
            (&b""[..], BadName::Reserved),
            (b".", BadName::Reserved),
            (b"..", BadName::Reserved),
            (b"a/b", BadName::Slash),
            (b"a\rb", BadName::LineEnd),
            (b"a\nDELE x", BadName::LineEnd),
            (b"a\0b", BadName::LineEnd),
            (&[b'x'; 256], BadName::TooLong),
        ] {
            assert_eq!(check_name(name), Err(why), "{name:?}");
        }
        for name in [&b"..."[..], b" ", b"-a", b"\xff\xfe", &[b'x'; 255]] {
            assert_eq!(check_name(name), Ok(()), "{name:?}");
        }
    }

    #[test]
    fn paths_are_normal() {
        assert_eq!(RemotePath::parse(b"").unwrap(), RemotePath::root());
        assert_eq!(RemotePath::parse(b"//a//b/").unwrap().as_bytes(), b"/a/b");
        assert!(RemotePath::parse(b"/a/../b").is_err());
        let path = RemotePath::parse(b"/a/b").unwrap();
        assert_eq!(path.parent().unwrap().as_bytes(), b"/a");
        assert_eq!(path.parent().unwrap().parent().unwrap(), RemotePath::root());
        assert_eq!(RemotePath::root().parent(), None);
        assert_eq!(RemotePath::root().name(), None);
    }

    #[test]
    fn patterns_and_blanks_are_not_named_to_list() {
        for path in ["/a b", "/[x]", "/x*", "/~x", "/a/ ", "/a/-l b"] {
            assert!(RemotePath::parse(path.as_bytes()).unwrap().needs_cwd(), "{path}");
        }
        assert!(!RemotePath::parse("/a/b-c_d.é#%".as_bytes()).unwrap().needs_cwd());
    }

    #[test]
    fn control_characters_do_not_reach_the_log() {
        let path = RemotePath::parse(b"/a\x1b[31m").unwrap();
        assert_eq!(path.to_string(), "/a\\u{1b}[31m");
    }

    proptest! {
        #[test]
        fn the_last_name_and_the_rest_make_the_path(
            names in proptest::collection::vec("[^/\\r\\n\\x00]{1,20}", 1..6)
        ) {
            prop_assume!(names.iter().all(|name| check_name(name.as_bytes()).is_ok()));
            let mut path = RemotePath::root();
            for name in &names {
                let longer = path.join(name.as_bytes()).unwrap();
                prop_assert_eq!(longer.parent(), Some(path));
                prop_assert_eq!(longer.name(), Some(name.as_bytes()));
                path = longer;
            }
            prop_assert_eq!(RemotePath::parse(path.as_bytes()).unwrap(), path.clone());
            prop_assert_eq!(path.components().count(), names.len());
        }

        #[test]
        fn every_byte_survives_the_wire(bytes: Vec<u8>) {
            prop_assert_eq!(ByteEncoding.encode(&to_wire(&bytes)).unwrap(), bytes.clone());
            prop_assert_eq!(ByteEncoding.decode(&bytes), to_wire(&bytes));
        }
    }
}
