//! HTTP/1 messages as they are on the wire, read without mending anything.

use tests::corpus::{Field, Response, of_bytes};

/// What stands at the front of some bytes.
#[derive(Debug)]
pub(super) enum Front<T> {
    Whole(T, usize),
    /// There is more to come.
    Part,
    /// This will never be one.
    Wrong,
}

/// A message's first line and its headers.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) start: String,
    pub(super) headers: Vec<Field>,
}

impl Head {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Whether it has `token` in a list header.
    pub(super) fn lists(&self, name: &str, token: &str) -> bool {
        let of = self.headers.iter().filter(|(n, _)| n == name);
        of.flat_map(|(_, v)| v.split(',')).any(|v| v.trim().eq_ignore_ascii_case(token))
    }
}

pub(super) fn head(bytes: &[u8]) -> Front<Head> {
    let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else {
        return Front::Part;
    };
    let text = of_bytes(&bytes[..end]);
    let mut lines = text.split("\r\n");
    let start = lines.next().unwrap_or_default().to_owned();
    Front::Whole(Head { start, headers: fields(lines) }, end + 4)
}

fn fields<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<Field> {
    let field = |line: &str| {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        (name.to_ascii_lowercase(), value.trim().to_owned())
    };
    lines.map(field).collect()
}

/// A body of chunks, and its trailers.
pub(super) fn chunked(bytes: &[u8]) -> Front<(String, Vec<Field>)> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let rest = &bytes[at..];
        let Some(line) = rest.windows(2).position(|w| w == b"\r\n") else { return Front::Part };
        let size = of_bytes(&rest[..line]);
        let size = size.split(';').next().unwrap_or_default().trim();
        let Ok(size) = usize::from_str_radix(size, 16) else { return Front::Wrong };
        at += line + 2;
        if size == 0 {
            // No trailers: an empty line at once.
            if bytes[at..].starts_with(b"\r\n") {
                return Front::Whole((of_bytes(&body), Vec::new()), at + 2);
            }
            let rest = &bytes[at..];
            let Some(end) = rest.windows(4).position(|w| w == b"\r\n\r\n") else {
                return Front::Part;
            };
            let trailers = of_bytes(&rest[..end]);
            return Front::Whole((of_bytes(&body), fields(trailers.split("\r\n"))), at + end + 4);
        }
        let Some(chunk) = bytes.get(at..at.saturating_add(size)) else { return Front::Part };
        body.extend_from_slice(chunk);
        match bytes.get(at + size..at + size + 2) {
            None => return Front::Part,
            Some(b"\r\n") => at += size + 2,
            Some(_) => return Front::Wrong,
        }
    }
}

/// A response with the informational ones before it; `ended` if nothing more will come.
pub(super) fn response(bytes: &[u8], bodiless: bool, ended: bool) -> Front<Response> {
    let mut interim = Vec::new();
    let mut at = 0;
    loop {
        let (head, length) = match head(&bytes[at..]) {
            Front::Whole(head, length) => (head, length),
            _ if bytes.len() - at >= 5 && !bytes[at..].starts_with(b"HTTP/") => {
                return Front::Wrong;
            }
            _ => return Front::Part,
        };
        at += length;
        let mut words = head.start.splitn(3, ' ').skip(1);
        let Some(status) = words.next().and_then(|s| s.parse().ok()) else {
            return Front::Wrong;
        };
        if (100..200).contains(&status) && status != 101 {
            interim.push(status);
            continue;
        }
        let rest = &bytes[at..];
        let reason = words.next().unwrap_or_default().to_owned();
        let mut response = Response { interim, status, reason, ..Response::default() };
        if bodiless || matches!(status, 101 | 204 | 304) {
        } else if head.lists("transfer-encoding", "chunked") {
            match chunked(rest) {
                Front::Whole((body, trailers), length) => {
                    (response.body, response.trailers) = (body, trailers);
                    at += length;
                }
                Front::Part => return Front::Part,
                Front::Wrong => return Front::Wrong,
            }
        } else if let Some(length) = head.header("content-length") {
            let Ok(length) = length.parse::<usize>() else { return Front::Wrong };
            let Some(body) = rest.get(..length) else { return Front::Part };
            response.body = of_bytes(body);
            at += length;
        } else if ended {
            response.body = of_bytes(rest);
            at = bytes.len();
        } else {
            return Front::Part;
        }
        response.headers = head.headers;
        return Front::Whole(response, at);
    }
}
