//! What is told of a certificate, and of the TLS it came by, in OpenSSL's words.
//!
//! Spec: RFC 2253 §2; Envoy's "Access logging", `%DOWNSTREAM_PEER_*%`.

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime},
};

use aws_lc_rs::digest;
use rustls::{CipherSuite, NamedGroup, ProtocolVersion};
use x509_parser::{
    asn1_rs::ToDer as _,
    certificate::X509Certificate,
    extensions::GeneralName,
    prelude::FromDer as _,
    time::ASN1Time,
    x509::{AttributeTypeAndValue, X509Name},
};

use super::upstream::names;
use crate::model::captured::{PresentedCertificate, PresentedDer, SubjectAltNames};

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

/// `None`: it is none that can be read.
pub(super) fn presented(der: &[u8]) -> Option<PresentedCertificate> {
    let (_, of) = X509Certificate::from_der(der).ok()?;
    let fingerprint = |by| hex(digest::digest(by, der).as_ref()).into();
    Some(PresentedCertificate {
        der: PresentedDer::new(der),
        subject: name(of.subject()).into(),
        issuer: name(of.issuer()).into(),
        sans: sans(&of),
        serial: serial(of.raw_serial()).into(),
        fingerprint_1: fingerprint(&digest::SHA1_FOR_LEGACY_USE_ONLY),
        fingerprint_256: fingerprint(&digest::SHA256),
        not_before: at(of.validity().not_before),
        not_after: at(of.validity().not_after),
    })
}

fn sans(of: &X509Certificate<'_>) -> SubjectAltNames {
    let names = names::of(of);
    let all = |pick: fn(&GeneralName<'_>) -> Option<String>| {
        names.iter().filter_map(pick).map(String::into_boxed_str).collect()
    };
    SubjectAltNames {
        uris: all(|name| match name {
            GeneralName::URI(uri) => Some(graphic(uri)),
            _ => None,
        }),
        hosts: all(|name| match name {
            GeneralName::DNSName(host) => Some(graphic(host)),
            _ => None,
        }),
        addresses: all(|name| match name {
            GeneralName::IPAddress(bytes) => names::ip(bytes).map(|ip| ip.to_string()),
            _ => None,
        }),
        emails: all(|name| match name {
            GeneralName::RFC822Name(mail) => Some(graphic(mail)),
            _ => None,
        }),
        others: all(|name| match name {
            GeneralName::OtherName(_, value) => names::other(value).map(|value| graphic(&value)),
            _ => None,
        }),
    }
}

fn at(time: ASN1Time) -> SystemTime {
    let seconds = Duration::from_secs(time.timestamp().unsigned_abs());
    let moment = match time.timestamp() {
        ..0 => SystemTime::UNIX_EPOCH.checked_sub(seconds),
        _ => SystemTime::UNIX_EPOCH.checked_add(seconds),
    };
    moment.unwrap_or(SystemTime::UNIX_EPOCH)
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
pub(super) fn group(group: Option<NamedGroup>) -> &'static str {
    match group {
        Some(NamedGroup::X25519MLKEM768) => "X25519MLKEM768",
        Some(NamedGroup::X25519) => "X25519",
        Some(NamedGroup::secp256r1) => "P-256",
        Some(NamedGroup::secp384r1) => "P-384",
        Some(NamedGroup::secp521r1) => "P-521",
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
    use super::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType, SerialNumber};

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
            SanType::IpAddress([192, 0, 2, 1].into()),
            SanType::Rfc822Name("a@b.c".try_into().unwrap()),
            SanType::IpAddress("2001:db8::1".parse().unwrap()),
        ];
        params.not_before = rcgen::date_time_ymd(2026, 1, 2);
        params.not_after = rcgen::date_time_ymd(2027, 1, 2);
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
        let told = presented(signed.der()).unwrap();
        let subject = "serialNumber=77,emailAddress=a@b.c,CN=client \\C3\\BC,OU=\\ a\\+b\\ ,\
                       O=Acme\\, Inc. \\<\\\"x\\\"\\>\\;#,C=DE";
        assert_eq!((&*told.subject, &*told.issuer), (subject, subject));
        let names = |of: &[Box<str>]| of.join(",");
        assert_eq!(names(&told.sans.uris), "spiffe://cluster.local/ns/a/sa/b,urn:two");
        assert_eq!(names(&told.sans.hosts), "client.example");
        assert_eq!(names(&told.sans.addresses), "192.0.2.1,2001:db8::1");
        assert_eq!((names(&told.sans.emails).as_str(), &*told.serial), ("a@b.c", "75fd38"));
        assert_eq!((told.fingerprint_1.len(), told.fingerprint_256.len()), (40, 64));
        let year = told.not_after.duration_since(told.not_before).unwrap();
        assert_eq!(year, Duration::from_secs(365 * 24 * 3600));
        let pem = told.der.encoded();
        assert!(pem.starts_with("-----BEGIN%20CERTIFICATE-----%0AMII"), "{pem}");
        assert!(pem.ends_with("%0A-----END%20CERTIFICATE-----%0A"), "{pem}");
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
