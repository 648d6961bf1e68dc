//! The test bed itself, with plain pods: what the other tests stand on.

use std::{panic::AssertUnwindSafe, process::Command};

use tests::{RunId, Testbed, eventually, process};

#[test]
fn curl_reaches_nginx_across_nodes_over_both_families() {
    let bed = Testbed::two_nodes("plain-curl");
    let (client, web) = (bed.node(1).pod("client").start(), bed.node(2).pod("web").start());
    let _nginx = web.runs_nginx(8080);
    client
        .curl(&format!("http://{}/", web.at(8080)))
        .expect_status(200)
        .expect_body(&format!("hello from web, you are {}", client.ip()));
    client
        .curl(&format!("http://{}/", web.at6(8080)))
        .expect_status(200)
        .expect_body(&format!("you are {}", client.ip6()));
}

#[test]
fn pods_of_one_node_and_the_node_itself_reach_each_other() {
    let bed = Testbed::two_nodes("plain-local");
    let (a, b) = (bed.node(1).pod("a").start(), bed.node(1).pod("b").start());
    let _server = b.serves("who", 9000);
    let mut talk = a.connects(b.at(9000));
    assert!(talk.expect_closed().contains(&format!("you are {}", a.ip())));
    bed.node(1).run(&["curl", "-sS", "--http0.9", &format!("http://{}/", b.at(9000))]);
}

#[test]
fn the_wire_shows_plaintext_that_is_plaintext() {
    let bed = Testbed::two_nodes("plain-capture");
    let (client, web) = (bed.node(1).pod("client").start(), bed.node(2).pod("web").start());
    let _nginx = web.runs_nginx(8080);
    let capture = bed.wire().capture();
    client.curl(&format!("http://{}/secret-path", web.at(8080))).expect_status(200);
    capture.expect_plaintext("GET /secret-path HTTP/1.1");
    capture.expect_plaintext("hello from web");
    assert!(!capture.contains(b"never sent"));
    let verdict = std::panic::catch_unwind(AssertUnwindSafe(|| capture.expect_only_tls()));
    assert!(verdict.is_err(), "HTTP passed for TLS");
    let file = bed.directory().join("wire.pcap");
    capture.write_pcap(&file);
    let listed = bed.node(1).run(&["tcpdump", "-r", &file.display().to_string()]).expect_success();
    assert!(listed.stdout().contains("GET /secret-path"), "{listed}");
}

#[test]
fn the_wire_can_be_cut_mended_and_slowed() {
    let bed = Testbed::two_nodes("plain-wire");
    let (client, web) = (bed.node(1).pod("client").start(), bed.node(2).pod("web").start());
    let _nginx = web.runs_nginx(8080);
    let url = format!("http://{}/", web.at(8080));
    bed.wire().cut();
    let response = client.curl(&url).arguments(&["--connect-timeout", "1"]).send();
    assert_eq!(response.status(), None, "{}", response.ran());
    bed.wire().mend();
    client.curl(&url).expect_status(200);
    bed.wire().slow(50);
    client.curl(&url).expect_status(200);
    bed.wire().full_speed();
    client.curl(&url).expect_status(200);
}

#[test]
fn programs_run_in_the_pods_cgroup_and_namespace() {
    let bed = Testbed::two_nodes("plain-place");
    let pod = bed.node(1).pod("inside").start();
    let cgroup = pod.run(&["cat", "/proc/self/cgroup"]).expect_success();
    assert!(cgroup.stdout().contains(&format!("0::/{}/node1/pods/inside", bed.run())), "{cgroup}");
    let addresses = pod.run(&["ip", "-brief", "addr"]).expect_success();
    assert!(addresses.stdout().contains(&pod.ip().to_string()), "{addresses}");
    let proxies = pod.run(&["env"]).expect_success();
    assert!(!proxies.stdout().to_lowercase().contains("proxy"), "{proxies}");
}

#[test]
fn a_conversation_tells_fin_from_rst_from_refusal() {
    let bed = Testbed::two_nodes("plain-talk");
    let (client, server) = (bed.node(1).pod("client").start(), bed.node(2).pod("server").start());
    let echo = server.serves("echo", 7000);
    let mut talk = client.connects(server.at(7000));
    talk.echoes("one").echoes("two").half_closes();
    assert_eq!(talk.expect_closed(), "");

    let mut mapped = client.connects_mapped(server.at(7000));
    mapped.echoes("mapped");

    echo.kill_9();
    mapped.says("anyone?");
    mapped.expect_cut_off();
    client.connects(server.at(7000)).expect_refused();
}

#[test]
fn bulk_transfers_are_checked_both_ways() {
    let bed = Testbed::two_nodes("plain-bulk");
    let (client, server) = (bed.node(1).pod("client").start(), bed.node(2).pod("server").start());
    let _digest = server.serves("digest", 7000);
    let address = server.at(7000).to_string();
    client.run_peer(&["transfer", &address, "3000000", "5000001", "4"]).expect_success();
    let _echo = server.serves("echo", 7001);
    let wrong = server.at(7001).to_string();
    client.run_peer(&["transfer", &wrong, "1000", "1000", "1"]).expect_failure();
}

#[test]
fn a_pod_that_vanishes_is_gone() {
    let bed = Testbed::two_nodes("plain-vanish");
    let (client, server) = (bed.node(1).pod("client").start(), bed.node(2).pod("server").start());
    let _echo = server.serves("echo", 7000);
    client.connects(server.at(7000)).echoes("here");
    server.vanishes();
    eventually("the pod's address leads nowhere", || {
        let url = format!("http://{}/", server.at(7000));
        let sent = client.curl(&url).arguments(&["--connect-timeout", "1"]).send();
        if sent.ran().code() == Some(0) { Err("still answers") } else { Ok(()) }
    });
}

#[test]
fn a_bed_leaves_nothing_behind_twice_in_a_row() {
    for _ in 0..2 {
        let bed = Testbed::two_nodes("plain-clean");
        let run = bed.run().clone();
        let pod = bed.node(2).pod("web").start();
        let nginx = pod.runs_nginx(8080);
        assert!(!run.leftovers().is_empty(), "the bed exists");
        drop(bed);
        assert_eq!(run.leftovers(), Vec::<String>::new());
        nginx.wait();
    }
}

#[test]
fn a_bed_leaves_nothing_behind_after_a_panic() {
    let bed = Testbed::two_nodes("plain-panic");
    let run = bed.run().clone();
    let result = std::panic::catch_unwind(AssertUnwindSafe(move || {
        let pod = bed.node(1).pod("web").start();
        let _server = pod.serves("mute", 7000);
        panic!("on purpose");
    }));
    assert!(result.is_err());
    assert_eq!(run.leftovers(), Vec::<String>::new());
}

#[test]
fn the_next_run_removes_what_a_killed_run_left() {
    let mut command = Command::new(process::peer());
    let output = command.arg("abandon").output().expect("run `peer abandon`");
    let name = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let run = RunId::of(&name).unwrap_or_else(|| panic!("{output:?}"));
    // Another test's first bed may have reaped it by now; either way it must go.
    tests::reap();
    eventually("the abandoned run is gone", || {
        let left = run.leftovers();
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}
