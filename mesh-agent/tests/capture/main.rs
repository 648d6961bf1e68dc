//! Capture on the real kernel: private namespaces, a private cgroup, programs that know nothing.

mod bed;

use std::{future::Future, net::SocketAddr, time::Duration};

use bed::{Bed, PEER4, PEER6, POD4, POD6, chain, ip_out};
use mesh_agent::{
    capture::{Capture, EnrolledPod},
    model::{captured::InboundPeer, workload::WorkloadUid},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

/// Not a test: what the tests run inside the bed.
#[test]
#[ignore = "re-executed by the tests"]
fn program() {
    bed::obey();
}

fn uid() -> WorkloadUid {
    WorkloadUid("pod-1".into())
}

fn address(s: &str) -> SocketAddr {
    s.parse().unwrap()
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future).await.expect("nothing for 10 seconds")
}

async fn enroll(bed: &Bed, capture: &Capture) -> EnrolledPod {
    let enrolled = capture.enroll(bed.request()).await;
    let enrolled = enrolled.unwrap_or_else(|error| panic!("{}", chain(&error)));
    capture.activate(&uid()).unwrap();
    enrolled
}

fn count(capture: &Capture, name: &str) -> u64 {
    let counters = capture.counters().unwrap();
    counters.into_iter().find(|(known, _)| *known == name).expect(name).1
}

/// Answers like a server: reads to the end, says `pong`.
async fn pong(mut stream: TcpStream) {
    let mut asked = String::new();
    stream.read_to_string(&mut asked).await.unwrap();
    assert_eq!(asked, "ping");
    stream.write_all(b"pong").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn outbound_is_captured_and_never_shows() {
    let bed = Bed::new();
    let capture = bed.capture();
    let pod = enroll(&bed, &capture).await;
    for (asked, original, own) in [
        ("10.99.0.1:80", "10.99.0.1:80", POD4),
        ("[fd99::1]:8080", "[fd99::1]:8080", POD6),
        ("[::ffff:10.99.0.2]:443", "10.99.0.2:443", POD4),
    ] {
        let mut client = bed.dial_from_pod(asked);
        let (stream, captured) = soon(pod.outbound.accept()).await.unwrap();
        assert_eq!(captured.original_destination, address(original));
        assert_eq!(captured.source.ip().to_string(), own);
        pong(stream).await;
        assert_eq!(client.line(), format!("peer={asked} answer=pong"));
    }
    assert_eq!(count(&capture, "outbound_captured"), 3);
    assert_eq!(count(&capture, "published"), 3);
    assert_eq!(count(&capture, "peer_name_restored"), 3);
}
