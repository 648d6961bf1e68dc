//! Configuration from several sources at once: files, static resources, services.

use std::{fs, path::Path, time::Duration};

use serde_json::{Value, json};
use tests::{
    Agent, MeshConfig, Pod, Service, Testbed,
    bootstrap::{self, Bootstrap},
    config,
    control_plane::{self, ControlPlane, Port},
    eventually, eventually_within, never,
    pki::{Credentials, Pki, Validity},
};

use crate::{
    sds::{certificate, roots, serial},
    xds::named,
    xds_filters::{FILTER, RBAC, configured as configured_filter, rbac},
    xds_on_demand::host,
    xds_scopes::{ROUTES, answering, scope, scope_by_header},
};

const PATIENCE: Duration = Duration::from_secs(40);

fn configured(port: u16, backend: &str) -> MeshConfig {
    let web = Service::http("web", &format!("10.96.0.10:{port}"));
    MeshConfig::new().service(&web.backed_by_plain(backend.parse().unwrap()).by_rds())
}

/// Those resources whose type ends so, as the file of one type, with this instead of
/// `ads: {}`.
fn file_of(config: &MeshConfig, type_: &str, source: &Value) -> String {
    let of = |r: &Value| r["@type"].as_str().is_some_and(|url| url.ends_with(type_));
    let resources: Vec<_> = config.resources().into_iter().filter(of).collect();
    let mut file = json!({ "resources": resources });
    control_plane::replace_sources(&mut file, source);
    file.to_string()
}

fn dump_has(agent: &Agent, text: &str) {
    eventually_within(PATIENCE, &format!("{text:?} is in force"), || {
        let ran = agent.cli(&["config", "dump", "--output", "json"]);
        if ran.stdout().contains(text) { Ok(()) } else { Err(format!("{ran}\n{}", agent.log())) }
    });
}

fn dump_lacks(agent: &Agent, text: &str) {
    eventually_within(PATIENCE, &format!("{text:?} is no longer in force"), || {
        let dump = agent.config_dump().to_string();
        if dump.contains(text) { Err(dump) } else { Ok(()) }
    });
}

