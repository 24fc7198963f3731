//! One large file over several connections, and what becomes of its bytes when anything goes wrong;
//! files replaced while they are read; and what a look at the head of a large file costs.

use std::io::Read;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ftpfs::ftp::Pool;
use ftpfs::vfs::{StreamLimit, Vfs};

use crate::drivers::{Direct, Driver, Fail, How, Kernel, Result, has_fuse, options, target};
use crate::support::dialect::{Dialect, Limit, Rest};
use crate::support::faults::{Fault, What};
use crate::support::server::Server;
use crate::support::tree::fill_generated;

const LONG: Duration = Duration::from_secs(600);

const MIB: u64 = 1024 * 1024;

/// Two measurements and three parts before the first one, and some rounds of them.
const SIZE: u64 = 56 * MIB;

const SEED: u64 = 7;

/// Of one connection: a file takes 3 s by one.
const RATE: u64 = 20 * MIB;

/// What no other file has at its beginning.
fn expected(offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fill_generated(SEED, offset, &mut bytes);
    bytes
}

fn start(dialect: Dialect) -> Server {
    let server = Server::start(dialect);
    server.put_generated("/big", SIZE, SEED);
    server.set_mtime("/big", 1_000_000_000);
    server.put("/other", "other");
    server.set_rate(RATE);
    server
}

fn mount(server: &Server, streams: StreamLimit) -> Direct {
    let mut target = target(server, 8);
    target.timeout = Duration::from_secs(5);
    let staging = tempfile::tempdir().unwrap();
    let options = ftpfs::vfs::Options { streams, ..options(LONG, staging.path()) };
    Direct { vfs: Vfs::new(Pool::open(target).unwrap(), options).unwrap(), staging }
}

/// Reads the file from front to back as the kernel does; how far it came, and why no further.
fn read_all(fs: &Direct, mut meanwhile: impl FnMut(u64)) -> (u64, Result<()>) {
    let mut file = fs.open(b"big", How::READ).unwrap();
    let mut offset = 0;
    while offset < SIZE {
        let length = (SIZE - offset).min(MIB / 2) as usize;
        match file.read_at(offset, length) {
            Ok(bytes) => assert!(bytes == expected(offset, length), "wrong bytes at {offset}"),
            Err(fail) => return (offset, Err(fail)),
        }
        offset += length as u64;
        meanwhile(offset);
    }
    (offset, file.close())
}

#[test]
fn several_connections_bring_one_file() {
    // Whether it is worth it is measured, which a busy machine can spoil.
    let read = || {
        let server = start(Dialect::proftpd());
        let fs = mount(&server, StreamLimit::Auto);
        assert_eq!(read_all(&fs, |_| ()), (SIZE, Ok(())));
        (server.count("REST") > 0).then_some(server)
    };
    let server = (0..5).find_map(|_| read());
    let server = server.expect("one connection was limited, and others were free");
    // Each further transfer proved its version, in the segment that opened it.
    assert_eq!(server.count("MLST"), server.count("REST"));
    assert!(server.sessions_peak() <= 8);
}

#[test]
fn streams_of_one_are_one() {
    let server = start(Dialect::proftpd());
    let fs = mount(&server, StreamLimit::Most(1));
    assert_eq!(read_all(&fs, |_| ()), (SIZE, Ok(())));
    assert_eq!((server.count("REST"), server.count("RETR")), (0, 1));
}

/// The kernel asks for several pieces at once, for a program that says so (`cat`, `cp`) up to 4 MiB,
/// and the threads that take them do not keep their order.
#[test]
fn pieces_that_are_asked_for_at_once_come_over_one_transfer() {
    if !has_fuse() {
        println!("SKIPPED: a read through the kernel: /dev/fuse cannot be opened");
        return;
    }
    // On a busy machine one that has a piece may be kept from asking for it, and another goes before:
    // one of two is to be undisturbed. That those who wait go in order is tested beside them.
    let reading = (0..2).map(|_| read_by_advice()).find(|transfers| *transfers == (0, 1));
    assert!(reading.is_some(), "both had further transfers");
}

