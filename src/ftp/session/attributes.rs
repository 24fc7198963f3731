//! What the server tells of one path, and what it may be asked to set.

use super::Session;
use crate::ftp::error::{Error, Reply};
use crate::ftp::listing::{Entry, Kind, Line, Timestamp, parse_mlsd};
use crate::ftp::path::{RemotePath, to_wire};
use crate::ftp::server::{Habit, Verdict};

/// What the server tells of one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// `None` from SIZE and MDTM, which do not tell.
    pub kind: Option<Kind>,
    pub size: Option<u64>,
    pub mtime: Option<Timestamp>,
}

impl Session {
    /// What the server says of one path now: MLST, else SIZE and MDTM.
    pub(crate) fn stat(&mut self, path: &RemotePath) -> Result<Stat, Error> {
        if self.server.verdict(Habit::Mlsd) == Verdict::Yes {
            let reply = self.expect_path("MLST", path)?;
            if let Some(entry) = mlst_entry(&reply) {
                return Ok(Stat { kind: Some(entry.kind), size: entry.size, mtime: entry.mtime });
            }
        }
        self.stat_by_size(path)
    }

    /// SIZE and MDTM.
    pub(crate) fn stat_by_size(&mut self, path: &RemotePath) -> Result<Stat, Error> {
        let size = self.size(path)?;
        let mtime = self.modified(path)?;
        Ok(Stat { kind: None, size, mtime })
    }

    /// The size, and the time if that costs nothing more: by one command.
    pub(crate) fn size_and_time(
        &mut self,
        path: &RemotePath,
    ) -> Result<(Option<u64>, Option<Timestamp>), Error> {
        if self.server.verdict(Habit::Mlsd) == Verdict::Yes {
            let stat = self.stat(path)?;
            return Ok((stat.size, stat.mtime));
        }
        Ok((self.size(path)?, None))
    }

    /// SIZE; `None` where the server does not know the command.
    pub(crate) fn size(&mut self, path: &RemotePath) -> Result<Option<u64>, Error> {
        let Some(reply) = self.ask(Habit::Size, "SIZE", path)? else { return Ok(None) };
        Ok(reply_argument(&reply).and_then(|text| std::str::from_utf8(text).ok()?.parse().ok()))
    }

    /// MDTM; `None` where the server does not know the command.
    pub(crate) fn modified(&mut self, path: &RemotePath) -> Result<Option<Timestamp>, Error> {
        let Some(reply) = self.ask(Habit::Mdtm, "MDTM", path)? else { return Ok(None) };
        Ok(reply_argument(&reply).and_then(Timestamp::parse_mdtm))
    }

