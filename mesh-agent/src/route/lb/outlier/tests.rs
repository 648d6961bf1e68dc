use std::{sync::Arc, time::Duration};

use super::*;
use crate::{
    model::cluster::{
        Balancing, Cluster, Discovery, FailurePercentage, LbPolicy, Monitoring, SuccessRate,
    },
    policy::fixtures::{cluster, snapshot},
    route::lb::{
        Balancers, Choice,
        tests::{assignment, at},
    },
    snapshot::Snapshot,
};

/// Endpoints of one cluster, and a clock.
struct Play {
    balancers: Balancers,
    cluster: Cluster,
    snapshot: Arc<Snapshot>,
    begin: Instant,
    now: Instant,
}

const MS: fn(u64) -> Duration = Duration::from_millis;

impl Play {
    fn new(hosts: usize, config: OutlierDetection) -> Self {
        let monitoring =
            Monitoring { outlier_detection: Some(Arc::new(config)), health_check: None };
        let balancing = Balancing { panic_threshold: 0, ..Balancing::default() };
        let discovery = Discovery::Static(assignment(&vec![1; hosts]));
        let cluster = cluster("c", LbPolicy::RoundRobin, discovery);
        let cluster = Cluster { monitoring, balancing, ..cluster };
        let snapshot = snapshot(vec![], vec![cluster.clone()]);
        let now = Instant::now();
        let play = Self { balancers: Balancers::default(), cluster, snapshot, begin: now, now };
        play.balancers.monitor(&play.snapshot, &mut |_| 0, now);
        play
    }

    /// At this endpoint, so often.
    fn goes(&self, host: u8, outcome: Outcome, times: usize) {
        self.goes_by(host, outcome, times, 0);
    }

    fn goes_by(&self, host: u8, outcome: Outcome, times: usize, dice: u32) {
        let assignment = self.snapshot.assignment(&self.cluster).unwrap();
        let reporter = (0..1000)
            .find_map(|_| {
                let choice = Choice::default();
                let (endpoint, load) =
                    self.balancers.pick(&self.cluster, &assignment, choice, at(), &mut |_| 0)?;
                let is = endpoint.address.to_string() == format!("10.3.0.{host}:80");
                is.then(|| load.reporter())
            })
            .expect("takes traffic");
        for _ in 0..times {
            reporter.report(outcome, self.now, &mut |bound| dice.min(bound - 1));
        }
    }

    fn after(&mut self, time: Duration) {
        self.now = self.begin + time;
        self.balancers.sweep(self.now, &mut |_| 0);
    }

    /// Who takes traffic.
    fn takes(&self) -> Vec<u8> {
        let assignment = self.snapshot.assignment(&self.cluster).unwrap();
        let mut taken: Vec<u8> = (0..50)
            .filter_map(|_| {
                let choice = Choice::default();
                self.balancers.pick(&self.cluster, &assignment, choice, at(), &mut |_| 0)
            })
            .map(|(endpoint, _)| match endpoint.address.ip() {
                std::net::IpAddr::V4(ip) => ip.octets()[3],
                std::net::IpAddr::V6(_) => 0,
            })
            .collect();
        taken.sort_unstable();
        taken.dedup();
        taken
    }
}

fn everybody() -> OutlierDetection {
    OutlierDetection {
        max_ejection_percent: 100,
        interval: MS(1000),
        base_ejection_time: MS(1500),
        max_ejection_time: MS(4000),
        ..OutlierDetection::default()
    }
}

fn three() -> Consecutive {
    Consecutive { failures: 3, enforcing: 100 }
}

const NEVER: Consecutive = Consecutive { failures: 0, enforcing: 100 };

