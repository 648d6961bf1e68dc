//! Conversations as tables: what the server says, what must be answered, what is in force.

mod dangling;
mod delta;
mod filters;
mod fuzz;
mod long;
mod messages;
mod on_demand;
mod scale;
mod scopes;
mod sotw;
mod sources;
mod storm;
mod types;

use super::*;
use messages::{CDS, EDS, LDS, RDS, cluster, endpoints, http_listener, routes, tcp_listener};

/// A session with the clock in hand, and a snapshot that its updates are applied to.
struct Bench {
    session: Session,
    now: Now,
    cell: crate::snapshot::SnapshotCell,
    refused: Vec<String>,
    answered: Vec<String>,
    updates: usize,
}

impl Bench {
    fn new(variant: Variant) -> Self {
        let node = Node { id: "n".to_owned(), ..Node::default() };
        Self::over(Session::new([Carries::all(variant)], node, Duration::from_secs(15)))
    }

    fn over(session: Session) -> Self {
        let mut bench = Self {
            session,
            now: Now::read(),
            cell: crate::snapshot::SnapshotCell::default(),
            refused: Vec::new(),
            answered: Vec::new(),
            updates: 0,
        };
        bench.session.connected(0, bench.now);
        bench
    }

    fn after(&mut self, pause: Duration) {
        self.now.at += pause;
        self.session.on_time(self.now);
        self.apply();
    }

    fn reconnect(&mut self) {
        self.session.disconnected(0);
        assert_eq!(self.session.poll_request(0, self.now), None, "a request without a stream");
        self.session.connected(0, self.now);
    }

    /// Takes the updates; each must be consistent in itself and with those before.
    fn apply(&mut self) {
        while let Some(update) = self.session.poll_update(self.now) {
            match update {
                Update::Rejected(reasons) => {
                    self.refused.extend(reasons.iter().map(ToString::to_string));
                }
                Update::Resources(delivery) => {
                    self.cell.replace(delivery.resources, delivery.label).unwrap();
                    self.updates += 1;
                }
                Update::Answered(names) => {
                    self.answered.extend(names.iter().map(|(_, name)| name.to_string()));
                }
                Update::Changes(delta) => {
                    self.cell.update(delta.changes, delta.label).unwrap();
                    self.updates += 1;
                }
            }
        }
    }

    /// What is in force, sorted: `cds/a`, `eds/a:2` with the number of endpoints.
    fn in_force(&self) -> Vec<String> {
        let snapshot = self.cell.load();
        let mut all: Vec<_> = snapshot.clusters.keys().map(|n| format!("cds/{n}")).collect();
        let endpoints = snapshot.assignments.iter();
        all.extend(endpoints.map(|(n, a)| format!("eds/{n}:{}", a.endpoints().count())));
        all.extend(snapshot.listeners.iter().map(|l| format!("lds/{}", l.name)));
        all.extend(snapshot.routes.values().map(|r| match r.discovered.len() {
            0 => format!("rds/{}", r.name),
            hosts => format!("rds/{}+{hosts}", r.name),
        }));
        all.extend(snapshot.scopes.iter().map(|s| format!("srds/{}={}", s.name, s.key.concat())));
        all.extend(snapshot.secrets.keys().map(|n| format!("sds/{n}")));
        all.extend(snapshot.runtime_layers.keys().map(|n| format!("rtds/{n}")));
        all.extend(snapshot.extension_configs.keys().map(|n| format!("ecds/{n}")));
        all.sort();
        all
    }

    #[track_caller]
    fn expect_in_force(&mut self, expected: &[&str]) {
        self.apply();
        assert_eq!(self.in_force(), expected);
    }

    fn warming(&self) -> Vec<String> {
        let types = self.session.status();
        let shown = |t: &TypeStatus| {
            let kind = t.kind;
            t.warming
                .iter()
                .map(|w| format!("{kind}[{}] waits for {}", w.name, w.waits_for))
                .collect::<Vec<_>>()
        };
        types.iter().flat_map(shown).collect()
    }
}
