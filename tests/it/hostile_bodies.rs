//! Clients that send bodies in single bytes, without a pause: limits pass all the same, others are
//! served meanwhile, and what both agents hold is bounded.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tests::{Inbound, Mesh, Pod, Process, Service, eventually_within, mesh};

use crate::upgrades::program;

/// How they come: by HTTP/1.1, and by HTTP/2 with less of a pause than the agent takes to pass them
/// on, with nothing in them, and slowly enough for it.
const KINDS: [&str; 4] = ["chunks", "data", "empty-data", "paced-data"];
/// Who gets them, none of whom ever answers: by HTTP/1.1, by HTTP/2, and who takes nothing.
const TAKES: Upstream = Upstream { name: "takes", address: "10.96.0.41:80", port: 9701 };
const TAKES_FRAMES: Upstream =
    Upstream { name: "takes-frames", address: "10.96.0.42:80", port: 9702 };
const MUTE: Upstream = Upstream { name: "mute", address: "10.96.0.43:80", port: 9703 };
/// Nobody may send a body there.
const WEB_ADDRESS: &str = "10.96.0.10:80";

/// Of a whole exchange, and, where that is the flood's own, of its upstream from its end on.
const LIMIT: &str = "4s";
/// Of crumbs, where a flood ends by itself.
const SHORT: &str = "20000";
const ENDLESS: &str = "1000000000";
/// Within which all are given up, and each of the others is served.
const PATIENCE: Duration = Duration::from_secs(30);
const OTHERS_PATIENCE: Duration = Duration::from_secs(5);
/// How much an agent may grow meanwhile, in KiB: what windows and buffers of as many exchanges
/// allow.
const GROWTH_KIB: u64 = 96 << 10;

struct Upstream {
    name: &'static str,
    address: &'static str,
    port: u16,
}

impl Upstream {
    fn service(&self, pod: &Pod) -> Service {
        let to = |prefix: &str, fields: Value| {
            let mut route = json!({ "cluster": self.name });
            for (name, value) in fields.as_object().into_iter().flatten() {
                route[name] = value.clone();
            }
            json!({ "match": { "prefix": prefix }, "route": route })
        };
        let whole = json!({ "max_stream_duration": LIMIT });
        let again = json!({ "retry_on": "5xx", "num_retries": 1 });
        let routes = json!([
            to("/timed", json!({ "timeout": LIMIT })),
            to("/again", json!({ "max_stream_duration": whole, "retry_policy": again })),
            to(
                "/copied",
                json!({
                    "max_stream_duration": whole,
                    "request_mirror_policies": [{ "cluster": MUTE.name }],
                }),
            ),
            to("/", json!({ "max_stream_duration": whole })),
        ]);
        Service::http(self.name, self.address).backed_by(pod, self.port).routes(routes)
    }
}

fn crumbs(arguments: &[&str]) -> Command {
    let mut command = Command::new("python3");
    command.arg(program("crumbs.py")).args(arguments);
    command
}

/// The client's floods of each kind to `address`, each at a path of its own below `path`.
fn floods(mesh: &Mesh, address: &str, path: &str, count: &str) -> Vec<(String, Process)> {
    let flood = |kind: &str| {
        let path = format!("{path}/{kind}");
        let label = format!("crumbs-{}", path.replace('/', "-"));
        let command = crumbs(&["send", address, &path, kind, count]);
        (path.clone(), mesh.client.starts(&label, command))
    };
    KINDS.map(flood).into()
}

#[test]
fn bodies_of_crumbs_hold_nobody_up() {
    let mut mesh = mesh::web_and_client("hostile-bodies");
    let pod = mesh.server.clone();
    let port = TAKES_FRAMES.port.to_string();
    let _servers = [
        pod.serves("sink", TAKES.port),
        pod.serves("mute", MUTE.port),
        pod.starts_listening("takes-frames", crumbs(&["take", &port]), &[TAKES_FRAMES.port]),
    ];
    let config = mesh::web_config(&mesh.client, &pod)
        .service(&TAKES.service(&pod))
        .service(&TAKES_FRAMES.service(&pod).speaks_http2())
        .service(&MUTE.service(&pod))
        .inbound(&Inbound::http(&pod, TAKES.port).open())
        .inbound(&Inbound::http2(&pod, TAKES_FRAMES.port).open())
        .inbound(&Inbound::http(&pod, MUTE.port).open());
    mesh.reconfigure(config);
    // The first request makes what stays: pools, caches.
    mesh.client.curl(mesh::WEB).expect_status(200);
    let resident = || mesh.agents.each_ref().map(|agent| agent.process().resident_kib());
    let before = resident();
    let mut endless = Vec::new();
    for (upstream, path) in [
        (TAKES, "/takes"),
        (TAKES_FRAMES, "/takes-frames"),
        (MUTE, "/mute"),
        (TAKES, "/again"),
        (TAKES, "/copied"),
    ] {
        endless.extend(floods(&mesh, upstream.address, path, ENDLESS));
    }
    let timed = floods(&mesh, TAKES.address, "/timed", SHORT);
    let refused = floods(&mesh, WEB_ADDRESS, "/refused", ENDLESS);
    let (mut most, mut slowest) = (before, Duration::ZERO);
    eventually_within(PATIENCE, "all are given up", || {
        let asked = Instant::now();
        mesh.client.curl(mesh::WEB).expect_status(200);
        slowest = slowest.max(asked.elapsed());
        for (most, now) in most.iter_mut().zip(resident()) {
            *most = now.max(*most);
        }
        let all = endless.iter().chain(&timed).chain(&refused);
        let left = all.filter(|(_, flood)| flood.ended().is_none());
        match left.map(|(path, _)| path.as_str()).collect::<Vec<_>>() {
            left if left.is_empty() => Ok(()),
            left => Err(left.join(" ")),
        }
    });
    println!("{before:?} KiB grew to {most:?} KiB; others were served within {slowest:?}");
    for (path, flood) in endless.iter().chain(&timed).chain(&refused) {
        println!("{path}: {}", flood.log().trim());
    }
    for (agent, (before, most)) in mesh.agents.iter().zip(before.into_iter().zip(most)) {
        assert!(most < before + GROWTH_KIB, "{before} KiB grew to {most} KiB");
        assert!(agent.process().ended().is_none(), "{}", agent.log());
        assert!(!agent.log().contains("panicked"), "{}", agent.log());
    }
    assert!(slowest < OTHERS_PATIENCE, "others waited for {slowest:?}");
    let record = |path: &str| mesh.near().logs_access(&["outbound", &format!("{path}\"")]);
    for (path, _) in &endless {
        // Of small frames that wait only so many may, and of empty ones hardly any may come: the
        // connection is ended, maybe before there is a request.
        let flags = match path.rsplit_once('/').unwrap() {
            (_, "empty-data") => continue,
            (_, "data") | ("/mute", "paced-data") => &["DC", "DT"][..],
            _ => &["DT"],
        };
        let entry = record(path);
        assert!(flags.iter().any(|flags| entry["response_flags"] == *flags), "{entry}");
    }
    for path in ["/timed/chunks", "/timed/paced-data"] {
        let entry = record(path);
        assert_eq!(entry["response_flags"], "UT", "{entry}");
    }
    for path in ["/refused/chunks", "/refused/paced-data"] {
        let entry = record(path);
        assert_eq!(entry["response_code"], 403, "{entry}");
    }
}
