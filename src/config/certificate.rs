//! What people need to know of a certificate: whose it is, and when it ends.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, SignatureScheme};
use x509_cert::der::Decode as _;
use x509_cert::der::asn1::ObjectIdentifier;

/// The common name in a subject (X.520).
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// The longest name that is shown, in characters.
const MAX_NAME: usize = 100;

/// From how many seconds before its end on a certificate is warned of.
pub(crate) const WARNED_BEFORE: i64 = 30 * 86_400;

/// A certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Whose part it has in a connection: `client`, `ca` or `broker`.
    pub kind: &'static str,
    /// The common name; empty if it has none.
    pub name: String,
    /// When it ends, in seconds since 1970.
    pub ends: i64,
}

impl Certificate {
    /// Reads a certificate. One that cannot be read is of no use for this, and TLS says why.
    pub(super) fn read(kind: &'static str, der: &[u8]) -> Option<Self> {
        let read = x509_cert::Certificate::from_der(der).ok()?.tbs_certificate;
        let ends = read.validity.not_after.to_unix_duration().as_secs();
        let attributes = read.subject.0.iter().flat_map(|set| set.0.iter());
        let name = attributes.rev().find(|attribute| attribute.oid == COMMON_NAME);
        // Names that are no UTF-8 or ASCII are of the last century.
        let name = name.map(|name| {
            String::from_utf8_lossy(name.value.value()).chars().take(MAX_NAME).collect()
        });
        Some(Self { kind, name: name.unwrap_or_default(), ends: i64::try_from(ends).ok()? })
    }

    /// Whether the end is close at `now`, or past.
    #[must_use]
    pub fn ends_soon(&self, now: i64) -> bool {
        self.ends - now < WARNED_BEFORE
    }

    /// What a person calls it.
    #[must_use]
    pub fn title(&self) -> String {
        let of = match self.kind {
            "client" => "this host's certificate, MQTT_CERT",
            "ca" => "the CA's certificate, MQTT_CAFILE",
            _ => "the broker's certificate",
        };
        if self.name.is_empty() { of.to_owned() } else { format!("{of} ({})", self.name) }
    }
}

/// The broker's certificate, once a connection was made.
pub(super) type Seen = Arc<Mutex<Option<Certificate>>>;

/// Has rustls verify the broker's certificate, and remembers one that is good.
#[derive(Debug)]
pub(super) struct Verifier {
    pub(super) inner: Arc<WebPkiServerVerifier>,
    pub(super) seen: Seen,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.inner.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )?;
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) =
            Certificate::read("broker", end_entity);
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
