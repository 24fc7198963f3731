//! Which bytes of a file are at hand: the last stretches that downloads brought, a few of them.
//!
//! Reads come out of order (FUSE_ASYNC_READ, several loops), so a window keeps some bytes behind
//! the newest; and they come from several places at once (a player and the index at the end of
//! its film, an archive and its directory), so a reader has several windows. This file only
//! decides and remembers; the reader does the I/O.

/// The most room for the bytes of one stretch. The kernel has at most a few read-ahead requests
/// of 1 MiB in flight: 2 MiB may be asked for out of order, and as much again lets the tail be
/// moved to the front only every 2 MiB, so that moving costs at most one more copy of each byte.
const CAPACITY: usize = 4 * 1024 * 1024;

/// How much is kept when the room is used up, and the most that one read can be given.
pub(crate) const TAIL: usize = 2 * 1024 * 1024;

/// The room that a window begins with, and the most that is taken from the socket for a read of
/// less while nobody knows whether more will be wanted: what a server sends before it hears of us
/// again (the first window of TCP, 64 KiB).
const BLOCK: usize = 64 * 1024;

/// The largest gap that a sequential reader reads through instead of opening a new transfer. A
/// new one costs 3 to 4 round trips, 120 ms and more on a line where that matters; 1 MiB passes
/// in that time at 70 Mbit/s.
const GAP: u64 = 1024 * 1024;

/// The same for a reader that has not gone on once: two TCP windows, which are on their way
/// whether wanted or not.
const SMALL_GAP: u64 = 128 * 1024;

/// The most places of one file that are read at once: a program with three (beginning, middle,
/// end) and one that jumps about. Each may hold a connection as long as nobody else needs it.
pub(crate) const MOST: usize = 4;

/// What to do for a read, and with which window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// All of it is at hand.
    Serve(usize),
    /// Read on from the end of the window until it is.
    ReadThrough(usize),
    /// Begin a new stretch at the offset: in a new window, or in place of the one named.
    Open(Option<usize>),
}

/// Decides for `length` bytes at `offset`. Windows are ordered by no rule; `used` tells which was
/// used last.
pub(crate) fn plan(windows: &[Window], offset: u64, length: usize) -> Plan {
    let end = offset.saturating_add(length as u64);
    let with = |wanted: &dyn Fn(&Window) -> bool| windows.iter().position(wanted);
    if let Some(index) = with(&|window| window.start <= offset && end <= window.end()) {
        return Plan::Serve(index);
    }
    let near = windows.iter().enumerate().filter(|(_, window)| window.reaches(offset));
    if let Some((index, _)) = near.min_by_key(|(_, window)| offset.saturating_sub(window.end())) {
        return Plan::ReadThrough(index);
    }
    if windows.len() < MOST {
        return Plan::Open(None);
    }
    // One that was read once and never again first; of those the oldest.
    let worst = windows.iter().enumerate().min_by_key(|(_, window)| (window.goes_on, window.used));
    Plan::Open(worst.map(|(index, _)| index))
}

/// One stretch of a file.
#[derive(Debug, Default)]
pub(crate) struct Window {
    /// The offset in the file of the first byte of `bytes`.
    start: u64,
    bytes: Vec<u8>,
    /// How many of `bytes` are filled.
    filled: usize,
    /// The reader went on from the end at least once: it is not just a look.
    goes_on: bool,
    /// Counts uses of all windows of the reader.
    used: u64,
    /// Tells the windows of one reader apart for ever.
    number: u64,
}

impl Window {
    /// An empty one; the next byte is the one at `offset`.
    pub(crate) fn at(offset: u64, number: u64) -> Self {
        Self { start: offset, number, ..Self::default() }
    }

    /// The offset after the last byte at hand: where a transfer goes on.
    pub(crate) fn end(&self) -> u64 {
        self.start + self.filled as u64
    }

    /// Which of the reader's windows: names its parked download.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Has the reader gone on from what was fetched first?
    pub(crate) fn goes_on(&self) -> bool {
        self.goes_on
    }

    /// The reader wants more of it.
    pub(crate) fn go_on(&mut self) {
        self.goes_on = true;
    }

    /// The `count`th use of a window of this reader.
    pub(crate) fn note_use(&mut self, count: u64) {
        self.used = count;
    }

    /// Is the offset in the window, or so close behind that reading through is better than opening
    /// a new transfer?
    fn reaches(&self, offset: u64) -> bool {
        let gap = if self.goes_on { GAP } else { SMALL_GAP };
        self.start <= offset && offset <= self.end().saturating_add(gap)
    }

