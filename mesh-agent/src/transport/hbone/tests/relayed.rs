//! Application to application: two relays with a tunnel between them.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::harness::{Client, LONG, serve};
use crate::{
    model::cluster::Keepalive,
    observe::counters::Counters,
    transport::{
        dial,
        hbone::{ConnectRequest, HbonePoolOptions, HboneServerOptions},
        relay::{EndedBy, RelayOutcome, Side, relay},
        testing::PlainSockets,
    },
};

struct Chain {
    client: TcpStream,
    server: TcpStream,
    /// Of the source's relay, then of the destination's.
    outcomes: mpsc::Receiver<RelayOutcome>,
    cancel: CancellationToken,
    _alive: Client,
}

async fn chain() -> Chain {
    let client = Client::new(HbonePoolOptions::default());
    let application = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let application_at = application.local_addr().unwrap();
    let (report, outcomes) = mpsc::channel(2);
    let far_report = report.clone();
    let node = serve(
        &client.authority,
        "127.0.0.1:0",
        HboneServerOptions::default(),
        move |request: ConnectRequest| {
            let report = far_report.clone();
            async move {
                let upstream = dial::connect(&PlainSockets, application_at, Keepalive::Usual, LONG)
                    .await
                    .unwrap();
                let (counters, cancel) = (Counters::default(), CancellationToken::new());
                let downstream = request.accept().unwrap();
                let outcome = relay(downstream, upstream, None, &counters, &cancel).await;
                report.send(outcome).await.unwrap();
            }
        },
    )
    .await;
    let captured = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(captured.local_addr().unwrap()).await.unwrap();
    let (downstream, _) = captured.accept().await.unwrap();
    let upstream = client.connect(node.address).await.unwrap();
    let cancel = CancellationToken::new();
    let token = cancel.clone();
    tokio::spawn(async move {
        let outcome = relay(downstream, upstream, None, &Counters::default(), &token).await;
        report.send(outcome).await.unwrap();
    });
    let (server, _) = timeout(LONG, application.accept()).await.unwrap().unwrap();
    Chain { client: near, server, outcomes, cancel, _alive: client }
}

async fn is_reset(stream: &mut TcpStream) {
    let error = timeout(LONG, stream.read(&mut [0; 64])).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn fins_travel_one_way_at_a_time() {
    let mut chain = chain().await;
    chain.client.write_all(b"request").await.unwrap();
    chain.client.shutdown().await.unwrap();
    let mut request = Vec::new();
    timeout(LONG, chain.server.read_to_end(&mut request)).await.unwrap().unwrap();
    chain.server.write_all(b"answer").await.unwrap();
    drop(chain.server);
    let mut answer = Vec::new();
    timeout(LONG, chain.client.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert_eq!((request.as_slice(), answer.as_slice()), (&b"request"[..], &b"answer"[..]));
    for _ in 0..2 {
        let outcome = timeout(LONG, chain.outcomes.recv()).await.unwrap().unwrap();
        assert!(outcome.is_clean(), "{outcome:?}");
        assert_eq!(outcome.ended_by, EndedBy::Side(Side::Downstream));
    }
}

#[tokio::test]
async fn resets_travel_all_the_way() {
    let mut upwards = chain().await;
    upwards.client.set_zero_linger().unwrap();
    drop(upwards.client);
    is_reset(&mut upwards.server).await;

    let mut downwards = chain().await;
    downwards.server.set_zero_linger().unwrap();
    drop(downwards.server);
    is_reset(&mut downwards.client).await;
    for _ in 0..2 {
        let outcome = timeout(LONG, downwards.outcomes.recv()).await.unwrap().unwrap();
        assert_eq!(outcome.ended_by, EndedBy::Side(Side::Upstream), "{outcome:?}");
    }

    let mut cut = chain().await;
    cut.cancel.cancel();
    is_reset(&mut cut.client).await;
    is_reset(&mut cut.server).await;
}

#[tokio::test]
async fn a_stuck_application_stops_the_one_that_writes_to_it() {
    let mut chain = chain().await;
    let chunk = Arc::new(vec![7; 64 << 10]);
    let mut pushed = 0;
    while let Ok(written) = timeout(Duration::from_millis(500), chain.client.write(&chunk)).await {
        pushed += written.unwrap();
        // Two pairs of socket buffers, which the kernel lets grow, and our windows.
        assert!(pushed < 64 << 20, "{pushed} bytes went to nobody");
    }
    let mut got = 0;
    let mut bytes = vec![0; 64 << 10];
    while got < pushed {
        got += timeout(LONG, chain.server.read(&mut bytes)).await.unwrap().unwrap();
    }
}

/// The tunnel's last bytes wait for the peer's window after both relays' sources ended.
#[tokio::test]
async fn what_was_written_before_the_end_arrives_after_it() {
    const TOTAL: usize = 24 << 20;
    let mut chain = chain().await;
    chain.client.shutdown().await.unwrap();
    let mut server = chain.server;
    let writing = tokio::spawn(async move {
        server.write_all(&vec![9; TOTAL]).await.unwrap();
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut got = Vec::new();
    timeout(LONG, chain.client.read_to_end(&mut got)).await.unwrap().unwrap();
    assert_eq!(got.len(), TOTAL);
    writing.await.unwrap();
    for _ in 0..2 {
        assert!(timeout(LONG, chain.outcomes.recv()).await.unwrap().unwrap().is_clean());
    }
}
