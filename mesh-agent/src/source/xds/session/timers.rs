//! Names with a deadline each.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Instant,
};

#[derive(Debug, Default)]
pub(super) struct Timers {
    by_name: HashMap<Arc<str>, Instant>,
    by_time: BTreeSet<(Instant, Arc<str>)>,
}

impl Timers {
    /// Sets a name's deadline anew.
    pub(super) fn set(&mut self, name: &Arc<str>, at: Instant) {
        self.clear(name);
        self.by_name.insert(Arc::clone(name), at);
        self.by_time.insert((at, Arc::clone(name)));
    }

    pub(super) fn clear(&mut self, name: &str) {
        if let Some((name, at)) = self.by_name.remove_entry(name) {
            self.by_time.remove(&(at, name));
        }
    }

    pub(super) fn clear_all(&mut self) {
        self.by_name.clear();
        self.by_time.clear();
    }

    pub(super) fn holds(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Those with a deadline, the nearest first.
    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.by_time.iter().map(|(_, name)| name)
    }

    /// Takes out a name whose time has come.
    pub(super) fn due(&mut self, now: Instant) -> Option<Arc<str>> {
        let (at, _) = self.by_time.first()?;
        if *at > now {
            return None;
        }
        let (_, name) = self.by_time.pop_first()?;
        self.by_name.remove(&name);
        Some(name)
    }
}
