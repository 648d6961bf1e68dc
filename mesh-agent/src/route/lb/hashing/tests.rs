use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use super::*;
use crate::{
    model::{
        cluster::{Cluster, Discovery, Endpoint, Health, LoadAssignment, Tunnel},
        hash_policy::{HashInput, HashPolicy},
    },
    policy::fixtures::{cluster, snapshot},
    route::{
        Balancers, Choice,
        lb::tests::{at, balanced},
        request_hash,
    },
};

const RING: LbPolicy =
    LbPolicy::RingHash { min_size: 1024, max_size: 8 << 20, function: HashFunction::XxHash };
const MURMUR: LbPolicy =
    LbPolicy::RingHash { min_size: 1024, max_size: 8 << 20, function: HashFunction::MurmurHash2 };
const MAGLEV: LbPolicy = LbPolicy::Maglev { table_size: 65_537 };

/// Where Envoy 1.40 sent requests with these headers: endpoints 19101 to 19103 of loopback,
/// weights 1, 1, 2.
const ENVOY_RING: [(&str, u16); 20] = [
    ("a", 19102),
    ("b", 19101),
    ("c", 19102),
    ("foo", 19103),
    ("bar", 19103),
    ("baz", 19101),
    ("user1", 19102),
    ("user2", 19103),
    ("user3", 19102),
    ("user4", 19101),
    ("x", 19102),
    ("y", 19103),
    ("z", 19101),
    ("1", 19103),
    ("2", 19103),
    ("3", 19101),
    ("4", 19101),
    ("5", 19103),
    ("6", 19103),
    ("7", 19103),
];
const ENVOY_MURMUR: [(&str, u16); 20] = [
    ("a", 19101),
    ("b", 19101),
    ("c", 19103),
    ("foo", 19102),
    ("bar", 19102),
    ("baz", 19101),
    ("user1", 19101),
    ("user2", 19102),
    ("user3", 19103),
    ("user4", 19103),
    ("x", 19101),
    ("y", 19103),
    ("z", 19101),
    ("1", 19102),
    ("2", 19103),
    ("3", 19102),
    ("4", 19101),
    ("5", 19103),
    ("6", 19103),
    ("7", 19102),
];
const ENVOY_MAGLEV: [(&str, u16); 20] = [
    ("a", 19103),
    ("b", 19103),
    ("c", 19103),
    ("foo", 19101),
    ("bar", 19103),
    ("baz", 19103),
    ("user1", 19102),
    ("user2", 19101),
    ("user3", 19102),
    ("user4", 19103),
    ("x", 19103),
    ("y", 19102),
    ("z", 19103),
    ("1", 19103),
    ("2", 19103),
    ("3", 19101),
    ("4", 19103),
    ("5", 19102),
    ("6", 19102),
    ("7", 19103),
];

fn assignment(weights: &[(u16, u32)]) -> Arc<LoadAssignment> {
    let endpoint = |(port, weight): &(u16, u32)| {
        Arc::new(Endpoint {
            address: ([127, 0, 0, 1], *port).into(),
            hostname: None,
            tunnel: Tunnel::Direct,
            weight: *weight,
            health: Health::Healthy,
            labels: None,
            check: None,
        })
    };
    Arc::new(LoadAssignment::of(weights.iter().map(endpoint).collect()))
}

fn port(policy: LbPolicy, assignment: &Arc<LoadAssignment>, choice: Choice<'_>) -> u16 {
    let (balancers, cluster) = balanced(policy);
    let picked = balancers.pick(&cluster, assignment, choice, at(), &mut |_| 0);
    picked.unwrap().0.address.port()
}

fn by(value: &str) -> Choice<'static> {
    Choice { hash: Some(xx_hash(value.as_bytes(), 0)), ..Choice::default() }
}

#[test]
fn a_hash_goes_where_envoy_sends_it() {
    let assignment = assignment(&[(19101, 1), (19102, 1), (19103, 2)]);
    let picks = [(RING, ENVOY_RING), (MURMUR, ENVOY_MURMUR), (MAGLEV, ENVOY_MAGLEV)];
    for (policy, seen) in picks {
        for (value, expected) in seen {
            assert_eq!(port(policy, &assignment, by(value)), expected, "{policy:?} {value}");
        }
    }
}

