//! A pod: a network namespace behind its node, with a cgroup, running programs.

use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    process::Command,
    sync::Arc,
};

use crate::{
    Node, Process, Ran, cgroup,
    conversation::Conversation,
    curl::Curl,
    eventually,
    netns::{self, Netns},
    pki::Credentials,
    process::{self, Place, peer},
    sniff::Capture,
};

/// The trust domain of every bed.
pub const TRUST_DOMAIN: &str = "cluster.local";

/// What a pod will be.
#[derive(Debug, Clone)]
pub struct PodBuilder {
    node: Node,
    name: String,
    namespace: String,
    service_account: String,
    permissive: bool,
    redirect_peer: Option<&'static str>,
    splice: Option<String>,
    agent_down: Option<&'static str>,
    excluded_outbound_ports: Vec<u16>,
    excluded_outbound_cidrs: Vec<String>,
    excluded_inbound_ports: Vec<u16>,
}

impl PodBuilder {
    pub(crate) fn new(node: &Node, name: &str) -> Self {
        Self {
            node: node.clone(),
            name: name.to_owned(),
            namespace: "default".to_owned(),
            service_account: name.to_owned(),
            permissive: false,
            redirect_peer: None,
            splice: None,
            agent_down: None,
            excluded_outbound_ports: Vec::new(),
            excluded_outbound_cidrs: Vec::new(),
            excluded_inbound_ports: Vec::new(),
        }
    }

    /// The service account its identity is made of; its name unless told.
    #[must_use]
    pub fn service_account(mut self, name: &str) -> Self {
        name.clone_into(&mut self.service_account);
        self
    }

    /// The namespace its identity is made of; `default` unless told.
    #[must_use]
    pub fn namespace(mut self, name: &str) -> Self {
        name.clone_into(&mut self.namespace);
        self
    }

    /// Plaintext from outside is let in and judged, not refused.
    #[must_use]
    pub fn permissive(mut self) -> Self {
        self.permissive = true;
        self
    }

    /// Whether its connections are spliced, whatever its agent does: `auto`, `on` or `off`.
    #[must_use]
    pub fn splice(mut self, mode: &str) -> Self {
        self.splice = Some(mode.to_owned());
        self
    }

    /// `refuse` or `keep`, in place of what its agent says.
    #[must_use]
    pub fn agent_down(mut self, choice: &'static str) -> Self {
        self.agent_down = Some(choice);
        self
    }

    /// `auto`, `on` or `off`, in place of what its agent says.
    #[must_use]
    pub fn redirect_peer(mut self, mode: &'static str) -> Self {
        self.redirect_peer = Some(mode);
        self
    }

    /// Connections to `port` stay out of the mesh.
    #[must_use]
    pub fn without_outbound_port(mut self, port: u16) -> Self {
        self.excluded_outbound_ports.push(port);
        self
    }

    /// Connections into `cidr` stay out of the mesh.
    #[must_use]
    pub fn without_outbound_cidr(mut self, cidr: &str) -> Self {
        self.excluded_outbound_cidrs.push(cidr.to_owned());
        self
    }

    /// Connections from outside to `port` stay out of the mesh.
    #[must_use]
    pub fn without_inbound_port(mut self, port: u16) -> Self {
        self.excluded_inbound_ports.push(port);
        self
    }

    /// Makes the pod: namespace, addresses, routes, cgroup.
    pub fn start(self) -> Pod {
        let (index, ipv4, ipv6) = self.node.next_addresses();
        let node_ns = self.node.netns();
        let netns = Netns::create(&format!("{}-{}", node_ns.name(), self.name));
        let (veth, gateway) = (format!("pod{index}"), self.node.gateway());
        node_ns.ip(&[
            &format!("link add {veth} type veth peer name eth0 netns {}", netns.name()),
            &format!("addr add {gateway}/32 dev {veth}"),
            &format!("addr add fe80::1/64 dev {veth} nodad"),
            &format!("link set {veth} up"),
        ]);
        netns.ip(&[
            &format!("addr add {ipv4}/32 dev eth0"),
            &format!("addr add {ipv6}/128 dev eth0 nodad"),
            "link set eth0 up",
            &format!("route add {gateway} dev eth0 scope link"),
            &format!("route add default via {gateway} dev eth0 src {ipv4}"),
            &format!("-6 route add default via fe80::1 dev eth0 src {ipv6}"),
        ]);
        node_ns.ip(&[
            &format!("route add {ipv4}/32 dev {veth}"),
            &format!("-6 route add {ipv6}/128 dev {veth}"),
        ]);
        let cgroup = self.node.cgroup().join("pods").join(&self.name);
        cgroup::create(&cgroup);
        let place = Place { netns, cgroup, shared: Arc::clone(self.node.shared()) };
        Pod(Arc::new(Inner { builder: self, place, veth, ipv4, ipv6 }))
    }
}

