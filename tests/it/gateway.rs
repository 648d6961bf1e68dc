//! Gateway listeners: clients from outside the mesh, who know nothing of it, at a node's
//! own address.

mod life;
mod limits;

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    sync::atomic::{AtomicUsize, Ordering},
};

use serde_json::{Value, json};
use tests::{
    Agent, Allow, Inbound, Mesh, MeshConfig, Pod, Service, Testbed,
    config::{TCP_PROXY, replace},
    control_plane::ControlPlane,
    conversation::end,
    curl::Curl,
    eventually,
    pki::{Credentials, Pki, Validity},
};

const HTTP_MANAGER: &str = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
const INSPECTOR: &str =
    "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";
const PROXY_PROTOCOL: &str =
    "type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol";
/// Who a node's gateway is unless it is said.
const IDENTITY: &str = "spiffe://cluster.local/ns/mesh-system/sa/gateway";
const WEB_PORT: u16 = 8080;

/// A mesh with `web` behind it on the other node, and a client that is not of it.
pub(crate) struct Gateway {
    pub(crate) mesh: Mesh,
    pub(crate) outside: Pod,
}

impl Gateway {
    /// With listeners on the first node that `listeners` makes of its address.
    pub(crate) fn start(name: &str, listeners: impl FnOnce(&str) -> Vec<Value>) -> Self {
        let bed = Testbed::two_nodes(name);
        let (client, web) = (bed.node(1).pod("client").start(), bed.node(2).pod("web").start());
        let outside = bed.node(1).pod("outside").start();
        let program = web.runs_nginx(WEB_PORT);
        let config = behind(&web);
        let address = bed.node(1).gateway().to_string();
        let mesh = Mesh::start(bed, client, web, program, config.clone());
        let gateway = Self { mesh, outside };
        let listeners = listeners(&address);
        if !listeners.is_empty() {
            gateway.serve(listeners);
        }
        gateway
    }

    /// Gives the first node these listeners, and waits until they can be reached.
    fn serve(&self, listeners: Vec<Value>) {
        self.serve_with(self.mesh.config.clone(), listeners);
    }

    /// As [`Gateway::serve`], beside another configuration.
    fn serve_with(&self, config: MeshConfig, listeners: Vec<Value>) {
        let port = |listener: &Value| listener["address"]["socket_address"]["port_value"].as_u64();
        let ports: Vec<_> = listeners.iter().filter_map(port).collect();
        self.agent().configure(&listeners.into_iter().fold(config, MeshConfig::raw_listener));
        eventually("the gateway's listeners are bound", || {
            let bound = self.mesh.bed.node(1).netns().listening_ports();
            let missing = |port: &&u64| !bound.iter().any(|bound| u64::from(*bound) == **port);
            ports.iter().find(missing).map_or(Ok(()), Err)
        });
    }

    fn at(&self, port: u16) -> SocketAddr {
        (self.mesh.bed.node(1).gateway(), port).into()
    }

    pub(crate) fn agent(&self) -> &Agent {
        self.mesh.near()
    }

    pub(crate) fn url(&self, scheme: &str, port: u16) -> String {
        format!("{scheme}://{}:{port}/", self.mesh.bed.node(1).gateway())
    }
}

/// `web` takes `GET` from gateways and from nobody else.
fn behind(web: &Pod) -> MeshConfig {
    let gateway = json!({ "authenticated": { "principal_name": { "exact": IDENTITY } } });
    let reads = Allow::policy("gateways-may-read").principal(gateway).methods(&["GET"]);
    MeshConfig::new()
        .service(&Service::http("web", "10.96.0.10:80").backed_by(web, WEB_PORT))
        .inbound(&Inbound::http(web, WEB_PORT).allow(reads))
}

/// A listener of the node's own.
pub(crate) fn listener(name: &str, (address, port): (&str, u16), chains: Value) -> Value {
    json!({
        "name": name,
        "address": { "socket_address": { "address": address, "port_value": port } },
        "filter_chains": chains,
    })
}

