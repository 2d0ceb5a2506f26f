//! Explains why a connection ended, and how to fix that. The texts of rustls and rumqttc address developers; these
//! address administrators.

use std::net::IpAddr;
use std::{fmt, io};

use rumqttc::{ConnectReturnCode, ConnectionError, StateError, TlsError, mqttbytes};
use rustls::pki_types::{ServerName, UnixTime};
use rustls::{AlertDescription, CertificateError, InvalidMessage};

use super::MAX_PACKET_BYTES;
use super::session::CONNECT_TIMEOUT_SECS;
use crate::sys::calendar::Calendar;

/// How a connection was protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TlsMode {
    Off,
    /// TLS without a client certificate.
    ServerOnly,
    /// TLS with a client certificate.
    Mutual,
}

/// The stage at which a connection failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectStage {
    /// TCP is up, and TLS or the MQTT handshake failed.
    Tls,
    /// The broker rejected the login.
    Login,
    /// Any other stage, before or after these.
    Other,
}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DisconnectReason {
    /// The stage that failed.
    pub stage: ConnectStage,
    /// The cause for people, with a fix if one is known.
    pub text: String,
}

impl From<String> for DisconnectReason {
    fn from(text: String) -> Self {
        Self { stage: ConnectStage::Other, text }
    }
}

impl fmt::Display for DisconnectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

pub(super) fn is_too_large(error: &ConnectionError) -> bool {
    use mqttbytes::Error::PayloadSizeLimitExceeded;
    matches!(
        error,
        ConnectionError::MqttState(StateError::Deserialization(PayloadSizeLimitExceeded(_)))
    )
}

/// Explains an error; `connack_seen` if the broker had accepted the login.
pub(super) fn explain(
    error: &ConnectionError,
    tls_mode: TlsMode,
    connack_seen: bool,
) -> DisconnectReason {
    DisconnectReason {
        stage: stage(error, connack_seen),
        text: describe(error, tls_mode, connack_seen),
    }
}

fn stage(error: &ConnectionError, connack_seen: bool) -> ConnectStage {
    use ConnectReturnCode::{BadUserNamePassword, NotAuthorized};
    match error {
        ConnectionError::ConnectionRefused(BadUserNamePassword | NotAuthorized) => {
            ConnectStage::Login
        }
        ConnectionError::Tls(_) => ConnectStage::Tls,
        error if io_error(error).is_some_and(is_tls_error) => ConnectStage::Tls,
        error if !connack_seen && is_hang_up(error) => ConnectStage::Tls,
        _ => ConnectStage::Other,
    }
}

fn describe(error: &ConnectionError, tls_mode: TlsMode, connack_seen: bool) -> String {
    if !connack_seen && is_hang_up(error) {
        return describe_hang_up(error, tls_mode).to_owned();
    }
    match (error, io_error(error)) {
        (
            ConnectionError::ConnectionRefused(
                ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized,
            ),
            _,
        ) => describe_login(tls_mode).to_owned(),
        (ConnectionError::ConnectionRefused(ConnectReturnCode::BadClientId), _) => {
            "the broker rejected this host's client ID; allow client IDs that begin with f2bmqtt- on the \
             broker"
                .to_owned()
        }
        (ConnectionError::ConnectionRefused(code), _) => {
            format!("the broker rejected the connection: {code:?}")
        }
        (ConnectionError::NetworkTimeout, _) => format!("no answer within {CONNECT_TIMEOUT_SECS} s"),
        (ConnectionError::FlushTimeout, _) => "the broker stopped reading from the connection".to_owned(),
        (_, Some(error)) => describe_io(error, tls_mode),
        (ConnectionError::MqttState(StateError::ConnectionAborted), _) => {
            "the broker closed the connection (if this repeats, another host may have this host's name)"
                .to_owned()
        }
        (ConnectionError::MqttState(StateError::AwaitPingResp), _) => "the broker stopped responding".to_owned(),
        (error, _) if is_too_large(error) => {
            format!(
                "the broker sent a message of more than {} KiB; discarding the session that the broker keeps",
                MAX_PACKET_BYTES / 1024
            )
        }
        _ => error.to_string(),
    }
}

const NO_TLS: &str =
    "the broker does not speak TLS on this port; check MQTT_PORT (the TLS port is usually 8883)";

fn describe_login(tls_mode: TlsMode) -> &'static str {
    match tls_mode {
        TlsMode::Mutual => {
            "the broker rejected the login; check MQTT_USER, MQTT_PASSWORD and the name in MQTT_CERT"
        }
        _ => "the broker rejected the login; check MQTT_USER and MQTT_PASSWORD",
    }
}

