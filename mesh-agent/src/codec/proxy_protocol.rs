//! The PROXY protocol's header, versions 1 and 2. Sans-I/O.
//!
//! Spec: <https://www.haproxy.org/download/2.1/doc/proxy-protocol.txt>

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::model::listener_filter::ProxyProtocol;

const V1: &[u8] = b"PROXY ";
/// With the end of the line.
const V1_MAX_BYTES: usize = 107;
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_HEAD_BYTES: usize = 16;

/// What the first bytes of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// A header of so many bytes; without addresses those of the connection itself hold.
    Header {
        bytes: usize,
        addresses: Option<Addresses>,
    },
    NeedMore,
    /// There is no header, and none is needed.
    Absent,
    /// The connection is to be closed.
    Refused(&'static str),
}

/// Who connected, and to what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

/// Reads the header, of all bytes from the connection's beginning.
pub fn parse(bytes: &[u8], options: ProxyProtocol) -> Parsed {
    let begins = |signature: &[u8]| {
        let length = bytes.len().min(signature.len());
        bytes[..length] == signature[..length]
    };
    for (signature, allowed, read) in
        [(V2, options.v2, v2 as fn(&[u8]) -> Parsed), (V1, options.v1, v1)]
    {
        if !begins(signature) || !allowed && options.optional {
            continue;
        }
        return match bytes.len() < signature.len() {
            true => Parsed::NeedMore,
            false if !allowed => {
                Parsed::Refused("this version of the PROXY protocol is disallowed")
            }
            false => read(bytes),
        };
    }
    match options.optional {
        true if bytes.is_empty() => Parsed::NeedMore,
        true => Parsed::Absent,
        false => Parsed::Refused("no PROXY protocol header"),
    }
}

fn v1(bytes: &[u8]) -> Parsed {
    let seen = &bytes[..bytes.len().min(V1_MAX_BYTES)];
    let Some(end) = seen.windows(2).position(|pair| pair == b"\r\n") else {
        return match seen.len() == V1_MAX_BYTES {
            true => Parsed::Refused("the PROXY line does not end"),
            false => Parsed::NeedMore,
        };
    };
    let header = |addresses| Parsed::Header { bytes: end + 2, addresses };
    let malformed = Parsed::Refused("the PROXY line is malformed");
    let Ok(line) = std::str::from_utf8(&seen[V1.len()..end]) else { return malformed };
    let words: Vec<_> = line.split(' ').collect();
    let ip = |v4: bool, text: &str| text.parse::<IpAddr>().ok().filter(|ip| ip.is_ipv4() == v4);
    let addresses = match words[..] {
        ["UNKNOWN", ..] => return header(None),
        [family @ ("TCP4" | "TCP6"), source, destination, source_port, destination_port] => {
            let v4 = family == "TCP4";
            let address =
                |text, port: &str| Some(SocketAddr::new(ip(v4, text)?, port.parse().ok()?));
            address(source, source_port).zip(address(destination, destination_port))
        }
        _ => None,
    };
    match addresses {
        Some((source, destination)) => header(Some(canonical(source, destination))),
        None => malformed,
    }
}

fn v2(bytes: &[u8]) -> Parsed {
    let Some(head) = bytes.first_chunk::<V2_HEAD_BYTES>() else { return Parsed::NeedMore };
    let [.., version_command, family, high, low] = *head;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if version_command >> 4 != 2 {
        return Parsed::Refused("an unknown version of the PROXY protocol");
    }
    let Some(rest) = bytes[V2_HEAD_BYTES..].get(..length) else { return Parsed::NeedMore };
    let header = |addresses| Parsed::Header { bytes: V2_HEAD_BYTES + length, addresses };
    let port = |at: usize| Some(u16::from_be_bytes([*rest.get(at)?, *rest.get(at + 1)?]));
    let addresses = match (version_command & 0xf, family) {
        // LOCAL: the proxy's own, a health check.
        (0, _) => return header(None),
        (1, 0x11) => {
            let ip = |at: usize| {
                rest.get(at..)?.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets))
            };
            let (source, destination) = (ip(0).zip(port(8)), ip(4).zip(port(10)));
            source.map(SocketAddr::from).zip(destination.map(SocketAddr::from))
        }
        (1, 0x21) => {
            let ip = |at: usize| {
                rest.get(at..)?.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets))
            };
            let (source, destination) = (ip(0).zip(port(32)), ip(16).zip(port(34)));
            source.map(SocketAddr::from).zip(destination.map(SocketAddr::from))
        }
        _ => return Parsed::Refused("the PROXY header is for no TCP connection"),
    };
    match addresses {
        Some((source, destination)) => header(Some(canonical(source, destination))),
        None => Parsed::Refused("the PROXY header is too short"),
    }
}

