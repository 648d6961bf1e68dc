//! Certificates by SDS: of workloads, and of clusters that speak TLS to endpoints
//! outside the mesh. The control plane is a real one, in Python; SPIRE's agent is not to
//! be had as a package, so its conventions are played by the same server.

use std::{fs, path::Path, process::Command, time::Duration};

use serde_json::{Value, json};
use tests::{
    Agent, Mesh, MeshConfig, Pod, Service, Testbed,
    control_plane::ControlPlane,
    eventually, eventually_within, mesh,
    pki::{Credentials, Pki, Validity},
};

const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
const UPSTREAM_TLS: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
const LONG: Duration = Duration::from_secs(30);

fn inline(pem: &str) -> Value {
    json!({ "inline_string": pem })
}

pub(crate) fn certificate(name: &str, of: &Credentials) -> Value {
    json!({
        "@type": SECRET,
        "name": name,
        "tls_certificate": {
            "certificate_chain": inline(&of.certificate_pem),
            "private_key": inline(&of.key_pem),
        },
    })
}

pub(crate) fn roots(name: &str, of: &[&Pki]) -> Value {
    let pem: String = of.iter().map(|pki| pki.root_pem()).collect();
    json!({
        "@type": SECRET,
        "name": name,
        "validation_context": { "trusted_ca": inline(&pem) },
    })
}

pub(crate) fn of_pod(pki: &Pki, pod: &Pod) -> Credentials {
    pki.issue(&[&pod.identity()], Validity::Now)
}

/// No private key of these is in the agent's state or in what it shows.
#[track_caller]
fn expect_secret(agent: &Agent, credentials: &[&Credentials]) {
    let shown = [agent.config_dump().to_string(), agent.status().to_string(), agent.log()];
    let mut files = vec![agent.node().state_dir()];
    let mut looked_at = 0;
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        looked_at += 1;
        let bytes = fs::read(&path).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        for [_, key] in credentials.iter().map(|c| c.marks()) {
            assert!(!text.contains(key), "a key is in {}", path.display());
        }
    }
    assert!(looked_at > 0, "there is no state");
    for [_, key] in credentials.iter().map(|c| c.marks()) {
        assert!(shown.iter().all(|text| !text.contains(key)), "a key is shown");
    }
}

/// A mesh of an echo server whose certificates a control plane hands out.
pub(crate) struct Issued {
    pub(crate) control_plane: ControlPlane,
    pub(crate) mesh: Mesh,
}

/// `flags` are given the control plane's address.
pub(crate) fn issued(
    name: &str,
    secrets: impl FnOnce(&Pod, &Pod) -> Vec<Value>,
    flags: impl Fn(&str) -> Vec<String>,
) -> Issued {
    let bed = Testbed::two_nodes(name);
    let (client, server) = (bed.node(1).pod("client").start(), bed.node(2).pod("server").start());
    let program = server.serves("echo", mesh::SERVER_PORT);
    let config = mesh::server_config(&client, &server);
    let mut control_plane = ControlPlane::start(bed.node(1), &config);
    control_plane.serves([config.resources(), secrets(&client, &server)].concat());
    let agents = [(1, &client), (2, &server)].map(|(number, pod)| {
        config.write_to(&bed.node(number).config_dir());
        let flags = flags(&control_plane.uri());
        let flags: Vec<_> = flags.iter().map(String::as_str).collect();
        bed.node(number).agent().with_pod(pod).flags(&flags).start_unready()
    });
    agents.iter().for_each(Agent::wait_ready);
    Issued { control_plane, mesh: Mesh { client, server, config, agents, program, bed } }
}

pub(crate) fn by_ads(mode: &str) -> impl Fn(&str) -> Vec<String> {
    let mode = mode.to_owned();
    move |uri| {
        ["--certificates", "sds", "--xds-server", uri, "--xds-mode", &mode]
            .map(str::to_owned)
            .to_vec()
    }
}

