use super::*;
use crate::{
    model::cluster::{
        Balancing, Discovery, Health, Locality, Place, SlowStart, TableSpace, Tunnel,
    },
    model::runtime::{Runtime, RuntimeDouble},
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

/// Now, and by no runtime values.
pub(super) fn at() -> At<'static> {
    static RUNTIME: std::sync::OnceLock<Runtime> = std::sync::OnceLock::new();
    At { now: Instant::now(), runtime: RUNTIME.get_or_init(Runtime::default) }
}

pub(super) fn endpoint(i: usize, weight: u32, health: Health) -> Arc<Endpoint> {
    let address = addr(&format!("10.3.0.{}:80", i + 1));
    Arc::new(Endpoint {
        address,
        hostname: None,
        tunnel: Tunnel::Direct,
        weight,
        health,
        labels: None,
        check: None,
    })
}

pub(super) fn assignment(weights: &[u32]) -> Arc<LoadAssignment> {
    let weights = weights.iter().enumerate();
    let endpoints = weights.map(|(i, weight)| endpoint(i, *weight, Health::Healthy)).collect();
    Arc::new(LoadAssignment::of(endpoints))
}

pub(super) fn balanced(lb_policy: LbPolicy) -> (Balancers, Cluster) {
    let table_space = TableSpace::alone(lb_policy, 1 << 20);
    let cluster = cluster("c", lb_policy, Discovery::Static(Arc::default()));
    (Balancers::default(), Cluster { table_space, ..cluster })
}

/// How often each endpoint is picked when nothing stays in flight.
pub(super) fn counts(
    balancers: &Balancers,
    cluster: &Cluster,
    assignment: &Arc<LoadAssignment>,
    picks: u32,
) -> Vec<u32> {
    let mut noise = Noise::default();
    let mut counts = vec![0; assignment.endpoints().count()];
    for _ in 0..picks {
        let (picked, _) = balancers
            .pick(cluster, assignment, Choice::default(), at(), &mut noise.draw())
            .unwrap();
        let index = assignment.endpoints().position(|endpoint| *endpoint == picked);
        counts[index.unwrap()] += 1;
    }
    counts
}

