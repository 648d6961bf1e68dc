//! What capture did not take does not pass either, with the agent alive or dead.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    time::Duration,
};

use crate::kernel_path::Neighbours;
use socket2::{Domain, Protocol, Socket, Type};
use tests::{Agent, Pod, eventually, mesh};

/// Longer than any answer takes that is coming.
const PATIENCE: Duration = Duration::from_secs(1);

fn count(agent: &Agent, verdict: &str) -> u64 {
    let label = format!("verdict=\"{verdict}\"");
    agent.metrics().sum("mesh_bpf_verdicts_total", &[&label]) as u64
}

#[track_caller]
fn expect_counted(agent: &Agent, verdict: &str) {
    assert!(count(agent, verdict) > 0, "{verdict}: {}", agent.status());
}

/// Speaks and listens from the pod's namespace, but outside every cgroup of the node.
fn from_outside_the_cgroup(pod: &Pod, to: SocketAddr, words: &str) -> io::Result<String> {
    pod.netns().enter(|| {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(words.as_bytes())?;
        let mut heard = [0; 512];
        let length = stream.read(&mut heard)?;
        Ok(String::from_utf8_lossy(&heard[..length]).into_owned())
    })
}

#[test]
fn a_process_outside_the_cgroup_root_speaks_no_plaintext() {
    let mesh = mesh::web_and_client("guard-cgroup");
    let plain = mesh.bed.node(2).pod("plain").start();
    let _echo = plain.serves("echo", 7000);
    let wire = mesh.bed.wire().capture();
    for to in [plain.at(7000), plain.at6(7000)] {
        let heard = from_outside_the_cgroup(&mesh.client, to, "sneaked out\n");
        assert!(heard.is_err(), "{to}: {heard:?}");
        // Who is not enrolled never notices.
        let other = mesh.plain_pod(&format!("plain-{}", to.is_ipv6()));
        assert_eq!(from_outside_the_cgroup(&other, to, "untouched\n").unwrap(), "untouched\n");
    }
    expect_counted(mesh.near(), "guard_uncaptured");
    let outsider = mesh.plain_pod("outsider");
    let to = mesh.server.at(mesh::WEB_PORT);
    let heard = from_outside_the_cgroup(&outsider, to, "GET /sneaked-in HTTP/1.0\r\n\r\n");
    assert!(!heard.as_ref().is_ok_and(|heard| heard.contains("hello")), "{heard:?}");
    wire.expect_no_trace_of("sneaked out");
    assert_eq!(mesh.server.nginx_log(mesh::WEB_PORT), "");
    mesh.client.curl(mesh::WEB).expect_status(200);
}

/// Dials from an address of the socket's choice, with what it was before.
fn dials_again(socket: &Socket, to: SocketAddr, words: &str) -> io::Result<()> {
    socket.connect_timeout(&to.into(), PATIENCE)?;
    let mut socket = socket;
    socket.write_all(words.as_bytes())
}

#[test]
fn a_socket_that_was_let_in_is_not_let_out_to_others() {
    let it = Neighbours::start_with("guard-reused", "echo", &[]);
    let plain = it.bed.node(2).pod("plain").start();
    let _echo = plain.serves("echo", 7000);
    let wire = it.bed.wire().capture();
    it.program.kill_9();
    let to = it.server.at(mesh::SERVER_PORT);
    let listener = it.server.netns().enter(|| TcpListener::bind(to)).unwrap();
    let mut talk = it.talk();
    let (mut accepted, _) = listener.accept().unwrap();
    accepted.write_all(b"let in\n").unwrap();
    talk.hears("let in");
    let nobody = libc::sockaddr { sa_family: libc::AF_UNSPEC as u16, sa_data: [0; 14] };
    // SAFETY: the pointer and the length are those of `nobody`.
    let parted = unsafe {
        libc::connect(
            accepted.as_raw_fd(),
            &raw const nobody,
            size_of_val(&nobody) as libc::socklen_t,
        )
    };
    assert_eq!(parted, 0, "{}", io::Error::last_os_error());
    let dialled = dials_again(&accepted.into(), plain.at(7000), "let out");
    assert!(dialled.is_err(), "{dialled:?}");
    assert!(it.verdict("guard_uncaptured") > 0, "{}", it.agent.status());
    wire.expect_no_trace_of("let out");
}

