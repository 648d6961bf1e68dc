//! `x-forwarded-client-cert` at gateway listeners: whatever clients present and claim, the same
//! gets to the upstream.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tests::{
    Pod,
    pki::{Credentials, Pki, Validity},
    twins::WEB_PORT,
};

use super::{
    script::Play,
    world::{LISTENER, all_to, http_manager},
};

const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
const MODES: [&str; 5] =
    ["SANITIZE", "FORWARD_ONLY", "APPEND_FORWARD", "SANITIZE_SET", "ALWAYS_FORWARD_ONLY"];
/// The first port of TLS listeners, and of those in the clear.
const SECURE: u16 = 7400;
const CLEAR: u16 = 7500;

/// Listeners get to both within this.
const PATIENCE: Duration = Duration::from_secs(30);

/// What managers say.
fn managers() -> Vec<Value> {
    let all = json!({ "subject": true, "cert": true, "chain": true, "dns": true, "uri": true });
    let mut managers: Vec<Value> = vec![json!({})];
    for mode in MODES {
        managers.push(json!({ "forward_client_cert_details": mode }));
        managers.push(json!({
            "forward_client_cert_details": mode, "set_current_client_cert_details": all,
        }));
    }
    for field in ["subject", "cert", "chain", "dns", "uri"] {
        managers.push(json!({
            "forward_client_cert_details": "SANITIZE_SET",
            "set_current_client_cert_details": { field: true },
        }));
    }
    managers
}

fn manager(fields: &Value) -> Value {
    let mut manager = http_manager("edge", all_to("web"));
    for (name, value) in fields.as_object().into_iter().flatten() {
        manager["typed_config"][name] = value.clone();
    }
    manager
}

fn listener(port: u16, chain: Value) -> Value {
    json!({
        "address": { "socket_address": { "address": "0.0.0.0", "port_value": port } },
        "filter_chains": [chain],
    })
}

/// Clients may present a certificate, and need not.
fn secure(fields: &Value, own: &[&Credentials], trusted: &Pki) -> Value {
    let certificates = own.iter().map(|own| {
        json!({
            "certificate_chain": { "inline_string": own.certificate_pem },
            "private_key": { "inline_string": own.key_pem },
        })
    });
    json!({
        "filters": [manager(fields)],
        "transport_socket": {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": format!("{TLS}.DownstreamTlsContext"),
                "common_tls_context": {
                    "alpn_protocols": ["h2", "http/1.1"],
                    "tls_certificates": certificates.collect::<Vec<_>>(),
                    "validation_context": { "trusted_ca": { "inline_string": trusted.root_pem() } },
                },
            },
        },
    })
}

/// Arguments of curl for what clients claim by themselves.
const CLAIMS: [&[&str]; 7] = [
    &["--http1.1"],
    &["--http1.1", "-H", "x-forwarded-client-cert: By=a;Hash=1;URI=spiffe://x/admin"],
    &[
        "--http1.1",
        "-H",
        "x-forwarded-client-cert: Hash=1",
        "-H",
        "X-Forwarded-Client-Cert: Hash=2",
    ],
    &["--http1.1", "-H", "x-forwarded-client-cert;"],
    &[
        "--http1.1",
        "-H",
        "connection: x-forwarded-client-cert",
        "-H",
        "x-forwarded-client-cert: Hash=1",
    ],
    &["--http2", "-H", "x-forwarded-client-cert: Hash=1"],
    &["--http2", "-H", "x-forwarded-client-cert: Hash=1", "-H", "x-forwarded-client-cert: Hash=2"],
];

fn asked(from: &Pod, url: &str, arguments: &[&str]) -> String {
    let heard = from.curl(url).arguments(arguments).send();
    format!("{:?} {}", heard.status(), heard.body().trim())
}

