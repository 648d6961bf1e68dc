use super::*;
use crate::{
    model::cluster::{Discovery, Tunnel},
    policy::fixtures::{addr, cluster, snapshot},
};

/// A generator that is the same in every run (xorshift64*).
pub(super) struct Noise(u64);

impl Default for Noise {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl Noise {
    pub(super) fn draw(&mut self) -> impl FnMut(u32) -> u32 {
        |bound| {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let wide = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
            u32::try_from((wide * u64::from(bound)) >> 32).unwrap()
        }
    }
}

fn endpoint(i: usize, weight: u32, health: Health) -> Arc<Endpoint> {
    let address = addr(&format!("10.3.0.{}:80", i + 1));
    Arc::new(Endpoint { address, tunnel: Tunnel::Direct, weight, health })
}

pub(super) fn assignment(weights: &[u32]) -> Arc<LoadAssignment> {
    let weights = weights.iter().enumerate();
    let endpoints = weights.map(|(i, weight)| endpoint(i, *weight, Health::Healthy)).collect();
    Arc::new(LoadAssignment { endpoints })
}

pub(super) fn balanced(lb_policy: LbPolicy) -> (Balancers, Cluster) {
    (Balancers::default(), cluster("c", lb_policy, Discovery::Static(Arc::default())))
}

/// How often each endpoint is picked when nothing stays in flight.
pub(super) fn counts(
    balancers: &Balancers,
    cluster: &Cluster,
    assignment: &Arc<LoadAssignment>,
    picks: u32,
) -> Vec<u32> {
    let mut noise = Noise::default();
    let mut counts = vec![0; assignment.endpoints.len()];
    for _ in 0..picks {
        let (picked, _) = balancers.pick(cluster, assignment, &mut noise.draw()).unwrap();
        let index = assignment.endpoints.iter().position(|endpoint| *endpoint == picked);
        counts[index.unwrap()] += 1;
    }
    counts
}

#[test]
fn only_endpoints_that_may_take_traffic_are_picked() {
    use Health::{Degraded as D, Healthy as H, Unhealthy as U};
    for (health, expected) in [
        (&[H, H][..], &[0, 1][..]),
        (&[H, D], &[0]),
        (&[D, D], &[0, 1]),
        (&[H, U], &[0]),
        (&[D, U], &[0]),
        (&[H, D, U, U], &[0]),
        (&[H, H, H, U], &[0, 1, 2]),
        // Panic: fewer than half may take traffic, so all have to.
        (&[H, U, U], &[0, 1, 2]),
        (&[D, U, U], &[0, 1, 2]),
        (&[U], &[0]),
        (&[U, U], &[0, 1]),
        (&[], &[]),
    ] {
        let endpoints = health.iter().enumerate().map(|(i, h)| endpoint(i, 1, *h)).collect();
        let assignment = LoadAssignment { endpoints };
        let taken: Vec<_> = eligible(&assignment).map(|endpoint| endpoint.address).collect();
        let expected: Vec<_> = expected.iter().map(|i| assignment.endpoints[*i].address).collect();
        assert_eq!(taken, expected, "{health:?}");
    }
}

#[test]
fn round_robin_goes_on_across_snapshots_that_change_nothing() {
    for weights in [&[1, 1, 1][..], &[1, 2, 3]] {
        let (balancers, cluster) = balanced(LbPolicy::RoundRobin);
        let taken: Vec<_> = (0..600)
            .map(|_| {
                // A new assignment each time, as after each snapshot.
                let assignment = assignment(weights);
                balancers.pick(&cluster, &assignment, &mut |_| 0).unwrap().0.address
            })
            .collect();
        let total: u32 = weights.iter().sum();
        for (i, weight) in weights.iter().enumerate() {
            let address = assignment(weights).endpoints[i].address;
            let count = taken.iter().filter(|taken| **taken == address).count();
            let expected = 600 * weight / total;
            assert!(count.abs_diff(expected as usize) <= 1, "{weights:?} host {i}: {count}");
        }
    }
}

#[test]
fn a_changed_assignment_is_taken_at_once() {
    let (balancers, cluster) = balanced(LbPolicy::RoundRobin);
    assert_eq!(counts(&balancers, &cluster, &assignment(&[1]), 10), [10]);
    assert_eq!(counts(&balancers, &cluster, &assignment(&[1, 1]), 10), [5, 5]);
    assert_eq!(counts(&balancers, &cluster, &assignment(&[1]), 10), [10]);
    assert!(balancers.pick(&cluster, &assignment(&[]), &mut |_| 0).is_none());
}

#[test]
fn what_is_in_flight_is_known_across_assignments() {
    let (balancers, cluster) = balanced(LbPolicy::RoundRobin);
    let address = assignment(&[1]).endpoints[0].address;
    let held = balancers.pick(&cluster, &assignment(&[1]), &mut |_| 0);
    let _ = balancers.pick(&cluster, &assignment(&[1, 1]), &mut |_| 0);
    assert_eq!(balancers.active(&cluster.name, address), 1);
    drop(held);
    assert_eq!(balancers.active(&cluster.name, address), 0);
}

#[test]
fn what_a_snapshot_does_not_have_is_forgotten() {
    let with = |name: &str, weights: &[u32]| {
        cluster(name, LbPolicy::RoundRobin, Discovery::Static(assignment(weights)))
    };
    let balancers = Balancers::default();
    let pick = |name: &str, weights: &[u32]| {
        balancers.pick(&with(name, weights), &assignment(weights), &mut |_| 0).unwrap()
    };
    let held = pick("kept", &[1, 1]);
    drop(pick("kept", &[1, 1]));
    let orphan = pick("gone", &[1]);
    // The first endpoint stays busy and goes from the configuration.
    let first = held.0.address;
    let moved = LoadAssignment { endpoints: vec![endpoint(7, 1, Health::Healthy)] };
    let kept = cluster("kept", LbPolicy::RoundRobin, Discovery::Static(Arc::new(moved)));
    let name = kept.name.clone();
    let snapshot = snapshot(vec![], vec![kept]);
    balancers.retain(&snapshot);
    let addresses = || {
        let clusters = balancers.clusters.read().unwrap();
        assert_eq!(clusters.len(), 1);
        let mut known: Vec<_> = clusters[&name].active.lock().unwrap().keys().copied().collect();
        known.sort();
        known
    };
    assert_eq!(addresses(), [first, addr("10.3.0.8:80")]);
    assert_eq!(balancers.active(&name, first), 1);
    drop((held, orphan));
    balancers.retain(&snapshot);
    assert_eq!(addresses(), [addr("10.3.0.8:80")]);
}

#[test]
fn random_numbers_stay_below_their_bound() {
    let mut noise = Noise::default();
    for bound in [1, 2, 10, u64::from(u32::MAX), u64::from(u32::MAX) + 1, 1 << 40] {
        for _ in 0..1000 {
            assert!(random_below(bound, &mut noise.draw()).unwrap() < bound);
        }
        assert!(random_below(bound, &mut |_| u32::MAX).unwrap() < bound);
    }
    assert_eq!(random_below(0, &mut |_| 0), None);
}

#[test]
fn a_guard_is_given_back_by_the_thread_that_drops_it() {
    let (balancers, cluster) = balanced(LbPolicy::LeastRequest { choice_count: 2 });
    let assignment = assignment(&[1, 1]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for i in 0..500 {
                    drop(balancers.pick(&cluster, &assignment, &mut |bound| i % bound));
                }
            });
        }
    });
    for endpoint in &assignment.endpoints {
        assert_eq!(balancers.active(&cluster.name, endpoint.address), 0);
    }
}
