//! Active health checks.
//!
//! Spec: `envoy/config/core/v3/health_check.proto`,
//! `envoy/config/endpoint/v3/endpoint_components.proto`.

use std::{net::SocketAddr, ops::Range, time::Duration};

use bytes::Bytes;
use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::{
                HeaderValueOption, HealthCheck as PbHealthCheck, RequestMethod,
                health_check::{
                    GrpcHealthCheck, HealthChecker, HttpHealthCheck, Payload, TcpHealthCheck,
                    payload::Payload as Content,
                },
            },
            endpoint::v3::endpoint::HealthCheckConfig,
        },
        r#type::v3::{CodecClientType, Int64Range},
    },
    google::protobuf::UInt32Value,
};
use http::{Method, uri::Authority};

use super::{
    common, header_mutation, matchers,
    reject::{Decoder, unsupported},
};
use crate::model::{
    cluster::{EndpointCheck, GrpcProbe, HealthCheck, HttpProbe, Probe, TcpProbe},
    header_mutation::HeaderMutation,
};

const NO_TRAFFIC_INTERVAL_DEFAULT: Duration = Duration::from_secs(60);

const RESPONSE_BUFFER_DEFAULT_BYTES: u64 = 1024;
/// As much of a response is kept at most, where the whole of it is asked for.
const RESPONSE_BUFFER_MAX_BYTES: u64 = 1 << 20;

/// `cluster` is the name of who has it.
#[expect(deprecated, reason = "a deprecated field that is set is refused too")]
pub(super) fn health_check(
    d: &mut Decoder,
    value: PbHealthCheck,
    cluster: &str,
) -> Option<HealthCheck> {
    let PbHealthCheck {
        timeout,
        interval,
        initial_jitter,
        interval_jitter,
        interval_jitter_percent,
        unhealthy_threshold,
        healthy_threshold,
        alt_port,
        reuse_connection,
        no_traffic_interval,
        no_traffic_healthy_interval,
        unhealthy_interval,
        unhealthy_edge_interval,
        healthy_edge_interval,
        event_log_path,
        event_logger,
        event_service,
        always_log_health_check_failures,
        always_log_health_check_success,
        tls_options,
        transport_socket_match_criteria,
        health_checker,
    } = value;
    unsupported!(
        d; event_log_path, event_logger, event_service, tls_options,
        transport_socket_match_criteria,
    );
    if alt_port.is_some() {
        d.refuse_field("alt_port", "is not supported: use the endpoint's health_check_config");
    }
    let probe = match health_checker {
        None => d.refused("has no http_health_check, grpc_health_check or tcp_health_check"),
        Some(HealthChecker::HttpHealthCheck(value)) => d
            .field("http_health_check", |d| http(d, value, cluster))
            .map(|probe| Probe::Http(Box::new(probe))),
        Some(HealthChecker::TcpHealthCheck(value)) => {
            d.field("tcp_health_check", |d| tcp(d, value)).map(Probe::Tcp)
        }
        Some(HealthChecker::GrpcHealthCheck(value)) => {
            d.field("grpc_health_check", |d| grpc(d, value, cluster)).map(Probe::Grpc)
        }
        Some(HealthChecker::CustomHealthCheck(value)) => d.field("custom_health_check", |d| {
            common::refuse_extension(d, &value.name, "");
            None
        }),
    };
    let needed = |d: &mut Decoder, field, value: Option<_>| match value {
        None => d.field(field, |d| d.refused("is missing")),
        given => common::period(d, field, given, Duration::ZERO),
    };
    let timeout = needed(d, "timeout", timeout);
    let interval = needed(d, "interval", interval)?;
    let mut period = |field, value, default| common::period(d, field, value, default);
    let no_traffic =
        period("no_traffic_interval", no_traffic_interval, NO_TRAFFIC_INTERVAL_DEFAULT)?;
    let no_traffic_healthy =
        period("no_traffic_healthy_interval", no_traffic_healthy_interval, no_traffic);
    let unhealthy = period("unhealthy_interval", unhealthy_interval, interval)?;
    let unhealthy_edge = period("unhealthy_edge_interval", unhealthy_edge_interval, unhealthy);
    let healthy_edge = period("healthy_edge_interval", healthy_edge_interval, interval);
    let mut jitter = |field, value: Option<_>| match value {
        None => Some(Duration::ZERO),
        Some(value) => common::duration(d, field, value),
    };
    let initial_jitter = jitter("initial_jitter", initial_jitter);
    let interval_jitter = jitter("interval_jitter", interval_jitter);
    let mut threshold = |field, value: Option<UInt32Value>| match value {
        Some(UInt32Value { value }) => Some(value),
        None => d.field(field, |d| d.refused("is missing")),
    };
    let unhealthy_threshold = threshold("unhealthy_threshold", unhealthy_threshold);
    let healthy_threshold = threshold("healthy_threshold", healthy_threshold);
    Some(HealthCheck {
        timeout: timeout?,
        interval,
        initial_jitter: initial_jitter?,
        interval_jitter: interval_jitter?,
        interval_jitter_percent,
        unhealthy_threshold: unhealthy_threshold?,
        healthy_threshold: healthy_threshold?,
        reuse_connection: reuse_connection.is_none_or(|reuse| reuse.value),
        no_traffic_interval: no_traffic,
        no_traffic_healthy_interval: no_traffic_healthy?,
        unhealthy_interval: unhealthy,
        unhealthy_edge_interval: unhealthy_edge?,
        healthy_edge_interval: healthy_edge?,
        log_failures: always_log_health_check_failures,
        log_successes: always_log_health_check_success,
        probe: probe?,
    })
}

