//! Listings: which command brings one, and how its lines are read.

use std::io::{BufRead, BufReader, Read};
use std::time::{SystemTime, UNIX_EPOCH};

use super::Session;
use crate::ftp::error::{Error, Reply};
use crate::ftp::listing::{Entries, Kind, Line, ListParser, Precision, parse_mlsd};
use crate::ftp::open::{Ahead, Begun};
use crate::ftp::path::RemotePath;
use crate::ftp::server::{Habit, Verdict};
use crate::ftp::stream::DataSocket;

/// The buffer between socket and parser: one read of a fast line, a thousand entries.
const LISTING_BUFFER: usize = 64 * 1024;

/// The longest line of a listing: a path of PATH_MAX (4096) bytes, each perhaps sent as two
/// (telnet IAC), and as much again for facts.
const LINE_LIMIT: u64 = 16 * 1024;

/// The most entries of one directory: at about 200 bytes each the listing stays below 400 MiB.
const ENTRY_LIMIT: usize = 2_000_000;

impl Session {
    /// Everything in a directory, by MLSD where the server has it, else by LIST.
    pub(crate) fn list(&mut self, directory: &RemotePath) -> Result<Entries, Error> {
        self.list_with(directory, Ahead::Known)
    }

    /// The same; what travels with it is said by `ahead`.
    pub(crate) fn list_with(
        &mut self,
        directory: &RemotePath,
        ahead: Ahead,
    ) -> Result<Entries, Error> {
        if self.server.verdict(Habit::Mlsd) == Verdict::Yes {
            let mut parse = |line: &[u8]| parse_mlsd(line);
            match self.list_by("MLSD", directory, ahead, &mut parse) {
                Err(Error::Refused(reply)) if reply.is_unknown_command() => {
                    self.server.learn(Habit::Mlsd, Verdict::No);
                }
                Ok(listed) => return Ok(listed.entries),
                Err(error) => return Err(error),
            }
        }
        self.list_long_with(directory, ahead)
    }

    /// LIST, with `-a` where that shows the hidden files.
    pub(crate) fn list_long(&mut self, directory: &RemotePath) -> Result<Entries, Error> {
        self.list_long_with(directory, Ahead::No)
    }

