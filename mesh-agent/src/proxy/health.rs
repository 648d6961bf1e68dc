//! Active health checks.
//!
//! They are the agent's own: made from its network namespace, on nobody's behalf, with no
//! workload's identity. What they take is what the cluster says for everybody: its TLS with
//! the certificate that it names. So an endpoint that is reached by HBONE, which asks who
//! is there, can't be checked: it counts as unhealthy, and the log says why.
//!
//! What comes of a check is judged by `route`; this room asks.

mod grpc;
mod http;
mod tcp;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::Full;
use tokio::{sync::Semaphore, time};
use tokio_util::task::AbortOnDropHandle;

use super::{Dataplane, Origination, story};
use crate::{
    model::cluster::{ClusterName, Endpoint, HealthCheck, Probe},
    route::{CheckResult, Destination, below, decide_check},
    snapshot::Snapshot,
    transport::{
        dial,
        http_pool::{BoxedIo, HttpPool, HttpPoolOptions},
    },
};

/// So many checks are on their way at once; others wait.
const AT_ONCE_MAX: usize = 128;

/// What connections for checks are kept for between two of them.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// Every endpoint that is checked, each with a task of its own.
pub struct HealthChecks {
    dataplane: Arc<Dataplane>,
    checks: HashMap<(ClusterName, SocketAddr), Running>,
    places: Arc<Semaphore>,
}

struct Running {
    endpoint: Arc<Endpoint>,
    check: Arc<HealthCheck>,
    _task: AbortOnDropHandle<()>,
}

impl std::fmt::Debug for HealthChecks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HealthChecks").field("checks", &self.checks.len()).finish_non_exhaustive()
    }
}

impl HealthChecks {
    /// Nobody is checked yet.
    pub fn new(dataplane: Arc<Dataplane>) -> Self {
        Self { dataplane, checks: HashMap::new(), places: Arc::new(Semaphore::new(AT_ONCE_MAX)) }
    }

    /// Checks what `snapshot` wants checked, and nothing else. Balancers have to know of it
    /// first.
    pub fn follow(&mut self, snapshot: &Snapshot) {
        let mut before = std::mem::take(&mut self.checks);
        for cluster in snapshot.clusters.values() {
            let Some(check) = &cluster.monitoring.health_check else { continue };
            let Some(assignment) = snapshot.assignment(cluster) else { continue };
            for endpoint in assignment.endpoints() {
                if endpoint.check.as_ref().is_some_and(|own| own.disabled) {
                    continue;
                }
                let key = (cluster.name.clone(), endpoint.address);
                let same = |running: &Running| {
                    Arc::ptr_eq(&running.check, check) && running.endpoint == *endpoint
                };
                let running = match before.remove(&key) {
                    Some(running) if same(&running) => running,
                    _ => self.begin(&cluster.name, endpoint, check),
                };
                self.checks.insert(key, running);
            }
        }
    }

    fn begin(
        &self,
        cluster: &ClusterName,
        endpoint: &Arc<Endpoint>,
        check: &Arc<HealthCheck>,
    ) -> Running {
        let session = Session {
            dataplane: Arc::clone(&self.dataplane),
            cluster: cluster.clone(),
            endpoint: Arc::clone(endpoint),
            check: Arc::clone(check),
            kept: Kept::default(),
        };
        let task = tokio::spawn(session.run(Arc::clone(&self.places)));
        let (endpoint, check) = (Arc::clone(endpoint), Arc::clone(check));
        Running { endpoint, check, _task: AbortOnDropHandle::new(task) }
    }
}

/// One endpoint's checks, one after the other.
struct Session {
    dataplane: Arc<Dataplane>,
    cluster: ClusterName,
    endpoint: Arc<Endpoint>,
    check: Arc<HealthCheck>,
    kept: Kept,
}

/// Connections that are kept from one check to the next.
struct Kept {
    pool: Arc<HttpPool<Full<Bytes>>>,
    stream: Option<BoxedIo>,
}

impl Default for Kept {
    fn default() -> Self {
        let options = HttpPoolOptions {
            idle_max: 1,
            http2_connections_max: 1,
            idle_timeout: IDLE_TIMEOUT,
            ..HttpPoolOptions::default()
        };
        Self { pool: Arc::new(HttpPool::new(options)), stream: None }
    }
}

/// Why an endpoint is not well.
struct Ill {
    /// It said so itself.
    at_once: bool,
    excluded: bool,
    reason: String,
}

impl Ill {
    /// It could not be asked, or did not answer.
    fn unreachable(reason: impl Into<String>) -> Self {
        Self { at_once: false, excluded: false, reason: reason.into() }
    }

