//! Listing lines into entries: MLSD (RFC 3659 §7) and the dialects of LIST.
//!
//! Pure; the time now and the server's zone are parameters. An odd line never hurts the others: it
//! is reported as odd, and the caller counts it.

mod dos;
mod eplf;
mod netware;
mod packed;
mod unix;

use chrono::{DateTime, NaiveDate, NaiveDateTime};

pub use packed::{Brief, Entries};

use super::path::check_name;

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    /// A device, pipe or socket on the server: nothing to be read over FTP.
    Special,
}

/// How exactly a time was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Precision {
    Second,
    Minute,
    Day,
}

/// A time of last change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timestamp {
    /// Since 1970, UTC.
    pub seconds: i64,
    pub nanos: u32,
    pub precision: Precision,
}

const MINUTE: i64 = 60;
const DAY: i64 = 86_400;

impl Timestamp {
    /// May both be the same moment, each as exactly as it was told? A day may be one off, as
    /// nobody knows in which zone it was.
    pub fn agrees_with(&self, other: &Self) -> bool {
        match (self.precision, other.precision) {
            (Precision::Second, Precision::Second) => self.seconds == other.seconds,
            (Precision::Day, _) | (_, Precision::Day) => {
                let days = |time: &Self| time.seconds.div_euclid(DAY);
                (days(self) - days(other)).abs() <= 1
            }
            _ => self.seconds.div_euclid(MINUTE) == other.seconds.div_euclid(MINUTE),
        }
    }

    /// `YYYYMMDDHHMMSS` and perhaps a fraction (RFC 3659 §2.3). Old servers with a Y2K fault say
    /// `19100` for 2000: a year of five digits.
    pub fn parse_mdtm(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let fixed;
        let whole = match whole.strip_prefix("191") {
            Some(rest) if whole.len() == 15 => {
                fixed = format!("20{rest}");
                &fixed
            }
            _ => whole,
        };
        if whole.len() != 14 || !whole.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let time = NaiveDateTime::parse_from_str(whole, "%Y%m%d%H%M%S").ok()?;
        let nanos = fraction.get(..fraction.len().min(9)).unwrap_or_default();
        let nanos = format!("{nanos:0<9}").parse().unwrap_or(0);
        let seconds = time.and_utc().timestamp();
        Some(Self { seconds, nanos, precision: Precision::Second })
    }

    /// `YYYYMMDDHHMMSS`, as MFMT and MDTM want it.
    pub fn format_mdtm(seconds: i64) -> String {
        let time = DateTime::from_timestamp(seconds, 0).unwrap_or_default();
        time.format("%Y%m%d%H%M%S").to_string()
    }
}

/// One entry of a directory, as the server tells it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Passed [`check_name`].
    pub name: Box<[u8]>,
    pub kind: Kind,
    pub size: Option<u64>,
    pub mtime: Option<Timestamp>,
    /// Permission bits with set-id and sticky bits.
    pub mode: Option<u16>,
    /// Where a symbolic link leads.
    pub target: Option<Box<[u8]>>,
    /// What no other field holds, in the form of MLSD: `perm=adfr;unique=1U2;`.
    pub facts: Option<Box<[u8]>>,
}

impl Entry {
    fn new(name: &[u8], kind: Kind) -> Self {
        Self {
            name: name.into(),
            kind,
            size: None,
            mtime: None,
            mode: None,
            target: None,
            facts: None,
        }
    }
}

/// What a line is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Line {
    Entry(Entry),
    /// `total 12`, `.`, `..`, an empty line, the directory itself.
    Ignored,
    /// Not understood, or an entry whose name cannot be shown.
    Odd,
}

impl Line {
    /// The entry, unless it is the directory itself or has a name that leads elsewhere.
    fn of(entry: Entry) -> Self {
        if *entry.name == *b"." || *entry.name == *b".." {
            Self::Ignored
        } else if check_name(&entry.name).is_ok() {
            Self::Entry(entry)
        } else {
            Self::Odd
        }
    }
}

/// A size: bytes, if it is a number that a file can have.
fn parse_size(text: &[u8]) -> Option<u64> {
    let size: u64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    i64::try_from(size).is_ok().then_some(size)
}

