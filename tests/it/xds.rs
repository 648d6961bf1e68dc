//! Configuration from a control plane that we did not write, in both variants.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{
    Agent, Allow, Inbound, MeshConfig, Service, Testbed,
    bootstrap::{self, Bootstrap},
    control_plane::{ControlPlane, is_up},
    eventually, eventually_within, mesh,
};

/// A mesh whose agents get everything from a control plane.
struct Driven {
    control_plane: ControlPlane,
    config: MeshConfig,
    mesh: tests::Mesh,
}

fn driven(name: &str, mode: &str) -> Driven {
    let bed = Testbed::two_nodes(name);
    let (client, server) = (bed.node(1).pod("client").start(), bed.node(2).pod("web").start());
    let program = server.runs_nginx(mesh::WEB_PORT);
    let reads = Allow::policy("client-may-read").from(&client).methods(&["GET", "HEAD"]);
    let web = Service::http("web", "10.96.0.10:80").backed_by(&server, mesh::WEB_PORT).by_rds();
    let inbound = Inbound::http(&server, mesh::WEB_PORT).allow(reads);
    let config = MeshConfig::new().service(&web).inbound(&inbound);
    let mut control_plane = ControlPlane::start(bed.node(1), &config);
    let services = mode.strip_prefix("services-").map(|mode| {
        let api = bootstrap::api(if mode == "delta" { "DELTA_GRPC" } else { "GRPC" }, &["xds"]);
        let source = json!({ "api_config_source": api });
        // Routes say where they come from; endpoints come from where their cluster does.
        control_plane.sources_are(json!({ "self": {} }));
        let server = control_plane.socket();
        Bootstrap::dynamic(source.clone(), source)
            .server("xds", server.to_str().unwrap())
            .write(bed.node(1), "services")
    });
    let agents = [(1, &client), (2, &server)].map(|(number, pod)| {
        let (uri, bootstrap) = (control_plane.uri(), control_plane.bootstrap(pod.name()));
        let flags = match mode {
            "bootstrap" => vec!["--bootstrap", bootstrap.to_str().unwrap()],
            _ if services.is_some() => {
                vec!["--bootstrap", services.as_ref().unwrap().to_str().unwrap()]
            }
            _ => vec!["--xds-server", &uri, "--xds-mode", mode],
        };
        bed.node(number).agent().with_pod(pod).flags(&flags).start_unready()
    });
    agents.iter().for_each(Agent::wait_ready);
    let mesh = tests::Mesh { client, server, config: config.clone(), agents, program, bed };
    Driven { control_plane, config, mesh }
}

pub(crate) fn named<'a>(resources: &'a mut [Value], type_: &str, name: &str) -> &'a mut Value {
    let is = |r: &&mut Value| {
        r["@type"].as_str().is_some_and(|url| url.ends_with(type_))
            && (r["name"] == name || r["cluster_name"] == name)
    };
    resources.iter_mut().find(is).unwrap_or_else(|| panic!("no {type_} {name}"))
}

pub(crate) fn xds_type(agent: &Agent, kind: &str) -> Value {
    let status = agent.status();
    let types = status["xds"]["types"].as_array().cloned().unwrap_or_default();
    types.into_iter().find(|of| of["kind"] == kind).unwrap_or_default()
}

