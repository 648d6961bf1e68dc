use std::time::Duration;

use super::{
    super::{
        address::{Family, ServerAddress},
        session::Variant,
        tls::Pem,
    },
    *,
};
use crate::model::runtime::Fraction;

const ISTIO_LIKE: &str = r#"
node:
  id: n1
  cluster: c
  metadata: {zone: a, numbers: [1, 2]}
  locality: {region: eu, zone: eu-1}
admin:
  access_log_path: /dev/null
  address: {socket_address: {address: 127.0.0.1, port_value: 15000}}
dynamic_resources:
  ads_config:
    api_type: DELTA_GRPC
    transport_api_version: V3
    set_node_on_first_message_only: true
    rate_limit_settings: {max_tokens: 5, fill_rate: 4}
    grpc_services:
    - envoy_grpc: {cluster_name: xds}
    - envoy_grpc: {cluster_name: other}
  cds_config: {ads: {}, resource_api_version: V3, initial_fetch_timeout: 3s}
  lds_config: {ads: {}, resourceApiVersion: V3}
static_resources:
  clusters:
  - name: xds
    type: STRICT_DNS
    dns_lookup_family: V4_ONLY
    connect_timeout: 1s
    upstream_connection_options: {tcp_keepalive: {keepalive_time: 300}}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config:
          http2_protocol_options: {connection_keepalive: {interval: 7s, timeout: 2s}}
    load_assignment:
      cluster_name: xds
      endpoints:
      - priority: 1
        lb_endpoints:
        - endpoint: {address: {pipe: {path: /run/cp.sock}}}
      - lb_endpoints:
        - endpoint: {address: {socket_address: {address: cp.example, portValue: 18000}}}
  - name: other
    connect_timeout: 2s
    http2_protocol_options: {}
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        sni: cp.internal
        common_tls_context:
          tls_params: {tls_minimum_protocol_version: TLSv1_3}
          tls_certificates:
          - certificate_chain: {filename: /etc/own.pem}
            private_key: {inline_string: "-----BEGIN SECRET-----"}
          validation_context:
            trusted_ca: {filename: /etc/ca.pem}
            match_typed_subject_alt_names:
            - {san_type: DNS, matcher: {exact: cp.internal}}
    load_assignment:
      cluster_name: other
      endpoints:
      - lb_endpoints:
        - endpoint: {address: {socket_address: {address: 10.0.0.9, port_value: 443}}}
"#;

fn parsed(text: &str) -> Result<Bootstrap, Vec<String>> {
    let told = |reasons: Vec<RejectedResource>| reasons.iter().map(ToString::to_string).collect();
    let documents = text::documents("test", Format::Yaml, text.as_bytes());
    let documents = documents.map_err(|rejected| told(vec![rejected]))?;
    parse(documents.into_iter().next().unwrap()).map_err(told)
}

#[test]
fn a_bootstrap_says_who_and_where_and_how() {
    let Bootstrap { xds, admin, .. } = parsed(ISTIO_LIKE).unwrap();
    assert_eq!(admin, Some("127.0.0.1:15000".parse().unwrap()));
    assert_eq!((xds.node.id.as_str(), xds.node.cluster.as_str()), ("n1", "c"));
    assert_eq!(xds.node.metadata["zone"], "a");
    let place = xds.node.locality.as_ref().unwrap();
    assert_eq!([&*place.region, &*place.zone, &*place.sub_zone], ["eu", "eu-1", ""]);
    let ads = xds.ads.as_ref().unwrap();
    assert_eq!(ads.variant, Variant::Delta);
    let rate = ads.rate.unwrap();
    assert_eq!((rate.tokens, rate.every), (5, Duration::from_millis(250)));
    let servers = xds.servers_of(ads);
    let shown: Vec<_> = servers.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["http://cp.example:18000", "unix:///run/cp.sock", "https://10.0.0.9:443"]);
    let connection = &servers[0].connection;
    assert_eq!(connection.connect_timeout, Duration::from_secs(1));
    assert_eq!(connection.family, Family::V4);
    assert_eq!(connection.pings, Some((Duration::from_secs(7), Duration::from_secs(2))));
    assert_eq!(servers[2].connection.pings, None, "gRPC servers hang up on uninvited ones");
    assert_eq!(connection.tcp_keepalive.time, Duration::from_secs(300));
    let tls = servers[2].tls.as_ref().unwrap();
    assert_eq!(tls.server_name.as_deref(), Some("cp.internal"));
    assert_eq!(tls.accepted_names, ["cp.internal"]);
    assert_eq!(tls.ca, Pem::File("/etc/ca.pem".into()));
    assert!(servers[0].tls.is_none(), "each server has its own certificates");
    assert_eq!(xds.clusters.unwrap().timeout, Some(Duration::from_secs(3)));
    assert_eq!(xds.listeners.unwrap().timeout, None);
}

