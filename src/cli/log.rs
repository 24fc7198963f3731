//! Messages: to the terminal, to a file, or to the system's log; and the control connection's lines
//! at `-vv`, without passwords whatever RUST_LOG says.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use chrono::{SecondsFormat, Utc};
use env_logger::{Builder, Target};
use log::{Level, LevelFilter, Record};

use super::exit::Failure;

/// Where messages go now.
enum Sink {
    Stderr,
    File(File),
    /// Datagrams to /dev/log (RFC 3164, as syslogd and journald read them).
    Syslog(UnixDatagram),
    Nowhere,
}

thread_local! {
    /// The line that suppaftp showed last on this thread.
    static LAST: RefCell<String> = const { RefCell::new(String::new()) };
}

static SINK: Mutex<Sink> = Mutex::new(Sink::Stderr);

/// Begins with standard error. `verbosity` counts `-v`; RUST_LOG, if set, is added to it.
pub(crate) fn start(verbosity: u8) {
    let level = match verbosity {
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        _ => LevelFilter::Debug,
    };
    let wire = if verbosity >= 2 { LevelFilter::Trace } else { LevelFilter::Warn };
    Builder::new()
        .filter_level(LevelFilter::Warn)
        .filter_module("ftpfs", level)
        .filter_module("suppaftp", wire)
        // It reports each EIO it passes on, and its own unmounting, as errors of its own.
        .filter_module("fuser", LevelFilter::Error)
        .parse_default_env()
        .format(|_, record| {
            if let Some(text) = message(record) {
                write(record.level(), &text);
            }
            Ok(())
        })
        .target(Target::Pipe(Box::new(io::sink())))
        .init();
    std::panic::set_hook(Box::new(|panic| {
        log::error!("a fault in ftpfs, please report it: {panic}")
    }));
}

/// From now on to this file.
pub(crate) fn to_file(path: &Path) -> Result<(), Failure> {
    // Private, as names of files on the server are.
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    let file =
        file.map_err(|error| Failure::usage(format!("--log {}: {error}", path.display())))?;
    set(Sink::File(file));
    Ok(())
}

/// Standard error is about to end: what goes there goes to the system's log from now on.
pub(crate) fn leave_terminal() {
    if matches!(*lock(), Sink::Stderr) {
        let socket = UnixDatagram::unbound().and_then(|s| s.connect("/dev/log").map(|()| s));
        set(socket.map_or(Sink::Nowhere, Sink::Syslog));
    }
}

fn set(sink: Sink) {
    *lock() = sink;
}

fn lock() -> std::sync::MutexGuard<'static, Sink> {
    SINK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Nobody can be told that a message could not be written.
fn write(level: Level, text: &str) {
    let _ = match &mut *lock() {
        Sink::Stderr => writeln!(io::stderr(), "ftpfs: {}{text}", prefix(level)),
        Sink::File(file) => {
            let now = Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true);
            writeln!(file, "{now} {level} {text}")
        }
        Sink::Syslog(socket) => {
            let line = format!("<{}>ftpfs[{}]: {text}", priority(level), std::process::id());
            socket.send(line.as_bytes()).map(drop)
        }
        Sink::Nowhere => Ok(()),
    };
}

fn prefix(level: Level) -> &'static str {
    match level {
        Level::Error => "error: ",
        Level::Warn => "warning: ",
        Level::Info | Level::Debug | Level::Trace => "",
    }
}

/// Facility daemon (3) and the severity (RFC 3164 §4.1.1).
fn priority(level: Level) -> u8 {
    let severity = match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    3 * 8 + severity
}

/// What is shown of a record, if anything. Of suppaftp's chatter only the control connection is,
/// since the rest says the same again and may hold a password.
fn message(record: &Record<'_>) -> Option<String> {
    if !record.target().starts_with("suppaftp") {
        return Some(record.args().to_string());
    }
    if record.level() <= Level::Info {
        return Some(record.args().to_string());
    }
    // Of each reply suppaftp shows the first line twice.
    let text = record.args().to_string();
    if !text.starts_with("CC ") {
        return None;
    }
    let is_same = text == LAST.with(|last| last.replace(text.clone())) && text.starts_with("CC IN");
    if is_same { None } else { wire_line(&text) }
}

/// `CC OUT: RETR x` -> `> RETR x`; `CC IN: [50, 50, 54]` -> `< 226`.
fn wire_line(text: &str) -> Option<String> {
    if let Some(command) = text.strip_prefix("CC OUT: ") {
        let verb = command.split(' ').next().unwrap_or_default().to_ascii_uppercase();
        if matches!(verb.as_str(), "PASS" | "ACCT") {
            return Some(format!("> {verb} ***"));
        }
        // Names travel through suppaftp with one character for each byte.
        let bytes: Option<Vec<u8>> = command.chars().map(|c| u8::try_from(c).ok()).collect();
        let command = match &bytes {
            Some(bytes) => String::from_utf8_lossy(bytes),
            None => command.into(),
        };
        return Some(format!("> {}", printable(&command)));
    }
    let list = text.strip_prefix("CC IN: ")?.strip_prefix('[')?.strip_suffix(']')?;
    let bytes: Option<Vec<u8>> =
        list.split(", ").filter(|byte| !byte.is_empty()).map(|byte| byte.parse().ok()).collect();
    Some(format!("< {}", printable(String::from_utf8_lossy(&bytes?).trim_end())))
}

/// A server must not move the cursor of the reader's terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_wire_are_readable() {
        assert_eq!(wire_line("CC OUT: RETR /a b").as_deref(), Some("> RETR /a b"));
        assert_eq!(wire_line("CC OUT: RETR /gr\u{c3}\u{bc}n").as_deref(), Some("> RETR /grün"));
        assert_eq!(
            wire_line("CC IN: [50, 50, 54, 32, 79, 107, 13, 10]").as_deref(),
            Some("< 226 Ok")
        );
        assert_eq!(wire_line("CC IN: [27, 91]").as_deref(), Some("< ?["));
    }

    #[test]
    fn a_password_is_never_shown() {
        for secret in [
            "CC OUT: PASS hunter2",
            "CC OUT: pass hunter2",
            "CC OUT: ACCT hunter2",
            "Signing in with hunter2",
            "PASS hunter2",
        ] {
            assert!(!wire_line(secret).unwrap_or_default().contains("hunter2"), "{secret}");
        }
    }
}
