//! The kernel path by each road from pod to pod: straight, by routes, over a bridge.

use std::{net::UdpSocket, time::Duration};

use tests::{
    Pod, eventually,
    mesh::{SERVER, SERVER_PORT, SERVER6},
    netns::Netns,
};

use crate::kernel_path::{Neighbours, config};

#[test]
fn packets_go_straight_from_pod_to_pod_and_past_no_guard() {
    let it = Neighbours::start("kernel-redirect", "echo");
    it.talk().echoes("over IPv4").half_closes().expect_closed();
    let v4 = it.verdict("redirected");
    assert!(v4 > 4, "{v4}");
    it.client.connects(SERVER6.parse().unwrap()).echoes("over IPv6");
    assert!(it.verdict("redirected") > v4);
    assert_eq!(it.agent.status()["not_redirected"], serde_json::json!([]));
    // Who is not vouched for takes the long way, to the same refusal.
    let before = it.verdict("redirected");
    let outsider = it.bed.node(1).pod("outsider").start();
    outsider.connects(it.server.at(SERVER_PORT)).expect_cut_off();
    assert_eq!(it.verdict("redirected"), before);
}

#[test]
fn packets_take_the_long_way_where_somebody_else_may_want_to_see_them() {
    let it = Neighbours::start("kernel-no-redirect", "echo");
    let talks = |it: &Neighbours| {
        let before = it.verdict("redirected");
        it.talk().echoes("words");
        it.verdict("redirected") - before
    };
    assert!(talks(&it) > 0);
    let why = |it: &Neighbours| it.agent.status()["not_redirected"].to_string();
    let mut it = it;
    // Pods' interfaces are numbered in the order they are made in.
    it.bed.node(1).netns().tc(&["qdisc add dev pod2 clsact"]);
    it.agent.restart();
    it.wait_for_services(2);
    assert!(why(&it).contains("clsact"), "{}", why(&it));
    assert_eq!(talks(&it), 0, "neither into such a pod nor out of it");
    it.agent.restart_with(&["--redirect-peer", "off"]);
    it.wait_for_services(2);
    assert_eq!(talks(&it), 0);
    assert!(why(&it).contains("switched off"), "{}", why(&it));
    // A pod's own word goes before its agent's, at both ends.
    let server = it.bed.node(1).pod("own-word").redirect_peer("on").start();
    let client = it.bed.node(1).pod("its-client").redirect_peer("on").start();
    let _echo = server.serves("echo", SERVER_PORT);
    it.agent.enroll(&server);
    it.agent.enroll(&client);
    it.agent.configure(&config(&client, &server));
    it.wait_for_services(2);
    client.connects(SERVER.parse().unwrap()).echoes("words");
    assert!(it.verdict("redirected") > 0, "{}", it.agent.status());
}

/// Without an agent, a pod goes and its address leads to another node.
fn vanishes_without_an_agent(name: &str, redirect: &str) {
    let mut it = Neighbours::start_with(name, "echo", &["--redirect-peer", redirect]);
    it.wait_for_services(2);
    let (mut talk, mut talk6) = (it.talk(), it.client.connects(SERVER6.parse().unwrap()));
    talk.echoes("before");
    talk6.echoes("before, by IPv6");
    it.agent.kill_9();
    talk.echoes("without an agent");
    talk6.echoes("without an agent, by IPv6");
    let wire = it.bed.wire().capture();
    let (there, there6) = it.bed.node(2).wire_addresses();
    // Its processes have no time to say goodbye.
    it.server.netns().ip(&["link del eth0"]);
    it.program.kill_9();
    let near = it.bed.node(1).netns();
    near.ip(&[&format!("route replace {}/32 via {there}", it.server.ip())]);
    near.ip(&[&format!("-6 route replace {}/128 via {there6}", it.server.ip6())]);
    talk.says("words for a pod that is gone\n");
    talk6.says("words for a pod that is gone, by IPv6\n");
    // The control: it is where such packets go.
    let outsider = it.bed.node(1).pod("outsider").start();
    for (to, from) in [(it.server.at(9), "0.0.0.0:0"), (it.server.at6(9), "[::]:0")] {
        let words = format!("an outsider to {to}");
        let sent = outsider.netns().enter(|| UdpSocket::bind(from)?.send_to(words.as_bytes(), to));
        sent.unwrap();
        wire.expect_plaintext(&words);
    }
    // They are sent again and again.
    std::thread::sleep(Duration::from_secs(2));
    wire.expect_no_trace_of("words for a pod");
    it.agent.restart_unready();
    if redirect == "off" {
        eventually("it is dropped and counted", || match it.verdict("guard_astray") {
            4.. => Ok(()),
            few => Err(few),
        });
    }
    wire.expect_no_trace_of("words for a pod");
}

