//! The transport sockets of management servers' clusters.
//!
//! Spec: `envoy/extensions/transport_sockets/tls/v3/tls.proto`, `common.proto`.

use std::ops::RangeInclusive;

use envoy_types::pb::envoy::{
    config::core::v3::{DataSource, TransportSocket, data_source, transport_socket::ConfigType},
    extensions::transport_sockets::{
        raw_buffer::v3::RawBuffer,
        tls::v3::{
            CertificateValidationContext, CommonTlsContext, SubjectAltNameMatcher, TlsCertificate,
            TlsParameters, UpstreamTlsContext, common_tls_context::ValidationContextType,
            subject_alt_name_matcher::SanType, tls_parameters::TlsProtocol,
        },
    },
    r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern},
};

use super::super::{
    address::is_host,
    common, config_source,
    reject::{Decoder, unsupported},
    tls::{Pem, TlsOptions},
};

/// `None` inside: no TLS.
pub(super) fn transport_socket(
    d: &mut Decoder,
    value: TransportSocket,
) -> Option<Option<TlsOptions>> {
    let TransportSocket { name, config_type } = value;
    let any = match config_type {
        Some(ConfigType::TypedConfig(any)) => any,
        None if name == "envoy.transport_sockets.raw_buffer" => return Some(None),
        None => return d.field("typed_config", |d| d.refused("is missing")),
    };
    if common::is::<RawBuffer>(&any) {
        return Some(None);
    }
    if !common::is::<UpstreamTlsContext>(&any) {
        common::refuse_extension(d, &name, &common::type_name(&any));
        return None;
    }
    let context = common::unpack(d, &any)?;
    upstream(d, context).map(Some)
}

#[expect(deprecated, reason = "a deprecated field that is set is refused too")]
fn upstream(d: &mut Decoder, value: UpstreamTlsContext) -> Option<TlsOptions> {
    let UpstreamTlsContext {
        common_tls_context,
        sni,
        // That is how it is: the endpoint's `hostname` is the name unless `sni` says one.
        auto_host_sni: _,
        // The name that is asked for is verified in any case.
        auto_sni_san_validation: _,
        allow_renegotiation,
        // Sessions are not resumed.
        max_session_keys: _,
        enforce_rsa_key_usage,
    } = value;
    unsupported!(d; allow_renegotiation, enforce_rsa_key_usage);
    if !sni.is_empty() && !is_host(&sni) {
        d.refuse_field("sni", format!("`{sni}` is no host's name"));
    }
    let mut options = d.field("common_tls_context", |d| {
        common_context(d, common_tls_context.unwrap_or_default())
    })?;
    options.server_name = Some(sni).filter(|sni| !sni.is_empty());
    Some(options)
}

#[expect(deprecated, reason = "a deprecated field that is set is refused too")]
fn common_context(d: &mut Decoder, value: CommonTlsContext) -> Option<TlsOptions> {
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
    } = value;
    unsupported!(
        d;
        tls_certificate_sds_secret_configs, tls_certificate_provider_instance,
        custom_tls_certificate_selector, tls_certificate_certificate_provider,
        tls_certificate_certificate_provider_instance, custom_handshaker, key_log,
    );
    if !alpn_protocols.is_empty() && alpn_protocols != ["h2"] {
        d.refuse_field("alpn_protocols", "must be [h2]: gRPC is HTTP/2");
    }
    let versions = match tls_params {
        None => Some(0..=1),
        Some(params) => d.field("tls_params", |d| versions(d, params)),
    };
    if tls_certificates.len() > 1 {
        d.refuse_field("tls_certificates", "only one certificate is supported");
    }
    let identity = d.all("tls_certificates", tls_certificates, certificate);
    use ValidationContextType as Validation;
    let validation = match validation_context_type {
        Some(Validation::ValidationContext(context)) => {
            d.field("validation_context", |d| validation(d, context))
        }
        Some(Validation::ValidationContextSdsSecretConfig(_)) => {
            d.not_supported("validation_context_sds_secret_config")
        }
        Some(Validation::CombinedValidationContext(_)) => {
            d.not_supported("combined_validation_context")
        }
        Some(Validation::ValidationContextCertificateProvider(_)) => {
            d.not_supported("validation_context_certificate_provider")
        }
        Some(Validation::ValidationContextCertificateProviderInstance(_)) => {
            d.not_supported("validation_context_certificate_provider_instance")
        }
        None => d.field("validation_context", |d| {
            d.refused("is missing: the server has to be verified")
        }),
    };
    let (ca, accepted_names) = validation?;
    let mut options = TlsOptions::new(ca, identity?.into_iter().next());
    options.accepted_names = accepted_names;
    options.versions = versions?;
    Some(options)
}

