//! `mesh-agent enroll`

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::Context as _;
use clap::{Args, ValueEnum, ValueHint};
use hyper::Method;
use serde_json::json;

use super::{
    CliError, Output,
    client::Client,
    output::{self, OutputFormat},
};
use crate::admin::{EnrollRequest, PodView};

const AFTER: &str = "\
Once this returns, the pod's new connections are captured. Those it has end (strict),
or live on without the mesh (permissive).
Enrolling a pod again with the same values changes nothing.

Examples:
  mesh-agent enroll web-1 -n shop -s web --netns /run/netns/web-1 --label app=web
  mesh-agent enroll web-1 -n shop -s web --pid 4711 --mtls permissive";

/// Enrol a pod of this node: capture its traffic
#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub(super) struct Enroll {
    /// The pod's name
    name: String,

    /// Namespace, part of the identity
    #[arg(long, short)]
    namespace: String,

    /// Service account, part of the identity
    #[arg(long, short)]
    service_account: String,

    /// What `unenroll` will call it; Kubernetes' pod UID there [default: <namespace>.<name>]
    #[arg(long)]
    uid: Option<String>,

    #[command(flatten)]
    place: Place,

    /// A label; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,

    /// What becomes of plaintext from outside the pod
    #[arg(long, value_enum, default_value_t)]
    mtls: Mtls,

    /// Whether its connections on the kernel path, and those with the agent, may be spliced
    /// [default: as the agent]
    #[arg(long, value_enum)]
    splice: Option<Splice>,

    /// What its kernel path does while no agent is there [default: as the agent]
    #[arg(long, value_enum)]
    agent_down: Option<AgentDown>,

    /// Whether its packets of the kernel path go straight [default: as the agent]
    #[arg(long, value_enum)]
    redirect_peer: Option<RedirectPeer>,

    /// Do not capture connections to this port; may be repeated
    #[arg(long, value_name = "PORT")]
    exclude_outbound_port: Vec<u16>,

    /// Do not capture connections to this network; may be repeated
    #[arg(long, value_name = "CIDR")]
    exclude_outbound_cidr: Vec<ipnet::IpNet>,

    /// Let connections to this port through untouched; may be repeated
    #[arg(long, value_name = "PORT")]
    exclude_inbound_port: Vec<u16>,

    #[command(flatten)]
    client: Client,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Place {
    /// The pod's network namespace
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    netns: Option<PathBuf>,

    /// A process in the pod, as the agent numbers processes
    #[arg(long)]
    pid: Option<u32>,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Mtls {
    /// Refuse it
    #[default]
    Strict,
    /// Let it in as a peer without identity, judged by policy
    Permissive,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Splice {
    /// If the self-test of the kernel passes
    Auto,
    /// Whatever the self-test says
    On,
    Off,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RedirectPeer {
    /// Where nothing else is on the way
    Auto,
    /// Past whatever is on the way
    On,
    Off,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AgentDown {
    /// Refuse new connections
    Refuse,
    /// Go on by the verdicts last compiled
    Keep,
}

fn label(s: &str) -> Result<(String, String), String> {
    match s.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("use KEY=VALUE".to_owned()),
    }
}

impl Enroll {
    pub(super) fn run(self) -> Result<Output, CliError> {
        let request = self.request()?;
        let body = serde_json::to_vec(&request).context("the pod can't be written as JSON")?;
        let pod: PodView = self.client.ask(Method::POST, "/pods", body)?;
        Ok(match self.client.output {
            OutputFormat::Json => output::json(&pod)?,
            OutputFormat::Table => {
                format!("enrolled {} as {}, {}\n", pod.uid, pod.identity, addresses(&pod))
            }
        }
        .into())
    }

    /// Through the same checks as any other enrolment.
    fn request(&self) -> Result<EnrollRequest, CliError> {
        let netns = self.place.netns.as_deref().map(std::path::absolute).transpose();
        let netns = netns.context("the path of --netns can't be made absolute")?;
        let uid = self.uid.clone().unwrap_or_else(|| format!("{}.{}", self.namespace, self.name));
        let mtls = match self.mtls {
            Mtls::Strict => "strict",
            Mtls::Permissive => "permissive",
        };
        let splice = self.splice.map(|splice| match splice {
            Splice::Auto => "auto",
            Splice::On => "on",
            Splice::Off => "off",
        });
        let agent_down = self.agent_down.map(|choice| match choice {
            AgentDown::Refuse => "refuse",
            AgentDown::Keep => "keep",
        });
        let redirect_peer = self.redirect_peer.map(|mode| match mode {
            RedirectPeer::Auto => "auto",
            RedirectPeer::On => "on",
            RedirectPeer::Off => "off",
        });
        let labels: BTreeMap<_, _> = self.labels.iter().cloned().collect();
        serde_json::from_value(json!({
            "uid": uid,
            "name": self.name,
            "namespace": self.namespace,
            "service_account": self.service_account,
            "netns": netns,
            "pid": self.place.pid,
            "labels": labels,
            "mtls": mtls,
            "splice": splice,
            "agent_down": agent_down,
            "redirect_peer": redirect_peer,
            "exclude_outbound_ports": self.exclude_outbound_port,
            "exclude_outbound_cidrs": self.exclude_outbound_cidr,
            "exclude_inbound_ports": self.exclude_inbound_port,
        }))
        .map_err(|error| CliError::Usage(error.to_string()))
    }
}

/// A pod's addresses in one cell.
pub(super) fn addresses(pod: &PodView) -> String {
    let addresses: Vec<_> = pod.addresses.iter().map(ToString::to_string).collect();
    addresses.join(",")
}
