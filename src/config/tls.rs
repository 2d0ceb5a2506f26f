//! Sets up TLS: the CAs that verify the broker, and this host's own certificate.
//!
//! The files are read once with the settings, to report errors, and again for each connection, so that a
//! renewed certificate is used from the next connection on. No setting turns off the verification of the
//! broker's certificate.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

use super::certificate::{Certificate, Seen, Verifier};

/// The bundle of all public CAs is a quarter of this size.
const MAX_PEM_BYTES: u64 = 1024 * 1024;

/// The settings of TLS, if TLS is on.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The file of CAs that verify the broker; `None` for the system's CAs.
    pub(super) authorities: Option<PathBuf>,
    /// The files of this host's certificate and key.
    pub(super) identity: Option<(PathBuf, PathBuf)>,
    /// The broker's certificate on the last connection; clones share it.
    seen: Seen,
}

impl Tls {
    pub(super) fn new(authorities: Option<PathBuf>, identity: Option<(PathBuf, PathBuf)>) -> Self {
        Self { authorities, identity, seen: Seen::default() }
    }

    /// The known certificates of this host, its CA and the broker. If a file has several certificates, the result has
    /// the first to expire.
    #[must_use]
    pub fn certificates(&self) -> Vec<Certificate> {
        let own = self.identity.as_ref().and_then(|(path, _)| first_to_expire("client", path));
        let ca = self.authorities.as_ref().and_then(|path| first_to_expire("ca", path));
        let broker = self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        [own, ca, broker].into_iter().flatten().collect()
    }

    /// The name in this host's certificate.
    pub(super) fn own_name(&self) -> Option<String> {
        let (path, _) = self.identity.as_ref()?;
        let own = Certificate::read("client", certificates(path).ok()?.first()?)?;
        Some(own.name).filter(|name| !name.is_empty())
    }

    /// Whether this host presents a certificate.
    #[must_use]
    pub fn has_identity(&self) -> bool {
        self.identity.is_some()
    }

    /// Reads the files for a new connection.
    ///
    /// # Errors
    /// A message that starts with the setting's name.
    pub fn client(&self) -> Result<Arc<ClientConfig>, String> {
        let roots = match &self.authorities {
            Some(path) => authorities(path).map_err(named("MQTT_CAFILE"))?,
            None => system().map_err(named("MQTT_TLS"))?,
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let inner =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .map_err(|error| error.to_string())?;
        // This verifier checks what rustls checks by default, and records the broker's certificate.
        let verifier = Verifier { inner, seen: Arc::clone(&self.seen) };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let config = match &self.identity {
            None => config.with_no_client_auth(),
            Some((certificate, key)) => {
                let certificates = certificates(certificate).map_err(named("MQTT_CERT"))?;
                let key = private_key(key).map_err(named("MQTT_KEY"))?;
                config.with_client_auth_cert(certificates, key).map_err(|error| match error {
                    rustls::Error::InconsistentKeys(_) => {
                        "MQTT_KEY is not the key of the certificate in MQTT_CERT".to_owned()
                    }
                    error => format!("MQTT_CERT and MQTT_KEY cannot be used: {error}"),
                })?
            }
        };
        Ok(Arc::new(config))
    }

    /// The path of this host's key if users outside of the file's group can read it.
    pub(super) fn exposed_key(&self) -> Option<&Path> {
        let (_, key) = self.identity.as_ref()?;
        let mode = std::fs::metadata(key).ok()?.permissions().mode();
        (mode & 0o007 != 0).then_some(key)
    }
}

/// The certificate in a file that expires first.
fn first_to_expire(kind: &'static str, path: &Path) -> Option<Certificate> {
    let all = certificates(path).ok()?;
    let all = all.iter().filter_map(|der| Certificate::read(kind, der));
    all.min_by_key(|certificate| certificate.ends)
}

fn named(setting: &str) -> impl Fn(String) -> String {
    move |what| format!("{setting} {what}")
}

/// Whether a certificate can be valid for this host name.
pub(super) fn is_server_name(host: &str) -> bool {
    ServerName::try_from(bare(host)).is_ok()
}

/// A host without the brackets of an IPv6 address.
pub(crate) fn bare(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

pub(super) fn authorities_file(text: &str) -> Result<PathBuf, String> {
    checked(text, authorities)
}

pub(super) fn certificate_file(text: &str) -> Result<PathBuf, String> {
    checked(text, certificates)
}

pub(super) fn key_file(text: &str) -> Result<PathBuf, String> {
    checked(text, private_key)
}

fn checked<T>(text: &str, read: fn(&Path) -> Result<T, String>) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if !path.is_absolute() {
        return Err("must be a path that begins with /".to_owned());
    }
    read(&path).map(|_| path)
}

fn authorities(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(path)?);
    if roots.is_empty() {
        return Err(format!("has no readable certificate: {}", path.display()));
    }
    Ok(roots)
}

fn system() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(
            "needs CA certificates, and this system has none: install ca-certificates, or set \
                    MQTT_CAFILE"
                .to_owned(),
        );
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = read(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        _ => Err(format!("has no certificate in PEM form: {}", path.display())),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    // The markers of PKCS #8 and of openssl's older format.
    const ENCRYPTED: [&str; 2] =
        ["-----BEGIN ENCRYPTED PRIVATE KEY-----", "Proc-Type: 4,ENCRYPTED"];
    let text = read(path)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|_| {
        let path = path.display();
        let text = String::from_utf8_lossy(&text);
        if ENCRYPTED.iter().any(|marker| text.contains(marker)) {
            format!("is encrypted with a passphrase; use a key without a passphrase: {path}")
        } else {
            format!("has no private key in PEM form: {path}")
        }
    })
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    let read =
        File::open(path).and_then(|file| file.take(MAX_PEM_BYTES + 1).read_to_end(&mut text));
    match read {
        Ok(_) if text.len() as u64 > MAX_PEM_BYTES => {
            Err(format!("is larger than {} KiB: {}", MAX_PEM_BYTES / 1024, path.display()))
        }
        Ok(_) => Ok(text),
        Err(error) => {
            // The service is root without root's powers.
            let hint = match error.kind() {
                io::ErrorKind::PermissionDenied => {
                    "; the file must belong to root, outside of /home and /root"
                }
                _ => "",
            };
            Err(format!("cannot be read: {}: {error}{hint}", path.display()))
        }
    }
}
