//! Clusters.
//!
//! Spec: `envoy/config/cluster/v3/cluster.proto`,
//! `envoy/extensions/upstreams/http/v3/http_protocol_options.proto`.

use std::{collections::HashMap, sync::Arc, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{
                Cluster as PbCluster,
                cluster::{
                    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig,
                    TransportSocketMatch as PbTransportSocketMatch,
                },
            },
            core::v3::HealthCheck as PbHealthCheck,
        },
        extensions::{
            filters::{
                http::upstream_codec::v3::UpstreamCodec,
                network::http_connection_manager::v3::{HttpFilter, http_filter::ConfigType},
            },
            upstreams::http::v3::{
                HttpProtocolOptions,
                http_protocol_options::{
                    ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
                    explicit_http_config::ProtocolConfig,
                },
            },
        },
    },
    google::protobuf::Any,
};

use super::{
    ResourceType, balancing, circuit_breakers, common, config_source, dns, eds, health_check,
    http_options, keepalive,
    options::json_of,
    outlier,
    reject::{Decoder, unsupported},
    upstream_tls,
};
use crate::model::{
    cluster::{
        CircuitBreakers, Cluster, ClusterName, ConnectionLimits, Discovery, HealthCheck, Keepalive,
        LoadAssignment, Monitoring, Tunnel, UpstreamProtocol,
    },
    socket_match::TransportSocketMatch,
    tls::HostNames,
};

const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

