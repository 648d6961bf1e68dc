//! Keeps the kernel's plan in step with configuration and pods, and the account of
//! connections in step with the kernel.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::{self, Instant};

use super::Agent;
use crate::{
    capture::{Capture, KernelEvents, PlanApplied},
    config::KernelPath,
    identity::Timestamp,
    model::{
        captured::Pod,
        identity::Identity,
        kernel_path::{KernelConnection, KernelEvent, KernelPlan},
        splice::Fitness,
        workload::WorkloadUid,
    },
    proxy::{
        kernel_path::{Judgement, KernelSessions, Services, plan},
        neighbours::Judged,
    },
};

/// After a change, connections are judged again at once, and twice more for those that
/// a connect hook had let through just before.
const AFTER_CHANGE: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(500)];

/// How often live connections are asked what they have moved.
const INTERVAL: Duration = Duration::from_secs(2);

/// Whether the kernel path is to be used, and why not.
pub(super) fn availability(wanted: KernelPath) -> Result<(), String> {
    match wanted {
        KernelPath::Off => Err("switched off".to_owned()),
        KernelPath::Auto | KernelPath::On => Capture::can_cut_connections()
            .map_err(|error| format!("the kernel can't end live connections: {error}")),
    }
}

/// Works until the agent is gone.
pub(super) async fn follow(agent: Arc<Agent>) {
    let mut events = match agent.capture.kernel_events() {
        Ok(Some(events)) => events,
        Ok(None) => return,
        Err(error) => return tracing::error!(%error, "the kernel's events can't be read"),
    };
    let identities = &agent.dataplane.identities;
    let (mut arrivals, mut trust) = (identities.arrivals(), identities.trust());
    let mut work = Work {
        agent: Arc::clone(&agent),
        sessions: KernelSessions::default(),
        services: Services::default(),
        left_out: 0,
        proven_until: None,
        judged: Judged::default(),
    };
    let mut changes = agent.dataplane.snapshot.changes();
    let mut interval = time::interval(INTERVAL);
    let mut rescans: Vec<Instant> = Vec::new();
    loop {
        let rescan = rescans.first().copied();
        let unproven = work.proof_ends();
        let changed = tokio::select! {
            biased;
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                true
            }
            () = agent.pods.changed.notified() => true,
            Ok(()) = arrivals.changed() => true,
            Ok(()) = trust.changed() => true,
            () = until(unproven) => work.is_outdated(),
            () = until(rescan) => {
                rescans.remove(0);
                work.judge_all();
                false
            }
            () = work.next_events(&mut events) => false,
            _ = interval.tick() => {
                work.look(&mut events);
                work.look_at_neighbours();
                // The clock may have been set.
                work.is_outdated()
            }
        };
        if changed {
            // Other tasks of this thread need not wait for it.
            tokio::task::block_in_place(|| work.plan());
            work.judge_all();
            rescans = AFTER_CHANGE.map(|after| Instant::now() + after).to_vec();
        }
    }
}

