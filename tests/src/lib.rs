//! Builders for nodes, pods and wires made of network namespaces.
//!
//! A [`Testbed`] is two "nodes" (network namespaces) joined by a veth wire; pods are
//! namespaces routed behind them, each in its own cgroup under its node's cgroup, and
//! unmodified programs run in them. Everything a bed makes carries its run's name and
//! goes away with it, also after a panic; what a killed run left behind is removed by
//! the next one ([`reap`]).
//!
//! ```no_run
//! use tests::{Service, mesh};
//!
//! let mesh = mesh::web_and_client("allowed-request");
//! mesh.client.curl("http://10.96.0.10/").expect_status(200);
//! ```
//!
//! Builders panic: what cannot be built is a failed test. Nothing here imports the
//! agent; it is driven as its users drive it, by its command line, files and sockets.

pub mod agent;
pub mod bed;
pub mod bootstrap;
pub mod cgroup;
pub mod coding;
pub mod config;
pub mod control_plane;
pub mod conversation;
pub mod corpus;
pub mod curl;
pub mod envoy;
pub mod eventually;
pub mod http;
pub mod mesh;
pub mod netns;
pub mod node;
pub mod pki;
pub mod pod;
pub mod probe;
pub mod process;
pub mod run;
pub mod scrape;
pub mod sniff;
pub mod twins;
pub mod wire;

pub use agent::{Agent, AgentBuilder};
pub use bed::Testbed;
pub use config::{Allow, Inbound, MeshConfig, Service};
pub use eventually::{eventually, eventually_within, never};
pub use mesh::Mesh;
pub use node::Node;
pub use pod::{Pod, PodBuilder};
pub use process::{Process, Ran};
pub use run::{RunId, kept_runs, reap, remove_kept};
pub use sniff::Capture;
pub use wire::Wire;
