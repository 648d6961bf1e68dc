//! What a pod of the mesh sends to another never leaves its node in the clear.

use std::{fs, process::Command, time::Duration};

use tests::{eventually, mesh};

#[test]
fn a_workload_that_is_dialled_by_its_own_address_is_reached_by_mtls() {
    let mesh = mesh::web_and_client("pod-address");
    let wire = mesh.bed.wire().capture();
    let url = format!("http://{}/by-address", mesh.server.at(mesh::WEB_PORT));
    mesh.client.curl(&url).expect_status(200);
    mesh.client.curl(&url).method("DELETE").expect_status(403);
    // Another port of the same workload, where nobody listens: still nothing in the clear.
    let mut talk = mesh.client.connects(mesh.server.at(9));
    talk.says("spoken in vain");
    talk.rest();
    wire.expect_only_tls();
    for words in ["by-address", "spoken in vain"] {
        wire.expect_no_trace_of(words);
    }
    let entry = mesh.near().logs_access(&["outbound", &mesh.server.at(mesh::WEB_PORT).to_string()]);
    assert_eq!(entry["destination_identity"], mesh.server.identity(), "{entry}");
}

#[test]
fn what_runs_on_in_a_namespace_whose_file_is_gone_stays_captured() {
    let mesh = mesh::web_and_client("orphan");
    let orphan = mesh.plain_pod("orphan");
    let alias = mesh.bed.directory().join("alias");
    fs::write(&alias, "").unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let status = Command::new(program).args(arguments).status().unwrap();
        assert!(status.success(), "{program} {arguments:?}: {status}");
    };
    let (from, to) = (orphan.netns().path().display().to_string(), alias.display().to_string());
    run("mount", &["--bind", &from, &to]);
    let flags: Vec<_> = orphan
        .enroll_flags()
        .into_iter()
        .map(|flag| if flag == from { to.clone() } else { flag })
        .collect();
    let mut arguments = vec!["enroll", orphan.name()];
    arguments.extend(flags.iter().map(String::as_str));
    mesh.near().cli(&arguments).expect_success();
    orphan.curl(mesh::WEB).expect_status(403);

    run("umount", &["--lazy", &to]);
    fs::remove_file(&alias).unwrap();
    let listed = || mesh.near().pods().to_string().contains(&orphan.uid());
    for _ in 0..150 {
        if !listed() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(!listed(), "the agent did not notice");
    let wire = mesh.bed.wire().capture();
    let url = format!("http://{}/from-the-grave", mesh.server.at(mesh::WEB_PORT));
    orphan.curl(&url).expect_refused();
    wire.expect_no_trace_of("from-the-grave");
    mesh.client.curl(mesh::WEB).expect_status(200);

    // The way back: enrolled again under a name that exists, and released in order.
    mesh.near().enroll(&orphan);
    orphan.curl(mesh::WEB).expect_status(403);
    mesh.near().unenroll(&orphan);
    eventually("it has plain networking", || {
        match orphan.run(&["curl", "-s", "-o", "/dev/null", "-m", "2", &url]).code() {
            // Reset by the server's agent, not refused on the spot.
            Some(56) => Ok(()),
            other => Err(other),
        }
    });
}
