//! What the admin server can ask of the agent.

use std::sync::{Arc, atomic::Ordering};

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::{Agent, gateway, pods::RunningPod};
use crate::{
    admin::{
        AgentControl, CertificateView, ConfigDump, ConnectionView, ControlError, EnrollRequest,
        HboneView, KernelPathView, MissingView, PodView, Readiness, SnapshotView, StatusView,
        VerdictView, VersionView, XdsView,
    },
    capture,
    identity::CertificateStatus,
    model::{budget::Budget, workload::WorkloadUid},
    observe::metrics::{XdsStreams, XdsType},
    source::{AdsStatus, StreamState, StreamStatus},
};

/// The agent as `admin` sees it.
pub(super) struct Control(pub(super) Arc<Agent>);

impl AgentControl for Control {
    fn enroll(&self, request: EnrollRequest) -> BoxFuture<'_, Result<PodView, ControlError>> {
        let agent = Arc::clone(&self.0);
        // A task of its own: the client may go away in the middle.
        let enrolled = tokio::spawn(async move {
            let uid = request.uid.clone();
            let request = agent.enrollment(request)?;
            agent.enroll(request).await?;
            agent.pod(&uid).ok_or(ControlError::NotFound(uid))
        });
        Box::pin(async move {
            enrolled.await.unwrap_or_else(|error| Err(ControlError::Failed(error.to_string())))
        })
    }

    fn unenroll(&self, uid: WorkloadUid) -> BoxFuture<'_, Result<(), ControlError>> {
        let agent = Arc::clone(&self.0);
        let unenrolled = tokio::spawn(async move { agent.unenroll(&uid).await });
        Box::pin(async move {
            unenrolled.await.unwrap_or_else(|error| Err(ControlError::Failed(error.to_string())))
        })
    }

    fn drain(&self) {
        self.0.stop.cancel();
    }

    fn pods(&self) -> Vec<PodView> {
        let connections = self.0.dataplane.connections.by_workload();
        let count = |uid| connections.get(uid).copied().unwrap_or_default();
        self.0.pods.running().iter().map(|(uid, pod)| view(pod, count(uid))).collect()
    }

    fn status(&self) -> StatusView {
        let agent = &self.0;
        let config = &agent.config;
        let pool = agent.dataplane.connector.hbone.status();
        let pooled = || pool.iter().flat_map(|peer| &peer.connections);
        StatusView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: config.node.name.clone(),
            instance: config.capture.instance.clone(),
            trust_domain: config.node.trust_domain.to_string(),
            started_at: agent.started_at.into(),
            uptime_seconds: agent.started_at.elapsed().unwrap_or_default().as_secs(),
            readiness: self.readiness(),
            draining: agent.given.is_cancelled(),
            snapshot: SnapshotView::from(&*agent.dataplane.snapshot.load()),
            last_rejected: agent.last_rejected().clone(),
            xds: agent.xds(),
            certificates: agent.dataplane.identities.status().iter().map(certificate).collect(),
            pods: agent.pods.running().len(),
            connections: agent.dataplane.connections.len(),
            hbone: HboneView {
                connections: pooled().count(),
                streams: pooled().map(|connection| connection.streams).sum(),
            },
            kernel_path: KernelPathView {
                off: agent.kernel_path.clone().err(),
                services: agent.kernel_services.load(Ordering::Relaxed),
                connections: agent.capture.kernel_connections().len(),
                splice: agent.splice(),
                agent_down: config.capture.agent_down,
            },
            unguarded: missing(agent.capture.unguarded()),
            not_redirected: missing(agent.capture.not_redirected()),
            off_kernel_path: missing(agent.capture.off_kernel_path()),
            self_test: agent.self_test.get().cloned(),
            maps: agent.maps(),
            bpf: agent
                .verdicts()
                .into_iter()
                .map(|(verdict, count)| VerdictView { verdict: verdict.to_owned(), count })
                .collect(),
        }
    }

    fn config_dump(&self) -> ConfigDump {
        let snapshot = self.0.dataplane.snapshot.load();
        let dump = ConfigDump::of(&snapshot, self.0.last_rejected().clone());
        let versions = VersionView::all(&self.0.versions());
        ConfigDump { versions, xds: self.0.xds(), ..dump }
    }

    fn connections(&self) -> Vec<ConnectionView> {
        self.0.dataplane.connections.list().into_iter().map(Into::into).collect()
    }

    fn readiness(&self) -> Readiness {
        let mut reasons = Vec::new();
        if self.0.given.is_cancelled() {
            reasons.push("draining".to_owned());
        }
        if self.0.dataplane.snapshot.load().version == 0 {
            let rejected = self.0.last_rejected().clone();
            reasons.push(match rejected {
                Some(rejected) => {
                    format!("no configuration was good so far: {}", rejected.reasons.join("; "))
                }
                None => match self.0.streams() {
                    None => "no configuration has been applied yet".to_owned(),
                    Some(status) => {
                        format!("no configuration has been applied yet: {}", waits_for(&status))
                    }
                },
            });
        }
        for (uid, why) in self.0.pods.waiting().iter() {
            reasons.push(format!("pod {uid} is not served yet: {why}"));
        }
        for (address, why) in gateway::unbound(&self.0) {
            reasons.push(format!("gateway listener {address} is not bound: {why}"));
        }
        let notes = self.0.restored().map(|saved_at| {
            let age = saved_at.elapsed().unwrap_or_default().as_secs();
            format!(
                "serving the last good configuration from disk, {age} s old: the source has not \
                 delivered one"
            )
        });
        Readiness { notes: notes.into_iter().collect(), ..Readiness::from_reasons(reasons) }
    }

    fn metrics(&self) -> String {
        let dataplane = &self.0.dataplane;
        let metrics = &dataplane.metrics;
        metrics.bpf_verdicts(self.0.verdicts());
        let status = self.status();
        metrics.hbone_pool(status.hbone.connections, status.hbone.streams);
        metrics.ready(status.readiness.ready);
        Budget::all().into_iter().for_each(|account| metrics.memory_account(account));
        for certificate in dataplane.identities.status() {
            if let Some(not_after) = certificate.not_after {
                metrics.certificate(&certificate.identity, system_time(not_after));
            }
        }
        if let Some(status) = self.0.streams() {
            let types = status.types.iter().map(|of| XdsType {
                kind: of.kind,
                acks: of.acks,
                nacks: of.nacks,
                accepted: of.accepted,
                warming: of.warming.len(),
                refusing: of.refusing,
                last_ack: of.last_ack,
            });
            let streams = XdsStreams {
                connected: status.is_connected(),
                synced: status.is_synced(),
                tries: status.streams.values().map(|stream| stream.tries).sum(),
            };
            metrics.xds(streams, types);
        }
        metrics.encode(&dataplane.connections)
    }
}

