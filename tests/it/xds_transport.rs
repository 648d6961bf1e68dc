//! How control planes are reached, and what becomes of it where they can't be.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};
use tests::{
    Agent, MeshConfig, Node, Service, Testbed,
    bootstrap::Bootstrap,
    control_plane::{ControlPlane, Port},
    eventually_within,
    pki::{Pki, Validity},
};

const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";

/// Longer than any pause between tries in these tests.
const PATIENCE: Duration = Duration::from_secs(40);

/// A configuration that is told from others by the port of its one service.
fn config(port: u16) -> MeshConfig {
    let address = format!("10.96.0.10:{port}");
    MeshConfig::new()
        .service(&Service::tcp("web", &address).backed_by_plain("10.244.2.10:80".parse().unwrap()))
}

fn start(node: &Node, name: &str, bootstrap: &Bootstrap) -> Agent {
    let file = bootstrap.write(node, name);
    node.agent().flags(&["--bootstrap", file.to_str().unwrap()]).start_unready()
}

/// What `status` says of the control plane; an error while the agent is not there yet.
fn xds(agent: &Agent) -> Result<Value, String> {
    let ran = agent.cli(&["status", "--output", "json"]);
    if ran.code() != Some(0) {
        return Err(format!("{ran}\n{}", agent.log()));
    }
    Ok(ran.json()["xds"].clone())
}

/// Waits until the stream's state is `state` with a server that ends in `server`.
fn is(agent: &Agent, state: &str, server: &str) -> Value {
    eventually_within(PATIENCE, &format!("{state} to {server}"), || {
        let xds = xds(agent)?;
        let at = xds["server"].as_str().is_some_and(|at| at.ends_with(server));
        if at && xds["state"] == state { Ok(xds) } else { Err(xds.to_string()) }
    })
}

/// Waits until a connection has ended with this.
fn fails(agent: &Agent, reason: &str) {
    eventually_within(PATIENCE, &format!("a connection fails with {reason:?}"), || {
        let xds = xds(agent)?;
        let found = xds["last_error"].as_str().is_some_and(|error| error.contains(reason));
        if found { Ok(()) } else { Err(xds.to_string()) }
    });
}

/// Waits until the service of that port is in force.
fn serves(agent: &Agent, port: u16) {
    let address = format!("10.96.0.10:{port}");
    eventually_within(PATIENCE, &format!("{address} is in force"), || {
        let ran = agent.cli(&["config", "dump", "--output", "json"]);
        if ran.stdout().contains(&address) {
            Ok(())
        } else {
            Err(format!("{ran}\n{}", agent.log()))
        }
    });
}

/// A certificate on disk.
struct Files {
    cert: PathBuf,
    key: PathBuf,
    ca: PathBuf,
}

fn issue(node: &Node, pki: &Pki, name: &str) -> Files {
    let credentials = pki.issue(&[name], Validity::Now);
    let at = |what: &str| node.directory().join(format!("{name}-{what}.pem"));
    let files = Files { cert: at("cert"), key: at("key"), ca: at("ca") };
    fs::write(&files.cert, &credentials.certificate_pem).unwrap();
    fs::write(&files.key, &credentials.key_pem).unwrap();
    fs::write(&files.ca, pki.root_pem()).unwrap();
    files
}

/// The transport socket of a server that is verified as `sni` by `ca`, and is shown `own`.
fn tls(sni: &str, ca: &Path, own: Option<&Files>) -> Value {
    let certificates: Vec<_> = own
        .iter()
        .map(|own| {
            json!({
                "certificate_chain": { "filename": own.cert },
                "private_key": { "filename": own.key },
            })
        })
        .collect();
    json!({ "transport_socket": {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": format!("{TLS}.UpstreamTlsContext"),
            "sni": sni,
            "common_tls_context": {
                "tls_certificates": certificates,
                "validation_context": { "trusted_ca": { "filename": ca } },
            },
        },
    } })
}

