//! How a cluster balances: its policy, in either of the two forms, and which endpoints
//! that chooses from.
//!
//! Spec: `envoy/config/cluster/v3/cluster.proto`,
//! `envoy/extensions/load_balancing_policies/*/v3/*.proto`.

use std::{sync::Arc, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{
                LoadBalancingPolicy,
                cluster::{
                    CommonLbConfig, LbConfig, LbPolicy as PbLbPolicy, LbSubsetConfig,
                    LeastRequestLbConfig, MaglevLbConfig, RingHashLbConfig, RoundRobinLbConfig,
                    SlowStartConfig as PbSlowStart, common_lb_config::LocalityConfigSpecifier,
                },
                load_balancing_policy::Policy,
            },
            core::v3::{RuntimeDouble as PbRuntimeDouble, TypedExtensionConfig},
        },
        extensions::load_balancing_policies::{
            cluster_provided::v3::ClusterProvided,
            common::v3::{
                LocalityLbConfig, SlowStartConfig as TypedSlowStart,
                locality_lb_config::LocalityConfigSpecifier as TypedLocality,
            },
            least_request::v3::{LeastRequest, least_request::SelectionMethod},
            maglev::v3::Maglev,
            random::v3::Random,
            ring_hash::v3::RingHash,
            round_robin::v3::RoundRobin,
            wrr_locality::v3::WrrLocality,
        },
        r#type::v3::Percent,
    },
    google::protobuf::{Any, Duration as PbDuration, UInt32Value},
};

mod hashing;
mod subsets;
mod zones;

pub(super) use self::subsets::{LB_METADATA, metadata_match};

use super::{
    common,
    reject::{Decoder, unsupported},
};
use crate::model::{
    cluster::{Balancing, HASH_TABLES_MAX_BYTES, LbPolicy, SlowStart, TableSpace},
    runtime::RuntimeDouble,
};

/// Envoy's `min_weight_percent`.
const MIN_WEIGHT_DEFAULT: f64 = 0.1;

/// Envoy's default and least `choice_count`.
const CHOICE_COUNT_MIN: u32 = 2;

/// Deeper than this no policy names another.
const DEPTH_MAX: usize = 4;

/// What a cluster says of it.
pub(super) struct Fields {
    pub(super) lb_policy: i32,
    pub(super) lb_config: Option<LbConfig>,
    pub(super) common_lb_config: Option<CommonLbConfig>,
    pub(super) load_balancing_policy: Option<LoadBalancingPolicy>,
    pub(super) lb_subset_config: Option<LbSubsetConfig>,
    /// The cluster is of type ORIGINAL_DST.
    pub(super) original_destination: bool,
}

/// What of a cluster says how it balances.
pub(super) struct Decoded {
    pub(super) policy: LbPolicy,
    pub(super) balancing: Balancing,
    /// For a policy that goes by hash.
    pub(super) table_space: Option<Arc<TableSpace>>,
}

/// The policy, which endpoints it chooses from, and room for the table it needs.
pub(super) fn decode(d: &mut Decoder, fields: Fields) -> Option<Decoded> {
    let field = match &fields.load_balancing_policy {
        Some(_) => "load_balancing_policy",
        None => "lb_policy",
    };
    let (policy, balancing) = policy_of(d, fields)?;
    let table_space = match policy.is_by_hash() {
        true => match TableSpace::reserve(policy) {
            Some(space) => Some(space),
            None => {
                let reason = format!(
                    "its table of {} bytes does not fit: those of all clusters that go by hash \
                     may take {HASH_TABLES_MAX_BYTES}",
                    policy.table_bytes()
                );
                return d.field(field, |d| d.refused(reason));
            }
        },
        false => None,
    };
    Some(Decoded { policy, balancing, table_space })
}

fn policy_of(d: &mut Decoder, fields: Fields) -> Option<(LbPolicy, Balancing)> {
    let Fields {
        lb_policy,
        lb_config,
        common_lb_config,
        load_balancing_policy,
        lb_subset_config,
        original_destination,
    } = fields;
    let mut balancing = Some(Balancing::default());
    let by_extension = load_balancing_policy.is_some()
        || lb_policy == PbLbPolicy::LoadBalancingPolicyConfig as i32;
    if let Some(value) = common_lb_config {
        balancing = d.field("common_lb_config", |d| common_config(d, value, by_extension));
    }
    if let Some(value) = lb_subset_config {
        d.field("lb_subset_config", |d| {
            if by_extension || original_destination {
                d.refuse("goes with lb_policy, and endpoints");
            }
            match (&mut balancing, subsets::subsets(d, value)) {
                (Some(balancing), Some(subsets)) => balancing.subsets = subsets,
                _ => balancing = None,
            }
        });
    }
    if !by_extension {
        let whole = balancing.is_some();
        let mut balancing = balancing.unwrap_or_default();
        let policy = named(d, lb_policy, lb_config, original_destination, &mut balancing);
        return whole.then_some((policy?, balancing));
    }
    if lb_config.is_some() {
        let reason = "its configuration means nothing beside load_balancing_policy";
        d.refuse_field("lb_policy", reason);
    }
    let mut balancing = balancing?;
    let policy = d.field("load_balancing_policy", |d| {
        let value = load_balancing_policy.unwrap_or_default();
        extensions(d, value, &mut balancing, original_destination, 0)
    });
    Some((policy?, balancing))
}

