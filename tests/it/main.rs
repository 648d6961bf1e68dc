//! The integration tests: one binary over real network namespaces.
//!
//! Run by `cargo xtask test` (as root: it builds the agent first). Each test makes a
//! bed of its own, so they run beside each other.

mod builders;
