//! What stands behind the mesh.

use std::{
    future::Future,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::BoxBody;

/// An upstream that handles each connection's bytes itself; told their number.
pub(in super::super) async fn raw_upstream<F, Fut>(handle: F) -> SocketAddr
where
    F: Fn(TcpStream, usize) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for n in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            tokio::spawn(handle(stream, n));
        }
    });
    address
}

/// Everything an upstream received, whatever it was; answers nothing.
pub(in super::super) async fn silent_upstream() -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let seen = Arc::<Mutex<Vec<u8>>>::default();
    let shared = Arc::clone(&seen);
    let address = raw_upstream(move |mut stream, _| {
        let shared = Arc::clone(&shared);
        async move {
            let mut buf = [0; 1024];
            while let Ok(n @ 1..) = stream.read(&mut buf).await {
                shared.lock().unwrap().extend_from_slice(&buf[..n]);
            }
        }
    })
    .await;
    (address, seen)
}

/// Reads one request head.
pub(in super::super) async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}

/// Answers each request with its own head, as it was received.
pub(in super::super) async fn mirror_upstream() -> SocketAddr {
    raw_upstream(|mut stream, _| async move {
        while let Some(head) = read_head(&mut stream).await {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .map_or(0, |length| length.parse::<usize>().unwrap());
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await.unwrap();
            let length = head.len() + body.len();
            let reply = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{head}");
            stream.write_all(reply.as_bytes()).await.unwrap();
            stream.write_all(&body).await.unwrap();
        }
    })
    .await
}

/// An upstream of HTTP/1 or HTTP/2 that answers by `service`.
pub(in super::super) async fn http_upstream<F, Fut>(http2: bool, service: F) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Response<BoxBody>> + Send + 'static,
{
    raw_upstream(move |stream, _| {
        let service = service.clone();
        async move {
            let service = service_fn(move |request| {
                let response = service(request);
                async move { Ok::<_, std::convert::Infallible>(response.await) }
            });
            let io = TokioIo::new(stream);
            // How it ends is the client's to judge.
            let _ = if http2 {
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(io, service)
                    .await
            } else {
                hyper::server::conn::http1::Builder::new().serve_connection(io, service).await
            };
        }
    })
    .await
}
