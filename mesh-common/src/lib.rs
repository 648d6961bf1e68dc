//! The contract between kernel and user space: map layouts, verdicts and the pure
//! decisions both sides agree on.

#![no_std]
