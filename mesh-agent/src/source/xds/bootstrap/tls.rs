//! The transport sockets of management servers' clusters.
//!
//! Spec: `envoy/extensions/transport_sockets/tls/v3/tls.proto`, `common.proto`.

use envoy_types::pb::envoy::{
    config::core::v3::{DataSource, TransportSocket},
    extensions::transport_sockets::tls::v3::{
        CertificateValidationContext, CommonTlsContext, SubjectAltNameMatcher, TlsCertificate,
        UpstreamTlsContext, common_tls_context::ValidationContextType,
        subject_alt_name_matcher::SanType,
    },
    r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern},
};

use super::super::{
    address::is_host,
    config_source,
    reject::{Decoder, unsupported},
    tls::{Pem, TlsOptions},
    tls_context::{self, Common, Parameters, Validation},
};

/// `None` inside: no TLS.
pub(super) fn transport_socket(
    d: &mut Decoder,
    value: TransportSocket,
) -> Option<Option<TlsOptions>> {
    tls_context::transport_socket(d, value, upstream)
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
    let Common { parameters, certificates, secrets, alpn_protocols, validation } =
        tls_context::common(d, value);
    if !secrets.is_empty() {
        d.refuse_field("tls_certificate_sds_secret_configs", "is not supported");
    }
    if !alpn_protocols.is_empty() && alpn_protocols != ["h2"] {
        d.refuse_field("alpn_protocols", "must be [h2]: gRPC is HTTP/2");
    }
    if certificates.len() > 1 {
        d.refuse_field("tls_certificates", "only one certificate is supported");
    }
    let identity = d.all("tls_certificates", certificates, certificate);
    use ValidationContextType as Type;
    let validation = match validation {
        Some(Type::ValidationContext(context)) => {
            d.field("validation_context", |d| self::validation(d, context))
        }
        Some(Type::ValidationContextSdsSecretConfig(_)) => {
            d.not_supported("validation_context_sds_secret_config")
        }
        Some(Type::CombinedValidationContext(_)) => d.not_supported("combined_validation_context"),
        Some(Type::ValidationContextCertificateProvider(_)) => {
            d.not_supported("validation_context_certificate_provider")
        }
        Some(Type::ValidationContextCertificateProviderInstance(_)) => {
            d.not_supported("validation_context_certificate_provider_instance")
        }
        None => d.field("validation_context", |d| {
            d.refused("is missing: the server has to be verified")
        }),
    };
    let Parameters { min_version, max_version, cipher_suites, curves } = parameters?;
    d.field("tls_params", |d| {
        let ecdh_curves = curves;
        unsupported!(d; cipher_suites, ecdh_curves);
    });
    let (ca, accepted_names) = validation?;
    let mut options = TlsOptions::new(ca, identity?.into_iter().next());
    options.accepted_names = accepted_names;
    options.versions = (min_version, max_version);
    Some(options)
}

/// Files are read anew for every connection.
fn certificate(d: &mut Decoder, value: TlsCertificate) -> Option<(Pem, Pem)> {
    let (chain, key) = tls_context::certificate(d, value)?;
    let chain = d.field("certificate_chain", |d| anywhere(d, chain));
    let key = d.field("private_key", |d| anywhere(d, key));
    Some((chain?, key?))
}

/// The authorities, and the names of which one must be in the certificate.
fn validation(d: &mut Decoder, value: CertificateValidationContext) -> Option<(Pem, Vec<String>)> {
    let Validation {
        trusted_ca,
        verify_certificate_spki,
        verify_certificate_hash,
        match_typed_subject_alt_names,
        match_subject_alt_names,
        crl,
        trust_chain_verification,
        custom_validator_config,
        only_verify_leaf_cert_crl,
    } = tls_context::validation(d, value);
    unsupported!(
        d;
        verify_certificate_spki, verify_certificate_hash, match_subject_alt_names, crl,
        trust_chain_verification, custom_validator_config, only_verify_leaf_cert_crl,
    );
    let ca = authorities(d, trusted_ca);
    let names = d.all("match_typed_subject_alt_names", match_typed_subject_alt_names, name);
    Some((ca?, names?))
}

fn authorities(d: &mut Decoder, value: Option<DataSource>) -> Option<Pem> {
    let pem = tls_context::pem(d, "trusted_ca", value)?;
    d.field("trusted_ca", |d| anywhere(d, pem))
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

/// A relative path is one from where the agent was started.
fn anywhere(d: &mut Decoder, pem: Pem) -> Option<Pem> {
    match pem {
        Pem::File(path) => {
            config_source::absolute(d, "filename", &path.to_string_lossy()).map(Pem::File)
        }
        other => Some(other),
    }
}