#[test]
fn round_robin_goes_on_across_snapshots_that_change_nothing() {
    for weights in [&[1, 1, 1][..], &[1, 2, 3]] {
        let (balancers, cluster) = balanced(LbPolicy::RoundRobin);
        let taken: Vec<_> = (0..600)
            .map(|_| {
                // A new assignment each time, as after each snapshot.
                let assignment = assignment(weights);
                balancers
                    .pick(&cluster, &assignment, Choice::default(), at(), &mut |_| 0)
                    .unwrap()
                    .0
                    .address
            })
            .collect();
        let total: u32 = weights.iter().sum();
        for (i, weight) in weights.iter().enumerate() {
            let address = assignment(weights).localities[0].endpoints[i].address;
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
    assert!(
        balancers.pick(&cluster, &assignment(&[]), Choice::default(), at(), &mut |_| 0).is_none()
    );
}

#[test]
fn what_is_in_flight_is_known_across_assignments() {
    let (balancers, cluster) = balanced(LbPolicy::RoundRobin);
    let address = assignment(&[1]).localities[0].endpoints[0].address;
    let held = balancers.pick(&cluster, &assignment(&[1]), Choice::default(), at(), &mut |_| 0);
    let _ = balancers.pick(&cluster, &assignment(&[1, 1]), Choice::default(), at(), &mut |_| 0);
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
        balancers
            .pick(&with(name, weights), &assignment(weights), Choice::default(), at(), &mut |_| 0)
            .unwrap()
    };
    let held = pick("kept", &[1, 1]);
    drop(pick("kept", &[1, 1]));
    let orphan = pick("gone", &[1]);
    // The first endpoint stays busy and goes from the configuration.
    let first = held.0.address;
    let moved = LoadAssignment::of(vec![endpoint(7, 1, Health::Healthy)]);
    let kept = cluster("kept", LbPolicy::RoundRobin, Discovery::Static(Arc::new(moved)));
    let name = kept.name.clone();
    let snapshot = snapshot(vec![], vec![kept]);
    balancers.retain(&snapshot);
    let addresses = || {
        let clusters = balancers.clusters.load();
        assert_eq!(clusters.len(), 1);
        let mut known: Vec<_> = clusters[&name].hosts().keys().copied().collect();
        known.sort();
        known
    };
    assert_eq!(addresses(), [first, addr("10.3.0.8:80")]);
    assert_eq!(balancers.active(&name, first), 1);
    drop((held, orphan));
    balancers.retain(&snapshot);
    assert_eq!(addresses(), [addr("10.3.0.8:80")]);
}

fn locality(zone: &str, priority: u32, weight: u32, endpoints: Vec<Arc<Endpoint>>) -> Locality {
    let place = Place { zone: zone.to_owned(), ..Place::default() };
    Locality { place, priority, weight, endpoints }
}

/// How often each endpoint is picked, in percent, by every policy; all the same.
#[track_caller]
fn expect_percents(assignment: LoadAssignment, balancing: Balancing, expected: &[f64]) {
    let assignment = Arc::new(assignment);
    for lb_policy in
        [LbPolicy::RoundRobin, LbPolicy::LeastRequest { choice_count: 2 }, LbPolicy::Random]
    {
        let (balancers, mut cluster) = balanced(lb_policy);
        cluster.balancing = balancing.clone();
        let counts = counts(&balancers, &cluster, &assignment, 20_000);
        for (count, expected) in counts.iter().zip(expected) {
            let percent = f64::from(*count) / 200.0;
            assert!((percent - expected).abs() < 1.5, "{lb_policy:?}: {counts:?} of {expected:?}");
        }
    }
}

#[test]
fn priorities_and_degraded_endpoints_take_what_is_left_over() {
    use Health::{Degraded as D, Healthy as H, Unhealthy as U};
    let of = |from: usize, health: &[Health]| -> Vec<_> {
        health.iter().enumerate().map(|(i, health)| endpoint(from + i, 1, *health)).collect()
    };
    let localities = vec![
        locality("a", 0, 0, of(0, &[H, U, U, U])),
        locality("a", 1, 0, of(4, &[H, D, U, U])),
        locality("a", 2, 0, of(8, &[H])),
    ];
    let assignment = LoadAssignment { localities, ..LoadAssignment::default() };
    // 35 % each for the first two; the rest for the third, before any degraded one.
    let expected = [35.0, 0.0, 0.0, 0.0, 35.0, 0.0, 0.0, 0.0, 30.0];
    expect_percents(assignment, Balancing::default(), &expected);
}

#[test]
fn localities_share_by_weight_only_where_the_cluster_says_so() {
    let healthy = |from: usize| (0..2).map(move |i| endpoint(from + i, 1, Health::Healthy));
    let mut sick: Vec<_> = healthy(0).collect();
    sick.extend((4..8).map(|i| endpoint(i, 1, Health::Unhealthy)));
    let localities = vec![
        locality("a", 0, 1, sick),
        locality("b", 0, 2, healthy(2).collect()),
        locality("unweighted", 0, 0, vec![endpoint(9, 1, Health::Healthy)]),
    ];
    let assignment = LoadAssignment { localities, ..LoadAssignment::default() };
    let weighted = Balancing { locality_weighted: true, ..Balancing::default() };
    // 1 × 140 % × 2/6, and 2.
    let (a, b) = (100.0 * 0.4667 / 2.4667, 100.0 * 2.0 / 2.4667);
    let expected = [a / 2.0, a / 2.0, 0.0, 0.0, 0.0, 0.0, b / 2.0, b / 2.0, 0.0];
    expect_percents(assignment.clone(), weighted, &expected);
    let fifth = 20.0;
    let expected = [fifth, fifth, 0.0, 0.0, 0.0, 0.0, fifth, fifth, fifth];
    expect_percents(assignment, Balancing::default(), &expected);
}

#[test]
fn random_does_not_look_at_weights_and_round_robin_does() {
    let assignment = assignment(&[1, 3]);
    let (balancers, cluster) = balanced(LbPolicy::Random);
    let even = counts(&balancers, &cluster, &assignment, 10_000);
    assert!(even[0].abs_diff(5000) < 200, "{even:?}");
    let (balancers, cluster) = balanced(LbPolicy::RoundRobin);
    assert_eq!(counts(&balancers, &cluster, &assignment, 10_000), [2500, 7500]);
}

#[test]
fn in_panic_all_take_traffic_or_none_as_the_cluster_says() {
    let of = |health| (0..2).map(|i| endpoint(i, 1, health)).collect();
    let assignment = Arc::new(LoadAssignment::of(of(Health::Unhealthy)));
    let (balancers, mut cluster) = balanced(LbPolicy::RoundRobin);
    assert_eq!(counts(&balancers, &cluster, &assignment, 10), [5, 5]);
    for balancing in [
        Balancing { fail_traffic_on_panic: true, ..Balancing::default() },
        Balancing { panic_threshold: 0, ..Balancing::default() },
    ] {
        // Also where the cluster alone has changed.
        cluster.balancing = balancing.clone();
        assert!(
            balancers.pick(&cluster, &assignment, Choice::default(), at(), &mut |_| 0).is_none(),
            "{balancing:?}"
        );
    }
}

#[test]
fn categories_drop_their_share_of_what_is_left() {
    let drop = |category: &str, percent: u32| DropOverload {
        category: category.into(),
        per_million: percent * 10_000,
    };
    let mut assignment = LoadAssignment::default();
    let mut noise = Noise::default();
    assert_eq!(dropped(&assignment, &mut |_| 0), None);
    assignment.drop_overloads = vec![drop("throttle", 60), drop("lb", 50), drop("none", 0)];
    let mut counts = HashMap::new();
    for _ in 0..20_000 {
        let category = dropped(&assignment, &mut noise.draw()).map(|drop| &*drop.category);
        *counts.entry(category).or_insert(0u32) += 1;
    }
    let percent = |category| f64::from(counts.get(&category).copied().unwrap_or(0)) / 200.0;
    let near = |percent: f64, expected: f64| (percent - expected).abs() < 1.5;
    assert!(near(percent(Some("throttle")), 60.0), "{counts:?}");
    assert!(near(percent(Some("lb")), 20.0) && near(percent(None), 20.0), "{counts:?}");
    assert!(!counts.contains_key(&Some("none")));
    assignment.drop_overloads = vec![drop("all", 100)];
    let none_passes = |_: u32| unreachable!();
    assert!(dropped(&assignment, &mut { none_passes }).is_some());
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
                    drop(balancers.pick(
                        &cluster,
                        &assignment,
                        Choice::default(),
                        at(),
                        &mut |bound| i % bound,
                    ));
                }
            });
        }
    });
    for endpoint in assignment.endpoints() {
        assert_eq!(balancers.active(&cluster.name, endpoint.address), 0);
    }
}

