//! Filter chains of gateway listeners: the same clients get the same one, or none.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tests::{
    Pod,
    pki::{Credentials, Pki, Validity},
};

use super::{
    script::Play,
    world::{LISTENER, answers, http_manager},
};
use crate::upgrades::program;

const INSPECTOR: &str =
    "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";
const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";

const SNI: u16 = 7001;
const ALPN: u16 = 7002;
const PORTS: u16 = 7003;
const RANGES: u16 = 7004;
const SOURCES: u16 = 7005;
const KINDS: u16 = 7006;
const DIRECT: u16 = 7007;
const ALL: [u16; 7] = [SNI, ALPN, PORTS, RANGES, SOURCES, KINDS, DIRECT];

const OWN_PORT: u16 = 41_234;

/// Listeners get to both within this.
const PATIENCE: Duration = Duration::from_secs(30);

/// A chain that says its name.
fn plain(name: &str, matches: Value) -> Value {
    let routes = answers(200, name);
    json!({ "name": name, "filter_chain_match": matches, "filters": [http_manager(name, routes)] })
}

/// The same behind TLS.
fn secure(name: &str, matches: Value, own: &Credentials) -> Value {
    let mut chain = plain(name, matches);
    chain["transport_socket"] = json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": format!("{TLS}.DownstreamTlsContext"),
            "common_tls_context": {
                "alpn_protocols": ["http/1.1"],
                "tls_certificates": [{
                    "certificate_chain": { "inline_string": own.certificate_pem },
                    "private_key": { "inline_string": own.key_pem },
                }],
            },
        },
    });
    chain
}

impl Play {
    fn listens(&mut self, port: u16, chains: Vec<Value>, default: Option<Value>) {
        let mut listener = json!({
            "address": { "socket_address": { "address": "0.0.0.0", "port_value": port } },
            "listener_filters": [{
                "name": "envoy.filters.listener.tls_inspector",
                "typed_config": { "@type": INSPECTOR },
            }],
            "filter_chains": chains,
        });
        if let Some(mut default) = default {
            default.as_object_mut().unwrap().remove("filter_chain_match");
            listener["default_filter_chain"] = default;
        }
        self.world.put(LISTENER, &format!("edge-{port}"), listener);
    }
}

/// One client at a time, each with what it says. None speaks TLS to a chain that does not:
/// that waits for a line's end.
fn cases() -> Vec<Value> {
    let case = |port: u16, tls: bool, sni: Option<&str>, alpn: &[&str], source: Option<u16>| json!({ "port": port, "tls": tls, "sni": sni, "alpn": alpn, "source_port": source });
    let names = [
        None,
        Some("a.test"),
        Some("A.Test"),
        Some("x.a.test"),
        Some("y.a.test"),
        Some("z.y.a.test"),
        Some("q.b.a.test"),
        Some("b.a.test"),
        Some("xa.test"),
        Some("b.test"),
        Some("other.example"),
    ];
    let offers: [&[&str]; 7] = [
        &[],
        &["h2"],
        &["http/1.1"],
        &["h2", "http/1.1"],
        &["http/1.1", "h2"],
        &["acme"],
        &["acme", "http/1.1"],
    ];
    let mut cases = Vec::new();
    for port in ALL {
        cases.push(case(port, false, None, &[], None));
        cases.push(case(port, false, None, &[], Some(OWN_PORT)));
        cases.push(case(port, true, Some("a.test"), &[], Some(OWN_PORT)));
        cases.push(case(port, true, Some("b.test"), &[], Some(OWN_PORT)));
        cases.extend(names.map(|name| case(port, true, name, &[], None)));
    }
    for name in [None, Some("a.test"), Some("y.a.test"), Some("b.test")] {
        for port in [SNI, ALPN] {
            cases.extend(offers.map(|offer| case(port, true, name, offer, None)));
        }
    }
    cases
}

fn heard(pod: &Pod, host: &str, cases: &[Value]) -> Vec<String> {
    let ran = pod.run(&["python3", &program("chain_client.py"), host, &json!(cases).to_string()]);
    let lines: Vec<String> = ran.expect_success().stdout().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), cases.len());
    lines
}

