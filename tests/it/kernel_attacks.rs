//! What somebody who is root inside a pod, and nowhere else, tries against its neighbours.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    time::Duration,
};

use tests::{
    Allow, Inbound, MeshConfig, Pod, Service, eventually,
    mesh::{SERVER, SERVER_PORT},
    netns::Netns,
};

use crate::{
    kernel_news::nftables,
    kernel_path::Neighbours,
    kernel_roads::{hardware_of, on_a_bridge},
};

/// Another pod of the bridge, which has a way to the pods of `it`.
fn joins_the_bridge(it: &Neighbours, pod: &Pod) {
    let near = it.bed.node(1).netns();
    near.ip(&[
        &format!("link set {} master cni0", pod.veth()),
        &format!("route replace {}/32 dev cni0", pod.ip()),
    ]);
    for other in [&it.client, &it.server] {
        pod.netns().ip(&[&format!("route add {}/32 dev eth0", other.ip())]);
        other.netns().ip(&[&format!("route add {}/32 dev eth0", pod.ip())]);
    }
}

/// Has the agent look at the pod's interfaces.
fn gets_an_interface(it: &Neighbours, pod: &Pod, name: &str) {
    pod.netns().ip(&[&format!("link add {name} type veth peer name far{name}")]);
    pod.netns().ip(&[&format!("link set {name} up")]);
    it.agent.logs(&[name, "an interface is new"]);
}

#[test]
fn who_takes_another_pods_address_gets_none_of_its_packets() {
    let mut it = on_a_bridge("attack-address");
    let thief = it.bed.node(1).pod("thief").start();
    joins_the_bridge(&it, &thief);
    it.agent.enroll(&thief).expect_success();
    let heard = thief.records();
    let mut talk = it.talk();
    talk.echoes("before the theft");
    thief.netns().ip(&[&format!("addr add {}/32 dev eth0", it.server.ip())]);
    gets_an_interface(&it, &thief, "spare");
    // Once for the look, and once for a second one that finds everything as it was.
    for words in ["words for the server alone", "more words for the server alone"] {
        talk.echoes(words);
        it.talk().echoes(words);
    }
    // The next agent meets the thief as it is.
    it.agent.restart();
    it.agent.logs(&["came after the enrolment", &it.server.ip().to_string()]);
    it.wait_for_services(1);
    talk.echoes("words for the server alone, after a restart");
    heard.expect_no_trace_of("words for the server alone");
}

/// Answers for an address on the bridge are whose they are; nobody has to lie to the bridge.
#[test]
fn who_answers_for_a_pods_address_sees_nothing_of_its_connections() {
    let it = on_a_bridge("attack-neighbour");
    let liar = it.bed.node(1).pod("liar").start();
    joins_the_bridge(&it, &liar);
    let heard = liar.records();
    let lie = hardware_of(&liar);
    for (pod, other) in [(&it.client, &it.server), (&it.server, &it.client)] {
        pod.netns().ip(&[&format!("neigh replace {} lladdr {lie} dev eth0", other.ip())]);
    }
    let mut talk = it.talk();
    talk.echoes("words of the two alone");
    talk.echoes(&"many of them ".repeat(20_000));
    // The control: what is not theirs as a connection of the kernel path goes where it is told.
    it.server.netns().enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.send_to(b"a datagram", it.client.at(9)).unwrap();
    });
    heard.expect_plaintext("a datagram");
    let seen = heard.streams();
    assert!(seen.is_empty(), "{seen:?}");
}

/// Writes what the guard writes on packets that it lets out: a classifier's class does.
fn forges_the_stamp(pod: &Pod, stamp: u32) {
    pod.netns().tc(&[
        "qdisc replace dev eth0 clsact",
        &format!("filter add dev eth0 egress protocol ip u32 match u32 0 0 classid 1:{stamp:x}"),
    ]);
}

