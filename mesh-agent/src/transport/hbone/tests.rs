//! Over real TCP on loopback, with TLS on both sides, in one process.

mod harness;
mod peers;
mod pooling;
mod relayed;
mod streams;
