//! How much memory of its own an agent has, idle.

use std::{fs, time::Duration};

use tests::{Allow, Inbound, MeshConfig, Pod, Process, Service, Testbed};

const PODS: [usize; 2] = [1, 100];

/// Measures and prints.
pub(crate) fn show() {
    println!("── private memory of an idle agent");
    for pods in PODS {
        let [peak, kib] = of_agent_with(pods);
        println!(
            "  {pods:>3} pods {:>8.1} MiB   (at most {:.1} MiB resident)",
            mib(kib),
            mib(peak)
        );
    }
}

fn of_agent_with(count: usize) -> [u64; 2] {
    let bed = Testbed::two_nodes("memory");
    let node = bed.node(1);
    let pods: Vec<Pod> = (0..count).map(|n| node.pod(&format!("pod{n}")).start()).collect();
    let mut config = MeshConfig::new();
    for (n, pod) in pods.iter().enumerate() {
        let allow = Allow::policy("first").from(&pods[0]);
        config = config
            .service(
                &Service::http(pod.name(), &format!("10.96.1.{}:80", n + 1)).backed_by(pod, 80),
            )
            .inbound(&Inbound::http(pod, 80).allow(allow));
    }
    config.write_to(&node.config_dir());
    let agent = node.agent().flags(&["--log", "info"]);
    let agent = pods.iter().fold(agent, |agent, pod| agent.with_pod(pod)).start();
    std::thread::sleep(Duration::from_secs(16));
    [peak(agent.process()), private(agent.process())]
}

/// `Private_Clean + Private_Dirty`, in KiB.
fn private(process: &Process) -> u64 {
    read(process, "smaps_rollup", &["Private_Clean:", "Private_Dirty:"])
}

fn peak(process: &Process) -> u64 {
    read(process, "status", &["VmHWM:"])
}

fn read(process: &Process, file: &str, names: &[&str]) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/{file}", process.pid())).unwrap_or_default();
    let value = |line: &str| {
        let value = names.iter().find_map(|name| line.strip_prefix(name))?;
        value.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    text.lines().filter_map(value).sum()
}

fn mib(kib: u64) -> f64 {
    // Memory in KiB is far below 2^52.
    kib as f64 / 1024.0
}
