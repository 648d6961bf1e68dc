//! Handles by key, so many at most; those that nobody uses make room.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

use super::clusters::OVERFLOW;

/// The name of all that are too many.
pub(super) static SHARED: LazyLock<Arc<str>> = LazyLock::new(|| OVERFLOW.into());

/// One that nobody used for this long may be forgotten when room is needed.
const IDLE: Duration = Duration::from_secs(3600);
/// How often at most to look for such ones.
const SWEEP: Duration = Duration::from_secs(60);

pub(super) struct Table<K, V> {
    max: usize,
    started: Instant,
    known: ArcSwap<HashMap<K, Arc<Entry<V>>>>,
    /// Who changes what is known.
    writing: Mutex<()>,
    /// When idle ones may be looked for again, in seconds after the table's beginning.
    next_sweep: AtomicU64,
}

pub(super) struct Entry<V> {
    pub(super) value: V,
    /// Seconds after the table's beginning.
    used: AtomicU64,
}

impl<K: Hash + Eq + Clone, V> Table<K, V> {
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            started: Instant::now(),
            known: ArcSwap::default(),
            writing: Mutex::new(()),
            next_sweep: AtomicU64::new(0),
        }
    }

    /// What `key` has, or `overflow` where there is no room for it. `make` and `forget` open and
    /// close series. Takes a lock only for who is new, and to look for idle ones.
    pub(super) fn of(
        &self,
        key: &K,
        overflow: impl FnOnce() -> K,
        make: impl FnOnce(&K) -> V,
        forget: impl Fn(&K),
    ) -> Arc<Entry<V>> {
        let now = self.started.elapsed().as_secs();
        let found = |known: &HashMap<K, Arc<Entry<V>>>, key: &K| {
            let entry = known.get(key)?;
            entry.used.store(now, Ordering::Relaxed);
            Some(Arc::clone(entry))
        };
        let known = self.known.load();
        if let Some(entry) = found(&known, key) {
            return entry;
        }
        let shared = overflow();
        let is_full = |known: &HashMap<K, Arc<Entry<V>>>| {
            known.len() - usize::from(known.contains_key(&shared)) >= self.max
        };
        let is_due = || now >= self.next_sweep.load(Ordering::Relaxed);
        if is_full(&known)
            && !is_due()
            && let Some(entry) = found(&known, &shared)
        {
            return entry;
        }
        drop(known);
        let writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = self.known.load_full();
        if is_full(&known) && is_due() {
            self.next_sweep.store(now + SWEEP.as_secs(), Ordering::Relaxed);
            let idle = |entry: &Entry<V>| {
                now.saturating_sub(entry.used.load(Ordering::Relaxed)) >= IDLE.as_secs()
            };
            let (gone, rest): (Vec<_>, Vec<_>) =
                known.iter().partition(|(_, entry)| idle(entry) && Arc::strong_count(entry) == 1);
            gone.iter().for_each(|(key, _)| forget(key));
            let rest = rest.into_iter().map(|(key, entry)| (key.clone(), Arc::clone(entry)));
            known = Arc::new(rest.collect());
            self.known.store(Arc::clone(&known));
        }
        let own = known.contains_key(key) || !is_full(&known);
        let key = if own { key.clone() } else { shared };
        // Who comes second has the same one.
        if let Some(entry) = found(&known, &key) {
            return entry;
        }
        let new = Arc::new(Entry { value: make(&key), used: AtomicU64::new(now) });
        let mut more = HashMap::clone(&known);
        more.insert(key, Arc::clone(&new));
        self.known.store(Arc::new(more));
        drop(writing);
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
        *table.next_sweep.get_mut() = (IDLE + SWEEP).as_secs();
        assert_eq!(of(&table, 5), 0, "it was looked a moment ago");
        *table.next_sweep.get_mut() = 0;
        assert_eq!(of(&table, 5), 5);
        assert_eq!(of(&table, 2), 2);
        // The other idle one.
        assert_eq!(forgotten.load(Ordering::Relaxed), 1);
    }
}
