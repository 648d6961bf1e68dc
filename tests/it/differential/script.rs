//! The script: what happens to a configuration in its life, step by step.

use serde_json::{Value, json};
use tests::{
    probe::{Answers, Probe},
    twins::{ADDRESSES, MUTE_PORT, Refused, Twins, WEB_PORT, WHO_PORT},
};

use super::world::{
    CLUSTER, ENDPOINTS, LISTENER, ROUTES, World, all_to, answers, assignment, eds_cluster,
};

/// The pair, and what it is served.
pub(super) struct Play {
    pub(super) twins: Twins,
    pub(super) world: World,
}

pub(super) type Check<'a> = Box<dyn Fn(&Answers) -> bool + 'a>;

pub(super) fn from(who: &[&str]) -> Check<'static> {
    let who: Vec<String> = who.iter().map(|who| format!("hello from {who}")).collect();
    Box::new(move |answers| answers.is_status(200) && answers.texts() == who)
}

pub(super) fn says(text: &'static str) -> Check<'static> {
    Box::new(move |answers| answers.texts() == [text])
}

pub(super) fn status(status: u16) -> Check<'static> {
    Box::new(move |answers| answers.is_status(status))
}

pub(super) fn nothing() -> Check<'static> {
    Box::new(Answers::is_nothing)
}

impl Play {
    pub(super) fn start(name: &str, delta: bool) -> Self {
        Self { twins: Twins::start(name, delta), world: World::default() }
    }

    pub(super) fn push(&mut self) -> Refused {
        self.twins.serve(self.world.resources())
    }

