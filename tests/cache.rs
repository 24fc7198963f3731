//! The cache on the disk, and the kernel's pages: warm reads cost no transfer, and no byte of
//! another version, or of what a disk made of it, is ever given out.

use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ftpfs::ftp::Pool;
use ftpfs::vfs::{Options, Refresh, Vfs, WritePolicy};

use crate::drivers::{Direct, Driver, Fail, How, Kernel, has_fuse, options, target};
use crate::support::dialect::Dialect;
use crate::support::server::Server;

const LONG: Duration = Duration::from_secs(600);

/// 2001: long settled.
const OLD: i64 = 1_000_000_000;

const BLOCK: usize = 64 * 1024;

/// Some blocks and a part of one.
const SIZE: usize = 20 * BLOCK + 1234;

fn content(seed: u8) -> Vec<u8> {
    (0..SIZE).map(|index| (index / 7 % 251) as u8 ^ seed).collect()
}

fn put(server: &Server, path: &str, bytes: impl AsRef<[u8]>, mtime: i64) {
    server.put(path, bytes);
    server.set_mtime(path, mtime);
}

fn start() -> (Server, tempfile::TempDir) {
    let server = Server::start(Dialect::proftpd());
    put(&server, "/file", content(1), OLD);
    (server, tempfile::tempdir().unwrap())
}

fn mount_with(server: &Server, cache: &Path, ttl: Duration, size: Option<u64>) -> Direct {
    let staging = tempfile::tempdir().unwrap();
    let writing = WritePolicy { cache_size: size, ..WritePolicy::default() };
    let cache_dir = Some(cache.to_owned());
    let options = Options { cache_dir, writing, ..options(ttl, staging.path()) };
    let vfs = Vfs::new(Pool::open(target(server, 4)).unwrap(), options).unwrap();
    Direct { vfs, staging }
}

fn mount(server: &Server, cache: &Path) -> Direct {
    mount_with(server, cache, LONG, None)
}

/// What the mount before this one left.
fn warm(server: &Server, cache: &Path) {
    let fs = mount(server, cache);
    assert_eq!(fs.read(b"file").unwrap(), server.get("/file").unwrap());
    fs.vfs.settle_cache();
}