#[test]
fn every_type_may_come_from_a_file_that_is_moved_into_place() {
    let bed = Testbed::two_nodes("xds-files");
    let node = bed.node(1);
    let at = |name: &str| node.directory().join(format!("xds/{name}"));
    fs::create_dir_all(at("")).unwrap();
    let write = |config: &MeshConfig, replace: &dyn Fn(&Path, &str)| {
        let (rds, eds) = (bootstrap::file(&at("rds.json")), bootstrap::file(&at("eds.json")));
        for (file, type_, source) in [
            ("eds.json", "ClusterLoadAssignment", &json!({})),
            ("rds.json", "RouteConfiguration", &json!({})),
            ("cds.json", "Cluster", &eds),
            ("lds.yaml", "Listener", &rds),
        ] {
            replace(&at(file), &file_of(config, type_, source));
        }
    };
    write(&configured(81, "10.244.2.10:9001"), &config::replace);
    let watched = json!({ "path_config_source": {
        "path": at("lds.yaml"),
        "watched_directory": { "path": at("") },
    } });
    let bootstrap = Bootstrap::dynamic(watched, bootstrap::file(&at("cds.json")));
    let file = bootstrap.write(node, "agent");
    let agent = node.agent().flags(&["--bootstrap", file.to_str().unwrap()]).start();
    for text in ["10.96.0.10:81", "10.244.2.10:9001"] {
        dump_has(&agent, text);
    }
    let sources = agent.status()["xds"]["sources"].to_string();
    for kind in ["listeners", "routes", "clusters", "endpoints"] {
        assert!(sources.contains(&format!(r#""carries":"{kind}""#)), "{kind}: {sources}");
    }

    // Moved into place: endpoints first, since they are watched each by itself.
    write(&configured(82, "10.244.2.10:9002"), &config::replace);
    for text in ["10.96.0.10:82", "10.244.2.10:9002"] {
        dump_has(&agent, text);
    }
    dump_lacks(&agent, "10.96.0.10:81");

    // Written in place: half of it might be there.
    let next = configured(83, "10.244.2.10:9003");
    let before = agent.snapshot_version();
    write(&next, &|path, text| {
        // What is moved beside this one has it read as well.
        if !path.ends_with("lds.yaml") {
            fs::write(path, text).unwrap();
        }
    });
    never(Duration::from_secs(1), "files written in place are read", || {
        Some(agent.snapshot_version()).filter(|now| *now != before)
    });

    // Bad: the last good one stays, and status says why.
    config::replace(&at("cds.json"), "resources: [{");
    agent.logs(&["configuration refused", "cds.json"]);
    let bad = file_of(&next, "Listener", &json!({})).replace("10.96.0.10", "not-an-address");
    config::replace(&at("lds.yaml"), &bad);
    agent.logs(&["configuration refused", "not-an-address"]);
    eventually("both are shown", || {
        let status = agent.status();
        let types = status["xds"]["types"].as_array().cloned().unwrap_or_default();
        let refusing =
            |kind: &str| types.iter().any(|t| t["kind"] == kind && t["refusing"] == true);
        if refusing("clusters") && refusing("listeners") { Ok(()) } else { Err(status) }
    });
    dump_has(&agent, "10.96.0.10:82");
    write(&next, &config::replace);
    dump_has(&agent, "10.96.0.10:83");
    dump_has(&agent, "10.244.2.10:9003");
    eventually("nothing is refused", || {
        let status = agent.status();
        if status["last_rejected"].is_null() { Ok(()) } else { Err(status) }
    });
}

/// The outbound listener of a service whose scopes (`srds`), routes (`rds`) and filter
/// (`ecds`) come from where `source` says.
fn scoped_listener(source: &dyn Fn(&str) -> Value) -> Value {
    let mut resources = configured(80, "10.244.2.10:9001").resources();
    scope_by_header(&mut resources, "web", false);
    let listener = named(&mut resources, "Listener", "outbound-web-0");
    let manager = &mut listener["filter_chains"][0]["filters"][0]["typed_config"];
    let scopes = &mut manager["scoped_routes"];
    scopes["rds_config_source"] = source("rds");
    scopes["scoped_rds"]["scoped_rds_config_source"] = source("srds");
    let discovery = json!({ "config_source": source("ecds"), "type_urls": [RBAC] });
    let filter = json!({ "name": FILTER, "config_discovery": discovery });
    manager["http_filters"].as_array_mut().unwrap().insert(0, filter);
    listener.clone()
}

/// A cluster whose endpoints (`eds`), certificate and authority (`sds`) come from where
/// `source` says.
fn secured_cluster(source: &dyn Fn(&str) -> Value) -> Value {
    let mut resources = configured(80, "10.244.2.10:9001").resources();
    let cluster = named(&mut resources, "Cluster", "web");
    cluster["eds_cluster_config"]["eds_config"] = source("eds");
    let context =
        "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
    cluster["transport_socket"] = json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": { "@type": context, "common_tls_context": {
            "tls_certificate_sds_secret_configs": [{ "name": "mine", "sds_config": source("sds") }],
            "validation_context_sds_secret_config": { "name": "ca", "sds_config": source("sds") },
        } },
    });
    cluster.clone()
}

fn denying(method: &str) -> Value {
    let is_it = json!({ "name": ":method", "string_match": { "exact": method } });
    configured_filter(rbac("DENY", json!({ "header": is_it }))).unwrap()
}

fn elsewhere(status: u16) -> Value {
    let mut routes = answering("elsewhere", status);
    routes["@type"] = ROUTES.into();
    routes
}

/// A scope that has its routes in it.
fn own_scope(status: u16) -> Value {
    scope("own", "own", json!({ "route_configuration": answering("o", status) }))
}

fn scope_by_name() -> Value {
    scope("named", "named", json!({ "route_configuration_name": "elsewhere" }))
}

fn is_answered(client: &Pod, method: &str, (key, host): (&str, &str), status: u16) {
    eventually_within(PATIENCE, &format!("{method} of {key} is answered {status}"), || {
        let request = client.curl("http://10.96.0.10/").method(method);
        let request = request.header(&format!("X-Scope: vip={key}"));
        let response = request.header(&format!("Host: {host}")).send();
        if response.status() == Some(status) { Ok(()) } else { Err(format!("{response:?}")) }
    });
}

