//! gRPC-Web to gRPC, and back.
//!
//! Spec: Envoy's "gRPC-Web"; what is looked at and set is what Envoy 1.40 does.

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, TE},
    request::Parts,
};
use http_body::Body as _;

use super::{
    super::{
        RequestBody,
        headers::is_grpc,
        mutations::OnTheWayOut,
        record::RequestLog,
        stages::{Stage, Stages},
    },
    run::Filtering,
};
use crate::{
    codec::grpc_web::{FromWeb, ToWeb},
    policy::Place,
};

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const BINARY: HeaderValue = HeaderValue::from_static("application/grpc-web+proto");
const TEXT: HeaderValue = HeaderValue::from_static("application/grpc-web-text+proto");
const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const IDENTITY: HeaderValue = HeaderValue::from_static("identity");

/// A response to a client of gRPC-Web.
#[derive(Debug, Clone, Copy)]
pub(in crate::proxy::http) struct Answered {
    text: bool,
}

fn is_text(value: &HeaderValue) -> bool {
    matches!(value.as_bytes(), b"application/grpc-web-text" | b"application/grpc-web-text+proto")
}

fn is_web(value: &HeaderValue) -> bool {
    is_text(value)
        || matches!(value.as_bytes(), b"application/grpc-web" | b"application/grpc-web+proto")
}

impl Filtering<'_> {
    pub(super) fn grpc_web(
        &self,
        place: Place<'_>,
        log: &mut RequestLog,
        head: &mut Parts,
        body: &mut RequestBody,
    ) {
        let Some(kind) = head.headers.get(CONTENT_TYPE).filter(|kind| is_web(kind)) else { return };
        let text = is_text(kind);
        head.headers.remove(CONTENT_LENGTH);
        head.headers.insert(CONTENT_TYPE, GRPC);
        let answered = Answered { text: head.headers.get(ACCEPT).is_some_and(is_text) };
        head.headers.insert(TE, HeaderValue::from_static("trailers"));
        head.headers.insert(ACCEPT_ENCODING, IDENTITY);
        if !body.is_end_stream() {
            // Its length is not told any more, also where it stays the same.
            body.through(Stage::FromWeb(FromWeb::new(text)));
        }
        log.grpc_web = true;
        log.on_the_way_out(place, OnTheWayOut::GrpcWeb(answered), self.judged);
    }
}

impl Answered {
    pub(in crate::proxy::http) fn respond(
        self,
        has_body: bool,
        headers: &mut HeaderMap,
        stages: &mut Stages,
    ) {
        headers.insert(CONTENT_TYPE, if self.text { TEXT } else { BINARY });
        if has_body {
            headers.remove(CONTENT_LENGTH);
            stages.push(Stage::ToWeb(ToWeb::new(self.text)));
        }
    }
}

/// Whether an upstream's answer is gRPC's, of either kind.
pub(in crate::proxy::http) fn is_answer(headers: &HeaderMap) -> bool {
    is_grpc(headers) || headers.get(CONTENT_TYPE).is_some_and(is_web)
}
