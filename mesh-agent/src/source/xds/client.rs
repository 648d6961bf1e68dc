//! Streams to management servers, and files in their place: one [`Session`] hears them
//! all.
//!
//! What is said on a stream is the session's; [`stream`] finds a server and keeps to it,
//! [`link`] carries one connection, [`file`] watches a file. This file hands on what
//! they bring and wakes the session when its time has come.

mod backoff;
mod file;
mod link;
mod status;
mod stream;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};
use prost::Message as _;
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
    time,
};
use tokio_util::sync::CancellationToken;

use super::{
    ResourceType,
    options::{INITIAL_FETCH_TIMEOUT, Origin, Service, Subscription, XdsOptions},
    session::{Carries, Now, Request, Session, Variant},
    wishes::{Wanted, Wishes},
};
use crate::{snapshot::RejectedResource, source::Update};

pub use status::{AdsStatus, StreamState, StreamStatus};

/// Requests that wait to be sent on a stream.
const REQUESTS: usize = 64;

/// What streams have to say; each waits until it was heard.
const EVENTS: usize = 1;

/// Larger responses are decoded aside, so that nothing else waits for them.
const LARGE_BYTES: usize = 64 << 10;

/// How soon a stream that takes no request is tried again, and how long it may refuse.
const BUSY: Duration = Duration::from_millis(100);
const SEND_PATIENCE: Duration = Duration::from_secs(30);

/// Control planes, and files that hold what they would say.
#[derive(Debug)]
pub struct AdsSource {
    options: Box<XdsOptions>,
    status: watch::Sender<Arc<AdsStatus>>,
    wishes: Wishes,
    restored: bool,
}

/// What happens on a stream.
enum Event {
    /// A server is being dialled. What is to be said to it goes in here; ending `stop`
    /// ends the connection, with the reason given before.
    Connecting {
        server: String,
        requests: mpsc::Sender<Request>,
        stop: CancellationToken,
    },
    /// The server can be talked to. It may have nothing to say.
    Open,
    Said(Response),
    /// What a file holds can't be used.
    Refused(Vec<RejectedResource>),
    Ended(String),
}

enum Response {
    Sotw(DiscoveryResponse),
    Delta(DeltaDiscoveryResponse),
}

/// What a stream is called: its place in the session, and the count of streams at the time,
/// since others had the place before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct StreamId {
    at: usize,
    number: u64,
}

type Events = mpsc::Sender<(StreamId, Event)>;

/// One stream, as it is now.
#[derive(Default)]
struct Stream {
    number: u64,
    /// What ends it.
    task: Option<AbortHandle>,
    requests: Option<(mpsc::Sender<Request>, CancellationToken)>,
    /// Since when there has been no room for a request.
    busy: Option<Instant>,
}

/// Nobody takes updates any more.
struct Done;

impl AdsSource {
    /// A source that dials once it is watched.
    pub fn new(options: XdsOptions) -> Self {
        let status = watch::Sender::default();
        Self { options: Box::new(options), status, wishes: Wishes::default(), restored: false }
    }

    /// Something is in force already: what is fixed does not go out without what servers
    /// say.
    pub fn restored(&mut self) {
        self.restored = true;
    }

    /// The state of the streams and of each type, always the newest.
    pub fn status(&self) -> watch::Receiver<Arc<AdsStatus>> {
        self.status.subscribe()
    }

    /// Where names are asked for that no resource needs.
    pub fn wishes(&self) -> Wishes {
        self.wishes.clone()
    }

