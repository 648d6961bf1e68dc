//! One stream's servers: which is tried when, and which is kept to.

use std::time::Duration;

use tokio::{sync::mpsc, time};
use tokio_util::sync::CancellationToken;

use super::{
    super::{ResourceType, address::Server, options::RateLimit, session::Variant},
    Event, Events, REQUESTS, StreamId,
    backoff::{Backoff, Limiter},
    link::{self, Link},
};

/// The first pause after every server has failed, and the longest.
const BACKOFF: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// How often it is looked whether a server is back that comes before the one in use: at
/// first, and at last.
const LOOK_BACK: Duration = Duration::from_secs(1);
const LOOK_BACK_MAX: Duration = Duration::from_secs(60);

/// A stream as it is to be.
pub(super) struct Stream {
    /// In order.
    pub(super) servers: Vec<Server>,
    pub(super) variant: Variant,
    /// The one type it carries; `None`: all.
    pub(super) kind: Option<ResourceType>,
    pub(super) rate: Option<RateLimit>,
    pub(super) message_max: Option<u32>,
    /// How long a server that has never answered may keep us waiting.
    pub(super) first_answer: Option<Duration>,
}

impl Stream {
    /// Runs for ever, or until nobody listens.
    pub(super) async fn run(self, id: StreamId, events: Events) {
        let mut backoff = Backoff::new(BACKOFF, BACKOFF_MAX);
        let mut look_back = Backoff::new(LOOK_BACK, LOOK_BACK_MAX);
        let mut limiter = Limiter::new(self.rate);
        // Whether any server ever did: from then on, silence means "nothing new".
        let mut heard = false;
        loop {
            let mut earlier: &[Server] = &[];
            for (i, server) in self.servers.iter().enumerate() {
                let (requests, to_send) = mpsc::channel(REQUESTS);
                let stop = CancellationToken::new();
                let name = server.to_string();
                let connecting = Event::Connecting { server: name, requests, stop: stop.clone() };
                if events.send((id, connecting)).await.is_err() {
                    return;
                }
                let start = time::Instant::now();
                let mut link = Link {
                    id,
                    variant: self.variant,
                    kind: self.kind,
                    events: &events,
                    limiter: &mut limiter,
                    message_max: self.message_max,
                    first_answer: self.first_answer.filter(|_| !heard),
                    answered: false,
                };
                let (end, back) = tokio::select! {
                    end = link.carry(server, to_send) => (end, false),
                    () = stop.cancelled() => ("the server reads no requests".to_owned(), false),
                    () = back(earlier, &mut look_back) => {
                        ("a server that comes before it is back".to_owned(), true)
                    }
                };
                let answered = link.answered;
                heard |= answered;
                if events.send((id, Event::Ended(end))).await.is_err() {
                    return;
                }
                // One that was kept to without a word had nothing new to say.
                let good = answered || (heard && start.elapsed() > BACKOFF_MAX);
                if good {
                    backoff.ended(start.elapsed());
                }
                if good && i == 0 {
                    look_back.reset();
                }
                if back {
                    break;
                }
                if good {
                    // The first server is tried first again, but not at once.
                    time::sleep(backoff.pause()).await;
                    break;
                }
                earlier = self.servers.get(..=i).unwrap_or_default();
                if earlier.len() == self.servers.len() {
                    time::sleep(backoff.pause()).await;
                }
            }
        }
    }
}

/// Waits until one of these can be reached; for ever, where there is none.
async fn back(servers: &[Server], pauses: &mut Backoff) {
    if servers.is_empty() {
        return std::future::pending().await;
    }
    loop {
        time::sleep(pauses.pause()).await;
        for server in servers {
            if link::connect(server).await.is_ok() {
                return;
            }
        }
    }
}