#[test]
fn nobody_dials_from_a_port_that_is_left_alone() {
    let mesh = mesh::web_and_client("guard-from-port");
    let pod = mesh.bed.node(1).pod("metrics").without_inbound_port(9100).start();
    mesh.near().enroll(&pod);
    let plain = mesh.bed.node(2).pod("plain").start();
    let _echo = plain.serves("echo", 7000);
    let wire = mesh.bed.wire().capture();
    let dialled = pod.netns().enter(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((pod.ip(), 9100)).into())?;
        dials_again(&socket, plain.at(7000), "from port 9100")
    });
    assert!(dialled.is_err(), "{dialled:?}");
    expect_counted(mesh.near(), "guard_uncaptured");
    wire.expect_no_trace_of("from port 9100");
    // Who asks there is answered.
    let listener = pod.netns().enter(|| TcpListener::bind(("0.0.0.0", 9100))).unwrap();
    let mut asks = plain.connects(pod.at(9100));
    listener.accept().unwrap().0.write_all(b"a metric\n").unwrap();
    asks.hears("a metric");
}

#[test]
fn an_interface_that_is_made_anew_is_guarded_again() {
    let it = Neighbours::start_with("guard-anew", "echo", &[]);
    let plain = it.bed.node(2).pod("plain").start();
    let _echo = plain.serves("echo", 7000);
    it.talk().echoes("before");
    let (pod, node) = (&it.client, it.bed.node(1));
    let (ip, veth, gateway) = (pod.ip(), pod.veth(), node.gateway());
    pod.netns().ip(&[
        "link del eth0",
        &format!("link add net7 type veth peer name {veth} netns {}", node.netns().name()),
        &format!("addr add {ip}/32 dev net7"),
        "link set net7 up",
    ]);
    node.netns().ip(&[
        &format!("addr add {gateway}/32 dev {veth}"),
        &format!("link set {veth} up"),
        &format!("route add {ip}/32 dev {veth}"),
    ]);
    pod.netns().ip(&[
        &format!("route add {gateway} dev net7 scope link"),
        &format!("route add default via {gateway} dev net7"),
    ]);
    it.agent.logs(&["net7", "an interface is new"]);
    eventually("the guard is back", || {
        let spoken = from_outside_the_cgroup(pod, plain.at(7000), "words\n");
        let counted = it.verdict("guard_uncaptured");
        if spoken.is_err() && counted > 0 { Ok(()) } else { Err((spoken, counted)) }
    });
    // Handed in by the new one.
    let before = it.verdict("redirected");
    it.talk().echoes("after");
    assert!(it.verdict("redirected") > before, "{}", it.agent.status());
}

/// An IPv4 packet with TCP from `source` port 40000, as a raw socket sends it.
fn segment(source: Ipv4Addr, to: SocketAddr, flags: u8, payload: &[u8]) -> Vec<u8> {
    let IpAddr::V4(destination) = to.ip() else { panic!("{to} is not IPv4") };
    let length = u16::try_from(40 + payload.len()).unwrap();
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0];
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet.extend(source.octets());
    packet.extend(destination.octets());
    let words = packet.chunks_exact(2).map(|b| u32::from(u16::from_be_bytes([b[0], b[1]])));
    let sum = words.sum::<u32>();
    let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    packet[10..12].copy_from_slice(&(!folded).to_be_bytes());
    packet.extend(40_000_u16.to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    packet.extend(payload);
    packet
}

