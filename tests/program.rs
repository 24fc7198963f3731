//! The program as users call it: what it prints, how it ends, and what is left behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::print_stdout, unreachable_pub)]

mod support;

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use support::dialect::{Dialect, Login};
use support::faults::{Fault, What};
use support::server::Server;

/// Longer than anything waited for here takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A world of its own for the program: home, runtime directory, mount point. Ends what it left.
struct World {
    dir: tempfile::TempDir,
    mnt: PathBuf,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mnt = dir.path().join("mnt");
        fs::create_dir(&mnt).unwrap();
        Self { mnt, dir }
    }

    fn command(&self, arguments: &[&dyn AsRef<OsStr>]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ftpfs"));
        command
            .args(arguments)
            .env("HOME", self.dir.path())
            .env("XDG_RUNTIME_DIR", self.dir.path())
            .env_remove("XDG_CACHE_HOME")
            .env_remove("RUST_LOG")
            .env_remove("FTPFS_PASSWORD")
            .stdin(Stdio::null());
        // No terminal to ask at: a session of its own has none.
        #[allow(unsafe_code)]
        // SAFETY: setsid(2) is async-signal-safe and touches nothing of this process.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                Ok(())
            });
        }
        command
    }

    fn run(&self, arguments: &[&dyn AsRef<OsStr>]) -> Run {
        Run::of(self.command(arguments).output().unwrap())
    }

    fn mount(&self, server: &Server) -> Run {
        self.run(&[&"mount", &"--timeout", &"3", &url(server, ""), &self.mnt])
    }

    fn umount(&self) -> Run {
        self.run(&[&"umount", &self.mnt])
    }

    fn is_mounted(&self) -> bool {
        fs::read_to_string("/proc/self/mountinfo").unwrap().contains(self.mnt.to_str().unwrap())
    }

    /// The process behind the mount, from what `status` says.
    fn daemon(&self) -> u32 {
        let shown = self.run(&[&"status", &"--json"]).out;
        let number = shown.split("\"pid\":").nth(1).unwrap().split(',').next().unwrap();
        number.trim().parse().unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.mnt.join(name)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        while self.is_mounted() {
            let _ = Command::new("umount").arg("-l").arg(&self.mnt).output();
        }
    }
}

struct Run {
    status: i32,
    out: String,
    err: String,
}

impl Run {
    fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let status = output.status.code().unwrap();
        Self { status, out: text(output.stdout), err: text(output.stderr) }
    }

    fn assert_fine(&self) {
        assert_eq!((self.status, self.err.as_str()), (0, ""));
    }
}

