//! Dialling, relaying bytes, HBONE tunnels and upstream HTTP connections.
//!
//! `proxy` hands over where to go and a ready TLS configuration; this room moves
//! bytes there and back. It must not know about policy, routes' matching or where
//! certificates come from: a peer is who the configuration's verifier accepts.

#![forbid(unsafe_code)]

pub mod dial;
pub mod hbone;
pub(crate) mod http2_frames;
pub mod http_pool;
pub mod leg;
pub mod memory;
pub(crate) mod paced;
mod read_ahead;
pub mod relay;
pub mod replayed;
pub mod tls;
pub mod worker;

#[cfg(test)]
mod testing;
