//! Why the program ends: one message for people, one number for scripts.

use std::fmt;
use std::process::ExitCode;

/// The table of exit statuses, as `--help` and README show it.
pub(crate) const TABLE: &str = "\
Exit status:
  0  done
  1  something else went wrong
  2  wrong usage: an option, a value or a URL makes no sense
  3  cannot connect: the host is unknown, unreachable, or does not speak FTP
  4  login refused, or no password could be had
  5  the directory on the server is missing or forbidden
  6  the mount point is missing, occupied or not usable
  7  FUSE is missing, or not allowed to this user
  8  files are not on the server yet
  9  the mount is busy
  10 TLS failed, or the server's certificate is not trusted";

/// An exit status other than success; [`TABLE`] describes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Other = 1,
    Usage = 2,
    Connect = 3,
    Login = 4,
    Directory = 5,
    MountPoint = 6,
    Fuse = 7,
    Pending = 8,
    Busy = 9,
    Tls = 10,
}

impl Status {
    /// From the number that a daemon reports to the program that started it.
    pub(crate) fn from_number(number: u8) -> Self {
        const ALL: [Status; 9] = [
            Status::Usage,
            Status::Connect,
            Status::Login,
            Status::Directory,
            Status::MountPoint,
            Status::Fuse,
            Status::Pending,
            Status::Busy,
            Status::Tls,
        ];
        ALL.into_iter().find(|status| *status as u8 == number).unwrap_or(Self::Other)
    }
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(status as u8)
    }
}

/// What went wrong and what to do about it, on one line, without secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) status: Status,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(status: Status, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Status::Usage, message)
    }

    pub(crate) fn other(message: impl Into<String>) -> Self {
        Self::new(Status::Other, message)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_is_in_the_table_and_comes_back_from_its_number() {
        for number in 1..=10_u8 {
            assert!(TABLE.contains(&format!("\n  {number:<2} ")), "{number}");
            assert_eq!(Status::from_number(number) as u8, number);
        }
        assert_eq!(Status::from_number(77), Status::Other);
    }
}
