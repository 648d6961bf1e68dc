//! Listeners, filter chains and network filters.
//!
//! Spec: `envoy/config/listener/v3/{listener,listener_components}.proto`,
//! `envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.proto`.

mod gateway;
mod listener_filters;
mod network;

use std::{sync::Arc, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::TrafficDirection,
            listener::v3::{
                Filter, FilterChain as PbFilterChain, FilterChainMatch as PbFilterChainMatch,
                Listener as PbListener, filter,
            },
        },
        extensions::filters::network::{
            connection_limit::v3::ConnectionLimit as PbConnectionLimit,
            http_connection_manager::v3::HttpConnectionManager,
            local_ratelimit::v3::LocalRateLimit as PbLocalRateLimit,
            rbac::v3::Rbac as PbNetworkRbac,
            sni_cluster::v3::SniCluster,
            tcp_proxy::v3::{
                TcpProxy as PbTcpProxy,
                tcp_proxy::{ClusterSpecifier, weighted_cluster::ClusterWeight},
            },
        },
    },
    google::protobuf::Any,
};

use super::{
    access_log, common, downstream_tls, hcm, rds,
    reject::{Decoder, unsupported},
};
use crate::model::{
    http_options::HttpOptions,
    listener::{
        Direction, FilterChain, FilterChainMatch, GatewayTls, Listener, NetworkFilter, TcpProxy,
        TerminalFilter, TransportProtocol,
    },
};

/// What filters have to know of their listener.
#[derive(Debug, Clone, Copy)]
struct OfListener {
    /// `None` where it was refused.
    direction: Option<Direction>,
    buffer_max_bytes: u64,
}

const TCP_IDLE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(3600);

