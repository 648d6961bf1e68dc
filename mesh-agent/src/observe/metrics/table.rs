//! Handles by key, so many at most; those that nobody uses make room.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

/// One that nobody used for this long may be forgotten when room is needed.
const IDLE: Duration = Duration::from_secs(3600);
/// How often at most to look for such ones.
const SWEEP: Duration = Duration::from_secs(60);

pub(super) struct Table<K, V> {
    max: usize,
    started: Instant,
    known: ArcSwap<HashMap<K, Arc<Entry<V>>>>,
    /// Who changes what is known; when idle ones were last looked for.
    writing: Mutex<Option<Duration>>,
}

pub(super) struct Entry<V> {
    pub(super) value: V,
    /// Seconds after the table's beginning.
    used: AtomicU64,
}

impl<K: Hash + Eq + Clone, V> Table<K, V> {
    pub(super) fn new(max: usize) -> Self {
        Self { max, started: Instant::now(), known: ArcSwap::default(), writing: Mutex::new(None) }
    }

    /// What `key` has, or `overflow` where there is no room for it. `make` and `forget` open and
    /// close series. Takes a lock only for who is new.
    pub(super) fn of(
        &self,
        key: &K,
        overflow: impl FnOnce() -> K,
        make: impl FnOnce(&K) -> V,
        forget: impl Fn(&K),
    ) -> Arc<Entry<V>> {
        let now = self.started.elapsed();
        if let Some(known) = self.known.load().get(key) {
            known.used.store(now.as_secs(), Ordering::Relaxed);
            return Arc::clone(known);
        }
        let mut swept = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = self.known.load_full();
        let due = swept.is_none_or(|swept| now.saturating_sub(swept) >= SWEEP);
        if known.len() >= self.max && due {
            *swept = Some(now);
            let idle = |entry: &Entry<V>| {
                let used = entry.used.load(Ordering::Relaxed);
                now.as_secs().saturating_sub(used) >= IDLE.as_secs()
            };
            let (gone, rest): (Vec<_>, Vec<_>) =
                known.iter().partition(|(_, entry)| idle(entry) && Arc::strong_count(entry) == 1);
            gone.iter().for_each(|(key, _)| forget(key));
            let rest = rest.into_iter().map(|(key, entry)| (key.clone(), Arc::clone(entry)));
            known = Arc::new(rest.collect());
            self.known.store(Arc::clone(&known));
        }
        let own = known.contains_key(key) || known.len() < self.max;
        let key = if own { key.clone() } else { overflow() };
        // Who comes second has the same one.
        if let Some(entry) = known.get(&key) {
            entry.used.store(now.as_secs(), Ordering::Relaxed);
            return Arc::clone(entry);
        }
        let used = AtomicU64::new(now.as_secs());
        let new = Arc::new(Entry { value: make(&key), used });
        let mut more = HashMap::clone(&known);
        more.insert(key, Arc::clone(&new));
        self.known.store(Arc::new(more));
        drop(swept);
        new
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn who_is_too_many_shares_and_who_is_idle_makes_room() {
        let mut table = Table::new(2);
        let forgotten = AtomicUsize::new(0);
        let of = |table: &Table<u32, u32>, key: u32| {
            let forget = |_: &u32| _ = forgotten.fetch_add(1, Ordering::Relaxed);
            table.of(&key, || 0, |key| *key, forget).value
        };
        assert_eq!([1, 2, 3, 4, 1].map(|key| of(&table, key)), [1, 2, 0, 0, 1]);
        // As if an hour had gone by.
        table.started = table.started.checked_sub(IDLE).unwrap();
        assert_eq!(of(&table, 2), 2);
        assert_eq!(of(&table, 5), 0, "it was looked a moment ago");
        *table.writing.get_mut().unwrap() = None;
        assert_eq!(of(&table, 5), 5);
        assert_eq!(of(&table, 2), 2);
        // The other idle one, and what the others had shared.
        assert_eq!(forgotten.load(Ordering::Relaxed), 1);
    }
}
