//! Secrets of clusters that speak TLS to their endpoints.
//!
//! Opaque connections: each makes a connection of its own to the endpoint, where Envoy's
//! pools keep what was made by an older certificate.

use serde_json::{Value, json};
use tests::{
    pki::{Credentials, Pki, Validity},
    twins::ADDRESSES,
};

use super::{
    script::{Check, Play, get, nothing},
    world::{CLUSTER, ENDPOINTS, SECRET, World},
};
use crate::sds::{certificate, roots};

const TLS_PORT: u16 = 8443;
const NAME: &str = "web.example.com";

fn secured(world: &mut World, endpoint: std::net::SocketAddr) {
    world.fixed("secure", &[endpoint]).remove(ENDPOINTS, "secure");
    world.at(CLUSTER, "secure")["transport_socket"] = tls();
}

/// TLS by the secrets `mine` and `ca`.
fn tls() -> Value {
    let ads = json!({ "ads": {}, "resource_api_version": "V3" });
    let names = json!([{ "san_type": "DNS", "matcher": { "exact": NAME } }]);
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type":
                "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "sni": NAME,
            "common_tls_context": {
                "tls_certificate_sds_secret_configs": [{ "name": "mine", "sds_config": ads }],
                "combined_validation_context": {
                    "default_validation_context": { "match_typed_subject_alt_names": names },
                    "validation_context_sds_secret_config": { "name": "ca", "sds_config": ads },
                },
            },
        },
    })
}

/// Answered by the endpoint, which saw this certificate.
fn shown(of: &Credentials) -> Check<'static> {
    let serial = crate::sds::serial(of);
    let number = serial.trim_start_matches("serial=").to_owned();
    Box::new(move |answers| {
        answers.is_status(200) && answers.texts().iter().all(|text| text.contains(&number))
    })
}

fn the_secrets(name: &str, delta: bool) {
    let (pki, foreign) = (Pki::foreign(), Pki::foreign());
    let own = pki.issue(&[NAME], Validity::Now);
    let [first, second] = [(); 2].map(|()| pki.issue(&["client.example.com"], Validity::Now));
    let mut play = Play::start(name, delta);
    let backend = &play.twins.backends[0];
    let (_nginx, endpoint) =
        (backend.runs_tls_nginx(TLS_PORT, &own, pki.root_pem()), backend.at(TLS_PORT));
    let mine = |of: &Credentials| certificate("mine", of);
    play.world.tcp("one", &format!("{}:80", ADDRESSES[0]), "secure");
    secured(&mut play.world, endpoint);
    play.world.put(SECRET, "ca", roots("ca", &[&pki]));
    play.step("a secret is missing", &[(get("/"), nothing())]);
    play.world.put(SECRET, "mine", mine(&first));
    play.step("it comes", &[(get("/"), shown(&first))]);
    play.world.put(SECRET, "mine", mine(&second));
    play.step("it is rotated", &[(get("/"), shown(&second))]);

    // What can't be used is refused, and what was there last stays.
    let mixed = Credentials { key_pem: second.key_pem.clone(), ..first.clone() };
    let garbage = Credentials { certificate_pem: "garbage".to_owned(), ..first.clone() };
    for (what, bad) in [("another's key", &mixed), ("no certificate", &garbage)] {
        play.world.put(SECRET, "mine", mine(bad));
        play.refused(what, &["Secret"], &[(get("/"), shown(&second))]);
        play.world.put(SECRET, "mine", mine(&second));
        play.step("and as it was", &[(get("/"), shown(&second))]);
    }

    // Who is trusted changes.
    play.world.put(SECRET, "ca", roots("ca", &[&foreign]));
    play.step("the endpoint is not trusted", &[(get("/"), nothing())]);
    play.world.put(SECRET, "ca", roots("ca", &[&pki]));
    play.step("it is again", &[(get("/"), shown(&second))]);

    // A server that forgets a secret takes it from nobody.
    play.world.remove(SECRET, "mine");
    play.step("the secret is removed", &[(get("/"), shown(&second))]);
    play.twins.control_plane.drops_streams();
    play.twins.settle().expect(&[]);
    play.step("on a new stream", &[(get("/"), shown(&second))]);
    play.world.put(SECRET, "mine", mine(&first));
    play.step("there again", &[(get("/"), shown(&first))]);

    // Its cluster goes, and comes back.
    let cluster = play.world.at("Cluster", "secure").clone();
    play.world.remove("Cluster", "secure").inline(
        "one",
        &format!("{}:80", ADDRESSES[0]),
        super::world::answers(418, "nobody"),
    );
    play.step("nobody needs it", &[(get("/"), super::script::status(418))]);
    play.world.put("Cluster", "secure", cluster).tcp(
        "one",
        &format!("{}:80", ADDRESSES[0]),
        "secure",
    );
    play.world.put(SECRET, "mine", mine(&second));
    play.step("it is needed again", &[(get("/"), shown(&second))]);
    play.twins.control_plane.expect_no_violations();
}

