//! Many connections that say nothing, or nothing more: what one of them takes of memory.

use std::{process::Command, time::Duration};

use tests::{eventually, eventually_within, mesh, process};

/// At once; `MANY=10000` measures more of them.
fn many() -> u64 {
    std::env::var("MANY").ok().and_then(|many| many.parse().ok()).unwrap_or(1000)
}

/// Holds that many connections to the service; what one of them takes of the client's agent, in
/// KiB. Nothing is left of them when they are gone.
#[track_caller]
fn each_takes_kib(name: &str, flags: &[&str]) -> u64 {
    let (mesh, count) = (mesh::web_and_client(name), many());
    // The first request makes what stays: pools, caches.
    mesh.client.curl(mesh::WEB).expect_status(200);
    let live = || mesh.near().connections().as_array().map_or(0, Vec::len);
    eventually("curl's connection is gone", || if live() == 0 { Ok(()) } else { Err(live()) });
    let before = mesh.near().process().resident_kib();
    let mut command = Command::new(process::peer());
    command.args(["hold", "10.96.0.10:80", &count.to_string()]).args(flags);
    let holder = mesh.client.starts("hold", command);
    eventually_within(Duration::from_secs(180), "all are open", || {
        let open = holder.log().contains("open") && live() as u64 == count;
        if open { Ok(()) } else { Err(format!("{}: {}", live(), holder.log())) }
    });
    let after = mesh.near().process().resident_kib();
    mesh.client.curl(mesh::WEB).expect_status(200);
    println!("{count} connections {flags:?}: {before} KiB to {after} KiB");
    drop(holder);
    eventually("all are gone", || if live() == 0 { Ok(()) } else { Err(live()) });
    after.saturating_sub(before) / count
}

#[test]
fn connections_that_say_nothing_take_little() {
    let each = each_takes_kib("many-silent", &[]);
    assert!(each < 64, "{each} KiB");
}

#[test]
fn connections_that_are_kept_take_little() {
    let each = each_takes_kib("many-kept", &["--asked"]);
    assert!(each < 64, "{each} KiB");
}