/// One line of MLSD: facts, one blank, the name. A blank before the facts, as in a reply to MLST,
/// is left out.
pub(crate) fn parse_mlsd(line: &[u8]) -> Line {
    let line = line.strip_prefix(b" ").unwrap_or(line);
    if line.is_empty() {
        return Line::Ignored;
    }
    let Some(cut) = line.iter().position(|byte| *byte == b' ') else { return Line::Odd };
    let (facts, name) = line.split_at(cut);
    let mut entry = Entry::new(name.get(1..).unwrap_or_default(), Kind::File);
    let mut others = Vec::new();
    let mut has_facts = false;
    for fact in facts.split(|byte| *byte == b';').filter(|fact| !fact.is_empty()) {
        let Some(cut) = fact.iter().position(|byte| *byte == b'=') else { return Line::Odd };
        let (key, value) = fact.split_at(cut);
        let value = value.get(1..).unwrap_or_default();
        has_facts = true;
        match key.to_ascii_lowercase().as_slice() {
            b"type" => match mlsd_kind(value) {
                Some((kind, target)) => {
                    entry.kind = kind;
                    entry.target = target.map(Into::into);
                }
                None => return Line::Ignored,
            },
            // sizd: the size of a directory in some servers' MLSD.
            b"size" | b"sizd" => entry.size = parse_size(value),
            b"modify" => entry.mtime = Timestamp::parse_mdtm(value),
            b"unix.mode" => entry.mode = parse_octal(value),
            _ => {
                others.extend_from_slice(fact);
                others.push(b';');
            }
        }
    }
    if !has_facts {
        return Line::Odd;
    }
    if !others.is_empty() {
        entry.facts = Some(others.into());
    }
    Line::of(entry)
}

/// The type fact; `None` for the directory itself and the one above. Symbolic links come as
/// `OS.unix=slink:/target` (ProFTPD with UseSlink, wu-ftpd), `OS.unix=symlink` (ProFTPD 1.3.8) and
/// `OS.unix=slink`.
fn mlsd_kind(value: &[u8]) -> Option<(Kind, Option<&[u8]>)> {
    let lower = value.to_ascii_lowercase();
    match lower.as_slice() {
        b"dir" => Some((Kind::Directory, None)),
        b"cdir" | b"pdir" => None,
        b"file" => Some((Kind::File, None)),
        _ if lower.starts_with(b"os.unix=slink:") => {
            let target = value.get(b"os.unix=slink:".len()..).filter(|target| !target.is_empty());
            Some((Kind::Symlink, target))
        }
        _ if lower.starts_with(b"os.unix=slink") || lower.starts_with(b"os.unix=symlink") => {
            Some((Kind::Symlink, None))
        }
        _ if lower.starts_with(b"os.unix=") => Some((Kind::Special, None)),
        _ => Some((Kind::File, None)),
    }
}

fn parse_octal(text: &[u8]) -> Option<u16> {
    let mode = u16::from_str_radix(std::str::from_utf8(text).ok()?, 8).ok()?;
    Some(mode & 0o7777)
}

/// A dialect of LIST.
type Dialect = fn(&[u8], &Clock) -> Option<Line>;

/// All of them, the commonest first.
const DIALECTS: [Dialect; 4] = [unix::parse, dos::parse, eplf::parse, netware::parse];

/// Reads the lines of one LIST. The dialect that understood a line is asked first for the next.
#[derive(Debug)]
pub(crate) struct ListParser {
    clock: Clock,
    winner: usize,
}

impl ListParser {
    /// `zone_offset_seconds`: the server's local time minus UTC.
    pub(crate) fn new(now_unix: i64, zone_offset_seconds: i32) -> Self {
        Self { clock: Clock { now: now_unix, offset: i64::from(zone_offset_seconds) }, winner: 0 }
    }

    pub(crate) fn line(&mut self, line: &[u8]) -> Line {
        if line.trim_ascii().is_empty() || is_total(line) {
            return Line::Ignored;
        }
        let first = std::iter::once(self.winner);
        let others = (0..DIALECTS.len()).filter(|index| *index != self.winner);
        for index in first.chain(others) {
            if let Some(parsed) = DIALECTS.get(index).and_then(|parse| parse(line, &self.clock)) {
                self.winner = index;
                return parsed;
            }
        }
        Line::Odd
    }
}

/// `total 12`, in the languages that `ls` speaks, or `12 files`.
fn is_total(line: &[u8]) -> bool {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let (Some(word), Some(number), None) = (words.next(), words.next(), words.next()) else {
        return false;
    };
    let is_number = |word: &[u8]| word.iter().all(u8::is_ascii_digit);
    let word = word.to_ascii_lowercase();
    [&b"total"[..], b"insgesamt", b"gesamt", b"totale", b"itogo"].contains(&word.as_slice())
        && is_number(number)
}

/// What dates of LIST are completed with.
#[derive(Clone, Copy, Debug)]
struct Clock {
    now: i64,
    /// The server's local time minus UTC.
    offset: i64,
}

impl Clock {
    /// A date with a year.
    fn date(&self, year: i32, month: u32, day: u32) -> Option<Timestamp> {
        let date = NaiveDate::from_ymd_opt(year, month, day)?.and_hms_opt(0, 0, 0)?;
        Some(Timestamp { seconds: date.and_utc().timestamp(), nanos: 0, precision: Precision::Day })
    }

