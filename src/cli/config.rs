//! Flags, `-o` words, the source and the environment become one typed configuration.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::credentials::{self, Environment};
use super::exit::Failure;
use super::options::Words;
use super::remote::Remote;
use super::{MountArguments, system};
use crate::ftp::Target;
use crate::fuse::MountSettings;
use crate::vfs;

/// One's own changes are seen at once; those of others within this time. The kernel asks for each
/// path it walks, and people look at a folder again within seconds.
const TTL: Duration = Duration::from_secs(10);

/// A server that has said nothing for so long is not slow but gone.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Below the 10 or so that servers commonly allow for one address.
const CONNECTIONS: usize = 8;

/// Loops beyond one for each connection, so that what is cached is answered while all
/// connections are busy.
const SPARE_LOOPS: usize = 4;

/// Everything that `ftpfs mount` needs to know.
#[derive(Clone, Debug)]
pub(crate) struct MountConfig {
    pub(crate) target: Target,
    pub(crate) options: vfs::Options,
    pub(crate) settings: MountSettings,
    /// Absolute.
    pub(crate) mountpoint: PathBuf,
    /// Mount although the mount point holds files, which are hidden then.
    pub(crate) non_empty: bool,
    pub(crate) foreground: bool,
    /// Say whether it would work, and mount nothing.
    pub(crate) fake: bool,
    pub(crate) log: Option<PathBuf>,
}

impl MountConfig {
    pub(crate) fn new(
        arguments: MountArguments,
        environment: &Environment,
    ) -> Result<Self, Failure> {
        let mut words = Words::default();
        for list in &arguments.options {
            words.read(list, arguments.sloppy)?;
        }
        let remote = Remote::parse(&arguments.source)?;
        let mountpoint = absolute(&arguments.mountpoint)?;
        let tls = arguments.tls.or(words.tls).settings(remote.tls, environment)?;
        let writing = arguments.writing.or(words.writing).policy();
        let network = arguments.network.or(words.network).settings()?;
        let credentials = credentials::find(
            &remote,
            arguments.password_file.as_deref().or(words.password_file.as_deref()),
            arguments.netrc.as_deref().or(words.netrc.as_deref()),
            environment,
        )?;
        let read_only = arguments.read_only || words.read_only;
        let connections = arguments.connections.or(words.connections).unwrap_or(CONNECTIONS);
        let target = Target {
            host: remote.host,
            port: remote.port,
            user: credentials.user,
            password: credentials.password,
            account: credentials.account,
            directory: remote.directory,
            timeout: arguments.timeout.or(words.timeout).unwrap_or(TIMEOUT),
            connections,
            facts: arguments.facts || words.facts,
            tls,
            network,
        };
        let settings = MountSettings {
            source: source_name(&target),
            read_only,
            allow_other: words.allow_other,
            no_exec: words.no_exec,
            facts: arguments.facts || words.facts,
            threads: connections + SPARE_LOOPS,
        };
        let options = vfs::Options {
            ttl: arguments.ttl.or(words.ttl).unwrap_or(TTL),
            ttl_grace: arguments.ttl_grace.or(words.ttl_grace).unwrap_or_default(),
            read_only,
            uid: words.uid.unwrap_or_else(system::user_id),
            gid: words.gid.unwrap_or_else(system::group_id),
            umask: words.umask.unwrap_or_else(system::umask),
            strict_owner: arguments.strict_owner || words.strict_owner,
            direct_io: arguments.direct_io || words.direct_io,
            staging_dir: staging_dir(environment),
            writing,
            read_ahead: arguments.read_ahead.or(words.read_ahead).unwrap_or_default(),
            memory: arguments.memory.or(words.memory).unwrap_or(vfs::Options::MEMORY),
            cache_dir: cache_dir(arguments.cache.or(words.cache), &mountpoint)?,
            streams: arguments.streams.or(words.streams).unwrap_or_default(),
        };
        Ok(Self {
            target,
            options,
            settings,
            mountpoint,
            non_empty: words.non_empty,
            foreground: arguments.foreground,
            fake: arguments.fake,
            log: arguments.log.or(words.log).map(|path| absolute(&path)).transpose()?,
        })
    }
}

