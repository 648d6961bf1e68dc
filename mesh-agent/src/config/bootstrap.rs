//! Envoy's bootstrap files, as far as they say what the agent needs to know: who it is,
//! and where its control plane is. Everything else in one is refused by its path.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use crate::source::{AdsOptions, NodeInfo, ServerAddress, TlsFiles, Variant};

const TLS_CONTEXT: &str = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// What a bootstrap file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bootstrap {
    pub(super) ads: AdsOptions,
    /// Where the agent answers.
    pub(super) admin: Option<SocketAddr>,
}

/// Reads a bootstrap file, in YAML or JSON.
///
/// # Errors
/// Everything in it that is wrong or not supported, by path.
pub(super) fn read(path: &Path) -> Result<Bootstrap, Vec<String>> {
    let told = |reason: &dyn std::fmt::Display| vec![format!("{}: {reason}", path.display())];
    let text = fs::read_to_string(path).map_err(|error| told(&error))?;
    let value = serde_yaml_ng::from_str(&text).map_err(|error| told(&error))?;
    parse(value)
}

fn parse(value: Value) -> Result<Bootstrap, Vec<String>> {
    let mut faults = Faults::default();
    let bootstrap = bootstrap(&mut faults, value);
    match bootstrap {
        Some(bootstrap) if faults.0.is_empty() => Ok(bootstrap),
        _ => Err(faults.0),
    }
}

#[derive(Default)]
struct Faults(Vec<String>);

impl Faults {
    fn add<T>(&mut self, path: &str, reason: impl std::fmt::Display) -> Option<T> {
        self.0.push(if path.is_empty() { reason.to_string() } else { format!("{path}: {reason}") });
        None
    }

    /// The fields of a message that are known; all others are refused.
    fn fields<const N: usize>(
        &mut self,
        path: &str,
        value: Value,
        known: [&str; N],
    ) -> Option<[Option<Value>; N]> {
        let Value::Object(map) = value else { return self.add(path, "must be a mapping") };
        let mut map: Map<String, Value> = map.into_iter().map(|(k, v)| (snake(&k), v)).collect();
        let found = known.map(|name| map.remove(name).filter(|value| !value.is_null()));
        for name in map.keys().filter(|name| *name != "@type") {
            self.add::<()>(&join(path, name), "is not supported");
        }
        Some(found)
    }

    fn items(&mut self, path: &str, value: Option<Value>) -> Vec<Value> {
        match value {
            None => Vec::new(),
            Some(Value::Array(items)) => items,
            Some(_) => self.add(path, "must be a list").unwrap_or_default(),
        }
    }

    fn text(&mut self, path: &str, value: Option<Value>) -> Option<String> {
        match value {
            Some(Value::String(text)) if !text.is_empty() => Some(text),
            Some(_) => self.add(path, "must be a string, not empty"),
            None => self.add(path, "is missing"),
        }
    }
}

