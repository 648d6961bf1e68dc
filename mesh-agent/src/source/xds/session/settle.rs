//! Warming: what is accepted goes in force once all it needs is there, and what is no
//! longer accepted goes once nothing needs it.
//!
//! Routes and opaque listeners do without a cluster that is not there, as in Envoy. Still
//! nothing that serves is broken by a control plane that says things in another order than
//! make-before-break: what is in force stays while a cluster of its next version is on its
//! way, and a cluster that something leads to stays for as long as endpoints are waited for.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Instant,
};

use super::{
    Key, Session, Variant,
    decode::decode_again,
    table::{Body, Needs, Table, namespace},
};
use crate::source::xds::ResourceType as Type;

/// The types that are asked for by name, and the types whose resources say the names;
/// what is named comes after what names it.
const HOLDERS: [(Type, &[Type]); 8] = [
    // Asked for as a whole, if at all.
    (Type::Scope, &[Type::Listener]),
    (Type::Routes, &[Type::Listener, Type::Scope]),
    (Type::VirtualHost, &[Type::Routes]),
    (Type::ExtensionConfig, &[Type::Listener]),
    // Asked for as a whole: only what is no longer needed is looked at.
    (Type::Cluster, &[]),
    (Type::Endpoints, &[Type::Cluster]),
    (Type::Secret, &[Type::Listener, Type::Cluster]),
    (Type::Runtime, &[]),
];

impl Session {
    /// Moves everything that is ready; in the order make-before-break asks for.
    pub(super) fn settle(&mut self, now: Instant) {
        for kind in [
            Type::Runtime,
            Type::Secret,
            Type::ExtensionConfig,
            Type::Endpoints,
            Type::Cluster,
            Type::VirtualHost,
            Type::Routes,
        ] {
            self.add_ready(kind);
        }
        for kind in [Type::Scope, Type::Listener] {
            // Nothing needs one of these, and its place may be wanted.
            let gone: Vec<_> = self.table(kind).leaving.iter().cloned().collect();
            gone.iter().for_each(|name| self.take_out(kind, name));
            self.add_placed(kind);
        }
        // Top down, so that one pass is enough.
        let mut made_up = false;
        for (kind, holders) in HOLDERS {
            self.remove_unneeded(kind);
            if kind == Type::Cluster {
                self.give_grace(now);
            }
            made_up |= self.work_out(kind, holders, now);
        }
        self.forget_absent_clusters();
        for table in &mut self.tables {
            table.renamed = false;
            if std::mem::take(&mut table.claimed) {
                // Names of resources that were refused in the end, too, say a timeout.
                table.timeouts.retain(|name, _| table.wanted.contains(name));
            }
        }
        if made_up {
            return self.settle(now);
        }
        self.return_streams();
        for table in &mut self.tables {
            let open = std::mem::take(&mut table.open);
            let (answered, open): (BTreeSet<_>, _) =
                open.into_iter().partition(|name| table.has(name));
            table.open = open;
            self.answered.extend(answered.into_iter().map(|name| (table.kind, name)));
        }
    }

    /// Names that nothing leads to any more are not kept for ever.
    fn forget_absent_clusters(&mut self) {
        let holders = [Type::Routes, Type::VirtualHost, Type::Scope].map(|kind| self.table(kind));
        let clusters = self.table(Type::Cluster);
        if clusters.absent.is_empty() || !holders.iter().any(|table| table.renamed) {
            return;
        }
        let mut kept = clusters.asked.clone();
        for held in holders.iter().flat_map(|table| table.accepted.values()) {
            kept.extend(held.needs.named(Type::Cluster).cloned());
        }
        self.table_mut(Type::Cluster).absent.retain(|name| kept.contains(name));
    }

    fn add_ready(&mut self, kind: Type) {
        let pending = std::mem::take(&mut self.table_mut(kind).pending);
        for name in pending {
            let table = self.table(kind);
            let ready = match table.accepted.get(&name) {
                // It is held, and waits for nothing.
                Some(_) if kind == Type::VirtualHost && !table.has_place_for(&name) => continue,
                Some(held) => self.lacks(kind, &name, &held.needs).is_none(),
                None => continue,
            };
            if ready {
                self.put_in(kind, name);
            } else {
                self.table_mut(kind).pending.insert(name);
            }
        }
    }

