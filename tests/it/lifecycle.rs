//! Agents that start, stop, crash and come back.

use nix::sys::signal::Signal;
use tests::{Allow, Inbound, Service, eventually, mesh};

#[test]
fn while_the_agent_is_dead_pods_fail_closed_and_afterwards_they_work_again() {
    let mut mesh = mesh::web_and_client("fail-closed");
    mesh.client.curl(mesh::WEB).expect_status(200);
    let (outsider, plain) = (mesh.plain_pod("outsider"), mesh.bed.node(2).pod("plain").start());
    let _echo = plain.serves("echo", 7000);
    let mut bystander = outsider.connects(plain.at(7000));
    bystander.echoes("before");

    let wire = mesh.bed.wire().capture();
    mesh.agents[0].kill_9();
    mesh.client.curl(mesh::WEB).expect_refused();
    mesh.client.connects(plain.at(7000)).expect_refused();
    wire.expect_no_trace_of("GET /");
    // Nobody else notices.
    bystander.echoes("during");
    outsider.connects(plain.at(7000)).echoes("new");

    mesh.agents[0].restart();
    mesh.client.curl(mesh::WEB).expect_status(200);
    bystander.echoes("after");
}

#[test]
fn a_dead_agent_on_the_servers_side_lets_nobody_in() {
    let mut mesh = mesh::web_and_client("fail-closed-inbound");
    mesh.client.curl(mesh::WEB).expect_status(200);
    let outsider = mesh.plain_pod("outsider");
    mesh.agents[1].kill_9();
    mesh.client.curl(mesh::WEB).expect_status(503);
    outsider.curl(&format!("http://{}/", mesh.server.at(mesh::WEB_PORT))).expect_refused();
    mesh.agents[1].restart();
    mesh.client.curl(mesh::WEB).expect_status(200);
    outsider.curl(&format!("http://{}/", mesh.server.at(mesh::WEB_PORT))).expect_refused();
}

#[test]
fn a_restarted_agent_adopts_what_was_enrolled_by_the_command_line() {
    let mut mesh = mesh::web_and_client("adopt");
    let pod = mesh.enrolled_pod("late");
    mesh.agents[0].restart();
    let pods = mesh.near().pods();
    assert!(pods.to_string().contains(&pod.uid()), "{pods}");
    pod.curl(mesh::WEB).expect_status(403);
    for _ in 0..3 {
        mesh.agents[0].restart();
    }
    mesh.client.curl(mesh::WEB).expect_status(200);
}

#[test]
fn sigterm_drains_and_exits_with_0() {
    let mesh = mesh::server_and_client("drain", "echo");
    let mut talk = mesh.client.connects(mesh::SERVER.parse().unwrap());
    talk.echoes("before");
    mesh.far().process().signal(Signal::SIGTERM);
    // The live connection goes on while draining.
    talk.echoes("while draining").half_closes();
    assert_eq!(talk.expect_closed(), "");
    assert_eq!(mesh.far().process().wait().code(), Some(0), "{}", mesh.far().log());
    // And still fails closed.
    mesh.client.connects(mesh::SERVER.parse().unwrap()).expect_cut_off();
}

#[test]
fn a_connection_that_outlasts_the_drain_is_cut_and_the_exit_code_says_so() {
    let mut mesh = mesh::server_and_client("drain-cut", "echo");
    mesh.agents[1].restart_with(&["--drain-timeout", "500ms"]);
    let mut talk = mesh.client.connects(mesh::SERVER.parse().unwrap());
    talk.echoes("before");
    assert_eq!(mesh.far().terminate().code(), Some(1), "{}", mesh.far().log());
    talk.rest();
}

#[test]
fn a_policy_change_cuts_a_live_connection_that_it_denies() {
    let mut mesh = mesh::server_and_client("rejudge", "echo");
    let stranger = mesh.bed.node(1).pod("stranger").start();
    let mut talk = mesh.client.connects(mesh::SERVER.parse().unwrap());
    talk.echoes("allowed");
    let service = Service::tcp("server", mesh::SERVER).backed_by(&mesh.server, mesh::SERVER_PORT);
    let only_strangers = Inbound::tcp(&mesh.server, mesh::SERVER_PORT)
        .allow(Allow::policy("only-strangers").from(&stranger));
    mesh.reconfigure(tests::MeshConfig::new().service(&service).inbound(&only_strangers));
    talk.rest();
    mesh.client.connects(mesh::SERVER.parse().unwrap()).expect_cut_off();
}

#[test]
fn a_wire_that_is_cut_and_mended_heals() {
    let mesh = mesh::web_and_client("cut");
    mesh.client.curl(mesh::WEB).expect_status(200);
    mesh.bed.wire().cut();
    let sent = mesh.client.curl(mesh::WEB).arguments(&["--max-time", "8"]).send();
    assert_ne!(sent.status(), Some(200), "{}", sent.ran());
    mesh.bed.wire().mend();
    eventually("requests pass again", || match mesh.client.curl(mesh::WEB).send().status() {
        Some(200) => Ok(()),
        other => Err(other),
    });
}
