//! HTTP filters: which there are, and how each is read, in chains, by itself, and in routes.
//!
//! Spec: `HttpFilter` of `http_connection_manager/v3`, `envoy/extensions/filters/http/*/v3`,
//! `FilterConfig` of `envoy/config/route/v3/route_components.proto`.

mod buffer;
mod compression;
mod cors;
mod csrf;
mod ext_authz;
mod fault;
mod grpc_stats;
mod grpc_web;
mod header_mutation;
mod health_check;
mod jwt_authn;
mod local_rate_limit;
mod on_demand;
mod rate_limit;
mod rbac;
mod router;
mod set_metadata;
mod stateful_session;

pub(super) use self::local_rate_limit::bucket as token_bucket;

use std::{collections::HashMap, sync::Arc};

use envoy_types::pb::{
    envoy::{
        config::route::v3::FilterConfig,
        extensions::filters::{
            http::{
                buffer::v3::{Buffer, BufferPerRoute},
                compressor::v3::{Compressor, CompressorPerRoute},
                cors::v3::{Cors, CorsPolicy},
                csrf::v3::CsrfPolicy as Csrf,
                decompressor::v3::Decompressor,
                ext_authz::v3::{ExtAuthz, ExtAuthzPerRoute},
                fault::v3::HttpFault,
                grpc_stats::v3::FilterConfig as GrpcStats,
                grpc_web::v3::GrpcWeb,
                header_mutation::v3::{HeaderMutation, HeaderMutationPerRoute},
                health_check::v3::HealthCheck,
                jwt_authn::v3::{JwtAuthentication, PerRouteConfig as JwtPerRouteConfig},
                local_ratelimit::v3::LocalRateLimit,
                on_demand::v3::{OnDemand, PerRouteConfig},
                ratelimit::v3::{RateLimit, RateLimitPerRoute},
                rbac::v3::{Rbac, RbacPerRoute},
                router::v3::Router,
                set_metadata::v3::Config as SetMetadata,
                stateful_session::v3::{StatefulSession, StatefulSessionPerRoute},
            },
            network::http_connection_manager::v3::{HttpFilter as PbHttpFilter, http_filter},
        },
    },
    google::protobuf::Any,
};
use prost::Name as _;

pub(super) use self::{cors::of_level as cors, header_mutation::mutations as header_mutations};
use super::{common, ecds, reject::Decoder};
use crate::model::filter::{ChainFilter, HttpFilter, PerFilter, RouteFilter, RouteFilterConfig};

/// One kind of filter.
struct Kind {
    /// The full name of its configuration message.
    config: fn() -> String,
    decode: fn(&mut Decoder, &Any) -> Option<HttpFilter>,
    /// The full name of what routes say for it.
    route_config: fn() -> String,
    decode_route: fn(&mut Decoder, &Any) -> Option<RouteFilterConfig>,
    /// Whether it may be configured by itself.
    discoverable: bool,
}

