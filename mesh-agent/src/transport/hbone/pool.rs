//! Which HTTP/2 connection carries which tunnel.
//!
//! Connections are kept per [`HboneKey`]; several by load. One task at a time makes
//! a connection for a key; everyone who needs it waits for it with their own
//! timeout, and may leave without harm to the others. No lock is held across an
//! await.

mod connection;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Serialize;
use tokio::{sync::watch, time};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use connection::PooledConnection;
pub(super) use connection::StreamLease;

use super::{
    HboneError, HboneFailure, HboneStream, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, Phase,
    client::{self, OpenError},
};
use crate::{
    model::{captured::Pod, identity::Identity, workload::WorkloadUid},
    transport::worker::PerWorker,
};

/// Where a tunnel is to go, and for whom.
#[derive(Debug, Clone)]
pub struct HboneTarget {
    /// The source: its namespace is dialled from, its identity is presented.
    pub pod: Arc<Pod>,
    /// The endpoint's address with port 15008.
    pub tunnel: SocketAddr,
    /// The inner destination.
    pub authority: SocketAddr,
    /// Whom the peer must prove to be.
    pub identity: Identity,
    /// The destination's instance, where configuration says it.
    pub workload: Option<WorkloadUid>,
}

/// What tunnels must have in common to share a connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct HboneKey {
    pub source_identity: Identity,
    pub source_workload: WorkloadUid,
    pub tunnel: SocketAddr,
    pub identity: Identity,
    pub workload: Option<WorkloadUid>,
}

impl HboneTarget {
    fn key(&self) -> HboneKey {
        HboneKey {
            source_identity: self.pod.workload.identity.clone(),
            source_workload: self.pod.workload.uid.clone(),
            tunnel: self.tunnel,
            identity: self.identity.clone(),
            workload: self.workload.clone(),
        }
    }
}

/// Limits of the pool.
#[derive(Debug, Clone)]
pub struct HbonePoolOptions {
    /// Streams that one connection carries before another is made; the peer's own
    /// limit counts where it is lower. 32 full windows fit a connection's window.
    pub max_streams_per_connection: usize,
    /// Threads that have connections of their own, see [`crate::transport::worker`].
    pub workers: usize,
    /// Beyond this many, each worker's connections carry more streams than they should.
    pub max_connections_per_key: usize,
    /// For TCP.
    pub connect_timeout: Duration,
    /// For TLS.
    pub handshake_timeout: Duration,
    /// How long a connection without streams is kept.
    pub idle_timeout: Duration,
    /// Age at which a connection takes no more streams, so that new tunnels are
    /// authenticated by certificates of today.
    pub max_age: Duration,
    /// Between keepalive pings.
    pub keepalive_interval: Duration,
    /// For the answer to one.
    pub keepalive_timeout: Duration,
}

impl Default for HbonePoolOptions {
    fn default() -> Self {
        Self {
            max_streams_per_connection: 32,
            workers: 0,
            max_connections_per_key: 64,
            connect_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(90),
            max_age: Duration::from_secs(3600),
            keepalive_interval: KEEPALIVE_INTERVAL,
            keepalive_timeout: KEEPALIVE_TIMEOUT,
        }
    }
}

/// One key's connections, for `status`.
#[derive(Debug, Clone, Serialize)]
pub struct PoolStatus {
    #[serde(flatten)]
    pub key: HboneKey,
    /// Whether one more is being made.
    pub connecting: bool,
    pub connections: Vec<PooledConnectionStatus>,
}

/// One connection, for `status`.
#[derive(Debug, Clone, Serialize)]
pub struct PooledConnectionStatus {
    pub streams: usize,
    pub age: Duration,
}

/// Tunnels to peers, over connections that are shared and reused.
///
/// Dropping the pool cuts all of its connections.
#[derive(Debug)]
pub struct HbonePool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: HbonePoolOptions,
    peers: PerWorker<Mutex<Peers>>,
    tasks: TaskTracker,
    /// Cuts every connection and ends every task.
    cut: CancellationToken,
}

#[derive(Debug, Default)]
struct Peers {
    by_key: HashMap<HboneKey, Peer>,
    closed: bool,
}

#[derive(Debug, Default)]
struct Peer {
    connections: Vec<Arc<PooledConnection>>,
    connecting: Option<Connecting>,
}

/// A connection being made; the token ends the attempt.
#[derive(Debug)]
struct Connecting {
    outcome: watch::Receiver<Option<Result<(), HboneError>>>,
    cancel: CancellationToken,
}

enum Leased {
    Stream(StreamLease),
    Wait(watch::Receiver<Option<Result<(), HboneError>>>),
}

