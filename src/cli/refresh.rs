//! `ftpfs refresh`: the next look at a file or folder asks the server.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::control::{self, Answer, Request};
use super::exit::{Failure, Status};
use super::{RefreshArguments, config, mounts};
use crate::vfs;

/// One listing may wait for another, and each has deadlines of its own (4 × `--timeout`): with the
/// default of 30 s that is 4 minutes.
const PATIENCE: Duration = Duration::from_secs(240);

pub(crate) fn run(arguments: &RefreshArguments) -> Result<(), Failure> {
    let said = arguments.path.display();
    let (mountpoint, path) = place(&arguments.path)?.ok_or_else(|| {
        Failure::new(Status::MountPoint, format!("{said} is not in a mount of ftpfs"))
    })?;
    let silent = || format!("the process behind {} does not answer", mountpoint.display());
    let mut line =
        control::line_to(&mountpoint).ok_or_else(|| Failure::new(Status::MountPoint, silent()))?;
    let lost = |error: io::Error| Failure::other(format!("{}: {error}", silent()));
    let path = path.as_os_str().as_bytes().to_vec();
    line.ask(Request::Refresh { path, recursive: arguments.recursive }).map_err(lost)?;
    match line.hear(PATIENCE).map_err(lost)? {
        Some(Answer::Refreshed { status: 0, .. }) => Ok(()),
        Some(Answer::Refreshed { status, error }) => {
            Err(Failure::new(Status::from_number(status), format!("{said}: {error}")))
        }
        _ => Err(Failure::other(silent())),
    }
}

/// In which mount a path is, and where in it.
pub(crate) fn place(path: &Path) -> Result<Option<(PathBuf, PathBuf)>, Failure> {
    let ours = mounts::ours().map_err(|error| Failure::other(error.to_string()))?;
    let within = |path: &Path| {
        let around = ours.iter().filter(|mount| path.starts_with(&mount.mountpoint));
        let mount = around.max_by_key(|mount| mount.mountpoint.as_os_str().len())?;
        let inside = path.strip_prefix(&mount.mountpoint).ok()?;
        Some((mount.mountpoint.clone(), inside.to_owned()))
    };
    // With links followed; a name that the kernel believes to be absent may be there by now.
    let absolute = config::absolute(path)?;
    Ok(within(&path.canonicalize().unwrap_or(absolute)))
}

/// The status of the table for what went wrong.
pub(crate) fn status(error: &vfs::Error) -> Status {
    match error {
        vfs::Error::NotFound | vfs::Error::NotADirectory | vfs::Error::Denied(_) => {
            Status::Directory
        }
        vfs::Error::Unreachable(_) | vfs::Error::TimedOut(_) => Status::Connect,
        vfs::Error::BadName(_) | vfs::Error::NameTooLong => Status::Usage,
        _ => Status::Other,
    }
}
