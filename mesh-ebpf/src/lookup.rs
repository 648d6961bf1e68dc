//! `sk_lookup`: connections from outside an enrolled pod go to the agent's listeners.
//!
//! The hook cannot ask for its namespace's cookie, so each pod gets its own
//! instance of the program with [`POD`] set when it is loaded.

use aya_ebpf::{
    bindings::sk_action, helpers::bpf_ktime_get_ns, macros::sk_lookup, programs::SkLookupContext,
};
use mesh_common::{
    abi::LOOPBACK_IFINDEX,
    address::Address,
    decide::{Arrival, Inbound, inbound, may_knock},
    key::{ListenerKey, ListenerKind, ServiceKey, TupleKey},
    value::Authorized,
    verdict::Verdict,
};

use crate::{
    ctx::{AF_INET6, IPPROTO_TCP, read},
    maps::{AUTHORIZED, KernelTables, LISTENERS, PROBES, SERVICES, count, is_alive, is_served},
};

/// `ENOENT`: no socket under the key.
const ENOENT: i32 = 2;

/// The pod's netns cookie. Written by the loader.
#[unsafe(no_mangle)]
static POD: u64 = 0;

/// The pod that this instance is for.
#[inline(always)]
pub fn pod() -> u64 {
    // SAFETY: a valid static; volatile, for its value is not the compiler's to know.
    unsafe { core::ptr::read_volatile(core::ptr::addr_of!(POD)) }
}

#[sk_lookup]
pub fn mesh_sk_lookup(ctx: SkLookupContext) -> u32 {
    let netns_cookie = pod();
    // Read whatever the family: see `sockops::connection_key`.
    let v4 = Address::from_v4_be(read!((*ctx.lookup).remote_ip4));
    let v6 = Address([
        read!((*ctx.lookup).remote_ip6[0]),
        read!((*ctx.lookup).remote_ip6[1]),
        read!((*ctx.lookup).remote_ip6[2]),
        read!((*ctx.lookup).remote_ip6[3]),
    ]);
    let arrival = Arrival {
        source: if read!((*ctx.lookup).family) == AF_INET6 { v6 } else { v4 },
        netns_cookie,
        tcp: read!((*ctx.lookup).protocol) == IPPROTO_TCP,
        from_loopback: read!((*ctx.lookup).ingress_ifindex) == LOOPBACK_IFINDEX,
        port: read!((*ctx.lookup).local_port) as u16,
    };
    let judged = inbound(&arrival, &KernelTables);
    // A port that is left alone lets everyone in; who was vouched for is noted all the same.
    if matches!(
        judged,
        Inbound::Steer(ListenerKind::Inbound) | Inbound::Pass(Verdict::InboundPortExcluded)
    ) && let Some(verdict) = vouched_for(&ctx, &arrival)
    {
        count(verdict);
        return sk_action::SK_PASS;
    }
    match judged {
        Inbound::Pass(verdict) => {
            count(verdict);
            sk_action::SK_PASS
        }
        Inbound::Refuse(verdict) => {
            count(verdict);
            sk_action::SK_DROP
        }
        Inbound::Steer(kind) => steer(&ctx, netns_cookie, kind),
    }
}

/// Whether a pod of this node that policy lets in, or a prober, is about to open just
/// this connection: its connect hook has said so.
#[inline(always)]
fn vouched_for(ctx: &SkLookupContext, arrival: &Arrival) -> Option<Verdict> {
    let v4 = Address::from_v4_be(read!((*ctx.lookup).local_ip4));
    let v6 = Address([
        read!((*ctx.lookup).local_ip6[0]),
        read!((*ctx.lookup).local_ip6[1]),
        read!((*ctx.lookup).local_ip6[2]),
        read!((*ctx.lookup).local_ip6[3]),
    ]);
    let key = TupleKey {
        netns_cookie: arrival.netns_cookie,
        source: arrival.source,
        destination: if read!((*ctx.lookup).family) == AF_INET6 { v6 } else { v4 },
        source_port: u32::from(u16::from_be(read!((*ctx.lookup).remote_port))),
        destination_port: u32::from(arrival.port),
    };
    let Some(connection) = AUTHORIZED.get_ptr_mut(&key) else {
        return PROBES.get_ptr(&key).map(|_| Verdict::InboundProbe);
    };
    // SAFETY: the kernel keeps what was looked up until the program ends; `seen` is
    // this program's own to write.
    unsafe {
        // A SYN may come long after the connect hook has looked for the agent.
        if (*connection).established_ns == 0
            && !is_served(arrival.netns_cookie)
            && !is_kept(&*connection)
        {
            count(Verdict::KernelPathNoAgent);
            return None;
        }
        if !may_knock(&*connection, bpf_ktime_get_ns()) {
            count(Verdict::InboundExpired);
            return None;
        }
        (*connection).seen = 1;
    }
    Some(Verdict::InboundAuthorized)
}

/// Whether the verdict is one to keep while no agent is there.
#[inline(always)]
fn is_kept(connection: &Authorized) -> bool {
    let asked = connection.asked_port as u16;
    let key = ServiceKey::new(connection.source_cookie, connection.asked, asked);
    // SAFETY: entries are only replaced whole; the kernel keeps what was looked up until
    // the program ends; the other takes no argument.
    unsafe { SERVICES.get(&key).is_some_and(|s| bpf_ktime_get_ns() < s.keep_until_ns) }
}

/// Without an agent that listens the connection is refused, never passed.
#[inline(always)]
fn steer(ctx: &SkLookupContext, netns_cookie: u64, kind: ListenerKind) -> u32 {
    let v6 = read!((*ctx.lookup).family) == AF_INET6;
    let key = ListenerKey::new(netns_cookie, kind, v6);
    if !is_alive() {
        count(Verdict::InboundNoListener);
        return sk_action::SK_DROP;
    }
    match LISTENERS.redirect_sk_lookup(ctx, &key, 0) {
        Ok(()) => {
            count(match kind {
                ListenerKind::Inbound => Verdict::InboundSteered,
                ListenerKind::Hbone => Verdict::InboundHbone,
            });
            sk_action::SK_PASS
        }
        Err(error) => {
            count(if error == -ENOENT {
                Verdict::InboundNoListener
            } else {
                Verdict::InboundAssignFailed
            });
            sk_action::SK_DROP
        }
    }
}
