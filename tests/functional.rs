//! The functional suite: what programs do, over every dialect, once through the Vfs and once
//! through a real mount.

use std::time::Duration;

use crate::drivers::{Direct, Driver, Fail, How, Kernel, has_fuse};
use crate::support::dialect::Dialect;
use crate::support::server::Server;

/// Longer than any test: what is seen is what was changed through the mount.
const LONG: Duration = Duration::from_secs(600);

/// Every look asks the server.
const ZERO: Duration = Duration::ZERO;

type NamedDialect = (&'static str, fn() -> Dialect);
type Case = fn(&Server, &dyn Driver);

/// Every case, by name.
const CASES: &[(&str, Case)] = &[
    ("a new file arrives", new_file_arrives),
    ("an empty file arrives", empty_file_arrives),
    ("what the server has is read", reads_what_is_there),
    ("reads at any offset", reads_at_any_offset),
    ("overwrite keeps the rest", overwrite_keeps_the_rest),
    ("append goes to the end", append_goes_to_the_end),
    ("truncate to any size", truncate_to_any_size),
    ("open with truncation", open_with_truncation),
    ("exclusive creation", exclusive_creation),
    ("an open writer is seen by readers", open_writer_is_seen),
    ("fsync means the server has it", fsync_means_the_server_has_it),
    ("directories", directories),
    ("errors of names", errors_of_names),
    ("rename a file", rename_a_file),
    ("rename over a file", rename_over_a_file),
    ("rename a directory with what is in it", rename_a_directory),
    ("rename while open", rename_while_open),
    ("unlink while open", unlink_while_open),
    ("rename over an open file", rename_over_an_open_file),
    ("odd names", odd_names),
    ("times", times),
    ("modes", modes),
    ("hidden files", hidden_files),
    ("symbolic links", symbolic_links),
    ("extended attributes", extended_attributes),
    ("a replaced file leaves nothing behind", replace_leaves_nothing),
];

fn run_all(make: &dyn Fn(&Server) -> Box<dyn Driver>, dialects: &[NamedDialect]) {
    let mut count = 0;
    for (dialect_name, dialect) in dialects {
        for (name, case) in CASES {
            println!("{dialect_name}: {name}");
            let server = Server::start(dialect());
            let driver = make(&server);
            case(&server, driver.as_ref());
            count += 1;
        }
    }
    println!("{count} cases");
}

const DIALECTS: &[NamedDialect] = &[
    ("vsftpd", Dialect::vsftpd),
    ("proftpd", Dialect::proftpd),
    ("pureftpd", Dialect::pureftpd),
    ("pyftpdlib", Dialect::pyftpdlib),
    ("iis", Dialect::iis),
    ("minimal", Dialect::minimal),
];

#[test]
fn through_the_vfs() {
    run_all(&|server| Box::new(Direct::new(server, 4, LONG)), DIALECTS);
}

#[test]
fn through_the_vfs_with_one_connection() {
    run_all(&|server| Box::new(Direct::new(server, 1, LONG)), &DIALECTS[..2]);
}

#[test]
fn through_the_vfs_without_a_cache() {
    run_all(&|server| Box::new(Direct::new(server, 2, ZERO)), &DIALECTS[..3]);
}

#[test]
fn through_the_kernel() {
    if !has_fuse() {
        println!("SKIPPED: {} cases through the kernel: /dev/fuse cannot be opened", CASES.len());
        return;
    }
    run_all(&|server| Box::new(Kernel::new(server, 4, LONG)), &DIALECTS[..3]);
}

#[test]
fn through_the_kernel_with_one_connection() {
    if !has_fuse() {
        println!("SKIPPED: {} cases through the kernel: /dev/fuse cannot be opened", CASES.len());
        return;
    }
    run_all(&|server| Box::new(Kernel::new(server, 1, ZERO)), &DIALECTS[1..2]);
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 31 + index / 251) as u8).collect()
}

