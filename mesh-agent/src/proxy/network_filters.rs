//! Network filters that ask how many connections there are and how fast they come, in the
//! chain's order; as in Envoy, before those that wait for a connection's first byte.
//!
//! Spec: `envoy.extensions.filters.network.{connection_limit,local_ratelimit}.v3`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::{Failure, http::FilterMemory};
use crate::{
    model::{listener::NetworkFilter, runtime::Runtime},
    observe::flags::ResponseFlag,
    policy::Flow,
};

/// Why a connection is refused that a bucket has no token for.
pub(super) const TOO_FAST: &str = "local_ratelimit";

/// So many connections over a limit are held back at once; others are closed at once.
const HELD_BACK_MAX: usize = 1024;

/// The connections that one `connection_limit` counts.
#[derive(Debug, Default)]
pub(super) struct Population {
    living: AtomicU64,
    held_back: AtomicUsize,
}

/// One of them, for as long as this lives.
#[derive(Debug)]
pub(super) struct Counted(Arc<Population>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.living.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection over the limit that is to be closed only later.
#[derive(Debug)]
pub(super) struct HeldBack {
    of: Arc<Population>,
    pub(super) delay: Duration,
}

impl Drop for HeldBack {
    fn drop(&mut self) {
        self.of.held_back.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Population {
    /// One more, unless there are `max`.
    fn enter(self: &Arc<Self>, max: u64) -> Option<Counted> {
        let more = |living| (living < max).then_some(living + 1);
        let entered = self.living.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        entered.is_ok().then(|| Counted(Arc::clone(self)))
    }

    fn hold_back(self: &Arc<Self>, delay: Duration) -> Option<HeldBack> {
        let more = |held| (held < HELD_BACK_MAX).then_some(held + 1);
        let held = self.held_back.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        held.is_ok().then(|| HeldBack { of: Arc::clone(self), delay })
    }
}

/// Why a connection is not let in, and what it waits for before it is closed.
#[derive(Debug)]
pub(super) struct Limited {
    pub(super) failure: Failure,
    pub(super) held_back: Option<HeldBack>,
}

/// Asks them all; what is returned is to be kept as long as the connection lives.
///
/// # Errors
/// The first that is over its limit.
pub(super) fn enter(
    memory: &FilterMemory,
    flow: &Flow,
    runtime: &Runtime,
    now: Instant,
) -> Result<Vec<Counted>, Box<Limited>> {
    let mut counted = Vec::new();
    for filter in flow.chain().map_or(&[][..], |chain| &chain.filters) {
        match filter {
            NetworkFilter::ConnectionLimit(limit) if runtime.is_on(&limit.enabled) => {
                let population = memory.population(flow.pod(), limit);
                let Some(one) = population.enter(limit.max_connections) else {
                    let held_back = limit.delay.and_then(|delay| population.hold_back(delay));
                    let max = limit.max_connections;
                    let detail = format!("connection_limit: there are {max} connections");
                    return Err(limited("connection_limit", detail, held_back));
                };
                counted.push(one);
            }
            NetworkFilter::LocalRateLimit(limit) if runtime.is_on(&limit.enabled) => {
                if !memory.rate(flow.pod(), limit, now).consume(1, now) {
                    let detail = "local_ratelimit: connections come too fast".to_owned();
                    return Err(limited(TOO_FAST, detail, None));
                }
            }
            NetworkFilter::ConnectionLimit(_)
            | NetworkFilter::LocalRateLimit(_)
            | NetworkFilter::Rbac(_)
            | NetworkFilter::SniCluster => {}
        }
    }
    Ok(counted)
}

fn limited(reason: &'static str, detail: String, held_back: Option<HeldBack>) -> Box<Limited> {
    let flag = ResponseFlag::RateLimited;
    let failure = Failure { flag, reason, policy: None, detail, transport: None };
    Box::new(Limited { failure, held_back })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{
            filter::TokenBucket,
            listener::{ConnectionLimit, ConnectionRateLimit, Direction, FilterChainMatch},
            runtime::RuntimeFlag,
        },
        policy::fixtures::{chain, listener, outbound_to, snapshot},
    };

    fn flow(filters: Vec<NetworkFilter>) -> Flow {
        let mut chain = chain("limited", FilterChainMatch::default());
        chain.filters = filters;
        let listener = listener(Direction::Outbound, "10.96.0.1:80", vec![chain], None);
        let snapshot = snapshot(vec![listener], Vec::new());
        Flow::outbound(outbound_to("10.96.0.1:80"), &snapshot, Default::default()).unwrap()
    }

    fn on() -> RuntimeFlag {
        RuntimeFlag { key: "limits".to_owned(), default: true }
    }

    fn at_most(max_connections: u64, delay: Option<Duration>) -> Arc<ConnectionLimit> {
        Arc::new(ConnectionLimit { max_connections, delay, enabled: on() })
    }

    #[test]
    fn so_many_connections_live_at_once() {
        let (memory, runtime, now) = (FilterMemory::default(), Runtime::default(), Instant::now());
        let flow = flow(vec![NetworkFilter::ConnectionLimit(at_most(2, None))]);
        let enter = || enter(&memory, &flow, &runtime, now);
        let (one, two) = (enter().unwrap(), enter().unwrap());
        let limited = enter().unwrap_err();
        assert_eq!(limited.failure.reason, "connection_limit");
        assert!(limited.held_back.is_none());
        drop(one);
        let three = enter().unwrap();
        assert!(enter().is_err());
        drop((two, three));
        assert!(enter().is_ok());
    }

    #[test]
    fn what_a_later_filter_refuses_is_not_counted_by_an_earlier_one() {
        let (memory, runtime, now) = (FilterMemory::default(), Runtime::default(), Instant::now());
        let (wide, narrow) = (at_most(2, None), at_most(1, Some(Duration::from_secs(1))));
        let both = [Arc::clone(&wide), narrow].map(NetworkFilter::ConnectionLimit);
        let (flow, alone) = (flow(both.into()), flow(vec![NetworkFilter::ConnectionLimit(wide)]));
        let _one = enter(&memory, &flow, &runtime, now).unwrap();
        let limited = enter(&memory, &flow, &runtime, now).unwrap_err();
        assert_eq!(limited.held_back.as_ref().unwrap().delay, Duration::from_secs(1));
        let _two = enter(&memory, &alone, &runtime, now).unwrap();
        assert!(enter(&memory, &alone, &runtime, now).is_err());
    }

    #[test]
    fn not_too_many_are_held_back() {
        let population = Arc::<Population>::default();
        let delay = Duration::from_secs(1);
        let held: Vec<_> = (0..HELD_BACK_MAX).map(|_| population.hold_back(delay)).collect();
        assert!(held.iter().all(Option::is_some));
        assert!(population.hold_back(delay).is_none());
        drop(held);
        assert!(population.hold_back(delay).is_some());
    }

    #[test]
    fn buckets_are_shared_by_key_and_measure() {
        let (memory, runtime, now) = (FilterMemory::default(), Runtime::default(), Instant::now());
        let bucket = |max_tokens| TokenBucket {
            max_tokens,
            tokens_per_fill: 1,
            fill_interval: Duration::from_secs(3600),
        };
        let limit = |share_key: &str, max_tokens| {
            let (bucket, share_key) = (bucket(max_tokens), share_key.into());
            let limit = ConnectionRateLimit { bucket, share_key, enabled: on() };
            flow(vec![NetworkFilter::LocalRateLimit(Arc::new(limit))])
        };
        let passes = |flow: &Flow| enter(&memory, flow, &runtime, now).is_ok();
        let (own, other) = (limit("", 1), limit("", 1));
        assert!(passes(&own) && !passes(&own) && passes(&other));
        let (one, two, wider) = (limit("k", 2), limit("k", 2), limit("k", 3));
        assert!(passes(&one) && passes(&two) && !passes(&one) && !passes(&two));
        assert!(passes(&wider), "another measure is another bucket");
    }
}
