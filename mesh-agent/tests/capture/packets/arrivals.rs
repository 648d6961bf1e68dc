//! What the lookup program says of arrivals.

use std::net::IpAddr;

use mesh_common::{
    abi::map,
    key::TupleKey,
    value::{Authorized, Probe},
    verdict::Verdict,
};

use super::{
    POD, Programs, ip, since_boot_ns,
    test_run::{Attributes, BPF_PROG_TEST_RUN, address_of, bpf},
};

/// A connection that reaches the pod.
pub(super) struct Arrival {
    v6: bool,
    tcp: bool,
    source: &'static str,
    port: u32,
}

const OUTSIDE: Arrival = Arrival { v6: false, tcp: true, source: "10.9.9.9", port: 80 };

impl Arrival {
    /// `struct bpf_sk_lookup`, to 10.0.0.2 or fd00::2 from port 40000.
    pub(super) fn context(&self) -> Vec<u8> {
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

/// aya has no test runs of this program type.
pub(super) fn run_lookup(program: i32, context: &[u8]) -> u32 {
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
