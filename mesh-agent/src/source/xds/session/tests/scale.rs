//! Ten thousand clusters with a hundred thousand endpoints, and one of these changes.

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};

use super::*;
use crate::model::cluster::LoadAssignment;

const CLUSTERS: usize = 10_000;
const ENDPOINTS: u8 = 10;

fn response(url: &str, resources: Vec<(String, Any)>) -> DeltaDiscoveryResponse {
    let wrap = |(name, any)| Resource {
        name,
        version: "1".to_owned(),
        resource: Some(any),
        ..Resource::default()
    };
    DeltaDiscoveryResponse {
        resources: resources.into_iter().map(wrap).collect(),
        type_url: url.to_owned(),
        nonce: "n".to_owned(),
        ..DeltaDiscoveryResponse::default()
    }
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn one_endpoint_of_a_hundred_thousand_changes_at_once() {
    let name = |i| format!("cluster-{i}");
    let of = |make: &dyn Fn(&str) -> Any| {
        (0..CLUSTERS).map(|i| (name(i), make(&name(i)))).collect::<Vec<_>>()
    };
    let cds = response(CDS, of(&cluster));
    let eds = response(EDS, of(&|name| endpoints(name, ENDPOINTS)));
    let mut bench = Bench::new(Variant::Delta);
    let (started, before) = (Instant::now(), resident_kib());
    bench.session.on_delta(0, cds, bench.now);
    bench.session.on_delta(0, response(LDS, vec![]), bench.now);
    bench.session.on_delta(0, eds, bench.now);
    bench.apply();
    let loaded = started.elapsed();
    let resident = resident_kib().saturating_sub(before);
    assert_eq!(bench.cell.load().assignments.size(), CLUSTERS);
    while bench.session.poll_request(0, bench.now).is_some() {}

    for i in 0..9 {
        let name = name(77);
        let changed = response(EDS, vec![(name.clone(), endpoints(&name, i % 3 + 1))]);
        let (started, before) = (Instant::now(), bench.cell.load());
        bench.session.on_delta(0, changed, bench.now);
        bench.apply();
        let (took, after) = (started.elapsed(), bench.cell.load());
        println!("loaded in {loaded:?}, {resident} KiB; one endpoint: {took:?}");
        // What a change costs is what it copies: one table, and in it one assignment.
        assert_eq!(after.version, before.version + 1);
        assert!(Arc::ptr_eq(&after.listeners, &before.listeners));
        assert!(Arc::ptr_eq(&after.clusters, &before.clusters));
        assert!(Arc::ptr_eq(&after.routes, &before.routes));
        let copied = |(name, assignment): &(&Arc<str>, &Arc<LoadAssignment>)| {
            !before.assignments.get(*name).is_some_and(|b| Arc::ptr_eq(b, assignment))
        };
        assert_eq!(after.assignments.iter().filter(copied).count(), 1);
    }
}