/// Whether a server closed a connection in a protocol that it does not speak. A TLS alert, read as MQTT, is a malformed
/// packet, or one that no broker sends first.
fn is_hang_up(error: &ConnectionError) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    match io_error(error) {
        Some(error) => {
            !is_tls_error(error)
                && matches!(
                    error.kind(),
                    BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
                )
        }
        None => matches!(
            error,
            ConnectionError::NotConnAck(_)
                | ConnectionError::MqttState(
                    StateError::Deserialization(_) | StateError::ConnectionAborted
                )
        ),
    }
}

/// The likely cause if the server closed the connection before the handshake.
fn describe_hang_up(error: &ConnectionError, tls_mode: TlsMode) -> &'static str {
    match (error, tls_mode) {
        (ConnectionError::Tls(_), _) => NO_TLS,
        (_, TlsMode::Off) => {
            "the broker closed the connection before the MQTT handshake; if the port is for TLS, set \
             MQTT_CAFILE or MQTT_TLS=on; if not, see the broker's log"
        }
        (_, TlsMode::ServerOnly) => {
            "the broker closed the connection before the MQTT handshake; if the broker requires a client \
             certificate, set MQTT_CERT and MQTT_KEY"
        }
        (_, TlsMode::Mutual) => {
            "the broker closed the connection before the MQTT handshake; see the broker's log (does the \
             broker accept MQTT_CERT?)"
        }
    }
}

fn is_tls_error(error: &io::Error) -> bool {
    error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<rustls::Error>)
}

/// The I/O error that rumqttc wraps.
fn io_error(error: &ConnectionError) -> Option<&io::Error> {
    match error {
        ConnectionError::Io(error)
        | ConnectionError::Tls(TlsError::Io(error))
        | ConnectionError::MqttState(
            StateError::Io(error) | StateError::Deserialization(mqttbytes::Error::Io(error)),
        ) => Some(error),
        _ => None,
    }
}

fn describe_io(error: &io::Error, tls_mode: TlsMode) -> String {
    if let Some(error) = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()) {
        return describe_tls(error, tls_mode);
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "no broker listens on this port".to_owned(),
        _ => error.to_string(),
    }
}

fn describe_tls(error: &rustls::Error, tls_mode: TlsMode) -> String {
    use rustls::Error::{AlertReceived, InvalidCertificate};
    match error {
        InvalidCertificate(error) => describe_certificate(error),
        AlertReceived(alert) => describe_alert(*alert, tls_mode),
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => NO_TLS.to_owned(),
        error => format!("TLS failed: {error}"),
    }
}

fn describe_certificate(error: &CertificateError) -> String {
    use CertificateError as E;
    match error {
        // With two CAs of the same name, rustls reports a bad signature.
        E::UnknownIssuer | E::BadSignature => {
            "the broker's certificate is signed by an unknown CA; MQTT_CAFILE must be the certificate of \
             the CA that signed it"
                .to_owned()
        }
        E::ExpiredContext { time, not_after } => format!(
            "the broker's certificate expired on {} (this host's clock: {}); renew the certificate on the \
             broker",
            date(*not_after),
            date(*time)
        ),
        E::Expired => "the broker's certificate has expired; renew the certificate on the broker".to_owned(),
        E::NotValidYetContext { time, not_before } => format!(
            "the broker's certificate is not valid before {} (this host's clock: {}); check the clocks of \
             both machines",
            date(*not_before),
            date(*time)
        ),
        E::NotValidYet => "the broker's certificate is not valid yet; check the clocks of both machines".to_owned(),
        // openssl accepts `DNS:192.0.2.1`, which matches no address.
        E::NotValidForNameContext { expected: ServerName::IpAddress(_), presented }
            if presented.iter().any(|name| is_address_as_name(name)) =>
        {
            "the broker's certificate has an address as a DNS name; write IP:ADDRESS instead of DNS:ADDRESS \
             in subjectAltName"
                .to_owned()
        }
        E::NotValidForNameContext { expected, presented } => {
            let names: Vec<String> = presented.iter().take(8).map(|name| short(name)).collect();
            let names = if names.is_empty() { "no name".to_owned() } else { names.join(", ") };
            let expected = expected.to_str();
            format!(
                "the broker's certificate is for {names}, not for {expected}; set MQTT_HOST to a name in \
                 the certificate"
            )
        }
        E::NotValidForName => {
            "the broker's certificate is for another name; set MQTT_HOST to a name in the certificate".to_owned()
        }
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => {
            "the broker's certificate is not a server certificate".to_owned()
        }
        E::Other(other) => describe_webpki(other.0.downcast_ref()),
        other => format!("the broker's certificate is invalid: {other}"),
    }
}

