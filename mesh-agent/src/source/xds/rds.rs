//! Route configurations.
//!
//! Spec: `envoy/config/route/v3/{route,route_components}.proto`. One file for each part:
//! what a request has to match, what becomes of it, and what is said for single filters.

mod action;
mod clusters;
mod direct;
mod hash_policy;
mod matches;
mod mirror;
mod redirect;
mod retry;

use std::{collections::HashSet, sync::Arc};

use envoy_types::pb::envoy::config::route::v3::{
    Route as PbRoute, RouteConfiguration as PbRouteConfiguration, Vhds,
    VirtualCluster as PbVirtualCluster, VirtualHost as PbVirtualHost, route::Action,
    virtual_host::TlsRequirementType as TlsRequirement,
};

pub(super) use self::clusters::{authority, check_weights, named_weight, one_cluster};
pub(super) use self::matches::matches as route_match;
use super::{
    ResourceType, config_source, filters, header_mutation, matchers, rate_limits,
    reject::{Decoder, unsupported},
    traces,
};
use crate::model::{
    filter::PerFilter,
    header_mutation::HeaderMutations,
    retry::Attempts,
    route::{
        Domain, PathMatch, Redirect, RequireTls, Route, RouteAction, RouteConfiguration,
        RouteMatch, VirtualCluster, VirtualHost,
    },
};

/// Envoy's default for `max_direct_response_body_size_bytes`.
const DIRECT_RESPONSE_MAX_BYTES: u32 = 4096;

pub(super) fn configuration(
    d: &mut Decoder,
    value: PbRouteConfiguration,
) -> Option<RouteConfiguration> {
    let PbRouteConfiguration {
        name,
        virtual_hosts,
        vhds,
        internal_only_headers,
        response_headers_to_add,
        response_headers_to_remove,
        request_headers_to_add,
        request_headers_to_remove,
        most_specific_header_mutations_wins,
        validate_clusters,
        max_direct_response_body_size_bytes,
        cluster_specifier_plugins,
        request_mirror_policies,
        ignore_port_in_host_matching,
        vhost_header,
        ignore_path_parameters_in_path_matching,
        typed_per_filter_config,
        // Notes of the control plane: nothing that reads them is supported.
        metadata: _,
        route_specifiers,
    } = value;
    unsupported!(
        d;
        internal_only_headers, cluster_specifier_plugins, vhost_header, route_specifiers,
    );
    let mirrors = mirror::policies(d, request_mirror_policies);
    let per_filter = filters::per_filter_without_on_demand(d, typed_per_filter_config);
    let headers = header_mutation::Fields {
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
    };
    let headers = header_mutation::mutations(d, headers);
    let vhds = match vhds {
        None => false,
        Some(Vhds { config_source }) => {
            d.field("vhds", |d| match config_source {
                None => d.refuse_field("config_source", "is missing"),
                source => {
                    let kind = ResourceType::VirtualHost;
                    config_source::reference(d, "config_source", source, kind, &name);
                }
            });
            true
        }
    };
    let body_max =
        max_direct_response_body_size_bytes.map_or(DIRECT_RESPONSE_MAX_BYTES, |max| max.value);

    let mut seen = Seen::default();
    let mut whole = Some(Vec::new());
    for (i, host) in virtual_hosts.into_iter().enumerate() {
        let index = if host.name.is_empty() { i.to_string() } else { host.name.clone() };
        let host = d.item("virtual_hosts", index, |d| virtual_host(d, host, &mut seen, body_max));
        match (&mut whole, host) {
            (Some(list), Some(host)) => list.push(Arc::new(host)),
            _ => whole = None,
        }
    }
    Some(RouteConfiguration {
        name: name.into(),
        virtual_hosts: whole?,
        vhds,
        discovered: Vec::new(),
        validate_clusters: validate_clusters.map(|validate| validate.value),
        headers: headers?,
        most_specific_header_mutations_wins,
        per_filter: per_filter?,
        mirrors: mirrors?,
        ignore_port_in_host_matching,
        ignore_path_parameters: ignore_path_parameters_in_path_matching,
    })
}

