//! What each command does. One method per group of verbs; the words of a
//! refusal come from the dialect, those of a success from vsftpd, since no
//! client may read them.

use std::net::IpAddr;
use std::time::Instant;

use chrono::NaiveDateTime;

use super::dialect::{
    Fact, Feat, Limit, ListMissing, ListOptions, Login, Mlsd, MlsdLinks, Pasv, RenameOver, Rest,
};
use super::listing::{self, Role};
use super::server::Gone;
use super::session::{Session, Stage};
use super::transfer::{Data, Finish, Then, Way, parse_eprt, parse_port, wait_released};
use super::tree::{Cause, Content, Kind, ServerPath, Start, Stat};

type Done = Result<(), Gone>;

/// What LIST, NLST and MLSD send.
enum Lines {
    Finite(Vec<u8>),
    /// The line is repeated for ever.
    Endless(Vec<u8>),
}

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

    // ---- login ----

    fn login_verb(&mut self, verb: &str, argument: &[u8]) -> Done {
        match verb {
            "USER" => {
                self.set_stage(Stage::NeedPassword);
                self.user = Some(argument.to_vec());
                if self.dialect.login == Login::WithoutPassword {
                    return self.enter();
                }
                self.reply(331, "Please specify the password.")
            }
            "PASS" => {
                let Some(given) = self.user.clone().filter(|_| self.stage != Stage::Start) else {
                    return self.reply(503, "Login with USER first.");
                };
                let expected = match self.dialect.login {
                    Login::Anyone | Login::WithoutPassword => None,
                    Login::As { user, password } | Login::WithAccount { user, password, .. } => {
                        Some((user, password))
                    }
                };
                if let Some((user, password)) = expected
                    && (given != user.as_bytes() || argument != password.as_bytes())
                {
                    self.set_stage(Stage::Start);
                    return self.reply(530, "Login incorrect.");
                }
                if matches!(self.dialect.login, Login::WithAccount { .. }) {
                    self.set_stage(Stage::NeedAccount);
                    return self.reply(332, "Need account for login.");
                }
                self.enter()
            }
            "ACCT" => match self.dialect.login {
                Login::WithAccount { account, .. } if self.stage == Stage::NeedAccount => {
                    if argument == account.as_bytes() {
                        return self.enter();
                    }
                    self.set_stage(Stage::Start);
                    self.reply(530, "Login incorrect.")
                }
                _ => self.reply(202, "ACCT not needed."),
            },
            _ => self.reply(221, "Goodbye."),
        }
    }

    fn enter(&mut self) -> Done {
        if let Limit::AtLogin(most, code, text) = self.dialect.limit {
            let full = self.hub.change(|state| {
                let inside = state.lines.values().filter(|line| line.logged_in).count();
                if inside < most
                    && let Some(line) = state.lines.get_mut(&self.id)
                {
                    line.logged_in = true;
                }
                inside >= most
            });
            if full {
                self.set_stage(Stage::Start);
                self.reply(code, text)?;
                return if code == 421 { Err(Gone) } else { Ok(()) };
            }
        }
        self.set_stage(Stage::LoggedIn);
        self.reply(230, "Login successful.")
    }

    fn set_stage(&mut self, stage: Stage) {
        self.stage = stage;
        self.hub.change(|state| {
            if let Some(line) = state.lines.get_mut(&self.id) {
                line.logged_in = stage == Stage::LoggedIn;
            }
        });
    }

    // ---- words about the session ----

    fn talk_verb(&mut self, verb: &str, argument: &[u8]) -> Done {
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

    fn directory_verb(&mut self, verb: &str, argument: &[u8]) -> Done {
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

    // ---- the way of the data ----

    fn way_verb(&mut self, verb: &str, argument: &[u8]) -> Done {
        self.way = Way::Unset;
        let text = String::from_utf8_lossy(argument).to_ascii_uppercase();
        match verb {
            "EPSV" | "EPRT" if !self.dialect.epsv => self.unsupported(),
            "PASV" if self.dialect.pasv == Pasv::Absent => self.unsupported(),
            // RFC 2428 section 4.
            "EPSV" if text == "ALL" => {
                self.epsv_only = true;
                self.reply(200, "EPSV ALL ok.")
            }
            "EPSV" if text.parse::<u8>().is_ok_and(|family| family != 1) => {
                self.reply(522, "Network protocol not supported, use (1)")
            }
            "EPSV" | "PASV" => {
                if verb == "PASV" && self.epsv_only {
                    return self.reply(503, "EPSV ALL was sent.");
                }
                let Ok((way, port)) = Way::passive(&self.hub, self.id, self.local.ip()) else {
                    return self.reply(425, "Cannot open a passive connection.");
                };
                self.way = way;
                if verb == "EPSV" {
                    let text = format!("Entering Extended Passive Mode (|||{port}|)");
                    return self.reply(229, text);
                }
                let address = match (self.dialect.pasv, self.local.ip()) {
                    (Pasv::Address(address), _) | (_, IpAddr::V4(address)) => address,
                    _ => return self.reply(425, "PASV knows IPv4 only."),
                };
                let [a, b, c, d] = address.octets();
                let (high, low) = (port / 256, port % 256);
                self.reply(227, format!("Entering Passive Mode ({a},{b},{c},{d},{high},{low})."))
            }
            _ => {
                let target = if verb == "PORT" { parse_port(&text) } else { parse_eprt(&text) };
                // RFC 2577 section 3: no bouncing to others.
                match target.filter(|target| target.ip() == self.peer) {
                    Some(target) => {
                        self.way = Way::Active(target);
                        self.reply(200, format!("{verb} command successful."))
                    }
                    None => self.reply(500, format!("Illegal {verb} command.")),
                }
            }
        }
    }

    // ---- listings ----

    fn list_verb(&mut self, verb: &str, argument: &[u8]) -> Done {
        if verb.starts_with("MLS") && self.dialect.mlsd != Mlsd::Works {
            return self.unsupported();
        }
        if verb == "MLST" {
            return self.show_facts(argument);
        }
        let lines = match self.list_lines(verb, argument) {
            Ok(lines) => lines,
            Err(Cause::Missing) if verb != "MLSD" => match self.dialect.list_missing {
                ListMissing::Empty => Lines::Finite(Vec::new()),
                ListMissing::Refused(code) => {
                    self.way = Way::Unset;
                    let (_, text) = self.dialect.refusal(verb, Cause::Missing, argument);
                    return self.reply(code, text);
                }
            },
            Err(cause) => {
                self.way = Way::Unset;
                return self.refuse(verb, cause, argument);
            }
        };
        let Some(mut data) = self.open_data("Here comes the directory listing.")? else {
            return Ok(());
        };
        let finish = match &lines {
            Lines::Finite(bytes) => {
                data.send(0, |offset, block| Ok(copy_from(bytes, offset, block)))?
            }
            Lines::Endless(line) => {
                let many = line.repeat(100);
                data.send(0, |_, block| Ok(copy_from(&many, 0, block)))?
            }
        };
        self.finish(data, finish, 226, "Directory send OK.")
    }

    fn list_lines(&self, verb: &str, argument: &[u8]) -> Result<Lines, Cause> {
        if self.endless_listing {
            let line = if verb == "MLSD" {
                b"type=file;size=1;modify=20200101000000; again\r\n".to_vec()
            } else {
                b"-rw-r--r--    1 ftp      ftp             1 Jan 01  2020 again\r\n".to_vec()
            };
            return Ok(Lines::Endless(line));
        }
        if verb == "MLSD" {
            return self.mlsd_lines(argument).map(Lines::Finite);
        }
        let (all, name) = match self.dialect.list_options {
            ListOptions::Honoured => split_options(argument),
            ListOptions::Name => (false, argument),
        };
        let name = if self.dialect.list_argument { name } else { b"" };
        let now = self.hub.now();
        let mut bytes = Vec::new();
        for (name, stat) in self.list_entries(name, all)? {
            if verb == "NLST" {
                bytes.extend_from_slice(&name);
                bytes.extend_from_slice(b"\r\n");
            } else {
                bytes.extend_from_slice(&listing::list_line(&self.dialect, &name, &stat, now));
            }
        }
        Ok(Lines::Finite(bytes))
    }

    /// What LIST shows for `name`: a directory's entries, a file itself, or
    /// what a pattern matches.
    fn list_entries(&self, name: &[u8], all: bool) -> Result<Vec<(Vec<u8>, Stat)>, Cause> {
        let storage = &self.hub.storage;
        let path = self.path(name);
        let stat = match storage.stat(&path) {
            Ok(stat) => stat,
            Err(Cause::Missing) if self.dialect.glob => {
                let (parent, pattern) = path.split().ok_or(Cause::Missing)?;
                let mut entries = storage.list(&parent)?;
                entries.retain(|(name, _)| listing::matches(pattern, name));
                return if entries.is_empty() { Err(Cause::Missing) } else { Ok(entries) };
            }
            Err(cause) => return Err(cause),
        };
        if stat.kind != Kind::Directory {
            return Ok(vec![(path.name().to_vec(), stat)]);
        }
        let mut entries = storage.list(&path)?;
        entries.retain(|(name, _)| all || self.dialect.list_hidden || !name.starts_with(b"."));
        if all {
            let parent = storage.stat(&path.join(b".."))?;
            entries.splice(0..0, [(b".".to_vec(), stat), (b"..".to_vec(), parent)]);
        }
        Ok(entries)
    }

    fn mlsd_lines(&self, argument: &[u8]) -> Result<Vec<u8>, Cause> {
        let path = self.path(argument);
        let storage = &self.hub.storage;
        let here = storage.stat(&path)?;
        if here.kind != Kind::Directory {
            return Err(Cause::NotDirectory);
        }
        let mut bytes = Vec::new();
        let mut line = |name: &[u8], stat: &Stat, followed: &Stat, role: Role| {
            bytes.extend_from_slice(&self.facts_of(stat, followed, role));
            bytes.extend_from_slice(name);
            bytes.extend_from_slice(b"\r\n");
        };
        if self.dialect.mlsd_dots {
            let parent = storage.stat(&path.join(b".."))?;
            line(b".", &here, &here, Role::Current);
            line(b"..", &parent, &parent, Role::Parent);
        }
        for (name, stat) in storage.list(&path)? {
            let followed = match &stat.kind {
                Kind::Link(_) => storage.stat(&path.child(&name)).ok(),
                _ => Some(stat.clone()),
            };
            match (followed, self.dialect.mlsd_links) {
                (Some(followed), _) => line(&name, &stat, &followed, Role::Entry),
                (None, MlsdLinks::Followed) => {}
                (None, _) => line(&name, &stat, &stat, Role::Entry),
            }
        }
        Ok(bytes)
    }

    fn show_facts(&mut self, argument: &[u8]) -> Done {
        let path = self.path(argument);
        let storage = self.hub.storage.clone();
        let stat = match storage.stat_link(&path) {
            Ok(stat) => stat,
            Err(cause) => return self.refuse("MLST", cause, argument),
        };
        let followed = storage.stat(&path).unwrap_or_else(|_| stat.clone());
        let blank: &[u8] = if self.dialect.mlst_blank { b" " } else { b"" };
        let facts = self.facts_of(&stat, &followed, Role::Entry);
        let line = [blank, &facts, &path.to_bytes()].concat();
        let first = format!("Start of list for {}", String::from_utf8_lossy(argument));
        self.reply_lines(250, &first, &[line], "End of list")
    }

    fn facts_of(&self, stat: &Stat, followed: &Stat, role: Role) -> Vec<u8> {
        let wanted = self.facts.as_deref().unwrap_or(self.dialect.facts);
        listing::facts(&self.dialect, wanted, stat, followed, role)
    }

    // ---- transfers ----

    fn transfer_verb(&mut self, verb: &str, argument: &[u8]) -> Done {
        match verb {
            "REST" if self.dialect.rest == Rest::Absent => self.unsupported(),
            "REST" => match std::str::from_utf8(argument).unwrap_or("").parse::<u64>() {
                Ok(offset) => {
                    self.rest = if self.dialect.rest == Rest::Ignored { 0 } else { offset };
                    self.reply(350, format!("Restart position accepted ({offset})."))
                }
                Err(_) => self.reply(501, "Bad restart position."),
            },
            "ABOR" => {
                self.hub.change(|state| {
                    if let Some(line) = state.lines.get_mut(&self.id) {
                        line.aborted = false;
                    }
                });
                self.way = Way::Unset;
                self.reply(226, "ABOR successful.")
            }
            "RETR" => self.retrieve(argument),
            "APPE" if !self.dialect.appe => self.unsupported(),
            _ => self.store(verb, argument),
        }
    }

    fn retrieve(&mut self, argument: &[u8]) -> Done {
        let rest = std::mem::take(&mut self.rest);
        let path = self.path(argument);
        let opened = self.hub.storage.open(&path);
        let (content, size) = match opened.and_then(|c| Ok((c, self.hub.storage.stat(&path)?.size)))
        {
            Ok(opened) => opened,
            Err(cause) => {
                self.way = Way::Unset;
                return self.refuse("RETR", cause, argument);
            }
        };
        let name = String::from_utf8_lossy(argument);
        let mode = if self.ascii { "ASCII" } else { "BINARY" };
        let text = format!("Opening {mode} mode data connection for {name} ({size} bytes).");
        let Some(mut data) = self.open_data(&text)? else { return Ok(()) };
        let finish = data.send(rest, |offset, block| content.read_at(offset, block))?;
        self.finish(data, finish, 226, "Transfer complete.")
    }

    fn store(&mut self, verb: &str, argument: &[u8]) -> Done {
        let rest = std::mem::take(&mut self.rest);
        let start = match (verb, rest) {
            ("APPE", _) => Start::Append,
            (_, 0) => Start::Truncate,
            (_, offset) => Start::At(offset),
        };
        let opened = if self.dialect.read_only {
            Err(Cause::Denied)
        } else {
            self.hub.storage.create(&self.path(argument), start, self.hub.now())
        };
        let (content, mut offset) = match opened {
            Ok(opened) => opened,
            Err(cause) => {
                self.way = Way::Unset;
                return self.refuse(verb, cause, argument);
            }
        };
        self.hub.touch();
        let Some(mut data) = self.open_data("Ok to send data.")? else { return Ok(()) };
        let hub = self.hub.clone();
        let finish = data.receive(|bytes| {
            content.write_at(offset, bytes, hub.now())?;
            offset += bytes.len() as u64;
            Ok(())
        })?;
        // The delay of the last reply counts from the last byte.
        self.arrived = Instant::now();
        let stored = self.dialect.stored;
        self.finish(data, finish, stored, "Transfer complete.")
    }

    /// Opens the data connection and announces it; answers 425 when it fails.
    fn open_data(&mut self, text: &str) -> Result<Option<Data>, Gone> {
        let way = std::mem::take(&mut self.way);
        if matches!(way, Way::Unset) {
            self.reply(425, "Use PORT or PASV first.")?;
            return Ok(None);
        }
        let cut = self.cut.take();
        match Data::open(&self.hub, self.id, way, self.peer, cut, self.ascii)? {
            Some(data) => {
                self.reply(150, text)?;
                Ok(Some(data))
            }
            None => {
                self.reply(425, "Failed to establish connection.")?;
                Ok(None)
            }
        }
    }

    fn finish(&mut self, data: Data, finish: Finish, code: u16, text: &str) -> Done {
        data.close(&finish);
        match finish {
            Finish::Complete => self.reply(code, text),
            Finish::Broken => self.reply(426, "Failure on the data connection."),
            Finish::Cut(Then::Reply(code, text)) => self.reply(code, text),
            // Released, it says what it should have said before.
            Finish::Cut(Then::Silence | Then::Stall) => {
                self.hub.touch();
                wait_released(&self.hub, self.id)?;
                self.reply(426, "Failure on the data connection.")
            }
            Finish::Cut(Then::Close) => Err(Gone),
            Finish::Cut(Then::Reset) => self.reset(),
        }
    }

    // ---- changes ----

    fn change_verb(&mut self, verb: &str, argument: &[u8]) -> Done {
        let verb = verb.trim_start_matches('X');
        let path = self.path(argument);
        if verb == "RNTO" && self.rename_from.is_none() {
            return self.reply(503, "RNFR required first.");
        }
        if self.dialect.read_only {
            self.rename_from = None;
            return self.refuse(verb, Cause::Denied, argument);
        }
        let now = self.hub.now();
        let storage = self.hub.storage.clone();
        let done = match verb {
            "DELE" => storage.remove_file(&path, now),
            "RMD" => storage.remove_directory(&path, now),
            "MKD" => storage.make_directory(&path, now),
            "RNFR" => storage.stat_link(&path).map(drop),
            _ => {
                let from = self.rename_from.take().unwrap_or_default();
                return self.rename(&from, &path, argument);
            }
        };
        if let Err(cause) = done {
            return self.refuse(verb, cause, argument);
        }
        self.hub.touch();
        match verb {
            "DELE" => self.reply(250, "Delete operation successful."),
            "RMD" => self.reply(250, "Remove directory operation successful."),
            "MKD" => {
                let text = [quoted(&path), b" created".to_vec()].concat();
                self.reply(self.dialect.made, text)
            }
            _ => {
                self.rename_from = Some(path);
                self.reply(350, "Ready for RNTO.")
            }
        }
    }

    fn rename(&mut self, from: &ServerPath, to: &ServerPath, argument: &[u8]) -> Done {
        let storage = self.hub.storage.clone();
        if storage.stat_link(to).is_ok() && from != to {
            match self.dialect.rename_over {
                RenameOver::Allowed => {}
                RenameOver::Refused(code) => {
                    let (_, text) = self.dialect.refusal("RNTO", Cause::Exists, argument);
                    return self.reply(code, text);
                }
                RenameOver::Pretended => return self.reply(250, "Rename successful."),
            }
        }
        match storage.rename(from, to, self.hub.now()) {
            Ok(()) => {
                self.hub.touch();
                self.reply(250, "Rename successful.")
            }
            Err(cause) => self.refuse("RNTO", cause, argument),
        }
    }

    // ---- size and time ----

    fn fact_verb(&mut self, verb: &str, argument: &[u8]) -> Done {
        let allowed = match verb {
            "SIZE" => self.dialect.size,
            "MDTM" => self.dialect.mdtm,
            "MFMT" => self.dialect.mfmt,
            _ => self.dialect.mff,
        };
        if !allowed {
            return self.unsupported();
        }
        match verb {
            "MFMT" => {
                self.set_time_as(argument, |stamp, name| [b"Modify=", stamp, b"; ", name].concat())
            }
            "MFF" => self.set_facts(argument),
            // vsftpd: two arguments set the time, unless the first is a name.
            "MDTM" if self.dialect.mdtm_sets && set_time(argument).is_some() => {
                self.set_time_as(argument, |_, _| b"File modification time set.".to_vec())
            }
            _ => match self.hub.storage.stat(&self.path(argument)) {
                Ok(stat) if verb == "MDTM" => self.reply(213, listing::stamp(stat.mtime)),
                Ok(Stat { kind: Kind::File, size, .. }) => self.reply(213, size.to_string()),
                Ok(_) => self.refuse(verb, Cause::IsDirectory, argument),
                Err(cause) => self.refuse(verb, cause, argument),
            },
        }
    }

    fn set_time_as(&mut self, argument: &[u8], text: fn(&[u8], &[u8]) -> Vec<u8>) -> Done {
        let Some((mtime, name)) = set_time(argument) else {
            return self.reply(501, "Invalid time.");
        };
        match self.change_time(&self.path(name), mtime) {
            Ok(()) => self.reply(213, text(&argument[..14], name)),
            Err(cause) => self.refuse("MDTM", cause, name),
        }
    }

    /// MFF of mod_facts: `MFF modify=20200101000000;UNIX.mode=0644; name`.
    fn set_facts(&mut self, argument: &[u8]) -> Done {
        let Some(end) = argument.windows(2).position(|pair| pair == b"; ") else {
            return self.reply(501, "Invalid number of parameters.");
        };
        let (facts, name) = (&argument[..end + 1], &argument[end + 2..]);
        let path = self.path(name);
        let facts_text = String::from_utf8_lossy(facts).to_ascii_lowercase();
        for fact in facts_text.split_terminator(';') {
            let done = match fact.split_once('=') {
                Some(("modify", stamp)) => match parse_stamp(stamp) {
                    Some(mtime) => self.change_time(&path, mtime),
                    None => return self.reply(501, "Invalid time."),
                },
                Some(("unix.mode", mode)) => match u32::from_str_radix(mode, 8) {
                    Ok(mode) => self.change_mode(&path, mode),
                    Err(_) => return self.reply(501, "Invalid mode."),
                },
                _ => return self.reply(504, "Unknown fact."),
            };
            if let Err(cause) = done {
                return self.refuse("MFF", cause, name);
            }
        }
        self.reply(213, [facts, b" ", name].concat())
    }

    fn change_time(&self, path: &ServerPath, mtime: i64) -> Result<(), Cause> {
        if self.dialect.read_only {
            return Err(Cause::Denied);
        }
        self.hub.storage.set_mtime(path, mtime)?;
        self.hub.touch();
        Ok(())
    }

    fn change_mode(&self, path: &ServerPath, mode: u32) -> Result<(), Cause> {
        if self.dialect.read_only {
            return Err(Cause::Denied);
        }
        self.hub.storage.set_mode(path, mode)?;
        self.hub.touch();
        Ok(())
    }

    // ---- SITE ----

    fn site_verb(&mut self, argument: &[u8]) -> Done {
        let (verb, rest) = cut_at_blank(argument);
        let verb = String::from_utf8_lossy(verb).to_ascii_uppercase();
        match verb.as_str() {
            "HELP" => self.reply(214, "CHMOD UTIME SYMLINK CPFR CPTO HELP"),
            "CHMOD" if self.dialect.site_chmod => {
                let (mode, name) = cut_at_blank(rest);
                let Some(mode) = octal(mode).filter(|_| !name.is_empty()) else {
                    return self.reply(500, "SITE CHMOD needs 2 arguments.");
                };
                let changed = self.change_mode(&self.path(name), mode);
                self.site_done(changed, "SITE CHMOD command ok.", name)
            }
            "UTIME" if self.dialect.site_utime => {
                let Some((mtime, name)) = parse_utime(rest) else {
                    return self.reply(501, "Invalid time.");
                };
                let changed = self.change_time(&self.path(name), mtime);
                self.site_done(changed, "SITE UTIME command successful.", name)
            }
            // ProFTPD: blanks separate, so neither name can hold one.
            "SYMLINK" if self.dialect.site_symlink && !self.dialect.read_only => {
                let (target, name) = cut_at_blank(rest);
                let made = self.hub.storage.make_link(&self.path(name), target, self.hub.now());
                self.hub.touch();
                self.site_done(made, "SITE SYMLINK command successful", name)
            }
            "CPFR" if self.dialect.site_copy => {
                self.copy_from = Some(self.path(rest));
                self.reply(350, "File or directory exists, ready for destination name")
            }
            "CPTO" if self.dialect.site_copy && !self.dialect.read_only => {
                let Some(from) = self.copy_from.take() else {
                    return self.reply(503, "Bad sequence of commands");
                };
                let copied = self.copy(&from, &self.path(rest));
                self.site_done(copied, "Copy successful", rest)
            }
            _ => self.unsupported(),
        }
    }

    fn site_done(&mut self, done: Result<(), Cause>, text: &str, name: &[u8]) -> Done {
        match done {
            Ok(()) => self.reply(if text.starts_with("Copy") { 250 } else { 200 }, text),
            Err(cause) => self.refuse("SITE", cause, name),
        }
    }

    fn copy(&self, from: &ServerPath, to: &ServerPath) -> Result<(), Cause> {
        let storage = &self.hub.storage;
        let source: Content = storage.open(from)?;
        let (target, _) = storage.create(to, Start::Truncate, self.hub.now())?;
        let mut block = vec![0; 64 * 1024];
        let mut offset = 0;
        loop {
            let length = source.read_at(offset, &mut block)?;
            if length == 0 {
                self.hub.touch();
                return Ok(());
            }
            target.write_at(offset, &block[..length], self.hub.now())?;
            offset += length as u64;
        }
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

fn copy_from(bytes: &[u8], offset: u64, block: &mut [u8]) -> usize {
    let rest =
        usize::try_from(offset).ok().and_then(|start| bytes.get(start..)).unwrap_or_default();
    let length = rest.len().min(block.len());
    block[..length].copy_from_slice(&rest[..length]);
    length
}

fn cut_at_blank(argument: &[u8]) -> (&[u8], &[u8]) {
    match argument.iter().position(|byte| *byte == b' ') {
        Some(blank) => (&argument[..blank], &argument[blank + 1..]),
        None => (argument, b""),
    }
}

/// `-la name`: is there an `a`, and what is left.
fn split_options(argument: &[u8]) -> (bool, &[u8]) {
    let (mut all, mut rest) = (false, argument);
    while rest.first() == Some(&b'-') {
        let (options, later) = cut_at_blank(rest);
        all |= options.contains(&b'a');
        rest = later;
    }
    (all, rest)
}

fn octal(digits: &[u8]) -> Option<u32> {
    u32::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

/// `YYYYMMDDHHMMSS name`.
fn set_time(argument: &[u8]) -> Option<(i64, &[u8])> {
    let (stamp, name) = cut_at_blank(argument);
    let mtime = parse_stamp(std::str::from_utf8(stamp).ok()?)?;
    (!name.is_empty()).then_some((mtime, name))
}

/// Both forms: `YYYYMMDDhhmm[ss] name` (ProFTPD), and
/// `name atime mtime ctime UTC` (Pure-FTPd, and ProFTPD too).
fn parse_utime(argument: &[u8]) -> Option<(i64, &[u8])> {
    if let Some(long) = argument.strip_suffix(b" UTC") {
        let mut parts = long.rsplitn(4, |byte| *byte == b' ');
        let (_, mtime, _) = (parts.next()?, parts.next()?, parts.next()?);
        return Some((parse_stamp(std::str::from_utf8(mtime).ok()?)?, parts.next()?));
    }
    let (stamp, name) = cut_at_blank(argument);
    let stamp = std::str::from_utf8(stamp).ok()?;
    let stamp = if stamp.len() == 12 { format!("{stamp}00") } else { stamp.to_string() };
    Some((parse_stamp(&stamp)?, name))
}

fn parse_stamp(stamp: &str) -> Option<i64> {
    if stamp.len() != 14 {
        return None;
    }
    Some(NaiveDateTime::parse_from_str(stamp, "%Y%m%d%H%M%S").ok()?.and_utc().timestamp())
}
