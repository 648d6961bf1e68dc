//! Envoy and our agent, driven by one control plane, asked the same questions.
//!
//! Envoy runs in a pod of its own that the mesh knows nothing of; every service's address
//! is on that pod's loopback, so that Envoy's listeners can bind it. The agent captures an
//! enrolled pod's connections to the same addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    net::Ipv4Addr,
    path::PathBuf,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    Agent, MeshConfig, Pod, Process, Testbed,
    control_plane::ControlPlane,
    envoy,
    netns::Netns,
    probe::{Answers, Probe, ask},
};

/// The node ids the control plane knows the two by.
const ENVOY: &str = "envoy";
const AGENT: &str = "agent";

/// How long both may take to get to the same answers. Longer than Envoy's, and our, 15 s
/// of waiting for what does not come.
const PATIENCE: Duration = Duration::from_secs(40);

/// The addresses of services, all on the Envoy pod's loopback.
pub const ADDRESSES: [&str; 4] = ["10.96.0.1", "10.96.0.2", "10.96.0.3", "10.96.0.4"];

/// Where nginx is on each backend.
pub const WEB_PORT: u16 = 8080;
/// Where `peer who` is on each backend.
pub const WHO_PORT: u16 = 9000;
/// Where nobody ever answers on each backend.
pub const MUTE_PORT: u16 = 9100;

/// How both learn of their control plane.
enum Told<'a> {
    /// The agent by flags; this layer of runtime values is theirs.
    Flags(Option<&'a str>),
    /// By the same bootstrap, changed so.
    Bootstrap(fn(&mut Value)),
}

/// The two, and what stands behind them.
#[derive(Debug)]
pub struct Twins {
    /// What drives both.
    pub control_plane: ControlPlane,
    /// Three pods with nginx, `peer who` and `peer mute` each.
    pub backends: Vec<Pod>,
    /// The one that is not Envoy.
    pub agent: Agent,
    client: Pod,
    envoy_pod: Pod,
    journal: Journal,
    processes: Vec<Process>,
    _bed: Testbed,
}

impl Twins {
    /// Starts both, with nothing to serve.
    pub fn start(name: &str, delta: bool) -> Self {
        Self::begin(name, delta, Told::Flags(None), Vec::new())
    }

    /// As [`Twins::start`], in the delta variant; both by the same bootstrap, to which
    /// `change` is made, and with what is served from the start.
    pub fn start_by_bootstrap(name: &str, resources: Vec<Value>, change: fn(&mut Value)) -> Self {
        Self::begin(name, true, Told::Bootstrap(change), resources)
    }

    /// As [`Twins::start`]; both ask for a layer of runtime values as well, and what is
    /// served is there from the start: Envoy waits for the layer.
    pub fn start_with_runtime(name: &str, delta: bool, layer: &str, resources: Vec<Value>) -> Self {
        Self::begin(name, delta, Told::Flags(Some(layer)), resources)
    }

