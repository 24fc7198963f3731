//! Errors in file-system words.
//!
//! A refusal of the server is ambiguous (550 means a dozen things): what it means is decided by
//! the operation and a look at the directory, never by the English text. What is left over is
//! sorted here by its code.

use std::fmt;
use std::io;

use crate::ftp;

/// Why a file-system operation failed.
#[derive(Debug)]
pub enum Error {
    /// Proven absent: by a complete listing.
    NotFound,
    Exists,
    NotADirectory,
    IsADirectory,
    NotEmpty,
    /// The server does not let this user.
    Denied(String),
    /// The mount is read-only.
    ReadOnly,
    /// The server's disk is full (452).
    NoSpace(String),
    /// The user's quota on the server is used up (552).
    Quota(String),
    /// The file on the server is no longer the one that was opened.
    Stale(String),
    TimedOut(String),
    /// There is no connection to the server just now, and none could be made.
    Unreachable(String),
    /// The transfer failed.
    Io(String),
    /// The name holds bytes that FTP cannot carry.
    BadName(String),
    NameTooLong,
    /// Neither the server nor ftpfs can do this.
    Unsupported,
    /// The arguments make no sense together.
    Invalid,
    /// Only another user may do this.
    NotOwner,
    /// No extended attribute of this name.
    NoAttribute,
    /// The handle is not open for this.
    BadHandle,
    /// The local disk failed.
    Local(io::Error),
}

/// The result of a file-system operation.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// May the same work another time? Not what was refused for a reason, and not after a
    /// time-out, as the caller has waited long enough.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::Io(_) | Self::Unreachable(_))
    }
}

impl From<ftp::Error> for Error {
    fn from(error: ftp::Error) -> Self {
        let text = error.to_string();
        match error {
            ftp::Error::Refused(reply) => match reply.code {
                452 => Self::NoSpace(text),
                552 => Self::Quota(text),
                // A name that the server cannot take: pyftpdlib 2 says “501 Can't decode
                // command.” to what is not UTF-8.
                501 => Self::BadName(text),
                530 | 532 | 534 | 550 | 553 => Self::Denied(text),
                _ => Self::Io(text),
            },
            ftp::Error::Login(_) | ftp::Error::NeedAccount(_) => Self::Denied(text),
            ftp::Error::TimedOut(_) => Self::TimedOut(text),
            ftp::Error::BadName(ftp::BadName::TooLong) => Self::NameTooLong,
            ftp::Error::BadName(_) => Self::BadName(text),
            ftp::Error::Closing(_)
            | ftp::Error::Broken(_)
            | ftp::Error::Tls(_)
            | ftp::Error::DataTls(_)
            | ftp::Error::Resolve { .. }
            | ftp::Error::Connect { .. }
            | ftp::Error::TooMany(_)
            | ftp::Error::Down(_) => Self::Unreachable(text),
            ftp::Error::NoDirectory(_)
            | ftp::Error::ListingTooLarge
            | ftp::Error::WrongSize { .. }
            | ftp::Error::Cancelled => Self::Io(text),
        }
    }
}

impl From<ftp::BadName> for Error {
    fn from(bad: ftp::BadName) -> Self {
        ftp::Error::BadName(bad).into()
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Local(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("not found"),
            Self::Exists => f.write_str("exists already"),
            Self::NotADirectory => f.write_str("not a directory"),
            Self::IsADirectory => f.write_str("is a directory"),
            Self::NotEmpty => f.write_str("directory not empty"),
            Self::ReadOnly => f.write_str("mounted read-only"),
            Self::NameTooLong => f.write_str("name too long"),
            Self::Unsupported => f.write_str("the server cannot do this"),
            Self::Invalid => f.write_str("invalid argument"),
            Self::NotOwner => f.write_str("not the owner"),
            Self::NoAttribute => f.write_str("no such attribute"),
            Self::BadHandle => f.write_str("handle not open for this"),
            Self::Local(error) => write!(f, "local disk: {error}"),
            Self::Denied(text)
            | Self::NoSpace(text)
            | Self::Quota(text)
            | Self::Stale(text)
            | Self::TimedOut(text)
            | Self::Unreachable(text)
            | Self::Io(text)
            | Self::BadName(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Error {}
