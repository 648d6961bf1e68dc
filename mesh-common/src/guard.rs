//! What the guard on a pod's interface makes of a frame: pure, so that unit tests and
//! the kernel run the same code.
//!
//! Capture happens at the socket; the guard drops what got past it. [`classify`] reads
//! the frame, [`look`] settles what needs no socket, [`judge`] the rest. What carries
//! neither data nor a SYN passes: alone, it moves nothing and opens nothing, and lets
//! connections that are not wanted end in order.

use crate::{
    abi::stamp,
    address::Address,
    decide::Tables,
    value::{Outside, Owner},
    verdict::Verdict,
};

/// A frame as it is on the interface, from its Ethernet header on.
pub trait Frame {
    /// Bytes of the whole frame.
    fn length(&self) -> u32;
    /// Whether a VLAN tag was taken off it, or is to be put on.
    fn tagged(&self) -> bool;
    /// `N` bytes from `at` on; `None` where the frame is shorter.
    fn load<const N: usize>(&self, at: u32) -> Option<[u8; N]>;
}

/// Which way a frame goes, as the pod sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Ingress,
    Egress,
}

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What keeps the network itself going: ARP, ICMP, ICMPv6 with neighbour
    /// discovery, IGMP.
    Control,
    Tcp,
    Udp,
    /// Any other protocol over IP.
    Other,
}

/// What the guard wants to know of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    pub kind: Kind,
    /// Unspecified for ARP, as is the other.
    pub source: Address,
    pub destination: Address,
    /// Host byte order; 0 but for TCP and UDP, and for a later fragment of UDP.
    pub source_port: u16,
    /// As `source_port`.
    pub destination_port: u16,
    /// TCP's flags.
    pub flags: u8,
    /// TCP: there is data in it.
    pub payload: bool,
}

impl Packet {
    const CONTROL: Self = Self {
        kind: Kind::Control,
        source: Address::UNSPECIFIED,
        destination: Address::UNSPECIFIED,
        source_port: 0,
        destination_port: 0,
        flags: 0,
        payload: false,
    };

    /// Whether it asks for a new connection.
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        self.flags & SYN != 0 && self.flags & ACK == 0
    }

    const fn ends(&self) -> bool {
        self.flags & FIN != 0
    }

    /// Whether it takes up a new connection.
    #[inline(always)]
    pub const fn takes_up(&self) -> bool {
        self.flags & (SYN | ACK) == SYN | ACK
    }
}

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

const ETHERNET_HEADER: u32 = 14;
const ETHERTYPE_AT: u32 = 12;
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const VLAN: u16 = 0x8100;
const SERVICE_VLAN: u16 = 0x88a8;
const IPV6: u16 = 0x86dd;

const HOP_BY_HOP: u8 = 0;
const ICMP: u8 = 1;
const IGMP: u8 = 2;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const ICMPV6: u8 = 58;
const DESTINATION_OPTIONS: u8 = 60;

/// Extension headers that are walked before the guard gives up on a packet. Spec:
/// RFC 8200 §4.1 names six, one of which may come twice.
const MAX_EXTENSION_HEADERS: u32 = 7;

const TCP_HEADER: u32 = 20;
const UDP_HEADER: u32 = 8;

const DNS: u16 = 53;
const DHCP: [u16; 2] = [67, 68];
const DHCPV6: [u16; 2] = [546, 547];

/// Reads a frame. What cannot be read, or could hide a TCP segment, is an error: the
/// verdict to drop it by.
#[inline(always)]
pub fn classify(frame: &impl Frame) -> Result<Packet, Verdict> {
    if frame.tagged() {
        return Err(Verdict::GuardVlan);
    }
    // The header that the other end will read, not what a raw socket says it is.
    let Some(ethertype) = frame.load::<2>(ETHERTYPE_AT) else {
        return Err(Verdict::GuardMalformed);
    };
    match u16::from_be_bytes(ethertype) {
        IPV4 => ipv4(frame),
        IPV6 => ipv6(frame),
        ARP => Ok(Packet::CONTROL),
        VLAN | SERVICE_VLAN => Err(Verdict::GuardVlan),
        _ => Err(Verdict::GuardNotIp),
    }
}

