//! Many cells, each of which waits most of its time: run side by side.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::faults::What;

/// What may happen at any command.
pub const FAULTS: &[What] = &[
    What::Reset,
    What::Close,
    What::Silence,
    What::Reply(421, "Service not available"),
    What::Reply(450, "Busy"),
    What::Reply(500, "What?"),
    What::Reply(550, "No"),
    What::Garbage(b"\x00\xff\xfe\r\n"),
    What::Garbage(b"no code at all\r\n"),
    What::Garbage(b"999 strange\r\n"),
    What::EndlessReply,
    What::CutReply(2),
    What::LoseReply,
    What::DoubleReply,
    What::PreReply(226, "for another command"),
    What::PreReply(550, "for another command"),
    What::SplitReply,
    What::HoldReply(Duration::from_millis(30)),
    What::Delay(Duration::from_millis(30)),
];

/// Most of them wait most of the time.
const AT_ONCE: usize = 24;

/// A machine that is so many times slower than it was thought to be still gives the right answers.
const SLOWER: [u32; 2] = [8, 32];

/// Checks every cell with this patience for one reply. A cell that is wrong is checked again, alone
/// and with more patience: what remains is not for want of time.
pub fn check<Cell: Sync>(
    cells: &[Cell],
    patience: Duration,
    check: impl Fn(&Cell, Duration) -> Result<(), String> + Sync,
) {
    let attempt = |cell: &Cell, patience| {
        catch_unwind(AssertUnwindSafe(|| check(cell, patience)))
            .unwrap_or_else(|_| Err("a panic, see above".into()))
    };
    let (next, doubtful) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(cell) = cells.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(why) = attempt(cell, patience) {
                        doubtful.lock().unwrap().push((cell, why));
                    }
                }
            });
        }
    });
    let doubtful = doubtful.into_inner().unwrap();
    println!("{} cells, {} of them twice", cells.len(), doubtful.len());
    let mut wrong = Vec::new();
    for (cell, first) in doubtful {
        let again = |slower| attempt(cell, patience * slower);
        let wrongs: Vec<String> =
            SLOWER.into_iter().map_while(|slower| again(slower).err()).collect();
        if wrongs.len() == SLOWER.len() {
            wrong.push(format!("{first}; then {}", wrongs.join("; then ")));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cells:\n{}", wrong.len(), cells.len(), wrong.join("\n"));
}