/// Everything to `cluster`.
pub(crate) fn http_to(cluster: &str) -> Value {
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": HTTP_MANAGER,
            "stat_prefix": cluster,
            "use_remote_address": true,
            "route_config": { "name": cluster, "virtual_hosts": [{
                "name": cluster,
                "domains": ["*"],
                "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": cluster } }],
            }] },
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": { "@type": ROUTER },
            }],
        },
    })
}

#[test]
fn gateway_clients_reach_a_workload_by_mtls() {
    let gateway = Gateway::start("gateway-plain", |address| {
        vec![listener("edge", (address, 8000), json!([{ "filters": [http_to("web")] }]))]
    });
    let wire = gateway.mesh.bed.wire().capture();
    let url = gateway.url("http", 8000);
    gateway.outside.curl(&url).expect_status(200).expect_body("hello from web");
    gateway.outside.curl(&url).http2().expect_status(200).expect_body("hello from web");
    gateway.outside.curl(&url).method("DELETE").expect_status(403);
    wire.expect_only_tls();

    let client = gateway.outside.ip().to_string();
    let entry = gateway.agent().logs_access(&["\"gateway\"", "\"response_code\":200"]);
    assert!(entry["source_address"].to_string().contains(&client), "{entry}");
    assert_eq!(entry["source_identity"], Value::Null, "{entry}");
    // As of outbound connections: towards the workload.
    assert_eq!(entry["connection_security_policy"], "mutual_tls", "{entry}");
    let entry = gateway.mesh.far().logs_access(&["inbound", "\"response_code\":200"]);
    assert_eq!(entry["source_identity"], IDENTITY, "{entry}");
    gateway.mesh.far().logs_access(&["inbound", "\"response_code\":403"]);

    // The mesh's own clients are not who policy means, whichever way they take.
    gateway.mesh.client.curl("http://10.96.0.10/").expect_status(403);
    // It is the node's, and no pod's.
    assert!(gateway.mesh.bed.node(1).netns().listening_ports().contains(&8000));
    assert!(!gateway.mesh.client.netns().listening_ports().contains(&8000));
}

#[test]
fn gateway_is_who_the_agent_is_told() {
    let gateway = Gateway::start("gateway-identity", |address| {
        vec![listener("edge", (address, 8000), json!([{ "filters": [http_to("web")] }]))]
    });
    let Gateway { mut mesh, outside } = gateway;
    let url = format!("http://{}:8000/", mesh.bed.node(1).gateway());
    outside.curl(&url).expect_status(200);
    mesh.agents[0].restart_with(&["--gateway-service-account", "edge/someone"]);
    // Until its source delivers it may serve what was written last, from before the listener.
    eventually("the listener is back", || match outside.curl(&url).send().status() {
        None => Err("nobody answers"),
        Some(status) => {
            assert_eq!(status, 403);
            Ok(())
        }
    });
    let entry = mesh.far().logs_access(&["inbound", "someone"]);
    assert_eq!(entry["source_identity"], "spiffe://cluster.local/ns/edge/sa/someone", "{entry}");
}

/// A chain that terminates TLS: `common_tls_context` and what else there is to say.
fn terminated(context: Value, terminal: Value) -> Value {
    let mut typed = context;
    typed["@type"] = format!("{TLS}.DownstreamTlsContext").into();
    json!({
        "transport_socket": { "name": "envoy.transport_sockets.tls", "typed_config": typed },
        "filters": [terminal],
    })
}

fn certificate(credentials: &Credentials) -> Value {
    json!({
        "certificate_chain": { "inline_string": credentials.certificate_pem },
        "private_key": { "inline_string": credentials.key_pem },
    })
}

