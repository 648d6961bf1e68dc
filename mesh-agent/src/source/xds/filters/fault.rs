//! Spec: `envoy.extensions.filters.http.fault.v3`.

use std::sync::Arc;

use envoy_types::pb::{
    envoy::{
        extensions::filters::{
            common::fault::v3::{FaultDelay as PbDelay, fault_delay::FaultDelaySecifier as By},
            http::fault::v3::{
                FaultAbort as PbAbort, HttpFault, fault_abort::ErrorType, fault_abort::HeaderAbort,
            },
        },
        r#type::v3::FractionalPercent,
    },
    google::protobuf::Any,
};

use super::super::{
    common, matchers,
    reject::{Decoder, unsupported},
};
use crate::model::{
    cluster::ClusterName,
    filter::{AbortBy, Fault, FaultAbort, FaultDelay, FaultKeys, HttpFilter, RouteFilterConfig},
    runtime::Fraction,
};

/// Envoy's.
const BODY_DEFAULT: &str = "fault filter abort";

pub(super) fn filter(d: &mut Decoder, any: &Any) -> Option<HttpFilter> {
    fault(d, any).map(HttpFilter::Fault)
}

pub(super) fn route(d: &mut Decoder, any: &Any) -> Option<RouteFilterConfig> {
    fault(d, any).map(RouteFilterConfig::Fault)
}

fn fault(d: &mut Decoder, any: &Any) -> Option<Arc<Fault>> {
    let HttpFault {
        delay,
        abort,
        upstream_cluster,
        headers,
        downstream_nodes,
        max_active_faults,
        response_rate_limit,
        delay_percent_runtime,
        abort_percent_runtime,
        delay_duration_runtime,
        abort_http_status_runtime,
        max_active_faults_runtime,
        response_rate_limit_percent_runtime,
        abort_grpc_status_runtime,
        // Statistics by a name that clients choose: there are none.
        disable_downstream_cluster_stats: _,
        filter_metadata,
    } = common::unpack(d, any)?;
    unsupported!(d; response_rate_limit, response_rate_limit_percent_runtime, filter_metadata);
    let delay = match delay {
        None => Some(None),
        Some(value) => d.field("delay", |d| self::delay(d, value)).map(Some),
    };
    let abort = match abort {
        None => Some(None),
        Some(value) => d.field("abort", |d| self::abort(d, value)).map(Some),
    };
    let headers = d.all("headers", headers, matchers::header);
    let key = |said: String, default: &str| match said.is_empty() {
        true => default.to_owned(),
        false => said,
    };
    let keys = FaultKeys {
        delay_percent: key(delay_percent_runtime, "fault.http.delay.fixed_delay_percent"),
        delay_duration: key(delay_duration_runtime, "fault.http.delay.fixed_duration_ms"),
        abort_percent: key(abort_percent_runtime, "fault.http.abort.abort_percent"),
        abort_http_status: key(abort_http_status_runtime, "fault.http.abort.http_status"),
        abort_grpc_status: key(abort_grpc_status_runtime, "fault.http.abort.grpc_status"),
        max_active: key(max_active_faults_runtime, "fault.http.max_active_faults"),
    };
    let cluster = (!upstream_cluster.is_empty()).then(|| ClusterName(upstream_cluster.into()));
    Some(Arc::new(Fault {
        delay: delay?,
        abort: abort?,
        upstream_cluster: cluster,
        headers: headers?,
        downstream_nodes,
        max_active: max_active_faults.map(|max| max.value.into()),
        keys,
    }))
}

fn delay(d: &mut Decoder, value: PbDelay) -> Option<FaultDelay> {
    let PbDelay { percentage, fault_delay_secifier } = value;
    let percentage = self::percentage(d, percentage);
    let fixed = match fault_delay_secifier {
        Some(By::FixedDelay(value)) => match common::duration(d, "fixed_delay", value)? {
            fixed if fixed.is_zero() => {
                return d.field("fixed_delay", |d| d.refused("must be above zero"));
            }
            fixed => Some(fixed),
        },
        Some(By::HeaderDelay(_)) => None,
        None => return d.refused("has neither fixed_delay nor header_delay"),
    };
    Some(FaultDelay { fixed, percentage: percentage? })
}

fn abort(d: &mut Decoder, value: PbAbort) -> Option<FaultAbort> {
    let PbAbort { percentage, response_body, error_type } = value;
    let percentage = self::percentage(d, percentage);
    let by = match error_type {
        Some(ErrorType::HttpStatus(status)) => match u16::try_from(status) {
            Ok(status @ 200..600) => AbortBy::HttpStatus(status),
            _ => {
                let reason = format!("{status} is not within 200 to 599");
                return d.field("http_status", |d| d.refused(reason));
            }
        },
        Some(ErrorType::GrpcStatus(status)) => AbortBy::GrpcStatus(status),
        Some(ErrorType::HeaderAbort(HeaderAbort {})) => AbortBy::Header,
        None => return d.refused("has none of http_status, grpc_status and header_abort"),
    };
    let body = if response_body.is_empty() { BODY_DEFAULT.into() } else { response_body.into() };
    Some(FaultAbort { by, percentage: percentage?, body })
}

/// Unset is never, as in Envoy.
fn percentage(d: &mut Decoder, value: Option<FractionalPercent>) -> Option<Fraction> {
    match value {
        None => Some(Fraction::percent(0)),
        Some(value) => d.field("percentage", |d| common::fraction(d, value)),
    }
}