fn the_script(mode: &str) {
    let Driven { mut control_plane, config, mesh } = driven(&format!("xds-{mode}"), mode);
    let get = |status| mesh.client.curl(mesh::WEB).expect_status(status);
    let good = config.resources();
    get(200);
    mesh.client.curl(mesh::WEB).method("DELETE").expect_status(403);
    let page = mesh.near().cli(&["status"]).expect_success();
    let variant = mode.trim_start_matches("services-");
    assert!(page.stdout().contains(&format!("({variant}), synced")), "{page}");
    if mode != variant {
        for kind in ["listeners", "routes", "clusters", "endpoints"] {
            assert!(page.stdout().contains(&format!(" for {kind} (")), "{kind}: {page}");
        }
    }

    // Added: a second service in front of the same pod.
    let more = config.clone().service(
        &Service::http("other", "10.96.0.30:80").backed_by(&mesh.server, mesh::WEB_PORT).by_rds(),
    );
    control_plane.serves(more.resources());
    let other = "http://10.96.0.30/";
    let reached = |status: u16| {
        eventually(&format!("{other} answers {status}"), || {
            let response = mesh.client.curl(other).send();
            if response.status() == Some(status) { Ok(()) } else { Err(format!("{response:?}")) }
        });
    };
    reached(200);
    get(200);

    // Changed: its route rewrites nothing but answers by itself.
    let mut changed = more.resources();
    named(&mut changed, "RouteConfiguration", "other")["virtual_hosts"][0]["routes"] =
        json!([{ "match": { "prefix": "/" }, "direct_response": { "status": 418 } }]);
    control_plane.serves(changed.clone());
    reached(418);

    // Refused: one bad cluster beside a good change, sent again and again.
    let mut bad = changed.clone();
    named(&mut bad, "Cluster", "web")["lb_policy"] = "CLUSTER_PROVIDED".into();
    named(&mut bad, "RouteConfiguration", "other")["virtual_hosts"][0]["routes"][0]["direct_response"]
        ["status"] = 421.into();
    let lines = || mesh.near().log().matches("clusters[web].lb_policy").count();
    control_plane.serves(bad);
    control_plane.is_refused("clusters[web].lb_policy");
    reached(421);
    get(200);
    let before = control_plane.nacks().len();
    std::thread::sleep(Duration::from_secs(3));
    let further = control_plane.nacks().len() - before;
    assert!(further < 20, "{further} NACKs in three seconds: it spins");
    assert!((1..=2).contains(&lines()), "{} lines about one fault", lines());
    let clusters = xds_type(mesh.near(), "clusters");
    assert_eq!(clusters["refusing"], true, "{clusters}");
    assert!(clusters["nack_reasons"].to_string().contains("lb_policy"), "{clusters}");
    let metrics = mesh.near().metrics();
    assert!(metrics.sum("mesh_xds_responses_total", &["result=\"nack\""]) >= 1.0);
    assert_eq!(metrics.sum("mesh_xds_refusing", &["type=\"clusters\""]), 1.0);
    assert_eq!(metrics.sum("mesh_xds_refusing", &["type=\"routes\""]), 0.0);
    get(200);

    // Mended.
    control_plane.serves(changed.clone());
    reached(418);
    eventually("nothing is refused any more", || {
        let status = mesh.near().status();
        let clusters = xds_type(mesh.near(), "clusters");
        let refusing = mesh.near().metrics().sum("mesh_xds_refusing", &[]);
        if clusters["refusing"] == false && status["last_rejected"].is_null() && refusing == 0.0 {
            Ok(())
        } else {
            Err(status)
        }
    });

    // A route to a cluster that is not there answers so; what else there is goes on.
    let mut dangling = changed.clone();
    named(&mut dangling, "RouteConfiguration", "other")["virtual_hosts"][0]["routes"] =
        json!([{ "match": { "prefix": "/" }, "route": { "cluster": "later" } }]);
    control_plane.serves(dangling.clone());
    reached(503);
    mesh.near().logs_access(&["10.96.0.30:80", "\"response_flags\":\"NC\""]);
    get(200);
    // Unless it is to be validated: then the last version stays.
    control_plane.serves(changed.clone());
    reached(418);
    named(&mut dangling, "RouteConfiguration", "other")["validate_clusters"] = true.into();
    control_plane.serves(dangling);
    eventually("the routes wait", || {
        let routes = xds_type(mesh.near(), "routes");
        let waits = routes["warming"][0]["waits_for"] == "clusters[later]";
        if waits { Ok(()) } else { Err(routes) }
    });
    assert_eq!(mesh.near().metrics().sum("mesh_xds_warming", &["type=\"routes\""]), 1.0);
    let page = mesh.near().cli(&["status"]).expect_success();
    assert!(page.stdout().contains("routes other waits for clusters[later]"), "{page}");
    reached(418);

    // Endpoints that the server has no longer: they stay, as with Envoy. Only by delta a
    // server says so; in the state of the world a response may be a part.
    let mut without = changed.clone();
    let is_it = |r: &Value| r["cluster_name"] == "other";
    without.retain(|r| !is_it(r));
    control_plane.serves(without);
    let told = if variant == "delta" { json!(["other"]) } else { json!([]) };
    eventually("endpoints are withdrawn", || {
        let endpoints = xds_type(mesh.near(), "endpoints");
        let settled = xds_type(mesh.near(), "routes")["warming"] == json!([]);
        if endpoints["withdrawn"] == told && settled { Ok(()) } else { Err(endpoints) }
    });
    let dump = mesh.near().config_dump();
    let kept = dump["endpoints"]["other"]["localities"][0]["endpoints"].as_array().map(Vec::len);
    assert_eq!(kept, Some(1), "{dump}");
    for (command, text) in [
        (["config", "dump"].as_slice(), "1 endpoints; the server has it no longer"),
        (&["status"], "endpoints other: the server has it no longer, it is in use"),
    ] {
        let page = mesh.near().cli(command).expect_success();
        assert_eq!(page.stdout().contains(text), variant == "delta", "{page}");
    }

    // Dropped streams, and a control plane that dies and comes back.
    control_plane.serves(changed.clone());
    reached(418);
    control_plane.drops_streams();
    get(200);
    control_plane.dies();
    eventually("the stream is gone", || {
        let status = mesh.near().status();
        if is_up(&status["xds"]) { Err(status) } else { Ok(()) }
    });
    get(200);
    reached(418);
    control_plane.run();
    eventually_within(Duration::from_secs(20), "the control plane is found again", || {
        let status = mesh.near().status();
        if is_up(&status["xds"]) { Ok(()) } else { Err(status) }
    });

    // Removed.
    control_plane.serves(good);
    eventually("the second service is gone", || {
        let dump = mesh.near().config_dump().to_string();
        if dump.contains("outbound-other") { Err(dump) } else { Ok(()) }
    });
    get(200);
    mesh.client.curl(mesh::WEB).method("DELETE").expect_status(403);
    control_plane.expect_no_violations();
}

