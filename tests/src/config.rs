//! Envoy v3 resources for the agents, written as the YAML files they watch.

use std::{fs, net::SocketAddr, path::Path};

use serde_json::{Value, json};

use crate::{Pod, envoy::http2_upstream};

const HTTP_MANAGER: &str = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
/// `@type` of a TCP proxy.
pub const TCP_PROXY: &str =
    "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
const HTTP_RBAC: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";
const NETWORK_RBAC: &str = "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC";
const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const ROUTES: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";

/// The file that [`MeshConfig::write_to`] writes.
pub const FILE: &str = "mesh.yaml";

/// A file of them is far smaller than the 8 MiB that an agent reads.
const RESOURCES_PER_FILE: usize = 2000;
/// The cluster that is the application behind an inbound listener.
pub const APPLICATION: &str = "application";
const APPLICATION_HTTP2: &str = "application-http2";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Http,
    Tcp,
}

/// A service: addresses that clients dial, and the pods behind it.
#[derive(Debug, Clone)]
pub struct Service {
    name: String,
    protocol: Protocol,
    addresses: Vec<SocketAddr>,
    endpoints: Vec<Value>,
    routes: Option<Value>,
    by_rds: bool,
    http2: bool,
    idle_timeout: Option<String>,
}

impl Service {
    /// An HTTP service at `address` (`10.96.0.10:80`).
    pub fn http(name: &str, address: &str) -> Self {
        Self::new(name, Protocol::Http).at(address)
    }

    /// An opaque TCP service at `address`.
    pub fn tcp(name: &str, address: &str) -> Self {
        Self::new(name, Protocol::Tcp).at(address)
    }

    fn new(name: &str, protocol: Protocol) -> Self {
        Self {
            name: name.to_owned(),
            protocol,
            addresses: Vec::new(),
            endpoints: Vec::new(),
            routes: None,
            by_rds: false,
            http2: false,
            idle_timeout: None,
        }
    }

    /// Also at `address`.
    #[must_use]
    pub fn at(mut self, address: &str) -> Self {
        self.addresses.push(address.parse().expect("an address with a port"));
        self
    }

    /// Backed by `port` of `pod`, reached by HBONE.
    #[must_use]
    pub fn backed_by(self, pod: &Pod, port: u16) -> Self {
        self.backed_by_claiming(pod, port, &pod.identity())
    }

    /// As [`Service::backed_by`] over IPv6.
    #[must_use]
    pub fn backed_by_ipv6(mut self, pod: &Pod, port: u16) -> Self {
        self.endpoints.push(endpoint(pod.at6(port), Some((&pod.identity(), &pod.uid()))));
        self
    }

    /// As [`Service::backed_by`], expecting the peer to prove `identity`.
    #[must_use]
    pub fn backed_by_claiming(mut self, pod: &Pod, port: u16, identity: &str) -> Self {
        self.endpoints.push(endpoint(pod.at(port), Some((identity, &pod.uid()))));
        self
    }

    /// Backed by `address` in the clear.
    #[must_use]
    pub fn backed_by_plain(mut self, address: SocketAddr) -> Self {
        self.endpoints.push(endpoint(address, None));
        self
    }

    /// The endpoint that came last is called so.
    #[must_use]
    pub fn called(mut self, hostname: &str) -> Self {
        let last = self.endpoints.last_mut().expect("an endpoint");
        last["endpoint"]["hostname"] = hostname.into();
        self
    }

    /// With these routes (`envoy.config.route.v3.Route`) instead of one for everything.
    #[must_use]
    pub fn routes(mut self, routes: Value) -> Self {
        self.routes = Some(routes);
        self
    }

    /// Its endpoints speak HTTP/2.
    #[must_use]
    pub fn speaks_http2(mut self) -> Self {
        self.http2 = true;
        self
    }

    /// TCP: connections end that carry nothing for as long.
    #[must_use]
    pub fn idle_timeout(mut self, timeout: &str) -> Self {
        self.idle_timeout = Some(timeout.to_owned());
        self
    }

    /// With its routes in a `RouteConfiguration` of their own.
    #[must_use]
    pub fn by_rds(mut self) -> Self {
        self.by_rds = true;
        self
    }
}

/// A port of a workload, and who may use it.
#[derive(Debug, Clone)]
pub struct Inbound {
    name: String,
    protocol: Protocol,
    addresses: [SocketAddr; 2],
    allow: Option<Vec<Allow>>,
    plaintext: bool,
    http2: bool,
}

impl Inbound {
    /// HTTP on `port` of `pod`; denies everyone until something is allowed.
    pub fn http(pod: &Pod, port: u16) -> Self {
        Self::new(pod, port, Protocol::Http)
    }

