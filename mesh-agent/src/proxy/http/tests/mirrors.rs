//! Requests that somebody else gets a copy of.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt as _;

use super::harness::{
    BoxBody, Mesh, Setup, eventually, http_upstream, mirror_upstream, silent_upstream,
};
use crate::model::{
    cluster::ClusterName,
    route::{MirrorHost, MirrorPolicy, RouteClusterName},
    runtime::{Fraction, RuntimeFraction},
};

fn policy() -> MirrorPolicy {
    MirrorPolicy {
        cluster: RouteClusterName::Cluster(ClusterName("shadow".into())),
        fraction: None,
        host: MirrorHost::Suffixed,
        headers: Vec::new(),
    }
}

fn mesh(upstream: SocketAddr, shadow: SocketAddr, policies: Vec<MirrorPolicy>) -> Mesh {
    Mesh::new(Setup { mirrors: policies, shadow: Some(shadow), ..Setup::new(upstream) })
}

type Seen = Arc<Mutex<Vec<(Request<()>, Option<Bytes>)>>>;

/// Notes each request with its body, if that was whole.
async fn shadow() -> (SocketAddr, Seen) {
    let seen = Seen::default();
    let shared = Arc::clone(&seen);
    let address = http_upstream(false, move |request: Request<hyper::body::Incoming>| {
        let shared = Arc::clone(&shared);
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.ok().map(|body| body.to_bytes());
            shared.lock().unwrap().push((Request::from_parts(head, ()), body));
            Response::new(BoxBody::default())
        }
    })
    .await;
    (address, seen)
}

const POST: &str = "POST /a HTTP/1.1\r\nhost: app.test:80\r\ncontent-length: 5\r\n\r\nfive!";

#[tokio::test]
async fn a_copy_goes_to_somebody_else_with_its_body() {
    let (address, seen) = shadow().await;
    let mesh = mesh(mirror_upstream().await, address, vec![policy()]);
    let request = POST.replace("app.test:80", "app.test");
    let response = mesh.connect().await.ask(&request).await;
    assert!(response.starts_with("HTTP/1.1 200 ") && response.ends_with("five!"), "{response}");
    let (head, body) = eventually(|| seen.lock().unwrap().pop()).await;
    assert_eq!(body.as_deref(), Some(&b"five!"[..]));
    assert_eq!((head.method().as_str(), head.uri().path()), ("POST", "/a"));
    let header = |name: &str| head.headers()[name].to_str().unwrap();
    assert_eq!(header("host"), "app.test-shadow");
    assert_eq!(header("x-envoy-internal"), "true");
    // The request itself is as it was.
    assert!(response.contains("\r\nhost: app.test\r\n") && !response.contains("x-envoy-internal"));
    assert!(mesh.record(0).await.flags.is_empty());
}

#[tokio::test]
async fn a_shadow_that_is_dead_or_silent_makes_no_difference() {
    let (silent, _) = silent_upstream().await;
    for shadow in ["127.0.0.1:1".parse().unwrap(), silent] {
        let (upstream, seen) = self::shadow().await;
        let mesh = mesh(upstream, shadow, vec![policy(), policy()]);
        let mut client = mesh.connect().await;
        for _ in 0..3 {
            let body = "x".repeat(2 << 20);
            let length = body.len();
            let request = format!(
                "POST / HTTP/1.1\r\nhost: app.test\r\ncontent-length: {length}\r\n\r\n{body}"
            );
            client.write(&request).await;
            let response = client.response().await;
            assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
        }
        let bodies = seen
            .lock()
            .unwrap()
            .iter()
            .map(|(_, body)| body.as_ref().map(Bytes::len))
            .collect::<Vec<_>>();
        assert_eq!(bodies, [Some(2 << 20); 3]);
        assert!(mesh.record(2).await.flags.is_empty());
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_no_whole_copy() {
    let (address, seen) = shadow().await;
    let mesh = mesh(mirror_upstream().await, address, vec![policy()]);
    let mut client = mesh.connect().await;
    let request = POST.replace("app.test:80", "app.test").replace("length: 5", "length: 50");
    client.write(request).await;
    drop(client.stream);
    // Seen or not, it is not taken for a request of its own.
    mesh.record(0).await;
    let (_, body) = eventually(|| seen.lock().unwrap().pop()).await;
    assert_eq!(body, None);
}

#[tokio::test]
async fn no_copies_are_made_beyond_the_fraction_or_for_a_cluster_that_is_not_there() {
    let (address, seen) = shadow().await;
    let never = RuntimeFraction {
        key: String::new(),
        default: Fraction { numerator: 0, denominator: 100 },
    };
    let named = RouteClusterName::Header("x-shadow".to_owned());
    let policies = vec![
        MirrorPolicy { fraction: Some(never), ..policy() },
        MirrorPolicy { cluster: named, host: MirrorHost::Literal("copy.test".into()), ..policy() },
    ];
    let mesh = mesh(mirror_upstream().await, address, policies);
    let mut client = mesh.connect().await;
    for cluster in ["none", "shadow"] {
        let get = format!("GET / HTTP/1.1\r\nhost: app.test\r\nx-shadow: {cluster}\r\n\r\n");
        assert!(client.ask(&get).await.starts_with("HTTP/1.1 200 "));
    }
    let (head, _) = eventually(|| seen.lock().unwrap().pop()).await;
    assert_eq!(head.headers()["host"], "copy.test");
    assert_eq!(head.headers()["x-shadow"], "shadow");
    assert!(seen.lock().unwrap().is_empty());
}