/// `portValue` and `port_value` are the same field.
fn snake(name: &str) -> String {
    if name.starts_with('@') || name.contains('.') {
        return name.to_owned();
    }
    let mut out = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn bootstrap(f: &mut Faults, value: Value) -> Option<Bootstrap> {
    let [node, dynamic, fixed, admin] =
        f.fields("", value, ["node", "dynamic_resources", "static_resources", "admin"])?;
    let node = match node {
        Some(node) => self::node(f, node),
        None => f.add("node", "is missing"),
    };
    let clusters = match fixed {
        Some(fixed) => {
            let path = "static_resources";
            let [clusters] = f.fields(path, fixed, ["clusters"])?;
            f.items("static_resources.clusters", clusters)
        }
        None => Vec::new(),
    };
    let ads = match dynamic {
        Some(dynamic) => self::dynamic(f, dynamic),
        None => f.add("dynamic_resources", "is missing: the agent serves what ADS says"),
    };
    let admin = match admin {
        None => Some(None),
        Some(admin) => {
            let [address] = f.fields("admin", admin, ["address"])?;
            match address.and_then(|value| address_of(f, "admin.address", value)) {
                Some(Place::Tcp(host, port)) => match host.parse() {
                    Ok(ip) => Some(Some(SocketAddr::new(ip, port))),
                    Err(_) => f.add("admin.address", "must be an IP address"),
                },
                Some(Place::Unix(_)) => f.add("admin.address.pipe", "is not supported"),
                None => None,
            }
        }
    };
    let (variant, names) = ads?;
    let (servers, tls) = servers(f, clusters, &names)?;
    Some(Bootstrap { ads: AdsOptions { servers, variant, tls, node: node? }, admin: admin? })
}

fn node(f: &mut Faults, value: Value) -> Option<NodeInfo> {
    let [id, cluster, metadata] = f.fields("node", value, ["id", "cluster", "metadata"])?;
    let id = f.text("node.id", id);
    let cluster = cluster.map_or(Some(String::new()), |c| f.text("node.cluster", Some(c)));
    let metadata = match metadata {
        None => Some(Map::new()),
        Some(Value::Object(map)) => Some(map),
        Some(_) => f.add("node.metadata", "must be a mapping"),
    };
    Some(NodeInfo { id: id?, cluster: cluster?, metadata: metadata? })
}

/// The variant, and the clusters of the management servers in order.
fn dynamic(f: &mut Faults, value: Value) -> Option<(Variant, Vec<String>)> {
    let root = "dynamic_resources";
    let [ads, cds, lds] = f.fields(root, value, ["ads_config", "cds_config", "lds_config"])?;
    for (name, config) in [("cds_config", cds), ("lds_config", lds)] {
        let path = join(root, name);
        match config {
            None => _ = f.add::<()>(&path, "is missing: it must be `ads: {}`"),
            Some(config) => {
                let known = ["ads", "resource_api_version"];
                let [ads, version] = f.fields(&path, config, known)?;
                if ads.is_none() {
                    f.add::<()>(&path, "must be `ads: {}`");
                }
                v3(f, &join(&path, "resource_api_version"), version);
            }
        }
    }
    let path = "dynamic_resources.ads_config";
    let Some(ads) = ads else { return f.add(path, "is missing") };
    let known =
        ["api_type", "transport_api_version", "grpc_services", "set_node_on_first_message_only"];
    let [api_type, version, services, first_only] = f.fields(path, ads, known)?;
    v3(f, &join(path, "transport_api_version"), version);
    if first_only.is_some_and(|value| value != Value::Bool(true)) {
        f.add::<()>(&join(path, "set_node_on_first_message_only"), "can only be true");
    }
    let variant = match api_type.as_ref().and_then(Value::as_str) {
        Some("GRPC") => Some(Variant::Sotw),
        Some("DELTA_GRPC") => Some(Variant::Delta),
        _ => f.add(&join(path, "api_type"), "must be GRPC or DELTA_GRPC"),
    };
    let mut names = Vec::new();
    for (i, service) in f.items(&join(path, "grpc_services"), services).into_iter().enumerate() {
        let path = format!("{path}.grpc_services[{i}]");
        let [envoy] = f.fields(&path, service, ["envoy_grpc"])?;
        let path = join(&path, "envoy_grpc");
        let Some(envoy) = envoy else { return f.add(&path, "is missing") };
        let [name] = f.fields(&path, envoy, ["cluster_name"])?;
        names.push(f.text(&join(&path, "cluster_name"), name)?);
    }
    if names.is_empty() {
        return f.add(&join(path, "grpc_services"), "is empty");
    }
    Some((variant?, names))
}

fn v3(f: &mut Faults, path: &str, version: Option<Value>) {
    if version.is_some_and(|version| version != "V3" && version != "AUTO") {
        f.add::<()>(path, "only V3 is supported");
    }
}

fn servers(
    f: &mut Faults,
    clusters: Vec<Value>,
    names: &[String],
) -> Option<(Vec<ServerAddress>, TlsFiles)> {
    let mut found: Vec<(String, Vec<ServerAddress>)> = Vec::new();
    let mut tls = TlsFiles::default();
    for (i, cluster) in clusters.into_iter().enumerate() {
        let name = cluster.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        if !names.contains(&name) {
            let path = format!("static_resources.clusters[{i}]");
            f.add::<()>(&path, format!("`{name}` is not supported: it is no management server"));
            continue;
        }
        let path = format!("static_resources.clusters[{name}]");
        found.push((name, self::cluster(f, &path, cluster, &mut tls)?));
    }
    let mut servers = Vec::new();
    for name in names {
        match found.iter().find(|(known, _)| known == name) {
            Some((_, addresses)) => servers.extend(addresses.iter().cloned()),
            None => _ = f.add::<()>("static_resources.clusters", format!("`{name}` is missing")),
        }
    }
    Some((servers, tls))
}

fn cluster(
    f: &mut Faults,
    path: &str,
    value: Value,
    tls: &mut TlsFiles,
) -> Option<Vec<ServerAddress>> {
    let known = [
        "name",
        // Names are resolved at each dial, with a timeout of the agent's own.
        "type",
        "connect_timeout",
        "dns_lookup_family",
        "lb_policy",
        // gRPC is HTTP/2, however that is said.
        "http2_protocol_options",
        "typed_extension_protocol_options",
        "load_assignment",
        "transport_socket",
    ];
    let [_, _, _, _, _, _, options, assignment, socket] = f.fields(path, value, known)?;
    if let Some(Value::Object(options)) = options {
        for name in options.keys().filter(|name| *name != HTTP_OPTIONS) {
            f.add::<()>(
                &format!("{path}.typed_extension_protocol_options[{name}]"),
                "is not supported",
            );
        }
    }
    let secure = match socket {
        None => false,
        Some(socket) => {
            let files = transport_socket(f, &join(path, "transport_socket"), socket)?;
            if *tls != TlsFiles::default() && *tls != files {
                f.add::<()>(path, "has other certificates than the server before it");
            }
            *tls = files;
            true
        }
    };
    let path = join(path, "load_assignment");
    let Some(assignment) = assignment else { return f.add(&path, "is missing") };
    let [_, localities] = f.fields(&path, assignment, ["cluster_name", "endpoints"])?;
    let mut servers = Vec::new();
    for (i, locality) in f.items(&join(&path, "endpoints"), localities).into_iter().enumerate() {
        let path = format!("{path}.endpoints[{i}]");
        let [endpoints] = f.fields(&path, locality, ["lb_endpoints"])?;
        for (j, value) in f.items(&join(&path, "lb_endpoints"), endpoints).into_iter().enumerate() {
            let path = format!("{path}.lb_endpoints[{j}]");
            let [endpoint] = f.fields(&path, value, ["endpoint"])?;
            let path = join(&path, "endpoint");
            let [address, _] = f.fields(&path, endpoint?, ["address", "hostname"])?;
            let path = join(&path, "address");
            servers.push(match (address_of(f, &path, address?)?, secure) {
                (Place::Tcp(host, port), false) => ServerAddress::Plain { host, port },
                (Place::Tcp(host, port), true) => ServerAddress::Tls { host, port },
                (Place::Unix(socket), false) => ServerAddress::Unix(socket),
                (Place::Unix(_), true) => return f.add(&path, "TLS over a pipe is not supported"),
            });
        }
    }
    if servers.is_empty() {
        return f.add(&path, "has no endpoint");
    }
    Some(servers)
}

enum Place {
    Tcp(String, u16),
    Unix(PathBuf),
}

fn address_of(f: &mut Faults, path: &str, value: Value) -> Option<Place> {
    let [socket, pipe] = f.fields(path, value, ["socket_address", "pipe"])?;
    if let Some(pipe) = pipe {
        let path = join(path, "pipe");
        let [file] = f.fields(&path, pipe, ["path"])?;
        return f.text(&join(&path, "path"), file).map(|file| Place::Unix(file.into()));
    }
    let path = join(path, "socket_address");
    let Some(socket) = socket else { return f.add(&path, "is missing") };
    let [address, port, _] = f.fields(&path, socket, ["address", "port_value", "protocol"])?;
    let host = f.text(&join(&path, "address"), address)?;
    match port.as_ref().and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok()) {
        Some(port) if port != 0 => Some(Place::Tcp(host, port)),
        _ => f.add(&join(&path, "port_value"), "is not a port"),
    }
}

