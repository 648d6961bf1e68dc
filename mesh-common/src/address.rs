//! One shape for IPv4 and IPv6 addresses in maps.

use core::net::{IpAddr, Ipv6Addr};

/// An IP address as four words in network byte order; IPv4 is `::ffff:a.b.c.d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Address(pub [u32; 4]);

const MAPPED: u32 = 0x0000_ffff_u32.to_be();

impl Address {
    /// `::`, and what zeroed memory means.
    pub const UNSPECIFIED: Self = Self([0; 4]);

    /// The IPv4 address whose network-order word is `be`.
    #[inline(always)]
    pub const fn from_v4_be(be: u32) -> Self {
        Self([0, 0, MAPPED, be])
    }

    /// Whether this is an IPv4 address (or IPv6 that maps one).
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == MAPPED
    }

    /// Whether this is in 127.0.0.0/8 or is `::1`.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            u32::from_be(self.0[3]) >> 24 == 127
        } else {
            self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && self.0[3] == 1_u32.to_be()
        }
    }

    /// Whether this is 0.0.0.0 or `::`, which connect(2) takes for loopback.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        self.0[0] == 0
            && self.0[1] == 0
            && self.0[3] == 0
            && (self.0[2] == 0 || self.0[2] == MAPPED)
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        let octets = match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(octets.chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Self(words)
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        let mut octets = [0; 16];
        for (bytes, word) in octets.chunks_exact_mut(4).zip(address.0) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        Self::V6(Ipv6Addr::from(octets)).to_canonical()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(s: &str) -> Address {
        s.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn an_address_survives_the_round_trip() {
        for s in ["10.1.2.3", "127.0.0.1", "fd00::1:2", "::1", "0.0.0.0", "::"] {
            assert_eq!(IpAddr::from(address(s)), s.parse::<IpAddr>().unwrap());
        }
        assert_eq!(address("::ffff:10.0.0.1"), address("10.0.0.1"));
        assert_eq!(Address::from_v4_be(u32::from_ne_bytes([10, 0, 0, 1])), address("10.0.0.1"));
    }

    #[test]
    fn loopback_and_unspecified_are_told_apart() {
        for (s, loopback, unspecified) in [
            ("127.0.0.1", true, false),
            ("127.255.0.9", true, false),
            ("128.0.0.1", false, false),
            ("::1", true, false),
            ("::2", false, false),
            ("::ffff:127.0.0.1", true, false),
            ("0.0.0.0", false, true),
            ("::", false, true),
            ("::ffff:0.0.0.0", false, true),
            ("fd00::", false, false),
        ] {
            assert_eq!(address(s).is_loopback(), loopback, "{s}");
            assert_eq!(address(s).is_unspecified(), unspecified, "{s}");
        }
    }
}