    fn begin(name: &str, delta: bool, told: Told<'_>, resources: Vec<Value>) -> Self {
        let binary = envoy::binary();
        let bed = Testbed::two_nodes(name);
        let near = bed.node(1);
        let (client, envoy_pod) = (near.pod("client").start(), near.pod("envoy").start());
        for address in ADDRESSES {
            envoy_pod.netns().ip(&[&format!("addr add {address}/32 dev lo")]);
        }
        let mut processes = Vec::new();
        let backends: Vec<Pod> = ["web-a", "web-b", "web-c"]
            .map(|name| {
                let pod = bed.node(2).pod(name).start();
                processes.push(pod.runs_nginx(WEB_PORT));
                processes.push(pod.serves("who", WHO_PORT));
                processes.push(pod.serves("mute", MUTE_PORT));
                pod
            })
            .into();
        let mut control_plane = ControlPlane::start(near, &MeshConfig::empty());
        control_plane.behaves("patient", true.into());
        control_plane.serves(resources);
        let socket = control_plane.socket();
        let agent = near.agent().with_pod(&client);
        let agent = agent.flags(&["--outbound-policy", "registry-only"]);
        let (agent, envoy) = match told {
            Told::Flags(layer) => {
                let (uri, mode) = (control_plane.uri(), if delta { "delta" } else { "sotw" });
                let mut flags =
                    vec!["--xds-server", &uri, "--xds-mode", mode, "--xds-node-id", AGENT];
                flags.extend(layer.into_iter().flat_map(|layer| ["--xds-runtime-layer", layer]));
                let agent = agent.flags(&flags).start_unready();
                (agent, envoy::driven(&binary, &envoy_pod, &socket, delta, layer))
            }
            Told::Bootstrap(change) => {
                let [of_envoy, of_agent] = [ENVOY, AGENT].map(|node| {
                    let mut bootstrap = envoy::bootstrap(node, &socket, delta, None);
                    change(&mut bootstrap);
                    bootstrap
                });
                let file = near.directory().join("bootstrap.json");
                fs::write(&file, of_agent.to_string()).expect("write the agent's bootstrap");
                let file = file.to_str().expect("paths of a bed are text");
                let agent = agent.flags(&["--bootstrap", file]).start_unready();
                (agent, envoy::run(&binary, &envoy_pod, &of_envoy))
            }
        };
        processes.push(envoy);
        agent.wait_ready();
        let journal = Journal::at(control_plane.journal());
        Self { control_plane, backends, agent, client, envoy_pod, journal, processes, _bed: bed }
    }

    /// Has both served `resources`, waits until both have answered, and says which types
    /// each of them refused.
    pub fn serve(&mut self, resources: Vec<Value>) -> Refused {
        self.control_plane.serves(resources);
        self.settle()
    }

    /// Waits until both have heard and answered all there is to say.
    ///
    /// # Panics
    /// With what is open, if they do not.
    pub fn settle(&mut self) -> Refused {
        let number = self.control_plane.number();
        let begin = Instant::now();
        let mut quiet = 0;
        // Requests may follow from what was answered.
        while quiet < 3 {
            let news = self.journal.read();
            let open = [ENVOY, AGENT].map(|node| self.journal.open(node, number));
            let settled = open.iter().all(Vec::is_empty);
            quiet = if settled && !news { quiet + 1 } else { 0 };
            assert!(begin.elapsed() < PATIENCE, "not answered: {open:?}\n{}", self.tell());
            std::thread::sleep(Duration::from_millis(10));
        }
        Refused {
            envoy: self.journal.refused(ENVOY, number),
            agent: self.journal.refused(AGENT, number),
        }
    }

    /// The control plane ends without a word and comes back; with another `salt` it has
    /// other versions of the same resources.
    pub fn restart_control_plane(&mut self, salt: &str) {
        self.control_plane.dies();
        self.journal.forget();
        self.control_plane.behaves("salt", salt.into());
        self.control_plane.run();
        self.settle();
    }

