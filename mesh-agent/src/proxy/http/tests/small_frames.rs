//! Peers of HTTP/2 that send single bytes to somebody who does not read them: each takes far more
//! than it counts for by flow control, and h2 has each count for 256 of the connection's window.

use http::Response;
use http_body_util::{BodyExt, Full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    frames::{ACK, DATA, END_STREAM, GOAWAY, PADDED, SETTINGS, frame, head, preface, request},
    harness::{Mesh, Setup, eventually, http_upstream, raw_upstream, silent_upstream, within},
};

/// Less than three streams' windows.
const FRAMES: usize = 600 << 10;
/// For as many as are taken.
const HELD_MAX_BYTES: u64 = 40 << 20;

/// As many frames of a byte for each stream, in pieces; padded, for others are put together as
/// they are read.
fn trickle(streams: [u32; 3]) -> impl Iterator<Item = Vec<u8>> {
    let each = streams.map(|stream| frame(DATA, PADDED, stream, b"\0x")).concat();
    let piece = each.repeat(1 << 10);
    std::iter::repeat_n(piece, FRAMES / (3 << 10))
}

/// Runs it in this thread; what is held meanwhile has its bound.
fn bounded(run: impl Future<Output = ()>) {
    let held = allocation_counter::measure(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(run);
    });
    println!("{} KiB", held.bytes_max >> 10);
    assert!(held.bytes_max < HELD_MAX_BYTES, "{} KiB are held", held.bytes_max >> 10);
}

#[test]
fn an_upstream_that_trickles_to_clients_that_do_not_read_is_hung_up_on() {
    bounded(async {
        // The first connection floods its first three requests; others are answered.
        let address = raw_upstream(|stream, n| async move {
            let (mut read, mut write) = stream.into_split();
            preface(&mut read).await.unwrap();
            let first = request(&mut read).await.unwrap();
            let settings = [frame(SETTINGS, 0, 0, &[]), frame(SETTINGS, ACK, 0, &[])].concat();
            write.write_all(&settings).await.unwrap();
            if n > 0 {
                let well = [
                    head(0, first, &[(":status", "200")]),
                    frame(DATA, END_STREAM, first, b"well"),
                ];
                write.write_all(&well.concat()).await.unwrap();
                while matches!(read.read(&mut [0; 4096]).await, Ok(1..)) {}
                return;
            }
            let second = request(&mut read).await.unwrap();
            let streams = [first, second, request(&mut read).await.unwrap()];
            for stream in streams {
                write.write_all(&head(0, stream, &[(":status", "200")])).await.unwrap();
            }
            for piece in trickle(streams) {
                if write.write_all(&piece).await.is_err() {
                    return;
                }
            }
            while matches!(read.read(&mut [0; 4096]).await, Ok(1..)) {}
        });
        let mesh = Mesh::new(Setup::http2(address.await));
        let ask = "GET /stream HTTP/1.1\r\nhost: app.test\r\n\r\n";
        // So much of the responses that nothing more is taken of them.
        let mut clients = [mesh.connect().await, mesh.connect().await, mesh.connect().await];
        for client in &mut clients {
            socket2::SockRef::from(&client.stream).set_recv_buffer_size(4096).unwrap();
            client.write(ask).await;
        }
        for n in 0..3 {
            let record = mesh.record(n).await;
            assert_eq!(record.flags.to_string(), "UC", "{record:?}");
        }
        let response = mesh.connect().await.ask(ask).await;
        assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
        assert_eq!(mesh.connections(), 2);
    });
}

