//! Every lane at once, between two nodes: what is idle costs nothing that can be seen.

use std::{collections::BTreeMap, fs, net::SocketAddr, time::Duration};

use tests::{
    Agent, Allow, Inbound, MeshConfig, Pod, Process, Service, Testbed, eventually, pki::Pki,
};

use super::{
    Options, envoy,
    lane::{Contender, Lane, Place, Settings, lane_name},
    machine::Ticks,
    origin,
    plugin::Plugin,
    running::Program,
    sample::Sample,
    workload::{Port, Workload},
};

/// What runs while it is measured.
#[derive(Debug)]
pub(crate) struct Bed {
    settings: Settings,
    lanes: Vec<Lane>,
    plugins: Vec<(Plugin, Pod, Pod)>,
    /// Plug-ins that did not start: lanes, and why.
    failed: Vec<(String, String)>,
    agents: Vec<Agent>,
    origins: Vec<Process>,
    bed: Testbed,
}

/// A pod of each side, made for one lane.
struct Pair {
    name: String,
    contender: Option<Contender>,
    place: Place,
    client: Pod,
    server: Pod,
}

impl Bed {
    pub(crate) fn start(options: &Options) -> Self {
        let bed = Testbed::two_nodes("bench");
        let mut origins = Vec::new();
        let mut pair = |contender: Option<Contender>, name: &str, place: Place| {
            let name = lane_name(name, place);
            let on = |yes: bool| if yes { "on" } else { "off" };
            let redirect = on(contender.is_some_and(Contender::redirects));
            let splice = on(contender.is_some_and(Contender::splices));
            let pod = |node: u8, side: &str| {
                let pod = bed.node(node).pod(&format!("{}-{side}", name.replace('/', "-")));
                match options.settings() {
                    Settings::Equal => pod.redirect_peer(redirect).splice(splice).start(),
                    Settings::AsShipped => pod.start(),
                }
            };
            let (client, server) = (pod(1, "c"), pod(place.server_node(), "s"));
            origins.extend(origin::start(&server));
            Pair { name, contender, place, client, server }
        };
        let mut pairs: Vec<Pair> = Vec::new();
        for place in Place::ALL {
            for contender in Contender::ALL {
                let there = contender.is_in(place)
                    && (options.settings() == Settings::Equal || contender.is_as_shipped())
                    && (contender != Contender::HaProxy || envoy::has_haproxy());
                if there && wanted(options, contender, place) {
                    pairs.push(pair(Some(contender), contender.name(), place));
                }
            }
        }
        let plugins = options.wanted_plugins().expect("they were there before");
        let foreign: Vec<(Plugin, Pair)> = plugins
            .into_iter()
            .map(|plugin| {
                let pair = pair(None, &plugin.name, Place::Across);
                (plugin, pair)
            })
            .collect();
        let agents = agents(&bed, options.settings(), &pairs);
        let mut lanes: Vec<Lane> =
            pairs.into_iter().map(|pair| lane(options.settings(), &pair)).collect();
        let (mut plugins, mut failed) = (Vec::new(), Vec::new());
        for (plugin, Pair { name, client, server, .. }) in foreign {
            match plugin.up(&client, &server) {
                Ok(targets) => {
                    let (client, proxies) = (client.clone(), Vec::new());
                    lanes.push(Lane { name, client, targets, proxies, by_agents: false });
                }
                Err(why) => failed.push((name, why)),
            }
            plugins.push((plugin, client, server));
        }
        Self { settings: options.settings(), lanes, plugins, failed, agents, origins, bed }
    }

    pub(crate) fn settings(&self) -> Settings {
        self.settings
    }

    /// Lanes that are not there, and why.
    pub(crate) fn failed(&self) -> &[(String, String)] {
        &self.failed
    }

    pub(crate) fn lanes(&self) -> &[Lane] {
        &self.lanes
    }

    /// What runs; of the origins, which are alike, those of one lane.
    pub(crate) fn programs(&self) -> Vec<Program> {
        let origins = self.origins.iter().take(origin::PROGRAMS).map(|o| Program::of("origin", o));
        let agents = self.agents.iter().map(|agent| Program::of("agent", agent.process()));
        let proxies = self
            .lanes
            .iter()
            .flat_map(|lane| lane.proxies.iter().map(|proxy| Program::of(&lane.name, proxy)));
        origins.chain(agents).chain(proxies).collect()
    }

    /// Ends what others have started.
    pub(crate) fn stop(self) {
        for (plugin, client, server) in &self.plugins {
            if let Err(why) = plugin.down(client, server) {
                eprintln!("{why}");
            }
        }
    }

