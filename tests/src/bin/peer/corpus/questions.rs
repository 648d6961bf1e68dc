//! Asks what a file of scripts says and prints what came, a line of JSON for each script.

use std::{
    fs, io,
    net::SocketAddr,
    process::ExitCode,
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use tests::corpus::{
    ANSWER, Ask, CASE, Field, Heard, Protocol, Response, Script, of_bytes, to_bytes,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Semaphore,
    time::{sleep, timeout},
};

use super::http1::{self, Front};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long bytes are listened to after the last word.
const QUIET: Duration = Duration::from_millis(1500);
/// How long a connection that nothing was said of may take to be closed all the same.
const GRACE: Duration = Duration::from_millis(60);
/// Scripts at a time: there are two cores.
const AT_ONCE: usize = 24;

pub(crate) fn run(file: &str) -> ExitCode {
    let scripts = fs::read(file).expect("read the scripts");
    let scripts: Vec<Script> = serde_json::from_slice(&scripts).expect("scripts in JSON");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let turns = std::sync::Arc::new(Semaphore::new(AT_ONCE));
        let running: Vec<_> = scripts
            .into_iter()
            .map(|script| {
                let turns = std::sync::Arc::clone(&turns);
                tokio::spawn(async move {
                    let _turn = turns.acquire().await.expect("nobody closes it");
                    let together = script.asks.iter().all(|ask| ask.protocol == Protocol::Bytes);
                    let mut heard = Vec::new();
                    let mut running = Vec::new();
                    for (index, ask) in script.asks.into_iter().enumerate() {
                        let case = format!("{}#{index}", script.name);
                        let asked = async move { answer(&ask, script.address, &case).await };
                        // Bytes are waited for long, and come by themselves.
                        if together {
                            running.push(tokio::spawn(asked));
                        } else {
                            heard.push(asked.await);
                        }
                    }
                    for asked in running {
                        heard.push(asked.await.expect("a question comes to its end"));
                    }
                    heard
                })
            })
            .collect();
        for script in running {
            let heard = script.await.expect("a script comes to its end");
            println!("{}", serde_json::to_string(&heard).expect("plain data"));
        }
    });
    ExitCode::SUCCESS
}

async fn answer(ask: &Ask, address: SocketAddr, case: &str) -> Heard {
    let _beside = match ask.beside {
        true => match beside(address).await {
            Ok(beside) => Some(beside),
            Err(error) => {
                return Heard { end: format!("none beside it: {error}"), ..Heard::default() };
            }
        },
        false => None,
    };
    let begun = Instant::now();
    let heard = asked(ask, address, case).await;
    match ask.not_before_ms {
        Some(least) if heard.responses.is_empty() && heard.end == "closed" => {
            let in_time = begun.elapsed() >= Duration::from_millis(least);
            let end = if in_time { "closed in time" } else { "closed too early" };
            Heard { end: end.to_owned(), ..heard }
        }
        _ => heard,
    }
}

/// Another connection, over which something was answered.
async fn beside(address: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    let ask = Ask::new("GET", "/beside");
    stream.write_all(&head_of(&ask, "beside")).await?;
    let mut bytes = Vec::new();
    let reading = async {
        while !matches!(http1::response(&bytes, false, false), Front::Whole(..)) {
            if stream.read_buf(&mut bytes).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
        }
        io::Result::Ok(())
    };
    timeout(PATIENCE, reading).await.map_err(io::Error::from)??;
    Ok(stream)
}

async fn asked(ask: &Ask, address: SocketAddr, case: &str) -> Heard {
    let asked = async {
        match ask.protocol {
            Protocol::Http1 => over_http1(ask, address, case).await,
            Protocol::Http2 => over_http2(ask, address, case).await,
            Protocol::Bytes => over_bytes(ask, address).await,
        }
    };
    match timeout(PATIENCE, asked).await {
        Ok(Ok(heard)) => heard,
        // Whether what is unread makes it a reset is up to time.
        Ok(Err(_)) => Heard { end: "closed".to_owned(), ..Heard::default() },
        Err(_) => Heard { end: "hangs".to_owned(), ..Heard::default() },
    }
}

fn head_of(ask: &Ask, case: &str) -> Vec<u8> {
    let mut head = format!("{} {} HTTP/1.1\r\n", ask.method, ask.target);
    let line = |(name, value): (&str, &str)| format!("{name}: {value}\r\n");
    head.extend(ask.authority.iter().map(|host| line(("host", host))));
    head.push_str(&line((CASE, case)));
    head.extend(ask.headers.iter().map(|(name, value)| line((name, value))));
    let says = |wanted: &str| ask.headers.iter().any(|(name, _)| name == wanted);
    let chunks = !ask.trailers.is_empty() || says("transfer-encoding");
    if chunks && !says("transfer-encoding") {
        head.push_str("transfer-encoding: chunked\r\n");
    }
    let mut bytes = Vec::new();
    if let Some(body) = &ask.body {
        let body = to_bytes(body);
        if chunks {
            if !body.is_empty() {
                bytes.extend(format!("{:x}\r\n", body.len()).bytes());
                bytes.extend(body);
                bytes.extend(b"\r\n");
            }
            let trailers = ask.trailers.iter().map(|(name, value)| line((name, value)));
            bytes.extend(format!("0\r\n{}\r\n", trailers.collect::<String>()).bytes());
        } else {
            if !says("content-length") {
                head.push_str(&line(("content-length", &body.len().to_string())));
            }
            bytes = body;
        }
    }
    head.push_str("\r\n");
    [to_bytes(&head), bytes].concat()
}

