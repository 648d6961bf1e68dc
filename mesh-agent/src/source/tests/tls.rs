//! TLS towards endpoints: what is understood, and what is refused by its path.

use prost::Message as _;

use super::{refused::one, *};
use crate::model::tls::{CertificateSource, TlsVersion, ValidationSource};

const AT: &str = "clusters[c].transport_socket.typed_config";

fn cluster(context: &str) -> String {
    format!(
        "'@type': t/envoy.config.cluster.v3.Cluster\nname: c\n\
         transport_socket: {{name: envoy.transport_sockets.tls, typed_config: {{'@type': \
         t/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, {context}}}}}\n"
    )
}

/// A certificate and its key in PEM, as one line of YAML.
pub(super) fn pair() -> [String; 2] {
    let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
    [made.cert.pem(), made.signing_key.serialize_pem()].map(|pem| format!("{pem:?}"))
}

#[test]
fn a_context_is_decoded() {
    let [ca, _] = pair();
    let yaml = cluster(&format!(
        "sni: web.example, common_tls_context: {{\
         tls_params: {{tls_minimum_protocol_version: TLSv1_3, ecdh_curves: [P-256]}}, \
         alpn_protocols: [h2], tls_certificate_sds_secret_configs: [{{name: mine, \
         sds_config: {{ads: {{}}}}}}], combined_validation_context: {{\
         default_validation_context: {{match_typed_subject_alt_names: [{{san_type: DNS, matcher: \
         {{exact: web.example}}}}], trusted_ca: {{inline_string: {ca}}}}}, \
         validation_context_sds_secret_config: {{name: ca}}}}}}"
    ));
    let cluster = accepted(&yaml).clusters.remove(0);
    let names: Vec<_> = cluster.secret_names().map(|name| &**name).collect();
    assert_eq!(names, ["mine", "ca"]);
    let tls = cluster.tls.unwrap();
    assert_eq!((tls.min_version, tls.max_version), (TlsVersion::V1_3, TlsVersion::V1_3));
    assert_eq!((tls.sni.as_deref(), tls.alpn.len(), tls.curves.len()), (Some("web.example"), 1, 1));
    assert!(matches!(&tls.certificate, Some(CertificateSource::Secret(_))));
    let ValidationSource::Combined { default, .. } = &tls.validation else { panic!("{tls:?}") };
    assert!(default.roots.is_some() && default.sans.len() == 1);
    assert!(!tls.sni_by_endpoint && !tls.sni_is_san);
}

#[test]
fn endpoints_may_say_what_a_server_is_asked_for_by() {
    let [ca, _] = pair();
    let trusted = format!(
        "common_tls_context: {{validation_context: {{trusted_ca: {{inline_string: {ca}}}}}}}"
    );
    let both = format!("auto_host_sni: true, auto_sni_san_validation: true, {trusted}");
    let tls = accepted(&cluster(&both)).clusters.remove(0).tls.unwrap();
    assert!(tls.sni_by_endpoint && tls.sni_is_san && tls.sni.is_none());
    one(
        cluster(&format!("auto_sni_san_validation: true, {trusted}")),
        AT,
        ".auto_sni_san_validation: there is no sni to validate against",
    );
}

#[test]
fn what_is_not_honoured_is_refused_by_its_path() {
    let [certificate, key] = pair();
    let [_, other_key] = pair();
    let common = |fields: &str| format!("common_tls_context: {{{fields}}}");
    let validation = |fields: &str| common(&format!("validation_context: {{{fields}}}"));
    let ca = format!("trusted_ca: {{inline_string: {certificate}}}");
    let good = format!("validation_context: {{{ca}}}");
    let with = |fields: &str| common(&format!("{good}, {fields}"));
    let presents = |chain: &str, key: &str| {
        let pair = format!("certificate_chain: {chain}, private_key: {key}");
        with(&format!("tls_certificates: [{{{pair}}}]"))
    };
    let is_inline = |pem: &str| format!("{{inline_string: {pem}}}");
    let nobody = ".common_tls_context.validation_context: nothing says whom to trust, and anybody \
                  would be believed to be the peer: set trusted_ca, or \
                  trust_chain_verification: ACCEPT_UNTRUSTED if that is meant";
    for (context, expected) in [
        ("sni: x", nobody),
        (&common("tls_params: {}"), nobody),
        (&validation(""), nobody),
        (
            &validation("match_typed_subject_alt_names: [{san_type: DNS, matcher: {exact: a}}]"),
            ".common_tls_context.validation_context: names prove nothing without a trusted_ca: \
             anybody can write them",
        ),
        (
            &validation(&format!("{ca}, allow_expired_certificate: true")),
            ".common_tls_context.validation_context.allow_expired_certificate: is not supported",
        ),
        (
            &validation("trusted_ca: {inline_string: x}"),
            ".common_tls_context.validation_context.trusted_ca: holds no certificate in PEM",
        ),
        (
            &validation("trusted_ca: {filename: ca.pem}"),
            ".common_tls_context.validation_context.trusted_ca.filename: is not an absolute path",
        ),
        (
            &validation(&format!("{ca}, verify_certificate_hash: [ab]")),
            ".common_tls_context.validation_context.verify_certificate_hash[0]: is not a SHA-256 in \
             hexadecimal",
        ),
        (
            &with("tls_params: {tls_minimum_protocol_version: TLSv1_1}"),
            ".common_tls_context.tls_params.tls_minimum_protocol_version: TLSv1_1 is not supported",
        ),
        (
            &with("tls_params: {cipher_suites: [AES128-SHA]}"),
            ".common_tls_context.tls_params.cipher_suites[0]: `AES128-SHA` is none of \
             ECDHE-ECDSA-AES128-GCM-SHA256, ECDHE-ECDSA-AES256-GCM-SHA384, \
             ECDHE-ECDSA-CHACHA20-POLY1305, ECDHE-RSA-AES128-GCM-SHA256, \
             ECDHE-RSA-AES256-GCM-SHA384, ECDHE-RSA-CHACHA20-POLY1305",
        ),
        (
            &with("tls_certificate_sds_secret_configs: [{name: a}, {name: b}]"),
            ".common_tls_context.tls_certificate_sds_secret_configs[1]: a client presents one \
             certificate",
        ),
        (
            &presents(&is_inline(&certificate), &is_inline(&other_key)),
            ".common_tls_context.tls_certificates[0]: the private key does not belong to the \
             certificate",
        ),
        (
            &presents(&is_inline(&certificate), "{inline_string: x}"),
            ".common_tls_context.tls_certificates[0]: the private key can't be used",
        ),
        (
            &presents(&is_inline(&certificate), "{filename: /key.pem}"),
            ".common_tls_context.tls_certificates[0]: certificate_chain and private_key must both \
             be inline, or both be files",
        ),
        (
            &presents(&is_inline(&certificate), "{environment_variable: KEY}"),
            ".common_tls_context.tls_certificates[0].private_key.environment_variable: is not \
             supported",
        ),
        (
            &format!("allow_renegotiation: true, {}", common(&good)),
            ".allow_renegotiation: is not supported",
        ),
    ] {
        check(&cluster(context), &[&format!("{AT}{expected}")]);
    }
    let accepted = accepted(&cluster(&presents(&is_inline(&certificate), &is_inline(&key))));
    let shown = serde_json::to_string(&accepted.clusters[0]).unwrap();
    assert!(shown.contains("\"private_key\":\"[redacted]\""), "{shown}");
}

