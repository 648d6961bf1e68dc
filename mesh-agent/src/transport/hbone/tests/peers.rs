//! Peers that are wrong, hostile or gone.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use h2::{Reason, client::SendRequest};
use http::{Method, Request, StatusCode};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::harness::{Client, LONG, Node, echo, eventually, ping, serve};
use crate::transport::{
    hbone::{
        ConnectRequest, HboneFailure, HbonePoolOptions, HboneServer, HboneServerError,
        HboneServerOptions, TlsAcceptError, accept_tls,
    },
    testing::Authority,
};

async fn tls(node: &Node, config: Arc<ClientConfig>) -> TlsStream<TcpStream> {
    let tcp = TcpStream::connect(node.address).await.unwrap();
    let name = ServerName::IpAddress(node.address.ip().into());
    TlsConnector::from(config).connect(name, tcp).await.unwrap()
}

/// A client that does what ours would not.
async fn raw(client: &Client, node: &Node) -> SendRequest<Bytes> {
    let stream = tls(node, client.authority.client()).await;
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    sender.ready().await.unwrap()
}

async fn echoing(client: &Client) -> Node {
    serve(&client.authority, "127.0.0.1:0", HboneServerOptions::default(), echo).await
}

fn client() -> Client {
    Client::new(HbonePoolOptions::default())
}

fn connect_to(authority: &str) -> Request<()> {
    Request::builder().method(Method::CONNECT).uri(authority).body(()).unwrap()
}

