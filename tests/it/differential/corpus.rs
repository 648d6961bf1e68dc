//! The differential corpus: a table of configurations and questions, all served to Envoy
//! and the agent by one push, and compared by what the client heard and what the upstream
//! saw. Envoy's answer is the right one.
//!
//! # How to add a row
//! A row is a [`Case`]: a configuration with a listener of its own, and questions.
//!
//! ```ignore
//! case("prefixes match", routes(json!([{ "match": { "prefix": "/a" }, "route": { "cluster": "one" } }])))
//!     .asks(get("/a/b"))
//!     .asks(get("/b").is(404)),
//! ```
//!
//! - The clusters are there: `one` and `two` (HTTP/1, witnesses `web-a` and `web-b`), `both`
//!   (the two of them), `h2` (`web-a` by HTTP/2), `dead` (nobody listens), `empty` (no
//!   endpoint), `labelled` (`web-a` with the label `who: a`, `web-b` with `who: b`, for subsets);
//!   `grpc-authority` and `http-authority` are for filters that ask somebody,
//!   `grpc-collector` and `http-collector` take spans ([`Case::spans`]).
//!   [`Case::cluster`] adds one.
//! - [`Case::manager`], [`Case::listener`], [`Case::filter`] say more than routes.
//! - A question ([`Ask`]) says the status that Envoy must answer with: 200 unless told. How
//!   the witness answers is [`Ask::answered`].
//! - What differs on purpose is said with its reason ([`Ask::differs`]), part by
//!   part: what is said to differ and does not is a failure too.
//! - What the agent refuses is [`Case::refused`], with what it must say.
//!
//! `CORPUS=word` runs only rows whose name has the word. Parts are named as failures name
//! them, without the number of a request or response: `upstream header x-a`.

mod access_logs;
mod asking;
mod changes;
mod clients;
mod compare;
mod compression;
mod filters;
mod grpc_web;
mod hostnames;
mod http;
mod limits;
mod local_replies;
mod mirroring;
mod network;
mod policy;
mod resilience;
mod routing;
mod sessions;
mod smuggling;
mod spans;
mod timeouts;
mod upstream;

use std::{collections::BTreeMap, fs, net::SocketAddr, process::Command, time::Duration};

use serde_json::{Value, json};
use tests::{
    Pod, Process, control_plane,
    corpus::{Ask, Deviation, Heard, Script, Seen},
    eventually, process,
    twins::{ADDRESSES, Twins},
};

use self::compare::{Parts, parts};

const PREFIX: &str = "type.googleapis.com/envoy";
/// Where witnesses are on each backend.
const WITNESS: u16 = 9200;
/// Where `authority.py` is on the second backend.
const AUTHORITY_GRPC: u16 = 9400;
const AUTHORITY_HTTP: u16 = 9401;
/// Where `collector.py` is on the third backend.
const COLLECTOR_GRPC: u16 = 9402;
const COLLECTOR_HTTP: u16 = 9403;
/// Where nobody is.
const NOBODY: u16 = 9300;
/// What a witness says of a health check.
const CHECKS: &str = r#""case":"check""#;
/// The first listener's port.
const FIRST: u16 = 20000;

/// A configuration, and what is asked of who has it.
#[derive(Debug, Clone)]
pub(super) struct Case {
    name: &'static str,
    manager: Value,
    listener: Value,
    clusters: Vec<Value>,
    asks: Vec<Ask>,
    /// How many Envoy tells of.
    spans: usize,
    refused: Option<&'static str>,
    refused_by_envoy: Option<&'static str>,
}

/// A case with this route configuration.
pub(super) fn case(name: &'static str, route_config: Value) -> Case {
    Case {
        name,
        manager: json!({ "route_config": route_config }),
        listener: json!({}),
        clusters: Vec::new(),
        asks: Vec::new(),
        spans: 0,
        refused: None,
        refused_by_envoy: None,
    }
}

/// A route configuration of these routes for every host.
pub(super) fn routes(routes: Value) -> Value {
    hosts(json!([{ "name": "all", "domains": ["*"], "routes": routes }]))
}

/// A route configuration of these virtual hosts.
pub(super) fn hosts(hosts: Value) -> Value {
    json!({ "name": "routes", "virtual_hosts": hosts })
}

/// Everything goes to that cluster.
pub(super) fn to(cluster: &str) -> Value {
    routes(json!([{ "match": { "prefix": "/" }, "route": { "cluster": cluster } }]))
}

pub(super) fn get(target: &str) -> Ask {
    Ask::new("GET", target)
}

