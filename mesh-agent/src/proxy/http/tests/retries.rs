//! Requests that are sent more than once.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::sync::Barrier;

use super::harness::{BoxBody, Mesh, Setup, http_upstream, raw_upstream, read_head, within};
use crate::model::retry::{Attempts, BackOff, RetryOn, RetryPolicy};

pub(super) fn policy(retry_on: RetryOn) -> RetryPolicy {
    RetryPolicy {
        retry_on,
        num_retries: 2,
        per_try_timeout: None,
        per_try_idle_timeout: None,
        back_off: BackOff { base: Duration::from_millis(1), max: Duration::from_millis(10) },
        rate_limited_back_off: None,
        retriable_status_codes: vec![],
        retriable_headers: vec![],
        retriable_request_headers: vec![],
        avoid_previous_hosts: false,
        host_selection_attempts: 1,
    }
}

fn setup(upstream: SocketAddr, policy: RetryPolicy) -> Setup {
    let attempts = Attempts {
        retry: Some(Arc::new(policy)),
        count_in_request: true,
        count_in_response: true,
        timeout_in_request: true,
        buffer_max_bytes: Some(100_000),
    };
    Setup { attempts, ..Setup::new(upstream) }
}

#[derive(Clone, Default)]
struct Upstream {
    asked: Arc<AtomicUsize>,
    bodies: Arc<Mutex<Vec<Bytes>>>,
}

