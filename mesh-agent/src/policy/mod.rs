//! May this connection or request pass? Synchronous; nothing is read from outside.
//!
//! A captured connection becomes a [`Flow`] (which listener and filter chain judge
//! it), a flow becomes a [`Permit`] (network RBAC passed), and each HTTP request on
//! it a [`RequestPermit`] (HTTP RBAC passed). None of the three can be made any
//! other way, and `route` asks for them. Goes on to `route::decide`.
//!
//! This room knows no sockets, no tasks and no protobuf.
//!
//! What can't be judged is denied, with the rule that could not be judged named:
//! see [`rbac`] for HTTP rules on TCP connections and [`path`] for paths that the
//! policy and the application might read differently.

#![forbid(unsafe_code)]

pub mod authorize;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod flow;
pub mod matcher;
pub mod path;
pub mod rbac;

pub use authorize::{
    Chain, Denied, DenyReason, Permit, Place, Progress, RequestPermit, Revoked, Shadow, Step,
    authorize, resolve,
};
pub use flow::{
    Flow, FlowError, OutboundPolicy, gateway_chain, gateway_listener, outbound_listener,
};
