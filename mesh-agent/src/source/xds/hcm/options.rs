//! What a connection manager does to paths, hosts and headers.
//!
//! Spec: `envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager`.

use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    ForwardClientCertDetails, PathWithEscapedSlashesAction as Action, ServerHeaderTransformation, SetCurrentClientCertDetails, StripPortMode,
};

use http::HeaderValue;

use super::super::reject::{Decoder, unsupported};
use crate::model::http_options::{
    CertificateDetails, ClientCertificates, EscapedSlashes, HttpOptions, ServerHeader, StripPort,
};

/// The fields of the message, under its names.
pub(super) struct Fields {
    pub(super) normalize_path: bool,
    pub(super) merge_slashes: bool,
    pub(super) path_with_escaped_slashes_action: i32,
    pub(super) strip_matching_host_port: bool,
    pub(super) strip_port_mode: Option<StripPortMode>,
    pub(super) strip_trailing_host_dot: bool,
    pub(super) use_remote_address: bool,
    pub(super) xff_num_trusted_hops: u32,
    pub(super) skip_xff_append: bool,
    pub(super) generate_request_id: bool,
    pub(super) preserve_external_request_id: bool,
    pub(super) always_set_request_id_in_response: bool,
    pub(super) via: String,
    pub(super) server_name: String,
    pub(super) server_header_transformation: i32,
    pub(super) forward_client_cert_details: i32,
    pub(super) set_current_client_cert_details: Option<SetCurrentClientCertDetails>,
}

pub(super) fn options(d: &mut Decoder, fields: Fields) -> Option<HttpOptions> {
    let escaped_slashes = match Action::try_from(fields.path_with_escaped_slashes_action) {
        Ok(Action::ImplementationSpecificDefault | Action::KeepUnchanged) => {
            Some(EscapedSlashes::Keep)
        }
        Ok(Action::RejectRequest) => Some(EscapedSlashes::Reject),
        Ok(Action::UnescapeAndRedirect) => Some(EscapedSlashes::Redirect),
        Ok(Action::UnescapeAndForward) => Some(EscapedSlashes::Unescape),
        Err(_) => unknown(d, "path_with_escaped_slashes_action"),
    };
    let server_header =
        match ServerHeaderTransformation::try_from(fields.server_header_transformation) {
            Ok(ServerHeaderTransformation::Overwrite) => Some(ServerHeader::Overwrite),
            Ok(ServerHeaderTransformation::AppendIfAbsent) => Some(ServerHeader::AppendIfAbsent),
            Ok(ServerHeaderTransformation::PassThrough) => Some(ServerHeader::PassThrough),
            Err(_) => unknown(d, "server_header_transformation"),
        };
    let strip_port = match (fields.strip_matching_host_port, fields.strip_port_mode) {
        (true, Some(StripPortMode::StripAnyHostPort(true))) => {
            d.field("strip_any_host_port", |d| d.refused("can't go with strip_matching_host_port"))
        }
        (false, Some(StripPortMode::StripAnyHostPort(true))) => Some(StripPort::Any),
        (true, _) => Some(StripPort::Matching),
        (false, _) => Some(StripPort::No),
    };
    let client_certificates = client_certificates(
        d,
        fields.forward_client_cert_details,
        fields.set_current_client_cert_details.unwrap_or_default(),
    );
    let via = value(d, "via", fields.via);
    let server_name = value(d, "server_name", fields.server_name);
    let default = HttpOptions::default();
    Some(HttpOptions {
        http2: default.http2,
        normalize_path: fields.normalize_path,
        merge_slashes: fields.merge_slashes,
        escaped_slashes: escaped_slashes?,
        strip_port: strip_port?,
        strip_trailing_host_dot: fields.strip_trailing_host_dot,
        use_remote_address: fields.use_remote_address,
        trusted_hops: fields.xff_num_trusted_hops,
        skip_xff_append: fields.skip_xff_append,
        generate_request_id: fields.generate_request_id,
        preserve_external_request_id: fields.preserve_external_request_id,
        request_id_in_response: fields.always_set_request_id_in_response,
        via: via?,
        server_name: server_name?.unwrap_or(default.server_name),
        server_header: server_header?,
        client_certificates: client_certificates?,
        underscores: default.underscores,
        request_ids: default.request_ids,
        upgrades: default.upgrades,
        extended_connect: default.extended_connect,
        buffer_max_bytes: default.buffer_max_bytes,
        original_ip: default.original_ip,
    })
}

fn client_certificates(
    d: &mut Decoder,
    forward: i32,
    told: SetCurrentClientCertDetails,
) -> Option<ClientCertificates> {
    let SetCurrentClientCertDetails { subject, cert, chain, dns, uri, issuer, format } = told;
    d.field("set_current_client_cert_details", |d| {
        unsupported!(d; issuer, format);
    });
    let subject = subject.is_some_and(|subject| subject.value);
    let details = CertificateDetails { cert, chain, subject, uri, dns };
    match ForwardClientCertDetails::try_from(forward) {
        Ok(ForwardClientCertDetails::Sanitize) => Some(ClientCertificates::Sanitize),
        Ok(ForwardClientCertDetails::ForwardOnly) => Some(ClientCertificates::ForwardOnly),
        Ok(ForwardClientCertDetails::AppendForward) => {
            Some(ClientCertificates::AppendForward(details))
        }
        Ok(ForwardClientCertDetails::SanitizeSet) => Some(ClientCertificates::SanitizeSet(details)),
        Ok(ForwardClientCertDetails::AlwaysForwardOnly) => {
            Some(ClientCertificates::AlwaysForwardOnly)
        }
        Err(_) => unknown(d, "forward_client_cert_details"),
    }
}

/// A header's value, if one is given.
fn value(d: &mut Decoder, field: &str, text: String) -> Option<Option<HeaderValue>> {
    if text.is_empty() {
        return Some(None);
    }
    d.field(field, |d| match HeaderValue::from_str(&text) {
        Ok(value) => Some(Some(value)),
        Err(_) => d.refused(format!("`{text}` is not a header's value")),
    })
}

fn unknown<T>(d: &mut Decoder, field: &str) -> Option<T> {
    d.field(field, |d| d.refused("is unknown"))
}
