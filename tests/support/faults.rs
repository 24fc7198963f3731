//! What goes wrong on purpose, and when.
//!
//! Decides only; `session` and `transfer` carry it out. Counting starts when
//! the fault is set, so `nth: 1` is the next such command of any session.

use std::time::Duration;

/// One thing that goes wrong.
#[derive(Clone, Debug)]
pub struct Fault {
    /// The verb it waits for, in capitals; `CONNECT` stands for the greeting
    /// and `*` for every command.
    pub on: &'static str,
    /// Which occurrence is the first to fail, counted from 1.
    pub nth: usize,
    /// How many in a row fail from there; `usize::MAX` for all.
    pub times: usize,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// Answers this and does nothing.
    Reply(u16, &'static str),
    /// Closes the control connection instead of doing anything.
    Close,
    /// The same by RST.
    Reset,
    /// Does nothing and never answers; the connection stays.
    Silence,
    /// Waits, then behaves.
    Delay(Duration),
    /// Sends these bytes instead of a reply and does nothing.
    Garbage(&'static [u8]),
    /// Sends one complete reply too many before behaving.
    PreReply(u16, &'static str),
    /// Behaves, but sends the final reply byte by byte.
    SplitReply,
    /// Does the work, then closes the control connection without the final reply.
    LoseReply,
    /// Does the work, sends that many bytes of the final reply, then closes.
    CutReply(usize),
    /// Does the work and answers twice.
    DoubleReply,
    /// Does the work; the final reply comes that much later.
    HoldReply(Duration),
    /// The final reply is a multi-line one that never ends.
    EndlessReply,
    /// The listing never ends.
    EndlessListing,
    /// Closes the data connection after that many bytes, then says 426. This
    /// and what follows does nothing to a transfer that is shorter.
    CutData(u64),
    /// The same, then says this.
    CutDataReply(u64, u16, &'static str),
    /// Closes the data connection after that many bytes, then says nothing.
    CutDataSilence(u64),
    /// Closes the data and the control connection after that many bytes.
    CutControlAfter(u64),
    /// Resets both after that many bytes.
    ResetAfter(u64),
    /// Resets both after that many bytes of an upload; as many more that had come go to the file
    /// when the next upload begins, as a server does that is slower than its client.
    DrainsLate(u64, u64),
    /// Moves that many bytes, then nothing more, on any connection.
    StallData(u64),
}

impl Fault {
    /// The next command `on` fails, once.
    pub fn once(on: &'static str, what: What) -> Fault {
        Fault { on, nth: 1, times: 1, what }
    }

    /// Every command `on` fails from now on.
    pub fn always(on: &'static str, what: What) -> Fault {
        Fault { on, nth: 1, times: usize::MAX, what }
    }

    /// The occurrence that is the last to fail.
    fn last(&self) -> usize {
        self.nth.saturating_add(self.times).saturating_sub(1)
    }
}

/// The faults that are set and how often each has seen its verb.
#[derive(Default)]
pub struct Faults {
    set: Vec<(Fault, usize)>,
}

impl Faults {
    pub fn add(&mut self, fault: Fault) {
        self.set.push((fault, 0));
    }

    pub fn clear(&mut self) {
        self.set.clear();
    }

    pub fn pending(&self) -> bool {
        self.set.iter().any(|(fault, seen)| *seen < fault.last())
    }

    /// Counts `verb` in every fault that waits for it and says which strikes;
    /// of two that do, the one that was set first.
    pub fn take(&mut self, verb: &str) -> Option<What> {
        let mut struck = None;
        for (fault, seen) in &mut self.set {
            if fault.on != verb && (fault.on != "*" || verb == "CONNECT") {
                continue;
            }
            *seen += 1;
            if (fault.nth..=fault.last()).contains(seen) && struck.is_none() {
                struck = Some(fault.what.clone());
            }
        }
        struck
    }
}