impl Gateway {
    /// Puts what a client needs where it can read it; arguments for curl.
    fn client_files(&self, root: &str, own: Option<&Credentials>) -> Vec<String> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let put = |name: &str, text: &str| {
            let path = self.mesh.bed.directory().join(format!("{number}-{name}"));
            fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let mut arguments = vec!["--cacert".to_owned(), put("root.pem", root)];
        if let Some(own) = own {
            let (certificate, key) =
                (put("own.pem", &own.certificate_pem), put("key.pem", &own.key_pem));
            arguments.extend(["--cert".to_owned(), certificate, "--key".to_owned(), key]);
        }
        arguments
    }

    /// By TLS for `name` at the gateway's `port`.
    fn https(&self, name: &str, port: u16, arguments: &[String]) -> Curl<'_> {
        let resolve = format!("{name}:{port}:{}", self.mesh.bed.node(1).gateway());
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let curl = self.outside.curl(&format!("https://{name}:{port}/"));
        curl.arguments(&["--resolve", &resolve]).arguments(&arguments)
    }
}

#[test]
fn gateway_terminates_tls_with_the_certificate_the_client_asks_for() {
    let pki = Pki::foreign();
    let first = pki.issue(&["first.example"], Validity::Now);
    let wildcard = pki.issue(&["*.shop.example"], Validity::Now);
    let gateway = Gateway::start("gateway-tls", |address| {
        let context = json!({ "common_tls_context": {
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_certificates": [certificate(&first), certificate(&wildcard)],
        } });
        let chain = terminated(context, http_to("web"));
        let mut impatient = chain.clone();
        impatient["transport_socket_connect_timeout"] = "1s".into();
        let versions = json!({ "common_tls_context": {
            "tls_params": { "tls_minimum_protocol_version": "TLSv1_3" },
            "tls_certificates": [certificate(&first)],
        } });
        vec![
            listener("edge", (address, 8443), json!([chain])),
            listener("impatient", (address, 8445), json!([impatient])),
            listener("modern", (address, 8444), json!([terminated(versions, http_to("web"))])),
        ]
    });
    let wire = gateway.mesh.bed.wire().capture();
    let trust = gateway.client_files(pki.root_pem(), None);
    for name in ["first.example", "a.shop.example", "B.shop.example"] {
        let response = gateway.https(name, 8443, &trust).expect_status(200);
        assert!(response.expect_body("hello from web").ran().stdout().starts_with("HTTP/2"));
    }
    let old = gateway.https("first.example", 8443, &trust).arguments(&["--http1.1"]);
    assert!(old.expect_status(200).ran().stdout().starts_with("HTTP/1.1"));
    // Who asks for something else gets the first, and does not take it.
    for name in ["other.example", "shop.example", "c.b.shop.example"] {
        let ran = gateway.https(name, 8443, &trust).send();
        assert_eq!(ran.ran().code(), Some(60), "{ran:?}");
    }
    let tls12 = ["--tls-max", "1.2"];
    gateway.https("first.example", 8443, &trust).arguments(&tls12).expect_status(200);
    gateway.https("first.example", 8444, &trust).expect_status(200);
    let ran = gateway.https("first.example", 8444, &trust).arguments(&tls12).send();
    assert_eq!(ran.ran().code(), Some(35), "{ran:?}");
    wire.expect_only_tls();

    let entry = gateway.agent().logs_access(&["\"gateway\"", "a.shop.example"]);
    assert_eq!(entry["response_code"], 200, "{entry}");
    let counted = |reason: &str| {
        let labels = [r#"direction="gateway""#, &format!("reason=\"{reason}\"")];
        eventually(reason, || {
            let metrics = gateway.agent().metrics();
            let failures = metrics.sum("mesh_handshake_failures_total", &labels);
            if failures > 0.0 { Ok(()) } else { Err(metrics.text().to_owned()) }
        });
    };
    counted("tls");

    // What is no handshake costs its own connection and nobody else's.
    let mut kept = gateway.outside.connects(gateway.at(8445));
    kept.says([22, 3, 1, 2, 0]);
    let plain = gateway.outside.curl(&gateway.url("http", 8443)).send();
    assert!([Some(52), Some(56), Some(1)].contains(&plain.ran().code()), "{plain:?}");
    let (_, end) = gateway.outside.connects(gateway.at(8443)).says("GET / HTTP/1.1\r\n\r\n").rest();
    assert!([end::CLOSED, end::RESET].contains(&end));
    let (_, end) =
        gateway.outside.connects(gateway.at(8443)).says([22, 3, 1, 0, 4, 9, 9, 9, 9]).rest();
    assert!([end::CLOSED, end::RESET].contains(&end));
    // Who began and went silent is let go of after the second that the chain gives.
    let (_, end) = kept.rest();
    assert!([end::CLOSED, end::RESET].contains(&end));
    counted("timeout");
    gateway.https("first.example", 8443, &trust).expect_status(200);
}

#[test]
fn gateway_clients_prove_who_they_are_where_they_must() {
    let (pki, foreign) = (Pki::foreign(), Pki::foreign());
    let own = pki.issue(&["edge.example"], Validity::Now);
    let gateway = Gateway::start("gateway-clients", |address| {
        let context = json!({
            "require_client_certificate": true,
            "common_tls_context": {
                "tls_certificates": [certificate(&own)],
                "validation_context": {
                    "trusted_ca": { "inline_string": pki.root_pem() },
                    "match_typed_subject_alt_names": [
                        { "san_type": "DNS", "matcher": { "suffix": ".friends.example" } },
                    ],
                },
            },
        });
        let mut to_web = http_to("web");
        let told = "%DOWNSTREAM_TLS_VERSION% %DOWNSTREAM_PEER_DNS_SAN% %DOWNSTREAM_TLS_CIPHER%";
        to_web["typed_config"]["route_config"]["response_headers_to_add"] =
            json!([{ "header": { "key": "x-told", "value": told } }]);
        vec![listener("edge", (address, 8443), json!([terminated(context, to_web)]))]
    });
    let ask = |own: Option<&Credentials>| {
        let files = gateway.client_files(pki.root_pem(), own);
        gateway.https("edge.example", 8443, &files).send()
    };
    let answer = |own: Option<&Credentials>| ask(own).status();
    let friend = pki.issue(&["a.friends.example"], Validity::Now);
    let answered = ask(Some(&friend));
    assert_eq!(answered.status(), Some(200));
    let told = answered.header("x-told").unwrap_or_default().to_owned();
    assert!(told.starts_with("TLSv1.3 a.friends.example TLS_"), "{told}");
    for (who, own) in [
        ("nobody", None),
        ("somebody else", Some(pki.issue(&["a.enemies.example"], Validity::Now))),
        ("who was a friend", Some(pki.issue(&["a.friends.example"], Validity::Past))),
        ("who will be a friend", Some(pki.issue(&["a.friends.example"], Validity::Future))),
        ("who says so", Some(foreign.issue(&["a.friends.example"], Validity::Now))),
    ] {
        assert_eq!(answer(own.as_ref()), None, "{who}");
    }
    assert_eq!(answer(Some(&friend)), Some(200));
    gateway.agent().logs(&["connection refused", "client_refused"]);
}

fn tcp_to(cluster: &str) -> Value {
    json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": { "@type": TCP_PROXY, "stat_prefix": cluster, "cluster": cluster },
    })
}