#[expect(deprecated, reason = "a deprecated field that is set is refused too")]
pub(super) fn cluster(d: &mut Decoder, value: PbCluster) -> Option<Cluster> {
    let PbCluster {
        transport_socket_matches,
        transport_socket_matcher,
        name,
        // A name in statistics.
        alt_stat_name: _,
        stats_matcher,
        eds_cluster_config,
        connect_timeout,
        // What is kept of a connection has limits of its own, below the default.
        per_connection_buffer_limit_bytes: _,
        per_connection_buffer_high_watermark_timeout,
        lb_policy,
        load_assignment,
        health_checks,
        max_requests_per_connection,
        circuit_breakers,

        upstream_http_protocol_options,
        common_http_protocol_options,
        http_protocol_options,
        http2_protocol_options,
        typed_extension_protocol_options,
        dns_refresh_rate,
        dns_jitter,
        dns_failure_refresh_rate,
        respect_dns_ttl,
        dns_lookup_family,
        dns_resolvers,
        use_tcp_for_dns_lookups,
        dns_resolution_config,
        typed_dns_resolver_config,
        wait_for_warm_on_init,
        outlier_detection,
        cleanup_interval,
        upstream_bind_config,
        lb_subset_config,
        common_lb_config,
        transport_socket,
        // Notes of the control plane: nothing that reads them is supported.
        metadata: _,
        protocol_selection,
        upstream_connection_options,
        close_connections_on_host_health_failure,
        // An endpoint that is removed takes nothing more, whatever its health.
        ignore_health_on_host_removal: _,
        filters,
        load_balancing_policy,
        lrs_server,
        lrs_report_endpoint_metrics,
        track_timeout_budgets,
        upstream_config,
        track_cluster_stats,
        preconnect_policy,
        connection_pool_per_downstream_connection,
        queuing_policies,
        cluster_discovery_type,
        lb_config,
    } = value;
    unsupported!(
        d;
        transport_socket_matcher, stats_matcher,
        per_connection_buffer_high_watermark_timeout,
        max_requests_per_connection,
        upstream_http_protocol_options, common_http_protocol_options, http_protocol_options,
        dns_resolvers, use_tcp_for_dns_lookups, dns_resolution_config,
        typed_dns_resolver_config, wait_for_warm_on_init, cleanup_interval,
        upstream_bind_config, protocol_selection,
        close_connections_on_host_health_failure,
        filters, lrs_server,
        lrs_report_endpoint_metrics, track_timeout_budgets, upstream_config,
        track_cluster_stats, preconnect_policy, connection_pool_per_downstream_connection,
        queuing_policies,
    );
    if http2_protocol_options.is_some() {
        let reason =
            format!("is not supported: use typed_extension_protocol_options[{HTTP_OPTIONS}]");
        d.refuse_field("http2_protocol_options", reason);
    }
    if name.is_empty() {
        d.refuse_field("name", "is missing");
    }

    let of_names = dns::Fields {
        load_assignment,
        dns_refresh_rate,
        dns_failure_refresh_rate,
        dns_jitter,
        dns_lookup_family,
        respect_dns_ttl,
    };
    let discovery = discovery(d, &name, cluster_discovery_type, eds_cluster_config, of_names);
    let original_destination = matches!(discovery, Some(Discovery::OriginalDestination));
    let fields = balancing::Fields {
        lb_policy,
        lb_config,
        common_lb_config,
        load_balancing_policy,
        lb_subset_config,
        original_destination,
    };
    let balanced = match discovery {
        Some(_) => balancing::decode(d, fields),
        None => None,
    };
    let breakers = match circuit_breakers {
        None => Some(CircuitBreakers::default()),
        Some(value) => {
            d.field("circuit_breakers", |d| circuit_breakers::circuit_breakers(d, value))
        }
    };
    let connect_timeout =
        common::period(d, "connect_timeout", connect_timeout, CONNECT_TIMEOUT_DEFAULT);
    let probes = match upstream_connection_options {
        None => Some(Keepalive::Usual),
        Some(value) => d.field("upstream_connection_options", |d| keepalive::of_cluster(d, value)),
    };
    let health_check = health_check(d, health_checks, &name, discovery.as_ref());
    let outlier_detection = match outlier_detection {
        None => Some(None),
        Some(value) => d
            .field("outlier_detection", |d| outlier::outlier_detection(d, value))
            .map(|decoded| Some(Arc::new(decoded))),
    };
    let balancing::Decoded { policy: lb_policy, balancing, table_space } = balanced?;
    let http = protocol(d, typed_extension_protocol_options);
    let tls = match (transport_socket, &http) {
        (None, _) => Some(None),
        (Some(_), None) => None,
        (Some(socket), Some(Http { by_host, .. })) => d.field("transport_socket", |d| {
            upstream_tls::transport_socket(d, socket, by_host.clone())
        }),
    };
    let socket_matches = match &http {
        Some(Http { by_host, .. }) => {
            d.all("transport_socket_matches", transport_socket_matches, |d, value| {
                socket_match(d, value, by_host)
            })
        }
        None => None,
    };
    Some(Cluster {
        name: ClusterName(name.into()),
        discovery: discovery?,
        lb_policy,
        balancing,
        table_space,
        connect_timeout: connect_timeout?,
        upstream_protocol: http.as_ref()?.protocol,
        connection_limits: ConnectionLimits { keepalive: probes?, ..http?.limits },
        circuit_breakers: Arc::new(breakers?),
        tls: tls?,
        monitoring: Monitoring {
            outlier_detection: outlier_detection?,
            health_check: health_check?,
        },
        socket_matches: socket_matches?,
    })
}

