//! Spec: `envoy.extensions.filters.http.jwt_authn.v3`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::core::v3::{
            DataSource, RetryPolicy as PbRetryPolicy, data_source::Specifier as SourceSpecifier,
        },
        extensions::filters::http::jwt_authn::v3::{
            JwksAsyncFetch, JwtAuthentication, JwtClaimToHeader, JwtHeader,
            JwtProvider as PbJwtProvider, JwtRequirement as PbJwtRequirement, PerRouteConfig,
            ProviderWithAudiences, RemoteJwks as PbRemoteJwks, RequirementRule,
            jwt_provider::{JwksSourceSpecifier, NormalizePayload},
            jwt_requirement::RequiresType,
            per_route_config::RequirementSpecifier,
            requirement_rule::RequirementType,
        },
    },
    google::protobuf::Any,
};
use http::{HeaderName, header};

use super::super::{
    common, rds,
    reject::{Decoder, unsupported},
    services,
};
use crate::model::{
    filter::{HttpFilter, RouteFilterConfig},
    jwks::Jwks,
    jwt_authn::{
        ClaimToHeader, JwksSource, JwtAuthn, JwtLocation, JwtPerRoute, JwtProvider, JwtRequirement,
        JwtRule, RemoteJwks,
    },
    retry::BackOff,
};

/// As Envoy's.
const CLOCK_SKEW_DEFAULT: Duration = Duration::from_secs(60);
const CACHE_DURATION_DEFAULT: Duration = Duration::from_secs(600);
/// Headers that frame or route a message, and are not for filters to write.
const RESERVED: [HeaderName; 5] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::CONNECTION,
    header::UPGRADE,
];

type Providers = BTreeMap<String, Arc<JwtProvider>>;

pub(super) fn filter(d: &mut Decoder, any: &Any) -> Option<HttpFilter> {
    let JwtAuthentication {
        providers,
        rules,
        filter_state_rules,
        bypass_cors_preflight,
        requirement_map,
        strip_failure_response,
        // Names in statistics.
        stat_prefix: _,
    } = common::unpack(d, any)?;
    unsupported!(d; filter_state_rules);
    let mut known = Some(Providers::new());
    for (name, value) in sorted(providers) {
        let decoded = d.item("providers", &name, |d| provider(d, &name, value));
        match (&mut known, decoded) {
            (Some(known), Some(provider)) => drop(known.insert(name, Arc::new(provider))),
            _ => known = None,
        }
    }
    let known = known?;
    let mut requirements = Some(BTreeMap::new());
    for (name, value) in sorted(requirement_map) {
        let decoded = d.item("requirement_map", &name, |d| required(d, value, &known));
        match (&mut requirements, decoded) {
            (Some(all), Some(requirement)) => drop(all.insert(name, requirement)),
            _ => requirements = None,
        }
    }
    let requirements = requirements?;
    let rules = d.all("rules", rules, |d, value| rule(d, value, &known, &requirements))?;
    Some(HttpFilter::JwtAuthn(Arc::new(JwtAuthn {
        providers: known.into_values().collect(),
        rules,
        requirements,
        bypass_cors_preflight,
        strip_failure_response,
    })))
}

pub(super) fn route(d: &mut Decoder, any: &Any) -> Option<RouteFilterConfig> {
    let PerRouteConfig { requirement_specifier } = common::unpack(d, any)?;
    let said = match requirement_specifier {
        Some(RequirementSpecifier::Disabled(true)) => JwtPerRoute::Disabled,
        Some(RequirementSpecifier::RequirementName(name)) if !name.is_empty() => {
            JwtPerRoute::Requirement(name)
        }
        Some(RequirementSpecifier::Disabled(false)) => {
            return d.field("disabled", |d| d.refused("can only be true"));
        }
        _ => return d.refused("has neither disabled nor requirement_name"),
    };
    Some(RouteFilterConfig::JwtAuthn(Arc::new(said)))
}

fn sorted<T>(map: impl IntoIterator<Item = (String, T)>) -> Vec<(String, T)> {
    let mut entries: Vec<_> = map.into_iter().collect();
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    entries
}

fn rule(
    d: &mut Decoder,
    value: RequirementRule,
    providers: &Providers,
    requirements: &BTreeMap<String, JwtRequirement>,
) -> Option<JwtRule> {
    let RequirementRule { r#match, requirement_type } = value;
    let matches = d.field("match", |d| match r#match {
        Some(value) => rds::route_match(d, value),
        None => d.refused("is missing"),
    });
    let requirement = match requirement_type {
        None => Some(None),
        // As Envoy: one that says nothing requires nothing.
        Some(RequirementType::Requires(PbJwtRequirement { requires_type: None })) => Some(None),
        Some(RequirementType::Requires(value)) => {
            d.field("requires", |d| required(d, value, providers)).map(Some)
        }
        Some(RequirementType::RequirementName(name)) => match requirements.get(&name) {
            Some(requirement) => Some(Some(requirement.clone())),
            None => d.field("requirement_name", |d| {
                d.refused(format!("`{name}` is not in requirement_map"))
            }),
        },
    };
    Some(JwtRule { matches: matches?, requirement: requirement? })
}