/// How many offsets and transfers it took.
fn read_by_advice() -> (usize, usize) {
    let server = start(Dialect::proftpd());
    let Direct { vfs, staging } = mount(&server, StreamLimit::Most(1));
    let kernel = Kernel::over(Arc::new(vfs), 8, tempfile::tempdir().unwrap(), staging);
    let mut file = std::fs::File::open(kernel.root.join("big")).unwrap();
    // SAFETY: the descriptor is open; nothing is read or written by it.
    #[allow(unsafe_code)]
    let told = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_SEQUENTIAL) };
    assert_eq!(told, 0);
    let mut bytes = vec![0; MIB as usize / 8];
    for offset in (0..SIZE).step_by(bytes.len()) {
        file.read_exact(&mut bytes).unwrap();
        assert!(bytes == expected(offset, bytes.len()), "wrong bytes at {offset}");
    }
    (server.count("REST"), server.count("RETR"))
}

#[test]
fn a_file_that_is_soon_over_has_one_stream() {
    let server = start(Dialect::proftpd());
    server.put("/small", vec![b'x'; 12 * MIB as usize]);
    let fs = mount(&server, StreamLimit::Auto);
    assert_eq!(fs.read(b"small").unwrap().len() as u64, 12 * MIB);
    assert_eq!(server.count("REST"), 0);
}

/// On a server of few connections, without offsets, or whose offsets are not heeded, the bytes are
/// right all the same.
#[test]
fn servers_that_do_not_like_it() {
    let few = Limit::AtLogin(1, 530, "Sorry, the maximum number of clients");
    let two = Limit::AtGreeting(2, 421, "Too many connections");
    for dialect in [
        Dialect { limit: few, ..Dialect::proftpd() },
        Dialect { limit: two, ..Dialect::proftpd() },
        Dialect { rest: Rest::Ignored, ..Dialect::proftpd() },
        Dialect { rest: Rest::Absent, ..Dialect::proftpd() },
        Dialect { mdtm: false, ..Dialect::vsftpd() },
        Dialect::vsftpd(),
        Dialect::pyftpdlib(),
    ] {
        let server = start(dialect.clone());
        let fs = mount(&server, StreamLimit::Auto);
        assert_eq!(read_all(&fs, |_| ()), (SIZE, Ok(())), "{dialect:?}");
        assert!(fs.vfs.pool().trouble().is_none());
    }
}

#[test]
fn trouble_of_a_stream_is_nobodys_trouble() {
    for what in [
        What::Reply(550, "no"),
        What::Reply(421, "closing"),
        What::Close,
        What::Reset,
        What::CutData(MIB),
        What::CutDataReply(MIB, 226, "Transfer complete"),
        What::CutControlAfter(MIB),
        What::ResetAfter(2 * MIB),
        What::LoseReply,
    ] {
        for nth in [2, 4] {
            let server = start(Dialect::proftpd());
            let fs = mount(&server, StreamLimit::Auto);
            // The first one is the reader's own.
            let times = if matches!(what, What::Reply(550, _)) { 1 } else { 2 };
            server.fault(Fault { on: "RETR", nth, times, what: what.clone() });
            assert_eq!(read_all(&fs, |_| ()), (SIZE, Ok(())), "{what:?} {nth}");
        }
    }
}

#[test]
fn a_request_does_not_wait_for_streams() {
    let mut dialect = Dialect::proftpd();
    dialect.limit = Limit::AtLogin(3, 530, "Sorry, the maximum number of clients");
    let server = start(dialect);
    let fs = mount(&server, StreamLimit::Auto);
    let read = read_all(&fs, |offset| {
        if offset % (4 * MIB) == 0 {
            assert_eq!(fs.read(b"other").unwrap(), b"other");
        }
    });
    assert_eq!(read, (SIZE, Ok(())));
}

#[test]
fn a_file_replaced_under_several_streams_is_one_version_or_stale() {
    for at in [8, 16, 20, 24, 32, 40] {
        let server = start(Dialect::proftpd());
        server.put_generated("/new", SIZE, SEED + 1);
        server.set_mtime("/new", 1_000_000_100);
        let fs = mount(&server, StreamLimit::Auto);
        let (end, read) = read_all(&fs, |offset| {
            if offset == at * MIB {
                server.rename_between("/new", "/big");
            }
        });
        assert!(read == Ok(()) || read == Err(Fail::Stale), "{read:?}");
        assert!(end >= at * MIB);
    }
}

/// A generator of random numbers: xorshift64 (Marsaglia 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

const LENGTH: u64 = 2 * MIB;

/// Each word is its place and the version: no two versions have a word in common.
fn version(number: u64) -> Vec<u8> {
    let word = |index: u64| (index << 16 | number).to_le_bytes();
    (0..LENGTH / 8).flat_map(word).collect()
}

