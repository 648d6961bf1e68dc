//! The guard on a pod's interfaces: attached, adopted, taken away.
//!
//! It is attached inside the pod, where no CNI keeps programs. From Linux 6.6 by links
//! (tcx), pinned like the others; before, as filters of a `clsact` qdisc, which stay
//! with the interface by themselves.
#![forbid(unsafe_code)]

use std::{fs, net::IpAddr, path::PathBuf, sync::Arc};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType, TcHandle,
        links::{FdLink, Link},
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, qdisc_add_clsact},
    },
    sys::NetlinkError,
};

use super::{
    bpf::LinkTarget,
    bpffs,
    error::{CaptureError, EnrollError, brief, chain},
    loader::{Pins, adopt, load, not_a_link},
    netns::{Interface, PodNetns},
    node::Capture,
    options::EnrollPod,
};
use crate::model::workload::WorkloadUid;

/// Whether what capture did not take is dropped on the pods' interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GuardMode {
    /// Where the guard can be attached.
    #[default]
    Auto,
    /// A pod that it can't be attached to is not enrolled.
    On,
    Off,
}

/// How the guard is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GuardAttachment {
    /// By links, where the kernel has them; else by filters.
    #[default]
    Best,
    /// By filters, as before Linux 6.6.
    Filters,
}

/// The programs, with the side of the interface that each is for. Ingress first: a
/// server's socket is noted as vouched for by what it receives.
pub(super) const GUARD_PROGRAMS: [(&str, TcAttachType); 2] =
    [("mesh_guard_in", TcAttachType::Ingress), ("mesh_guard_out", TcAttachType::Egress)];

/// The one for outside the pod, on the peer of its interface, where that is a veth.
pub(super) const HOST_PROGRAM: (&str, TcAttachType) = ("mesh_guard_host", TcAttachType::Ingress);

/// How many interfaces of a pod are guarded, the oldest first.
pub(super) const MOST_INTERFACES: usize = 64;

/// Before what others may have there. The numbers tell our filters from theirs.
const PRIORITY: u16 = 1;
const HANDLE: TcHandle = TcHandle::new(0, 0x6d);

impl Pins {
    fn guards(&self, cookie: u64) -> PathBuf {
        self.root().join("guards").join(cookie.to_string())
    }

    /// Attaches the guard to each of a pod's interfaces, or updates what is there.
    /// `ebpf` is what the pod's lookup program was loaded from.
    pub(super) fn attach_guard(
        &self,
        ebpf: &mut Ebpf,
        netns: &PodNetns,
        interfaces: &[Interface],
        attachment: GuardAttachment,
    ) -> Result<(), CaptureError> {
        let mut oldest: Vec<&Interface> = interfaces.iter().collect();
        oldest.sort_by_key(|interface| interface.index);
        // One that fails, or has gone meanwhile, does not leave those behind it without.
        let mut outcome = Ok(());
        for interface in oldest.into_iter().take(MOST_INTERFACES) {
            let attached = self.attach_both(ebpf, netns, interface, attachment);
            outcome = outcome.and(attached);
        }
        let too_many = interfaces.len() > MOST_INTERFACES;
        outcome.and(if too_many { Err(CaptureError::Interfaces(interfaces.len())) } else { Ok(()) })
    }

    /// Lets go of the guards of interfaces that are gone, and with them of the kernel's
    /// objects: whoever is root in a pod can make ever new ones. `links`: those that are left.
    pub(super) fn sweep_guards(
        &self,
        cookie: u64,
        links: &[Interface],
    ) -> Result<(), CaptureError> {
        let directory = self.guards(cookie);
        // What is not there has no pins.
        let Ok(entries) = fs::read_dir(&directory) else { return Ok(()) };
        let names = entries.filter_map(Result::ok).map(|entry| entry.file_name());
        for name in names.filter_map(|name| name.into_string().ok()) {
            let Some((index, program)) = name.split_once('-') else { continue };
            let is_inside = GUARD_PROGRAMS.iter().any(|(guard, _)| *guard == program);
            if is_inside && links.iter().all(|link| link.index.to_string() != index) {
                self.holds.remove(&directory.join(&name))?;
            }
        }
        Ok(())
    }

