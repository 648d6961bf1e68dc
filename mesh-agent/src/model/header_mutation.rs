//! What is done to the headers of requests and responses on their way.
//!
//! Spec: `envoy/config/core/v3/base.proto` (`HeaderValueOption`).

use std::sync::Arc;

use http::HeaderName;
use serde::{Serialize, Serializer};

use super::format::{Format, Operator};

/// For both ways; `None` where there is nothing to do.
#[derive(Debug, Clone, Default, Serialize)]
pub struct HeaderMutations {
    pub request: Option<Arc<HeaderMutation>>,
    pub response: Option<Arc<HeaderMutation>>,
}

/// First what goes, then what comes, in order.
#[derive(Debug, Clone, Default, Serialize)]
pub struct HeaderMutation {
    #[serde(serialize_with = "names")]
    pub remove: Vec<HeaderName>,
    pub add: Vec<HeaderAddition>,
}

#[derive(Debug, Clone, Serialize)]
pub struct HeaderAddition {
    #[serde(serialize_with = "name")]
    pub name: HeaderName,
    pub value: Format,
    pub action: AppendAction,
    /// Whether a value that turns out empty is set all the same.
    pub keep_empty: bool,
}

/// Spec: `envoy.config.core.v3.HeaderValueOption.HeaderAppendAction`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AppendAction {
    AppendIfExistsOrAdd,
    AddIfAbsent,
    OverwriteIfExistsOrAdd,
    OverwriteIfExists,
}

impl HeaderMutation {
    /// Whether a value is taken from the request's head.
    pub fn reads_request(&self) -> bool {
        let mut operators = self.add.iter().flat_map(|addition| addition.value.operators());
        operators.any(|operator| matches!(operator, Operator::Request(_)))
    }
}

fn name<S: Serializer>(name: &HeaderName, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(name.as_str())
}

fn names<S: Serializer>(names: &[HeaderName], s: S) -> Result<S::Ok, S::Error> {
    s.collect_seq(names.iter().map(HeaderName::as_str))
}
