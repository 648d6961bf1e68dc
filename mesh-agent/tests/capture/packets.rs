//! The guard's and the lookup program, each run by the kernel on one packet
//! (`BPF_PROG_TEST_RUN`).

use std::{
    net::IpAddr,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, PerCpuArray},
    programs::{SchedClassifier, SkLookup, TestRun, TestRunOptions},
};
use mesh_common::{
    abi::{ABI_VERSION, map, stamp},
    address::Address,
    key::{AddressKey, PortKey, TupleKey},
    value::{Authorized, Config, Outside, Owner, PodEntry, Probe},
    verdict::Verdict,
};

use crate::bed::Bed;

const POD: u64 = 7;
const OBJECT: &[u8] = aya::include_bytes_aligned!(env!("MESH_EBPF_OBJECT_PATH"));

/// The programs with maps of their own; one enrolled pod at 10.0.0.2.
struct Programs(Ebpf);

impl Programs {
    fn load(drop_non_tcp: bool) -> Self {
        let mut ebpf = EbpfLoader::new().override_global("POD", &POD, true).load(OBJECT).unwrap();
        let mut config: Array<_, Config> = ebpf.map_mut(map::CONFIG).unwrap().try_into().unwrap();
        let drop_non_tcp = drop_non_tcp.into();
        let entry = Config { abi_version: ABI_VERSION, log: 0, kernel_path_max: 0, drop_non_tcp };
        config.set(0, entry, 0).unwrap();
        let alive: Result<Array<_, u64>, _> = ebpf.map_mut(map::ALIVE_UNTIL).unwrap().try_into();
        alive.unwrap().set(0, u64::MAX, 0).unwrap();
        let mut this = Self(ebpf);
        this.enroll(true);
        this.insert(
            map::ADDRESSES,
            AddressKey { netns_cookie: POD, address: ip("10.0.0.2") },
            Owner::Pod as u32,
        );
        this.insert(map::OUTBOUND_PORTS, PortKey::new(POD, 3306), 1_u32);
        this.insert(map::INBOUND_PORTS, PortKey::new(POD, 9100), 1_u32);
        this
    }

    fn insert<K: aya::Pod, V: aya::Pod>(&mut self, name: &str, key: K, value: V) {
        let mut map: HashMap<_, K, V> = self.0.map_mut(name).unwrap().try_into().unwrap();
        map.insert(key, value, 0).unwrap();
    }

    fn enroll(&mut self, strict: bool) {
        self.insert(
            map::PODS,
            POD,
            PodEntry {
                enrolled_ns: 1,
                strict: strict.into(),
                redirect: 0,
                road: 1,
                bridged: 0,
                splice: 0,
                _zero: 0,
            },
        );
    }

    fn un_enroll(&mut self) {
        let mut pods: HashMap<_, u64, PodEntry> =
            self.0.map_mut(map::PODS).unwrap().try_into().unwrap();
        pods.remove(&POD).unwrap();
    }

    /// What the guard does with a frame: `None` where it lets it pass.
    fn guard(&mut self, program: &str, frame: &[u8]) -> Option<Verdict> {
        let before = self.counts();
        let program: &mut SchedClassifier =
            self.0.program_mut(program).unwrap().try_into().unwrap();
        // Loading it twice is an error that does no harm.
        let _ = program.load();
        let run = program.test_run(TestRunOptions { data_in: Some(frame), ..Default::default() });
        match run.unwrap().return_value.cast_signed() {
            -1 => {
                assert_eq!(self.counts(), before, "what passes is not counted");
                None
            }
            2 => self.counted_since(&before),
            other => panic!("the guard returned {other}"),
        }
    }

    fn counts(&self) -> Vec<u64> {
        let map: PerCpuArray<_, u64> = self.0.map(map::VERDICTS).unwrap().try_into().unwrap();
        let sum = |verdict| map.get(&(verdict as u32), 0).unwrap().iter().sum();
        Verdict::ALL.into_iter().map(sum).collect()
    }

    /// The one verdict that was counted since.
    fn counted_since(&self, before: &[u64]) -> Option<Verdict> {
        let now = self.counts();
        let mut changed =
            Verdict::ALL.into_iter().filter(|&v| now[v as usize] != before[v as usize]);
        let verdict = changed.next();
        assert_eq!(changed.next(), None, "more than {verdict:?}");
        verdict
    }

