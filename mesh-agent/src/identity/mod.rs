//! Workload certificates: where they come from, their rotation, and the TLS configurations made of them.

#![forbid(unsafe_code)]
