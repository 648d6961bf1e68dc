//! Subsets: endpoints that have the labels a route asks for.
//!
//! Spec: `envoy.config.cluster.v3.Cluster.LbSubsetConfig`.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::model::socket_match::Labels;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Subsets {
    /// Where no subset is asked for, or none is there.
    pub fallback: SubsetFallback,
    /// Whom [`SubsetFallback::Default`] means: endpoints with these labels.
    pub default_subset: Labels,
    /// At least one.
    pub selectors: Vec<SubsetSelector>,
    /// Localities share by weight within a subset as well.
    pub locality_weight_aware: bool,
    /// And by how many of its endpoints are in the subset.
    pub scale_locality_weight: bool,
    /// Any endpoint takes it where the fallback has nobody.
    pub panic_mode_any: bool,
    /// What is asked for may have a list of alternatives, under [`FALLBACK_LIST`].
    pub fallback_list: bool,
}

/// Where alternatives are, of what a route asks for.
pub const FALLBACK_LIST: &str = "fallback_list";

/// A subset for each combination of these labels' values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SubsetSelector {
    pub keys: BTreeSet<String>,
    /// Where there is no such combination; `None`: as for all.
    pub fallback: Option<SelectorFallback>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SubsetFallback {
    Nobody,
    Any,
    Default,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SelectorFallback {
    To(SubsetFallback),
    /// With these keys alone: some of the selector's, not all.
    Keys(BTreeSet<String>),
}
