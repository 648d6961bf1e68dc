//! Guard and hyper must frame alike, whatever comes.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;

use super::{GuardLimits, HeadGuard, Refusal};

const LIMITS: GuardLimits =
    GuardLimits { head_max_bytes: 8192, head_timeout: Duration::from_secs(1), idle_timeout: None };

/// What hyper makes of `input`, in pieces, behind the guard: the requests that were let
/// through, and whether one was refused.
async fn served(input: &[u8], sniffed: usize, piece: usize) -> (Vec<String>, bool) {
    let (mut client, server) = tokio::io::duplex(1 << 16);
    let (first, rest) = input.split_at(sniffed.min(input.len()));
    let (guard, shared) = HeadGuard::new(server, BytesMut::from(first), LIMITS);
    let seen = Arc::new(Mutex::new((Vec::new(), false)));
    let service = {
        let seen = Arc::clone(&seen);
        service_fn(move |request: Request<Incoming>| {
            let (seen, shared) = (Arc::clone(&seen), Arc::clone(&shared));
            async move {
                let refusal = shared.next_request();
                let (head, body) = request.into_parts();
                let own = head.headers.get("host").is_some_and(|host| host == "refused");
                // Out of step, and a refusal would be missed or a request invented.
                assert_eq!(refusal.is_some(), own, "{refusal:?} {head:?}");
                let body = body.collect().await.map(|body| body.to_bytes().len());
                if let Some(refusal) = refusal {
                    // A bad chunk is refused or breaks off, as its head is still held or not.
                    seen.lock().unwrap().1 |= refusal != Refusal::Chunk;
                } else {
                    let text = format!("{} {} {:?}", head.method, head.uri, body.ok());
                    seen.lock().unwrap().0.push(text);
                }
                shared.finished();
                Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
            }
        })
    };
    let server = tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(guard), service));
    let (reading, mut writing) = tokio::io::split(&mut client);
    let write = async {
        for piece in rest.chunks(piece) {
            if writing.write_all(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        // Half-closed too early, hyper would not answer.
        tokio::time::sleep(Duration::from_millis(5)).await;
        let _ = writing.shutdown().await;
    };
    let mut reading = reading;
    let mut answers = Vec::new();
    let (_, _) =
        tokio::join!(write, tokio::io::AsyncReadExt::read_to_end(&mut reading, &mut answers));
    // An assertion of the service's.
    if let Err(error) = server.await {
        panic!("{error} on {}", input.escape_ascii());
    }
    let seen = seen.lock().unwrap();
    (seen.0.clone(), seen.1)
}

const STREAM: &[u8] = b"GET /1 HTTP/1.1\r\nhost: a\r\n\r\n\
    POST /2 HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\nx-a:  b \r\n\r\nhello\
    POST /3 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n\
    5;x=y\r\nhello\r\n1\r\n!\r\n0\r\nx-t: u\r\n\r\n\
    HEAD /4 HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n\
    PUT /5 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n\
    GET /6 HTTP/1.1\r\nhost: a\r\n\r\n";

#[tokio::test(start_paused = true)]
async fn a_stream_reads_the_same_in_any_pieces() {
    for (sniffed, piece) in
        [(0, 1), (0, 7), (0, STREAM.len()), (3, 2), (100, 64), (STREAM.len(), 1)]
    {
        let (requests, refused) = served(STREAM, sniffed, piece).await;
        let expected = [
            "GET /1 Some(0)",
            "POST /2 Some(5)",
            "POST /3 Some(6)",
            "HEAD /4 Some(0)",
            "PUT /5 Some(0)",
            "GET /6 Some(0)",
        ];
        assert_eq!(requests, expected, "{sniffed} {piece}");
        assert!(!refused);
    }
}

/// Deterministic mutations of a stream: guard and service never fall out of step, and
/// pieces make no difference to what is refused.
#[tokio::test(start_paused = true)]
async fn mutations_never_divide_guard_and_hyper() {
    let pieces: &[&[u8]] = &[
        b"\r",
        b"\n",
        b"\r\n",
        b"\r\n\r\n",
        b" ",
        b"\t",
        b":",
        b"\0",
        b";",
        b",",
        b"0",
        b"5",
        b"f",
        b"\xff",
        b"chunked",
        b"content-length: 3\r\n",
        b"transfer-encoding: chunked\r\n",
        b"GET / HTTP/1.1\r\n",
        b"connection: close\r\n",
        b"HTTP/1.0",
        b"expect: 100-continue\r\n",
        b"upgrade: x\r\n",
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let mut refusals = 0;
    for _ in 0..3000 {
        let mut input = STREAM.to_vec();
        for _ in 0..=random(3) {
            let at = random(input.len());
            match random(3) {
                0 => drop(input.splice(at..at, pieces[random(pieces.len())].iter().copied())),
                1 => drop(input.drain(at..(at + 1 + random(4)).min(input.len()))),
                _ => input[at] = pieces[random(pieces.len())][0],
            }
        }
        let (_, refused) = served(&input, 0, input.len()).await;
        let (_, again) = served(&input, random(8), 1 + random(40)).await;
        assert_eq!(refused, again, "{}", input.escape_ascii());
        refusals += usize::from(refused);
    }
    assert!(refusals > 500, "{refusals}");
}
