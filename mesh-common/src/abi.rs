//! Names, numbers and sizes that kernel and user space share.

/// Version of every layout in [`crate::key`] and [`crate::value`], and of what the
/// programs read into them. Raise it with any change of either: an agent never
/// adopts maps of another version.
pub const ABI_VERSION: u32 = 12;

/// In the BPF object, in a section of its own: which version it was built with.
pub const ABI_TAG: [u8; 16] = {
    let version = ABI_VERSION.to_le_bytes();
    let mut tag = *b"mesh-bpf-abi:\0\0\0";
    tag[13] = version[0];
    tag[14] = version[1];
    tag[15] = version[2];
    tag
};

/// In-pod port (on 127.0.0.1 and ::1) that outbound connections are rewritten to.
pub const OUTBOUND_PORT: u16 = 15001;
/// In-pod port of the listener that plaintext inbound connections are steered to.
pub const INBOUND_PORT: u16 = 15006;
/// Port of the HBONE listener, reachable from outside the pod.
pub const HBONE_PORT: u16 = 15008;

/// `SO_MARK` of what the agent dials out of a pod; routing treats it as any traffic
/// of the pod. Capture leaves it alone if the agent has vouched for the socket too
/// (see [`map::VOUCHED`]): pods may set marks, since Linux 5.17 with `CAP_NET_RAW`.
pub const UPSTREAM_MARK: u32 = 0x006d_0001;
/// `SO_MARK` of what the agent dials to the pod's application with the client's
/// source address: as [`UPSTREAM_MARK`], and a routing rule in the pod's
/// namespace brings everything that carries it (replies too, by
/// `tcp_fwmark_accept`) back to the local stack.
pub const APPLICATION_MARK: u32 = 0x006d_0002;

/// Routing table, in each enrolled pod's namespace, that delivers everything locally.
pub const APPLICATION_TABLE: u32 = 15_006;
/// Priority of the rule that selects [`APPLICATION_TABLE`]: before main (32766).
pub const APPLICATION_RULE_PRIORITY: u32 = 15_006;

/// What may be spliced into an end of the agent's before the agent reads any of it, and
/// how far whoever sends may be ahead of it from then on: bytes.
pub const SPLICE_AHEAD_BYTES: u64 = 1 << 20;

/// How many messages may go that way until the agent is seen to have read those before them:
/// each is memory of the kernel's own, which no socket is charged for (about 1 KiB), even one
/// of a single byte.
pub const SPLICE_AHEAD_MESSAGES: u32 = 2048;

/// `lo` has this index in every network namespace.
pub const LOOPBACK_IFINDEX: u32 = 1;

/// Endpoints of one service that the kernel path can pick from.
pub const MAX_BACKENDS: usize = 16;

/// How long after its handshake a connection of the kernel path may reach the
/// destination's lookup program again: a SYN cookie, which makes the kernel look the
/// listener up once more, is good for two minutes.
pub const SYN_COOKIE_LIFE_NS: u64 = 120_000_000_000;

/// For so long data may be on its way to a client of the kernel path whose socket is gone,
/// nanoseconds: then its server should have been told.
pub const AFTER_END_NS: u64 = 1_000_000_000;

/// What the guard inside a pod writes on packets that it lets out (`tc_index`), for those
/// outside and in the destination's pod: neither a socket nor a raw frame can. Who has
/// `CAP_NET_ADMIN` in any pod can, by a classifier's class: it saves work, and proves nothing
/// that [`crate::guard::is_vouched_for`] does not ask for besides.
pub mod stamp {
    /// It was judged.
    pub const SEEN: u32 = 0x6d01;
    /// And it is of a connection of the kernel path.
    pub const KERNEL_PATH: u32 = 0x6d02;
    /// And it carries data, and neither opens nor ends the connection.
    pub const KERNEL_PATH_DATA: u32 = 0x6d03;
}

/// Names of the maps, which are also the file names of their pins.
pub mod map {
    /// `Array<Config>`, one entry.
    pub const CONFIG: &str = "CONFIG";
    /// `HashMap<u64 netns cookie, PodEntry>`: the enrolled pods.
    pub const PODS: &str = "PODS";
    /// `HashMap<AddressKey, u32 Owner>`: addresses of the pod itself and of its node.
    pub const ADDRESSES: &str = "ADDRESSES";
    /// `HashMap<PortKey, u32>`: outbound ports that are not captured.
    pub const OUTBOUND_PORTS: &str = "OUTBOUND_PORTS";
    /// `LpmTrie<AddressKey, u32>`: outbound networks that are not captured.
    pub const OUTBOUND_CIDRS: &str = "OUTBOUND_CIDRS";
    /// `HashMap<PortKey, u32>`: inbound ports that are not captured.
    pub const INBOUND_PORTS: &str = "INBOUND_PORTS";
    /// `SkStorage<Asked>`: per socket, what the application asked for.
    pub const ASKED: &str = "ASKED";
    /// `SkStorage<u32>`: the agent's own sockets, which it alone can put there, and what
    /// they carry (`value::vouched`). What a listener has in it, its connections get too
    /// (`BPF_F_CLONE`).
    pub const VOUCHED: &str = "VOUCHED";
    /// `LruHashMap<ConnectionKey, OriginalDestination>`: connections the agent is to accept.
    /// Where there is no room, the oldest goes: it is of who dials without end.
    pub const ORIGINAL_DESTINATIONS: &str = "ORIGINAL_DESTINATIONS";
    /// `SockHash<ListenerKey>`: the agent's in-pod inbound listeners.
    pub const LISTENERS: &str = "LISTENERS";
    /// `PerCpuArray<u64>` indexed by `Verdict`.
    pub const VERDICTS: &str = "VERDICTS";

