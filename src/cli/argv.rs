//! The argument list itself: the forms in which mount(8) calls, and the password out of it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::system;

/// The subcommands; a first argument that is none of them, followed by another, is a source.
const COMMANDS: [&str; 8] =
    ["mount", "umount", "status", "refresh", "retry", "pin", "save", "help"];

/// Turns the calls of mount(8) into `ftpfs mount …`: `mount.ftpfs SOURCE DIR [-sfnvrw] [-t TYPE]
/// [-o WORDS]`, and `ftpfs SOURCE DIR -o WORDS`, which mount.fuse3 makes of the type `fuse.ftpfs`.
pub(crate) fn normalise(arguments: Vec<OsString>) -> Vec<OsString> {
    let mut rest = arguments.into_iter();
    let program = rest.next().unwrap_or_else(|| "ftpfs".into());
    let name = Path::new(&program).file_name().unwrap_or_default().to_owned();
    let rest: Vec<OsString> = rest.collect();
    if name.as_bytes().starts_with(b"mount.") {
        return of_helper(program, rest);
    }
    let is_source = |first: &OsString| {
        !first.as_bytes().starts_with(b"-") && !COMMANDS.iter().any(|command| first == command)
    };
    let mut all = vec![program];
    if rest.len() >= 2 && rest.first().is_some_and(is_source) {
        all.push("mount".into());
    }
    all.extend(rest);
    all
}

/// The flags of a mount helper, see mount(8), “External helpers”.
fn of_helper(program: OsString, rest: Vec<OsString>) -> Vec<OsString> {
    let mut all = vec![program, "mount".into()];
    let mut rest = rest.into_iter();
    while let Some(word) = rest.next() {
        match word.as_bytes() {
            b"-s" => all.push("--sloppy".into()),
            b"-f" => all.push("--fake".into()),
            // Whether the mount is written to mtab, and read-write, which is the rule anyway.
            b"-n" | b"-w" => {}
            b"-t" => drop(rest.next()),
            b"-o" => {
                all.push(word);
                all.extend(rest.next());
            }
            _ => all.push(word),
        }
    }
    all
}

/// Overwrites the passwords of the source and of URLs in the memory that `ps` shows.
pub(crate) fn blank_passwords(source: &OsStr) {
    let source = source.as_bytes();
    system::change_arguments(|block| {
        for argument in block.split_mut(|byte| *byte == 0) {
            if argument != source && find(argument, b"://").is_none() {
                continue;
            }
            if let Some((start, end)) = password_range(argument)
                && let Some(password) = argument.get_mut(start..end)
            {
                password.fill(b'*');
            }
        }
    });
}

/// Where in the source the password stands.
fn password_range(source: &[u8]) -> Option<(usize, usize)> {
    let begin = find(source, b"://").map_or(0, |at| at + 3);
    let rest = source.get(begin..)?;
    let authority = rest.split(|byte| *byte == b'/').next()?;
    let end = authority.iter().rposition(|byte| *byte == b'@')?;
    let start = authority.get(..end)?.iter().position(|byte| *byte == b':')? + 1;
    Some((begin + start, begin + end))
}

fn find(text: &[u8], word: &[u8]) -> Option<usize> {
    text.windows(word.len().max(1)).position(|window| window == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(words: &[&str]) -> String {
        let all = normalise(words.iter().map(OsString::from).collect());
        all.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn no_subcommand_is_taken_for_a_source() {
        let program = <super::super::Cli as clap::CommandFactory>::command();
        for command in program.get_subcommands() {
            assert!(COMMANDS.contains(&command.get_name()), "{}", command.get_name());
        }
    }

    #[test]
    fn the_calls_of_mount() {
        assert_eq!(
            normal(&["/sbin/mount.ftpfs", "nas", "/mnt", "-s", "-n", "-o", "rw,-f", "-t", "x"]),
            "/sbin/mount.ftpfs mount nas /mnt --sloppy -o rw,-f"
        );
        assert_eq!(normal(&["ftpfs", "nas", "/mnt", "-o", "rw"]), "ftpfs mount nas /mnt -o rw");
        assert_eq!(normal(&["ftpfs", "mount", "nas", "/mnt"]), "ftpfs mount nas /mnt");
        assert_eq!(normal(&["ftpfs", "--help"]), "ftpfs --help");
        assert_eq!(normal(&["ftpfs", "mout"]), "ftpfs mout");
    }

    #[test]
    fn the_password_is_found() {
        let password = |source: &str| {
            let (start, end) = password_range(source.as_bytes())?;
            Some(source[start..end].to_owned())
        };
        assert_eq!(password("ftp://bob:pw@nas/x:y@z").as_deref(), Some("pw"));
        assert_eq!(password("bob:p@w:d@nas").as_deref(), Some("p@w:d"));
        assert_eq!(password("bob@nas:21"), None);
        assert_eq!(password("nas:21/a@b"), None);
    }
}
