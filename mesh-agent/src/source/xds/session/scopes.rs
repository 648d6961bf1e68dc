//! Scopes: asked for as a whole while a listener takes them, and unique by their keys.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use super::{Session, Variant, table::Needs};
use crate::{
    model::scope::ScopeKey,
    snapshot::RejectedResource,
    source::xds::{ResourceType as Type, rejection, scopes::ALL},
};

/// Which scope has which key, as far as a response has been judged.
#[derive(Debug, Default)]
pub(super) struct Keys(HashMap<ScopeKey, Arc<str>>);

impl Keys {
    /// The first scope with that key, unless it is this one: two can't have it.
    pub(super) fn claim(
        &mut self,
        name: &Arc<str>,
        needs: &Needs,
    ) -> Result<(), Vec<RejectedResource>> {
        let Some(key) = needs.scope_key() else { return Ok(()) };
        let owner = self.0.entry(key.clone()).or_insert_with(|| Arc::clone(name));
        if owner == name {
            return Ok(());
        }
        let path = format!("{}[{name}].key", Type::Scope.table());
        Err(vec![rejection(&path, format!("is that of scope `{owner}`"))])
    }
}

impl Session {
    /// The keys of scopes that a response of the delta variant leaves as they are.
    pub(super) fn kept_keys(&self, kind: Type, mentioned: &HashSet<&str>) -> Keys {
        let mut keys = Keys::default();
        if kind == Type::Scope {
            let accepted = self.table(kind).accepted.iter();
            for (name, held) in accepted.filter(|(name, _)| !mentioned.contains(&***name)) {
                // Judged before: there is no other.
                _ = keys.claim(name, &held.needs);
            }
        }
        keys
    }

    /// The server has spoken of its scopes: those that it has sent are all there are.
    pub(super) fn hear_of_scopes(&mut self, kind: Type) {
        let table = self.table_mut(kind);
        if kind == Type::Scope && table.wanted.contains(ALL) {
            table.waiting.clear(ALL);
            table.absent.insert(ALL.into());
        }
    }

    /// Whether all scopes that can be in force are.
    pub(super) fn scopes_are_there(&self) -> bool {
        let table = self.table(Type::Scope);
        let mut held = table.pending.iter().filter_map(|name| table.accepted.get_key_value(name));
        // Those that wait for another's key are not waited for.
        table.has(ALL)
            && held.all(|(name, held)| self.lacks(Type::Scope, name, &held.needs).is_none())
    }

    /// Whether a listener takes scopes that are delivered.
    pub(super) fn takes_scopes(&self) -> bool {
        let listeners = self.table(Type::Listener);
        let accepted = listeners.accepted.values().map(|held| &held.needs);
        let mut holders = accepted.chain(listeners.in_force.values());
        holders.any(|needs| needs.named(Type::Scope).next().is_some())
    }

    /// Asks for all scopes, or no longer. The state of the world can't take such a wish
    /// back: there, what is asked for stays so until the stream ends. Whether nobody need
    /// wait for them, since nobody could be asked.
    pub(super) fn ask_for_scopes(&mut self, now: Instant) -> bool {
        let needed = !self.table(Type::Scope).asked.is_empty() || self.takes_scopes();
        let (timeout, connected) = (self.initial_fetch_timeout, self.is_connected(Type::Scope));
        let stream = self.table(Type::Scope).stream.filter(|at| !self.is_borrowed(*at));
        let stream = stream.and_then(|at| self.streams.get(at));
        let final_wish = stream.is_some_and(|stream| stream.variant == Variant::Sotw);
        let table = self.table_mut(Type::Scope);
        table.reworded = true;
        if needed {
            let all: Arc<str> = ALL.into();
            table.wanted = BTreeSet::from([Arc::clone(&all)]);
            if table.stream.is_none() {
                return table.absent.insert(all);
            }
            if connected && !table.absent.contains(ALL) && !table.waiting.holds(ALL) {
                table.wait(&all, now, timeout);
            }
        } else if !(table.wanted.is_empty() || final_wish && table.opened) {
            table.wanted.clear();
            table.forget(&ALL.into());
            table.timeouts.clear();
            table.waiting.clear(ALL);
            table.absent.clear();
            let names: Vec<_> = table.accepted.keys().cloned().collect();
            names.iter().for_each(|name| table.remove(name));
            let gone: Vec<_> = table.leaving.iter().cloned().collect();
            gone.iter().for_each(|name| self.take_out(Type::Scope, name));
        }
        false
    }
}
