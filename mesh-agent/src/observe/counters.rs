//! Bytes of one connection, counted while it lives.

use std::sync::atomic::AtomicU64;

/// As seen from the downstream: received = downstream to upstream.
#[derive(Debug, Default)]
pub struct Counters {
    pub sent_bytes: AtomicU64,
    pub received_bytes: AtomicU64,
}
