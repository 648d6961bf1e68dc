use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::*;
use crate::{
    model::cluster::{
        Balancing, Cluster, Discovery, Endpoint, EndpointCheck, LbPolicy, LoadAssignment,
        Monitoring, OutlierDetection, Probe, TcpProbe,
    },
    policy::fixtures::{cluster, snapshot},
    route::lb::{
        Balancers, Choice, Outcome,
        tests::{assignment, at},
    },
    snapshot::Snapshot,
};

const SECOND: Duration = Duration::from_secs(1);
const PASSED: CheckResult = CheckResult::Passed { degraded: false };
const NETWORK: CheckResult = CheckResult::Failed { at_once: false, excluded: false };
const ANSWER: CheckResult = CheckResult::Failed { at_once: true, excluded: false };

/// Each interval is another number of seconds.
pub(crate) fn check() -> HealthCheck {
    HealthCheck {
        timeout: SECOND,
        interval: SECOND,
        initial_jitter: Duration::ZERO,
        interval_jitter: Duration::ZERO,
        interval_jitter_percent: 0,
        unhealthy_threshold: 2,
        healthy_threshold: 3,
        reuse_connection: true,
        no_traffic_interval: 60 * SECOND,
        no_traffic_healthy_interval: 50 * SECOND,
        unhealthy_interval: 2 * SECOND,
        unhealthy_edge_interval: 3 * SECOND,
        healthy_edge_interval: 4 * SECOND,
        log_failures: false,
        log_successes: false,
        probe: Probe::Tcp(TcpProbe::default()),
    }
}

struct Play {
    balancers: Balancers,
    cluster: Cluster,
    snapshot: Arc<Snapshot>,
    check: Arc<HealthCheck>,
}

impl Play {
    fn new(hosts: usize, change: impl FnOnce(&mut Cluster)) -> Self {
        let check = Arc::new(check());
        let monitoring =
            Monitoring { health_check: Some(Arc::clone(&check)), ..Monitoring::default() };
        let discovery = Discovery::Static(assignment(&vec![1; hosts]));
        let balancing = Balancing { panic_threshold: 0, ..Balancing::default() };
        let cluster = cluster("c", LbPolicy::RoundRobin, discovery);
        let mut cluster = Cluster { monitoring, balancing, ..cluster };
        change(&mut cluster);
        let snapshot = snapshot(vec![], vec![cluster.clone()]);
        let play = Self { balancers: Balancers::default(), cluster, snapshot, check };
        play.balancers.monitor(&play.snapshot, &mut |_| 0, Instant::now());
        play
    }

    /// How long until the next check, in seconds.
    fn checked(&self, host: u8, result: CheckResult) -> Option<u64> {
        let endpoint = format!("10.3.0.{host}:80").parse().unwrap();
        let of = (&self.cluster.name, endpoint);
        let pause = self.balancers.checked(of, &self.check, result, Instant::now(), &mut |_| 0);
        pause.map(|pause| pause.as_secs())
    }

    fn takes(&self) -> Vec<String> {
        let assignment = self.snapshot.assignment(&self.cluster).unwrap();
        let picks = (0..20).filter_map(|i| {
            let choice = Choice::default();
            self.balancers.pick(&self.cluster, &assignment, choice, at(), &mut |bound| i % bound)
        });
        let mut taken: Vec<_> = picks.map(|(endpoint, _)| endpoint.address.to_string()).collect();
        taken.sort_unstable();
        taken.dedup();
        taken
    }

    #[track_caller]
    fn expect(&self, hosts: &[u8]) {
        let hosts: Vec<_> = hosts.iter().map(|host| format!("10.3.0.{host}:80")).collect();
        assert_eq!(self.takes(), hosts);
    }
}

#[test]
fn who_is_new_takes_traffic_after_one_check_and_later_after_as_many_as_it_takes() {
    let play = Play::new(2, |_| ());
    play.expect(&[]);
    // There was traffic: nobody could take it.
    assert_eq!(play.checked(1, PASSED), Some(1));
    play.expect(&[1]);
    assert_eq!(play.checked(2, NETWORK), Some(2));
    assert_eq!(play.checked(2, PASSED), Some(4));
    assert_eq!(play.checked(2, PASSED), Some(4));
    play.expect(&[1]);
    assert_eq!(play.checked(2, PASSED), Some(1));
    play.expect(&[1, 2]);
    assert_eq!(play.checked(1, NETWORK), Some(3));
    assert_eq!(play.checked(1, PASSED), Some(1));
    assert_eq!(play.checked(1, NETWORK), Some(3));
    play.expect(&[1, 2]);
    assert_eq!(play.checked(1, NETWORK), Some(2));
    play.expect(&[2]);
    // A bad answer needs no other.
    assert_eq!(play.checked(2, ANSWER), Some(2));
    play.expect(&[]);
}

#[test]
fn without_traffic_it_is_checked_less_often() {
    let play = Play::new(1, |_| ());
    assert_eq!(play.checked(1, PASSED), Some(50));
    assert_eq!(play.checked(1, NETWORK), Some(60));
    assert_eq!(play.checked(1, ANSWER), Some(60));
    assert_eq!(play.checked(1, PASSED), Some(60));
    assert_eq!(play.checked(7, PASSED), None);
}

