//! Who is told of spans.
//!
//! Spec: `envoy/config/trace/v3/{http_tracer,opentelemetry,zipkin}.proto`,
//! `envoy/extensions/tracers/opentelemetry/{resource_detectors,samplers}/v3`.

use std::{env, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::{
                GrpcService as PbGrpcService, HeaderValueOption, HttpService as PbHttpService,
                TypedExtensionConfig, header_value_option::HeaderAppendAction,
            },
            trace::v3::{
                OpenTelemetryConfig, ZipkinConfig,
                tracing::{Http as PbProvider, http::ConfigType},
                zipkin_config::{CollectorEndpointVersion, TraceContextOption},
            },
        },
        extensions::tracers::opentelemetry::{
            resource_detectors::v3::{
                EnvironmentResourceDetectorConfig, StaticConfigResourceDetectorConfig,
            },
            samplers::v3::{AlwaysOnSamplerConfig, ParentBasedSamplerConfig},
        },
    },
    google::protobuf::{self, Any},
};
use http::{HeaderName, HeaderValue, uri::Authority};

use super::super::{
    common,
    reject::{Decoder, unsupported},
    services,
};
use crate::model::{
    cluster::ClusterName,
    tracing::{ExportProtocol, OpenTelemetry, Sampler, SpanExport, TracingProvider, Zipkin},
};

/// For one batch, where nothing is said, or no limit.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
/// Envoy's own for Zipkin's collector.
const ZIPKIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Envoy's default for a service without a name says `envoy`.
const SERVICE_NAME: &str = "unknown_service:mesh-agent";
/// Of one provider; each is memory of spans in the agent.
const CACHE_MAX: u32 = 65_536;
const RESOURCE_ATTRIBUTES: &str = "OTEL_RESOURCE_ATTRIBUTES";

pub(in crate::source::xds) fn provider(
    d: &mut Decoder,
    value: PbProvider,
) -> Option<TracingProvider> {
    let PbProvider { name, config_type } = value;
    let Some(ConfigType::TypedConfig(any)) = config_type else {
        common::refuse_extension(d, &name, "");
        return None;
    };
    if common::is::<OpenTelemetryConfig>(&any) {
        return d
            .field("typed_config", |d| {
                let config = common::unpack(d, &any)?;
                open_telemetry(d, config)
            })
            .map(TracingProvider::OpenTelemetry);
    }
    if common::is::<ZipkinConfig>(&any) {
        return d
            .field("typed_config", |d| {
                let config = common::unpack(d, &any)?;
                zipkin(d, config)
            })
            .map(TracingProvider::Zipkin);
    }
    common::refuse_extension(d, &name, &common::type_name(&any));
    None
}

fn open_telemetry(d: &mut Decoder, value: OpenTelemetryConfig) -> Option<OpenTelemetry> {
    let OpenTelemetryConfig {
        grpc_service,
        http_service,
        exporter,
        service_name,
        resource_detectors,
        sampler,
        max_cache_size,
        set_telemetry_sdk_resource_attributes,
        set_service_name_resource_attribute,
        set_instrumentation_scope,
    } = value;
    unsupported!(d; exporter);
    let export = match (grpc_service, http_service) {
        (Some(_), Some(_)) => d.refused("has both grpc_service and http_service"),
        (Some(value), None) => d.field("grpc_service", |d| grpc_export(d, value)),
        (None, Some(value)) => d.field("http_service", |d| http_export(d, value)),
        (None, None) => d.refused("has neither grpc_service nor http_service"),
    };
    let on = |value: Option<protobuf::BoolValue>| value.is_none_or(|on| on.value);
    let mut resource = Vec::new();
    if on(set_telemetry_sdk_resource_attributes) {
        for (key, value) in [
            ("telemetry.sdk.language", "rust"),
            ("telemetry.sdk.name", env!("CARGO_PKG_NAME")),
            ("telemetry.sdk.version", env!("CARGO_PKG_VERSION")),
        ] {
            put(&mut resource, key.to_owned(), value.to_owned());
        }
    }
    if on(set_service_name_resource_attribute) {
        let name = if service_name.is_empty() { SERVICE_NAME } else { &service_name };
        put(&mut resource, "service.name".to_owned(), name.to_owned());
    }
    let detected = d.all("resource_detectors", resource_detectors, detector)?;
    for (key, value) in detected.into_iter().flatten() {
        put(&mut resource, key, value);
    }
    let sampler = match sampler {
        None => Some(None),
        Some(value) => d.field("sampler", |d| self::sampler(d, value)).map(Some),
    };
    let cache_max = match max_cache_size.map(|max| max.value) {
        None => Some(OpenTelemetry::CACHE_MAX),
        Some(max @ 1..=CACHE_MAX) => usize::try_from(max).ok(),
        Some(max) => d.field("max_cache_size", |d| {
            d.refused(format!("{max} is not within 1 to {CACHE_MAX}"))
        }),
    };
    Some(OpenTelemetry {
        export: export?,
        resource,
        scope: on(set_instrumentation_scope),
        sampler: sampler?,
        cache_max: cache_max?,
    })
}

