//! A small universe of resources, in standard xDS, for Envoy and the agent alike.

use std::{collections::BTreeMap, net::SocketAddr};

use serde_json::{Value, json};

const PREFIX: &str = "type.googleapis.com/envoy";

/// The kinds, by the last part of their type's name.
pub(super) const LISTENER: &str = "Listener";
pub(super) const ROUTES: &str = "RouteConfiguration";
pub(super) const CLUSTER: &str = "Cluster";
pub(super) const ENDPOINTS: &str = "ClusterLoadAssignment";

pub(super) const FILTER: &str = "TypedExtensionConfig";
pub(super) const RUNTIME: &str = "Runtime";
pub(super) const HOST: &str = "VirtualHost";
pub(super) const SECRET: &str = "Secret";
pub(super) const SCOPE: &str = "ScopedRouteConfiguration";

/// What is served, by kind and name.
#[derive(Debug, Clone, Default)]
pub(super) struct World(pub(super) BTreeMap<(&'static str, String), Value>);

impl World {
    pub(super) fn put(&mut self, kind: &'static str, name: &str, mut value: Value) -> &mut Self {
        let package = match kind {
            LISTENER => "config.listener",
            ROUTES | HOST | SCOPE => "config.route",
            SECRET => "extensions.transport_sockets.tls",
            CLUSTER => "config.cluster",
            FILTER => "config.core",
            RUNTIME => "service.runtime",
            _ => "config.endpoint",
        };
        value["@type"] = format!("{PREFIX}.{package}.v3.{kind}").into();
        value[if kind == ENDPOINTS { "cluster_name" } else { "name" }] = name.into();
        self.0.insert((kind, name.to_owned()), value);
        self
    }

    pub(super) fn remove(&mut self, kind: &'static str, name: &str) -> &mut Self {
        self.0.remove(&(kind, name.to_owned()));
        self
    }

    pub(super) fn at(&mut self, kind: &'static str, name: &str) -> &mut Value {
        self.0.get_mut(&(kind, name.to_owned())).unwrap_or_else(|| panic!("no {kind} {name}"))
    }

    pub(super) fn resources(&self) -> Vec<Value> {
        self.0.values().cloned().collect()
    }

    /// Only these kinds.
    pub(super) fn only(&self, kinds: &[&str]) -> Vec<Value> {
        let of = self.0.iter().filter(|((kind, _), _)| kinds.contains(kind));
        of.map(|(_, value)| value.clone()).collect()
    }

    /// An EDS cluster and its endpoints.
    pub(super) fn eds(&mut self, name: &str, endpoints: &[SocketAddr]) -> &mut Self {
        self.put(CLUSTER, name, eds_cluster()).put(ENDPOINTS, name, assignment(endpoints))
    }

    /// A cluster with its endpoints in it.
    pub(super) fn fixed(&mut self, name: &str, endpoints: &[SocketAddr]) -> &mut Self {
        let mut inside = assignment(endpoints);
        inside["cluster_name"] = name.into();
        let cluster =
            json!({ "type": "STATIC", "connect_timeout": "2s", "load_assignment": inside });
        self.put(CLUSTER, name, cluster)
    }

    /// A listener with routes by RDS.
    pub(super) fn by_rds(&mut self, name: &str, address: &str, routes: &str) -> &mut Self {
        let source = json!({ "ads": {}, "resource_api_version": "V3" });
        let rds = json!({ "route_config_name": routes, "config_source": source });
        self.put(LISTENER, name, listener(address, &http(name, "rds", &rds)))
    }

    /// A listener with routes of its own.
    pub(super) fn inline(&mut self, name: &str, address: &str, routes: Value) -> &mut Self {
        self.put(LISTENER, name, listener(address, &http_manager(name, routes)))
    }

    /// A listener whose requests find their scope by the header `x-scope`.
    pub(super) fn scoped(&mut self, name: &str, address: &str) -> &mut Self {
        let source = json!({ "ads": {}, "resource_api_version": "V3" });
        let scoped = json!({
            "name": name,
            "scope_key_builder": { "fragments": [{ "header_value_extractor": {
                "name": "x-scope", "element_separator": ",", "index": 0,
            } }] },
            "rds_config_source": source,
            "scoped_rds": { "scoped_rds_config_source": source },
        });
        self.put(LISTENER, name, listener(address, &http(name, "scoped_routes", &scoped)))
    }

    /// A scope of that key, whose routes come by RDS.
    pub(super) fn scope(&mut self, name: &str, key: &str, routes: &str) -> &mut Self {
        let key = json!({ "fragments": [{ "string_key": key }] });
        self.put(SCOPE, name, json!({ "key": key, "route_configuration_name": routes }))
    }

    /// A listener of opaque connections.
    pub(super) fn tcp(&mut self, name: &str, address: &str, cluster: &str) -> &mut Self {
        let proxy = json!({
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": {
                "@type": format!("{PREFIX}.extensions.filters.network.tcp_proxy.v3.TcpProxy"),
                "stat_prefix": name,
                "cluster": cluster,
            },
        });
        self.put(LISTENER, name, listener(address, &proxy))
    }

    /// A route configuration with one virtual host.
    pub(super) fn routes(&mut self, name: &str, routes: Value) -> &mut Self {
        self.put(ROUTES, name, routing(routes))
    }
}

pub(super) fn eds_cluster() -> Value {
    let source = json!({ "ads": {}, "resource_api_version": "V3" });
    json!({ "type": "EDS", "connect_timeout": "2s", "eds_cluster_config": { "eds_config": source } })
}

pub(super) fn assignment(endpoints: &[SocketAddr]) -> Value {
    if endpoints.is_empty() {
        return json!({});
    }
    let endpoints: Vec<Value> = endpoints.iter().map(|address| endpoint(*address)).collect();
    json!({ "endpoints": [{ "lb_endpoints": endpoints }] })
}

pub(super) fn endpoint(address: SocketAddr) -> Value {
    let address = json!({ "address": address.ip(), "port_value": address.port() });
    json!({ "endpoint": { "address": { "socket_address": address } } })
}

/// Everything to that cluster.
pub(super) fn all_to(cluster: &str) -> Value {
    json!([{ "match": { "prefix": "/" }, "route": { "cluster": cluster } }])
}

/// Everything is answered so.
pub(super) fn answers(status: u16, body: &str) -> Value {
    let body = json!({ "inline_string": body });
    json!([{ "match": { "prefix": "/" }, "direct_response": { "status": status, "body": body } }])
}

fn routing(routes: Value) -> Value {
    json!({ "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }] })
}

fn listener(address: &str, filter: &Value) -> Value {
    let (ip, port) = address.rsplit_once(':').expect("an address and a port");
    let port: u16 = port.parse().expect("a port");
    json!({
        "traffic_direction": "OUTBOUND",
        "address": { "socket_address": { "address": ip, "port_value": port } },
        "filter_chains": [{ "filters": [filter] }],
    })
}

/// A connection manager with routes of its own.
pub(super) fn http_manager(name: &str, routes: Value) -> Value {
    let mut config = routing(routes);
    config["name"] = name.into();
    http(name, "route_config", &config)
}

fn http(stat_prefix: &str, kind: &str, routes: &Value) -> Value {
    let extensions = format!("{PREFIX}.extensions.filters");
    let router = json!({ "@type": format!("{extensions}.http.router.v3.Router") });
    let manager = format!("{extensions}.network.http_connection_manager.v3.HttpConnectionManager");
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": manager,
            "stat_prefix": stat_prefix,
            kind: routes,
            "http_filters": [{ "name": "envoy.filters.http.router", "typed_config": router }],
        },
    })
}