    /// A question that not every server understands.
    fn ask(&mut self, habit: Habit, verb: &str, path: &RemotePath) -> Result<Option<Reply>, Error> {
        if !self.server.may(habit) {
            return Ok(None);
        }
        match self.expect_path(verb, path) {
            Ok(reply) => Ok(Some(reply)),
            Err(Error::Refused(reply)) if reply.is_unknown_command() => {
                self.server.learn(habit, Verdict::No);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Sets the time of last change; false where the server has no way to. Tried in turn: MFMT
    /// (draft-somers-ftp-mfxx), MDTM with two arguments (vsftpd 3.0.3 with mdtm_write, Serv-U,
    /// IIS), and the two forms of SITE UTIME (ProFTPD's mod_site_misc; Pure-FTPd).
    pub(crate) fn set_modified(&mut self, path: &RemotePath, seconds: i64) -> Result<bool, Error> {
        let time = Timestamp::format_mdtm(seconds);
        let wire = path.to_wire();
        let ways = [
            (Habit::Mfmt, format!("MFMT {time} {wire}")),
            (Habit::MdtmSet, format!("MDTM {time} {wire}")),
            (Habit::SiteUtime, format!("SITE UTIME {wire} {time} {time} {time} UTC")),
            (Habit::SiteUtime, format!("SITE UTIME {time} {wire}")),
        ];
        for (habit, line) in ways {
            if !self.server.may(habit) {
                continue;
            }
            let known = self.server.verdict(habit) == Verdict::Yes;
            let reply = self.command(&line)?;
            match reply.code {
                200..300 => {
                    self.server.learn(habit, Verdict::Yes);
                    return Ok(true);
                }
                421 => return Err(Error::from_reply(reply)),
                // Known to work elsewhere: it is this path that has no settable time (vsftpd
                // refuses directories).
                _ if known => return Ok(false),
                _ => {}
            }
        }
        Ok(false)
    }

    /// Sets the permission bits; false where the server has no way to.
    pub(crate) fn set_mode(&mut self, path: &RemotePath, mode: u16) -> Result<bool, Error> {
        if !self.server.may(Habit::SiteChmod) {
            return Ok(false);
        }
        let reply = self.command(&format!("SITE CHMOD {mode:03o} {}", path.to_wire()))?;
        if reply.is_success() {
            self.server.learn(Habit::SiteChmod, Verdict::Yes);
            return Ok(true);
        }
        if reply.is_unknown_command() && self.server.verdict(Habit::SiteChmod) == Verdict::Unknown {
            self.server.learn(Habit::SiteChmod, Verdict::No);
            return Ok(false);
        }
        Err(Error::from_reply(reply))
    }

    /// Makes a symbolic link; false where the server has no way to. The command takes two words,
    /// so that neither may contain a blank.
    pub(crate) fn make_symlink(&mut self, target: &[u8], path: &RemotePath) -> Result<bool, Error> {
        let blank = |bytes: &[u8]| bytes.iter().any(u8::is_ascii_whitespace);
        if !self.server.may(Habit::SiteSymlink) || blank(target) || blank(path.as_bytes()) {
            return Ok(false);
        }
        let line = format!("SITE SYMLINK {} {}", to_wire(target), path.to_wire());
        let reply = self.command(&line)?;
        if reply.is_success() {
            self.server.learn(Habit::SiteSymlink, Verdict::Yes);
            return Ok(true);
        }
        if reply.is_unknown_command() {
            self.server.learn(Habit::SiteSymlink, Verdict::No);
            return Ok(false);
        }
        Err(Error::from_reply(reply))
    }
}

/// The entry in an MLST reply: its second line, a blank before the facts, the path after them.
pub(crate) fn mlst_entry(reply: &Reply) -> Option<Entry> {
    let line = reply.body.split(|byte| *byte == b'\n').nth(1)?;
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let line = line.strip_prefix(b" ").unwrap_or(line);
    let facts = line.split(|byte| *byte == b' ').next()?;
    // The name may be a path, relative or absolute; only the facts are wanted.
    match parse_mlsd(&[facts, b" x"].concat()) {
        Line::Entry(entry) => Some(entry),
        // The directory itself comes as type=cdir from some servers.
        Line::Ignored | Line::Odd => None,
    }
}

/// The word after the code, as in `213 1048576`.
pub(crate) fn reply_argument(reply: &Reply) -> Option<&[u8]> {
    reply.body.get(4..)?.split(u8::is_ascii_whitespace).find(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_line_of_mlst_is_the_entry() {
        let text = b"250-Start\r\n type=file;size=7;modify=20260102030405; /a b/c\r\n250 End\r\n";
        let entry = mlst_entry(&Reply::parse(text.to_vec())).unwrap();
        assert_eq!((entry.kind, entry.size), (Kind::File, Some(7)));
        assert!(mlst_entry(&Reply::parse(b"250 nothing\r\n".to_vec())).is_none());
    }

    #[test]
    fn the_argument_of_a_reply() {
        let argument =
            |text: &[u8]| reply_argument(&Reply::parse(text.to_vec())).map(<[u8]>::to_vec);
        assert_eq!(argument(b"213 1048576\r\n"), Some(b"1048576".to_vec()));
        assert_eq!(argument(b"213\r\n"), None);
        assert_eq!(argument(b""), None);
    }
}