fn versions(d: &mut Decoder, value: TlsParameters) -> Option<RangeInclusive<usize>> {
    let TlsParameters {
        tls_minimum_protocol_version,
        tls_maximum_protocol_version,
        cipher_suites,
        ecdh_curves,
        signature_algorithms,
        compliance_policies,
    } = value;
    unsupported!(d; cipher_suites, ecdh_curves, signature_algorithms, compliance_policies);
    let mut version = |field, value, auto| match TlsProtocol::try_from(value) {
        Ok(TlsProtocol::TlsAuto) => Some(auto),
        Ok(TlsProtocol::TlSv12) => Some(0),
        Ok(TlsProtocol::TlSv13) => Some(1),
        _ => d.field(field, |d| d.refused("only TLSv1_2 and TLSv1_3 are supported")),
    };
    let least = version("tls_minimum_protocol_version", tls_minimum_protocol_version, 0);
    let most = version("tls_maximum_protocol_version", tls_maximum_protocol_version, 1);
    let (least, most) = (least?, most?);
    if least > most {
        return d.refused("the minimum is above the maximum");
    }
    Some(least..=most)
}

fn certificate(d: &mut Decoder, value: TlsCertificate) -> Option<(Pem, Pem)> {
    let TlsCertificate {
        certificate_chain,
        private_key,
        pkcs12,
        // Files are read anew for every connection.
        watched_directory: _,
        private_key_provider,
        password,
        ocsp_staple,
        signed_certificate_timestamp,
        tls_params,
    } = value;
    unsupported!(
        d; pkcs12, private_key_provider, password, ocsp_staple, signed_certificate_timestamp,
        tls_params,
    );
    let chain = pem(d, "certificate_chain", certificate_chain);
    let key = pem(d, "private_key", private_key);
    Some((chain?, key?))
}

/// The authorities, and the names of which one must be in the certificate.
#[expect(deprecated, reason = "a deprecated field that is set is refused too")]
fn validation(d: &mut Decoder, value: CertificateValidationContext) -> Option<(Pem, Vec<String>)> {
    let CertificateValidationContext {
        trusted_ca,
        ca_certificate_provider_instance,
        system_root_certs,
        // Files are read anew for every connection.
        watched_directory: _,
        verify_certificate_spki,
        verify_certificate_hash,
        match_typed_subject_alt_names,
        match_subject_alt_names,
        require_signed_certificate_timestamp,
        crl,
        allow_expired_certificate,
        trust_chain_verification,
        custom_validator_config,
        only_verify_leaf_cert_crl,
        max_verify_depth,
        // Said by servers only.
        suppress_client_ca_list: _,
    } = value;
    unsupported!(
        d;
        ca_certificate_provider_instance, system_root_certs, verify_certificate_spki,
        verify_certificate_hash, match_subject_alt_names, require_signed_certificate_timestamp,
        crl, allow_expired_certificate, trust_chain_verification, custom_validator_config,
        only_verify_leaf_cert_crl, max_verify_depth,
    );
    let ca = pem(d, "trusted_ca", trusted_ca);
    let names = d.all("match_typed_subject_alt_names", match_typed_subject_alt_names, name);
    Some((ca?, names?))
}

fn name(d: &mut Decoder, value: SubjectAltNameMatcher) -> Option<String> {
    let SubjectAltNameMatcher { san_type, matcher, oid } = value;
    unsupported!(d; oid);
    if ![SanType::Dns as i32, SanType::IpAddress as i32].contains(&san_type) {
        return d.field("san_type", |d| d.refused("only DNS and IP_ADDRESS are supported"));
    }
    d.field("matcher", |d| match matcher {
        Some(StringMatcher {
            match_pattern: Some(MatchPattern::Exact(name)),
            ignore_case: false,
        }) if is_host(&name) => Some(name),
        _ => d.refused("only an exact name is supported"),
    })
}

fn pem(d: &mut Decoder, field: &str, value: Option<DataSource>) -> Option<Pem> {
    use data_source::Specifier;
    d.field(field, |d| {
        // Files are read anew for every connection.
        let DataSource { specifier, watched_directory: _ } = value.unwrap_or_default();
        match specifier {
            Some(Specifier::Filename(name)) => {
                config_source::absolute(d, "filename", &name).map(Pem::File)
            }
            Some(Specifier::InlineBytes(bytes)) => Some(Pem::Inline(bytes)),
            Some(Specifier::InlineString(text)) => Some(Pem::Inline(text.into_bytes())),
            Some(Specifier::EnvironmentVariable(name)) => Some(Pem::Environment(name)),
            None => d.refused("is missing"),
        }
    })
}
