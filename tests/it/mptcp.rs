//! Multipath TCP: to the mesh it is TCP, wherever an application asks for it.

use tests::{Pod, Process, eventually, mesh};

use crate::kernel_path::Neighbours;

/// Sends so many bytes by Multipath TCP, in the SYN's call if need be, expects them back, and
/// tells what came first.
const CLIENT: &str = "
import socket, sys, threading
host, port, size, fast = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == 'fast'
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
sent = b'words of many ways ' + bytes(i % 251 for i in range(size))
begun = 0
if fast:
    begun = s.sendto(sent, socket.MSG_FASTOPEN, (host, port))
else:
    s.connect((host, port))
def send():
    s.sendall(sent[begun:])
    s.shutdown(socket.SHUT_WR)
threading.Thread(target=send, daemon=True).start()
got = b''
while piece := s.recv(1 << 16):
    got += piece
print(len(got) == len(sent), got == sent)
";

/// Echoes by Multipath TCP.
const SERVER: &str = "
import socket, sys, threading
l = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
l.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
l.bind(('0.0.0.0', int(sys.argv[1])))
l.listen(16)
def echo(c):
    while piece := c.recv(1 << 16):
        c.sendall(piece)
    c.close()
while True:
    threading.Thread(target=echo, args=(l.accept()[0],), daemon=True).start()
";

/// Starts [`SERVER`] and waits until it listens.
fn serves(pod: &Pod, port: u16) -> Process {
    let mut command = std::process::Command::new("python3");
    command.args(["-c", SERVER, &port.to_string()]);
    let process = pod.starts("mptcp-echo", command);
    eventually("it listens by Multipath TCP", || {
        assert!(process.ended().is_none(), "no Multipath TCP here: {}", process.log());
        if pod.netns().listening_ports().contains(&port) { Ok(()) } else { Err(process.log()) }
    });
    process
}

/// What [`CLIENT`] says of the service at `address`.
fn asks(pod: &Pod, address: &str, size: usize, how: &str) -> tests::Ran {
    let (host, port) = address.rsplit_once(':').unwrap();
    pod.run(&["python3", "-c", CLIENT, host, port, &size.to_string(), how])
}

#[test]
fn what_an_application_dials_is_captured() {
    let mesh = mesh::server_and_client("mptcp-dials", "echo");
    let wire = mesh.bed.wire().capture();
    let captured = || {
        let of = mesh.near().metrics();
        of.sum("mesh_bpf_verdicts_total", &["verdict=\"outbound_captured\""])
    };
    for (count, how) in [(1.0, "slow"), (2.0, "fast")] {
        let ran = asks(&mesh.client, mesh::SERVER, 300_000, how).expect_success();
        assert_eq!(ran.stdout().trim(), "True True", "{how}");
        assert!((captured() - count).abs() < 0.1, "{how}: {}", captured());
    }
    wire.expect_only_tls();
    wire.expect_no_trace_of("words of many ways");
    let entry = mesh.far().logs_access(&["inbound"]);
    assert_eq!(entry["source_identity"], mesh.client.identity(), "{entry}");
}

#[test]
fn who_dials_a_strict_pod_from_outside_is_refused() {
    let mut mesh = mesh::server_and_client("mptcp-strict", "echo");
    mesh.program.kill_9();
    let server = &mesh.server;
    mesh.program = serves(server, mesh::SERVER_PORT);
    let outsider = mesh.plain_pod("outsider");
    for how in ["slow", "fast"] {
        let ran = asks(&outsider, &server.at(mesh::SERVER_PORT).to_string(), 1000, how);
        assert!(!ran.stdout().contains("True"), "{how}: {ran}");
    }
    // The application serves whom the mesh lets in.
    let mut talk = mesh.client.connects(mesh::SERVER.parse().unwrap());
    talk.echoes("through the mesh");
    let steered = mesh.far().metrics();
    assert!(steered.sum("mesh_bpf_verdicts_total", &["verdict=\"inbound_steered\""]) >= 2.0);
}

/// What the kernel hands to a subflow of Multipath TCP is never read.
#[test]
fn by_the_kernel_path_it_works_and_is_never_spliced() {
    for (splice, own) in [("off", true), ("on", true), ("on", false)] {
        let name = format!("mptcp-{splice}-{own}");
        let mut it = Neighbours::start_with(&name, "echo", &["--splice", splice]);
        it.wait_for_services(2);
        let ran = asks(&it.client, mesh::SERVER, 3_000_000, "slow").expect_success();
        assert_eq!(ran.stdout().trim(), "True True", "to a server of plain TCP");
        assert_eq!(it.verdict("splice_begun"), 0);
        it.program.kill_9();
        it.program = serves(&it.server, mesh::SERVER_PORT);
        if own {
            // More ways are asked for: from an address that is not the pod's.
            it.client.netns().ip(&["addr add 10.77.7.7/32 dev eth0"]);
            it.client.netns().ip(&["mptcp limits set subflows 2 add_addr_accepted 2"]);
            it.client.netns().ip(&["mptcp endpoint add 10.77.7.7 dev eth0 subflow"]);
            it.server.netns().ip(&["mptcp limits set subflows 2 add_addr_accepted 2"]);
            let before = it.verdict("authorized");
            let ran = asks(&it.client, mesh::SERVER, 3_000_000, "slow").expect_success();
            assert_eq!(ran.stdout().trim(), "True True", "to a server of Multipath TCP");
            assert_eq!(it.verdict("splice_begun"), 0);
            assert_eq!(it.verdict("authorized"), before + 1, "one way for each connection");
        }
        // A server that listens so gets plain TCP from who speaks plain TCP.
        it.talk().echoes("plain words").echoes("and more");
        assert_eq!(it.verdict("splice_begun") > 0, splice == "on", "{}", it.agent.status());
        assert_eq!(it.verdict("splice_refused") > 0, splice == "on", "{}", it.agent.status());
    }
}
