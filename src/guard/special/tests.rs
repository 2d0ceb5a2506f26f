//! Tests every block of the registries, its edges and its embedded forms.

use super::*;

/// A block, the reach of its first and last address, and that of the addresses just outside.
const TABLE: &[(&str, Reach, [Reach; 2])] = &[
    // IANA IPv4 Special-Purpose Address Registry
    ("0.0.0.0/8", Nowhere, [Nowhere, Global]),
    ("0.0.0.0/32", Nowhere, [Nowhere, Nowhere]),
    ("10.0.0.0/8", Local, [Global, Global]),
    ("100.64.0.0/10", Local, [Global, Global]),
    ("127.0.0.0/8", Nowhere, [Global, Global]),
    ("169.254.0.0/16", Nowhere, [Global, Global]),
    ("172.16.0.0/12", Local, [Global, Global]),
    ("192.0.0.0/29", Local, [Global, Nowhere]),
    ("192.0.0.8/32", Nowhere, [Local, Global]),
    ("192.0.0.9/32", Global, [Nowhere, Global]),
    ("192.0.0.10/32", Global, [Global, Nowhere]),
    ("192.0.0.11/32", Nowhere, [Global, Nowhere]),
    ("192.0.0.170/32", Nowhere, [Nowhere, Nowhere]),
    ("192.0.0.171/32", Nowhere, [Nowhere, Nowhere]),
    ("192.0.0.255/32", Nowhere, [Nowhere, Global]),
    ("192.0.2.0/24", Local, [Global, Global]),
    ("192.31.196.0/24", Global, [Global, Global]),
    ("192.52.193.0/24", Global, [Global, Global]),
    ("192.88.99.0/24", Local, [Global, Global]),
    ("192.88.99.2/32", Local, [Local, Local]),
    ("192.168.0.0/16", Local, [Global, Global]),
    ("192.175.48.0/24", Global, [Global, Global]),
    ("198.18.0.0/15", Local, [Global, Global]),
    ("198.51.100.0/24", Local, [Global, Global]),
    ("203.0.113.0/24", Local, [Global, Global]),
    ("240.0.0.0/4", Nowhere, [Nowhere, Nowhere]),
    ("255.255.255.255/32", Nowhere, [Nowhere, Nowhere]),
    // IANA IPv4 Multicast Address Space Registry
    ("224.0.0.0/4", Nowhere, [Global, Nowhere]),
    // IANA IPv6 Special-Purpose Address Registry; blocks of embedded addresses have a test of their own
    ("::1/128", Nowhere, [Nowhere, Nowhere]),
    ("::/128", Nowhere, [Nowhere, Nowhere]),
    ("100::/64", Nowhere, [Local, Nowhere]),
    ("100:0:0:1::/64", Nowhere, [Nowhere, Local]),
    ("2001:1::1/128", Global, [Nowhere, Global]),
    ("2001:1::2/128", Global, [Global, Global]),
    ("2001:1::3/128", Global, [Global, Nowhere]),
    ("2001:2::/48", Local, [Nowhere, Nowhere]),
    ("2001:3::/32", Global, [Nowhere, Nowhere]),
    ("2001:4:112::/48", Global, [Nowhere, Nowhere]),
    ("2001:10::/28", Nowhere, [Nowhere, Global]),
    ("2001:20::/28", Global, [Nowhere, Global]),
    ("2001:30::/28", Global, [Global, Nowhere]),
    ("2001:100::/24", Nowhere, [Nowhere, Global]), // the end of 2001::/23
    ("2001:db8::/32", Local, [Global, Global]),
    ("2620:4f:8000::/48", Global, [Global, Global]),
    ("3fff::/20", Local, [Global, Global]),
    ("5f00::/16", Local, [Local, Local]),
    ("fc00::/7", Local, [Local, Local]),
    ("fe80::/10", Nowhere, [Local, Nowhere]),
    // RFC 3879, IANA IPv6 Multicast Address Space Registry, RFC 4291
    ("fec0::/10", Nowhere, [Nowhere, Nowhere]),
    ("ff00::/8", Nowhere, [Nowhere, Nowhere]),
    ("2000::/3", Global, [Local, Local]),
];

#[test]
fn each_block_of_the_registries_has_its_reach() {
    for (block, expected, [before, after]) in TABLE {
        let block: IpNet = block.parse().unwrap();
        let (first, last) = (block.network(), block.broadcast());
        assert_eq!((reach(first), reach(last)), (*expected, *expected), "{block}");
        let (outside_before, outside_after) = match (first, last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => (
                first.to_bits().checked_sub(1).map(|bits| IpAddr::V4(bits.into())),
                last.to_bits().checked_add(1).map(|bits| IpAddr::V4(bits.into())),
            ),
            (IpAddr::V6(first), IpAddr::V6(last)) => (
                first.to_bits().checked_sub(1).map(|bits| IpAddr::V6(bits.into())),
                last.to_bits().checked_add(1).map(|bits| IpAddr::V6(bits.into())),
            ),
            _ => unreachable!(),
        };
        for (address, expected) in [(outside_before, before), (outside_after, after)] {
            if let Some(address) = address {
                assert_eq!(reach(address), *expected, "{address} beside {block}");
            }
        }
    }
}