#[test]
fn what_resources_name_may_come_from_files_too() {
    let bed = Testbed::two_nodes("xds-named-files");
    let node = bed.node(1);
    let client = node.pod("client").start();
    let at = |name: &str| node.directory().join(format!("xds/{name}"));
    fs::create_dir_all(at("")).unwrap();
    let write = |file: &str, resources: &[Value]| {
        config::replace(&at(file), &json!({ "resources": resources }).to_string());
    };
    let pki = Pki::foreign();
    let issue = || pki.issue(&["web.example"], Validity::Now);
    let (first, second) = (issue(), issue());
    let source = |kind: &str| bootstrap::file(&at(&format!("{kind}.json")));
    write("lds.json", &[scoped_listener(&source)]);
    write("cds.json", &[secured_cluster(&source)]);
    let endpoints =
        file_of(&configured(80, "10.244.2.10:9001"), "ClusterLoadAssignment", &json!({}));
    config::replace(&at("eds.json"), &endpoints);
    write("rds.json", &[elsewhere(202)]);
    write("srds.json", &[own_scope(418), scope_by_name()]);
    write("ecds.json", &[denying("DELETE")]);
    write("sds.json", &[certificate("mine", &first), roots("ca", &[&pki])]);

    let bootstrap =
        Bootstrap::dynamic(bootstrap::file(&at("lds.json")), bootstrap::file(&at("cds.json")));
    let file = bootstrap.write(node, "agent");
    let agent = node.agent().with_pod(&client).flags(&["--bootstrap", file.to_str().unwrap()]);
    let agent = agent.start();
    let asks = |method: &str, key: &str, status: u16| {
        is_answered(&client, method, (key, "web"), status);
    };
    let presents = |of: &Credentials| {
        let serial = serial(of).trim_start_matches("serial=").to_ascii_lowercase();
        dump_has(&agent, &serial);
    };
    asks("GET", "own", 418);
    asks("GET", "named", 202);
    asks("DELETE", "own", 403);
    asks("GET", "nobody", 404);
    presents(&first);
    let sources = agent.status()["xds"]["sources"].to_string();
    for kind in ["scoped_routes", "extension_configs", "secrets", "routes", "endpoints"] {
        assert!(sources.contains(&format!(r#""carries":"{kind}""#)), "{kind}: {sources}");
    }

    write("rds.json", &[elsewhere(203)]);
    write("srds.json", &[own_scope(421), scope_by_name()]);
    write("ecds.json", &[denying("PUT")]);
    write("sds.json", &[certificate("mine", &second), roots("ca", &[&pki])]);
    asks("GET", "own", 421);
    asks("GET", "named", 203);
    asks("DELETE", "own", 421);
    asks("PUT", "named", 403);
    presents(&second);

    // Half a key: the last good one stays, and nobody is told what it is.
    let half = Credentials { key_pem: second.key_pem[..100].to_owned(), ..issue() };
    write("sds.json", &[certificate("mine", &half), roots("ca", &[&pki])]);
    agent.logs(&["configuration refused", "secrets[mine]"]);
    presents(&second);
    assert!(!agent.log().contains(&second.key_pem[40..100]));

    // As with Envoy, single hosts come by delta only.
    let mut hosts = elsewhere(204);
    hosts["vhds"] = json!({ "config_source": bootstrap::file(&at("vhds.json")) });
    write("rds.json", &[hosts]);
    agent.logs(&["routes[elsewhere].vhds"]);
    asks("GET", "named", 203);
}

fn services_of_their_own(name: &str, api_type: &str) {
    let bed = Testbed::two_nodes(name);
    let node = bed.node(1);
    let client = node.pod("client").start();
    let delta = api_type == "DELTA_GRPC";
    let source = json!({ "api_config_source": bootstrap::api(api_type, &["xds"]) });
    let of = |_: &str| source.clone();
    let pki = Pki::foreign();
    let issue = || pki.issue(&["web.example"], Validity::Now);
    let (first, second) = (issue(), issue());
    let layer = |percent: u8| {
        let kind = "type.googleapis.com/envoy.service.runtime.v3.Runtime";
        json!({ "@type": kind, "name": "pushed", "layer": { "web": { "canary": percent } } })
    };
    let mut endpoints = configured(80, "10.244.2.10:9001").resources();
    let endpoints = named(&mut endpoints, "ClusterLoadAssignment", "web").clone();
    let all = |statuses: [u16; 3], method: &str, mine: &Credentials, percent: u8| {
        let mut routes = elsewhere(statuses[1]);
        let mut all = vec![
            scoped_listener(&of),
            secured_cluster(&of),
            endpoints.clone(),
            own_scope(statuses[0]),
            scope_by_name(),
            denying(method),
            certificate("mine", mine),
            roots("ca", &[&pki]),
            layer(percent),
        ];
        if delta {
            routes["vhds"] = json!({ "config_source": source });
            let answer = json!({ "direct_response": { "status": statuses[2] } });
            all.push(host("elsewhere/pushed.test", "pushed.test", answer));
        }
        all.push(routes);
        all
    };
    let mut control_plane = ControlPlane::start(node, &MeshConfig::new());
    control_plane.serves(all([418, 202, 203], "DELETE", &first, 7));
    let layers = json!({ "layers": [
        { "name": "rtds", "rtds_layer": { "name": "pushed", "rtds_config": source } },
    ] });
    let bootstrap = Bootstrap::dynamic(source.clone(), source.clone())
        .server("xds", control_plane.socket().to_str().unwrap())
        .with("", "layered_runtime", layers);
    let file = bootstrap.write(node, "agent");
    let agent = node.agent().with_pod(&client).flags(&["--bootstrap", file.to_str().unwrap()]);
    let agent = agent.start();
    let expect = |statuses: [u16; 3], method: &str, mine: &Credentials, percent: f64| {
        is_answered(&client, "GET", ("own", "web"), statuses[0]);
        is_answered(&client, "GET", ("named", "web"), statuses[1]);
        is_answered(&client, method, ("own", "web"), 403);
        if delta {
            is_answered(&client, "GET", ("named", "pushed.test"), statuses[2]);
        }
        dump_has(&agent, &serial(mine).trim_start_matches("serial=").to_ascii_lowercase());
        eventually_within(PATIENCE, "the layer is in force", || {
            let entry = agent.config_dump()["runtime"]["entries"]["web.canary"]["value"].clone();
            if entry.as_f64() == Some(percent) { Ok(()) } else { Err(entry) }
        });
    };
    expect([418, 202, 203], "DELETE", &first, 7.0);
    let status = agent.status();
    let sources = status["xds"]["sources"].as_array().unwrap();
    assert_eq!(sources.len(), if delta { 9 } else { 8 }, "{status}");
    assert!(sources.iter().all(|of| of["carries"] != "all"), "{status}");
    let page = agent.cli(&["config", "dump"]).expect_success();
    for kind in ["layer", "scope", "filter", "secret"] {
        assert!(page.stdout().lines().any(|line| line.starts_with(kind)), "{kind}: {page}");
    }
    assert!(!control_plane.requests().iter().any(|request| request["service"] == "ADS"));

    control_plane.drops_streams();
    control_plane.serves(all([421, 206, 207], "PUT", &second, 9));
    expect([421, 206, 207], "PUT", &second, 9.0);
    is_answered(&client, "DELETE", ("own", "web"), 421);
    control_plane.expect_no_violations();
}

#[test]
fn what_resources_name_may_come_from_services_of_its_own_in_state_of_the_world() {
    services_of_their_own("xds-own-sotw", "GRPC");
}

#[test]
fn what_resources_name_may_come_from_services_of_its_own_in_delta() {
    services_of_their_own("xds-own-delta", "DELTA_GRPC");
}

#[test]
fn what_is_static_is_served_beside_the_rest_and_without_it() {
    let bed = Testbed::two_nodes("xds-static");
    let node = bed.node(1);
    let web = |name: &str, address: &str| {
        let service =
            Service::tcp(name, address).backed_by_plain("10.244.2.10:80".parse().unwrap());
        MeshConfig::new().service(&service).resources()
    };
    let fixed = web("fixed", "10.96.0.20:80");
    let of_type = |type_: &str| -> Vec<Value> {
        let of = |r: &&Value| r["@type"].as_str().is_some_and(|url| url.ends_with(type_));
        let mut found: Vec<_> = fixed.iter().filter(of).cloned().collect();
        found.iter_mut().for_each(|r| _ = r.as_object_mut().unwrap().remove("@type"));
        found
    };
    let (listeners, mut clusters) = (of_type(".Listener"), of_type(".Cluster"));
    for cluster in &mut clusters {
        // Its endpoints are static as well.
        let assignment = fixed.iter().find(|r| r["cluster_name"] == cluster["name"]);
        if let Some(assignment) = assignment {
            let mut assignment = assignment.clone();
            assignment.as_object_mut().unwrap().remove("@type");
            cluster["type"] = "STATIC".into();
            cluster["load_assignment"] = assignment;
            cluster.as_object_mut().unwrap().remove("eds_cluster_config");
        }
    }
    let mut control_plane = ControlPlane::prepare(
        node,
        "control-plane",
        &MeshConfig::new(),
        &[Port::plain("127.0.0.1:18001")],
    );
    let bootstrap = Bootstrap::ads("GRPC", &["xds"])
        .server("xds", "127.0.0.1:18001")
        .with("/static_resources", "listeners", listeners.into())
        .with_clusters(clusters);
    let file = bootstrap.write(node, "agent");
    let agent = node.agent().flags(&["--bootstrap", file.to_str().unwrap()]).start_unready();
    // No control plane: what is static is served once servers have had their time.
    dump_has(&agent, "10.96.0.20:80");
    agent.wait_ready();

    let mut resources = web("dynamic", "10.96.0.21:80");
    control_plane.serves(resources.clone());
    control_plane.run();
    dump_has(&agent, "10.96.0.21:80");
    dump_has(&agent, "10.96.0.20:80");

    // Nothing dynamic changes or removes it.
    resources.extend(web("fixed", "10.96.0.22:80"));
    control_plane.serves(resources);
    control_plane.is_refused("is among the bootstrap's static_resources");
    control_plane.serves(Vec::new());
    dump_lacks(&agent, "10.96.0.21:80");
    dump_has(&agent, "10.96.0.20:80");
    let dump = agent.config_dump().to_string();
    assert!(!dump.contains("10.96.0.22"), "{dump}");
    control_plane.expect_no_violations();
}

#[test]
fn a_resource_may_name_its_own_source_and_only_one_that_is_known() {
    let bed = Testbed::two_nodes("xds-named-sources");
    let node = bed.node(1);
    let ports = |port: u16| [Port::plain(&format!("127.0.0.1:{port}"))];
    let config = configured(81, "10.244.2.10:9001");
    let mut main = ControlPlane::prepare(node, "main", &config, &ports(18001));
    let other = json!({ "api_config_source": bootstrap::api("DELTA_GRPC", &["other"]) });
    main.sources_are(other.clone());
    main.run();
    let other_plane =
        ControlPlane::start_at(node, "other", &configured(81, "10.244.2.10:9002"), &ports(18002));
    let bootstrap = Bootstrap::ads("GRPC", &["main"])
        .server("main", "127.0.0.1:18001")
        .server("other", "127.0.0.1:18002");
    let file = bootstrap.write(node, "agent");
    let agent = node.agent().flags(&["--bootstrap", file.to_str().unwrap()]).start();
    dump_has(&agent, "10.96.0.10:81");
    dump_has(&agent, "10.244.2.10:9002");
    let dump = agent.config_dump().to_string();
    assert!(!dump.contains("10.244.2.10:9001"), "the main one was not asked: {dump}");
    let asked = |plane: &ControlPlane, service: &str| {
        plane.requests().iter().any(|request| request["service"] == service)
    };
    assert!(asked(&other_plane, "EndpointDiscoveryService"), "{:?}", other_plane.requests());
    assert!(asked(&other_plane, "RouteDiscoveryService"));
    assert!(!asked(&main, "EndpointDiscoveryService") && !asked(&other_plane, "ADS"));

    // Unknown, or not what this agent speaks: the last good one stays.
    let unknown = json!({ "api_config_source": bootstrap::api("GRPC", &["nowhere"]) });
    main.sources_are(unknown);
    main.is_refused("grpc_services: `nowhere` is no management server of the bootstrap");
    main.sources_are(json!({ "api_config_source": bootstrap::api("REST", &["other"]) }));
    main.is_refused("api_config_source.api_type: REST is not supported");
    dump_has(&agent, "10.244.2.10:9002");
    main.sources_are(other);
    eventually("nothing is refused", || {
        let status = agent.status();
        if status["last_rejected"].is_null() { Ok(()) } else { Err(status) }
    });
    main.expect_no_violations();
    other_plane.expect_no_violations();
}