/// A pod; cheap to clone.
#[derive(Debug, Clone)]
pub struct Pod(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    builder: PodBuilder,
    place: Place,
    veth: String,
    ipv4: Ipv4Addr,
    ipv6: Ipv6Addr,
}

impl Pod {
    /// Its name, unique on its node.
    pub fn name(&self) -> &str {
        &self.0.builder.name
    }

    /// What names it to the agent.
    pub fn uid(&self) -> String {
        format!("uid-{}", self.name())
    }

    /// The node it is on.
    pub fn node(&self) -> &Node {
        &self.0.builder.node
    }

    /// Its node's end of the pair that joins them.
    pub fn veth(&self) -> &str {
        &self.0.veth
    }

    /// Its IPv4 address.
    pub fn ip(&self) -> Ipv4Addr {
        self.0.ipv4
    }

    /// Its IPv6 address.
    pub fn ip6(&self) -> Ipv6Addr {
        self.0.ipv6
    }

    /// A port of its IPv4 address.
    pub fn at(&self, port: u16) -> SocketAddr {
        (IpAddr::from(self.0.ipv4), port).into()
    }

    /// A port of its IPv6 address.
    pub fn at6(&self, port: u16) -> SocketAddr {
        (IpAddr::from(self.0.ipv6), port).into()
    }

    /// The SPIFFE ID it gets when it is enrolled.
    pub fn identity(&self) -> String {
        let PodBuilder { namespace, service_account, .. } = &self.0.builder;
        format!("spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/{service_account}")
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.0.place.netns
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> PathBuf {
        self.0.place.cgroup.clone()
    }

    /// Its entry in a `pods.yaml`.
    pub fn enrolment(&self) -> serde_json::Value {
        let b = &self.0.builder;
        serde_json::json!({
            "uid": self.uid(),
            "name": b.name,
            "namespace": b.namespace,
            "service_account": b.service_account,
            "netns": self.netns().path(),
            "labels": { "app": b.name },
            "mtls": if b.permissive { "permissive" } else { "strict" },
            "redirect_peer": b.redirect_peer,
            "splice": b.splice,
            "agent_down": b.agent_down,
            "exclude_outbound_ports": b.excluded_outbound_ports,
            "exclude_outbound_cidrs": b.excluded_outbound_cidrs,
            "exclude_inbound_ports": b.excluded_inbound_ports,
        })
    }

    /// What `mesh-agent enroll NAME` takes to say the same as [`Pod::enrolment`].
    pub fn enroll_flags(&self) -> Vec<String> {
        let b = &self.0.builder;
        let mut flags: Vec<(&str, String)> = vec![
            ("--uid", self.uid()),
            ("--namespace", b.namespace.clone()),
            ("--service-account", b.service_account.clone()),
            ("--netns", self.netns().path().display().to_string()),
            ("--label", format!("app={}", b.name)),
            ("--mtls", if b.permissive { "permissive" } else { "strict" }.to_owned()),
        ];
        flags.extend(b.redirect_peer.map(|mode| ("--redirect-peer", mode.to_owned())));
        flags.extend(b.agent_down.map(|choice| ("--agent-down", choice.to_owned())));
        flags.extend(b.splice.iter().map(|mode| ("--splice", mode.clone())));
        flags.extend(
            b.excluded_outbound_ports.iter().map(|p| ("--exclude-outbound-port", p.to_string())),
        );
        flags.extend(
            b.excluded_outbound_cidrs.iter().map(|c| ("--exclude-outbound-cidr", c.clone())),
        );
        flags.extend(
            b.excluded_inbound_ports.iter().map(|p| ("--exclude-inbound-port", p.to_string())),
        );
        flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
    }

    /// Runs a program in the pod to its end.
    pub fn run(&self, argv: &[&str]) -> Ran {
        let mut command = Command::new(argv[0]);
        command.args(&argv[1..]);
        process::run(command, &self.0.place, process::RUN_DEADLINE)
    }

    /// Runs this crate's `peer` in the pod to its end.
    pub fn run_peer(&self, arguments: &[&str]) -> Ran {
        let mut command = Command::new(peer());
        command.args(arguments);
        process::run(command, &self.0.place, process::LONG_DEADLINE)
    }

    /// Starts to describe a request of an unmodified curl in the pod.
    pub fn curl(&self, url: &str) -> Curl<'_> {
        Curl::new(self, url)
    }

