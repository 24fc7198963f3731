//! Each verb, and the switches of the dialects.

use std::io::{Cursor, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use suppaftp::FtpStream;
use suppaftp::types::{FileType, Mode};

use super::client::Client;
use crate::support::dialect::*;
use crate::support::server::{PATIENCE, Server};
use crate::support::tree::{fill_generated, generated_byte};

#[test]
fn a_file_goes_up_and_comes_down() {
    let server = Server::start(Dialect::default());
    let mut client = Client::login(&server);
    assert_eq!(client.upload("STOR /new file", b"one\r\ntwo\n"), 226);
    assert_eq!(server.get("/new file").unwrap(), b"one\r\ntwo\n");
    assert_eq!(client.download("RETR /new file"), b"one\r\ntwo\n");
    client.expect("REST 4", 350);
    assert_eq!(client.download("RETR new file"), b"\ntwo\n");
    client.expect("REST 3", 350);
    assert_eq!(client.upload("STOR /new file", b"!"), 226);
    assert_eq!(client.upload("APPE /new file", b"end"), 226);
    assert_eq!(server.get("/new file").unwrap(), b"one!\ntwo\nend");
    client.expect("SIZE /new file", 213);
    client.expect("QUIT", 221);
    assert!(client.rest().unwrap().is_empty());
    assert!(server.wait_until(|server| server.sessions_open() == 0, PATIENCE));
}

#[test]
fn suppaftp_understands_it() {
    for dialect in [Dialect::default(), Dialect::vsftpd(), Dialect::pureftpd(), Dialect::iis()] {
        let server = Server::start(dialect);
        server.put("/dir/old.txt", b"old");
        let mut ftp = FtpStream::connect(server.addr()).unwrap();
        ftp.set_mode(Mode::ExtendedPassive);
        ftp.login("u", "p").unwrap();
        ftp.transfer_type(FileType::Binary).unwrap();
        let bytes: Vec<u8> = (0..=255).cycle().take(300_000).collect();
        assert_eq!(ftp.put_file("/dir/new.bin", &mut Cursor::new(&bytes)).unwrap(), 300_000);
        assert_eq!(server.get("/dir/new.bin").unwrap(), bytes);
        assert_eq!(ftp.retr_as_buffer("/dir/new.bin").unwrap().into_inner(), bytes);
        assert_eq!(ftp.size("/dir/new.bin").unwrap(), 300_000);
        assert_eq!(ftp.nlst(Some("/dir")).unwrap(), ["new.bin", "old.txt"]);
        ftp.mkdir("/made").unwrap();
        ftp.rename("/dir/old.txt", "/made/older.txt").unwrap();
        ftp.rm("/dir/new.bin").unwrap();
        ftp.rmdir("/dir").unwrap();
        assert_eq!(server.names("/"), [b"made"]);
        assert_eq!(ftp.pwd().unwrap(), "/");
        ftp.set_mode(Mode::Passive);
        assert!(ftp.list(Some("/made")).unwrap()[0].ends_with("older.txt"));
        ftp.quit().unwrap();
    }
}

#[test]
fn ascii_type_changes_line_ends() {
    let server = Server::start(Dialect::default());
    server.put("/file", b"a\nb\n");
    let mut client = Client::login(&server);
    client.expect("TYPE A", 200);
    assert_eq!(client.download("RETR /file"), b"a\r\nb\r\n");
    assert_eq!(client.upload("STOR /up", b"x\r\ny\rz\n\r"), 226);
    assert_eq!(server.get("/up").unwrap(), b"x\ny\rz\n\r");
}

#[test]
fn commands_are_recorded_and_the_password_is_not() {
    let server = Server::start(Dialect::default());
    let mut client = Client::login(&server);
    client.expect(b"MKD /caf\xe9 it's", 257);
    assert_eq!(server.commands(), ["USER u", "PASS ***", "TYPE I", "MKD /caf\\xe9 it's"]);
    assert_eq!(server.count("MKD"), 1);
    server.clear_commands();
    assert_eq!(server.count("MKD"), 0);
    assert_eq!(server.names("/"), [b"caf\xe9 it's"]);
}

#[test]
fn names_are_bytes_and_telnet_is_undone() {
    let server = Server::start(Dialect::proftpd());
    let mut client = Client::login(&server);
    client.expect(b"MKD /a\xff\xffb", 257);
    assert_eq!(server.names("/"), [b"a\xffb"]);
    let listing = client.download("MLSD /");
    assert!(listing.ends_with(b" a\xffb\r\n"));

    // vsftpd takes every byte as it comes.
    let server = Server::start(Dialect::vsftpd());
    let mut client = Client::login(&server);
    client.expect(b"MKD /a\xff\xffb", 257);
    client.expect("MKD / x \"y\" ", 257);
    assert_eq!(server.names("/"), [b" x \"y\" ".to_vec(), b"a\xff\xffb".to_vec()]);
    client.expect("CWD / x \"y\" ", 250);
    assert!(client.expect("PWD", 257).starts_with(b"257 \"/ x \"\"y\"\" \" "));
}

#[test]
fn list_looks_like_vsftpd() {
    let server = Server::start(Dialect { clock_skew: 0, ..Dialect::vsftpd() });
    server.put("/sub/file name", b"12345");
    server.put("/sub/.hidden", b"");
    server.mkdir("/sub/dir");
    server.symlink("/sub/link", "file name");
    for name in ["file name", ".hidden", "dir"] {
        // 2001-02-03 04:05:06 UTC.
        server.set_mtime(format!("/sub/{name}"), 981_173_106);
    }
    let mut client = Client::login(&server);
    let listing = String::from_utf8(client.download("LIST /sub")).unwrap();
    let lines: Vec<&str> = listing.lines().collect();
    assert_eq!(lines[0], "drwxr-xr-x    2 ftp      ftp              4096 Feb 03  2001 dir");
    assert_eq!(lines[1], "-rw-r--r--    1 ftp      ftp                 5 Feb 03  2001 file name");
    assert!(lines[2].starts_with("lrwxrwxrwx") && lines[2].ends_with(" link -> file name"));
    // The link is new: hours and minutes.
    assert_eq!(lines[2].as_bytes()[lines[2].len() - " link -> file name".len() - 3], b':');
    assert_eq!(lines.len(), 3);

    let all = String::from_utf8(client.download("LIST -a /sub")).unwrap();
    let names: Vec<&str> = all.lines().map(|line| line.rsplit(' ').next().unwrap()).collect();
    assert_eq!(names, [".", "..", ".hidden", "dir", "name", "name"]);
    assert_eq!(client.download("NLST /sub"), b"dir\r\nfile name\r\nlink\r\n");
    // What is not there is as good as empty.
    assert_eq!(client.download("LIST /nowhere"), b"");
    assert_eq!(client.download("NLST /sub/*name"), b"file name\r\n");
}

#[test]
fn list_of_the_others() {
    let server = Server::start(Dialect { list_zone: 3600, ..Dialect::iis() });
    server.put("/file", b"12345");
    server.mkdir("/dir");
    server.set_mtime("/file", 981_173_106);
    server.set_mtime("/dir", 981_173_106 + 12 * 3600);
    let mut client = Client::login(&server);
    assert_eq!(
        String::from_utf8(client.download("LIST")).unwrap(),
        "02-03-01  05:05PM       <DIR>          dir\r\n\
         02-03-01  05:05AM                    5 file\r\n"
    );
    client.expect("EPSV", 229);
    client.expect("LIST /nowhere", 550);
    server.set_dialect(|dialect| dialect.list = ListStyle::DosLongYear);
    assert!(client.download("LIST").starts_with(b"02-03-2001  05:05PM"));

    // FRITZ!Box: whatever is asked, the current directory is shown.
    server.set_dialect(|dialect| dialect.list_argument = false);
    assert_eq!(client.download("NLST /dir"), b"dir\r\nfile\r\n");
    client.expect("CWD /dir", 250);
    assert_eq!(client.download("NLST /"), b"");

    // `-a` is a file name where options are unknown.
    let server = Server::start(Dialect::minimal());
    server.put("/file", b"");
    let mut client = Client::login(&server);
    client.expect("PASV", 227);
    client.expect("LIST -a", 550);
}

#[test]
fn mlsd_and_mlst_show_facts() {
    let server = Server::start(Dialect::proftpd());
    server.put("/file", b"12345");
    server.set_mtime("/file", 981_173_106);
    server.symlink("/link", "file");
    let mut client = Client::login(&server);
    let listing = String::from_utf8(client.download("MLSD /")).unwrap();
    let lines: Vec<&str> = listing.lines().collect();
    assert!(lines[0].contains("type=cdir;") && lines[0].ends_with(" ."));
    assert!(lines[1].contains("type=pdir;") && lines[1].ends_with(" .."));
    assert!(
        lines[2].starts_with("modify=20010203040506;perm=adfrw;size=5;type=file;unique="),
        "{listing}"
    );
    assert!(lines[2].ends_with(";UNIX.owner=1000;UNIX.ownername=ftp; file"));
    assert!(lines[3].contains("type=OS.unix=symlink;"));
    let reply = String::from_utf8(client.expect("MLST file", 250)).unwrap();
    assert!(reply.starts_with("250-") && reply.contains("\r\n modify=20010203040506;"), "{reply}");
    assert!(reply.contains("; /file\r\n250 "));
    client.expect("OPTS MLST size;nonsense;", 200);
    assert!(client.download("MLSD /").ends_with(b"\r\nsize=5; file\r\nsize=4; link\r\n"));

    let server = Server::start(Dialect { mlsd: Mlsd::Lies, ..Dialect::proftpd() });
    let mut client = Client::login(&server);
    let features = String::from_utf8(client.expect("FEAT", 211)).unwrap();
    assert!(features.contains("\r\n MLST modify*;"));
    client.expect("MLSD /", 500);

    let server = Server::start(Dialect::vsftpd());
    let mut client = Client::login(&server);
    assert_eq!(
        String::from_utf8(client.expect("FEAT", 211)).unwrap(),
        "211-Features:\r\n EPRT\r\n EPSV\r\n MDTM\r\n PASV\r\n REST STREAM\r\n SIZE\r\n TVFS\r\n \
         UTF8\r\n211 End\r\n"
    );
    client.expect("MLSD /", 500);
}

#[test]
fn rename_over_what_exists() {
    let server = Server::start(Dialect::vsftpd());
    let mut client = Client::login(&server);
    let mut rename = |expected: u16| {
        server.put("/a", b"new");
        server.put("/b", b"old");
        client.expect("RNFR /a", 350);
        client.expect("RNTO /b", expected);
        server.get("/b").unwrap()
    };
    assert_eq!(rename(250), b"new");
    server.set_dialect(|dialect| dialect.rename_over = RenameOver::Refused(553));
    assert_eq!(rename(553), b"old");
    server.set_dialect(|dialect| dialect.rename_over = RenameOver::Pretended);
    assert_eq!(rename(250), b"old");
    client.expect("RNTO /c", 503);
    client.expect("RNFR /none", 550);
}

#[test]
fn times_and_modes_are_set() {
    let server = Server::start(Dialect { mdtm_sets: true, ..Dialect::default() });
    server.put("/f i", b"");
    let mut client = Client::login(&server);
    for command in [
        "MFMT 20010203040506 /f i",
        "MDTM 20010203040506 /f i",
        "SITE UTIME 20010203040506 /f i",
        "SITE UTIME /f i 20300101000000 20010203040506 20300101000000 UTC",
        "MFF modify=20010203040506; /f i",
    ] {
        server.set_mtime("/f i", 5);
        client.send(command);
        assert_eq!(client.reply().0 / 100, 2, "{command}");
        assert_eq!(server.stat("/f i").unwrap().mtime, 981_173_106, "{command}");
    }
    assert_eq!(client.expect("MDTM /f i", 213), b"213 20010203040506\r\n");
    client.expect("SITE CHMOD 600 /f i", 200);
    assert_eq!(server.stat("/f i").unwrap().mode, 0o600);
    client.expect("SITE SYMLINK target /li nk", 200);
    client.expect("SITE CPFR /f i", 350);
    client.expect("SITE CPTO /copy", 250);
    assert_eq!(server.names("/"), [&b"copy"[..], b"f i", b"li nk"]);
    server.set_mode("/f i", 0o200);
    client.expect("EPSV", 229);
    client.expect("RETR /f i", 550);
    server.set_dialect(|dialect| {
        dialect.site_chmod = false;
        dialect.mdtm_sets = false;
    });
    client.expect("SITE CHMOD 600 /f i", 500);
    client.expect("MDTM 20010203040506 /f i", 550);
}

#[test]
fn refusals_tell_nothing_but_their_code() {
    let server = Server::start(Dialect::vsftpd());
    server.put("/dir/file", b"");
    let mut client = Client::login(&server);
    let refused = |client: &mut Client, line: &str, reply: &str| {
        assert_eq!(client.expect(line, 550), format!("550 {reply}\r\n").into_bytes());
    };
    refused(&mut client, "RMD /dir", "Remove directory operation failed.");
    refused(&mut client, "MKD /dir", "Create directory operation failed.");
    refused(&mut client, "DELE /dir", "Delete operation failed.");
    refused(&mut client, "CWD /dir/file", "Failed to change directory.");
    refused(&mut client, "SIZE /dir", "Could not get file size.");
    client.expect("RETR /dir/none", 550);
    client.expect("STOR /none/file", 553);
    client.expect("XYZZY", 500);

    let server = Server::start(Dialect { made: 250, made_before: 521, ..Dialect::proftpd() });
    let mut client = Client::login(&server);
    client.expect("MKD /dir", 250);
    client.expect("MKD /dir", 521);
    client.expect("EPSV", 229);
    client.expect("LIST /none", 450);
    server.set_dialect(|dialect| dialect.read_only = true);
    client.expect("RMD /dir", 550);
    client.expect("EPSV", 229);
    client.expect("STOR /file", 550);
    assert!(server.exists("/dir") && !server.exists("/file"));
}

#[test]
fn logins_of_all_kinds() {
    let login = Login::WithAccount { user: "u", password: "p", account: "a" };
    let server = Server::start(Dialect { login, feat: Feat::AfterLogin, ..Dialect::pureftpd() });
    let mut client = Client::connect(&server);
    let (code, greeting) = client.reply();
    assert_eq!((code, greeting.split(|byte| *byte == b'\n').count()), (220, 5));
    client.expect("FEAT", 530);
    client.expect("LIST", 530);
    client.expect("USER u", 331);
    client.expect("PASS wrong", 530);
    client.expect("USER u", 331);
    client.expect("PASS p", 332);
    client.expect("PWD", 530);
    client.expect("ACCT a", 230);
    client.expect("FEAT", 211);

    let server = Server::start(Dialect { login: Login::WithoutPassword, ..Dialect::minimal() });
    let mut client = Client::connect(&server);
    client.reply();
    client.expect("USER u", 230);
    client.expect("FEAT", 502);
    client.expect("EPSV", 502);
    client.expect("SIZE /", 502);
}

#[test]
fn too_many_connections_are_told_so() {
    let limit = Limit::AtGreeting(1, 421, "Too many connections (1) from this IP");
    let server = Server::start(Dialect { limit, ..Dialect::vsftpd() });
    let first = Client::login(&server);
    let mut second = Client::connect(&server);
    assert_eq!(second.reply().0, 421);
    assert!(second.rest().unwrap().is_empty());
    drop(first);
    assert!(server.wait_until(|server| server.sessions_open() == 0, PATIENCE));
    let _third = Client::login(&server);
    assert_eq!((server.sessions_total(), server.sessions_peak()), (3, 2));

    let limit = Limit::AtLogin(1, 530, "Sorry, the maximum number of clients (1) for this user");
    let server = Server::start(Dialect { limit, ..Dialect::proftpd() });
    let _first = Client::login(&server);
    let mut second = Client::connect(&server);
    second.reply();
    second.expect("USER u", 331);
    second.expect("PASS p", 530);
    second.expect("NOOP", 200);
    assert_eq!((server.sessions_open(), server.sessions_logged_in()), (2, 1));
}

#[test]
fn data_connections_of_all_kinds() {
    let server = Server::start(Dialect::default());
    server.put("/file", b"12345");
    let mut client = Client::login(&server);
    // Nobody said where.
    client.expect("RETR /file", 425);

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    for command in [
        format!("PORT 127,0,0,1,{},{}", port / 256, port % 256),
        format!("EPRT |1|127.0.0.1|{port}|"),
    ] {
        client.expect(command, 200);
        client.expect("RETR /file", 150);
        let mut bytes = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"12345");
        assert_eq!(client.reply().0, 226);
    }
    client.expect("PORT 10,0,0,1,4,1", 500);

    server.set_dialect(|dialect| dialect.pasv = Pasv::Address(Ipv4Addr::new(10, 9, 8, 7)));
    assert!(client.expect("PASV", 227).starts_with(b"227 Entering Passive Mode (10,9,8,7,"));
}

