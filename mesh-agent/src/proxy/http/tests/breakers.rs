//! Circuit breakers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::io::AsyncWriteExt;

use super::harness::{Mesh, Setup, eventually, mirror_upstream, raw_upstream, read_head, within};
use crate::model::{
    cluster::{CircuitBreakers, Thresholds},
    retry::{Attempts, RetryOn, RetryPolicy},
};

const GET: &str = "GET /again HTTP/1.1\r\nhost: app.test\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

fn limits(default: Thresholds) -> CircuitBreakers {
    CircuitBreakers { default, high: Thresholds::default() }
}

/// An upstream that answers when it is told to; how many requests it has.
async fn held() -> (Setup, Arc<AtomicUsize>, Arc<tokio::sync::Semaphore>) {
    let (asked, go) = (Arc::<AtomicUsize>::default(), Arc::new(tokio::sync::Semaphore::new(0)));
    let (seen, gate) = (Arc::clone(&asked), Arc::clone(&go));
    let address = raw_upstream(move |mut stream, _| {
        let (seen, gate) = (Arc::clone(&seen), Arc::clone(&gate));
        async move {
            while read_head(&mut stream).await.is_some() {
                seen.fetch_add(1, Ordering::SeqCst);
                gate.acquire().await.unwrap().forget();
                stream.write_all(ANSWER).await.unwrap();
            }
        }
    })
    .await;
    (Setup::new(address), asked, go)
}

#[tokio::test]
async fn a_request_too_many_is_answered_at_once() {
    let (setup, asked, go) = held().await;
    let thresholds = Thresholds { max_requests: 1, ..Thresholds::default() };
    let mesh = Mesh::new(Setup { circuit_breakers: limits(thresholds), ..setup });
    let (mut first, mut second) = (mesh.connect().await, mesh.connect().await);
    first.write(GET).await;
    eventually(|| (asked.load(Ordering::SeqCst) == 1).then_some(())).await;
    let response = within(second.ask(GET)).await;
    assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
    assert!(response.contains("x-envoy-overloaded: true\r\n"), "{response}");
    let body = "upstream connect error or disconnect/reset before headers. reset reason: overflow";
    assert!(response.ends_with(body), "{response}");
    assert_eq!(mesh.record(0).await.flags.to_string(), "UO");
    go.add_permits(2);
    assert!(first.response().await.starts_with("HTTP/1.1 200 OK\r\n"));
    let response = within(second.ask(GET)).await;
    assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
}

#[tokio::test]
async fn requests_wait_for_a_connection_in_their_turn() {
    let (setup, asked, go) = held().await;
    let thresholds =
        Thresholds { max_connections: 1, max_pending_requests: 1, ..Thresholds::default() };
    let mesh = Mesh::new(Setup { circuit_breakers: limits(thresholds), ..setup });
    let mut clients = [mesh.connect().await, mesh.connect().await, mesh.connect().await];
    clients[0].write(GET).await;
    eventually(|| (asked.load(Ordering::SeqCst) == 1).then_some(())).await;
    clients[1].write(GET).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let response = within(clients[2].ask(GET)).await;
    assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    go.add_permits(2);
    for client in &mut clients[..2] {
        assert!(within(client.response()).await.starts_with("HTTP/1.1 200 OK\r\n"));
    }
    assert_eq!(mesh.connections(), 1);
}

#[tokio::test]
async fn retries_are_bounded_among_themselves() {
    let policy = RetryPolicy {
        retry_on: RetryOn::RETRIABLE_STATUS_CODES,
        num_retries: 5,
        per_try_timeout: None,
        per_try_idle_timeout: None,
        back_off: crate::model::retry::BackOff::default(),
        rate_limited_back_off: None,
        retriable_status_codes: vec![200],
        retriable_headers: vec![],
        retriable_request_headers: vec![],
        avoid_previous_hosts: false,
        host_selection_attempts: 1,
    };
    let attempts = Attempts { retry: Some(Arc::new(policy)), ..Attempts::default() };
    let thresholds = Thresholds { max_retries: 0, ..Thresholds::default() };
    let setup = Setup::new(mirror_upstream().await);
    let mesh = Mesh::new(Setup { circuit_breakers: limits(thresholds), attempts, ..setup });
    let response = within(mesh.connect().await.ask(GET)).await;
    assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
    let record = mesh.record(0).await;
    assert_eq!(record.flags.to_string(), "UO");
}
