//! The mesh's node agent.
//!
//! Rooms, lowest first; each imports strictly lower ones (`cargo xtask tidy`
//! holds the table): 0 [`model`] · 1 [`snapshot`] [`observe`] · 2 [`source`]
//! [`capture`] [`policy`] [`route`] [`codec`] [`identity`] [`transport`] ·
//! 3 [`proxy`] · 4 [`admin`] · 5 [`app`] [`cli`]. Start reading at
//! `proxy/outbound.rs` and `proxy/inbound.rs`; ARCHITECTURE.md walks a packet.

pub mod model;

pub mod observe;
pub mod snapshot;

pub mod capture;
pub mod codec;
pub mod identity;
pub mod policy;
pub mod route;
pub mod source;
pub mod transport;

pub mod proxy;

pub mod admin;

pub mod app;
pub mod cli;
pub mod config;
