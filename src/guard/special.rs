//! Special-purpose addresses: which addresses a host may ban, and which it may report to AbuseIPDB.
//!
//! Source: IANA's IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890, RFC 8190; state of
//! October 2025), its multicast registries, and RFC 4291 for IPv6 forms of IPv4 addresses. An address may be
//! banned where a registry allows it as the source of a forwarded packet (columns *Source* and
//! *Forwardable*), and reported where it is *Globally Reachable*, too. Each row that differs says why.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// How far an address identifies another machine. Ordered: an address of two blocks has the lesser reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    /// No other machine: neither bannable nor reportable.
    Nowhere,
    /// A machine of some network, or none: bannable, not reportable.
    Local,
    /// One machine of the internet: bannable and reportable.
    Global,
}

use Reach::{Global, Local, Nowhere};

/// The longest prefix that contains an address decides. The rows of the registries come first, then all other
/// addresses.
#[rustfmt::skip]
const BLOCKS: &[(IpNet, Reach)] = &[
    v4([0, 0, 0, 0], 8, Nowhere),          // this network, RFC 791
    v4([10, 0, 0, 0], 8, Local),           // private, RFC 1918
    v4([100, 64, 0, 0], 10, Local),        // shared, RFC 6598
    v4([127, 0, 0, 0], 8, Nowhere),        // loopback, RFC 1122
    v4([169, 254, 0, 0], 16, Nowhere),     // link-local, RFC 3927
    v4([172, 16, 0, 0], 12, Local),        // private, RFC 1918
    v4([192, 0, 0, 0], 24, Nowhere),       // IETF protocol assignments, RFC 6890
    v4([192, 0, 0, 0], 29, Local),         // IPv4 service continuity (DS-Lite, 464XLAT), RFC 7335
    v4([192, 0, 0, 8], 32, Nowhere),       // dummy address, RFC 7600
    v4([192, 0, 0, 9], 32, Global),        // PCP anycast, RFC 7723
    v4([192, 0, 0, 10], 32, Global),       // TURN anycast, RFC 8155
    v4([192, 0, 0, 170], 31, Nowhere),     // NAT64/DNS64 discovery, RFC 8880
    v4([192, 0, 2, 0], 24, Local),         // documentation, RFC 5737: labs and tests use it
    v4([192, 31, 196, 0], 24, Global),     // AS112, RFC 7535
    v4([192, 52, 193, 0], 24, Global),     // AMT, RFC 7450
    v4([192, 88, 99, 0], 24, Local),       // 6to4 relays, RFC 7526: deprecated, no column has a value
    v4([192, 88, 99, 2], 32, Local),       // 6a44 relays, RFC 6751
    v4([192, 168, 0, 0], 16, Local),       // private, RFC 1918
    v4([192, 175, 48, 0], 24, Global),     // AS112, RFC 7534
    v4([198, 18, 0, 0], 15, Local),        // benchmarking, RFC 2544
    v4([198, 51, 100, 0], 24, Local),      // documentation, RFC 5737
    v4([203, 0, 113, 0], 24, Local),       // documentation, RFC 5737
    v4([224, 0, 0, 0], 4, Nowhere),        // multicast, RFC 5771
    v4([240, 0, 0, 0], 4, Nowhere),        // reserved, RFC 1112
    v4([255, 255, 255, 255], 32, Nowhere), // limited broadcast, RFC 919
    v4([0, 0, 0, 0], 0, Global),
    v6([0, 0, 0, 0, 0, 0, 0, 1], 128, Nowhere),            // loopback, RFC 4291
    v6([0, 0, 0, 0, 0, 0, 0, 0], 128, Nowhere),            // unspecified, RFC 4291
    // Forms of an IPv4 address: `embedded_ipv4` judges what they contain. A mapped address is the IPv4
    // address itself. The others exist inside one network, and AbuseIPDB knows the IPv4 address only.
    v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96, Global),         // mapped, RFC 4291
    v6([0, 0, 0, 0, 0, 0, 0, 0], 96, Local),               // compatible, RFC 4291: deprecated
    v6([0, 0, 0, 0, 0xffff, 0, 0, 0], 96, Local),          // translated, RFC 2765: deprecated
    v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96, Local),       // NAT64, RFC 6052
    v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48, Local),       // NAT64 of one network, RFC 8215
    v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64, Nowhere),         // discard-only, RFC 6666: routers drop all of it
    v6([0x100, 0, 0, 1, 0, 0, 0, 0], 64, Nowhere),         // dummy prefix, RFC 9780
    v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23, Nowhere),        // IETF protocol assignments, RFC 2928
    v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32, Global),         // Teredo, RFC 4380: see `embedded_ipv4`
    v6([0x2001, 1, 0, 0, 0, 0, 0, 1], 128, Global),        // PCP anycast, RFC 7723
    v6([0x2001, 1, 0, 0, 0, 0, 0, 2], 128, Global),        // TURN anycast, RFC 8155
    v6([0x2001, 1, 0, 0, 0, 0, 0, 3], 128, Global),        // DNS-SD SRP anycast, RFC 9665
    v6([0x2001, 2, 0, 0, 0, 0, 0, 0], 48, Local),          // benchmarking, RFC 5180
    v6([0x2001, 3, 0, 0, 0, 0, 0, 0], 32, Global),         // AMT, RFC 7450
    v6([0x2001, 4, 0x112, 0, 0, 0, 0, 0], 48, Global),     // AS112, RFC 7535
    v6([0x2001, 0x10, 0, 0, 0, 0, 0, 0], 28, Nowhere),     // ORCHID, RFC 4843: ended in 2014
    v6([0x2001, 0x20, 0, 0, 0, 0, 0, 0], 28, Global),      // ORCHIDv2, RFC 7343
    v6([0x2001, 0x30, 0, 0, 0, 0, 0, 0], 28, Global),      // drone remote ID, RFC 9374
    v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32, Local),      // documentation, RFC 3849: as in IPv4
    v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16, Global),         // 6to4, RFC 3056: see `embedded_ipv4`
    v6([0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0], 48, Global), // AS112, RFC 7534
    v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20, Local),          // documentation, RFC 9637
    v6([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16, Local),          // SRv6 segments, RFC 9602
    v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7, Local),           // unique-local, RFC 4193
    v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10, Nowhere),        // link-local, RFC 4291
    v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10, Nowhere),        // site-local, RFC 3879: deprecated
    v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8, Nowhere),         // multicast, RFC 4291
    v6([0x2000, 0, 0, 0, 0, 0, 0, 0], 3, Global),          // what IANA gives out, RFC 4291
    v6([0, 0, 0, 0, 0, 0, 0, 0], 0, Local),                // unassigned: overlay networks use some of it
];

