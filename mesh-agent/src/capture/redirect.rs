//! The interface outside a pod that its own is the peer of: a second guard there, and
//! whether packets may be handed straight from pod to pod (`bpf_redirect_peer`).
#![forbid(unsafe_code)]

use std::{collections::HashMap, fs, io, net::IpAddr, os::fd::AsFd, sync::Arc};

use aya::{
    Ebpf,
    programs::{SchedClassifier, TcAttachType},
};
use futures_util::TryStreamExt;
use mesh_common::value::Outside;
use rtnetlink::packet_route::tc::TcAttribute;

use super::{
    error::{CaptureError, brief, chain},
    guard::{GuardAttachment, HOST_PROGRAM, detach_filter},
    netlink::{self, Multicast},
    netns::{Interface, Netlink, NetnsError, PodNetns},
    node::{Capture, State},
};
use crate::model::{redirect::RedirectMode, workload::WorkloadUid};

/// The one way into a pod for packets of the kernel path, and out of it.
#[derive(Debug, Clone)]
pub(super) struct Road {
    inside: Interface,
    outside: Interface,
    /// What the node's routes lead to: `outside`, or the bridge that it is a port of.
    route: u32,
    /// The pod's addresses.
    addresses: Vec<IpAddr>,
    /// Those of them that the node's routes lead there for.
    pub(super) reachable: Vec<IpAddr>,
}

impl Road {
    /// Whether packets for one of the pod's addresses get there.
    pub(super) fn reaches(&self, address: IpAddr) -> bool {
        self.reachable.contains(&address)
    }

    /// Whether those for all its addresses of a family do.
    pub(super) fn reaches_all(&self, v4: bool) -> bool {
        let mut family = self.addresses.iter().filter(|address| address.is_ipv4() == v4);
        family.all(|address| self.reaches(*address))
    }