    /// Would a sequential reader come here next?
    pub(crate) fn is_near(&self, offset: u64) -> bool {
        self.end() <= offset && offset <= self.end().saturating_add(GAP)
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

    /// Room for the next bytes, for one read of the socket, when at least `needed` are wanted and
    /// `left` may still come. Somebody who only looks gets a small buffer; the more is read, the
    /// larger it becomes.
    pub(crate) fn room(&mut self, needed: u64, left: u64) -> &mut [u8] {
        if self.filled == CAPACITY {
            let cut = CAPACITY - TAIL;
            self.bytes.copy_within(cut.., 0);
            self.start += cut as u64;
            self.filled = TAIL;
        }
        let small = usize::try_from(needed).unwrap_or(CAPACITY).max(BLOCK);
        let wanted = if self.goes_on { small.max(self.filled) } else { small };
        let wanted = wanted.min(usize::try_from(left).unwrap_or(CAPACITY)).max(1);
        let to = self.filled.saturating_add(wanted).min(CAPACITY);
        if self.bytes.len() < to {
            // Exactly: a vector that doubles by itself would take up to twice of what is used.
            self.bytes.reserve_exact(to - self.bytes.len());
            self.bytes.resize(to, 0);
        }
        let filled = self.filled;
        self.bytes.get_mut(filled..to).unwrap_or_default()
    }

    /// `count` bytes were put into the room.
    pub(crate) fn filled(&mut self, count: usize) {
        self.filled = (self.filled + count).min(self.bytes.len());
    }

    /// How much memory it takes.
    pub(crate) fn memory(&self) -> usize {
        self.bytes.capacity()
    }

    /// Gives the memory back; where it ends is still known, so that reading goes on there.
    pub(crate) fn forget(&mut self) {
        self.start = self.end();
        self.filled = 0;
        self.bytes = Vec::new();
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
            let room = window.room(left as u64, u64::MAX);
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

    fn window(offset: u64, count: usize, goes_on: bool, used: u64) -> Window {
        let mut window = Window::at(offset, used);
        fill(&mut window, count);
        window.goes_on = goes_on;
        window.note_use(used);
        window
    }

    #[test]
    fn reads_in_order_and_a_little_out_of_it_need_no_new_transfer() {
        assert_eq!(plan(&[], 0, 100), Plan::Open(None));
        let mut all = [window(0, 1000, true, 1)];
        assert_eq!(plan(&all, 0, 1000), Plan::Serve(0));
        assert_eq!(plan(&all, 900, 200), Plan::ReadThrough(0));
        assert_eq!(plan(&all, 1000 + GAP, 1), Plan::ReadThrough(0));
        assert_eq!(plan(&all, 1001 + GAP, 1), Plan::Open(None));
        all[0] = window(5000, 0, true, 1);
        assert_eq!(plan(&all, 4999, 1), Plan::Open(None));
        assert_eq!(all[0].bytes(4999, 10), b"");
    }

    #[test]
    fn whoever_only_looks_fetches_little() {
        let mut window = window(1 << 30, 0, false, 1);
        assert_eq!(window.room(4096, u64::MAX).len(), BLOCK);
        fill(&mut window, BLOCK);
        assert_eq!(plan(std::slice::from_ref(&window), (1 << 30) + 300_000, 1), Plan::Open(None));
        assert!(window.memory() <= BLOCK);
        window.go_on();
        fill(&mut window, 3 * BLOCK);
        assert_eq!(window.room(4096, u64::MAX).len(), 4 * BLOCK);
        window.forget();
        assert_eq!((window.end(), window.memory()), ((1 << 30) + 4 * BLOCK as u64, 0));
    }

    #[test]
    fn a_look_gives_way_before_a_reader_and_the_oldest_first() {
        let at = |n: u64| n * 100 * GAP;
        let mut all = vec![
            window(at(1), 10, true, 1),
            window(at(2), 10, false, 3),
            window(at(3), 10, false, 2),
            window(at(4), 10, true, 4),
        ];
        assert_eq!(plan(&all, at(9), 1), Plan::Open(Some(2)));
        all[2].go_on();
        assert_eq!(plan(&all, at(9), 1), Plan::Open(Some(1)));
        all[1].go_on();
        assert_eq!(plan(&all, at(9), 1), Plan::Open(Some(0)));
        assert_eq!(plan(&all, at(4) + 10, 1), Plan::ReadThrough(3));
    }

    #[test]
    fn the_tail_stays_when_the_room_is_used_up() {
        let all = [window(0, CAPACITY + 1, true, 1)];
        let end = all[0].end();
        assert_eq!(plan(&all, end - TAIL as u64, TAIL), Plan::Serve(0));
        assert_eq!(plan(&all, 0, 1), Plan::Open(None));
        assert_eq!(all[0].memory(), CAPACITY);
    }

    proptest! {
        /// Whatever is served is what was filled in at that offset.
        #[test]
        fn served_bytes_are_the_right_ones(
            start in 0u64..1 << 40,
            fills in proptest::collection::vec((1usize..3_000_000, any::<bool>()), 1..6),
            back in 0u64..5_000_000,
            length in 1usize..200_000,
        ) {
            let mut window = Window::at(start, 0);
            for (count, goes_on) in fills {
                window.goes_on |= goes_on;
                fill(&mut window, count);
            }
            let offset = window.end().saturating_sub(back);
            if plan(std::slice::from_ref(&window), offset, length) == Plan::Serve(0) {
                let bytes = window.bytes(offset, length);
                prop_assert_eq!(bytes.len(), length);
                prop_assert!(bytes.iter().zip(offset..).all(|(byte, at)| *byte == value(at)));
            }
        }

        /// Any order of reads: each plan can be carried out, brings the bytes asked for, and no
        /// more windows, bytes or memory than are bounded.
        #[test]
        fn every_plan_leads_to_the_bytes(
            reads in proptest::collection::vec((0u64..64 << 20, 1usize..300_000), 1..60),
        ) {
            let mut all: Vec<Window> = Vec::new();
            for (count, (offset, length)) in reads.into_iter().enumerate() {
                let index = match plan(&all, offset, length) {
                    Plan::Serve(index) => index,
                    Plan::ReadThrough(index) => {
                        all[index].go_on();
                        index
                    }
                    Plan::Open(Some(index)) => {
                        all[index] = Window::at(offset, count as u64);
                        index
                    }
                    Plan::Open(None) => {
                        all.push(Window::at(offset, count as u64));
                        all.len() - 1
                    }
                };
                let window = &mut all[index];
                let end = offset + length as u64;
                let missing = end.saturating_sub(window.end());
                prop_assert!(missing <= length as u64 + GAP);
                fill(window, usize::try_from(missing).unwrap());
                window.note_use(count as u64);
                prop_assert!(window.memory() <= CAPACITY);
                prop_assert_eq!(window.bytes(offset, length).len(), length);
                prop_assert!(all.len() <= MOST);
            }
        }
    }
}