fn required(
    d: &mut Decoder,
    value: PbJwtRequirement,
    providers: &Providers,
) -> Option<JwtRequirement> {
    let named = |d: &mut Decoder, name: String| match providers.get(&name) {
        Some(provider) => Some(Arc::clone(provider)),
        None => {
            d.field("provider_name", |d| d.refused(format!("`{name}` is not among the providers")))
        }
    };
    let several = |d: &mut Decoder, all: Vec<PbJwtRequirement>| {
        if all.len() < 2 {
            d.refuse_field("requirements", "has less than two");
        }
        d.all("requirements", all, |d, value| required(d, value, providers))
    };
    match value.requires_type {
        Some(RequiresType::ProviderName(name)) => {
            let provider = named(d, name)?;
            Some(JwtRequirement::Provider { provider, audiences: Vec::new() })
        }
        Some(RequiresType::ProviderAndAudiences(value)) => d.field("provider_and_audiences", |d| {
            let ProviderWithAudiences { provider_name, audiences } = value;
            Some(JwtRequirement::Provider { provider: named(d, provider_name)?, audiences })
        }),
        Some(RequiresType::RequiresAny(any)) => {
            d.field("requires_any", |d| several(d, any.requirements)).map(JwtRequirement::Any)
        }
        Some(RequiresType::RequiresAll(all)) => {
            d.field("requires_all", |d| several(d, all.requirements)).map(JwtRequirement::All)
        }
        Some(RequiresType::AllowMissing(_)) => Some(JwtRequirement::AllowMissing),
        Some(RequiresType::AllowMissingOrFailed(_)) => Some(JwtRequirement::AllowMissingOrFailed),
        Some(RequiresType::ExtractOnlyWithoutValidation(_)) => {
            d.not_supported("extract_only_without_validation")
        }
        None => d.refused("requires nothing; leave it out"),
    }
}

fn provider(d: &mut Decoder, name: &str, value: PbJwtProvider) -> Option<JwtProvider> {
    let PbJwtProvider {
        issuer,
        audiences,
        subjects,
        require_expiration,
        max_lifetime,
        forward,
        from_headers,
        from_params,
        from_cookies,
        forward_payload_header,
        pad_forward_payload_header,
        payload_in_metadata,
        normalize_payload_in_metadata,
        header_in_metadata,
        failed_status_in_metadata,
        clock_skew_seconds,
        // How much is remembered is no matter of what is answered.
        jwt_cache_config: _,
        claim_to_headers,
        clear_route_cache,
        jwks_source_specifier,
    } = value;
    unsupported!(d; failed_status_in_metadata);
    let subjects = match subjects {
        None => Some(None),
        Some(value) => d.field("subjects", |d| super::super::matchers::string(d, value)).map(Some),
    };
    let max_lifetime = match max_lifetime {
        None => Some(None),
        Some(value) => common::duration(d, "max_lifetime", value).map(Some),
    };
    let jwks = match jwks_source_specifier {
        Some(JwksSourceSpecifier::LocalJwks(source)) => d
            .field("local_jwks", |d| local(d, source))
            .map(|jwks| JwksSource::Local(Arc::new(jwks))),
        Some(JwksSourceSpecifier::RemoteJwks(value)) => {
            d.field("remote_jwks", |d| remote(d, value)).map(JwksSource::Remote)
        }
        None => d.refused("has neither local_jwks nor remote_jwks"),
    };
    let from_headers =
        d.all("from_headers", from_headers, |d, JwtHeader { name, value_prefix }| {
            let name = d.field("name", |d| any_header(d, &name))?.to_string();
            Some(JwtLocation::Header { name, prefix: value_prefix })
        });
    let mut locations = from_headers?;
    locations.extend(from_params.into_iter().map(JwtLocation::Parameter));
    locations.extend(from_cookies.into_iter().map(JwtLocation::Cookie));
    if locations.is_empty() {
        let (name, prefix) = (header::AUTHORIZATION.to_string(), "Bearer ".to_owned());
        locations.push(JwtLocation::Header { name, prefix });
        locations.push(JwtLocation::Parameter("access_token".to_owned()));
    }
    let forward_payload_header = match forward_payload_header.as_str() {
        "" => Some(None),
        name => d.field("forward_payload_header", |d| written_header(d, name)).map(Some),
    };
    let claim_to_headers = d.all("claim_to_headers", claim_to_headers, |d, value| {
        let JwtClaimToHeader { header_name, claim_name, claim_path } = value;
        let path: Vec<String> = match claim_path.is_empty() {
            // As Envoy: dots lead into objects.
            true => claim_name.split('.').map(str::to_owned).collect(),
            false => claim_path.into_iter().map(|segment| segment.key).collect(),
        };
        if path.iter().any(String::is_empty) {
            d.refuse("names no claim");
            return None;
        }
        let header = d.field("header_name", |d| written_header(d, &header_name))?;
        Some(ClaimToHeader { path, header })
    });
    let NormalizePayload { space_delimited_claims } =
        normalize_payload_in_metadata.unwrap_or_default();
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    Some(JwtProvider {
        name: name.to_owned(),
        issuer: some(issuer),
        audiences,
        subjects: subjects?,
        require_expiration,
        max_lifetime: max_lifetime?,
        clock_skew: match clock_skew_seconds {
            0 => CLOCK_SKEW_DEFAULT,
            seconds => Duration::from_secs(seconds.into()),
        },
        jwks: jwks?,
        locations,
        forward,
        forward_payload_header: forward_payload_header?,
        pad_forward_payload_header,
        payload_in_metadata: some(payload_in_metadata),
        header_in_metadata: some(header_in_metadata),
        space_delimited_claims,
        claim_to_headers: claim_to_headers?,
        clear_route_cache,
    })
}

