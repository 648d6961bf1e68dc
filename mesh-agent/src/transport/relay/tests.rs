use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    net::TcpListener,
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::*;

const LONG: Duration = Duration::from_secs(20);

/// Two applications with a relay of real sockets between them.
struct Rig {
    client: TcpStream,
    server: TcpStream,
    relay: JoinHandle<RelayOutcome>,
    counters: std::sync::Arc<Counters>,
    cancel: CancellationToken,
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (near, listener.accept().await.unwrap().0)
}

async fn rig(idle: Option<Duration>) -> Rig {
    let (client, downstream) = sockets().await;
    let (upstream, server) = sockets().await;
    let counters = std::sync::Arc::<Counters>::default();
    let cancel = CancellationToken::new();
    let (live, token) = (std::sync::Arc::clone(&counters), cancel.clone());
    let relay = tokio::spawn(async move { relay(downstream, upstream, idle, &live, &token).await });
    Rig { client, server, relay, counters, cancel }
}

async fn is_reset(stream: &mut TcpStream) {
    let error = timeout(LONG, stream.read(&mut [0; 64])).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn both_ways_are_copied_counted_and_half_closed() {
    let mut rig = rig(Some(LONG)).await;
    rig.client.write_all(b"request").await.unwrap();
    let mut bytes = [0; 7];
    rig.server.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"request");
    assert_eq!((rig.counters.received(), rig.counters.sent()), (7, 0), "counted while live");
    rig.client.shutdown().await.unwrap();
    assert_eq!(rig.server.read(&mut bytes).await.unwrap(), 0);
    rig.server.write_all(b"answer").await.unwrap();
    rig.server.shutdown().await.unwrap();
    let mut answer = Vec::new();
    rig.client.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"answer");
    let outcome = rig.relay.await.unwrap();
    assert!(outcome.is_clean(), "{outcome:?}");
    assert_eq!(outcome.ended_by, EndedBy::Side(Side::Downstream));
    assert_eq!((rig.counters.received(), rig.counters.sent()), (7, 6));
}

#[tokio::test]
async fn a_server_may_finish_first() {
    let mut rig = rig(None).await;
    rig.server.write_all(b"banner").await.unwrap();
    rig.server.shutdown().await.unwrap();
    let mut banner = Vec::new();
    rig.client.read_to_end(&mut banner).await.unwrap();
    rig.client.write_all(b"late").await.unwrap();
    rig.client.shutdown().await.unwrap();
    let mut late = Vec::new();
    rig.server.read_to_end(&mut late).await.unwrap();
    assert_eq!((banner.as_slice(), late.as_slice()), (&b"banner"[..], &b"late"[..]));
    assert_eq!(rig.relay.await.unwrap().ended_by, EndedBy::Side(Side::Upstream));
}

#[tokio::test]
async fn a_reset_is_passed_on_either_way() {
    let mut one = rig(None).await;
    one.client.set_zero_linger().unwrap();
    drop(one.client);
    is_reset(&mut one.server).await;
    let outcome = one.relay.await.unwrap();
    assert_eq!(outcome.ended_by, EndedBy::Side(Side::Downstream));
    assert_eq!(outcome.error.unwrap().to_string(), "reading from downstream");

    let mut other = rig(None).await;
    other.server.set_zero_linger().unwrap();
    drop(other.server);
    is_reset(&mut other.client).await;
    assert_eq!(other.relay.await.unwrap().ended_by, EndedBy::Side(Side::Upstream));
}