    /// As [`Self::add_ready`]; besides, two listeners can't have one address, or two scopes
    /// one key, but may swap theirs.
    fn add_placed(&mut self, kind: Type) {
        let table = self.table(kind);
        if table.pending.is_empty() {
            return;
        }
        let needs = |name: &Arc<str>| table.accepted.get(name).map(|held| &held.needs);
        let mut ready: BTreeSet<Arc<str>> = table
            .pending
            .iter()
            .filter(|name| needs(name).is_some_and(|needs| self.lacks(kind, name, needs).is_none()))
            .cloned()
            .collect();
        // One that is held back keeps its old place, which may hold back others.
        loop {
            let staying = table.in_force.iter().filter(|(name, _)| !ready.contains(*name));
            let mut taken: HashSet<_> =
                staying.filter_map(|(_, needs)| needs.place.as_ref()).collect();
            let before = ready.len();
            ready.retain(|name| {
                needs(name)
                    .and_then(|needs| needs.place.as_ref())
                    .is_some_and(|at| taken.insert(at))
            });
            if ready.len() == before {
                break;
            }
        }
        for name in ready {
            self.table_mut(kind).pending.remove(&name);
            self.put_in(kind, name);
        }
    }

    /// The first thing that is waited for before a resource with these needs takes effect.
    pub(super) fn lacks(&self, kind: Type, name: &str, needs: &Needs) -> Option<Key> {
        let is_there = |kind: Type, name: &Arc<str>| match kind {
            Type::Scope => self.scopes_are_there(),
            _ => self.table(kind).has(name),
        };
        let missing = needs.all().find(|(kind, name)| !is_there(*kind, name));
        let missing = missing.map(|(kind, name)| (kind, Arc::clone(name)));
        missing.or_else(|| {
            if !self.table(kind).in_force.contains_key(name) {
                return None;
            }
            let clusters = self.table(Type::Cluster);
            let comes = |name: &&Arc<str>| clusters.pending.contains(*name) && !clusters.has(name);
            needs.leads_to.iter().find(comes).map(|name| (Type::Cluster, Arc::clone(name)))
        })
    }

    fn put_in(&mut self, kind: Type, name: Arc<str>) {
        let table = self.table_mut(kind);
        let Some(held) = table.accepted.get_mut(&name) else { return };
        let Some(body) = held.body.take() else { return };
        if kind == Type::VirtualHost {
            held.again = Some(Arc::clone(&body.raw));
        }
        let needs = held.needs.clone();
        let before = table.in_force.get(&name);
        table.renamed |= *before.unwrap_or(&Needs::default()) != needs;
        table.in_force.insert(Arc::clone(&name), needs);
        // All that can be had are there.
        let resource = body.resource.with_what_there_is();
        self.unsent.insert((kind, name), Some(Body { resource, ..body }));
    }

    pub(super) fn take_out(&mut self, kind: Type, name: &Arc<str>) {
        let table = self.table_mut(kind);
        table.leaving.remove(name);
        table.withdrawn.remove(name);
        table.grace.clear(name);
        table.renamed = true;
        if table.in_force.remove(name).is_some() {
            self.unsent.insert((kind, Arc::clone(name)), None);
        }
    }

    fn remove_unneeded(&mut self, kind: Type) {
        if self.table(kind).leaving.is_empty() {
            return;
        }
        let needed = self.needed(kind);
        let gone: Vec<_> = self.table(kind).leaving.difference(&needed).cloned().collect();
        gone.iter().for_each(|name| self.take_out(kind, name));
    }

    /// Whether something that is accepted, or in force, names it.
    pub(super) fn is_named(&self, kind: Type, name: &Arc<str>) -> bool {
        self.tables.iter().any(|table| {
            let accepted = table.accepted.values().map(|held| &held.needs);
            accepted.chain(table.in_force.values()).any(|n| n.named(kind).any(|own| own == name))
        })
    }

    /// Says when clusters that are gone go, though something leads to them.
    fn give_grace(&mut self, now: Instant) {
        let until = now + self.initial_fetch_timeout;
        let Table { leaving, grace, .. } = self.table_mut(Type::Cluster);
        for name in leaving.iter().filter(|name| !grace.holds(name)).cloned().collect::<Vec<_>>() {
            grace.set(&name, until);
        }
    }

    /// The names of that type that what is in force needs or leads to.
    fn needed(&self, kind: Type) -> BTreeSet<Arc<str>> {
        let mut names = BTreeSet::new();
        for table in &self.tables {
            for needs in table.in_force.values() {
                names.extend(needs.named(kind).cloned());
                if kind == Type::Cluster {
                    names.extend(needs.leads_to.iter().cloned());
                }
            }
        }
        names
    }

