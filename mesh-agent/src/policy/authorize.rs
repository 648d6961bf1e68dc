//! From a flow to a permit, and from a request to a request permit.
//!
//! Filters are asked in their order; the first that denies ends it. Goes on to
//! `route::decide`, which asks for the permits made here.

mod chain;

use std::{fmt, net::SocketAddr, sync::Arc};

use http::{Method, StatusCode, request::Parts};

pub use self::chain::{Chain, Place, Progress, Step, resolve};
use super::{
    flow::{Flow, FlowError, OutboundPolicy},
    matcher::url_path,
    rbac::{Outcome, Subject, evaluate},
};
use crate::{
    model::{
        authz::{Rbac, RbacAction},
        filter::{HttpFilter, HttpRbac},
        identity::Identity,
        listener::{NetworkFilter, TerminalFilter},
    },
    snapshot::Snapshot,
};

/// The longest path, in bytes, that a denial quotes.
const QUOTED_PATH_MAX_BYTES: usize = 256;

/// Why something was denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DenyReason {
    /// An `ALLOW` filter, and none of its policies matches.
    NoPolicyMatched,
    /// A `DENY` filter's policy matches.
    PolicyMatched,
    /// A `DENY` policy looks at HTTP and the connection's requests are not seen.
    Unenforceable,
    /// A policy looks at the path, and the path can be spelled in another way.
    PathNotNormalized,
    /// The request names several hosts.
    AmbiguousAuthority,
    /// A live connection is proxied as TCP, and policy now looks at its requests.
    RequestsNotJudged,
    /// A filter's configuration was asked for and is not there.
    NoFilterConfig,
}

impl DenyReason {
    /// For a metric's label: lower case, stable.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoPolicyMatched => "no_policy_matched",
            Self::PolicyMatched => "policy_matched",
            Self::Unenforceable => "unenforceable",
            Self::PathNotNormalized => "path_not_normalized",
            Self::AmbiguousAuthority => "ambiguous_authority",
            Self::RequestsNotJudged => "requests_not_judged",
            Self::NoFilterConfig => "no_filter_config",
        }
    }
}

/// A connection or request that policy does not let through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied(Box<Denial>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Denial {
    policy: Option<Arc<str>>,
    filter: String,
    reason: DenyReason,
    identity: Option<Identity>,
    source: SocketAddr,
    original_destination: SocketAddr,
    request: Option<(Method, String)>,
    shadow: Shadow,
}

impl Denied {
    fn new(subject: Subject<'_>, rbac: Option<&Rbac>, reason: DenyReason) -> Self {
        Self(Box::new(Denial {
            policy: None,
            filter: rbac.map(|rbac| rbac.stat_prefix.clone()).unwrap_or_default(),
            reason,
            identity: subject.flow.source_identity().cloned(),
            source: subject.flow.source(),
            original_destination: subject.flow.original_destination(),
            request: subject.head.map(|head| (head.method.clone(), quoted_path(head))),
            shadow: Shadow::default(),
        }))
    }

    /// What a connection's shadow rules had said before.
    fn after(mut self, shadow: Shadow) -> Self {
        self.0.shadow = shadow;
        self
    }

    /// What a connection's shadow rules had said.
    pub fn shadow(&self) -> Shadow {
        self.0.shadow
    }

    fn without_config(subject: Subject<'_>, filter: &str) -> Self {
        let mut denied = Self::new(subject, None, DenyReason::NoFilterConfig);
        denied.0.filter = filter.to_owned();
        denied
    }

    fn by(mut self, policy: Arc<str>) -> Self {
        self.0.policy = Some(policy);
        self
    }

    /// The policy that denied; `None` where none allowed.
    pub fn policy(&self) -> Option<&str> {
        self.0.policy.as_deref()
    }

    /// [`Denied::policy`], shared, for a record that outlives this.
    pub fn policy_name(&self) -> Option<Arc<str>> {
        self.0.policy.clone()
    }

    /// Why.
    pub fn reason(&self) -> DenyReason {
        self.0.reason
    }

