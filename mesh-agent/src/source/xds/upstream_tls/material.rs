//! Certificates with keys, and what peers have to prove: in clusters and in secrets.
//!
//! What is inline is looked at here, so that a bad one is refused by its path; files
//! are looked at by whoever uses them, since they may change.

use std::{collections::BTreeMap, path::PathBuf};

use envoy_types::pb::envoy::{
    config::core::v3::{DataSource, TypedExtensionConfig},
    extensions::transport_sockets::tls::v3::{
        CertificateValidationContext, SpiffeCertValidatorConfig, SubjectAltNameMatcher,
        TlsCertificate as PbTlsCertificate, certificate_validation_context::TrustChainVerification,
        spiffe_cert_validator_config::TrustDomain as PbTrustDomain,
        subject_alt_name_matcher::SanType as PbSanType,
    },
};
use rustls::pki_types::pem::PemObject as _;
use zeroize::Zeroizing;

use crate::{
    model::{
        authz::StringPattern,
        identity::TrustDomain,
        tls::{
            CertificateFiles, CertificateMaterial, Crls, Roots, SanMatcher, SanType,
            TlsCertificate, ValidationContext, anchors_from_pem, crls_from_pem,
        },
    },
    source::xds::{
        common, matchers,
        reject::{Decoder, unsupported},
        tls::Pem,
        tls_context::{self, Validation},
    },
};

/// Where some material of a resource is.
enum Place {
    Inline(Zeroizing<Vec<u8>>),
    File(PathBuf),
}

/// A certificate chain and its key.
pub(in crate::source::xds) fn certificate(
    d: &mut Decoder,
    value: PbTlsCertificate,
) -> Option<CertificateMaterial> {
    let (chain, key) = tls_context::certificate(d, value)?;
    let chain = place(d, "certificate_chain", chain);
    let key = place(d, "private_key", key);
    match (chain?, key?) {
        (Place::Inline(chain), Place::Inline(key)) => {
            match TlsCertificate::from_pem(&chain, &key) {
                Ok(certificate) => Some(CertificateMaterial::Inline(certificate)),
                Err(error) => d.refused(error.to_string()),
            }
        }
        (Place::File(chain), Place::File(key)) => {
            Some(CertificateMaterial::Files(CertificateFiles { chain, key }))
        }
        _ => d.refused("certificate_chain and private_key must both be inline, or both be files"),
    }
}

pub(in crate::source::xds) fn validation_context(
    d: &mut Decoder,
    value: CertificateValidationContext,
) -> Option<ValidationContext> {
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
    let accept_untrusted = d.field("trust_chain_verification", |d| {
        match TrustChainVerification::try_from(trust_chain_verification) {
            Ok(verification) => Some(verification == TrustChainVerification::AcceptUntrusted),
            Err(_) => d.refused(format!("{trust_chain_verification} is unknown")),
        }
    });
    let roots = match trusted_ca {
        Some(source) => roots(d, "trusted_ca", Some(source)).map(Some),
        None => Some(None),
    };
    let crls = match crl {
        None => Some(None),
        Some(source) => located(d, "crl", Some(source)).and_then(|place| match place {
            Place::File(path) => Some(Some(Crls::File(path))),
            Place::Inline(pem) => d.field("crl", |d| match crls_from_pem(&pem) {
                Ok(lists) => Some(Some(Crls::Inline(lists.into()))),
                Err(error) => d.refused(error.to_string()),
            }),
        }),
    };
    let spki_hashes = d.all("verify_certificate_spki", verify_certificate_spki, |d, text| {
        // Base64, which PEM is as well.
        let pem = format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
        let bytes = rustls::pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).ok();
        match bytes.and_then(|bytes| <[u8; 32]>::try_from(&bytes[..]).ok()) {
            Some(hash) => Some(hash),
            None => d.refused("is not a SHA-256 in base64"),
        }
    });
    let certificate_hashes =
        d.all("verify_certificate_hash", verify_certificate_hash, |d, text| match sha256(&text) {
            Some(hash) => Some(hash),
            None => d.refused("is not a SHA-256 in hexadecimal"),
        });
    let typed = d.all("match_typed_subject_alt_names", match_typed_subject_alt_names, san);
    let any = d.all("match_subject_alt_names", match_subject_alt_names, |d, matcher| {
        let matcher = matchers::string(d, matcher)?;
        Some(SanMatcher { kind: SanType::Any, matcher })
    });
    let trust_domains = match custom_validator_config {
        None => Some(BTreeMap::new()),
        Some(config) => d.field("custom_validator_config", |d| spiffe_validator(d, config)),
    };
    if trust_domains.as_ref().is_some_and(|domains| !domains.is_empty())
        && roots.as_ref().is_some_and(Option::is_some)
    {
        d.refuse_field("trusted_ca", "is of no effect beside custom_validator_config");
    }
    let typed = typed?;
    Some(ValidationContext {
        roots: roots?,
        trust_domains: trust_domains?,
        crls: crls?,
        only_leaf_crl: only_verify_leaf_cert_crl,
        certificate_hashes: certificate_hashes?,
        spki_hashes: spki_hashes?,
        // As Envoy: the typed ones hide the deprecated ones.
        sans: if typed.is_empty() { any? } else { typed },
        accept_untrusted: accept_untrusted?,
    })
}