#[test]
fn keys_are_not_shown() {
    let shown = format!("{:?}", parsed(ISTIO_LIKE).unwrap());
    assert!(shown.contains("/etc/own.pem"), "{shown}");
    assert!(!shown.contains("SECRET"), "{shown}");
}

#[test]
fn what_does_not_apply_is_refused_by_path() {
    let tls = "static_resources.clusters[other].transport_socket.typed_config";
    for (from, to, reason) in [
        ("DELTA_GRPC", "REST", "dynamic_resources.ads_config.api_type: REST is not supported"),
        (
            "  cds_config: {ads: {},",
            "  cds_config: {path: /x,",
            "dynamic_resources.cds_config.path: is not supported",
        ),
        ("static_resources:", "hds_config: {}\nstatic_resources:", "hds_config: is not supported"),
        ("static_resources:", "stats_sinks: [{}]\nstatic_resources:", "stats_sinks: is not"),
        ("static_resources:", "no_such: 1\nstatic_resources:", "no_such: unknown field"),
        ("node:\n", "node:\n  user_agent_name: x\n", "node.user_agent_name: is not supported"),
        ("access_log_path: /dev/null", "access_log_path: /x", "admin.access_log_path: is not"),
        ("{cluster_name: other}", "{cluster_name: absent}", "`absent` is missing"),
        (
            "- envoy_grpc: {cluster_name: other}",
            "- google_grpc: {target_uri: x, stat_prefix: x}",
            "ads_config.grpc_services[1].google_grpc: is not supported",
        ),
        (
            "    connect_timeout: 1s",
            "    outlier_detection: {}",
            "static_resources.clusters[xds].outlier_detection: is not supported",
        ),
        ("type: STRICT_DNS", "type: EDS", "clusters[xds].type: EDS is not supported"),
        ("sni: cp.internal", "allow_renegotiation: true", &format!("{tls}.allow_renegotiation")),
        (
            "san_type: DNS",
            "san_type: URI",
            &format!(
                "{tls}.common_tls_context.validation_context.match_typed_subject_alt_names[0]\
                 .san_type: only DNS"
            ),
        ),
        (
            "connection_keepalive: {interval: 7s, timeout: 2s}",
            "allow_metadata: true",
            "http2_protocol_options.allow_metadata: is not supported",
        ),
        ("connect_timeout: 2s", "connect_timeout: 2 s", "static_resources.clusters[1]"),
    ] {
        let changed = ISTIO_LIKE.replacen(from, to, 1);
        assert_ne!(changed, ISTIO_LIKE, "{from}");
        let faults = parsed(&changed).unwrap_err();
        assert!(faults.iter().any(|fault| fault.contains(reason)), "{reason}: {faults:?}");
    }
}

#[test]
fn types_may_come_from_their_own_services_and_from_files() {
    let text = r#"
node: {id: n1}
dynamic_resources:
  lds_config:
    path_config_source: {path: /etc/lds.yaml, watched_directory: {path: /etc}}
  cds_config:
    api_config_source:
      api_type: GRPC
      transport_api_version: V3
      grpc_services: [{envoy_grpc: {cluster_name: xds}}]
static_resources:
  clusters:
  - name: xds
    http2_protocol_options: {}
    load_assignment: &where
      endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: /x}}}}]}]
  - {name: spare, http2_protocol_options: {}, load_assignment: *where}
  - name: traffic
    load_assignment:
      endpoints:
      - lb_endpoints:
        - endpoint: {address: {socket_address: {address: 10.0.0.1, port_value: 80}}}
"#;
    let Bootstrap { xds, .. } = parsed(text).unwrap();
    let Some(Subscription { origin: Origin::File(file), .. }) = &xds.listeners else {
        panic!("{:?}", xds.listeners)
    };
    assert_eq!(file.directory.as_deref(), Some(Path::new("/etc")));
    let Some(Subscription { origin: Origin::Service(service), .. }) = &xds.clusters else {
        panic!("{:?}", xds.clusters)
    };
    assert_eq!(
        (service.variant, service.clusters.as_slice()),
        (Variant::Sotw, &["xds".into()][..])
    );
    // A resource may name the spare one; it is none for traffic, and the other way about.
    let names: Vec<_> = xds.servers.keys().collect();
    assert_eq!(names, ["spare", "xds"]);
    let fixed: Vec<_> = xds.fixed.iter().map(|fixed| &*fixed.name).collect();
    assert_eq!(fixed, ["traffic"]);

    for (from, to, reason) in [
        ("path: /etc/lds.yaml,", "", "lds_config.path_config_source.path: is missing"),
        ("path: /etc/lds.yaml,", "path: /x, poll_interval: 1s,", "excludes watched_directory"),
        (
            "    load_assignment:\n      endpoints:\n      - lb",
            "    health_checks: [{}]\n    load_assignment:\n      endpoints:\n      - lb",
            "static_resources.clusters[traffic].health_checks[0].timeout: is missing",
        ),
        ("{address: 10.0.0.1,", "{address: name.example,", "`name.example` is not an IP address"),
    ] {
        let faults = parsed(&text.replacen(from, to, 1)).unwrap_err();
        assert!(faults.iter().any(|fault| fault.contains(reason)), "{reason}: {faults:?}");
    }
    let ads = text.replacen(
        "path_config_source: {path: /etc/lds.yaml, watched_directory: {path: /etc}}",
        "ads: {}",
        1,
    );
    let faults = parsed(&ads).unwrap_err();
    assert!(faults[0].contains("lds_config.ads: needs dynamic_resources.ads_config"), "{faults:?}");
}

