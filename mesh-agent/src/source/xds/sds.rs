//! Secrets: certificates with keys, and validation contexts.
//!
//! Spec: `envoy/extensions/transport_sockets/tls/v3/{secret,common,tls_spiffe_validator_config}.proto`.

use std::sync::Arc;

use envoy_types::pb::envoy::{
    config::core::v3::{DataSource, TypedExtensionConfig, data_source::Specifier},
    extensions::transport_sockets::tls::v3::{
        CertificateValidationContext, Secret as PbSecret, SpiffeCertValidatorConfig,
        SubjectAltNameMatcher, TlsCertificate as PbTlsCertificate,
        certificate_validation_context::TrustChainVerification, secret::Type,
        spiffe_cert_validator_config::TrustDomain as PbTrustDomain,
        subject_alt_name_matcher::SanType as PbSanType,
    },
};
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem::PemObject,
};
use zeroize::Zeroizing;

use super::{
    common, matchers,
    reject::{Decoder, unsupported},
};
use crate::model::secret::{
    PrivateKey, SanMatcher, SanType, Secret, SecretKind, TlsCertificate, TrustBundle,
    ValidationContext,
};

/// Certificates or lists in one bundle; the web's public roots are some 150.
const PEM_ITEMS_MAX: usize = 2000;

pub(super) fn secret(d: &mut Decoder, value: PbSecret) -> Option<Secret> {
    let PbSecret { name, r#type } = value;
    if name.is_empty() {
        d.refuse_field("name", "is missing");
    }
    let kind = match r#type {
        Some(Type::TlsCertificate(value)) => d
            .field("tls_certificate", |d| tls_certificate(d, value))
            .map(|certificate| SecretKind::TlsCertificate(Arc::new(certificate))),
        Some(Type::ValidationContext(value)) => d
            .field("validation_context", |d| validation_context(d, value))
            .map(|context| SecretKind::ValidationContext(Arc::new(context))),
        Some(Type::SessionTicketKeys(_)) => d.not_supported("session_ticket_keys"),
        Some(Type::GenericSecret(_)) => d.not_supported("generic_secret"),
        None => d.refused("has neither tls_certificate nor validation_context"),
    };
    Some(Secret { name: name.into(), kind: kind? })
}

/// A certificate chain and its key.
pub(super) fn tls_certificate(d: &mut Decoder, value: PbTlsCertificate) -> Option<TlsCertificate> {
    let PbTlsCertificate {
        certificate_chain,
        private_key,
        pkcs12,
        watched_directory,
        private_key_provider,
        password,
        ocsp_staple,
        signed_certificate_timestamp,
        tls_params,
    } = value;
    unsupported!(
        d;
        pkcs12, watched_directory, private_key_provider, password, ocsp_staple,
        signed_certificate_timestamp, tls_params,
    );
    let chain = d.field("certificate_chain", |d| {
        let pem = inline(d, certificate_chain)?;
        certificates(d, &pem)
    });
    let key = d.field("private_key", |d| {
        let pem = inline(d, private_key)?;
        match PrivateKeyDer::from_pem_slice(&pem) {
            Ok(key) => Some(PrivateKey::new(key)),
            // The error's own words could hold some of the key.
            Err(_) => d.refused("is no PEM private key"),
        }
    });
    Some(TlsCertificate { chain: chain?, key: key? })
}

#[expect(deprecated, reason = "a deprecated field that is set is refused too")]
pub(super) fn validation_context(
    d: &mut Decoder,
    value: CertificateValidationContext,
) -> Option<ValidationContext> {
    let CertificateValidationContext {
        trusted_ca,
        ca_certificate_provider_instance,
        system_root_certs,
        watched_directory,
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
        suppress_client_ca_list,
    } = value;
    unsupported!(
        d;
        ca_certificate_provider_instance, system_root_certs, watched_directory,
        verify_certificate_spki, verify_certificate_hash, match_subject_alt_names,
        require_signed_certificate_timestamp, allow_expired_certificate, max_verify_depth,
        suppress_client_ca_list,
    );
    let accept_untrusted = match TrustChainVerification::try_from(trust_chain_verification) {
        Ok(verification) => Some(verification == TrustChainVerification::AcceptUntrusted),
        Err(_) => d.field("trust_chain_verification", |d| {
            d.refused(format!("{trust_chain_verification} is unknown"))
        }),
    };
    if trusted_ca.is_some() && custom_validator_config.is_some() {
        d.refuse_field("trusted_ca", "excludes custom_validator_config");
    }
    let trusted_ca = match trusted_ca {
        None => Some(Vec::new()),
        Some(source) => d.field("trusted_ca", |d| {
            let pem = inline(d, Some(source))?;
            certificates(d, &pem)
        }),
    };
    let crls = match crl {
        None => Some(Vec::new()),
        Some(source) => d.field("crl", |d| {
            let pem = inline(d, Some(source))?;
            all_of::<CertificateRevocationListDer<'static>>(d, &pem, "certificate revocation list")
        }),
    };
    let san_matchers =
        d.all("match_typed_subject_alt_names", match_typed_subject_alt_names, san_matcher);
    let trust_bundles = match custom_validator_config {
        None => Some(Vec::new()),
        Some(config) => d.field("custom_validator_config", |d| spiffe_validator(d, config)),
    };
    Some(ValidationContext {
        trusted_ca: trusted_ca?,
        crls: crls?,
        only_verify_leaf_cert_crl,
        san_matchers: san_matchers?,
        trust_bundles: trust_bundles?,
        accept_untrusted: accept_untrusted?,
    })
}

