//! The sole wiring site: makes every room, connects them, and takes them down again.
//!
//! Two runtimes: what moves bytes runs on one of its own, so that configuration,
//! certificates and admin requests never wait for it, nor it for them.

#![deny(unsafe_code)]

mod certificates;
mod configuration;
mod control;
mod dns;
mod drain;
mod gateway;
mod hand_over;
mod kernel_path;
mod maps;
mod memory;
mod monitoring;
mod pods;
mod self_test;
mod tables;
mod workers;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize},
    },
    time::{Duration, SystemTime},
};

use anyhow::Context;
use http::HeaderValue;
use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
    sync::{Notify, mpsc, watch},
    time,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admin::{self, PodsFile, RejectedConfig},
    capture::{self, Capture, CaptureOptions, Exclusions, GuardMode, Inherited, Taker},
    config::{self, AgentConfig, SourceConfig},
    identity::{IdentityManager, IdentityOptions},
    model::{redirect::RedirectMode, splice::SelfTest},
    observe::{
        access_log::{AccessLog, AccessLogWriter, Lines, LinesWriter},
        connections::Connections,
        metrics::{ClusterStates, Metrics},
    },
    proxy::{
        Connector, Dataplane, Options,
        http::{Breakers, Exporter, HttpServices, SpanSource, Spans, Upstreams},
        neighbours::Neighbours,
        on_demand::{Discovery, OnDemand},
    },
    snapshot::SnapshotCell,
    source::{AdsStatus, LastGood, Versions},
    transport::{
        hbone::{HbonePool, HbonePoolOptions, HboneServerOptions},
        http_pool::{HttpPool, HttpPoolOptions},
    },
};

use self::{certificates::Certificates, configuration::Source, pods::Pods, workers::Workers};

/// So many answers to names wait to be applied.
const RESOLVED_MAX: usize = 64;

/// For a peer's TLS handshake on the HBONE port.
const TLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How often stale kernel state and pods that are gone are looked for.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(5);

/// Configurations that wait to be applied.
const UPDATES: usize = 4;

/// For a request that is on its way while its connection drains.
const LAST_REQUEST: Duration = Duration::from_secs(5);

/// What connections get to close after they were cut at the drain timeout.
const CUT_GRACE: Duration = Duration::from_secs(1);

/// What the access log gets to write its last lines.
const LOG_GRACE: Duration = Duration::from_secs(2);

/// How `mesh-agent run` ended when nothing failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitReason {
    /// Told to stop; every connection ended within the drain timeout.
    Drained,
    /// Told to stop; this many connections were cut at the drain timeout.
    Cut { connections: usize },
}

/// Runs the agent until it is told to stop. Blocks; makes its own runtimes.
///
/// # Errors
/// What kept the agent from starting, or from going on.
pub fn run(config: AgentConfig) -> anyhow::Result<ExitReason> {
    raise_file_limit();
    memory::share_arenas();
    let (data, threads) = Workers::start(data_threads(&config), CUT_GRACE)?;
    let control = control_runtime()?;
    let (agent, writers, takers) = control.block_on(start(config, data))?;
    let ended = control.block_on(serve(&agent, takers));
    drop(agent);
    control.shutdown_timeout(CUT_GRACE);
    threads.end();
    let (records, lines) = writers;
    let written = records.close(LOG_GRACE);
    if !(lines.close(LOG_GRACE) && written) {
        tracing::warn!("access log: the last lines were not written in time");
    }
    ended
}

/// Where everything runs that serves no connection.
fn control_runtime() -> anyhow::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("mesh-control")
        .enable_all()
        .build()
        .context("the control runtime")
}

fn data_threads(config: &AgentConfig) -> usize {
    let all = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    config.traffic.data_threads.map_or_else(all, NonZeroUsize::get)
}

/// Every captured connection costs two descriptors.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files can't be raised");
    }
}

/// Listeners by what they are bound to.
type Gateways = BTreeMap<SocketAddr, Result<Weak<TcpListener>, String>>;

