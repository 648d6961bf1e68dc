use crate::{
    model::cluster::LbPolicy,
    route::{
        Choice,
        lb::tests::{Noise, assignment, at, balanced, counts},
    },
};

const TWO: LbPolicy = LbPolicy::LeastRequest { choice_count: 2 };

#[test]
fn the_less_loaded_of_the_drawn_is_picked() {
    let assignment = assignment(&[1, 1]);
    let (balancers, cluster) = balanced(TWO);
    let mut draws = [0, 0, 0, 1, 0, 1].into_iter();
    let mut held = Vec::new();
    for expected in [0, 1] {
        // The draws beyond the two are the balancer's start.
        let mut random = |bound: u32| if bound == u32::MAX { 0 } else { draws.next().unwrap() };
        let (endpoint, guard) =
            balancers.pick(&cluster, &assignment, Choice::default(), at(), &mut random).unwrap();
        assert_eq!(endpoint, assignment.localities[0].endpoints[expected]);
        held.push(guard);
    }
}

#[test]
fn idle_endpoints_share_as_their_weights_do() {
    for (weights, choice_count) in
        [(&[1, 1, 1, 1][..], 2), (&[1, 3], 2), (&[1, 3], 1), (&[1, 2, 7], 3)]
    {
        let assignment = assignment(weights);
        let (balancers, cluster) = balanced(LbPolicy::LeastRequest { choice_count });
        let counts = counts(&balancers, &cluster, &assignment, 20_000);
        let total: u32 = weights.iter().sum();
        for (count, weight) in counts.iter().zip(weights) {
            let share = f64::from(*count) / 20_000.0;
            let expected = f64::from(*weight) / f64::from(total);
            assert!((share - expected).abs() < 0.02, "{weights:?}: {counts:?}");
        }
    }
}

#[test]
fn requests_in_flight_spread_by_weight() {
    let assignment = assignment(&[1, 3]);
    let (balancers, cluster) = balanced(LbPolicy::LeastRequest { choice_count: 4 });
    let mut noise = Noise::default();
    let mut held = Vec::new();
    for _ in 0..400 {
        held.push(
            balancers
                .pick(&cluster, &assignment, Choice::default(), at(), &mut noise.draw())
                .unwrap(),
        );
    }
    let active =
        |i: usize| balancers.active(&cluster.name, assignment.localities[0].endpoints[i].address);
    assert_eq!(active(0) + active(1), 400);
    // As Envoy: whose weight is 3 has as much more in flight as the root of that.
    assert!(active(0).abs_diff(146) <= 10, "{}", active(0));
}

#[test]
fn a_slow_endpoint_gets_little() {
    let assignment = assignment(&[1, 1, 1]);
    let (balancers, cluster) = balanced(TWO);
    let mut noise = Noise::default();
    let mut stuck = Vec::new();
    let mut picks = 0;
    for _ in 0..3000 {
        let (endpoint, guard) = balancers
            .pick(&cluster, &assignment, Choice::default(), at(), &mut noise.draw())
            .unwrap();
        if endpoint == assignment.localities[0].endpoints[0] {
            picks += 1;
            stuck.push(guard);
        }
    }
    // Only when both draws are the slow one: one in nine.
    assert!((200..500).contains(&picks), "{picks}");
}

#[test]
fn a_choice_count_of_any_size_is_answered() {
    for choice_count in [0, 1, u32::MAX] {
        let assignment = assignment(&[1, 1]);
        let (balancers, cluster) = balanced(LbPolicy::LeastRequest { choice_count });
        assert!(counts(&balancers, &cluster, &assignment, 100).iter().sum::<u32>() == 100);
    }
    let (balancers, cluster) = balanced(TWO);
    let none = balancers.pick(&cluster, &assignment(&[]), Choice::default(), at(), &mut |_| 0);
    assert!(none.is_none());
    let broken =
        balancers.pick(&cluster, &assignment(&[1, 2]), Choice::default(), at(), &mut |_| u32::MAX);
    assert!(broken.is_some());
}
