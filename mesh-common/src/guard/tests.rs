extern crate std;

use core::net::IpAddr;
use std::{vec, vec::Vec};

use super::*;
use crate::value::Owner;

const POD: u64 = 7;

struct Bytes(Vec<u8>);

impl Frame for Bytes {
    fn length(&self) -> u32 {
        self.0.len() as u32
    }
    fn tagged(&self) -> bool {
        false
    }
    fn load<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        self.0.get(at as usize..)?.get(..N)?.try_into().ok()
    }
}

fn ethernet(ethertype: u16, rest: &[u8]) -> Bytes {
    let mut frame = vec![2; 12];
    frame.extend(ethertype.to_be_bytes());
    frame.extend(rest);
    Bytes(frame)
}

fn tcp(flags: u8, options: usize, payload: usize) -> Vec<u8> {
    let mut segment = vec![0; 20 + options];
    segment[..4].copy_from_slice(&[0x9c, 0x40, 0, 80]);
    segment[12] = (((20 + options) / 4) << 4) as u8;
    segment[13] = flags;
    segment.resize(20 + options + payload, b'x');
    segment
}

fn v4(protocol: u8, options: usize, fragment: u16, rest: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 20 + options];
    packet[0] = 0x40 | ((20 + options) / 4) as u8;
    packet[2..4].copy_from_slice(&((20 + options + rest.len()) as u16).to_be_bytes());
    packet[6..8].copy_from_slice(&fragment.to_be_bytes());
    packet[9] = protocol;
    packet[12..20].copy_from_slice(&[10, 0, 0, 2, 10, 9, 9, 9]);
    packet.extend(rest);
    packet
}

/// `extensions`: each its type and its bytes, the first of which is set.
fn v6(extensions: &[(u8, Vec<u8>)], protocol: u8, rest: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 40];
    packet[0] = 0x60;
    packet[8] = 0xfd;
    packet[24] = 0xfd;
    packet[39] = 9;
    let mut next = 6;
    for (kind, bytes) in extensions {
        packet[next] = *kind;
        next = packet.len();
        packet.extend(bytes);
    }
    packet[next] = protocol;
    packet.extend(rest);
    let length = (packet.len() - 40) as u16;
    packet[4..6].copy_from_slice(&length.to_be_bytes());
    packet
}

fn fragment_header(offset: u16, more: bool) -> (u8, Vec<u8>) {
    let field = (offset << 3 | u16::from(more)).to_be_bytes();
    (FRAGMENT, vec![0, 0, field[0], field[1], 0, 0, 0, 1])
}

fn options(kind: u8, words: u8) -> (u8, Vec<u8>) {
    let mut bytes = vec![0; 8 * (usize::from(words) + 1)];
    bytes[1] = words;
    (kind, bytes)
}

