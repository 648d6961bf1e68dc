//! The fuzz target's seeds, and what lies near them: decoding never panics.

use std::path::PathBuf;

use envoy_types::pb::{
    envoy::config::{
        core::v3::{
            Address, SocketAddress, TransportSocket, TypedExtensionConfig, address, socket_address,
        },
        listener::v3::{Filter, FilterChain, Listener, filter},
        rbac::v3::{Permission, Policy, Principal, Rbac as Rules, permission, principal},
        route::v3::{
            RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route, route_action,
        },
    },
    envoy::extensions::filters::{http::rbac::v3::Rbac as HttpRbac, network::rbac::v3::Rbac},
    envoy::service::runtime::v3::Runtime,
    google::protobuf::{Any, Duration, StringValue, Struct, Value as Pb, value::Kind},
};
use prost::{Message as _, Name as _};
use serde_json::{Value, json};

use super::*;
use crate::source::{json as source_json, text, xds::ResourceType};

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/xds_decode")
}

fn run(seed: &[u8]) -> bool {
    let Some((first, value)) = seed.split_first() else { return false };
    decode_any(TYPE_URLS[usize::from(*first) % TYPE_URLS.len()], value).is_ok()
}

#[test]
fn the_type_urls_are_those_of_the_types() {
    for (kind, url) in ResourceType::ALL.into_iter().zip(TYPE_URLS) {
        assert_eq!(url, format!("type.googleapis.com/{}", kind.full_name()));
    }
}