#[test]
fn an_interval_is_longer_by_jitter() {
    let mut check = check();
    check.interval_jitter = SECOND;
    check.interval_jitter_percent = 50;
    let most = &mut |bound: u32| bound - 1;
    let longest = pause(&check, true, Transition::Unchanged, true, most);
    assert_eq!(longest, Duration::from_millis(1000 + 499 + 999));
    check.interval = Duration::ZERO;
    let least = pause(&check, true, Transition::Unchanged, true, &mut |_| 0);
    assert_eq!(least, Duration::from_millis(1));
}

#[test]
fn a_degraded_endpoint_takes_what_others_leave() {
    let play = Play::new(2, |_| ());
    play.checked(1, CheckResult::Passed { degraded: true });
    play.expect(&[1]);
    play.checked(2, PASSED);
    play.expect(&[2]);
    play.checked(1, PASSED);
    play.expect(&[1, 2]);
}

#[test]
fn who_is_not_checked_is_as_configured() {
    let play = Play::new(0, |cluster| {
        let of = |host: u8, disabled| {
            let all = assignment(&[1; 3]);
            let endpoint = &all.localities[0].endpoints[usize::from(host) - 1];
            let check = Some(Arc::new(EndpointCheck { disabled, ..EndpointCheck::default() }));
            Arc::new(Endpoint { check, ..Endpoint::clone(endpoint) })
        };
        let endpoints = vec![of(1, true), of(2, false)];
        cluster.discovery = Discovery::Static(Arc::new(LoadAssignment::of(endpoints)));
    });
    play.expect(&[1]);
    assert_eq!(play.checked(1, ANSWER), None);
    play.expect(&[1]);
}

#[test]
fn a_cluster_that_is_checked_from_now_on_serves_until_a_check_fails() {
    let mut play = Play::new(2, |cluster| cluster.monitoring.health_check = None);
    play.expect(&[1, 2]);
    play.cluster.monitoring.health_check = Some(Arc::clone(&play.check));
    // As from a control plane: the same endpoints in a new assignment.
    play.cluster.discovery = Discovery::Static(assignment(&[1, 1]));
    play.snapshot = snapshot(vec![], vec![play.cluster.clone()]);
    play.balancers.monitor(&play.snapshot, &mut |_| 0, Instant::now());
    play.expect(&[1, 2]);
    play.checked(1, ANSWER);
    play.expect(&[2]);
    // One that is new has to pass first.
    play.cluster.discovery = Discovery::Static(assignment(&[1, 1, 1]));
    play.snapshot = snapshot(vec![], vec![play.cluster.clone()]);
    play.balancers.monitor(&play.snapshot, &mut |_| 0, Instant::now());
    play.expect(&[2]);
    // And without checks all are well.
    play.cluster.monitoring.health_check = None;
    play.cluster.discovery = Discovery::Static(assignment(&[1, 1, 1]));
    play.snapshot = snapshot(vec![], vec![play.cluster.clone()]);
    play.balancers.monitor(&play.snapshot, &mut |_| 0, Instant::now());
    play.expect(&[1, 2, 3]);
}

#[test]
fn who_was_not_checked_yet_counts_for_panic_unless_it_is_to_be_ignored() {
    for (ignore_new_hosts, expected) in [(false, vec![1, 2, 3]), (true, vec![1])] {
        let play = Play::new(3, |cluster| {
            cluster.balancing = Balancing { ignore_new_hosts, ..Balancing::default() };
        });
        play.checked(1, PASSED);
        play.expect(&expected);
    }
}

#[test]
fn a_response_may_say_that_its_endpoint_is_not_well() {
    let play = Play::new(1, |_| ());
    play.checked(1, PASSED);
    let assignment = play.snapshot.assignment(&play.cluster).unwrap();
    let picked =
        play.balancers.pick(&play.cluster, &assignment, Choice::default(), at(), &mut |_| 0);
    picked.unwrap().1.reporter().fails_at_once();
    play.expect(&[]);
    for _ in 0..3 {
        play.checked(1, PASSED);
    }
    play.expect(&[1]);
}

#[test]
fn a_check_that_passes_ends_an_ejection_where_the_cluster_says_so() {
    for health_check_unejects in [true, false] {
        let play = Play::new(1, |cluster| {
            cluster.monitoring.outlier_detection = Some(Arc::new(OutlierDetection {
                max_ejection_percent: 100,
                health_check_unejects,
                ..OutlierDetection::default()
            }));
        });
        play.checked(1, PASSED);
        let assignment = play.snapshot.assignment(&play.cluster).unwrap();
        let picked =
            play.balancers.pick(&play.cluster, &assignment, Choice::default(), at(), &mut |_| 0);
        let reporter = picked.unwrap().1.reporter();
        for _ in 0..5 {
            reporter.report(Outcome::Status(500), Instant::now(), &mut |_| 0);
        }
        play.expect(&[]);
        play.checked(1, PASSED);
        play.expect(if health_check_unejects { &[1] } else { &[] });
    }
}
