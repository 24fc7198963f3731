//! Many entries in little memory: 32 bytes each, the name, and what of the facts is its own.
//!
//! A folder may hold 100,000 names, and a mount many folders: an [`Entry`] with its boxes takes
//! about 250 bytes, here it takes about 50. Entries are written once and never changed; whoever
//! wants a change copies what stays.

use std::sync::Arc;

use super::{Entry, Kind, Precision, Timestamp};

/// Servers repeat the same facts for each file of a folder, but for `unique`. A server with more
/// forms than this tells something that differs by itself, and gains nothing by sharing.
const MOST_FORMS: usize = 16;

/// The facts of an entry do not follow a form but are written out.
const WRITTEN_OUT: u8 = 254;
const NO_FACTS: u8 = 255;

/// `size` where the server tells none: no file is as large (see `parse_size`).
const NO_SIZE: u64 = u64::MAX;

/// The nanoseconds take 30 bits; the two above say more.
const NANOS: u32 = (1 << 30) - 1;
const HAS_MODE: u32 = 1 << 30;
const HAS_TARGET: u32 = 1 << 31;

/// Facts of several entries, with a gap for the value of `unique`.
#[derive(PartialEq, Eq, Debug)]
struct Form {
    text: Box<[u8]>,
    /// Where the gap is.
    gap: usize,
}

/// One entry. In `bytes` from `at` on: the name, then, with `HAS_TARGET`, two bytes with the
/// length of the target and the target, then the part of the facts that is its own.
#[derive(Clone, Copy, Debug)]
struct Record {
    size: u64,
    seconds: i64,
    /// With the two flags above.
    nanos: u32,
    at: u32,
    /// Permission bits in 12, the kind in 2, the precision of the time in 2 (3: no time).
    bits: u16,
    /// Of everything in `bytes`.
    length: u16,
    name: u16,
    form: u8,
}

/// What a `stat` needs of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Brief {
    pub kind: Kind,
    /// Of a symbolic link with a known target: the length of that.
    pub size: Option<u64>,
    pub mtime: Option<Timestamp>,
    pub mode: Option<u16>,
}

/// Entries of one directory, in the order in which they were pushed.
#[derive(Clone, Default, Debug)]
pub struct Entries {
    records: Vec<Record>,
    bytes: Vec<u8>,
    forms: Vec<Arc<Form>>,
}

