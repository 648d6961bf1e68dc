//! TLS towards the endpoints of clusters.
//!
//! Spec: `envoy/extensions/transport_sockets/tls/v3/{tls,common}.proto`.

mod material;

use std::sync::Arc;

use envoy_types::pb::envoy::{
    config::cluster::v3::Cluster,
    config::core::v3::{TransportSocket, UpstreamHttpProtocolOptions, transport_socket},
    extensions::transport_sockets::tls::v3::{
        SdsSecretConfig, TlsCertificate, UpstreamTlsContext,
        common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
    },
};
use prost::Message as _;
use rustls::pki_types::ServerName;

pub(super) use material::{certificate, validation_context};

use super::{
    ResourceType, config_source,
    reject::{Decoder, unsupported},
    tls_context::{self, Common, Parameters},
};
use crate::model::tls::{CertificateSource, HostNames, UpstreamTls, ValidationSource};

/// A cluster's `transport_socket`: `None` where it is refused, `Some(None)` in the clear.
pub(super) fn transport_socket(
    d: &mut Decoder,
    value: TransportSocket,
    by_host: HostNames,
) -> Option<Option<Arc<UpstreamTls>>> {
    let decode = |d: &mut Decoder, context| upstream(d, context, by_host);
    tls_context::transport_socket(d, value, decode).map(|context| context.map(Arc::new))
}

#[expect(deprecated, reason = "a deprecated field that says nothing")]
fn upstream(d: &mut Decoder, value: UpstreamTlsContext, by_host: HostNames) -> Option<UpstreamTls> {
    let UpstreamTlsContext {
        common_tls_context,
        sni,
        auto_host_sni,
        auto_sni_san_validation,
        allow_renegotiation,
        // No session is ever resumed: there are none to keep.
        max_session_keys: _,
        // Deprecated, and ignored by Envoy as well.
        enforce_rsa_key_usage: _,
    } = value;
    unsupported!(d; allow_renegotiation);
    let sni = match sni.as_str() {
        "" => Some(None),
        // An address is no SNI, and rustls sends none for it.
        name => d.field("sni", |d| match ServerName::try_from(name) {
            Ok(_) => Some(Some(name.into())),
            Err(_) => d.refused(format!("`{name}` is not a server's name")),
        }),
    };
    let named = auto_host_sni || by_host.sni;
    if auto_sni_san_validation && matches!(sni, Some(None)) && !named {
        d.refuse_field("auto_sni_san_validation", "there is no sni to validate against");
    }
    d.field("common_tls_context", |d| {
        let Common { parameters, certificates, secrets, alpn_protocols, validation } =
            tls_context::common(d, common_tls_context.unwrap_or_default());
        let certificate = presented(d, certificates, secrets);
        let alpn = alpn(d, alpn_protocols);
        let validation = self::validation(d, validation);
        let Parameters { min_version, max_version, cipher_suites, curves } = parameters?;
        Some(UpstreamTls {
            min_version,
            max_version,
            cipher_suites,
            curves,
            alpn: alpn?,
            sni: sni?,
            sni_by_endpoint: auto_host_sni,
            sni_is_san: auto_sni_san_validation,
            by_host,
            certificate: certificate?,
            validation: validation?,
        })
    })
}

pub(super) fn alpn(d: &mut Decoder, names: Vec<String>) -> Option<Vec<Arc<str>>> {
    d.all("alpn_protocols", names, |d, name| match name.len() {
        1..=255 => Some(name.into()),
        _ => d.refused("is not 1 to 255 bytes long"),
    })
}

/// A cluster's bytes without the private key that is written in it: it takes a secret
/// instead that nobody has, so that whoever starts from these bytes dials no endpoint of
/// it until its source has spoken. `None`: they are no cluster with one.
pub(super) fn without_key(bytes: &[u8]) -> Option<Arc<[u8]>> {
    let mut cluster = Cluster::decode(bytes).ok()?;
    let socket = cluster.transport_socket.as_mut()?;
    let Some(transport_socket::ConfigType::TypedConfig(any)) = &mut socket.config_type else {
        return None;
    };
    let mut context = UpstreamTlsContext::decode(any.value.as_slice()).ok()?;
    let common = context.common_tls_context.as_mut()?;
    common.tls_certificates.clear();
    let name = format!("the private key of cluster {}, which is not kept on disk", cluster.name);
    common.tls_certificate_sds_secret_configs = vec![SdsSecretConfig { name, sds_config: None }];
    any.value = context.encode_to_vec();
    Some(cluster.encode_to_vec().into())
}

