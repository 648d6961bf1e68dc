//! IPv6, and IPv4 in IPv6's clothes.

use tests::{Allow, Inbound, MeshConfig, Service, mesh};

#[test]
fn a_service_is_reached_over_ipv6() {
    let mesh = mesh::web_and_client("ipv6-http");
    mesh.client.curl(mesh::WEB6).expect_status(200);
    mesh.client.curl(mesh::WEB6).method("DELETE").expect_status(403);
    let entry = mesh.near().logs_access(&["outbound", "[fd00:96::10]:80"]);
    assert_eq!(entry["original_destination"], "[fd00:96::10]:80", "{entry}");
}

#[test]
fn an_ipv6_endpoint_sees_the_clients_ipv6_address() {
    let mut mesh = mesh::server_and_client("ipv6-endpoint", "who");
    let service =
        Service::tcp("server", mesh::SERVER6).backed_by_ipv6(&mesh.server, mesh::SERVER_PORT);
    let inbound = Inbound::tcp(&mesh.server, mesh::SERVER_PORT)
        .allow(Allow::policy("client").from(&mesh.client));
    mesh.reconfigure(MeshConfig::new().service(&service).inbound(&inbound));
    let wire = mesh.bed.wire().capture();
    let heard = mesh.client.connects(mesh::SERVER6.parse().unwrap()).expect_closed();
    assert!(heard.contains(&format!("you are {} ", mesh.client.ip6())), "{heard}");
    assert!(heard.contains(&format!("I am {} ", mesh.server.ip6())), "{heard}");
    wire.expect_only_tls();
}

#[test]
fn ipv4_mapped_addresses_are_captured_as_ipv4() {
    let mesh = mesh::server_and_client("ipv6-mapped", "echo");
    let wire = mesh.bed.wire().capture();
    mesh.client.connects_mapped(mesh::SERVER.parse().unwrap()).echoes("mapped words");
    wire.expect_only_tls();
    let entry = mesh.near().logs_access(&["outbound"]);
    assert_eq!(entry["original_destination"], mesh::SERVER, "{entry}");
}

#[test]
fn plaintext_over_ipv6_is_refused_too() {
    let mesh = mesh::web_and_client("ipv6-strict");
    let outsider = mesh.plain_pod("outsider");
    outsider.curl(&format!("http://{}/", mesh.server.at6(mesh::WEB_PORT))).expect_refused();
    assert_eq!(mesh.server.nginx_log(mesh::WEB_PORT), "");
}
