//! Thousands of conversations with a server by the book, in every interleaving: requests
//! and responses under way, requests that find no room, streams that end, bad resources.
//!
//! When all has been said, what the server has and we want must be in force, as the server
//! has it. `MESH_STORM_SEED` repeats one that failed, `MESH_STORM_RUNS` makes it longer.

use std::collections::{HashMap, VecDeque};

use envoy_types::pb::envoy::{
    config::cluster::v3::{Cluster, cluster as pb_cluster},
    service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse, Resource},
};
use prost::Message as _;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{
    messages::{
        ECDS, RTDS, SDS, SRDS, bad_cluster, bad_extension, bad_secret, extension,
        filtered_listener, layer, scope, scope_with_routes, scoped_listener, secret, trusted_ca,
        with_default,
    },
    *,
};
use crate::source::xds::scopes::ALL;

const RUNS: u64 = 150;
const STEPS: usize = 150;

/// The types that are asked for as a whole.
const WHOLE: [&str; 3] = [LDS, CDS, SRDS];
const TYPES: [&str; 8] = [RTDS, SDS, CDS, EDS, LDS, ECDS, SRDS, RDS];

type World = BTreeMap<&'static str, BTreeMap<String, Any>>;

/// What a server knows of one type on a stream.
#[derive(Default)]
struct Known {
    asked: BTreeSet<String>,
    /// Delta: what the client has, by name. SotW: unused.
    has: BTreeMap<String, String>,
    /// Nonces that are not answered, and SotW: the newest.
    open: VecDeque<String>,
    last: Option<(String, String)>,
}

/// A server of one client, after `tests/control_plane/server.py`.
struct Server {
    variant: Variant,
    world: World,
    known: BTreeMap<&'static str, Known>,
    nonces: u64,
    /// Under way, in both directions.
    requests: VecDeque<Request>,
    responses: VecDeque<Said>,
}

enum Said {
    Sotw(DiscoveryResponse),
    Delta(DeltaDiscoveryResponse),
}

fn url_of(type_url: &str) -> &'static str {
    TYPES.into_iter().find(|url| *url == type_url).unwrap_or_else(|| panic!("{type_url}"))
}

fn version(any: &Any) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &any.value);
    digest.as_ref().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

impl Server {
    fn new(variant: Variant) -> Self {
        Self {
            variant,
            world: World::new(),
            known: BTreeMap::new(),
            nonces: 0,
            requests: VecDeque::new(),
            responses: VecDeque::new(),
        }
    }

    fn table(&self, url: &str) -> BTreeMap<String, Any> {
        self.world.get(url).cloned().unwrap_or_default()
    }

    /// The same content is the same version, also after another one.
    fn version(&self, url: &str) -> String {
        let versions: String = self.table(url).values().map(version).collect();
        let names: String = self.table(url).into_keys().collect();
        version(&Any { value: (versions + &names).into_bytes(), ..Any::default() })
    }

    fn nonce(&mut self) -> String {
        self.nonces += 1;
        self.nonces.to_string()
    }

