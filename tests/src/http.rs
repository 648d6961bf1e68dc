//! A minimal HTTP/1.1 client for the agent's Unix socket.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The whole body.
    pub body: String,
}

/// `GET path` over the Unix socket at `socket`.
///
/// # Errors
/// If there is no answer, or none that is HTTP.
pub fn get(socket: &Path, path: &str) -> io::Result<Answer> {
    request(socket, "GET", path, "")
}

/// As [`get`], for who takes this.
///
/// # Errors
/// If there is no answer, or none that is HTTP.
pub fn get_accepting(socket: &Path, path: &str, accept: &str) -> io::Result<Answer> {
    send(socket, "GET", path, &format!("accept: {accept}\r\n"), "")
}

/// One request over the Unix socket at `socket`, with a JSON body unless empty.
///
/// # Errors
/// If there is no answer, or none that is HTTP.
pub fn request(socket: &Path, method: &str, path: &str, body: &str) -> io::Result<Answer> {
    send(socket, method, path, "", body)
}

fn send(socket: &Path, method: &str, path: &str, headers: &str, body: &str) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n{headers}\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    parse(&answer).ok_or_else(|| {
        io::Error::other(format!("not HTTP: {:?}", String::from_utf8_lossy(&answer)))
    })
}

fn parse(answer: &[u8]) -> Option<Answer> {
    let split = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..split]).ok()?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = &answer[split + 4..];
    let body = if chunked { join_chunks(body)? } else { body.to_vec() };
    Some(Answer { status, body: String::from_utf8_lossy(&body).into_owned() })
}

fn join_chunks(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|window| window == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).ok()?, 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(line + 2..line + 2 + size)?);
        rest = rest.get(line + 4 + size..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_kinds_of_bodies() {
        let check = |bytes: &[u8], status, body: &str| {
            assert_eq!(parse(bytes), Some(Answer { status, body: body.to_owned() }));
        };
        check(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", 200, "ok");
        check(
            b"HTTP/1.1 503 X\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n1\r\nt\r\n0\r\n\r\n",
            503,
            "not",
        );
        assert_eq!(parse(b"\x15\x03\x01"), None);
    }
}
