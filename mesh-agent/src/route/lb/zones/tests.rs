use std::time::Instant;

use super::*;
use crate::{
    model::{
        cluster::{ClusterName, LbPolicy},
        runtime::{LayeredRuntime, RuntimeLayer, RuntimeValue},
    },
    policy::fixtures::{addr, cluster},
    route::lb::{
        Balancers, CheckResult,
        health::tests::check,
        layout::shares,
        tests::{Noise, counts, endpoint},
    },
    snapshot::{Changes, Removed, Resources, SnapshotCell},
};

fn place(zone: &str) -> Place {
    Place { zone: zone.into(), ..Place::default() }
}

fn local() -> LocalCluster {
    LocalCluster { name: ClusterName("local".into()), place: Some(place("a")) }
}

/// So many endpoints of each zone that are well, and then ill ones.
fn zones(of: &[(&str, usize, usize)], weight: u32) -> LoadAssignment {
    let mut at = 0;
    let localities = of.iter().map(|(zone, well, ill)| {
        let health = [(Health::Healthy, well), (Health::Unhealthy, ill)];
        let health = health.into_iter().flat_map(|(health, n)| vec![health; *n]);
        let endpoints = health.map(|health| {
            at += 1;
            endpoint(at, weight, health)
        });
        Locality { place: place(zone), endpoints: endpoints.collect(), ..Locality::default() }
    });
    LoadAssignment { localities: localities.collect(), ..LoadAssignment::default() }
}

fn splitting(
    senders: &[(&str, usize, usize)],
    upstream: &LoadAssignment,
    balancing: &Balancing,
) -> Option<Split> {
    let senders = zones(senders, 1);
    let senders = Senders::new(&local(), &senders, Overrides::default(), &Standing::configured)?;
    let localities: Vec<_> = upstream.localities.iter().collect();
    split(&senders, balancing, &localities, Kind::Healthy, &Standing::configured)
}

fn with(change: impl FnOnce(&mut Balancing)) -> Balancing {
    let mut balancing = Balancing::default();
    change(&mut balancing);
    balancing
}

/// What goes where, of ten thousand; anywhere first.
fn per_myriad(split: &Split) -> Vec<u128> {
    let Split { anywhere, nowhere, places } = split;
    let all: u128 = anywhere + nowhere + places.iter().sum::<u128>();
    let of = |part: &u128| (part * 10_000 + all / 2) / all;
    [anywhere, nowhere].into_iter().chain(places).map(of).collect()
}

#[test]
fn what_the_own_zone_can_not_bear_goes_where_endpoints_are_left() {
    let even = Balancing::default();
    for (senders, upstream, expected) in [
        // Envoy's own example: 40, 40 and 20 % send, 25, 50 and 25 % take.
        (
            &[("a", 2, 0), ("b", 2, 0), ("c", 1, 0)][..],
            &[("a", 2, 0), ("b", 4, 0), ("c", 2, 0)][..],
            &[0, 0, 6250, 2500, 1250][..],
        ),
        // As many as send can take it: all stays.
        (&[("a", 1, 0), ("b", 1, 0)], &[("a", 3, 0), ("b", 3, 0)], &[0, 0, 10_000, 0]),
        (&[("a", 1, 0), ("b", 3, 0)], &[("a", 2, 0), ("b", 4, 0)], &[0, 0, 10_000, 0]),
        // Nobody takes it where it comes from: by what is left elsewhere.
        (&[("a", 1, 0), ("b", 1, 0)], &[("b", 3, 0), ("c", 3, 0)], &[0, 0, 0, 10_000]),
        (
            &[("a", 2, 0), ("b", 1, 0), ("c", 1, 0)],
            &[("b", 3, 0), ("c", 3, 0)],
            &[0, 0, 5000, 5000],
        ),
        // Who is ill neither sends nor takes.
        (
            &[("a", 2, 0), ("b", 2, 1), ("c", 1, 1)],
            &[("a", 2, 0), ("b", 4, 1), ("c", 2, 1)],
            &[0, 0, 6250, 2500, 1250],
        ),
        (&[("a", 1, 0), ("b", 1, 0)], &[("a", 0, 2), ("b", 6, 0)], &[0, 0, 0, 10_000]),
    ] {
        let split = splitting(senders, &zones(upstream, 3), &even);
        assert_eq!(per_myriad(&split.unwrap()), expected, "{senders:?} {upstream:?}");
    }
}

