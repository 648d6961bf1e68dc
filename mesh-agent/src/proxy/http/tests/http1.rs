//! HTTP/1 in, HTTP/1 out, and the agent's own answers.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::harness::{Mesh, Setup, http_upstream, mirror_upstream, raw_upstream, read_head};

const GET: &str = "GET /hello?q=1 HTTP/1.1\r\nhost: app.test\r\n\r\n";

#[tokio::test]
async fn a_request_goes_through_and_connections_are_reused() {
    let mesh = Mesh::new(Setup::new(mirror_upstream().await));
    let mut client = mesh.connect().await;
    for n in 0..3 {
        let response = client.ask(GET).await;
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
        let (_, seen) = response.split_once("\r\n\r\n").unwrap();
        assert!(seen.starts_with("GET /hello?q=1 HTTP/1.1\r\n"), "{seen}");
        assert!(seen.contains("host: app.test\r\n"), "{seen}");
        assert!(seen.contains("x-request-id: "), "{seen}");
        assert!(seen.contains("x-forwarded-proto: http\r\n"), "{seen}");
        let record = mesh.record(n).await;
        assert_eq!(record.response_code.unwrap(), 200);
        assert!(record.flags.is_empty(), "{record:?}");
        assert_eq!(record.path.as_deref(), Some("/hello?q=1"));
        assert_eq!(record.route.as_deref(), Some("/"));
        assert_eq!(record.cluster.unwrap().0.as_ref(), "app");
        assert_eq!(record.response_bytes, seen.len() as u64);
    }
    let mut other = mesh.connect().await;
    other.ask(GET).await;
    assert_eq!(mesh.connections(), 1);
    assert_eq!(mesh.services.pool.len(), 1);
    drop(client.stream);
    let outcome = client.served.await.unwrap();
    assert!(outcome.error.is_none(), "{outcome:?}");
    assert_eq!(outcome.requests, 3);
}

