//! Resources to say things with.

use std::sync::OnceLock;

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{Cluster, cluster as pb_cluster},
            core::v3::{
                Address, AggregatedConfigSource, ConfigSource, DataSource, ExtensionConfigSource,
                SocketAddress, TrafficDirection, TypedExtensionConfig, address,
                config_source::ConfigSourceSpecifier, data_source, socket_address::PortSpecifier,
            },
            endpoint::v3::{
                ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
                cluster_load_assignment::Policy, lb_endpoint::HostIdentifier,
            },
            listener::v3::{Filter, FilterChain, Listener, filter::ConfigType},
            route::v3::{
                Route, RouteAction, RouteConfiguration, RouteMatch, ScopedRouteConfiguration, Vhds,
                VirtualHost, route, route_action,
                route_match::PathSpecifier,
                scoped_route_configuration::{
                    Key,
                    key::{Fragment, fragment},
                },
            },
        },
        extensions::{
            filters::{
                http::{rbac::v3::Rbac, router::v3::Router},
                network::{
                    http_connection_manager::v3::{
                        HttpConnectionManager, HttpFilter, Rds, ScopedRds, ScopedRoutes,
                        http_connection_manager::RouteSpecifier,
                        http_filter,
                        scoped_routes::{
                            ConfigSpecifier, ScopeKeyBuilder,
                            scope_key_builder::{
                                FragmentBuilder,
                                fragment_builder::{
                                    self, HeaderValueExtractor, header_value_extractor::ExtractType,
                                },
                            },
                        },
                    },
                    tcp_proxy::v3::{TcpProxy, tcp_proxy},
                },
            },
            transport_sockets::tls::v3::{
                CertificateValidationContext, Secret, TlsCertificate, secret,
            },
        },
        service::runtime::v3::Runtime,
    },
    google::protobuf::{Any, BoolValue, Duration, Struct, Value, value},
};
use prost::{Message, Name};

use crate::source::xds::TYPE_URLS;

pub(super) const LDS: &str = TYPE_URLS[0];
pub(super) const RDS: &str = TYPE_URLS[1];
pub(super) const CDS: &str = TYPE_URLS[2];
pub(super) const EDS: &str = TYPE_URLS[3];
pub(super) const SDS: &str = TYPE_URLS[4];
pub(super) const RTDS: &str = TYPE_URLS[5];
pub(super) const ECDS: &str = TYPE_URLS[6];
pub(super) const VHDS: &str = TYPE_URLS[7];
pub(super) const SRDS: &str = TYPE_URLS[8];

fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

fn ads() -> Option<ConfigSource> {
    let ads = ConfigSourceSpecifier::Ads(AggregatedConfigSource::default());
    Some(ConfigSource { config_source_specifier: Some(ads), ..ConfigSource::default() })
}

fn address(ip: &str, port: u32) -> Option<Address> {
    let address = SocketAddress {
        address: ip.to_owned(),
        port_specifier: Some(PortSpecifier::PortValue(port)),
        ..SocketAddress::default()
    };
    Some(Address { address: Some(address::Address::SocketAddress(address)) })
}

pub(super) fn cluster(name: &str) -> Any {
    any(&Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(pb_cluster::ClusterDiscoveryType::Type(
            pb_cluster::DiscoveryType::Eds as i32,
        )),
        eds_cluster_config: Some(pb_cluster::EdsClusterConfig {
            eds_config: ads(),
            service_name: String::new(),
        }),
        ..Cluster::default()
    })
}

/// A cluster that is refused, by `lrs_server`… by its policy.
pub(super) fn bad_cluster(name: &str) -> Any {
    let cluster = Cluster::decode(cluster(name).value.as_slice()).unwrap();
    any(&Cluster { lb_policy: pb_cluster::LbPolicy::ClusterProvided as i32, ..cluster })
}

pub(super) fn endpoints(name: &str, count: u8) -> Any {
    let endpoint = |i| LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: address(&format!("10.0.0.{}", i + 1), 80),
            ..Endpoint::default()
        })),
        ..LbEndpoint::default()
    };
    let lb_endpoints = (0..count).map(endpoint).collect();
    any(&ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: vec![LocalityLbEndpoints { lb_endpoints, ..LocalityLbEndpoints::default() }],
        ..ClusterLoadAssignment::default()
    })
}

/// One endpoint, for an hour.
pub(super) fn stale_endpoints(name: &str) -> Any {
    let assignment = ClusterLoadAssignment::decode(endpoints(name, 1).value.as_slice()).unwrap();
    let hour = Duration { seconds: 3600, nanos: 0 };
    let policy = Policy { endpoint_stale_after: Some(hour), ..Policy::default() };
    any(&ClusterLoadAssignment { policy: Some(policy), ..assignment })
}

