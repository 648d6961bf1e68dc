use std::time::Duration;

use super::*;
use crate::model::{filter::TokenBucket, rate_limit::HostRateLimits};

fn bucket(max_tokens: u32) -> TokenBucket {
    TokenBucket { max_tokens, tokens_per_fill: 1, fill_interval: Duration::from_secs(1000) }
}

fn config(own: Option<u32>, descriptors: &[(&str, u32)], always_consume: bool) -> LocalRateLimit {
    let descriptors = descriptors.iter().map(|(value, max)| LocalDescriptor {
        entries: vec![("k".to_owned(), (*value).to_owned())],
        bucket: bucket(*max),
    });
    LocalRateLimit {
        status: 429,
        resource_exhausted: false,
        bucket: own.map(bucket),
        enabled: None,
        enforced: None,
        request: Arc::default(),
        response: Arc::default(),
        descriptors: descriptors.collect(),
        rate_limits: Vec::new(),
        stage: 0,
        host: HostRateLimits::Override,
        always_consume,
        max_dynamic: 2,
        per_connection: false,
        x_ratelimit: false,
    }
}

fn of(value: &str) -> Descriptor {
    let entries = vec![("k".to_owned(), value.to_owned())];
    Descriptor { entries, hits: None, x_ratelimit: None }
}

/// How many of ten requests pass.
fn passed(limiter: &Limiter, descriptors: &[Descriptor], now: Instant) -> usize {
    (0..10).filter(|_| limiter.judge(descriptors, now).allowed).count()
}

#[test]
fn descriptors_have_their_own_limits_beside_the_filters() {
    let now = Instant::now();
    let limiter = Limiter::new(&config(Some(5), &[("a", 2)], true), now);
    assert_eq!(passed(&limiter, &[of("a")], now), 2);
    assert_eq!(passed(&limiter, &[of("b")], now), 3);
    let limiter = Limiter::new(&config(Some(1), &[("a", 2)], false), now);
    assert_eq!(passed(&limiter, &[of("a")], now), 2);
    assert_eq!(passed(&limiter, &[], now), 1);
    assert_eq!(passed(&Limiter::new(&config(Some(0), &[], true), now), &[], now), 0);
    assert_eq!(passed(&Limiter::new(&config(None, &[], true), now), &[], now), 10);
}

#[test]
fn a_value_left_open_has_a_bucket_for_each_and_few_of_them() {
    let now = Instant::now();
    let limiter = Limiter::new(&config(None, &[("", 1), ("named", 3)], true), now);
    assert_eq!(passed(&limiter, &[of("named")], now), 3);
    assert_eq!(passed(&limiter, &[of("a")], now), 1);
    assert_eq!(passed(&limiter, &[of("b")], now), 1);
    assert_eq!(passed(&limiter, &[of("a")], now), 0);
    // The third one takes the place of `b`, which was used before `a`.
    assert_eq!(passed(&limiter, &[of("c")], now), 1);
    assert_eq!(passed(&limiter, &[of("a")], now), 0);
    assert_eq!(passed(&limiter, &[of("b")], now), 1);
}

#[test]
fn responses_tell_what_is_left_where_they_are_to() {
    let now = Instant::now();
    let limiter = Limiter::new(&config(Some(1), &[], true), now);
    let judgement = limiter.judge(&[], now);
    assert!(judgement.headers(false, now).is_empty());
    let headers = judgement.headers(true, now);
    assert_eq!(headers["x-ratelimit-limit"], "1");
    assert_eq!(headers["x-ratelimit-remaining"], "0");
    assert_eq!(headers["x-ratelimit-reset"], "1000");
}