fn http(d: &mut Decoder, value: HttpHealthCheck, cluster: &str) -> Option<HttpProbe> {
    let HttpHealthCheck {
        host,
        path,
        send,
        receive,
        response_buffer_size,
        request_headers_to_add,
        request_headers_to_remove,
        expected_statuses,
        retriable_statuses,
        codec_client_type,
        service_name_matcher,
        method,
    } = value;
    let http2 = match CodecClientType::try_from(codec_client_type) {
        Ok(CodecClientType::Http1) => Some(false),
        Ok(CodecClientType::Http2) => Some(true),
        Ok(CodecClientType::Http3) => {
            d.field("codec_client_type", |d| d.refused("HTTP3 is not supported"))
        }
        Err(_) => {
            d.field("codec_client_type", |d| d.refused(format!("{codec_client_type} is unknown")))
        }
    };
    self::host(d, "host", &host, cluster, http2 == Some(true));
    let valid = path.starts_with('/') && path.parse::<http::uri::PathAndQuery>().is_ok();
    if !valid {
        d.refuse_field("path", format!("`{path}` is not a path"));
    }
    let method = d.field("method", |d| match RequestMethod::try_from(method) {
        Ok(RequestMethod::MethodUnspecified | RequestMethod::Get) => Some(Method::GET),
        Ok(RequestMethod::Connect) => d.refused("CONNECT is no health check"),
        Ok(other) => Method::try_from(other.as_str_name()).ok(),
        Err(_) => d.refused(format!("{method} is unknown")),
    });
    let send = match send {
        None => Some(Bytes::new()),
        Some(payload) => d.field("send", |d| self::payload(d, payload)),
    };
    let bodiless = [Method::GET, Method::HEAD, Method::DELETE, Method::TRACE];
    let sends = send.as_ref().is_some_and(|send| !send.is_empty());
    if sends && method.as_ref().is_some_and(|method| bodiless.contains(method)) {
        d.refuse_field("send", "can't go with this method, which has no body");
    }
    let receive = d.all("receive", receive, payload);
    let buffer = match response_buffer_size.map(|size| size.value) {
        None => RESPONSE_BUFFER_DEFAULT_BYTES,
        Some(0) => RESPONSE_BUFFER_MAX_BYTES,
        Some(size) if size > RESPONSE_BUFFER_MAX_BYTES => {
            let reason = format!("{size} is more than {RESPONSE_BUFFER_MAX_BYTES}");
            d.refuse_field("response_buffer_size", reason);
            size
        }
        Some(size) => size,
    };
    let expects: usize = receive.iter().flatten().map(Bytes::len).sum();
    let response_buffer_bytes = usize::try_from(buffer).unwrap_or(usize::MAX);
    if expects > response_buffer_bytes {
        d.refuse_field("receive", format!("is longer than response_buffer_size, {buffer}"));
    }
    let headers = headers(
        d,
        ("request_headers_to_add", request_headers_to_add),
        ("request_headers_to_remove", request_headers_to_remove),
    );
    let expected = d.all("expected_statuses", expected_statuses, statuses);
    let retriable = d.all("retriable_statuses", retriable_statuses, statuses);
    let service_name = match service_name_matcher {
        None => Some(None),
        Some(value) => d.field("service_name_matcher", |d| matchers::string(d, value)).map(Some),
    };
    let expected = expected.map(|expected| match expected.is_empty() {
        true => std::iter::once(200..201).collect(),
        false => expected,
    });
    Some(HttpProbe {
        host: (!host.is_empty()).then(|| host.into()),
        path: path.into(),
        method: method?,
        http2: http2?,
        send: send?,
        receive: receive?,
        response_buffer_bytes,
        headers: headers?,
        expected: expected?,
        retriable: retriable?,
        service_name: service_name?,
    })
}

