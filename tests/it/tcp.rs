//! Opaque TCP: bytes, half-closes, resets, volumes.

use std::time::{Duration, Instant};

use tests::{conversation::end, eventually, mesh};

#[test]
fn bytes_pass_and_a_half_close_passes_too() {
    let mesh = mesh::server_and_client("tcp-echo", "echo");
    let wire = mesh.bed.wire().capture();
    let mut talk = mesh.client.connects(mesh::SERVER.parse().unwrap());
    talk.echoes("plain words").echoes("and more").half_closes();
    assert_eq!(talk.expect_closed(), "");
    wire.expect_only_tls();
    wire.expect_no_trace_of("plain words");
    let entry = mesh.far().logs_access(&["inbound"]);
    assert_eq!(entry["source_identity"], mesh.client.identity(), "{entry}");
    assert_eq!(entry["policy"], "client-may-talk", "{entry}");
    assert_eq!(entry["bytes_received"], 19, "{entry}");
    assert_eq!(entry["bytes_sent"], 19, "{entry}");
}

#[test]
fn a_server_that_speaks_first_is_not_delayed() {
    let mesh = mesh::server_and_client("tcp-greet", "greet");
    // The first connection makes the tunnel; the second is the one to time.
    mesh.client.connects(mesh::SERVER.parse().unwrap()).hears("220 ready");
    let took = || {
        let start = Instant::now();
        mesh.client.connects(mesh::SERVER.parse().unwrap()).hears("220 ready");
        start.elapsed()
    };
    // A slow machine may delay some, and who waits for the client to speak delays all.
    let fastest = (0..10).map(|_| took()).find(|took| *took < Duration::from_millis(500));
    assert!(fastest.is_some());
}

#[test]
fn the_application_sees_true_addresses_on_both_sides() {
    let mesh = mesh::server_and_client("tcp-addresses", "who");
    let heard = mesh.client.connects(mesh::SERVER.parse().unwrap()).expect_closed();
    assert!(heard.contains(&format!("you are {} ", mesh.client.ip())), "{heard}");
    assert!(heard.contains(&format!("I am {} {}", mesh.server.ip(), mesh::SERVER_PORT)), "{heard}");
    let asked = mesh.client.run_peer(&["asks", mesh::SERVER]).expect_success();
    assert!(asked.stdout().contains(&format!("peer {}", mesh::SERVER)), "getpeername: {asked}");
}

#[test]
fn the_wrong_identity_is_cut_off() {
    let mesh = mesh::server_and_client("tcp-identity", "greet");
    let intruder = mesh.enrolled_pod("intruder");
    intruder.connects(mesh::SERVER.parse().unwrap()).expect_cut_off();
    let entry = mesh.far().logs_access(&[&intruder.identity()]);
    assert!(entry["denied_reason"].is_string(), "{entry}");
    let denied = mesh.far().metrics().sum("mesh_denied_total", &[]);
    assert!(denied >= 1.0, "{}", mesh.far().metrics().text());
}

#[test]
fn a_reset_passes_on() {
    let mesh = mesh::server_and_client("tcp-reset", "mute");
    let mut talk = mesh.client.connects(mesh::SERVER.parse().unwrap());
    eventually("the server's node sees the connection", || {
        let live = mesh.far().connections();
        if live.as_array().is_some_and(|l| !l.is_empty()) { Ok(()) } else { Err(live) }
    });
    // Unread data makes the kernel reset the server's connections when it dies.
    talk.says("never read");
    eventually("the bytes have arrived", || {
        let live = mesh.far().connections();
        if live[0]["bytes_received"].as_u64() >= Some(10) { Ok(()) } else { Err(live) }
    });
    mesh.program.kill_9();
    let (heard, how) = talk.rest();
    assert_eq!((heard.as_str(), how), ("", end::RESET));
}

#[test]
fn sixteen_streams_at_once_are_intact() {
    let mesh = mesh::server_and_client("tcp-streams", "digest");
    let megabytes = (8 << 20).to_string();
    let transfer = ["transfer", mesh::SERVER, &megabytes, &megabytes, "16"];
    mesh.client.run_peer(&transfer).expect_success();
}

#[test]
fn a_gibibyte_both_ways_is_intact() {
    let mesh = mesh::server_and_client("tcp-gibibyte", "digest");
    let bytes = (1u64 << 30).to_string();
    mesh.client.run_peer(&["transfer", mesh::SERVER, &bytes, &bytes, "1"]).expect_success();
    let entry = mesh.far().logs_access(&["inbound"]);
    assert_eq!(entry["bytes_received"], (1u64 << 30) + 16, "{entry}");
    assert_eq!(entry["bytes_sent"], (1u64 << 30) + 32, "{entry}");
}

#[test]
fn a_reader_that_does_not_read_costs_bounded_memory() {
    let mesh = mesh::server_and_client("tcp-slow", "mute");
    let mut talk = mesh.client.connects(mesh::SERVER.parse().unwrap());
    let resident = |agent: &tests::Agent| agent.process().resident_kib();
    let before = [mesh.near(), mesh.far()].map(resident);
    // Writes until the pipe to the talker is full for good, from a thread of its own.
    let block = vec![b'x'; 1 << 20];
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for _ in 0..256 {
                talk.says(&block);
            }
        });
        let mut last = 0;
        eventually("the sender is held back", || {
            let sent = mesh.near().connections()[0]["bytes_received"].as_u64().unwrap_or_default();
            let stalled = sent > 0 && sent == last;
            last = sent;
            std::thread::sleep(Duration::from_millis(300));
            if stalled { Ok(()) } else { Err(sent) }
        });
        assert!(last < 128 << 20, "{last} bytes went into a connection nobody reads");
        let grown = [mesh.near(), mesh.far()].map(resident);
        for (before, after) in before.iter().zip(grown) {
            assert!(after - before < 64 << 10, "{before} KiB grew to {after} KiB");
        }
        // Ends the talker's connection, and so the writer.
        mesh.program.kill_9();
        writer.join().expect("the writer ends");
    });
}
