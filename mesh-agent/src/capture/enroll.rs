//! Pods come and go: enrolled, activated, un-enrolled, abandoned.
#![forbid(unsafe_code)]

use std::{net::IpAddr, num::NonZeroU32, sync::Arc, time::Duration};

use mesh_common::key::ListenerKind;

use super::{
    accept::{DualListener, HboneListener, InboundListener, OutboundListener},
    error::{CaptureError, EnrollError},
    netlink::Multicast,
    netns::PodNetns,
    node::{Capture, Slot, State},
    options::EnrollPod,
    orig_dst::OriginalDestinations,
    persist::Record,
    routing::{self, RoutingError, Sysctls},
    sockets::{NetnsSockets, Vouched},
};
use crate::model::{
    captured::Pod,
    workload::{Workload, WorkloadUid},
};

/// A pod whose listeners are open. Dropping the listeners refuses its connections.
#[derive(Debug)]
pub struct EnrolledPod {
    pub pod: Arc<Pod>,
    pub outbound: OutboundListener,
    pub inbound: InboundListener,
    pub hbone: HboneListener,
    /// Tells when interfaces come or go inside: see [`Capture::look_at_interfaces`].
    pub links: Multicast,
}

/// By then a connect(2) that was under way has sent its SYN.
const HOOKS_END: Duration = Duration::from_millis(20);

/// A slot that is freed again unless it is filled.
struct Reservation<'a> {
    capture: &'a Capture,
    uid: WorkloadUid,
}

impl Reservation<'_> {
    fn fill(self, record: Record) {
        if let Some(slot) = self.capture.state().pods.get_mut(&self.uid) {
            slot.record = Some(record);
        }
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut state = self.capture.state();
        if state.pods.get(&self.uid).is_some_and(|slot| slot.record.is_none()) {
            state.pods.remove(&self.uid);
        }
    }
}

impl Capture {
    /// Pods that an earlier agent had enrolled, in the order of their UIDs: enrol them
    /// again. Those whose namespace is gone have been dropped.
    ///
    /// # Errors
    /// [`CaptureError`] where the state directory cannot be read.
    pub fn persisted(&self) -> Result<Vec<EnrollPod>, CaptureError> {
        Ok(self.records.load_all()?.into_iter().map(|record| record.pod).collect())
    }

    /// Opens listeners inside the pod and prepares everything to capture it. Capture
    /// begins with [`Capture::activate`]; a pod that an earlier agent had activated
    /// is captured already.
    ///
    /// Cancelled, it leaves routing and listeners' entries behind, which harm nobody and
    /// which the next attempt takes over.
    ///
    /// # Errors
    /// [`EnrollError`]; the pod is then as it was before.
    pub async fn enroll(&self, request: EnrollPod) -> Result<EnrolledPod, EnrollError> {
        let uid = request.uid.clone();
        if !is_name(&uid.0) {
            return Err(EnrollError::Uid(uid.0.chars().take(128).collect()));
        }
        {
            let mut state = self.state();
            match state.pods.get(&uid) {
                Some(slot) if slot.held => drop(state.pods.remove(&uid)),
                Some(_) => return Err(EnrollError::AlreadyEnrolled(uid)),
                None => {}
            }
        }
        let kernel = kernel(&uid);
        let mut request = request;
        let given = request.netns.clone();
        let before = match self.records.load(&uid) {
            // Enrolling is how it is mended: the pod may well be captured.
            Err(error @ CaptureError::Record { .. }) => {
                tracing::error!(pod = %uid, %error, "replacing a record that cannot be read");
                None
            }
            known => known.map_err(&kernel)?,
        };
        request.netns = self.records.hold(&request)?;
        let held = request.netns != given;
        let outcome = self.enroll_held(&request, before.as_ref()).await;
        if outcome.is_err() && held && before.is_none() {
            self.records.remove(&request).map_err(&kernel)?;
        }
        outcome
    }

    async fn enroll_held(
        &self,
        request: &EnrollPod,
        before: Option<&Record>,
    ) -> Result<EnrolledPod, EnrollError> {
        let uid = &request.uid;
        let netns = PodNetns::open(&request.netns)
            .map(Arc::new)
            .map_err(|source| EnrollError::Netns { uid: uid.clone(), source })?;
        let cookie = netns.cookie();
        if cookie == self.own.cookie() {
            return Err(EnrollError::HostNetwork(uid.clone()));
        }
        let before = before.filter(|record| record.netns_cookie == cookie);
        let reservation = self.reserve(uid, &netns)?;
        // Whatever fails, a pod that is captured stays captured.
        let captured = self.state().maps.pods().contains(&cookie);
        let outcome = match sysctls(uid, &netns, before) {
            Ok(sysctls) => {
                let known = before.map_or(&[][..], |record| &record.addresses);
                let prepared = self.prepare(request, &netns, captured, &sysctls, known).await;
                prepared.map_err(|error| (error, sysctls))
            }
            Err(error) => Err((error, Sysctls::default())),
        };
        match outcome {
            Ok((enrolled, record)) => {
                reservation.fill(record);
                tracing::info!(pod = %uid, netns = %netns.path().display(), cookie, "enrolled");
                Ok(enrolled)
            }
            Err((error, sysctls)) => {
                if before.is_none() && !captured {
                    self.undo(&netns, &sysctls).await;
                }
                Err(error)
            }
        }
    }

