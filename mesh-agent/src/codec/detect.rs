//! Which protocol do a connection's first bytes speak? Sans-I/O.
//!
//! The caller owns the waiting: a server-first protocol sends nothing here, so
//! whoever sniffs dials at the same time and stops sniffing when the server speaks.

/// The HTTP/2 client preface. Spec: RFC 9113 §3.4.
pub const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes after which an answer is certain: never [`Detected::NeedMore`] from there on.
pub const DETECT_MAX_BYTES: usize = 64;

const METHOD_MAX_BYTES: usize = 24;

/// What the first bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detected {
    /// An HTTP/1 request line, as far as it is there.
    Http1,
    /// The HTTP/2 preface (prior knowledge).
    Http2,
    /// Neither: to be relayed unread.
    Opaque,
    /// Consistent with HTTP so far, and too short to tell.
    NeedMore,
}

/// Judges the first bytes of a connection, all of them from its beginning.
///
/// Whatever can't become HTTP is [`Detected::Opaque`] from its first byte that shows
/// it; no input of [`DETECT_MAX_BYTES`] or more is [`Detected::NeedMore`]. More bytes never
/// change an answer: how a connection's bytes are cut into packets must not.
pub fn detect(bytes: &[u8]) -> Detected {
    let bytes = &bytes[..bytes.len().min(DETECT_MAX_BYTES)];
    if bytes.starts_with(HTTP2_PREFACE) {
        return Detected::Http2;
    }
    if HTTP2_PREFACE.starts_with(bytes) {
        return Detected::NeedMore;
    }
    let method_bytes = bytes.iter().take_while(|b| b.is_ascii_uppercase() || **b == b'-').count();
    if method_bytes == 0 || method_bytes > METHOD_MAX_BYTES {
        return Detected::Opaque;
    }
    match &bytes[method_bytes..] {
        [] => Detected::NeedMore,
        [b' '] => Detected::NeedMore,
        [b' ', target @ ..] => match target_of(target) {
            Detected::NeedMore if bytes.len() == DETECT_MAX_BYTES => Detected::Http1,
            detected => detected,
        },
        _ => Detected::Opaque,
    }
}

/// A request target starts with `/` (origin form), a letter, digit or `[` (absolute
/// and authority form) or `*`, and holds nothing but visible characters until the
/// version: lines of text protocols (`HELO x`, `USER y`) end before one appears.
fn target_of(target: &[u8]) -> Detected {
    match target {
        // No text protocol has a command whose argument is a path before it has
        // been greeted: enough seen.
        [b'/', ..] => return Detected::Http1,
        [b, ..] if b.is_ascii_alphanumeric() || matches!(b, b'*' | b'[') => {}
        _ => return Detected::Opaque,
    }
    let target_bytes = target.iter().take_while(|b| b.is_ascii_graphic()).count();
    if target_bytes >= DETECT_MAX_BYTES - METHOD_MAX_BYTES - 1 {
        return Detected::Http1;
    }
    let (version, expected) = (&target[target_bytes..], b" HTTP/1.");
    if version.starts_with(expected) {
        Detected::Http1
    } else if expected.starts_with(version) {
        Detected::NeedMore
    } else {
        Detected::Opaque
    }
}

#[cfg(test)]
mod tests {
    use super::{DETECT_MAX_BYTES, Detected, detect};

    #[test]
    fn first_bytes_tell() {
        for (bytes, expected) in [
            (&b""[..], Detected::NeedMore),
            (b"G", Detected::NeedMore),
            (b"GET", Detected::NeedMore),
            (b"GET ", Detected::NeedMore),
            (b"GET /", Detected::Http1),
            (b"PROPFIND /dav HTTP/1.1\r\n", Detected::Http1),
            (b"M-SEARCH * HTTP/1.1\r\n", Detected::Http1),
            (b"OPTIONS * HT", Detected::NeedMore),
            (b"CONNECT host:443 HTTP/1.1\r\n", Detected::Http1),
            (b"GET http://host/ HTTP/1.0\r\n", Detected::Http1),
            (b"GET http://a.host.of.so.many.bytes.x/ HTT", Detected::NeedMore),
            (b"GET http://a.host.of.so.many.bytes.x/ HTTP/1.", Detected::Http1),
            (b"GET http://a.host.of.even.more.bytes.than/that", Detected::Http1),
            (b"GET http://a.host.of.even.more.bytes.than/that ", Detected::Http1),
            (b"P", Detected::NeedMore),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", Detected::NeedMore),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0", Detected::Http2),
            (b"PRI * HTTP/2.0\r\n\r\nXX", Detected::Opaque),
            (b"PUT /x HTTP/1.1", Detected::Http1),
            (b"\x16\x03\x01\x02\x00", Detected::Opaque),
            (b"\0", Detected::Opaque),
            (b"SSH-2.0-OpenSSH_9.2\r\n", Detected::Opaque),
            (b"EHLO mail.example.com\r\n", Detected::Opaque),
            (b"USER alice\r\n", Detected::Opaque),
            (b"PING\r\n", Detected::Opaque),
            (b"*1\r\n$4\r\nPING\r\n", Detected::Opaque),
            (b"get / HTTP/1.1\r\n", Detected::Opaque),
            (b"GET  / HTTP/1.1\r\n", Detected::Opaque),
        ] {
            assert_eq!(detect(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn an_answer_is_certain_in_the_end() {
        for fill in [b'A', b' ', b'/', b'a', b'\r', 0] {
            for head in [&b""[..], b"GET ", b"GET a", b"GET a HTTP/1", b"PRI * HTTP/2.0"] {
                let mut bytes = head.to_vec();
                bytes.resize(DETECT_MAX_BYTES, fill);
                assert_ne!(detect(&bytes), Detected::NeedMore, "{bytes:?}");
            }
        }
    }
}
