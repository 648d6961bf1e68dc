//! Clusters of names: their addresses, by the node's own resolver.
//!
//! What is found goes to the one writer of snapshots, as endpoints. A name that can't be
//! resolved keeps the addresses it had.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    net::lookup_host,
    sync::{Semaphore, mpsc},
    time,
};
use tokio_util::task::AbortOnDropHandle;

use super::Agent;
use crate::{
    model::cluster::{ClusterName, Discovery, Dns, LoadAssignment},
    route::below,
    snapshot::{Changes, Removed, Resources},
};

/// So many names are looked up at once; others wait.
const AT_ONCE_MAX: usize = 16;
/// For one name.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Of one name, more are not used.
const ADDRESSES_MAX: usize = 256;

/// What was found, or that nobody needs it any more.
#[derive(Debug)]
pub(super) struct Found {
    cluster: ClusterName,
    assignment: Arc<str>,
    /// What it was found for.
    of: Option<(Arc<Dns>, LoadAssignment)>,
}

struct Running {
    dns: Arc<Dns>,
    /// What was told last.
    latest: Arc<Mutex<Option<LoadAssignment>>>,
    _task: AbortOnDropHandle<()>,
}

/// Resolves what snapshots want resolved, until there are no more.
pub(super) async fn follow(agent: Arc<Agent>, found: mpsc::Sender<Found>) {
    let places = Arc::new(Semaphore::new(AT_ONCE_MAX));
    let mut running: HashMap<ClusterName, Running> = HashMap::new();
    let mut changes = agent.dataplane.snapshot.changes();
    loop {
        changes.borrow_and_update();
        let snapshot = agent.dataplane.snapshot.load();
        let mut before = std::mem::take(&mut running);
        let mut again = Vec::new();
        for cluster in snapshot.clusters.values() {
            let Discovery::Dns(dns) = &cluster.discovery else { continue };
            let name = cluster.name.clone();
            let kept = before.remove(&name).filter(|known| Arc::ptr_eq(&known.dns, dns));
            let of = kept.unwrap_or_else(|| begin(&name, dns, &places, &found));
            // A snapshot that was made from nothing lacks what was found.
            if !snapshot.assignments.contains_key(&dns.assignment) {
                let latest = of.latest.lock().unwrap_or_else(PoisonError::into_inner).clone();
                again.extend(latest.map(|latest| of.found(&name, latest)));
            }
            running.insert(name, of);
        }
        let gone = before.into_iter().map(|(cluster, of)| {
            let assignment = Arc::clone(&of.dns.assignment);
            Found { cluster, assignment, of: None }
        });
        let gone: Vec<_> = gone.filter(|of| !running.contains_key(&of.cluster)).collect();
        drop(snapshot);
        for news in again.into_iter().chain(gone) {
            if found.send(news).await.is_err() {
                return;
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

impl Running {
    fn found(&self, cluster: &ClusterName, latest: LoadAssignment) -> Found {
        let (cluster, assignment) = (cluster.clone(), Arc::clone(&self.dns.assignment));
        Found { cluster, assignment, of: Some((Arc::clone(&self.dns), latest)) }
    }
}

fn begin(
    cluster: &ClusterName,
    dns: &Arc<Dns>,
    places: &Arc<Semaphore>,
    found: &mpsc::Sender<Found>,
) -> Running {
    let latest = Arc::default();
    let task = watch(
        cluster.clone(),
        Arc::clone(dns),
        Arc::clone(&latest),
        Arc::clone(places),
        found.clone(),
    );
    let task = AbortOnDropHandle::new(tokio::spawn(task));
    Running { dns: Arc::clone(dns), latest, _task: task }
}

async fn watch(
    cluster: ClusterName,
    dns: Arc<Dns>,
    latest: Arc<Mutex<Option<LoadAssignment>>>,
    places: Arc<Semaphore>,
    found: mpsc::Sender<Found>,
) {
    let random = &mut |below| rand::random_range(0..below);
    let mut addresses: HashMap<Arc<str>, Vec<IpAddr>> = HashMap::new();
    let mut told: Option<HashMap<Arc<str>, Vec<IpAddr>>> = None;
    let mut failures = 0_u32;
    loop {
        let mut failed = false;
        for host in dns.hosts() {
            let Ok(_place) = places.acquire().await else { return };
            match look_up(&host).await {
                Ok(of_name) => _ = addresses.insert(host, of_name),
                Err(reason) => {
                    failed = true;
                    tracing::warn!(%cluster, %host, reason, "a name can't be resolved");
                }
            }
        }
        // Where nothing is known yet, that is told as well: it is waited for no longer.
        if told.as_ref() != Some(&addresses) {
            let resolved = dns.resolved(&addresses);
            *latest.lock().unwrap_or_else(PoisonError::into_inner) = Some(resolved.clone());
            let assignment = Arc::clone(&dns.assignment);
            let of = Some((Arc::clone(&dns), resolved));
            let news = Found { cluster: cluster.clone(), assignment, of };
            if found.send(news).await.is_err() {
                return;
            }
            told = Some(addresses.clone());
        }
        failures = if failed { failures.saturating_add(1) } else { 0 };
        let pause = match failures {
            0 => dns.refresh.saturating_add(below(dns.jitter, random)),
            failures => {
                let (base, most) = dns.failure_refresh;
                base.saturating_mul(1 << (failures - 1).min(16)).min(most)
            }
        };
        time::sleep(pause).await;
    }
}

/// A name's addresses, in an order of their own so that the same ones are no news.
async fn look_up(host: &str) -> Result<Vec<IpAddr>, String> {
    let looked_up = time::timeout(TIMEOUT, lookup_host((host, 0))).await;
    let found = looked_up.map_err(|_| format!("no answer within {TIMEOUT:?}"))?;
    let mut addresses: Vec<_> = found
        .map_err(|error| error.to_string())?
        .map(|address| address.ip().to_canonical())
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.truncate(ADDRESSES_MAX);
    Ok(addresses)
}

impl Agent {
    /// Applies what a name's addresses have become; whether anything changed.
    pub(super) fn take_found(&self, found: Found) -> bool {
        let Found { cluster, assignment, of } = found;
        let cell = &self.dataplane.snapshot;
        let changes = match of {
            Some((dns, resolved)) => {
                let snapshot = cell.load();
                let discovery = snapshot.cluster(&cluster).map(|cluster| &cluster.discovery);
                // Of another version of the cluster: a task of its own is at work.
                if !matches!(discovery, Some(Discovery::Dns(now)) if Arc::ptr_eq(now, &dns)) {
                    return false;
                }
                let assignments = vec![(assignment, resolved)];
                let updated = Resources { assignments, ..Resources::default() };
                Changes { updated, removed: Removed::default() }
            }
            None => {
                let assignments = vec![assignment];
                let removed = Removed { assignments, ..Removed::default() };
                Changes { updated: Resources::default(), removed }
            }
        };
        let label = cell.load().label.clone();
        match cell.update(changes, label) {
            Ok(version) => {
                self.dataplane.metrics.config_applied(version);
                tracing::debug!(%cluster, version, "addresses of a cluster's names applied");
                true
            }
            Err(reasons) => {
                tracing::error!(%cluster, ?reasons, "addresses of a cluster's names are refused");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_and_addresses_are_looked_up() {
        let local = look_up("localhost").await.unwrap();
        assert!(!local.is_empty() && local.iter().all(IpAddr::is_loopback), "{local:?}");
        assert_eq!(look_up("10.1.2.3").await.unwrap(), ["10.1.2.3".parse::<IpAddr>().unwrap()]);
        assert!(look_up("no-such-name.invalid").await.is_err());
    }
}
