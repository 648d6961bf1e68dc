//! The kernel path's share of `sock_ops`: vouches for a connection before its SYN
//! leaves, follows it to its end, and tells the agent.

use aya_ebpf::{
    bindings::{
        BPF_TCP_CLOSE, BPF_TCP_CLOSE_WAIT, BPF_TCP_CLOSING, BPF_TCP_ESTABLISHED, BPF_TCP_FIN_WAIT2,
        BPF_TCP_LAST_ACK,
    },
    helpers::bpf_ktime_get_ns,
    programs::SockOpsContext,
};
use mesh_common::{
    decide::{Tables, leads_to},
    key::{ServiceKey, TupleKey},
    value::{Asked, Authorized, Event, Owner, fin, path},
    verdict::Verdict,
};

use crate::{
    ctx::read,
    maps::{AUTHORIZED, EVENTS, KernelTables, SERVICES, count, count_authorized},
    sockops::{local, socket_cookie, watch_state},
};

/// `BPF_NOEXIST`: a tuple that is vouched for already stays its owner's.
const NO_EXIST: u64 = 1;

/// Before the SYN leaves, the source port is known. Where this fails, the destination's
/// agent gets the connection and refuses it: nobody vouched.
#[inline(always)]
pub fn vouch(ctx: &SockOpsContext, asked: &mut Asked) {
    if !insert(ctx, asked) {
        asked.path = path::UNVOUCHED;
    }
}

#[inline(always)]
fn insert(ctx: &SockOpsContext, asked: &Asked) -> bool {
    let service = ServiceKey::new(asked.netns_cookie, asked.address, asked.port as u16);
    // SAFETY: entries are only replaced whole; the kernel keeps what was looked up until
    // the program ends.
    let holds = unsafe { SERVICES.get(&service) }.is_some_and(|s| leads_to(s, asked));
    if !holds {
        count(Verdict::KernelPathStale);
        return false;
    }
    let key = tuple(ctx, asked);
    // A transparent socket may use an address that is not the pod's: not ours to vouch for.
    if !matches!(KernelTables.owner(asked.netns_cookie, &key.source), Owner::Pod) {
        count(Verdict::AuthorizeFailed);
        return false;
    }
    let connection = Authorized {
        asked: asked.address,
        asked_port: asked.port,
        fin: 0,
        source_cookie: asked.netns_cookie,
        socket_cookie: socket_cookie(ctx),
        // SAFETY: takes no argument.
        opened_ns: unsafe { bpf_ktime_get_ns() },
        established_ns: 0,
        received_at_fin: 0,
        seen: 0,
        splice: asked.splice,
        spliced_up: 0,
        spliced_down: 0,
        spliced_ns: 0,
    };
    if AUTHORIZED.insert(&key, &connection, NO_EXIST).is_err() {
        count(Verdict::AuthorizeFailed);
        return false;
    }
    count_authorized(1);
    count(Verdict::Authorized);
    watch_state(ctx);
    true
}

/// A state has changed.
#[inline(always)]
pub fn follow(ctx: &SockOpsContext, asked: &Asked) {
    let old = read!((*ctx.ops).__bindgen_anon_1.args[0]);
    let new = read!((*ctx.ops).__bindgen_anon_1.args[1]);
    // Most tell nothing.
    if !matches!(
        new,
        BPF_TCP_ESTABLISHED
            | BPF_TCP_CLOSE_WAIT
            | BPF_TCP_CLOSING
            | BPF_TCP_FIN_WAIT2
            | BPF_TCP_CLOSE
    ) {
        return;
    }
    let key = tuple(ctx, asked);
    let Some(connection) = AUTHORIZED.get_ptr_mut(&key) else { return };
    // SAFETY: the kernel keeps what was looked up until the program ends; only the
    // client's socket, whose states change one by one, writes these fields.
    let connection = unsafe { &mut *connection };
    if connection.socket_cookie != socket_cookie(ctx) {
        return;
    }
    let received = read!((*ctx.ops).bytes_received);
    match new {
        BPF_TCP_ESTABLISHED => {
            // SAFETY: takes no argument.
            connection.established_ns = unsafe { bpf_ktime_get_ns() };
            tell(ctx, Event::ESTABLISHED, old, &key, connection);
        }
        BPF_TCP_CLOSE_WAIT | BPF_TCP_CLOSING => connection.fin |= fin::RECEIVED,
        BPF_TCP_FIN_WAIT2 => {
            connection.fin |= fin::ACKNOWLEDGED;
            connection.received_at_fin = received;
        }
        BPF_TCP_CLOSE => {
            // A socket that nobody holds leaves FIN_WAIT2 at once, without the FIN.
            if old == BPF_TCP_FIN_WAIT2 && received > connection.received_at_fin {
                connection.fin |= fin::RECEIVED;
            }
            if old == BPF_TCP_LAST_ACK || old == BPF_TCP_CLOSING {
                connection.fin |= fin::ACKNOWLEDGED;
            }
            tell(ctx, Event::CLOSED, old, &key, connection);
            if AUTHORIZED.remove(&key).is_ok() {
                count_authorized(-1);
            }
        }
        _ => {}
    }
}

#[inline(always)]
fn tell(ctx: &SockOpsContext, kind: u32, old: u32, key: &TupleKey, connection: &Authorized) {
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        count(Verdict::EventLost);
        return;
    };
    entry.write(Event {
        kind,
        old_state: old,
        tuple: *key,
        connection: *connection,
        // SAFETY: takes no argument.
        at_ns: unsafe { bpf_ktime_get_ns() },
        bytes_acked: read!((*ctx.ops).bytes_acked),
        bytes_received: read!((*ctx.ops).bytes_received),
        srtt_us_times_8: read!((*ctx.ops).srtt_us),
        retransmits: read!((*ctx.ops).total_retrans),
    });
    entry.submit(0);
}

/// The connection as it arrives at its destination.
#[inline(always)]
pub fn tuple(ctx: &SockOpsContext, asked: &Asked) -> TupleKey {
    let (source, port) = local(ctx, asked);
    TupleKey {
        netns_cookie: asked.target_cookie,
        source,
        destination: asked.target,
        source_port: u32::from(port),
        destination_port: asked.target_port,
    }
}
