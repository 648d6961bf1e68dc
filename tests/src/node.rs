//! A node: a network namespace that routes between its pods and the wire.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};

use crate::{
    AgentBuilder, PodBuilder, Ran,
    bed::Shared,
    cgroup,
    netns::Netns,
    process::{self, Place},
};

/// Pods of node `i` have addresses of `10.<block>.i.0/24`, of the first block as long as
/// there are any.
pub(crate) const POD_BLOCKS: [u8; 4] = [244, 245, 246, 247];

/// One node; cheap to clone.
#[derive(Debug, Clone)]
pub struct Node(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    number: u8,
    netns: Netns,
    shared: Arc<Shared>,
    pods: AtomicU16,
}

impl Node {
    pub(crate) fn create(shared: &Arc<Shared>, number: u8) -> Self {
        let netns = Netns::create(&format!("{}-n{number}", shared.run));
        netns.sysctl("net.ipv4.ip_forward", "1");
        netns.sysctl("net.ipv6.conf.all.forwarding", "1");
        // A service address that nobody translates must fail at once, not wander off.
        netns.ip(&["route add unreachable 10.96.0.0/16", "-6 route add unreachable fd00:96::/112"]);
        let node = Self(Arc::new(Inner {
            number,
            netns,
            shared: Arc::clone(shared),
            pods: AtomicU16::new(0),
        }));
        for directory in [node.directory(), node.config_dir(), node.state_dir()] {
            fs::create_dir_all(directory).expect("make the node's directories");
        }
        cgroup::create(&node.cgroup().join("agent"));
        node
    }

    /// 1 or 2.
    pub fn number(&self) -> u8 {
        self.0.number
    }

    /// `node1` or `node2`.
    pub fn name(&self) -> String {
        format!("node{}", self.0.number)
    }

    /// The node's own network namespace.
    pub fn netns(&self) -> &Netns {
        &self.0.netns
    }

    /// The root of the node's cgroups: what the agent is told to attach to.
    pub fn cgroup(&self) -> PathBuf {
        self.0.shared.run.cgroup().join(self.name())
    }

    /// Where the node's agent pins its BPF objects.
    pub fn bpffs(&self) -> PathBuf {
        self.0.shared.run.bpffs(self.0.number)
    }

    /// Everything of the node that is a file.
    pub fn directory(&self) -> PathBuf {
        self.0.shared.run.directory().join(self.name())
    }

    /// Where the agent reads its xDS resources.
    pub fn config_dir(&self) -> PathBuf {
        self.directory().join("config")
    }

    /// Where the agent keeps its state.
    pub fn state_dir(&self) -> PathBuf {
        self.directory().join("state")
    }

    /// The certificate authority's directory, shared by both nodes.
    pub fn ca_dir(&self) -> PathBuf {
        self.0.shared.run.directory().join("ca")
    }

    /// The agent's Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.directory().join("agent.sock")
    }

    /// The next free pair of pod addresses.
    pub(crate) fn next_addresses(&self) -> (u16, Ipv4Addr, Ipv6Addr) {
        let index = self.0.pods.fetch_add(1, Ordering::Relaxed) + 1;
        let [block, host] = (index + 9).to_be_bytes();
        assert!(usize::from(block) < POD_BLOCKS.len(), "a node has at most 1014 pods");
        let node = self.0.number;
        let v6 = Ipv6Addr::new(0xfd00, 0x244, node.into(), 0, 0, 0, 0, index + 9);
        (index, Ipv4Addr::new(10, POD_BLOCKS[usize::from(block)], node, host), v6)
    }

    /// The node's address on its pods' side.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, self.0.number, 1)
    }

    /// The node's addresses on the wire.
    pub fn wire_addresses(&self) -> (Ipv4Addr, Ipv6Addr) {
        let node = self.0.number;
        (Ipv4Addr::new(192, 168, 77, node), Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, node.into()))
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    /// Starts to describe a pod of this node.
    pub fn pod(&self, name: &str) -> PodBuilder {
        PodBuilder::new(self, name)
    }

    /// Starts to describe this node's agent.
    pub fn agent(&self) -> AgentBuilder {
        AgentBuilder::new(self)
    }

    /// Runs a program on the node itself, outside every pod.
    pub fn run(&self, argv: &[&str]) -> Ran {
        self.run_in("host", argv)
    }

    /// As [`Node::run`], in the cgroup of that path below the node's.
    pub fn run_in(&self, cgroup: &str, argv: &[&str]) -> Ran {
        let mut command = Command::new(argv[0]);
        command.args(&argv[1..]);
        process::run(command, &self.place(cgroup), process::RUN_DEADLINE)
    }

    /// In the node's namespace and in the cgroup `name` below the node's.
    pub(crate) fn place(&self, name: &str) -> Place {
        let cgroup = self.cgroup().join(name);
        cgroup::create(&cgroup);
        Place { netns: self.0.netns.clone(), cgroup, shared: Arc::clone(&self.0.shared) }
    }

    /// Whether `ip` is that of one of this node's pods.
    pub fn routes(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(v4) => {
                let [first, block, node, _] = v4.octets();
                first == 10 && POD_BLOCKS.contains(&block) && node == self.0.number
            }
            IpAddr::V6(v6) => v6.segments()[..3] == [0xfd00, 0x244, self.0.number.into()],
        }
    }
}

/// The node's log files with their contents, for a failed test.
pub(crate) fn logs(node: &Node) -> Vec<(String, String)> {
    let is_log = |path: &Path| path.extension().is_some_and(|e| e == "log");
    let mut found: Vec<(String, String)> = fs::read_dir(node.directory())
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let name = path.file_name()?.to_string_lossy().into_owned();
            is_log(&path).then(|| (name, fs::read_to_string(&path).unwrap_or_default()))
        })
        .collect();
    found.sort();
    found
}
