//! Runtime values that routes ask for (RTDS), from a control plane that we did not
//! write.

use std::fs;

use serde_json::{Value, json};
use tests::{
    Agent, Allow, Inbound, Mesh, MeshConfig, Service, Testbed, config, control_plane::ControlPlane,
    eventually, mesh,
};

const TEAPOT: u16 = 418;

/// A mesh whose web service sends a fraction of the requests somewhere else.
struct Driven {
    control_plane: ControlPlane,
    rest: Vec<Value>,
    mesh: Mesh,
}

fn driven(name: &str, flags: impl Fn(&ControlPlane, &str) -> Vec<String>) -> Driven {
    let bed = Testbed::two_nodes(name);
    let (client, server) = (bed.node(1).pod("client").start(), bed.node(2).pod("web").start());
    let program = server.runs_nginx(mesh::WEB_PORT);
    let service = |name, vip| Service::http(name, vip).by_rds();
    let web = service("web", "10.96.0.10:80").backed_by(&server, mesh::WEB_PORT);
    let empty = service("empty", "10.96.0.11:80");
    let anything = Allow::policy("client-may-ask").from(&client);
    let inbound = Inbound::http(&server, mesh::WEB_PORT).allow(anything);
    let config = MeshConfig::new().service(&web).service(&empty).inbound(&inbound);
    let mut rest = config.resources();
    let routes = rest.iter_mut().find(|r| is_named(r, "RouteConfiguration", "web")).unwrap();
    let fraction = json!({ "default_value": { "numerator": 0 }, "runtime_key": "web.canary" });
    routes["virtual_hosts"][0]["routes"] = json!([
        {
            "match": { "prefix": "/weighted" },
            "route": { "prefix_rewrite": "/", "weighted_clusters": {
                "runtime_key_prefix": "web.weights",
                "clusters": [{ "name": "web", "weight": 1 }, { "name": "empty", "weight": 0 }],
            } },
        },
        {
            "match": { "prefix": "/", "runtime_fraction": fraction },
            "direct_response": { "status": TEAPOT },
        },
        { "match": { "prefix": "/" }, "route": { "cluster": "web" } },
    ]);
    let mut control_plane = ControlPlane::start(bed.node(1), &config);
    control_plane.serves(rest.clone());
    let agents = [(1, &client), (2, &server)].map(|(number, pod)| {
        let flags = flags(&control_plane, pod.name());
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        bed.node(number).agent().with_pod(pod).flags(&flags).start_unready()
    });
    agents.iter().for_each(Agent::wait_ready);
    let mesh = Mesh { client, server, config, agents, program, bed };
    Driven { control_plane, rest, mesh }
}

fn is_named(resource: &Value, kind: &str, name: &str) -> bool {
    let url = resource["@type"].as_str().unwrap_or_default();
    url.ends_with(kind) && resource["name"] == name
}

fn layer(name: &str, values: Value) -> Value {
    let kind = "type.googleapis.com/envoy.service.runtime.v3.Runtime";
    json!({ "@type": kind, "name": name, "layer": values })
}

impl Driven {
    fn serves(&mut self, layers: &[Value]) {
        self.control_plane.serves(self.rest.iter().chain(layers).cloned().collect());
    }

    fn answer(&self, path: &str) -> u16 {
        let response = self.mesh.client.curl(&format!("{}{path}", mesh::WEB)).send();
        response.status().unwrap_or_default()
    }

    /// Waits for one such answer, and checks that the next ones are all the same.
    fn always(&self, path: &str, status: u16) {
        eventually(&format!("/{path} is answered {status}"), || {
            let answer = self.answer(path);
            if answer == status { Ok(()) } else { Err(answer) }
        });
        for _ in 0..10 {
            assert_eq!(self.answer(path), status, "/{path}");
        }
    }

    fn entry(&self, key: &str) -> Value {
        self.mesh.near().config_dump()["runtime"]["entries"][key].clone()
    }
}

