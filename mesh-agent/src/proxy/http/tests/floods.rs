//! Upstreams that never stop: the client gets an answer, and what is held meanwhile is bounded.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::tcp::{OwnedReadHalf, OwnedWriteHalf},
    sync::mpsc,
};

use super::{
    frames::{
        ACK, CONTINUATION, DATA, END_STREAM, GOAWAY, HEADERS, PADDED, PING, PRIORITY, PUSH_PROMISE,
        RST_STREAM, SETTINGS, WHOLE, WINDOW_UPDATE, block, frame, head, preface, request,
    },
    harness::{Client, Mesh, Setup, raw_upstream, read_head, within},
    hostile_upstreams::Ends::{self, Cut, Refused, Whole},
};

/// Of a flood, unless it is ended or held up before.
const FLOOD_BYTES: usize = 2 << 20;
/// What client, agent and upstream may hold at once.
const HELD_MAX_BYTES: u64 = 1 << 20;
/// The only stream.
const S: u32 = 1;
const OK: (&str, &str) = (":status", "200");

/// Who reads what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reads {
    All,
    /// The upstream reads nothing that it is answered.
    NoReplies,
    /// The client reads nothing.
    NoResponse,
}

use Reads::{All, NoReplies, NoResponse};

/// What an upstream sends first, and then again and again.
type Flood = (Vec<u8>, Vec<u8>);
type Row = (&'static str, bool, Reads, fn() -> Flood, &'static [Ends]);

const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

fn text(first: &str, again: &str) -> Flood {
    (first.as_bytes().to_vec(), again.as_bytes().to_vec())
}

fn chunked(first: &str, again: &str) -> Flood {
    text(&format!("{CHUNKED}{first}"), again)
}

fn begun(again: Vec<u8>) -> Flood {
    ([head(0, S, &[OK]), frame(DATA, 0, S, b"begun")].concat(), again)
}

fn number(kind: u8, stream: u32, value: u32) -> Vec<u8> {
    frame(kind, 0, stream, &value.to_be_bytes())
}

fn fields(bytes: usize) -> Vec<u8> {
    block(&[("x", &"v".repeat(bytes))])
}

/// Of little is made much: an entry of 3 KiB, and a byte that means it, so often.
fn unpacks() -> Flood {
    let mut first = block(&[OK]);
    first.extend([b"\x40\x01a\x7f\x81\x17".as_slice(), &[b'v'; 3072]].concat());
    (frame(HEADERS, 0, S, &first), frame(CONTINUATION, 0, S, &[0xbe; 16_000]))
}