    /// Both must answer the same, and what is said here.
    fn agree(&mut self, what: &str, expected: &[(Probe, Check<'_>)]) {
        let probes: Vec<Probe> = expected.iter().map(|(probe, _)| probe.clone()).collect();
        self.twins.agree(what, &probes, |answers| {
            let wrong = expected.iter().zip(answers).find(|((_, holds), got)| !holds(got));
            wrong.map_or(Ok(()), |((probe, _), got)| Err(format!("{}: {got}", probe.label())))
        });
    }

    /// Served, accepted by both, and then so.
    pub(super) fn step(&mut self, what: &str, expected: &[(Probe, Check<'_>)]) {
        println!("{what}");
        self.push().expect(&[]);
        self.agree(what, expected);
    }

    /// Served, refused by both in these types, and then so.
    pub(super) fn refused(&mut self, what: &str, types: &[&str], expected: &[(Probe, Check<'_>)]) {
        println!("{what}");
        self.push().expect(types);
        self.agree(what, expected);
    }

    pub(super) fn web(&self, backend: usize) -> std::net::SocketAddr {
        self.twins.backends[backend].at(WEB_PORT)
    }
}

fn one() -> String {
    format!("{}:80", ADDRESSES[0])
}

fn two() -> String {
    format!("{}:80", ADDRESSES[1])
}

fn opaque() -> String {
    format!("{}:9000", ADDRESSES[3])
}

pub(super) fn get(path: &str) -> Probe {
    Probe::get(&one(), path)
}

/// A listener with routes by RDS to an EDS cluster, one with its own, and an opaque one.
fn beginning(play: &mut Play) {
    let (a, who) = (play.web(0), play.twins.backends[0].at(WHO_PORT));
    play.world.by_rds("one", &one(), "routes").routes("routes", all_to("web")).eds("web", &[a]);
    play.step("a first service", &[(get("/"), from(&["web-a"]))]);
    play.world.inline("two", &two(), answers(418, "a teapot"));
    play.world.tcp("opaque", &opaque(), "who").eds("who", &[who]);
    let heard = format!("I am {} {}", who.ip(), who.port());
    play.step(
        "two more",
        &[
            (get("/"), from(&["web-a"])),
            (Probe::get(&two(), "/"), status(418)),
            (Probe::tcp(&opaque()), Box::new(move |answers| answers.texts() == [heard.as_str()])),
        ],
    );
}

fn changes(play: &mut Play) {
    let [a, b, c] = [0, 1, 2].map(|backend| play.web(backend));
    play.world.routes("routes", answers(200, "mine"));
    play.step("routes change", &[(get("/"), says("mine"))]);
    play.world.routes("routes", all_to("web")).put(ENDPOINTS, "web", assignment(&[b]));
    play.step("routes and endpoints change", &[(get("/"), from(&["web-b"]))]);
    play.world.put(ENDPOINTS, "web", assignment(&[a, b, c]));
    let all = ["web-a", "web-b", "web-c"];
    play.step("more endpoints", &[(get("/").times(9), from(&all))]);

    play.world.remove(CLUSTER, "web").remove(ENDPOINTS, "web");
    play.world.eds("next", &[c]).routes("routes", all_to("next"));
    play.step("one cluster takes another's place", &[(get("/"), from(&["web-c"]))]);
    play.world.fixed("next", &[a]).remove(ENDPOINTS, "next");
    play.step("an EDS cluster becomes a static one", &[(get("/"), from(&["web-a"]))]);
    play.world.eds("next", &[b]);
    play.step("and back", &[(get("/"), from(&["web-b"]))]);

    play.world.by_rds("one", &format!("{}:80", ADDRESSES[2]), "routes");
    play.step(
        "a listener moves",
        &[(get("/"), nothing()), (Probe::get(ADDRESSES[2], "/"), from(&["web-b"]))],
    );
    play.world.by_rds("one", &two(), "routes").inline("two", &one(), answers(418, "a teapot"));
    println!("two listeners trade places: Envoy, which takes one after the other, refuses");
    play.push().expect_of_envoy_alone(LISTENER, "duplicate address");
    let (_, agent) = play.twins.ask(&[get("/"), Probe::get(&two(), "/")]);
    assert!(agent[0].is_status(418) && agent[1].is_status(200), "{} {}", agent[0], agent[1]);
    play.world.remove(LISTENER, "one").remove(LISTENER, "two");
    play.step("both go", &[(get("/"), nothing()), (Probe::get(&two(), "/"), nothing())]);
    play.world.by_rds("one", &one(), "routes").inline("two", &two(), answers(418, "a teapot"));
    play.step("and come back", &[(get("/"), from(&["web-b"]))]);
}

fn matching(play: &mut Play) {
    let a = play.web(0);
    let to = |text: &str| json!({ "status": 200, "body": { "inline_string": text } });
    let header = |name: &str, rest: Value| {
        let mut matcher = json!({ "name": name });
        matcher.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        json!({ "prefix": "/header", "headers": [matcher] })
    };
    let table = [
        (json!({ "path": "/exact" }), "exact"),
        (json!({ "path": "/EXACT/loud", "case_sensitive": false }), "case"),
        (json!({ "safe_regex": { "regex": "/reg[0-9]+" } }), "regex"),
        (header("x-a", json!({ "string_match": { "exact": "one" } })), "header-exact"),
        (header("x-a", json!({ "string_match": { "prefix": "pre" } })), "header-prefix"),
        (header("x-a", json!({ "string_match": { "suffix": "fix" } })), "header-suffix"),
        (header("x-a", json!({ "string_match": { "contains": "mid" } })), "header-contains"),
        (
            header("x-a", json!({ "string_match": { "safe_regex": { "regex": "r+" } } })),
            "header-regex",
        ),
        (header("x-n", json!({ "range_match": { "start": 10, "end": 20 } })), "header-range"),
        (header("x-p", json!({ "present_match": true })), "header-present"),
        (
            header("x-a", json!({ "string_match": { "exact": "not" }, "invert_match": true })),
            "header-inverted",
        ),
        (header(":method", json!({ "string_match": { "exact": "POST" } })), "method"),
        (json!({ "prefix": "/pre" }), "prefix"),
        (json!({ "prefix": "/header" }), "no header"),
    ];
    let mut routes: Vec<Value> = table
        .iter()
        .map(|(matches, text)| json!({ "match": matches, "direct_response": to(text) }))
        .collect();
    let rewrite = |from: &str, to: &str| {
        let action = json!({ "cluster": "next", "prefix_rewrite": to });
        json!({ "match": { "prefix": from }, "route": action })
    };
    // What is created, or elsewhere, has a location.
    let created = json!({ "status": 201, "body": { "inline_string": "made" } });
    routes.push(json!({ "match": { "prefix": "/made" }, "direct_response": created }));
    routes.push(rewrite("/rewritten/", "/echo-request/"));
    routes.push(rewrite("/exactly", "/echo-request"));
    let mut host = rewrite("/host", "/echo-request");
    host["route"]["host_rewrite_literal"] = "other.test".into();
    routes.push(host);
    play.world.eds("next", &[a]).routes("routes", routes.into());
    let h = |value: &str| get("/header").header(value);
    let rewritten = |path: &'static str| (get(path), status(200));
    play.step(
        "matches and rewrites",
        &[
            (get("/made?of=it"), says("made")),
            (get("/exact"), says("exact")),
            (get("/exact?query=1"), says("exact")),
            (get("/exact/more"), status(404)),
            (get("/Exact"), status(404)),
            (get("/exact/LOUD"), says("case")),
            (get("/reg12"), says("regex")),
            (get("/reg12?q"), says("regex")),
            (get("/reg12x"), status(404)),
            (h("x-a: one"), says("header-exact")),
            (h("X-A: one"), says("header-exact")),
            (h("x-a: prefixed"), says("header-prefix")),
            (h("x-a: a fix"), says("header-suffix")),
            (h("x-a: amidst"), says("header-contains")),
            (h("x-a: rrr"), says("header-regex")),
            (h("x-a: rrrx"), says("header-inverted")),
            (h("x-n: 10").header("x-a: not"), says("header-range")),
            (h("x-n: 20").header("x-a: not"), says("no header")),
            (h("x-n: 1x").header("x-a: not"), says("no header")),
            (h("x-p;").header("x-a: not"), says("header-present")),
            (h("x-a: not"), says("no header")),
            (h("x-a: not").method("POST"), says("method")),
            (h("x-a: one").header("x-a: two"), status(200)),
            (get("/prefix"), says("prefix")),
            (get("/%70refix"), status(404)),
            (get("/elsewhere"), status(404)),
            (get("/rewritten/a?b=c"), says("GET /echo-request/a?b=c host=10.96.0.1")),
            (get("/exactly/a"), says("GET /echo-request/a host=10.96.0.1")),
            (get("/hostess").method("PUT"), says("PUT /echo-requestess host=other.test")),
            rewritten("/rewritten/../a"),
            rewritten("/rewritten//a"),
            rewritten("/rewritten/%2e%2e/a"),
        ],
    );

    let domain = |domains: &[&str], text: &str| {
        let route = json!({ "match": { "prefix": "/" }, "direct_response": to(text) });
        json!({ "name": text, "domains": domains, "routes": [route] })
    };
    let hosts = json!([
        domain(&["exact.test"], "exact"),
        domain(&["*.test", "*.long.test"], "suffix"),
        domain(&["*.longer.long.test"], "longest"),
        domain(&["pre.*"], "prefix"),
        domain(&["with.port:80"], "port"),
    ]);
    play.world.at(ROUTES, "routes")["virtual_hosts"] = hosts;
    let host = |name: &str| get("/").header(&format!("Host: {name}"));
    play.step(
        "virtual hosts",
        &[
            (host("exact.test"), says("exact")),
            (host("EXACT.test"), says("exact")),
            (host("exact.test:80"), status(404)),
            (host("a.test"), says("suffix")),
            (host("a.long.test"), says("suffix")),
            (host("a.longer.long.test"), says("longest")),
            (host("pre.fixed"), says("prefix")),
            (host("with.port:80"), says("port")),
            (host("with.port"), status(404)),
            (get("/"), status(404)),
        ],
    );
    play.world.at(ROUTES, "routes")["virtual_hosts"] = json!([]);
    play.step("no virtual host", &[(get("/"), status(404))]);
    play.world.routes("routes", all_to("next"));
    play.step("everything again", &[(get("/"), from(&["web-a"]))]);
}

fn weights_and_timeouts(play: &mut Play) {
    let (a, b) = (play.web(0), play.web(1));
    let mute = play.twins.backends[0].at(MUTE_PORT);
    let weighted = json!({ "clusters": [
        { "name": "next", "weight": 80 },
        { "name": "side", "weight": 20 },
        { "name": "never", "weight": 0 },
    ] });
    play.world.eds("side", &[b]).eds("mute", &[mute]).eds("next", &[a]);
    play.world.routes(
        "routes",
        json!([
            {
                "match": { "prefix": "/mute" },
                "route": { "cluster": "mute", "timeout": "0.3s" },
            },
            { "match": { "prefix": "/" }, "route": { "weighted_clusters": weighted } },
        ]),
    );
    // Of 200, a fair 80:20 coin gives less than 60 % or more than 95 % less often than
    // once in 10^9 runs.
    let loosely: Check<'_> = Box::new(|answers| (0.6..0.95).contains(&answers.share_of("web-a")));
    play.step(
        "weights and a timeout",
        &[(get("/").times(200), loosely), (get("/mute"), status(504))],
    );
    play.world.remove(CLUSTER, "mute").remove(ENDPOINTS, "mute");
    play.world.remove(CLUSTER, "side").remove(ENDPOINTS, "side");
    play.world.routes("routes", all_to("next"));
    play.step("one cluster again", &[(get("/").times(3), from(&["web-a"]))]);
}

fn bad_resources(play: &mut Play) {
    let still = || [(get("/"), from(&["web-a"])), (Probe::get(&two(), "/"), status(418))];
    let good = play.world.clone();
    let (a, b) = (play.web(0), play.web(1));

    let regex =
        json!({ "match": { "safe_regex": { "regex": "/(" } }, "route": { "cluster": "next" } });
    play.world.routes("routes", json!([regex]));
    play.refused("a regex that is none", &[ROUTES], &still());
    play.world = good.clone();
    play.step("mended", &still());

    play.world.inline("again", &one(), answers(500, "not this"));
    play.refused("an address that is taken", &[LISTENER], &still());
    play.world = good.clone();
    play.step("mended", &still());

    play.world.at(LISTENER, "two")["filter_chains"][0]["filters"] = json!([]);
    play.world.remove(LISTENER, "two");
    play.world.put(LISTENER, "two", json!({ "traffic_direction": "OUTBOUND" }));
    play.refused("a listener without an address", &[LISTENER], &still());
    play.world = good.clone();
    play.step("mended", &still());

    play.world.put(CLUSTER, "", eds_cluster());
    play.refused("a cluster without a name", &[CLUSTER], &still());
    play.world = good.clone();
    play.step("mended", &still());

    play.world.fixed("bad", &[b]);
    play.world.at(CLUSTER, "bad")["connect_timeout"] = "-1s".into();
    play.refused("a timeout below zero", &[CLUSTER], &still());
    play.world = good.clone();
    play.step("mended", &still());

    for (what, type_, kind) in [
        ("bytes that are no listener", "listener.v3.Listener", LISTENER),
        ("bytes that are no cluster", "cluster.v3.Cluster", CLUSTER),
        ("bytes that are no routes", "route.v3.RouteConfiguration", ROUTES),
    ] {
        let url = format!("type.googleapis.com/envoy.config.{type_}");
        // A field of wire type 2 that is longer than what follows.
        let name = if kind == ROUTES { "routes" } else { "garbage" };
        if kind == ROUTES {
            play.world.remove(ROUTES, "routes");
        }
        let raw = json!({ "url": url, "as": url, "name": name, "base64": "Cv8B" });
        play.world.0.insert((kind, name.to_owned()), json!({ "raw": raw }));
        play.refused(what, &[kind], &still());
        play.world = good.clone();
        play.step("mended", &still());
    }

    let listeners = "type.googleapis.com/envoy.config.listener.v3.Listener";
    let clusters = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
    let raw =
        json!({ "url": clusters, "as": listeners, "name": "guest", "base64": "CgVndWVzdA==" });
    play.world.0.insert((LISTENER, "guest".to_owned()), json!({ "raw": raw }));
    play.refused("a cluster among listeners", &[LISTENER], &still());
    play.world = good.clone();
    play.step("mended", &still());

    play.world.routes(
        "routes",
        json!([
            { "match": { "prefix": "/lost" }, "route": { "cluster": "nowhere" } },
            { "match": { "prefix": "/" }, "route": { "cluster": "next" } },
        ]),
    );
    play.step("a route to nowhere", &[(get("/"), from(&["web-a"])), (get("/lost"), status(503))]);
    play.world.eds("nowhere", &[b]);
    play.step(
        "which comes to be",
        &[(get("/"), from(&["web-a"])), (get("/lost"), from(&["web-b"]))],
    );
    play.world.remove(CLUSTER, "nowhere").remove(ENDPOINTS, "nowhere");
    play.step("and goes", &[(get("/"), from(&["web-a"])), (get("/lost"), status(503))]);
    play.world.tcp("lost", &format!("{}:9000", ADDRESSES[2]), "nowhere");
    let lost = || Probe::tcp(&format!("{}:9000", ADDRESSES[2]));
    play.step(
        "an opaque listener to nowhere",
        &[(lost(), nothing()), (get("/"), from(&["web-a"]))],
    );
    play.world = good.clone();
    play.world.eds("next", &[a]);
    play.step("mended", &still());
}

/// What the agent refuses by name where Envoy goes on.
fn unsupported(play: &mut Play) {
    let good = play.world.clone();
    let before = [(get("/"), from(&["web-a"]))];
    let route = json!({ "cluster": "nowhere", "internal_redirect_policy": {} });
    play.world.routes("routes", json!([{ "match": { "prefix": "/" }, "route": route }]));
    println!("internal redirects: not supported, and refused by name");
    play.push().expect_of_agent_alone(ROUTES, "internal_redirect_policy");
    let (envoy, agent) = play.twins.ask(&[get("/")]);
    assert!(envoy[0].is_status(503), "{}", envoy[0]);
    assert!(before[0].1(&agent[0]), "the last good one stays: {}", agent[0]);
    play.world = good.clone();
    play.step("mended", &before);

    println!("timeout budgets: not supported, and refused by name");
    play.world.at(CLUSTER, "next")["track_cluster_stats"] =
        serde_json::json!({ "timeout_budgets": true });
    play.push().expect_of_agent_alone(CLUSTER, "track_cluster_stats");
    play.world = good;
    play.step("mended", &before);
}

fn streams(play: &mut Play) {
    let b = play.web(1);
    let before = [(get("/"), from(&["web-a"]))];
    println!("the stream is dropped");
    play.twins.control_plane.drops_streams();
    play.twins.settle().expect(&[]);
    play.agree("after the stream was dropped", &before);
    play.world.put(ENDPOINTS, "next", assignment(&[b]));
    play.step("a change on the new stream", &[(get("/"), from(&["web-b"]))]);
    println!("another server: nonces from 1 again, other versions of the same");
    play.twins.restart_control_plane("reborn");
    play.agree("after the restart", &[(get("/"), from(&["web-b"]))]);
    let a = play.web(0);
    play.world.put(ENDPOINTS, "next", assignment(&[a]));
    play.step("a change by the new server", &before);
}

fn removals(play: &mut Play) {
    let a = play.web(0);
    let good = play.world.clone();
    let served = || [(get("/"), from(&["web-a"])), (Probe::get(&two(), "/"), status(418))];
    play.world.remove(LISTENER, "two");
    play.step(
        "a listener goes",
        &[(get("/"), from(&["web-a"])), (Probe::get(&two(), "/"), nothing())],
    );
    play.world = good.clone();
    play.step("and comes back", &served());
    play.world.put(ENDPOINTS, "next", assignment(&[]));
    play.step("no endpoint", &[(get("/"), status(503))]);
    play.world = good.clone();
    play.step("and one again", &served());
    play.world.remove(ENDPOINTS, "next");
    play.step("the endpoints' resource goes", &[(get("/"), from(&["web-a"]))]);
    play.world.eds("next", &[a]);
    play.step("and comes back", &served());
    play.world.remove(ROUTES, "routes");
    play.step("the routes' resource goes: RDS has no removal", &served());
    play.world = good.clone();
    play.step("and comes back", &served());
    play.world.remove(CLUSTER, "next").remove(ENDPOINTS, "next");
    // The agent waits 15 s for the routes to lead elsewhere, as they would in a move.
    play.step("a cluster goes to which a route still leads", &[(get("/"), status(503))]);
    play.world = good.clone();
    play.step("and comes back", &served());
    play.world.remove(LISTENER, "one").remove(ROUTES, "routes");
    play.world.remove(CLUSTER, "next").remove(ENDPOINTS, "next");
    play.step("a whole service goes", &[(get("/"), nothing())]);
    play.world = good;
    play.step("and comes back", &served());
}

fn lives(play: &mut Play) {
    let brief = format!("{}:80", ADDRESSES[2]);
    play.world.inline("brief", &brief, answers(200, "alive"));
    let resource = play.world.at(LISTENER, "brief").clone();
    let mortal = json!({ "ttl": 2.0, "resource": resource });
    play.world.0.insert((LISTENER, "brief".to_owned()), mortal);
    play.twins.control_plane.behaves("heartbeats", true.into());
    let probe = Probe::get(&brief, "/");
    play.step("a listener with a time to live", &[(probe.clone(), says("alive"))]);
    tests::never(std::time::Duration::from_secs(4), "it dies while it is confirmed", || {
        let (envoy, agent) = play.twins.ask(std::slice::from_ref(&probe));
        [envoy, agent].into_iter().flatten().find(|answers| !answers.is_status(200))
    });
    play.twins.control_plane.behaves("heartbeats", false.into());
    play.twins.settle().expect(&[]);
    play.agree("nobody confirms it", &[(probe.clone(), nothing())]);
    play.world.inline("brief", &brief, answers(200, "again"));
    play.step("it comes back for good", &[(probe, says("again"))]);
}

fn the_script(name: &str, delta: bool) {
    let mut play = Play::start(name, delta);
    beginning(&mut play);
    changes(&mut play);
    matching(&mut play);
    weights_and_timeouts(&mut play);
    bad_resources(&mut play);
    unsupported(&mut play);
    streams(&mut play);
    removals(&mut play);
    lives(&mut play);
    play.twins.control_plane.expect_no_violations();
}

#[test]
fn envoy_and_the_agent_do_the_same_in_state_of_the_world() {
    the_script("diff-script-sotw", false);
}

#[test]
fn envoy_and_the_agent_do_the_same_in_delta() {
    the_script("diff-script-delta", true);
}
