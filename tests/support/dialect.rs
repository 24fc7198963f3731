//! How a server behaves: every switch that real servers set differently.
//!
//! A preset is a server that was seen; the fields are open, so that a test can
//! turn one switch: `Dialect { rest: Rest::Ignored, ..Dialect::vsftpd() }`.
//! Decides only, moves no bytes.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::storage::Cause;

#[derive(Clone, Debug)]
pub struct Dialect {
    /// The lines of the 220.
    pub greeting: Vec<&'static str>,
    /// The text of the 215.
    pub system: &'static str,
    pub voice: Voice,
    /// What verbs that do not exist here are answered: 500 or 502.
    pub unsupported: u16,

    pub login: Login,
    pub limit: Limit,
    /// 421 and the end after so long without a command.
    pub idle: Option<Duration>,
    /// Every change is refused with 550.
    pub read_only: bool,

    pub feat: Feat,
    /// Lines FEAT shows besides those of the switches below.
    pub more_features: &'static [&'static str],
    /// UTF8 is in FEAT, and `OPTS UTF8 ON` is answered 200 instead of 501.
    pub utf8: bool,
    /// Command lines that are not UTF-8 are refused (pyftpdlib:
    /// `501 Can't decode command.`).
    pub utf8_only: bool,
    /// IAC is taken out of command lines (RFC 959 section 4.1.3, RFC 854).
    pub telnet: bool,

    pub epsv: bool,
    pub pasv: Pasv,
    /// 226 comes when the client has closed the data connection too (ProFTPD 1.3.8).
    pub lingers: bool,
    /// What happens to a download whose client has closed its end at the beginning.
    pub early_end: EarlyEnd,

    pub mlsd: Mlsd,
    /// The facts that are on by default.
    pub facts: &'static [Fact],
    /// `type=cdir` and `type=pdir` come in MLSD (ProFTPD, Pure-FTPd).
    pub mlsd_dots: bool,
    pub mlsd_links: MlsdLinks,
    /// The blank that RFC 3659 section 7.2 puts before the facts of MLST.
    pub mlst_blank: bool,

    pub list: ListStyle,
    pub list_options: ListOptions,
    /// False: LIST shows the current directory whatever it is asked for (FRITZ!Box).
    pub list_argument: bool,
    /// Dot files show without `-a`.
    pub list_hidden: bool,
    pub list_missing: ListMissing,
    pub list_dates: ListDates,
    /// Seconds east of UTC of the dates in LIST.
    pub list_zone: i32,
    /// Seconds the server's clock is ahead.
    pub clock_skew: i64,
    /// `*`, `?` and `[` in the argument of LIST and NLST are a pattern,
    /// unless a file of that very name exists.
    pub glob: bool,

    pub size: bool,
    pub mdtm: bool,
    /// `MDTM YYYYMMDDHHMMSS path` sets the time (vsftpd with mdtm_write).
    pub mdtm_sets: bool,
    pub mfmt: bool,
    pub mff: bool,
    pub site_chmod: bool,
    pub site_utime: bool,
    pub site_symlink: bool,
    /// SITE CPFR and CPTO (ProFTPD mod_copy).
    pub site_copy: bool,

    pub rest: Rest,
    pub appe: bool,
    pub rename_over: RenameOver,
    /// Commands that came with a transfer are answered before it is over, and a question for
    /// another data connection ends it without a word (pyftpdlib).
    pub answers_at_once: bool,
    /// The reply to a complete upload: 226, or 250 as RFC 959 also allows.
    pub stored: u16,
    /// The reply to a MKD: 257, or 250.
    pub made: u16,
    /// The reply to a MKD of what exists: 550, or 521.
    pub made_before: u16,
}

