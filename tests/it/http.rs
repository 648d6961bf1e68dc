//! HTTP between two nodes: routing, L7 policy, and what is on the wire.

use nix::sys::signal::Signal;
use serde_json::json;
use tests::{Allow, Inbound, MeshConfig, Service, eventually, mesh};

#[test]
fn an_allowed_request_arrives_with_its_source_address() {
    let mesh = mesh::web_and_client("http-allowed");
    mesh.client
        .curl(mesh::WEB)
        .expect_status(200)
        .expect_body(&format!("hello from web, you are {}", mesh.client.ip()));
    for (agent, direction) in [(mesh.near(), "outbound"), (mesh.far(), "inbound")] {
        let entry = agent.logs_access(&[direction, "\"response_code\":200"]);
        assert_eq!(entry["source_identity"], mesh.client.identity(), "{entry}");
        assert_eq!(entry["destination_identity"], mesh.server.identity(), "{entry}");
        assert_eq!(entry["connection_security_policy"], "mutual_tls", "{entry}");
        assert_eq!(entry["response_flags"], "-", "{entry}");
    }
    let near = mesh.near().logs_access(&["outbound"]);
    assert_eq!(near["original_destination"], "10.96.0.10:80", "{near}");
    let far = mesh.far().logs_access(&["inbound"]);
    assert_eq!(far["policy"], "client-may-read", "{far}");
}

#[test]
fn a_method_that_policy_does_not_allow_is_403_and_logged() {
    let mesh = mesh::web_and_client("http-denied");
    let response =
        mesh.client.curl("http://10.96.0.10/orders/7").method("DELETE").expect_status(403);
    assert!(!response.body().contains("hello"), "{}", response.ran());
    let entry = mesh.far().logs_access(&["DELETE", "/orders/7"]);
    assert_eq!(entry["source_identity"], mesh.client.identity(), "{entry}");
    assert_eq!(entry["response_code"], 403, "{entry}");
    assert!(entry["response_flags"].to_string().contains("UAEX"), "{entry}");
    assert!(entry["denied_reason"].is_string(), "{entry}");
    assert!(!mesh.server.nginx_log(mesh::WEB_PORT).contains("DELETE"));
    // The connection is not at fault: the next request on it passes.
    let both = mesh.client.run(&[
        "curl",
        "-sS",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}\n",
        "-X",
        "DELETE",
        mesh::WEB,
        "--next",
        "-sS",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code} %{num_connects}\n",
        mesh::WEB,
    ]);
    assert_eq!(both.stdout(), "403\n200 0\n", "{both}");
}

#[test]
fn the_wrong_identity_is_denied() {
    let mesh = mesh::web_and_client("http-identity");
    let intruder = mesh.enrolled_pod("intruder");
    intruder.curl(mesh::WEB).expect_status(403);
    let entry = mesh.far().logs_access(&["\"response_code\":403"]);
    assert_eq!(entry["source_identity"], intruder.identity(), "{entry}");
    assert_eq!(mesh.server.nginx_log(mesh::WEB_PORT), "");
    mesh.client.curl(mesh::WEB).expect_status(200);
}

#[test]
fn nothing_on_the_wire_is_plaintext() {
    let mesh = mesh::web_and_client("http-wire");
    let wire = mesh.bed.wire().capture();
    mesh.client.curl("http://10.96.0.10/very-secret").header("x-test: hidden").expect_status(200);
    mesh.client.curl("http://[fd00:96::10]/very-secret").expect_status(200);
    wire.expect_only_tls();
    for secret in ["very-secret", "hello from web", "x-test", "hidden", "HTTP/1.1"] {
        wire.expect_no_trace_of(secret);
    }
}

#[test]
fn http2_with_prior_knowledge_is_served() {
    let mesh = mesh::web_and_client("http-h2c");
    let response = mesh.client.curl(mesh::WEB).http2().expect_status(200);
    assert!(response.ran().stdout().starts_with("HTTP/2 200"), "{}", response.ran());
    mesh.client.curl(mesh::WEB).http2().method("POST").body("x").expect_status(403);
}

#[test]
fn many_requests_on_many_connections_all_succeed() {
    let mesh = mesh::web_and_client("http-load");
    let ran = mesh.client.run_peer(&["load", "10.96.0.10:80", "web", "16", "2"]).expect_success();
    let requests = ran.json()["requests"].as_f64().unwrap_or_default();
    assert!(requests > 100.0, "{ran}");
    eventually("both agents count every request", || {
        let name = "istio_requests_total";
        let counted = [mesh.near(), mesh.far()].map(|agent| agent.metrics().sum(name, &[]));
        if counted.iter().all(|&c| c >= requests) { Ok(()) } else { Err((counted, requests)) }
    });
    for agent in &mesh.agents {
        assert!(agent.metrics().has("istio_request_duration_milliseconds_bucket"));
    }
}

