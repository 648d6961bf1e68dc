//! One type's resources, and its side of the conversation.

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use super::{domains::DomainOwners, refused::RefusedByName, timers::Timers};
use crate::{
    model::{cluster::ClusterName, listener::Direction, route::Domain, scope::ScopeKey},
    snapshot::RejectedResource,
    source::xds::{Resource, ResourceType, scopes::ALL},
};

/// The first pause before a refused content is refused once more, and the longest.
const NACK_PAUSE: Duration = Duration::from_millis(500);
const NACK_PAUSE_MAX: Duration = Duration::from_secs(30);

/// Answers that may wait to be sent, and the bytes of their nonces.
const REPLIES_MAX: usize = 1024;
const NONCES_MAX_BYTES: usize = 16 << 20;

/// So many faults of one type are told to people within this time: a server that always
/// finds new ones must not fill the disk with them.
const TOLD_MAX: usize = 100;
const TELLING: Duration = Duration::from_secs(10);

/// What identifies a content.
pub(super) type Digest = [u8; 32];

/// What a resource needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Needs {
    /// Sorted, without repetition.
    names: Vec<(ResourceType, Arc<str>)>,
    /// Clusters it leads to, and can do without: what would go there fails.
    pub(super) leads_to: BTreeSet<Arc<str>>,
    /// Filters that are configured by themselves.
    pub(super) filters: Vec<FilterNeed>,
    /// What no other of its type can have at the same time.
    pub(super) place: Option<Place>,
    /// Grows stale, unless it is told again.
    pub(super) renewal: bool,
    /// Of a virtual host that comes by itself.
    pub(super) domains: Vec<Domain>,
}

/// A listener's among all, or a scope's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Place {
    Address(Direction, std::net::SocketAddr),
    Key(ScopeKey),
}

/// A filter's configuration, for one place that is for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FilterNeed {
    name: Arc<str>,
    /// The types that are taken there.
    pub(super) type_names: Vec<Arc<str>>,
    /// Whether the listener waits for it.
    warms: bool,
}

impl Needs {
    pub(super) fn of(resource: &Resource) -> Self {
        let mut needs = Self::default();
        match resource {
            Resource::Listener(listener) => {
                needs.add(ResourceType::Routes, listener.route_names());
                let clusters = listener.validated_cluster_names();
                needs.add(ResourceType::Cluster, clusters.into_iter().map(|name| &name.0));
                needs.leads_to(listener.cluster_names());
                let all = listener.takes_delivered_scopes().then(|| Arc::from(ALL));
                needs.add(ResourceType::Scope, &all);
                needs.place = Some(Place::Address(listener.direction, listener.address));
                needs.add(ResourceType::Secret, listener.secret_names());
                for filter in listener.discovered_filters() {
                    let (name, warms) = (Arc::clone(&filter.name), filter.warms);
                    let type_names = filter.type_names.clone();
                    needs.filters.push(FilterNeed { name, type_names, warms });
                }
            }
            Resource::Routes(routes) => {
                if routes.validate_clusters == Some(true) {
                    needs.add(ResourceType::Cluster, routes.cluster_names().map(|name| &name.0));
                }
                needs.leads_to(routes.cluster_names());
                needs.add(ResourceType::VirtualHost, routes.vhds.then_some(&routes.name));
            }
            Resource::Cluster(cluster) => {
                needs.add(ResourceType::Endpoints, cluster.assignment_name());
                needs.add(ResourceType::Secret, cluster.secret_names());
            }
            Resource::VirtualHost(_, host) => {
                needs.leads_to(host.cluster_names());
                needs.domains.clone_from(&host.domains);
            }
            Resource::Endpoints(_, assignment) => needs.renewal = assignment.stale_at.is_some(),
            Resource::Scope(scope) => {
                needs.add(ResourceType::Routes, scope.needed_route_name());
                let strict = scope.inline().filter(|own| own.validate_clusters == Some(true));
                let clusters = strict.into_iter().flat_map(|own| own.cluster_names());
                needs.add(ResourceType::Cluster, clusters.map(|name| &name.0));
                needs.leads_to(scope.cluster_names());
                needs.place = Some(Place::Key(scope.key.clone()));
            }
            Resource::Secret(_) | Resource::Runtime(..) | Resource::ExtensionConfig(_) => {}
        }
        needs.names.sort_unstable();
        needs.names.dedup();
        needs.names.shrink_to_fit();
        needs
    }