    /// Asks both until they answer the same and `holds` of that.
    ///
    /// # Panics
    /// With what differs, if they do not.
    pub fn agree(
        &mut self,
        what: &str,
        probes: &[Probe],
        holds: impl Fn(&[Answers]) -> Result<(), String>,
    ) -> Vec<Answers> {
        let begin = Instant::now();
        loop {
            let (envoy, agent) = self.ask(probes);
            let differs = differences(probes, &envoy, &agent);
            let wrong = if differs.is_empty() { holds(&agent).err() } else { Some(differs) };
            match wrong {
                None => return agent,
                Some(wrong) if begin.elapsed() > PATIENCE => {
                    panic!("{what}:\n{wrong}{}", self.tell())
                }
                Some(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Where the sockets of gateway listeners are, Envoy's first.
    pub fn edges(&self) -> [Ipv4Addr; 2] {
        [self.envoy_pod.ip(), self.client.node().gateway()]
    }

    /// Where each of them, Envoy first, has the sockets of such listeners.
    pub fn hosts(&self) -> [&Netns; 2] {
        [self.envoy_pod.netns(), self.client.node().netns()]
    }

    /// What each of them, Envoy first, answers now.
    pub fn ask(&self, probes: &[Probe]) -> (Vec<Answers>, Vec<Answers>) {
        self.both(|pod| ask(pod, probes))
    }

    /// What a client of each of them, Envoy first, makes of it, at the same time.
    pub fn both<T: Send>(&self, of: impl Fn(&Pod) -> T + Sync) -> (T, T) {
        std::thread::scope(|scope| {
            let envoy = scope.spawn(|| of(&self.envoy_pod));
            let agent = of(&self.client);
            (envoy.join().expect("Envoy's client comes to its end"), agent)
        })
    }

    /// What each of them, Envoy first, has written so far to where access logs go.
    pub fn logged(&self) -> [String; 2] {
        let envoy = self.processes.last().expect("Envoy is the last one");
        [envoy.log(), self.agent.stdout()]
    }

    /// All that Envoy says of what it has refused. What it answers the control plane is cut at
    /// 4 KiB, whatever is behind that; its log tells it whole.
    pub fn rejections(&self) -> String {
        let log = self.processes.last().expect("Envoy is the last one").log();
        rejections(&log)
    }

    /// What is known when the two disagree.
    fn tell(&self) -> String {
        let page = self.agent.cli(&["status"]);
        let journal = fs::read_to_string(self.control_plane.journal()).unwrap_or_default();
        let lines: Vec<&str> = journal.lines().collect();
        let latest = lines[lines.len().saturating_sub(30)..].join("\n");
        format!("the agent's status:\n{}\nthe journal's end:\n{latest}", page.stdout())
    }
}

/// The entries of Envoy's log that tell why configuration was refused. An entry may have
/// several lines; those of access logs lie between.
fn rejections(log: &str) -> String {
    let mut told = String::new();
    let mut telling = false;
    for line in log.lines() {
        if line.starts_with("[20") {
            telling = line.contains("config for type.googleapis.com") && line.contains("rejected");
        } else if line.starts_with(['@', '{']) {
            telling = false;
        }
        if telling {
            told.push_str(line);
            told.push('\n');
        }
    }
    told
}

/// The types of which a response was refused, and why.
#[derive(Debug)]
pub struct Refused {
    pub envoy: BTreeMap<String, String>,
    pub agent: BTreeMap<String, String>,
}

impl Refused {
    /// # Panics
    /// Unless both refused exactly these types (`Cluster`).
    #[track_caller]
    pub fn expect(&self, types: &[&str]) -> &Self {
        let types: BTreeSet<&str> = types.iter().copied().collect();
        for of in [&self.envoy, &self.agent] {
            let refused: BTreeSet<&str> = of.keys().map(String::as_str).collect();
            assert_eq!(refused, types, "{self:#?}");
        }
        self
    }

    /// What Envoy can't do and the agent can.
    ///
    /// # Panics
    /// Unless Envoy alone refused that type, and says `text`.
    #[track_caller]
    pub fn expect_of_envoy_alone(&self, type_: &str, text: &str) -> &Self {
        assert!(self.agent.is_empty(), "{self:#?}");
        let reason = self.envoy.get(type_);
        assert!(reason.is_some_and(|reason| reason.contains(text)), "{self:#?}");
        self
    }

    /// What the agent does not support and says so, where Envoy goes on.
    ///
    /// # Panics
    /// Unless the agent alone refused that type and names `field`.
    #[track_caller]
    pub fn expect_of_agent_alone(&self, type_: &str, field: &str) -> &Self {
        assert!(self.envoy.is_empty(), "{self:#?}");
        let reason = self.agent.get(type_);
        assert!(reason.is_some_and(|reason| reason.contains(field)), "{self:#?}");
        self
    }
}

fn differences(probes: &[Probe], envoy: &[Answers], agent: &[Answers]) -> String {
    let pairs = probes.iter().zip(envoy.iter().zip(agent));
    pairs
        .filter(|(_, (envoy, agent))| envoy != agent)
        .map(|(probe, (envoy, agent))| {
            format!("{}\n  Envoy: {envoy}\n  agent: {agent}\n", probe.label())
        })
        .collect()
}

/// What the control plane wrote down, read as it grows.
#[derive(Debug)]
struct Journal {
    path: PathBuf,
    offset: u64,
    streams: BTreeMap<String, Stream>,
}

/// The newest stream of a node.
#[derive(Debug, Default)]
struct Stream {
    number: u64,
    state: u64,
    /// By type: the newest response, and the state it was of.
    sent: BTreeMap<String, (String, u64)>,
    answered: BTreeSet<String>,
    /// Type, state, reason.
    refused: Vec<(String, u64, String)>,
    /// The state of each response.
    states: BTreeMap<String, u64>,
    /// Types of which nothing is wanted any more: Envoy does not answer those.
    unwanted: BTreeSet<String>,
}

impl Journal {
    fn at(path: PathBuf) -> Self {
        Self { path, offset: 0, streams: BTreeMap::new() }
    }

    /// Another server counts its streams anew.
    fn forget(&mut self) {
        self.read();
        self.streams.clear();
    }

    /// Takes in what is new; whether there was anything.
    fn read(&mut self) -> bool {
        let mut text = String::new();
        let mut file = File::open(&self.path).expect("open the journal");
        file.seek(SeekFrom::Start(self.offset)).expect("seek in the journal");
        file.read_to_string(&mut text).expect("read the journal");
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        self.offset += whole as u64;
        for line in text[..whole].lines() {
            let line: Value = serde_json::from_str(line).expect("a line of JSON");
            self.note(&line);
        }
        whole > 0
    }

    fn note(&mut self, line: &Value) {
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        let number = line["stream"].as_u64().unwrap_or_default();
        let stream = self.streams.entry(text("node")).or_default();
        if stream.number != number {
            *stream = Stream { number, ..Stream::default() };
        }
        let type_ = text("type").rsplit('.').next().unwrap_or_default().to_owned();
        if let Some(state) = line["state"].as_u64() {
            stream.state = state;
        } else if line["sent"].is_string() {
            let state = line["number"].as_u64().unwrap_or_default();
            stream.states.insert(text("sent"), state);
            stream.sent.insert(type_, (text("sent"), state));
        } else {
            let nonce = text("nonce");
            let state = stream.states.get(&nonce).copied().unwrap_or_default();
            if let Some(error) = line["error"].as_str() {
                stream.refused.push((type_.clone(), state, error.to_owned()));
            }
            // Delta says by name what it wants no more.
            let named = line["less"].is_null() && line["names"].as_array().is_some();
            let by_name = !["Listener", "Cluster"].contains(&&*type_);
            if named && by_name && line["names"] == json!([]) {
                stream.unwanted.insert(type_);
            } else {
                stream.unwanted.remove(&type_);
            }
            stream.answered.insert(nonce);
        }
    }

    /// What keeps `node` from having heard and answered all of state `number`.
    fn open(&self, node: &str, number: u64) -> Vec<String> {
        let Some(stream) = self.streams.get(node) else {
            return vec![format!("{node}: no stream")];
        };
        let mut open: Vec<String> = stream
            .sent
            .iter()
            .filter(|(type_, (nonce, _))| {
                !stream.answered.contains(nonce) && !stream.unwanted.contains(*type_)
            })
            .map(|(type_, (nonce, _))| format!("{node}: {type_} {nonce}"))
            .collect();
        if stream.state < number {
            open.push(format!("{node}: was sent {}, not {number}", stream.state));
        }
        open
    }

    fn refused(&self, node: &str, number: u64) -> BTreeMap<String, String> {
        let Some(stream) = self.streams.get(node) else { return BTreeMap::new() };
        let now = stream.refused.iter().filter(|(_, state, _)| *state == number);
        now.map(|(type_, _, reason)| (type_.clone(), reason.clone())).collect()
    }
}
