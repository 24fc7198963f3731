//! What one directory may hold: for each name all states that are possible.
//!
//! An operation that succeeded leaves one state. One that failed may have happened or not, so it
//! adds states. What a read showed does not take states away: a file whose `fsync` failed is shown
//! as it is on the local disk, but nothing was promised of it.

use std::collections::BTreeMap;

use super::random::pattern;

/// The bytes of a file: pieces written one after the other, each made from its seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pieces: Vec<(u64, usize)>,
}

impl Content {
    pub(crate) fn new(seed: u64, length: usize) -> Self {
        Self { pieces: vec![(seed, length)] }
    }

    pub(crate) fn and(&self, seed: u64, length: usize) -> Self {
        let mut pieces = self.pieces.clone();
        pieces.push((seed, length));
        Self { pieces }
    }

    pub(crate) fn length(&self) -> usize {
        self.pieces.iter().map(|(_, length)| length).sum()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.length() + 8);
        for (seed, length) in &self.pieces {
            pattern(*seed, *length, &mut bytes);
        }
        bytes
    }
}

/// What may be there under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Absent,
    Whole(Content),
    /// The first bytes, `least` or more: of a file whose writing failed, and that replaced nothing.
    Part {
        of: Content,
        least: usize,
    },
    /// It was wrong, and that was reported: once is enough.
    Anything,
}

impl State {
    /// Is this what was found? `bytes` were asked for as `length` bytes at `offset`.
    fn allows(&self, bytes: &[u8], offset: usize, length: usize) -> bool {
        let (of, least) = match self {
            Self::Absent => return false,
            Self::Anything => return true,
            Self::Whole(content) => (content, content.length()),
            Self::Part { of, least } => (of, *least),
        };
        let end = offset.saturating_add(bytes.len());
        // Fewer bytes than asked for: the file ends there.
        let may_end = bytes.len() == length || end >= least || offset >= least;
        let wanted = of.bytes();
        let same = bytes.is_empty() || wanted.get(offset..end) == Some(bytes);
        same && may_end
    }

    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Absent => "absent".into(),
            Self::Anything => "anything, after a fault that was reported".into(),
            Self::Whole(content) => {
                format!("{} bytes in {:?}", content.length(), lengths(content))
            }
            Self::Part { of, least } => format!("{least} to {} bytes of it", of.length()),
        }
    }
}

fn lengths(content: &Content) -> Vec<usize> {
    content.pieces.iter().map(|(_, length)| *length).collect()
}

/// A rename that failed: the content must be under one of the names.
#[derive(Clone, Debug)]
pub(crate) struct Move {
    pub(crate) from: String,
    pub(crate) to: String,
    content: Content,
}

/// One directory.
#[derive(Debug, Default)]
pub(crate) struct Model {
    files: BTreeMap<String, Vec<State>>,
    moves: Vec<Move>,
}

impl Model {
    pub(crate) fn states(&self, name: &str) -> Vec<State> {
        self.files.get(name).cloned().unwrap_or_else(|| vec![State::Absent])
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.files.keys()
    }

    pub(crate) fn must_be_there(&self, name: &str) -> bool {
        !self.states(name).contains(&State::Absent)
    }

    pub(crate) fn must_be_absent(&self, name: &str) -> bool {
        self.states(name).iter().all(|state| *state == State::Absent)
    }

    /// From now on the name is changed: what was known of renames is over.
    pub(crate) fn touch(&mut self, name: &str) {
        self.moves.retain(|moved| moved.from != name && moved.to != name);
    }

    pub(crate) fn set(&mut self, name: &str, states: Vec<State>) {
        self.files.insert(name.to_owned(), states);
    }

    pub(crate) fn add(&mut self, name: &str, more: impl IntoIterator<Item = State>) {
        let mut states = self.states(name);
        for state in more {
            if !states.contains(&state) {
                states.push(state);
            }
        }
        self.set(name, states);
    }

    /// A write failed before the end, so that a part may have been sent as if it were all.
    pub(crate) fn admit_cut(&mut self, name: &str) {
        let wholes: Vec<Content> = self
            .states(name)
            .into_iter()
            .filter_map(|state| match state {
                State::Whole(content) => Some(content),
                _ => None,
            })
            .collect();
        // What was there before the last piece stays.
        self.add(
            name,
            wholes.into_iter().map(|of| {
                let (_, last) = of.pieces.last().copied().unwrap_or_default();
                State::Part { least: of.length() - last, of }
            }),
        );
    }

    /// Its state was found to be a wrong one.
    pub(crate) fn give_up(&mut self, name: &str) {
        self.touch(name);
        self.add(name, [State::Absent, State::Anything]);
    }

    pub(crate) fn add_move(&mut self, from: &str, to: &str) {
        if let [State::Whole(content)] = self.states(from).as_slice() {
            let (from, to) = (from.to_owned(), to.to_owned());
            self.moves.push(Move { from, to, content: content.clone() });
        }
    }

    /// May these bytes be what a read of the name gives?
    pub(crate) fn allows(&self, name: &str, bytes: &[u8], offset: usize, length: usize) -> bool {
        self.states(name).iter().any(|state| state.allows(bytes, offset, length))
    }

    pub(crate) fn describe(&self, name: &str) -> String {
        let states: Vec<String> = self.states(name).iter().map(State::describe).collect();
        states.join(", or ")
    }

    /// Compares with what is there: what is wrong. `found` reads a file.
    pub(crate) fn check(
        &self,
        names: &[String],
        found: impl Fn(&str) -> Option<Vec<u8>>,
    ) -> Vec<String> {
        let mut wrong = Vec::new();
        for name in names.iter().filter(|name| !self.files.contains_key(*name)) {
            wrong.push(format!("{name} is there, and nobody made it"));
        }
        for name in self.files.keys() {
            let is_right = match found(name) {
                None => self.states(name).contains(&State::Absent),
                Some(bytes) => self.allows(name, &bytes, 0, usize::MAX),
            };
            if !is_right {
                let what = found(name).map_or("absent".into(), |bytes| self.compare(name, &bytes));
                wrong.push(format!("{name} is {what}; allowed: {}", self.describe(name)));
            }
        }
        for Move { from, to, content } in &self.moves {
            let holds = |name: &str| found(name).is_some_and(|bytes| bytes == content.bytes());
            if !holds(from) && !holds(to) {
                wrong.push(format!(
                    "{} bytes are gone: neither in {from} nor in {to}, after a rename that failed",
                    content.length()
                ));
            }
        }
        wrong
    }

    /// What the bytes are like, for people to read.
    pub(crate) fn compare(&self, name: &str, bytes: &[u8]) -> String {
        let mut text = format!("{} bytes", bytes.len());
        for state in self.states(name) {
            let (State::Whole(content) | State::Part { of: content, .. }) = state else { continue };
            let wanted = content.bytes();
            let same = bytes.iter().zip(&wanted).take_while(|(one, other)| one == other).count();
            text.push_str(&format!("; the first {same} are those of the {}", wanted.len()));
        }
        text
    }
}
