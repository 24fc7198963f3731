//! NetWare: `d [R----F--] supervisor            512       Jan 16 18:53    login`.

use super::{Clock, Entry, Kind, Line, parse_size, unix, word};

pub(super) fn parse(line: &[u8], clock: &Clock) -> Option<Line> {
    let mut rest = line;
    let kind = match word(&mut rest)? {
        b"d" => Kind::Directory,
        b"-" => Kind::File,
        _ => return None,
    };
    let rights = word(&mut rest)?;
    if !(rights.starts_with(b"[") && rights.ends_with(b"]")) {
        return None;
    }
    let owner = word(&mut rest)?;
    let size = word(&mut rest)?;
    let (mtime, name) = unix::date(rest, clock)?;
    let mut entry = Entry::new(name.trim_ascii_start(), kind);
    entry.mtime = Some(mtime);
    if kind == Kind::File {
        entry.size = parse_size(size);
    }
    entry.facts = Some([b"owner=", owner, b";"].concat().into());
    Some(Line::of(entry))
}
