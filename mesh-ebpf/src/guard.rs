//! The guard: drops what capture should have taken and did not, on the pod's own
//! interface. It stays with the interface, agent or not.
//!
//! It works inside the pod's namespace, where packets still have their sockets. Each
//! pod has instances of its own, as of the lookup program.

use core::mem;

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH,
        BPF_FIB_LKUP_RET_SUCCESS, BPF_SK_STORAGE_GET_F_CREATE, BPF_TCP_LISTEN, bpf_fib_lookup,
        bpf_sock, bpf_sock_tuple,
        tcx_action_base::{TCX_DROP, TCX_NEXT},
    },
    helpers::{
        bpf_redirect_peer, bpf_sk_fullsock, bpf_sk_release, bpf_skb_load_bytes, bpf_skc_lookup_tcp,
        generated::{bpf_fib_lookup, bpf_sk_storage_get},
    },
    macros::classifier,
    programs::TcContext,
};
use mesh_common::{
    abi::stamp,
    address::Address,
    guard::{
        Frame, Holder, Kind, Look, Onward, Packet, Route, Way, arrives, classify, judge, look,
        onward,
    },
    key::TupleKey,
    value::{Asked, Passed, PodEntry, path},
    verdict::Verdict,
};

use crate::{
    ctx::{AF_INET6, IPPROTO_TCP, read},
    lookup::pod,
    maps::{
        ASKED, AUTHORIZED, KernelTables, OUTSIDES, PASSED, PROBES, VOUCHED, count, drops_non_tcp,
        pod_entry,
    },
};

/// `AF_INET` on Linux.
const AF_INET: u8 = 2;
/// `SOCK_STREAM`: raw sockets may say `IPPROTO_TCP` too.
const SOCK_STREAM: u32 = 1;
/// `BPF_F_CURRENT_NETNS`.
const CURRENT_NETNS: u64 = u64::MAX;

#[classifier]
pub fn mesh_guard_in(ctx: TcContext) -> i32 {
    guard(&ctx, Way::Ingress)
}

#[classifier]
pub fn mesh_guard_out(ctx: TcContext) -> i32 {
    guard(&ctx, Way::Egress)
}

/// What it lets pass is the next program's to judge.
#[inline(always)]
fn guard(ctx: &TcContext, way: Way) -> i32 {
    let netns_cookie = pod();
    let Some(entry) = pod_entry(netns_cookie) else { return TCX_NEXT };
    match verdict(ctx, way, netns_cookie, entry) {
        Ok(()) => TCX_NEXT,
        Err(verdict) => {
            count(verdict);
            TCX_DROP
        }
    }
}

#[inline(always)]
fn verdict(ctx: &TcContext, way: Way, netns_cookie: u64, entry: &PodEntry) -> Result<(), Verdict> {
    let frame = Skb(ctx.skb.skb);
    let packet = classify(&frame)?;
    let strict = entry.strict != 0;
    match (look(&packet, way, netns_cookie, drops_non_tcp(), &KernelTables), way) {
        (Look::Drop(verdict), _) => Err(verdict),
        (Look::Socket, Way::Ingress) => {
            let holder = receiver(&frame, &packet, netns_cookie);
            judge(&packet, way, holder, netns_cookie, strict, &KernelTables)
        }
        (Look::Socket, Way::Egress) => {
            let holder = sender(&frame, &packet, netns_cookie);
            judge(&packet, way, holder, netns_cookie, strict, &KernelTables)?;
            if matches!(holder, Holder::KernelPath) {
                return frame.let_out(entry);
            }
            frame.stamp(stamp::SEEN);
            Ok(())
        }
        // An acknowledgement must not be overtaken by the data behind it.
        (Look::Pass, Way::Egress)
            if entry.redirect != 0
                && matches!(packet.kind, Kind::Tcp)
                && matches!(sender(&frame, &packet, netns_cookie), Holder::KernelPath) =>
        {
            frame.let_out(entry)
        }
        (Look::Pass, _) => Ok(()),
    }
}

/// Outside the pod, on the interface that its own is the peer of: what comes out.
#[classifier]
pub fn mesh_guard_host(ctx: TcContext) -> i32 {
    let netns_cookie = pod();
    let Some(entry) = pod_entry(netns_cookie) else { return TCX_NEXT };
    let frame = Skb(ctx.skb.skb);
    let verdict = match classify(&frame) {
        Ok(packet) => {
            let stamped = read!((*frame.0).tc_index);
            match onward(&packet, stamped, netns_cookie, drops_non_tcp(), &KernelTables) {
                Onward::Pass => return TCX_NEXT,
                Onward::KernelPath => match stays(&frame, &packet, entry) {
                    Ok(action) => return action,
                    Err(verdict) => verdict,
                },
                Onward::Drop(verdict) => verdict,
            }
        }
        Err(verdict) => verdict,
    };
    count(verdict);
    TCX_DROP
}

