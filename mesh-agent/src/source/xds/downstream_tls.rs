//! TLS that gateway listeners terminate.
//!
//! Spec: `envoy/extensions/transport_sockets/tls/v3/{tls,common}.proto`.

use std::sync::Arc;

use envoy_types::pb::envoy::{
    config::{
        core::v3::{TransportSocket, transport_socket},
        listener::v3::Listener,
    },
    extensions::transport_sockets::tls::v3::{
        DownstreamTlsContext, SdsSecretConfig,
        common_tls_context::ValidationContextType,
        downstream_tls_context::{OcspStaplePolicy, SessionTicketKeysType},
    },
};
use prost::Message as _;

use super::{
    common,
    reject::Decoder,
    tls_context::{self, Common, Parameters},
    upstream_tls::{self, alpn, certificate, secret_name},
};
use crate::model::tls::{CertificateSource, DownstreamTls};

/// A filter chain's `transport_socket`: `None` where it is refused, `Some(None)` in the
/// clear.
pub(super) fn transport_socket(
    d: &mut Decoder,
    value: TransportSocket,
) -> Option<Option<Arc<DownstreamTls>>> {
    tls_context::transport_socket(d, value, downstream).map(|context| context.map(Arc::new))
}

fn downstream(d: &mut Decoder, value: DownstreamTlsContext) -> Option<DownstreamTls> {
    let DownstreamTlsContext {
        common_tls_context,
        require_client_certificate,
        require_sni,
        // No session is ever resumed.
        disable_stateful_session_resumption: _,
        session_timeout: _,
        ocsp_staple_policy,
        full_scan_certs_on_sni_mismatch,
        prefer_client_ciphers,
        session_ticket_keys_type,
    } = value;
    match session_ticket_keys_type {
        None | Some(SessionTicketKeysType::DisableStatelessSessionResumption(_)) => {}
        Some(SessionTicketKeysType::SessionTicketKeys(_)) => {
            d.refuse_field("session_ticket_keys", "is not supported: no session is resumed");
        }
        Some(SessionTicketKeysType::SessionTicketKeysSdsSecretConfig(_)) => d.refuse_field(
            "session_ticket_keys_sds_secret_config",
            "is not supported: no session is resumed",
        ),
    }
    if ocsp_staple_policy != OcspStaplePolicy::LenientStapling as i32 {
        d.refuse_field("ocsp_staple_policy", "only LENIENT_STAPLING is supported");
    }
    if full_scan_certs_on_sni_mismatch.is_some_and(|scan| scan.value) {
        d.refuse_field("full_scan_certs_on_sni_mismatch", "is not supported");
    }
    let require_client_certificate = require_client_certificate.is_some_and(|it| it.value);
    d.field("common_tls_context", |d| {
        let Common { parameters, certificates, secrets, alpn_protocols, validation } =
            tls_context::common(d, common_tls_context.unwrap_or_default());
        if certificates.is_empty() && secrets.is_empty() {
            d.refuse_field("tls_certificates", "is empty: a server has to have a certificate");
        }
        if !certificates.is_empty() && !secrets.is_empty() {
            d.refuse_field(
                "tls_certificate_sds_secret_configs",
                "has no effect beside tls_certificates",
            );
        }
        let given = d.all("tls_certificates", certificates, certificate);
        let secrets = d.all("tls_certificate_sds_secret_configs", secrets, secret_name);
        let alpn = alpn(d, alpn_protocols);
        let validation = match validation {
            None if !require_client_certificate => Some(None),
            // It asks for nothing.
            Some(ValidationContextType::ValidationContext(value))
                if !require_client_certificate && value == Default::default() =>
            {
                Some(None)
            }
            value => upstream_tls::validation(d, value).map(Some),
        };
        let Parameters { min_version, max_version, cipher_suites, curves } = parameters?;
        let given = given?.into_iter().map(CertificateSource::Given);
        let certificates = given.chain(secrets?.into_iter().map(CertificateSource::Secret));
        Some(DownstreamTls {
            min_version,
            max_version,
            cipher_suites,
            curves,
            alpn: alpn?,
            certificates: certificates.collect(),
            validation: validation?,
            require_client_certificate,
            require_sni: require_sni.is_some_and(|it| it.value),
            prefer_client_ciphers,
        })
    })
}

/// A listener's bytes without the private keys that are written in it: its chains take
/// secrets instead that nobody has, so that whoever starts from these bytes turns clients
/// away until its source has spoken. `None`: they are no listener with any.
pub(super) fn without_keys(bytes: &[u8]) -> Option<Arc<[u8]>> {
    let mut listener = Listener::decode(bytes).ok()?;
    let name = format!("the private key of listener {}, which is not kept on disk", listener.name);
    for chain in listener.filter_chains.iter_mut().chain(&mut listener.default_filter_chain) {
        let Some(socket) = &mut chain.transport_socket else { continue };
        let Some(transport_socket::ConfigType::TypedConfig(any)) = &mut socket.config_type else {
            continue;
        };
        if !common::is::<DownstreamTlsContext>(any) {
            continue;
        }
        let mut context = DownstreamTlsContext::decode(any.value.as_slice()).ok()?;
        let common = context.common_tls_context.as_mut()?;
        if common.tls_certificates.is_empty() {
            continue;
        }
        common.tls_certificates.clear();
        let secret = SdsSecretConfig { name: name.clone(), sds_config: None };
        common.tls_certificate_sds_secret_configs = vec![secret];
        any.value = context.encode_to_vec();
    }
    Some(listener.encode_to_vec().into())
}