async fn over_http1(ask: &Ask, address: SocketAddr, case: &str) -> io::Result<Heard> {
    let mut stream = TcpStream::connect(address).await?;
    // What was not taken is seen in the answer.
    let _ = stream.write_all(&head_of(ask, case)).await;
    let bodiless = ask.method == "HEAD";
    let (mut bytes, mut ended) = (Vec::new(), false);
    let (mut response, length) = loop {
        match http1::response(&bytes, bodiless || ask.method == "CONNECT", ended) {
            Front::Whole(response, length) => break (response, length),
            Front::Part if !ended => {
                ended = !matches!(stream.read_buf(&mut bytes).await, Ok(1..));
            }
            // How much came of what was cut is up to time.
            Front::Part => return Ok(Heard { end: "closed".to_owned(), ..Heard::default() }),
            Front::Wrong => return Ok(Heard { end: "nonsense".to_owned(), ..Heard::default() }),
        }
    };
    let open = response.status == 101 || (ask.method == "CONNECT" && response.status == 200);
    if let Some(words) = ask.tunnelled.as_ref().filter(|_| open) {
        let mut back = bytes.split_off(length);
        stream.write_all(&to_bytes(words)).await?;
        while back.len() < words.len() && matches!(stream.read_buf(&mut back).await, Ok(1..)) {}
        response.body = of_bytes(&back);
    }
    let says = |(name, value): &Field| name == "connection" && value.contains("close");
    let told = response.headers.iter().any(says);
    let patience = if told { QUIET } else { GRACE };
    let closed = ended || matches!(timeout(patience, stream.read_u8()).await, Ok(Err(_)));
    let end = if closed { "closed" } else { "kept" };
    Ok(Heard { responses: vec![response], end: end.to_owned() })
}

async fn over_bytes(ask: &Ask, address: SocketAddr) -> io::Result<Heard> {
    let mut stream = TcpStream::connect(address).await?;
    for (index, piece) in ask.pieces.iter().enumerate() {
        if index > 0 {
            sleep(Duration::from_millis(200)).await;
        }
        if stream.write_all(&to_bytes(piece)).await.is_err() {
            break;
        }
    }
    let (mut bytes, mut end) = (Vec::new(), "kept");
    while let Ok(read) = timeout(QUIET, stream.read_buf(&mut bytes)).await {
        if !matches!(read, Ok(1..)) {
            end = "closed";
            break;
        }
    }
    let (mut responses, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        match http1::response(&bytes[at..], false, end == "closed") {
            Front::Whole(response, length) => {
                responses.push(response);
                at += length;
            }
            Front::Part => {
                end = "partial";
                break;
            }
            Front::Wrong => {
                end = "nonsense";
                break;
            }
        }
    }
    Ok(Heard { responses, end: end.to_owned() })
}

async fn over_http2(ask: &Ask, address: SocketAddr, case: &str) -> io::Result<Heard> {
    let stream = TcpStream::connect(address).await?;
    let (send, connection) = h2::client::handshake(stream).await.map_err(io::Error::other)?;
    let driver = tokio::spawn(connection);
    let mut response = Response::default();
    let end = match stream_of(send, ask, case, &mut response).await {
        Ok(()) => "kept".to_owned(),
        Err(error) => match error.reason() {
            Some(reason) => format!("reset: {reason:?}"),
            None => "closed".to_owned(),
        },
    };
    driver.abort();
    let responses = if response.status == 0 { Vec::new() } else { vec![response] };
    Ok(Heard { responses, end })
}

async fn stream_of(
    send: SendRequest<Bytes>,
    ask: &Ask,
    case: &str,
    into: &mut Response,
) -> Result<(), h2::Error> {
    let authority = ask.authority.as_deref().unwrap_or_default();
    let mut request = Request::builder()
        .method(ask.method.as_str())
        .uri(format!("http://{authority}{}", ask.target))
        .header(CASE, case);
    for (name, value) in &ask.headers {
        request = request.header(name, value);
    }
    let request = request.body(()).expect("a request that HTTP/2 can say");
    let mut send = send.ready().await?;
    let bare = ask.body.is_none() && ask.trailers.is_empty();
    let (response, mut body) = send.send_request(request, bare)?;
    if let Some(bytes) = &ask.body {
        body.send_data(to_bytes(bytes).into(), ask.trailers.is_empty())?;
    }
    if !ask.trailers.is_empty() {
        body.send_trailers(map_of(&ask.trailers))?;
    }
    let response = response.await?;
    into.status = response.status().as_u16();
    into.headers = fields_of(response.headers());
    let mut stream = response.into_body();
    let mut bytes = Vec::new();
    while let Some(data) = stream.data().await {
        let data = data.inspect_err(|_| into.body = of_bytes(&bytes))?;
        let _ = stream.flow_control().release_capacity(data.len());
        bytes.extend(data);
    }
    into.body = of_bytes(&bytes);
    into.trailers = stream.trailers().await?.as_ref().map(fields_of).unwrap_or_default();
    Ok(())
}

pub(super) fn map_of(fields: &[Field]) -> HeaderMap {
    let field = |(name, value): &Field| {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a header's name");
        (name, HeaderValue::from_bytes(&to_bytes(value)).expect("a header's value"))
    };
    fields.iter().map(field).collect()
}

/// But for what steers witnesses.
pub(super) fn fields_of(headers: &HeaderMap) -> Vec<Field> {
    let of = headers.iter().map(|(n, v)| (n.as_str().to_owned(), of_bytes(v.as_bytes())));
    of.filter(|(name, _)| name != ANSWER && name != CASE).collect()
}