#[test]
fn without_an_agent_nothing_is_sent_in_the_clear_to_who_has_a_pods_address_next() {
    vanishes_without_an_agent("kernel-vanish", "off");
}

#[test]
fn without_an_agent_nothing_is_handed_to_who_has_a_pods_address_next() {
    vanishes_without_an_agent("kernel-vanish-peer", "on");
}

#[test]
fn by_the_nodes_routes_too_connections_outlive_the_agent() {
    let mut it = Neighbours::start_with("kernel-routed", "echo", &["--redirect-peer", "off"]);
    it.wait_for_services(2);
    let (mut talk, mut talk6) = (it.talk(), it.client.connects(SERVER6.parse().unwrap()));
    for round in 0..3 {
        talk.echoes(&format!("round {round}"));
        talk6.echoes(&format!("round {round} by IPv6"));
        it.agent.kill_9();
        talk.echoes(&"without an agent ".repeat(9000));
        talk6.echoes(&"without an agent, by IPv6 ".repeat(9000));
        it.agent.restart();
        it.wait_for_services(2);
    }
    it.talk().echoes("new");
    assert_eq!((it.verdict("redirected"), it.verdict("guard_astray")), (0, 0));
}

/// Two pods on a bridge, as a bridge CNI does it: they are each other's neighbours. The node's
/// interface to others is a port of it too.
pub(crate) fn on_a_bridge(name: &str) -> Neighbours {
    let mut it = Neighbours::start_with(name, "echo", &["--redirect-peer", "off"]);
    it.wait_for_services(2);
    let (near, gateway) = (it.bed.node(1).netns(), it.bed.node(1).gateway());
    near.ip(&["link add cni0 type bridge", "link set cni0 up", "link set wire master cni0"]);
    for (pod, other) in [(&it.client, &it.server), (&it.server, &it.client)] {
        near.ip(&[
            &format!("link set {} master cni0", pod.veth()),
            &format!("route replace {}/32 dev cni0", pod.ip()),
        ]);
        pod.netns().ip(&[&format!("route add {}/32 dev eth0", other.ip())]);
    }
    near.ip(&[&format!("addr add {gateway}/32 dev cni0")]);
    it.agent.restart();
    it.wait_for_services(1);
    it
}

/// Of `eth0`, as ip(8) writes it.
pub(crate) fn hardware_of(pod: &Pod) -> String {
    let ran = pod.run(&["ip", "-o", "link", "show", "eth0"]).expect_success();
    let after = ran.stdout().split("link/ether ").nth(1).expect("an Ethernet interface");
    after.split(' ').next().expect("an address").to_owned()
}

#[test]
fn pods_on_a_bridge_take_the_kernel_path_and_keep_to_it() {
    let mut it = on_a_bridge("kernel-bridge");
    let mut talk = it.talk();
    talk.echoes("over the bridge");
    assert_eq!((it.counts(), it.verdict("bridged") > 0), ((1, 0), true));
    let wire = it.bed.wire().capture();
    // Somebody beyond the node says that the pod's hardware address is his.
    let outsider = it.bed.node(1).pod("outsider").start();
    let near = it.bed.node(1).netns();
    near.ip(&[&format!("link set {} master cni0", outsider.veth())]);
    outsider.netns().ip(&[
        &format!("route add {}/32 dev eth0", it.server.ip()),
        &format!("neigh add {} lladdr {} dev eth0", it.server.ip(), hardware_of(&it.server)),
    ]);
    let far = it.bed.node(2).netns();
    far.ip(&["link set wire down", &format!("link set wire address {}", hardware_of(&it.server))]);
    far.ip(&["link set wire up", "addr add 10.99.99.2/24 dev wire"]);
    let says = |netns: &Netns, to: String, words: &str| {
        netns.enter(|| UdpSocket::bind("0.0.0.0:0")?.send_to(words.as_bytes(), to)).unwrap();
    };
    // The control: the bridge believes him.
    let mut tries = 0;
    eventually("the bridge sends him what is for the pod", || {
        tries += 1;
        says(far, "10.99.99.1:9".to_owned(), "that is me");
        let words = format!("an outsider's {tries}");
        says(outsider.netns(), it.server.at(9).to_string(), &words);
        if wire.contains(words.as_bytes()) { Ok(()) } else { Err(tries) }
    });
    talk.echoes("words for the pod alone");
    it.agent.kill_9();
    talk.echoes("words for the pod alone, without an agent");
    wire.expect_no_trace_of("words for the pod alone");
    // The pod goes: a bridge sends to all its ports what it has none for.
    it.server.netns().ip(&["link del eth0"]);
    // Its processes have no time to say goodbye.
    it.program.kill_9();
    let (there, _) = it.bed.node(2).wire_addresses();
    near.ip(&[&format!("route replace {}/32 via {there} dev cni0 onlink", it.server.ip())]);
    talk.says("words for a pod that is gone\n");
    says(outsider.netns(), it.server.at(9).to_string(), "an outsider's last");
    wire.expect_plaintext("an outsider's last");
    std::thread::sleep(Duration::from_secs(2));
    wire.expect_no_trace_of("words for a pod");
    it.agent.restart_unready();
    eventually("it is dropped and counted", || match it.verdict("guard_astray") {
        2.. => Ok(()),
        few => Err(few),
    });
}

