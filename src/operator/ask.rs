//! Before something that reaches far, a person is asked; a script has to say that it means it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::net::IpAddr;

use crate::error::Error;
use crate::wire::Address;

/// More addresses at once are asked about.
const MANY: usize = 10;

/// How many processes may stand between a command and the session that it belongs to.
const GENERATIONS: usize = 32;

/// Reads the addresses of a command; each counts once.
///
/// # Errors
/// [`Error::Usage`]
pub fn addresses(texts: &[String]) -> Result<Vec<Address>, Error> {
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

/// Asks whether it is meant, where it is of many addresses.
///
/// # Errors
/// [`Error::Undone`] where it is not.
pub fn confirm_bulk(doing: &str, addresses: &[Address], yes: bool) -> Result<(), Error> {
    if yes || addresses.len() <= MANY {
        return Ok(());
    }
    confirm(&format!("{doing} {} addresses on every host", addresses.len()))
}

/// Asks whether it is meant.
///
/// # Errors
/// [`Error::Undone`] where it is not.
pub fn confirm(what: &str) -> Result<(), Error> {
    let (mut out, mut answer) = (io::stderr(), String::new());
    if !io::stdin().is_terminal() {
        return Err(Error::Undone(format!(
            "{what}? Nothing was done: standard input is not a terminal. Use --yes to confirm"
        )));
    }
    let _ = write!(out, "{what}? [y/N] ").and_then(|()| out.flush());
    let read = io::stdin().lock().read_line(&mut answer);
    let yes = read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes");
    if yes { Ok(()) } else { Err(Error::Undone("nothing was done".to_owned())) }
}

/// Where the operator's own session comes from, as sshd says (ssh(1), `SSH_CONNECTION`). sudo takes that
/// from the environment, but not from that of the shell which called it.
#[must_use]
pub fn clients() -> BTreeSet<IpAddr> {
    let own = std::env::var("SSH_CONNECTION").ok();
    let mut clients: BTreeSet<IpAddr> = own.as_deref().and_then(client).into_iter().collect();
    let mut process = std::os::unix::process::parent_id().cast_signed();
    for _ in 0..GENERATIONS {
        let environment = fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
        let variables =
            environment.split(|byte| *byte == 0).filter_map(|one| str::from_utf8(one).ok());
        let said = variables.filter_map(|one| one.strip_prefix("SSH_CONNECTION="));
        clients.extend(said.filter_map(client));
        let Some(parent) = parent(process) else { break };
        process = parent;
    }
    clients
}

fn client(connection: &str) -> Option<IpAddr> {
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
    fn the_operator_s_own_address_is_known() {
        let ip = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        assert_eq!(client("203.0.113.9 4711 192.0.2.10 22"), ip("203.0.113.9"));
        assert_eq!(client("::ffff:203.0.113.9 4711 ::1 22"), ip("203.0.113.9"));
        assert_eq!(client("fe80::1%eth0 4711 fe80::2 22"), ip("fe80::1"));
        assert_eq!(client(""), None);
        assert_eq!(parent_in("4711 (a) b) S 815 4711 4711 0"), Some(815));
        assert_eq!(parent_in(""), None);
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let own = std::os::unix::process::parent_id().cast_signed();
        assert_eq!(parent_in(&stat), Some(own));
    }

    #[test]
    fn addresses_count_once_and_a_network_is_none() {
        let texts = |of: &[&str]| of.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let read = addresses(&texts(&["192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1"])).unwrap();
        assert_eq!(read.len(), 2);
        let error = addresses(&texts(&["192.0.2.0/24"])).unwrap_err();
        assert_eq!(error.to_string(), "IP must be one IPv4 or IPv6 address, not 192.0.2.0/24");
        let few: Vec<_> =
            (1..=10).map(|n| Address::new(&format!("192.0.2.{n}")).unwrap()).collect();
        assert!(confirm_bulk("Ban", &few, false).is_ok());
    }
}
