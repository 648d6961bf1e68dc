//! `sock_ops`: publishes the original destination before the SYN leaves, and vouches
//! for connections of the kernel path.

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
        BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB,
        BPF_TCP_CLOSE, BPF_TCP_SYN_SENT,
    },
    helpers::{
        bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_ktime_get_ns,
        generated::bpf_sk_storage_get,
    },
    macros::sock_ops,
    programs::SockOpsContext,
};
use mesh_common::{
    address::Address,
    key::ConnectionKey,
    value::{Asked, OriginalDestination, path},
    verdict::Verdict,
};

use crate::{
    authorize,
    ctx::{AF_INET6, read},
    leg,
    maps::{ASKED, ORIGINAL_DESTINATIONS, count},
    probe, splice,
};

/// Always 1: the return value means nothing for these callbacks, and the verifier
/// wants 0 or 1.
#[sock_ops]
pub fn mesh_sock_ops(ctx: SockOpsContext) -> u32 {
    match read!((*ctx.ops).op) {
        BPF_SOCK_OPS_TCP_CONNECT_CB => {
            splice::part(&ctx);
            match asked(&ctx) {
                Some(asked) => match asked.path {
                    path::KERNEL => authorize::vouch(&ctx, asked),
                    path::PROBE => probe::vouch(&ctx, asked),
                    path::AGENT => publish(&ctx, asked),
                    _ => {}
                },
                None => leg::announce(&ctx),
            }
        }
        BPF_SOCK_OPS_STATE_CB => match asked(&ctx) {
            Some(asked) => match asked.path {
                path::KERNEL => authorize::follow(&ctx, asked),
                path::PROBE => probe::follow(&ctx, asked),
                path::AGENT => withdraw(&ctx, asked),
                _ => {}
            },
            None => leg::follow(&ctx),
        },
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => match asked(&ctx) {
            Some(asked) if asked.splice == 0 => {}
            Some(asked) if asked.path == path::AGENT => leg::application(&ctx, asked),
            Some(asked) => splice::client(&ctx, asked),
            None => leg::agent(&ctx),
        },
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => splice::server(&ctx),
        _ => {}
    }
    1
}

#[inline(always)]
fn publish(ctx: &SockOpsContext, asked: &Asked) {
    let key = connection_key(ctx, asked);
    let value = OriginalDestination {
        address: asked.address,
        port: asked.port,
        splice: asked.splice,
        socket_cookie: socket_cookie(ctx),
        // SAFETY: takes no argument.
        published_ns: unsafe { bpf_ktime_get_ns() },
    };
    if ORIGINAL_DESTINATIONS.insert(&key, &value, 0).is_err() {
        // The agent finds no original destination and resets the connection.
        count(Verdict::PublishFailed);
        return;
    }
    count(Verdict::Published);
    // Needed to withdraw; without it the entry stays until the agent sweeps.
    watch_state(ctx);
}

/// Asks the kernel to call when the socket's state changes.
#[inline(always)]
pub fn watch_state(ctx: &SockOpsContext) {
    let flags = read!((*ctx.ops).bpf_sock_ops_cb_flags) | BPF_SOCK_OPS_STATE_CB_FLAG;
    let _ = ctx.set_cb_flags(flags as i32);
}

/// An attempt that never got established has nobody to accept it. One that was is
/// the agent's to take, even if the client has closed since.
#[inline(always)]
fn withdraw(ctx: &SockOpsContext, asked: &Asked) {
    let old = read!((*ctx.ops).__bindgen_anon_1.args[0]);
    let new = read!((*ctx.ops).__bindgen_anon_1.args[1]);
    if old != BPF_TCP_SYN_SENT || new != BPF_TCP_CLOSE {
        return;
    }
    let key = connection_key(ctx, asked);
    // SAFETY: read at once; the entry is only replaced whole.
    let published_by = match unsafe { ORIGINAL_DESTINATIONS.get(&key) } {
        Some(value) => value.socket_cookie,
        None => return,
    };
    // The port may have been given to another socket meanwhile.
    if published_by == socket_cookie(ctx) && ORIGINAL_DESTINATIONS.remove(&key).is_ok() {
        count(Verdict::Withdrawn);
    }
}

