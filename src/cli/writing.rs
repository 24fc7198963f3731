//! The options about how files are written.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::options::parse_ttl;
use crate::vfs::{OnConflict, UploadMode, WritePolicy};

/// `--write-back` without a number: an editor that writes, renames and removes is done in a
/// fraction of it, and a person does not wait for it.
const DELAY: &str = "1";

/// Options and `-o` words alike.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct WritingArguments {
    /// How an upload treats what is there: safe replaces files by a rename, direct stores in place,
    /// safe-all gives also what is new or appended a temporary name first [default: safe].
    #[arg(long, value_name = "HOW", value_enum)]
    pub(crate) upload: Option<Upload>,

    /// Overwrite only what changed in the middle of a large file, where the server can; quick, but
    /// not atomic.
    #[arg(long)]
    pub(crate) patch_in_place: bool,

    /// What to do when others changed a file since it was opened: copy puts ours beside it,
    /// overwrite replaces theirs, error tells the program [default: copy].
    #[arg(long, value_name = "WHAT", value_enum)]
    pub(crate) on_conflict: Option<Conflict>,

    /// Let close return when the file is safe on the local disk, and send it after so many seconds
    /// without a change; fsync still waits for the server.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true,
        default_missing_value = DELAY, value_parser = parse_ttl)]
    pub(crate) write_back: Option<Duration>,

    /// The most that unsent files and the cache take up together, such as 500M or 20G. The cache
    /// gives way first; then writers get “no space left” [default: all but a twentieth of the
    /// disk or 1 GiB; the cache no more than a tenth of the disk].
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) cache_size: Option<u64>,
}

/// See [`UploadMode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Upload {
    Safe,
    Direct,
    SafeAll,
}

/// See [`OnConflict`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Conflict {
    Copy,
    Overwrite,
    Error,
}

impl WritingArguments {
    /// An `-o` word; false if it is not one of these.
    pub(crate) fn take(&mut self, name: &str, value: Option<&str>) -> Result<bool, String> {
        let text = value.unwrap_or_default();
        match name {
            "upload" => self.upload = Some(Upload::from_str(&text.replace('_', "-"), false)?),
            "patch_in_place" => self.patch_in_place = true,
            "on_conflict" => self.on_conflict = Some(Conflict::from_str(text, false)?),
            "write_back" => self.write_back = Some(parse_ttl(value.unwrap_or(DELAY))?),
            "cache_size" => self.cache_size = Some(parse_size(text)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// What is not said here is taken from `other`.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            upload: self.upload.or(other.upload),
            patch_in_place: self.patch_in_place || other.patch_in_place,
            on_conflict: self.on_conflict.or(other.on_conflict),
            write_back: self.write_back.or(other.write_back),
            cache_size: self.cache_size.or(other.cache_size),
        }
    }

    pub(crate) fn policy(self) -> WritePolicy {
        WritePolicy {
            upload: match self.upload.unwrap_or(Upload::Safe) {
                Upload::Safe => UploadMode::Safe,
                Upload::Direct => UploadMode::Direct,
                Upload::SafeAll => UploadMode::SafeAll,
            },
            patch_in_place: self.patch_in_place,
            on_conflict: match self.on_conflict.unwrap_or(Conflict::Copy) {
                Conflict::Copy => OnConflict::Copy,
                Conflict::Overwrite => OnConflict::Overwrite,
                Conflict::Error => OnConflict::Error,
            },
            write_back: self.write_back,
            cache_size: self.cache_size,
        }
    }
}

/// Bytes, or with K, M, G or T behind the number 1024 of them, and so on.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = text.strip_prefix(digits).unwrap_or_default().trim().to_ascii_uppercase();
    let shift = match unit.trim_end_matches("IB").trim_end_matches('B') {
        "" => Some(0),
        "K" => Some(10),
        "M" => Some(20),
        "G" => Some(30),
        "T" => Some(40),
        _ => None,
    };
    let size =
        digits.parse::<u64>().ok().zip(shift).and_then(|(n, shift)| n.checked_mul(1 << shift));
    size.filter(|size| *size > 0).ok_or_else(|| "must be a size, such as 500M or 20G".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("2k"), Ok(2048));
        assert_eq!(parse_size("500M"), Ok(500 << 20));
        assert_eq!(parse_size("3 GiB"), Ok(3 << 30));
        for bad in ["", "M", "1.5G", "-1", "0", "5X", "99999999T"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn words_say_what_flags_say() {
        let mut words = WritingArguments::default();
        for (name, value) in
            [("write_back", None), ("upload", Some("safe_all")), ("on_conflict", Some("error"))]
        {
            assert_eq!(words.take(name, value), Ok(true));
        }
        assert!(words.take("upload", Some("quick")).is_err());
        assert_eq!(words.take("other", None), Ok(false));
        let policy = words.policy();
        assert_eq!(policy.write_back, Some(Duration::from_secs(1)));
        assert_eq!(policy.upload, UploadMode::SafeAll);
        assert_eq!(policy.on_conflict, OnConflict::Error);
    }
}