fn inspected() -> Value {
    json!([{
        "name": "envoy.filters.listener.tls_inspector",
        "typed_config": { "@type": INSPECTOR },
    }])
}

/// A chain for these names.
fn named(names: &[&str], mut chain: Value) -> Value {
    chain["filter_chain_match"] = json!({ "server_names": names });
    chain
}

#[test]
fn gateway_leads_by_sni_into_tls_that_it_does_not_end() {
    let pki = Pki::foreign();
    let (edge, inner) =
        (pki.issue(&["edge.example"], Validity::Now), pki.issue(&["a.raw.example"], Validity::Now));
    let gateway = Gateway::start("gateway-sni", |_| Vec::new());
    let _server = gateway.mesh.server.runs_tls_nginx(9443, &inner, pki.root_pem());
    let inside = Inbound::tcp(&gateway.mesh.server, 9443)
        .allow(Allow::policy("gateways").principal(json!({ "authenticated": {
            "principal_name": { "exact": IDENTITY } } })));
    let mut config = gateway.mesh.config.clone();
    let raw = Service::tcp("raw", "10.96.0.11:443").backed_by(&gateway.mesh.server, 9443);
    config = config.service(&raw).inbound(&inside);
    gateway.mesh.far().configure(&config);
    let context = json!({ "common_tls_context": { "tls_certificates": [certificate(&edge)] } });
    let address = gateway.mesh.bed.node(1).gateway().to_string();
    let mut listener = listener(
        "edge",
        (&address, 8443),
        json!([
            named(&["edge.example"], terminated(context, http_to("web"))),
            named(&["*.raw.example"], json!({ "filters": [tcp_to("raw")] })),
        ]),
    );
    listener["listener_filters"] = inspected();
    gateway.serve_with(config, vec![listener]);

    let wire = gateway.mesh.bed.wire().capture();
    let client = pki.issue(&["client.example"], Validity::Now);
    let files = gateway.client_files(pki.root_pem(), Some(&client));
    let web = gateway.https("edge.example", 8443, &files).expect_status(200);
    web.expect_body("hello from web");
    // The server itself sees the client's certificate: nobody has ended TLS before.
    let raw = gateway.https("a.raw.example", 8443, &files).expect_status(200);
    raw.expect_body("sni=a.raw.example");
    // No chain: closed, without a word of TLS.
    for name in ["other.example", "raw.example"] {
        let ran = gateway.https(name, 8443, &files).send();
        assert_eq!(ran.ran().code(), Some(35), "{ran:?}");
    }
    let (_, end) = gateway.outside.connects(gateway.at(8443)).says("GET / HTTP/1.1\r\n\r\n").rest();
    assert_eq!(end, end::RESET);
    wire.expect_only_tls();
    let entry = gateway.agent().logs_access(&["\"gateway\"", "no filter chain"]);
    assert_eq!(entry["response_flags"], "NR", "{entry}");
    let entry = gateway.mesh.far().logs_access(&["inbound-web-9443", IDENTITY]);
    assert_eq!(entry["source_identity"], IDENTITY, "{entry}");
}