#[test]
fn it_is_not_by_zone_unless_that_makes_sense() {
    let senders = &[("a", 1, 0), ("b", 1, 0)][..];
    let upstream = &[("a", 3, 0), ("b", 3, 0)][..];
    let even = Balancing::default();
    let split = |senders, upstream, balancing: &Balancing| {
        splitting(senders, &zones(upstream, 1), balancing)
    };
    assert!(split(senders, upstream, &even).is_some());
    for (what, senders, upstream) in [
        ("one zone takes it", senders, &[("a", 6, 0)][..]),
        ("one zone sends", &[("a", 2, 0)], upstream),
        ("nobody sends from here", &[("b", 1, 0), ("c", 1, 0)], upstream),
        ("five are few", senders, &[("a", 3, 0), ("b", 2, 4)]),
        ("most who send are ill", &[("a", 1, 1), ("b", 0, 1)], upstream),
    ] {
        assert_eq!(split(senders, upstream, &even), None, "{what}");
    }
    let off = with(|balancing| balancing.zone_aware.routing_enabled = 0);
    assert_eq!(split(senders, upstream, &off), None);
    let few = with(|balancing| balancing.zone_aware.min_cluster_size = 5);
    assert!(split(senders, &[("a", 3, 0), ("b", 2, 4)], &few).is_some());
    let nowhere = LocalCluster { place: None, ..local() };
    let of = zones(senders, 1);
    assert_eq!(Senders::new(&nowhere, &of, Overrides::default(), &Standing::configured), None);
}

#[test]
fn a_part_of_the_traffic_may_be_by_zone_and_fail_with_the_senders() {
    let senders = &[("a", 2, 0), ("b", 2, 0), ("c", 1, 0)][..];
    let upstream = zones(&[("a", 2, 0), ("b", 4, 0), ("c", 2, 0)], 1);
    let quarter = with(|balancing| balancing.zone_aware.routing_enabled = 25);
    let split = splitting(senders, &upstream, &quarter).unwrap();
    assert_eq!(per_myriad(&split), [7500, 0, 1563, 625, 313]);
    let ill = &[("a", 1, 2), ("b", 0, 1)][..];
    assert_eq!(splitting(ill, &upstream, &quarter), None);
    let failing = Balancing { fail_traffic_on_panic: true, ..quarter };
    let split = splitting(ill, &upstream, &failing).unwrap();
    assert_eq!(per_myriad(&split), [7500, 2500, 0, 0, 0]);
    let calm = Balancing { panic_threshold: 20, ..failing };
    assert_eq!(per_myriad(&splitting(ill, &upstream, &calm).unwrap())[1], 0);
}

#[test]
fn a_zone_may_be_forced_or_weighed() {
    let one = &[("a", 4, 0)][..];
    let upstream = zones(&[("a", 2, 0), ("b", 6, 0)], 1);
    let forced = |least| with(|balancing| balancing.zone_aware.force_local_zone = Some(least));
    assert_eq!(per_myriad(&splitting(one, &upstream, &forced(2)).unwrap()), [0, 0, 10_000, 0]);
    // Too few: as much as they can bear.
    assert_eq!(per_myriad(&splitting(one, &upstream, &forced(3)).unwrap()), [0, 0, 2500, 7500]);
    let mut heavy = zones(&[("a", 3, 0), ("b", 3, 0)], 1);
    heavy.localities[1].endpoints = (20..23).map(|i| endpoint(i, 4, Health::Healthy)).collect();
    let senders = &[("a", 1, 0), ("b", 1, 0)][..];
    let weighed = with(|balancing| balancing.zone_aware.by_weight = true);
    assert_eq!(
        per_myriad(&splitting(senders, &heavy, &Balancing::default()).unwrap()),
        [0, 0, 10_000, 0]
    );
    assert_eq!(per_myriad(&splitting(senders, &heavy, &weighed).unwrap()), [0, 0, 4000, 6000]);
}

/// A snapshot with a local cluster and one that takes its traffic.
struct Play {
    cell: SnapshotCell,
    balancers: Balancers,
}

impl Play {
    fn start(layer: &str) -> Self {
        let layers = LayeredRuntime::of_resources([layer.into()]);
        Self { cell: SnapshotCell::new(layers, Some(local())), balancers: Balancers::default() }
    }

    fn serves(&self, updated: Resources) {
        let changes = Changes { updated, removed: Removed::default() };
        self.cell.update(changes, String::new()).unwrap();
        self.balancers.look_around(&self.cell.load(), &mut |_| 0);
    }

    fn clusters(&self, senders: &[(&str, usize, usize)], upstream: &[(&str, usize, usize)]) {
        let of = [("local", zones(senders, 1)), ("c", zones(upstream, 1))];
        let clusters = of.map(|(name, assignment)| {
            cluster(name, LbPolicy::RoundRobin, Discovery::Static(Arc::new(assignment)))
        });
        self.serves(Resources { clusters: clusters.into(), ..Resources::default() });
    }

