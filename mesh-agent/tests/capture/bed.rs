//! A private cgroup, a pod and a peer namespace joined by a veth, and programs inside them.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use mesh_agent::{
    capture::{Capture, CaptureOptions, EnrollPod, Exclusions, NetnsRef, PodNetns, cgroup2_root},
    model::workload::{MtlsMode, WorkloadUid},
};
use nix::sched::{CloneFlags, setns};

pub(crate) const POD4: &str = "10.77.0.2";
pub(crate) const POD6: &str = "fd77::2";
pub(crate) const PEER4: &str = "10.77.0.1";
pub(crate) const PEER6: &str = "fd77::1";

/// How a re-executed test binary learns what to do.
const ORDER: &str = "MESH_CAPTURE_TEST_ORDER";
const PATIENCE: Duration = Duration::from_secs(10);

/// Everything is named after the process, and removed on drop.
pub(crate) struct Bed {
    name: String,
    cgroup: PathBuf,
    directory: tempfile::TempDir,
}

impl Bed {
    pub(crate) fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests need root");
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("mc{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let cgroup = cgroup2_root().unwrap().join(format!("mesh-test-{name}"));
        let bed = Self { name, cgroup, directory: tempfile::tempdir().unwrap() };
        fs::create_dir(&bed.cgroup).unwrap();
        let (pod, peer) = (bed.pod(), bed.peer());
        for netns in [&pod, &peer] {
            ip(&format!("netns add {netns}"));
            ip(&format!("-n {netns} link set lo up"));
        }
        ip(&format!("-n {pod} link add eth0 type veth peer name eth0 netns {peer}"));
        for (netns, v4, v6) in [(&pod, POD4, POD6), (&peer, PEER4, PEER6)] {
            ip(&format!("-n {netns} link set eth0 up"));
            ip(&format!("-n {netns} addr add {v4}/24 dev eth0"));
            ip(&format!("-n {netns} addr add {v6}/64 dev eth0 nodad"));
        }
        ip(&format!("-n {pod} route add default via {PEER4}"));
        ip(&format!("-n {pod} route add default via {PEER6}"));
        bed
    }

    pub(crate) fn pod(&self) -> String {
        format!("{}-pod", self.name)
    }

    pub(crate) fn peer(&self) -> String {
        format!("{}-peer", self.name)
    }

    pub(crate) fn options(&self) -> CaptureOptions {
        CaptureOptions {
            cgroup_root: Some(self.cgroup.clone()),
            bpffs: self.directory.path().join("bpf"),
            instance: "test".to_owned(),
            state_dir: self.directory.path().join("state"),
            ..CaptureOptions::default()
        }
    }

    pub(crate) fn capture(&self) -> Capture {
        Capture::start(self.options()).unwrap_or_else(|error| panic!("{}", chain(&error)))
    }

    pub(crate) fn request(&self) -> EnrollPod {
        EnrollPod {
            uid: WorkloadUid("pod-1".into()),
            name: "pod".to_owned(),
            identity: "spiffe://cluster.local/ns/shop/sa/checkout".parse().unwrap(),
            labels: Default::default(),
            mtls: MtlsMode::Strict,
            redirect_peer: None,
            netns: NetnsRef::Path(netns_path(&self.pod())),
            splice: None,
            agent_down: None,
            exclusions: Exclusions::default(),
        }
    }

    /// Runs `work` in a namespace of the bed, on this thread.
    pub(crate) fn inside<T>(&self, netns: &str, work: impl FnOnce() -> T) -> T {
        PodNetns::open(&NetnsRef::Path(netns_path(netns))).unwrap().run(work).unwrap()
    }

    /// A program in the pod that dials, says `ping` and reports what it saw.
    pub(crate) fn dial_from_pod(&self, destination: &str) -> Program {
        self.program(&self.pod(), &format!("dial {destination}"))
    }

    /// A program in the pod that dials ports 1 to the given one, and writes to each
    /// the address it dialled.
    pub(crate) fn burst_from_pod(&self, last: &str) -> Program {
        self.program(&self.pod(), &format!("burst {last}"))
    }

    /// As [`Bed::dial_from_pod`], with the agent's mark; only the first bytes are reported.
    pub(crate) fn forge_from_pod(&self, destination: &str) -> Program {
        self.program(&self.pod(), &format!("forge {destination}"))
    }

    /// As [`Bed::dial_from_pod`], by Multipath TCP; only the first bytes are reported.
    pub(crate) fn mptcp_from_pod(&self, destination: &str) -> Program {
        self.program(&self.pod(), &format!("mptcp {destination}"))
    }

    pub(crate) fn dial_from_peer(&self, destination: &str) -> Program {
        self.program(&self.peer(), &format!("dial {destination}"))
    }

    /// A program in the pod that answers each connection with its peer's address,
    /// then echoes until end of stream.
    pub(crate) fn serve_in_pod(&self, address: &str) -> Program {
        let mut program = self.program(&self.pod(), &format!("serve {address}"));
        assert_eq!(program.line(), "ready");
        program
    }

