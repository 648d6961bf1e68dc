//! Sockets of the kernel path that hand each other their data past TCP.

use serde_json::{Value, json};
use tests::{
    Allow, Inbound, MeshConfig, Service, Testbed,
    conversation::end,
    eventually,
    mesh::{SERVER, SERVER_PORT},
    pki::{Pki, Validity},
};

use crate::kernel_path::{Neighbours, config};

/// Two pods whose connections are spliced, whatever the kernel's self-test says.
fn spliced(name: &str, kind: &str) -> Neighbours {
    let it = Neighbours::start_with(name, kind, &["--splice", "on"]);
    it.wait_for_services(2);
    it
}

/// What the kernel's self-test found, when it has come to its end.
fn self_test(it: &Neighbours) -> Vec<Value> {
    let mut checks = Vec::new();
    eventually("the kernel is tested", || {
        let status = it.agent.status();
        match status["self_test"]["checks"].as_array() {
            Some(found) => {
                checks.clone_from(found);
                Ok(())
            }
            None => Err(status),
        }
    });
    checks
}

fn names(checks: &[Value]) -> Vec<&str> {
    checks.iter().map(|check| check["name"].as_str().expect("a name")).collect()
}

fn failed(checks: &[Value]) -> Vec<Value> {
    let fails = |check: &&Value| check["kind"] == "splice" && check["passed"] == false;
    checks.iter().filter(fails).cloned().collect()
}

/// Directions that were spliced, and those that stayed on TCP although they could be.
fn directions(it: &Neighbours) -> (u64, u64) {
    (it.verdict("splice_begun"), it.verdict("splice_left"))
}

#[test]
fn what_the_self_test_says_is_what_auto_does() {
    let it = Neighbours::start_with("splice-auto", "echo", &[]);
    let checks = self_test(&it);
    let metrics = it.agent.metrics();
    for check in &checks {
        let label = format!("check=\"{}\"", check["name"].as_str().unwrap());
        let expected = f64::from(u8::from(check["passed"] == true));
        let found = metrics.sum("mesh_selftest", &[&label]);
        assert!((found - expected).abs() < 0.1, "{label} is {found}");
    }
    let failed = failed(&checks);
    eventually("the result is acted on", || {
        let status = it.agent.status();
        let off = &status["kernel_path"]["splice"]["off"];
        let told = names(&failed).iter().all(|name| off.to_string().contains(name));
        if told && off.is_null() == failed.is_empty() { Ok(()) } else { Err(status) }
    });
    it.talk().echoes("one").echoes("two");
    if failed.is_empty() {
        assert_ne!(it.verdict("splice_entered"), 0);
    } else {
        assert_eq!((it.verdict("splice_entered"), directions(&it)), (0, (0, 0)));
    }
}

#[test]
fn on_names_the_checks_that_fail_and_splices_all_the_same() {
    let it = spliced("splice-on", "echo");
    let checks = self_test(&it);
    for name in names(&failed(&checks)) {
        it.agent.logs(&["splice is on although", name]);
    }
    assert!(it.agent.status()["kernel_path"]["splice"]["off"].is_null());
    let mut talk = it.talk();
    talk.echoes("plain words").echoes("and more");
    assert_eq!(directions(&it), (2, 0));
    // Bytes that TCP has never seen are accounted for while the connection lives.
    eventually("the connection is listed with its bytes", || {
        let live = it.agent.connections();
        let moved = |row: &Value| row["bytes_received"] == 19 && row["bytes_sent"] == 19;
        match live.as_array() {
            Some(rows) if rows.len() == 2 && rows.iter().all(moved) => Ok(()),
            _ => Err(live),
        }
    });
    talk.half_closes();
    assert_eq!(talk.expect_closed(), "");
    for direction in ["outbound", "inbound"] {
        let entry = it.agent.logs_access(&[&format!("\"{direction}\"")]);
        assert_eq!(entry["path"], "kernel", "{entry}");
        assert_eq!(entry["bytes_received"], 19, "{entry}");
        assert_eq!(entry["bytes_sent"], 19, "{entry}");
        assert_eq!(entry["response_flags"], "-", "{entry}");
    }
}

