//! What command operators tell of TLS and its certificates, in access logs and headers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, DnValue, OtherNameValue, SanType,
    string::{BmpString, TeletexString},
};
use serde_json::{Map, Value, json};
use tests::{
    Pod,
    pki::{Credentials, Pki, Validity},
};

use super::{
    script::Play,
    world::{LISTENER, http_manager},
};
use crate::upgrades::program;

const PREFIX: &str = "type.googleapis.com/envoy.extensions";

/// Clients have to present a certificate.
const MUTUAL: u16 = 7101;
/// Clients may.
const OPTIONAL: u16 = 7102;
/// Nobody is asked for one, nor looked at before TLS.
const SERVER: u16 = 7103;
const CLEAR: u16 = 7104;
/// As [`MUTUAL`], of opaque connections.
const OPAQUE: u16 = 7105;

const PATIENCE: Duration = Duration::from_secs(30);

/// All that tell of TLS.
const OPERATORS: [&str; 33] = [
    "REQUESTED_SERVER_NAME",
    "DOWNSTREAM_TLS_VERSION",
    "DOWNSTREAM_TLS_CIPHER",
    "DOWNSTREAM_TLS_GROUP",
    "DOWNSTREAM_TLS_SESSION_ID",
    "DOWNSTREAM_PEER_URI_SAN",
    "DOWNSTREAM_PEER_DNS_SAN",
    "DOWNSTREAM_PEER_IP_SAN",
    "DOWNSTREAM_PEER_EMAIL_SAN",
    "DOWNSTREAM_PEER_OTHERNAME_SAN",
    "DOWNSTREAM_PEER_SUBJECT",
    "DOWNSTREAM_PEER_ISSUER",
    "DOWNSTREAM_PEER_SERIAL",
    "DOWNSTREAM_PEER_FINGERPRINT_256",
    "DOWNSTREAM_PEER_FINGERPRINT_1",
    "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256",
    "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_1",
    "DOWNSTREAM_PEER_CHAIN_SERIALS",
    "DOWNSTREAM_PEER_CERT",
    "DOWNSTREAM_PEER_CERT_V_START",
    "DOWNSTREAM_PEER_CERT_V_END",
    "DOWNSTREAM_PEER_CERT_V_START(%Y/%m/%dT%H:%M:%S%z %s)",
    "DOWNSTREAM_PEER_CERT_V_END(%s.%3f %b %a)",
    "DOWNSTREAM_PEER_CERT_V_END(%F %T)",
    "DOWNSTREAM_LOCAL_URI_SAN",
    "DOWNSTREAM_LOCAL_DNS_SAN",
    "DOWNSTREAM_LOCAL_IP_SAN",
    "DOWNSTREAM_LOCAL_EMAIL_SAN",
    "DOWNSTREAM_LOCAL_OTHERNAME_SAN",
    "DOWNSTREAM_LOCAL_SUBJECT",
    "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_LOCAL_PORT",
    "FILTER_CHAIN_NAME",
];

/// What differs: by the end of the case's name, or any, and by operator; why is in
/// docs/configuration.md.
const DIFFERING: [(&str, &str); 14] = [
    ("", "DOWNSTREAM_TLS_CIPHER"),
    // TLS 1.2 without tickets.
    ("1-2-second-test-plain-false", "DOWNSTREAM_TLS_SESSION_ID"),
    ("several-true", "DOWNSTREAM_PEER_IP_SAN"),
    ("several-true", "DOWNSTREAM_PEER_EMAIL_SAN"),
    ("several-true", "DOWNSTREAM_PEER_OTHERNAME_SAN"),
    ("strings-true", "DOWNSTREAM_PEER_SUBJECT"),
    ("upper-test--true", "DOWNSTREAM_LOCAL_URI_SAN"),
    ("upper-test--true", "DOWNSTREAM_LOCAL_DNS_SAN"),
    ("upper-test--true", "DOWNSTREAM_LOCAL_SUBJECT"),
    ("upper-test--true", "DOWNSTREAM_LOCAL_IP_SAN"),
    ("upper-test--true", "DOWNSTREAM_LOCAL_EMAIL_SAN"),
    ("upper-test--true", "DOWNSTREAM_LOCAL_OTHERNAME_SAN"),
    // Without the inspector.
    ("7103-1-2-", "REQUESTED_SERVER_NAME"),
    ("7103-1-3-", "REQUESTED_SERVER_NAME"),
];

