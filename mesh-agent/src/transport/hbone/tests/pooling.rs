//! Which connections are made, shared, skipped and closed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use h2::Reason;
use http::{Response, StatusCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::{Instant, sleep, timeout},
};

use super::harness::{Client, LONG, echo, eventually, ping, serve};
use crate::transport::{
    dial::DialError,
    hbone::{
        ConnectRequest, HboneFailure, HbonePoolOptions, HboneServer, HboneServerOptions,
        HboneTarget, Phase, accept_tls,
    },
    testing::{FullListener, GoneSockets, PlainSockets, pod},
};

async fn echoing(client: &Client) -> super::harness::Node {
    serve(&client.authority, "127.0.0.1:0", HboneServerOptions::default(), echo).await
}

#[tokio::test]
async fn connections_are_shared_by_key_and_added_by_load() {
    let options = HbonePoolOptions { max_streams_per_connection: 2, ..Default::default() };
    let client = Client::new(options);
    let node = echoing(&client).await;
    let mut streams = Vec::new();
    for _ in 0..6 {
        streams.push(client.connect(node.address).await.unwrap());
    }
    assert_eq!(node.accepted(), 3);
    let status = client.pool.status();
    assert_eq!(status.len(), 1);
    assert_eq!(status[0].connections.iter().map(|c| c.streams).sum::<usize>(), 6);
    // What is free again is used again.
    streams.clear();
    for _ in 0..6 {
        ping(&mut client.connect(node.address).await.unwrap()).await;
    }
    assert_eq!(node.accepted(), 3);

    let tls = client.authority.client();
    let other =
        HboneTarget { pod: pod("other", Arc::new(PlainSockets)), ..client.target(node.address) };
    client.pool.connect(&other, &tls, LONG).await.unwrap();
    let replaced = HboneTarget {
        identity: "spiffe://cluster.local/ns/shop/sa/other".parse().unwrap(),
        ..client.target(node.address)
    };
    client.pool.connect(&replaced, &tls, LONG).await.unwrap();
    assert_eq!((client.pool.status().len(), node.accepted()), (3, 5));
}

#[tokio::test]
async fn a_crowd_waits_for_one_connection() {
    let client = Arc::new(Client::new(HbonePoolOptions::default()));
    let node = echoing(&client).await;
    let tls = client.authority.client();
    let tasks: Vec<_> = (0..30)
        .map(|_| {
            let (client, tls, address) = (Arc::clone(&client), Arc::clone(&tls), node.address);
            tokio::spawn(async move {
                client.pool.connect(&client.target(address), &tls, LONG).await.unwrap()
            })
        })
        .collect();
    for task in tasks {
        ping(&mut task.await.unwrap()).await;
    }
    assert_eq!(node.accepted(), 1);
}

#[tokio::test]
async fn a_draining_peer_gets_no_more_streams_and_loses_none() {
    let client = Client::new(HbonePoolOptions::default());
    let node = echoing(&client).await;
    let mut old = client.connect(node.address).await.unwrap();
    ping(&mut old).await;
    node.drain();
    // Some of these race the GOAWAY.
    for _ in 0..20 {
        ping(&mut client.connect(node.address).await.unwrap()).await;
    }
    assert!(node.accepted() > 1);
    ping(&mut old).await;
}

/// A server that treats each connection's first CONNECT as `treat` says, once.
async fn wayward(
    client: &Client,
    treat: fn(usize) -> Treatment,
) -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = Arc::new(AtomicUsize::new(0));
    let (tls, count) = (client.authority.server(), Arc::clone(&accepted));
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let number = count.fetch_add(1, Ordering::Relaxed);
            let tls = Arc::clone(&tls);
            tokio::spawn(async move {
                let stream = accept_tls(tcp, tls, LONG).await.unwrap();
                let mut connection = h2::server::handshake(stream).await.unwrap();
                if matches!(treat(number), Treatment::GoAwayAtOnce) {
                    connection.abrupt_shutdown(Reason::NO_ERROR);
                }
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    match treat(number) {
                        Treatment::Serve => {
                            let mut send = respond.send_response(Response::new(()), false).unwrap();
                            send.send_data("hello".into(), true).unwrap();
                            drop(request);
                        }
                        Treatment::Refuse => respond.send_reset(Reason::REFUSED_STREAM),
                        Treatment::GoAway => connection.abrupt_shutdown(Reason::NO_ERROR),
                        Treatment::Hangup | Treatment::GoAwayAtOnce => return,
                    }
                }
            });
        }
    });
    (address, accepted)
}

enum Treatment {
    Serve,
    Refuse,
    /// Once the CONNECT has been seen.
    GoAway,
    /// With a last stream of zero.
    GoAwayAtOnce,
    Hangup,
}