#[test]
fn gateway_believes_the_proxy_protocol_where_it_is_told_to() {
    let gateway = Gateway::start("gateway-proxied", |address| {
        let mut proxied =
            listener("edge", (address, 8000), json!([{ "filters": [http_to("web")] }]));
        proxied["listener_filters"] = json!([{
            "name": "envoy.filters.listener.proxy_protocol",
            "typed_config": { "@type": PROXY_PROTOCOL },
        }]);
        let mut impatient = proxied.clone();
        impatient["name"] = "impatient".into();
        impatient["address"]["socket_address"]["port_value"] = 8001.into();
        impatient["listener_filters_timeout"] = "1s".into();
        vec![proxied, impatient]
    });
    let url = gateway.url("http", 8000);
    gateway.outside.curl(&url).arguments(&["--haproxy-protocol"]).expect_status(200);
    let request = "GET /proxied HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let header = "PROXY TCP4 203.0.113.7 198.51.100.1 4711 80\r\n";
    let (answer, _) =
        gateway.outside.connects(gateway.at(8000)).says(format!("{header}{request}")).rest();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let entry = gateway.agent().logs_access(&["/proxied"]);
    assert_eq!(entry["source_address"], "203.0.113.7:4711", "{entry}");
    // Who says nothing of it, or nothing at all, is not served.
    for (port, bytes) in [(8000, request), (8001, "")] {
        let (answer, end) = gateway.outside.connects(gateway.at(port)).says(bytes).rest();
        assert_eq!((answer.as_str(), end), ("", end::RESET), "{bytes}");
    }
}

