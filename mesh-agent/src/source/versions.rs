//! Which version of each resource is in force, and since when.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::SystemTime,
};

use super::last_good::{Key, Raw};

/// By type, then by name.
#[derive(Debug, Clone, Default)]
pub struct Versions(BTreeMap<&'static str, HashMap<Arc<str>, Version>>);

/// Of one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// What its source calls it; empty where it has no name for it.
    pub name: Arc<str>,
    /// When it was applied.
    pub updated_at: SystemTime,
}

impl Versions {
    /// A whole configuration was applied; what it has in the same version as before is as
    /// old as it was.
    pub fn replaced(&mut self, raw: &Raw, at: SystemTime) {
        let before = std::mem::take(self);
        self.applied(raw, at);
        for (kind, versions) in &mut self.0 {
            let Some(before) = before.0.get(kind) else { continue };
            for (name, version) in versions {
                if let Some(before) = before.get(name).filter(|old| old.name == version.name) {
                    version.updated_at = before.updated_at;
                }
            }
        }
    }

    /// A change was applied.
    pub fn applied(&mut self, raw: &Raw, at: SystemTime) {
        self.changed(raw.versions.iter().cloned(), at);
    }

    pub(super) fn changed(
        &mut self,
        changes: impl IntoIterator<Item = (Key, Option<Arc<str>>)>,
        updated_at: SystemTime,
    ) {
        for ((kind, resource), version) in changes {
            let of_kind = self.0.entry(kind.table()).or_default();
            match version {
                Some(name) => _ = of_kind.insert(resource, Version { name, updated_at }),
                None => _ = of_kind.remove(&resource),
            }
        }
    }

    /// Each type's, by the name of its table in a dump.
    pub fn iter(
        &self,
    ) -> impl Iterator<Item = (&'static str, impl Iterator<Item = (&Arc<str>, &Version)>)> {
        self.0.iter().map(|(kind, versions)| (*kind, versions.iter()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::source::ResourceType;

    #[test]
    fn a_resource_is_as_old_as_its_version() {
        let key = |name: &str| (ResourceType::Cluster, Arc::from(name));
        let raw = |versions: &[(&str, Option<&str>)]| Raw {
            versions: versions.iter().map(|(name, v)| (key(name), v.map(Arc::from))).collect(),
            ..Raw::default()
        };
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let shown = |versions: &Versions| {
            let mut all: Vec<_> = versions
                .iter()
                .flat_map(|(kind, of)| of.map(move |(name, v)| (kind, name.to_string(), v.clone())))
                .map(|(kind, name, v)| (kind, name, v.name.to_string(), v.updated_at))
                .collect();
            all.sort();
            all
        };
        let of = |name: &str, version: &str, seconds| {
            ("clusters", name.to_owned(), version.to_owned(), at(seconds))
        };
        let mut versions = Versions::default();
        versions.replaced(&raw(&[("a", Some("1")), ("b", Some("1"))]), at(1));
        versions.applied(&raw(&[("a", Some("2")), ("b", None), ("c", Some("1"))]), at(2));
        assert_eq!(shown(&versions), [of("a", "2", 2), of("c", "1", 2)]);
        versions.replaced(&raw(&[("a", Some("2")), ("c", Some("3"))]), at(3));
        assert_eq!(shown(&versions), [of("a", "2", 2), of("c", "3", 3)]);
    }
}
