//! What an authorisation server is asked by gRPC, and what it says.
//!
//! Spec: `envoy.service.auth.v3`.

use std::{collections::BTreeMap, net::SocketAddr, time::SystemTime};

use envoy_types::pb::{
    envoy::{
        config::core::v3::{
            Address, HeaderValueOption, Metadata, SocketAddress, address,
            header_value_option::HeaderAppendAction, socket_address::PortSpecifier,
        },
        service::auth::v3::{
            AttributeContext, CheckRequest, CheckResponse, attribute_context,
            check_response::HttpResponse,
        },
    },
    google::protobuf::Timestamp,
};
use http::{HeaderName, HeaderValue};
use serde_json::{Map, Value};

use super::{
    grpc::is_too_much,
    structs::{from_struct, to_struct},
};
use crate::model::header_mutation::AppendAction;

/// The method to call.
pub const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

/// A request that is asked about.
#[derive(Debug)]
pub struct Asked<'a> {
    pub source: SocketAddr,
    /// Who opened the connection, as a URI SAN; empty where nobody is proven.
    pub source_principal: &'a str,
    pub destination: SocketAddr,
    pub destination_principal: String,
    pub id: &'a str,
    pub method: &'a str,
    pub path: &'a str,
    pub host: &'a str,
    pub scheme: &'a str,
    pub protocol: &'a str,
    /// By lower-case name, pseudo-headers too.
    pub headers: BTreeMap<String, String>,
    /// Of the body, as far as it has been read.
    pub size: u64,
    pub body: Option<&'a [u8]>,
    pub body_as_bytes: bool,
    pub extensions: &'a BTreeMap<String, String>,
    pub metadata: Vec<(&'a str, &'a Value)>,
}

/// What a server says.
#[derive(Debug, Default)]
pub struct Said {
    /// Whether the request passes.
    pub ok: bool,
    /// Of a denial; 0 where it is not said.
    pub status: i32,
    pub body: Vec<u8>,
    /// For the request if it passes, else for the client.
    pub headers: Vec<SaidHeader>,
    /// For a request that passes, beside those it has.
    pub beside: Vec<SaidHeader>,
    pub remove: Vec<String>,
    /// For the client of a request that passes.
    pub for_client: Vec<SaidHeader>,
    pub set_parameters: Vec<(String, String)>,
    pub remove_parameters: Vec<String>,
    pub metadata: Map<String, Value>,
    /// The server could not decide.
    pub failed: bool,
}

/// A header that a server names.
#[derive(Debug)]
pub struct SaidHeader {
    pub name: HeaderName,
    pub value: HeaderValue,
    pub action: AppendAction,
    /// Whether the message says so, rather than leaving it to the default.
    pub append: Option<bool>,
}

/// A header or status that can't be set, or too many of them.
#[derive(Debug, thiserror::Error)]
#[error("the answer names a header that is none, that frames or routes the message, or too many")]
pub struct InvalidAnswer;

/// The question as a message.
pub fn question(asked: &Asked<'_>) -> CheckRequest {
    let peer = |address: SocketAddr, principal: &str| attribute_context::Peer {
        address: Some(Address {
            address: Some(address::Address::SocketAddress(SocketAddress {
                address: address.ip().to_string(),
                port_specifier: Some(PortSpecifier::PortValue(address.port().into())),
                ..SocketAddress::default()
            })),
        }),
        principal: principal.to_owned(),
        ..attribute_context::Peer::default()
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let time = Timestamp {
        seconds: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(now.subsec_nanos()).unwrap_or_default(),
    };
    let mut http = attribute_context::HttpRequest {
        id: asked.id.to_owned(),
        method: asked.method.to_owned(),
        path: asked.path.to_owned(),
        host: asked.host.to_owned(),
        scheme: asked.scheme.to_owned(),
        protocol: asked.protocol.to_owned(),
        headers: asked.headers.clone().into_iter().collect(),
        size: i64::try_from(asked.size).unwrap_or(i64::MAX),
        ..attribute_context::HttpRequest::default()
    };
    match (asked.body, asked.body_as_bytes) {
        (Some(body), true) => http.raw_body = body.to_vec(),
        (Some(body), false) => http.body = String::from_utf8_lossy(body).into_owned(),
        (None, _) => {}
    }
    let metadata = asked.metadata.iter().filter_map(|(namespace, value)| {
        Some(((*namespace).to_owned(), to_struct(value.as_object()?)))
    });
    CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(peer(asked.source, asked.source_principal)),
            destination: Some(peer(asked.destination, &asked.destination_principal)),
            request: Some(attribute_context::Request { time: Some(time), http: Some(http) }),
            context_extensions: asked.extensions.clone().into_iter().collect(),
            metadata_context: Some(Metadata {
                filter_metadata: metadata.collect(),
                ..Metadata::default()
            }),
            ..AttributeContext::default()
        }),
    }
}

