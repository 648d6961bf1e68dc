//! Scoped routes: each request finds its route configuration by a header, scopes and their
//! routes come from a control plane that we did not write (SRDS, RDS).

use serde_json::{Value, json};
use tests::{
    Agent, Inbound, Mesh, MeshConfig, Service, Testbed, control_plane::ControlPlane, eventually,
    mesh,
};

use crate::xds::{named, xds_type};

const SCOPE: &str = "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration";
pub(crate) const ROUTES: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
const PLAIN: &str = "http://10.96.0.20/";

/// Has a service's requests find their scope by `x-scope: vip=<key>`.
pub(crate) fn scope_by_header(resources: &mut [Value], service: &str, on_demand: bool) {
    let ads = json!({ "ads": {}, "resource_api_version": "V3" });
    let listener = named(resources, "Listener", &format!("outbound-{service}-0"));
    let manager = &mut listener["filter_chains"][0]["filters"][0]["typed_config"];
    manager.as_object_mut().unwrap().remove("rds").unwrap();
    manager["scoped_routes"] = json!({
        "name": service,
        "scope_key_builder": { "fragments": [{ "header_value_extractor": {
            "name": "X-Scope",
            "element_separator": ",",
            "element": { "separator": "=", "key": "vip" },
        } }] },
        "rds_config_source": ads,
        "scoped_rds": { "scoped_rds_config_source": ads },
    });
    if on_demand {
        let kind = "type.googleapis.com/envoy.extensions.filters.http.on_demand.v3.OnDemand";
        let filter = json!({ "name": "on_demand", "typed_config": { "@type": kind } });
        manager["http_filters"].as_array_mut().unwrap().insert(0, filter);
    }
}

pub(crate) fn scope(name: &str, key: &str, more: Value) -> Value {
    let mut scope =
        json!({ "@type": SCOPE, "name": name, "key": { "fragments": [{ "string_key": key }] } });
    scope.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    scope
}

pub(crate) fn answering(name: &str, status: u16) -> Value {
    let route = json!({ "match": { "prefix": "/" }, "direct_response": { "status": status } });
    json!({ "name": name, "virtual_hosts": [{ "name": "h", "domains": ["*"], "routes": [route] }] })
}

fn found(agent: &Agent) -> f64 {
    let of = ["type=\"routes\"", "result=\"found\""];
    agent.metrics().sum("mesh_on_demand_lookups_total", &of)
}