fn local_files(cache: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir(cache.join("blocks")).unwrap();
    let mut all: Vec<_> = all.map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

fn used(cache: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    local_files(cache).iter().map(|path| path.metadata().unwrap().blocks() * 512).sum()
}

#[test]
fn a_warm_read_costs_no_transfer_after_a_remount() {
    let (server, cache) = start();
    warm(&server, cache.path());
    let fs = mount(&server, cache.path());
    fs.names(b"").unwrap();
    server.clear_commands();
    assert_eq!(fs.read(b"file").unwrap(), content(1));
    assert!(server.commands().is_empty(), "{:?}", server.commands());
    let report = fs.vfs.cache_report().unwrap();
    assert_eq!((report.hits, report.misses), (SIZE as u64, 0));
}

#[test]
fn within_the_ttl_the_server_is_asked_once_and_sends_nothing() {
    let (server, cache) = start();
    let fs = mount(&server, cache.path());
    assert_eq!(fs.read(b"file").unwrap(), content(1));
    fs.vfs.settle_cache();
    server.clear_commands();
    // The listing is older than what was read: it proves nothing.
    assert_eq!(fs.read(b"file").unwrap(), content(1));
    assert_eq!(server.count("RETR"), 0);
    assert_eq!(server.commands().len(), 1, "{:?}", server.commands());
}

#[test]
fn what_is_missing_is_fetched_and_the_rest_is_not() {
    let (server, cache) = start();
    {
        let fs = mount(&server, cache.path());
        let mut file = fs.open(b"file", How::READ).unwrap();
        file.read_at(3 * BLOCK as u64 + 5, 100).unwrap();
        file.close().unwrap();
        fs.vfs.settle_cache();
    }
    let fs = mount(&server, cache.path());
    let mut file = fs.open(b"file", How::READ).unwrap();
    server.clear_commands();
    let at = 3 * BLOCK;
    assert_eq!(file.read_at(at as u64, BLOCK).unwrap(), content(1)[at..at + BLOCK]);
    assert!(server.commands().is_empty());
    assert_eq!(file.read_at(0, SIZE).unwrap(), content(1));
    assert!(server.count("RETR") > 0);
    file.close().unwrap();
    fs.vfs.settle_cache();
    drop(fs);
    let fs = mount(&server, cache.path());
    server.clear_commands();
    assert_eq!(fs.read(b"file").unwrap(), content(1));
    assert_eq!(server.count("RETR"), 0);
}

#[test]
fn a_changed_file_is_read_anew() {
    let (server, cache) = start();
    warm(&server, cache.path());
    put(&server, "/file", content(2), OLD + 1);
    warm(&server, cache.path());
    // Also if it goes back in time, or changes in size only.
    put(&server, "/file", content(3), OLD - 10);
    warm(&server, cache.path());
    put(&server, "/file", &content(4)[1..], OLD - 10);
    warm(&server, cache.path());
    assert_eq!(local_files(cache.path()).len(), 1, "one version is kept");
}

#[test]
fn blocks_of_one_version_never_meet_those_of_another() {
    let (server, cache) = start();
    {
        let fs = mount(&server, cache.path());
        fs.open(b"file", How::READ).unwrap().read_at(0, BLOCK).unwrap();
        fs.vfs.settle_cache();
    }
    let fs = mount(&server, cache.path());
    let mut file = fs.open(b"file", How::READ).unwrap();
    assert_eq!(file.read_at(0, BLOCK).unwrap(), content(1)[..BLOCK]);
    put(&server, "/file", content(2), OLD + 1);
    assert_eq!(file.read_at(BLOCK as u64, BLOCK), Err(Fail::Stale));
    file.close().unwrap();
    assert_eq!(fs.read(b"file").unwrap(), content(2));
}

#[test]
fn what_others_proved_is_not_put_beside_an_unproven_transfer() {
    let (server, cache) = start();
    let fs = mount(&server, cache.path());
    let mut file = fs.open(b"file", How::READ).unwrap();
    fs.vfs.pin(b"file", &told).unwrap();
    put(&server, "/file", content(2), OLD + 1);
    assert_eq!(file.read_at(0, BLOCK).unwrap(), content(2)[..BLOCK]);
    assert_eq!(file.read_at(15 * BLOCK as u64, BLOCK), Err(Fail::Stale));
    file.close().unwrap();
}

#[test]
fn what_changed_between_listing_and_reading_is_kept_under_no_wrong_version() {
    let (server, cache) = start();
    let fs = mount(&server, cache.path());
    fs.names(b"").unwrap();
    put(&server, "/file", content(2), OLD + 1);
    // Listed as the first version, read as the second; not all of it, which the kernel would keep.
    let mut file = fs.open(b"file", How::READ).unwrap();
    assert_eq!(file.read_at(0, 10 * BLOCK).unwrap(), content(2)[..10 * BLOCK]);
    file.close().unwrap();
    fs.vfs.settle_cache();
    // Nothing of the first version is here that could be mixed with it.
    assert_eq!(fs.read(b"file").unwrap(), content(2));
    assert_eq!(fs.read(b"file").unwrap(), content(2));
    drop(fs);
    warm(&server, cache.path());
}

#[test]
fn what_changed_a_moment_ago_is_not_trusted() {
    let (server, cache) = start();
    server.put("/file", content(5));
    for _ in 0..2 {
        let fs = mount(&server, cache.path());
        server.clear_commands();
        assert_eq!(fs.read(b"file").unwrap(), content(5));
        assert_eq!(server.count("RETR"), 1);
        fs.vfs.settle_cache();
        assert!(local_files(cache.path()).is_empty());
    }
}

#[test]
fn ones_own_change_is_seen_though_size_and_time_are_the_same() {
    let (server, cache) = start();
    warm(&server, cache.path());
    let fs = mount(&server, cache.path());
    assert_eq!(fs.read(b"file").unwrap(), content(1));
    fs.write(b"file", &content(6)).unwrap();
    fs.set_mtime(b"file", OLD).unwrap();
    assert_eq!(fs.read(b"file").unwrap(), content(6));
    drop(fs);
    warm(&server, cache.path());
    let fs = mount(&server, cache.path());
    put(&server, "/dir/old", content(7), OLD);
    put(&server, "/new/old", content(8), OLD);
    assert_eq!(fs.read(b"dir/old").unwrap(), content(7));
    fs.rename(b"dir", b"away").unwrap();
    fs.rename(b"new", b"dir").unwrap();
    assert_eq!(fs.read(b"dir/old").unwrap(), content(8));
    fs.rename(b"away/old", b"dir/old").unwrap();
    assert_eq!(fs.read(b"dir/old").unwrap(), content(7));
}

#[test]
fn what_the_disk_damages_is_fetched_again() {
    let (server, cache) = start();
    warm(&server, cache.path());
    let path = local_files(cache.path()).remove(0);
    let length = path.metadata().unwrap().len();
    let file = || std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let damages: [&dyn Fn(); 6] = [
        &|| file().write_all_at(b"!", length - 5).unwrap(),
        &|| file().write_all_at(&[0; 4096], length - 3 * BLOCK as u64).unwrap(),
        &|| file().write_all_at(b"!!", 100).unwrap(),
        &|| file().write_all_at(b"!", 3).unwrap(),
        &|| file().set_len(length / 2).unwrap(),
        &|| file().set_len(0).unwrap(),
    ];
    for damage in damages {
        damage();
        let fs = mount(&server, cache.path());
        server.clear_commands();
        assert_eq!(fs.read(b"file").unwrap(), content(1));
        assert!(server.count("RETR") > 0);
        fs.vfs.settle_cache();
        drop(fs);
        let fs = mount(&server, cache.path());
        server.clear_commands();
        assert_eq!(fs.read(b"file").unwrap(), content(1));
        assert_eq!(server.count("RETR"), 0, "whole again");
    }
}

#[test]
fn two_mounts_share_one_cache() {
    let (server, cache) = start();
    for index in 0..8_u8 {
        put(&server, &format!("/f{index}"), content(index), OLD);
    }
    let mounts = [mount(&server, cache.path()), mount(&server, cache.path())];
    for _ in 0..3 {
        std::thread::scope(|scope| {
            for fs in &mounts {
                scope.spawn(move || {
                    for index in 0..8_u8 {
                        let path = format!("f{index}").into_bytes();
                        assert_eq!(fs.read(&path).unwrap(), content(index));
                    }
                });
            }
        });
    }
    drop(mounts);
    let fs = mount(&server, cache.path());
    fs.names(b"").unwrap();
    server.clear_commands();
    for index in 0..8_u8 {
        assert_eq!(fs.read(format!("f{index}").as_bytes()).unwrap(), content(index));
    }
    assert_eq!(server.count("RETR"), 0);
}

#[test]
fn the_size_is_kept_to_and_the_oldest_goes_first() {
    let (server, cache) = start();
    let most = 4 * SIZE as u64;
    for index in 0..10_u8 {
        put(&server, &format!("/f{index}"), content(index), OLD);
    }
    let fs = mount_with(&server, cache.path(), LONG, Some(most));
    for index in 0..10_u8 {
        assert_eq!(fs.read(format!("f{index}").as_bytes()).unwrap(), content(index));
        fs.vfs.settle_cache();
        assert!(used(cache.path()) <= most, "{}", used(cache.path()));
    }
    let report = fs.vfs.cache_report().unwrap();
    assert_eq!(report.limit, most);
    assert!(report.used > most / 2);
    server.clear_commands();
    assert_eq!(fs.read(b"f9").unwrap(), content(9));
    assert_eq!(server.count("RETR"), 0, "the newest is there");
    assert_eq!(fs.read(b"f0").unwrap(), content(0));
    assert!(server.count("RETR") > 0, "the oldest is gone");
}

#[test]
fn a_file_larger_than_the_cache_is_read_all_the_same() {
    let (server, cache) = start();
    let most = SIZE as u64 / 2;
    let fs = mount_with(&server, cache.path(), LONG, Some(most));
    for _ in 0..2 {
        assert_eq!(fs.read(b"file").unwrap(), content(1));
        fs.vfs.settle_cache();
        assert!(used(cache.path()) <= most);
    }
}

#[test]
fn the_cache_gives_way_to_what_is_unsent() {
    let (server, cache) = start();
    let most = 3 * SIZE as u64;
    let fs = mount_with(&server, cache.path(), LONG, Some(most));
    put(&server, "/other", content(2), OLD);
    assert_eq!(fs.read(b"file").unwrap(), content(1));
    assert_eq!(fs.read(b"other").unwrap(), content(2));
    fs.vfs.settle_cache();
    assert!(used(cache.path()) > most / 2);
    let new = content(3).repeat(2);
    fs.write(b"new", &new).unwrap();
    assert!(used(cache.path()) <= most - new.len() as u64);
    assert_eq!(server.get("/new").unwrap(), new);
}

fn told(_: ftpfs::vfs::Pinning) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn what_is_pinned_stays_and_is_there_while_the_server_is_away() {
    let (server, cache) = start();
    let most = 6 * SIZE as u64;
    put(&server, "/keep/a", content(2), OLD);
    put(&server, "/keep/sub/b", content(3), OLD);
    put(&server, "/keep/sub/empty", "", OLD);
    let fs = mount_with(&server, cache.path(), LONG, Some(most));
    let pinned = fs.vfs.pin(b"keep", &told).unwrap();
    assert_eq!((pinned.here.files, pinned.here.bytes, pinned.left_out), (3, 2 * SIZE as u64, 0));
    assert_eq!(fs.vfs.cache_report().unwrap().pins, [b"/keep"]);
    for index in 0..10_u8 {
        put(&server, &format!("/f{index}"), content(index), OLD);
    }
    fs.vfs.refresh(b"", Refresh::One, &mut Vec::new()).unwrap();
    for index in 0..10_u8 {
        assert_eq!(fs.read(format!("f{index}").as_bytes()).unwrap(), content(index));
        fs.vfs.settle_cache();
        assert!(used(cache.path()) <= most);
    }
    server.refuse_connections(true);
    server.kill_sessions();
    for _ in 0..2 {
        assert_eq!(fs.read(b"keep/a").unwrap(), content(2));
        assert_eq!(fs.read(b"keep/sub/b").unwrap(), content(3));
        assert_eq!(fs.read(b"keep/sub/empty").unwrap(), b"");
    }
    assert!(fs.read(b"f0").is_err());
    server.refuse_connections(false);
    assert!(fs.vfs.unpin_path(b"keep/a").is_err());
    fs.vfs.unpin_path(b"keep").unwrap();
    assert!(fs.vfs.cache_report().unwrap().pins.is_empty());
}

#[test]
fn a_pin_says_what_cannot_be_kept() {
    let (server, cache) = start();
    server.put("/dir/now", "just changed");
    put(&server, "/dir/old", content(2), OLD);
    let fs = mount(&server, cache.path());
    let pinned = fs.vfs.pin(b"dir", &told).unwrap();
    assert_eq!((pinned.here.files, pinned.left_out), (1, 1));
    assert_eq!(pinned.first.unwrap().0, "/dir/now");
    assert_eq!(fs.vfs.pin(b"none", &told).map_err(Fail::from).err(), Some(Fail::NotFound));
    let full = mount_with(&server, cache.path(), LONG, Some(SIZE as u64));
    assert_eq!(full.vfs.pin(b"file", &told).map_err(Fail::from).err(), Some(Fail::Io));
    let none = fs.vfs.pin(b"dir", &|_| ControlFlow::Break(())).map_err(Fail::from).err();
    assert_eq!(none, Some(Fail::Io), "nobody waits for it any more");
    let without = Direct::new(&server, 2, LONG);
    let fail = without.vfs.pin(b"dir", &told).map_err(Fail::from).err();
    assert_eq!(fail, Some(Fail::Unsupported));
}

/// Numbers at random, the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) as usize % limit
    }
}