#[test]
fn state_of_the_world_is_understood_and_answered_by_the_rules() {
    the_script("sotw");
}

#[test]
fn delta_is_understood_and_answered_by_the_rules() {
    the_script("delta");
}

#[test]
fn separate_services_of_each_type_are_understood_as_well() {
    the_script("services-sotw");
}

#[test]
fn separate_services_of_each_type_are_understood_in_the_delta_variant() {
    the_script("services-delta");
}

#[test]
fn an_agent_starts_without_its_control_plane_from_the_last_good_configuration() {
    let Driven { mut control_plane, config, mut mesh } = driven("xds-last-good", "bootstrap");
    mesh.client.curl(mesh::WEB).expect_status(200);
    assert!(control_plane.requests().iter().any(|request| request["node"] == "client"));
    let dump = mesh.near().config_dump();
    let of = dump["versions"]["clusters"].as_object().and_then(|of| of.values().next());
    let of = of.unwrap_or_else(|| panic!("{dump}"));
    assert!(of["version_info"].as_str().is_some_and(|version| !version.is_empty()), "{of}");
    assert!(of["last_updated"].is_string(), "{of}");
    let file = mesh.bed.node(1).state_dir().join("config/last-good");
    eventually("the last good configuration is written", || {
        if file.exists() { Ok(()) } else { Err("no file") }
    });
    control_plane.dies();
    for agent in &mut mesh.agents {
        agent.restart();
    }
    mesh.near().logs(&["serving the last good configuration from disk", "age_seconds"]);
    mesh.client.curl(mesh::WEB).expect_status(200);
    mesh.client.curl(mesh::WEB).method("DELETE").expect_status(403);
    let status = mesh.near().status();
    assert!(status["readiness"]["notes"][0].as_str().unwrap().contains("last good"), "{status}");

    control_plane.run();
    eventually_within(Duration::from_secs(40), "the control plane is heard again", || {
        let status = mesh.near().status();
        let fresh = status["readiness"]["notes"].is_null() && status["xds"]["state"] == "synced";
        if fresh { Ok(()) } else { Err(status) }
    });
    mesh.client.curl(mesh::WEB).expect_status(200);

    // Damaged: not applied, and said so.
    control_plane.dies();
    mesh.agents[0].kill_9();
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    control_plane.run();
    mesh.agents[0].restart();
    mesh.near().logs(&["there is no last good configuration", "checksum"]);
    drop(config);
}

