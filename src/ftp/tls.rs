//! FTPS (RFC 4217): what the user wants of it, and rustls set up accordingly.
//!
//! Two findings about servers are built in. vsftpd 3.0.3 (`require_ssl_reuse=YES`), ProFTPD 1.3.8
//! and FileZilla Server refuse a data connection that does not resume the session of its own
//! control connection: so each session has a store of tickets of its own. And ProFTPD gives no
//! TLS 1.3 ticket on an upload, so that it runs dry: after such a refusal TLS 1.2, which resumes
//! without end, is the highest version spoken with that server.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, SupportedProtocolVersion};

use super::error::Error;
use super::trust::{Fingerprint, Trust, Verifier};

/// Tickets and sessions kept for one control connection. TLS 1.3 servers give two at a time; all
/// are for one name, so a few are plenty.
const TICKETS: usize = 16;

/// Whether and how a connection is protected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsMode {
    /// Clear text.
    Off,
    /// AUTH TLS where the server offers it, clear text with a warning where not.
    #[default]
    Auto,
    /// AUTH TLS, or nothing.
    Explicit,
    /// TLS from the first byte, on a port of its own (990).
    Implicit,
}

/// What the user wants of TLS.
#[derive(Clone, Debug, Default)]
pub struct TlsSettings {
    pub mode: TlsMode,
    pub trust: Trust,
    /// If there are any, the server's certificate must be one of them, and nothing else counts.
    pub pins: Vec<Fingerprint>,
    /// Trusted beside the system's own.
    pub authorities: Authorities,
    /// Who we are, for servers that ask for a certificate.
    pub identity: Option<Arc<Identity>>,
    /// Send data in clear text (PROT C).
    pub clear_data: bool,
    /// Return to clear text on the control connection after the login (CCC), for firewalls that
    /// must see the port numbers.
    pub clear_control: bool,
    /// No TLS 1.3.
    pub only_tls12: bool,
    /// Where trusted certificates are remembered; `None`: only for the life of the mount.
    pub known_hosts: Option<PathBuf>,
}

/// Certificates of authorities.
#[derive(Clone, Debug, Default)]
pub struct Authorities(pub(crate) Vec<CertificateDer<'static>>);

impl Authorities {
    /// From a PEM file with one or more of them.
    pub fn from_pem(pem: &[u8]) -> Result<Self, String> {
        certificates(pem).map(Self)
    }
}

/// A certificate of our own and its key.
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// From PEM files, which may be one and the same.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, String> {
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|_| "holds no private key in PEM that is not encrypted".to_owned())?;
        Ok(Self { chain: certificates(chain)?, key })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(***)")
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        _ => Err("holds no certificate in PEM".into()),
    }
}

/// TLS with one server.
#[derive(Debug)]
pub(crate) struct Tls {
    settings: TlsSettings,
    verifier: Arc<Verifier>,
    name: ServerName<'static>,
}

impl Tls {
    pub(crate) fn new(settings: &TlsSettings, host: &str, port: u16) -> Result<Self, Error> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| Error::Tls(format!("{host} is no name that a certificate could have")))?;
        let verifier = Arc::new(Verifier::new(settings, host, port)?);
        Ok(Self { settings: settings.clone(), verifier, name })
    }

    pub(crate) fn settings(&self) -> &TlsSettings {
        &self.settings
    }

    pub(crate) fn name(&self) -> ServerName<'static> {
        self.name.clone()
    }

    pub(crate) fn verifier(&self) -> &Verifier {
        &self.verifier
    }

    /// For one control connection and its data connections.
    pub(crate) fn session_config(&self, only_tls12: bool) -> Result<Arc<ClientConfig>, Error> {
        let both: [&'static SupportedProtocolVersion; 2] = [&TLS12, &TLS13];
        let only12 = only_tls12 || self.settings.only_tls12;
        let versions = if only12 { both.get(..1).unwrap_or(&both) } else { &both };
        let failed = |error: rustls::Error| Error::Tls(error.to_string());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(failed)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&self.verifier) as _);
        let mut config = match &self.settings.identity {
            Some(identity) => builder
                .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
                .map_err(failed)?,
            None => builder.with_no_client_auth(),
        };
        config.resumption = Resumption::in_memory_sessions(TICKETS);
        Ok(Arc::new(config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_without_what_they_should_hold_are_refused() {
        assert!(Authorities::from_pem(b"nothing").is_err());
        let key = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(Identity::from_pem(key, key).is_err());
    }

    #[test]
    fn an_address_is_a_name_too() {
        for host in ["::1", "127.0.0.1", "nas.example.org"] {
            let tls = Tls::new(&TlsSettings::default(), host, 21).unwrap();
            assert!(tls.session_config(true).is_ok());
        }
        assert!(Tls::new(&TlsSettings::default(), "a b", 21).is_err());
    }
}
