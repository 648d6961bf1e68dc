//! The integration tests: one binary over real network namespaces.
//!
//! Run by `cargo xtask test` (as root: it builds the agent first). Each test makes a
//! bed of its own, so they run beside each other.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod builders;
mod capture;
mod cli;
mod config;
mod differential;
mod envoy;
mod first_bytes;
mod gateway;
mod guard;
mod hand_over;
mod hbone_client;
mod held_bodies;
mod hostile;
mod hostile_bodies;
mod hostile_http2;
mod hostile_upstreams;
mod http;
mod hung;
mod identity;
mod ipv6;
mod kernel_attacks;
mod kernel_identity;
mod kernel_news;
mod kernel_path;
mod kernel_revocation;
mod kernel_roads;
mod leaks;
mod lifecycle;
mod many;
mod map_sizes;
mod metrics;
mod mptcp;
mod neighbours;
mod programs;
mod sds;
mod splice;
mod splice_agent;
mod survival;
mod tcp;
mod tracing;
mod upgrades;
mod vanished;
mod xds;
mod xds_attacks;
mod xds_endpoints;
mod xds_filters;
mod xds_on_demand;
mod xds_runtime;
mod xds_scopes;
mod xds_soak;
mod xds_sources;
mod xds_transport;
