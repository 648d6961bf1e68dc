//! A strict reading of HTTP/1 request framing, in front of the real parser. Sans-I/O.
//!
//! hyper parses heads leniently where leniency invites request smuggling: it drops a
//! `Content-Length` beside a `Transfer-Encoding`, takes `gzip, chunked` for chunked and
//! a bare LF for a line's end. [`RequestScanner`] sees the same bytes first, follows
//! message framing across keep-alive and pipelining, and refuses every shape that two
//! parsers could read differently. What it lets pass, it and hyper frame alike.
//!
//! Spec: RFC 9112 §2.2, §5, §6, §7.1.

use super::octets::{TARGET, TOKEN, is, is_token, is_value, run_of, run_of_value};

/// As many header lines as Envoy takes by default.
pub const HEADERS_MAX: usize = 100;

/// The longest line of a chunk's size with its extensions.
const CHUNK_LINE_MAX_BYTES: usize = 4096;
/// A chunk-size has at most this many digits, as many as a 60 bit size needs.
const CHUNK_SIZE_MAX_DIGITS: u8 = 15;
/// All trailer lines of one message; hyper's own limit is 16 KiB.
const TRAILERS_MAX_BYTES: usize = 8192;

/// Why a request is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// Not `method SP target SP HTTP/1.0|1.1`.
    #[error("malformed request line")]
    RequestLine,
    /// The target has a fragment, which servers are never told.
    #[error("fragment in the request target")]
    Fragment,
    /// A line ended by LF alone.
    #[error("line ends in a bare LF")]
    BareLf,
    /// A CR that no LF follows.
    #[error("bare CR")]
    BareCr,
    /// A header line continued on the next.
    #[error("folded header line")]
    ObsFold,
    /// Empty, not a token, or followed by whitespace before the colon.
    #[error("invalid header name")]
    HeaderName,
    /// NUL or another control character.
    #[error("control character in a header value")]
    HeaderValue,
    /// Not one decimal number.
    #[error("invalid content-length")]
    ContentLength,
    /// More than one, be they the same: Envoy takes none either.
    #[error("several content-length headers")]
    ContentLengths,
    /// Anything but a single `chunked`, or any in HTTP/1.0.
    #[error("unsupported transfer-encoding")]
    TransferEncoding,
    /// Framed twice.
    #[error("both content-length and transfer-encoding")]
    FramedTwice,
    /// The block is larger, or has more lines, than the listener allows.
    #[error("request headers too large")]
    TooLarge,
    /// The head did not arrive in time. Not the scanner's finding, its caller's.
    #[error("request headers took too long")]
    Timeout,
    /// A chunk-size, its line, a chunk's end or a trailer is malformed.
    #[error("malformed chunked body")]
    Chunk,
    /// CONNECT with a body. Spec: RFC 9110 §9.3.6: its content means nothing.
    #[error("a body of CONNECT")]
    ConnectBody,
}

impl Refusal {
    /// What the client is answered.
    pub fn status(self) -> http::StatusCode {
        match self {
            Self::TooLarge => http::StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Timeout => http::StatusCode::REQUEST_TIMEOUT,
            // Spec: RFC 9112 §6.1.
            Self::TransferEncoding => http::StatusCode::NOT_IMPLEMENTED,
            _ => http::StatusCode::BAD_REQUEST,
        }
    }
}

/// What a run of scanned bytes is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scanned {
    /// Part of a head that is not complete yet.
    HeadPart,
    /// The rest of a head, now complete.
    HeadEnd,
    /// Body: data, chunk framing or trailers.
    Body,
}