fn is_address_as_name(presented: &str) -> bool {
    presented.starts_with("DnsName(") && short(presented).parse::<IpAddr>().is_ok()
}

/// Errors of webpki that rustls does not map.
fn describe_webpki(error: Option<&webpki::Error>) -> String {
    const EXTENSIONS: &str = "(openssl x509 -req … -extfile FILE, with subjectAltName and \
                              basicConstraints = CA:FALSE in FILE)";
    match error {
        Some(webpki::Error::UnsupportedCertVersion) => {
            format!(
                "the broker's certificate has X.509 version 1; make a certificate of version 3 \
                     {EXTENSIONS}"
            )
        }
        Some(webpki::Error::CaUsedAsEndEntity) => format!(
            "the broker's certificate is a CA certificate (CA:TRUE), perhaps self-signed; make a \
             certificate for the broker, signed by that CA {EXTENSIONS}"
        ),
        Some(error) => format!("the broker's certificate is invalid: {error}"),
        None => "the broker's certificate is invalid".to_owned(),
    }
}

/// A TLS alert that the broker sent before it closed the connection.
fn describe_alert(alert: AlertDescription, tls_mode: TlsMode) -> String {
    use AlertDescription as A;
    let cause = match alert {
        A::CertificateRequired | A::NoCertificate if tls_mode != TlsMode::Mutual => {
            return "the broker requires a client certificate; set MQTT_CERT and MQTT_KEY"
                .to_owned();
        }
        // TLS 1.2 uses this alert for several faults.
        A::HandshakeFailure => {
            let certificate = match tls_mode {
                TlsMode::Mutual => "",
                _ => "the broker requires a client certificate (set MQTT_CERT and MQTT_KEY), or ",
            };
            return format!(
                "TLS handshake failed: {certificate}the broker shares no cipher or curve with this host (TLS 1.3, \
                 or 1.2 with ECDHE)"
            );
        }
        A::UnknownCA => "the broker does not know the CA that signed the certificate",
        A::CertificateExpired => "the certificate has expired or is not valid yet",
        A::CertificateRevoked => "the certificate is revoked",
        A::BadCertificate | A::CertificateUnknown | A::UnsupportedCertificate | A::AccessDenied => {
            "see the broker's log"
        }
        A::ProtocolVersion => return "the broker supports neither TLS 1.2 nor TLS 1.3".to_owned(),
        other => return format!("the broker ended TLS: {other:?}"),
    };
    format!("the broker rejected this host's certificate (MQTT_CERT): {cause}")
}

fn date(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    Calendar::new().map(|times| times.iso(seconds)).unwrap_or_default()
}

