//! An agent is followed by another one beside it: nobody is refused, and nothing is cut.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use socket2::{Domain, SockAddr, Socket, Type};
use tests::{
    Allow, Inbound, MeshConfig, Pod, Process, Service, Testbed,
    conversation::end,
    eventually_within,
    mesh::{self, SERVER, SERVER_PORT, WEB_PORT},
};

const ROUNDS: usize = 3;
/// The other way across the wire.
const FAR: &str = "10.96.0.21:9001";
const FAR_PORT: u16 = 9001;

/// Those of node 1 reach `far`, those of node 2 and of node 1 reach `server`.
fn config(near: &Pod, server: &Pod, far: &Pod, allowed: bool) -> MeshConfig {
    let mut may = Allow::policy("may-talk").from(near);
    if allowed {
        may = may.from(far);
    }
    MeshConfig::new()
        .service(&Service::tcp("server", SERVER).backed_by(server, SERVER_PORT))
        .inbound(&Inbound::tcp(server, SERVER_PORT).allow(may))
        .service(&Service::tcp("far", FAR).backed_by(far, FAR_PORT))
        .inbound(&Inbound::tcp(far, FAR_PORT).allow(Allow::policy("may-talk-far").from(near)))
}

fn ends_well(old: &Process) {
    let status = eventually_within(Duration::from_secs(60), "the old agent ends", || {
        old.ended().ok_or_else(|| old.log())
    });
    assert!(status.success(), "{status}");
}

/// On connections that clients keep, and with pooled ones between the nodes.
#[test]
fn upgrades_under_load_lose_no_request() {
    let mut mesh = mesh::web_and_client("hand-over-http");
    let same = mesh.bed.node(2).pod("same").start();
    mesh.agents[1].enroll(&same).expect_success();
    let reads = Allow::policy("both").from(&mesh.client).from(&same).methods(&["GET"]);
    let config = MeshConfig::new()
        .service(&Service::http("web", "10.96.0.10:80").backed_by(&mesh.server, WEB_PORT))
        .inbound(&Inbound::http(&mesh.server, WEB_PORT).allow(reads));
    mesh.agents.iter().for_each(|agent| agent.configure(&config));
    let agents = &mut mesh.agents;
    let client = &mesh.client;
    let loads = ["http1", "http2"].into_iter().flat_map(|kind| [(kind, client), (kind, &same)]);
    let loads: Vec<_> = loads
        .map(|(kind, pod)| {
            let mut command = std::process::Command::new(tests::process::peer());
            command.args(["drive", kind, "10.96.0.10:80", "--connections", "4", "--host", "web"]);
            command.args(["--rate", "50", "--seconds", "20"]);
            pod.starts(&format!("drive-{kind}"), command)
        })
        .collect();
    let mut old = Vec::new();
    for agent in agents.iter_mut().rev() {
        thread::sleep(Duration::from_secs(1));
        old.push(agent.upgrade());
    }
    for load in &loads {
        load.wait();
        let log = load.log();
        let told = log.lines().rev().find(|line| line.starts_with('{')).unwrap_or("{}");
        let told: serde_json::Value = serde_json::from_str(told).unwrap();
        assert_eq!(told["errors"], 0, "{log}");
        assert!(told["requests"].as_u64() > Some(100), "{log}");
    }
    old.iter().for_each(ends_well);
}