/// A cluster's fields: as many retries at a time as there may be.
pub(super) fn many_retries() -> Value {
    json!({ "circuit_breakers": { "thresholds": [{ "max_retries": 1000 }] } })
}

/// A filter's `@type` and what it says.
pub(super) fn typed(name: &str, mut config: Value) -> Value {
    config["@type"] = format!("{PREFIX}.{name}").into();
    config
}

impl Case {
    /// With these fields of the connection manager.
    pub(super) fn manager(mut self, fields: Value) -> Self {
        merge(&mut self.manager, fields);
        self
    }

    /// With these fields of the listener.
    pub(super) fn listener(mut self, fields: Value) -> Self {
        merge(&mut self.listener, fields);
        self
    }

    /// With this HTTP filter before the router, behind those given already; its type is
    /// the rest of its name (`extensions.filters.http.cors.v3.Cors`).
    pub(super) fn filter(mut self, name: &str, type_: &str, config: Value) -> Self {
        let filter = json!({ "name": name, "typed_config": typed(type_, config) });
        match self.manager["http_filters"].as_array_mut() {
            Some(filters) => filters.push(filter),
            None => self.manager["http_filters"] = json!([filter]),
        }
        self
    }

    /// With one more cluster: `one` or `h2` under another name, and with these fields; `hostnames`
    /// are its endpoints'.
    pub(super) fn cluster(mut self, name: &str, like: &str, fields: Value) -> Self {
        let mut cluster = json!({ "name": name, "like": like });
        merge(&mut cluster, fields);
        self.clusters.push(cluster);
        self
    }

    /// And one question more.
    pub(super) fn asks(mut self, ask: Ask) -> Self {
        self.asks.push(ask);
        self
    }

    /// Both send so many spans to the collectors.
    pub(super) fn spans(mut self, count: usize) -> Self {
        self.spans = count;
        self
    }

    /// Envoy takes it and the agent refuses it, saying so.
    pub(super) fn refused(mut self, saying: &'static str) -> Self {
        self.refused = Some(saying);
        self
    }

    /// Both refuse it; the agent says this, and Envoy that.
    pub(super) fn refused_by_both(mut self, saying: &'static str, envoy: &'static str) -> Self {
        self.refused = Some(saying);
        self.refused_by_envoy = Some(envoy);
        self
    }

    /// Its questions; bytes get the mark that other questions get when they are sent.
    fn numbered(&self) -> Vec<Ask> {
        let mut asks = self.asks.clone();
        for (index, ask) in asks.iter_mut().enumerate() {
            let mark = format!("x-case: {}#{index}", self.name);
            ask.pieces.iter_mut().for_each(|piece| *piece = piece.replace("x-case: CASE", &mark));
        }
        asks
    }

    fn listener_of(&self, address: SocketAddr) -> Value {
        let extensions = format!("{PREFIX}.extensions.filters");
        let mut manager = json!({
            "@type": format!("{extensions}.network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": self.name,
            "http_filters": [],
        });
        merge(&mut manager, self.manager.clone());
        let router = json!({
            "name": "envoy.filters.http.router",
            "typed_config": { "@type": format!("{extensions}.http.router.v3.Router") },
        });
        manager["http_filters"].as_array_mut().expect("a list of filters").push(router);
        let filter = json!({
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": manager,
        });
        let mut listener = json!({
            "@type": format!("{PREFIX}.config.listener.v3.Listener"),
            "name": self.name,
            "traffic_direction": "OUTBOUND",
            "address": { "socket_address": {
                "address": address.ip(), "port_value": address.port(),
            } },
            "filter_chains": [{ "filters": [filter] }],
        });
        merge(&mut listener, self.listener.clone());
        listener
    }
}

/// Fields of `more` over those of `value`, objects one in another.
pub(super) fn merge(value: &mut Value, more: Value) {
    match (value, more) {
        (Value::Object(fields), Value::Object(more)) => {
            for (name, more) in more {
                merge(fields.entry(name).or_insert(Value::Null), more);
            }
        }
        (value, more) => *value = more,
    }
}

fn cluster(name: &str, endpoints: &[SocketAddr], http2: bool) -> Value {
    let endpoint = |address: &SocketAddr| {
        let address = json!({ "address": address.ip(), "port_value": address.port() });
        json!({ "endpoint": { "address": { "socket_address": address } } })
    };
    let endpoints: Vec<Value> = endpoints.iter().map(endpoint).collect();
    let mut cluster = json!({
        "@type": format!("{PREFIX}.config.cluster.v3.Cluster"),
        "name": name,
        "type": "STATIC",
        "connect_timeout": "2s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{ "lb_endpoints": endpoints }],
        },
    });
    if http2 {
        let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        cluster["typed_extension_protocol_options"] = json!({ options: {
            "@type": format!("type.googleapis.com/{options}"),
            "explicit_http_config": { "http2_protocol_options": {} },
        } });
    }
    cluster
}