    fn attach_both(
        &self,
        ebpf: &mut Ebpf,
        netns: &PodNetns,
        interface: &Interface,
        attachment: GuardAttachment,
    ) -> Result<(), CaptureError> {
        if !interface.ethernet {
            return Err(CaptureError::Interface(interface.name.clone()));
        }
        for guard in GUARD_PROGRAMS {
            self.attach_one(ebpf, netns.cookie(), netns, interface, guard, attachment)?;
        }
        Ok(())
    }

    /// Attaches one of a pod's guards to an `interface` that is in the namespace `place`.
    pub(super) fn attach_one(
        &self,
        ebpf: &mut Ebpf,
        cookie: u64,
        place: &PodNetns,
        interface: &Interface,
        (name, side): (&'static str, TcAttachType),
        attachment: GuardAttachment,
    ) -> Result<(), CaptureError> {
        let directory = self.guards(cookie);
        bpffs::create(&directory)?;
        let program = ebpf.program_mut(name).ok_or(CaptureError::Missing(name))?;
        let refused = |source| CaptureError::Program { program: name, source: Box::new(source) };
        load(program).map_err(refused)?;
        let pin = directory.join(format!("{}-{name}", interface.index));
        if adopt(&pin, program, LinkTarget::Interface(interface.index))? {
            return Ok(());
        }
        let program: &mut SchedClassifier =
            program.try_into().map_err(|error: ProgramError| refused(error))?;
        let entered = place.run(|| attach(program, &interface.name, side, attachment));
        let link =
            entered.unwrap_or_else(|error| Err(ProgramError::IOError(error))).map_err(refused)?;
        match link {
            Some(link) => self.holds.replace(link, &pin),
            None => self.holds.remove(&pin),
        }
    }

    /// Takes the guard off a pod. `inside`: where the pod still is.
    pub(super) fn detach_guard(
        &self,
        cookie: u64,
        inside: Option<(&PodNetns, &[Interface])>,
    ) -> Result<(), CaptureError> {
        self.holds.remove_tree(&self.guards(cookie))?;
        let Some((netns, interfaces)) = inside else { return Ok(()) };
        for interface in interfaces {
            for guard in GUARD_PROGRAMS {
                detach_filter(netns, interface, guard);
            }
        }
        Ok(())
    }
}

impl Capture {
    /// Attaches a pod's lookup program and its guards, or updates what is there.
    pub(super) async fn attach_programs(
        &self,
        request: &EnrollPod,
        netns: &PodNetns,
        addresses: &[IpAddr],
        interfaces: &[Interface],
    ) -> Result<(), CaptureError> {
        let mut programs = self.pins.attach_pod(netns)?;
        let unguarded = self.guard(&request.uid, netns, interfaces, &mut programs).await?;
        let mode = request.redirect_peer.unwrap_or(self.redirect_peer);
        let road = match &unguarded {
            None => self.attach_outside(netns, interfaces, &mut programs, addresses).await,
            Some(_) => Err("the pod has no guard".to_owned()),
        };
        let straight = match &road {
            Ok(road) => self.may_go_straight(road, interfaces, mode).await,
            Err(why) => Err(why.clone()),
        };
        let redirect = straight.clone().and_then(|()| match &road {
            Ok(road) if !self.has_links(road) => Err("the guard is attached by filters".to_owned()),
            _ => Ok(()),
        });
        let mut state = self.state();
        let (outside, reachable) = match &road {
            Ok(road) => (Some(road.entry(netns.cookie(), redirect.is_ok())), &road.reachable[..]),
            Err(_) => (None, &[][..]),
        };
        state.maps.set_outside(netns.cookie(), reachable, outside)?;
        let closed = road.is_err() && self.guard != GuardMode::Off;
        if let Some(slot) = state.pods.get_mut(&request.uid) {
            slot.interfaces = interfaces.iter().map(|interface| interface.index).collect();
            slot.unguarded = unguarded;
            slot.straight = straight;
            slot.not_redirected = redirect.err();
            slot.road = road;
        }
        if state.maps.is_captured(netns.cookie()) {
            state.maps.add_pod(netns.cookie(), request.mtls)?;
        }
        if closed {
            state.kernel.forget_pod(netns.cookie())?;
            drop(state);
            self.cut_kernel_connections_of(netns.cookie());
        }
        Ok(())
    }

