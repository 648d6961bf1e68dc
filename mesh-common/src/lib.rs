//! The contract between kernel and user space: map layouts, verdicts and the pure
//! decisions both sides agree on.
//!
//! Knows no kernel helper and no aya type; `mesh-ebpf` reads facts and acts on the
//! [`decide`] results, `mesh-agent`'s `capture` room fills the maps and reads the
//! [`verdict`] counters.

#![no_std]

pub mod abi;
pub mod address;
pub mod decide;
pub mod guard;
pub mod key;
pub mod value;
pub mod verdict;