/// Which version these words, from `offset` on, belong to.
fn version_of(offset: u64, bytes: &[u8]) -> u64 {
    let mut numbers = bytes.chunks_exact(8).zip(offset / 8..).map(|(word, index)| {
        let word = u64::from_le_bytes(word.try_into().unwrap());
        assert_eq!(word >> 16, index, "bytes of another place");
        word & 0xffff
    });
    let first = numbers.next().unwrap();
    assert!(numbers.all(|number| number == first), "a mixture within one read");
    first
}

/// One file, opened once and read here and there: one version, or an error that says so.
fn read_at_random(fs: &Direct, path: &[u8], random: &mut Random) {
    let Ok(mut file) = fs.open(path, How::READ) else { return };
    let mut seen = None;
    let mut offset = random.below(LENGTH / 8) * 8;
    for _ in 0..12 {
        let length = (8 + random.below(16 * 1024) * 8).min(LENGTH - offset);
        match file.read_at(offset, length as usize) {
            Ok(bytes) => {
                assert_eq!(bytes.len() as u64, length);
                let now = version_of(offset, &bytes);
                assert_eq!(*seen.get_or_insert(now), now, "a mixture within one open file");
            }
            Err(Fail::Stale) => return,
            Err(fail) => panic!("{fail:?}"),
        }
        // On, or elsewhere.
        offset = match random.below(3) {
            0 if offset + length < LENGTH => offset + length,
            _ => random.below(LENGTH / 8) * 8,
        };
    }
}

#[test]
fn each_open_file_is_one_version_while_another_client_replaces_it() {
    const FILES: u64 = 4;
    let name = |index: u64| format!("f{index}");
    for ttl in [Duration::ZERO, Duration::from_millis(20)] {
        let server = Server::start(Dialect::proftpd());
        let replace = |index: u64, number: u64| {
            server.put("/next", version(number));
            server.set_mtime("/next", 1_000_000_000 + number as i64);
            server.rename_between("/next", format!("/dir/{}", name(index)));
        };
        server.mkdir("/dir");
        (0..FILES).for_each(|index| replace(index, index));
        let fs = Direct::new(&server, 6, ttl);
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let readers: Vec<_> = (1..=4u64)
                .map(|seed| {
                    let fs = &fs;
                    scope.spawn(move || {
                        let mut random = Random(seed * 0x9e37_79b9);
                        for _ in 0..12 {
                            let path = format!("dir/{}", name(random.below(FILES)));
                            read_at_random(fs, path.as_bytes(), &mut random);
                        }
                    })
                })
                .collect();
            let (replace, is_over) = (&replace, &is_over);
            scope.spawn(move || {
                let mut random = Random(99);
                for number in FILES..60_000 {
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    replace(random.below(FILES), number);
                }
            });
            let ended: Vec<_> = readers.into_iter().map(|reader| reader.join()).collect();
            is_over.store(true, Ordering::Relaxed);
            assert!(ended.iter().all(|ended| ended.is_ok()), "see above");
        });
    }
}

/// What the server sends before it hears of us again: a receive buffer of the kernel's first size,
/// a block of ours, and what waits at the server.
const HEAD: u64 = 512 * 1024;

#[test]
fn the_head_of_a_large_file_costs_one_small_window() {
    let server = Server::start(Dialect::proftpd());
    for index in 0..8 {
        server.put_generated(format!("/films/{index}"), 64 * MIB, index);
    }
    server.set_send_buffer(16 * 1024);
    let fs = Direct::new(&server, 4, LONG);
    heads(&server, &fs);
    drop(fs);
    if has_fuse() {
        heads(&server, &Kernel::new(&server, 4, LONG));
    }
}

fn heads(server: &Server, fs: &impl Driver) {
    fs.names(b"films").unwrap();
    let before = server.bytes_sent();
    for index in 0..8 {
        let mut file = fs.open(format!("films/{index}").as_bytes(), How::READ).unwrap();
        let mut bytes = vec![0; 4096];
        fill_generated(index, 0, &mut bytes);
        assert_eq!(file.read_at(0, 4096).unwrap(), bytes);
        file.close().unwrap();
    }
    let each = (server.bytes_sent() - before) / 8;
    println!("{each} bytes for each head");
    assert!(each <= HEAD, "{each} bytes for each head");
}
