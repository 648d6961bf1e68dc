//! Who gets in: strict mTLS, certificates of every wrong kind, rotation.

use serde_json::Value;
use tests::{
    Allow, Inbound, Mesh, MeshConfig, Service, eventually_within, mesh,
    pki::{Pki, Validity},
};

use crate::hbone_client::{Outcome, connect};

#[test]
fn plaintext_at_a_strict_pod_is_refused() {
    let mesh = mesh::web_and_client("strict");
    let outsider = mesh.plain_pod("outsider");
    outsider.curl(&format!("http://{}/", mesh.server.at(mesh::WEB_PORT))).expect_refused();
    // Any port: also one that no listener is configured for.
    let _other = mesh.server.serves("greet", 7777);
    outsider.connects(mesh.server.at(7777)).expect_cut_off();
    assert_eq!(mesh.server.nginx_log(mesh::WEB_PORT), "");
    // From the pod itself it is not from outside.
    mesh.server.curl(&format!("http://127.0.0.1:{}/", mesh::WEB_PORT)).expect_status(200);
    mesh.server.connects(mesh.server.at(7777)).hears("220 ready");
}

#[test]
fn a_permissive_pod_takes_plaintext_without_identity() {
    let bed = tests::Testbed::two_nodes("permissive");
    let client = bed.node(1).pod("client").start();
    let web = bed.node(2).pod("web").permissive().start();
    let nginx = web.runs_nginx(mesh::WEB_PORT);
    let config =
        MeshConfig::new()
            .service(&Service::http("web", "10.96.0.10:80").backed_by(&web, mesh::WEB_PORT))
            .inbound(&Inbound::http(&web, mesh::WEB_PORT).allow(
                Allow::policy("anyone-reads-public").methods(&["GET"]).path_prefix("/public"),
            ))
            .inbound(&Inbound::http(&web, mesh::WEB_PORT + 1).open());
    let mesh = Mesh::start(bed, client, web, nginx, config);
    let outsider = mesh.plain_pod("outsider");
    let at = mesh.server.at(mesh::WEB_PORT);
    outsider.curl(&format!("http://{at}/public")).expect_status(200);
    outsider.curl(&format!("http://{at}/private")).expect_status(403);
    let entry = mesh.far().logs_access(&["/public"]);
    assert_eq!(entry["source_identity"], Value::Null, "{entry}");
    assert_eq!(entry["connection_security_policy"], "none", "{entry}");
    mesh.client.curl("http://10.96.0.10/public").expect_status(200);
}

#[test]
fn a_port_whose_owner_asks_for_plaintext_takes_it() {
    let mut mesh = mesh::web_and_client("raw-buffer");
    let inbound = Inbound::http(&mesh.server, mesh::WEB_PORT).open().plaintext();
    let service = Service::http("web", "10.96.0.10:80").backed_by(&mesh.server, mesh::WEB_PORT);
    mesh.reconfigure(MeshConfig::new().service(&service).inbound(&inbound));
    let outsider = mesh.plain_pod("outsider");
    outsider.curl(&format!("http://{}/", mesh.server.at(mesh::WEB_PORT))).expect_status(200);
    mesh.client.curl(mesh::WEB).expect_status(200);
}