fn common_config(d: &mut Decoder, value: CommonLbConfig, by_extension: bool) -> Option<Balancing> {
    let CommonLbConfig {
        healthy_panic_threshold,
        // A window in which Envoy gathers updates to save itself work; here each
        // is applied at once.
        update_merge_window: _,
        ignore_new_hosts_until_first_hc,
        close_connections_on_host_set_change,
        consistent_hashing_lb_config,
        override_host_status,
        locality_config_specifier,
    } = value;
    unsupported!(
        d; close_connections_on_host_set_change, consistent_hashing_lb_config, override_host_status
    );
    let mut balancing =
        Balancing { ignore_new_hosts: ignore_new_hosts_until_first_hc, ..Balancing::default() };
    if let Some(Percent { value }) = healthy_panic_threshold {
        match value {
            // Whole percents, as Envoy's.
            0.0..=100.0 => balancing.panic_threshold = value as u8,
            _ => d.refuse_field("healthy_panic_threshold", format!("{value} is not a percentage")),
        }
    }
    if by_extension && locality_config_specifier.is_some() {
        d.refuse("its locality configuration belongs into the load_balancing_policy");
    }
    match locality_config_specifier {
        None => {}
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => {
            balancing.locality_weighted = true;
        }
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(value)) => {
            d.field("zone_aware_lb_config", |d| zones::common(d, value, &mut balancing));
        }
    }
    Some(balancing)
}

/// The first that is supported, as the proto asks of every client.
fn extensions(
    d: &mut Decoder,
    value: LoadBalancingPolicy,
    balancing: &mut Balancing,
    original_destination: bool,
    depth: usize,
) -> Option<LbPolicy> {
    let LoadBalancingPolicy { policies } = value;
    let known = policies.into_iter().enumerate().map(|(i, Policy { typed_extension_config })| {
        let TypedExtensionConfig { name, typed_config } =
            typed_extension_config.unwrap_or_default();
        (i, name, typed_config.unwrap_or_default())
    });
    let mut refused = Vec::new();
    for (i, name, any) in known {
        let supported = common::is::<RoundRobin>(&any)
            || common::is::<LeastRequest>(&any)
            || common::is::<Random>(&any)
            || common::is::<RingHash>(&any)
            || common::is::<Maglev>(&any)
            || common::is::<WrrLocality>(&any)
            || common::is::<ClusterProvided>(&any);
        if supported && depth < DEPTH_MAX {
            return d.item("policies", i, |d| {
                d.field("typed_extension_config", |d| {
                    d.field("typed_config", |d| {
                        extension(d, &any, balancing, original_destination, depth)
                    })
                })
            });
        }
        refused.push((i, name, common::type_name(&any)));
    }
    if refused.is_empty() {
        return d.field("policies", |d| d.refused("is missing"));
    }
    for (i, name, type_name) in refused {
        d.item("policies", i, |d| common::refuse_extension(d, &name, &type_name));
    }
    None
}

fn extension(
    d: &mut Decoder,
    any: &Any,
    balancing: &mut Balancing,
    original_destination: bool,
    depth: usize,
) -> Option<LbPolicy> {
    let provided = common::is::<ClusterProvided>(any);
    if provided != original_destination {
        return d.refused(match provided {
            true => "ClusterProvided is for ORIGINAL_DST",
            false => "must be ClusterProvided with ORIGINAL_DST",
        });
    }
    if provided {
        let ClusterProvided {} = common::unpack(d, any)?;
        return Some(LbPolicy::RoundRobin);
    }
    if common::is::<WrrLocality>(any) {
        let WrrLocality { endpoint_picking_policy } = common::unpack(d, any)?;
        balancing.locality_weighted = true;
        return d.field("endpoint_picking_policy", |d| {
            extensions(d, endpoint_picking_policy.unwrap_or_default(), balancing, false, depth + 1)
        });
    }
    if common::is::<RingHash>(any) {
        let value = common::unpack(d, any)?;
        return hashing::typed_ring(d, value, balancing);
    }
    if common::is::<Maglev>(any) {
        let value = common::unpack(d, any)?;
        return hashing::typed_maglev(d, value, balancing);
    }
    let (policy, locality) = if common::is::<RoundRobin>(any) {
        let RoundRobin { slow_start_config, locality_lb_config } = common::unpack(d, any)?;
        if let Some(value) = slow_start_config {
            let TypedSlowStart { slow_start_window, aggression, min_weight_percent } = value;
            slow_start(d, (slow_start_window, aggression, min_weight_percent), balancing);
        }
        (Some(LbPolicy::RoundRobin), locality_lb_config)
    } else if common::is::<Random>(any) {
        let Random { locality_lb_config } = common::unpack(d, any)?;
        (Some(LbPolicy::Random), locality_lb_config)
    } else {
        let value = common::unpack(d, any)?;
        typed_least_request(d, value, balancing)
    };
    if let Some(locality) = locality {
        d.field("locality_lb_config", |d| typed_locality(d, locality, balancing));
    }
    policy
}