/// The certificate that the server's pod presents to whoever asks.
fn presented(mesh: &Mesh, outsider: &Pod) -> String {
    let target = mesh.server.at(15008).to_string();
    outsider.run(&["openssl", "s_client", "-connect", &target, "-showcerts"]).stdout().to_owned()
}

#[track_caller]
pub(crate) fn presents(mesh: &Mesh, outsider: &Pod, expected: &Credentials) {
    eventually_within(LONG, "the certificate is presented", || {
        let shown = presented(mesh, outsider);
        if shown.contains(expected.marks()[0]) { Ok(()) } else { Err(shown) }
    });
}

#[track_caller]
pub(crate) fn talks(mesh: &Mesh) {
    mesh.client.connects(mesh::SERVER.parse().unwrap()).echoes("a new connection");
}

fn workloads_live_by_what_is_pushed(mode: &str) {
    let (old, new) = (Pki::foreign(), Pki::foreign());
    let mut first = Vec::new();
    let Issued { mut control_plane, mesh } = issued(
        &format!("sds-{mode}"),
        |client, server| {
            first = vec![of_pod(&old, client), of_pod(&old, server)];
            vec![
                certificate(&client.identity(), &first[0]),
                certificate(&server.identity(), &first[1]),
                roots("ROOTCA", &[&old]),
            ]
        },
        by_ads(mode),
    );
    let config = mesh.config.resources();
    let (client, server) = (mesh.client.identity(), mesh.server.identity());
    let mut push = |mine: &Credentials, theirs: &Credentials, trusted: &[&Pki]| {
        let secrets = vec![
            certificate(&client, mine),
            certificate(&server, theirs),
            roots("ROOTCA", trusted),
        ];
        control_plane.serves([config.clone(), secrets].concat());
    };
    let outsider = mesh.plain_pod("outsider");
    let wire = mesh.bed.wire().capture();
    let mut talk = mesh.client.connects(mesh::SERVER.parse().unwrap());
    talk.echoes("before");
    presents(&mesh, &outsider, &first[1]);
    let proven = mesh.far().connections().to_string();
    assert!(proven.contains(&client), "{proven}");

    // Rotated: who comes next meets the new one, who is there stays.
    let second = [of_pod(&old, &mesh.client), of_pod(&old, &mesh.server)];
    push(&second[0], &second[1], &[&old]);
    presents(&mesh, &outsider, &second[1]);
    talk.echoes("across a rotation");
    talks(&mesh);

    // Another authority: both are trusted first, then it issues, then the old one goes.
    push(&second[0], &second[1], &[&old, &new]);
    for agent in &mesh.agents {
        eventually("both roots are trusted", || {
            let times = agent.log().matches("trust bundles delivered").count();
            if times >= 2 { Ok(()) } else { Err(times) }
        });
    }
    let third = [of_pod(&new, &mesh.client), of_pod(&new, &mesh.server)];
    push(&third[0], &third[1], &[&old, &new]);
    presents(&mesh, &outsider, &third[1]);
    talk.echoes("across authorities");
    talks(&mesh);
    let mut modern = mesh.client.connects(mesh::SERVER.parse().unwrap());
    modern.echoes("by the new authority");
    push(&third[0], &third[1], &[&new]);
    mesh.far().logs(&["cut after a change of trust", "not issued by a trusted root"]);
    talk.expect_cut_off();
    modern.echoes("still");
    talks(&mesh);

    // Somebody else's certificate is refused by name; the last good one stays.
    let strangers = new.issue(&["spiffe://cluster.local/ns/x/sa/stranger"], Validity::Now);
    push(&third[0], &strangers, &[&new]);
    mesh.far().logs(&["cannot renew", "issued certificate is for", "sa/stranger"]);
    let error = mesh.far().status()["certificates"][0]["last_error"].to_string();
    assert!(error.contains("sa/stranger"), "{error}");
    presents(&mesh, &outsider, &third[1]);
    // So is one that nobody here would believe.
    let foreign = Pki::foreign();
    push(&third[0], &of_pod(&foreign, &mesh.server), &[&new]);
    mesh.far().logs(&["cannot renew", "does not verify against the trust bundle"]);
    presents(&mesh, &outsider, &third[1]);
    // And a key that is none, or another's: to the control plane's face.
    let mut mixed = of_pod(&new, &mesh.server);
    mixed.key_pem.clone_from(&third[0].key_pem);
    push(&third[0], &mixed, &[&new]);
    let garbage = Credentials { key_pem: "garbage".to_owned(), ..third[1].clone() };
    eventually("the mixed pair was refused", || {
        let log = mesh.far().log();
        if log.contains("does not belong to the certificate") { Ok(()) } else { Err(()) }
    });
    push(&third[0], &garbage, &[&new]);
    eventually("the garbage was refused", || {
        let log = mesh.far().log();
        if log.contains("the private key can't be used") { Ok(()) } else { Err(()) }
    });
    presents(&mesh, &outsider, &third[1]);
    modern.echoes("through all of it");
    talks(&mesh);

    wire.expect_no_trace_of("across a rotation");
    wire.expect_no_trace_of("a new connection");
    for agent in &mesh.agents {
        expect_secret(agent, &[&first[0], &first[1], &second[0], &third[0], &third[1]]);
    }
    control_plane.is_refused("secrets[");
    control_plane.expect_no_violations();
}