/// Two services' worth of routes, inline and by RDS.
fn routes() -> serde_json::Value {
    json!([
        { "match": { "path": "/teapot" },
          "direct_response": { "status": 418, "body": { "inline_string": "short and stout\n" } } },
        { "match": { "safe_regex": { "regex": "/v[0-9]+/gone" } },
          "direct_response": { "status": 410 } },
        { "match": { "prefix": "/", "headers": [
            { "name": "x-canary", "string_match": { "exact": "always" } } ] },
          "direct_response": { "status": 299 } },
        { "match": { "prefix": "/old/" }, "route": { "cluster": "web", "prefix_rewrite": "/new/" } },
        { "match": { "prefix": "/split" }, "route": { "weighted_clusters": { "clusters": [
            { "name": "web", "weight": 1 }, { "name": "web", "weight": 0 } ] } } },
        { "match": { "prefix": "/" }, "route": { "cluster": "web" } },
    ])
}

#[test]
fn routes_match_by_path_prefix_regex_and_header() {
    let mut mesh = mesh::web_and_client("http-routes");
    for by_rds in [false, true] {
        let mut service = Service::http("web", "10.96.0.10:80")
            .backed_by(&mesh.server, mesh::WEB_PORT)
            .routes(routes());
        if by_rds {
            service = service.by_rds();
        }
        let inbound = Inbound::http(&mesh.server, mesh::WEB_PORT).open();
        mesh.reconfigure(MeshConfig::new().service(&service).inbound(&inbound));
        let check = |path: &str, status| {
            mesh.client.curl(&format!("http://10.96.0.10{path}")).expect_status(status)
        };
        check("/teapot", 418).expect_body("short and stout");
        check("/teapot/not", 200);
        check("/v12/gone", 410);
        check("/vx/gone", 200);
        check("/split", 200);
        check("/old/thing?q=1", 200);
        assert!(mesh.server.nginx_log(mesh::WEB_PORT).contains("GET /new/thing?q=1"));
        mesh.client.curl(mesh::WEB).header("x-canary: always").expect_status(299);
        mesh.client.curl(mesh::WEB).header("x-canary: never").expect_status(200);
    }
}

#[test]
fn a_host_that_no_virtual_host_is_for_is_404() {
    let mut mesh = mesh::web_and_client("http-hosts");
    let service = Service::http("web", "10.96.0.99:80").backed_by(&mesh.server, mesh::WEB_PORT);
    let listener = json!({
        "name": "hosts", "traffic_direction": "OUTBOUND",
        "address": { "socket_address": { "address": "10.96.0.10", "port_value": 80 } },
        "filter_chains": [{ "filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": "hosts",
                "route_config": { "name": "hosts", "virtual_hosts": [
                    { "name": "exact", "domains": ["shop.example"],
                      "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "web" } }] },
                    { "name": "wild", "domains": ["*.wild.example"],
                      "routes": [{ "match": { "prefix": "/" }, "direct_response": { "status": 203 } }] },
                ] },
                "http_filters": [{ "name": "envoy.filters.http.router", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" } }],
            },
        }] }],
    });
    let inbound = Inbound::http(&mesh.server, mesh::WEB_PORT).open();
    let config = MeshConfig::new().service(&service).inbound(&inbound).raw_listener(listener);
    mesh.reconfigure(config);
    let check = |host: &str, status| {
        mesh.client.curl(mesh::WEB).header(&format!("Host: {host}")).expect_status(status);
    };
    check("shop.example", 200);
    check("a.wild.example", 203);
    check("nobody.example", 404);
    let entry = mesh.near().logs_access(&["nobody.example"]);
    assert!(entry["response_flags"].to_string().contains("NR"), "{entry}");
}

#[test]
fn a_host_becomes_the_name_of_an_endpoint_behind_a_tunnel() {
    let mut mesh = mesh::web_and_client("http-hostname");
    let routes = json!([{
        "match": { "prefix": "/" }, "route": { "cluster": "web", "auto_host_rewrite": true },
    }]);
    let service = Service::http("web", "10.96.0.10:80")
        .backed_by(&mesh.server, mesh::WEB_PORT)
        .called("named.test")
        .routes(routes);
    let inbound = Inbound::http(&mesh.server, mesh::WEB_PORT).open();
    mesh.reconfigure(MeshConfig::new().service(&service).inbound(&inbound));
    mesh.client.curl(mesh::WEB).header("Host: asked.test").expect_status(200);
    let there = mesh.far().logs_access(&["named.test"]);
    assert_eq!(there["authority"], "named.test", "{there}");
    let here = mesh.near().logs_access(&["asked.test"]);
    assert_eq!(here["authority"], "asked.test", "{here}");
}

#[test]
fn requests_are_spread_over_endpoints() {
    let mut mesh = mesh::web_and_client("http-balance");
    let second = mesh.bed.node(2).pod("web-2").service_account("web").start();
    let _nginx = second.runs_nginx(mesh::WEB_PORT);
    mesh.far().enroll(&second);
    let service = Service::http("web", "10.96.0.10:80")
        .backed_by(&mesh.server, mesh::WEB_PORT)
        .backed_by(&second, mesh::WEB_PORT);
    let open = |pod| Inbound::http(pod, mesh::WEB_PORT).open();
    mesh.reconfigure(
        MeshConfig::new().service(&service).inbound(&open(&mesh.server)).inbound(&open(&second)),
    );
    for _ in 0..10 {
        mesh.client.curl(mesh::WEB).expect_status(200);
    }
    let counts = [&mesh.server, &second].map(|pod| pod.nginx_log(mesh::WEB_PORT).lines().count());
    assert_eq!(counts, [5, 5], "round robin");
}

