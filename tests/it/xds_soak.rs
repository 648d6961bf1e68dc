//! A control plane that changes its mind all the time and falls over, under load: nobody
//! notices, and nothing piles up. `MESH_SOAK_SECONDS` makes it longer.

use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tests::{
    Agent, Inbound, Mesh, MeshConfig, Service, Testbed, control_plane::ControlPlane,
    eventually_within, mesh,
};

use crate::xds::named;

const SECONDS: u64 = 12;

/// What a process holds.
#[derive(Debug, Clone, Copy)]
struct Held {
    rss_kib: u64,
    descriptors: usize,
    threads: usize,
}

fn held(agent: &Agent) -> Held {
    let process = format!("/proc/{}", agent.process().pid());
    let status = fs::read_to_string(format!("{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let entries = |of: &str| fs::read_dir(format!("{process}/{of}")).unwrap().count();
    Held {
        rss_kib: line.trim().trim_end_matches(" kB").parse().unwrap(),
        descriptors: entries("fd"),
        threads: entries("task"),
    }
}

/// The configuration, changed in every type, for the `round`th time.
fn changed(config: &MeshConfig, round: usize) -> Vec<Value> {
    let mut resources = config.resources();
    let routes = named(&mut resources, "RouteConfiguration", "web");
    let told = json!({ "status": 200, "body": { "inline_string": round.to_string() } });
    let route = json!({ "match": { "path": "/round" }, "direct_response": told });
    routes["virtual_hosts"][0]["routes"].as_array_mut().unwrap().insert(0, route);
    let timeout = format!("{}s", 2 + round % 3);
    named(&mut resources, "Cluster", "web")["connect_timeout"] = timeout.into();
    let is_assignment = |r: &&mut Value| r["cluster_name"] == "web";
    let assignment = resources.iter_mut().find(is_assignment).unwrap();
    // Twice the same, or once, by another weight.
    let endpoints = assignment["endpoints"][0]["lb_endpoints"].as_array_mut().unwrap();
    endpoints[0]["load_balancing_weight"] = (1 + round % 5).into();
    // What nobody needs comes and goes.
    resources.retain(|r| {
        round.is_multiple_of(2) || r["name"] != "spare" && r["cluster_name"] != "spare"
    });
    resources
}

fn nothing_piles_up(mode: &str) {
    let bed = Testbed::two_nodes(&format!("soak-{mode}"));
    let (client, server) = (bed.node(1).pod("client").start(), bed.node(2).pod("web").start());
    let program = server.runs_nginx(mesh::WEB_PORT);
    let web = Service::http("web", "10.96.0.10:80").backed_by(&server, mesh::WEB_PORT).by_rds();
    let spare = Service::tcp("spare", "10.96.0.30:80").backed_by(&server, mesh::WEB_PORT);
    let inbound = Inbound::http(&server, mesh::WEB_PORT).open();
    let config = MeshConfig::new().service(&web).service(&spare).inbound(&inbound);
    let mut control_plane = ControlPlane::start(bed.node(1), &config);
    // The spare listener would need its cluster.
    let round_of = |round| {
        let mut resources = changed(&config, round);
        resources.retain(|r| !r["name"].to_string().contains("outbound-spare"));
        resources
    };
    control_plane.serves(round_of(0));
    let agents = [(1, &client), (2, &server)].map(|(number, pod)| {
        let flags = ["--xds-server", &control_plane.uri(), "--xds-mode", mode, "--log", "warn"];
        bed.node(number).agent().with_pod(pod).flags(&flags).start_unready()
    });
    agents.iter().for_each(Agent::wait_ready);
    let mesh = Mesh { client, server, config: config.clone(), agents, program, bed };
    mesh.client.curl(mesh::WEB).expect_status(200);

    let seconds = std::env::var("MESH_SOAK_SECONDS").map_or(SECONDS, |text| text.parse().unwrap());
    let (begin, whole) = (Instant::now(), Duration::from_secs(seconds));
    let (over, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut samples = Vec::new();
    let mut round = 0;
    thread::scope(|scope| {
        let load = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                mesh.client.curl(&format!("{}[1-20]", mesh::WEB)).expect_status(200);
                asked.fetch_add(20, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(100));
            }
        });
        while begin.elapsed() < whole && !load.is_finished() {
            round += 1;
            control_plane.serves(round_of(round));
            // By turns: left in peace, and cut off every 100 ms; once in a while, killed.
            match round % 200 {
                0 => {
                    control_plane.dies();
                    control_plane.run();
                }
                n if n % 100 < 60 => control_plane.drops_streams(),
                _ => {}
            }
            thread::sleep(Duration::from_millis(100));
            // The first quarter fills pools and buffers.
            let part = begin.elapsed().as_secs_f64() / whole.as_secs_f64();
            if part > 0.25 + 0.075 * samples.len() as f64 {
                samples.push([held(mesh.near()), held(mesh.far())]);
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    println!("{mode}: {} requests, {round} rounds in {:?}", asked.into_inner(), begin.elapsed());
    for [near, far] in &samples {
        println!("near {near:?}, far {far:?}");
    }

    // What was said last is in force.
    eventually_within(Duration::from_secs(40), "the last round is in force", || {
        let response = mesh.client.curl(&format!("{}round", mesh::WEB)).send();
        if response.body() == round.to_string() {
            Ok(())
        } else {
            Err(format!("{round}: {response:?}"))
        }
    });
    let (first, last) = (samples.first().unwrap(), samples.last().unwrap());
    for (before, after) in first.iter().zip(last) {
        assert!(after.descriptors <= before.descriptors + 12, "{samples:#?}");
        assert!(after.threads <= before.threads + 4, "{samples:#?}");
        assert!(after.rss_kib <= before.rss_kib + 12 * 1024, "{samples:#?}");
    }
    for agent in &mesh.agents {
        let streams = agent.status()["xds"]["streams"].as_array().map_or(0, Vec::len);
        assert!(streams <= 1, "{}", agent.status());
    }
    control_plane.expect_no_violations();
}

#[test]
fn a_control_plane_that_flaps_is_not_noticed_by_the_state_of_the_world() {
    nothing_piles_up("sotw");
}

#[test]
fn a_control_plane_that_flaps_is_not_noticed_by_delta() {
    nothing_piles_up("delta");
}
