//! Limits rates by buckets of the agent's own.
//!
//! Spec: `envoy.extensions.filters.http.local_ratelimit.v3`.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use http::{HeaderMap, HeaderName, HeaderValue};

use super::super::descriptors::Descriptor;
use crate::{
    model::filter::{LocalDescriptor, LocalRateLimit},
    proxy::token_bucket::Bucket,
};

/// The buckets of one filter's configuration.
#[derive(Debug)]
pub(in crate::proxy::http) struct Limiter {
    default: Default,
    /// As in the configuration.
    descriptors: Vec<(LocalDescriptor, Buckets)>,
    always_consume: bool,
}

#[derive(Debug)]
enum Default {
    None,
    /// It never has a token.
    Empty,
    Bucket(Arc<Bucket>),
}

/// Those of one descriptor.
#[derive(Debug)]
enum Buckets {
    One(Arc<Bucket>),
    /// One for each value of what was left open.
    Each(Mutex<Recent>),
}

/// Buckets by their descriptors' values; the one that was not used for longest goes first.
#[derive(Debug)]
struct Recent {
    max: usize,
    uses: u64,
    buckets: HashMap<Arc<[String]>, (u64, Arc<Bucket>)>,
    by_use: BTreeMap<u64, Arc<[String]>>,
}

impl Recent {
    fn of(&mut self, values: Arc<[String]>, new: impl FnOnce() -> Bucket) -> Arc<Bucket> {
        self.uses += 1;
        let entry = self.buckets.entry(Arc::clone(&values));
        let (used, bucket) = entry.or_insert_with(|| (0, Arc::new(new())));
        let bucket = Arc::clone(bucket);
        self.by_use.remove(&std::mem::replace(used, self.uses));
        self.by_use.insert(self.uses, values);
        if self.buckets.len() > self.max
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.buckets.remove(&oldest);
        }
        bucket
    }
}

/// What became of a request.
#[derive(Debug)]
pub(in crate::proxy::http) struct Judgement {
    pub(in crate::proxy::http) allowed: bool,
    /// The bucket that says what is left, and what its descriptor says of telling it.
    told: Option<(Arc<Bucket>, Option<bool>)>,
}

impl Judgement {
    /// What is told of the rest, where it is to be told.
    pub(in crate::proxy::http) fn headers(&self, by_default: bool, now: Instant) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some((bucket, told)) = &self.told
            && told.unwrap_or(by_default)
        {
            for (name, value) in [
                ("x-ratelimit-limit", bucket.max_tokens()),
                ("x-ratelimit-remaining", bucket.remaining(now)),
                ("x-ratelimit-reset", bucket.next(now).as_secs_f64().ceil() as u64),
            ] {
                headers.insert(HeaderName::from_static(name), HeaderValue::from(value));
            }
        }
        headers
    }
}

impl Limiter {
    pub(in crate::proxy::http) fn new(config: &LocalRateLimit, now: Instant) -> Self {
        let default = match config.bucket {
            None => Default::None,
            Some(bucket) if bucket.max_tokens == 0 => Default::Empty,
            Some(bucket) => Default::Bucket(Arc::new(Bucket::new(bucket, now))),
        };
        let buckets = |descriptor: &LocalDescriptor| {
            if descriptor.entries.iter().any(|(_, value)| value.is_empty()) {
                return Buckets::Each(Mutex::new(Recent {
                    max: config.max_dynamic,
                    uses: 0,
                    buckets: HashMap::new(),
                    by_use: BTreeMap::new(),
                }));
            }
            Buckets::One(Arc::new(Bucket::new(descriptor.bucket, now)))
        };
        let descriptors = config.descriptors.iter();
        let descriptors = descriptors.map(|one| (one.clone(), buckets(one))).collect();
        Self { default, descriptors, always_consume: config.always_consume }
    }

    /// Whether the configuration's values, where it has some, are the descriptor's.
    fn is_meant(config: &LocalDescriptor, descriptor: &Descriptor) -> bool {
        let mut pairs = config.entries.iter().zip(&descriptor.entries);
        config.entries.len() == descriptor.entries.len()
            && pairs.all(|((key, value), (other_key, other))| {
                key == other_key && (value.is_empty() || value == other)
            })
    }

    fn bucket(&self, descriptor: &Descriptor, now: Instant) -> Option<Arc<Bucket>> {
        let meant = || self.descriptors.iter().filter(|(c, _)| Self::is_meant(c, descriptor));
        // What names all values goes before what leaves some open.
        let one = meant().find_map(|(_, buckets)| match buckets {
            Buckets::One(bucket) => Some(Arc::clone(bucket)),
            Buckets::Each(_) => None,
        });
        one.or_else(|| {
            meant().find_map(|(config, buckets)| match buckets {
                Buckets::Each(recent) => {
                    let values = descriptor.entries.iter().map(|(_, value)| value.clone());
                    let mut recent = recent.lock().unwrap_or_else(PoisonError::into_inner);
                    Some(recent.of(values.collect(), || Bucket::new(config.bucket, now)))
                }
                Buckets::One(_) => None,
            })
        })
    }

    /// Counts a request under all of its descriptors that there are limits for.
    pub(in crate::proxy::http) fn judge(
        &self,
        descriptors: &[Descriptor],
        now: Instant,
    ) -> Judgement {
        let matched = descriptors.iter().filter_map(|d| Some((self.bucket(d, now)?, d)));
        let mut matched: Vec<(Arc<Bucket>, &Descriptor)> = matched.collect();
        // The strictest one first: what it refuses is not taken from the others.
        matched.sort_by(|(a, _), (b, _)| a.rate().total_cmp(&b.rate()));
        for (bucket, descriptor) in &matched {
            if !bucket.consume(descriptor.hits.unwrap_or(1), now) {
                let told = Some((Arc::clone(bucket), descriptor.x_ratelimit));
                return Judgement { allowed: false, told };
            }
        }
        let first = matched
            .first()
            .map(|(bucket, descriptor)| (Arc::clone(bucket), descriptor.x_ratelimit));
        if first.is_some() && !self.always_consume {
            return Judgement { allowed: true, told: first };
        }
        match &self.default {
            Default::None => Judgement { allowed: true, told: first },
            Default::Empty => Judgement { allowed: false, told: None },
            Default::Bucket(bucket) => {
                let own = || Some((Arc::clone(bucket), None));
                match bucket.consume(1, now) {
                    true => Judgement { allowed: true, told: first.or_else(own) },
                    false => Judgement { allowed: false, told: own() },
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
