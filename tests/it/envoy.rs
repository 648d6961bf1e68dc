//! HBONE with a peer that we did not write: Envoy, in a pod the mesh knows nothing of.

use tests::{
    MeshConfig, Service, envoy,
    envoy::Envoy,
    mesh,
    pki::{Pki, Validity},
};

/// The identity that Envoy proves where it is the server.
const ENVOY: &str = "spiffe://cluster.local/ns/default/sa/envoy";

#[test]
fn envoy_as_a_client_reaches_the_application_by_its_identity_only() {
    let Some(binary) = envoy::binary() else {
        return println!("SKIPPED: no Envoy in target/tools, see `cargo xtask setup`");
    };
    let mesh = mesh::server_and_client("envoy-client", "echo");
    let (trusted, foreign) = (Pki::of_the_mesh(&mesh.bed.node(1).ca_dir()), Pki::foreign());
    let client = mesh.client.identity();
    let server = mesh.server.identity();
    let tunnel = mesh.server.at(15008).to_string();
    let authority = mesh.server.at(mesh::SERVER_PORT).to_string();
    let to = (tunnel.as_str(), authority.as_str());
    let good = trusted.issue(&[&client], Validity::Now);
    let somebody = trusted.issue(&["spiffe://cluster.local/ns/default/sa/somebody"], Validity::Now);
    let forged = foreign.issue(&[&client], Validity::Now);

    let pod = mesh.plain_pod("envoy");
    let _envoy = Envoy::default()
        .tunnels(10001, to, (&trusted, &good), &server)
        .tunnels(10002, to, (&trusted, &somebody), &server)
        .tunnels(10003, to, (&trusted, &forged), &server)
        .tunnels(10004, to, (&trusted, &good), "spiffe://cluster.local/ns/default/sa/other")
        .start(&binary, &pod);
    let dials = |port: u16| pod.connects(([127, 0, 0, 1], port).into());

    dials(10001).echoes("hello from Envoy").half_closes().expect_closed();
    let entry = mesh.far().logs_access(&["inbound", &client, "client-may-talk"]);
    assert_eq!(entry["connection_security_policy"], "mutual_tls", "{entry}");

    dials(10002).says("let me in").expect_cut_off();
    mesh.far().logs_access(&["sa/somebody", "UAEX"]);
    dials(10003).says("let me in").expect_cut_off();
    mesh.far().logs(&["HBONE handshake failed", "unknown_issuer"]);
    // The other way about: Envoy refuses an agent that proves what it did not expect.
    dials(10004).says("let me in").expect_cut_off();
}

#[test]
fn envoy_as_a_server_is_talked_to_if_it_proves_the_identity() {
    let Some(binary) = envoy::binary() else {
        return println!("SKIPPED: no Envoy in target/tools, see `cargo xtask setup`");
    };
    let mut mesh = mesh::server_and_client("envoy-server", "echo");
    let trusted = Pki::of_the_mesh(&mesh.bed.node(1).ca_dir());
    let credentials = trusted.issue(&[ENVOY], Validity::Now);
    let pod = mesh.bed.node(2).pod("envoy").start();
    let _echo = pod.serves("echo", 9000);
    let _envoy = Envoy::default().terminates(9000, &trusted, &credentials).start(&binary, &pod);
    let other = "spiffe://cluster.local/ns/default/sa/other";
    mesh.reconfigure(
        MeshConfig::new()
            .service(&Service::tcp("good", "10.96.0.31:9000").backed_by_claiming(&pod, 9000, ENVOY))
            .service(&Service::tcp("bad", "10.96.0.32:9000").backed_by_claiming(&pod, 9000, other)),
    );

    let dials = |address: &str| mesh.client.connects(address.parse().unwrap());
    dials("10.96.0.31:9000").echoes("hello to Envoy").half_closes().expect_closed();
    let entry = mesh.near().logs_access(&["outbound", "10.96.0.31:9000"]);
    assert_eq!(entry["destination_identity"], ENVOY, "{entry}");
    assert_eq!(entry["connection_security_policy"], "mutual_tls", "{entry}");

    dials("10.96.0.32:9000").says("who are you").expect_cut_off();
    let entry = mesh.near().logs_access(&["outbound", "10.96.0.32:9000", "UF"]);
    let reason = entry["denied_reason"].as_str().expect("a reason");
    assert!(reason.ends_with(&format!("expected {other}, but the peer is {ENVOY}")), "{entry}");
}
