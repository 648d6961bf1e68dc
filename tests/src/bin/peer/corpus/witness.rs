//! A server that writes down each request as it came, and answers as the request says.

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    net::TcpStream,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use bytes::Bytes;
use h2::server::SendResponse;
use http::{Request, Response};
use serde::Deserialize;
use tests::{
    coding::encoded,
    corpus::{ANSWER, CASE, Field, Seen, of_bytes, to_bytes},
};

use super::{
    http1::{self, Front, Head},
    questions::{fields_of, map_of},
};
use crate::again::Again;

/// How many requests of a question came so far, by who asks.
static ATTEMPTS: Mutex<Option<HashMap<String, usize>>> = Mutex::new(None);

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// See `Ask::answered`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Answer {
    status: Option<u16>,
    headers: Vec<Field>,
    body: Option<String>,
    times: Option<usize>,
    coding: Option<String>,
    trailers: Vec<Field>,
    delay_ms: u64,
    interim: Vec<u16>,
    close: bool,
    cut: bool,
    bytes: Option<String>,
    attempts: Vec<Answer>,
}

impl Answer {
    fn to(seen: &Seen, how: Option<&str>) -> Self {
        let answer: Self = how.map_or_else(Self::default, |how| {
            serde_json::from_str(how).unwrap_or_else(|error| Self {
                status: Some(599),
                body: Some(format!("{how}: {error}")),
                ..Self::default()
            })
        });
        let key = format!("{} {}", seen.peer, seen.case);
        let mut attempts = ATTEMPTS.lock().unwrap_or_else(PoisonError::into_inner);
        let count = attempts.get_or_insert_default().entry(key).or_default();
        *count += 1;
        let last = answer.attempts.len().min(*count);
        if last == 0 { answer } else { answer.attempts[last - 1].clone() }
    }

    fn text(&self, by: &str) -> String {
        let body = self.body.clone().unwrap_or_else(|| format!("from {by}\n"));
        let body = body.repeat(self.times.unwrap_or(1));
        match &self.coding {
            None => body,
            Some(coding) => of_bytes(&encoded(coding, &to_bytes(&body))),
        }
    }
}

/// Serves one connection.
pub(crate) fn serve(mut stream: TcpStream, by: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = vec![0; PREFACE.len()];
    let mut length = 0;
    while length < PREFACE.len() && bytes[..length] == PREFACE[..length] {
        match Again(&stream).read(&mut bytes[length..])? {
            0 => return Ok(()),
            more => length += more,
        }
    }
    bytes.truncate(length);
    if bytes == PREFACE {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        stream.set_nonblocking(true)?;
        return runtime.block_on(over_http2(stream, by));
    }
    while one(&mut stream, &mut bytes, by)? {}
    Ok(())
}

fn more(stream: &TcpStream, bytes: &mut Vec<u8>) -> io::Result<bool> {
    let mut buffer = [0; 1 << 14];
    let length = Again(stream).read(&mut buffer)?;
    bytes.extend_from_slice(&buffer[..length]);
    Ok(length > 0)
}

fn note(seen: &Seen) {
    // One write, so that lines of two threads do not mix.
    let line = format!("{}\n", seen.to_line());
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush());
}