#[test]
fn addresses_of_servers_are_hosts_or_paths() {
    let Bootstrap { xds, .. } = parsed(ISTIO_LIKE).unwrap();
    let addresses: Vec<_> = xds.servers["xds"].iter().map(|server| &server.address).collect();
    assert!(matches!(addresses[0], ServerAddress::Plain { .. }));
    assert!(matches!(addresses[1], ServerAddress::Unix(_)));
    let faults = parsed(&ISTIO_LIKE.replacen("cp.example", "a b", 1)).unwrap_err();
    assert!(faults[0].contains("socket_address.address: `a b` is neither"), "{faults:?}");
}

#[test]
fn layers_of_the_runtime_are_read_in_their_order() {
    let layered = format!(
        "{ISTIO_LIKE}\nlayered_runtime:\n  layers:\n  - name: fixed\n    static_layer:\n      \
         routing: {{canary: 5, fine: {{numerator: 1, denominator: MILLION}}}}\n      on: true\n      \
         word: '12'\n  - name: pushed\n    rtds_layer: {{name: rtds, rtds_config: {{ads: {{}}}}}}\n  \
         - name: admin\n    admin_layer: {{}}\n"
    );
    let runtime = parsed(&layered).unwrap().runtime;
    let names: Vec<_> = runtime.layers.iter().map(|layer| &*layer.name).collect();
    assert_eq!(names, ["fixed", "pushed", "admin"]);
    assert_eq!(runtime.resource_names().map(|name| &**name).collect::<Vec<_>>(), ["rtds"]);
    let values = runtime.with(&Default::default());
    assert_eq!(values.integer("routing.canary", 0), 5);
    assert_eq!(values.integer("word", 0), 12);
    assert!(values.flag("on", false));
    let fine = values.fraction("routing.fine", Fraction::percent(0));
    assert_eq!(fine, Fraction { numerator: 1, denominator: 1_000_000 });
    assert_eq!(parsed(ISTIO_LIKE).unwrap().runtime, LayeredRuntime::default());

    let at = "layered_runtime.layers[0]";
    for (layer, reason) in [
        ("{static_layer: {}}", ".name: is missing"),
        ("{name: x, disk_layer: {symlink_root: /x}}", ".disk_layer: is not supported"),
        ("{name: x}", ": is none of static_layer, admin_layer and rtds_layer"),
        (
            "{name: x, static_layer: {a: [1]}}",
            ".static_layer.fields[a]: a list is no runtime value",
        ),
        (
            "{name: x, static_layer: {a: {numerator: 1, denominator: TEN}}}",
            ".static_layer.fields[a]: is not a FractionalPercent",
        ),
        (
            "{name: x, static_layer: {a: {numerator: 1, b: 2}}}",
            ".static_layer.fields[a]: is not a FractionalPercent",
        ),
        ("{name: x, static_layer: {a: null}}", ".static_layer.fields[a]: has no value"),
        ("{name: x, rtds_layer: {rtds_config: {ads: {}}}}", ".rtds_layer.name: is missing"),
        ("{name: x, rtds_layer: {name: r}}", ".rtds_layer.rtds_config: is missing"),
        (
            "{name: x, rtds_layer: {name: r, rtds_config: {path: /x}}}",
            ".rtds_layer.rtds_config.path: is not supported: use path_config_source",
        ),
        ("{name: x, nonsense: 1}", ".nonsense: unknown field"),
    ] {
        let text = format!("{ISTIO_LIKE}\nlayered_runtime: {{layers: [{layer}]}}\n");
        let faults = parsed(&text).unwrap_err();
        assert!(faults.contains(&format!("{at}{reason}")), "{at}{reason}: {faults:?}");
    }
    for (layers, reason) in [
        (
            "{name: x, static_layer: {}}, {name: x, static_layer: {}}",
            "layered_runtime.layers[1].name: `x` is given twice",
        ),
        (
            "{name: x, rtds_layer: {name: r, rtds_config: {path_config_source: {path: /x}}}}, \
             {name: y, rtds_layer: {name: s, rtds_config: {ads: {}}}}",
            "layered_runtime.layers[1].rtds_layer.rtds_config: is another source than that of \
             the layers before",
        ),
        (
            "{name: x, rtds_layer: {name: r, rtds_config: {api_config_source: {api_type: GRPC, \
             transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: gone}}]}}}}",
            "static_resources.clusters: `gone` is missing",
        ),
        (
            "{name: x, admin_layer: {}}, {name: y, admin_layer: {}}",
            "layered_runtime.layers[1].admin_layer: is given twice",
        ),
    ] {
        let text = format!("{ISTIO_LIKE}\nlayered_runtime: {{layers: [{layers}]}}\n");
        assert_eq!(parsed(&text).unwrap_err(), [reason]);
    }
}