fn listener(name: &str, port: u32, filter: Any) -> Any {
    any(&Listener {
        name: name.to_owned(),
        address: address("10.9.0.1", port),
        traffic_direction: TrafficDirection::Outbound as i32,
        filter_chains: vec![FilterChain {
            filters: vec![Filter {
                name: "x".to_owned(),
                config_type: Some(ConfigType::TypedConfig(filter)),
            }],
            ..FilterChain::default()
        }],
        ..Listener::default()
    })
}

pub(super) fn tcp_listener(name: &str, port: u32, cluster: &str) -> Any {
    let proxy = TcpProxy {
        stat_prefix: "x".to_owned(),
        cluster_specifier: Some(tcp_proxy::ClusterSpecifier::Cluster(cluster.to_owned())),
        ..TcpProxy::default()
    };
    listener(name, port, any(&proxy))
}

pub(super) fn http_listener(name: &str, port: u32, routes: &str) -> Any {
    listener(name, port, any(&manager(routes, Vec::new())))
}

/// A listener whose requests find their scope, which SRDS delivers, by the header `x-scope`.
pub(super) fn scoped_listener(name: &str, port: u32) -> Any {
    scoped_listener_by(name, port, ads())
}

/// The same, with routes from that source.
pub(super) fn scoped_listener_by(name: &str, port: u32, routes: Option<ConfigSource>) -> Any {
    let extractor = HeaderValueExtractor {
        name: "x-scope".to_owned(),
        extract_type: Some(ExtractType::Index(0)),
        ..HeaderValueExtractor::default()
    };
    let fragment = fragment_builder::Type::HeaderValueExtractor(extractor);
    let fragments = vec![FragmentBuilder { r#type: Some(fragment) }];
    let source = ScopedRds { scoped_rds_config_source: ads(), ..ScopedRds::default() };
    let scoped = ScopedRoutes {
        name: "s".to_owned(),
        scope_key_builder: Some(ScopeKeyBuilder { fragments }),
        rds_config_source: routes,
        config_specifier: Some(ConfigSpecifier::ScopedRds(source)),
    };
    let route_specifier = Some(RouteSpecifier::ScopedRoutes(scoped));
    listener(name, port, any(&HttpConnectionManager { route_specifier, ..manager("", Vec::new()) }))
}

fn scope_of(name: &str, key: &str) -> ScopedRouteConfiguration {
    let fragment = Fragment { r#type: Some(fragment::Type::StringKey(key.to_owned())) };
    ScopedRouteConfiguration {
        name: name.to_owned(),
        key: Some(Key { fragments: vec![fragment] }),
        ..ScopedRouteConfiguration::default()
    }
}

pub(super) fn scope(name: &str, key: &str, routes: &str) -> Any {
    let route_configuration_name = routes.to_owned();
    any(&ScopedRouteConfiguration { route_configuration_name, ..scope_of(name, key) })
}

pub(super) fn scope_on_demand(name: &str, key: &str, routes: &str) -> Any {
    let route_configuration_name = routes.to_owned();
    let on_demand = true;
    any(&ScopedRouteConfiguration { on_demand, route_configuration_name, ..scope_of(name, key) })
}

/// A scope whose routes are its own.
pub(super) fn scope_with_routes(name: &str, key: &str, cluster: &str) -> Any {
    let own = RouteConfiguration::decode(routes("own", cluster).value.as_slice()).unwrap();
    any(&ScopedRouteConfiguration { route_configuration: Some(own), ..scope_of(name, key) })
}

/// A listener with an RBAC filter that is configured by itself, under `filter`.
pub(super) fn filtered_listener(port: u32, filter: &str, source: ExtensionConfigSource) -> Any {
    let type_urls = vec![any(&Rbac::default()).type_url];
    let source = ExtensionConfigSource { config_source: ads(), type_urls, ..source };
    let discovered = HttpFilter {
        name: filter.to_owned(),
        config_type: Some(http_filter::ConfigType::ConfigDiscovery(source)),
        ..HttpFilter::default()
    };
    listener("l", port, any(&manager("r", vec![discovered])))
}

/// A default configuration that enforces nothing.
pub(super) fn with_default() -> ExtensionConfigSource {
    let default_config = Some(any(&Rbac::default()));
    ExtensionConfigSource { default_config, ..ExtensionConfigSource::default() }
}

fn manager(routes: &str, mut http_filters: Vec<HttpFilter>) -> HttpConnectionManager {
    http_filters.push(HttpFilter {
        name: "envoy.filters.http.router".to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(any(&Router::default()))),
        ..HttpFilter::default()
    });
    HttpConnectionManager {
        stat_prefix: "x".to_owned(),
        http_filters,
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: ads(),
            route_config_name: routes.to_owned(),
        })),
        ..HttpConnectionManager::default()
    }
}

