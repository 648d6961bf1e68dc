//! The clusters of management servers.
//!
//! Spec: `envoy/config/cluster/v3/cluster.proto`. Servers are tried in the order of their
//! endpoints, and each connection resolves names anew.

use std::time::Duration;

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{
                Cluster as PbCluster, UpstreamConnectionOptions,
                cluster::{ClusterDiscoveryType, DiscoveryType, DnsLookupFamily, LbPolicy},
            },
            core::v3::{
                Address, Http2ProtocolOptions, KeepaliveSettings, Pipe, SocketAddress,
                TcpKeepalive, address,
            },
            endpoint::v3::{
                ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
                lb_endpoint::HostIdentifier,
            },
        },
        extensions::upstreams::http::v3::{
            HttpProtocolOptions,
            http_protocol_options::{
                ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
            },
        },
    },
    google::protobuf::{self, Any, UInt32Value},
};

use super::{
    super::{
        address::{ConnectionOptions, Family, Server, ServerAddress, is_host},
        common, config_source, http_options,
        reject::{Decoder, unsupported},
    },
    tls,
};

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Whether it is told to: gRPC needs it.
#[expect(deprecated, reason = "the old way to say it, which people still use")]
pub(super) fn speaks_http2(value: &PbCluster) -> bool {
    value.http2_protocol_options.is_some()
        || value.typed_extension_protocol_options.contains_key(HTTP_OPTIONS)
}

/// Its servers, in order.
#[expect(deprecated, reason = "a deprecated field that is set is refused too")]
pub(super) fn cluster(d: &mut Decoder, value: PbCluster) -> Option<Vec<Server>> {
    let PbCluster {
        transport_socket_matches,
        transport_socket_matcher,
        name: _,
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
        // Names are resolved anew for each connection.
        dns_refresh_rate: _,
        dns_jitter,
        dns_failure_refresh_rate,
        respect_dns_ttl: _,
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
        // Somebody's notes.
        metadata: _,
        protocol_selection,
        upstream_connection_options,
        close_connections_on_host_health_failure,
        ignore_health_on_host_removal,
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
        transport_socket_matches, transport_socket_matcher, stats_matcher, eds_cluster_config,
        per_connection_buffer_high_watermark_timeout,
        health_checks, max_requests_per_connection, circuit_breakers,
        upstream_http_protocol_options, common_http_protocol_options, http_protocol_options,
        dns_jitter, dns_failure_refresh_rate, dns_resolvers, use_tcp_for_dns_lookups,
        dns_resolution_config, typed_dns_resolver_config, wait_for_warm_on_init,
        outlier_detection, cleanup_interval, upstream_bind_config, lb_subset_config,
        common_lb_config, protocol_selection, close_connections_on_host_health_failure,
        ignore_health_on_host_removal, filters, load_balancing_policy, lrs_server,
        lrs_report_endpoint_metrics, track_timeout_budgets, upstream_config,
        track_cluster_stats, preconnect_policy, connection_pool_per_downstream_connection,
        queuing_policies, lb_config,
    );
    discovery(d, cluster_discovery_type);
    if lb_policy != LbPolicy::RoundRobin as i32 {
        d.refuse_field("lb_policy", "is not supported: servers are tried in order");
    }
    let mut connection =
        ConnectionOptions { family: family(dns_lookup_family), ..Default::default() };
    if let Some(value) = connect_timeout {
        positive(d, "connect_timeout", value, &mut connection.connect_timeout);
    }
    if let Some(options) = http2_protocol_options {
        d.field("http2_protocol_options", |d| http2(d, options, &mut connection));
    }
    extensions(d, typed_extension_protocol_options, &mut connection);
    if let Some(options) = upstream_connection_options {
        d.field("upstream_connection_options", |d| upstream(d, options, &mut connection));
    }
    let tls = match transport_socket {
        None => Some(None),
        Some(socket) => d.field("transport_socket", |d| tls::transport_socket(d, socket)),
    };
    let endpoints = d.field("load_assignment", |d| match load_assignment {
        Some(assignment) => endpoints(d, assignment),
        None => d.refused("is missing"),
    });
    let (endpoints, tls) = (endpoints?, tls?);
    let servers = endpoints.into_iter().map(|Place { address, hostname }| Server {
        address: match address {
            ServerAddress::Plain { host, port } if tls.is_some() => {
                ServerAddress::Tls { host, port }
            }
            address => address,
        },
        tls: tls.clone().map(|mut tls| {
            if tls.server_name.is_none() && !hostname.is_empty() {
                tls.server_name = Some(hostname);
            }
            tls
        }),
        connection: connection.clone(),
    });
    Some(servers.collect())
}

