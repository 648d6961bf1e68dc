//! TLS towards the endpoints of clusters.
//!
//! Spec: `envoy/extensions/transport_sockets/tls/v3/{tls,common}.proto`.

mod material;

use std::sync::Arc;

use envoy_types::pb::envoy::{
    config::cluster::v3::Cluster,
    config::core::v3::{TransportSocket, UpstreamHttpProtocolOptions, transport_socket},
    extensions::transport_sockets::tls::v3::{
        CommonTlsContext, SdsSecretConfig, TlsParameters, UpstreamTlsContext,
        common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
        tls_parameters::TlsProtocol,
    },
};
use prost::Message as _;
use rustls::{CipherSuite, NamedGroup, pki_types::ServerName};

pub(super) use material::{certificate, validation_context};

use super::{
    ResourceType, common, config_source,
    reject::{Decoder, unsupported},
};
use crate::model::tls::{CertificateSource, HostNames, TlsVersion, UpstreamTls, ValidationSource};

/// Envoy's (BoringSSL's) names of what rustls has for TLS 1.2.
const CIPHER_SUITES: [(&str, CipherSuite); 6] = [
    ("ECDHE-ECDSA-AES128-GCM-SHA256", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-ECDSA-AES256-GCM-SHA384", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    ("ECDHE-ECDSA-CHACHA20-POLY1305", CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    ("ECDHE-RSA-AES128-GCM-SHA256", CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-RSA-AES256-GCM-SHA384", CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
    ("ECDHE-RSA-CHACHA20-POLY1305", CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
];

const CURVES: [(&str, NamedGroup); 4] = [
    ("X25519", NamedGroup::X25519),
    ("P-256", NamedGroup::secp256r1),
    ("P-384", NamedGroup::secp384r1),
    ("X25519MLKEM768", NamedGroup::X25519MLKEM768),
];

/// A cluster's `transport_socket`: `None` where it is refused, `Some(None)` in the clear.
pub(super) fn transport_socket(
    d: &mut Decoder,
    value: TransportSocket,
    by_host: HostNames,
) -> Option<Option<Arc<UpstreamTls>>> {
    let TransportSocket { name, config_type } = value;
    let any = match config_type {
        Some(transport_socket::ConfigType::TypedConfig(any)) => any,
        None if name == "envoy.transport_sockets.raw_buffer" => return Some(None),
        None => return d.refused(format!("{name} has no typed_config")),
    };
    if common::type_name(&any).ends_with(".RawBuffer") {
        return Some(None);
    }
    if !common::is::<UpstreamTlsContext>(&any) {
        common::refuse_extension(d, &name, &common::type_name(&any));
        return None;
    }
    let context = d.field("typed_config", |d| {
        common::unpack(d, &any).and_then(|context| upstream(d, context, by_host))
    });
    context.map(|context| Some(Arc::new(context)))
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
    unsupported!(d; auto_host_sni, allow_renegotiation);
    let sni = match sni.as_str() {
        "" => Some(None),
        // An address is no SNI, and rustls sends none for it.
        name => d.field("sni", |d| match ServerName::try_from(name) {
            Ok(_) => Some(Some(name.into())),
            Err(_) => d.refused(format!("`{name}` is not a server's name")),
        }),
    };
    if auto_sni_san_validation && matches!(sni, Some(None)) && !by_host.sni {
        d.refuse_field("auto_sni_san_validation", "there is no sni to validate against");
    }
    d.field("common_tls_context", |d| {
        let CommonTlsContext {
            tls_params,
            tls_certificates,
            tls_certificate_sds_secret_configs,
            tls_certificate_provider_instance,
            custom_tls_certificate_selector,
            tls_certificate_certificate_provider,
            tls_certificate_certificate_provider_instance,
            alpn_protocols,
            custom_handshaker,
            key_log,
            validation_context_type,
        } = common_tls_context.unwrap_or_default();
        unsupported!(
            d;
            tls_certificate_provider_instance, custom_tls_certificate_selector,
            tls_certificate_certificate_provider, tls_certificate_certificate_provider_instance,
            custom_handshaker, key_log,
        );
        let params = d.field("tls_params", |d| parameters(d, tls_params.unwrap_or_default()));
        let certificate = presented(d, tls_certificates, tls_certificate_sds_secret_configs);
        let alpn = alpn(d, alpn_protocols);
        let validation = validation(d, validation_context_type);
        let Parameters { min_version, max_version, cipher_suites, curves } = params?;
        Some(UpstreamTls {
            min_version,
            max_version,
            cipher_suites,
            curves,
            alpn: alpn?,
            sni: sni?,
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

pub(super) struct Parameters {
    pub(super) min_version: TlsVersion,
    pub(super) max_version: TlsVersion,
    pub(super) cipher_suites: Vec<CipherSuite>,
    pub(super) curves: Vec<NamedGroup>,
}

pub(super) fn parameters(d: &mut Decoder, value: TlsParameters) -> Option<Parameters> {
    let TlsParameters {
        tls_minimum_protocol_version,
        tls_maximum_protocol_version,
        cipher_suites,
        ecdh_curves,
        signature_algorithms,
        compliance_policies,
    } = value;
    unsupported!(d; signature_algorithms, compliance_policies);
    let mut version = |field: &str, value: i32, default| {
        d.field(field, |d| match TlsProtocol::try_from(value) {
            Ok(TlsProtocol::TlsAuto) => Some(default),
            Ok(TlsProtocol::TlSv12) => Some(TlsVersion::V1_2),
            Ok(TlsProtocol::TlSv13) => Some(TlsVersion::V1_3),
            Ok(old) => d.refused(format!("{} is not supported", old.as_str_name())),
            Err(_) => d.refused(format!("{value} is unknown")),
        })
    };
    let min =
        version("tls_minimum_protocol_version", tls_minimum_protocol_version, TlsVersion::V1_2);
    // Envoy's default for clients is 1.2; there is nothing that 1.2 would do better.
    let max =
        version("tls_maximum_protocol_version", tls_maximum_protocol_version, TlsVersion::V1_3);
    if let (Some(min), Some(max)) = (min, max)
        && min > max
    {
        d.refuse_field("tls_minimum_protocol_version", "is above the maximum");
    }
    // `[A|B]`: equally good; a client has to put one first all the same.
    let names = cipher_suites.iter().flat_map(|names| {
        names.trim_start_matches('[').trim_end_matches(']').split('|').collect::<Vec<_>>()
    });
    let cipher_suites = d.all("cipher_suites", names, |d, name| named(d, &CIPHER_SUITES, name));
    let curves = d.all("ecdh_curves", &ecdh_curves, |d, name| named(d, &CURVES, name));
    Some(Parameters {
        min_version: min?,
        max_version: max?,
        cipher_suites: cipher_suites?,
        curves: curves?,
    })
}

fn named<T: Copy>(d: &mut Decoder, known: &[(&str, T)], name: &str) -> Option<T> {
    match known.iter().find(|(known, _)| *known == name) {
        Some((_, value)) => Some(*value),
        None => {
            let known: Vec<_> = known.iter().map(|(known, _)| *known).collect();
            d.refused(format!("`{name}` is none of {}", known.join(", ")))
        }
    }
}

/// What is presented; `Some(None)`: nothing.
fn presented(
    d: &mut Decoder,
    given: Vec<envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::TlsCertificate>,
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