/// An open file, and the version that it showed first.
struct Reading {
    mount: usize,
    fh: u64,
    seen: Option<u8>,
    is_stale: bool,
}

/// Two mounts of one cache, readers at random, listings of any age, and another client that
/// replaces the file: each open file is one version, or ESTALE.
#[test]
fn every_open_file_is_one_version() {
    const LENGTH: usize = 6 * BLOCK + 77;
    let (server, cache) = start();
    let mut random = Random(7);
    let mut version = 0_u8;
    let replace = |version: u8| {
        // Under another name first: what is overwritten in place no server keeps from readers.
        put(&server, "/next", vec![version; LENGTH], OLD + i64::from(version));
        server.rename("/next", "/file");
    };
    replace(version);
    let mut mounts = [mount(&server, cache.path()), mount(&server, cache.path())];
    let mut open: Vec<Reading> = Vec::new();
    let (mut reads, mut stales) = (0, 0);
    for _ in 0..1500 {
        let mount_index = random.below(2);
        match random.below(20) {
            0 if version < u8::MAX => {
                version += 1;
                replace(version);
            }
            1 => mounts[mount_index].vfs.refresh(b"", Refresh::One, &mut Vec::new()).unwrap(),
            2 => mounts[mount_index].vfs.settle_cache(),
            3 if random.below(4) == 0 => {
                open.retain(|reading| reading.mount != mount_index);
                mounts[mount_index] = mount(&server, cache.path());
            }
            4..8 if open.len() < 6 => {
                let fh = mounts[mount_index].open_handle(b"file", How::READ).unwrap();
                open.push(Reading { mount: mount_index, fh, seen: None, is_stale: false });
            }
            8 if !open.is_empty() => {
                let closed = open.swap_remove(random.below(open.len()));
                mounts[closed.mount].vfs.release(closed.fh);
            }
            _ if !open.is_empty() => {
                let index = random.below(open.len());
                let reading = &mut open[index];
                let (at, length) = (random.below(LENGTH), 1 + random.below(3 * BLOCK));
                let vfs = &mounts[reading.mount].vfs;
                match vfs.read(reading.fh, at as u64, length, <[u8]>::to_vec).map_err(Fail::from) {
                    Ok(bytes) => {
                        reads += 1;
                        assert_eq!(bytes.len(), length.min(LENGTH - at));
                        let seen = *reading.seen.get_or_insert(bytes[0]);
                        assert!(bytes.iter().all(|byte| *byte == seen), "two versions");
                    }
                    Err(Fail::Stale) => {
                        stales += 1;
                        reading.is_stale = true;
                    }
                    Err(fail) => panic!("{fail:?}"),
                }
            }
            _ => {}
        }
        let stale: Vec<_> = open.extract_if(.., |reading| reading.is_stale).collect();
        stale.iter().for_each(|reading| mounts[reading.mount].vfs.release(reading.fh));
    }
    let hits: u64 = mounts.iter().map(|fs| fs.vfs.cache_report().unwrap().hits).sum();
    assert!(reads > 250 && stales > 5 && hits > 0, "{reads} {stales} {hits}");
}

