//! The server's disk or quota is full, or it refuses: at each step of an upload the program gets the
//! right error, the old file stays whole, and the new content is kept and listed until it can be sent.

use std::time::Duration;

use crate::drivers::{Direct, Driver, Fail, How, Result};
use crate::support::dialect::Dialect;
use crate::support::faults::{Fault, What};
use crate::support::server::Server;

const OLD: &[u8] = b"the old content, which nobody may damage";

/// How a program writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    New,
    Replace,
    Append,
    Patch,
    /// So much that it is sent while it is written.
    Much,
}

const WAYS: [Way; 5] = [Way::New, Way::Replace, Way::Append, Way::Patch, Way::Much];

impl Way {
    fn length(self) -> usize {
        if self == Self::Much { 1_300_000 } else { 5000 }
    }

    /// What the file is to hold.
    fn wanted(self) -> Vec<u8> {
        let new = vec![b'n'; self.length()];
        match self {
            Self::Append => [OLD, &new].concat(),
            Self::Patch => [&OLD[..4], &new].concat(),
            Self::New | Self::Replace | Self::Much => new,
        }
    }

    /// The first error that the program is told.
    fn write(self, fs: &Direct) -> Result<()> {
        let (how, at) = match self {
            Self::New | Self::Replace | Self::Much => (How::CREATE, 0),
            Self::Append => (How::APPEND, OLD.len()),
            Self::Patch => (How::UPDATE, 4),
        };
        let mut file = fs.open(b"f", how)?;
        let new = vec![b'n'; self.length()];
        let mut written = Ok(());
        for (index, block) in new.chunks(100_000).enumerate() {
            written = written.and(file.write_at((at + index * 100_000) as u64, block));
        }
        written.and(file.close())
    }

    fn start(self) -> (Server, Direct) {
        let server = Server::start(Dialect::proftpd());
        if self != Self::New {
            server.put("/f", OLD);
        }
        let fs = Direct::new(&server, 2, Duration::from_secs(600));
        fs.names(b"").unwrap();
        (server, fs)
    }
}

fn check(way: Way, verbs: &[&'static str], what: &What, fail: Fail) {
    let (server, fs) = way.start();
    for verb in verbs {
        server.fault(Fault::always(verb, what.clone()));
    }
    let told = way.write(&fs);
    let case = format!("{way:?}, {verbs:?} {what:?}");
    if verbs == ["RNTO"] && fail == Fail::Denied {
        // A folder that allows no renames is written in place.
        assert_eq!(told, Ok(()), "{case}");
        assert!(server.get("/f").unwrap() == way.wanted(), "{case}");
        assert_eq!(server.names("/"), [b"f"], "{case}: nothing else is left");
        return;
    }
    assert_eq!(told, Err(fail), "{case}");
    if way == Way::Append {
        // What was there stays; of what was appended a beginning may be there.
        let there = server.get("/f").unwrap();
        let is_whole = there.starts_with(OLD) && way.wanted().starts_with(&there);
        assert!(is_whole, "{case}: the old file is damaged");
    } else if way != Way::New {
        assert!(server.get("/f").unwrap() == OLD, "{case}: the old file is damaged");
    }
    let pending = fs.vfs.pending();
    assert_eq!(pending.len(), 1, "{case}: it is kept");
    assert_eq!(pending[0].path, "/f", "{case}");
    assert_eq!(pending[0].bytes, way.wanted().len() as u64, "{case}");
    assert!(pending[0].error.is_some(), "{case}: with its error");
    assert!(fs.read(b"f").unwrap() == way.wanted(), "{case}: it is read from here");
    server.clear_faults();
    fs.vfs.drain().unwrap();
    assert!(server.get("/f").unwrap() == way.wanted(), "{case}: it is sent when it can be");
    assert!(fs.vfs.pending().is_empty(), "{case}");
    assert_eq!(server.names("/"), [b"f"], "{case}: nothing else is left");
}

const REFUSALS: [(u16, Fail); 4] =
    [(552, Fail::Quota), (452, Fail::NoSpace), (550, Fail::Denied), (553, Fail::Denied)];

#[test]
fn before_the_first_byte() {
    for way in WAYS {
        for (code, fail) in REFUSALS {
            check(way, &["STOR", "APPE"], &What::Reply(code, "no"), fail);
        }
    }
}

#[test]
fn in_the_middle_of_the_data() {
    for way in WAYS {
        for (code, fail) in &REFUSALS[..2] {
            let what = What::CutDataReply(3000, *code, "no room");
            check(way, &["STOR", "APPE"], &what, *fail);
        }
    }
}

/// The server takes every byte, and says only then that it could not keep them.
#[test]
fn at_the_end_of_the_data() {
    for way in WAYS {
        for (code, fail) in &REFUSALS[..2] {
            // Nothing comes after the last byte but the end of the connection.
            let last = if way == Way::Append { way.length() } else { way.wanted().len() } as u64;
            let what = What::CutDataReply(last - 1, *code, "no room");
            check(way, &["STOR", "APPE"], &what, *fail);
        }
    }
}

#[test]
fn at_the_rename_over_the_old_file() {
    for way in [Way::Replace, Way::Patch, Way::Much] {
        for (code, fail) in REFUSALS {
            check(way, &["RNTO"], &What::Reply(code, "no"), fail);
        }
    }
}
