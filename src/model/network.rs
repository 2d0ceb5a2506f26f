//! Parses networks as users write them.

use std::net::IpAddr;

use ipnet::IpNet;

/// Parses an address, `address/bits` or `address/mask`. An IPv4-mapped IPv6 address becomes IPv4.
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