#[test]
fn over_every_address_family() {
    let it = spliced("splice-families", "echo");
    let v6 = tests::mesh::SERVER6.parse().unwrap();
    it.client.connects(v6).echoes("over IPv6");
    it.client.connects_mapped(SERVER.parse().unwrap()).echoes("by a mapped address");
    let (begun, left) = directions(&it);
    assert_eq!((begun, left), (4, 0));
}

#[test]
fn bodies_of_every_size_arrive_whole() {
    let it = spliced("splice-bulk", "digest");
    for bytes in [64_u32 << 10, 1 << 20, 16 << 20, 256 << 20] {
        let bytes = bytes.to_string();
        it.client.run_peer(&["transfer", SERVER, &bytes, &bytes, "1"]).expect_success();
    }
    let (begun, left) = directions(&it);
    assert_eq!(begun + left, 8);
    assert!(begun >= 4, "the server's end is always there when it sends: {begun}");
    // The two numbers that say how much, and the digest.
    let entry = it.agent.logs_access(&["\"inbound\"", &((256_u32 << 20) + 16).to_string()]);
    assert_eq!(entry["bytes_sent"], (256 << 20) + 32, "{entry}");
}

/// What README warns of, seen by a program that does it.
#[test]
fn a_blocking_reader_fails_after_its_shutdown_where_the_self_test_says_so() {
    let it = spliced("splice-blocking", "echo");
    let failed = failed(&self_test(&it));
    let told = names(&failed).contains(&"splice_recv_after_shutdown");
    let arguments = ["echoed", SERVER, "16777216", "8"];
    // It takes a wake-up at the wrong moment: not every try has one.
    let fails = (0..20).any(|_| {
        let ran = it.client.run_peer(&arguments);
        if ran.code() != Some(0) {
            ran.expect_output("Resource temporarily unavailable");
            return true;
        }
        false
    });
    assert_eq!(fails, told, "the self-test fails: {:?}", names(&failed));
    // The bytes are all there for who asks again.
    it.client.run_peer(&[&arguments[..], &["--again"]].concat()).expect_success();
}

#[test]
fn two_hundred_connections_at_once() {
    let it = spliced("splice-many", "digest");
    it.client.run_peer(&["transfer", SERVER, "100000", "100000", "200"]).expect_success();
    let (begun, left) = directions(&it);
    assert_eq!((begun + left, it.verdict("splice_entered")), (400, 400));
    eventually("nothing is left behind", || {
        let live = it.agent.connections();
        if live.as_array().is_some_and(Vec::is_empty) { Ok(()) } else { Err(live) }
    });
}

/// The kernel keeps such a socket in the map, and its peer, who has not closed yet, is there
/// as well.
#[test]
fn a_socket_that_connects_again_talks_to_nobody_of_before() {
    let it = spliced("splice-again", "once");
    it.wait_for_services(2);
    let before = directions(&it);
    it.client.run_peer(&["parts", "20", SERVER]).expect_success();
    let (begun, left) = directions(&it);
    assert_eq!((begun - before.0, left - before.1), (40, 0));
    assert_eq!(it.verdict("splice_refused"), 0);
}

#[test]
fn a_change_of_policy_cuts_a_spliced_connection() {
    let it = spliced("splice-revoke", "echo");
    let stranger = it.bed.node(1).pod("stranger").start();
    let mut talk = it.talk();
    talk.echoes("allowed");
    assert_eq!(directions(&it), (2, 0));
    it.agent.configure(&config(&stranger, &it.server));
    assert_eq!(talk.rest().1, end::RESET);
    let entry = it.agent.logs_access(&["\"inbound\"", "after a change of configuration"]);
    assert_eq!(entry["path"], "kernel", "{entry}");
    assert_eq!(entry["bytes_received"], 7, "{entry}");
    it.talk().expect_cut_off();
}

