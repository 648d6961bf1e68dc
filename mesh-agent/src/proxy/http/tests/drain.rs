//! Connections whose listener is removed while they live.

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};

use super::harness::{BoxBody, Mesh, Setup, eventually, mirror_upstream};

const GET: &str = "GET /hello HTTP/1.1\r\nhost: app.test\r\n\r\n";

#[tokio::test]
async fn a_request_after_the_listeners_end_is_served_and_is_the_last() {
    let mesh = Mesh::new(Setup::new(mirror_upstream().await));
    let mut client = mesh.connect().await;
    let before = client.ask(GET).await;
    assert!(before.starts_with("HTTP/1.1 200 ") && !before.contains("connection: close"));
    mesh.remove_listener();
    let last = client.ask(GET).await;
    let (head, _) = last.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(head.contains("connection: close"), "{head}");
    assert_eq!(client.rest().await, (String::new(), false));
}

#[tokio::test]
async fn its_policy_outlives_the_listener() {
    let mesh = Mesh::new(Setup::new(mirror_upstream().await));
    let mut client = mesh.connect().await;
    client.ask(GET).await;
    mesh.remove_listener();
    let denied = client.ask("GET /secret HTTP/1.1\r\nhost: app.test\r\n\r\n").await;
    assert!(denied.starts_with("HTTP/1.1 403 "), "{denied}");
}

#[tokio::test]
async fn http2_is_told_to_go_away_and_what_is_in_flight_ends_well() {
    let mesh = Mesh::new(Setup::new(mirror_upstream().await));
    let mut client = mesh.connect().await.http2().await;
    let body = || Empty::<Bytes>::new().map_err(|never| match never {}).boxed_unsync();
    let get = || -> Request<BoxBody> {
        Request::builder().uri("http://app.test/hello").body(body()).unwrap()
    };
    assert_eq!(client.send_request(get()).await.unwrap().status(), 200);
    mesh.remove_listener();
    let response = client.send_request(get()).await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(response.headers().get("connection").is_none());
    response.into_body().collect().await.unwrap();
    eventually(|| client.is_closed().then_some(())).await;
}