/// Whether Envoy and the agent may tell another value there.
fn may_differ(case: &str, operator: &str) -> bool {
    DIFFERING.iter().any(|(of, differing)| {
        *differing == operator && (case.ends_with(of) || case.starts_with(of))
    })
}

/// A header for each operator, by the first letters of its name.
fn headers(prefix: &str) -> Value {
    let header = |(index, operator): (usize, &&str)| {
        let (key, value) = (format!("{prefix}-{index}"), format!("<%{operator}%>"));
        json!({ "header": { "key": key, "value": value } })
    };
    OPERATORS.iter().enumerate().map(header).collect()
}

/// A line of JSON with every operator, and one of text; `key` is the case.
fn logs(key: &str) -> Value {
    let mut fields: Map<String, Value> =
        OPERATORS.iter().map(|of| ((*of).to_owned(), format!("%{of}%").into())).collect();
    let told = |index| (format!("told {index}"), format!("%REQ(x-told-{index})%").into());
    fields.extend((0..OPERATORS.len()).map(told));
    fields.insert("@".to_owned(), format!("{key}#json").into());
    let text = OPERATORS.map(|of| format!("<%{of}%>"));
    let mut texts: Map<String, Value> = text
        .into_iter()
        .enumerate()
        .map(|(index, text)| (format!("text {index}"), text.into()))
        .collect();
    texts.insert("@".to_owned(), format!("{key}#text").into());
    let log = |fields: Value| {
        json!({ "name": "log", "typed_config": {
            "@type": format!("{PREFIX}.access_loggers.stream.v3.StdoutAccessLog"),
            "log_format": { "json_format": fields },
        } })
    };
    json!([log(fields.into()), log(texts.into())])
}

fn manager(name: &str) -> Value {
    let mut manager = http_manager(
        name,
        json!([{
            "match": { "prefix": "/" },
            "route": { "cluster": "web" },
            "request_headers_to_add": headers("x-told"),
            "response_headers_to_add": headers("x-heard"),
        }]),
    );
    manager["typed_config"]["access_log"] = logs("%REQ(x-case)%");
    manager
}

/// As `MUTUAL` has it.
fn tls(own: &[&Credentials], trusted: Option<&str>, required: bool) -> Value {
    let certificate = |of: &&Credentials| {
        json!({
            "certificate_chain": { "inline_string": of.certificate_pem },
            "private_key": { "inline_string": of.key_pem },
        })
    };
    let certificates: Vec<Value> = own.iter().map(certificate).collect();
    let mut common = json!({ "tls_certificates": certificates });
    if let Some(trusted) = trusted {
        common["validation_context"] = json!({ "trusted_ca": { "inline_string": trusted } });
    }
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": format!("{PREFIX}.transport_sockets.tls.v3.DownstreamTlsContext"),
            "require_client_certificate": required,
            "common_tls_context": common,
        },
    })
}

impl Play {
    fn gate(&mut self, port: u16, filter: Value, tls: Option<Value>, inspects: bool) {
        let mut chain = json!({ "name": format!("chain-{port}"), "filters": [filter] });
        if let Some(tls) = tls {
            chain["transport_socket"] = tls;
        }
        let mut listener = json!({
            "address": { "socket_address": { "address": "0.0.0.0", "port_value": port } },
            "filter_chains": [chain],
        });
        if inspects {
            let inspector = format!("{PREFIX}.filters.listener.tls_inspector.v3.TlsInspector");
            listener["listener_filters"] =
                json!([{ "name": "inspector", "typed_config": { "@type": inspector } }]);
        }
        self.world.put(LISTENER, &format!("gate-{port}"), listener);
    }
}

fn named(all: &[(DnType, &str)]) -> impl FnOnce(&mut CertificateParams) {
    let mut name = DistinguishedName::new();
    all.iter().for_each(|(kind, value)| name.push(kind.clone(), *value));
    move |params| params.distinguished_name = name
}

