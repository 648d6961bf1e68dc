//! Plain data every room speaks in: no I/O, no protobuf, no aya, no locks.
//!
//! Values are parsed once, where they enter (`source`, `admin`, `cli`), and are
//! valid from then on.

#![forbid(unsafe_code)]

pub mod access_log;
pub mod agent_down;
pub mod authz;
pub mod budget;
pub mod captured;
pub mod cluster;
pub mod compression;
pub mod cookie;
pub mod ext_authz;
pub mod extension;
pub mod filter;
pub mod format;
pub mod gateway;
pub mod hash_policy;
pub mod header_mutation;
pub mod http_options;
pub mod identity;
pub mod jwks;
pub mod jwt_authn;
pub mod kernel_path;
pub mod listener;
pub mod listener_filter;
pub mod local_reply;
pub mod metadata;
pub mod rate_limit;
pub mod redirect;
mod references;
pub mod regex;
pub mod retry;
pub mod rewrite;
pub mod route;
pub mod runtime;
pub mod scope;
pub mod secret;
pub mod socket;
pub mod socket_match;
pub mod splice;
pub mod tls;
pub mod tracing;
pub mod upgrade;
pub mod workload;