#[test]
fn frames_are_read_or_named_for_what_is_wrong() {
    use Verdict::{GuardExtensionHeaders, GuardFragment, GuardMalformed, GuardNotIp, GuardVlan};
    let data = tcp(ACK, 0, 9);
    let udp = [0xd0, 0, 0, 53, 0, 8, 0, 0];
    let hop = || options(HOP_BY_HOP, 0);
    let authentication = || {
        let mut bytes = vec![0; 24];
        bytes[1] = 4;
        (AUTHENTICATION, bytes)
    };
    let cut = |mut packet: Vec<u8>, bytes: usize| {
        packet.truncate(packet.len() - bytes);
        packet
    };
    let with = |mut packet: Vec<u8>, at: usize, byte: u8| {
        packet[at] = byte;
        packet
    };
    let table = [
        ("ARP", ethernet(ARP, &[0; 28]), Ok((Kind::Control, false))),
        ("an empty frame", Bytes(vec![]), Err(GuardMalformed)),
        ("half an Ethernet header", Bytes(vec![0; 13]), Err(GuardMalformed)),
        ("a VLAN tag", ethernet(VLAN, &v4(TCP, 0, 0, &data)), Err(GuardVlan)),
        ("a service's VLAN tag", ethernet(SERVICE_VLAN, &[0; 60]), Err(GuardVlan)),
        ("PPPoE", ethernet(0x8864, &[0; 60]), Err(GuardNotIp)),
        ("802.3", ethernet(46, &[0; 46]), Err(GuardNotIp)),
        ("IPv4 data", ethernet(IPV4, &v4(TCP, 0, 0, &data)), Ok((Kind::Tcp, true))),
        ("an IPv4 SYN", ethernet(IPV4, &v4(TCP, 0, 0, &tcp(SYN, 20, 0))), Ok((Kind::Tcp, false))),
        ("IPv4 options", ethernet(IPV4, &v4(TCP, 40, 0, &data)), Ok((Kind::Tcp, true))),
        ("do not fragment", ethernet(IPV4, &v4(TCP, 0, 0x4000, &data)), Ok((Kind::Tcp, true))),
        (
            "padding is no data",
            ethernet(IPV4, &[v4(TCP, 0, 0, &tcp(ACK, 0, 0)), vec![0; 6]].concat()),
            Ok((Kind::Tcp, false)),
        ),
        (
            "more than 64 KiB",
            ethernet(IPV4, &with(with(v4(TCP, 0, 0, &data), 2, 0), 3, 0)),
            Ok((Kind::Tcp, true)),
        ),
        ("half an IPv4 header", ethernet(IPV4, &[0x45; 19]), Err(GuardMalformed)),
        (
            "IPv4 that says 5",
            ethernet(IPV4, &with(v4(TCP, 0, 0, &data), 0, 0x55)),
            Err(GuardMalformed),
        ),
        (
            "a short IPv4 header",
            ethernet(IPV4, &with(v4(TCP, 0, 0, &data), 0, 0x44)),
            Err(GuardMalformed),
        ),
        ("a cut IPv4 packet", ethernet(IPV4, &cut(v4(TCP, 0, 0, &data), 1)), Err(GuardMalformed)),
        ("a cut TCP header", ethernet(IPV4, &v4(TCP, 0, 0, &data[..13])), Err(GuardMalformed)),
        (
            "a short TCP header",
            ethernet(IPV4, &v4(TCP, 0, 0, &with(data.clone(), 12, 0x40))),
            Err(GuardMalformed),
        ),
        (
            "TCP options beyond the end",
            ethernet(IPV4, &v4(TCP, 0, 0, &with(data.clone(), 12, 0xf0))),
            Err(GuardMalformed),
        ),
        ("a first fragment of TCP", ethernet(IPV4, &v4(TCP, 0, 0x2000, &data)), Err(GuardFragment)),
        ("a later fragment of TCP", ethernet(IPV4, &v4(TCP, 0, 0x0010, &data)), Err(GuardFragment)),
        ("ICMP", ethernet(IPV4, &v4(ICMP, 0, 0, &[8; 8])), Ok((Kind::Control, false))),
        (
            "a fragment of ICMP",
            ethernet(IPV4, &v4(ICMP, 0, 0x2000, &[8; 8])),
            Ok((Kind::Control, false)),
        ),
        ("ICMPv6 in IPv4", ethernet(IPV4, &v4(ICMPV6, 0, 0, &[8; 8])), Ok((Kind::Other, false))),
        ("UDP", ethernet(IPV4, &v4(UDP, 0, 0, &udp)), Ok((Kind::Udp, false))),
        ("a cut UDP header", ethernet(IPV4, &v4(UDP, 0, 0, &udp[..7])), Err(GuardMalformed)),
        (
            "a later fragment of UDP",
            ethernet(IPV4, &v4(UDP, 0, 0x0010, &[])),
            Ok((Kind::Udp, false)),
        ),
        ("GRE", ethernet(IPV4, &v4(47, 0, 0, &[0; 4])), Ok((Kind::Other, false))),
        ("IPv6 data", ethernet(IPV6, &v6(&[], TCP, &data)), Ok((Kind::Tcp, true))),
        ("ICMPv6", ethernet(IPV6, &v6(&[], ICMPV6, &[135; 24])), Ok((Kind::Control, false))),
        ("MLD", ethernet(IPV6, &v6(&[hop()], ICMPV6, &[143; 8])), Ok((Kind::Control, false))),
        ("ICMP in IPv6", ethernet(IPV6, &v6(&[], ICMP, &[8; 8])), Ok((Kind::Other, false))),
        (
            "every extension header",
            ethernet(
                IPV6,
                &v6(
                    &[
                        hop(),
                        options(DESTINATION_OPTIONS, 2),
                        options(ROUTING, 1),
                        authentication(),
                        options(DESTINATION_OPTIONS, 0),
                    ],
                    TCP,
                    &data,
                ),
            ),
            Ok((Kind::Tcp, true)),
        ),
        (
            "extension headers without end",
            ethernet(IPV6, &v6(&vec![options(DESTINATION_OPTIONS, 0); 8], TCP, &data)),
            Err(GuardExtensionHeaders),
        ),
        (
            "an extension header beyond the end",
            ethernet(IPV6, &v6(&[(HOP_BY_HOP, vec![0, 9, 0, 0, 0, 0, 0, 0])], TCP, &data)),
            Err(GuardMalformed),
        ),
        (
            "a first IPv6 fragment of TCP",
            ethernet(IPV6, &v6(&[fragment_header(0, true)], TCP, &data)),
            Err(GuardFragment),
        ),
        (
            "a later IPv6 fragment of TCP",
            ethernet(IPV6, &v6(&[fragment_header(9, false)], TCP, &data)),
            Err(GuardFragment),
        ),
        (
            "an IPv6 fragment that is whole",
            ethernet(IPV6, &v6(&[fragment_header(0, false)], TCP, &data)),
            Err(GuardFragment),
        ),
        (
            "a later fragment that hides what it is",
            ethernet(IPV6, &v6(&[fragment_header(9, false)], DESTINATION_OPTIONS, &data)),
            Err(GuardFragment),
        ),
        (
            "a later IPv6 fragment of UDP",
            ethernet(IPV6, &v6(&[fragment_header(9, false)], UDP, &[])),
            Ok((Kind::Udp, false)),
        ),
        ("half an IPv6 header", ethernet(IPV6, &[0x60; 39]), Err(GuardMalformed)),
        (
            "IPv6 that says 4",
            ethernet(IPV6, &with(v6(&[], TCP, &data), 0, 0x45)),
            Err(GuardMalformed),
        ),
        ("a cut IPv6 packet", ethernet(IPV6, &cut(v6(&[], TCP, &data), 1)), Err(GuardMalformed)),
    ];
    for (what, frame, expected) in table {
        let seen = classify(&frame).map(|packet| (packet.kind, packet.payload));
        assert_eq!(seen, expected, "{what}");
    }
}