fn url(server: &Server, rest: &str) -> String {
    format!("ftp://user:password@127.0.0.1:{}/{rest}", server.port())
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Has the process ended, or does it only wait to be noticed?
fn has_ended(process: u32) -> bool {
    match fs::read_to_string(format!("/proc/{process}/stat")) {
        Ok(stat) => stat.rsplit_once(") ").unwrap().1.starts_with('Z'),
        Err(_) => true,
    }
}

fn signal(process: u32, name: &str) {
    let sent = Command::new("kill").arg(format!("-{name}")).arg(process.to_string()).status();
    assert!(sent.unwrap().success());
}

fn has_fuse() -> bool {
    fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok()
}

/// Skips loudly where there is no FUSE.
macro_rules! need_fuse {
    () => {
        if !has_fuse() {
            println!("SKIPPED: 1 test of the program: /dev/fuse cannot be opened");
            return;
        }
    };
}

#[test]
fn each_failure_is_one_line_and_a_status_of_the_table() {
    need_fuse!();
    let world = World::new();
    let server = Server::start(Dialect {
        login: Login::As { user: "user", password: "password" },
        ..Dialect::proftpd()
    });
    let good = url(&server, "");
    let closed = {
        let gone = Server::start(Dialect::proftpd());
        url(&gone, "")
    };
    let mnt = world.mnt.to_str().unwrap().to_owned();
    let file = world.dir.path().join("file");
    fs::write(&file, "x").unwrap();
    let full = world.dir.path().to_str().unwrap();
    let wrong = good.replace(":password@", ":wr0ng@");
    let no_dir = url(&server, "none");
    let absent = format!("{full}/absent");
    let file = file.to_str().unwrap();
    let cases: [(i32, &[&str], &str); 14] = [
        (3, &["mount", "no.such.host.invalid", &mnt], "cannot find the host"),
        (3, &["mount", &closed, &mnt], "cannot connect"),
        (4, &["mount", &wrong, &mnt], "530"),
        (4, &["mount", "bob@127.0.0.1", &mnt], "--password-file"),
        (
            4,
            &["mount", &good.replace(":password@", "@"), &mnt, "--password-file", &absent],
            "absent",
        ),
        (5, &["mount", &no_dir, &mnt], "550"),
        (6, &["mount", &good, &absent], "mkdir"),
        (6, &["mount", &good, file], "not a directory"),
        (6, &["mount", &good, full], "not empty"),
        (6, &["umount", &mnt], "not mounted"),
        (6, &["status", &mnt], "not mounted"),
        (2, &["mount", "http://nas", &mnt], "not a scheme"),
        (2, &["mount", &good, &mnt, "-o", "bogus"], "bogus"),
        (2, &["mount", "ftp://user:password@127.0.0.1:99999", &mnt], "not a port"),
    ];
    for (status, arguments, said) in cases {
        let run = Run::of(world.command(&[]).args(arguments).output().unwrap());
        assert_eq!(run.status, status, "{arguments:?}: {}", run.err);
        assert!(run.err.contains(said), "{arguments:?}: {}", run.err);
        assert_eq!(run.err.lines().count(), 1, "{arguments:?}: {}", run.err);
        assert!(!run.err.contains("password@") && !run.err.contains("wr0ng"), "{}", run.err);
        assert!(run.out.is_empty());
        assert!(!world.is_mounted());
    }
}

#[test]
fn a_server_that_does_not_answer_is_given_up() {
    need_fuse!();
    let world = World::new();
    let server = Server::start(Dialect::proftpd());
    for what in [What::Silence, What::Garbage(b"SSH-2.0-OpenSSH\r\n"), What::Close] {
        server.clear_faults();
        server.fault(Fault::always("CONNECT", what.clone()));
        let run = Run::of(
            world
                .command(&[&"mount", &"--timeout", &"1", &url(&server, ""), &world.mnt])
                .output()
                .unwrap(),
        );
        assert_eq!(run.status, 3, "{what:?}: {}", run.err);
        assert!(!world.is_mounted());
    }
}

#[test]
fn mount_answers_and_umount_leaves_nothing() {
    need_fuse!();
    let world = World::new();
    let server = Server::start(Dialect::proftpd());
    server.put("/dir/file", "content");
    world.mount(&server).assert_fine();
    assert_eq!(fs::read(world.path("dir/file")).unwrap(), b"content");
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(table.contains("fuse.ftpfs ftp://user@127.0.0.1"), "{table}");
    let status = world.run(&[&"status"]);
    assert!(
        status.out.contains("connections: ") && status.out.contains("everything is on the server")
    );
    let again = world.mount(&server);
    assert_eq!((again.status, again.err.contains("already")), (6, true), "{}", again.err);
    let daemon = world.daemon();
    world.umount().assert_fine();
    assert!(!world.is_mounted());
    assert!(has_ended(daemon), "umount waits for the process");
    let status = world.run(&[&"status"]).out;
    assert!(!status.contains(&*world.mnt.to_string_lossy()), "{status}");
    if !fs::read_to_string("/proc/self/mountinfo").unwrap().contains(" fuse.ftpfs ") {
        let status = world.run(&[&"status"]).out;
        assert_eq!(status, "nothing is mounted by ftpfs\n");
    }
    assert!(server.wait_until(|server| server.sessions_open() == 0, PATIENCE));
}

#[test]
fn a_directory_is_the_root_of_the_mount() {
    need_fuse!();
    let world = World::new();
    let server = Server::start(Dialect::vsftpd());
    server.put("/a b/c", "inside");
    world.run(&[&"mount", &url(&server, "a%20b"), &world.mnt]).assert_fine();
    assert_eq!(fs::read(world.path("c")).unwrap(), b"inside");
    world.umount().assert_fine();
}

#[test]
fn the_password_is_seen_nowhere() {
    need_fuse!();
    let world = World::new();
    let server = Server::start(Dialect::proftpd());
    let log = world.dir.path().join("log");
    let mut command =
        world.command(&[&"mount", &"-vv", &"--log", &log, &url(&server, ""), &world.mnt]);
    Run::of(command.env("RUST_LOG", "trace").output().unwrap()).assert_fine();
    let daemon = world.daemon();
    let shown = fs::read(format!("/proc/{daemon}/cmdline")).unwrap();
    let shown = String::from_utf8_lossy(&shown).into_owned();
    assert!(shown.contains("user:********@") && !shown.contains("user:password"), "{shown}");
    fs::read_dir(&world.mnt).unwrap().for_each(drop);
    let log = fs::read_to_string(&log).unwrap();
    assert!(log.contains("> PASS ***") && log.contains("> MLSD /"), "{log}");
    assert!(!log.contains("password\"") && !log.contains("PASS password"), "{log}");
    assert!(!log.contains(":password@"), "{log}");
    assert!(!world.run(&[&"status", &"--json"]).out.contains("password"));
    world.umount().assert_fine();
}

#[test]
fn the_password_comes_from_where_it_is_kept() {
    need_fuse!();
    let world = World::new();
    let server = Server::start(Dialect {
        login: Login::As { user: "user", password: "password" },
        ..Dialect::proftpd()
    });
    let host = format!("127.0.0.1:{}", server.port());
    let named = format!("user@{host}");
    let write = |name: &str, text: &str| {
        let path = world.dir.path().join(name);
        fs::write(&path, text).unwrap();
        Command::new("chmod").arg("600").arg(&path).status().unwrap();
        path
    };
    let file = write("word", "password\n");
    let listed = write("list", "machine 127.0.0.1 login user password password\n");
    let mut ways = [
        world.command(&[&"mount", &named, &world.mnt, &"--password-file", &file]),
        world.command(&[&"mount", &named, &world.mnt, &"--password-file", &"-"]),
        world.command(&[&"mount", &named, &world.mnt]),
        world.command(&[&"mount", &host, &world.mnt, &"--netrc", &listed]),
    ];
    ways[2].env("FTPFS_PASSWORD", "password");
    for way in &mut ways {
        let mut child = way.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"password\n").unwrap();
        Run::of(child.wait_with_output().unwrap()).assert_fine();
        world.umount().assert_fine();
    }
}

