//! `ftpfs save`: the bytes of a file that could not be sent, to another place.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::credentials::Environment;
use super::exit::{Failure, Status};
use super::{SaveArguments, complain, config, mounts};
use crate::vfs::{self, LeftOver};

pub(crate) fn run(arguments: &SaveArguments) -> Result<(), Failure> {
    let source = config::absolute(&arguments.file)?;
    if is_in_mount(&source) {
        if arguments.forget {
            let message = "--forget is for files without a mount; in a mount, remove the file";
            return Err(Failure::usage(message));
        }
        let from = File::open(&source).map_err(|error| failed(&source, &error))?;
        return copy(from, &name_of(&source), &arguments.destination);
    }
    let found = find(arguments, &source)?;
    if !found.is_whole && found.server.is_some() {
        return Err(Failure::other(format!(
            "only the changed parts of {} are here, in {}; the rest was only on the server",
            found.path,
            found.local.display()
        )));
    }
    let from = File::open(&found.local).map_err(|error| failed(&found.local, &error))?;
    // The local file may be longer than what was promised.
    let name = found.path.rsplit('/').next().unwrap_or("file").to_owned();
    copy(from.take(found.bytes), &name, &arguments.destination)?;
    if arguments.forget {
        vfs::forget_left_over(&found.local).map_err(|error| failed(&found.local, &error))?;
        complain(&format!("{} is saved, and will not be sent any more", found.path));
    }
    Ok(())
}

fn is_in_mount(path: &Path) -> bool {
    let ours = mounts::ours().unwrap_or_default();
    ours.iter().any(|mount| path.starts_with(&mount.mountpoint) && !mount.is_dead())
}

/// By its path on the server or here, as `status` shows them.
fn find(arguments: &SaveArguments, source: &Path) -> Result<LeftOver, Failure> {
    let said = arguments.file.to_string_lossy();
    let mut left = vfs::left_over(&config::staging_dir(&Environment::read()));
    left.retain(|file| file.path == said || file.local == source);
    match left.len() {
        1 => left.pop().ok_or_else(|| Failure::other("nothing to save")),
        0 => Err(Failure::new(
            Status::Usage,
            format!("{said}: neither in a mount of ftpfs nor unsent; ftpfs status shows what is"),
        )),
        _ => Err(Failure::usage(format!(
            "{said}: several unsent files have this path; name the local file that ftpfs status \
             shows"
        ))),
    }
}

/// To a new file, or to one of this name in a directory; nothing is overwritten.
fn copy(mut from: impl Read, name: &str, destination: &Path) -> Result<(), Failure> {
    let to: PathBuf =
        if destination.is_dir() { destination.join(name) } else { destination.to_owned() };
    let mut file = OpenOptions::new().write(true).create_new(true).open(&to).map_err(|error| {
        match error.kind() {
            io::ErrorKind::AlreadyExists => {
                Failure::usage(format!("{} exists already; choose another name", to.display()))
            }
            _ => failed(&to, &error),
        }
    })?;
    let copied = io::copy(&mut from, &mut file).and_then(|_| file.sync_all());
    copied.map_err(|error| {
        // Half a copy is none.
        let _ = fs::remove_file(&to);
        failed(&to, &error)
    })
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    Failure::other(format!("{}: {error}", path.display()))
}
