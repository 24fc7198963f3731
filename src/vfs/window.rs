//! Which bytes of a file are at hand: the last stretch that a download brought.
//!
//! Reads come out of order (FUSE_ASYNC_READ, several loops), so the window keeps some bytes
//! behind the newest. It only decides and remembers; the reader does the I/O.

/// Room for the bytes of one stretch. The kernel has at most one read-ahead request of 128 KiB in
/// flight on each of our loops, about 16: 2 MiB may be asked for out of order, and as much again
/// lets the tail be moved to the front only every 2 MiB, so that moving costs at most one more
/// copy of each byte.
const CAPACITY: usize = 4 * 1024 * 1024;

/// How much is kept when the room is used up, and the most that one read can be given.
pub(crate) const TAIL: usize = 2 * 1024 * 1024;

/// The largest gap that is read through instead of opening a new transfer. A new one costs 3 to 4
/// round trips, 120 ms and more on a line where that matters; 1 MiB passes in that time at
/// 70 Mbit/s.
const GAP: u64 = 1024 * 1024;

/// What to do for a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// All of it is at hand.
    Serve,
    /// Read on from the end of the window until it is.
    ReadThrough,
    /// Begin a new stretch at the offset.
    Reopen,
}

/// One stretch of a file.
#[derive(Debug, Default)]
pub(crate) struct Window {
    /// The offset in the file of the first byte of `bytes`.
    start: u64,
    bytes: Vec<u8>,
    /// How many of `bytes` are filled.
    filled: usize,
}

impl Window {
    /// The offset after the last byte at hand: where a transfer goes on.
    pub(crate) fn end(&self) -> u64 {
        self.start + self.filled as u64
    }

    /// What to do for `length` bytes at `offset`.
    pub(crate) fn plan(&self, offset: u64, length: usize) -> Plan {
        let end = self.end();
        if offset < self.start || offset > end.saturating_add(GAP) {
            Plan::Reopen
        } else if offset.saturating_add(length as u64) <= end {
            Plan::Serve
        } else {
            Plan::ReadThrough
        }
    }

    /// Forgets everything; the next byte is the one at `offset`.
    pub(crate) fn restart(&mut self, offset: u64) {
        self.start = offset;
        self.filled = 0;
    }

    /// The bytes at `offset`, as many of `length` as are at hand.
    pub(crate) fn bytes(&self, offset: u64, length: usize) -> &[u8] {
        let Some(from) = offset.checked_sub(self.start).and_then(|from| usize::try_from(from).ok())
        else {
            return &[];
        };
        let to = from.saturating_add(length).min(self.filled);
        self.bytes.get(from..to).unwrap_or_default()
    }

    /// Room for the next bytes, for one read of the socket. `expected` is what may still come:
    /// a small file gets a small buffer.
    pub(crate) fn room(&mut self, expected: u64) -> &mut [u8] {
        let wanted = usize::try_from(expected).unwrap_or(CAPACITY).clamp(1, CAPACITY);
        if self.filled == CAPACITY {
            let cut = CAPACITY - TAIL;
            self.bytes.copy_within(cut.., 0);
            self.start += cut as u64;
            self.filled = TAIL;
        }
        let needed = (self.filled + wanted).min(CAPACITY);
        if self.bytes.len() < needed {
            self.bytes.resize(needed, 0);
        }
        let filled = self.filled;
        self.bytes.get_mut(filled..needed).unwrap_or_default()
    }

    /// `count` bytes were put into the room.
    pub(crate) fn filled(&mut self, count: usize) {
        self.filled = (self.filled + count).min(self.bytes.len());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fill(window: &mut Window, count: usize) {
        let mut left = count;
        while left > 0 {
            let at = window.end();
            let room = window.room(left as u64);
            let take = room.len().min(left);
            for (index, byte) in room[..take].iter_mut().enumerate() {
                *byte = value(at + index as u64);
            }
            window.filled(take);
            left -= take;
        }
    }

    fn value(offset: u64) -> u8 {
        (offset.wrapping_mul(2654435761) >> 13) as u8
    }

    #[test]
    fn reads_in_order_and_a_little_out_of_it_need_no_new_transfer() {
        let mut window = Window::default();
        assert_eq!(window.plan(0, 100), Plan::ReadThrough);
        fill(&mut window, 1000);
        assert_eq!(window.plan(0, 1000), Plan::Serve);
        assert_eq!(window.plan(900, 200), Plan::ReadThrough);
        assert_eq!(window.plan(1000 + GAP, 1), Plan::ReadThrough);
        assert_eq!(window.plan(1001 + GAP, 1), Plan::Reopen);
        window.restart(5000);
        assert_eq!(window.plan(4999, 1), Plan::Reopen);
        assert_eq!(window.bytes(4999, 10), b"");
    }

    #[test]
    fn the_tail_stays_when_the_room_is_used_up() {
        let mut window = Window::default();
        fill(&mut window, CAPACITY + 1);
        let end = window.end();
        assert_eq!(window.plan(end - TAIL as u64, TAIL), Plan::Serve);
        assert_eq!(window.plan(0, 1), Plan::Reopen);
        assert_eq!(window.bytes.len(), CAPACITY);
    }

    proptest! {
        /// Whatever is served is what was filled in at that offset.
        #[test]
        fn served_bytes_are_the_right_ones(
            start in 0u64..1 << 40,
            fills in proptest::collection::vec(1usize..3_000_000, 1..6),
            back in 0u64..5_000_000,
            length in 1usize..200_000,
        ) {
            let mut window = Window::default();
            window.restart(start);
            for count in fills {
                fill(&mut window, count);
            }
            let offset = window.end().saturating_sub(back);
            if window.plan(offset, length) == Plan::Serve {
                let bytes = window.bytes(offset, length);
                prop_assert_eq!(bytes.len(), length);
                prop_assert!(bytes.iter().zip(offset..).all(|(byte, at)| *byte == value(at)));
            }
        }
    }
}