/// All that lives as long as the agent does.
struct Agent {
    config: AgentConfig,
    started_at: SystemTime,
    dataplane: Arc<Dataplane>,
    capture: Capture,
    pods: Pods,
    last_rejected: Mutex<Option<RejectedConfig>>,
    /// Why the kernel path is not used.
    kernel_path: Result<(), String>,
    /// Services that are on it.
    kernel_services: AtomicUsize,
    /// What the kernel does, once that is known.
    self_test: OnceLock<SelfTest>,
    /// Whether what it found is acted on.
    tested: AtomicBool,
    last_good: Arc<LastGood>,
    /// Of the resources in force.
    versions: Mutex<Versions>,
    /// When the configuration in force was saved, while it is the one from disk.
    restored: Mutex<Option<SystemTime>>,
    /// The connection to the control plane, if that is the source.
    ads: Option<watch::Receiver<Arc<AdsStatus>>>,
    /// The connection to who speaks SDS, if that is somebody else.
    sds: Option<watch::Receiver<Arc<AdsStatus>>>,
    /// Gateway listeners that are bound, and why others are not.
    gateways: Mutex<Gateways>,
    /// Where connections are served.
    data: Arc<Workers>,
    /// Listeners of the agent before this one, until somebody asks for them.
    inherited: Arc<Inherited>,
    /// Cancelled by SIGTERM and by whoever asks for a drain.
    stop: CancellationToken,
    /// Cancelled then, and when another agent takes over: nothing new is this one's.
    given: CancellationToken,
    /// Cancelled when another agent takes over: its admin answers.
    answering: CancellationToken,
    /// Who changes what would be the other agent's.
    owning: TaskTracker,
}