/// As the samples of go-control-plane and java-control-plane are written.
#[test]
fn one_value_counts_for_a_list_of_one() {
    let text = ISTIO_LIKE.replacen(
        "    - envoy_grpc: {cluster_name: xds}\n    - envoy_grpc: {cluster_name: other}\n",
        "      envoy_grpc: {cluster_name: xds}\n",
        1,
    );
    assert_ne!(text, ISTIO_LIKE);
    let Bootstrap { xds, .. } = parsed(&text).unwrap();
    assert_eq!(xds.ads.unwrap().clusters, ["xds"]);
    let faults = parsed(&text.replacen("{cluster_name: xds}", "{cluster: xds}", 1)).unwrap_err();
    let path = "dynamic_resources.ads_config.grpc_services[0].envoy_grpc.cluster: unknown field";
    assert!(faults.contains(&path.to_owned()), "{faults:?}");
    // The other way about it is a mistake, as for Envoy.
    let faults = parsed(&text.replacen("id: n1", "id: [n1]", 1)).unwrap_err();
    assert!(faults[0].starts_with("node.id: invalid type"), "{faults:?}");
}

/// As Envoy's own first example, and the listeners for scrapers in Istio's bootstrap.
const STATIC: &str = r#"
static_resources:
  listeners:
  - address: {socket_address: {address: 127.0.0.1, port_value: 15090}}
    filter_chains: &chains
    - filters:
      - name: tcp
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: tcp
          cluster: app
  - name: one
    address: {socket_address: {address: 127.0.0.1, port_value: 15091}}
    filter_chains: *chains
  - name: two
    address: {socket_address: {address: 127.0.0.1, port_value: 15092}}
    filter_chains: *chains
  clusters: {name: app}
  secrets:
  - {name: three, validation_context: &roots {trusted_ca: {inline_string: PEM}}}
  - {name: four, validation_context: *roots}
"#;

fn with_roots(text: &str) -> String {
    let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
    text.replace("PEM", &Value::from(made.cert.pem()).to_string())
}

#[test]
fn what_is_static_needs_neither_node_nor_listeners_names() {
    let Bootstrap { xds, .. } = parsed(&with_roots(STATIC)).unwrap();
    let fixed: Vec<_> = xds.fixed.iter().map(|fixed| &*fixed.name).collect();
    assert_eq!(fixed, ["static-0", "one", "two", "three", "four", "app"]);
    assert_eq!(xds.node, NodeInfo::default());
}

#[test]
fn the_local_cluster_is_one_that_is_static() {
    let said = |more: &str| parsed(&with_roots(&format!("{STATIC}\n{more}")));
    let named = said("cluster_manager: {local_cluster_name: app}").unwrap();
    assert_eq!(named.local_cluster, Some(ClusterName("app".into())));
    let none = said("cluster_manager: {enable_deferred_cluster_creation: true}").unwrap();
    assert_eq!(none.local_cluster, None);
    for (more, reason) in [
        (
            "cluster_manager: {local_cluster_name: absent}",
            "cluster_manager.local_cluster_name: `absent` is not among the clusters of \
             static_resources",
        ),
        (
            "cluster_manager: {outlier_detection: {}}",
            "cluster_manager.outlier_detection: is not supported",
        ),
    ] {
        assert_eq!(said(more).unwrap_err(), [reason]);
    }
}

#[test]
fn of_two_static_resources_with_one_name_none_is_left_out_silently() {
    for (from, to, reason) in [
        ("name: two", "name: one", "static_resources.listeners[one]: is given twice"),
        ("name: four", "name: three", "static_resources.secrets[three]: is given twice"),
        (
            "clusters: {name: app}",
            "clusters: [{name: app}, {name: app}]",
            "static_resources.clusters[app]: is given twice",
        ),
    ] {
        assert_eq!(parsed(&with_roots(&STATIC.replacen(from, to, 1))).unwrap_err(), [reason]);
    }
}
