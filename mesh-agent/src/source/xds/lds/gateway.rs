//! What only gateway listeners have: a socket, listener filters, names to match.
//!
//! Spec: `envoy/extensions/filters/listener/{tls_inspector,proxy_protocol}/v3/*.proto`.

use std::{sync::Arc, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::proxy_protocol_config::Version,
            listener::v3::{
                ListenerFilter, filter_chain_match::ConnectionSourceType, listener_filter,
            },
        },
        extensions::filters::listener::{
            proxy_protocol::v3::ProxyProtocol as PbProxyProtocol,
            tls_inspector::v3::TlsInspector as PbTlsInspector,
        },
    },
    google::protobuf,
};

use crate::{
    model::{
        gateway::{Gateway, ProxyProtocol, TlsInspector},
        listener::{FilterChainMatch, SourceType, TransportProtocol},
    },
    source::xds::{
        common,
        reject::{Decoder, unsupported},
    },
};

/// Envoy's.
const FILTERS_TIMEOUT_DEFAULT: Duration = Duration::from_secs(15);
const BACKLOG_DEFAULT: u32 = 4096;
const CLIENT_HELLO_MAX_BYTES: u32 = 16 << 10;
const CLIENT_HELLO_MIN_BYTES: u32 = 256;

/// The fields of a listener that are read here.
pub(super) struct Fields {
    pub(super) listener_filters: Vec<ListenerFilter>,
    pub(super) listener_filters_timeout: Option<protobuf::Duration>,
    pub(super) tcp_backlog_size: Option<protobuf::UInt32Value>,
    pub(super) freebind: Option<protobuf::BoolValue>,
}

/// Of a listener that is no gateway's.
pub(super) fn refuse(d: &mut Decoder, fields: Fields) -> Option<Option<Gateway>> {
    let Fields { listener_filters, listener_filters_timeout, tcp_backlog_size, freebind } = fields;
    unsupported!(d; listener_filters_timeout, tcp_backlog_size, freebind);
    for (i, filter) in listener_filters.iter().enumerate() {
        d.item("listener_filters", i, |d| common::refuse_extension(d, &filter.name, ""));
    }
    Some(None)
}

pub(super) fn socket(d: &mut Decoder, fields: Fields) -> Option<Gateway> {
    let Fields { listener_filters, listener_filters_timeout, tcp_backlog_size, freebind } = fields;
    let filters_timeout = common::timeout(
        d,
        "listener_filters_timeout",
        listener_filters_timeout,
        Some(FILTERS_TIMEOUT_DEFAULT),
    );
    let mut gateway = Gateway {
        backlog: tcp_backlog_size.map_or(BACKLOG_DEFAULT, |size| size.value),
        freebind: freebind.is_some_and(|freebind| freebind.value),
        proxy_protocol: None,
        tls_inspector: None,
        filters_timeout: filters_timeout?,
    };
    d.all("listener_filters", listener_filters, |d, value| {
        listener_filter(d, value, &mut gateway)
    })?;
    Some(gateway)
}

fn listener_filter(d: &mut Decoder, value: ListenerFilter, gateway: &mut Gateway) -> Option<()> {
    let ListenerFilter { name, filter_disabled, config_type } = value;
    unsupported!(d; filter_disabled);
    let any = match config_type {
        Some(listener_filter::ConfigType::TypedConfig(any)) => any,
        Some(listener_filter::ConfigType::ConfigDiscovery(_)) => {
            return d.not_supported("config_discovery");
        }
        None => {
            common::refuse_extension(d, &name, "");
            return None;
        }
    };
    if common::is::<PbTlsInspector>(&any) {
        let inspector = common::unpack(d, &any)?;
        let inspector = d.field("typed_config", |d| tls_inspector(d, inspector))?;
        if gateway.tls_inspector.replace(inspector).is_some() {
            return d.refused("is there twice");
        }
    } else if common::is::<PbProxyProtocol>(&any) {
        let protocol = common::unpack(d, &any)?;
        let protocol = d.field("typed_config", |d| proxy_protocol(d, protocol))?;
        if gateway.tls_inspector.is_some() {
            return d.refused("must come before the tls_inspector, as its header does");
        }
        if gateway.proxy_protocol.replace(protocol).is_some() {
            return d.refused("is there twice");
        }
    } else {
        common::refuse_extension(d, &name, &common::type_name(&any));
        return None;
    }
    Some(())
}