#[test]
fn spliced_connections_outlive_the_agent() {
    let mut it = spliced("splice-dead", "echo");
    let mut talk = it.talk();
    talk.echoes("before");
    it.agent.kill_9();
    talk.echoes("during");
    it.talk().expect_refused();
    it.agent.restart();
    talk.echoes("after");
    it.wait_for_services(2);
    it.talk().echoes("new");
    // Two directions of the old connection, two of the new one.
    assert_eq!(directions(&it), (4, 0));
    talk.half_closes();
    assert_eq!(talk.expect_closed(), "");
    let entry = it.agent.logs_access(&["\"inbound\"", "\"bytes_received\":17"]);
    assert_eq!(entry["bytes_sent"], 17, "{entry}");
}

#[test]
fn both_ends_have_to_agree() {
    let it = Neighbours::of("splice-agree", "echo", &["--splice", "auto"], |pod| pod.splice("on"));
    it.wait_for_services(2);
    it.talk().echoes("both want it");
    assert_eq!(directions(&it), (2, 0));
    let other = it.bed.node(1).pod("other").splice("off").start();
    it.agent.enroll(&other);
    it.agent.configure(&config(&other, &it.server));
    it.wait_for_services(2);
    other.connects(SERVER.parse().unwrap()).echoes("one does not");
    assert_eq!((it.verdict("splice_entered"), directions(&it)), (2, (2, 0)));
}

#[test]
fn an_agent_that_is_told_off_splices_nobody() {
    let it = Neighbours::of("splice-off", "echo", &["--splice", "off"], |pod| pod.splice("on"));
    it.wait_for_services(2);
    it.talk().echoes("plain TCP");
    assert_eq!((it.verdict("splice_entered"), directions(&it)), (0, (0, 0)));
    let off = &it.agent.status()["kernel_path"]["splice"]["off"];
    assert_eq!(*off, "switched off");
}

#[test]
fn what_carries_tls_is_never_spliced() {
    let bed = Testbed::two_nodes("splice-tls");
    let (client, server) = (bed.node(1).pod("client").start(), bed.node(2).pod("server").start());
    let _echo = server.serves("echo", SERVER_PORT);
    let service = Service::tcp("server", SERVER).backed_by(&server, SERVER_PORT);
    let inbound = Inbound::tcp(&server, SERVER_PORT).allow(Allow::policy("all").from(&client));
    let mesh = MeshConfig::new().service(&service).inbound(&inbound);
    let agents = [(1, &client), (2, &server)].map(|(number, pod)| {
        let node = bed.node(number);
        mesh.write_to(&node.config_dir());
        node.agent().with_pod(pod).flags(&["--splice", "on"]).start()
    });
    let capture = bed.wire().capture();
    let mut talk = client.connects(SERVER.parse().unwrap());
    talk.echoes("a secret between nodes").echoes("and another");
    for agent in &agents {
        let entered =
            agent.metrics().sum("mesh_bpf_verdicts_total", &["verdict=\"splice_entered\""]);
        assert!(entered < 0.5, "{entered} sockets entered the map");
        // An application's and the agent's, on loopback, and not what joins the nodes.
        eventually("both ends within a node are all there is", || {
            let status = agent.status();
            let in_map = entries_of(&status, "SPLICED");
            if in_map == 0 || in_map == 2 { Ok(()) } else { Err(status) }
        });
    }
    talk.half_closes();
    assert_eq!(talk.expect_closed(), "");
    capture.expect_only_tls();
    capture.expect_no_trace_of("secret");
}

/// Sockets in `SPLICED` now.
fn in_the_map(it: &Neighbours) -> u64 {
    entries_of(&it.agent.status(), "SPLICED")
}

