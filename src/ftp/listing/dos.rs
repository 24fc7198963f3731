//! `dir`: IIS, and other servers on Windows.

use super::{Clock, Entry, Kind, Line, number, parse_size, word};

/// `11-23-26  10:00AM       <DIR>          name`, `11-23-2026  22:00   1,234 name`. Month first, as
/// IIS writes it whatever its locale.
pub(super) fn parse(line: &[u8], clock: &Clock) -> Option<Line> {
    let mut rest = line;
    let (date, time, size) = (word(&mut rest)?, word(&mut rest)?, word(&mut rest)?);
    let date = parse_date(date)?;
    let (hour, minute) = parse_time(time)?;
    let mtime = clock.minute(date, hour, minute)?;
    // IIS pads the size or <DIR> to a column; what follows is padding up to the name's own column.
    let (kind, size, name) = match size.to_ascii_uppercase().as_slice() {
        b"<DIR>" => (Kind::Directory, None, without_padding(rest)),
        b"<SYMLINKD>" | b"<JUNCTION>" | b"<SYMLINK>" => {
            (Kind::Symlink, None, without_padding(rest))
        }
        _ => {
            let digits: Vec<u8> =
                size.iter().copied().filter(|byte| !matches!(byte, b',' | b'.')).collect();
            (Kind::File, Some(parse_size(&digits)?), rest)
        }
    };
    let mut entry = Entry::new(name, kind);
    entry.size = size;
    entry.mtime = Some(mtime);
    if kind == Kind::Symlink && name.ends_with(b"]") {
        // `name [C:\target]`
        if let Some(cut) = name.windows(2).position(|part| part == b" [") {
            entry.name = name.get(..cut)?.into();
            entry.target = Some(name.get(cut + 2..name.len() - 1)?.into());
        }
    }
    Some(Line::of(entry))
}

/// `<DIR>` is followed by ten blanks, of which `word` took one.
fn without_padding(rest: &[u8]) -> &[u8] {
    const PADDING: &[u8] = b"         ";
    rest.strip_prefix(PADDING).unwrap_or_else(|| rest.trim_ascii_start())
}

fn parse_date(text: &[u8]) -> Option<(i32, u32, u32)> {
    let mut parts = text.split(|byte| matches!(byte, b'-' | b'/' | b'.'));
    let (first, second, third) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    if first.len() == 4 {
        return Some((number(first)?, number(second)?, number(third)?));
    }
    let year: i32 = number(third)?;
    // Two digits: 1970 to 2069.
    let year = match third.len() {
        4 => year,
        2 if year < 70 => 2000 + year,
        2 => 1900 + year,
        _ => return None,
    };
    Some((year, number(first)?, number(second)?))
}

/// `10:00AM`, `22:00`.
fn parse_time(text: &[u8]) -> Option<(u32, u32)> {
    let text = text.to_ascii_uppercase();
    let (clock, half) = match text.as_slice() {
        [clock @ .., b'A', b'M'] => (clock, Some(0)),
        [clock @ .., b'P', b'M'] => (clock, Some(12)),
        clock => (clock, None),
    };
    let cut = clock.iter().position(|byte| *byte == b':')?;
    let hour: u32 = number(clock.get(..cut)?)?;
    let minute = number(clock.get(cut + 1..)?.get(..2)?)?;
    // 12 AM is midnight, 12 PM noon.
    let hour = half.map_or(hour, |half| hour % 12 + half);
    Some((hour, minute))
}
