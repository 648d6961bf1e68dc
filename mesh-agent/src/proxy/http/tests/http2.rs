//! HTTP/2 on either side or both.

use std::{future::Future as _, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody};

use super::harness::{
    BoxBody, Mesh, Setup, eventually, http_upstream, mirror_upstream, raw_upstream, read_head,
    silent_upstream, within,
};
use crate::model::{cluster::UpstreamProtocol, http_options::Http2Limits, listener::CodecType};

fn full(body: impl Into<Bytes>) -> BoxBody {
    Full::new(body.into()).map_err(|never| match never {}).boxed_unsync()
}

fn request(path: &str) -> http::request::Builder {
    Request::builder().uri(format!("http://app.test{path}"))
}

/// Answers with what it saw, and echoes body and trailers.
async fn echo(request: Request<hyper::body::Incoming>) -> Response<BoxBody> {
    let (head, body) = request.into_parts();
    let seen = format!("{:?} {} {}", head.version, head.method, head.uri);
    let mut response = Response::builder().header("x-seen", seen);
    if let Some(cookie) = head.headers.get("cookie") {
        response = response.header("x-cookie", cookie);
    }
    if let Some(host) = head.headers.get("host") {
        response = response.header("x-host", host);
    }
    response.body(body.map_err(std::io::Error::other).boxed_unsync()).unwrap()
}

#[tokio::test]
async fn http2_to_http1() {
    let mesh = Mesh::new(Setup::new(mirror_upstream().await));
    let mut client = mesh.connect().await.http2().await;
    let request = request("/two?x=1")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("x-end", "1")
        .body(BoxBody::default())
        .unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let seen = response.into_body().collect().await.unwrap().to_bytes();
    let seen = String::from_utf8(seen.to_vec()).unwrap();
    assert!(seen.starts_with("GET /two?x=1 HTTP/1.1\r\n"), "{seen}");
    for part in ["host: app.test\r\n", "cookie: a=1; b=2\r\n", "x-end: 1\r\n"] {
        assert!(seen.contains(part), "{part}: {seen}");
    }
    assert!(!seen.contains("transfer-encoding"), "{seen}");
    let record = mesh.record(0).await;
    assert_eq!(record.protocol, crate::observe::Protocol::Http2);
    assert!(record.flags.is_empty());
}

#[tokio::test]
async fn http1_to_http2() {
    let mesh = Mesh::new(Setup::http2(http_upstream(true, echo).await));
    let mut client = mesh.connect().await;
    for _ in 0..2 {
        let post = "POST /x?y HTTP/1.1\r\nhost: app.test\r\nconnection: x-hop\r\nx-hop: 1\r\n\
                    content-length: 5\r\n\r\nhello";
        let response = client.ask(post).await;
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
        assert!(response.contains("x-seen: HTTP/2.0 POST http://app.test/x?y\r\n"), "{response}");
        assert!(response.contains("hello"), "{response}");
    }
    assert_eq!(mesh.connections(), 1);
}

#[tokio::test]
async fn a_stream_with_trailers_passes_both_ways() {
    let mesh = Mesh::new(Setup {
        protocol: UpstreamProtocol::SameAsDownstream,
        codec: CodecType::Http2,
        ..Setup::new(http_upstream(true, echo).await)
    });
    let mut client = mesh.connect().await.http2().await;
    let (frames, rest) = tokio::sync::mpsc::channel::<Frame<Bytes>>(1);
    let body = StreamBody::new(stream::unfold(rest, |mut rest| async move {
        rest.recv().await.map(|frame| (Ok::<_, std::io::Error>(frame), rest))
    }));
    let request = request("/stream")
        .method("POST")
        .header("te", "trailers")
        .header("content-type", "application/grpc")
        .body(body.boxed_unsync())
        .unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let mut body = response.into_body();
    // Each message comes back before the next is sent.
    for n in 0..5 {
        let message = Bytes::from(format!("message {n}"));
        frames.send(Frame::data(message.clone())).await.unwrap();
        let frame = within(body.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), message);
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    frames.send(Frame::trailers(trailers)).await.unwrap();
    drop(frames);
    let frame = within(body.frame()).await.unwrap().unwrap();
    assert_eq!(frame.into_trailers().unwrap()["grpc-status"], "0");
    assert!(body.frame().await.is_none());
    assert!(mesh.record(0).await.flags.is_empty());
}