    /// Envoy's response flag.
    pub fn flag(&self) -> &'static str {
        match self.0.reason {
            DenyReason::NoFilterConfig => "NFCF",
            _ => "UAEX",
        }
    }

    /// Who asked, if proven.
    pub fn identity(&self) -> Option<&Identity> {
        self.0.identity.as_ref()
    }

    /// What a request is answered: 403, or 400 where it could not be judged safely, or
    /// 500 where what it is to be judged by is not there.
    pub fn status(&self) -> StatusCode {
        match self.0.reason {
            DenyReason::PathNotNormalized | DenyReason::AmbiguousAuthority => {
                StatusCode::BAD_REQUEST
            }
            DenyReason::NoFilterConfig => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::FORBIDDEN,
        }
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Denial {
            policy,
            filter,
            reason,
            identity,
            source,
            original_destination,
            request,
            shadow: _,
        } = &*self.0;
        match identity {
            Some(identity) => write!(f, "{identity} at {source}")?,
            None => write!(f, "unauthenticated peer at {source}")?,
        }
        match request {
            Some((method, path)) => write!(f, " may not {method} {path} on")?,
            None => f.write_str(" may not connect to")?,
        }
        write!(f, " {original_destination}: ")?;
        match (reason, policy.as_deref()) {
            (DenyReason::NoPolicyMatched, _) => f.write_str("no policy allows it"),
            (DenyReason::PolicyMatched, policy) => {
                write!(f, "policy `{}` denies it", policy.unwrap_or_default())
            }
            (DenyReason::Unenforceable, policy) => {
                let policy = policy.unwrap_or_default();
                write!(f, "policy `{policy}` has HTTP rules, and the connection is not HTTP")
            }
            (DenyReason::PathNotNormalized, None) => {
                f.write_str("policy looks at the path, and the path is not normalized")
            }
            (DenyReason::PathNotNormalized, Some(policy)) => {
                write!(f, "policy `{policy}` may match the path once its escapes are decoded")
            }
            (DenyReason::AmbiguousAuthority, _) => f.write_str("the request names several hosts"),
            (DenyReason::RequestsNotJudged, _) => {
                f.write_str("policy now looks at its requests, and it was opened as opaque TCP")
            }
            (DenyReason::NoFilterConfig, _) => {
                f.write_str("a filter has no configuration: it was asked for and did not come")
            }
        }?;
        if filter.is_empty() { Ok(()) } else { write!(f, " (filter `{filter}`)") }
    }
}

impl std::error::Error for Denied {}

/// Escaped, so that a log line stays one line; and not longer than is useful.
fn quoted_path(head: &Parts) -> String {
    let path = url_path(head);
    let end = path.floor_char_boundary(QUOTED_PATH_MAX_BYTES);
    path[..end].escape_debug().to_string()
}

/// Why a live connection may not go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Revoked {
    /// No listener or filter chain is for it any more.
    #[error(transparent)]
    Flow(#[from] FlowError),
    /// Policy now denies it.
    #[error(transparent)]
    Denied(#[from] Denied),
}

impl Revoked {
    /// Envoy's response flag.
    pub fn flag(&self) -> &'static str {
        match self {
            Self::Flow(error) => error.flag(),
            Self::Denied(denied) => denied.flag(),
        }
    }

    /// For a metric's label: lower case, stable.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Flow(error) => error.as_str(),
            Self::Denied(denied) => denied.reason().as_str(),
        }
    }
}

/// What the filters so far have said.
#[derive(Debug, Clone, Default)]
struct Basis {
    allowed_by: Option<Arc<str>>,
    logged_by: Option<Arc<str>>,
}

/// How often shadow rules said so of one connection or request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shadow {
    pub allowed: u32,
    pub denied: u32,
}

impl Shadow {
    fn note(&mut self, denied: bool) {
        let count = if denied { &mut self.denied } else { &mut self.allowed };
        *count = count.saturating_add(1);
    }
}

impl Basis {
    fn pass(&mut self, rbac: &Rbac, subject: Subject<'_>) -> Result<(), Denied> {
        let denied = |reason| Denied::new(subject, Some(rbac), reason);
        match evaluate(rbac, subject) {
            Outcome::Allowed(policy) => self.allowed_by = policy.or_else(|| self.allowed_by.take()),
            Outcome::Logged(policy) => self.logged_by = policy.or_else(|| self.logged_by.take()),
            Outcome::NoPolicy => return Err(denied(DenyReason::NoPolicyMatched)),
            Outcome::Denied(policy) => return Err(denied(DenyReason::PolicyMatched).by(policy)),
            Outcome::Unknown(policy) => {
                let request = subject.head.map(|_| DenyReason::PathNotNormalized);
                return Err(denied(request.unwrap_or(DenyReason::Unenforceable)).by(policy));
            }
        }
        Ok(())
    }
}