    /// How often each zone is picked, of a hundred times.
    fn picked(&self) -> Vec<u32> {
        let snapshot = self.cell.load();
        let cluster = snapshot.cluster(&ClusterName("c".into())).unwrap();
        let assignment = snapshot.assignment(cluster).unwrap();
        let counts = counts(&self.balancers, cluster, &assignment, 100);
        let mut counts = counts.into_iter();
        let zones = assignment.localities.iter();
        zones.map(|zone| counts.by_ref().take(zone.endpoints.len()).sum()).collect()
    }

    /// What the kernel would be told, by zone.
    fn told(&self) -> Vec<u64> {
        let snapshot = self.cell.load();
        let cluster = snapshot.cluster(&ClusterName("c".into())).unwrap();
        let assignment = snapshot.assignment(cluster).unwrap();
        let shares = shares(cluster, &assignment, &Around::of(&snapshot)).unwrap();
        let of = |zone: &Locality| {
            let own = shares.iter().filter(|(endpoint, _)| zone.endpoints.contains(endpoint));
            own.map(|(_, weight)| u64::from(*weight)).sum()
        };
        assignment.localities.iter().map(of).collect()
    }
}

#[test]
fn picks_follow_senders_and_runtime_values() {
    let play = Play::start("layer");
    let senders = &[("a", 2, 0), ("b", 2, 0)][..];
    play.clusters(senders, &[("a", 3, 0), ("b", 3, 0)]);
    assert_eq!(play.picked(), [100, 0]);
    assert_eq!(play.told(), [3, 0], "the kernel's share is to the own zone alone");
    // More send from here than can be taken here; who is asked is the same.
    play.clusters(&[("a", 3, 0), ("b", 1, 0)], &[("a", 3, 0), ("b", 3, 0)]);
    let [here, there] = play.picked()[..] else { panic!() };
    assert!(here.abs_diff(66) <= 1 && there.abs_diff(34) <= 1, "{here} {there}");
    let [here, there] = play.told()[..] else { panic!() };
    assert!((here * 10_000 / (here + there)).abs_diff(6666) <= 1, "{here} {there}");

    play.clusters(senders, &[("a", 3, 0), ("b", 3, 0)]);
    let layer = |key: &str, value: f64| {
        let values = BTreeMap::from([(key.into(), RuntimeValue::Number(value))]);
        let layer = RuntimeLayer { values };
        Resources { runtime: vec![("layer".into(), layer)], ..Resources::default() }
    };
    let even = |picked: Vec<u32>| picked[0].abs_diff(50) <= 1 && picked[1].abs_diff(50) <= 1;
    play.serves(layer(ENABLED, 0.0));
    assert!(even(play.picked()));
    play.serves(layer(MIN_CLUSTER_SIZE, 7.0));
    assert!(even(play.picked()));
    play.serves(layer(MIN_CLUSTER_SIZE, 6.0));
    assert_eq!(play.picked(), [100, 0]);
    // One zone sends: only if that is forced.
    play.clusters(&[("a", 2, 0)], &[("a", 3, 0), ("b", 3, 0)]);
    assert!(even(play.picked()));
    play.serves(layer(FORCE_LOCAL_ZONE, 3.0));
    assert_eq!(play.picked(), [100, 0]);
}

#[test]
fn senders_are_as_well_as_they_are_found_to_be() {
    let play = Play::start("layer");
    let check = check();
    let senders = zones(&[("a", 1, 0), ("b", 2, 0)], 1);
    let there: Vec<_> = senders.localities[1].endpoints.iter().map(|e| e.address).collect();
    let mut of = cluster("local", LbPolicy::RoundRobin, Discovery::Static(Arc::new(senders)));
    of.monitoring.health_check = Some(Arc::new(check.clone()));
    let upstream = Discovery::Static(Arc::new(zones(&[("a", 3, 0), ("b", 6, 0)], 1)));
    let upstream = cluster("c", LbPolicy::RoundRobin, upstream);
    play.serves(Resources { clusters: vec![of, upstream], ..Resources::default() });
    let snapshot = play.cell.load();
    play.balancers.monitor(&snapshot, &mut |_| 0, Instant::now());
    // A third sends from here, a third takes here.
    let name = ClusterName("local".into());
    let checked = |address, result| {
        let mut noise = Noise::default();
        let of = (&name, address);
        play.balancers.checked(of, &check, result, Instant::now(), &mut noise.draw());
    };
    let own = addr("10.3.0.2:80");
    for address in there.iter().copied().chain([own]) {
        checked(address, CheckResult::Passed { degraded: false });
    }
    assert_eq!(play.picked(), [100, 0]);
    checked(there[0], CheckResult::Failed { at_once: true, excluded: false });
    // Now it is a half that sends from here.
    let [here, there] = play.picked()[..] else { panic!() };
    assert!(here.abs_diff(66) <= 1 && there.abs_diff(34) <= 1, "{here} {there}");
    assert!(matches!(Around::of(&snapshot).0, Known::Changing), "the kernel is not told");
}
