//! Paths that policy and application might read differently.
//!
//! Envoy matches the path as sent unless told to normalize it, so that a `DENY` of
//! `/admin` is walked around with `/./admin`, `//admin`, `/%61dmin` or `\admin`,
//! which many servers read as `/admin`. Normalizing would hand the application a
//! path it was not sent. So where a rule that can deny looks at the path, a path
//! with more than one spelling is refused (400) instead.
//!
//! Not covered, because servers treat them as part of the name: `;parameters`
//! after a segment other than `.` and `..`, double encoding (`%252e`), letter case.

use http::{Method, request::Parts};

use crate::model::{
    authz::{Permission, Principal, Rbac, RbacAction},
    route::HeaderMatcher,
};

/// Whether a rule of a filter that can deny looks at the path.
pub(super) fn is_judged_by(rbac: &Rbac) -> bool {
    rbac.action != RbacAction::Log
        && rbac.policies.iter().any(|policy| {
            policy.permissions.iter().any(permission_reads_path)
                || policy.principals.iter().any(principal_reads_path)
        })
}

fn permission_reads_path(permission: &Permission) -> bool {
    match permission {
        Permission::And(all) | Permission::Or(all) => all.iter().any(permission_reads_path),
        Permission::Not(inner) => permission_reads_path(inner),
        Permission::Header(HeaderMatcher { name, .. }) => name == ":path",
        Permission::UrlPath(_) => true,
        Permission::Any
        | Permission::DestinationIp(_)
        | Permission::DestinationPort(_)
        | Permission::DestinationPortRange { .. } => false,
    }
}

fn principal_reads_path(principal: &Principal) -> bool {
    match principal {
        Principal::And(all) | Principal::Or(all) => all.iter().any(principal_reads_path),
        Principal::Not(inner) => principal_reads_path(inner),
        Principal::Header(HeaderMatcher { name, .. }) => name == ":path",
        Principal::UrlPath(_) => true,
        Principal::Any
        | Principal::Authenticated(_)
        | Principal::DirectRemoteIp(_)
        | Principal::RemoteIp(_) => false,
    }
}

/// Whether a request's path has one spelling only: what policy matches is what
/// every server reads.
pub(super) fn is_plain(head: &Parts) -> bool {
    let path = head.uri.path_and_query().map_or("", |path| path.as_str());
    match path.split(['?', '#']).next().unwrap_or("") {
        // RFC 9110 §9.3.7: the server as a whole.
        "*" => head.method == Method::OPTIONS,
        path => path.starts_with('/') && path_is_plain(path),
    }
}

/// Refuses `.` and `..` segments (with `;parameters` too), empty segments but the
/// last, `\`, broken escapes, and escapes of `/`, `\`, controls, of characters
/// that need none (RFC 3986 §2.3, thus `%2e` and `%61`), and of overlong UTF-8.
fn path_is_plain(path: &str) -> bool {
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let name = segment.split(';').next().unwrap_or("");
        if name == "." || name == ".." || (segment.is_empty() && segments.peek().is_some()) {
            return false;
        }
    }
    let mut bytes = path.bytes();
    // The escape just before this byte, for two-byte checks.
    let mut previous = None;
    while let Some(byte) = bytes.next() {
        let escape = match byte {
            b'%' => match (bytes.next().and_then(nibble), bytes.next().and_then(nibble)) {
                (Some(high), Some(low)) => Some(high << 4 | low),
                _ => return false,
            },
            b'\\' | 0..=b' ' | 0x7f => return false,
            _ => None,
        };
        if let Some(escape) = escape
            && (is_deceptive(escape) || is_overlong(previous, escape))
        {
            return false;
        }
        previous = escape;
    }
    true
}

fn nibble(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|n| u8::try_from(n).ok())
}

fn is_deceptive(escape: u8) -> bool {
    escape.is_ascii_alphanumeric() || b"-._~/\\".contains(&escape) || escape.is_ascii_control()
}

/// Spec: RFC 3629 §10: `C0 AE` for `.` and the like.
fn is_overlong(previous: Option<u8>, escape: u8) -> bool {
    matches!(
        (previous, escape),
        (_, 0xc0 | 0xc1) | (Some(0xe0), 0x80..=0x9f) | (Some(0xf0), 0x80..=0x8f)
    )
}
