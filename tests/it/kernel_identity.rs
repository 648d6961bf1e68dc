//! The kernel path is for workloads that can prove who they are, as HBONE is.

use std::time::Duration;

use serde_json::Value;
use tests::{
    Pod, Testbed,
    control_plane::ControlPlane,
    eventually, eventually_within,
    mesh::SERVER_PORT,
    pki::{Pki, Validity},
};

use crate::{
    kernel_path::{Neighbours, config},
    sds::{certificate, roots},
};

/// A certificate's, so short that a test can wait for its end.
const SHORT_LIFE: Duration = Duration::from_secs(12);

/// Neighbours whose certificates a control plane hands out: only the server's, so far.
fn issued(name: &str, pki: &Pki) -> (ControlPlane, Neighbours) {
    let bed = Testbed::two_nodes(name);
    let node = bed.node(1);
    let (client, server) = (node.pod("client").start(), node.pod("server").start());
    let program = server.serves("echo", SERVER_PORT);
    let mut control_plane = ControlPlane::start(node, &config(&client, &server));
    control_plane.serves(resources(&client, &server, pki, &[(&server, Validity::Now)]));
    let uri = control_plane.uri();
    let flags = ["--certificates", "sds", "--xds-server", &uri];
    let agent = node.agent().with_pod(&client).with_pod(&server).flags(&flags).start();
    (control_plane, Neighbours { client, server, agent, program, bed })
}

fn resources(
    client: &Pod,
    server: &Pod,
    pki: &Pki,
    certificates: &[(&Pod, Validity)],
) -> Vec<Value> {
    let mut resources = config(client, server).resources();
    resources.push(roots("ROOTCA", &[pki]));
    for (pod, validity) in certificates {
        let identity = pod.identity();
        resources.push(certificate(&identity, &pki.issue(&[&identity], *validity)));
    }
    resources
}

#[test]
fn who_has_no_valid_certificate_is_refused_by_the_kernel_path_as_by_hbone() {
    let pki = Pki::foreign();
    let (mut control_plane, it) = issued("kernel-identity", &pki);
    let mut push = |certificates: &[(&Pod, Validity)]| {
        control_plane.serves(resources(&it.client, &it.server, &pki, certificates));
    };
    let refused = || {
        let before = it.verdict("authorized");
        it.talk().expect_cut_off();
        assert_eq!(it.verdict("authorized"), before);
    };
    it.agent.logs(&["cannot get a first certificate", &it.client.identity()]);
    it.wait_for_services(0);
    refused();

    push(&[(&it.client, Validity::Now), (&it.server, Validity::Now)]);
    it.wait_for_services(2);
    let mut talk = it.talk();
    talk.echoes("proven");

    // The server's runs out, and nobody renews it.
    push(&[(&it.client, Validity::Now), (&it.server, Validity::For(SHORT_LIFE))]);
    eventually_within(SHORT_LIFE * 2, "the server's certificate has expired", || {
        let log = it.agent.log();
        if log.contains("certificate expired and cannot be renewed") { Ok(()) } else { Err(()) }
    });
    it.wait_for_services(0);
    refused();
    // As a connection by HBONE would.
    talk.echoes("what runs goes on");

    push(&[(&it.client, Validity::Now), (&it.server, Validity::Now)]);
    it.wait_for_services(2);
    it.talk().echoes("proven again");

    // The roots go that vouched for both.
    let other = Pki::foreign();
    control_plane.serves(resources(&it.client, &it.server, &other, &[]));
    eventually("nobody is trusted", || {
        let services = it.agent.status()["kernel_path"]["services"].clone();
        if services == 0 { Ok(()) } else { Err(services) }
    });
    refused();
}