    /// Sends what the control plane says, until `shutdown` or until nobody receives any
    /// more: first a whole configuration, then changes. Servers come and go; what they
    /// said last stays in force meanwhile.
    pub async fn watch(self, updates: mpsc::Sender<Update>, shutdown: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            _ = self.work(updates) => {}
        }
    }

    async fn work(&self, updates: mpsc::Sender<Update>) -> Result<(), Done> {
        let mut session = self.session();
        let mut wanted: watch::Receiver<Wanted> = self.wishes.subscribe();
        session.want(wanted.borrow_and_update().keys(), Now::read());
        let mut streams: Vec<Stream> = Vec::new();
        let mut number = 0;
        // Dropped with this future, and all their streams with them.
        let mut tasks = JoinSet::new();
        let (sender, mut events) = mpsc::channel(EVENTS);
        loop {
            for at in session.poll_closed() {
                if let Some(stream) = streams.get_mut(at) {
                    std::mem::take(stream).task.inspect(AbortHandle::abort);
                }
                self.status.send_modify(|status| Arc::make_mut(status).close(at));
            }
            for (at, origin, kind) in session.poll_streams() {
                streams.resize_with(streams.len().max(at + 1), Stream::default);
                number += 1;
                let task = self.open(&mut tasks, StreamId { at, number }, &origin, kind, &sender);
                if let Some(stream) = streams.get_mut(at) {
                    *stream = Stream { number, task, ..Stream::default() };
                }
            }
            // What has ended needs nobody to wait for it.
            while tasks.try_join_next().is_some() {}
            let now = Now::read();
            if session.is_due(now.at) {
                session.on_time(now);
            }
            while let Some(update) = session.poll_update(now) {
                updates.send(update).await.map_err(|_| Done)?;
            }
            self.show(&session);
            let retry = speak(&mut session, &mut streams, now);
            tokio::select! {
                Some((id, event)) = events.recv() => {
                    self.hear(&mut session, &mut streams, id, event);
                }
                Ok(()) = wanted.changed() => {
                    session.want(wanted.borrow_and_update().keys(), Now::read());
                }
                () = until(session.deadline_after(now.at).into_iter().chain(retry).min()) => {}
            }
        }
    }

    /// A session over the streams that are known from the start; resources may ask for
    /// more.
    fn session(&self) -> Session {
        let XdsOptions {
            node,
            servers,
            ads,
            listeners,
            clusters,
            secrets,
            layers,
            fixed,
            // The data path's.
            tracing: _,
        } = self.options.as_ref();
        let mut session = Session::new([], node.clone().into(), INITIAL_FETCH_TIMEOUT);
        session.knows(servers.keys().cloned().collect());
        if let Some(Service { variant, .. }) = ads {
            let mut carries = Carries::all(*variant);
            let by_ads = |subscription: &Option<Subscription>| {
                subscription.as_ref().is_some_and(|s| s.origin == Origin::Ads)
            };
            carries.types.retain(|kind| match kind {
                ResourceType::Listener => by_ads(listeners),
                ResourceType::Cluster => by_ads(clusters),
                _ => true,
            });
            session.carry(Origin::Ads, carries);
        }
        for (kind, subscription) in
            [(ResourceType::Listener, listeners), (ResourceType::Cluster, clusters)]
        {
            let Some(Subscription { origin, .. }) = subscription else { continue };
            let variant = match origin {
                Origin::Ads => continue,
                Origin::Service(service) => service.variant,
                Origin::File(_) => Variant::Sotw,
            };
            session.carry(origin.clone(), Carries { variant, types: vec![kind] });
        }
        if let Some(service) = secrets {
            let carries = Carries { variant: service.variant, types: vec![ResourceType::Secret] };
            session.carry(Origin::Service(service.clone()), carries);
        }
        session.refer(layers);
        let now = Now::read();
        let alone_by = (!self.restored).then(|| now.at + INITIAL_FETCH_TIMEOUT);
        session.hold(fixed, alone_by, now);
        session
    }

    /// Starts to find a server, or to watch a file, for that stream; `kind` is the one
    /// type it carries, unless it is the aggregated one.
    fn open(
        &self,
        tasks: &mut JoinSet<()>,
        id: StreamId,
        origin: &Origin,
        kind: Option<ResourceType>,
        events: &Events,
    ) -> Option<AbortHandle> {
        let (at, events) = (id.at, events.clone());
        let timeout = self.first_fetch(kind);
        let service = match origin {
            Origin::Ads => self.options.ads.as_ref(),
            Origin::Service(service) => Some(service),
            Origin::File(watched) => {
                let name = format!("file://{}", watched.path.display());
                self.status.send_modify(|status| {
                    Arc::make_mut(status).stream(at).starts(name, Variant::Sotw, kind);
                });
                return Some(tasks.spawn(file::watch(watched.clone(), kind?, id, events)));
            }
        };
        let service = service?;
        self.status.send_modify(|status| {
            Arc::make_mut(status).stream(at).starts(String::new(), service.variant, kind);
        });
        let stream = stream::Stream {
            servers: self.options.servers_of(service),
            variant: service.variant,
            kind,
            rate: service.rate,
            message_max: service.message_max,
            first_answer: timeout,
        };
        Some(tasks.spawn(stream.run(id, events)))
    }

    /// How long the first answer of a server may take; `None`: for ever.
    fn first_fetch(&self, kind: Option<ResourceType>) -> Option<Duration> {
        let XdsOptions { listeners, clusters, .. } = self.options.as_ref();
        let subscriptions: &[&Option<Subscription>] = match kind {
            None => &[listeners, clusters],
            Some(ResourceType::Listener) => &[listeners],
            Some(ResourceType::Cluster) => &[clusters],
            Some(_) => &[],
        };
        let told = subscriptions.iter().filter_map(|s| s.as_ref()?.timeout).min();
        Some(told.unwrap_or(INITIAL_FETCH_TIMEOUT)).filter(|timeout| !timeout.is_zero())
    }

    fn hear(&self, session: &mut Session, streams: &mut [Stream], id: StreamId, event: Event) {
        let StreamId { at, number } = id;
        // Not the last words of one that had the place before.
        let Some(stream) = streams.get_mut(at).filter(|stream| stream.number == number) else {
            return;
        };
        let update = |change: &dyn Fn(&mut StreamStatus)| {
            self.status.send_modify(|status| change(Arc::make_mut(status).stream(at)));
        };
        match event {
            Event::Connecting { server, requests, stop } => {
                stream.requests = Some((requests, stop));
                stream.busy = None;
                session.connected(at, Now::read());
                update(&|status| status.connecting(server.clone()));
            }
            Event::Open => update(&StreamStatus::opened),
            Event::Said(response) => {
                take(session, at, response);
                update(&StreamStatus::answered);
            }
            Event::Refused(reasons) => {
                session.refuse(at, reasons, Now::read());
                update(&StreamStatus::refused);
            }
            Event::Ended(error) => {
                stream.requests = None;
                stream.busy = None;
                session.disconnected(at);
                update(&|status| status.ended(error.clone()));
            }
        }
    }

    fn show(&self, session: &Session) {
        self.status.send_modify(|status| Arc::make_mut(status).types = session.status());
    }
}

