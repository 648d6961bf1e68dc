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
    let missing = run(&["run", "--config-dir", "/nonexistent/mesh"]);
    assert_eq!(missing.code(), Some(2), "{missing}");
    assert_eq!(missing.stderr().matches("No such file").count(), 1, "{missing}");
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
    let nobody = ["enroll", "ghost", "-n", "default", "-s", "ghost", "--pid", "4194304"];
    let missing = mesh.near().cli(&nobody);
    assert_eq!(missing.code(), Some(4), "{missing}");
    assert!(missing.stderr().contains("/proc/4194304/ns/net"), "{missing}");
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

#[test]
fn a_connection_that_speaks_http_shows_its_latest_request() {
    let mesh = mesh::web_and_client("cli-http");
    let mut talk = mesh.client.connects("10.96.0.10:80".parse().unwrap());
    let request = "GET / HTTP/1.1\r\nHost: web\r\n\r\n";
    talk.says(request).hears("HTTP/1.1 200 OK");
    let answer = format!("hello from web, you are {}\n", mesh.client.ip());
    talk.hears(&answer);
    for (agent, policy, upstream) in [
        (mesh.near(), serde_json::Value::Null, mesh.server.at(mesh::WEB_PORT)),
        (mesh.far(), "client-may-read".into(), mesh.server.at(mesh::WEB_PORT)),
    ] {
        let live = agent.connections();
        let live = &live.as_array().expect("a list")[0];
        assert_eq!(live["protocol"], "HTTP/1.1", "{live}");
        assert_eq!(live["source_identity"], mesh.client.identity(), "{live}");
        assert_eq!(live["destination_identity"], mesh.server.identity(), "{live}");
        assert_eq!(live["upstream"], upstream.to_string(), "{live}");
        assert_eq!(live["connection_security_policy"], "mutual_tls", "{live}");
        assert_eq!(live["policy"], policy, "{live}");
        assert!(live["bytes_received"].as_u64() >= Some(request.len() as u64), "{live}");
        assert!(live["bytes_sent"].as_u64() > Some(answer.len() as u64), "{live}");
    }
    let near = mesh.near().connections();
    assert_eq!(near[0]["bytes_received"], request.len(), "{near}");
    // A refused request goes nowhere; the next one is as good as ever.
    talk.says("DELETE / HTTP/1.1\r\nHost: web\r\n\r\n").hears("HTTP/1.1 403 Forbidden");
    assert_eq!(mesh.near().connections()[0]["upstream"], near[0]["upstream"]);
}

#[test]
fn metrics_come_in_the_format_that_is_accepted() {
    let mesh = mesh::web_and_client("cli-metrics");
    mesh.client.curl(mesh::WEB).expect_status(200);
    mesh.near().logs_access(&["outbound", "GET"]);
    let scrape = |accept: &str| {
        let header = format!("accept: {accept}");
        let argv = ["curl", "-sSi", "--noproxy", "*", "-H", &header];
        let url = ["http://127.0.0.1:15000/metrics"];
        mesh.near().node().run(&[&argv[..], &url[..]].concat()).expect_success().stdout().to_owned()
    };
    let text = scrape("*/*");
    assert!(text.contains("content-type: text/plain; version=0.0.4"), "{text}");
    assert!(text.contains("# TYPE istio_requests_total counter\nistio_requests_total{"), "{text}");
    assert!(!text.contains("# EOF"), "{text}");
    let open = scrape("application/openmetrics-text;version=1.0.0,text/plain;q=0.5");
    assert!(open.contains("content-type: application/openmetrics-text; version=1.0.0"), "{open}");
    assert!(open.contains("# TYPE istio_requests counter\nistio_requests_total{"), "{open}");
    assert!(open.ends_with("# EOF\n"), "{open}");
}
