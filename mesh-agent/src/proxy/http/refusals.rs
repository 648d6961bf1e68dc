//! What is answered to requests that are not sent on: by the guard, by policy, for want of a
//! route, a cluster or an endpoint.

use std::{borrow::Cow, sync::Arc};

use http::{HeaderValue, StatusCode};

use super::{headers, record::RequestLog, reply::Reply};
use crate::{
    codec::http::Refusal,
    model::route::{ForwardAction, RouteAction},
    observe::flags::ResponseFlag,
    policy::Denied,
    route::NoDestination,
};

/// What the guard refused.
pub(super) fn refuse(refusal: Refusal) -> Reply {
    let body = match refusal {
        Refusal::TooLarge => "Request Header Fields Too Large",
        Refusal::Timeout => "Request Timeout",
        Refusal::TransferEncoding => "Not Implemented",
        Refusal::Fragment => "",
        _ => "Bad Request",
    };
    let flag = (refusal != Refusal::Timeout).then_some(ResponseFlag::DownstreamProtocolError);
    let reply = Reply::new(refusal.status(), body, flag, refusal.to_string());
    Reply { close: true, ..reply }
}

pub(super) fn no_route(details: impl Into<Cow<'static, str>>) -> Reply {
    let flag = Some(ResponseFlag::NoRouteFound);
    let code = Some("route_not_found".into());
    Reply { code, ..Reply::new(StatusCode::NOT_FOUND, "", flag, details) }
}

/// Where a cluster was asked for and did not come.
pub(super) fn unknown_cluster(
    error: &NoDestination,
    action: &RouteAction,
    log: &mut RequestLog,
) -> Reply {
    match action {
        RouteAction::Forward(action) => no_destination(error, action, log),
        RouteAction::Redirect(_) | RouteAction::DirectResponse(_) => no_route(error.to_string()),
    }
}

pub(super) fn denied_reply(denied: &Denied) -> Reply {
    let (body, flag, why) = match denied.status() {
        StatusCode::BAD_REQUEST => ("Bad Request", ResponseFlag::Denied, "rbac_access_denied"),
        StatusCode::INTERNAL_SERVER_ERROR => {
            ("", ResponseFlag::NoFilterConfigFound, "missing_filter_config")
        }
        _ => ("RBAC: access denied", ResponseFlag::Denied, "rbac_access_denied"),
    };
    let by = denied.policy().unwrap_or("none");
    let code = match flag {
        ResponseFlag::Denied => Some(format!("rbac_access_denied_matched_policy[{by}]").into()),
        _ => None,
    };
    Reply { code, ..Reply::new(denied.status(), body, Some(flag), format!("{why}: {denied}")) }
}

pub(super) fn no_destination(
    error: &NoDestination,
    action: &ForwardAction,
    log: &mut RequestLog,
) -> Reply {
    log.record.cluster = error.cluster().cloned();
    let (flag, body) = match error {
        NoDestination::NoHealthyEndpoint { .. } => {
            (ResponseFlag::NoHealthyUpstream, "no healthy upstream")
        }
        NoDestination::UnknownCluster { .. } => (ResponseFlag::NoClusterFound, ""),
        NoDestination::DropOverload { category, unconditional, .. } => {
            log.record.dropped = Some(Arc::clone(category));
            match unconditional {
                true => (ResponseFlag::UnconditionalDropOverload, "unconditional drop overload"),
                false => (ResponseFlag::DropOverload, "drop overload"),
            }
        }
        NoDestination::NoCluster | NoDestination::NotPermitted { .. } => {
            (ResponseFlag::NoRouteFound, "no healthy upstream")
        }
    };
    let code = match error {
        NoDestination::UnknownCluster { .. } => "cluster_not_found",
        NoDestination::DropOverload { unconditional: true, .. } => "unconditional_drop_overload",
        NoDestination::DropOverload { .. } => "drop_overload",
        _ => "no_healthy_upstream",
    };
    let mut reply = Reply::upstream_reset(flag, body, error.to_string());
    reply.code = Some(code.into());
    let no_endpoint = matches!(error, NoDestination::NoHealthyEndpoint { .. });
    // Envoy began one, and found nobody.
    if no_endpoint && let Some(logging) = &mut log.logging {
        logging.attempts(1);
    }
    if no_endpoint && action.attempts.count_in_response {
        let headers = reply.headers.get_or_insert_default();
        headers.insert(headers::ATTEMPT_COUNT, HeaderValue::from(1));
    }
    match (error, StatusCode::from_u16(action.cluster_not_found_status)) {
        (NoDestination::UnknownCluster { .. }, Ok(status)) => Reply { status, ..reply },
        _ => reply,
    }
}
