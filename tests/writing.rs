//! How files get to the server: the least is sent, nothing over what others changed, and what is
//! promised here survives.

use std::time::Duration;

use ftpfs::ftp::Pool;
use ftpfs::vfs::{Changes, Mtime, OnConflict, UploadMode, Vfs, When, WritePolicy};

use crate::drivers::{Direct, Driver, Fail, How, options, target};
use crate::support::dialect::{Dialect, RenameOver};
use crate::support::faults::{Fault, What};
use crate::support::server::{PATIENCE, Server};

const LONG: Duration = Duration::from_secs(600);

/// A file too large to be sent whole for a change in its middle.
const BIG: usize = 600_000;

fn mount(server: &Server, writing: WritePolicy) -> Direct {
    let staging = tempfile::tempdir().unwrap();
    mount_in(server, staging, writing)
}

fn mount_in(server: &Server, staging: tempfile::TempDir, writing: WritePolicy) -> Direct {
    let pool = Pool::open(target(server, 3)).unwrap();
    let options = ftpfs::vfs::Options { writing, ..options(LONG, staging.path()) };
    Direct { vfs: Vfs::new(pool, options).unwrap(), staging }
}

fn start(dialect: Dialect, writing: WritePolicy) -> (Server, Direct) {
    let server = Server::start(dialect);
    server.put("/f", "content");
    server.put("/big", big());
    server.mkdir("/dir");
    let fs = mount(&server, writing);
    fs.names(b"").unwrap();
    server.clear_commands();
    (server, fs)
}

fn big() -> Vec<u8> {
    (0..BIG).map(|index| (index * 7 % 251) as u8).collect()
}

fn update(fs: &Direct, path: &[u8], offset: u64, bytes: &[u8]) -> Result<(), Fail> {
    let mut file = fs.open(path, How::UPDATE)?;
    file.write_at(offset, bytes)?;
    file.close()
}

#[test]
fn what_is_appended_is_all_that_is_sent() {
    for dialect in [Dialect::proftpd(), Dialect::vsftpd()] {
        let (server, fs) = start(dialect, WritePolicy::default());
        let mut file = fs.open(b"big", How::APPEND).unwrap();
        file.write_at(0, b"and more").unwrap();
        file.close().unwrap();
        assert_eq!(server.get("/big").unwrap(), [&big()[..], b"and more"].concat());
        assert_eq!((server.count("APPE"), server.count("STOR"), server.count("RETR")), (1, 0, 0));
        assert_eq!(fs.stat(b"big").unwrap().size, BIG as u64 + 8);
        assert_eq!(&fs.read(b"big").unwrap()[BIG..], b"and more");
    }
}

#[test]
fn a_server_without_appe_gets_the_whole() {
    let dialect = Dialect { appe: false, ..Dialect::proftpd() };
    let (server, fs) = start(dialect, WritePolicy::default());
    update(&fs, b"f", 7, b" and more").unwrap();
    assert_eq!(server.get("/f").unwrap(), b"content and more");
}

#[test]
fn an_append_that_was_cut_is_completed() {
    let (server, fs) = start(Dialect::proftpd(), WritePolicy::default());
    server.fault_once("APPE", What::ResetAfter(100_000));
    let more = vec![b'x'; 400_000];
    update(&fs, b"big", BIG as u64, &more).unwrap();
    assert_eq!(server.get("/big").unwrap(), [big(), more].concat());
}

/// A server that is slower than its client: what came before the cut is written when the rest is
/// already asked for.
#[test]
fn an_append_that_was_cut_is_not_mixed_with_what_comes_of_it_later() {
    for is_append in [true, false] {
        let (server, fs) = start(Dialect::proftpd(), WritePolicy::default());
        server.fault_once("APPE", What::DrainsLate(100_000, 30_000));
        let more = vec![b'x'; 400_000];
        let how = if is_append { How::APPEND } else { How::UPDATE };
        let mut file = fs.open(b"big", how).unwrap();
        file.write_at(BIG as u64, &more).unwrap();
        file.close().unwrap();
        assert!(server.get("/big").unwrap() == [big(), more].concat(), "append: {is_append}");
    }
}

