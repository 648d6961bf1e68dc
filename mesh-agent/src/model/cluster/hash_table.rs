//! What tables take that say by a hash where a request goes.

use std::sync::Arc;

use super::LbPolicy;
use crate::model::budget::{Budget, Charge};

/// What the tables of all clusters together may take, in bytes: those in force, and those
/// of a version that is not yet. While one is made anew, its last one is there as well.
pub const HASH_TABLES_MAX_BYTES: usize = 256 << 20;

/// Of a ring's point: its hash and its endpoint.
pub const RING_POINT_BYTES: usize = 12;

/// Of a Maglev table's place.
pub const MAGLEV_PLACE_BYTES: usize = 4;

/// What all of them take, or were promised.
pub static HASH_TABLES: Budget = Budget::new("hash_tables", HASH_TABLES_MAX_BYTES);

/// Room for one table of a cluster, of the size that its policy asks for at least.
///
/// Weights, priorities and subsets may ask for more, which is there or not.
#[derive(Debug)]
pub struct TableSpace {
    bytes: usize,
    budget: &'static Budget,
    _charge: Charge,
}

impl LbPolicy {
    /// The bytes of a table of the least size; 0 where the policy goes by none.
    pub fn table_bytes(self) -> usize {
        match self {
            Self::RingHash { min_size, .. } => {
                usize::try_from(min_size).unwrap_or(usize::MAX).saturating_mul(RING_POINT_BYTES)
            }
            Self::Maglev { table_size } => table_size as usize * MAGLEV_PLACE_BYTES,
            Self::RoundRobin
            | Self::LeastRequest { .. }
            | Self::LeastRequestFullScan
            | Self::Random => 0,
        }
    }
}

impl TableSpace {
    /// For a table of `policy`; `None`: so much is not left.
    pub fn reserve(policy: LbPolicy) -> Option<Arc<Self>> {
        Self::of(policy, &HASH_TABLES)
    }

    /// What is promised.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// So many bytes beyond it, if they are left.
    pub fn more(&self, bytes: usize) -> Option<Charge> {
        self.budget.take(bytes)
    }

    fn of(policy: LbPolicy, budget: &'static Budget) -> Option<Arc<Self>> {
        let bytes = policy.table_bytes();
        let _charge = budget.take(bytes)?;
        Some(Arc::new(Self { bytes, budget, _charge }))
    }

    /// In an account of its own, of so many bytes.
    #[cfg(test)]
    pub(crate) fn alone(policy: LbPolicy, max_bytes: usize) -> Option<Arc<Self>> {
        Self::of(policy, Box::leak(Box::new(Budget::new("test", max_bytes))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_one_account_and_give_back_what_they_took() {
        static BUDGET: Budget = Budget::new("test", 100);
        let maglev = |table_size| LbPolicy::Maglev { table_size };
        let first = TableSpace::of(maglev(17), &BUDGET).unwrap();
        assert_eq!((first.bytes(), BUDGET.used_bytes()), (68, 68));
        assert!(TableSpace::of(maglev(11), &BUDGET).is_none());
        assert!(first.more(33).is_none());
        let more = first.more(32).unwrap();
        assert!(TableSpace::of(maglev(2), &BUDGET).is_none());
        assert!(TableSpace::of(LbPolicy::Random, &BUDGET).is_some());
        drop(more);
        drop(first);
        assert_eq!(BUDGET.used_bytes(), 0);
        assert!(TableSpace::of(maglev(23), &BUDGET).is_some());
    }

    #[test]
    fn the_largest_that_envoy_takes_fits_twice() {
        let ring = |min_size| LbPolicy::RingHash {
            min_size,
            max_size: 8 << 20,
            function: super::super::HashFunction::XxHash,
        };
        assert_eq!(ring(8 << 20).table_bytes(), 96 << 20);
        assert!(ring(8 << 20).table_bytes() * 2 <= HASH_TABLES_MAX_BYTES);
        assert_eq!(ring(u64::MAX).table_bytes(), usize::MAX);
        assert_eq!(LbPolicy::Maglev { table_size: 5_000_011 }.table_bytes(), 20_000_044);
    }
}