#[test]
fn who_fails_in_a_row_is_left_out_and_comes_back_after_ever_longer() {
    let mut play = Play::new(2, OutlierDetection { consecutive_5xx: three(), ..everybody() });
    play.goes(1, Outcome::Status(500), 2);
    play.goes(1, Outcome::Status(404), 1);
    play.goes(1, Outcome::Status(503), 2);
    assert_eq!(play.takes(), [1, 2]);
    play.goes(1, Outcome::Status(500), 1);
    assert_eq!(play.takes(), [2]);
    // Looked at once an interval.
    play.after(MS(1000));
    assert_eq!(play.takes(), [2]);
    play.after(MS(1999));
    assert_eq!(play.takes(), [2]);
    play.after(MS(2000));
    assert_eq!(play.takes(), [1, 2]);
    // The second time, twice as long.
    play.goes(1, Outcome::Failed, 3);
    assert_eq!(play.takes(), [2]);
    for time in [3000, 4000] {
        play.after(MS(time));
        assert_eq!(play.takes(), [2], "{time}");
    }
    play.after(MS(5000));
    assert_eq!(play.takes(), [1, 2]);
}

#[test]
fn no_more_are_left_out_than_may_be() {
    for (percent, always, left) in
        [(100, false, vec![]), (50, false, vec![2]), (49, false, vec![1, 2]), (0, true, vec![2])]
    {
        let config = OutlierDetection {
            consecutive_5xx: three(),
            max_ejection_percent: percent,
            always_eject_one: always,
            ..everybody()
        };
        let play = Play::new(2, config);
        play.goes(1, Outcome::Status(500), 3);
        play.goes(2, Outcome::TimedOut, 3);
        assert_eq!(play.takes(), left, "{percent} %");
    }
}

#[test]
fn what_is_not_enforced_ejects_nobody() {
    let config = OutlierDetection {
        consecutive_5xx: Consecutive { failures: 3, enforcing: 40 },
        ..everybody()
    };
    let play = Play::new(2, config);
    play.goes_by(1, Outcome::Status(500), 3, 40);
    assert_eq!(play.takes(), [1, 2]);
    // Counted anew.
    play.goes_by(1, Outcome::Status(500), 2, 39);
    assert_eq!(play.takes(), [1, 2]);
    play.goes_by(1, Outcome::Status(500), 1, 39);
    assert_eq!(play.takes(), [2]);
}

#[test]
fn each_kind_of_failure_counts_as_what_it_is() {
    use Outcome::{Connected, Failed, Opened, Status, TimedOut};
    let gateway = OutlierDetection {
        consecutive_5xx: NEVER,
        consecutive_gateway_failure: three(),
        ..everybody()
    };
    let split = OutlierDetection {
        split_local_origin: true,
        consecutive_local_origin_failure: three(),
        consecutive_5xx: three(),
        ..everybody()
    };
    let five = OutlierDetection { consecutive_5xx: three(), ..everybody() };
    for (config, outcomes, ejected) in [
        (&gateway, vec![Status(502), Status(503), Status(504)], true),
        (&gateway, vec![Status(502), Failed, TimedOut], true),
        (&gateway, vec![Status(502), Status(500), Status(503), Status(504)], false),
        (&gateway, vec![Status(500); 9], false),
        (&five, vec![Failed, Connected, Failed, Connected, Failed], true),
        (&five, vec![Failed, Opened, Failed, Opened, Failed], false),
        (&split, vec![Failed, TimedOut, Failed], true),
        (&split, vec![Failed, Failed, Connected, Failed, Opened, Failed], false),
        (
            &split,
            vec![Connected, Status(500), Connected, Status(500), Connected, Status(500)],
            true,
        ),
        (&split, vec![Status(500), Failed, Status(500), Failed, Status(200)], false),
    ] {
        let play = Play::new(2, config.clone());
        for outcome in &outcomes {
            play.goes(1, *outcome, 1);
        }
        let left = if ejected { vec![2] } else { vec![1, 2] };
        assert_eq!(play.takes(), left, "{outcomes:?}");
    }
}