fn clusters(twins: &Twins, cases: &[Case]) -> Vec<Value> {
    let at = |index: usize, port: u16| twins.backends[index].at(port);
    let (a, b) = (at(0, WITNESS), at(1, WITNESS));
    let mut clusters = vec![
        cluster("one", &[a], false),
        cluster("two", &[b], false),
        cluster("both", &[a, b], false),
        cluster("h2", &[a], true),
        cluster("dead", &[at(0, NOBODY)], false),
        cluster("empty", &[], false),
        cluster("grpc-authority", &[at(1, AUTHORITY_GRPC)], true),
        cluster("http-authority", &[at(1, AUTHORITY_HTTP)], false),
        cluster("grpc-collector", &[at(2, COLLECTOR_GRPC)], true),
        cluster("http-collector", &[at(2, COLLECTOR_HTTP)], false),
    ];
    let mut labelled = cluster("labelled", &[a, b], false);
    for (index, labels) in
        [json!({ "who": "a", "stage": "s" }), json!({ "who": "b", "stage": "s" })]
            .into_iter()
            .enumerate()
    {
        labelled["load_assignment"]["endpoints"][0]["lb_endpoints"][index]["metadata"] =
            json!({ "filter_metadata": { "envoy.lb": labels } });
    }
    clusters.push(labelled);
    for of in cases.iter().flat_map(|case| &case.clusters) {
        let like = clusters.iter().find(|c| c["name"] == of["like"]).expect("a cluster like it");
        let (mut new, mut fields) = (like.clone(), of.clone());
        let fields_of = fields.as_object_mut().expect("an object");
        fields_of.remove("like");
        if let Some(Value::Array(names)) = fields_of.remove("hostnames") {
            for (index, name) in names.into_iter().enumerate() {
                let endpoints = &mut new["load_assignment"]["endpoints"][0]["lb_endpoints"];
                endpoints[index]["endpoint"]["hostname"] = name;
            }
        }
        merge(&mut new, fields);
        new["load_assignment"]["cluster_name"] = of["name"].clone();
        clusters.push(new);
    }
    clusters
}

/// All that a side's client heard, by script, its witnesses saw, and it logged.
struct Side {
    refused: String,
    /// By question.
    logged: Vec<(String, String)>,
    heard: Vec<Vec<Heard>>,
    seen: Vec<Seen>,
    /// What collectors were told.
    spans: Vec<Value>,
    client: String,
}

impl Side {
    fn parts(&self, script: usize, name: &str, index: usize) -> Parts {
        let case = format!("{name}#{index}");
        // How much of a request that broke off got through is up to time.
        let is = |seen: &&Seen| seen.case == case && seen.whole;
        let seen: Vec<&Seen> = self.seen.iter().filter(is).collect();
        let logged = self.logged.iter().filter(|(of, _)| *of == case).map(|(_, line)| &**line);
        let mut parts = parts(&self.heard[script][index], &seen, logged, &self.client);
        spans::parts(&self.spans, &case, &self.client, &mut parts);
        parts
    }
}

/// A line of an access log, and the question it is of: those whose format begins with
/// `@%REQ(X-CASE)%|`, or has this as `@`.
fn logged(line: &str) -> Option<(String, String)> {
    let (case, rest) = match line.strip_prefix("{\"@\":\"") {
        Some(rest) => rest.split_once("\",")?,
        None => line.strip_prefix('@')?.split_once('|')?,
    };
    Some((case.to_owned(), rest.to_owned()))
}

/// What is wrong with a case, a line for each.
fn judge(case: &Case, script: usize, envoy: &Side, agent: &Side) -> Vec<String> {
    let mut wrong = Vec::new();
    for (index, ask) in case.asks.iter().enumerate() {
        let [theirs, ours] = [envoy, agent].map(|side| side.parts(script, case.name, index));
        let mut lines = Vec::new();
        let status = theirs.get("status").map_or("0", String::as_str);
        if status != ask.expected.to_string() {
            lines.push(format!("Envoy answers {status}, not {}: {theirs:#?}", ask.expected));
        }
        let end = theirs.get("end").map_or("", String::as_str);
        if ask.not_before_ms.is_some() && end != "closed in time" {
            lines.push(format!("Envoy's end is {end:?}"));
        }
        let mut own = vec![false; ask.deviations.len()];
        for (part, theirs, ours) in compare::differences(&theirs, &ours) {
            let name = compare::common_name(part);
            let is = |of: &str| name == of || name.starts_with(&format!("{of} "));
            let mut known = false;
            for (n, of) in ask.deviations.iter().enumerate() {
                own[n] |= is(&of.part);
                known |= is(&of.part);
            }
            if !known {
                lines.push(format!("{part}\n      Envoy: {theirs}\n      agent: {ours}"));
            }
        }
        let unused = ask.deviations.iter().zip(own).filter(|(of, used)| of.always && !used);
        for (Deviation { part, why, .. }, _) in unused {
            lines.push(format!("{part} differs no longer: {why}"));
        }
        wrong.extend(lines.into_iter().map(|line| format!("  {}\n    {line}", ask.label())));
    }
    wrong
}

