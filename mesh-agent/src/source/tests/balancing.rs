//! What clusters and assignments say of load balancing.

use super::{
    refused::{cluster, endpoint, one},
    *,
};
use crate::model::cluster::{Balancing, Cluster, LoadAssignment, ZoneAware};

const POLICIES: &str = "t/envoy.extensions.load_balancing_policies";

fn policy(kind: &str, fields: &str) -> String {
    format!(
        "{{typed_extension_config: {{name: x, typed_config: \
         {{'@type': {POLICIES}.{kind}, {fields}}}}}}}"
    )
}

fn extended(policies: &[String]) -> String {
    cluster(&format!("load_balancing_policy: {{policies: [{}]}}", policies.join(", ")))
}

#[track_caller]
fn the_cluster(yaml: &str) -> Cluster {
    accepted(yaml).clusters.into_iter().next().unwrap()
}

#[track_caller]
fn the_assignment(yaml: &str) -> LoadAssignment {
    accepted(yaml).assignments.into_iter().next().unwrap().1
}

fn assignment(rest: &str) -> String {
    format!("'@type': t/envoy.config.endpoint.v3.ClusterLoadAssignment\ncluster_name: e\n{rest}\n")
}

fn lb_endpoint(host: u8, rest: &str) -> String {
    format!(
        "{{endpoint: {{address: {{socket_address: \
         {{address: 10.0.0.{host}, port_value: 80}}}}}}, {rest}}}"
    )
}

#[test]
fn both_forms_say_the_same() {
    let weighted = Balancing { locality_weighted: true, ..Balancing::default() };
    let failing = Balancing { fail_traffic_on_panic: true, ..Balancing::default() };
    let least = LbPolicy::LeastRequest { choice_count: 5 };
    let unknown = policy("pick_first.v3.PickFirst", "");
    let by_zone = "zone_aware_lb_config: {fail_traffic_on_panic: true}";
    let by_part = "routing_enabled: {value: 49.6}, min_cluster_size: 0";
    let part = ZoneAware { routing_enabled: 50, min_cluster_size: 0, ..ZoneAware::default() };
    let zoned = |zone_aware| Balancing { zone_aware, ..Balancing::default() };
    let zone_of = |rest: &str| {
        let config = format!("locality_lb_config: {{zone_aware_lb_config: {{{rest}}}}}");
        extended(&[policy("least_request.v3.LeastRequest", &format!("choice_count: 5, {config}"))])
    };
    let force = |least| ZoneAware { force_local_zone: Some(least), ..ZoneAware::default() };
    let round_robin = policy("round_robin.v3.RoundRobin", "");
    for (yaml, lb_policy, balancing) in [
        (cluster(""), LbPolicy::RoundRobin, Balancing::default()),
        (cluster("lb_policy: RANDOM"), LbPolicy::Random, Balancing::default()),
        (
            cluster("common_lb_config: {locality_weighted_lb_config: {}}"),
            LbPolicy::RoundRobin,
            weighted.clone(),
        ),
        (
            cluster(&format!("common_lb_config: {{{by_zone}}}")),
            LbPolicy::RoundRobin,
            failing.clone(),
        ),
        (
            cluster(&format!("common_lb_config: {{zone_aware_lb_config: {{{by_part}}}}}")),
            LbPolicy::RoundRobin,
            zoned(part),
        ),
        (zone_of(by_part), least, zoned(part)),
        (zone_of("force_locality_direct_routing: true"), least, zoned(force(1))),
        (zone_of("force_local_zone: {}"), least, zoned(force(1))),
        (
            zone_of("force_local_zone: {min_size: 3}, force_locality_direct_routing: true"),
            least,
            zoned(force(3)),
        ),
        (
            zone_of("locality_basis: HEALTHY_HOSTS_WEIGHT"),
            least,
            zoned(ZoneAware { by_weight: true, ..ZoneAware::default() }),
        ),
        (
            cluster("common_lb_config: {healthy_panic_threshold: {value: 33.9}}"),
            LbPolicy::RoundRobin,
            Balancing { panic_threshold: 33, ..Balancing::default() },
        ),
        (
            extended(&[policy("least_request.v3.LeastRequest", "choice_count: 5")]),
            least,
            Balancing::default(),
        ),
        (
            extended(&[policy("random.v3.Random", &format!("locality_lb_config: {{{by_zone}}}"))]),
            LbPolicy::Random,
            failing.clone(),
        ),
        (
            extended(&[policy(
                "round_robin.v3.RoundRobin",
                "locality_lb_config: {locality_weighted_lb_config: {}}",
            )]),
            LbPolicy::RoundRobin,
            weighted.clone(),
        ),
        (
            // The first that is supported counts.
            extended(&[
                unknown,
                policy(
                    "wrr_locality.v3.WrrLocality",
                    &format!("endpoint_picking_policy: {{policies: [{round_robin}]}}"),
                ),
            ]),
            LbPolicy::RoundRobin,
            weighted.clone(),
        ),
    ] {
        let got = the_cluster(&yaml);
        assert_eq!((got.lb_policy, got.balancing), (lb_policy, balancing), "{yaml}");
    }
}

