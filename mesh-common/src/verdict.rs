//! Why a program let a connection pass, took it or refused it: one counter each.

/// The end of every path through a program. Numbers are stable: they index the
/// counters map, which outlives the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Verdict {
    /// connect: rewritten to the agent.
    OutboundCaptured = 0,
    /// connect: not TCP.
    OutboundNotTcp = 1,
    /// connect: from a namespace that is not enrolled.
    OutboundNotEnrolled = 2,
    /// connect: the agent's own socket.
    OutboundAgent = 3,
    /// connect: to loopback.
    OutboundLoopback = 4,
    /// connect: the pod to its own address.
    OutboundOwnAddress = 5,
    /// connect: excluded by port.
    OutboundPortExcluded = 6,
    /// connect: excluded by network.
    OutboundCidrExcluded = 7,
    /// connect: refused, one of the agent's own ports at the pod or its node.
    OutboundAgentPort = 8,
    /// connect: refused, no room to remember the original destination.
    OutboundNoStorage = 9,
    /// sock_ops: original destination published to the agent.
    Published = 10,
    /// sock_ops: could not publish (map full); the agent will reset the connection.
    PublishFailed = 11,
    /// sock_ops: an attempt ended before the agent could accept it.
    Withdrawn = 12,
    /// sk_lookup: steered to the agent's plaintext listener.
    InboundSteered = 13,
    /// sk_lookup: steered to the agent's HBONE listener.
    InboundHbone = 14,
    /// sk_lookup: not TCP.
    InboundNotTcp = 15,
    /// sk_lookup: the pod is not enrolled (any more).
    InboundNotEnrolled = 16,
    /// sk_lookup: from inside the pod.
    InboundLoopback = 17,
    /// sk_lookup: excluded by port.
    InboundPortExcluded = 18,
    /// sk_lookup: refused, one of the agent's internal ports.
    InboundAgentPort = 19,
    /// sk_lookup: refused, the agent is not there.
    InboundNoListener = 20,
    /// sk_lookup: refused, the kernel did not take the listener.
    InboundAssignFailed = 21,
    /// getpeername: the asked address was shown.
    PeerNameRestored = 22,
    /// connect: rewritten straight to a pod of this node.
    OutboundKernelPath = 23,
    /// connect: the kernel path could take it, but the agent is not there to answer for it.
    KernelPathNoAgent = 24,
    /// connect: left to the agent, for the kernel path has as many connections as it may.
    KernelPathFull = 25,
    /// connect: left to the agent, for the socket is bound to an address that is not the pod's.
    KernelPathBound = 26,
    /// connect: left to the agent, for the destination is not enrolled any more.
    KernelPathStale = 27,
    /// sock_ops: a connection of the kernel path was vouched for.
    Authorized = 28,
    /// sock_ops: could not vouch; the destination will refuse the connection.
    AuthorizeFailed = 29,
    /// sk_lookup: passed to the application, vouched for by the source.
    InboundAuthorized = 30,
    /// sk_lookup: vouched for once, but established long ago.
    InboundExpired = 31,
    /// sock_ops: the agent did not read events in time, this one is lost.
    EventLost = 32,
    /// guard: dropped, a connection that a socket opens past the connect hook.
    GuardUncaptured = 33,
    /// guard: dropped, TCP out of the pod that no TCP socket has sent.
    GuardNoSocket = 34,
    /// guard: dropped, to loopback by the pod's interface: its socket is bound to that.
    GuardBoundToInterface = 35,
    /// guard: dropped, data out of a strict pod on a connection that was not captured.
    GuardEgressPlaintext = 36,
    /// guard: dropped, data into a strict pod on a connection that was not captured.
    GuardIngressPlaintext = 37,
    /// guard: dropped, the packet cannot be read.
    GuardMalformed = 38,
    /// guard: dropped, a fragment of TCP or of what may be TCP.
    GuardFragment = 39,
    /// guard: dropped, too many IPv6 extension headers.
    GuardExtensionHeaders = 40,
    /// guard: dropped, a VLAN tag.
    GuardVlan = 41,
    /// guard: dropped, neither IP nor ARP.
    GuardNotIp = 42,
    /// guard: dropped, not TCP, where the operator wants that.
    GuardNonTcp = 43,
    /// connect: a prober's, to a pod of this node.
    OutboundProbe = 44,
    /// sk_lookup: passed to the application, from a prober of this node.
    InboundProbe = 45,
    /// connect, sock_ops: could not vouch for a prober's connection; it is refused like any.
    ProbeFailed = 46,
    /// guard outside the pod: dropped, TCP that the guard inside has not seen.
    GuardBypassed = 47,
    /// guard outside the pod: handed straight into another pod of the node.
    Redirected = 48,
    /// sock_ops: a socket was put where its peer can hand it data.
    SpliceEntered = 49,
    /// sock_ops: it could not be; the connection stays on TCP.
    SpliceRefused = 50,
    /// sk_msg: one direction of a connection is spliced from its first byte on.
    SpliceBegun = 51,
    /// sk_msg: one direction stays on TCP, for the peer was not there at its first byte.
    SpliceLeft = 52,
    /// guard outside: dropped, of the kernel path, and on its way to somewhere else than its
    /// pod on this node.
    GuardAstray = 53,
    /// guard outside the pod: sent out of the destination's own port of their bridge.
    Bridged = 54,
    /// sock_ops: a socket was put where its peer can hand it data; one of them is the agent's.
    SpliceAgentEntered = 55,
    /// sk_msg: an application is so far ahead of the agent that it goes on by TCP.
    SpliceOverdrawn = 56,
    /// connect: refused, the agent has given no sign of life for too long.
    OutboundNoAgent = 57,
    /// guard: dropped, data for a client of the kernel path whose socket has been gone for a
    /// while.
    GuardEnded = 58,
}