fn new_file_arrives(server: &Server, fs: &dyn Driver) {
    let bytes = pattern(300_000);
    fs.write(b"new", &bytes).unwrap();
    assert!(server.get("/new").unwrap() == bytes);
    assert_eq!(fs.stat(b"new").unwrap().size, 300_000);
    assert!(fs.read(b"new").unwrap() == bytes);
    assert_eq!(fs.names(b"").unwrap(), [b"new"]);
}

fn empty_file_arrives(server: &Server, fs: &dyn Driver) {
    fs.open(b"empty", How::CREATE).unwrap().close().unwrap();
    assert_eq!(server.get("/empty").unwrap(), b"");
    assert_eq!(fs.read(b"empty").unwrap(), b"");
}

fn reads_what_is_there(server: &Server, fs: &dyn Driver) {
    let bytes = pattern(700_001);
    server.put("/dir/sub/file", &bytes);
    assert_eq!(fs.names(b"dir").unwrap(), [b"sub"]);
    assert!(fs.stat(b"dir/sub").unwrap().is_dir);
    assert_eq!(fs.stat(b"dir/sub/file").unwrap().size, 700_001);
    assert!(fs.read(b"dir/sub/file").unwrap() == bytes);
    assert!(fs.read(b"dir/sub/file").unwrap() == bytes);
}

fn reads_at_any_offset(server: &Server, fs: &dyn Driver) {
    let bytes = pattern(3_000_000);
    server.put("/big", &bytes);
    let mut file = fs.open(b"big", How::READ).unwrap();
    for offset in [2_999_990, 0, 131_072, 1_500_000, 1_499_999, 2_000_000, 5, 2_999_999] {
        let got = file.read_at(offset as u64, 4096).unwrap();
        let end = (offset + 4096).min(bytes.len());
        assert!(got == bytes[offset..end], "at {offset}");
    }
    assert_eq!(file.read_at(3_000_000, 10).unwrap(), b"");
    assert_eq!(file.read_at(9_000_000, 10).unwrap(), b"");
    file.close().unwrap();
}

fn overwrite_keeps_the_rest(server: &Server, fs: &dyn Driver) {
    server.put("/f", "0123456789");
    let mut file = fs.open(b"f", How::UPDATE).unwrap();
    file.write_at(3, b"abc").unwrap();
    assert_eq!(file.read_at(0, 20).unwrap(), b"012abc6789");
    file.write_at(12, b"Z").unwrap();
    file.close().unwrap();
    assert_eq!(server.get("/f").unwrap(), b"012abc6789\0\0Z");
}

fn append_goes_to_the_end(server: &Server, fs: &dyn Driver) {
    server.put("/log", "one\n");
    let mut file = fs.open(b"log", How::APPEND).unwrap();
    file.write_at(4, b"two\n").unwrap();
    file.write_at(8, b"three\n").unwrap();
    file.close().unwrap();
    assert_eq!(server.get("/log").unwrap(), b"one\ntwo\nthree\n");
}

fn truncate_to_any_size(server: &Server, fs: &dyn Driver) {
    server.put("/f", "0123456789");
    fs.truncate(b"f", 4).unwrap();
    assert_eq!(server.get("/f").unwrap(), b"0123");
    fs.truncate(b"f", 6).unwrap();
    assert_eq!(server.get("/f").unwrap(), b"0123\0\0");
    assert_eq!(fs.stat(b"f").unwrap().size, 6);
    fs.truncate(b"f", 0).unwrap();
    assert_eq!(server.get("/f").unwrap(), b"");
}

fn open_with_truncation(server: &Server, fs: &dyn Driver) {
    server.put("/f", "old content");
    fs.write(b"f", b"new").unwrap();
    assert_eq!(server.get("/f").unwrap(), b"new");
    fs.open(b"f", How::CREATE).unwrap().close().unwrap();
    assert_eq!(server.get("/f").unwrap(), b"");
}

fn exclusive_creation(server: &Server, fs: &dyn Driver) {
    server.put("/there", "x");
    assert_eq!(fs.open(b"there", How::NEW).err(), Some(Fail::Exists));
    fs.open(b"lock", How::NEW).unwrap().close().unwrap();
    assert_eq!(fs.open(b"lock", How::NEW).err(), Some(Fail::Exists));
    assert_eq!(server.get("/there").unwrap(), b"x");
}

