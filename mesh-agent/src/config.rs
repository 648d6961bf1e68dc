//! Settings from flags, environment and a YAML file, in that order.
//!
//! [`settings`] names every setting once; flags, `MESH_*` variables, file keys and
//! help come from that table. [`load`] reports all that is wrong at once, each with
//! the key and where its value came from.

mod bootstrap;
mod duration;
mod layers;
pub mod settings;
mod source;
mod values;

use std::{
    collections::BTreeMap, fmt, io, net::SocketAddr, num::NonZeroUsize, path::PathBuf,
    time::Duration,
};

use clap::ValueEnum;
use ipnet::IpNet;
use serde::Serialize;

use crate::{
    capture::MapCapacities,
    identity::SecretNames,
    model::{
        agent_down::AgentDown,
        cluster::LocalCluster,
        identity::{Identity, TrustDomain},
        runtime::LayeredRuntime,
        splice::SpliceMode,
    },
    observe::access_log::{AccessLogFormat, AccessLogSink},
    policy::OutboundPolicy,
    source::{Bootstrap, XdsOptions},
};

pub use self::source::SourceConfig;

use self::{
    layers::Layers,
    values::{
        absolute, agent_down, between, boolean, choice, cidr, log_filter, name, port, splice_mode,
        threads,
    },
};

/// The largest map: a tenth of it is 100 MB already.
const MAP_SIZE_MAX: u32 = 1 << 24;

/// Everything `mesh-agent run` needs to know.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentConfig {
    pub node: NodeConfig,
    pub source: SourceConfig,
    pub runtime: LayeredRuntime,
    /// Where traffic comes from, if that is known.
    pub local_cluster: Option<LocalCluster>,
    pub capture: CaptureConfig,
    pub identity: IdentityConfig,
    pub admin: AdminConfig,
    pub traffic: TrafficConfig,
    pub access_log: AccessLogConfig,
    pub log: LogConfig,
}

/// Who this agent is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// Unique in the mesh.
    pub name: String,
    pub trust_domain: TrustDomain,
    /// Who gateway listeners are, towards the mesh.
    pub gateway: Identity,
    /// Survives restarts; private to this agent.
    pub state_dir: PathBuf,
    /// Pods to enrol at start.
    pub pods: Option<PathBuf>,
    /// Whether an agent that is there is asked to hand over.
    pub take_over: bool,
}

/// What is captured, and where the kernel objects live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureConfig {
    /// The cgroup-v2 directory to attach to; `None`: the host's root, found in
    /// `/proc/self/mountinfo`.
    pub cgroup_root: Option<PathBuf>,
    /// Programs, maps and links are pinned here.
    pub bpffs: PathBuf,
    /// Tells the agents of one kernel apart.
    pub instance: String,
    /// Whether the programs log every decision.
    pub bpf_log: bool,
    pub kernel_path: KernelPath,
    /// Whether what capture did not take is dropped on the pods' interfaces.
    pub guard: Guard,
    pub redirect_peer: RedirectPeer,
    pub non_tcp: NonTcp,
    /// Whose processes may probe the pods in plaintext.
    pub probe_cgroups: Vec<PathBuf>,
    pub splice: SpliceMode,
    pub agent_down: AgentDown,
    /// Without a sign of life for so long the agent is taken for dead; `None`: never.
    pub hung_after: Option<Duration>,
    pub map_sizes: MapCapacities,
    pub exclusions: Exclusions,
}

/// Whether connections between pods of this node may go without the agent, where
/// policy leaves nothing to do on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, ValueEnum)]
pub enum KernelPath {
    /// Where the kernel can do all of it.
    #[default]
    Auto,
    /// The agent does not start where the kernel can't.
    On,
    Off,
}

/// Whether what capture did not take is dropped on the pods' interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, ValueEnum)]
pub enum Guard {
    /// Where the guard can be attached.
    #[default]
    Auto,
    /// A pod that it can't be attached to is not enrolled.
    On,
    Off,
}

/// Whether packets of the kernel path are handed straight from pod to pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, ValueEnum)]
pub enum RedirectPeer {
    /// Where nothing else is there to see them.
    #[default]
    Auto,
    On,
    Off,
}