/// Every filter but the router, which ends each chain and has nothing to configure.
const KINDS: [Kind; 18] = [
    Kind {
        config: Rbac::full_name,
        decode: rbac::filter,
        route_config: RbacPerRoute::full_name,
        decode_route: rbac::route,
        discoverable: true,
    },
    Kind {
        config: HeaderMutation::full_name,
        decode: header_mutation::filter,
        route_config: HeaderMutationPerRoute::full_name,
        decode_route: header_mutation::route,
        discoverable: true,
    },
    Kind {
        config: Csrf::full_name,
        decode: csrf::filter,
        route_config: Csrf::full_name,
        decode_route: csrf::route,
        discoverable: true,
    },
    Kind {
        config: Cors::full_name,
        decode: cors::filter,
        route_config: CorsPolicy::full_name,
        decode_route: cors::route,
        discoverable: true,
    },
    Kind {
        config: HttpFault::full_name,
        decode: fault::filter,
        route_config: HttpFault::full_name,
        decode_route: fault::route,
        discoverable: true,
    },
    Kind {
        config: ExtAuthz::full_name,
        decode: ext_authz::filter,
        route_config: ExtAuthzPerRoute::full_name,
        decode_route: ext_authz::route,
        discoverable: true,
    },
    Kind {
        config: JwtAuthentication::full_name,
        decode: jwt_authn::filter,
        route_config: JwtPerRouteConfig::full_name,
        decode_route: jwt_authn::route,
        discoverable: true,
    },
    Kind {
        config: LocalRateLimit::full_name,
        decode: local_rate_limit::filter,
        route_config: LocalRateLimit::full_name,
        decode_route: local_rate_limit::route,
        discoverable: true,
    },
    Kind {
        config: RateLimit::full_name,
        decode: rate_limit::filter,
        route_config: RateLimitPerRoute::full_name,
        decode_route: rate_limit::route,
        discoverable: true,
    },
    Kind {
        config: SetMetadata::full_name,
        decode: set_metadata::filter,
        route_config: SetMetadata::full_name,
        decode_route: set_metadata::route,
        discoverable: true,
    },
    Kind {
        config: Buffer::full_name,
        decode: buffer::filter,
        route_config: BufferPerRoute::full_name,
        decode_route: buffer::route,
        discoverable: true,
    },
    Kind {
        config: Compressor::full_name,
        decode: compression::compressor,
        route_config: CompressorPerRoute::full_name,
        decode_route: compression::compressor_route,
        discoverable: true,
    },
    Kind {
        config: Decompressor::full_name,
        decode: compression::decompressor,
        route_config: Decompressor::full_name,
        decode_route: compression::decompressor_route,
        discoverable: true,
    },
    Kind {
        config: StatefulSession::full_name,
        decode: stateful_session::filter,
        route_config: StatefulSessionPerRoute::full_name,
        decode_route: stateful_session::route,
        discoverable: true,
    },
    Kind {
        config: GrpcWeb::full_name,
        decode: grpc_web::filter,
        route_config: GrpcWeb::full_name,
        decode_route: grpc_web::route,
        discoverable: true,
    },
    Kind {
        config: GrpcStats::full_name,
        decode: grpc_stats::filter,
        route_config: GrpcStats::full_name,
        decode_route: grpc_stats::route,
        discoverable: true,
    },
    Kind {
        config: HealthCheck::full_name,
        decode: health_check::filter,
        route_config: HealthCheck::full_name,
        decode_route: health_check::route,
        discoverable: true,
    },
    Kind {
        config: OnDemand::full_name,
        decode: on_demand::filter,
        route_config: PerRouteConfig::full_name,
        decode_route: on_demand::route,
        discoverable: false,
    },
];

fn kind(type_name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| (kind.config)() == type_name)
}

/// Whether a filter of that type may be configured by itself.
pub(super) fn is_discoverable(type_name: &str) -> bool {
    kind(type_name).is_some_and(|kind| kind.discoverable)
}

/// A connection manager's chain, without the router that ends it.
pub(super) fn chain(d: &mut Decoder, values: Vec<PbHttpFilter>) -> Option<Vec<ChainFilter>> {
    let count = values.len();
    if count == 0 {
        return d.field("http_filters", |d| d.refused("is empty; it must end with the router"));
    }
    let mut at = 0;
    let decoded = d.all("http_filters", values, |d, value| {
        at += 1;
        let decoded = place(d, value)?;
        match (&decoded, at == count) {
            (Decoded::Router, false) => d.refused("the router must be the last filter"),
            (Decoded::Filter(_) | Decoded::Nothing, true) => {
                d.refused("can't be the last filter: that is the router's place")
            }
            _ => Some(decoded),
        }
    })?;
    let filters = decoded.into_iter().filter_map(|decoded| match decoded {
        Decoded::Filter(filter) => Some(filter),
        Decoded::Nothing | Decoded::Router => None,
    });
    Some(filters.collect())
}

/// What is at one place of a chain.
enum Decoded {
    Filter(ChainFilter),
    /// One that is optional and not known.
    Nothing,
    Router,
}