    fn hears_one(&mut self) {
        match self.requests.pop_front() {
            Some(Request::Sotw(request)) => {
                let url = url_of(&request.type_url);
                let names: BTreeSet<_> = request.resource_names.iter().cloned().collect();
                assert_eq!(names.len(), request.resource_names.len(), "a name twice");
                let known = self.known.entry(url).or_default();
                if let Some((nonce, _)) = &known.last
                    && *nonce != request.response_nonce
                {
                    return;
                }
                let last = known.last.as_ref().map(|(_, version)| version.clone());
                let first = last.is_none();
                let new = names.difference(&known.asked).next().is_some();
                known.asked = names;
                let version = self.version(url);
                let refused = last.as_ref() == Some(&version);
                // A stream's first request may say that it has all there is.
                if new || first && url != EDS || request.version_info != version && !refused {
                    self.says(url);
                }
            }
            Some(Request::Delta(request)) => {
                let url = url_of(&request.type_url);
                let first = !self.known.contains_key(url);
                let known = self.known.entry(url).or_default();
                let (more, less) =
                    (&request.resource_names_subscribe, &request.resource_names_unsubscribe);
                if first {
                    assert_eq!(request.response_nonce, "", "{request:?}");
                    known.has = request.initial_resource_versions.into_iter().collect();
                    if url == SRDS && more.is_empty() {
                        known.asked.insert(ALL.to_owned());
                    }
                } else {
                    let says = !request.response_nonce.is_empty();
                    assert!(says || !more.is_empty() || !less.is_empty(), "{request:?}");
                    assert!(request.initial_resource_versions.is_empty(), "{request:?}");
                    if says {
                        assert_eq!(known.open.pop_front(), Some(request.response_nonce));
                    }
                }
                for name in more {
                    assert!(known.asked.insert(name.clone()), "{name} is subscribed to: {url}");
                    assert!(!less.contains(name), "{name} both ways");
                }
                for name in less {
                    assert!(known.asked.remove(name), "{name} is not subscribed to: {url}");
                    known.has.remove(name);
                    if name == ALL {
                        known.has.clear();
                    }
                }
                let more = more.clone();
                self.changes(url, &more, first);
            }
            None => {}
        }
    }

    fn wants(&self, url: &str, name: &str) -> bool {
        let all = url == LDS || url == CDS;
        let asked = self.known.get(url).map(|known| &known.asked);
        all || asked.is_some_and(|asked| asked.contains(name) || url == SRDS && asked.contains(ALL))
    }

    /// SotW: all of that type that is asked for.
    fn says(&mut self, url: &'static str) {
        let (nonce, version_info) = (self.nonce(), self.version(url));
        let known = self.known.entry(url).or_default();
        known.last = Some((nonce.clone(), version_info.clone()));
        let asked = known.asked.clone();
        let mut table = self.table(url);
        table.retain(|name, _| WHOLE.contains(&url) || asked.contains(name));
        self.responses.push_back(Said::Sotw(DiscoveryResponse {
            version_info,
            resources: table.into_values().collect(),
            type_url: url.to_owned(),
            nonce,
            ..DiscoveryResponse::default()
        }));
    }

    /// Delta: what the client does not have.
    fn changes(&mut self, url: &'static str, new: &[String], first: bool) {
        let mut table = self.table(url);
        table.retain(|name, _| self.wants(url, name));
        let Some(known) = self.known.get_mut(url) else { return };
        let gone = known.has.keys().chain(new.iter().filter(|name| *name != ALL));
        let removed: BTreeSet<_> = gone.filter(|n| !table.contains_key(*n)).cloned().collect();
        known.has.retain(|name, _| table.contains_key(name));
        table.retain(|name, any| known.has.get(name) != Some(&version(any)));
        let whole = first || new.iter().any(|name| name == ALL);
        if table.is_empty() && removed.is_empty() && !(whole && WHOLE.contains(&url)) {
            return;
        }
        known.has.extend(table.iter().map(|(name, any)| (name.clone(), version(any))));
        let nonce = self.nonce();
        self.known.entry(url).or_default().open.push_back(nonce.clone());
        let wrap = |(name, any): (String, Any)| Resource {
            name,
            version: version(&any),
            resource: Some(any),
            ..Resource::default()
        };
        self.responses.push_back(Said::Delta(DeltaDiscoveryResponse {
            resources: table.into_iter().map(wrap).collect(),
            removed_resources: removed.into_iter().collect(),
            type_url: url.to_owned(),
            nonce,
            ..DeltaDiscoveryResponse::default()
        }));
    }

    fn tells_what_is_new(&mut self) {
        for url in TYPES {
            match self.variant {
                Variant::Delta => self.changes(url, &[], false),
                Variant::Sotw => {
                    let last = self.known.get(url).and_then(|known| known.last.as_ref());
                    if last.is_some_and(|(_, version)| *version != self.version(url)) {
                        self.says(url);
                    }
                }
            }
        }
    }

    fn ends(&mut self) {
        self.known.clear();
        self.requests.clear();
        self.responses.clear();
    }
}

