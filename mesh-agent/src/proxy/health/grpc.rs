//! By gRPC's health checking protocol.
//!
//! Spec: `grpc/health/v1/health.proto`; gRPC over HTTP/2.

use bytes::{BufMut, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode,
    header::{CONTENT_TYPE, TE},
};
use http_body_util::{BodyExt, Full};
use prost::Message;

use super::{
    Ill, Session, Verdict,
    http::{add_headers, head},
};
use crate::{
    model::cluster::GrpcProbe, proxy::story, route::Destination, transport::http_pool::HttpProtocol,
};

const METHOD: &str = "/grpc.health.v1.Health/Check";
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// Eight digits.
const TIMEOUT_MAX_MS: u128 = 99_999_999;
/// More than any answer takes.
const RESPONSE_MAX_BYTES: usize = 64 * 1024;
/// Flag and length.
const PREFIX_BYTES: usize = 5;

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    /// `SERVING` is 1.
    #[prost(int32, tag = "1")]
    status: i32,
}

impl Session {
    pub(super) async fn grpc(&mut self, destination: &Destination, probe: &GrpcProbe) -> Verdict {
        let host = self.host(probe.authority.as_ref());
        let mut head = head(HttpProtocol::Http2, host, METHOD, destination)?;
        head.method = Method::POST;
        head.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        head.headers.insert(TE, HeaderValue::from_static("trailers"));
        let timeout = format!("{}m", self.check.timeout.as_millis().min(TIMEOUT_MAX_MS));
        if let Ok(timeout) = HeaderValue::try_from(timeout) {
            head.headers.insert(GRPC_TIMEOUT, timeout);
        }
        add_headers(&probe.headers, &mut head);
        let body = framed(&HealthCheckRequest { service: probe.service_name.clone() });
        let request = Request::from_parts(head, Full::new(body));
        let response = self.send(destination, HttpProtocol::Http2, request).await?;
        let (head, mut body) = response.into_parts();
        let kind = head.headers.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        if head.status != StatusCode::OK || !kind.starts_with(b"application/grpc") {
            return Err(Ill::by_answer(format!("no gRPC: status {}", head.status)));
        }
        let (mut came, mut trailers) = (Vec::new(), HeaderMap::new());
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Ill::unreachable(story(&error)))?;
            match frame.into_data() {
                Ok(data) if came.len() + data.len() > RESPONSE_MAX_BYTES => {
                    return Err(Ill::by_answer("the response is too long"));
                }
                Ok(data) => came.extend_from_slice(&data),
                Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
            }
        }
        let status = |headers: &HeaderMap| {
            headers.get("grpc-status").and_then(|status| status.to_str().ok()?.parse::<u32>().ok())
        };
        match status(&trailers).or_else(|| status(&head.headers)) {
            Some(0) => {}
            Some(status) => return Err(Ill::by_answer(format!("gRPC status {status}"))),
            None => return Err(Ill::by_answer("there is no gRPC status")),
        }
        match unframed(&came) {
            Some(HealthCheckResponse { status: 1 }) => Ok(false),
            Some(HealthCheckResponse { status }) => {
                Err(Ill::by_answer(format!("serving status {status}")))
            }
            None => Err(Ill::by_answer("the response is no HealthCheckResponse")),
        }
    }
}

fn framed(message: &impl Message) -> Bytes {
    let bytes = message.encode_to_vec();
    let mut framed = BytesMut::with_capacity(PREFIX_BYTES + bytes.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    framed.put_slice(&bytes);
    framed.freeze()
}

/// The one message, which is not compressed.
fn unframed(bytes: &[u8]) -> Option<HealthCheckResponse> {
    let (prefix, message) = bytes.split_at_checked(PREFIX_BYTES)?;
    let [0, a, b, c, d] = *prefix else { return None };
    let whole = usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()? == message.len();
    whole.then(|| HealthCheckResponse::decode(message).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_frame_and_nothing_else_is_taken() {
        let message = HealthCheckResponse { status: 1 };
        let bytes = framed(&message);
        assert_eq!(&bytes[..], b"\0\0\0\0\x02\x08\x01");
        assert_eq!(unframed(&bytes), Some(message));
        for bytes in [
            &b""[..],
            b"\0\0\0\0",
            b"\x01\0\0\0\x02\x08\x01",
            b"\0\0\0\0\x03\x08\x01",
            b"\0\0\0\0\x02\x08\x01\0\0\0\0\0",
        ] {
            assert_eq!(unframed(bytes), None, "{bytes:?}");
        }
        assert_eq!(unframed(b"\0\0\0\0\0").map(|m| m.status), Some(0));
    }
}
