//! Filter chains of what pods open, chosen by its first bytes: both lead the same ones to the
//! same place.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tests::{Pod, Process, config::TCP_PROXY, twins::ADDRESSES};

use super::{script::Play, world::LISTENER};
use crate::upgrades::program;

const FILTERS: &str = "type.googleapis.com/envoy.extensions.filters.listener";

/// Listeners by what looks: everything, the same and nobody waits for long, and each by
/// itself; the last has nobody.
const BOTH: u16 = 7001;
const IMPATIENT: u16 = 7002;
const TLS: u16 = 7003;
const HTTP: u16 = 7004;
const NOBODY: u16 = 7005;

/// What chains lead to, each to a port of its own.
const TO: u16 = 9200;

/// Some rounds are needed: see [`latest`].
const PATIENCE: Duration = Duration::from_secs(900);

fn chain(number: u16, matches: Value) -> Value {
    json!({ "name": format!("c{number}"), "filter_chain_match": matches, "filters": [{
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": TCP_PROXY, "stat_prefix": "c", "cluster": format!("to-{number}"),
        },
    }] })
}

fn chains() -> Vec<Value> {
    let of = |protocol: &str| json!({ "transport_protocol": "raw_buffer", "application_protocols": [protocol] });
    let matches = [
        json!({ "server_names": ["a.test"] }),
        json!({ "server_names": ["*.b.test"], "transport_protocol": "tls" }),
        json!({ "transport_protocol": "tls" }),
        json!({ "transport_protocol": "tls", "application_protocols": ["h2"] }),
        of("http/1.0"),
        of("http/1.1"),
        of("h2c"),
        json!({ "transport_protocol": "raw_buffer" }),
    ];
    (1..).zip(matches).map(|(number, matches)| chain(number, matches)).collect()
}

fn listener(port: u16, filters: &[&str], more: Value) -> Value {
    let filter = |kind: &&str| json!({ "name": kind, "typed_config": { "@type": format!("{FILTERS}.{kind}") } });
    let filters: Vec<Value> = filters.iter().map(filter).collect();
    let mut listener = json!({
        "address": { "socket_address": { "address": ADDRESSES[0], "port_value": port } },
        "traffic_direction": "OUTBOUND",
        "listener_filters": filters,
        "filter_chains": chains(),
    });
    for (field, value) in more.as_object().into_iter().flatten() {
        listener[field] = value.clone();
    }
    listener
}

const ORIGINAL_DST: &str = "original_dst.v3.OriginalDst";
const TLS_INSPECTOR: &str = "tls_inspector.v3.TlsInspector";
const HTTP_INSPECTOR: &str = "http_inspector.v3.HttpInspector";

/// What Envoy waits for differs a little where it says nothing yet: none of that is here.
const SAID: [&[u8]; 54] = [
    b"GET / HTTP/1.1\r\n",
    b"GET / HTTP/1.1\n",
    b"GET / HTTP/1.0\r\n",
    b"GET / HTTP/1.2\r\n",
    b"GET / HTTP/2.0\r\n",
    b"GET / HTTP/0.9\r\n",
    b"GET / HTTP/11.1\r\n",
    b"GET / http/1.1\r\n",
    b"GET / HTTP/1.\r\n",
    b"GET / HTTP/a.b\r\n",
    b"GET / HTTP/1,1\r\n",
    b"GET / HTTP/1.1 \r\n",
    b"GET / HTTP/1.1\0\r\n",
    b"GET / HTTP/1.1\r\r\n",
    b"GET / HTTP/1.1\rX\n",
    b"GET / HTTP/1.1 x\r\n",
    b"GET / x HTTP/1.1\r\n",
    b"GET /\r\n",
    b"GET / \r\n",
    b"GET \r\n",
    b"GET\r\n",
    b" GET / HTTP/1.1\r\n",
    b"\r\nGET / HTTP/1.1\r\n",
    b"GET  / HTTP/1.1\r\n",
    b"GET /  HTTP/1.1\r\n",
    b"GET\t/\tHTTP/1.1\r\n",
    b"get / HTTP/1.1\r\n",
    b"WHATEVER / HTTP/1.1\r\n",
    b"-- / HTTP/1.1\r\n",
    b"GET x HTTP/1.1\r\n",
    b"GET *x HTTP/1.1\r\n",
    b"GET ?a HTTP/1.1\r\n",
    b"GET http://a/ HTTP/1.1\r\n",
    b"GET a+1.-://b?c HTTP/1.1\r\n",
    b"GET 1a://b HTTP/1.1\r\n",
    b"GET a:1 HTTP/1.1\r\n",
    b"GET http:/a HTTP/1.1\r\n",
    b"GET http:// HTTP/1.1\r\n",
    b"GET http://? HTTP/1.1\r\n",
    b"GET http://a@b@c/ HTTP/1.1\r\n",
    b"GET http://a@@b/ HTTP/1.1\r\n",
    b"CONNECT a:1 HTTP/1.1\r\n",
    b"CONNECT http://a HTTP/1.1\r\n",
    b"CONNECT a@@b HTTP/1.1\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSX\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"EHLO mail.example.com\r\n",
    b"*1\r\n$4\r\nPING\r\n",
    b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
    b"\x16\x02\x00\x00\x00\x00",
    // A while later.
    b"GET / HTTP/1.1\r",
    b"PRI * HTTP/2.0\r\n",
    b"\x16\x03\x01",
];

