//! Parses the values of settings: brokers, port, name and password, keys, and lists of jails and networks. An error is
//! the end of a sentence that starts with the setting's name.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;

use ipnet::IpNet;

use crate::model::Jail;
use crate::wire::signature::SigningKeys;

/// The ports that IANA has registered for MQTT, without and with TLS.
pub(super) const PLAIN_PORT: u16 = 1883;
pub(super) const TLS_PORT: u16 = 8883;

/// The address of a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broker {
    /// Host name or address; an IPv6 address has brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// A broker as written in the settings, with or without a port.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct HostPort {
    pub(super) host: String,
    port: Option<u16>,
}

impl HostPort {
    pub(super) fn with_default_port(self, port: u16) -> Broker {
        Broker { host: self.host, port: self.port.unwrap_or(port) }
    }
}

/// A text that no message or debug output shows.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret text.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The secret text, for use but never for display.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// The name and password that this host sends to the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// User name.
    pub user: String,
    /// Password; may be empty.
    pub password: Secret,
}

/// How this host signs its messages and verifies those of others.
#[derive(Clone, Debug)]
pub struct Signing {
    /// The secrets that the fleet shares.
    pub keys: SigningKeys,
    /// Whether unsigned messages are accepted, because some hosts do not sign yet, or run the scripts.
    pub accept_unsigned: bool,
}

pub(super) fn brokers(text: &str) -> Result<Vec<HostPort>, String> {
    text.split(',').map(|one| broker(one.trim())).collect()
}

fn broker(text: &str) -> Result<HostPort, String> {
    let parsed = if text.contains('/') {
        None // such as mqtt://host
    } else if let Some((host, rest)) = text.strip_prefix('[').and_then(|text| text.split_once(']'))
    {
        let port = rest.strip_prefix(':').map(port).transpose()?;
        v6_host(host, port).filter(|_| port.is_some() || rest.is_empty())
    } else if text.matches(':').count() > 1 {
        v6_host(text, None)
    } else {
        let (host, port) = match text.split_once(':') {
            Some((host, text)) => (host, Some(port(text)?)),
            None => (text, None),
        };
        is_host_name(host).then(|| HostPort { host: host.to_owned(), port })
    };
    parsed.ok_or_else(|| {
        "must be host, host:port or [IPv6 address]:port; separate several by commas".to_owned()
    })
}

fn v6_host(text: &str, port: Option<u16>) -> Option<HostPort> {
    let address: Ipv6Addr = text.parse().ok()?;
    Some(HostPort { host: format!("[{address}]"), port })
}

/// Whether a text is a host name or an IPv4 address. DNS limits names to 253 characters.
fn is_host_name(text: &str) -> bool {
    let mut chars = text.chars();
    (1..=253).contains(&text.len())
        && chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
}

pub(super) fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err("must have a port from 1 to 65535".to_owned()),
    }
}

pub(super) fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("must be on or off".to_owned()),
    }
}

/// A path that does not depend on the current directory.
pub(super) fn absolute_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("must be a path that begins with /".to_owned()) }
}

/// The URL of a proxy, `http://host:port`, with or without a name and password.
pub(super) fn proxy(text: &str) -> Result<Secret, String> {
    let host = text.strip_prefix("http://").unwrap_or_default().trim_end_matches('/');
    let host = host.rsplit('@').next().unwrap_or_default();
    if host.is_empty() || reqwest::Proxy::https(text).is_err() {
        return Err("must be the URL of a proxy: http://host:port".to_owned());
    }
    Ok(Secret::new(text.to_owned()))
}

/// A name or password, whose length MQTT encodes in two bytes.
pub(super) fn credential(text: &str) -> Result<String, String> {
    if text.len() > usize::from(u16::MAX) {
        return Err("is longer than the 65535 bytes that MQTT allows".to_owned());
    }
    Ok(text.to_owned())
}

/// One secret or, during a change of the key, the new and the old one.
pub(super) fn signing_keys(text: &str) -> Result<SigningKeys, String> {
    const MIN_CHARS: usize = 16;
    let secrets: Vec<&str> = text.split(',').map(str::trim).collect();
    if secrets.len() > 2 || secrets.iter().any(|secret| secret.chars().count() < MIN_CHARS) {
        return Err(format!(
            "must be a secret of at least {MIN_CHARS} characters, or new,old during a change of the key; \
             make a secret with: openssl rand -hex 32"
        ));
    }
    Ok(SigningKeys::new(secrets))
}

pub(super) fn yes(text: &str) -> Result<bool, String> {
    match text {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err("must be yes or no".to_owned()),
    }
}

/// Names of jails, separated by commas or blanks.
pub(super) fn jails(text: &str) -> Result<BTreeSet<Jail>, String> {
    let jails: Option<BTreeSet<Jail>> = list(text).map(|name| Jail::new(name).ok()).collect();
    jails
        .filter(|jails| !jails.is_empty())
        .ok_or_else(|| "must be names of jails, separated by commas or blanks".to_owned())
}

/// Addresses and networks, separated by commas or blanks.
pub(super) fn networks(text: &str) -> Result<Vec<IpNet>, String> {
    let networks: Option<Vec<IpNet>> = list(text).map(crate::model::network).collect();
    networks.filter(|networks| !networks.is_empty()).ok_or_else(|| {
        "must be addresses and networks such as 192.0.2.0/24, separated by commas or blanks"
            .to_owned()
    })
}

fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split([',', ' ', '\t']).filter(|entry| !entry.is_empty())
}
