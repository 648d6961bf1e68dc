//! The one writer of snapshots.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{mpsc, watch},
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use super::{Agent, dns::Found, memory};
use crate::{
    admin::{RejectedConfig, Timestamp},
    config::SourceConfig,
    model::runtime::LayeredRuntime,
    observe::log_limit::LogLimit,
    proxy::on_demand::{Discovery, Sought},
    snapshot::{RejectedResource, Resources},
    source::{
        AdsSource, AdsStatus, Delivery, Delta, FileSource, LastGood, ResourceType, Restored,
        Update, Wishes,
    },
    transport::hbone::HBONE_PORT,
};

/// How long after a change unused connections and balancers are let go of.
const TIDY_AFTER: Duration = Duration::from_secs(1);

static APPLIED: LogLimit = LogLimit::new();

/// The one source of configuration.
pub(super) enum Source {
    Files(FileSource),
    ControlPlane(Box<AdsSource>),
}

impl Source {
    /// A directory that is away is no reason not to serve the last good configuration.
    pub(super) fn open(config: &SourceConfig, last_good: &LastGood) -> anyhow::Result<Self> {
        match config {
            SourceConfig::ControlPlane(options) => {
                Ok(Self::ControlPlane(Box::new(AdsSource::new(options.as_ref().clone()))))
            }
            SourceConfig::Directory(directory) => match FileSource::open(directory) {
                Ok(source) => Ok(Self::Files(source)),
                Err(error) if last_good.is_there() => {
                    tracing::error!(%error, "the configuration's source is away; waiting for it");
                    Ok(Self::Files(FileSource::awaiting(directory)?))
                }
                Err(error) => Err(error.into()),
            },
        }
    }

    /// Asks for these layers of runtime values, where they are to be asked for.
    pub(super) fn want_runtime(&self, layers: &LayeredRuntime) {
        if let Self::ControlPlane(source) = self {
            for name in layers.resource_names() {
                source.wishes().want(ResourceType::Runtime, Arc::clone(name));
            }
        }
    }

    pub(super) fn ads_status(&self) -> Option<watch::Receiver<Arc<AdsStatus>>> {
        match self {
            Self::Files(_) => None,
            Self::ControlPlane(source) => Some(source.status()),
        }
    }

    /// Where a control plane is asked for more than its resources need.
    pub(super) fn wishes(&self) -> Option<Wishes> {
        match self {
            Self::Files(_) => None,
            Self::ControlPlane(source) => Some(source.wishes()),
        }
    }

    /// Where requests can ask for what is not there.
    pub(super) fn discovery(&self) -> Option<Arc<dyn Discovery>> {
        self.wishes().map(|wishes| Arc::new(Asks(wishes)) as Arc<dyn Discovery>)
    }

    /// `restored`: the last good configuration is in force.
    pub(super) fn spawn(
        self,
        restored: bool,
        updates: mpsc::Sender<Update>,
        stop: CancellationToken,
    ) {
        match self {
            Self::Files(source) => tokio::spawn(source.watch(updates, stop)),
            Self::ControlPlane(mut source) => {
                if restored {
                    source.restored();
                }
                tokio::spawn(source.watch(updates, stop))
            }
        };
    }
}

/// Requests ask by the source's own names.
struct Asks(Wishes);

impl Discovery for Asks {
    fn want(&self, sought: &Sought) {
        let (kind, name) = key(sought);
        self.0.want(kind, name);
    }

    fn unwant(&self, sought: &Sought) {
        let (kind, name) = key(sought);
        self.0.unwant(kind, &name);
    }
}

fn key(sought: &Sought) -> (ResourceType, Arc<str>) {
    match sought {
        Sought::Cluster(name) => (ResourceType::Cluster, Arc::clone(name)),
        Sought::VirtualHost(name) => (ResourceType::VirtualHost, Arc::clone(name)),
        Sought::Routes(name) => (ResourceType::Routes, Arc::clone(name)),
    }
}

