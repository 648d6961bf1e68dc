//! An agent that follows this one, beside it: what it is given, and what this one still does.
//!
//! What listens passes over, what is pinned and recorded is left alone, admin closes. What is
//! served goes on here until it ends, judged by the configuration as it comes.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::{sync::mpsc, time};

use super::{Agent, gateway};
use crate::{
    capture::{self, HandOverSocket, Inherited, Offer, Taker},
    source::LastGood,
};

/// How long what this agent owns may take to let go of it.
const GIVING: Duration = Duration::from_secs(10);

/// After a failed accept: out of descriptors, most likely.
const PAUSE: Duration = Duration::from_millis(100);

/// Takes the place of the agent that is there, if one is. Until it has, that one goes on.
///
/// # Errors
/// Why it goes on, or what became of it.
pub(super) async fn take_over(
    state_dir: &Path,
    last_good: &LastGood,
) -> anyhow::Result<Option<Inherited>> {
    let state_dir = state_dir.to_owned();
    let ready = last_good.is_there();
    let taken = tokio::task::spawn_blocking(move || {
        let Some(offer) = Offer::ask(&state_dir)? else { return Ok(None) };
        // What could fail later is tried now: there is a way back.
        if !ready {
            anyhow::bail!("there is no configuration yet that could be served at once");
        }
        capture::rehearse()?;
        Ok(Some(offer.take()?))
    });
    taken.await?.context("no agent's place is taken over")
}

/// Answers whoever wants to take this agent's place; who does is sent on.
pub(super) async fn answer(agent: Arc<Agent>, takers: mpsc::Sender<Taker>) {
    let socket = match HandOverSocket::bind(&agent.config.node.state_dir) {
        Ok(socket) => socket,
        Err(error) => {
            return tracing::error!(%error, "this agent can't hand over: stop it to upgrade it");
        }
    };
    while !agent.given.is_cancelled() {
        let follower = match socket.accept().await {
            Ok(follower) => follower,
            Err(error) => {
                tracing::warn!(%error, "who would take over can't be heard");
                time::sleep(PAUSE).await;
                continue;
            }
        };
        let of = Arc::clone(&agent);
        let offered = tokio::task::spawn_blocking(move || {
            let mut listening = of.capture.listening()?;
            listening.extend(gateway::listening(&of)?);
            anyhow::Ok(follower.offer(listening)?)
        });
        match offered.await {
            Ok(Ok(taker)) => {
                if takers.send(taker).await.is_err() {
                    return;
                }
            }
            Ok(Err(error)) => tracing::warn!("not handed over: {error:#}"),
            Err(error) => tracing::error!(%error, "not handed over"),
        }
    }
}

/// Lets go of everything but what is being served. `false`: it could not be let go of in
/// time, and stays this agent's until it ends.
pub(super) async fn give_up(agent: &Agent, taker: Taker) -> bool {
    tracing::info!("handing over to another agent");
    let let_go = async {
        // Whoever waits for this finds that it was given, afterwards.
        let _no_change = agent.pods.changing.lock().await;
        agent.given.cancel();
        agent.answering.cancel();
        agent.pods.stop_accepting();
        agent.owning.close();
        agent.owning.wait().await;
    };
    if time::timeout(GIVING, let_go).await.is_err() {
        agent.given.cancel();
        tracing::error!(waited = ?GIVING, "not handed over: something does not end");
        return false;
    }
    agent.capture.give_up();
    taker.given();
    true
}