    /// HTTP on `port` of `pod`, where the application speaks HTTP/2; denies everyone until
    /// something is allowed.
    pub fn http2(pod: &Pod, port: u16) -> Self {
        Self { http2: true, ..Self::http(pod, port) }
    }

    /// Opaque TCP on `port` of `pod`; denies everyone until something is allowed.
    pub fn tcp(pod: &Pod, port: u16) -> Self {
        Self::new(pod, port, Protocol::Tcp)
    }

    fn new(pod: &Pod, port: u16, protocol: Protocol) -> Self {
        Self {
            name: format!("inbound-{}-{port}", pod.name()),
            protocol,
            addresses: [pod.at(port), pod.at6(port)],
            allow: Some(Vec::new()),
            plaintext: false,
            http2: false,
        }
    }

    /// Allows what `allow` says.
    #[must_use]
    pub fn allow(mut self, allow: Allow) -> Self {
        self.allow.get_or_insert_default().push(allow);
        self
    }

    /// Without any authorization filter.
    #[must_use]
    pub fn open(mut self) -> Self {
        self.allow = None;
        self
    }

    /// Takes plaintext too, whatever the workload's mode (a `raw_buffer` filter chain).
    #[must_use]
    pub fn plaintext(mut self) -> Self {
        self.plaintext = true;
        self
    }
}

/// One policy of an ALLOW rule set.
#[derive(Debug, Clone)]
pub struct Allow {
    name: String,
    principals: Vec<Value>,
    permissions: Vec<Value>,
}

impl Allow {
    /// A policy that allows everyone everything until it is narrowed.
    pub fn policy(name: &str) -> Self {
        Self { name: name.to_owned(), principals: Vec::new(), permissions: Vec::new() }
    }

    /// Only for `pod`'s identity (each call adds one).
    #[must_use]
    pub fn from(self, pod: &Pod) -> Self {
        let exact = json!({ "authenticated": { "principal_name": { "exact": pod.identity() } } });
        self.principal(exact)
    }

    /// Only for this `envoy.config.rbac.v3.Principal` (each call adds one).
    #[must_use]
    pub fn principal(mut self, principal: Value) -> Self {
        self.principals.push(principal);
        self
    }

    /// Only with one of these methods.
    #[must_use]
    pub fn methods(self, methods: &[&str]) -> Self {
        let rules: Vec<Value> = methods
            .iter()
            .map(|m| json!({ "header": { "name": ":method", "string_match": { "exact": m } } }))
            .collect();
        self.permission(json!({ "or_rules": { "rules": rules } }))
    }

    /// Only with a path that starts so.
    #[must_use]
    pub fn path_prefix(self, prefix: &str) -> Self {
        self.permission(json!({ "url_path": { "path": { "prefix": prefix } } }))
    }

    /// Only with this `envoy.config.rbac.v3.Permission` (all must match).
    #[must_use]
    pub fn permission(mut self, permission: Value) -> Self {
        self.permissions.push(permission);
        self
    }

    fn to_policy(&self) -> Value {
        let permission = match &self.permissions[..] {
            [] => json!({ "any": true }),
            [one] => one.clone(),
            several => json!({ "and_rules": { "rules": several } }),
        };
        let principals = match &self.principals[..] {
            [] => vec![json!({ "any": true })],
            some => some.to_vec(),
        };
        json!({ "permissions": [permission], "principals": principals })
    }
}

/// A whole configuration.
#[derive(Debug, Clone)]
pub struct MeshConfig {
    listeners: Vec<Value>,
    routes: Vec<Value>,
    clusters: Vec<Value>,
    endpoints: Vec<Value>,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self::new()
    }
}

impl MeshConfig {
    /// Nothing at all.
    pub fn empty() -> Self {
        Self {
            listeners: Vec::new(),
            routes: Vec::new(),
            clusters: Vec::new(),
            endpoints: Vec::new(),
        }
    }

    /// Only the cluster that inbound listeners forward to.
    pub fn new() -> Self {
        Self {
            listeners: Vec::new(),
            routes: Vec::new(),
            clusters: vec![application(APPLICATION)],
            endpoints: Vec::new(),
        }
    }

