//! Tracing: which requests, by what names and tags, and request ids that tell of it.
//!
//! Spec: `HttpConnectionManager.Tracing`, `envoy.config.route.v3.{Tracing,Decorator}`,
//! `envoy/type/tracing/v3/custom_tag.proto`, `envoy/extensions/request_id/uuid/v3/uuid.proto`.

mod provider;

use std::{collections::HashSet, env, sync::Arc};

use envoy_types::pb::envoy::{
    config::route::v3::{Decorator as PbDecorator, Tracing as PbRouteTracing},
    extensions::{
        filters::network::http_connection_manager::v3::{
            RequestIdExtension, http_connection_manager::Tracing as PbTracing,
        },
        request_id::uuid::v3::UuidRequestIdConfig,
    },
    r#type::{
        metadata::v3::{
            MetadataKey,
            metadata_key::{PathSegment, path_segment::Segment},
            metadata_kind::Kind,
        },
        tracing::v3::{
            CustomTag as PbCustomTag,
            custom_tag::{Environment, Header, Literal, Metadata, Type},
        },
        v3::{FractionalPercent, Percent},
    },
};
use http::{HeaderName, HeaderValue};

pub(super) use self::provider::provider;
use super::{
    common,
    reject::{Decoder, unsupported},
};
use crate::model::{
    format::Format,
    http_options::RequestIds,
    runtime::Fraction,
    tracing::{
        CustomTag, Decorator, Operations, RouteTracing, Sampling, TagValue, Tracing,
        TracingProvider,
    },
};

const PATH_TAG_BYTES: u32 = 256;

pub(super) fn of_manager(d: &mut Decoder, value: PbTracing) -> Option<Tracing> {
    let PbTracing {
        client_sampling,
        random_sampling,
        overall_sampling,
        verbose,
        max_path_tag_length,
        custom_tags,
        provider,
        spawn_upstream_span,
        operation,
        upstream_operation,
        no_context_propagation,
    } = value;
    unsupported!(d; verbose);
    let client = percent(d, "client_sampling", client_sampling, 100);
    let random = percent(d, "random_sampling", random_sampling, 10_000);
    let overall = percent(d, "overall_sampling", overall_sampling, 100);
    let custom_tags = self::custom_tags(d, custom_tags);
    let provider = match provider {
        None => Some(None),
        Some(value) => d
            .field("provider", |d| self::provider(d, value))
            .map(|provider: TracingProvider| Some(Arc::new(provider))),
    };
    let operations = operations(d, &operation, &upstream_operation);
    let max_path_tag_length = max_path_tag_length.map_or(PATH_TAG_BYTES, |max| max.value);
    Some(Tracing {
        sampling: Sampling { client: client?, random: random?, overall: overall? },
        max_path_tag_length: usize::try_from(max_path_tag_length).unwrap_or(usize::MAX),
        custom_tags: custom_tags?,
        spawn_upstream_span: spawn_upstream_span.is_some_and(|spawn| spawn.value),
        operations: operations?,
        propagates: !no_context_propagation,
        provider: provider?,
    })
}

/// As a fraction of `denominator`; as in Envoy, the rest of a percent counts in the finest
/// one only.
fn percent(
    d: &mut Decoder,
    field: &str,
    value: Option<Percent>,
    denominator: u32,
) -> Option<Fraction> {
    let value = value.map_or(100.0, |percent| percent.value);
    if !(0.0..=100.0).contains(&value) {
        return d.field(field, |d| d.refused(format!("{value} is not within 0 to 100")));
    }
    let share = value * f64::from(denominator) / 100.0;
    // Within 0 to 10 000.
    let numerator = if denominator == 100 { share as u32 } else { share.round() as u32 };
    Some(Fraction { numerator, denominator })
}

/// What a route says; `None` inside: nothing.
pub(super) fn of_route(
    d: &mut Decoder,
    tracing: Option<PbRouteTracing>,
    decorator: Option<PbDecorator>,
) -> Option<Option<Arc<RouteTracing>>> {
    if tracing.is_none() && decorator.is_none() {
        return Some(None);
    }
    let decorator = match decorator {
        None => Some(None),
        Some(value) => d.field("decorator", |d| self::decorator(d, value)).map(Some),
    };
    let traced = match tracing {
        None => Some(RouteTracing::default()),
        Some(value) => d.field("tracing", |d| route_tracing(d, value)),
    };
    Some(Some(Arc::new(RouteTracing { decorator: decorator?, ..traced? })))
}

fn route_tracing(d: &mut Decoder, value: PbRouteTracing) -> Option<RouteTracing> {
    let PbRouteTracing {
        client_sampling,
        random_sampling,
        overall_sampling,
        custom_tags,
        operation,
        upstream_operation,
    } = value;
    let mut fraction = |field: &str, value: Option<FractionalPercent>| match value {
        None => Some(Fraction::percent(100)),
        Some(value) => d.field(field, |d| common::fraction(d, value)),
    };
    let client = fraction("client_sampling", client_sampling);
    let random = fraction("random_sampling", random_sampling);
    let overall = fraction("overall_sampling", overall_sampling);
    let custom_tags = self::custom_tags(d, custom_tags);
    let operations = operations(d, &operation, &upstream_operation);
    Some(RouteTracing {
        sampling: Some(Sampling { client: client?, random: random?, overall: overall? }),
        custom_tags: custom_tags?,
        operations: operations?,
        decorator: None,
    })
}

