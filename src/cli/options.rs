//! The words after `-o`, as mount(8) and /etc/fstab write them, and the values of options.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use super::exit::Failure;
use super::network::NetworkArguments;
use super::tls::TlsArguments;
use super::writing::{WritingArguments, parse_size};
use crate::vfs::{ReadAhead, StreamLimit};

/// More connections than this help no server, and FUSE loops are started for each.
const MOST_CONNECTIONS: usize = 64;

/// Words for mount(8) itself, for init, or without a meaning over FTP.
const ACCEPTED: [&str; 39] = [
    "async",
    "atime",
    "auto",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "group",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "noauto",
    "nodev",
    "nodiratime",
    "nofail",
    "noiversion",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nouser",
    "nousers",
    "nowner",
    "owner",
    "relatime",
    "rw",
    "silent",
    "strictatime",
    "suid",
    "sync",
    "user",
    "users",
    "_netdev",
    "default_permissions",
    "noowner",
];

/// What the words after all `-o` come to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Words {
    pub(crate) read_only: bool,
    pub(crate) allow_other: bool,
    pub(crate) no_exec: bool,
    pub(crate) non_empty: bool,
    pub(crate) strict_owner: bool,
    pub(crate) direct_io: bool,
    pub(crate) facts: bool,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) umask: Option<u16>,
    pub(crate) ttl: Option<Duration>,
    pub(crate) ttl_grace: Option<Duration>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) connections: Option<usize>,
    pub(crate) read_ahead: Option<ReadAhead>,
    pub(crate) memory: Option<usize>,
    pub(crate) cache: Option<PathBuf>,
    pub(crate) streams: Option<StreamLimit>,
    pub(crate) password_file: Option<PathBuf>,
    pub(crate) netrc: Option<PathBuf>,
    pub(crate) log: Option<PathBuf>,
    pub(crate) tls: TlsArguments,
    pub(crate) network: NetworkArguments,
    pub(crate) writing: WritingArguments,
}

impl Words {
    /// Reads one list `word,word=value,…`; later ones win. `sloppy` ignores unknown ones.
    pub(crate) fn read(&mut self, list: &OsStr, sloppy: bool) -> Result<(), Failure> {
        for word in list.as_bytes().split(|byte| *byte == b',').filter(|word| !word.is_empty()) {
            let (name, value) = match word.iter().position(|byte| *byte == b'=') {
                Some(at) => (word.get(..at).unwrap_or_default(), word.get(at + 1..)),
                None => (word, None),
            };
            let name = String::from_utf8_lossy(name);
            if !self.take(&name, value)? && !sloppy {
                return Err(Failure::usage(format!(
                    "-o {name}: not an option of ftpfs; see ftpfs mount --help"
                )));
            }
        }
        Ok(())
    }

    /// Is the word known?
    fn take(&mut self, name: &str, value: Option<&[u8]>) -> Result<bool, Failure> {
        let path = || PathBuf::from(OsStr::from_bytes(value.unwrap_or_default()));
        let text = || String::from_utf8_lossy(value.unwrap_or_default());
        // The value of `proxy` may hold a password.
        let shown = || if name == "proxy" { "…".into() } else { text() };
        let bad = |what: String| Failure::usage(format!("-o {name}={}: {what}", shown()));
        match name {
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "allow_other" => self.allow_other = true,
            "noexec" => self.no_exec = true,
            "nonempty" => self.non_empty = true,
            "strict_owner" => self.strict_owner = true,
            "direct_io" => self.direct_io = true,
            "facts" => self.facts = true,
            "uid" => self.uid = Some(parse_id(&text()).map_err(bad)?),
            "gid" => self.gid = Some(parse_id(&text()).map_err(bad)?),
            "umask" => self.umask = Some(parse_umask(&text()).map_err(bad)?),
            "ttl" => self.ttl = Some(parse_ttl(&text()).map_err(bad)?),
            "ttl_grace" => self.ttl_grace = Some(parse_ttl(&text()).map_err(bad)?),
            "timeout" => self.timeout = Some(parse_timeout(&text()).map_err(bad)?),
            "connections" => self.connections = Some(parse_connections(&text()).map_err(bad)?),
            "read_ahead" => self.read_ahead = Some(parse_read_ahead(&text()).map_err(bad)?),
            "memory" => self.memory = Some(parse_memory(&text()).map_err(bad)?),
            "cache" => self.cache = Some(path()),
            "streams" => self.streams = Some(parse_streams(&text()).map_err(bad)?),
            "password_file" => self.password_file = Some(path()),
            "netrc" => self.netrc = Some(path()),
            "log" => self.log = Some(path()),
            _ if self.tls.take(name, &text()).map_err(bad)? => {}
            _ if self.writing.take(name, value.map(|_| text()).as_deref()).map_err(bad)? => {}
            _ if self.network.take(name, &text()).map_err(bad)? => {}
            _ => {
                let is_comment = name.starts_with("x-")
                    || name.starts_with("X-")
                    || matches!(name, "comment" | "fsname" | "subtype" | "user");
                return Ok(is_comment || ACCEPTED.contains(&name));
            }
        }
        Ok(true)
    }
}

