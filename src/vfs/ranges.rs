//! Sets of byte ranges: which bytes of a file are here, which are changed.
//!
//! Pure.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Ranges that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<(u64, u64)>", into = "Vec<(u64, u64)>")]
pub(crate) struct Ranges {
    /// The end of each range by its start.
    ends: BTreeMap<u64, u64>,
}

impl Ranges {
    /// Adds a range.
    pub(crate) fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let Range { mut start, mut end } = range;
        // Those that overlap or touch begin no later than the end, and are found from there.
        while let Some((&begin, &until)) = self.ends.range(..=end).next_back() {
            if until < start {
                break;
            }
            self.ends.remove(&begin);
            start = start.min(begin);
            end = end.max(until);
        }
        self.ends.insert(start, end);
    }

    /// Takes away everything from `length` on.
    pub(crate) fn cut(&mut self, length: u64) {
        self.ends.split_off(&length);
        if let Some(mut last) = self.ends.last_entry()
            && *last.get() > length
        {
            *last.get_mut() = length;
        }
    }

    pub(crate) fn clear(&mut self) {
        self.ends.clear();
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ends.iter().map(|(start, end)| *start..*end)
    }

    /// How many bytes are in it.
    #[cfg(test)]
    fn total(&self) -> u64 {
        self.iter().map(|range| range.end - range.start).sum()
    }

    /// The first byte of the first range.
    pub(crate) fn first(&self) -> Option<u64> {
        self.ends.keys().next().copied()
    }

    /// Up to which offset everything from 0 on is in it.
    pub(crate) fn prefix(&self) -> u64 {
        self.ends.get(&0).copied().unwrap_or(0)
    }

    /// The part of `range` that comes first and is not in the set.
    pub(crate) fn first_gap(&self, range: Range<u64>) -> Option<Range<u64>> {
        let mut start = range.start;
        if let Some((_, &end)) = self.ends.range(..=start).next_back() {
            start = start.max(end);
        }
        let end = self.ends.range(start..).next().map_or(range.end, |(next, _)| *next);
        let end = end.min(range.end);
        (start < end).then_some(start..end)
    }

    /// All parts of `range` that are not in the set.
    pub(crate) fn gaps(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut at = range.start;
        while let Some(gap) = self.first_gap(at..range.end) {
            at = gap.end;
            gaps.push(gap);
        }
        gaps
    }
}

impl From<Vec<(u64, u64)>> for Ranges {
    fn from(pairs: Vec<(u64, u64)>) -> Self {
        let mut ranges = Self::default();
        for (start, end) in pairs {
            ranges.insert(start..end);
        }
        ranges
    }
}

impl From<Ranges> for Vec<(u64, u64)> {
    fn from(ranges: Ranges) -> Self {
        ranges.ends.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_touches_becomes_one() {
        let mut ranges = Ranges::default();
        ranges.insert(0..3);
        ranges.insert(6..9);
        ranges.insert(3..6);
        assert!(ranges.iter().eq(std::iter::once(0..9)));
        assert_eq!((ranges.prefix(), ranges.total()), (9, 9));
    }

    #[derive(Clone, Debug)]
    enum Op {
        Insert(u64, u64),
        Cut(u64),
    }

    proptest! {
        /// The same as a table of bits.
        #[test]
        fn it_is_a_set_of_bytes(
            ops in proptest::collection::vec(
                prop_oneof![
                    4 => (0u64..64, 0u64..20).prop_map(|(at, length)| Op::Insert(at, length)),
                    1 => (0u64..80).prop_map(Op::Cut),
                ],
                0..30,
            ),
            window in (0u64..90, 0u64..40),
        ) {
            let mut ranges = Ranges::default();
            let mut bits = [false; 100];
            for op in ops {
                match op {
                    Op::Insert(at, length) => {
                        ranges.insert(at..at + length);
                        (at..at + length).for_each(|bit| bits[bit as usize] = true);
                    }
                    Op::Cut(length) => {
                        ranges.cut(length);
                        (length..100).for_each(|bit| bits[bit as usize] = false);
                    }
                }
            }
            let mut last = None;
            for range in ranges.iter() {
                prop_assert!(range.start < range.end && last < Some(range.start));
                last = Some(range.end);
            }
            let (start, length) = window;
            let gaps = ranges.gaps(start..(start + length).min(100));
            for bit in start..(start + length).min(100) {
                let in_gap = gaps.iter().any(|gap| gap.contains(&bit));
                prop_assert_eq!(in_gap, !bits[bit as usize]);
            }
            prop_assert_eq!(ranges.total(), bits.iter().filter(|bit| **bit).count() as u64);
            let pairs: Vec<(u64, u64)> = ranges.clone().into();
            prop_assert_eq!(Ranges::from(pairs), ranges);
        }
    }
}