#[test]
fn envoy_and_the_agent_live_by_the_same_secrets_in_state_of_the_world() {
    the_secrets("diff-secrets-sotw", false);
}

#[test]
fn envoy_and_the_agent_live_by_the_same_secrets_in_delta() {
    the_secrets("diff-secrets-delta", true);
}

/// In the clear, at a port that wants TLS.
fn in_the_clear() -> Check<'static> {
    super::script::status(400)
}

fn the_sockets(name: &str, delta: bool) {
    let pki = Pki::foreign();
    let [own, client] = [NAME, "client.example.com"].map(|name| pki.issue(&[name], Validity::Now));
    let mut play = Play::start(name, delta);
    let backend = &play.twins.backends[0];
    let (_nginx, endpoint) =
        (backend.runs_tls_nginx(TLS_PORT, &own, pki.root_pem()), backend.at(TLS_PORT));
    play.world.tcp("one", &format!("{}:80", ADDRESSES[0]), "mixed").eds("mixed", &[endpoint]);
    for (name, secret) in [("mine", certificate("mine", &client)), ("ca", roots("ca", &[&pki]))] {
        play.world.put(SECRET, name, secret);
    }
    let tls = tls();
    let raw = json!({
        "name": "envoy.transport_sockets.raw_buffer",
        "typed_config": {
            "@type":
                "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer",
        },
    });
    let matches = |rest: Value| {
        json!([
            { "name": "tls", "match": { "tlsMode": "istio" }, "transport_socket": tls },
            { "name": "rest", "match": rest, "transport_socket": raw },
        ])
    };
    let labels =
        |value: Value| json!({ "filter_metadata": { "envoy.transport_socket_match": value } });
    let tls_step = |play: &mut Play, what| play.step(what, &[(get("/"), shown(&client))]);
    let clear_step = |play: &mut Play, what| play.step(what, &[(get("/"), in_the_clear())]);

    play.world.at(CLUSTER, "mixed")["transport_socket_matches"] = matches(json!({}));
    clear_step(&mut play, "an endpoint without labels");
    let locality = |play: &mut Play, value| {
        play.world.at(ENDPOINTS, "mixed")["endpoints"][0]["metadata"] = value;
    };
    let endpoint = |play: &mut Play, value| {
        let locality = &mut play.world.at(ENDPOINTS, "mixed")["endpoints"][0];
        locality["lb_endpoints"][0]["metadata"] = value;
    };
    endpoint(&mut play, labels(json!({ "tlsMode": "istio", "other": 7 })));
    tls_step(&mut play, "it has the label");
    endpoint(&mut play, labels(json!({ "tlsMode": ["istio"] })));
    clear_step(&mut play, "it has another value");
    locality(&mut play, labels(json!({ "tlsMode": "istio" })));
    clear_step(&mut play, "its locality has it, where its own match already");
    play.world.at(CLUSTER, "mixed")["transport_socket_matches"] = matches(json!({ "a": true }));
    tls_step(&mut play, "its locality has it, where its own match nothing");
    locality(&mut play, labels(json!({ "a": false })));
    // Envoy sees a locality's new labels with its endpoints' next ones only.
    play.world.at(CLUSTER, "mixed")["connect_timeout"] = "3s".into();
    clear_step(&mut play, "nothing matches, and the cluster has no socket of its own");
    play.world.at(CLUSTER, "mixed")["transport_socket"] = tls.clone();
    tls_step(&mut play, "it has one");
    endpoint(&mut play, labels(json!({ "a": true })));
    clear_step(&mut play, "in the clear by its label");
    let bad = json!([{ "name": "x", "transport_socket": { "name": "nobody.knows" } }]);
    play.world.at(CLUSTER, "mixed")["transport_socket_matches"] = bad;
    play.refused("a socket that is unknown", &["Cluster"], &[(get("/"), in_the_clear())]);
    play.twins.control_plane.expect_no_violations();
}

#[test]
fn envoy_and_the_agent_choose_the_same_sockets_in_state_of_the_world() {
    the_sockets("diff-sockets-sotw", false);
}

#[test]
fn envoy_and_the_agent_choose_the_same_sockets_in_delta() {
    the_sockets("diff-sockets-delta", true);
}

