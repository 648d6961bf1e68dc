//! What serves by health and overload, and what comes in types of its own: filters'
//! configurations, runtime values, virtual hosts.

use serde_json::{Value, json};
use tests::twins::{ADDRESSES, Twins};

use super::{
    script::{Play, from, get, says, status},
    world::{ENDPOINTS, FILTER, HOST, LISTENER, ROUTES, RUNTIME, World, all_to, answers, endpoint},
};

const LAYER: &str = "pushed";
const RBAC: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";

fn one() -> String {
    format!("{}:80", ADDRESSES[0])
}

impl Play {
    fn backend(&self, backend: usize, health: &str) -> Value {
        let mut endpoint = endpoint(self.web(backend));
        endpoint["health_status"] = health.into();
        endpoint
    }

    fn assigned(&mut self, priorities: &[&[Value]], policy: Value) {
        let endpoints = priorities.iter().enumerate();
        let endpoints = endpoints.map(|(n, of)| json!({ "priority": n, "lb_endpoints": of }));
        let endpoints: Vec<Value> = endpoints.collect();
        self.world.put(ENDPOINTS, "web", json!({ "endpoints": endpoints, "policy": policy }));
    }
}

fn health_and_overload(play: &mut Play) {
    let a = play.web(0);
    play.world.by_rds("one", &one(), "routes").routes("routes", all_to("web")).eds("web", &[a]);
    play.step("a service", &[(get("/"), from(&["web-a"]))]);
    let is = |play: &Play, n, health| play.backend(n, health);
    for (what, priorities, expected) in [
        ("the higher priority is well", [["HEALTHY"], ["HEALTHY"]], "web-a"),
        ("it is unhealthy", [["UNHEALTHY"], ["HEALTHY"]], "web-b"),
        ("it drains", [["DRAINING"], ["UNKNOWN"]], "web-b"),
        ("it is degraded", [["DEGRADED"], ["HEALTHY"]], "web-b"),
        ("the lower one is degraded as well", [["DEGRADED"], ["DEGRADED"]], "web-a"),
        ("it is well again", [["UNKNOWN"], ["HEALTHY"]], "web-a"),
    ] {
        let [[first], [second]] = priorities;
        let (first, second) = (is(play, 0, first), is(play, 1, second));
        play.assigned(&[&[first], &[second]], json!({}));
        play.step(what, &[(get("/").times(9), from(&[expected]))]);
    }
    let (well, ill) = ([is(play, 0, "HEALTHY"), is(play, 2, "HEALTHY")], is(play, 1, "TIMEOUT"));
    play.assigned(&[&[well[0].clone(), well[1].clone(), ill.clone()]], json!({}));
    play.step("one of three is unhealthy", &[(get("/").times(12), from(&["web-a", "web-c"]))]);
    let (half, next) = ([well[0].clone(), ill], [well[1].clone()]);
    play.assigned(&[&half, &next], json!({}));
    // 70:30; one alone answers 60 in a row less often than once in 10^9 runs.
    play.step("half a priority spills over", &[(get("/").times(60), from(&["web-a", "web-c"]))]);
    let ill = [is(play, 0, "UNHEALTHY"), is(play, 1, "UNHEALTHY")];
    play.assigned(&[&ill], json!({}));
    play.step("all are unhealthy: panic", &[(get("/").times(40), from(&["web-a", "web-b"]))]);

    let drops = |percent: u32| {
        let share = json!({ "numerator": percent, "denominator": "HUNDRED" });
        json!({ "drop_overloads": [{ "category": "shed", "drop_percentage": share }] })
    };
    // The agent heeds it at once; Envoy when the endpoints change as well.
    for (percent, endpoints, expected) in [(0, 2, 200), (100, 1, 503), (0, 2, 200)] {
        play.assigned(&[&well[..endpoints]], drops(percent));
        let expected = [(get("/").times(10), status(expected))];
        play.step(&format!("{percent} % are dropped"), &expected);
    }
    play.world.eds("web", &[a]);
}

fn rbac(action: &str, permission: Value) -> Value {
    let policy = json!({ "permissions": [permission], "principals": [{ "any": true }] });
    let rules = json!({ "action": action, "policies": { "policy": policy } });
    json!({ "typed_config": { "@type": RBAC, "rules": rules } })
}