/// A route configuration that is part of another resource.
pub(super) fn inline(d: &mut Decoder, value: PbRouteConfiguration) -> Option<RouteConfiguration> {
    let routes = configuration(d, value)?;
    if routes.vhds {
        d.refuse_field("vhds", "is for a route configuration that comes by RDS");
    }
    Some(routes)
}

/// A virtual host that arrives by itself. What has to be unique within its route
/// configuration is for `snapshot` to check.
pub(super) fn discovered_host(d: &mut Decoder, value: PbVirtualHost) -> Option<VirtualHost> {
    virtual_host(d, value, &mut Seen::default(), DIRECT_RESPONSE_MAX_BYTES)
}

/// What has to be unique within one configuration.
#[derive(Default)]
struct Seen {
    hosts: HashSet<String>,
    domains: HashSet<Domain>,
}

#[expect(deprecated, reason = "a deprecated field that is set is refused too")]
fn virtual_host(
    d: &mut Decoder,
    value: PbVirtualHost,
    seen: &mut Seen,
    body_max: u32,
) -> Option<VirtualHost> {
    let PbVirtualHost {
        name,
        domains,
        routes,
        matcher,
        require_tls,
        virtual_clusters,
        rate_limits,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        cors,
        typed_per_filter_config,
        include_request_attempt_count,
        include_attempt_count_in_response,
        retry_policy,
        retry_policy_typed_config,
        hedge_policy,
        include_is_timeout_retry_header,
        per_request_buffer_limit_bytes,
        request_body_buffer_limit,
        request_mirror_policies,
        // Notes of the control plane: nothing that reads them is supported.
        metadata: _,
        route_specifiers,
    } = value;
    unsupported!(
        d;
        matcher, hedge_policy, route_specifiers,
    );
    let mirrors = mirror::policies(d, request_mirror_policies);
    let virtual_clusters = d.all("virtual_clusters", virtual_clusters, virtual_cluster);
    let retry = retry::policy(d, retry_policy, retry_policy_typed_config);
    let buffer_max_bytes =
        retry::buffer_limit(d, per_request_buffer_limit_bytes, request_body_buffer_limit);
    let headers = header_mutation::Fields {
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
    };
    let headers = header_mutation::mutations(d, headers);
    let cors = filters::cors(d, cors);
    let rate_limits = rate_limits::all(d, rate_limits).map(Arc::new);
    let per_filter = filters::per_filter(d, typed_per_filter_config);
    let on_demand = per_filter.as_ref().and_then(PerFilter::on_demand);
    if name.is_empty() {
        d.refuse_field("name", "is missing");
    } else if !seen.hosts.insert(name.clone()) {
        d.refuse_field("name", "is given twice");
    }
    if domains.is_empty() {
        d.refuse_field("domains", "is empty");
    }
    let domains = d.all("domains", domains, |d, text| {
        let domain = domain(d, &text)?;
        if !seen.domains.insert(domain.clone()) {
            return d.refused(format!("`{text}` is given twice in this route configuration"));
        }
        Some(domain)
    });
    let routes = d.all("routes", routes, |d, value| {
        let mut route = route(d, value, body_max)?;
        // The most specific one counts.
        route.on_demand = route.on_demand.or(on_demand);
        Some(route)
    });
    let require_tls = match TlsRequirement::try_from(require_tls) {
        Ok(TlsRequirement::None) => Some(None),
        Ok(TlsRequirement::ExternalOnly) => Some(Some(true)),
        Ok(TlsRequirement::All) => Some(Some(false)),
        Err(_) => d.field("require_tls", |d| d.refused(format!("{require_tls} is unknown"))),
    };
    let require_tls = require_tls?.map(|external_only| RequireTls {
        external_only,
        redirect: Box::new(Route {
            name: "".into(),
            stat_prefix: None,
            matches: RouteMatch::path(PathMatch::Prefix(String::new())),
            action: RouteAction::Redirect(Redirect::to_tls()),
            headers: HeaderMutations::default(),
            on_demand: None,
            tracing: None,
            per_filter: PerFilter::default(),
        }),
    });
    let attempts = Attempts {
        retry: retry?,
        count_in_request: include_request_attempt_count,
        count_in_response: include_attempt_count_in_response,
        timeout_in_request: include_is_timeout_retry_header,
        buffer_max_bytes: buffer_max_bytes?,
    };
    let mut routes = routes?;
    retry::inherit(&mut routes, &attempts);
    let (cors, rate_limits) = (cors?, rate_limits?);
    for route in &mut routes {
        if let RouteAction::Forward(action) = &mut route.action {
            action.cors.extend(cors.clone());
            action.rate_limits.host = Arc::clone(&rate_limits);
        }
    }
    Some(VirtualHost {
        name: name.into(),
        domains: domains?,
        routes,
        require_tls,
        headers: headers?,
        per_filter: per_filter?,
        mirrors: mirrors?,
        virtual_clusters: virtual_clusters?,
    })
}