#[rustfmt::skip]
const ROWS: &[Row] = &[
    // HTTP/1.1.
    ("a status line without end", false, All, || text("HTTP/1.1 200 ", "a"), &[Refused]),
    ("a header without end", false, All, || text("HTTP/1.1 200 OK\r\nx: ", "v"), &[Refused]),
    ("headers without end", false, All, || text("HTTP/1.1 200 OK\r\n", "x: y\r\n"), &[Refused]),
    ("headers of nothing without end", false, All, || text("HTTP/1.1 200 OK\r\n", "x:\r\n"), &[Refused]),
    ("lines before a head", false, All, || text("", "\r\n"), &[Refused]),
    ("spaces before a head", false, All, || text("", " "), &[Refused]),
    ("zeros", false, All, || text("", "\0"), &[Refused]),
    ("hints without end", false, All, || text("", "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"), &[Refused]),
    ("large hints without end", false, All, || (Vec::new(), format!("HTTP/1.1 103 Early Hints\r\nx: {}\r\n\r\n", "v".repeat(50_000)).into_bytes()), &[Refused]),
    ("going on without end", false, All, || text("", "HTTP/1.1 100 Continue\r\n\r\n"), &[Refused]),
    ("another protocol, unasked", false, All, || text("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", "x"), &[Refused]),
    ("a chunk's size without end", false, All, || chunked("", "0"), &[Cut]),
    ("spaces behind a chunk's size", false, All, || chunked("5", " "), &[Cut]),
    ("an extension without end", false, All, || chunked("5;", "a"), &[Cut]),
    ("extensions without end", false, All, || chunked("", "1;aaaaaaaaaaaaaaaa\r\nx\r\n"), &[Cut]),
    ("a trailer without end", false, All, || chunked("0\r\nx: ", "v"), &[Cut]),
    ("trailers without end", false, All, || chunked("0\r\n", "x: y\r\n"), &[Cut]),
    ("trailers of nothing without end", false, All, || chunked("0\r\n", "x:\r\n"), &[Cut]),
    ("chunks without end", false, All, || chunked("", "1\r\nx\r\n"), &[Cut]),
    ("a body without end", false, All, || text("HTTP/1.1 200 OK\r\n\r\n", "x"), &[Cut, Whole]),
    ("more behind the end", false, All, || text("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nwell", "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\ninjected"), &[Whole]),
    ("a body that nobody reads", false, NoResponse, || text("HTTP/1.1 200 OK\r\n\r\n", "x"), &[Cut]),
    ("chunks that nobody reads", false, NoResponse, || chunked("", "1\r\nx\r\n"), &[Cut]),
    // HTTP/2.
    ("a block without end", true, All, || (frame(HEADERS, 0, S, &block(&[OK])), frame(CONTINUATION, 0, S, &fields(16_000))), &[Refused]),
    ("a block of small fields without end", true, All, || (frame(HEADERS, 0, S, &block(&[OK])), frame(CONTINUATION, 0, S, &block(&[("x", "y")]))), &[Refused]),
    ("a block of nothing without end", true, All, || (frame(HEADERS, 0, S, &block(&[OK])), frame(CONTINUATION, 0, S, &[])), &[Refused]),
    ("a block that unpacks to much", true, All, unpacks, &[Refused]),
    ("trailers without end", true, All, || ([begun(Vec::new()).0, frame(HEADERS, END_STREAM, S, &fields(9))].concat(), frame(CONTINUATION, 0, S, &fields(4000))), &[Refused, Cut]),
    ("hints without end", true, All, || (Vec::new(), head(0, S, &[(":status", "103"), ("link", "</a>")])), &[Refused]),
    ("large hints without end", true, All, || (Vec::new(), head(0, S, &[(":status", "103"), ("x", &"v".repeat(16_000))])), &[Refused]),
    ("hints whose answers nobody reads", true, NoReplies, || (Vec::new(), head(0, S, &[(":status", "103"), ("x", "y")])), &[Refused]),
    ("settings", true, All, || (Vec::new(), frame(SETTINGS, 0, 0, &[])), &[Refused]),
    ("settings whose answers nobody reads", true, NoReplies, || (Vec::new(), frame(SETTINGS, 0, 0, &[])), &[Refused]),
    ("a table that is ever another", true, NoReplies, || (Vec::new(), [[0, 1, 0, 0, 0, 0], [0, 1, 255, 255, 255, 255]].map(|table| frame(SETTINGS, 0, 0, &table)).concat()), &[Refused]),
    ("pings", true, All, || (Vec::new(), frame(PING, 0, 0, &[0; 8])), &[Refused]),
    ("pings whose answers nobody reads", true, NoReplies, || (Vec::new(), frame(PING, 0, 0, &[0; 8])), &[Refused]),
    ("answers to no ping", true, All, || (Vec::new(), frame(PING, ACK, 0, &[0; 8])), &[Refused]),
    ("resets", true, All, || begun(number(RST_STREAM, S, 8)), &[Refused, Cut]),
    ("data of a stream that is over", true, NoReplies, || ([head(END_STREAM, S, &[OK])].concat(), frame(DATA, 0, S, &[0; 1000])), &[Refused, Cut, Whole]),
    ("heads of a stream that is over", true, NoReplies, || ([head(END_STREAM, S, &[OK])].concat(), head(0, S, &[OK])), &[Refused, Cut, Whole]),
    ("promises", true, All, || (Vec::new(), frame(PUSH_PROMISE, WHOLE, S, &[&2_u32.to_be_bytes()[..], &block(&[(":method", "GET"), (":path", "/")])].concat())), &[Refused]),
    ("windows", true, All, || (Vec::new(), number(WINDOW_UPDATE, S, 1)), &[Refused]),
    ("priorities", true, All, || (Vec::new(), frame(PRIORITY, 0, S, &[0; 5])), &[Refused]),
    ("priorities of other streams", true, All, || (Vec::new(), (2..5000).map(|n| frame(PRIORITY, 0, 2 * n + 1, &[0; 5])).collect::<Vec<_>>().concat()), &[Refused]),
    ("frames that nobody knows", true, All, || (Vec::new(), frame(0xfe, 0, S, &[0; 16_000])), &[Refused]),
    ("farewells", true, All, || (Vec::new(), frame(GOAWAY, 0, 0, &[[0, 0, 0, 1], [0; 4]].concat())), &[Refused]),
    ("farewells with a word", true, All, || (Vec::new(), frame(GOAWAY, 0, 0, &[&[0, 0, 0, 1, 0, 0, 0, 0][..], &[b'x'; 16_000]].concat())), &[Refused]),
    ("data of nothing", true, All, || begun(frame(DATA, 0, S, &[])), &[Refused, Cut]),
    ("padding", true, All, || begun(frame(DATA, PADDED, S, &[&[200_u8][..], &[0; 200]].concat())), &[Refused, Cut]),
    ("a body beyond its window", true, NoReplies, || begun(frame(DATA, 0, S, &[b'x'; 16_000])), &[Refused, Cut]),
];