fn decorator(d: &mut Decoder, value: PbDecorator) -> Option<Decorator> {
    let PbDecorator { operation, propagate } = value;
    let operation = d.field("operation", |d| match HeaderValue::try_from(&operation) {
        Ok(value) if !operation.is_empty() => Some(value),
        Ok(_) => d.refused("is missing"),
        Err(_) => d.refused("can't be told in a header"),
    });
    let propagate = propagate.is_none_or(|propagate| propagate.value);
    Some(Decorator { operation: operation?, propagate })
}

fn operations(d: &mut Decoder, downstream: &str, upstream: &str) -> Option<Operations> {
    let mut one = |field: &str, text: &str| match text {
        "" => Some(None),
        text => d.field(field, |d| format(d, text)).map(Some),
    };
    let downstream = one("operation", downstream);
    let upstream = one("upstream_operation", upstream);
    Some(Operations { downstream: downstream?, upstream: upstream? })
}

fn format(d: &mut Decoder, text: &str) -> Option<Format> {
    text.parse().map_or_else(|error| d.refused(format!("`{text}`: {error}")), Some)
}

fn custom_tags(d: &mut Decoder, values: Vec<PbCustomTag>) -> Option<Vec<CustomTag>> {
    let mut seen = HashSet::new();
    let tags = d.all("custom_tags", values, |d, value| {
        let name = value.tag.clone();
        let tag = custom_tag(d, value)?;
        // As Envoy: of those with one name the first counts.
        Some(tag.filter(|_| seen.insert(name)))
    })?;
    Some(tags.into_iter().flatten().collect())
}

/// `None` inside: there is no such tag here.
fn custom_tag(d: &mut Decoder, value: PbCustomTag) -> Option<Option<CustomTag>> {
    let PbCustomTag { tag, r#type } = value;
    if tag.is_empty() {
        d.refuse_field("tag", "is missing");
    }
    let given = |default: String| (!default.is_empty()).then(|| default.into());
    let value = match r#type {
        Some(Type::Literal(Literal { value })) => match value.as_str() {
            "" => return d.field("literal", |d| d.field("value", |d| d.refused("is missing"))),
            value => Some(TagValue::Literal(value.into())),
        },
        Some(Type::Environment(Environment { name, default_value })) => {
            if name.is_empty() || name.contains(['=', '\0']) {
                return d.field("environment", |d| {
                    d.field("name", |d| d.refused(format!("`{name}` is no name")))
                });
            }
            env::var(name).ok().map(Into::into).or(given(default_value)).map(TagValue::Literal)
        }
        Some(Type::RequestHeader(Header { name, default_value })) => {
            let bare = name.strip_prefix(':').unwrap_or(&name);
            if HeaderName::try_from(bare).is_err() {
                return d.field("request_header", |d| {
                    d.field("name", |d| d.refused(format!("`{name}` is no header's name")))
                });
            }
            let name = name.to_ascii_lowercase();
            Some(TagValue::RequestHeader { name, default: given(default_value) })
        }
        Some(Type::Metadata(value)) => Some(d.field("metadata", |d| metadata(d, value))?),
        Some(Type::Value(text)) => Some(TagValue::Format(d.field("value", |d| format(d, &text))?)),
        None => return d.refused("has no value"),
    };
    Some(value.map(|value| CustomTag { name: tag.into(), value }))
}

fn metadata(d: &mut Decoder, value: Metadata) -> Option<TagValue> {
    let Metadata { kind, metadata_key, default_value } = value;
    match kind.and_then(|kind| kind.kind) {
        None | Some(Kind::Request(_)) => {}
        Some(Kind::Route(_)) => return d.field("kind", |d| d.not_supported("route")),
        Some(Kind::Cluster(_)) => return d.field("kind", |d| d.not_supported("cluster")),
        Some(Kind::Host(_)) => return d.field("kind", |d| d.not_supported("host")),
    }
    let Some(MetadataKey { key, path }) = metadata_key else {
        return d.field("metadata_key", |d| d.refused("is missing"));
    };
    let path = d.field("metadata_key", |d| {
        if key.is_empty() {
            d.refuse_field("key", "is missing");
        }
        if path.is_empty() {
            d.refuse_field("path", "is empty");
        }
        d.all("path", path, |d, PathSegment { segment }| match segment {
            Some(Segment::Key(key)) if !key.is_empty() => Some(key),
            Some(Segment::Index(_)) => d.not_supported("index"),
            Some(Segment::Key(_)) | None => d.refused("has no key"),
        })
    });
    let default = (!default_value.is_empty()).then(|| default_value.into());
    Some(TagValue::RequestMetadata { namespace: key, path: path?, default })
}

/// What a request's id tells of the trace.
pub(super) fn request_ids(d: &mut Decoder, value: RequestIdExtension) -> Option<RequestIds> {
    let RequestIdExtension { typed_config } = value;
    d.field("typed_config", |d| {
        let any = match typed_config {
            Some(any) if common::is::<UuidRequestIdConfig>(&any) => any,
            any => {
                let name = any.map(|any| common::type_name(&any)).unwrap_or_default();
                common::refuse_extension(d, &name, "");
                return None;
            }
        };
        let UuidRequestIdConfig { pack_trace_reason, use_request_id_for_trace_sampling } =
            common::unpack(d, &any)?;
        Some(RequestIds {
            pack_trace_reason: pack_trace_reason.is_none_or(|pack| pack.value),
            sampling: use_request_id_for_trace_sampling.is_none_or(|sampling| sampling.value),
        })
    })
}