fn san_matcher(d: &mut Decoder, value: SubjectAltNameMatcher) -> Option<SanMatcher> {
    let SubjectAltNameMatcher { san_type, matcher, oid } = value;
    unsupported!(d; oid);
    let san = d.field("san_type", |d| match PbSanType::try_from(san_type) {
        Ok(PbSanType::Email) => Some(SanType::Email),
        Ok(PbSanType::Dns) => Some(SanType::Dns),
        Ok(PbSanType::Uri) => Some(SanType::Uri),
        Ok(PbSanType::IpAddress) => Some(SanType::IpAddress),
        Ok(PbSanType::OtherName) => d.refused("OTHER_NAME is not supported"),
        Ok(PbSanType::Unspecified) => d.refused("is missing"),
        Err(_) => d.refused(format!("{san_type} is unknown")),
    });
    let matcher = d.field("matcher", |d| match matcher {
        Some(matcher) => matchers::string(d, matcher),
        None => d.refused("is missing"),
    });
    Some(SanMatcher { san: san?, matcher: matcher? })
}

fn spiffe_validator(d: &mut Decoder, value: TypedExtensionConfig) -> Option<Vec<TrustBundle>> {
    let TypedExtensionConfig { name, typed_config } = value;
    let any = typed_config.unwrap_or_default();
    if !common::is::<SpiffeCertValidatorConfig>(&any) {
        common::refuse_extension(d, &name, &common::type_name(&any));
        return None;
    }
    let SpiffeCertValidatorConfig { trust_domains, trust_bundles } = common::unpack(d, &any)?;
    unsupported!(d; trust_bundles);
    if trust_domains.is_empty() {
        return d.field("trust_domains", |d| d.refused("is empty"));
    }
    d.all("trust_domains", trust_domains, |d, value| {
        let PbTrustDomain { name, trust_bundle, workload_trust_domain } = value;
        unsupported!(d; workload_trust_domain);
        let trust_domain = d.field("name", |d| match name.parse() {
            Ok(name) => Some(name),
            Err(error) => d.refused(format!("`{name}` is not a trust domain: {error}")),
        });
        let roots = d.field("trust_bundle", |d| {
            let pem = inline(d, trust_bundle)?;
            certificates(d, &pem)
        });
        Some(TrustBundle { trust_domain: trust_domain?, roots: roots? })
    })
}

/// The bytes of a data source that carries them itself; wiped when they go.
fn inline(d: &mut Decoder, value: Option<DataSource>) -> Option<Zeroizing<Vec<u8>>> {
    let Some(DataSource { watched_directory, specifier }) = value else {
        return d.refused("is missing");
    };
    unsupported!(d; watched_directory);
    match specifier {
        Some(Specifier::InlineBytes(bytes)) => Some(Zeroizing::new(bytes)),
        Some(Specifier::InlineString(text)) => Some(Zeroizing::new(text.into_bytes())),
        Some(Specifier::Filename(_)) => d.not_supported("filename"),
        Some(Specifier::EnvironmentVariable(_)) => d.not_supported("environment_variable"),
        None => d.refused("has neither inline_bytes nor inline_string"),
    }
}

fn certificates(d: &mut Decoder, pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    all_of(d, pem, "certificate")
}

/// Every item of that kind in a PEM text; at least one.
fn all_of<T: PemObject>(d: &mut Decoder, pem: &[u8], what: &str) -> Option<Vec<T>> {
    let items: Result<Vec<T>, _> = T::pem_slice_iter(pem).take(PEM_ITEMS_MAX + 1).collect();
    match items {
        Ok(items) if items.is_empty() => d.refused(format!("holds no PEM {what}")),
        Ok(items) if items.len() > PEM_ITEMS_MAX => {
            d.refused(format!("holds more than {PEM_ITEMS_MAX} items"))
        }
        Ok(items) => Some(items),
        Err(_) => d.refused(format!("is no PEM {what}")),
    }
}