    /// Keeps UID and namespace from being enrolled twice.
    fn reserve(
        &self,
        uid: &WorkloadUid,
        netns: &Arc<PodNetns>,
    ) -> Result<Reservation<'_>, EnrollError> {
        let cookie = netns.cookie();
        let mut state = self.state();
        if state.pods.contains_key(uid) {
            return Err(EnrollError::AlreadyEnrolled(uid.clone()));
        }
        if let Some((other, _)) = state.pods.iter().find(|(_, slot)| slot.cookie == cookie) {
            return Err(EnrollError::NetnsInUse { uid: uid.clone(), other: other.clone() });
        }
        let slot = Slot {
            cookie,
            netns: Arc::clone(netns),
            record: None,
            held: false,
            legs: Arc::default(),
            listeners: Vec::new(),
            addresses: Vec::new(),
            interfaces: Vec::new(),
            unguarded: None,
            straight: Err("the pod is being enrolled".to_owned()),
            not_redirected: None,
            road: Err("the pod is being enrolled".to_owned()),
        };
        state.pods.insert(uid.clone(), slot);
        Ok(Reservation { capture: self, uid: uid.clone() })
    }

    async fn prepare(
        &self,
        request: &EnrollPod,
        netns: &Arc<PodNetns>,
        captured: bool,
        sysctls: &Sysctls,
        known: &[IpAddr],
    ) -> Result<(EnrolledPod, Record), EnrollError> {
        let uid = &request.uid;
        let cookie = netns.cookie();
        let kernel = kernel(uid);
        let in_netns = |source| EnrollError::Netns { uid: uid.clone(), source };
        let present = netns.addresses().await.map_err(in_netns)?;
        if present.is_empty() {
            return Err(EnrollError::NoAddress(uid.clone()));
        }
        let addresses = only_known(uid, present, known);
        let node = self.own.addresses().await.map_err(in_netns)?;
        // What arrives for the application is bound to the interface it came by: the
        // agent's own dial to the application, over `lo` and from the client's
        // address, may get the client's port number, and would be taken for it.
        // Before they are listed: none may be missed.
        let links = netns
            .run(Multicast::links)
            .and_then(|links| links)
            .map_err(|source| EnrollError::Watch { uid: uid.clone(), source })?;
        let interfaces = netns.links().await.map_err(in_netns)?;
        self.pins.sweep_guards(cookie, &interfaces).map_err(&kernel)?;
        let interfaces: Vec<_> = interfaces.into_iter().filter(|link| link.up).collect();
        let interface = match &interfaces[..] {
            [only] => NonZeroU32::new(only.index),
            _ => None,
        };
        if interface.is_none() {
            tracing::warn!(
                pod = %uid,
                "several interfaces are up: a client's port number may collide with the agent's"
            );
        }

        let open = |(v4, v6), interface| {
            DualListener::open(netns, v4, v6, interface, &|address| {
                self.inherited.as_ref()?.take(Some(uid), address)
            })
            .map(Arc::new)
            .map_err(|(address, source)| EnrollError::Listen {
                uid: uid.clone(),
                address,
                source,
            })
        };
        let outbound = open(OutboundListener::ADDRESSES, None)?;
        let inbound = open(InboundListener::ADDRESSES, interface)?;
        let hbone = open(HboneListener::ADDRESSES, None)?;

        let v6 = outbound.has_v6();
        routing::install(netns, v6).await.map_err(routing_failed(uid))?;

        let exclusions = self.exclusions.union(&request.exclusions);
        {
            let mut state = self.state();
            state.maps.set_facts(cookie, &addresses, &node, &exclusions).map_err(&kernel)?;
            if let Some(slot) = state.pods.get_mut(uid) {
                slot.addresses.clone_from(&addresses);
                slot.listeners = [&outbound, &inbound, &hbone].map(Arc::downgrade).to_vec();
            }
            if self.inherited.is_none() {
                // Else they are what is there, and nobody must find none for a moment.
                state.maps.remove_listeners(cookie).map_err(&kernel)?;
            }
            for (kind, listener) in
                [(ListenerKind::Inbound, &inbound), (ListenerKind::Hbone, &hbone)]
            {
                for (v6, socket) in listener.sockets() {
                    state.maps.add_listener(cookie, kind, v6, socket).map_err(&kernel)?;
                }
            }
        }
        let destinations =
            OriginalDestinations::open(&self.pins.maps(), cookie).map_err(&kernel)?;
        let vouched = Vouched::open(&self.pins.maps()).map_err(&kernel)?;
        for listener in [&inbound, &hbone] {
            for (_, socket) in listener.sockets() {
                vouched
                    .add(socket)
                    .map_err(|source| EnrollError::Vouch { uid: uid.clone(), source })?;
            }
        }
        self.attach_programs(request, netns, &addresses, &interfaces).await.map_err(&kernel)?;
        let record = Record {
            boot_id: self.records.boot_id().to_owned(),
            netns_cookie: cookie,
            sysctls: sysctls.clone(),
            active: captured,
            addresses: addresses.clone(),
            pod: request.clone(),
        };
        self.records.save(&record).map_err(&kernel)?;

        let own = addresses.clone();
        let slot = self.state().pods.get(uid).map(|slot| Arc::clone(&slot.legs));
        let legs = slot.unwrap_or_default();
        let pod = Arc::new(Pod {
            workload: Workload {
                uid: uid.clone(),
                name: request.name.clone(),
                identity: request.identity.clone(),
                addresses,
                labels: request.labels.clone(),
                mtls: request.mtls,
            },
            sockets: Arc::new(NetnsSockets { netns: Arc::clone(netns), own, vouched, legs }),
        });
        let enrolled = EnrolledPod {
            outbound: OutboundListener { listener: outbound, pod: Arc::clone(&pod), destinations },
            inbound: InboundListener { listener: inbound, pod: Arc::clone(&pod) },
            hbone: HboneListener { listener: hbone },
            links,
            pod,
        };
        Ok((enrolled, record))
    }

    /// Turns capture on: the pod's new connections, both ways, go to the agent from now on.
    ///
    /// # Errors
    /// [`EnrollError::NotEnrolled`], or [`EnrollError::Kernel`] where a map is full:
    /// the pod then has plain networking, un-enrol it.
    pub fn activate(&self, uid: &WorkloadUid) -> Result<(), EnrollError> {
        let kernel = kernel(uid);
        let mut state = self.state();
        let State { maps, pods, .. } = &mut *state;
        let record = pods
            .get_mut(uid)
            .and_then(|slot| slot.record.as_mut())
            .ok_or_else(|| EnrollError::NotEnrolled(uid.clone()))?;
        maps.add_pod(record.netns_cookie, record.pod.mtls).map_err(&kernel)?;
        if record.active {
            // It was captured all along, and its record says so.
            return Ok(());
        }
        record.active = true;
        self.records.save(record).map_err(&kernel)
    }

    /// Gives the pod plain networking back, at once for new connections. Connections
    /// through the agent end when their listeners' owner drops them.
    ///
    /// # Errors
    /// [`EnrollError`]; capture is off if the kernel took that first step.
    pub async fn unenroll(&self, uid: &WorkloadUid) -> Result<(), EnrollError> {
        let kernel = kernel(uid);
        let slot = {
            let mut state = self.state();
            let enrolled = state.pods.get(uid).is_some_and(|slot| slot.record.is_some());
            if enrolled { state.pods.remove(uid) } else { None }
        };
        let (record, netns) = match slot {
            Some(Slot { record: Some(record), netns, .. }) => (record, Some(netns)),
            // Not restored by this agent, but known from an earlier one.
            _ => {
                let record = self.records.load(uid).map_err(&kernel)?;
                let record = record.ok_or_else(|| EnrollError::NotEnrolled(uid.clone()))?;
                let netns = PodNetns::open(&record.pod.netns).ok().map(Arc::new);
                (record, netns)
            }
        };
        let cookie = record.netns_cookie;
        {
            let mut state = self.state();
            state.maps.remove_pod(cookie).map_err(&kernel)?;
            state.kernel.forget_pod(cookie).map_err(&kernel)?;
        }
        self.cut_kernel_connections_of(cookie);
        // Once more for what a connect hook had decided just before.
        tokio::time::sleep(HOOKS_END).await;
        self.cut_kernel_connections_of(cookie);
        let _alone = self.attaching.lock().await;
        match netns.filter(|netns| netns.cookie() == cookie) {
            Some(netns) => self.undo(&netns, &record.sysctls).await,
            None => self.undo_kernel(cookie),
        }
        self.records.remove(&record.pod).map_err(&kernel)?;
        tracing::info!(pod = %uid, "un-enrolled");
        Ok(())
    }

    /// Lets go of a pod whose namespace's file is gone, but not of its namespace: what
    /// still runs in there stays captured, and is refused until the namespace dies or
    /// is enrolled again. The caller drops the pod's listeners.
    ///
    /// # Errors
    /// [`EnrollError::NotEnrolled`], or [`EnrollError::Kernel`] where the record is left.
    pub fn abandon(&self, uid: &WorkloadUid) -> Result<(), EnrollError> {
        let kernel = kernel(uid);
        let cookie = self.state().pods.get(uid).map(|slot| slot.cookie);
        if let Some(cookie) = cookie {
            self.cut_kernel_connections_of(cookie);
        }
        let mut state = self.state();
        let State { maps, pods, kernel: shortcuts, .. } = &mut *state;
        let slot = pods.remove(uid).ok_or_else(|| EnrollError::NotEnrolled(uid.clone()))?;
        shortcuts.forget_pod(slot.cookie).map_err(&kernel)?;
        maps.remove_listeners(slot.cookie).map_err(&kernel)?;
        maps.disclaim(slot.cookie).map_err(&kernel)?;
        match &slot.record {
            Some(record) => self.records.remove(&record.pod).map_err(&kernel),
            None => Ok(()),
        }
    }

    /// Takes away what `prepare` may have set. What fails is logged: the rest must go too.
    async fn undo(&self, netns: &PodNetns, sysctls: &Sysctls) {
        self.undo_kernel(netns.cookie());
        match netns.interfaces().await {
            Ok(interfaces) => {
                if let Err(error) = self.detach_guards(netns, &interfaces).await {
                    tracing::warn!(netns = %netns.path().display(), %error, "cannot remove the guard");
                }
            }
            Err(error) => {
                tracing::warn!(netns = %netns.path().display(), %error, "cannot list interfaces");
            }
        }
        if let Err(error) = routing::remove(netns, sysctls).await {
            tracing::warn!(netns = %netns.path().display(), ?error, "cannot remove routing");
        }
    }

    fn undo_kernel(&self, cookie: u64) {
        let mut state = self.state();
        let steps = [
            state.maps.remove_pod(cookie),
            self.pins.detach_pod(cookie),
            self.pins.detach_guard(cookie, None),
            state.maps.remove_listeners(cookie),
            state.maps.remove_facts(cookie),
            state.maps.disclaim(cookie),
        ];
        for error in steps.into_iter().filter_map(Result::err) {
            tracing::warn!(cookie, %error, "cannot clean up after a pod");
        }
    }
}

