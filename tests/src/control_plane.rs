//! A control plane that is not ours: Python, `grpcio` and `xds-protos`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::{Map, Value, json};

use crate::{MeshConfig, Node, Process, config, eventually_within};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/control_plane/server.py");
/// The interpreter with the packages; `cargo xtask setup` makes it.
pub const PYTHON: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools/control-plane/bin/python");

/// What a control plane is told to serve, and what it was asked.
#[derive(Debug)]
pub struct ControlPlane {
    node: Node,
    directory: PathBuf,
    epoch: u64,
    number: u64,
    resources: Vec<Value>,
    behaviour: Map<String, Value>,
    ports: Vec<Value>,
    /// What stands for `ads: {}` in the resources.
    sources: Option<Value>,
    process: Option<Process>,
}

/// How a [`ControlPlane`] is to be reached, besides its Unix socket.
#[derive(Debug, Clone)]
pub struct Port(Value);

impl Port {
    /// In the clear at `IP:PORT`.
    pub fn plain(address: &str) -> Self {
        Self(json!({ "address": address }))
    }

    /// Over TLS, with this certificate and key (PEM files); if a CA is given, clients
    /// must show a certificate of it.
    pub fn tls(address: &str, cert: &Path, key: &Path, ca: Option<&Path>) -> Self {
        let mut port = json!({ "address": address, "cert": cert, "key": key });
        if let Some(ca) = ca {
            port["ca"] = json!(ca);
        }
        Self(port)
    }
}

/// Whether what `status` says of the control plane is that there is one to talk to.
pub fn is_up(xds: &Value) -> bool {
    xds["state"] == "connected" || xds["state"] == "synced"
}

impl ControlPlane {
    /// Starts one on `node`, serving `config`.
    pub fn start(node: &Node, config: &MeshConfig) -> Self {
        Self::start_at(node, "control-plane", config, &[])
    }

    /// As [`ControlPlane::start`], under a name of its own and with further ports.
    pub fn start_at(node: &Node, name: &str, config: &MeshConfig, ports: &[Port]) -> Self {
        let mut this = Self::prepare(node, name, config, ports);
        this.run();
        this
    }

    /// As [`ControlPlane::start_at`], but it does not run yet.
    pub fn prepare(node: &Node, name: &str, config: &MeshConfig, ports: &[Port]) -> Self {
        let directory = node.directory().join(name);
        fs::create_dir_all(&directory).expect("make the control plane's directory");
        let mut this = Self {
            node: node.clone(),
            directory,
            epoch: 0,
            number: 0,
            resources: config.resources(),
            behaviour: Map::new(),
            ports: ports.iter().map(|Port(port)| port.clone()).collect(),
            sources: None,
            process: None,
        };
        this.write();
        this
    }

    /// From now on, resources say this instead of `ads: {}`.
    pub fn sources_are(&mut self, source: Value) {
        self.sources = Some(source);
        self.write();
    }

    /// From now on it behaves like that: see `server.py`.
    pub fn behaves(&mut self, how: &str, value: Value) {
        self.behaviour.insert(how.to_owned(), value);
        self.write();
    }