/// Joins the pod to its node once more; somebody listens at the node's end.
fn another_way_out(pod: &Pod, number: u8) -> TcpListener {
    let (near, name) = (pod.node().netns(), format!("more{number}"));
    pod.netns().ip(&[&format!("link add {name} type veth peer name there{number}")]);
    pod.netns().ip(&[&format!("link set there{number} netns {}", near.name())]);
    near.ip(&[
        &format!("addr add 10.77.{number}.1/24 dev there{number}"),
        &format!("link set there{number} up"),
    ]);
    pod.netns()
        .ip(&[&format!("addr add 10.77.{number}.2/24 dev {name}"), &format!("link set {name} up")]);
    near.enter(|| TcpListener::bind((Ipv4Addr::new(10, 77, number, 1), 7000))).unwrap()
}

/// Of pods with more than one: of a second network, say.
#[test]
fn every_interface_of_a_pod_is_guarded() {
    let it = Neighbours::start_with("guard-second", "echo", &["--guard", "on"]);
    let pod = it.bed.node(1).pod("two").start();
    let dials = |listener: &TcpListener| {
        let to = listener.local_addr().unwrap();
        pod.netns().enter(|| TcpStream::connect_timeout(&to, PATIENCE))
    };
    let second = another_way_out(&pod, 2);
    // The control.
    eventually("it is a way out", || dials(&second).map(drop));
    it.agent.enroll(&pod).expect_success();
    let dialled = dials(&second);
    assert!(dialled.is_err(), "{dialled:?}");
    expect_counted(&it.agent, "guard_uncaptured");
    let third = another_way_out(&pod, 3);
    eventually("one that comes later is guarded", || match dials(&third) {
        Ok(_) => Err("it is a way out"),
        Err(_) => Ok(()),
    });
    let status = it.agent.status();
    assert!(status["unguarded"].as_array().is_some_and(Vec::is_empty), "{status}");
}

#[test]
fn raw_sockets_send_no_tcp() {
    const SYN: u8 = 2;
    const PUSH_ACK: u8 = 0x18;
    let mesh = mesh::web_and_client("guard-raw");
    let plain = mesh.bed.node(2).pod("plain").start();
    let outsider = mesh.plain_pod("outsider");
    let to = plain.at(7000);
    let wire = mesh.bed.wire().capture();
    let send = |pod: &Pod, flags, payload: &[u8]| {
        let packet = segment(pod.ip(), to, flags, payload);
        // `IPPROTO_RAW`: the header is ours. From the pod's own cgroup or another, no
        // connect hook sees it.
        pod.netns().enter(|| {
            let raw = Socket::new(Domain::IPV4, Type::RAW, Some(255.into())).unwrap();
            raw.send_to(&packet, &to.into()).map(drop)
        })
    };
    // The control: such a packet does get there.
    send(&outsider, PUSH_ACK, b"raw words of an outsider").unwrap();
    wire.expect_plaintext("raw words of an outsider");
    send(&mesh.client, SYN, b"").ok();
    send(&mesh.client, PUSH_ACK, b"raw words of a pod").ok();
    eventually("both are counted", || match count(mesh.near(), "guard_no_socket") {
        2.. => Ok(()),
        counted => Err(counted),
    });
    wire.expect_no_trace_of("raw words of a pod");
    let ports = [40_000_u16.to_be_bytes(), 7000_u16.to_be_bytes()].concat();
    let tcp = [&mesh.client.ip().octets()[..], &plain.ip().octets(), &ports].concat();
    assert!(!wire.contains(&tcp), "the SYN was on the wire: {wire}");
    mesh.client.curl(mesh::WEB).expect_status(200);
}

#[test]
fn a_socket_bound_to_the_interface_reaches_nobody() {
    let mesh = mesh::web_and_client("guard-bound");
    let plain = mesh.bed.node(2).pod("plain").start();
    let _nginx = plain.runs_nginx(8080);
    let url = format!("http://{}/bound", plain.at(8080));
    let bound = ["--interface", "eth0", "--connect-timeout", "1"];
    let sent = mesh.client.curl(&url).arguments(&bound).send();
    assert_eq!(sent.status(), None, "{}", sent.ran());
    expect_counted(mesh.near(), "guard_bound_to_interface");
    mesh.plain_pod("other").curl(&url).arguments(&bound).expect_status(200);
}