fn brief(request: &Request) -> String {
    match request {
        Request::Sotw(r) => format!(
            "  > {} v={} n={} {:?} {}",
            r.type_url.rsplit('.').next().unwrap(),
            r.version_info,
            r.response_nonce,
            r.resource_names,
            r.error_detail.is_some()
        ),
        Request::Delta(r) => format!(
            "  > {} n={} +{:?} -{:?} has {:?} {}",
            r.type_url.rsplit('.').next().unwrap(),
            r.response_nonce,
            r.resource_names_subscribe,
            r.resource_names_unsubscribe,
            r.initial_resource_versions,
            r.error_detail.is_some()
        ),
    }
}

struct Storm {
    bench: Bench,
    server: Server,
    dice: StdRng,
    log: Vec<String>,
}

fn fixed(name: &str) -> Any {
    let eds = Cluster::decode(cluster(name).value.as_slice()).unwrap();
    let of = pb_cluster::ClusterDiscoveryType::Type(pb_cluster::DiscoveryType::Static as i32);
    let cluster = Cluster { cluster_discovery_type: Some(of), eds_cluster_config: None, ..eds };
    Any { type_url: CDS.to_owned(), value: cluster.encode_to_vec() }
}

/// An EDS cluster whose endpoints go by another name.
fn renamed(name: &str, service_name: &str) -> Any {
    let mut eds = Cluster::decode(cluster(name).value.as_slice()).unwrap();
    eds.eds_cluster_config.as_mut().unwrap().service_name = service_name.to_owned();
    Any { type_url: CDS.to_owned(), value: eds.encode_to_vec() }
}

impl Storm {
    fn new(variant: Variant, seed: u64) -> Self {
        let mut bench = Bench::new(variant);
        let from_outside =
            [(ResourceType::Secret, "s0".into()), (ResourceType::Runtime, "layer".into())];
        bench.session.want(&from_outside, bench.now);
        let dice = StdRng::seed_from_u64(seed);
        Self { bench, server: Server::new(variant), dice, log: Vec::new() }
    }

    fn pick(&mut self, prefix: &str, of: u32) -> String {
        format!("{prefix}{}", self.dice.random_range(0..of))
    }

    fn set(&mut self, url: &'static str, name: &str, any: Option<Any>) {
        self.log.push(format!(
            "{} {name} {}",
            url_of(url),
            any.as_ref().map_or_else(|| "goes".to_owned(), version)
        ));
        let table = self.server.world.entry(url).or_default();
        match any {
            Some(any) => _ = table.insert(name.to_owned(), any),
            None => _ = table.remove(name),
        }
    }

    /// The server's configuration changes; nobody has been told yet. `bad`: also by what
    /// is refused.
    fn change(&mut self, bad: bool) {
        let cluster_name = self.pick("c", 3);
        let gone = self.dice.random_ratio(1, 4);
        let bad = bad && self.dice.random_ratio(1, 8);
        match self.dice.random_range(0..16) {
            0..=4 => {
                let any = match self.dice.random_range(0..4) {
                    _ if bad => bad_cluster(&cluster_name),
                    0 => fixed(&cluster_name),
                    1 => renamed(&cluster_name, &self.pick("e", 2)),
                    2 => renamed(&cluster_name, &self.pick("c", 3)),
                    _ => cluster(&cluster_name),
                };
                self.set(CDS, &cluster_name, (!gone).then_some(any));
            }
            5..=7 => {
                let name = if self.dice.random() { self.pick("e", 2) } else { cluster_name };
                let any = endpoints(&name, self.dice.random_range(0..4));
                self.set(EDS, &name, (!gone).then_some(any));
            }
            8 | 9 => {
                let name = self.pick("l", 3);
                let port = 80 + u32::from(name.as_bytes()[1] - b'0');
                let any = match self.dice.random_range(0..4) {
                    0 => tcp_listener(&name, port, &cluster_name),
                    1 => scoped_listener(&name, port),
                    _ => http_listener(&name, port, &self.pick("r", 2)),
                };
                self.set(LDS, &name, (!gone).then_some(any));
            }
            10 => {
                let source = if self.dice.random() { with_default() } else { Default::default() };
                let any = filtered_listener(90, &self.pick("f", 2), source);
                self.set(LDS, "l", (!gone).then_some(any));
            }
            11 | 12 => {
                let name = self.pick("r", 2);
                self.set(RDS, &name, (!gone).then_some(routes(&name, &cluster_name)));
            }
            13 => {
                let name = self.pick("f", 2);
                let any = if bad { bad_extension(&name) } else { extension(&name) };
                self.set(ECDS, &name, (!gone).then_some(any));
            }
            14 => {
                let name = self.pick("s", 2);
                let any = match self.dice.random() {
                    _ if bad => bad_secret(&name),
                    true => secret(&name),
                    false => trusted_ca(&name),
                };
                self.set(SDS, &name, (!gone).then_some(any));
                let number = self.dice.random_range(0..5);
                self.set(RTDS, "layer", (!gone).then_some(layer("layer", "k", number.into())));
            }
            _ => {
                let name = self.pick("scope", 2);
                let any = match self.dice.random() {
                    true => scope(&name, &name, &self.pick("r", 2)),
                    false => scope_with_routes(&name, &name, &cluster_name),
                };
                self.set(SRDS, &name, (!gone).then_some(any));
            }
        }
    }