#[tokio::test]
async fn the_agent_answers_for_itself() {
    for (request, status, body, flag) in [
        (
            "GET /secret/x HTTP/1.1\r\nhost: app.test\r\n\r\n",
            "403 Forbidden",
            "RBAC: access denied",
            "UAEX",
        ),
        ("GET / HTTP/1.1\r\nhost: elsewhere\r\n\r\n", "404 Not Found", "", "NR"),
        (
            "GET /none HTTP/1.1\r\nhost: app.test\r\n\r\n",
            "503 Service Unavailable",
            "no healthy upstream",
            "UH",
        ),
        (
            "GET /dead HTTP/1.1\r\nhost: app.test\r\n\r\n",
            "503 Service Unavailable",
            "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure",
            "UF",
        ),
        ("GET /direct HTTP/1.1\r\nhost: app.test\r\n\r\n", "418 Unknown", "short and stout", "-"),
        (
            "GET /slow HTTP/1.1\r\nhost: app.test\r\n\r\n",
            "504 Gateway Timeout",
            "upstream request timeout",
            "UT",
        ),
        ("CONNECT app.test:80 HTTP/1.1\r\nhost: app.test\r\n\r\n", "403 Forbidden", "", "-"),
        (
            "GET / HTTP/1.1\r\nhost: app.test\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
            "403 Forbidden",
            "",
            "-",
        ),
    ] {
        let silent = raw_upstream(|stream, _| async move {
            tokio::time::sleep(Duration::from_secs(5)).await;
            drop(stream);
        });
        let mesh = Mesh::new(Setup::new(silent.await));
        let mut client = mesh.connect().await;
        let response = client.ask(request).await;
        assert!(response.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{request}: {response}");
        assert!(response.ends_with(&format!("\r\n\r\n{body}")), "{request}: {response}");
        let record = mesh.record(0).await;
        assert_eq!(record.flags.to_string(), flag, "{record:?}");
        assert_eq!(record.response_bytes, body.len() as u64);
        if flag == "UAEX" {
            assert_eq!(record.policy.as_deref(), Some("no-secrets"));
        }
    }
}

#[tokio::test]
async fn a_denied_connection_goes_on_and_a_new_configuration_counts_at_once() {
    let mesh = Mesh::new(Setup::new(mirror_upstream().await));
    let mut client = mesh.connect().await;
    let denied = client.ask("GET /secret HTTP/1.1\r\nhost: app.test\r\n\r\n").await;
    assert!(denied.starts_with("HTTP/1.1 403 "), "{denied}");
    assert!(client.ask(GET).await.starts_with("HTTP/1.1 200 "));
    mesh.deny("/hello");
    assert!(client.ask(GET).await.starts_with("HTTP/1.1 403 "));
    let allowed = client.ask("GET /secret HTTP/1.1\r\nhost: app.test\r\n\r\n").await;
    assert!(allowed.starts_with("HTTP/1.1 200 "), "{allowed}");
}

#[tokio::test]
async fn the_head_is_translated() {
    let mesh = Mesh::new(Setup::new(mirror_upstream().await));
    let mut client = mesh.connect().await;
    let response = client
        .ask(
            "GET http://app.test/api/items?x=1 HTTP/1.1\r\nHost: app.test\r\nConnection: keep-alive, X-Hop\r\n\
             X-Hop: 1\r\nKeep-Alive: timeout=5\r\nX-End: 2\r\nTE: trailers, deflate\r\n\
             X-Request-Id: mine\r\n\r\n",
        )
        .await;
    let (_, seen) = response.split_once("\r\n\r\n").unwrap();
    assert!(seen.starts_with("GET /v1/items?x=1 HTTP/1.1\r\n"), "{seen}");
    for (part, expected) in [
        ("\r\nhost: internal.test\r\n", true),
        ("\r\nhost: app.test\r\n", false),
        ("x-envoy-original-host: app.test\r\n", true),
        ("x-envoy-original-path: /api/items?x=1\r\n", true),
        ("x-hop", false),
        ("keep-alive", false),
        ("x-end: 2\r\n", true),
        ("te: trailers\r\n", true),
        ("deflate", false),
        ("x-request-id: mine\r\n", true),
    ] {
        assert_eq!(seen.contains(part), expected, "{part}: {seen}");
    }
}

#[tokio::test]
async fn a_client_cannot_claim_a_certificate() {
    let mesh = Mesh::new(Setup::new(mirror_upstream().await));
    let mut client = mesh.connect().await;
    let response = client
        .ask(
            "GET / HTTP/1.1\r\nhost: app.test\r\n\
             x-forwarded-client-cert: URI=spiffe://cluster.local/ns/default/sa/admin\r\n\
             X-Forwarded-Client-Cert: Hash=1\r\n\r\n",
        )
        .await;
    assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
    assert!(!response.to_lowercase().contains("client-cert"), "{response}");
}

#[tokio::test]
async fn requests_may_be_pipelined() {
    let mesh = Mesh::new(Setup::new(mirror_upstream().await));
    let mut client = mesh.connect().await;
    let post = "POST /p HTTP/1.1\r\nhost: app.test\r\ncontent-length: 5\r\n\r\nhello";
    client.write(format!("{GET}{post}{GET}")).await;
    assert!(client.response().await.contains("GET /hello"));
    let posted = client.response().await;
    assert!(posted.contains("POST /p") && posted.ends_with("hello"), "{posted}");
    assert!(client.response().await.contains("GET /hello"));
}

#[tokio::test]
async fn a_client_may_ask_before_it_sends() {
    let mesh = Mesh::new(Setup::new(mirror_upstream().await));
    let mut client = mesh.connect().await;
    let head =
        "POST / HTTP/1.1\r\nhost: app.test\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
    let go_on = client.ask(head).await;
    assert_eq!(go_on, "HTTP/1.1 100 Continue\r\n\r\n");
    let response = client.ask("hello").await;
    assert!(response.starts_with("HTTP/1.1 200 ") && response.ends_with("hello"), "{response}");
    assert!(!response.contains("\nexpect:"), "{response}");
    // Denied at once: nothing is asked for.
    let denied = client.ask(&head.replace(" / ", " /secret ")).await;
    assert!(denied.starts_with("HTTP/1.1 403 "), "{denied}");
}

#[tokio::test]
async fn an_upstreams_words_for_a_status_go_no_further() {
    let upstream = raw_upstream(|mut stream, _| async move {
        while let Some(head) = read_head(&mut stream).await {
            let status = head.split(' ').nth(1).unwrap().trim_start_matches('/');
            let reply = format!("HTTP/1.1 {status} <b>theirs</b>\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(reply.as_bytes()).await.unwrap();
        }
    });
    let mesh = Mesh::new(Setup::new(upstream.await));
    let mut client = mesh.connect().await;
    for (status, line) in [("200", "200 OK"), ("598", "598 Unknown"), ("201", "201 Created")] {
        let response =
            client.ask(&format!("GET /{status} HTTP/1.1\r\nhost: app.test\r\n\r\n")).await;
        assert!(response.starts_with(&format!("HTTP/1.1 {line}\r\n")), "{response}");
    }
}

#[tokio::test]
async fn http_1_0_is_refused_and_closed() {
    let mesh = Mesh::new(Setup::new(mirror_upstream().await));
    let mut client = mesh.connect().await;
    client.write("GET /old HTTP/1.0\r\nhost: app.test\r\n\r\n").await;
    let (response, reset) = client.rest().await;
    assert!(response.starts_with("HTTP/1.0 426 "), "{response}");
    assert!(!reset);
    assert_eq!(mesh.connections(), 0);
    assert_eq!(mesh.record(0).await.details.as_deref(), Some("low_version"));
}

#[tokio::test]
async fn responses_without_a_body_keep_their_framing() {
    let upstream = raw_upstream(|mut stream, _| async move {
        while let Some(head) = read_head(&mut stream).await {
            let reply = match head.split(' ').nth(1).unwrap() {
                "/204" => "HTTP/1.1 204 No Content\r\n\r\n",
                "/304" => "HTTP/1.1 304 Not Modified\r\ncontent-length: 42\r\netag: x\r\n\r\n",
                "/chunked" => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
                _ => "HTTP/1.1 200 OK\r\ncontent-length: 42\r\n\r\n",
            };
            stream.write_all(reply.as_bytes()).await.unwrap();
        }
    });
    let mesh = Mesh::new(Setup::new(upstream.await));
    let mut client = mesh.connect().await;
    // All at once: a byte too many would break the next response.
    for (method, path) in
        [("GET", "/204"), ("GET", "/304"), ("HEAD", "/chunked"), ("HEAD", "/sized")]
    {
        client.write(format!("{method} {path} HTTP/1.1\r\nhost: app.test\r\n\r\n")).await;
    }
    client.write("GET /direct HTTP/1.1\r\nhost: app.test\r\nconnection: close\r\n\r\n").await;
    let (all, reset) = client.rest().await;
    assert!(!reset);
    let heads: Vec<&str> = all.split("\r\n\r\n").collect();
    assert_eq!(heads.len(), 6, "{all}");
    assert!(heads[0].starts_with("HTTP/1.1 204 ") && !heads[0].contains("content-length"), "{all}");
    assert!(heads[1].starts_with("HTTP/1.1 304 ") && heads[1].contains("etag"), "{all}");
    assert!(
        heads[2].starts_with("HTTP/1.1 200 ") && !heads[2].contains("content-length: 0"),
        "{all}"
    );
    assert!(heads[3].contains("content-length: 42"), "{all}");
    assert_eq!(heads[5], "short and stout");
    for n in 0..5 {
        assert!(mesh.record(n).await.flags.is_empty());
    }
}

#[tokio::test]
async fn a_response_that_breaks_off_is_seen_to() {
    for (reply, flag) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf", "UC"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n", "UC"),
    ] {
        let upstream = raw_upstream(move |mut stream, _| async move {
            read_head(&mut stream).await.unwrap();
            stream.write_all(reply.as_bytes()).await.unwrap();
        });
        let mesh = Mesh::new(Setup::new(upstream.await));
        let mut client = mesh.connect().await;
        client.write(GET).await;
        let (response, _) = client.rest().await;
        // hyper drops what it has not written yet: the client sees part, or nothing.
        assert!(response.is_empty() || response.starts_with("HTTP/1.1 200 "), "{response}");
        assert!(!response.ends_with("0\r\n\r\n"), "looks complete: {response}");
        let record = mesh.record(0).await;
        assert_eq!(record.flags.to_string(), flag, "{record:?}");
        assert_eq!(record.response_code.unwrap(), 200);
    }
}