/// Nothing tells ours from theirs: ours is kept here.
#[test]
fn what_others_append_behind_a_cut_append_is_not_lost() {
    let (server, fs) = start(Dialect::proftpd(), WritePolicy::default());
    server.fault(Fault { on: "APPE", nth: 1, times: 1, what: What::ResetAfter(100_000) });
    server.fault(Fault { on: "EPSV", nth: 2, times: 4, what: What::Reply(451, "Not now.") });
    let mut file = fs.open(b"big", How::APPEND).unwrap();
    file.write_at(0, &vec![b'x'; 400_000]).unwrap();
    file.close().unwrap_err();
    let theirs = [&server.get("/big").unwrap()[..], b"theirs"].concat();
    server.put("/big", &theirs);
    server.clear_faults();
    assert!(matches!(fs.vfs.drain(), Err(ftpfs::vfs::Error::Stale(_))));
    assert!(server.get("/big").unwrap() == theirs);
    assert_eq!(fs.vfs.pending().len(), 1);
}

/// The rest alone would be a file that nobody wrote.
#[test]
fn a_cut_append_to_what_others_removed_is_sent_whole_or_kept() {
    for is_all_here in [true, false] {
        let (server, fs) = start(Dialect::proftpd(), WritePolicy::default());
        let mut file = fs.open(b"big", How::UPDATE).unwrap();
        let more = vec![b'x'; 400_000];
        file.write_at(BIG as u64, &more).unwrap();
        if is_all_here {
            assert_eq!(file.read_at(0, BIG).unwrap().len(), BIG);
        }
        server.fault(Fault { on: "APPE", nth: 1, times: 1, what: What::ResetAfter(100_000) });
        let refused = What::Reply(451, "Not now.");
        server.fault(Fault { on: "EPSV", nth: 2, times: 4, what: refused });
        file.close().unwrap_err();
        server.remove("/big");
        server.clear_faults();
        let sent = fs.vfs.drain();
        let expected = is_all_here.then(|| [big(), more].concat());
        assert!(server.get("/big") == expected, "{sent:?}");
        assert_eq!((sent.is_ok(), fs.vfs.pending().is_empty()), (is_all_here, is_all_here));
    }
}

#[test]
fn whoever_appends_comes_behind_what_others_appended() {
    let (server, fs) = start(Dialect::proftpd(), WritePolicy::default());
    let mut file = fs.open(b"f", How::APPEND).unwrap();
    file.write_at(0, b" ours").unwrap();
    server.put("/f", "content theirs");
    file.close().unwrap();
    assert_eq!(server.get("/f").unwrap(), b"content theirs ours");
    assert_eq!(fs.read(b"f").unwrap(), b"content theirs ours");
}

#[test]
fn opening_for_writing_fetches_nothing_and_reading_only_a_part() {
    let (server, fs) = start(Dialect::proftpd(), WritePolicy::default());
    let mut file = fs.open(b"big", How::UPDATE).unwrap();
    file.write_at(300_000, b"change").unwrap();
    assert_eq!(server.count("RETR"), 0);
    let read = file.read_at(299_990, 20).unwrap();
    let mut wanted = big();
    wanted[300_000..300_006].copy_from_slice(b"change");
    assert_eq!(read, wanted[299_990..300_010]);
    assert_eq!(server.count("RETR"), 1);
    file.close().unwrap();
    assert_eq!(server.get("/big").unwrap(), wanted);
}

#[test]
fn a_patch_in_place_sends_the_patch() {
    let writing = WritePolicy { patch_in_place: true, ..WritePolicy::default() };
    let (server, fs) = start(Dialect::proftpd(), writing);
    let mut wanted = big();
    for offset in [100, 400_000] {
        update(&fs, b"big", offset, b"patch").unwrap();
        wanted[offset as usize..offset as usize + 5].copy_from_slice(b"patch");
        assert_eq!(server.get("/big").unwrap(), wanted);
    }
    assert!(!server.commands().iter().any(|line| line == "RETR /big"), "nothing was fetched");
    assert_eq!(server.count("RNTO"), 0);
    assert_eq!(server.names("/").len(), 3, "the scratch file is gone");
}

