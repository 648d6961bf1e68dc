//! Programs that people run, unmodified, over the kernel path and by each accelerator.

use std::{fs, os::unix::fs::chown, path::Path, process::Command};

use nix::unistd::User;
use tests::{
    Agent, Allow, Inbound, MeshConfig, Pod, Process, Service, Testbed, eventually,
    eventually_within,
};

const VIP: &str = "10.96.0.40";
const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/programs");
/// One connection's volume.
const LARGE: &str = "67108864";

/// How the kernel path carries what it carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Road {
    /// As any TCP between two veth pairs.
    Plain,
    /// Packets straight from pod to pod.
    Redirected,
    /// Data straight from socket to socket.
    Spliced,
}

impl Road {
    const ALL: [Self; 3] = [Self::Plain, Self::Redirected, Self::Spliced];

    fn flags(self) -> [&'static str; 4] {
        let (redirect, splice) = match self {
            Self::Plain => ("off", "off"),
            Self::Redirected => ("on", "off"),
            Self::Spliced => ("off", "on"),
        };
        ["--redirect-peer", redirect, "--splice", splice]
    }

    /// What the kernel counts for it and for no other.
    fn verdict(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Redirected => Some("redirected"),
            Self::Spliced => Some("splice_begun"),
        }
    }
}

/// The kernel's verdicts that tell the roads apart.
const COUNTED: [&str; 4] = ["authorized", "outbound_captured", "redirected", "splice_begun"];

/// A client and a server on one node, and what the server pod runs.
struct Bed {
    client: Pod,
    server: Pod,
    agent: Agent,
    port: u16,
    _program: Process,
    _bed: Testbed,
}

impl Bed {
    /// Starts `program` in the server's pod, to listen on `port`.
    fn serving(name: &str, port: u16, program: impl FnOnce(&Pod) -> Command) -> Self {
        let bed = Testbed::two_nodes(name);
        let node = bed.node(1);
        let (client, server) = (node.pod("client").start(), node.pod("server").start());
        let process = server.starts(name, program(&server));
        eventually_within(std::time::Duration::from_secs(60), &format!("{name} listens"), || {
            if let Some(status) = process.ended() {
                panic!("{name} ended: {status}\n{}", process.log());
            }
            let listens = server.netns().listening_ports().contains(&port);
            if listens { Ok(()) } else { Err(process.log()) }
        });
        let allow = Allow::policy("client-may-talk").from(&client);
        MeshConfig::new()
            .service(&Service::tcp("program", &format!("{VIP}:{port}")).backed_by(&server, port))
            .inbound(&Inbound::tcp(&server, port).allow(allow))
            .write_to(&node.config_dir());
        let agent = node.agent().with_pod(&client).with_pod(&server).start();
        Self { client, server, agent, port, _program: process, _bed: bed }
    }

    /// Has the client do what `uses` says on each road: all of it must go over the kernel
    /// path, and that road.
    fn is_used(&mut self, mut uses: impl FnMut(&Self, Road)) {
        for road in Road::ALL {
            self.agent.terminate();
            self.agent.restart_once_with(&road.flags());
            eventually("the service is on the kernel path", || {
                let status = self.agent.status();
                if status["kernel_path"]["services"] == 1 { Ok(()) } else { Err(status) }
            });
            let before = self.verdicts();
            eprintln!("by the road {road:?}");
            uses(self, road);
            let seen = self.verdicts();
            let counted = |name: &str| {
                let at = COUNTED.iter().position(|counted| *counted == name).expect("a verdict");
                seen[at] - before[at]
            };
            assert!(counted("authorized") >= 1.0, "{road:?}: {seen:?} of {COUNTED:?}");
            assert!(counted("outbound_captured") < 0.5, "{road:?}: {seen:?} of {COUNTED:?}");
            for other in Road::ALL {
                let Some(verdict) = other.verdict() else { continue };
                assert_eq!(counted(verdict) >= 1.0, other == road, "{road:?}: {verdict}");
            }
        }
    }

    /// What the kernel has decided so far, in the order of [`COUNTED`].
    fn verdicts(&self) -> [f64; COUNTED.len()] {
        let metrics = self.agent.metrics();
        COUNTED
            .map(|name| metrics.sum("mesh_bpf_verdicts_total", &[&format!("verdict=\"{name}\"")]))
    }

    fn address(&self) -> String {
        format!("{VIP}:{}", self.port)
    }

    /// The client's shell.
    fn client_runs(&self, script: &str) -> String {
        self.client.run(&["sh", "-c", script]).expect_success().stdout().trim().to_owned()
    }

