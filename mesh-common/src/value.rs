//! Values of the maps. No implicit padding.

use crate::{
    abi::MAX_BACKENDS,
    address::Address,
    key::{SpliceKey, TupleKey},
};

/// What the agent tells its programs; they may read it at any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Config {
    /// [`crate::abi::ABI_VERSION`] of the agent that wrote the maps.
    pub abi_version: u32,
    /// Not zero: programs log what they decide.
    pub log: u32,
    /// How many connections of the kernel path may live at once; more go to the agent.
    pub kernel_path_max: u32,
    /// Not zero: the guard drops what is not TCP.
    pub drop_non_tcp: u32,
}

/// An enrolled pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct PodEntry {
    /// When it was enrolled, `CLOCK_MONOTONIC` in nanoseconds; for people who dump the map.
    pub enrolled_ns: u64,
    /// Not zero: plaintext is refused, also on connections older than the enrolment.
    pub strict: u32,
    /// Not zero: its packets of the kernel path may be handed straight to their pod.
    pub redirect: u32,
    /// The interface in the pod that packets of the kernel path leave by, for the guard
    /// outside watches it; 0: none.
    pub road: u32,
    /// Not zero: that interface is on a bridge, where anybody can say that an address is his.
    pub bridged: u32,
    /// Not zero: its application and the agent may hand each other their data.
    pub splice: u32,
    pub _zero: u32,
}

impl PodEntry {
    /// Whether acknowledgements of the kernel path go the way of its data, and not by what the
    /// pod believes of its neighbours: they must not be overtaken by it where that is short,
    /// and tell who gets them how to forge it where that is a bridge.
    #[inline(always)]
    pub const fn keeps_together(&self) -> bool {
        self.redirect != 0 || self.bridged != 0
    }
}

/// What a socket of the agent's carries, as it says in `VOUCHED`. Stable numbers.
pub mod vouched {
    /// Anything.
    pub const AGENT: u32 = 1;
    /// Plaintext, to the pod's application: the only ones that may be spliced.
    pub const PLAINTEXT_TO_APPLICATION: u32 = 2;
}

/// The node's end of a pod's interface: packets of the kernel path reach the pod by it, or
/// nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Outside {
    pub netns_cookie: u64,
    /// The interface that the pod's own is the peer of, in the node's namespace.
    pub interface: u32,
    /// What a route to the pod leads to: the same, or the bridge that it is a port of.
    pub route: u32,
    /// The pod's own interface, in its namespace.
    pub inside: u32,
    /// Not zero: packets may be handed straight in.
    pub redirect: u32,
    /// The hardware address of the pod's own interface.
    pub hardware: [u8; 6],
    pub _zero: u16,
}

impl Outside {
    /// Whether frames for the pod cross a bridge.
    #[inline(always)]
    pub const fn is_bridged(&self) -> bool {
        self.route != self.interface
    }
}

/// Whose address it is, as [`crate::decide::Tables::owner`] tells it. Stable numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Owner {
    /// None of the pod's or the node's.
    Other = 0,
    /// The pod's own.
    Pod = 1,
    /// The node's.
    Node = 2,
}

/// What the application passed to connect(2), kept with its socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Asked {
    pub netns_cookie: u64,
    pub address: Address,
    /// Host byte order.
    pub port: u32,
    /// One of [`path`].
    pub path: u32,
    /// The pod that is dialled instead.
    pub target_cookie: u64,
    pub target: Address,
    /// Host byte order.
    pub target_port: u32,
    /// Not zero: both ends hand their data straight to each other; with [`path::AGENT`] the
    /// other end is the agent's.
    pub splice: u32,
}

/// Which way a socket's connection goes.
pub mod path {
    /// Rewritten to the agent.
    pub const AGENT: u32 = 0;
    /// To `target`, by the kernel path.
    pub const KERNEL: u32 = 1;
    /// A prober's, to a pod of this node.
    pub const PROBE: u32 = 2;
    /// To `target`, with nobody to vouch for it.
    pub const UNVOUCHED: u32 = 3;
}

/// A prober's connection, from before its SYN until its socket is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Probe {
    /// The prober's socket: who may remove this entry again.
    pub socket_cookie: u64,
}

/// A connection that a server's socket was let in with. The socket may have others later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Passed {
    pub client: Address,
    /// Host byte order.
    pub client_port: u32,
    /// One of [`path`].
    pub path: u32,
    /// `CLOCK_MONOTONIC` when something was first sent to a client of the kernel path that had
    /// no socket any more, nanoseconds; coarse. 0 before.
    pub ended_ns: u64,
}

/// One endpoint of a service that the kernel path may pick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Backend {
    pub netns_cookie: u64,
    pub address: Address,
    /// Host byte order.
    pub port: u32,
    /// The weights of the backends up to and including this one.
    pub cumulative_weight: u32,
    /// Not zero: both pods have agreed to splice.
    pub splice: u32,
    pub _zero: u32,
}

/// Where a service's connections go: to pods of this node that policy lets the
/// source reach, with nothing to be done on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Service {
    /// `CLOCK_MONOTONIC`, nanoseconds: until then it is in force also while no agent is
    /// there. 0: never.
    pub keep_until_ns: u64,
    pub total_weight: u32,
    pub count: u32,
    pub backends: [Backend; MAX_BACKENDS],
}