#[expect(deprecated, reason = "a deprecated field that is set is refused too")]
pub(super) fn listener(d: &mut Decoder, value: PbListener) -> Option<Listener> {
    let PbListener {
        name,
        address,
        additional_addresses,
        // A name in statistics.
        stat_prefix: _,
        stats_matcher,
        filter_chains,
        fcds_config,
        filter_chain_matcher,
        use_original_dst,
        default_filter_chain,
        per_connection_buffer_limit_bytes,
        per_connection_buffer_high_watermark_timeout,
        // Notes of the control plane: nothing that reads them is supported.
        metadata: _,
        deprecated_v1,
        drain_type,
        listener_filters,
        listener_filters_timeout,
        continue_on_listener_filters_timeout,
        transparent,
        freebind,
        socket_options,
        tcp_fast_open_queue_length,
        traffic_direction,
        udp_listener_config,
        api_listener,
        connection_balance_config,
        reuse_port,
        enable_reuse_port,
        access_log,
        tcp_backlog_size,
        max_connections_to_accept_per_socket_event,
        bind_to_port,
        enable_mptcp,
        ignore_global_conn_limit,
        bypass_overload_manager,
        tcp_keepalive,
        listener_specifier,
    } = value;
    unsupported!(
        d;
        additional_addresses, stats_matcher, fcds_config, filter_chain_matcher,
        per_connection_buffer_high_watermark_timeout, deprecated_v1, drain_type, transparent,
        socket_options, tcp_fast_open_queue_length, udp_listener_config, api_listener,
        connection_balance_config, reuse_port, enable_reuse_port,
        max_connections_to_accept_per_socket_event, enable_mptcp, ignore_global_conn_limit,
        bypass_overload_manager, tcp_keepalive,
    );
    let access_logs = access_log::of_connections(d, access_log);
    if listener_specifier.is_some() {
        d.refuse_field("internal_listener", "is not supported");
    }
    if name.is_empty() {
        d.refuse_field("name", "is missing");
    }
    let direction = match TrafficDirection::try_from(traffic_direction) {
        Ok(TrafficDirection::Inbound) => Some(Direction::Inbound),
        Ok(TrafficDirection::Outbound) => Some(Direction::Outbound),
        Ok(TrafficDirection::Unspecified) => Some(Direction::Gateway),
        Err(_) => d.field("traffic_direction", |d| d.refused("is unknown")),
    };
    let bind_to_port = bind_to_port.map(|bind| bind.value);
    match (direction, bind_to_port) {
        (Some(Direction::Gateway), Some(false)) => d.refuse_field(
            "bind_to_port",
            "nothing would ever reach it: a listener of captured traffic says its \
             traffic_direction",
        ),
        // Listeners of captured traffic bind no socket, which `false` says too.
        (Some(Direction::Inbound | Direction::Outbound), Some(true)) => d.refuse_field(
            "bind_to_port",
            "is not supported: traffic is captured, not bound to; a gateway listener has no \
             traffic_direction",
        ),
        _ => {}
    }
    let use_original_dst = use_original_dst.is_some_and(|used| used.value);
    if use_original_dst && direction == Some(Direction::Gateway) {
        d.refuse_field(
            "use_original_dst",
            "is not for gateways: nothing redirects to their sockets",
        );
    }
    let buffer_max_bytes = match per_connection_buffer_limit_bytes {
        None => HttpOptions::BUFFER_MAX_BYTES,
        Some(limit) if limit.value == 0 => {
            d.refuse_field(
                "per_connection_buffer_limit_bytes",
                "0, for no limit, is not supported",
            );
            0
        }
        Some(limit) => limit.value.into(),
    };
    let of = OfListener { direction, buffer_max_bytes };
    let socket = gateway::Fields { tcp_backlog_size, freebind };
    let gateway = match direction {
        Some(Direction::Gateway) => Some(gateway::socket(socket)),
        _ => {
            gateway::refuse(d, socket);
            None
        }
    };
    let first = listener_filters::Fields {
        listener_filters,
        listener_filters_timeout,
        continue_on_listener_filters_timeout,
    };
    let listener_filters =
        direction.and_then(|direction| listener_filters::listener_filters(d, first, direction));
    let address = common::socket_address(d, "address", address);

    if filter_chains.is_empty() && default_filter_chain.is_none() {
        d.refuse_field("filter_chains", "is empty, and there is no default_filter_chain");
    }
    let mut seen: Vec<FilterChainMatch> = Vec::new();
    let filter_chains = d.all("filter_chains", filter_chains, |d, value| {
        let chain = filter_chain(d, value, of)?;
        if seen.contains(&chain.matches) {
            return d.field("filter_chain_match", |d| d.refused("is the same as an earlier one's"));
        }
        if let Some(i) = seen.iter().position(|earlier| earlier.overlaps(&chain.matches)) {
            let reason = format!("takes some of the connections that filter_chains[{i}] takes");
            return d.field("filter_chain_match", |d| d.refused(reason));
        }
        seen.push(chain.matches.clone());
        Some(Arc::new(chain))
    });
    let default_filter_chain = match default_filter_chain {
        None => Some(None),
        Some(value) => d.field("default_filter_chain", |d| {
            if value.filter_chain_match.is_some() {
                d.refuse_field("filter_chain_match", "has no effect on the default chain");
            }
            filter_chain(d, value, of).map(|chain| Some(Arc::new(chain)))
        }),
    };
    Some(Listener {
        name: name.into(),
        direction: direction?,
        address: address?,
        use_original_dst,
        gateway,
        listener_filters: listener_filters?,
        filter_chains: filter_chains?,
        default_filter_chain: default_filter_chain?,
        access_logs: access_logs?,
    })
}

#[expect(deprecated, reason = "a deprecated field that is set is refused too")]
fn filter_chain(d: &mut Decoder, value: PbFilterChain, of: OfListener) -> Option<FilterChain> {
    let PbFilterChain {
        filter_chain_match,
        filters,
        use_proxy_proto,
        // Notes of the control plane: nothing that reads them is supported.
        metadata: _,
        transport_socket,
        transport_socket_connect_timeout,
        name,
    } = value;
    unsupported!(d; use_proxy_proto);
    let is_gateway = of.direction == Some(Direction::Gateway);
    if !is_gateway {
        unsupported!(d; transport_socket_connect_timeout);
    }
    let tls = match transport_socket {
        Some(socket) if is_gateway => {
            d.field("transport_socket", |d| downstream_tls::transport_socket(d, socket))
        }
        Some(socket) => {
            d.field("transport_socket", |d| {
                common::refuse_transport_socket(
                    d,
                    &socket,
                    "mTLS of captured traffic is the agent's own, with the workload's identity",
                );
            });
            None
        }
        None => Some(None),
    };
    let timeout = common::timeout(
        d,
        "transport_socket_connect_timeout",
        transport_socket_connect_timeout,
        None,
    );
    let matches = match filter_chain_match {
        Some(value) => d.field("filter_chain_match", |d| chain_match(d, value, of.direction)),
        None => Some(FilterChainMatch::default()),
    };
    let chain = filters_of(d, filters, of);
    let (filters, terminal) = chain?;
    let timeout = timeout?;
    let tls = tls?.map(|settings| GatewayTls { settings, timeout });
    Some(FilterChain { name: name.into(), matches: matches?, tls, filters, terminal })
}