/// What the answer says.
///
/// # Errors
/// [`InvalidAnswer`]: what can't be done as a whole is not done in part.
pub fn answer(response: CheckResponse) -> Result<Said, InvalidAnswer> {
    let ok = response.status.as_ref().is_none_or(|status| status.code == 0);
    let mut said = Said { ok, ..Said::default() };
    said.metadata = response.dynamic_metadata.map(from_struct).unwrap_or_default();
    match response.http_response {
        Some(HttpResponse::OkResponse(own)) if ok => {
            let set = &own.query_parameters_to_set;
            let lengths = set.iter().map(|one| one.key.len() + one.value.len());
            let removed = |names: &[String]| is_too_much(names.iter().map(String::len));
            if is_too_much(lengths)
                || removed(&own.headers_to_remove)
                || removed(&own.query_parameters_to_remove)
            {
                return Err(InvalidAnswer);
            }
            said.headers = headers(own.headers)?;
            said.remove = own.headers_to_remove;
            said.for_client = headers(own.response_headers_to_add)?;
            let set = own.query_parameters_to_set.into_iter();
            said.set_parameters = set.map(|one| (one.key, one.value)).collect();
            said.remove_parameters = own.query_parameters_to_remove;
        }
        Some(HttpResponse::DeniedResponse(own)) if !ok => {
            said.status = own.status.map_or(0, |status| status.code);
            said.headers = headers(own.headers)?;
            said.body = own.body.into_bytes();
        }
        Some(HttpResponse::ErrorResponse(_)) => {
            said.ok = false;
            said.failed = true;
        }
        Some(_) | None => {}
    }
    Ok(said)
}

#[expect(deprecated, reason = "servers still send `append`")]
fn headers(options: Vec<HeaderValueOption>) -> Result<Vec<SaidHeader>, InvalidAnswer> {
    use HeaderAppendAction as Pb;
    let lengths = options.iter().flat_map(|option| &option.header);
    let lengths = lengths.map(|one| one.key.len() + one.value.len() + one.raw_value.len());
    if is_too_much(lengths) {
        return Err(InvalidAnswer);
    }
    let header = |option: HeaderValueOption| {
        let header = option.header.ok_or(InvalidAnswer)?;
        let name = HeaderName::try_from(&header.key).map_err(|_| InvalidAnswer)?;
        let value = match header.raw_value.is_empty() {
            true => header.value.into_bytes(),
            false => header.raw_value.to_vec(),
        };
        let value = HeaderValue::try_from(value).map_err(|_| InvalidAnswer)?;
        let action = match Pb::try_from(option.append_action) {
            Ok(Pb::AppendIfExistsOrAdd) => AppendAction::AppendIfExistsOrAdd,
            Ok(Pb::AddIfAbsent) => AppendAction::AddIfAbsent,
            Ok(Pb::OverwriteIfExistsOrAdd) => AppendAction::OverwriteIfExistsOrAdd,
            Ok(Pb::OverwriteIfExists) => AppendAction::OverwriteIfExists,
            Err(_) => return Err(InvalidAnswer),
        };
        Ok(SaidHeader { name, value, action, append: option.append.map(|append| append.value) })
    };
    options.into_iter().map(header).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_without_a_status_passes_and_an_invalid_header_nothing() {
        assert!(answer(CheckResponse::default()).unwrap().ok);
        let header = |key: &str, value: &str| HeaderValueOption {
            header: Some(envoy_types::pb::envoy::config::core::v3::HeaderValue {
                key: key.to_owned(),
                value: value.to_owned(),
                ..Default::default()
            }),
            ..HeaderValueOption::default()
        };
        for (key, value, ok) in [("a", "b", true), ("a b", "c", false), ("a", "b\r\nc: d", false)] {
            assert_eq!(headers(vec![header(key, value)]).is_ok(), ok, "{key} {value}");
        }
        let many =
            |count: usize, bytes: usize| headers(vec![header("a", &"x".repeat(bytes)); count]);
        for (count, bytes, ok) in
            [(1024, 1, true), (1025, 1, false), (1, 65_000, true), (2, 40_000, false)]
        {
            assert_eq!(many(count, bytes).is_ok(), ok, "{count} of {bytes}");
        }
    }
}
