//! WebSocket through the mesh, by a client and a server that know nothing of it.

use std::process::Command;

use serde_json::{Value, json};
use tests::{Pod, Process, eventually};

use crate::{
    xds::named,
    xds_on_demand::{Driven, driven},
};

pub(crate) const PORT: u16 = 9500;
/// What a client hears whom nothing stands in the way.
pub(crate) const ALL: &str = "subprotocol=chat True True True after closed=4001\n";

pub(crate) fn program(file: &str) -> String {
    format!("{}/programs/{file}", env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn serves(pod: &Pod) -> Process {
    let mut command = Command::new("python3");
    command.args([&program("websocket_server.py"), &PORT.to_string()]);
    pod.starts_listening("websocket", command, &[PORT])
}

/// What a client of that pod hears, that is silent for so long in between.
pub(crate) fn talks(pod: &Pod, address: &str, path: &str, pause: &str) -> String {
    let url = format!("ws://{address}{path}");
    pod.run(&["python3", &program("websocket_client.py"), &url, pause]).stdout().to_owned()
}

pub(crate) fn manager(listener: &mut Value) -> &mut Value {
    &mut listener["filter_chains"][0]["filters"][0]["typed_config"]
}

#[test]
fn a_web_socket_goes_through_the_mesh_and_is_logged_when_it_ends() {
    let Driven { control_plane, mesh } = driven("upgrades-mesh", |all| {
        for resource in all.iter_mut().filter(|r| r["@type"].to_string().contains("Listener")) {
            manager(resource)["upgrade_configs"] = json!([{ "upgrade_type": "websocket" }]);
        }
        let inbound = all.iter().find(|r| r["name"].to_string().contains("inbound-web")).cloned();
        let mut inbound = inbound.expect("an inbound listener");
        inbound["name"] = "inbound-chat".into();
        inbound["address"]["socket_address"]["port_value"] = PORT.into();
        let web = named(all, "ClusterLoadAssignment", "web");
        let socket = &mut web["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"];
        socket["socket_address"]["port_value"] = PORT.into();
        all.push(inbound);
    });
    let _server = serves(&mesh.server);
    let wire = mesh.bed.wire().capture();
    eventually("the WebSocket is there", || {
        let heard = talks(&mesh.client, "10.96.0.10:80", "/chat", "0");
        if heard == ALL { Ok(()) } else { Err(heard) }
    });
    wire.expect_only_tls();
    for (agent, direction) in [(mesh.near(), "outbound"), (mesh.far(), "inbound")] {
        let entry = agent.logs_access(&[direction, "\"response_code\":101"]);
        assert_eq!(entry["source_identity"], mesh.client.identity(), "{entry}");
        assert_eq!(entry["response_flags"], "-", "{entry}");
        assert!(entry["bytes_sent"].as_u64().is_some_and(|bytes| bytes > 3 << 20), "{entry}");
        assert!(entry["bytes_received"].as_u64().is_some_and(|bytes| bytes > 3 << 20), "{entry}");
    }
    control_plane.expect_no_violations();
}