fn virtual_cluster(d: &mut Decoder, value: PbVirtualCluster) -> Option<VirtualCluster> {
    let PbVirtualCluster { headers, name } = value;
    if name.is_empty() {
        d.refuse_field("name", "is missing");
    }
    if headers.is_empty() {
        d.refuse_field("headers", "is empty");
    }
    let headers = d.all("headers", headers, matchers::header)?;
    Some(VirtualCluster { name: name.into(), headers })
}

/// Spec: `envoy.config.route.v3.VirtualHost.domains`. A `*` stands at one end only.
fn domain(d: &mut Decoder, text: &str) -> Option<Domain> {
    let text = text.to_ascii_lowercase();
    let literal = |s: &str| (!s.is_empty() && !s.contains('*')).then(|| s.to_owned());
    let domain = match (text.strip_prefix('*'), text.strip_suffix('*')) {
        (Some(""), _) => Some(Domain::Any),
        (Some(suffix), _) => literal(suffix).map(Domain::Suffix),
        (None, Some(prefix)) => literal(prefix).map(Domain::Prefix),
        (None, None) => literal(&text).map(Domain::Exact),
    };
    if domain.is_none() {
        d.refuse(format!("`{text}` is not a domain: `*` may stand first or last, once"));
    }
    domain
}

#[expect(deprecated, reason = "a deprecated field that is set is refused too")]
fn route(d: &mut Decoder, value: PbRoute, body_max: u32) -> Option<Route> {
    let PbRoute {
        name,
        r#match,
        // Notes of the control plane: nothing that reads them is supported.
        metadata: _,
        decorator,
        typed_per_filter_config,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        tracing,
        per_request_buffer_limit_bytes,
        stat_prefix,
        request_body_buffer_limit,
        route_specifiers,
        action,
    } = value;
    unsupported!(d; route_specifiers);
    let tracing = traces::of_route(d, tracing, decorator);
    let buffer_max_bytes =
        retry::buffer_limit(d, per_request_buffer_limit_bytes, request_body_buffer_limit);
    let per_filter = filters::per_filter(d, typed_per_filter_config);
    let on_demand = per_filter.as_ref().and_then(PerFilter::on_demand);
    let headers = header_mutation::Fields {
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
    };
    let headers = header_mutation::mutations(d, headers);
    let matches = d.field("match", |d| match r#match {
        Some(value) => matches::matches(d, value),
        None => d.refused("is missing"),
    });
    let action = match action {
        Some(Action::Route(value)) => {
            let matched = matches.as_ref().map(|matches| &matches.path);
            let forward = d.field("route", |d| action::forward(d, value, matched));
            forward.map(|forward| RouteAction::Forward(Box::new(forward)))
        }
        Some(Action::DirectResponse(value)) => d
            .field("direct_response", |d| direct::response(d, value, body_max))
            .map(RouteAction::DirectResponse),
        Some(Action::Redirect(value)) => {
            d.field("redirect", |d| redirect::redirect(d, value)).map(RouteAction::Redirect)
        }
        Some(Action::FilterAction(_)) => d.not_supported("filter_action"),
        Some(Action::NonForwardingAction(_)) => d.not_supported("non_forwarding_action"),
        None => d.refused("has no action: route, redirect or direct_response"),
    };
    let mut action = action?;
    if let RouteAction::Forward(action) = &mut action {
        action.attempts.buffer_max_bytes = buffer_max_bytes?;
    }
    Some(Route {
        name: name.into(),
        stat_prefix: (!stat_prefix.is_empty()).then(|| stat_prefix.into()),
        matches: matches?,
        action,
        headers: headers?,
        on_demand,
        tracing: tracing?,
        per_filter: per_filter?,
    })
}
