//! What each command does. The words of a refusal come from the dialect, those
//! of a success from vsftpd, since no client may read them.

mod changes;
mod data;
mod listings;
mod login;
mod talk;

use super::hub::Gone;
use super::path::ServerPath;
use super::session::{Session, Stage};
use super::storage::Cause;

type Done = Result<(), Gone>;

/// Commands that need no login.
const OPEN_VERBS: &[&str] = &[
    "USER", "PASS", "ACCT", "QUIT", "FEAT", "HELP", "SYST", "NOOP", "OPTS", "ABOR", "CLNT", "HOST",
    "AUTH", "PBSZ", "PROT",
];

impl Session {
    pub fn carry_out(&mut self, verb: &str, argument: &[u8]) -> Done {
        if self.stage != Stage::LoggedIn && !OPEN_VERBS.contains(&verb) {
            return self.reply(530, "Please login with USER and PASS.");
        }
        if self.dialect.utf8_only && std::str::from_utf8(argument).is_err() {
            return self.reply(501, "Can't decode command.");
        }
        match verb {
            "USER" | "PASS" | "ACCT" | "QUIT" => self.login_verb(verb, argument),
            "FEAT" | "HELP" | "SYST" | "NOOP" | "OPTS" | "CLNT" | "ALLO" | "STAT" | "TYPE"
            | "STRU" | "MODE" => self.talk_verb(verb, argument),
            "PWD" | "XPWD" | "CWD" | "XCWD" | "CDUP" => self.directory_verb(verb, argument),
            "EPSV" | "PASV" | "PORT" | "EPRT" => self.way_verb(verb, argument),
            "LIST" | "NLST" | "MLSD" | "MLST" => self.list_verb(verb, argument),
            "RETR" | "STOR" | "APPE" | "REST" | "ABOR" => self.transfer_verb(verb, argument),
            "DELE" | "RMD" | "XRMD" | "MKD" | "XMKD" | "RNFR" | "RNTO" => {
                self.change_verb(verb, argument)
            }
            "SIZE" | "MDTM" | "MFMT" | "MFF" => self.fact_verb(verb, argument),
            "SITE" => self.site_verb(argument),
            _ => self.unsupported(),
        }
    }

    fn unsupported(&mut self) -> Done {
        self.reply(self.dialect.unsupported, "Unknown command.")
    }

    fn refuse(&mut self, verb: &str, cause: Cause, name: &[u8]) -> Done {
        let (code, text) = self.dialect.refusal(verb, cause, name);
        self.reply(code, text)
    }

    fn path(&self, argument: &[u8]) -> ServerPath {
        self.directory.join(argument)
    }
}

/// The path in quotes, its own quotes doubled: RFC 959 appendix II.
fn quoted(path: &ServerPath) -> Vec<u8> {
    let mut text = b"\"".to_vec();
    for byte in path.to_bytes() {
        text.push(byte);
        if byte == b'"' {
            text.push(b'"');
        }
    }
    text.push(b'"');
    text
}

fn cut_at_blank(argument: &[u8]) -> (&[u8], &[u8]) {
    match argument.iter().position(|byte| *byte == b' ') {
        Some(blank) => (&argument[..blank], &argument[blank + 1..]),
        None => (argument, b""),
    }
}