    /// What the lookup program says of an arrival: its verdict, and whether the kernel
    /// goes on to look for the application.
    fn lookup(&mut self, arrival: &Arrival) -> (bool, Verdict) {
        let before = self.counts();
        let program: &mut SkLookup =
            self.0.program_mut("mesh_sk_lookup").unwrap().try_into().unwrap();
        let _ = program.load();
        let fd = program.fd().unwrap().as_fd().as_raw_fd();
        let passed = run_lookup(fd, &arrival.context()) == 1;
        (passed, self.counted_since(&before).expect("every exit is counted"))
    }
}

/// As `bpf_ktime_get_ns`.
fn since_boot_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
    u64::try_from(std::time::Duration::from(now).as_nanos()).unwrap()
}

fn ip(s: &str) -> mesh_common::address::Address {
    s.parse::<IpAddr>().unwrap().into()
}

fn frame(ethertype: u16, packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend(ethertype.to_be_bytes());
    frame.extend(packet);
    frame
}

fn tcp(flags: u8, ports: (u16, u16), payload: usize) -> Vec<u8> {
    let mut segment = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    segment.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    segment.resize(20 + payload, b'x');
    segment
}

/// From the pod; `words` of options.
fn v4(protocol: u8, words: u8, fragment: u16, to: [u8; 4], rest: &[u8]) -> Vec<u8> {
    let header = 20 + 4 * usize::from(words);
    let length = u16::try_from(header + rest.len()).unwrap().to_be_bytes();
    let fragment = fragment.to_be_bytes();
    let mut packet =
        vec![0x45 + words, 0, length[0], length[1], 0, 0, fragment[0], fragment[1], 64, protocol];
    packet.extend([0, 0, 10, 0, 0, 2]);
    packet.extend(to);
    packet.resize(header, 1);
    packet.extend(rest);
    packet
}

fn v6(next: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0, length[0], length[1], next, 64];
    packet.extend([0xfd; 16]);
    packet.extend([0xfe; 16]);
    packet.extend(rest);
    packet
}

const FAR: [u8; 4] = [10, 9, 9, 9];
const DATA: u8 = 0x18;
const SYN: u8 = 2;