fn chain_match(
    d: &mut Decoder,
    value: PbFilterChainMatch,
    direction: Option<Direction>,
) -> Option<FilterChainMatch> {
    let PbFilterChainMatch {
        destination_port,
        prefix_ranges,
        address_suffix,
        suffix_len,
        direct_source_prefix_ranges,
        source_type,
        source_prefix_ranges,
        source_ports,
        server_names,
        transport_protocol,
        application_protocols,
    } = value;
    unsupported!(d; address_suffix, suffix_len);
    if direction == Some(Direction::Inbound) {
        unsupported!(
            d; direct_source_prefix_ranges, source_type, server_names, application_protocols,
        );
    }
    let destination_port = match destination_port {
        None => Some(None),
        Some(port) => d.field("destination_port", |d| common::port(d, port.value)).map(Some),
    };
    let prefix_ranges = d.all("prefix_ranges", prefix_ranges, common::cidr);
    let source_prefix_ranges = d.all("source_prefix_ranges", source_prefix_ranges, common::cidr);
    let source_ports = d.all("source_ports", source_ports, common::port);
    let transport_protocol = d.field("transport_protocol", |d| match transport_protocol.as_str() {
        "" => Some(None),
        "tls" => Some(Some(TransportProtocol::Tls)),
        "raw_buffer" => Some(Some(TransportProtocol::RawBuffer)),
        other => d.refused(format!("`{other}` is not supported, only tls and raw_buffer")),
    });
    let direct_source_prefix_ranges =
        d.all("direct_source_prefix_ranges", direct_source_prefix_ranges, common::cidr);
    let source_type = d.field("source_type", |d| gateway::source_type(d, source_type));
    let server_names = d.all("server_names", server_names, gateway::server_name);
    Some(FilterChainMatch {
        server_names: server_names?,
        application_protocols: application_protocols.into_iter().map(Into::into).collect(),
        direct_source_prefix_ranges: direct_source_prefix_ranges?,
        source_type: source_type?,
        destination_port: destination_port?,
        prefix_ranges: prefix_ranges?,
        source_prefix_ranges: source_prefix_ranges?,
        source_ports: source_ports?,
        transport_protocol: transport_protocol?,
    })
}

/// One decoded network filter.
enum Decoded {
    Filter(NetworkFilter),
    /// An RBAC filter without any rules: Envoy enforces nothing, and so it is left out.
    Nothing,
    Terminal(TerminalFilter),
}

fn filters_of(
    d: &mut Decoder,
    values: Vec<Filter>,
    of: OfListener,
) -> Option<(Vec<NetworkFilter>, TerminalFilter)> {
    let count = values.len();
    if count == 0 {
        return d.field("filters", |d| d.refused("is empty"));
    }
    let mut at = 0;
    let decoded = d.all("filters", values, |d, value| {
        at += 1;
        let decoded = network_filter(d, value, of)?;
        match (&decoded, at == count) {
            (Decoded::Terminal(_), false) => d.refused("must be the last filter of its chain"),
            (Decoded::Filter(_) | Decoded::Nothing, true) => d.refused(
                "can't be the last filter of its chain: that is tcp_proxy's or \
                 http_connection_manager's place",
            ),
            _ => Some(decoded),
        }
    })?;
    let mut filters = Vec::new();
    for filter in decoded {
        match filter {
            Decoded::Filter(filter) => filters.push(filter),
            Decoded::Nothing => {}
            Decoded::Terminal(terminal) => return Some((filters, terminal)),
        }
    }
    None
}