#[test]
fn a_private_key_in_a_cluster_is_not_stored_and_what_is_stored_dials_nobody() {
    let [certificate, key] = pair();
    let yaml = cluster(&format!(
        "common_tls_context: {{tls_certificates: [{{certificate_chain: {{inline_string: \
         {certificate}}}, private_key: {{inline_string: {key}}}}}], validation_context: \
         {{trusted_ca: {{inline_string: {certificate}}}}}}}"
    ));
    let delivery = decode(&[("a.yaml", yaml.as_bytes())]).unwrap();
    assert!(delivery.resources.clusters[0].holds_private_key());
    let [(_, Some(stored))] = delivery.raw.resources.as_slice() else { panic!("one cluster") };
    assert!(!String::from_utf8_lossy(stored).contains("PRIVATE KEY"));
    let url = TYPE_URLS.into_iter().find(|url| url.ends_with(".Cluster")).unwrap();
    let Ok(Resource::Cluster(restored)) = decode_any(url, stored) else { panic!("no cluster") };
    let names: Vec<_> = restored.secret_names().map(|name| &**name).collect();
    assert_eq!(names, ["the private key of cluster c, which is not kept on disk"]);
    // Whole otherwise.
    let whole = envoy_types::pb::envoy::config::cluster::v3::Cluster::decode(&**stored).unwrap();
    assert!(whole.transport_socket.is_some());
}

#[test]
fn labels_choose_how_an_endpoint_is_spoken_to() {
    let [ca, _] = pair();
    let tls = |sni: &str| {
        format!(
            "transport_socket: {{name: envoy.transport_sockets.tls, typed_config: {{'@type': \
             t/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, sni: {sni}, \
             common_tls_context: {{validation_context: {{trusted_ca: {{inline_string: {ca}}}}}}}}}}}"
        )
    };
    let raw = "transport_socket: {name: envoy.transport_sockets.raw_buffer}";
    let yaml = format!(
        "'@type': t/envoy.config.cluster.v3.Cluster\nname: c\ntype: EDS\n\
         eds_cluster_config: {{eds_config: {{ads: {{}}}}}}\n{own}\n\
         transport_socket_matches:\n- {{name: a, match: {{mode: a, n: 1}}, {a}}}\n\
         - {{name: b, match: {{mode: b}}, {b}}}\n- {{name: none, match: {{mode: none}}, {raw}}}\n",
        own = tls("own.example"),
        a = tls("a.example"),
        b = tls("b.example"),
    );
    let cluster = accepted(&yaml).clusters.remove(0);
    let reached = |own: &str, locality: &str| {
        let metadata = |labels: &str| {
            format!("metadata: {{filter_metadata: {{envoy.transport_socket_match: {{{labels}}}}}}}")
        };
        let yaml = format!(
            "'@type': t/envoy.config.endpoint.v3.ClusterLoadAssignment\ncluster_name: c\n\
             endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: \
             10.0.0.1, port_value: 80}}}}}}, {}}}], {}}}]\n",
            metadata(own),
            metadata(locality)
        );
        let (_, assignment) = accepted(&yaml).assignments.remove(0);
        let endpoint = assignment.endpoints().next().cloned().unwrap();
        let tls = cluster.tls_to(Some(&endpoint));
        tls.map(|tls| tls.settings.sni.as_deref().unwrap().to_owned())
    };
    let is = |name: &str| Some(format!("{name}.example"));
    assert_eq!(reached("", ""), is("own"));
    assert_eq!(reached("mode: a", ""), is("own"), "all labels of a match are needed");
    assert_eq!(reached("mode: a, n: 1, more: x", ""), is("a"));
    assert_eq!(reached("mode: a, n: '1'", ""), is("own"));
    assert_eq!(reached("mode: none", "mode: b"), None, "an endpoint's own labels come first");
    assert_eq!(reached("other: x", "mode: b"), is("b"));
    assert_eq!(reached("n: 1", "mode: a"), is("own"), "labels are not added up");
    assert_eq!(cluster.all_tls().count(), 3);
}
