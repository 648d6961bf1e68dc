//! Subject alternative names, and which matcher takes which.
//!
//! Spec: `SubjectAltNameMatcher` in `envoy/extensions/transport_sockets/tls/v3/common.proto`.

use std::net::IpAddr;

use x509_parser::{
    asn1_rs::{Any, FromDer, Tag},
    certificate::X509Certificate,
    extensions::GeneralName,
};

use crate::model::{
    authz::StringPattern,
    tls::{SanMatcher, SanType},
};

/// The names of a certificate; none where they can't be read.
pub(in crate::identity) fn of<'a, 'b>(
    certificate: &'b X509Certificate<'a>,
) -> &'b [GeneralName<'a>] {
    match certificate.subject_alternative_name() {
        Ok(Some(names)) => &names.value.general_names,
        Ok(None) | Err(_) => &[],
    }
}

/// Whether a matcher takes a name.
pub(super) fn matches(matcher: &SanMatcher, name: &GeneralName<'_>) -> bool {
    let text = |text: &str| matcher.matcher.matches(text.as_bytes());
    match (&matcher.kind, name) {
        (SanType::Email | SanType::Any, GeneralName::RFC822Name(mail)) => text(mail),
        (SanType::Uri | SanType::Any, GeneralName::URI(uri)) => text(uri),
        (SanType::Dns | SanType::Any, GeneralName::DNSName(presented)) => {
            match &matcher.matcher.pattern {
                StringPattern::Exact(wanted) => dns(presented, wanted),
                _ => text(presented),
            }
        }
        (SanType::IpAddress | SanType::Any, GeneralName::IPAddress(bytes)) => match ip(bytes) {
            // Two spellings of an address are one address.
            Some(presented) => match &matcher.matcher.pattern {
                StringPattern::Exact(wanted) => wanted.parse() == Ok(presented),
                _ => text(&presented.to_string()),
            },
            None => false,
        },
        (SanType::OtherName(wanted), GeneralName::OtherName(oid, value)) => {
            oid.to_id_string() == **wanted && other(value).is_some_and(|value| text(&value))
        }
        _ => false,
    }
}

/// Whether one of the names is for `host`, a DNS name or an address.
pub(super) fn is_for(names: &[GeneralName<'_>], host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    names.iter().any(|name| match (name, &address) {
        (GeneralName::IPAddress(bytes), Ok(address)) => ip(bytes) == Some(*address),
        (GeneralName::DNSName(presented), Err(_)) => dns(presented, host),
        _ => false,
    })
}

/// Spec: RFC 6125 §6.4.3; a wildcard stands for one whole label, the first.
fn dns(presented: &str, wanted: &str) -> bool {
    if presented.eq_ignore_ascii_case(wanted) {
        return true;
    }
    match (presented.strip_prefix("*."), wanted.split_once('.')) {
        (Some(suffix), Some((label, rest))) => {
            !label.is_empty() && suffix.contains('.') && suffix.eq_ignore_ascii_case(rest)
        }
        _ => false,
    }
}

pub(in crate::identity) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(v4.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

/// The value of an `otherName` as text: `[0] EXPLICIT ANY`.
pub(in crate::identity) fn other(explicit: &[u8]) -> Option<String> {
    let (_, outer) = Any::from_der(explicit).ok()?;
    let (_, value) = Any::from_der(outer.data).ok()?;
    match value.tag() {
        Tag::Boolean => value.bool().ok().map(|value| value.to_string()),
        Tag::Integer | Tag::Enumerated => {
            value.integer().ok()?.as_i64().ok().map(|value| value.to_string())
        }
        Tag::Null => Some(String::new()),
        Tag::Oid => value.oid().ok().map(|oid| oid.to_id_string()),
        _ => String::from_utf8(value.data.to_vec()).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::authz::StringMatcher;

    fn exact(kind: SanType, text: &str) -> SanMatcher {
        let pattern = StringPattern::Exact(text.to_owned());
        SanMatcher { kind, matcher: StringMatcher { pattern, ignore_case: false } }
    }

    #[test]
    fn a_wildcard_stands_for_one_label() {
        for (presented, wanted, expected) in [
            ("web.example.com", "WEB.example.com", true),
            ("*.example.com", "web.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", "a.b.example.com", false),
            ("*.example.com", ".example.com", false),
            ("*.com", "example.com", false),
            ("w*.example.com", "web.example.com", false),
            ("web.example.com", "*.example.com", false),
        ] {
            assert_eq!(dns(presented, wanted), expected, "{presented} for {wanted}");
        }
    }

    #[test]
    fn a_matcher_takes_names_of_its_own_kind_only() {
        let address = [10, 0, 0, 1];
        let names = [
            GeneralName::RFC822Name("a@example.com"),
            GeneralName::DNSName("a.example.com"),
            GeneralName::URI("spiffe://a/b"),
            GeneralName::IPAddress(&address),
        ];
        let check = |kind: SanType, text: &str, expected: bool| {
            let matcher = exact(kind.clone(), text);
            let found = names.iter().any(|name| matches(&matcher, name));
            assert_eq!(found, expected, "{kind:?} {text}");
        };
        check(SanType::Email, "a@example.com", true);
        check(SanType::Dns, "a@example.com", false);
        check(SanType::Dns, "a.example.com", true);
        check(SanType::Uri, "a.example.com", false);
        check(SanType::Uri, "spiffe://a/b", true);
        check(SanType::IpAddress, "10.0.0.1", true);
        check(SanType::IpAddress, "10.0.0.2", false);
        check(SanType::Any, "spiffe://a/b", true);
        check(SanType::OtherName("1.2.3".into()), "a.example.com", false);
        assert!(is_for(&names, "a.example.com") && is_for(&names, "10.0.0.1"));
        assert!(!is_for(&names, "b.example.com") && !is_for(&names, "spiffe://a/b"));
    }

    #[test]
    fn other_names_are_read_by_their_type() {
        assert_eq!(other(&[0xa0, 3, 0x0c, 1, b'x']).as_deref(), Some("x"));
        assert_eq!(other(&[0xa0, 3, 0x01, 1, 0xff]).as_deref(), Some("true"));
        assert_eq!(other(&[0xa0, 3, 0x02, 1, 42]).as_deref(), Some("42"));
        assert_eq!(other(&[0xa0, 2, 0x05, 0]).as_deref(), Some(""));
        assert_eq!(other(&[0xa0, 9, 1]), None);
        assert_eq!(other(&[]), None);
    }
}
