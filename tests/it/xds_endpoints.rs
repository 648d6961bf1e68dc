//! Endpoints, and what becomes of live connections, as a control plane changes them.

use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::{
    Agent, Inbound, MeshConfig, Pod, Process, Service, Testbed,
    control_plane::ControlPlane,
    eventually,
    mesh::{SERVER, SERVER_PORT, WEB, WEB_PORT},
};

/// A client on node 1; two pods behind one HTTP service on node 2, the first of which
/// echoes TCP as well.
struct Farm {
    control_plane: ControlPlane,
    resources: Vec<Value>,
    client: Pod,
    pods: [Pod; 2],
    agents: [Agent; 2],
    nginx: [Process; 2],
    _echo: Process,
    _bed: Testbed,
}

impl Farm {
    fn start(name: &str, mode: &str, flags: &[&str]) -> Self {
        let bed = Testbed::two_nodes(name);
        let client = bed.node(1).pod("client").start();
        let pods =
            ["web", "web-2"].map(|name| bed.node(2).pod(name).service_account("web").start());
        let nginx = [0, 1].map(|i| pods[i].runs_nginx(WEB_PORT));
        let echo = pods[0].serves("echo", SERVER_PORT);
        let web = Service::http("web", "10.96.0.10:80")
            .backed_by(&pods[0], WEB_PORT)
            .backed_by(&pods[1], WEB_PORT)
            .by_rds();
        let server = Service::tcp("server", SERVER).backed_by(&pods[0], SERVER_PORT);
        let open = |pod| Inbound::http(pod, WEB_PORT).open();
        let config = MeshConfig::new()
            .service(&web)
            .service(&server)
            .inbound(&open(&pods[0]))
            .inbound(&open(&pods[1]))
            .inbound(&Inbound::tcp(&pods[0], SERVER_PORT).open());
        let control_plane = ControlPlane::start(bed.node(1), &config);
        let uri = control_plane.uri();
        let flags = [&["--xds-server", &uri, "--xds-mode", mode], flags].concat();
        let near = bed.node(1).agent().with_pod(&client).flags(&flags).start_unready();
        let far = bed.node(2).agent().with_pod(&pods[0]).with_pod(&pods[1]).flags(&flags);
        let agents = [near, far.start_unready()];
        agents.iter().for_each(Agent::wait_ready);
        let resources = config.resources();
        Self { control_plane, resources, client, pods, agents, nginx, _echo: echo, _bed: bed }
    }

    fn near(&self) -> &Agent {
        &self.agents[0]
    }

    /// The resource of that type and name.
    fn resource(&mut self, kind: &str, name: &str) -> &mut Value {
        let is = |resource: &&mut Value| {
            resource["@type"].as_str().is_some_and(|url| url.ends_with(kind))
                && (resource["name"] == name || resource["cluster_name"] == name)
        };
        self.resources.iter_mut().find(is).unwrap_or_else(|| panic!("no {kind} {name}"))
    }

    /// The two endpoints of `web`, as the control plane would tell them.
    fn endpoint(&self, index: usize) -> Value {
        let config = Service::http("web", "10.96.0.10:80").backed_by(&self.pods[index], WEB_PORT);
        let resources = MeshConfig::new().service(&config).resources();
        let is_assignment = |r: &&Value| r["cluster_name"] == "web";
        let assignment = resources.iter().find(is_assignment).unwrap();
        assignment["endpoints"][0]["lb_endpoints"][0].clone()
    }

    /// Has the control plane tell `web`'s endpoints so.
    fn assigns(&mut self, localities: Value, policy: Value) {
        let assignment = self.resource("ClusterLoadAssignment", "web");
        assignment["endpoints"] = localities;
        assignment["policy"] = policy;
        self.serves();
    }

    fn serves(&mut self) {
        self.control_plane.serves(self.resources.clone());
    }

