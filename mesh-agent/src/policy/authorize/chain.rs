//! A request's way through its connection manager's HTTP filters.

use std::{net::IpAddr, sync::Arc};

use http::request::Parts;
use serde_json::{Map, Value};

use super::{Basis, Denied, DenyReason, RequestPermit, Shadow};
use crate::{
    model::{
        authz::Rbac,
        filter::{ChainFilter, HttpFilter, HttpRbac, Levels},
        listener::HttpConnectionManager,
        metadata::DynamicMetadata,
    },
    policy::{
        Permit,
        matcher::authority_is_ambiguous,
        path::{self, LenientPath},
        rbac::{Outcome, Subject, evaluate},
    },
    snapshot::Snapshot,
};

/// Where it is noted what rules have said.
const RBAC: &str = "envoy.filters.http.rbac";

/// The filters of one request, in order. Those that judge are asked here, the others are for
/// the caller to run; only what comes out at the end is a permit.
pub struct Chain<'a> {
    permit: &'a Permit,
    client: Option<IpAddr>,
    snapshot: &'a Snapshot,
    levels: Levels<'a>,
    filters: &'a [ChainFilter],
    progress: Progress,
}

/// How far a request has come.
#[derive(Debug, Default)]
pub struct Progress {
    /// Filters it has been past.
    filters: usize,
    basis: Basis,
    shadow: Shadow,
}

/// Where a filter is in its chain.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub name: &'a str,
    /// The first one's is 0.
    pub index: usize,
}

/// What is next for a request.
#[derive(Debug)]
pub enum Step<'a> {
    /// To be run, with what the route says under its name.
    Run(Place<'a>, &'a HttpFilter),
    Passed(RequestPermit),
}

impl<'a> Chain<'a> {
    /// At the first filter. `client` is whom the request is from, if not from the
    /// connection's source. Filters that are configured apart from the manager are as
    /// `snapshot` has them; `levels` are those of the request's route.
    ///
    /// # Errors
    /// The request names several hosts.
    pub fn new(
        permit: &'a Permit,
        http: &'a HttpConnectionManager,
        snapshot: &'a Snapshot,
        levels: Levels<'a>,
        (head, client): (&Parts, Option<IpAddr>),
    ) -> Result<Self, Denied> {
        if authority_is_ambiguous(head) {
            let subject = Subject { head: Some(head), client, ..Subject::connection(&permit.flow) };
            return Err(Denied::new(subject, None, DenyReason::AmbiguousAuthority));
        }
        let (filters, progress) = (http.http_filters.as_slice(), Progress::default());
        Ok(Self { permit, client, snapshot, levels, filters, progress })
    }

    /// Goes on where another chain of the same connection manager and snapshot was left: the
    /// route is another one now.
    #[must_use]
    pub fn at(self, progress: Progress) -> Self {
        Self { progress, ..self }
    }

    /// What shadow rules have said so far.
    pub fn shadow(&self) -> Shadow {
        self.progress.shadow
    }

    /// Where it is, for [`Chain::at`].
    pub fn into_progress(self) -> Progress {
        self.progress
    }

    /// Goes on. `head` is the request as the filters so far have left it, `metadata` what
    /// they have noted; shadow rules note in it what they would have said.
    ///
    /// # Errors
    /// The first filter that denies, or that has no configuration; or policy looks at the
    /// path and that is not in normal form (see [`path`]). [`Denied::status`] is what to
    /// answer.
    pub fn next(
        &mut self,
        head: &Parts,
        metadata: &mut DynamicMetadata,
    ) -> Result<Step<'a>, Denied> {
        while let Some(filter) = self.filters.get(self.progress.filters) {
            let index = self.progress.filters;
            self.progress.filters += 1;
            if !self.levels.runs(filter) {
                continue;
            }
            let subject = Subject {
                head: Some(head),
                client: self.client,
                ..Subject::connection(&self.permit.flow)
            };
            match resolve(filter, self.snapshot) {
                None => return Err(Denied::without_config(subject, &filter.name)),
                Some(HttpFilter::Rbac(own)) => {
                    let HttpRbac { rules, shadow } = self.levels.rbac(&filter.name, own);
                    if let Some(shadow) = shadow {
                        let subject = Subject { metadata: Some(&*metadata), ..subject };
                        let (denied, said) = judge_in_shadow(shadow, subject);
                        self.progress.shadow.note(denied);
                        metadata.merge(RBAC, said);
                    }
                    if let Some(rbac) = rules {
                        let subject = Subject { metadata: Some(&*metadata), ..subject };
                        judge(rbac, subject, head, &mut self.progress.basis)?;
                    }
                }
                Some(run) => return Ok(Step::Run(Place { name: &filter.name, index }, run)),
            }
        }
        Ok(Step::Passed(RequestPermit { basis: std::mem::take(&mut self.progress.basis) }))
    }
}

/// Whether it would have denied, and what is noted of it.
pub(super) fn judge_in_shadow(rbac: &Rbac, subject: Subject<'_>) -> (bool, Map<String, Value>) {
    let (denied, policy) = match evaluate(rbac, subject) {
        Outcome::Allowed(policy) | Outcome::Logged(policy) => (false, policy),
        Outcome::NoPolicy => (true, None),
        Outcome::Denied(policy) | Outcome::Unknown(policy) => (true, Some(policy)),
    };
    tracing::debug!(denied, ?policy, prefix = rbac.stat_prefix, "shadow rules have judged");
    let key = |name: &str| format!("{}{name}", rbac.stat_prefix);
    let policy = policy.map(|policy| (key("shadow_effective_policy_id"), (*policy).into()));
    let result = if denied { "denied" } else { "allowed" };
    let result = (key("shadow_engine_result"), result.into());
    (denied, policy.into_iter().chain([result]).collect())
}

fn judge(
    rbac: &Arc<Rbac>,
    subject: Subject<'_>,
    head: &Parts,
    basis: &mut Basis,
) -> Result<(), Denied> {
    if !path::is_plain(head) {
        if path::is_judged_by(rbac) {
            return Err(Denied::new(subject, Some(rbac), DenyReason::PathNotNormalized));
        }
        return basis.pass(rbac, subject);
    }
    let lenient_path = LenientPath::of(head);
    basis.pass(rbac, Subject { lenient_path: lenient_path.as_ref(), ..subject })
}

/// The filter in force at a place of a chain; `None`: its configuration was asked for and
/// is not there.
pub fn resolve<'a>(filter: &'a ChainFilter, snapshot: &'a Snapshot) -> Option<&'a HttpFilter> {
    match &filter.filter {
        HttpFilter::Discovered(discovered) => {
            snapshot.filter_config(discovered).map(|config| &config.filter)
        }
        own => Some(own),
    }
}
