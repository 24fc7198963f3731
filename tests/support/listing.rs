//! The text of LIST, NLST, MLSD and MLST. Pure: entries and a time in, bytes out.

use chrono::DateTime;

use super::dialect::{Dialect, Fact, ListDates, ListStyle, MlsdLinks, Voice};
use super::storage::{Kind, Stat};

/// One line of LIST with its CRLF.
pub fn list_line(dialect: &Dialect, name: &[u8], stat: &Stat, now: i64) -> Vec<u8> {
    let mut line = match dialect.list {
        ListStyle::Unix => unix_columns(dialect, stat, now).into_bytes(),
        ListStyle::Dos => dos_columns(dialect, stat, "%m-%d-%y").into_bytes(),
        ListStyle::DosLongYear => dos_columns(dialect, stat, "%m-%d-%Y").into_bytes(),
    };
    line.extend_from_slice(name);
    if let (Kind::Link(target), ListStyle::Unix) = (&stat.kind, dialect.list) {
        line.extend_from_slice(b" -> ");
        line.extend_from_slice(target);
    }
    line.extend_from_slice(b"\r\n");
    line
}

/// What `type` says of an entry.
#[derive(Clone, Copy)]
pub enum Role {
    Entry,
    Current,
    Parent,
}

/// The facts of one entry, ending in the blank before its name.
pub fn facts(
    dialect: &Dialect,
    wanted: &[Fact],
    stat: &Stat,
    followed: &Stat,
    role: Role,
) -> Vec<u8> {
    let shown = if dialect.mlsd_links == MlsdLinks::Followed { followed } else { stat };
    let mut line = Vec::new();
    for fact in wanted {
        // Servers give a directory no size, or `sizd`: RFC 3659 section 7.5.7
        // leaves its meaning open.
        let value = match fact {
            Fact::Type => kind_fact(dialect, shown, role),
            Fact::Size if shown.kind == Kind::Directory => continue,
            Fact::Size => shown.size.to_string().into_bytes(),
            Fact::Modify => stamp(shown.mtime).into_bytes(),
            Fact::Perm => perm_fact(dialect, shown).into(),
            Fact::Unique => format!("FE00U{:X}", shown.unique).into_bytes(),
            Fact::UnixMode => format!("0{:o}", shown.mode).into_bytes(),
            Fact::UnixOwner | Fact::UnixUid | Fact::UnixGroup | Fact::UnixGid => b"1000".into(),
            Fact::UnixOwnerName | Fact::UnixGroupName => b"ftp".into(),
        };
        line.extend_from_slice(fact.name().as_bytes());
        line.push(b'=');
        line.extend_from_slice(&value);
        line.push(b';');
    }
    line.push(b' ');
    line
}

/// YYYYMMDDHHMMSS in UTC, RFC 3659 section 2.3.
pub fn stamp(mtime: i64) -> String {
    moment(mtime).format("%Y%m%d%H%M%S").to_string()
}

/// Does `name` match a pattern of `*`, `?` and `[...]`?
pub fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let Some((first, rest)) = pattern.split_first() else { return name.is_empty() };
    match first {
        b'*' => (0..=name.len()).any(|skip| matches(rest, &name[skip..])),
        b'?' => !name.is_empty() && matches(rest, &name[1..]),
        b'[' => match (rest.iter().position(|byte| *byte == b']'), name.split_first()) {
            (Some(end), Some((byte, later))) => {
                rest[..end].contains(byte) && matches(&rest[end + 1..], later)
            }
            _ => false,
        },
        byte => name.first() == Some(byte) && matches(rest, &name[1..]),
    }
}

fn unix_columns(dialect: &Dialect, stat: &Stat, now: i64) -> String {
    let kind = match stat.kind {
        Kind::File => '-',
        Kind::Directory => 'd',
        Kind::Link(_) => 'l',
    };
    let bits: String = (0..9)
        .map(|bit| if stat.mode & (0o400 >> bit) == 0 { '-' } else { ['r', 'w', 'x'][bit % 3] })
        .collect();
    let links = if stat.kind == Kind::Directory { 2 } else { 1 };
    let size = stat.size;
    let date = list_date(dialect, stat.mtime, now);
    format!("{kind}{bits} {links:>4} ftp      ftp      {size:>12} {date} ")
}

fn list_date(dialect: &Dialect, mtime: i64, now: i64) -> String {
    let local = moment(mtime + i64::from(dialect.list_zone));
    // vsftpd pads the day with a zero, the others with a blank like ls.
    let day = if dialect.voice == Voice::Vsftpd { "%d" } else { "%e" };
    // vsftpd: a file of the future shows its year, as does one that is half a
    // year old, 182 days.
    let recent = mtime <= now && now - mtime < 182 * 24 * 3600;
    let rest = if recent && dialect.list_dates == ListDates::ByAge { "%H:%M" } else { " %Y" };
    local.format(&format!("%b {day} {rest}")).to_string()
}

fn dos_columns(dialect: &Dialect, stat: &Stat, day: &str) -> String {
    let local = moment(stat.mtime + i64::from(dialect.list_zone));
    let date = local.format(&format!("{day}  %I:%M%p")).to_string();
    match stat.kind {
        Kind::Directory => format!("{date}       <DIR>          "),
        _ => format!("{date} {:>20} ", stat.size),
    }
}

fn kind_fact(dialect: &Dialect, stat: &Stat, role: Role) -> Vec<u8> {
    match (role, &stat.kind, dialect.mlsd_links) {
        (Role::Current, ..) => b"cdir".into(),
        (Role::Parent, ..) => b"pdir".into(),
        (Role::Entry, Kind::File, _) => b"file".into(),
        (Role::Entry, Kind::Directory, _) => b"dir".into(),
        (Role::Entry, Kind::Link(target), MlsdLinks::Slink) => {
            [b"OS.unix=slink:", target.as_slice()].concat()
        }
        (Role::Entry, Kind::Link(_), _) => b"OS.unix=symlink".into(),
    }
}

/// RFC 3659 section 7.5.5.
fn perm_fact(dialect: &Dialect, stat: &Stat) -> &'static str {
    match (&stat.kind, dialect.read_only || stat.mode & 0o200 == 0) {
        (Kind::Directory, false) => "flcdmpe",
        (Kind::Directory, true) => "el",
        (_, false) => "adfrw",
        (_, true) => "r",
    }
}

fn moment(seconds: i64) -> DateTime<chrono::Utc> {
    DateTime::from_timestamp(seconds, 0).unwrap_or_default()
}