#[tokio::test]
async fn an_upstream_that_ends_is_503_and_one_that_babbles_502() {
    let twice = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n";
    for (reply, flag, status) in [
        ("", "UC", 503),
        ("garbage\r\n\r\n", "UPE", 502),
        ("HTTP/1.1 101 X\r\n\r\n", "UPE", 502),
        (twice, "UPE", 502),
    ] {
        let upstream = raw_upstream(move |mut stream, _| async move {
            read_head(&mut stream).await.unwrap();
            stream.write_all(reply.as_bytes()).await.unwrap();
        });
        let mesh = Mesh::new(Setup::new(upstream.await));
        let mut client = mesh.connect().await;
        let response = client.ask(GET).await;
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{reply}: {response}");
        assert_eq!(mesh.record(0).await.flags.to_string(), flag, "{reply}");
        assert_eq!(mesh.connections(), 1, "a fresh connection's failure is not retried");
    }
}

/// An upstream that answers the first request of its first connection, and closes it
/// on the second.
async fn closing_upstream() -> std::net::SocketAddr {
    raw_upstream(|mut stream, n| async move {
        for request in 0.. {
            if read_head(&mut stream).await.is_none() || n == 0 && request == 1 {
                return;
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        }
    })
    .await
}

#[tokio::test]
async fn a_kept_connection_that_closes_is_retried_where_that_is_safe() {
    let mesh = Mesh::new(Setup::new(closing_upstream().await));
    let mut client = mesh.connect().await;
    assert!(client.ask(GET).await.ends_with("ok"));
    assert!(client.ask(GET).await.ends_with("ok"));
    assert_eq!(mesh.connections(), 2);

    let mesh = Mesh::new(Setup::new(closing_upstream().await));
    let mut client = mesh.connect().await;
    assert!(client.ask(GET).await.ends_with("ok"));
    let post = "POST / HTTP/1.1\r\nhost: app.test\r\ncontent-length: 0\r\n\r\n";
    assert!(client.ask(post).await.starts_with("HTTP/1.1 503 "));
    assert_eq!(mesh.record(1).await.flags.to_string(), "UC");
}

#[tokio::test]
async fn a_connection_closed_while_kept_is_not_used() {
    let upstream = raw_upstream(|mut stream, _| async move {
        read_head(&mut stream).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
    });
    let mesh = Mesh::new(Setup::new(upstream.await));
    let mut client = mesh.connect().await;
    let post = "POST / HTTP/1.1\r\nhost: app.test\r\ncontent-length: 0\r\n\r\n";
    for _ in 0..3 {
        assert!(client.ask(post).await.ends_with("ok"));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    mesh.services.pool.sweep();
    assert!(mesh.services.pool.is_empty());
}

#[tokio::test]
async fn trailers_pass_through() {
    let upstream = raw_upstream(|mut stream, _| async move {
        let mut request = read_head(&mut stream).await.unwrap();
        while !request.ends_with("x-check: in\r\n\r\n") {
            request.push(char::from(stream.read_u8().await.unwrap()));
        }
        let reply = "HTTP/1.1 200 OK\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-sum: out\r\n\r\n";
        stream.write_all(reply.as_bytes()).await.unwrap();
        stream.read_u8().await.ok();
    });
    let mesh = Mesh::new(Setup::new(upstream.await));
    let mut client = mesh.connect().await;
    let request = "POST / HTTP/1.1\r\nhost: app.test\r\nte: trailers\r\ntrailer: x-check\r\n\
                   transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-check: in\r\n\r\n";
    let response = client.ask(request).await;
    assert!(response.ends_with("2\r\nok\r\n0\r\nx-sum: out\r\n\r\n"), "{response}");
}

#[tokio::test]
async fn the_response_may_overtake_the_request() {
    // Answers in full before it reads the body, and then reads all of it.
    let upstream = raw_upstream(|mut stream, _| async move {
        read_head(&mut stream).await.unwrap();
        let reply = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\no";
        stream.write_all(reply.as_bytes()).await.unwrap();
        let mut body = vec![0; 4 << 20];
        stream.read_exact(&mut body).await.unwrap();
        stream.write_all(b"k").await.unwrap();
    });
    let mesh = Mesh::new(Setup::new(upstream.await));
    let mut client = mesh.connect().await;
    client
        .write(format!("POST / HTTP/1.1\r\nhost: app.test\r\ncontent-length: {}\r\n\r\n", 4 << 20))
        .await;
    client.write(vec![b'x'; 4 << 20]).await;
    assert!(client.response().await.ends_with("\r\n\r\nok"));
}

#[tokio::test]
async fn draining_closes_after_the_requests_in_hand() {
    let upstream = http_upstream(false, |_| async move {
        tokio::time::sleep(Duration::from_millis(200)).await;
        http::Response::new(super::harness::BoxBody::default())
    });
    let mesh = Mesh::new(Setup::new(upstream.await));
    let (mut idle, mut busy) = (mesh.connect().await, mesh.connect().await);
    let (mut late, mut new) = (mesh.connect().await, mesh.connect().await);
    let direct = "GET /direct HTTP/1.1\r\nhost: app.test\r\n\r\n";
    idle.ask(direct).await;
    late.ask(direct).await;
    busy.write(GET).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    mesh.drain.cancel();
    // It was on its way.
    for client in [&mut late, &mut new] {
        client.write(direct).await;
        let (response, reset) = client.rest().await;
        assert!(response.contains("connection: close"), "{response}");
        assert!(!reset);
    }
    let (response, reset) = busy.rest().await;
    assert!(
        response.starts_with("HTTP/1.1 200 ") && response.contains("connection: close"),
        "{response}"
    );
    assert!(!reset);
    assert_eq!(idle.rest().await, (String::new(), false));
    assert!(busy.served.await.unwrap().error.is_none());
}

#[tokio::test]
async fn a_client_that_leaves_is_recorded() {
    let (upstream, _) = super::harness::silent_upstream().await;
    let mesh = Mesh::new(Setup::new(upstream));
    let mut client = mesh.connect().await;
    client.write(GET).await;
    super::harness::eventually(|| (mesh.connections() == 1).then_some(())).await;
    drop(client.stream);
    let record = mesh.record(0).await;
    assert_eq!(record.flags.to_string(), "DC");
    assert!(record.response_code.is_none());
}

#[tokio::test]
async fn an_offer_of_http2_is_ignored() {
    let mesh = Mesh::new(Setup::new(mirror_upstream().await));
    let mut client = mesh.connect().await;
    let offer = "GET /h2c HTTP/1.1\r\nhost: app.test\r\nconnection: Upgrade, HTTP2-Settings\r\n\
                 upgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n\r\n";
    for _ in 0..2 {
        let response = client.ask(offer).await;
        assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
        assert!(
            !response.contains("upgrade") && !response.contains("http2-settings"),
            "{response}"
        );
    }
}

#[tokio::test]
async fn a_denied_upload_is_answered_though_nobody_reads_it() {
    let mesh = Mesh::new(Setup::new(mirror_upstream().await));
    let mut client = mesh.connect().await;
    let head = "POST /secret HTTP/1.1\r\nhost: app.test\r\ncontent-length: 500000\r\n\r\n";
    client.write(head).await;
    client.write(vec![b'x'; 500_000]).await;
    // Not lost to a reset.
    let (response, reset) = client.rest().await;
    assert!(response.ends_with("RBAC: access denied"), "{response}");
    assert!(!reset);
}
