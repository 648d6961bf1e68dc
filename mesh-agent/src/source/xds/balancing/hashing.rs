//! Policies that go by a request's hash.
//!
//! Spec: `envoy/extensions/load_balancing_policies/{ring_hash,maglev}/v3/*.proto`.

use envoy_types::pb::{
    envoy::{
        config::cluster::v3::cluster::{
            RingHashLbConfig, ring_hash_lb_config::HashFunction as PbHashFunction,
        },
        extensions::load_balancing_policies::{
            common::v3::locality_lb_config::LocalityWeightedLbConfig,
            maglev::v3::Maglev,
            ring_hash::v3::{RingHash, ring_hash::HashFunction as TypedHashFunction},
        },
    },
    google::protobuf::UInt64Value,
};

use super::super::reject::{Decoder, unsupported};
use crate::model::cluster::{Balancing, HashFunction, LbPolicy};

const RING_MIN_DEFAULT: u64 = 1024;
const RING_MAX: u64 = 8 << 20;
const MAGLEV_DEFAULT: u64 = 65_537;
const MAGLEV_MAX: u64 = 5_000_011;

pub(super) fn ring(d: &mut Decoder, value: RingHashLbConfig) -> Option<LbPolicy> {
    let RingHashLbConfig { minimum_ring_size, hash_function, maximum_ring_size } = value;
    let function = match PbHashFunction::try_from(hash_function) {
        Ok(PbHashFunction::XxHash) => Some(HashFunction::XxHash),
        Ok(PbHashFunction::MurmurHash2) => Some(HashFunction::MurmurHash2),
        Err(_) => unknown(d, hash_function),
    };
    sized(d, minimum_ring_size, maximum_ring_size, function)
}

#[expect(deprecated, reason = "a deprecated field that is set is refused too")]
pub(super) fn typed_ring(
    d: &mut Decoder,
    value: RingHash,
    balancing: &mut Balancing,
) -> Option<LbPolicy> {
    let RingHash {
        hash_function,
        minimum_ring_size,
        maximum_ring_size,
        use_hostname_for_hashing,
        hash_balance_factor,
        consistent_hashing_lb_config,
        locality_weighted_lb_config,
    } = value;
    unsupported!(d; use_hostname_for_hashing, hash_balance_factor, consistent_hashing_lb_config);
    weighted(locality_weighted_lb_config, balancing);
    let function = match TypedHashFunction::try_from(hash_function) {
        Ok(TypedHashFunction::DefaultHash | TypedHashFunction::XxHash) => {
            Some(HashFunction::XxHash)
        }
        Ok(TypedHashFunction::MurmurHash2) => Some(HashFunction::MurmurHash2),
        Err(_) => unknown(d, hash_function),
    };
    sized(d, minimum_ring_size, maximum_ring_size, function)
}

pub(super) fn typed_maglev(
    d: &mut Decoder,
    value: Maglev,
    balancing: &mut Balancing,
) -> Option<LbPolicy> {
    let Maglev { table_size, consistent_hashing_lb_config, locality_weighted_lb_config } = value;
    unsupported!(d; consistent_hashing_lb_config);
    weighted(locality_weighted_lb_config, balancing);
    maglev(d, table_size)
}

fn weighted(value: Option<LocalityWeightedLbConfig>, balancing: &mut Balancing) {
    if let Some(LocalityWeightedLbConfig {}) = value {
        balancing.locality_weighted = true;
    }
}

fn unknown<T>(d: &mut Decoder, function: i32) -> Option<T> {
    d.field("hash_function", |d| d.refused(format!("{function} is unknown")))
}

fn sized(
    d: &mut Decoder,
    min: Option<UInt64Value>,
    max: Option<UInt64Value>,
    function: Option<HashFunction>,
) -> Option<LbPolicy> {
    let size = |d: &mut Decoder, field: &str, value: Option<UInt64Value>, default| match value {
        None => Some(default),
        Some(UInt64Value { value: value @ 1..=RING_MAX }) => Some(value),
        Some(_) => d.field(field, |d| d.refused(format!("must be between 1 and {RING_MAX}"))),
    };
    let min_size = size(d, "minimum_ring_size", min, RING_MIN_DEFAULT);
    let max_size = size(d, "maximum_ring_size", max, RING_MAX);
    let (min_size, max_size) = (min_size?, max_size?);
    if min_size > max_size {
        return d.field("minimum_ring_size", |d| d.refused("is more than maximum_ring_size"));
    }
    Some(LbPolicy::RingHash { min_size, max_size, function: function? })
}

pub(super) fn maglev(d: &mut Decoder, table_size: Option<UInt64Value>) -> Option<LbPolicy> {
    let size = table_size.map_or(MAGLEV_DEFAULT, |size| size.value);
    let table_size = u32::try_from(size).ok().filter(|_| size <= MAGLEV_MAX && is_prime(size));
    match table_size {
        Some(table_size) => Some(LbPolicy::Maglev { table_size }),
        None => d.field("table_size", |d| {
            d.refused(format!("{size} is not a prime up to {MAGLEV_MAX}"))
        }),
    }
}

fn is_prime(n: u64) -> bool {
    n >= 2 && (2..).take_while(|i| i * i <= n).all(|i| !n.is_multiple_of(i))
}