    /// It answered, and not as one that is well.
    fn by_answer(reason: impl Into<String>) -> Self {
        Self { at_once: true, excluded: false, reason: reason.into() }
    }
}

/// Whether an endpoint that is well is degraded.
type Verdict = Result<bool, Ill>;

impl Session {
    async fn run(mut self, places: Arc<Semaphore>) {
        let random = &mut |below| rand::random_range(0..below);
        time::sleep(below(self.check.initial_jitter, random)).await;
        loop {
            let verdict = {
                let Ok(_place) = places.acquire().await else { return };
                self.ask().await
            };
            if verdict.is_err() || !self.check.reuse_connection {
                self.kept = Kept::default();
            }
            let result = match &verdict {
                Ok(degraded) => CheckResult::Passed { degraded: *degraded },
                Err(Ill { at_once, excluded, .. }) => {
                    CheckResult::Failed { at_once: *at_once, excluded: *excluded }
                }
            };
            let balancers = &self.dataplane.balancers;
            let (of, now) = ((&self.cluster, self.endpoint.address), Instant::now());
            let failed_before = balancers.has_failed(&self.cluster, self.endpoint.address);
            let pause = balancers.checked(of, &self.check, result, now, random);
            self.tell(&verdict, failed_before);
            match pause {
                Some(pause) => time::sleep(pause).await,
                // It is on its way out.
                None => return,
            }
        }
    }

    async fn ask(&mut self) -> Verdict {
        let destination =
            decide_check(&self.dataplane.snapshot.load(), &self.cluster, &self.endpoint);
        let Some(destination) = destination else {
            return Err(Ill::by_answer("can't be checked: it is reached by HBONE, or loopback"));
        };
        let check = Arc::clone(&self.check);
        let asking = async {
            match &check.probe {
                Probe::Http(probe) => self.http(&destination, probe).await,
                Probe::Tcp(probe) => self.tcp(&destination, probe).await,
                Probe::Grpc(probe) => self.grpc(&destination, probe).await,
            }
        };
        match time::timeout(check.timeout, asking).await {
            Ok(verdict) => verdict,
            Err(_) => Err(Ill::unreachable(format!("no answer within {:?}", check.timeout))),
        }
    }

    fn tell(&self, verdict: &Verdict, failed_before: bool) {
        let (cluster, endpoint) = (&self.cluster, self.endpoint.address);
        let failed = self.dataplane.balancers.has_failed(cluster, endpoint);
        match verdict {
            Err(Ill { reason, .. }) if failed && !failed_before => {
                tracing::warn!(%cluster, %endpoint, reason, "endpoint is unhealthy");
            }
            Err(Ill { reason, .. }) if self.check.log_failures => {
                tracing::info!(%cluster, %endpoint, reason, "health check failed");
            }
            Err(Ill { reason, .. }) => {
                tracing::debug!(%cluster, %endpoint, reason, "health check failed");
            }
            Ok(_) if failed_before && !failed => {
                tracing::info!(%cluster, %endpoint, "endpoint is healthy");
            }
            Ok(_) if self.check.log_successes => {
                tracing::info!(%cluster, %endpoint, "health check passed");
            }
            Ok(_) => {}
        }
    }

    /// Where it is asked.
    fn address(&self) -> SocketAddr {
        let own = self.endpoint.check.as_ref().and_then(|check| check.address);
        own.unwrap_or(self.endpoint.address)
    }

    /// For which host.
    fn host<'a>(&'a self, of_check: Option<&'a Arc<str>>) -> &'a str {
        let own = self.endpoint.check.as_ref().and_then(|check| check.hostname.as_ref());
        own.or(of_check).unwrap_or(&self.cluster.0)
    }
}

/// A new connection, for as long as its check has.
async fn connect(
    address: SocketAddr,
    destination: &Destination,
    tls: Option<&Origination>,
    timeout: Duration,
) -> Result<BoxedIo, String> {
    let stream =
        dial::connect_from_here(address, destination.connection_limits().keepalive, timeout)
            .await
            .map_err(|error| story(&error))?;
    match tls {
        None => Ok(Box::new(stream)),
        Some(tls) => match tls.run(stream, destination, timeout).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(failure) => Err(failure.detail),
        },
    }
}

/// Whether all of `wanted` is in what came, in this order.
fn has_all(wanted: &[Bytes], mut came: &[u8]) -> bool {
    wanted.iter().all(|block| {
        let found = came.windows(block.len()).position(|window| window == &block[..]);
        match found {
            Some(at) => {
                came = &came[at + block.len()..];
                true
            }
            None => false,
        }
    })
}

#[cfg(test)]
mod tests;