#[test]
fn a_stamp_that_is_forged_lets_in_nothing_but_what_gets_in_without() {
    let it = Neighbours::start_with("attack-stamp", "echo", &["--non-tcp", "drop"]);
    it.wait_for_services(2);
    let outsider = it.bed.node(1).pod("outsider").start();
    let plain = it.bed.node(1).pod("plain").start();
    let stamp = 0x6d03;
    let listens = |pod: &Pod| {
        let socket = pod.netns().enter(|| UdpSocket::bind((pod.ip(), 7000))).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        socket
    };
    let (at_server, at_plain) = (listens(&it.server), listens(&plain));
    let hears = |socket: &UdpSocket| socket.recv(&mut [0; 64]).ok();
    for forged in [false, true] {
        if forged {
            forges_the_stamp(&outsider, stamp);
        }
        let says = |to: SocketAddr| {
            let send = || UdpSocket::bind("0.0.0.0:0")?.send_to(b"a datagram", to);
            outsider.netns().enter(send).unwrap();
        };
        eventually("who is not enrolled is reached", || {
            says(plain.at(7000));
            hears(&at_plain).ok_or(forged)
        });
        says(it.server.at(7000));
        assert_eq!(hears(&at_server), None, "forged: {forged}");
    }
}

/// What is of the kernel path is handed over without a look at the node's routes, which would
/// not believe such a source.
#[test]
fn a_stamp_that_is_forged_lets_nobody_speak_for_another() {
    let it = Neighbours::start("attack-source", "echo");
    let other = it.bed.node(1).pod("other").start();
    it.agent.enroll(&other).expect_success();
    let (near, pod) = (it.bed.node(1).netns(), it.client.netns());
    for interface in ["all", it.client.veth()] {
        near.sysctl(&format!("net.ipv4.conf.{interface}.rp_filter"), "1");
    }
    pod.ip(&[&format!("addr add {}/32 dev lo", other.ip())]);
    let at_server = it.server.netns().enter(|| UdpSocket::bind((it.server.ip(), 7000))).unwrap();
    at_server.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let says = |source: Ipv4Addr, words: &str| {
        let send = || UdpSocket::bind((source, 0))?.send_to(words.as_bytes(), it.server.at(7000));
        pod.enter(send).unwrap();
    };
    let hears = || {
        let mut words = [0; 64];
        let read = at_server.recv(&mut words).ok()?;
        Some(String::from_utf8_lossy(&words[..read]).into_owned())
    };
    for stamp in [0x6d01, 0x6d02, 0x6d03] {
        forges_the_stamp(&it.client, stamp);
        says(other.ip(), "words of somebody else");
        eventually("its own words are heard, and nothing before", || {
            says(it.client.ip(), "its own words");
            match hears() {
                Some(words) if words == "its own words" => Ok(()),
                Some(words) => panic!("{stamp:x}: {words}"),
                None => Err(stamp),
            }
        });
        while hears().is_some() {}
    }
    assert!(it.verdict("guard_astray") >= 2, "{}", it.agent.status());
}

/// A program that dials without waiting until it is told not to, from ever new addresses and
/// ports of loopback.
const DIALS: &str = "
import socket, sys, time
held = []
for number in range(int(sys.argv[1])):
    s = socket.socket()
    s.setblocking(False)
    s.bind(('127.0.%d.%d' % (number % 7, 1 + number % 250), 0))
    s.connect_ex(('10.96.7.7', 80))
    held.append(s)
print('all dialled', flush=True)
time.sleep(600)
";

/// Nobody accepts what its own queue throws away: what it asked for is kept meanwhile.
#[test]
fn a_pod_that_dials_without_end_takes_nobody_elses_place() {
    let flags = ["--kernel-path", "off", "--map-size", "original_destinations=256"];
    let it = Neighbours::start_with("attack-flood", "echo", &flags);
    let flooder = it.bed.node(1).pod("flooder").start();
    it.agent.enroll(&flooder).expect_success();
    it.talk().echoes("before");
    flooder.netns().tc(&["qdisc replace dev lo root blackhole"]);
    let mut command = Command::new("python3");
    command.args(["-c", DIALS, "900"]);
    let program = flooder.starts("flood", command);
    eventually("the flood is there", || {
        if program.log().contains("all dialled") { Ok(()) } else { Err(program.log()) }
    });
    for round in 0..20 {
        it.talk().echoes(&format!("words {round}"));
    }
}

