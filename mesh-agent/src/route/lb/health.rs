//! What active health checks make of an endpoint.
//!
//! Spec: Envoy, "Health checking" (`intro/arch_overview/upstream/health_checking`).

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::random_below;
use crate::model::cluster::HealthCheck;

/// How one check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckResult {
    Passed {
        /// It would rather others took the traffic.
        degraded: bool,
    },
    Failed {
        /// It said so itself: no other check is waited for.
        at_once: bool,
        /// And wants to be left out of what others are measured by.
        excluded: bool,
    },
}

/// An endpoint's, as far as it is checked.
#[derive(Debug, Default)]
pub(super) struct Checked {
    on: AtomicBool,
    failed: AtomicBool,
    degraded: AtomicBool,
    /// It was never checked.
    pending: AtomicBool,
    /// It asked not to be counted.
    excluded: AtomicBool,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    begun: bool,
    passed: u32,
    failed: u32,
}

/// What a check led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transition {
    Unchanged,
    Changed,
    /// One more will tell.
    Pending,
}

impl Checked {
    /// Whether it is to be checked from now on. Who is new is unhealthy until it passes.
    pub(super) fn set(&self, on: bool, new: bool) {
        if self.on.swap(on, Ordering::Relaxed) == on {
            return;
        }
        for flag in [&self.failed, &self.pending] {
            flag.store(on && new, Ordering::Relaxed);
        }
        for flag in [&self.degraded, &self.excluded] {
            flag.store(false, Ordering::Relaxed);
        }
        *self.counts() = Counts::default();
    }

    pub(super) fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    pub(super) fn is_degraded(&self) -> bool {
        self.degraded.load(Ordering::Relaxed)
    }

    /// Whether it counts as one of its priority's endpoints.
    pub(super) fn counts_for_panic(&self, ignore_new: bool) -> bool {
        let new = ignore_new && self.pending.load(Ordering::Relaxed);
        !new && !self.excluded.load(Ordering::Relaxed)
    }

    /// It says that it is not well, in a response; whether that is news.
    pub(super) fn fail_at_once(&self) -> bool {
        if !self.is_on() {
            return false;
        }
        let news = !self.excluded.swap(true, Ordering::Relaxed);
        self.counts().passed = 0;
        !self.failed.swap(true, Ordering::Relaxed) || news
    }

    pub(super) fn note(&self, result: CheckResult, check: &HealthCheck) -> Transition {
        let mut counts = self.counts();
        let first = !std::mem::replace(&mut counts.begun, true);
        let was_pending = self.pending.swap(false, Ordering::Relaxed);
        let mut transition = Transition::Unchanged;
        match result {
            CheckResult::Passed { degraded } => {
                counts.failed = 0;
                if self.has_failed() {
                    counts.passed = counts.passed.saturating_add(1);
                    if first || counts.passed == check.healthy_threshold {
                        self.excluded.store(false, Ordering::Relaxed);
                        self.failed.store(false, Ordering::Relaxed);
                        transition = Transition::Changed;
                    } else {
                        transition = Transition::Pending;
                    }
                }
                if was_pending {
                    transition = Transition::Changed;
                }
                if self.degraded.swap(degraded, Ordering::Relaxed) != degraded
                    && transition == Transition::Unchanged
                {
                    transition = Transition::Changed;
                }
            }
            CheckResult::Failed { at_once, excluded } => {
                counts.passed = 0;
                if excluded {
                    self.excluded.store(true, Ordering::Relaxed);
                }
                if !self.has_failed() {
                    counts.failed = counts.failed.saturating_add(1);
                    if at_once || counts.failed == check.unhealthy_threshold {
                        self.failed.store(true, Ordering::Relaxed);
                        transition = Transition::Changed;
                    } else {
                        transition = Transition::Pending;
                    }
                }
                if was_pending {
                    transition = Transition::Changed;
                }
            }
        }
        transition
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// From this check to the next.
pub(super) fn pause(
    check: &HealthCheck,
    passed: bool,
    transition: Transition,
    traffic: bool,
    random: &mut impl FnMut(u32) -> u32,
) -> Duration {
    let edge = transition == Transition::Pending;
    let base = match (traffic, passed) {
        (true, false) if edge => check.unhealthy_edge_interval,
        (true, false) => check.unhealthy_interval,
        (true, true) if edge => check.healthy_edge_interval,
        (true, true) => check.interval,
        (false, true) if !edge => check.no_traffic_healthy_interval,
        (false, _) => check.no_traffic_interval,
    };
    let share = base.saturating_mul(check.interval_jitter_percent) / 100;
    let jitter = below(share, random).saturating_add(below(check.interval_jitter, random));
    base.saturating_add(jitter).max(Duration::from_millis(1))
}

/// In whole milliseconds.
pub fn below(most: Duration, random: &mut impl FnMut(u32) -> u32) -> Duration {
    let most = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(random_below(most, random).unwrap_or(0))
}

#[cfg(test)]
pub(super) mod tests;
