//! Round robin: in turn, or by weight with earliest deadline first, as Envoy's
//! `EdfScheduler`: an endpoint of weight w is due every 1/w, so that picks spread
//! evenly (`a b a c a`) instead of in bursts.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

/// A period of weight 1. Wide enough that 2^64 picks fit and weights up to
/// `u32::MAX` are told apart.
const PERIOD: u128 = 1 << 64;

/// Endless turns over `0..n`.
#[derive(Debug)]
pub(super) enum Rotation {
    /// All weights are the same.
    Even {
        count: usize,
        position: AtomicUsize,
    },
    Weighted {
        periods: Vec<u128>,
        due: Mutex<BinaryHeap<Reverse<(u128, usize)>>>,
    },
}

impl Rotation {
    /// `start` says how far into the rotation to begin.
    pub(super) fn new(weights: impl Iterator<Item = u32>, start: u32) -> Self {
        let periods: Vec<u128> = weights.map(|weight| PERIOD / u128::from(weight.max(1))).collect();
        let start = usize::try_from(start).unwrap_or(0);
        if periods.windows(2).all(|pair| pair[0] == pair[1]) {
            return Self::Even { count: periods.len(), position: AtomicUsize::new(start) };
        }
        let skip = start % periods.len();
        let due = periods.iter().enumerate().map(|(i, period)| Reverse((*period, i))).collect();
        let rotation = Self::Weighted { periods, due: Mutex::new(due) };
        for _ in 0..skip {
            rotation.next();
        }
        rotation
    }

    /// Whose turn it is; `None` of none.
    pub(super) fn next(&self) -> Option<usize> {
        match self {
            Self::Even { count: 0, .. } => None,
            Self::Even { count, position } => {
                Some(position.fetch_add(1, Ordering::Relaxed) % count)
            }
            Self::Weighted { periods, due } => {
                let mut due = due.lock().unwrap_or_else(PoisonError::into_inner);
                let mut first = due.peek_mut()?;
                let Reverse((deadline, index)) = *first;
                // Sifts down when the reference goes away.
                *first = Reverse((deadline + periods[index], index));
                Some(index)
            }
        }
    }
}

#[cfg(test)]
mod tests;