#[test]
fn pods_are_captured_and_nothing_leaves_in_the_clear_before_the_first_configuration() {
    let bed = Testbed::two_nodes("xds-first-start");
    let (client, web) = (bed.node(1).pod("client").start(), bed.node(2).pod("web").start());
    let _programs = [client.runs_nginx(mesh::WEB_PORT), web.runs_nginx(mesh::WEB_PORT)];
    let outsider = bed.node(1).pod("outsider").start();
    let config = mesh::web_config(&client, &web);
    let mut control_plane = ControlPlane::prepare(bed.node(1), "late", &config, &[]);
    let uri = control_plane.uri();
    let flags = ["--xds-server", uri.as_str()];
    let leaver = bed.node(1).pod("leaver").start();
    let agent = bed.node(1).agent().with_pod(&client).with_pod(&leaver).flags(&flags);
    let agent = agent.start_unready();
    let reasons = eventually_within(Duration::from_secs(30), "the pod is captured", || {
        let ran = agent.cli(&["status", "--output", "json"]);
        if ran.code() != Some(0) {
            return Err(ran.to_string());
        }
        let reasons = ran.json()["readiness"]["reasons"].clone();
        let captured = reasons.to_string().matches("it is captured").count();
        if captured == 2 { Ok(reasons.to_string()) } else { Err(reasons.to_string()) }
    });
    assert!(reasons.contains("no configuration has been applied yet: "), "{reasons}");
    assert!(reasons.contains(&client.uid()), "{reasons}");

    let wire = bed.wire().capture();
    let at = |pod: &tests::Pod, what: &str| format!("http://{}/{what}", pod.at(mesh::WEB_PORT));
    let v6 = format!("http://{}/secret-v6", web.at6(mesh::WEB_PORT));
    client.curl(&at(&web, "secret-out")).expect_refused();
    client.curl(&v6).expect_refused();
    leaver.curl(&at(&web, "secret-leaver")).expect_refused();
    let inbound = web.curl(&at(&client, "secret-in")).send();
    assert_eq!(inbound.status(), None, "{}", inbound.ran());
    // What is nobody's business still goes.
    outsider.curl(&at(&web, "plain")).send();
    wire.expect_plaintext("/plain");
    for secret in ["secret-out", "secret-v6", "secret-in", "secret-leaver"] {
        wire.expect_no_trace_of(secret);
    }
    // Un-enrolled while it waits, it is free, and stays so.
    agent.unenroll(&leaver);
    leaver.curl(&at(&web, "free")).send();
    wire.expect_plaintext("/free");

    control_plane.run();
    agent.wait_ready();
    let far = bed.node(2).agent().with_pod(&web).flags(&flags).start_unready();
    far.wait_ready();
    client.curl(mesh::WEB).expect_status(200);
    client.curl(mesh::WEB).method("DELETE").expect_status(403);
    let pods = agent.pods();
    assert!(pods.to_string().contains(&client.identity()), "{pods}");
    wire.expect_no_trace_of("DELETE");
    assert!(!pods.to_string().contains("leaver"), "{pods}");
}
