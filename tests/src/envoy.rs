//! Envoy as a peer that we did not write: it speaks HBONE by its own means.
//!
//! `cargo xtask setup` puts the program into `target/tools`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    Pod, Process, eventually_within,
    pki::{Credentials, Pki},
};

/// As `cargo xtask setup` installs it.
const BINARY: &str = "../target/tools/envoy-1.40.0/envoy/_bin/envoy";
const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
const HTTP_MANAGER: &str =
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// Its program is large, and the machine may be busy.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// Where setup put Envoy.
pub fn binary() -> PathBuf {
    let binary = Path::new(env!("CARGO_MANIFEST_DIR")).join(BINARY);
    assert!(binary.is_file(), "no {}: run `cargo xtask setup`", binary.display());
    binary
}

/// A static bootstrap for one Envoy.
#[derive(Debug, Default)]
pub struct Envoy {
    listeners: Vec<Value>,
    clusters: Vec<Value>,
}

impl Envoy {
    /// Whatever comes to `port` of loopback goes by HBONE to `authority` at `tunnel`,
    /// under `credentials`; the peer must prove `expected`.
    #[must_use]
    pub fn tunnels(
        mut self,
        port: u16,
        (tunnel, authority): (&str, &str),
        (trust, credentials): (&Pki, &Credentials),
        expected: &str,
    ) -> Self {
        let name = format!("tunnel-{port}");
        let tcp_proxy = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": name,
            "cluster": name,
            "tunneling_config": { "hostname": authority },
        });
        self.listeners.push(listener(
            "127.0.0.1",
            port,
            "envoy.filters.network.tcp_proxy",
            tcp_proxy,
        ));
        let tls = json!({
            "@type": format!("{TLS}.UpstreamTlsContext"),
            "common_tls_context": tls_context(trust, credentials, Some(expected)),
        });
        let (ip, tunnel_port) = tunnel.rsplit_once(':').expect("an address and a port");
        let mut cluster = cluster(&name, ip, tunnel_port.parse().expect("a port"));
        cluster["transport_socket"] =
            json!({ "name": "envoy.transport_sockets.tls", "typed_config": tls });
        cluster["typed_extension_protocol_options"] = http2_upstream();
        self.clusters.push(cluster);
        self
    }

    /// Takes HBONE on port 15008 under `credentials` and hands every stream to `port` of
    /// loopback.
    #[must_use]
    pub fn terminates(mut self, port: u16, trust: &Pki, credentials: &Credentials) -> Self {
        let route = json!({
            "match": { "connect_matcher": {} },
            "route": {
                "cluster": "application",
                "upgrade_configs": [{ "upgrade_type": "CONNECT", "connect_config": {} }],
            },
        });
        let router = json!({
            "name": "envoy.filters.http.router",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
            },
        });
        let manager = json!({
            "@type": format!("type.googleapis.com/{HTTP_MANAGER}"),
            "stat_prefix": "hbone",
            "codec_type": "HTTP2",
            "http2_protocol_options": { "allow_connect": true },
            "upgrade_configs": [{ "upgrade_type": "CONNECT" }],
            "route_config": {
                "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [route] }],
            },
            "http_filters": [router],
        });
        let tls = json!({
            "@type": format!("{TLS}.DownstreamTlsContext"),
            "require_client_certificate": true,
            "common_tls_context": tls_context(trust, credentials, None),
        });
        let name = "envoy.filters.network.http_connection_manager";
        let mut listener = listener("0.0.0.0", 15008, name, manager);
        listener["filter_chains"][0]["transport_socket"] =
            json!({ "name": "envoy.transport_sockets.tls", "typed_config": tls });
        self.listeners.push(listener);
        self.clusters.push(cluster("application", "127.0.0.1", port));
        self
    }

    /// Starts it in `pod` and waits until it serves.
    pub fn start(self, binary: &Path, pod: &Pod) -> Process {
        let Self { listeners, clusters } = self;
        let bootstrap =
            json!({ "static_resources": { "listeners": listeners, "clusters": clusters } });
        run(binary, pod, &bootstrap)
    }
}

/// Starts Envoy in `pod` with everything from the control plane at `socket`, by ADS in
/// the delta variant or not, with that layer of runtime values, and waits until it serves.
pub fn driven(
    binary: &Path,
    pod: &Pod,
    socket: &Path,
    delta: bool,
    layer: Option<&str>,
) -> Process {
    run(binary, pod, &bootstrap("envoy", socket, delta, layer))
}