#[test]
fn signals_send_everything_and_unmount() {
    need_fuse!();
    for (name, foreground) in [("TERM", false), ("INT", true)] {
        let world = World::new();
        let server = Server::start(Dialect::proftpd());
        let mut child: Option<Child> = None;
        if foreground {
            let mut command = world.command(&[&"mount", &"-f", &url(&server, ""), &world.mnt]);
            child = Some(command.spawn().unwrap());
            wait_until("it is mounted", || world.is_mounted());
        } else {
            world.mount(&server).assert_fine();
        }
        wait_until("it can be asked", || world.run(&[&"status"]).out.contains("process"));
        let daemon = world.daemon();
        let mut file = fs::File::create(world.path("new")).unwrap();
        file.write_all(b"written, not closed").unwrap();
        signal(daemon, name);
        wait_until("it has ended", || has_ended(daemon));
        assert_eq!(server.get("/new").unwrap(), b"written, not closed", "{name}");
        assert!(!world.is_mounted());
        if let Some(child) = &mut child {
            assert!(child.wait().unwrap().success());
        }
    }
}

#[test]
fn a_foreign_umount_ends_the_process() {
    need_fuse!();
    let world = World::new();
    let server = Server::start(Dialect::proftpd());
    world.mount(&server).assert_fine();
    let daemon = world.daemon();
    fs::write(world.path("new"), "x").unwrap();
    // Busy for a moment: a child that another test is about to start still has the file open.
    let umount = || Command::new("umount").arg(&world.mnt).status().unwrap().success();
    wait_until("it is unmounted", umount);
    wait_until("it has ended", || has_ended(daemon));
    assert_eq!(server.get("/new").unwrap(), b"x");
}

#[test]
fn a_dead_mount_is_replaced_and_removed() {
    need_fuse!();
    let world = World::new();
    let server = Server::start(Dialect::proftpd());
    server.put("/file", "content");
    world.mount(&server).assert_fine();
    let daemon = world.daemon();
    signal(daemon, "KILL");
    wait_until("it has ended", || has_ended(daemon));
    assert!(world.run(&[&"status"]).out.contains("dead"));
    let again = world.mount(&server);
    assert_eq!(again.status, 0, "{}", again.err);
    assert_eq!(fs::read(world.path("file")).unwrap(), b"content");
    let daemon = world.daemon();
    signal(daemon, "KILL");
    wait_until("it has ended", || has_ended(daemon));
    world.umount().assert_fine();
    assert!(!world.is_mounted());
}