    /// Drives `load` through `lane`.
    ///
    /// # Errors
    /// What the load's program said, where it failed.
    pub(crate) fn sample(
        &self,
        lane: &Lane,
        load: &Workload,
        round: u32,
        seconds: f64,
    ) -> Result<Sample, String> {
        let address = lane.targets[&load.port].to_string();
        let seconds = seconds.to_string();
        let [kind, rest @ ..] = load.arguments else { panic!("{} has no kind", load.name) };
        let arguments = [&["drive", kind, &address, "--seconds", &seconds], rest].concat();
        let (bed, mesh, ticks) = (self.cpu(), self.mesh_cpu(lane), Ticks::now());
        let ran = lane.client.run_peer(&arguments);
        if ran.code() != Some(0) {
            return Err(format!("the load's program failed: {}", ran.stderr()));
        }
        let result = ran.json();
        let now = Ticks::now();
        let bed_cpu = self.cpu().saturating_sub(bed);
        let mesh_cpu = self.mesh_cpu(lane).saturating_sub(mesh);
        let whole = number(&result, "seconds");
        // A tick is 10 ms on every architecture Linux still has.
        let machine_us = now.busy.saturating_sub(ticks.busy) as f64 * 1e4;
        let capacity_us = now.all.saturating_sub(ticks.all) as f64 * 1e4;
        let bed_cpu_us = bed_cpu.as_secs_f64() * 1e6;
        Ok(Sample {
            settings: self.settings,
            lane: lane.name.clone(),
            load: load.name.to_owned(),
            round,
            attempt: 1,
            disturbed: false,
            seconds: whole,
            requests: result["requests"].as_u64().unwrap_or_default(),
            errors: result["errors"].as_u64().unwrap_or_default(),
            error: result["error"].as_str().map(str::to_owned),
            bytes: result["bytes"].as_u64().unwrap_or_default(),
            latency_us: serde_json::from_value(result["latency_us"].clone()).unwrap_or_default(),
            bed_cpu_us,
            mesh_cpu_us: mesh_cpu.as_secs_f64() * 1e6,
            machine_cpu_us: machine_us,
            foreign: ((machine_us - bed_cpu_us) / capacity_us.max(1.0)).max(0.0),
        })
    }

    /// CPU time of everything in the bed, kernel included.
    fn cpu(&self) -> Duration {
        let stat = self.bed.run().cgroup().join("cpu.stat");
        let text = fs::read_to_string(stat).unwrap_or_default();
        let usec = text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok());
        Duration::from_micros(usec.unwrap_or_default())
    }

    fn mesh_cpu(&self, lane: &Lane) -> Duration {
        let agents = self.agents.iter().filter(|_| lane.by_agents).map(Agent::process);
        agents.chain(&lane.proxies).map(Process::cpu_time).sum()
    }
}

fn wanted(options: &Options, contender: Contender, place: Place) -> bool {
    let name = lane_name(contender.name(), place);
    // Ratios are to it.
    let reference = || contender == Contender::NoMesh && options.any_lane_in(place);
    let named = options.lanes.is_empty()
        || options.lanes.iter().any(|part| name.contains(&**part))
        || reference();
    named && (contender.is_quick(place) || !options.quick || !options.lanes.is_empty())
}

fn number(result: &serde_json::Value, key: &str) -> f64 {
    result[key].as_f64().unwrap_or(f64::NAN)
}

/// The address of a lane's services; one for each lane.
fn service(pair: &Pair) -> String {
    let contender = pair.contender.map_or(0, |contender| contender as u8);
    format!("10.96.{}.{}", pair.place.server_node(), 10 + contender)
}

fn agents(bed: &Testbed, settings: Settings, pairs: &[Pair]) -> Vec<Agent> {
    let ours = || pairs.iter().filter(|p| p.contender.is_some_and(Contender::is_mesh));
    if ours().next().is_none() {
        return Vec::new();
    }
    let config = ours().fold(MeshConfig::new(), configure);
    let mut flags = vec!["--log", "info"];
    if settings == Settings::Equal {
        flags.extend(["--access-log", "off"]);
    }
    let agents: Vec<Agent> = [1, 2]
        .map(|number| {
            let node = bed.node(number);
            config.write_to(&node.config_dir());
            let pods = ours()
                .flat_map(|pair| [(1, &pair.client), (pair.place.server_node(), &pair.server)]);
            let here = pods.filter(|(node, _)| *node == number).map(|(_, pod)| pod);
            here.fold(node.agent().flags(&flags), |agent, pod| agent.with_pod(pod)).start_unready()
        })
        .into();
    agents.iter().for_each(Agent::wait_ready);
    let by_kernel = |pair: &&Pair| {
        pair.place == Place::Same && pair.contender.is_some_and(Contender::by_kernel)
    };
    let kernel = ours().filter(by_kernel).count();
    eventually("the services are on the kernel path", || {
        let status = agents[0].status();
        let there = status["kernel_path"]["services"].as_u64().unwrap_or_default();
        if there >= (kernel * Port::ALL.len()) as u64 { Ok(()) } else { Err(status) }
    });
    agents
}