fn virtual_host(name: &str, domain: &str, cluster: &str) -> VirtualHost {
    let action = RouteAction {
        cluster_specifier: Some(route_action::ClusterSpecifier::Cluster(cluster.to_owned())),
        ..RouteAction::default()
    };
    let route = Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
            ..RouteMatch::default()
        }),
        action: Some(route::Action::Route(action)),
        ..Route::default()
    };
    VirtualHost {
        name: name.to_owned(),
        domains: vec![domain.to_owned()],
        routes: vec![route],
        ..VirtualHost::default()
    }
}

pub(super) fn routes(name: &str, cluster: &str) -> Any {
    any(&RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![virtual_host("h", "*", cluster)],
        ..RouteConfiguration::default()
    })
}

/// Routes that say that their cluster must be there.
pub(super) fn validated_routes(name: &str, cluster: &str) -> Any {
    any(&RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![virtual_host("h", "*", cluster)],
        validate_clusters: Some(BoolValue { value: true }),
        ..RouteConfiguration::default()
    })
}

pub(super) fn routes_with_vhds(name: &str) -> Any {
    any(&RouteConfiguration {
        name: name.to_owned(),
        vhds: Some(Vhds { config_source: ads() }),
        ..RouteConfiguration::default()
    })
}

pub(super) fn host(name: &str, domain: &str, cluster: &str) -> Any {
    any(&virtual_host(name, domain, cluster))
}

fn inline(text: &str) -> Option<DataSource> {
    let specifier = Some(data_source::Specifier::InlineString(text.to_owned()));
    Some(DataSource { specifier, ..DataSource::default() })
}

/// A certificate and its key, in PEM; the same every time.
fn pair() -> &'static (String, String) {
    static PAIR: OnceLock<(String, String)> = OnceLock::new();
    PAIR.get_or_init(|| {
        let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    })
}

pub(super) fn secret(name: &str) -> Any {
    let certificate = TlsCertificate {
        certificate_chain: inline(&pair().0),
        private_key: inline(&pair().1),
        ..TlsCertificate::default()
    };
    any(&Secret { name: name.to_owned(), r#type: Some(secret::Type::TlsCertificate(certificate)) })
}

/// A secret whose key is none.
pub(super) fn bad_secret(name: &str) -> Any {
    let certificate = TlsCertificate {
        certificate_chain: inline(&pair().0),
        private_key: inline("-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n"),
        ..TlsCertificate::default()
    };
    any(&Secret { name: name.to_owned(), r#type: Some(secret::Type::TlsCertificate(certificate)) })
}

/// A secret of PEM that holds no certificate and no key; the same in every run.
pub(super) fn odd_secret(name: &str) -> Any {
    let pem = |label: &str| {
        inline(&format!("-----BEGIN {label}-----\nc2VjcmV0\n-----END {label}-----\n"))
    };
    let certificate = TlsCertificate {
        certificate_chain: pem("CERTIFICATE"),
        private_key: pem("PRIVATE KEY"),
        ..TlsCertificate::default()
    };
    any(&Secret { name: name.to_owned(), r#type: Some(secret::Type::TlsCertificate(certificate)) })
}

pub(super) fn trusted_ca(name: &str) -> Any {
    let context = CertificateValidationContext {
        trusted_ca: inline(&pair().0),
        ..CertificateValidationContext::default()
    };
    any(&Secret { name: name.to_owned(), r#type: Some(secret::Type::ValidationContext(context)) })
}

pub(super) fn layer(name: &str, key: &str, number: f64) -> Any {
    let value = Value { kind: Some(value::Kind::NumberValue(number)) };
    let layer = Struct { fields: [(key.to_owned(), value)].into() };
    any(&Runtime { name: name.to_owned(), layer: Some(layer) })
}

pub(super) fn extension(name: &str) -> Any {
    let typed_config = Some(any(&Rbac::default()));
    any(&TypedExtensionConfig { name: name.to_owned(), typed_config })
}

/// A filter's configuration that is refused.
pub(super) fn bad_extension(name: &str) -> Any {
    let typed_config = Some(any(&Rbac { track_per_rule_stats: true, ..Rbac::default() }));
    any(&TypedExtensionConfig { name: name.to_owned(), typed_config })
}

/// With a field that no proto of ours has: number 1000, a varint.
pub(super) fn with_unknown_field(mut any: Any) -> Any {
    any.value.extend([0xc0, 0x3e, 0x01]);
    any
}
