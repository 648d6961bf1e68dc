//! Peers that mean harm or are broken: nothing panics, nobody else suffers.

use tests::{
    Mesh, eventually, mesh,
    pki::{Pki, Validity},
};

use crate::hbone_client::{Outcome, connect};

/// The agents live, did not panic, and the demo's request passes.
#[track_caller]
fn all_is_well(mesh: &Mesh) {
    for agent in &mesh.agents {
        assert!(agent.process().ended().is_none(), "{}", agent.log());
        assert!(!agent.log().contains("panicked"), "{}", agent.log());
    }
    mesh.client.curl(mesh::WEB).expect_status(200);
}

const GARBAGE: &[&[u8]] = &[
    b"\0",
    b"\x16\x03\x01\xff\xff\x01\x00\x00\x00garbage in a TLS record",
    b"GET / HTTP/1.1\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    &[0xff; 70_000],
];

#[test]
fn garbage_on_the_agents_own_ports_is_refused() {
    let mesh = mesh::web_and_client("garbage");
    let outsider = mesh.plain_pod("outsider");
    for bytes in GARBAGE {
        for port in [15001, 15006, 15008] {
            // From outside the pod, and from inside to the pod's own listeners.
            for (pod, to) in [
                (&outsider, mesh.server.at(port)),
                (&mesh.server, mesh.server.at(port)),
                (&mesh.client, ([127, 0, 0, 1], port).into()),
                (&mesh.client, mesh.server.at(port)),
            ] {
                let mut talk = pod.connects(to);
                talk.says(bytes).half_closes();
                let (heard, _) = talk.rest();
                assert!(!heard.contains("hello"), "{to} answered {heard:?}");
                assert!(!heard.contains(" 200 "), "{to} answered {heard:?}");
            }
        }
    }
    assert_eq!(mesh.server.nginx_log(mesh::WEB_PORT), "");
    all_is_well(&mesh);
}

/// Sends `request` to the service; returns all that came back.
fn ask(mesh: &Mesh, request: &str) -> String {
    let mut talk = mesh.client.connects("10.96.0.10:80".parse().unwrap());
    talk.says(request).half_closes();
    talk.rest().0
}

#[test]
fn request_smuggling_shapes_are_refused() {
    let mesh = mesh::web_and_client("smuggling");
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: web\r\n\r\n";
    let shapes = [
        // Both lengths: the two sides could disagree where the body ends.
        format!(
            "GET / HTTP/1.1\r\nhost: web\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"
        ),
        format!(
            "GET / HTTP/1.1\r\nhost: web\r\ncontent-length: 0\r\ncontent-length: 6\r\n\r\n{smuggled}"
        ),
        format!(
            "GET / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n{smuggled}"
        ),
        format!(
            "GET / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n{smuggled}"
        ),
        format!(
            "GET / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{smuggled}"
        ),
        format!(
            "GET / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n{smuggled}"
        ),
        format!("GET / HTTP/1.1\r\nhost: web\r\ncontent-length: -1\r\n\r\n{smuggled}"),
        format!("GET / HTTP/1.1\r\nhost: web\r\ncontent-length : 6\r\n\r\n{smuggled}"),
        format!("GET / HTTP/1.1\r\nhost: web\r\nx: a\0b\r\n\r\n{smuggled}"),
        format!("GET /\tx HTTP/1.1\r\nhost: web\r\n\r\n{smuggled}"),
        format!("GET / HTTP/1.1\r\nhost: web\r\nhost: other\r\n\r\n{smuggled}"),
    ];
    for shape in &shapes {
        let answer = ask(&mesh, shape);
        assert!(!answer.starts_with("HTTP/1.1 200"), "{shape:?}\nwas answered with {answer:?}");
    }
    let seen = mesh.server.nginx_log(mesh::WEB_PORT);
    assert!(!seen.contains("/smuggled"), "{seen}");
    all_is_well(&mesh);
}

#[test]
fn oversized_headers_are_refused() {
    let mesh = mesh::web_and_client("oversized");
    let long = "x".repeat(256 << 10);
    let answer = ask(&mesh, &format!("GET / HTTP/1.1\r\nhost: web\r\nx-long: {long}\r\n\r\n"));
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer:?}");
    let many = "a: b\r\n".repeat(20_000);
    let answer = ask(&mesh, &format!("GET / HTTP/1.1\r\nhost: web\r\n{many}\r\n"));
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer:?}");
    assert_eq!(mesh.server.nginx_log(mesh::WEB_PORT), "");
    all_is_well(&mesh);
}

#[test]
fn an_hbone_connect_to_another_workloads_address_is_refused() {
    let mesh = mesh::web_and_client("authority");
    let attacker = mesh.plain_pod("attacker");
    let victim = mesh.bed.node(2).pod("victim").start();
    let _greet = victim.serves("greet", 7000);
    let good = Pki::of_the_mesh(&mesh.bed.node(1).ca_dir())
        .issue(&[&mesh.client.identity()], Validity::Now);
    let to = mesh.server.at(15008);
    let try_for = |authority: &str| connect(&attacker, to, Some(&good), authority);
    let own = mesh.server.at(mesh::WEB_PORT).to_string();
    assert_eq!(try_for(&own), Outcome::Answered(200), "the control");
    for authority in [
        victim.at(7000).to_string(),
        "127.0.0.1:8080".to_owned(),
        "[::1]:8080".to_owned(),
        "169.254.169.254:80".to_owned(),
        mesh.server.at(15001).to_string(),
        mesh.server.at(15008).to_string(),
        "web:8080".to_owned(),
    ] {
        match try_for(&authority) {
            Outcome::Answered(400..=599) => {}
            other => panic!("CONNECT {authority}: {other:?}"),
        }
    }
    all_is_well(&mesh);
}

#[test]
fn a_pod_that_vanishes_mid_connection_takes_nobody_along() {
    let mesh = mesh::web_and_client("vanish");
    let doomed = mesh.bed.node(1).pod("doomed").start();
    let plain = mesh.bed.node(2).pod("plain").start();
    let _echo = plain.serves("echo", 7000);
    mesh.near().enroll(&doomed);
    let mut talk = doomed.connects(plain.at(7000));
    talk.echoes("alive");
    doomed.vanishes();
    talk.rest();
    all_is_well(&mesh);
    mesh.near().unenroll(&doomed);
    eventually("its connections are forgotten", || {
        let live = mesh.near().connections();
        if live.to_string().contains(&doomed.uid()) { Err(live) } else { Ok(()) }
    });
    // Its name can be used again.
    let heir = mesh.bed.node(1).pod("doomed").start();
    mesh.near().enroll(&heir);
    heir.curl(mesh::WEB).expect_status(403);
    all_is_well(&mesh);
}

#[test]
fn clients_that_stall_do_not_hold_others_up() {
    let mesh = mesh::web_and_client("stall");
    let outsider = mesh.plain_pod("outsider");
    let mut stalled: Vec<_> = (0..20)
        .map(|_| {
            let mut talk = outsider.connects(mesh.server.at(15008));
            talk.says(b"\x16\x03\x01");
            talk
        })
        .collect();
    let mut half = mesh.client.connects("10.96.0.10:80".parse().unwrap());
    half.says("GET / HTTP/1.1\r\nhost: w");
    all_is_well(&mesh);
    half.says("eb\r\n\r\n").hears("hello from web");
    stalled.clear();
    all_is_well(&mesh);
}