impl Verdict {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 59] = [
        Self::OutboundCaptured,
        Self::OutboundNotTcp,
        Self::OutboundNotEnrolled,
        Self::OutboundAgent,
        Self::OutboundLoopback,
        Self::OutboundOwnAddress,
        Self::OutboundPortExcluded,
        Self::OutboundCidrExcluded,
        Self::OutboundAgentPort,
        Self::OutboundNoStorage,
        Self::Published,
        Self::PublishFailed,
        Self::Withdrawn,
        Self::InboundSteered,
        Self::InboundHbone,
        Self::InboundNotTcp,
        Self::InboundNotEnrolled,
        Self::InboundLoopback,
        Self::InboundPortExcluded,
        Self::InboundAgentPort,
        Self::InboundNoListener,
        Self::InboundAssignFailed,
        Self::PeerNameRestored,
        Self::OutboundKernelPath,
        Self::KernelPathNoAgent,
        Self::KernelPathFull,
        Self::KernelPathBound,
        Self::KernelPathStale,
        Self::Authorized,
        Self::AuthorizeFailed,
        Self::InboundAuthorized,
        Self::InboundExpired,
        Self::EventLost,
        Self::GuardUncaptured,
        Self::GuardNoSocket,
        Self::GuardBoundToInterface,
        Self::GuardEgressPlaintext,
        Self::GuardIngressPlaintext,
        Self::GuardMalformed,
        Self::GuardFragment,
        Self::GuardExtensionHeaders,
        Self::GuardVlan,
        Self::GuardNotIp,
        Self::GuardNonTcp,
        Self::OutboundProbe,
        Self::InboundProbe,
        Self::ProbeFailed,
        Self::GuardBypassed,
        Self::Redirected,
        Self::SpliceEntered,
        Self::SpliceRefused,
        Self::SpliceBegun,
        Self::SpliceLeft,
        Self::GuardAstray,
        Self::Bridged,
        Self::SpliceAgentEntered,
        Self::SpliceOverdrawn,
        Self::OutboundNoAgent,
        Self::GuardEnded,
    ];

    /// Room for later verdicts without a new map.
    pub const SLOTS: u32 = 64;

    /// The name under which the counter is exported.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OutboundCaptured => "outbound_captured",
            Self::OutboundNotTcp => "outbound_not_tcp",
            Self::OutboundNotEnrolled => "outbound_not_enrolled",
            Self::OutboundAgent => "outbound_agent",
            Self::OutboundLoopback => "outbound_loopback",
            Self::OutboundOwnAddress => "outbound_own_address",
            Self::OutboundPortExcluded => "outbound_port_excluded",
            Self::OutboundCidrExcluded => "outbound_cidr_excluded",
            Self::OutboundAgentPort => "outbound_agent_port",
            Self::OutboundNoStorage => "outbound_no_storage",
            Self::Published => "published",
            Self::PublishFailed => "publish_failed",
            Self::Withdrawn => "withdrawn",
            Self::InboundSteered => "inbound_steered",
            Self::InboundHbone => "inbound_hbone",
            Self::InboundNotTcp => "inbound_not_tcp",
            Self::InboundNotEnrolled => "inbound_not_enrolled",
            Self::InboundLoopback => "inbound_loopback",
            Self::InboundPortExcluded => "inbound_port_excluded",
            Self::InboundAgentPort => "inbound_agent_port",
            Self::InboundNoListener => "inbound_no_listener",
            Self::InboundAssignFailed => "inbound_assign_failed",
            Self::PeerNameRestored => "peer_name_restored",
            Self::OutboundKernelPath => "outbound_kernel_path",
            Self::KernelPathNoAgent => "kernel_path_no_agent",
            Self::KernelPathFull => "kernel_path_full",
            Self::KernelPathBound => "kernel_path_bound",
            Self::KernelPathStale => "kernel_path_stale",
            Self::Authorized => "authorized",
            Self::AuthorizeFailed => "authorize_failed",
            Self::InboundAuthorized => "inbound_authorized",
            Self::InboundExpired => "inbound_expired",
            Self::EventLost => "event_lost",
            Self::GuardUncaptured => "guard_uncaptured",
            Self::GuardNoSocket => "guard_no_socket",
            Self::GuardBoundToInterface => "guard_bound_to_interface",
            Self::GuardEgressPlaintext => "guard_egress_plaintext",
            Self::GuardIngressPlaintext => "guard_ingress_plaintext",
            Self::GuardMalformed => "guard_malformed",
            Self::GuardFragment => "guard_fragment",
            Self::GuardExtensionHeaders => "guard_extension_headers",
            Self::GuardVlan => "guard_vlan",
            Self::GuardNotIp => "guard_not_ip",
            Self::GuardNonTcp => "guard_non_tcp",
            Self::OutboundProbe => "outbound_probe",
            Self::InboundProbe => "inbound_probe",
            Self::ProbeFailed => "probe_failed",
            Self::GuardBypassed => "guard_bypassed",
            Self::Redirected => "redirected",
            Self::SpliceEntered => "splice_entered",
            Self::SpliceRefused => "splice_refused",
            Self::SpliceBegun => "splice_begun",
            Self::SpliceLeft => "splice_left",
            Self::GuardAstray => "guard_astray",
            Self::Bridged => "bridged",
            Self::SpliceAgentEntered => "splice_agent_entered",
            Self::SpliceOverdrawn => "splice_overdrawn",
            Self::OutboundNoAgent => "outbound_no_agent",
            Self::GuardEnded => "guard_ended",
        }
    }
}

const _: () = assert!(Verdict::ALL.len() <= Verdict::SLOTS as usize);

#[cfg(test)]
mod tests {
    use super::Verdict;

    #[test]
    fn numbers_are_the_order() {
        for (i, verdict) in Verdict::ALL.into_iter().enumerate() {
            assert_eq!(verdict as usize, i, "{}", verdict.name());
        }
    }
}