    /// Works out which names to ask for: those that what is accepted, or in force, needs,
    /// and those that were asked for from outside. Whether something was made up.
    fn work_out(&mut self, kind: Type, holders: &[Type], now: Instant) -> bool {
        let renamed = |kind: &Type| self.table(*kind).renamed;
        let asked_for_anew = holders.iter().any(renamed) || renamed(&kind);
        if !asked_for_anew {
            return false;
        }
        match kind {
            Type::Scope => return self.ask_for_scopes(now),
            _ if self.table(kind).is_wildcard() => {
                self.ask_for_single(kind);
                return false;
            }
            _ => {}
        }
        let mut wanted = self.table(kind).asked.clone();
        let mut named = BTreeSet::new();
        for holder in holders {
            let table = self.table(*holder);
            let accepted = table.accepted.values().map(|held| &held.needs);
            for needs in accepted.chain(table.in_force.values()) {
                wanted.extend(needs.named(kind).cloned());
                let names = needs.all().filter(|(of, _)| *of == kind);
                named.extend(names.map(|(_, name)| Arc::clone(name)));
            }
        }
        let needed: BTreeSet<_> = named.union(&self.table(kind).asked).cloned().collect();
        wanted.retain(|name| !self.table(kind).fixed.contains(name));
        let timeout = self.initial_fetch_timeout;
        let connected = self.is_connected(kind);
        let table = self.table_mut(kind);
        if kind == Type::Routes {
            // A listener waits for routes that so far only requests have asked for in vain.
            table.absent.retain(|name| !named.contains(name));
        }
        let dropped: Vec<_> = table.wanted.difference(&wanted).cloned().collect();
        let changed: Vec<_> = table.wanted.symmetric_difference(&wanted).cloned().collect();
        table.optional = wanted.difference(&needed).cloned().collect();
        let mut nowhere = Vec::new();
        for name in &wanted {
            let known = table.accepted.contains_key(name)
                || table.waiting.holds(name)
                || table.absent.contains(name);
            if known {
                continue;
            }
            if table.stream.is_none() {
                nowhere.push(Arc::clone(name));
            } else if connected {
                table.wait(name, now, timeout);
            }
        }
        table.reworded = true;
        table.wanted = wanted;
        for name in dropped {
            table.timeouts.remove(&name);
            table.waiting.clear(&name);
            table.absent.remove(&name);
            table.refused.clear(&name);
            table.forget(&name);
            table.remove(&name);
        }
        let heard = kind == Type::VirtualHost && self.place_hosts(&changed);
        nowhere.iter().for_each(|name| self.make_up(kind, name));
        self.remove_unneeded(kind);
        heard || !nowhere.is_empty()
    }

    /// Takes virtual hosts out of force whose route configuration is gone, and has those put
    /// in whose is there (again). `changed`: the names that are wanted now and were not, and
    /// the other way about. Whether there is more to settle.
    fn place_hosts(&mut self, changed: &[Arc<str>]) -> bool {
        let table = self.table_mut(Type::VirtualHost);
        // A host that a request asks for is no reason to look at all the others.
        let all = changed.iter().any(|name| namespace(name).is_empty());
        let unplaced =
            |name: &&Arc<str>| table.in_force.contains_key(*name) && !table.has_place_for(name);
        let misplaced = |name: &&Arc<str>| {
            table.accepted.contains_key(*name)
                && !table.in_force.contains_key(*name)
                && table.has_place_for(name)
        };
        let (gone, placed): (Vec<_>, Vec<_>) = match all {
            true => (
                table.in_force.keys().filter(unplaced).cloned().collect(),
                table.accepted.keys().filter(misplaced).cloned().collect(),
            ),
            false => (
                changed.iter().filter(unplaced).cloned().collect(),
                changed.iter().filter(misplaced).cloned().collect(),
            ),
        };
        table.leaving.extend(gone);
        let mut changed = false;
        for name in placed {
            let Some(held) = table.accepted.get_mut(&name) else { continue };
            if let Some(raw) = held.again.take() {
                held.body = decode_again(&name, &held.version, raw);
            }
            if held.body.is_some() {
                table.pending.insert(name);
                changed = true;
            }
        }
        table.received && table.heard_of_hosts() || changed
    }

    /// Names asked for from outside, of a type that is asked for as a whole: a server may
    /// have more than it sends to everybody. Only the delta variant can say so.
    fn ask_for_single(&mut self, kind: Type) {
        let variant = self.table(kind).stream.and_then(|at| self.streams.get(at));
        let delta = variant.is_some_and(|stream| stream.variant == Variant::Delta);
        let table = self.table_mut(kind);
        if delta {
            table.wanted.clone_from(&table.asked);
            table.reworded = true;
        } else {
            let nowhere = table.asked.iter().filter(|name| !table.accepted.contains_key(*name));
            table.absent.extend(nowhere.cloned());
        }
    }
}
