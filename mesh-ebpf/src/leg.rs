//! Applications' sockets and the agent's: both ends of what an application asked for and the
//! agent accepted, and of what the agent dials to an application. On the loopback of the pod,
//! in the clear, and never those by which the agent reaches anybody else.

use aya_ebpf::{
    bindings::BPF_TCP_CLOSE, helpers::generated::bpf_sk_storage_get, programs::SockOpsContext,
};
use mesh_common::{
    key::{ConnectionKey, SpliceKey, SpliceSide, TupleKey},
    value::{Asked, Leg, vouched},
    verdict::Verdict,
};

use crate::{
    ctx::read,
    maps::{LEGS, ORIGINAL_DESTINATIONS, VOUCHED, count, pod_entry},
    sockops::{Ends, connection_key, ends, local, socket_cookie, watch_state},
    splice::enter,
};

/// An application's handshake with the agent is over.
#[inline(always)]
pub fn application(ctx: &SockOpsContext, asked: &Asked) {
    // What went with the SYN (Fast Open) is on TCP already, and could be overtaken.
    if read!((*ctx.ops).data_segs_out) != 0 {
        count(Verdict::SpliceRefused);
        return;
    }
    let cookie = socket_cookie(ctx);
    let key = connection_key(ctx, asked);
    // SAFETY: read at once; the entry is only replaced whole.
    let opened_ns = match unsafe { ORIGINAL_DESTINATIONS.get(&key) } {
        Some(published) if published.socket_cookie == cookie && published.splice != 0 => {
            published.published_ns
        }
        _ => return,
    };
    let (source, port) = local(ctx, asked);
    // Nothing is accounted for by it.
    let tuple = TupleKey {
        netns_cookie: asked.netns_cookie,
        source,
        destination: asked.address,
        source_port: u32::from(port),
        destination_port: asked.port,
    };
    let own = SpliceKey::new(asked.netns_cookie, cookie, opened_ns, SpliceSide::Client);
    enter(ctx, &tuple, own, Leg::ToAgent);
}

/// The agent's listener for what the pod asks for got a connection, `tuple`. Nothing else
/// than applications' plaintext arrives there, and only what was captured has an entry.
#[inline(always)]
pub fn captured(ctx: &SockOpsContext, tuple: &TupleKey) {
    let netns = tuple.netns_cookie;
    let key = ConnectionKey::new(netns, tuple.source, tuple.source_port as u16);
    // SAFETY: read at once; the entry is only replaced whole.
    let (client, opened_ns) = match unsafe { ORIGINAL_DESTINATIONS.get(&key) } {
        Some(published) if published.splice != 0 => {
            (published.socket_cookie, published.published_ns)
        }
        _ => return,
    };
    let own = SpliceKey::new(netns, client, opened_ns, SpliceSide::Server);
    enter(ctx, tuple, own, Leg::FromAgent);
}

/// Before the SYN of somebody whom the connect hook does not know leaves: where it is a dial
/// of the agent's to an application, the application's end will look for it.
#[inline(always)]
pub fn announce(ctx: &SockOpsContext) {
    if !is_plaintext(ctx) {
        return;
    }
    let key = own_tuple(ctx);
    if pod_entry(key.netns_cookie).is_none_or(|pod| pod.splice == 0) {
        return;
    }
    if LEGS.insert(&key, &socket_cookie(ctx), 0).is_err() {
        count(Verdict::SpliceRefused);
        return;
    }
    watch_state(ctx);
}

/// Such a dial is through.
#[inline(always)]
pub fn agent(ctx: &SockOpsContext) {
    if !is_plaintext(ctx) {
        return;
    }
    let key = own_tuple(ctx);
    if is_announced(ctx, &key) {
        let own = SpliceKey::new(key.netns_cookie, socket_cookie(ctx), 0, SpliceSide::Client);
        enter(ctx, &key, own, Leg::FromAgent);
    }
}

/// An application's listener got the connection `tuple`, which carries the agent's mark.
#[inline(always)]
pub fn dialled(ctx: &SockOpsContext, tuple: &TupleKey) {
    let netns = tuple.netns_cookie;
    if pod_entry(netns).is_none_or(|pod| pod.splice == 0) {
        return;
    }
    // SAFETY: read at once; the entry is only replaced whole.
    let Some(cookie) = (unsafe { LEGS.get(tuple) }) else { return };
    let own = SpliceKey::new(netns, *cookie, 0, SpliceSide::Server);
    enter(ctx, tuple, own, Leg::ToAgent);
}

/// A state of the agent's dial has changed.
#[inline(always)]
pub fn follow(ctx: &SockOpsContext) {
    if read!((*ctx.ops).__bindgen_anon_1.args[1]) != BPF_TCP_CLOSE || !is_plaintext(ctx) {
        return;
    }
    let key = own_tuple(ctx);
    if is_announced(ctx, &key) {
        // Gone already is as well.
        let _ = LEGS.remove(&key);
    }
}

#[inline(always)]
fn is_announced(ctx: &SockOpsContext, key: &TupleKey) -> bool {
    // SAFETY: read at once; the entry is only replaced whole.
    unsafe { LEGS.get(key) }.is_some_and(|cookie| *cookie == socket_cookie(ctx))
}

/// Whether the agent has said of its socket that it carries plaintext to an application.
#[inline(always)]
fn is_plaintext(ctx: &SockOpsContext) -> bool {
    // SAFETY: every sock_ops context has this field; it may be null.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() {
        return false;
    }
    // SAFETY: a map of socket storage and a socket that is not null; nothing is created.
    let said: *const u32 = unsafe {
        bpf_sk_storage_get(
            core::ptr::addr_of!(VOUCHED).cast_mut().cast(),
            sk.cast(),
            core::ptr::null_mut(),
            0,
        )
    }
    .cast();
    // SAFETY: not null, and the storage lives as long as the socket.
    !said.is_null() && unsafe { *said } == vouched::PLAINTEXT_TO_APPLICATION
}

/// The connection of a socket that dials, as it arrives.
#[inline(always)]
fn own_tuple(ctx: &SockOpsContext) -> TupleKey {
    let Ends { netns_cookie, local, remote, local_port, remote_port } = ends(ctx);
    TupleKey {
        netns_cookie,
        source: local,
        destination: remote,
        source_port: local_port,
        destination_port: remote_port,
    }
}
