//! Exempt addresses (R1): those in a jail's `ignoreip`, which `banip` bypasses, those in `MQTT_NEVER_BAN`, this host's
//! own, and the broker's. [`super::IgnoreListResolver`] collects them.

pub(super) mod names;

use std::collections::BTreeMap;
use std::fmt;
use std::iter;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::guard::{RejectReason, embedded_ipv4};
use crate::model::Address;

/// Why an address is exempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum IgnoreReason {
    /// `MQTT_NEVER_BAN` has the address.
    Settings,
    /// The address is this host's own.
    Own,
    /// The address is the broker's.
    Broker,
    /// The jail's `ignoreip` has the address.
    Jail,
    /// The jail's `ignoreip` has a name that was never resolved, and that may resolve to this address.
    Unresolved,
}

impl IgnoreReason {
    /// The reason under which the rejection is counted.
    #[must_use]
    pub fn reject_reason(self) -> RejectReason {
        match self {
            Self::Settings => RejectReason::NeverBan,
            Self::Own | Self::Broker | Self::Jail | Self::Unresolved => RejectReason::IgnoreList,
        }
    }

    /// Whether an existing import must be released. An unresolved name is no proof, so the import stays.
    #[must_use]
    pub fn ends_imports(self) -> bool {
        self != Self::Unresolved
    }
}

impl fmt::Display for IgnoreReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Settings => "the address is in MQTT_NEVER_BAN",
            Self::Own => "the address is this host's own",
            Self::Broker => "the address is the broker's",
            Self::Jail => "the address is in ignoreip",
            Self::Unresolved => "a name in ignoreip cannot be resolved",
        })
    }
}

/// The exempt addresses of a jail.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IgnoreList {
    addresses: BTreeMap<IpAddr, IgnoreReason>,
    networks: BTreeMap<IpNet, IgnoreReason>,
    /// A name in `ignoreip` was never resolved, so any address may be exempt.
    incomplete: bool,
}

impl IgnoreList {
    /// Adds an address or a network; the first of several reasons stays. An IPv6 address that embeds an IPv4 address
    /// also exempts the IPv4 address: behind a NAT64, a name resolves to such an address. A network of IPv6 addresses
    /// exempts no IPv4 address, because `64:ff9b::/96` embeds every IPv4 address.
    pub fn add(&mut self, network: IpNet, reason: IgnoreReason) {
        if network.prefix_len() == network.max_prefix_len() {
            for ip in forms(network.addr().to_canonical()) {
                self.addresses.entry(ip).or_insert(reason);
            }
        } else {
            self.networks.entry(network).or_insert(reason);
        }
    }

    /// Records that a name was never resolved.
    pub fn set_incomplete(&mut self) {
        self.incomplete = true;
    }

    /// The reason why an address, or an IPv4 address embedded in it, is exempt, if any.
    #[must_use]
    pub fn lookup(&self, address: Address) -> Option<IgnoreReason> {
        let found = forms(address.ip()).find_map(|ip| self.lookup_form(ip));
        found.or(self.incomplete.then_some(IgnoreReason::Unresolved))
    }

    fn lookup_form(&self, ip: IpAddr) -> Option<IgnoreReason> {
        let mut networks = self.networks.iter();
        self.addresses.get(&ip).copied().or_else(|| {
            networks.find(|(network, _)| network.contains(&ip)).map(|(_, reason)| *reason)
        })
    }

    /// Whether a name was never resolved, so that nothing is imported into the jail.
    #[must_use]
    pub fn is_incomplete(&self) -> bool {
        self.incomplete
    }
}

