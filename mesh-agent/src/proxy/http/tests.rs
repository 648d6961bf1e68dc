//! The engine between real sockets: a client that writes bytes, the connection under
//! test, and an upstream that is scripted.

mod access_logs;
mod allocations;
mod breakers;
mod compression;
mod connect;
mod drain;
mod filters;
mod floods;
mod frames;
mod harness;
mod headers;
mod hostile_servers;
mod hostile_upstreams;
mod hostnames;
mod http1;
mod http2;
mod limits;
mod mirrors;
mod retries;
mod small_frames;
mod smuggling;
mod upgrades;