/// By what `openssl` alone makes: attributes that are there twice, and beside each other.
fn repeated(directory: &std::path::Path) -> Credentials {
    let [key, certificate] = ["key", "cert"].map(|of| directory.join(format!("repeated-{of}.pem")));
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]);
    openssl.args(["-nodes", "-multivalue-rdn", "-subj", "/DC=test/DC=a/OU=x+CN=y+O=z/OU=x/CN=c d"]);
    openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    openssl.args(["-addext", "subjectAltName=DNS:repeated.test,URI:urn:a,DNS:*.test,URI:urn:b"]);
    let ran = openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate).output();
    let ran = ran.expect("run openssl");
    assert!(ran.status.success(), "{ran:?}");
    let [key_pem, certificate_pem] = [key, certificate].map(|of| fs::read_to_string(of).unwrap());
    Credentials { certificate: Vec::new(), key: Vec::new(), certificate_pem, key_pem }
}

fn clients(pki: &Pki, directory: &std::path::Path) -> Vec<(&'static str, Credentials)> {
    let custom = |of: &[u64]| DnType::CustomDnType(of.to_vec());
    let issue =
        |names: &[&str], name: &[(DnType, &str)]| pki.issue_with(names, Validity::Now, named(name));
    let odd = [
        (DnType::CountryName, "DE"),
        (DnType::OrganizationName, "Acme, Inc. <\"x\">;#\\"),
        (DnType::OrganizationalUnitName, " a+b=c "),
        (DnType::LocalityName, "#x"),
        (DnType::StateOrProvinceName, "\u{1}\t~\u{7f}"),
        (DnType::CommonName, "client \u{fc} \u{4e16}\u{1f600}"),
        (custom(&[1, 2, 840, 113549, 1, 9, 1]), "a@b.c"),
        (custom(&[2, 5, 4, 5]), "77"),
        (custom(&[0, 9, 2342, 19200300, 100, 1, 25]), "test"),
        (custom(&[1, 2, 3, 4]), "unknown"),
    ];
    let strings = pki.issue_with(&["strings.test"], Validity::Now, |params| {
        let mut name = DistinguishedName::new();
        let bmp = BmpString::try_from("b \u{fc}+\u{4e16}").unwrap();
        let teletex = TeletexString::try_from("t, x").unwrap();
        name.push(DnType::CommonName, DnValue::BmpString(bmp));
        name.push(DnType::OrganizationName, DnValue::TeletexString(teletex));
        name.push(DnType::CountryName, DnValue::PrintableString("DE".try_into().unwrap()));
        params.distinguished_name = name;
    });
    let several = pki.issue_with(
        &[
            "spiffe://cluster.local/ns/a/sa/b",
            "https://example.test/a,b?c=d%20e",
            "a.test",
            "192.0.2.1",
            "*.b.test",
            "2001:db8::1",
            "::ffff:192.0.2.1",
            "::1",
            "::192.0.2.7",
            "2001:db8:0:0:1:0:0:1",
            "c.test",
        ],
        Validity::Now,
        |params| {
            params.serial_number = Some(vec![0, 0x8a, 0xbc].into());
            let email = |of: &str| SanType::Rfc822Name(of.try_into().unwrap());
            let other = |of: &str| {
                SanType::OtherName((vec![1, 3, 6], OtherNameValue::Utf8String(of.into())))
            };
            params.subject_alt_names.extend([
                email("a@b.test"),
                other("\u{fc} other"),
                email("c d@b.test"),
                other("two"),
            ]);
        },
    );
    let intermediate = pki.intermediate();
    let mut chained = intermediate.issue(&["spiffe://chained/x"], Validity::Now);
    chained.certificate_pem.push_str(intermediate.root_pem());
    vec![
        ("plain", issue(&["client.test"], &[(DnType::CommonName, "plain")])),
        ("several", several),
        ("odd", issue(&["odd.test"], &odd)),
        ("strings", strings),
        ("empty", issue(&["spiffe://empty/x"], &[])),
        ("nameless", issue(&[], &[(DnType::CommonName, "no other name")])),
        ("chained", chained),
        ("repeated", repeated(directory)),
    ]
}

/// The operator that a part is the value of.
fn operator(part: &str) -> Option<&'static str> {
    let index = part.rsplit([' ', '-']).next().and_then(|index| index.parse::<usize>().ok());
    let named = OPERATORS.iter().find(|of| part.strip_prefix("json ") == Some(**of));
    index.and_then(|index| OPERATORS.get(index)).or(named).copied()
}

/// By case and part, what a client heard and what was logged of it.
type Parts = BTreeMap<(String, String), Value>;