/// Whom filters ask: see `tests/programs/authority.py`.
fn authority(pod: &Pod) -> Process {
    let mut command = Command::new(control_plane::PYTHON);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/programs/authority.py"));
    command.args([&AUTHORITY_GRPC.to_string(), &AUTHORITY_HTTP.to_string(), asking::JWKS]);
    pod.starts_listening("authority", command, &[AUTHORITY_GRPC, AUTHORITY_HTTP])
}

/// Serves `cases` to both, asks, and compares.
fn run(name: &str, cases: Vec<Case>) {
    let mut twins = Twins::start(name, true);
    let witnesses: Vec<Process> = twins.backends[..2]
        .iter()
        .map(|pod| {
            let mut command = Command::new(process::peer());
            command.args(["witness", &WITNESS.to_string(), pod.name()]);
            pod.starts_listening("witness", command, &[WITNESS])
        })
        .collect();
    let _authority = authority(&twins.backends[1]);
    let collector = spans::Collector::start(&twins.backends[2]);
    let ports = FIRST..;
    let scripts: Vec<Script> = cases
        .iter()
        .zip(ports)
        .map(|(case, port)| Script {
            name: case.name.to_owned(),
            address: format!("{}:{port}", ADDRESSES[0]).parse().expect("an address"),
            asks: case.numbered(),
        })
        .collect();
    let listeners = cases.iter().zip(&scripts).map(|(c, script)| c.listener_of(script.address));
    let mut resources = clusters(&twins, &cases);
    resources.extend(listeners);
    twins.serve(resources);
    let (asked, left): (Vec<_>, Vec<_>) =
        scripts.into_iter().zip(&cases).partition(|(_, case)| case.refused.is_none());
    let (scripts, asked): (Vec<Script>, Vec<&Case>) = asked.into_iter().unzip();
    let text = serde_json::to_string(&scripts).expect("plain data");
    let mut sides = twins.both(|pod| {
        let file = pod.node().directory().join(format!("{}-questions.json", pod.name()));
        fs::write(&file, &text).expect("write the questions");
        let ran = pod.run_peer(&["questions", file.to_str().expect("paths of a bed are text")]);
        let ran = ran.expect_success();
        let heard = ran.stdout().lines().map(|l| serde_json::from_str(l).expect("a line of JSON"));
        Side {
            refused: String::new(),
            logged: Vec::new(),
            heard: heard.collect(),
            seen: Vec::new(),
            spans: Vec::new(),
            client: pod.ip().to_string(),
        }
    });
    // A request that was given up may come to its end at the witness later.
    let mut lines = 0;
    eventually("the witnesses have said all", || {
        let logs: String = witnesses.iter().map(Process::log).collect();
        // Health checks never end.
        let count = logs.lines().filter(|line| !line.contains(CHECKS)).count()
            + twins
                .logged()
                .iter()
                .map(|log| log.lines().filter_map(logged).count())
                .sum::<usize>();
        let more = count != lines;
        lines = count;
        std::thread::sleep(Duration::from_millis(300));
        if more { Err("they still write") } else { Ok(()) }
    });
    let logs: Vec<String> = witnesses.iter().map(Process::log).collect();
    // One that is being written, of a check, may be there in part.
    let lines = logs.iter().flat_map(|log| log.split_inclusive('\n'));
    let lines = lines.filter(|line| line.ends_with('\n') && line.contains("\"seen\":"));
    let mut nowhere = Vec::new();
    for line in lines {
        let Some(seen) = Seen::of_line(line) else {
            nowhere.push(format!("a witness's line is torn: {line}"));
            continue;
        };
        let peer = seen.peer.to_string();
        let side = if peer == sides.0.client { &mut sides.0 } else { &mut sides.1 };
        if seen.case.is_empty() {
            nowhere.push(format!("a request of no case reached {}: {seen:?}", seen.by));
        }
        side.seen.push(seen);
    }
    [sides.0.spans, sides.1.spans] = collector.told([&sides.0.client, &sides.1.client], &asked);
    sides.0.refused = twins.rejections();
    sides.1.refused = reasons(&twins);
    let [of_envoy, of_agent] = twins.logged();
    sides.0.logged = of_envoy.lines().filter_map(logged).collect();
    sides.1.logged = of_agent.lines().filter_map(logged).collect();
    let (envoy, agent) = sides;
    let mut wrong = nowhere;
    for (index, case) in asked.iter().enumerate() {
        wrong.extend(spans::count(case, [&envoy.spans, &agent.spans]));
        let of = judge(case, index, &envoy, &agent);
        if !of.is_empty() {
            wrong.push(format!("{}\n{}", case.name, of.join("\n")));
        }
    }
    let by_envoy = by_envoy(&envoy.refused, &cases);
    for (_, case) in &left {
        let refusal = format!("listeners[{}]", case.name);
        let says = case.refused.unwrap_or_default();
        let line =
            agent.refused.split("listeners[").find(|l| l.starts_with(&format!("{}]", case.name)));
        if !line.is_some_and(|line| line.contains(says)) {
            wrong.push(format!("{}: must be refused with {refusal}…{says}", case.name));
        }
        if let Some(says) = case.refused_by_envoy
            && !by_envoy.get(case.name).is_some_and(|reason| reason.contains(says))
        {
            wrong.push(format!("{}: Envoy must refuse it, too: …{says}", case.name));
        }
    }
    for case in &asked {
        let by_agent = agent.refused.contains(&format!("[{}]", case.name));
        for (who, refused) in [("Envoy", by_envoy.contains_key(case.name)), ("the agent", by_agent)]
        {
            if refused {
                wrong.push(format!("{}: {who} refuses it", case.name));
            }
        }
    }
    let questions: usize = asked.iter().map(|case| case.asks.len()).sum();
    println!("{questions} questions of {} cases, {} refused", asked.len(), left.len());
    assert!(
        wrong.is_empty(),
        "{} of {} cases:\n{}\nrefused by Envoy:\n{}\nrefused by the agent:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n"),
        envoy.refused,
        agent.refused
    );
}