/// A mount, with what is kept in `cache`.
fn kernel(server: &Server, cache: Option<&Path>) -> Kernel {
    let (staging, mountpoint) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let cache_dir = cache.map(Path::to_owned);
    let options = Options { cache_dir, ..options(LONG, staging.path()) };
    let vfs = Vfs::new(Pool::open(target(server, 4)).unwrap(), options).unwrap();
    Kernel::over(Arc::new(vfs), 4, mountpoint, staging)
}

#[test]
fn through_the_kernel_a_warm_read_costs_no_transfer() {
    if !has_fuse() {
        println!("SKIPPED: the cache through the kernel: /dev/fuse cannot be opened");
        return;
    }
    let (server, cache) = start();
    for round in 0..3 {
        server.clear_commands();
        let fs = kernel(&server, Some(cache.path()));
        assert_eq!(fs.read(b"file").unwrap(), content(1));
        assert_eq!(server.count("RETR"), usize::from(round == 0));
    }
    put(&server, "/file", content(2), OLD + 1);
    assert_eq!(kernel(&server, Some(cache.path())).read(b"file").unwrap(), content(2));
}

#[test]
fn the_kernel_keeps_the_pages_of_an_unchanged_file() {
    if !has_fuse() {
        println!("SKIPPED: the pages of the kernel: /dev/fuse cannot be opened");
        return;
    }
    let (server, _) = start();
    let fs = kernel(&server, None);
    assert_eq!(fs.read(b"file").unwrap(), content(1));
    server.clear_commands();
    for _ in 0..3 {
        assert_eq!(fs.read(b"file").unwrap(), content(1));
    }
    assert!(server.commands().is_empty(), "{:?}", server.commands());
    fs.write(b"file", &content(2)).unwrap();
    assert_eq!(fs.read(b"file").unwrap(), content(2));
    drop(fs);
    put(&server, "/file", content(3), OLD);
    let (staging, mountpoint) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let options = options(Duration::ZERO, staging.path());
    let vfs = Vfs::new(Pool::open(target(&server, 4)).unwrap(), options).unwrap();
    let fs = Kernel::over(Arc::new(vfs), 4, mountpoint, staging);
    assert_eq!(fs.read(b"file").unwrap(), content(3));
    put(&server, "/file", content(4), OLD + 1);
    assert_eq!(fs.read(b"file").unwrap(), content(4));
}