#[test]
fn the_guard_reads_every_frame_or_drops_it_by_name() {
    use Verdict as V;
    let mut programs = Programs::load(true);
    let data = tcp(DATA, (5000, 80), 9);
    let dns = [0x13, 0x88, 0, 53, 0, 8, 0, 0];
    let quic = [0x13, 0x88, 1, 0xbb, 0, 8, 0, 0];
    let destination_options = |next| [next, 0, 1, 4, 0, 0, 0, 0];
    let chain = |headers: usize| {
        let mut bytes = destination_options(60).repeat(headers - 1);
        bytes.extend(destination_options(6));
        v6(60, &[bytes, data.clone()].concat())
    };
    // The kernel makes no packet of less than an IP header.
    let table: Vec<(&str, Vec<u8>, Option<V>)> = vec![
        ("ARP", frame(0x0806, &[0; 28]), None),
        ("ICMP", frame(0x0800, &v4(1, 0, 0, FAR, &[8; 8])), None),
        ("ICMPv6", frame(0x86dd, &v6(58, &[135; 24])), None),
        ("an ACK", frame(0x0800, &v4(6, 0, 0, FAR, &tcp(0x10, (5000, 80), 0))), None),
        ("DNS", frame(0x0800, &v4(17, 0, 0, FAR, &dns)), None),
        ("an excluded port", frame(0x0800, &v4(6, 0, 0, FAR, &tcp(SYN, (5000, 3306), 0))), None),
        ("QUIC", frame(0x0800, &v4(17, 0, 0, FAR, &quic)), Some(V::GuardNonTcp)),
        ("GRE", frame(0x0800, &v4(47, 0, 0, FAR, &[0; 4])), Some(V::GuardNonTcp)),
        (
            "a SYN",
            frame(0x0800, &v4(6, 0, 0, FAR, &tcp(SYN, (5000, 80), 0))),
            Some(V::GuardNoSocket),
        ),
        ("data", frame(0x0800, &v4(6, 0, 0, FAR, &data)), Some(V::GuardNoSocket)),
        (
            "to the pod itself",
            frame(0x0800, &v4(6, 0, 0, [10, 0, 0, 2], &data)),
            Some(V::GuardNoSocket),
        ),
        ("IPv4 options", frame(0x0800, &v4(6, 10, 0, FAR, &data)), Some(V::GuardNoSocket)),
        ("IPv6 data", frame(0x86dd, &v6(6, &data)), Some(V::GuardNoSocket)),
        ("extension headers", frame(0x86dd, &chain(7)), Some(V::GuardNoSocket)),
        ("too many of them", frame(0x86dd, &chain(8)), Some(V::GuardExtensionHeaders)),
        (
            "to loopback",
            frame(0x0800, &v4(6, 0, 0, [127, 0, 0, 1], &data)),
            Some(V::GuardBoundToInterface),
        ),
        ("a first fragment", frame(0x0800, &v4(6, 0, 0x2000, FAR, &data)), Some(V::GuardFragment)),
        ("a later fragment", frame(0x0800, &v4(6, 0, 2, FAR, &data)), Some(V::GuardFragment)),
        (
            "an IPv6 fragment",
            frame(0x86dd, &v6(44, &[&[6, 0, 0, 1, 0, 0, 0, 1], &data[..]].concat())),
            Some(V::GuardFragment),
        ),
        ("a VLAN tag", frame(0x8100, &[0; 60]), Some(V::GuardVlan)),
        ("PPPoE", frame(0x8864, &[0; 60]), Some(V::GuardNotIp)),
        (
            "a cut TCP header",
            frame(0x0800, &v4(6, 0, 0, FAR, &data[..12])),
            Some(V::GuardMalformed),
        ),
        ("a cut packet", frame(0x0800, &v4(6, 0, 0, FAR, &data)[..40]), Some(V::GuardMalformed)),
        ("a cut extension header", frame(0x86dd, &v6(60, &[6, 9, 0, 0])), Some(V::GuardMalformed)),
        ("garbage that says IPv4", frame(0x0800, &[0xa5; 200]), Some(V::GuardMalformed)),
        ("garbage that says IPv6", frame(0x86dd, &[0xa5; 200]), Some(V::GuardMalformed)),
    ];
    for (what, frame, expected) in &table {
        assert_eq!(programs.guard("mesh_guard_out", frame), *expected, "{what}");
    }
    // Coming in, what no socket is for is the kernel's to answer, if it is for the pod.
    for (what, frame, expected) in &table {
        let expected = match expected {
            Some(V::GuardNoSocket) if ["a SYN", "to the pod itself"].contains(what) => None,
            Some(V::GuardNoSocket | V::GuardBoundToInterface) => Some(V::GuardIngressPlaintext),
            // DNS is for clients.
            None if *what == "DNS" => Some(V::GuardNonTcp),
            expected => *expected,
        };
        assert_eq!(programs.guard("mesh_guard_in", frame), expected, "{what} coming in");
    }
    programs.un_enroll();
    for (what, frame, _) in &table {
        for program in ["mesh_guard_out", "mesh_guard_in"] {
            assert_eq!(programs.guard(program, frame), None, "{what}, not enrolled");
        }
    }
}

#[test]
fn what_is_not_tcp_passes_by_default() {
    let mut programs = Programs::load(false);
    let quic = [0x13, 0x88, 1, 0xbb, 0, 8, 0, 0];
    for packet in [v4(17, 0, 0, FAR, &quic), v4(47, 0, 0, FAR, &[0; 4]), v4(17, 0, 2, FAR, &[])] {
        for program in ["mesh_guard_out", "mesh_guard_in"] {
            assert_eq!(programs.guard(program, &frame(0x0800, &packet)), None);
        }
    }
}

/// A connection that reaches the pod.
struct Arrival {
    v6: bool,
    tcp: bool,
    source: &'static str,
    port: u32,
}

const OUTSIDE: Arrival = Arrival { v6: false, tcp: true, source: "10.9.9.9", port: 80 };

impl Arrival {
    /// `struct bpf_sk_lookup`, to 10.0.0.2 or fd00::2 from port 40000.
    fn context(&self) -> Vec<u8> {
        let octets = |s: &str| match s.parse::<IpAddr>().unwrap() {
            IpAddr::V4(v4) => (v4.octets().to_vec(), vec![0; 16]),
            IpAddr::V6(v6) => (vec![0; 4], v6.octets().to_vec()),
        };
        let (remote4, remote6) = octets(self.source);
        let (local4, local6) = octets(if self.v6 { "fd00::2" } else { "10.0.0.2" });
        let family = if self.v6 { libc::AF_INET6 } else { libc::AF_INET };
        let protocol = if self.tcp { libc::IPPROTO_TCP } else { libc::IPPROTO_UDP };
        let mut context = vec![0; 8];
        context.extend(family.to_ne_bytes());
        context.extend(protocol.to_ne_bytes());
        context.extend(remote4);
        context.extend(remote6);
        context.extend(40_000_u16.to_be_bytes());
        context.extend([0; 2]);
        context.extend(local4);
        context.extend(local6);
        context.extend(self.port.to_ne_bytes());
        // The kernel tests arrivals from nowhere in particular only.
        context.extend([0; 4]);
        context
    }