#[test]
fn a_bridge_that_keeps_ports_apart_is_not_gone_past() {
    let it = on_a_bridge("kernel-bridge-apart");
    let (near, veth) = (it.bed.node(1).netns(), it.server.veth());
    let mut talk = it.talk();
    talk.echoes("over the bridge");
    near.ip(&[&format!("link set {veth} type bridge_slave isolated on")]);
    talk.expect_cut_off();
    it.agent.logs_access(&["the node no longer leads packets from pod to pod"]);
    it.is_off_the_kernel_path("is an isolated port of cni0");
    near.ip(&[&format!("link set {veth} type bridge_slave isolated off")]);
    it.wait_for_services(1);
    it.talk().echoes("over the bridge again");
}

#[test]
fn a_route_that_leads_elsewhere_ends_connections_and_one_that_is_back_allows_new_ones() {
    let it = Neighbours::start_with("kernel-reroute", "echo", &["--redirect-peer", "off"]);
    it.wait_for_services(2);
    let (mut talk, mut talk6) = (it.talk(), it.client.connects(SERVER6.parse().unwrap()));
    talk.echoes("before");
    talk6.echoes("before, by IPv6");
    let wire = it.bed.wire().capture();
    let (there, there6) = it.bed.node(2).wire_addresses();
    let (near, server) = (it.bed.node(1).netns(), &it.server);
    near.ip(&[&format!("route replace {}/32 via {there}", server.ip())]);
    talk.expect_cut_off();
    let told = it.agent.logs_access(&["the node no longer leads packets from pod to pod"]);
    assert_eq!(told["response_flags"], "UC", "{told}");
    it.wait_for_services(1);
    talk6.echoes("the other family is not concerned");
    near.ip(&[&format!("-6 route replace {}/128 via {there6}", server.ip6())]);
    talk6.expect_cut_off();
    it.is_off_the_kernel_path("do not lead to");
    it.talk().says("words for who has the address now\n").expect_cut_off();
    wire.expect_no_trace_of("words for");

    near.ip(&[&format!("route replace {}/32 dev {}", server.ip(), server.veth())]);
    near.ip(&[&format!("-6 route replace {}/128 dev {}", server.ip6(), server.veth())]);
    it.wait_for_services(2);
    it.talk().echoes("again");
    it.client.connects(SERVER6.parse().unwrap()).echoes("again, by IPv6");
    assert_eq!(it.verdict("outbound_captured"), 1, "only what was dialled meanwhile");
}

#[test]
fn a_pod_that_the_nodes_routes_do_not_lead_to_is_the_agents() {
    let mut it = Neighbours::start_with("kernel-no-road", "echo", &[]);
    it.wait_for_services(2);
    let near = it.bed.node(1).netns();
    near.ip(&["link add far0 type veth peer name far1", "link set far0 up"]);
    near.ip(&[&format!("route replace {}/32 dev far0", it.server.ip())]);
    near.ip(&[&format!("-6 route replace {}/128 dev far0", it.server.ip6())]);
    it.agent.restart();
    it.is_off_the_kernel_path("do not lead to");
    it.wait_for_services(0);
}
