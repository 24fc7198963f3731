//! Which files and folders the user wants to keep: a list in the cache directory, shared by all
//! mounts that use it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use serde::{Deserialize, Serialize};

/// The list.
#[derive(Debug)]
pub(crate) struct Pins {
    path: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Pin {
    server: String,
    /// Absolute on the server, percent-encoded, as names are bytes.
    path: String,
}

impl Pins {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { path: dir.join("pins.json") }
    }

    /// Those of a server, absolute.
    pub(crate) fn of(&self, server: &str) -> Vec<Vec<u8>> {
        let pins = self.load().into_iter().filter(|pin| pin.server == server);
        pins.map(|pin| percent_decode_str(&pin.path).collect()).collect()
    }

    /// All of them, as files are known in the cache.
    pub(crate) fn texts(&self) -> Vec<Vec<u8>> {
        let text = |pin: Pin| {
            let path: Vec<u8> = percent_decode_str(&pin.path).collect();
            super::layout::text_of(&pin.server, &path)
        };
        self.load().into_iter().map(text).collect()
    }

    pub(crate) fn add(&self, server: &str, path: &[u8]) -> io::Result<()> {
        self.change(|pins| pins.push(pin(server, path)))
    }

    /// False if there was none.
    pub(crate) fn remove(&self, server: &str, path: &[u8]) -> io::Result<bool> {
        let gone = pin(server, path);
        let mut was_there = false;
        self.change(|pins| {
            was_there = pins.contains(&gone);
            pins.retain(|pin| *pin != gone);
        })?;
        Ok(was_there)
    }

    fn load(&self) -> Vec<Pin> {
        let Ok(text) = fs::read(&self.path) else { return Vec::new() };
        serde_json::from_slice(&text).unwrap_or_else(|error| {
            log::warn!("{} is damaged: {error}", self.path.display());
            Vec::new()
        })
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Pin>)) -> io::Result<()> {
        let lock = File::create(self.path.with_extension("lock"))?;
        lock.lock()?;
        let mut pins = self.load();
        change(&mut pins);
        pins.sort();
        pins.dedup();
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        let mut new = tempfile::NamedTempFile::new_in(dir)?;
        new.write_all(&serde_json::to_vec_pretty(&pins)?)?;
        new.as_file().sync_all()?;
        new.persist(&self.path).map_err(|error| error.error)?;
        Ok(())
    }
}

fn pin(server: &str, path: &[u8]) -> Pin {
    Pin { server: server.to_owned(), path: percent_encode(path, NON_ALPHANUMERIC).to_string() }
}

/// Is a file one of the pinned ones, or below one?
pub(crate) fn covers(pins: &[Vec<u8>], text: &[u8]) -> bool {
    pins.iter().any(|pin| {
        let rest = text.strip_prefix(&**pin);
        // The root of a server ends with its slash.
        rest.is_some_and(|rest| rest.is_empty() || pin.ends_with(b"/") || rest.starts_with(b"/"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_kept_for_each_server() {
        let dir = tempfile::tempdir().unwrap();
        let pins = Pins::new(dir.path());
        pins.add("a", b"/x\xff y").unwrap();
        pins.add("a", b"/x\xff y").unwrap();
        pins.add("b", b"/z").unwrap();
        let others = Pins::new(dir.path());
        assert_eq!(others.of("a"), [b"/x\xff y"]);
        assert!(!others.remove("a", b"/z").unwrap());
        assert!(others.remove("a", b"/x\xff y").unwrap());
        assert!(pins.of("a").is_empty());
        assert_eq!(pins.texts(), [b"b\n/z"]);
    }

    #[test]
    fn a_pin_covers_what_is_below_it() {
        let pins = [b"s\n/a/b".to_vec(), b"t\n/".to_vec()];
        assert!(
            covers(&pins, b"s\n/a/b") && covers(&pins, b"s\n/a/b/c") && covers(&pins, b"t\n/q")
        );
        assert!(
            !covers(&pins, b"s\n/a/bc") && !covers(&pins, b"s\n/a") && !covers(&pins, b"u\n/q")
        );
    }
}