#[test]
fn workloads_live_by_what_is_pushed_state_of_the_world() {
    workloads_live_by_what_is_pushed("sotw");
}

#[test]
fn workloads_live_by_what_is_pushed_delta() {
    workloads_live_by_what_is_pushed("delta");
}

#[test]
fn a_workload_without_its_secret_fails_closed_until_it_comes() {
    let pki = Pki::foreign();
    let Issued { mut control_plane, mesh } = issued(
        "sds-missing",
        |_, server| {
            let secret = certificate(&server.identity(), &of_pod(&pki, server));
            vec![secret, roots("ROOTCA", &[&pki])]
        },
        by_ads("sotw"),
    );
    let wire = mesh.bed.wire().capture();
    let identity = mesh.client.identity();
    mesh.client.connects(mesh::SERVER.parse().unwrap()).expect_cut_off();
    let missing = format!("there is no secret `{identity}`");
    mesh.near().logs(&["cannot get a first certificate", &missing]);
    mesh.near().logs_access(&[&missing]);
    assert_eq!(wire.streams().len(), 0, "something went over the wire: {wire}");

    let secrets = vec![
        certificate(&identity, &of_pod(&pki, &mesh.client)),
        certificate(&mesh.server.identity(), &of_pod(&pki, &mesh.server)),
        roots("ROOTCA", &[&pki]),
    ];
    control_plane.serves([mesh.config.resources(), secrets].concat());
    eventually_within(LONG, "the certificate has come", || {
        let certificates = mesh.near().status()["certificates"].clone();
        if certificates[0]["serial"].is_string() { Ok(()) } else { Err(certificates) }
    });
    talks(&mesh);

    // A pod that goes takes its subscription along.
    mesh.near().unenroll(&mesh.client);
    eventually("the secret is not asked for any more", || {
        let requests = control_plane.requests();
        let of_near = |r: &&Value| {
            r["type"].as_str().is_some_and(|t| t.ends_with(".Secret"))
                && r["node"] == mesh.near().node().name()
        };
        let last = requests.iter().rfind(of_near).cloned().unwrap_or_default();
        if last["names"] == json!(["ROOTCA"]) { Ok(()) } else { Err(last) }
    });
    control_plane.expect_no_violations();
}

