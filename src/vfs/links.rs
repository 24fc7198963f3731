//! Where symbolic links lead.

use std::time::Instant;

use super::Vfs;
use super::error::{Error, Result};
use super::tree::Ino;
use crate::ftp::{Kind, RemotePath};

impl Vfs {
    /// The target of a symbolic link. An absolute one below the mounted directory is made
    /// relative, so that it leads to the same file here as on the server.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        let (parent, name) = self.place(ino).ok_or(Error::NotFound)?;
        let fresh = self.listing(parent, Instant::now())?;
        let item = fresh.find(&name)?.ok_or(Error::NotFound)?;
        if item.entry.kind != Kind::Symlink {
            return Err(Error::Invalid);
        }
        let target = match &item.entry.target {
            Some(target) => target.clone(),
            None => self.ask_target(parent, &name)?,
        };
        let depth = self.tree().names(parent).map_or(0, |names| names.len());
        Ok(relative_target(&target, &self.base, depth))
    }

    /// MLSD of some servers (ProFTPD 1.3.8: `type=OS.unix=symlink`) hides where a link leads;
    /// LIST tells it.
    fn ask_target(&self, parent: Ino, name: &[u8]) -> Result<Box<[u8]>> {
        let directory = self.path(parent)?;
        let entries = self.pool.ask(|session| session.list_long(&directory))?;
        let mut found = None;
        for entry in entries.iter() {
            let Some(target) = entry.target else { continue };
            if entry.name.as_ref() == name {
                found = Some(target.clone());
            }
            // The others of this directory are likely to be asked for next.
            self.cache.update(parent, &entry.name, |item| item.entry.target = Some(target));
        }
        found.ok_or_else(|| Error::Io("the server does not tell where the link leads".into()))
    }
}

/// An absolute target below `base`, seen from a directory `depth` levels below the mount's root.
fn relative_target(target: &[u8], base: &RemotePath, depth: usize) -> Vec<u8> {
    let Some(absolute) = target.strip_prefix(b"/") else { return target.to_vec() };
    let below = if base.is_root() {
        Some(absolute)
    } else {
        target
            .strip_prefix(base.as_bytes())
            .filter(|rest| rest.is_empty() || rest.starts_with(b"/"))
            .map(|rest| rest.strip_prefix(b"/").unwrap_or(rest))
    };
    let Some(below) = below else { return target.to_vec() };
    let mut relative = b"../".repeat(depth);
    relative.extend_from_slice(below);
    if relative.is_empty() {
        relative.push(b'.');
    }
    relative
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absolute_targets_lead_to_the_same_file_here() {
        let root = RemotePath::root();
        let base = RemotePath::parse(b"/srv/ftp").unwrap();
        let to = |target: &str, base: &RemotePath, depth| {
            String::from_utf8(relative_target(target.as_bytes(), base, depth)).unwrap()
        };
        assert_eq!(to("file", &root, 2), "file");
        assert_eq!(to("../x", &root, 2), "../x");
        assert_eq!(to("/a/b", &root, 2), "../../a/b");
        assert_eq!(to("/", &root, 0), ".");
        assert_eq!(to("/srv/ftp/a", &base, 1), "../a");
        assert_eq!(to("/srv/ftp", &base, 0), ".");
        assert_eq!(to("/srv/ftpd", &base, 0), "/srv/ftpd");
        assert_eq!(to("/etc/passwd", &base, 1), "/etc/passwd");
    }
}
