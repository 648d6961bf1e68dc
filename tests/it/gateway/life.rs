//! What becomes of a gateway's connections and secrets as its configuration changes, and whom
//! it serves.

use std::io::Read as _;

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
