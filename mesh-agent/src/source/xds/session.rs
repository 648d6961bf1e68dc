//! An xDS conversation without I/O: responses and time go in, requests and updates
//! come out.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol>.
//!
//! Feed it with [`Session::connected`], [`Session::on_sotw`] or [`Session::on_delta`],
//! [`Session::on_time`] and [`Session::disconnected`]; after each, take what
//! [`Session::poll_request`] and [`Session::poll_update`] have until they have no more,
//! and come back at [`Session::deadline_after`] at the latest. One session outlives its
//! streams: what was accepted on one counts on the next.

mod decode;
mod domains;
mod judge;
mod refused;
mod requests;
mod scopes;
mod settle;
mod sources;
mod status;
mod table;
mod timers;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use envoy_types::pb::{
    envoy::{config::core::v3::Node, service::discovery::v3 as discovery},
    google::protobuf::Any,
};
use prost::Message;

use self::{
    sources::Sources,
    table::{Body, Table},
};
use super::ResourceType;
use crate::{
    snapshot::{Changes, RejectedResource},
    source::{Delivery, Raw, Update, watch::Delta},
};

pub use self::{
    refused::Refused,
    status::{TypeStatus, Warming},
};

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

/// One stream of a session: what it speaks, and which types it carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Carries {
    pub(super) variant: Variant,
    pub(super) types: Vec<ResourceType>,
}

impl Carries {
    /// One stream for all. VHDS has no state of the world.
    pub(super) fn all(variant: Variant) -> Self {
        let mut types = ResourceType::ALL.to_vec();
        types.retain(|kind| variant == Variant::Delta || *kind != ResourceType::VirtualHost);
        Self { variant, types }
    }
}

#[derive(Debug)]
struct Stream {
    variant: Variant,
    connected: bool,
    /// Whether this connection's first request, which says who we are, was sent.
    introduced: bool,
}

/// One conversation.
#[derive(Debug)]
pub(super) struct Session {
    streams: Vec<Stream>,
    sources: Sources,
    node: Node,
    /// How long a name that was asked for may stay unanswered.
    initial_fetch_timeout: Duration,
    /// In the order of [`ResourceType::ALL`].
    tables: [Table; 9],
    /// What is in force once it was sent on.
    unsent: BTreeMap<Key, Option<Body>>,
    /// Whether the first, whole configuration was sent on.
    whole: bool,
    /// When the first configuration goes out even if some of it is not ready.
    whole_by: Option<Instant>,
    /// When what is fixed goes out even if no server has said anything.
    alone_by: Option<Instant>,
    rejected: Vec<RejectedResource>,
    /// Names asked for from outside that are in force now, or not to be had.
    answered: Vec<Key>,
    /// Whether something was refused when the last update was looked for.
    refused: bool,
    label: String,
}

impl Session {
    /// A session over these streams, which are then called by their place in the list.
    /// A type belongs to the first that carries it; of a type that none carries, every
    /// name counts as not to be had.
    pub(super) fn new(
        streams: impl IntoIterator<Item = Carries>,
        node: Node,
        initial_fetch_timeout: Duration,
    ) -> Self {
        let mut tables = ResourceType::ALL.map(Table::new);
        let mut states = Vec::new();
        for (at, Carries { variant, types }) in streams.into_iter().enumerate() {
            for table in &mut tables {
                if table.stream.is_none() && types.contains(&table.kind) {
                    table.stream = Some(at);
                }
            }
            states.push(Stream { variant, connected: false, introduced: false });
        }
        Self {
            sources: Sources::aggregated(states.len()),
            streams: states,
            node,
            initial_fetch_timeout,
            tables,
            unsent: BTreeMap::new(),
            whole: false,
            whole_by: None,
            alone_by: None,
            rejected: Vec::new(),
            answered: Vec::new(),
            refused: false,
            label: String::new(),
        }
    }

    fn table(&self, kind: ResourceType) -> &Table {
        let [listeners, routes, clusters, endpoints, secrets, runtime, extensions, hosts, scopes] =
            &self.tables;
        match kind {
            ResourceType::Listener => listeners,
            ResourceType::Routes => routes,
            ResourceType::Cluster => clusters,
            ResourceType::Endpoints => endpoints,
            ResourceType::Secret => secrets,
            ResourceType::Runtime => runtime,
            ResourceType::ExtensionConfig => extensions,
            ResourceType::VirtualHost => hosts,
            ResourceType::Scope => scopes,
        }
    }

