//! Requests that two parsers could read differently never reach the upstream.

use std::time::Duration;

use super::harness::{Mesh, Setup, silent_upstream};

/// Sent as one piece, and byte by byte.
async fn refused(request: &[u8], status: &str) {
    for pieces in [request.len(), 1] {
        let (upstream, seen) = silent_upstream().await;
        let mesh = Mesh::new(Setup::new(upstream));
        let mut client = mesh.connect().await;
        for piece in request.chunks(pieces) {
            client.write(piece).await;
            if pieces == 1 {
                tokio::task::yield_now().await;
            }
        }
        let shown = request.escape_ascii();
        let response = client.response().await;
        let answered = &response["HTTP/1.x ".len()..];
        assert!(answered.starts_with(status), "{shown}: {response}");
        assert!(response.contains("connection: close\r\n"), "{shown}: {response}");
        // The client still has its side open, and is told.
        let (rest, _) = client.rest().await;
        assert_eq!(rest, "", "{shown}");
        let record = mesh.record(0).await;
        assert_eq!(record.flags.to_string(), "DPE", "{shown}: {record:?}");
        assert_eq!(mesh.recorded(), 1);
        assert_eq!(mesh.connections(), 0, "{shown}");
        assert!(seen.lock().unwrap().is_empty(), "{shown}");
    }
}

#[tokio::test]
async fn ambiguous_heads_are_400() {
    let with =
        |lines: &str| format!("POST / HTTP/1.1\r\nhost: app.test\r\n{lines}\r\n\r\n").into_bytes();
    let chunk = "\r\n\r\n0";
    for lines in [
        &format!("content-length: 5\r\ntransfer-encoding: chunked{chunk}"),
        &format!("transfer-encoding: chunked\r\ncontent-length: 5{chunk}"),
        &format!("Content-Length: 0\r\nTransfer-Encoding: chunked{chunk}"),
        "content-length: 5\r\ncontent-length: 5",
        "content-length: 5\r\ncontent-length: 6",
        "content-length: 5, 6",
        "content-length: 5, 5",
        "content-length: +5",
        "content-length: -1",
        "content-length: 0x5",
        "content-length: 5 5",
        "content-length:",
        "content-length: 99999999999999999999",
        "content-length: 00000000000000000000000000005",
        "transfer-encoding:\x0bchunked",
        "transfer-encoding : chunked",
        "content-length : 5",
        "x-a: b\r\n folded",
        "x-a: b\r\n\tcontent-length: 5",
        "x-a: b\rcontent-length: 5",
        "x-a: b\ncontent-length: 5",
        "x-a: \0",
        "x-a: b\x7f",
        "x\0a: b",
        ": empty",
        "no colon",
        "host: other",
        "x-a: b\r\n\r\r\n",
    ] {
        refused(&with(lines), "400").await;
    }
}

#[tokio::test]
async fn transfer_codings_that_are_not_chunked_are_501() {
    for lines in [
        "transfer-encoding: gzip",
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: chunked, chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        "transfer-encoding: identity",
        "transfer-encoding: xchunked",
        "transfer-encoding: \"chunked\"",
    ] {
        let head = format!("POST / HTTP/1.1\r\nhost: app.test\r\n{lines}\r\n\r\n");
        refused(head.as_bytes(), "501").await;
    }
    let old = b"POST / HTTP/1.0\r\nhost: app.test\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    refused(old, "501").await;
}