#[test]
fn gateway_listeners_come_change_and_go() {
    let gateway = Gateway::start("gateway-lifecycle", |_| Vec::new());
    let address = gateway.mesh.bed.node(1).gateway().to_string();
    let plain = |name: &str, port| {
        listener(name, (&address, port), json!([{ "filters": [http_to("web")] }]))
    };
    let bound = |port: u16| gateway.mesh.bed.node(1).netns().listening_ports().contains(&port);
    // Somebody else has the address: it is said, the others are served, and it is tried again.
    let squatter = gateway.mesh.bed.node(1).netns().enter(|| TcpListener::bind(gateway.at(8002)));
    let squatter = squatter.unwrap();
    gateway.serve(vec![plain("one", 8001), plain("two", 8002)]);
    gateway.agent().logs(&["gateway listener not bound", "8002", "in use"]);
    gateway.outside.curl(&gateway.url("http", 8001)).expect_status(200);
    let told = gateway.agent().status().to_string();
    assert!(told.contains(":8002 is not bound"), "{told}");
    drop(squatter);
    eventually("the address is taken once it is free", || {
        let status = gateway.outside.curl(&gateway.url("http", 8002)).send().status();
        if status == Some(200) { Ok(()) } else { Err(status) }
    });

    // One goes: nobody gets in any more.
    gateway.serve(vec![plain("one", 8001)]);
    eventually("the socket is closed", || if bound(8002) { Err(()) } else { Ok(()) });
    let (_, end) = gateway.outside.connects(gateway.at(8002)).rest();
    assert_eq!(end, end::REFUSED);

    // Another route for a listener that stays touches no connection of it.
    let mut kept = gateway.outside.connects(gateway.at(8001));
    kept.says("GET / HTTP/1.1\r\nhost: a\r\n\r\n").hears("hello from web");
    let mut changed = plain("one", 8001);
    let manager = &mut changed["filter_chains"][0]["filters"][0]["typed_config"];
    manager["route_config"]["virtual_hosts"][0]["routes"][0] = json!({
        "match": { "prefix": "/" },
        "direct_response": { "status": 418 },
    });
    gateway.serve(vec![changed]);
    kept.says("GET / HTTP/1.1\r\nhost: a\r\n\r\n").hears("HTTP/1.1 418");
}

#[test]
fn gateway_certificates_in_files_change_under_live_connections() {
    let pki = Pki::foreign();
    let gateway = Gateway::start("gateway-rotation", |_| Vec::new());
    let directory = gateway.mesh.bed.directory();
    let (chain, key) = (directory.join("edge.pem"), directory.join("edge-key.pem"));
    let put = |name: &str| {
        let own = pki.issue(&[name], Validity::Now);
        replace(&key, &own.key_pem);
        replace(&chain, &own.certificate_pem);
    };
    put("old.example");
    let context = json!({ "common_tls_context": { "tls_certificates": [{
        "certificate_chain": { "filename": chain },
        "private_key": { "filename": key },
    }] } });
    let address = gateway.mesh.bed.node(1).gateway().to_string();
    let chain = terminated(context, http_to("web"));
    gateway.serve(vec![listener("edge", (&address, 8443), json!([chain]))]);
    let trust = gateway.client_files(pki.root_pem(), None);
    gateway.https("old.example", 8443, &trust).expect_status(200);

    // One that lives on, of a client that names and verifies nobody.
    let mut kept = gateway.outside.connects_by_tls(gateway.at(8443));
    kept.says("GET / HTTP/1.1\r\nhost: a\r\n\r\n").hears("hello from web");
    put("new.example");
    eventually("the new certificate is presented", || {
        let status = gateway.https("new.example", 8443, &trust).send().status();
        if status == Some(200) { Ok(()) } else { Err(status) }
    });
    assert_eq!(gateway.https("old.example", 8443, &trust).send().ran().code(), Some(60));
    kept.says("GET / HTTP/1.1\r\nhost: a\r\n\r\n").hears("hello from web");
}

