//! `cgroup/connect4` and `connect6`: an enrolled pod's TCP dials go to the agent.

use aya_ebpf::{
    helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns, generated::bpf_set_retval},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use aya_log_ebpf::info;
use mesh_common::{
    abi::OUTBOUND_PORT,
    address::Address,
    decide::{Dial, Outbound, Tables, is_agent_mark, outbound, pick},
    key::ServiceKey,
    value::{Asked, Backend, Owner, path},
    verdict::Verdict,
};

use crate::{
    ctx::{self, IPPROTO_TCP, read},
    maps::{
        ASKED, KernelTables, SERVICES, VOUCHED, count, has_room, is_alive, is_served, log_enabled,
        pod_entry,
    },
    probe,
};

const ALLOW: i32 = 1;
const REFUSE: i32 = 0;

const ECONNREFUSED: i32 = 111;

#[cgroup_sock_addr(connect4)]
pub fn mesh_connect4(ctx: SockAddrContext) -> i32 {
    connect(&ctx, false)
}

#[cgroup_sock_addr(connect6)]
pub fn mesh_connect6(ctx: SockAddrContext) -> i32 {
    connect(&ctx, true)
}

#[inline(always)]
fn connect(ctx: &SockAddrContext, v6: bool) -> i32 {
    let dial = Dial {
        netns_cookie: ctx::netns_cookie(ctx),
        tcp: read!((*ctx.sock_addr).protocol) == IPPROTO_TCP,
        agent: is_agent(ctx),
        destination: ctx::user_address(ctx, v6),
        port: ctx::user_port(ctx),
    };
    match outbound(&dial, &KernelTables) {
        Outbound::Pass(Verdict::OutboundNotEnrolled) if probe::begin(ctx, &dial) => ALLOW,
        Outbound::Pass(verdict) => {
            count(verdict);
            if !matches!(verdict, Verdict::OutboundNotTcp | Verdict::OutboundNotEnrolled) {
                forget(ctx);
            }
            ALLOW
        }
        Outbound::Refuse(verdict) => {
            count(verdict);
            log(ctx, &dial, verdict);
            REFUSE
        }
        Outbound::Capture => match kernel_path(ctx, v6, &dial) {
            Some(backend) => shortcut(ctx, v6, &dial, backend),
            None => capture(ctx, v6, &dial),
        },
    }
}

/// The mark is asked first, for few sockets have it; the proof is in the storage.
#[inline(always)]
fn is_agent(ctx: &SockAddrContext) -> bool {
    // SAFETY: the context is this program's own and carries a socket.
    is_agent_mark(ctx::mark(ctx)) && !unsafe { VOUCHED.get(ctx) }.is_null()
}

/// The pod of this node that the connection may go to without the agent. Any doubt
/// is the agent's to settle.
#[inline(always)]
fn kernel_path(ctx: &SockAddrContext, v6: bool, dial: &Dial) -> Option<&'static Backend> {
    let key = ServiceKey::new(dial.netns_cookie, dial.destination, dial.port);
    // SAFETY: entries are only replaced whole; the kernel keeps what was looked up
    // until the program ends.
    let service = unsafe { SERVICES.get(&key) }?;
    // Verdicts are as good as the agent that keeps them up to date, unless the operator
    // wants them kept without.
    // SAFETY: takes no argument.
    if !is_served(dial.netns_cookie) && unsafe { bpf_ktime_get_ns() } >= service.keep_until_ns {
        count(Verdict::KernelPathNoAgent);
        return None;
    }
    let bound = ctx::bound_address(ctx, v6);
    if !bound.is_unspecified()
        && !matches!(KernelTables.owner(dial.netns_cookie, &bound), Owner::Pod)
    {
        count(Verdict::KernelPathBound);
        return None;
    }
    if !has_room() {
        count(Verdict::KernelPathFull);
        return None;
    }
    // SAFETY: takes no argument.
    let backend = pick(service, unsafe { bpf_get_prandom_u32() })?;
    if !KernelTables.enrolled(backend.netns_cookie) {
        count(Verdict::KernelPathStale);
        return None;
    }
    Some(backend)
}

#[inline(always)]
fn shortcut(ctx: &SockAddrContext, v6: bool, dial: &Dial, backend: &Backend) -> i32 {
    let target = backend.address;
    let port = backend.port;
    let asked = Asked {
        netns_cookie: dial.netns_cookie,
        address: dial.destination,
        port: u32::from(dial.port),
        path: path::KERNEL,
        target_cookie: backend.netns_cookie,
        target,
        target_port: port,
        splice: backend.splice,
    };
    if !remember(ctx, dial, asked) {
        return REFUSE;
    }
    ctx::set_user_address(ctx, v6, &target, port as u16);
    count(Verdict::OutboundKernelPath);
    log(ctx, dial, Verdict::OutboundKernelPath);
    ALLOW
}

#[inline(always)]
fn capture(ctx: &SockAddrContext, v6: bool, dial: &Dial) -> i32 {
    if !is_alive() {
        count(Verdict::OutboundNoAgent);
        log(ctx, dial, Verdict::OutboundNoAgent);
        // As where nobody listens.
        // SAFETY: takes a number; where the kernel refuses it, EPERM is what is left.
        unsafe { bpf_set_retval(-ECONNREFUSED) };
        return REFUSE;
    }
    let asked = Asked {
        netns_cookie: dial.netns_cookie,
        address: dial.destination,
        port: u32::from(dial.port),
        path: path::AGENT,
        target_cookie: 0,
        target: Address::UNSPECIFIED,
        target_port: 0,
        splice: pod_entry(dial.netns_cookie).map_or(0, |pod| pod.splice),
    };
    if !remember(ctx, dial, asked) {
        return REFUSE;
    }
    let agent = if dial.destination.is_v4() {
        Address::from_v4_be(u32::from_be_bytes([127, 0, 0, 1]).to_be())
    } else {
        Address([0, 0, 0, 1_u32.to_be()])
    };
    ctx::set_user_address(ctx, v6, &agent, OUTBOUND_PORT);
    count(Verdict::OutboundCaptured);
    log(ctx, dial, Verdict::OutboundCaptured);
    ALLOW
}

/// Keeps what the application asked for with its socket.
#[inline(always)]
pub fn remember(ctx: &SockAddrContext, dial: &Dial, mut asked: Asked) -> bool {
    // SAFETY: the context is this program's own and carries a socket.
    let stored = unsafe { ASKED.get_or_insert_ptr_mut(ctx, Some(&mut asked)) };
    if stored.is_null() {
        count(Verdict::OutboundNoStorage);
        log(ctx, dial, Verdict::OutboundNoStorage);
        return false;
    }
    // A socket that connects again already has storage, with its earlier wish.
    // SAFETY: not null, and the storage lives as long as the socket.
    unsafe { *stored = asked };
    true
}

/// A socket that was captured before and now is not must not show the old address.
#[inline(always)]
fn forget(ctx: &SockAddrContext) {
    let sk = ctx::socket(ctx);
    if !sk.is_null() {
        // SAFETY: not null; nothing to delete is no failure.
        let _ = unsafe { ASKED.delete(sk) };
    }
}

#[inline(always)]
fn log(ctx: &SockAddrContext, dial: &Dial, verdict: Verdict) {
    if log_enabled() {
        info!(
            ctx,
            "connect netns={} port={} address={:x}:{:x} verdict={}",
            dial.netns_cookie,
            dial.port,
            u32::from_be(dial.destination.0[2]),
            u32::from_be(dial.destination.0[3]),
            verdict as u32
        );
    }
}