const fn v4(first: [u8; 4], bits: u8, reach: Reach) -> (IpNet, Reach) {
    (IpNet::new_assert(IpAddr::V4(Ipv4Addr::from_octets(first)), bits), reach)
}

const fn v6(first: [u16; 8], bits: u8, reach: Reach) -> (IpNet, Reach) {
    (IpNet::new_assert(IpAddr::V6(Ipv6Addr::from_segments(first)), bits), reach)
}

/// Whether a host may ban an address: it can be another machine's, and so can an IPv4 address in it.
#[must_use]
pub fn is_bannable(ip: IpAddr) -> bool {
    reach(ip) >= Local
}

/// Whether a host may report an address to AbuseIPDB: it is one machine's on the whole internet.
#[must_use]
pub fn is_reportable(ip: IpAddr) -> bool {
    reach(ip) == Global
}

fn reach(ip: IpAddr) -> Reach {
    // Only the network's administrator knows which of several readings is right. The reading with the farthest reach
    // counts, because the others may be no address at all.
    let embedded = embedded_ipv4(ip).map(|ipv4| of_block(IpAddr::V4(ipv4))).max();
    embedded.map_or(of_block(ip), |embedded| embedded.min(of_block(ip)))
}

fn of_block(ip: IpAddr) -> Reach {
    let blocks = BLOCKS.iter().filter(|(block, _)| block.contains(&ip));
    // The last two rows of the table contain every address.
    blocks.max_by_key(|(block, _)| block.prefix_len()).map_or(Nowhere, |(_, reach)| *reach)
}

/// The IPv4 addresses that an IPv6 address may stand for. RFC 8215 leaves the length of the prefix to each
/// network, so that an address of its block can be read in several ways.
pub fn embedded_ipv4(ip: IpAddr) -> impl Iterator<Item = Ipv4Addr> {
    let found = match ip {
        IpAddr::V4(_) => [None; 4],
        IpAddr::V6(ip) => match ip.segments() {
            [0, 0, 0, 0, 0, 0 | 0xffff, ..]
            | [0, 0, 0, 0, 0xffff, 0, ..]
            | [0x64, 0xff9b, 0, 0, 0, 0, ..] => [Some(ipv4_at(96, ip.to_bits())), None, None, None],
            [0x64, 0xff9b, 1, ..] => local_nat64(ip.to_bits()),
            // RFC 4380: the client's address is inverted. Many clients share the server's.
            [0x2001, 0, ..] => [Some(!ipv4_at(96, ip.to_bits())), None, None, None],
            [0x2002, ..] => [Some(ipv4_at(16, ip.to_bits())), None, None, None],
            _ => [None; 4],
        },
    };
    found.into_iter().flatten()
}

/// The 32 bits that follow the first `start` bits.
fn ipv4_at(start: u32, bits: u128) -> Ipv4Addr {
    let [a, b, c, d, ..] = (bits << start).to_be_bytes();
    Ipv4Addr::new(a, b, c, d)
}

/// RFC 6052, 2.2: prefixes of 48, 56, 64 and 96 bits. With the shorter ones, bits 64 to 71 are zero and
/// belong to no address, and zeros follow the address. No host has an address like 0.0.0.7 or 7.0.0.0: such
/// a reading counts only if no other remains.
fn local_nat64(bits: u128) -> [Option<Ipv4Addr>; 4] {
    let without_64_to_71 = (bits >> 64 << 64) | (bits << 72 >> 64);
    let are_zero = (bits >> 56).trailing_zeros() >= 8;
    let [a, b, c] = [48, 56, 64].map(|prefix| {
        let ipv4 = ipv4_at(prefix, without_64_to_71);
        let only_zeros_follow = without_64_to_71 << (prefix + 32) == 0;
        (are_zero && only_zeros_follow && ipv4.octets()[0] != 0).then_some(ipv4)
    });
    let last = ipv4_at(96, bits);
    let is_unlikely = last.octets()[0] == 0 || last.octets()[1..] == [0; 3];
    let counts = !is_unlikely || [a, b, c] == [None; 3];
    [a, b, c, counts.then_some(last)]
}

#[cfg(test)]
pub(super) mod tests;