/// Those of a pod's addresses that it was enrolled with, `known`: whoever is root inside may
/// have given it others since, such as another pod's. All, where it has none of them any more.
fn only_known(uid: &WorkloadUid, present: Vec<IpAddr>, known: &[IpAddr]) -> Vec<IpAddr> {
    let (kept, new): (Vec<_>, Vec<_>) = present.into_iter().partition(|ip| known.contains(ip));
    if kept.is_empty() {
        return new;
    }
    if !new.is_empty() {
        tracing::warn!(
            pod = %uid, addresses = ?new,
            "addresses that came after the enrolment do not count as the pod's: if they are, \
             un-enrol it and enrol it again"
        );
    }
    kept
}

/// The pod's sysctls as they were before any agent.
fn sysctls(
    uid: &WorkloadUid,
    netns: &PodNetns,
    before: Option<&Record>,
) -> Result<Sysctls, EnrollError> {
    match before {
        Some(record) => Ok(record.sysctls.clone()),
        None => Sysctls::read(netns).map_err(routing_failed(uid)),
    }
}

fn routing_failed(uid: &WorkloadUid) -> impl Fn(RoutingError) -> EnrollError {
    move |error| match error {
        RoutingError::Netlink { what, source } => {
            EnrollError::Routing { uid: uid.clone(), what, source: Box::new(source) }
        }
        RoutingError::Netns(source) => EnrollError::Netns { uid: uid.clone(), source },
        RoutingError::Sysctl { name, source } => {
            EnrollError::Sysctl { uid: uid.clone(), name, source }
        }
    }
}

fn kernel(uid: &WorkloadUid) -> impl Fn(CaptureError) -> EnrollError {
    move |source| EnrollError::Kernel { uid: uid.clone(), source: Box::new(source) }
}

/// Letters, digits, `.`, `-`, `_`; usable as a file name.
pub(super) fn is_name(name: &str) -> bool {
    let valid = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
    !name.is_empty() && name.len() <= 128 && !name.starts_with('.') && name.bytes().all(valid)
}
