//! What is captured and what is left alone.

use std::net::SocketAddr;

use serde_json::json;
use tests::{Allow, Inbound, MeshConfig, Service, config::TCP_PROXY, eventually, mesh};

#[test]
fn pods_that_are_not_enrolled_are_untouched() {
    let mesh = mesh::web_and_client("not-enrolled");
    let (one, two) = (mesh.plain_pod("one"), mesh.bed.node(2).pod("two").start());
    let _who = two.serves("who", 7000);
    let wire = mesh.bed.wire().capture();
    let heard = one.connects(two.at(7000)).expect_closed();
    assert!(heard.contains(&format!("you are {} ", one.ip())), "{heard}");
    wire.expect_plaintext("you are");
    // A service address means nothing to them.
    let sent = one.curl(mesh::WEB).send();
    assert_eq!(sent.status(), None, "{}", sent.ran());
}

#[test]
fn what_no_listener_is_for_passes_in_the_clear_unless_told_otherwise() {
    let mut mesh = mesh::web_and_client("passthrough");
    let plain = mesh.bed.node(2).pod("plain").start();
    let _greet = plain.serves("greet", 7000);
    mesh.client.connects(plain.at(7000)).hears("220 ready").echoes("words");
    let entry = mesh.near().logs_access(&["outbound", &plain.at(7000).to_string()]);
    assert_eq!(entry["connection_security_policy"], "none", "{entry}");

    mesh.agents[0].restart_with(&["--outbound-policy", "registry-only"]);
    mesh.client.connects(plain.at(7000)).expect_cut_off();
    mesh.client.curl(mesh::WEB).expect_status(200);
}

#[test]
fn one_listener_takes_whatever_no_other_is_for() {
    // As Istio's `virtualOutbound` and `virtualInbound`.
    let tcp = |cluster: &str| {
        json!([{
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": { "@type": TCP_PROXY, "stat_prefix": "any", "cluster": cluster },
        }])
    };
    let any = |direction: &str, port: u16, closed: u16| {
        json!({
            "name": format!("virtual-{direction}"),
            "traffic_direction": direction,
            "use_original_dst": true,
            "address": { "socket_address": { "address": "0.0.0.0", "port_value": port } },
            "filter_chains": [{
                "filter_chain_match": { "destination_port": closed },
                "filters": tcp("BlackHoleCluster"),
            }],
            "default_filter_chain": { "filters": tcp("PassthroughCluster") },
        })
    };
    let mesh = mesh::web_and_client("use-original-dst");
    let plain = mesh.bed.node(2).pod("plain").start();
    let _programs =
        [7000, 7001].map(|port| (plain.serves("greet", port), mesh.server.serves("greet", port)));
    let greet = |port: u16| SocketAddr::from(([10, 96, 0, 20], port));
    let service = |port| {
        let service = Service::tcp(&format!("greet-{port}"), &greet(port).to_string());
        service.backed_by(&mesh.server, port)
    };
    let config = mesh
        .config
        .clone()
        .raw_cluster(json!({ "name": "BlackHoleCluster", "type": "STATIC" }))
        .raw_cluster(json!({
            "name": "PassthroughCluster", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED",
        }))
        .service(&service(7000))
        .service(&service(7001))
        .raw_listener(any("OUTBOUND", 15001, 7001))
        .raw_listener(any("INBOUND", 15006, 7001));
    mesh.agents.iter().for_each(|agent| agent.configure(&config));

    mesh.client.connects(plain.at(7000)).hears("220 ready").echoes("words");
    mesh.near().logs_access(&["virtual-OUTBOUND", &plain.at(7000).to_string()]);
    mesh.client.connects(plain.at(7001)).expect_cut_off();
    // Those that have a listener of their own are not its.
    mesh.client.curl(mesh::WEB).expect_status(200);
    mesh.client.curl(mesh::WEB).arguments(&["-X", "DELETE"]).expect_status(403);
    mesh.client.connects(greet(7000)).hears("220 ready").echoes("words");
    mesh.far().logs_access(&["virtual-INBOUND", &mesh.server.at(7000).to_string()]);
    mesh.client.connects(greet(7001)).expect_cut_off();

    mesh.near().configure(&mesh.config);
    mesh.client.connects(plain.at(7001)).hears("220 ready");
    mesh.near().logs_access(&["\"listener\":null", &plain.at(7001).to_string()]);
}

