//! Secrets: certificates with keys, and validation contexts.
//!
//! Spec: `envoy/extensions/transport_sockets/tls/v3/secret.proto`.

use std::sync::Arc;

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    Secret as PbSecret, secret::Type,
};

use super::{reject::Decoder, upstream_tls};
use crate::model::secret::{Secret, SecretKind};

pub(super) fn secret(d: &mut Decoder, value: PbSecret) -> Option<Secret> {
    let PbSecret { name, r#type } = value;
    if name.is_empty() {
        d.refuse_field("name", "is missing");
    }
    let kind = match r#type {
        Some(Type::TlsCertificate(value)) => d
            .field("tls_certificate", |d| upstream_tls::certificate(d, value))
            .map(|certificate| SecretKind::TlsCertificate(Arc::new(certificate))),
        Some(Type::ValidationContext(value)) => d
            .field("validation_context", |d| upstream_tls::validation_context(d, value))
            .map(|context| SecretKind::ValidationContext(Arc::new(context))),
        Some(Type::SessionTicketKeys(_)) => d.not_supported("session_ticket_keys"),
        Some(Type::GenericSecret(_)) => d.not_supported("generic_secret"),
        None => d.refused("has neither tls_certificate nor validation_context"),
    };
    Some(Secret { name: name.into(), kind: kind? })
}