#[tokio::test]
async fn malformed_requests_are_400() {
    for request in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"GET /a#b HTTP/1.1\r\nhost: app.test\r\n\r\n",
        b"GET /#a?b HTTP/1.1\r\nhost: app.test\r\n\r\n",
        b"get / HTTP/1.1\r\nhost: app.test\r\n\r\n",
        b"BREW / HTTP/1.1\r\nhost: app.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: app.test\r\nconnection: close, Host\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: app.test\r\nconnection: x-forwarded-for\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: app.test\r\nconnection: :path\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: app.test\r\nconnection: a,b,c,d,e,f,g,h,i,j\r\n\r\n",
        b"GET / HTTP/1.1\nhost: app.test\n\n",
        b"GET  / HTTP/1.1\r\nhost: app.test\r\n\r\n",
        b"GET /  HTTP/1.1\r\nhost: app.test\r\n\r\n",
        b"GET / HTTP/1.1 \r\nhost: app.test\r\n\r\n",
        b"GET / HTTP/1.2\r\nhost: app.test\r\n\r\n",
        b"GET / HTTP/2.0\r\nhost: app.test\r\n\r\n",
        b"GET /\r\nhost: app.test\r\n\r\n",
        b"GET /a\0b HTTP/1.1\r\nhost: app.test\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nhost: app.test\r\n\r\n",
        b"GET app.test HTTP/1.1\r\nhost: app.test\r\n\r\n",
        b"GET * HTTP/1.1\r\nhost: app.test\r\n\r\n",
        b"GET ftp://app.test/ HTTP/1.1\r\nhost: app.test\r\n\r\n",
        b"G@T / HTTP/1.1\r\nhost: app.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a b\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: me@app.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: app.test/x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\0\0\0\0",
        b"\r\n\rGET / HTTP/1.1\r\nhost: app.test\r\n\r\n",
    ] {
        refused(request, "400").await;
    }
}

#[tokio::test]
async fn too_large_heads_are_431() {
    let mut many = b"GET / HTTP/1.1\r\nhost: app.test\r\n".to_vec();
    for n in 0..100 {
        many.extend_from_slice(format!("x-{n}: 1\r\n").as_bytes());
    }
    many.extend_from_slice(b"\r\n");
    refused(&many, "431").await;
    for head in ["GET / HTTP/1.1\r\nhost: app.test\r\nx: ", "GET /"] {
        let mut large = head.as_bytes().to_vec();
        large.resize(61 * 1024, b'a');
        let (upstream, seen) = silent_upstream().await;
        let mesh = Mesh::new(Setup::new(upstream));
        let mut client = mesh.connect().await;
        client.write(&large).await;
        assert!(client.response().await.starts_with("HTTP/1.1 431 "));
        assert!(seen.lock().unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_bad_request_is_refused_in_its_turn() {
    let mesh = Mesh::new(Setup::new(super::harness::mirror_upstream().await));
    let mut client = mesh.connect().await;
    client
        .write(
            "GET /first HTTP/1.1\r\nhost: app.test\r\n\r\n\
             POST /second HTTP/1.1\r\nhost: app.test\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n\
             GET /third HTTP/1.1\r\nhost: app.test\r\n\r\n",
        )
        .await;
    assert!(client.response().await.contains("GET /first"));
    assert!(client.response().await.starts_with("HTTP/1.1 400 "));
    assert_eq!(client.rest().await.0, "");
    assert_eq!(mesh.recorded(), 2);
}

#[tokio::test]
async fn bad_chunks_never_make_a_complete_request() {
    for body in [
        "x\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5;a=\0\r\nhello\r\n0\r\n\r\n",
        "5;a=\n\r\nhello\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "0000000000000005\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nno colon\r\n\r\n",
        "5\r\nhello\r\n0\r\nx: y\n\r\n",
        "5\r\nhello\r\n0\r\n\rX",
    ] {
        let (upstream, seen) = silent_upstream().await;
        let mesh = Mesh::new(Setup::new(upstream));
        let mut client = mesh.connect().await;
        let head = "POST / HTTP/1.1\r\nhost: app.test\r\ntransfer-encoding: chunked\r\n\r\n";
        client.write(format!("{head}{body}")).await;
        let (response, _) = client.rest().await;
        let shown = body.escape_default();
        assert!(
            response.starts_with("HTTP/1.1 400 ") || response.is_empty(),
            "{shown}: {response}"
        );
        let record = mesh.record(0).await;
        assert!(["DPE", "DC"].contains(&record.flags.to_string().as_str()), "{shown}: {record:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
        let seen = seen.lock().unwrap();
        let seen = String::from_utf8_lossy(&seen);
        assert!(!seen.ends_with("0\r\n\r\n"), "{shown}: {seen}");
        assert!(!seen.contains("GET "), "{shown}: {seen}");
    }
}
