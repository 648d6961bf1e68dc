//! Capture on the real kernel: private namespaces, a private cgroup, programs that know nothing.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod bed;
mod packets;
mod trouble;

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

/// The pod that [`Bed::request`] names.
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

#[tokio::test(flavor = "multi_thread")]
async fn inbound_is_steered_whatever_the_port() {
    let bed = Bed::new();
    let capture = bed.capture();
    let _application = bed.serve_in_pod("0.0.0.0:80");
    let pod = enroll(&bed, &capture).await;
    for (asked, from) in [
        (format!("{POD4}:80"), PEER4),
        (format!("{POD4}:9999"), PEER4),
        (format!("[{POD6}]:80"), PEER6),
    ] {
        let mut client = bed.dial_from_peer(&asked);
        let (stream, captured) = soon(pod.inbound.accept()).await.unwrap();
        assert_eq!(captured.original_destination, address(&asked));
        assert_eq!(captured.source.ip().to_string(), from);
        assert_eq!(captured.peer, InboundPeer::Plaintext);
        pong(stream).await;
        assert_eq!(client.line(), format!("peer={asked} answer=pong"));
    }
    for asked in [format!("{POD4}:15008"), format!("[{POD6}]:15008")] {
        let mut client = bed.dial_from_peer(&asked);
        let (stream, _) = soon(pod.hbone.accept()).await.unwrap();
        pong(stream).await;
        assert_eq!(client.line(), format!("peer={asked} answer=pong"));
    }
    for port in [15001, 15006] {
        let mut client = bed.dial_from_peer(&format!("{POD4}:{port}"));
        assert_eq!(client.line(), "failed: ConnectionRefused");
    }
    assert_eq!(count(&capture, "inbound_steered"), 3);
    assert_eq!(count(&capture, "inbound_hbone"), 2);
    assert_eq!(count(&capture, "inbound_agent_port"), 2);
}

