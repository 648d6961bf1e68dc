//! What becomes of a connection: pure, so that unit tests and the kernel run the same code.

use crate::{
    abi::{
        AFTER_END_NS, APPLICATION_MARK, HBONE_PORT, INBOUND_PORT, MAX_BACKENDS, OUTBOUND_PORT,
        SPLICE_AHEAD_MESSAGES, SYN_COOKIE_LIFE_NS, UPSTREAM_MARK,
    },
    address::Address,
    key::ListenerKind,
    value::{Asked, Authorized, Backend, Owner, Service, Way},
    verdict::Verdict,
};

/// What the maps know about one pod, asked only when it matters.
pub trait Tables {
    /// Whether the pod of `netns_cookie` is enrolled.
    fn enrolled(&self, netns_cookie: u64) -> bool;
    /// Whose address it is.
    fn owner(&self, netns_cookie: u64, address: &Address) -> Owner;
    /// Whether connections to `port` stay uncaptured.
    fn outbound_port_excluded(&self, netns_cookie: u64, port: u16) -> bool;
    /// Whether connections to `address` stay uncaptured.
    fn outbound_address_excluded(&self, netns_cookie: u64, address: &Address) -> bool;
    /// Whether connections from outside to `port` stay uncaptured.
    fn inbound_port_excluded(&self, netns_cookie: u64, port: u16) -> bool;
}

/// A connect(2) that is about to happen.
#[derive(Debug, Clone, Copy)]
pub struct Dial {
    pub netns_cookie: u64,
    pub tcp: bool,
    /// The socket is the agent's own: it carries one of its marks, see [`is_agent_mark`],
    /// and the agent has vouched for it.
    pub agent: bool,
    pub destination: Address,
    pub port: u16,
}

/// Whether a socket claims to be the agent's: cheap to ask before what proves it.
#[inline(always)]
pub const fn is_agent_mark(mark: u32) -> bool {
    mark == UPSTREAM_MARK || mark == APPLICATION_MARK
}

/// What the connect hook does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outbound {
    Pass(Verdict),
    Refuse(Verdict),
    Capture,
}

/// Judges a dial.
#[inline(always)]
pub fn outbound(dial: &Dial, tables: &impl Tables) -> Outbound {
    if !dial.tcp {
        return Outbound::Pass(Verdict::OutboundNotTcp);
    }
    if !tables.enrolled(dial.netns_cookie) {
        return Outbound::Pass(Verdict::OutboundNotEnrolled);
    }
    if dial.agent {
        return Outbound::Pass(Verdict::OutboundAgent);
    }
    let local = dial.destination.is_loopback() || dial.destination.is_unspecified();
    let owner = if local { Owner::Pod } else { tables.owner(dial.netns_cookie, &dial.destination) };
    let agent_port =
        dial.port == OUTBOUND_PORT || dial.port == INBOUND_PORT || dial.port == HBONE_PORT;
    if agent_port && !matches!(owner, Owner::Other) {
        // The agent would dial itself, for ever.
        return Outbound::Refuse(Verdict::OutboundAgentPort);
    }
    if local {
        return Outbound::Pass(Verdict::OutboundLoopback);
    }
    if matches!(owner, Owner::Pod) {
        return Outbound::Pass(Verdict::OutboundOwnAddress);
    }
    if tables.outbound_port_excluded(dial.netns_cookie, dial.port) {
        return Outbound::Pass(Verdict::OutboundPortExcluded);
    }
    if tables.outbound_address_excluded(dial.netns_cookie, &dial.destination) {
        return Outbound::Pass(Verdict::OutboundCidrExcluded);
    }
    Outbound::Capture
}

/// A new connection that reached a pod's namespace.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    pub netns_cookie: u64,
    pub tcp: bool,
    /// It came in by `lo`, as the kernel tells it: the agent's dial to the application,
    /// which is bound to `lo`. A dial to an address of the pod from the pod itself
    /// runs over `lo` too, but is told as of the interface that has the address.
    pub from_loopback: bool,
    /// Where it comes from. From outside, the kernel takes neither loopback nor the
    /// pod's own addresses here (martians; with IPv6 the answer never leaves the pod).
    pub source: Address,
    /// The port it asks for.
    pub port: u16,
}

/// What the lookup hook does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inbound {
    Pass(Verdict),
    Refuse(Verdict),
    Steer(ListenerKind),
}

