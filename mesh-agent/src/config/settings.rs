//! Every setting once: the flags, variables, file keys and help come from here.

use clap::{Arg, ArgAction, ArgMatches, Command, ValueHint, builder::PossibleValuesParser};

use super::Given;

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// In the file; also names the flag (`node-name`) and variable (`MESH_NODE_NAME`).
    pub key: &'static str,
    group: Group,
    value_name: &'static str,
    help: &'static str,
    /// `None`: there is none, or it has to be found out; then `help` says which.
    pub default: Option<&'static str>,
    /// Whether it may be given several times.
    pub list: bool,
    choices: &'static [&'static str],
}

/// A heading of `--help`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Group {
    File,
    Node,
    ControlPlane,
    Capture,
    Traffic,
    Identity,
    Operations,
}

impl Group {
    fn heading(self) -> &'static str {
        match self {
            Self::File => "Settings",
            Self::Node => "Node",
            Self::ControlPlane => "Control plane",
            Self::Capture => "Capture",
            Self::Traffic => "Traffic",
            Self::Identity => "Identity",
            Self::Operations => "Operations",
        }
    }
}

const fn path(
    group: Group,
    key: &'static str,
    default: Option<&'static str>,
    help: &'static str,
) -> Setting {
    Setting { key, group, value_name: "PATH", help, default, list: false, choices: &[] }
}

const fn value(
    group: Group,
    key: &'static str,
    value_name: &'static str,
    default: Option<&'static str>,
    help: &'static str,
) -> Setting {
    Setting { key, group, value_name, help, default, list: false, choices: &[] }
}

const fn choice(
    group: Group,
    key: &'static str,
    choices: &'static [&'static str],
    default: &'static str,
    help: &'static str,
) -> Setting {
    Setting { key, group, value_name: "CHOICE", help, default: Some(default), list: false, choices }
}

const fn list(
    group: Group,
    key: &'static str,
    value_name: &'static str,
    help: &'static str,
) -> Setting {
    Setting { key, group, value_name, help, default: None, list: true, choices: &[] }
}

/// Where the agent's control socket is unless somebody says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/mesh/agent.sock";

/// The trust domain unless somebody says otherwise.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

