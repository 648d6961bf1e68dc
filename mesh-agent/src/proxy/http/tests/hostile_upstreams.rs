//! Upstreams of HTTP/2 that mean harm: their request fails and no other does.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{
    frames::{
        ACK, Act, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PADDED, PING,
        PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS, WHOLE, WINDOW_UPDATE, block, frame, head,
        server,
    },
    harness::{Mesh, Setup},
};

/// What becomes of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    /// The agent answers for itself.
    Refused,
    /// The response begins, and is cut.
    Cut,
    /// What was answered before the attack is passed on.
    Whole,
}

use Ends::{Cut, Refused, Whole};

const OK: (&str, &str) = (":status", "200");

fn well(stream: u32) -> Vec<u8> {
    [head(0, stream, &[OK]), frame(DATA, END_STREAM, stream, b"well")].concat()
}

fn begun(stream: u32) -> Vec<u8> {
    [head(0, stream, &[OK]), frame(DATA, 0, stream, b"begun")].concat()
}

fn says(frames: &[Vec<u8>]) -> Act {
    Act::Says(frames.concat())
}

fn settings(id: u16, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
}

fn number(kind: u8, stream: u32, value: u32) -> Vec<u8> {
    frame(kind, 0, stream, &value.to_be_bytes())
}

fn goaway(last: u32, reason: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[last.to_be_bytes(), reason.to_be_bytes()].concat())
}

/// Begins a block that has no end.
fn endless(stream: u32, more: &[u8]) -> Act {
    let begin = frame(HEADERS, 0, stream, &block(&[OK]));
    Act::Floods(begin, frame(CONTINUATION, 0, stream, more))
}

/// A whole head, in as many frames as it takes.
fn long(stream: u32, bytes: usize) -> Vec<u8> {
    let all = block(&[OK, ("x-long", &"v".repeat(bytes))]);
    let mut frames = Vec::new();
    for (n, part) in all.chunks(16_000).enumerate() {
        let kind = if n == 0 { HEADERS } else { CONTINUATION };
        frames.extend(frame(kind, 0, stream, part));
    }
    frames.extend(frame(CONTINUATION, END_HEADERS, stream, &[]));
    frames
}

type Row = (&'static str, fn(u32) -> Act, &'static [Ends]);