/// Follows one HTTP/1 connection's requests.
#[derive(Debug)]
pub struct RequestScanner {
    state: State,
    head: Head,
    head_max_bytes: usize,
    upgrade: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before a request line, where empty lines are skipped. Spec: RFC 9112 §2.2.
    Start,
    StartLf,
    Method,
    TargetStart,
    Target,
    /// How many bytes of `HTTP/1.` have been seen.
    Version(u8),
    VersionMinor,
    RequestLineCr,
    Lf,
    LineStart,
    Name,
    ValueStart,
    Value,
    EndLf,
    /// Bytes left.
    Sized(u64),
    Chunked(Chunk),
    Refused(Refusal),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chunk {
    Size { value: u64, digits: u8 },
    Extension { value: u64 },
    SizeLf { value: u64 },
    Data(u64),
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
}

/// What is remembered of the head in hand; its bytes are not kept.
#[derive(Debug, Default)]
struct Head {
    bytes: usize,
    lines: usize,
    http_10: bool,
    method: Short<7>,
    name: Short<20>,
    value: Short<24>,
    field: Field,
    content_length: Option<u64>,
    chunked: bool,
    line_bytes: usize,
    upgrade: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Field {
    #[default]
    Other,
    ContentLength,
    TransferEncoding,
}

/// The first bytes of a token, lower-cased, and whether there were more.
#[derive(Debug)]
struct Short<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Default for Short<N> {
    fn default() -> Self {
        Self { bytes: [0; N], len: 0 }
    }
}

impl<const N: usize> Short<N> {
    fn push(&mut self, byte: u8) {
        if let Some(slot) = self.bytes.get_mut(self.len) {
            *slot = byte.to_ascii_lowercase();
        }
        self.len = self.len.saturating_add(1);
    }

    fn extend(&mut self, bytes: &[u8]) {
        for (slot, byte) in self.bytes.iter_mut().skip(self.len).zip(bytes) {
            *slot = byte.to_ascii_lowercase();
        }
        self.len = self.len.saturating_add(bytes.len());
    }

    /// `None` where it did not fit.
    fn as_bytes(&self) -> Option<&[u8]> {
        self.bytes.get(..self.len)
    }
}

impl RequestScanner {
    /// A scanner at the beginning of a connection that allows heads of `head_max_bytes`.
    pub fn new(head_max_bytes: usize) -> Self {
        Self { state: State::Start, head: Head::default(), head_max_bytes, upgrade: false }
    }

    /// Whether the next byte would begin a request.
    pub fn at_start(&self) -> bool {
        matches!(self.state, State::Start)
    }

    /// Whether the beginning of a head has been seen and not its end.
    pub fn in_head(&self) -> bool {
        !matches!(
            self.state,
            State::Start | State::Sized(_) | State::Chunked(_) | State::Refused(_)
        )
    }

    /// Whether the head that ended last offers to change the protocol, or is a CONNECT, and has
    /// no body. What follows is a request only if the offer is not taken.
    pub fn offers_upgrade(&self) -> bool {
        self.upgrade && self.at_start()
    }

    /// Scans a prefix of `bytes` (not empty): returns its length and what it is. Call
    /// again with the rest.
    ///
    /// # Errors
    /// The [`Refusal`], from then on for ever. Where [`RequestScanner::in_head`] held, or
    /// a head begins in `bytes`, the whole head is refused.
    pub fn scan(&mut self, bytes: &[u8]) -> Result<(usize, Scanned), Refusal> {
        let scanned = match self.state {
            State::Sized(left) => {
                let n = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                self.state = match left - n as u64 {
                    0 => State::Start,
                    left => State::Sized(left),
                };
                Ok((n, Scanned::Body))
            }
            State::Chunked(chunk) => self.scan_chunked(chunk, bytes),
            State::Refused(refusal) => Err(refusal),
            _ => self.scan_head(bytes),
        };
        if let Err(refusal) = scanned {
            self.state = State::Refused(refusal);
        }
        scanned
    }

    fn scan_head(&mut self, bytes: &[u8]) -> Result<(usize, Scanned), Refusal> {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            let run = self.run(&bytes[at..]);
            if run > 0 {
                at += run;
                self.head.bytes += run;
                if self.head.bytes > self.head_max_bytes {
                    return Err(Refusal::TooLarge);
                }
                continue;
            }
            at += 1;
            self.head.bytes += 1;
            if self.head.bytes > self.head_max_bytes {
                return Err(Refusal::TooLarge);
            }
            if self.state == State::EndLf && byte == b'\n' {
                self.state = self.end_of_head()?;
                return Ok((at, Scanned::HeadEnd));
            }
            self.state = self.step(byte)?;
        }
        Ok((at, Scanned::HeadPart))
    }

