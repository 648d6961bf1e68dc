//! Envoy bootstrap files for agents.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};

use crate::Node;

/// A bootstrap file, piece by piece.
#[derive(Debug, Clone)]
pub struct Bootstrap(Value);

impl Bootstrap {
    /// Everything over one aggregated stream, by these clusters in order; `api_type` is
    /// `GRPC` or `DELTA_GRPC`.
    pub fn ads(api_type: &str, clusters: &[&str]) -> Self {
        let mut this = Self::new();
        this.0["dynamic_resources"] = json!({
            "ads_config": api(api_type, clusters),
            "lds_config": { "ads": {} },
            "cds_config": { "ads": {} },
        });
        this
    }

    /// Listeners and clusters from these config sources.
    pub fn dynamic(listeners: Value, clusters: Value) -> Self {
        let mut this = Self::new();
        this.0["dynamic_resources"] = json!({ "lds_config": listeners, "cds_config": clusters });
        this
    }

    fn new() -> Self {
        Self(json!({
            "node": { "id": "agent", "cluster": "tests", "locality": { "region": "here" } },
            "static_resources": { "clusters": [] },
        }))
    }

    /// Adds the cluster of a management server at `IP:PORT` or `/PATH`.
    #[must_use]
    pub fn server(self, name: &str, address: &str) -> Self {
        self.server_with(name, address, json!({}))
    }

    /// As [`Bootstrap::server`], with further fields of the cluster.
    #[must_use]
    pub fn server_with(mut self, name: &str, address: &str, fields: Value) -> Self {
        let address = match address.rsplit_once(':') {
            None => json!({ "pipe": { "path": address } }),
            Some((ip, port)) => json!({ "socket_address": {
                "address": ip,
                "port_value": port.parse::<u16>().expect("a port"),
            } }),
        };
        let mut cluster = json!({
            "name": name,
            "type": "STRICT_DNS",
            "connect_timeout": "2s",
            "http2_protocol_options": {},
            "load_assignment": {
                "cluster_name": name,
                "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address } }] }],
            },
        });
        for (name, value) in fields.as_object().into_iter().flatten() {
            cluster[name] = value.clone();
        }
        let clusters = self.0["static_resources"]["clusters"].as_array_mut();
        clusters.expect("clusters are a list").push(cluster);
        self
    }

    /// Sets the value at a JSON pointer, whose holder must be there.
    ///
    /// # Panics
    /// If it is not.
    #[must_use]
    pub fn with(mut self, holder: &str, name: &str, value: Value) -> Self {
        let found = self.0.pointer_mut(holder);
        found.unwrap_or_else(|| panic!("no {holder}"))[name] = value;
        self
    }

    /// Adds static clusters for traffic.
    #[must_use]
    pub fn with_clusters(mut self, more: Vec<Value>) -> Self {
        let clusters = self.0["static_resources"]["clusters"].as_array_mut();
        clusters.expect("clusters are a list").extend(more);
        self
    }

    /// Writes it for an agent of `node`; each is a new file.
    pub fn write(&self, node: &Node, name: &str) -> PathBuf {
        let path = node.directory().join(format!("{name}.json"));
        fs::write(&path, self.0.to_string()).expect("write the bootstrap");
        path
    }
}

/// An `api_config_source`.
pub fn api(api_type: &str, clusters: &[&str]) -> Value {
    let services: Vec<_> =
        clusters.iter().map(|name| json!({ "envoy_grpc": { "cluster_name": name } })).collect();
    json!({
        "api_type": api_type,
        "transport_api_version": "V3",
        "grpc_services": services,
    })
}

/// A `path_config_source`.
pub fn file(path: &std::path::Path) -> Value {
    json!({ "path_config_source": { "path": path } })
}
