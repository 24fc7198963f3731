//! What a sequence is made of, and how one is drawn.
//!
//! Arguments are indices that are taken modulo what there is when an operation runs, so that a
//! sequence stays valid when others are deleted from it.

use super::random::Random;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Open {
        path: u8,
        how: u8,
    },
    /// Somewhere, or beyond the end.
    Write {
        handle: u8,
        at: u16,
        length: u16,
    },
    Append {
        handle: u8,
        length: u16,
    },
    /// Large enough to be sent while it is written.
    AppendMuch {
        handle: u8,
    },
    Read {
        handle: u8,
        at: u16,
        length: u16,
    },
    Fsync {
        handle: u8,
    },
    Close {
        handle: u8,
    },
    Truncate {
        path: u8,
        size: u16,
    },
    Mkdir {
        path: u8,
    },
    Rmdir {
        path: u8,
    },
    Unlink {
        path: u8,
    },
    Rename {
        from: u8,
        to: u8,
    },
    SetMtime {
        path: u8,
    },
    Chmod {
        path: u8,
        mode: u8,
    },
    List {
        path: u8,
    },
    Look {
        path: u8,
    },
    /// The other client.
    TheirPut {
        path: u8,
        length: u16,
    },
    TheirDelete {
        path: u8,
    },
    TheirRename {
        from: u8,
        to: u8,
    },
    /// The mount ends properly and a new one begins.
    Remount,
    /// The process is killed and a new mount begins.
    Kill,
    Drain,
    /// What goes wrong during the next operation.
    Fault {
        what: u8,
        on: u8,
        nth: u8,
        times: u8,
    },
}

/// What may happen in a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// Only we are there, and all goes well.
    Quiet,
    Others,
    Faults,
    All,
}

impl Mood {
    pub fn of(index: usize) -> Self {
        [Self::Quiet, Self::Others, Self::Faults, Self::All][index % 4]
    }

    fn has_others(self) -> bool {
        matches!(self, Self::Others | Self::All)
    }

    fn has_faults(self) -> bool {
        matches!(self, Self::Faults | Self::All)
    }
}

/// Directories and files of the same names, one below the other, so that they collide.
pub const PATHS: [&str; 14] = [
    "a",
    "b.t",
    "a/a",
    "a/b.t",
    "b.t/a",
    "b.t/b.t",
    "a/a/a",
    "a/a/b.t",
    "a/b.t/a",
    "a/b.t/b.t",
    "b.t/a/a",
    "b.t/a/b.t",
    "b.t/b.t/a",
    "b.t/b.t/b.t",
];

pub fn draw(random: &mut Random, mood: Mood) -> Vec<Op> {
    let count = 20 + random.below(15);
    let mut ops = Vec::new();
    // A tree to begin with.
    for _ in 0..4 {
        ops.push(Op::Mkdir { path: path(random) });
        ops.push(Op::TheirPut { path: path(random), length: length(random) });
    }
    while ops.len() < count + 8 {
        if mood.has_faults() && random.below(6) == 0 {
            ops.push(Op::Fault {
                what: byte(random),
                on: byte(random),
                nth: 1 + random.below(4) as u8,
                times: 1 + random.below(3) as u8,
            });
        }
        ops.push(operation(random, mood));
        if mood.has_faults() && random.below(12) == 0 {
            // What could not be sent must outlive its process: drawn on purpose, as it takes three.
            let (what, on) = (13 + random.below(7) as u8, 1);
            ops.push(Op::Append { handle: byte(random), length: length(random) });
            ops.push(Op::Fault { what, on, nth: 1, times: 9 });
            ops.push(Op::Close { handle: byte(random) });
            ops.push([Op::Kill, Op::Kill, Op::Look { path: path(random) }][random.below(3)]);
        }
    }
    ops
}

fn operation(random: &mut Random, mood: Mood) -> Op {
    let handle = byte(random);
    match random.below(if mood.has_others() { 56 } else { 48 }) {
        0..=8 => Op::Open { path: path(random), how: byte(random) },
        9..=13 => Op::Write { handle, at: at(random), length: length(random) },
        14..=17 => Op::Append { handle, length: length(random) },
        18..=20 => Op::Read { handle, at: at(random), length: length(random) },
        21..=22 => Op::Fsync { handle },
        23..=27 => Op::Close { handle },
        28..=29 => Op::Truncate { path: path(random), size: length(random) },
        30..=31 => Op::Mkdir { path: path(random) },
        32 => Op::Rmdir { path: path(random) },
        33..=35 => Op::Unlink { path: path(random) },
        36..=39 => Op::Rename { from: path(random), to: path(random) },
        40 => Op::SetMtime { path: path(random) },
        41 => Op::Chmod { path: path(random), mode: byte(random) },
        42 => Op::List { path: path(random) },
        43..=44 => Op::Look { path: path(random) },
        45 => [Op::Remount, Op::Kill, Op::Drain][random.below(3)],
        46 if random.below(8) == 0 => Op::AppendMuch { handle },
        46..=47 => Op::Look { path: path(random) },
        48..=51 => Op::TheirPut { path: path(random), length: length(random) },
        52..=53 => Op::TheirDelete { path: path(random) },
        _ => Op::TheirRename { from: path(random), to: path(random) },
    }
}

fn byte(random: &mut Random) -> u8 {
    random.below(256) as u8
}

/// The upper levels more often.
fn path(random: &mut Random) -> u8 {
    let levels = [2, 2, 6, 6, 6, 14];
    let count = levels[random.below(levels.len())];
    random.below(count) as u8
}

fn at(random: &mut Random) -> u16 {
    random.below(1 << 16) as u16
}

fn length(random: &mut Random) -> u16 {
    let most = [1, 10, 300, 6000][random.below(4)];
    random.below(most) as u16
}
