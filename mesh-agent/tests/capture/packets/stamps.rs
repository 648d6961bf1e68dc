//! What guards say to each other of a packet.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use aya::{maps::HashMap, programs::SchedClassifier};
use mesh_common::{
    abi::{map, stamp},
    address::Address,
    key::AddressKey,
    value::{Outside, Owner, PodEntry},
    verdict::Verdict,
};

use super::{
    DATA, FAR, POD, Programs, frame, ip, tcp,
    test_run::{Attributes, BPF_PROG_TEST_RUN, address_of, bpf},
    v4, v6,
};
use crate::bed::Bed;

/// A program that stamps a packet, as the guard inside a pod does, and goes on as `next`: test
/// runs let nobody else write `tc_index`.
struct Stamps {
    program: OwnedFd,
    _next: OwnedFd,
}

/// Words of `struct __sk_buff`.
const IFINDEX: usize = 10;
const TC_INDEX: i16 = 11;

impl Stamps {
    fn before(next: i32, stamp: u32) -> Self {
        const BPF_MAP_CREATE: i64 = 0;
        const BPF_MAP_UPDATE_ELEM: i64 = 2;
        const BPF_PROG_LOAD: i64 = 5;
        const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
        const BPF_MAP_TYPE_PROG_ARRAY: u32 = 3;
        let owned = |fd| {
            // SAFETY: the kernel has just given it to us.
            unsafe { OwnedFd::from_raw_fd(fd) }
        };
        let map = owned(bpf(BPF_MAP_CREATE, &mut [BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 1, 0]));
        let (key, value) = ([0_u32], [next]);
        let fd = map.as_raw_fd();
        let mut update = [u64::from(fd.cast_unsigned()), address_of(&key), address_of(&value), 0];
        bpf(BPF_MAP_UPDATE_ELEM, &mut update);
        let instruction = |code: u8, registers: u8, offset: i16, value: i32| {
            let [c, d] = offset.to_ne_bytes();
            let [e, f, g, h] = value.to_ne_bytes();
            u64::from_ne_bytes([code, registers, c, d, e, f, g, h])
        };
        let program = [
            // r2 = stamp; context.tc_index = r2
            instruction(0xb4, 0x02, 0, stamp.cast_signed()),
            instruction(0x63, 0x21, TC_INDEX * 4, 0),
            // r2 = map; r3 = 0; tail call
            instruction(0x18, 0x12, 0, fd),
            0,
            instruction(0xb4, 0x03, 0, 0),
            instruction(0x85, 0, 0, 12),
            // It did not take place.
            instruction(0xb4, 0x00, 0, 99),
            instruction(0x95, 0, 0, 0),
        ];
        let count = u64::from(u32::try_from(program.len()).unwrap());
        let kind = u64::from(BPF_PROG_TYPE_SCHED_CLS) | count << 32;
        let mut load = [kind, address_of(&program), address_of(b"GPL\0"), 0, 0, 0];
        Self { program: owned(bpf(BPF_PROG_LOAD, &mut load)), _next: map }
    }

    /// What becomes of a frame that came by the interface of that index.
    fn run(&self, frame: &[u8], interface: u32) -> i32 {
        // The first words of `struct __sk_buff`.
        let mut context = [0_u32; 11];
        context[IFINDEX] = interface;
        let mut attributes = Attributes {
            program: self.program.as_raw_fd(),
            data_size_in: u32::try_from(frame.len()).unwrap(),
            data_in: address_of(frame),
            context_size_in: u32::try_from(size_of_val(&context)).unwrap(),
            context_in: address_of(&context),
            ..Default::default()
        };
        bpf(BPF_PROG_TEST_RUN, &mut attributes);
        attributes.return_value.cast_signed()
    }
}

