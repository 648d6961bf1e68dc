//! Requests of filters' own, to a cluster: one out, one whole answer back.
//!
//! They take the way of every other request: endpoint by the cluster's load balancing, its
//! circuit breakers, TLS or HBONE with the pod's own identity, the pool.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version,
    header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, TE},
    response,
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body_util::BodyExt as _;
use prost::Message;

use super::{
    HttpServices, RequestBody,
    attempts::Ended,
    breakers::{self, Admitted, Overflow},
    exchange::exchange,
    grpc,
    reset::Failure,
    timing::Exchange,
};
use crate::{
    codec::grpc::{GrpcMessageError, PREFIX_BYTES, decode, encode},
    model::cluster::{ClusterName, UpstreamProtocol},
    observe::metrics::AttemptFailure,
    policy::Permit,
    proxy::Origination,
    route::{Destination, NoDestination, Target, decide_call},
    snapshot::Snapshot,
    transport::http_pool::{HttpKey, HttpProtocol},
};

/// Who asks, and by which configuration.
#[derive(Clone, Copy)]
pub(super) struct Caller<'a> {
    pub(super) services: &'a HttpServices,
    pub(super) permit: &'a Permit,
    pub(super) snapshot: &'a Snapshot,
}

/// What a call may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Of the whole exchange; `None`: none.
    pub(super) timeout: Option<Duration>,
    /// Of the answer's body.
    pub(super) answer_max_bytes: usize,
}

