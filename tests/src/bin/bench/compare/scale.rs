//! What is not a load: memory by pods and by services, idle cost, start, restart and upgrade.

use std::{
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use tests::{Agent, Allow, Inbound, MeshConfig, Pod, Process, Service, Testbed, mesh, pki::Pki};

use super::{
    Options, envoy,
    sample::{Figure, Journal},
};

const PODS: [usize; 4] = [1, 10, 100, 500];
/// Sidecars beyond this many do not fit beside everything else.
const SIDECARS_MAX: usize = 100;
const SERVICES: [usize; 3] = [10, 1_000, 10_000];
/// For hundreds of pods, or thousands of services.
const START_PATIENCE: Duration = Duration::from_secs(300);
/// How long an idle mesh is watched.
const IDLE: Duration = Duration::from_secs(10);
/// For what goes on after a start: the agent gives back what reading its configuration
/// took 10 s after the last change.
const SETTLE: Duration = Duration::from_secs(13);

const AGENT: &str = "mesh";
const SIDECARS: &str = "envoy sidecars";

/// Measures what is not in the journal yet.
pub(crate) fn measure(options: &Options, journal: &mut Journal) {
    println!("── memory, start and restart");
    let (pods, services) = match options.quick {
        true => (&PODS[..1], &SERVICES[..1]),
        false => (&PODS[..], &SERVICES[..]),
    };
    for &count in pods {
        if !journal.has_figure("memory", AGENT, count as u64) {
            of_agent(count, journal);
        }
        if count <= SIDECARS_MAX && !journal.has_figure("memory", SIDECARS, count as u64) {
            of_sidecars(count, journal);
        }
    }
    for &count in services {
        if !journal.has_figure("memory by services", AGENT, count as u64) {
            agent_with_services(count, journal);
        }
        if !journal.has_figure("memory by services", SIDECARS, count as u64) {
            sidecar_with_services(count, journal);
        }
    }
    if !journal.has_figure("requests failed in a restart", AGENT, 1) {
        replaced_under_load("requests failed in a restart", journal, |agent| {
            agent.terminate();
            agent.restart();
        });
    }
    if !journal.has_figure("requests failed in an upgrade", AGENT, 1) {
        replaced_under_load("requests failed in an upgrade", journal, |agent| {
            agent.upgrade().wait();
        });
    }
}

fn figure(figure: &str, lane: &str, at: usize, value: f64, unit: &str) -> Figure {
    let (figure, lane, unit) = (figure.to_owned(), lane.to_owned(), unit.to_owned());
    Figure { figure, lane, at: at as u64, value, unit }
}

fn address(n: usize) -> String {
    format!("10.96.{}.{}:80", 1 + n / 250, 1 + n % 250)
}

fn of_agent(count: usize, journal: &mut Journal) {
    let bed = Testbed::two_nodes("memory");
    let node = bed.node(1);
    let pods: Vec<Pod> = (0..count).map(|n| node.pod(&format!("pod{n}")).start()).collect();
    let mut config = MeshConfig::new();
    for (n, pod) in pods.iter().enumerate() {
        let allow = Allow::policy("first").from(&pods[0]);
        config = config
            .service(&Service::http(pod.name(), &address(n)).backed_by(pod, 80))
            .inbound(&Inbound::http(pod, 80).allow(allow));
    }
    config.write_to(&node.config_dir());
    let agent = node.agent().flags(&["--log", "info", "--access-log", "off"]);
    let start = Instant::now();
    let agent = pods.iter().fold(agent, |agent, pod| agent.with_pod(pod)).start_unready();
    agent.wait_ready_within(START_PATIENCE);
    journal.add_figure(figure("start", AGENT, count, start.elapsed().as_secs_f64(), "s"));
    thread::sleep(SETTLE);
    memory("memory", AGENT, count, &[agent.process()], journal);
    let idle = idle_ms(&[agent.process()]);
    journal.add_figure(figure("idle CPU", AGENT, count, idle, "ms/s"));
    if count == 1 {
        enrolment(&agent, journal);
    }
}

/// How long until a new pod is in the mesh.
fn enrolment(agent: &Agent, journal: &mut Journal) {
    let mut times: Vec<f64> = (0..7)
        .map(|n| {
            let pod = agent.node().pod(&format!("late{n}")).start();
            let start = Instant::now();
            agent.enroll(&pod).expect_success();
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    journal.add_figure(figure("enrolment", AGENT, 1, times[times.len() / 2], "ms"));
}

fn of_sidecars(count: usize, journal: &mut Journal) {
    let bed = Testbed::two_nodes("memory");
    let node = bed.node(1);
    let trust = Pki::foreign();
    let pods: Vec<Pod> = (0..count).map(|n| node.pod(&format!("pod{n}")).start()).collect();
    let start = Instant::now();
    let sidecars: Vec<Process> = pods.iter().map(|pod| envoy::sidecar(&trust, pod, 1)).collect();
    journal.add_figure(figure("start", SIDECARS, count, start.elapsed().as_secs_f64(), "s"));
    thread::sleep(SETTLE);
    let sidecars: Vec<&Process> = sidecars.iter().collect();
    memory("memory", SIDECARS, count, &sidecars, journal);
    let idle = idle_ms(&sidecars);
    journal.add_figure(figure("idle CPU", SIDECARS, count, idle, "ms/s"));
}

fn agent_with_services(count: usize, journal: &mut Journal) {
    let bed = Testbed::two_nodes("services");
    let (node, elsewhere) = (bed.node(1), bed.node(2).pod("server").start());
    let pod = node.pod("client").start();
    let config = (0..count).fold(MeshConfig::new(), |config, n| {
        config
            .service(&Service::http(&format!("service-{n}"), &address(n)).backed_by(&elsewhere, 80))
    });
    config.write_in_pieces_to(&node.config_dir());
    let start = Instant::now();
    let agent = node
        .agent()
        .flags(&["--log", "info", "--access-log", "off"])
        .with_pod(&pod)
        .start_unready();
    agent.wait_ready_within(START_PATIENCE);
    let took = start.elapsed().as_secs_f64();
    journal.add_figure(figure("start by services", AGENT, count, took, "s"));
    thread::sleep(SETTLE);
    memory("memory by services", AGENT, count, &[agent.process()], journal);
}

fn sidecar_with_services(count: usize, journal: &mut Journal) {
    let bed = Testbed::two_nodes("services");
    let pod = bed.node(1).pod("client").start();
    let start = Instant::now();
    let sidecar = envoy::sidecar(&Pki::foreign(), &pod, count);
    let took = start.elapsed().as_secs_f64();
    journal.add_figure(figure("start by services", SIDECARS, count, took, "s"));
    thread::sleep(SETTLE);
    memory("memory by services", SIDECARS, count, &[&sidecar], journal);
}

/// The server's agent, and then the client's, is replaced while requests come at a fixed rate.
fn replaced_under_load(what: &str, journal: &mut Journal, replace: impl Fn(&mut Agent)) {
    let mut mesh = mesh::web_and_client("replaced");
    let mut command = Command::new(tests::process::peer());
    command.args(["drive", "http1", "10.96.0.10:80", "--connections", "16"]);
    command.args(["--rate", "400", "--seconds", "16", "--host", "web"]);
    let load = mesh.client.starts("drive", command);
    for agent in mesh.agents.iter_mut().rev() {
        thread::sleep(Duration::from_secs(2));
        replace(agent);
    }
    load.wait();
    let log = load.log();
    let line = log.lines().rev().find(|line| line.starts_with('{')).unwrap_or("{}");
    let told: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
    let failed = told["errors"].as_f64().unwrap_or(f64::NAN);
    journal.add_figure(figure(what, AGENT, 1, failed, "of 6400"));
}

/// CPU time that idle processes use, in milliseconds a second.
fn idle_ms(processes: &[&Process]) -> f64 {
    let used = || processes.iter().map(|process| process.cpu_time()).sum::<Duration>();
    let before = used();
    thread::sleep(IDLE);
    (used() - before).as_secs_f64() * 1e3 / IDLE.as_secs_f64()
}

/// What the processes hold for themselves, and beside it what is in memory of the files they
/// run, which the kernel can drop and which sidecars share.
fn memory(of: &str, lane: &str, at: usize, processes: &[&Process], journal: &mut Journal) {
    for (name, field) in [(of.to_owned(), "Pss_Anon:"), (format!("{of}: programs"), "Pss_File:")] {
        let kib: u64 = processes.iter().map(|process| rollup(process, field)).sum();
        // Memory in KiB is far below 2^52.
        journal.add_figure(figure(&name, lane, at, kib as f64 / 1024.0, "MiB"));
    }
}

/// A field of `smaps_rollup`, in KiB.
fn rollup(process: &Process, field: &str) -> u64 {
    let file = format!("/proc/{}/smaps_rollup", process.pid());
    let text = fs::read_to_string(&file).expect("read smaps_rollup");
    let value = text.lines().find_map(|line| line.strip_prefix(field));
    let value = value.and_then(|value| value.trim().strip_suffix(" kB")?.parse().ok());
    value.unwrap_or_else(|| panic!("{file} has no {field}"))
}
