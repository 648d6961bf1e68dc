//! Paths that policy and application might read differently.
//!
//! Envoy matches the path as sent unless told to normalize it, so that a `DENY` of
//! `/admin` is walked around with `/./admin`, `//admin`, `/%61dmin` or `\admin`,
//! which many servers read as `/admin`. Normalizing would hand the application a
//! path it was not sent. So where a rule that can deny looks at the path:
//!
//! - a path that leads somewhere else than it says is refused (400): dot segments,
//!   empty segments, `\`, and escapes of what needs none or separates segments;
//! - one with other escapes (`%3A` for `:`) or with `;parameters` is read in two
//!   ways, as sent and as a lenient server would, and a rule on which the two differ
//!   is unknown: it fulfils no `ALLOW` and is no way around a `DENY`. A pattern that
//!   holds `%` or `;` itself is about the path as sent.
//!
//! Not covered: double encoding (`%252e`), letter case, and the case of hex digits
//! in patterns that hold escapes.

use http::{Method, request::Parts};

use super::matcher::url_path;
use crate::model::{
    authz::{Permission, Principal, Rbac, RbacAction, StringMatcher, StringPattern},
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
        Permission::Metadata(_)
        | Permission::Any
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
        Principal::Metadata(_)
        | Principal::Any
        | Principal::Authenticated(_)
        | Principal::DirectRemoteIp(_)
        | Principal::RemoteIp(_) => false,
    }
}

/// Whether a request's path has one spelling only: what policy matches is what
/// every server reads.
pub(super) fn is_plain(head: &Parts) -> bool {
    match url_path(head) {
        // RFC 9110 §9.3.7: the server as a whole.
        "*" => head.method == Method::OPTIONS,
        // §9.3.6: there is none.
        "" => head.method == Method::CONNECT,
        path => path.starts_with('/') && path_is_plain(path),
    }
}

/// A path as a lenient server reads it: without `;parameters`, escapes decoded.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LenientPath {
    /// Path and query.
    pub whole: Vec<u8>,
    path_bytes: usize,
}

impl LenientPath {
    /// `None` where it is the path as sent. Expects a path that [`is_plain`].
    pub(super) fn of(head: &Parts) -> Option<Self> {
        let sent = head.uri.path_and_query().map_or("", |path| path.as_str());
        let path = url_path(head);
        if !path.contains(['%', ';']) {
            return None;
        }
        let mut whole = Vec::with_capacity(sent.len());
        for segment in path.split_inclusive('/') {
            let name = segment.split([';', '/']).next().unwrap_or("");
            let mut bytes = name.bytes();
            while let Some(byte) = bytes.next() {
                whole.push(if byte == b'%' { escape(&mut bytes)? } else { byte });
            }
            if segment.ends_with('/') {
                whole.push(b'/');
            }
        }
        let path_bytes = whole.len();
        whole.extend_from_slice(&sent.as_bytes()[path.len()..]);
        Some(Self { whole, path_bytes })
    }

    /// The path without its query.
    pub(super) fn path(&self) -> &[u8] {
        &self.whole[..self.path_bytes]
    }

    /// Whether a pattern is about paths as sent, and must not be compared with this.
    pub(super) fn is_foreign_to(matcher: &StringMatcher) -> bool {
        let pattern = match &matcher.pattern {
            StringPattern::Exact(s)
            | StringPattern::Prefix(s)
            | StringPattern::Suffix(s)
            | StringPattern::Contains(s) => s,
            StringPattern::Regex(regex) => regex.as_str(),
        };
        pattern.contains(['%', ';'])
    }
}

/// Refuses `.` and `..` segments (with `;parameters` too), empty segments but the
/// last, `\`, what RFC 3986 wants escaped, broken escapes, and escapes of `/`, `\`, controls, of characters
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
        let escaped = match byte {
            b'%' => match escape(&mut bytes) {
                Some(byte) => Some(byte),
                None => return false,
            },
            b'\\' | 0..=b' ' | 0x7f.. => return false,
            _ => None,
        };
        if let Some(byte) = escaped
            && (is_deceptive(byte) || is_overlong(previous, byte))
        {
            return false;
        }
        previous = escaped;
    }
    true
}

/// The byte that two hex digits stand for.
fn escape(digits: &mut impl Iterator<Item = u8>) -> Option<u8> {
    let (high, low) = (nibble(digits.next()?)?, nibble(digits.next()?)?);
    Some(high << 4 | low)
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

#[cfg(test)]
mod tests;