/// Judges an arrival.
#[inline(always)]
pub fn inbound(arrival: &Arrival, tables: &impl Tables) -> Inbound {
    if !arrival.tcp {
        return Inbound::Pass(Verdict::InboundNotTcp);
    }
    if arrival.from_loopback {
        return Inbound::Pass(Verdict::InboundLoopback);
    }
    if !tables.enrolled(arrival.netns_cookie) {
        return Inbound::Pass(Verdict::InboundNotEnrolled);
    }
    let own = arrival.source.is_loopback()
        || matches!(tables.owner(arrival.netns_cookie, &arrival.source), Owner::Pod);
    if own {
        return Inbound::Pass(Verdict::InboundLoopback);
    }
    if arrival.port == HBONE_PORT {
        // Steered, not left to the port's lookup: an application that listens on
        // 15008 of one address would otherwise be preferred to the agent.
        return Inbound::Steer(ListenerKind::Hbone);
    }
    if arrival.port == OUTBOUND_PORT || arrival.port == INBOUND_PORT {
        return Inbound::Refuse(Verdict::InboundAgentPort);
    }
    if tables.inbound_port_excluded(arrival.netns_cookie, arrival.port) {
        return Inbound::Pass(Verdict::InboundPortExcluded);
    }
    Inbound::Steer(ListenerKind::Inbound)
}

/// The backend that `random`, any number, stands for: each by its weight. `None`
/// where the service is not as the agent writes it: ask the agent.
#[inline(always)]
pub fn pick(service: &Service, random: u32) -> Option<&Backend> {
    // Spreads 0..2^32 over 0..total without a division.
    let wanted = ((random as u64 * service.total_weight as u64) >> 32) as u32;
    let mut index = 0;
    while index < MAX_BACKENDS && (index as u32) < service.count {
        let backend = &service.backends[index];
        if wanted < backend.cumulative_weight {
            return Some(backend);
        }
        index += 1;
    }
    None
}

/// Whether the service still leads where the connect hook sent a socket: its SYN may leave
/// much later (`TCP_FASTOPEN_CONNECT`).
#[inline(always)]
pub fn leads_to(service: &Service, asked: &Asked) -> bool {
    let mut index = 0;
    while index < MAX_BACKENDS && (index as u32) < service.count {
        let backend = &service.backends[index];
        if backend.netns_cookie == asked.target_cookie
            && backend.port == asked.target_port
            && backend.address.0[0] == asked.target.0[0]
            && backend.address.0[1] == asked.target.0[1]
            && backend.address.0[2] == asked.target.0[2]
            && backend.address.0[3] == asked.target.0[3]
        {
            return true;
        }
        index += 1;
    }
    false
}

/// Whether what the source vouched for may still knock: its SYN, sent once or again,
/// and, after a SYN cookie, the handshake's last segment.
#[inline(always)]
pub const fn may_knock(connection: &Authorized, now_ns: u64) -> bool {
    connection.established_ns == 0
        || now_ns.wrapping_sub(connection.established_ns) < SYN_COOKIE_LIFE_NS
}

/// Whether a server may still send to a client of the kernel path whose socket is gone: its
/// kernel answers with a reset, unless whoever is root there keeps it from doing so.
/// `ended_ns`: when that was first seen.
#[inline(always)]
pub const fn may_still_send(ended_ns: u64, now_ns: u64) -> bool {
    now_ns.wrapping_sub(ended_ns) < AFTER_END_NS
}

/// How one direction of a connection travels once a message was offered to the peer's
/// socket, which took it or was not there. For ever: data that changed its way could
/// overtake what was sent before.
#[inline(always)]
pub const fn way_after(way: Way, taken: bool) -> Way {
    match way {
        Way::Undecided if taken => Way::Spliced,
        Way::Undecided => Way::Tcp,
        // A peer that was there and is not has closed: TCP says so.
        Way::Spliced | Way::Tcp => way,
    }
}

/// Whether an application may hand so many bytes more to the agent, which has `granted` so
/// many in all. If not, that direction is TCP's from then on: the reader, the agent, takes
/// what was spliced first, and TCP holds the writer up.
#[inline(always)]
pub const fn may_run_ahead(sent: u64, size: u64, granted: u64) -> bool {
    sent.saturating_add(size) <= granted
}