#[test]
fn rest_is_ignored_on_demand() {
    let server = Server::start(Dialect { rest: Rest::Ignored, ..Dialect::default() });
    server.put("/file", b"12345");
    let mut client = Client::login(&server);
    client.expect("REST 3", 350);
    assert_eq!(client.download("RETR /file"), b"12345");
}

#[test]
fn pipelined_commands_are_answered_in_order_and_delayed_together() {
    let server = Server::start(Dialect::default());
    server.put("/file", vec![7; 100_000]);
    let mut client = Client::login(&server);
    let mut data = client.data();
    client.send("RETR /file\r\nEPSV\r\nNOOP");
    assert_eq!(client.reply().0, 150);
    let mut bytes = Vec::new();
    data.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len(), 100_000);
    let codes: Vec<u16> = (0..3).map(|_| client.reply().0).collect();
    assert_eq!(codes, [226, 229, 200]);

    let delay = Duration::from_millis(60);
    server.set_delay(delay);
    let start = Instant::now();
    client.send(["NOOP"; 20].join("\r\n"));
    for _ in 0..20 {
        assert_eq!(client.reply().0, 200);
    }
    assert!(start.elapsed() >= delay);
    assert!(start.elapsed() < 20 * delay, "the delays added up");
}

#[test]
fn generated_files_need_no_memory_and_are_the_same_everywhere() {
    let size = 5 << 30;
    let server = Server::start(Dialect::default());
    server.put_generated("/big", size, 42);
    let mut client = Client::login(&server);
    assert_eq!(client.expect("SIZE /big", 213), b"213 5368709120\r\n");
    client.expect(format!("REST {}", size - 100_001), 350);
    let bytes = client.download("RETR /big");
    let mut expected = vec![0; 100_001];
    fill_generated(42, size - 100_001, &mut expected);
    assert!(bytes == expected);
    assert_eq!(bytes[100_000], generated_byte(42, size - 1));
    assert_ne!(expected[..1000], expected[8..1008]);
    // Wherever one begins to read, the bytes are the same.
    for start in 0..20 {
        for length in 0..20 {
            let mut piece = vec![0; length];
            fill_generated(42, start, &mut piece);
            let bytes: Vec<u8> =
                (start..).take(length).map(|position| generated_byte(42, position)).collect();
            assert_eq!(piece, bytes);
        }
    }
}

