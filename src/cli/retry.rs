//! `ftpfs retry`: what could not be sent is tried again now.

use std::path::Path;

use super::control::{self, Report, Request};
use super::exit::{Failure, Status};
use super::progress::hear_drain;
use super::status::write_unsent;
use super::{RetryArguments, config};

pub(crate) fn run(arguments: &RetryArguments) -> Result<(), Failure> {
    let mut reports = control::reports();
    if let Some(mountpoint) = &arguments.mountpoint {
        let wanted = config::absolute(mountpoint)?;
        reports.retain(|report| report.mountpoint == wanted);
        if reports.is_empty() {
            let message = format!("{} is not mounted by ftpfs", wanted.display());
            return Err(Failure::new(Status::MountPoint, message));
        }
    }
    let results = reports.iter().map(retry).collect::<Vec<_>>();
    results.into_iter().collect()
}

fn retry(report: &Report) -> Result<(), Failure> {
    let shown = report.mountpoint.display();
    let mut line = control::line_to(&report.mountpoint)
        .ok_or_else(|| Failure::other(format!("the process behind {shown} does not answer")))?;
    match hear_drain(&mut line, Request::Retry)? {
        None => Ok(()),
        Some(error) => Err(Failure::new(
            Status::Pending,
            format!("not everything could be sent: {error}\n{}", unsent(&report.mountpoint)),
        )),
    }
}

/// What a mount has not sent, as `status` lists it.
pub(crate) fn unsent(mountpoint: &Path) -> String {
    let mut list = String::new();
    let reports = control::reports();
    if let Some(report) = reports.iter().find(|report| report.mountpoint == mountpoint) {
        write_unsent(&mut list, report);
    }
    list
}