    /// The same in the server's own pod, by loopback.
    fn server_runs(&self, script: &str) -> String {
        self.server.run(&["sh", "-c", script]).expect_success().stdout().trim().to_owned()
    }
}

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}

/// An echo server in some language: volume, concurrency, half-close, a slow reader.
fn echoes(name: &str, port: u16, words: &[&str], greeting: bool) {
    let mut bed = Bed::serving(name, port, |_| command(words));
    bed.is_used(|bed, road| {
        let (address, greeting) = (bed.address(), if greeting { &["--greeting"][..] } else { &[] });
        for (bytes, streams) in [("65536", "1"), (LARGE, "1"), ("1000000", "16"), ("5000", "1000")]
        {
            let arguments = [&["echoed", &address, bytes, streams], greeting, again(road)];
            bed.client.run_peer(&arguments.concat()).expect_success();
        }
    });
}

/// What a client that waits for its answer has to know of spliced sockets: once it has shut
/// its side down, `recv` may say EAGAIN where it should have waited.
fn again(road: Road) -> &'static [&'static str] {
    if road == Road::Spliced { &["--again"] } else { &[] }
}

fn program(file: &str) -> String {
    format!("{PROGRAMS}/{file}")
}

#[test]
fn a_gibibyte_arrives_whole_by_every_road() {
    let peer = tests::process::peer().display().to_string();
    let mut bed = Bed::serving("digest", 7005, |_| command(&[&peer, "digest", "7005"]));
    bed.is_used(|bed, _| {
        let (up, down) = ((1_u64 << 30).to_string(), (64_u64 << 20).to_string());
        let arguments = ["transfer", &bed.address(), &up, &down, "1"];
        bed.client.run_peer(&arguments).expect_success();
        // The two numbers that say how much, and the digest.
        let entry = bed.agent.logs_access(&["\"inbound\"", &((1_u64 << 30) + 16).to_string()]);
        assert_eq!(entry["bytes_sent"], (64_u64 << 20) + 32, "{entry}");
    });
}

/// Reads much more slowly than it sends, and ends by a reset.
const SLOW: &str = "
import socket, struct, sys, threading, time
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
sent = bytes(range(251)) * int(sys.argv[3])
threading.Thread(target=s.sendall, args=(sent,), daemon=True).start()
got = bytearray()
while len(got) < len(sent):
    piece = s.recv(1 << 16)
    assert piece, 'it ended early'
    got += piece
    time.sleep(0.002)
assert got == sent
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
s.close()
";

#[test]
fn a_slow_reader_gets_everything_and_its_reset_is_told_by_every_road() {
    let peer = tests::process::peer().display().to_string();
    let mut bed = Bed::serving("echo", 7006, |_| command(&[&peer, "echo", "7006"]));
    let mut pieces = 40_000_u64;
    bed.is_used(|bed, _| {
        // To tell the roads' lines apart.
        pieces += 1;
        let arguments = ["python3", "-c", SLOW, VIP, "7006", &pieces.to_string()];
        bed.client.run(&arguments).expect_success();
        let moved = format!("\"bytes_received\":{}", pieces * 251);
        let entry = bed.agent.logs_access(&["\"inbound\"", &moved, "reset by either side"]);
        assert_eq!(entry["bytes_sent"], pieces * 251, "{entry}");
    });
}

/// Has many connections open at once, asks on each, and ends every other one by a reset.
const MANY: &str = "
import resource, socket, struct, sys
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
asked, answer = (text.encode().decode('unicode_escape').encode('latin1') for text in sys.argv[4:])
resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
all = [socket.create_connection((host, port), 120) for _ in range(count)]
for s in all:
    s.sendall(asked)
for s in all:
    got = b''
    while answer not in got:
        piece = s.recv(1 << 16)
        assert piece, got
        got += piece
for s in all[::2]:
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
for s in all:
    s.close()
";

/// `count` connections that [`MANY`] opens; resets are told as such, at both ends.
fn has_many(bed: &Bed, count: usize, asked: &str, answer: &str) {
    let resets = || bed.agent.stdout().matches("reset by either side").count();
    let (before, verdicts) = (resets(), bed.verdicts());
    let (port, connections) = (bed.port.to_string(), count.to_string());
    let script = ["python3", "-c", MANY, VIP, &port, &connections, asked, answer];
    bed.client.run(&script).expect_success();
    let authorized = bed.verdicts()[0] - verdicts[0];
    assert!((authorized - count as f64).abs() < 0.5, "{authorized} by the kernel path");
    eventually("the resets are logged", || {
        let told = resets() - before;
        if told >= count { Ok(()) } else { Err(told) }
    });
}