    /// Waits until the near agent knows so many endpoints of `web`.
    fn knows(&self, endpoints: usize) {
        eventually(&format!("{endpoints} endpoints are known"), || {
            let dump = self.near().config_dump();
            let known = dump["endpoints"]["web"]["localities"][0]["endpoints"].as_array();
            if known.map(Vec::len) == Some(endpoints) { Ok(()) } else { Err(dump) }
        });
    }

    /// Asks so many times over one connection; how many each pod has answered.
    #[track_caller]
    fn asks(&self, times: usize) -> [usize; 2] {
        let before = self.answered();
        self.client.curl(&format!("{WEB}[1-{times}]")).expect_status(200);
        // nginx writes a line after it has answered.
        eventually("all are answered", || {
            let after = self.answered();
            let counts = [after[0] - before[0], after[1] - before[1]];
            if counts[0] + counts[1] == times { Ok(counts) } else { Err(counts) }
        })
    }

    fn answered(&self) -> [usize; 2] {
        [0, 1].map(|i| self.pods[i].nginx_log(WEB_PORT).lines().count())
    }

    /// Waits until requests are shared so; in tens of forty.
    fn shares(&self, expected: [usize; 2]) {
        eventually(&format!("requests are shared {expected:?}"), || {
            let counts = self.asks(40);
            let near = |i: usize| counts[i].abs_diff(expected[i]) <= 1;
            if near(0) && near(1) { Ok(()) } else { Err(counts) }
        });
    }

    /// Waits for an answer with this status.
    fn answers(&self, status: u16) {
        eventually(&format!("{WEB} answers {status}"), || {
            let response = self.client.curl(WEB).send();
            if response.status() == Some(status) { Ok(()) } else { Err(format!("{response:?}")) }
        });
    }
}

fn with(mut endpoint: Value, health: &str) -> Value {
    endpoint["health_status"] = health.into();
    endpoint
}

fn priorities_and_localities(mode: &str) {
    let mut farm = Farm::start(&format!("endpoints-{mode}"), mode, &[]);
    let (first, second) = (farm.endpoint(0), farm.endpoint(1));
    farm.shares([20, 20]);

    // Failover, and back; what is DRAINING takes nothing new either.
    let priorities = |first: Value| {
        json!([
            { "priority": 0, "lb_endpoints": [first] },
            { "priority": 1, "lb_endpoints": [second] },
        ])
    };
    farm.assigns(priorities(first.clone()), Value::Null);
    farm.shares([40, 0]);
    for health in ["UNHEALTHY", "DRAINING"] {
        farm.assigns(priorities(with(first.clone(), health)), Value::Null);
        farm.shares([0, 40]);
        farm.assigns(priorities(first.clone()), Value::Null);
        farm.shares([40, 0]);
    }

    // Weights of localities count once the cluster says so.
    let locality = |zone: &str, weight: u32, endpoint: &Value| {
        json!({ "locality": { "zone": zone }, "load_balancing_weight": weight,
                "lb_endpoints": [endpoint] })
    };
    farm.assigns(json!([locality("a", 1, &first), locality("b", 3, &second)]), Value::Null);
    farm.shares([20, 20]);
    farm.resource("Cluster", "web")["common_lb_config"] =
        json!({ "locality_weighted_lb_config": {} });
    farm.serves();
    farm.shares([10, 30]);
    // Extensions say the same.
    let cluster = farm.resource("Cluster", "web");
    cluster["common_lb_config"] = Value::Null;
    let policies = "type.googleapis.com/envoy.extensions.load_balancing_policies";
    cluster["load_balancing_policy"] = json!({ "policies": [{ "typed_extension_config": {
        "name": "envoy.load_balancing_policies.round_robin",
        "typed_config": { "@type": format!("{policies}.round_robin.v3.RoundRobin") },
    } }] });
    farm.serves();
    farm.shares([20, 20]);

    // Nobody is left.
    farm.assigns(json!([]), Value::Null);
    farm.answers(503);
    let entry = farm.near().logs_access(&["\"response_code\":503"]);
    assert!(entry["response_flags"].to_string().contains("UH"), "{entry}");
    farm.assigns(json!([{ "lb_endpoints": [first] }]), Value::Null);
    farm.answers(200);
    farm.shares([40, 0]);

    // What is still needed is not let go of, whatever is removed.
    let all = farm.resources.clone();
    let is_web = |r: &Value| r["name"] == "web" || r["cluster_name"] == "web";
    farm.resources.retain(|r| !is_web(r) || r["virtual_hosts"].is_array());
    let accepted = |farm: &Farm| {
        let status = farm.near().status();
        let types = status["xds"]["types"].as_array().cloned().unwrap_or_default();
        types.iter().find(|of| of["kind"] == "clusters").and_then(|of| of["accepted"].as_u64())
    };
    let before = accepted(&farm).unwrap();
    farm.serves();
    eventually("the cluster is no longer told", || {
        let now = accepted(&farm);
        if now == Some(before - 1) { Ok(()) } else { Err(now) }
    });
    farm.shares([40, 0]);
    farm.resources = all;
    farm.serves();
    farm.shares([40, 0]);
    farm.control_plane.expect_no_violations();
}