#[rustfmt::skip]
const ROWS: &[Row] = &[
    // Frames that are out of place.
    ("data before headers", |s| says(&[frame(DATA, END_STREAM, s, b"injected")]), &[Refused]),
    ("a stream never opened", |s| says(&[head(END_STREAM, s + 2, &[OK]), well(s)]), &[Refused]),
    ("a stream of its own", |s| says(&[head(END_STREAM, 2, &[OK]), well(s)]), &[Refused]),
    ("data of a stream never opened", |s| says(&[frame(DATA, 0, s + 2, b"injected"), well(s)]), &[Refused]),
    ("a reset of a stream never opened", |s| says(&[number(RST_STREAM, s + 2, 8), well(s)]), &[Refused]),
    ("a window of a stream never opened", |s| says(&[number(WINDOW_UPDATE, s + 2, 8), well(s)]), &[Refused]),
    ("a continuation of nothing", |s| says(&[frame(CONTINUATION, END_HEADERS, s, &block(&[OK])), well(s)]), &[Refused]),
    ("a block that something comes between", |s| says(&[frame(HEADERS, 0, s, &block(&[OK])), frame(PING, 0, 0, &[0; 8]), well(s)]), &[Refused]),
    ("a promise", |s| says(&[frame(PUSH_PROMISE, END_HEADERS, s, &[&2_u32.to_be_bytes()[..], &block(&[(":method", "GET"), (":path", "/")])].concat()), well(s)]), &[Refused]),
    ("headers of no stream", |s| says(&[head(END_STREAM, 0, &[OK]), well(s)]), &[Refused]),
    ("data of no stream", |s| says(&[frame(DATA, 0, 0, b"injected"), well(s)]), &[Refused]),
    ("settings of a stream", |s| says(&[frame(SETTINGS, 0, s, &[]), well(s)]), &[Refused]),
    ("a ping of a stream", |s| says(&[frame(PING, 0, s, &[0; 8]), well(s)]), &[Refused]),
    ("data after the end", |s| says(&[well(s), frame(DATA, END_STREAM, s, b"injected")]), &[Refused, Cut, Whole]),
    ("another answer", |s| says(&[well(s), well(s)]), &[Refused, Cut, Whole]),
    ("headers again", |s| says(&[begun(s), head(0, s, &[OK])]), &[Refused, Cut]),
    // Frames that are none.
    ("no HTTP/2", |_| says(&[b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\ninjected".to_vec()]), &[Refused]),
    ("a ping of seven bytes", |s| says(&[frame(PING, 0, 0, &[0; 7]), well(s)]), &[Refused]),
    ("a reset of five bytes", |s| says(&[frame(RST_STREAM, 0, s, &[0; 5]), well(s)]), &[Refused]),
    ("settings of five bytes", |s| says(&[frame(SETTINGS, 0, 0, &[0; 5]), well(s)]), &[Refused]),
    ("a frame that is too large", |s| says(&[begun(s), frame(DATA, END_STREAM, s, &[b'a'; 20_000])]), &[Refused, Cut]),
    ("padding and nothing else", |s| says(&[head(0, s, &[OK]), frame(DATA, PADDED | END_STREAM, s, b"\xffinjected")]), &[Refused, Cut]),
    // Values that can't be.
    ("a window that overflows", |s| says(&[number(WINDOW_UPDATE, 0, 0x7fff_ffff).repeat(2), well(s)]), &[Refused]),
    ("a stream's window that overflows", |s| says(&[number(WINDOW_UPDATE, s, 0x7fff_ffff).repeat(2), well(s)]), &[Refused, Whole]),
    ("a window of nothing", |s| says(&[number(WINDOW_UPDATE, 0, 0), well(s)]), &[Refused]),
    ("a first window that is too large", |s| says(&[settings(4, 0xffff_ffff), well(s)]), &[Refused]),
    ("frames that are too small", |s| says(&[settings(5, 1), well(s)]), &[Refused]),
    ("push that a server can't allow", |s| says(&[settings(2, 7), well(s)]), &[Refused]),
    ("farewell to streams that are to come", |s| says(&[goaway(s + 100, 0), goaway(s + 102, 0), well(s)]), &[Refused, Whole]),
    ("farewell to a stream of its own", |s| says(&[goaway(0x7fff_fffe, 0), well(s)]), &[Refused, Whole]),
    ("farewell to all", |_| says(&[goaway(0, 0)]), &[Refused]),
    ("farewell for a reason", |s| says(&[begun(s), goaway(s, 2), frame(DATA, END_STREAM, s, b"more")]), &[Refused, Cut, Whole]),
    ("a reset", |s| says(&[number(RST_STREAM, s, 2)]), &[Refused]),
    ("a reset without a reason", |s| says(&[begun(s), number(RST_STREAM, s, 0)]), &[Refused, Cut]),
    // Heads that are none.
    ("no status", |s| says(&[head(END_STREAM, s, &[("x", "y")])]), &[Refused]),
    ("two statuses", |s| says(&[head(END_STREAM, s, &[OK, (":status", "201")])]), &[Refused]),
    ("a status of letters", |s| says(&[head(END_STREAM, s, &[(":status", "2x0")])]), &[Refused]),
    ("a status of nothing", |s| says(&[head(END_STREAM, s, &[(":status", "0")])]), &[Refused]),
    ("another protocol", |s| says(&[head(0, s, &[(":status", "101")]), frame(DATA, END_STREAM, s, b"injected")]), &[Refused]),
    ("nothing but what comes before", |s| says(&[head(END_STREAM, s, &[(":status", "100")])]), &[Refused]),
    // The codec takes it away.
    ("a request's pseudo-header", |s| says(&[head(END_STREAM, s, &[OK, (":path", "/")])]), &[Refused, Whole]),
    ("a status that is late", |s| says(&[head(END_STREAM, s, &[("x", "y"), OK])]), &[Refused]),
    ("a header of two lines", |s| says(&[head(END_STREAM, s, &[OK, ("x", "y\r\ninjected: 1")])]), &[Refused]),
    ("a name of two lines", |s| says(&[head(END_STREAM, s, &[OK, ("x\r\ninjected", "1")])]), &[Refused]),
    ("a name with a space", |s| says(&[head(END_STREAM, s, &[OK, ("injected x", "1")])]), &[Refused]),
    ("a name in capitals", |s| says(&[head(END_STREAM, s, &[OK, ("Injected", "1")])]), &[Refused]),
    ("a zero byte", |s| says(&[head(END_STREAM, s, &[OK, ("injected", "a\0b")])]), &[Refused]),
    ("two lengths", |s| says(&[head(0, s, &[OK, ("content-length", "4"), ("content-length", "8")]), frame(DATA, END_STREAM, s, b"injected")]), &[Refused]),
    ("a body that is too long", |s| says(&[head(0, s, &[OK, ("content-length", "1")]), frame(DATA, END_STREAM, s, b"injected")]), &[Refused, Cut]),
    ("a body that is too short", |s| says(&[head(0, s, &[OK, ("content-length", "9")]), frame(DATA, END_STREAM, s, b"short")]), &[Refused, Cut]),
    ("trailers with a status", |s| says(&[begun(s), head(END_STREAM, s, &[(":status", "200")])]), &[Refused, Cut, Whole]),
    ("a head that is too long", |s| says(&[long(s, 80_000), frame(DATA, END_STREAM, s, b"injected")]), &[Refused]),
    ("an entry that is not there", |s| says(&[frame(HEADERS, WHOLE, s, &[0x88, 0xff, 0x7f])]), &[Refused]),
    ("an entry of no number", |s| says(&[frame(HEADERS, WHOLE, s, &[0x80])]), &[Refused]),
    ("a number without end", |s| says(&[frame(HEADERS, WHOLE, s, &[0xff; 64])]), &[Refused]),
    ("a table that is too large", |s| says(&[frame(HEADERS, WHOLE, s, &[0x3f, 0xff, 0xff, 0xff, 0x7f, 0x88])]), &[Refused]),
    // Floods.
    ("nothing", |_| says(&[]), &[Refused]),
    ("the end of the connection", |_| Act::Leaves(Vec::new()), &[Refused]),
    ("the end of the connection within a body", |s| Act::Leaves(begun(s)), &[Refused, Cut]),
    ("a block without end", |s| endless(s, &block(&[("x", &"v".repeat(4000))])), &[Refused]),
    ("a block of nothing without end", |s| endless(s, &[]), &[Refused]),
    ("resets without end", |s| Act::Floods(begun(s), number(RST_STREAM, s, 8)), &[Refused, Cut]),
    ("settings without end", |_| Act::Floods(Vec::new(), settings(3, 100)), &[Refused]),
    ("pings without end", |_| Act::Floods(Vec::new(), frame(PING, 0, 0, &[0; 8])), &[Refused]),
    ("answers to no ping without end", |_| Act::Floods(Vec::new(), frame(PING, ACK, 0, &[0; 8])), &[Refused]),
    ("answers to no settings without end", |_| Act::Floods(Vec::new(), frame(SETTINGS, ACK, 0, &[])), &[Refused]),
    ("windows without end", |s| Act::Floods(Vec::new(), number(WINDOW_UPDATE, s, 1)), &[Refused]),
    ("priorities without end", |s| Act::Floods(Vec::new(), frame(PRIORITY, 0, s, &[0; 5])), &[Refused]),
    ("frames that nobody knows without end", |s| Act::Floods(Vec::new(), frame(0xfe, 0, s, &[0; 9])), &[Refused]),
    ("data of nothing without end", |s| Act::Floods(begun(s), frame(DATA, 0, s, &[])), &[Refused, Cut]),
    ("padding without end", |s| Act::Floods(begun(s), frame(DATA, PADDED, s, &[&[200_u8][..], &[0; 200]].concat())), &[Refused, Cut]),
    ("early hints without end", |s| Act::Floods(Vec::new(), head(0, s, &[(":status", "103"), ("link", "</a>")])), &[Refused]),
    ("farewells without end", |s| Act::Floods(Vec::new(), goaway(s, 0)), &[Refused]),
];

/// What came of asking for `path`, and all of it.
///
/// # Errors
/// Neither: what came.
async fn ask(mesh: &Mesh, path: &str) -> Result<(Ends, String), String> {
    let mut client = mesh.connect().await;
    let request = format!("GET {path} HTTP/1.1\r\nhost: app.test\r\nconnection: close\r\n\r\n");
    client.write(request).await;
    let (text, reset) = client.rest().await;
    client.served.await.expect("the agent does not panic");
    let whole = text.ends_with("\r\n0\r\n\r\n") || text.contains("\r\ncontent-length: ") && !reset;
    match text.split_whitespace().nth(1) {
        Some("200") if whole => Ok((Whole, text)),
        Some("200") => Ok((Cut, text)),
        Some("502" | "503" | "504") => Ok((Refused, text)),
        // It had not been sent yet.
        None => Ok((Cut, text)),
        _ => Err(text),
    }
}

/// Whether the rest of the agent stands what one upstream does.
///
/// # Errors
/// It does not: what came.
async fn stands((_, attack, expected): Row) -> Result<(), String> {
    let good = |(ends, text): (Ends, String)| match ends {
        Whole if text.contains("well") => Ok(()),
        _ => Err(text),
    };
    let others = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&others);
    let other = server(
        |stream| Act::Says(well(stream)),
        move |stream| {
            counted.fetch_add(1, Ordering::Relaxed);
            well(stream)
        },
    );
    let shadow = Some(other.await);
    let mesh = Mesh::new(Setup { shadow, ..Setup::http2(server(attack, well).await) });
    good(ask(&mesh, "/shadow").await?)?;

    // This path's timeout is short, for those who never answer.
    let (ends, text) = ask(&mesh, "/slow").await?;
    let head = text.split("\r\n\r\n").next().unwrap_or_default().to_ascii_lowercase();
    let injected = head.contains("injected") || ends == Refused && text.contains("injected");
    let record = mesh.record(1).await;
    if !expected.contains(&ends) || injected || ends != Whole && record.flags.is_empty() {
        return Err(format!("{ends:?}, {}: {text:?}", record.flags));
    }

    // Others have never noticed: they are asked on the same connection.
    let connections = mesh.connections();
    good(ask(&mesh, "/shadow").await?)?;
    if (others.load(Ordering::Relaxed), mesh.connections()) != (1, connections) {
        return Err("another upstream's connection has ended".to_owned());
    }
    // And the same upstream is asked again.
    let mut last = String::new();
    for _ in 0..50 {
        match ask(&mesh, "/slow").await.and_then(good) {
            Ok(()) => return Ok(()),
            Err(text) => last = text,
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(format!("it is not asked again: {last:?}"))
}

#[tokio::test]
async fn upstreams_that_break_http2_fail_their_own_requests_and_nobody_elses() {
    let mut failed = Vec::new();
    for row in ROWS {
        if let Err(why) = stands(*row).await {
            failed.push((row.0, why));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}