/// Handed straight in, which the pod's own guard sees, or by the node's routes; never to
/// somebody else, who may have the address by now.
#[inline(always)]
fn stays(frame: &Skb, packet: &Packet, entry: &PodEntry) -> Result<i32, Verdict> {
    // SAFETY: entries are only replaced whole; the kernel keeps what was looked up until
    // the program ends.
    let to = unsafe { OUTSIDES.get(&packet.destination) };
    if let Some(to) = to
        && to.redirect != 0
        && entry.redirect != 0
    {
        count(Verdict::Redirected);
        // SAFETY: takes numbers. Where the interface is gone, the packet is dropped.
        return Ok(unsafe { bpf_redirect_peer(to.interface, 0) as i32 });
    }
    let hardware = frame.load::<6>(0).ok_or(Verdict::GuardMalformed)?;
    if arrives(packet, hardware, to, || frame.route(packet)) {
        Ok(TCX_NEXT)
    } else {
        Err(Verdict::GuardAstray)
    }
}

/// A packet in the kernel.
struct Skb(*mut __sk_buff);

impl Skb {
    #[inline(always)]
    fn stamp(&self, stamp: u32) {
        // SAFETY: the program's own context, in which a classifier may write this field.
        unsafe { core::ptr::write_volatile(core::ptr::addr_of_mut!((*self.0).tc_index), stamp) }
    }

    /// Out of the pod, by the interface that has a guard outside.
    #[inline(always)]
    fn let_out(&self, entry: &PodEntry) -> Result<(), Verdict> {
        if read!((*self.0).ifindex) != entry.road {
            return Err(Verdict::GuardAstray);
        }
        self.stamp(stamp::KERNEL_PATH);
        Ok(())
    }

    /// Where the routes of the namespace that the packet is in lead it.
    #[inline(always)]
    fn route(&self, packet: &Packet) -> Option<Route> {
        // SAFETY: plain integers.
        let mut asked: bpf_fib_lookup = unsafe { mem::zeroed() };
        asked.l4_protocol = IPPROTO_TCP as u8;
        asked.ifindex = read!((*self.0).ifindex);
        if packet.source.is_v4() {
            asked.family = AF_INET;
            asked.__bindgen_anon_3.ipv4_src = packet.source.0[3];
            asked.__bindgen_anon_4.ipv4_dst = packet.destination.0[3];
        } else {
            asked.family = AF_INET6 as u8;
            asked.__bindgen_anon_3.ipv6_src = packet.source.0;
            asked.__bindgen_anon_4.ipv6_dst = packet.destination.0;
        }
        let size = mem::size_of::<bpf_fib_lookup>() as i32;
        // SAFETY: the program's own context, and a request of the size that is told.
        let found = unsafe { bpf_fib_lookup(self.0.cast(), &raw mut asked, size, 0) };
        match found as u32 {
            BPF_FIB_LKUP_RET_SUCCESS => {
                Some(Route { interface: asked.ifindex, next: Some(asked.dmac) })
            }
            // Since Linux 5.12 the interface is told all the same.
            BPF_FIB_LKUP_RET_NO_NEIGH | BPF_FIB_LKUP_RET_FRAG_NEEDED => {
                Some(Route { interface: asked.ifindex, next: None })
            }
            _ => None,
        }
    }
}

impl Frame for Skb {
    #[inline(always)]
    fn length(&self) -> u32 {
        read!((*self.0).len)
    }

    #[inline(always)]
    fn tagged(&self) -> bool {
        read!((*self.0).vlan_present) != 0
    }

    #[inline(always)]
    fn load<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        // SAFETY: the program's own context, and a buffer of the length that is told.
        let failed =
            unsafe { bpf_skb_load_bytes(self.0.cast(), at, bytes.as_mut_ptr().cast(), N as u32) };
        (failed == 0).then_some(bytes)
    }
}

/// Whose a packet is that leaves the pod: the kernel keeps a packet's socket with it.
#[inline(always)]
fn sender(frame: &Skb, packet: &Packet, netns_cookie: u64) -> Holder {
    // SAFETY: every context of a classifier has this field; it may be null.
    let sk = unsafe { (*frame.0).__bindgen_anon_2.sk };
    if sk.is_null() {
        return Holder::Nobody;
    }
    // SAFETY: not null, and alive as long as its packet.
    let sk = unsafe { bpf_sk_fullsock(sk) };
    if sk.is_null() {
        return Holder::Nobody;
    }
    let key = TupleKey {
        netns_cookie,
        source: packet.destination,
        destination: packet.source,
        source_port: u32::from(packet.destination_port),
        destination_port: u32::from(packet.source_port),
    };
    holder(sk, &key)
}

