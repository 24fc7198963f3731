//! Easily parsed LIST format: publicfile, anonftpd (cr.yp.to/ftp/list/eplf.html).

use super::{Clock, Entry, Kind, Line, Precision, Timestamp, parse_octal, parse_size};

/// `+i8388621.29609,m824255902,/,\tname`
pub(super) fn parse(line: &[u8], _clock: &Clock) -> Option<Line> {
    let rest = line.strip_prefix(b"+")?;
    let cut = rest.iter().position(|byte| *byte == b'\t')?;
    let (facts, name) = rest.split_at(cut);
    let mut entry = Entry::new(name.get(1..)?, Kind::File);
    for fact in facts.split(|byte| *byte == b',').filter(|fact| !fact.is_empty()) {
        match fact {
            b"/" => entry.kind = Kind::Directory,
            [b's', size @ ..] => entry.size = parse_size(size),
            [b'm', seconds @ ..] => {
                entry.mtime = std::str::from_utf8(seconds)
                    .ok()
                    .and_then(|text| text.parse().ok())
                    .map(|seconds| Timestamp { seconds, nanos: 0, precision: Precision::Second });
            }
            [b'u', b'p', mode @ ..] => entry.mode = parse_octal(mode),
            _ => {}
        }
    }
    Some(Line::of(entry))
}