/// Whose words a refusal uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Voice {
    Vsftpd,
    ProFtpd,
    PureFtpd,
    Pyftpdlib,
    Iis,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Login {
    /// Any name, any password.
    Anyone,
    /// The name alone is enough: 230 to USER.
    WithoutPassword,
    As {
        user: &'static str,
        password: &'static str,
    },
    /// 332 after the password, then ACCT.
    WithAccount {
        user: &'static str,
        password: &'static str,
        account: &'static str,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Limit {
    None,
    /// Open connections; one more is told this instead of 220, and closed.
    AtGreeting(usize, u16, &'static str),
    /// Logged-in sessions; one more is told this instead of 230. A 421 closes.
    AtLogin(usize, u16, &'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feat {
    Shown,
    /// 530 before the login.
    AfterLogin,
    /// 500: older than RFC 2389.
    Absent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pasv {
    Shown,
    /// The port is right, the address is not (a server behind NAT).
    Address(Ipv4Addr),
    Absent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mlsd {
    Works,
    Absent,
    /// In FEAT, but 500 when it is used.
    Lies,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact {
    Type,
    Size,
    Modify,
    Perm,
    Unique,
    UnixMode,
    UnixOwner,
    UnixGroup,
    UnixOwnerName,
    UnixGroupName,
    UnixUid,
    UnixGid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlsdLinks {
    /// `type=OS.unix=symlink` (ProFTPD).
    Symlink,
    /// `type=OS.unix=slink:/target` (ProFTPD with FactsOptions UseSlink).
    Slink,
    /// Shown as what they lead to; left out when they lead nowhere.
    Followed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListStyle {
    Unix,
    Dos,
    /// DOS with years of four digits (an IIS site option).
    DosLongYear,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListOptions {
    /// `-a` and the like are options.
    Honoured,
    /// `-a` is a file name like any other.
    Name,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListMissing {
    Refused(u16),
    /// 150, nothing, 226: what vsftpd does.
    Empty,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListDates {
    /// The time of the last half year, the year of all else, like ls.
    ByAge,
    /// Never a time.
    Year,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    Works,
    /// 350, and then from the start.
    Ignored,
    Absent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EarlyEnd {
    /// Nobody looks.
    Unseen,
    /// It is counted, see `Server::early_ends`.
    Counted,
    /// It is counted, and taken for the client's wish to hear no more: 426.
    Aborts,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameOver {
    Allowed,
    /// 553 in FileZilla Server, 550 in IIS.
    Refused(u16),
    /// 250, and nothing is done (Swiftp).
    Pretended,
}

impl Default for Dialect {
    /// A server that knows everything.
    fn default() -> Dialect {
        Dialect {
            more_features: &["TVFS"],
            mfmt: true,
            mff: true,
            mdtm_sets: false,
            site_symlink: true,
            list_hidden: true,
            mlsd: Mlsd::Works,
            facts: PROFTPD_FACTS,
            ..Dialect::proftpd()
        }
    }
}

impl Dialect {
    /// vsftpd 3.0.3 with `local_enable`, `write_enable`, `chmod_enable` and
    /// `mdtm_write` (the default).
    pub fn vsftpd() -> Dialect {
        Dialect {
            greeting: vec!["(vsFTPd 3.0.3)"],
            system: "UNIX Type: L8",
            voice: Voice::Vsftpd,
            unsupported: 500,
            login: Login::Anyone,
            limit: Limit::None,
            idle: None,
            read_only: false,
            feat: Feat::Shown,
            more_features: &["TVFS"],
            utf8: true,
            utf8_only: false,
            telnet: false,
            epsv: true,
            pasv: Pasv::Shown,
            lingers: false,
            early_end: EarlyEnd::Unseen,
            mlsd: Mlsd::Absent,
            facts: &[],
            mlsd_dots: false,
            mlsd_links: MlsdLinks::Followed,
            mlst_blank: true,
            list: ListStyle::Unix,
            list_options: ListOptions::Honoured,
            list_argument: true,
            list_hidden: false,
            list_missing: ListMissing::Empty,
            list_dates: ListDates::ByAge,
            list_zone: 0,
            clock_skew: 0,
            glob: true,
            size: true,
            mdtm: true,
            mdtm_sets: true,
            mfmt: false,
            mff: false,
            site_chmod: true,
            site_utime: false,
            site_symlink: false,
            site_copy: false,
            rest: Rest::Works,
            appe: true,
            rename_over: RenameOver::Allowed,
            answers_at_once: false,
            stored: 226,
            made: 257,
            made_before: 550,
        }
    }

    /// ProFTPD 1.3.8 with mod_facts, mod_site_misc and mod_copy.
    pub fn proftpd() -> Dialect {
        Dialect {
            greeting: vec!["ProFTPD Server (Debian) [127.0.0.1]"],
            voice: Voice::ProFtpd,
            more_features: &["CLNT", "LANG en-US*", "SITE UTIME", "TVFS"],
            telnet: true,
            mlsd: Mlsd::Works,
            facts: PROFTPD_FACTS,
            mlsd_dots: true,
            mlsd_links: MlsdLinks::Symlink,
            list_missing: ListMissing::Refused(450),
            mdtm_sets: false,
            mfmt: true,
            mff: true,
            site_utime: true,
            site_symlink: true,
            site_copy: true,
            ..Dialect::vsftpd()
        }
    }

    /// Pure-FTPd 1.0.50 as it comes.
    pub fn pureftpd() -> Dialect {
        Dialect {
            greeting: vec![
                "---------- Welcome to Pure-FTPd [privsep] ----------",
                "You are user number 1 of 50 allowed.",
                "This is a private system - No anonymous login",
                "You will be disconnected after 15 minutes of inactivity.",
            ],
            voice: Voice::PureFtpd,
            more_features: &["ESTA", "TVFS"],
            telnet: true,
            mlsd: Mlsd::Works,
            facts: &[
                Fact::Type,
                Fact::Size,
                Fact::Modify,
                Fact::UnixMode,
                Fact::UnixUid,
                Fact::UnixGid,
                Fact::Unique,
            ],
            mlsd_dots: true,
            mdtm_sets: false,
            mfmt: true,
            site_utime: true,
            ..Dialect::vsftpd()
        }
    }

    /// pyftpdlib 1.5.
    pub fn pyftpdlib() -> Dialect {
        Dialect {
            greeting: vec!["pyftpdlib 1.5.7 ready."],
            voice: Voice::Pyftpdlib,
            answers_at_once: true,
            utf8_only: true,
            mlsd: Mlsd::Works,
            facts: &[Fact::Type, Fact::Perm, Fact::Size, Fact::Modify, Fact::Unique],
            list_options: ListOptions::Honoured,
            list_hidden: true,
            list_missing: ListMissing::Refused(550),
            mdtm_sets: false,
            mfmt: true,
            glob: false,
            ..Dialect::vsftpd()
        }
    }

    /// Microsoft FTP Service of IIS 7 and later, DOS listing.
    pub fn iis() -> Dialect {
        Dialect {
            greeting: vec!["Microsoft FTP Service"],
            system: "Windows_NT",
            voice: Voice::Iis,
            more_features: &["LANG EN*", "HOST"],
            list: ListStyle::Dos,
            list_options: ListOptions::Honoured,
            list_hidden: true,
            list_missing: ListMissing::Refused(550),
            mdtm_sets: false,
            site_chmod: false,
            rename_over: RenameOver::Refused(550),
            ..Dialect::vsftpd()
        }
    }

    /// RFC 959 and nothing else, as on cameras, printers and old machines.
    pub fn minimal() -> Dialect {
        Dialect {
            greeting: vec!["FTP ready"],
            unsupported: 502,
            feat: Feat::Absent,
            more_features: &[],
            utf8: false,
            epsv: false,
            list_options: ListOptions::Name,
            list_missing: ListMissing::Refused(550),
            list_hidden: true,
            glob: false,
            size: false,
            mdtm: false,
            mdtm_sets: false,
            site_chmod: false,
            rest: Rest::Absent,
            appe: false,
            ..Dialect::vsftpd()
        }
    }

    /// The lines of FEAT between the 211s, without their leading blank.
    pub fn features(&self) -> Vec<String> {
        let mut lines: Vec<String> =
            self.more_features.iter().map(|line| line.to_string()).collect();
        let switches = [
            (self.epsv, "EPRT"),
            (self.epsv, "EPSV"),
            (self.mdtm, "MDTM"),
            (self.mff, "MFF modify;UNIX.mode;"),
            (self.mfmt, "MFMT"),
            (self.pasv != Pasv::Absent, "PASV"),
            (self.rest != Rest::Absent, "REST STREAM"),
            (self.site_copy, "SITE COPY"),
            (self.site_symlink, "SITE SYMLINK"),
            (self.size, "SIZE"),
            (self.utf8, "UTF8"),
        ];
        lines.extend(switches.iter().filter(|(on, _)| *on).map(|(_, line)| line.to_string()));
        if self.mlsd != Mlsd::Absent {
            let facts: String =
                self.facts.iter().map(|fact| format!("{}*;", fact.name())).collect();
            lines.push(format!("MLST {facts}"));
        }
        lines.sort();
        lines
    }

    /// How this server says no to `verb` on `name`.
    pub fn refusal(&self, verb: &str, cause: Cause, name: &[u8]) -> (u16, Vec<u8>) {
        let code = match (verb, cause, self.voice) {
            ("MKD", Cause::Exists, _) => self.made_before,
            ("STOR" | "APPE", _, Voice::Vsftpd | Voice::PureFtpd) => 553,
            _ => 550,
        };
        let name = String::from_utf8_lossy(name);
        let reason = reason(cause);
        let text = match self.voice {
            Voice::Vsftpd => match verb {
                "RETR" => "Failed to open file.".into(),
                "STOR" | "APPE" => "Could not create file.".into(),
                "CWD" | "CDUP" => "Failed to change directory.".into(),
                "DELE" => "Delete operation failed.".into(),
                "RMD" => "Remove directory operation failed.".into(),
                "MKD" => "Create directory operation failed.".into(),
                "RNFR" => "RNFR command failed.".into(),
                "RNTO" => "Rename failed.".into(),
                "SIZE" => "Could not get file size.".into(),
                "MDTM" => "Could not get file modification time.".into(),
                "SITE" => "SITE CHMOD command failed.".into(),
                _ => "Operation failed.".into(),
            },
            Voice::ProFtpd => format!("{name}: {reason}"),
            Voice::PureFtpd => match verb {
                "RETR" | "STOR" | "APPE" => format!("Can't open {name}: {reason}"),
                "CWD" | "CDUP" => format!("Can't change directory to {name}: {reason}"),
                "DELE" => format!("Could not delete {name}: {reason}"),
                "RMD" => format!("Can't remove directory: {reason}"),
                "MKD" => format!("Can't create directory: {reason}"),
                "RNFR" => "Sorry, but that file doesn't exist".into(),
                _ => format!("Can't do that to {name}: {reason}"),
            },
            Voice::Pyftpdlib => format!("{reason}."),
            Voice::Iis => match cause {
                Cause::Missing => "The system cannot find the file specified. ".into(),
                Cause::Exists => "Cannot create a file when that file already exists. ".into(),
                Cause::NotEmpty => "The directory is not empty. ".into(),
                _ => "Access is denied. ".into(),
            },
        };
        (code, text.into_bytes())
    }
}

impl Fact {
    pub fn name(self) -> &'static str {
        match self {
            Fact::Type => "type",
            Fact::Size => "size",
            Fact::Modify => "modify",
            Fact::Perm => "perm",
            Fact::Unique => "unique",
            Fact::UnixMode => "UNIX.mode",
            Fact::UnixOwner => "UNIX.owner",
            Fact::UnixGroup => "UNIX.group",
            Fact::UnixOwnerName => "UNIX.ownername",
            Fact::UnixGroupName => "UNIX.groupname",
            Fact::UnixUid => "UNIX.uid",
            Fact::UnixGid => "UNIX.gid",
        }
    }
}

/// In the order in which ProFTPD 1.3.8 sends them.
const PROFTPD_FACTS: &[Fact] = &[
    Fact::Modify,
    Fact::Perm,
    Fact::Size,
    Fact::Type,
    Fact::Unique,
    Fact::UnixGroup,
    Fact::UnixGroupName,
    Fact::UnixMode,
    Fact::UnixOwner,
    Fact::UnixOwnerName,
];

/// strerror.
fn reason(cause: Cause) -> &'static str {
    match cause {
        Cause::Missing => "No such file or directory",
        Cause::Exists => "File exists",
        Cause::NotEmpty => "Directory not empty",
        Cause::NotDirectory => "Not a directory",
        Cause::IsDirectory => "Is a directory",
        Cause::Denied => "Permission denied",
    }
}