    fn we_hear_one(&mut self) -> bool {
        let Some(said) = self.server.responses.pop_front() else { return false };
        self.log.push(match &said {
            Said::Sotw(r) => format!(
                "  < {} v={} n={} {:?}",
                r.type_url.rsplit('.').next().unwrap(),
                r.version_info,
                r.nonce,
                r.resources.iter().map(version).collect::<Vec<_>>(),
            ),
            Said::Delta(r) => format!(
                "  < {} n={} {:?} -{:?}",
                r.type_url.rsplit('.').next().unwrap(),
                r.nonce,
                r.resources.iter().map(|r| (&r.name, &r.version)).collect::<Vec<_>>(),
                r.removed_resources,
            ),
        });
        let Bench { session, now, .. } = &mut self.bench;
        match said {
            Said::Sotw(response) => session.on_sotw(0, response, *now),
            Said::Delta(response) => session.on_delta(0, response, *now),
        }
        self.bench.apply();
        true
    }

    /// As much as there is room for.
    fn we_speak(&mut self, room: usize) -> bool {
        let mut spoken = false;
        for _ in 0..room {
            let Some(request) = self.bench.session.poll_request(0, self.bench.now) else { break };
            self.log.push(brief(&request));
            self.server.requests.push_back(request);
            spoken = true;
        }
        spoken
    }

    fn step(&mut self) {
        match self.dice.random_range(0..40) {
            0..=9 => self.change(true),
            10..=17 => self.server.tells_what_is_new(),
            18..=24 => self.server.hears_one(),
            25..=31 => _ = self.we_hear_one(),
            32..=36 => {
                let room = self.dice.random_range(1..8);
                self.we_speak(room);
            }
            37 => self.quiesce(),
            38 => {
                self.log.push("the stream ends".to_owned());
                self.server.ends();
                self.bench.reconnect();
            }
            _ => {
                let pause = Duration::from_millis(self.dice.random_range(0..20_000));
                self.log.push(format!("{pause:?} pass"));
                self.bench.after(pause);
            }
        }
    }

    /// Everything that is under way arrives.
    fn quiesce(&mut self) {
        for _ in 0..1000 {
            self.server.tells_what_is_new();
            while !self.server.requests.is_empty() {
                self.server.hears_one();
            }
            let heard = self.we_hear_one();
            if !(self.we_speak(usize::MAX) | heard) {
                return;
            }
        }
        panic!("no end of it");
    }

    /// The good configuration is told, and has the time that names are waited for.
    fn ends_well(&mut self) {
        for table in self.server.world.values_mut() {
            table.retain(|name, any| {
                let good = decode::decode(
                    ResourceType::of_url(&any.type_url).unwrap(),
                    &name.as_str().into(),
                    "",
                    any,
                );
                good.is_ok()
            });
        }
        for _ in 0..4 {
            self.quiesce();
            self.bench.after(Duration::from_secs(31));
        }
        self.quiesce();
    }