fn spiffe_validator(
    d: &mut Decoder,
    value: TypedExtensionConfig,
) -> Option<BTreeMap<TrustDomain, Roots>> {
    let TypedExtensionConfig { name, typed_config } = value;
    let any = typed_config.unwrap_or_default();
    if !common::is::<SpiffeCertValidatorConfig>(&any) {
        common::refuse_extension(d, &name, &common::type_name(&any));
        return None;
    }
    d.field("typed_config", |d| {
        let SpiffeCertValidatorConfig { trust_domains, trust_bundles } = common::unpack(d, &any)?;
        unsupported!(d; trust_bundles);
        let domains = d.all("trust_domains", trust_domains, |d, value| {
            let PbTrustDomain { name, trust_bundle, workload_trust_domain } = value;
            unsupported!(d; workload_trust_domain);
            // SPIRE writes `spiffe://example.org`.
            let bare = name.strip_prefix("spiffe://").unwrap_or(&name);
            let domain = d.field("name", |d| match bare.parse::<TrustDomain>() {
                Ok(domain) => Some(domain),
                Err(error) => d.refused(format!("`{name}` is not a trust domain: {error}")),
            });
            let roots = roots(d, "trust_bundle", trust_bundle);
            Some((domain?, roots?))
        })?;
        let count = domains.len();
        let domains: BTreeMap<_, _> = domains.into_iter().collect();
        if domains.is_empty() || domains.len() < count {
            let why = if count == 0 { "is empty" } else { "names a trust domain twice" };
            return d.field("trust_domains", |d| d.refused(why));
        }
        Some(domains)
    })
}

fn san(d: &mut Decoder, value: SubjectAltNameMatcher) -> Option<SanMatcher> {
    let SubjectAltNameMatcher { san_type, matcher, oid } = value;
    let kind = d.field("san_type", |d| match PbSanType::try_from(san_type) {
        Ok(PbSanType::Email) => Some(SanType::Email),
        Ok(PbSanType::Dns) => Some(SanType::Dns),
        Ok(PbSanType::Uri) => Some(SanType::Uri),
        Ok(PbSanType::IpAddress) => Some(SanType::IpAddress),
        Ok(PbSanType::OtherName) => Some(SanType::OtherName(oid.as_str().into())),
        Ok(PbSanType::Unspecified) => d.refused("is missing"),
        Err(_) => d.refused(format!("{san_type} is unknown")),
    });
    if matches!(&kind, Some(SanType::OtherName(oid)) if oid.is_empty()) {
        d.refuse_field("oid", "is missing");
    }
    let matcher = d.field("matcher", |d| match matcher {
        Some(matcher) => matchers::string(d, matcher),
        None => d.refused("is missing"),
    });
    let (kind, matcher) = (kind?, matcher?);
    if let (SanType::IpAddress, StringPattern::Exact(address)) = (&kind, &matcher.pattern)
        && address.parse::<std::net::IpAddr>().is_err()
    {
        return d.field("matcher", |d| d.refused(format!("`{address}` is not an IP address")));
    }
    Some(SanMatcher { kind, matcher })
}

fn roots(d: &mut Decoder, field: &str, value: Option<DataSource>) -> Option<Roots> {
    match located(d, field, value)? {
        Place::File(path) => Some(Roots::File(path)),
        Place::Inline(pem) => d.field(field, |d| match anchors_from_pem(&pem) {
            Ok(anchors) => Some(Roots::Inline(anchors.into())),
            Err(error) => d.refused(error.to_string()),
        }),
    }
}

fn located(d: &mut Decoder, field: &str, value: Option<DataSource>) -> Option<Place> {
    let pem = tls_context::pem(d, field, value)?;
    place(d, field, pem)
}

/// What a control plane may name: the agent's environment is none of its business, and it
/// does not know where the agent was started.
fn place(d: &mut Decoder, field: &str, pem: Pem) -> Option<Place> {
    d.field(field, |d| match pem {
        Pem::Inline(bytes) => Some(Place::Inline(bytes)),
        Pem::File(path) if path.is_absolute() => Some(Place::File(path)),
        Pem::File(_) => d.field("filename", |d| d.refused("is not an absolute path")),
        Pem::Environment(_) => d.not_supported("environment_variable"),
    })
}

/// With or without colons.
fn sha256(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u32> =
        text.chars().filter(|c| *c != ':').map(|c| c.to_digit(16)).collect::<Option<_>>()?;
    let byte = |pair: &[u32]| u8::try_from(pair.first()? * 16 + pair.get(1)?).ok();
    digits.chunks(2).map(byte).collect::<Option<Vec<_>>>()?.try_into().ok()
}
