//! LIST, NLST, MLSD and MLST: which entries; their text is in `listing`.

use super::{Done, cut_at_blank};
use crate::support::dialect::{ListMissing, ListOptions, Mlsd, MlsdLinks};
use crate::support::listing::{self, Role};
use crate::support::session::Session;
use crate::support::storage::{Cause, Kind, Stat};
use crate::support::transfer::Way;

/// What LIST, NLST and MLSD send.
pub(super) enum Lines {
    Finite(Vec<u8>),
    /// The line is repeated for ever.
    Endless(Vec<u8>),
}

impl Session {
    pub(super) fn list_verb(&mut self, verb: &str, argument: &[u8]) -> Done {
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

    pub(super) fn list_lines(&self, verb: &str, argument: &[u8]) -> Result<Lines, Cause> {
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
}

fn copy_from(bytes: &[u8], offset: u64, block: &mut [u8]) -> usize {
    let rest =
        usize::try_from(offset).ok().and_then(|start| bytes.get(start..)).unwrap_or_default();
    let length = rest.len().min(block.len());
    block[..length].copy_from_slice(&rest[..length]);
    length
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
