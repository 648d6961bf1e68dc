use std::{sync::Arc, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncWriteExt, DuplexStream, duplex},
    time::Instant,
};

use super::{Reading, Stopped, inspect};
use crate::{
    model::{
        listener::TransportProtocol,
        listener_filter::{Inspected, ListenerFilters, TlsInspector},
    },
    proxy::half_open::HalfOpen,
};

fn both() -> ListenerFilters {
    ListenerFilters {
        tls_inspector: Some(TlsInspector {
            max_client_hello_bytes: 16 << 10,
            close_on_errors: false,
        }),
        http_inspector: true,
        timeout: Some(Duration::from_secs(15)),
        ..ListenerFilters::default()
    }
}

/// What is found in pieces that come one by one; after them the client says nothing more,
/// and what was read of it.
async fn found(
    filters: &ListenerFilters,
    pieces: &[&[u8]],
    closes: bool,
) -> (Result<Inspected, Stopped>, BytesMut) {
    let (mut client, mut stream): (DuplexStream, _) = duplex(1 << 20);
    let mut bytes = BytesMut::new();
    let speaking = async {
        for piece in pieces {
            client.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        let _open = (!closes).then_some(client);
        std::future::pending::<()>().await;
    };
    let half_open = HalfOpen::default();
    let entering = half_open.enter();
    let mut reading =
        Reading { entering: &entering, stream: &mut stream, bytes: &mut bytes, header: None };
    let found = tokio::select! {
        found = inspect(filters, Instant::now(), &mut reading) => found,
        () = speaking => unreachable!(),
    };
    (found, bytes)
}

fn protocols(found: &Inspected) -> Vec<&str> {
    found.application_protocols.iter().map(|name| &**name).collect()
}

#[tokio::test(start_paused = true)]
async fn first_bytes_are_read_once_and_handed_on() {
    let pieces: [&[u8]; 3] = [b"G", b"ET / HT", b"TP/1.1\r\nhost: a\r\n\r\n"];
    let (of, bytes) = found(&both(), &pieces, false).await;
    let of = of.unwrap();
    assert_eq!(protocols(&of), ["http/1.1"]);
    assert_eq!(of.transport, TransportProtocol::RawBuffer);
    assert!(both().are_done(&of));
    assert_eq!(bytes, pieces.concat());

    let nobody = ListenerFilters::default();
    let (of, bytes) = found(&nobody, &pieces, false).await;
    let of = of.unwrap();
    assert!(bytes.is_empty() && protocols(&of).is_empty());
    assert!(nobody.are_done(&of) && !both().are_done(&of));

    let (of, _) = found(&both(), &[b"\0\0\0\x08"], false).await;
    assert!(protocols(&of.unwrap()).is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_says_too_little_goes_on_where_that_is_configured() {
    let patient = ListenerFilters { continue_on_timeout: true, ..both() };
    for said in [&b""[..], b"\x16\x03", b"GET / HT"] {
        let (of, bytes) = found(&patient, &[said], false).await;
        let of = of.unwrap();
        assert!(protocols(&of).is_empty() && patient.are_done(&of));
        assert_eq!(bytes, said);
        let (of, _) = found(&both(), &[said], false).await;
        assert!(matches!(of, Err(Stopped::Refused("the listener filters took too long"))));
        let (of, _) = found(&patient, &[said], true).await;
        assert!(matches!(of, Err(Stopped::Gone)));
    }
    // For ever.
    let (mut client, mut stream) = duplex(64);
    let endless = ListenerFilters { timeout: None, ..both() };
    let mut bytes = BytesMut::new();
    let half_open = HalfOpen::default();
    let entering = half_open.enter();
    let mut reading =
        Reading { entering: &entering, stream: &mut stream, bytes: &mut bytes, header: None };
    let mut running = std::pin::pin!(inspect(&endless, Instant::now(), &mut reading));
    let waited = tokio::time::timeout(Duration::from_secs(1 << 20), &mut running).await;
    assert!(waited.is_err());
    client.write_all(b"PING\r\n").await.unwrap();
    assert!(protocols(&running.await.unwrap()).is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_of_a_client_is_bounded() {
    let flood = vec![b'a'; 1 << 20];
    let (of, bytes) = found(&both(), &[&flood], false).await;
    assert!(matches!(of, Err(Stopped::Refused("the request line is too long"))));
    assert!(bytes.len() <= 80 << 10, "{}", bytes.len());
    let mut hello = vec![22, 3, 1, 0x3f, 0xff, 1, 0, 0x3f, 0xf0];
    hello.resize(1 << 20, 0);
    let (of, bytes) = found(&both(), &[&hello], false).await;
    assert_eq!(of.unwrap().transport, TransportProtocol::RawBuffer);
    assert!(bytes.len() <= 32 << 10, "{}", bytes.len());
    let strict = TlsInspector { max_client_hello_bytes: 512, close_on_errors: true };
    let strict = ListenerFilters { tls_inspector: Some(strict), ..both() };
    let (of, _) = found(&strict, &[&hello], false).await;
    assert!(matches!(of, Err(Stopped::Refused("the ClientHello can't be read"))));
}

#[tokio::test(start_paused = true)]
async fn names_are_read_off_a_client_hello() {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let name = "a.example".try_into().unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    let (first, second) = hello.split_at(100);
    let (of, bytes) = found(&both(), &[first, second], false).await;
    let of = of.unwrap();
    assert_eq!(of.server_name.as_deref(), Some("a.example"));
    assert_eq!(protocols(&of), ["h2", "http/1.1"]);
    assert_eq!(of.transport, TransportProtocol::Tls);
    assert_eq!(bytes, hello);
}
