//! What one stream does, and what many do to each other.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use aws_lc_rs::digest::{Context, SHA256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Notify, mpsc},
    time::timeout,
};

use super::harness::{Client, LONG, echo, inner, ping, serve};
use crate::transport::{
    hbone::{
        ConnectRequest, HbonePoolOptions, HboneServer, HboneServerOptions, HboneStream, accept_tls,
        client, small_frames,
    },
    relay::Abort,
};

const MIB: usize = 1 << 20;

fn a_client() -> Client {
    Client::new(HbonePoolOptions::default())
}

/// Hands the server's end of each stream to the test.
async fn pair(client: &Client) -> (HboneStream, HboneStream) {
    let (sender, mut streams) = mpsc::channel(1);
    let node = serve(
        &client.authority,
        "127.0.0.1:0",
        HboneServerOptions::default(),
        move |request: ConnectRequest| {
            let sender = sender.clone();
            async move {
                assert_eq!(request.authority(), inner());
                sender.send(request.accept().unwrap()).await.unwrap();
            }
        },
    )
    .await;
    let near = client.connect(node.address).await.unwrap();
    (near, streams.recv().await.unwrap())
}

async fn reads(stream: &mut HboneStream, expected: &[u8]) {
    let mut bytes = vec![0; expected.len()];
    timeout(LONG, stream.read_exact(&mut bytes)).await.unwrap().unwrap();
    assert_eq!(bytes, expected);
}

async fn ends(stream: &mut HboneStream) {
    assert_eq!(timeout(LONG, stream.read(&mut [0; 1])).await.unwrap().unwrap(), 0);
}

async fn is_reset(stream: &mut HboneStream) {
    let error = timeout(LONG, stream.read(&mut [0; 1])).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
}

#[tokio::test]
async fn bytes_come_back_over_ipv4_and_ipv6() {
    for bind in ["127.0.0.1:0", "[::1]:0"] {
        let client = a_client();
        let node = serve(&client.authority, bind, HboneServerOptions::default(), echo).await;
        let mut stream = client.connect(node.address).await.unwrap();
        ping(&mut stream).await;
        stream.shutdown().await.unwrap();
        ends(&mut stream).await;
    }
}

#[tokio::test]
async fn either_side_may_finish_first() {
    let client = a_client();
    let (mut near, mut far) = pair(&client).await;
    near.write_all(b"request").await.unwrap();
    near.shutdown().await.unwrap();
    reads(&mut far, b"request").await;
    ends(&mut far).await;
    far.write_all(b"answer").await.unwrap();
    far.shutdown().await.unwrap();
    reads(&mut near, b"answer").await;
    ends(&mut near).await;

    let (mut near, mut far) = pair(&client).await;
    far.write_all(b"banner").await.unwrap();
    far.shutdown().await.unwrap();
    reads(&mut near, b"banner").await;
    ends(&mut near).await;
    near.write_all(b"late").await.unwrap();
    near.shutdown().await.unwrap();
    reads(&mut far, b"late").await;
    ends(&mut far).await;
    let error = near.write_all(b"after the end").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn either_side_may_reset() {
    let client = a_client();
    let (mut near, mut far) = pair(&client).await;
    near.abort();
    is_reset(&mut far).await;

    let (mut near, mut far) = pair(&client).await;
    far.abort();
    is_reset(&mut near).await;
    let error = near.write_all(b"to nobody").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);

    let (near, mut far) = pair(&client).await;
    drop(near);
    is_reset(&mut far).await;

    let (mut near, far) = pair(&client).await;
    drop(far);
    is_reset(&mut near).await;
}

#[tokio::test]
async fn a_reset_after_a_half_close_reaches_the_writer() {
    let client = a_client();
    let (mut near, mut far) = pair(&client).await;
    far.shutdown().await.unwrap();
    ends(&mut near).await;
    drop(far);
    let chunk = vec![0; 64 << 10];
    let error = timeout(LONG, async {
        loop {
            if let Err(error) = near.write_all(&chunk).await {
                return error;
            }
        }
    });
    assert_eq!(error.await.unwrap().kind(), io::ErrorKind::ConnectionReset);
}

/// Writes until nothing has moved for a while; how much went.
async fn push(stream: &mut HboneStream, total: usize) -> usize {
    let chunk = vec![7; 64 << 10];
    let mut pushed = 0;
    while pushed < total {
        match timeout(Duration::from_millis(300), stream.write(&chunk)).await {
            Ok(written) => pushed += written.unwrap(),
            Err(_) => break,
        }
    }
    pushed
}

#[tokio::test]
async fn a_reader_that_does_not_read_stops_its_writer_and_nobody_else() {
    let client = a_client();
    for far_reads in [true, false] {
        let (mut near, mut far) = pair(&client).await;
        let (writer, reader) =
            if far_reads { (&mut near, &mut far) } else { (&mut far, &mut near) };
        let pushed = push(writer, 64 * MIB).await;
        assert!((MIB / 2..3 * MIB).contains(&pushed), "{pushed} bytes went to nobody");
        let mut taken = 0;
        let mut bytes = vec![0; 64 << 10];
        while taken < pushed {
            taken += timeout(LONG, reader.read(&mut bytes)).await.unwrap().unwrap();
        }
        assert_eq!(push(writer, MIB / 4).await, MIB / 4, "the window was not given back");
    }
}