    /// How many bytes at the front only go on with what has begun. Most of a head does: it is
    /// worth not to go through [`RequestScanner::step`] for each byte.
    fn run(&mut self, bytes: &[u8]) -> usize {
        match self.state {
            State::Method => {
                let run = run_of(TOKEN, bytes);
                self.head.method.extend(&bytes[..run]);
                run
            }
            State::Target => run_of(TARGET, bytes),
            State::Name => {
                let run = run_of(TOKEN, bytes);
                self.head.name.extend(&bytes[..run]);
                run
            }
            // A value that frames is kept.
            State::Value if self.head.field == Field::Other => run_of_value(bytes),
            _ => 0,
        }
    }

    /// One byte of a head, but for its last.
    fn step(&mut self, byte: u8) -> Result<State, Refusal> {
        let head = &mut self.head;
        Ok(match (self.state, byte) {
            (State::Start, b'\r') => State::StartLf,
            (State::Start, b) if is_token(b) => {
                head.method.push(b);
                State::Method
            }
            (State::StartLf, b'\n') => State::Start,
            (State::StartLf, _) => return Err(Refusal::BareCr),
            (State::Method, b) if is_token(b) => {
                head.method.push(b);
                State::Method
            }
            (State::Method, b' ') => State::TargetStart,
            // hyper would cut it off.
            (State::TargetStart | State::Target, b'#') => return Err(Refusal::Fragment),
            (State::TargetStart | State::Target, b) if is(TARGET, b) => State::Target,
            (State::Target, b' ') => State::Version(0),
            (State::Version(n), b) if b"HTTP/1.".get(usize::from(n)) == Some(&b) => {
                if n == 6 {
                    State::VersionMinor
                } else {
                    State::Version(n + 1)
                }
            }
            (State::VersionMinor, b'0' | b'1') => {
                head.http_10 = byte == b'0';
                State::RequestLineCr
            }
            (State::RequestLineCr, b'\r') => State::Lf,
            (State::Lf, b'\n') => State::LineStart,
            (State::Lf, _) => return Err(Refusal::BareCr),
            (State::LineStart, b'\r') => State::EndLf,
            (State::LineStart, b' ' | b'\t') => return Err(Refusal::ObsFold),
            (State::LineStart, b'\n') => return Err(Refusal::BareLf),
            (State::LineStart, b) if is_token(b) => {
                head.lines += 1;
                if head.lines > HEADERS_MAX {
                    return Err(Refusal::TooLarge);
                }
                head.name = Short::default();
                head.name.push(b);
                State::Name
            }
            (State::Name, b':') => {
                head.field = match head.name.as_bytes() {
                    Some(b"content-length") => Field::ContentLength,
                    Some(b"transfer-encoding") => Field::TransferEncoding,
                    Some(b"upgrade") => {
                        head.upgrade = true;
                        Field::Other
                    }
                    _ => Field::Other,
                };
                head.value = Short::default();
                State::ValueStart
            }
            (State::Name, b) if is_token(b) => {
                head.name.push(b);
                State::Name
            }
            (State::LineStart | State::Name, _) => return Err(Refusal::HeaderName),
            (State::ValueStart, b' ' | b'\t') => State::ValueStart,
            (State::ValueStart | State::Value, b'\r') => {
                head.end_of_line()?;
                State::Lf
            }
            (State::ValueStart | State::Value, b'\n') => return Err(Refusal::BareLf),
            (State::ValueStart | State::Value, b) if is_value(b) => {
                head.value.push(b);
                State::Value
            }
            (State::ValueStart | State::Value, _) => return Err(Refusal::HeaderValue),
            (State::EndLf, _) => return Err(Refusal::BareCr),
            (_, b'\n') => return Err(Refusal::BareLf),
            _ => return Err(Refusal::RequestLine),
        })
    }

