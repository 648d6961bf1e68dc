//! What the agent keeps of requests' bodies: a pod that fills its share goes without, others go on.

use std::process::Command;

use serde_json::{Value, json};
use tests::{
    Agent, MeshConfig, Pod, Service, Testbed, conversation::Conversation, corpus::Seen, eventually,
    process::peer,
};

const URL: &str = "http://10.96.0.10";
const PORT: u16 = 9200;

/// One pod's share of the account.
const SHARE_BYTES: u64 = 64 << 20;
/// What an agent may take beside it, in KiB: sockets' buffers, and what is on its way.
const GROWTH_KIB: u64 = 48 << 10;
/// Of bodies that wait, until not even a small one finds room.
const BODIES: [usize; 7] = [3 << 20, 1 << 20, 256 << 10, 64 << 10, 16 << 10, 4 << 10, 1 << 10];

fn filter(name: &str, kind: &str, mut config: Value) -> Value {
    config["@type"] = format!("type.googleapis.com/envoy.extensions.filters.http.{kind}").into();
    json!({ "name": name, "typed_config": config })
}

fn config(web: &Pod, shadow: &Pod) -> MeshConfig {
    let per_route = "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.BufferPerRoute";
    let unbuffered = json!({ "buffer": { "@type": per_route, "disabled": true } });
    let retry = json!({ "retry_on": "5xx", "num_retries": 1 });
    let routes = json!([
        { "match": { "prefix": "/again" }, "typed_per_filter_config": unbuffered,
          "route": { "cluster": "web", "retry_policy": retry } },
        { "match": { "prefix": "/copied" }, "typed_per_filter_config": unbuffered,
          "route": { "cluster": "web", "request_mirror_policies": [{ "cluster": "shadow" }] } },
        { "match": { "prefix": "/" }, "route": { "cluster": "web" } },
    ]);
    let filters = json!([
        filter("buffer", "buffer.v3.Buffer", json!({ "max_request_bytes": 8 << 20 })),
        filter("router", "router.v3.Router", json!({})),
    ]);
    MeshConfig::new()
        .service(&Service::http("shadow", "10.96.0.11:80").backed_by_plain(shadow.at(PORT)))
        .service(
            &Service::http("web", "10.96.0.10:80").backed_by_plain(web.at(PORT)).routes(routes),
        )
        .managers(&json!({ "http_filters": filters }))
}

fn held(agent: &Agent) -> u64 {
    let account = ["account=\"request_bodies\""];
    agent.metrics().sum("mesh_memory_account_bytes", &account) as u64
}

fn is_given_back(agent: &Agent) {
    eventually("all is given back", || match held(agent) {
        0 => Ok(()),
        held => Err(held),
    });
}

/// A request that waits for the last byte of its body, if there is room for the others.
fn waits(pod: &Pod, agent: &Agent, bytes: usize) -> Option<Conversation> {
    let before = held(agent);
    let mut talk = pod.connects("10.96.0.10:80".parse().unwrap());
    let length = bytes + 1;
    talk.says(format!("POST /held HTTP/1.1\r\nhost: web\r\ncontent-length: {length}\r\n\r\n"));
    talk.says(vec![b'x'; bytes]);
    let has_room = eventually("a body finds room or is refused", || {
        match (held(agent) >= before + bytes as u64, talk.is_open()) {
            (true, _) => Ok(true),
            (_, false) => Ok(false),
            waits => Err(waits),
        }
    });
    if has_room {
        return Some(talk);
    }
    // What it goes on to send may have the end overtake the answer.
    let (heard, _) = talk.rest();
    assert!(heard.is_empty() || heard.starts_with("HTTP/1.1 503"), "{heard}");
    None
}

/// With a body of 2 KiB, and how `witness` is to answer.
fn post(pod: &Pod, path: &str, case: &str, answer: &Value, status: u16) {
    let url = format!("{URL}{path}");
    let (case, answer) = (format!("x-case: {case}"), format!("x-answer: {answer}"));
    let request = pod.curl(&url).header(&case).header(&answer).body(&"b".repeat(2 << 10));
    request.expect_status(status);
}

#[test]
fn a_pod_that_fills_its_share_goes_without_and_others_go_on() {
    let bed = Testbed::two_nodes("held-bodies");
    let near = bed.node(1);
    let [greedy, modest] = ["greedy", "modest"].map(|name| near.pod(name).start());
    let servers = ["web", "shadow"].map(|name| {
        let pod = bed.node(2).pod(name).start();
        let mut command = Command::new(peer());
        command.args(["witness", &PORT.to_string(), name]);
        let witness = pod.starts_listening("witness", command, &[PORT]);
        (pod, witness)
    });
    config(&servers[0].0, &servers[1].0).write_to(&near.config_dir());
    let agent = near.agent().with_pod(&greedy).with_pod(&modest).start();
    let seen = |case: &str| -> Vec<Seen> {
        let lines = servers.iter().map(|(_, witness)| witness.log()).collect::<String>();
        lines.lines().filter_map(Seen::of_line).filter(|seen| seen.case == case).collect()
    };
    let again = json!({ "attempts": [{ "status": 503 }, { "status": 200 }] });
    let well = json!({});
    // With room.
    post(&greedy, "/again", "room", &again, 200);
    post(&greedy, "/copied", "copied", &well, 200);
    eventually("both had it", || match seen("copied") {
        seen if seen.len() == 2 && seen.iter().all(|seen| seen.whole) => Ok(()),
        seen => Err(seen),
    });
    is_given_back(&agent);

    let before = agent.process().resident_kib();
    let mut waiting = Vec::new();
    for bytes in BODIES {
        while let Some(talk) = waits(&greedy, &agent, bytes) {
            waiting.push(talk);
        }
    }
    let taken = held(&agent);
    assert!(taken <= SHARE_BYTES && taken > SHARE_BYTES - (4 << 10), "{taken} bytes are held");
    let entry = agent.logs_access(&["/held", "\"response_code\":503"]);
    assert_eq!(entry["response_flags"], "OM", "{entry}");
    let after = agent.process().resident_kib();
    println!("{} bodies, {taken} bytes; {before} KiB grew to {after} KiB", waiting.len());
    assert!(after < before + (SHARE_BYTES >> 10) + GROWTH_KIB, "{before} KiB grew to {after} KiB");

    // Without room: no filter has it, it is sent once, and nobody has a copy.
    post(&greedy, "/held", "full", &well, 503);
    assert!(seen("full").is_empty());
    post(&greedy, "/again", "once", &again, 503);
    assert_eq!(seen("once").len(), 1);
    post(&greedy, "/copied", "alone", &well, 200);
    assert!(seen("alone").iter().filter(|seen| seen.whole).all(|seen| seen.by == "web"));
    // What needs none is served, and so is everybody else.
    greedy.curl(URL).expect_status(200);
    post(&modest, "/held", "modest", &well, 200);
    post(&modest, "/again", "modest-again", &again, 200);
    assert_eq!(seen("modest-again").len(), 2);
    let large = waits(&modest, &agent, 4 << 20).expect("its share is its own");

    drop((waiting, large));
    is_given_back(&agent);
    post(&greedy, "/held", "after", &well, 200);
    assert!(agent.process().ended().is_none(), "{}", agent.log());
    assert!(!agent.log().contains("panicked"), "{}", agent.log());
}