/// Sends what there is to say on each stream; when to try again where there was no room.
fn speak(session: &mut Session, streams: &mut [Stream], now: Now) -> Option<Instant> {
    let mut retry = None;
    for (at, stream) in streams.iter_mut().enumerate() {
        let Some((requests, stop)) = &stream.requests else { continue };
        let is_full = loop {
            match requests.try_reserve() {
                Ok(room) => match session.poll_request(at, now) {
                    Some(request) => room.send(request),
                    None => break false,
                },
                // Its end is under way.
                Err(mpsc::error::TrySendError::Closed(())) => break false,
                Err(mpsc::error::TrySendError::Full(())) => break true,
            }
        };
        stream.busy = is_full.then(|| stream.busy.unwrap_or(now.at));
        if is_full {
            retry = Some(now.at + BUSY);
        }
        let patient = |since| now.at - since <= SEND_PATIENCE && !session.is_overdue(at);
        if stream.busy.is_some_and(|since| !patient(since)) {
            stop.cancel();
        }
    }
    retry
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

fn take(session: &mut Session, at: usize, response: Response) {
    let large = match &response {
        Response::Sotw(response) => response.encoded_len(),
        Response::Delta(response) => response.encoded_len(),
    } > LARGE_BYTES;
    let work = || match response {
        Response::Sotw(response) => session.on_sotw(at, response, Now::read()),
        Response::Delta(response) => session.on_delta(at, response, Now::read()),
    };
    if large {
        tokio::task::block_in_place(work);
    } else {
        work();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_reads_no_requests_loses_its_own_stream_and_no_other() {
        let carries = |kind| Carries { variant: Variant::Sotw, types: vec![kind] };
        let carried = [ResourceType::Cluster, ResourceType::Listener].map(carries);
        let node = super::super::options::NodeInfo::default().into();
        let mut session = Session::new(carried, node, INITIAL_FETCH_TIMEOUT);
        let (deaf, _unread) = mpsc::channel(1);
        let (good, mut read) = mpsc::channel(REQUESTS);
        let mut streams = [deaf, good].map(|requests| Stream {
            requests: Some((requests, CancellationToken::new())),
            ..Stream::default()
        });
        let mut now = Now::read();
        session.connected(0, now);
        session.connected(1, now);
        // The first request fills the first stream.
        assert!(speak(&mut session, &mut streams, now).is_some());
        assert!(read.try_recv().is_ok());
        now.at += SEND_PATIENCE + BUSY;
        assert!(speak(&mut session, &mut streams, now).is_some());
        let is_cut = |stream: &Stream| stream.requests.as_ref().unwrap().1.is_cancelled();
        assert_eq!(streams.each_ref().map(is_cut), [true, false]);
    }
}