    /// As `--xds-server` wants it.
    pub fn uri(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Writes an Envoy bootstrap file that leads here, for delta ADS.
    pub fn bootstrap(&self, node_id: &str) -> PathBuf {
        let ads = json!({ "ads": {}, "resource_api_version": "V3" });
        let pipe = json!({ "pipe": { "path": self.socket() } });
        let bootstrap = json!({
            "node": { "id": node_id, "cluster": "tests" },
            "dynamic_resources": {
                "ads_config": {
                    "api_type": "DELTA_GRPC",
                    "transport_api_version": "V3",
                    "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds" } }],
                },
                "cds_config": ads,
                "lds_config": ads,
            },
            "static_resources": { "clusters": [{
                "name": "xds",
                "connect_timeout": "1s",
                "http2_protocol_options": {},
                "load_assignment": {
                    "cluster_name": "xds",
                    "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": pipe } }] }],
                },
            }] },
        });
        let path = self.directory.join(format!("{node_id}.json"));
        config::replace(&path, &bootstrap.to_string());
        path
    }

    /// Its Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("xds.sock")
    }

    fn write(&mut self) {
        self.number += 1;
        let mut state = json!({
            "epoch": self.epoch,
            "number": self.number,
            "resources": self.resources,
        });
        if let Some(source) = &self.sources {
            replace_sources(&mut state, source);
        }
        for (how, value) in &self.behaviour {
            state[how] = value.clone();
        }
        config::replace(&self.directory.join("state.json"), &state.to_string());
    }

    /// Serves these from now on.
    pub fn serves(&mut self, resources: Vec<Value>) {
        self.resources = resources;
        self.write();
    }

    /// Counts what was told to be served; the journal says when a stream has sent it.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Where the server writes down each request and response.
    pub fn journal(&self) -> PathBuf {
        self.directory.join("requests.jsonl")
    }

    /// Keeps these for who asks for them by name, or by one of `aliases`
    /// (`{name: [alias]}`), from the next [`ControlPlane::serves`] on.
    pub fn keeps_for_who_asks(&mut self, names: &[&str], aliases: Value) {
        self.behaviour.insert("on_demand".to_owned(), json!(names));
        self.behaviour.insert("aliases".to_owned(), aliases);
    }

    /// Drops every stream once.
    pub fn drops_streams(&mut self) {
        self.epoch += 1;
        self.write();
    }

    /// Dies without a word.
    pub fn dies(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill_9();
        }
        let _ = fs::remove_file(self.socket());
    }

    /// Starts again after [`ControlPlane::dies`].
    pub fn run(&mut self) {
        assert!(Path::new(PYTHON).exists(), "no {PYTHON}: run `cargo xtask setup`");
        let mut command = Command::new(PYTHON);
        command.arg(SCRIPT).arg(self.socket());
        command.arg(self.directory.join("state.json")).arg(self.directory.join("requests.jsonl"));
        command.arg(Value::from(self.ports.clone()).to_string());
        let log = self.directory.join("log");
        let place = self.node.place("control-plane");
        let process = Process::start(command, &place, "the control plane", &log);
        // One that was killed leaves its socket.
        let started = || process.log().contains("serving");
        let serving = || match (process.ended(), started()) {
            (Some(status), _) => panic!("the control plane ended: {status}\n{}", process.log()),
            (None, true) => Ok(()),
            (None, false) => Err(process.log()),
        };
        eventually_within(Duration::from_secs(30), "the control plane serves", serving);
        self.process = Some(process);
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.journal()).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["nonce"].is_string()).collect()
    }

    /// The NACKs so far.
    pub fn nacks(&self) -> Vec<Value> {
        self.requests().into_iter().filter(|request| request["error"].is_string()).collect()
    }

    /// Waits for a NACK that contains `text`.
    ///
    /// # Panics
    /// With the last requests, if it does not come.
    pub fn is_refused(&self, text: &str) -> Value {
        eventually_within(Duration::from_secs(10), &format!("a NACK with {text:?}"), || {
            let nacks = self.nacks();
            let holds = |nack: &&Value| nack["error"].as_str().is_some_and(|e| e.contains(text));
            nacks.iter().rev().find(holds).cloned().ok_or(nacks)
        })
    }

    /// Checks that no request broke the protocol's rules.
    ///
    /// # Panics
    /// With those that did.
    pub fn expect_no_violations(&self) {
        let requests = self.requests();
        assert!(!requests.is_empty(), "nobody asked");
        let bad: Vec<_> = requests.iter().filter(|r| r["violation"].is_string()).collect();
        assert!(bad.is_empty(), "{bad:#?}\nof {requests:#?}");
    }
}

/// Puts `source` where a resource says `ads: {}`.
pub fn replace_sources(value: &mut Value, source: &Value) {
    match value {
        Value::Object(fields) if fields.contains_key("ads") => *value = source.clone(),
        Value::Object(fields) => fields.values_mut().for_each(|v| replace_sources(v, source)),
        Value::Array(items) => items.iter_mut().for_each(|v| replace_sources(v, source)),
        _ => {}
    }
}