impl Entries {
    pub fn len(&self) -> usize {
        self.records.len()
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Adds an entry; false, and nothing is added, if it is longer than any line that is read.
    #[must_use]
    pub fn push(&mut self, entry: &Entry) -> bool {
        let (form, own) = self.form_of(entry.facts.as_deref());
        let target = entry.target.as_deref();
        let length = entry.name.len() + target.map_or(0, |target| target.len() + 2) + own.len();
        let (Ok(at), Ok(length), Ok(name)) = (
            u32::try_from(self.bytes.len()),
            u16::try_from(length),
            u16::try_from(entry.name.len()),
        ) else {
            return false;
        };
        self.bytes.extend_from_slice(&entry.name);
        if let Some(target) = target {
            // Shorter than `length`, which fits.
            let target_length = u16::try_from(target.len()).unwrap_or(0);
            self.bytes.extend_from_slice(&target_length.to_le_bytes());
            self.bytes.extend_from_slice(target);
        }
        self.bytes.extend_from_slice(own);
        let mode = entry.mode.map_or(0, |_| HAS_MODE);
        let link = target.map_or(0, |_| HAS_TARGET);
        self.records.push(Record {
            size: entry.size.unwrap_or(NO_SIZE),
            seconds: entry.mtime.map_or(0, |time| time.seconds),
            nanos: entry.mtime.map_or(0, |time| time.nanos & NANOS) | mode | link,
            at,
            bits: bits(entry),
            length,
            name,
            form,
        });
        true
    }

    /// Adds an entry of others as it is.
    pub fn push_from(&mut self, others: &Self, index: usize) {
        let Some(record) = others.records.get(index) else { return };
        let Ok(at) = u32::try_from(self.bytes.len()) else { return };
        let form = match others.forms.get(usize::from(record.form)) {
            None => record.form,
            Some(theirs) => match self.forms.iter().position(|form| Arc::ptr_eq(form, theirs)) {
                Some(known) => number(known),
                None if self.forms.len() < MOST_FORMS => {
                    self.forms.push(Arc::clone(theirs));
                    number(self.forms.len() - 1)
                }
                None => {
                    // Written out, as `push` does when there are too many forms.
                    let _ = others.get(index).is_some_and(|entry| self.push(&entry));
                    return;
                }
            },
        };
        self.bytes.extend_from_slice(others.all_bytes(record));
        self.records.push(Record { at, form, ..*record });
    }

    pub fn name(&self, index: usize) -> &[u8] {
        let record = self.records.get(index);
        record.map_or(&[], |record| self.slice(record.at, usize::from(record.name)))
    }

    pub fn brief(&self, index: usize) -> Option<Brief> {
        let record = self.records.get(index)?;
        let kind = kind(record.bits);
        let size = if kind == Kind::Symlink && record.nanos & HAS_TARGET != 0 {
            self.parts(record).1.map(|target| target.len() as u64)
        } else {
            Some(record.size).filter(|size| *size != NO_SIZE)
        };
        Some(Brief { kind, size, mtime: record.mtime(), mode: record.mode() })
    }

    pub fn get(&self, index: usize) -> Option<Entry> {
        let record = self.records.get(index)?;
        let (name, target, own) = self.parts(record);
        let facts = match record.form {
            NO_FACTS => None,
            WRITTEN_OUT => Some(own.into()),
            form => self.forms.get(usize::from(form)).map(|form| {
                let (before, after) = form.text.split_at(form.gap.min(form.text.len()));
                [before, own, after].concat().into()
            }),
        };
        Some(Entry {
            name: name.into(),
            kind: kind(record.bits),
            size: Some(record.size).filter(|size| *size != NO_SIZE),
            mtime: record.mtime(),
            mode: record.mode(),
            target: target.map(Into::into),
            facts,
        })
    }

    pub fn iter(&self) -> impl Iterator<Item = Entry> {
        (0..self.len()).filter_map(|index| self.get(index))
    }

    /// Those whose name is not to be left out.
    pub fn without(self, is_left_out: impl Fn(&[u8]) -> bool) -> Self {
        if !(0..self.len()).any(|index| is_left_out(self.name(index))) {
            return self;
        }
        let mut kept = Self::default();
        for index in (0..self.len()).filter(|index| !is_left_out(self.name(*index))) {
            kept.push_from(&self, index);
        }
        kept
    }

    /// Moves times told to the minute, which are in the server's zone.
    pub(crate) fn move_minutes(&mut self, offset_seconds: i64) {
        for record in &mut self.records {
            if record.mtime().is_some_and(|time| time.precision == Precision::Minute) {
                record.seconds -= offset_seconds;
            }
        }
    }

    /// Gives back what is allocated beyond need.
    pub fn shrink(&mut self) {
        self.records.shrink_to_fit();
        self.bytes.shrink_to_fit();
        self.forms.shrink_to_fit();
    }

    /// The form of these facts, and what they hold beyond it.
    fn form_of<'a>(&mut self, facts: Option<&'a [u8]>) -> (u8, &'a [u8]) {
        let Some(facts) = facts else { return (NO_FACTS, &[]) };
        let (before, own, after) = cut_at_unique(facts);
        let fits = |form: &Arc<Form>| {
            form.gap == before.len()
                && form.text.len() == before.len() + after.len()
                && form.text.starts_with(before)
                && form.text.ends_with(after)
        };
        if let Some(known) = self.forms.iter().rposition(fits) {
            return (number(known), own);
        }
        if self.forms.len() == MOST_FORMS {
            return (WRITTEN_OUT, facts);
        }
        let form = Form { text: [before, after].concat().into(), gap: before.len() };
        self.forms.push(Arc::new(form));
        (number(self.forms.len() - 1), own)
    }

    /// Name, target and own part of the facts.
    fn parts(&self, record: &Record) -> (&[u8], Option<&[u8]>, &[u8]) {
        let all = self.all_bytes(record);
        let (name, rest) = all.split_at(usize::from(record.name).min(all.len()));
        if record.nanos & HAS_TARGET == 0 {
            return (name, None, rest);
        }
        let Some((length, rest)) = rest.split_first_chunk() else { return (name, None, rest) };
        let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
        let (target, own) = rest.split_at(length);
        (name, Some(target), own)
    }

    fn all_bytes(&self, record: &Record) -> &[u8] {
        self.slice(record.at, usize::from(record.length))
    }

    fn slice(&self, at: u32, length: usize) -> &[u8] {
        let at = at as usize;
        self.bytes.get(at..at + length).unwrap_or_default()
    }
}

impl Record {
    fn mtime(&self) -> Option<Timestamp> {
        let precision = match self.bits >> 14 {
            0 => Precision::Second,
            1 => Precision::Minute,
            2 => Precision::Day,
            _ => return None,
        };
        Some(Timestamp { seconds: self.seconds, nanos: self.nanos & NANOS, precision })
    }

    fn mode(&self) -> Option<u16> {
        (self.nanos & HAS_MODE != 0).then_some(self.bits & 0o7777)
    }
}

fn bits(entry: &Entry) -> u16 {
    let kind = match entry.kind {
        Kind::File => 0,
        Kind::Directory => 1,
        Kind::Symlink => 2,
        Kind::Special => 3,
    };
    let precision = match entry.mtime.map(|time| time.precision) {
        Some(Precision::Second) => 0,
        Some(Precision::Minute) => 1,
        Some(Precision::Day) => 2,
        None => 3,
    };
    entry.mode.unwrap_or(0) & 0o7777 | kind << 12 | precision << 14
}

