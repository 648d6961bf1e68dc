//! The guard: drops what capture should have taken and did not, on the pod's own
//! interface. It stays with the interface, agent or not.
//!
//! It works inside the pod's namespace, where packets still have their sockets. Each
//! pod has instances of its own, as of the lookup program.

use core::mem::{self, MaybeUninit};

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH,
        BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_SKIP_NEIGH, BPF_SK_STORAGE_GET_F_CREATE,
        BPF_TCP_LISTEN, bpf_fib_lookup, bpf_sock, bpf_sock_tuple,
        tcx_action_base::{TCX_DROP, TCX_NEXT},
    },
    helpers::{
        bpf_check_mtu, bpf_ktime_get_coarse_ns, bpf_redirect, bpf_redirect_peer, bpf_sk_fullsock,
        bpf_sk_release, bpf_skb_load_bytes, bpf_skb_store_bytes, bpf_skc_lookup_tcp,
        generated::{bpf_fib_lookup, bpf_sk_storage_get},
    },
    macros::classifier,
    programs::TcContext,
};
use mesh_common::{
    abi::stamp,
    address::Address,
    decide::{Tables, may_still_send},
    guard::{
        Frame, Handover, Holder, Kind, Look, Onward, Packet, Way, classify, ends, handover,
        is_vouched_for, judge, look, onward, stamp_of, unseen,
    },
    key::TupleKey,
    value::{Asked, Owner, Passed, PodEntry, path},
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
/// `-EINVAL`.
const EINVAL: i64 = -22;
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
    let frame = Skb(ctx.skb.skb);
    if matches!(way, Way::Ingress)
        && let Some(source) = is_vouched_for(frame.stamped(), &frame)
        && OUTSIDES.get_ptr(&source).is_some()
    {
        return TCX_NEXT;
    }
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
                if packet.payload && is_left_alone(&frame, &served(&packet, netns_cookie)) {
                    return Err(Verdict::GuardEnded);
                }
                return frame.let_out(&packet, entry);
            }
            frame.stamp(stamp::SEEN);
            Ok(())
        }
        (Look::Pass, Way::Egress)
            if entry.keeps_together()
                && matches!(packet.kind, Kind::Tcp)
                && is_of_kernel_path(&frame, &packet, netns_cookie) =>
        {
            frame.let_out(&packet, entry)
        }
        (Look::Pass, Way::Egress) => {
            frame.stamp(stamp::SEEN);
            Ok(())
        }
        (Look::Pass, Way::Ingress) => Ok(()),
    }
}

/// Outside the pod, on the interface that its own is the peer of: what comes out.
#[classifier]
pub fn mesh_guard_host(ctx: TcContext) -> i32 {
    let frame = Skb(ctx.skb.skb);
    let said = onward(frame.stamped());
    if matches!(said, Onward::Pass) {
        return TCX_NEXT;
    }
    let netns_cookie = pod();
    let Some(entry) = pod_entry(netns_cookie) else { return TCX_NEXT };
    let judged = if matches!(said, Onward::KernelPath) {
        hand_over(&frame, entry, netns_cookie)
    } else {
        classify(&frame)
            .and_then(|packet| unseen(&packet, netns_cookie, drops_non_tcp(), &KernelTables))
            .map(|()| TCX_NEXT)
    };
    judged.unwrap_or_else(|verdict| {
        count(verdict);
        TCX_DROP
    })
}