fn heard(pod: &Pod, host: &str, cases: &[Value]) -> Vec<Value> {
    let client = program("certificate_client.py");
    let ran = pod.run(&["python3", &client, host, &json!(cases).to_string()]);
    let lines: Vec<Value> = ran
        .expect_success()
        .stdout()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), cases.len());
    lines
}

/// What was logged of these cases, once all of it is there.
fn logged(play: &Play, of: usize, cases: &[Value]) -> Parts {
    let begin = Instant::now();
    loop {
        let log = play.twins.logged()[of].clone();
        let lines = log.lines().filter(|line| line.starts_with('{'));
        let lines: Vec<Value> = lines.filter_map(|line| serde_json::from_str(line).ok()).collect();
        let mut parts = Parts::new();
        for line in &lines {
            let Some((case, kind)) = line["@"].as_str().and_then(|key| key.split_once('#')) else {
                continue;
            };
            for (field, value) in line.as_object().unwrap() {
                parts.insert((case.to_owned(), format!("{kind} {field}")), value.clone());
            }
        }
        let there = |case: &Value, kind: &str| {
            let key = case["case"].as_str().unwrap().to_owned();
            parts.contains_key(&(key, format!("{kind} @")))
        };
        let missing: Vec<_> =
            cases.iter().filter(|of| !there(of, "json") || !there(of, "text")).collect();
        if missing.is_empty() {
            return parts;
        }
        assert!(begin.elapsed() < PATIENCE, "not logged by {of}: {missing:?}");
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn envoy_and_the_agent_tell_the_same_of_certificates() {
    let mut play = Play::start("certificates", true);
    let pki = Pki::foreign();
    let first = pki.issue_with(
        &["spiffe://edge/one", "spiffe://edge/two", "edge.test", "*.edge.test", "192.0.2.9", "::9"],
        Validity::Now,
        |params| {
            params.subject_alt_names.push(SanType::Rfc822Name("e@edge.test".try_into().unwrap()));
            let other = OtherNameValue::Utf8String("other".to_owned());
            params.subject_alt_names.push(SanType::OtherName((vec![1, 3, 6], other)));
            named(&[(DnType::OrganizationName, "Edge, \u{fc}"), (DnType::CommonName, "a+b")])(
                params,
            );
        },
    );
    let second = pki.issue_with(&["second.test", "upper.test"], Validity::Now, named(&[]));
    let directory = play.twins.backends[0].node().directory();
    let clients = clients(&pki, &directory);
    let file = |(name, of): &(&'static str, Credentials)| {
        let path = directory.join(format!("own-{name}.pem"));
        fs::write(&path, format!("{}{}", of.certificate_pem, of.key_pem)).unwrap();
        (*name, path.to_str().unwrap().to_owned())
    };
    let files: Vec<(&str, String)> = clients.iter().map(file).collect();
    let (_, alone) = clients.iter().find(|(name, _)| *name == "repeated").unwrap();
    let trusted = format!("{}{}", pki.root_pem(), alone.certificate_pem);
    let own = [&first, &second];

    play.world.fixed("web", &[play.twins.backends[0].at(tests::twins::WEB_PORT)]);
    let mutual = || Some(tls(&own, Some(&trusted), true));
    play.gate(MUTUAL, manager("mutual"), mutual(), true);
    play.gate(OPTIONAL, manager("optional"), Some(tls(&own, Some(&trusted), false)), true);
    play.gate(SERVER, manager("server"), Some(tls(&own, None, false)), false);
    play.gate(CLEAR, manager("clear"), None, true);
    let proxy = json!({
        "@type": format!("{PREFIX}.filters.network.tcp_proxy.v3.TcpProxy"),
        "stat_prefix": "opaque",
        "cluster": "web",
        "access_log": logs("%REQUESTED_SERVER_NAME%"),
    });
    play.gate(OPAQUE, json!({ "name": "tcp", "typed_config": proxy }), mutual(), true);
    play.push().expect(&[]);

    let case = |port: u16,
                tls: Option<&str>,
                sni: Option<&str>,
                own: Option<&str>,
                tickets: bool| {
        let file = own.map(|own| &files.iter().find(|(name, _)| *name == own).unwrap().1);
        let name = [Some(port.to_string().as_str()), tls, sni, own]
            .map(Option::unwrap_or_default)
            .join("-");
        let case = format!("{name}-{tickets}").replace('.', "-").to_lowercase();
        // Connections are known by what they ask for.
        let sni = if port == OPAQUE { Some(case.clone()) } else { sni.map(str::to_owned) };
        json!({ "case": case, "port": port, "tls": tls, "sni": sni, "own": file, "tickets": tickets })
    };
    let mut cases = Vec::new();
    for (version, (client, _)) in
        ["1.2", "1.3"].iter().flat_map(|of| files.iter().map(move |file| (of, file)))
    {
        cases.push(case(MUTUAL, Some(version), Some("edge.test"), Some(client), true));
        cases.push(case(OPAQUE, Some(version), None, Some(client), true));
    }
    for version in ["1.2", "1.3"] {
        for (sni, own) in [
            (None, None),
            (Some("Upper.Test"), None),
            (Some("second.test"), None),
            (Some("a.edge.test"), Some("several")),
            (Some("x.test"), Some("empty")),
        ] {
            cases.push(case(OPTIONAL, Some(version), sni, own, true));
            cases.push(case(SERVER, Some(version), sni, own, true));
        }
        cases.push(case(MUTUAL, Some(version), Some("second.test"), Some("plain"), false));
    }
    cases.push(case(CLEAR, None, None, None, true));

    let edges = play.twins.edges().map(|edge| edge.to_string());
    let client = &play.twins.backends[1];
    let begin = Instant::now();
    // Listeners get to both in their own time.
    let heard = loop {
        let heard = edges.each_ref().map(|edge| heard(client, edge, &cases));
        let refused: Vec<_> = heard
            .iter()
            .flat_map(|of| cases.iter().zip(of))
            .filter(|(_, heard)| heard["status"] != 200)
            .collect();
        if refused.is_empty() {
            break heard;
        }
        assert!(begin.elapsed() < PATIENCE, "refused: {refused:#?}");
        thread::sleep(Duration::from_millis(200));
    };
    // Who has to present a certificate and does not, gets nothing.
    let strangers = ["1.2", "1.3"].map(|version| case(MUTUAL, Some(version), None, None, true));
    for edge in &edges {
        assert_eq!(super::certificates::heard(client, edge, &strangers), ["closed", "closed"]);
    }

    let [envoy, agent] = [0, 1].map(|of| {
        let mut parts = logged(&play, of, &cases);
        for (case, heard) in cases.iter().zip(&heard[of]) {
            let key = case["case"].as_str().unwrap();
            for (name, value) in heard.as_object().unwrap() {
                parts.insert((key.to_owned(), name.clone()), value.clone());
            }
        }
        parts
    });
    let keys: BTreeSet<_> = envoy.keys().chain(agent.keys()).collect();
    let (mut wrong, mut differed) = (Vec::new(), BTreeSet::new());
    for key @ (case, part) in keys {
        let [envoy, agent] = [&envoy, &agent].map(|of| of.get(key).unwrap_or(&Value::Null));
        let operator = operator(part);
        if envoy == agent {
            continue;
        }
        if operator.is_some_and(|operator| may_differ(case, operator)) || part == "cipher" {
            differed.extend(operator);
        } else {
            wrong.push(format!("{case} {part} {operator:?}\n  Envoy: {envoy}\n  agent: {agent}"));
        }
    }
    assert!(wrong.is_empty(), "{} differ\n{}", wrong.len(), wrong.join("\n"));
    // What is said to differ does.
    let declared: BTreeSet<&str> = DIFFERING.iter().map(|(_, operator)| *operator).collect();
    assert_eq!(differed, declared);
    // Each tells what its client sees as well.
    for (of, parts) in [("Envoy", &envoy), ("agent", &agent)] {
        for case in cases.iter().map(|case| case["case"].as_str().unwrap()) {
            let part = |name: &str| parts.get(&(case.to_owned(), name.to_owned()));
            if let Some(cipher) = part("cipher") {
                assert_eq!(part("json DOWNSTREAM_TLS_CIPHER"), Some(cipher), "{of}: {case}");
            }
        }
        // Nothing of this is empty everywhere, but for names of sessions.
        for operator in OPERATORS.iter().filter(|of| **of != "DOWNSTREAM_TLS_SESSION_ID") {
            let told = parts
                .iter()
                .any(|((_, part), value)| part == &format!("json {operator}") && value.is_string());
            assert!(told || *operator == "DOWNSTREAM_LOCAL_PORT", "{of}: {operator}");
        }
    }
    play.twins.control_plane.expect_no_violations();
}