/// The name inside of rustls's `DnsName("hub")`, escaped and shortened, because the certificate is untrusted.
fn short(name: &str) -> String {
    let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(name);
    inner.trim_matches('"').escape_debug().take(80).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use rustls::Error as Tls;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    /// As rumqttc wraps a TLS error during the handshake.
    fn handshake_error(error: Tls) -> ConnectionError {
        ConnectionError::Tls(TlsError::Io(io::Error::new(io::ErrorKind::InvalidData, error)))
    }

    /// The same after the handshake: TLS 1.3 rejects a client certificate only then.
    fn late_error(error: Tls) -> ConnectionError {
        let error = io::Error::new(io::ErrorKind::InvalidData, error);
        ConnectionError::MqttState(StateError::Deserialization(mqttbytes::Error::Io(error)))
    }

    fn of_webpki(error: webpki::Error) -> CertificateError {
        CertificateError::Other(rustls::OtherError(Arc::new(error)))
    }

    fn reset() -> io::Error {
        io::ErrorKind::ConnectionReset.into()
    }

    #[test]
    fn certificate_error_names_cause_and_fix() {
        use CertificateError as E;
        let expected = ServerName::try_from("hub.example").unwrap();
        let (time, not_after, not_before) =
            (at(1_800_000_000), at(1_700_000_000), at(1_900_000_000));
        let table = [
            (
                E::UnknownIssuer,
                "the broker's certificate is signed by an unknown CA; MQTT_CAFILE must be",
            ),
            (E::BadSignature, "the broker's certificate is signed by an unknown CA"),
            (
                E::ExpiredContext { time, not_after },
                "the broker's certificate expired on 2023-11-14T22:13:20+00:00 (this host's clock: \
                 2027-01-15T08:00:00+00:00)",
            ),
            (
                E::NotValidYetContext { time, not_before },
                "the broker's certificate is not valid before 2030-03-17T17:46:40+00:00 (this host's clock: \
                 2027",
            ),
            (
                E::NotValidForNameContext {
                    expected,
                    presented: ["DnsName(\"hub\")", "IpAddress(::1)", "\u{1b}[0m"]
                        .map(str::to_owned)
                        .into(),
                },
                "the broker's certificate is for hub, ::1, \\u{1b}[0m, not for hub.example; set MQTT_HOST to",
            ),
            (E::InvalidPurpose, "the broker's certificate is not a server certificate"),
            (
                E::NotValidForNameContext {
                    expected: ServerName::try_from("192.0.2.1").unwrap(),
                    presented: vec!["DnsName(\"192.0.2.1\")".to_owned()],
                },
                "the broker's certificate has an address as a DNS name; write IP:ADDRESS",
            ),
            (
                of_webpki(webpki::Error::UnsupportedCertVersion),
                "the broker's certificate has X.509 version 1; make",
            ),
            (
                of_webpki(webpki::Error::CaUsedAsEndEntity),
                "the broker's certificate is a CA certificate \
                                                        (CA:TRUE)",
            ),
            (of_webpki(webpki::Error::BadDer), "the broker's certificate is invalid: BadDer"),
        ];
        for (error, expected) in table {
            let text = explain(
                &handshake_error(Tls::InvalidCertificate(error)),
                TlsMode::ServerOnly,
                false,
            )
            .text;
            assert!(text.starts_with(expected), "{text}");
        }
    }

    #[test]
    fn tls_alert_names_cause_and_fix() {
        use AlertDescription as A;
        let wants = "the broker requires a client certificate; set MQTT_CERT and MQTT_KEY";
        let refuses = "the broker rejected this host's certificate (MQTT_CERT): ";
        let table = [
            (A::CertificateRequired, TlsMode::ServerOnly, wants),
            (
                A::HandshakeFailure,
                TlsMode::ServerOnly,
                "TLS handshake failed: the broker requires a client certificate",
            ),
            (A::UnknownCA, TlsMode::Mutual, refuses),
            (A::CertificateExpired, TlsMode::Mutual, refuses),
            (
                A::HandshakeFailure,
                TlsMode::Mutual,
                "TLS handshake failed: the broker shares no cipher",
            ),
            (
                A::ProtocolVersion,
                TlsMode::ServerOnly,
                "the broker supports neither TLS 1.2 nor TLS 1.3",
            ),
        ];
        for (alert, tls_mode, expected) in table {
            for error in
                [handshake_error(Tls::AlertReceived(alert)), late_error(Tls::AlertReceived(alert))]
            {
                let text = explain(&error, tls_mode, false).text;
                assert!(text.starts_with(expected), "{text}");
            }
        }
    }

    #[test]
    fn rejected_client_id_is_not_a_login_failure() {
        let refused = ConnectionError::ConnectionRefused(ConnectReturnCode::BadClientId);
        let why = explain(&refused, TlsMode::Off, false);
        assert_eq!(why.stage, ConnectStage::Other);
        assert!(why.text.contains("allow client IDs that begin with f2bmqtt-"), "{}", why.text);
    }

    #[test]
    fn server_that_closes_at_once_speaks_another_protocol() {
        let tls_reset = ConnectionError::Tls(TlsError::Io(reset()));
        let tcp_reset = ConnectionError::Io(reset());
        let aborted = ConnectionError::MqttState(StateError::ConnectionAborted);
        let no_mqtt = "the broker closed the connection before the MQTT handshake; if ";
        let table = [
            (&tls_reset, TlsMode::ServerOnly, false, "the broker does not speak TLS on this port"),
            (&tcp_reset, TlsMode::Off, false, &format!("{no_mqtt}the port is for TLS")),
            (
                &tcp_reset,
                TlsMode::ServerOnly,
                false,
                &format!("{no_mqtt}the broker requires a client certificate"),
            ),
            (&aborted, TlsMode::Off, false, &format!("{no_mqtt}the port is for TLS")),
            (&aborted, TlsMode::Off, true, "the broker closed the connection (if this repeats"),
            (&tcp_reset, TlsMode::ServerOnly, true, "connection reset"),
        ];
        for (error, tls_mode, connack_seen, expected) in table {
            let text = explain(error, tls_mode, connack_seen).text;
            assert!(text.starts_with(expected), "{text}");
        }
    }
}