    /// Opens a TCP connection from the pod that the test speaks on, line by line.
    pub fn connects(&self, destination: SocketAddr) -> Conversation {
        Conversation::start(&self.0.place, destination, &[])
    }

    /// As [`Pod::connects`], by TLS that names no server and verifies nobody.
    pub fn connects_by_tls(&self, destination: SocketAddr) -> Conversation {
        Conversation::start_tls(&self.0.place, destination)
    }

    /// As [`Pod::connects`], to an IPv4 address by an IPv6 socket, as Java does.
    pub fn connects_mapped(&self, destination: SocketAddr) -> Conversation {
        Conversation::start(&self.0.place, destination, &["--mapped"])
    }

    /// As [`Pod::connects`], but the SYN leaves with the first words.
    pub fn connects_late(&self, destination: SocketAddr) -> Conversation {
        Conversation::start(&self.0.place, destination, &["--late"])
    }

    /// Starts a program in the pod; its output goes to a log of the node.
    pub fn starts(&self, label: &str, command: Command) -> Process {
        let log = self.node().directory().join(format!("{}-{label}.log", self.name()));
        Process::start(command, &self.0.place, label, &log)
    }

    /// Starts to connect to `address` all the time; the log says when another answered.
    pub fn watches(&self, address: &str) -> Process {
        let mut command = Command::new(peer());
        command.args(["watches", address]);
        self.starts("watch", command)
    }

    /// Starts an unmodified nginx that answers on `port` and says who asked:
    /// `hello from <pod>, you are <address>`.
    pub fn runs_nginx(&self, port: u16) -> Process {
        let directory = self.nginx_directory(port);
        fs::create_dir_all(&directory).expect("make nginx's directory");
        let file = directory.join("nginx.conf");
        fs::write(&file, nginx_conf(self.name(), port, &directory.display().to_string()))
            .expect("write nginx.conf");
        let mut command = Command::new("nginx");
        command.arg("-p").arg(&directory).arg("-c").arg(&file);
        let process = self.starts(&format!("nginx-{port}"), command);
        self.wait_for_listener(port, &process);
        process
    }

    /// As [`Pod::runs_nginx`] by TLS, HTTP/1.1 and HTTP/2, only for clients with a
    /// certificate of `clients_pem`. It says `serial=<theirs> sni=<asked for>
    /// protocol=<spoken>`, and lets `/slow` take some seconds.
    pub fn runs_tls_nginx(&self, port: u16, own: &Credentials, clients_pem: &str) -> Process {
        let directory = self.node().directory().join(format!("{}-nginx-{port}", self.name()));
        fs::create_dir_all(&directory).expect("make nginx's directory");
        let put = |name: &str, text: &str| {
            fs::write(directory.join(name), text).unwrap_or_else(|e| panic!("write {name}: {e}"));
        };
        put("own.pem", &own.certificate_pem);
        put("own-key.pem", &own.key_pem);
        put("clients.pem", clients_pem);
        put("slow", &"slowly ".repeat(100_000));
        let plain = nginx_conf(self.name(), port, &directory.display().to_string());
        let here = directory.display();
        let tls = format!(
            "ssl_certificate {here}/own.pem; ssl_certificate_key {here}/own-key.pem;\n\
             ssl_client_certificate {here}/clients.pem; ssl_verify_client optional;\n\
             location /slow {{ limit_rate 150k; alias {here}/slow; }}\n\
             location / {{ if ($ssl_client_verify != SUCCESS) {{ return 496; }} return 200 \
             \"serial=$ssl_client_serial sni=$ssl_server_name protocol=$server_protocol\\n\"; }}"
        );
        let from = plain.find("location / ").expect("a location");
        let to = from + plain[from..].find('\n').expect("a line");
        let conf = format!("{}{tls}{}", &plain[..from], &plain[to..])
            .replace(&format!("{port};"), &format!("{port} ssl http2;"));
        put("nginx.conf", &conf);
        let mut command = Command::new("nginx");
        command.arg("-p").arg(&directory).arg("-c").arg(directory.join("nginx.conf"));
        let process = self.starts(&format!("nginx-{port}"), command);
        self.wait_for_listener(port, &process);
        process
    }

