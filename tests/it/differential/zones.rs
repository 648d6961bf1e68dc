//! Traffic that stays in its zone, with a local cluster in the bootstrap that both have.

use serde_json::{Value, json};
use tests::{
    probe::Answers,
    twins::{ADDRESSES, Twins},
};

use super::{
    script::{Check, Play, from, get, status},
    world::{CLUSTER, ENDPOINTS, World, all_to, eds_cluster, endpoint},
};

const SENDERS: &str = "senders";
const EXTENSIONS: &str = "type.googleapis.com/envoy.extensions.load_balancing_policies";

/// Of a zone: how many send from there, and how many of them are well.
type Sending = (&'static str, usize, usize);

fn in_zone(zone: &str, endpoints: &[Value]) -> Value {
    json!({ "locality": { "region": "here", "zone": zone }, "lb_endpoints": endpoints })
}

/// Nobody ever asks these anything.
fn sends(world: &mut World, zones: &[Sending]) {
    let mut port = 1;
    let zones = zones.iter().map(|(zone, all, well)| {
        let endpoints = (0..*all).map(|at| {
            port += 1;
            let mut endpoint = endpoint(([10, 9, 9, 9], port).into());
            endpoint["health_status"] = if at < *well { "HEALTHY" } else { "UNHEALTHY" }.into();
            endpoint
        });
        in_zone(zone, &endpoints.collect::<Vec<_>>())
    });
    let zones: Vec<Value> = zones.collect();
    world.put(ENDPOINTS, SENDERS, json!({ "endpoints": zones }));
}

fn some_of_each(one: &'static str, other: u16) -> Check<'static> {
    let text = format!("hello from {one}");
    Box::new(move |answers: &Answers| {
        let mut rest = answers.to_string();
        let taken = rest.contains(&text) && rest.contains(&other.to_string());
        rest = rest.replace(&text, "");
        taken && !rest.contains("hello")
    })
}

impl Play {
    /// The backends of these zones take the traffic; by number, with their health.
    fn takes(&mut self, zones: &[(&str, &[(usize, &str)])]) {
        let zones = zones.iter().map(|(zone, backends)| {
            let endpoints = backends.iter().map(|(backend, health)| {
                let mut endpoint = endpoint(self.web(*backend));
                endpoint["health_status"] = (*health).into();
                endpoint
            });
            in_zone(zone, &endpoints.collect::<Vec<_>>())
        });
        let zones: Vec<Value> = zones.collect();
        self.world.at(CLUSTER, "web")["load_assignment"]["endpoints"] = zones.into();
    }

    fn balances(&mut self, change: Value) {
        // By EDS, Envoy would wait for endpoints with each change.
        let assignment = self.world.at(CLUSTER, "web")["load_assignment"].take();
        self.world.fixed("web", &[]);
        let cluster = self.world.at(CLUSTER, "web");
        cluster["load_assignment"] = assignment;
        cluster.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    }

    fn balances_by_zone(&mut self, config: Value) {
        self.balances(json!({ "common_lb_config": { "zone_aware_lb_config": config } }));
    }

    fn balances_by_policy(&mut self, name: &str, config: &Value) {
        let config = json!({
            "@type": format!("{EXTENSIONS}.{name}"),
            "locality_lb_config": { "zone_aware_lb_config": config },
        });
        let policy = json!({ "typed_extension_config": { "name": "x", "typed_config": config } });
        self.balances(json!({ "load_balancing_policy": { "policies": [policy] } }));
    }

    fn from(&mut self, what: &str, who: &[&str]) {
        self.step(what, &[(get("/").times(40), from(who))]);
    }
}

fn local_cluster(bootstrap: &mut Value) {
    bootstrap["node"]["locality"] = json!({ "region": "here", "zone": "a" });
    bootstrap["cluster_manager"] = json!({ "local_cluster_name": SENDERS });
    let mut cluster = eds_cluster();
    cluster["name"] = SENDERS.into();
    bootstrap["static_resources"]["clusters"].as_array_mut().unwrap().push(cluster);
}

const ALL: [&str; 3] = ["web-a", "web-b", "web-c"];
const EVEN: &[Sending] = &[("a", 1, 1), ("b", 1, 1), ("c", 1, 1)];
const WELL: &str = "HEALTHY";

#[test]
fn envoy_and_the_agent_keep_traffic_in_its_zone_alike() {
    let mut world = World::default();
    sends(&mut world, EVEN);
    let twins = Twins::start_by_bootstrap("diff-zones", world.resources(), local_cluster);
    let mut play = Play { twins, world };
    let a = play.web(0);
    let address = format!("{}:80", ADDRESSES[0]);
    play.world.by_rds("one", &address, "routes").routes("routes", all_to("web")).fixed("web", &[a]);
    let everywhere: &[(&str, &[(usize, &str)])] =
        &[("a", &[(0, WELL)]), ("b", &[(1, WELL)]), ("c", &[(2, WELL)])];
    play.takes(everywhere);
    play.from("three are few: anywhere", &ALL);
    let any_size = json!({ "min_cluster_size": 1 });
    play.balances_by_zone(any_size.clone());
    play.from("the own zone bears it", &["web-a"]);
    play.balances_by_zone(json!({ "min_cluster_size": 1, "routing_enabled": { "value": 0 } }));
    play.from("none of it by zone", &ALL);
    for policy in ["round_robin.v3.RoundRobin", "least_request.v3.LeastRequest", "random.v3.Random"]
    {
        play.balances_by_policy(policy, &any_size);
        play.from(policy, &["web-a"]);
    }
    sends(&mut play.world, &[("a", 2, 2)]);
    play.from("they all send from one zone: anywhere", &ALL);
    let force = json!({ "min_cluster_size": 1, "force_local_zone": {} });
    play.balances_by_policy("round_robin.v3.RoundRobin", &force);
    play.from("unless that is forced", &["web-a"]);
    let force = json!({ "min_cluster_size": 1, "force_local_zone": { "min_size": 2 } });
    play.balances_by_policy("round_robin.v3.RoundRobin", &force);
    play.from("and it is not by one that is too small", &ALL);
    play.balances_by_zone(any_size.clone());
    sends(&mut play.world, &[("b", 2, 2), ("c", 2, 2)]);
    play.from("nobody sends from here: anywhere", &ALL);

    // Two thirds are sent from b, which takes a half: it has nothing left for a.
    sends(&mut play.world, &[("a", 1, 1), ("b", 2, 2)]);
    play.takes(&[("b", &[(0, WELL)]), ("c", &[(1, WELL)])]);
    play.from("where endpoints are left over", &["web-b"]);
    play.takes(&[("a", &[(2, "UNHEALTHY"), (0, WELL)]), ("b", &[(1, WELL)])]);
    play.from("its healthy ones are enough", &["web-a"]);
    play.takes(everywhere);
    sends(&mut play.world, &[("a", 1, 1), ("b", 2, 0)]);
    play.from("who sends is mostly ill: anywhere", &ALL);
    let fails = json!({ "min_cluster_size": 1, "fail_traffic_on_panic": true });
    play.balances_by_zone(fails);
    play.step("or nowhere", &[(get("/").times(9), status(503))]);
    play.balances_by_zone(any_size);
    sends(&mut play.world, EVEN);
    // Degraded ones of other zones are not asked.
    play.takes(&[("a", &[(0, WELL)]), ("b", &[(1, "DEGRADED")]), ("c", &[(2, "DEGRADED")])]);
    play.step("degraded", &[(get("/").times(60), some_of_each("web-a", 503))]);

    // Two thirds send from here, where a third takes it: the half.
    sends(&mut play.world, &[("a", 2, 2), ("b", 1, 1)]);
    play.takes(everywhere);
    play.from("by halves", &["web-a", "web-c"]);
    let (envoy, agent) = play.twins.ask(&[get("/").times(400)]);
    for answers in [&envoy[0], &agent[0]] {
        let share = answers.share_of("web-a");
        // Of 400, a share that is off by this much comes once in 10^8 runs.
        assert!((share - 0.5).abs() < 0.15, "{share}");
    }
    play.twins.control_plane.expect_no_violations();
}