#[test]
fn a_cut_to_a_part_keeps_the_part() {
    let (server, fs) = start(Dialect::proftpd(), WritePolicy::default());
    fs.truncate(b"big", 400_000).unwrap();
    assert_eq!(server.get("/big").unwrap(), big()[..400_000]);
    fs.truncate(b"big", 400_010).unwrap();
    assert_eq!(
        server.get("/big").unwrap()[399_999..],
        [&big()[399_999..400_000], &[0; 10]].concat()
    );
    fs.truncate(b"big", 0).unwrap();
    assert_eq!(server.get("/big").unwrap(), b"");
}

#[test]
fn what_others_changed_is_not_overwritten() {
    let (server, fs) = start(Dialect::proftpd(), WritePolicy::default());
    let mut file = fs.open(b"f", How::CREATE).unwrap();
    file.write_at(0, b"ours").unwrap();
    server.put("/f", "theirs, later");
    file.close().unwrap();
    assert_eq!(server.get("/f").unwrap(), b"theirs, later");
    let names = server.names("/");
    let copy = names.iter().find(|name| name.starts_with(b"f (conflict ")).unwrap();
    assert_eq!(server.get([b"/", &copy[..]].concat()).unwrap(), b"ours");
    assert_eq!(fs.read(copy).unwrap(), b"ours");
    assert_eq!(fs.read(b"f").unwrap(), b"theirs, later");
    assert!(fs.vfs.pending().is_empty());
}

#[test]
fn what_others_made_meanwhile_is_not_overwritten() {
    let (server, fs) = start(Dialect::vsftpd(), WritePolicy::default());
    let mut file = fs.open(b"new.txt", How::NEW).unwrap();
    file.write_at(0, b"ours").unwrap();
    server.put("/new.txt", "theirs");
    file.close().unwrap();
    assert_eq!(server.get("/new.txt").unwrap(), b"theirs");
    assert!(server.names("/").iter().any(|name| name.starts_with(b"new (conflict ")));
}

#[test]
fn a_part_of_ours_is_never_completed_with_theirs() {
    let (server, fs) = start(Dialect::proftpd(), WritePolicy::default());
    let mut file = fs.open(b"f", How::UPDATE).unwrap();
    file.write_at(2, b"XY").unwrap();
    server.put("/f", "theirs, later");
    assert_eq!(file.read_at(0, 7), Err(Fail::Stale));
    assert_eq!(file.close(), Err(Fail::Stale));
    assert_eq!(server.get("/f").unwrap(), b"theirs, later");
    assert_eq!(server.names("/").len(), 3, "and no mixture is put beside it");
    assert_eq!(fs.vfs.pending().len(), 1, "what was written is kept here");
}

#[test]
fn the_user_may_choose_what_a_conflict_does() {
    let writing = WritePolicy { on_conflict: OnConflict::Overwrite, ..WritePolicy::default() };
    let (server, fs) = start(Dialect::proftpd(), writing);
    let mut file = fs.open(b"f", How::CREATE).unwrap();
    file.write_at(0, b"ours").unwrap();
    server.put("/f", "theirs, later");
    file.close().unwrap();
    assert_eq!(server.get("/f").unwrap(), b"ours");

    let writing = WritePolicy { on_conflict: OnConflict::Error, ..WritePolicy::default() };
    let (server, fs) = start(Dialect::proftpd(), writing);
    let mut file = fs.open(b"f", How::CREATE).unwrap();
    file.write_at(0, b"ours").unwrap();
    server.put("/f", "theirs, later");
    assert_eq!(file.close(), Err(Fail::Stale));
    assert_eq!(server.get("/f").unwrap(), b"theirs, later");
    assert_eq!(fs.vfs.pending().len(), 1, "ours is kept here");
}

#[test]
fn uploads_go_where_the_user_wants_them() {
    let direct = WritePolicy { upload: UploadMode::Direct, ..WritePolicy::default() };
    let (server, fs) = start(Dialect::proftpd(), direct);
    fs.write(b"f", b"new content").unwrap();
    assert_eq!((server.count("RNTO"), server.get("/f").unwrap()), (0, b"new content".to_vec()));

    let safe_all = WritePolicy { upload: UploadMode::SafeAll, ..WritePolicy::default() };
    let (server, fs) = start(Dialect::proftpd(), safe_all);
    fs.write(b"new", b"new content").unwrap();
    update(&fs, b"f", 7, b" and more").unwrap();
    assert_eq!((server.count("RNTO"), server.count("APPE")), (2, 0));
    assert_eq!(server.get("/f").unwrap(), b"content and more");
}

