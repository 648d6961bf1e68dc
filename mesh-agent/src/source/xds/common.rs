//! What several resources share: addresses, durations, extensions.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use envoy_types::pb::{
    envoy::config::accesslog::v3::AccessLog,
    envoy::config::core::v3::{
        Address, CidrRange, DataSource, RuntimeFeatureFlag, RuntimeFractionalPercent,
        SocketAddress, TransportSocket, address, data_source,
        socket_address::{self, Protocol},
        transport_socket,
    },
    envoy::r#type::v3::{FractionalPercent, fractional_percent::DenominatorType},
    google::protobuf,
};
use ipnet::IpNet;
use prost::{Message, Name};

use super::reject::{Decoder, unsupported};
use crate::model::runtime::{Fraction, RuntimeFlag, RuntimeFraction};

/// The longest duration a `google.protobuf.Duration` may hold, in seconds.
const DURATION_MAX_SECONDS: i64 = 315_576_000_000;

/// What stands in for an `Any` of a type whose descriptor is not compiled in: a
/// `StringValue` with the type's name. No decoder honours a `StringValue`, so one that
/// somebody wrote is refused just the same.
pub(in crate::source) const PLACEHOLDER: &str = "google.protobuf.StringValue";

/// Whether an `Any` holds a message of this type, whatever its URL's prefix.
pub(super) fn is<M: Name>(any: &protobuf::Any) -> bool {
    url_type(any) == M::full_name()
}

fn url_type(any: &protobuf::Any) -> &str {
    any.type_url.rsplit('/').next().unwrap_or_default()
}

/// What to call an `Any`'s type in a refusal. Never decide by this: a placeholder says
/// the name of what it stands for.
pub(super) fn type_name(any: &protobuf::Any) -> String {
    let name = url_type(any);
    if name == PLACEHOLDER
        && let Ok(original) = protobuf::StringValue::decode(any.value.as_slice())
    {
        return original.value;
    }
    name.to_owned()
}

/// Decodes an `Any`'s value.
pub(super) fn unpack<M: Message + Default>(d: &mut Decoder, any: &protobuf::Any) -> Option<M> {
    match M::decode(any.value.as_slice()) {
        Ok(message) => Some(message),
        Err(error) => d.refused(format!("is not a valid {}: {error}", type_name(any))),
    }
}

/// Refuses an extension by the name the operator wrote, and by its type where that
/// name doesn't say it.
pub(super) fn refuse_extension(d: &mut Decoder, name: &str, type_name: &str) {
    d.refuse(match (name, type_name) {
        ("", "") => "has neither name nor typed_config".to_owned(),
        ("", only) => format!("{only} is not supported"),
        (name, "") => format!("{name} without typed_config is not supported"),
        (name, _) if name.starts_with("envoy.") => format!("{name} is not supported"),
        (name, type_name) => format!("{name} ({type_name}) is not supported"),
    });
}

/// A duration that may be zero; `None` if it was refused.
pub(super) fn duration(
    d: &mut Decoder,
    field: &str,
    value: protobuf::Duration,
) -> Option<Duration> {
    let protobuf::Duration { seconds, nanos } = value;
    let valid =
        (0..=DURATION_MAX_SECONDS).contains(&seconds) && (0..1_000_000_000).contains(&nanos);
    match (u64::try_from(seconds), u32::try_from(nanos)) {
        (Ok(seconds), Ok(nanos)) if valid => Some(Duration::new(seconds, nanos)),
        _ => {
            d.refuse_field(field, "is negative or beyond ten thousand years");
            None
        }
    }
}

/// A duration that must be more than zero.
pub(super) fn period(
    d: &mut Decoder,
    field: &str,
    value: Option<protobuf::Duration>,
    default: Duration,
) -> Option<Duration> {
    let Some(value) = value else { return Some(default) };
    match duration(d, field, value) {
        Some(Duration::ZERO) => d.field(field, |d| d.refused("must be more than zero")),
        period => period,
    }
}

/// A timeout with Envoy's reading: unset takes the default, zero disables.
/// The outer `None` says it was refused.
pub(super) fn timeout(
    d: &mut Decoder,
    field: &str,
    value: Option<protobuf::Duration>,
    default: Option<Duration>,
) -> Option<Option<Duration>> {
    match value {
        None => Some(default),
        Some(value) => duration(d, field, value).map(|t| Some(t).filter(|t| !t.is_zero())),
    }
}

/// A fraction that the runtime may change.
pub(super) fn runtime_fraction(
    d: &mut Decoder,
    value: RuntimeFractionalPercent,
) -> Option<RuntimeFraction> {
    let RuntimeFractionalPercent { default_value, runtime_key } = value;
    let default = d.field("default_value", |d| match default_value {
        Some(value) => fraction(d, value),
        None => d.refused("is missing"),
    });
    Some(RuntimeFraction { key: runtime_key, default: default? })
}

/// A fraction of requests.
pub(super) fn fraction(d: &mut Decoder, value: FractionalPercent) -> Option<Fraction> {
    let FractionalPercent { numerator, denominator } = value;
    let denominator = match DenominatorType::try_from(denominator) {
        Ok(DenominatorType::Hundred) => 100,
        Ok(DenominatorType::TenThousand) => 10_000,
        Ok(DenominatorType::Million) => 1_000_000,
        Err(_) => {
            return d.field("denominator", |d| d.refused(format!("{denominator} is unknown")));
        }
    };
    Some(Fraction { numerator, denominator })
}