#[test]
fn envoy_and_the_agent_choose_the_same_filter_chains() {
    let mut play = Play::start("chains", true);
    let pki = Pki::foreign();
    let own = pki.issue(&["a.test"], Validity::Now);
    let tls = |name: &str, matches: Value| secure(name, matches, &own);
    let [one, two] = [0, 1].map(|backend| {
        json!([{ "address_prefix": play.twins.backends[backend].ip(), "prefix_len": 32 }])
    });
    let everyone = json!([{ "address_prefix": "0.0.0.0", "prefix_len": 0 }]);
    let private = json!([{ "address_prefix": "10.0.0.0", "prefix_len": 8 }]);
    let elsewhere = json!([{ "address_prefix": "192.0.2.0", "prefix_len": 24 }]);
    let names = |names: &[&str]| json!({ "server_names": names });
    let with = |mut matches: Value, field: &str, value: &Value| {
        matches[field] = value.clone();
        matches
    };
    let none = json!({});
    play.listens(
        SNI,
        vec![
            tls("exact", names(&["a.test", "x.a.test"])),
            tls("suffix", names(&["*.a.test"])),
            tls("longer", names(&["*.b.a.test"])),
            tls("any-tls", json!({ "transport_protocol": "tls" })),
            plain("raw", json!({ "transport_protocol": "raw_buffer" })),
        ],
        None,
    );
    let alpn = |matches: Value, protocols: &[&str]| {
        with(matches, "application_protocols", &json!(protocols))
    };
    play.listens(
        ALPN,
        vec![
            tls("a-h2", alpn(names(&["a.test"]), &["h2"])),
            tls("a-http", alpn(names(&["a.test"]), &["http/1.1", "http/1.0"])),
            tls("suffix-none", names(&["*.a.test"])),
            tls("acme", alpn(none.clone(), &["acme"])),
            tls("any-h2", alpn(none.clone(), &["h2"])),
        ],
        Some(tls("default", none.clone())),
    );
    play.listens(
        PORTS,
        vec![
            tls("own-port", json!({ "destination_port": PORTS, "server_names": ["a.test"] })),
            tls("hidden-by-port", names(&["b.test"])),
            tls("other-port", json!({ "destination_port": 1, "server_names": ["x.a.test"] })),
        ],
        Some(tls("default", none.clone())),
    );
    play.listens(
        RANGES,
        vec![
            tls("private", with(names(&["a.test"]), "prefix_ranges", &private)),
            tls("wide", with(names(&["b.test"]), "prefix_ranges", &everyone)),
            tls("elsewhere", with(names(&["x.a.test"]), "prefix_ranges", &elsewhere)),
            plain(
                "private-raw",
                json!({ "prefix_ranges": private, "transport_protocol": "raw_buffer" }),
            ),
        ],
        None,
    );
    let ported = with(json!({ "source_ports": [OWN_PORT, 1] }), "source_prefix_ranges", &private);
    play.listens(
        SOURCES,
        vec![
            tls("one", json!({ "source_prefix_ranges": one })),
            tls("ten", json!({ "source_prefix_ranges": private })),
            tls("ten-port", ported),
            tls("one-named", with(names(&["a.test"]), "source_prefix_ranges", &one)),
            tls("everyone", json!({ "source_prefix_ranges": everyone })),
        ],
        None,
    );
    play.listens(
        KINDS,
        vec![
            tls("external-two", json!({ "source_type": "EXTERNAL", "source_prefix_ranges": two })),
            tls("any", none.clone()),
            tls("local", json!({ "source_type": "SAME_IP_OR_LOOPBACK" })),
            tls("named", names(&["a.test", "b.test"])),
        ],
        None,
    );
    play.listens(
        DIRECT,
        vec![
            tls("direct-one", json!({ "direct_source_prefix_ranges": one })),
            tls(
                "direct-ten",
                with(
                    json!({ "source_ports": [OWN_PORT] }),
                    "direct_source_prefix_ranges",
                    &private,
                ),
            ),
        ],
        Some(tls("default", none)),
    );
    play.push().expect(&[]);

    let cases = cases();
    let edges = play.twins.edges().map(|edge| edge.to_string());
    let clients = &play.twins.backends[..2];
    let begin = Instant::now();
    loop {
        let [envoy, agent] = edges.each_ref().map(|edge| {
            clients.iter().map(|client| heard(client, edge, &cases)).collect::<Vec<_>>()
        });
        let asked =
            clients.iter().flat_map(|client| cases.iter().map(move |of| (client.name(), of)));
        let both = envoy.concat().into_iter().zip(agent.concat());
        let both: Vec<_> = asked.zip(both).collect();
        let differing = both.iter().filter(|(_, (envoy, agent))| envoy != agent);
        let differing: Vec<_> = differing
            .map(|((who, of), (envoy, agent))| {
                format!("{who} {of}\n  Envoy: {envoy}\n  agent: {agent}")
            })
            .collect();
        // Every chain but those that nobody may reach has answered somebody.
        let answered =
            |chain: &str| both.iter().any(|(_, (heard, _))| heard.contains(&format!(" {chain} ")));
        let silent: Vec<&str> = REACHED.into_iter().filter(|chain| !answered(chain)).collect();
        let wrong: Vec<&str> = HIDDEN.into_iter().filter(|chain| answered(chain)).collect();
        let closed = both.iter().any(|(_, (heard, _))| heard == "closed");
        if differing.is_empty() && silent.is_empty() && wrong.is_empty() && closed {
            break;
        }
        assert!(
            begin.elapsed() < PATIENCE,
            "nobody reached {silent:?}, somebody {wrong:?}\n{}",
            differing.join("\n")
        );
        thread::sleep(Duration::from_millis(200));
    }
    play.twins.control_plane.expect_no_violations();
}

const REACHED: [&str; 18] = [
    "exact",
    "suffix",
    "longer",
    "any-tls",
    "raw",
    "a-h2",
    "a-http",
    "suffix-none",
    "acme",
    "own-port",
    "private",
    "private-raw",
    "one",
    "ten",
    "ten-port",
    "external-two",
    "direct-one",
    "direct-ten",
];

const HIDDEN: [&str; 5] = ["hidden-by-port", "other-port", "wide", "elsewhere", "local"];