fn configure(config: MeshConfig, pair: &Pair) -> MeshConfig {
    let Pair { client, server, contender, .. } = pair;
    let l7 = contender.is_some_and(Contender::is_l7);
    let allow = || Allow::policy("client").from(client);
    Port::ALL.into_iter().filter(|port| !l7 || port.is_http()).fold(config, |config, port| {
        let name = format!("{}-{}", pair.name, port.key());
        let address = format!("{}:{}", service(pair), port.number());
        let service = match l7 {
            true => Service::http(&name, &address),
            false => Service::tcp(&name, &address),
        };
        let service = match contender {
            // The kernel path leaves short idle timeouts to the agent.
            Some(Contender::Proxied | Contender::ProxiedSplice) => service.idle_timeout("9s"),
            _ => service,
        };
        let service = match port {
            Port::Http2 | Port::Grpc if l7 => service.speaks_http2(),
            _ => service,
        };
        let inbound = match (l7, port) {
            (true, Port::Http2 | Port::Grpc) => Inbound::http2(server, port.number()),
            (true, _) => Inbound::http(server, port.number()),
            (false, _) => Inbound::tcp(server, port.number()),
        };
        config.service(&service.backed_by(server, port.number())).inbound(&inbound.allow(allow()))
    })
}

fn lane(settings: Settings, pair: &Pair) -> Lane {
    let Pair { name, contender, client, server, .. } = pair;
    let contender = contender.expect("plug-ins make their lanes themselves");
    let direct = || -> BTreeMap<Port, SocketAddr> {
        Port::ALL.into_iter().map(|port| (port, server.at(port.number()))).collect()
    };
    // The sidecars have an authority of their own.
    let trust = Pki::foreign;
    let pods = (client, server);
    let (proxies, mut targets) = match contender {
        Contender::NoMesh => (Vec::new(), direct()),
        Contender::EnvoyHttp => envoy::pair(envoy::Mode::Http, settings, &trust(), pods),
        Contender::EnvoyTcp => envoy::pair(envoy::Mode::Tcp, settings, &trust(), pods),
        Contender::HaProxy => envoy::haproxy(client, server),
        _ => {
            let address = |port: Port| format!("{}:{}", service(pair), port.number());
            let parsed = |port| (port, address(port).parse().expect("an address"));
            (Vec::new(), Port::ALL.into_iter().map(parsed).collect())
        }
    };
    targets.retain(|port, _| contender.carries(*port));
    let by_agents = contender.is_mesh();
    Lane { name: name.clone(), client: client.clone(), targets, proxies, by_agents }
}

/// What is told of the contenders' settings: of what, and how it is.
pub(crate) fn settings_told(settings: Settings) -> &'static [(&'static str, &'static str)] {
    match settings {
        Settings::Equal => &[
            (
                "TLS",
                "1.3, X25519MLKEM768, AES-128-GCM, P-256 certificates of one authority, exact \
                 SPIFFE ID on both sides; none where a connection stays in the kernel or within \
                 one agent, see there, while Envoy's pair has it on one node as well",
            ),
            (
                "new connections",
                "envoy-tcp opens TLS for each; the agents carry them as streams of connections \
                 that they keep to each other, which is what the architecture is for",
            ),
            ("access logs", "none"),
            ("threads", "one for each CPU, of each Envoy, HAProxy and agent"),
            ("envoy-http", "two sidecars, HTTP connection managers, RBAC on the server's side"),
            ("envoy-tcp", "two sidecars, tcp_proxy, RBAC on the server's side"),
            (
                "haproxy",
                "one HTTP hop in the clear, without TLS or policy: what a hop costs at least",
            ),
            ("mesh-l7", "each request judged and routed by the agents of both nodes"),
            (
                "mesh-l7-redirect",
                "mesh-l7 with redirect_peer on: within the agent of one node, without TLS",
            ),
            (
                "mesh-l4",
                "connections judged; on one node the kernel path, without TLS, redirect_peer and \
                 splice off",
            ),
            ("mesh-l4-redirect", "mesh-l4 with redirect_peer on: on one node, without TLS"),
            (
                "mesh-l4-splice",
                "mesh-l4 with splice on, which auto leaves off on this kernel; no TLS on one node",
            ),
            ("mesh-l4-proxied", "an idle timeout keeps it from the kernel path: by the agent"),
            ("…-splice", "splice on between the applications and the agents, as well"),
        ],
        Settings::AsShipped => &[
            ("all", "nothing is set that makes no part of the task; the same certificates"),
            (
                "envoy-http, envoy-tcp",
                "Envoy's own TLS: a client offers 1.2 at most and X25519 or P-256, no \
                 X25519MLKEM768; no access log; a worker for each CPU",
            ),
            ("haproxy", "as above: its defaults have no access log and a thread for each CPU"),
            (
                "mesh-l7, mesh-l4",
                "TLS 1.3 with X25519MLKEM768; the access log as JSON, a line for each request or \
                 connection; redirect_peer and splice by auto, as the kernel and the node allow; \
                 on one node mesh-l4 has no TLS, nor mesh-l7 where redirect_peer is on",
            ),
            ("left out", "lanes that are a setting: …-redirect, …-splice, mesh-l4-proxied"),
        ],
    }
}