#[test]
fn a_folder_without_new_names_is_written_in_place() {
    let (server, fs) = start(Dialect::proftpd(), WritePolicy::default());
    server.fault(Fault::always("RNFR", What::Reply(550, "Permission denied")));
    fs.write(b"f", b"new content").unwrap();
    assert_eq!(server.get("/f").unwrap(), b"new content");
    assert_eq!(server.names("/").len(), 3, "nothing else is left");
}

#[test]
fn a_server_that_renames_over_nothing_is_served_by_turns() {
    let dialect = Dialect { rename_over: RenameOver::Refused(553), ..Dialect::proftpd() };
    let (server, fs) = start(dialect, WritePolicy::default());
    for content in [&b"one"[..], b"two"] {
        fs.write(b"f", content).unwrap();
        assert_eq!(server.get("/f").unwrap(), content);
    }
    assert_eq!(server.names("/").len(), 3);
    assert_eq!(std::fs::read_dir(fs.staging.path()).unwrap().count(), 0, "no mark is left");
}

#[test]
fn local_copies_have_a_limit() {
    let writing = WritePolicy { cache_size: Some(1 << 20), ..WritePolicy::default() };
    let (server, fs) = start(Dialect::proftpd(), writing);
    let mut file = fs.open(b"new", How::NEW).unwrap();
    file.write_at(0, &vec![b'x'; 900_000]).unwrap();
    assert_eq!(file.write_at(900_000, &vec![b'x'; 900_000]), Err(Fail::Io));
    file.close().unwrap();
    assert_eq!(server.get("/new").unwrap().len(), 900_000, "what was taken is there");
}

fn write_back() -> WritePolicy {
    WritePolicy { write_back: Some(LONG), ..WritePolicy::default() }
}

/// What the staging directory holds at this moment, as a kill would leave it.
fn as_if_killed(fs: &Direct) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fs.staging.path()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    copy
}

#[test]
fn with_write_back_close_returns_before_the_server_has_it() {
    let (server, fs) = start(Dialect::proftpd(), write_back());
    fs.write(b"new", b"precious").unwrap();
    fs.write(b"f", b"changed").unwrap();
    assert_eq!((server.get("/new"), server.get("/f").unwrap()), (None, b"content".to_vec()));
    assert_eq!(fs.read(b"new").unwrap(), b"precious");
    assert_eq!(fs.vfs.pending().len(), 2);
    fs.vfs.drain().unwrap();
    assert_eq!(server.get("/new").unwrap(), b"precious");
    assert_eq!(server.get("/f").unwrap(), b"changed");
    assert!(fs.vfs.pending().is_empty());
}

#[test]
fn fsync_means_the_server_also_with_write_back() {
    let (server, fs) = start(Dialect::proftpd(), write_back());
    let mut file = fs.open(b"new", How::NEW).unwrap();
    file.write_at(0, b"precious").unwrap();
    file.sync().unwrap();
    assert_eq!(server.get("/new").unwrap(), b"precious");
    file.close().unwrap();
}

#[test]
fn what_was_closed_survives_a_kill_as_it_was_closed() {
    let (server, fs) = start(Dialect::proftpd(), write_back());
    fs.write(b"new", b"precious").unwrap();
    fs.write(b"f", b"changed").unwrap();
    update(&fs, b"big", BIG as u64, b"appended").unwrap();
    // Opened again, changed, and not closed.
    let mut file = fs.open(b"new", How::UPDATE).unwrap();
    file.write_at(0, b"HALF").unwrap();
    let left = as_if_killed(&fs);
    let again = mount_in(&server, left, write_back());
    again.vfs.recover();
    assert_eq!(server.get("/new").unwrap(), b"precious");
    assert_eq!(server.get("/f").unwrap(), b"changed");
    assert_eq!(server.get("/big").unwrap(), [&big()[..], b"appended"].concat());
    assert!(again.vfs.pending().is_empty());
    let left: Vec<_> = std::fs::read_dir(again.staging.path()).unwrap().flatten().collect();
    assert!(
        left.iter().all(|entry| !entry.path().to_string_lossy().ends_with(".note")),
        "{left:?}"
    );
    drop(file);
}