#[test]
fn seeds_and_their_neighbours_are_decoded_or_refused() {
    let mut seeds = 0;
    for entry in fs::read_dir(directory()).unwrap() {
        let path = entry.unwrap().path();
        let seed = fs::read(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        assert_eq!(run(&seed), name.starts_with("good-"), "{name}");
        seeds += 1;
        for cut in (0..seed.len()).step_by(7) {
            run(&seed[..cut]);
        }
        for at in (0..seed.len()).step_by(5) {
            for flip in [0x01, 0x08, 0x80, 0xff] {
                let mut near = seed.clone();
                near[at] ^= flip;
                run(&near);
            }
        }
    }
    assert!(seeds >= 15, "only {seeds} seeds");
}

#[test]
fn unknown_types_and_garbage_are_refused() {
    for (type_url, value) in [
        ("", &b""[..]),
        ("type.googleapis.com/envoy.config.listener.v2.Listener", b""),
        ("\u{1b}[31m\n", b"x"),
    ] {
        let rejected = decode_any(type_url, value).unwrap_err();
        assert!(rejected[0].reason.starts_with("unknown @type"), "{rejected:?}");
        assert!(!rejected[0].reason.contains(char::is_control));
    }
    for type_url in TYPE_URLS {
        assert!(decode_any(type_url, &[0xff; 64]).is_err());
        assert!(decode_any(type_url, b"").is_err());
    }
}

/// The resources of `testdata/shop.yaml`, and hostile ones; `MESH_WRITE_SEEDS=1` writes
/// them anew.
#[test]
fn seeds_are_what_the_corpus_says() {
    let mut seeds: Vec<(String, Vec<u8>)> = Vec::new();
    let documents = text::documents("shop.yaml", text::Format::Yaml, SHOP.as_bytes()).unwrap();
    let resources = documents.into_iter().flat_map(|document| match document {
        Value::Array(items) => items,
        Value::Object(mut fields) if fields.contains_key("resources") => {
            match fields.remove("resources") {
                Some(Value::Array(items)) => items,
                other => panic!("{other:?}"),
            }
        }
        other => vec![other],
    });
    for (i, resource) in resources.enumerate() {
        let Value::Object(fields) = resource else { panic!("{resource:?}") };
        let kind = ResourceType::of_url(fields["@type"].as_str().unwrap()).unwrap();
        let index = ResourceType::ALL.iter().position(|known| *known == kind).unwrap();
        let mut seed = vec![u8::try_from(index).unwrap()];
        seed.extend(source_json::transcode(kind, fields, String::new()).unwrap().bytes);
        seeds.push((format!("good-{i:02}-{}", kind.table()), seed));
    }
    for (name, message) in hostile().into_iter().chain(further()) {
        seeds.push((name.to_owned(), message));
    }
    let write = std::env::var_os("MESH_WRITE_SEEDS").is_some();
    for (name, seed) in seeds {
        let path = directory().join(&name);
        if write {
            fs::create_dir_all(directory()).unwrap();
            fs::write(&path, &seed).unwrap();
        }
        let same = fs::read(&path).is_ok_and(|found| sorted(found) == sorted(seed));
        assert!(same, "{name}: MESH_WRITE_SEEDS=1");
    }
}

/// A protobuf map has no order: encodings of the same one hold the same bytes.
fn sorted(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.sort_unstable();
    bytes
}

fn hostile() -> Vec<(&'static str, Vec<u8>)> {
    let any = |type_url: String, value| Any { type_url, value };
    let filter = |config| Filter {
        name: "x".to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(config)),
    };
    let listener = |filters, transport_socket| {
        let address = SocketAddress {
            address: "10.0.0.1".to_owned(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(u32::MAX)),
            ..SocketAddress::default()
        };
        let chain = FilterChain { filters, transport_socket, ..FilterChain::default() };
        let listener = Listener {
            name: "]: \u{202e}\n".to_owned(),
            address: Some(Address { address: Some(address::Address::SocketAddress(address)) }),
            traffic_direction: 77,
            filter_chains: vec![chain],
            ..Listener::default()
        };
        [&[0], listener.encode_to_vec().as_slice()].concat()
    };
    let nested = (0..90)
        .fold(Permission { rule: Some(permission::Rule::Any(true)) }, |inner, _| Permission {
            rule: Some(permission::Rule::NotRule(Box::new(inner))),
        });
    let placeholder = StringValue { value: Rbac::full_name() };
    let policy = Policy {
        permissions: vec![nested],
        principals: vec![Principal { identifier: Some(principal::Identifier::Any(true)) }],
        ..Policy::default()
    };
    let rules =
        Rules { action: -1, policies: [(String::new(), policy)].into(), ..Rules::default() };
    let rbac = Rbac { rules: Some(rules), ..Rbac::default() };
    let action = RouteAction {
        timeout: Some(Duration { seconds: i64::MIN, nanos: i32::MIN }),
        prefix_rewrite: "\0".to_owned(),
        cluster_specifier: Some(route_action::ClusterSpecifier::Cluster(String::new())),
        ..RouteAction::default()
    };
    let route = envoy_types::pb::envoy::config::route::v3::Route {
        r#match: Some(RouteMatch::default()),
        action: Some(route::Action::Route(action)),
        ..Default::default()
    };
    let host = VirtualHost {
        name: "h".to_owned(),
        domains: vec!["*".to_owned(), "*".to_owned(), "\u{130}*".to_owned()],
        routes: vec![route],
        ..VirtualHost::default()
    };
    let routes = RouteConfiguration {
        name: "r".to_owned(),
        virtual_hosts: vec![host.clone(), host],
        ..RouteConfiguration::default()
    };
    vec![
        ("bad-any-garbage", listener(vec![filter(any(Rbac::type_url(), vec![0xff; 9]))], None)),
        // A placeholder from the wire must not pass for what it names.
        (
            "bad-placeholder",
            listener(vec![filter(any(StringValue::type_url(), placeholder.encode_to_vec()))], None),
        ),
        ("bad-any-unknown", listener(vec![filter(any("a/b/c.D".to_owned(), vec![]))], None)),
        (
            "bad-rbac-deep",
            listener(vec![filter(any(Rbac::type_url(), rbac.encode_to_vec()))], None),
        ),
        ("bad-socket", listener(vec![], Some(TransportSocket::default()))),
        ("bad-routes", [&[1], routes.encode_to_vec().as_slice()].concat()),
        ("bad-empty", vec![2]),
        ("good-runtime", runtime(vec![("a", Kind::NumberValue(7.0)), ("b", fraction("MILLION"))])),
        ("bad-runtime", runtime(vec![("a", Kind::NumberValue(f64::NAN)), ("a.b", deep())])),
        ("bad-runtime-fraction", runtime(vec![("", fraction("\u{1b}[31m"))])),
        ("good-extension", extension(any(HttpRbac::type_url(), vec![]))),
        ("bad-extension", extension(any(HttpRbac::type_url(), vec![0xff; 9]))),
    ]
}