/// As OpenTelemetry merges resources: the later value counts, unless it is empty.
fn put(resource: &mut Vec<(String, String)>, key: String, value: String) {
    match resource.iter_mut().find(|(known, _)| *known == key) {
        Some((_, known)) if !value.is_empty() => *known = value,
        Some(_) => {}
        None => resource.push((key, value)),
    }
}

fn detector(d: &mut Decoder, value: TypedExtensionConfig) -> Option<Vec<(String, String)>> {
    let TypedExtensionConfig { name, typed_config } = value;
    let any = typed_config.unwrap_or_default();
    if common::is::<StaticConfigResourceDetectorConfig>(&any) {
        return d.field("typed_config", |d| {
            let StaticConfigResourceDetectorConfig { attributes } = common::unpack(d, &any)?;
            let mut attributes: Vec<_> = attributes.into_iter().collect();
            attributes.sort();
            Some(attributes)
        });
    }
    if common::is::<EnvironmentResourceDetectorConfig>(&any) {
        return Some(of_environment(&env::var(RESOURCE_ATTRIBUTES).unwrap_or_default()));
    }
    common::refuse_extension(d, &name, &common::type_name(&any));
    None
}

/// `key=value,...`
fn of_environment(text: &str) -> Vec<(String, String)> {
    let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned())).collect()
}

fn sampler(d: &mut Decoder, value: TypedExtensionConfig) -> Option<Sampler> {
    let TypedExtensionConfig { name, typed_config } = value;
    let any: Any = typed_config.unwrap_or_default();
    if common::is::<AlwaysOnSamplerConfig>(&any) {
        let AlwaysOnSamplerConfig {} = common::unpack(d, &any)?;
        return Some(Sampler::AlwaysOn);
    }
    if common::is::<ParentBasedSamplerConfig>(&any) {
        return d.field("typed_config", |d| {
            let ParentBasedSamplerConfig { wrapped_sampler } = common::unpack(d, &any)?;
            d.field("wrapped_sampler", |d| match wrapped_sampler {
                Some(wrapped) => match sampler(d, wrapped)? {
                    Sampler::AlwaysOn => Some(Sampler::ParentOrAlwaysOn),
                    Sampler::ParentOrAlwaysOn => d.refused("can only be always_on"),
                },
                None => d.refused("is missing"),
            })
        });
    }
    common::refuse_extension(d, &name, &common::type_name(&any));
    None
}

fn grpc_export(d: &mut Decoder, value: PbGrpcService) -> Option<SpanExport> {
    let untimed = value.timeout.is_none();
    let service = services::grpc_service(d, value)?;
    let authority = authority(d, "envoy_grpc", &service.authority);
    Some(SpanExport {
        cluster: service.cluster,
        authority: authority?,
        protocol: ExportProtocol::Grpc,
        // The default for filters, which hold requests up, is no measure here.
        timeout: service.timeout.filter(|_| !untimed).unwrap_or(TIMEOUT_DEFAULT),
        headers: service.initial_metadata,
    })
}

