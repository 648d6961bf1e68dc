//! Requests that somebody else gets a copy of.
//!
//! Spec: `envoy.config.route.v3.RouteAction.RequestMirrorPolicy`.

use std::sync::Arc;

use serde::Serialize;

use super::RouteClusterName;
use crate::model::{
    cluster::ClusterName, header_mutation::HeaderMutation, runtime::RuntimeFraction,
};

/// Who gets copies, and of how many requests. What becomes of a copy makes no difference to
/// the request.
#[derive(Debug, Clone, Serialize)]
pub struct MirrorPolicy {
    pub cluster: RouteClusterName,
    /// `None`: of all.
    pub fraction: Option<RuntimeFraction>,
    pub host: MirrorHost,
    /// What is done to a copy's headers, in order.
    pub headers: Vec<Arc<HeaderMutation>>,
}

/// The host of a copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MirrorHost {
    /// The request's, with `-shadow` behind its name.
    Suffixed,
    /// The request's.
    Same,
    Literal(String),
}

impl MirrorPolicy {
    /// The cluster, if it is named in the configuration.
    pub fn cluster_name(&self) -> Option<&ClusterName> {
        match &self.cluster {
            RouteClusterName::Cluster(name) => Some(name),
            RouteClusterName::Header(_) => None,
        }
    }
}