/// What the guard does with other protocols than TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, ValueEnum)]
pub enum NonTcp {
    #[default]
    Pass,
    /// But for ARP, ICMP, IGMP, DHCP, DNS and what is excluded.
    Drop,
}

/// Left alone for every pod of this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exclusions {
    pub outbound_ports: Vec<u16>,
    pub outbound_cidrs: Vec<IpNet>,
    pub inbound_ports: Vec<u16>,
}

/// Where certificates come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityConfig {
    /// `None`: from the development CA.
    pub sds: Option<SdsConfig>,
    /// The development CA: `root.pem` and `root-key.pem`.
    pub ca_dir: PathBuf,
    /// How long a workload's certificate lives; it is renewed at half of that.
    pub certificate_ttl: Duration,
}

/// Certificates by SDS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SdsConfig {
    /// `None`: whoever delivers the configuration.
    pub server: Option<Box<XdsOptions>>,
    pub names: SecretNames,
    /// Of the validation context.
    pub validation: String,
}

/// Where the agent answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminConfig {
    pub address: SocketAddr,
    pub socket: PathBuf,
}

/// What becomes of connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrafficConfig {
    pub outbound_policy: OutboundPolicy,
    /// How long live connections may go on after SIGTERM, or without their listener.
    pub drain_timeout: Duration,
    /// Threads that move bytes; `None`: one for each CPU.
    pub data_threads: Option<NonZeroUsize>,
}

/// The access log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLogConfig {
    pub format: AccessLogFormat,
    pub sink: AccessLogSink,
}

/// The agent's own log, on standard error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// In `tracing`'s syntax: `info,mesh_agent::identity=debug`.
    pub filter: String,
    pub format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Values that flags gave, by setting's key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Given(pub BTreeMap<&'static str, Vec<String>>);

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Flag,
    Environment,
    File(PathBuf),
    Default,
}

/// One setting that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The setting, or the unknown key, or `config` for the file itself.
    pub key: String,
    pub origin: Origin,
    pub reason: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, origin, reason } = self;
        match origin {
            Origin::Flag => write!(f, "{key} (from --{}): {reason}", settings::flag(key)),
            Origin::Environment => write!(f, "{key} (from {}): {reason}", settings::variable(key)),
            Origin::File(path) => write!(f, "{key} (from {}): {reason}", path.display()),
            Origin::Default => write!(f, "{key}: {reason}"),
        }
    }
}

/// Everything that is wrong with the settings; one a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => f.write_str("bad configuration:")?,
            n => write!(f, "bad configuration, {n} faults:")?,
        }
        self.0.iter().try_for_each(|error| write!(f, "\n  {error}"))
    }
}

impl std::error::Error for ConfigErrors {}