    /// Whether packets go by `other` as they do by this.
    fn is_as(&self, other: &Self) -> bool {
        self.entry(0, false) == other.entry(0, false) && self.reachable == other.reachable
    }

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
                let bridge = all.iter().find(|link| link.index == controller);
                if let Some(why) = self.bridge_objects(bridge, &outside) {
                    return Err(why);
                }
                controller
            }
        };
        let netlink = self.own.netlink().map_err(|error| error.to_string())?;
        let reachable = self.reachable(netns.cookie(), &netlink, addresses, route).await;
        if reachable.is_empty() {
            let taken =
                addresses.iter().find(|ip| self.state().maps.is_of_another(netns.cookie(), **ip));
            if let Some(address) = taken {
                return Err(format!("another pod of the node has had {address} before"));
            }
            return Err(format!("the node's routes to the pod do not lead to {}", outside.name));
        }
        Ok(Road { inside, outside, route, addresses: addresses.to_vec(), reachable })
    }

    /// Why packets may not be sent out of a port past what `bridge` would do with them.
    fn bridge_objects(&self, bridge: Option<&Interface>, port: &Interface) -> Option<String> {
        let name = &port.name;
        match bridge {
            Some(bridge) if bridge.bridge && bridge.filters_vlans => {
                Some(format!("{name} is a port of {}, which filters VLANs", bridge.name))
            }
            Some(bridge) if bridge.bridge => {
                if port.isolated {
                    return Some(format!("{name} is an isolated port of {}", bridge.name));
                }
                let why = self.own.run(bridge_netfilter).unwrap_or_else(|e| Some(e.to_string()))?;
                Some(format!("what crosses {} may be filtered: {why}", bridge.name))
            }
            _ => Some(format!("{name} is a port of what is no bridge")),
        }
    }

    /// Tells when links, routes or routing rules of the agent's own namespace change. The
    /// caller is in a tokio runtime.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn roads_watch(&self) -> io::Result<Multicast> {
        self.own.run(Multicast::roads)?
    }

    /// To be called when those change: a pod that packets of the kernel path cannot reach
    /// as they did, or can again, goes off that path or onto it. Says whether the plan wants
    /// to be made anew, and connections to be judged.
    pub async fn look_at_roads(&self) -> bool {
        let Ok(links) = self.own.links().await else { return false };
        let Ok(netlink) = self.own.netlink() else { return false };
        let enrolled: Vec<_> = self.state().pods.keys().cloned().collect();
        let mut changed = false;
        for uid in enrolled {
            changed |= self.look_at_road(&uid, &links, &netlink).await;
        }
        changed
    }

    async fn look_at_road(
        &self,
        uid: &WorkloadUid,
        links: &[Interface],
        netlink: &Netlink,
    ) -> bool {
        let _alone = self.attaching.lock().await;
        let slot = {
            let state = self.state();
            state.pods.get(uid).filter(|slot| slot.unguarded.is_none()).and_then(|slot| {
                let request = slot.record.as_ref()?.pod.clone();
                let (addresses, road) = (slot.addresses.clone(), slot.road.clone());
                Some((request, Arc::clone(&slot.netns), addresses, slot.interfaces.clone(), road))
            })
        };
        let Some((request, netns, addresses, inside, known)) = slot else { return false };
        if let Ok(road) = &known
            && self.holds(netns.cookie(), road, links, netlink).await
        {
            return false;
        }
        // What cannot be listed is looked at again.
        let Ok(all) = netns.links().await else { return false };
        let swept = self.pins.sweep_guards(netns.cookie(), &all);
        let interfaces: Vec<_> = all.iter().filter(|link| link.up).cloned().collect();
        let now = self.road(&netns, &interfaces, &addresses).await;
        match (&known, &now) {
            (Ok(known), Ok(now)) if known.is_as(now) => return false,
            (Err(known), Err(now)) if known == now => return false,
            (_, Ok(road)) => tracing::info!(
                pod = %uid, interface = road.outside.name, reachable = ?road.reachable,
                "the way to the pod has changed: the kernel path goes by it"
            ),
            (_, Err(why)) => tracing::warn!(
                pod = %uid, why, "the way to the pod has changed: it is off the kernel path"
            ),
        }
        self.note_interfaces(uid, netns.cookie(), &inside, &all);
        let attached = self.attach_programs(&request, &netns, &addresses, &interfaces).await;
        match swept.and(attached) {
            Ok(()) => true,
            Err(error) => {
                let error = chain(&error);
                tracing::error!(pod = %uid, error, "the way to the pod can't be followed");
                false
            }
        }
    }

    /// Whether the node still has a road as it was found.
    async fn holds(
        &self,
        cookie: u64,
        road: &Road,
        links: &[Interface],
        netlink: &Netlink,
    ) -> bool {
        let by_index = |index: u32| links.iter().find(|link| link.index == index);
        let Some(outside) = by_index(road.outside.index) else { return false };
        let bridged = road.route != road.outside.index;
        outside.up
            && outside.peer == road.outside.peer
            && outside.controller == road.outside.controller
            && !(bridged && self.bridge_objects(by_index(road.route), outside).is_some())
            && self.reachable(cookie, netlink, &road.addresses, road.route).await == road.reachable
    }

    /// Those of a pod's addresses that the node's routes lead to the interface `route` for, and
    /// that no other pod had before: to a bridge they lead for all of its pods.
    async fn reachable(
        &self,
        cookie: u64,
        netlink: &Netlink,
        addresses: &[IpAddr],
        route: u32,
    ) -> Vec<IpAddr> {
        let mut reachable = Vec::new();
        for address in addresses {
            if netlink.route_to(*address).await == Some(route) {
                reachable.push(*address);
            }
        }
        let state = self.state();
        reachable.retain(|address| !state.maps.is_of_another(cookie, *address));
        reachable
    }

    /// Whether what is for the pod may pass by whatever the node has on the way, and why not.
    pub(super) async fn may_go_straight(
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
            RedirectMode::On => Ok(()),
            RedirectMode::Auto => match occupant(&self.own, &road.outside).await {
                Some(why) => Err(why),
                None => Ok(()),
            },
        }
    }

    /// Whether the guard outside is attached by a link, as from Linux 6.6 on.
    pub(super) fn has_links(&self, road: &Road) -> bool {
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
    pub(super) fn retire_redirects(&self, state: &mut State) -> bool {
        let Ok(Some(why)) = self.own.run(netfilter) else { return false };
        let mut any = false;
        for (uid, slot) in &mut state.pods {
            let Some(record) = &slot.record else { continue };
            let mode = record.pod.redirect_peer.unwrap_or(self.redirect_peer);
            if mode != RedirectMode::Auto {
                continue;
            }
            any |= slot.straight.is_ok();
            slot.straight = Err(why.clone());
            if slot.not_redirected.is_some() {
                continue;
            }
            match state.maps.stop_redirect(slot.cookie) {
                Ok(()) => slot.not_redirected = Some(why.clone()),
                Err(error) => tracing::warn!(pod = %uid, %error, "packets still go straight"),
            }
        }
        any
    }

    /// Pods whose traffic with each other may stay within the agent, by the node's own
    /// routes to them: at which addresses.
    #[must_use]
    pub fn straight(&self) -> HashMap<WorkloadUid, Vec<IpAddr>> {
        let state = self.state();
        let slots = state.pods.iter().filter_map(|(uid, slot)| {
            let (road, Ok(())) = (slot.road.as_ref().ok()?, &slot.straight) else { return None };
            Some((uid.clone(), road.reachable.clone()))
        });
        slots.collect()
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

/// Rules of the calling thread's namespace that may be about what crosses a bridge.
fn bridge_netfilter() -> Option<String> {
    match netlink::has_bridge_nftables() {
        Ok(true) => return Some("there are nftables of the bridge family".to_owned()),
        Ok(false) => {}
        Err(error) => return Some(format!("nftables cannot be listed: {error}")),
    }
    // Not there: `br_netfilter` is not loaded, and no other family's rules see bridges.
    let asks = |name: &&str| {
        let value = fs::read_to_string(format!("/proc/sys/net/bridge/bridge-nf-call-{name}"));
        value.is_ok_and(|value| value.trim() != "0")
    };
    if ["iptables", "ip6tables"].iter().any(asks) { netfilter() } else { None }
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