#[test]
fn a_syn_that_is_sent_again_opens_nothing_that_is_denied_by_then() {
    let it = Neighbours::start_with("attack-again", "echo", &["--redirect-peer", "off"]);
    it.wait_for_services(2);
    it.talk().echoes("before");
    let veth = it.server.veth();
    let near = it.bed.node(1).netns();
    near.tc(&[&format!("qdisc replace dev {veth} root blackhole")]);
    let before = it.verdict("authorized");
    let mut talk = it.talk();
    talk.says("words that come too late\n");
    eventually("its SYN has left", || {
        let authorized = it.verdict("authorized");
        if authorized > before { Ok(()) } else { Err(authorized) }
    });
    let service = Service::tcp("server", SERVER).backed_by(&it.server, SERVER_PORT);
    let inbound =
        Inbound::tcp(&it.server, SERVER_PORT).allow(Allow::policy("nobody").from(&it.server));
    it.agent.configure(&MeshConfig::new().service(&service).inbound(&inbound));
    it.wait_for_services(0);
    near.tc(&[&format!("qdisc del dev {veth} root")]);
    let let_in = it.verdict("inbound_authorized");
    let heard = it.server.records();
    talk.expect_cut_off();
    assert_eq!(it.verdict("inbound_authorized"), let_in);
    heard.expect_no_trace_of("words that come too late");
}

/// Netlink's attribute: its number, its value.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap();
    let mut attribute = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

/// The same, of others.
fn nested(kind: u16, parts: &[Vec<u8>]) -> Vec<u8> {
    const NLA_F_NESTED: u16 = 1 << 15;
    attribute(NLA_F_NESTED | kind, &parts.concat())
}

/// `nft`, where there may be none: whatever TCP leaves the pod says that it is from `source`.
fn lies_about_its_source(pod: &Pod, source: Ipv4Addr) {
    const NEW_TABLE: u16 = 0;
    const NEW_CHAIN: u16 = 3;
    const NEW_RULE: u16 = 6;
    const POSTROUTING: [u8; 4] = 4_u32.to_be_bytes();
    const SOURCE_NAT: [u8; 4] = 100_u32.to_be_bytes();
    const REGISTER_1: [u8; 4] = 1_u32.to_be_bytes();
    let table = attribute(1, b"lies\0");
    let hook = nested(4, &[attribute(1, &POSTROUTING), attribute(2, &SOURCE_NAT)]);
    let chain = [table.clone(), attribute(3, b"out\0"), hook, attribute(7, b"nat\0")].concat();
    let expression =
        |name: &[u8], data: &[Vec<u8>]| nested(1, &[attribute(1, name), nested(2, data)]);
    let address = nested(2, &[attribute(1, &source.octets())]);
    let immediate = expression(b"immediate\0", &[attribute(1, &REGISTER_1), address]);
    let family = attribute(2, &u32::from(libc::AF_INET as u16).to_be_bytes());
    let nat = expression(
        b"nat\0",
        &[attribute(1, &0_u32.to_be_bytes()), family, attribute(3, &REGISTER_1)],
    );
    let rule = [table.clone(), attribute(2, b"out\0"), nested(4, &[immediate, nat])].concat();
    let batch = [(NEW_TABLE, table), (NEW_CHAIN, chain), (NEW_RULE, rule)];
    nftables::asks(pod.netns(), libc::AF_INET as u8, &batch);
}