const SETTINGS: &[Setting] = &[
    path(Group::File, "config", None, "YAML file of settings; keys as the flags, with `_`"),
    value(Group::Node, "node_name", "NAME", None, "Name of this node [default: the host's name]"),
    value(
        Group::Node,
        "trust_domain",
        "DOMAIN",
        Some(DEFAULT_TRUST_DOMAIN),
        "SPIFFE trust domain of the node's workloads",
    ),
    value(
        Group::Node,
        "gateway_service_account",
        "NAMESPACE/NAME",
        Some("mesh-system/gateway"),
        "Who this node's gateway listeners are towards the mesh: a SPIFFE ID is made of it",
    ),
    value(
        Group::Node,
        "locality",
        "REGION/ZONE/SUBZONE",
        None,
        "Where this node is, for its control plane and for zone-aware routing; as much of it as \
         is known",
    ),
    value(
        Group::Node,
        "local_cluster",
        "NAME",
        None,
        "The cluster whose endpoints send traffic as this node does (one for each node, say): \
         without it, or without locality, there is no zone-aware routing",
    ),
    path(
        Group::Node,
        "config_dir",
        None,
        "Directory of xDS resources (YAML or JSON), watched for changes",
    ),
    path(
        Group::ControlPlane,
        "bootstrap",
        None,
        "Envoy bootstrap file (YAML or JSON), instead of config_dir and every xds_ setting",
    ),
    list(
        Group::ControlPlane,
        "xds_server",
        "URI",
        "Control plane that speaks ADS, instead of config_dir: http://HOST:PORT, \
         https://HOST:PORT or unix:///PATH; several are tried in order",
    ),
    choice(
        Group::ControlPlane,
        "xds_mode",
        &["sotw", "delta"],
        "sotw",
        "Variant of ADS: state of the world or incremental",
    ),
    path(
        Group::ControlPlane,
        "xds_ca",
        None,
        "Authorities that https:// servers are verified by (PEM)",
    ),
    path(Group::ControlPlane, "xds_cert", None, "The agent's own certificate chain for them (PEM)"),
    path(
        Group::ControlPlane,
        "xds_key",
        None,
        "Its key (PEM); files are read anew when connecting",
    ),
    value(
        Group::ControlPlane,
        "xds_node_id",
        "ID",
        None,
        "Who the agent is to the control plane [default: node_name]",
    ),
    value(
        Group::ControlPlane,
        "xds_cluster",
        "NAME",
        Some("mesh"),
        "The `cluster` of the node as the control plane sees it",
    ),
    value(
        Group::ControlPlane,
        "xds_metadata",
        "JSON",
        None,
        "The `metadata` of the node as the control plane sees it: a JSON object",
    ),
    list(
        Group::ControlPlane,
        "xds_runtime_layer",
        "NAME",
        "A layer of runtime values to ask for (RTDS); may be repeated, a later one goes first",
    ),
    path(Group::Node, "pods", None, "YAML file of pods to enrol at start"),
    path(Group::Node, "state_dir", Some("/var/lib/mesh"), "State that survives restarts"),
    value(
        Group::Node,
        "take_over",
        "BOOL",
        Some("false"),
        "Take the place of the agent of this instance and state directory, if one runs: it hands \
         its listeners over and drains",
    ),
    path(
        Group::Capture,
        "cgroup_root",
        None,
        "cgroup-v2 directory above the pods [default: the root in /proc/self/mountinfo]",
    ),
    path(
        Group::Capture,
        "bpffs",
        Some("/sys/fs/bpf/mesh"),
        "Where programs, maps and links are pinned",
    ),
    value(
        Group::Capture,
        "instance",
        "NAME",
        Some("default"),
        "Tells several agents on one kernel apart",
    ),
    value(
        Group::Capture,
        "bpf_log",
        "BOOL",
        Some("false"),
        "Log each decision of the BPF programs",
    ),
    choice(
        Group::Capture,
        "kernel_path",
        &["auto", "on", "off"],
        "auto",
        "Take opaque TCP between pods of this node from socket to socket, without the agent; \
         auto: where the kernel can; on: or do not start",
    ),
    choice(
        Group::Capture,
        "splice",
        &["auto", "on", "off"],
        "auto",
        "Let those sockets, and the agent and applications, hand each other their data past TCP; \
         auto: if the self-test of this kernel passes; on: although it fails, but for \
         splice_ktls, which is final",
    ),
    choice(
        Group::Capture,
        "agent_down",
        &["refuse", "keep"],
        "refuse",
        "New connections of the kernel path while no agent is there: refuse them, or keep to \
         the verdicts last compiled, until a certificate expires",
    ),
    value(
        Group::Capture,
        "hung_after",
        "DURATION",
        Some("15s"),
        "A process that has given the kernel no sign of life for so long is taken for dead: new \
         connections are refused, or go by agent_down; 2s to 1h, or off",
    ),
    list(
        Group::Capture,
        "map_size",
        "MAP=ENTRIES",
        "How many entries a map of the kernel's holds: pods, addresses, excluded_ports, \
         excluded_cidrs, original_destinations, services, authorized, spliced or probes; may be \
         repeated. Maps that are there already keep their size",
    ),
    choice(
        Group::Capture,
        "guard",
        &["auto", "on", "off"],
        "auto",
        "Drop, on the pods' interfaces, TCP that should have been captured and was not; auto: \
         where it can be attached; on: or do not enrol the pod",
    ),
    choice(
        Group::Capture,
        "redirect_peer",
        &["auto", "on", "off"],
        "auto",
        "Hand packets of the kernel path straight from pod to pod; auto: where no other \
         program, queue or rule is there to see them; on: past all of them",
    ),
    choice(
        Group::Capture,
        "non_tcp",
        &["pass", "drop"],
        "pass",
        "What the guard does with other protocols; ARP, ICMP, IGMP, DHCP and DNS always pass",
    ),
    list(
        Group::Capture,
        "probe_cgroup",
        "PATH",
        "Processes of this cgroup-v2 directory (the kubelet's) reach pods of this node in \
         plaintext, without the agent; may be repeated",
    ),
    list(
        Group::Capture,
        "exclude_outbound_port",
        "PORT",
        "Do not capture connections to this port; may be repeated",
    ),
    list(
        Group::Capture,
        "exclude_outbound_cidr",
        "CIDR",
        "Do not capture connections to this network; may be repeated",
    ),
    list(
        Group::Capture,
        "exclude_inbound_port",
        "PORT",
        "Let connections to this port of a pod through untouched; may be repeated",
    ),
    choice(
        Group::Traffic,
        "outbound_policy",
        &["allow-any", "registry-only"],
        "allow-any",
        "What becomes of outbound connections that no listener is for",
    ),
    value(
        Group::Traffic,
        "drain_timeout",
        "DURATION",
        Some("5s"),
        "How long live connections may go on after SIGTERM, or after their listener or filter \
         chain is removed",
    ),
    value(
        Group::Traffic,
        "data_threads",
        "NUMBER",
        None,
        "Threads that move bytes [default: one for each CPU]",
    ),
    choice(
        Group::Identity,
        "certificates",
        &["builtin", "sds"],
        "builtin",
        "Where workload certificates come from: the development CA, or SDS",
    ),
    value(
        Group::Identity,
        "sds_server",
        "URI",
        None,
        "Who speaks SDS, as xds_server [default: where the configuration comes from]",
    ),
    choice(
        Group::Identity,
        "sds_mode",
        &["sotw", "delta"],
        "sotw",
        "Variant of SDS: state of the world or incremental",
    ),
    value(
        Group::Identity,
        "sds_secret_name",
        "TEMPLATE",
        Some("{identity}"),
        "Name of a workload's certificate; {identity}, {trust_domain}, {namespace} and \
         {service_account} are filled in",
    ),
    value(
        Group::Identity,
        "sds_validation_name",
        "NAME",
        Some("ROOTCA"),
        "Name of the validation context whose roots are trusted",
    ),
    path(
        Group::Identity,
        "ca_dir",
        None,
        "Directory of the development CA [default: ca in the state directory]",
    ),
    value(
        Group::Identity,
        "certificate_ttl",
        "DURATION",
        Some("24h"),
        "Life of a workload certificate; renewed at half of it",
    ),
    value(
        Group::Operations,
        "admin",
        "ADDRESS",
        Some("127.0.0.1:15000"),
        "Address of health checks, metrics and dumps (read only, no authentication)",
    ),
    path(
        Group::Operations,
        "socket",
        Some(DEFAULT_SOCKET),
        "Control socket; whoever may write to it controls the agent",
    ),
    choice(
        Group::Operations,
        "access_log",
        &["json", "text", "off"],
        "json",
        "One line for each connection or request",
    ),
    path(
        Group::Operations,
        "access_log_file",
        None,
        "Append the access log to this file [default: standard output]",
    ),
    value(
        Group::Operations,
        "log",
        "FILTER",
        Some("info"),
        "What to log on standard error, such as info,mesh_agent::identity=debug",
    ),
    choice(Group::Operations, "log_format", &["text", "json"], "text", "How log lines look"),
];

