//! Evaluates role-based access control as Envoy does, and stricter where a rule
//! can't be judged.
//!
//! Spec: `envoy/config/rbac/v3/rbac.proto`.
//!
//! An HTTP rule (header, URL path) on a connection whose requests are not seen is
//! *unknown*, not false: Envoy would take it for an empty request, so that
//! `not header` lets everyone in and a `DENY` by method stops no one. So is a rule
//! about a path that can be read in two ways ([`super::path`]). Unknown spreads as in
//! Kleene's logic, an `ALLOW` policy must be true, and a `DENY` policy must be false.

use std::{net::IpAddr, sync::Arc};

use http::request::Parts;

use super::{
    flow::Flow,
    matcher::{header_matches, joined_header_matches, url_path, value_matches},
    path::LenientPath,
};
use crate::model::{
    authz::{Permission, Principal, Rbac, RbacAction, RbacPolicy, StringMatcher},
    metadata::{DynamicMetadata, MetadataMatcher},
    route::{HeaderMatchKind, HeaderMatcher},
};

/// What is judged: a connection, or one request on it.
#[derive(Clone, Copy)]
pub(super) struct Subject<'a> {
    pub flow: &'a Flow,
    pub head: Option<&'a Parts>,
    /// Whom a request is from, if not from the connection's source.
    pub client: Option<IpAddr>,
    /// What filters have noted about a request; none about a connection.
    pub metadata: Option<&'a DynamicMetadata>,
    /// Where it differs from the path as sent.
    pub lenient_path: Option<&'a LenientPath>,
}

impl<'a> Subject<'a> {
    pub(super) fn connection(flow: &'a Flow) -> Self {
        Self { flow, head: None, client: None, metadata: None, lenient_path: None }
    }
}

