//! Envoy's TLS messages, taken apart once for all that speak TLS: clusters, listeners,
//! secrets and management servers. What none of them honours is refused here by its path,
//! the rest by whoever can't honour it.
//!
//! Spec: `envoy/extensions/transport_sockets/tls/v3/{tls,common}.proto`.

use std::path::PathBuf;

use envoy_types::pb::envoy::{
    config::core::v3::{
        DataSource, TransportSocket, TypedExtensionConfig, WatchedDirectory,
        data_source::Specifier, transport_socket::ConfigType,
    },
    extensions::transport_sockets::{
        raw_buffer::v3::RawBuffer,
        tls::v3::{
            CertificateValidationContext, CommonTlsContext, SdsSecretConfig, SubjectAltNameMatcher,
            TlsCertificate, TlsParameters, common_tls_context::ValidationContextType,
            tls_parameters::TlsProtocol,
        },
    },
    r#type::matcher::v3::StringMatcher,
};
use prost::{Message, Name};
use rustls::{CipherSuite, NamedGroup};
use zeroize::Zeroizing;

use super::{
    common,
    reject::{Decoder, unsupported},
    tls::Pem,
};
use crate::model::tls::{MATERIAL_MAX_BYTES, TlsVersion};

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

/// A `transport_socket` whose TLS is said by a `M`: `None` where it is refused,
/// `Some(None)` in the clear.
pub(super) fn transport_socket<M: Message + Default + Name, T>(
    d: &mut Decoder,
    value: TransportSocket,
    decode: impl FnOnce(&mut Decoder, M) -> Option<T>,
) -> Option<Option<T>> {
    let TransportSocket { name, config_type } = value;
    let any = match config_type {
        Some(ConfigType::TypedConfig(any)) => any,
        None if name == "envoy.transport_sockets.raw_buffer" => return Some(None),
        None => return d.refused(format!("{name} has no typed_config")),
    };
    if common::is::<RawBuffer>(&any) {
        return Some(None);
    }
    if !common::is::<M>(&any) {
        common::refuse_extension(d, &name, &common::type_name(&any));
        return None;
    }
    d.field("typed_config", |d| common::unpack(d, &any).and_then(|context| decode(d, context)))
        .map(Some)
}

/// What is left of a [`CommonTlsContext`].
pub(super) struct Common {
    /// `None`: it was refused.
    pub(super) parameters: Option<Parameters>,
    pub(super) certificates: Vec<TlsCertificate>,
    pub(super) secrets: Vec<SdsSecretConfig>,
    pub(super) alpn_protocols: Vec<String>,
    pub(super) validation: Option<ValidationContextType>,
}

#[expect(deprecated, reason = "a deprecated field that is set is refused too")]
pub(super) fn common(d: &mut Decoder, value: CommonTlsContext) -> Common {
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
        tls_certificate_provider_instance, custom_tls_certificate_selector,
        tls_certificate_certificate_provider, tls_certificate_certificate_provider_instance,
        custom_handshaker, key_log,
    );
    Common {
        parameters: d.field("tls_params", |d| parameters(d, tls_params.unwrap_or_default())),
        certificates: tls_certificates,
        secrets: tls_certificate_sds_secret_configs,
        alpn_protocols,
        validation: validation_context_type,
    }
}

pub(super) struct Parameters {
    pub(super) min_version: TlsVersion,
    pub(super) max_version: TlsVersion,
    pub(super) cipher_suites: Vec<CipherSuite>,
    pub(super) curves: Vec<NamedGroup>,
}

fn parameters(d: &mut Decoder, value: TlsParameters) -> Option<Parameters> {
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

/// Where a certificate's chain and its key are.
pub(super) fn certificate(d: &mut Decoder, value: TlsCertificate) -> Option<(Pem, Pem)> {
    let TlsCertificate {
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
        pkcs12, private_key_provider, password, ocsp_staple, signed_certificate_timestamp,
        tls_params,
    );
    watched(watched_directory);
    let chain = pem(d, "certificate_chain", certificate_chain);
    let key = pem(d, "private_key", private_key);
    Some((chain?, key?))
}

/// What is left of a [`CertificateValidationContext`].
pub(super) struct Validation {
    pub(super) trusted_ca: Option<DataSource>,
    pub(super) verify_certificate_spki: Vec<String>,
    pub(super) verify_certificate_hash: Vec<String>,
    pub(super) match_typed_subject_alt_names: Vec<SubjectAltNameMatcher>,
    pub(super) match_subject_alt_names: Vec<StringMatcher>,
    pub(super) crl: Option<DataSource>,
    pub(super) trust_chain_verification: i32,
    pub(super) custom_validator_config: Option<TypedExtensionConfig>,
    pub(super) only_verify_leaf_cert_crl: bool,
}

#[expect(deprecated, reason = "the deprecated list of names is honoured by some, as Envoy does")]
pub(super) fn validation(d: &mut Decoder, value: CertificateValidationContext) -> Validation {
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
        // Clients are sent no list of authorities.
        suppress_client_ca_list: _,
    } = value;
    unsupported!(
        d;
        ca_certificate_provider_instance, system_root_certs,
        require_signed_certificate_timestamp, allow_expired_certificate, max_verify_depth,
    );
    watched(watched_directory);
    Validation {
        trusted_ca,
        verify_certificate_spki,
        verify_certificate_hash,
        match_typed_subject_alt_names,
        match_subject_alt_names,
        crl,
        trust_chain_verification,
        custom_validator_config,
        only_verify_leaf_cert_crl,
    }
}

/// Where something in PEM is.
pub(super) fn pem(d: &mut Decoder, field: &str, value: Option<DataSource>) -> Option<Pem> {
    d.field(field, |d| {
        let Some(DataSource { watched_directory, specifier }) = value else {
            return d.refused("is missing");
        };
        watched(watched_directory);
        let bytes = match specifier {
            Some(Specifier::Filename(path)) => return Some(Pem::File(PathBuf::from(path))),
            Some(Specifier::EnvironmentVariable(name)) => return Some(Pem::Environment(name)),
            Some(Specifier::InlineBytes(bytes)) => bytes,
            Some(Specifier::InlineString(text)) => text.into_bytes(),
            None => return d.refused("is empty"),
        };
        if bytes.len() > MATERIAL_MAX_BYTES {
            return d.refused(format!("is larger than {MATERIAL_MAX_BYTES} bytes"));
        }
        Some(Pem::Inline(Zeroizing::new(bytes)))
    })
}

/// A directory to watch says nothing that is not done anyway: files are looked at again
/// whenever they have changed, or are needed.
fn watched(_: Option<WatchedDirectory>) {}
