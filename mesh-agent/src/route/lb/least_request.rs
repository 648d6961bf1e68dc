//! Least request: of a few random endpoints, the least loaded.
//!
//! Endpoints are drawn in proportion to their weight and compared by requests in
//! flight per weight, so that idle endpoints share as their weights do. Envoy draws
//! evenly where weights are the same, which is this; where they differ it schedules
//! by weight over load instead.

use std::sync::atomic::Ordering;

use super::{candidates::HostSet, random_below};

/// More draws than this add nothing but time.
const CHOICES_MAX: u32 = 64;

pub(super) fn pick(
    set: &HostSet,
    choice_count: u32,
    random: &mut impl FnMut(u32) -> u32,
) -> Option<usize> {
    let weights = &set.cumulative_weights;
    let total = *weights.last()?;
    if set.hosts.len() == 1 {
        return Some(0);
    }
    let mut best: Option<(usize, u64, u64)> = None;
    for _ in 0..choice_count.clamp(1, CHOICES_MAX) {
        let drawn = random_below(total, random)?;
        let index = weights.partition_point(|sum| *sum <= drawn);
        let host = set.hosts.get(index)?;
        let active = u64::from(host.state.active.load(Ordering::Relaxed));
        let weight = u64::from(host.endpoint.weight.max(1));
        // active / weight < best active / best weight; the first drawn wins a tie.
        if best.is_none_or(|(_, a, w)| active * w < a * weight) {
            best = Some((index, active, weight));
        }
    }
    best.map(|(index, ..)| index)
}

#[cfg(test)]
mod tests;