#[test]
fn what_was_half_sent_when_it_was_killed_is_whole_afterwards() {
    for (path, placement) in [(&b"new"[..], "STOR"), (b"f", "STOR"), (b"big", "APPE")] {
        let (server, fs) = start(Dialect::proftpd(), WritePolicy::default());
        let before = server.get([b"/", path].concat()).unwrap_or_default();
        server.fault_once(placement, What::StallData(200_000));
        let (offset, bytes) = if path == b"big" {
            (BIG as u64, vec![b'y'; 500_000])
        } else {
            (0, vec![b'y'; 700_000])
        };
        let mut how = How::UPDATE;
        how.create = true;
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| {
                let mut file = fs.open(path, how).unwrap();
                file.write_at(offset, &bytes).unwrap();
                // The server stalls; in the end it is cut or times out.
                let _ = file.close();
            });
            assert!(server.wait_until(|server| server.stuck() == 1, PATIENCE));
            let left = as_if_killed(&fs);
            // Unlike a killed one this process lives on: it must not try again.
            fs.vfs.pool().close();
            server.kill_sessions();
            let again = mount_in(&server, left, WritePolicy::default());
            again.vfs.recover();
            let kept = &before[..before.len().min(offset as usize)];
            assert_eq!(server.get([b"/", path].concat()).unwrap(), [kept, &bytes].concat());
            writing.join().unwrap();
        });
        let names = server.names("/");
        assert_eq!(names.len(), if path == b"new" { 4 } else { 3 }, "{names:?}");
    }
}

#[test]
fn renames_and_removals_of_what_is_unsent_cost_nothing() {
    let (server, fs) = start(Dialect::proftpd(), write_back());
    // As an editor saves.
    fs.write(b"f.tmp", b"edited").unwrap();
    fs.rename(b"f.tmp", b"f").unwrap();
    fs.write(b"scratch", b"nothing").unwrap();
    fs.unlink(b"scratch").unwrap();
    assert_eq!(server.count("STOR") + server.count("RNTO") + server.count("DELE"), 0);
    assert_eq!(server.get("/f").unwrap(), b"content", "nobody sees the name before the content");
    assert_eq!(fs.read(b"f").unwrap(), b"edited");
    let left = as_if_killed(&fs);
    fs.vfs.drain().unwrap();
    assert_eq!(server.get("/f").unwrap(), b"edited");
    assert_eq!(server.names("/").len(), 3);
    let again = mount_in(&server, left, write_back());
    again.vfs.recover();
    assert_eq!(server.names("/").len(), 3, "a kill leaves the same");
}

#[test]
fn a_folder_moves_with_what_is_unsent_in_it() {
    let (server, fs) = start(Dialect::proftpd(), write_back());
    fs.write(b"dir/new", b"precious").unwrap();
    fs.rename(b"dir", b"moved").unwrap();
    fs.vfs.drain().unwrap();
    assert_eq!(server.get("/moved/new").unwrap(), b"precious");
}

#[test]
fn what_waits_is_sent_by_itself() {
    let server = Server::start(Dialect::proftpd());
    let staging = tempfile::tempdir().unwrap();
    let writing = WritePolicy { write_back: Some(Duration::ZERO), ..WritePolicy::default() };
    let pool = Pool::open(target(&server, 3)).unwrap();
    let options = ftpfs::vfs::Options { writing, ..options(LONG, staging.path()) };
    let vfs = std::sync::Arc::new(Vfs::new(pool, options).unwrap());
    vfs.start_write_back().unwrap();
    let access = ftpfs::vfs::Access { read: true, write: true, append: false };
    for index in 0..20 {
        let name = format!("f{index}");
        let (found, opened) =
            vfs.create(ftpfs::vfs::ROOT, name.as_bytes(), 0o644, access, true).unwrap();
        vfs.write(opened.fh, 0, name.as_bytes()).unwrap();
        vfs.flush(opened.fh).unwrap();
        vfs.release(opened.fh);
        // As `cp -p` and rsync do, after the close.
        let mtime = Mtime { seconds: 1_000_000_000, nanos: 0 };
        let changes = Changes { mtime: Some(When::At(mtime)), ..Changes::default() };
        vfs.setattr(found.attr.ino, &changes).unwrap();
    }
    let is_there = |server: &Server| {
        (0..20).all(|index| {
            let name = format!("/f{index}");
            server.get(&name).is_some_and(|bytes| bytes == name.as_bytes()[1..])
                && server.stat(&name).is_some_and(|stat| stat.mtime == 1_000_000_000)
        })
    };
    assert!(server.wait_until(is_there, PATIENCE));
}