fn socket_match(
    d: &mut Decoder,
    value: PbTransportSocketMatch,
    by_host: &HostNames,
) -> Option<TransportSocketMatch> {
    let PbTransportSocketMatch { name, r#match, transport_socket } = value;
    if name.is_empty() {
        d.refuse_field("name", "is missing");
    }
    let tls = d.field("transport_socket", |d| match transport_socket {
        Some(socket) => upstream_tls::transport_socket(d, socket, by_host.clone()),
        None => d.refused("is missing"),
    });
    let labels = r#match.map(json_of).unwrap_or_default();
    Some(TransportSocketMatch { name: name.into(), labels, tls: tls? })
}

/// As Envoy, one at most.
fn health_check(
    d: &mut Decoder,
    checks: Vec<PbHealthCheck>,
    cluster: &str,
    discovery: Option<&Discovery>,
) -> Option<Option<Arc<HealthCheck>>> {
    if checks.len() > 1 {
        return d.field("health_checks", |d| d.refused("more than one is not supported"));
    }
    let Some(check) = checks.into_iter().next() else { return Some(None) };
    d.item("health_checks", 0, |d| {
        let own = match discovery {
            Some(Discovery::Static(assignment)) => Some(&**assignment),
            Some(Discovery::Dns(dns)) => Some(&dns.template),
            Some(Discovery::OriginalDestination) => {
                d.refuse("there is nobody to ask");
                None
            }
            Some(Discovery::Eds { .. }) | None => None,
        };
        let mut own = own.into_iter().flat_map(LoadAssignment::endpoints);
        if own.any(|endpoint| endpoint.tunnel != Tunnel::Direct) {
            d.refuse("has endpoints that are reached by HBONE: checks have no identity");
        }
        health_check::health_check(d, check, cluster).map(|check| Some(Arc::new(check)))
    })
}

fn discovery(
    d: &mut Decoder,
    name: &str,
    kind: Option<ClusterDiscoveryType>,
    eds_cluster_config: Option<EdsClusterConfig>,
    mut of_names: dns::Fields,
) -> Option<Discovery> {
    let kind = match kind {
        None => DiscoveryType::Static,
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            return d.field("cluster_type", |d| {
                common::refuse_extension(d, &custom.name, "");
                None
            });
        }
        Some(ClusterDiscoveryType::Type(number)) => match DiscoveryType::try_from(number) {
            Ok(kind) => kind,
            Err(_) => return d.field("type", |d| d.refused(format!("{number} is unknown"))),
        },
    };
    if kind != DiscoveryType::Eds && eds_cluster_config.is_some() {
        d.refuse_field("eds_cluster_config", format!("is for EDS, not {}", kind.as_str_name()));
    }
    let by_name = matches!(kind, DiscoveryType::StrictDns | DiscoveryType::LogicalDns);
    if by_name {
        let logical = kind == DiscoveryType::LogicalDns;
        return dns::dns(d, name, of_names, logical).map(|dns| Discovery::Dns(Arc::new(dns)));
    }
    of_names.refuse(d);
    let load_assignment = of_names.load_assignment.take();
    if kind != DiscoveryType::Static && load_assignment.is_some() {
        d.refuse_field("load_assignment", format!("is for STATIC, not {}", kind.as_str_name()));
    }
    match kind {
        DiscoveryType::Static => {
            let assignment = match load_assignment {
                Some(value) => d.field("load_assignment", |d| {
                    let assignment = eds::assignment(d, value)?;
                    if assignment.stale_at.is_some() {
                        let reason = "is for EDS: nothing would renew these";
                        d.field("policy", |d| d.refuse_field("endpoint_stale_after", reason));
                    }
                    Some(assignment)
                })?,
                None => LoadAssignment::default(),
            };
            Some(Discovery::Static(Arc::new(assignment)))
        }
        DiscoveryType::Eds => {
            let EdsClusterConfig { eds_config, service_name } =
                eds_cluster_config.unwrap_or_default();
            let service_name = if service_name.is_empty() { name } else { &service_name };
            let kind = ResourceType::Endpoints;
            d.field("eds_cluster_config", |d| {
                config_source::reference(d, "eds_config", eds_config, kind, service_name);
            });
            Some(Discovery::Eds { service_name: service_name.into() })
        }
        DiscoveryType::OriginalDst => Some(Discovery::OriginalDestination),
        DiscoveryType::StrictDns | DiscoveryType::LogicalDns => None,
    }
}

/// What HTTP speaks, what its hosts decide, and how long connections are used.
struct Http {
    protocol: UpstreamProtocol,
    by_host: HostNames,
    limits: ConnectionLimits,
}

impl Default for Http {
    fn default() -> Self {
        let (by_host, limits) = (HostNames::default(), ConnectionLimits::default());
        Self { protocol: UpstreamProtocol::Http1, by_host, limits }
    }
}