/// Of types that the shop has none of.
fn further() -> Vec<(&'static str, Vec<u8>)> {
    let of = |kind: ResourceType, value: Value| {
        let Value::Object(fields) = value else { panic!("{value:?}") };
        let index = ResourceType::ALL.iter().position(|known| *known == kind).unwrap();
        let bytes = source_json::transcode(kind, fields, String::new()).unwrap().bytes;
        [&[u8::try_from(index).unwrap()], bytes.as_slice()].concat()
    };
    let host = |domains: &[&str]| {
        let route = json!({ "match": { "prefix": "/" }, "route": { "cluster": "c" } });
        json!({ "name": "h", "domains": domains, "routes": [route] })
    };
    let routes = json!({ "name": "own", "virtual_hosts": [host(&["*"])] });
    let key = json!({ "fragments": [{ "string_key": "k" }, { "string_key": "" }] });
    let pem = json!({ "inline_string": "-----BEGIN CERTIFICATE-----\nc2VjcmV0\n-----END CERTIFICATE-----\n" });
    let pair = json!({ "certificate_chain": pem, "private_key": pem });
    let bundle = json!({ "trusted_ca": pem });
    vec![
        ("good-virtual-host", of(ResourceType::VirtualHost, host(&["a.test", "*.b.test"]))),
        ("bad-virtual-host", of(ResourceType::VirtualHost, host(&["*", "*", "\0"]))),
        (
            "good-scope",
            of(
                ResourceType::Scope,
                json!({ "name": "s", "key": key, "route_configuration": routes }),
            ),
        ),
        (
            "bad-scope",
            of(
                ResourceType::Scope,
                json!({ "name": "s", "on_demand": true, "route_configuration": routes }),
            ),
        ),
        (
            "bad-secret-pair",
            of(ResourceType::Secret, json!({ "name": "s", "tls_certificate": pair })),
        ),
        (
            "bad-secret-bundle",
            of(ResourceType::Secret, json!({ "name": "s", "validation_context": bundle })),
        ),
    ]
}

fn runtime(values: Vec<(&str, Kind)>) -> Vec<u8> {
    let runtime = Runtime { name: "r".to_owned(), layer: Some(tree(values)) };
    [&[5], runtime.encode_to_vec().as_slice()].concat()
}

fn tree(values: Vec<(&str, Kind)>) -> Struct {
    let values = values.into_iter().map(|(k, kind)| (k.to_owned(), Pb { kind: Some(kind) }));
    Struct { fields: values.collect() }
}

fn fraction(denominator: &str) -> Kind {
    let denominator = Kind::StringValue(denominator.to_owned());
    Kind::StructValue(tree(vec![
        ("numerator", Kind::NumberValue(5.0)),
        ("denominator", denominator),
    ]))
}

/// As deep as prost decodes it.
fn deep() -> Kind {
    (0..30).fold(Kind::NullValue(0), |inner, _| Kind::StructValue(tree(vec![("x", inner)])))
}

fn extension(typed_config: Any) -> Vec<u8> {
    let config = TypedExtensionConfig { name: "e".to_owned(), typed_config: Some(typed_config) };
    [&[6], config.encode_to_vec().as_slice()].concat()
}

#[test]
fn a_placeholder_from_the_wire_does_not_pass_for_what_it_names() {
    use envoy_types::pb::envoy::{
        config::core::v3::TrafficDirection,
        extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy::ClusterSpecifier},
    };
    let proxy = TcpProxy {
        cluster_specifier: Some(ClusterSpecifier::Cluster("c".to_owned())),
        ..TcpProxy::default()
    };
    let decode = |type_url, value| {
        let config = Any { type_url, value };
        let filter = Filter {
            name: "x".to_owned(),
            config_type: Some(filter::ConfigType::TypedConfig(config)),
        };
        let address = SocketAddress {
            address: "10.0.0.1".to_owned(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(80)),
            ..SocketAddress::default()
        };
        let listener = Listener {
            name: "l".to_owned(),
            address: Some(Address { address: Some(address::Address::SocketAddress(address)) }),
            traffic_direction: TrafficDirection::Inbound as i32,
            filter_chains: vec![FilterChain { filters: vec![filter], ..FilterChain::default() }],
            ..Listener::default()
        };
        decode_any(TYPE_URLS[0], &listener.encode_to_vec())
    };
    assert!(decode(TcpProxy::type_url(), proxy.encode_to_vec()).is_ok());
    let named = StringValue { value: TcpProxy::full_name() };
    // Field 1 is a string in both, so that it would decode.
    let rejected = decode(StringValue::type_url(), named.encode_to_vec()).unwrap_err();
    assert!(rejected[0].reason.ends_with("is not supported"), "{rejected:?}");
}