/// Spec: RFC 791 §3.1.
#[inline(always)]
fn ipv4(frame: &impl Frame) -> Result<Packet, Verdict> {
    let Some(header) = frame.load::<20>(ETHERNET_HEADER) else {
        return Err(Verdict::GuardMalformed);
    };
    let header_length = u32::from(header[0] & 0xf) * 4;
    let available = frame.length().saturating_sub(ETHERNET_HEADER);
    // Frames may be padded; the kernel's own beyond 64 KiB tell no length.
    let length = match u32::from(u16::from_be_bytes([header[2], header[3]])) {
        0 => available,
        length => length,
    };
    if header[0] >> 4 != 4 || header_length < 20 || length > available || length < header_length {
        return Err(Verdict::GuardMalformed);
    }
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    let parts = Parts {
        protocol: header[9],
        at: ETHERNET_HEADER + header_length,
        length: length - header_length,
        fragmented: fragment & 0x3fff != 0,
        first: fragment & 0x1fff == 0,
    };
    let packet = Packet {
        source: Address::from_v4_be(u32::from_ne_bytes([
            header[12], header[13], header[14], header[15],
        ])),
        destination: Address::from_v4_be(u32::from_ne_bytes([
            header[16], header[17], header[18], header[19],
        ])),
        ..Packet::CONTROL
    };
    match parts.protocol {
        ICMP | IGMP => Ok(packet),
        _ => transport(frame, packet, &parts),
    }
}

/// Spec: RFC 8200 §3 and §4.
#[inline(always)]
fn ipv6(frame: &impl Frame) -> Result<Packet, Verdict> {
    let Some(header) = frame.load::<40>(ETHERNET_HEADER) else {
        return Err(Verdict::GuardMalformed);
    };
    let available = frame.length().saturating_sub(ETHERNET_HEADER + 40);
    let length = match u32::from(u16::from_be_bytes([header[4], header[5]])) {
        0 => available,
        length => length,
    };
    if header[0] >> 4 != 6 || length > available {
        return Err(Verdict::GuardMalformed);
    }
    let start = ETHERNET_HEADER + 40;
    let mut parts =
        Parts { protocol: header[6], at: start, length, fragmented: false, first: true };
    let mut left = MAX_EXTENSION_HEADERS;
    while parts.is_extension() {
        if left == 0 {
            return Err(Verdict::GuardExtensionHeaders);
        }
        left -= 1;
        if !parts.first {
            // What follows is in another fragment.
            return Err(Verdict::GuardFragment);
        }
        let Some(extension) = frame.load::<4>(parts.at) else {
            return Err(Verdict::GuardMalformed);
        };
        let size = match parts.protocol {
            FRAGMENT => {
                parts.fragmented = true;
                parts.first = u16::from_be_bytes([extension[2], extension[3]]) & 0xfff8 == 0;
                8
            }
            // Spec: RFC 4302 §2.2, in words of four bytes.
            AUTHENTICATION => (u32::from(extension[1]) + 2) * 4,
            _ => (u32::from(extension[1]) + 1) * 8,
        };
        if size > parts.length {
            return Err(Verdict::GuardMalformed);
        }
        parts.protocol = extension[0];
        parts.at += size;
        parts.length -= size;
    }
    let word = |at: usize| {
        u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let packet = Packet {
        source: Address([word(8), word(12), word(16), word(20)]),
        destination: Address([word(24), word(28), word(32), word(36)]),
        ..Packet::CONTROL
    };
    match parts.protocol {
        ICMPV6 => Ok(packet),
        _ => transport(frame, packet, &parts),
    }
}

/// Where a packet's payload is, and what.
struct Parts {
    protocol: u8,
    at: u32,
    length: u32,
    /// It is one of several, or says so.
    fragmented: bool,
    /// It is not a later one.
    first: bool,
}

impl Parts {
    const fn is_extension(&self) -> bool {
        matches!(
            self.protocol,
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS
        )
    }
}

#[inline(always)]
fn transport(frame: &impl Frame, packet: Packet, parts: &Parts) -> Result<Packet, Verdict> {
    match parts.protocol {
        TCP => {
            // TCP cuts to size what it sends. Fragments could hide or overwrite a header.
            if parts.fragmented {
                return Err(Verdict::GuardFragment);
            }
            let Some(header) = frame.load::<14>(parts.at) else {
                return Err(Verdict::GuardMalformed);
            };
            let size = u32::from(header[12] >> 4) * 4;
            if size < TCP_HEADER || size > parts.length {
                return Err(Verdict::GuardMalformed);
            }
            Ok(Packet {
                kind: Kind::Tcp,
                source_port: u16::from_be_bytes([header[0], header[1]]),
                destination_port: u16::from_be_bytes([header[2], header[3]]),
                flags: header[13],
                payload: parts.length > size,
                ..packet
            })
        }
        UDP if parts.first => {
            let Some(header) = frame.load::<4>(parts.at) else {
                return Err(Verdict::GuardMalformed);
            };
            if parts.length < UDP_HEADER {
                return Err(Verdict::GuardMalformed);
            }
            Ok(Packet {
                kind: Kind::Udp,
                source_port: u16::from_be_bytes([header[0], header[1]]),
                destination_port: u16::from_be_bytes([header[2], header[3]]),
                ..packet
            })
        }
        UDP => Ok(Packet { kind: Kind::Udp, ..packet }),
        _ => Ok(Packet { kind: Kind::Other, ..packet }),
    }
}

/// What is known before any socket is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    Pass,
    Drop(Verdict),
    /// It depends on the socket: see [`judge`].
    Socket,
}