/// How many of 1100 picks the first of two endpoints gets, which is well for `well_for`.
fn slow(lb_policy: LbPolicy, slow_start: SlowStart, well_for: Duration) -> u32 {
    let (balancers, mut cluster) = balanced(lb_policy);
    cluster.balancing.slow_start = Some(slow_start);
    let (old, both) = (assignment(&[1, 1]), assignment(&[1, 1]));
    let mut alone = LoadAssignment::clone(&old);
    alone.localities[0].endpoints.remove(0);
    let begin = at();
    let later = |by: Duration| At { now: begin.now + by, ..begin };
    let long = Duration::from_secs(1000);
    let pick = |assignment: &Arc<LoadAssignment>, by| {
        balancers.pick(&cluster, assignment, Choice::default(), later(by), &mut |_| 0).unwrap().0
    };
    pick(&Arc::new(alone), Duration::ZERO);
    pick(&both, long);
    let first = &both.localities[0].endpoints[0];
    (0..1100).filter(|_| pick(&both, long + well_for) == *first).count().try_into().unwrap()
}

#[test]
fn who_is_new_gets_little_at_first() {
    let of = |aggression, min_weight| SlowStart {
        window: Duration::from_secs(10),
        aggression: RuntimeDouble { key: String::new(), default: aggression },
        min_weight,
    };
    let seconds = Duration::from_secs;
    for policy in [
        LbPolicy::RoundRobin,
        LbPolicy::LeastRequest { choice_count: 2 },
        LbPolicy::LeastRequestFullScan,
    ] {
        for (slow_start, well_for, expected) in [
            // 10 % of what the other has.
            (of(1.0, 0.1), Duration::ZERO, 100),
            (of(1.0, 0.1), seconds(5), 366),
            (of(2.0, 0.1), Duration::from_millis(2500), 366),
            (of(1.0, 0.5), Duration::ZERO, 366),
        ] {
            let got = slow(policy, slow_start, well_for);
            assert!(got.abs_diff(expected) <= 4, "{policy:?} {well_for:?}: {got}, not {expected}");
        }
    }
    let after = slow(LbPolicy::RoundRobin, of(1.0, 0.1), seconds(11));
    assert!(after.abs_diff(550) <= 1, "{after}");
    let random = slow(LbPolicy::Random, of(1.0, 0.1), Duration::ZERO);
    assert_eq!(random, 1100, "the dice say so");
}

#[test]
fn a_full_scan_finds_the_least_loaded() {
    let (balancers, cluster) = balanced(LbPolicy::LeastRequestFullScan);
    let assignment = assignment(&[1; 9]);
    let mut noise = Noise::default();
    let held: Vec<_> = (0..90)
        .map(|_| balancers.pick(&cluster, &assignment, Choice::default(), at(), &mut noise.draw()))
        .collect();
    for endpoint in assignment.endpoints() {
        assert_eq!(balancers.active(&cluster.name, endpoint.address), 10);
    }
    drop(held);
}