impl HbonePool {
    /// An empty pool; its tasks run on the runtime that calls [`HbonePool::connect`].
    pub fn new(options: HbonePoolOptions) -> Self {
        let shared = Shared {
            peers: PerWorker::new(options.workers, Mutex::default),
            options,
            tasks: TaskTracker::new(),
            cut: CancellationToken::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Opens a tunnel, on a pooled connection or a new one made with `tls`, whose
    /// verifier must accept `target.identity` and nobody else.
    ///
    /// A CONNECT that a peer left unprocessed, or that a reused connection lost, is
    /// sent once more on another connection: no byte of the application's was on it.
    ///
    /// Cancellation safe: a connection being made for this caller goes on being made.
    ///
    /// # Errors
    /// See [`HboneError`]; `timeout` covers everything.
    pub async fn connect(
        &self,
        target: &HboneTarget,
        tls: &Arc<rustls::ClientConfig>,
        timeout: Duration,
    ) -> Result<HboneStream, HboneError> {
        let mut phase = Phase::Connection;
        let result = time::timeout(timeout, self.attempt(target, tls, &mut phase)).await;
        result.unwrap_or_else(|_| {
            Err(HboneError::new(target, HboneFailure::Timeout { phase, after: timeout }))
        })
    }

    async fn attempt(
        &self,
        target: &HboneTarget,
        tls: &Arc<rustls::ClientConfig>,
        phase: &mut Phase,
    ) -> Result<HboneStream, HboneError> {
        let key = target.key();
        let mut retried = false;
        loop {
            *phase = Phase::Connection;
            let lease = self.lease(&key, target, tls).await?;
            *phase = Phase::Answer;
            let connection = Arc::clone(lease.connection());
            // Retired between being picked and here: pick again.
            let Some(sender) = connection.sender() else { continue };
            let error = match client::open(sender.clone(), target.authority).await {
                Ok((send, recv)) => return Ok(HboneStream::new(send, recv, Some(lease))),
                Err(error) => error,
            };
            let settled = client::is_settled(&sender);
            match &error {
                OpenError::StreamRefused => connection.stream_refused(),
                OpenError::GoAway | OpenError::NotSent(_) | OpenError::Lost(_) => {
                    connection.retire();
                }
                OpenError::Refused(..) | OpenError::Protocol(_) => {}
            }
            let again = match &error {
                // Costs a pooled connection each time, so it comes to an end.
                OpenError::NotSent(_) if settled => continue,
                OpenError::Lost(_) => settled,
                OpenError::StreamRefused | OpenError::GoAway => true,
                OpenError::NotSent(_) | OpenError::Protocol(_) | OpenError::Refused(..) => false,
            };
            if retried || !again {
                return Err(explain(error, target, settled));
            }
            retried = true;
        }
    }

    /// A place for one stream, on the least loaded connection that has one.
    async fn lease(
        &self,
        key: &HboneKey,
        target: &HboneTarget,
        tls: &Arc<rustls::ClientConfig>,
    ) -> Result<StreamLease, HboneError> {
        loop {
            let mut outcome = match self.shared.lease_or_wait(key, target, tls)? {
                Leased::Stream(lease) => return Ok(lease),
                Leased::Wait(outcome) => outcome,
            };
            match outcome.wait_for(Option::is_some).await.as_deref() {
                Ok(Some(Err(error))) => return Err(error.clone()),
                Ok(_) => {}
                Err(_) => return Err(HboneError::new(target, HboneFailure::Evicted)),
            }
        }
    }

    /// Drops the connections of every key that `keep` declines: they take no more
    /// streams and end (GOAWAY) with their last one. Attempts to connect end at once.
    pub fn retain(&self, mut keep: impl FnMut(&HboneKey) -> bool) {
        for peers in self.shared.peers.iter() {
            lock(peers).by_key.retain(|key, peer| {
                let kept = keep(key);
                if !kept {
                    peer.retire();
                }
                kept
            });
        }
    }

    /// Takes no more tunnels, lets running ones end for `drain`, cuts the rest, and
    /// waits until all tasks of the pool have ended.
    pub async fn close_all(&self, drain: Duration) {
        for peers in self.shared.peers.iter() {
            lock(peers).closed = true;
        }
        self.retain(|_| false);
        self.shared.tasks.close();
        if time::timeout(drain, self.shared.tasks.wait()).await.is_err() {
            self.shared.cut.cancel();
            self.shared.tasks.wait().await;
        }
    }

    /// Every key with its connections, of whichever worker.
    pub fn status(&self) -> Vec<PoolStatus> {
        let mut by_key = HashMap::<HboneKey, PoolStatus>::new();
        for peers in self.shared.peers.iter() {
            for (key, peer) in &lock(peers).by_key {
                let status = by_key.entry(key.clone()).or_insert_with(|| PoolStatus {
                    key: key.clone(),
                    connecting: false,
                    connections: Vec::new(),
                });
                status.connecting |= peer.connecting.is_some();
                status.connections.extend(peer.connections.iter().map(|c| c.status()));
            }
        }
        let mut status: Vec<_> = by_key.into_values().collect();
        status.sort_by_key(|peer| (peer.key.source_workload.clone(), peer.key.tunnel));
        status
    }
}

impl Drop for HbonePool {
    fn drop(&mut self) {
        self.shared.cut.cancel();
    }
}

impl Peer {
    fn retire(&mut self) {
        for connection in self.connections.drain(..) {
            connection.retire();
        }
        if let Some(connecting) = self.connecting.take() {
            connecting.cancel.cancel();
        }
    }
}

fn lock(peers: &Mutex<Peers>) -> MutexGuard<'_, Peers> {
    // Nothing in there is left half done by a panic.
    peers.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// The worker's own, whose tasks do not leave it.
    fn own(&self) -> MutexGuard<'_, Peers> {
        lock(self.peers.own())
    }