/// Judges a packet as far as that goes without its socket. `drop_non_tcp`: whether
/// other protocols than TCP are dropped.
#[inline(always)]
pub fn look(
    packet: &Packet,
    way: Way,
    netns_cookie: u64,
    drop_non_tcp: bool,
    tables: &impl Tables,
) -> Look {
    match packet.kind {
        Kind::Control => Look::Pass,
        Kind::Udp | Kind::Other => {
            if !drop_non_tcp
                || is_name_or_address_service(packet, way)
                || (matches!(packet.kind, Kind::Udp)
                    && is_excluded(packet, way, netns_cookie, tables))
            {
                Look::Pass
            } else {
                Look::Drop(Verdict::GuardNonTcp)
            }
        }
        Kind::Tcp => match way {
            // Rewritten to the agent, and bound to this interface: it leads nowhere.
            Way::Egress if packet.destination.is_loopback() => {
                Look::Drop(Verdict::GuardBoundToInterface)
            }
            // Who may open a connection is the lookup program's to say.
            Way::Ingress if packet.opens() => Look::Pass,
            // A FIN passes; its socket is noted as vouched for while that is known.
            _ if packet.opens() || packet.payload || packet.ends() => Look::Socket,
            _ => Look::Pass,
        },
    }
}

/// DNS as a client, and DHCP.
#[inline(always)]
fn is_name_or_address_service(packet: &Packet, way: Way) -> bool {
    if !matches!(packet.kind, Kind::Udp) {
        return false;
    }
    let (near, far) = match way {
        Way::Egress => (packet.source_port, packet.destination_port),
        Way::Ingress => (packet.destination_port, packet.source_port),
    };
    far == DNS || (near == DHCP[1] && far == DHCP[0]) || (near == DHCPV6[0] && far == DHCPV6[1])
}