/// What is asked.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) method: Method,
    pub(super) authority: Authority,
    pub(super) path: PathAndQuery,
    /// Neither hop by hop nor about the body's length.
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// A whole answer.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) head: response::Parts,
    pub(super) body: Bytes,
    pub(super) trailers: HeaderMap,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error(transparent)]
    NoDestination(#[from] NoDestination),
    #[error("{0}")]
    NotSent(String),
    #[error("there was no answer within {0:?}")]
    Timeout(Duration),
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    #[error("the answer broke off")]
    Broken(#[source] hyper::Error),
    #[error("the cluster does not speak HTTP/2, and gRPC does nothing else")]
    NotHttp2,
    #[error("the gRPC server answered with HTTP status {0}")]
    NotGrpc(StatusCode),
    #[error("the gRPC server answered with status {0}")]
    GrpcStatus(u32),
    #[error(transparent)]
    GrpcMessage(#[from] GrpcMessageError),
    #[error("a header or an address of the request is not valid")]
    Invalid(#[from] http::Error),
}

impl Caller<'_> {
    /// Asks by HTTP, whatever version the cluster speaks.
    ///
    /// # Errors
    /// [`CallError`]: there is no answer, or not a whole one in time.
    pub(super) async fn http(
        self,
        cluster: &ClusterName,
        question: Question,
        limits: Limits,
    ) -> Result<Answered, CallError> {
        let destination = self.decide(cluster)?;
        let protocol = match destination.upstream_protocol() {
            UpstreamProtocol::Http2 => HttpProtocol::Http2,
            UpstreamProtocol::Http1 | UpstreamProtocol::SameAsDownstream => HttpProtocol::Http1,
        };
        let asked = self.ask(&destination, protocol, question, limits);
        self.within(limits, cluster, asked).await
    }

    /// Calls a unary gRPC method: `/package.Service/Method`. `headers` go with it.
    ///
    /// # Errors
    /// [`CallError`]: there is no answer, or it is not OK.
    pub(super) async fn grpc<A: Message + Default>(
        self,
        cluster: &ClusterName,
        (authority, method): (Authority, &'static str),
        mut headers: HeaderMap,
        message: &impl Message,
        limits: Limits,
    ) -> Result<A, CallError> {
        const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
        let destination = self.decide(cluster)?;
        if destination.upstream_protocol() != UpstreamProtocol::Http2 {
            return Err(CallError::NotHttp2);
        }
        headers.insert(CONTENT_TYPE, GRPC);
        headers.insert(TE, HeaderValue::from_static("trailers"));
        if let Some(timeout) = limits.timeout {
            grpc::set_timeout(&mut headers, timeout);
        }
        let path = PathAndQuery::from_static(method);
        let question =
            Question { method: Method::POST, authority, path, headers, body: encode(message) };
        let within = Limits {
            answer_max_bytes: limits.answer_max_bytes.saturating_add(PREFIX_BYTES),
            ..limits
        };
        let asked = self.ask(&destination, HttpProtocol::Http2, question, within);
        let Answered { head, body, trailers } = self.within(limits, cluster, asked).await?;
        if head.status != StatusCode::OK {
            return Err(CallError::NotGrpc(head.status));
        }
        let status = trailers.get(grpc::STATUS).or_else(|| head.headers.get(grpc::STATUS));
        let status = status.and_then(|status| status.to_str().ok()?.parse().ok());
        match status {
            Some(0) => Ok(decode(&body)?),
            // UNKNOWN: who says nothing has not said that it is OK.
            status => Err(CallError::GrpcStatus(status.unwrap_or(2))),
        }
    }

    fn decide(self, cluster: &ClusterName) -> Result<Destination, CallError> {
        let random = &mut |below| rand::random_range(0..below);
        let balancers = &self.services.balancers;
        Ok(decide_call(self.permit, cluster, self.snapshot, balancers, random, Instant::now())?)
    }

    async fn within<T>(
        self,
        limits: Limits,
        cluster: &ClusterName,
        asked: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        match limits.timeout {
            None => asked.await,
            Some(limit) => tokio::time::timeout(limit, asked).await.unwrap_or_else(|_| {
                self.services.clusters.of(cluster).failed(AttemptFailure::Timeout);
                Err(CallError::Timeout(limit))
            }),
        }
    }

    async fn ask(
        self,
        destination: &Destination,
        protocol: HttpProtocol,
        question: Question,
        limits: Limits,
    ) -> Result<Answered, CallError> {
        let Self { services, permit, .. } = self;
        let authority = question.authority.clone();
        let request = request(protocol, question)?;
        let (response, _admitted) =
            send(services, permit, (destination, protocol), &authority, request)
                .await
                .map_err(|failure| CallError::NotSent(failure.to_string()))?;
        let (head, mut body) = response.into_parts();
        let (mut whole, mut trailers) = (BytesMut::new(), HeaderMap::new());
        while let Some(frame) = body.frame().await {
            match frame.map_err(CallError::Broken)?.into_data() {
                Ok(data) if whole.len() + data.len() > limits.answer_max_bytes => {
                    return Err(CallError::TooLarge(limits.answer_max_bytes));
                }
                Ok(data) => whole.extend_from_slice(&data),
                Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
            }
        }
        Ok(Answered { head, body: whole.freeze(), trailers })
    }
}

/// Sends a request of the agent's own, by the circuit breakers of the destination's cluster, and
/// counts how it ended there.
pub(super) async fn send(
    services: &HttpServices,
    permit: &Permit,
    (destination, protocol): (&Destination, HttpProtocol),
    host: &Authority,
    request: Request<RequestBody>,
) -> Ended {
    let limited = destination.cluster().zip(destination.circuit_breakers());
    let breaker = limited.map(|(cluster, limits)| {
        services.breakers.of(&permit.flow().pod().workload.uid, cluster, limits, false)
    });
    let sending = async {
        let admitted = match &breaker {
            Some(breaker) => breaker.admit(protocol).await.map_err(|Overflow| Failure::Overflow)?,
            None => Admitted::default(),
        };
        let tls = services
            .upstreams
            .originate(destination, protocol, host, request.headers())
            .map_err(Failure::Connect)?;
        let key = key(permit, destination, protocol, tls.as_ref());
        let (to, limitless) = ((destination, tls.as_ref(), &key), (None, None));
        let breaker = breaker.as_ref();
        let as_it_is = |_, request| request;
        let sent = exchange(services, permit, to, request, breaker, limitless, as_it_is).await;
        Ok((sent?, admitted))
    };
    let ended = sending.await;
    if let Some(breaker) = &breaker {
        let answered = ended.as_ref().map(|(response, _)| response.status());
        breakers::count(&breaker.counted, answered);
    }
    ended
}

/// In the form that the protocol wants.
fn request(
    protocol: HttpProtocol,
    question: Question,
) -> Result<Request<RequestBody>, http::Error> {
    let Question { method, authority, path, mut headers, body } = question;
    let (version, uri) = match protocol {
        HttpProtocol::Http1 => {
            headers.insert(HOST, HeaderValue::from_str(authority.as_str())?);
            (Version::HTTP_11, Uri::from(path))
        }
        HttpProtocol::Http2 => {
            let uri = Uri::builder().scheme(Scheme::HTTP).authority(authority);
            (Version::HTTP_2, uri.path_and_query(path).build()?)
        }
    };
    if !body.is_empty() {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
    let mut request = Request::new(RequestBody::whole(body, Exchange::new()));
    *request.method_mut() = method;
    *request.version_mut() = version;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    Ok(request)
}

/// The pod asks for itself, whichever way the connection goes that it asks about.
pub(super) fn key(
    permit: &Permit,
    destination: &Destination,
    protocol: HttpProtocol,
    tls: Option<&Origination>,
) -> HttpKey {
    let workload = &permit.flow().pod().workload;
    let (destination_identity, destination_workload) = match destination.target() {
        Target::Hbone { identity, workload, .. } => (Some(identity.clone()), workload.clone()),
        Target::Direct { .. } | Target::OriginalDestination { .. } => (None, None),
    };
    HttpKey {
        address: destination.address(),
        destination_identity,
        destination_workload,
        pod: workload.uid.clone(),
        source_identity: Some(workload.identity.clone()),
        client: None,
        tls: tls.map(Origination::key),
        limits: destination.connection_limits(),
        protocol,
    }
}