#[test]
fn priorities_and_localities_hold_by_state_of_the_world() {
    priorities_and_localities("sotw");
}

#[test]
fn priorities_and_localities_hold_by_delta() {
    priorities_and_localities("delta");
}

#[test]
fn overload_is_dropped_as_the_control_plane_says() {
    let mut farm = Farm::start("endpoints-drop", "delta", &[]);
    let localities = json!([{ "lb_endpoints": [farm.endpoint(0)] }]);
    let dropping = |percent: u32| {
        json!({ "drop_overloads": [
            { "category": "shed", "drop_percentage": { "numerator": percent } },
        ] })
    };
    farm.asks(10);
    farm.assigns(localities.clone(), dropping(100));
    farm.answers(503);
    let response = farm.client.curl(WEB).expect_status(503);
    assert_eq!(response.body(), "unconditional drop overload");
    let entry = farm.near().logs_access(&["\"response_code\":503"]);
    assert!(entry["response_flags"].to_string().contains("UDO"), "{entry}");
    let dropped = || farm.near().metrics().sum("mesh_drop_overload_total", &["category=\"shed\""]);
    assert!(dropped() >= 1.0);

    // Opaque connections are reset.
    let server = farm.resource("ClusterLoadAssignment", "server");
    server["policy"] = dropping(100);
    farm.serves();
    eventually("TCP is dropped", || {
        let mut talk = farm.client.connects(SERVER.parse().unwrap());
        talk.half_closes();
        let ended = talk.rest();
        if ended.1 == tests::conversation::end::RESET { Ok(()) } else { Err(ended) }
    });

    farm.assigns(localities, dropping(0));
    farm.answers(200);
    let before = farm.near().metrics().sum("mesh_drop_overload_total", &[]);
    farm.asks(50);
    assert_eq!(farm.near().metrics().sum("mesh_drop_overload_total", &[]), before);
}

