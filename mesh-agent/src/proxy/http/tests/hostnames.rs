//! Requests whose host becomes the name of the endpoint that they go to.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use http::{Request, Response, StatusCode, header::HOST};
use hyper::body::Incoming;

use super::{
    harness::{BoxBody, Mesh, Setup, http_upstream, mirror_upstream},
    retries::policy,
};
use crate::model::retry::{Attempts, RetryOn};

fn named(upstream: SocketAddr, http2: bool) -> Setup {
    let setup = if http2 { Setup::http2(upstream) } else { Setup::new(upstream) };
    let retry = policy(RetryOn::SERVER_ERROR);
    let attempts = Attempts { retry: Some(Arc::new(retry)), ..Attempts::default() };
    Setup { hostname: Some("a.test:81".into()), attempts, ..setup }
}

fn get(path: &str, more: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: app.test\r\n{more}\r\n")
}

type Hosts = Arc<Mutex<Vec<[String; 3]>>>;

/// Answers 503 once; notes of each request its host, and what is said of former ones.
async fn failing_once(http2: bool) -> (SocketAddr, Hosts) {
    let hosts = Hosts::default();
    let seen = Arc::clone(&hosts);
    let address = http_upstream(http2, move |request: Request<Incoming>| {
        let header = |name: &str| {
            let value = request.headers().get(name).map(|value| value.to_str().unwrap());
            value.unwrap_or_default().to_owned()
        };
        let host = match request.uri().authority() {
            Some(authority) => {
                assert!(http2 && !request.headers().contains_key(HOST), "{request:?}");
                authority.to_string()
            }
            None => header("host"),
        };
        let mut seen = seen.lock().unwrap();
        seen.push([host, header("x-envoy-original-host"), header("x-forwarded-host")]);
        let mut response = Response::new(BoxBody::default());
        if seen.len() == 1 {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        async move { response }
    })
    .await;
    (address, hosts)
}

#[tokio::test]
async fn each_attempt_sees_what_the_one_before_made_of_the_host() {
    for http2 in [false, true] {
        let (address, hosts) = failing_once(http2).await;
        let mesh = Mesh::new(named(address, http2));
        let response = mesh.connect().await.ask(&get("/named", "")).await;
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
        assert!(response.contains("\r\nr-host: a.test:81 a.test:81 a.test\r\n"), "{response}");
        let expected = [
            ["a.test:81", "app.test", "app.test"],
            ["a.test:81", "a.test:81", "app.test,a.test:81"],
        ];
        assert_eq!(*hosts.lock().unwrap(), expected, "{http2}");
        let record = mesh.record(0).await;
        // The agent's own log has it as it came.
        assert_eq!(record.authority.unwrap(), "app.test");
        assert_eq!(record.upstream_name.as_deref(), Some("a.test:81"));
    }
}

#[tokio::test]
async fn only_what_has_a_connection_has_another_host() {
    let mesh = Mesh::new(named(mirror_upstream().await, false));
    let mut client = mesh.connect().await;
    let response = client.ask(&get("/named/dead", "")).await;
    assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
    assert!(response.contains("\r\nr-host: app.test a.test:81 a.test\r\n"), "{response}");
    // Other routes of the same cluster leave it.
    let response = client.ask(&get("/mutated/x", "")).await;
    assert!(response.contains("\r\nhost: app.test\r\n"), "{response}");
    assert!(!response.contains("x-envoy-original-host"), "{response}");
}

#[tokio::test]
async fn endpoints_without_a_name_leave_the_host() {
    let setup = named(mirror_upstream().await, false);
    let mesh = Mesh::new(Setup { hostname: None, ..setup });
    let more = "x-forwarded-host: before.test\r\n";
    let response = mesh.connect().await.ask(&get("/named", more)).await;
    let upstream = mesh.record(0).await.upstream.unwrap();
    let (ip, expected) = (upstream.ip(), "\r\nhost: app.test\r\n");
    assert!(response.contains(expected), "{response}");
    assert!(response.contains("\r\nx-forwarded-host: before.test\r\n"), "{response}");
    assert!(!response.contains("x-envoy-original-host"), "{response}");
    assert!(response.contains(&format!("\r\nr-host: app.test {upstream} {ip}\r\n")), "{response}");
}