    /// Adds a service: outbound listeners, a cluster, its endpoints.
    #[must_use]
    pub fn service(mut self, service: &Service) -> Self {
        let Service { name, protocol, addresses, endpoints, routes, by_rds, http2, idle_timeout } =
            service;
        let any_path = json!([{ "match": { "prefix": "/" }, "route": { "cluster": name } }]);
        let route_config = json!({
            "name": name,
            "virtual_hosts": [{
                "name": name,
                "domains": ["*"],
                "routes": routes.as_ref().unwrap_or(&any_path),
            }],
        });
        let terminal = match protocol {
            Protocol::Tcp => {
                let mut proxy = tcp_proxy(name, name);
                if let Some(timeout) = idle_timeout {
                    proxy["typed_config"]["idle_timeout"] = timeout.as_str().into();
                }
                proxy
            }
            Protocol::Http if *by_rds => {
                let mut resource = route_config.clone();
                resource["@type"] = ROUTES.into();
                self.routes.push(resource);
                let source = json!({ "ads": {}, "resource_api_version": "V3" });
                let rds = json!({ "route_config_name": name, "config_source": source });
                http_manager(name, "rds", rds, Vec::new())
            }
            Protocol::Http => http_manager(name, "route_config", route_config, Vec::new()),
        };
        for (index, address) in addresses.iter().enumerate() {
            let chain = json!({ "filters": [terminal] });
            let name = format!("outbound-{name}-{index}");
            self.listeners.push(listener(&name, "OUTBOUND", *address, &[chain]));
        }
        let mut cluster = json!({
            "@type": CLUSTER,
            "name": name,
            "type": "EDS",
            "eds_cluster_config": {
                "eds_config": { "ads": {}, "resource_api_version": "V3" },
            },
            "connect_timeout": "5s",
        });
        if *http2 {
            cluster["typed_extension_protocol_options"] = http2_upstream();
        }
        self.clusters.push(cluster);
        self.endpoints.push(json!({
            "@type": ENDPOINTS,
            "cluster_name": name,
            "endpoints": [{ "lb_endpoints": endpoints }],
        }));
        self
    }

    /// Adds a workload's port: an inbound listener per address.
    #[must_use]
    pub fn inbound(mut self, inbound: &Inbound) -> Self {
        let Inbound { name, protocol, addresses, allow, plaintext, http2 } = inbound;
        let rbac = |typed: &str, filter: &str| {
            allow.as_ref().map(|allow| {
                let policies: serde_json::Map<String, Value> =
                    allow.iter().map(|a| (a.name.clone(), a.to_policy())).collect();
                let mut config = json!({
                    "@type": typed,
                    "rules": { "action": "ALLOW", "policies": policies },
                });
                if typed == NETWORK_RBAC {
                    config["stat_prefix"] = name.as_str().into();
                }
                json!({ "name": filter, "typed_config": config })
            })
        };
        let filters: Vec<Value> = match protocol {
            Protocol::Tcp => rbac(NETWORK_RBAC, "envoy.filters.network.rbac")
                .into_iter()
                .chain([tcp_proxy(name, APPLICATION)])
                .collect(),
            Protocol::Http => {
                let cluster = if *http2 { self.application_http2() } else { APPLICATION };
                let routes = json!({
                    "name": name,
                    "virtual_hosts": [{
                        "name": name,
                        "domains": ["*"],
                        "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": cluster } }],
                    }],
                });
                let http = rbac(HTTP_RBAC, "envoy.filters.http.rbac").into_iter().collect();
                vec![http_manager(name, "route_config", routes, http)]
            }
        };
        let chain = |transport: &str| {
            json!({
                "name": transport,
                "filter_chain_match": { "transport_protocol": transport },
                "filters": filters,
            })
        };
        let chains = if *plaintext {
            vec![chain("tls"), chain("raw_buffer")]
        } else {
            vec![json!({ "filters": filters })]
        };
        for (address, family) in addresses.iter().zip(["ipv4", "ipv6"]) {
            self.listeners.push(listener(
                &format!("{name}-{family}"),
                "INBOUND",
                *address,
                &chains,
            ));
        }
        self
    }

    /// The cluster of applications that speak HTTP/2, made when it is first needed.
    fn application_http2(&mut self) -> &'static str {
        let there = |cluster: &&Value| cluster["name"] == APPLICATION_HTTP2;
        if self.clusters.iter().find(there).is_none() {
            let mut cluster = application(APPLICATION_HTTP2);
            cluster["typed_extension_protocol_options"] = http2_upstream();
            self.clusters.push(cluster);
        }
        APPLICATION_HTTP2
    }

    /// Adds any resource as it is, before all that may name it.
    #[must_use]
    pub fn raw(mut self, resource: Value) -> Self {
        self.clusters.insert(0, resource);
        self
    }

    /// Adds a listener as it is (`@type` is filled in).
    #[must_use]
    pub fn raw_listener(mut self, mut listener: Value) -> Self {
        listener["@type"] = LISTENER.into();
        self.listeners.push(listener);
        self
    }

    /// Has every HTTP connection manager say these fields as well.
    #[must_use]
    pub fn managers(self, fields: &Value) -> Self {
        self.terminals(|config| config.get("http_filters").is_some(), fields)
    }

    /// Has every TCP proxy say these fields as well.
    #[must_use]
    pub fn tcp_proxies(self, fields: &Value) -> Self {
        self.terminals(|config| config["@type"].to_string().contains("TcpProxy"), fields)
    }

    fn terminals(mut self, wanted: impl Fn(&Value) -> bool, fields: &Value) -> Self {
        for listener in &mut self.listeners {
            let chains = listener["filter_chains"].as_array_mut().into_iter().flatten();
            let filters = chains.filter_map(|chain| chain["filters"].as_array_mut()).flatten();
            let configs = filters.map(|filter| &mut filter["typed_config"]);
            for config in configs.filter(|config| wanted(config)) {
                for (name, value) in fields.as_object().into_iter().flatten() {
                    config[name] = value.clone();
                }
            }
        }
        self
    }

    /// Adds a cluster as it is (`@type` is filled in).
    #[must_use]
    pub fn raw_cluster(mut self, mut cluster: Value) -> Self {
        cluster["@type"] = CLUSTER.into();
        self.clusters.push(cluster);
        self
    }

    /// Every resource, in an order in which none names a later one.
    pub fn resources(&self) -> Vec<Value> {
        let kinds = [&self.clusters, &self.endpoints, &self.routes, &self.listeners];
        kinds.into_iter().flatten().cloned().collect()
    }

    /// Writes the resources into `directory` as one file that is replaced by renaming, so
    /// that agents never see half of a change.
    pub fn write_to(&self, directory: &Path) {
        let kinds = [&self.clusters, &self.endpoints, &self.routes, &self.listeners];
        let documents = kinds.map(|resources| {
            serde_yaml_ng::to_string(&json!({ "resources": resources }))
                .expect("resources are YAML")
        });
        replace(&directory.join(FILE), &documents.join("---\n"));
    }

    /// Writes the resources into `directory` as files of a size that agents take. For before
    /// an agent is started: what is between two of them is half of a change.
    pub fn write_in_pieces_to(&self, directory: &Path) {
        for (number, resources) in self.resources().chunks(RESOURCES_PER_FILE).enumerate() {
            let text = serde_yaml_ng::to_string(&json!({ "resources": resources }))
                .expect("resources are YAML");
            replace(&directory.join(format!("mesh-{number}.yaml")), &text);
        }
    }
}

