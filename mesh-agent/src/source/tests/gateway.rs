//! Listeners of the node's own: what is read of them, and what is refused.

use super::{refused::TCP, tls::pair, *};
use crate::model::{
    listener::{Direction, Listener, SourceType, TransportProtocol},
    listener_filter::{ProxyProtocol, TlsInspector},
    tls::{CertificateSource, TlsVersion, ValidationSource},
};

const HTTP_INSPECTOR: &str = "http_inspector.v3.HttpInspector";

fn listener(rest: &str) -> String {
    format!(
        "'@type': t/envoy.config.listener.v3.Listener\nname: edge\n\
         address: {{socket_address: {{address: 10.0.0.1, port_value: 443}}}}\n{rest}\n"
    )
}

fn chains(chains: &[&str]) -> String {
    let chains: Vec<_> =
        chains.iter().map(|fields| format!("{{filters: [{TCP}], {fields}}}")).collect();
    format!("filter_chains: [{}]", chains.join(", "))
}

fn tls(context: &str) -> String {
    chains(&[&format!(
        "transport_socket: {{name: envoy.transport_sockets.tls, typed_config: {{'@type': \
         t/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, {context}}}}}"
    )])
}

fn entry(kind: &str, fields: &str) -> String {
    format!(
        "{{name: x, typed_config: {{'@type': t/envoy.extensions.filters.listener.{kind}, {fields}}}}}"
    )
}

fn filter(kind: &str, fields: &str) -> String {
    format!("listener_filters: [{}]", entry(kind, fields))
}

fn inspector(fields: &str) -> String {
    filter("tls_inspector.v3.TlsInspector", fields)
}

fn proxy_protocol(fields: &str) -> String {
    filter("proxy_protocol.v3.ProxyProtocol", fields)
}

fn the_listener(rest: &str) -> Listener {
    accepted(&listener(rest)).listeners.into_iter().next().unwrap()
}

#[track_caller]
fn refused(rest: &str, expected: &str) {
    check(&listener(rest), &[&format!("listeners[edge]{expected}")]);
}

#[test]
fn a_listener_without_direction_is_the_nodes_own() {
    let decoded = the_listener(&chains(&[""]));
    assert_eq!(decoded.direction, Direction::Gateway);
    let (gateway, filters) = (decoded.gateway.unwrap(), decoded.listener_filters);
    assert_eq!(filters.timeout, Some(Duration::from_secs(15)));
    assert_eq!((gateway.backlog, gateway.freebind), (4096, false));
    assert!(!filters.wait() && !filters.continue_on_timeout);

    let fields = "bind_to_port: true\nfreebind: true\ntcp_backlog_size: 7\n\
                  listener_filters_timeout: 0s\ncontinue_on_listener_filters_timeout: true\n";
    let decoded = the_listener(&format!("{fields}{}", chains(&[""])));
    let (gateway, filters) = (decoded.gateway.unwrap(), decoded.listener_filters);
    assert_eq!((gateway.backlog, gateway.freebind), (7, true));
    assert_eq!((filters.timeout, filters.continue_on_timeout), (None, true));

    refused(
        &format!("bind_to_port: false\n{}", chains(&[""])),
        ".bind_to_port: nothing would ever reach it: a listener of captured traffic says its \
         traffic_direction",
    );
    refused(
        &format!("use_original_dst: true\n{}", chains(&[""])),
        ".use_original_dst: is not for gateways: nothing redirects to their sockets",
    );
}

#[test]
fn listener_filters_are_read_or_refused() {
    let ok = chains(&[""]);
    let of = |filters: String| the_listener(&format!("{filters}\n{ok}")).listener_filters;
    let inspected = of(inspector("")).tls_inspector;
    let expected = TlsInspector { max_client_hello_bytes: 16 << 10, close_on_errors: false };
    assert_eq!(inspected, Some(expected));
    let inspected = of(inspector(
        "max_client_hello_size: 512, close_connection_on_client_hello_parsing_errors: true",
    ));
    let expected = TlsInspector { max_client_hello_bytes: 512, close_on_errors: true };
    assert_eq!(inspected.tls_inspector, Some(expected));
    let protocol = of(proxy_protocol("disallowed_versions: [V1]")).proxy_protocol;
    assert_eq!(protocol, Some(ProxyProtocol { optional: false, v1: false, v2: true }));
    assert!(of(filter(HTTP_INSPECTOR, "")).http_inspector);
    for (filters, expected) in [
        (
            "listener_filters: [{name: envoy.filters.listener.http_inspector}]".to_owned(),
            ".listener_filters[0]: envoy.filters.listener.http_inspector without typed_config is not supported",
        ),
        (
            filter("original_dst.v3.OriginalDst", ""),
            ".listener_filters[0]: x (envoy.extensions.filters.listener.original_dst.v3.OriginalDst) \
             is not supported",
        ),
        (
            "listener_filters: [HTTP, HTTP]".replace("HTTP", &entry(HTTP_INSPECTOR, "")),
            ".listener_filters[1]: is there twice",
        ),
        (
            format!(
                "listener_filters: [{}, {}]",
                entry(HTTP_INSPECTOR, ""),
                entry("proxy_protocol.v3.ProxyProtocol", "")
            ),
            ".listener_filters[1]: must come before what looks behind its header",
        ),
        (
            inspector("enable_ja3_fingerprinting: true"),
            ".listener_filters[0].typed_config.enable_ja3_fingerprinting: is not supported",
        ),
        (
            inspector("max_client_hello_size: 1"),
            ".listener_filters[0].typed_config.max_client_hello_size: 1 is not within 256 to 16384",
        ),
        (
            proxy_protocol("rules: [{tlv_type: 1}]"),
            ".listener_filters[0].typed_config.rules: is not supported",
        ),
        (
            proxy_protocol("disallowed_versions: [V1, V2]"),
            ".listener_filters[0].typed_config.disallowed_versions: leaves nothing to speak",
        ),
    ] {
        refused(&format!("{filters}\n{ok}"), expected);
    }
}

