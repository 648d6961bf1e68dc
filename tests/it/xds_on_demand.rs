//! What a request needs and the agent does not have is asked for while the request waits:
//! virtual hosts (VHDS) and clusters (on-demand CDS), from a control plane that we did not
//! write.

use serde_json::{Value, json};
use tests::{
    Agent, Inbound, MeshConfig, Service, Testbed, control_plane::ControlPlane, eventually, mesh,
};

use crate::xds::named;

const HOST: &str = "type.googleapis.com/envoy.config.route.v3.VirtualHost";
const FILTER: &str = "envoy.filters.http.on_demand";

pub(crate) struct Driven {
    pub(crate) control_plane: ControlPlane,
    pub(crate) mesh: tests::Mesh,
}

/// A mesh with service `web`, after `shape` has been at its resources.
pub(crate) fn driven(name: &str, shape: impl FnOnce(&mut Vec<Value>)) -> Driven {
    let bed = Testbed::two_nodes(name);
    let (client, server) = (bed.node(1).pod("client").start(), bed.node(2).pod("web").start());
    let program = server.runs_nginx(mesh::WEB_PORT);
    let later = Service::http("later", "10.96.0.77:80").backed_by(&server, mesh::WEB_PORT);
    let web = Service::http("web", "10.96.0.10:80").backed_by(&server, mesh::WEB_PORT).by_rds();
    let plain = Service::http("plain", "10.96.0.20:80").backed_by(&server, mesh::WEB_PORT).by_rds();
    let inbound = Inbound::http(&server, mesh::WEB_PORT).open();
    let config = MeshConfig::new().service(&web).service(&plain).service(&later).inbound(&inbound);
    let mut control_plane = ControlPlane::start(bed.node(1), &config);
    let mut resources = config.resources();
    // What is asked for is a cluster; nothing must lead to it beforehand.
    resources.retain(|resource| !resource["name"].to_string().contains("outbound-later"));
    shape(&mut resources);
    let asked = ["web/shop.test", "web/shared", "later"];
    control_plane.keeps_for_who_asks(&asked, json!({ "web/shared": ["web/by-alias.test"] }));
    control_plane.serves(resources);
    let agents = [(1, &client), (2, &server)].map(|(number, pod)| {
        let flags = ["--xds-server", &control_plane.uri(), "--xds-mode", "delta"];
        bed.node(number).agent().with_pod(pod).flags(&flags).start_unready()
    });
    agents.iter().for_each(Agent::wait_ready);
    let mesh = tests::Mesh { client, server, config, agents, program, bed };
    Driven { control_plane, mesh }
}

/// Puts the filter before the router of a service's listener.
pub(crate) fn with_filter(resources: &mut [Value], service: &str, config: Value) {
    let listener = named(resources, "Listener", &format!("outbound-{service}-0"));
    let manager = &mut listener["filter_chains"][0]["filters"][0]["typed_config"];
    let mut config = config;
    config["@type"] =
        "type.googleapis.com/envoy.extensions.filters.http.on_demand.v3.OnDemand".into();
    let filters = manager["http_filters"].as_array_mut().unwrap();
    filters.insert(0, json!({ "name": FILTER, "typed_config": config }));
}

pub(crate) fn ads() -> Value {
    json!({ "ads": {}, "resource_api_version": "V3" })
}

pub(crate) fn host(name: &str, domain: &str, action: Value) -> Value {
    let mut route = json!({ "match": { "prefix": "/" } });
    route.as_object_mut().unwrap().extend(action.as_object().unwrap().clone());
    json!({ "@type": HOST, "name": name, "domains": [domain], "routes": [route] })
}

pub(crate) fn to_web() -> Value {
    json!({ "route": { "cluster": "web" } })
}

pub(crate) fn lookups(agent: &Agent, kind: &str, result: &str) -> f64 {
    let labels = [format!("type=\"{kind}\""), format!("result=\"{result}\"")];
    let labels: Vec<_> = labels.iter().map(String::as_str).collect();
    agent.metrics().sum("mesh_on_demand_lookups_total", &labels)
}

/// Every name that was subscribed to, of that type.
fn subscribed(control_plane: &ControlPlane, kind: &str) -> Vec<String> {
    let of_type = |request: &Value| request["type"].as_str().is_some_and(|url| url.ends_with(kind));
    let requests = control_plane.requests().into_iter().filter(of_type);
    let names =
        requests.flat_map(|request| request["names"].as_array().cloned().unwrap_or_default());
    names.filter_map(|name| name.as_str().map(str::to_owned)).collect()
}

