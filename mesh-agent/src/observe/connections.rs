//! The live connections of this node: who, to whom, which policy decided, bytes.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use tokio_util::sync::CancellationToken;

use super::{
    ConnectionSecurity, Protocol,
    counters::Counters,
    flags::{ResponseFlag, ResponseFlags},
    metrics::TcpMetrics,
};
use crate::model::{identity::Identity, listener::Direction, workload::WorkloadUid};

/// Enough that connections of different workers rarely meet at one lock.
const SHARDS: usize = 16;

/// What is known of a connection when it is accepted.
#[derive(Debug, Clone)]
pub struct ConnectionInfo {
    pub direction: Direction,
    /// The enrolled pod on this node: outbound its source, inbound its destination.
    pub workload: WorkloadUid,
    pub source: SocketAddr,
    pub original_destination: SocketAddr,
    pub source_identity: Option<Identity>,
    pub destination_identity: Option<Identity>,
    pub security: ConnectionSecurity,
}

/// What is learned while a connection lives.
#[derive(Debug, Clone, Default)]
pub struct ConnectionProgress {
    pub protocol: Protocol,
    /// The policy that decided; `None` where no rule applied.
    pub policy: Option<Arc<str>>,
    pub cluster: Option<Arc<str>>,
    pub upstream: Option<SocketAddr>,
    /// Proven or expected of the upstream; replaces the one in [`ConnectionInfo`].
    pub destination_identity: Option<Identity>,
    /// Replaces the one in [`ConnectionInfo`].
    pub security: Option<ConnectionSecurity>,
    /// The kernel takes it from pod to pod; the agent only watches.
    pub kernel_path: bool,
    pub response_flags: ResponseFlags,
}

/// One row of the table, as it was when asked for.
#[derive(Debug, Clone)]
pub struct ConnectionEntry {
    pub id: u64,
    pub started: SystemTime,
    pub info: ConnectionInfo,
    pub progress: ConnectionProgress,
    pub sent_bytes: u64,
    pub received_bytes: u64,
}

/// The table of live connections. Cheap to clone: clones share the table.
#[derive(Debug, Clone, Default)]
pub struct Connections {
    table: Arc<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next: AtomicU64,
    shards: [Mutex<HashMap<u64, Arc<Live>>>; SHARDS],
}

#[derive(Debug)]
struct Live {
    started: SystemTime,
    info: ConnectionInfo,
    counters: Arc<Counters>,
    cancel: CancellationToken,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    progress: ConnectionProgress,
    metrics: Option<TcpMetrics>,
    /// What `metrics` has been told already.
    told_sent: u64,
    told_received: u64,
}

/// A panic elsewhere must not take the table along: its values are valid at any time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Connections ===

impl Connections {
    /// Puts a connection on the table until the guard is dropped.
    pub fn open(&self, info: ConnectionInfo) -> ConnectionGuard {
        let id = self.table.next.fetch_add(1, Ordering::Relaxed) + 1;
        let live = Arc::new(Live {
            started: SystemTime::now(),
            info,
            counters: Arc::default(),
            cancel: CancellationToken::new(),
            state: Mutex::default(),
        });
        lock(self.table.shard(id)).insert(id, Arc::clone(&live));
        ConnectionGuard { id, live, table: Arc::clone(&self.table) }
    }

    /// Every live connection, oldest first.
    pub fn list(&self) -> Vec<ConnectionEntry> {
        let mut all: Vec<_> =
            self.table.live().into_iter().map(|(id, live)| live.entry(id)).collect();
        all.sort_by_key(|entry| (entry.started, entry.id));
        all
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.table.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many connections each workload of this node has.
    pub fn by_workload(&self) -> BTreeMap<WorkloadUid, usize> {
        let mut counts = BTreeMap::new();
        for (_, live) in self.table.live() {
            *counts.entry(live.info.workload.clone()).or_default() += 1;
        }
        counts
    }

    /// Tells the connection's task to end it. `false`: it is gone already.
    pub fn cancel(&self, id: u64) -> bool {
        match lock(self.table.shard(id)).get(&id) {
            Some(live) => {
                live.cancel.cancel();
                true
            }
            None => false,
        }
    }

    /// Tells the tasks of all of a workload's connections to end them; says how many.
    pub fn cancel_workload(&self, workload: &WorkloadUid) -> usize {
        let live = self.table.live();
        let of_workload = live.iter().filter(|(_, live)| live.info.workload == *workload);
        of_workload.inspect(|(_, live)| live.cancel.cancel()).count()
    }

    /// Tells every connection's task to end it; says how many.
    pub fn cancel_all(&self) -> usize {
        self.table.live().iter().inspect(|(_, live)| live.cancel.cancel()).count()
    }

    /// Brings the metrics up to what live connections have moved so far.
    pub(super) fn settle(&self) {
        for (_, live) in self.table.live() {
            live.settle(&mut lock(&live.state));
        }
    }

    /// How many live ones there are of each direction.
    pub(super) fn by_direction(&self) -> [(Direction, usize); 3] {
        let live = self.table.live();
        [Direction::Inbound, Direction::Outbound, Direction::Gateway].map(|direction| {
            let of_it = live.iter().filter(|(_, live)| live.info.direction == direction);
            (direction, of_it.count())
        })
    }
}

impl Table {
    fn shard(&self, id: u64) -> &Mutex<HashMap<u64, Arc<Live>>> {
        &self.shards[(id % SHARDS as u64) as usize]
    }