fn discovery(d: &mut Decoder, value: Option<ClusterDiscoveryType>) {
    let refused = match value {
        None => return,
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            return d.field("cluster_type", |d| common::refuse_extension(d, &custom.name, ""));
        }
        Some(ClusterDiscoveryType::Type(number)) => match DiscoveryType::try_from(number) {
            Ok(DiscoveryType::Static | DiscoveryType::StrictDns | DiscoveryType::LogicalDns) => {
                return;
            }
            Ok(kind) => kind.as_str_name().to_owned(),
            Err(_) => number.to_string(),
        },
    };
    d.refuse_field("type", format!("{refused} is not supported for management servers"));
}

fn family(value: i32) -> Family {
    match DnsLookupFamily::try_from(value) {
        Ok(DnsLookupFamily::V4Only) => Family::V4,
        Ok(DnsLookupFamily::V6Only) => Family::V6,
        Ok(DnsLookupFamily::V4Preferred) => Family::V4Preferred,
        Ok(DnsLookupFamily::Auto) => Family::V6Preferred,
        Ok(DnsLookupFamily::All) | Err(_) => Family::Any,
    }
}

fn positive(d: &mut Decoder, field: &str, value: protobuf::Duration, into: &mut Duration) {
    match common::duration(d, field, value) {
        Some(value) if !value.is_zero() => *into = value,
        Some(_) => d.refuse_field(field, "must be more than zero"),
        None => {}
    }
}

fn extensions(
    d: &mut Decoder,
    mut value: std::collections::HashMap<String, Any>,
    connection: &mut ConnectionOptions,
) {
    let options = value.remove(HTTP_OPTIONS);
    d.unsupported_entries("typed_extension_protocol_options", &value);
    let Some(any) = options else { return };
    d.item("typed_extension_protocol_options", HTTP_OPTIONS, |d| {
        if !common::is::<HttpProtocolOptions>(&any) {
            return d.refuse(format!("{} is not supported", common::type_name(&any)));
        }
        let Some(options) = common::unpack::<HttpProtocolOptions>(d, &any) else { return };
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
        } = options;
        unsupported!(
            d;
            common_http_protocol_options, upstream_http_protocol_options, http_filters,
            header_validation_config, outlier_detection, request_mirror_policies, hash_policy,
            retry_policy,
        );
        match upstream_protocol_options {
            Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
                protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(options)),
            })) => d.field("explicit_http_config", |d| {
                d.field("http2_protocol_options", |d| http2(d, options, connection));
            }),
            _ => d.refuse("must be explicit_http_config.http2_protocol_options: gRPC is HTTP/2"),
        }
    });
}

fn http2(d: &mut Decoder, mut value: Http2ProtocolOptions, connection: &mut ConnectionOptions) {
    let keepalive = value.connection_keepalive.take();
    http_options::http2(d, value);
    let Some(keepalive) = keepalive else { return };
    d.field("connection_keepalive", |d| {
        let KeepaliveSettings { interval, timeout, interval_jitter, connection_idle_interval } =
            keepalive;
        // A connection to a management server is never idle for long.
        unsupported!(d; connection_idle_interval);
        // Each agent connects at its own time.
        let _ = interval_jitter;
        let mut pings = (Duration::ZERO, Duration::ZERO);
        match interval {
            Some(value) => positive(d, "interval", value, &mut pings.0),
            None => d.refuse_field("interval", "is missing"),
        }
        match timeout {
            Some(value) => positive(d, "timeout", value, &mut pings.1),
            None => d.refuse_field("timeout", "is missing"),
        }
        connection.pings = Some(pings);
    });
}

