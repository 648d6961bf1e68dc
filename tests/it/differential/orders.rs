//! The first configuration, type by type, in every order.

use tests::{
    probe::{Answers, Probe},
    twins::{ADDRESSES, Twins, WEB_PORT},
};

use super::world::{CLUSTER, ENDPOINTS, LISTENER, ROUTES, World, all_to};

fn orders() -> Vec<Vec<&'static str>> {
    let mut orders = vec![Vec::new()];
    for kind in [LISTENER, ROUTES, CLUSTER, ENDPOINTS] {
        let with = |order: &Vec<&'static str>| {
            let places = 0..=order.len();
            places.map(|at| [&order[..at], &[kind], &order[at..]].concat()).collect::<Vec<_>>()
        };
        orders = orders.iter().flat_map(with).collect();
    }
    orders
}

fn every_order(name: &str, delta: bool) {
    let mut twins = Twins::start(name, delta);
    let [one, ..] = ADDRESSES.map(|ip| format!("{ip}:80"));
    let probes = [Probe::get(&one, "/")];
    for (number, order) in orders().into_iter().enumerate() {
        // Names of their own: a listener of Envoy's that drains holds on to its routes.
        let [routes, web] = ["routes", "web"].map(|name| format!("{name}-{number}"));
        let mut world = World::default();
        world.by_rds(&format!("one-{number}"), &one, &routes).routes(&routes, all_to(&web));
        world.eds(&web, &[twins.backends[0].at(WEB_PORT)]);
        for so_far in 0..=order.len() {
            let kinds = &order[..so_far];
            twins.serve(world.only(kinds)).expect(&[]);
            // Without its routes a listener serves nothing, but each waits in its own way: the
            // agent takes them for empty (404) as soon as a delta server says that it has
            // none, so that the listener's policy is in force, or after 15 s; Envoy leaves the
            // listener warming in delta, and takes an empty state of the world for an answer.
            if kinds.contains(&LISTENER) && !kinds.contains(&ROUTES) {
                let (envoy, agent) = twins.ask(&probes);
                for answers in [&envoy[0], &agent[0]] {
                    assert!(answers.is_nothing() || answers.is_status(404), "{answers}");
                }
                continue;
            }
            let expected = |answers: &[Answers]| match (so_far, kinds.contains(&LISTENER)) {
                (4, _) if !answers[0].is_status(200) => Err(format!("not served: {}", answers[0])),
                (_, false) if !answers[0].is_nothing() => Err("without a listener?".to_owned()),
                _ => Ok(()),
            };
            twins.agree(&format!("{kinds:?} of {order:?}"), &probes, expected);
        }
    }
    twins.control_plane.expect_no_violations();
}

#[test]
fn the_first_configuration_may_come_in_any_order_in_state_of_the_world() {
    every_order("diff-orders-sotw", false);
}

#[test]
fn the_first_configuration_may_come_in_any_order_in_delta() {
    every_order("diff-orders-delta", true);
}
