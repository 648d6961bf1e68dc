use std::{
    convert::Infallible,
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{BoxedIo, HttpKey, HttpPool, HttpPoolOptions, HttpProtocol, Lease, LeaseError};
use crate::model::{
    cluster::{ConnectionLimits, Pings},
    workload::WorkloadUid,
};

type Body = Empty<Bytes>;

fn key(client: &str, protocol: HttpProtocol) -> HttpKey {
    HttpKey {
        address: "10.0.0.2:80".parse().unwrap(),
        destination_identity: None,
        destination_workload: None,
        pod: WorkloadUid("pod".into()),
        source_identity: None,
        client: Some(client.parse().unwrap()),
        tls: None,
        limits: ConnectionLimits::default(),
        protocol,
    }
}

/// A server at the end of a pipe.
impl super::Io for tokio::io::DuplexStream {
    fn socket(&self) -> Option<&tokio::net::TcpStream> {
        None
    }
}

fn connect(protocol: HttpProtocol) -> BoxedIo {
    let (client, server) = tokio::io::duplex(1 << 16);
    tokio::spawn(async move {
        let service = service_fn(|_| async {
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"ok"))))
        });
        let io = TokioIo::new(server);
        let _ = match protocol {
            HttpProtocol::Http1 => {
                hyper::server::conn::http1::Builder::new().serve_connection(io, service).await
            }
            HttpProtocol::Http2 => {
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(io, service)
                    .await
            }
        };
    });
    Box::new(client)
}

struct Pool {
    pool: Arc<HttpPool<Body>>,
    connections: AtomicUsize,
}

impl Pool {
    fn new() -> Self {
        let options = HttpPoolOptions { idle_max: 2, ..HttpPoolOptions::default() };
        Self { pool: Arc::new(HttpPool::new(options)), connections: AtomicUsize::new(0) }
    }

    async fn lease(&self, key: &HttpKey) -> Lease<Body> {
        let connected = self.pool.lease(key, false, || async {
            self.connections.fetch_add(1, Ordering::Relaxed);
            Ok::<_, Infallible>(connect(key.protocol))
        });
        connected.await.unwrap()
    }