#[test]
fn what_pods_open_is_looked_at_and_what_arrives_is_not() {
    let of = |direction: &str, rest: &str| {
        listener(&format!("traffic_direction: {direction}\n{rest}\n{}", chains(&[""])))
    };
    let filters = [
        entry("original_dst.v3.OriginalDst", ""),
        entry("tls_inspector.v3.TlsInspector", ""),
        entry(HTTP_INSPECTOR, ""),
    ]
    .join(", ");
    let timeout = "listener_filters_timeout: 1s\ncontinue_on_listener_filters_timeout: true";
    let all = format!("listener_filters: [{filters}]\n{timeout}");
    let listener = accepted(&of("OUTBOUND", &all)).listeners.into_iter().next().unwrap();
    let read = listener.listener_filters;
    assert!(read.tls_inspector.is_some() && read.http_inspector && read.continue_on_timeout);
    assert_eq!(read.timeout, Some(Duration::from_secs(1)));
    assert!(listener.gateway.is_none());

    let none = accepted(&of("INBOUND", &filter("original_dst.v3.OriginalDst", "")));
    assert!(!none.listeners.into_iter().next().unwrap().listener_filters.wait());
    let at = "listeners[edge].";
    for (fields, expected) in [
        (
            filter("tls_inspector.v3.TlsInspector", ""),
            "listener_filters[0]: x \
             (envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector) is not supported",
        ),
        (
            filter(HTTP_INSPECTOR, ""),
            "listener_filters[0]: x \
             (envoy.extensions.filters.listener.http_inspector.v3.HttpInspector) is not supported",
        ),
        ("listener_filters_timeout: 1s".to_owned(), "listener_filters_timeout: is not supported"),
        (
            "continue_on_listener_filters_timeout: true".to_owned(),
            "continue_on_listener_filters_timeout: is not supported",
        ),
    ] {
        check(&of("INBOUND", &fields), &[&format!("{at}{expected}")]);
    }
    let proxied = filter("proxy_protocol.v3.ProxyProtocol", "");
    let expected = "listener_filters[0]: x \
                    (envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol) is not \
                    supported";
    check(&of("OUTBOUND", &proxied), &[&format!("{at}{expected}")]);
}

#[test]
fn chains_are_told_apart() {
    let decoded = the_listener(&chains(&[
        "filter_chain_match: {server_names: [A.example, '*.b.example'], \
         application_protocols: [h2], source_type: EXTERNAL, direct_source_prefix_ranges: \
         [{address_prefix: 10.0.0.0, prefix_len: 8}]}",
        "filter_chain_match: {server_names: [b.example]}",
    ]));
    let matches = &decoded.filter_chains[0].matches;
    assert_eq!(matches.server_names[..], ["a.example".into(), "*.b.example".into()]);
    assert_eq!(matches.application_protocols[..], ["h2".into()]);
    assert_eq!(matches.source_type, SourceType::External);
    assert_eq!(matches.direct_source_prefix_ranges.len(), 1);
    // Envoy adds none, either.
    assert!(decoded.listener_filters.tls_inspector.is_none());
    let raw = the_listener(&chains(&["filter_chain_match: {transport_protocol: raw_buffer}"]));
    let transport = raw.filter_chains[0].matches.transport_protocol;
    assert_eq!(transport, Some(TransportProtocol::RawBuffer));

    let names = |names: &str| format!("filter_chain_match: {{server_names: [{names}]}}");
    for (first, second, expected) in [
        ("a.example", "a.example", "[1].filter_chain_match: is the same as an earlier one's"),
        (
            "a.example, b.example",
            "c.example, b.example",
            "[1].filter_chain_match: takes some of the connections that filter_chains[0] takes",
        ),
        (
            "'*'",
            "b.example",
            "[0].filter_chain_match.server_names[0]: `*` is neither a name nor a name after `*.`",
        ),
    ] {
        let chains = chains(&[&names(first), &names(second)]);
        refused(&chains, &format!(".filter_chains{expected}"));
    }
    let outbound = format!("{}\ntraffic_direction: OUTBOUND", chains(&[&names("a.example")]));
    assert_eq!(the_listener(&outbound).filter_chains[0].matches.server_names.len(), 1);
    // Where mTLS ends nobody reads a ClientHello.
    for matches in
        ["server_names: [a.example]", "application_protocols: [h2]", "source_type: EXTERNAL"]
    {
        let inbound = chains(&[&format!("filter_chain_match: {{{matches}}}")]);
        let inbound = format!("{inbound}\ntraffic_direction: INBOUND");
        let field = matches.split(':').next().unwrap();
        let expected = format!(".filter_chains[0].filter_chain_match.{field}: is not supported");
        refused(&inbound, &expected);
    }
}