#[test]
fn python_asyncio_greets_and_echoes() {
    let words = ["python3", &program("echo_asyncio.py"), "7001"];
    echoes("asyncio", 7001, &words, true);
}

#[test]
fn edge_triggered_epoll_misses_no_event() {
    echoes("epoll", 7002, &["python3", &program("echo_epoll.py"), "7002"], false);
}

#[test]
fn node_streams_echo() {
    echoes("node", 7003, &["node", &program("echo.js"), "7003"], false);
}

#[test]
fn java_nio_echoes() {
    echoes("java", 7004, &["java", &program("Echo.java"), "7004"], false);
}

/// What a small file holds.
const SMALL: &str = "so much and no more";

/// A file of noise to be served, and its digest; and a small one.
fn noise(directory: &Path, megabytes: u32) -> String {
    fs::create_dir_all(directory).unwrap();
    fs::write(directory.join("small"), SMALL).unwrap();
    let file = directory.join("noise").display().to_string();
    let script = format!("head -c {megabytes}M /dev/urandom >{file}; sha256sum <{file}");
    let made = Command::new("sh").args(["-c", &script]).output().unwrap();
    String::from_utf8(made.stdout).unwrap().trim().to_owned()
}

/// An HTTP server with a file of noise: a large body, ranges, many requests.
fn serves_a_file(mut bed: Bed, digest: &str) {
    bed.is_used(|bed, _| {
        let url = format!("http://{}/noise", bed.address());
        let fetched = bed.client_runs(&format!("curl -sS --fail {url} | sha256sum"));
        assert_eq!(fetched, digest);
        let parallel = format!("curl -sS --fail -Z --parallel-max 100 -r 0-65535 '{url}?[1-500]'");
        assert_eq!(bed.client_runs(&format!("{parallel} | wc -c")), (500 * 65536).to_string());
        // A client that reads slowly, and one that goes away in the middle.
        let slow = bed
            .client_runs(&format!("curl -sS --fail --limit-rate 8M -r 0-16777215 {url} | wc -c"));
        assert_eq!(slow, (16 << 20).to_string());
        bed.client_runs(&format!("curl -sS {url} 2>/dev/null | head -c 100000 | wc -c"));
        has_many(bed, 1000, "GET /small HTTP/1.1\\r\\nHost: here\\r\\n\\r\\n", SMALL);
    });
}

#[test]
fn nginx_serves_a_large_file_by_sendfile() {
    let mut digest = String::new();
    let bed = Bed::serving("nginx", 7010, |pod| {
        let directory = pod.node().directory().join("nginx");
        digest = noise(&directory, 256);
        let here = directory.display();
        let conf = format!(
            "daemon off; user root; worker_processes 2; pid {here}/pid; error_log stderr warn;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ sendfile on; access_log off; client_body_temp_path {here}/b;\n\
             proxy_temp_path {here}/p; fastcgi_temp_path {here}/f; uwsgi_temp_path {here}/u;\n\
             scgi_temp_path {here}/s; server {{ listen 7010 backlog=4096; root {here}; }} }}\n"
        );
        let file = directory.join("nginx.conf");
        fs::write(&file, conf).unwrap();
        command(&["nginx", "-p", &here.to_string(), "-c", &file.display().to_string()])
    });
    serves_a_file(bed, &digest);
}

#[test]
fn caddy_which_is_go_serves_a_large_file() {
    let mut digest = String::new();
    let bed = Bed::serving("caddy", 7011, |pod| {
        let directory = pod.node().directory().join("caddy");
        digest = noise(&directory, 256);
        let here = directory.display().to_string();
        let mut caddy = command(&["caddy", "file-server", "--listen", ":7011", "--root", &here]);
        caddy.env("HOME", &here).env("XDG_DATA_HOME", &here).env("XDG_CONFIG_HOME", &here);
        caddy
    });
    serves_a_file(bed, &digest);
}

#[test]
fn iperf3_moves_bulk_both_ways() {
    let mut bed = Bed::serving("iperf3", 7012, |_| command(&["iperf3", "-s", "-p", "7012"]));
    bed.is_used(|bed, road| {
        for way in ["", "-R", "--bidir", "-P 100"] {
            let script = format!("iperf3 -J -c {VIP} -p {} -n 128M {way}", bed.port);
            let report: serde_json::Value =
                serde_json::from_str(&bed.client_runs(&script)).unwrap();
            let received = |sum: &str| report["end"][sum]["bytes"].as_f64().unwrap_or_default();
            // Of two ways, the one that is through first ends the transfer. Nobody holds a
            // spliced writer up: it is through, and ends it, before half was read. Of a
            // hundred at once, the sockets' buffers hold as much.
            let bytes = match (way, road) {
                ("-P 100", _) | (_, Road::Spliced) => received("sum_sent"),
                _ => received("sum_received").max(received("sum_received_bidir_reverse")),
            };
            assert!(bytes >= f64::from(64 << 20), "{way}: {report}");
            let streams = report["end"]["streams"].as_array().map_or(0, Vec::len);
            assert_eq!(streams == 100, way == "-P 100", "{way}: {streams} streams");
        }
    });
}