#[test]
fn spires_conventions_are_understood_by_a_socket_of_their_own() {
    let (pki, federated) = (Pki::foreign(), Pki::foreign());
    let all = json!({
        "@type": SECRET,
        "name": "ALL",
        "validation_context": { "custom_validator_config": {
            "name": "envoy.tls.cert_validator.spiffe",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig",
                "trust_domains": [
                    { "name": "cluster.local", "trust_bundle": inline(pki.root_pem()) },
                    { "name": "elsewhere.example", "trust_bundle": inline(federated.root_pem()) },
                ],
            },
        } },
    });
    let Issued { control_plane, mesh } = issued(
        "sds-spire",
        |client, server| {
            vec![
                certificate(&client.identity(), &of_pod(&pki, client)),
                certificate(&server.identity(), &of_pod(&pki, server)),
                all,
            ]
        },
        |uri| {
            let flags = ["--certificates", "sds", "--sds-server", uri];
            let more = ["--sds-validation-name", "ALL"];
            flags.into_iter().chain(more).map(str::to_owned).collect()
        },
    );
    talks(&mesh);
    mesh.near().logs(&["trust bundles delivered", "cluster.local", "elsewhere.example"]);
    let requests = control_plane.requests();
    assert!(requests.iter().all(|r| r["service"] == "SecretDiscoveryService"), "{requests:#?}");
    control_plane.expect_no_violations();
    // A root vouches for its own trust domain only.
    let outsider = mesh.plain_pod("outsider");
    let forged = federated.issue(&[&mesh.client.identity()], Validity::Now);
    let directory = mesh.near().node().directory();
    let put = |file: &str, text: &str| {
        let path = directory.join(format!("forged-{file}"));
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (chain, key) = (put("own.pem", &forged.certificate_pem), put("key.pem", &forged.key_pem));
    let target = mesh.server.at(15008).to_string();
    outsider.run(&["openssl", "s_client", "-connect", &target, "-cert", &chain, "-key", &key]);
    mesh.far().logs(&["HBONE handshake failed", "unknown_issuer"]);
}

/// A client in the mesh, and nginx outside of it that speaks TLS only, to clients that
/// `pki` vouches for. By HTTP at 10.96.0.10, as opaque bytes at 10.96.0.11.
struct Secured {
    control_plane: ControlPlane,
    agent: Agent,
    client: Pod,
    _nginx: tests::Process,
    config: MeshConfig,
    bed: Testbed,
}

const HTTP: &str = "http://10.96.0.10/";
const OPAQUE: &str = "http://10.96.0.11/";

fn secured(name: &str, pki: &Pki, context: &Value, secrets: &[Value]) -> Secured {
    let bed = Testbed::two_nodes(name);
    let (client, web) = (bed.node(1).pod("client").start(), bed.node(2).pod("web").start());
    let own = pki.issue(&["web.example.com", "*.wild.example.com"], Validity::Now);
    let nginx = web.runs_tls_nginx(8443, &own, pki.root_pem());
    let config = MeshConfig::new()
        .service(&Service::http("web", "10.96.0.10:80").backed_by_plain(web.at(8443)))
        .service(&Service::tcp("raw", "10.96.0.11:80").backed_by_plain(web.at(8443)));
    let mut control_plane = ControlPlane::start(bed.node(1), &config);
    control_plane.serves([with_tls(&config, context), secrets.to_vec()].concat());
    let flags = ["--xds-server", &control_plane.uri(), "--xds-mode", "delta"];
    let agent = bed.node(1).agent().with_pod(&client).flags(&flags).start();
    Secured { control_plane, agent, client, _nginx: nginx, config, bed }
}

/// The configuration with that `UpstreamTlsContext` in its clusters.
fn with_tls(config: &MeshConfig, context: &Value) -> Vec<Value> {
    let mut resources = config.resources();
    let mut context = context.clone();
    context["@type"] = UPSTREAM_TLS.into();
    for cluster in resources.iter_mut().filter(|r| r["name"] == "web" || r["name"] == "raw") {
        if cluster["@type"].as_str().is_some_and(|url| url.ends_with(".Cluster")) {
            cluster["transport_socket"] =
                json!({ "name": "envoy.transport_sockets.tls", "typed_config": context });
        }
    }
    resources
}

fn expecting(name: &str) -> Value {
    json!([{ "san_type": "DNS", "matcher": { "exact": name } }])
}

fn by_sds(expected: &str) -> Value {
    let ads = json!({ "ads": {}, "resource_api_version": "V3" });
    json!({
        "sni": "web.example.com",
        "common_tls_context": {
            "tls_certificate_sds_secret_configs": [{ "name": "mine", "sds_config": ads }],
            "combined_validation_context": {
                "default_validation_context": { "match_typed_subject_alt_names": expecting(expected) },
                "validation_context_sds_secret_config": { "name": "ca", "sds_config": ads },
            },
        },
    })
}

