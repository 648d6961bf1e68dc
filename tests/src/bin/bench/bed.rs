//! What is measured: one client node, one server node, three roads between them.

use std::{fs, time::Duration};

use tests::{Agent, Allow, Inbound, MeshConfig, Pod, Process, Service, Testbed};

const WEB_PORT: u16 = 8080;
const SINK_PORT: u16 = 9000;

/// How a request goes from node to node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Road {
    /// Between pods nobody knows of.
    Plain,
    /// HBONE, bytes relayed.
    L4,
    /// HBONE, each request parsed, judged and routed on both nodes.
    L7,
}

impl Road {
    pub(crate) const ALL: [Self; 3] = [Self::Plain, Self::L4, Self::L7];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "no mesh",
            Self::L4 => "mesh, L4",
            Self::L7 => "mesh, L7",
        }
    }
}

/// CPU time used so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cpu {
    /// By every process of the bed.
    pub(crate) all: Duration,
    pub(crate) agents: Duration,
}

/// Everything that runs while it is measured.
#[derive(Debug)]
pub(crate) struct Bed {
    plain_client: Pod,
    client: Pod,
    plain: Pod,
    agents: [Agent; 2],
    _programs: Vec<Process>,
    bed: Testbed,
}

impl Bed {
    pub(crate) fn start() -> Self {
        let bed = Testbed::two_nodes("bench");
        let (near, far) = (bed.node(1), bed.node(2));
        let (client, plain_client) = (near.pod("client").start(), near.pod("plain-client").start());
        let l4 = far.pod("opaque").start();
        let l7 = far.pod("web").start();
        let plain = far.pod("plain-web").start();
        let mut programs = Vec::new();
        for pod in [&l4, &l7, &plain] {
            programs.push(pod.runs_nginx(WEB_PORT));
            programs.push(pod.serves("sink", SINK_PORT));
        }
        let allow = || Allow::policy("client").from(&client);
        let reads = allow().methods(&["GET", "HEAD"]);
        let config = MeshConfig::new()
            .service(&Service::tcp("opaque", "10.96.0.20:80").backed_by(&l4, WEB_PORT))
            .service(&Service::tcp("sink", "10.96.0.20:9000").backed_by(&l4, SINK_PORT))
            .service(&Service::http("web", "10.96.0.10:80").backed_by(&l7, WEB_PORT))
            .inbound(&Inbound::tcp(&l4, WEB_PORT).allow(allow()))
            .inbound(&Inbound::tcp(&l4, SINK_PORT).allow(allow()))
            .inbound(&Inbound::http(&l7, WEB_PORT).allow(reads));
        for node in [near, far] {
            config.write_to(&node.config_dir());
        }
        let flags = ["--log", "info"];
        let agents = [
            near.agent().flags(&flags).with_pod(&client).start_unready(),
            far.agent().flags(&flags).with_pod(&l4).with_pod(&l7).start_unready(),
        ];
        agents.iter().for_each(Agent::wait_ready);
        Self { plain_client, client, plain, agents, _programs: programs, bed }
    }

    pub(crate) fn client(&self, road: Road) -> &Pod {
        match road {
            Road::Plain => &self.plain_client,
            Road::L4 | Road::L7 => &self.client,
        }
    }

    pub(crate) fn web(&self, road: Road) -> String {
        match road {
            Road::Plain => self.plain.at(WEB_PORT).to_string(),
            Road::L4 => "10.96.0.20:80".to_owned(),
            Road::L7 => "10.96.0.10:80".to_owned(),
        }
    }

    /// Where bytes vanish; what is not HTTP has no road at layer 7.
    pub(crate) fn sink(&self, road: Road) -> String {
        match road {
            Road::Plain => self.plain.at(SINK_PORT).to_string(),
            Road::L4 | Road::L7 => format!("10.96.0.20:{SINK_PORT}"),
        }
    }

    pub(crate) fn cpu(&self) -> Cpu {
        let stat = self.bed.run().cgroup().join("cpu.stat");
        let text = fs::read_to_string(stat).unwrap_or_default();
        let usec = text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok());
        Cpu {
            all: Duration::from_micros(usec.unwrap_or_default()),
            agents: self.agents.iter().map(|agent| agent.process().cpu_time()).sum(),
        }
    }
}