    /// To be called now and then, in case that news was lost: [`Capture::look_at_interfaces`]
    /// for every pod; says whether any wants it.
    pub async fn look_at_all_interfaces(&self) -> bool {
        let enrolled: Vec<_> = self.state().pods.keys().cloned().collect();
        let mut changed = false;
        for uid in enrolled {
            changed |= self.look_at_interfaces(&uid).await;
        }
        changed
    }

    /// To be called when interfaces of a pod have changed: guards those that are new. Where
    /// one is gone, the pod's address may be somebody else's by now: connections of the
    /// kernel path are cut. Says whether the plan of the kernel path wants to be made anew.
    pub async fn look_at_interfaces(&self, uid: &WorkloadUid) -> bool {
        let _alone = self.attaching.lock().await;
        let slot = {
            let state = self.state();
            state.pods.get(uid).and_then(|slot| {
                let request = slot.record.as_ref()?.pod.clone();
                let (addresses, interfaces) = (slot.addresses.clone(), slot.interfaces.clone());
                Some((request, Arc::clone(&slot.netns), addresses, interfaces))
            })
        };
        let Some((request, netns, addresses, known)) = slot else { return false };
        match self.follow_interfaces(&request, &netns, &addresses, &known).await {
            Ok(changed) => changed,
            Err(error) => {
                let error = chain(&error);
                tracing::error!(pod = %uid, error, "the pod's interfaces can't be looked after");
                false
            }
        }
    }

    /// What it means that a pod that had the interfaces `known` has `all` of these now; whether
    /// there is a difference. To be called by whoever is about to have new ones guarded: the
    /// pod's own news may come later than the node's.
    pub(super) fn note_interfaces(
        &self,
        uid: &WorkloadUid,
        netns_cookie: u64,
        known: &[u32],
        all: &[Interface],
    ) -> bool {
        let gone = known.iter().find(|index| all.iter().all(|link| link.index != **index));
        if let Some(gone) = gone {
            tracing::warn!(
                pod = %uid, interface = gone,
                "an interface is gone: the pod's connections of the kernel path are cut"
            );
            self.cut_kernel_connections_of(netns_cookie);
        }
        let new = all.iter().find(|link| link.up && !known.contains(&link.index));
        if let Some(new) = new {
            tracing::warn!(
                pod = %uid, interface = new.name,
                "an interface is new: guarded; plaintext that the pod takes may need it enrolled \
                 again"
            );
        }
        gone.is_some() || new.is_some()
    }

    async fn follow_interfaces(
        &self,
        request: &EnrollPod,
        netns: &PodNetns,
        addresses: &[IpAddr],
        known: &[u32],
    ) -> Result<bool, EnrollError> {
        let uid = &request.uid;
        let in_netns = |source| EnrollError::Netns { uid: uid.clone(), source };
        let all = netns.links().await.map_err(in_netns)?;
        if !self.note_interfaces(uid, netns.cookie(), known, &all) {
            return Ok(false);
        }
        let kernel = |source| EnrollError::Kernel { uid: uid.clone(), source: Box::new(source) };
        let swept = self.pins.sweep_guards(netns.cookie(), &all);
        let interfaces: Vec<_> = all.into_iter().filter(|link| link.up).collect();
        let attached = self.attach_programs(request, netns, addresses, &interfaces).await;
        swept.and(attached).map_err(kernel)?;
        Ok(true)
    }

