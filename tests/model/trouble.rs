//! What goes wrong during one operation.

use crate::drivers::Fail;
use crate::support::faults::{Fault, What};
use crate::support::server::Server;

const ON: [&str; 16] = [
    "*", "STOR", "RNTO", "RETR", "MLSD", "STOR", "RNFR", "DELE", "EPSV", "SIZE", "MDTM", "MFMT",
    "RMD", "MKD", "APPE", "STOR",
];

#[derive(Clone, Debug)]
pub struct Trouble(Fault);

impl Trouble {
    pub fn new(what: u8, on: u8, nth: u8, times: u8) -> Self {
        let on = ON[on as usize % ON.len()];
        // A listing that is cut and called complete cannot be told from a shorter one.
        let on = if what % 22 == 12 { ["STOR", "RETR", "APPE"][usize::from(nth) % 3] } else { on };
        // Only what moves bytes has bytes to be cut.
        let what = match what % 22 {
            0 | 1 => What::Close,
            2 => What::Reset,
            3..=6 => What::LoseReply,
            7 => What::CutReply(2),
            8 | 9 => What::CutData(u64::from(what) * 3),
            10 => What::CutControlAfter(u64::from(what) * 3),
            11 => What::ResetAfter(u64::from(what) * 3),
            12 => What::CutDataReply(u64::from(what), 226, "Transfer complete"),
            13 => What::Reply(552, "Quota exceeded"),
            14 => What::Reply(452, "No space"),
            15 | 16 => What::Reply(550, "No"),
            17 => What::Reply(553, "Not allowed"),
            18 => What::Reply(451, "Local error"),
            19 => What::CutDataReply(u64::from(what), 552, "Quota exceeded"),
            20 => What::Silence,
            _ => What::StallData(u64::from(what)),
        };
        Self(Fault { on, nth: nth.into(), times: times.into(), what })
    }

    /// Whoever meets it waits for the time-out.
    pub fn is_slow(&self) -> bool {
        matches!(self.0.what, What::Silence | What::StallData(_))
    }

    pub fn begin(&self, server: &Server) {
        server.fault(self.0.clone());
    }
}

/// What a program may be told when the line or the server fails; never that a name is absent or
/// there, or a directory empty or not.
pub fn may_fail_with(fail: Fail) -> bool {
    matches!(
        fail,
        Fail::Io
            | Fail::TimedOut
            | Fail::Denied
            | Fail::NoSpace
            | Fail::Quota
            | Fail::Stale
            | Fail::Unsupported
    )
}
