//! Who logs in, and with which password: the source, a file, the environment, netrc, systemd, or
//! the terminal, in this order.

use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::exit::{Failure, Status};
use super::netrc;
use super::remote::Remote;
use super::system;
use crate::ftp::Secret;

/// A password file longer than this is something else, named by mistake.
const LONGEST_PASSWORD_FILE: u64 = 64 * 1024;

/// Sent where nobody is named: RFC 1635 asks for an e-mail address, and servers at most look for
/// the `@`.
const ANONYMOUS_PASSWORD: &[u8] = b"anonymous@";

/// What is taken from outside the command line. Not printable: it holds a password.
#[derive(Clone, Default)]
pub(crate) struct Environment {
    /// `FTPFS_PASSWORD`
    pub(crate) password: Option<OsString>,
    /// `HOME`
    pub(crate) home: Option<PathBuf>,
    /// `NETRC`, which curl and Python know too.
    pub(crate) netrc: Option<PathBuf>,
    /// `CREDENTIALS_DIRECTORY`, see systemd.exec(5).
    pub(crate) credentials_directory: Option<PathBuf>,
    /// `XDG_CACHE_HOME`
    pub(crate) cache_home: Option<PathBuf>,
    /// `XDG_STATE_HOME`
    pub(crate) state_home: Option<PathBuf>,
}

impl Environment {
    pub(crate) fn read() -> Self {
        let path =
            |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Self {
            password: std::env::var_os("FTPFS_PASSWORD"),
            home: path("HOME"),
            netrc: path("NETRC"),
            credentials_directory: path("CREDENTIALS_DIRECTORY"),
            cache_home: path("XDG_CACHE_HOME"),
            state_home: path("XDG_STATE_HOME"),
        }
    }
}

/// All that a login may be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) user: String,
    pub(crate) password: Secret,
    pub(crate) account: Option<Secret>,
}

/// Finds the credentials; asks at the terminal only if there is nothing else.
pub(crate) fn find(
    remote: &Remote,
    password_file: Option<&Path>,
    netrc_file: Option<&Path>,
    environment: &Environment,
) -> Result<Credentials, Failure> {
    let listed = from_netrc(remote, netrc_file, environment)?.unwrap_or_default();
    let given = match (&remote.password, password_file, &environment.password) {
        (Some(password), ..) => Some(password.clone()),
        (None, Some(file), _) => Some(from_file(file)?),
        (None, None, Some(value)) => {
            use std::os::unix::ffi::OsStringExt;
            Some(Secret::new(value.clone().into_vec()))
        }
        (None, None, None) => None,
    };
    let account = listed.account;
    let Some(user) = remote.user.clone().or(listed.user) else {
        let password = given.or(listed.password);
        let password = password.unwrap_or_else(|| Secret::new(ANONYMOUS_PASSWORD.to_vec()));
        return Ok(Credentials { user: "anonymous".into(), password, account });
    };
    let password = match given.or(listed.password) {
        Some(password) => password,
        None => match from_systemd(environment)? {
            Some(password) => password,
            None if is_anonymous(&user) => Secret::new(ANONYMOUS_PASSWORD.to_vec()),
            None => ask(&user, &remote.host)?,
        },
    };
    let is_sendable =
        |secret: &Secret| !secret.expose().iter().any(|b| matches!(b, 0 | b'\r' | b'\n'));
    if !is_sendable(&password) || account.as_ref().is_some_and(|account| !is_sendable(account)) {
        return Err(Failure::usage("the password holds a line break, which FTP cannot send"));
    }
    Ok(Credentials { user, password, account })
}

fn is_anonymous(user: &str) -> bool {
    user.eq_ignore_ascii_case("anonymous") || user.eq_ignore_ascii_case("ftp")
}

fn from_netrc(
    remote: &Remote,
    named: Option<&Path>,
    environment: &Environment,
) -> Result<Option<netrc::Login>, Failure> {
    let usual = || Some(environment.home.as_ref()?.join(".netrc"));
    let Some(path) = named.map(Path::to_owned).or_else(|| environment.netrc.clone()).or_else(usual)
    else {
        return Ok(None);
    };
    let is_named = named.is_some();
    match read_private(&path) {
        Ok(text) => Ok(netrc::find(text.expose(), &remote.host, remote.user.as_deref())),
        Err(_) if !is_named && !path.exists() => Ok(None),
        Err(failure) if is_named => Err(failure),
        Err(failure) => {
            log::warn!("{failure}; it is not used");
            Ok(None)
        }
    }
}

/// The first line of a password file; `-` is standard input.
fn from_file(path: &Path) -> Result<Secret, Failure> {
    let text = if path == Path::new("-") {
        let mut bytes = Vec::new();
        io::stdin()
            .take(LONGEST_PASSWORD_FILE)
            .read_to_end(&mut bytes)
            .map_err(|error| Failure::new(Status::Login, format!("standard input: {error}")))?;
        Secret::new(bytes)
    } else {
        read_private(path)?
    };
    Ok(first_line(&text))
}