#[test]
fn a_directory_of_twenty_thousand_lists_fast() {
    let server = Server::start(Dialect::default());
    for number in 0..20_000 {
        server.put(format!("/dir/file-{number:05}"), b"");
    }
    let mut client = Client::login(&server);
    for command in ["LIST /dir", "MLSD /dir"] {
        let start = Instant::now();
        let listing = client.download(command);
        assert!(listing.iter().filter(|byte| **byte == b'\n').count() >= 20_000);
        // It takes 0.2 s unoptimised on a slow machine.
        assert!(start.elapsed() < Duration::from_secs(5), "{command}: {:?}", start.elapsed());
    }
}

#[test]
fn abor_ends_a_transfer() {
    let server = Server::start(Dialect::default());
    server.put_generated("/big", 1 << 40, 1);
    let mut client = Client::login(&server);
    let mut data = client.data();
    client.expect("RETR /big", 150);
    data.read_exact(&mut [0; 1000]).unwrap();
    client.send(b"\xff\xf4\xff\xf2ABOR");
    assert_eq!(client.reply().0, 426);
    assert_eq!(client.reply().0, 226);
    client.expect("ABOR", 226);
    assert_eq!(client.download("NLST /"), b"big\r\n");

    // And an early end of the data connection is told.
    let data = client.data();
    client.expect("RETR /big", 150);
    drop(data);
    assert_eq!(client.reply().0, 426);
}

