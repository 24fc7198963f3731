//! How files are written, as the user chose.

use std::time::Duration;

use super::attr::Version;
use super::content::{Content, Delta};

/// How an upload treats what is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UploadMode {
    /// An existing file is replaced by a rename, a new one is stored under its name, and what is
    /// appended is added in place.
    #[default]
    Safe,
    /// Everything is stored under its name, in place.
    Direct,
    /// Everything, also what is new or appended, goes to a temporary name and is renamed.
    SafeAll,
}

/// What happens when somebody else changed the file since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnConflict {
    /// Ours is put beside it under another name.
    #[default]
    Copy,
    /// Ours replaces theirs.
    Overwrite,
    /// The writer gets ESTALE, and ours is kept here.
    Error,
}

/// How files are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WritePolicy {
    pub upload: UploadMode,
    /// Changes in the middle of a file overwrite just these bytes on the server, where it can;
    /// quick, but not atomic.
    pub patch_in_place: bool,
    pub on_conflict: OnConflict,
    /// `close` returns when the bytes are safe on the local disk; they are sent after so long
    /// without a further change.
    pub write_back: Option<Duration>,
    /// The most bytes of local copies; `None`: as the disk allows.
    pub cache_size: Option<u64>,
}

impl WritePolicy {
    /// May a send that is cut short leave a part of it under the file's own name?
    pub(crate) fn sends_in_place(&self, base: Option<Version>, content: &Content) -> bool {
        match self.upload {
            UploadMode::Direct => true,
            UploadMode::SafeAll => false,
            UploadMode::Safe => match content.layout().delta() {
                _ if base.is_none() => true,
                Delta::Append { .. } => true,
                Delta::Patch(_) => self.patch_in_place,
                Delta::Nothing | Delta::Cut | Delta::Whole => false,
            },
        }
    }
}