/// `None`: no request asks for such things.
fn sought((kind, name): (ResourceType, Arc<str>)) -> Option<Sought> {
    match kind {
        ResourceType::Cluster => Some(Sought::Cluster(name)),
        ResourceType::VirtualHost => Some(Sought::VirtualHost(name)),
        ResourceType::Routes => Some(Sought::Routes(name)),
        _ => None,
    }
}

/// Without an update for this long, the source has let go of what it read with.
const SETTLED: Duration = Duration::from_secs(10);

/// Applies what the source delivers, in order, until it delivers no more.
pub(super) async fn follow(
    agent: Arc<Agent>,
    mut updates: mpsc::Receiver<Update>,
    mut resolved: mpsc::Receiver<Found>,
) {
    // What was restored from disk left memory behind too.
    let mut release_at = Some(Instant::now() + SETTLED);
    // When what nothing leads to any more is let go of: not for each of many small
    // changes, since it means a look at every connection that is kept.
    let mut tidy_at = None;
    loop {
        tokio::select! {
            biased;
            update = updates.recv() => {
                let Some(update) = update else { return };
                tidy_at = agent.take(update, tidy_at);
                release_at = Some(Instant::now() + SETTLED);
            }
            Some(found) = resolved.recv() => {
                if agent.take_found(found) {
                    tidy_at = tidy_at.or(Some(Instant::now() + TIDY_AFTER));
                }
            }
            () = until(tidy_at) => {
                agent.tidy();
                tidy_at = None;
            }
            () = until(release_at) => {
                memory::release();
                release_at = None;
            }
        }
    }
}

/// Never, where there is no such time.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Puts the last good configuration in force, if there is one, before any source speaks.
pub(super) async fn restore(agent: &Arc<Agent>) {
    let last_good = Arc::clone(&agent.last_good);
    let loaded = match tokio::task::spawn_blocking(move || last_good.load()).await {
        Ok(loaded) => loaded,
        Err(error) => return tracing::error!(%error, "the last good configuration was not read"),
    };
    let Restored { mut resources, label, saved_at, versions } = match loaded {
        Ok(Some(restored)) => restored,
        Ok(None) => return,
        Err(error) => return tracing::error!(%error, "there is no last good configuration"),
    };
    // Layers that were named then and are not any more.
    resources.runtime.retain(|(name, _)| agent.config.runtime.has_resource(name));
    match agent.dataplane.snapshot.replace(resources, label.clone()) {
        Ok(version) => {
            *agent.restored() = Some(saved_at);
            *agent.versions() = versions;
            agent.dataplane.metrics.config_applied(version);
            let age = saved_at.elapsed().unwrap_or_default();
            tracing::warn!(
                label,
                age_seconds = age.as_secs(),
                "serving the last good configuration from disk until the source delivers"
            );
        }
        Err(reasons) => {
            for reason in &reasons {
                tracing::error!("the last good configuration is refused: {reason}");
            }
        }
    }
}

impl Agent {
    /// Applies one update; returns when to tidy up, which was to be at `tidy_at`.
    fn take(&self, update: Update, tidy_at: Option<Instant>) -> Option<Instant> {
        match update {
            Update::Resources(Delivery { resources, label, raw, refused }) => {
                let unnamed = self.unnamed_layers(&resources);
                if !unnamed.is_empty() {
                    self.reject(&unnamed);
                    return tidy_at;
                }
                let replaced = self.dataplane.snapshot.replace(resources, label.clone());
                if self.judged(replaced, &label, refused) {
                    self.tidy();
                    self.versions().replaced(&raw, SystemTime::now());
                    self.last_good.replaced(raw, &label);
                    return None;
                }
            }
            Update::Changes(Delta { changes, label, raw, refused }) => {
                let updated = self.dataplane.snapshot.update(changes, label.clone());
                if self.judged(updated, &label, refused) {
                    self.versions().applied(&raw, SystemTime::now());
                    self.last_good.changed(raw, &label);
                    return tidy_at.or(Some(Instant::now() + TIDY_AFTER));
                }
            }
            Update::Rejected(reasons) => self.reject(&reasons),
            Update::Answered(names) => {
                let answered: Vec<_> = names.into_iter().filter_map(sought).collect();
                self.dataplane.http.on_demand.answered(&answered);
            }
        }
        tidy_at
    }