fn transport_socket(f: &mut Faults, path: &str, value: Value) -> Option<TlsFiles> {
    let [_, config] = f.fields(path, value, ["name", "typed_config"])?;
    let path = join(path, "typed_config");
    let Some(config) = config else { return f.add(&path, "is missing") };
    let type_url = config.get("@type").and_then(Value::as_str).unwrap_or_default();
    if !type_url.ends_with(TLS_CONTEXT) {
        return f.add(&path, format!("`{type_url}` is not supported"));
    }
    let [common] = f.fields(&path, config, ["common_tls_context"])?;
    let path = join(&path, "common_tls_context");
    let Some(common) = common else { return f.add(&path, "is missing") };
    let known = ["tls_certificates", "validation_context", "alpn_protocols"];
    let [certificates, validation, _] = f.fields(&path, common, known)?;
    let validation_path = join(&path, "validation_context");
    let Some(validation) = validation else {
        return f.add(&validation_path, "is missing: the server has to be verified");
    };
    let [ca] = f.fields(&validation_path, validation, ["trusted_ca"])?;
    let ca = file(f, &join(&validation_path, "trusted_ca"), ca)?;
    let path = join(&path, "tls_certificates");
    let mut certificates = f.items(&path, certificates).into_iter();
    let identity = match (certificates.next(), certificates.next()) {
        (None, _) => None,
        (Some(certificate), None) => {
            let path = format!("{path}[0]");
            let known = ["certificate_chain", "private_key"];
            let [chain, key] = f.fields(&path, certificate, known)?;
            let chain = file(f, &join(&path, "certificate_chain"), chain)?;
            Some((chain, file(f, &join(&path, "private_key"), key)?))
        }
        (Some(_), Some(_)) => return f.add(&path, "only one certificate is supported"),
    };
    Some(TlsFiles { ca: Some(ca), identity })
}