    fn table_mut(&mut self, kind: ResourceType) -> &mut Table {
        let [listeners, routes, clusters, endpoints, secrets, runtime, extensions, hosts, scopes] =
            &mut self.tables;
        match kind {
            ResourceType::Listener => listeners,
            ResourceType::Routes => routes,
            ResourceType::Cluster => clusters,
            ResourceType::Endpoints => endpoints,
            ResourceType::Secret => secrets,
            ResourceType::Runtime => runtime,
            ResourceType::ExtensionConfig => extensions,
            ResourceType::VirtualHost => hosts,
            ResourceType::Scope => scopes,
        }
    }

    fn is_connected(&self, kind: ResourceType) -> bool {
        let stream = self.table(kind).stream.and_then(|at| self.streams.get(at));
        stream.is_some_and(|stream| stream.connected)
    }

    /// Whether that stream's server says more than it reads answers to.
    pub(super) fn is_overdue(&self, stream: usize) -> bool {
        self.tables.iter().any(|table| table.stream == Some(stream) && table.is_overdue())
    }

    /// That stream has a connection.
    pub(super) fn connected(&mut self, stream: usize, now: Now) {
        if let Some(state) = self.streams.get_mut(stream) {
            state.connected = true;
            state.introduced = false;
        }
        let timeout = self.initial_fetch_timeout;
        for table in self.tables.iter_mut().filter(|table| table.stream == Some(stream)) {
            table.reset_stream();
            let missing = table.wanted.iter().filter(|name| !table.accepted.contains_key(*name));
            let waits = !table.is_wildcard();
            for name in missing.filter(|_| waits).cloned().collect::<Vec<_>>() {
                table.wait(&name, now.at, timeout);
            }
        }
        self.settle(now.at);
    }

    /// That stream's connection is gone. What is in force stays.
    pub(super) fn disconnected(&mut self, stream: usize) {
        if let Some(state) = self.streams.get_mut(stream) {
            state.connected = false;
        }
        let tables = self.tables.iter_mut().filter(|table| table.stream == Some(stream));
        tables.for_each(Table::reset_stream);
    }

