//! The arrows of the architecture: `main -> cli -> fuse -> vfs -> ftp`, none upward or sideways,
//! and each library named only in its room. Read from the source, so that a short cut fails here.

use std::fs;
use std::path::{Path, PathBuf};

/// All sources below a room, or the one file it is.
fn sources(room: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let file = root.join(format!("{room}.rs"));
    if file.is_file() {
        return vec![file];
    }
    let mut found = Vec::new();
    let mut open = vec![root.join(room)];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    assert!(!found.is_empty(), "the room {room} has no sources");
    found
}

/// The code of a file: no comments, no tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap().to_owned();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// Lines of `rooms` in which one of `words` stands.
fn naming(rooms: &[&str], words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for path in rooms.iter().flat_map(|room| sources(room)) {
        for line in code(&path).lines() {
            if words.iter().any(|word| line.contains(word)) {
                found.push(format!("{}: {}", path.display(), line.trim()));
            }
        }
    }
    found
}

fn assert_never(rooms: &[&str], words: &[&str]) {
    let found = naming(rooms, words);
    assert!(found.is_empty(), "{rooms:?} must not name {words:?}:\n{}", found.join("\n"));
}

#[test]
fn rooms_know_only_what_is_below_them() {
    assert_never(&["ftp"], &["crate::vfs", "crate::fuse", "crate::cli"]);
    assert_never(&["vfs"], &["crate::fuse", "crate::cli"]);
    assert_never(&["fuse"], &["crate::cli"]);
}

#[test]
fn libraries_stay_in_their_rooms() {
    assert_never(&["vfs", "fuse", "cli", "main", "lib"], &["suppaftp::", "use suppaftp"]);
    assert_never(&["ftp", "vfs", "cli", "main", "lib"], &["fuser::", "Errno", "use fuser"]);
    assert_never(&["ftp", "vfs", "fuse", "lib"], &["clap::", "use clap"]);
    assert_never(&["ftp", "vfs", "fuse", "lib"], &["println!", "eprintln!", "print!("]);
}

#[test]
fn a_violation_would_be_found() {
    assert!(!naming(&["ftp"], &["suppaftp"]).is_empty());
    assert!(!naming(&["fuse"], &["Errno"]).is_empty());
}
