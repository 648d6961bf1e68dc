use std::{collections::BTreeSet, sync::Arc};

use serde_json::{Value, json};

use crate::{
    model::{
        cluster::{
            Balancing, Cluster, Discovery, Endpoint, LbPolicy, LoadAssignment, SelectorFallback,
            SubsetFallback, SubsetSelector, Subsets,
        },
        socket_match::{Labels, SocketLabels},
    },
    policy::fixtures::cluster,
    route::lb::{
        Balancers, Choice,
        tests::{assignment, at},
    },
};

fn labels(value: Value) -> Labels {
    let Value::Object(labels) = value else { panic!("{value} is no object") };
    labels
}

fn keys(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn selector(names: &[&str], fallback: Option<SelectorFallback>) -> SubsetSelector {
    SubsetSelector { keys: keys(names), fallback }
}

/// Three endpoints: two of stage `prod` and versions 1 and 2, one of `dev` and version 1.
fn subsetted(change: impl FnOnce(&mut Subsets)) -> (Cluster, Arc<LoadAssignment>) {
    let mut subsets = Subsets {
        fallback: SubsetFallback::Nobody,
        default_subset: labels(json!({ "stage": "dev" })),
        selectors: vec![selector(&["stage"], None), selector(&["stage", "version"], None)],
        locality_weight_aware: false,
        scale_locality_weight: false,
        panic_mode_any: false,
        fallback_list: false,
    };
    change(&mut subsets);
    let of = |(endpoint, (stage, version)): (&Arc<Endpoint>, (&str, u32))| {
        let lb = labels(json!({ "stage": stage, "version": version, "other": [1, { "a": null }] }));
        let labels = Some(Arc::new(SocketLabels { lb, ..SocketLabels::default() }));
        Arc::new(Endpoint { labels, ..Endpoint::clone(endpoint) })
    };
    let plain = assignment(&[1, 1, 1]);
    let stages = [("prod", 1), ("prod", 2), ("dev", 1)];
    let endpoints = plain.endpoints().zip(stages).map(of).collect();
    let assignment = Arc::new(LoadAssignment::of(endpoints));
    let mut cluster =
        cluster("c", LbPolicy::RoundRobin, Discovery::Static(Arc::clone(&assignment)));
    cluster.balancing = Balancing { subsets: Some(Arc::new(subsets)), ..Balancing::default() };
    (cluster, assignment)
}

/// The last numbers of the addresses that are picked for these labels.
fn picked((cluster, assignment): &(Cluster, Arc<LoadAssignment>), asked: Value) -> Vec<u8> {
    let asked = labels(asked);
    let balancers = Balancers::default();
    let choice = Choice { subset: Some(&asked), ..Choice::default() };
    let mut taken: Vec<_> = (0..20)
        .filter_map(|i| balancers.pick(cluster, assignment, choice, at(), &mut |bound| i % bound))
        .map(|(endpoint, _)| endpoint.address.to_string())
        .map(|address| address.trim_start_matches("10.3.0.").split(':').next().unwrap().parse())
        .map(Result::unwrap)
        .collect();
    taken.sort_unstable();
    taken.dedup();
    taken
}

#[test]
fn a_subset_is_all_of_what_is_asked_for_and_a_selector_s_keys() {
    let set = subsetted(|_| ());
    for (asked, expected) in [
        (json!({ "stage": "prod" }), vec![1, 2]),
        (json!({ "stage": "prod", "version": 2 }), vec![2]),
        (json!({ "stage": "dev", "version": 1 }), vec![3]),
        // Another type, another value; keys that no selector has; nothing at all.
        (json!({ "stage": "prod", "version": "2" }), vec![]),
        (json!({ "stage": "prod", "version": 3 }), vec![]),
        (json!({ "version": 2 }), vec![]),
        (json!({ "stage": "prod", "version": 2, "other": 1 }), vec![]),
        (json!({}), vec![]),
    ] {
        assert_eq!(picked(&set, asked.clone()), expected, "{asked}");
    }
}

#[test]
fn where_there_is_no_such_subset_it_falls_back() {
    let none = json!({ "stage": "test" });
    for (fallback, panic_mode_any, default, expected) in [
        (SubsetFallback::Nobody, true, json!({}), vec![]),
        (SubsetFallback::Any, false, json!({}), vec![1, 2, 3]),
        (SubsetFallback::Default, false, json!({ "stage": "dev" }), vec![3]),
        (SubsetFallback::Default, false, json!({ "stage": "x" }), vec![]),
        (SubsetFallback::Default, true, json!({ "stage": "x" }), vec![1, 2, 3]),
        (SubsetFallback::Default, false, json!({}), vec![1, 2, 3]),
    ] {
        let set = subsetted(|subsets| {
            subsets.fallback = fallback;
            subsets.panic_mode_any = panic_mode_any;
            subsets.default_subset = labels(default);
        });
        assert_eq!(picked(&set, none.clone()), expected, "{fallback:?} {panic_mode_any}");
        assert_eq!(picked(&set, json!({})), expected, "{fallback:?} {panic_mode_any}");
        assert_eq!(picked(&set, json!({ "stage": "dev" })), [3]);
    }
}

#[test]
fn a_selector_falls_back_in_its_own_way() {
    let asked = json!({ "stage": "prod", "version": 9 });
    for (fallback, expected) in [
        (SelectorFallback::To(SubsetFallback::Nobody), vec![]),
        (SelectorFallback::To(SubsetFallback::Any), vec![1, 2, 3]),
        (SelectorFallback::To(SubsetFallback::Default), vec![3]),
        (SelectorFallback::Keys(keys(&["stage"])), vec![1, 2]),
        // No selector has that key: the cluster's own fallback.
        (SelectorFallback::Keys(keys(&["version"])), vec![1, 2, 3]),
    ] {
        let set = subsetted(|subsets| {
            subsets.fallback = SubsetFallback::Any;
            subsets.selectors[1].fallback = Some(fallback.clone());
        });
        assert_eq!(picked(&set, asked.clone()), expected, "{fallback:?}");
    }
}

#[test]
fn alternatives_are_asked_one_after_the_other() {
    let asked =
        json!({ "stage": "prod", "fallback_list": [{ "version": 9 }, { "version": 2 }, {}] });
    let set = subsetted(|subsets| subsets.fallback_list = true);
    assert_eq!(picked(&set, asked.clone()), [2]);
    let last = json!({ "fallback_list": [{ "stage": "x" }, { "stage": "dev" }] });
    assert_eq!(picked(&set, last), [3]);
    assert_eq!(picked(&set, json!({ "stage": "dev", "fallback_list": [] })), [3]);
    assert_eq!(picked(&set, json!({ "fallback_list": [{ "stage": "x" }] })), [0_u8; 0]);
    // It is a label as any other, where the cluster does not say so.
    assert_eq!(picked(&subsetted(|_| ()), asked), [0_u8; 0]);
}
