//! What Envoy's `http_inspector` takes a connection's first bytes for. Sans-I/O.
//!
//! It looks at a whole request line and at nothing else; [`detect`](super::detect) tells
//! sooner, and wants to be surer.

use super::{detect::HTTP2_PREFACE, octets::is_token};

/// Envoy's limit of a request line.
pub const REQUEST_LINE_MAX_BYTES: usize = 64 << 10;

/// What the first bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoken {
    NeedMore,
    /// In the words of ALPN: `http/1.0`, `http/1.1` or `h2c`.
    Http(&'static str),
    Other,
    /// No line has ended within [`REQUEST_LINE_MAX_BYTES`].
    TooLong,
}

/// Judges the first bytes of a connection, all of them from its beginning. No line ends in
/// the first `searched` of them.
pub fn inspect(bytes: &[u8], searched: usize) -> Spoken {
    if bytes.starts_with(HTTP2_PREFACE) {
        return Spoken::Http("h2c");
    }
    if HTTP2_PREFACE.starts_with(bytes) {
        return Spoken::NeedMore;
    }
    if !is_token(bytes[0]) {
        return Spoken::Other;
    }
    // The preface has ends of lines in it, which nobody has searched for.
    let searched = if searched < HTTP2_PREFACE.len() { 0 } else { searched.min(bytes.len()) };
    match bytes[searched..].iter().position(|byte| *byte == b'\n') {
        Some(at) if searched + at < REQUEST_LINE_MAX_BYTES => {
            request_line(&bytes[..searched + at]).map_or(Spoken::Other, Spoken::Http)
        }
        None if bytes.len() < REQUEST_LINE_MAX_BYTES => Spoken::NeedMore,
        _ => Spoken::TooLong,
    }
}

/// A method, a target and a version, of which HTTP/0.9 says none; between them and at the
/// end is anything up to a space.
fn request_line(line: &[u8]) -> Option<&'static str> {
    let (method, rest) = word(line);
    let (target, rest) = word(rest);
    let end = rest.iter().rposition(|byte| *byte > b' ').map_or(0, |last| last + 1);
    let version = &rest[..end];
    if !method.iter().all(|byte| is_token(*byte)) || !is_target(target, method == b"CONNECT") {
        return None;
    }
    match version {
        b"HTTP/1.1" => Some("http/1.1"),
        // Whatever else is a version, Envoy takes for the oldest that it knows.
        [] => Some("http/1.0"),
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] => {
            (major.is_ascii_digit() && minor.is_ascii_digit()).then_some("http/1.0")
        }
        _ => None,
    }
}

/// What comes first, and what is left after the gap behind it.
fn word(line: &[u8]) -> (&[u8], &[u8]) {
    let is_gap = |byte: &u8| *byte <= b' ';
    let (word, rest) = line.split_at(line.iter().position(is_gap).unwrap_or(line.len()));
    (word, &rest[rest.iter().take_while(|byte| is_gap(byte)).count()..])
}

/// A path, `*`, or a scheme (none where the method is CONNECT), a host and what follows.
fn is_target(target: &[u8], connect: bool) -> bool {
    let authority = match target {
        [] => return false,
        [b'/' | b'*', path @ ..] => return path.iter().all(u8::is_ascii_graphic),
        _ if connect => target,
        _ => {
            let scheme = target.iter().take_while(|byte| is_scheme(**byte)).count();
            let rest = target[scheme..].strip_prefix(b"://");
            match rest.filter(|_| target[0].is_ascii_alphabetic()) {
                Some(rest) => rest,
                None => return false,
            }
        }
    };
    let host = authority.iter().take_while(|byte| !matches!(byte, b'/' | b'?')).count();
    let (host, path) = authority.split_at(host);
    let doubled = host.windows(2).any(|two| two == b"@@");
    !doubled && host.iter().all(|byte| is_host(*byte)) && path.iter().all(u8::is_ascii_graphic)
}

fn is_scheme(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.')
}

/// As Envoy's HTTP/1 parser has it.
fn is_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!$%&'()*+,-.:;=@[]_~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::{REQUEST_LINE_MAX_BYTES, Spoken, inspect};

    const NONE: Spoken = Spoken::Other;
    const MORE: Spoken = Spoken::NeedMore;
    const OLD: Spoken = Spoken::Http("http/1.0");
    const HTTP: Spoken = Spoken::Http("http/1.1");

    #[test]
    fn first_lines_tell() {
        for (bytes, expected) in [
            (&b""[..], MORE),
            (b"GET / HTTP/1.1", MORE),
            (b"GET / HTTP/1.1\r", MORE),
            (b"GET / HTTP/1.1\r\n", HTTP),
            (b"GET / HTTP/1.1\nanything", HTTP),
            (b"GET / HTTP/1.0\r\n", OLD),
            (b"GET / HTTP/2.0\r\n", OLD),
            (b"GET / HTTP/11.1\r\n", NONE),
            (b"GET / http/1.1\r\n", NONE),
            (b"GET / HTTP/1,1\r\n", NONE),
            (b"GET / HTTP/1.1 x\r\n", NONE),
            (b"GET /\r\n", OLD),
            (b"GET / \r\n", OLD),
            (b"GET \r\n", NONE),
            (b"PING\r\n", NONE),
            (b" GET / HTTP/1.1\r\n", NONE),
            (b"\r\nGET / HTTP/1.1\r\n", NONE),
            (b"GET\t/\x01\x02HTTP/1.1\0\r\n", HTTP),
            (b"-- / HTTP/1.1\r\n", HTTP),
            (b"G(T / HTTP/1.1\r\n", NONE),
            (b"GET x HTTP/1.1\r\n", NONE),
            (b"GET a:1 HTTP/1.1\r\n", NONE),
            (b"CONNECT a:1 HTTP/1.1\r\n", HTTP),
            (b"GET http://a@b/?x HTTP/1.1\r\n", HTTP),
            (b"GET http://a@@b/ HTTP/1.1\r\n", NONE),
            (b"GET 1a://b HTTP/1.1\r\n", NONE),
            (b"GET /\x80 HTTP/1.1\r\n", NONE),
            (b"PRI * HTTP/2.0\r\n", MORE),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nmore", Spoken::Http("h2c")),
            (b"PRI * HTTP/2.0\r\n\r\nSX", OLD),
            (b"\x16\x03\x01", NONE),
            (b"EHLO mail.example.com\r\n", NONE),
        ] {
            assert_eq!(inspect(bytes, 0), expected, "{:?}", bytes.escape_ascii().to_string());
        }
    }

    #[test]
    fn where_the_packets_end_makes_no_difference() {
        for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nSX", b"PRI * XTTP\n"] {
            let whole = inspect(bytes, 0);
            let told = (1..=bytes.len()).map(|end| inspect(&bytes[..end], end - 1));
            assert_eq!(told.into_iter().find(|told| *told != MORE), Some(whole));
        }
    }

    #[test]
    fn a_line_ends_in_time() {
        let mut bytes = b"GET /".to_vec();
        bytes.resize(REQUEST_LINE_MAX_BYTES - 1, b'a');
        assert_eq!(inspect(&bytes, 9000), MORE);
        bytes.extend_from_slice(b"\n");
        assert_eq!(inspect(&bytes, 9000), OLD);
        bytes.insert(5, b'a');
        assert_eq!(inspect(&bytes, 9000), Spoken::TooLong);
        bytes.pop();
        assert_eq!(inspect(&bytes, 9000), Spoken::TooLong);
    }
}