#[test]
fn most_hashes_stay_when_an_endpoint_goes() {
    let all = assignment(&[(1, 1), (2, 1), (3, 1), (4, 1)]);
    let fewer = assignment(&[(1, 1), (2, 1), (4, 1)]);
    for policy in [RING, MAGLEV] {
        let (mut moved, mut went) = (0, 0);
        for i in 0..100 {
            let choice = by(&i.to_string());
            let (before, after) = (port(policy, &all, choice), port(policy, &fewer, choice));
            assert_ne!(after, 3);
            went += u32::from(before == 3);
            moved += u32::from(before != 3 && before != after);
        }
        assert!(went > 5, "{policy:?}: {went}");
        // A smaller ring has more points for each.
        let most = if policy == MAGLEV { 5 } else { (100 - went) / 3 };
        assert!(moved <= most, "{policy:?}: {moved} of {} moved", 100 - went);
    }
}

#[test]
fn another_attempt_avoids_those_before() {
    let assignment = assignment(&[(1, 1), (2, 1), (3, 1)]);
    for policy in [RING, MAGLEV] {
        for i in 0..20 {
            let choice = by(&i.to_string());
            let first = port(policy, &assignment, choice);
            let avoid = [([127, 0, 0, 1], first).into()];
            let again = Choice { avoid: &avoid, reselections: 20, ..choice };
            assert_ne!(port(policy, &assignment, again), first, "{policy:?} {i}");
        }
    }
}

#[test]
fn without_a_hash_it_is_chance() {
    let assignment = assignment(&[(1, 1), (2, 1)]);
    let (balancers, cluster) = balanced(RING);
    let mut drawn = 0_u32;
    let mut random = |_| {
        drawn = drawn.wrapping_add(0x9e37_79b9);
        drawn
    };
    let mut seen = [0; 3];
    for _ in 0..100 {
        let picked = balancers.pick(&cluster, &assignment, Choice::default(), at(), &mut random);
        seen[usize::from(picked.unwrap().0.address.port())] += 1;
    }
    assert!(seen[1] > 10 && seen[2] > 10, "{seen:?}");
}

#[test]
fn several_policies_add_up_as_in_envoy() {
    let assignment = assignment(&[(19101, 1), (19102, 1), (19103, 2)]);
    let inputs =
        [HashInput::QueryParameter("k".into()), HashInput::Cookie("s".into()), HashInput::SourceIp];
    let policies = inputs.map(|input| HashPolicy { input, terminal: false });
    let seen = [(1, 19103), (2, 19102), (3, 19103), (4, 19102), (5, 19102), (6, 19103)];
    for (k, expected) in seen {
        let request = http::Request::get(format!("/q?k={k}")).header("cookie", format!("s=c{k}"));
        let head = request.body(()).unwrap().into_parts().0;
        let hash =
            request_hash(&policies, &head, "127.0.0.1".parse().unwrap(), &mut |_| String::new());
        assert_eq!(port(RING, &assignment, Choice { hash, ..Choice::default() }), expected, "{k}");
    }
}

fn without_space(policy: LbPolicy) -> Cluster {
    let (_, cluster) = balanced(policy);
    Cluster { table_space: None, ..cluster }
}

fn with_space(policy: LbPolicy, max_bytes: usize) -> Cluster {
    let (_, cluster) = balanced(policy);
    Cluster { table_space: TableSpace::alone(policy, max_bytes), ..cluster }
}

fn ports(balancers: &Balancers, cluster: &Cluster, of: &Arc<LoadAssignment>) -> Vec<u16> {
    let port = |i: u32| {
        let picked = balancers.pick(cluster, of, by(&i.to_string()), at(), &mut |_| 0);
        picked.unwrap().0.address.port()
    };
    (0..400).map(port).collect()
}

#[test]
fn without_room_for_a_table_a_hash_still_has_its_endpoint() {
    let cluster = without_space(MAGLEV);
    let all = assignment(&[(1, 1), (2, 1), (3, 2)]);
    let balancers = Balancers::default();
    let before = ports(&balancers, &cluster, &all);
    let share = |port| before.iter().filter(|seen| **seen == port).count();
    assert!((60..140).contains(&share(1)), "{}", share(1));
    assert!((60..140).contains(&share(2)), "{}", share(2));
    assert!((160..240).contains(&share(3)), "{}", share(3));
    let fewer = assignment(&[(1, 1), (3, 2)]);
    for (before, after) in before.iter().zip(ports(&balancers, &cluster, &fewer)) {
        assert!(*before == after || *before == 2, "{before} became {after}");
        assert_ne!(after, 2);
    }
    // The next one in line, and no other, where one is to be avoided.
    let avoid = [([127, 0, 0, 1], 2).into()];
    let again = Choice { avoid: &avoid, reselections: 3, ..by("5") };
    let (picked, _) = balancers.pick(&cluster, &all, again, at(), &mut |_| 0).unwrap();
    assert_ne!(picked.address.port(), 2);
}