#[test]
fn addresses_and_ports_are_those_of_the_packet() {
    let address = |s: &str| Address::from(s.parse::<IpAddr>().unwrap());
    let data = tcp(ACK, 0, 1);
    for (frame, source, destination) in [
        (ethernet(IPV4, &v4(TCP, 8, 0, &data)), "10.0.0.2", "10.9.9.9"),
        (ethernet(IPV6, &v6(&[options(HOP_BY_HOP, 0)], TCP, &data)), "fd00::", "fd00::9"),
    ] {
        let packet = classify(&frame).unwrap();
        assert_eq!((packet.source, packet.destination), (address(source), address(destination)));
        assert_eq!((packet.source_port, packet.destination_port), (40_000, 80));
    }
}

#[test]
fn no_bytes_upset_it() {
    let frames = [
        ethernet(IPV4, &v4(TCP, 12, 0, &tcp(SYN, 8, 3))),
        ethernet(IPV6, &v6(&[options(HOP_BY_HOP, 1), fragment_header(0, true)], UDP, &[0; 8])),
    ];
    for Bytes(frame) in frames {
        for length in 0..frame.len() {
            let _ = classify(&Bytes(frame[..length].to_vec()));
        }
        for at in 0..frame.len() {
            for byte in 0..=u8::MAX {
                let mut frame = frame.clone();
                frame[at] = byte;
                let _ = classify(&Bytes(frame));
            }
        }
    }
}

/// Excludes port 3306 and 169.254.169.254 outbound, port 9100 inbound.
struct Excluding;

impl Tables for Excluding {
    fn enrolled(&self, netns_cookie: u64) -> bool {
        netns_cookie == POD
    }
    fn owner(&self, _: u64, address: &Address) -> Owner {
        let own = Address::from("10.0.0.2".parse::<IpAddr>().unwrap());
        if *address == own { Owner::Pod } else { Owner::Other }
    }
    fn outbound_port_excluded(&self, _: u64, port: u16) -> bool {
        port == 3306
    }
    fn outbound_address_excluded(&self, _: u64, address: &Address) -> bool {
        *address == Address::from("169.254.169.254".parse::<IpAddr>().unwrap())
    }
    fn inbound_port_excluded(&self, _: u64, port: u16) -> bool {
        port == 9100
    }
}

