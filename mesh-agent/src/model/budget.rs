//! What things of one kind may take of memory together.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::{cluster, http_options, regex};

/// An account in bytes.
#[derive(Debug)]
pub struct Budget {
    name: &'static str,
    used_bytes: AtomicUsize,
    max_bytes: usize,
}

/// One thing's part of a budget, given back with it.
#[derive(Debug)]
pub struct Charge {
    budget: &'static Budget,
    bytes: usize,
}

impl Budget {
    /// Every account that the agent has.
    pub fn all() -> [&'static Self; 3] {
        [&cluster::HASH_TABLES, &regex::REGEXES, &http_options::BODIES]
    }

    /// Of which so many bytes may be taken.
    pub const fn new(name: &'static str, max_bytes: usize) -> Self {
        Self { name, used_bytes: AtomicUsize::new(0), max_bytes }
    }

    /// What it is for.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What may be taken.
    pub fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// Whether an operator should know: from 80 % on.
    pub fn is_filling(&self) -> bool {
        self.used_bytes() >= self.max_bytes / 5 * 4
    }

    /// A part of it; `None`: so much is not left.
    pub fn take(&'static self, bytes: usize) -> Option<Charge> {
        let add = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.max_bytes);
        let taken = self.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        taken.ok().map(|_| Charge { budget: self, bytes })
    }

    /// What is not taken.
    pub fn left_bytes(&self) -> usize {
        self.max_bytes.saturating_sub(self.used_bytes())
    }

    /// What is taken.
    pub fn used_bytes(&self) -> usize {
        self.used_bytes.load(Ordering::Relaxed)
    }
}

impl Charge {
    /// From now on it is for so many bytes; nothing changes, and it is `false`, where they are
    /// not left.
    pub fn set(&mut self, bytes: usize) -> bool {
        if bytes > self.bytes {
            let Some(more) = self.budget.take(bytes - self.bytes) else { return false };
            // It is part of this one from here on.
            std::mem::forget(more);
        } else {
            self.budget.used_bytes.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
        true
    }

    /// What it is for.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.used_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_charge_grows_as_far_as_there_is_room_and_gives_all_of_it_back() {
        static ACCOUNT: Budget = Budget::new("test", 100);
        let mut one = ACCOUNT.take(0).unwrap();
        let other = ACCOUNT.take(40).unwrap();
        assert!(one.set(60) && !one.set(61));
        assert_eq!((one.bytes(), ACCOUNT.left_bytes()), (60, 0));
        assert!(one.set(10));
        assert_eq!(ACCOUNT.used_bytes(), 50);
        drop((one, other));
        assert_eq!(ACCOUNT.used_bytes(), 0);
    }
}
