//! Reads the settings from `mqtt.env` to a [`Config`], or to a list of all errors in the file.
//!
//! Bash must be able to source the file, because scripts on the same host may read it, too. Values in the file take
//! precedence over the environment, and later lines over earlier ones.

mod certificate;
mod env_line;
mod lines;
mod nearest;
mod options;
mod tls;
mod topic;
mod values;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use crate::error::{ConfigErrors, Error};
use crate::model::{HostName, JailFilter};

pub use certificate::Certificate;
pub(crate) use env_line::read as read_line;
use lines::EnvLine;
pub use tls::Tls;
pub(crate) use tls::bare;
pub use topic::Topic;
pub use values::{Broker, Login, Secret, Signing};

/// The path of the settings, unless `F2BMQTT_ENV` names another file (as tests do).
pub const PATH: &str = "/etc/fail2ban/mqtt.env";

/// The path of this process's settings.
#[must_use]
pub fn path() -> PathBuf {
    std::env::var_os("F2BMQTT_ENV").map_or_else(|| PATH.into(), PathBuf::from)
}

/// The settings that the package installs.
pub(crate) const SAMPLE: &str = include_str!("../../etc/mqtt.env");

/// The size limit of the settings, which usually have a few hundred bytes.
const MAX_SETTINGS_BYTES: u64 = 64 * 1024;

const SETTING_NAMES: [&str; 19] = [
    "MQTT_HOST",
    "MQTT_PORT",
    "MQTT_TLS",
    "MQTT_CAFILE",
    "MQTT_CERT",
    "MQTT_KEY",
    "MQTT_NODE",
    "MQTT_TOPIC",
    "MQTT_USER",
    "MQTT_PASSWORD",
    "MQTT_HA_PREFIX",
    "MQTT_METRICS",
    "MQTT_JAILS",
    "MQTT_NOT_JAILS",
    "MQTT_NEVER_BAN",
    "MQTT_SIGNING_KEY",
    "MQTT_ACCEPT_UNSIGNED",
    "MQTT_FAIL2BAN_SOCKET",
    "MQTT_HTTPS_PROXY",
];

/// Looks up a variable by its name.
pub type EnvLookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The valid settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// The brokers, tried in turn; never empty.
    pub brokers: Vec<Broker>,
    /// TLS, if it is on.
    pub tls: Option<Tls>,
    /// Name and password, unless the broker needs none.
    pub login: Option<Login>,
    /// The topic of the fleet.
    pub topic: Topic,
    /// This host's name in the fleet.
    pub node: HostName,
    /// The prefix of Home Assistant's discovery topics, if this host publishes a device.
    pub ha_prefix: Option<Topic>,
    /// Whether to write metrics for Prometheus.
    pub metrics: bool,
    /// How messages are signed, if they are.
    pub signing: Option<Signing>,
    /// The jails that take part.
    pub sharing: JailFilter,
    /// Networks that no message bans on this host.
    pub never_ban: Vec<IpNet>,
    /// fail2ban's socket, if it differs from fail2ban's own settings.
    pub fail2ban_socket: Option<PathBuf>,
    /// The URL of the proxy for reports to `AbuseIPDB`, which may contain a password.
    pub https_proxy: Option<Secret>,
    /// Problems in the file that do not prevent its use.
    pub warnings: Vec<String>,
}

impl Config {
    /// Reads the settings of this process: from `F2BMQTT_ENV` or [`PATH`].
    ///
    /// # Errors
    /// [`Error::Config`] with all errors in the file, or [`Error::Settings`] if it cannot be read.
    pub fn load() -> Result<Self, Error> {
        let path = path();
        let (text, mode) =
            read_file(&path).map_err(|source| Error::Settings { path: path.clone(), source })?;
        let nodename = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let mut config = Self::parse(&path, &text, &|name| variable(name, &nodename), &nodename)?;
        if mode & 0o077 != 0 {
            let path = path.display();
            config.warnings.push(format!(
                "{path} holds a password and is readable by other users; run: chmod 600 {path}"
            ));
        }
        Ok(config)
    }