/// Whether either end of the packet is left alone by the pod's exclusions.
#[inline(always)]
fn is_excluded(packet: &Packet, way: Way, netns_cookie: u64, tables: &impl Tables) -> bool {
    let (near_port, far, far_port) = match way {
        Way::Egress => (packet.source_port, &packet.destination, packet.destination_port),
        Way::Ingress => (packet.destination_port, &packet.source, packet.source_port),
    };
    tables.outbound_port_excluded(netns_cookie, far_port)
        // Servers answer from such a port; who opens a connection from it is none.
        || (!matches!((way, packet.opens()), (Way::Egress, true))
            && tables.inbound_port_excluded(netns_cookie, near_port))
        || tables.outbound_address_excluded(netns_cookie, far)
}

/// The socket at the pod's end of a TCP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// None: sent by a raw socket or forwarded; or on its way to no socket.
    Nobody,
    /// One that waits for connections.
    Listener,
    /// One that nobody vouches for.
    Stranger,
    /// The agent's own, or that of a connection that a hook has let pass.
    Vouched,
    /// That of a connection of the kernel path.
    KernelPath,
    /// One that the connect hook sent to the kernel path, and that nobody vouched for
    /// when its SYN left.
    Unvouched,
}

/// Judges a TCP packet by its socket; `Err` is the verdict to drop it by.
/// `strict`: the pod takes and sends nothing that was not captured, also on
/// connections that are older than its enrolment.
#[inline(always)]
pub fn judge(
    packet: &Packet,
    way: Way,
    holder: Holder,
    netns_cookie: u64,
    strict: bool,
    tables: &impl Tables,
) -> Result<(), Verdict> {
    if matches!(holder, Holder::Vouched | Holder::KernelPath) || !(packet.payload || packet.opens())
    {
        return Ok(());
    }
    // Its SYN is for the destination's agent to refuse.
    if matches!(holder, Holder::Unvouched) {
        return match way {
            Way::Ingress if packet.payload => Err(Verdict::GuardIngressPlaintext),
            Way::Egress if packet.payload => Err(Verdict::GuardUncaptured),
            _ => Ok(()),
        };
    }
    // New connections are the lookup program's; what no socket waits for is reset.
    // It may be for another namespace, inside this pod, where no lookup program is.
    let onward = matches!(holder, Holder::Nobody | Holder::Listener)
        && packet.payload
        && !matches!(tables.owner(netns_cookie, &packet.destination), Owner::Pod);
    if matches!(way, Way::Ingress) && !matches!(holder, Holder::Stranger) && !onward {
        return Ok(());
    }
    if is_excluded(packet, way, netns_cookie, tables) {
        return Ok(());
    }
    match way {
        Way::Ingress if strict => Err(Verdict::GuardIngressPlaintext),
        Way::Ingress => Ok(()),
        Way::Egress if matches!(holder, Holder::Nobody) => Err(Verdict::GuardNoSocket),
        Way::Egress if packet.opens() => Err(Verdict::GuardUncaptured),
        Way::Egress if strict => Err(Verdict::GuardEgressPlaintext),
        Way::Egress => Ok(()),
    }
}

/// Who sends a frame to whom, of one that [`classify`] has let pass as IP.
#[inline(always)]
pub fn ends(frame: &impl Frame) -> Option<(Address, Address)> {
    let word = |at: u32| frame.load::<4>(ETHERNET_HEADER + at).map(u32::from_ne_bytes);
    match u16::from_be_bytes(frame.load::<2>(ETHERTYPE_AT)?) {
        IPV4 => Some((Address::from_v4_be(word(12)?), Address::from_v4_be(word(16)?))),
        IPV6 => Some((
            Address([word(8)?, word(12)?, word(16)?, word(20)?]),
            Address([word(24)?, word(28)?, word(32)?, word(36)?]),
        )),
        _ => None,
    }
}

/// What becomes of a packet outside the pod that sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Onward {
    Pass,
    /// It is in the clear and must not leave the node: see [`handover`].
    KernelPath,
    /// The guard inside has not seen it: see [`unseen`].
    Unseen,
}