fn any_header(d: &mut Decoder, name: &str) -> Option<HeaderName> {
    match HeaderName::try_from(name) {
        Ok(name) => Some(name),
        Err(_) => d.refused(format!("`{name}` is not a header's name")),
    }
}

fn written_header(d: &mut Decoder, name: &str) -> Option<HeaderName> {
    let name = any_header(d, name)?;
    match RESERVED.contains(&name) {
        true => d.refused(format!("`{name}` frames or routes the message")),
        false => Some(name),
    }
}

fn local(d: &mut Decoder, value: DataSource) -> Option<Jwks> {
    let DataSource { watched_directory, specifier } = value;
    unsupported!(d; watched_directory);
    let json = match specifier {
        Some(SourceSpecifier::InlineString(text)) => text.into_bytes(),
        Some(SourceSpecifier::InlineBytes(bytes)) => bytes,
        Some(SourceSpecifier::Filename(_)) => return d.not_supported("filename"),
        Some(SourceSpecifier::EnvironmentVariable(_)) => {
            return d.not_supported("environment_variable");
        }
        None => return d.refused("is empty"),
    };
    match Jwks::parse(&json) {
        Ok(jwks) => Some(jwks),
        Err(error) => d.refused(error.to_string()),
    }
}

fn remote(d: &mut Decoder, value: PbRemoteJwks) -> Option<RemoteJwks> {
    let PbRemoteJwks { http_uri, cache_duration, async_fetch, retry_policy } = value;
    // Keys are asked for with the first request that needs them; with `async_fetch` as well.
    let JwksAsyncFetch { fast_listener: _, failed_refetch_duration: _ } =
        async_fetch.unwrap_or_default();
    let uri = d.field("http_uri", |d| match http_uri {
        Some(value) => services::http_uri(d, value),
        None => d.refused("is missing"),
    });
    let cache_duration = match cache_duration {
        None => Some(CACHE_DURATION_DEFAULT),
        Some(value) => common::duration(d, "cache_duration", value),
    };
    let (retries, back_off) = match retry_policy {
        None => (0, BackOff::default()),
        Some(value) => d.field("retry_policy", |d| {
            let PbRetryPolicy {
                retry_back_off,
                num_retries,
                retry_on,
                retry_priority,
                retry_host_predicate,
                host_selection_retry_max_attempts,
            } = value;
            unsupported!(
                d; retry_on, retry_priority, retry_host_predicate,
            );
            if host_selection_retry_max_attempts != 0 {
                d.refuse_field("host_selection_retry_max_attempts", "is not supported");
            }
            let back_off = match retry_back_off {
                None => BackOff::default(),
                Some(value) => d.field("retry_back_off", |d| {
                    let base = value.base_interval;
                    let Some(base) = base else {
                        return d.field("base_interval", |d| d.refused("is missing"));
                    };
                    let base = common::duration(d, "base_interval", base)?;
                    let max = match value.max_interval {
                        None => base.saturating_mul(10),
                        Some(max) => common::duration(d, "max_interval", max)?,
                    };
                    Some(BackOff { base, max: max.max(base) })
                })?,
            };
            Some((num_retries.map_or(1, |retries| retries.value), back_off))
        })?,
    };
    Some(RemoteJwks { uri: uri?, cache_duration: cache_duration?, retries, back_off })
}
