//! Which virtual host has which domain, of those that come by themselves (VHDS).

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::table::namespace;
use crate::{
    model::route::Domain,
    snapshot::RejectedResource,
    source::xds::{ResourceType, rejection},
};

/// By route configuration, then by domain.
#[derive(Debug, Default)]
pub(super) struct DomainOwners(HashMap<Arc<str>, HashMap<Domain, Arc<str>>>);

impl DomainOwners {
    /// Whether a host may have these: as Envoy, none that another host of its route
    /// configuration has, unless the response at hand is about that one as well
    /// (`mentioned`).
    pub(super) fn check(
        &self,
        name: &str,
        domains: &[Domain],
        mentioned: &HashSet<Arc<str>>,
    ) -> Result<(), Vec<RejectedResource>> {
        let Some(known) = self.0.get(namespace(name)) else { return Ok(()) };
        let taken = domains.iter().find_map(|domain| {
            let owner = known.get(domain)?;
            (&**owner != name && !mentioned.contains(owner)).then_some((domain, owner))
        });
        match taken {
            None => Ok(()),
            Some((domain, owner)) => {
                let path = format!("{}[{name}].domains", ResourceType::VirtualHost.table());
                Err(vec![rejection(&path, format!("`{domain}` is that of `{owner}`"))])
            }
        }
    }

    pub(super) fn take(&mut self, name: &Arc<str>, domains: &[Domain]) {
        if domains.is_empty() {
            return;
        }
        let known = self.0.entry(namespace(name).into()).or_default();
        known.extend(domains.iter().map(|domain| (domain.clone(), Arc::clone(name))));
    }

    pub(super) fn give_up(&mut self, name: &Arc<str>, domains: &[Domain]) {
        let Some(known) = self.0.get_mut(namespace(name)) else { return };
        for domain in domains {
            if known.get(domain) == Some(name) {
                known.remove(domain);
            }
        }
        if known.is_empty() {
            self.0.remove(namespace(name));
        }
    }
}