fn tls_inspector(d: &mut Decoder, value: PbTlsInspector) -> Option<TlsInspector> {
    let PbTlsInspector {
        enable_ja3_fingerprinting,
        enable_ja4_fingerprinting,
        // How much is read at a time.
        initial_read_buffer_size: _,
        close_connection_on_client_hello_parsing_errors,
        max_client_hello_size,
    } = value;
    for (field, on) in [
        ("enable_ja3_fingerprinting", enable_ja3_fingerprinting),
        ("enable_ja4_fingerprinting", enable_ja4_fingerprinting),
    ] {
        if on.is_some_and(|on| on.value) {
            d.refuse_field(field, "is not supported");
        }
    }
    let size = max_client_hello_size.map_or(CLIENT_HELLO_MAX_BYTES, |size| size.value);
    if !(CLIENT_HELLO_MIN_BYTES..=CLIENT_HELLO_MAX_BYTES).contains(&size) {
        return d.field("max_client_hello_size", |d| {
            d.refused(format!(
                "{size} is not within {CLIENT_HELLO_MIN_BYTES} to {CLIENT_HELLO_MAX_BYTES}"
            ))
        });
    }
    Some(TlsInspector {
        max_client_hello_bytes: size as usize,
        close_on_errors: close_connection_on_client_hello_parsing_errors,
    })
}

fn proxy_protocol(d: &mut Decoder, value: PbProxyProtocol) -> Option<ProxyProtocol> {
    let PbProxyProtocol {
        rules,
        allow_requests_without_proxy_protocol,
        pass_through_tlvs,
        disallowed_versions,
        // A name in statistics.
        stat_prefix: _,
        tlv_location,
    } = value;
    unsupported!(d; rules, pass_through_tlvs, tlv_location);
    let allows = |version: Version| !disallowed_versions.contains(&(version as i32));
    let (v1, v2) = (allows(Version::V1), allows(Version::V2));
    if !v1 && !v2 && !allow_requests_without_proxy_protocol {
        return d.field("disallowed_versions", |d| d.refused("leaves nothing to speak"));
    }
    Some(ProxyProtocol { optional: allow_requests_without_proxy_protocol, v1, v2 })
}

/// As Envoy, where chains ask for what only a tls_inspector tells there is one.
pub(super) fn inspect(gateway: &mut Gateway, chains: &[FilterChainMatch]) {
    let asks = |chain: &FilterChainMatch| match chain.transport_protocol {
        Some(transport) => transport == TransportProtocol::Tls,
        None => !chain.server_names.is_empty() || !chain.application_protocols.is_empty(),
    };
    if gateway.tls_inspector.is_none() && chains.iter().any(asks) {
        gateway.tls_inspector = Some(TlsInspector {
            max_client_hello_bytes: CLIENT_HELLO_MAX_BYTES as usize,
            close_on_errors: false,
        });
    }
}

pub(super) fn source_type(d: &mut Decoder, value: i32) -> Option<SourceType> {
    match ConnectionSourceType::try_from(value) {
        Ok(ConnectionSourceType::Any) => Some(SourceType::Any),
        Ok(ConnectionSourceType::SameIpOrLoopback) => Some(SourceType::SameIpOrLoopback),
        Ok(ConnectionSourceType::External) => Some(SourceType::External),
        Err(_) => d.refused(format!("{value} is unknown")),
    }
}

pub(super) fn server_name(d: &mut Decoder, name: String) -> Option<Arc<str>> {
    let rest = name.strip_prefix("*.").unwrap_or(&name);
    if rest.is_empty() || rest.contains('*') {
        return d.refused(format!("`{name}` is neither a name nor a name after `*.`"));
    }
    Some(name.to_ascii_lowercase().into())
}