fn upstream(d: &mut Decoder, value: UpstreamConnectionOptions, connection: &mut ConnectionOptions) {
    let UpstreamConnectionOptions {
        tcp_keepalive,
        set_local_interface_name_on_upstream_connections,
        happy_eyeballs_config,
    } = value;
    unsupported!(d; set_local_interface_name_on_upstream_connections, happy_eyeballs_config);
    let Some(keepalive) = tcp_keepalive else { return };
    let TcpKeepalive { keepalive_probes, keepalive_time, keepalive_interval } = keepalive;
    d.field("tcp_keepalive", |d| {
        let mut given = |field, value: Option<UInt32Value>| match value {
            Some(UInt32Value { value: 0 }) => {
                d.refuse_field(field, "must be at least 1");
                None
            }
            value => value.map(|value| value.value),
        };
        let options = &mut connection.tcp_keepalive;
        options.probes = given("keepalive_probes", keepalive_probes).unwrap_or(options.probes);
        if let Some(time) = given("keepalive_time", keepalive_time) {
            options.time = Duration::from_secs(time.into());
        }
        if let Some(interval) = given("keepalive_interval", keepalive_interval) {
            options.interval = Duration::from_secs(interval.into());
        }
    });
}

struct Place {
    /// Never `Tls`.
    address: ServerAddress,
    hostname: String,
}

fn endpoints(d: &mut Decoder, value: ClusterLoadAssignment) -> Option<Vec<Place>> {
    let ClusterLoadAssignment { cluster_name: _, endpoints, named_endpoints, policy } = value;
    unsupported!(d; named_endpoints, policy);
    let mut localities = d.all("endpoints", endpoints, |d, value| {
        let LocalityLbEndpoints {
            // Somebody's notes: order is by priority alone.
            locality: _,
            metadata: _,
            lb_endpoints,
            load_balancing_weight,
            priority,
            proximity,
            lb_config,
        } = value;
        unsupported!(d; load_balancing_weight, proximity, lb_config);
        Some((priority, d.all("lb_endpoints", lb_endpoints, endpoint)?))
    })?;
    localities.sort_by_key(|(priority, _)| *priority);
    let places: Vec<_> = localities.into_iter().flat_map(|(_, places)| places).collect();
    if places.is_empty() {
        return d.refused("has no endpoint");
    }
    Some(places)
}

fn endpoint(d: &mut Decoder, value: LbEndpoint) -> Option<Place> {
    let LbEndpoint { health_status, metadata: _, load_balancing_weight, host_identifier } = value;
    unsupported!(d; health_status, load_balancing_weight);
    match host_identifier {
        Some(HostIdentifier::Endpoint(endpoint)) => d.field("endpoint", |d| {
            let Endpoint {
                address,
                health_check_config,
                hostname,
                additional_addresses,
                // A name in statistics.
                observability_name: _,
            } = endpoint;
            unsupported!(d; health_check_config, additional_addresses);
            let address = d.field("address", |d| self::address(d, address))?;
            Some(Place { address, hostname })
        }),
        Some(HostIdentifier::EndpointName(_)) => d.not_supported("endpoint_name"),
        None => d.field("endpoint", |d| d.refused("is missing")),
    }
}

fn address(d: &mut Decoder, value: Option<Address>) -> Option<ServerAddress> {
    match value.and_then(|address| address.address) {
        Some(address::Address::SocketAddress(socket)) => {
            d.field("socket_address", |d| socket_address(d, socket))
        }
        Some(address::Address::Pipe(Pipe { path, mode })) => d.field("pipe", |d| {
            unsupported!(d; mode);
            config_source::absolute(d, "path", &path).map(ServerAddress::Unix)
        }),
        Some(address::Address::EnvoyInternalAddress(_)) => {
            d.not_supported("envoy_internal_address")
        }
        None => d.refused("is missing"),
    }
}

fn socket_address(d: &mut Decoder, value: SocketAddress) -> Option<ServerAddress> {
    let (host, port) = common::host_and_port(d, value, |d, address| match is_host(&address) {
        true => Some(address),
        false => d.refused(format!("`{address}` is neither a host's name nor an address")),
    })?;
    Some(ServerAddress::Plain { host, port })
}