#[test]
fn a_reader_does_not_wait_for_a_send() {
    let (server, fs) = start(Dialect::proftpd(), WritePolicy::default());
    server.fault_once("STOR", What::StallData(1000));
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| fs.write(b"f", &vec![b'z'; 50_000]));
        assert!(server.wait_until(|server| server.stuck() == 1, PATIENCE));
        assert_eq!(fs.read(b"f").unwrap(), vec![b'z'; 50_000]);
        server.release();
        writing.join().unwrap().unwrap();
    });
    assert_eq!(server.get("/f").unwrap(), vec![b'z'; 50_000]);
}

/// A file that is open when its name goes is kept under one that nobody sees; it goes at the end,
/// and at the next mount where the server cannot be asked at the end.
#[test]
fn removed_files_that_are_open_at_the_end_do_not_stay_on_the_server() {
    for is_reachable in [true, false] {
        let (server, fs) = start(Dialect::proftpd(), WritePolicy::default());
        let mut file = fs.open(b"big", How::READ).unwrap();
        assert_eq!(file.read_at(0, 10).unwrap(), &big()[..10]);
        fs.unlink(b"big").unwrap();
        assert_eq!(server.names("/").len(), 3, "hidden");
        if !is_reachable {
            server.refuse_connections(true);
            server.kill_sessions();
        }
        // The process ends, and the kernel tells it nothing more.
        std::mem::forget(file);
        fs.vfs.release_all();
        if !is_reachable {
            server.refuse_connections(false);
            let next = mount_in(&server, fs.staging, WritePolicy::default());
            let back = || next.vfs.recover();
            assert!(server.wait_until(
                |server| {
                    back();
                    server.names("/").len() == 2
                },
                PATIENCE
            ));
        }
        assert_eq!(server.names("/").len(), 2);
    }
}

/// A kill when the server has renamed and nobody has heard it: what the rename replaced was still to
/// be sent, and is not any more. The server's times and sizes do not always tell one from the other.
#[test]
fn what_a_rename_replaced_does_not_come_back_after_a_kill() {
    for replacing in [&b"another content"[..], b"CHANGED"] {
        let (server, fs) = start(Dialect::proftpd(), write_back());
        let mut file = fs.open(b"new", How::NEW).unwrap();
        file.write_at(0, replacing).unwrap();
        file.sync().unwrap();
        file.close().unwrap();
        fs.write(b"f", b"changed").unwrap();
        server.fault_once("RNTO", What::HoldReply(PATIENCE));
        let left = std::thread::scope(|scope| {
            let renaming = scope.spawn(|| fs.rename(b"new", b"f"));
            assert!(server.wait_until(|server| server.stuck() == 1, PATIENCE));
            assert_eq!(server.get("/f").unwrap(), replacing);
            let left = as_if_killed(&fs);
            server.release();
            renaming.join().unwrap().unwrap();
            left
        });
        let again = mount_in(&server, left, write_back());
        again.vfs.recover();
        assert_eq!(server.get("/f").unwrap(), replacing);
        assert_eq!(again.names(b"").unwrap(), [&b"big"[..], b"dir", b"f"]);
    }
}

/// A file that was closed, and is open and half written again: what was closed is what is promised,
/// under the name that it has by now.
#[test]
fn what_is_being_written_again_keeps_its_promise_under_its_new_name() {
    for is_longer in [false, true] {
        let (server, fs) = start(Dialect::proftpd(), write_back());
        fs.write(b"new", b"precious").unwrap();
        let mut file = fs.open(b"new", How::UPDATE).unwrap();
        file.write_at(if is_longer { 8 } else { 0 }, b"HALF").unwrap();
        fs.rename(b"new", b"f").unwrap();
        let again = mount_in(&server, as_if_killed(&fs), write_back());
        again.vfs.recover();
        assert_eq!(server.get("/f").unwrap(), b"precious");
        assert_eq!(again.names(b"").unwrap(), [&b"big"[..], b"dir", b"f"]);
        assert!(again.vfs.pending().is_empty());
        drop(file);
    }
}