    /// A minute with a year.
    fn minute(
        &self,
        (year, month, day): (i32, u32, u32),
        hour: u32,
        minute: u32,
    ) -> Option<Timestamp> {
        let time = NaiveDate::from_ymd_opt(year, month, day)?.and_hms_opt(hour, minute, 0)?;
        let seconds = time.and_utc().timestamp() - self.offset;
        Some(Timestamp { seconds, nanos: 0, precision: Precision::Minute })
    }

    /// A minute without a year: the last one that is not in the future. A day of grace for clocks
    /// and zones that differ.
    fn minute_of_last(
        &self,
        (month, day): (u32, u32),
        hour: u32,
        minute: u32,
    ) -> Option<Timestamp> {
        let this_year = DateTime::from_timestamp(self.now, 0)?.format("%Y").to_string();
        let this_year: i32 = this_year.parse().ok()?;
        // 29 February may be up to eight years back (1900 and 2100 are no leap years).
        (0..=8)
            .filter_map(|back| self.minute((this_year + 1 - back, month, day), hour, minute))
            .find(|time| time.seconds <= self.now + DAY)
    }
}

/// Takes the next word off a line; what stays begins after exactly one blank.
fn word<'a>(line: &mut &'a [u8]) -> Option<&'a [u8]> {
    let start = line.iter().position(|byte| *byte != b' ' && *byte != b'\t')?;
    let rest = line.get(start..)?;
    let end = rest.iter().position(|byte| *byte == b' ' || *byte == b'\t').unwrap_or(rest.len());
    *line = rest.get((end + 1).min(rest.len())..)?;
    rest.get(..end)
}

