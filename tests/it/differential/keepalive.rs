//! TCP's probes towards endpoints, as the kernel tells of the sockets that both have made.

use serde_json::{Value, json};
use tests::{
    Pod, eventually,
    twins::{ADDRESSES, MUTE_PORT},
};

use super::{script::Play, world::CLUSTER};

/// How far the kernel's word may be off: it leaves out seconds of more than ten minutes.
const OFF_SECONDS: u64 = 90;

/// In how many seconds the kernel will probe an endpoint on a connection that `pod` has it made.
fn next_probe(pod: &Pod, through: &str, endpoint: &str) -> Option<u64> {
    let _open = pod.connects(through.parse().expect("an address"));
    let mut found = None;
    eventually("the endpoint is connected to", || {
        let ran = pod.run(&["ss", "-tnoH", "state", "established", "dst", endpoint]);
        let said = ran.expect_success().stdout().to_owned();
        let Some(line) = said.lines().next() else { return Err("no connection") };
        let timer = line.split_once("timer:(keepalive,").map(|(_, timer)| timer);
        found = timer.map(|timer| seconds(timer.split(',').next().unwrap_or_default()));
        Ok(())
    });
    found
}

/// Of what `ss` says: `119min`, `4min59sec`, `59sec`.
fn seconds(timer: &str) -> u64 {
    let number = |digits: &str| digits.parse::<u64>().unwrap_or_else(|_| panic!("{timer}"));
    let (minutes, rest) = timer.split_once("min").unwrap_or(("0", timer));
    60 * number(minutes) + rest.split_once("sec").map_or(0, |(digits, _)| number(digits))
}

#[test]
fn envoy_and_the_agent_probe_silent_endpoints_alike() {
    let mut play = Play::start("keepalive", true);
    let through = format!("{}:80", ADDRESSES[0]);
    let endpoint = play.twins.backends[0].at(MUTE_PORT);
    play.world.fixed("mute", &[endpoint]).tcp("one", &through, "mute");
    let set = |keepalive: Value| json!({ "tcp_keepalive": keepalive });
    for (options, expected) in [
        (set(json!({ "keepalive_time": 300 })), [Some(300); 2]),
        (
            set(json!({
                "keepalive_time": 1000, "keepalive_interval": 500, "keepalive_probes": 2,
            })),
            [Some(1000); 2],
        ),
        (set(json!({})), [Some(7200); 2]),
        (set(json!({ "keepalive_probes": 4 })), [Some(7200); 2]),
        (set(json!({ "keepalive_time": 0 })), [None; 2]),
        (set(json!({ "keepalive_time": 300, "keepalive_probes": 0 })), [None; 2]),
        (set(json!({ "keepalive_time": 300, "keepalive_interval": 0 })), [None; 2]),
        // The agent's own.
        (json!({}), [None, Some(60)]),
    ] {
        play.world.at(CLUSTER, "mute")["upstream_connection_options"] = options.clone();
        play.push().expect(&[]);
        let endpoint = endpoint.to_string();
        let told = play.twins.both(|pod| next_probe(pod, &through, &endpoint));
        for (told, expected) in [told.0, told.1].into_iter().zip(expected) {
            let off = told.unwrap_or_default().abs_diff(expected.unwrap_or_default());
            let is_alike = told.is_some() == expected.is_some() && off <= OFF_SECONDS;
            assert!(is_alike, "{options}: {told:?} for {expected:?}");
        }
    }
    play.twins.control_plane.expect_no_violations();
}