fn authority(d: &mut Decoder, field: &str, text: &str) -> Option<Authority> {
    match Authority::try_from(text) {
        Ok(authority) => Some(authority),
        Err(_) => d.field(field, |d| d.refused(format!("`{text}` is no authority"))),
    }
}

fn http_export(d: &mut Decoder, value: PbHttpService) -> Option<SpanExport> {
    let PbHttpService { http_uri, request_headers_to_add, formatters } = value;
    unsupported!(d; formatters);
    let uri = d.field("http_uri", |d| match http_uri {
        Some(uri) => services::http_uri(d, uri),
        None => d.refused("is missing"),
    });
    let headers = d.all("request_headers_to_add", request_headers_to_add, added);
    let uri = uri?;
    let authority = authority(d, "http_uri", &uri.authority);
    Some(SpanExport {
        cluster: uri.cluster,
        authority: authority?,
        protocol: ExportProtocol::Http(uri.path),
        timeout: uri.timeout,
        headers: headers?,
    })
}

#[expect(deprecated, reason = "refused where it is set")]
fn added(d: &mut Decoder, value: HeaderValueOption) -> Option<(HeaderName, HeaderValue)> {
    let HeaderValueOption { header, append, append_action, keep_empty_value } = value;
    unsupported!(d; append, keep_empty_value);
    if append_action != HeaderAppendAction::AppendIfExistsOrAdd as i32
        && append_action != HeaderAppendAction::OverwriteIfExistsOrAdd as i32
    {
        d.refuse_field("append_action", "is not supported: headers are added");
    }
    d.field("header", |d| match header {
        Some(header) => services::literal_header(d, header),
        None => d.refused("is missing"),
    })
}

#[expect(deprecated, reason = "deprecated values are refused, and a deprecated switch is known")]
fn zipkin(d: &mut Decoder, value: ZipkinConfig) -> Option<Zipkin> {
    let ZipkinConfig {
        collector_cluster,
        collector_endpoint,
        trace_id_128bit,
        shared_span_context,
        collector_endpoint_version,
        collector_hostname,
        split_spans_for_request,
        trace_context_option,
        collector_service,
        timestamp_trace_ids,
    } = value;
    unsupported!(d; split_spans_for_request, timestamp_trace_ids);
    if collector_endpoint_version != CollectorEndpointVersion::HttpJson as i32 {
        d.refuse_field("collector_endpoint_version", "must be HTTP_JSON");
    }
    let w3c = match TraceContextOption::try_from(trace_context_option) {
        Ok(TraceContextOption::UseB3) => Some(false),
        Ok(TraceContextOption::UseB3WithW3cPropagation) => Some(true),
        Err(_) => d.field("trace_context_option", |d| {
            d.refused(format!("{trace_context_option} is unknown"))
        }),
    };
    let export = match collector_service {
        Some(value) => d.field("collector_service", |d| http_export(d, value)),
        None => {
            for (field, value) in [
                ("collector_cluster", &collector_cluster),
                ("collector_endpoint", &collector_endpoint),
            ] {
                if value.is_empty() {
                    d.refuse_field(field, "is missing");
                }
            }
            if !collector_endpoint.starts_with('/') {
                d.refuse_field("collector_endpoint", "does not begin with `/`");
            }
            let host = match collector_hostname.as_str() {
                "" => &collector_cluster,
                host => host,
            };
            authority(d, "collector_hostname", host).map(|authority| SpanExport {
                cluster: ClusterName(collector_cluster.as_str().into()),
                authority,
                protocol: ExportProtocol::Http(collector_endpoint.clone()),
                timeout: ZIPKIN_TIMEOUT,
                headers: Vec::new(),
            })
        }
    };
    Some(Zipkin {
        export: export?,
        trace_id_128bit,
        shared_span_context: shared_span_context.is_none_or(|shared| shared.value),
        w3c: w3c?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_merged() {
        let mut resource = vec![("a".to_owned(), "1".to_owned())];
        for (key, value) in of_environment(" a = 2 ,b=x=y,c,a=,d=") {
            put(&mut resource, key, value);
        }
        let of = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(resource, [of("a", "2"), of("b", "x=y"), of("d", "")]);
    }
}
