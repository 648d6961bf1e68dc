//! CONNECT, ended here or sent on, and other protocols on streams of HTTP/2.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use http::{Method, Request, Response, StatusCode};
use hyper::{
    body::Incoming,
    client::conn::http2::SendRequest,
    ext::Protocol,
    server::conn::{http1, http2},
    service::service_fn,
    upgrade::Upgraded,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::harness::{BoxBody, Mesh, Setup, raw_upstream, read_head, silent_upstream, within};
use crate::model::{cluster::UpstreamProtocol, upgrade::Upgrades};

const CONNECT: &str = "CONNECT app.test:443 HTTP/1.1\r\nhost: app.test:443\r\n\r\n";

fn with(upstream: SocketAddr, upgrade: &str) -> Setup {
    let upgrades = Upgrades(BTreeMap::from([(upgrade.into(), true)]));
    Setup { upgrades, ..Setup::new(upstream) }
}

/// Says everything back in capitals until the client has ended, and then `bye`.
async fn shouts<IO: AsyncReadExt + AsyncWriteExt + Unpin>(mut io: IO) {
    let mut buf = [0; 1024];
    while let Ok(n @ 1..) = io.read(&mut buf).await {
        io.write_all(&buf[..n].to_ascii_uppercase()).await.unwrap();
    }
    io.write_all(b"bye").await.unwrap();
    _ = io.shutdown().await;
}

async fn opaque_upstream() -> SocketAddr {
    raw_upstream(|stream, _| shouts(stream)).await
}

/// Agrees to what is expected of its requests.
async fn agrees(
    mut request: Request<Incoming>,
    expected: &str,
) -> Result<Response<BoxBody>, std::convert::Infallible> {
    let protocol = request.extensions().get::<Protocol>().map(|p| p.as_str().to_owned());
    let seen = format!("{} {} {protocol:?}", request.method(), request.uri());
    assert_eq!(seen, expected);
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move { shouts(TokioIo::new(upgrade.await.unwrap())).await });
    Ok(Response::new(BoxBody::default()))
}

async fn agreeing_upstream(http2: bool, expected: &'static str) -> SocketAddr {
    raw_upstream(move |stream, _| async move {
        let (io, service) = (TokioIo::new(stream), service_fn(|request| agrees(request, expected)));
        // How it ends is the client's to judge.
        if http2 {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            _ = builder.enable_connect_protocol().serve_connection(io, service).await;
        } else {
            _ = http1::Builder::new().serve_connection(io, service).with_upgrades().await;
        }
    })
    .await
}

/// The tunnel carries both ways, and each ends by itself.
async fn is_a_tunnel<IO: AsyncReadExt + AsyncWriteExt + Unpin>(io: &mut IO) {
    // Longer than the route's timeout.
    tokio::time::sleep(Duration::from_millis(150)).await;
    io.write_all(b"GET / HTTP/1.1\nx;").await.unwrap();
    let mut heard = [0; 17];
    within(io.read_exact(&mut heard)).await.unwrap();
    assert_eq!(&heard, b"GET / HTTP/1.1\nX;");
    io.shutdown().await.unwrap();
    let mut rest = Vec::new();
    within(io.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"bye");
}

async fn by_http1(mesh: &Mesh) {
    let mut client = mesh.connect().await;
    client.write(CONNECT).await;
    let head = read_head(&mut client.stream).await.unwrap().to_lowercase();
    assert!(head.starts_with("http/1.1 200 ok\r\n"), "{head}");
    assert!(!head.contains("content-length") && !head.contains("transfer-encoding"), "{head}");
    is_a_tunnel(&mut client.stream).await;
    is_recorded(mesh, Some(200), None).await;
}

async fn is_recorded(mesh: &Mesh, status: Option<u16>, path: Option<&str>) {
    let record = mesh.record(0).await;
    assert_eq!(record.response_code.map(|code| code.as_u16()), status, "{record:?}");
    assert_eq!(record.path.as_deref(), path, "{record:?}");
    assert!(record.flags.is_empty(), "{record:?}");
    assert_eq!((record.request_bytes, record.response_bytes), (17, 20), "{record:?}");
}