#[test]
fn a_client_that_trickles_to_who_does_not_read_is_hung_up_on() {
    bounded(async {
        let (upstream, _) = silent_upstream().await;
        let mut setup = Setup::new(upstream);
        // Whoever comes second waits, and so does its body.
        setup.circuit_breakers.default.max_connections = 1;
        let mesh = Mesh::new(setup);
        let mut client = mesh.connect().await;
        let fields = |method| {
            [
                (":method", method),
                (":scheme", "http"),
                (":authority", "app.test"),
                (":path", "/stream"),
            ]
        };
        let mut says = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        says.extend(frame(SETTINGS, 0, 0, &[]));
        says.extend(head(END_STREAM, 1, &fields("GET")));
        client.write(says).await;
        eventually(|| (mesh.connections() == 1).then_some(())).await;
        client.write([3, 5, 7].map(|stream| head(0, stream, &fields("POST"))).concat()).await;
        let (mut read, mut write) = client.stream.into_split();
        let reading =
            tokio::spawn(
                async move { while matches!(read.read(&mut [0; 4096]).await, Ok(1..)) {} },
            );
        for piece in trickle([3, 5, 7]) {
            if write.write_all(&piece).await.is_err() {
                break;
            }
        }
        let outcome = within(client.served).await.unwrap();
        assert!(outcome.error.is_some(), "{outcome:?}");
        within(reading).await.unwrap();
        // Others go on.
        let ask = "GET /direct HTTP/1.1\r\nhost: app.test\r\n\r\n";
        let response = mesh.connect().await.ask(ask).await;
        assert!(response.starts_with("HTTP/1.1 418 "), "{response}");
    });
}

/// For each of three streams; more than h2 lets wait.
const MANY: usize = 40_000;

fn many(streams: [u32; 3]) -> Vec<u8> {
    let each = |flags| streams.map(|stream| frame(DATA, flags, stream, b"x")).concat();
    [each(0).repeat(MANY - 1), each(END_STREAM)].concat()
}

#[tokio::test]
async fn a_client_may_say_much_in_single_bytes() {
    for http2 in [false, true] {
        let upstream = http_upstream(http2, |request| async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            Response::new(Full::from(body.len().to_string()).map_err(|e| match e {}).boxed_unsync())
        });
        let upstream = upstream.await;
        let setup = if http2 { Setup::http2(upstream) } else { Setup::new(upstream) };
        let mut client = Mesh::new(setup).connect().await;
        let streams = [1, 3, 5];
        let fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "app.test"),
            (":path", "/stream"),
        ];
        let mut says = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        says.extend(frame(SETTINGS, 0, 0, &[]));
        says.extend(streams.map(|stream| head(0, stream, &fields)).concat());
        says.extend(many(streams));
        let (mut read, mut write) = client.stream.split();
        let answers = async {
            let mut answers = Vec::new();
            while answers.len() < streams.len() {
                let mut prefix = [0; 9];
                read.read_exact(&mut prefix).await.unwrap();
                let [a, b, c, kind, ..] = prefix;
                let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap();
                let mut payload = vec![0; length];
                read.read_exact(&mut payload).await.unwrap();
                assert_ne!(kind, GOAWAY, "{payload:?}");
                if kind == DATA && length > 0 {
                    answers.push(String::from_utf8(payload).unwrap());
                }
            }
            answers
        };
        let (written, answers) =
            within(async { tokio::join!(write.write_all(&says), answers) }).await;
        written.unwrap();
        assert_eq!(answers, [(); 3].map(|()| MANY.to_string()), "HTTP/2 upstream: {http2}");
    }
}

#[tokio::test]
async fn an_upstream_may_say_much_in_single_bytes() {
    let address = raw_upstream(|stream, _| async move {
        let (mut read, mut write) = stream.into_split();
        preface(&mut read).await.unwrap();
        let first = request(&mut read).await.unwrap();
        let settings = [frame(SETTINGS, 0, 0, &[]), frame(SETTINGS, ACK, 0, &[])].concat();
        write.write_all(&settings).await.unwrap();
        let second = request(&mut read).await.unwrap();
        let streams = [first, second, request(&mut read).await.unwrap()];
        let heads = streams.map(|stream| head(0, stream, &[(":status", "200")])).concat();
        write.write_all(&[heads, many(streams)].concat()).await.unwrap();
        while matches!(read.read(&mut [0; 4096]).await, Ok(1..)) {}
    });
    let mesh = Mesh::new(Setup::http2(address.await));
    let ask = "GET /stream HTTP/1.1\r\nhost: app.test\r\nconnection: close\r\n\r\n";
    let mut clients = [mesh.connect().await, mesh.connect().await, mesh.connect().await];
    for client in &mut clients {
        client.write(ask).await;
    }
    for mut client in clients {
        let (response, reset) = client.rest().await;
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 ") && !reset, "{head}");
        assert!(body.ends_with("\r\n0\r\n\r\n"));
        assert_eq!(body.bytes().filter(|byte| *byte == b'x').count(), MANY);
    }
    assert_eq!(mesh.connections(), 1);
}