fn open_writer_is_seen(_server: &Server, fs: &dyn Driver) {
    let mut writer = fs.open(b"f", How::CREATE).unwrap();
    writer.write_at(0, b"hello").unwrap();
    assert_eq!(fs.names(b"").unwrap(), [b"f"]);
    assert_eq!(fs.stat(b"f").unwrap().size, 5);
    let mut reader = fs.open(b"f", How::READ).unwrap();
    assert_eq!(reader.read_at(0, 10).unwrap(), b"hello");
    reader.close().unwrap();
    writer.close().unwrap();
}

fn fsync_means_the_server_has_it(server: &Server, fs: &dyn Driver) {
    let mut file = fs.open(b"f", How::CREATE).unwrap();
    file.write_at(0, b"first").unwrap();
    file.sync().unwrap();
    assert_eq!(server.get("/f").unwrap(), b"first");
    file.write_at(5, b" second").unwrap();
    file.close().unwrap();
    assert_eq!(server.get("/f").unwrap(), b"first second");
}

fn directories(server: &Server, fs: &dyn Driver) {
    fs.mkdir(b"d").unwrap();
    assert!(server.exists("/d"));
    assert_eq!(fs.mkdir(b"d"), Err(Fail::Exists));
    fs.mkdir(b"d/e").unwrap();
    fs.write(b"d/e/f", b"x").unwrap();
    assert_eq!(fs.rmdir(b"d/e"), Err(Fail::NotEmpty));
    assert_eq!(fs.unlink(b"d/e"), Err(Fail::IsADirectory));
    assert_eq!(fs.rmdir(b"d/e/f"), Err(Fail::NotADirectory));
    fs.unlink(b"d/e/f").unwrap();
    fs.rmdir(b"d/e").unwrap();
    assert!(!server.exists("/d/e"));
    assert!(fs.names(b"d").unwrap().is_empty());
}

fn errors_of_names(server: &Server, fs: &dyn Driver) {
    server.put("/f", "x");
    assert_eq!(fs.stat(b"none").err(), Some(Fail::NotFound));
    assert_eq!(fs.unlink(b"none"), Err(Fail::NotFound));
    assert_eq!(fs.rmdir(b"none"), Err(Fail::NotFound));
    assert_eq!(fs.rename(b"none", b"x"), Err(Fail::NotFound));
    assert_eq!(fs.names(b"none").err(), Some(Fail::NotFound));
    assert_eq!(fs.mkdir(b"f"), Err(Fail::Exists));
    assert_eq!(fs.write(b"line\nbreak", b"x"), Err(Fail::Invalid));
    assert_eq!(fs.mkdir(b"carriage\rreturn"), Err(Fail::Invalid));
    assert_eq!(fs.mkdir(&[b'x'; 256]), Err(Fail::NameTooLong));
    assert_eq!(fs.names(b"").unwrap(), [b"f"]);
}

fn rename_a_file(server: &Server, fs: &dyn Driver) {
    server.put("/a", "content");
    server.mkdir("/d");
    fs.rename(b"a", b"d/b").unwrap();
    assert_eq!(server.get("/d/b").unwrap(), b"content");
    assert!(!server.exists("/a"));
    assert_eq!(fs.stat(b"a").err(), Some(Fail::NotFound));
    assert_eq!(fs.read(b"d/b").unwrap(), b"content");
}

fn rename_over_a_file(server: &Server, fs: &dyn Driver) {
    server.put("/new", "new");
    server.put("/old", "old");
    assert_eq!(fs.rename_noreplace(b"new", b"old"), Err(Fail::Exists));
    assert_eq!(server.get("/old").unwrap(), b"old");
    fs.rename(b"new", b"old").unwrap();
    assert_eq!(server.get("/old").unwrap(), b"new");
    assert_eq!(server.names("/"), [b"old"], "nothing of our own is left");
    assert_eq!(fs.read(b"old").unwrap(), b"new");
    fs.rename_noreplace(b"old", b"free").unwrap();
    assert_eq!(fs.names(b"").unwrap(), [b"free"]);
}