    /// The access log of [`Pod::runs_nginx`].
    pub fn nginx_log(&self, port: u16) -> String {
        fs::read_to_string(self.nginx_directory(port).join("access.txt")).unwrap_or_default()
    }

    /// Its files are served below `/files/` by [`Pod::runs_nginx`].
    pub fn nginx_directory(&self, port: u16) -> PathBuf {
        self.node().directory().join(format!("{}-nginx-{port}", self.name()))
    }

    /// Starts this crate's `peer` as a server of `kind` on `port` (see its `--help`).
    pub fn serves(&self, kind: &str, port: u16) -> Process {
        let mut command = Command::new(peer());
        command.args([kind, &port.to_string()]);
        let process = self.starts(&format!("{kind}-{port}"), command);
        self.wait_for_listener(port, &process);
        process
    }

    /// As [`Pod::starts`], and waits until it listens on all of `ports`.
    pub fn starts_listening(&self, label: &str, command: Command, ports: &[u16]) -> Process {
        let process = self.starts(label, command);
        for port in ports {
            self.wait_for_listener(*port, &process);
        }
        process
    }

    fn wait_for_listener(&self, port: u16, process: &Process) {
        eventually(&format!("{} listens on {port}", process.label()), || {
            if self.netns().listening_ports().contains(&port) {
                return Ok(());
            }
            match process.ended() {
                Some(status) => panic!("{} ended: {status}\n{}", process.label(), process.log()),
                None => Err("not listening yet"),
            }
        });
    }

    /// Records every packet of the pod's interface from now on.
    pub fn records(&self) -> Capture {
        Capture::start(self.netns(), "eth0")
    }

    /// Ends the pod's processes and removes its namespace, as a runtime does.
    pub fn vanishes(&self) {
        cgroup::kill_all(&self.0.place.cgroup).expect("end the pod's processes");
        // The veth pair goes at once, the namespace when its last holder lets go.
        self.netns().ip(&["link del eth0"]);
        netns::remove(self.netns().name()).expect("remove the pod's namespace");
    }

    /// How a person enters the pod: its namespace and its cgroup.
    pub fn how_to_enter(&self) -> String {
        let mut hint = String::new();
        let _ = write!(
            hint,
            "sh -c 'echo $$ > {}/cgroup.procs; exec nsenter --net={} bash'",
            self.cgroup().display(),
            self.netns().path().display()
        );
        hint
    }
}

fn nginx_conf(name: &str, port: u16, directory: &str) -> String {
    format!(
        r#"daemon off;
user root;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
    log_format who '$remote_addr $request_method $request_uri $status "$http_user_agent"';
    access_log {directory}/access.txt who;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    keepalive_requests 10000000;
    default_type text/plain;
    server {{
        listen {port};
        listen [::]:{port};
        location / {{ return 200 "hello from {name}, you are $remote_addr\n"; }}
        location /files/ {{ alias {directory}/; }}
        location /echo-headers {{ return 200 "host=$http_host x=$http_x_test forwarded=$http_x_forwarded_for\n"; }}
        location /echo-client {{ return 200 "<$http_x_forwarded_client_cert>\n"; }}
        location /echo-request {{ return 200 "$request_method $request_uri host=$http_host\n"; }}
    }}
}}
"#
    )
}