fn place(d: &mut Decoder, value: PbHttpFilter) -> Option<Decoded> {
    let PbHttpFilter { name, is_optional, disabled, config_type } = value;
    let filter = match config_type {
        Some(http_filter::ConfigType::TypedConfig(any)) if common::is::<Router>(&any) => {
            router::check(d, &any)?;
            if disabled {
                return d.field("disabled", |d| d.refused("the router can't be disabled"));
            }
            return Some(Decoded::Router);
        }
        Some(http_filter::ConfigType::TypedConfig(any)) => {
            let type_name = common::type_name(&any);
            match kind(&type_name) {
                Some(kind) => (kind.decode)(d, &any)?,
                // Whoever marks a filter so says that a client that doesn't know it may do
                // without.
                None if is_optional => return Some(Decoded::Nothing),
                None => {
                    common::refuse_extension(d, &name, &type_name);
                    return None;
                }
            }
        }
        Some(http_filter::ConfigType::ConfigDiscovery(source)) => {
            HttpFilter::Discovered(Arc::new(ecds::discovered(d, &name, source)?))
        }
        None => {
            common::refuse_extension(d, &name, "");
            return None;
        }
    };
    Some(Decoded::Filter(ChainFilter { name: name.into(), disabled, filter }))
}

/// A filter whose configuration arrives by itself.
pub(super) fn discovered(d: &mut Decoder, name: &str, any: &Any) -> Option<HttpFilter> {
    let type_name = common::type_name(any);
    match kind(&type_name) {
        Some(kind) if kind.discoverable => (kind.decode)(d, any),
        Some(_) => d.refused(format!("{type_name} can't be discovered")),
        None if common::is::<Router>(any) => {
            d.refused("the router can't be discovered: it ends every chain")
        }
        None => {
            common::refuse_extension(d, name, &type_name);
            None
        }
    }
}

/// `typed_per_filter_config` of one level. What is said for a filter that no chain has
/// comes to nothing, as in Envoy.
pub(super) fn per_filter(d: &mut Decoder, configs: HashMap<String, Any>) -> Option<PerFilter> {
    let mut configs: Vec<_> = configs.into_iter().collect();
    configs.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    let mut whole = Some(Vec::new());
    for (name, any) in configs {
        let decoded =
            d.item("typed_per_filter_config", name.clone(), |d| route_filter(d, &name, any));
        match (&mut whole, decoded) {
            (Some(list), Some(Some(filter))) => list.push((name.into(), filter)),
            (_, Some(None)) | (None, _) => {}
            (_, None) => whole = None,
        }
    }
    whole.map(PerFilter)
}

/// The same for levels at which `on_demand` can't be told anything.
pub(super) fn per_filter_without_on_demand(
    d: &mut Decoder,
    configs: HashMap<String, Any>,
) -> Option<PerFilter> {
    let per_filter = per_filter(d, configs)?;
    if per_filter.on_demand().is_some() {
        let reason = "on_demand is told by routes and virtual hosts only";
        d.refuse_field("typed_per_filter_config", reason);
        return None;
    }
    Some(per_filter)
}

/// The inner `None`: it is optional and not known.
fn route_filter(d: &mut Decoder, name: &str, any: Any) -> Option<Option<RouteFilter>> {
    let (any, is_optional) = if common::is::<FilterConfig>(&any) {
        let FilterConfig { config, is_optional, disabled } = common::unpack(d, &any)?;
        if disabled {
            return Some(Some(RouteFilter::Disabled));
        }
        match config {
            Some(config) => (config, is_optional),
            None => return d.field("config", |d| d.refused("is missing")),
        }
    } else {
        (any, false)
    };
    let type_name = common::type_name(&any);
    match KINDS.iter().find(|kind| (kind.route_config)() == type_name) {
        Some(kind) => Some(Some(RouteFilter::Enabled((kind.decode_route)(d, &any)?))),
        None if is_optional => Some(None),
        None => {
            common::refuse_extension(d, name, &type_name);
            None
        }
    }
}
