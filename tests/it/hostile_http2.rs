//! Floods of HTTP/2 frames: memory stays bounded and others are served meanwhile.

use serde_json::Value;
use tests::{Mesh, mesh};

const SERVICE: &str = "10.96.0.10:80";

/// The kinds of frames (RFC 9113 §6).
const HEADERS: u64 = 1;
const RST_STREAM: u64 = 3;
const GOAWAY: u64 = 7;

/// How much an agent may grow meanwhile, in KiB: what the sockets hold, and then some.
const GROWTH_KIB: u64 = 48 << 10;

/// Sends a flood of each of `kinds` beside the others; how each went. The agent may grow
/// by `growth_kib`.
///
/// # Panics
/// If others are not served, or the agent grew without bound, or panicked.
#[track_caller]
fn floods(mesh: &Mesh, kinds: &[&str], growth_kib: u64) -> Vec<Value> {
    let near = mesh.near();
    // The first request makes what stays: pools, caches.
    mesh.client.curl(mesh::WEB).expect_status(200);
    let before = near.process().resident_kib();
    let went = std::thread::scope(|scope| {
        let flood = |kind| scope.spawn(move || mesh.client.run_peer(&["flood", kind, SERVICE]));
        let floods: Vec<_> = kinds.iter().map(|kind| flood(*kind)).collect();
        for _ in 0..10 {
            mesh.client.curl(mesh::WEB).expect_status(200);
        }
        let after = near.process().resident_kib();
        assert!(after < before + growth_kib, "{before} KiB grew to {after} KiB");
        let went = floods.into_iter().map(|flood| flood.join().expect("a flood ends"));
        went.map(|ran| ran.expect_success().json()).collect::<Vec<_>>()
    });
    mesh.client.curl(mesh::WEB).expect_status(200);
    let after = near.process().resident_kib();
    assert!(after < before + growth_kib, "{before} KiB grew to {after} KiB");
    assert!(near.process().ended().is_none(), "{}", near.log());
    assert!(!near.log().contains("panicked"), "{}", near.log());
    println!("{kinds:?}: {before} KiB to {after} KiB, {went:?}");
    went
}

fn says(flood: &Value, kind: u64) -> bool {
    flood["frames"].as_array().is_some_and(|frames| frames.contains(&kind.into()))
}

#[test]
fn floods_of_resets_and_continuations_end_the_connection() {
    let mesh = mesh::web_and_client("http2-floods");
    for went in floods(&mesh, &["rapid-reset", "continuation", "empty-continuation"], GROWTH_KIB) {
        assert_eq!(went["went"], "ended", "{went}");
    }
}

#[test]
fn settings_and_pings_whose_answers_nobody_reads_are_held_back() {
    let mesh = mesh::web_and_client("http2-answers");
    for went in floods(&mesh, &["settings", "ping"], GROWTH_KIB) {
        assert_ne!(went["went"], "taken", "{went}");
    }
}

#[test]
fn headers_that_unpack_to_much_are_refused() {
    let mesh = mesh::web_and_client("hpack-bomb");
    for went in floods(&mesh, &["hpack-bomb"; 4], GROWTH_KIB) {
        let refused = [HEADERS, RST_STREAM, GOAWAY].iter().any(|kind| says(&went, *kind));
        assert!(refused, "{went}");
    }
    // The twelve that others asked, and the four that are no bombs.
    let seen = mesh.server.nginx_log(mesh::WEB_PORT);
    assert!(seen.lines().count() <= 12 + 4, "a bomb reached the application: {seen}");
}

#[test]
fn windows_that_stay_shut_hold_only_their_own_streams_up() {
    let mesh = mesh::web_and_client("zero-window");
    let large = mesh.server.nginx_directory(mesh::WEB_PORT).join("large");
    std::fs::write(large, vec![b'x'; 8 << 20]).unwrap();
    // Each of 4 times 32 streams holds what its upstream may send ahead: the window of its
    // tunnel and the buffers behind it, some 0.8 MiB, whatever the 8 MiB of the file.
    for went in floods(&mesh, &["zero-window"; 4], 4 * 32 * 1024 + GROWTH_KIB) {
        assert!(says(&went, HEADERS), "a stream is answered: {went}");
    }
}
