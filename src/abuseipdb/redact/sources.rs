//! Finds what of this host must not become public: its names, its addresses, and people's accounts.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;

use super::text::Private;
use crate::guard::own_addresses;

/// The lowest UID of people's accounts (`UID_MIN` of login.defs(5) on Debian).
const FIRST_UID: u32 = 1000;

impl Private {
    /// Reads names, addresses and accounts of this host. A file that cannot be read contributes nothing.
    #[must_use]
    pub fn of_this_host() -> Self {
        let own = own_addresses();
        let mut names = host_names(&read_text("/etc/hosts"), &own);
        names.insert(rustix::system::uname().nodename().to_string_lossy().into_owned());
        for path in ["/etc/hostname", "/etc/mailname"] {
            names.insert(read_text(path).trim().to_owned());
        }
        let without_domain: Vec<_> =
            names.iter().filter_map(|name| Some(name.split_once('.')?.0.to_owned())).collect();
        names.extend(without_domain);
        names.retain(|name| !is_common_name(name));
        Self {
            names: names.into_iter().collect(),
            addresses: own.into_iter().map(|address| address.to_canonical()).collect(),
            accounts: accounts(&read_text("/etc/passwd")),
        }
    }
}

/// The text of a file; empty if the file cannot be read.
fn read_text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The names that hosts(5) has for this host's own addresses; Debian puts the host's name at 127.0.1.1.
fn host_names(hosts: &str, own: &[IpAddr]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for line in hosts.lines() {
        let mut fields = line.split('#').next().unwrap_or("").split_ascii_whitespace();
        let address = fields.next().and_then(|field| field.parse::<IpAddr>().ok());
        if address.is_some_and(|address| address.is_loopback() || own.contains(&address)) {
            names.extend(fields.map(str::to_owned));
        }
    }
    names
}

/// Whether every host has this name, so that it identifies none.
fn is_common_name(name: &str) -> bool {
    name.is_empty() || name.starts_with("localhost") || name.starts_with("ip6-")
}

fn accounts(passwd: &str) -> Vec<String> {
    passwd.lines().filter_map(account).collect()
}

/// The account in a line of passwd(5), if it is a person's.
fn account(line: &str) -> Option<String> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let uid: u32 = fields.nth(1)?.parse().ok()?;
    (uid >= FIRST_UID).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_own_addresses_are_private() {
        let hosts = "127.0.0.1 localhost\n127.0.1.1\tweb1.example.org web1 # this host\n\
                     192.0.2.10 mail\n192.0.2.11 other\n::1 ip6-localhost\nodd";
        let own = ["192.0.2.10".parse().unwrap()];
        let names = host_names(hosts, &own);
        let expected = ["localhost", "web1.example.org", "web1", "mail", "ip6-localhost"];
        assert_eq!(names, expected.map(str::to_owned).into());
        assert!(is_common_name("localhost.localdomain") && !is_common_name("web1"));
    }

    #[test]
    fn accounts_with_a_uid_from_1000_are_people() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nann:x:1000:1000::/home/ann:/bin/sh\n\
                      svc:x:999:999::/:/bin/false\n::1001\nodd\nbob:x:many:1:::\n";
        assert_eq!(accounts(passwd), ["ann"]);
    }
}