fn the_script(mode: &'static str) {
    let mut driven = driven(&format!("rtds-{mode}"), |control_plane, _| {
        let uri = control_plane.uri();
        let layers = ["--xds-runtime-layer", "base", "--xds-runtime-layer", "over"];
        ["--xds-server", &uri, "--xds-mode", mode]
            .into_iter()
            .chain(layers)
            .map(str::to_owned)
            .collect()
    });
    driven.always("", 200);
    driven.always("weighted", 200);

    // From none to all of the requests; the last layer that says something decides.
    let base =
        layer("base", json!({ "web": { "canary": 100, "weights": { "web": 0, "empty": 7 } } }));
    driven.serves(std::slice::from_ref(&base));
    driven.always("", TEAPOT);
    driven.always("weighted", 503);
    let over = |values| layer("over", json!({ "web.canary": values }));
    driven.serves(&[base.clone(), over(json!({ "numerator": 0, "denominator": "MILLION" }))]);
    driven.always("", 200);
    let entry = driven.entry("web.canary");
    assert_eq!(
        entry,
        json!({ "layer": "over", "value": { "numerator": 0, "denominator": 1_000_000 } })
    );
    assert_eq!(driven.entry("web.weights.empty"), json!({ "layer": "base", "value": 7.0 }));
    let page = driven.mesh.near().cli(&["config", "dump"]).expect_success();
    assert!(page.stdout().contains("0/1000000, from layer over"), "{page}");

    // Half of them: some go here, some there.
    driven.serves(&[base.clone(), over(json!(50))]);
    let mut seen = [200, TEAPOT].map(|status| (status, false));
    eventually("both are seen", || {
        let answer = driven.answer("");
        seen.iter_mut().filter(|(status, _)| *status == answer).for_each(|(_, seen)| *seen = true);
        if seen.iter().all(|(_, seen)| *seen) { Ok(()) } else { Err(seen) }
    });

    // What is no layer is refused by its name, and what was good stays.
    driven.serves(&[base.clone(), over(json!(100))]);
    driven.always("", TEAPOT);
    driven.serves(&[base.clone(), over(json!([0]))]);
    driven.control_plane.is_refused("runtime[over].layer");
    driven.always("", TEAPOT);
    let metrics = driven.mesh.near().metrics();
    let of = ["type=\"runtime\"", "result=\"nack\""];
    assert!(metrics.sum("mesh_xds_responses_total", &of) >= 1.0, "{}", metrics.text());

    driven.serves(&[layer("base", json!({})), over(json!(0))]);
    driven.always("", 200);
    driven.always("weighted", 200);
    if mode == "delta" {
        driven.serves(&[base]);
        driven.always("", TEAPOT);
        driven.serves(&[]);
        driven.always("", 200);
        assert!(driven.entry("web.canary").is_null());
    }
    driven.control_plane.expect_no_violations();
}

#[test]
fn the_runtime_moves_requests_over_state_of_the_world() {
    the_script("sotw");
}

#[test]
fn the_runtime_moves_requests_over_delta() {
    the_script("delta");
}

/// Flags for a bootstrap file with these layers.
fn bootstrapped(control_plane: &ControlPlane, node: &str, layers: &Value) -> Vec<String> {
    let path = control_plane.bootstrap(node);
    let mut bootstrap: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    bootstrap["layered_runtime"] = json!({ "layers": layers });
    config::replace(&path, &bootstrap.to_string());
    vec!["--bootstrap".to_owned(), path.display().to_string()]
}

#[test]
fn layers_of_a_bootstrap_file_go_before_each_other_in_their_order() {
    let rtds = json!({ "name": "pushed", "rtds_config": { "ads": {} } });
    let layers = json!([
        { "name": "fixed", "static_layer": { "web": { "canary": 100 } } },
        { "name": "rtds", "rtds_layer": rtds },
        { "name": "by-hand", "admin_layer": {} },
    ]);
    let mut driven =
        driven("rtds-bootstrap", |control_plane, node| bootstrapped(control_plane, node, &layers));
    driven.always("", TEAPOT);
    driven.serves(&[layer("pushed", json!({ "web": { "canary": 0 } }))]);
    driven.always("", 200);
    assert_eq!(driven.entry("web.canary"), json!({ "layer": "rtds", "value": 0.0 }));
    driven.serves(&[]);
    driven.always("", TEAPOT);
    driven.control_plane.expect_no_violations();
}

#[test]
fn a_layer_may_come_from_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("runtime.json");
    let holds = |canary: Value| {
        let resources = [layer("filed", json!({ "web": { "canary": canary } }))];
        let response = json!({ "version_info": canary.to_string(), "resources": resources });
        config::replace(&file, &response.to_string());
    };
    holds(json!(100));
    let source = json!({ "path_config_source": { "path": file } });
    let rtds = json!({ "name": "filed", "rtds_config": source });
    let layers = json!([{ "name": "file", "rtds_layer": rtds }]);
    let driven =
        driven("rtds-file", |control_plane, node| bootstrapped(control_plane, node, &layers));
    driven.always("", TEAPOT);
    holds(json!(0));
    driven.always("", 200);
    // What is wrong in it is said, and what was good stays.
    holds(json!(["x"]));
    driven.mesh.near().logs(&["runtime[filed].layer"]);
    driven.always("", 200);
    holds(json!({ "numerator": 100 }));
    driven.always("", TEAPOT);
}
