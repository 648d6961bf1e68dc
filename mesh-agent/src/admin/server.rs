//! Accepting, and the limits that keep a careless or hostile client from costing
//! the agent anything.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::Future,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http_body_util::{BodyExt as _, Limited};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    task::{AbortHandle, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    AdminError, AgentControl, ControlSocket,
    routes::{self, Access, Body},
};

/// Connections served at a time; one that comes then ends another.
const MAX_CONNECTIONS: usize = 64;

/// The largest request head, in bytes.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// The largest request body, in bytes.
const MAX_BODY_BYTES: usize = 256 * 1024;

/// How long a client may take for a head, and may idle between requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client may take for a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the agent may take; enrolling waits for a certificate.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a connection may live, however slowly it reads.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(300);

/// How long open requests may take to end at shutdown.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// How long to wait after a failed accept: out of descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Listens on the admin address; says so loudly where others can reach it.
///
/// # Errors
/// [`AdminError::Listen`].
pub async fn bind_tcp(address: SocketAddr) -> Result<TcpListener, AdminError> {
    let failed = |source| AdminError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    if !address.ip().to_canonical().is_loopback() {
        tracing::warn!(
            %address,
            "the admin address is not loopback: whoever reaches it can read this node's \
             configuration, identities and connections without authentication"
        );
    }
    Ok(listener)
}

/// Serves reads on the admin address until `shutdown`.
pub async fn serve_tcp(
    listener: TcpListener,
    control: Arc<dyn AgentControl>,
    shutdown: CancellationToken,
) {
    let access = Access::Tcp { bound: listener.local_addr().ok() };
    let accept = || async { listener.accept().await.map(|(stream, _)| stream) };
    serve(accept, access, control, shutdown).await;
}

/// Serves everything on the control socket until `shutdown`, then removes it.
pub async fn serve_unix(
    socket: ControlSocket,
    control: Arc<dyn AgentControl>,
    shutdown: CancellationToken,
) {
    serve(|| socket.accept(), Access::Unix, control, shutdown).await;
}

async fn serve<S, F>(
    accept: impl Fn() -> F,
    access: Access,
    control: Arc<dyn AgentControl>,
    shutdown: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = io::Result<S>>,
{
    let mut connections = JoinSet::new();
    let mut open = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = accept() => accepted,
        };
        match accepted {
            Ok(stream) => {
                make_room(&mut open);
                let control = Arc::clone(&control);
                let shutdown = shutdown.clone();
                let answering = Arc::<AtomicBool>::default();
                let busy = Arc::clone(&answering);
                let task = connections.spawn(async move {
                    let connection = serve_connection(stream, access, control, busy, shutdown);
                    if timeout(CONNECTION_TIMEOUT, connection).await.is_err() {
                        tracing::debug!("admin connection closed: it lived too long");
                    }
                });
                open.push_back(Open { task, answering });
            }
            Err(error) => {
                tracing::warn!(%error, "admin connection can't be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    let ended = async { while connections.join_next().await.is_some() {} };
    // What is still open after the grace is aborted with the set.
    _ = timeout(SHUTDOWN_GRACE, ended).await;
}

struct Open {
    task: AbortHandle,
    /// Whether a request is being answered. What has been answered and is not read does not
    /// count.
    answering: Arc<AtomicBool>,
}

/// Ends a connection where there are too many, so that nobody who only holds theirs keeps
/// others from seeing whether the agent is well: the oldest that asks for nothing.
fn make_room(open: &mut VecDeque<Open>) {
    open.retain(|connection| !connection.task.is_finished());
    if open.len() < MAX_CONNECTIONS {
        return;
    }
    let idle = open.iter().position(|connection| !connection.answering.load(Ordering::Relaxed));
    if let Some(connection) = open.remove(idle.unwrap_or(0)) {
        connection.task.abort();
    }
}

async fn serve_connection<S>(
    stream: S,
    access: Access,
    control: Arc<dyn AgentControl>,
    answering: Arc<AtomicBool>,
    shutdown: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let (control, answering) = (Arc::clone(&control), Arc::clone(&answering));
        async move {
            answering.store(true, Ordering::Relaxed);
            let answer = answer(request, access, &*control).await;
            answering.store(false, Ordering::Relaxed);
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "admin connection ended badly");
    }
}

async fn answer(
    request: Request<Incoming>,
    access: Access,
    control: &dyn AgentControl,
) -> Response<Body> {
    let (head, body) = request.into_parts();
    if let Some(refused) = routes::refuse(&head, access) {
        return refused;
    }
    let body: Bytes =
        match timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY_BYTES).collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
                return routes::too_large(MAX_BODY_BYTES);
            }
            Ok(Err(_)) | Err(_) => return routes::no_body(),
        };
    match timeout(ANSWER_TIMEOUT, routes::route(&head, &body, control)).await {
        Ok(response) => response,
        Err(_) => routes::too_slow(ANSWER_TIMEOUT),
    }
}
