//! What is said about the session: FEAT, OPTS, TYPE, STAT, the directory.

use super::listings::Lines;
use super::{Done, quoted};
use crate::support::dialect::{Fact, Feat, Mlsd};
use crate::support::session::{Session, Stage};
use crate::support::storage::{Cause, Kind, Stat};

impl Session {
    pub(super) fn talk_verb(&mut self, verb: &str, argument: &[u8]) -> Done {
        let upper = String::from_utf8_lossy(argument).to_ascii_uppercase();
        match verb {
            "FEAT" => match self.dialect.feat {
                Feat::Absent => self.unsupported(),
                Feat::AfterLogin if self.stage != Stage::LoggedIn => {
                    self.reply(530, "Please login with USER and PASS.")
                }
                _ => {
                    let lines: Vec<Vec<u8>> = self
                        .dialect
                        .features()
                        .iter()
                        .map(|line| format!(" {line}").into_bytes())
                        .collect();
                    self.reply_lines(211, "Features:", &lines, "End")
                }
            },
            "OPTS" => self.options(&upper),
            "HELP" => self.reply_lines(
                214,
                "The following commands are recognized.",
                &[b" ABOR APPE CDUP CWD DELE LIST MKD NLST NOOP PASV PWD QUIT RETR RMD".into()],
                "Help OK.",
            ),
            "SYST" => self.reply(215, self.dialect.system),
            "NOOP" => self.reply(200, "NOOP ok."),
            "CLNT" => self.reply(200, "Noted."),
            "ALLO" => self.reply(202, "ALLO command ignored."),
            "STAT" if argument.is_empty() => self.reply_lines(
                211,
                "FTP server status:",
                &[b" Connected".into()],
                "End of status",
            ),
            "STAT" => self.status(argument),
            "TYPE" => match upper.as_str() {
                "A" | "A N" => {
                    self.ascii = true;
                    self.reply(200, "Switching to ASCII mode.")
                }
                "I" | "L 8" | "L8" => {
                    self.ascii = false;
                    self.reply(200, "Switching to Binary mode.")
                }
                _ => self.reply(504, "Unrecognised TYPE command."),
            },
            "STRU" if upper == "F" => self.reply(200, "Structure set to F."),
            "MODE" if upper == "S" => self.reply(200, "Mode set to S."),
            _ => self.reply(504, "Bad parameter."),
        }
    }

    fn options(&mut self, upper: &str) -> Done {
        if self.dialect.utf8 && matches!(upper, "UTF8 ON" | "UTF8") {
            return self.reply(200, "Always in UTF8 mode.");
        }
        let Some(wanted) = upper.strip_prefix("MLST").filter(|_| self.dialect.mlsd != Mlsd::Absent)
        else {
            return self.reply(501, "Option not understood.");
        };
        // RFC 3659 section 7.9: what is unknown is left out of the answer.
        let known = self.dialect.facts.iter().copied();
        let chosen: Vec<Fact> = known
            .filter(|fact| {
                wanted.trim().split(';').any(|name| name.eq_ignore_ascii_case(fact.name()))
            })
            .collect();
        let names: String = chosen.iter().map(|fact| format!("{};", fact.name())).collect();
        self.facts = Some(chosen);
        self.reply(200, format!("MLST OPTS {names}"))
    }

    /// A listing over the control connection.
    fn status(&mut self, argument: &[u8]) -> Done {
        match self.list_lines("LIST", argument) {
            Ok(Lines::Finite(bytes)) => {
                let lines: Vec<Vec<u8>> = bytes
                    .split(|byte| *byte == b'\n')
                    .filter(|line| !line.is_empty())
                    .map(|line| line.strip_suffix(b"\r").unwrap_or(line).to_vec())
                    .collect();
                self.reply_lines(213, "Status follows:", &lines, "End of status")
            }
            Ok(Lines::Endless(line)) => loop {
                self.reply_lines(213, "Status follows:", &vec![line.clone(); 100], "More")?;
            },
            Err(cause) => self.refuse("LIST", cause, argument),
        }
    }

    pub(super) fn directory_verb(&mut self, verb: &str, argument: &[u8]) -> Done {
        let wanted = match verb {
            "PWD" | "XPWD" => {
                let text = quoted(&self.directory);
                return self.reply(257, [&text, b" is the current directory".as_slice()].concat());
            }
            "CDUP" => self.path(b".."),
            _ => self.path(argument),
        };
        match self.hub.storage.stat(&wanted) {
            Ok(Stat { kind: Kind::Directory, .. }) => {
                self.directory = wanted;
                self.reply(250, "Directory successfully changed.")
            }
            Ok(_) => self.refuse("CWD", Cause::NotDirectory, argument),
            Err(cause) => self.refuse("CWD", cause, argument),
        }
    }
}