#[test]
fn connections_older_than_the_enrolment_end_where_mtls_is_strict() {
    let mesh = mesh::web_and_client("guard-older");
    let peer = mesh.bed.node(2).pod("peer").start();
    let _echo = peer.serves("echo", 7000);
    let pods = [
        mesh.bed.node(1).pod("strict").start(),
        mesh.bed.node(1).pod("permissive").permissive().start(),
    ];
    let [mut strict, mut permissive] = pods.each_ref().map(|pod| {
        let _echo = pod.serves("echo", 7000);
        let (mut outbound, mut inbound) =
            (pod.connects(peer.at(7000)), peer.connects(pod.at(7000)));
        outbound.echoes("before");
        inbound.echoes("before");
        (outbound, inbound, _echo)
    });
    for pod in &pods {
        mesh.near().enroll(pod);
    }
    let wire = mesh.bed.wire().capture();
    permissive.0.echoes("let out as before");
    permissive.1.echoes("let in as before");
    strict.0.says("kept in\n");
    strict.1.says("kept out\n");
    for verdict in ["guard_egress_plaintext", "guard_ingress_plaintext"] {
        eventually("it is dropped and counted", || match count(mesh.near(), verdict) {
            1.. => Ok(()),
            none => Err((verdict, none)),
        });
    }
    wire.expect_plaintext("let out as before");
    wire.expect_no_trace_of("kept in");

    // The agent's death opens nothing.
    mesh.near().kill_9();
    let heard = from_outside_the_cgroup(&peer, pods[0].at(7000), "nobody there?\n");
    assert!(heard.is_err(), "{heard:?}");
    let heard = from_outside_the_cgroup(&pods[0], peer.at(7000), "sneaked out\n");
    assert!(heard.is_err(), "{heard:?}");
    strict.0.says("still kept in\n");
    wire.expect_no_trace_of("nobody there?");
    for words in ["sneaked out", "kept in"] {
        wire.expect_no_trace_of(words);
    }
}

#[test]
fn a_dead_agents_pods_are_probed_by_the_kubelets_cgroup_and_nobody_else() {
    let mut mesh = mesh::web_and_client("guard-probe");
    let node = mesh.bed.node(2).clone();
    let kubelet = node.cgroup().join("kubelet");
    let url = format!("http://{}/healthz", mesh.server.at(mesh::WEB_PORT));
    let url6 = format!("http://{}/healthz", mesh.server.at6(mesh::WEB_PORT));
    let probe =
        |cgroup: &str, url: &str| node.run_in(cgroup, &["curl", "-sSf", "--max-time", "5", url]);
    probe("kubelet", &url).expect_failure();
    mesh.agents[1].restart_with(&["--probe-cgroup", &kubelet.display().to_string()]);
    // Also of processes in cgroups below.
    for cgroup in ["kubelet", "kubelet/plugins"] {
        for url in [&url, &url6] {
            probe(cgroup, url).expect_success().expect_output("hello from web");
        }
        probe("other", &url).expect_failure();
    }
    expect_counted(mesh.far(), "inbound_probe");
    mesh.far().kill_9();
    for url in [&url, &url6] {
        probe("kubelet", url).expect_success().expect_output("hello from web");
        probe("other", url).expect_failure();
    }
    // Neither the node's address nor its namespace is what counts.
    let heard =
        mesh.bed.node(2).netns().enter(|| {
            TcpStream::connect_timeout(&mesh.server.at(mesh::WEB_PORT), PATIENCE).map(drop)
        });
    assert!(heard.is_err(), "{heard:?}");
}