#[test]
fn a_busy_mount_says_who_uses_it() {
    need_fuse!();
    let world = World::new();
    let server = Server::start(Dialect::proftpd());
    server.put("/file", "content");
    world.mount(&server).assert_fine();
    let file = fs::File::open(world.path("file")).unwrap();
    let busy = world.umount();
    assert_eq!(busy.status, 9, "{}", busy.err);
    assert!(busy.err.contains(&format!("({})", std::process::id())), "{}", busy.err);
    assert!(world.is_mounted());
    drop(file);
    world.umount().assert_fine();
}

#[test]
fn what_cannot_be_sent_keeps_the_mount_or_stays_on_the_disk() {
    need_fuse!();
    let world = World::new();
    let server = Server::start(Dialect::proftpd());
    world.mount(&server).assert_fine();
    server.fault(Fault::always("STOR", What::Reply(552, "Quota exceeded")));
    let mut file = fs::File::create(world.path("big")).unwrap();
    file.write_all(b"precious").unwrap();
    assert_eq!(file.sync_all().unwrap_err().raw_os_error(), Some(libc::EDQUOT));
    drop(file);
    let status = world.run(&[&"status"]);
    assert!(status.out.contains("/big") && status.out.contains("552"), "{}", status.out);
    let kept = world.umount();
    assert_eq!(kept.status, 8, "{}", kept.err);
    assert!(kept.err.contains("/big") && kept.err.contains("--force"), "{}", kept.err);
    assert!(world.is_mounted());
    world.run(&[&"umount", &"--force", &world.mnt]).assert_fine();
    let status = world.run(&[&"status"]).out;
    assert!(status.contains("unsent") && status.contains("/big"), "{status}");
    // The next mount sends it.
    server.clear_faults();
    world.mount(&server).assert_fine();
    wait_until("it is sent", || server.get("/big").is_some_and(|bytes| bytes == b"precious"));
    world.umount().assert_fine();
    let staging = world.dir.path().join(".cache/ftpfs/staging");
    assert_eq!(fs::read_dir(staging).unwrap().count(), 0);
}

#[test]
fn an_upload_whose_process_is_killed_is_sent_by_the_next_mount() {
    need_fuse!();
    let world = World::new();
    let server = Server::start(Dialect::proftpd());
    world.mount(&server).assert_fine();
    let daemon = world.daemon();
    server.fault(Fault::always("STOR", What::Silence));
    let path = world.path("big");
    let writer = std::thread::spawn(move || {
        let mut file = fs::File::create(path).unwrap();
        file.write_all(b"precious").unwrap();
        file.sync_all()
    });
    wait_until("it is being sent", || server.count("STOR") > 0);
    signal(daemon, "KILL");
    assert!(writer.join().unwrap().is_err(), "nobody was told that it arrived");
    server.clear_faults();
    server.release();
    let again = world.mount(&server);
    assert_eq!(again.status, 0, "{}", again.err);
    wait_until("it is sent", || server.get("/big").is_some_and(|bytes| bytes == b"precious"));
    world.umount().assert_fine();
}

#[test]
fn the_calls_of_mount_8_are_understood() {
    need_fuse!();
    let world = World::new();
    let server = Server::start(Dialect::proftpd());
    let words = "rw,noauto,_netdev,x-systemd.automount,ttl=1,ro";
    world.run(&[&url(&server, ""), &world.mnt, &"-o", &words]).assert_fine();
    let refused = fs::write(world.path("new"), "x").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    world.umount().assert_fine();
    let helper = world.dir.path().join("mount.ftpfs");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_ftpfs"), &helper).unwrap();
    let mut command = Command::new(&helper);
    let faked = command.args([&url(&server, ""), "/"]).args(["-s", "-f", "-o", "odd"]).output();
    let run = Run::of(faked.unwrap());
    assert_eq!(
        (run.status, run.err.contains("not empty") || run.err.contains("mounted")),
        (6, true)
    );
}