fn from_systemd(environment: &Environment) -> Result<Option<Secret>, Failure> {
    let Some(directory) = &environment.credentials_directory else { return Ok(None) };
    let path = directory.join("ftpfs.password");
    if !path.exists() {
        return Ok(None);
    }
    // Not checked for its permissions: systemd made it, and root may read it by an access list.
    read_all(&path).map(|text| Some(first_line(&text)))
}

fn first_line(text: &Secret) -> Secret {
    let line = text.expose().split(|byte| *byte == b'\n').next().unwrap_or_default();
    Secret::new(line.strip_suffix(b"\r").unwrap_or(line).to_vec())
}

/// Reads a file with secrets, if nobody else can read it. A pipe (`<(pass show nas)`) always may.
fn read_private(path: &Path) -> Result<Secret, Failure> {
    let metadata = std::fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    if metadata.is_file() {
        check_private(path, &metadata)?;
    }
    read_all(path)
}

fn check_private(path: &Path, metadata: &Metadata) -> Result<(), Failure> {
    let shown = path.display();
    let message = if metadata.mode() & 0o077 != 0 {
        format!("{shown} holds a password and others may read it: chmod 600 {shown}")
    } else if metadata.uid() != system::user_id() && metadata.uid() != 0 {
        format!("{shown} belongs to another user: chown it to yourself")
    } else {
        return Ok(());
    };
    Err(Failure::new(Status::Login, message))
}

fn read_all(path: &Path) -> Result<Secret, Failure> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LONGEST_PASSWORD_FILE).read_to_end(&mut bytes))
        .map_err(|error| unreadable(path, &error))?;
    Ok(Secret::new(bytes))
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::new(Status::Login, format!("cannot read {}: {error}", path.display()))
}

/// At the terminal, without echo; standard input and output may be something else.
fn ask(user: &str, host: &str) -> Result<Secret, Failure> {
    rpassword::prompt_password(format!("Password for {user}@{host}: "))
        .map(|password| Secret::new(password.into_bytes()))
        .map_err(|_| {
            Failure::new(
                Status::Login,
                format!(
                    "no password for {user}@{host}, and no terminal to ask at: use --password-file, \
                     FTPFS_PASSWORD or ~/.netrc"
                ),
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::fs::PermissionsExt;

    fn private(directory: &Path, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = directory.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn the_order_of_the_sources() {
        let home = tempfile::tempdir().unwrap();
        private(home.path(), ".netrc", "machine nas login bob password listed account acc", 0o600);
        let file = private(home.path(), "word", "filed\r\nsecond line", 0o600);
        let mut environment =
            Environment { home: Some(home.path().to_owned()), ..Environment::default() };
        let found = |source: &str, file: Option<&Path>, environment: &Environment| {
            let remote = Remote::parse(OsStr::new(source)).unwrap();
            let found = find(&remote, file, None, environment).unwrap();
            (found.user, String::from_utf8(found.password.expose().to_vec()).unwrap())
        };
        let pair = |user: &str, password: &str| (user.to_owned(), password.to_owned());
        assert_eq!(found("nas", None, &environment), pair("bob", "listed"));
        assert_eq!(found("elsewhere", None, &environment), pair("anonymous", "anonymous@"));
        assert_eq!(found("ftp@elsewhere", None, &environment), pair("ftp", "anonymous@"));
        environment.password = Some("surroundings".into());
        assert_eq!(found("bob@nas", None, &environment), pair("bob", "surroundings"));
        assert_eq!(found("bob@nas", Some(&file), &environment), pair("bob", "filed"));
        assert_eq!(found("ftp://bob:said@nas", Some(&file), &environment), pair("bob", "said"));
    }

    #[test]
    fn files_that_others_can_read_are_refused() {
        let home = tempfile::tempdir().unwrap();
        let open = private(home.path(), ".netrc", "machine nas login bob password listed", 0o644);
        let remote = Remote::parse(OsStr::new("nas")).unwrap();
        let environment =
            Environment { home: Some(home.path().to_owned()), ..Environment::default() };
        // Found by itself, it is left out; asked for, it is an error.
        assert_eq!(find(&remote, None, None, &environment).unwrap().user, "anonymous");
        let failure = find(&remote, None, Some(&open), &environment).unwrap_err();
        assert!(failure.message.contains("chmod 600"), "{failure}");
        assert!(from_file(&open).is_err());
        assert!(from_file(&home.path().join("none")).is_err());
    }

    #[test]
    fn a_password_of_two_lines_is_refused() {
        let remote = Remote::parse(OsStr::new("ftp://bob:a%0D%0ADELE%20x@nas")).unwrap();
        let failure = find(&remote, None, None, &Environment::default()).unwrap_err();
        assert_eq!(failure.status, Status::Usage);
    }
}