/// What the connect hook remembered: only captured sockets have it.
#[inline(always)]
fn asked(ctx: &SockOpsContext) -> Option<&'static mut Asked> {
    // SAFETY: every sock_ops context has this field; it may be null.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() {
        return None;
    }
    // SAFETY: a map of socket storage and a socket that is not null; nothing is created.
    let asked: *mut Asked = unsafe {
        bpf_sk_storage_get(
            core::ptr::addr_of!(ASKED).cast_mut().cast(),
            sk.cast(),
            core::ptr::null_mut(),
            0,
        )
    }
    .cast();
    if asked.is_null() {
        return None;
    }
    // SAFETY: not null, the storage lives as long as the socket, and the socket's lock,
    // which is held, keeps other writers away.
    Some(unsafe { &mut *asked })
}

#[inline(always)]
pub fn connection_key(ctx: &SockOpsContext, asked: &Asked) -> ConnectionKey {
    let (source, port) = local(ctx, asked);
    ConnectionKey::new(asked.netns_cookie, source, port)
}

/// The client's own address and port.
#[inline(always)]
pub fn local(ctx: &SockOpsContext, asked: &Asked) -> (Address, u16) {
    // Both are read whatever the family: reads in two branches are merged into one
    // at a computed offset, which the verifier refuses.
    let v4 = Address::from_v4_be(read!((*ctx.ops).local_ip4));
    let v6 = Address([
        read!((*ctx.ops).local_ip6[0]),
        read!((*ctx.ops).local_ip6[1]),
        read!((*ctx.ops).local_ip6[2]),
        read!((*ctx.ops).local_ip6[3]),
    ]);
    // An IPv6 socket that dials a mapped IPv4 address talks IPv4.
    let source = if asked.address.is_v4() { v4 } else { v6 };
    (source, read!((*ctx.ops).local_port) as u16)
}

#[inline(always)]
pub fn socket_cookie(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the helper takes the program's own context.
    unsafe { bpf_get_socket_cookie(ctx.ops.cast()) }
}

/// Both ends of a socket, ports in host byte order.
pub struct Ends {
    pub netns_cookie: u64,
    pub local: Address,
    pub remote: Address,
    pub local_port: u32,
    pub remote_port: u32,
}

/// What a connected socket, or one that dials, says of itself.
#[inline(always)]
pub fn ends(ctx: &SockOpsContext) -> Ends {
    let v6 = read!((*ctx.ops).family) == AF_INET6;
    // Read whatever the family: see `local`.
    let local4 = Address::from_v4_be(read!((*ctx.ops).local_ip4));
    let local6 = Address([
        read!((*ctx.ops).local_ip6[0]),
        read!((*ctx.ops).local_ip6[1]),
        read!((*ctx.ops).local_ip6[2]),
        read!((*ctx.ops).local_ip6[3]),
    ]);
    let remote4 = Address::from_v4_be(read!((*ctx.ops).remote_ip4));
    let remote6 = Address([
        read!((*ctx.ops).remote_ip6[0]),
        read!((*ctx.ops).remote_ip6[1]),
        read!((*ctx.ops).remote_ip6[2]),
        read!((*ctx.ops).remote_ip6[3]),
    ]);
    Ends {
        // SAFETY: the helper takes the program's own context.
        netns_cookie: unsafe { bpf_get_netns_cookie(ctx.ops.cast()) },
        local: if v6 { local6 } else { local4 },
        remote: if v6 { remote6 } else { remote4 },
        local_port: read!((*ctx.ops).local_port),
        // Big-endian, in the low half after the swap of all four bytes.
        remote_port: u32::from_be(read!((*ctx.ops).remote_port)) & 0xffff,
    }
}
