//! What changes the tree, and sizes, times and modes.

use chrono::NaiveDateTime;

use super::{Done, cut_at_blank, quoted};
use crate::support::dialect::RenameOver;
use crate::support::listing;
use crate::support::path::ServerPath;
use crate::support::session::Session;
use crate::support::storage::{Cause, Kind, Start, Stat};

impl Session {
    pub(super) fn change_verb(&mut self, verb: &str, argument: &[u8]) -> Done {
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

    pub(super) fn fact_verb(&mut self, verb: &str, argument: &[u8]) -> Done {
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

    pub(super) fn site_verb(&mut self, argument: &[u8]) -> Done {
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
        let source = storage.open(from)?;
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
