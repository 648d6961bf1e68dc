//! Clients that take their responses slowly, or not at all.

use std::fs;

use serde_json::json;
use tests::twins::{ADDRESSES, WEB_PORT};

use super::{
    script::{Play, get, status},
    world::LISTENER,
};
use crate::upgrades::{manager, program};

/// How many KiB, by which HTTP, how many bytes are taken each second, and what comes of it: see
/// `slow_client.py`.
const ROWS: [(usize, &str, &str, &str); 4] = [
    // All there is waits for the client.
    (10, "2", "0", "0 reset"),
    (300, "2", "0", "0 reset"),
    (10240, "2", "0", "0 reset"),
    // Who takes something is not given up.
    (300, "1", "61440", "307200 whole"),
];

#[test]
fn envoy_and_the_agent_give_up_the_same_clients() {
    let mut play = Play::start("slow-readers", true);
    let backend = &play.twins.backends[0];
    let endpoint = backend.at(WEB_PORT);
    for (kib, ..) in ROWS {
        let file = backend.nginx_directory(WEB_PORT).join(kib.to_string());
        fs::write(file, vec![b'x'; kib << 10]).unwrap();
    }
    let at = format!("{}:80", ADDRESSES[0]);
    let routes = json!([
        { "match": { "path": "/direct" }, "direct_response": { "status": 418 } },
        { "match": { "prefix": "/" }, "route": { "cluster": "web", "timeout": "0s" } },
    ]);
    play.world.fixed("web", &[endpoint]).inline("one", &at, routes);
    manager(play.world.at(LISTENER, "one"))["stream_idle_timeout"] = "2s".into();
    play.step("there", &[(get("/direct"), status(418))]);
    for (kib, protocol, bytes, expected) in ROWS {
        let path = format!("/files/{kib}");
        let client = program("slow_client.py");
        let (envoy, agent) = play.twins.both(|pod| {
            let ran = pod.run(&["python3", &client, &at, &path, protocol, bytes, "1", "20"]);
            ran.stdout().trim().to_owned()
        });
        let row = format!("{kib} KiB by HTTP/{protocol}, {bytes} bytes a second");
        assert_eq!((envoy.as_str(), agent.as_str()), (expected, expected), "{row}");
    }
}