/// Whose a packet is that comes into the pod.
#[inline(always)]
fn receiver(frame: &Skb, packet: &Packet, netns_cookie: u64) -> Holder {
    let [s0, s1, s2, s3] = packet.source.0;
    let [d0, d1, d2, d3] = packet.destination.0;
    let (sport, dport) = (packet.source_port.to_be(), packet.destination_port.to_be());
    // SAFETY: plain integers; each member of the union is written whole.
    let mut tuple: bpf_sock_tuple = unsafe { mem::zeroed() };
    let size = if packet.source.is_v4() {
        // SAFETY: as above.
        unsafe {
            tuple.__bindgen_anon_1.ipv4.saddr = s3;
            tuple.__bindgen_anon_1.ipv4.daddr = d3;
            tuple.__bindgen_anon_1.ipv4.sport = sport;
            tuple.__bindgen_anon_1.ipv4.dport = dport;
            mem::size_of_val(&tuple.__bindgen_anon_1.ipv4)
        }
    } else {
        // SAFETY: as above.
        unsafe {
            tuple.__bindgen_anon_1.ipv6.saddr = [s0, s1, s2, s3];
            tuple.__bindgen_anon_1.ipv6.daddr = [d0, d1, d2, d3];
            tuple.__bindgen_anon_1.ipv6.sport = sport;
            tuple.__bindgen_anon_1.ipv6.dport = dport;
            mem::size_of_val(&tuple.__bindgen_anon_1.ipv6)
        }
    };
    // SAFETY: the program's own context and a tuple of the size that is told.
    let found = unsafe {
        bpf_skc_lookup_tcp(frame.0.cast(), &raw mut tuple, size as u32, CURRENT_NETNS, 0)
    };
    if found.is_null() {
        return Holder::Nobody;
    }
    // SAFETY: not null, and ours until it is released.
    let sk = unsafe { bpf_sk_fullsock(found) };
    let holder = if sk.is_null() {
        Holder::Nobody
    } else {
        let key = TupleKey {
            netns_cookie,
            source: packet.source,
            destination: packet.destination,
            source_port: u32::from(packet.source_port),
            destination_port: u32::from(packet.destination_port),
        };
        holder(sk, &key)
    };
    // SAFETY: the reference that the lookup took; not used any more.
    unsafe { bpf_sk_release(found.cast()) };
    holder
}

/// Who vouches for a socket of the pod. `key`: its connection, where the pod is the server.
#[inline(always)]
fn holder(sk: *mut bpf_sock, key: &TupleKey) -> Holder {
    if read!((*sk).protocol) != IPPROTO_TCP || read!((*sk).type_) != SOCK_STREAM {
        return Holder::Nobody;
    }
    if !stored(&VOUCHED, sk).is_null() {
        return Holder::Vouched;
    }
    if read!((*sk).state) == BPF_TCP_LISTEN {
        return Holder::Listener;
    }
    let noted: *mut Passed = stored(&PASSED, sk).cast();
    if !noted.is_null() {
        // SAFETY: not null, and the storage lives as long as the socket.
        let passed = unsafe { &*noted };
        if is(&passed.client, &key.source) && passed.client_port == key.source_port {
            return by_path(passed.path);
        }
    }
    let asked: *const Asked = stored(&ASKED, sk).cast();
    if !asked.is_null() {
        // SAFETY: not null, and the storage lives as long as the socket.
        let asked = unsafe { &*asked };
        let there = is(&asked.target, &key.source) && asked.target_port == key.source_port;
        if asked.path == path::KERNEL && there {
            return Holder::KernelPath;
        }
        if asked.path == path::UNVOUCHED && there {
            return Holder::Unvouched;
        }
    }
    let way = if AUTHORIZED.get_ptr(key).is_some() {
        path::KERNEL
    } else if PROBES.get_ptr(key).is_some() {
        path::PROBE
    } else {
        return Holder::Stranger;
    };
    // The entry goes with the client's socket, which may be before this one's end.
    // Without room for the note, the entry is asked again.
    let mut passed = Passed { client: key.source, client_port: key.source_port, path: way };
    if !noted.is_null() {
        // SAFETY: not null, and the storage lives as long as the socket.
        unsafe { *noted = passed };
        return by_path(way);
    }
    // SAFETY: a map of socket storage, a socket that is not null, and a first value.
    unsafe {
        bpf_sk_storage_get(
            core::ptr::addr_of!(PASSED).cast_mut().cast(),
            sk.cast(),
            (&raw mut passed).cast(),
            BPF_SK_STORAGE_GET_F_CREATE.into(),
        );
    }
    by_path(way)
}

#[inline(always)]
fn by_path(way: u32) -> Holder {
    if way == path::KERNEL { Holder::KernelPath } else { Holder::Vouched }
}

/// What a map of socket storage holds for a socket.
#[inline(always)]
fn stored<T>(map: &'static T, sk: *mut bpf_sock) -> *mut core::ffi::c_void {
    // SAFETY: a map of socket storage and a socket that is not null; nothing is created.
    unsafe {
        bpf_sk_storage_get(
            core::ptr::from_ref(map).cast_mut().cast(),
            sk.cast(),
            core::ptr::null_mut(),
            0,
        )
    }
    .cast()
}

#[inline(always)]
fn is(one: &Address, other: &Address) -> bool {
    one.0[0] == other.0[0]
        && one.0[1] == other.0[1]
        && one.0[2] == other.0[2]
        && one.0[3] == other.0[3]
}
