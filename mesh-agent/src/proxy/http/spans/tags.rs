//! What a span says, by Envoy's names.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
};

use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{CONTENT_TYPE, HOST, USER_AGENT},
    request::Parts,
};

use super::super::{grpc, headers, mutations::RequestValues};
use super::Ending;
use crate::{
    codec::spans::{Kind, Tag},
    model::{
        format::Format,
        tracing::{CustomTag, TagValue},
    },
    observe::{Protocol, flags::ResponseFlags},
    policy::matcher::first_value,
    transport::http_pool::HttpProtocol,
};

/// A value is cut behind as many bytes: whoever asks may make it as long as heads may be.
const VALUE_MAX_BYTES: usize = 4096;

const ERROR: &str = "error";
const STATUS_CODE: &str = "http.status_code";
const GRPC_STATUS: &str = "grpc.status_code";
/// UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS.
const GRPC_SERVER_ERRORS: [u32; 6] = [2, 4, 12, 13, 14, 15];
const RESOURCE_EXHAUSTED: u32 = 8;

/// By name, in order.
#[derive(Debug, Clone, Default)]
pub(super) struct Tags(Vec<Tag>);

impl Tags {
    /// Of equal names the later value counts.
    pub(super) fn put(&mut self, name: impl Into<Cow<'static, str>>, value: impl Into<String>) {
        let (name, mut value) = (name.into(), value.into());
        if value.len() > VALUE_MAX_BYTES {
            value.truncate(value.floor_char_boundary(VALUE_MAX_BYTES));
        }
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => self.0.push((name, value)),
        }
    }

    pub(super) fn extend(&mut self, more: &Self) {
        more.0.iter().for_each(|(name, value)| self.put(name.clone(), value.clone()));
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn number(&self, name: &str) -> Option<u32> {
        self.get(name)?.parse().ok()
    }

    /// What is known of a request by its head.
    pub(super) fn of_request(head: &Parts, by: Protocol, client: IpAddr, path_max: usize) -> Self {
        let mut tags = Self::default();
        let header = |name: &str| head.headers.get(name).map(text);
        if let Some(id) = header("x-request-id") {
            tags.put("guid:x-request-id", id);
        }
        let host = first_value(HOST.as_str(), head).map(String::from_utf8_lossy);
        let path = header("x-envoy-original-path").map(Cow::Owned);
        let path = path.or_else(|| Some(Cow::Borrowed(head.uri.path_and_query()?.as_str())));
        let path = path.unwrap_or_default();
        let path = &path[..path.floor_char_boundary(path_max)];
        let scheme = header("x-forwarded-proto").unwrap_or_default();
        tags.put("http.url", format!("{scheme}://{}{path}", host.unwrap_or_default()));
        tags.put("http.method", head.method.as_str());
        let or_none = |name| header(name).unwrap_or_else(|| "-".to_owned());
        tags.put("downstream_cluster", or_none("x-envoy-downstream-service-cluster"));
        tags.put("user_agent", or_none(USER_AGENT.as_str()));
        tags.put(
            "http.protocol",
            match by {
                Protocol::Http2 => "HTTP/2",
                Protocol::Http1 | Protocol::Tcp => "HTTP/1.1",
            },
        );
        tags.put("peer.address", client.to_string());
        if let Some(id) = header("x-client-trace-id") {
            tags.put("guid:x-client-trace-id", id);
        }
        if headers::is_grpc(&head.headers) {
            let path = first_value(":path", head).map(String::from_utf8_lossy).unwrap_or_default();
            tags.put("grpc.path", path);
            if let Some(host) = first_value(HOST.as_str(), head) {
                tags.put("grpc.authority", String::from_utf8_lossy(host));
            }
            for (tag, name) in
                [("grpc.content_type", CONTENT_TYPE.as_str()), ("grpc.timeout", "grpc-timeout")]
            {
                if let Some(value) = header(name) {
                    tags.put(tag, value);
                }
            }
        }
        tags
    }

    /// What is known of an attempt by itself.
    pub(super) fn of_attempt(
        address: SocketAddr,
        protocol: HttpProtocol,
        retry: u32,
        ending: Ending,
    ) -> Self {
        let mut tags = Self::default();
        if retry > 0 {
            tags.put("retry.count", retry.to_string());
        }
        let connected = match ending {
            Ending::Answered(_) => true,
            Ending::Cancelled(..) => {
                tags.put("canceled", "true");
                true
            }
            Ending::Failed(_, reason, connected) => {
                tags.put(ERROR, "true");
                tags.put("error.reason", reason);
                connected
            }
        };
        tags.put(
            "http.protocol",
            match protocol {
                _ if !connected => "-",
                HttpProtocol::Http2 => "HTTP/2",
                HttpProtocol::Http1 => "HTTP/1.1",
            },
        );
        tags.put("upstream_address", address.to_string());
        tags.put("peer.address", address.to_string());
        tags
    }

    /// What every span says.
    pub(super) fn common(
        &mut self,
        cluster: Option<&str>,
        status: Option<StatusCode>,
        flags: ResponseFlags,
    ) {
        self.put("component", "proxy");
        if let Some(cluster) = cluster {
            self.put("upstream_cluster", cluster);
            self.put("upstream_cluster.name", cluster);
        }
        self.put(STATUS_CODE, status.map_or(0, |status| status.as_u16()).to_string());
        self.put("response_flags", flags.to_string());
        if status.is_none_or(|status| status.is_server_error()) {
            self.put(ERROR, "true");
        }
    }

    /// What headers or trailers of a response say of gRPC.
    pub(super) fn grpc_response(&mut self, headers: &HeaderMap) {
        let Some(status) = headers.get(grpc::STATUS) else { return };
        self.put(GRPC_STATUS, text(status));
        if let Some(message) = headers.get("grpc-message") {
            self.put("grpc.message", text(message));
        }
        let code = self.number(GRPC_STATUS);
        if code.is_some_and(|code| GRPC_SERVER_ERRORS.contains(&code) || code == RESOURCE_EXHAUSTED)
        {
            self.put(ERROR, "true");
        }
    }

    /// What the configuration wants.
    pub(super) fn custom(&mut self, tag: &CustomTag, values: &RequestValues<'_>) {
        let (value, default) = match &tag.value {
            TagValue::Literal(value) => (Some(value.to_string()), None),
            TagValue::Format(format) => (Some(filled(format, values)), None),
            TagValue::RequestHeader { name, default } => {
                let value = values.head.and_then(|head| first_value(name, head));
                (value.map(|value| String::from_utf8_lossy(value).into_owned()), default.as_ref())
            }
            TagValue::RequestMetadata { namespace, path, default } => {
                let value = values.log.record.metadata.get(namespace, path);
                let value = value.map(|value| match value {
                    serde_json::Value::String(text) => text.clone(),
                    value => value.to_string(),
                });
                (value, default.as_ref())
            }
        };
        if let Some(value) = value.or_else(|| default.map(|default| default.to_string()))
            && !value.is_empty()
        {
            self.put(tag.name.to_string(), value);
        }
    }

    /// As a span has them, and whether it has failed.
    ///
    /// Spec: OpenTelemetry, "Semantic conventions", HTTP and gRPC spans' status.
    pub(super) fn into_span(self, kind: Kind) -> (Vec<Tag>, bool) {
        let status = self.number(STATUS_CODE).unwrap_or(0);
        let grpc = self.number(GRPC_STATUS).unwrap_or(0);
        let failed = match kind {
            Kind::Client => status >= 400 || grpc != 0,
            Kind::Server => status >= 500 || GRPC_SERVER_ERRORS.contains(&grpc),
        };
        (self.0, failed)
    }
}

fn text(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

/// A format, with nothing where there is no value.
pub(super) fn filled(format: &Format, values: &RequestValues<'_>) -> String {
    let mut out = Vec::new();
    format.append(values, "", &mut out);
    String::from_utf8_lossy(&out).into_owned()
}
