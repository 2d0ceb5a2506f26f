//! Reads what people need to know about a certificate: its name and its expiry.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, SignatureScheme};
use x509_cert::der::Decode as _;
use x509_cert::der::asn1::ObjectIdentifier;

/// The common name in a subject (X.520).
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// Longer names are cut.
const MAX_NAME_CHARS: usize = 100;

/// How long before its expiry a certificate causes a warning.
pub(crate) const EXPIRY_WARNING_SECS: i64 = 30 * 86_400;

/// A certificate of the connection to the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Its role in the connection: `client`, `ca` or `broker`.
    pub kind: &'static str,
    /// The common name; empty if the certificate has none.
    pub name: String,
    /// The expiry, in seconds since 1970.
    pub ends: i64,
}

impl Certificate {
    /// Parses a certificate; `None` if that fails, which TLS reports with the cause.
    pub(super) fn read(kind: &'static str, der: &[u8]) -> Option<Self> {
        let read = x509_cert::Certificate::from_der(der).ok()?.tbs_certificate;
        let ends = read.validity.not_after.to_unix_duration().as_secs();
        let attributes = read.subject.0.iter().flat_map(|set| set.0.iter());
        let name = attributes.rev().find(|attribute| attribute.oid == COMMON_NAME);
        // Only historic certificates have names that are not UTF-8.
        let name = name.map(|name| {
            String::from_utf8_lossy(name.value.value()).chars().take(MAX_NAME_CHARS).collect()
        });
        Some(Self { kind, name: name.unwrap_or_default(), ends: i64::try_from(ends).ok()? })
    }

    /// Whether the certificate expires soon or has expired; `now` is in seconds since 1970.
    #[must_use]
    pub fn ends_soon(&self, now: i64) -> bool {
        self.ends - now < EXPIRY_WARNING_SECS
    }

    /// A description for people, with the setting's name.
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

/// The broker's certificate, once a connection was verified.
pub(super) type Seen = Arc<Mutex<Option<Certificate>>>;

/// Verifies the broker's certificate with rustls and records a valid one.
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