#[tokio::test]
async fn what_is_not_a_connect_to_an_address_is_answered_and_the_rest_goes_on() {
    let client = client();
    let node = echoing(&client).await;
    let mut sender = raw(&client, &node).await;
    let get = Request::get("http://10.0.0.9:8080/").body(()).unwrap();
    let mut other_host = connect_to("10.0.0.9:8080");
    other_host.headers_mut().insert("host", "10.0.0.1:80".parse().unwrap());
    let mut two_hosts = connect_to("10.0.0.9:8080");
    two_hosts.headers_mut().append("host", "10.0.0.9:8080".parse().unwrap());
    two_hosts.headers_mut().append("host", "10.0.0.1:80".parse().unwrap());
    let mut large = connect_to("10.0.0.9:8080");
    large.headers_mut().insert("baggage", "x".repeat(17 << 10).parse().unwrap());
    let mut extended =
        Request::builder().method(Method::CONNECT).uri("http://10.0.0.9:8080/").body(()).unwrap();
    extended.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
    for (request, expected) in [
        (get, StatusCode::METHOD_NOT_ALLOWED),
        (connect_to("localhost:8080"), StatusCode::BAD_REQUEST),
        (connect_to("10.0.0.9:0"), StatusCode::BAD_REQUEST),
        (connect_to("user@10.0.0.9:80"), StatusCode::BAD_REQUEST),
        (other_host, StatusCode::BAD_REQUEST),
        (two_hosts, StatusCode::BAD_REQUEST),
        (large, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
        (connect_to("[::ffff:10.0.0.9]:8080"), StatusCode::OK),
    ] {
        let what = format!("{request:?}");
        let (response, _) = sender.send_request(request, true).unwrap();
        let response = timeout(LONG, response).await.unwrap().expect(&what);
        assert_eq!(response.status(), expected, "{what}");
    }
    // Refused by h2 itself where it was never offered, or answered 501 by us.
    if let Ok((response, _)) = sender.send_request(extended, true) {
        match timeout(LONG, response).await.unwrap() {
            Ok(response) => assert_eq!(response.status(), StatusCode::NOT_IMPLEMENTED),
            Err(error) => assert_eq!(error.reason(), Some(Reason::PROTOCOL_ERROR)),
        }
    }
    let (response, _) = sender.send_request(connect_to("10.0.0.9:8080"), true).unwrap();
    assert_eq!(response.await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn garbage_ends_its_own_connection_only() {
    let client = client();
    let node = echoing(&client).await;
    let mut tcp = TcpStream::connect(node.address).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    timeout(LONG, tcp.read_to_end(&mut Vec::new())).await.unwrap().ok();
    for garbage in [
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        vec![0xff; 4096],
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &[0xff; 4096]].concat(),
    ] {
        let mut stream = tls(&node, client.authority.client()).await;
        stream.write_all(&garbage).await.unwrap();
        timeout(LONG, stream.read_to_end(&mut Vec::new())).await.unwrap().ok();
    }
    eventually("the broken connections end", || node.running() == 0).await;
    ping(&mut client.connect(node.address).await.unwrap()).await;
}

#[tokio::test]
async fn too_many_streams_are_refused_one_by_one() {
    let client = client();
    let options = HboneServerOptions { max_concurrent_streams: 2, ..Default::default() };
    let node = serve(&client.authority, "127.0.0.1:0", options, echo).await;
    // Ours opens further connections instead.
    let mut streams = Vec::new();
    for _ in 0..6 {
        streams.push(client.connect(node.address).await.unwrap());
    }
    for stream in &mut streams {
        ping(stream).await;
    }
    assert!((3..=5).contains(&node.accepted()), "{} connections", node.accepted());
}

#[tokio::test]
async fn rapid_resets_end_the_connection() {
    let client = client();
    let node = serve(
        &client.authority,
        "127.0.0.1:0",
        HboneServerOptions::default(),
        |_: ConnectRequest| async {},
    )
    .await;
    let mut sender = raw(&client, &node).await;
    let flood = timeout(LONG, async {
        loop {
            sender = match sender.ready().await {
                Ok(sender) => sender,
                Err(error) => return error,
            };
            for _ in 0..50 {
                match sender.send_request(connect_to("10.0.0.9:8080"), false) {
                    Ok((_, mut send)) => send.send_reset(Reason::CANCEL),
                    Err(_) => break,
                }
            }
            tokio::task::yield_now().await;
        }
    });
    let error = flood.await.unwrap();
    assert_eq!(error.reason(), Some(Reason::ENHANCE_YOUR_CALM), "{error}");
    eventually("the connection ends", || node.running() == 0).await;
}

#[tokio::test]
async fn a_peer_that_is_somebody_else_is_refused_by_either_side() {
    let client = client();
    let stranger = Authority::new();
    let foreign = serve(&stranger, "127.0.0.1:0", HboneServerOptions::default(), echo).await;
    let error = client.connect(foreign.address).await.unwrap_err();
    assert!(matches!(error.failure(), HboneFailure::Handshake(_)), "{error:?}");
    assert!(!error.is_retryable());

    let node = echoing(&client).await;
    let config = client.authority.client_of(&stranger);
    let target = client.target(node.address);
    let error = client.pool.connect(&target, &config, LONG).await.unwrap_err();
    assert!(matches!(error.failure(), HboneFailure::Handshake(_)), "{error:?}");
}

#[tokio::test]
async fn a_peer_without_http2_is_refused_by_either_side() {
    let client = client();
    let mut config = ClientConfig::clone(&client.authority.client());
    config.alpn_protocols.clear();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = client.authority.server();
    let accepting = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        accept_tls(tcp, server, LONG).await.err()
    });
    let target = client.target(address);
    let error = client.pool.connect(&target, &Arc::new(config), LONG).await.unwrap_err();
    assert!(matches!(error.failure(), HboneFailure::Alpn), "{error:?}");
    assert!(matches!(accepting.await.unwrap(), Some(TlsAcceptError::Alpn)));
}

#[tokio::test]
async fn refusals_reach_the_caller_with_their_reason() {
    let client = client();
    let refuse = |request: ConnectRequest| async {
        request.refuse(StatusCode::FORBIDDEN, "policy \"none\"\r\nsays no");
    };
    let node = serve(&client.authority, "127.0.0.1:0", HboneServerOptions::default(), refuse).await;
    let error = client.connect(node.address).await.unwrap_err();
    assert!(!error.is_retryable());
    let HboneFailure::Refused { status, reason } = error.failure() else {
        panic!("{error:?}");
    };
    assert_eq!(*status, StatusCode::FORBIDDEN);
    assert_eq!(reason.as_deref(), Some("mesh-agent; details=\"policy nonesays no\""));
}