    /// Whether broker, login and topic equal the values in the installed file, which may be correct by chance.
    #[must_use]
    pub fn is_sample(&self) -> bool {
        let Ok(sample) = Self::parse(Path::new(PATH), SAMPLE.as_bytes(), &|_| None, "sample")
        else {
            return false;
        };
        self.brokers == sample.brokers
            && self.topic == sample.topic
            && self.tls.is_none()
            && self.login == sample.login
    }

    /// The name by which the broker identifies this host: the one in its certificate, or else its login.
    #[must_use]
    pub fn user(&self) -> Option<String> {
        let of_certificate = self.tls.as_ref().and_then(Tls::own_name);
        of_certificate.or_else(|| self.login.as_ref().map(|login| login.user.clone()))
    }

    /// Parses the `text` of a file; `nodename` is this host's own name.
    ///
    /// # Errors
    /// All errors in the text.
    pub fn parse(
        path: &Path,
        text: &[u8],
        environment: EnvLookup<'_>,
        nodename: &str,
    ) -> Result<Self, ConfigErrors> {
        let mut file = EnvFile::read(text, environment);
        let unknown = file.unknown();
        let mut warnings: Vec<String> =
            unknown.iter().map(|(line, what)| format!("line {line}: {what}")).collect();
        warnings.extend(file.skipped_lines());
        file.check_options();
        let brokers = file.required("MQTT_HOST", values::brokers);
        let port = file.optional("MQTT_PORT", values::port);
        let tls = file.tls();
        let default_port = if tls.is_some() { values::TLS_PORT } else { values::PLAIN_PORT };
        if tls.is_some()
            && let Some(brokers) = &brokers
            && !brokers.iter().all(|broker| tls::is_server_name(&broker.host))
        {
            let line = file.line("MQTT_HOST");
            file.fault(
                line,
                "MQTT_HOST has a host name that no TLS certificate can contain".to_owned(),
            );
        }
        if let Some(key) = tls.as_ref().and_then(Tls::exposed_key) {
            let key = key.display();
            warnings.push(format!(
                "{key} is a private key and is readable by other users; run: chmod 600 {key}"
            ));
        }
        let topic = file.required("MQTT_TOPIC", Topic::of_fleet);
        let node = file.node(nodename);
        let signing = file.signing();
        let sharing = file.sharing();
        let never_ban = file.optional("MQTT_NEVER_BAN", values::networks).unwrap_or_default();
        let login = file.login();
        if login.as_ref().is_some_and(|login| login.password.reveal().is_empty()) {
            warnings.push("MQTT_USER is set but MQTT_PASSWORD is not".to_owned());
        }
        let ha_prefix = file.optional("MQTT_HA_PREFIX", Topic::new);
        let metrics = file.optional("MQTT_METRICS", values::switch).unwrap_or(false);
        let fail2ban_socket = file.optional("MQTT_FAIL2BAN_SOCKET", values::absolute_path);
        let https_proxy = file.optional("MQTT_HTTPS_PROXY", values::proxy);
        match (brokers, topic, node) {
            (Some(brokers), Some(topic), Some(node)) if file.faults.is_empty() => {
                let port = port.unwrap_or(default_port);
                let brokers =
                    brokers.into_iter().map(|broker| broker.with_default_port(port)).collect();
                Ok(Self {
                    brokers,
                    tls,
                    login,
                    topic,
                    node,
                    ha_prefix,
                    metrics,
                    signing,
                    sharing,
                    never_ban,
                    fail2ban_socket,
                    https_proxy,
                    warnings,
                })
            }
            _ => {
                // A misspelt key may be the cause of a missing one.
                file.faults.extend(unknown);
                file.faults.sort_by_key(|(line, _)| if *line == 0 { usize::MAX } else { *line });
                Err(ConfigErrors { path: path.to_owned(), faults: file.faults })
            }
        }
    }
}