impl Secured {
    /// Waits until a request is answered so, and says `text`.
    #[track_caller]
    fn answers(&self, url: &str, status: u16, text: &str) -> String {
        self.answers_to(url, &[], status, text)
    }

    #[track_caller]
    fn answers_to(&self, url: &str, flags: &[&str], status: u16, text: &str) -> String {
        eventually_within(LONG, &format!("{url} answers {status} with {text:?}"), || {
            let response = self.client.curl(url).arguments(flags).send();
            let as_expected = response.status() == Some(status) && response.body().contains(text);
            if as_expected { Ok(response.body().to_owned()) } else { Err(format!("{response:?}")) }
        })
    }

    fn serves(&mut self, context: &Value, secrets: &[Value]) {
        let resources = with_tls(&self.config, context);
        self.control_plane.serves([resources, secrets.to_vec()].concat());
    }
}

pub(crate) fn serial(of: &Credentials) -> String {
    let parsed = Command::new("openssl")
        .args(["x509", "-noout", "-serial", "-in", "/dev/stdin"])
        .stdin(pem_file(&of.certificate_pem))
        .output()
        .expect("run openssl");
    String::from_utf8_lossy(&parsed.stdout).trim().to_owned()
}

fn pem_file(pem: &str) -> fs::File {
    use std::io::{Seek as _, Write as _};
    let mut file = tempfile::tempfile().expect("make a file");
    file.write_all(pem.as_bytes()).expect("write it");
    file.rewind().expect("rewind it");
    file
}