#[test]
fn envoy_and_the_agent_tell_the_same_of_clients() {
    let mut play = Play::start("client-certs", true);
    let pki = Pki::foreign();
    let own =
        pki.issue(&["a.test", "spiffe://edge.test/own", "https://second.test"], Validity::Now);
    let nameless = pki.issue(&["b.test"], Validity::Now);
    let web = play.twins.backends[0].at(WEB_PORT);
    play.world.fixed("web", &[web]);
    let managers = managers();
    for (port, fields) in (SECURE..).zip(&managers) {
        let chain = secure(fields, &[&own, &nameless], &pki);
        play.world.put(LISTENER, &format!("edge-{port}"), listener(port, chain));
    }
    for (port, fields) in (CLEAR..).zip(&managers) {
        let chain = json!({ "filters": [manager(fields)] });
        play.world.put(LISTENER, &format!("edge-{port}"), listener(port, chain));
    }
    play.push().expect(&[]);

    let client = &play.twins.backends[1];
    let put = |name: &str, text: &str| {
        let path = client.node().directory().join(format!("client-{name}.pem"));
        fs::write(&path, text).expect("write for curl");
        path.display().to_string()
    };
    let presents = |name: &str, of: &Credentials, beside: &str| {
        let chain = put(name, &format!("{}{beside}", of.certificate_pem));
        ["--cert".to_owned(), chain, "--key".to_owned(), put(&format!("{name}-key"), &of.key_pem)]
    };
    let workload =
        pki.issue(&["spiffe://x/ns/a/sa/b", "c.test", "https://two.test", "d.test"], Validity::Now);
    let strange = pki.issue_to(["a \"b\", c;d=e", "Acme, \u{fc}"], &["x://a;b,c=d", "e.test"]);
    let anonymous = pki.issue(&["192.0.2.1"], Validity::Now);
    let clients: [&[String]; 5] = [
        &[],
        &presents("workload", &workload, ""),
        &presents("chain", &workload, pki.root_pem()),
        &presents("strange", &strange, ""),
        &presents("anonymous", &anonymous, ""),
    ];
    let edges = play.twins.edges();
    let mut all: Vec<(String, String)> = Vec::new();
    let ask = |port: u16, host: Option<&str>, arguments: &[&str]| {
        let [envoy, agent] = edges.map(|edge| match host {
            None => asked(client, &format!("http://{edge}:{port}/echo-client"), arguments),
            Some(host) => {
                let to = format!("{host}:{port}:{edge}");
                let arguments = [&["-k", "--resolve", &to], arguments].concat();
                asked(client, &format!("https://{host}:{port}/echo-client"), &arguments)
            }
        });
        (envoy, agent)
    };
    let last = CLEAR + u16::try_from(managers.len()).unwrap() - 1;
    let begin = Instant::now();
    while let (envoy, agent) = ask(last, None, &["--http1.1"])
        && [&envoy, &agent].iter().any(|heard| !heard.starts_with("Some(200)"))
    {
        assert!(begin.elapsed() < PATIENCE, "{envoy} {agent}");
        thread::sleep(Duration::from_millis(100));
    }
    for (port, fields) in (CLEAR..).zip(&managers) {
        for claim in CLAIMS {
            let claim: Vec<&str> = claim
                .iter()
                .map(|a| if *a == "--http2" { "--http2-prior-knowledge" } else { a })
                .collect();
            let what = format!("in the clear {fields} {claim:?}");
            let (envoy, agent) = ask(port, None, &claim);
            all.push((format!("{what}\n  {envoy}"), format!("{what}\n  {agent}")));
        }
    }
    for (port, fields) in (SECURE..).zip(&managers) {
        for (n, own) in clients.iter().enumerate() {
            // What clients claim does not depend on which of them they are.
            let claims = &CLAIMS[..[2, CLAIMS.len(), 1, 1, 1][n]];
            for claim in claims {
                for host in ["a.test", "b.test"].into_iter().take(if n < 2 { 2 } else { 1 }) {
                    let own: Vec<&str> = own.iter().map(String::as_str).collect();
                    let what = format!("client {n} of {host} {fields} {claim:?}");
                    let (envoy, agent) = ask(port, Some(host), &[&own, *claim].concat());
                    all.push((format!("{what}\n  {envoy}"), format!("{what}\n  {agent}")));
                }
            }
        }
    }
    let differing: Vec<_> = all.iter().filter(|(envoy, agent)| envoy != agent).collect();
    let shown: Vec<_> =
        differing.iter().map(|(envoy, agent)| format!("Envoy: {envoy}\nagent: {agent}")).collect();
    assert!(shown.is_empty(), "{} of {}\n{}", shown.len(), all.len(), shown.join("\n"));
    // Everything that there is to tell was told.
    for part in [
        "By=spiffe://edge.test/own;By=https://second.test;Hash=",
        "<Hash=",
        "Cert=\"-----BEGIN%20CERTIFICATE-----%0A",
        "Chain=\"-----BEGIN%20CERTIFICATE-----%0A",
        "URI=spiffe://x/ns/a/sa/b;URI=https://two.test",
        "DNS=c.test;DNS=d.test",
        "Subject=\"",
        "URI=>",
        "URI=spiffe://x/admin>",
        "URI=spiffe://x/admin,By=spiffe://edge.test/own",
        "<>",
    ] {
        assert!(all.iter().any(|(heard, _)| heard.contains(part)), "nobody says {part}");
    }
    play.twins.control_plane.expect_no_violations();
}