/// Seconds, with a fraction if need be; 0 asks the server at every look.
pub(crate) fn parse_ttl(text: &str) -> Result<Duration, String> {
    seconds(text).ok_or_else(|| "must be a number of seconds, 0 or more".into())
}

/// Seconds; at least one, as servers far away need a second for an answer.
pub(crate) fn parse_timeout(text: &str) -> Result<Duration, String> {
    seconds(text)
        .filter(|time| *time >= Duration::from_secs(1))
        .ok_or_else(|| "must be a number of seconds, 1 or more".into())
}

/// How many control connections.
pub(crate) fn parse_connections(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|count| (1..=MOST_CONNECTIONS).contains(count))
        .ok_or_else(|| format!("must be a number from 1 to {MOST_CONNECTIONS}"))
}

/// Shall work be done before it is asked for?
pub(crate) fn parse_read_ahead(text: &str) -> Result<ReadAhead, String> {
    match text {
        "off" => Ok(ReadAhead::Off),
        "auto" => Ok(ReadAhead::Auto),
        _ => Err("must be off or auto".into()),
    }
}

/// Bytes; with less than 4 MiB there is no room for the windows of one reader.
pub(crate) fn parse_memory(text: &str) -> Result<usize, String> {
    const LEAST: usize = 4 << 20;
    let size = usize::try_from(parse_size(text)?).unwrap_or(usize::MAX);
    if size < LEAST { Err("must be 4M or more".into()) } else { Ok(size) }
}

/// How many connections for one large file.
pub(crate) fn parse_streams(text: &str) -> Result<StreamLimit, String> {
    if text == "auto" {
        return Ok(StreamLimit::Auto);
    }
    parse_connections(text)
        .map(StreamLimit::Most)
        .map_err(|_| format!("must be auto or a number from 1 to {MOST_CONNECTIONS}"))
}

fn seconds(text: &str) -> Option<Duration> {
    // A year: longer ones are slips, and sums of times stay in range.
    let longest = 365.0 * 86_400.0;
    let number: f64 = text.trim().trim_end_matches('s').parse().ok()?;
    (0.0..=longest).contains(&number).then(|| Duration::from_secs_f64(number))
}

fn parse_id(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "must be a number, such as `id -u` prints".into())
}

fn parse_umask(text: &str) -> Result<u16, String> {
    u16::from_str_radix(text, 8)
        .ok()
        .filter(|mask| *mask <= 0o777)
        .ok_or_else(|| "must be octal, from 000 to 777".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(list: &str) -> Result<Words, Failure> {
        let mut words = Words::default();
        words.read(OsStr::new(list), false).map(|()| words)
    }

    #[test]
    fn the_words_of_fstab() {
        let words =
            read("noauto,_netdev,x-systemd.automount,ro,uid=5,gid=6,umask=027,ttl=2.5,user")
                .unwrap();
        assert!(words.read_only);
        assert_eq!((words.uid, words.gid, words.umask), (Some(5), Some(6), Some(0o27)));
        assert_eq!(words.ttl, Some(Duration::from_millis(2500)));
        assert!(!read("ro,rw").unwrap().read_only);
        assert!(read("defaults,,nofail").is_ok());
    }

    #[test]
    fn slips_are_named() {
        for (list, said) in [
            ("reconect", "reconect"),
            ("umask=999", "umask=999"),
            ("uid=bob", "uid=bob"),
            ("timeout=0", "timeout=0"),
            ("connections=0", "connections=0"),
            ("ttl=nan", "ttl=nan"),
            ("read_ahead=no", "read_ahead=no"),
            ("streams=0", "streams=0"),
        ] {
            assert!(read(list).unwrap_err().message.contains(said), "{list}");
        }
        assert!(Words::default().read(OsStr::new("reconect"), true).is_ok());
    }
}
