//! Keys of the maps. Every byte is part of the key: padding is explicit and zero.

use crate::address::Address;

/// A captured connection, as both its ends see it: the client's address after the
/// rewrite, in the pod's namespace. 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct ConnectionKey {
    pub netns_cookie: u64,
    pub source: Address,
    /// Host byte order.
    pub source_port: u32,
    pub _zero: u32,
}

impl ConnectionKey {
    /// The key of the connection from `source`:`source_port`.
    #[inline(always)]
    pub const fn new(netns_cookie: u64, source: Address, source_port: u16) -> Self {
        Self { netns_cookie, source, source_port: source_port as u32, _zero: 0 }
    }
}

/// A port in the eyes of one pod. 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct PortKey {
    pub netns_cookie: u64,
    /// Host byte order.
    pub port: u32,
    pub _zero: u32,
}

impl PortKey {
    /// The key of `port` for the pod of `netns_cookie`.
    #[inline(always)]
    pub const fn new(netns_cookie: u64, port: u16) -> Self {
        Self { netns_cookie, port: port as u32, _zero: 0 }
    }
}

/// An address in the eyes of one pod. 24 bytes; in a longest-prefix trie the
/// prefix covers all 64 bits of the cookie and those of the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct AddressKey {
    pub netns_cookie: u64,
    pub address: Address,
}

impl AddressKey {
    /// Bits of a full-length prefix.
    pub const BITS: u32 = 64 + 128;
    /// Bits that precede an IPv4 network's own prefix.
    pub const V4_PREFIX_BITS: u32 = 64 + 96;
    /// Bits that precede an IPv6 network's own prefix.
    pub const V6_PREFIX_BITS: u32 = 64;
}

/// What a pod may dial without the agent: a service, as its applications name it. 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct ServiceKey {
    /// The pod that dials.
    pub netns_cookie: u64,
    pub address: Address,
    /// Host byte order.
    pub port: u32,
    pub _zero: u32,
}

impl ServiceKey {
    /// The key of `address`:`port` for the pod of `netns_cookie`.
    #[inline(always)]
    pub const fn new(netns_cookie: u64, address: Address, port: u16) -> Self {
        Self { netns_cookie, address, port: port as u32, _zero: 0 }
    }
}

/// A connection of the kernel path, as it arrives at its destination. 48 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct TupleKey {
    /// The pod that is dialled: pods may have equal addresses.
    pub netns_cookie: u64,
    pub source: Address,
    pub destination: Address,
    /// Host byte order.
    pub source_port: u32,
    /// Host byte order.
    pub destination_port: u32,
}

/// One end of a spliced connection. No address is part of it: pods may have equal ones.
/// 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct SpliceKey {
    /// The pod that dialled.
    pub netns_cookie: u64,
    /// The client's socket.
    pub socket_cookie: u64,
    /// `CLOCK_MONOTONIC` when its SYN left, nanoseconds: a socket may have other connections
    /// later. 0 for the agent's, which dial once.
    pub opened_ns: u64,
    /// A [`SpliceSide`].
    pub side: u32,
    pub _zero: u32,
}

impl SpliceKey {
    /// The key of one end of the connection that `socket_cookie` opened then.
    #[inline(always)]
    pub const fn new(
        netns_cookie: u64,
        socket_cookie: u64,
        opened_ns: u64,
        side: SpliceSide,
    ) -> Self {
        Self { netns_cookie, socket_cookie, opened_ns, side: side as u32, _zero: 0 }
    }

    /// The key of the connection's other end.
    #[inline(always)]
    pub const fn other_end(self) -> Self {
        let other = if self.side == SpliceSide::Client as u32 {
            SpliceSide::Server
        } else {
            SpliceSide::Client
        };
        Self { side: other as u32, ..self }
    }
}

/// Which end of a connection. Stable numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum SpliceSide {
    Client = 0,
    Server = 1,
}

/// Which of the agent's listeners in a pod. Stable numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum ListenerKind {
    /// Plaintext from outside, any port.
    Inbound = 0,
    /// HBONE, port 15008.
    Hbone = 1,
}

/// One of the agent's in-pod listeners. 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct ListenerKey {
    pub netns_cookie: u64,
    /// A [`ListenerKind`].
    pub kind: u32,
    /// 4 or 6.
    pub ip_version: u32,
}

impl ListenerKey {
    /// The key of the listener of `kind` for IPv4 or IPv6.
    #[inline(always)]
    pub const fn new(netns_cookie: u64, kind: ListenerKind, v6: bool) -> Self {
        Self { netns_cookie, kind: kind as u32, ip_version: if v6 { 6 } else { 4 } }
    }
}

const _: () = assert!(size_of::<ConnectionKey>() == 32);
const _: () = assert!(size_of::<PortKey>() == 16);
const _: () = assert!(size_of::<AddressKey>() == 24);
const _: () = assert!(size_of::<ListenerKey>() == 16);
const _: () = assert!(size_of::<ServiceKey>() == 32);
const _: () = assert!(size_of::<TupleKey>() == 48);
const _: () = assert!(size_of::<SpliceKey>() == 32);

#[cfg(feature = "user")]
mod user {
    use super::{AddressKey, ConnectionKey, ListenerKey, PortKey, ServiceKey, SpliceKey, TupleKey};

    // SAFETY: repr(C) of plain integers without implicit padding (sizes asserted above).
    unsafe impl aya::Pod for ConnectionKey {}
    // SAFETY: as above, and transparent.
    unsafe impl aya::Pod for crate::address::Address {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PortKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for AddressKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ListenerKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ServiceKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for TupleKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SpliceKey {}
}
