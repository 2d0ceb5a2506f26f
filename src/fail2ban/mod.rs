//! Talks to fail2ban on this host: a client for its server's socket, and a reader of its database.
//!
//! A request is a pickled list of strings and the end marker; the reply is a pickled pair of a
//! status (0: success) and a value, and the same marker (fail2ban's `client/csocket.py` and
//! `protocol.py`).

pub mod action_names;
mod answer;
mod column;
pub mod database;
pub mod pickle;
pub mod settings;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::error::Fail2banError;
use crate::model::address_map::AddressMap;
use crate::model::{Address, Jail};
use answer::{
    clamp_bantime, explain, field, ignoreip_entries, parse_ticket, read_number, read_texts,
    text_or_empty,
};
use pickle::PickleValue;

const END_MARKER: &[u8] = b"<F2B_END_COMMAND>";

/// The longest reply that is read, enough for the list of some 200,000 bans.
const MAX_REPLY_BYTES: usize = 32 * 1024 * 1024;

/// fail2ban answers queries in microseconds, but handles earlier bans first.
const QUERY_TIMEOUT: Duration = Duration::from_secs(20);

/// fail2ban kills an action after 60 s, and a batch runs a few of them.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(150);

/// A connection to fail2ban's server.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: UnixStream,
}

impl Client {
    /// Connects to the server's socket.
    ///
    /// # Errors
    /// [`Fail2banError::Unreachable`].
    pub async fn connect(path: &Path) -> Result<Self, Fail2banError> {
        let connected = UnixStream::connect(path).await;
        let stream = connected
            .map_err(|source| Fail2banError::Unreachable { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), stream })
    }

    /// All jails with names that can be shared.
    ///
    /// # Errors
    /// Any [`Fail2banError`].
    pub async fn jails(&mut self) -> Result<BTreeSet<Jail>, Fail2banError> {
        Ok(self.jail_names().await?.iter().filter_map(|name| Jail::new(name).ok()).collect())
    }

    /// The names of all jails, including those that cannot be shared.
    ///
    /// # Errors
    /// Any [`Fail2banError`].
    pub async fn jail_names(&mut self) -> Result<Vec<String>, Fail2banError> {
        self.call(&["status"], QUERY_TIMEOUT, |status| {
            let list = field(status, "Jail list")?.text()?;
            let names = list.split(',').map(str::trim).filter(|name| !name.is_empty());
            Some(names.map(str::to_owned).collect())
        })
        .await
    }

    /// The addresses among a few that a jail bans now. fail2ban compares each with every ban, in Python, so
    /// [`Self::bans`] is faster for three or more.
    ///
    /// # Errors
    /// Any [`Fail2banError`].
    pub async fn is_banned(
        &mut self,
        jail: &Jail,
        addresses: &[Address],
    ) -> Result<BTreeSet<Address>, Fail2banError> {
        let texts: Vec<String> = addresses.iter().map(|address| format_address(*address)).collect();
        let mut command = vec!["get", jail.as_str(), "banned"];
        command.extend(texts.iter().map(String::as_str));
        self.call(&command, QUERY_TIMEOUT, |answer| {
            // fail2ban answers one address with a number, several with a list of numbers.
            let numbers = answer.list().unwrap_or(std::slice::from_ref(answer));
            let numbers: Vec<i64> = numbers.iter().map(PickleValue::int).collect::<Option<_>>()?;
            let banned = addresses.iter().zip(&numbers).filter(|(_, number)| **number != 0);
            let banned = banned.map(|(address, _)| *address).collect();
            (numbers.len() == addresses.len()).then_some(banned)
        })
        .await
    }

    /// Every address that a jail bans now, with its bantime in seconds (below 0: permanent; `None`: unreadable).
    ///
    /// # Errors
    /// Any [`Fail2banError`].
    pub async fn bans(&mut self, jail: &Jail) -> Result<AddressMap<Option<i64>>, Fail2banError> {
        let command = ["get", jail.as_str(), "banip", "--with-time"];
        self.call(&command, QUERY_TIMEOUT, |answer| {
            Some(answer.list()?.iter().filter_map(|one| parse_ticket(one.text()?)).collect())
        })
        .await
    }

    /// The number of bans that a jail has made since it started.
    ///
    /// # Errors
    /// Any [`Fail2banError`].
    pub async fn total_bans(&mut self, jail: &Jail) -> Result<i64, Fail2banError> {
        self.call(&["status", jail.as_str()], QUERY_TIMEOUT, |status| {
            field(field(status, "Actions")?, "Total banned")?.int()
        })
        .await
    }

    /// fail2ban's version.
    ///
    /// # Errors
    /// Any [`Fail2banError`].
    pub async fn version(&mut self) -> Result<String, Fail2banError> {
        self.call(&["version"], QUERY_TIMEOUT, |answer| answer.text().map(str::to_owned)).await
    }

    /// The actions of a jail, by name.
    ///
    /// # Errors
    /// Any [`Fail2banError`].
    pub async fn actions(&mut self, jail: &Jail) -> Result<Vec<String>, Fail2banError> {
        self.texts(jail, "actions").await
    }

    /// The names that a jail's actions pass to programs such as notify: the jail's name, unless the jail sets
    /// another.
    ///
    /// # Errors
    /// Any [`Fail2banError`].
    pub async fn action_names(&mut self, jail: &Jail) -> Result<BTreeSet<Jail>, Fail2banError> {
        let mut names = BTreeSet::new();
        for action in self.actions(jail).await? {
            let name = self.property(jail, &action, "name").await?;
            names.extend(Jail::new(&name));
        }
        Ok(names)
    }

    /// The log files that a jail reads; none if it reads the journal.
    ///
    /// # Errors
    /// Any [`Fail2banError`] except that fail2ban rejects the command.
    pub async fn logs(&mut self, jail: &Jail) -> Result<Vec<String>, Fail2banError> {
        match self.texts(jail, "logpath").await {
            Err(Fail2banError::Rejected { .. }) => Ok(Vec::new()),
            answer => answer,
        }
    }

    /// A property of a jail's action, such as `actionban`; empty if the action does not list it. A query for a
    /// missing property would make fail2ban log an error.
    ///
    /// # Errors
    /// Any [`Fail2banError`].
    pub async fn property(
        &mut self,
        jail: &Jail,
        action: &str,
        name: &str,
    ) -> Result<String, Fail2banError> {
        let command = ["get", jail.as_str(), "actionproperties", action];
        let names = self.call(&command, QUERY_TIMEOUT, read_texts).await?;
        if !names.iter().any(|listed| listed == name) {
            return Ok(String::new());
        }
        let command = ["get", jail.as_str(), "action", action, name];
        self.call(&command, QUERY_TIMEOUT, |answer| Some(text_or_empty(answer))).await
    }

    async fn texts(&mut self, jail: &Jail, what: &str) -> Result<Vec<String>, Fail2banError> {
        self.call(&["get", jail.as_str(), what], QUERY_TIMEOUT, read_texts).await
    }

    /// The command that decides which addresses a jail ignores; empty if the jail has none.
    ///
    /// # Errors
    /// Any [`Fail2banError`].
    pub async fn ignore_command(&mut self, jail: &Jail) -> Result<String, Fail2banError> {
        let command = ["get", jail.as_str(), "ignorecommand"];
        Ok(self
            .call(&command, QUERY_TIMEOUT, |answer| Some(text_or_empty(answer)))
            .await?
            .trim()
            .to_owned())
    }

    /// How long the database keeps old rows, in seconds.
    ///
    /// # Errors
    /// Any [`Fail2banError`].
    pub async fn purge_age(&mut self) -> Result<i64, Fail2banError> {
        // The answer is Python's None if fail2ban keeps no database.
        let command = ["get", "dbpurgeage"];
        self.call(&command, QUERY_TIMEOUT, |answer| Some(answer.int().unwrap_or(0))).await
    }

    /// The PID of the server; 0 if unknown.
    #[must_use]
    pub fn pid(&self) -> i32 {
        let peer = self.stream.peer_cred();
        peer.ok().and_then(|peer| peer.pid()).unwrap_or_default()
    }

    /// A jail's bantime in seconds; below 0: permanent.
    ///
    /// # Errors
    /// Any [`Fail2banError`].
    pub async fn bantime(&mut self, jail: &Jail) -> Result<i64, Fail2banError> {
        let command = ["get", jail.as_str(), "bantime"];
        self.call(&command, QUERY_TIMEOUT, |answer| answer.int().map(clamp_bantime)).await
    }

    /// A jail's `ignoreip`: addresses, networks, host names and `file:` entries, as configured.
    ///
    /// # Errors
    /// Any [`Fail2banError`].
    pub async fn ignored(&mut self, jail: &Jail) -> Result<Vec<String>, Fail2banError> {
        self.call(&["get", jail.as_str(), "ignoreip"], QUERY_TIMEOUT, |answer| {
            Some(answer.list()?.iter().flat_map(ignoreip_entries).collect())
        })
        .await
    }

    /// Bans addresses in a jail; returns how many were not banned before.
    ///
    /// # Errors
    /// Any [`Fail2banError`].
    pub async fn ban(&mut self, jail: &Jail, addresses: &[Address]) -> Result<i64, Fail2banError> {
        self.command(jail, "banip", addresses).await
    }

    /// Unbans addresses in a jail; returns how many were banned.
    ///
    /// # Errors
    /// Any [`Fail2banError`].
    pub async fn unban(
        &mut self,
        jail: &Jail,
        addresses: &[Address],
    ) -> Result<i64, Fail2banError> {
        self.command(jail, "unbanip", addresses).await
    }

    /// The number of failures that lead to a ban in a jail.
    ///
    /// # Errors
    /// Any [`Fail2banError`].
    pub async fn max_retry(&mut self, jail: &Jail) -> Result<i64, Fail2banError> {
        self.call(&["get", jail.as_str(), "maxretry"], QUERY_TIMEOUT, read_number).await
    }

    /// Makes a jail detect an address; each text counts as a failure. The ban follows a moment later, without regard
    /// to `ignoreip`.
    ///
    /// # Errors
    /// Any [`Fail2banError`].
    pub async fn attempt(
        &mut self,
        jail: &Jail,
        address: Address,
        failures: &[&str],
    ) -> Result<(), Fail2banError> {
        let address = format_address(address);
        let mut command = vec!["set", jail.as_str(), "attempt", &address];
        command.extend(failures);
        self.call(&command, QUERY_TIMEOUT, |_| Some(())).await
    }

    /// Runs a command that counts the addresses it applies to.
    async fn command(
        &mut self,
        jail: &Jail,
        what: &str,
        addresses: &[Address],
    ) -> Result<i64, Fail2banError> {
        let texts: Vec<String> = addresses.iter().map(|address| format_address(*address)).collect();
        let mut command = vec!["set", jail.as_str(), what];
        command.extend(texts.iter().map(String::as_str));
        self.call(&command, COMMAND_TIMEOUT, read_number).await
    }

    /// The path of the database, if fail2ban keeps one.
    ///
    /// # Errors
    /// Any [`Fail2banError`].
    pub async fn database(&mut self) -> Result<Option<PathBuf>, Fail2banError> {
        self.call(&["get", "dbfile"], QUERY_TIMEOUT, |answer| {
            Some(answer.text().filter(|path| path.starts_with('/')).map(PathBuf::from))
        })
        .await
    }

    /// Sends one command and reads its answer; `read` returns `None` if the answer has an unexpected type.
    async fn call<T>(
        &mut self,
        command: &[&str],
        limit: Duration,
        read: impl FnOnce(&PickleValue<'_>) -> Option<T>,
    ) -> Result<T, Fail2banError> {
        let exchange = async {
            self.stream.write_all(&pickle::write(command)).await?;
            self.stream.write_all(END_MARKER).await?;
            self.read_reply().await
        };
        let reply = match timeout(limit, exchange).await {
            Err(_) => {
                let (command, seconds) = (shorten(command), limit.as_secs());
                return Err(Fail2banError::Timeout { command, seconds });
            }
            Ok(Err(source)) => {
                return Err(Fail2banError::Unreachable { path: self.path.clone(), source });
            }
            Ok(Ok(reply)) => reply,
        };
        match pickle::read(&reply).map_err(|fault| unreadable(command, &fault.to_string()))? {
            PickleValue::List(pair) if pair.len() == 2 && pair[0].int() == Some(0) => {
                read(&pair[1]).ok_or_else(|| unreadable(command, "unexpected type"))
            }
            answer => {
                let why = match &answer {
                    PickleValue::List(pair) if pair.len() == 2 => explain(&pair[1]),
                    other => explain(other),
                };
                let (jail, command) = (jail_of(command), shorten(command));
                Err(Fail2banError::Rejected { jail, command, why })
            }
        }
    }

    async fn read_reply(&mut self) -> io::Result<Vec<u8>> {
        let mut reply = Vec::with_capacity(4096);
        loop {
            let before = reply.len();
            if self.stream.read_buf(&mut reply).await? == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "fail2ban closed the connection",
                ));
            }
            if reply.ends_with(END_MARKER) {
                reply.truncate(reply.len() - END_MARKER.len());
                return Ok(reply);
            }
            debug_assert!(reply.len() > before);
            if reply.len() > MAX_REPLY_BYTES {
                return Err(io::Error::other(format!(
                    "the answer is larger than {} MiB",
                    MAX_REPLY_BYTES >> 20
                )));
            }
        }
    }
}

