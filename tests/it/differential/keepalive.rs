//! TCP's probes towards endpoints, as the kernel tells of the sockets that both have made.

use serde_json::{Value, json};
use tests::{
    Pod, eventually,
    twins::{ADDRESSES, MUTE_PORT},
};

use super::{script::Play, world::CLUSTER};

/// When the kernel will probe an endpoint on a connection that `pod` has it made, without what
/// changes as one looks: `4min` of `4min59sec`. Empty: it will not.
fn next_probe(pod: &Pod, through: &str, endpoint: &str) -> String {
    let _open = pod.connects(through.parse().expect("an address"));
    let mut found = String::new();
    eventually("the endpoint is connected to", || {
        let ran = pod.run(&["ss", "-tnoH", "state", "established", "dst", endpoint]);
        let said = ran.expect_success().stdout().to_owned();
        let Some(line) = said.lines().next() else { return Err("no connection") };
        let timer = line.split_once("timer:(keepalive,").map(|(_, timer)| timer);
        // The clock has not moved yet.
        if timer.is_some_and(|timer| timer.split(',').next().unwrap_or_default().ends_with("min")) {
            return Err("it was made just now");
        }
        let digits = |timer: &str| timer.find(|c: char| !c.is_ascii_digit());
        found = timer.map_or_else(String::new, |timer| {
            let (count, unit) = timer.split_at(digits(timer).unwrap_or_default());
            format!("{count}{}", unit.get(..3).unwrap_or_default())
        });
        Ok(())
    });
    found
}

#[test]
fn envoy_and_the_agent_probe_silent_endpoints_alike() {
    let mut play = Play::start("keepalive", true);
    let through = format!("{}:80", ADDRESSES[0]);
    let endpoint = play.twins.backends[0].at(MUTE_PORT);
    play.world.fixed("mute", &[endpoint]).tcp("one", &through, "mute");
    let set = |keepalive: Value| json!({ "tcp_keepalive": keepalive });
    for (options, expected) in [
        (set(json!({ "keepalive_time": 300 })), ["4min", "4min"]),
        (
            set(json!({
                "keepalive_time": 1000, "keepalive_interval": 500, "keepalive_probes": 2,
            })),
            ["16min", "16min"],
        ),
        (set(json!({})), ["119min", "119min"]),
        (set(json!({ "keepalive_probes": 4 })), ["119min", "119min"]),
        (set(json!({ "keepalive_time": 0 })), ["", ""]),
        (set(json!({ "keepalive_time": 300, "keepalive_probes": 0 })), ["", ""]),
        (set(json!({ "keepalive_time": 300, "keepalive_interval": 0 })), ["", ""]),
        // The agent's own.
        (json!({}), ["", "59sec"]),
    ] {
        play.world.at(CLUSTER, "mute")["upstream_connection_options"] = options.clone();
        play.push().expect(&[]);
        let endpoint = endpoint.to_string();
        let told = play.twins.both(|pod| next_probe(pod, &through, &endpoint));
        assert_eq!([told.0, told.1], expected, "{options}");
    }
    play.twins.control_plane.expect_no_violations();
}