/// Sends an echo request and waits for its answer.
fn pings(pod: &Pod, to: IpAddr) -> io::Result<()> {
    let (domain, protocol, request, answer) = match to {
        // Type, code, checksum, identifier, sequence number.
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, [8, 0, 0xf7, 0xfd, 0, 1, 0, 1], [0, 0]),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, [128, 0, 0, 0, 0, 1, 0, 1], [129, 0]),
    };
    pod.netns().enter(|| {
        let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(&request, &SocketAddr::new(to, 0).into())?;
        let mut socket = socket;
        loop {
            let mut packet = [0; 256];
            let length = socket.read(&mut packet)?;
            // IPv4's raw sockets hear the header too.
            let header = if to.is_ipv4() { 20 } else { 0 };
            if packet[header..length].starts_with(&answer) {
                return Ok(());
            }
        }
    })
}

/// Whether a datagram from `from` arrives at `to`'s port.
fn datagram(from: &Pod, from_port: u16, to: &Pod, port: u16) -> bool {
    let inside = |pod: &Pod, port| {
        let bind = || pod.netns().enter(|| UdpSocket::bind(("0.0.0.0", port)));
        // The one before may not be gone yet.
        let socket = eventually(&format!("UDP port {port} is free"), bind);
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    };
    let (sender, receiver) = (inside(from, from_port), inside(to, port));
    // The guard's refusal may show as an error, or not.
    let _ = sender.send_to(b"datagram", to.at(port));
    receiver.recv(&mut [0; 16]).is_ok()
}

#[test]
fn what_is_not_tcp_passes_or_not_as_told_and_the_network_itself_works() {
    let mut mesh = mesh::web_and_client("guard-udp");
    let plain = mesh.plain_pod("plain");
    let client = mesh.client.clone();
    let network_works = || {
        // Neighbours have to be found again.
        client.netns().ip(&["neigh flush all"]);
        for (from, to) in [(&client, &plain), (&plain, &client)] {
            pings(from, to.ip().into()).unwrap();
            pings(from, to.ip6().into()).unwrap();
        }
    };
    network_works();
    assert!(datagram(&client, 0, &plain, 4433));
    assert!(datagram(&plain, 0, &client, 4433));
    mesh.agents[0].restart_with(&["--non-tcp", "drop"]);
    network_works();
    assert!(!datagram(&client, 0, &plain, 4433));
    assert!(!datagram(&plain, 0, &client, 4433));
    expect_counted(mesh.near(), "guard_non_tcp");
    assert!(datagram(&client, 0, &plain, 53), "to a name server");
    assert!(datagram(&plain, 53, &client, 4433), "from a name server");
    assert!(datagram(&client, 68, &plain, 67), "to a DHCP server");
    assert!(datagram(&plain, 67, &client, 68), "from a DHCP server");
    mesh.client.curl(mesh::WEB).expect_status(200);
}

#[test]
fn un_enrolment_takes_the_guard_off_and_leaves_the_others() {
    let mesh = mesh::web_and_client("guard-off");
    let leaving = mesh.enrolled_pod("leaving");
    let plain = mesh.bed.node(2).pod("plain").start();
    let _echo = plain.serves("echo", 7000);
    let guards = mesh.bed.node(1).bpffs().join("node1/guards");
    let guarded = || std::fs::read_dir(&guards).unwrap().count();
    assert_eq!(guarded(), 2);
    let speaks = |pod: &Pod| from_outside_the_cgroup(pod, plain.at(7000), "words\n");
    assert!(speaks(&leaving).is_err());
    mesh.near().unenroll(&leaving);
    assert_eq!(guarded(), 1);
    assert_eq!(speaks(&leaving).unwrap(), "words\n");
    assert!(speaks(&mesh.client).is_err());
    mesh.near().enroll(&leaving);
    assert_eq!(guarded(), 2);
    assert!(speaks(&leaving).is_err());
}

