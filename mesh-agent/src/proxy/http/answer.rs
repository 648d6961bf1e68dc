//! An upstream's answer, on its way to the client.

use bytes::BytesMut;
use http::{
    HeaderValue, Method, Response, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH},
    request::Parts,
};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::upgrade::OnUpgrade;

use super::{
    RequestBody,
    body::ResponseBody,
    breakers::Admitted,
    record::RequestLog,
    reply::{Reply, VIA_UPSTREAM},
    reset::expired_reply,
    switch,
    timing::Deadline,
    tunnel::{Tunnel, Upstream},
};
use crate::{route::Destination, transport::http_pool::LeasedBody};

/// Of a body that becomes a message, as Envoy.
const PLAIN_MESSAGE_MAX_BYTES: usize = 16 << 10;

/// An upstream's answer, and what it holds.
pub(super) struct Answer {
    pub(super) response: Response<LeasedBody<RequestBody>>,
    pub(super) deadline: Deadline,
    pub(super) destination: Destination,
    pub(super) admitted: Admitted,
    pub(super) head_request: bool,
    /// Both sides, where the protocol changes.
    pub(super) switched: Option<(OnUpgrade, OnUpgrade)>,
}

impl Answer {
    pub(super) fn into_response(
        self,
        mut log: RequestLog,
        head: &Parts,
        version: Version,
    ) -> Response<ResponseBody> {
        let by_stream = version == Version::HTTP_2;
        let Self { mut response, deadline, destination, admitted, head_request, switched } = self;
        let status = response.status();
        let has_body = !head_request && !response.body().is_end_stream();
        let stages = log.mutate(head, (status, has_body), response.headers_mut());
        log.answered(head, status, response.headers());
        let held = (destination.into_load(), admitted);
        if let Some((downstream, upstream)) = switched {
            let (mut parts, body) = response.into_parts();
            let upstream = Upstream::of(upstream, body);
            log.carry(|log| Tunnel { downstream, upstream, deadline, held, log });
            if by_stream {
                parts.status = StatusCode::OK;
                switch::unswitch(&mut parts.headers);
            }
            return Response::from_parts(parts, ResponseBody::switched());
        }
        // As Envoy: a CONNECT has no end after which another request might come.
        if log.record.method == Some(Method::CONNECT) && !by_stream {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let announces = status == StatusCode::NOT_MODIFIED && version < Version::HTTP_2;
        if announces && response.headers().contains_key(CONTENT_LENGTH) {
            return response.map(|_| ResponseBody::announced(log));
        }
        response.map(|body| {
            let body = ResponseBody::upstream(body, deadline, held, log).through(stages);
            if head_request { body.bodiless() } else { body }
        })
    }

    /// What a client of gRPC-Web is told of an answer that is not gRPC's: its status, and the
    /// beginning of its body for a message.
    pub(super) async fn told_by_grpc(self, log: &RequestLog) -> Reply {
        let Self { response, mut deadline, destination, admitted, .. } = self;
        let _held = (destination.into_load(), admitted);
        let (parts, mut body) = response.into_parts();
        let mut message = BytesMut::new();
        while message.len() < PLAIN_MESSAGE_MAX_BYTES {
            match deadline.run(body.frame()).await {
                Ok(Some(Ok(frame))) => message.extend(frame.into_data().unwrap_or_default()),
                Ok(Some(Err(_)) | None) => break,
                Err(expired) => return expired_reply(expired, log),
            }
        }
        message.truncate(PLAIN_MESSAGE_MAX_BYTES);
        let reply = Reply::new(parts.status, "", None, VIA_UPSTREAM);
        Reply { body: message.freeze(), headers: Some(Box::new(parts.headers)), ..reply }
    }
}