/// The value of an environment variable.
fn variable(name: &str, nodename: &str) -> Option<String> {
    match std::env::var(name) {
        Ok(value) => Some(value),
        // Bash sets HOSTNAME as a shell variable, not in the environment.
        Err(_) if name == "HOSTNAME" => Some(nodename.to_owned()),
        Err(_) => None,
    }
}

/// The content of a settings file, and its mode.
fn read_file(path: &Path) -> io::Result<(Vec<u8>, u32)> {
    let file = File::open(path)?;
    let mode = file.metadata()?.permissions().mode();
    let mut text = Vec::new();
    // One byte more than the limit shows that the file exceeds it.
    file.take(MAX_SETTINGS_BYTES + 1).read_to_end(&mut text)?;
    Ok((text, mode))
}

/// Whether a variable is a setting of this program, or was meant as one.
fn is_setting(name: &str) -> bool {
    name.starts_with("MQTT_")
}

/// The parsed lines of a file and the errors found so far.
struct EnvFile<'a> {
    /// Line number and value by key.
    values: BTreeMap<String, (usize, String)>,
    /// Variables that some line used as `$NAME`.
    used: BTreeSet<String>,
    /// Lines that only bash can read and that set no setting, and the variables that they may set.
    skipped: Vec<usize>,
    unread: BTreeSet<String>,
    faults: Vec<(usize, String)>,
    environment: EnvLookup<'a>,
}

impl<'a> EnvFile<'a> {
    fn read(text: &[u8], environment: EnvLookup<'a>) -> Self {
        let mut entries = Self {
            values: BTreeMap::new(),
            used: BTreeSet::new(),
            skipped: Vec::new(),
            unread: BTreeSet::new(),
            faults: Vec::new(),
            environment,
        };
        if text.len() as u64 > MAX_SETTINGS_BYTES {
            let max = MAX_SETTINGS_BYTES / 1024;
            entries.fault(0, format!("the file is larger than {max} KiB"));
            return entries;
        }
        // Bytes that are not UTF-8 become U+FFFD, so that the error can name their line.
        for line in lines::split(&String::from_utf8_lossy(text)) {
            entries.take_line(&line);
        }
        entries
    }

    fn take_line(&mut self, EnvLine { number, text, nested }: &EnvLine) {
        const NESTED_SETTING: &str = "is inside a condition, a loop or a function, which only bash can run: write \
                              the setting outside";
        let (read, mut used) = self.parse_line(text);
        let (read, nested) = match read {
            Ok(None) => return,
            Ok(Some((key, _))) if *nested => (Err(NESTED_SETTING), Some(key)),
            read => (read, None),
        };
        match read {
            Ok(Some((key, value))) => {
                let unread = used.iter().find(|name| self.unread.contains(*name));
                if let Some(name) = unread.filter(|_| is_setting(&key)) {
                    let what =
                        format!("uses ${name}, which is set by a line that only bash can read");
                    self.fault(*number, what);
                } else if unread.is_some() {
                    self.unread.insert(key);
                } else {
                    self.unread.remove(&key);
                    self.values.insert(key, (*number, value));
                }
                self.used.append(&mut used);
            }
            Ok(None) => {}
            Err(what) => {
                let set = nested
                    .as_deref()
                    .map_or_else(|| lines::assigned_variables(text), |key| vec![key]);
                // `MQTT_HOST = hub` sets nothing in bash, but was meant as a setting. With a byte order mark, the
                // first line's name cannot be read.
                let meant = is_setting(text.trim_start()) || text.starts_with('\u{feff}');
                if meant || set.iter().any(|name| is_setting(name)) {
                    self.fault(*number, what.to_owned());
                } else {
                    self.unread.extend(set.into_iter().map(str::to_owned));
                    self.skipped.push(*number);
                }
            }
        }
    }