/// Where nothing is said the cluster's name is asked for, which HTTP/2 can't always say.
fn host(d: &mut Decoder, field: &str, host: &str, cluster: &str, http2: bool) {
    let asked = if host.is_empty() { cluster } else { host };
    let valid = match http2 {
        true => asked.parse::<Authority>().is_ok(),
        false => http::HeaderValue::from_str(asked).is_ok(),
    };
    if !valid {
        d.refuse_field(field, format!("`{asked}` is not a host"));
    }
}

fn statuses(d: &mut Decoder, value: Int64Range) -> Option<Range<u16>> {
    let Int64Range { start, end } = value;
    match (u16::try_from(start), u16::try_from(end)) {
        (Ok(start @ 100..), Ok(end @ ..=600)) if start < end => Some(start..end),
        _ => d.refused(format!("{start} to {end} are no statuses")),
    }
}

fn tcp(d: &mut Decoder, value: TcpHealthCheck) -> Option<TcpProbe> {
    let TcpHealthCheck { send, receive, proxy_protocol_config } = value;
    unsupported!(d; proxy_protocol_config);
    let send = match send {
        None => Some(Bytes::new()),
        Some(value) => d.field("send", |d| payload(d, value)),
    };
    let receive = d.all("receive", receive, payload);
    Some(TcpProbe { send: send?, receive: receive? })
}

fn grpc(d: &mut Decoder, value: GrpcHealthCheck, cluster: &str) -> Option<GrpcProbe> {
    let GrpcHealthCheck { service_name, authority, initial_metadata } = value;
    host(d, "authority", &authority, cluster, true);
    let none = ("", Vec::new());
    let headers = headers(d, ("initial_metadata", initial_metadata), none);
    let authority = (!authority.is_empty()).then(|| authority.into());
    Some(GrpcProbe { service_name, authority, headers: headers? })
}

/// Of a request that nobody made: there is nothing that operators could tell of.
fn headers(
    d: &mut Decoder,
    (add_field, add): (&str, Vec<HeaderValueOption>),
    (remove_field, remove): (&str, Vec<String>),
) -> Option<HeaderMutation> {
    let add = d.all(add_field, add, |d, value| {
        let addition = header_mutation::addition(d, value)?;
        if addition.value.literal().is_none() {
            return d.field("header", |d| {
                d.field("value", |d| d.refused("command operators are not supported here"))
            });
        }
        Some(addition)
    });
    let remove = d.all(remove_field, remove, |d, text| header_mutation::name(d, &text));
    Some(HeaderMutation { remove: remove?, add: add? })
}

fn payload(d: &mut Decoder, value: Payload) -> Option<Bytes> {
    match value.payload {
        None => d.refused("has neither text nor binary"),
        Some(Content::Binary(bytes)) => Some(bytes.into()),
        Some(Content::Text(text)) => d.field("text", |d| match hex(&text) {
            Some(bytes) if !bytes.is_empty() => Some(bytes.into()),
            _ => d.refused(format!("`{text}` is not hexadecimal")),
        }),
    }
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digit =
        |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = text.as_bytes().chunks(2).map(|pair| match pair {
        [high, low] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    });
    pairs.collect()
}

/// Of the endpoint at `serving`.
pub(super) fn endpoint_check(
    d: &mut Decoder,
    value: HealthCheckConfig,
    serving: Option<SocketAddr>,
) -> Option<EndpointCheck> {
    let HealthCheckConfig { port_value, hostname, address, disable_active_health_check } = value;
    let own = match address {
        None => Some(None),
        given => common::socket_address(d, "address", given).map(Some),
    };
    let port = match port_value {
        0 => Some(None),
        port => d.field("port_value", |d| common::port(d, port)).map(Some),
    };
    if !hostname.is_empty() && hostname.parse::<Authority>().is_err() {
        d.refuse_field("hostname", format!("`{hostname}` is not a host"));
    }
    let address = match (own?, port?, serving) {
        // As Envoy: a port goes with either address.
        (Some(mut address), Some(port), _) | (None, Some(port), Some(mut address)) => {
            address.set_port(port);
            Some(address)
        }
        (address, None, _) => address,
        (None, Some(_), None) => None,
    };
    let hostname = (!hostname.is_empty()).then(|| hostname.into());
    Some(EndpointCheck { address, hostname, disabled: disable_active_health_check })
}
