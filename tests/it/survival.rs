//! Connections of the kernel path, while their node's agent dies and comes back again and
//! again.

use std::{
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use tests::{
    Agent, Allow, Inbound, MeshConfig, Pod, Process, Service, Testbed,
    conversation::{Conversation, end},
    eventually,
    mesh::{SERVER, SERVER_PORT},
    process::peer,
};

const ROUNDS: usize = 20;
/// A service that the client may use in every other round only.
const FLEETING: &str = "10.96.0.21:9001";
const FLEETING_PORT: u16 = 9001;

fn config(client: &Pod, server: &Pod, fleeting: bool) -> MeshConfig {
    let allow = |pod| Allow::policy("may-talk").from(pod);
    MeshConfig::new()
        .service(&Service::tcp("server", SERVER).backed_by(server, SERVER_PORT))
        .inbound(&Inbound::tcp(server, SERVER_PORT).allow(allow(client)))
        .service(&Service::tcp("fleeting", FLEETING).backed_by(server, FLEETING_PORT))
        .inbound(&Inbound::tcp(server, FLEETING_PORT).allow(allow(if fleeting {
            client
        } else {
            server
        })))
}

fn has_services(agent: &Agent, expected: u64) {
    eventually(&format!("{expected} services are on the kernel path"), || {
        let status = agent.status();
        let services = status["kernel_path"]["services"].as_u64();
        if services == Some(expected) { Ok(()) } else { Err(status) }
    });
}

fn vouched(agent: &Agent) -> f64 {
    agent.metrics().sum("mesh_bpf_verdicts_total", &["verdict=\"authorized\""])
}

/// Half a gigabyte, checked, over the kernel path: it lives through a death or more. It is
/// open when this returns.
fn starts_bulk(client: &Pod, number: usize) -> Process {
    let mut command = Command::new(peer());
    command.args(["echoed", SERVER, "500000000", "1"]);
    let process = client.starts(&format!("bulk-{number}"), command);
    eventually("the bulk transfer is open", || {
        let log = process.log();
        if log.contains("open") { Ok(()) } else { Err(log) }
    });
    process
}

#[test]
fn twenty_deaths_of_the_agent_cost_no_established_connection_and_open_nothing() {
    let bed = Testbed::two_nodes("survival");
    let node = bed.node(1);
    let (client, server) = (node.pod("client").start(), node.pod("server").start());
    let outsider = node.pod("outsider").start();
    let _echoes = [SERVER_PORT, FLEETING_PORT].map(|port| server.serves("echo", port));
    config(&client, &server, true).write_to(&node.config_dir());
    let mut agent = node.agent().with_pod(&client).with_pod(&server).start();
    has_services(&agent, 2);
    let dial = |address: &str| client.connects(address.parse().unwrap());

    // One that talks in every round, one that is silent until the end.
    let mut talking: Vec<Conversation> = vec![dial(SERVER), dial(FLEETING)];
    for talk in &mut talking {
        talk.echoes("hello");
    }
    let mut silent = dial(SERVER);
    silent.echoes("hello");
    let over = AtomicBool::new(false);
    let short = AtomicUsize::new(0);
    let mut long = starts_bulk(&client, 0);
    let mut whole = 0;

    thread::scope(|scope| {
        // Others come all the time. Some meet a pod that is not taken over yet, or go through
        // an agent that dies: they may fail, and not end as if they had not.
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let ran = client.run_peer(&["echoed", SERVER, "20000", "1"]);
                short.fetch_add(usize::from(ran.code() == Some(0)), Ordering::Relaxed);
            }
        });
        let stop = Stop(&over);
        for round in 0..ROUNDS {
            // By a crash, and as for an upgrade.
            if round % 3 == 2 {
                _ = agent.terminate()
            } else {
                agent.kill_9()
            }
            for talk in &mut talking {
                talk.echoes(&format!("round {round}, nobody there"));
            }
            dial(SERVER).expect_refused();
            outsider.connects(server.at(SERVER_PORT)).expect_cut_off();
            // What the client might do until now is known to the maps only.
            let fleeting = round % 2 == 1;
            config(&client, &server, fleeting).write_to(&node.config_dir());
            agent.restart();
            has_services(&agent, if fleeting { 2 } else { 1 });
            talking[0].echoes(&format!("round {round}, somebody there"));
            let before = vouched(&agent);
            dial(SERVER).echoes("new");
            assert!(vouched(&agent) > before, "{}", agent.metrics().text());
            if fleeting {
                let mut talk = dial(FLEETING);
                talk.echoes("hello");
                talking.push(talk);
            } else {
                // It ends with the permission: not sooner.
                let mut ended = talking.pop().expect("one over the fleeting service");
                assert_eq!(ended.rest().1, end::RESET);
            }
            outsider.connects(server.at(SERVER_PORT)).expect_cut_off();
            if let Some(status) = long.ended() {
                assert!(status.success(), "round {round}: {}", long.log());
                whole += 1;
                long = starts_bulk(&client, whole);
            }
        }
        drop(stop);
    });
    assert!(long.wait().success(), "{}", long.log());
    let short = short.into_inner();
    assert!(short > ROUNDS, "{short} short transfers and {whole} long ones only");
    silent.echoes("still there").half_closes();
    assert_eq!(silent.expect_closed(), "");
    drop(talking);
    eventually("nothing is left behind", || {
        let live = agent.connections();
        if live.as_array().is_some_and(Vec::is_empty) { Ok(()) } else { Err(live) }
    });
}

/// Ends the loop of the other thread, also when this one panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(1));
    }
}