#[expect(deprecated, reason = "a deprecated field that is set is refused too")]
fn typed_least_request(
    d: &mut Decoder,
    value: LeastRequest,
    balancing: &mut Balancing,
) -> (Option<LbPolicy>, Option<LocalityLbConfig>) {
    let LeastRequest {
        choice_count,
        active_request_bias,
        slow_start_config,
        locality_lb_config,
        enable_full_scan,
        selection_method,
    } = value;
    if let Some(value) = slow_start_config {
        let TypedSlowStart { slow_start_window, aggression, min_weight_percent } = value;
        slow_start(d, (slow_start_window, aggression, min_weight_percent), balancing);
    }
    request_bias(d, active_request_bias, balancing);
    let choices = choices(d, choice_count);
    let policy = match SelectionMethod::try_from(selection_method) {
        Ok(SelectionMethod::FullScan) => Some(LbPolicy::LeastRequestFullScan),
        // The field of before, which the newer one goes before.
        Ok(_) if enable_full_scan.is_some_and(|enabled| enabled.value) => {
            Some(LbPolicy::LeastRequestFullScan)
        }
        Ok(SelectionMethod::NChoices) => choices,
        Err(_) => {
            d.field("selection_method", |d| d.refused(format!("{selection_method} is unknown")))
        }
    };
    (policy, locality_lb_config)
}

fn typed_locality(d: &mut Decoder, value: LocalityLbConfig, balancing: &mut Balancing) {
    match value.locality_config_specifier {
        None => d.refuse("has neither zone_aware_lb_config nor locality_weighted_lb_config"),
        Some(TypedLocality::LocalityWeightedLbConfig(_)) => balancing.locality_weighted = true,
        Some(TypedLocality::ZoneAwareLbConfig(value)) => {
            d.field("zone_aware_lb_config", |d| zones::typed(d, value, balancing));
        }
    }
}

fn named(
    d: &mut Decoder,
    policy: i32,
    config: Option<LbConfig>,
    original_destination: bool,
    balancing: &mut Balancing,
) -> Option<LbPolicy> {
    let policy = match PbLbPolicy::try_from(policy) {
        Ok(policy) => policy,
        Err(_) => return d.field("lb_policy", |d| d.refused(format!("{policy} is unknown"))),
    };
    if original_destination && policy != PbLbPolicy::ClusterProvided {
        return d.field("lb_policy", |d| d.refused("must be CLUSTER_PROVIDED with ORIGINAL_DST"));
    }
    match (policy, config) {
        (PbLbPolicy::RoundRobin, None) => Some(LbPolicy::RoundRobin),
        (PbLbPolicy::RoundRobin, Some(LbConfig::RoundRobinLbConfig(config))) => {
            let RoundRobinLbConfig { slow_start_config } = config;
            d.field("round_robin_lb_config", |d| named_slow_start(d, slow_start_config, balancing));
            Some(LbPolicy::RoundRobin)
        }
        (PbLbPolicy::RingHash, None) => hashing::ring(d, RingHashLbConfig::default()),
        (PbLbPolicy::RingHash, Some(LbConfig::RingHashLbConfig(config))) => {
            d.field("ring_hash_lb_config", |d| hashing::ring(d, config))
        }
        (PbLbPolicy::Maglev, None) => hashing::maglev(d, None),
        (PbLbPolicy::Maglev, Some(LbConfig::MaglevLbConfig(config))) => {
            let MaglevLbConfig { table_size } = config;
            d.field("maglev_lb_config", |d| hashing::maglev(d, table_size))
        }
        (PbLbPolicy::Random, None) => Some(LbPolicy::Random),
        (PbLbPolicy::LeastRequest, None) => {
            Some(LbPolicy::LeastRequest { choice_count: CHOICE_COUNT_MIN })
        }
        (PbLbPolicy::LeastRequest, Some(LbConfig::LeastRequestLbConfig(config))) => {
            d.field("least_request_lb_config", |d| least_request(d, config, balancing))
        }
        // There is one endpoint to choose from: any policy chooses it.
        (PbLbPolicy::ClusterProvided, None) if original_destination => Some(LbPolicy::RoundRobin),
        (PbLbPolicy::ClusterProvided, _) if !original_destination => {
            d.field("lb_policy", |d| d.refused("CLUSTER_PROVIDED is for ORIGINAL_DST"))
        }
        (
            PbLbPolicy::RoundRobin
            | PbLbPolicy::LeastRequest
            | PbLbPolicy::Random
            | PbLbPolicy::RingHash
            | PbLbPolicy::Maglev
            | PbLbPolicy::ClusterProvided,
            Some(config),
        ) => {
            let field = match config {
                LbConfig::RingHashLbConfig(_) => "ring_hash_lb_config",
                LbConfig::MaglevLbConfig(_) => "maglev_lb_config",
                LbConfig::OriginalDstLbConfig(_) => "original_dst_lb_config",
                LbConfig::LeastRequestLbConfig(_) => "least_request_lb_config",
                LbConfig::RoundRobinLbConfig(_) => "round_robin_lb_config",
            };
            let reason = format!("is not supported with {}", policy.as_str_name());
            d.field(field, |d| d.refused(reason))
        }
        (refused, _) => {
            let reason = format!("{} is not supported", refused.as_str_name());
            d.field("lb_policy", |d| d.refused(reason))
        }
    }
}

