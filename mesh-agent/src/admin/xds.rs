//! What people see of the connection to a control plane.

use serde::{Deserialize, Serialize};

use super::Timestamp;
use crate::source::{AdsStatus, StreamState, StreamStatus, TypeStatus, Variant};

/// The streams, together and one by one, and each type of resources.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct XdsView {
    /// Of the first stream of those that are worst off.
    pub server: String,
    /// `sotw` or `delta`.
    pub mode: String,
    /// `backing_off`, `connecting`, `connected` (without an answer so far) or `synced`.
    pub state: String,
    pub since: Timestamp,
    /// Why its last connection ended.
    pub last_error: Option<String>,
    /// How many connections were tried, for all streams.
    pub streams: u64,
    pub sources: Vec<XdsSourceView>,
    pub types: Vec<XdsTypeView>,
}

/// One stream, or one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct XdsSourceView {
    /// The type it carries; `all` for the aggregated stream.
    pub carries: String,
    /// `http://…`, `https://…`, `unix://…` or `file://…`.
    pub server: String,
    /// `sotw` or `delta`.
    pub mode: String,
    /// `backing_off`, `connecting`, `connected` (without an answer so far) or `synced`.
    pub state: String,
    pub since: Timestamp,
    /// When a server said something last, on whichever connection.
    #[serde(default)]
    pub last_answer: Option<Timestamp>,
    /// Why the last connection ended.
    pub last_error: Option<String>,
    /// How many connections were tried.
    pub streams: u64,
}

/// One type of resources.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct XdsTypeView {
    /// `listeners`, `routes`, `clusters`, `endpoints`, `secrets`, `runtime`,
    /// `extension_configs`, `virtual_hosts` or `scoped_routes`.
    pub kind: String,
    pub type_url: String,
    /// Of the last response that was accepted whole; empty in delta mode.
    pub version: String,
    pub accepted: usize,
    pub acks: u64,
    pub nacks: u64,
    pub last_ack: Option<Timestamp>,
    pub last_nack: Option<Timestamp>,
    /// Why the last refused response was.
    pub nack_reasons: Vec<String>,
    /// Whether something that was refused has not been made good.
    pub refusing: bool,
    /// What that is, up to fifty; the last good versions of these are in force.
    #[serde(default)]
    pub refused: Vec<XdsRefusedView>,
    pub warming: Vec<XdsWarmingView>,
    /// Names that were asked for and neither delivered nor denied, up to fifty.
    #[serde(default)]
    pub awaited: Vec<String>,
    /// What the server says it has no longer, and something still uses: up to fifty.
    #[serde(default)]
    pub withdrawn: Vec<String>,
}

/// A resource of which the server's version is not the one in force, if one is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct XdsRefusedView {
    /// Empty: it has no name that could be read, or there are too many.
    pub name: String,
    /// When it was refused last.
    pub at: Timestamp,
    /// By full path; the first ten.
    pub reasons: Vec<String>,
}

/// A resource that is accepted and not in force yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct XdsWarmingView {
    pub name: String,
    pub waits_for: String,
}

impl From<&AdsStatus> for XdsView {
    fn from(status: &AdsStatus) -> Self {
        let shown = status.worst().cloned().unwrap_or_default();
        let XdsSourceView { server, mode, state, since, last_error, .. } = (&shown).into();
        let sources: Vec<_> = status.streams.values().map(XdsSourceView::from).collect();
        Self {
            server,
            mode,
            state,
            since,
            last_error,
            streams: sources.iter().map(|source| source.streams).sum(),
            sources,
            types: status.types.iter().map(XdsTypeView::from).collect(),
        }
    }
}

impl From<&StreamStatus> for XdsSourceView {
    fn from(status: &StreamStatus) -> Self {
        Self {
            carries: status.kind.unwrap_or("all").to_owned(),
            server: status.server.clone(),
            mode: match status.variant {
                Variant::Sotw => "sotw",
                Variant::Delta => "delta",
            }
            .to_owned(),
            state: match status.state {
                StreamState::Connecting => "connecting",
                StreamState::Connected => "connected",
                StreamState::Synced => "synced",
                StreamState::BackingOff => "backing_off",
            }
            .to_owned(),
            since: status.since.into(),
            last_answer: status.last_answer.map(Into::into),
            last_error: status.last_error.clone(),
            streams: status.tries,
        }
    }
}

impl From<&TypeStatus> for XdsTypeView {
    fn from(status: &TypeStatus) -> Self {
        let (last_nack, nack_reasons) = status.last_nack.clone().unzip();
        let refused = status.refused.iter().map(|refused| XdsRefusedView {
            name: refused.name.to_string(),
            at: refused.at.into(),
            reasons: refused.reasons.clone(),
        });
        let warming = status.warming.iter().map(|warming| XdsWarmingView {
            name: warming.name.to_string(),
            waits_for: warming.waits_for.clone(),
        });
        Self {
            kind: status.kind.to_owned(),
            type_url: status.type_url.to_owned(),
            version: status.version.clone(),
            accepted: status.accepted,
            acks: status.acks,
            nacks: status.nacks,
            last_ack: status.last_ack.map(Into::into),
            last_nack: last_nack.map(Into::into),
            nack_reasons: nack_reasons.unwrap_or_default(),
            refusing: status.refusing,
            refused: refused.collect(),
            warming: warming.collect(),
            awaited: status.awaited.iter().map(ToString::to_string).collect(),
            withdrawn: status.withdrawn.iter().map(ToString::to_string).collect(),
        }
    }
}