/// Asks the server at a socket for the path of its database, if it keeps one.
///
/// # Errors
/// Any [`Fail2banError`].
pub async fn database_path(socket: &Path) -> Result<Option<PathBuf>, Fail2banError> {
    const DATABASE_PATH_TIMEOUT: Duration = Duration::from_secs(5);
    let query = async { Client::connect(socket).await?.database().await };
    timeout(DATABASE_PATH_TIMEOUT, query).await.map_err(|_| Fail2banError::Timeout {
        command: "get dbfile".to_owned(),
        seconds: DATABASE_PATH_TIMEOUT.as_secs(),
    })?
}

/// The jail of a command, which is the second argument of `get JAIL …`, `set JAIL …` and `status JAIL`.
fn jail_of(command: &[&str]) -> Option<Jail> {
    command.get(1).and_then(|name| Jail::new(name).ok())
}

fn unreadable(command: &[&str], fault: &str) -> Fail2banError {
    let (jail, command) = (jail_of(command), shorten(command));
    Fail2banError::Unreadable { jail, command, why: fault.to_owned() }
}

/// An address as fail2ban writes and compares it, by `inet_ntop(3)`: the last 32 bits of an IPv4-compatible IPv6
/// address have dots (`::192.0.2.1`).
pub(crate) fn format_address(address: Address) -> String {
    match address.ip() {
        IpAddr::V6(ip) => match u32::try_from(ip.to_bits()) {
            Ok(bits @ 0x1_0000..) => format!("::{}", Ipv4Addr::from(bits)),
            _ => ip.to_string(),
        },
        IpAddr::V4(ip) => ip.to_string(),
    }
}

/// The first arguments of a command, for a message.
fn shorten(command: &[&str]) -> String {
    const MAX_ARGUMENTS: usize = 4;
    let mut text = command.iter().take(MAX_ARGUMENTS).copied().collect::<Vec<_>>().join(" ");
    if command.len() > MAX_ARGUMENTS {
        text.push_str(" …");
    }
    text
}

#[cfg(test)]
mod tests;
