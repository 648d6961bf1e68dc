//! The gRPC side of ADS: streams to management servers, and their ends.
//!
//! What is said on a stream is [`Session`]'s; this file dials, backs off, carries
//! requests and responses, and wakes the session when its time has come.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use envoy_types::pb::{
    envoy::{
        config::core::v3::{Node, node::UserAgentVersionType},
        service::discovery::v3::{
            DeltaDiscoveryResponse, DiscoveryResponse,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
    google::protobuf::{ListValue, Struct, Value, value::Kind},
};
use prost::Message as _;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time,
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};
use tower::service_fn;

use super::{
    address::{ServerAddress, TlsFiles},
    session::{Carries, Now, Request, Session, TypeStatus, Variant},
    wishes::{Wanted, Wishes},
};
use crate::source::Update;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The session's one stream.
const ADS: usize = 0;

/// A name that was asked for and does not come holds others up for this long.
const INITIAL_FETCH_TIMEOUT: Duration = Duration::from_secs(15);

/// The first pause after every server has failed, and the longest.
const BACKOFF: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// The largest response: several times what 10 000 clusters take.
const MESSAGE_MAX_BYTES: usize = 128 << 20;

/// A server that reads no request for so long is gone.
const SEND_PATIENCE: Duration = Duration::from_secs(30);

/// Requests that wait to be sent.
const REQUESTS: usize = 64;

/// Larger responses are decoded aside, so that nothing else waits for them.
const LARGE_BYTES: usize = 64 << 10;

const WINDOW_BYTES: u32 = 4 << 20;

/// How to reach a control plane, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdsOptions {
    /// Tried in order; never empty.
    pub servers: Vec<ServerAddress>,
    pub variant: Variant,
    pub tls: TlsFiles,
    pub node: NodeInfo,
}

/// Who the agent is to its control plane.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeInfo {
    pub id: String,
    pub cluster: String,
    pub metadata: serde_json::Map<String, serde_json::Value>,
}

impl From<NodeInfo> for Node {
    fn from(info: NodeInfo) -> Self {
        let NodeInfo { id, cluster, metadata } = info;
        Self {
            id,
            cluster,
            metadata: (!metadata.is_empty()).then(|| fields(metadata)),
            user_agent_name: "mesh-agent".to_owned(),
            user_agent_version_type: Some(UserAgentVersionType::UserAgentVersion(
                env!("CARGO_PKG_VERSION").to_owned(),
            )),
            client_features: vec!["xds.config.resource-in-sotw".to_owned()],
            ..Self::default()
        }
    }
}

fn fields(map: serde_json::Map<String, serde_json::Value>) -> Struct {
    Struct { fields: map.into_iter().map(|(name, value)| (name, of_json(value))).collect() }
}

fn of_json(value: serde_json::Value) -> Value {
    use serde_json::Value as Json;
    let kind = match value {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(value),
        Json::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or_default()),
        Json::String(value) => Kind::StringValue(value),
        Json::Array(items) => {
            Kind::ListValue(ListValue { values: items.into_iter().map(of_json).collect() })
        }
        Json::Object(map) => Kind::StructValue(fields(map)),
    };
    Value { kind: Some(kind) }
}

/// Where a stream is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamState {
    /// A server is being dialled, or has not answered yet.
    Connecting,
    /// A server answers.
    Connected,
    /// No server could be used; they are tried again soon.
    BackingOff,
}

/// What people see of the connection to the control plane.
#[derive(Debug, Clone)]
pub struct AdsStatus {
    pub server: String,
    pub variant: Variant,
    pub state: StreamState,
    /// Since when it is in this state.
    pub since: SystemTime,
    /// Why the last stream ended.
    pub last_error: Option<String>,
    /// How many streams were tried.
    pub streams: u64,
    pub types: Vec<TypeStatus>,
}

/// A control plane that speaks ADS.
#[derive(Debug)]
pub struct AdsSource {
    options: AdsOptions,
    status: watch::Sender<Arc<AdsStatus>>,
    wishes: Wishes,
}