    /// Asks for exactly these names besides those that resources need.
    pub(super) fn want<'a>(&mut self, names: impl IntoIterator<Item = &'a Key>, now: Now) {
        let mut asked: BTreeMap<ResourceType, BTreeSet<Arc<str>>> = BTreeMap::new();
        for (kind, name) in names {
            asked.entry(*kind).or_default().insert(Arc::clone(name));
        }
        for table in &mut self.tables {
            let asked = asked.remove(&table.kind).unwrap_or_default();
            table.renamed |= table.asked != asked;
            for name in asked.difference(&table.asked) {
                table.absent.remove(name);
                table.open.insert(Arc::clone(name));
            }
            table.open.retain(|name| asked.contains(name));
            table.aliases.retain(|alias, _| asked.contains(alias));
            table.asked = asked;
        }
        self.settle(now.at);
    }

    /// When [`Session::on_time`], or [`Session::poll_request`], has something to do that
    /// could not be done at `now` already: what is stuck is no reason to come back.
    pub(super) fn deadline_after(&self, now: Instant) -> Option<Instant> {
        self.deadlines().filter(|at| *at > now).min()
    }

    fn deadlines(&self) -> impl Iterator<Item = Instant> {
        let timers = self.tables.iter().flat_map(|table| {
            let Table { waiting, lives, grace, .. } = table;
            [waiting.next(), lives.next(), grace.next(), table.reply_at()].into_iter().flatten()
        });
        let first = [self.whole_by, self.alone_by].into_iter().flatten();
        timers.chain(first.filter(|_| !self.whole))
    }

    /// Whether [`Session::on_time`] has something to do.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.deadlines().any(|at| at <= now)
    }

    /// Time has passed.
    pub(super) fn on_time(&mut self, now: Now) {
        for kind in ResourceType::ALL {
            let due = std::iter::from_fn(|| self.table_mut(kind).lives.due(now.at));
            let due: Vec<_> = due.collect();
            self.tell(kind, &due, "the resource's time to live is over", now);
            due.into_iter().for_each(|name| self.expired(kind, name));

            let due = std::iter::from_fn(|| self.table_mut(kind).waiting.due(now.at));
            let due: Vec<_> = due.collect();
            self.tell(kind, &due, "was asked for and did not come in time", now);
            due.iter().for_each(|name| self.make_up(kind, name));

            let due = std::iter::from_fn(|| self.table_mut(kind).grace.due(now.at));
            let due: Vec<_> = due.collect();
            self.tell(kind, &due, "is gone although something leads to it", now);
            due.iter().for_each(|name| self.take_out(kind, name));
        }
        self.settle(now.at);
    }

    /// Logs what has become of resources; a server that has many of them, again and again,
    /// must not fill the disk.
    fn tell(&mut self, kind: ResourceType, names: &[Arc<str>], what: &'static str, now: Now) {
        let told = self.table_mut(kind).telling.take(names.len(), now.at);
        for name in names.iter().take(told) {
            tracing::warn!(kind = kind.table(), %name, "{what}");
        }
        if (1..names.len()).contains(&told) {
            let more = names.len() - told;
            tracing::warn!(kind = kind.table(), more, "{what}");
        }
    }

    /// Goes on as if the server had an empty resource of that name, as Envoy does, or
    /// without one where empty is not the same as none.
    fn make_up(&mut self, kind: ResourceType, name: &Arc<str>) {
        if kind == ResourceType::Routes && !self.is_named(kind, name) {
            // Only requests have asked, if anything: who waits for it waits no longer.
            let table = self.table_mut(kind);
            if table.asked.contains(name) {
                table.absent.insert(Arc::clone(name));
            }
            return;
        }
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
            ResourceType::Secret
            | ResourceType::Runtime
            | ResourceType::ExtensionConfig
            | ResourceType::VirtualHost => {
                let table = self.table_mut(kind);
                if table.wanted.contains(name) && !table.accepted.contains_key(name) {
                    table.absent.insert(Arc::clone(name));
                }
                return;
            }
            ResourceType::Cluster | ResourceType::Scope => {
                // Who waits for it waits no longer.
                self.table_mut(kind).absent.insert(Arc::clone(name));
                return;
            }
            ResourceType::Listener => return,
        };
        let table = self.table(kind);
        if table.in_force.contains_key(name) || !table.wants(name) {
            return;
        }
        let any = Any { type_url: kind.type_url().to_owned(), value };
        if let Ok((held, _)) = decode::decode(kind, name, "", &any) {
            let table = self.table_mut(kind);
            table.accept(Arc::clone(name), held);
            table.made_up.insert(Arc::clone(name));
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
        let refused = self.tables.iter().any(|table| !table.refused.is_empty());
        // That nothing is refused any more is news, even if nothing has changed.
        let mended = std::mem::replace(&mut self.refused, refused) && !refused;
        if self.whole && self.unsent.is_empty() && !mended {
            let answered = std::mem::take(&mut self.answered);
            return (!answered.is_empty()).then_some(Update::Answered(answered));
        }
        let mut changes = Changes::default();
        let mut raw = Raw::default();
        for ((kind, name), body) in std::mem::take(&mut self.unsent) {
            match body {
                Some(Body { resource, raw: bytes, version }) => {
                    raw.keep((kind, name), &resource, bytes, version);
                    resource.add_to(&mut changes.updated);
                }
                None => {
                    kind.remove_from(&mut changes.removed, Arc::clone(&name));
                    raw.remove((kind, name));
                }
            }
        }
        let label = self.label.clone();
        if std::mem::replace(&mut self.whole, true) {
            return Some(Update::Changes(Delta { changes, label, raw, refused }));
        }
        raw.resources.retain(|(_, value)| value.is_some());
        Some(Update::Resources(Delivery { resources: changes.updated, label, raw, refused }))
    }

    /// Whether what is there can stand for the whole configuration: the server has
    /// told all of it, and all of it is ready or has had its time.
    fn is_whole(&mut self, now: Instant) -> bool {
        let told = |table: &Table| table.received || table.stream.is_none();
        if !self.tables.iter().filter(|table| table.is_always_asked()).all(told) {
            return self.alone_by.is_some_and(|by| by <= now);
        }
        let by = *self.whole_by.get_or_insert(now + self.initial_fetch_timeout);
        let quiet = self.tables.iter().all(|t| t.pending.is_empty() && t.waiting.next().is_none());
        // Nothing at all, and something refused: that is no configuration to begin with.
        let refused =
            self.unsent.is_empty() && self.tables.iter().any(|table| !table.refused.is_empty());
        (quiet || by <= now) && !refused
    }
}

/// What [`hear`] wants.
const NAME_HEARD: &str = "r/a";

/// Has a fresh conversation, which wants one resource of each type by name, hear these
/// bytes, as a response of that variant; says how many requests it answers with. `None`:
/// they are no response.
pub fn hear(variant: Variant, response: &[u8]) -> Option<usize> {
    let mut session = Session::new([Carries::all(variant)], Node::default(), Duration::ZERO);
    let now = Now::read();
    session.connected(0, now);
    let wanted = ResourceType::ALL.map(|kind| (kind, NAME_HEARD.into()));
    session.want(&wanted, now);
    match variant {
        Variant::Sotw => session.on_sotw(0, Message::decode(response).ok()?, now),
        Variant::Delta => session.on_delta(0, Message::decode(response).ok()?, now),
    }
    session.on_time(now);
    while session.poll_update(now).is_some() {}
    Some(std::iter::from_fn(|| session.poll_request(0, now)).count())
}

#[cfg(test)]
mod tests;