impl Agent {
    fn last_rejected(&self) -> MutexGuard<'_, Option<RejectedConfig>> {
        self.last_rejected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn versions(&self) -> MutexGuard<'_, Versions> {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gateways(&self) -> MutexGuard<'_, Gateways> {
        self.gateways.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs until nothing new is this agent's.
    fn own(&self, task: impl Future<Output = ()> + Send + 'static) {
        let given = self.given.clone();
        self.owning.spawn(async move {
            // Ended or cancelled, it is over.
            let _ = given.run_until_cancelled(task).await;
        });
    }

    fn restored(&self) -> MutexGuard<'_, Option<SystemTime>> {
        self.restored.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who writes the agent's own log, and those that are configured.
type Writers = (AccessLogWriter, LinesWriter);

/// Who is to take this agent's place.
type Takers = mpsc::Receiver<Taker>;

async fn start(
    config: AgentConfig,
    data: Arc<Workers>,
) -> anyhow::Result<(Arc<Agent>, Writers, Takers)> {
    // What is the operator's to mend comes first, before anything is attached.
    let last_good = LastGood::new(&config.node.state_dir, config.source.to_string());
    let source = Source::open(&config.source, &last_good)?;
    source.want_runtime(&config.runtime);
    let certificates = Certificates::open(&config, &source)?;
    let identities = IdentityManager::new(certificates.source(), IdentityOptions::default());
    let identities = Arc::new(identities);

    let metrics = Metrics::new();
    let (access_log, log_writer) = AccessLog::start(
        config.access_log.format,
        &config.access_log.sink,
        metrics.access_log_dropped(),
    )?;
    let (lines, lines_writer) = Lines::start(metrics.access_log_dropped())?;
    let kernel_test = tokio::task::spawn_blocking(capture::self_test);
    let kernel_path = kernel_path::availability(config.capture.kernel_path);
    if let (config::KernelPath::On, Err(why)) = (config.capture.kernel_path, &kernel_path) {
        anyhow::bail!("kernel path: {why}");
    }
    let inherited = match config.node.take_over {
        true => hand_over::take_over(&config.node.state_dir, &last_good).await?,
        false => None,
    };
    let inherited = inherited.map(Arc::new);
    let capture = {
        // Its listeners belong to the runtime that serves connections.
        let _guard = data.in_turn().enter();
        let options = CaptureOptions {
            state_dir: config.node.state_dir.clone(),
            kernel_path: kernel_path.is_ok(),
            ..capture_options(config.capture.clone())
        };
        match &inherited {
            Some(inherited) => Capture::take_over(options, Arc::clone(inherited))?,
            None => Capture::start(options)?,
        }
    };
    let stop = CancellationToken::new();
    let behind = Arc::default();
    let agent = Arc::new(Agent {
        started_at: SystemTime::now(),
        dataplane: dataplane(
            &config,
            source.discovery(),
            identities,
            metrics,
            (access_log, lines),
            &behind,
        ),
        capture,
        pods: Pods::default(),
        last_rejected: Mutex::default(),
        kernel_path,
        kernel_services: AtomicUsize::new(0),
        self_test: OnceLock::new(),
        tested: AtomicBool::new(false),
        last_good: Arc::new(last_good),
        versions: Mutex::default(),
        restored: Mutex::default(),
        gateways: Mutex::default(),
        ads: source.ads_status(),
        sds: certificates.status(),
        data,
        inherited: inherited.unwrap_or_default(),
        given: stop.child_token(),
        answering: CancellationToken::new(),
        owning: TaskTracker::new(),
        stop,
        config,
    });
    tables::before_each(&agent.dataplane);
    // Before anyone can ask whether the agent is ready.
    let wanted = pods::wanted(&agent);
    configuration::restore(&agent).await;
    listen(&agent).await?;

    let (updates, received) = mpsc::channel(UPDATES);
    let stop = agent.stop.clone();
    source.spawn(agent.restored().is_some(), updates, stop.clone());
    certificates.spawn(&agent);
    tokio::spawn(certificates::retire(Arc::clone(&agent.dataplane), stop.clone()));
    let tls = Arc::clone(&agent.dataplane.connector.tls);
    tokio::spawn(tls.follow_files(stop.clone()));
    let tls = Arc::clone(&agent.dataplane.downstream_tls);
    tokio::spawn(tls.follow_files(stop.clone()));
    agent.owning.spawn(gateway::follow(Arc::clone(&agent)));
    agent.owning.spawn(Arc::clone(&agent.last_good).write(agent.given.clone()));
    let (found, resolved) = mpsc::channel(RESOLVED_MAX);
    tokio::spawn(configuration::follow(Arc::clone(&agent), received, resolved));
    tokio::spawn(dns::follow(Arc::clone(&agent), found));
    agent.own(pods::restore(Arc::clone(&agent), wanted));
    agent.own(pods::watch_rules(Arc::clone(&agent)));
    agent.own(pods::watch_roads(Arc::clone(&agent)));
    agent.own(kernel_path::follow(Arc::clone(&agent)));
    tokio::spawn(kernel_path::judge_neighbours(Arc::clone(&agent)));
    tokio::spawn(monitoring::follow(Arc::clone(&agent)));
    tokio::spawn(tables::follow(Arc::clone(&agent), behind));
    tokio::spawn(self_test::finish(Arc::clone(&agent), kernel_test));
    let (taking, takers) = mpsc::channel(1);
    tokio::spawn(hand_over::answer(Arc::clone(&agent), taking));
    Ok((agent, (log_writer, lines_writer), takers))
}

/// The admin address and the control socket.
async fn listen(agent: &Arc<Agent>) -> anyhow::Result<()> {
    let socket = admin::bind_unix(&agent.config.admin.socket)?;
    let tcp = admin::bind_tcp(agent.config.admin.address).await?;
    tracing::info!(
        address = %agent.config.admin.address,
        socket = %socket.path().display(),
        "admin is served"
    );
    let control = || Arc::new(control::Control(Arc::clone(agent))) as Arc<dyn admin::AgentControl>;
    // They answer until the very end, or until another agent does.
    let until = &agent.answering;
    agent.owning.spawn(admin::serve_tcp(tcp, control(), until.clone()));
    agent.owning.spawn(admin::serve_unix(socket, control(), until.clone()));
    Ok(())
}

/// Capture's share of the settings, but for the state directory.
pub(crate) fn capture_options(config: config::CaptureConfig) -> CaptureOptions {
    let config::CaptureConfig {
        cgroup_root,
        bpffs,
        instance,
        bpf_log,
        splice,
        agent_down,
        hung_after,
        map_sizes,
        exclusions,
        ..
    } = config;
    let guard = match config.guard {
        config::Guard::Auto => GuardMode::Auto,
        config::Guard::On => GuardMode::On,
        config::Guard::Off => GuardMode::Off,
    };
    let redirect_peer = match config.redirect_peer {
        config::RedirectPeer::Auto => RedirectMode::Auto,
        config::RedirectPeer::On => RedirectMode::On,
        config::RedirectPeer::Off => RedirectMode::Off,
    };
    CaptureOptions {
        cgroup_root,
        bpffs,
        instance,
        exclusions: Exclusions {
            outbound_ports: exclusions.outbound_ports,
            outbound_cidrs: exclusions.outbound_cidrs,
            inbound_ports: exclusions.inbound_ports,
        },
        bpf_log,
        guard,
        redirect_peer,
        drop_non_tcp: config.non_tcp == config::NonTcp::Drop,
        probe_cgroups: config.probe_cgroups,
        splice,
        agent_down,
        hung_after,
        capacities: map_sizes,
        ..CaptureOptions::default()
    }
}

/// Empty where no control plane knows the node.
fn node_cluster(source: &SourceConfig) -> HeaderValue {
    let name = match source {
        SourceConfig::ControlPlane(options) => options.node.cluster.as_str(),
        SourceConfig::Directory(_) => "",
    };
    HeaderValue::from_str(name).unwrap_or(HeaderValue::from_static(""))
}

/// Where spans go that nobody else has said more of.
fn spans(config: &AgentConfig, metrics: &Metrics) -> (Spans, Exporter) {
    let (node, provider) = match &config.source {
        SourceConfig::ControlPlane(options) => {
            let node = &options.node;
            let zone = node.locality.clone().map(|place| place.zone).unwrap_or_default();
            let source = SpanSource { id: node.id.clone(), cluster: node.cluster.clone(), zone };
            (source, options.tracing.clone())
        }
        SourceConfig::Directory(_) => {
            let id = config.node.name.clone();
            (SpanSource { id, ..SpanSource::default() }, None)
        }
    };
    Spans::new(node, provider, metrics.spans())
}

fn dataplane(
    config: &AgentConfig,
    discovery: Option<Arc<dyn Discovery>>,
    identities: Arc<IdentityManager>,
    metrics: Metrics,
    (access_log, lines): (AccessLog, Lines),
    behind: &Arc<Notify>,
) -> Arc<Dataplane> {
    let workers = data_threads(config);
    let snapshot =
        Arc::new(SnapshotCell::new(config.runtime.clone(), config.local_cluster.clone()));
    let balancers = Arc::new(tables::balancers(behind));
    let outbound_policy = config.traffic.outbound_policy;
    let (spans, exporter) = spans(config, &metrics);
    let clusters = metrics.clusters();
    let breakers = Arc::new(Breakers::new(clusters.clone()));
    clusters.show(ClusterStates {
        endpoints: Box::new({
            let balancers = Arc::clone(&balancers);
            move || balancers.states()
        }),
        breakers: Box::new({
            let breakers = Arc::clone(&breakers);
            move || breakers.states()
        }),
    });
    let dataplane = Arc::new_cyclic(|dataplane| {
        let connector = Arc::new(Connector {
            identities: Arc::clone(&identities),
            tls: Arc::default(),
            hbone: HbonePool::new(HbonePoolOptions { workers, ..HbonePoolOptions::default() }),
            neighbours: Neighbours::default(),
            dataplane: Weak::clone(dataplane),
            metrics: metrics.clone(),
        });
        let http = HttpServices {
            spans,
            clusters,
            routes: metrics.routes(),
            grpc: metrics.grpc(),
            last_request: LAST_REQUEST.min(config.traffic.drain_timeout / 2),
            breakers,
            filters: Arc::default(),
            node_cluster: node_cluster(&config.source),
            snapshots: Arc::clone(&snapshot),
            balancers: Arc::clone(&balancers),
            outbound_policy,
            upstreams: Arc::clone(&connector) as Arc<dyn Upstreams>,
            pool: Arc::new(HttpPool::new(HttpPoolOptions {
                workers,
                ..HttpPoolOptions::default()
            })),
            on_demand: Arc::new(OnDemand::new(discovery, Arc::clone(&snapshot), metrics.clone())),
            lines,
        };
        Dataplane {
            snapshot,
            identities,
            downstream_tls: Arc::default(),
            balancers,
            connector,
            http,
            metrics,
            access_log,
            connections: Connections::default(),
            options: Options {
                outbound_policy,
                drain_timeout: config.traffic.drain_timeout,
                tls_handshake_timeout: TLS_HANDSHAKE_TIMEOUT,
                hbone_server: HboneServerOptions {
                    // The drain as a whole cuts first, and counts what it cuts.
                    drain_timeout: config.traffic.drain_timeout + CUT_GRACE,
                    ..HboneServerOptions::default()
                },
            },
            draining: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    });
    tokio::spawn(exporter.run(dataplane.http.clone()));
    dataplane
}

/// Until the agent is told to stop; then drains.
async fn serve(agent: &Arc<Agent>, mut takers: Takers) -> anyhow::Result<ExitReason> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = agent.stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
    });
    let mut maps = maps::Watch::default();
    let mut maintenance = time::interval(MAINTENANCE_INTERVAL);
    loop {
        tokio::select! {
            () = agent.stop.cancelled() => return Ok(drain::drain(agent).await),
            Some(taker) = takers.recv() => {
                if !hand_over::give_up(agent, taker).await {
                    agent.stop.cancel();
                }
                return Ok(drain::drain(agent).await);
            }
            _ = maintenance.tick() => {
                agent.dataplane.http.pool.sweep();
                agent.look_after_pods().await;
                maps.look(agent);
            }
        }
    }
}