/// The process's environment, or a test's.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The process's environment; a value that is not Unicode keeps its shape.
pub fn process_environment(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

/// The settings of `mesh-agent run`.
///
/// # Errors
/// Everything that is wrong, not only the first.
pub fn load(given: &Given, environment: Environment<'_>) -> Result<AgentConfig, ConfigErrors> {
    let mut layers = Layers::read(given, environment);
    let config = agent(&mut layers);
    layers.finish(config)
}

/// The settings of `mesh-agent doctor`: the part of [`load`]'s about capture.
///
/// # Errors
/// As [`load`].
pub fn load_capture(
    given: &Given,
    environment: Environment<'_>,
) -> Result<CaptureConfig, ConfigErrors> {
    let mut layers = Layers::read(given, environment);
    let config = capture(&mut layers);
    layers.finish(config)
}

/// `None` only where an error was noted.
fn agent(layers: &mut Layers<'_>) -> Option<AgentConfig> {
    let node = node(layers);
    let bootstrap = bootstrap::read(layers);
    let (source, runtime, local_cluster, bootstrap_admin) = match bootstrap {
        None => (None, None, None, None),
        Some(Some(Bootstrap { mut xds, runtime, local_cluster, admin })) => {
            if let Some(node) = node.as_ref().filter(|_| xds.node.id.is_empty()) {
                xds.node.id.clone_from(&node.name);
            }
            let place = xds.node.locality.clone();
            let local = local_cluster.map(|name| LocalCluster { name, place });
            (Some(SourceConfig::ControlPlane(Box::new(xds))), Some(runtime), Some(local), admin)
        }
        Some(None) => {
            let name = node.as_ref().map(|node| node.name.as_str());
            let place = source::locality(layers);
            let source = source::source(layers, name, place.clone().flatten());
            (source, source::runtime(layers), source::local_cluster(layers, place), None)
        }
    };
    let capture = capture(layers);
    let identity = identity(layers, node.as_ref().map(|node| node.name.as_str()));
    let mut admin = admin(layers);
    if let (Some(admin), Some(address), false) =
        (&mut admin, bootstrap_admin, layers.is_given("admin"))
    {
        admin.address = address;
    }
    let traffic = traffic(layers);
    let access_log = access_log(layers);
    let filter = layers.one("log", log_filter);
    let format = layers.one("log_format", choice::<LogFormat>);
    Some(AgentConfig {
        node: node?,
        source: source?,
        runtime: runtime?,
        local_cluster: local_cluster?,
        capture: capture?,
        identity: identity?,
        admin: admin?,
        traffic: traffic?,
        access_log: access_log?,
        log: LogConfig { filter: filter?, format: format? },
    })
}

fn node(layers: &mut Layers<'_>) -> Option<NodeConfig> {
    let name = layers.one_or("node_name", host_name, name);
    let trust_domain =
        layers.one("trust_domain", |s| s.parse::<TrustDomain>().map_err(|e| e.to_string()));
    let gateway = layers.one("gateway_service_account", |s| {
        let not = || format!("`{s}` is not NAMESPACE/NAME");
        let (namespace, name) = s.split_once('/').ok_or_else(not)?;
        // A trust domain that is wrong is said above.
        let trust_domain = trust_domain.clone().or_else(|| "cluster.local".parse().ok());
        let trust_domain = trust_domain.ok_or_else(not)?;
        Identity::new(trust_domain, namespace, name).map_err(|_| not())
    });
    let state_dir = layers.one("state_dir", absolute);
    let pods = layers.optional("pods", absolute);
    let take_over = layers.one("take_over", boolean);
    Some(NodeConfig {
        name: name?,
        trust_domain: trust_domain?,
        gateway: gateway?,
        state_dir: state_dir?,
        pods: pods?,
        take_over: take_over?,
    })
}

fn capture(layers: &mut Layers<'_>) -> Option<CaptureConfig> {
    let cgroup_root = layers.optional("cgroup_root", absolute);
    let bpffs = layers.one("bpffs", absolute);
    let instance = layers.one("instance", name);
    let bpf_log = layers.one("bpf_log", boolean);
    let kernel_path = layers.one("kernel_path", choice::<KernelPath>);
    let guard = layers.one("guard", choice::<Guard>);
    let redirect_peer = layers.one("redirect_peer", choice::<RedirectPeer>);
    let non_tcp = layers.one("non_tcp", choice::<NonTcp>);
    if (guard, non_tcp) == (Some(Guard::Off), Some(NonTcp::Drop)) {
        layers.fail_given("non_tcp", "drop is for the guard to do, and guard is off");
    }
    let probe_cgroups = layers.many("probe_cgroup", absolute);
    let splice = layers.one("splice", splice_mode);
    let agent_down = layers.one("agent_down", agent_down);
    let hung_after = layers.one("hung_after", |s| match s {
        "off" => Ok(None),
        s => between(s, Duration::from_secs(2), Duration::from_secs(3600)).map(Some),
    });
    let map_sizes = map_sizes(layers);
    let outbound_ports = layers.many("exclude_outbound_port", port);
    let outbound_cidrs = layers.many("exclude_outbound_cidr", cidr);
    let inbound_ports = layers.many("exclude_inbound_port", port);
    Some(CaptureConfig {
        cgroup_root: cgroup_root?,
        bpffs: bpffs?,
        instance: instance?,
        bpf_log: bpf_log?,
        kernel_path: kernel_path?,
        guard: guard?,
        redirect_peer: redirect_peer?,
        non_tcp: non_tcp?,
        probe_cgroups: probe_cgroups?,
        splice: splice?,
        agent_down: agent_down?,
        hung_after: hung_after?,
        map_sizes: map_sizes?,
        exclusions: Exclusions {
            outbound_ports: outbound_ports?,
            outbound_cidrs: outbound_cidrs?,
            inbound_ports: inbound_ports?,
        },
    })
}

fn map_sizes(layers: &mut Layers<'_>) -> Option<MapCapacities> {
    let given = layers.many("map_size", |s| {
        let (name, size) = s.split_once('=').ok_or_else(|| format!("`{s}` is not MAP=ENTRIES"))?;
        let size = size.parse().ok().filter(|size| (1..=MAP_SIZE_MAX).contains(size));
        let size = size.ok_or_else(|| format!("`{s}`: entries are 1 to {MAP_SIZE_MAX}"))?;
        // Names are checked here, where the reason knows the value.
        MapCapacities::default().set(name, size).map(|()| (name.to_owned(), size))
    })?;
    let mut sizes = MapCapacities::default();
    given.iter().all(|(name, size)| sizes.set(name, *size).is_ok()).then_some(sizes)
}

fn identity(layers: &mut Layers<'_>, node_name: Option<&str>) -> Option<IdentityConfig> {
    // A state_dir that is wrong is reported once, by `node`.
    let state_dir = layers.peek("state_dir").unwrap_or_default();
    let ca_dir = layers.one_or("ca_dir", || Ok(format!("{state_dir}/ca")), absolute);
    let ttl = layers.one("certificate_ttl", |s| {
        between(s, Duration::from_secs(10), Duration::from_secs(90 * 24 * 3600))
    });
    let sds = sds(layers, node_name);
    Some(IdentityConfig { sds: sds?, ca_dir: ca_dir?, certificate_ttl: ttl? })
}

/// The outer `None` says that something is wrong.
fn sds(layers: &mut Layers<'_>, node_name: Option<&str>) -> Option<Option<SdsConfig>> {
    let is_sds = layers.one("certificates", |s| match s {
        "builtin" => Ok(false),
        "sds" => Ok(true),
        other => Err(format!("`{other}` is neither builtin nor sds")),
    })?;
    if !is_sds {
        for key in ["sds_server", "sds_mode", "sds_secret_name", "sds_validation_name"] {
            if layers.is_given(key) {
                layers.fail_given(key, "is for certificates: sds");
            }
        }
        return Some(None);
    }
    let server = source::sds_server(layers, node_name);
    let names = layers.one("sds_secret_name", str::parse::<SecretNames>);
    let validation = layers.one("sds_validation_name", |s| match s {
        "" => Err("is empty".to_owned()),
        name => Ok(name.to_owned()),
    });
    Some(Some(SdsConfig { server: server?, names: names?, validation: validation? }))
}

fn admin(layers: &mut Layers<'_>) -> Option<AdminConfig> {
    let address = layers.one("admin", |s| {
        s.parse::<SocketAddr>()
            .map_err(|_| format!("`{s}` is not an address and port, such as 127.0.0.1:15000"))
    });
    let socket = layers.one("socket", |s| {
        // sun_path holds 107 bytes and a NUL; the lock beside it is an ordinary file.
        if s.len() > 107 {
            Err(format!("`{s}` is longer than a socket's name may be, 107 bytes"))
        } else {
            absolute(s)
        }
    });
    Some(AdminConfig { address: address?, socket: socket? })
}

fn traffic(layers: &mut Layers<'_>) -> Option<TrafficConfig> {
    let outbound_policy = layers.one("outbound_policy", choice::<OutboundPolicy>);
    let drain_timeout =
        layers.one("drain_timeout", |s| between(s, Duration::ZERO, Duration::from_secs(3600)));
    let data_threads = layers.optional("data_threads", threads);
    Some(TrafficConfig {
        outbound_policy: outbound_policy?,
        drain_timeout: drain_timeout?,
        data_threads: data_threads?,
    })
}

fn access_log(layers: &mut Layers<'_>) -> Option<AccessLogConfig> {
    let format = layers.one("access_log", choice::<AccessLogFormat>);
    let file = layers.optional("access_log_file", absolute);
    let sink = file?.map_or(AccessLogSink::Stdout, AccessLogSink::File);
    Some(AccessLogConfig { format: format?, sink })
}

fn host_name() -> io::Result<String> {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim_end().to_owned())
}

#[cfg(test)]
mod tests;
