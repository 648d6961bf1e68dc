//! Headers that a route changes, as Envoy 1.40 changes them.

use super::harness::{Mesh, Setup, mirror_upstream};

#[tokio::test]
async fn values_come_from_request_connection_and_response() {
    let mesh = Mesh::new(Setup::new(mirror_upstream().await));
    let mut client = mesh.connect().await;
    let ask = "GET /mutated/x?q HTTP/1.1\r\nhost: app.test\r\nx-gone: 1\r\nx-here: 2\r\n\r\n";
    let response = client.ask(ask).await;
    let (head, seen) = response.split_once("\r\n\r\n").unwrap();
    for (text, part, expected) in [
        (seen, "x-gone", false),
        (seen, "x-path: /mutated/x?q\r\n", true),
        (seen, "x-cut: GE\r\n", true),
        (seen, "x-cluster: app;HTTP/1.1;mutated\r\n", true),
        // Not known when the request's headers are made.
        (seen, "x-upstream: []\r\n", true),
        (seen, "x-code: 0\r\n", true),
        (seen, "x-empty", false),
        // The response sees the request as it went upstream.
        (head, "r-seen: 2 GE\r\n", true),
        (head, "r-code: 200;via_upstream\r\n", true),
        (head, "content-type", false),
    ] {
        assert_eq!(text.contains(part), expected, "{part}: {text}");
    }
    let upstream = mesh.record(0).await.upstream.unwrap();
    assert!(head.contains(&format!("r-upstream: {upstream}")), "{head}");
}

#[tokio::test]
async fn the_agents_own_answers_are_changed_too() {
    let mesh = Mesh::new(Setup::new(mirror_upstream().await));
    let mut client = mesh.connect().await;
    let response = client.ask("GET /mutated-direct HTTP/1.1\r\nhost: app.test\r\n\r\n").await;
    assert!(response.contains("r-code: 200;direct_response\r\n"), "{response}");
    assert!(response.contains("r-seen:  "), "{response}");
    assert!(!response.contains("r-upstream"), "{response}");
}