#[tokio::test]
async fn what_a_peer_did_not_process_is_sent_once_more() {
    for treat in [
        (|n| if n == 0 { Treatment::Refuse } else { Treatment::Serve }) as fn(usize) -> Treatment,
        |n| if n == 0 { Treatment::GoAway } else { Treatment::Serve },
        |n| if n == 0 { Treatment::GoAwayAtOnce } else { Treatment::Serve },
    ] {
        let client = Client::new(HbonePoolOptions::default());
        let (address, accepted) = wayward(&client, treat).await;
        let mut stream = client.connect(address).await.unwrap();
        let mut hello = String::new();
        stream.read_to_string(&mut hello).await.unwrap();
        assert_eq!(hello, "hello");
        assert!(accepted.load(Ordering::Relaxed) <= 2);
    }
}

#[tokio::test]
async fn a_peer_that_never_processes_anything_is_an_error_not_a_loop() {
    for treat in [
        (|_| Treatment::Refuse) as fn(usize) -> Treatment,
        |_| Treatment::GoAway,
        |_| Treatment::GoAwayAtOnce,
        |_| Treatment::Hangup,
    ] {
        let client = Client::new(HbonePoolOptions::default());
        let (address, accepted) = wayward(&client, treat).await;
        client.connect(address).await.unwrap_err();
        assert!(accepted.load(Ordering::Relaxed) <= 2);
    }
}

#[tokio::test]
async fn a_reused_connection_that_broke_is_replaced() {
    let client = Client::new(HbonePoolOptions::default());
    static SERVED: AtomicUsize = AtomicUsize::new(0);
    let (address, _) = wayward(&client, |_| match SERVED.fetch_add(1, Ordering::Relaxed) {
        1 => Treatment::Hangup,
        _ => Treatment::Serve,
    })
    .await;
    for _ in 0..3 {
        let mut hello = String::new();
        client.connect(address).await.unwrap().read_to_string(&mut hello).await.unwrap();
        assert_eq!(hello, "hello");
    }
}

#[tokio::test]
async fn an_evicted_endpoint_drains() {
    let client = Client::new(HbonePoolOptions::default());
    let (kept, gone) = (echoing(&client).await, echoing(&client).await);
    let mut kept_stream = client.connect(kept.address).await.unwrap();
    let mut gone_stream = client.connect(gone.address).await.unwrap();
    client.pool.retain(|key| key.tunnel == kept.address);
    ping(&mut kept_stream).await;
    ping(&mut gone_stream).await;
    assert_eq!(client.pool.status().len(), 1);
    gone_stream.shutdown().await.unwrap();
    gone_stream.read_to_end(&mut Vec::new()).await.unwrap();
    drop(gone_stream);
    eventually("the evicted connection ends", || gone.running() == 0).await;
    assert_eq!(kept.running(), 1);
}

#[tokio::test]
async fn an_endpoint_evicted_while_it_is_dialled_is_given_up_at_once() {
    let client = Arc::new(Client::new(HbonePoolOptions::default()));
    let hole = FullListener::new();
    let (waiting, address) = (Arc::clone(&client), hole.address());
    let waiter = tokio::spawn(async move { waiting.connect(address).await });
    eventually("the dial begins", || client.pool.status().len() == 1).await;
    client.pool.retain(|_| false);
    let error = timeout(Duration::from_secs(2), waiter).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error.failure(), HboneFailure::Evicted), "{error:?}");
}

#[tokio::test]
async fn everyone_waits_for_a_black_hole_as_long_as_they_wish() {
    let options =
        HbonePoolOptions { connect_timeout: Duration::from_millis(600), ..Default::default() };
    let client = Arc::new(Client::new(options));
    let hole = FullListener::new();
    let start = Instant::now();
    let tasks: Vec<_> = [100, 300, 5000]
        .map(|millis| {
            let (client, address) = (Arc::clone(&client), hole.address());
            tokio::spawn(async move {
                let (target, tls) = (client.target(address), client.authority.client());
                let patience = Duration::from_millis(millis);
                let error = client.pool.connect(&target, &tls, patience).await.unwrap_err();
                (error, start.elapsed())
            })
        })
        .into();
    // Nobody else has to wait.
    let node = echoing(&client).await;
    timeout(Duration::from_millis(500), client.connect(node.address)).await.unwrap().unwrap();
    let mut results = Vec::new();
    for task in tasks {
        results.push(task.await.unwrap());
    }
    for (error, elapsed) in &results[..2] {
        let expected = Phase::Connection;
        assert!(
            matches!(error.failure(), HboneFailure::Timeout { phase, .. } if *phase == expected),
            "{error:?}"
        );
        assert!(*elapsed < Duration::from_millis(550), "{elapsed:?}");
    }
    let (error, elapsed) = &results[2];
    let HboneFailure::Dial(source) = error.failure() else { panic!("{error:?}") };
    assert!(matches!(**source, DialError::TimedOut { .. }), "{source:?}");
    assert!(*elapsed < Duration::from_secs(3), "{elapsed:?}");
    assert!(error.is_retryable());
}

