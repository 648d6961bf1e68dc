//! Least request: of a few random endpoints of the same weight, or of all, the least
//! loaded. Where weights differ it is their schedule that says (`candidates`), as with
//! Envoy.

use std::sync::atomic::Ordering;

use super::{candidates::HostSet, random_below};

/// More draws than this add nothing but time.
const CHOICES_MAX: u32 = 64;

pub(super) fn pick(
    set: &HostSet,
    choice_count: u32,
    random: &mut impl FnMut(u32) -> u32,
) -> Option<usize> {
    let mut best: Option<(usize, u32)> = None;
    for _ in 0..choice_count.clamp(1, CHOICES_MAX) {
        let drawn = random_below(set.hosts.len() as u64, random)?;
        let index = usize::try_from(drawn).ok()?;
        let active = set.hosts.get(index)?.state.active.load(Ordering::Relaxed);
        // The first drawn wins a tie.
        if best.is_none_or(|(_, least)| active < least) {
            best = Some((index, active));
        }
    }
    best.map(|(index, _)| index)
}

/// Of all; of several that are, any.
pub(super) fn scan(set: &HostSet, random: &mut impl FnMut(u32) -> u32) -> Option<usize> {
    let mut best: Option<(usize, u32)> = None;
    let mut tied = 0;
    for (index, host) in set.hosts.iter().enumerate() {
        let active = host.state.active.load(Ordering::Relaxed);
        match best {
            Some((_, least)) if active > least => {}
            Some((_, least)) if active == least => {
                tied += 1;
                if random(tied) == 0 {
                    best = Some((index, active));
                }
            }
            _ => {
                tied = 1;
                best = Some((index, active));
            }
        }
    }
    best.map(|(index, _)| index)
}

#[cfg(test)]
mod tests;
