//! Files of our own on the server, and renames over existing files.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::error::{Error, Result};
use super::marks::{Mark, Marks, Purpose};
use crate::ftp::{self, Pool, RemotePath, Reply};

/// The names that ftpfs gives to files that nobody should see begin like this.
const OWN_PREFIX: &str = ".ftpfs-";

/// A file of our own making, which nobody should see.
pub(crate) fn is_own_name(name: &[u8]) -> bool {
    name.starts_with(OWN_PREFIX.as_bytes()) && name.ends_with(b"~")
}

/// A new name in the same directory.
pub(crate) fn beside(path: &RemotePath) -> Result<RemotePath> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    // The process and the time make it differ from what another mount, or a crash, left.
    let nanos =
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    let pid = std::process::id();
    let name = format!("{OWN_PREFIX}{pid:x}-{nanos:x}-{count:x}~");
    let parent = path.parent().ok_or(Error::Invalid)?;
    Ok(parent.join(name.as_bytes())?)
}

/// Renames `from` over the existing `to`. Where the server refuses to (IIS, FileZilla Server: 550
/// or 553), the old file is moved aside first and comes back if the second step fails.
pub(crate) fn replace(
    pool: &Pool,
    marks: &Marks,
    from: &RemotePath,
    to: &RemotePath,
) -> Result<()> {
    if pool.renames_over() && move_once(pool, from, to)?.is_ok() {
        return Ok(());
    }
    replace_by_turns(pool, marks, from, to)
}

/// The old file aside, the new one to its name, the old one away.
pub(crate) fn replace_by_turns(
    pool: &Pool,
    marks: &Marks,
    from: &RemotePath,
    to: &RemotePath,
) -> Result<()> {
    let aside = beside(to)?;
    let mark = marks.set(Purpose::Aside, &aside, to);
    // If it is refused there is nothing to move, or nothing that may be moved: the next step tells.
    let had_old = move_once(pool, to, &aside)?.is_ok();
    match move_once(pool, from, to) {
        Ok(Ok(())) => {
            if had_old {
                pool.learn_renames_over(false);
                put_away(pool, &aside, mark);
            }
            Ok(())
        }
        failed => {
            if had_old && !matches!(move_once(pool, &aside, to), Ok(Ok(()))) {
                log::error!("{to} is now called {aside}: it could not be renamed back yet");
                // It is to go back at the next mount, if the name is free then.
                if let Some(mark) = mark {
                    mark.leave();
                }
            }
            failed?.map_err(|reply| ftp::Error::Refused(reply).into())
        }
    }
}

/// Renames; the inner error is the server's refusal. A refusal of a second try, after the first one's
/// reply was lost, may come from the first one's success: then a look tells.
pub(crate) fn move_once(
    pool: &Pool,
    from: &RemotePath,
    to: &RemotePath,
) -> Result<std::result::Result<(), Reply>> {
    let (result, was_tried_twice) = pool.ask_noting(|session| session.rename(from, to));
    match result {
        Ok(()) => Ok(Ok(())),
        Err(ftp::Error::Refused(reply)) => {
            let is_done = was_tried_twice && !is_there(pool, from)? && is_there(pool, to)?;
            Ok(if is_done { Ok(()) } else { Err(reply) })
        }
        Err(error) => Err(error.into()),
    }
}

/// By the directory's listing, which alone proves absence.
pub(crate) fn is_there(pool: &Pool, path: &RemotePath) -> Result<bool> {
    let (Some(parent), Some(name)) = (path.parent(), path.name()) else { return Ok(true) };
    let entries = pool.list(&parent)?;
    Ok(entries.iter().any(|entry| entry.name.as_ref() == name))
}

/// Removes a file of our own. Where the server cannot be asked, the end of the mount or the next
/// one does.
pub(crate) fn put_away(pool: &Pool, path: &RemotePath, mark: Option<Mark>) {
    if let Err(error) = remove_if_possible(pool, path) {
        log::info!("{path} could not be removed yet: {error}");
        if let Some(mark) = mark {
            mark.leave();
        }
    }
}

/// Removes a file; one that the server wants to keep is only clutter.
pub(crate) fn remove_if_possible(pool: &Pool, path: &RemotePath) -> Result<()> {
    match pool.ask(|session| session.remove_file(path)) {
        Err(ftp::Error::Refused(reply)) => log::info!("{path} could not be removed: {reply}"),
        removed => removed?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_names_are_recognised() {
        assert!(is_own_name(b".ftpfs-1-2-3~"));
        assert!(!is_own_name(b".ftpfs-notes"));
        assert!(!is_own_name(b"x.ftpfs-1~"));
    }
}
