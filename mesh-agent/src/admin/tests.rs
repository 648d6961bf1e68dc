use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    model::workload::MtlsMode,
    snapshot::{Resources, SnapshotCell},
};

/// An agent that remembers what it was asked.
#[derive(Default)]
struct Fake {
    ready: bool,
    asked: Mutex<Vec<String>>,
}

impl Fake {
    fn note(&self, what: String) {
        self.asked.lock().unwrap().push(what);
    }
}

impl AgentControl for Fake {
    fn enroll(&self, request: EnrollRequest) -> BoxFuture<'_, Result<PodView, ControlError>> {
        Box::pin(async move {
            self.note(format!("enroll {} in {}", request.uid, request.netns));
            if &*request.uid.0 == "taken" {
                return Err(ControlError::Conflict("pod `taken` is another one".into()));
            }
            Ok(PodView {
                identity: request.identity("cluster.local".parse().unwrap()).unwrap(),
                uid: request.uid,
                name: request.name,
                addresses: vec!["10.0.0.5".parse().unwrap()],
                mtls: MtlsMode::Strict,
                netns: request.netns.to_string(),
                labels: BTreeMap::new(),
                captured: true,
                connections: 0,
                enrolled_at: "2026-01-02T03:04:05Z".parse().unwrap(),
            })
        })
    }

    fn unenroll(&self, uid: WorkloadUid) -> BoxFuture<'_, Result<(), ControlError>> {
        Box::pin(async move {
            self.note(format!("unenroll {uid}"));
            Err(ControlError::NotFound(uid))
        })
    }

    fn drain(&self) {
        self.note("drain".into());
    }

    fn pods(&self) -> Vec<PodView> {
        Vec::new()
    }

    fn status(&self) -> StatusView {
        let snapshot = SnapshotCell::default().load();
        StatusView {
            version: "0.1.0".into(),
            node: "n1".into(),
            instance: "default".into(),
            trust_domain: "cluster.local".into(),
            started_at: Timestamp::now(),
            uptime_seconds: 1,
            readiness: self.readiness(),
            draining: false,
            snapshot: SnapshotView::from(&*snapshot),
            xds: None,
            last_rejected: None,
            certificates: Vec::new(),
            pods: 0,
            connections: 0,
            hbone: HboneView::default(),
            kernel_path: KernelPathView::default(),
            unguarded: Vec::new(),
            not_redirected: Vec::new(),
            off_kernel_path: Vec::new(),
            maps: Vec::new(),
            self_test: None,
            bpf: Vec::new(),
        }
    }

    fn config_dump(&self) -> ConfigDump {
        let cell = SnapshotCell::default();
        cell.replace(Resources::default(), "label".into()).unwrap();
        let rejected = RejectedConfig {
            at: "2026-01-02T03:04:05Z".parse().unwrap(),
            reasons: vec!["lds.yaml: no".into()],
        };
        ConfigDump::of(&cell.load(), Some(rejected))
    }

    fn connections(&self) -> Vec<ConnectionView> {
        Vec::new()
    }

    fn readiness(&self) -> Readiness {
        let reasons =
            if self.ready { Vec::new() } else { vec!["no configuration was applied yet".into()] };
        Readiness::from_reasons(reasons)
    }

    fn metrics(&self) -> String {
        "# EOF\n".into()
    }
}

/// An agent's two servers; stopped when dropped.
struct Served {
    fake: Arc<Fake>,
    address: SocketAddr,
    socket: PathBuf,
    shutdown: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

async fn serve(ready: bool) -> Served {
    let dir = tempfile::tempdir().unwrap();
    let fake = Arc::new(Fake { ready, ..Fake::default() });
    let shutdown = CancellationToken::new();
    let tcp = bind_tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = tcp.local_addr().unwrap();
    let socket = dir.path().join("agent.sock");
    let unix = bind_unix(&socket).unwrap();
    let control: Arc<dyn AgentControl> = Arc::<Fake>::clone(&fake);
    tokio::spawn(serve_tcp(tcp, Arc::clone(&control), shutdown.clone()));
    tokio::spawn(serve_unix(unix, control, shutdown.clone()));
    Served { fake, address, socket, shutdown, _dir: dir }
}

/// Sends raw bytes and reads until the server closes.
async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A reset after the answer still leaves the answer.
    _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

impl Served {
    async fn tcp(&self, method: &str, path: &str, host: &str) -> String {
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        exchange(TcpStream::connect(self.address).await.unwrap(), &request).await
    }

    async fn unix(&self, method: &str, path: &str, body: &str) -> String {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: whatever\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        exchange(UnixStream::connect(&self.socket).await.unwrap(), &request).await
    }

    fn asked(&self) -> Vec<String> {
        self.fake.asked.lock().unwrap().clone()
    }
}

fn assert_status(answer: &str, status: u16) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "not {status}: {answer}");
}

const POD: &str = r#"{"uid":"u1","name":"web","namespace":"s","service_account":"a","pid":7}"#;

#[tokio::test]
async fn reads_are_answered_on_both() {
    let served = serve(true).await;
    for (path, expected) in [
        ("/", "GET /readyz"),
        ("/healthz", "ok\n"),
        ("/readyz", "\"ready\": true"),
        ("/metrics", "content-type: text/plain; version=0.0.4; charset=utf-8\r\n"),
        ("/status", "\"node\": \"n1\""),
        ("/config_dump", "lds.yaml: no"),
        ("/connections", "[]"),
        ("/pods", "[]"),
    ] {
        for answer in
            [served.tcp("GET", path, "localhost").await, served.unix("GET", path, "").await]
        {
            assert_status(&answer, 200);
            assert!(answer.contains(expected), "{path}: {answer}");
        }
    }
    assert_status(&served.tcp("GET", "/none", "localhost").await, 404);
    let head = served.tcp("HEAD", "/readyz", "localhost").await;
    assert_status(&head, 200);
    assert!(head.ends_with("\r\n\r\n"), "HEAD has a body: {head}");
}

