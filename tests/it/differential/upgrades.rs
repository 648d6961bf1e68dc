//! Which connections may change to WebSocket, and for how long.

use serde_json::{Value, json};
use tests::twins::ADDRESSES;

use super::{
    script::{Play, get, status},
    world::LISTENER,
};
use crate::upgrades::{ALL, PORT, manager, serves, talks};

#[test]
fn envoy_and_the_agent_let_the_same_connections_switch() {
    let mut play = Play::start("upgrades", true);
    let backend = &play.twins.backends[0];
    let (_server, endpoint) = (serves(backend), backend.at(PORT));
    let at = format!("{}:80", ADDRESSES[0]);
    let to = |path: &str, more: Value| {
        let mut route = json!({ "cluster": "chat" });
        route.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "match": { "prefix": path }, "route": route })
    };
    let off = json!({ "upgrade_configs": [{ "upgrade_type": "WebSocket", "enabled": false }] });
    let routes = json!([
        to("/off", off),
        to("/short", json!({ "timeout": "1s" })),
        to("/idle", json!({ "idle_timeout": "1s" })),
        { "match": { "prefix": "/direct" }, "direct_response": { "status": 418 } },
        to("/", json!({})),
    ]);
    play.world.fixed("chat", &[endpoint]).inline("one", &at, routes);
    let agree = |play: &Play, path: &str, pause: &str, expected: &str| {
        let (envoy, agent) = play.twins.both(|pod| talks(pod, &at, path, pause));
        assert_eq!((envoy.as_str(), agent.as_str()), (expected, expected), "{path} {pause}");
    };
    play.step("without upgrade_configs", &[(get("/direct"), status(418))]);
    agree(&play, "/", "0", "refused=403\n");
    let upgrades = json!([{ "upgrade_type": "websocket" }]);
    manager(play.world.at(LISTENER, "one"))["upgrade_configs"] = upgrades;
    play.step("with them", &[(get("/direct"), status(418))]);
    agree(&play, "/", "0", ALL);
    agree(&play, "/off", "0", "refused=403\n");
    agree(&play, "/direct", "0", "refused=418\n");
    agree(&play, "/short", "2", ALL);
    agree(&play, "/idle", "3", "lost\n");
    play.twins.control_plane.expect_no_violations();
}