    /// Attaches the guard as the operator wants it; why there is none, if so.
    pub(super) async fn guard(
        &self,
        uid: &WorkloadUid,
        netns: &PodNetns,
        interfaces: &[Interface],
        programs: &mut Ebpf,
    ) -> Result<Option<String>, CaptureError> {
        if self.guard == GuardMode::Off {
            self.detach_guards(netns, interfaces).await?;
            return Ok(Some("switched off".to_owned()));
        }
        match self.pins.attach_guard(programs, netns, interfaces, self.guard_attachment) {
            Ok(()) => Ok(None),
            Err(error) if self.guard == GuardMode::On => Err(error),
            Err(error) => {
                let why = brief(&chain(&error));
                tracing::warn!(pod = %uid, why, "the pod has no guard");
                Ok(Some(why))
            }
        }
    }

    /// Pods none of whose connections take the kernel path, and why.
    #[must_use]
    pub fn off_kernel_path(&self) -> Vec<(WorkloadUid, String)> {
        if self.guard == GuardMode::Off {
            return Vec::new();
        }
        let state = self.state();
        let slots = state.pods.iter().filter_map(|(uid, slot)| {
            slot.road.as_ref().err().map(|why| (uid.clone(), why.clone()))
        });
        slots.collect()
    }

    /// Pods without a guard, and why.
    #[must_use]
    pub fn unguarded(&self) -> Vec<(WorkloadUid, String)> {
        let state = self.state();
        let unguarded = state.pods.iter().filter_map(|(uid, slot)| {
            slot.unguarded.as_ref().map(|why| (uid.clone(), why.clone()))
        });
        unguarded.collect()
    }
}

/// Takes a guard off that was attached by a filter.
pub(super) fn detach_filter(
    place: &PodNetns,
    interface: &Interface,
    (name, side): (&'static str, TcAttachType),
) {
    let filter = || {
        SchedClassifierLink::attached(&interface.name, side, PRIORITY, HANDLE, None)
            .map_err(ProgramError::IOError)
            .and_then(Link::detach)
    };
    if let Ok(Err(error)) = place.run(filter) {
        // The usual case: it was attached by links.
        tracing::debug!(interface = interface.name, name, %error, "no filter");
    }
}

/// Attaches inside the namespace the thread is in; `None` where that left a filter.
fn attach(
    program: &mut SchedClassifier,
    interface: &str,
    side: TcAttachType,
    attachment: GuardAttachment,
) -> Result<Option<FdLink>, ProgramError> {
    if attachment == GuardAttachment::Best {
        let order = TcAttachOptions::TcxOrder(LinkOrder::first());
        match program.attach_with_options(interface, side, order) {
            Ok(id) => return program.take_link(id)?.try_into().map(Some).map_err(not_a_link),
            // The kernel does not know the attach type.
            Err(ProgramError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(error),
        }
    }
    match qdisc_add_clsact(interface) {
        Err(TcError::NetlinkError(error)) if exists(&error) => {}
        added => added?,
    }
    let options = || NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
    let id = match program.attach_with_options(interface, side, TcAttachOptions::Netlink(options()))
    {
        Err(ProgramError::TcError(TcError::NetlinkError(error))) if exists(&error) => {
            let before = SchedClassifierLink::attached(interface, side, PRIORITY, HANDLE, None)?;
            program.attach_to_link(before)?
        }
        attached => attached?,
    };
    // Dropped, it would be detached.
    std::mem::forget(program.take_link(id)?);
    Ok(None)
}

fn exists(error: &NetlinkError) -> bool {
    error.raw_os_error() == Some(libc::EEXIST)
}