    pub(super) fn address(&self) -> Option<(Direction, std::net::SocketAddr)> {
        match self.place {
            Some(Place::Address(direction, address)) => Some((direction, address)),
            Some(Place::Key(_)) | None => None,
        }
    }

    pub(super) fn scope_key(&self) -> Option<&ScopeKey> {
        match &self.place {
            Some(Place::Key(key)) => Some(key),
            Some(Place::Address(..)) | None => None,
        }
    }

    fn add<'a>(&mut self, kind: ResourceType, names: impl IntoIterator<Item = &'a Arc<str>>) {
        self.names.extend(names.into_iter().map(|name| (kind, Arc::clone(name))));
    }

    fn leads_to<'a>(&mut self, clusters: impl IntoIterator<Item = &'a ClusterName>) {
        self.leads_to.extend(clusters.into_iter().map(|name| Arc::clone(&name.0)));
    }

    /// Every name that has to be there first, with its type.
    pub(super) fn all(&self) -> impl Iterator<Item = (ResourceType, &Arc<str>)> {
        let filters = self.filters.iter().filter(|filter| filter.warms);
        let filters = filters.map(|filter| (ResourceType::ExtensionConfig, &filter.name));
        self.names.iter().map(|(kind, name)| (*kind, name)).chain(filters)
    }

    /// The names of that type that are asked for, whether they have to be there first or
    /// not.
    pub(super) fn named(&self, kind: ResourceType) -> impl Iterator<Item = &Arc<str>> {
        let filters = self.filters.iter().filter(move |_| kind == ResourceType::ExtensionConfig);
        let names = self.names.iter().filter(move |(of, _)| *of == kind).map(|(_, name)| name);
        names.chain(filters.map(|filter| &filter.name))
    }

    /// The filters that are configured by that name.
    pub(super) fn filters(&self, name: &str) -> impl Iterator<Item = &FilterNeed> {
        self.filters.iter().filter(move |filter| &*filter.name == name)
    }
}

/// The route configuration that a virtual host belongs to. Its name may have slashes, a
/// host has none.
pub(super) fn namespace(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(configuration, _)| configuration)
}

/// A resource the server was told we have.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) version: String,
    pub(super) digest: Digest,
    pub(super) needs: Needs,
    /// Until it is in force; then others hold it.
    pub(super) body: Option<Body>,
    /// What a virtual host that is in force is made of, for when it goes out of force and
    /// comes back: no server sends it again.
    pub(super) again: Option<Arc<[u8]>>,
}

#[derive(Debug)]
pub(super) struct Body {
    pub(super) resource: Resource,
    pub(super) raw: Arc<[u8]>,
    /// What the server calls it.
    pub(super) version: Arc<str>,
}

/// An answer that is owed.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) nonce: String,
    /// `None`: ACK.
    pub(super) error: Option<String>,
    /// Not before then: a server that repeats what was refused must not make us spin.
    pub(super) at: Instant,
}

/// The last time something was refused, and how often in a row.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    digest: Option<Digest>,
    in_a_row: u32,
}

