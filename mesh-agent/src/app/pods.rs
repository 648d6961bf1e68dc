//! Pods of this node: enrolled, served, and let go.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{sync::Notify, time};
use tokio_util::sync::CancellationToken;

use super::{Agent, PodsFile, workers::Accepting};
use crate::{
    admin::{ControlError, EnrollRequest, NetnsRef},
    capture::{self, EnrollError, EnrollPod, EnrolledPod, Exclusions, Multicast},
    model::{captured::Pod, workload::WorkloadUid},
    proxy::{HalfOpen, inbound, outbound, story},
};

/// Between two looks at what has changed: the first is at once, and who makes changes all
/// the time does not keep the agent.
const NEWS_PAUSE: Duration = Duration::from_millis(20);

/// As [`NEWS_PAUSE`], for routes: a node may have many, and each look asks for every pod's.
const ROADS_PAUSE: Duration = Duration::from_millis(100);

/// How long to wait before rules are watched again that could not be.
const RULES_PAUSE: Duration = Duration::from_secs(5);

/// How long to wait before a pod that could not be restored is tried again.
const RESTORE_PAUSE: Duration = Duration::from_secs(1);

/// Why a pod is not served that is captured.
const HELD: &str =
    "it is captured, and its connections are refused, until there is a configuration";

/// Pods that are to be enrolled.
pub(super) type Wanted = BTreeMap<WorkloadUid, EnrollPod>;

/// The enrolled pods.
#[derive(Default)]
pub(super) struct Pods {
    running: Mutex<BTreeMap<WorkloadUid, RunningPod>>,
    /// One change at a time.
    pub(super) changing: tokio::sync::Mutex<()>,
    /// Pods that are to be enrolled as soon as that is possible, and why it is not yet.
    waiting: Mutex<BTreeMap<WorkloadUid, String>>,
    /// Told whenever a pod comes or goes.
    pub(super) changed: Notify,
}

pub(super) struct RunningPod {
    pub(super) request: EnrollPod,
    pub(super) pod: Arc<Pod>,
    pub(super) enrolled_at: SystemTime,
    accepting: CancellationToken,
}

impl Pods {
    pub(super) fn running(&self) -> MutexGuard<'_, BTreeMap<WorkloadUid, RunningPod>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why pods that should be enrolled are not.
    pub(super) fn waiting(&self) -> MutexGuard<'_, BTreeMap<WorkloadUid, String>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes every listener: whoever dials is refused.
    pub(super) fn stop_accepting(&self) {
        for running in self.running().values() {
            running.accepting.cancel();
        }
    }
}

impl Agent {
    /// What capture needs to know of a request.
    pub(super) fn enrollment(&self, request: EnrollRequest) -> Result<EnrollPod, ControlError> {
        let identity = request
            .identity(self.config.node.trust_domain.clone())
            .map_err(|error| ControlError::Invalid(error.to_string()))?;
        Ok(EnrollPod {
            uid: request.uid,
            name: request.name,
            identity,
            labels: request.labels,
            mtls: request.mtls,
            redirect_peer: request.redirect_peer,
            netns: match request.netns {
                NetnsRef::Path(path) => capture::NetnsRef::Path(path),
                NetnsRef::Pid(pid) => capture::NetnsRef::Pid(pid),
            },
            splice: request.splice,
            agent_down: request.agent_down,
            exclusions: Exclusions {
                outbound_ports: request.exclude_outbound_ports,
                outbound_cidrs: request.exclude_outbound_cidrs,
                inbound_ports: request.exclude_inbound_ports,
            },
        })
    }

    /// Certificate, listeners, then capture: when it answers, the pod's new
    /// connections are captured. Not cancel safe.
    pub(super) async fn enroll(self: &Arc<Self>, request: EnrollPod) -> Result<(), ControlError> {
        let _one_at_a_time = self.pods.changing.lock().await;
        if self.given.is_cancelled() {
            return Err(ControlError::Draining);
        }
        let uid = request.uid.clone();
        if let Some(running) = self.pods.running().get(&uid) {
            return match running.request == request {
                true => Ok(()),
                false => Err(ControlError::Conflict(format!(
                    "pod `{uid}` is enrolled with other settings: un-enrol it first"
                ))),
            };
        }
        if self.dataplane.snapshot.load().version == 0 {
            return Err(ControlError::Failed(format!(
                "pod `{uid}` is not enrolled: no configuration has been applied yet"
            )));
        }
        let identity = request.identity.clone();
        let identities = &self.dataplane.identities;
        identities.ensure(&identity).await.map_err(failed)?;
        let agent = Arc::clone(self);
        // Its listeners belong to the runtime that serves them.
        let opened = self.data.in_turn().spawn(async move { agent.open(request).await }).await;
        let opened = opened.map_err(failed).and_then(|opened| opened);
        if opened.is_err() {
            identities.release(&identity);
        }
        self.dataplane.metrics.pods_enrolled(self.pods.running().len());
        opened
    }

