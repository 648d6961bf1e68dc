//! Secrets of clusters that speak TLS to their endpoints.
//!
//! Opaque connections: each makes a connection of its own to the endpoint, where Envoy's
//! pools keep what was made by an older certificate.

use serde_json::json;
use tests::{
    pki::{Credentials, Pki, Validity},
    twins::ADDRESSES,
};

use super::{
    script::{Check, Play, get, nothing},
    world::{ENDPOINTS, SECRET, World},
};
use crate::sds::{certificate, roots};

const TLS_PORT: u16 = 8443;
const NAME: &str = "web.example.com";

fn secured(world: &mut World, endpoint: std::net::SocketAddr) {
    let ads = json!({ "ads": {}, "resource_api_version": "V3" });
    let names = json!([{ "san_type": "DNS", "matcher": { "exact": NAME } }]);
    world.fixed("secure", &[endpoint]).remove(ENDPOINTS, "secure");
    world.at("Cluster", "secure")["transport_socket"] = json!({
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
    });
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
