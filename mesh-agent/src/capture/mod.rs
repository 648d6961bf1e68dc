//! eBPF programs, their maps, and the pods whose connections they steer. aya types stop here.
//!
//! Knows nothing of policy, routes or certificates. Connections enter here: the
//! kernel steers them to listeners inside each pod's network namespace
//! ([`accept`]), which yield `model::captured` values for `proxy`; `proxy` dials
//! back out through `model::socket::PodSockets` ([`sockets`]).
//!
//! What the kernel holds (programs, maps, links) is pinned under
//! `<bpffs>/<instance>/` and outlives the agent: while no agent is there, enrolled
//! pods' connections are refused.

mod accept;
mod bpf;
mod bpffs;
mod cgroup;
mod doctor;
mod enroll;
mod error;
mod fullness;
mod guard;
mod hand_over;
mod heartbeat;
mod holds;
mod kernel_events;
mod kernel_path;
mod layout;
mod legs;
mod loader;
mod log;
mod maps;
mod netlink;
mod netns;
mod node;
mod options;
mod orig_dst;
mod persist;
mod redirect;
mod routing;
mod selftest;
mod sock_diag;
mod sockets;
mod unserved;

pub use accept::{HboneListener, InboundListener, OutboundListener};
pub use cgroup::cgroup2_root;
pub use doctor::{Check, CheckStatus, doctor};
pub use enroll::EnrolledPod;
pub use error::{CaptureError, EnrollError};
pub use fullness::MapFill;
pub use guard::{GuardAttachment, GuardMode};
pub use hand_over::{Follower, HandOverError, HandOverSocket, Inherited, Listening, Offer, Taker};
pub use kernel_events::KernelEvents;
pub use kernel_path::PlanApplied;
pub use loader::rehearse;
pub use maps::MapCapacities;
pub use netlink::Multicast;
pub use netns::{NetnsError, NetnsRef, PodNetns};
pub use node::Capture;
pub use options::{CaptureOptions, EnrollPod, Exclusions};
pub use selftest::self_test;
