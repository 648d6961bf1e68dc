//! Subsets of a cluster's endpoints, and what routes ask for.
//!
//! Spec: `envoy.config.cluster.v3.Cluster.LbSubsetConfig`.

use std::{collections::BTreeSet, sync::Arc};

use envoy_types::pb::envoy::config::{
    cluster::v3::cluster::{
        LbSubsetConfig,
        lb_subset_config::{
            LbSubsetFallbackPolicy, LbSubsetMetadataFallbackPolicy, LbSubsetSelector,
            lb_subset_selector::LbSubsetSelectorFallbackPolicy,
        },
    },
    core::v3::Metadata,
};

use super::super::{
    options::json_of,
    reject::{Decoder, unsupported},
};
use crate::model::{
    cluster::{SelectorFallback, SubsetFallback, SubsetSelector, Subsets},
    socket_match::Labels,
};

/// Whose labels these are.
pub(in super::super) const LB_METADATA: &str = "envoy.lb";

/// `None` within: without selectors there are no subsets, as with Envoy.
pub(super) fn subsets(d: &mut Decoder, value: LbSubsetConfig) -> Option<Option<Arc<Subsets>>> {
    let LbSubsetConfig {
        fallback_policy,
        default_subset,
        subset_selectors,
        locality_weight_aware,
        scale_locality_weight,
        panic_mode_any,
        list_as_any,
        metadata_fallback_policy,
    } = value;
    unsupported!(d; list_as_any);
    let fallback = match LbSubsetFallbackPolicy::try_from(fallback_policy) {
        Ok(LbSubsetFallbackPolicy::NoFallback) => Some(SubsetFallback::Nobody),
        Ok(LbSubsetFallbackPolicy::AnyEndpoint) => Some(SubsetFallback::Any),
        Ok(LbSubsetFallbackPolicy::DefaultSubset) => Some(SubsetFallback::Default),
        Err(_) => {
            d.field("fallback_policy", |d| d.refused(format!("{fallback_policy} is unknown")))
        }
    };
    let fallback_list = match LbSubsetMetadataFallbackPolicy::try_from(metadata_fallback_policy) {
        Ok(LbSubsetMetadataFallbackPolicy::MetadataNoFallback) => Some(false),
        Ok(LbSubsetMetadataFallbackPolicy::FallbackList) => Some(true),
        Err(_) => d.field("metadata_fallback_policy", |d| {
            d.refused(format!("{metadata_fallback_policy} is unknown"))
        }),
    };
    let selectors = d.all("subset_selectors", subset_selectors, selector)?;
    let default_subset = default_subset.map(json_of).unwrap_or_default();
    let subsets = Subsets {
        fallback: fallback?,
        default_subset,
        selectors,
        locality_weight_aware,
        scale_locality_weight,
        panic_mode_any,
        fallback_list: fallback_list?,
    };
    Some((!subsets.selectors.is_empty()).then(|| Arc::new(subsets)))
}

fn selector(d: &mut Decoder, value: LbSubsetSelector) -> Option<SubsetSelector> {
    let LbSubsetSelector { keys, single_host_per_subset, fallback_policy, fallback_keys_subset } =
        value;
    unsupported!(d; single_host_per_subset);
    let keys: BTreeSet<String> = keys.into_iter().collect();
    if keys.is_empty() {
        d.refuse_field("keys", "is missing");
    }
    let reduced: BTreeSet<String> = fallback_keys_subset.into_iter().collect();
    let policy = LbSubsetSelectorFallbackPolicy::try_from(fallback_policy);
    if policy != Ok(LbSubsetSelectorFallbackPolicy::KeysSubset) && !reduced.is_empty() {
        d.refuse_field("fallback_keys_subset", "is for KEYS_SUBSET");
    }
    let to = |fallback| Some(Some(SelectorFallback::To(fallback)));
    let fallback = match policy {
        Ok(LbSubsetSelectorFallbackPolicy::NotDefined) => Some(None),
        Ok(LbSubsetSelectorFallbackPolicy::NoFallback) => to(SubsetFallback::Nobody),
        Ok(LbSubsetSelectorFallbackPolicy::AnyEndpoint) => to(SubsetFallback::Any),
        Ok(LbSubsetSelectorFallbackPolicy::DefaultSubset) => to(SubsetFallback::Default),
        Ok(LbSubsetSelectorFallbackPolicy::KeysSubset) => d.field("fallback_keys_subset", |d| {
            match reduced.is_empty() || !reduced.is_subset(&keys) || reduced == keys {
                true => d.refused("must be some of the selector's keys, and not all"),
                false => Some(Some(SelectorFallback::Keys(reduced))),
            }
        }),
        Err(_) => {
            d.field("fallback_policy", |d| d.refused(format!("{fallback_policy} is unknown")))
        }
    };
    Some(SubsetSelector { keys, fallback: fallback? })
}

/// What a route asks for; as with Envoy, other namespaces mean nothing here.
pub(in super::super) fn metadata_match(value: Option<Metadata>) -> Option<Arc<Labels>> {
    let labels = value?.filter_metadata.remove(LB_METADATA)?;
    Some(Arc::new(json_of(labels)))
}