#[test]
fn policies_that_are_not_there_are_refused_by_path() {
    let at = "clusters[c].load_balancing_policy.policies[0]";
    let config = ".typed_extension_config.typed_config";
    for (policy, expected) in [
        (
            policy("ring_hash.v3.RingHash", "hash_balance_factor: 120"),
            format!("{config}.hash_balance_factor: is not supported"),
        ),
        (
            policy("ring_hash.v3.RingHash", "minimum_ring_size: 9, maximum_ring_size: 8"),
            format!("{config}.minimum_ring_size: is more than maximum_ring_size"),
        ),
        (
            policy("maglev.v3.Maglev", "table_size: 65536"),
            format!("{config}.table_size: 65536 is not a prime up to 5000011"),
        ),
        (
            policy("pick_first.v3.PickFirst", ""),
            format!(": x ({}.pick_first.v3.PickFirst) is not supported", &POLICIES[2..]),
        ),
        (
            policy("least_request.v3.LeastRequest", "active_request_bias: {default_value: -1}"),
            format!("{config}.active_request_bias: must not be negative"),
        ),
        (
            policy("round_robin.v3.RoundRobin", "slow_start_config: {slow_start_window: -1s}"),
            format!(
                "{config}.slow_start_config.slow_start_window: is negative or beyond ten thousand \
                 years"
            ),
        ),
        (
            policy(
                "random.v3.Random",
                "locality_lb_config: {zone_aware_lb_config: {routing_enabled: {value: 101}}}",
            ),
            format!(
                "{config}.locality_lb_config.zone_aware_lb_config.routing_enabled: 101 is not a \
                 percentage"
            ),
        ),
        (
            policy(
                "random.v3.Random",
                "locality_lb_config: {zone_aware_lb_config: {locality_basis: 7}}",
            ),
            format!(
                "{config}.locality_lb_config.zone_aware_lb_config.locality_basis: 7 is unknown"
            ),
        ),
    ] {
        one(extended(&[policy]), at, &expected);
    }
    for (fields, expected) in [
        ("lb_policy: LOAD_BALANCING_POLICY_CONFIG", ".load_balancing_policy.policies: is missing"),
        (
            "common_lb_config: {healthy_panic_threshold: {value: 101}}",
            ".common_lb_config.healthy_panic_threshold: 101 is not a percentage",
        ),
        (
            "common_lb_config: {close_connections_on_host_set_change: true}",
            ".common_lb_config.close_connections_on_host_set_change: is not supported",
        ),
        (
            "load_assignment: {cluster_name: c, policy: {endpoint_stale_after: 5s}}",
            ".load_assignment.policy.endpoint_stale_after: is for EDS: nothing would renew these",
        ),
    ] {
        one(cluster(fields), "clusters[c]", expected);
    }
}