    fn tuple(&self) -> TupleKey {
        TupleKey {
            netns_cookie: POD,
            source: ip(self.source),
            destination: ip(if self.v6 { "fd00::2" } else { "10.0.0.2" }),
            source_port: 40_000,
            destination_port: self.port,
        }
    }
}

/// `union bpf_attr`, `test`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    program: i32,
    return_value: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    _pad: u32,
}

fn bpf<T>(command: i64, attributes: &mut T) -> i32 {
    // SAFETY: the structure of that command by its true size; what it points to outlives
    // the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>())
    };
    assert!(result >= 0, "{}", std::io::Error::last_os_error());
    i32::try_from(result).unwrap()
}

fn address_of<T>(values: &[T]) -> u64 {
    values.as_ptr().expose_provenance() as u64
}

const BPF_PROG_TEST_RUN: i64 = 10;

/// aya has no test runs of this program type.
fn run_lookup(program: i32, context: &[u8]) -> u32 {
    let mut attributes = Attributes {
        program,
        context_size_in: u32::try_from(context.len()).unwrap(),
        context_in: address_of(context),
        ..Default::default()
    };
    bpf(BPF_PROG_TEST_RUN, &mut attributes);
    attributes.return_value
}

#[test]
fn the_lookup_program_passes_only_who_is_inside_excluded_or_vouched_for() {
    use Verdict as V;
    let mut programs = Programs::load(false);
    // No agent listens: what would be steered is refused.
    for (what, arrival, expected) in [
        ("from outside", OUTSIDE, (false, V::InboundNoListener)),
        ("to HBONE", Arrival { port: 15008, ..OUTSIDE }, (false, V::InboundNoListener)),
        ("to the agent", Arrival { port: 15006, ..OUTSIDE }, (false, V::InboundAgentPort)),
        (
            "by IPv6",
            Arrival { v6: true, source: "fd00::9", ..OUTSIDE },
            (false, V::InboundNoListener),
        ),
        ("from itself", Arrival { source: "10.0.0.2", ..OUTSIDE }, (true, V::InboundLoopback)),
        ("excluded", Arrival { port: 9100, ..OUTSIDE }, (true, V::InboundPortExcluded)),
        ("UDP", Arrival { tcp: false, ..OUTSIDE }, (true, V::InboundNotTcp)),
    ] {
        assert_eq!(programs.lookup(&arrival), expected, "{what}");
    }

    let probed = Arrival { source: "10.9.9.8", ..OUTSIDE };
    programs.insert(map::PROBES, probed.tuple(), Probe { socket_cookie: 1 });
    assert_eq!(programs.lookup(&probed), (true, V::InboundProbe));
    let by_kernel = Arrival { v6: true, source: "fd00::8", ..OUTSIDE };
    let authorized = Authorized {
        asked: ip("10.96.0.1"),
        asked_port: 80,
        fin: 0,
        source_cookie: 8,
        socket_cookie: 1,
        opened_ns: 1,
        // While no agent listens, an open connection goes on, and none is opened.
        established_ns: since_boot_ns(),
        received_at_fin: 0,
        seen: 0,
        splice: 0,
        spliced_up: 0,
        spliced_down: 0,
        spliced_ns: 0,
    };
    programs.insert(map::AUTHORIZED, by_kernel.tuple(), authorized);
    assert_eq!(programs.lookup(&by_kernel), (true, V::InboundAuthorized));
    // To another port nobody vouches.
    for vouched in [&probed, &by_kernel] {
        let other = Arrival { port: 81, ..*vouched };
        assert_eq!(programs.lookup(&other), (false, V::InboundNoListener));
    }
    programs.un_enroll();
    assert_eq!(programs.lookup(&OUTSIDE), (true, V::InboundNotEnrolled));
}

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