#[test]
fn a_backend_that_is_down_is_503_and_flagged() {
    let mesh = mesh::web_and_client("http-down");
    // Not by SIGKILL, which would leave the workers behind.
    mesh.program.signal(Signal::SIGTERM);
    mesh.program.wait();
    mesh.client.curl(mesh::WEB).expect_status(503);
    let entry = mesh.far().logs_access(&["\"response_code\":503"]);
    assert!(entry["response_flags"].to_string().contains("UF"), "{entry}");
}

#[test]
fn policy_speaks_the_whole_language() {
    let mut mesh = mesh::web_and_client("http-language");
    let regex = json!({ "authenticated": { "principal_name": { "safe_regex": {
        "regex": "spiffe://cluster\\.local/ns/default/sa/(client|friend)" } } } });
    let not_from_there = json!({ "not_id": { "direct_remote_ip": { "address_prefix": "10.244.2.0", "prefix_len": 24 } } });
    let allow = Allow::policy("complicated")
        .principal(json!({ "and_ids": { "ids": [regex, not_from_there] } }))
        .methods(&["GET", "PUT"])
        .path_prefix("/api/")
        .permission(
            json!({ "not_rule": { "header": { "name": "x-test", "present_match": true } } }),
        )
        .permission(json!({ "destination_port": 8080 }));
    let inbound = Inbound::http(&mesh.server, mesh::WEB_PORT).allow(allow);
    let service = Service::http("web", "10.96.0.10:80").backed_by(&mesh.server, mesh::WEB_PORT);
    mesh.reconfigure(MeshConfig::new().service(&service).inbound(&inbound));
    let curl = |path: &str| mesh.client.curl(&format!("http://10.96.0.10{path}"));
    curl("/api/x").expect_status(200);
    curl("/api/x").method("PUT").body("1").expect_status(200);
    curl("/api/x").method("POST").body("1").expect_status(403);
    curl("/other").expect_status(403);
    curl("/api/x").header("x-test: 1").expect_status(403);
    mesh.enrolled_pod("stranger").curl("http://10.96.0.10/api/x").expect_status(403);
}

/// By mTLS from the other node, and within the agent from this one.
#[test]
fn workloads_are_told_who_their_clients_are() {
    let mut mesh = mesh::web_and_client("http-client-cert");
    let near = mesh.bed.node(2).pod("near").start();
    mesh.far().enroll(&near);
    let service = Service::http("web", "10.96.0.10:80").backed_by(&mesh.server, mesh::WEB_PORT);
    let inbound = Inbound::http(&mesh.server, mesh::WEB_PORT).open().plaintext();
    let config = MeshConfig::new().service(&service).inbound(&inbound);
    let outsider = mesh.plain_pod("outsider");
    let own = mesh.server.identity();
    let claim = "x-forwarded-client-cert: Hash=1;URI=spiffe://cluster.local/ns/a/sa/admin";
    let claimed = claim.split_once(": ").unwrap().1;
    let details = json!({
        "subject": true, "cert": true, "chain": true, "dns": true, "uri": true,
    });
    for (mode, expected) in [
        ("SANITIZE", "<>".to_owned()),
        ("SANITIZE_SET", "<By=OWN;URI=CLIENT>".to_owned()),
        ("APPEND_FORWARD", "<By=OWN;URI=CLIENT>".to_owned()),
        ("FORWARD_ONLY", "<>".to_owned()),
        ("ALWAYS_FORWARD_ONLY", format!("<{claimed}>")),
    ] {
        let fields = json!({
            "forward_client_cert_details": mode, "set_current_client_cert_details": details,
        });
        mesh.reconfigure(config.clone().managers(&fields));
        for client in [&mesh.client, &near] {
            // What an application claims the agent beside it takes away.
            let said = client.curl("http://10.96.0.10/echo-client").header(claim);
            let expected = expected.replace("OWN", &own).replace("CLIENT", &client.identity());
            assert_eq!(said.expect_status(200).body().trim(), expected, "{mode}");
        }
        // Nobody vouches for who comes in the clear.
        let url = format!("http://{}/echo-client", mesh.server.at(mesh::WEB_PORT));
        let said = outsider.curl(&url).header(claim).expect_status(200);
        let expected = if mode == "ALWAYS_FORWARD_ONLY" { &expected } else { "<>" };
        assert_eq!(said.body().trim(), expected, "{mode}");
    }
}

/// The answer comes while the request's body is still on its way.
#[test]
fn an_early_answer_over_http2_is_not_reset() {
    let mesh = mesh::web_and_client("http-h2-early");
    let large = "x".repeat(100_000);
    for _ in 0..10 {
        mesh.client.curl(mesh::WEB).http2().method("POST").body(&large).expect_status(403);
    }
}
