//! A pair of Envoy sidecars, and HAProxy for one hop.
//!
//! The client dials its sidecar's loopback port itself: what a redirection by iptables
//! costs in practice is not charged to Envoy. One sidecar verifies the other's SPIFFE ID
//! exactly, as an agent does.

use std::{collections::BTreeMap, fs, net::SocketAddr, path::Path, process::Command};

use serde_json::{Value, json};
use tests::{
    Pod, Process, envoy,
    pki::{Credentials, Pki, Validity},
};

use super::{lane::Settings, workload::Port};

const TYPE: &str = "type.googleapis.com/envoy.extensions";
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Where a sidecar listens for a port of the origin: on the client's loopback in the
/// clear, on the server's address by TLS.
fn sidecar_port(port: Port) -> u16 {
    port.number() + 10_000
}

/// What the two sidecars of a pair are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Http,
    Tcp,
}

/// Starts both sidecars; returns them and what the client dials.
pub(crate) fn pair(
    mode: Mode,
    settings: Settings,
    trust: &Pki,
    (client, server): (&Pod, &Pod),
) -> (Vec<Process>, BTreeMap<Port, SocketAddr>) {
    let ports: Vec<Port> =
        Port::ALL.into_iter().filter(|port| mode == Mode::Tcp || port.is_http()).collect();
    let issue = |pod: &Pod| trust.issue(&[&pod.identity()], Validity::Now);
    let tls = |own: &Credentials, peer: &Pod, port: Port| {
        let mut context = envoy::tls_context(trust, own, Some(&peer.identity()));
        // HTTP/1.1 inside TLS has no use for a negotiation of HTTP/2.
        context["alpn_protocols"] = match (mode, port) {
            (Mode::Http, Port::Http2 | Port::Grpc) => json!(["h2"]),
            _ => json!([]),
        };
        match settings {
            Settings::Equal => {
                context["tls_params"]["ecdh_curves"] = json!(["X25519MLKEM768", "X25519"]);
            }
            Settings::AsShipped => context["tls_params"] = json!({}),
        }
        context
    };
    let (mine, theirs) = (issue(client), issue(server));
    let (mut near, mut far) = (Sidecar::default(), Sidecar::default());
    for port in ports {
        let target = server.at(sidecar_port(port));
        let upstream = json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": format!("{TYPE}.transport_sockets.tls.v3.UpstreamTlsContext"),
                "common_tls_context": tls(&mine, server, port),
            },
        });
        let loopback = SocketAddr::from(([127, 0, 0, 1], sidecar_port(port)));
        near.carries(mode, port, loopback, target, None, Some(upstream));
        let downstream = json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": format!("{TYPE}.transport_sockets.tls.v3.DownstreamTlsContext"),
                "require_client_certificate": true,
                "common_tls_context": tls(&theirs, client, port),
            },
        });
        let origin = SocketAddr::from(([127, 0, 0, 1], port.number()));
        far.carries(mode, port, target, origin, Some((downstream, client)), None);
    }
    let processes = vec![near.start(client), far.start(server)];
    (processes, near.targets)
}

/// One Envoy's configuration.
#[derive(Debug, Default)]
struct Sidecar {
    listeners: Vec<Value>,
    clusters: Vec<Value>,
    targets: BTreeMap<Port, SocketAddr>,
}

impl Sidecar {
    /// What comes to `from` goes to `to`; with `guarded`, only by mTLS and for that client.
    fn carries(
        &mut self,
        mode: Mode,
        port: Port,
        from: SocketAddr,
        to: SocketAddr,
        guarded: Option<(Value, &Pod)>,
        transport: Option<Value>,
    ) {
        let name = port.key();
        let mut filters = Vec::new();
        let rbac = guarded.as_ref().map(|(_, client)| rules(&client.identity()));
        match mode {
            Mode::Http => {
                let rbac = rbac.map(|rules| {
                    let config = json!({
                        "@type": format!("{TYPE}.filters.http.rbac.v3.RBAC"), "rules": rules,
                    });
                    json!({ "name": "envoy.filters.http.rbac", "typed_config": config })
                });
                filters.push(manager(name, rbac));
            }
            Mode::Tcp => {
                filters.extend(rbac.map(|rules| {
                    json!({
                        "name": "envoy.filters.network.rbac",
                        "typed_config": {
                            "@type": format!("{TYPE}.filters.network.rbac.v3.RBAC"),
                            "stat_prefix": name, "rules": rules,
                        },
                    })
                }));
                filters.push(json!({
                    "name": "envoy.filters.network.tcp_proxy",
                    "typed_config": {
                        "@type": format!("{TYPE}.filters.network.tcp_proxy.v3.TcpProxy"),
                        "stat_prefix": name, "cluster": name,
                    },
                }));
            }
        }
        let mut chain = json!({ "filters": filters });
        if let Some((transport, _)) = guarded {
            chain["transport_socket"] = transport;
        }
        self.listeners.push(json!({
            "name": name, "address": address(from), "filter_chains": [chain],
        }));
        let mut cluster = cluster(name, to);
        if let Some(transport) = transport {
            cluster["transport_socket"] = transport;
        }
        if mode == Mode::Http && matches!(port, Port::Http2 | Port::Grpc) {
            cluster["typed_extension_protocol_options"] = json!({
                HTTP_OPTIONS: {
                    "@type": format!("type.googleapis.com/{HTTP_OPTIONS}"),
                    "explicit_http_config": { "http2_protocol_options": {} },
                },
            });
        }
        self.clusters.push(cluster);
        self.targets.insert(port, from);
    }

