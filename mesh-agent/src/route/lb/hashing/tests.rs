use std::sync::Arc;

use super::*;
use crate::{
    model::{
        cluster::{Endpoint, Health, LoadAssignment, Tunnel},
        hash_policy::{HashInput, HashPolicy},
    },
    route::{
        Choice,
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
        let hash = request_hash(&policies, &head, "127.0.0.1".parse().unwrap());
        assert_eq!(port(RING, &assignment, Choice { hash, ..Choice::default() }), expected, "{k}");
    }
}
