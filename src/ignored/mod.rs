//! Which addresses are never banned here, and why: those in a jail's `ignoreip`, which `banip` passes over,
//! those that the settings name, this host's own, and the broker's. [`Exempt`] gathers them.

mod exempt;
mod names;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

pub use exempt::{Exempt, own_addresses};
use ipnet::IpNet;

use crate::guard::Refusal;
use crate::wire::Address;

/// Why an address is not to be banned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Because {
    /// `MQTT_NEVER_BAN` has it.
    Settings,
    /// It is this host's own.
    Own,
    /// It is the broker's.
    Broker,
    /// The jail's `ignoreip` has it.
    Jail,
    /// The jail's `ignoreip` has a name that was never resolved: it may stand for this address.
    Unresolved,
}

impl Because {
    /// What it is counted as.
    #[must_use]
    pub fn refusal(self) -> Refusal {
        match self {
            Self::Settings => Refusal::NeverBan,
            Self::Own | Self::Broker | Self::Jail | Self::Unresolved => Refusal::Ignored,
        }
    }

    /// Whether an import that stands has to go; one of which it is not known whether it may stand stays.
    #[must_use]
    pub fn ends_imports(self) -> bool {
        self != Self::Unresolved
    }
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Settings => "it is in MQTT_NEVER_BAN",
            Self::Own => "it is this host's own",
            Self::Broker => "it is the broker's",
            Self::Jail => "it is in ignoreip",
            Self::Unresolved => "a name in ignoreip cannot be resolved",
        })
    }
}

/// Whom a jail is never to ban.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ignored {
    addresses: BTreeMap<IpAddr, Because>,
    networks: BTreeMap<IpNet, Because>,
    /// A name of the jail's was never resolved: any address may be one of its.
    incomplete: bool,
}

impl Ignored {
    /// Adds an address or a network; of several reasons the first stays.
    pub fn add(&mut self, network: IpNet, because: Because) {
        if network.prefix_len() == network.max_prefix_len() {
            self.addresses.entry(network.addr().to_canonical()).or_insert(because);
        } else {
            self.networks.entry(network).or_insert(because);
        }
    }

    /// A name of the jail's was never resolved.
    pub fn set_incomplete(&mut self) {
        self.incomplete = true;
    }

    /// Why an address is not to be banned, if it is not.
    #[must_use]
    pub fn covers(&self, address: Address) -> Option<Because> {
        let ip = address.ip();
        let of_network = || self.networks.iter().find(|(network, _)| network.contains(&ip));
        let known = self.addresses.get(&ip).or_else(|| of_network().map(|(_, because)| because));
        known.copied().or(self.incomplete.then_some(Because::Unresolved))
    }

    /// Whether a name was never resolved, so that nothing is imported.
    #[must_use]
    pub fn is_incomplete(&self) -> bool {
        self.incomplete
    }
}

/// An address, `address/bits` or `address/mask`. What is written for IPv4 as IPv6 is IPv4.
#[must_use]
pub fn network(text: &str) -> Option<IpNet> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(IpNet::from(address.to_canonical()));
    }
    let network = if let Ok(network) = text.parse::<IpNet>() {
        network
    } else {
        let (address, mask) = text.split_once('/')?;
        IpNet::with_netmask(address.parse().ok()?, mask.parse().ok()?).ok()?
    };
    let mapped = match network.addr() {
        IpAddr::V6(address) => address.to_ipv4_mapped().zip(network.prefix_len().checked_sub(96)),
        IpAddr::V4(_) => None,
    };
    match mapped {
        Some((address, bits)) => IpNet::new(address.into(), bits).ok(),
        None => Some(network),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_networks_and_masks_cover_what_is_in_them() {
        let mut ignored = Ignored::default();
        let entries = [
            "127.0.0.1/8",
            "::1",
            "192.0.2.7",
            "198.51.100.0/255.255.255.0",
            "2001:db8::/32",
            "::ffff:203.0.113.10",
            "::ffff:100.64.0.0/106",
        ];
        for entry in entries {
            ignored.add(network(entry).unwrap(), Because::Jail);
        }
        ignored.add(network("192.0.2.7").unwrap(), Because::Own);
        ignored.add(network("192.0.2.9").unwrap(), Because::Own);
        let jail = Some(Because::Jail);
        let table = [
            ("127.1.2.3", jail),
            ("::1", jail),
            ("192.0.2.7", jail),
            ("192.0.2.8", None),
            ("192.0.2.9", Some(Because::Own)),
            ("198.51.100.200", jail),
            ("198.51.101.1", None),
            ("2001:db8:1::1", jail),
            ("2001:db9::1", None),
            ("203.0.113.10", jail),
            ("::ffff:203.0.113.10", jail),
            ("100.127.0.1", jail),
            ("100.128.0.1", None),
        ];
        for (address, because) in table {
            assert_eq!(ignored.covers(Address::new(address).unwrap()), because, "{address}");
        }
        for text in ["web.example", "192.0.2.1/33", "192.0.2.0/255.0.255.0", "", "/8", "1.2.3"] {
            assert_eq!(network(text), None, "{text}");
        }
    }
}