    async fn open(self: &Arc<Self>, request: EnrollPod) -> Result<(), ControlError> {
        let uid = request.uid.clone();
        let enrolled = self.capture.enroll(request.clone()).await.map_err(refused)?;
        let pod = Arc::clone(&enrolled.pod);
        let accepting = CancellationToken::new();
        let links = serve(self, enrolled, &accepting);
        let links = watch_links(Arc::clone(self), uid.clone(), links, accepting.clone());
        self.owning.spawn(links);
        if let Err(error) = self.capture.activate(&uid) {
            accepting.cancel();
            if let Err(error) = self.capture.unenroll(&uid).await {
                tracing::error!(pod = %uid, %error, "a failed enrolment can't be undone");
            }
            return Err(refused(error));
        }
        let running = RunningPod { request, pod, enrolled_at: SystemTime::now(), accepting };
        self.pods.running().insert(uid, running);
        self.pods.changed.notify_one();
        Ok(())
    }

    /// Captures pods until there is a configuration; `false`: there will be none.
    async fn hold(self: &Arc<Self>, wanted: &Wanted) -> bool {
        let mut changes = self.dataplane.snapshot.changes();
        let mut free: Vec<_> = wanted.values().collect();
        loop {
            if *changes.borrow_and_update() > 0 {
                return true;
            }
            let mut failed = Vec::new();
            for pod in free {
                let why = match self.hold_one(pod.clone()).await {
                    Ok(()) => HELD.to_owned(),
                    Err(error) => {
                        failed.push(pod);
                        format!("is not captured either: {error}")
                    }
                };
                // Unless somebody un-enrolled it meanwhile.
                if let Some(told) = self.pods.waiting().get_mut(&pod.uid)
                    && *told != why
                {
                    tracing::warn!(pod = %pod.uid, "not served yet: {why}");
                    *told = why;
                }
            }
            free = failed;
            tokio::select! {
                changed = changes.changed() => if changed.is_err() {
                    return false;
                },
                () = time::sleep(RESTORE_PAUSE), if !free.is_empty() => {}
            }
        }
    }

    async fn hold_one(self: &Arc<Self>, pod: EnrollPod) -> Result<(), ControlError> {
        let _one_at_a_time = self.pods.changing.lock().await;
        if !self.pods.waiting().contains_key(&pod.uid) {
            return Ok(());
        }
        let agent = Arc::clone(self);
        // Listeners are opened, for a moment, by the runtime that would serve them.
        let held = self.data.in_turn().spawn(async move { agent.capture.hold(pod).await }).await;
        held.map_err(failed)?.map_err(refused)
    }

    /// Plain networking again. Connections through the agent are cut: the
    /// application dials again, without it. Not cancel safe.
    pub(super) async fn unenroll(&self, uid: &WorkloadUid) -> Result<(), ControlError> {
        let _one_at_a_time = self.pods.changing.lock().await;
        if self.given.is_cancelled() {
            return Err(ControlError::Draining);
        }
        let unenrolled = self.capture.unenroll(uid).await.map_err(refused);
        self.pods.waiting().remove(uid);
        self.cut(uid);
        unenrolled
    }

    /// Ends what the agent does for a pod that capture has let go of.
    fn cut(&self, uid: &WorkloadUid) {
        let Some(running) = self.pods.running().remove(uid) else { return };
        running.accepting.cancel();
        self.pods.changed.notify_one();
        let dataplane = &self.dataplane;
        dataplane.connections.cancel_workload(uid);
        dataplane.connector.hbone.retain(|key| key.source_workload != *uid);
        dataplane.http.pool.retain(|key| key.pod != *uid);
        dataplane.identities.release(&running.request.identity);
        dataplane.metrics.pods_enrolled(self.pods.running().len());
    }