#[test]
fn tls_is_read() {
    let [certificate, key] = pair();
    let own = format!(
        "certificate_chain: {{inline_string: {certificate}}}, private_key: {{inline_string: {key}}}"
    );
    let ca = format!("validation_context: {{trusted_ca: {{inline_string: {certificate}}}}}");
    let decoded = the_listener(&tls(&format!(
        "require_client_certificate: true, require_sni: true, common_tls_context: {{\
         tls_params: {{tls_minimum_protocol_version: TLSv1_3}}, alpn_protocols: [h2, http/1.1], \
         tls_certificates: [{{{own}}}], {ca}}}"
    )));
    assert!(decoded.holds_private_key());
    let tls_of = |listener: &Listener| listener.filter_chains[0].tls.clone().unwrap().settings;
    let settings = tls_of(&decoded);
    assert!(settings.require_client_certificate && settings.require_sni);
    assert_eq!((settings.min_version, settings.alpn.len()), (TlsVersion::V1_3, 2));
    assert!(matches!(settings.certificates[..], [CertificateSource::Given(_)]));
    assert!(matches!(settings.validation, Some(ValidationSource::Inline(_))));

    let decoded = the_listener(&tls(
        "common_tls_context: {tls_certificate_sds_secret_configs: [{name: a, sds_config: \
         {ads: {}}}, {name: b, sds_config: {ads: {}}}], validation_context_sds_secret_config: \
         {name: ca, sds_config: {ads: {}}}}",
    ));
    let names: Vec<_> = decoded.secret_names().map(|name| &**name).collect();
    assert_eq!(names, ["a", "b", "ca"]);
    assert!(!decoded.holds_private_key());
    assert!(!tls_of(&decoded).require_client_certificate);
}

#[test]
fn tls_that_is_not_honoured_is_refused() {
    let [certificate, key] = pair();
    let own = format!(
        "certificate_chain: {{inline_string: {certificate}}}, private_key: {{inline_string: {key}}}"
    );
    let common = |fields: &str| format!("common_tls_context: {{{fields}}}");
    let good = common(&format!("tls_certificates: [{{{own}}}]"));
    for (context, expected) in [
        (
            common(""),
            "common_tls_context.tls_certificates: is empty: a server has to have a certificate",
        ),
        (
            format!("{good}, require_client_certificate: true"),
            "common_tls_context.validation_context: nothing says whom to trust, and anybody would \
             be believed to be the peer: set trusted_ca, or trust_chain_verification: \
             ACCEPT_UNTRUSTED if that is meant",
        ),
        (
            format!("{good}, ocsp_staple_policy: MUST_STAPLE"),
            "ocsp_staple_policy: only LENIENT_STAPLING is supported",
        ),
        (
            format!("{good}, session_ticket_keys: {{keys: [{{inline_string: x}}]}}"),
            "session_ticket_keys: is not supported: no session is resumed",
        ),
        (
            common(&format!("tls_certificates: [{{{own}, ocsp_staple: {{inline_bytes: AA==}}}}]")),
            "common_tls_context.tls_certificates[0].ocsp_staple: is not supported",
        ),
        (
            common(&format!("tls_certificates: [{{{own}}}], tls_params: {{ecdh_curves: [P-224]}}")),
            "common_tls_context.tls_params.ecdh_curves[0]: `P-224` is none of X25519, P-256, P-384, X25519MLKEM768",
        ),
    ] {
        let at = ".filter_chains[0].transport_socket.typed_config";
        refused(&tls(&context), &format!("{at}.{expected}"));
    }
}