#[test]
fn a_pod_that_rewrites_its_packets_speaks_for_nobody_else() {
    let it = Neighbours::start_with("attack-rewrite", "echo", &[]);
    it.wait_for_services(2);
    it.talk().echoes("as itself");
    let other = it.bed.node(1).pod("other").start();
    it.agent.enroll(&other).expect_success();
    let heard = it.server.records();
    lies_about_its_source(&it.client, other.ip());
    let before = it.verdict("guard_uncaptured");
    let mut talk = it.talk();
    talk.says("words of somebody else");
    eventually("they are dropped and counted", || {
        let counted = it.verdict("guard_uncaptured");
        if counted > before { Ok(()) } else { Err(counted) }
    });
    drop(talk);
    let seen = heard.streams();
    let lies: Vec<_> = seen.iter().filter(|stream| stream.from.ip() == other.ip()).collect();
    assert!(lies.is_empty(), "{lies:?}");
}

#[test]
fn a_namespace_inside_a_strict_pod_takes_no_plaintext() {
    let it = Neighbours::start_with("attack-nested", "echo", &[]);
    it.wait_for_services(2);
    let (near, pod) = (it.bed.node(1).netns(), &it.client);
    let nested = Netns::create(&format!("{}-nested", near.name()));
    let inside = Ipv4Addr::new(10, 244, 1, 200);
    let gateway = it.bed.node(1).gateway();
    pod.netns().ip(&["link add nested link eth0 type macvlan mode bridge"]);
    pod.netns().ip(&[&format!("link set nested netns {}", nested.name())]);
    nested.ip(&[
        &format!("addr add {inside}/32 dev nested"),
        "link set nested up",
        &format!("route add {gateway} dev nested"),
        &format!("route add default via {gateway}"),
    ]);
    near.ip(&[&format!("route add {inside}/32 dev {}", pod.veth())]);
    let listener = nested.enter(|| TcpListener::bind((inside, 7000))).unwrap();
    let (to, patience) = (listener.local_addr().unwrap(), Duration::from_secs(1));
    let outsider = it.bed.node(2).pod("outsider").start();
    let mut sent = outsider.netns().enter(|| TcpStream::connect(to)).unwrap();
    sent.write_all(b"words for the nested one").unwrap();
    let (mut taken, _) = listener.accept().unwrap();
    taken.set_read_timeout(Some(patience)).unwrap();
    let heard = taken.read(&mut [0; 64]);
    assert!(heard.is_err(), "{heard:?}");
    assert!(it.verdict("guard_ingress_plaintext") > 0, "{}", it.agent.status());
    it.talk().echoes("the pod itself is well");
}

/// Each guard is a descriptor of the agent's, which all pods share.
#[test]
fn a_pod_that_makes_interfaces_without_end_takes_nothing_from_the_agent() {
    const MANY: usize = 40;
    let it = Neighbours::start("attack-interfaces", "echo");
    let descriptors = || {
        let process = it.agent.process().pid();
        std::fs::read_dir(format!("/proc/{process}/fd")).expect("descriptors").count()
    };
    let with_guards = |pairs: std::ops::Range<usize>| {
        for n in pairs {
            let pair = format!("link add near{n} type veth peer name far{n}");
            let up = [format!("link set near{n} up"), format!("link set far{n} up")];
            it.client.netns().ip(&[&pair, &up[0], &up[1]]);
        }
    };
    let unguarded = || it.agent.status()["unguarded"].clone();
    let before = descriptors();
    with_guards(0..MANY);
    eventually("there are too many", || {
        let told = unguarded();
        if told.to_string().contains("those beyond the first 64") { Ok(()) } else { Err(told) }
    });
    eventually("descriptors are bounded", || {
        let now = descriptors();
        if now < before + 2 * 64 + 40 { Ok(()) } else { Err((before, now)) }
    });
    // New ones, and those that there were before are gone.
    for n in 0..MANY {
        it.client.netns().ip(&[&format!("link del near{n}")]);
    }
    eventually("all that is left is guarded, and nothing is held of the rest", || {
        let (told, now) = (unguarded(), descriptors());
        let well = told.as_array().is_some_and(Vec::is_empty) && now < before + 40;
        if well { Ok(()) } else { Err((told, before, now)) }
    });
    it.wait_for_services(2);
    it.talk().echoes("as before");
}