#[tokio::test]
async fn a_caller_that_leaves_is_noticed_before_the_answer() {
    let client = client();
    let (sender, mut left) = tokio::sync::mpsc::channel(1);
    let node = serve(
        &client.authority,
        "127.0.0.1:0",
        HboneServerOptions::default(),
        move |mut request: ConnectRequest| {
            let sender = sender.clone();
            async move {
                request.cancelled().await;
                sender.send(()).await.unwrap();
            }
        },
    )
    .await;
    let (target, tls) = (client.target(node.address), client.authority.client());
    let short = Duration::from_millis(300);
    let error = client.pool.connect(&target, &tls, short).await.unwrap_err();
    assert!(matches!(error.failure(), HboneFailure::Timeout { .. }), "{error:?}");
    timeout(LONG, left.recv()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_given_up_at_each_step() {
    let client = client();
    let short = Duration::from_millis(100);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = client.authority.server();

    let _silent = TcpStream::connect(address).await.unwrap();
    let (tcp, _) = listener.accept().await.unwrap();
    let error = accept_tls(tcp, Arc::clone(&server), short).await.unwrap_err();
    assert!(matches!(error, TlsAcceptError::TimedOut(_)), "{error:?}");

    let config = client.authority.client();
    let connecting = tokio::spawn(async move {
        let tcp = TcpStream::connect(address).await.unwrap();
        let name = ServerName::IpAddress(address.ip().into());
        TlsConnector::from(config).connect(name, tcp).await.unwrap()
    });
    let (tcp, _) = listener.accept().await.unwrap();
    let stream = accept_tls(tcp, server, LONG).await.unwrap();
    let _silent = connecting.await.unwrap();
    let options = HboneServerOptions { handshake_timeout: short, ..Default::default() };
    let error = HboneServer::handshake(stream, options).await.unwrap_err();
    assert!(matches!(error, HboneServerError::HandshakeTimedOut(_)), "{error:?}");
}

#[tokio::test]
async fn a_vanished_client_is_noticed() {
    let (near, far) = tokio::io::duplex(1 << 20);
    let short = Duration::from_millis(100);
    let options = HboneServerOptions {
        keepalive_interval: short,
        keepalive_timeout: short,
        ..Default::default()
    };
    let serving =
        tokio::spawn(
            async move { HboneServer::handshake(far, options).await.unwrap().next().await },
        );
    let (_sender, mut connection) = h2::client::handshake(near).await.unwrap();
    // Long enough to say hello, then never again.
    let _ = timeout(Duration::from_millis(50), &mut connection).await;
    let ended = timeout(LONG, serving).await.unwrap().unwrap();
    assert!(matches!(ended, Some(Err(HboneServerError::KeepaliveTimedOut(_)))), "{ended:?}");
}

#[tokio::test]
async fn a_vanished_server_is_noticed() {
    let short = Duration::from_millis(100);
    let client = Client::new(HbonePoolOptions {
        keepalive_interval: short,
        keepalive_timeout: short,
        ..Default::default()
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, tls) = (listener.local_addr().unwrap(), client.authority.server());
    tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let stream = accept_tls(tcp, tls, LONG).await.unwrap();
        let mut server =
            HboneServer::handshake(stream, HboneServerOptions::default()).await.unwrap();
        let _stream = server.next().await.unwrap().unwrap().accept().unwrap();
        // Lets the answer out, then plays dead.
        let _ = timeout(Duration::from_millis(50), server.next()).await;
        sleep(LONG).await;
    });
    let mut stream = client.connect(address).await.unwrap();
    let read = timeout(Duration::from_secs(5), stream.read(&mut [0; 1])).await;
    read.expect("noticed").unwrap_err();
}

/// What follows a good preface is noise, or good frames with a few bytes changed.
#[tokio::test]
async fn noise_ends_the_connection_and_never_panics() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let headers = b"\x00\x00\x16\x01\x04\x00\x00\x00\x01\x02\x07CONNECT\x01\x0b10.0.0.9:80";
    let data = b"\x00\x00\x04\x00\x00\x00\x00\x00\x01ping";
    let settings = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00";
    for round in 0..300 {
        let (mut near, far) = tokio::io::duplex(1 << 16);
        let serving = tokio::spawn(async move {
            let Ok(mut server) = HboneServer::handshake(far, HboneServerOptions::default()).await
            else {
                return;
            };
            while let Some(next) = server.next().await {
                if let Ok(request) = next {
                    tokio::spawn(echo(request));
                }
            }
        });
        let mut bytes = settings.to_vec();
        for _ in 0..4 {
            bytes.extend_from_slice(headers);
            bytes.extend_from_slice(data);
        }
        for _ in 0..round % 8 {
            let at = random() as usize % bytes.len();
            bytes[at] = random() as u8;
        }
        near.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        near.write_all(&bytes).await.unwrap();
        near.shutdown().await.unwrap();
        let mut answer = Vec::new();
        timeout(LONG, near.read_to_end(&mut answer)).await.unwrap().unwrap();
        timeout(LONG, serving).await.unwrap().unwrap();
    }
}
