//! Outlier detection: endpoints that fail are left out for a while.
//!
//! Spec: Envoy, "Outlier detection" (`intro/arch_overview/upstream/outlier`). What counts
//! and when is Envoy's; only that an endpoint is ejected at once, by whoever saw the last
//! failure, and not by another thread a little later.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{hosts::HostState, random_below};
use crate::{
    model::cluster::{Consecutive, OutlierDetection},
    observe::metrics::EJECTION_REASONS,
};

/// How a connection or request to an endpoint went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It answered, with this status; gRPC's status as the HTTP status that it stands for.
    Status(u16),
    /// There is a connection; how it is used is told by itself.
    Connected,
    /// There is a connection, and nothing more will be told.
    Opened,
    /// No connection, or it broke.
    Failed,
    /// No answer in time.
    TimedOut,
}

/// Why an endpoint is ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    Consecutive5xx,
    GatewayFailure,
    LocalOriginFailure,
    SuccessRate(Origin),
    FailurePercentage(Origin),
}

/// Whose failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    External,
    Local,
}

/// What was seen of one endpoint.
#[derive(Debug, Default)]
pub(super) struct Monitor {
    consecutive_5xx: AtomicU32,
    gateway_failures: AtomicU32,
    local_failures: AtomicU32,
    external: Window,
    local: Window,
    ejected: AtomicBool,
    /// Taken by who holds the detector's lock.
    ejections: Mutex<Ejections>,
}