#[test]
fn redis_keeps_what_it_was_given() {
    let mut bed = Bed::serving("redis", 7013, |pod| {
        let directory = pod.node().directory().join("redis");
        fs::create_dir_all(&directory).unwrap();
        let here = directory.display().to_string();
        command(&[
            "redis-server",
            "--port",
            "7013",
            "--bind",
            "0.0.0.0",
            "--save",
            "",
            "--dir",
            &here,
            "--protected-mode",
            "no",
            "--tcp-backlog",
            "4096",
        ])
    });
    bed.is_used(|bed, _| {
        let cli = format!("redis-cli -h {VIP} -p {}", bed.port);
        let given = bed.client_runs(&format!(
            "head -c 30000000 /dev/urandom | base64 -w0 >/tmp/$$; {cli} -x set big </tmp/$$ >&2; \
             sha256sum </tmp/$$; rm /tmp/$$"
        ));
        let got = bed.client_runs(&format!("{cli} --raw get big | head -c -1 | sha256sum"));
        assert_eq!(got, given);
        let report = bed.client_runs(&format!(
            "ulimit -n 8192 && redis-benchmark -h {VIP} -p {} -c 1000 -n 20000 -P 16 -t set,get -q \
             --csv",
            bed.port
        ));
        assert!(report.contains("\"GET\""), "{report}");
        has_many(bed, 1000, "PING\\r\\n", "+PONG\\r\\n");
    });
}

#[test]
fn postgresql_answers_as_by_loopback() {
    let mut bed = Bed::serving("postgresql", 7014, |pod| {
        let directory = pod.node().directory().join("postgresql");
        fs::create_dir_all(&directory).unwrap();
        let owner = User::from_name("postgres").unwrap().expect("PostgreSQL is installed");
        chown(&directory, Some(owner.uid.as_raw()), Some(owner.gid.as_raw())).unwrap();
        let here = directory.join("data").display().to_string();
        // It refuses to be root.
        let script = format!(
            "cd / && bin=$(echo /usr/lib/postgresql/*/bin) && $bin/initdb -A trust -D {here} && \
             echo 'host all all 0.0.0.0/0 trust' >>{here}/pg_hba.conf && \
             exec $bin/postgres -D {here} -p 7014 -c listen_addresses='*' -c fsync=off \
             -c unix_socket_directories='' -c max_connections=300"
        );
        command(&[
            "setpriv",
            "--reuid=postgres",
            "--regid=postgres",
            "--clear-groups",
            "sh",
            "-c",
            &script,
        ])
    });
    bed.is_used(|bed, _| {
        let query = "COPY (SELECT i, repeat(md5(i::text), 64) FROM generate_series(1, 30000) i) \
                     TO STDOUT";
        let psql = |host: &str, query: &str| {
            format!("psql -h {host} -p {} -U postgres -d postgres -Atc \"{query}\"", bed.port)
        };
        let near = bed.server_runs(&format!("{} | sha256sum", psql("127.0.0.1", query)));
        let far = bed.client_runs(&format!("{} | sha256sum", psql(VIP, query)));
        assert_eq!(far, near);
        bed.client_runs(&psql(VIP, "DROP TABLE IF EXISTS t; CREATE TABLE t (v text)"));
        let load = psql(VIP, "COPY t FROM STDIN");
        let count = bed.client_runs(&format!(
            "seq 1 2000000 | {load} >&2; {}",
            psql(VIP, "SELECT count(*), sum(v::bigint) FROM t")
        ));
        assert_eq!(count, "2000000|2000001000000");
        let report = bed.client_runs(&format!(
            "echo 'SELECT 1;' >/tmp/$$; pgbench -n -f /tmp/$$ -c 200 -j 2 -t 5 -h {VIP} -p {} \
             -U postgres postgres; rm /tmp/$$",
            bed.port
        ));
        assert!(report.contains("actually processed: 1000/1000"), "{report}");
        // Whether it speaks TLS, which it does not.
        has_many(bed, 200, "\\0\\0\\0\\x08\\x04\\xd2\\x16/", "N");
    });
}