fn entries_of(status: &Value, name: &str) -> u64 {
    let maps = status["maps"].as_array().expect("maps");
    let map = maps.iter().find(|map| map["map"] == name).expect("that map");
    map["entries"].as_u64().expect("a number")
}

#[test]
fn beside_spliced_sockets_none_that_carries_tls_is_in_their_map() {
    const FAR: &str = "10.96.0.50:9000";
    let it = spliced("splice-beside-tls", "echo");
    // Two ways out by TLS of the agent's: HBONE, and a cluster with `UpstreamTlsContext`.
    let (node, pki) = (it.bed.node(2), Pki::foreign());
    let (far, secure) = (node.pod("far").start(), node.pod("secure").start());
    let _echo = far.serves("echo", SERVER_PORT);
    let certificate = pki.issue(&["web.example.com"], Validity::Now);
    let _nginx = secure.runs_tls_nginx(8443, &certificate, pki.root_pem());
    let context = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "sni": "web.example.com",
        "common_tls_context": {
            "tls_certificates": [{
                "certificate_chain": { "inline_string": certificate.certificate_pem },
                "private_key": { "inline_string": certificate.key_pem },
            }],
            "validation_context": {
                "trusted_ca": { "inline_string": pki.root_pem() },
                "match_typed_subject_alt_names": [
                    { "san_type": "DNS", "matcher": { "exact": "web.example.com" } }
                ],
            },
        },
    });
    let to = secure.at(8443);
    let address = json!({ "socket_address": { "address": to.ip(), "port_value": to.port() } });
    let endpoint = json!({ "endpoint": { "address": address } });
    let cluster = json!({
        "name": "secure", "type": "STATIC", "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": "secure", "endpoints": [{ "lb_endpoints": [endpoint] }],
        },
        "transport_socket": { "name": "envoy.transport_sockets.tls", "typed_config": context },
    });
    let routes = json!([{ "match": { "prefix": "/" }, "route": { "cluster": "secure" } }]);
    let mesh = config(&it.client, &it.server)
        .raw_cluster(cluster)
        .service(&Service::http("web", "10.96.0.51:80").routes(routes))
        .service(&Service::tcp("far", FAR).backed_by(&far, SERVER_PORT))
        .inbound(&Inbound::tcp(&far, SERVER_PORT).allow(Allow::policy("far").from(&it.client)));
    mesh.write_to(&node.config_dir());
    let _far_agent = node.agent().with_pod(&far).flags(&["--splice", "on"]).start();
    it.agent.configure(&mesh);
    it.wait_for_services(2);
    eventually("what goes to the far node is spliced with the agent", || {
        it.client.connects(FAR.parse().unwrap()).echoes("ready");
        let entered = it.verdict("splice_agent_entered");
        if entered > 0 && in_the_map(&it) == 0 { Ok(()) } else { Err(it.agent.status()) }
    });
    let (with_agent, before) = (it.verdict("splice_agent_entered"), it.verdict("splice_begun"));

    let wire = it.bed.wire().capture();
    let mut near = it.talk();
    near.echoes("a secret of neighbours");
    assert_eq!((it.verdict("splice_begun") - before, in_the_map(&it)), (2, 2), "both, nobody else");
    let mut through = it.client.connects(FAR.parse().unwrap());
    for round in 0..3 {
        near.echoes(&format!("a secret of neighbours {round}"));
        through.echoes(&format!("a secret between nodes {round}"));
        // The connection stays open for the next: it is in a pool.
        it.client
            .curl("http://10.96.0.51/")
            .header("x-words: a secret for nginx")
            .expect_status(200)
            .expect_body("sni=web.example.com");
        // Beside the neighbours' two: what goes to the far node is spliced with the agent,
        // and so was what curl has closed.
        eventually(&format!("round {round}: the map has two connections"), || {
            match in_the_map(&it) {
                4 => Ok(()),
                _ => Err(it.agent.status()),
            }
        });
    }
    assert_eq!(it.verdict("splice_entered"), 2);
    let entered = it.verdict("splice_agent_entered") - with_agent;
    assert_eq!(entered, 2 + 3 * 2, "two for each that was captured");
    assert!(it.verdict("outbound_captured") >= 4, "the rest went by the agent");
    near.half_closes();
    near.expect_closed();
    eventually("the neighbours are gone from the map", || match in_the_map(&it) {
        2 => Ok(()),
        some => Err(some),
    });
    through.echoes("a secret between nodes, and no neighbour is spliced");
    wire.expect_only_tls();
    wire.expect_no_trace_of("secret");
}

