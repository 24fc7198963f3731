//! What the user types, and what the user reads.
//!
//! Invariants: this room alone touches arguments, environment, secrets at rest, signals and
//! standard output; each failure is printed once, by `run`, on one line, and ends with the status
//! of the table in `exit`.

mod argv;
mod config;
mod control;
mod credentials;
mod daemon;
mod exit;
mod log;
mod mount;
mod mounts;
mod netrc;
mod network;
mod options;
mod pin;
mod progress;
mod refresh;
mod remote;
mod retry;
mod save;
mod status;
mod system;
mod tls;
mod umount;
mod writing;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use config::MountConfig;
use credentials::Environment;
use exit::{Failure, Status, TABLE};
use network::NetworkArguments;
use options::{
    parse_connections, parse_memory, parse_read_ahead, parse_streams, parse_timeout, parse_ttl,
};
use tls::TlsArguments;
use writing::WritingArguments;

use crate::vfs::{ReadAhead, StreamLimit};

/// Mounts an FTP server as a folder.
#[derive(Debug, Parser)]
#[command(name = "ftpfs", version, after_help = TABLE, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Mount(Box<MountArguments>),
    Umount(UmountArguments),
    Status(StatusArguments),
    Refresh(RefreshArguments),
    Retry(RetryArguments),
    Pin(PinArguments),
    Save(SaveArguments),
}

/// Mount a server, or a directory of it; returns when the mount answers.
#[derive(Args, Debug)]
#[command(after_help = TABLE, max_term_width = 100)]
struct MountArguments {
    /// [user@]host[:port][/dir], or ftp://user:password@host:port/dir, percent-encoded;
    /// ftps:// and ftpes:// require TLS.
    ///
    /// The directory is one below the login directory; with two slashes (host//dir) it is absolute.
    /// Without a user, ~/.netrc is asked, and then it is anonymous.
    source: OsString,

    /// An empty directory.
    mountpoint: PathBuf,

    /// Words as in /etc/fstab: ro, allow_other, uid=, gid=, umask=, noexec, nonempty, and the
    /// options below with _ for -, such as password_file=.
    #[arg(short = 'o', value_name = "WORD,…")]
    options: Vec<OsString>,

    /// Change nothing on the server.
    #[arg(short, long)]
    read_only: bool,

    /// For how long a listing is believed; 0 asks the server at every look [default: 10].
    #[arg(long, value_name = "SECONDS", value_parser = parse_ttl)]
    ttl: Option<Duration>,

    /// For how much longer an older listing is shown at once, while a new one is asked for in the
    /// background; opening and changing always wait for the new one. Not with a TTL of 0
    /// [default: 0].
    #[arg(long, value_name = "SECONDS", value_parser = parse_ttl)]
    ttl_grace: Option<Duration>,

    /// The most connections to the server at once [default: 8].
    #[arg(long, value_name = "N", value_parser = parse_connections)]
    connections: Option<usize>,

    /// The longest wait without progress; then the program gets an error [default: 30].
    #[arg(long, value_name = "SECONDS", value_parser = parse_timeout)]
    timeout: Option<Duration>,

    /// List folders and fetch small files before a program that walks through them asks: auto or
    /// off [default: auto].
    #[arg(long, value_name = "WHEN", value_parser = parse_read_ahead)]
    read_ahead: Option<ReadAhead>,

    /// Keep what is read in this directory, across mounts; --cache-size bounds it.
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,

    /// The most that contents of files take in memory beyond the kernel's page cache, such as 16M:
    /// fetched ahead, read lately by open files, on the way to the cache [default: 64M].
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    memory: Option<usize>,

    /// The most connections for one large file that is read from front to back: a number, 1 for
    /// off, or auto: as many as are free and bring more [default: auto].
    #[arg(long, value_name = "N", value_parser = parse_streams)]
    streams: Option<StreamLimit>,

    /// Refuse chown to another user, instead of accepting it without effect.
    #[arg(long)]
    strict_owner: bool,

    /// Read past the kernel's page cache: faster for large files that are read once, in large
    /// blocks.
    #[arg(long)]
    direct_io: bool,

    /// Show what the server tells of files (owner, unique, perm …) as extended attributes
    /// user.ftp.*; ls -l then takes longer, as it asks for attributes of each file.
    #[arg(long)]
    facts: bool,

    /// Take the password from the first line of this file; - is standard input.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,

    /// Look for user, password and account in this file [default: $NETRC or ~/.netrc].
    #[arg(long, value_name = "FILE")]
    netrc: Option<PathBuf>,

    /// Append messages to this file, instead of the system's log.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,

    /// Stay in the foreground and write messages to standard error.
    #[arg(short, long)]
    foreground: bool,

