//! Configuration by files: reloaded, refused, kept.

use std::fs;

use serde_json::json;
use tests::{Agent, Inbound, Mesh, MeshConfig, Service, config::replace, eventually, mesh};

#[test]
fn a_new_configuration_takes_effect_without_a_restart() {
    let mut mesh = mesh::web_and_client("reload");
    mesh.client.curl(mesh::WEB).method("DELETE").expect_status(403);
    let service = Service::http("web", "10.96.0.10:80").backed_by(&mesh.server, mesh::WEB_PORT);
    let open = Inbound::http(&mesh.server, mesh::WEB_PORT).open();
    mesh.reconfigure(MeshConfig::new().service(&service).inbound(&open));
    mesh.client.curl(mesh::WEB).method("DELETE").expect_status(200);
    let dump = mesh.near().config_dump();
    assert!(dump.to_string().contains("outbound-web-0"), "{dump}");
}

#[test]
fn files_that_are_written_in_place_are_read_too() {
    let mesh = mesh::web_and_client("in-place");
    let file = mesh.bed.node(2).config_dir().join(tests::config::FILE);
    let text = fs::read_to_string(&file).unwrap();
    let before = mesh.far().snapshot_version();
    fs::write(&file, text.replace("client-may-read", "renamed-policy")).unwrap();
    eventually("the change is in force", || {
        let now = mesh.far().snapshot_version();
        if now > before { Ok(()) } else { Err(now) }
    });
    mesh.client.curl(mesh::WEB).expect_status(200);
    let entry = mesh.far().logs_access(&["renamed-policy"]);
    assert_eq!(entry["policy"], "renamed-policy", "{entry}");
}

/// Puts `text` into the near agent's directory; it must be refused for `reasons`, and
/// everything must go on as before.
#[track_caller]
fn refused(mesh: &Mesh, text: &str, reasons: &[&str]) {
    let (agent, version) = (mesh.near(), mesh.near().snapshot_version());
    let file = mesh.bed.node(1).config_dir().join("zz-bad.yaml");
    let rejections = |agent: &Agent| agent.status()["last_rejected"]["reasons"].to_string();
    replace(&file, text);
    let told = eventually(&format!("the agent refuses for {reasons:?}"), || {
        let told = rejections(agent);
        if reasons.iter().all(|reason| told.contains(reason)) { Ok(told) } else { Err(told) }
    });
    agent.logs(&[reasons[0]]);
    assert_eq!(agent.snapshot_version(), version, "{told}");
    mesh.client.curl(mesh::WEB).expect_status(200);
    let validated = agent.node().config_dir();
    let ran = mesh
        .bed
        .node(1)
        .run(&[
            tests::process::agent_binary().to_str().unwrap(),
            "config",
            "validate",
            validated.to_str().unwrap(),
        ])
        .expect_failure();
    for reason in reasons {
        let text = format!("{}{}", ran.stdout(), ran.stderr());
        assert!(text.contains(reason), "{ran}");
    }
    fs::remove_file(&file).unwrap();
}

#[test]
fn bad_configuration_is_refused_by_name_and_the_last_good_one_stays() {
    let mesh = mesh::web_and_client("bad-config");
    mesh.client.curl(mesh::WEB).expect_status(200);
    refused(&mesh, "resources: [\n  {{", &["zz-bad.yaml"]);
    refused(&mesh, "", &["zz-bad.yaml"]);
    let resources =
        |resource| serde_yaml_ng::to_string(&json!({ "resources": [resource] })).unwrap();
    refused(
        &mesh,
        &resources(json!({ "@type": "type.googleapis.com/envoy.config.no.v3.SuchThing" })),
        &["envoy.config.no.v3.SuchThing"],
    );
    let listener = |filter: serde_json::Value| {
        resources(json!({
            "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
            "name": "bad",
            "traffic_direction": "OUTBOUND",
            "address": { "socket_address": { "address": "10.96.0.66", "port_value": 80 } },
            "filter_chains": [{ "filters": [filter] }],
        }))
    };
    let tcp_proxy = |cluster: &str| {
        json!({
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "stat_prefix": "x",
                "cluster": cluster,
            },
        })
    };
    refused(&mesh, &listener(tcp_proxy("no-such-cluster")), &["no-such-cluster"]);
    let mut unsupported = tcp_proxy("web");
    unsupported["typed_config"]["max_connect_attempts"] = 3.into();
    refused(
        &mesh,
        &listener(unsupported),
        &["filter_chains[0].filters[0]", "max_connect_attempts"],
    );
    let lua = json!({
        "name": "envoy.filters.network.lua",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo",
        },
    });
    refused(&mesh, &listener(lua), &["filter_chains[0].filters[0]"]);
    let ring = |i: u32| {
        json!({
            "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            "name": format!("ring-{i}"),
            "lb_policy": "RING_HASH",
            "ring_hash_lb_config": { "minimum_ring_size": 8 << 20 },
        })
    };
    // Each by itself is what Envoy takes.
    let rings = json!({ "resources": [ring(0), ring(1), ring(2)] });
    refused(
        &mesh,
        &serde_yaml_ng::to_string(&rings).unwrap(),
        &["clusters[ring-2].lb_policy", "100663296 bytes does not fit"],
    );
    mesh.client.curl(mesh::WEB).expect_status(200);
}

#[test]
fn validate_accepts_what_the_agent_accepts() {
    let mesh = mesh::web_and_client("validate");
    let directory = mesh.bed.node(1).config_dir();
    let agent = tests::process::agent_binary();
    let argv = [agent.to_str().unwrap(), "config", "validate", directory.to_str().unwrap()];
    mesh.bed.node(1).run(&argv).expect_success();
}

#[test]
fn validate_judges_a_bootstrap_by_its_fields() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("envoy.yaml");
    let judged = |content: &str| {
        std::fs::write(&file, content).unwrap();
        let mut command = std::process::Command::new(tests::process::agent_binary());
        let output = command.args(["config", "validate"]).arg(&file).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, said) = judged("node: {id: a, cluster: b}\nstatic_resources: {}\n");
    assert!(
        code == Some(0) && said.ends_with("envoy.yaml is a good bootstrap\n"),
        "{code:?} {said}"
    );
    let unsupported = "static_resources: {listeners: [{name: l, traffic_direction: OUTBOUND, \
               enable_mptcp: true}]}\n";
    let (code, said) = judged(unsupported);
    assert_eq!(code, Some(2));
    assert!(said.contains("would be refused") && said.contains("enable_mptcp"), "{said}");
}
