//! Filters that are configured by themselves (ECDS), from a control plane that we did
//! not write.

use serde_json::{Value, json};
use tests::{
    Agent, Allow, Inbound, Mesh, MeshConfig, Service, Testbed, control_plane::ControlPlane,
    conversation::Conversation, eventually, mesh,
};

pub(crate) const RBAC: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";
const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
pub(crate) const FILTER: &str = "web-policy";

/// A mesh whose web server's policy is a resource of its own.
struct Driven {
    control_plane: ControlPlane,
    /// All but the filter's configuration.
    rest: Vec<Value>,
    mesh: Mesh,
}

impl Driven {
    fn start(name: &str, mode: &str, source: Value, configured: Option<Value>) -> Self {
        let bed = Testbed::two_nodes(name);
        let (client, server) = (bed.node(1).pod("client").start(), bed.node(2).pod("web").start());
        let program = server.runs_nginx(mesh::WEB_PORT);
        let web = Service::http("web", "10.96.0.10:80").backed_by(&server, mesh::WEB_PORT).by_rds();
        let inbound = Inbound::http(&server, mesh::WEB_PORT).allow(Allow::policy("nobody"));
        let config = MeshConfig::new().service(&web).inbound(&inbound);
        let mut rest = config.resources();
        discover(&mut rest, source);
        let mut control_plane = ControlPlane::start(bed.node(1), &config);
        control_plane.serves(rest.iter().cloned().chain(configured).collect());
        let agents = [(1, &client), (2, &server)].map(|(number, pod)| {
            let uri = control_plane.uri();
            let flags = ["--xds-server", &uri, "--xds-mode", mode];
            bed.node(number).agent().with_pod(pod).flags(&flags).start_unready()
        });
        let mesh = Mesh { client, server, config, agents, program, bed };
        Self { control_plane, rest, mesh }
    }

    fn ready(self) -> Self {
        self.mesh.agents.iter().for_each(Agent::wait_ready);
        self
    }

    fn serves(&mut self, configured: Option<Value>) {
        self.control_plane.serves(self.rest.iter().cloned().chain(configured).collect());
    }

    fn answers(&self, method: &str, status: u16) {
        eventually(&format!("{method} is answered {status}"), || {
            let response = self.mesh.client.curl(mesh::WEB).method(method).send();
            if response.status() == Some(status) { Ok(()) } else { Err(format!("{response:?}")) }
        });
    }

    fn filters(&self) -> Value {
        xds_type(self.mesh.far(), "extension_configs")
    }
}

/// Puts a filter that is configured by itself in the place of each inbound RBAC filter.
fn discover(resources: &mut [Value], source: Value) {
    for resource in resources {
        let chains = resource.get_mut("filter_chains").and_then(Value::as_array_mut);
        for chain in chains.into_iter().flatten() {
            let filters = chain.pointer_mut("/filters/0/typed_config/http_filters");
            for filter in filters.and_then(Value::as_array_mut).into_iter().flatten() {
                if filter["typed_config"]["@type"] == RBAC {
                    *filter = json!({ "name": FILTER, "config_discovery": source });
                }
            }
        }
    }
}

fn ads() -> Value {
    json!({ "config_source": { "ads": {}, "resource_api_version": "V3" }, "type_urls": [RBAC] })
}

pub(crate) fn configured(typed_config: Value) -> Option<Value> {
    let kind = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";
    Some(json!({ "@type": kind, "name": FILTER, "typed_config": typed_config }))
}

pub(crate) fn rbac(action: &str, permission: Value) -> Value {
    let policy = json!({ "permissions": [permission], "principals": [{ "any": true }] });
    json!({ "@type": RBAC, "rules": { "action": action, "policies": { "p": policy } } })
}

fn only_get() -> Value {
    let method = json!({ "name": ":method", "string_match": { "exact": "GET" } });
    rbac("ALLOW", json!({ "header": method }))
}

fn xds_type(agent: &Agent, kind: &str) -> Value {
    let status = agent.status();
    let types = status["xds"]["types"].as_array().cloned().unwrap_or_default();
    types.into_iter().find(|of| of["kind"] == kind).unwrap_or_default()
}

/// Asks once more on a connection that lives on, and reads the whole answer.
fn gets(conversation: &mut Conversation, status: &str) {
    conversation.says("GET / HTTP/1.1\r\nhost: web\r\n\r\n");
    conversation.hears(format!("HTTP/1.1 {status}"));
    let body = if status == "200" { "hello from" } else { "access denied" };
    conversation.hears(body);
}