/// Floods the first connection, and answers well on all others.
async fn upstream((_, http2, reads, flood, _): Row) -> SocketAddr {
    raw_upstream(move |stream, n| async move {
        let mut stream = stream;
        if !http2 && read_head(&mut stream).await.is_none() {
            return;
        }
        let (mut read, mut write) = stream.into_split();
        if http2 && (preface(&mut read).await.is_err() || request(&mut read).await.is_err()) {
            return;
        }
        let settings = [frame(SETTINGS, 0, 0, &[]), frame(SETTINGS, ACK, 0, &[])].concat();
        if http2 && write.write_all(&settings).await.is_err() {
            return;
        }
        let flooding = |mut write: OwnedWriteHalf| async move {
            let (first, again) = flood();
            let again = again.repeat((16 << 10) / again.len() + 1);
            write.write_all(&first).await?;
            for _ in 0..FLOOD_BYTES / again.len() + 1 {
                write.write_all(&again).await?;
            }
            std::io::Result::Ok(write)
        };
        // Requests that come later.
        let (told, mut requests) = mpsc::unbounded_channel();
        let mut well = match n {
            0 if reads == NoReplies => flooding(write).await,
            0 => {
                tokio::spawn(later(http2, read, told));
                flooding(write).await
            }
            _ => {
                let _ = told.send(S);
                tokio::spawn(later(http2, read, told));
                Ok(write)
            }
        };
        while let (Ok(write), Some(stream)) = (&mut well, requests.recv().await) {
            let answer = match http2 {
                true => [head(0, stream, &[OK]), frame(DATA, END_STREAM, stream, b"well")].concat(),
                false => b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nwell".to_vec(),
            };
            // How it ends is the client's to judge.
            let _ = write.write_all(&answer).await;
        }
    })
    .await
}

/// Reads whatever comes, and tells of requests by HTTP/2.
async fn later(http2: bool, mut read: OwnedReadHalf, told: mpsc::UnboundedSender<u32>) {
    while http2 && let Ok(stream) = request(&mut read).await {
        let _ = told.send(stream);
    }
    while matches!(read.read(&mut [0; 4096]).await, Ok(1..)) {}
}

