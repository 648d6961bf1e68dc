//! `splice`'s share of `sock_ops`: the only place where a socket enters `SPLICED`. Here those
//! of connections that the kernel path has vouched for; in [`crate::leg`] an application's
//! and the agent's. None of them carries TLS of the mesh.

use aya_ebpf::{
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    helpers::{
        bpf_map_delete_elem,
        generated::{bpf_sk_storage_get, bpf_skc_to_mptcp_sock, bpf_sock_hash_update},
    },
    programs::SockOpsContext,
};
use mesh_common::{
    abi::{APPLICATION_MARK, OUTBOUND_PORT, SPLICE_AHEAD_BYTES},
    key::{SpliceKey, SpliceSide, TupleKey},
    value::{Asked, Leg, Splice, Way},
    verdict::Verdict,
};

use crate::{
    authorize::tuple,
    ctx::read,
    leg,
    maps::{AUTHORIZED, SPLICE, SPLICED, count},
    sockops::{Ends, ends, socket_cookie},
};

/// `BPF_NOEXIST`: nobody takes another's place.
const NO_EXIST: u64 = 1;

/// The client's handshake is over.
#[inline(always)]
pub fn client(ctx: &SockOpsContext, asked: &Asked) {
    // What went with the SYN (Fast Open) is on TCP already, and could be overtaken.
    if read!((*ctx.ops).data_segs_out) != 0 {
        count(Verdict::SpliceRefused);
        return;
    }
    let key = tuple(ctx, asked);
    // SAFETY: read at once.
    let (owner, opened_ns) = match unsafe { AUTHORIZED.get(&key) } {
        Some(connection) => (connection.socket_cookie, connection.opened_ns),
        None => return,
    };
    if owner == socket_cookie(ctx) {
        let own = SpliceKey::new(asked.netns_cookie, owner, opened_ns, SpliceSide::Client);
        enter(ctx, &key, own, Leg::None);
    }
}

/// Somebody's listener got a connection.
#[inline(always)]
pub fn server(ctx: &SockOpsContext) {
    let key = accepted(ctx);
    if key.destination_port == u32::from(OUTBOUND_PORT) {
        return leg::captured(ctx, &key);
    }
    // What the agent dials comes from a client's address, and maybe from the very port that
    // the client dials from itself: the mark, which no other packet brings along, tells them
    // apart.
    if mark(ctx) == APPLICATION_MARK {
        return leg::dialled(ctx, &key);
    }
    // SAFETY: read at once.
    let Some(connection) = (unsafe { AUTHORIZED.get(&key) }) else { return };
    if connection.splice == 0 || connection.seen == 0 {
        return;
    }
    let own = SpliceKey::new(
        connection.source_cookie,
        connection.socket_cookie,
        connection.opened_ns,
        SpliceSide::Server,
    );
    enter(ctx, &key, own, Leg::None);
}

/// Before the SYN of a socket that was connected before: the kernel leaves one that is
/// disconnected in the map, with what it has not read. Both are of the earlier connection,
/// and that one's other end may still be there.
#[inline(always)]
pub fn part(ctx: &SockOpsContext) {
    // SAFETY: every sock_ops context has this field; it may be null.
    let sk: *mut bpf_sock = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() {
        return;
    }
    // SAFETY: a map of socket storage and a socket that is not null; nothing is created.
    let stored: *mut Splice = unsafe {
        bpf_sk_storage_get(
            core::ptr::addr_of!(SPLICE).cast_mut().cast(),
            sk.cast(),
            core::ptr::null_mut(),
            0,
        )
    }
    .cast();
    if stored.is_null() {
        return;
    }
    // SAFETY: not null, and the storage lives as long as the socket; then a map of sockets,
    // and a key of its size; then a socket that is not null. Nothing to delete is no failure.
    unsafe {
        let own = (*stored).peer.other_end();
        bpf_map_delete_elem(
            core::ptr::addr_of!(SPLICED).cast_mut().cast(),
            core::ptr::from_ref(&own).cast(),
        );
        let _ = SPLICE.delete(sk);
    }
}

/// What the socket is marked with; an accepted one by what asked for it
/// (`tcp_fwmark_accept`).
#[inline(always)]
fn mark(ctx: &SockOpsContext) -> u32 {
    // SAFETY: every sock_ops context has this field; it may be null.
    let sk: *mut bpf_sock = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() {
        return 0;
    }
    // SAFETY: not null, and the kernel holds it for the length of the program.
    unsafe { core::ptr::read_volatile(core::ptr::addr_of!((*sk).mark)) }
}

/// The connection that a listener got.
#[inline(always)]
fn accepted(ctx: &SockOpsContext) -> TupleKey {
    let Ends { netns_cookie, local, remote, local_port, remote_port } = ends(ctx);
    TupleKey {
        netns_cookie,
        source: remote,
        destination: local,
        source_port: remote_port,
        destination_port: local_port,
    }
}

/// First what the socket must know, then the place where its peer finds it: it may be
/// handed data from then on.
#[inline(always)]
pub fn enter(ctx: &SockOpsContext, tuple: &TupleKey, mut own: SpliceKey, leg: Leg) {
    // SAFETY: every sock_ops context has this field; it may be null.
    let sk: *mut bpf_sock = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() {
        return;
    }
    // A subflow of Multipath TCP: what is read and written of it is past the map's hooks, and
    // what its peer hands it would never be read.
    // SAFETY: a socket that is not null.
    if !unsafe { bpf_skc_to_mptcp_sock(sk.cast()) }.is_null() {
        count(Verdict::SpliceRefused);
        return;
    }
    let mut splice = Splice {
        peer: own.other_end(),
        tuple: *tuple,
        sent: 0,
        granted: SPLICE_AHEAD_BYTES,
        mark: 0,
        messages: 0,
        way: Way::Undecided as u32,
        leg: leg as u32,
        _zero: 0,
    };
    // SAFETY: a map of socket storage, a socket that is not null, and its value.
    let stored: *mut Splice = unsafe {
        bpf_sk_storage_get(
            core::ptr::addr_of!(SPLICE).cast_mut().cast(),
            sk.cast(),
            core::ptr::from_mut(&mut splice).cast(),
            u64::from(BPF_SK_STORAGE_GET_F_CREATE),
        )
    }
    .cast();
    let entered = !stored.is_null() && {
        // One that was connected before has what it knew then.
        // SAFETY: not null, and the storage lives as long as the socket; then a map of
        // sockets, a key of its size, and the program's own context.
        unsafe {
            *stored = splice;
            bpf_sock_hash_update(
                ctx.ops,
                core::ptr::addr_of!(SPLICED).cast_mut().cast(),
                core::ptr::from_mut(&mut own).cast(),
                NO_EXIST,
            ) == 0
        }
    };
    count(match leg {
        _ if !entered => Verdict::SpliceRefused,
        Leg::None => Verdict::SpliceEntered,
        Leg::ToAgent | Leg::FromAgent => Verdict::SpliceAgentEntered,
    });
}