#[tokio::test]
async fn as_many_stuck_streams_as_a_connection_carries_leave_room_for_one_more() {
    let options = HbonePoolOptions { max_streams_per_connection: 32, ..Default::default() };
    let client = Client::new(options);
    let seen = Arc::new(AtomicUsize::new(0));
    let node = serve(
        &client.authority,
        "127.0.0.1:0",
        HboneServerOptions::default(),
        move |request: ConnectRequest| {
            let stuck = seen.fetch_add(1, Ordering::Relaxed) < 31;
            async move {
                if !stuck {
                    return echo(request).await;
                }
                let _stream = request.accept().unwrap();
                std::future::pending::<()>().await;
            }
        },
    )
    .await;
    let mut stuck = Vec::new();
    for _ in 0..31 {
        stuck.push(client.connect(node.address).await.unwrap());
    }
    for stream in &mut stuck {
        let chunk = vec![7; 64 << 10];
        while timeout(Duration::from_millis(20), stream.write(&chunk)).await.is_ok() {}
    }
    let mut last = client.connect(node.address).await.unwrap();
    timeout(LONG, ping(&mut last)).await.unwrap();
    assert_eq!(node.accepted(), 1);
}

/// Sends `total` bytes, each block unlike the next, and gives their digest.
async fn send(mut to: impl AsyncWriteExt + Unpin, total: usize, seed: u64) -> Vec<u8> {
    let mut block: Vec<u8> = (0..MIB).map(|i| (i as u64 * 31 + seed) as u8).collect();
    let mut digest = Context::new(&SHA256);
    for n in 0..total / MIB {
        block[..8].copy_from_slice(&(n as u64 + seed).to_be_bytes());
        digest.update(&block);
        to.write_all(&block).await.unwrap();
    }
    to.shutdown().await.unwrap();
    digest.finish().as_ref().to_vec()
}

async fn receive(mut from: impl AsyncReadExt + Unpin) -> (usize, Vec<u8>) {
    let (mut total, mut digest, mut bytes) = (0, Context::new(&SHA256), vec![0; 64 << 10]);
    loop {
        match from.read(&mut bytes).await.unwrap() {
            0 => return (total, digest.finish().as_ref().to_vec()),
            n => {
                digest.update(&bytes[..n]);
                total += n;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quarter_gibibyte_each_way_arrives_whole() {
    const TOTAL: usize = 256 * MIB;
    let client = a_client();
    let (near, far) = pair(&client).await;
    let (near_reader, near_writer) = tokio::io::split(near);
    let (far_reader, far_writer) = tokio::io::split(far);
    let up = tokio::spawn(send(near_writer, TOTAL, 1));
    let down = tokio::spawn(send(far_writer, TOTAL, 2));
    let up_got = tokio::spawn(receive(far_reader));
    let (down_total, down_digest) = receive(near_reader).await;
    let (up_total, up_digest) = up_got.await.unwrap();
    assert_eq!((up_total, down_total), (TOTAL, TOTAL));
    assert_eq!(up_digest, up.await.unwrap());
    assert_eq!(down_digest, down.await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_streams_share_a_connection() {
    let client = Arc::new(a_client());
    let node = serve(&client.authority, "127.0.0.1:0", HboneServerOptions::default(), echo).await;
    let tasks: Vec<_> = (0..16)
        .map(|seed| {
            let (client, address) = (Arc::clone(&client), node.address);
            tokio::spawn(async move {
                let stream = client.connect(address).await.unwrap();
                let (reader, writer) = tokio::io::split(stream);
                let sent = tokio::spawn(send(writer, 4 * MIB, seed));
                let (total, digest) = receive(reader).await;
                assert_eq!((total, digest), (4 * MIB, sent.await.unwrap()));
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(node.accepted(), 1);
}

#[tokio::test]
async fn a_server_that_vanishes_breaks_the_stream() {
    let client = a_client();
    let gone = Arc::new(Notify::new());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, tls) = (listener.local_addr().unwrap(), client.authority.server());
    let told = Arc::clone(&gone);
    tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let stream = accept_tls(tcp, tls, LONG).await.unwrap();
        let options = HboneServerOptions::default();
        let mut server = HboneServer::handshake(stream, options).await.unwrap();
        let request = server.next().await.unwrap().unwrap();
        let _stream = request.accept().unwrap();
        tokio::select! {
            _ = server.next() => {}
            () = told.notified() => {}
        }
    });
    let mut stream = client.connect(address).await.unwrap();
    gone.notify_one();
    let error = timeout(LONG, stream.read(&mut [0; 1])).await.unwrap().unwrap_err();
    assert!(
        matches!(
            error.kind(),
            io::ErrorKind::BrokenPipe
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::UnexpectedEof
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn small_writes_that_nobody_sends_are_bounded_and_go_on_later() {
    let (near, far) = tokio::io::duplex(4096);
    let serving = tokio::spawn(async move {
        let mut server = HboneServer::handshake(far, HboneServerOptions::default()).await.unwrap();
        while let Some(request) = server.next().await {
            tokio::spawn(echo(request.unwrap()));
        }
    });
    let (sender, mut connection) = client::builder().handshake(near).await.unwrap();
    let opening = client::open(sender.clone(), inner());
    let (send, recv) = tokio::select! {
        opened = opening => opened.unwrap(),
        _ = &mut connection => panic!("the connection ended"),
    };
    let mut stream = HboneStream::new(send, recv, None);
    // Nobody drives the connection meanwhile.
    let mut written = 0;
    while timeout(Duration::from_millis(50), stream.write_all(b"x")).await.is_ok() {
        written += 1;
    }
    assert_eq!(written, small_frames::MAX_WAITING);
    tokio::spawn(connection);
    timeout(LONG, stream.write_all(b"y")).await.unwrap().unwrap();
    stream.shutdown().await.unwrap();
    let mut echoed = Vec::new();
    timeout(LONG, stream.read_to_end(&mut echoed)).await.unwrap().unwrap();
    assert_eq!(echoed.len(), written + 1);
    drop((stream, sender));
    serving.await.unwrap();
}