/// One request; whether another may follow.
fn one(stream: &mut TcpStream, bytes: &mut Vec<u8>, by: &str) -> io::Result<bool> {
    let (head, length) = loop {
        match http1::head(bytes) {
            Front::Whole(head, length) => break (head, length),
            Front::Part | Front::Wrong if more(stream, bytes)? => {}
            Front::Part | Front::Wrong => return Ok(false),
        }
    };
    bytes.drain(..length);
    let mut start = head.start.split(' ');
    let mut part = || start.next().unwrap_or_default().to_owned();
    let peer = stream.peer_addr()?.ip().to_canonical();
    let steers = |name: &str| name == CASE || name == ANSWER;
    let mut seen = Seen {
        case: head.header(CASE).unwrap_or_default().to_owned(),
        peer,
        by: by.to_owned(),
        method: part(),
        target: part(),
        version: part(),
        headers: head.headers.iter().filter(|(name, _)| !steers(name)).cloned().collect(),
        body: String::new(),
        trailers: Vec::new(),
        whole: false,
    };
    if head.lists("expect", "100-continue") {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let chunked = head.lists("transfer-encoding", "chunked");
    let length = head.header("content-length").and_then(|l| l.parse::<usize>().ok()).unwrap_or(0);
    loop {
        if chunked {
            match http1::chunked(bytes) {
                Front::Whole((body, trailers), length) => {
                    (seen.body, seen.trailers, seen.whole) = (body, trailers, true);
                    bytes.drain(..length);
                }
                Front::Part | Front::Wrong => {}
            }
        } else if bytes.len() >= length {
            (seen.body, seen.whole) = (of_bytes(&bytes[..length]), true);
            bytes.drain(..length);
        }
        if seen.whole || !matches!(more(stream, bytes), Ok(true)) {
            break;
        }
    }
    note(&seen);
    if !seen.whole {
        return Ok(false);
    }
    respond(stream, &head, &seen)
}

fn respond(stream: &mut TcpStream, head: &Head, seen: &Seen) -> io::Result<bool> {
    let answer = Answer::to(seen, head.header(ANSWER));
    thread::sleep(Duration::from_millis(answer.delay_ms));
    if answer.cut {
        return Ok(false);
    }
    if let Some(bytes) = &answer.bytes {
        stream.write_all(&to_bytes(bytes))?;
        return Ok(false);
    }
    let upgrade = head.header("upgrade").filter(|_| head.lists("connection", "upgrade"));
    let tunnels = answer.status.is_none() && (upgrade.is_some() || seen.method == "CONNECT");
    let mut text: String =
        answer.interim.iter().map(|status| format!("HTTP/1.1 {status} Interim\r\n\r\n")).collect();
    let status = match (answer.status, upgrade) {
        (Some(status), _) => status,
        (None, Some(_)) => 101,
        (None, None) => 200,
    };
    text.push_str(&format!("HTTP/1.1 {status} Said\r\n"));
    for (name, value) in &answer.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if tunnels {
        let kind = upgrade.map(|kind| format!("connection: upgrade\r\nupgrade: {kind}\r\n"));
        text.push_str(&kind.unwrap_or_default());
        text.push_str("\r\n");
        stream.write_all(&to_bytes(&text))?;
        let mut copy = stream.try_clone()?;
        return io::copy(&mut copy, stream).map(|_| false);
    }
    if answer.close {
        text.push_str("connection: close\r\n");
    }
    let body = answer.text(&seen.by);
    let says = |wanted: &str| answer.headers.iter().any(|(name, _)| name == wanted);
    let bodiless = seen.method == "HEAD" || matches!(status, 204 | 304);
    if bodiless {
        text.push_str("\r\n");
    } else if answer.trailers.is_empty() && !says("transfer-encoding") {
        if !says("content-length") {
            text.push_str(&format!("content-length: {}\r\n", body.chars().count()));
        }
        text.push_str(&format!("\r\n{body}"));
    } else {
        if !says("transfer-encoding") {
            text.push_str("transfer-encoding: chunked\r\n");
        }
        let trailers = answer.trailers.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
        let trailers: String = trailers.collect();
        text.push_str(&format!("\r\n{:x}\r\n{body}\r\n0\r\n{trailers}\r\n", body.chars().count()));
    }
    stream.write_all(&to_bytes(&text))?;
    Ok(!answer.close)
}

async fn over_http2(stream: TcpStream, by: &str) -> io::Result<()> {
    let peer = stream.peer_addr()?.ip().to_canonical();
    let stream = tokio::net::TcpStream::from_std(stream)?;
    let stream = Prefaced { rest: PREFACE, stream };
    let mut connection = h2::server::Builder::new()
        .enable_connect_protocol()
        .handshake(stream)
        .await
        .map_err(io::Error::other)?;
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted.map_err(io::Error::other)?;
        let by = by.to_owned();
        tokio::spawn(async move {
            if let Err(error) = stream_of(request, respond, peer, by).await {
                eprintln!("{peer}: {error}");
            }
        });
    }
    Ok(())
}

async fn stream_of(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    peer: std::net::IpAddr,
    by: String,
) -> Result<(), h2::Error> {
    let (parts, mut body) = request.into_parts();
    let text = |name: &str| parts.headers.get(name).map(|v| of_bytes(v.as_bytes()));
    let mut headers = fields_of(&parts.headers);
    let authority = parts.uri.authority().map(|a| (":authority".to_owned(), a.to_string()));
    headers.extend(authority);
    let scheme = parts.uri.scheme_str().map(|s| (":scheme".to_owned(), s.to_owned()));
    headers.extend(scheme);
    let mut seen = Seen {
        case: text(CASE).unwrap_or_default(),
        peer,
        by,
        version: "HTTP/2".to_owned(),
        method: parts.method.to_string(),
        target: parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
        headers,
        body: String::new(),
        trailers: Vec::new(),
        whole: false,
    };
    let mut bytes = Vec::new();
    seen.whole = loop {
        match body.data().await {
            None => break true,
            Some(Err(_)) => break false,
            Some(Ok(data)) => {
                let _ = body.flow_control().release_capacity(data.len());
                bytes.extend(data);
            }
        }
    };
    seen.body = of_bytes(&bytes);
    if seen.whole {
        seen.trailers = body.trailers().await?.as_ref().map(fields_of).unwrap_or_default();
    }
    note(&seen);
    let answer = Answer::to(&seen, text(ANSWER).as_deref());
    tokio::time::sleep(Duration::from_millis(answer.delay_ms)).await;
    if answer.cut {
        respond.send_reset(h2::Reason::INTERNAL_ERROR);
        return Ok(());
    }
    let mut response = Response::builder().status(answer.status.unwrap_or(200));
    for (name, value) in &answer.headers {
        response = response.header(name, value);
    }
    let response = response.body(()).expect("a response that HTTP/2 can say");
    let (body, trailers) = (answer.text(&seen.by), map_of(&answer.trailers));
    let bare = body.is_empty() || seen.method == "HEAD";
    let mut stream = respond.send_response(response, bare && trailers.is_empty())?;
    if !bare {
        stream.send_data(to_bytes(&body).into(), trailers.is_empty())?;
    }
    if !trailers.is_empty() {
        stream.send_trailers(trailers)?;
    }
    Ok(())
}

/// A connection of which the preface was read already.
struct Prefaced {
    rest: &'static [u8],
    stream: tokio::net::TcpStream,
}

mod prefaced {
    use std::{
        io,
        pin::{Pin, pin},
        task::{Context, Poll},
    };

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::Prefaced;

    impl AsyncRead for Prefaced {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if self.rest.is_empty() {
                return pin!(&mut self.stream).poll_read(cx, buffer);
            }
            let (now, rest) = self.rest.split_at(self.rest.len().min(buffer.remaining()));
            buffer.put_slice(now);
            self.rest = rest;
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Prefaced {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            pin!(&mut self.stream).poll_write(cx, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            pin!(&mut self.stream).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            pin!(&mut self.stream).poll_shutdown(cx)
        }
    }
}
