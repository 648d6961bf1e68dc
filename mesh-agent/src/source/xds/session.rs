//! An ADS conversation without I/O: responses and time go in, requests and updates
//! come out.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol>.
//!
//! Feed it with [`Session::connected`], [`Session::on_sotw`] or [`Session::on_delta`],
//! [`Session::on_time`] and [`Session::disconnected`]; after each, take what
//! [`Session::poll_request`] and [`Session::poll_update`] have until they have no more,
//! and come back at [`Session::deadline`] at the latest. One session outlives its
//! streams: what was accepted on one counts on the next.

mod judge;
mod requests;
mod settle;
mod status;
mod table;
mod timers;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use envoy_types::pb::{
    envoy::{config::core::v3::Node, service::discovery::v3 as discovery},
    google::protobuf::Any,
};
use prost::Message;

use self::table::{Body, Table};
use super::ResourceType;
use crate::{
    model::cluster::ClusterName,
    snapshot::{Changes, RejectedResource},
    source::{Delivery, Raw, Update, watch::Delta},
};

pub use self::status::{TypeStatus, Warming};

type Key = (ResourceType, Arc<str>);

/// How resources are asked for and delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Variant {
    /// State of the world: each response of LDS and CDS is all there is.
    Sotw,
    /// Responses say what changed.
    Delta,
}

/// A moment, for timers and for people.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) at: Instant,
    pub(super) wall: SystemTime,
}

impl Now {
    pub(super) fn read() -> Self {
        Self { at: Instant::now(), wall: SystemTime::now() }
    }
}

/// What goes to the server.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Request {
    Sotw(discovery::DiscoveryRequest),
    Delta(discovery::DeltaDiscoveryRequest),
}

/// One conversation.
#[derive(Debug)]
pub(super) struct Session {
    variant: Variant,
    node: Node,
    /// How long a name that was asked for may stay unanswered.
    initial_fetch_timeout: Duration,
    connected: bool,
    /// Whether this stream's first request, which says who we are, was sent.
    introduced: bool,
    /// In the order of [`ResourceType::ALL`].
    tables: [Table; 4],
    /// What is in force once it was sent on.
    unsent: BTreeMap<Key, Option<Body>>,
    /// Whether the first, whole configuration was sent on.
    whole: bool,
    /// When the first configuration goes out even if some of it is not ready.
    whole_by: Option<Instant>,
    rejected: Vec<RejectedResource>,
    label: String,
}

impl Session {
    pub(super) fn new(variant: Variant, node: Node, initial_fetch_timeout: Duration) -> Self {
        Self {
            variant,
            node,
            initial_fetch_timeout,
            connected: false,
            introduced: false,
            tables: ResourceType::ALL.map(Table::new),
            unsent: BTreeMap::new(),
            whole: false,
            whole_by: None,
            rejected: Vec::new(),
            label: String::new(),
        }
    }

    fn table(&self, kind: ResourceType) -> &Table {
        let [listeners, routes, clusters, endpoints] = &self.tables;
        match kind {
            ResourceType::Listener => listeners,
            ResourceType::Routes => routes,
            ResourceType::Cluster => clusters,
            ResourceType::Endpoints => endpoints,
        }
    }

    fn table_mut(&mut self, kind: ResourceType) -> &mut Table {
        let [listeners, routes, clusters, endpoints] = &mut self.tables;
        match kind {
            ResourceType::Listener => listeners,
            ResourceType::Routes => routes,
            ResourceType::Cluster => clusters,
            ResourceType::Endpoints => endpoints,
        }
    }

    /// A stream is open.
    pub(super) fn connected(&mut self, now: Now) {
        self.connected = true;
        self.introduced = false;
        let deadline = now.at + self.initial_fetch_timeout;
        for table in &mut self.tables {
            table.reset_stream();
            for name in &table.wanted {
                if !table.accepted.contains_key(name) {
                    table.waiting.set(name, deadline);
                }
            }
        }
    }

    /// The stream is gone. What is in force stays.
    pub(super) fn disconnected(&mut self) {
        self.connected = false;
        self.tables.iter_mut().for_each(Table::reset_stream);
    }

    /// Whether the server has answered anything on this stream.
    pub(super) fn is_answered(&self) -> bool {
        self.tables.iter().any(|table| !table.nonce.is_empty())
    }