async fn opened(client: &mut SendRequest<BoxBody>, request: Request<BoxBody>) -> TokioIo<Upgraded> {
    let response = within(client.send_request(request)).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    for gone in ["connection", "upgrade", "content-length"] {
        assert!(!response.headers().contains_key(gone), "{response:?}");
    }
    TokioIo::new(hyper::upgrade::on(response).await.unwrap())
}

fn connect() -> Request<BoxBody> {
    let request = Request::builder().method(Method::CONNECT).uri("app.test:443");
    request.body(BoxBody::default()).unwrap()
}

fn extended(protocol: &'static str) -> Request<BoxBody> {
    let request = Request::builder().method(Method::CONNECT).uri("http://app.test/chat");
    request.extension(Protocol::from_static(protocol)).body(BoxBody::default()).unwrap()
}

async fn by_http2(mesh: &Mesh, request: Request<BoxBody>) {
    let mut client = mesh.connect().await.http2().await;
    let mut io = opened(&mut client, request).await;
    is_a_tunnel(&mut io).await;
}

#[tokio::test]
async fn connect_ends_here() {
    let setup = |upstream| Setup { terminates_connect: true, ..with(upstream, "CONNECT") };
    by_http1(&Mesh::new(setup(opaque_upstream().await))).await;
    let mesh = Mesh::new(setup(opaque_upstream().await));
    by_http2(&mesh, connect()).await;
    is_recorded(&mesh, Some(200), None).await;
}

#[tokio::test]
async fn connect_goes_on() {
    let expected = "CONNECT app.test:443 None";
    for (http2, protocol) in [(false, UpstreamProtocol::Http1), (true, UpstreamProtocol::Http2)] {
        for by_stream in [false, true] {
            let upstream = agreeing_upstream(http2, expected).await;
            let mesh = Mesh::new(Setup { protocol, ..with(upstream, "connect") });
            match by_stream {
                false => by_http1(&mesh).await,
                true => by_http2(&mesh, connect()).await,
            }
            is_recorded(&mesh, Some(200), None).await;
        }
    }
}

#[tokio::test]
async fn another_protocol_crosses_from_one_http_to_the_other() {
    // A stream's becomes a connection's.
    let upstream = raw_upstream(|mut stream: TcpStream, _| async move {
        let head = read_head(&mut stream).await.unwrap().to_lowercase();
        assert!(head.starts_with("get /chat http/1.1\r\n"), "{head}");
        assert!(head.contains("\r\nupgrade: websocket\r\n"), "{head}");
        assert!(head.contains("\r\nconnection: upgrade\r\n"), "{head}");
        let agreed = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\
            connection: upgrade\r\n\r\n";
        stream.write_all(agreed.as_bytes()).await.unwrap();
        shouts(stream).await;
    });
    let mesh = Mesh::new(with(upstream.await, "websocket"));
    by_http2(&mesh, extended("websocket")).await;
    is_recorded(&mesh, Some(101), Some("/chat")).await;
    // And a connection's a stream's, and a stream's another stream's.
    for by_stream in [false, true] {
        let expected = "CONNECT http://app.test/chat Some(\"websocket\")";
        let upstream = agreeing_upstream(true, expected).await;
        let mesh =
            Mesh::new(Setup { protocol: UpstreamProtocol::Http2, ..with(upstream, "websocket") });
        if by_stream {
            by_http2(&mesh, extended("websocket")).await;
        } else {
            let mut client = mesh.connect().await;
            let offer = "GET /chat HTTP/1.1\r\nhost: app.test\r\nupgrade: websocket\r\n\
                connection: upgrade\r\n\r\n";
            client.write(offer).await;
            let head = read_head(&mut client.stream).await.unwrap().to_lowercase();
            assert!(head.starts_with("http/1.1 101 switching protocols\r\n"), "{head}");
            assert!(head.contains("\r\nupgrade: websocket\r\n"), "{head}");
            is_a_tunnel(&mut client.stream).await;
        }
        is_recorded(&mesh, Some(101), Some("/chat")).await;
    }
}