/// Once [`follow`] has ended with what this agent owns: tunnels that it still serves end as
/// before with whom nobody vouches for any more.
pub(super) async fn judge_neighbours(agent: Arc<Agent>) {
    agent.given.cancelled().await;
    let identities = &agent.dataplane.identities;
    let mut trust = identities.trust();
    loop {
        // Before they are asked: what changes meanwhile is asked again.
        let trusted = Arc::clone(&trust.borrow_and_update());
        let now = identities.now();
        let mut held: HashSet<Identity> = {
            let running = agent.pods.running();
            running.values().map(|running| running.pod.workload.identity.clone()).collect()
        };
        held.retain(|identity| identities.proven_until(identity).is_some_and(|until| until > now));
        let judged = Judged { proven: Arc::new(held), trust: trusted };
        agent.dataplane.connector.neighbours.judge(judged);
        if trust.changed().await.is_err() {
            return;
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

struct Work {
    agent: Arc<Agent>,
    sessions: KernelSessions,
    services: Services,
    left_out: usize,
    /// When the first of the identities that are in the plan can't be proven any more.
    proven_until: Option<Timestamp>,
    /// Those that can, and the roots by which.
    judged: Judged,
}

impl Work {
    fn pods(&self) -> HashMap<WorkloadUid, Arc<Pod>> {
        let running = self.agent.pods.running();
        running.iter().map(|(uid, running)| (uid.clone(), Arc::clone(&running.pod))).collect()
    }

    /// Compiles the plan anew and puts it in force.
    fn plan(&mut self) {
        let agent = Arc::clone(&self.agent);
        let dataplane = &agent.dataplane;
        let pods: Vec<Arc<Pod>> = self.pods().into_values().collect();
        let proven = self.proven(&pods);
        let plan = match self.agent.kernel_path {
            Ok(()) => {
                let identities = proven.keys().cloned().collect();
                let policy = dataplane.options.outbound_policy;
                let snapshot = dataplane.snapshot.load();
                let plan = plan(&mut self.services, &snapshot, &pods, &identities, policy);
                let now = dataplane.identities.now();
                let left = |pod: &Arc<Pod>| {
                    let until = proven.get(&pod.workload.identity)?;
                    Some((pod.workload.uid.clone(), until.since(now)))
                };
                KernelPlan { proven_for: pods.iter().filter_map(left).collect(), ..plan }
            }
            // Connections that an earlier agent let through are looked after all the same.
            Err(_) => KernelPlan::default(),
        };
        self.judged.proven = Arc::new(proven.into_keys().collect());
        self.look_at_neighbours();
        let capture = &self.agent.capture;
        let tested = self.agent.self_test.get().is_some();
        let applied = capture.apply_kernel_plan(&plan, self.agent.fitness()).or_else(|error| {
            tracing::error!(%error, "the kernel path is closed: its plan can't be changed");
            capture.apply_kernel_plan(&KernelPlan::default(), Fitness::default())
        });
        let PlanApplied { services, left_out } = applied.unwrap_or_default();
        if left_out > 0 && left_out != self.left_out {
            tracing::warn!(
                left_out,
                map = mesh_common::abi::map::SERVICES,
                "services take the agent's path, not the kernel's: the map is full"
            );
        }
        self.left_out = left_out;
        dataplane.metrics.kernel_path_services(services, left_out);
        self.agent.kernel_services.store(services, Ordering::Relaxed);
        self.agent.tested.store(tested, Ordering::Release);
    }

    /// Who has a certificate to show, and until when. Its last second counts as over: what the kernel
    /// does must not come later than what the agent would.
    fn proven(&mut self, pods: &[Arc<Pod>]) -> HashMap<Identity, Timestamp> {
        let identities = &self.agent.dataplane.identities;
        // Before they are asked: what changes meanwhile is asked again.
        self.judged.trust = Arc::clone(&identities.trust().borrow());
        let held: HashSet<&Identity> = pods.iter().map(|pod| &pod.workload.identity).collect();
        let now = identities.now();
        let until = held.into_iter().filter_map(|identity| {
            let until = identities.proven_until(identity).filter(|until| *until > now)?;
            Some((identity.clone(), until))
        });
        let until: HashMap<Identity, Timestamp> = until.collect();
        self.proven_until = until.values().min().copied();
        until
    }

    /// Whose tunnels may stay within the agent.
    fn look_at_neighbours(&self) {
        let mut straight = self.agent.capture.straight();
        let pods = self.pods().into_values();
        let pods = pods.filter(|pod| self.judged.proven.contains(&pod.workload.identity));
        let pods = pods.filter_map(|pod| {
            let mut addresses = straight.remove(&pod.workload.uid)?;
            addresses.retain(|address| pod.workload.owns(*address));
            Some((pod, addresses))
        });
        let neighbours = &self.agent.dataplane.connector.neighbours;
        neighbours.replace(pods.collect(), self.judged.clone());
    }

    /// When a certificate that the plan relies on expires.
    fn proof_ends(&self) -> Option<Instant> {
        let left = self.proven_until?.since(self.agent.dataplane.identities.now());
        Some(Instant::now() + left.min(INTERVAL))
    }

    /// Whether such a certificate has expired, or verdicts of an earlier agent are still
    /// in force.
    fn is_outdated(&self) -> bool {
        self.agent.capture.has_inherited_verdicts()
            || self.proven_until.is_some_and(|until| self.agent.dataplane.identities.now() >= until)
    }

    /// Adopts what is new, asks policy about the rest, cuts what it no longer allows.
    fn judge_all(&mut self) {
        let connections = self.agent.capture.kernel_connections();
        if connections.is_empty() && self.sessions.is_empty() {
            return;
        }
        let pods = self.pods();
        for connection in &connections {
            if !connection.established {
                // Its SYN may be sent again, for two minutes.
                let judgement = self.sessions.knocks(&self.agent.dataplane, connection, &pods);
                self.enforce(connection, &judgement);
                continue;
            }
            let new = self.sessions.adopt(&self.agent.dataplane, connection, &pods);
            let judgement = match new {
                Judgement::Keep => self.sessions.rejudge(&self.agent.dataplane, connection),
                Judgement::Cut => Judgement::Cut,
            };
            self.enforce(connection, &judgement);
        }
    }

    fn enforce(&self, connection: &KernelConnection, judgement: &Judgement) {
        let Judgement::Cut = judgement else { return };
        match self.agent.capture.cut_kernel_connection(connection) {
            Ok(cut) => {
                if cut {
                    self.agent.dataplane.metrics.kernel_path_cut();
                }
                tracing::info!(
                    source = %connection.source,
                    original_destination = %connection.original_destination,
                    destination = %connection.destination,
                    "cut a connection of the kernel path"
                );
            }
            Err(error) => tracing::error!(
                source = %connection.source, destination = %connection.destination, %error,
                "a connection of the kernel path can't be cut"
            ),
        }
    }

    async fn next_events(&mut self, events: &mut KernelEvents) {
        match events.next(&self.agent.capture).await {
            Ok(events) => {
                let pods = self.pods();
                events.into_iter().for_each(|event| self.take(event, &pods));
            }
            Err(error) => {
                tracing::error!(%error, "the kernel's events can't be read");
                time::sleep(INTERVAL).await;
            }
        }
    }

    fn take(&mut self, event: KernelEvent, pods: &HashMap<WorkloadUid, Arc<Pod>>) {
        let dataplane = &self.agent.dataplane;
        match event {
            KernelEvent::Established(connection) => {
                let judgement = self.sessions.adopt(dataplane, &connection, pods);
                self.enforce(&connection, &judgement);
            }
            KernelEvent::Closed { connection, traffic, aborted } => {
                self.sessions.end(dataplane, &connection, traffic, aborted, pods);
            }
        }
    }

    /// What live connections have moved; which were idle for too long; which are gone.
    fn look(&mut self, events: &mut KernelEvents) {
        let pods = self.pods();
        // Where there is no room for more, what follows takes long enough for more to be lost.
        for event in events.drain(&self.agent.capture) {
            self.take(event, &pods);
        }
        let connections = self.agent.capture.kernel_connections();
        let exist: HashSet<u64> = connections.iter().map(|c| c.socket_cookie).collect();
        for connection in connections.iter().filter(|connection| connection.established) {
            // Its first event may have been lost.
            let judgement = self.sessions.adopt(&self.agent.dataplane, connection, &pods);
            self.enforce(connection, &judgement);
        }
        // A connection leaves the kernel's map after its last event was written.
        for event in events.drain(&self.agent.capture) {
            self.take(event, &pods);
        }
        let dataplane = &self.agent.dataplane;
        dataplane.metrics.kernel_path_connections(exist.len());
        self.sessions.retain(dataplane, |cookie| exist.contains(&cookie));
        if self.sessions.is_empty() {
            return;
        }
        let traffic = self.agent.capture.kernel_traffic();
        for connection in &connections {
            if let Some(traffic) = traffic.get(&connection.socket_cookie) {
                let judgement = self.sessions.moved(connection.socket_cookie, *traffic);
                self.enforce(connection, &judgement);
            }
        }
    }
}