    /// When [`Session::on_time`] has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let timers = self.tables.iter().flat_map(|table| {
            [table.waiting.next(), table.lives.next(), table.reply_at()].into_iter().flatten()
        });
        timers.chain(self.whole_by.filter(|_| !self.whole)).min()
    }

    /// Time has passed.
    pub(super) fn on_time(&mut self, now: Now) {
        for kind in ResourceType::ALL {
            while let Some(name) = self.table_mut(kind).lives.due(now.at) {
                tracing::warn!(kind = kind.table(), %name, "the resource's time to live is over");
                self.table_mut(kind).remove(&name);
            }
            while let Some(name) = self.table_mut(kind).waiting.due(now.at) {
                tracing::warn!(kind = kind.table(), %name, "was asked for and did not come in time");
                self.make_up(kind, &name);
            }
        }
        self.settle(now.at);
    }

    /// Goes on as if the server had an empty resource of that name, as Envoy does.
    fn make_up(&mut self, kind: ResourceType, name: &Arc<str>) {
        let value = match kind {
            ResourceType::Endpoints => {
                envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment {
                    cluster_name: name.to_string(),
                    ..Default::default()
                }
                .encode_to_vec()
            }
            ResourceType::Routes => envoy_types::pb::envoy::config::route::v3::RouteConfiguration {
                name: name.to_string(),
                ..Default::default()
            }
            .encode_to_vec(),
            ResourceType::Listener | ResourceType::Cluster => return,
        };
        let table = self.table(kind);
        if table.in_force.contains_key(name) || !table.wants(name) {
            return;
        }
        let any = Any { type_url: kind.type_url().to_owned(), value };
        if let Ok(mut held) = judge::decode(kind, name, "", &any) {
            held.made_up = true;
            self.table_mut(kind).accept(Arc::clone(name), held);
        }
    }

    /// What the next configuration is, once there is a complete one.
    pub(super) fn poll_update(&mut self, now: Now) -> Option<Update> {
        if !self.rejected.is_empty() {
            return Some(Update::Rejected(std::mem::take(&mut self.rejected)));
        }
        if !self.whole && !self.is_whole(now.at) {
            return None;
        }
        if self.whole && self.unsent.is_empty() {
            return None;
        }
        let mut changes = Changes::default();
        let mut raw = Raw::default();
        for ((kind, name), body) in std::mem::take(&mut self.unsent) {
            let value = match body {
                Some(Body { resource, raw }) => {
                    resource.add_to(&mut changes.updated);
                    Some(raw)
                }
                None => {
                    let removed = &mut changes.removed;
                    match kind {
                        ResourceType::Listener => removed.listeners.push(Arc::clone(&name)),
                        ResourceType::Routes => removed.routes.push(Arc::clone(&name)),
                        ResourceType::Endpoints => removed.assignments.push(Arc::clone(&name)),
                        ResourceType::Cluster => {
                            removed.clusters.push(ClusterName(Arc::clone(&name)));
                        }
                    }
                    None
                }
            };
            raw.resources.push(((kind, name), value));
        }
        let label = self.label.clone();
        let refused = self.tables.iter().any(|table| table.refusing);
        if std::mem::replace(&mut self.whole, true) {
            return Some(Update::Changes(Delta { changes, label, raw, refused }));
        }
        raw.resources.retain(|(_, value)| value.is_some());
        Some(Update::Resources(Delivery { resources: changes.updated, label, raw, refused }))
    }

    /// Whether what is there can stand for the whole configuration: the server has
    /// told all of it, and all of it is ready or has had its time.
    fn is_whole(&mut self, now: Instant) -> bool {
        let told = [ResourceType::Cluster, ResourceType::Listener];
        if !told.iter().all(|kind| self.table(*kind).received) {
            return false;
        }
        let by = *self.whole_by.get_or_insert(now + self.initial_fetch_timeout);
        let quiet = self.tables.iter().all(|t| t.pending.is_empty() && t.waiting.next().is_none());
        // Nothing at all, and something refused: that is no configuration to begin with.
        let refused = self.unsent.is_empty() && self.tables.iter().any(|table| table.refusing);
        (quiet || by <= now) && !refused
    }
}

/// Has a fresh conversation hear these bytes, as a response of that variant; says how
/// many requests it answers with. `None`: they are no response.
pub fn hear(variant: Variant, response: &[u8]) -> Option<usize> {
    let mut session = Session::new(variant, Node::default(), Duration::ZERO);
    let now = Now::read();
    session.connected(now);
    match variant {
        Variant::Sotw => session.on_sotw(Message::decode(response).ok()?, now),
        Variant::Delta => session.on_delta(Message::decode(response).ok()?, now),
    }
    session.on_time(now);
    while session.poll_update(now).is_some() {}
    Some(std::iter::from_fn(|| session.poll_request(now)).count())
}

#[cfg(test)]
mod tests;