/// What keeps the first configuration.
fn waits_for(status: &AdsStatus) -> String {
    if let Some(stream) = status.worst().filter(|stream| stream.state != StreamState::Synced) {
        let StreamStatus { server, state, last_error, .. } = stream;
        let why = last_error.as_ref().map_or_else(String::new, |error| format!(": {error}"));
        return match state {
            StreamState::BackingOff => format!("no control plane can be used{why}"),
            StreamState::Connecting => format!("connecting to {server}{why}"),
            StreamState::Connected | StreamState::Synced => {
                format!("{server} is connected and has not answered")
            }
        };
    }
    let warming = status.types.iter().find_map(|of| Some((of.kind, of.warming.first()?)));
    if let Some((kind, of)) = warming {
        return format!("{kind} {} waits for {}", of.name, of.waits_for);
    }
    if let Some(of) = status.types.iter().find(|of| of.is_silent()) {
        return format!("the control plane has not sent its {}", of.kind);
    }
    match status.types.iter().find_map(|of| Some((of.kind, of.awaited.first()?))) {
        Some((kind, name)) => format!("{kind}[{name}] was asked for and has not come"),
        None => "the control plane has not said all that is needed".to_owned(),
    }
}

impl Agent {
    fn xds(&self) -> Option<XdsView> {
        self.streams().map(|status| XdsView::from(&*status))
    }

    /// The streams to the control plane and to a server of SDS's own.
    fn streams(&self) -> Option<Arc<AdsStatus>> {
        let [ads, sds] = [&self.ads, &self.sds].map(|status| {
            let status: Option<&watch::Receiver<_>> = status.as_ref();
            status.map(|status| Arc::clone(&status.borrow()))
        });
        let (Some(mut joined), Some(sds)) = (ads.clone(), sds.clone()) else { return ads.or(sds) };
        let status = Arc::make_mut(&mut joined);
        // Behind the control plane's, whose places may be taken and given back.
        let places = (usize::MAX / 2..).zip(sds.streams.values().cloned());
        status.streams.extend(places);
        for of in &sds.types {
            match status.types.iter_mut().find(|known| known.kind == of.kind) {
                // The control plane is not asked for any, as a rule.
                Some(known) if known.accepted == 0 && of.acks + of.nacks > 0 => *known = of.clone(),
                Some(_) => {}
                None => status.types.push(of.clone()),
            }
        }
        Some(joined)
    }

    fn pod(&self, uid: &WorkloadUid) -> Option<PodView> {
        let connections = self.dataplane.connections.by_workload();
        let count = connections.get(uid).copied().unwrap_or_default();
        self.pods.running().get(uid).map(|pod| view(pod, count))
    }

    fn verdicts(&self) -> Vec<(&'static str, u64)> {
        self.capture.counters().unwrap_or_else(|error| {
            tracing::error!(%error, "the kernel's counters can't be read");
            Vec::new()
        })
    }
}

fn missing(pods: Vec<(WorkloadUid, String)>) -> Vec<MissingView> {
    pods.into_iter().map(|(uid, why)| MissingView { pod: uid.to_string(), why }).collect()
}

fn view(running: &RunningPod, connections: usize) -> PodView {
    let workload = &running.pod.workload;
    PodView {
        uid: workload.uid.clone(),
        name: workload.name.clone(),
        identity: workload.identity.clone(),
        addresses: workload.addresses.clone(),
        mtls: workload.mtls,
        netns: match &running.request.netns {
            capture::NetnsRef::Path(path) => path.display().to_string(),
            capture::NetnsRef::Pid(pid) => format!("pid {pid}"),
        },
        labels: workload.labels.clone(),
        captured: true,
        connections,
        enrolled_at: running.enrolled_at.into(),
    }
}

fn certificate(status: &CertificateStatus) -> CertificateView {
    CertificateView {
        identity: status.identity.clone(),
        serial: status.serial.clone(),
        not_before: status.not_before.map(|at| system_time(at).into()),
        not_after: status.not_after.map(|at| system_time(at).into()),
        last_error: status.last_error.clone(),
    }
}

fn system_time(at: crate::identity::Timestamp) -> std::time::SystemTime {
    let seconds = at.unix_seconds();
    std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds)
}