    fn start(&self, pod: &Pod) -> Process {
        let resources = json!({ "listeners": self.listeners, "clusters": self.clusters });
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        envoy::run_with(
            &envoy::binary(),
            pod,
            &json!({ "static_resources": resources }),
            &["--concurrency", &threads.to_string()],
        )
    }
}

/// One pod's own sidecar: what comes from outside, and `services` that the pod may dial,
/// each with a host and a cluster of its own.
pub(crate) fn sidecar(trust: &Pki, pod: &Pod, services: usize) -> Process {
    let own = trust.issue(&[&pod.identity()], Validity::Now);
    let context = envoy::tls_context(trust, &own, Some(&pod.identity()));
    let transport = |kind: &str| {
        json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": format!("{TYPE}.transport_sockets.tls.v3.{kind}"),
                "common_tls_context": context,
            },
        })
    };
    let mut whole = Sidecar::default();
    let inbound = transport("DownstreamTlsContext");
    let (from, to) = (pod.at(sidecar_port(Port::Http1)), ([127, 0, 0, 1], 80).into());
    whole.carries(Mode::Http, Port::Http1, from, to, Some((inbound, pod)), None);
    let upstream = transport("UpstreamTlsContext");
    let hosts: Vec<Value> = (0..services)
        .map(|n| {
            let name = format!("service-{n}");
            let elsewhere = SocketAddr::from(([10, 244, 2, 10], 15_008));
            let mut cluster = cluster(&name, elsewhere);
            cluster["transport_socket"] = upstream.clone();
            whole.clusters.push(cluster);
            let route = json!({ "match": { "prefix": "/" }, "route": { "cluster": name } });
            json!({ "name": name, "domains": [name], "routes": [route] })
        })
        .collect();
    let mut outbound = manager("outbound", None);
    outbound["typed_config"]["route_config"]["virtual_hosts"] = json!(hosts);
    whole.listeners.push(json!({
        "name": "outbound",
        "address": address(([127, 0, 0, 1], 15_001).into()),
        "filter_chains": [{ "filters": [outbound] }],
    }));
    whole.start(pod)
}

/// What HAProxy carries: HTTP in the clear, from the client's loopback.
pub(crate) fn haproxy(client: &Pod, server: &Pod) -> (Vec<Process>, BTreeMap<Port, SocketAddr>) {
    let mut conf = String::from(
        "global\n  maxconn 4096\ndefaults\n  mode http\n  timeout connect 5s\n  \
         timeout client 60s\n  timeout server 60s\n  option http-keep-alive\n  http-reuse always\n",
    );
    let mut targets = BTreeMap::new();
    for port in [Port::Http1, Port::Http2, Port::Grpc] {
        let (name, proto) = (port.key(), if port == Port::Http1 { "" } else { " proto h2" });
        let from = SocketAddr::from(([127, 0, 0, 1], sidecar_port(port)));
        let to = server.at(port.number());
        conf += &format!("listen {name}\n  bind {from}{proto}\n  server origin {to}{proto}\n");
        targets.insert(port, from);
    }
    let file = client.node().directory().join(format!("{}-haproxy.cfg", client.name()));
    fs::write(&file, conf).expect("write HAProxy's configuration");
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(&file);
    let process = client.starts_listening("haproxy", command, &[sidecar_port(Port::Http1)]);
    (vec![process], targets)
}

/// Whether it is installed: `cargo xtask bench` does that.
pub(crate) fn has_haproxy() -> bool {
    ["/usr/sbin/haproxy", "/usr/local/sbin/haproxy"].iter().any(|path| Path::new(path).is_file())
}

fn manager(name: &str, rbac: Option<Value>) -> Value {
    let router = json!({
        "name": "envoy.filters.http.router",
        "typed_config": { "@type": format!("{TYPE}.filters.http.router.v3.Router") },
    });
    let filters: Vec<Value> = rbac.into_iter().chain([router]).collect();
    let route = json!({ "match": { "prefix": "/" }, "route": { "cluster": name } });
    let kind = "filters.network.http_connection_manager.v3.HttpConnectionManager";
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": format!("{TYPE}.{kind}"),
            "stat_prefix": name,
            "route_config": {
                "virtual_hosts": [{ "name": name, "domains": ["*"], "routes": [route] }],
            },
            "http_filters": filters,
        },
    })
}

fn rules(identity: &str) -> Value {
    json!({
        "action": "ALLOW",
        "policies": { "client": {
            "permissions": [{ "any": true }],
            "principals": [{ "authenticated": { "principal_name": { "exact": identity } } }],
        } },
    })
}

fn cluster(name: &str, to: SocketAddr) -> Value {
    let endpoint = json!({ "endpoint": { "address": address(to) } });
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": name, "endpoints": [{ "lb_endpoints": [endpoint] }],
        },
    })
}

fn address(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip(), "port_value": address.port() } })
}