fn file(f: &mut Faults, path: &str, value: Option<Value>) -> Option<PathBuf> {
    let Some(value) = value else { return f.add(path, "is missing") };
    let [name] = f.fields(path, value, ["filename"])?;
    let name = f.text(&join(path, "filename"), name)?;
    match std::path::absolute(&name) {
        Ok(path) => Some(path),
        Err(error) => f.add(path, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ISTIO_LIKE: &str = r#"
node: {id: n1, cluster: c, metadata: {zone: a}}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 15000}}}
dynamic_resources:
  ads_config:
    api_type: DELTA_GRPC
    transport_api_version: V3
    grpc_services:
    - envoy_grpc: {cluster_name: xds}
  cds_config: {ads: {}, resource_api_version: V3}
  lds_config: {ads: {}, resourceApiVersion: V3}
static_resources:
  clusters:
  - name: xds
    type: STRICT_DNS
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment:
      cluster_name: xds
      endpoints:
      - lb_endpoints:
        - endpoint: {address: {socket_address: {address: cp.example, portValue: 18000}}}
        - endpoint: {address: {pipe: {path: /run/cp.sock}}}
"#;

    fn parsed(text: &str) -> Result<Bootstrap, Vec<String>> {
        parse(serde_yaml_ng::from_str(text).unwrap())
    }

    #[test]
    fn a_bootstrap_says_who_and_where() {
        let bootstrap = parsed(ISTIO_LIKE).unwrap();
        let servers: Vec<_> = bootstrap.ads.servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["http://cp.example:18000", "unix:///run/cp.sock"]);
        assert_eq!(bootstrap.ads.variant, Variant::Delta);
        assert_eq!(bootstrap.ads.node.id, "n1");
        assert_eq!(bootstrap.ads.node.metadata["zone"], "a");
        assert_eq!(bootstrap.admin, Some("127.0.0.1:15000".parse().unwrap()));
    }

    #[test]
    fn what_does_not_apply_is_refused_by_path() {
        for (from, to, reason) in [
            (
                "node: {id: n1,",
                "node: {locality: {zone: a}, id: n1,",
                "node.locality: is not supported",
            ),
            ("DELTA_GRPC", "REST", "dynamic_resources.ads_config.api_type: must be GRPC"),
            (
                "cds_config: {ads: {},",
                "cds_config: {path: /x,",
                "dynamic_resources.cds_config.path: is not supported",
            ),
            (
                "static_resources:",
                "layered_runtime: {}\nstatic_resources:",
                "layered_runtime: is not supported",
            ),
            (
                "  clusters:",
                "  listeners: []\n  clusters:",
                "static_resources.listeners: is not supported",
            ),
            ("cluster_name: xds}", "cluster_name: other}", "`other` is missing"),
            (
                "    connect_timeout: 1s",
                "    outlier_detection: {}",
                "clusters[xds].outlier_detection: is not supported",
            ),
        ] {
            let faults = parsed(&ISTIO_LIKE.replacen(from, to, 1)).unwrap_err();
            assert!(faults.iter().any(|fault| fault.contains(reason)), "{reason}: {faults:?}");
        }
    }
}
