//! Connections that change their protocol, and those that may not.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::harness::{
    Mesh, Setup, eventually, mirror_upstream, raw_upstream, read_head, silent_upstream, within,
};
use crate::model::upgrade::Upgrades;

const OFFER: &str = "GET /chat HTTP/1.1\r\nhost: app.test\r\nupgrade: websocket\r\n\
    connection: keep-alive, Upgrade\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const SWITCHED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

fn with_websocket(upstream: SocketAddr) -> Setup {
    let upgrades = Upgrades(BTreeMap::from([("websocket".into(), true)]));
    Setup { upgrades, ..Setup::new(upstream) }
}

/// Switches, greets, and says everything back in capitals until the client has ended.
async fn switching_upstream() -> SocketAddr {
    raw_upstream(|mut stream, _| async move {
        let head = read_head(&mut stream).await.unwrap().to_lowercase();
        assert!(head.contains("\r\nupgrade: websocket\r\n"), "{head}");
        assert!(head.contains("\r\nconnection: upgrade\r\n"), "{head}");
        assert!(head.contains("\r\nsec-websocket-key: "), "{head}");
        assert!(!head.contains("content-length"), "{head}");
        stream.write_all(&[SWITCHED, b"greeting;"].concat()).await.unwrap();
        let mut buf = [0; 1024];
        while let Ok(n @ 1..) = stream.read(&mut buf).await {
            stream.write_all(&buf[..n].to_ascii_uppercase()).await.unwrap();
        }
        stream.write_all(b"bye").await.unwrap();
    })
    .await
}

async fn read_until(stream: &mut TcpStream, end: &[u8]) -> Vec<u8> {
    let mut read = Vec::new();
    while !read.ends_with(end) {
        read.push(within(stream.read_u8()).await.unwrap());
    }
    read
}

#[tokio::test]
async fn a_connection_switches_protocols_and_each_side_ends_by_itself() {
    let mesh = Mesh::new(with_websocket(switching_upstream().await));
    let mut client = mesh.connect().await;
    // What no HTTP parser would take, with the offer and after it.
    client.write([OFFER.as_bytes(), b"\x81\x05early\r\n;"].concat()).await;
    let head = String::from_utf8(read_until(&mut client.stream, b"\r\n\r\n").await).unwrap();
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    let head = head.to_lowercase();
    assert!(head.contains("\r\nupgrade: websocket\r\n"), "{head}");
    assert!(head.contains("\r\nconnection: upgrade\r\n"), "{head}");
    assert!(head.contains("\r\nsec-websocket-accept: "), "{head}");
    let said = read_until(&mut client.stream, b"EARLY\r\n;").await;
    assert_eq!(said, b"greeting;\x81\x05EARLY\r\n;");
    client.write("GET / HTTP/1.1\nmore;").await;
    assert_eq!(read_until(&mut client.stream, b";").await, b"GET / HTTP/1.1\nMORE;");
    assert_eq!(mesh.recorded(), 0, "it goes on");
    client.stream.shutdown().await.unwrap();
    let (rest, reset) = client.rest().await;
    assert_eq!((rest.as_str(), reset), ("bye", false));
    let record = mesh.record(0).await;
    assert_eq!(record.response_code.unwrap(), 101);
    assert!(record.flags.is_empty(), "{record:?}");
    assert_eq!((record.request_bytes, record.response_bytes), (30, 42), "{record:?}");
    let outcome = client.served.await.unwrap();
    assert!(outcome.error.is_none(), "{outcome:?}");
    assert_eq!(mesh.services.pool.len(), 0, "the upstream connection is nobody else's");
}

#[tokio::test]
async fn what_is_not_allowed_is_refused_and_nothing_after_it_is_served() {
    let smuggled = "GET /secret2 HTTP/1.1\r\nhost: app.test\r\n\r\n";
    let other = OFFER.replace("upgrade: websocket", "upgrade: spdy/3");
    let body = OFFER.replace("\r\n\r\n", "\r\ncontent-length: 2\r\n\r\nhi");
    for (offer, setup) in [
        (OFFER, Setup::new as fn(SocketAddr) -> Setup),
        (&other, with_websocket),
        (&body, with_websocket),
    ] {
        let (upstream, seen) = silent_upstream().await;
        let mesh = Mesh::new(setup(upstream));
        let mut client = mesh.connect().await;
        client.write(format!("{offer}{smuggled}")).await;
        let (response, _) = client.rest().await;
        assert!(response.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{response}");
        assert!(response.contains("\r\nconnection: close\r\n"), "{response}");
        assert_eq!(response.matches("HTTP/1.1").count(), 1, "{response}");
        assert_eq!(mesh.record(0).await.details.as_deref(), Some("upgrade_failed"));
        assert!(seen.lock().unwrap().is_empty());
    }
}

#[tokio::test]
async fn an_upstream_that_declines_is_heard_and_the_connection_goes_on() {
    let mesh = Mesh::new(with_websocket(mirror_upstream().await));
    let mut client = mesh.connect().await;
    let next = "GET /next HTTP/1.1\r\nhost: app.test\r\n\r\n";
    client.write(format!("{OFFER}{next}")).await;
    let declined = client.response().await;
    assert!(declined.starts_with("HTTP/1.1 200 OK\r\n"), "{declined}");
    assert!(declined.contains("GET /chat HTTP/1.1\r\n"), "{declined}");
    let response = client.response().await;
    assert!(response.contains("GET /next HTTP/1.1\r\n"), "{response}");
    let response = client.ask(next).await;
    assert!(response.contains("GET /next HTTP/1.1\r\n"), "{response}");
    // Behind a refused offer the scanner still looks.
    client.write(format!("{OFFER}GET / HTTP/1.1\nhost: app.test\n\n")).await;
    assert!(client.response().await.starts_with("HTTP/1.1 200 OK\r\n"));
    assert!(client.response().await.starts_with("HTTP/1.1 400 Bad Request\r\n"));
}

#[tokio::test]
async fn an_unasked_switch_is_no_answer() {
    let upstream = raw_upstream(|mut stream, _| async move {
        read_head(&mut stream).await.unwrap();
        stream.write_all(SWITCHED).await.unwrap();
        // Until the agent has gone.
        _ = stream.read_u8().await;
    });
    let mesh = Mesh::new(with_websocket(upstream.await));
    let mut client = mesh.connect().await;
    let response = client.ask("GET / HTTP/1.1\r\nhost: app.test\r\n\r\n").await;
    assert!(response.starts_with("HTTP/1.1 502 "), "{response}");
}

#[tokio::test]
async fn a_silent_tunnel_is_cut_and_so_is_one_whose_client_is_gone() {
    let mut setup = with_websocket(switching_upstream().await);
    setup.stream_idle_timeout = Some(Duration::from_millis(200));
    let mesh = Mesh::new(setup);
    let mut client = mesh.connect().await;
    client.write(OFFER).await;
    read_until(&mut client.stream, b"greeting;").await;
    within(client.served).await.unwrap();
    assert_eq!(mesh.record(0).await.flags.to_string(), "SI");

    let (upstream, seen) = silent_upstream().await;
    let mesh = Mesh::new(with_websocket(upstream));
    let mut client = mesh.connect().await;
    client.write(OFFER).await;
    eventually(|| (!seen.lock().unwrap().is_empty()).then_some(())).await;
    drop(client.stream);
    within(client.served).await.unwrap();
    assert_eq!(mesh.record(0).await.flags.to_string(), "DC");
}
