//! Values of the maps. No implicit padding.

use crate::address::Address;

/// What the agent tells its programs; they may read it at any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Config {
    /// [`crate::abi::ABI_VERSION`] of the agent that wrote the maps.
    pub abi_version: u32,
    /// Not zero: programs log what they decide.
    pub log: u32,
}

/// An enrolled pod. Its presence is what counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct PodEntry {
    /// When it was enrolled, `CLOCK_MONOTONIC` in nanoseconds; for people who dump the map.
    pub enrolled_ns: u64,
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
    pub _zero: u32,
}

/// A captured connection on its way to the agent's accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct OriginalDestination {
    pub address: Address,
    /// Host byte order.
    pub port: u32,
    pub _zero: u32,
    /// The client's socket: who may remove this entry again.
    pub socket_cookie: u64,
    /// `CLOCK_MONOTONIC` when the SYN left, nanoseconds.
    pub published_ns: u64,
}

const _: () = assert!(size_of::<Config>() == 8);
const _: () = assert!(size_of::<PodEntry>() == 8);
const _: () = assert!(size_of::<Asked>() == 32);
const _: () = assert!(size_of::<OriginalDestination>() == 40);

#[cfg(feature = "user")]
mod user {
    use super::{Config, OriginalDestination, PodEntry};

    // SAFETY: repr(C) of plain integers without implicit padding (sizes asserted above).
    unsafe impl aya::Pod for Config {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PodEntry {}
    // SAFETY: as above.
    unsafe impl aya::Pod for OriginalDestination {}
}
