//! The command line, as an operator meets it.

use tests::{Testbed, mesh, process::agent_binary};

#[test]
fn status_pods_and_connections_show_what_is_there() {
    let mesh = mesh::server_and_client("cli", "echo");
    let mut talk = mesh.client.connects(mesh::SERVER.parse().unwrap());
    talk.echoes("12345");
    for agent in &mesh.agents {
        agent.cli(&["status"]).expect_success().expect_output("cluster.local");
        let status = agent.status();
        assert_eq!(status["readiness"]["ready"], true, "{status}");
        assert_eq!(status["pods"], 1, "{status}");
    }
    mesh.near().cli(&["pods"]).expect_success().expect_output(&mesh.client.identity());
    let live = mesh.far().connections();
    let live = &live.as_array().expect("a list")[0];
    assert_eq!(live["source_identity"], mesh.client.identity(), "{live}");
    assert_eq!(live["destination_identity"], mesh.server.identity(), "{live}");
    assert_eq!(live["policy"], "client-may-talk", "{live}");
    assert_eq!(live["bytes_received"], 5, "{live}");
    assert_eq!(live["bytes_sent"], 5, "{live}");
    let near = mesh.near().connections();
    assert_eq!(near[0]["original_destination"], mesh::SERVER, "{near}");
    mesh.near().cli(&["connections"]).expect_success().expect_output(mesh::SERVER);
    let dump = mesh.far().config_dump();
    assert!(dump.to_string().contains("inbound-server-9000"), "{dump}");
}

#[test]
fn the_socket_is_private_and_the_admin_address_is_loopback() {
    use std::os::unix::fs::PermissionsExt;
    let mesh = mesh::web_and_client("cli-admin");
    let mode = std::fs::metadata(mesh.near().node().socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let node = mesh.bed.node(1);
    let argv = ["curl", "-sS", "--noproxy", "*", "http://127.0.0.1:15000/metrics"];
    node.run(&argv).expect_success().expect_output("mesh_snapshot_version");
    let (wire, _) = node.wire_addresses();
    let outside = format!("http://{wire}:15000/metrics");
    node.run(&["curl", "-sS", "--noproxy", "*", &outside]).expect_failure();
}

#[test]
fn doctor_finds_this_machine_fit() {
    let bed = Testbed::two_nodes("cli-doctor");
    let agent = agent_binary();
    let cgroup = bed.node(1).cgroup();
    let argv = [agent.to_str().unwrap(), "doctor", "--cgroup-root", cgroup.to_str().unwrap()];
    bed.node(1).run(&argv).expect_success().expect_output("cgroup");
}

#[test]
fn mistakes_are_told_apart_by_exit_code() {
    let bed = Testbed::two_nodes("cli-mistakes");
    let agent = agent_binary();
    let agent = agent.to_str().unwrap();
    let nowhere = bed.directory().join("nobody.sock");
    let run = |argv: &[&str]| bed.node(1).run(&[&[agent], argv].concat());
    assert_eq!(run(&["status", "--socket", nowhere.to_str().unwrap()]).code(), Some(3));
    assert_eq!(run(&["no-such-command"]).code(), Some(2));
    assert_eq!(run(&["run", "--drain-timeout", "soon"]).code(), Some(2));
    run(&["--help"]).expect_success().expect_output("enroll");
    run(&["completions", "bash"]).expect_success().expect_output("mesh-agent");
}

#[test]
fn an_unreadable_namespace_is_refused_and_nothing_else_suffers() {
    let mesh = mesh::web_and_client("cli-netns");
    let enroll = |netns: &str| {
        mesh.near()
            .cli(&[
                "enroll",
                "ghost",
                "--namespace",
                "default",
                "--service-account",
                "ghost",
                "--netns",
                netns,
            ])
            .expect_failure()
    };
    let missing = enroll("/run/netns/meshbed-no-such");
    assert!(missing.stderr().contains("/run/netns/meshbed-no-such"), "{missing}");
    assert_eq!(missing.code(), Some(4), "{missing}");
    // A file that is no namespace.
    enroll("/etc/hostname");
    assert!(!mesh.near().pods().to_string().contains("ghost"));
    mesh.client.curl(mesh::WEB).expect_status(200);
}

#[test]
fn a_certificate_authority_is_made_once_and_kept_private() {
    use std::os::unix::fs::PermissionsExt;
    let bed = Testbed::two_nodes("cli-ca");
    let (agent, directory) = (agent_binary(), bed.directory().join("fresh-ca"));
    let argv = [
        agent.to_str().unwrap(),
        "ca",
        "init",
        "--dir",
        directory.to_str().unwrap(),
        "--trust-domain",
        "cluster.local",
    ];
    bed.node(1).run(&argv).expect_success();
    let key = directory.join("root-key.pem");
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let made = std::fs::read(&key).unwrap();
    bed.node(1).run(&argv).expect_failure();
    assert_eq!(std::fs::read(&key).unwrap(), made, "an existing root was overwritten");
}