#[test]
fn outside_a_pod_packets_of_the_kernel_path_go_where_their_pod_was() {
    const PASSED: i32 = -1;
    const DROPPED: i32 = 2;
    const REDIRECTED: i32 = 7;
    // The peer's namespace is the node; its other neighbours are behind two more veths.
    let bed = Bed::new();
    let node = bed.peer();
    for (name, pod) in [("door", "10.77.7.9"), ("far", "10.77.8.9")] {
        crate::bed::ip(&format!("-n {node} link add {name} type veth peer name {name}-end"));
        crate::bed::ip(&format!("-n {node} link set {name}-end up"));
        crate::bed::ip(&format!("-n {node} link set {name} up"));
        crate::bed::ip(&format!("-n {node} route add {pod}/32 dev {name}"));
    }
    let index =
        |name: &'static str| bed.inside(&node, || nix::net::if_::if_nametoindex(name).unwrap());
    let (here, door, far) = (index("eth0"), index("door"), index("far"));
    bed.inside(&node, || {
        for family in ["ipv4", "ipv6"] {
            std::fs::write(format!("/proc/sys/net/{family}/conf/all/forwarding"), "1").unwrap();
        }
    });

    let mut programs = Programs::load(false);
    let outside = Outside {
        netns_cookie: 9,
        interface: door,
        route: door,
        inside: 2,
        redirect: 0,
        hardware: [2, 0, 0, 0, 0, 9],
        _zero: 0,
    };
    programs.insert(map::OUTSIDES, ip("10.77.7.9"), outside);
    programs.insert(map::OUTSIDES, ip("10.77.8.9"), outside);
    let v6_to = "fefe:fefe:fefe:fefe:fefe:fefe:fefe:fefe";
    programs.insert(map::OUTSIDES, ip(v6_to), outside);
    let own =
        AddressKey { netns_cookie: POD, address: ip("fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd") };
    programs.insert(map::ADDRESSES, own, Owner::Pod as u32);
    crate::bed::ip(&format!("-n {node} -6 route add {v6_to}/128 dev door"));
    let host: &mut SchedClassifier =
        programs.0.program_mut("mesh_guard_host").unwrap().try_into().unwrap();
    host.load().unwrap();
    let host = host.fd().unwrap().as_fd().as_raw_fd();
    let stamps = Stamps::before(host, stamp::KERNEL_PATH);

    let data = tcp(DATA, (5000, 80), 9);
    let to = |destination| frame(0x0800, &v4(6, 0, 0, destination, &data));
    let mut lie = to([10, 77, 7, 9]);
    // The last byte of the source.
    lie[14 + 15] = 3;
    let table: [(&str, Vec<u8>, i32, Option<Verdict>); 5] = [
        ("to the pod", to([10, 77, 7, 9]), PASSED, None),
        ("from another's address", lie, DROPPED, Some(Verdict::GuardAstray)),
        ("to the pod by IPv6", frame(0x86dd, &v6(6, &data)), PASSED, None),
        ("rerouted", to([10, 77, 8, 9]), DROPPED, Some(Verdict::GuardAstray)),
        ("to no pod", to([10, 77, 7, 8]), DROPPED, Some(Verdict::GuardAstray)),
    ];
    for (what, frame, action, verdict) in &table {
        let before = programs.counts();
        let done = bed.inside(&node, || stamps.run(frame, here));
        assert_eq!((done, programs.counted_since(&before)), (*action, *verdict), "{what}");
    }
    // Not the kernel path's: the route is nobody's business.
    let seen = Stamps::before(host, stamp::SEEN);
    assert_eq!(bed.inside(&node, || seen.run(&to([10, 77, 8, 9]), here)), PASSED);

    // The pod is gone, and its address elsewhere; or a route forbids it.
    crate::bed::ip(&format!("-n {node} link del door"));
    for route in ["unreachable 10.77.7.9/32", "10.77.7.9/32 dev far"] {
        crate::bed::ip(&format!("-n {node} route replace {route}"));
        let before = programs.counts();
        assert_eq!(bed.inside(&node, || stamps.run(&to([10, 77, 7, 9]), here)), DROPPED, "{route}");
        assert_eq!(programs.counted_since(&before), Some(Verdict::GuardAstray), "{route}");
    }
    // An address that a new pod of this node has.
    let new = Outside { interface: far, route: far, ..outside };
    programs.insert(map::OUTSIDES, ip("10.77.7.9"), new);
    assert_eq!(bed.inside(&node, || stamps.run(&to([10, 77, 7, 9]), here)), PASSED);

    // A port of a bridge is where the pod is, whatever routes say, and while it is there.
    let port = Outside { route: here, ..new };
    programs.insert(map::OUTSIDES, ip("10.77.7.9"), port);
    let before = programs.counts();
    assert_eq!(bed.inside(&node, || stamps.run(&to([10, 77, 7, 9]), here)), REDIRECTED);
    assert_eq!(programs.counted_since(&before), Some(Verdict::Bridged));
    programs.insert(map::OUTSIDES, ip("10.77.7.9"), Outside { interface: door, ..port });
    let before = programs.counts();
    assert_eq!(bed.inside(&node, || stamps.run(&to([10, 77, 7, 9]), here)), DROPPED);
    assert_eq!(programs.counted_since(&before), Some(Verdict::GuardAstray));
    programs.insert(map::OUTSIDES, ip("10.77.7.9"), new);

    // Both agree to the short way; one that does not stays on the long one.
    let entry = PodEntry {
        enrolled_ns: 1,
        strict: 1,
        redirect: 1,
        road: 1,
        bridged: 0,
        splice: 0,
        _zero: 0,
    };
    programs.insert(map::PODS, POD, entry);
    assert_eq!(bed.inside(&node, || stamps.run(&to([10, 77, 7, 9]), here)), PASSED);
    programs.insert(map::OUTSIDES, ip("10.77.7.9"), Outside { redirect: 1, ..new });
    assert_eq!(bed.inside(&node, || stamps.run(&to([10, 77, 7, 9]), here)), REDIRECTED);
    // Nobody knows of the pod any more.
    let mut outsides: HashMap<_, Address, Outside> =
        programs.0.map_mut(map::OUTSIDES).unwrap().try_into().unwrap();
    outsides.remove(&ip("10.77.7.9")).unwrap();
    assert_eq!(bed.inside(&node, || stamps.run(&to([10, 77, 7, 9]), here)), DROPPED);
}