/// Proof that a connection passed its chain's network filters. Only [`authorize`]
/// makes one.
#[derive(Debug, Clone)]
pub struct Permit {
    flow: Flow,
    basis: Basis,
    shadow: Shadow,
}

impl Permit {
    /// The connection.
    pub fn flow(&self) -> &Flow {
        &self.flow
    }

    /// The policy that allowed it, of the last `ALLOW` filter; `None` where no such
    /// filter is in the chain.
    pub fn policy(&self) -> Option<&str> {
        self.basis.allowed_by.as_deref()
    }

    /// [`Permit::policy`], shared, for a record that outlives this.
    pub fn policy_name(&self) -> Option<Arc<str>> {
        self.basis.allowed_by.clone()
    }

    /// The policy of a `LOG` filter that matched.
    pub fn logged_policy(&self) -> Option<&str> {
        self.basis.logged_by.as_deref()
    }

    /// What shadow rules have said.
    pub fn shadow(&self) -> Shadow {
        self.shadow
    }

    /// Judges the same connection by another snapshot. Take the permit returned:
    /// its flow holds the filter chain in force, by which later requests are judged.
    ///
    /// # Errors
    /// It would not be let in now. Also where it is opaque to the agent and its
    /// requests would now be judged one by one, which can't be made up for.
    pub fn rejudge(
        &self,
        snapshot: &Snapshot,
        outbound_policy: OutboundPolicy,
    ) -> Result<Self, Revoked> {
        let permit = authorize(self.flow.again(snapshot, outbound_policy)?)?;
        let opaque = !matches!(self.flow.terminal(), Some(TerminalFilter::Http(_)));
        if opaque && let Some(TerminalFilter::Http(http)) = permit.flow.terminal() {
            let subject = Subject::connection(&permit.flow);
            // Routes may bring rules wherever there is such a filter.
            let judges =
                http.http_filters.iter().find_map(|filter| match resolve(filter, snapshot) {
                    None => Some(Denied::without_config(subject, &filter.name)),
                    Some(HttpFilter::Rbac(HttpRbac { rules: Some(rbac), .. }))
                        if rbac.action == RbacAction::Log =>
                    {
                        None
                    }
                    Some(HttpFilter::Rbac(rbac)) => {
                        let reason = DenyReason::RequestsNotJudged;
                        Some(Denied::new(subject, rbac.rules.as_deref(), reason))
                    }
                    Some(other) if other.judges() => {
                        Some(Denied::new(subject, None, DenyReason::RequestsNotJudged))
                    }
                    Some(_) => None,
                });
            return judges.map_or(Ok(permit), |denied| Err(denied.into()));
        }
        Ok(permit)
    }
}

/// Asks the network filters of the flow's chain that judge, in order. A flow without a chain
/// is passthrough and needs no one's leave.
///
/// # Errors
/// The first filter that denies.
pub fn authorize(flow: Flow) -> Result<Permit, Denied> {
    let mut basis = Basis::default();
    let mut shadow = Shadow::default();
    for filter in flow.chain().map_or(&[][..], |chain| &chain.filters) {
        let NetworkFilter::Rbac(rbac) = filter else { continue };
        let subject = Subject::connection(&flow);
        if let Some(rules) = &rbac.shadow {
            shadow.note(chain::judge_in_shadow(rules, subject).0);
        }
        if let Some(rules) = &rbac.rules {
            basis.pass(rules, subject).map_err(|denied| denied.after(shadow))?;
        }
    }
    Ok(Permit { flow, basis, shadow })
}

/// Proof that a request passed the HTTP filters. Only [`Chain`] makes one.
#[derive(Debug, Clone)]
pub struct RequestPermit {
    basis: Basis,
}

impl RequestPermit {
    /// The policy that allowed the request, of the last `ALLOW` filter; `None` where
    /// no such filter is in the connection manager. The connection's is
    /// [`Permit::policy`].
    pub fn policy(&self) -> Option<&str> {
        self.basis.allowed_by.as_deref()
    }

    /// [`RequestPermit::policy`], shared, for a record that outlives this.
    pub fn policy_name(&self) -> Option<Arc<str>> {
        self.basis.allowed_by.clone()
    }

    /// The policy of a `LOG` filter that matched.
    pub fn logged_policy(&self) -> Option<&str> {
        self.basis.logged_by.as_deref()
    }
}

#[cfg(test)]
mod tests;