#[tokio::test]
async fn a_cut_relay_resets_both_sides() {
    let mut cancelled = rig(None).await;
    cancelled.cancel.cancel();
    is_reset(&mut cancelled.client).await;
    is_reset(&mut cancelled.server).await;
    let outcome = cancelled.relay.await.unwrap();
    assert_eq!(outcome.ended_by, EndedBy::Cancelled);
    assert!(!outcome.is_clean());

    let mut dropped = rig(None).await;
    dropped.client.write_all(b"x").await.unwrap();
    dropped.server.read_exact(&mut [0]).await.unwrap();
    dropped.relay.abort();
    is_reset(&mut dropped.client).await;
    is_reset(&mut dropped.server).await;

    let (mut client, downstream) = sockets().await;
    let (upstream, mut server) = sockets().await;
    drop(relay(downstream, upstream, None, &Counters::default(), &CancellationToken::new()));
    is_reset(&mut client).await;
    is_reset(&mut server).await;
}

#[tokio::test]
async fn idleness_is_counted_from_the_last_byte_of_either_way() {
    let idle = Duration::from_millis(300);
    let mut rig = rig(Some(idle)).await;
    for _ in 0..4 {
        sleep(idle / 2).await;
        rig.server.write_all(b"x").await.unwrap();
        rig.client.read_exact(&mut [0]).await.unwrap();
    }
    let start = Instant::now();
    is_reset(&mut rig.client).await;
    assert!(start.elapsed() > idle / 2, "{:?}", start.elapsed());
    assert_eq!(rig.relay.await.unwrap().ended_by, EndedBy::Idle);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_and_small_pieces_arrive_in_order() {
    let rig = rig(None).await;
    let data: Vec<u8> = (0..8_000_000u32).map(|i| (i ^ (i >> 8)) as u8).collect();
    let (mut client, mut server) = (rig.client, rig.server);
    let sent = data.clone();
    tokio::spawn(async move {
        let (mut rest, mut size) = (sent.as_slice(), 1);
        while !rest.is_empty() {
            let (piece, tail) = rest.split_at(size.min(rest.len()));
            client.write_all(piece).await.unwrap();
            (rest, size) = (tail, size * 3 % 300_007 + 1);
        }
        client.shutdown().await.unwrap();
        client.read_to_end(&mut Vec::new()).await.unwrap();
    });
    let mut got = Vec::new();
    server.read_to_end(&mut got).await.unwrap();
    server.shutdown().await.unwrap();
    assert!(got == data, "{} bytes of {}", got.len(), data.len());
    assert!(rig.relay.await.unwrap().is_clean());
    assert_eq!(rig.counters.received(), data.len() as u64);
}

/// What a slow writer holds up must not grow.
#[tokio::test]
async fn a_stuck_side_stops_the_other() {
    let (mut client, downstream): (DuplexStream, _) = duplex(1024);
    let (upstream, _server) = duplex(1024);
    let counters = std::sync::Arc::<Counters>::default();
    let cancel = CancellationToken::new();
    let relay = tokio::spawn(async move {
        relay(downstream, upstream, None, &counters, &cancel).await.ended_by
    });
    let chunk = [0; 1024];
    let mut pushed = 0;
    while let Ok(written) = timeout(Duration::from_millis(200), client.write(&chunk)).await {
        pushed += written.unwrap();
        assert!(pushed < 1 << 20);
    }
    relay.abort();
}

#[tokio::test]
async fn buffers_grow_with_bulk_and_go_when_idle() {
    let (mut near, mut far) = duplex(1 << 20);
    near.write_all(&vec![1; 300_000]).await.unwrap();
    let mut buffer = ReadBuffer::default();
    let mut sizes = Vec::new();
    for _ in 0..4 {
        sizes.push(poll_fn(|cx| buffer.poll_read(&mut far, cx)).await.unwrap().len());
    }
    assert!(sizes[0] <= 4 << 10 && sizes[3] >= 60 << 10, "{sizes:?}");
    buffer.release();
    assert_eq!(buffer.held_bytes(), 0);
}

/// One is held for each live connection.
#[tokio::test]
async fn a_relay_is_small() {
    let (downstream, _client) = sockets().await;
    let (upstream, _server) = sockets().await;
    let (counters, cancel) = (Counters::default(), CancellationToken::new());
    let size = size_of_val(&relay(downstream, upstream, None, &counters, &cancel));
    assert!(size <= 1024, "{size} bytes");
}

/// Far enough into a transfer for splice(2), with both ways open.
async fn bulk() -> Rig {
    let mut rig = rig(None).await;
    let data = vec![7; 64 << 10];
    for _ in 0..=(BULK_BYTES >> 16) {
        rig.client.write_all(&data).await.unwrap();
        let mut got = vec![0; data.len()];
        rig.server.read_exact(&mut got).await.unwrap();
        assert_eq!(got, data);
    }
    rig
}

#[tokio::test]
async fn bulk_is_counted_half_closed_and_answered() {
    let mut rig = bulk().await;
    rig.client.write_all(b"last words").await.unwrap();
    let mut last = [0; 10];
    rig.server.read_exact(&mut last).await.unwrap();
    assert_eq!(&last, b"last words");
    assert_eq!(rig.counters.received(), BULK_BYTES + (64 << 10) + 10, "counted while live");
    rig.client.shutdown().await.unwrap();
    assert_eq!(rig.server.read(&mut last).await.unwrap(), 0);
    rig.server.write_all(b"answer").await.unwrap();
    rig.server.shutdown().await.unwrap();
    let mut answer = Vec::new();
    rig.client.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"answer");
    assert!(rig.relay.await.unwrap().is_clean());
}