fn network_filter(d: &mut Decoder, value: Filter, of: OfListener) -> Option<Decoded> {
    let Filter { name, config_type } = value;
    let any: Any = match config_type {
        Some(filter::ConfigType::TypedConfig(any)) => any,
        Some(filter::ConfigType::ConfigDiscovery(_)) => {
            return d.not_supported("config_discovery");
        }
        None => {
            common::refuse_extension(d, &name, "");
            return None;
        }
    };
    if common::is::<PbNetworkRbac>(&any) {
        let value = common::unpack(d, &any)?;
        let rbac = network::rbac(d, value)?;
        Some(rbac.map_or(Decoded::Nothing, Decoded::Filter))
    } else if common::is::<PbConnectionLimit>(&any) {
        let value = common::unpack(d, &any)?;
        network::connection_limit(d, value).map(Decoded::Filter)
    } else if common::is::<PbLocalRateLimit>(&any) {
        let value = common::unpack(d, &any)?;
        network::local_rate_limit(d, value).map(Decoded::Filter)
    } else if common::is::<SniCluster>(&any) {
        let SniCluster {} = common::unpack(d, &any)?;
        if of.direction == Some(Direction::Inbound) {
            return d.refused("nobody looks for the name where mTLS ends");
        }
        Some(Decoded::Filter(NetworkFilter::SniCluster))
    } else if common::is::<PbTcpProxy>(&any) {
        let value = common::unpack(d, &any)?;
        let proxy = tcp_proxy(d, value)?;
        Some(Decoded::Terminal(TerminalFilter::TcpProxy(Arc::new(proxy))))
    } else if common::is::<HttpConnectionManager>(&any) {
        let value = common::unpack(d, &any)?;
        let manager = hcm::connection_manager(d, value, of.buffer_max_bytes)?;
        Some(Decoded::Terminal(TerminalFilter::Http(Arc::new(manager))))
    } else {
        common::refuse_extension(d, &name, &common::type_name(&any));
        None
    }
}

#[expect(deprecated, reason = "a deprecated field that is set is refused too")]
fn tcp_proxy(d: &mut Decoder, value: PbTcpProxy) -> Option<TcpProxy> {
    let PbTcpProxy {
        stat_prefix,
        on_demand,
        metadata_match,
        idle_timeout,
        downstream_idle_timeout,
        upstream_idle_timeout,
        access_log,
        max_connect_attempts,
        backoff_options,
        hash_policy,
        tunneling_config,
        max_downstream_connection_duration,
        max_downstream_connection_duration_jitter_percentage,
        access_log_flush_interval,
        flush_access_log_on_connected,
        access_log_options,
        proxy_protocol_tlvs,
        proxy_protocol_tlv_merge_policy,
        upstream_connect_mode,
        max_early_data_bytes,
        check_drain_close,
        cluster_specifier,
    } = value;
    unsupported!(
        d;
        on_demand, metadata_match, downstream_idle_timeout, upstream_idle_timeout,
        max_connect_attempts, backoff_options, hash_policy, tunneling_config,
        max_downstream_connection_duration,
        max_downstream_connection_duration_jitter_percentage, access_log_flush_interval,
        flush_access_log_on_connected, access_log_options, proxy_protocol_tlvs,
        proxy_protocol_tlv_merge_policy, upstream_connect_mode, max_early_data_bytes,
        check_drain_close,
    );
    let access_logs = access_log::of_connections(d, access_log);
    let clusters = match cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => d.field("cluster", |d| rds::one_cluster(d, name)),
        Some(ClusterSpecifier::WeightedClusters(value)) => d.field("weighted_clusters", |d| {
            let clusters = d.all("clusters", value.clusters, |d, value| {
                let ClusterWeight { name, weight, metadata_match } = value;
                unsupported!(d; metadata_match);
                rds::named_weight(d, name, weight)
            })?;
            rds::check_weights(d, &clusters).map(|_| clusters)
        }),
        None => d.refused("names no cluster: cluster or weighted_clusters"),
    };
    let idle_timeout =
        common::timeout(d, "idle_timeout", idle_timeout, Some(TCP_IDLE_TIMEOUT_DEFAULT));
    Some(TcpProxy {
        stat_prefix,
        clusters: clusters?,
        idle_timeout: idle_timeout?,
        access_logs: access_logs?,
    })
}