    /// Parses a line; also returns the variables that the line uses.
    fn parse_line(&self, text: &str) -> (env_line::Parsed, BTreeSet<String>) {
        let used = RefCell::new(BTreeSet::new());
        let parsed = match text {
            text if text.starts_with('\u{feff}') => {
                Err("begins with a byte order mark: save the file without the mark")
            }
            text if text.contains('\u{fffd}') => Err("is not UTF-8: save the file as UTF-8"),
            text if text.contains('\n') => Err("has a quote that is not closed on the same line"),
            text => env_line::read(text, &|name| {
                used.borrow_mut().insert(name.to_owned());
                let earlier = self.values.get(name).map(|(_, value)| value.clone());
                earlier.or_else(|| (self.environment)(name))
            }),
        };
        (parsed, used.into_inner())
    }

    fn fault(&mut self, line: usize, what: String) {
        self.faults.push((line, what));
    }

    /// Line and message of each key that looks like a setting but is none.
    fn unknown(&self) -> Vec<(usize, String)> {
        let mut unknown = Vec::new();
        for (key, (line, _)) in &self.values {
            if SETTING_NAMES.contains(&key.as_str()) || self.used.contains(key) {
                continue;
            }
            match nearest::nearest(key, &SETTING_NAMES) {
                Some(near) => {
                    unknown.push((*line, format!("unknown key {key}; did you mean {near}?")));
                }
                None if is_setting(key) => unknown.push((*line, format!("unknown key {key}"))),
                None => {}
            }
        }
        unknown
    }

    /// The warning about skipped lines.
    fn skipped_lines(&self) -> Option<String> {
        const MAX_NAMED: usize = 10;
        let lines: Vec<String> = self.skipped.iter().map(ToString::to_string).collect();
        let named = lines.iter().take(MAX_NAMED).cloned().collect::<Vec<_>>().join(", ");
        let more = if lines.len() > MAX_NAMED { ", …" } else { "" };
        match lines.len() {
            0 => None,
            1 => Some(format!(
                "skipped line {named}, which only bash can read and which sets no MQTT_ key"
            )),
            _ => Some(format!(
                "skipped lines {named}{more}, which only bash can read and which set no MQTT_ key"
            )),
        }
    }

    /// Rejects options of mosquitto's clients in a value, which worked with the scripts.
    fn check_options(&mut self) {
        for key in ["MQTT_HOST", "MQTT_PORT", "MQTT_TOPIC", "MQTT_USER", "MQTT_PASSWORD"] {
            let Some((line, value)) = self.values.get(key) else { continue };
            if let Some(what) = options::fault(key, value) {
                let line = *line;
                self.values.remove(key);
                self.fault(line, what);
            }
        }
    }

    /// The parsed value of `key`, if the file or the environment sets it to a valid, non-empty value.
    fn optional<T>(&mut self, key: &str, make: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let (line, value) = match self.values.get(key) {
            Some(value) => value.clone(),
            None => (0, (self.environment)(key)?),
        };
        if value.is_empty() {
            return None;
        }
        make(&value).map_err(|what| self.fault(line, format!("{key} {what}"))).ok()
    }

    /// Whether a key has a value, valid or not.
    fn is_set(&self, key: &str) -> bool {
        match self.values.get(key) {
            Some((_, value)) => !value.is_empty(),
            None => (self.environment)(key).is_some_and(|value| !value.is_empty()),
        }
    }

    /// The number of the line that sets a key; 0 for none.
    fn line(&self, key: &str) -> usize {
        self.values.get(key).map_or(0, |(line, _)| *line)
    }

    /// Reads how messages are signed. `MQTT_ACCEPT_UNSIGNED=no` without a key is an error: without a key, all
    /// messages are accepted.
    fn signing(&mut self) -> Option<Signing> {
        let keys = self.optional("MQTT_SIGNING_KEY", values::signing_keys);
        let accept = self.optional("MQTT_ACCEPT_UNSIGNED", values::yes);
        if accept == Some(false) && !self.is_set("MQTT_SIGNING_KEY") {
            let what = "MQTT_ACCEPT_UNSIGNED is no, but MQTT_SIGNING_KEY is not set".to_owned();
            self.fault(self.line("MQTT_ACCEPT_UNSIGNED"), what);
        }
        Some(Signing { keys: keys?, accept_unsigned: accept.unwrap_or(false) })
    }

