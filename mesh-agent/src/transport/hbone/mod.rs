//! HBONE: TCP streams tunnelled through HTTP/2 CONNECT over mutual TLS, as Istio's
//! ztunnel speaks it. The inner destination is the `:authority`; a 200 opens the
//! tunnel; DATA frames are the bytes, END_STREAM is FIN, RST_STREAM is RST.
//!
//! Spec: RFC 9113 §8.5 (CONNECT).
//!
//! ## Memory
//! What one peer can make us hold is bounded per connection: unread bytes by
//! [`CONNECTION_WINDOW_BYTES`], unread small frames by [`DATA_FRAME_BUDGET_BYTES`],
//! unsent bytes by [`SEND_BUFFER_BYTES`] for each stream (1,024 small writes),
//! and twice 256 KiB for what TLS has encrypted or is about to decrypt.

pub mod authority;
mod batch;
mod client;
mod error;
mod keepalive;
mod pool;
mod server;
mod small_frames;
mod stream;

#[cfg(test)]
mod tests;

use std::time::Duration;

pub use authority::{AuthorityError, parse_authority};
pub use error::{HboneError, HboneFailure, Phase};
pub use pool::{
    HboneKey, HbonePool, HbonePoolOptions, HboneTarget, PoolStatus, PooledConnectionStatus,
};
pub use server::{
    ConnectRequest, HboneServer, HboneServerError, HboneServerOptions, TlsAcceptError, accept_tls,
};
pub use stream::HboneStream;

/// Port on which every workload's agent takes HBONE.
pub const HBONE_PORT: u16 = 15008;

/// The protocol that TLS must agree on. Spec: RFC 9113 §3.2.
pub const ALPN_H2: &[u8] = b"h2";

/// Unread bytes that one stream may hold at its receiver: 1 MiB. One stream then
/// moves 4 Gbit/s at a round trip of 2 ms.
pub const STREAM_WINDOW_BYTES: u32 = 1 << 20;

/// Unread bytes that all streams of one connection may hold together: 32 MiB, which
/// is [`STREAM_WINDOW_BYTES`] for as many streams as our client puts on one
/// connection, so that streams nobody reads never stall their neighbours.
pub const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;

/// The largest DATA frame taken: 64 KiB, four TLS records.
pub const MAX_FRAME_BYTES: u32 = 64 << 10;

/// Bytes of one stream that wait to be written to the connection: 256 KiB.
pub const SEND_BUFFER_BYTES: usize = 256 << 10;

/// What TLS holds of what the socket does not take: 256 KiB. rustls' own 64 KiB are just
/// less than a full DATA frame encrypted, whose end then left as a packet of its own.
const UNSENT_TLS_BYTES: usize = 256 << 10;

/// The largest piece that one write takes: 64 KiB.
pub(crate) const MAX_WRITE_BYTES: usize = 64 << 10;

/// Size of a request's or response's header list, as HPACK counts it: 16 KiB.
pub const MAX_HEADER_LIST_BYTES: u32 = 16 << 10;

/// h2 charges each unread DATA frame under 256 bytes the rest of its 256; at this
/// sum (131,000 one-byte frames) it ends the connection with ENHANCE_YOUR_CALM. More
/// than h2's default, for a tunnel carries whatever small writes applications make.
pub const DATA_FRAME_BUDGET_BYTES: usize = 32 << 20;

/// Streams that the peer reset before they were accepted, and streams that we reset
/// because the peer broke the protocol, before the connection is ended
/// (CVE-2023-44487, CVE-2025-8671).
pub(crate) const MAX_PENDING_RESETS: usize = 64;
pub(crate) const MAX_LOCAL_ERROR_RESETS: usize = 256;

/// Default time between keepalive pings, and for the answer.
pub(crate) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
pub(crate) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