/// Answered by the endpoint, which was asked for by this name.
fn asked_for(name: &'static str) -> Check<'static> {
    let text = format!("sni={name} ");
    Box::new(move |answers| {
        answers.is_status(200) && answers.texts().iter().all(|said| said.contains(&text))
    })
}

fn the_names(name: &str, delta: bool) {
    let pki = Pki::foreign();
    let own = pki.issue(&[NAME, "*.wild.example.com"], Validity::Now);
    let client = pki.issue(&["client.example.com"], Validity::Now);
    let mut play = Play::start(name, delta);
    let backend = &play.twins.backends[0];
    let (_nginx, endpoint) =
        (backend.runs_tls_nginx(TLS_PORT, &own, pki.root_pem()), backend.at(TLS_PORT));
    play.world.tcp("one", &format!("{}:80", ADDRESSES[0]), "named").eds("named", &[endpoint]);
    for (name, secret) in [("mine", certificate("mine", &client)), ("ca", roots("ca", &[&pki]))] {
        play.world.put(SECRET, name, secret);
    }
    let ads = json!({ "ads": {}, "resource_api_version": "V3" });
    play.world.at(CLUSTER, "named")["transport_socket"] = json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type":
                "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "sni": NAME, "auto_host_sni": true, "auto_sni_san_validation": true,
            "common_tls_context": {
                "tls_certificate_sds_secret_configs": [{ "name": "mine", "sds_config": ads }],
                "validation_context_sds_secret_config": { "name": "ca", "sds_config": ads },
            },
        },
    });
    play.step("an endpoint without a name", &[(get("/"), asked_for(NAME))]);
    let mut called = |what: &str, name: &str, expected| {
        let endpoints = &mut play.world.at(ENDPOINTS, "named")["endpoints"][0]["lb_endpoints"];
        endpoints[0]["endpoint"]["hostname"] = name.into();
        play.step(what, &[(get("/"), expected)]);
    };
    called("it has one", "a.wild.example.com", asked_for("a.wild.example.com"));
    called("another one", "b.wild.example.com", asked_for("b.wild.example.com"));
    called("one that is not its certificate's", "web.example.org", nothing());
    called("none any more", "", asked_for(NAME));
    play.twins.control_plane.expect_no_violations();
}

#[test]
fn envoy_and_the_agent_ask_endpoints_by_the_same_names_in_state_of_the_world() {
    the_names("diff-names-sotw", false);
}

#[test]
fn envoy_and_the_agent_ask_endpoints_by_the_same_names_in_delta() {
    the_names("diff-names-delta", true);
}

#[test]
fn envoy_and_the_agent_ask_for_the_same_hosts_where_routes_change_them() {
    let pki = Pki::foreign();
    let own = pki.issue(&[NAME, "*.wild.example.com"], Validity::Now);
    let client = pki.issue(&["client.example.com"], Validity::Now);
    let mut play = Play::start("diff-hosts", true);
    let backend = &play.twins.backends[0];
    let (_nginx, endpoint) =
        (backend.runs_tls_nginx(TLS_PORT, &own, pki.root_pem()), backend.at(TLS_PORT));
    let route = |prefix: &str, mut action: Value| {
        action["cluster"] = "by-host".into();
        json!({ "match": { "prefix": prefix }, "route": action })
    };
    let routes = json!([
        route("/literal", json!({ "host_rewrite_literal": "literal.wild.example.com" })),
        route("/endpoint", json!({ "auto_host_rewrite": true })),
        route("/", json!({})),
    ]);
    let address = format!("{}:80", ADDRESSES[0]);
    play.world.inline("one", &address, routes).eds("by-host", &[endpoint]);
    play.world.at(ENDPOINTS, "by-host")["endpoints"][0]["lb_endpoints"][0]["endpoint"]["hostname"] =
        "endpoint.wild.example.com".into();
    for (name, secret) in [("mine", certificate("mine", &client)), ("ca", roots("ca", &[&pki]))] {
        play.world.put(SECRET, name, secret);
    }
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let cluster = play.world.at(CLUSTER, "by-host");
    cluster["transport_socket"] = tls();
    cluster["transport_socket"]["typed_config"]["common_tls_context"]["combined_validation_context"]
        ["default_validation_context"] = json!({});
    cluster["typed_extension_protocol_options"] = json!({ options: {
        "@type": format!("type.googleapis.com/{options}"),
        "explicit_http_config": { "http_protocol_options": {} },
        "upstream_http_protocol_options": { "auto_sni": true },
    } });
    let asking = |path: &str| get(path).header("Host: own.wild.example.com");
    let own = || asked_for("own.wild.example.com");
    play.step("a host", &[(asking("/"), own())]);
    play.step("the endpoint's in its place", &[(asking("/endpoint"), own())]);
    let literal = asked_for("literal.wild.example.com");
    play.step("another in its place", &[(asking("/literal"), literal)]);
    play.step("one that is an address", &[(get("/"), asked_for(NAME))]);
    play.twins.control_plane.expect_no_violations();
}
