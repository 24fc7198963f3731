//! `delay-line`: makes two TUN devices and carries packets between them, each held for half of a
//! round trip, and no more of them a second than a line of a given rate would carry.
//!
//! Stands in for netem, which many kernels lack. The TCP on both ends is the real one; packets are
//! neither reordered nor lost, unless the queue before the line is full. `scripts/bench` puts the
//! devices into two network namespaces. Says `ready` when the devices exist; ends on SIGTERM, and
//! the devices end with it. Needs root.
#![allow(clippy::print_stdout)]

use std::ffi::c_char;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;

/// The header that the kernel puts before each packet (`struct virtio_net_hdr`): 10 bytes. With it
/// packets of up to 64 KiB pass whole, as between a driver and its card, which keeps the line cheap.
const HEADER_SIZE: libc::c_int = 10;
const PACKET_MAX: usize = 10 + 65_536;

/// Packets held in one direction: 64 KiB each at most, so this is the bound of memory too.
const SLOTS: usize = 8192;

/// What waits before a line of limited rate, beside what is on the line: a common router's buffer.
const BUFFER_BYTES: u64 = 256 * 1024;

/// Joins two new TUN devices by a line with a delay and a rate.
#[derive(Parser)]
#[command(name = "delay-line")]
struct Arguments {
    /// The round-trip time in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0.0)]
    rtt: f64,
    /// Megabits per second in each direction; 0 sets no limit
    #[arg(long, value_name = "MBIT", default_value_t = 0.0)]
    rate: f64,
    /// The names of the two devices
    #[arg(num_args = 2, required = true, value_name = "DEVICE")]
    devices: Vec<String>,
}

/// One direction: how long it takes, and how much it carries.
#[derive(Clone, Copy)]
struct Line {
    delay: Duration,
    /// None: as much as comes.
    bytes_per_second: Option<f64>,
}

/// A packet with its header, and when it leaves the line.
struct Held {
    due: Instant,
    packet: Vec<u8>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "delay-line: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> io::Result<()> {
    let seconds = arguments.rtt / 2000.0;
    let delay = Duration::try_from_secs_f64(seconds).map_err(|_| invalid("no such time"))?;
    let bytes_per_second = (arguments.rate > 0.0).then_some(arguments.rate * 1e6 / 8.0);
    let line = Line { delay, bytes_per_second };
    let [first, second] = arguments.devices.as_slice() else {
        return Err(invalid("two devices, please"));
    };
    let (first, second) = (tun(first)?, tun(second)?);
    println!("ready");
    let there = carry(line, first.try_clone()?, second.try_clone()?);
    let back = carry(line, second, first);
    there.join().and(back.join()).map_err(|_| invalid("a thread ended"))?
}

/// Carries packets in one direction until their device is gone.
fn carry(line: Line, source: File, sink: File) -> thread::JoinHandle<io::Result<()>> {
    let (sender, receiver) = sync_channel(SLOTS);
    let waiting = Arc::new(AtomicU64::new(0));
    let left = Arc::clone(&waiting);
    thread::spawn(move || release(&receiver, sink, &left));
    thread::spawn(move || take(line, source, &sender, &waiting))
}

/// Takes packets from a device; one for which the line has no room is lost, as in a router.
fn take(
    line: Line,
    mut source: File,
    sender: &SyncSender<Held>,
    waiting: &AtomicU64,
) -> io::Result<()> {
    let mut buffer = vec![0; PACKET_MAX];
    let mut free_at = Instant::now();
    loop {
        let size = source.read(&mut buffer)?;
        let now = Instant::now();
        let mut due = now + line.delay;
        if let Some(rate) = line.bytes_per_second {
            let on_the_line = (rate * line.delay.as_secs_f64()) as u64;
            if waiting.load(Ordering::Relaxed) > BUFFER_BYTES + on_the_line {
                continue;
            }
            // The line is busy with this packet for as long as its bytes take.
            free_at = free_at.max(now) + Duration::from_secs_f64(size as f64 / rate);
            due = free_at + line.delay;
        }
        let packet = buffer.get(..size).unwrap_or_default().to_vec();
        waiting.fetch_add(size as u64, Ordering::Relaxed);
        if sender.try_send(Held { due, packet }).is_err() {
            waiting.fetch_sub(size as u64, Ordering::Relaxed);
        }
    }
}

/// Gives packets to the other device, each when it is due.
fn release(receiver: &Receiver<Held>, mut sink: File, waiting: &AtomicU64) {
    for held in receiver {
        thread::sleep(held.due.saturating_duration_since(Instant::now()));
        // A device that is not up yet refuses: the packet is lost, and TCP sends it again.
        let _ = sink.write_all(&held.packet);
        waiting.fetch_sub(held.packet.len() as u64, Ordering::Relaxed);
    }
}

/// A new TUN device, which lives as long as the file.
fn tun(name: &str) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short,
        },
    };
    if name.is_empty() || name.len() >= libc::IFNAMSIZ {
        return Err(invalid("a device's name has 1 to 15 letters"));
    }
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *slot = byte as c_char;
    }
    let descriptor = file.as_raw_fd();
    // SAFETY: the descriptor is open for the whole call, and the request is a valid `ifreq`, which
    // the kernel reads and fills within its size.
    #[allow(unsafe_code)]
    check(unsafe { libc::ioctl(descriptor, libc::TUNSETIFF, &raw mut request) })?;
    let header_size = HEADER_SIZE;
    // SAFETY: the descriptor is open, and the argument points to the integer that is read.
    #[allow(unsafe_code)]
    check(unsafe { libc::ioctl(descriptor, libc::TUNSETVNETHDRSZ, &raw const header_size) })?;
    let offload = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    // SAFETY: the descriptor is open, and this request takes its argument by value.
    #[allow(unsafe_code)]
    check(unsafe { libc::ioctl(descriptor, libc::TUNSETOFFLOAD, offload) })?;
    Ok(file)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}
