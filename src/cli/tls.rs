//! The options of TLS, and the files they name.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};

use super::credentials::Environment;
use super::exit::Failure;
use crate::ftp::{Authorities, Fingerprint, Identity, TlsMode, TlsSettings, Trust};

/// Options and `-o` words alike.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TlsArguments {
    /// off: clear text. auto: TLS where the server offers it. explicit (ftpes://): TLS or nothing.
    /// implicit (ftps://): TLS from the first byte [default: auto].
    #[arg(long = "tls", value_name = "MODE")]
    pub(crate) mode: Option<Mode>,

    /// Whose certificates are good. system: those an authority vouches for. first-use: the first
    /// one seen is remembered. none: any. [default: system if TLS is required, else first-use]
    #[arg(long = "tls-trust", value_name = "WHOM")]
    pub(crate) trust: Option<Whom>,

    /// Take only this certificate; its SHA-256 fingerprint. May be given several times.
    #[arg(long = "tls-pin", value_name = "sha256:HEX", value_parser = parse_pin)]
    pub(crate) pins: Vec<Fingerprint>,

    /// Trust these authorities too; a PEM file.
    #[arg(long = "tls-ca", value_name = "FILE")]
    pub(crate) authorities: Option<PathBuf>,

    /// Show this certificate to the server; a PEM file, which may hold the key too.
    #[arg(long = "tls-cert", value_name = "FILE")]
    pub(crate) certificate: Option<PathBuf>,

    /// The private key of --tls-cert; a PEM file.
    #[arg(long = "tls-key", value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,

    /// Protect data connections, or send data in clear text [default: private].
    #[arg(long = "tls-data", value_name = "HOW")]
    pub(crate) data: Option<Data>,

    /// Return to clear text on the control connection after the login (CCC).
    #[arg(long = "tls-ccc")]
    pub(crate) ccc: bool,

    /// The highest version of TLS to speak [default: 1.3].
    #[arg(long = "tls-max", value_name = "VERSION")]
    pub(crate) highest: Option<Version>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    Off,
    Auto,
    Explicit,
    Implicit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Whom {
    System,
    FirstUse,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Data {
    Private,
    Clear,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Version {
    #[value(name = "1.2")]
    Tls12,
    #[value(name = "1.3")]
    Tls13,
}

impl TlsArguments {
    /// An `-o` word; false if it is not one of TLS.
    pub(crate) fn take(&mut self, name: &str, value: &str) -> Result<bool, String> {
        match name {
            "tls" => self.mode = Some(Mode::from_str(value, false)?),
            "tls_trust" => self.trust = Some(Whom::from_str(value, false)?),
            "tls_pin" => self.pins.push(parse_pin(value)?),
            "tls_ca" => self.authorities = Some(value.into()),
            "tls_cert" => self.certificate = Some(value.into()),
            "tls_key" => self.key = Some(value.into()),
            "tls_data" => self.data = Some(Data::from_str(value, false)?),
            "tls_ccc" => self.ccc = true,
            "tls_max" => self.highest = Some(Version::from_str(value, false)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// What is not said here is taken from `other`.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            mode: self.mode.or(other.mode),
            trust: self.trust.or(other.trust),
            pins: if self.pins.is_empty() { other.pins } else { self.pins },
            authorities: self.authorities.or(other.authorities),
            certificate: self.certificate.or(other.certificate),
            key: self.key.or(other.key),
            data: self.data.or(other.data),
            ccc: self.ccc || other.ccc,
            highest: self.highest.or(other.highest),
        }
    }

    /// `scheme` is what the URL says.
    pub(crate) fn settings(
        &self,
        scheme: Option<TlsMode>,
        environment: &Environment,
    ) -> Result<TlsSettings, Failure> {
        let asked = self.mode.map(|mode| match mode {
            Mode::Off => TlsMode::Off,
            Mode::Auto => TlsMode::Auto,
            Mode::Explicit => TlsMode::Explicit,
            Mode::Implicit => TlsMode::Implicit,
        });
        let mode = match (asked, scheme) {
            (Some(asked), Some(scheme)) if asked != scheme => {
                return Err(Failure::usage("the URL and --tls say different things of TLS"));
            }
            (asked, scheme) => asked.or(scheme).unwrap_or_default(),
        };
        let trust = match self.trust {
            None => Trust::ByMode,
            Some(Whom::System) => Trust::System,
            Some(Whom::FirstUse) => Trust::FirstUse,
            Some(Whom::None) => Trust::Nothing,
        };
        let authorities = match &self.authorities {
            Some(path) => named(path, Authorities::from_pem(&read(path)?))?,
            None => Authorities::default(),
        };
        Ok(TlsSettings {
            mode,
            trust,
            pins: self.pins.clone(),
            authorities,
            identity: self.identity()?,
            clear_data: self.data == Some(Data::Clear),
            clear_control: self.ccc,
            only_tls12: self.highest == Some(Version::Tls12),
            known_hosts: known_hosts(environment),
        })
    }

    fn identity(&self) -> Result<Option<Arc<Identity>>, Failure> {
        let Some(path) = &self.certificate else {
            return match &self.key {
                Some(_) => Err(Failure::usage("--tls-key is of use only with --tls-cert")),
                None => Ok(None),
            };
        };
        let key = self.key.as_ref().unwrap_or(path);
        let identity = named(key, Identity::from_pem(&read(path)?, &read(key)?))?;
        Ok(Some(Arc::new(identity)))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))
}

fn named<T>(path: &Path, result: Result<T, String>) -> Result<T, Failure> {
    result.map_err(|why| Failure::usage(format!("{}: {why}", path.display())))
}

fn parse_pin(text: &str) -> Result<Fingerprint, String> {
    Fingerprint::parse(text).ok_or_else(|| {
        "must be sha256: and 64 hexadecimal digits, as error messages show it".into()
    })
}

/// Survives cleaning of caches, as a forgotten certificate would be trusted anew.
fn known_hosts(environment: &Environment) -> Option<PathBuf> {
    let home = || environment.home.as_ref().map(|home| home.join(".local/state"));
    let state = environment.state_home.clone().filter(|path| path.is_absolute()).or_else(home);
    Some(state.unwrap_or_else(|| "/var/lib".into()).join("ftpfs/known_hosts"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_options_are_the_same() {
        let mut words = TlsArguments::default();
        for (name, value) in [("tls", "explicit"), ("tls_trust", "first-use"), ("tls_max", "1.2")] {
            assert_eq!(words.take(name, value), Ok(true));
        }
        assert_eq!(words.take("ttl", "3"), Ok(false));
        assert!(words.take("tls", "perhaps").is_err());
        assert!(words.take("tls_pin", "sha1:00").is_err());
        let flags = TlsArguments { mode: Some(Mode::Implicit), ..TlsArguments::default() };
        let settings = flags.or(words).settings(None, &Environment::default()).unwrap();
        assert_eq!((settings.mode, settings.trust), (TlsMode::Implicit, Trust::FirstUse));
        assert!(settings.only_tls12);
    }

    #[test]
    fn contradictions_are_refused() {
        let off = TlsArguments { mode: Some(Mode::Off), ..TlsArguments::default() };
        assert!(off.settings(Some(TlsMode::Implicit), &Environment::default()).is_err());
        let key = TlsArguments { key: Some("k".into()), ..TlsArguments::default() };
        assert!(key.settings(None, &Environment::default()).is_err());
    }
}
