//! Timeouts, and bodies larger than any buffer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::Instant,
};

use super::{
    frames::{DATA, END_STREAM, RST_STREAM, SETTINGS, WINDOW_UPDATE, frame, head},
    harness::{Mesh, Setup, eventually, mirror_upstream, raw_upstream, read_head, silent_upstream},
};

const SHORT: Option<Duration> = Some(Duration::from_millis(200));

#[tokio::test]
async fn a_head_must_arrive_in_time() {
    let (upstream, _) = silent_upstream().await;
    for start in ["G", "GET / HTTP/1.1\r\nhost: app.test\r\nx-slow: "] {
        let mesh = Mesh::new(Setup { request_headers_timeout: SHORT, ..Setup::new(upstream) });
        let mut client = mesh.connect().await;
        client.write(start).await;
        let begun = Instant::now();
        let (response, _) = client.rest().await;
        assert!(begun.elapsed() < Duration::from_secs(2));
        if start.len() > 1 {
            assert!(response.starts_with("HTTP/1.1 408 "), "{response}");
            assert_eq!(mesh.record(0).await.response_code.unwrap(), 408);
        }
    }
}

#[tokio::test]
async fn a_slow_drip_does_not_prolong_a_head() {
    let (upstream, _) = silent_upstream().await;
    let mesh = Mesh::new(Setup { request_headers_timeout: SHORT, ..Setup::new(upstream) });
    let mut client = mesh.connect().await;
    client.write("GET / HTTP/1.1\r\n").await;
    let begun = Instant::now();
    while client.stream.write_all(b"x: y\r\n").await.is_ok() && !client.served.is_finished() {
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let upstream = mirror_upstream().await;
    for request in ["", "GET / HTTP/1.1\r\nhost: app.test\r\n\r\n"] {
        let mesh = Mesh::new(Setup { idle_timeout: SHORT, ..Setup::new(upstream) });
        let mut client = mesh.connect().await;
        if !request.is_empty() {
            client.ask(request).await;
        }
        assert_eq!(client.rest().await, (String::new(), false));
        let outcome = client.served.await.unwrap();
        assert!(outcome.error.is_none(), "{outcome:?}");
    }
}

#[tokio::test]
async fn an_idle_http2_connection_is_closed() {
    let upstream = mirror_upstream().await;
    let mesh = Mesh::new(Setup { idle_timeout: SHORT, ..Setup::new(upstream) });
    let client = mesh.connect().await.http2().await;
    eventually(|| client.is_closed().then_some(())).await;
    // One that does not answer the last ping is cut.
    let mut client = mesh.connect().await;
    client.write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    client.rest().await;
    assert!(client.served.await.unwrap().error.is_none());
}

#[tokio::test]
async fn a_busy_connection_is_not_idle() {
    let upstream = raw_upstream(|mut stream, _| async move {
        read_head(&mut stream).await.unwrap();
        tokio::time::sleep(Duration::from_millis(600)).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
    });
    let mesh = Mesh::new(Setup { idle_timeout: SHORT, ..Setup::new(upstream.await) });
    let mut client = mesh.connect().await;
    assert!(client.ask("GET / HTTP/1.1\r\nhost: app.test\r\n\r\n").await.ends_with("ok"));
}

#[tokio::test]
async fn a_silent_stream_is_ended() {
    let (upstream, _) = silent_upstream().await;
    for (body, status) in [("", "504"), ("content-length: 5\r\n", "408")] {
        let mesh = Mesh::new(Setup { stream_idle_timeout: SHORT, ..Setup::new(upstream) });
        let mut client = mesh.connect().await;
        client.write(format!("POST / HTTP/1.1\r\nhost: app.test\r\n{body}\r\n")).await;
        let response = client.response().await;
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{response}");
        assert!(response.ends_with("stream timeout"));
        assert_eq!(mesh.record(0).await.flags.to_string(), "SI");
    }
}

#[tokio::test]
async fn slow_clients_are_ended_and_hold_nobody_up() {
    let (upstream, _) = silent_upstream().await;
    let timeouts = Setup { request_headers_timeout: SHORT, ..Setup::new(upstream) };
    let mesh = Mesh::new(Setup { stream_idle_timeout: SHORT, ..timeouts });
    let head = "GET /x HTTP/1.1\r\nhost: app.te";
    let body = "POST /x HTTP/1.1\r\nhost: app.test\r\ncontent-length: 10\r\n\r\nhalf";
    let chunk = "POST /x HTTP/1.1\r\nhost: app.test\r\ntransfer-encoding: chunked\r\n\r\n5\r\nha";
    let mut slow = Vec::new();
    for sent in [head, body, chunk].into_iter().cycle().take(150) {
        let mut client = mesh.connect().await;
        client.write(sent).await;
        slow.push(client);
    }
    let ask = "GET /direct HTTP/1.1\r\nhost: app.test\r\n\r\n";
    let response = mesh.connect().await.ask(ask).await;
    assert!(response.starts_with("HTTP/1.1 418 "), "{response}");
    for client in &slow {
        eventually(|| client.served.is_finished().then_some(())).await;
    }
}

#[tokio::test]
async fn a_response_that_stalls_is_cut() {
    for (path, flag) in [("/stream", "SI"), ("/slow", "UT")] {
        let upstream = raw_upstream(|mut stream, _| async move {
            read_head(&mut stream).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").await.unwrap();
            tokio::time::sleep(Duration::from_secs(30)).await;
        });
        let stream_idle_timeout = if path == "/stream" { SHORT } else { None };
        let mesh = Mesh::new(Setup { stream_idle_timeout, ..Setup::new(upstream.await) });
        let mut client = mesh.connect().await;
        client.write(format!("GET {path} HTTP/1.1\r\nhost: app.test\r\n\r\n")).await;
        let (response, _) = client.rest().await;
        assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
        let record = mesh.record(0).await;
        assert_eq!(record.flags.to_string(), flag, "{record:?}");
    }
}

#[tokio::test]
async fn a_route_timeout_counts_from_the_requests_end() {
    let mesh = Mesh::new(Setup::new(mirror_upstream().await));
    let mut client = mesh.connect().await;
    client.write("POST /slow HTTP/1.1\r\nhost: app.test\r\ncontent-length: 5\r\n\r\n").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    client.write("hello").await;
    assert!(client.response().await.starts_with("HTTP/1.1 200 "));
}

const LARGE: usize = 64 << 20;

/// Counts what an upstream has read of a body, and how fast it reads is the test's.
async fn reader(delay: Arc<AtomicUsize>, seen: Arc<AtomicUsize>) -> std::net::SocketAddr {
    raw_upstream(move |mut stream, _| {
        let (delay, seen) = (Arc::clone(&delay), Arc::clone(&seen));
        async move {
            read_head(&mut stream).await.unwrap();
            while delay.load(Ordering::Relaxed) > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let mut buf = vec![0; 1 << 16];
            while seen.load(Ordering::Relaxed) < LARGE {
                let n = stream.read(&mut buf).await.unwrap();
                assert!(buf[..n].iter().all(|b| *b == b'x'));
                seen.fetch_add(n, Ordering::Relaxed);
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_upload_waits_for_a_slow_upstream() {
    let (delay, seen) = (Arc::new(AtomicUsize::new(1)), Arc::<AtomicUsize>::default());
    let mesh = Mesh::new(Setup::new(reader(Arc::clone(&delay), Arc::clone(&seen)).await));
    let mut client = mesh.connect().await;
    let head = format!("POST / HTTP/1.1\r\nhost: app.test\r\ncontent-length: {LARGE}\r\n\r\n");
    client.write(head).await;
    let (mut reading, mut writing) = client.stream.into_split();
    let sent = Arc::<AtomicUsize>::default();
    let written = Arc::clone(&sent);
    let writer = tokio::spawn(async move {
        let block = vec![b'x'; 1 << 16];
        while written.load(Ordering::Relaxed) < LARGE {
            writing.write_all(&block).await.unwrap();
            written.fetch_add(block.len(), Ordering::Relaxed);
        }
        writing
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    let stuck = sent.load(Ordering::Relaxed);
    // Two sockets' kernel buffers, and nearly nothing in the agent.
    assert!(stuck < 24 << 20, "{stuck} bytes were taken though nobody reads");
    delay.store(0, Ordering::Relaxed);
    let _writing = super::harness::within(writer).await.unwrap();
    let mut response = [0; 15];
    super::harness::within(reading.read_exact(&mut response)).await.unwrap();
    assert_eq!(&response, b"HTTP/1.1 200 OK");
    assert_eq!(mesh.record(0).await.request_bytes, LARGE as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_download_waits_for_a_slow_client() {
    let sent = Arc::<AtomicUsize>::default();
    let written = Arc::clone(&sent);
    let upstream = raw_upstream(move |mut stream, _| {
        let written = Arc::clone(&written);
        async move {
            read_head(&mut stream).await.unwrap();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {LARGE}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            let block = vec![b'x'; 1 << 16];
            while written.load(Ordering::Relaxed) < LARGE {
                stream.write_all(&block).await.unwrap();
                written.fetch_add(block.len(), Ordering::Relaxed);
            }
        }
    });
    let mesh = Mesh::new(Setup::new(upstream.await));
    let mut client = mesh.connect().await;
    client.write("GET /stream HTTP/1.1\r\nhost: app.test\r\nconnection: close\r\n\r\n").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let stuck = sent.load(Ordering::Relaxed);
    assert!(stuck < 24 << 20, "{stuck} bytes were taken though nobody reads");
    let (response, _) = client.rest().await;
    let (_, body) = response.split_once("\r\n\r\n").unwrap();
    assert_eq!(body.len(), LARGE);
    assert_eq!(mesh.record(0).await.response_bytes, LARGE as u64);
}

/// Sends without end.
async fn endless_upstream() -> std::net::SocketAddr {
    raw_upstream(|mut stream, _| async move {
        read_head(&mut stream).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        while stream.write_all(&[b'x'; 1 << 14]).await.is_ok() {}
    })
    .await
}

/// However fast it comes: no other task of the thread waits for the end of the flood.
#[tokio::test]
async fn a_response_of_crumbs_without_end_is_ended_by_the_route() {
    let upstream = raw_upstream(|mut stream, _| async move {
        read_head(&mut stream).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
        let crumbs = b"1\r\nx\r\n".repeat(20_000);
        while stream.write_all(&crumbs).await.is_ok() {}
    });
    let mesh = Mesh::new(Setup::new(upstream.await));
    let mut client = mesh.connect().await;
    client.write("GET /slow HTTP/1.1\r\nhost: app.test\r\n\r\n").await;
    let begun = Instant::now();
    let (response, _) = client.rest().await;
    assert!(response.starts_with("HTTP/1.1 200 "));
    let record = mesh.record(0).await;
    assert_eq!(record.flags.to_string(), "UT", "{record:?}");
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_client_that_does_not_read_is_ended_by_the_same_limits() {
    for (path, flag) in [("/stream", "SI"), ("/slow", "UT")] {
        let stream_idle_timeout = if path == "/stream" { SHORT } else { None };
        let mesh = Mesh::new(Setup { stream_idle_timeout, ..Setup::new(endless_upstream().await) });
        let mut client = mesh.connect().await;
        client.write(format!("GET {path} HTTP/1.1\r\nhost: app.test\r\n\r\n")).await;
        let record = mesh.record(0).await;
        assert_eq!(record.flags.to_string(), flag, "{record:?}");
        assert_eq!(record.response_code.unwrap(), 200);
        let outcome = super::harness::within(client.served).await.unwrap();
        assert!(outcome.error.is_none(), "{outcome:?}");
    }
}

#[tokio::test]
async fn a_stream_that_takes_nothing_is_reset_and_no_other() {
    let get = |stream: u32, path: &str| {
        let pseudo = [":method", ":scheme", ":authority", ":path"];
        let fields: Vec<_> = pseudo.into_iter().zip(["GET", "http", "app.test", path]).collect();
        head(END_STREAM, stream, &fields)
    };
    let upstream = endless_upstream().await;
    let mesh = Mesh::new(Setup { stream_idle_timeout: SHORT, ..Setup::new(upstream) });
    let mut client = mesh.connect().await;
    let no_window = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), no_window].concat();
    client.write(preface).await;
    // Of the second all there is waits for the client.
    for (number, stream, path) in [(0, 1, "/stream"), (1, 3, "/direct")] {
        client.write(get(stream, path)).await;
        loop {
            match next_frame(&mut client.stream).await {
                (RST_STREAM, of, _) if of == stream => break,
                (kind, ..) => assert_ne!(kind, DATA),
            }
        }
        let record = mesh.record(number).await;
        assert_eq!(record.flags.to_string(), "SI", "{record:?}");
    }
    // The connection goes on.
    client.write([get(5, "/direct"), frame(WINDOW_UPDATE, 0, 5, &[0, 0, 1, 0])].concat()).await;
    loop {
        let (kind, stream, length) = next_frame(&mut client.stream).await;
        assert_ne!(kind, RST_STREAM);
        if (kind, stream) == (DATA, 5) && length > 0 {
            break;
        }
    }
}

/// The next frame's kind, stream, and length.
async fn next_frame(stream: &mut tokio::net::TcpStream) -> (u8, u32, usize) {
    let read = async {
        let mut prefix = [0; 9];
        stream.read_exact(&mut prefix).await.unwrap();
        let [a, b, c, kind, _, of @ ..] = prefix;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        stream.read_exact(&mut vec![0; length]).await.unwrap();
        (kind, u32::from_be_bytes(of), length)
    };
    super::harness::within(read).await
}