    fn live(&self) -> Vec<(u64, Arc<Live>)> {
        let mut all = Vec::new();
        for shard in &self.shards {
            all.extend(lock(shard).iter().map(|(id, live)| (*id, Arc::clone(live))));
        }
        all
    }
}

impl Live {
    fn entry(&self, id: u64) -> ConnectionEntry {
        ConnectionEntry {
            id,
            started: self.started,
            info: self.info.clone(),
            progress: lock(&self.state).progress.clone(),
            sent_bytes: self.counters.sent_bytes.load(Ordering::Relaxed),
            received_bytes: self.counters.received_bytes.load(Ordering::Relaxed),
        }
    }

    fn settle(&self, state: &mut State) {
        let sent = self.counters.sent_bytes.load(Ordering::Relaxed);
        let received = self.counters.received_bytes.load(Ordering::Relaxed);
        if let Some(metrics) = &state.metrics {
            metrics.moved(
                sent.saturating_sub(state.told_sent),
                received.saturating_sub(state.told_received),
            );
            state.told_sent = sent;
            state.told_received = received;
        }
    }
}

// === impl ConnectionGuard ===

/// A connection's place on the table; dropping it takes the connection off and
/// settles its metrics.
#[derive(Debug)]
pub struct ConnectionGuard {
    id: u64,
    live: Arc<Live>,
    table: Arc<Table>,
}

impl ConnectionGuard {
    /// Names the connection in `mesh-agent connections`.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// When it was accepted.
    pub fn started(&self) -> SystemTime {
        self.live.started
    }

    /// What was known when it was accepted.
    pub fn info(&self) -> &ConnectionInfo {
        &self.live.info
    }

    /// Changes what is known of the connection while another task holds its place.
    pub fn handle(&self) -> ConnectionHandle {
        ConnectionHandle(Arc::clone(&self.live))
    }

    /// Counts this connection's bytes; give it to the relay.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.live.counters
    }

    /// Cancelled when somebody wants this connection ended.
    pub fn cancelled(&self) -> &CancellationToken {
        &self.live.cancel
    }

    /// Notes the policy that decided.
    pub fn set_policy(&self, policy: Option<Arc<str>>) {
        lock(&self.live.state).progress.policy = policy;
    }

    /// Notes why the connection is ending; shown in the closed counter's labels.
    pub fn add_flag(&self, flag: ResponseFlag) {
        lock(&self.live.state).progress.response_flags.insert(flag);
    }

    /// Changes what is known of the connection.
    pub fn update(&self, change: impl FnOnce(&mut ConnectionProgress)) {
        self.handle().update(change);
    }

    /// Counts the connection as opened in `istio_tcp_*`; its bytes follow on every
    /// scrape, and its end when the guard is dropped. Only the first call counts.
    pub fn count_tcp(&self, metrics: TcpMetrics) {
        let mut state = lock(&self.live.state);
        if state.metrics.is_none() {
            metrics.opened();
            state.metrics = Some(metrics);
        }
    }
}

/// A connection on the table, for those who only add to what is known of it.
#[derive(Debug, Clone)]
pub struct ConnectionHandle(Arc<Live>);

impl ConnectionHandle {
    /// Changes what is known of the connection.
    pub fn update(&self, change: impl FnOnce(&mut ConnectionProgress)) {
        change(&mut lock(&self.0.state).progress);
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        lock(self.table.shard(self.id)).remove(&self.id);
        let mut state = lock(&self.live.state);
        self.live.settle(&mut state);
        if let Some(metrics) = state.metrics.take() {
            metrics.closed(state.progress.response_flags);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(workload: &str) -> ConnectionInfo {
        ConnectionInfo {
            direction: Direction::Inbound,
            workload: WorkloadUid(workload.into()),
            source: "10.0.0.1:1".parse().unwrap(),
            original_destination: "10.0.0.2:2".parse().unwrap(),
            source_identity: None,
            destination_identity: None,
            security: ConnectionSecurity::None,
        }
    }

    #[test]
    fn a_connection_is_listed_while_its_guard_lives() {
        let table = Connections::default();
        let guards: Vec<_> =
            (0..40).map(|i| table.open(info(if i % 2 == 0 { "even" } else { "odd" }))).collect();
        guards[1].set_policy(Some("allow-web".into()));
        guards[1].counters().sent_bytes.store(9, Ordering::Relaxed);
        guards[1].update(|progress| progress.protocol = Protocol::Http2);

        let list = table.list();
        assert_eq!(list.len(), 40);
        assert!(list.is_sorted_by_key(|entry| entry.started));
        let entry = list.iter().find(|entry| entry.id == guards[1].id()).unwrap();
        assert_eq!(entry.progress.policy.as_deref(), Some("allow-web"));
        assert_eq!(entry.progress.protocol, Protocol::Http2);
        assert_eq!(entry.sent_bytes, 9);
        let counts: Vec<_> = table.by_workload().into_values().collect();
        assert_eq!(counts, [20, 20]);

        drop(guards);
        assert!(table.is_empty());
        assert!(table.list().is_empty());
    }

    #[test]
    fn only_the_connections_that_are_meant_are_cancelled() {
        let table = Connections::default();
        let (a, b, c) = (table.open(info("x")), table.open(info("x")), table.open(info("y")));
        assert!(table.cancel(a.id()));
        assert!(a.cancelled().is_cancelled() && !b.cancelled().is_cancelled());
        assert_eq!(table.cancel_workload(&WorkloadUid("x".into())), 2);
        assert!(b.cancelled().is_cancelled() && !c.cancelled().is_cancelled());
        assert_eq!(table.cancel_all(), 3);
        assert!(c.cancelled().is_cancelled());
        let gone = a.id();
        drop(a);
        assert!(!table.cancel(gone));
    }
}
