//! Random mutations of real listings and replies against the parsers: they may refuse, but not
//! panic, and nothing that they let in breaks the rules of names.
//!
//! Two seconds in every test run; `scripts/fuzz SECONDS` for longer.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::connect::quoted_path;
use super::error::Reply;
use super::listing::{Line, ListParser, Timestamp, parse_mlsd};
use super::network::{parse_epsv, parse_pasv};
use super::path::{RemotePath, check_name};

/// xorshift64* (Vigna 2016): no more randomness is needed than this.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// Lines of the golden files, and replies as servers send them.
fn corpus() -> Vec<Vec<u8>> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut lines: Vec<Vec<u8>> = fs::read_dir(golden)
        .unwrap()
        .flat_map(|file| {
            let text = fs::read(file.unwrap().path()).unwrap();
            text.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect::<Vec<_>>()
        })
        .collect();
    for reply in [
        "229 Entering Extended Passive Mode (|||6446|)\r\n",
        "227 Entering Passive Mode (10,0,0,1,4,1).\r\n",
        "257 \"/a \"\"b\"\"\" is the current directory\r\n",
        "211-Features:\r\n MLST type*;size*;\r\n211 End\r\n",
        "213 20260102030405.678\r\n",
        "250-Start\r\n type=file;size=7;modify=20260102030405; /a b/c\r\n250 End\r\n",
    ] {
        lines.push(reply.as_bytes().to_vec());
    }
    lines
}

fn mutate(random: &mut Random, line: &mut Vec<u8>, other: &[u8]) {
    const ODD: &[u8] = b"\0\t\n\r \"%();/.:=-|,0129\x7f\x80\xff";
    for _ in 0..=random.below(4) {
        let at = random.below(line.len() + 1);
        match random.below(6) {
            0 if at < line.len() => line[at] = ODD[random.below(ODD.len())],
            1 if at < line.len() => line[at] ^= 1 << random.below(8),
            2 => line.insert(at, ODD[random.below(ODD.len())]),
            3 => line.truncate(at),
            4 => {
                let from = random.below(other.len() + 1);
                line.truncate(at);
                line.extend_from_slice(&other[from..]);
            }
            _ => {
                let piece: Vec<u8> = line[at..].to_vec();
                line.extend(piece.iter().take(64));
            }
        }
    }
}

fn check(line: &[u8]) {
    let mut parser = ListParser::new(1_800_000_000, 3600);
    for parsed in [parse_mlsd(line), parser.line(line), parser.line(line)] {
        let Line::Entry(entry) = parsed else { continue };
        check_name(&entry.name).unwrap();
        assert!(entry.name.as_ref() != b"." && entry.name.as_ref() != b"..");
        assert!(entry.size.is_none_or(|size| i64::try_from(size).is_ok()), "{:?}", entry.size);
    }
    let reply = Reply::parse(line.to_vec());
    assert!(!reply.text().contains(['\r', '\n', '\x1b']));
    let _ = (reply.is_too_many(), quoted_path(&reply));
    assert!(parse_epsv(line).is_none_or(|port| port > 0));
    assert!(parse_pasv(line).is_none_or(|(_, port)| port > 0));
    let _ = Timestamp::parse_mdtm(line);
    if let Ok(path) = RemotePath::parse(line) {
        assert!(!path.as_bytes().iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n')));
    }
}

#[test]
fn mutations_of_real_lines_do_no_harm() {
    let seconds = std::env::var("FTPFS_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(2));
    let seed = std::env::var("FTPFS_FUZZ_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) | 1 << 40);
    let mut random = Random(seed);
    let corpus = corpus();
    let mut count = 0_u64;
    while Instant::now() < until {
        for _ in 0..1000 {
            let mut line = corpus[random.below(corpus.len())].clone();
            let other = &corpus[random.below(corpus.len())];
            mutate(&mut random, &mut line, other);
            let checked = std::panic::catch_unwind(|| check(&line));
            assert!(checked.is_ok(), "seed {seed}, case {count}: {}", line.escape_ascii());
            count += 1;
        }
    }
    assert!(count > 0);
}

/// What was found once.
#[test]
fn findings() {
    for line in
        [&b"type=file;size=9223372036854775808; f"[..], b"-rw-r--r-- 1 a b 1 Jan 99 00:00 f"]
    {
        check(line);
    }
}
