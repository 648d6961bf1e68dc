//! What was refused and has not been made good.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use crate::snapshot::RejectedResource;

/// So many resources of one type are known by name, whose names are no longer than this;
/// the rest goes as one, without a name.
const NAMES_MAX: usize = 1000;
const NAME_MAX_BYTES: usize = 1024;

/// How many reasons are kept of one resource.
const REASONS_MAX: usize = 10;

/// A resource of which the server's version is not the one in force, if one is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Empty: it has no name that could be read, or there are too many.
    pub name: Arc<str>,
    /// When it was refused last.
    pub at: SystemTime,
    /// By full path; the first ten.
    pub reasons: Vec<String>,
}

/// Of one type, by name.
#[derive(Debug, Default)]
pub(super) struct RefusedByName(BTreeMap<Arc<str>, Refused>);

impl RefusedByName {
    /// Takes note of what one response had refused of the resource `name`.
    pub(super) fn note(&mut self, name: &str, reasons: &[RejectedResource], at: SystemTime) {
        let room = self.0.contains_key(name) || self.0.len() < NAMES_MAX;
        let name: Arc<str> = if room && name.len() <= NAME_MAX_BYTES { name } else { "" }.into();
        let reasons = reasons.iter().take(REASONS_MAX).map(ToString::to_string).collect();
        self.0.insert(Arc::clone(&name), Refused { name, at, reasons });
    }

    /// The resource was accepted, or is no more.
    pub(super) fn clear(&mut self, name: &str) {
        self.0.remove(name);
    }

    pub(super) fn clear_all(&mut self) {
        self.0.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// By name.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Refused> {
        self.0.values()
    }
}