#[tokio::test]
async fn many_streams_share_connections() {
    let upstream = http_upstream(true, |request| async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        echo(request).await
    });
    let mesh = Mesh::new(Setup::http2(upstream.await));
    let client = mesh.connect().await.http2().await;
    let asks = (0..250).map(|n| {
        let mut client = client.clone();
        async move {
            let body = full(format!("{n}"));
            let request = request("/").method("POST").body(body).unwrap();
            let response = client.send_request(request).await.unwrap();
            assert_eq!(response.status(), 200);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, format!("{n}"));
        }
    });
    within(futures_util::future::join_all(asks)).await;
    assert!((2..=8).contains(&mesh.connections()), "{}", mesh.connections());
}

#[tokio::test]
async fn the_agent_answers_for_itself() {
    let mesh = Mesh::new(Setup::new(mirror_upstream().await));
    let mut client = mesh.connect().await.http2().await;
    let denied = client.send_request(request("/secret").body(BoxBody::default()).unwrap());
    let denied = denied.await.unwrap();
    assert_eq!(denied.status(), StatusCode::FORBIDDEN);
    let body = denied.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "RBAC: access denied");
    let grpc = request("/secret").header("content-type", "application/grpc");
    let denied = client.send_request(grpc.body(BoxBody::default()).unwrap()).await.unwrap();
    assert_eq!(denied.status(), StatusCode::OK);
    assert_eq!(denied.headers()["grpc-status"], "7");
    assert_eq!(denied.headers()["grpc-message"], "RBAC: access denied");
}

#[tokio::test]
async fn hosts_that_differ_are_refused() {
    let mesh = Mesh::new(Setup::new(mirror_upstream().await));
    let mut client = mesh.connect().await.http2().await;
    let request = request("/").header("host", "other.test").body(BoxBody::default()).unwrap();
    assert_eq!(client.send_request(request).await.unwrap().status(), StatusCode::BAD_REQUEST);
    assert_eq!(mesh.connections(), 0);
}

#[tokio::test]
async fn a_length_that_is_told_twice_is_refused() {
    let mesh = Mesh::new(Setup::new(mirror_upstream().await));
    let mut client = mesh.connect().await.http2().await;
    // The same one: HTTP/2 itself compares the first with what comes.
    let request = request("/").method("POST").header("content-length", "2");
    let request = request.header("content-length", "2").body(full("ab")).unwrap();
    assert_eq!(client.send_request(request).await.unwrap().status(), StatusCode::BAD_REQUEST);
    assert_eq!(mesh.connections(), 0);
}

#[tokio::test]
async fn a_response_that_breaks_off_is_reset() {
    let upstream = raw_upstream(|mut stream, _| async move {
        read_head(&mut stream).await.unwrap();
        let reply = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n";
        tokio::io::AsyncWriteExt::write_all(&mut stream, reply).await.unwrap();
    });
    let mesh = Mesh::new(Setup::new(upstream.await));
    let mut client = mesh.connect().await.http2().await;
    let response = client.send_request(request("/").body(BoxBody::default()).unwrap()).await;
    // Reset at once, or after a part.
    if let Ok(response) = response {
        assert!(within(response.into_body().collect()).await.is_err());
    }
    assert_eq!(mesh.record(0).await.flags.to_string(), "UC");
}

#[tokio::test]
async fn a_reset_without_an_error_is_no_end_of_a_response() {
    let upstream = raw_upstream(|stream, _| async move {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let mut body = respond.send_response(Response::new(()), false).unwrap();
            let ends = request.uri().path() == "/whole";
            body.send_data(Bytes::from_static(b"half"), ends).unwrap();
            tokio::spawn(async move {
                // Once the data is gone.
                tokio::time::sleep(Duration::from_millis(100)).await;
                body.send_reset(h2::Reason::NO_ERROR);
            });
        }
    });
    let mesh = Mesh::new(Setup::http2(upstream.await));
    let mut client = mesh.connect().await;
    client.write("GET /part HTTP/1.1\r\nhost: app.test\r\n\r\n").await;
    let (cut, _) = client.rest().await;
    assert!(!cut.ends_with("0\r\n\r\n"), "{cut}");
    assert_eq!(mesh.record(0).await.flags.to_string(), "UR");
    let mut client = mesh.connect().await;
    let whole = client.ask("GET /whole HTTP/1.1\r\nhost: app.test\r\n\r\n").await;
    assert!(whole.contains("4\r\nhalf\r\n"), "{whole}");
    assert!(mesh.record(1).await.flags.is_empty());
}

