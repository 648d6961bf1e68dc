//! Earliest deadline first by weights that change: each is asked for when its endpoint is
//! picked, as by Envoy's `EdfScheduler`.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
    sync::{Mutex, PoisonError},
};

/// No weight counts for less: a deadline that never comes would be no share at all.
const WEIGHT_MIN: f64 = 1e-6;

#[derive(Debug)]
pub(super) struct Schedule(Mutex<Queue>);

#[derive(Debug)]
struct Queue {
    due: BinaryHeap<Reverse<Due>>,
    turns: u64,
}

/// When an endpoint is due; of the same deadline, who waits for longer.
#[derive(Debug)]
struct Due {
    at: f64,
    turn: u64,
    index: usize,
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at.total_cmp(&other.at).then(self.turn.cmp(&other.turn))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Eq for Due {}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Schedule {
    /// Of endpoints with these weights, `start` picks after its beginning.
    pub(super) fn new(weights: &[f64], start: u32) -> Self {
        let due = (0..).zip(weights).map(|(index, weight)| {
            let turn = index as u64;
            Reverse(Due { at: 1.0 / weight.max(WEIGHT_MIN), turn, index })
        });
        let turns = weights.len() as u64;
        let schedule = Self(Mutex::new(Queue { due: due.collect(), turns }));
        let skipped = (start as usize).checked_rem(weights.len()).unwrap_or(0);
        for _ in 0..skipped {
            schedule.next(|index| weights.get(index).copied().unwrap_or(1.0));
        }
        schedule
    }

    /// Whose turn it is; `weight` says what its next one goes by.
    pub(super) fn next(&self, weight: impl FnOnce(usize) -> f64) -> Option<usize> {
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = queue.turns;
        queue.turns = turn.wrapping_add(1);
        let mut first = queue.due.peek_mut()?;
        let Reverse(Due { at, index, .. }) = *first;
        let at = at + 1.0 / weight(index).max(WEIGHT_MIN);
        // Sifts down when the reference goes away.
        *first = Reverse(Due { at, turn, index });
        Some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_follow_the_weights_of_their_time() {
        let schedule = Schedule::new(&[1.0, 3.0], 0);
        let mut counts = [0_u32; 2];
        for _ in 0..400 {
            counts[schedule.next(|index| [1.0, 3.0][index]).unwrap()] += 1;
        }
        assert_eq!(counts, [100, 300]);
        for _ in 0..400 {
            counts[schedule.next(|_| 1.0).unwrap()] += 1;
        }
        assert!(counts[0].abs_diff(300) <= 1, "{counts:?}");
        assert_eq!(Schedule::new(&[], 7).next(|_| 1.0), None);
        // Whatever comes is a weight.
        let odd = Schedule::new(&[f64::NAN, 0.0, -1.0, f64::INFINITY], 3);
        assert!((0..50).all(|_| odd.next(|index| [f64::NAN, 0.0, -1.0, 1.0][index]).is_some()));
    }
}