/// An address, and each IPv4 address that it may embed.
fn forms(ip: IpAddr) -> impl Iterator<Item = IpAddr> {
    iter::once(ip).chain(embedded_ipv4(ip).map(IpAddr::V4))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::guard::{forms as forms_of_ipv4, is_bannable};
    use crate::model::network;

    #[test]
    fn entry_exempts_its_address_or_network() {
        let mut ignored = IgnoreList::default();
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
            ignored.add(network(entry).unwrap(), IgnoreReason::Jail);
        }
        ignored.add(network("192.0.2.7").unwrap(), IgnoreReason::Own);
        ignored.add(network("192.0.2.9").unwrap(), IgnoreReason::Own);
        let jail = Some(IgnoreReason::Jail);
        let table = [
            ("127.1.2.3", jail),
            ("::1", jail),
            ("192.0.2.7", jail),
            ("192.0.2.8", None),
            ("192.0.2.9", Some(IgnoreReason::Own)),
            ("198.51.100.200", jail),
            ("198.51.101.1", None),
            ("2001:db8:1::1", jail),
            ("2001:db9::1", None),
            ("203.0.113.10", jail),
            ("::ffff:203.0.113.10", jail),
            ("100.127.0.1", jail),
            ("100.128.0.1", None),
        ];
        for (address, reason) in table {
            assert_eq!(ignored.lookup(Address::new(address).unwrap()), reason, "{address}");
        }
        for text in ["web.example", "192.0.2.1/33", "192.0.2.0/255.0.255.0", "", "/8", "1.2.3"] {
            assert_eq!(network(text), None, "{text}");
        }
    }

    #[test]
    fn every_form_of_an_exempt_address_is_exempt() {
        let mut ignored = IgnoreList::default();
        for entry in ["10.213.77.14", "198.51.100.0/24", "64:ff9b::203.0.113.7", "2001:db8::7"] {
            ignored.add(network(entry).unwrap(), IgnoreReason::Own);
        }
        let table = [
            ("::ffff:10.213.77.14", true),
            ("::10.213.77.14", true),
            ("::ffff:0:10.213.77.14", true),
            ("64:ff9b::10.213.77.14", true),
            ("64:ff9b:1::10.213.77.14", true),
            ("2002:ad5:4d0e::1", true),
            ("2001:0:808:808::f52a:b2f1", true),
            ("64:ff9b::198.51.100.9", true),
            ("2002:c633:6409:5:6:7:8:9", true),
            // The other way round, and one form by another.
            ("203.0.113.7", true),
            ("2002:cb00:7107::1", true),
            ("10.213.77.15", false),
            ("64:ff9b::10.213.77.15", false),
            ("64:ff9b:2::10.213.77.14", false),
            ("2001:db8::8", false),
        ];
        for (address, exempt) in table {
            let found = ignored.lookup(Address::new(address).unwrap());
            assert_eq!(found, exempt.then_some(IgnoreReason::Own), "{address}");
        }
    }

    /// The next random number (Marsaglia 2003).
    fn xorshift64(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    #[test]
    fn no_spelling_or_form_of_an_exempt_address_is_importable() {
        // A fixed seed: each run tries the same addresses.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..5_000 {
            let bits = xorshift64(&mut state);
            let exempt: IpAddr = if bits & 1 == 0 {
                Ipv4Addr::from_bits((bits >> 32) as u32).into()
            } else {
                let low = u128::from(xorshift64(&mut state));
                Ipv6Addr::from_bits(u128::from(bits) << 64 | low).into()
            };
            // The guard refuses these and all their forms.
            if !is_bannable(exempt) {
                continue;
            }
            let lengths = if exempt.is_ipv4() { 25 } else { 121 };
            let length = 8 + xorshift64(&mut state) % lengths;
            let entry = IpNet::new(exempt, u8::try_from(length).unwrap()).unwrap();
            let mut ignored = IgnoreList::default();
            // As an admin writes it, and in its canonical form.
            let written = if bits & 2 == 0 { entry.to_string() } else { entry.trunc().to_string() };
            ignored.add(network(&written).unwrap(), IgnoreReason::Jail);
            for text in spellings(exempt) {
                let address = Address::new(&text).unwrap();
                let importable = is_bannable(address.ip()) && ignored.lookup(address).is_none();
                assert!(!importable, "{text} of {written}");
            }
        }
    }

    /// The texts that `Address` parses to this address, and the IPv6 forms of an IPv4 address.
    fn spellings(ip: IpAddr) -> Vec<String> {
        match ip {
            IpAddr::V4(ip) => {
                let mut texts = vec![ip.to_string()];
                for form in forms_of_ipv4(ip) {
                    texts.extend(spellings(form.into()));
                }
                texts
            }
            IpAddr::V6(ip) => {
                let groups = ip.segments().map(|group| format!("{group:04x}"));
                let [.., a, b, c, d] = ip.octets();
                let dotted = format!("{}:{a}.{b}.{c}.{d}", groups[..6].join(":"));
                vec![ip.to_string(), groups.join(":").to_uppercase(), dotted]
            }
        }
    }
}
