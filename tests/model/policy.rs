//! What the file system decides where it could decide otherwise. When it learns to decide otherwise,
//! this is the place to say so.

use std::time::Duration;

use ftpfs::vfs::{Options, WritePolicy};

use super::reference::{Node, Reference};

/// What becomes of a file that somebody else changed since it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code)]
pub enum OnConflict {
    /// Ours replaces theirs, silently.
    Overwrite,
    /// Theirs stays, ours is put beside it.
    Copy,
}

/// The default of `--on-conflict`.
pub const ON_CONFLICT: OnConflict = OnConflict::Copy;

/// Names beside a file that hold what was not allowed to replace it.
pub fn is_conflict_copy(name: &str, of: &str) -> bool {
    let (stem, extension) = match of.rfind('.') {
        Some(dot) if dot > 0 => of.split_at(dot),
        _ => (of, ""),
    };
    let marked = |mark| name.starts_with(&format!("{stem} ({mark} ")) && name.ends_with(extension);
    marked("conflict") || marked("unsent")
}

/// A new file whose sending failed: may the server have a part of it under its own name?
pub fn may_be_partly_there(
    before: &Reference,
    after: &Reference,
    path: &str,
    is: Option<&Node>,
) -> bool {
    let Some(Node::File(part)) = is else { return false };
    // Or of what was appended to it: what was there stays.
    let is_longer = match before.server.get(path) {
        None => true,
        Some(Node::File(old)) => part.bytes.starts_with(&old.bytes),
        Some(_) => false,
    };
    if !is_longer {
        return false;
    }
    let is_part_of = |whole: &[u8]| whole.starts_with(&part.bytes);
    let live = before.live_at(path).map(|id| &before.lives[&id].bytes);
    match (live, after.server.get(path)) {
        (_, Some(Node::File(whole))) if is_part_of(&whole.bytes) => true,
        (Some(live), _) => is_part_of(live),
        _ => false,
    }
}

/// Are staged files of a killed process that nobody was promised anything of left for ever?
pub fn stays_staged_after_a_kill() -> bool {
    false
}

/// Does a mount clean what an earlier one that was killed left on the server?
pub fn cleans_the_server_after_a_kill() -> bool {
    true
}

/// Options of a mount that writes back, when it is told to.
pub fn write_back(options: Options) -> Option<Options> {
    let writing =
        WritePolicy { write_back: Some(Duration::from_secs(3600)), ..WritePolicy::default() };
    Some(Options { writing, ..options })
}

/// Does a chmod of a file that is open for writing, before anything is written, outlast the upload?
pub fn keeps_bits_set_while_open() -> bool {
    true
}

/// Is what was sent ahead of a `close` cleaned up when its directory is renamed meanwhile?
pub fn follows_what_is_sent_ahead() -> bool {
    true
}

/// Does a mount after a kill tell what nobody else changed from what was changed, also where a time was
/// not known, or only to the minute? If not, what is unsent may be put beside the file.
pub fn knows_what_it_replaces() -> bool {
    false
}

/// Is a truncation by name sent at once where only readers have the file open? They do not send it when
/// they close it.
pub fn sends_what_is_cut_beside_readers() -> bool {
    true
}

/// Is a file that was removed, or replaced, while it is open left alone by the `close` of its writers?
/// As long as it is not, a close that fails makes it pending for ever.
pub fn never_sends_what_is_unlinked() -> bool {
    true
}

/// Does what is noted of an unsent file follow the rename of a directory above it?
pub fn notes_follow_a_directory() -> bool {
    true
}

/// An empty directory is removed before another one is renamed to its name: two commands, of which the
/// second may fail.
pub fn made_way(before: &Reference, path: &str, is: Option<&Node>) -> bool {
    let was_directory = before.server.get(path) == Some(&Node::Directory);
    is.is_none() && was_directory && before.visible_names(path).is_empty()
}