    /// Say more: -v the server's welcome and what is learnt of it, -vv every line on the control
    /// connection. RUST_LOG works too.
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,

    /// Ignore unknown words after -o, as mount -s asks.
    #[arg(long, hide = true)]
    sloppy: bool,

    /// Check everything that can be checked without connecting, as mount -f asks.
    #[arg(long, hide = true)]
    fake: bool,

    #[command(flatten, next_help_heading = "Writing")]
    writing: WritingArguments,

    #[command(flatten, next_help_heading = "Network")]
    network: NetworkArguments,

    #[command(flatten, next_help_heading = "TLS")]
    tls: TlsArguments,
}

/// Send what is not on the server yet, then unmount.
#[derive(Args, Debug)]
#[command(after_help = TABLE, max_term_width = 100)]
struct UmountArguments {
    mountpoint: PathBuf,

    /// Unmount also while programs use it; they get errors from then on.
    #[arg(short, long)]
    lazy: bool,

    /// Unmount also if something cannot be sent; it is kept on the local disk.
    #[arg(short, long)]
    force: bool,

    /// Send nothing now: what is unsent is kept on the local disk and sent by the next mount.
    #[arg(long, conflicts_with = "force")]
    no_wait: bool,
}

/// Show mounts, servers, connections, and files that are not on the server yet.
#[derive(Args, Debug)]
#[command(after_help = TABLE, max_term_width = 100)]
struct StatusArguments {
    /// Only this one.
    mountpoint: Option<PathBuf>,

    /// For programs: a list of mounts in JSON.
    #[arg(long)]
    json: bool,
}

/// Ask the server at the next look at a file or folder, also if its listing is believed.
#[derive(Args, Debug)]
#[command(after_help = TABLE, max_term_width = 100)]
struct RefreshArguments {
    /// A file or folder in a mount.
    path: PathBuf,

    /// Also at all that is known below the folder.
    #[arg(short, long)]
    recursive: bool,
}

/// Send now what could not be sent, instead of waiting for the next attempt.
#[derive(Args, Debug)]
#[command(after_help = TABLE, max_term_width = 100)]
struct RetryArguments {
    /// Only this one.
    mountpoint: Option<PathBuf>,
}

/// Fetch a file, or all files of a folder, into the cache and keep them there, also while the server
/// is away. Needs a mount with --cache.
#[derive(Args, Debug)]
#[command(after_help = TABLE, max_term_width = 100)]
struct PinArguments {
    /// A file or folder in a mount.
    #[arg(required_unless_present = "list")]
    path: Option<PathBuf>,

    /// Let it go again when room is needed.
    #[arg(long)]
    remove: bool,

    /// Show what is pinned, in one mount or in all.
    #[arg(long, conflicts_with = "remove")]
    list: bool,
}

/// Copy a file that could not be sent to another place.
#[derive(Args, Debug)]
#[command(after_help = TABLE, max_term_width = 100)]
struct SaveArguments {
    /// A file in a mount, or what is left of an ended one: its path on the server or here, as
    /// status shows them.
    file: PathBuf,

    /// A new file, or a directory.
    destination: PathBuf,

    /// Do not send it any more. Only for what an ended mount left.
    #[arg(long)]
    forget: bool,
}

/// Runs the program; prints why it failed.
pub fn run() -> ExitCode {
    let arguments = argv::normalise(std::env::args_os().collect());
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no failures; both go where clap thinks best. If nobody
            // listens, there is nobody to be told.
            let _ = error.print();
            return if error.use_stderr() { Status::Usage.into() } else { ExitCode::SUCCESS };
        }
    };
    match dispatch(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { status, message }) => {
            complain(&message);
            status.into()
        }
    }
}

fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Mount(arguments) => {
            argv::blank_passwords(&arguments.source);
            let _ = system::forbid_core_dump();
            system::limit_heap();
            log::start(arguments.verbose);
            mount::run(MountConfig::new(*arguments, &Environment::read())?)
        }
        Command::Umount(arguments) => umount::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Refresh(arguments) => refresh::run(&arguments),
        Command::Retry(arguments) => retry::run(&arguments),
        Command::Pin(arguments) => pin::run(&arguments),
        Command::Save(arguments) => save::run(&arguments),
    }
}

/// One line on standard error.
#[allow(clippy::print_stderr)]
fn complain(message: &str) {
    eprintln!("ftpfs: {message}");
}

/// To standard output; a reader that has gone (`| head`) is no failure.
fn say(text: &str) {
    use std::io::Write;
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// The arguments of a mount, for tests of what is made of them.
#[cfg(test)]
fn parse_mount(words: Vec<OsString>) -> MountArguments {
    match Cli::try_parse_from(words).unwrap().command {
        Command::Mount(arguments) => *arguments,
        other => panic!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }
}
