//! The interface outside a pod that its own is the peer of: a second guard there, and
//! whether packets may be handed straight from pod to pod (`bpf_redirect_peer`).
#![forbid(unsafe_code)]

use std::{fs, net::IpAddr, os::fd::AsFd};

use aya::{
    Ebpf,
    programs::{SchedClassifier, TcAttachType},
};
use futures_util::TryStreamExt;
use mesh_common::value::Outside;
use rtnetlink::packet_route::tc::TcAttribute;

use super::{
    enroll::{Capture, State},
    error::{CaptureError, brief, chain},
    guard::{GuardAttachment, HOST_PROGRAM, detach_filter},
    netlink,
    netns::{Interface, NetnsError, PodNetns},
};
use crate::model::{redirect::RedirectMode, workload::WorkloadUid};

/// The one way into a pod for packets of the kernel path, and out of it.
pub(super) struct Road {
    inside: Interface,
    outside: Interface,
    /// What the node's routes lead to: `outside`, or the bridge that it is a port of.
    route: u32,
    /// The pod's addresses that they lead there for.
    pub(super) reachable: Vec<IpAddr>,
}

impl Road {
    /// As the programs read it.
    pub(super) fn entry(&self, netns_cookie: u64, redirect: bool) -> Outside {
        Outside {
            netns_cookie,
            interface: self.outside.index,
            route: self.route,
            inside: self.inside.index,
            redirect: redirect.into(),
            hardware: self.inside.hardware.unwrap_or_default(),
            _zero: 0,
        }
    }
}

impl Capture {
    /// Attaches the guard outside the pod, where there is such a place. Without it the pod's
    /// connections stay off the kernel path: nobody would see that they leave the node.
    pub(super) async fn attach_outside(
        &self,
        netns: &PodNetns,
        interfaces: &[Interface],
        programs: &mut Ebpf,
        addresses: &[IpAddr],
    ) -> Result<Road, String> {
        let road = self.road(netns, interfaces, addresses).await?;
        let cookie = netns.cookie();
        self.pins
            .attach_one(
                programs,
                cookie,
                &self.own,
                &road.outside,
                HOST_PROGRAM,
                self.guard_attachment,
            )
            .map_err(|error| brief(&chain(&error)))?;
        Ok(road)
    }

    async fn road(
        &self,
        netns: &PodNetns,
        interfaces: &[Interface],
        addresses: &[IpAddr],
    ) -> Result<Road, String> {
        let mut pairs = Vec::new();
        for inside in interfaces {
            if let Some(outside) = outside(&self.own, netns, inside).await {
                pairs.push((inside.clone(), outside));
            }
        }
        let (inside, outside) = match (pairs.pop(), pairs.len()) {
            (Some(pair), 0) => pair,
            (None, _) => return Err("no interface is a veth into the node's namespace".to_owned()),
            _ => return Err("several interfaces lead into the node's namespace".to_owned()),
        };
        let route = match outside.controller {
            None => outside.index,
            Some(controller) => {
                let failed = |error: NetnsError| brief(&chain(&error));
                let all = self.own.links().await.map_err(failed)?;
                if !all.iter().any(|link| link.index == controller && link.bridge) {
                    return Err(format!("{} is a port of what is no bridge", outside.name));
                }
                controller
            }
        };
        let mut reachable = Vec::new();
        for address in addresses {
            if self.own.route_to(*address).await.is_ok_and(|found| found == Some(route)) {
                reachable.push(*address);
            }
        }
        if reachable.is_empty() {
            return Err(format!("the node's routes to the pod do not lead to {}", outside.name));
        }
        Ok(Road { inside, outside, route, reachable })
    }

    /// Whether packets of the kernel path may be handed straight into the pod, and why not.
    pub(super) async fn may_redirect(
        &self,
        road: &Road,
        interfaces: &[Interface],
        mode: RedirectMode,
    ) -> Result<(), String> {
        if interfaces.len() > 1 {
            return Err("the pod has several interfaces".to_owned());
        }
        match mode {
            RedirectMode::Off => Err("switched off".to_owned()),
            _ if !self.has_links(road) => Err("the guard is attached by filters".to_owned()),
            RedirectMode::On => Ok(()),
            RedirectMode::Auto => match occupant(&self.own, &road.outside).await {
                Some(why) => Err(why),
                None => Ok(()),
            },
        }
    }

    /// Whether the guard outside is attached by a link, as from Linux 6.6 on.
    fn has_links(&self, road: &Road) -> bool {
        let listed =
            || SchedClassifier::query_tcx(&road.outside.name, TcAttachType::Ingress).is_ok();
        self.guard_attachment == GuardAttachment::Best && self.own.run(listed).unwrap_or_default()
    }

    /// Takes all guards off a pod that is there.
    pub(super) async fn detach_guards(
        &self,
        netns: &PodNetns,
        interfaces: &[Interface],
    ) -> Result<(), CaptureError> {
        for inside in interfaces {
            if let Some(outside) = outside(&self.own, netns, inside).await {
                detach_filter(&self.own, &outside, HOST_PROGRAM);
            }
        }
        self.pins.detach_guard(netns.cookie(), Some((netns, interfaces)))
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
            match state.maps.stop_redirect(slot.cookie) {
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
    if interface.controller.is_some() {
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
        if let Some(other) = names.find(|name| *name != HOST_PROGRAM.0) {
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