fn least_request(
    d: &mut Decoder,
    value: LeastRequestLbConfig,
    balancing: &mut Balancing,
) -> Option<LbPolicy> {
    let LeastRequestLbConfig { choice_count, active_request_bias, slow_start_config } = value;
    named_slow_start(d, slow_start_config, balancing);
    request_bias(d, active_request_bias, balancing);
    choices(d, choice_count)
}

fn choices(d: &mut Decoder, choice_count: Option<UInt32Value>) -> Option<LbPolicy> {
    let choice_count = choice_count.map_or(CHOICE_COUNT_MIN, |count| count.value);
    if choice_count < CHOICE_COUNT_MIN {
        let reason = format!("must be at least {CHOICE_COUNT_MIN}");
        return d.field("choice_count", |d| d.refused(reason));
    }
    Some(LbPolicy::LeastRequest { choice_count })
}

fn named_slow_start(d: &mut Decoder, value: Option<PbSlowStart>, balancing: &mut Balancing) {
    if let Some(PbSlowStart { slow_start_window, aggression, min_weight_percent }) = value {
        slow_start(d, (slow_start_window, aggression, min_weight_percent), balancing);
    }
}

/// What both forms of a slow start say.
type SlowStartFields = (Option<PbDuration>, Option<PbRuntimeDouble>, Option<Percent>);

fn slow_start(
    d: &mut Decoder,
    (window, aggression, min_weight): SlowStartFields,
    balancing: &mut Balancing,
) {
    d.field("slow_start_config", |d| {
        let window = match window {
            None => Some(Duration::ZERO),
            Some(window) => common::duration(d, "slow_start_window", window),
        };
        let aggression = match aggression {
            None => Some(RuntimeDouble { key: String::new(), default: 1.0 }),
            Some(value) => d.field("aggression", |d| match value.default_value > 0.0 {
                true => double(d, value),
                false => d.refused("must be more than zero"),
            }),
        };
        let min_weight = match min_weight {
            None => Some(MIN_WEIGHT_DEFAULT),
            Some(Percent { value: percent @ 0.0..=100.0 }) => Some(percent / 100.0),
            Some(Percent { value }) => {
                d.field("min_weight_percent", |d| d.refused(format!("{value} is not a percentage")))
            }
        };
        if let (Some(window), Some(aggression), Some(min_weight)) = (window, aggression, min_weight)
        {
            balancing.slow_start =
                (!window.is_zero()).then_some(SlowStart { window, aggression, min_weight });
        }
    });
}

fn request_bias(d: &mut Decoder, value: Option<PbRuntimeDouble>, balancing: &mut Balancing) {
    let Some(value) = value else { return };
    balancing.active_request_bias = d.field("active_request_bias", |d| match value.default_value {
        0.0.. => double(d, value),
        _ => d.refused("must not be negative"),
    });
}

fn double(d: &mut Decoder, value: PbRuntimeDouble) -> Option<RuntimeDouble> {
    let PbRuntimeDouble { default_value, runtime_key } = value;
    if !default_value.is_finite() {
        return d.refused(format!("{default_value} is no number to go by"));
    }
    Some(RuntimeDouble { key: runtime_key, default: default_value })
}