#[test]
fn envoy_and_the_agent_answer_the_corpus_alike() {
    let tables = [
        routing::cases(),
        policy::cases(),
        http::cases(),
        smuggling::cases(),
        changes::cases(),
        clients::cases(),
        resilience::cases(),
        filters::cases(),
        upstream::cases(),
        asking::cases(),
        access_logs::cases(),
        network::cases(),
        grpc_web::cases(),
        hostnames::cases(),
        mirroring::cases(),
        local_replies::cases(),
        timeouts::cases(),
        limits::cases(),
        compression::cases(),
        sessions::cases(),
        spans::cases(),
    ];
    let mut cases: Vec<Case> = tables.into_iter().flatten().collect();
    let word = std::env::var("CORPUS").unwrap_or_default();
    cases.retain(|case| case.name.contains(&word));
    assert!(!cases.is_empty(), "no row's name has `{word}`");
    run("corpus", cases);
}

/// What Envoy says of each case's listener where it tells what it has refused. A reason may show
/// the configuration, in lines of its own, before it comes to what is wrong.
fn by_envoy(refused: &str, cases: &[Case]) -> BTreeMap<&'static str, String> {
    let mut reasons: BTreeMap<&str, String> = BTreeMap::new();
    let mut of = None;
    for line in refused.lines() {
        if line.starts_with("[20") {
            of = None;
        }
        let line = line.split_once("listener(s) ").map_or(line, |(_, first)| first);
        let is = |case: &&Case| line.strip_prefix(case.name).is_some_and(|l| l.starts_with(": "));
        // One name may begin another.
        let begins = cases.iter().filter(is).max_by_key(|case| case.name.len());
        of = begins.map(|case| case.name).or(of);
        if let Some(name) = of {
            let reason = reasons.entry(name).or_default();
            reason.push_str(line);
            reason.push('\n');
        }
    }
    reasons
}

/// Every reason for which the agent has refused something: its answers to the control
/// plane tell the first ones only.
fn reasons(twins: &Twins) -> String {
    let status = twins.agent.status();
    let types = status["xds"]["types"].as_array().cloned().unwrap_or_default();
    let reasons = types.iter().filter_map(|of| of["nack_reasons"].as_array()).flatten();
    reasons.filter_map(Value::as_str).collect::<Vec<_>>().join("\n")
}