fn canonical(source: SocketAddr, destination: SocketAddr) -> Addresses {
    let canonical = |a: SocketAddr| SocketAddr::new(a.ip().to_canonical(), a.port());
    Addresses { source: canonical(source), destination: canonical(destination) }
}

#[cfg(test)]
mod tests {
    use super::{Addresses, Parsed, parse};
    use crate::model::listener_filter::ProxyProtocol;

    const STRICT: ProxyProtocol = ProxyProtocol { optional: false, v1: true, v2: true };
    const OPTIONAL: ProxyProtocol = ProxyProtocol { optional: true, ..STRICT };

    fn addresses(source: &str, destination: &str) -> Option<Addresses> {
        Some(Addresses {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        })
    }

    fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
        bytes.extend([0x20 | command, family]);
        bytes.extend((rest.len() as u16).to_be_bytes());
        bytes.extend(rest);
        bytes
    }

    #[test]
    fn lines_are_read() {
        let line = b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n";
        let expected = addresses("192.0.2.1:56324", "198.51.100.1:443");
        let header = Parsed::Header { bytes: line.len(), addresses: expected };
        assert_eq!(parse(&[line.as_slice(), b"GET"].concat(), STRICT), header);
        for cut in 0..line.len() {
            assert_eq!(parse(&line[..cut], STRICT), Parsed::NeedMore, "{cut}");
        }
        let v6 = b"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n";
        let expected = addresses("[2001:db8::1]:1", "[2001:db8::2]:2");
        assert_eq!(parse(v6, STRICT), Parsed::Header { bytes: v6.len(), addresses: expected });
        let unknown = b"PROXY UNKNOWN whatever\r\n";
        let header = Parsed::Header { bytes: unknown.len(), addresses: None };
        assert_eq!(parse(unknown, STRICT), header);
        for bad in [
            "PROXY TCP4 ::1 1.2.3.4 1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 99999\r\n",
            "PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY  TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
        ] {
            assert!(matches!(parse(bad.as_bytes(), STRICT), Parsed::Refused(_)), "{bad}");
        }
        let endless = [b"PROXY ".as_slice(), &[b'x'; 200]].concat();
        assert!(matches!(parse(&endless, STRICT), Parsed::Refused(_)));
    }

    #[test]
    fn binary_headers_are_read() {
        let rest = [192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 4, 1, 0xbb, 3, 0, 1, 9];
        let bytes = binary(1, 0x11, &rest);
        let expected = addresses("192.0.2.1:56324", "198.51.100.1:443");
        let header = Parsed::Header { bytes: bytes.len(), addresses: expected };
        assert_eq!(parse(&bytes, STRICT), header);
        for cut in 0..bytes.len() {
            assert_eq!(parse(&bytes[..cut], STRICT), Parsed::NeedMore, "{cut}");
        }
        let local = binary(0, 0, &[]);
        let header = Parsed::Header { bytes: local.len(), addresses: None };
        assert_eq!(parse(&local, STRICT), header);
        for bad in [binary(1, 0x11, &rest[..8]), binary(1, 0x12, &rest), binary(2, 0x11, &rest)] {
            assert!(matches!(parse(&bad, STRICT), Parsed::Refused(_)), "{bad:?}");
        }
    }

    #[test]
    fn who_need_not_speak_it_may_not() {
        assert!(matches!(parse(b"GET /", STRICT), Parsed::Refused(_)));
        assert_eq!(parse(b"GET /", OPTIONAL), Parsed::Absent);
        assert_eq!(parse(b"", OPTIONAL), Parsed::NeedMore);
        let no_v1 = ProxyProtocol { v1: false, ..STRICT };
        assert!(matches!(parse(b"PROXY UNKNOWN\r\n", no_v1), Parsed::Refused(_)));
        let either = ProxyProtocol { v1: false, ..OPTIONAL };
        assert_eq!(parse(b"PROXY UNKNOWN\r\n", either), Parsed::Absent);
    }
}
