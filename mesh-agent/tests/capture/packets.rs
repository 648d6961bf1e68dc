//! The guard's and the lookup program, each run by the kernel on one packet
//! (`BPF_PROG_TEST_RUN`).

mod arrivals;
mod stamps;
mod test_run;

use std::{
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, PerCpuArray},
    programs::{SchedClassifier, SkLookup, TestRun, TestRunOptions},
};
use mesh_common::{
    abi::{ABI_VERSION, map},
    key::{AddressKey, PortKey},
    value::{Config, Owner, PodEntry},
    verdict::Verdict,
};

use self::arrivals::{Arrival, run_lookup};

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