#[test]
fn a_virtual_host_is_asked_for_by_the_first_request_that_needs_it() {
    let mut resources = Vec::new();
    let Driven { mut control_plane, mesh } = driven("xds-vhds", |all| {
        for service in ["web", "plain"] {
            let routes = named(all, "RouteConfiguration", service);
            routes["vhds"] = json!({ "config_source": ads() });
            routes["virtual_hosts"][0]["domains"] = json!(["own.test"]);
        }
        with_filter(all, "web", json!({}));
        all.push(host("web/pushed.test", "pushed.test", to_web()));
        all.push(host("web/shop.test", "shop.test", to_web()));
        all.push(host("web/shared", "by-alias.test", to_web()));
        resources.clone_from(all);
    });
    let get = |host: &str| mesh.client.curl(mesh::WEB).header(&format!("Host: {host}"));
    let agent = mesh.near();

    // What is there already is not asked for.
    get("own.test").expect_status(200);
    get("pushed.test").expect_status(200);
    assert_eq!(lookups(agent, "virtual_hosts", "found"), 0.0);
    // What is not there is, once, by name or by alias.
    get("shop.test").expect_status(200);
    get("SHOP.test").expect_status(200);
    get("by-alias.test").expect_status(200);
    assert_eq!(lookups(agent, "virtual_hosts", "found"), 2.0);
    // What there is none of is answered, and forgotten.
    for i in 0..5 {
        get(&format!("unknown-{i}.test")).expect_status(404);
    }
    agent.logs_access(&["unknown-3.test", "\"NR\""]);
    assert_eq!(lookups(agent, "virtual_hosts", "absent"), 5.0);
    assert_eq!(agent.metrics().sum("mesh_on_demand_names", &[]), 2.0);
    assert_eq!(agent.metrics().sum("mesh_on_demand_held", &[]), 0.0);
    // Without the filter nothing is asked for.
    let plain = mesh.client.curl("http://10.96.0.20/").header("Host: shop.test");
    plain.expect_status(404);
    let names = subscribed(&control_plane, "VirtualHost");
    assert!(names.contains(&"web".to_owned()) && names.contains(&"plain".to_owned()), "{names:?}");
    assert!(!names.iter().any(|name| name.starts_with("plain/")), "{names:?}");

    let reached = |host: &str, status: u16| {
        eventually(&format!("{host} answers {status}"), || {
            let response = get(host).send();
            if response.status() == Some(status) { Ok(()) } else { Err(format!("{response:?}")) }
        });
    };
    // Changed, removed, and there again.
    let teapot = json!({ "direct_response": { "status": 418 } });
    let mut changed = resources.clone();
    changed.retain(|resource| resource["name"] != "web/shop.test");
    changed.push(host("web/shop.test", "shop.test", teapot));
    control_plane.serves(changed.clone());
    reached("shop.test", 418);
    changed.pop();
    control_plane.serves(changed);
    reached("shop.test", 404);
    get("by-alias.test").expect_status(200);
    control_plane.serves(resources);
    reached("shop.test", 200);

    // Down: what is there stays, the rest is not waited for without end.
    control_plane.dies();
    get("shop.test").expect_status(200);
    get("nowhere.test").expect_status(404);
    control_plane.run();
    reached("by-alias.test", 200);
    control_plane.expect_no_violations();
}

#[test]
fn a_cluster_is_asked_for_by_the_first_request_to_it() {
    let odcds = json!({ "source": ads(), "timeout": "2s" });
    let Driven { mut control_plane, mesh } = driven("xds-odcds", |all| {
        for service in ["web", "plain"] {
            let strict = json!({
                "match": { "prefix": "/strict" },
                "route": { "cluster_header": "x-cluster" },
                "typed_per_filter_config": { FILTER: {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.on_demand.v3.PerRouteConfig",
                } },
            });
            named(all, "RouteConfiguration", service)["virtual_hosts"][0]["routes"] = json!([
                strict,
                { "match": { "prefix": "/fixed" }, "route": { "cluster": "later" } },
                { "match": { "prefix": "/" }, "route": { "cluster_header": "x-cluster" } },
            ]);
        }
        named(all, "RouteConfiguration", "plain")["virtual_hosts"][0]["routes"]
            .as_array_mut()
            .unwrap()
            .remove(1);
        with_filter(all, "web", json!({ "odcds": odcds }));
    });
    let to = |path: &str, cluster: &str| {
        mesh.client
            .curl(&format!("http://10.96.0.10{path}"))
            .header(&format!("x-cluster: {cluster}"))
    };
    let agent = mesh.near();

    to("/", "web").expect_status(200);
    assert_eq!(lookups(agent, "clusters", "found"), 0.0);
    // Not to be had: for want of a name, by the route's own word, without the filter.
    mesh.client.curl(mesh::WEB).expect_status(503);
    to("/strict", "later").expect_status(503);
    mesh.client.curl("http://10.96.0.20/").header("x-cluster: later").expect_status(503);
    let names = subscribed(&control_plane, "Cluster");
    assert!(!names.contains(&"later".to_owned()), "{names:?}");
    // To be had; and nobody has.
    to("/", "later").expect_status(200);
    assert_eq!(lookups(agent, "clusters", "found"), 1.0);
    to("/strict", "later").expect_status(200);
    to("/fixed", "nowhere").expect_status(200);
    to("/", "nowhere").expect_status(503);
    agent.logs_access(&["\"NC\"", "nowhere"]);
    assert_eq!(lookups(agent, "clusters", "absent"), 2.0);
    assert_eq!(agent.metrics().sum("mesh_on_demand_names", &[]), 1.0);

    // A new stream asks for it again, and for all the others.
    control_plane.drops_streams();
    eventually("the new stream asks for all and for one", || {
        let asked = control_plane
            .requests()
            .into_iter()
            .any(|request| request["names"] == json!(["*", "later"]) && request["nonce"] == "");
        if asked { Ok(()) } else { Err(control_plane.requests()) }
    });
    to("/", "later").expect_status(200);
    to("/", "web").expect_status(200);
    // Nobody to ask: the filter's own time, and no longer.
    control_plane.dies();
    to("/", "elsewhere").expect_status(503);
    assert_eq!(lookups(agent, "clusters", "timeout"), 1.0);
    to("/", "later").expect_status(200);
    control_plane.expect_no_violations();
}
