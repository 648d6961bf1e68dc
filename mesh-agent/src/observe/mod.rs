//! Metrics, access log and traces: what the data path did, told in the field's names.

#![forbid(unsafe_code)]

pub mod counters;
