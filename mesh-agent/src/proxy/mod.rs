//! The two pipelines: outbound and inbound.

#![forbid(unsafe_code)]

pub mod http;
