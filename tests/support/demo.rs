//! `demo-server`: the scripted FTP server as a program, to try a mount by hand.
//!
//! Serves a sample tree in memory, or a directory read-write. Any user and
//! password are good; it listens on 127.0.0.1 only. Ends on SIGTERM and
//! SIGINT, and when the pipe that is its standard input closes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::print_stdout)]

#[path = "mod.rs"]
mod support;

use std::io::{Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use support::dialect::Dialect;
use support::hub::unix_now;
use support::server::{self, Server};
use support::storage::Storage;

/// An FTP server on 127.0.0.1 to try things with.
#[derive(Parser)]
#[command(name = "demo-server")]
struct Arguments {
    /// The port to listen on; 0 takes a free one
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Serve this directory, read-write, instead of a sample tree in memory
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Behave like this server
    #[arg(long, default_value = "default", value_parser = ["default", "vsftpd", "proftpd",
        "pureftpd", "pyftpdlib", "iis", "minimal"])]
    dialect: String,
    /// Answer every command so many milliseconds late
    #[arg(long, value_name = "MS", default_value_t = 0)]
    delay: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match serve(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "demo-server: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: &Arguments) -> std::io::Result<()> {
    // Before the address is shown: who reads it may send the signal at once.
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let storage = match &arguments.root {
        Some(root) => server::disk(root)?,
        None => Storage::memory(unix_now()),
    };
    let server = Server::bind(dialect(&arguments.dialect), storage, arguments.port)?;
    if arguments.root.is_none() {
        fill(&server);
    }
    server.set_delay(Duration::from_millis(arguments.delay));
    println!("listening on {}", server.addr());
    std::io::stdout().flush()?;

    // Only a pipe: a terminal would stop a background job that reads it, and
    // /dev/null is at its end from the start.
    let input = std::fs::metadata("/dev/stdin");
    if input.is_ok_and(|input| input.file_type().is_fifo()) {
        let handle = signals.handle();
        std::thread::spawn(move || {
            let mut block = [0; 1024];
            while std::io::stdin().read(&mut block).is_ok_and(|length| length > 0) {}
            handle.close();
        });
    }
    signals.forever().next();
    Ok(())
}

fn dialect(name: &str) -> Dialect {
    match name {
        "vsftpd" => Dialect::vsftpd(),
        "proftpd" => Dialect::proftpd(),
        "pureftpd" => Dialect::pureftpd(),
        "pyftpdlib" => Dialect::pyftpdlib(),
        "iis" => Dialect::iis(),
        "minimal" => Dialect::minimal(),
        _ => Dialect::default(),
    }
}

/// A tree that has a bit of everything.
fn fill(server: &Server) {
    server.put(
        "/README.txt",
        "This is a demo FTP server. Its files live in memory and are gone when it ends.\n\
         Any user name and password are accepted; everything may be changed.\n",
    );
    server.put("/documents/shopping.txt", "bread\nmilk\napples\n");
    server.put("/documents/letters/To Grandmother.txt", "Dear Grandmother,\n\nall is well.\n");
    server.put("/documents/Übergrößen.txt", "A name that is not ASCII.\n");
    for month in 1..=12 {
        let report = format!("Report of month {month}\n").repeat(100);
        server.put(format!("/documents/reports/2025-{month:02}.txt"), report);
    }
    server.put("/pictures/square.bmp", bitmap(64));
    server.symlink("/latest-report.txt", "documents/reports/2025-12.txt");
    server.mkdir("/incoming");
    server.put_generated("/big/100-megabytes.bin", 100_000_000, 1);
}

/// A picture that viewers open: BMP, 24 bits, `side` pixels square. `side` is
/// a multiple of four, so rows need no padding.
fn bitmap(side: u32) -> Vec<u8> {
    // 14 bytes of file header, 40 of BITMAPINFOHEADER.
    let header = 14 + 40;
    let pixels = side * side * 3;
    let mut bytes = b"BM".to_vec();
    for field in [header + pixels, 0, header, 40, side, side] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    // One plane, 24 bits per pixel, no compression.
    bytes.extend_from_slice(&[1, 0, 24, 0, 0, 0, 0, 0]);
    for field in [pixels, 2835, 2835, 0, 0] {
        bytes.extend_from_slice(&u32::to_le_bytes(field));
    }
    for row in 0..side {
        for column in 0..side {
            let shade = |value: u32| u8::try_from(value * 255 / side).unwrap_or(255);
            bytes.extend_from_slice(&[shade(row), shade(column), shade(side - row)]);
        }
    }
    bytes
}