/// Of the interval that runs.
#[derive(Debug, Default)]
struct Window {
    total: AtomicU64,
    succeeded: AtomicU64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Ejections {
    since: Option<Instant>,
    jitter: Duration,
    /// Times the base ejection time.
    backoff: u32,
    ended: Option<Instant>,
}

/// One cluster's.
#[derive(Debug, Default)]
pub(super) struct Detector {
    state: Mutex<State>,
    /// In the order of [`EJECTION_REASONS`].
    ejections: [AtomicU64; EJECTION_REASONS.len()],
}

#[derive(Debug, Default)]
struct State {
    config: Option<Arc<OutlierDetection>>,
    /// The end of the interval that runs.
    due: Option<Instant>,
}

impl Window {
    fn count(&self, succeeded: bool) {
        self.total.fetch_add(1, Ordering::Relaxed);
        if succeeded {
            self.succeeded.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many, and how many of them in percent succeeded; begins anew.
    fn close(&self) -> Option<(u64, f64)> {
        let total = self.total.swap(0, Ordering::Relaxed);
        let succeeded = self.succeeded.swap(0, Ordering::Relaxed).min(total);
        (total > 0).then(|| (total, succeeded as f64 * 100.0 / total as f64))
    }
}

impl Monitor {
    pub(super) fn is_ejected(&self) -> bool {
        self.ejected.load(Ordering::Relaxed)
    }

    /// Takes note; an endpoint that fails too often in a row, and of what.
    fn note(&self, outcome: Outcome, config: &OutlierDetection) -> [Option<Reason>; 2] {
        match outcome {
            Outcome::Status(status) => self.status(status, config),
            Outcome::Connected | Outcome::Opened if config.split_local_origin => {
                self.local.count(true);
                self.local_failures.store(0, Ordering::Relaxed);
                [None, None]
            }
            Outcome::Failed | Outcome::TimedOut if config.split_local_origin => {
                self.local.count(false);
                let limit = config.consecutive_local_origin_failure;
                [reached(&self.local_failures, limit, Reason::LocalOriginFailure), None]
            }
            Outcome::Connected => [None, None],
            Outcome::Opened => self.status(200, config),
            Outcome::Failed => self.status(503, config),
            Outcome::TimedOut => self.status(504, config),
        }
    }

    fn status(&self, status: u16, config: &OutlierDetection) -> [Option<Reason>; 2] {
        let failed = (500..600).contains(&status);
        self.external.count(!failed);
        let gateway = matches!(status, 502..=504);
        if !gateway {
            self.gateway_failures.store(0, Ordering::Relaxed);
        }
        if !failed {
            self.consecutive_5xx.store(0, Ordering::Relaxed);
            return [None, None];
        }
        let limit = config.consecutive_gateway_failure;
        let by_gateway = match gateway {
            true => reached(&self.gateway_failures, limit, Reason::GatewayFailure),
            false => None,
        };
        let limit = config.consecutive_5xx;
        [by_gateway, reached(&self.consecutive_5xx, limit, Reason::Consecutive5xx)]
    }

    fn counter(&self, reason: Reason) -> Option<&AtomicU32> {
        match reason {
            Reason::Consecutive5xx => Some(&self.consecutive_5xx),
            Reason::GatewayFailure => Some(&self.gateway_failures),
            Reason::LocalOriginFailure => Some(&self.local_failures),
            Reason::SuccessRate(_) | Reason::FailurePercentage(_) => None,
        }
    }

    fn ejections(&self) -> std::sync::MutexGuard<'_, Ejections> {
        self.ejections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It takes traffic again, and begins anew.
    fn unejected(&self, now: Instant) {
        self.ejected.store(false, Ordering::Relaxed);
        for counter in [&self.consecutive_5xx, &self.gateway_failures, &self.local_failures] {
            counter.store(0, Ordering::Relaxed);
        }
        self.ejections().ended = Some(now);
    }
}

/// Counts one more, and says whether these are as many as it takes.
fn reached(counter: &AtomicU32, limit: Consecutive, reason: Reason) -> Option<Reason> {
    let before = counter.fetch_add(1, Ordering::Relaxed);
    (before.wrapping_add(1) == limit.failures).then_some(reason)
}

impl Reason {
    /// Among [`EJECTION_REASONS`].
    fn place(self) -> usize {
        match self {
            Self::Consecutive5xx => 0,
            Self::GatewayFailure => 1,
            Self::LocalOriginFailure => 2,
            Self::SuccessRate(_) => 3,
            Self::FailurePercentage(_) => 4,
        }
    }
}

/// How often, in percent, a reason leads to an ejection.
fn enforcing(reason: Reason, config: &OutlierDetection) -> u32 {
    match reason {
        Reason::Consecutive5xx => config.consecutive_5xx.enforcing,
        Reason::GatewayFailure => config.consecutive_gateway_failure.enforcing,
        Reason::LocalOriginFailure => config.consecutive_local_origin_failure.enforcing,
        Reason::SuccessRate(Origin::External) => config.success_rate.enforcing,
        Reason::SuccessRate(Origin::Local) => config.success_rate.enforcing_local_origin,
        Reason::FailurePercentage(Origin::External) => config.failure_percentage.enforcing,
        Reason::FailurePercentage(Origin::Local) => {
            config.failure_percentage.enforcing_local_origin
        }
    }
}

impl Detector {
    /// Takes note of how it went at `host`, one of `hosts`; whether its health has changed.
    pub(super) fn report(
        &self,
        config: &Arc<OutlierDetection>,
        host: &HostState,
        hosts: impl FnOnce() -> Vec<Arc<HostState>>,
        outcome: Outcome,
        now: Instant,
        random: &mut impl FnMut(u32) -> u32,
    ) -> bool {
        let reasons = host.outlier.note(outcome, config);
        if reasons == [None, None] {
            return false;
        }
        let _one_at_a_time = self.state();
        let hosts = hosts();
        let mut changed = false;
        for reason in reasons.into_iter().flatten() {
            if host.outlier.is_ejected() {
                break;
            }
            changed |= self.eject(config, host, &hosts, reason, now, random);
            if let Some(counter) = host.outlier.counter(reason) {
                counter.store(0, Ordering::Relaxed);
            }
        }
        changed
    }

    /// `config` holds from now on; another one than before begins anew. Whether somebody's
    /// health has changed.
    pub(super) fn configure(
        &self,
        config: Option<&Arc<OutlierDetection>>,
        hosts: &[Arc<HostState>],
        now: Instant,
    ) -> bool {
        let mut state = self.state();
        if state.config.as_ref() == config {
            return false;
        }
        state.config = config.cloned();
        state.due = config.and_then(|config| now.checked_add(config.interval));
        let mut changed = false;
        for host in hosts.iter().filter(|host| host.outlier.is_ejected()) {
            host.outlier.unejected(now);
            changed = true;
        }
        for host in hosts {
            *host.outlier.ejections() = Ejections::default();
        }
        changed
    }

    /// An endpoint passed a health check: that ends its ejection, where the cluster wants
    /// it so; whether it did.
    pub(super) fn passed(&self, host: &HostState, now: Instant) -> bool {
        let state = self.state();
        let ends = state.config.as_ref().is_some_and(|config| config.health_check_unejects);
        let ended = ends && host.outlier.is_ejected();
        if ended {
            host.outlier.unejected(now);
        }
        ended
    }

    /// When the interval ends that runs now.
    pub(super) fn due(&self) -> Option<Instant> {
        self.state().due
    }

    /// What there is to do at the end of an interval, if it has come; whether somebody's
    /// health has changed.
    pub(super) fn sweep(
        &self,
        hosts: &[Arc<HostState>],
        now: Instant,
        random: &mut impl FnMut(u32) -> u32,
    ) -> bool {
        let mut state = self.state();
        let Some(config) = state.config.clone() else { return false };
        if state.due.is_none_or(|due| now < due) {
            return false;
        }
        state.due = now.checked_add(config.interval);
        let mut changed = false;
        for host in hosts.iter().filter(|host| host.outlier.is_ejected()) {
            if host.outlier.ejections().is_over(&config, now) {
                host.outlier.unejected(now);
                changed = true;
            }
        }
        let windows: Vec<_> = hosts
            .iter()
            .map(|host| (host, host.outlier.external.close(), host.outlier.local.close()))
            .collect();
        let of = |origin| {
            windows.iter().filter(|(host, ..)| !host.outlier.is_ejected()).filter_map(
                move |(host, external, local)| {
                    let window = if origin == Origin::External { external } else { local };
                    window.map(|(volume, rate)| Seen { host, volume, rate })
                },
            )
        };
        for origin in [Origin::External, Origin::Local] {
            let seen: Vec<Seen<'_>> = of(origin).collect();
            for (host, reason) in outliers(&config, &seen, hosts.len(), origin) {
                // Two reasons in one interval are one ejection.
                if !host.outlier.is_ejected() {
                    changed |= self.eject(&config, host, hosts, reason, now, random);
                }
            }
        }
        for host in hosts.iter().filter(|host| !host.outlier.is_ejected()) {
            let mut ejections = host.outlier.ejections();
            let well = |ended| now.saturating_duration_since(ended) >= config.interval;
            if ejections.ended.is_some_and(well) {
                ejections.backoff = ejections.backoff.saturating_sub(1);
            }
        }
        changed
    }

    /// How often it has ejected somebody, by reason; `None`: it does not look.
    pub(super) fn counted(&self) -> Option<[u64; EJECTION_REASONS.len()]> {
        let looks = self.state().config.is_some();
        looks.then(|| self.ejections.each_ref().map(|count| count.load(Ordering::Relaxed)))
    }

    /// Leaves an endpoint out, if so many may be and the dice want it; whether it did.
    fn eject(
        &self,
        config: &OutlierDetection,
        host: &HostState,
        hosts: &[Arc<HostState>],
        reason: Reason,
        now: Instant,
        random: &mut impl FnMut(u32) -> u32,
    ) -> bool {
        let ejected = hosts.iter().filter(|host| host.outlier.is_ejected()).count();
        let percent = 100.0 * (ejected as f64 + 1.0) / hosts.len().max(1) as f64;
        let room = percent <= f64::from(config.max_ejection_percent)
            || config.always_eject_one && ejected == 0;
        if !room || random(100) >= enforcing(reason, config) {
            return false;
        }
        let most = u64::try_from(config.max_ejection_time_jitter.as_millis()).unwrap_or(u64::MAX);
        let jitter = random_below(most.saturating_add(1), random).unwrap_or(0);
        let mut ejections = host.outlier.ejections();
        ejections.since = Some(now);
        ejections.jitter = Duration::from_millis(jitter);
        let (base, most) = (config.base_ejection_time, config.max_ejection_time);
        if base.saturating_mul(ejections.backoff) < most.saturating_add(base) {
            ejections.backoff = ejections.backoff.saturating_add(1);
        }
        drop(ejections);
        host.outlier.ejected.store(true, Ordering::Relaxed);
        if let Some(count) = self.ejections.get(reason.place()) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        true
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ejections {
    fn is_over(&self, config: &OutlierDetection, now: Instant) -> bool {
        let time = config.base_ejection_time.saturating_mul(self.backoff);
        let time = time.min(config.max_ejection_time).saturating_add(self.jitter);
        self.since.is_none_or(|since| now.saturating_duration_since(since) >= time)
    }
}

/// What an interval showed of an endpoint: how many requests, how many succeeded in percent.
struct Seen<'a> {
    host: &'a Arc<HostState>,
    volume: u64,
    rate: f64,
}

/// Who does worse than the others, or too badly.
fn outliers<'a>(
    config: &OutlierDetection,
    seen: &[Seen<'a>],
    hosts: usize,
    origin: Origin,
) -> Vec<(&'a Arc<HostState>, Reason)> {
    let (rate, failures) = (config.success_rate, config.failure_percentage);
    let is_enough = |hosts: usize, minimum: u32| u64::from(minimum) <= hosts as u64;
    if !is_enough(hosts, rate.minimum_hosts) && !is_enough(hosts, failures.minimum_hosts) {
        return Vec::new();
    }
    let with = |volume: u32| seen.iter().filter(move |seen| seen.volume >= u64::from(volume));
    let mut found = Vec::new();
    let busy: Vec<_> = with(rate.request_volume).collect();
    if !busy.is_empty() && is_enough(busy.len(), rate.minimum_hosts) {
        let count = busy.len() as f64;
        let mean = busy.iter().map(|seen| seen.rate).sum::<f64>() / count;
        let variance = busy.iter().map(|seen| (seen.rate - mean).powi(2)).sum::<f64>() / count;
        let threshold = mean - f64::from(rate.stdev_factor) / 1000.0 * variance.sqrt();
        let worse = busy.iter().filter(|seen| seen.rate < threshold);
        found.extend(worse.map(|seen| (seen.host, Reason::SuccessRate(origin))));
    }
    let busy: Vec<_> = with(failures.request_volume).collect();
    if !busy.is_empty() && is_enough(busy.len(), failures.minimum_hosts) {
        let threshold = f64::from(failures.threshold);
        let bad = busy.iter().filter(|seen| 100.0 - seen.rate >= threshold);
        found.extend(bad.map(|seen| (seen.host, Reason::FailurePercentage(origin))));
    }
    found
}

#[cfg(test)]
mod tests;
