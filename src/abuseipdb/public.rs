//! Which addresses are anybody's business: those of the internet.

use std::net::IpAddr;

/// Whether an address is one of the internet: anything else is nobody's business.
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            let shared = a == 100 && b & 0xc0 == 64; // RFC 6598
            let benchmark = a == 198 && b & 0xfe == 18; // RFC 2544
            let protocols = a == 192 && b == 0 && c == 0; // RFC 6890
            !(a == 0
                || a >= 224
                || v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || shared
                || benchmark
                || protocols)
        }
        IpAddr::V6(v6) => match v6.segments() {
            // 6to4 (RFC 3056) carries an IPv4 address.
            [0x2002, high, low, ..] => {
                is_public(IpAddr::V4((u32::from(high) << 16 | u32::from(low)).into()))
            }
            [first, ..] => first & 0xe000 == 0x2000, // what is given out (RFC 4291)
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_internet_is_reported() {
        let table = [
            ("203.0.113.9", true),
            ("100.63.0.1", true),
            ("2001:db8::1", true),
            ("10.1.2.3", false),
            ("172.16.0.1", false),
            ("192.168.1.1", false),
            ("100.64.0.1", false),
            ("127.0.0.2", false),
            ("169.254.1.1", false),
            ("198.19.0.1", false),
            ("0.1.2.3", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
            ("::1", false),
            ("::", false),
            ("fe80::1", false),
            ("fd00::1", false),
            ("ff02::1", false),
            ("fec0::1", false),
            ("192.0.0.1", false),
            ("192.0.2.1", true),
            ("64:ff9b::a00:1", false),
            ("::10.0.0.1", false),
            ("2002:a00:1::", false),
            ("2002:cb00:7109::1", true),
            ("4000::1", false),
        ];
        for (address, public) in table {
            assert_eq!(is_public(address.parse().unwrap()), public, "{address}");
        }
    }
}