impl Refusals {
    /// Takes note of a refusal: whether its content is new, and the pause before the
    /// answer.
    pub(super) fn note(&mut self, digest: Digest) -> (bool, Duration) {
        let new = self.digest.replace(digest) != Some(digest);
        let pause = match self.in_a_row {
            0 => Duration::ZERO,
            n => (NACK_PAUSE * 2_u32.saturating_pow(n.min(10) - 1)).min(NACK_PAUSE_MAX),
        };
        // Somebody who tries to mend it is not kept waiting.
        self.in_a_row = if new { 1 } else { self.in_a_row.saturating_add(1) };
        (new, if new { pause.min(NACK_PAUSE) } else { pause })
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// How many faults were told lately.
#[derive(Debug, Default)]
pub(super) struct Telling {
    since: Option<Instant>,
    told: usize,
}

impl Telling {
    /// How many of that many faults may be told now.
    pub(super) fn take(&mut self, faults: usize, now: Instant) -> usize {
        if self.since.is_none_or(|since| since + TELLING <= now) {
            *self = Self { since: Some(now), told: 0 };
        }
        let told = faults.min(TOLD_MAX - self.told);
        self.told += told;
        told
    }
}

#[derive(Debug)]
pub(super) struct Table {
    pub(super) kind: ResourceType,
    /// The session's stream that carries this type, if one does.
    pub(super) stream: Option<usize>,
    /// The one that carries it where no resource says another.
    pub(super) home: Option<usize>,
    pub(super) accepted: HashMap<Arc<str>, Held>,
    /// Of virtual hosts that are accepted.
    pub(super) domains: DomainOwners,
    /// Those of them that stand in for what the server does not have.
    pub(super) made_up: HashSet<Arc<str>>,
    /// What was sent on, and what that needs.
    pub(super) in_force: HashMap<Arc<str>, Needs>,
    /// Accepted and not yet in force, or not in this version.
    pub(super) pending: BTreeSet<Arc<str>>,
    /// In force and no longer accepted, for as long as something needs it.
    pub(super) leaving: BTreeSet<Arc<str>>,
    /// Those that the server has said it has no longer, for as long as they are in use.
    pub(super) withdrawn: BTreeSet<Arc<str>>,
    /// When what is leaving goes even so.
    pub(super) grace: Timers,
    /// Asked for by name; unused where the type is asked for as a whole.
    pub(super) wanted: BTreeSet<Arc<str>>,
    /// Those of them that nobody waits for.
    pub(super) optional: BTreeSet<Arc<str>>,
    /// Those of them that are wanted whatever the resources need.
    pub(super) asked: BTreeSet<Arc<str>>,
    /// Those of them that nobody was told the fate of.
    pub(super) open: BTreeSet<Arc<str>>,
    /// Asked for by another name than it goes by (VHDS).
    pub(super) aliases: HashMap<Arc<str>, Arc<str>>,
    /// Wanted, and not to be had: nobody waits for them.
    pub(super) absent: BTreeSet<Arc<str>>,
    /// Those that were held from the start: no server changes or removes them.
    pub(super) fixed: BTreeSet<Arc<str>>,
    /// How long a name is waited for, where its source says so; zero: for ever.
    pub(super) timeouts: HashMap<Arc<str>, Duration>,
    /// Whether a resource that was judged since names were worked out relies on the
    /// stream.
    pub(super) claimed: bool,
    /// Whether what its resources need, or what was asked for, may have changed since
    /// names were worked out.
    pub(super) renamed: bool,
    /// Names asked for on this stream and neither delivered nor denied.
    pub(super) waiting: Timers,
    /// Resources that end unless they are confirmed.
    pub(super) lives: Timers,

    /// The version of the last response that was accepted whole (SotW).
    pub(super) version: String,
    /// Of the last response on this stream.
    pub(super) nonce: String,
    /// Whether a request was sent on this stream.
    pub(super) opened: bool,
    /// What the server was told is wanted on this stream.
    pub(super) subscribed: BTreeSet<Arc<str>>,
    /// Names among them that were not wanted for a while: the server takes them for held,
    /// and has to hear so before they are asked for anew.
    pub(super) forgotten: BTreeSet<Arc<str>>,
    /// Whether the last response had something that was not wanted (any more).
    pub(super) passed_over: bool,
    /// Whether what is subscribed and what is wanted may differ: to compare them is not
    /// for every small change.
    pub(super) reworded: bool,
    /// Whether a response ever came.
    pub(super) received: bool,
    /// Whether one came on this stream.
    pub(super) heard: bool,
    pub(super) replies: VecDeque<Reply>,
    pub(super) refusals: Refusals,
    pub(super) telling: Telling,

    pub(super) last_ack: Option<SystemTime>,
    pub(super) last_nack: Option<(SystemTime, Vec<String>)>,
    pub(super) refused: RefusedByName,
    pub(super) acks: u64,
    pub(super) nacks: u64,
}

impl Table {
    pub(super) fn new(kind: ResourceType) -> Self {
        Self {
            kind,
            stream: None,
            home: None,
            accepted: HashMap::new(),
            domains: DomainOwners::default(),
            made_up: HashSet::new(),
            in_force: HashMap::new(),
            pending: BTreeSet::new(),
            leaving: BTreeSet::new(),
            withdrawn: BTreeSet::new(),
            grace: Timers::default(),
            wanted: BTreeSet::new(),
            optional: BTreeSet::new(),
            asked: BTreeSet::new(),
            open: BTreeSet::new(),
            aliases: HashMap::new(),
            absent: BTreeSet::new(),
            fixed: BTreeSet::new(),
            timeouts: HashMap::new(),
            claimed: false,
            renamed: false,
            waiting: Timers::default(),
            lives: Timers::default(),
            version: String::new(),
            nonce: String::new(),
            opened: false,
            subscribed: BTreeSet::new(),
            forgotten: BTreeSet::new(),
            passed_over: false,
            reworded: false,
            received: false,
            heard: false,
            replies: VecDeque::new(),
            refusals: Refusals::default(),
            telling: Telling::default(),
            last_ack: None,
            last_nack: None,
            refused: RefusedByName::default(),
            acks: 0,
            nacks: 0,
        }
    }

    /// Whether the type is asked for as a whole, not by names.
    pub(super) fn is_wildcard(&self) -> bool {
        self.is_always_asked() || self.kind == ResourceType::Scope
    }

    /// Whether nothing has to need it for that.
    pub(super) fn is_always_asked(&self) -> bool {
        matches!(self.kind, ResourceType::Listener | ResourceType::Cluster)
    }

    pub(super) fn wants(&self, name: &str) -> bool {
        self.is_always_asked()
            || self.wanted.contains(name)
            || (self.kind == ResourceType::Scope && !self.wanted.is_empty())
            // Those of route configurations that nothing needs are kept: nobody sends them
            // again when something does.
            || (self.kind == ResourceType::VirtualHost && (self.opened || !self.wanted.is_empty()))
    }

    /// Whether a virtual host that is held has a route configuration to be part of.
    pub(super) fn has_place_for(&self, host: &str) -> bool {
        self.wanted.contains(namespace(host)) || self.wanted.contains(host)
    }

    /// The names that a server is told. Virtual hosts are asked for as a whole by the first
    /// request, which names nothing, as Envoy's; after that by name. Whose hosts are needed
    /// (`wanted` without a host) is not for the server.
    pub(super) fn names(&self) -> Cow<'_, BTreeSet<Arc<str>>> {
        if self.kind != ResourceType::VirtualHost {
            return Cow::Borrowed(&self.wanted);
        }
        let hosts = self.wanted.iter().filter(|name| !namespace(name).is_empty());
        Cow::Owned(hosts.cloned().collect())
    }

    /// Whether nobody need wait for that name any more.
    pub(super) fn has(&self, name: &str) -> bool {
        let there = |name: &str| self.in_force.contains_key(name) || self.absent.contains(name);
        there(name) || self.aliases.get(name).is_some_and(|name| there(name))
    }

    /// The server has answered the request for all virtual hosts: those that it sends
    /// unasked are there, whose ever they are. Whether somebody waited for that.
    pub(super) fn heard_of_hosts(&mut self) -> bool {
        let whose = self.wanted.iter().filter(|name| namespace(name).is_empty());
        let heard: Vec<_> = whose.filter(|name| !self.absent.contains(*name)).cloned().collect();
        heard.iter().for_each(|name| self.waiting.clear(name));
        let any = !heard.is_empty();
        self.absent.extend(heard);
        any
    }

    /// A new stream: nothing of the old one counts, but for what was accepted.
    pub(super) fn reset_stream(&mut self) {
        self.nonce.clear();
        self.opened = false;
        self.heard = false;
        self.subscribed.clear();
        self.forgotten.clear();
        self.passed_over = false;
        self.reworded = true;
        self.replies.clear();
        self.waiting.clear_all();
        // Scopes that were no longer needed can be done without now.
        self.renamed |= self.kind == ResourceType::Scope;
    }

    /// A response comes, which says `all` there is or what is new. Everything that was
    /// refused and is still there is said again by it, or by a new stream's first.
    pub(super) fn hear(&mut self, all: bool) {
        if !std::mem::replace(&mut self.heard, true) || all {
            self.refused.clear_all();
        }
        self.refused.clear("");
    }

    /// Takes note of what a response had refused of the resource `name`, if anything.
    pub(super) fn judged(&mut self, name: &str, refused: &[RejectedResource], at: SystemTime) {
        match refused {
            [] => self.refused.clear(name),
            // Nobody would say of one that is not wanted that it is no more.
            reasons if self.wants(name) => self.refused.note(name, reasons, at),
            reasons => self.refused.note("", reasons, at),
        }
    }

    pub(super) fn accept(&mut self, name: Arc<str>, held: Held) {
        self.waiting.clear(&name);
        self.leaving.remove(&name);
        self.grace.clear(&name);
        self.absent.remove(&name);
        self.made_up.remove(&name);
        self.withdrawn.remove(&name);
        let before = self.accepted.get(&name).map(|held| &held.needs);
        self.renamed |= *before.unwrap_or(&Needs::default()) != held.needs;
        if let Some(before) = before {
            self.domains.give_up(&name, &before.domains);
        }
        self.domains.take(&name, &held.needs.domains);
        self.pending.insert(Arc::clone(&name));
        self.accepted.insert(name, held);
    }

    /// The server says that it has it no longer.
    pub(super) fn withdraw(&mut self, name: &Arc<str>) {
        let is_the_servers = !self.fixed.contains(name) && !self.made_up.contains(name);
        if self.accepted.contains_key(name) && is_the_servers {
            self.withdrawn.insert(Arc::clone(name));
        }
    }

    pub(super) fn remove(&mut self, name: &str) {
        if self.fixed.contains(name) {
            return;
        }
        if let Some((name, held)) = self.accepted.remove_entry(name) {
            self.domains.give_up(&name, &held.needs.domains);
            self.pending.remove(&name);
            self.made_up.remove(&name);
            self.renamed = true;
            self.lives.clear(&name);
            match self.in_force.contains_key(&name) {
                true => _ = self.leaving.insert(name),
                false => _ = self.withdrawn.remove(&name),
            }
        }
    }

    /// Waits for a name, for as long as its source says or else `timeout`.
    pub(super) fn wait(&mut self, name: &Arc<str>, now: Instant, timeout: Duration) {
        if self.optional.contains(name) {
            return;
        }
        let timeout = self.timeouts.get(name).copied().unwrap_or(timeout);
        if !self.timeouts.contains_key(name) || !timeout.is_zero() {
            self.waiting.set(name, now + timeout);
        }
    }

    /// When the next answer may go out.
    pub(super) fn reply_at(&self) -> Option<Instant> {
        self.replies.front().map(|reply| reply.at)
    }

    /// Whether more answers are owed than a server that reads them lets come together.
    pub(super) fn is_overdue(&self) -> bool {
        let bytes: usize = self.replies.iter().map(|reply| reply.nonce.len()).sum();
        self.replies.len() > REPLIES_MAX || bytes > NONCES_MAX_BYTES
    }

    /// Whether the server was, or is about to be, asked for this type.
    pub(super) fn is_asked_for(&self) -> bool {
        self.opened || self.is_always_asked() || !self.wanted.is_empty()
    }

    /// Whether there is something to say now.
    pub(super) fn must_speak(&self, now: Instant) -> bool {
        if !self.opened {
            return self.is_asked_for();
        }
        if self.reply_at().is_some_and(|at| at <= now) {
            return true;
        }
        // In the state-of-the-world variant this says a refusal that waits as well.
        let anew = || self.forgotten.iter().any(|name| self.wanted.contains(name));
        self.reworded && (self.subscribed != *self.names() || anew())
    }

    /// What was had by that name is gone, whether the server has heard so or not.
    pub(super) fn forget(&mut self, name: &Arc<str>) {
        if self.subscribed.contains(name) {
            self.forgotten.insert(Arc::clone(name));
        }
    }

    /// What can be asked for now: without names that the server has to hear first are not
    /// held any more, which are asked for next.
    pub(super) fn next_names(&mut self) -> BTreeSet<Arc<str>> {
        let forgotten = std::mem::take(&mut self.forgotten);
        self.names().difference(&forgotten).cloned().collect()
    }
}
