//! CONNECT, ended by the proxy or sent on.

use std::process::Command;

use serde_json::{Value, json};
use tests::{Pod, twins::ADDRESSES};

use super::{
    script::{Play, get, status},
    world::LISTENER,
};
use crate::upgrades::{manager, program};

const PORT: u16 = 9510;
const OPAQUE: u16 = 9511;

fn asks(pod: &Pod, proxy: &str, authority: &str, how: &str, headers: &[&str]) -> String {
    let program = program("connect_client.py");
    let mut argv = vec!["python3", program.as_str(), proxy, authority, how];
    argv.extend(headers);
    pod.run(&argv).stdout().to_owned()
}

#[test]
fn envoy_and_the_agent_open_the_same_tunnels() {
    let mut play = Play::start("tunnels", true);
    let backend = &play.twins.backends[0];
    let mut command = Command::new("python3");
    command.args([&program("connect_server.py"), &PORT.to_string(), &OPAQUE.to_string()]);
    let _server = backend.starts_listening("tunnels", command, &[PORT, OPAQUE]);
    let (endpoint, opaque) = (backend.at(PORT), backend.at(OPAQUE));
    let at = format!("{}:80", ADDRESSES[0]);
    let ends = json!([{ "upgrade_type": "CONNECT", "connect_config": {} }]);
    let host = |name: &str, routes: Value| json!({ "name": name, "domains": [format!("{name}.test:443")], "routes": routes });
    let to = |cluster: &str, more: Value| {
        let mut route = json!({ "cluster": cluster });
        route.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "match": { "connect_matcher": {} }, "route": route })
    };
    let off = json!({ "upgrade_configs": [{ "upgrade_type": "CONNECT", "enabled": false }] });
    let idle = json!({ "upgrade_configs": ends, "idle_timeout": "1s" });
    let short = json!({ "upgrade_configs": ends, "timeout": "0.5s" });
    let hosts = json!([
        host("ends", json!([to("opaque", json!({ "upgrade_configs": ends }))])),
        host("idle", json!([to("opaque", idle)])),
        host("short", json!([to("opaque", short)])),
        host("dead", json!([to("dead", json!({ "upgrade_configs": ends }))])),
        host("off", json!([to("tunnels", off)])),
        host("direct", json!([{
            "match": { "connect_matcher": {} }, "direct_response": { "status": 418 },
        }])),
        host("prefix", json!([{ "match": { "prefix": "/" }, "route": { "cluster": "tunnels" } }])),
        { "name": "rest", "domains": ["*"], "routes": [
            to("tunnels", json!({})),
            { "match": { "prefix": "/" }, "direct_response": { "status": 204 } },
        ] },
    ]);
    let dead = backend.at(1);
    let world = &mut play.world;
    world.fixed("tunnels", &[endpoint]).fixed("opaque", &[opaque]).fixed("dead", &[dead]);
    world.inline("one", &at, json!([]));
    manager(world.at(LISTENER, "one"))["route_config"]["virtual_hosts"] = hosts;
    let mut differing = Vec::new();
    let mut agree = |play: &Play, authority: &str, how: &str, headers: &[&str], expected: &str| {
        let (envoy, agent) = play.twins.both(|pod| asks(pod, &at, authority, how, headers));
        if envoy != agent || !envoy.contains(expected) {
            differing.push(format!("{authority} {how} {headers:?}: {expected}\n{envoy}{agent}"));
        }
    };
    play.step("without upgrade_configs", &[(get("/"), status(204))]);
    // What the route says of it goes first.
    agree(&play, "ends.test:443", "talk", &[], "HELLO;QUIT;' | end");
    agree(&play, "other.test:443", "talk", &[], " 403 |");
    let upgrades = json!([{ "upgrade_type": "CONNECT" }]);
    manager(play.world.at(LISTENER, "one"))["upgrade_configs"] = upgrades;
    play.step("with them", &[(get("/"), status(204))]);
    for authority in ["ends.test:443", "other.test:443"] {
        agree(&play, authority, "talk", &[], "HELLO;QUIT;' | end");
        agree(&play, authority, "early", &[], "EARLY;QUIT;' | end");
        agree(&play, authority, "talk", &["content-length: 0"], "HELLO;QUIT;' | end");
        agree(&play, authority, "talk", &["content-length: 6"], " 400 |");
        agree(&play, authority, "talk", &["x-more: yes"], "HELLO;QUIT;' | end");
    }
    agree(&play, "short.test:443", "talk", &[], "HELLO;QUIT;' | end");
    agree(&play, "idle.test:443", "wait", &[], " 200 |");
    agree(&play, "dead.test:443", "talk", &[], " 503 |");
    agree(&play, "off.test:443", "talk", &[], " 403 |");
    agree(&play, "direct.test:443", "wait", &[], " 418 |");
    agree(&play, "prefix.test:443", "talk", &[], " 404 |");
    agree(&play, "refused.test:443", "wait", &[], "no;");
    agree(&play, "closed.test:443", "talk", &[], " 503 |");
    assert!(differing.is_empty(), "{}", differing.join("\n"));
    play.twins.control_plane.expect_no_violations();
}
