//! Confirmation of commands that affect many bans or hosts. A script confirms with `--yes`.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::net::IpAddr;

use crate::error::Error;
use crate::model::Address;

/// Commands with more addresses need a confirmation.
const MAX_UNCONFIRMED: usize = 10;

/// How many ancestors of the command are searched for its SSH session.
const MAX_ANCESTORS: usize = 32;

/// Reads the addresses of a command; each counts once.
///
/// # Errors
/// [`Error::Usage`]
pub fn parse_addresses(texts: &[String]) -> Result<Vec<Address>, Error> {
    let mut addresses = Vec::new();
    for text in texts {
        let address = Address::new(text).map_err(|what| {
            let shown: String = text.escape_debug().take(50).collect();
            Error::Usage(format!("IP {what}, not {shown}"))
        })?;
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

/// Asks for confirmation if a command has more than 10 addresses and no `--yes`.
///
/// # Errors
/// [`Error::Failed`] if the operator declines.
pub fn confirm_bulk(doing: &str, addresses: &[Address], yes: bool) -> Result<(), Error> {
    if yes || addresses.len() <= MAX_UNCONFIRMED {
        return Ok(());
    }
    confirm(&format!("{doing} {} addresses on every host", addresses.len()))
}

/// Asks for confirmation on the terminal.
///
/// # Errors
/// [`Error::Failed`] if the operator declines, or standard input is no terminal.
pub fn confirm(what: &str) -> Result<(), Error> {
    let (mut out, mut answer) = (io::stderr(), String::new());
    if !io::stdin().is_terminal() {
        return Err(Error::Failed(format!(
            "{what}? Nothing was done: standard input is not a terminal. Use --yes to confirm"
        )));
    }
    let _ = write!(out, "{what}? [y/N] ").and_then(|()| out.flush());
    let read = io::stdin().lock().read_line(&mut answer);
    let yes = read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes");
    if yes { Ok(()) } else { Err(Error::Failed("nothing was done".to_owned())) }
}

/// The addresses that the operator's session comes from (ssh(1), `SSH_CONNECTION`). sudo removes the variable from its
/// own environment, but the environment of the calling shell still has the variable.
#[must_use]
pub fn ssh_client_addresses() -> BTreeSet<IpAddr> {
    let own = std::env::var("SSH_CONNECTION").ok();
    let mut addresses: BTreeSet<IpAddr> =
        own.as_deref().and_then(ssh_client_address).into_iter().collect();
    let mut process = std::os::unix::process::parent_id().cast_signed();
    for _ in 0..MAX_ANCESTORS {
        let environment = fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
        let variables = environment
            .split(|byte| *byte == 0)
            .filter_map(|variable| str::from_utf8(variable).ok());
        let connections = variables.filter_map(|variable| variable.strip_prefix("SSH_CONNECTION="));
        addresses.extend(connections.filter_map(ssh_client_address));
        let Some(parent) = parent(process) else { break };
        process = parent;
    }
    addresses
}

fn ssh_client_address(connection: &str) -> Option<IpAddr> {
    let first = connection.split(' ').next()?;
    // sshd may add the zone of a link-local address.
    let address = first.split('%').next()?.parse::<IpAddr>().ok()?;
    Some(address.to_canonical())
}

/// The parent of a process, unless that is PID 1.
pub(super) fn parent(process: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    parent_in(&stat).filter(|parent| *parent > 1)
}

/// The parent in a process's `stat` (proc(5)); its name before that may have any character.
fn parent_in(stat: &str) -> Option<i32> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_ssh_clients_are_found() {
        let table = [
            ("203.0.113.9 4711 192.0.2.10 22", Some("203.0.113.9")),
            ("::ffff:203.0.113.9 4711 ::1 22", Some("203.0.113.9")),
            ("fe80::1%eth0 4711 fe80::2 22", Some("fe80::1")),
            ("", None),
        ];
        for (connection, expected) in table {
            let expected: Option<IpAddr> = expected.map(|text| text.parse().unwrap());
            assert_eq!(ssh_client_address(connection), expected, "{connection}");
        }
        assert_eq!(parent_in("4711 (a) b) S 815 4711 4711 0"), Some(815));
        assert_eq!(parent_in(""), None);
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let own = std::os::unix::process::parent_id().cast_signed();
        assert_eq!(parent_in(&stat), Some(own));
    }

    #[test]
    fn repeated_addresses_count_once_and_a_network_is_rejected() {
        let texts = ["192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1"].map(str::to_owned);
        assert_eq!(parse_addresses(&texts).unwrap().len(), 2);
        let error = parse_addresses(&["192.0.2.0/24".to_owned()]).unwrap_err();
        assert_eq!(error.to_string(), "IP must be one IPv4 or IPv6 address, not 192.0.2.0/24");
        let few: Vec<_> =
            (1..=10).map(|n| Address::new(&format!("192.0.2.{n}")).unwrap()).collect();
        assert!(confirm_bulk("Ban", &few, false).is_ok());
    }
}