    /// Reads the login. A user without a password is valid.
    fn login(&mut self) -> Option<Login> {
        let user = self.optional("MQTT_USER", values::credential);
        let password = self.optional("MQTT_PASSWORD", values::credential);
        if user.is_none() && password.is_some() {
            self.fault(0, "MQTT_PASSWORD is set but MQTT_USER is not".to_owned());
        }
        Some(Login { user: user?, password: Secret::new(password.unwrap_or_default()) })
    }

    /// Reads this host's name in the fleet; `nodename` is its own name.
    fn node(&mut self, nodename: &str) -> Option<HostName> {
        if let Some(node) = self.optional("MQTT_NODE", HostName::new) {
            return Some(node);
        }
        match HostName::new(nodename) {
            Ok(node) => Some(node),
            Err(what) => {
                self.fault(0, format!("this machine's host name {what}; set MQTT_NODE"));
                None
            }
        }
    }

    /// Reads which jails take part. A jail in both lists is an error.
    fn sharing(&mut self) -> JailFilter {
        let only = self.optional("MQTT_JAILS", values::jails);
        let not = self.optional("MQTT_NOT_JAILS", values::jails).unwrap_or_default();
        if let Some(jail) = only.iter().flatten().find(|jail| not.contains(jail)) {
            let what = format!("MQTT_NOT_JAILS and MQTT_JAILS both name {jail}");
            self.fault(self.line("MQTT_NOT_JAILS"), what);
        }
        JailFilter::new(only, not)
    }

    /// Reads the settings of TLS. Settings that ask for TLS but would leave it off are an error.
    fn tls(&mut self) -> Option<Tls> {
        let before = self.faults.len();
        let switch = self.optional("MQTT_TLS", values::switch);
        let authorities = self.optional("MQTT_CAFILE", tls::authorities_file);
        let certificate = self.optional("MQTT_CERT", tls::certificate_file);
        let key = self.optional("MQTT_KEY", tls::key_file);
        let on = switch.unwrap_or_else(|| self.is_set("MQTT_CAFILE"));
        for (setting, partner) in [("MQTT_CERT", "MQTT_KEY"), ("MQTT_KEY", "MQTT_CERT")] {
            if self.is_set(setting) && !self.is_set(partner) {
                self.fault(self.line(setting), format!("{setting} is set but {partner} is not"));
            }
        }
        if !on && !self.is_set("MQTT_TLS") && self.is_set("MQTT_CERT") {
            let what = "MQTT_CERT is set, but no CA to verify the broker: set MQTT_CAFILE, or MQTT_TLS=on \
                        for the system's CAs";
            self.fault(self.line("MQTT_CERT"), what.to_owned());
        }
        if switch == Some(false) {
            for setting in ["MQTT_CAFILE", "MQTT_CERT", "MQTT_KEY"] {
                if self.is_set(setting) {
                    let what = format!("{setting} is set, but MQTT_TLS is off: remove one of them");
                    self.fault(self.line(setting), what);
                }
            }
        }
        if !on || self.faults.len() > before {
            return None;
        }
        let tls = Tls::new(authorities, certificate.zip(key));
        match tls.client() {
            Ok(_) => Some(tls),
            Err(what) => {
                let setting = what.split(' ').next().unwrap_or_default();
                self.fault(self.line(setting), what);
                None
            }
        }
    }

    /// As [`Self::optional`]; a missing value is an error.
    fn required<T>(&mut self, key: &str, make: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let before = self.faults.len();
        let value = self.optional(key, make);
        if value.is_none() && self.faults.len() == before {
            self.fault(self.line(key), format!("{key} is not set"));
        }
        value
    }
}

#[cfg(test)]
mod tests;
