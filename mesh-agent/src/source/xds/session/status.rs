//! What people see of a conversation.

use std::{sync::Arc, time::SystemTime};

use super::{Session, refused::Refused};
use crate::source::xds::ResourceType;

/// One type of resources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeStatus {
    /// `listeners`, `routes`, `clusters`, `endpoints`, `secrets`, `runtime`,
    /// `extension_configs`, `virtual_hosts` or `scoped_routes`.
    pub kind: &'static str,
    pub type_url: &'static str,
    /// Of the last response that was accepted whole; empty in the delta variant.
    pub version: String,
    pub last_ack: Option<SystemTime>,
    /// When and why something was refused last.
    pub last_nack: Option<(SystemTime, Vec<String>)>,
    /// Whether something that was refused has not been made good.
    pub refusing: bool,
    /// What that is, by name, up to fifty.
    pub refused: Vec<Refused>,
    pub acks: u64,
    pub nacks: u64,
    /// How many resources are accepted.
    pub accepted: usize,
    pub warming: Vec<Warming>,
    /// What the server has no longer and something still uses, by name, up to fifty.
    pub withdrawn: Vec<Arc<str>>,
    /// Names that were asked for and neither delivered nor denied, up to fifty.
    pub awaited: Vec<Arc<str>>,
}

impl TypeStatus {
    /// Whether it is a type that is asked for as a whole, and nothing was ever said of it.
    pub fn is_silent(&self) -> bool {
        let is_whole = [ResourceType::Listener, ResourceType::Cluster].map(ResourceType::table);
        is_whole.contains(&self.kind) && self.acks + self.nacks == 0
    }
}

/// A resource that is accepted and not in force yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warming {
    pub name: Arc<str>,
    pub waits_for: String,
}

/// More than this many warming, awaited, refused or withdrawn resources are not listed.
const LISTED_MAX: usize = 50;

impl Session {
    /// The types that a stream carries.
    pub(in crate::source::xds) fn status(&self) -> Vec<TypeStatus> {
        let carried = self.tables.iter().filter(|table| table.stream.is_some());
        carried.map(|table| self.type_status(table.kind)).collect()
    }

    fn type_status(&self, kind: ResourceType) -> TypeStatus {
        let table = self.table(kind);
        let warming = table.pending.iter().take(LISTED_MAX).map(|name| {
            let needs = table.accepted.get(name).map(|held| &held.needs);
            let missing = needs.and_then(|needs| self.lacks(kind, name, needs));
            let waits_for = match missing {
                Some((kind, name)) => format!("{}[{name}]", kind.table()),
                None if kind == ResourceType::Scope => {
                    "its key, which another scope has".to_owned()
                }
                None => "its address, which another listener has".to_owned(),
            };
            Warming { name: Arc::clone(name), waits_for }
        });
        TypeStatus {
            kind: kind.table(),
            type_url: kind.type_url(),
            version: table.version.clone(),
            last_ack: table.last_ack,
            last_nack: table.last_nack.clone(),
            refusing: !table.refused.is_empty(),
            refused: table.refused.iter().take(LISTED_MAX).cloned().collect(),
            acks: table.acks,
            nacks: table.nacks,
            accepted: table.accepted.len() - table.made_up.len(),
            warming: warming.collect(),
            awaited: table.waiting.names().take(LISTED_MAX).cloned().collect(),
            withdrawn: table.withdrawn.iter().take(LISTED_MAX).cloned().collect(),
        }
    }
}