/// A port that can be dialled: 1 to 65535.
pub(super) fn port(d: &mut Decoder, value: u32) -> Option<u16> {
    match u16::try_from(value) {
        Ok(port) if port != 0 => Some(port),
        _ => d.refused(format!("{value} is not a port")),
    }
}

/// A numeric TCP address. IPv4-mapped IPv6 is read as IPv4, as captured addresses are.
pub(super) fn socket_address(
    d: &mut Decoder,
    field: &str,
    value: Option<Address>,
) -> Option<SocketAddr> {
    d.field(field, |d| match value {
        Some(Address { address: Some(address::Address::SocketAddress(address)) }) => {
            d.field("socket_address", |d| numeric_address(d, address))
        }
        Some(Address { address: Some(address::Address::Pipe(_)) }) => d.not_supported("pipe"),
        Some(Address { address: Some(address::Address::EnvoyInternalAddress(_)) }) => {
            d.not_supported("envoy_internal_address")
        }
        Some(Address { address: None }) | None => d.refused("is missing"),
    })
}

fn numeric_address(d: &mut Decoder, value: SocketAddress) -> Option<SocketAddr> {
    let (ip, port) = host_and_port(d, value, |d, address| match address.parse::<IpAddr>() {
        Ok(ip) => Some(ip.to_canonical()),
        Err(_) if address.is_empty() => d.refused("is missing"),
        Err(_) => d.refused(format!("`{address}` is not an IP address; names are not resolved")),
    })?;
    Some(SocketAddr::new(ip, port))
}

/// A TCP address, of what may stand in `address` there.
pub(super) fn host_and_port<T>(
    d: &mut Decoder,
    value: SocketAddress,
    host: impl FnOnce(&mut Decoder, String) -> Option<T>,
) -> Option<(T, u16)> {
    let SocketAddress {
        protocol,
        address,
        resolver_name,
        ipv4_compat,
        network_namespace_filepath,
        port_specifier,
    } = value;
    unsupported!(d; resolver_name, ipv4_compat, network_namespace_filepath);
    if protocol != Protocol::Tcp as i32 {
        d.refuse_field("protocol", "only TCP is supported");
    }
    let host = d.field("address", |d| host(d, address));
    let port = match port_specifier {
        Some(socket_address::PortSpecifier::PortValue(value)) => {
            d.field("port_value", |d| port(d, value))
        }
        Some(socket_address::PortSpecifier::NamedPort(_)) => d.not_supported("named_port"),
        None => d.field("port_value", |d| d.refused("is missing")),
    };
    Some((host?, port?))
}

/// A range of addresses. Its host bits are cleared, as Envoy does.
pub(super) fn cidr(d: &mut Decoder, value: CidrRange) -> Option<IpNet> {
    let CidrRange { address_prefix, prefix_len } = value;
    let Ok(ip) = address_prefix.parse::<IpAddr>() else {
        return d.field("address_prefix", |d| {
            d.refused(format!("`{address_prefix}` is not an IP address"))
        });
    };
    if ip.to_canonical() != ip {
        return d.field("address_prefix", |d| {
            d.refused(format!("write it as IPv4: {} never appears on a connection", ip))
        });
    }
    d.field("prefix_len", |d| {
        // Envoy reads a missing length as 0: a whole policy would match everybody
        // where one address was meant.
        let length = match prefix_len {
            Some(length) => length.value,
            None if ip.is_unspecified() => 0,
            None => return d.refused("is missing, which would match every address"),
        };
        match u8::try_from(length).ok().and_then(|length| IpNet::new(ip, length).ok()) {
            Some(net) => Some(net.trunc()),
            None => d.refused(format!("{length} is too long for {ip}")),
        }
    })
}

/// Data that is written in the resource itself.
pub(super) fn inline(d: &mut Decoder, value: DataSource) -> Option<Bytes> {
    let DataSource { watched_directory, specifier } = value;
    unsupported!(d; watched_directory);
    match specifier {
        Some(data_source::Specifier::InlineString(text)) => Some(Bytes::from(text)),
        Some(data_source::Specifier::InlineBytes(bytes)) => Some(Bytes::from(bytes)),
        Some(data_source::Specifier::Filename(_)) => d.not_supported("filename"),
        Some(data_source::Specifier::EnvironmentVariable(_)) => {
            d.not_supported("environment_variable")
        }
        None => Some(Bytes::new()),
    }
}

/// Refuses a transport socket by name, with a hint at what the mesh does instead.
pub(super) fn refuse_transport_socket(d: &mut Decoder, socket: &TransportSocket, hint: &str) {
    let TransportSocket { name, config_type } = socket;
    let type_name = match config_type {
        Some(transport_socket::ConfigType::TypedConfig(any)) => type_name(any),
        None => String::new(),
    };
    let what = if type_name.is_empty() { name } else { &type_name };
    d.refuse(format!("{what} is not supported: {hint}"));
}

/// On, unless it says otherwise.
pub(super) fn feature_flag(value: Option<RuntimeFeatureFlag>) -> RuntimeFlag {
    let RuntimeFeatureFlag { default_value, runtime_key } = value.unwrap_or_default();
    RuntimeFlag { key: runtime_key, default: default_value.is_none_or(|on| on.value) }
}

/// Refuses access logs by name.
pub(super) fn refuse_access_logs(d: &mut Decoder, logs: &[AccessLog]) {
    for (i, AccessLog { name, .. }) in logs.iter().enumerate() {
        let name = if name.is_empty() { "an access log of its own" } else { name };
        let reason = format!("{name} is not supported: the agent logs every connection itself");
        d.item("access_log", i, |d| d.refuse(reason));
    }
}
