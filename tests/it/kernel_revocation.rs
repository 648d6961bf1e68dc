//! What is denied ends, whatever its client does to keep it.

use std::process::Command;

use tests::{
    Allow, Inbound, MeshConfig, Pod, Process, Service, eventually,
    mesh::{SERVER, SERVER_PORT},
};

use crate::kernel_path::{Neighbours, config};

/// A client whose socket belongs to one interface: from before it connects (`before`), from
/// then on (`after`), or now and then (`flips`).
const BOUND: &str = "
import socket, sys, threading, time
how, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
s = socket.socket()
bind = lambda name: s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name)
if how == 'before':
    bind(b'eth0')
s.connect((host, port))
if how == 'after':
    bind(b'eth0')
def flips():
    while True:
        bind(b'eth0')
        bind(b'')
if how == 'flips':
    threading.Thread(target=flips, daemon=True).start()
try:
    while True:
        s.sendall(b'word\\n')
        if not s.recv(64):
            break
        print('echoed', flush=True)
        time.sleep(0.05)
except OSError as error:
    print('error', error, flush=True)
print('cut off', flush=True)
time.sleep(600)
";

fn python(pod: &Pod, label: &str, program: &str, arguments: &[&str]) -> Process {
    let mut command = Command::new("python3");
    command.args(["-c", program]).args(arguments);
    pod.starts(label, command)
}

fn says(program: &Process, word: &str) {
    eventually(&format!("{} says {word}", program.label()), || {
        let log = program.log();
        if log.contains(word) { Ok(()) } else { Err(log) }
    });
}

fn nobody_is_allowed(it: &Neighbours) -> MeshConfig {
    let service = Service::tcp("server", SERVER).backed_by(&it.server, SERVER_PORT);
    let inbound =
        Inbound::tcp(&it.server, SERVER_PORT).allow(Allow::policy("nobody").from(&it.server));
    MeshConfig::new().service(&service).inbound(&inbound)
}

#[test]
fn a_socket_that_is_bound_to_its_interface_is_cut_like_any() {
    let it = Neighbours::start("revoke-bound", "echo");
    let (host, port) = SERVER.rsplit_once(':').unwrap();
    let ways = ["before", "after", "flips"];
    let clients = ways.map(|how| python(&it.client, how, BOUND, &[how, host, port]));
    clients.iter().for_each(|client| says(client, "echoed"));
    assert_eq!(it.verdict("outbound_kernel_path"), 3, "{}", it.agent.status());
    it.agent.configure(&nobody_is_allowed(&it));
    clients.iter().for_each(|client| says(client, "cut off"));
    eventually("nothing is left of them", || {
        let live = it.agent.connections();
        if live.as_array().is_some_and(Vec::is_empty) { Ok(()) } else { Err(live) }
    });
}

/// Talks for ever to whoever comes.
const TICKS: &str = "
import socket, sys, time
listener = socket.create_server(('0.0.0.0', int(sys.argv[1])))
s, _ = listener.accept()
number = 0
try:
    while True:
        number += 1
        s.sendall(b'tick %d\\n' % number)
        print('sent', number, flush=True)
        time.sleep(0.05)
except OSError as error:
    print('error', error, flush=True)
time.sleep(600)
";

/// A client that lets its socket go without a word, and acknowledges what still comes.
const LISTENS_ON: &str = "
import socket, struct, sys, time
host, port, server, server_port = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x800))
sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
c = socket.socket()
c.connect((host, port))
c.recv(64)
own, own_port = c.getsockname()
if sys.argv[5] == 'closes':
    TCP_REPAIR = 19
    c.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    c.close()
else:
    import ctypes
    assert ctypes.CDLL(None).connect(c.fileno(), b'\\0' * 16, 16) == 0
print('gone', flush=True)
# The socket may get what was meant for the one that it was.
def reads_on():
    while True:
        try:
            print('overheard', c.recv(64).decode().strip(), flush=True)
        except OSError:
            pass
        time.sleep(0.01)
