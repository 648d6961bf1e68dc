//! The wire between the nodes: captured, cut, mended, slowed.

use crate::{Capture, Node, node::POD_BLOCKS};

/// A veth pair called `wire` on both nodes.
#[derive(Debug)]
pub struct Wire {
    nodes: [Node; 2],
}

impl Wire {
    pub(crate) fn join(one: &Node, two: &Node) -> Self {
        one.netns()
            .ip(&[&format!("link add wire type veth peer name wire netns {}", two.netns().name())]);
        for (this, other) in [(one, two), (two, one)] {
            let ((v4, v6), (via4, via6)) = (this.wire_addresses(), other.wire_addresses());
            let number = other.number();
            this.netns().ip(&[
                &format!("addr add {v4}/24 dev wire"),
                &format!("addr add {v6}/64 dev wire nodad"),
                "link set wire up",
                &format!("-6 route add fd00:244:{number}::/64 via {via6}"),
            ]);
            let routes =
                POD_BLOCKS.map(|block| format!("route add 10.{block}.{number}.0/24 via {via4}"));
            this.netns().ip(&routes.each_ref().map(String::as_str));
        }
        Self { nodes: [one.clone(), two.clone()] }
    }

    /// Records every packet from now on.
    pub fn capture(&self) -> Capture {
        Capture::start(self.nodes[0].netns(), "wire")
    }

    /// Silently drops everything that arrives, on both sides.
    pub fn cut(&self) {
        // What is for the node itself is found by the first rule of all: it has to stand
        // behind ours meanwhile.
        self.rules(&["add lookup local pref 2", "add iif wire blackhole pref 1", "del pref 0"]);
    }

    /// Undoes [`Wire::cut`].
    pub fn mend(&self) {
        self.rules(&["add lookup local pref 0", "del pref 1", "del pref 2"]);
    }

    fn rules(&self, changes: &[&str]) {
        for node in &self.nodes {
            for change in changes {
                node.netns().ip(&[&format!("rule {change}"), &format!("-6 rule {change}")]);
            }
        }
    }

    /// Limits both directions to `mbit` per second.
    pub fn slow(&self, mbit: u32) {
        for node in &self.nodes {
            node.netns().tc(&[&format!(
                "qdisc replace dev wire root tbf rate {mbit}mbit burst 128kb latency 100ms"
            )]);
        }
    }

    /// Undoes [`Wire::slow`].
    pub fn full_speed(&self) {
        for node in &self.nodes {
            node.netns().tc(&["qdisc del dev wire root"]);
        }
    }
}