/// A bootstrap with everything from the control plane at `socket`, by ADS in the delta
/// variant or not, with that layer of runtime values, if any.
pub fn bootstrap(node_id: &str, socket: &Path, delta: bool, layer: Option<&str>) -> Value {
    let ads = json!({ "ads": {}, "resource_api_version": "V3" });
    let mut servers = json!({
        "name": "xds",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": "xds",
            "endpoints": [{ "lb_endpoints": [{
                "endpoint": { "address": { "pipe": { "path": socket } } },
            }] }],
        },
    });
    servers["typed_extension_protocol_options"] = http2_upstream();
    let layers: Vec<Value> = layer
        .map(|name| json!({ "name": name, "rtds_layer": { "name": name, "rtds_config": ads } }))
        .into_iter()
        .collect();
    json!({
        "layered_runtime": { "layers": layers },
        "node": { "id": node_id, "cluster": "tests" },
        "admin": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": 9901 } } },
        "dynamic_resources": {
            "ads_config": {
                "api_type": if delta { "DELTA_GRPC" } else { "GRPC" },
                "transport_api_version": "V3",
                "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds" } }],
            },
            "cds_config": ads,
            "lds_config": ads,
        },
        "static_resources": { "clusters": [servers] },
    })
}

/// Starts Envoy in `pod` by `bootstrap`, and waits until it serves.
pub fn run(binary: &Path, pod: &Pod, bootstrap: &Value) -> Process {
    let flags = ["--concurrency", "1", "--file-flush-interval-msec", "20"];
    run_with(binary, pod, bootstrap, &flags)
}

/// Starts Envoy in `pod` by `bootstrap` and more flags, and waits until it serves.
pub fn run_with(binary: &Path, pod: &Pod, bootstrap: &Value, flags: &[&str]) -> Process {
    let file = pod.node().directory().join(format!("{}-envoy.json", pod.name()));
    fs::write(&file, bootstrap.to_string()).expect("write Envoy's bootstrap");
    let mut command = Command::new(binary);
    // Where a path is relative it writes beside its bootstrap, not into the sources.
    command.current_dir(pod.node().directory()).arg("-c").arg(&file);
    command.arg("--disable-hot-restart").args(flags);
    command.args(["--log-level", "warning", "--component-log-level", "config:info"]);
    let process = pod.starts("envoy", command);
    eventually_within(START_PATIENCE, "Envoy serves", || {
        let log = process.log();
        if let Some(status) = process.ended() {
            panic!("Envoy ended: {status}\n{log}");
        }
        if log.contains("starting workers") { Ok(()) } else { Err("not yet") }
    });
    process
}

/// A cluster's options where its endpoints speak HTTP/2.
pub(crate) fn http2_upstream() -> Value {
    json!({
        HTTP_OPTIONS: {
            "@type": format!("type.googleapis.com/{HTTP_OPTIONS}"),
            "explicit_http_config": { "http2_protocol_options": {} },
        },
    })
}

fn listener(ip: &str, port: u16, filter: &str, config: Value) -> Value {
    json!({
        "name": format!("{ip}-{port}"),
        "address": { "socket_address": { "address": ip, "port_value": port } },
        "filter_chains": [{ "filters": [{ "name": filter, "typed_config": config }] }],
    })
}

fn cluster(name: &str, ip: &str, port: u16) -> Value {
    let address = json!({ "socket_address": { "address": ip, "port_value": port } });
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address } }] }],
        },
    })
}

/// A `CommonTlsContext` of TLS 1.3 and HTTP/2: `credentials`, and what the peer must prove.
pub fn tls_context(trust: &Pki, credentials: &Credentials, expected: Option<&str>) -> Value {
    let mut validation = json!({ "trusted_ca": { "inline_string": trust.root_pem() } });
    if let Some(expected) = expected {
        validation["match_typed_subject_alt_names"] =
            json!([{ "san_type": "URI", "matcher": { "exact": expected } }]);
    }
    json!({
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
        },
        "alpn_protocols": ["h2"],
        "tls_certificates": [{
            "certificate_chain": { "inline_string": credentials.certificate_pem },
            "private_key": { "inline_string": credentials.key_pem },
        }],
        "validation_context": validation,
    })
}
