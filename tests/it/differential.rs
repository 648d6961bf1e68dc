//! Envoy and our agent, given the same resources by the same control plane, must do the
//! same. What differs on purpose is said here, and in the README, with its reason.

mod certificates;
mod chains;
mod client_certificates;
mod corpus;
mod features;
mod first_bytes;
mod keepalive;
mod loopback;
mod orders;
mod scopes;
mod script;
mod secrets;
mod slow_readers;
mod tunnels;
mod upgrades;
mod walk;
mod world;
mod zones;
