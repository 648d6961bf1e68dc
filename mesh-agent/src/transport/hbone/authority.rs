//! The `:authority` of a CONNECT: a literal address and port, nothing else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest literal: `[` + 45 characters of IPv6 + `]:65535`.
const MAX_BYTES: usize = 53;

/// Why an `:authority` does not name an inner destination.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// There was none.
    #[error("no :authority")]
    Missing,
    /// Longer than any literal address and port.
    #[error(":authority of {0} bytes is longer than an address and port")]
    TooLong(usize),
    /// The port is missing, zero, or not a number up to 65535 without leading zeroes.
    #[error("`{0}` does not end in a port from 1 to 65535")]
    Port(String),
    /// A name, a zone identifier, user information, or IPv6 without brackets.
    #[error("`{0}` is not a literal IPv4 or bracketed IPv6 address and port")]
    Address(String),
}

/// Reads `192.0.2.1:80` or `[2001:db8::1]:80`. An IPv4-mapped IPv6 address is taken
/// as IPv4, so that policy sees one name for one address.
///
/// # Errors
/// See [`AuthorityError`]: names, zones, user information and port 0 are refused.
pub fn parse_authority(authority: &str) -> Result<SocketAddr, AuthorityError> {
    if authority.is_empty() {
        return Err(AuthorityError::Missing);
    }
    if authority.len() > MAX_BYTES {
        return Err(AuthorityError::TooLong(authority.len()));
    }
    let address = || AuthorityError::Address(authority.to_owned());
    let (host, port) = authority.rsplit_once(':').ok_or_else(address)?;
    let ip: IpAddr = match host.strip_prefix('[') {
        Some(rest) => {
            let inner = rest.strip_suffix(']').ok_or_else(address)?;
            inner.parse::<Ipv6Addr>().map_err(|_| address())?.to_canonical()
        }
        None => host.parse::<Ipv4Addr>().map_err(|_| address())?.into(),
    };
    let digits = !port.starts_with('0') && port.bytes().all(|b| b.is_ascii_digit());
    match port.parse::<u16>() {
        Ok(port) if digits => Ok(SocketAddr::new(ip, port)),
        _ => Err(AuthorityError::Port(authority.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literal_addresses_are_read() {
        for (text, expected) in [
            ("192.0.2.1:80", "192.0.2.1:80"),
            ("[2001:db8::1]:65535", "[2001:db8::1]:65535"),
            ("[::ffff:192.0.2.1]:80", "192.0.2.1:80"),
            ("[::]:1", "[::]:1"),
        ] {
            assert_eq!(parse_authority(text), Ok(expected.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "",
            ":",
            "192.0.2.1",
            "192.0.2.1:",
            "192.0.2.1:0",
            "192.0.2.1:080",
            "192.0.2.1:+80",
            "192.0.2.1:65536",
            "192.0.2.1:80:90",
            "192.0.2.01:80",
            "192.0.2:80",
            "2001:db8::1:80",
            "[2001:db8::1]",
            "[2001:db8::1]80",
            "[fe80::1%eth0]:80",
            "[fe80::1%25eth0]:80",
            "[192.0.2.1]:80",
            "[[::1]]:80",
            "localhost:80",
            "example.com:80",
            "user@192.0.2.1:80",
            "user:pass@192.0.2.1:80",
            "192.0.2.1:80/",
            " 192.0.2.1:80",
            "http://192.0.2.1:80",
            "１92.0.2.1:80",
        ] {
            assert!(parse_authority(text).is_err(), "{text} was accepted");
        }
        let long = format!("{}192.0.2.1:80", "0".repeat(100));
        assert_eq!(parse_authority(&long), Err(AuthorityError::TooLong(long.len())));
    }
}