/// What one filter says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// By this policy, or because no `DENY` policy matched.
    Allowed(Option<Arc<str>>),
    /// No `ALLOW` policy matched.
    NoPolicy,
    /// This `DENY` policy matched.
    Denied(Arc<str>),
    /// Whether this `DENY` policy matches is unknown.
    Unknown(Arc<str>),
    /// A `LOG` filter, which never denies, and the policy that matched.
    Logged(Option<Arc<str>>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Truth {
    False,
    Unknown,
    True,
}

impl Truth {
    fn not(self) -> Self {
        match self {
            Self::False => Self::True,
            Self::Unknown => Self::Unknown,
            Self::True => Self::False,
        }
    }

    /// False as soon as one is; true of nothing.
    fn all(each: impl Iterator<Item = Self>) -> Self {
        Self::any(each.map(Self::not)).not()
    }

    /// True as soon as one is; false of nothing.
    fn any(each: impl Iterator<Item = Self>) -> Self {
        let mut sum = Self::False;
        for truth in each {
            match truth {
                Self::True => return Self::True,
                Self::Unknown => sum = Self::Unknown,
                Self::False => {}
            }
        }
        sum
    }
}

impl From<bool> for Truth {
    fn from(known: bool) -> Self {
        if known { Self::True } else { Self::False }
    }
}

pub(super) fn evaluate(rbac: &Rbac, subject: Subject<'_>) -> Outcome {
    let first = |wanted: fn(Truth) -> bool| {
        let mut judged = rbac.policies.iter().map(|policy| (policy, judge(policy, subject)));
        judged.find(|(_, truth)| wanted(*truth)).map(|(policy, truth)| (&policy.name, truth))
    };
    match rbac.action {
        RbacAction::Allow => match first(|truth| truth == Truth::True) {
            Some((policy, _)) => Outcome::Allowed(Some(Arc::clone(policy))),
            None => Outcome::NoPolicy,
        },
        RbacAction::Deny => match first(|truth| truth != Truth::False) {
            Some((policy, Truth::True)) => Outcome::Denied(Arc::clone(policy)),
            Some((policy, _)) => Outcome::Unknown(Arc::clone(policy)),
            None => Outcome::Allowed(None),
        },
        RbacAction::Log => {
            Outcome::Logged(first(|truth| truth == Truth::True).map(|(name, _)| Arc::clone(name)))
        }
    }
}

fn judge(policy: &RbacPolicy, subject: Subject<'_>) -> Truth {
    let permission = Truth::any(policy.permissions.iter().map(|p| permission(p, subject)));
    if permission == Truth::False {
        return Truth::False;
    }
    let principal = Truth::any(policy.principals.iter().map(|p| principal(p, subject)));
    Truth::all([permission, principal].into_iter())
}

fn permission(rule: &Permission, subject: Subject<'_>) -> Truth {
    let destination = subject.flow.original_destination();
    match rule {
        Permission::And(all) => Truth::all(all.iter().map(|rule| permission(rule, subject))),
        Permission::Or(any) => Truth::any(any.iter().map(|rule| permission(rule, subject))),
        Permission::Not(rule) => permission(rule, subject).not(),
        Permission::Any => Truth::True,
        Permission::Header(header) => of_header(header, subject),
        Permission::UrlPath(path) => of_path(path, subject),
        Permission::DestinationIp(range) => range.contains(&destination.ip()).into(),
        Permission::DestinationPort(port) => (*port == destination.port()).into(),
        Permission::DestinationPortRange { start, end } => {
            (*start..*end).contains(&u32::from(destination.port())).into()
        }
        Permission::Metadata(metadata) => of_metadata(metadata, subject),
    }
}

fn principal(rule: &Principal, subject: Subject<'_>) -> Truth {
    match rule {
        Principal::And(all) => Truth::all(all.iter().map(|rule| principal(rule, subject))),
        Principal::Or(any) => Truth::any(any.iter().map(|rule| principal(rule, subject))),
        Principal::Not(rule) => principal(rule, subject).not(),
        Principal::Any => Truth::True,
        Principal::Authenticated(name) => {
            let names = subject.flow.principals();
            match name {
                None => (!names.is_empty()).into(),
                Some(wanted) => names.iter().any(|name| wanted.matches(name.as_bytes())).into(),
            }
        }
        Principal::DirectRemoteIp(range) => {
            range.contains(&subject.flow.direct_source().ip()).into()
        }
        Principal::RemoteIp(range) => {
            let client = subject.client.unwrap_or_else(|| subject.flow.source().ip());
            // Ranges are of IPv4, also for who writes `::ffff:192.0.2.1`.
            range.contains(&client.to_canonical()).into()
        }
        Principal::Header(header) => of_header(header, subject),
        Principal::UrlPath(path) => of_path(path, subject),
        Principal::Metadata(metadata) => of_metadata(metadata, subject),
    }
}

fn of_metadata(matcher: &MetadataMatcher, subject: Subject<'_>) -> Truth {
    subject.metadata.map_or(Truth::Unknown, |metadata| matcher.matches(metadata).into())
}

fn of_path(path: &StringMatcher, subject: Subject<'_>) -> Truth {
    let Some(head) = subject.head else { return Truth::Unknown };
    let as_sent = url_path(head);
    // As Envoy: CONNECT has no path, which is not an empty one.
    if as_sent.is_empty() {
        return Truth::False;
    }
    let as_sent = path.matches(as_sent.as_bytes());
    match subject.lenient_path {
        Some(lenient) if !LenientPath::is_foreign_to(path) => {
            both(as_sent, path.matches(lenient.path()))
        }
        _ => as_sent.into(),
    }
}

fn of_header(header: &HeaderMatcher, subject: Subject<'_>) -> Truth {
    let Some(head) = subject.head else { return Truth::Unknown };
    let as_sent = header_matches(header, head);
    match (subject.lenient_path, &header.kind) {
        (Some(lenient), HeaderMatchKind::String(path))
            if header.name == ":path" && !LenientPath::is_foreign_to(path) =>
        {
            both(as_sent, value_matches(header, Some(&lenient.whole)))
        }
        // Who reads a repeated header as one may find another value in it than who reads
        // the first: neither may be fooled.
        _ => both(as_sent, joined_header_matches(header, head)),
    }
}

/// What two readings of one request agree on.
fn both(one: bool, other: bool) -> Truth {
    if one == other { one.into() } else { Truth::Unknown }
}

#[cfg(test)]
mod tests;