fn protocol(d: &mut Decoder, options: HashMap<String, Any>) -> Option<Http> {
    let mut options: Vec<_> = options.into_iter().collect();
    options.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut protocol = Some(Http::default());
    for (key, any) in options {
        let decoded = d.item("typed_extension_protocol_options", &key, |d| {
            if key != HTTP_OPTIONS || !common::is::<HttpProtocolOptions>(&any) {
                common::refuse_extension(d, "", &common::type_name(&any));
                return None;
            }
            common::unpack(d, &any).and_then(|options| http_protocol(d, options))
        });
        protocol = protocol.and(decoded);
    }
    protocol
}

fn http_protocol(d: &mut Decoder, value: HttpProtocolOptions) -> Option<Http> {
    let HttpProtocolOptions {
        common_http_protocol_options,
        upstream_http_protocol_options,
        http_filters,
        header_validation_config,
        outlier_detection,
        request_mirror_policies,
        hash_policy,
        retry_policy,
        upstream_protocol_options,
    } = value;
    unsupported!(
        d;
        header_validation_config, outlier_detection, request_mirror_policies, hash_policy, retry_policy,
    );
    let by_host = match upstream_http_protocol_options {
        None => Some(HostNames::default()),
        Some(options) => {
            d.field("upstream_http_protocol_options", |d| upstream_tls::by_host(d, options))
        }
    };
    let mut pings = Some(None);
    let protocol = match upstream_protocol_options {
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config,
        })) => d.field("explicit_http_config", |d| match protocol_config {
            Some(ProtocolConfig::HttpProtocolOptions(options)) => {
                d.field("http_protocol_options", |d| http_options::http1(d, options));
                Some(UpstreamProtocol::Http1)
            }
            Some(ProtocolConfig::Http2ProtocolOptions(options)) => {
                pings = d.field("http2_protocol_options", |d| {
                    http_options::http2_of_upstream(d, options)
                });
                Some(UpstreamProtocol::Http2)
            }
            Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                d.not_supported("http3_protocol_options")
            }
            None => d.refused("has neither http_protocol_options nor http2_protocol_options"),
        }),
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(config)) => {
            d.field("use_downstream_protocol_config", |d| {
                let UseDownstreamHttpConfig {
                    http_protocol_options,
                    http2_protocol_options,
                    http3_protocol_options,
                } = config;
                unsupported!(d; http3_protocol_options);
                if let Some(options) = http_protocol_options {
                    d.field("http_protocol_options", |d| http_options::http1(d, options));
                }
                if let Some(options) = http2_protocol_options {
                    pings = d.field("http2_protocol_options", |d| {
                        http_options::http2_of_upstream(d, options)
                    });
                }
            });
            Some(UpstreamProtocol::SameAsDownstream)
        }
        Some(UpstreamProtocolOptions::AutoConfig(_)) => d.not_supported("auto_config"),
        None => d.refused("has no upstream protocol: say explicit_http_config"),
    };
    let limits = d.field("common_http_protocol_options", |d| {
        http_options::of_upstream(d, common_http_protocol_options.unwrap_or_default())
    });
    let last = http_filters.len();
    for (i, filter) in http_filters.into_iter().enumerate() {
        d.item("http_filters", i, |d| upstream_filter(d, filter, i + 1 == last));
    }
    let limits = ConnectionLimits { pings: pings?, ..limits? };
    Some(Http { protocol: protocol?, by_host: by_host?, limits })
}

/// Only the codec, which is there anyway.
fn upstream_filter(d: &mut Decoder, value: HttpFilter, last: bool) {
    let HttpFilter { name, is_optional: _, disabled, config_type } = value;
    d.unsupported("disabled", &disabled);
    match config_type {
        Some(ConfigType::TypedConfig(any)) if common::is::<UpstreamCodec>(&any) => {
            if !last {
                d.refuse("has to be the last one");
            }
        }
        Some(ConfigType::TypedConfig(any)) => {
            common::refuse_extension(d, &name, &common::type_name(&any));
        }
        Some(ConfigType::ConfigDiscovery(_)) | None => common::refuse_extension(d, &name, ""),
    }
}