fn cases() -> Vec<Value> {
    let mut cases = Vec::new();
    let hello = |port: u16, sni: Option<&str>, alpn: &[&str]| json!({ "port": port, "sni": sni, "alpn": alpn });
    let says = |port: u16, bytes: &[u8]| {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        json!({ "port": port, "hex": hex })
    };
    for port in [BOTH, IMPATIENT, TLS, HTTP, NOBODY] {
        cases.extend(SAID.map(|bytes| says(port, bytes)));
        for name in [None, Some("a.test"), Some("A.test"), Some("x.b.test"), Some("b.test")] {
            for alpn in [&[][..], &["h2"], &["http/1.1", "h2"], &["http/1.1"]] {
                cases.push(hello(port, name, alpn));
            }
        }
    }
    let long = |bytes: usize| {
        let target = vec![b'a'; bytes];
        [b"GET /", &target[..], b" HTTP/1.1\r\n"].concat()
    };
    let lengths = [1000, 5000, 9000, 20_000, 40_000, 60_000, 65_000, 65_520, 65_536, 70_000];
    cases.extend(lengths.map(|bytes| says(HTTP, &long(bytes))));
    // Every byte wherever one may be.
    let frames: [(&[u8], &[u8]); 5] = [
        (b"", b"ET / HTTP/1.1\r\n"),
        (b"G", b"T / HTTP/1.1\r\n"),
        (b"GET /a", b"b HTTP/1.1\r\n"),
        (b"GET h", b"p://a/ HTTP/1.1\r\n"),
        (b"GET http://a", b"b HTTP/1.1\r\n"),
    ];
    for (before, after) in frames {
        for byte in 0..=u8::MAX {
            cases.push(says(HTTP, &[before, &[byte], after].concat()));
        }
    }
    cases
}

fn heard(pod: &Pod, file: &str, cases: &[Value]) -> Vec<String> {
    let program = program("first_bytes_client.py");
    let ran = pod.run(&["python3", &program, ADDRESSES[0], file]);
    let lines: Vec<String> = ran.expect_success().stdout().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), cases.len());
    lines
}

/// A server that ends a connection on which something is left to read resets it, and what it
/// said may be lost: who was reached once was reached.
fn latest(before: Vec<String>, mut now: Vec<String>) -> Vec<String> {
    for (before, now) in before.into_iter().zip(&mut now) {
        if now == "closed" {
            *now = before;
        }
    }
    now
}

#[test]
fn envoy_and_the_agent_tell_protocols_by_the_same_bytes() {
    let mut play = Play::start("first-bytes", true);
    let numbers: Vec<u16> = (1..).zip(chains()).map(|(number, _)| number).collect();
    let backend = &play.twins.backends[0];
    let _servers: Vec<Process> =
        numbers.iter().map(|number| backend.serves("who", TO + number)).collect();
    for number in &numbers {
        let address = play.twins.backends[0].at(TO + number);
        play.world.fixed(&format!("to-{number}"), &[address]);
    }
    let patient = json!({
        "listener_filters_timeout": "2s", "continue_on_listener_filters_timeout": true,
    });
    let impatient = json!({ "listener_filters_timeout": "2s" });
    let looks = [ORIGINAL_DST, TLS_INSPECTOR, HTTP_INSPECTOR];
    for (port, filters, more) in [
        (BOTH, &looks[..], &patient),
        (IMPATIENT, &[HTTP_INSPECTOR, TLS_INSPECTOR], &impatient),
        (TLS, &[TLS_INSPECTOR], &patient),
        (HTTP, &[HTTP_INSPECTOR, ORIGINAL_DST], &patient),
        (NOBODY, &[ORIGINAL_DST], &patient),
    ] {
        let listener = listener(port, filters, more.clone());
        play.world.put(LISTENER, &format!("first-{port}"), listener);
    }
    play.push().expect(&[]);

    let cases = cases();
    let file = play.twins.backends[0].node().directory().join("cases.json");
    std::fs::write(&file, json!(cases).to_string()).unwrap();
    let file = file.to_str().unwrap();
    let begin = Instant::now();
    let (mut envoy, mut agent) = (Vec::new(), Vec::new());
    loop {
        let (now, agents) = play.twins.both(|pod| heard(pod, file, &cases));
        (envoy, agent) = (latest(envoy, now), latest(agent, agents));
        let both: Vec<_> = cases.iter().zip(envoy.iter().zip(&agent)).collect();
        let differing: Vec<_> = both
            .iter()
            .filter(|(_, (envoy, agent))| envoy != agent)
            .map(|(of, (envoy, agent))| format!("{of}: Envoy {envoy}, agent {agent}"))
            .collect();
        let silent: Vec<_> =
            numbers.iter().filter(|n| !agent.contains(&(TO + **n).to_string())).collect();
        let closed = agent.iter().any(|heard| heard == "closed");
        if differing.is_empty() && silent.is_empty() && closed {
            break;
        }
        let differing = differing.join("\n");
        assert!(begin.elapsed() < PATIENCE, "nobody reached {silent:?}\n{differing}");
        thread::sleep(Duration::from_millis(200));
    }
    play.twins.control_plane.expect_no_violations();
}