    fn end_of_head(&mut self) -> Result<State, Refusal> {
        let head = std::mem::take(&mut self.head);
        let connect = head.method.as_bytes() == Some(b"connect");
        self.upgrade = head.upgrade || connect;
        match (head.chunked, head.content_length) {
            (true, Some(_)) => Err(Refusal::FramedTwice),
            (true, None) | (false, Some(1..)) if connect => Err(Refusal::ConnectBody),
            (true, None) if head.http_10 => Err(Refusal::TransferEncoding),
            (true, None) => Ok(State::Chunked(Chunk::Size { value: 0, digits: 0 })),
            (false, None | Some(0)) => Ok(State::Start),
            (false, Some(n)) => Ok(State::Sized(n)),
        }
    }

    fn scan_chunked(
        &mut self,
        mut chunk: Chunk,
        bytes: &[u8],
    ) -> Result<(usize, Scanned), Refusal> {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            if let Chunk::Data(left) = chunk {
                let n = (bytes.len() - at).min(usize::try_from(left).unwrap_or(usize::MAX));
                at += n;
                chunk = match left - n as u64 {
                    0 => Chunk::DataCr,
                    left => Chunk::Data(left),
                };
                continue;
            }
            at += 1;
            if chunk == Chunk::EndLf && byte == b'\n' {
                self.head = Head::default();
                self.state = State::Start;
                return Ok((at, Scanned::Body));
            }
            chunk = self.step_chunk(chunk, byte).ok_or(Refusal::Chunk)?;
        }
        self.state = State::Chunked(chunk);
        Ok((at, Scanned::Body))
    }

    /// One byte of chunk framing; `None` where it is malformed.
    fn step_chunk(&mut self, chunk: Chunk, byte: u8) -> Option<Chunk> {
        let line = &mut self.head.line_bytes;
        *line += 1;
        Some(match (chunk, byte) {
            (Chunk::Size { value, digits }, b) if b.is_ascii_hexdigit() => {
                let digit = (b as char).to_digit(16)?;
                let digits = digits + 1;
                if digits > CHUNK_SIZE_MAX_DIGITS {
                    return None;
                }
                Chunk::Size { value: value * 16 + u64::from(digit), digits }
            }
            (Chunk::Size { digits: 0, .. }, _) => return None,
            (Chunk::Size { value, .. } | Chunk::Extension { value, .. }, b'\r') => {
                Chunk::SizeLf { value }
            }
            (Chunk::Size { value, .. }, b';') => Chunk::Extension { value },
            (Chunk::Extension { .. }, b) if is_value(b) && *line <= CHUNK_LINE_MAX_BYTES => chunk,
            (Chunk::SizeLf { value }, b'\n') => {
                *line = 0;
                if value == 0 { Chunk::TrailerStart } else { Chunk::Data(value) }
            }
            (Chunk::DataCr, b'\r') => Chunk::DataLf,
            (Chunk::DataLf, b'\n') => {
                *line = 0;
                Chunk::Size { value: 0, digits: 0 }
            }
            (Chunk::TrailerStart, b'\r') => Chunk::EndLf,
            (_, _) if *line > TRAILERS_MAX_BYTES => return None,
            (Chunk::TrailerStart | Chunk::TrailerName, b) if is_token(b) => Chunk::TrailerName,
            (Chunk::TrailerName, b':') => Chunk::TrailerValue,
            (Chunk::TrailerValue, b'\r') => Chunk::TrailerLf,
            (Chunk::TrailerValue, b) if is_value(b) => Chunk::TrailerValue,
            (Chunk::TrailerLf, b'\n') => Chunk::TrailerStart,
            _ => return None,
        })
    }
}

impl Head {
    fn end_of_line(&mut self) -> Result<(), Refusal> {
        match self.field {
            Field::Other => {}
            Field::ContentLength => {
                let value = self.value.as_bytes().map(<[u8]>::trim_ascii_end);
                let length = value.and_then(content_length).ok_or(Refusal::ContentLength)?;
                if self.content_length.replace(length).is_some() {
                    return Err(Refusal::ContentLengths);
                }
            }
            Field::TransferEncoding => {
                let value = self.value.as_bytes().map(<[u8]>::trim_ascii_end);
                if self.chunked || value != Some(b"chunked") {
                    return Err(Refusal::TransferEncoding);
                }
                self.chunked = true;
            }
        }
        Ok(())
    }
}