    /// Guards pods' new interfaces, and lets go of pods that were deleted without being un-enrolled. What still runs in
    /// the namespace of one stays captured: it must not go on in the clear.
    pub(super) async fn look_after_pods(&self) {
        let _one_at_a_time = self.pods.changing.lock().await;
        for uid in self.capture.maintain() {
            tracing::warn!(
                pod = %uid,
                "the file of the pod's network namespace is gone: the pod is let go of, and \
                 whatever still runs in it is refused"
            );
            if let Err(error) = self.capture.abandon(&uid) {
                tracing::error!(pod = %uid, %error, "a vanished pod can't be let go of");
            }
            self.cut(&uid);
        }
        if self.capture.look_at_all_interfaces().await {
            self.pods.changed.notify_one();
        }
        // News may have been lost, and iptables tell nobody.
        self.look_at_roads().await;
    }

    async fn look_at_roads(&self) {
        if self.capture.look_at_roads().await {
            self.pods.changed.notify_one();
        }
    }
}

/// The pods an earlier agent had, and those of `pods.yaml`. From now on the agent is not
/// ready until they are served.
pub(super) fn wanted(agent: &Agent) -> Wanted {
    let mut wanted = BTreeMap::new();
    let mut waiting = agent.pods.waiting();
    match agent.capture.persisted() {
        Ok(pods) => wanted.extend(pods.into_iter().map(|pod| (pod.uid.clone(), pod))),
        Err(error) => {
            tracing::error!(%error, "enrolled pods can't be restored");
            waiting.insert(WorkloadUid("(any earlier one)".into()), story(&error));
        }
    }
    if let Some(path) = &agent.config.node.pods {
        let mut skip = |error: &dyn std::error::Error| {
            tracing::error!(path = %path.display(), "pods skipped: {error}");
            let of_file = WorkloadUid(format!("of {}", path.display()).into());
            waiting.insert(of_file, error.to_string());
        };
        match PodsFile::read(path) {
            Ok(file) => {
                for request in file.pods {
                    match agent.enrollment(request) {
                        // The file is newer than what was recorded.
                        Ok(pod) => drop(wanted.insert(pod.uid.clone(), pod)),
                        Err(error) => skip(&error),
                    }
                }
            }
            Err(error) => skip(&error),
        }
    }
    let why = "no configuration has been applied yet, nor is it captured";
    waiting.extend(wanted.keys().map(|uid| (uid.clone(), why.to_owned())));
    wanted
}

/// Enrols what is wanted as soon as there is a configuration to serve it by. Pods are
/// captured, and refused, until then: nothing passes unjudged, and nothing in the clear.
pub(super) async fn restore(agent: Arc<Agent>, mut wanted: Wanted) {
    if !agent.hold(&wanted).await {
        return;
    }
    while !wanted.is_empty() && !agent.given.is_cancelled() {
        for pod in std::mem::take(&mut wanted).into_values() {
            let uid = pod.uid.clone();
            if !agent.pods.waiting().contains_key(&uid) {
                // Somebody un-enrolled it meanwhile.
                continue;
            }
            match agent.enroll(pod.clone()).await {
                Ok(()) => drop(agent.pods.waiting().remove(&uid)),
                Err(error) => {
                    let why = error.to_string();
                    let known = agent.pods.waiting().insert(uid.clone(), why.clone());
                    if known.as_ref() != Some(&why) {
                        tracing::error!(pod = %uid, "not enrolled, will be tried again: {why}");
                    }
                    wanted.insert(uid, pod);
                }
            }
        }
        // Of pods that are not to be enrolled any more.
        agent.inherited.close(true);
        time::sleep(RESTORE_PAUSE).await;
    }
    agent.inherited.close(true);
}

