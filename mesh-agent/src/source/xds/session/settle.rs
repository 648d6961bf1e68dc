//! Warming: what is accepted goes in force once all it needs is there, and what is no
//! longer accepted goes once nothing needs it.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Instant,
};

use super::{Key, Session, table::Needs};
use crate::source::xds::ResourceType as Type;

impl Session {
    /// Moves everything that is ready; in the order make-before-break asks for.
    pub(super) fn settle(&mut self, now: Instant) {
        self.add_ready(Type::Endpoints);
        self.add_ready(Type::Cluster);
        self.add_ready(Type::Routes);
        // Nothing needs a listener, and its address may be wanted.
        let gone: Vec<_> = self.table(Type::Listener).leaving.iter().cloned().collect();
        gone.iter().for_each(|name| self.take_out(Type::Listener, name));
        self.add_listeners();
        // Top down, so that one pass is enough.
        self.remove_unneeded(Type::Routes);
        self.want(Type::Routes, now);
        self.remove_unneeded(Type::Cluster);
        self.want(Type::Endpoints, now);
        self.remove_unneeded(Type::Endpoints);
    }

    fn add_ready(&mut self, kind: Type) {
        let pending = std::mem::take(&mut self.table_mut(kind).pending);
        for name in pending {
            let ready = match self.table(kind).accepted.get(&name) {
                Some(held) => self.lacks(&held.needs).is_none(),
                None => continue,
            };
            if ready {
                self.put_in(kind, name);
            } else {
                self.table_mut(kind).pending.insert(name);
            }
        }
    }

    /// As [`Self::add_ready`]; besides, two listeners can't have one address, but may
    /// swap theirs.
    fn add_listeners(&mut self) {
        let table = self.table(Type::Listener);
        let needs = |name: &Arc<str>| table.accepted.get(name).map(|held| &held.needs);
        let mut ready: BTreeSet<Arc<str>> = table
            .pending
            .iter()
            .filter(|name| needs(name).is_some_and(|needs| self.lacks(needs).is_none()))
            .cloned()
            .collect();
        // One that is held back keeps its old address, which may hold back others.
        loop {
            let staying = table.in_force.iter().filter(|(name, _)| !ready.contains(*name));
            let mut taken: HashSet<_> = staying.filter_map(|(_, needs)| needs.address).collect();
            let before = ready.len();
            ready.retain(|name| {
                needs(name).and_then(|needs| needs.address).is_some_and(|at| taken.insert(at))
            });
            if ready.len() == before {
                break;
            }
        }
        for name in ready {
            self.table_mut(Type::Listener).pending.remove(&name);
            self.put_in(Type::Listener, name);
        }
    }

    /// The first thing that is needed and not in force.
    pub(super) fn lacks(&self, needs: &Needs) -> Option<Key> {
        let kinds = [
            (Type::Endpoints, &needs.assignments),
            (Type::Cluster, &needs.clusters),
            (Type::Routes, &needs.routes),
        ];
        kinds.into_iter().find_map(|(kind, names)| {
            let in_force = &self.table(kind).in_force;
            let missing = names.iter().find(|name| !in_force.contains_key(*name))?;
            Some((kind, Arc::clone(missing)))
        })
    }

    fn put_in(&mut self, kind: Type, name: Arc<str>) {
        let table = self.table_mut(kind);
        let Some(held) = table.accepted.get_mut(&name) else { return };
        let Some(body) = held.body.take() else { return };
        let needs = held.needs.clone();
        table.renamed = true;
        table.in_force.insert(Arc::clone(&name), needs);
        self.unsent.insert((kind, name), Some(body));
    }

    fn take_out(&mut self, kind: Type, name: &Arc<str>) {
        let table = self.table_mut(kind);
        table.leaving.remove(name);
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

    /// The names of that type that what is in force needs.
    fn needed(&self, kind: Type) -> BTreeSet<Arc<str>> {
        let mut names = BTreeSet::new();
        for table in &self.tables {
            for needs in table.in_force.values() {
                names.extend(needs.named(kind).iter().cloned());
            }
        }
        names
    }

    /// Works out which names to ask for: those that what is accepted, or in force, needs.
    fn want(&mut self, kind: Type, now: Instant) {
        let holder = if kind == Type::Endpoints { Type::Cluster } else { Type::Listener };
        if !std::mem::take(&mut self.table_mut(holder).renamed) {
            return;
        }
        let mut wanted = BTreeSet::new();
        let table = self.table(holder);
        for needs in table.accepted.values().map(|held| &held.needs).chain(table.in_force.values())
        {
            wanted.extend(needs.named(kind).iter().cloned());
        }
        let deadline = now + self.initial_fetch_timeout;
        let connected = self.connected;
        let table = self.table_mut(kind);
        let dropped: Vec<_> = table.wanted.difference(&wanted).cloned().collect();
        for name in &wanted {
            let known = table.accepted.contains_key(name) || table.waiting.holds(name);
            if !known && connected {
                table.waiting.set(name, deadline);
            }
        }
        table.wanted = wanted;
        for name in dropped {
            table.waiting.clear(&name);
            table.remove(&name);
        }
        self.remove_unneeded(kind);
    }
}

impl Needs {
    pub(super) fn named(&self, kind: Type) -> &[Arc<str>] {
        match kind {
            Type::Endpoints => &self.assignments,
            Type::Cluster => &self.clusters,
            Type::Routes => &self.routes,
            Type::Listener => &[],
        }
    }
}