/// What the guard inside has said of a packet. Raw sockets can send past that guard
/// (`PACKET_QDISC_BYPASS`), and what they send then carries no stamp.
#[inline(always)]
pub const fn onward(stamped: u32) -> Onward {
    match stamped {
        stamp::SEEN => Onward::Pass,
        stamp::KERNEL_PATH | stamp::KERNEL_PATH_DATA => Onward::KernelPath,
        _ => Onward::Unseen,
    }
}

/// Judges, outside the pod, what the guard inside has not seen.
#[inline(always)]
pub fn unseen(
    packet: &Packet,
    netns_cookie: u64,
    drop_non_tcp: bool,
    tables: &impl Tables,
) -> Result<(), Verdict> {
    match look(packet, Way::Egress, netns_cookie, drop_non_tcp, tables) {
        Look::Drop(verdict) => Err(verdict),
        Look::Socket if packet.payload || packet.opens() => Err(Verdict::GuardBypassed),
        Look::Socket | Look::Pass => Ok(()),
    }
}

/// The stamp of a packet of the kernel path, for the guards to come.
#[inline(always)]
pub const fn stamp_of(packet: &Packet) -> u32 {
    if packet.payload && packet.flags & (SYN | FIN) == 0 {
        stamp::KERNEL_PATH_DATA
    } else {
        stamp::KERNEL_PATH
    }
}

/// Who sends a packet that a pod takes as the guard of another pod of the node has judged it,
/// if that is a pod with a guard, which is to be asked. The stamp alone can be forged by who is
/// root in a pod without; what it comes with is plain TCP, or is judged as any packet. The
/// socket is looked at when the connection ends, and noted then: see [`Look::Socket`].
#[inline(always)]
pub fn is_vouched_for(stamped: u32, frame: &impl Frame) -> Option<Address> {
    if stamped != stamp::KERNEL_PATH_DATA || frame.tagged() {
        return None;
    }
    match u16::from_be_bytes(frame.load::<2>(ETHERTYPE_AT)?) {
        IPV4 => {
            let header = frame.load::<16>(ETHERNET_HEADER)?;
            let whole = u16::from_be_bytes([header[6], header[7]]) & 0x3fff == 0;
            let source = u32::from_ne_bytes([header[12], header[13], header[14], header[15]]);
            (header[0] >> 4 == 4 && whole && header[9] == TCP)
                .then_some(Address::from_v4_be(source))
        }
        IPV6 => {
            let header = frame.load::<24>(ETHERNET_HEADER)?;
            let word = |at: usize| {
                u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
            };
            (header[0] >> 4 == 6 && header[6] == TCP).then_some(Address([
                word(8),
                word(12),
                word(16),
                word(20),
            ]))
        }
        _ => None,
    }
}

/// How a packet of the kernel path gets to the pod that it is for, and not to whoever has the
/// pod's address by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handover {
    /// Straight in, by the peer of this interface.
    Peer(u32),
    /// Out of this port of a bridge, to the pod's hardware address. What the bridge has
    /// learnt is not asked: anybody on it can teach it another port for that address, and
    /// it would send what it has no port for to all of them.
    Port(u32, [u8; 6]),
    /// By the node's routes, if they lead to this interface.
    Routes(u32),
    /// The pod is not known.
    Astray,
}

/// `redirect`: whether the pod that has sent it may hand packets straight in. `to`: the
/// node's end of the interface of the pod that it is for.
#[inline(always)]
pub const fn handover(redirect: bool, to: Option<&Outside>) -> Handover {
    let Some(to) = to else { return Handover::Astray };
    if redirect && to.redirect != 0 {
        Handover::Peer(to.interface)
    } else if to.is_bridged() {
        Handover::Port(to.interface, to.hardware)
    } else {
        Handover::Routes(to.interface)
    }
}

#[cfg(test)]
mod tests;