#[test]
fn a_refresh_shows_what_others_changed() {
    need_fuse!();
    let world = World::new();
    let server = Server::start(Dialect::proftpd());
    for path in ["/dir/a", "/dir/held", "/dir/sub/x"] {
        server.put(path, "old");
    }
    world.run(&[&"mount", &"--ttl", &"600", &url(&server, ""), &world.mnt]).assert_fine();
    let names = |path: &str| fs::read_dir(world.path(path)).unwrap().count();
    let held = fs::File::open(world.path("dir/held")).unwrap();
    let mut shell = Command::new("cat")
        .current_dir(world.path("dir"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    assert_eq!((names("dir"), names("dir/sub")), (3, 1));
    assert_eq!(fs::read(world.path("dir/a")).unwrap(), b"old");
    assert!(fs::metadata(world.path("dir/new")).is_err());
    for path in ["/dir/a", "/dir/new", "/dir/sub/y"] {
        server.put(path, "changed");
    }
    assert_eq!(fs::metadata(world.path("dir/a")).unwrap().len(), 3);
    assert!(fs::metadata(world.path("dir/new")).is_err());

    world.run(&[&"refresh", &world.path("dir/a")]).assert_fine();
    assert_eq!(fs::read(world.path("dir/a")).unwrap(), b"changed");
    world.run(&[&"refresh", &world.path("dir")]).assert_fine();
    assert_eq!(fs::read(world.path("dir/new")).unwrap(), b"changed");
    assert_eq!((names("dir"), names("dir/sub")), (4, 1));
    world.run(&[&"refresh", &"-r", &world.mnt]).assert_fine();
    assert_eq!(names("dir/sub"), 2);
    server.remove("/dir/a");
    world.run(&[&"refresh", &world.path("dir/../dir")]).assert_fine();
    assert!(fs::metadata(world.path("dir/a")).is_err());

    let cwd = fs::read_link(format!("/proc/{}/cwd", shell.id())).unwrap();
    assert_eq!(cwd, world.path("dir"), "whoever stands there still does");
    assert_eq!(held.metadata().unwrap().len(), 3);
    drop(shell.stdin.take());
    shell.wait().unwrap();
    drop(held);

    let missing = world.run(&[&"refresh", &world.path("dir/none")]);
    assert_eq!(missing.status, 5, "{}", missing.err);
    assert!(missing.err.contains("dir/none"), "{}", missing.err);
    let outside = world.run(&[&"refresh", &world.dir.path()]);
    assert_eq!(outside.status, 6, "{}", outside.err);
    assert!(outside.err.contains("not in a mount"), "{}", outside.err);
    world.umount().assert_fine();
}

#[test]
fn a_refresh_is_in_nobodys_way_and_own_changes_are_seen_beside_listings() {
    need_fuse!();
    let world = World::new();
    let server = Server::start(Dialect::proftpd());
    for index in 0..200 {
        server.put(format!("/dir/{index}"), "x");
    }
    world.run(&[&"mount", &"--ttl", &"600", &url(&server, ""), &world.mnt]).assert_fine();
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let over = || is_over.load(std::sync::atomic::Ordering::Relaxed);
    std::thread::scope(|scope| {
        for worker in 0..3 {
            let (world, over) = (&world, &over);
            scope.spawn(move || {
                while !over() {
                    let mine = world.path(&format!("dir/mine-{worker}"));
                    fs::write(&mine, "mine").unwrap();
                    assert_eq!(fs::read(&mine).unwrap(), b"mine");
                    assert!(fs::read_dir(world.path("dir")).unwrap().count() > 200);
                    assert_eq!(fs::read(world.path("dir/7")).unwrap(), b"x");
                    assert!(fs::metadata(world.path("dir/none")).is_err());
                    fs::remove_file(&mine).unwrap();
                }
            });
        }
        let runs: Vec<Run> = (0..20).map(|_| world.run(&[&"refresh", &"-r", &world.mnt])).collect();
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        runs.iter().for_each(Run::assert_fine);
    });
    world.umount().assert_fine();
}

#[test]
fn reads_past_the_page_cache_give_the_same_bytes() {
    need_fuse!();
    let server = Server::start(Dialect::proftpd());
    let content: Vec<u8> = (0..3_000_000_u32).map(|index| (index * 7 % 251) as u8).collect();
    server.put("/f", &content);
    let world = World::new();
    world.run(&[&"mount", &"--direct-io", &url(&server, ""), &world.mnt]).assert_fine();
    assert!(fs::read(world.path("f")).unwrap() == content);
    let file = fs::File::open(world.path("f")).unwrap();
    let mut part = [0; 1000];
    file.read_exact_at(&mut part, 2_500_001).unwrap();
    assert_eq!(part, content[2_500_001..2_501_001]);
    fs::write(world.path("new"), &content).unwrap();
    assert!(server.get("/new").unwrap() == content);
    drop(file);
    world.umount().assert_fine();
}

/// What getxattr(2) of a path says: how many bytes, or why none.
fn attribute(path: &Path, name: &std::ffi::CStr) -> Result<usize, i32> {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: both names end with a NUL; with a size of 0 nothing is written.
    #[allow(unsafe_code)]
    let length = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) };
    usize::try_from(length).map_err(|_| std::io::Error::last_os_error().raw_os_error().unwrap())
}

