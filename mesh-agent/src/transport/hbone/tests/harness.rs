//! A server that tests can tell what to do with each CONNECT, and a client of it.

use std::{
    future::Future,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    model::captured::Pod,
    transport::{
        hbone::{
            ConnectRequest, HboneError, HbonePool, HbonePoolOptions, HboneServer,
            HboneServerOptions, HboneStream, HboneTarget, accept_tls,
        },
        testing::{Authority, PlainSockets, pod},
    },
};

pub(super) const LONG: Duration = Duration::from_secs(20);

pub(super) fn inner() -> SocketAddr {
    "10.0.0.9:8080".parse().unwrap()
}

/// One node's HBONE listener.
pub(super) struct Node {
    pub(super) address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    running: Arc<AtomicUsize>,
    drain: CancellationToken,
}

impl Node {
    pub(super) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    pub(super) fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    /// GOAWAY on every connection there is.
    pub(super) fn drain(&self) {
        self.drain.cancel();
    }
}

pub(super) async fn serve<F, R>(
    authority: &Authority,
    bind: &str,
    options: HboneServerOptions,
    handle: F,
) -> Node
where
    F: Fn(ConnectRequest) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(bind).await.unwrap();
    let node = Node {
        address: listener.local_addr().unwrap(),
        accepted: Arc::default(),
        running: Arc::default(),
        drain: CancellationToken::new(),
    };
    let (accepted, running) = (Arc::clone(&node.accepted), Arc::clone(&node.running));
    let (drain, tls) = (node.drain.clone(), authority.server());
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            accepted.fetch_add(1, Ordering::Relaxed);
            running.fetch_add(1, Ordering::Relaxed);
            let (drain, running) = (drain.clone(), Arc::clone(&running));
            let (tls, options, handle) = (Arc::clone(&tls), options.clone(), handle.clone());
            tokio::spawn(async move {
                if let Ok(stream) = accept_tls(tcp, tls, LONG).await
                    && let Ok(server) = HboneServer::handshake(stream, options).await
                {
                    run(server, handle, drain).await;
                }
                running.fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
    node
}

async fn run<T, F, R>(mut server: HboneServer<T>, handle: F, drain: CancellationToken)
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    F: Fn(ConnectRequest) -> R,
    R: Future<Output = ()> + Send + 'static,
{
    let mut draining = drain.is_cancelled();
    loop {
        tokio::select! {
            next = server.next() => match next {
                Some(Ok(request)) => { tokio::spawn(handle(request)); }
                Some(Err(_)) => {}
                None => return,
            },
            () = drain.cancelled(), if !draining => {
                draining = true;
                server.graceful_shutdown();
            }
        }
    }
}

/// Gives back what it gets, FIN for FIN.
pub(super) async fn echo(request: ConnectRequest) {
    let Ok(stream) = request.accept() else { return };
    let (mut reader, mut writer) = tokio::io::split(stream);
    if tokio::io::copy(&mut reader, &mut writer).await.is_ok() {
        // Fails where the peer reset the stream meanwhile.
        let _ = writer.shutdown().await;
    }
}

/// A pool, the pod it dials for, and who vouches for both.
pub(super) struct Client {
    pub(super) authority: Authority,
    pub(super) pool: HbonePool,
    pub(super) pod: Arc<Pod>,
}

impl Client {
    pub(super) fn new(options: HbonePoolOptions) -> Self {
        Self {
            authority: Authority::new(),
            pool: HbonePool::new(options),
            pod: pod("client", Arc::new(PlainSockets)),
        }
    }

    pub(super) fn target(&self, tunnel: SocketAddr) -> HboneTarget {
        HboneTarget {
            pod: Arc::clone(&self.pod),
            tunnel,
            authority: inner(),
            identity: "spiffe://cluster.local/ns/shop/sa/server".parse().unwrap(),
            workload: None,
        }
    }

    pub(super) async fn connect(&self, tunnel: SocketAddr) -> Result<HboneStream, HboneError> {
        self.pool.connect(&self.target(tunnel), &self.authority.client(), LONG).await
    }
}

pub(super) async fn ping(stream: &mut HboneStream) {
    stream.write_all(b"ping").await.unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"ping");
}

pub(super) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}