#[test]
fn a_running_pod_is_enrolled_without_losing_a_connection() {
    let mesh = mesh::web_and_client("enrol-running");
    // What is strict speaks no plaintext: see `guard`.
    let pod = mesh.bed.node(1).pod("late").permissive().start();
    let plain = mesh.bed.node(2).pod("plain").start();
    let _echo = plain.serves("echo", 7000);
    let mut old = pod.connects(plain.at(7000));
    old.echoes("before");
    mesh.near().enroll(&pod);
    old.echoes("after");
    // New connections are captured: the agent answers for the service now.
    pod.curl(mesh::WEB).expect_status(403);
    let pods = mesh.near().pods();
    assert!(pods.to_string().contains(&pod.identity()), "{pods}");

    mesh.near().unenroll(&pod);
    eventually("plain networking is back", || {
        match pod.curl(mesh::WEB).arguments(&["--connect-timeout", "1"]).send().status() {
            None => Ok(()),
            answered => Err(answered),
        }
    });
    pod.connects(plain.at(7000)).echoes("plain again");
    assert!(!mesh.near().pods().to_string().contains(&pod.uid()));
}

#[test]
fn excluded_ports_and_networks_stay_out_of_the_mesh() {
    let mesh = mesh::web_and_client("excluded");
    let plain = mesh.bed.node(2).pod("plain").start();
    let (_who, _other) = (plain.serves("who", 7000), plain.serves("who", 7001));
    let pod = mesh
        .bed
        .node(1)
        .pod("excluding")
        .without_outbound_port(7000)
        .without_outbound_cidr("10.96.0.0/16")
        .start();
    mesh.near().enroll(&pod);
    pod.connects(plain.at(7000)).expect_closed();
    pod.connects(plain.at(7001)).expect_closed();
    mesh.near().logs_access(&[&plain.at(7001).to_string()]);
    let log = format!("{:?}", mesh.near().access_log());
    assert!(!log.contains(&plain.at(7000).to_string()), "{log}");
    assert_eq!(pod.curl(mesh::WEB).send().status(), None, "the service's network is excluded");

    let server = mesh.bed.node(2).pod("probed").without_inbound_port(7000).start();
    let (_who, _other) = (server.serves("who", 7000), server.serves("who", 7001));
    mesh.far().enroll(&server);
    let outsider = mesh.plain_pod("outsider");
    assert!(outsider.connects(server.at(7000)).expect_closed().contains("you are"));
    outsider.connects(server.at(7001)).expect_cut_off();
}

#[test]
fn pods_of_one_node_talk_through_the_mesh_too() {
    let mut mesh = mesh::web_and_client("same-node");
    let neighbour = mesh.bed.node(1).pod("neighbour").start();
    let _nginx = neighbour.runs_nginx(8080);
    mesh.near().enroll(&neighbour);
    let service = Service::http("neighbour", "10.96.0.30:80").backed_by(&neighbour, 8080);
    let inbound = Inbound::http(&neighbour, 8080)
        .allow(Allow::policy("client").from(&mesh.client).methods(&["GET"]));
    mesh.reconfigure(MeshConfig::new().service(&service).inbound(&inbound));
    mesh.client.curl("http://10.96.0.30/").expect_status(200).expect_body("hello from neighbour");
    mesh.client.curl("http://10.96.0.30/").method("PUT").body("x").expect_status(403);
    mesh.enrolled_pod("intruder").curl("http://10.96.0.30/").expect_status(403);
}

#[test]
fn loopback_is_nobodys_business() {
    let mesh = mesh::web_and_client("loopback");
    let _echo = mesh.client.serves("echo", 7000);
    mesh.client.connects("127.0.0.1:7000".parse().unwrap()).echoes("v4");
    mesh.client.connects("[::1]:7000".parse().unwrap()).echoes("v6");
    mesh.client.connects(mesh.client.at(7000)).echoes("own address");
}