fn filters(play: &mut Play, delta: bool) {
    let source = json!({ "ads": {}, "resource_api_version": "V3" });
    let discovery = json!({ "config_source": source, "type_urls": [RBAC] });
    let manager = play.world.at(LISTENER, "one");
    let filters = manager.pointer_mut("/filter_chains/0/filters/0/typed_config/http_filters");
    let filters = filters.and_then(Value::as_array_mut).expect("a connection manager");
    filters.insert(0, json!({ "name": "policy", "config_discovery": discovery }));
    let gets = json!({ "header": { "name": ":method", "string_match": { "exact": "GET" } } });
    for (what, config, statuses) in [
        ("a policy of its own: GET", rbac("ALLOW", gets.clone()), [200, 403]),
        ("anything", rbac("ALLOW", json!({ "any": true })), [200, 200]),
        ("nothing", rbac("DENY", json!({ "any": true })), [403, 403]),
        ("all but GET", rbac("DENY", gets), [403, 200]),
    ] {
        play.world.put(FILTER, "policy", config);
        let [for_get, for_put] = statuses.map(status);
        let put = get("/echo-request").method("PUT");
        play.step(what, &[(get("/"), for_get), (put, for_put)]);
    }
    if delta {
        play.world.remove(FILTER, "policy");
        play.step("no policy is no permission", &[(get("/"), status(500))]);
        play.world.put(FILTER, "policy", rbac("ALLOW", json!({ "any": true })));
        play.step("and one again", &[(get("/"), status(200))]);
    }
}

fn layer(canary: u32) -> Value {
    json!({ "layer": { "canary": canary } })
}

fn runtime(play: &mut Play) {
    play.world.put(FILTER, "policy", rbac("ALLOW", json!({ "any": true })));
    let fraction = json!({ "default_value": { "numerator": 50 }, "runtime_key": "canary" });
    let mut canary = answers(418, "canary")[0].clone();
    canary["match"]["runtime_fraction"] = fraction;
    play.world.routes("routes", json!([canary, all_to("web")[0]]));
    play.step("none of the requests by runtime", &[(get("/").times(10), status(200))]);
    for (share, expected) in [(100, 418), (0, 200)] {
        play.world.put(RUNTIME, LAYER, layer(share));
        let expected = [(get("/").times(10), status(expected))];
        play.step(&format!("{share} % by runtime"), &expected);
    }
}

fn hosts(play: &mut Play) {
    play.world.routes("routes", all_to("web"));
    let routes = play.world.at(ROUTES, "routes");
    routes["virtual_hosts"][0]["domains"] = json!(["own.test"]);
    let source = json!({ "ads": {}, "resource_api_version": "V3" });
    routes["vhds"] = json!({ "config_source": source });
    let host = |text: &str| {
        let routes = answers(200, text);
        json!({ "domains": ["pushed.test"], "routes": routes })
    };
    let to = |name: &str| get("/").header(&format!("Host: {name}"));
    play.world.put(HOST, "routes/pushed.test", host("pushed"));
    play.step(
        "a virtual host by itself",
        &[
            (to("own.test"), status(200)),
            (to("pushed.test"), says("pushed")),
            (to("other.test"), status(404)),
        ],
    );
    play.world.put(HOST, "routes/pushed.test", host("changed"));
    play.step("it changes", &[(to("pushed.test"), says("changed"))]);
    // A second one with its domain is refused by both, and the first one stays.
    play.world.put(HOST, "routes/second.test", host("second"));
    let still = [(to("pushed.test"), says("changed"))];
    play.refused("a host with another's domain", &[HOST], &still);
    play.world.remove(HOST, "routes/second.test");
    play.step("it is gone", &[(to("pushed.test"), says("changed"))]);
    play.world.remove(HOST, "routes/pushed.test");
    play.step("it goes", &[(to("own.test"), status(200)), (to("pushed.test"), status(404))]);
}

fn the_features(name: &str, delta: bool) {
    let mut world = World::default();
    world.put(RUNTIME, LAYER, layer(0));
    let twins = Twins::start_with_runtime(name, delta, LAYER, world.resources());
    let mut play = Play { twins, world };
    health_and_overload(&mut play);
    filters(&mut play, delta);
    runtime(&mut play);
    if delta {
        hosts(&mut play);
    }
    play.twins.control_plane.expect_no_violations();
}

#[test]
fn envoy_and_the_agent_heed_health_filters_and_runtime_alike_in_state_of_the_world() {
    the_features("diff-features-sotw", false);
}

#[test]
fn envoy_and_the_agent_heed_health_filters_runtime_and_hosts_alike_in_delta() {
    the_features("diff-features-delta", true);
}
