//! `ftpfs pin`: files that are kept in the cache, and what of them is.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::control::{self, Request};
use super::exit::{Failure, Status};
use super::progress::hear_pin;
use super::{PinArguments, config, refresh, say};
use crate::vfs;

pub(crate) fn run(arguments: &PinArguments) -> Result<(), Failure> {
    if arguments.list {
        return list(arguments.path.as_deref());
    }
    let Some(said) = &arguments.path else { return Err(Failure::usage("a path is missing")) };
    let shown = said.display();
    let (mountpoint, path) = refresh::place(said)?.ok_or_else(|| {
        Failure::new(Status::MountPoint, format!("{shown} is not in a mount of ftpfs"))
    })?;
    let silent = || format!("the process behind {} does not answer", mountpoint.display());
    let mut line =
        control::line_to(&mountpoint).ok_or_else(|| Failure::new(Status::MountPoint, silent()))?;
    let path = path.as_os_str().as_bytes().to_vec();
    let request = if arguments.remove { Request::Unpin { path } } else { Request::Pin { path } };
    let lost = |error: io::Error| Failure::other(format!("{}: {error}", silent()));
    match hear_pin(&mut line, request).map_err(lost)? {
        Some((0, _)) => Ok(()),
        Some((status, error)) => {
            Err(Failure::new(Status::from_number(status), format!("{shown}: {error}")))
        }
        None => Err(Failure::other(silent())),
    }
}

fn list(mountpoint: Option<&Path>) -> Result<(), Failure> {
    let mut reports = control::reports();
    if let Some(mountpoint) = mountpoint {
        let wanted = config::absolute(mountpoint)?;
        reports.retain(|report| report.mountpoint == wanted);
        if reports.is_empty() {
            let message = format!("{} is not mounted by ftpfs", wanted.display());
            return Err(Failure::new(Status::MountPoint, message));
        }
    }
    let mut text = String::new();
    for report in &reports {
        for pin in report.cache.iter().flat_map(|cache| &cache.pins) {
            text.push_str(&format!("{}  {pin}\n", report.mountpoint.display()));
        }
    }
    say(&text);
    Ok(())
}

/// In words, what came of pinning.
pub(crate) fn outcome(result: vfs::Result<vfs::Pinned>) -> Result<(), Failure> {
    let pinned = result.map_err(|error| failure(&error))?;
    let Some((path, why)) = pinned.first else { return Ok(()) };
    let others = match pinned.left_out {
        1 => String::new(),
        count => format!(", and {} more", count - 1),
    };
    Err(Failure::other(format!("not kept yet: {path}: {why}{others}; pin it again later")))
}

/// The status of the table for what went wrong.
pub(crate) fn failure(error: &vfs::Error) -> Failure {
    match error {
        vfs::Error::Unsupported => {
            Failure::usage("this mount has no cache; mount it with --cache DIR")
        }
        vfs::Error::Local(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
            Failure::other("the cache is full; --cache-size says how large it may be")
        }
        error => Failure::new(refresh::status(error), error.to_string()),
    }
}