fn packet(kind: Kind, near: u16, far: (&str, u16), way: Way) -> Packet {
    let address = |s: &str| Address::from(s.parse::<IpAddr>().unwrap());
    let (near, far) = ((address("10.0.0.2"), near), (address(far.0), far.1));
    let ((source, source_port), (destination, destination_port)) = match way {
        Way::Egress => (near, far),
        Way::Ingress => (far, near),
    };
    Packet { kind, source, destination, source_port, destination_port, flags: ACK, payload: true }
}

#[test]
fn what_is_not_tcp_passes_unless_the_operator_says_otherwise() {
    let far = "10.9.9.9";
    for (what, kind, near, far, dropped) in [
        ("a DNS client", Kind::Udp, 5000, (far, 53), false),
        ("DHCP", Kind::Udp, 68, (far, 67), false),
        ("DHCPv6", Kind::Udp, 546, ("fd00::9", 547), false),
        ("QUIC", Kind::Udp, 5000, (far, 443), true),
        ("a DNS server", Kind::Udp, 53, (far, 5000), true),
        ("an excluded port", Kind::Udp, 5000, (far, 3306), false),
        ("an excluded port of the pod", Kind::Udp, 9100, (far, 5000), false),
        ("an excluded address", Kind::Udp, 5000, ("169.254.169.254", 443), false),
        ("GRE", Kind::Other, 0, (far, 0), true),
        ("ICMP", Kind::Control, 0, (far, 0), false),
    ] {
        for way in [Way::Egress, Way::Ingress] {
            let packet = packet(kind, near, far, way);
            assert_eq!(look(&packet, way, POD, false, &Excluding), Look::Pass, "{what}");
            let expected = if dropped { Look::Drop(Verdict::GuardNonTcp) } else { Look::Pass };
            assert_eq!(look(&packet, way, POD, true, &Excluding), expected, "{what} {way:?}");
        }
    }
}

#[test]
fn only_what_opens_or_carries_is_asked_for_its_socket() {
    let data = |way| packet(Kind::Tcp, 5000, ("10.9.9.9", 80), way);
    let bare = |way, flags| Packet { flags, payload: false, ..data(way) };
    for (what, packet, way, expected) in [
        ("data", data(Way::Egress), Way::Egress, Look::Socket),
        ("data", data(Way::Ingress), Way::Ingress, Look::Socket),
        ("a SYN", bare(Way::Egress, SYN), Way::Egress, Look::Socket),
        ("a SYN", bare(Way::Ingress, SYN), Way::Ingress, Look::Pass),
        ("a FIN", bare(Way::Egress, FIN | ACK), Way::Egress, Look::Socket),
        ("an ACK", bare(Way::Egress, ACK), Way::Egress, Look::Pass),
        ("a SYN and ACK", bare(Way::Egress, SYN | ACK), Way::Egress, Look::Pass),
        ("an ACK", bare(Way::Ingress, ACK), Way::Ingress, Look::Pass),
        (
            "to loopback",
            packet(Kind::Tcp, 5000, ("127.0.0.1", 15001), Way::Egress),
            Way::Egress,
            Look::Drop(Verdict::GuardBoundToInterface),
        ),
    ] {
        assert_eq!(look(&packet, way, POD, false, &Excluding), expected, "{what} {way:?}");
    }
}

