//! Maps that are too small: what does not fit goes through the agent or is refused, and
//! nobody gets in by it.

use std::time::Duration;

use tests::{
    eventually, eventually_within,
    mesh::{SERVER, SERVER_PORT, SERVER6},
};

use crate::kernel_path::Neighbours;

/// Maps are looked at every few seconds.
const LOOKED_AT: Duration = Duration::from_secs(20);

/// Neither who is denied nor who is not enrolled gets to the server.
fn expect_closed(it: &Neighbours) {
    let stranger = it.bed.node(1).pod("stranger").start();
    it.agent.enroll(&stranger);
    let outsider = it.bed.node(1).pod("outsider").start();
    for target in [SERVER.parse().unwrap(), SERVER6.parse().unwrap(), it.server.at(SERVER_PORT)] {
        stranger.connects(target).expect_cut_off();
    }
    outsider.connects(it.server.at(SERVER_PORT)).expect_cut_off();
}

#[test]
fn a_service_that_does_not_fit_is_the_agents() {
    let it = Neighbours::start_with("maps-services", "echo", &["--map-size", "services=1"]);
    it.wait_for_services(1);
    it.talk().echoes("one of them by the kernel");
    it.client.connects(SERVER6.parse().unwrap()).echoes("the other by the agent");
    assert_eq!((it.verdict("authorized"), it.verdict("outbound_captured")), (1, 1));
    let left_out = it.agent.metrics().sum("mesh_kernel_path_left_out", &[]);
    assert!((left_out - 1.0).abs() < 0.1, "{left_out}");
    expect_closed(&it);
}

#[test]
fn connections_that_do_not_fit_go_through_the_agent_and_the_operator_is_told() {
    let mut it = Neighbours::start_with("maps-authorized", "echo", &["--map-size", "authorized=2"]);
    it.wait_for_services(2);
    let (mut first, mut second) = (it.talk(), it.talk());
    first.echoes("by the kernel");
    second.echoes("by the kernel too");
    assert_eq!(it.verdict("outbound_captured"), 0);
    it.talk().echoes("by the agent");
    assert_eq!((it.verdict("authorized"), it.verdict("kernel_path_full")), (2, 1));
    expect_closed(&it);

    eventually_within(LOOKED_AT, "the map is counted", || {
        let metrics = it.agent.metrics();
        let of = |name: &str| metrics.sum(name, &["map=\"AUTHORIZED\""]) as u64;
        let seen = (of("mesh_bpf_map_entries"), of("mesh_bpf_map_capacity"));
        if seen == (2, 2) { Ok(()) } else { Err(seen) }
    });
    it.agent.logs(&["nearly full", "AUTHORIZED", "--map-size"]);
    let page = it.agent.cli(&["status"]).expect_success();
    assert!(page.stdout().contains("AUTHORIZED 2 of 2"), "{page}");

    first.half_closes();
    assert_eq!(first.expect_closed(), "");
    eventually("there is room again", || {
        it.talk().echoes("words");
        let authorized = it.verdict("authorized");
        if authorized > 2 { Ok(()) } else { Err(authorized) }
    });
    let told = it.agent.log().matches("is nearly full").count();
    assert!(told <= 3, "told {told} times");

    // Another size is for maps that are made anew.
    it.agent.restart_with(&["--map-size", "authorized=1000"]);
    it.agent.logs(&["keeps the size it was made with", "AUTHORIZED", "wanted=1000"]);
    let page = it.agent.cli(&["status"]).expect_success();
    assert!(page.stdout().contains("(made for 2, not 1000)"), "{page}");
    second.echoes("still there");
}

#[test]
fn sockets_that_do_not_fit_are_not_spliced() {
    let flags = ["--splice", "on", "--map-size", "spliced=1"];
    let it = Neighbours::start_with("maps-spliced", "echo", &flags);
    it.wait_for_services(2);
    it.talk().echoes("there").echoes("and back").half_closes().expect_closed();
    assert!(it.verdict("splice_refused") >= 1, "{}", it.agent.metrics().text());
    expect_closed(&it);
}

#[test]
fn a_size_that_is_none_is_refused_by_name() {
    let told = |size: &str| {
        let mut command = std::process::Command::new(tests::process::agent_binary());
        let ran = command.args(["doctor", "--map-size", size]).output().unwrap();
        assert_eq!(ran.status.code(), Some(2));
        String::from_utf8_lossy(&ran.stderr).into_owned()
    };
    for (size, expected) in [
        ("services", "`services` is not MAP=ENTRIES"),
        ("servces=1", "`servces` is none of pods, addresses"),
        ("pods=0", "entries are 1 to"),
        ("pods=-1", "entries are 1 to"),
        ("pods=99999999", "entries are 1 to"),
    ] {
        let told = told(size);
        assert!(told.contains(expected) && told.contains("--map-size"), "{size}: {told}");
    }
}