#[tokio::test]
async fn not_ready_says_why() {
    let answer = serve(false).await.tcp("GET", "/readyz", "localhost").await;
    assert_status(&answer, 503);
    assert!(answer.contains("no configuration was applied yet"), "{answer}");
}

#[tokio::test]
async fn nothing_changes_over_tcp() {
    let served = serve(true).await;
    for (method, path) in [
        ("POST", "/pods"),
        ("DELETE", "/pods/u1"),
        ("POST", "/drain"),
        ("PUT", "/healthz"),
        ("OPTIONS", "/pods"),
    ] {
        let answer = served.tcp(method, path, "localhost").await;
        assert_status(&answer, 405);
        assert!(answer.to_lowercase().contains("allow: get, head"), "{answer}");
    }
    assert!(served.asked().is_empty());
}

#[tokio::test]
async fn a_web_page_that_rebinds_its_name_is_refused() {
    let served = serve(true).await;
    let port = served.address.port();
    for host in ["localhost", "LOCALHOST:15000", "127.0.0.1", "[::1]:80", "127.8.9.1"] {
        assert_status(&served.tcp("GET", "/healthz", host).await, 200);
    }
    assert_status(&served.tcp("GET", "/healthz", &format!("127.0.0.1:{port}")).await, 200);
    for host in ["evil.example", "localhost.evil.example", "10.0.0.1", "", "a@localhost.x"] {
        assert_status(&served.tcp("GET", "/config_dump", host).await, 421);
    }
    let raw = |request: &'static str| async {
        exchange(TcpStream::connect(served.address).await.unwrap(), request).await
    };
    let none = raw("GET /config_dump HTTP/1.1\r\nConnection: close\r\n\r\n").await;
    assert_status(&none, 421);
    let two = "GET / HTTP/1.1\r\nHost: localhost\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert_status(&raw(two).await, 421);
    let absolute = "GET http://evil.example/config_dump HTTP/1.1\r\nHost: localhost\r\n\
                    Connection: close\r\n\r\n";
    assert_status(&raw(absolute).await, 421);
}

#[tokio::test]
async fn the_socket_enrols_and_drains() {
    let served = serve(true).await;
    let answer = served.unix("POST", "/pods", POD).await;
    assert_status(&answer, 201);
    assert!(answer.contains("spiffe://cluster.local/ns/s/sa/a"), "{answer}");
    assert_status(&served.unix("POST", "/pods", &POD.replace("u1", "taken")).await, 409);
    let answer = served.unix("DELETE", "/pods/u9", "").await;
    assert_status(&answer, 404);
    assert!(answer.contains("no pod with uid `u9` is enrolled"), "{answer}");
    assert_status(&served.unix("POST", "/drain", "").await, 202);
    assert_status(&served.unix("GET", "/drain", "").await, 405);
    assert_status(&served.unix("PUT", "/pods", "").await, 405);
    assert_eq!(
        served.asked(),
        ["enroll u1 in pid 7", "enroll taken in pid 7", "unenroll u9", "drain"]
    );
}

#[tokio::test]
async fn a_bad_pod_is_refused_before_it_is_asked_for() {
    let served = serve(true).await;
    for body in ["", "{", "[]", &POD.replace("\"pid\":7", "\"pids\":7"), &POD.replace("u1", "../x")]
    {
        let answer = served.unix("POST", "/pods", body).await;
        assert_status(&answer, 400);
        assert!(answer.contains("not a pod: "), "{answer}");
    }
    let long = format!("{{\"uid\":\"{}\"}}", "x".repeat(300 * 1024));
    assert_status(&served.unix("POST", "/pods", &long).await, 413);
    assert!(served.asked().is_empty());
}

#[tokio::test]
async fn garbage_and_long_heads_end_the_connection_only() {
    let served = serve(true).await;
    let long = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(64 * 1024));
    for request in ["\x16\x03\x01\x02\x00\x01\r\n\r\n", "GARBAGE\r\n\r\n", &long] {
        let stream = TcpStream::connect(served.address).await.unwrap();
        let (mut read, mut write) = stream.into_split();
        // The server may close before everything is written.
        _ = write.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        _ = read.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    assert_status(&served.tcp("GET", "/healthz", "localhost").await, 200);
}

#[tokio::test]
async fn whoever_only_holds_connections_keeps_nobody_out() {
    let served = serve(true).await;
    let mut held = Vec::new();
    for _ in 0..200 {
        held.push(TcpStream::connect(served.address).await.unwrap());
    }
    for _ in 0..3 {
        assert_status(&served.tcp("GET", "/healthz", "localhost").await, 200);
    }
    // The oldest made room.
    assert_eq!(held[0].read(&mut [0; 8]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn shutdown_closes_the_listeners_and_removes_the_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let unix = bind_unix(&path).unwrap();
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(serve_unix(unix, Arc::new(Fake::default()), shutdown.clone()));
    let idle = UnixStream::connect(&path).await.unwrap();
    shutdown.cancel();
    tokio::time::timeout(std::time::Duration::from_secs(5), task).await.unwrap().unwrap();
    assert!(!path.exists());
    drop(idle);
}
