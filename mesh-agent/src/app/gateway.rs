//! The sockets of gateway listeners: bound, served and closed as the configuration says.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    os::fd::AsFd,
    sync::{Arc, Weak},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpSocket},
    time,
};
use tokio_util::sync::CancellationToken;

use super::{Agent, workers::Accepting};
use crate::{
    capture::Listening,
    model::{captured::Pod, gateway::Gateway, listener::Direction},
    observe::log_limit::LogLimit,
    proxy::{self, HalfOpen},
};

/// How long to wait before what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Somebody else may have the address for long.
static FAILURES: LogLimit = LogLimit::new();

/// A control plane may change its mind about many of them, again and again.
static CHANGES: LogLimit = LogLimit::new();

/// What a socket is opened by.
type Wanted = HashMap<SocketAddr, (u32, bool)>;

struct Bound {
    options: (u32, bool),
    accepting: CancellationToken,
}

/// Follows the configuration until the agent stops.
pub(super) async fn follow(agent: Arc<Agent>) {
    let pod = proxy::gateway::workload(agent.config.node.gateway.clone());
    let mut changes = agent.dataplane.snapshot.changes();
    let mut bound: HashMap<SocketAddr, Bound> = HashMap::new();
    let mut certified = false;
    loop {
        changes.mark_unchanged();
        let wanted = wanted(&agent);
        let mut whole = true;
        if wanted.is_empty() == certified {
            whole &= certify(&agent, &mut certified).await;
        }
        bound.retain(|address, socket| {
            let stays = wanted.get(address) == Some(&socket.options);
            if !stays {
                if let Some(suppressed) = CHANGES.allows() {
                    tracing::info!(%address, suppressed, "gateway listener closed");
                }
                socket.accepting.cancel();
            }
            stays
        });
        agent.gateways().retain(|address, _| wanted.contains_key(address));
        for (address, options) in wanted {
            if bound.contains_key(&address) {
                continue;
            }
            match open(&agent, &pod, address, options) {
                Ok((accepting, listener)) => {
                    if let Some(suppressed) = CHANGES.allows() {
                        tracing::info!(%address, suppressed, "gateway listener bound");
                    }
                    agent.gateways().insert(address, Ok(listener));
                    bound.insert(address, Bound { options, accepting });
                }
                Err(error) => {
                    whole = false;
                    if let Some(suppressed) = FAILURES.allows() {
                        tracing::error!(%address, %error, suppressed, "gateway listener not bound");
                    }
                    agent.gateways().insert(address, Err(error.to_string()));
                }
            }
        }
        // Once the configuration is there, what nobody wanted by now nobody wants.
        if *changes.borrow() > 0 {
            agent.inherited.close(false);
        }
        tokio::select! {
            () = agent.given.cancelled() => break,
            changed = changes.changed() => if changed.is_err() { break },
            () = time::sleep(RETRY), if !whole => {}
        }
    }
    bound.values().for_each(|socket| socket.accepting.cancel());
}

fn wanted(agent: &Agent) -> Wanted {
    let snapshot = agent.dataplane.snapshot.load();
    let gateways = snapshot.listeners.iter().filter(|l| l.direction == Direction::Gateway);
    let options = |gateway: &Gateway| (gateway.backlog, gateway.freebind);
    gateways.filter_map(|l| Some((l.address, options(l.gateway.as_ref()?)))).collect()
}

/// The listeners of the configuration in force that nobody can reach, and why.
pub(super) fn unbound(agent: &Agent) -> Vec<(SocketAddr, String)> {
    let gateways = agent.gateways();
    let why = |address: &SocketAddr| match gateways.get(address) {
        Some(Ok(_)) => None,
        Some(Err(why)) => Some(why.clone()),
        None => Some("not yet".to_owned()),
    };
    wanted(agent).into_keys().filter_map(|address| Some((address, why(&address)?))).collect()
}

/// The gateway has a certificate for as long as there is a listener; whether that is so.
async fn certify(agent: &Agent, certified: &mut bool) -> bool {
    let (identity, identities) = (&agent.config.node.gateway, &agent.dataplane.identities);
    if *certified {
        identities.release(identity);
        *certified = false;
        return true;
    }
    match identities.ensure(identity).await {
        Ok(()) => *certified = true,
        Err(error) => tracing::error!(%error, "the gateway has no certificate"),
    }
    *certified
}

/// Binds, and serves on the runtime of connections until the token is cancelled.
fn open(
    agent: &Arc<Agent>,
    pod: &Arc<Pod>,
    address: SocketAddr,
    (backlog, freebind): (u32, bool),
) -> io::Result<(CancellationToken, Weak<TcpListener>)> {
    let worker = agent.data.in_turn();
    let listener = {
        let _guard = worker.enter();
        Arc::new(match agent.inherited.take(None, address) {
            Some(listener) => adopt(listener, backlog)?,
            None => listen(address, backlog, freebind)?,
        })
    };
    let open = Arc::downgrade(&listener);
    let accepting = CancellationToken::new();
    let (dataplane, pod) = (Arc::clone(&agent.dataplane), Arc::clone(pod));
    let half_open = Arc::new(HalfOpen::default());
    let accepted = Accepting::new(agent, &pod, accepting.clone()).run(async move || {
        let (stream, source) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (dataplane, pod) = (Arc::clone(&dataplane), Arc::clone(&pod));
        let half_open = Arc::clone(&half_open);
        Ok((stream, async move |stream| {
            proxy::gateway::serve(dataplane, pod, &half_open, stream, source).await;
        }))
    });
    agent.owning.spawn_on(accepted, worker);
    Ok((accepting, open))
}

/// Every gateway listener that is open.
pub(super) fn listening(agent: &Agent) -> io::Result<Vec<Listening>> {
    let gateways = agent.gateways();
    let open = gateways.iter().filter_map(|(address, bound)| {
        let listener = bound.as_ref().ok()?.upgrade()?;
        Some((*address, listener))
    });
    open.map(|(address, listener)| {
        Ok(Listening { pod: None, address, socket: listener.as_fd().try_clone_to_owned()? })
    })
    .collect()
}

/// Goes on with an earlier agent's listener, and what waits in it.
fn adopt(listener: std::net::TcpListener, backlog: u32) -> io::Result<TcpListener> {
    listener.set_nonblocking(true)?;
    // Again, for it may be another one now.
    SockRef::from(&listener).listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    TcpListener::from_std(listener)
}

fn listen(address: SocketAddr, backlog: u32, freebind: bool) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restarted agent must not wait for the TIME_WAIT of its predecessor.
    socket.set_reuseaddr(true)?;
    if address.is_ipv6() {
        SockRef::from(&socket).set_only_v6(true)?;
    }
    match (freebind, address.is_ipv4()) {
        (false, _) => {}
        (true, true) => SockRef::from(&socket).set_freebind_v4(true)?,
        (true, false) => SockRef::from(&socket).set_freebind_v6(true)?,
    }
    socket.bind(address)?;
    socket.listen(backlog)
}