#[inline(always)]
fn hand_over(frame: &Skb, entry: &PodEntry, netns_cookie: u64) -> Result<i32, Verdict> {
    let (source, destination) = ends(frame).ok_or(Verdict::GuardMalformed)?;
    // Whoever is root in a pod can rewrite what the guard inside has seen. Nothing else on
    // this way asks whether a source address can be true.
    if !matches!(KernelTables.owner(netns_cookie, &source), Owner::Pod) {
        return Err(Verdict::GuardAstray);
    }
    // SAFETY: entries are only replaced whole; the kernel keeps what was looked up until
    // the program ends.
    let to = unsafe { OUTSIDES.get(&destination) };
    match handover(entry.redirect != 0, to) {
        Handover::Peer(interface) => {
            count(Verdict::Redirected);
            // SAFETY: takes numbers. Where the interface is gone, the packet is dropped.
            Ok(unsafe { bpf_redirect_peer(interface, 0) as i32 })
        }
        Handover::Port(port, hardware) if frame.is_there(port) => {
            frame.address_to(hardware).ok_or(Verdict::GuardMalformed)?;
            count(Verdict::Bridged);
            // SAFETY: takes numbers.
            Ok(unsafe { bpf_redirect(port, 0) as i32 })
        }
        Handover::Routes(interface) if frame.route(&source, &destination) == Some(interface) => {
            Ok(TCX_NEXT)
        }
        Handover::Port(..) | Handover::Routes(_) | Handover::Astray => Err(Verdict::GuardAstray),
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

    #[inline(always)]
    fn stamped(&self) -> u32 {
        read!((*self.0).tc_index)
    }

    /// Out of the pod, by the interface that has a guard outside.
    #[inline(always)]
    fn let_out(&self, packet: &Packet, entry: &PodEntry) -> Result<(), Verdict> {
        if read!((*self.0).ifindex) != entry.road {
            return Err(Verdict::GuardAstray);
        }
        self.stamp(stamp_of(packet));
        Ok(())
    }

    /// Whether there is such an interface.
    #[inline(always)]
    fn is_there(&self, interface: u32) -> bool {
        let mut mtu = 0;
        // SAFETY: the program's own context, and a number that the kernel writes.
        unsafe { bpf_check_mtu(self.0.cast(), interface, &raw mut mtu, 0, 0) >= 0 }
    }

    /// Addresses the frame, from whom it was for so far.
    #[inline(always)]
    fn address_to(&self, hardware: [u8; 6]) -> Option<()> {
        let [a, b, c, d, e, f] = hardware;
        let [u, v, w, x, y, z] = self.load::<6>(0)?;
        if a == u && b == v && c == w && d == x && e == y && f == z {
            return Some(());
        }
        let ends = [a, b, c, d, e, f, u, v, w, x, y, z];
        // SAFETY: the program's own context, and bytes of the length that is told.
        let failed = unsafe {
            bpf_skb_store_bytes(self.0.cast(), 0, ends.as_ptr().cast(), ends.len() as u32, 0)
        };
        (failed == 0).then_some(())
    }

    /// The interface that the routes of the namespace that the packet is in lead it to.
    #[inline(always)]
    fn route(&self, source: &Address, destination: &Address) -> Option<u32> {
        // A call of memset in the kernel goes byte by byte.
        let mut asked = MaybeUninit::<bpf_fib_lookup>::uninit();
        const WORDS: usize = mem::size_of::<bpf_fib_lookup>() / 8;
        for word in 0..WORDS {
            // SAFETY: within the structure, and aligned on the program's stack.
            unsafe { asked.as_mut_ptr().cast::<u64>().add(word).write_volatile(0) };
        }
        // SAFETY: plain integers, all of them written.
        let asked = unsafe { asked.assume_init_mut() };
        asked.l4_protocol = IPPROTO_TCP as u8;
        asked.ifindex = read!((*self.0).ifindex);
        if source.is_v4() {
            asked.family = AF_INET;
            asked.__bindgen_anon_3.ipv4_src = source.0[3];
            asked.__bindgen_anon_4.ipv4_dst = destination.0[3];
        } else {
            asked.family = AF_INET6 as u8;
            asked.__bindgen_anon_3.ipv6_src = source.0;
            asked.__bindgen_anon_4.ipv6_dst = destination.0;
        }
        let size = mem::size_of::<bpf_fib_lookup>() as i32;
        let mut ask = |flags| {
            // SAFETY: the program's own context, and a request of the size that is told.
            unsafe { bpf_fib_lookup(self.0.cast(), &raw mut *asked, size, flags) }
        };
        let mut found = ask(BPF_FIB_LOOKUP_SKIP_NEIGH);
        // Before Linux 6.4 the flag is not known.
        if found == EINVAL {
            found = ask(0);
        }
        match found as u32 {
            // Without a neighbour, the interface is told all the same (since Linux 5.12).
            BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH | BPF_FIB_LKUP_RET_FRAG_NEEDED => {
                Some(asked.ifindex)
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
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the program's own context, and a buffer of the length that is told, which
        // the kernel fills, with zeros if need be.
        unsafe {
            let failed = bpf_skb_load_bytes(self.0.cast(), at, bytes.as_mut_ptr().cast(), N as u32);
            let bytes = bytes.assume_init();
            (failed == 0).then_some(bytes)
        }
    }
}

/// Whether a packet that opens nothing and carries nothing is of a connection of the kernel path.
#[inline(always)]
fn is_of_kernel_path(frame: &Skb, packet: &Packet, netns_cookie: u64) -> bool {
    if packet.takes_up() {
        // Its socket is none yet.
        return AUTHORIZED.get_ptr(&served(packet, netns_cookie)).is_some();
    }
    matches!(sender(frame, packet, netns_cookie), Holder::KernelPath)
}

/// The connection of a packet that leaves the pod, if the pod is its server.
#[inline(always)]
fn served(packet: &Packet, netns_cookie: u64) -> TupleKey {
    TupleKey {
        netns_cookie,
        source: packet.destination,
        destination: packet.source,
        source_port: u32::from(packet.destination_port),
        destination_port: u32::from(packet.source_port),
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
    match holder(sk, &served(packet, netns_cookie)) {
        // Somebody has rewritten it on its way through the pod.
        Holder::KernelPath if !is_sent_from(sk, packet) => Holder::Stranger,
        holder => holder,
    }
}

/// Whether a server's socket sends to a client that has had none for a while. It was let in
/// when there was one; nothing cuts what the kernel's map of connections does not hold.
#[inline(always)]
fn is_left_alone(frame: &Skb, key: &TupleKey) -> bool {
    // SAFETY: every context of a classifier has this field; it may be null.
    let sk = unsafe { (*frame.0).__bindgen_anon_2.sk };
    if sk.is_null() {
        return false;
    }
    // SAFETY: not null, and alive as long as its packet.
    let sk = unsafe { bpf_sk_fullsock(sk) };
    if sk.is_null() {
        return false;
    }
    let noted: *mut Passed = stored(&PASSED, sk).cast();
    // A client's own socket has no note of this connection.
    if noted.is_null() {
        return false;
    }
    // SAFETY: not null, and the storage lives as long as the socket.
    let passed = unsafe { &mut *noted };
    let noted_for = is(&passed.client, &key.source) && passed.client_port == key.source_port;
    if !noted_for || AUTHORIZED.get_ptr(key).is_some() {
        return false;
    }
    // SAFETY: takes no argument.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    if passed.ended_ns == 0 {
        passed.ended_ns = now;
    }
    !may_still_send(passed.ended_ns, now)
}

/// Whether a packet says that it is from where its socket is bound.
#[inline(always)]
fn is_sent_from(sk: *mut bpf_sock, packet: &Packet) -> bool {
    // Read whatever the family: see `sockops::local`.
    let v4 = Address::from_v4_be(read!((*sk).src_ip4));
    let v6 = Address([
        read!((*sk).src_ip6[0]),
        read!((*sk).src_ip6[1]),
        read!((*sk).src_ip6[2]),
        read!((*sk).src_ip6[3]),
    ]);
    let own = if packet.source.is_v4() { v4 } else { v6 };
    is(&own, &packet.source) && read!((*sk).src_port) == u32::from(packet.source_port)
}

/// Whose a packet is that comes into the pod.
#[inline(always)]
fn receiver(frame: &Skb, packet: &Packet, netns_cookie: u64) -> Holder {
    let [s0, s1, s2, s3] = packet.source.0;
    let [d0, d1, d2, d3] = packet.destination.0;
    let (sport, dport) = (packet.source_port.to_be(), packet.destination_port.to_be());
    let mut tuple = MaybeUninit::<bpf_sock_tuple>::uninit();
    let to = tuple.as_mut_ptr();
    // SAFETY: within the tuple; of the member that is told by its size, all is written.
    let size = unsafe {
        if packet.source.is_v4() {
            let v4 = &raw mut (*to).__bindgen_anon_1.ipv4;
            (&raw mut (*v4).saddr).write(s3);
            (&raw mut (*v4).daddr).write(d3);
            (&raw mut (*v4).sport).write(sport);
            (&raw mut (*v4).dport).write(dport);
            mem::size_of_val(&*v4)
        } else {
            let v6 = &raw mut (*to).__bindgen_anon_1.ipv6;
            (&raw mut (*v6).saddr).write([s0, s1, s2, s3]);
            (&raw mut (*v6).daddr).write([d0, d1, d2, d3]);
            (&raw mut (*v6).sport).write(sport);
            (&raw mut (*v6).dport).write(dport);
            mem::size_of_val(&*v6)
        }
    };
    // SAFETY: the program's own context and a tuple of the size that is told.
    let found = unsafe { bpf_skc_lookup_tcp(frame.0.cast(), to, size as u32, CURRENT_NETNS, 0) };
    if found.is_null() {
        return Holder::Nobody;
    }
    // SAFETY: not null, and ours until it is released.
    let sk = unsafe { bpf_sk_fullsock(found) };
    let holder = if sk.is_null() {
        Holder::Nobody
    } else if read!((*sk).state) == BPF_TCP_LISTEN {
        // The agent's, for all that has no socket: the lookup program was asked.
        Holder::Listener
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
    let mut passed =
        Passed { client: key.source, client_port: key.source_port, path: way, ended_ns: 0 };
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