#[tokio::test]
async fn a_slow_handshake_holds_up_its_own_key_only_and_survives_its_first_caller() {
    let client = Client::new(HbonePoolOptions::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let slow = listener.local_addr().unwrap();
    let tls = client.authority.server();
    tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        sleep(Duration::from_millis(400)).await;
        let stream = accept_tls(tcp, tls, LONG).await.unwrap();
        let options = HboneServerOptions::default();
        let mut server = HboneServer::handshake(stream, options).await.unwrap();
        while let Some(Ok(request)) = server.next().await {
            tokio::spawn(echo(request));
        }
    });
    let target = client.target(slow);
    let config = client.authority.client();
    let short = Duration::from_millis(50);
    client.pool.connect(&target, &config, short).await.unwrap_err();
    let node = echoing(&client).await;
    timeout(Duration::from_millis(300), client.connect(node.address)).await.unwrap().unwrap();
    // Only one connection is ever accepted there.
    ping(&mut client.connect(slow).await.unwrap()).await;
}

#[tokio::test]
async fn a_pod_that_is_gone_is_an_error() {
    let client = Client::new(HbonePoolOptions::default());
    let node = echoing(&client).await;
    let target =
        HboneTarget { pod: pod("gone", Arc::new(GoneSockets)), ..client.target(node.address) };
    let error = client.pool.connect(&target, &client.authority.client(), LONG).await.unwrap_err();
    let HboneFailure::Dial(source) = error.failure() else { panic!("{error:?}") };
    assert!(matches!(**source, DialError::Socket { .. }), "{source:?}");
    assert!(client.pool.status().is_empty(), "a failed attempt leaves nothing behind");
}

#[tokio::test]
async fn idle_and_old_connections_are_closed() {
    let short = Duration::from_millis(150);
    for options in [
        HbonePoolOptions { idle_timeout: short, ..Default::default() },
        HbonePoolOptions { max_age: short, ..Default::default() },
    ] {
        let client = Client::new(options);
        let node = echoing(&client).await;
        let mut stream = client.connect(node.address).await.unwrap();
        sleep(short * 2).await;
        ping(&mut stream).await;
        assert_eq!(node.running(), 1, "closed with a stream on it");
        drop(stream);
        eventually("the connection is closed", || node.running() == 0).await;
        eventually("it is forgotten", || client.pool.status().is_empty()).await;
    }
}

#[tokio::test]
async fn closing_the_pool_drains_then_cuts() {
    let client = Client::new(HbonePoolOptions::default());
    let node = echoing(&client).await;
    let mut stream = client.connect(node.address).await.unwrap();
    let start = Instant::now();
    client.pool.close_all(Duration::from_millis(200)).await;
    assert!(start.elapsed() >= Duration::from_millis(200));
    stream.read(&mut [0; 1]).await.unwrap_err();
    let error = client.connect(node.address).await.unwrap_err();
    assert!(matches!(error.failure(), HboneFailure::PoolClosed), "{error:?}");
    eventually("the connection is closed", || node.running() == 0).await;
}

#[tokio::test]
async fn a_server_drains_then_cuts() {
    let client = Client::new(HbonePoolOptions::default());
    let options =
        HboneServerOptions { drain_timeout: Duration::from_millis(300), ..Default::default() };
    let node = serve(&client.authority, "127.0.0.1:0", options, echo).await;
    let mut stream = client.connect(node.address).await.unwrap();
    node.drain();
    sleep(Duration::from_millis(100)).await;
    ping(&mut stream).await;
    timeout(LONG, stream.read(&mut [0; 1])).await.unwrap().unwrap_err();
    eventually("the connection is closed", || node.running() == 0).await;
}

#[tokio::test]
async fn a_peer_that_answers_503_may_be_tried_again() {
    let client = Client::new(HbonePoolOptions::default());
    let node = serve(
        &client.authority,
        "127.0.0.1:0",
        HboneServerOptions::default(),
        |request: ConnectRequest| async {
            request.refuse(StatusCode::SERVICE_UNAVAILABLE, "later")
        },
    )
    .await;
    assert!(client.connect(node.address).await.unwrap_err().is_retryable());
}