/// Dials like `transport` does and sends enough both ways to need windows and acks.
async fn from_source(pod: &EnrolledPod, source: &str, destination: &str) -> String {
    const SIZE: usize = 4 << 20;
    let destination = address(destination);
    let socket = pod.pod.sockets.tcp_from(address(source), destination).unwrap();
    let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
    let stream = soon(socket.connect(destination)).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let sent = tokio::spawn(async move {
        write.write_all(&vec![b'x'; SIZE]).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut answer = String::new();
    soon(read.read_to_string(&mut answer)).await.unwrap();
    sent.await.unwrap();
    let (greeting, echo) = answer.split_at(answer.len() - SIZE);
    assert!(echo.bytes().all(|byte| byte == b'x'));
    greeting.trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_application_sees_the_clients_address() {
    let bed = Bed::new();
    let capture = bed.capture();
    let _v4 = bed.serve_in_pod("0.0.0.0:80");
    let _v6 = bed.serve_in_pod("[::]:81");
    let pod = enroll(&bed, &capture).await;
    for strict in [false, true] {
        for knob in ["all/rp_filter", "eth0/rp_filter", "all/src_valid_mark"] {
            let path = format!("/proc/sys/net/ipv4/conf/{knob}");
            let value = if strict { "1" } else { "0" };
            bed.inside(&bed.pod(), || std::fs::write(path, value)).unwrap();
        }
        for (source, destination) in [
            (format!("{PEER4}:1"), format!("{POD4}:80")),
            ("203.0.113.7:1".to_owned(), format!("{POD4}:80")),
            (format!("{POD4}:1"), format!("{POD4}:80")),
            ("127.0.0.1:1".to_owned(), format!("{POD4}:80")),
            (format!("[{PEER6}]:1"), format!("[{POD6}]:81")),
            ("[2001:db8::7]:1".to_owned(), format!("[{POD6}]:81")),
            (format!("[{POD6}]:1"), format!("[{POD6}]:81")),
        ] {
            let greeting = from_source(&pod, &source, &destination).await;
            assert_eq!(greeting, format!("hello {}", address(&source).ip()), "strict: {strict}");
        }
    }
    let families = pod.pod.sockets.tcp_from(address("[2001:db8::7]:1"), address("10.0.0.1:80"));
    assert_eq!(families.unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
}

/// The kernel may give the agent's dial the very port number that the client has.
#[tokio::test(flavor = "multi_thread")]
async fn a_clients_port_may_be_taken_twice() {
    let bed = Bed::new();
    let capture = bed.capture();
    let _application = bed.serve_in_pod("0.0.0.0:80");
    let pod = enroll(&bed, &capture).await;
    let destination = address(&format!("{POD4}:80"));
    let client = bed.inside(&bed.peer(), TcpSocket::new_v4).unwrap();
    client.bind(address(&format!("{PEER4}:45678"))).unwrap();
    let client = tokio::spawn(client.connect(destination));
    let (_stream, captured) = soon(pod.inbound.accept()).await.unwrap();
    assert_eq!(captured.source.port(), 45678);
    let _client = client.await.unwrap().unwrap();

    let socket = bed.inside(&bed.pod(), TcpSocket::new_v4).unwrap();
    let raw = socket2::SockRef::from(&socket);
    raw.set_ip_transparent_v4(true).unwrap();
    raw.set_mark(mesh_common::abi::APPLICATION_MARK).unwrap();
    raw.bind_device(Some(b"lo")).unwrap();
    socket.bind(captured.source).unwrap();
    let mut stream = soon(socket.connect(destination)).await.unwrap();
    let mut greeting = [0; 5];
    soon(stream.read_exact(&mut greeting)).await.unwrap();
    assert_eq!(&greeting, b"hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agents_dials_leave_the_pod() {
    let bed = Bed::new();
    // The whole hierarchy, with this process in it: its dials meet the hooks.
    let mut options = bed.options();
    options.cgroup_root = None;
    let capture = Capture::start(options).unwrap();
    let _application = bed.serve_in_pod("0.0.0.0:80");
    let _v4 = bed.serve_in_peer("0.0.0.0:80");
    let _v6 = bed.serve_in_peer("[::]:81");
    let pod = enroll(&bed, &capture).await;
    for (destination, own) in [(format!("{PEER4}:80"), POD4), (format!("[{PEER6}]:81"), POD6)] {
        let destination = address(&destination);
        let socket = pod.pod.sockets.tcp(destination).unwrap();
        let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
        let mut stream = soon(socket.connect(destination)).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut greeting = String::new();
        soon(stream.read_to_string(&mut greeting)).await.unwrap();
        assert_eq!(greeting, format!("hello {own} "));
    }
    let greeting = from_source(&pod, &format!("{PEER4}:1"), &format!("{POD4}:80")).await;
    assert_eq!(greeting, format!("hello {PEER4}"));
    assert_eq!(count(&capture, "outbound_agent"), 3);

    // The mark alone is anyone's.
    let mut forger = bed.forge_from_pod(&format!("{PEER4}:80"));
    let (mut stream, captured) = soon(pod.outbound.accept()).await.unwrap();
    assert_eq!(captured.original_destination, address(&format!("{PEER4}:80")));
    stream.write_all(b"agent").await.unwrap();
    assert_eq!(forger.line(), "agent");
    capture.teardown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_enrolled_never_notices() {
    let bed = Bed::new();
    let capture = bed.capture();
    let _in_pod = bed.serve_in_pod("0.0.0.0:80");
    let _in_peer = bed.serve_in_peer("0.0.0.0:80");
    let from_pod = format!("peer={PEER4}:80 answer=hello {POD4} ping");
    let to_pod = format!("peer={POD4}:80 answer=hello {PEER4} ping");
    let plain = || {
        assert_eq!(bed.dial_from_pod(&format!("{PEER4}:80")).line(), from_pod);
        assert_eq!(bed.dial_from_peer(&format!("{POD4}:80")).line(), to_pod);
    };
    plain();

    // Enrolled, not activated: nothing changes yet.
    let pod = capture.enroll(bed.request()).await.unwrap();
    plain();
    capture.activate(&uid()).unwrap();
    // The peer's namespace is in the same cgroup and not enrolled.
    assert_eq!(
        bed.dial_from_peer(&format!("{PEER4}:80")).line(),
        format!("peer={PEER4}:80 answer=hello {PEER4} ping")
    );
    // The pod to itself.
    for own in ["127.0.0.1", POD4] {
        assert_eq!(
            bed.dial_from_pod(&format!("{own}:80")).line(),
            format!("peer={own}:80 answer=hello {own} ping")
        );
    }
    // The agent's own ports.
    for target in ["127.0.0.1:15001", "[::1]:15006", "10.77.0.2:15008", "[fd77::2]:15008"] {
        assert_eq!(bed.dial_from_pod(target).line(), "failed: PermissionDenied", "{target}");
    }

    let (rules, before) = (ip_out(&format!("-n {} rule", bed.pod())), "0x6d0002");
    assert!(rules.contains(before), "{rules}");
    capture.unenroll(&uid()).await.unwrap();
    drop(pod);
    plain();
    for family in ["-4", "-6"] {
        let rules = ip_out(&format!("{family} -n {} rule", bed.pod()));
        assert!(!rules.contains(before), "{rules}");
        let routes = ip_out(&format!("{family} -n {} route show table 15006", bed.pod()));
        assert_eq!(routes, "");
    }
    let accept = "/proc/sys/net/ipv4/tcp_fwmark_accept";
    assert_eq!(bed.inside(&bed.pod(), || std::fs::read_to_string(accept)).unwrap().trim(), "0");
    assert!(capture.persisted().unwrap().is_empty());
    assert!(capture.unenroll(&uid()).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_agent_connections_fail_and_the_next_one_adopts() {
    let bed = Bed::new();
    let _in_pod = bed.serve_in_pod("0.0.0.0:80");
    let _in_peer = bed.serve_in_peer("0.0.0.0:80");
    let capture = bed.capture();
    let pod = enroll(&bed, &capture).await;
    assert!(matches!(
        Capture::start(bed.options()).unwrap_err(),
        mesh_agent::capture::CaptureError::InUse(_)
    ));
    let mut elsewhere = bed.options();
    elsewhere.state_dir.push("of-another");
    assert!(matches!(
        Capture::start(elsewhere).unwrap_err(),
        mesh_agent::capture::CaptureError::PinsInUse(_)
    ));

    // As if killed: listeners and programs' descriptors are closed, nothing more.
    drop(pod);
    drop(capture);
    let refused = |mut client: bed::Program| assert_eq!(client.line(), "failed: ConnectionRefused");
    let all_refused = || {
        refused(bed.dial_from_pod(&format!("{PEER4}:80")));
        refused(bed.dial_from_pod(&format!("[{PEER6}]:80")));
        refused(bed.dial_from_peer(&format!("{POD4}:80")));
        refused(bed.dial_from_peer(&format!("[{POD6}]:80")));
        refused(bed.dial_from_peer(&format!("{POD4}:15008")));
    };
    all_refused();

    let capture = bed.capture();
    // Programs are the new agent's; listeners are not open yet.
    all_refused();
    let persisted = capture.persisted().unwrap();
    assert_eq!(persisted, [bed.request()]);
    let pod = capture.enroll(persisted[0].clone()).await.unwrap();
    capture.activate(&uid()).unwrap();
    let mut client = bed.dial_from_pod(&format!("{PEER4}:80"));
    let (stream, captured) = soon(pod.outbound.accept()).await.unwrap();
    assert_eq!(captured.original_destination, address(&format!("{PEER4}:80")));
    pong(stream).await;
    assert_eq!(client.line(), format!("peer={PEER4}:80 answer=pong"));
    let mut client = bed.dial_from_peer(&format!("{POD4}:80"));
    let (stream, _) = soon(pod.inbound.accept()).await.unwrap();
    pong(stream).await;
    assert_eq!(client.line(), format!("peer={POD4}:80 answer=pong"));

    capture.unenroll(&uid()).await.unwrap();
    let plain = bed.dial_from_pod(&format!("{PEER4}:80")).line();
    assert_eq!(plain, format!("peer={PEER4}:80 answer=hello {POD4} ping"));
    let plain = bed.dial_from_peer(&format!("{POD4}:80")).line();
    assert_eq!(plain, format!("peer={POD4}:80 answer=hello {PEER4} ping"));
    capture.teardown().await.unwrap();
    assert!(!bed.options().bpffs.join("test").exists());
}