#[test]
fn servers_are_verified_and_shown_who_asks() {
    let bed = Testbed::two_nodes("xds-tls");
    let node = bed.node(1);
    let (pki, foreign) = (Pki::foreign(), Pki::foreign());
    let server = issue(node, &pki, "cp.internal");
    let own = issue(node, &pki, "agent.internal");
    let other = issue(node, &foreign, "other.internal");
    let ports = [
        Port::tls("127.0.0.1:18001", &server.cert, &server.key, None),
        Port::tls("127.0.0.1:18002", &server.cert, &server.key, Some(&server.ca)),
        Port::plain("127.0.0.1:18003"),
    ];
    let control_plane = ControlPlane::start_at(node, "control-plane", &config(81), &ports);
    let agent_of = |name: &str, port: u16, tls: Value| {
        let bootstrap =
            Bootstrap::ads("GRPC", &["xds"]).server_with("xds", &format!("127.0.0.1:{port}"), tls);
        start(node, name, &bootstrap)
    };

    let agent = agent_of("wrong-ca", 18001, tls("cp.internal", &other.ca, None));
    fails(&agent, "UnknownIssuer");
    drop(agent);
    let agent = agent_of("wrong-name", 18001, tls("elsewhere.internal", &server.ca, None));
    fails(&agent, "not valid for name");
    drop(agent);
    let agent = agent_of("no-certificate", 18002, tls("cp.internal", &server.ca, None));
    fails(&agent, "");
    drop(agent);
    let foreign = tls("cp.internal", &server.ca, Some(&other));
    let agent = agent_of("foreign-certificate", 18002, foreign);
    fails(&agent, "");
    drop(agent);
    let agent = agent_of("tls-to-plain", 18003, tls("cp.internal", &server.ca, None));
    fails(&agent, "");
    drop(agent);
    let agent = agent_of("plain-to-tls", 18001, json!({}));
    fails(&agent, "");
    drop(agent);
    assert!(control_plane.requests().is_empty(), "{:?}", control_plane.requests());

    let agent = agent_of("tls", 18001, tls("cp.internal", &server.ca, None));
    is(&agent, "connected", "https://127.0.0.1:18001");
    serves(&agent, 81);
    drop(agent);
    let agent = agent_of("mtls", 18002, tls("cp.internal", &server.ca, Some(&own)));
    is(&agent, "connected", "https://127.0.0.1:18002");
    drop(agent);
    let requests = control_plane.requests();
    let said =
        |identity: &str| requests.iter().any(|r| r["identity"].to_string().contains(identity));
    assert!(said("agent.internal") && !said("other.internal"), "{requests:?}");
    assert!(requests.iter().any(|request| request["region"] == "here"), "{requests:?}");
    control_plane.expect_no_violations();
}

#[test]
fn servers_are_tried_in_order_and_the_first_is_gone_back_to() {
    let bed = Testbed::two_nodes("xds-failover");
    let node = bed.node(1);
    let (one, two) = (Pki::foreign(), Pki::foreign());
    let (first_files, second_files) =
        (issue(node, &one, "a.internal"), issue(node, &two, "b.internal"));
    let port = |address: &str, files: &Files| [Port::tls(address, &files.cert, &files.key, None)];
    let ports = port("127.0.0.1:18001", &first_files);
    let mut first = ControlPlane::prepare(node, "first", &config(81), &ports);
    let ports = port("127.0.0.1:18002", &second_files);
    let mut second = ControlPlane::start_at(node, "second", &config(82), &ports);
    // Each is verified by its own authority.
    let bootstrap = Bootstrap::ads("DELTA_GRPC", &["first", "second"])
        .server_with("first", "127.0.0.1:18001", tls("a.internal", &first_files.ca, None))
        .server_with("second", "127.0.0.1:18002", tls("b.internal", &second_files.ca, None));
    let agent = start(node, "agent", &bootstrap);
    is(&agent, "connected", ":18002");
    serves(&agent, 82);
    first.run();
    is(&agent, "connected", ":18001");
    serves(&agent, 81);
    agent.logs(&["a server that comes before it is back"]);
    first.dies();
    is(&agent, "connected", ":18002");
    serves(&agent, 82);
    // Nobody: what was said last stays, and status says since when.
    second.dies();
    eventually_within(PATIENCE, "no server", || {
        let xds = xds(&agent)?;
        if xds["state"] == "connected" { Err(xds) } else { Ok(()) }.map_err(|xds| xds.to_string())
    });
    serves(&agent, 82);
    assert!(agent.metrics().text().contains("mesh_xds_connected 0"));
    first.run();
    is(&agent, "connected", ":18001");
    serves(&agent, 81);
    first.expect_no_violations();
    second.expect_no_violations();
}
