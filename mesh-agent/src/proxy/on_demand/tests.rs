//! Names that clients choose stay few, whoever asks for how many.

use std::{collections::BTreeSet, sync::LazyLock};

use super::*;
use crate::{
    model::cluster::{
        Balancing, Cluster, ClusterName, Discovery as By, LbPolicy, UpstreamProtocol,
    },
    snapshot::{Changes, Resources},
};

const SOON: Duration = Duration::from_secs(5);

/// What is asked for.
#[derive(Default)]
struct Asked(Mutex<BTreeSet<String>>);

impl Asked {
    fn names(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().cloned().collect()
    }
}

impl Discovery for Asked {
    fn want(&self, sought: &Sought) {
        assert!(self.0.lock().unwrap().insert(sought.name().to_owned()), "asked for twice");
    }

    fn unwant(&self, sought: &Sought) {
        assert!(self.0.lock().unwrap().remove(sought.name()), "was not asked for");
    }
}

fn on_demand() -> (Arc<OnDemand>, Arc<Asked>, Arc<SnapshotCell>) {
    let (asked, snapshots) = (Arc::<Asked>::default(), Arc::<SnapshotCell>::default());
    let discovery = Arc::clone(&asked) as Arc<dyn Discovery>;
    let on_demand = OnDemand::new(Some(discovery), Arc::clone(&snapshots), Metrics::new());
    (Arc::new(on_demand), asked, snapshots)
}

fn of(name: &str) -> Sought {
    Sought::Cluster(name.into())
}

fn pod() -> &'static WorkloadUid {
    static POD: LazyLock<WorkloadUid> = LazyLock::new(|| WorkloadUid("a pod".into()));
    &POD
}

fn deliver(snapshots: &SnapshotCell, name: &str) {
    let cluster = Cluster {
        name: ClusterName(name.into()),
        discovery: By::OriginalDestination,
        lb_policy: LbPolicy::RoundRobin,
        connect_timeout: SOON,
        upstream_protocol: UpstreamProtocol::Http1,
        connection_limits: Default::default(),
        circuit_breakers: Arc::default(),
        tls: None,
        monitoring: crate::model::cluster::Monitoring::default(),
        socket_matches: Vec::new(),
        balancing: Balancing::default(),
        table_space: None,
    };
    let updated = Resources { clusters: vec![cluster], ..Resources::default() };
    snapshots.update(Changes { updated, ..Changes::default() }, String::new()).unwrap();
}

fn has(name: &'static str) -> impl Fn(&Snapshot) -> bool {
    move |snapshot| snapshot.cluster(&ClusterName(name.into())).is_some()
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_for_one_name_ask_once_and_go_on_together() {
    let (on_demand, asked, snapshots) = on_demand();
    let sought = of("a");
    let both = async {
        tokio::join!(
            on_demand.obtain(pod(), &sought, SOON, has("a")),
            on_demand.obtain(pod(), &sought, SOON, has("a")),
            async {
                tokio::task::yield_now().await;
                assert_eq!(asked.names(), ["a"]);
                deliver(&snapshots, "a");
            }
        )
    };
    assert_eq!(both.await, (Ok(()), Ok(()), ()));
    assert_eq!(asked.names(), ["a"], "what was found is asked for on");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_to_be_had_is_forgotten() {
    let (on_demand, asked, _snapshots) = on_demand();
    let sought = of("a");
    let (absent, ()) = tokio::join!(on_demand.obtain(pod(), &sought, SOON, has("a")), async {
        tokio::task::yield_now().await;
        on_demand.answered(&[of("b")]);
        on_demand.answered(&[of("a")]);
    });
    assert_eq!(absent, Err(Unavailable::Absent));
    let late = on_demand.obtain(pod(), &of("c"), SOON, has("c")).await;
    assert_eq!(late, Err(Unavailable::Late));
    let long = "x".repeat(NAME_MAX_BYTES + 1);
    assert_eq!(on_demand.obtain(pod(), &of(&long), SOON, has("x")).await, Err(Unavailable::Absent));
    assert_eq!(asked.names(), Vec::<String>::new());
    assert_eq!(on_demand.table().names.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_goes_away_leaves_no_name_behind() {
    let (on_demand, asked, _snapshots) = on_demand();
    let sought = of("a");
    tokio::select! {
        _ = on_demand.obtain(pod(), &sought, SOON, has("a")) => panic!("it was never there"),
        () = tokio::task::yield_now() => {}
    }
    assert_eq!(asked.names(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn requests_beyond_the_bound_do_not_wait() {
    let (on_demand, asked, _snapshots) = on_demand();
    let waiting: Vec<_> = (0..HELD_MAX)
        .map(|i| {
            let on_demand = Arc::clone(&on_demand);
            let pod = WorkloadUid(format!("pod {}", i / HELD_OF_POD_MAX).into());
            tokio::spawn(async move {
                on_demand.obtain(&pod, &of(&format!("n{i}")), SOON, |_| false).await
            })
        })
        .collect();
    while on_demand.table().held < HELD_MAX {
        tokio::task::yield_now().await;
    }
    assert_eq!(on_demand.obtain(pod(), &of("more"), SOON, |_| false).await, Err(Unavailable::Full));
    for waiting in waiting {
        assert_eq!(waiting.await.unwrap(), Err(Unavailable::Late));
    }
    assert_eq!(asked.names(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn the_flood_of_one_pod_leaves_room_for_others() {
    let (on_demand, _asked, snapshots) = on_demand();
    let flood: Vec<_> = (0..2 * HELD_OF_POD_MAX)
        .map(|i| {
            let on_demand = Arc::clone(&on_demand);
            tokio::spawn(async move {
                on_demand.obtain(pod(), &of(&format!("n{i}")), SOON, |_| false).await
            })
        })
        .collect();
    while on_demand.table().held < HELD_OF_POD_MAX {
        tokio::task::yield_now().await;
    }
    assert_eq!(on_demand.obtain(pod(), &of("a"), SOON, has("a")).await, Err(Unavailable::Full));
    let neighbour = WorkloadUid("a neighbour".into());
    let sought = of("a");
    let (found, ()) = tokio::join!(on_demand.obtain(&neighbour, &sought, SOON, has("a")), async {
        tokio::task::yield_now().await;
        deliver(&snapshots, "a");
    });
    assert_eq!(found, Ok(()));
    let mut full = 0;
    for waiting in flood {
        full += usize::from(waiting.await.unwrap() == Err(Unavailable::Full));
    }
    assert_eq!(full, HELD_OF_POD_MAX);
    assert!(on_demand.table().held_of.is_empty());
}

#[tokio::test(start_paused = true)]
async fn found_names_make_room_for_new_ones() {
    let (on_demand, asked, _snapshots) = on_demand();
    for i in 0..=NAMES_MAX {
        on_demand.obtain(pod(), &of(&format!("n{i}")), SOON, |_| true).await.unwrap();
    }
    let wanted = asked.names();
    assert_eq!(wanted.len(), NAMES_MAX);
    assert!(!wanted.contains(&"n0".to_owned()) && wanted.contains(&format!("n{NAMES_MAX}")));
}

#[tokio::test]
async fn where_nobody_can_be_asked_nobody_waits() {
    let on_demand = OnDemand::new(None, Arc::default(), Metrics::new());
    assert_eq!(on_demand.obtain(pod(), &of("a"), SOON, has("a")).await, Err(Unavailable::Absent));
}