#[tokio::test]
async fn a_reset_without_an_error_is_no_end_of_a_request() {
    for reason in [h2::Reason::NO_ERROR, h2::Reason::CANCEL] {
        let (upstream, seen) = silent_upstream().await;
        let mesh = Mesh::new(Setup::new(upstream));
        let client = mesh.connect().await;
        let (sender, connection) = h2::client::handshake(client.stream).await.unwrap();
        tokio::spawn(connection);
        let request = request("/").method("POST").body(()).unwrap();
        let mut sender = sender.ready().await.unwrap();
        let (_response, mut body) = sender.send_request(request, false).unwrap();
        body.send_data(Bytes::from_static(b"half of it"), false).unwrap();
        let text = || String::from_utf8_lossy(&seen.lock().unwrap()).into_owned();
        eventually(|| text().contains("half of it").then_some(())).await;
        body.send_reset(reason);
        mesh.record(0).await;
        assert!(!text().contains("\r\n0\r\n"), "{reason}: {}", text());
    }
}

#[tokio::test]
async fn a_client_is_told_how_much_it_may_send_ahead() {
    let http2 =
        Http2Limits { streams: 7, stream_window_bytes: 70_000, connection_window_bytes: 200_000 };
    let mesh = Mesh::new(Setup { http2, ..Setup::new(mirror_upstream().await) });
    let client = mesh.connect().await;
    let (sender, mut connection) = h2::client::handshake(client.stream).await.unwrap();
    // Both sides' first words.
    let told = std::future::poll_fn(|cx| {
        let _ = std::pin::Pin::new(&mut connection).poll(cx)?;
        match sender.current_max_send_streams() {
            7 => std::task::Poll::Ready(Ok::<_, h2::Error>(())),
            _ => std::task::Poll::Pending,
        }
    });
    within(told).await.unwrap();
    let (mut sender, request) = (sender, request("/").method("POST").body(()).unwrap());
    let (_response, mut body) = sender.send_request(request, false).unwrap();
    body.reserve_capacity(1 << 20);
    let mut capacity = 0;
    // The connection's window may be told later than the stream's.
    let all = std::future::poll_fn(|cx| {
        let _ = std::pin::Pin::new(&mut connection).poll(cx)?;
        while capacity < 70_000 {
            capacity = std::task::ready!(body.poll_capacity(cx)?).unwrap();
        }
        std::task::Poll::Ready(Ok::<_, h2::Error>(()))
    });
    within(all).await.unwrap();
    assert_eq!(capacity, 70_000);
}

#[tokio::test]
async fn a_reset_stream_ends_its_upstream_request() {
    let (dropped, told) = tokio::sync::watch::channel(());
    let upstream = http_upstream(true, move |_| {
        let dropped = dropped.clone();
        async move {
            let body = stream::pending::<Result<Frame<Bytes>, std::io::Error>>();
            let first = stream::iter([Ok(Frame::data(Bytes::from_static(b"first")))]);
            let held = dropped;
            let body = StreamBody::new(first.chain(body).map(move |frame| {
                let _ = &held;
                frame
            }));
            Response::new(body.boxed_unsync())
        }
    });
    let mesh = Mesh::new(Setup::http2(upstream.await));
    let mut client = mesh.connect().await.http2().await;
    let response = client.send_request(request("/stream").body(BoxBody::default()).unwrap());
    let mut body = response.await.unwrap().into_body();
    body.frame().await.unwrap().unwrap();
    drop(body);
    let record = mesh.record(0).await;
    assert_eq!(record.flags.to_string(), "DC");
    drop(told);
    // The connection is kept: only the stream was reset.
    assert_eq!(mesh.services.pool.len(), 1);
}

