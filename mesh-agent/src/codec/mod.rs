//! Recognising a protocol from its first bytes, and refusing HTTP/1 heads that
//! two parsers could read differently. And the messages that filters exchange with servers
//! of their own (gRPC).

#![forbid(unsafe_code)]

pub mod client_hello;
pub mod compression;
pub mod detect;
pub mod ext_authz;
pub mod grpc;
pub mod grpc_web;
pub mod guard;
pub mod http;
pub mod http_inspector;
pub mod jwt;
mod octets;
pub mod proxy_protocol;
pub mod rate_limit;
pub mod session;
pub mod spans;
mod structs;