/// What the mount table shows, without a password.
fn source_name(target: &Target) -> String {
    let directory = String::from_utf8_lossy(&target.directory);
    let separator = if directory.is_empty() { "" } else { "/" };
    format!("{target}{separator}{directory}")
}

/// Private, and on a real disk: `/tmp` is often memory.
pub(crate) fn staging_dir(environment: &Environment) -> PathBuf {
    let cache = environment
        .cache_home
        .clone()
        .filter(|path| path.is_absolute())
        .or_else(|| environment.home.as_ref().map(|home| home.join(".cache")))
        .unwrap_or_else(|| PathBuf::from("/var/cache"));
    cache.join("ftpfs").join("staging")
}

/// Absolute, and not in the mount itself, which would wait for itself.
fn cache_dir(path: Option<PathBuf>, mountpoint: &Path) -> Result<Option<PathBuf>, Failure> {
    let Some(path) = path else { return Ok(None) };
    if path.as_os_str().is_empty() {
        return Err(Failure::usage("--cache needs a directory"));
    }
    let path = absolute(&path)?;
    if path.starts_with(mountpoint) {
        let path = path.display();
        return Err(Failure::usage(format!("--cache {path}: must not be in the mount itself")));
    }
    Ok(Some(path))
}

/// Absolute without touching the last component, which may be a dead or a hanging mount.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    let full = std::path::absolute(path)
        .map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
    let (Some(parent), Some(name)) = (full.parent(), full.file_name()) else { return Ok(full) };
    match parent.canonicalize() {
        Ok(parent) => Ok(parent.join(name)),
        Err(_) => Ok(full),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;

    fn config(arguments: &[&str]) -> Result<MountConfig, Failure> {
        let environment = Environment { home: Some("/home/bob".into()), ..Environment::default() };
        let words = ["ftpfs", "mount"].iter().chain(arguments).map(OsString::from).collect();
        MountConfig::new(super::super::parse_mount(words), &environment)
    }

    #[test]
    fn flags_go_before_words_and_words_before_defaults() {
        let config = config(&[
            "ftp://bob:pw@nas/x",
            "/mnt",
            "-o",
            "ttl=3,ttl_grace=60,connections=2",
            "--ttl",
            "4",
        ])
        .unwrap();
        assert_eq!(config.options.ttl, Duration::from_secs(4));
        assert_eq!(config.options.ttl_grace, Duration::from_secs(60));
        assert_eq!(config.target.connections, 2);
        assert_eq!(config.target.timeout, TIMEOUT);
        assert_eq!(config.settings.source, "ftp://bob@nas:21/x");
        assert_eq!(config.options.staging_dir, Path::new("/home/bob/.cache/ftpfs/staging"));
    }

    #[test]
    fn the_cache_is_elsewhere_and_memory_has_a_floor() {
        let said = config(&["nas", "/mnt", "-o", "cache=/var/c,memory=8M,cache_size=1G"]).unwrap();
        assert_eq!(said.options.cache_dir.as_deref(), Some(Path::new("/var/c")));
        assert_eq!(said.options.memory, 8 << 20);
        assert_eq!(said.options.writing.cache_size, Some(1 << 30));
        assert_eq!(config(&["nas", "/mnt"]).unwrap().options.memory, 64 << 20);
        for bad in ["cache=/mnt/c", "cache=", "memory=10", "memory=lots"] {
            assert!(config(&["nas", "/mnt", "-o", bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn read_only_either_way() {
        assert!(config(&["nas", "/mnt", "-r"]).unwrap().options.read_only);
        assert!(config(&["nas", "/mnt", "-o", "ro"]).unwrap().settings.read_only);
        assert!(!config(&["nas", "/mnt"]).unwrap().options.read_only);
    }

    #[test]
    fn no_part_of_it_shows_the_password() {
        let config = config(&["ftp://bob:hunter2@nas", "/mnt"]).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