/// Counts one message more of that application's: the new `mark` and `messages` of
/// [`crate::value::Splice`]. `None` where the agent, which has `read` so many bytes, is behind
/// by too many: then the direction is TCP's as well.
#[inline(always)]
pub const fn one_more_message(
    mark: u64,
    messages: u32,
    sent: u64,
    read: u64,
) -> Option<(u64, u32)> {
    if messages < SPLICE_AHEAD_MESSAGES {
        return Some((mark, messages + 1));
    }
    if read >= mark { Some((sent, 1)) } else { None }
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;

    /// One enrolled pod, cookie 7, at 10.0.0.2 / fd00::2 on the node 192.168.0.1.
    struct OnePod;

    fn is(address: &Address, s: &str) -> bool {
        *address == Address::from(s.parse::<IpAddr>().unwrap())
    }

    impl Tables for OnePod {
        fn enrolled(&self, netns_cookie: u64) -> bool {
            netns_cookie == 7
        }
        fn owner(&self, _: u64, address: &Address) -> Owner {
            if is(address, "10.0.0.2") || is(address, "fd00::2") {
                Owner::Pod
            } else if is(address, "192.168.0.1") {
                Owner::Node
            } else {
                Owner::Other
            }
        }
        fn outbound_port_excluded(&self, _: u64, port: u16) -> bool {
            port == 3306
        }
        fn outbound_address_excluded(&self, _: u64, address: &Address) -> bool {
            is(address, "169.254.169.254")
        }
        fn inbound_port_excluded(&self, _: u64, port: u16) -> bool {
            port == 9100
        }
    }

    #[test]
    fn dials() {
        use Outbound::{Capture, Pass, Refuse};
        for (destination, port, expected) in [
            ("10.9.9.9", 80, Capture),
            ("fd00::9", 80, Capture),
            ("::ffff:10.9.9.9", 80, Capture),
            ("10.9.9.9", 15008, Capture),
            ("127.0.0.1", 80, Pass(Verdict::OutboundLoopback)),
            ("127.1.2.3", 80, Pass(Verdict::OutboundLoopback)),
            ("::1", 80, Pass(Verdict::OutboundLoopback)),
            ("::ffff:127.0.0.1", 80, Pass(Verdict::OutboundLoopback)),
            ("0.0.0.0", 80, Pass(Verdict::OutboundLoopback)),
            ("::", 80, Pass(Verdict::OutboundLoopback)),
            ("10.0.0.2", 80, Pass(Verdict::OutboundOwnAddress)),
            ("fd00::2", 80, Pass(Verdict::OutboundOwnAddress)),
            ("192.168.0.1", 80, Capture),
            ("10.9.9.9", 3306, Pass(Verdict::OutboundPortExcluded)),
            ("169.254.169.254", 80, Pass(Verdict::OutboundCidrExcluded)),
            ("127.0.0.1", 15001, Refuse(Verdict::OutboundAgentPort)),
            ("::1", 15006, Refuse(Verdict::OutboundAgentPort)),
            ("0.0.0.0", 15001, Refuse(Verdict::OutboundAgentPort)),
            ("::ffff:127.0.0.1", 15001, Refuse(Verdict::OutboundAgentPort)),
            ("10.0.0.2", 15008, Refuse(Verdict::OutboundAgentPort)),
            ("192.168.0.1", 15006, Refuse(Verdict::OutboundAgentPort)),
        ] {
            let dial = Dial {
                netns_cookie: 7,
                tcp: true,
                agent: false,
                destination: destination.parse::<IpAddr>().unwrap().into(),
                port,
            };
            assert_eq!(outbound(&dial, &OnePod), expected, "{destination} port {port}");
            let other = Dial { netns_cookie: 8, ..dial };
            assert_eq!(outbound(&other, &OnePod), Pass(Verdict::OutboundNotEnrolled));
            let udp = Dial { tcp: false, ..dial };
            assert_eq!(outbound(&udp, &OnePod), Pass(Verdict::OutboundNotTcp));
            let agent = Dial { agent: true, ..dial };
            assert_eq!(outbound(&agent, &OnePod), Pass(Verdict::OutboundAgent));
        }
    }

    #[test]
    fn arrivals() {
        use Inbound::{Pass, Refuse, Steer};
        for (port, expected) in [
            (80, Steer(ListenerKind::Inbound)),
            (15008, Steer(ListenerKind::Hbone)),
            (9100, Pass(Verdict::InboundPortExcluded)),
            (15001, Refuse(Verdict::InboundAgentPort)),
            (15006, Refuse(Verdict::InboundAgentPort)),
        ] {
            let source = "10.9.9.9".parse::<IpAddr>().unwrap().into();
            let arrival =
                Arrival { netns_cookie: 7, tcp: true, from_loopback: false, source, port };
            assert_eq!(inbound(&arrival, &OnePod), expected, "port {port}");
            let inside = Arrival { from_loopback: true, ..arrival };
            assert_eq!(inbound(&inside, &OnePod), Pass(Verdict::InboundLoopback));
            for own in ["10.0.0.2", "fd00::2", "127.0.0.1", "::1"] {
                let itself = Arrival { source: own.parse::<IpAddr>().unwrap().into(), ..arrival };
                assert_eq!(inbound(&itself, &OnePod), Pass(Verdict::InboundLoopback), "{own}");
            }
            let node =
                Arrival { source: "192.168.0.1".parse::<IpAddr>().unwrap().into(), ..arrival };
            assert_eq!(inbound(&node, &OnePod), expected, "port {port} from the node");
            let other = Arrival { netns_cookie: 8, ..arrival };
            assert_eq!(inbound(&other, &OnePod), Pass(Verdict::InboundNotEnrolled));
            let udp = Arrival { tcp: false, ..arrival };
            assert_eq!(inbound(&udp, &OnePod), Pass(Verdict::InboundNotTcp));
        }
    }

    fn service(weights: &[u32]) -> Service {
        let address = Address::UNSPECIFIED;
        let none = Backend {
            netns_cookie: 0,
            address,
            port: 0,
            cumulative_weight: 0,
            splice: 0,
            _zero: 0,
        };
        let mut backends = [none; MAX_BACKENDS];
        let mut total = 0;
        for (backend, (port, weight)) in backends.iter_mut().zip((1..).zip(weights)) {
            total += weight;
            *backend = Backend { port, cumulative_weight: total, ..none };
        }
        Service { keep_until_ns: 0, total_weight: total, count: weights.len() as u32, backends }
    }

    #[test]
    fn backends_are_picked_by_weight() {
        let picks = |weights: &[u32]| {
            let service = service(weights);
            let mut counts = [0; MAX_BACKENDS];
            for i in 0..1000_u64 {
                let random = (i * u64::from(u32::MAX) / 999) as u32;
                let port = pick(&service, random).expect("a backend").port;
                counts[port as usize - 1] += 1;
            }
            counts
        };
        assert_eq!(picks(&[1])[0], 1000);
        assert_eq!(picks(&[1, 3])[..3], [250, 750, 0]);
        assert_eq!(picks(&[1; 16]).iter().filter(|n| (61..=64).contains(*n)).count(), 16);
        assert_eq!(pick(&service(&[]), 0), None);
        // Written by somebody else: never beyond the array.
        assert_eq!(pick(&Service { count: 99, total_weight: 7, ..service(&[]) }, 0), None);
    }

    #[test]
    fn a_direction_keeps_the_way_of_its_first_message() {
        for (way, taken, expected) in [
            (Way::Undecided, true, Way::Spliced),
            (Way::Undecided, false, Way::Tcp),
            (Way::Spliced, false, Way::Spliced),
            (Way::Tcp, true, Way::Tcp),
        ] {
            assert_eq!(way_after(way, taken), expected, "{way:?}, {taken}");
            assert_eq!(Way::from_number(way as u32), way);
        }
        assert_eq!(Way::from_number(99), Way::Tcp);
    }

    #[test]
    fn who_is_ahead_by_more_than_granted_goes_by_tcp() {
        for (sent, size, granted, expected) in [
            (0, 1, 0, false),
            (0, 10, 10, true),
            (1, 10, 10, false),
            (u64::MAX, 1, u64::MAX, true),
            (u64::MAX, 1, u64::MAX - 1, false),
        ] {
            assert_eq!(may_run_ahead(sent, size, granted), expected, "{sent} {size} {granted}");
        }
    }

    #[test]
    fn who_is_ahead_by_too_many_messages_goes_by_tcp() {
        const MOST: u32 = SPLICE_AHEAD_MESSAGES;
        for (mark, messages, sent, read, expected) in [
            (0, 0, 0, 0, Some((0, 1))),
            (0, MOST - 1, 5000, 0, Some((0, MOST))),
            // The first may all wait, and as many again.
            (0, MOST, 5000, 0, Some((5000, 1))),
            (5000, MOST, 9000, 4999, None),
            (5000, MOST, 9000, 5000, Some((9000, 1))),
            (5000, 7, 9000, 0, Some((5000, 8))),
        ] {
            let found = one_more_message(mark, messages, sent, read);
            assert_eq!(found, expected, "{mark} {messages} {sent} {read}");
        }
    }

    #[test]
    fn who_is_established_knocks_only_for_as_long_as_a_syn_cookie_lives() {
        let connection = Authorized {
            asked: Address::UNSPECIFIED,
            asked_port: 80,
            fin: 0,
            source_cookie: 1,
            socket_cookie: 2,
            opened_ns: 5,
            established_ns: 0,
            received_at_fin: 0,
            seen: 0,
            splice: 0,
            spliced_up: 0,
            spliced_down: 0,
            spliced_ns: 0,
        };
        assert!(may_knock(&connection, u64::MAX));
        let connection = Authorized { established_ns: 10, ..connection };
        assert!(may_knock(&connection, 10 + SYN_COOKIE_LIFE_NS - 1));
        assert!(!may_knock(&connection, 10 + SYN_COOKIE_LIFE_NS));
    }

    #[test]
    fn who_is_gone_is_sent_to_for_a_moment_only() {
        assert!(may_still_send(10, 10));
        assert!(may_still_send(10, 10 + AFTER_END_NS - 1));
        assert!(!may_still_send(10, 10 + AFTER_END_NS));
    }
}
