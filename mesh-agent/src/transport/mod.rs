//! Dialling, relaying bytes, HBONE tunnels and upstream HTTP connections.

#![forbid(unsafe_code)]

pub mod http_pool;
