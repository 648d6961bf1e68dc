//! Configuration from several sources at once: files, static resources, services.

use std::{fs, path::Path, time::Duration};

use serde_json::{Value, json};
use tests::{
    Agent, MeshConfig, Service, Testbed,
    bootstrap::{self, Bootstrap},
    config,
    control_plane::{self, ControlPlane, Port},
    eventually, eventually_within, never,
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