fn rename_a_directory(server: &Server, fs: &dyn Driver) {
    server.put("/a/sub/file", "x");
    assert_eq!(fs.read(b"a/sub/file").unwrap(), b"x");
    fs.rename(b"a", b"b").unwrap();
    assert_eq!(fs.read(b"b/sub/file").unwrap(), b"x");
    assert_eq!(fs.names(b"").unwrap(), [b"b"]);
    assert_eq!(fs.rename(b"b", b"b/sub/b"), Err(Fail::Invalid));
    fs.mkdir(b"empty").unwrap();
    fs.rename(b"b", b"empty").unwrap();
    assert_eq!(server.get("/empty/sub/file").unwrap(), b"x");
    fs.mkdir(b"other").unwrap();
    assert_eq!(fs.rename(b"other", b"empty"), Err(Fail::NotEmpty));
}

fn rename_while_open(server: &Server, fs: &dyn Driver) {
    let mut file = fs.open(b"draft", How::CREATE).unwrap();
    file.write_at(0, b"first").unwrap();
    fs.rename(b"draft", b"final").unwrap();
    file.write_at(5, b" second").unwrap();
    file.close().unwrap();
    assert_eq!(server.get("/final").unwrap(), b"first second");
    assert!(!server.exists("/draft"));
}

fn unlink_while_open(server: &Server, fs: &dyn Driver) {
    let bytes = pattern(500_000);
    server.put("/f", &bytes);
    let mut file = fs.open(b"f", How::READ).unwrap();
    assert!(file.read_at(0, 1000).unwrap() == bytes[..1000]);
    fs.unlink(b"f").unwrap();
    assert_eq!(fs.stat(b"f").err(), Some(Fail::NotFound));
    assert!(fs.names(b"").unwrap().is_empty());
    assert!(file.read_at(0, 600_000).unwrap() == bytes);
    file.close().unwrap();
    // The kernel's release comes after close has returned.
    let is_gone = |server: &Server| server.names("/").is_empty();
    assert!(server.wait_until(is_gone, crate::support::server::PATIENCE));

    let mut file = fs.open(b"g", How::CREATE).unwrap();
    file.write_at(0, b"x").unwrap();
    fs.unlink(b"g").unwrap();
    file.write_at(1, b"y").unwrap();
    file.close().unwrap();
    assert!(server.wait_until(is_gone, crate::support::server::PATIENCE));
}

fn rename_over_an_open_file(server: &Server, fs: &dyn Driver) {
    let bytes = pattern(400_000);
    server.put("/f", &bytes);
    server.put("/new", "new");
    let mut file = fs.open(b"f", How::READ).unwrap();
    assert!(file.read_at(0, 10).unwrap() == bytes[..10]);
    fs.rename(b"new", b"f").unwrap();
    assert_eq!(fs.read(b"f").unwrap(), b"new");
    assert!(file.read_at(200_000, 1000).unwrap() == bytes[200_000..201_000]);
    file.close().unwrap();
    let is_clean = |server: &Server| server.names("/") == [b"f"];
    assert!(server.wait_until(is_clean, crate::support::server::PATIENCE));
}

fn odd_names(server: &Server, fs: &dyn Driver) {
    let names: &[&[u8]] = &[
        b"two words",
        b"#hash %25 percent",
        b"[brackets] {braces}",
        b"star*name?",
        b"quote'and\"quote",
        b"semi;colon=equals",
        b"-dash",
        b"~tilde",
        b"a -> b",
        b".hidden",
        b"\\backslash",
        "grüße 漢字".as_bytes(),
        b"latin1-\xe9",
        b"$dollar `tick`",
    ];
    let mut kept = Vec::new();
    for name in names {
        if std::str::from_utf8(name).is_err() && fs.write(name, name) == Err(Fail::Invalid) {
            // pyftpdlib 2 takes only UTF-8: “501 Can't decode command.”
            fs.unlink(name).unwrap();
            continue;
        }
        kept.push(name.to_vec());
        fs.write(name, name).unwrap();
        assert_eq!(server.get([b"/", *name].concat()).as_deref(), Some(*name), "{name:?}");
        assert_eq!(fs.read(name).unwrap(), *name);
    }
    kept.sort();
    assert_eq!(fs.names(b"").unwrap(), kept);
    fs.mkdir(b"dir with [odd] *name*").unwrap();
    fs.write(b"dir with [odd] *name*/file", b"inside").unwrap();
    assert_eq!(fs.names(b"dir with [odd] *name*").unwrap(), [b"file"]);
    for name in &kept {
        fs.unlink(name).unwrap();
    }
    assert_eq!(server.names("/"), [b"dir with [odd] *name*"]);
}

