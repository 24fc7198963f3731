//! Is this the right server? Certificates, pins, and the file of known hosts.
//!
//! A certificate is good if it is pinned; else if an authority vouches for it and the name; else
//! if it is the one that this host showed before; else by the user's word alone.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::error::Error;
use super::server::lock;
use super::tls::{Authorities, TlsMode, TlsSettings};

/// What makes a certificate trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// By the mode: an authority where TLS is required; in the automatic mode also the first one
    /// seen, with a warning.
    #[default]
    ByMode,
    /// Only an authority's word.
    System,
    /// The first certificate seen is remembered, and only that one from then on.
    FirstUse,
    /// Any certificate: protects from listening, not from somebody in between.
    Nothing,
}

/// SHA-256 of a certificate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    fn of(certificate: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, certificate);
        let mut bytes = [0; 32];
        for (to, from) in bytes.iter_mut().zip(digest.as_ref()) {
            *to = *from;
        }
        Self(bytes)
    }

    /// `sha256:` and 64 hexadecimal digits, with or without colons between them, as openssl
    /// shows them.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("sha256:").or_else(|| text.strip_prefix("SHA256:"))?;
        let digits: Vec<u8> = digits.bytes().filter(|byte| *byte != b':').collect();
        let mut bytes = [0; 32];
        if digits.len() != 64 {
            return None;
        }
        for (to, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
            *to = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What is remembered of a host that spoke TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// An authority vouched for it.
    Verified,
    /// Trusted as it was first seen.
    Seen(Fingerprint),
}

/// `~/.local/state/ftpfs/known_hosts`: a line `HOST:PORT sha256:…` or `HOST:PORT verified` for
/// each server that spoke TLS; of several lines for one server the last counts.
#[derive(Debug)]
struct KnownHosts {
    path: Option<PathBuf>,
    hosts: Mutex<HashMap<String, Known>>,
}

impl KnownHosts {
    fn open(path: Option<PathBuf>) -> Result<Self, Error> {
        let text = match path.as_ref().map(fs::read_to_string) {
            Some(Ok(text)) => text,
            Some(Err(error)) if error.kind() != std::io::ErrorKind::NotFound => {
                let path = path.as_deref().unwrap_or(Path::new("")).display();
                return Err(Error::Tls(format!("cannot read the known hosts in {path}: {error}")));
            }
            _ => String::new(),
        };
        let hosts = text.lines().filter_map(|line| {
            let (host, what) = line.trim().rsplit_once(' ')?;
            let known = if what == "verified" {
                Known::Verified
            } else {
                Known::Seen(Fingerprint::parse(what)?)
            };
            Some((host.trim().to_owned(), known))
        });
        Ok(Self { hosts: Mutex::new(hosts.collect()), path })
    }

    fn get(&self, host: &str) -> Option<Known> {
        lock(&self.hosts).get(host).copied()
    }

    /// Remembers it, in the file too if there is one.
    fn remember(&self, host: &str, known: Known) {
        if lock(&self.hosts).insert(host.to_owned(), known) == Some(known) {
            return;
        }
        let Some(path) = &self.path else { return };
        let what = match known {
            Known::Verified => "verified".to_owned(),
            Known::Seen(fingerprint) => fingerprint.to_string(),
        };
        let write = || -> std::io::Result<()> {
            if let Some(parent) = path.parent() {
                fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
            }
            let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
            file.write_all(format!("{host} {what}\n").as_bytes())
        };
        if let Err(error) = write() {
            log::warn!("{host} is not remembered in {}: {error}", path.display());
        }
    }
}

/// Decides for one server.
#[derive(Debug)]
pub(crate) struct Verifier {
    trust: Trust,
    pins: Vec<Fingerprint>,
    authorities: Authorities,
    host: String,
    /// Host and port, as the known hosts are named.
    place: String,
    known: KnownHosts,
    /// Made when first needed, as reading the system's certificates takes 10 ms and more.
    system: OnceLock<Option<Arc<WebPkiServerVerifier>>>,
    algorithms: WebPkiSupportedAlgorithms,
    /// Why the last certificate was refused, for people.
    refusal: Mutex<Option<String>>,
    /// By what the server is trusted, for `status`.
    verdict: Mutex<Option<&'static str>>,
}

