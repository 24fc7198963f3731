//! `ls -l`: vsftpd, ProFTPD, Pure-FTPd, wu-ftpd and most others.

use super::{Clock, Entry, Kind, Line, Timestamp, number, parse_size, word};

/// `-rw-r--r--   1 owner group   1234 Nov 23 10:00 name`. What stands between the bits and the date
/// differs: links, owner, group, ACL marks, a device's numbers. The date is looked for, and the
/// word before it is the size.
pub(super) fn parse(line: &[u8], clock: &Clock) -> Option<Line> {
    let mut rest = line;
    let bits = word(&mut rest)?;
    let kind = kind(*bits.first()?)?;
    if bits.len() < 10 {
        return None;
    }
    let mode = mode(bits.get(1..10)?)?;
    let mut before: Vec<&[u8]> = Vec::new();
    // Links, owner, group, size: at most a few words of them with blanks in them.
    for _ in 0..8 {
        if let Some((mtime, name)) = date(rest, clock)
            && before.last().is_some_and(|size| is_size(size))
        {
            return Some(entry(kind, mode, &before, mtime, name));
        }
        before.push(word(&mut rest)?);
    }
    None
}

fn entry(kind: Kind, mode: u16, before: &[&[u8]], mtime: Timestamp, name: &[u8]) -> Line {
    let mut entry = Entry::new(name, kind);
    entry.mode = Some(mode);
    entry.mtime = Some(mtime);
    if kind == Kind::File {
        entry.size = before.last().and_then(|size| parse_size(size));
    }
    if kind == Kind::Symlink {
        // The first arrow, as ls does not quote; a name with one in it cannot be told apart.
        const ARROW: &[u8] = b" -> ";
        if let Some(cut) = name.windows(ARROW.len()).position(|part| part == ARROW) {
            entry.name = name.get(..cut).unwrap_or_default().into();
            entry.target = name.get(cut + ARROW.len()..).map(Into::into);
        }
    }
    // links owner group size, or without links (some embedded servers).
    let owners = before.get(before.len().saturating_sub(3)..).unwrap_or_default();
    if let (4.., [owner, group, _]) = (before.len(), owners) {
        let facts = [b"owner=", *owner, b";group=", group, b";"].concat();
        entry.facts = Some(facts.into());
    }
    Line::of(entry)
}

fn kind(letter: u8) -> Option<Kind> {
    match letter {
        b'-' => Some(Kind::File),
        b'd' => Some(Kind::Directory),
        b'l' => Some(Kind::Symlink),
        b'b' | b'c' | b'p' | b's' | b'D' => Some(Kind::Special),
        _ => None,
    }
}

/// `rwxr-sr-t` and the capital letters of set-id bits without the execute bit.
fn mode(bits: &[u8]) -> Option<u16> {
    let mut mode = 0;
    for (index, letter) in bits.iter().enumerate() {
        let bit = 1 << (8 - index);
        // Set-user, set-group and sticky stand at the three execute places.
        let special = 0o4000 >> (index / 3);
        mode |= match (letter, index % 3) {
            (b'-', _) => 0,
            (b'r', 0) | (b'w', 1) | (b'x', 2) => bit,
            (b's' | b't', 2) => bit | special,
            (b'S' | b'T', 2) => special,
            // Mandatory locking on System V.
            (b'l' | b'L', 2) => special,
            _ => return None,
        };
    }
    Some(mode)
}

/// A number, or the minor number of a device.
fn is_size(word: &[u8]) -> bool {
    !word.is_empty() && word.iter().all(u8::is_ascii_digit)
}

/// The date at the start of `rest`, and the name after it and exactly one blank: a name may begin
/// with blanks itself.
pub(super) fn date<'a>(rest: &'a [u8], clock: &Clock) -> Option<(Timestamp, &'a [u8])> {
    let mut rest = rest;
    let (first, second) = (word(&mut rest)?, word(&mut rest)?);
    if let Some(time) = iso(first, second, clock) {
        return Some((time, without_zone(rest)));
    }
    let third = word(&mut rest)?;
    // `Nov 23`, or `23 Nov` as some locales have it.
    let (month, day) = match (month(first), month(second)) {
        (Some(month), _) => (month, number(second.strip_suffix(b",").unwrap_or(second))?),
        (None, Some(month)) => (month, number(first.strip_suffix(b".").unwrap_or(first))?),
        (None, None) => return None,
    };
    let time = match third.iter().position(|byte| *byte == b':') {
        Some(cut) => {
            let (hour, minute) = (third.get(..cut)?, third.get(cut + 1..)?);
            let minute = minute.get(..2)?;
            clock.minute_of_last((month, day), number(hour)?, number(minute)?)?
        }
        None if third.len() == 4 => clock.date(number(third)?, month, day)?,
        None => return None,
    };
    Some((time, rest))
}

/// `2026-11-23 10:00`, as `ls --time-style=long-iso` has it, perhaps with seconds.
fn iso(date: &[u8], time: &[u8], clock: &Clock) -> Option<Timestamp> {
    let mut parts = date.split(|byte| *byte == b'-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    if year.len() != 4 || parts.next().is_some() {
        return None;
    }
    let mut clock_parts = time.split(|byte| *byte == b':');
    let (hour, minute) = (clock_parts.next()?, clock_parts.next()?);
    clock.minute((number(year)?, number(month)?, number(day)?), number(hour)?, number(minute)?)
}

/// The zone of `ls --full-time` (`+0100`) is left out.
fn without_zone(rest: &[u8]) -> &[u8] {
    match rest {
        [b'+' | b'-', a, b, c, d, b' ', name @ ..]
            if [a, b, c, d].iter().all(|byte| byte.is_ascii_digit()) =>
        {
            name
        }
        _ => rest,
    }
}

/// A month by its name in English, German, French, Italian, Spanish, Dutch or Swedish, as far as
/// the first three letters tell; or as `11月`.
fn month(word: &[u8]) -> Option<u32> {
    const MONTHS: [&[&str]; 12] = [
        &["jan", "gen", "ene"],
        &["feb", "fév", "fev"],
        &["mar", "mär", "mrz", "maa", "mrt"],
        &["apr", "avr", "abr"],
        &["may", "mai", "mag", "mei", "maj"],
        &["jun", "juin", "giu"],
        &["jul", "juil", "lug"],
        &["aug", "aoû", "aou", "ago"],
        &["sep", "set"],
        &["oct", "okt", "ott", "out"],
        &["nov"],
        &["dec", "dez", "déc", "dic"],
    ];
    let text = std::str::from_utf8(word).ok()?.to_lowercase();
    if let Some(number) = text.strip_suffix('月') {
        return number.parse().ok().filter(|month| (1..=12).contains(month));
    }
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let found = MONTHS.iter().position(|names| names.iter().any(|name| text.starts_with(name)))?;
    u32::try_from(found + 1).ok()
}