/// The setting of that key.
pub fn find(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

/// A key's flag, without the dashes.
pub fn flag(key: &str) -> String {
    key.replace('_', "-")
}

/// A key's environment variable.
pub fn variable(key: &str) -> String {
    format!("MESH_{}", key.to_ascii_uppercase())
}

/// What to say of a key that is no setting.
pub(super) fn unknown(key: &str) -> String {
    if key == "config" {
        return "can't be set in the file it names".to_owned();
    }
    let like = key.replace('-', "_").to_ascii_lowercase();
    let like = SETTINGS.iter().find(|setting| {
        setting.key == like
            || setting.key == like.trim_end_matches('s')
            || setting.key.starts_with(&like)
    });
    match like {
        Some(setting) => format!("is not a setting; did you mean `{}`?", setting.key),
        None => "is not a setting".to_owned(),
    }
}

/// The flags of `mesh-agent run`.
#[derive(Debug, Clone, Default)]
pub struct RunFlags(pub Given);

/// The flags of `mesh-agent doctor`: those about capture.
#[derive(Debug, Clone, Default)]
pub struct CaptureFlags(pub Given);

fn augment(command: Command, wanted: impl Fn(&Setting) -> bool) -> Command {
    let wanted = SETTINGS.iter().filter(|setting| wanted(setting));
    command.args(wanted.map(|setting| {
        let mut help = format!("{} [env: {}]", setting.help, variable(setting.key));
        if let Some(default) = setting.default {
            help = format!("{help} [default: {default}]");
        }
        let action = if setting.list { ArgAction::Append } else { ArgAction::Set };
        let mut arg = Arg::new(setting.key)
            .long(flag(setting.key))
            .value_name(setting.value_name)
            .help(help)
            .help_heading(setting.group.heading())
            .action(action);
        if setting.value_name == "PATH" {
            arg = arg.value_hint(ValueHint::AnyPath);
        }
        if !setting.choices.is_empty() {
            arg = arg.value_parser(PossibleValuesParser::new(setting.choices.iter().copied()));
        }
        if setting.value_name == "BOOL" {
            arg = arg
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .value_parser(PossibleValuesParser::new(["true", "false"]));
        }
        arg
    }))
}

fn given(matches: &ArgMatches) -> Given {
    let values = SETTINGS.iter().filter_map(|setting| {
        let values = matches.try_get_many::<String>(setting.key).ok().flatten()?;
        Some((setting.key, values.cloned().collect()))
    });
    Given(values.collect())
}

fn about_capture(setting: &Setting) -> bool {
    matches!(setting.group, Group::Capture | Group::File)
}

macro_rules! flags {
    ($name:ident, $wanted:expr) => {
        impl clap::Args for $name {
            fn augment_args(command: Command) -> Command {
                augment(command, $wanted)
            }

            fn augment_args_for_update(command: Command) -> Command {
                augment(command, $wanted)
            }
        }

        impl clap::FromArgMatches for $name {
            fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
                Ok(Self(given(matches)))
            }

            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
                self.0.0.extend(given(matches).0);
                Ok(())
            }
        }
    };
}

flags!(RunFlags, |_| true);
flags!(CaptureFlags, about_capture);