impl Verifier {
    pub(crate) fn new(settings: &TlsSettings, host: &str, port: u16) -> Result<Self, Error> {
        let trust = match (settings.trust, settings.mode) {
            (Trust::ByMode, TlsMode::Auto | TlsMode::Off) => Trust::FirstUse,
            (Trust::ByMode, TlsMode::Explicit | TlsMode::Implicit) => Trust::System,
            (trust, _) => trust,
        };
        Ok(Self {
            trust,
            pins: settings.pins.clone(),
            authorities: settings.authorities.clone(),
            host: host.to_owned(),
            place: format!("{host}:{port}"),
            known: KnownHosts::open(settings.known_hosts.clone())?,
            system: OnceLock::new(),
            algorithms: rustls::crypto::ring::default_provider().signature_verification_algorithms,
            refusal: Mutex::new(None),
            verdict: Mutex::new(None),
        })
    }

    /// Has this server spoken TLS before?
    pub(crate) fn knows_host(&self) -> bool {
        self.known.get(&self.place).is_some()
    }

    /// Why the certificate was refused, if it was.
    pub(crate) fn take_refusal(&self) -> Option<String> {
        lock(&self.refusal).take()
    }

    pub(crate) fn verdict(&self) -> &'static str {
        lock(&self.verdict).unwrap_or("")
    }

    fn system(&self) -> Option<&Arc<WebPkiServerVerifier>> {
        let make = || {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            roots.add_parsable_certificates(self.authorities.0.iter().cloned());
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().ok()
        };
        self.system.get_or_init(make).as_ref()
    }

    /// By what the certificate is trusted, or why not.
    fn decide(
        &self,
        certificate: &CertificateDer<'_>,
        vouch: impl FnOnce() -> Result<(), String>,
    ) -> Result<&'static str, String> {
        let shown = Fingerprint::of(certificate);
        let about = || describe(certificate, shown);
        if !self.pins.is_empty() {
            return match self.pins.contains(&shown) {
                true => Ok("pinned"),
                false => Err(format!(
                    "{} shows another certificate than the pinned one: {}",
                    self.host,
                    about()
                )),
            };
        }
        if self.trust == Trust::Nothing {
            self.known.remember(&self.place, Known::Seen(shown));
            return Ok("not verified");
        }
        let why = match vouch() {
            Ok(()) => {
                self.known.remember(&self.place, Known::Verified);
                return Ok("verified");
            }
            Err(why) => why,
        };
        match (self.known.get(&self.place), self.trust) {
            (Some(Known::Seen(before)), Trust::FirstUse) if before == shown => {
                Ok("trusted on first use")
            }
            (Some(before), Trust::FirstUse) => {
                let before = match before {
                    Known::Seen(before) => before.to_string(),
                    Known::Verified => "one that an authority vouched for".into(),
                };
                Err(format!(
                    "THE CERTIFICATE OF {} HAS CHANGED: it was {before}; now {}. Somebody may be \
                     in between. If the change is right, remove its line from the known hosts{}",
                    self.place,
                    about(),
                    self.known
                        .path
                        .as_ref()
                        .map(|p| format!(" in {}", p.display()))
                        .unwrap_or_default()
                ))
            }
            (None, Trust::FirstUse) => {
                log::warn!("{why}: trusted and remembered as first seen: {}", about());
                self.known.remember(&self.place, Known::Seen(shown));
                Ok("trusted on first use")
            }
            _ => Err(format!(
                "{why}: {}. If it is the right one, say --tls-pin {shown}, or --tls-trust=first-use",
                about()
            )),
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let vouch = || {
            let Some(system) = self.system() else {
                return Err("there are no certificates of authorities on this system".into());
            };
            system
                .verify_server_cert(certificate, intermediates, name, ocsp, now)
                .map(drop)
                .map_err(|error| {
                    format!("the certificate of {} is not trusted ({})", self.host, plain(&error))
                })
        };
        match self.decide(certificate, vouch) {
            Ok(verdict) => {
                *lock(&self.verdict) = Some(verdict);
                Ok(ServerCertVerified::assertion())
            }
            Err(why) => {
                *lock(&self.refusal) = Some(why);
                Err(rustls::CertificateError::ApplicationVerificationFailure.into())
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// rustls speaks to programmers.
fn plain(error: &rustls::Error) -> String {
    use rustls::CertificateError as Bad;
    match error {
        rustls::Error::InvalidCertificate(bad) => match bad {
            Bad::Expired | Bad::ExpiredContext { .. } => "it has expired".into(),
            Bad::NotValidYet | Bad::NotValidYetContext { .. } => "it is not valid yet".into(),
            Bad::UnknownIssuer => "no authority that is trusted here vouches for it".into(),
            Bad::NotValidForName | Bad::NotValidForNameContext { .. } => {
                "it is for another name".into()
            }
            Bad::Revoked => "it was revoked".into(),
            other => format!("{other:?}"),
        },
        other => other.to_string(),
    }
}

/// Fingerprint, names and dates, for people who compare them.
fn describe(certificate: &[u8], fingerprint: Fingerprint) -> String {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
        return fingerprint.to_string();
    };
    let mut names: Vec<String> = Vec::new();
    if let Ok(Some(alternatives)) = parsed.subject_alternative_name() {
        names.extend(alternatives.value.general_names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress([a, b, c, d]) => Some(format!("{a}.{b}.{c}.{d}")),
            _ => None,
        }));
    }
    if names.is_empty() {
        names.push(parsed.subject().to_string());
    }
    let names: String = names.join(", ").chars().filter(|c| !c.is_control()).take(200).collect();
    let validity = parsed.validity();
    let date = |time: &x509_parser::time::ASN1Time| time.to_datetime().date().to_string();
    format!(
        "{fingerprint}, for {names}, valid from {} to {}",
        date(&validity.not_before),
        date(&validity.not_after)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const CERTIFICATE: &[u8] = b"not really one";

    fn verifier(trust: Trust, mode: TlsMode, known_hosts: Option<PathBuf>) -> Verifier {
        let settings = TlsSettings { trust, mode, known_hosts, ..TlsSettings::default() };
        Verifier::new(&settings, "nas", 21).unwrap()
    }

    fn decide(
        verifier: &Verifier,
        bytes: &'static [u8],
        good: bool,
    ) -> Result<&'static str, String> {
        let vouch = || if good { Ok(()) } else { Err("no authority vouches".to_owned()) };
        verifier.decide(&CertificateDer::from(bytes), vouch)
    }

    #[test]
    fn fingerprints_come_and_go_as_text() {
        let fingerprint = Fingerprint::of(CERTIFICATE);
        assert_eq!(Fingerprint::parse(&fingerprint.to_string()), Some(fingerprint));
        let colons = fingerprint.to_string()[7..].to_uppercase();
        let pairs: Vec<&str> = (0..32).map(|i| &colons[2 * i..2 * i + 2]).collect();
        assert_eq!(Fingerprint::parse(&format!("sha256:{}", pairs.join(":"))), Some(fingerprint));
        for bad in ["", "sha256:", "sha256:zz", "md5:00"] {
            assert_eq!(Fingerprint::parse(bad), None);
        }
    }

    #[test]
    fn required_tls_takes_only_the_word_of_an_authority() {
        let strict = verifier(Trust::ByMode, TlsMode::Explicit, None);
        assert_eq!(decide(&strict, CERTIFICATE, true), Ok("verified"));
        let why = decide(&strict, b"another", false).unwrap_err();
        assert!(why.contains("--tls-pin sha256:"), "{why}");
    }

    #[test]
    fn first_use_is_remembered_and_a_change_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/known_hosts");
        let first = verifier(Trust::ByMode, TlsMode::Auto, Some(path.clone()));
        assert!(!first.knows_host());
        assert_eq!(decide(&first, CERTIFICATE, false), Ok("trusted on first use"));
        let second = verifier(Trust::FirstUse, TlsMode::Explicit, Some(path.clone()));
        assert!(second.knows_host());
        assert_eq!(decide(&second, CERTIFICATE, false), Ok("trusted on first use"));
        assert!(decide(&second, b"another", false).unwrap_err().contains("HAS CHANGED"));
        // A certificate that an authority vouches for may take its place,
        assert_eq!(decide(&second, b"another", true), Ok("verified"));
        // and then an unknown one is a change again, also after a restart.
        let third = verifier(Trust::ByMode, TlsMode::Auto, Some(path));
        assert!(decide(&third, CERTIFICATE, false).unwrap_err().contains("HAS CHANGED"));
    }

    #[test]
    fn a_pin_counts_alone() {
        let pins = vec![Fingerprint::of(CERTIFICATE)];
        let settings = TlsSettings { pins, trust: Trust::Nothing, ..TlsSettings::default() };
        let pinned = Verifier::new(&settings, "nas", 21).unwrap();
        assert_eq!(decide(&pinned, CERTIFICATE, false), Ok("pinned"));
        assert!(decide(&pinned, b"another", true).is_err());
    }
}