#[test]
fn only_good_certificates_get_in_and_each_refusal_says_why() {
    let mesh = mesh::web_and_client("certificates");
    let attacker = mesh.plain_pod("attacker");
    let (trusted, foreign) = (Pki::of_the_mesh(&mesh.bed.node(1).ca_dir()), Pki::foreign());
    let (to, authority) = (mesh.server.at(15008), mesh.server.at(mesh::WEB_PORT).to_string());
    let client = mesh.client.identity();
    let try_with = |credentials: Option<&_>| connect(&attacker, to, credentials, &authority);

    let good = trusted.issue(&[&client], Validity::Now);
    assert_eq!(try_with(Some(&good)), Outcome::Answered(200), "the control");

    let foreign_domain = "spiffe://elsewhere.example/ns/default/sa/client";
    let cases = [
        (None, "no certificate"),
        (Some(foreign.issue(&[&client], Validity::Now)), "issuer"),
        (Some(trusted.issue(&[&client], Validity::Past)), "expired"),
        (Some(trusted.issue(&[&client], Validity::Future)), "not valid before"),
        (Some(trusted.issue(&[foreign_domain], Validity::Now)), "elsewhere.example"),
        (Some(trusted.issue(&[], Validity::Now)), "URI"),
        (Some(trusted.issue(&[&client, &mesh.server.identity()], Validity::Now)), "URI"),
    ];
    for (credentials, reason) in &cases {
        try_with(credentials.as_ref()).expect_turned_away();
        mesh.far().logs(&[reason]);
    }
    let failures = mesh.far().metrics().sum("mesh_handshake_failures_total", &[]);
    assert!(failures >= 7.0, "{failures} handshake failures counted");
    assert_eq!(mesh.server.nginx_log(mesh::WEB_PORT), "");
    mesh.client.curl(mesh::WEB).expect_status(200);
}

#[test]
fn a_server_that_proves_another_identity_is_not_talked_to() {
    let mut mesh = mesh::web_and_client("wrong-server");
    let service = Service::http("web", "10.96.0.10:80").backed_by_claiming(
        &mesh.server,
        mesh::WEB_PORT,
        "spiffe://cluster.local/ns/default/sa/somebody-else",
    );
    let inbound = Inbound::http(&mesh.server, mesh::WEB_PORT).open();
    mesh.reconfigure(MeshConfig::new().service(&service).inbound(&inbound));
    mesh.client.curl(mesh::WEB).expect_status(503);
    mesh.near().logs(&["somebody-else"]);
    assert_eq!(mesh.server.nginx_log(mesh::WEB_PORT), "");
}

#[test]
fn agents_of_foreign_trust_domains_do_not_talk() {
    let bed = tests::Testbed::two_nodes("foreign-domain");
    let (client, web) = (bed.node(1).pod("client").start(), bed.node(2).pod("web").start());
    let _nginx = web.runs_nginx(mesh::WEB_PORT);
    let config = mesh::web_config(&client, &web);
    config.write_to(&bed.node(1).config_dir());
    config.write_to(&bed.node(2).config_dir());
    let near = bed.node(1).agent().with_pod(&client).own_ca("elsewhere.example").start();
    let far = bed.node(2).agent().with_pod(&web).start();
    client.curl(mesh::WEB).expect_status(503);
    assert_eq!(web.nginx_log(mesh::WEB_PORT), "");
    drop((near, far));
}

#[test]
fn certificates_rotate_while_a_connection_lives() {
    let bed = tests::Testbed::two_nodes("rotation");
    let (client, server) = (bed.node(1).pod("client").start(), bed.node(2).pod("server").start());
    let _echo = server.serves("echo", mesh::SERVER_PORT);
    let config = mesh::server_config(&client, &server);
    let agents = [(1, &client), (2, &server)].map(|(number, pod)| {
        config.write_to(&bed.node(number).config_dir());
        bed.node(number).agent().with_pod(pod).flags(&["--certificate-ttl", "10s"]).start()
    });
    let mut talk = client.connects(mesh::SERVER.parse().unwrap());
    talk.echoes("before");
    let serial = |agent: &tests::Agent| agent.status()["certificates"][0]["serial"].clone();
    let before = [serial(&agents[0]), serial(&agents[1])];
    assert!(before.iter().all(Value::is_string), "{before:?}");
    eventually_within(std::time::Duration::from_secs(30), "both certificates rotate", || {
        talk.echoes("during");
        let now = [serial(&agents[0]), serial(&agents[1])];
        if now.iter().zip(&before).all(|(a, b)| a != b) { Ok(()) } else { Err(now) }
    });
    talk.echoes("after");
    client.connects(mesh::SERVER.parse().unwrap()).echoes("a new connection");
}
