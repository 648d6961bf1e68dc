//! Subsets of a cluster's endpoints, made once per assignment.
//!
//! Spec: Envoy, "Load Balancer Subsets".

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::candidates::Pickable;
use crate::model::{
    cluster::{Endpoint, FALLBACK_LIST, LoadAssignment, SelectorFallback, SubsetFallback, Subsets},
    socket_match::Labels,
};

/// More subsets than this are not made: endpoints beyond are in none.
const SUBSETS_MAX: usize = 4096;

/// Names one subset: its labels, in order of their names, as JSON.
pub(super) type SubsetKey = String;

/// A cluster's, with whom they fall back on.
#[derive(Debug)]
pub(super) struct SubsetTable {
    subsets: HashMap<SubsetKey, Pickable>,
    default: Option<Pickable>,
}

/// Who is asked, one after the other.
#[derive(Debug, Default)]
pub(super) struct Asked<'a>(pub(super) [Option<&'a Pickable>; 2]);

impl SubsetTable {
    /// `make` makes what is picked from of some of the assignment's endpoints; it is told
    /// what was made of the same ones before.
    pub(super) fn new(
        config: &Subsets,
        assignment: &LoadAssignment,
        old: Option<&Self>,
        mut make: impl FnMut(&LoadAssignment, Option<&Pickable>) -> Pickable,
    ) -> Self {
        let mut keys = BTreeSet::new();
        for endpoint in assignment.endpoints() {
            for selector in &config.selectors {
                if let Some(key) = key_of(&selector.keys, labels_of(endpoint))
                    && keys.len() < SUBSETS_MAX
                {
                    keys.insert((key, &selector.keys));
                }
            }
        }
        let mut subsets = HashMap::new();
        for (key, names) in keys {
            let is_in = |endpoint: &Endpoint| {
                key_of(names, labels_of(endpoint)).is_some_and(|own| own == key)
            };
            let part = part_of(config, assignment, is_in);
            let pickable = make(&part, old.and_then(|old| old.subsets.get(&key)));
            subsets.insert(key, pickable);
        }
        let by_default = config.fallback == SubsetFallback::Default
            || config.selectors.iter().any(|selector| {
                selector.fallback == Some(SelectorFallback::To(SubsetFallback::Default))
            });
        let default = by_default.then(|| {
            let has = |own: Option<&Labels>| {
                let mut wanted = config.default_subset.iter();
                wanted.all(|(name, value)| own.and_then(|own| own.get(name)) == Some(value))
            };
            let part = part_of(config, assignment, |endpoint| has(labels_of(endpoint)));
            make(&part, old.and_then(|old| old.default.as_ref()))
        });
        Self { subsets, default }
    }

    /// All that is picked from.
    pub(super) fn pickables(&mut self) -> impl Iterator<Item = &mut Pickable> {
        self.subsets.values_mut().chain(&mut self.default)
    }

    /// Whom a request goes to that asks for these labels.
    pub(super) fn asked<'a>(
        &'a self,
        config: &Subsets,
        any: &'a Pickable,
        labels: Option<&Labels>,
    ) -> Vec<Asked<'a>> {
        let list = labels.and_then(|labels| labels.get(FALLBACK_LIST)?.as_array());
        match (labels, list.filter(|_| config.fallback_list)) {
            (Some(labels), Some(list)) => {
                let mut base = labels.clone();
                base.remove(FALLBACK_LIST);
                if list.is_empty() {
                    return vec![self.once(config, any, Some(&base))];
                }
                let each = list.iter().map(|more| {
                    let mut labels = base.clone();
                    labels.extend(more.as_object().cloned().unwrap_or_default());
                    self.once(config, any, Some(&labels))
                });
                each.collect()
            }
            _ => vec![self.once(config, any, labels)],
        }
    }

    fn once<'a>(
        &'a self,
        config: &Subsets,
        any: &'a Pickable,
        labels: Option<&Labels>,
    ) -> Asked<'a> {
        let fall_back = |fallback| match fallback {
            SubsetFallback::Nobody => None,
            SubsetFallback::Any => Some(any),
            SubsetFallback::Default => self.default.as_ref(),
        };
        let labels = labels.filter(|labels| !labels.is_empty());
        if let Some(labels) = labels {
            let names: BTreeSet<String> = labels.keys().cloned().collect();
            if let Some(subset) =
                key_of(&names, Some(labels)).and_then(|key| self.subsets.get(&key))
            {
                return Asked([Some(subset), None]);
            }
            let selector = config.selectors.iter().find(|selector| selector.keys == names);
            match selector.and_then(|selector| selector.fallback.as_ref()) {
                Some(SelectorFallback::To(fallback)) => return Asked([fall_back(*fallback), None]),
                Some(SelectorFallback::Keys(fewer)) => {
                    let labels = labels.iter().filter(|(name, _)| fewer.contains(*name));
                    let labels =
                        labels.map(|(name, value)| (name.clone(), value.clone())).collect();
                    // Ever fewer of them: this ends.
                    return self.once(config, any, Some(&labels));
                }
                None => {}
            }
        }
        match fall_back(config.fallback) {
            None => Asked::default(),
            Some(first) => Asked([Some(first), config.panic_mode_any.then_some(any)]),
        }
    }
}

fn labels_of(endpoint: &Endpoint) -> Option<&Labels> {
    endpoint.labels.as_ref().map(|labels| &labels.lb)
}

/// The subset by these names of who has these labels; `None`: one of them is not there.
fn key_of(names: &BTreeSet<String>, labels: Option<&Labels>) -> Option<SubsetKey> {
    let values = names.iter().map(|name| Some((name, labels?.get(name)?)));
    let values: Option<BTreeMap<_, _>> = values.collect();
    serde_json::to_string(&values?).ok()
}

/// The endpoints of an assignment that are in a subset.
fn part_of(
    config: &Subsets,
    assignment: &LoadAssignment,
    is_in: impl Fn(&Endpoint) -> bool,
) -> LoadAssignment {
    let mut part = assignment.clone();
    for locality in &mut part.localities {
        let all = locality.endpoints.len();
        locality.endpoints.retain(|endpoint| is_in(endpoint));
        if config.scale_locality_weight && locality.weight > 0 {
            let scaled = f64::from(locality.weight) * locality.endpoints.len() as f64 / all as f64;
            // As Envoy: whole, and at least 1.
            locality.weight = (scaled.round() as u32).max(1);
        }
    }
    part
}

#[cfg(test)]
mod tests;
