//! What is told of a client's certificate, and of the TLS it came by, in OpenSSL's words.
//!
//! Spec: RFC 2253 §2; Envoy's "Access logging", `%DOWNSTREAM_PEER_*%`.

use std::fmt::Write as _;

use aws_lc_rs::digest;
use rustls::{CipherSuite, ProtocolVersion, pki_types::CertificateDer};
use x509_parser::{
    asn1_rs::ToDer as _,
    certificate::X509Certificate,
    extensions::GeneralName,
    x509::{AttributeTypeAndValue, X509Name},
};

use super::upstream::names;
use crate::model::captured::{ClientCertificate, PresentedChain};

/// The attributes that have a name.
const ATTRIBUTES: [(&str, &str); 20] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "SN"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "street"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.12", "title"),
    ("2.5.4.13", "description"),
    ("2.5.4.17", "postalCode"),
    ("2.5.4.41", "name"),
    ("2.5.4.42", "GN"),
    ("2.5.4.43", "initials"),
    ("2.5.4.44", "generationQualifier"),
    ("2.5.4.46", "dnQualifier"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
];

pub(super) fn certificate(
    leaf: &CertificateDer<'_>,
    of: &X509Certificate<'_>,
    chain: &[CertificateDer<'_>],
) -> ClientCertificate {
    let names = names::of(of);
    ClientCertificate {
        subject: name(of.subject()).into(),
        issuer: name(of.issuer()).into(),
        uris: uris(of).collect(),
        hosts: names
            .iter()
            .filter_map(|name| match name {
                GeneralName::DNSName(host) => Some(graphic(host).into()),
                _ => None,
            })
            .collect(),
        serial: serial(of.raw_serial()).into(),
        fingerprint_256: hex(digest::digest(&digest::SHA256, leaf).as_ref()).into(),
        chain: PresentedChain::new(chain.iter().map(|one| one.as_ref().into())),
    }
}

pub(super) fn uris<'a>(of: &'a X509Certificate<'_>) -> impl Iterator<Item = Box<str>> + 'a {
    names::of(of).iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(graphic(uri).into()),
        _ => None,
    })
}

/// A log's line and a header's value stay what they are.
fn graphic(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_graphic() { c } else { '_' }).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        // Writing to a string can't fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

fn serial(bytes: &[u8]) -> String {
    let significant = bytes.iter().position(|byte| *byte != 0);
    significant.map_or_else(|| "0".to_owned(), |first| hex(&bytes[first..]))
}

/// The last of its parts first.
pub(super) fn name(name: &X509Name<'_>) -> String {
    let parts: Vec<_> = name.iter_rdn().collect();
    let parts = parts.into_iter().rev().map(|part| {
        let mut values: Vec<String> = part.iter().map(attribute).collect();
        values.reverse();
        values.join("+")
    });
    parts.collect::<Vec<_>>().join(",")
}

fn attribute(of: &AttributeTypeAndValue<'_>) -> String {
    let oid = of.attr_type().to_id_string();
    let known = ATTRIBUTES.iter().find(|(known, _)| *known == oid).map(|(_, name)| *name);
    match (known, of.as_str()) {
        (Some(known), Ok(text)) => format!("{known}={}", escaped(text)),
        (known, _) => {
            let value = of.attr_value().to_der_vec().unwrap_or_default();
            format!("{}=#{}", known.unwrap_or(&oid), hex(&value).to_ascii_uppercase())
        }
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::new();
    let last = text.len().saturating_sub(1);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => {
                out.push('\\');
                out.push(char::from(byte));
            }
            b' ' if at == 0 || at == last => out.push_str("\\ "),
            b'#' if at == 0 => out.push_str("\\#"),
            b' '..=b'~' => out.push(char::from(byte)),
            // Writing to a string can't fail.
            byte => _ = write!(out, "\\{byte:02X}"),
        }
    }
    out
}

/// Empty where it has no name.
pub(super) fn version(version: Option<ProtocolVersion>) -> &'static str {
    match version {
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
        _ => "",
    }
}

/// Empty where it has no name.
pub(super) fn cipher(suite: Option<CipherSuite>) -> &'static str {
    use CipherSuite as C;
    match suite {
        Some(C::TLS13_AES_128_GCM_SHA256) => "TLS_AES_128_GCM_SHA256",
        Some(C::TLS13_AES_256_GCM_SHA384) => "TLS_AES_256_GCM_SHA384",
        Some(C::TLS13_CHACHA20_POLY1305_SHA256) => "TLS_CHACHA20_POLY1305_SHA256",
        Some(C::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256) => "ECDHE-ECDSA-AES128-GCM-SHA256",
        Some(C::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384) => "ECDHE-ECDSA-AES256-GCM-SHA384",
        Some(C::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256) => "ECDHE-ECDSA-CHACHA20-POLY1305",
        Some(C::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256) => "ECDHE-RSA-AES128-GCM-SHA256",
        Some(C::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384) => "ECDHE-RSA-AES256-GCM-SHA384",
        Some(C::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256) => "ECDHE-RSA-CHACHA20-POLY1305",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType, SerialNumber};
    use x509_parser::prelude::FromDer as _;

    use super::*;

    /// As Envoy 1.40 writes the same.
    #[test]
    fn a_certificate_is_told_as_by_envoy() {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        let uri = |uri: &str| SanType::URI(uri.try_into().unwrap());
        params.subject_alt_names = vec![
            uri("spiffe://cluster.local/ns/a/sa/b"),
            uri("urn:two"),
            SanType::DnsName("client.example".try_into().unwrap()),
        ];
        params.serial_number = Some(SerialNumber::from(vec![0x75, 0xfd, 0x38]));
        for (kind, value) in [
            (DnType::CountryName, "DE"),
            (DnType::OrganizationName, "Acme, Inc. <\"x\">;#"),
            (DnType::OrganizationalUnitName, " a+b "),
            (DnType::CommonName, "client \u{fc}"),
            (DnType::CustomDnType(vec![1, 2, 840, 113549, 1, 9, 1]), "a@b.c"),
            (DnType::CustomDnType(vec![2, 5, 4, 5]), "77"),
        ] {
            params.distinguished_name.push(kind, value);
        }
        let signed = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let (_, parsed) = X509Certificate::from_der(signed.der()).unwrap();
        let told = certificate(signed.der(), &parsed, &[]);
        let subject = "serialNumber=77,emailAddress=a@b.c,CN=client \\C3\\BC,OU=\\ a\\+b\\ ,\
                       O=Acme\\, Inc. \\<\\\"x\\\"\\>\\;#,C=DE";
        assert_eq!((&*told.subject, &*told.issuer), (subject, subject));
        assert_eq!(*told.uris, ["spiffe://cluster.local/ns/a/sa/b".into(), "urn:two".into()]);
        assert_eq!((&*told.hosts, &*told.serial), (&["client.example".into()][..], "75fd38"));
        assert_eq!(told.fingerprint_256.len(), 64);
    }

    #[test]
    fn what_has_no_name_is_told_by_its_number() {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CustomDnType(vec![1, 2, 3]), "x");
        let signed = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let (_, parsed) = X509Certificate::from_der(signed.der()).unwrap();
        assert!(name(parsed.subject()).starts_with("1.2.3=#0C0178"), "{}", parsed.subject());
        assert_eq!(escaped("#a#"), "\\#a#");
        assert_eq!(escaped(" "), "\\ ");
        assert_eq!((serial(&[0, 0x80]), serial(&[0])), ("80".to_owned(), "0".to_owned()));
        assert_eq!(graphic("a\nb c"), "a_b_c");
    }
}