#[test]
fn upgrades_under_load_refuse_and_cut_nobody() {
    let bed = Testbed::two_nodes("hand-over");
    let (node, other) = (bed.node(1), bed.node(2));
    let (near, server) = (node.pod("near").start(), node.pod("server").start());
    let far = other.pod("far").start();
    let _echoes = [server.serves("echo", SERVER_PORT), far.serves("echo", FAR_PORT)];
    let write = |allowed| {
        let config = config(&near, &server, &far, allowed);
        config.write_to(&node.config_dir());
        config.write_to(&other.config_dir());
    };
    write(true);
    let long = ["--drain-timeout", "1h"];
    let mut agent = node.agent().with_pod(&near).with_pod(&server).flags(&long).start();
    let _other = other.agent().with_pod(&far).start();
    let wire = bed.wire().capture();

    let roads = [(&near, SERVER), (&near, FAR), (&far, SERVER)];
    let mut talks: Vec<_> =
        roads.iter().map(|(pod, to)| pod.connects(to.parse().unwrap())).collect();
    for talk in &mut talks {
        talk.echoes("hello");
    }
    let over = AtomicBool::new(false);
    let made = roads.map(|_| AtomicUsize::new(0));
    let mut old = Vec::new();
    thread::scope(|scope| {
        for ((pod, to), made) in roads.iter().zip(&made) {
            let over = &over;
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    pod.run_peer(&["echoed", to, "20000", "1"]).expect_success();
                    made.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let stop = Stop(&over);
        for round in 0..ROUNDS {
            let before = made.each_ref().map(|made| made.load(Ordering::Relaxed));
            old.push(agent.upgrade());
            for talk in &mut talks {
                talk.echoes(&format!("round {round}"));
            }
            eventually_within(Duration::from_secs(60), "new ones come by every road", || {
                let now = made.each_ref().map(|made| made.load(Ordering::Relaxed));
                if now.iter().zip(before).all(|(now, before)| *now > before + 2) {
                    Ok(())
                } else {
                    Err(now)
                }
            });
        }
        drop(stop);
    });
    wire.expect_only_tls();

    // What the first agent still serves is judged by the policy of now.
    write(false);
    let (_, how) = talks.pop().expect("of the far pod").rest();
    assert_ne!(how, end::REFUSED);
    far.connects(SERVER.parse().unwrap()).expect_cut_off();
    for talk in &mut talks {
        talk.echoes("still there").half_closes();
        assert_eq!(talk.expect_closed(), "");
    }
    old.iter().for_each(ends_well);
}

#[test]
fn who_asks_and_goes_away_changes_nothing_and_death_opens_nothing() {
    let bed = Testbed::two_nodes("hand-over-attacks");
    let node = bed.node(1);
    let (near, server) = (node.pod("near").start(), node.pod("server").start());
    let outsider = node.pod("outsider").start();
    let _echo = server.serves("echo", SERVER_PORT);
    config(&near, &server, &near, true).write_to(&node.config_dir());
    let flags = ["--kernel-path", "off", "--drain-timeout", "1s"];
    let mut agent = node.agent().with_pod(&near).with_pod(&server).flags(&flags).start();
    let dial = || near.connects(SERVER.parse().unwrap());
    let mut held = dial();
    held.echoes("hello");

    for said in ["", "{", r#"{"say":"take"}"#, r#"{"say":"ask","protocol":2,"abi":1}"#] {
        let socket = asks(&node.state_dir());
        socket.send(said.as_bytes()).expect("it listens");
        drop(socket);
        dial().echoes("still the same agent");
    }
    agent.logs(&["not handed over"]);
    held.echoes("and nobody was cut");

    // Without being told to, nobody takes over.
    let taken = agent.refuses_to_start_beside();
    assert!(!taken.success(), "{taken}");
    dial().echoes("still the same agent");

    agent.kill_9();
    dial().expect_refused();
    outsider.connects(server.at(SERVER_PORT)).expect_cut_off();
    // What it left behind is in nobody's way.
    agent.restart_with(&["--take-over"]);
    dial().echoes("another one");
    outsider.connects(server.at(SERVER_PORT)).expect_cut_off();
}

#[test]
fn whoever_dies_in_an_upgrade_the_next_one_serves_and_nothing_was_in_the_clear() {
    let bed = Testbed::two_nodes("hand-over-deaths");
    let (node, other) = (bed.node(1), bed.node(2));
    let (near, server) = (node.pod("near").start(), node.pod("server").start());
    let far = other.pod("far").start();
    let _echoes = [server.serves("echo", SERVER_PORT), far.serves("echo", FAR_PORT)];
    let config = config(&near, &server, &far, true);
    config.write_to(&node.config_dir());
    config.write_to(&other.config_dir());
    let flags = ["--kernel-path", "off", "--drain-timeout", "1h"];
    let mut agent = node.agent().with_pod(&near).with_pod(&server).flags(&flags).start();
    let _other = other.agent().with_pod(&far).start();
    let wires = [bed.wire().capture(), near.records(), server.records()];
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let over = &over;
        for (pod, to) in [(&near, SERVER), (&near, FAR), (&far, SERVER)] {
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    // Refused or cut, as who serves it dies.
                    drop(pod.run_peer(&["echoed", to, "20000", "1"]));
                }
            });
        }
        let _stop = Stop(over);
        for (millis, old_dies) in [(60, false), (120, true), (240, false), (360, true)] {
            // Whatever the old one has given away, this keeps it.
            let mut held = near.connects(FAR.parse().unwrap());
            held.echoes("hello");
            let new = agent.begins_upgrade();
            // Some stage of it: which one, the machine decides.
            thread::sleep(Duration::from_millis(millis));
            if old_dies {
                agent.kill_9();
                eventually_within(Duration::from_secs(60), "the new one serves or ends", || {
                    let served = near.run_peer(&["echoed", FAR, "20000", "1"]).code() == Some(0);
                    if served || new.ended().is_some() { Ok(()) } else { Err(new.log()) }
                });
                if new.ended().is_none() {
                    new.kill_9();
                }
            } else {
                new.kill_9();
            }
            agent.restart();
            for (pod, to) in [(&near, SERVER), (&near, FAR), (&far, SERVER)] {
                pod.connects(to.parse().unwrap()).echoes("served again");
            }
        }
    });
    wires.iter().for_each(|wire| wire.expect_only_tls());
}

fn asks(state_dir: &std::path::Path) -> Socket {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).expect("a socket");
    let address = SockAddr::unix(state_dir.join("take-over.sock")).expect("a short path");
    socket.connect(&address).expect("the agent listens");
    socket
}

/// Ends the loops of the other threads, also when this one panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