/// The same when another file is renamed over it: nothing of it comes back.
#[test]
fn what_is_being_written_again_does_not_come_back_over_what_replaced_it() {
    let (server, fs) = start(Dialect::proftpd(), write_back());
    fs.write(b"other", b"other").unwrap();
    fs.vfs.drain().unwrap();
    fs.write(b"f", b"CHANGED").unwrap();
    let mut file = fs.open(b"f", How::UPDATE).unwrap();
    file.write_at(0, b"HALF").unwrap();
    server.fault_once("RNTO", What::HoldReply(PATIENCE));
    let left = std::thread::scope(|scope| {
        let renaming = scope.spawn(|| fs.rename(b"other", b"f"));
        assert!(server.wait_until(|server| server.stuck() == 1, PATIENCE));
        let left = as_if_killed(&fs);
        server.release();
        renaming.join().unwrap().unwrap();
        left
    });
    drop(file);
    let again = mount_in(&server, left, write_back());
    again.vfs.recover();
    assert_eq!(server.get("/f").unwrap(), b"other");
}

/// What the server was not there for when its time had come is put away at the end, at the latest.
#[test]
fn what_could_not_be_put_away_goes_at_the_end() {
    let (server, fs) = start(Dialect::proftpd(), WritePolicy::default());
    server.fault(Fault {
        on: "STOR",
        nth: 1,
        times: 1,
        what: What::CutDataReply(10, 552, "Full."),
    });
    server.fault(Fault { on: "DELE", nth: 1, times: 9, what: What::Reply(421, "Bye.") });
    update(&fs, b"f", 0, &big()).unwrap_err();
    assert_eq!(server.names("/").len(), 4, "a part of it");
    server.clear_faults();
    fs.vfs.release_all();
    assert_eq!(server.names("/").len(), 3);
}

/// The kernel tells late that a file is closed: when it is being kept for those who have it open.
#[test]
fn a_file_that_is_closed_while_it_is_being_hidden_does_not_stay_on_the_server() {
    for is_replaced in [false, true] {
        let (server, fs) = start(Dialect::proftpd(), WritePolicy::default());
        fs.write(b"new", b"new").unwrap();
        let mut file = fs.open(b"big", How::READ).unwrap();
        assert_eq!(file.read_at(0, 10).unwrap(), &big()[..10]);
        server.fault_once("RNTO", What::HoldReply(PATIENCE));
        std::thread::scope(|scope| {
            let removing = scope.spawn(|| match is_replaced {
                true => fs.rename(b"new", b"big"),
                false => fs.unlink(b"big"),
            });
            assert!(server.wait_until(|server| server.stuck() == 1, PATIENCE));
            assert!(!server.exists("/big"));
            file.close().unwrap();
            server.release();
            removing.join().unwrap().unwrap();
        });
        assert_eq!(server.names("/").len(), 3);
        assert_eq!(server.get("/big"), is_replaced.then(|| b"new".to_vec()));
        assert_eq!(fs.names(b"").unwrap().len(), 3);
    }
}

/// What was sent ahead is put away by a thread of its own: the end of a mount waits for that.
#[test]
fn the_end_waits_for_what_is_being_put_away() {
    let (server, fs) = start(Dialect::proftpd(), WritePolicy::default());
    let marks = || {
        let files = std::fs::read_dir(fs.staging.path()).unwrap().flatten();
        files.filter(|file| file.file_name().to_string_lossy().starts_with("mark-")).count()
    };
    let mut file = fs.open(b"new", How::NEW).unwrap();
    file.write_at(0, &vec![b'x'; 2 * 1024 * 1024]).unwrap();
    assert!(server.wait_until(|server| server.count("STOR") == 1, PATIENCE), "sent ahead");
    server.fault_once("DELE", What::HoldReply(PATIENCE));
    file.write_at(0, b"another beginning").unwrap();
    assert!(server.wait_until(|server| server.stuck() == 1, PATIENCE));
    file.close().unwrap();
    assert_eq!(marks(), 1);
    std::thread::scope(|scope| {
        let ending = scope.spawn(|| fs.vfs.release_all());
        assert!(!server.wait_until(|_| ending.is_finished(), Duration::from_millis(100)));
        server.release();
    });
    assert_eq!(marks(), 0);
    assert_eq!(server.names("/").len(), 4);
}
