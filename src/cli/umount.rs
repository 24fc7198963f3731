//! `ftpfs umount`: everything to the server first, then the mount goes, then its process.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::control::{self, Line, Request};
use super::exit::{Failure, Status};
use super::progress::hear_drain;
use super::retry::unsent;
use super::{UmountArguments, complain, config, mounts, system};

/// How long its process may take to end after the unmounting: it closes its connections.
const ENDING: Duration = Duration::from_secs(10);

pub(crate) fn run(arguments: &UmountArguments) -> Result<(), Failure> {
    let mountpoint = config::absolute(&arguments.mountpoint)?;
    let shown = mountpoint.display();
    let mount = mounts::at(&mountpoint)
        .map_err(|error| Failure::other(error.to_string()))?
        .filter(mounts::Mount::is_ours)
        .ok_or_else(|| {
            Failure::new(Status::MountPoint, format!("{shown} is not mounted by ftpfs"))
        })?;
    if mount.is_dead() {
        return system::unmount(&mountpoint, true)
            .map_err(|error| Failure::other(error.to_string()));
    }
    let mut line = control::line_to(&mountpoint);
    if let Some(line) = &mut line {
        if arguments.no_wait {
            hear_drain(line, Request::Leave)?;
        } else {
            drain(line, &mountpoint, arguments.force)?;
        }
    } else {
        complain("its process does not answer; the kernel unmounts without it");
    }
    let unmounted = if arguments.lazy {
        system::unmount(&mountpoint, true)
    } else {
        system::unmount_soon(&mountpoint)
    };
    unmounted.map_err(|error| match error.kind() {
        io::ErrorKind::ResourceBusy => {
            let users = mounts::users(&mountpoint, 3).join(", ");
            let users = if users.is_empty() { "a program".into() } else { users };
            Failure::new(
                Status::Busy,
                format!("{shown} is in use by {users}; end it, or say --lazy"),
            )
        }
        _ => Failure::other(format!("{shown}: {error}")),
    })?;
    if arguments.lazy {
        return Ok(());
    }
    line.map_or(Ok(()), wait_for_end)
}

/// Waits until everything is on the server.
fn drain(line: &mut Line, mountpoint: &Path, force: bool) -> Result<(), Failure> {
    match hear_drain(line, Request::Drain)? {
        Some(error) if !force => Err(Failure::new(
            Status::Pending,
            format!(
                "not unmounted, since not everything could be sent: {error}\n{}ftpfs: try again, or \
                 say --force to unmount and keep it on the local disk",
                unsent(mountpoint)
            ),
        )),
        _ => Ok(()),
    }
}

/// Afterwards nothing of the mount is left: neither its process nor its connections, nor its locks
/// on what is kept here.
fn wait_for_end(mut line: Line) -> Result<(), Failure> {
    let until = Instant::now() + ENDING;
    while let Some(left) =
        until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    {
        match line.hear(left) {
            // Its sockets are closed before its files are.
            Ok(None) if !system::is_alive(line.pid()) => return Ok(()),
            Ok(None) => std::thread::sleep(Duration::from_millis(1)),
            Ok(Some(_)) => {}
            Err(_) => break,
        }
    }
    Err(Failure::other("unmounted, but its process has not ended yet; ps shows it as ftpfs"))
}