    /// Files may hold layers of the runtime that nobody has given a place.
    fn unnamed_layers(&self, resources: &Resources) -> Vec<RejectedResource> {
        let unnamed = resources.runtime.iter().map(|(name, _)| name);
        let unnamed = unnamed.filter(|name| !self.config.runtime.has_resource(name));
        let refused = unnamed.map(|name| RejectedResource {
            path: format!("runtime[{name}]"),
            reason: "is no layer of the runtime: name it with --xds-runtime-layer".to_owned(),
        });
        refused.collect()
    }

    /// Follows up on an attempt to apply something; whether that went well.
    fn judged(
        &self,
        applied: Result<u64, Vec<RejectedResource>>,
        label: &str,
        still_refused: bool,
    ) -> bool {
        match applied {
            Ok(version) => {
                if !still_refused {
                    *self.last_rejected() = None;
                }
                self.applied(version, label);
                true
            }
            Err(reasons) => {
                self.reject(&reasons);
                false
            }
        }
    }

    fn applied(&self, version: u64, label: &str) {
        let dataplane = &self.dataplane;
        let snapshot = dataplane.snapshot.load();
        *self.restored() = None;
        dataplane.metrics.config_applied(version);
        // A control plane that flaps must not fill the disk.
        if let Some(suppressed) = APPLIED.allows() {
            tracing::info!(
                version,
                label,
                listeners = snapshot.listeners.len(),
                suppressed,
                "configuration applied"
            );
        }
    }

    /// Lets go of what the configuration in force does not lead to any more.
    fn tidy(&self) {
        let dataplane = &self.dataplane;
        let snapshot = dataplane.snapshot.load();
        dataplane.balancers.retain(&snapshot);
        dataplane.http.breakers.forget_idle();
        dataplane.http.clusters.retain(|cluster| snapshot.cluster(cluster).is_some());
        dataplane.http.filters.forget_idle();
        let workloads = &snapshot.workloads;
        dataplane.connector.hbone.retain(|key| {
            key.tunnel.port() == HBONE_PORT && workloads.has_tunnel(key.tunnel.ip(), &key.identity)
        });
        // Connections to local applications belong to their clients, not to endpoints.
        let tls = &dataplane.connector.tls;
        tls.retain(|origination| {
            let cluster = snapshot.cluster(&origination.cluster);
            let tls = cluster.and_then(|cluster| cluster.tls_at(origination.place));
            tls.is_some_and(|tls| Arc::ptr_eq(tls.settings, &origination.settings))
        });
        dataplane.downstream_tls.retain(|termination| {
            let chains = snapshot.listeners.iter().flat_map(|listener| listener.chains());
            let mut tls = chains.filter_map(|chain| chain.tls.as_ref());
            tls.any(|tls| Arc::ptr_eq(&tls.settings, &termination.settings))
        });
        let current = tls.current();
        dataplane.http.pool.retain(|key| {
            let reachable = key.client.is_some() || workloads.has(key.address);
            // What was authenticated by certificates of before serves no new request.
            reachable && key.tls.as_ref().is_none_or(|tls_key| current.contains(&tls_key.context))
        });
    }

    fn reject(&self, reasons: &[RejectedResource]) {
        let in_force = self.dataplane.snapshot.load().version;
        for reason in reasons {
            tracing::error!(in_force, "configuration refused: {reason}");
        }
        self.dataplane.metrics.config_rejected();
        *self.last_rejected() = Some(RejectedConfig {
            at: Timestamp::now(),
            reasons: reasons.iter().map(ToString::to_string).collect(),
        });
    }
}