#[test]
fn uploads_are_visible_as_they_come_and_follow_a_rename() {
    let server = Server::start(Dialect::default());
    server.put("/file", b"old contents");
    let mut client = Client::login(&server);
    let mut data = client.data();
    client.expect("STOR /file", 150);
    assert!(server.wait_until(|server| server.get("/file").unwrap().is_empty(), PATIENCE));
    data.write_all(b"half").unwrap();
    assert!(server.wait_until(|server| server.get("/file").unwrap() == b"half", PATIENCE));
    server.rename("/file", "/moved");
    data.write_all(b" and half").unwrap();
    drop(data);
    assert_eq!(client.reply().0, 226);
    assert_eq!(server.get("/moved").unwrap(), b"half and half");
    assert!(!server.exists("/file"));
}

#[test]
fn a_directory_on_disk_is_served_and_not_left() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    std::fs::create_dir(&root).unwrap();
    std::fs::write(directory.path().join("secret"), "secret").unwrap();
    std::os::unix::fs::symlink(directory.path(), root.join("out")).unwrap();
    std::os::unix::fs::symlink("../secret", root.join("out-file")).unwrap();
    std::os::unix::fs::symlink("../new", root.join("out-new")).unwrap();
    let storage = crate::support::server::disk(&root).unwrap();
    let server = Server::bind(Dialect::default(), storage, 0).unwrap();
    let mut client = Client::login(&server);
    client.expect("MKD /dir", 257);
    assert_eq!(client.upload("STOR /dir/file", b"12345"), 226);
    client.expect("MFMT 20010203040506 /dir/file", 213);
    assert_eq!(std::fs::read(root.join("dir/file")).unwrap(), b"12345");
    assert_eq!(client.expect("MDTM /dir/file", 213), b"213 20010203040506\r\n");
    client.expect("RMD /dir", 550);
    client.expect("RNFR /dir/file", 350);
    client.expect("RNTO /moved", 250);
    client.expect("RMD /dir", 250);
    assert_eq!(client.download("RETR /moved"), b"12345");
    for command in
        ["RETR /out/secret", "RETR /out-file", "RETR /../secret", "STOR /out/x", "STOR /out-new"]
    {
        client.expect("EPSV", 229);
        client.expect(command, 550);
    }
    assert!(!directory.path().join("new").exists());
    assert_eq!(server.names("/"), [&b"moved"[..], b"out", b"out-file", b"out-new"]);
}