#[test]
fn reach_decides_both_columns() {
    let table = [
        ("8.8.8.8", true, true),
        ("2606:4700::1111", true, true),
        ("10.1.2.3", true, false),
        ("203.0.113.120", true, false),
        ("2001:db8::1", true, false),
        ("fd00::1", true, false),
        ("200:1234::1", true, false),
        ("4000::1", true, false),
        ("127.0.0.53", false, false),
        ("240.0.0.1", false, false),
        ("fec0::1", false, false),
        ("100::1", false, false),
        ("ff0e::1", false, false),
        // Embedded forms.
        ("::ffff:8.8.8.8", true, true),
        ("::8.8.8.8", true, false),
        ("::127.0.0.1", false, false),
        ("::ffff:127.0.0.1", false, false),
        ("::ffff:0:127.0.0.1", false, false),
        ("::ffff:0:8.8.8.8", true, false),
        ("64:ff9b::8.8.8.8", true, false),
        ("64:ff9b::10.0.0.1", true, false),
        ("64:ff9b::127.0.0.1", false, false),
        ("64:ff9b:1::127.0.0.1", false, false),
        ("64:ff9b:1::", false, false),
        ("64:ff9b:1::a:ffff:ff00:0", true, false), // 10.255.255.255, not 255.0.0.0
        ("64:ff9b:2::127.0.0.1", true, false),
        ("2002:808:808::1", true, true),
        ("2002:a00:1::1", true, false),
        ("2002:7f00:1::1", false, false),
        ("2001:0:808:808::f7f7:f7f7", true, true),
        ("2001:0:808:808::80ff:fffe", false, false),
    ];
    for (text, bannable, reportable) in table {
        let ip: IpAddr = text.parse().unwrap();
        assert_eq!((is_bannable(ip), is_reportable(ip)), (bannable, reportable), "{text}");
    }
}

#[test]
fn embedded_forms_are_judged_as_their_ipv4_address() {
    let blocks = TABLE.iter().filter_map(|(block, reach, _)| {
        block.parse().ok().map(|block: ipnet::Ipv4Net| (block, *reach))
    });
    for (block, expected) in blocks {
        for ipv4 in [block.network(), block.broadcast()] {
            let forms = forms(ipv4).into_iter();
            // A prefix of 64 bits with nothing but zeros after it is no address of 0.0.0.0/8.
            for form in forms.filter(|form| ipv4.octets()[0] != 0 || form.segments()[3] != 0x7f7f) {
                assert_eq!(is_bannable(form.into()), expected >= Local, "{ipv4} as {form}");
                assert!(is_reportable(form.into()) <= (expected == Global), "{ipv4} as {form}");
                assert!(embedded_ipv4(form.into()).any(|found| found == ipv4), "{ipv4} as {form}");
            }
        }
    }
}

#[test]
fn address_of_a_local_nat64_has_every_possible_reading() {
    let table: [(&str, &[&str]); 8] = [
        ("64:ff9b:1::192.0.2.33", &["192.0.2.33"]),
        ("64:ff9b:1:c000:2:2100::", &["192.0.2.33", "2.33.0.0"]),
        ("64:ff9b:1:55c0:0:221::", &["192.0.2.33"]),
        ("64:ff9b:1:ffff:c0:2:2100:0", &["192.0.2.33"]),
        // Bits 64 to 71 are not zero: only the last 32 bits can be an address.
        ("64:ff9b:1:c000:102:2100::", &["0.0.0.0"]),
        ("64:ff9b:1:1:2:3:a00:1", &["10.0.0.1"]),
        ("64:ff9b:1::", &["0.0.0.0"]),
        ("64:ff9b:2:c000:2:2100::", &[]),
    ];
    for (text, expected) in table {
        let found: Vec<_> =
            embedded_ipv4(text.parse().unwrap()).map(|ipv4| ipv4.to_string()).collect();
        assert_eq!(found, expected, "{text}");
    }
}

#[test]
fn the_table_has_no_block_twice() {
    for (n, (block, _)) in BLOCKS.iter().enumerate() {
        assert_eq!(block.addr(), block.network(), "{block}");
        assert!(BLOCKS[..n].iter().all(|(other, _)| other != block), "{block}");
    }
}

/// Each IPv6 form of an IPv4 address.
pub(crate) fn forms(ipv4: Ipv4Addr) -> Vec<Ipv6Addr> {
    let bits = u128::from(ipv4.to_bits());
    let local_nat64 = 0x64_ff9b_0001_u128 << 80;
    let teredo = 0x2001_0000_0808_0808_u128 << 64;
    [
        0xffff_u128 << 32 | bits,
        bits,
        0xffff_u128 << 48 | bits,
        0x64_ff9b_u128 << 96 | bits,
        local_nat64 | bits,
        local_nat64 | 0x7f7f << 64 | bits << 24, // RFC 6052 with 64 bits of prefix
        0x2002_u128 << 112 | bits << 80 | 1,
        0x2002_u128 << 112 | bits << 80 | 0xffff_ffff_ffff_ffff,
        teredo | (bits ^ 0xffff_ffff),
        teredo | 0x8000_1234 << 32 | (bits ^ 0xffff_ffff),
    ]
    .map(Ipv6Addr::from_bits)
    .to_vec()
}