#[test]
fn what_another_pods_guard_has_let_out_as_data_is_not_looked_at_again() {
    use Verdict as V;
    const PASSED: i32 = -1;
    let mut programs = Programs::load(true);
    let outside = Outside {
        netns_cookie: POD + 1,
        interface: 5,
        route: 5,
        inside: 2,
        redirect: 0,
        hardware: [2, 0, 0, 0, 0, 9],
        _zero: 0,
    };
    for neighbour in ["10.0.0.2", "fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd"] {
        programs.insert(map::OUTSIDES, ip(neighbour), outside);
    }
    let guard: &mut SchedClassifier =
        programs.0.program_mut("mesh_guard_in").unwrap().try_into().unwrap();
    guard.load().unwrap();
    let guard = guard.fd().unwrap().as_fd().as_raw_fd();
    let data = tcp(DATA, (5000, 80), 9);
    // No guard lets that out: it tells whether the frame was read.
    let mut odd = data.clone();
    odd[12] = 0x40;
    let four = frame(0x0800, &v4(6, 0, 0, FAR, &odd));
    let six = frame(0x86dd, &v6(6, &odd));
    let mut strangers = four.clone();
    strangers[26..30].copy_from_slice(&FAR);
    let fragment = frame(0x0800, &v4(6, 0, 0x2000, FAR, &odd));
    let udp = frame(0x0800, &v4(17, 0, 0, FAR, &data));
    for (what, frame, stamp, expected) in [
        ("a neighbour's", &four, stamp::KERNEL_PATH_DATA, None),
        ("a neighbour's by IPv6", &six, stamp::KERNEL_PATH_DATA, None),
        ("an end", &four, stamp::KERNEL_PATH, Some(V::GuardMalformed)),
        ("not of the kernel path", &four, stamp::SEEN, Some(V::GuardMalformed)),
        ("without a stamp", &four, 0, Some(V::GuardMalformed)),
        ("forged, of nobody", &strangers, stamp::KERNEL_PATH_DATA, Some(V::GuardMalformed)),
        ("forged, a fragment", &fragment, stamp::KERNEL_PATH_DATA, Some(V::GuardFragment)),
        ("forged, UDP", &udp, stamp::KERNEL_PATH_DATA, Some(V::GuardNonTcp)),
    ] {
        let before = programs.counts();
        let done = Stamps::before(guard, stamp).run(frame, 1);
        let counted = programs.counted_since(&before);
        assert_eq!((done == PASSED, counted), (expected.is_none(), expected), "{what}");
    }
}