fn number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 2026-11-23 12:00:00 UTC.
    const NOW: i64 = 1_795_435_200;

    fn entry(line: Line) -> Entry {
        match line {
            Line::Entry(entry) => entry,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn mlsd_facts_are_read_whatever_their_case_and_order() {
        let entry = entry(parse_mlsd(
            b"Modify=20260102030405.5;Perm=adfr;SIZE=12;Type=file;Unique=FDU1;UNIX.mode=0644; a;b= c ",
        ));
        assert_eq!(*entry.name, *b"a;b= c ");
        assert_eq!((entry.kind, entry.size, entry.mode), (Kind::File, Some(12), Some(0o644)));
        let mtime = entry.mtime.unwrap();
        assert_eq!((mtime.seconds, mtime.nanos), (1_767_323_045, 500_000_000));
        assert_eq!(entry.facts.as_deref(), Some(&b"Perm=adfr;Unique=FDU1;"[..]));
    }

    #[test]
    fn mlsd_lines_that_are_no_entries() {
        for line in ["type=cdir; .", "type=pdir; ..", "type=dir; .", "", " "] {
            assert_eq!(parse_mlsd(line.as_bytes()), Line::Ignored, "{line}");
        }
        for line in ["noblank", "nofacts name", "type=file; a/b", "type=file; ", "type=file;  \0"] {
            assert_eq!(parse_mlsd(line.as_bytes()), Line::Odd, "{line}");
        }
    }

    #[test]
    fn mlsd_links() {
        let link = entry(parse_mlsd(b"type=OS.unix=slink:/a/b;size=4; l"));
        assert_eq!((link.kind, link.target.as_deref()), (Kind::Symlink, Some(&b"/a/b"[..])));
        let link = entry(parse_mlsd(b"type=OS.unix=symlink; l"));
        assert_eq!((link.kind, link.target), (Kind::Symlink, None));
        assert_eq!(entry(parse_mlsd(b"type=OS.unix=chr-1/3; n")).kind, Kind::Special);
    }

    #[test]
    fn sizes_that_no_file_has_are_unknown() {
        for size in ["-1", "9223372036854775808", "18446744073709551616", "x", ""] {
            let line = format!("type=file;size={size}; f");
            assert_eq!(entry(parse_mlsd(line.as_bytes())).size, None, "{size}");
        }
        let line = b"type=file;size=9223372036854775807; f";
        assert_eq!(entry(parse_mlsd(line)).size, Some(i64::MAX as u64));
    }

    #[test]
    fn times_of_mdtm() {
        let seconds = |text: &str| Timestamp::parse_mdtm(text.as_bytes()).map(|time| time.seconds);
        assert_eq!(seconds("19700101000001"), Some(1));
        assert_eq!(seconds("191000101000000"), Some(946_684_800), "2000, after a Y2K fault");
        assert_eq!(seconds("20260230000000"), None);
        assert_eq!(seconds("2026"), None);
        assert_eq!(seconds(""), None);
        assert_eq!(Timestamp::format_mdtm(1), "19700101000001");
    }

    #[test]
    fn times_agree_as_far_as_they_are_told() {
        let time = |seconds, precision| Timestamp { seconds, nanos: 0, precision };
        let exact = time(3_661, Precision::Second);
        assert!(exact.agrees_with(&time(3_660, Precision::Minute)));
        assert!(!exact.agrees_with(&time(3_600, Precision::Minute)));
        assert!(exact.agrees_with(&time(0, Precision::Day)));
        assert!(exact.agrees_with(&time(DAY, Precision::Day)));
        assert!(!exact.agrees_with(&time(2 * DAY, Precision::Day)));
        assert!(!exact.agrees_with(&time(3_662, Precision::Second)));
    }

    #[test]
    fn a_year_that_is_not_told_is_the_last_one() {
        let clock = Clock { now: NOW, offset: 0 };
        let year = |month, day| {
            let time = clock.minute_of_last((month, day), 10, 0).unwrap();
            DateTime::from_timestamp(time.seconds, 0).unwrap().format("%Y").to_string()
        };
        assert_eq!(year(11, 23), "2026");
        assert_eq!(year(11, 24), "2026", "a clock that is ahead");
        assert_eq!(year(11, 26), "2025");
        assert_eq!(year(2, 29), "2024");
        assert_eq!(clock.minute_of_last((2, 30), 0, 0), None);
    }

    #[test]
    fn golden_listings() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let mut count = 0;
        for file in std::fs::read_dir(dir).unwrap() {
            let path = file.unwrap().path();
            let text = std::fs::read(&path).unwrap();
            let mut parser = ListParser::new(NOW, 0);
            let is_mlsd = path.file_name().unwrap().to_string_lossy().starts_with("mlsd");
            let mut lines =
                text.split(|byte| *byte == b'\n').filter(|line| !line.starts_with(b"#"));
            while let Some(line) = lines.next() {
                if line.is_empty() {
                    continue;
                }
                let line = line.strip_prefix(b"< ").unwrap_or_else(|| panic!("{path:?}"));
                let parsed = if is_mlsd { parse_mlsd(line) } else { parser.line(line) };
                let expected = String::from_utf8_lossy(lines.next().unwrap()).into_owned();
                let shown = format!("> {}", show(&parsed));
                assert_eq!(shown, expected, "{path:?}: {}", line.escape_ascii());
                count += 1;
            }
        }
        assert!(count >= 40, "{count} golden lines");
    }

    /// A parsed line, as the golden files have it.
    fn show(line: &Line) -> String {
        let Line::Entry(entry) = line else { return format!("{line:?}").to_lowercase() };
        let time = entry.mtime.map_or("-".into(), |time| {
            let format = match time.precision {
                Precision::Second => "%Y-%m-%dT%H:%M:%S",
                Precision::Minute => "%Y-%m-%dT%H:%M",
                Precision::Day => "%Y-%m-%d",
            };
            DateTime::from_timestamp(time.seconds, 0).unwrap().format(format).to_string()
        });
        let mut shown = format!(
            "{} {} {} {} [{}]",
            format!("{:?}", entry.kind).to_lowercase(),
            entry.size.map_or("-".into(), |size| size.to_string()),
            time,
            entry.mode.map_or("-".into(), |mode| format!("{mode:04o}")),
            entry.name.escape_ascii(),
        );
        if let Some(target) = &entry.target {
            shown += &format!(" -> [{}]", target.escape_ascii());
        }
        shown
    }

    proptest! {
        #[test]
        fn no_line_is_too_odd(lines: Vec<Vec<u8>>) {
            let mut parser = ListParser::new(NOW, 3600);
            for line in &lines {
                parser.line(line);
                parse_mlsd(line);
                Timestamp::parse_mdtm(line);
            }
        }

        #[test]
        fn no_text_is_too_odd(line in "[-drwxlst 0-9A-Za-z:./<>+,;=\\[\\]]{0,80}") {
            ListParser::new(NOW, 0).line(line.as_bytes());
            parse_mlsd(line.as_bytes());
        }

        #[test]
        fn any_name_survives_mlsd(name: Vec<u8>) {
            prop_assume!(check_name(&name).is_ok());
            let line = [&b"type=file;size=1; "[..], &name].concat();
            prop_assert_eq!(&*entry(parse_mlsd(&line)).name, name.as_slice());
        }

        #[test]
        fn any_name_survives_list(name: Vec<u8>) {
            prop_assume!(check_name(&name).is_ok());
            let line = [&b"-rw-r--r--   1 ftp      ftp             1 Nov 23 10:00 "[..], &name].concat();
            prop_assert_eq!(&*entry(ListParser::new(NOW, 0).line(&line)).name, name.as_slice());
        }
    }
}