#[test]
fn what_goes_through_the_agent_is_spliced_with_it_and_never_past_it() {
    let it = Neighbours::start_with(
        "splice-proxied",
        "echo",
        &["--splice", "on", "--kernel-path", "off"],
    );
    it.talk().echoes("through the agent, and its TLS");
    assert_eq!((it.verdict("outbound_captured"), it.verdict("splice_entered")), (1, 0));
    // Its TLS to itself, between the two, is none of them.
    eventually("the client's and the server's end with the agent are spliced", || {
        let before = it.verdict("splice_agent_entered");
        it.talk().echoes("through the agent, past TCP");
        match it.verdict("splice_agent_entered") - before {
            4 => Ok(()),
            entered => Err(entered),
        }
    });
    assert_eq!(it.verdict("splice_entered"), 0);
}

#[test]
fn pods_with_equal_addresses_never_meet() {
    // Node's routes can lead to one of them only: a guard would keep the other off.
    let flags = ["--splice", "on", "--guard", "off"];
    let it = Neighbours::start_with("splice-twins", "echo", &flags);
    it.wait_for_services(2);
    let node = it.bed.node(1);
    // Another pod with the client's address, and a server that answers it.
    let (twin, other) = (node.pod("twin").start(), node.pod("other").start());
    let _greet = other.serves("greet", SERVER_PORT);
    let (shared, gateway) = (it.client.ip(), node.gateway());
    twin.netns().ip(&[
        &format!("addr add {shared}/32 dev eth0"),
        &format!("route replace default via {gateway} dev eth0 src {shared}"),
    ]);
    let table = format!("from {} iif {} lookup 4242", other.ip(), other.veth());
    node.netns().ip(&[
        &format!("rule add {table}"),
        &format!("route add {shared}/32 dev {} table 4242", twin.veth()),
    ]);
    // One port to dial from: the same in both.
    for pod in [&it.client, &twin] {
        pod.netns().sysctl("net.ipv4.ip_local_port_range", "40000 40000");
    }
    it.agent.enroll(&twin);
    it.agent.enroll(&other);
    let second = "10.96.0.77:9000";
    let service = Service::tcp("other", second).backed_by(&other, SERVER_PORT);
    let inbound = Inbound::tcp(&other, SERVER_PORT).allow(Allow::policy("twin").from(&twin));
    it.agent.configure(&config(&it.client, &it.server).service(&service).inbound(&inbound));
    it.wait_for_services(3);
    let mut mine = it.talk();
    let mut its = twin.connects(second.parse().unwrap());
    its.hears("220 ready");
    for words in ["one", "two", "three"] {
        mine.echoes(&format!("mine {words}"));
        its.echoes(&format!("its {words}"));
    }
    assert_eq!(directions(&it), (4, 0));
    let mut sources = std::collections::BTreeSet::new();
    eventually("both are listed", || {
        let live = it.agent.connections();
        let rows = live.as_array().cloned().unwrap_or_default();
        sources = rows.iter().map(|row| row["source"].to_string()).collect();
        if rows.len() == 4 { Ok(()) } else { Err(live) }
    });
    assert_eq!(sources.len(), 1, "they do not have one source address: {sources:?}");
}
