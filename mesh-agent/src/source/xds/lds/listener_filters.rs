//! Listener filters, as far as listeners of each direction may have them.
//!
//! Spec: `envoy/extensions/filters/listener/{tls_inspector,http_inspector,proxy_protocol,
//! original_dst}/v3/*.proto`.

use std::{mem, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::proxy_protocol_config::Version,
            listener::v3::{ListenerFilter, listener_filter},
        },
        extensions::filters::listener::{
            http_inspector::v3::HttpInspector, original_dst::v3::OriginalDst,
            proxy_protocol::v3::ProxyProtocol as PbProxyProtocol,
            tls_inspector::v3::TlsInspector as PbTlsInspector,
        },
    },
    google::protobuf,
};

use crate::{
    model::{
        listener::Direction,
        listener_filter::{ListenerFilters, ProxyProtocol, TlsInspector},
    },
    source::xds::{
        common,
        reject::{Decoder, unsupported},
    },
};

/// Envoy's.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(15);
const CLIENT_HELLO_MAX_BYTES: u32 = 16 << 10;
const CLIENT_HELLO_MIN_BYTES: u32 = 256;

/// The fields of a listener that are read here.
pub(super) struct Fields {
    pub(super) listener_filters: Vec<ListenerFilter>,
    pub(super) listener_filters_timeout: Option<protobuf::Duration>,
    pub(super) continue_on_listener_filters_timeout: bool,
}

pub(super) fn listener_filters(
    d: &mut Decoder,
    fields: Fields,
    direction: Direction,
) -> Option<ListenerFilters> {
    let Fields { listener_filters, listener_filters_timeout, continue_on_listener_filters_timeout } =
        fields;
    if direction == Direction::Inbound {
        unsupported!(d; listener_filters_timeout, continue_on_listener_filters_timeout);
    }
    let timeout = common::timeout(
        d,
        "listener_filters_timeout",
        listener_filters_timeout,
        Some(TIMEOUT_DEFAULT),
    );
    let mut filters = ListenerFilters {
        timeout: timeout?,
        continue_on_timeout: continue_on_listener_filters_timeout,
        ..ListenerFilters::default()
    };
    d.all("listener_filters", listener_filters, |d, value| {
        listener_filter(d, value, direction, &mut filters)
    })?;
    Some(filters)
}

fn listener_filter(
    d: &mut Decoder,
    value: ListenerFilter,
    direction: Direction,
    filters: &mut ListenerFilters,
) -> Option<()> {
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
    let (of_gateways, inspects) = match direction {
        Direction::Gateway => (true, true),
        Direction::Outbound => (false, true),
        Direction::Inbound => (false, false),
    };
    if common::is::<PbTlsInspector>(&any) && inspects {
        let inspector = common::unpack(d, &any)?;
        let inspector = d.field("typed_config", |d| tls_inspector(d, inspector))?;
        if filters.tls_inspector.replace(inspector).is_some() {
            return d.refused("is there twice");
        }
    } else if common::is::<HttpInspector>(&any) && inspects {
        let HttpInspector {} = common::unpack(d, &any)?;
        if mem::replace(&mut filters.http_inspector, true) {
            return d.refused("is there twice");
        }
    } else if common::is::<PbProxyProtocol>(&any) && of_gateways {
        let protocol = common::unpack(d, &any)?;
        let protocol = d.field("typed_config", |d| proxy_protocol(d, protocol))?;
        if filters.tls_inspector.is_some() || filters.http_inspector {
            return d.refused("must come before what looks behind its header");
        }
        if filters.proxy_protocol.replace(protocol).is_some() {
            return d.refused("is there twice");
        }
    } else if common::is::<OriginalDst>(&any) && !of_gateways {
        // Where captured traffic was to go is known of every connection.
        let OriginalDst {} = common::unpack(d, &any)?;
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