/// Writes `text` beside `path` and renames it into place.
pub fn replace(path: &Path, text: &str) {
    let hidden = path.with_file_name(format!(
        ".{}.new",
        path.file_name().expect("a file's path").to_string_lossy()
    ));
    fs::write(&hidden, text).unwrap_or_else(|e| panic!("write {}: {e}", hidden.display()));
    fs::rename(&hidden, path).unwrap_or_else(|e| panic!("rename to {}: {e}", path.display()));
}

fn application(name: &str) -> Value {
    json!({
        "@type": CLUSTER,
        "name": name,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "5s",
    })
}

fn listener(name: &str, direction: &str, address: SocketAddr, chains: &[Value]) -> Value {
    json!({
        "@type": LISTENER,
        "name": name,
        "traffic_direction": direction,
        "bind_to_port": false,
        "address": socket_address(address),
        "filter_chains": chains,
    })
}

fn socket_address(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip(), "port_value": address.port() } })
}

fn http_manager(stat_prefix: &str, kind: &str, routes: Value, mut filters: Vec<Value>) -> Value {
    filters.push(json!({
        "name": "envoy.filters.http.router",
        "typed_config": { "@type": ROUTER },
    }));
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": HTTP_MANAGER,
            "stat_prefix": stat_prefix,
            kind: routes,
            "http_filters": filters,
        },
    })
}

fn tcp_proxy(stat_prefix: &str, cluster: &str) -> Value {
    json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": { "@type": TCP_PROXY, "stat_prefix": stat_prefix, "cluster": cluster },
    })
}

fn endpoint(address: SocketAddr, tunnel: Option<(&str, &str)>) -> Value {
    let mut endpoint = json!({ "endpoint": { "address": socket_address(address) } });
    if let Some((identity, uid)) = tunnel {
        endpoint["metadata"] = json!({
            "filter_metadata": {
                "envoy.transport_socket_match": { "tunnel": "http" },
                "mesh.workload": { "identity": identity, "uid": uid },
            },
        });
    }
    endpoint
}
