//! How much of a cluster's traffic each priority takes, and whether from its healthy
//! endpoints, its degraded ones, or in panic from all.
//!
//! Spec: Envoy, "Priority levels", "Degraded endpoints" and "Panic threshold"
//! (`intro/arch_overview/upstream/load_balancing`). Percentages are whole numbers and
//! round as Envoy's do, so that the two send the same shares.

/// Endpoints of one priority, by number or by weight.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) total: u64,
    pub(super) healthy: u64,
    pub(super) degraded: u64,
}

impl Count {
    /// `part` of all in percent, as far as they bear `factor` percent; at most 100.
    fn availability(self, part: u64, factor: u32) -> u32 {
        let percent = (u64::from(factor) * part).checked_div(self.total).unwrap_or(0);
        u32::try_from(percent).unwrap_or(u32::MAX).min(100)
    }

    fn in_panic(self, threshold: u8) -> bool {
        100 * (self.healthy + self.degraded) < u64::from(threshold) * self.total.max(1)
    }
}

/// One priority.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Level {
    pub(super) endpoints: Count,
    /// What its health goes by: the endpoints, or their weights.
    pub(super) health: Count,
}

/// Shares of one priority, in percent of all traffic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) healthy: u32,
    pub(super) degraded: u32,
    /// Its traffic goes to all of its endpoints, whatever their health.
    pub(super) panic: bool,
}

/// The shares of `levels`, the highest priority first; they add up to 100.
pub(super) fn distribute(levels: &[Level], factor: u32, panic_threshold: u8) -> Vec<Share> {
    let mut shares = vec![Share::default(); levels.len()];
    let healthy: Vec<_> =
        levels.iter().map(|l| l.health.availability(l.health.healthy, factor)).collect();
    let degraded: Vec<_> =
        levels.iter().map(|l| l.health.availability(l.health.degraded, factor)).collect();
    let available = healthy.iter().chain(&degraded).sum::<u32>().min(100);
    let part = |availability: u32| (availability * 100).checked_div(available).unwrap_or(0);
    let mut left = 100;
    for (share, healthy) in shares.iter_mut().zip(&healthy) {
        share.healthy = left.min(part(*healthy));
        left -= share.healthy;
    }
    for (share, degraded) in shares.iter_mut().zip(&degraded) {
        share.degraded = left.min(part(*degraded));
        left -= share.degraded;
    }
    // What rounding left.
    if let Some(first) = healthy.iter().position(|healthy| *healthy > 0) {
        shares[first].healthy += left;
    } else if let Some(first) = degraded.iter().position(|degraded| *degraded > 0) {
        shares[first].degraded += left;
    }
    if available == 100 {
        return shares;
    }
    for (share, level) in shares.iter_mut().zip(levels) {
        share.panic = level.endpoints.in_panic(panic_threshold);
    }
    let total_panic = shares.iter().all(|share| share.panic);
    if total_panic {
        by_number(levels, &mut shares);
    } else if available == 0
        && let Some(first) = shares.first_mut()
    {
        // Nobody is there to take it.
        first.healthy = 100;
    }
    shares
}

/// Every priority is in panic: each takes as much as it has endpoints.
fn by_number(levels: &[Level], shares: &mut [Share]) {
    let count = |level: &Level| level.endpoints.total;
    let total: u64 = levels.iter().map(count).sum();
    let mut left = 100;
    for (share, level) in shares.iter_mut().zip(levels) {
        let percent = (100 * count(level)).checked_div(total).unwrap_or(0);
        share.healthy = u32::try_from(percent).unwrap_or(100);
        share.degraded = 0;
        left -= share.healthy;
    }
    let first = levels.iter().position(|level| count(level) > 0).unwrap_or(0);
    if let Some(share) = shares.get_mut(first) {
        share.healthy += left;
    }
}

#[cfg(test)]
mod tests;