#[test]
fn who_does_worse_than_the_others_is_left_out() {
    let config = OutlierDetection {
        consecutive_5xx: NEVER,
        success_rate: SuccessRate {
            minimum_hosts: 4,
            request_volume: 10,
            ..OutlierDetection::default().success_rate
        },
        ..everybody()
    };
    // 50, 100, 100, 100, 100: Envoy's example, the threshold is 52.
    let mut play = Play::new(5, config.clone());
    for host in 1..=5 {
        play.goes(host, Outcome::Status(200), 5);
        play.goes(host, Outcome::Status(if host == 1 { 500 } else { 200 }), 5);
    }
    assert_eq!(play.takes(), [1, 2, 3, 4, 5]);
    play.after(MS(1000));
    assert_eq!(play.takes(), [2, 3, 4, 5]);
    // Too few were asked enough.
    let mut play = Play::new(5, config);
    for host in 1..=5 {
        play.goes(
            host,
            Outcome::Status(if host == 1 { 500 } else { 200 }),
            if host < 4 { 10 } else { 9 },
        );
    }
    play.after(MS(1000));
    assert_eq!(play.takes(), [1, 2, 3, 4, 5]);
}

#[test]
fn who_fails_too_often_is_left_out() {
    let percentage = FailurePercentage {
        threshold: 40,
        minimum_hosts: 1,
        request_volume: 5,
        enforcing: 100,
        enforcing_local_origin: 100,
    };
    for (split, failure) in [(false, Outcome::Status(500)), (true, Outcome::Failed)] {
        let config = OutlierDetection {
            consecutive_5xx: NEVER,
            consecutive_local_origin_failure: NEVER,
            split_local_origin: split,
            failure_percentage: percentage,
            ..everybody()
        };
        let mut play = Play::new(2, config);
        play.goes(1, failure, 2);
        play.goes(1, Outcome::Opened, 3);
        play.goes(2, failure, 1);
        play.goes(2, Outcome::Opened, 4);
        play.after(MS(999));
        assert_eq!(play.takes(), [1, 2]);
        play.after(MS(1000));
        assert_eq!(play.takes(), [2]);
        // The next interval knows nothing of this one.
        play.after(MS(3000));
        assert_eq!(play.takes(), [1, 2]);
    }
}

#[test]
fn another_configuration_begins_anew_and_endpoints_that_stay_keep_their_state() {
    let config = OutlierDetection { consecutive_5xx: three(), ..everybody() };
    let mut play = Play::new(2, config.clone());
    play.goes(1, Outcome::Status(500), 3);
    // The same again, and one endpoint more.
    play.cluster.discovery = Discovery::Static(assignment(&[1, 1, 1]));
    play.snapshot = snapshot(vec![], vec![play.cluster.clone()]);
    play.balancers.monitor(&play.snapshot, &mut |_| 0, play.now);
    assert_eq!(play.takes(), [2, 3]);
    let config = OutlierDetection { consecutive_5xx: NEVER, ..config };
    play.cluster.monitoring.outlier_detection = Some(Arc::new(config));
    play.snapshot = snapshot(vec![], vec![play.cluster.clone()]);
    play.balancers.monitor(&play.snapshot, &mut |_| 0, play.now);
    assert_eq!(play.takes(), [1, 2, 3]);
}

#[test]
fn of_an_endpoint_that_is_gone_nothing_is_kept() {
    let mut play = Play::new(2, OutlierDetection { consecutive_5xx: three(), ..everybody() });
    play.goes(2, Outcome::Status(500), 3);
    for hosts in [&[1][..], &[1, 1]] {
        play.cluster.discovery = Discovery::Static(assignment(hosts));
        play.snapshot = snapshot(vec![], vec![play.cluster.clone()]);
        play.balancers.monitor(&play.snapshot, &mut |_| 0, play.now);
        play.balancers.retain(&play.snapshot);
    }
    assert_eq!(play.takes(), [1, 2]);
}
