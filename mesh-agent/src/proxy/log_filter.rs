//! Which connections and requests an access log wants a line of.

use std::time::Duration;

use crate::{
    model::{
        access_log::{Comparison, LogFilter},
        route::HeaderMatcher,
        runtime::Runtime,
    },
    observe::flags::ResponseFlags,
};

/// What is asked of what ended.
pub(super) trait Ended {
    /// 0 where there was no response.
    fn status(&self) -> u16;
    fn elapsed(&self) -> Duration;
    fn flags(&self) -> ResponseFlags;
    /// Whether the request's headers are so; `false` where there was no request.
    fn has_header(&self, matcher: &HeaderMatcher) -> bool;
    /// gRPC's status code.
    fn grpc_status(&self) -> u32;
}

pub(super) fn wants(filter: &LogFilter, ended: &impl Ended, runtime: &Runtime) -> bool {
    let compare = |comparison: &Comparison, value: u64| {
        let Comparison { op, value: with, runtime_key } = comparison;
        let with = match runtime_key.as_str() {
            "" => u64::from(*with),
            key => runtime.integer(key, u64::from(*with)),
        };
        op.holds(value, with)
    };
    match filter {
        LogFilter::Status(comparison) => compare(comparison, ended.status().into()),
        LogFilter::Duration(comparison) => {
            let elapsed = u64::try_from(ended.elapsed().as_millis());
            compare(comparison, elapsed.unwrap_or(u64::MAX))
        }
        LogFilter::Header(matcher) => ended.has_header(matcher),
        LogFilter::Flags(flags) if flags.is_empty() => !ended.flags().is_empty(),
        LogFilter::Flags(flags) => {
            ended.flags().iter().any(|set| flags.iter().any(|f| f == set.as_str()))
        }
        LogFilter::Grpc { statuses, exclude } => {
            statuses.contains(&ended.grpc_status()) != *exclude
        }
        LogFilter::Runtime(fraction) => runtime.includes(fraction, rand::random()),
        LogFilter::And(all) => all.iter().all(|filter| wants(filter, ended, runtime)),
        LogFilter::Or(all) => all.iter().any(|filter| wants(filter, ended, runtime)),
    }
}
