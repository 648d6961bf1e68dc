//! Probes: connections that processes of chosen cgroups, such as the kubelet's, open to
//! pods of their node pass to the application, whatever becomes of the agent.

use aya_ebpf::{
    bindings::BPF_TCP_CLOSE,
    helpers::bpf_get_current_ancestor_cgroup_id,
    programs::{SockAddrContext, SockOpsContext},
};
use mesh_common::{
    decide::Dial,
    key::TupleKey,
    value::{Asked, Probe, path},
    verdict::Verdict,
};

use crate::{
    connect::remember,
    ctx::read,
    maps::{POD_ADDRESSES, PROBERS, PROBES, count},
    sockops::{local, socket_cookie, watch_state},
};

/// Below the root of the hierarchy, cgroups this deep may be named.
const DEEPEST: i32 = 8;
/// `BPF_NOEXIST`.
const NO_EXIST: u64 = 1;

/// Whether a dial from outside every pod is a probe; it is then noted with its socket.
#[inline(always)]
pub fn begin(ctx: &SockAddrContext, dial: &Dial) -> bool {
    // SAFETY: read at once; entries are only replaced whole.
    let Some(cookie) = (unsafe { POD_ADDRESSES.get(&dial.destination) }) else { return false };
    let target_cookie = *cookie;
    if !is_prober() {
        return false;
    }
    let asked = Asked {
        netns_cookie: dial.netns_cookie,
        address: dial.destination,
        port: u32::from(dial.port),
        path: path::PROBE,
        target_cookie,
        target: dial.destination,
        target_port: u32::from(dial.port),
        splice: 0,
    };
    if !remember(ctx, dial, asked) {
        count(Verdict::ProbeFailed);
        return false;
    }
    count(Verdict::OutboundProbe);
    true
}

/// Who connects is the current process: its own word for where it comes from.
#[inline(always)]
fn is_prober() -> bool {
    let mut level = 0;
    while level < DEEPEST {
        // SAFETY: takes a number; 0 where the process is not that deep.
        let id = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
        if id != 0 && PROBERS.get_ptr(&id).is_some() {
            return true;
        }
        level += 1;
    }
    false
}

/// Before the SYN leaves.
#[inline(always)]
pub fn vouch(ctx: &SockOpsContext, asked: &Asked) {
    let probe = Probe { socket_cookie: socket_cookie(ctx) };
    if PROBES.insert(&tuple(ctx, asked), &probe, NO_EXIST).is_err() {
        count(Verdict::ProbeFailed);
        return;
    }
    watch_state(ctx);
}

/// A state has changed.
#[inline(always)]
pub fn follow(ctx: &SockOpsContext, asked: &Asked) {
    if read!((*ctx.ops).__bindgen_anon_1.args[1]) != BPF_TCP_CLOSE {
        return;
    }
    let key = tuple(ctx, asked);
    // SAFETY: read at once; the entry is only replaced whole.
    let mine =
        unsafe { PROBES.get(&key) }.is_some_and(|probe| probe.socket_cookie == socket_cookie(ctx));
    if mine {
        // Gone already is as well.
        let _ = PROBES.remove(&key);
    }
}

#[inline(always)]
fn tuple(ctx: &SockOpsContext, asked: &Asked) -> TupleKey {
    let (source, port) = local(ctx, asked);
    TupleKey {
        netns_cookie: asked.target_cookie,
        source,
        destination: asked.target,
        source_port: u32::from(port),
        destination_port: asked.target_port,
    }
}