#[test]
fn a_cluster_speaks_tls_by_secrets_that_rotate() {
    let pki = Pki::foreign();
    let [first, second] = [(); 2].map(|()| pki.issue(&["client.example.com"], Validity::Now));
    let secrets = |mine: &Credentials, ca: &Pki| [certificate("mine", mine), roots("ca", &[ca])];
    let good = by_sds("web.example.com");
    let mut at = secured("tls-sds", &pki, &good, &secrets(&first, &pki));
    let wire = at.bed.wire().capture();
    for url in [HTTP, OPAQUE] {
        let body = at.answers(url, 200, &serial(&first));
        assert!(body.contains("sni=web.example.com protocol=HTTP/1.1"), "{body}");
    }

    // While downloads run, another certificate comes.
    let download = |url: &str, file: &Path| {
        let mut curl = Command::new("curl");
        curl.args(["-s", "--fail", "-o"]).arg(file).arg(format!("{url}slow"));
        at.client.starts(&format!("curl-{}", &url[7..17]), curl)
    };
    let files = [1, 2].map(|n| at.agent.node().directory().join(format!("slow-{n}")));
    let downloads = [download(HTTP, &files[0]), download(OPAQUE, &files[1])];
    for file in &files {
        eventually("the download has begun", || match fs::metadata(file).map(|m| m.len()) {
            Ok(1..) => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
    at.serves(&good, &secrets(&second, &pki));
    for url in [HTTP, OPAQUE] {
        at.answers(url, 200, &serial(&second));
    }
    for (download, file) in downloads.iter().zip(&files) {
        assert!(download.wait().success(), "{}", download.log());
        assert_eq!(fs::metadata(file).unwrap().len(), 700_000);
    }

    // A server that is somebody else, or that nobody vouches for, hears no request.
    at.serves(&by_sds("other.example.com"), &secrets(&second, &pki));
    at.answers(HTTP, 503, "");
    at.client.curl(OPAQUE).expect_refused();
    at.agent.logs(&["web.example.com, *.wild.example.com", "none of the names expected"]);
    at.agent.logs_access(&["none of the names expected"]);
    at.serves(&good, &secrets(&second, &pki));
    at.answers(HTTP, 200, &serial(&second));
    at.serves(&good, &secrets(&second, &Pki::foreign()));
    at.answers(HTTP, 503, "");
    at.agent.logs(&["is not trusted", "no trusted root issued it"]);

    // A bad secret is refused, the last good one stays.
    at.serves(&good, &secrets(&second, &pki));
    at.answers(HTTP, 200, &serial(&second));
    let bad = Credentials { key_pem: first.key_pem.clone(), ..second.clone() };
    at.serves(&good, &secrets(&bad, &pki));
    at.control_plane.is_refused("secrets[mine].tls_certificate: the private key does not belong");
    at.answers(HTTP, 200, &serial(&second));

    wire.expect_only_tls();
    wire.expect_no_trace_of("slowly");
    expect_secret(&at.agent, &[&first, &second]);
    at.control_plane.expect_no_violations();
}

#[test]
fn a_cluster_speaks_tls_by_files_and_by_its_requests_hosts() {
    let pki = Pki::foreign();
    let [first, second] = [(); 2].map(|()| pki.issue(&["client.example.com"], Validity::Now));
    // Inline, and nothing to present: nginx turns that away.
    let nothing = json!({ "common_tls_context": { "validation_context": {
        "trusted_ca": inline(pki.root_pem()),
    } } });
    let mut at = secured("tls-files", &pki, &nothing, &[]);
    at.answers(HTTP, 400, "");

    let directory = at.agent.node().directory().join("client-certificate");
    fs::create_dir_all(&directory).unwrap();
    let put = |of: &Credentials| {
        for (name, text) in [("tls.key", &of.key_pem), ("tls.crt", &of.certificate_pem)] {
            tests::config::replace(&directory.join(name), text);
        }
        tests::config::replace(&directory.join("ca.crt"), pki.root_pem());
    };
    let file = |name: &str| json!({ "filename": directory.join(name) });
    let files = json!({ "common_tls_context": {
        "tls_certificates": [{ "certificate_chain": file("tls.crt"), "private_key": file("tls.key") }],
        "validation_context": { "trusted_ca": file("ca.crt") },
    } });
    at.serves(&files, &[]);
    // Not there yet: nobody is dialled.
    at.answers(HTTP, 503, "");
    at.agent.logs(&["tls.crt", "No such file"]);
    put(&first);
    at.answers(HTTP, 200, &serial(&first));
    put(&second);
    at.answers(HTTP, 200, &serial(&second));
    at.answers(OPAQUE, 200, &serial(&second));
    fs::write(directory.join("tls.key"), "garbage").unwrap();
    eventually("the bad key was looked at", || {
        at.answers(HTTP, 200, &serial(&second));
        if at.agent.log().contains("the last good certificates stay") { Ok(()) } else { Err(()) }
    });
    put(&second);

    // What is asked for, and must be proven, is the request's host; by HTTP/2.
    let mut resources = with_tls(&at.config, &files);
    for cluster in
        resources.iter_mut().filter(|r| r["name"] == "web" && r["connect_timeout"] != Value::Null)
    {
        cluster["typed_extension_protocol_options"] = json!({ HTTP_OPTIONS: {
            "@type": format!("type.googleapis.com/{HTTP_OPTIONS}"),
            "explicit_http_config": { "http2_protocol_options": {} },
            "upstream_http_protocol_options": { "auto_sni": true, "auto_san_validation": true },
        } });
    }
    at.control_plane.serves(resources);
    let host = |name: &str| format!("host: {name}");
    let asked = |name: &str| format!("sni={name} protocol=HTTP/2.0");
    for name in ["web.example.com", "a.wild.example.com"] {
        at.answers_to(HTTP, &["-H", &host(name)], 200, &asked(name));
    }
    at.answers_to(HTTP, &["-H", &host("other.example.com")], 503, "");
    at.agent.logs(&["is not for `other.example.com`"]);

    // Nobody said whom to trust: refused, and what was in force stays.
    at.serves(&json!({ "sni": "x", "common_tls_context": {} }), &[]);
    at.control_plane.is_refused("anybody would be believed to be the peer");
    at.answers_to(HTTP, &["-H", &host("web.example.com")], 200, &asked("web.example.com"));
}
