//! `ftpfs status`: mounts, servers, connections, and what is not on the server yet.

use std::fmt::Write;

use super::control::{self, Report};
use super::credentials::Environment;
use super::exit::{Failure, Status};
use super::{StatusArguments, config, mounts, say};
use crate::vfs;

pub(crate) fn run(arguments: &StatusArguments) -> Result<(), Failure> {
    let mut reports = control::reports();
    let mut dead: Vec<_> =
        mounts::ours().unwrap_or_default().into_iter().filter(mounts::Mount::is_dead).collect();
    if let Some(mountpoint) = &arguments.mountpoint {
        let wanted = config::absolute(mountpoint)?;
        reports.retain(|report| report.mountpoint == wanted);
        dead.retain(|mount| mount.mountpoint == wanted);
        if reports.is_empty() && dead.is_empty() {
            let message = format!("{} is not mounted by ftpfs", wanted.display());
            return Err(Failure::new(Status::MountPoint, message));
        }
    }
    if arguments.json {
        let json = serde_json::to_string_pretty(&reports)
            .map_err(|error| Failure::other(error.to_string()))?;
        say(&(json + "\n"));
        return Ok(());
    }
    let mut text = String::new();
    for report in &reports {
        write_report(&mut text, report);
    }
    for mount in &dead {
        let path = mount.mountpoint.display();
        let _ = writeln!(text, "{path}  {}\n  dead: ftpfs umount {path} removes it", mount.source);
    }
    let environment = Environment::read();
    let left = vfs::left_over(&config::staging_dir(&environment));
    for file in left.iter().filter(|_| arguments.mountpoint.is_none()) {
        let (bytes, local) = (size(file.bytes), file.local.display());
        let _ = match &file.server {
            Some(server) => writeln!(
                text,
                "unsent, and sent when {server} is mounted again: {}  {bytes}, here {local}",
                file.path
            ),
            None => writeln!(text, "unsent, and its note is damaged: {bytes}, here {local}"),
        };
    }
    if text.is_empty() {
        text.push_str("nothing is mounted by ftpfs\n");
    }
    say(&text);
    Ok(())
}

// Writing to a string cannot fail.
fn write_report(text: &mut String, report: &Report) {
    let Report { mountpoint, source, pid, read_only, connections, .. } = report;
    let mode = if *read_only { ", read-only" } else { "" };
    let _ = writeln!(text, "{}  {source}  (process {pid}{mode})", mountpoint.display());
    let _ = writeln!(
        text,
        "  connections: {} of at most {}: {} free, {} between two reads, {} at work",
        connections.open,
        connections.limit,
        connections.free,
        connections.parked,
        connections.leased
    );
    let ahead = &report.read_ahead;
    if ahead.fetched_bytes > 0 {
        let _ = writeln!(
            text,
            "  read ahead: {}, of which {} were never read",
            size(ahead.fetched_bytes),
            size(ahead.unread_bytes)
        );
    }
    if let Some(cache) = &report.cache {
        let _ = writeln!(
            text,
            "  cache: {} of at most {} in {}; {} read from it, {} not in it; {} pinned",
            size(cache.used_bytes),
            size(cache.limit_bytes),
            cache.directory.display(),
            size(cache.hit_bytes),
            size(cache.miss_bytes),
            cache.pins.len()
        );
    }
    let protection = if report.protection.is_empty() { "none" } else { &report.protection };
    let _ = writeln!(text, "  encryption: {protection}");
    if let Some(trouble) = &report.trouble {
        let _ = writeln!(text, "  NOT REACHABLE: {trouble}");
    }
    if report.pending.is_empty() {
        text.push_str("  everything is on the server\n");
    } else {
        write_unsent(text, report);
    }
}

/// The files that are not on the server yet, a line each.
pub(crate) fn write_unsent(text: &mut String, report: &Report) {
    let bytes = report.pending.iter().map(|file| file.bytes).sum();
    let _ =
        writeln!(text, "  not on the server yet: {} files, {}", report.pending.len(), size(bytes));
    for file in &report.pending {
        let error = file.error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
        let _ = writeln!(text, "    {}  {}{error}", file.path, size(file.bytes));
    }
}

/// Bytes for people.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes as f64;
    let mut shown = format!("{bytes} bytes");
    for unit in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        shown = format!("{value:.1} {unit}");
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_readable() {
        assert_eq!(size(0), "0 bytes");
        assert_eq!(size(1023), "1023 bytes");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(5 << 30), "5.0 GiB");
    }
}