fn the_script(mode: &str) {
    let bed = Testbed::two_nodes(&format!("xds-scopes-{mode}"));
    let (client, server) = (bed.node(1).pod("client").start(), bed.node(2).pod("web").start());
    let program = server.runs_nginx(mesh::WEB_PORT);
    let service = |name, vip| Service::http(name, vip).backed_by(&server, mesh::WEB_PORT).by_rds();
    let web = service("web", "10.96.0.10:80");
    let plain = service("plain", "10.96.0.20:80");
    let inbound = Inbound::http(&server, mesh::WEB_PORT).open();
    let config = MeshConfig::new().service(&web).service(&plain).inbound(&inbound);
    let mut rest = config.resources();
    scope_by_header(&mut rest, "web", true);
    scope_by_header(&mut rest, "plain", false);
    let mut later = answering("later", 202);
    later["@type"] = ROUTES.into();
    rest.push(later);
    let to_web = scope("a-web", "web", json!({ "route_configuration_name": "web" }));
    let rest: Vec<_> = rest
        .into_iter()
        .chain([
            scope("own", "own", json!({ "route_configuration": answering("own", 418) })),
            scope(
                "later",
                "later",
                json!({ "on_demand": true, "route_configuration_name": "later" }),
            ),
            scope(
                "none",
                "none",
                json!({ "on_demand": true, "route_configuration_name": "nowhere" }),
            ),
        ])
        .collect();
    let with = |more: &[&Value]| -> Vec<Value> {
        rest.iter().chain(more.iter().copied()).cloned().collect()
    };
    let mut control_plane = ControlPlane::start(bed.node(1), &config);
    control_plane.serves(with(&[&to_web]));
    let agents = [(1, &client), (2, &server)].map(|(number, pod)| {
        let flags = ["--xds-server", &control_plane.uri(), "--xds-mode", mode];
        bed.node(number).agent().with_pod(pod).flags(&flags).start_unready()
    });
    agents.iter().for_each(Agent::wait_ready);
    let mesh = Mesh { client, server, config, agents, program, bed };
    let get = |scope: &str| mesh.client.curl(mesh::WEB).header(&format!("x-scope: {scope}"));
    let reached = |scope: &str, status: u16| {
        eventually(&format!("{scope} answers {status}"), || {
            let response = get(scope).send();
            if response.status() == Some(status) { Ok(()) } else { Err(format!("{response:?}")) }
        });
    };
    let asked_for = |control_plane: &ControlPlane, name: &str| {
        control_plane.requests().iter().any(|request| {
            request["type"] == ROUTES
                && request["names"].as_array().is_some_and(|names| names.contains(&name.into()))
        })
    };
    let agent = mesh.near();

    // By key, and nothing where there is none.
    get("vip=web").expect_status(200);
    get("a=b,vip=own,vip=web").expect_status(418);
    get("vip=unknown").expect_status(404);
    get("web").expect_status(404);
    mesh.client.curl(mesh::WEB).expect_status(404);
    agent.logs_access(&["\"NR\""]);
    assert_eq!(xds_type(agent, "scoped_routes")["accepted"], 4);
    let dump = agent.config_dump();
    assert_eq!(dump["scoped_routes"]["a-web"]["key"], json!(["web"]));
    let page = agent.cli(&["config", "dump"]).expect_success();
    assert!(page.stdout().contains("a-web"), "{page}");

    // On demand: only where the filter is, only once, and only what there is.
    mesh.client.curl(PLAIN).header("x-scope: vip=later").expect_status(404);
    assert!(!asked_for(&control_plane, "later"), "{:#?}", control_plane.requests());
    get("vip=later").expect_status(202);
    get("vip=later").expect_status(202);
    assert_eq!(found(agent), 1.0);
    assert!(asked_for(&control_plane, "later"), "{:#?}", control_plane.requests());
    mesh.client.curl(PLAIN).header("x-scope: vip=later").expect_status(202);
    get("vip=none").expect_status(404);
    assert_eq!((found(agent), agent.metrics().sum("mesh_on_demand_held", &[])), (1.0, 0.0));

    // Two with one key: refused by name, and what serves goes on.
    let twin = scope("b-twin", "web", json!({ "route_configuration": answering("twin", 418) }));
    control_plane.serves(with(&[&to_web, &twin]));
    control_plane.is_refused("scoped_routes[b-twin].key: is that of scope `a-web`");
    get("vip=web").expect_status(200);
    // Another key, another scope for the first one, and gone.
    let twin = scope("b-twin", "web", json!({ "route_configuration": answering("twin", 409) }));
    let moved = scope("a-web", "moved", json!({ "route_configuration_name": "web" }));
    control_plane.serves(with(&[&moved, &twin]));
    reached("vip=moved", 200);
    reached("vip=web", 409);
    control_plane.serves(with(&[&moved]));
    reached("vip=web", 404);
    get("vip=moved").expect_status(200);

    // Down, and there again.
    control_plane.dies();
    get("vip=moved").expect_status(200);
    get("vip=later").expect_status(202);
    control_plane.run();
    control_plane.serves(with(&[&to_web]));
    reached("vip=web", 200);
    reached("vip=moved", 404);
    control_plane.expect_no_violations();
}

#[test]
fn each_request_finds_its_scope_by_the_state_of_the_world() {
    the_script("sotw");
}

#[test]
fn each_request_finds_its_scope_by_delta() {
    the_script("delta");
}
