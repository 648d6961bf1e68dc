//! One connection to one server.

use std::{error::Error, time::Duration};

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use http::uri::PathAndQuery;
use prost::Message;
use tokio::{
    sync::{Notify, mpsc},
    time,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;
use tower::service_fn;

use super::{
    super::{
        ResourceType,
        address::Server,
        session::{Request, Variant},
    },
    Event, Events, Response, StreamId,
    backoff::Limiter,
};

/// The largest response: several times what 10 000 clusters take.
const MESSAGE_MAX_BYTES: usize = 128 << 20;

const WINDOW_BYTES: u32 = 4 << 20;

/// A connection as it is to be.
pub(super) struct Link<'a> {
    pub(super) id: StreamId,
    pub(super) variant: Variant,
    /// The one type it carries; `None`: all.
    pub(super) kind: Option<ResourceType>,
    pub(super) events: &'a Events,
    pub(super) limiter: &'a mut Limiter,
    /// The largest response in bytes, where it is not [`MESSAGE_MAX_BYTES`].
    pub(super) message_max: Option<u32>,
    /// How long the first answer may take.
    pub(super) first_answer: Option<Duration>,
    /// Whether there was an answer.
    pub(super) answered: bool,
}

impl Link<'_> {
    /// Carries requests and responses until the stream ends; says why it did.
    pub(super) async fn carry(
        &mut self,
        server: &Server,
        requests: mpsc::Receiver<Request>,
    ) -> String {
        let channel = match connect(server).await {
            Ok(channel) => channel,
            Err(reason) => return reason,
        };
        let ended = match self.variant {
            Variant::Sotw => {
                let unpack = |request| match request {
                    Request::Sotw(request) => Some(request),
                    Request::Delta(_) => None,
                };
                self.talk::<DiscoveryRequest, DiscoveryResponse>(
                    channel,
                    requests,
                    unpack,
                    Response::Sotw,
                )
                .await
            }
            Variant::Delta => {
                let unpack = |request| match request {
                    Request::Delta(request) => Some(request),
                    Request::Sotw(_) => None,
                };
                self.talk::<DeltaDiscoveryRequest, DeltaDiscoveryResponse>(
                    channel,
                    requests,
                    unpack,
                    Response::Delta,
                )
                .await
            }
        };
        match ended {
            Ok(()) => "the server closed the stream".to_owned(),
            Err(status) => {
                let told = format!("{:?}: {}", status.code(), status.message());
                with_causes(told, status.source())
            }
        }
    }

    async fn talk<M, R>(
        &mut self,
        channel: Channel,
        mut requests: mpsc::Receiver<Request>,
        unpack: impl Fn(Request) -> Option<M>,
        pack: impl Fn(R) -> Response,
    ) -> Result<(), Status>
    where
        M: Message + Send + Sync + 'static,
        R: Message + Default + Send + Sync + 'static,
    {
        let Self { id, variant, kind, events, limiter, message_max, first_answer, answered } = self;
        let most = message_max.and_then(|most| usize::try_from(most).ok());
        let most = most.unwrap_or(MESSAGE_MAX_BYTES).min(MESSAGE_MAX_BYTES);
        let mut grpc = Grpc::new(channel).max_decoding_message_size(most);
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        if events.send((*id, Event::Open)).await.is_err() {
            return Ok(());
        }
        let (sender, outgoing) = mpsc::channel(1);
        let (asked, heard) = (Notify::new(), Notify::new());
        let speak = async {
            while let Some(request) = requests.recv().await.map(&unpack) {
                let Some(request) = request else { continue };
                limiter.take().await;
                if sender.send(request).await.is_err() {
                    break;
                }
                asked.notify_one();
            }
            // Whose end it is, is in the responses.
            std::future::pending::<()>().await;
        };
        let patience = async {
            let Some(timeout) = *first_answer else { return std::future::pending().await };
            asked.notified().await;
            if time::timeout(timeout, heard.notified()).await.is_err() {
                return timeout;
            }
            std::future::pending().await
        };
        let listen = async {
            let codec = ProstCodec::<M, R>::default();
            let path = PathAndQuery::from_static(path(*kind, *variant));
            let outgoing = tonic::Request::new(ReceiverStream::new(outgoing));
            let mut stream = grpc.streaming(outgoing, path, codec).await?.into_inner();
            while let Some(response) = stream.message().await? {
                *answered = true;
                heard.notify_one();
                if events.send((*id, Event::Said(pack(response)))).await.is_err() {
                    break;
                }
            }
            Ok(())
        };
        tokio::select! {
            ended = listen => ended,
            () = speak => Ok(()),
            timeout = patience => {
                let told = format!("the server did not answer within {timeout:?}");
                Err(Status::deadline_exceeded(told))
            }
        }
    }
}