    /// What is not as the server has it.
    fn faults(&self) -> Vec<String> {
        let session = &self.bench.session;
        let mut faults = Vec::new();
        let mut counts = HashMap::new();
        for (url, resources) in &self.server.world {
            let kind = ResourceType::of_url(url).unwrap();
            let table = session.table(kind);
            for (name, any) in resources.iter().filter(|(name, _)| table.wants(name)) {
                let digest = decode::decode(kind, &name.as_str().into(), "", any).unwrap().0.digest;
                match table.accepted.get(name.as_str()) {
                    None => faults.push(format!("{kind:?}[{name}] is not accepted")),
                    Some(held) if held.digest != digest => {
                        faults.push(format!("{kind:?}[{name}] is another one"));
                    }
                    Some(held) if held.body.is_some() => {
                        let lacks = session.lacks(kind, name, &held.needs);
                        // A listener that serves goes on as it did while a filter of its
                        // next version was refused and has not come since.
                        let held_back = lacks.as_ref().is_some_and(|(of, name)| {
                            let there = self.server.world.get(of.type_url());
                            *of == ResourceType::ExtensionConfig
                                && !there.is_some_and(|there| there.contains_key(&**name))
                        });
                        if !held_back {
                            faults.push(format!("{kind:?}[{name}] is not in force: {lacks:?}"));
                        }
                    }
                    Some(_) => {}
                }
            }
            if WHOLE.contains(url) && (kind != ResourceType::Scope || table.is_asked_for()) {
                let extra = table.in_force.keys().filter(|n| !resources.contains_key(&***n));
                faults.extend(extra.map(|name| format!("{kind:?}[{name}] is still there")));
            }
            counts.insert(kind, table.in_force.len());
        }
        // What the session thinks is in force is.
        let snapshot = self.bench.cell.load();
        for (name, any) in self.server.world.get(EDS).into_iter().flatten() {
            if session.table(ResourceType::Endpoints).wants(name) {
                let assignment = snapshot.assignments.get(name.as_str());
                let found = assignment.map(|of| of.endpoints().count());
                let message =
                    envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment::decode(
                        any.value.as_slice(),
                    );
                let told: usize =
                    message.unwrap().endpoints.iter().map(|of| of.lb_endpoints.len()).sum();
                if found != Some(told) {
                    faults.push(format!("endpoints of {name}: {found:?}, not {told}"));
                }
            }
        }
        let sizes = [
            (ResourceType::Cluster, snapshot.clusters.size()),
            (ResourceType::Listener, snapshot.listeners.iter().count()),
        ];
        for (kind, size) in sizes {
            if counts.get(&kind).is_some_and(|count| *count != size) {
                faults.push(format!(
                    "{kind:?}: {size} in the snapshot, {:?} in force",
                    counts[&kind]
                ));
            }
        }
        faults
    }
}

fn a_storm(variant: Variant, seed: u64) {
    let mut storm = Storm::new(variant, seed);
    for step in 0..STEPS {
        storm.step();
        if step % 50 == 49 {
            storm.ends_well();
            let faults = storm.faults();
            let log = &storm.log[storm.log.len().saturating_sub(60)..];
            assert!(
                faults.is_empty(),
                "MESH_STORM_SEED={seed} {variant:?}: {faults:#?}\n{}\nwarming: {:?}",
                log.join("\n"),
                storm.bench.warming(),
            );
        }
    }
}

fn storms(variant: Variant) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    if let Some(seed) = number("MESH_STORM_SEED") {
        return a_storm(variant, seed);
    }
    let first = rand::random::<u32>();
    for run in 0..number("MESH_STORM_RUNS").unwrap_or(RUNS) {
        a_storm(variant, u64::from(first) + run);
    }
}

#[test]
fn what_the_server_has_ends_up_in_force_by_the_state_of_the_world() {
    storms(Variant::Sotw);
}

#[test]
fn what_the_server_has_ends_up_in_force_by_delta() {
    storms(Variant::Delta);
}