#[test]
fn gateway_certificates_by_sds_rotate_under_live_connections() {
    let pki = Pki::foreign();
    let bed = Testbed::two_nodes("gateway-sds");
    let (node, outside) = (bed.node(1), bed.node(1).pod("outside").start());
    let address = node.gateway().to_string();
    let edge = |port: u16, secret: &str| {
        let ads = json!({ "ads": {}, "resource_api_version": "V3" });
        let certificates = json!([{ "name": secret, "sds_config": ads }]);
        let context = json!({ "tls_certificate_sds_secret_configs": certificates });
        let mut terminal = http_to("edge");
        terminal["typed_config"]["route_config"]["virtual_hosts"][0]["routes"] = json!([{
            "match": { "prefix": "/" },
            "direct_response": { "status": 200, "body": { "inline_string": "hello from edge" } },
        }]);
        let chain = terminated(json!({ "common_tls_context": context }), terminal);
        let mut listener = listener(&format!("edge-{port}"), (&address, port), json!([chain]));
        listener["@type"] = "type.googleapis.com/envoy.config.listener.v3.Listener".into();
        listener
    };
    let secret = |of: &Credentials| crate::sds::certificate("edge", of);
    let issue = |name: &str| pki.issue(&[name], Validity::Now);
    let (old, new) = (issue("old.example"), issue("new.example"));
    let mut control_plane = ControlPlane::start(node, &MeshConfig::new());
    control_plane.serves(vec![edge(8443, "edge"), secret(&old)]);
    let agent = node.agent().flags(&["--xds-server", &control_plane.uri()]).start();

    let root = bed.directory().join("root.pem");
    fs::write(&root, pki.root_pem()).unwrap();
    let gets = |name: &str| {
        let resolve = format!("{name}:8443:{address}");
        let curl = outside.curl(&format!("https://{name}:8443/"));
        curl.arguments(&["--resolve", &resolve, "--cacert", root.to_str().unwrap()]).send()
    };
    let presented = |name: &str| {
        eventually(&format!("the certificate for {name} is presented"), || {
            let response = gets(name);
            if response.status() == Some(200) { Ok(()) } else { Err(format!("{response:?}")) }
        });
    };
    presented("old.example");
    let mut kept = outside.connects_by_tls((node.gateway(), 8443).into());
    let mut asks = move || {
        kept.says("GET / HTTP/1.1\r\nhost: a\r\n\r\n").hears("hello from edge");
    };
    asks();
    control_plane.serves(vec![edge(8443, "edge"), secret(&new)]);
    presented("new.example");
    assert_eq!(gets("old.example").ran().code(), Some(60));
    asks();

    // What is of no use, and what the server has forgotten, changes nothing.
    let half = Credentials { key_pem: old.key_pem[..100].to_owned(), ..issue("old.example") };
    control_plane.serves(vec![edge(8443, "edge"), secret(&half)]);
    control_plane.is_refused("secrets[edge].tls_certificate");
    presented("new.example");
    control_plane.serves(vec![edge(8443, "edge")]);
    // Another listener waits for a secret that nobody has, and holds nobody up.
    control_plane.serves(vec![edge(8443, "edge"), edge(9443, "nobodys")]);
    eventually("the other one waits", || {
        let listeners = crate::xds::xds_type(&agent, "listeners");
        let warming = &listeners["warming"][0];
        let waits = warming["name"] == "edge-9443" && warming["waits_for"] == "secrets[nobodys]";
        if waits { Ok(()) } else { Err(listeners) }
    });
    presented("new.example");
    asks();
    control_plane.expect_no_violations();
}