#[test]
fn a_removed_listener_drains_and_no_request_fails() {
    let flags = ["--drain-timeout", "10m", "--outbound-policy", "registry-only"];
    let mut farm = Farm::start("endpoints-drain", "sotw", &flags);
    let mut talk = farm.client.connects(SERVER.parse().unwrap());
    talk.echoes("before");
    let mut kept = farm.client.connects("10.96.0.10:80".parse().unwrap());
    let request = "GET /kept HTTP/1.1\r\nhost: web\r\n\r\n";
    kept.says(request).hears("HTTP/1.1 200 OK").hears("hello from");
    const SIZE: u64 = 48 << 20;
    for pod in &farm.pods {
        let file = std::fs::File::create(pod.nginx_directory(WEB_PORT).join("large")).unwrap();
        file.set_len(SIZE).unwrap();
    }
    let mut curl = Command::new("curl");
    let url = format!("{WEB}files/large");
    curl.args(["-sS", "--limit-rate", "12M", "-w", "%{http_code} %{size_download}", "-o"]);
    curl.args(["/dev/null", &url]);
    let download = farm.client.starts("download", curl);
    eventually("the download runs", || {
        let connections = farm.near().connections();
        let moved = |c: &Value| c["bytes_sent"].as_u64().is_some_and(|bytes| bytes > 1 << 20);
        let runs = connections.as_array().is_some_and(|all| all.iter().any(moved));
        if runs { Ok(()) } else { Err(connections) }
    });

    let all = farm.resources.clone();
    farm.resources
        .retain(|r| !r["name"].as_str().is_some_and(|name| name.starts_with("outbound-")));
    farm.serves();
    eventually("new connections are refused", || {
        let response = farm.client.curl(WEB).send();
        if response.status().is_none() { Ok(()) } else { Err(format!("{response:?}")) }
    });
    assert!(download.ended().is_none(), "the download was to be running still");
    // A request on the connection that was kept is served, and told to be the last.
    kept.says(request).hears("HTTP/1.1 200 OK");
    let rest = kept.expect_closed();
    assert!(rest.contains("connection: close") && rest.contains("hello from"), "{rest}");
    talk.echoes("after");
    assert!(download.wait().success());
    assert_eq!(download.log(), format!("200 {SIZE}"));

    farm.resources = all;
    farm.serves();
    farm.answers(200);
    talk.echoes("at last");
}

#[test]
fn at_the_drain_timeout_what_is_left_is_cut() {
    let flags = ["--drain-timeout", "500ms"];
    let mut farm = Farm::start("endpoints-cut", "delta", &flags);
    let mut talk = farm.client.connects(SERVER.parse().unwrap());
    talk.echoes("before");
    let mut idle = farm.client.connects("10.96.0.10:80".parse().unwrap());
    idle.says("GET / HTTP/1.1\r\nhost: web\r\n\r\n").hears("hello from");
    // Of another listener: it is none of its business.
    let mut other = farm.client.connects(farm.pods[0].at(SERVER_PORT));
    other.echoes("other");
    farm.resources
        .retain(|r| !r["name"].as_str().is_some_and(|name| name.starts_with("outbound-")));
    farm.serves();
    talk.expect_cut_off();
    idle.rest();
    let entry = farm.near().logs_access(&["cut at the drain timeout"]);
    assert!(entry["response_flags"].to_string().contains("DT"), "{entry}");
    other.echoes("still there");
}

#[test]
fn endpoints_come_and_go_under_load_without_an_error() {
    let mut farm = Farm::start("endpoints-load", "delta", &[]);
    let (first, second) = (farm.endpoint(0), farm.endpoint(1));
    let both = json!([{ "lb_endpoints": [first, second] }]);
    let one = json!([{ "lb_endpoints": [first] }]);
    let mut load = Command::new(tests::process::peer());
    load.args(["load", "10.96.0.10:80", "web", "4", "8"]);
    let load = farm.client.starts("load", load);
    let mut removed = 0;
    while load.ended().is_none() {
        farm.assigns(one.clone(), Value::Null);
        farm.knows(1);
        removed += 1;
        if removed == 2 {
            // For good: what was asked before the removal is answered, then it ends.
            farm.nginx[1].signal(Signal::SIGQUIT);
            farm.nginx[1].wait();
            break;
        }
        farm.assigns(both.clone(), Value::Null);
        farm.knows(2);
    }
    assert!(load.wait().success(), "{}", load.log());
    let told: Value = serde_json::from_str(load.log().trim()).unwrap();
    assert_eq!(told["errors"], 0, "{told}");
    assert!(told["requests"].as_u64().unwrap() > 0 && removed == 2, "{told}, removed {removed}");
    let unlucky = farm.near().access_log();
    let unlucky: Vec<_> = unlucky.iter().filter(|e| e["response_code"] != 200).collect();
    assert!(unlucky.is_empty(), "{unlucky:#?}");
}