/// A `content-length`: digits only, and a number that every other parser can hold too.
pub fn content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 {
        return None;
    }
    value.iter().try_fold(0u64, |n, b| b.is_ascii_digit().then(|| n * 10 + u64::from(b - b'0')))
}

/// Feeds arbitrary bytes to the scanner, split in two at `split`, and checks that it
/// reads them as it does unsplit. For fuzzing.
///
/// # Panics
/// Where it does not: a bug.
pub fn fuzz_scan(bytes: &[u8], split: usize) {
    let whole = fuzz_outcome(&[bytes]);
    let (a, b) = bytes.split_at(split.min(bytes.len()));
    assert_eq!(whole, fuzz_outcome(&[a, b]), "a split changes the reading");
}

fn fuzz_outcome(parts: &[&[u8]]) -> (usize, Option<Refusal>) {
    let mut scanner = RequestScanner::new(4096);
    let mut heads = 0;
    for part in parts {
        let mut rest = *part;
        while !rest.is_empty() {
            match scanner.scan(rest) {
                Ok((n, scanned)) => {
                    assert!(n > 0 && n <= rest.len(), "no progress");
                    heads += usize::from(scanned == Scanned::HeadEnd);
                    rest = &rest[n..];
                }
                Err(refusal) => return (heads, Some(refusal)),
            }
        }
    }
    (heads, None)
}

#[cfg(test)]
mod tests {
    use super::{Refusal, RequestScanner, Scanned, fuzz_scan};

    #[test]
    fn framing_is_followed_across_requests() {
        let stream = b"\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n\
            POST / HTTP/1.1\r\ncontent-length:3 \r\n\r\nGET\
            PUT / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n\
            3;ext=\"x\"\r\nabc\r\nA\r\n0123456789\r\n0\r\nx: y\r\nz:\r\n\r\n\
            DELETE /x HTTP/1.0\r\n\r\n";
        let mut scanner = RequestScanner::new(1024);
        let (mut at, mut heads) = (0, 0);
        while at < stream.len() {
            let (n, scanned) = scanner.scan(&stream[at..]).unwrap();
            at += n;
            heads += usize::from(scanned == Scanned::HeadEnd);
        }
        assert_eq!(heads, 4);
        assert!(scanner.at_start());
        for split in 0..stream.len() {
            fuzz_scan(stream, split);
        }
    }

    #[test]
    fn a_refusal_stays() {
        let mut scanner = RequestScanner::new(1024);
        assert_eq!(scanner.scan(b"GET / HTTP/1.1\n"), Err(Refusal::BareLf));
        assert_eq!(scanner.scan(b"GET / HTTP/1.1\r\n\r\n"), Err(Refusal::BareLf));
    }

    #[test]
    fn a_length_is_told_once_and_codings_are_not_implemented() {
        for (fields, refusal, status) in [
            ("content-length: 3\r\ncontent-length: 3", Refusal::ContentLengths, 400),
            ("content-length: 3\r\ncontent-length: 4", Refusal::ContentLengths, 400),
            ("transfer-encoding: gzip, chunked", Refusal::TransferEncoding, 501),
            ("transfer-encoding: identity", Refusal::TransferEncoding, 501),
            ("content-length: 3\r\ntransfer-encoding: chunked", Refusal::FramedTwice, 400),
        ] {
            let head = format!("POST / HTTP/1.1\r\nhost: a\r\n{fields}\r\n\r\n");
            assert_eq!(RequestScanner::new(1024).scan(head.as_bytes()), Err(refusal), "{fields}");
            assert_eq!(refusal.status(), status);
        }
    }

    #[test]
    fn heads_are_bounded() {
        let mut scanner = RequestScanner::new(64);
        let head = b"GET / HTTP/1.1\r\nhost: a\r\nx: 567890123456789012345678901234567\r\n\r\n";
        assert_eq!(scanner.scan(&head[..64]).map(|(n, _)| n), Ok(64));
        assert_eq!(scanner.scan(&head[64..]), Err(Refusal::TooLarge));
        assert_eq!(
            RequestScanner::new(64).scan(&[b'\r', b'\n'].repeat(40)),
            Err(Refusal::TooLarge)
        );
    }
}
