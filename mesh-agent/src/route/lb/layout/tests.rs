use super::*;
use crate::{
    model::cluster::{Discovery, DropOverload},
    policy::fixtures::cluster,
    route::lb::tests::endpoint,
    snapshot::Snapshot,
};

/// What the kernel would be told: endpoints by number, and weights.
fn told(lb_policy: LbPolicy, assignment: &LoadAssignment) -> Option<Vec<u32>> {
    let cluster = cluster("c", lb_policy, Discovery::Static(Arc::default()));
    Some(
        shares(&cluster, assignment, &Around::of(&Snapshot::default()))?
            .into_iter()
            .map(|(_, weight)| weight)
            .collect(),
    )
}

fn of(health: &[Health], weight: u32) -> Vec<Arc<Endpoint>> {
    health.iter().enumerate().map(|(i, health)| endpoint(i, weight, *health)).collect()
}

#[test]
fn one_set_of_endpoints_is_told_by_its_own_weights() {
    use Health::{Degraded as D, Healthy as H, Unhealthy as U};
    let assignment = LoadAssignment::of(of(&[H, H, H, U], 7));
    assert_eq!(told(LbPolicy::RoundRobin, &assignment).unwrap(), [7, 7, 7]);
    assert_eq!(told(LbPolicy::Random, &assignment).unwrap(), [1, 1, 1]);
    // Panic: all four.
    let panic = LoadAssignment::of(of(&[H, U, U, U], 7));
    assert_eq!(told(LbPolicy::RoundRobin, &panic).unwrap(), [7, 7, 7, 7]);
    // By degrees: 70 % and 30 %.
    let degrees = LoadAssignment::of(of(&[H, D], 7));
    let shares = told(LbPolicy::RoundRobin, &degrees).unwrap();
    assert_eq!(shares, [700_000_000, 300_000_000]);
}

#[test]
fn priorities_are_told_as_weights_and_what_is_not_weight_is_not_told() {
    use Health::{Healthy as H, Unhealthy as U};
    let mut assignment = LoadAssignment::of(of(&[H, U], 1));
    let second = vec![endpoint(5, 1, H), endpoint(6, 2, H)];
    assignment.localities.push(Locality { priority: 1, endpoints: second, ..Locality::default() });
    let shares = told(LbPolicy::RoundRobin, &assignment).unwrap();
    assert_eq!(shares, [700_000_000, 100_000_000, 200_000_000]);

    let dropping = LoadAssignment {
        drop_overloads: vec![DropOverload { category: "x".into(), per_million: 1 }],
        ..assignment.clone()
    };
    assert_eq!(told(LbPolicy::RoundRobin, &dropping), None);
    let stale_at = Some(std::time::Instant::now());
    assert_eq!(told(LbPolicy::RoundRobin, &LoadAssignment { stale_at, ..assignment }), None);
    assert_eq!(told(LbPolicy::RoundRobin, &LoadAssignment::default()), None);
}

#[test]
fn localities_share_as_envoys_table_says() {
    // Of a hundred endpoints of the first locality so many are healthy; weights 1 and 2.
    for (healthy, expected) in [(100, 33), (72, 33), (69, 33), (50, 26), (25, 15), (0, 0)] {
        let health = |i| if i < healthy { Health::Healthy } else { Health::Unhealthy };
        let endpoints = |from: usize, health: &dyn Fn(usize) -> Health| -> Vec<_> {
            (0..100).map(|i| endpoint(from + i, 1, health(i))).collect()
        };
        let place = |zone: &str| Place { zone: zone.into(), ..Place::default() };
        let localities = vec![
            Locality {
                place: place("x"),
                priority: 0,
                weight: 1,
                endpoints: endpoints(0, &health),
            },
            Locality {
                place: place("y"),
                priority: 0,
                weight: 2,
                endpoints: endpoints(100, &|_| Health::Healthy),
            },
        ];
        let assignment = LoadAssignment { localities, ..LoadAssignment::default() };
        let balancing = Balancing { locality_weighted: true, ..Balancing::default() };
        let parts = layout(&assignment, &balancing, None, &Standing::configured);
        let [part] = &parts[..] else { panic!("{parts:?}") };
        let weight = |zone: &str| {
            let group = part.groups.iter().find(|group| group.place.unwrap().zone == zone);
            group.map_or(0, |group| u64::from(group.weight))
        };
        let percent = (200 * weight("x") / (weight("x") + weight("y"))).div_ceil(2);
        assert_eq!(percent, expected, "{healthy}");
    }
}

#[test]
fn a_prioritys_health_may_go_by_weight() {
    use Health::{Healthy as H, Unhealthy as U};
    let endpoints = vec![endpoint(0, 9, H), endpoint(1, 1, U)];
    let second = vec![endpoint(2, 1, H)];
    let localities = vec![
        Locality { endpoints, ..Locality::default() },
        Locality { priority: 1, endpoints: second, ..Locality::default() },
    ];
    let by_number = LoadAssignment { localities, ..LoadAssignment::default() };
    let percents = |assignment: &LoadAssignment| -> Vec<_> {
        layout(assignment, &Balancing::default(), None, &Standing::configured)
            .iter()
            .map(|part| part.percent)
            .collect()
    };
    assert_eq!(percents(&by_number), [70, 30]);
    let by_weight = LoadAssignment { weighted_priority_health: true, ..by_number };
    assert_eq!(percents(&by_weight), [100]);
}