#[test]
fn a_ring_is_as_large_as_weights_ask_for_where_there_is_room() {
    let uneven = assignment(&[(1, 1), (2, 10_000)]);
    let light = |max_bytes| {
        let cluster = with_space(RING, max_bytes);
        let space = cluster.table_space.clone().unwrap();
        let balancers = Balancers::default();
        assert!(ports(&balancers, &cluster, &uneven).contains(&2));
        let left = (0..max_bytes).rev().step_by(RING_POINT_BYTES);
        left.filter(|bytes| space.more(*bytes).is_some()).count() * RING_POINT_BYTES
    };
    // 10 001 points, of which 1024 were promised.
    assert_eq!(light(200_000), (200_000 - 10_001 * RING_POINT_BYTES).div_ceil(12) * 12);
    // As many as were promised, and nothing beyond.
    assert_eq!(light(100_000), (100_000 - 1024 * RING_POINT_BYTES).div_ceil(12) * 12);
}

#[test]
fn a_table_is_made_anew_only_where_its_endpoints_change() {
    // Room for one: another would have to go without.
    let cluster = with_space(MAGLEV, MAGLEV.table_bytes());
    let balancers = Balancers::default();
    let first = assignment(&[(1, 1), (2, 1), (3, 2)]);
    let before = ports(&balancers, &cluster, &first);
    let same = assignment(&[(1, 1), (2, 1), (3, 2)]);
    assert_eq!(ports(&balancers, &cluster, &same), before);
    let without = ports(&Balancers::default(), &without_space(MAGLEV), &same);
    assert_ne!(before, without);
}

#[test]
fn the_last_table_serves_until_the_next_is_made() {
    let behind = Arc::new(AtomicU32::new(0));
    let woken = Arc::clone(&behind);
    let balancers = Balancers::new(move || _ = woken.fetch_add(1, Ordering::Relaxed));
    let old = assignment(&[(1, 1), (2, 1)]);
    let new = assignment(&[(3, 1), (4, 1)]);
    let cluster = Arc::new(with_space(MAGLEV, 10 * MAGLEV.table_bytes()));
    let random = &mut |_| 0;
    balancers.prepare(&[(Arc::clone(&cluster), Arc::clone(&old))], random);
    assert!(ports(&balancers, &cluster, &old).iter().all(|port| *port <= 2));

    // The snapshot is there, its table is not: whoever makes it is told.
    behind.store(0, Ordering::Relaxed);
    assert!(ports(&balancers, &cluster, &new).iter().all(|port| *port <= 2));
    assert!(behind.load(Ordering::Relaxed) > 0);
    balancers.refresh(&[(Arc::clone(&cluster), Arc::clone(&new))], random);
    assert!(ports(&balancers, &cluster, &new).iter().all(|port| *port > 2));

    // Made ahead, it serves from the moment its snapshot does, and not before.
    let newest = assignment(&[(5, 1)]);
    balancers.prepare(&[(Arc::clone(&cluster), Arc::clone(&newest))], random);
    assert!(ports(&balancers, &cluster, &new).iter().all(|port| [3, 4].contains(port)));
    assert!(ports(&balancers, &cluster, &newest).iter().all(|port| *port == 5));
}

#[test]
fn tables_are_due_until_they_are_as_the_snapshot_has_them() {
    let balancers = Balancers::new(|| {});
    let endpoints = Arc::new(LoadAssignment::of(vec![
        crate::route::lb::tests::endpoint(0, 1, Health::Healthy),
        crate::route::lb::tests::endpoint(1, 1, Health::Healthy),
    ]));
    let by_hash = cluster("hashed", MAGLEV, Discovery::Static(endpoints));
    let plain = cluster("plain", LbPolicy::RoundRobin, Discovery::Static(Arc::default()));
    let snapshot = snapshot(Vec::new(), vec![by_hash, plain]);
    let due = balancers.due(&snapshot);
    assert_eq!(due.len(), 1);
    assert_eq!(&*due[0].0.name.0, "hashed");
    balancers.prepare(&due, &mut |_| 0);
    // Prepared is not in force.
    assert_eq!(balancers.due(&snapshot).len(), 1);
    balancers.refresh(&due, &mut |_| 0);
    assert!(balancers.due(&snapshot).is_empty());
}