    fn lease_or_wait(
        self: &Arc<Self>,
        key: &HboneKey,
        target: &HboneTarget,
        tls: &Arc<rustls::ClientConfig>,
    ) -> Result<Leased, HboneError> {
        let mut peers = self.own();
        if peers.closed {
            return Err(HboneError::new(target, HboneFailure::PoolClosed));
        }
        let peer = peers.by_key.entry(key.clone()).or_default();
        peer.connections.retain(|connection| connection.is_open());
        let full = peer.connections.len() >= self.options.max_connections_per_key;
        let limit = self.options.max_streams_per_connection;
        let best = peer.connections.iter().min_by_key(|connection| connection.streams());
        if let Some(best) = best.filter(|best| full || best.has_room(limit)) {
            return Ok(Leased::Stream(StreamLease::new(best)));
        }
        // A task that panicked left no outcome and nobody to wait for.
        let alive = |connecting: &&Connecting| connecting.outcome.has_changed().is_ok();
        if let Some(connecting) = peer.connecting.as_ref().filter(alive) {
            return Ok(Leased::Wait(connecting.outcome.clone()));
        }
        let (sender, outcome) = watch::channel(None);
        let cancel = self.cut.child_token();
        peer.connecting = Some(Connecting { outcome: outcome.clone(), cancel: cancel.clone() });
        drop(peers);
        let (shared, key, target) = (Arc::clone(self), key.clone(), target.clone());
        let make = make(shared, key, target, Arc::clone(tls), cancel, sender);
        self.tasks.spawn(make);
        Ok(Leased::Wait(outcome))
    }

    /// Removes a connection that has ended.
    fn forget(&self, key: &HboneKey, connection: &Arc<PooledConnection>) {
        let mut peers = self.own();
        if let Some(peer) = peers.by_key.get_mut(key) {
            peer.connections.retain(|other| !Arc::ptr_eq(other, connection));
            if peer.connections.is_empty() && peer.connecting.is_none() {
                peers.by_key.remove(key);
            }
        }
    }
}

/// Makes one connection for all who wait for `outcome`, then drives it to its end.
/// Gives `outcome` up without a word when the attempt is cancelled.
async fn make(
    shared: Arc<Shared>,
    key: HboneKey,
    target: HboneTarget,
    tls: Arc<rustls::ClientConfig>,
    cancel: CancellationToken,
    outcome: watch::Sender<Option<Result<(), HboneError>>>,
) {
    let options = &shared.options;
    let attempt =
        client::establish(&target, tls, options.connect_timeout, options.handshake_timeout);
    let Some(made) = cancel.run_until_cancelled(attempt).await else { return };
    // The pod is not kept alive by connections that outlive its tunnels.
    drop(target);
    let (connection, http2) = {
        let mut peers = shared.own();
        // Evicted meanwhile: whoever is in our place now is somebody else's.
        let Some(peer) = peers.by_key.get_mut(&key).filter(|_| !cancel.is_cancelled()) else {
            return;
        };
        peer.connecting = None;
        match made {
            Ok((sender, http2)) => {
                let connection = Arc::new(PooledConnection::new(sender));
                peer.connections.push(Arc::clone(&connection));
                (connection, http2)
            }
            Err(error) => {
                if peer.connections.is_empty() {
                    peers.by_key.remove(&key);
                }
                drop(peers);
                outcome.send_replace(Some(Err(error)));
                return;
            }
        }
    };
    outcome.send_replace(Some(Ok(())));
    drop(outcome);
    connection.drive(http2, options, &shared.cut).await;
    shared.forget(&key, &connection);
}

/// What the caller is told of a CONNECT that opened no stream.
fn explain(error: OpenError, target: &HboneTarget, settled: bool) -> HboneError {
    let failure = match error {
        OpenError::Lost(source) if settled => HboneFailure::Lost(source.into()),
        OpenError::Lost(source) => HboneFailure::Handshake(source.into()),
        OpenError::NotSent(error) if error.is_io() && !settled => {
            let source = error.into_io().unwrap_or_else(|| std::io::ErrorKind::BrokenPipe.into());
            HboneFailure::Handshake(source.into())
        }
        OpenError::NotSent(error) | OpenError::Protocol(error) => {
            HboneFailure::Protocol(error.into())
        }
        OpenError::StreamRefused | OpenError::GoAway => HboneFailure::Unprocessed,
        OpenError::Refused(status, reason) => HboneFailure::Refused { status, reason },
    };
    HboneError::new(target, failure)
}