fn times(server: &Server, fs: &dyn Driver) {
    server.put("/f", "x");
    fs.set_mtime(b"f", 1_000_000_007).unwrap();
    assert_eq!(fs.stat(b"f").unwrap().mtime, 1_000_000_007);
    fs.mkdir(b"d").unwrap();
    fs.set_mtime(b"d", 1_100_000_000).unwrap();
    assert_eq!(fs.stat(b"d").unwrap().mtime, 1_100_000_000);
    assert_eq!(fs.stat(b"f").unwrap().mtime, 1_000_000_007);
}

fn modes(server: &Server, fs: &dyn Driver) {
    server.put("/f", "x");
    fs.chmod(b"f", 0o600).unwrap();
    assert_eq!(fs.stat(b"f").unwrap().mode, 0o600);
    fs.write(b"g", b"y").unwrap();
    fs.chmod(b"g", 0o755).unwrap();
    assert_eq!(fs.stat(b"g").unwrap().mode, 0o755);
}

fn hidden_files(server: &Server, fs: &dyn Driver) {
    // A server that never lists hidden files cannot show them; all of these do when asked so.
    server.put("/.htaccess", "x");
    server.put("/.git/config", "y");
    assert_eq!(fs.names(b"").unwrap(), [&b".git"[..], b".htaccess"]);
    assert_eq!(fs.read(b".git/config").unwrap(), b"y");
}

fn replace_leaves_nothing(server: &Server, fs: &dyn Driver) {
    server.put("/f", "old");
    for round in 0..3 {
        let text = format!("version {round}");
        fs.write(b"f", text.as_bytes()).unwrap();
        assert_eq!(server.get("/f").unwrap(), text.as_bytes());
        assert_eq!(server.names("/"), [b"f"]);
    }
}

fn symbolic_links(server: &Server, fs: &dyn Driver) {
    server.put("/d/f", "content");
    server.symlink("/d/near", "f");
    server.symlink("/far", "/d/f");
    if fs.stat(b"d/near").unwrap().is_link {
        assert_eq!(fs.readlink(b"d/near").unwrap(), b"f");
        // Absolute on the server: made relative, so that it leads to the same file here.
        assert_eq!(fs.readlink(b"far").unwrap(), b"d/f");
    }
    match fs.symlink(b"f", b"d/made") {
        Ok(()) => assert_eq!(fs.readlink(b"d/made").unwrap(), b"f"),
        Err(fail) => {
            assert_eq!(fail, Fail::NotOwner, "what symlink(2) says where links cannot be made");
            assert!(!server.exists("/d/made"));
        }
    }
    fs.unlink(b"d/near").unwrap();
    assert_eq!(fs.read(b"d/f").unwrap(), b"content");
}

fn extended_attributes(server: &Server, fs: &dyn Driver) {
    server.put("/f", "x");
    let found = fs.xattrs(b"f").unwrap();
    // RFC 3659 §7.5.
    if server.commands().iter().any(|line| line.starts_with("MLSD")) {
        assert!(found.contains_key("user.ftp.unique"), "{found:?}");
    } else {
        // LIST of Unix tells at most whose it is.
        let known = ["user.ftp.owner", "user.ftp.group"];
        assert!(found.keys().all(|name| known.contains(&name.as_str())), "{found:?}");
    }
}