/// A connection that the connect hook vouches for, from before its SYN until its
/// client's socket is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Authorized {
    /// What the application asked for.
    pub asked: Address,
    /// Host byte order.
    pub asked_port: u32,
    /// See [`fin`].
    pub fin: u32,
    /// The pod that dialled.
    pub source_cookie: u64,
    /// The client's socket.
    pub socket_cookie: u64,
    /// `CLOCK_MONOTONIC` when the SYN left, nanoseconds.
    pub opened_ns: u64,
    /// The same when the client got its answer; 0 before.
    pub established_ns: u64,
    /// `bytes_received` when the client's FIN was acknowledged.
    pub received_at_fin: u64,
    /// Not zero: the destination's lookup program let it pass.
    pub seen: u32,
    /// Not zero: both its sockets are to be spliced.
    pub splice: u32,
    /// Bytes that went past TCP, from client to server.
    pub spliced_up: u64,
    /// The same from server to client.
    pub spliced_down: u64,
    /// `CLOCK_MONOTONIC` when any last did, nanoseconds; coarse.
    pub spliced_ns: u64,
}

/// What a spliced socket knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Splice {
    /// Who gets what it sends.
    pub peer: SpliceKey,
    /// Where its bytes are accounted for.
    pub tuple: TupleKey,
    /// How much of what it sent was spliced, where the agent is at the other end.
    pub sent: u64,
    /// How much may be, as far as it knows.
    pub granted: u64,
    /// What `sent` was when `messages` began.
    pub mark: u64,
    /// How many messages were spliced since.
    pub messages: u32,
    /// A [`Way`]: decided when it first sends, and for ever.
    pub way: u32,
    /// A [`Leg`].
    pub leg: u32,
    pub _zero: u32,
}

/// Whose the two ends are. Stable numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Leg {
    /// Applications', both; their bytes are counted in `AUTHORIZED`.
    None = 0,
    /// An application's, which sends to the agent: no further ahead than granted.
    ToAgent = 1,
    /// The agent's, which sends to an application, and sees for itself how far it goes.
    FromAgent = 2,
}

/// How the data of one direction travels. Stable numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Way {
    /// Nothing was sent yet.
    Undecided = 0,
    /// Straight into the peer's socket.
    Spliced = 1,
    /// As ever.
    Tcp = 2,
}

impl Way {
    /// The way of that number; TCP's for one that stands for none.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Undecided,
            1 => Self::Spliced,
            _ => Self::Tcp,
        }
    }
}

/// What TCP counts as a byte and is none.
pub mod fin {
    /// The server's FIN is in `bytes_received`.
    pub const RECEIVED: u32 = 1;
    /// The client's FIN is in `bytes_acked`.
    pub const ACKNOWLEDGED: u32 = 2;
}

/// What became of a connection of the kernel path, pushed to the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// 1: established. 2: closed.
    pub kind: u32,
    /// The state it was closed from, as the kernel numbers them.
    pub old_state: u32,
    pub tuple: TupleKey,
    pub connection: Authorized,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub at_ns: u64,
    /// From client to server, SYN and FIN included.
    pub bytes_acked: u64,
    /// From server to client, FIN included.
    pub bytes_received: u64,
    /// Smoothed round trip, in eighths of a microsecond.
    pub srtt_us_times_8: u32,
    pub retransmits: u32,
}

impl Event {
    /// [`Event::kind`] of a connection that was established.
    pub const ESTABLISHED: u32 = 1;
    /// [`Event::kind`] of a connection that is closed.
    pub const CLOSED: u32 = 2;
}

/// A captured connection on its way to the agent's accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct OriginalDestination {
    pub address: Address,
    /// Host byte order.
    pub port: u32,
    /// Not zero: the agent's end is to be spliced with the client's.
    pub splice: u32,
    /// The client's socket: who may remove this entry again.
    pub socket_cookie: u64,
    /// `CLOCK_MONOTONIC` when the SYN left, nanoseconds.
    pub published_ns: u64,
}

const _: () = assert!(size_of::<Config>() == 16);
const _: () = assert!(size_of::<PodEntry>() == 32);
const _: () = assert!(size_of::<Asked>() == 64);
const _: () = assert!(size_of::<OriginalDestination>() == 40);
const _: () = assert!(size_of::<Backend>() == 40);
const _: () = assert!(size_of::<Service>() == 16 + 40 * MAX_BACKENDS);
const _: () = assert!(size_of::<Authorized>() == 96);
const _: () = assert!(size_of::<Event>() == 184);
const _: () = assert!(size_of::<Splice>() == 120);
const _: () = assert!(size_of::<Probe>() == 8);
const _: () = assert!(size_of::<Outside>() == 32);
const _: () = assert!(size_of::<Passed>() == 32);

#[cfg(feature = "user")]
mod user {
    use super::{
        Authorized, Config, OriginalDestination, Outside, PodEntry, Probe, Service, Splice,
    };

    // SAFETY: repr(C) of plain integers without implicit padding (sizes asserted above).
    unsafe impl aya::Pod for Config {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PodEntry {}
    // SAFETY: as above.
    unsafe impl aya::Pod for OriginalDestination {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Service {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Authorized {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Splice {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Probe {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Outside {}
}