    /// `HashMap<ServiceKey, Service>`: what the kernel path may decide.
    pub const SERVICES: &str = "SERVICES";
    /// `HashMap<TupleKey, Authorized>`: the live connections of the kernel path.
    pub const AUTHORIZED: &str = "AUTHORIZED";
    /// `Array<u64>`, one entry: how many those are.
    pub const AUTHORIZED_COUNT: &str = "AUTHORIZED_COUNT";
    /// `Array<u64>`, one entry: until when (`CLOCK_MONOTONIC`, nanoseconds) the agent is
    /// taken for alive. It puts that off each second; a process that is stopped does not,
    /// and its listeners stay open.
    pub const ALIVE_UNTIL: &str = "ALIVE_UNTIL";
    /// `RingBuf<Event>`.
    pub const EVENTS: &str = "EVENTS";
    /// `SockHash<SpliceKey>`: sockets that hand each other their data.
    pub const SPLICED: &str = "SPLICED";
    /// `SkStorage<Splice>`: what those know of each other.
    pub const SPLICE: &str = "SPLICE";
    /// `HashMap<TupleKey, u64 socket cookie>`: the agent's dials to applications that may be
    /// spliced with what they reach.
    pub const LEGS: &str = "LEGS";
    /// `HashMap<SpliceKey, u64>`: how many bytes in all may be spliced into an end of the
    /// agent's. It goes up as the agent reads.
    pub const GRANTS: &str = "GRANTS";

    /// `SkStorage<u32>`: servers' sockets whose connection a hook has let pass, and
    /// which way it goes (`value::path`).
    pub const PASSED: &str = "PASSED";
    /// `HashMap<u64 cgroup ID, u32>`: whose processes may probe the pods of this node.
    pub const PROBERS: &str = "PROBERS";
    /// `HashMap<Address, u64 netns cookie>`: the enrolled pods by address.
    pub const POD_ADDRESSES: &str = "POD_ADDRESSES";
    /// `HashMap<TupleKey, Probe>`: the live connections of probers.
    pub const PROBES: &str = "PROBES";
    /// `HashMap<Address, Outside>`: where packets of the kernel path must go, by pod's address.
    pub const OUTSIDES: &str = "OUTSIDES";

    /// Every map that outlives the agent by a pin.
    pub const PINNED: [&str; 25] = [
        CONFIG,
        PODS,
        ADDRESSES,
        OUTBOUND_PORTS,
        OUTBOUND_CIDRS,
        INBOUND_PORTS,
        ASKED,
        VOUCHED,
        ORIGINAL_DESTINATIONS,
        LISTENERS,
        VERDICTS,
        SERVICES,
        AUTHORIZED,
        AUTHORIZED_COUNT,
        ALIVE_UNTIL,
        EVENTS,
        PASSED,
        PROBERS,
        POD_ADDRESSES,
        PROBES,
        OUTSIDES,
        SPLICED,
        SPLICE,
        LEGS,
        GRANTS,
    ];
}

/// Default capacities; the agent's options override them.
pub mod capacity {
    /// Enrolled pods of one node.
    pub const PODS: u32 = 1024;
    /// Addresses, over all pods (a pod's own and its node's).
    pub const ADDRESSES: u32 = 32_768;
    /// Excluded ports, over all pods, per direction.
    pub const EXCLUDED_PORTS: u32 = 16_384;
    /// Excluded networks, over all pods.
    pub const EXCLUDED_CIDRS: u32 = 16_384;
    /// Captured connections that wait for the agent's accept, over all pods.
    pub const ORIGINAL_DESTINATIONS: u32 = 65_536;
    /// Services of the kernel path, over all pods that may dial them.
    pub const SERVICES: u32 = 16_384;
    /// Live connections of the kernel path, over all pods.
    pub const AUTHORIZED: u32 = 65_536;
    /// Spliced sockets, two for each connection.
    pub const SPLICED: u32 = 16_384;
    /// Bytes of events that wait for the agent.
    pub const EVENT_BYTES: u32 = 1 << 20;
    /// Cgroups that may probe.
    pub const PROBERS: u32 = 64;
    /// Live connections of probers.
    pub const PROBES: u32 = 8192;
    /// Listeners: four for each pod.
    pub const LISTENERS: u32 = 4 * PODS;
}
