//! `sk_msg`: what a spliced socket sends goes straight into its peer's.

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, BPF_TCP_CLOSE_WAIT, BPF_TCP_ESTABLISHED, bpf_sock, sk_action},
    helpers::{
        bpf_ktime_get_coarse_ns,
        generated::{bpf_msg_redirect_hash, bpf_sk_storage_get},
    },
    macros::sk_msg,
    programs::SkMsgContext,
};
use mesh_common::{
    abi::{SPLICE_AHEAD_BYTES, SPLICE_AHEAD_MESSAGES},
    decide::{may_run_ahead, one_more_message, way_after},
    key::SpliceSide,
    value::{Leg, Splice, Way},
    verdict::Verdict,
};

use crate::{
    ctx::read,
    maps::{AUTHORIZED, GRANTS, SPLICE, SPLICED, count},
};

/// Never drops: the application would see EACCES. Without the peer it is TCP's to
/// answer, as for any connection whose peer is gone.
#[sk_msg]
pub fn mesh_sk_msg(ctx: SkMsgContext) -> u32 {
    let Some((splice, sends)) = splice(&ctx) else { return sk_action::SK_PASS };
    if !sends {
        // After `shutdown`, or disconnected: TCP says so.
        splice.way = Way::Tcp as u32;
    }
    let way = Way::from_number(splice.way);
    if way == Way::Tcp {
        return sk_action::SK_PASS;
    }
    let size = u64::from(read!((*ctx.msg).size));
    if splice.leg == Leg::ToAgent as u32 && !is_granted(splice, size) {
        splice.way = Way::Tcp as u32;
        count(Verdict::SpliceOverdrawn);
        return sk_action::SK_PASS;
    }
    // The map of sockets keeps one that its owner has disconnected, or that was cut, for as
    // long as it is open: what it would be handed could be read.
    if splice.leg == Leg::None as u32 && AUTHORIZED.get_ptr(&splice.tuple).is_none() {
        splice.way = Way::Tcp as u32;
        return sk_action::SK_PASS;
    }
    let taken = redirect(&ctx, splice);
    if way == Way::Undecided {
        splice.way = way_after(way, taken) as u32;
        count(if taken { Verdict::SpliceBegun } else { Verdict::SpliceLeft });
    }
    if taken && splice.leg == Leg::None as u32 {
        account(splice, size);
    } else if taken {
        splice.sent += size;
    }
    sk_action::SK_PASS
}

/// Whether the agent, which may have read on, lets so much more be queued for it.
#[inline(always)]
fn is_granted(splice: &mut Splice, size: u64) -> bool {
    if splice.messages >= SPLICE_AHEAD_MESSAGES || !may_run_ahead(splice.sent, size, splice.granted)
    {
        // SAFETY: read at once; entries are only replaced whole.
        if let Some(granted) = unsafe { GRANTS.get(&splice.peer) } {
            splice.granted = *granted;
        }
    }
    if !may_run_ahead(splice.sent, size, splice.granted) {
        return false;
    }
    let read = splice.granted.saturating_sub(SPLICE_AHEAD_BYTES);
    match one_more_message(splice.mark, splice.messages, splice.sent, read) {
        Some((mark, messages)) => {
            splice.mark = mark;
            splice.messages = messages;
            true
        }
        None => false,
    }
}

/// What the socket knows, and whether TCP would let it send: nobody else asks before.
#[inline(always)]
fn splice(ctx: &SkMsgContext) -> Option<(&'static mut Splice, bool)> {
    // SAFETY: every sk_msg context has this field; it may be null.
    let sk: *mut bpf_sock = unsafe { (*ctx.msg).__bindgen_anon_3.sk };
    if sk.is_null() {
        return None;
    }
    // SAFETY: not null, and the kernel holds it for the length of the program.
    let state = unsafe { core::ptr::read_volatile(core::ptr::addr_of!((*sk).state)) };
    // SAFETY: a map of socket storage and a socket that is not null; nothing is created.
    let splice: *mut Splice = unsafe {
        bpf_sk_storage_get(
            core::ptr::addr_of!(SPLICE).cast_mut().cast(),
            sk.cast(),
            core::ptr::null_mut(),
            0,
        )
    }
    .cast();
    if splice.is_null() {
        return None;
    }
    // SAFETY: not null, the storage lives as long as the socket, and the socket's lock,
    // which is held, keeps other senders away.
    let splice = unsafe { &mut *splice };
    Some((splice, matches!(state, BPF_TCP_ESTABLISHED | BPF_TCP_CLOSE_WAIT)))
}

#[inline(always)]
fn redirect(ctx: &SkMsgContext, splice: &Splice) -> bool {
    let mut peer = splice.peer;
    // SAFETY: the program's own context, a map of sockets and a key of its size.
    let action = unsafe {
        bpf_msg_redirect_hash(
            ctx.msg,
            core::ptr::addr_of!(SPLICED).cast_mut().cast(),
            core::ptr::from_mut(&mut peer).cast(),
            u64::from(BPF_F_INGRESS),
        )
    };
    action as u32 == sk_action::SK_PASS
}

/// TCP never sees these bytes.
#[inline(always)]
fn account(splice: &Splice, bytes: u64) {
    let Some(connection) = AUTHORIZED.get_ptr_mut(&splice.tuple) else { return };
    // SAFETY: the kernel keeps what was looked up until the program ends; each counter
    // has one socket that writes it.
    unsafe {
        if splice.peer.side == SpliceSide::Server as u32 {
            (*connection).spliced_up += bytes;
        } else {
            (*connection).spliced_down += bytes;
        }
        (*connection).spliced_ns = bpf_ktime_get_coarse_ns();
    }
}