    fn list_long_with(&mut self, directory: &RemotePath, ahead: Ahead) -> Result<Entries, Error> {
        let now = unix_now();
        let zone = self.server.zone_offset();
        let mut parser = ListParser::new(now, zone.unwrap_or(0));
        let mut listed = None;
        if self.server.may(Habit::ListAll) {
            match self.list_by("LIST -a", directory, ahead, &mut |line| parser.line(line)) {
                Ok(found) if found.lines > 0 => {
                    self.server.learn(Habit::ListAll, Verdict::Yes);
                    listed = Some(found);
                }
                Ok(_) | Err(Error::Refused(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let mut listed = match listed {
            Some(found) => found,
            None => self.list_plain(directory, &mut parser)?,
        };
        if zone.is_none() {
            self.learn_zone(directory, &mut listed.entries)?;
        }
        Ok(listed.entries)
    }

    /// LIST without an option, after `-a` brought nothing. An empty answer says nothing about the
    /// directory, as vsftpd 3.0.3 sends it (226) also for one that is not there: CWD tells.
    fn list_plain(
        &mut self,
        directory: &RemotePath,
        parser: &mut ListParser,
    ) -> Result<Listed, Error> {
        let found = self.list_by("LIST", directory, Ahead::No, &mut |line| parser.line(line))?;
        if found.lines > 0 {
            self.server.learn(Habit::ListAll, Verdict::No);
        } else {
            self.enter(directory)?;
        }
        Ok(found)
    }

    /// Runs one listing command to its 226. A path in which a server may see a glob, an option or
    /// a blank to cut is not named: the directory is entered instead.
    fn list_by(
        &mut self,
        verb: &str,
        directory: &RemotePath,
        ahead: Ahead,
        parse: &mut dyn FnMut(&[u8]) -> Line,
    ) -> Result<Listed, Error> {
        let command = if directory.needs_cwd() {
            self.enter(directory)?;
            verb.to_owned()
        } else {
            format!("{verb} {}", directory.to_wire())
        };
        let Begun { data, next, .. } = match self.open_data(&command, 0, ahead) {
            Ok(begun) => begun,
            // “226 no files” without a data connection, and “450 No files found” of ProFTPD.
            Err(Error::Refused(reply)) if reply.is_success() || is_no_files(&reply) => {
                // A reply to something else would be followed by the true one: asking for the
                // directory brings that out, and proves that there is one.
                self.enter(directory)?;
                return Ok(Listed::default());
            }
            Err(error) => return Err(error),
        };
        let mut reader = BufReader::with_capacity(LISTING_BUFFER, data);
        let slot = &self.slot;
        let listed = read_listing(&mut reader, &mut |line| {
            slot.note_progress();
            parse(line)
        });
        // Closed before the reply is read, as the server may wait for that.
        drop(reader);
        let listed = listed?;
        self.end_with(next)?;
        self.server.count_odd_lines(listed.odd, &listed.sample);
        Ok(listed)
    }

    /// Compares one date of LIST with MDTM, which is UTC (RFC 3659 §2.3), and moves the dates of
    /// this listing by the difference. Zones differ by quarters of an hour.
    fn learn_zone(&mut self, directory: &RemotePath, entries: &mut Entries) -> Result<(), Error> {
        const QUARTER: i64 = 15 * 60;
        let newest = entries
            .iter()
            .filter(|entry| entry.kind == Kind::File)
            .filter_map(|entry| Some((entry.mtime?, entry)))
            .filter(|(mtime, _)| mtime.precision == Precision::Minute)
            .max_by_key(|(mtime, _)| mtime.seconds);
        let Some((listed, entry)) = newest else { return Ok(()) };
        let path = directory.join(&entry.name)?;
        let offset = match self.modified(&path)? {
            Some(exact) => {
                let away = listed.seconds - exact.seconds;
                (away as f64 / QUARTER as f64).round() as i64 * QUARTER
            }
            None => 0,
        };
        // No zone is further from UTC than 14 hours; more is a wrong clock or another file.
        let offset = if offset.abs() > 14 * 3600 { 0 } else { offset };
        self.server.set_zone_offset(i32::try_from(offset).unwrap_or(0));
        log::info!("dates of LIST are {offset} s ahead of UTC");
        entries.move_minutes(offset);
        Ok(())
    }
}

/// What one listing command brought.
#[derive(Default)]
struct Listed {
    entries: Entries,
    /// Lines of any kind, `.` and `total` too: a listing with none says nothing.
    lines: usize,
    odd: usize,
    sample: Vec<u8>,
}

fn read_listing(
    reader: &mut BufReader<DataSocket>,
    parse: &mut dyn FnMut(&[u8]) -> Line,
) -> Result<Listed, Error> {
    let mut listed = Listed::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader
            .by_ref()
            .take(LINE_LIMIT)
            .read_until(b'\n', &mut line)
            .map_err(|error| Error::from_io(error, "a listing"))?;
        if read == 0 {
            return Ok(listed);
        }
        if read as u64 == LINE_LIMIT || listed.entries.len() == ENTRY_LIMIT {
            return Err(Error::ListingTooLarge);
        }
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        listed.lines += 1;
        match parse(text) {
            Line::Entry(entry) if !listed.entries.push(&entry) => {
                return Err(Error::ListingTooLarge);
            }
            Line::Entry(_) => {}
            Line::Ignored => {}
            Line::Odd => {
                listed.odd += 1;
                listed.sample = text.to_vec();
            }
        }
    }
}

fn is_no_files(reply: &Reply) -> bool {
    reply.code == 450 && reply.text().to_lowercase().contains("no files")
}

fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