/// Looks at the pod's interfaces whenever they change.
async fn watch_links(
    agent: Arc<Agent>,
    uid: WorkloadUid,
    links: Multicast,
    accepting: CancellationToken,
) {
    loop {
        let news = tokio::select! {
            () = accepting.cancelled() => return,
            news = links.news() => news,
        };
        if let Err(error) = news {
            return tracing::error!(
                pod = %uid, %error,
                "the pod's interfaces can't be watched any more: they are looked at now and then"
            );
        }
        let begun = time::Instant::now();
        if agent.capture.look_at_interfaces(&uid).await {
            tracing::debug!(pod = %uid, "the kernel told of the pod's interfaces");
            agent.pods.changed.notify_one();
        }
        // Whoever makes looks long waits long for the next.
        time::sleep(NEWS_PAUSE.max(begun.elapsed() * 4)).await;
    }
}

/// Takes packets off the short way as soon as the node gets rules. Rules of iptables are
/// not told of: they are found now and then.
pub(super) async fn watch_rules(agent: Arc<Agent>) {
    loop {
        match agent.capture.rules_watch() {
            Ok(rules) => {
                // What came before the watch.
                if agent.capture.look_at_rules() {
                    agent.pods.changed.notify_one();
                }
                while let Ok(()) = rules.news().await {
                    if agent.capture.look_at_rules() {
                        tracing::debug!("the kernel told of rules that may be about pods");
                        agent.pods.changed.notify_one();
                    }
                    // A bridge may be what they are about.
                    agent.look_at_roads().await;
                    time::sleep(NEWS_PAUSE).await;
                }
            }
            // No netfilter (yet): there are no rules either.
            Err(error) => tracing::debug!(%error, "the node's rules can't be watched"),
        }
        time::sleep(RULES_PAUSE).await;
    }
}

/// Follows the node's links and routes: where they lead away from a pod, its connections of
/// the kernel path are ended, and new ones go through the agent.
pub(super) async fn watch_roads(agent: Arc<Agent>) {
    loop {
        match agent.capture.roads_watch() {
            Ok(roads) => {
                // What came before the watch.
                agent.look_at_roads().await;
                while let Ok(()) = roads.news().await {
                    agent.look_at_roads().await;
                    time::sleep(ROADS_PAUSE).await;
                }
            }
            Err(error) => tracing::error!(%error, "the node's routes can't be watched"),
        }
        time::sleep(RULES_PAUSE).await;
    }
}

/// Accepts the pod's connections until `accepting` is cancelled. What is left is to be
/// watched.
fn serve(agent: &Agent, enrolled: EnrolledPod, accepting: &CancellationToken) -> Multicast {
    let EnrolledPod { pod, outbound, inbound, hbone, links } = enrolled;
    let accepting = || Accepting::new(agent, &pod, accepting.clone());
    let dataplane = Arc::clone(&agent.dataplane);
    let half_open = Arc::new(HalfOpen::default());
    agent.owning.spawn(accepting().run(async move || {
        let (stream, captured) = outbound.accept().await?;
        let (dataplane, half_open) = (Arc::clone(&dataplane), Arc::clone(&half_open));
        Ok((stream, async move |stream| {
            outbound::serve(dataplane, &half_open, stream, captured).await;
        }))
    }));
    let dataplane = Arc::clone(&agent.dataplane);
    agent.owning.spawn(accepting().run(async move || {
        let (stream, captured) = inbound.accept().await?;
        let dataplane = Arc::clone(&dataplane);
        Ok((stream, move |stream| inbound::serve_plaintext(dataplane, stream, captured)))
    }));
    let tunnels = accepting();
    let dataplane = Arc::clone(&agent.dataplane);
    agent.owning.spawn(tunnels.run(async move || {
        let (stream, source) = hbone.accept().await?;
        let (dataplane, pod) = (Arc::clone(&dataplane), Arc::clone(&pod));
        Ok((stream, move |stream| inbound::serve_hbone(dataplane, pod, stream, source)))
    }));
    links
}

fn failed(error: impl std::error::Error + 'static) -> ControlError {
    ControlError::Failed(story(&error))
}

fn refused(error: EnrollError) -> ControlError {
    match &error {
        EnrollError::NotEnrolled(uid) => ControlError::NotFound(uid.clone()),
        EnrollError::AlreadyEnrolled(_) | EnrollError::NetnsInUse { .. } => {
            ControlError::Conflict(story(&error))
        }
        EnrollError::Uid(_)
        | EnrollError::HostNetwork(_)
        | EnrollError::NoAddress(_)
        | EnrollError::Netns { .. } => ControlError::Invalid(story(&error)),
        _ => ControlError::Failed(story(&error)),
    }
}