fn asks(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: app.test\r\nconnection: close\r\n\r\n")
}

/// The beginning of what comes until the connection ends, its end, and whether that was in order.
async fn heard(client: &mut Client) -> (Vec<u8>, Vec<u8>, bool) {
    let (mut first, mut last) = (Vec::new(), Vec::new());
    let mut read = vec![0; 16 << 10];
    loop {
        match within(client.stream.read(&mut read)).await {
            Ok(0) => return (first, last, true),
            Ok(n) => {
                first.extend(&read[..n.min(4096_usize.saturating_sub(first.len()))]);
                last.extend(&read[..n]);
                last.drain(..last.len().saturating_sub(64));
            }
            Err(_) => return (first, last, false),
        }
    }
}

/// # Errors
/// What came instead of an answer.
async fn ask(mesh: &Mesh, path: &str, reads: bool) -> Result<Ends, String> {
    let mut client = mesh.connect().await;
    client.write(asks(path)).await;
    if !reads {
        // By its limits, though nobody takes what is there.
        let ended = async { mesh.record(0).await };
        let flags = within(ended).await.flags.to_string();
        assert!(["UT", "UC"].contains(&flags.as_str()), "{flags}");
        drop(client.stream);
        client.served.await.expect("the agent does not panic");
        return Ok(Cut);
    }
    let (first, last, in_order) = heard(&mut client).await;
    client.served.await.expect("the agent does not panic");
    let text = String::from_utf8_lossy(&first).into_owned();
    let whole = last.ends_with(b"0\r\n\r\n") || text.contains("\r\ncontent-length: ") && in_order;
    match text.split_whitespace().nth(1) {
        Some("200") if whole => Ok(Whole),
        Some("200") | None => Ok(Cut),
        Some("502" | "503" | "504") => Ok(Refused),
        _ => Err(text),
    }
}

/// # Errors
/// What is wrong.
async fn stands(row: Row) -> Result<(), String> {
    let (_, http2, reads, _, expected) = row;
    let address = upstream(row).await;
    let setup = if http2 { Setup::http2(address) } else { Setup::new(address) };
    let mesh = Mesh::new(setup);
    // This path's timeout is short, for what has no end.
    let ends = ask(&mesh, "/slow", reads != NoResponse).await?;
    let record = mesh.record(0).await;
    // It may have been time before anything else was.
    let expected = expected.contains(&ends) || ends == Refused;
    if !expected || ends != Whole && record.flags.is_empty() {
        return Err(format!("{ends:?}, {}, {record:?}", record.flags));
    }
    // One that never reads again is given up by and by.
    if reads == NoReplies {
        return Ok(());
    }
    // The same upstream is asked again.
    let mut last = Ok(Cut);
    for _ in 0..50 {
        last = ask(&mesh, "/slow", true).await;
        if last == Ok(Whole) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(format!("it is not asked again: {last:?}"))
}

#[test]
fn what_an_upstream_floods_the_agent_with_is_not_held() {
    let mut failed = Vec::new();
    for row in ROWS {
        let mut stood = Ok(());
        // All of it is in this thread.
        let held = allocation_counter::measure(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            stood = runtime.unwrap().block_on(stands(*row));
        });
        println!("{}, HTTP/2 {}: {} KiB", row.0, row.1, held.bytes_max >> 10);
        // Nobody takes a hint before it is its turn, and each becomes a whole head.
        let most = HELD_MAX_BYTES * if row.0.contains("hints") { 4 } else { 1 };
        if held.bytes_max > most {
            failed.push((row.0, row.1, format!("{} KiB are held", held.bytes_max >> 10)));
        }
        if let Err(why) = stood {
            failed.push((row.0, row.1, why));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}