fn kind(bits: u16) -> Kind {
    match bits >> 12 & 3 {
        0 => Kind::File,
        1 => Kind::Directory,
        2 => Kind::Symlink,
        _ => Kind::Special,
    }
}

/// The number of a form, of which there are at most [`MOST_FORMS`].
fn number(index: usize) -> u8 {
    u8::try_from(index).unwrap_or(NO_FACTS)
}

/// Facts before, inside and after the value of `unique` (RFC 3659 §7.5.2).
fn cut_at_unique(facts: &[u8]) -> (&[u8], &[u8], &[u8]) {
    const UNIQUE: &[u8] = b"unique=";
    let mut start = 0;
    for fact in facts.split(|byte| *byte == b';') {
        let key = fact.get(..UNIQUE.len()).unwrap_or_default();
        if key.eq_ignore_ascii_case(UNIQUE) {
            let (before, rest) = facts.split_at(start + UNIQUE.len());
            let (own, after) = rest.split_at(fact.len() - UNIQUE.len());
            return (before, own, after);
        }
        start += fact.len() + 1;
    }
    (facts, &[], &[])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::MINUTE;
    use super::*;

    fn entry() -> impl Strategy<Value = Entry> {
        let kind = prop_oneof![
            Just(Kind::File),
            Just(Kind::Directory),
            Just(Kind::Symlink),
            Just(Kind::Special)
        ];
        let time = (any::<i64>(), 0..1_000_000_000_u32, 0..3_u8).prop_map(|(seconds, nanos, n)| {
            let precision = [Precision::Second, Precision::Minute, Precision::Day][usize::from(n)];
            Timestamp { seconds, nanos, precision }
        });
        let facts =
            prop_oneof!["(perm=[ad]{1,2};)?(Unique=[0-9A-F]{0,4};)?(x=[a-z]?;)?", "[a-z=;]{0,20}"];
        (
            proptest::collection::vec(any::<u8>(), 0..40),
            kind,
            proptest::option::of(0..=i64::MAX as u64),
            proptest::option::of(time),
            proptest::option::of(0..=0o7777_u16),
            proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)),
            proptest::option::of(facts),
        )
            .prop_map(|(name, kind, size, mtime, mode, target, facts)| Entry {
                name: name.into(),
                kind,
                size,
                mtime,
                mode,
                target: target.map(Into::into),
                facts: facts.map(|facts| facts.into_bytes().into()),
            })
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(all in proptest::collection::vec(entry(), 0..60)) {
            let mut packed = Entries::default();
            for entry in &all {
                prop_assert!(packed.push(entry));
            }
            let mut copied = Entries::default();
            for index in (0..packed.len()).rev() {
                copied.push_from(&packed, index);
            }
            for (index, entry) in all.iter().enumerate() {
                prop_assert_eq!(packed.get(index), Some(entry.clone()));
                prop_assert_eq!(packed.name(index), &*entry.name);
                prop_assert_eq!(copied.get(all.len() - 1 - index), Some(entry.clone()));
                let brief = packed.brief(index).unwrap();
                prop_assert_eq!((brief.kind, brief.mode), (entry.kind, entry.mode));
                prop_assert_eq!(brief.mtime, entry.mtime);
            }
        }
    }

    #[test]
    fn a_name_takes_little() {
        assert_eq!(size_of::<Record>(), 32);
        let mut packed = Entries::default();
        for index in 0..10_000 {
            let line = format!(
                "modify=20261124120000;perm=adfrw;size=1;type=file;unique=1DU{index:05X};\
                 UNIX.group=0;UNIX.groupname=root;UNIX.mode=0644;UNIX.owner=0; file-{index:05}.txt"
            );
            let super::super::Line::Entry(entry) = super::super::parse_mlsd(line.as_bytes()) else {
                panic!("{line}");
            };
            assert!(packed.push(&entry));
        }
        packed.shrink();
        // The record, 14 bytes of name and 8 of `unique`.
        assert_eq!(packed.bytes.len() + packed.records.len() * 32, 10_000 * (32 + 14 + 8));
        assert_eq!(packed.forms.len(), 1);
    }

    #[test]
    fn what_is_longer_than_a_line_is_refused() {
        let long = Entry { name: vec![b'x'; 70_000].into(), ..Entry::new(b"", Kind::File) };
        let mut packed = Entries::default();
        assert!(!packed.push(&long));
        assert!(packed.is_empty());
    }

    #[test]
    fn minutes_move_and_seconds_stay() {
        let mut packed = Entries::default();
        for precision in [Precision::Second, Precision::Minute] {
            let mtime = Some(Timestamp { seconds: 7200, nanos: 0, precision });
            assert!(packed.push(&Entry { mtime, ..Entry::new(b"x", Kind::File) }));
        }
        packed.move_minutes(60 * MINUTE);
        let seconds: Vec<_> = packed.iter().map(|entry| entry.mtime.unwrap().seconds).collect();
        assert_eq!(seconds, [7200, 3600]);
    }
}