/// A stream that is being opened, or is open.
struct Link {
    requests: mpsc::Sender<Request>,
    responses: mpsc::Receiver<Result<Response, Status>>,
    carrier: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.carrier.abort();
    }
}

enum Response {
    Sotw(DiscoveryResponse),
    Delta(DeltaDiscoveryResponse),
}

/// Nobody takes updates any more.
struct Done;

impl AdsSource {
    /// A source that dials once it is watched.
    pub fn new(options: AdsOptions) -> Self {
        let status = AdsStatus {
            server: String::new(),
            variant: options.variant,
            state: StreamState::Connecting,
            since: SystemTime::now(),
            last_error: None,
            streams: 0,
            types: Vec::new(),
        };
        Self { options, status: watch::Sender::new(Arc::new(status)), wishes: Wishes::default() }
    }

    /// The state of the stream and of each type, always the newest.
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
        let AdsOptions { variant, node, .. } = self.options.clone();
        let mut session = Session::new([Carries::all(variant)], node.into(), INITIAL_FETCH_TIMEOUT);
        let mut wanted = self.wishes.subscribe();
        let mut backoff = BACKOFF;
        loop {
            for server in &self.options.servers {
                self.enter(StreamState::Connecting, server, None);
                session.connected(ADS, Now::read());
                let mut link = self.open(server);
                let error =
                    self.converse(&mut session, &mut wanted, &mut link, server, &updates).await?;
                drop(link);
                let answered = session.is_answered(ADS);
                session.disconnected(ADS);
                tracing::warn!(%server, error, "the control plane's stream ended");
                self.enter(StreamState::BackingOff, server, Some(error));
                if answered {
                    // The first server is tried first again.
                    backoff = BACKOFF;
                    break;
                }
            }
            // Agents of many nodes must not come back all at once.
            let pause = backoff.mul_f64(rand::random_range(0.5..1.0));
            backoff = (backoff * 2).min(BACKOFF_MAX);
            self.rest(&mut session, Instant::now() + pause, &updates).await?;
        }
    }

    fn enter(&self, state: StreamState, server: &ServerAddress, error: Option<String>) {
        self.status.send_modify(|status| {
            let status = Arc::make_mut(status);
            status.server = server.to_string();
            if status.state != state {
                status.since = SystemTime::now();
            }
            status.state = state;
            status.streams += u64::from(state == StreamState::Connecting);
            status.last_error = error.or(status.last_error.take());
        });
    }

    fn show(&self, session: &Session) {
        self.status.send_modify(|status| Arc::make_mut(status).types = session.status());
    }

    /// Opens a stream, in a task of its own: a server may keep us waiting.
    fn open(&self, server: &ServerAddress) -> Link {
        let (requests, to_send) = mpsc::channel(REQUESTS);
        let (received, responses) = mpsc::channel(1);
        let (server, tls) = (server.clone(), self.options.tls.clone());
        let variant = self.options.variant;
        let carrier = tokio::spawn(async move {
            if let Err(status) = carry(server, tls, variant, to_send, &received).await {
                // Nobody listens: the stream was given up.
                let _ = received.send(Err(status)).await;
            }
        });
        Link { requests, responses, carrier }
    }

    /// Until the stream ends; says why it did.
    async fn converse(
        &self,
        session: &mut Session,
        wanted: &mut watch::Receiver<Wanted>,
        link: &mut Link,
        server: &ServerAddress,
        updates: &mpsc::Sender<Update>,
    ) -> Result<String, Done> {
        loop {
            self.advance(session, updates).await?;
            let now = Now::read();
            while let Some(request) = session.poll_request(ADS, now) {
                match time::timeout(SEND_PATIENCE, link.requests.send(request)).await {
                    Ok(Ok(())) => {}
                    // Its end is in the responses.
                    Ok(Err(_)) => break,
                    Err(_) => return Ok("the server reads no requests".to_owned()),
                }
            }
            tokio::select! {
                response = link.responses.recv() => match response {
                    Some(Ok(response)) => {
                        take(session, response);
                        if self.status.borrow().state != StreamState::Connected {
                            tracing::info!(%server, "the control plane answers");
                            self.enter(StreamState::Connected, server, None);
                        }
                    }
                    Some(Err(status)) => {
                        return Ok(format!("{:?}: {}", status.code(), status.message()));
                    }
                    None => return Ok("the server closed the stream".to_owned()),
                },
                Ok(()) = wanted.changed() => {
                    session.want(wanted.borrow_and_update().keys(), Now::read());
                }
                () = until(session.deadline()) => {}
            }
        }
    }

    /// Waits, while resources age.
    async fn rest(
        &self,
        session: &mut Session,
        end: Instant,
        updates: &mpsc::Sender<Update>,
    ) -> Result<(), Done> {
        loop {
            self.advance(session, updates).await?;
            tokio::select! {
                () = until(Some(end)) => return Ok(()),
                () = until(session.deadline()) => {}
            }
        }
    }

    /// Lets the session see the time, and sends on what it has to say.
    async fn advance(
        &self,
        session: &mut Session,
        updates: &mpsc::Sender<Update>,
    ) -> Result<(), Done> {
        let now = Now::read();
        if session.deadline().is_some_and(|deadline| deadline <= now.at) {
            session.on_time(now);
        }
        while let Some(update) = session.poll_update(now) {
            updates.send(update).await.map_err(|_| Done)?;
        }
        self.show(session);
        Ok(())
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

fn take(session: &mut Session, response: Response) {
    let large = match &response {
        Response::Sotw(response) => response.encoded_len(),
        Response::Delta(response) => response.encoded_len(),
    } > LARGE_BYTES;
    let work = || match response {
        Response::Sotw(response) => session.on_sotw(ADS, response, Now::read()),
        Response::Delta(response) => session.on_delta(ADS, response, Now::read()),
    };
    if large {
        tokio::task::block_in_place(work);
    } else {
        work();
    }
}

/// Carries requests and responses until the stream ends.
async fn carry(
    server: ServerAddress,
    tls: TlsFiles,
    variant: Variant,
    requests: mpsc::Receiver<Request>,
    received: &mpsc::Sender<Result<Response, Status>>,
) -> Result<(), Status> {
    let channel = connect(server, tls).await?;
    let mut client =
        AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MESSAGE_MAX_BYTES);
    let requests = ReceiverStream::new(requests);
    match variant {
        Variant::Sotw => {
            let requests = requests.filter_map(|request| match request {
                Request::Sotw(request) => Some(request),
                Request::Delta(_) => None,
            });
            let mut stream = client.stream_aggregated_resources(requests).await?.into_inner();
            while let Some(response) = stream.message().await? {
                if received.send(Ok(Response::Sotw(response))).await.is_err() {
                    break;
                }
            }
        }
        Variant::Delta => {
            let requests = requests.filter_map(|request| match request {
                Request::Delta(request) => Some(request),
                Request::Sotw(_) => None,
            });
            let mut stream = client.delta_aggregated_resources(requests).await?.into_inner();
            while let Some(response) = stream.message().await? {
                if received.send(Ok(Response::Delta(response))).await.is_err() {
                    break;
                }
            }
        }
    }
    Ok(())
}

async fn connect(server: ServerAddress, tls: TlsFiles) -> Result<Channel, Status> {
    let scheme = if server.is_tls() { "https" } else { "http" };
    let told = |error: &dyn std::error::Error| {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        Status::unavailable(text)
    };
    let origin = format!("{scheme}://{}", server.authority());
    let origin = origin.parse().map_err(|error| told(&error))?;
    // Our connector makes TLS; tonic would refuse `https` without its own.
    let endpoint = Endpoint::from_shared(format!("http://{}", server.authority()))
        .map_err(|error| told(&error))?
        .origin(origin)
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    let dial = service_fn(move |_| server.clone().dial(tls.clone()));
    let connected = endpoint.connect_with_connector(dial);
    match time::timeout(CONNECT_TIMEOUT, connected).await {
        Ok(connected) => connected.map_err(|error| told(&error)),
        Err(_) => Err(Status::unavailable("it could not be reached in time")),
    }
}