#[tokio::test]
async fn what_is_not_allowed_is_refused_and_nothing_after_it_is_served() {
    let smuggled = "GET /secret2 HTTP/1.1\r\nhost: app.test\r\n\r\n";
    let framed = |by: &str| CONNECT.replace("\r\n\r\n", &format!("\r\n{by}\r\n\r\n"));
    for (request, upgrade, status) in [
        (CONNECT.to_owned(), "websocket", 403),
        (framed("content-length: 40"), "CONNECT", 400),
        (framed("transfer-encoding: chunked"), "CONNECT", 400),
        (CONNECT.replace("app.test:443 ", "/chat "), "CONNECT", 400),
        (CONNECT.replace("app.test:443 ", "http://app.test/ "), "CONNECT", 400),
        (CONNECT.replace("CONNECT", "connect"), "CONNECT", 400),
    ] {
        let (upstream, seen) = silent_upstream().await;
        let mesh = Mesh::new(with(upstream, upgrade));
        let mut client = mesh.connect().await;
        client.write(format!("{request}{smuggled}")).await;
        let (response, _) = client.rest().await;
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{request} {response}");
        assert_eq!(response.matches("HTTP/1.1").count(), 1, "{request} {response}");
        assert!(seen.lock().unwrap().is_empty());
    }
    // By streams: neither what is off, nor what would be taken for an agreement.
    let (upstream, seen) = silent_upstream().await;
    let mesh = Mesh::new(with(upstream, "websocket"));
    let mut client = mesh.connect().await.http2().await;
    for request in [connect(), extended("spdy"), extended("h2c")] {
        let response = within(client.send_request(request)).await.unwrap();
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
    }
    assert!(seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_upstream_that_declines_is_heard_and_one_that_lies_is_not() {
    for (answer, heard) in [
        (
            "HTTP/1.1 407 No\r\ncontent-length: 2\r\n\r\nno",
            StatusCode::PROXY_AUTHENTICATION_REQUIRED,
        ),
        ("HTTP/1.1 204 No Content\r\n\r\n", StatusCode::BAD_GATEWAY),
    ] {
        let upstream = raw_upstream(move |mut stream: TcpStream, _| async move {
            while read_head(&mut stream).await.is_some() {
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let mesh = Mesh::new(with(upstream.await, "CONNECT"));
        let mut client = mesh.connect().await.http2().await;
        let response = within(client.send_request(connect())).await.unwrap();
        assert_eq!(response.status(), heard);
        let mut client = mesh.connect().await;
        let response = client.ask(CONNECT).await;
        assert!(response.starts_with(&format!("HTTP/1.1 {} ", heard.as_u16())), "{response}");
    }
    // A stream's client would take it for an agreement.
    let upstream = raw_upstream(|mut stream: TcpStream, _| async move {
        read_head(&mut stream).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await.unwrap();
        _ = stream.read_u8().await;
    });
    let mesh = Mesh::new(with(upstream.await, "websocket"));
    let mut client = mesh.connect().await.http2().await;
    let response = within(client.send_request(extended("websocket"))).await.unwrap();
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
}

#[tokio::test]
async fn a_connection_that_is_cut_takes_its_tunnels_with_it() {
    let setup = Setup { terminates_connect: true, ..with(opaque_upstream().await, "CONNECT") };
    let mesh = Mesh::new(setup);
    let client = mesh.connect().await;
    let served = client.served.abort_handle();
    let mut client = client.http2().await;
    let mut io = opened(&mut client, connect()).await;
    io.write_all(b"x").await.unwrap();
    let mut heard = [0; 1];
    within(io.read_exact(&mut heard)).await.unwrap();
    assert_eq!(mesh.recorded(), 0, "it goes on");
    // As where policy has been found to deny it.
    served.abort();
    let record = mesh.record(0).await;
    assert!(!record.flags.is_empty(), "{record:?}");
    within(async {
        while io.write_all(b"x").await.is_ok() {
            tokio::task::yield_now().await
        }
    })
    .await;
}
