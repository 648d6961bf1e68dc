//! `envoy.config.core.v3.ConfigSource`: where a resource, or all of a type, comes from.
//!
//! Spec: `envoy/config/core/v3/config_source.proto`, `grpc_service.proto`.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use envoy_types::pb::{
    envoy::config::core::v3::{
        ApiConfigSource, ConfigSource, GrpcService, PathConfigSource, RateLimitSettings,
        SelfConfigSource, WatchedDirectory, api_config_source::ApiType,
        config_source::ConfigSourceSpecifier, grpc_service::TargetSpecifier,
    },
    google::protobuf,
};

use super::{
    ResourceType, common,
    options::{Origin, RateLimit, Service, WatchedFile},
    reject::{Decoder, unsupported},
    services,
    session::Variant,
};

/// `resource_api_version`: AUTO and V3; V2 is gone from the world.
const API_VERSIONS: [i32; 2] = [0, 2];

/// Envoy's defaults of `rate_limit_settings`.
const RATE_TOKENS: u32 = 100;
const RATE_PER_SECOND: f64 = 10.0;

/// The least `poll_interval`: below, it would be a busy loop.
const POLL_MIN: Duration = Duration::from_millis(1);

/// A name that a resource asks of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::source) struct Reference {
    pub(in crate::source) kind: ResourceType,
    pub(in crate::source) name: Arc<str>,
    /// `None`: where the resource itself came from.
    pub(in crate::source) origin: Option<Origin>,
    /// As [`Subscription::timeout`](super::options::Subscription).
    pub(in crate::source) timeout: Option<Duration>,
    /// The config source's, for refusals.
    pub(in crate::source) path: String,
}

/// A config source, and its `initial_fetch_timeout`. The origin is `None` where it says
/// `self`, or nothing. The outer `None`: it was refused.
pub(super) fn decode(
    d: &mut Decoder,
    value: ConfigSource,
) -> Option<(Option<Origin>, Option<Duration>)> {
    let ConfigSource {
        authorities,
        initial_fetch_timeout,
        resource_api_version,
        config_source_specifier,
    } = value;
    unsupported!(d; authorities);
    v3(d, "resource_api_version", resource_api_version);
    let timeout = match initial_fetch_timeout {
        None => Some(None),
        Some(value) => common::duration(d, "initial_fetch_timeout", value).map(Some),
    };
    use ConfigSourceSpecifier as Specifier;
    #[expect(deprecated, reason = "a deprecated field that is set is refused too")]
    let origin = match config_source_specifier {
        None => Some(None),
        Some(Specifier::Ads(_)) => Some(Some(Origin::Ads)),
        Some(Specifier::Self_(SelfConfigSource { transport_api_version })) => {
            d.field("self", |d| v3(d, "transport_api_version", transport_api_version));
            Some(None)
        }
        Some(Specifier::ApiConfigSource(api)) => {
            let service = d.field("api_config_source", |d| service(d, api));
            service.map(|service| Some(Origin::Service(service)))
        }
        Some(Specifier::PathConfigSource(file)) => {
            let file = d.field("path_config_source", |d| watched_file(d, file));
            file.map(|file| Some(Origin::File(file)))
        }
        Some(Specifier::Path(_)) => {
            d.refuse_field("path", "is not supported: use path_config_source");
            None
        }
    };
    Some((origin?, timeout?))
}

/// Notes where a name comes from, if the source is any other than that of the resource.
pub(super) fn reference(
    d: &mut Decoder,
    field: &str,
    value: Option<ConfigSource>,
    kind: ResourceType,
    name: &str,
) {
    let Some(value) = value else { return };
    d.field(field, |d| {
        let Some((origin, timeout)) = decode(d, value) else { return };
        let (name, path) = (name.into(), d.path().to_owned());
        d.refer(Reference { kind, name, origin, timeout, path });
    });
}

fn v3(d: &mut Decoder, field: &str, version: i32) {
    if !API_VERSIONS.contains(&version) {
        d.refuse_field(field, "only V3 is supported");
    }
}