#[test]
fn facts_are_shown_to_those_who_want_them() {
    need_fuse!();
    let server = Server::start(Dialect::proftpd());
    server.put("/f", "x");
    for wants_them in [false, true] {
        let world = World::new();
        let options = if wants_them { "facts" } else { "rw" };
        world.run(&[&"mount", &"-o", &options, &url(&server, ""), &world.mnt]).assert_fine();
        let found = attribute(&world.mnt.join("f"), c"user.ftp.unique");
        assert_eq!(found.is_ok(), wants_them, "{found:?}");
        assert!(wants_them || found == Err(libc::EOPNOTSUPP), "{found:?}");
        world.run(&[&"umount", &world.mnt]).assert_fine();
    }
}

#[test]
fn help_shows_the_table() {
    let world = World::new();
    for arguments in [
        &["--help"][..],
        &["mount", "--help"],
        &["umount", "-h"],
        &["status", "-h"],
        &["refresh", "-h"],
    ] {
        let run = Run::of(world.command(&[]).args(arguments).output().unwrap());
        assert_eq!(run.status, 0);
        assert!(run.out.contains("Exit status:"), "{arguments:?}");
    }
    assert_eq!(Run::of(world.command(&[]).output().unwrap()).status, 2);
    assert!(Path::new(env!("CARGO_BIN_EXE_ftpfs")).exists());
}

#[test]
fn what_is_pinned_is_there_without_the_server() {
    need_fuse!();
    let world = World::new();
    let server = Server::start(Dialect::proftpd());
    for (path, bytes) in [("/dir/a", "one"), ("/dir/sub/b", "two"), ("/new/now", "now")] {
        server.put(path, bytes);
    }
    for path in ["/dir/a", "/dir/sub/b"] {
        server.set_mtime(path, 1_000_000_000);
    }
    world.mount(&server).assert_fine();
    let without = world.run(&[&"pin", &world.path("dir")]);
    assert_eq!((without.status, without.err.contains("--cache")), (2, true), "{}", without.err);
    world.umount().assert_fine();
    let cache = world.dir.path().join("cache");
    let here = world.mnt.join("cache");
    let mount = |cache: &PathBuf| {
        world.run(&[&"mount", &"--timeout", &"3", &"--cache", cache, &url(&server, ""), &world.mnt])
    };
    assert_eq!(mount(&here).status, 2, "a cache in the mount waits for itself");
    let open_to_all = world.dir.path().join("open");
    fs::create_dir(&open_to_all).unwrap();
    fs::set_permissions(&open_to_all, fs::Permissions::from_mode(0o777)).unwrap();
    let refused = mount(&open_to_all);
    assert_eq!((refused.status, refused.err.contains("nobody else")), (1, true), "{}", refused.err);
    mount(&cache).assert_fine();
    world.run(&[&"pin", &world.path("dir")]).assert_fine();
    let late = world.run(&[&"pin", &world.path("new")]);
    assert_eq!((late.status, late.err.contains("/new/now")), (1, true), "{}", late.err);
    assert_eq!(world.run(&[&"pin", &world.path("none")]).status, 5);
    let listed = world.run(&[&"pin", &"--list"]).out;
    assert!(listed.contains("  /dir\n") && listed.contains("  /new\n"), "{listed}");
    let status = world.run(&[&"status"]).out;
    assert!(status.contains("cache: ") && status.contains("; 2 pinned"), "{status}");
    server.refuse_connections(true);
    server.kill_sessions();
    assert_eq!(fs::read(world.path("dir/a")).unwrap(), b"one");
    assert_eq!(fs::read(world.path("dir/sub/b")).unwrap(), b"two");
    world.run(&[&"pin", &"--remove", &world.path("dir")]).assert_fine();
    assert_eq!(world.run(&[&"pin", &"--remove", &world.path("dir")]).status, 5);
    assert!(!world.run(&[&"pin", &"--list", &world.mnt]).out.contains("/dir"));
    server.refuse_connections(false);
    world.umount().assert_fine();
}
