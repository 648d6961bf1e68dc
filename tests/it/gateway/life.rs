//! What becomes of a gateway's connections and secrets as its configuration changes, and whom
//! it serves.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use super::*;

const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

#[test]
fn gateway_certificates_by_sds_change_under_live_connections() {
    let pki = Pki::foreign();
    let gateway = Gateway::start("gateway-sds", |_| Vec::new());
    let context = json!({ "common_tls_context": { "tls_certificate_sds_secret_configs": [{
        "name": "edge",
        "sds_config": { "ads": {} },
    }] } });
    let address = gateway.mesh.bed.node(1).gateway().to_string();
    let chain = terminated(context, http_to("web"));
    let edge = listener("edge", (&address, 8443), json!([chain]));
    let with = |own: Value| {
        let secret = json!({ "@type": SECRET, "name": "edge", "tls_certificate": own });
        gateway.mesh.config.clone().raw_listener(edge.clone()).raw(secret)
    };
    let put = |name: &str| {
        let own = pki.issue(&[name], Validity::Now);
        gateway.agent().configure(&with(certificate(&own)));
    };
    put("old.example");
    let trust = gateway.client_files(pki.root_pem(), None);
    let becomes = |name: &str| {
        eventually(name, || {
            let status = gateway.https(name, 8443, &trust).send().status();
            if status == Some(200) { Ok(()) } else { Err(status) }
        });
    };
    becomes("old.example");
    let mut kept = gateway.outside.connects_by_tls(gateway.at(8443));
    kept.says(GET).hears("hello from web");
    put("new.example");
    becomes("new.example");
    assert_eq!(gateway.https("old.example", 8443, &trust).send().ran().code(), Some(60));
    kept.says(GET).hears("hello from web");
    // A broken one changes nothing.
    let broken = with(json!({
        "certificate_chain": { "inline_string": "no PEM" },
        "private_key": { "inline_string": "nor this" },
    }));
    broken.write_to(&gateway.mesh.bed.node(1).config_dir());
    gateway.agent().logs(&["configuration refused", "secrets[edge]"]);
    gateway.https("new.example", 8443, &trust).expect_status(200);
}

#[test]
fn gateway_requests_in_hand_are_answered_when_their_listener_goes() {
    let gateway = Gateway::start("gateway-drain", |address| {
        vec![listener("edge", (address, 8000), json!([{ "filters": [http_to("web")] }]))]
    });
    // Half a request: it is in hand until its body has come.
    let mut held = gateway.outside.connects(gateway.at(8000));
    held.says("GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nab");
    eventually("the request is in hand", || {
        let live = gateway.agent().connections();
        let shown =
            live.as_array().is_some_and(|all| all.iter().any(|one| one["direction"] == "gateway"));
        if shown { Ok(()) } else { Err(live) }
    });
    gateway.agent().configure(&gateway.mesh.config);
    let refused = || {
        let (_, how) = gateway.outside.connects(gateway.at(8000)).rest();
        how == end::REFUSED
    };
    eventually("new connections are refused", || if refused() { Ok(()) } else { Err(()) });
    held.says("cd").hears("hello from web");
    let (rest, how) = held.rest();
    assert!([end::CLOSED, end::RESET].contains(&how), "{rest} {how}");
}