#[test]
fn an_assignment_is_read_as_envoy_reads_it() {
    let place = "locality: {region: r, zone: z}";
    let yaml = assignment(&format!(
        "endpoints:\n\
         - {{priority: 1, lb_endpoints: [{}]}}\n\
         - {{{place}, load_balancing_weight: 2, lb_endpoints: [{}, {}]}}\n\
         - {{{place}, load_balancing_weight: 3, lb_endpoints: [{}, {{endpoint_name: there}}]}}\n\
         - {{load_balancing_weight: 9, lb_endpoints: [{}]}}\n\
         named_endpoints: {{there: {{address: {{socket_address: {{address: 10.0.0.9, port_value: 80}}}}}}}}\n\
         policy: {{overprovisioning_factor: 100, weighted_priority_health: true, \
         endpoint_stale_after: 60s, drop_overloads: [\
         {{category: a, drop_percentage: {{numerator: 5}}}}, \
         {{category: b, drop_percentage: {{numerator: 5, denominator: MILLION}}}}]}}",
        lb_endpoint(1, ""),
        lb_endpoint(1, "load_balancing_weight: 7"),
        lb_endpoint(2, "health_status: DRAINING"),
        lb_endpoint(2, ""),
        lb_endpoint(4, "health_status: TIMEOUT"),
    ));
    let got = the_assignment(&yaml);
    let localities: Vec<_> = got
        .localities
        .iter()
        .map(|locality| {
            let hosts = locality.endpoints.iter().map(|e| e.address.ip().to_string());
            (locality.priority, &*locality.place.zone, locality.weight, hosts.collect::<Vec<_>>())
        })
        .collect();
    let hosts = |hosts: &[&str]| hosts.iter().map(|&host| host.to_owned()).collect::<Vec<_>>();
    // Of an address the first counts, of a locality's weights the last.
    assert_eq!(
        localities,
        [
            (0, "z", 3, hosts(&["10.0.0.2", "10.0.0.9"])),
            (0, "", 0, hosts(&["10.0.0.4"])),
            (1, "", 0, hosts(&["10.0.0.1"])),
        ]
    );
    assert!(got.endpoints().next().unwrap().health == Health::Unhealthy);
    assert_eq!((got.overprovisioning_factor, got.weighted_priority_health), (100, true));
    assert!(got.stale_at.is_some());
    let drops: Vec<_> = got.drop_overloads.iter().map(|d| (&*d.category, d.per_million)).collect();
    assert_eq!(drops, [("a", 50_000), ("b", 5)]);
}

#[test]
fn assignments_that_can_not_be_honoured_are_refused_by_path() {
    for (rest, expected) in [
        (
            "policy: {overprovisioning_factor: 0}",
            ".policy.overprovisioning_factor: must be at least 1",
        ),
        (
            "policy: {endpoint_stale_after: 0s}",
            ".policy.endpoint_stale_after: must be more than zero",
        ),
        (
            "policy: {drop_overloads: [{drop_percentage: {numerator: 1}}]}",
            ".policy.drop_overloads[0].category: is missing",
        ),
        (
            "policy: {drop_overloads: [{category: a, drop_percentage: {numerator: 101}}]}",
            ".policy.drop_overloads[0].drop_percentage: is more than everything",
        ),
        (
            "policy: {disable_overprovisioning: true}",
            ".policy.disable_overprovisioning: unknown field",
        ),
        (
            "endpoints: [{leds_cluster_locality_config: {leds_collection_name: x}}]",
            ".endpoints[0].leds_cluster_locality_config: LEDS is not supported: use lb_endpoints",
        ),
        (
            "endpoints: [{lb_endpoints: [{endpoint_name: nobody}]}]",
            ".endpoints[0].lb_endpoints[0].endpoint_name: there is no `nobody` among named_endpoints",
        ),
    ] {
        one(assignment(rest), "endpoints[e]", expected);
    }
    assert_eq!(the_assignment(&endpoint("")).drop_overloads, []);
}
