//! The interface outside a pod that its own is the peer of: a second guard there, and
//! whether packets may be handed straight from pod to pod (`bpf_redirect_peer`).
#![forbid(unsafe_code)]

use std::{fs, os::fd::AsFd};

use aya::{
    Ebpf,
    programs::{SchedClassifier, TcAttachType},
};
use futures_util::TryStreamExt;
use rtnetlink::packet_route::tc::TcAttribute;

use super::{
    enroll::{Capture, State},
    error::{brief, chain},
    guard::{GuardAttachment, HOST_PROGRAM},
    netlink,
    netns::{Interface, PodNetns},
};
use crate::model::{redirect::RedirectMode, workload::WorkloadUid};

impl Capture {
    /// Attaches the guard outside the pod, where there is such a place. Returns the
    /// interface there if packets of the kernel path may be handed in by it, or why not.
    pub(super) async fn attach_outside(
        &self,
        netns: &PodNetns,
        interfaces: &[Interface],
        programs: &mut Ebpf,
        guarded: bool,
        mode: RedirectMode,
    ) -> Result<u32, String> {
        if !guarded {
            return Err("the pod has no guard".to_owned());
        }
        let [inside] = interfaces else {
            return Err("the pod has several interfaces".to_owned());
        };
        let Some(outside) = outside(&self.own, netns, inside).await else {
            return Err(format!("{} is no veth into the node's namespace", inside.name));
        };
        if self.guard_attachment == GuardAttachment::Filters {
            return Err("the guard is attached by filters".to_owned());
        }
        self.pins
            .attach_host_guard(programs, netns.cookie(), &outside)
            .map_err(|error| brief(&chain(&error)))?;
        match mode {
            RedirectMode::Off => Err("switched off".to_owned()),
            RedirectMode::On => Ok(outside.index),
            RedirectMode::Auto => match occupant(&self.own, &outside).await {
                Some(why) => Err(why),
                None => Ok(outside.index),
            },
        }
    }

    /// Rules that came since a pod was enrolled may be about it.
    pub(super) fn retire_redirects(&self, state: &mut State) {
        let Ok(Some(why)) = self.own.run(netfilter) else { return };
        for (uid, slot) in &mut state.pods {
            let Some(record) = &slot.record else { continue };
            let mode = record.pod.redirect_peer.unwrap_or(self.redirect_peer);
            if mode != RedirectMode::Auto || slot.not_redirected.is_some() {
                continue;
            }
            match state.maps.set_redirect(slot.cookie, &[], None) {
                Ok(()) => slot.not_redirected = Some(why.clone()),
                Err(error) => tracing::warn!(pod = %uid, %error, "packets still go straight"),
            }
        }
    }

    /// Pods whose packets of the kernel path are not handed straight in, and why.
    #[must_use]
    pub fn not_redirected(&self) -> Vec<(WorkloadUid, String)> {
        let state = self.state();
        let slots = state.pods.iter().filter_map(|(uid, slot)| {
            slot.not_redirected.as_ref().map(|why| (uid.clone(), why.clone()))
        });
        slots.collect()
    }
}

/// The interface outside that is joined to a pod's `inside`, where it is a veth into the
/// agent's own namespace.
pub(super) async fn outside(
    own: &PodNetns,
    pod: &PodNetns,
    inside: &Interface,
) -> Option<Interface> {
    let index = inside.peer?;
    let all = own.interfaces().await.ok()?;
    let outside = all.into_iter().find(|interface| interface.index == index)?;
    // Numbers of namespaces are given when links are listed, as they have been now.
    let pods_number = own.run(|| netlink::nsid(pod.as_fd())).and_then(|number| number).ok()?;
    (outside.veth
        && outside.peer == Some(inside.index)
        && pods_number.is_some()
        && outside.peer_netns == pods_number)
        .then_some(outside)
}

/// What else wants to see the packets of an interface of the agent's namespace;
/// `None` where nothing does.
pub(super) async fn occupant(own: &PodNetns, interface: &Interface) -> Option<String> {
    let name = &interface.name;
    if interface.has_controller {
        return Some(format!("{name} is a port of a bridge"));
    }
    if interface.has_xdp {
        return Some(format!("an XDP program is on {name}"));
    }
    for side in [TcAttachType::Ingress, TcAttachType::Egress] {
        let programs = own.run(|| SchedClassifier::query_tcx(name, side));
        let programs = match programs {
            Ok(Ok((_, programs))) => programs,
            Ok(Err(error)) => return Some(format!("programs on {name} cannot be listed: {error}")),
            Err(error) => return Some(format!("the node's namespace cannot be entered: {error}")),
        };
        let mut names = programs.iter().map(|program| program.name_as_str().unwrap_or_default());
        // The kernel keeps 15 bytes of a name: all of ours.
        if let Some(other) = names.find(|name| *name != HOST_PROGRAM) {
            return Some(format!("program {other} is on {name}"));
        }
    }
    match qdisc(own, interface).await {
        Err(error) => return Some(format!("queues of {name} cannot be listed: {error}")),
        Ok(Some(kind)) => return Some(format!("queueing discipline {kind} is on {name}")),
        Ok(None) => {}
    }
    own.run(netfilter).unwrap_or_else(|error| Some(error.to_string()))
}

/// Rules of the calling thread's namespace that may be about pods: a NetworkPolicy's.
pub(super) fn netfilter() -> Option<String> {
    match netlink::has_nftables() {
        Ok(true) => return Some("there are nftables, of a NetworkPolicy maybe".to_owned()),
        Ok(false) => {}
        Err(error) => return Some(format!("nftables cannot be listed: {error}")),
    }
    for file in ["ip_tables_names", "ip6_tables_names"] {
        // Not there: the kernel has no such thing.
        let tables =
            fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
        if !tables.trim().is_empty() {
            return Some("there are iptables, of a NetworkPolicy maybe".to_owned());
        }
    }
    None
}

/// What queues packets on an interface, but for what every veth has.
async fn qdisc(own: &PodNetns, interface: &Interface) -> Result<Option<String>, rtnetlink::Error> {
    let Ok(netlink) = own.netlink() else { return Ok(Some("unknown".to_owned())) };
    let index = i32::try_from(interface.index).unwrap_or_default();
    let mut found = netlink.handle.qdisc().get().index(index).execute();
    while let Some(message) = found.try_next().await? {
        // The kernel may tell of other interfaces too.
        if message.header.index != index {
            continue;
        }
        for attribute in message.attributes {
            if let TcAttribute::Kind(kind) = attribute
                && kind != "noqueue"
            {
                return Ok(Some(kind));
            }
        }
    }
    Ok(None)
}