#[tokio::test]
async fn an_upload_waits_for_a_slow_upstream() {
    let upstream = http_upstream(true, |request| async move {
        let mut body = request.into_body();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            bytes += frame.unwrap().into_data().unwrap().len();
        }
        Response::new(full(bytes.to_string()))
    });
    let mesh = Mesh::new(Setup::http2(upstream.await));
    let mut client = mesh.connect().await.http2().await;
    let taken = std::sync::Arc::<std::sync::atomic::AtomicUsize>::default();
    let counted = std::sync::Arc::clone(&taken);
    let blocks = stream::iter(0..1024).map(move |_| {
        counted.fetch_add(1 << 16, std::sync::atomic::Ordering::Relaxed);
        Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(&[b'x'; 1 << 16])))
    });
    let body = StreamBody::new(blocks).boxed_unsync();
    let asked = client.send_request(request("/").method("POST").body(body).unwrap());
    let asked = tokio::spawn(asked);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let stuck = taken.load(std::sync::atomic::Ordering::Relaxed);
    assert!(stuck < 16 << 20, "{stuck}");
    let response = within(asked).await.unwrap().unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, (64 << 20).to_string());
}

#[tokio::test]
async fn draining_says_goaway_and_finishes() {
    let upstream = http_upstream(false, |request| async move {
        tokio::time::sleep(Duration::from_millis(200)).await;
        echo(request).await
    });
    let mesh = Mesh::new(Setup::new(upstream.await));
    let mut client = mesh.connect().await.http2().await;
    let busy = tokio::spawn(client.send_request(request("/").body(BoxBody::default()).unwrap()));
    tokio::time::sleep(Duration::from_millis(50)).await;
    mesh.drain.cancel();
    let response = within(busy).await.unwrap().unwrap();
    assert_eq!(response.status(), 200);
    assert!(response.body().is_end_stream());
    eventually(|| client.is_closed().then_some(())).await;
}

#[tokio::test]
async fn evicted_connections_finish_what_they_carry() {
    let upstream = http_upstream(true, |request| async move {
        tokio::time::sleep(Duration::from_millis(200)).await;
        echo(request).await
    });
    let mesh = Mesh::new(Setup::http2(upstream.await));
    let mut client = mesh.connect().await.http2().await;
    let busy = client.send_request(request("/").body(BoxBody::default()).unwrap());
    let busy = tokio::spawn(busy);
    eventually(|| (!mesh.services.pool.is_empty()).then_some(())).await;
    mesh.services.pool.retain(|_| false);
    assert!(mesh.services.pool.is_empty());
    assert_eq!(within(busy).await.unwrap().unwrap().status(), 200);
    let again = client.send_request(request("/").body(BoxBody::default()).unwrap()).await.unwrap();
    assert_eq!(again.status(), 200);
    assert_eq!(mesh.connections(), 2);
}

#[tokio::test]
async fn too_large_heads_are_refused() {
    let mesh = Mesh::new(Setup::new(mirror_upstream().await));
    let mut client = mesh.connect().await.http2().await;
    let large = "x".repeat(7 * 1024);
    let mut head = request("/");
    for n in 0..9 {
        head = head.header(format!("x-{n}"), &large);
    }
    // 431 by the HTTP/2 layer, or a reset.
    if let Ok(response) = client.send_request(head.body(BoxBody::default()).unwrap()).await {
        assert_eq!(response.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    }
    assert_eq!(mesh.connections(), 0);
}

#[tokio::test]
async fn a_download_waits_for_a_slow_client() {
    let taken = std::sync::Arc::<std::sync::atomic::AtomicUsize>::default();
    let counted = std::sync::Arc::clone(&taken);
    let upstream = http_upstream(true, move |_| {
        let counted = std::sync::Arc::clone(&counted);
        async move {
            let blocks = stream::iter(0..1024).map(move |_| {
                counted.fetch_add(1 << 16, std::sync::atomic::Ordering::Relaxed);
                Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(&[b'x'; 1 << 16])))
            });
            Response::new(StreamBody::new(blocks).boxed_unsync())
        }
    });
    let mesh = Mesh::new(Setup::http2(upstream.await));
    let mut client = mesh.connect().await.http2().await;
    let request = request("/stream").body(BoxBody::default()).unwrap();
    let mut body = client.send_request(request).await.unwrap().into_body();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let stuck = taken.load(std::sync::atomic::Ordering::Relaxed);
    assert!(stuck < 16 << 20, "{stuck}");
    let mut bytes = 0;
    while let Some(frame) = within(body.frame()).await {
        bytes += frame.unwrap().into_data().unwrap().len();
    }
    assert_eq!(bytes, 64 << 20);
}
