//! What things of one kind may take of memory together.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::{cluster, regex};

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
    pub fn all() -> [&'static Self; 2] {
        [&cluster::HASH_TABLES, &regex::REGEXES]
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

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.used_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
