//! The bed itself: two nodes and the wire between them.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    Node, Wire, cgroup, node,
    run::{self, RunId},
};

/// What a bed's nodes, pods and processes share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) run: RunId,
    kept: AtomicBool,
}

impl Shared {
    /// Whether what was built outlives its owner.
    pub(crate) fn is_kept(&self) -> bool {
        self.kept.load(Ordering::Relaxed)
    }
}

/// Two nodes joined by a wire. Dropping it ends and removes everything it holds.
#[derive(Debug)]
pub struct Testbed {
    name: String,
    shared: Arc<Shared>,
    nodes: [Node; 2],
    wire: Wire,
}

impl Testbed {
    /// Makes two nodes without pods; `name` is shown where something fails.
    ///
    /// Every bed uses the same addresses, in namespaces of its own: node `i` has
    /// `10.244.i.0/24` and `fd00:244:i::/64` for pods, services are made up from
    /// `10.96.0.0/16` and `fd00:96::/112`.
    pub fn two_nodes(name: &str) -> Self {
        run::reap_once();
        let shared = Arc::new(Shared { run: RunId::fresh(), kept: AtomicBool::new(false) });
        // From here on a panic must not leave anything behind.
        let guard = RemoveOnPanic(&shared.run);
        fs::create_dir_all(shared.run.directory()).expect("make the run's directory");
        cgroup::create(&shared.run.cgroup());
        let nodes = [1, 2].map(|number| Node::create(&shared, number));
        let wire = Wire::join(&nodes[0], &nodes[1]);
        std::mem::forget(guard);
        Self { name: name.to_owned(), shared, nodes, wire }
    }

    /// Node 1 or node 2.
    ///
    /// # Panics
    /// With another number.
    pub fn node(&self, number: u8) -> &Node {
        self.nodes.iter().find(|node| node.number() == number).expect("nodes are 1 and 2")
    }

    /// What joins the two nodes.
    pub fn wire(&self) -> &Wire {
        &self.wire
    }

    /// The run this bed is.
    pub fn run(&self) -> &RunId {
        &self.shared.run
    }

    /// Where the bed keeps its files.
    pub fn directory(&self) -> PathBuf {
        self.shared.run.directory()
    }

    /// Leaves everything up when the bed is dropped and when this process ends.
    pub fn keep(&self) {
        self.shared.run.keep();
        self.shared.kept.store(true, Ordering::Relaxed);
    }

    /// Prints the end of every log in the bed's directory.
    fn show_logs(&self) {
        for node in &self.nodes {
            for (name, log) in node::logs(node) {
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(60)..].join("\n");
                eprintln!("--- {}: node {} {name}\n{tail}", self.name, node.number());
            }
        }
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        if self.shared.is_kept() {
            return;
        }
        if std::thread::panicking() {
            self.show_logs();
        }
        let mut problems = self.shared.run.remove();
        problems.extend(self.shared.run.leftovers());
        if !problems.is_empty() {
            eprintln!("{}: could not remove: {}", self.name, problems.join("; "));
            assert!(std::thread::panicking(), "the test bed left something behind");
        }
    }
}

struct RemoveOnPanic<'a>(&'a RunId);

impl Drop for RemoveOnPanic<'_> {
    fn drop(&mut self) {
        self.0.remove();
    }
}