    async fn ask(&self, key: &HttpKey) {
        let lease = self.lease(key).await;
        send(lease).await;
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

async fn send(lease: Lease<Body>) {
    let request = Request::get("http://a/").header("host", "a").body(Body::new()).unwrap();
    let response = lease.send(request).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
}

const PROTOCOLS: [HttpProtocol; 2] = [HttpProtocol::Http1, HttpProtocol::Http2];

/// The types of the frames that a server of HTTP/2 is sent which says nothing to one request,
/// and whether it is hung up on; if not, it has heard nothing for ten minutes at last.
async fn told_in_silence(limits: ConnectionLimits) -> (Vec<u8>, bool) {
    let pool = Arc::new(HttpPool::<Body>::new(HttpPoolOptions::default()));
    let key = HttpKey { limits, ..key("10.1.0.1", HttpProtocol::Http2) };
    let (client, mut server) = tokio::io::duplex(1 << 16);
    // SETTINGS, and none in it.
    server.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    let connect = || async { Ok::<_, Infallible>(Box::new(client) as BoxedIo) };
    let lease = pool.lease(&key, false, connect).await.unwrap();
    let request = Request::get("http://a/").body(Body::new()).unwrap();
    let asking = tokio::spawn(lease.send(request));
    // The preface.
    server.read_exact(&mut [0; 24]).await.unwrap();
    let mut types = Vec::new();
    let mut head = [0; 9];
    loop {
        let frame = server.read_exact(&mut head);
        match tokio::time::timeout(Duration::from_secs(600), frame).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return (types, true),
            Err(_) => {
                assert!(!asking.is_finished());
                return (types, false);
            }
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        server.read_exact(&mut vec![0; length as usize]).await.unwrap();
        types.push(head[3]);
    }
}

/// gRPC servers hang up on clients that ping them more often than they like, which is once in
/// five minutes of silence where nothing is said: calls that wait for long would not live.
#[tokio::test(start_paused = true)]
async fn silent_servers_are_pinged_only_where_the_cluster_says_so() {
    const HEADERS: u8 = 1;
    const PING: u8 = 6;
    let (types, ended) = told_in_silence(ConnectionLimits::default()).await;
    assert!(types.contains(&HEADERS) && !types.contains(&PING) && !ended, "{types:?}");

    let (interval, timeout) = (Duration::from_secs(30), Duration::from_secs(20));
    let pings = Some(Pings { interval, timeout });
    let (types, ended) = told_in_silence(ConnectionLimits { pings, ..Default::default() }).await;
    assert!(types.contains(&HEADERS) && types.contains(&PING) && ended, "{types:?}");
}

/// Nobody says that a host is gone, and TCP would wait for a quarter of an hour.
#[tokio::test]
async fn servers_of_http2_that_acknowledge_nothing_are_given_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let socket = stream.as_fd().try_clone_to_owned().unwrap();
    let connect = || async { Ok::<_, Infallible>(Box::new(stream) as BoxedIo) };
    let pool = Arc::new(HttpPool::<Body>::new(HttpPoolOptions::default()));
    pool.lease(&key("127.0.0.1", HttpProtocol::Http2), false, connect).await.unwrap();
    let patience = socket2::SockRef::from(&socket).tcp_user_timeout().unwrap();
    assert_eq!(patience, Some(Duration::from_secs(50)));
}

#[tokio::test(start_paused = true)]
async fn connections_are_shared_by_equal_keys_only() {
    for protocol in PROTOCOLS {
        let pool = Pool::new();
        for _ in 0..3 {
            pool.ask(&key("10.1.0.1", protocol)).await;
        }
        assert_eq!(pool.connections(), 1);
        pool.ask(&key("10.1.0.2", protocol)).await;
        assert_eq!(pool.connections(), 2);
        assert_eq!(pool.pool.len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn idle_connections_are_swept() {
    for protocol in PROTOCOLS {
        let pool = Pool::new();
        let key = key("10.1.0.1", protocol);
        pool.ask(&key).await;
        tokio::time::sleep(Duration::from_secs(50)).await;
        pool.pool.sweep();
        assert_eq!(pool.pool.len(), 1);
        // In use while swept, and kept afterwards.
        let lease = pool.lease(&key).await;
        tokio::time::sleep(Duration::from_secs(50)).await;
        pool.pool.sweep();
        send(lease).await;
        assert_eq!((pool.pool.len(), pool.connections()), (1, 1));
        tokio::time::sleep(Duration::from_secs(60)).await;
        pool.pool.sweep();
        assert!(pool.pool.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn idle_connections_are_bounded() {
    let pool = Pool::new();
    let key = key("10.1.0.1", HttpProtocol::Http1);
    let mut leases = Vec::new();
    for _ in 0..5 {
        leases.push(pool.lease(&key).await);
    }
    for lease in leases {
        send(lease).await;
    }
    assert_eq!(pool.pool.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn evicted_and_closed_pools_keep_nothing() {
    for protocol in PROTOCOLS {
        let pool = Pool::new();
        let key = key("10.1.0.1", protocol);
        pool.ask(&key).await;
        let lease = pool.lease(&key).await;
        pool.pool.retain(|_| false);
        send(lease).await;
        assert!(pool.pool.is_empty(), "an evicted connection came back");
        pool.pool.close_all();
        pool.ask(&key).await;
        assert!(pool.pool.is_empty(), "kept by a closed pool");
    }
}

#[tokio::test(start_paused = true)]
async fn one_request_at_a_time_opens_a_connection() {
    let pool = Pool::new();
    let key = key("10.1.0.1", HttpProtocol::Http2);
    let asks = (0..50).map(|_| pool.ask(&key));
    futures_util::future::join_all(asks).await;
    assert_eq!(pool.connections(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_connector_that_fails_or_is_dropped_leaves_nothing() {
    let pool = Pool::new();
    for protocol in PROTOCOLS {
        let key = key("10.1.0.1", protocol);
        let failed = pool.pool.lease(&key, false, || async { Err::<BoxedIo, _>("refused") }).await;
        assert!(matches!(failed, Err(LeaseError::Connect("refused"))));
        let pending = std::future::pending::<Result<BoxedIo, Infallible>>;
        let given_up = pool.pool.lease(&key, false, pending);
        assert!(tokio::time::timeout(Duration::from_secs(1), given_up).await.is_err());
        pool.ask(&key).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_clusters_limits_end_the_use_of_connections() {
    let limits = ConnectionLimits::default();
    let seconds = |s| Some(Duration::from_secs(s));
    for protocol in PROTOCOLS {
        for (limits, pause, asks, expected) in [
            (limits, 1, 4, 1),
            (ConnectionLimits { max_requests: Some(2), ..limits }, 1, 5, 3),
            (ConnectionLimits { max_requests: Some(1), ..limits }, 1, 3, 3),
            (ConnectionLimits { idle_timeout: seconds(5), ..limits }, 4, 3, 1),
            (ConnectionLimits { idle_timeout: seconds(5), ..limits }, 6, 3, 3),
            (ConnectionLimits { max_duration: seconds(10), ..limits }, 4, 3, 1),
            (ConnectionLimits { max_duration: seconds(10), ..limits }, 4, 6, 2),
        ] {
            let pool = Pool::new();
            let key = HttpKey { limits, ..key("10.1.0.1", protocol) };
            for _ in 0..asks {
                pool.ask(&key).await;
                tokio::time::sleep(Duration::from_secs(pause)).await;
            }
            assert_eq!(pool.connections(), expected, "{protocol:?} {limits:?} {pause} s");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_clusters_idle_timeout_is_in_place_of_the_pools() {
    for (idle_timeout, after, kept) in [
        (Duration::from_secs(90), 80, 1),
        (Duration::from_secs(9), 10, 0),
        (Duration::MAX, 9999, 1),
    ] {
        for protocol in PROTOCOLS {
            let pool = Pool::new();
            let limits = ConnectionLimits {
                idle_timeout: Some(idle_timeout),
                ..ConnectionLimits::default()
            };
            pool.ask(&HttpKey { limits, ..key("10.1.0.1", protocol) }).await;
            // Past the pings of HTTP/2 as well.
            tokio::time::sleep(Duration::from_secs(after)).await;
            pool.pool.sweep();
            assert_eq!(pool.pool.len(), kept, "{protocol:?} {idle_timeout:?}");
        }
    }
}