fn the_script(mode: &str) {
    let allowed = configured(only_get());
    let mut driven = Driven::start(&format!("ecds-{mode}"), mode, ads(), allowed.clone()).ready();
    driven.answers("GET", 200);
    driven.answers("DELETE", 403);
    let vip = "10.96.0.10:80".parse().unwrap();
    let mut kept: Vec<_> = (0..3).map(|_| driven.mesh.client.connects(vip)).collect();
    kept.iter_mut().for_each(|connection| gets(connection, "200"));

    // Denied, and allowed again: on the same connections, request by request.
    driven.serves(configured(rbac("DENY", json!({ "any": true }))));
    driven.answers("GET", 403);
    kept.iter_mut().for_each(|connection| gets(connection, "403"));
    driven.serves(allowed.clone());
    driven.answers("GET", 200);
    kept.iter_mut().for_each(|connection| gets(connection, "200"));

    // While it changes and goes on allowing, no request fails.
    let client = driven.mesh.client.clone();
    let load = std::thread::spawn(move || {
        client.run_peer(&["load", "10.96.0.10:80", "web", "4", "3"]).expect_success()
    });
    let all = configured(rbac("ALLOW", json!({ "any": true })));
    let mut changes = 0;
    while !load.is_finished() {
        driven.serves([&all, &allowed][changes % 2].clone());
        driven.answers("DELETE", [200, 403][changes % 2]);
        changes += 1;
    }
    let ran = load.join().unwrap();
    assert!(ran.json()["requests"].as_u64().unwrap() > 0 && changes > 1, "{ran} {changes}");
    driven.serves(allowed.clone());
    driven.answers("DELETE", 403);

    // What can't be honoured is refused by its name, and what was good stays.
    let mut bad = only_get();
    bad["track_per_rule_stats"] = true.into();
    driven.serves(configured(bad));
    driven.control_plane.is_refused("extension_configs[web-policy].track_per_rule_stats");
    driven.mesh.client.curl(mesh::WEB).expect_status(200);
    driven.mesh.client.curl(mesh::WEB).method("DELETE").expect_status(403);
    let row = driven.filters();
    assert_eq!((&row["refusing"], &row["accepted"]), (&true.into(), &1.into()), "{row}");
    let metrics = driven.mesh.far().metrics();
    let of = ["type=\"extension_configs\"", "result=\"nack\""];
    assert!(metrics.sum("mesh_xds_responses_total", &of) >= 1.0, "{}", metrics.text());
    driven.serves(configured(json!({ "@type": ROUTER })));
    driven.control_plane.is_refused("the router can't be discovered");
    driven.mesh.client.curl(mesh::WEB).expect_status(200);
    driven.serves(allowed);
    eventually("nothing is refused any more", || {
        let row = driven.filters();
        if row["refusing"] == false { Ok(()) } else { Err(row) }
    });
    let dump = driven.mesh.far().config_dump();
    assert_eq!(
        dump["extension_configs"][FILTER]["type_name"],
        &RBAC["type.googleapis.com/".len()..]
    );
    let page = driven.mesh.far().cli(&["config", "dump"]).expect_success();
    assert!(page.stdout().contains(FILTER), "{page}");
    kept.iter_mut().for_each(|connection| gets(connection, "200"));
    driven.control_plane.expect_no_violations();
}

#[test]
fn a_filter_is_configured_by_itself_over_state_of_the_world() {
    the_script("sotw");
}

#[test]
fn a_filter_is_configured_by_itself_over_delta() {
    the_script("delta");
}

#[test]
fn a_filter_whose_configuration_is_removed_fails_closed_or_falls_back() {
    let mut driven = Driven::start("ecds-removed", "delta", ads(), configured(only_get())).ready();
    driven.answers("GET", 200);
    driven.serves(None);
    driven.answers("GET", 500);
    let line = driven.mesh.far().logs_access(&["NFCF"]);
    assert_eq!(line["response_code"], 500, "{line}");

    // The same place with a default: nobody is let in by it, and nobody is left in doubt.
    let mut source = ads();
    source["default_config"] = rbac("DENY", json!({ "any": true }));
    let mut resources = driven.mesh.config.resources();
    discover(&mut resources, source);
    driven.rest = resources;
    driven.serves(None);
    driven.answers("GET", 403);
    driven.serves(configured(only_get()));
    driven.answers("GET", 200);
    driven.answers("DELETE", 403);
    driven.serves(None);
    driven.answers("GET", 403);

    // Without a control plane it is as it was last.
    driven.serves(configured(only_get()));
    driven.answers("GET", 200);
    driven.control_plane.expect_no_violations();
    assert!(driven.mesh.agents[1].terminate().success());
    driven.control_plane.dies();
    driven.mesh.agents[1].restart();
    driven.answers("GET", 200);
    driven.mesh.client.curl(mesh::WEB).method("DELETE").expect_status(403);
}

#[test]
fn a_listener_waits_for_its_filters_configuration_unless_told_otherwise() {
    // Over the state of the world a server does not say that it has no such resource.
    let mut driven = Driven::start("ecds-warming", "sotw", ads(), None);
    driven.mesh.far().logs(&["admin is served"]);
    eventually("the listener waits", || {
        let listeners = xds_type(driven.mesh.far(), "listeners");
        let waits = &listeners["warming"][0]["waits_for"];
        if *waits == format!("extension_configs[{FILTER}]") { Ok(()) } else { Err(listeners) }
    });
    driven.serves(configured(only_get()));
    let mut driven = driven.ready();
    driven.answers("GET", 200);
    driven.answers("DELETE", 403);

    let mut source = ads();
    source["default_config"] = rbac("DENY", json!({ "any": true }));
    source["apply_default_config_without_warming"] = true.into();
    let mut resources = driven.mesh.config.resources();
    discover(&mut resources, source);
    for resource in &mut resources {
        let text = resource.to_string().replace(FILTER, "other-policy");
        *resource = serde_json::from_str(&text).unwrap();
    }
    driven.rest = resources;
    driven.serves(None);
    driven.answers("GET", 403);
    let row = driven.filters();
    assert_eq!(row["accepted"], 0, "{row}");
    driven.control_plane.expect_no_violations();
}