if sys.argv[5] == 'disconnects':
    import threading
    threading.Thread(target=reads_on, daemon=True).start()
pack = lambda *a: struct.pack('!HHIIBBHHH', *a)
addresses = socket.inet_aton(own) + socket.inet_aton(server)
def checksum(data):
    total = sum(struct.unpack('!%dH' % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff
while True:
    packet, where = sniffer.recvfrom(65535)
    if where[2] == socket.PACKET_OUTGOING or packet[9] != 6:
        continue
    ip = (packet[0] & 15) * 4
    total = struct.unpack('!H', packet[2:4])[0]
    sport, dport, seq, ack = struct.unpack('!HHII', packet[ip:ip + 12])
    if (sport, dport) != (server_port, own_port):
        continue
    data = packet[ip + (packet[ip + 12] >> 4) * 4:total]
    if not data:
        continue
    print('overheard', data.decode().strip(), flush=True)
    following = (seq + len(data)) & 0xffffffff
    bare = pack(own_port, server_port, ack, following, 0x50, 0x10, 60000, 0, 0)
    pseudo = addresses + struct.pack('!HH', 6, len(bare))
    bare = pack(own_port, server_port, ack, following, 0x50, 0x10, 60000, checksum(pseudo + bare), 0)
    header = struct.pack('!BBHHHBBH', 0x45, 0, 40, 0, 0, 64, 6, 0) + addresses
    sender.sendto(header + bare, (server, 0))
";

/// Whoever is root in a pod can keep its kernel from saying that a socket is gone.
fn hears_no_more(name: &str, flags: &[&str], how: &str) {
    const PORT: u16 = 9100;
    let it = Neighbours::start_with(name, "echo", flags);
    let ticks = "10.96.0.30:9100";
    let service = Service::tcp("ticks", ticks).backed_by(&it.server, PORT);
    let inbound = Inbound::tcp(&it.server, PORT).allow(Allow::policy("all").from(&it.client));
    it.agent.configure(&config(&it.client, &it.server).service(&service).inbound(&inbound));
    it.wait_for_services(3);
    it.client.netns().tc(&[
        "qdisc add dev eth0 root handle 1: htb",
        "class add dev eth0 parent 1: classid 1:3 htb rate 1gbit",
        "qdisc add dev eth0 parent 1:3 blackhole",
        "filter add dev eth0 parent 1: protocol ip u32 match ip protocol 6 0xff \
         match u8 0x04 0x04 at 33 flowid 1:3",
    ]);
    let server = python(&it.server, "ticks", TICKS, &[&PORT.to_string()]);
    eventually("it listens", || {
        let ports = it.server.netns().listening_ports();
        if ports.contains(&PORT) { Ok(()) } else { Err(ports) }
    });
    let (host, port) = ticks.rsplit_once(':').unwrap();
    let (to, at) = (it.server.ip().to_string(), PORT.to_string());
    let thief = python(&it.client, "listens-on", LISTENS_ON, &[host, port, &to, &at, how]);
    says(&thief, "gone");
    let heard = || thief.log().matches("overheard tick").count();
    // The latter where nothing has come from the client past splice that it could be noted by.
    let dropped = || it.verdict("guard_ended") + it.verdict("guard_egress_plaintext");
    eventually("the guard holds back what nobody asks for", || {
        if dropped() > 0 { Ok(()) } else { Err((heard(), server.log())) }
    });
    // What was sent before may still be on its way to the log.
    eventually("nothing more is heard while the server sends again and again", || {
        let (before, so_far) = (heard(), dropped());
        eventually("it sends", || {
            let now = dropped();
            if now > so_far { Ok(()) } else { Err(now) }
        });
        if heard() == before { Ok(()) } else { Err(thief.log()) }
    });
}

#[test]
fn who_lets_its_socket_go_unnoticed_hears_no_more() {
    hears_no_more("revoke-ghost", &[], "closes");
}

#[test]
fn who_parts_unnoticed_from_a_spliced_connection_hears_no_more() {
    hears_no_more("revoke-ghost-spliced", &["--splice", "on"], "disconnects");
}