#[test]
fn the_socket_decides() {
    use Holder::{Listener, Nobody, Stranger, Unvouched, Vouched};
    use Way::{Egress, Ingress};
    let syn = |way| Packet {
        flags: SYN,
        payload: false,
        ..packet(Kind::Tcp, 5000, ("10.9.9.9", 80), way)
    };
    let data = |way| packet(Kind::Tcp, 5000, ("10.9.9.9", 80), way);
    let fin = |way| Packet { flags: FIN | ACK, payload: false, ..data(way) };
    let to_excluded = |way| packet(Kind::Tcp, 5000, ("10.9.9.9", 3306), way);
    let of_excluded = |way| packet(Kind::Tcp, 9100, ("10.9.9.9", 80), way);
    let ok = Ok(());
    // Each: strict, then permissive.
    for (what, packet, way, holder, strict, permissive) in [
        ("the agent", syn(Egress), Egress, Vouched, ok, ok),
        ("the agent", data(Egress), Egress, Vouched, ok, ok),
        ("the agent", data(Ingress), Ingress, Vouched, ok, ok),
        (
            "a raw SYN",
            syn(Egress),
            Egress,
            Nobody,
            Err(Verdict::GuardNoSocket),
            Err(Verdict::GuardNoSocket),
        ),
        (
            "raw data",
            data(Egress),
            Egress,
            Nobody,
            Err(Verdict::GuardNoSocket),
            Err(Verdict::GuardNoSocket),
        ),
        (
            "past the hook",
            syn(Egress),
            Egress,
            Stranger,
            Err(Verdict::GuardUncaptured),
            Err(Verdict::GuardUncaptured),
        ),
        (
            "older than enrolment",
            data(Egress),
            Egress,
            Stranger,
            Err(Verdict::GuardEgressPlaintext),
            ok,
        ),
        (
            "older than enrolment",
            data(Ingress),
            Ingress,
            Stranger,
            Err(Verdict::GuardIngressPlaintext),
            ok,
        ),
        ("its end", fin(Egress), Egress, Stranger, ok, ok),
        ("its end", fin(Ingress), Ingress, Stranger, ok, ok),
        (
            "dialled from an excluded port of the pod",
            Packet { payload: false, flags: SYN, ..of_excluded(Egress) },
            Egress,
            Stranger,
            Err(Verdict::GuardUncaptured),
            Err(Verdict::GuardUncaptured),
        ),
        ("nobody vouched", syn(Egress), Egress, Unvouched, ok, ok),
        (
            "nobody vouched",
            Packet { payload: true, ..syn(Egress) },
            Egress,
            Unvouched,
            Err(Verdict::GuardUncaptured),
            Err(Verdict::GuardUncaptured),
        ),
        (
            "nobody vouched",
            data(Ingress),
            Ingress,
            Unvouched,
            Err(Verdict::GuardIngressPlaintext),
            Err(Verdict::GuardIngressPlaintext),
        ),
        ("data with a SYN cookie's answer", data(Ingress), Ingress, Listener, ok, ok),
        ("what is reset", data(Ingress), Ingress, Nobody, ok, ok),
        (
            "for a namespace inside the pod",
            Packet { destination: data(Ingress).source, ..data(Ingress) },
            Ingress,
            Listener,
            Err(Verdict::GuardIngressPlaintext),
            ok,
        ),
        (
            "for a namespace inside the pod",
            Packet { destination: data(Ingress).source, ..data(Ingress) },
            Ingress,
            Nobody,
            Err(Verdict::GuardIngressPlaintext),
            ok,
        ),
        ("an excluded port", to_excluded(Egress), Egress, Stranger, ok, ok),
        ("an excluded port", to_excluded(Ingress), Ingress, Stranger, ok, ok),
        ("an excluded port of the pod", of_excluded(Egress), Egress, Stranger, ok, ok),
        ("an excluded port of the pod", of_excluded(Ingress), Ingress, Stranger, ok, ok),
    ] {
        for (is_strict, expected) in [(true, strict), (false, permissive)] {
            let judged = judge(&packet, way, holder, POD, is_strict, &Excluding);
            assert_eq!(judged, expected, "{what} {way:?} strict={is_strict}");
        }
    }
}

#[test]
fn outside_the_pod_only_what_was_seen_inside_goes_on() {
    for (stamped, expected) in [
        (stamp::SEEN, Onward::Pass),
        (stamp::KERNEL_PATH, Onward::KernelPath),
        (stamp::KERNEL_PATH_DATA, Onward::KernelPath),
        (0, Onward::Unseen),
        (1, Onward::Unseen),
    ] {
        assert_eq!(onward(stamped), expected, "{stamped}");
    }
    let data = packet(Kind::Tcp, 5000, ("10.9.9.9", 80), Way::Egress);
    let syn = Packet { flags: SYN, payload: false, ..data };
    let ack = Packet { payload: false, ..data };
    let fin = Packet { flags: FIN | ACK, payload: false, ..data };
    let loopback = packet(Kind::Tcp, 5000, ("127.0.0.1", 80), Way::Egress);
    let udp = packet(Kind::Udp, 5000, ("10.9.9.9", 443), Way::Egress);
    for (what, packet, expected) in [
        ("data", data, Err(Verdict::GuardBypassed)),
        ("a SYN", syn, Err(Verdict::GuardBypassed)),
        ("an ACK", ack, Ok(())),
        ("a FIN", fin, Ok(())),
        ("to loopback", loopback, Err(Verdict::GuardBoundToInterface)),
        ("UDP", udp, Err(Verdict::GuardNonTcp)),
    ] {
        assert_eq!(unseen(&packet, POD, true, &Excluding), expected, "{what} past the guard");
    }
}

