//! Recognising a protocol from its first bytes, and refusing HTTP/1 heads that
//! two parsers could read differently.

#![forbid(unsafe_code)]

pub mod client_hello;
pub mod detect;
pub mod guard;
pub mod http;
pub mod proxy_protocol;
