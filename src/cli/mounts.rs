//! The kernel's mount table, as far as it concerns ftpfs.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::system;

/// The type under which the kernel knows our mounts.
const FILE_SYSTEM: &str = "fuse.ftpfs";

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) mountpoint: PathBuf,
    pub(crate) file_system: String,
    pub(crate) source: String,
}

impl Mount {
    pub(crate) fn is_ours(&self) -> bool {
        self.file_system == FILE_SYSTEM
    }

    /// Has its process ended without unmounting? The kernel then answers ENOTCONN at once, or
    /// ECONNABORTED to a question that was under way; a live process answers statfs without asking
    /// the server. A stat would not do: the kernel keeps the root's attributes.
    pub(crate) fn is_dead(&self) -> bool {
        let is_end = |code| matches!(code, libc::ENOTCONN | libc::ECONNABORTED);
        system::statfs(&self.mountpoint)
            .is_err_and(|error| error.raw_os_error().is_some_and(is_end))
    }
}

/// All mounts of ftpfs.
pub(crate) fn ours() -> io::Result<Vec<Mount>> {
    Ok(table()?.into_iter().filter(Mount::is_ours).collect())
}

/// What is mounted here, the uppermost if there are several.
pub(crate) fn at(mountpoint: &Path) -> io::Result<Option<Mount>> {
    Ok(table()?.into_iter().rfind(|mount| mount.mountpoint == mountpoint))
}

fn table() -> io::Result<Vec<Mount>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
}

/// proc(5): `ID PARENT DEVICE ROOT MOUNTPOINT OPTIONS [FIELDS…] - TYPE SOURCE OPTIONS`.
fn parse(table: &[u8]) -> Vec<Mount> {
    let line = |line: &[u8]| {
        let mut words = line.split(|byte| *byte == b' ');
        let mountpoint = unescape(words.nth(4)?);
        let mut rest = words.skip_while(|word| *word != b"-").skip(1);
        Some(Mount {
            mountpoint: PathBuf::from(OsString::from_vec(mountpoint)),
            file_system: String::from_utf8_lossy(rest.next()?).into_owned(),
            source: String::from_utf8_lossy(&unescape(rest.next()?)).into_owned(),
        })
    };
    table.split(|byte| *byte == b'\n').filter_map(line).collect()
}

/// Blank, tab, line feed and backslash are written as `\` and three octal digits.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match byte {
            Some(byte) if *first == b'\\' => {
                plain.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            _ => {
                plain.push(*first);
                rest = after;
            }
        }
    }
    plain
}

/// Up to `most` programs that have files below the mount point open, or stand there: for a message.
/// Looks only at links in /proc, never at the mount itself.
pub(crate) fn users(mountpoint: &Path, most: usize) -> Vec<String> {
    let is_below =
        |link: &Path| fs::read_link(link).is_ok_and(|target| target.starts_with(mountpoint));
    let uses = |process: &Path| {
        is_below(&process.join("cwd"))
            || is_below(&process.join("exe"))
            || fs::read_dir(process.join("fd"))
                .is_ok_and(|open| open.flatten().any(|link| is_below(&link.path())))
    };
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    processes
        .flatten()
        .filter(|entry| entry.file_name().as_bytes().iter().all(u8::is_ascii_digit))
        .filter(|entry| uses(&entry.path()))
        .take(most)
        .map(|entry| {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            format!("{} ({})", name.trim(), entry.file_name().to_string_lossy())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read() {
        let table =
            b"36 35 98:0 /mnt1 /mnt/a\\040b rw,noatime master:1 - fuse.ftpfs ftp://bob@nas:21 rw\n\
            37 35 0:3 / /proc rw - proc proc rw\nshort line\n";
        let mounts = parse(table);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].mountpoint, Path::new("/mnt/a b"));
        assert!(mounts[0].is_ours() && !mounts[1].is_ours());
        assert_eq!(mounts[0].source, "ftp://bob@nas:21");
    }

    #[test]
    fn escapes_that_are_none_stay() {
        assert_eq!(unescape(b"a\\134b"), b"a\\b");
        assert_eq!(unescape(b"a\\9"), b"a\\9");
    }
}