#[test]
fn the_guard_can_be_switched_off() {
    let mut mesh = mesh::web_and_client("guard-switch");
    let plain = mesh.bed.node(2).pod("plain").start();
    let _echo = plain.serves("echo", 7000);
    let speaks = || from_outside_the_cgroup(&mesh.client, plain.at(7000), "words\n");
    assert!(speaks().is_err());
    assert_eq!(mesh.near().status()["unguarded"], serde_json::json!([]));
    mesh.agents[0].restart_with(&["--guard", "off"]);
    let speaks = || from_outside_the_cgroup(&mesh.client, plain.at(7000), "words\n");
    assert_eq!(speaks().unwrap(), "words\n");
    let unguarded = &mesh.near().status()["unguarded"];
    assert_eq!(unguarded[0]["pod"], mesh.client.uid(), "{unguarded}");
}

#[test]
fn loopback_inside_a_pod_is_left_alone() {
    let mesh = mesh::web_and_client("guard-loopback");
    let _echo = mesh.client.serves("echo", 7000);
    for to in ["127.0.0.1:7000", "[::1]:7000"] {
        let heard = from_outside_the_cgroup(&mesh.client, to.parse().unwrap(), "to myself\n");
        assert_eq!(heard.unwrap(), "to myself\n", "{to}");
    }
    let heard = from_outside_the_cgroup(&mesh.client, mesh.client.at(7000), "to myself\n");
    assert_eq!(heard.unwrap(), "to myself\n");
}

/// Sends an IPv4 packet by a packet socket that goes past every queue, and with them
/// past the programs on the interface.
fn sends_past_the_queues(pod: &Pod, packet: &[u8]) {
    let gateway = pod.run(&["ip", "-o", "neigh", "show", "10.244.1.1", "dev", "eth0"]);
    let words: Vec<&str> = gateway.stdout().split_whitespace().collect();
    let address = words.iter().skip_while(|word| **word != "lladdr").nth(1);
    let address = address.unwrap_or_else(|| panic!("no neighbour: {gateway}"));
    let mut frame: Vec<u8> =
        address.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    frame.extend([2, 0, 0, 0, 0, 1, 8, 0]);
    frame.extend(packet);
    pod.netns().enter(|| {
        let socket = Socket::new(Domain::PACKET, Type::RAW, None).unwrap();
        let fd = socket.as_raw_fd();
        let on: libc::c_int = 1;
        // SAFETY: the pointer and the length are those of `on`.
        let set = unsafe {
            libc::setsockopt(
                fd,
                libc::SOL_PACKET,
                libc::PACKET_QDISC_BYPASS,
                (&raw const on).cast(),
                size_of_val(&on) as libc::socklen_t,
            )
        };
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
        // SAFETY: all-zero is a valid `sockaddr_ll`.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_protocol = (libc::ETH_P_IP as u16).to_be();
        to.sll_ifindex = nix::net::if_::if_nametoindex("eth0").unwrap() as i32;
        // SAFETY: pointers and lengths are those of `frame` and `to`.
        let sent = unsafe {
            libc::sendto(
                fd,
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                size_of_val(&to) as libc::socklen_t,
            )
        };
        assert_eq!(sent, frame.len() as isize, "{}", io::Error::last_os_error());
    });
}

#[test]
fn packets_past_the_guard_inside_meet_the_one_outside() {
    let mesh = mesh::web_and_client("guard-bypass");
    let plain = mesh.bed.node(2).pod("plain").start();
    let outsider = mesh.plain_pod("outsider");
    let wire = mesh.bed.wire().capture();
    for pod in [&outsider, &mesh.client] {
        // The gateway has to be known.
        pings(pod, plain.ip().into()).unwrap();
        let words = format!("words of {}", pod.name());
        let packet = segment(pod.ip(), plain.at(7000), 0x18, words.as_bytes());
        sends_past_the_queues(pod, &packet);
    }
    wire.expect_plaintext("words of outsider");
    eventually("it is dropped and counted", || match count(mesh.near(), "guard_bypassed") {
        1 => Ok(()),
        counted => Err(counted),
    });
    wire.expect_no_trace_of("words of client");
    mesh.client.curl(mesh::WEB).expect_status(200);
}
