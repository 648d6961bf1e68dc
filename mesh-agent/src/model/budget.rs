//! What things of one kind may take of memory together.

use std::sync::atomic::{AtomicUsize, Ordering};

/// An account in bytes.
#[derive(Debug)]
pub struct Budget {
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
    /// Of which so many bytes may be taken.
    pub const fn new(max_bytes: usize) -> Self {
        Self { used_bytes: AtomicUsize::new(0), max_bytes }
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