#[tokio::test]
async fn a_reset_in_bulk_is_passed_on_either_way() {
    let mut one = bulk().await;
    one.client.set_zero_linger().unwrap();
    drop(one.client);
    is_reset(&mut one.server).await;
    let outcome = one.relay.await.unwrap();
    assert_eq!(outcome.error.unwrap().to_string(), "reading from downstream");

    let mut other = bulk().await;
    other.server.set_zero_linger().unwrap();
    drop(other.server);
    is_reset(&mut other.client).await;
    assert_eq!(other.relay.await.unwrap().ended_by, EndedBy::Side(Side::Upstream));

    let mut cut = bulk().await;
    cut.cancel.cancel();
    is_reset(&mut cut.client).await;
    is_reset(&mut cut.server).await;
}

#[tokio::test]
async fn bulk_waits_for_who_does_not_read() {
    let mut rig = bulk().await;
    let chunk = vec![7; 64 << 10];
    let mut pushed = 0;
    let patience = Duration::from_millis(500);
    while let Ok(written) = timeout(patience, rig.client.write(&chunk)).await {
        pushed += written.unwrap();
        assert!(pushed < 64 << 20, "no end of it");
    }
    let mut got = vec![0; pushed];
    timeout(LONG, rig.server.read_exact(&mut got)).await.unwrap().unwrap();
    assert!(got.iter().all(|byte| *byte == 7));
}

#[tokio::test]
async fn a_pipe_is_held_only_for_bytes_and_gives_them_back() {
    let (client, downstream) = sockets().await;
    let (upstream, _server) = sockets().await;
    let mut conduit = Conduit::default();
    let step = poll_fn(|cx| Poll::Ready(conduit.poll_step(cx, &downstream, &upstream))).await;
    assert!(step.is_pending());
    assert!(!conduit.holds_pipe(), "nothing to move");
    // Until the other side takes no more: what is in the pipe then can still be copied.
    let mut sent = 0;
    loop {
        sent += client.try_write(&[7; 4096]).unwrap_or_default();
        let step = poll_fn(|cx| Poll::Ready(conduit.poll_step(cx, &downstream, &upstream))).await;
        match step {
            Poll::Ready(Ok(Step::Moved(bytes))) => sent -= bytes,
            Poll::Ready(other) => panic!("{other:?}"),
            Poll::Pending if conduit.holds_pipe() => break,
            Poll::Pending => tokio::task::yield_now().await,
        }
    }
    let rest = conduit.take_back().unwrap();
    assert!(!rest.is_empty() && rest.len() <= sent, "{} of {sent}", rest.len());
    assert!(rest.iter().all(|byte| *byte == 7));
}
