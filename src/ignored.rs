//! Which addresses a jail is never to ban: fail2ban's `ignoreip`, which `banip` passes over, and this
//! host's own.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio::net::lookup_host;
use tokio::time::timeout;

use crate::wire::Address;

/// A jail's `ignoreip`, read.
#[derive(Clone, Debug, Default)]
pub struct Ignored {
    networks: Vec<IpNet>,
}

impl Ignored {
    /// Reads the entries of `get JAIL ignoreip`; answers, too, those that are names.
    pub fn read<'a>(entries: impl IntoIterator<Item = &'a str>) -> (Self, Vec<&'a str>) {
        let (mut ignored, mut names) = (Self::default(), Vec::new());
        for entry in entries {
            match network(entry.trim()) {
                Some(network) => ignored.networks.push(network),
                None => names.push(entry.trim()),
            }
        }
        (ignored, names)
    }

    /// Adds single addresses: what a name stands for, or this host's own.
    pub fn extend(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.networks.extend(addresses.into_iter().map(|ip| IpNet::from(ip.to_canonical())));
    }

    /// Whether an address is not to be banned.
    #[must_use]
    pub fn covers(&self, address: Address) -> bool {
        self.networks.iter().any(|network| network.contains(&address.ip()))
    }
}

/// What the names in `ignoreip` stand for, asked again each minute. A name server that is away takes
/// nobody's name from the list.
#[derive(Debug, Default)]
pub struct Names {
    known: HashMap<String, (Instant, Vec<IpAddr>)>,
}

impl Names {
    const FRESH: Duration = Duration::from_mins(1);
    const PATIENCE: Duration = Duration::from_secs(2);

    /// The addresses of a name; none where it never resolved.
    pub async fn addresses(&mut self, name: &str) -> Vec<IpAddr> {
        let last = self.known.get(name);
        if let Some((_, addresses)) = last.filter(|(asked, _)| asked.elapsed() < Self::FRESH) {
            return addresses.clone();
        }
        let last = last.map(|(_, addresses)| addresses.clone()).unwrap_or_default();
        let addresses = match timeout(Self::PATIENCE, lookup_host((name, 0))).await {
            Ok(Ok(found)) => found.map(|address| address.ip()).collect(),
            Ok(Err(_)) | Err(_) => last,
        };
        self.known.insert(name.to_owned(), (Instant::now(), addresses.clone()));
        addresses
    }
}

/// An address, `address/bits` or `address/mask`.
fn network(text: &str) -> Option<IpNet> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(IpNet::from(address.to_canonical()));
    }
    if let Ok(network) = text.parse() {
        return Some(network);
    }
    let (address, mask) = text.split_once('/')?;
    IpNet::with_netmask(address.parse().ok()?, mask.parse().ok()?).ok()
}

/// The addresses of this host's own interfaces; none where they cannot be had.
#[must_use]
pub fn own_addresses() -> Vec<IpAddr> {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    interfaces.iter().map(if_addrs::Interface::ip).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_networks_and_masks_cover_and_names_are_left_over() {
        let entries = [
            "127.0.0.1/8",
            "::1",
            "192.0.2.7",
            "198.51.100.0/255.255.255.0",
            "2001:db8::/32",
            "web.example",
        ];
        let (mut ignored, names) = Ignored::read(entries);
        assert_eq!(names, ["web.example"]);
        ignored.extend(["203.0.113.9".parse().unwrap(), "::ffff:203.0.113.10".parse().unwrap()]);
        let table = [
            ("127.1.2.3", true),
            ("::1", true),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("198.51.100.200", true),
            ("198.51.101.1", false),
            ("2001:db8:1::1", true),
            ("2001:db9::1", false),
            ("203.0.113.9", true),
            ("203.0.113.10", true),
        ];
        for (address, covered) in table {
            let address = Address::new(address).unwrap();
            assert_eq!(ignored.covers(address), covered, "{address}");
        }
    }

    #[tokio::test]
    async fn a_name_stands_for_its_addresses_and_one_that_does_not_resolve_for_none() {
        let mut names = Names::default();
        assert!(names.addresses("localhost").await.iter().all(IpAddr::is_loopback));
        assert!(!names.addresses("localhost").await.is_empty());
        assert!(names.addresses("no.such.host.invalid").await.is_empty());
    }

    #[test]
    fn this_host_s_own_addresses_are_known() {
        assert!(own_addresses().iter().any(IpAddr::is_loopback));
    }
}