    pub(crate) fn serve_in_peer(&self, address: &str) -> Program {
        let mut program = self.program(&self.peer(), &format!("serve {address}"));
        assert_eq!(program.line(), "ready");
        program
    }

    fn program(&self, netns: &str, order: &str) -> Program {
        let order = format!("{} {} {order}", self.cgroup.display(), netns_path(netns).display());
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "program", "--ignored", "--nocapture", "--test-threads=1"])
            .env(ORDER, order)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Program { child, out }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let options = self.options();
        let _ = nix::mount::umount2(&options.bpffs, nix::mount::MntFlags::MNT_DETACH);
        if let Ok(held) = fs::read_dir(options.state_dir.join("netns")) {
            for entry in held.flatten() {
                let _ = nix::mount::umount2(&entry.path(), nix::mount::MntFlags::MNT_DETACH);
            }
        }
        for netns in [self.pod(), self.peer()] {
            let _ = Command::new("ip").args(["netns", "del", &netns]).output();
        }
        // Programs are gone with their handles; the kernel may need a moment.
        for _ in 0..50 {
            if fs::remove_dir(&self.cgroup).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A program inside the bed; killed when dropped.
pub(crate) struct Program {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Program {
    /// The next line that is not the test harness's own.
    pub(crate) fn line(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.out.read_line(&mut line).unwrap(), 0, "the program ended");
            if let Some((_, ours)) = line.trim_end().split_once("> ") {
                return ours.to_owned();
            }
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The other side of [`Bed::program`]: moves this process into the cgroup and this
/// thread into the namespace, then does as it was told.
pub(crate) fn obey() {
    let Ok(order) = std::env::var(ORDER) else { return };
    let words: Vec<_> = order.split(' ').collect();
    let [cgroup, netns, what, address] = words[..] else { panic!("bad order: {order}") };
    fs::write(Path::new(cgroup).join("cgroup.procs"), "0").unwrap();
    setns(fs::File::open(netns).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
    let address: SocketAddr = address.parse().unwrap();
    match what {
        "dial" => say(&dial(address).unwrap_or_else(|error| format!("failed: {:?}", error.kind()))),
        "mptcp" => {
            say(&mptcp(address).unwrap_or_else(|error| format!("failed: {:?}", error.kind())))
        }
        "forge" => {
            say(&forge(address).unwrap_or_else(|error| format!("failed: {:?}", error.kind())))
        }
        "burst" => burst(address),
        "serve" => serve(address),
        _ => panic!("bad order: {order}"),
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "> {line}").unwrap();
    out.flush().unwrap();
}

fn dial(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let peer = stream.peer_addr()?;
    stream.write_all(b"ping")?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(format!("peer={peer} answer={answer}"))
}

/// Dials every port up to the address's at once, and says on each which it is.
fn burst(last: SocketAddr) {
    let dials: Vec<_> = (1..=last.port())
        .map(|port| {
            let destination = SocketAddr::new(last.ip(), port);
            std::thread::spawn(move || {
                let mut stream = TcpStream::connect_timeout(&destination, PATIENCE).unwrap();
                write!(stream, "{destination}").unwrap();
            })
        })
        .collect();
    for dial in dials {
        dial.join().unwrap();
    }
    say("done");
}

/// Dials as if it were the agent, as far as a pod can.
fn forge(address: SocketAddr) -> std::io::Result<String> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
    socket.set_mark(mesh_common::abi::UPSTREAM_MARK)?;
    socket.connect_timeout(&address.into(), PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut answer = [0; 5];
    TcpStream::from(socket).read_exact(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn mptcp(address: SocketAddr) -> std::io::Result<String> {
    const IPPROTO_MPTCP: i32 = 262;
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::STREAM,
        Some(IPPROTO_MPTCP.into()),
    )?;
    socket.connect_timeout(&address.into(), PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut answer = [0; 5];
    TcpStream::from(socket).read_exact(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn serve(address: SocketAddr) {
    let listener = TcpListener::bind(address).unwrap();
    say("ready");
    for stream in listener.incoming() {
        std::thread::spawn(move || {
            let mut stream = stream.unwrap();
            let _ = write!(stream, "hello {} ", stream.peer_addr().unwrap().ip());
            let mut buffer = [0; 16384];
            while let Ok(n @ 1..) = stream.read(&mut buffer) {
                if stream.write_all(&buffer[..n]).is_err() {
                    break;
                }
            }
        });
    }
}

pub(crate) fn netns_path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

pub(crate) fn ip(arguments: &str) {
    let out = Command::new("ip").args(arguments.split(' ')).output().expect("ip(8) is needed");
    assert!(out.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Output of ip(8).
pub(crate) fn ip_out(arguments: &str) -> String {
    let out = Command::new("ip").args(arguments.split(' ')).output().expect("ip(8) is needed");
    String::from_utf8(out.stdout).unwrap()
}

pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