/// What is presented; `Some(None)`: nothing.
fn presented(
    d: &mut Decoder,
    given: Vec<TlsCertificate>,
    secrets: Vec<SdsSecretConfig>,
) -> Option<Option<CertificateSource>> {
    if given.len() + secrets.len() > 1 {
        let (field, index) = match secrets.len() {
            0 => ("tls_certificates", 1),
            more => ("tls_certificate_sds_secret_configs", more - 1),
        };
        d.item(field, index, |d| d.refuse("a client presents one certificate"));
        return None;
    }
    let given = d.all("tls_certificates", given, certificate)?;
    let secrets = d.all("tls_certificate_sds_secret_configs", secrets, secret_name)?;
    let given = given.into_iter().map(CertificateSource::Given);
    Some(given.chain(secrets.into_iter().map(CertificateSource::Secret)).next())
}

/// The name that SDS is asked for.
pub(super) fn secret_name(d: &mut Decoder, value: SdsSecretConfig) -> Option<Arc<str>> {
    let SdsSecretConfig { name, sds_config } = value;
    if name.is_empty() {
        return d.field("name", |d| d.refused("is missing"));
    }
    let name: Arc<str> = name.into();
    config_source::reference(d, "sds_config", sds_config, ResourceType::Secret, &name);
    Some(name)
}

#[expect(deprecated, reason = "a deprecated field that is set is refused too")]
pub(super) fn validation(
    d: &mut Decoder,
    value: Option<ValidationContextType>,
) -> Option<ValidationSource> {
    use ValidationContextType as Type;
    match value {
        None | Some(Type::ValidationContext(_)) => d.field("validation_context", |d| {
            let context = match value {
                Some(Type::ValidationContext(value)) => validation_context(d, value)?,
                _ => Default::default(),
            };
            match context.flaw() {
                Some(flaw) => d.refused(flaw),
                None => Some(ValidationSource::Inline(Arc::new(context))),
            }
        }),
        Some(Type::ValidationContextSdsSecretConfig(config)) => d
            .field("validation_context_sds_secret_config", |d| {
                secret_name(d, config).map(ValidationSource::Secret)
            }),
        Some(Type::CombinedValidationContext(combined)) => {
            d.field("combined_validation_context", |d| {
                let CombinedCertificateValidationContext {
                    default_validation_context,
                    validation_context_sds_secret_config,
                    validation_context_certificate_provider,
                    validation_context_certificate_provider_instance,
                } = combined;
                unsupported!(
                    d;
                    validation_context_certificate_provider,
                    validation_context_certificate_provider_instance,
                );
                let default = d.field("default_validation_context", |d| {
                    validation_context(d, default_validation_context.unwrap_or_default())
                });
                let secret = d.field("validation_context_sds_secret_config", |d| {
                    match validation_context_sds_secret_config {
                        Some(config) => secret_name(d, config),
                        None => d.refused("is missing"),
                    }
                });
                Some(ValidationSource::Combined { default: Arc::new(default?), secret: secret? })
            })
        }
        Some(Type::ValidationContextCertificateProvider(_)) => {
            d.not_supported("validation_context_certificate_provider")
        }
        Some(Type::ValidationContextCertificateProviderInstance(_)) => {
            d.not_supported("validation_context_certificate_provider_instance")
        }
    }
}

/// What requests' hosts decide.
pub(super) fn by_host(d: &mut Decoder, value: UpstreamHttpProtocolOptions) -> Option<HostNames> {
    let UpstreamHttpProtocolOptions { auto_sni, auto_san_validation, override_auto_sni_header } =
        value;
    let header = match override_auto_sni_header.as_str() {
        "" | ":authority" | "host" => Some(None),
        name => d.field("override_auto_sni_header", |d| match http::HeaderName::try_from(name) {
            Ok(name) => Some(Some(name.as_str().into())),
            Err(_) => d.refused(format!("`{name}` is not a header's name")),
        }),
    };
    Some(HostNames { sni: auto_sni, san: auto_san_validation, header: header? })
}