impl Upstream {
    /// Answers 503 `failures` times, then 200, always with the attempt it was told.
    async fn failing(&self, http2: bool, failures: usize) -> SocketAddr {
        let this = self.clone();
        http_upstream(http2, move |request: Request<hyper::body::Incoming>| {
            let this = this.clone();
            async move {
                let n = this.asked.fetch_add(1, Ordering::SeqCst);
                let attempt = request.headers().get("x-envoy-attempt-count").cloned();
                let body = request.into_body().collect().await.unwrap().to_bytes();
                this.bodies.lock().unwrap().push(body);
                let mut response = Response::new(BoxBody::default());
                if n < failures {
                    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                }
                response.headers_mut().insert("x-seen", attempt.unwrap());
                response
            }
        })
        .await
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: app.test\r\n\r\n")
}

fn post(length: usize) -> String {
    let body = "x".repeat(length);
    format!("POST /again HTTP/1.1\r\nhost: app.test\r\ncontent-length: {length}\r\n\r\n{body}")
}

#[tokio::test]
async fn a_response_that_the_policy_names_is_not_the_last() {
    for http2 in [false, true] {
        let upstream = Upstream::default();
        let address = upstream.failing(http2, 2).await;
        let mut setup = setup(address, policy(RetryOn::SERVER_ERROR));
        if http2 {
            setup.protocol = Setup::http2(address).protocol;
        }
        let mesh = Mesh::new(setup);
        let response = mesh.connect().await.ask(&get("/again")).await;
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
        assert!(response.contains("x-envoy-attempt-count: 3\r\n"), "{response}");
        assert!(response.contains("x-seen: 3\r\n"), "{response}");
        assert_eq!(upstream.asked(), 3);
        let record = mesh.record(0).await;
        assert!(record.flags.is_empty(), "{record:?}");
    }
}

#[tokio::test]
async fn attempts_are_bounded_and_the_last_answer_stands() {
    let upstream = Upstream::default();
    let address = upstream.failing(false, 100).await;
    let mesh = Mesh::new(setup(address, policy(RetryOn::SERVER_ERROR)));
    let response = mesh.connect().await.ask(&get("/again")).await;
    assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
    assert!(response.contains("x-envoy-attempt-count: 3\r\n"), "{response}");
    assert_eq!(upstream.asked(), 3);
    assert_eq!(mesh.record(0).await.flags.to_string(), "URX");
}

#[tokio::test]
async fn what_no_policy_names_is_sent_once() {
    for (path, retry_on) in [("/again", RetryOn::RESET), ("/other", RetryOn::SERVER_ERROR)] {
        let upstream = Upstream::default();
        let address = upstream.failing(false, 100).await;
        let mut setup = setup(address, policy(retry_on));
        setup.attempts.count_in_request = true;
        let mesh = Mesh::new(setup);
        let request = get(path).replace(
            "\r\n\r\n",
            "\r\nx-envoy-attempt-count: 1\r\nx-envoy-retry-on: 5xx\r\nx-envoy-max-retries: 9\r\n\r\n",
        );
        let response = mesh.connect().await.ask(&request).await;
        assert!(response.starts_with("HTTP/1.1 503 "), "{path}: {response}");
        assert_eq!(upstream.asked(), 1, "{path}");
        assert!(mesh.record(0).await.flags.is_empty());
    }
}

#[tokio::test]
async fn connections_that_fail_are_tried_again() {
    let upstream = Upstream::default();
    let address = upstream.failing(false, 0).await;
    let mesh = Mesh::new(setup(address, policy(RetryOn::CONNECT_FAILURE)));
    let response = mesh.connect().await.ask(&get("/again/dead")).await;
    assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
    assert!(response.contains("x-envoy-attempt-count: 3\r\n"), "{response}");
    let body = "upstream connect error or disconnect/reset before headers. \
                retried and the latest reset reason: remote connection failure";
    assert!(response.ends_with(body), "{response}");
    assert_eq!(mesh.connections(), 3);
    assert_eq!(mesh.record(0).await.flags.to_string(), "URX,UF");
}

#[tokio::test]
async fn a_body_is_sent_again_whole() {
    for http2 in [false, true] {
        let upstream = Upstream::default();
        let address = upstream.failing(http2, 2).await;
        let mut setup = setup(address, policy(RetryOn::SERVER_ERROR));
        if http2 {
            setup.protocol = Setup::http2(address).protocol;
        }
        let mesh = Mesh::new(setup);
        let response = mesh.connect().await.ask(&post(90_000)).await;
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
        let bodies = upstream.bodies.lock().unwrap().clone();
        assert_eq!(bodies, vec![Bytes::from("x".repeat(90_000)); 3]);
    }
}

#[tokio::test]
async fn a_body_too_large_to_keep_is_sent_once() {
    let upstream = Upstream::default();
    let address = upstream.failing(false, 1).await;
    let mesh = Mesh::new(setup(address, policy(RetryOn::SERVER_ERROR)));
    let response = mesh.connect().await.ask(&post(100_001)).await;
    assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
    assert_eq!(upstream.asked(), 1);
    assert_eq!(upstream.bodies.lock().unwrap()[0].len(), 100_001);
    assert!(mesh.record(0).await.flags.is_empty());
}

#[tokio::test]
async fn a_body_that_there_is_no_room_for_is_sent_once() {
    let upstream = Upstream::default();
    let address = upstream.failing(false, 1).await;
    let mesh = Mesh::new(setup(address, policy(RetryOn::SERVER_ERROR)));
    let others = mesh.leave(20_000);
    let response = mesh.connect().await.ask(&post(20_001)).await;
    assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
    assert_eq!(upstream.asked(), 1);
    assert_eq!(upstream.bodies.lock().unwrap()[0].len(), 20_001);
    // Nothing of it is kept any more, and what needs no room has it always.
    drop(others);
    let _others = mesh.leave(0);
    for request in [get("/again"), post(0)] {
        upstream.asked.store(0, Ordering::SeqCst);
        let response = mesh.connect().await.ask(&request).await;
        assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
        assert_eq!(upstream.asked(), 2);
    }
}

#[tokio::test]
async fn what_is_sent_again_at_once_is_bounded_however_often_it_may_be() {
    const REQUESTS: usize = 24;
    const RETRIES: u32 = 20;
    for http2 in [false, true] {
        // First attempts wait for each other; how many are repeated at a time is noted.
        let (firsts, again, most) =
            (Arc::new(Barrier::new(REQUESTS)), AtomicUsize::new(0), AtomicUsize::new(0));
        let counts = Arc::new((AtomicUsize::new(0), again, most));
        let shared = Arc::clone(&counts);
        let address = http_upstream(http2, move |request: Request<hyper::body::Incoming>| {
            let (firsts, counts) = (Arc::clone(&firsts), Arc::clone(&shared));
            async move {
                let (all, again, most) = &*counts;
                all.fetch_add(1, Ordering::SeqCst);
                if request.headers()["x-envoy-attempt-count"] == "1" {
                    firsts.wait().await;
                } else {
                    let now = again.fetch_add(1, Ordering::SeqCst) + 1;
                    most.fetch_max(now, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    again.fetch_sub(1, Ordering::SeqCst);
                }
                let mut response = Response::new(BoxBody::default());
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                response
            }
        })
        .await;
        let policy = RetryPolicy { num_retries: RETRIES, ..policy(RetryOn::SERVER_ERROR) };
        let mut setup = setup(address, policy);
        setup.circuit_breakers.default.max_retries = 3;
        if http2 {
            setup.protocol = Setup::http2(address).protocol;
        }
        let mesh = Arc::new(Mesh::new(setup));
        let asked: Vec<_> = (0..REQUESTS)
            .map(|_| {
                let mesh = Arc::clone(&mesh);
                tokio::spawn(async move { mesh.connect().await.ask(&get("/again")).await })
            })
            .collect();
        for asked in asked {
            let response = asked.await.unwrap();
            assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
        }
        let count = |of: &AtomicUsize| of.load(Ordering::SeqCst);
        let (all, most) = (count(&counts.0), count(&counts.2));
        assert!((1..=3).contains(&most), "{most} at a time");
        // Whoever has a place goes on to its last attempt; somebody else may have it then.
        assert!((REQUESTS + 20..REQUESTS * 21).contains(&all), "{all} attempts");
        for n in 0..REQUESTS {
            let flags = mesh.record(n).await.flags.to_string();
            assert!(["UO", "URX"].contains(&flags.as_str()), "{flags}");
        }
    }
}

#[tokio::test]
async fn the_listeners_limit_is_that_of_bodies_kept() {
    for (buffer, length, expected) in [
        (None, 1000, 2),
        (None, 1001, 1),
        (Some(10), 11, 1),
        // As Envoy: the route's or host's own word holds.
        (Some(5000), 1001, 2),
    ] {
        let upstream = Upstream::default();
        let address = upstream.failing(false, 1).await;
        let mut setup = setup(address, policy(RetryOn::SERVER_ERROR));
        (setup.attempts.buffer_max_bytes, setup.buffer_max_bytes) = (buffer, 1000);
        let response = Mesh::new(setup).connect().await.ask(&post(length)).await;
        assert_eq!(upstream.asked(), expected, "{buffer:?} {length}: {response}");
        let status = if expected == 2 { "HTTP/1.1 200 " } else { "HTTP/1.1 503 " };
        assert!(response.starts_with(status), "{buffer:?} {length}: {response}");
    }
}

#[tokio::test]
async fn what_the_client_has_not_sent_yet_follows_the_attempt() {
    let seen = Arc::<Mutex<Vec<String>>>::default();
    let shared = Arc::clone(&seen);
    // The first attempt is answered in the middle of the body.
    let address = raw_upstream(move |mut stream, n| {
        let shared = Arc::clone(&shared);
        async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            read_head(&mut stream).await.unwrap();
            let mut body = vec![0; if n == 0 { 5 } else { 10 }];
            stream.read_exact(&mut body).await.unwrap();
            shared.lock().unwrap().push(String::from_utf8(body).unwrap());
            let status = if n == 0 { "503 No" } else { "200 OK" };
            let reply = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(reply.as_bytes()).await.unwrap();
            // Until it is closed.
            let _ = stream.read(&mut [0; 64]).await;
        }
    })
    .await;
    let mesh = Mesh::new(setup(address, policy(RetryOn::SERVER_ERROR)));
    let mut client = mesh.connect().await;
    let head = "POST /again HTTP/1.1\r\nhost: app.test\r\ncontent-length: 10\r\n\r\n";
    client.write(format!("{head}01234")).await;
    while mesh.connections() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    client.write("56789").await;
    let response = within(client.response()).await;
    assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
    assert_eq!(*seen.lock().unwrap(), ["01234", "0123456789"]);
}

#[tokio::test]
async fn an_attempt_may_take_its_time_and_no_longer() {
    let short = Some(Duration::from_millis(100));
    for (whole, idle, details) in
        [(short, None, "upstream_per_try_timeout"), (None, short, "upstream_per_try_idle_timeout")]
    {
        let heads = Arc::<Mutex<Vec<String>>>::default();
        let shared = Arc::clone(&heads);
        let address = raw_upstream(move |mut stream, _| {
            let shared = Arc::clone(&shared);
            async move {
                let head = read_head(&mut stream).await.unwrap();
                shared.lock().unwrap().push(head);
                // Until it is closed.
                assert!(read_head(&mut stream).await.is_none());
            }
        })
        .await;
        let policy = RetryPolicy {
            per_try_timeout: whole,
            per_try_idle_timeout: idle,
            ..policy(RetryOn::SERVER_ERROR)
        };
        let mesh = Mesh::new(setup(address, policy));
        let response = within(mesh.connect().await.ask(&get("/again"))).await;
        assert!(response.starts_with("HTTP/1.1 504 "), "{response}");
        assert!(response.ends_with("\r\n\r\nupstream request timeout"), "{response}");
        let record = mesh.record(0).await;
        assert_eq!(record.flags.to_string(), "URX,UT");
        assert_eq!(record.details.as_deref(), Some(details));
        let heads = heads.lock().unwrap();
        let told = |head: &String| head.contains("x-envoy-is-timeout-retry: true\r\n");
        assert_eq!(heads.iter().map(told).collect::<Vec<_>>(), [false, true, true]);
    }
}
