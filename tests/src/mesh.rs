//! Whole meshes that many tests and the demo start from.

use crate::{Agent, Allow, Inbound, MeshConfig, Pod, Process, Service, Testbed};

/// Where [`web_and_client`]'s service is.
pub const WEB: &str = "http://10.96.0.10/";
/// The same over IPv6.
pub const WEB6: &str = "http://[fd00:96::10]/";
/// Where [`server_and_client`]'s service is.
pub const SERVER: &str = "10.96.0.20:9000";
/// The same over IPv6.
pub const SERVER6: &str = "[fd00:96::20]:9000";
/// The port of nginx in [`web_and_client`].
pub const WEB_PORT: u16 = 8080;
/// The port of the server in [`server_and_client`].
pub const SERVER_PORT: u16 = 9000;

/// A client on node 1, a server on node 2, an agent on each, everything enrolled.
#[derive(Debug)]
pub struct Mesh {
    /// On node 1.
    pub client: Pod,
    /// On node 2.
    pub server: Pod,
    /// What both agents were given.
    pub config: MeshConfig,
    /// Of node 1 and node 2.
    pub agents: [Agent; 2],
    /// What runs in the server pod.
    pub program: Process,
    /// Dropped last: it removes the rest.
    pub bed: Testbed,
}

/// The demo's mesh: curl's pod, and nginx behind [`WEB`]; policy lets the client read
/// (`GET`, `HEAD`) and nothing else.
pub fn web_and_client(name: &str) -> Mesh {
    let bed = Testbed::two_nodes(name);
    let (client, server) = (bed.node(1).pod("client").start(), bed.node(2).pod("web").start());
    let program = server.runs_nginx(WEB_PORT);
    let config = web_config(&client, &server);
    Mesh::start(bed, client, server, program, config)
}

/// The configuration of [`web_and_client`].
pub fn web_config(client: &Pod, web: &Pod) -> MeshConfig {
    let reads = Allow::policy("client-may-read").from(client).methods(&["GET", "HEAD"]);
    MeshConfig::new()
        .service(
            &Service::http("web", "10.96.0.10:80").at("[fd00:96::10]:80").backed_by(web, WEB_PORT),
        )
        .inbound(&Inbound::http(web, WEB_PORT).allow(reads))
}

/// An opaque TCP service at [`SERVER`]: `peer KIND` (see its help) that only the
/// client's identity may reach.
pub fn server_and_client(name: &str, kind: &str) -> Mesh {
    let bed = Testbed::two_nodes(name);
    let (client, server) = (bed.node(1).pod("client").start(), bed.node(2).pod("server").start());
    let program = server.serves(kind, SERVER_PORT);
    let config = server_config(&client, &server);
    Mesh::start(bed, client, server, program, config)
}

/// The configuration of [`server_and_client`].
pub fn server_config(client: &Pod, server: &Pod) -> MeshConfig {
    MeshConfig::new()
        .service(&Service::tcp("server", SERVER).at(SERVER6).backed_by(server, SERVER_PORT))
        .inbound(
            &Inbound::tcp(server, SERVER_PORT).allow(Allow::policy("client-may-talk").from(client)),
        )
}

impl Mesh {
    /// Writes `config` for both nodes and starts their agents with the pods enrolled.
    pub fn start(
        bed: Testbed,
        client: Pod,
        server: Pod,
        program: Process,
        config: MeshConfig,
    ) -> Self {
        let agents = [(1, &client), (2, &server)].map(|(number, pod)| {
            config.write_to(&bed.node(number).config_dir());
            bed.node(number).agent().with_pod(pod).start_unready()
        });
        agents.iter().for_each(Agent::wait_ready);
        Self { client, server, config, agents, program, bed }
    }

    /// The agent of the client's node.
    pub fn near(&self) -> &Agent {
        &self.agents[0]
    }

    /// The agent of the server's node.
    pub fn far(&self) -> &Agent {
        &self.agents[1]
    }

    /// Another pod on the client's node, enrolled while everything runs.
    pub fn enrolled_pod(&self, name: &str) -> Pod {
        let pod = self.bed.node(1).pod(name).start();
        self.near().enroll(&pod);
        pod
    }

    /// A pod on the client's node that the mesh knows nothing of.
    pub fn plain_pod(&self, name: &str) -> Pod {
        self.bed.node(1).pod(name).start()
    }

    /// Puts another configuration in force on both nodes.
    pub fn reconfigure(&mut self, config: MeshConfig) {
        for agent in &self.agents {
            agent.configure(&config);
        }
        self.config = config;
    }
}
