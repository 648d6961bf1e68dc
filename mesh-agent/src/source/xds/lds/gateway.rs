//! What only gateway listeners have: a socket. And names to match.

use std::sync::Arc;

use envoy_types::pb::{
    envoy::config::listener::v3::filter_chain_match::ConnectionSourceType, google::protobuf,
};

use crate::{
    model::{gateway::Gateway, listener::SourceType},
    source::xds::reject::{Decoder, unsupported},
};

/// Envoy's.
const BACKLOG_DEFAULT: u32 = 4096;

/// The fields of a listener that are read here.
pub(super) struct Fields {
    pub(super) tcp_backlog_size: Option<protobuf::UInt32Value>,
    pub(super) freebind: Option<protobuf::BoolValue>,
}

/// Of a listener that is no gateway's.
pub(super) fn refuse(d: &mut Decoder, Fields { tcp_backlog_size, freebind }: Fields) {
    unsupported!(d; tcp_backlog_size, freebind);
}

pub(super) fn socket(Fields { tcp_backlog_size, freebind }: Fields) -> Gateway {
    Gateway {
        backlog: tcp_backlog_size.map_or(BACKLOG_DEFAULT, |size| size.value),
        freebind: freebind.is_some_and(|freebind| freebind.value),
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