/// Tells what a request said, and whom it is taken for.
fn telling(use_remote_address: bool) -> Value {
    let mut manager = http_to("web");
    let typed = &mut manager["typed_config"];
    typed["use_remote_address"] = use_remote_address.into();
    let told = |name: &str, value: &str| json!({ "header": { "key": name, "value": value } });
    typed["route_config"]["virtual_hosts"][0]["routes"] = json!([{
        "match": { "prefix": "/" },
        "direct_response": { "status": 200, "body": { "inline_string": "told\n" } },
        "response_headers_to_add": [
            told("x-xff", "%REQ(X-FORWARDED-FOR)%"),
            told("x-client", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"),
            told("x-peer", "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%"),
        ],
    }]);
    manager
}

#[test]
fn gateway_adds_its_client_to_those_before_and_believes_whom_it_is_told_to() {
    let gateway = Gateway::start("gateway-xff", |address| {
        let mut hops = telling(true);
        hops["typed_config"]["xff_num_trusted_hops"] = 1.into();
        vec![
            listener("edge", (address, 8000), json!([{ "filters": [telling(true)] }])),
            listener("behind", (address, 8001), json!([{ "filters": [telling(false)] }])),
            listener("hops", (address, 8002), json!([{ "filters": [hops] }])),
        ]
    });
    let peer = gateway.outside.ip().to_string();
    let ask = |port: u16, said: &str| {
        let curl = gateway.outside.curl(&gateway.url("http", port));
        let response = curl.header(&format!("x-forwarded-for: {said}")).expect_status(200);
        ["x-xff", "x-client", "x-peer"]
            .map(|name| response.header(name).unwrap_or_default().to_owned())
    };
    let said = "192.0.2.1, 192.0.2.2";
    let added = format!("{said},{peer}");
    assert_eq!(ask(8000, said), [&*added, &*peer, &*peer]);
    assert_eq!(ask(8001, said), [said, "192.0.2.2", &*peer]);
    assert_eq!(ask(8002, said), [&*added, "192.0.2.2", &*peer]);
    // What is no address names nobody.
    assert_eq!(ask(8001, "nobody"), ["nobody", &*peer, &*peer]);
}

#[test]
fn gateway_serves_ipv6_and_pods_of_its_own_node() {
    let gateway = Gateway::start("gateway-own-node", |_| Vec::new());
    let local = &gateway.mesh.client;
    let _program = local.runs_nginx(WEB_PORT);
    let principal = json!({ "authenticated": { "principal_name": { "exact": IDENTITY } } });
    let config = gateway
        .mesh
        .config
        .clone()
        .service(&Service::http("near", "10.96.0.12:80").backed_by(local, WEB_PORT))
        .inbound(
            &Inbound::http(local, WEB_PORT).allow(Allow::policy("gateways").principal(principal)),
        );
    let address = gateway.mesh.bed.node(1).gateway().to_string();
    let chain = |to: &str| json!([{ "filters": [http_to(to)] }]);
    gateway.serve_with(
        config,
        vec![
            listener("near", (&address, 8000), chain("near")),
            listener("six", ("::1", 8006), chain("near")),
        ],
    );
    gateway.outside.curl(&gateway.url("http", 8000)).expect_status(200);
    let entry = gateway.agent().logs_access(&["inbound", "\"response_code\":200", IDENTITY]);
    assert_eq!(entry["connection_security_policy"], "mutual_tls", "{entry}");
    let answer = gateway.mesh.bed.node(1).netns().enter(|| {
        let mut stream = TcpStream::connect("[::1]:8006").unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let entry = gateway.agent().logs_access(&["\"gateway\"", "[::1]:8006"]);
    assert!(entry["source_address"].to_string().contains("[::1]:"), "{entry}");
}

/// Waits for a client's first bytes for as long as `timeout` says.
fn waiting(name: &str, at: (&str, u16), timeout: &str, filters: Vec<Value>) -> Value {
    let mut listener = listener(name, at, json!([{ "filters": filters }]));
    listener["listener_filters"] = inspected();
    listener["listener_filters_timeout"] = timeout.into();
    listener
}

#[test]
fn gateway_judges_by_what_is_in_force_when_a_client_has_spoken() {
    const ECHO_PORT: u16 = 9001;
    let gateway = Gateway::start("gateway-waiting", |_| Vec::new());
    let server = &gateway.mesh.server;
    let _echo = server.serves("echo", ECHO_PORT);
    let principal = json!({ "authenticated": { "principal_name": { "exact": IDENTITY } } });
    let inside =
        Inbound::tcp(server, ECHO_PORT).allow(Allow::policy("gateways").principal(principal));
    let echo = Service::tcp("echo", "10.96.0.13:1").backed_by(server, ECHO_PORT);
    let config = gateway.mesh.config.clone().service(&echo).inbound(&inside);
    gateway.mesh.far().configure(&config);
    let address = gateway.mesh.bed.node(1).gateway().to_string();
    let listeners = |filters: &[Value]| {
        let waits = |name, port| waiting(name, (&address, port), "0s", filters.to_vec());
        vec![waits("edge", 8000), waits("going", 8001), waits("open", 8002), waits("late", 8003)]
    };
    gateway.serve_with(config.clone(), listeners(&[tcp_to("echo")]));
    // Whoever came before one that is served has been accepted.
    let accepted = |port: u16, said: &[u8]| {
        let mut waits = gateway.outside.connects(gateway.at(port));
        waits.says(said);
        gateway.outside.connects(gateway.at(port)).echoes("PING\r\n");
        waits
    };
    let half = b"\x16\x03\x01";
    let mut denied = [accepted(8000, b""), accepted(8000, half)];
    let mut going = [accepted(8001, b""), accepted(8001, half)];
    let mut open = accepted(8002, half);
    let mut late = [accepted(8003, b""), accepted(8003, half)];
    let served = || {
        let reached = gateway.mesh.far().metrics();
        reached.sum("mesh_captured_connections_total", &[r#"direction="inbound""#])
    };
    let before = served();

    let nobody = json!({ "action": "DENY", "policies": { "nobody": {
        "permissions": [{ "any": true }],
        "principals": [{ "any": true }],
    } } });
    let rbac = json!({
        "name": "rbac",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC",
            "stat_prefix": "r",
            "rules": nobody,
        },
    });
    let mut changed = listeners(&[rbac, tcp_to("echo")]);
    // Nobody looks any more, and everybody may come; and who says nothing has its time.
    changed[2] = listener("open", (&address, 8002), json!([{ "filters": [tcp_to("echo")] }]));
    changed[3]["listener_filters_timeout"] = "1s".into();
    changed.remove(1);
    gateway.serve_with(config, changed);
    for one in going.iter_mut().chain(&mut late) {
        assert_eq!(one.rest(), (String::new(), end::RESET));
    }
    for one in &mut denied {
        one.says("and what is nobody's business\r\n");
        assert_eq!(one.rest(), (String::new(), end::RESET));
    }
    let entry = gateway.agent().logs_access(&["\"gateway\"", "`nobody` denies it"]);
    assert!(entry["upstream_cluster"].is_null(), "{entry}");
    gateway.agent().logs(&["connection refused", "listener_filter", "was removed"]);
    open.hears(half).echoes("and more");
    assert_eq!(served(), before + 1.0, "nobody else has reached the server");
}

#[test]
fn gateway_judges_a_client_by_whom_it_trusts_after_the_handshake() {
    let (ours, theirs) = (Pki::foreign(), Pki::foreign());
    let (own, friend) =
        (ours.issue(&["edge.example"], Validity::Now), ours.issue(&["friend"], Validity::Now));
    let gateway = Gateway::start("gateway-late-trust", |_| Vec::new());
    let address = gateway.mesh.bed.node(1).gateway().to_string();
    let trusts = |root: &str| {
        let mut chain = terminated(
            json!({
                "require_client_certificate": true,
                "common_tls_context": {
                    "tls_certificates": [certificate(&own)],
                    "validation_context": { "trusted_ca": { "inline_string": root } },
                },
            }),
            http_to("web"),
        );
        chain["transport_socket_connect_timeout"] = "120s".into();
        gateway.serve(vec![listener("edge", (&address, 8443), json!([chain]))]);
    };
    let directory = gateway.mesh.bed.directory();
    let written = |name: &str, text: &str| {
        let path = directory.join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let files = [
        written("friend.pem", &friend.certificate_pem),
        written("friend-key.pem", &friend.key_pem),
    ];
    let holds = |go: &str| {
        let mut command = std::process::Command::new("python3");
        command.arg(crate::upgrades::program("slow_handshake.py"));
        command.args([&*address, "8443"]).args(&files).arg(directory.join(go));
        let client = gateway.outside.starts(go, command);
        eventually("all but the last flight is said", || {
            if client.log().contains("held") { Ok(()) } else { Err(client.log()) }
        });
        client
    };
    let told = |client: &tests::Process| {
        eventually("it has ended", || {
            if client.log().contains("ended") { Ok(client.log()) } else { Err(client.log()) }
        })
    };
    trusts(ours.root_pem());
    let kept = holds("first");
    written("first", "");
    assert!(told(&kept).contains("hello from web"), "{}", kept.log());
    let cut = holds("second");
    trusts(theirs.root_pem());
    written("second", "");
    assert!(!told(&cut).contains("hello"), "{}", cut.log());
    gateway.agent().logs(&["connection refused", "client_refused"]);
}