/// A gRPC service: of all types, or of one.
pub(super) fn service(d: &mut Decoder, value: ApiConfigSource) -> Option<Service> {
    let ApiConfigSource {
        api_type,
        transport_api_version,
        cluster_names,
        grpc_services,
        refresh_delay,
        request_timeout,
        rate_limit_settings,
        // Only the first request of a stream says who we are; servers of v3 expect
        // either.
        set_node_on_first_message_only: _,
        config_validators,
    } = value;
    unsupported!(d; cluster_names, refresh_delay, request_timeout, config_validators);
    v3(d, "transport_api_version", transport_api_version);
    let variant = match ApiType::try_from(api_type) {
        Ok(ApiType::Grpc) => Some(Variant::Sotw),
        Ok(ApiType::DeltaGrpc) => Some(Variant::Delta),
        known => {
            let name = known.map_or_else(|_| api_type.to_string(), |t| t.as_str_name().to_owned());
            d.field("api_type", |d| {
                d.refused(format!("{name} is not supported: only GRPC and DELTA_GRPC are"))
            })
        }
    };
    let rate = match rate_limit_settings {
        None => Some(None),
        Some(settings) => d.field("rate_limit_settings", |d| rate(d, settings)).map(Some),
    };
    if grpc_services.is_empty() {
        d.refuse_field("grpc_services", "is empty");
    }
    let services = d.all("grpc_services", grpc_services, grpc_service)?;
    let message_max = services.iter().filter_map(|(_, most)| *most).min();
    let clusters = services.into_iter().map(|(name, _)| name).collect();
    Some(Service { variant: variant?, clusters, rate: rate?, message_max })
}

/// The name of its cluster, and how large a message may be.
fn grpc_service(d: &mut Decoder, value: GrpcService) -> Option<(String, Option<u32>)> {
    let GrpcService { timeout, initial_metadata, retry_policy, target_specifier } = value;
    unsupported!(d; initial_metadata, retry_policy);
    // Streams have no end; none is what everybody writes.
    if timeout.is_some_and(|t| t != protobuf::Duration::default()) {
        d.refuse_field("timeout", "is not supported");
    }
    match target_specifier {
        Some(TargetSpecifier::EnvoyGrpc(envoy)) => d.field("envoy_grpc", |d| {
            let (cluster_name, authority, message_max) = services::envoy_grpc(d, envoy);
            unsupported!(d; authority);
            Some((cluster_name, message_max))
        }),
        Some(TargetSpecifier::GoogleGrpc(_)) => {
            d.refuse_field("google_grpc", "is not supported: use envoy_grpc");
            None
        }
        None => d.field("envoy_grpc", |d| d.refused("is missing")),
    }
}

fn rate(d: &mut Decoder, value: RateLimitSettings) -> Option<RateLimit> {
    let RateLimitSettings { max_tokens, fill_rate } = value;
    let tokens = max_tokens.map_or(RATE_TOKENS, |tokens| tokens.value);
    if tokens == 0 {
        d.refuse_field("max_tokens", "must be at least 1");
    }
    let per_second = fill_rate.map_or(RATE_PER_SECOND, |rate| rate.value);
    // As Envoy does, no slower than a request a year.
    match Duration::try_from_secs_f64(1.0 / per_second.max(3.2e-8)) {
        Ok(every) if per_second > 0.0 => Some(RateLimit { tokens, every }),
        _ => d.field("fill_rate", |d| d.refused(format!("{per_second} is not above zero"))),
    }
}

fn watched_file(d: &mut Decoder, value: PathConfigSource) -> Option<WatchedFile> {
    let PathConfigSource { path, watched_directory, poll_interval } = value;
    if watched_directory.is_some() && poll_interval.is_some() {
        d.refuse_field("poll_interval", "excludes watched_directory");
    }
    let file = absolute(d, "path", &path);
    let (directory, in_place) = match watched_directory {
        None => (Some(None), false),
        Some(WatchedDirectory { path, watch_modify }) => {
            let directory = d.field("watched_directory", |d| absolute(d, "path", &path));
            (directory.map(Some), watch_modify)
        }
    };
    let poll = match poll_interval {
        None => Some(None),
        Some(value) => match common::duration(d, "poll_interval", value)? {
            poll if poll < POLL_MIN => {
                d.field("poll_interval", |d| d.refused("must be at least 1ms"))
            }
            poll => Some(Some(poll)),
        },
    };
    Some(WatchedFile { path: file?, directory: directory?, in_place, poll: poll? })
}

/// A path, made absolute.
pub(super) fn absolute(d: &mut Decoder, field: &str, path: &str) -> Option<PathBuf> {
    d.field(field, |d| {
        if path.is_empty() {
            return d.refused("is missing");
        }
        match std::path::absolute(Path::new(path)) {
            Ok(path) => Some(path),
            Err(error) => d.refused(error.to_string()),
        }
    })
}