#[test]
fn only_data_alone_is_taken_without_a_look_at_its_socket() {
    let (data4, data6) = (tcp(ACK, 0, 9), tcp(ACK, 0, 9));
    let frame = ethernet(IPV4, &v4(TCP, 0, 0, &data4));
    let data = packet(Kind::Tcp, 5000, ("10.9.9.9", 80), Way::Egress);
    for (what, flags, payload, expected) in [
        ("data", ACK, true, true),
        ("an ACK", ACK, false, false),
        ("a SYN", SYN, false, false),
        ("a SYN with data", SYN, true, false),
        ("a FIN", FIN | ACK, false, false),
        ("a FIN with data", FIN | ACK, true, false),
    ] {
        let packet = Packet { flags, payload, ..data };
        let source = is_vouched_for(stamp_of(&packet), &frame);
        assert_eq!(source, expected.then(|| classify(&frame).unwrap().source), "{what}");
        assert_eq!(onward(stamp_of(&packet)), Onward::KernelPath, "{what}");
    }
    for stamp in [stamp::SEEN, 0] {
        assert_eq!(is_vouched_for(stamp, &frame), None);
    }
    let six = ethernet(IPV6, &v6(&[], TCP, &data6));
    let source = classify(&six).unwrap().source;
    assert_eq!(is_vouched_for(stamp::KERNEL_PATH_DATA, &six), Some(source));
    // What else is stamped so is forged.
    for (what, frame) in [
        ("UDP", ethernet(IPV4, &v4(UDP, 0, 0, &data4))),
        ("a fragment", ethernet(IPV4, &v4(TCP, 0, 0x2000, &data4))),
        ("a later fragment", ethernet(IPV4, &v4(TCP, 0, 1, &data4))),
        ("UDP over IPv6", ethernet(IPV6, &v6(&[], UDP, &data6))),
        ("a VLAN's", ethernet(VLAN, &[0; 60])),
        ("ARP", ethernet(ARP, &[0; 60])),
        ("IPv6 that says it is IPv4", ethernet(IPV4, &v6(&[], TCP, &data6))),
        ("half a header", Bytes(ethernet(IPV4, &v4(TCP, 0, 0, &data4)).0[..29].to_vec())),
    ] {
        assert_eq!(is_vouched_for(stamp::KERNEL_PATH_DATA, &frame), None, "{what}");
    }
}

#[test]
fn packets_of_the_kernel_path_go_to_their_pod_or_nowhere() {
    const HARDWARE: [u8; 6] = [2, 0, 0, 0, 0, 9];
    let veth = Outside {
        netns_cookie: POD,
        interface: 5,
        route: 5,
        inside: 2,
        redirect: 0,
        hardware: HARDWARE,
        _zero: 0,
    };
    let free = Outside { redirect: 1, ..veth };
    let port = Outside { route: 3, ..veth };
    for (what, redirect, to, expected) in [
        ("by the routes", false, Some(veth), Handover::Routes(5)),
        ("only the sender may", true, Some(veth), Handover::Routes(5)),
        ("only the destination may", false, Some(free), Handover::Routes(5)),
        ("straight in", true, Some(free), Handover::Peer(5)),
        ("over a bridge", true, Some(port), Handover::Port(5, HARDWARE)),
        ("no such pod", true, None, Handover::Astray),
    ] {
        assert_eq!(handover(redirect, to.as_ref()), expected, "{what}");
    }
}

#[test]
fn who_sends_to_whom_is_read_as_it_is_for_the_whole_frame() {
    let data = tcp(ACK, 0, 9);
    for frame in [ethernet(IPV4, &v4(TCP, 0, 0, &data)), ethernet(IPV6, &v6(&[], TCP, &data))] {
        let whole = classify(&frame).unwrap();
        assert_eq!(ends(&frame), Some((whole.source, whole.destination)));
        assert_eq!(ends(&Bytes(frame.0[..20].to_vec())), None);
    }
    assert_eq!(ends(&ethernet(ARP, &[0; 60])), None);
}