/// The method that carries that type, or all.
fn path(kind: Option<ResourceType>, variant: Variant) -> &'static str {
    let (sotw, delta) = match kind {
        None => (
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
        ),
        Some(ResourceType::Listener) => (
            "/envoy.service.listener.v3.ListenerDiscoveryService/StreamListeners",
            "/envoy.service.listener.v3.ListenerDiscoveryService/DeltaListeners",
        ),
        Some(ResourceType::Routes) => (
            "/envoy.service.route.v3.RouteDiscoveryService/StreamRoutes",
            "/envoy.service.route.v3.RouteDiscoveryService/DeltaRoutes",
        ),
        // There is no other.
        Some(ResourceType::VirtualHost) => (
            "/envoy.service.route.v3.VirtualHostDiscoveryService/DeltaVirtualHosts",
            "/envoy.service.route.v3.VirtualHostDiscoveryService/DeltaVirtualHosts",
        ),
        Some(ResourceType::Scope) => (
            "/envoy.service.route.v3.ScopedRoutesDiscoveryService/StreamScopedRoutes",
            "/envoy.service.route.v3.ScopedRoutesDiscoveryService/DeltaScopedRoutes",
        ),
        Some(ResourceType::Cluster) => (
            "/envoy.service.cluster.v3.ClusterDiscoveryService/StreamClusters",
            "/envoy.service.cluster.v3.ClusterDiscoveryService/DeltaClusters",
        ),
        Some(ResourceType::Endpoints) => (
            "/envoy.service.endpoint.v3.EndpointDiscoveryService/StreamEndpoints",
            "/envoy.service.endpoint.v3.EndpointDiscoveryService/DeltaEndpoints",
        ),
        Some(ResourceType::Secret) => (
            "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
            "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets",
        ),
        Some(ResourceType::Runtime) => (
            "/envoy.service.runtime.v3.RuntimeDiscoveryService/StreamRuntime",
            "/envoy.service.runtime.v3.RuntimeDiscoveryService/DeltaRuntime",
        ),
        Some(ResourceType::ExtensionConfig) => (
            "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/StreamExtensionConfigs",
            "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/DeltaExtensionConfigs",
        ),
    };
    match variant {
        Variant::Sotw => sotw,
        Variant::Delta => delta,
    }
}

/// An HTTP/2 connection to a server.
pub(super) async fn connect(server: &Server) -> Result<Channel, String> {
    let scheme = if server.tls.is_some() { "https" } else { "http" };
    let authority = server.authority();
    let options = &server.connection;
    // Our connector makes TLS; tonic would refuse `https` without its own.
    let endpoint = Endpoint::from_shared(format!("http://{authority}"));
    let endpoint = endpoint.map_err(|error| with_causes(error.to_string(), error.source()))?;
    let origin = format!("{scheme}://{authority}").parse();
    let endpoint = endpoint
        .origin(origin.map_err(|error| format!("{error}"))?)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    let endpoint = match options.pings {
        None => endpoint,
        Some((interval, timeout)) => endpoint
            .http2_keep_alive_interval(interval)
            .keep_alive_timeout(timeout)
            .keep_alive_while_idle(true),
    };
    let dialled = server.clone();
    let dial = service_fn(move |_| dialled.clone().dial());
    match time::timeout(options.connect_timeout, endpoint.connect_with_connector(dial)).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(with_causes(error.to_string(), error.source())),
        Err(_) => Err(format!("it could not be reached within {:?}", options.connect_timeout)),
    }
}

fn with_causes(mut told: String, mut cause: Option<&(dyn Error + 'static)>) -> String {
    while let Some(error) = cause {
        let text = error.to_string();
        if !told.contains(&text) {
            told = format!("{told}: {text}");
        }
        cause = error.source();
    }
    told
}
