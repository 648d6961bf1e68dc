//! The task that keeps one identity's certificate fresh.
//!
//! Renews at half of the remaining life, ±10 % so that pods started together do not
//! ask together, or as soon as a source pushes a new one; retries with exponential
//! backoff and jitter, and says so in the log from the first failure on, with the time
//! that is left.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout};

use super::{
    certificate::Certificate,
    clock::Timestamp,
    manager::{Entry, IdentityOptions, Renewal, Shared},
    source::{Following, SourceError, humantime},
};

/// The longest sleep at a time: a machine that was suspended, or whose clock was set,
/// is noticed this late.
const NAP: Duration = Duration::from_secs(60);

/// Certificates that are born dying do not make the task spin.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

/// How soon a source that pushes is looked at again.
const PUSH_PATIENCE: Duration = Duration::from_secs(1);

/// How the newest attempt went.
#[derive(Debug)]
pub(super) enum Progress {
    /// The first attempt is under way.
    Pending,
    Ready,
    Failing(Arc<SourceError>),
}

/// Fetches and renews until the entry is stopped.
pub(super) async fn run(shared: Arc<Shared>, entry: Arc<Entry>) {
    let stop = entry.stop.clone();
    let following = shared.source.follow(&entry.identity);
    stop.run_until_cancelled(keep_fresh(&shared, &entry, following)).await;
}

async fn keep_fresh(shared: &Shared, entry: &Entry, mut following: Option<Box<dyn Following>>) {
    let mut failures = 0_u32;
    loop {
        match fetch(shared, entry).await {
            Ok(certificate) if entry.current.newest().is_some_and(|c| c.is_same(&certificate)) => {
                failures = 0;
                entry.progress.send_replace(Progress::Ready);
                let left = certificate.not_after.since(shared.now());
                if left < certificate.not_after.since(certificate.not_before) / 2 {
                    let left = humantime(left);
                    tracing::warn!(
                        identity = %entry.identity,
                        "nobody has renewed the certificate, which expires in {left}"
                    );
                }
                pause_or_push(shared, (left / 2).max(PUSH_PATIENCE), &mut following).await;
            }
            Ok(certificate) => {
                failures = 0;
                let lifetime = certificate.not_after.since(shared.now());
                let renew_in = lifetime.mul_f64(0.5 * rand::random_range(0.9..=1.1));
                tracing::info!(
                    identity = %entry.identity,
                    serial = %certificate.serial,
                    not_after = %certificate.not_after,
                    "certificate issued; renewal in {}", humantime(renew_in)
                );
                let renewed = entry.current.newest().is_some();
                entry.current.replace(certificate);
                entry.progress.send_replace(Progress::Ready);
                shared.arrivals.send_replace(());
                if renewed {
                    // Nobody may be listening.
                    let _ = shared.renewals.send(Renewal::Certificate(entry.identity.clone()));
                }
                pause_or_push(shared, renew_in, &mut following).await;
            }
            Err(error) => {
                let left = entry.not_after().map(|not_after| not_after.since(shared.now()));
                let pause_for = retry_pause(&shared.options, failures, left);
                failures = failures.saturating_add(1);
                let complaint = complaint(left, pause_for);
                tracing::error!(identity = %entry.identity, %error, "{complaint}");
                entry.progress.send_replace(Progress::Failing(Arc::new(error)));
                pause_or_push(shared, pause_for, &mut following).await;
            }
        }
    }
}

async fn fetch(shared: &Shared, entry: &Entry) -> Result<Certificate, SourceError> {
    let after = shared.options.fetch_timeout;
    let issued = timeout(after, shared.source.fetch(&entry.identity))
        .await
        .map_err(|_| SourceError::Timeout { after })??;
    let trust = Arc::clone(&shared.trust.borrow());
    Certificate::accept(issued, &entry.identity, &trust, &shared.provider, shared.now())
}

/// Doubles from `retry_min` to `retry_max`, ±20 %; while a certificate lives, at most
/// a quarter of what is left of it, so that a short-lived one gets its retries too.
fn retry_pause(options: &IdentityOptions, failures: u32, left: Option<Duration>) -> Duration {
    let doubled = options.retry_min.saturating_mul(2_u32.saturating_pow(failures));
    let mut pause = doubled.min(options.retry_max);
    if let Some(left) = left.filter(|left| !left.is_zero()) {
        pause = pause.min((left / 4).max(Duration::from_millis(200)));
    }
    pause.mul_f64(rand::random_range(0.8..=1.2))
}

/// What the log says of a failure, with the certificate's life that is `left`.
fn complaint(left: Option<Duration>, pause: Duration) -> String {
    let what = match left {
        None => {
            "cannot get a first certificate: connections of this identity are refused".to_owned()
        }
        Some(Duration::ZERO) => "certificate expired and cannot be renewed: connections of this \
                                 identity are refused"
            .to_owned(),
        Some(left) => format!("cannot renew certificate, which expires in {}", humantime(left)),
    };
    format!("{what}; next attempt in {}", humantime(pause))
}

/// As [`pause`], or less where a source that pushes has something new.
async fn pause_or_push(
    shared: &Shared,
    duration: Duration,
    following: &mut Option<Box<dyn Following>>,
) {
    match following {
        None => pause(shared, duration).await,
        Some(following) => tokio::select! {
            () = pause(shared, duration) => {}
            () = following.changed() => {}
        },
    }
}

/// Sleeps for `duration` by the monotonic clock, or less where the wall clock says
/// that it is over already.
async fn pause(shared: &Shared, duration: Duration) {
    let wall: Timestamp = shared.now().plus(duration + Duration::from_secs(1));
    let end = Instant::now() + duration.max(SHORTEST_PAUSE);
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || shared.now() > wall {
            return;
        }
        sleep(left.min(NAP)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_back_off_within_bounds_and_within_the_certificates_life() {
        let options = IdentityOptions::default();
        let near = |pause: Duration, expected: f64| {
            let ratio = pause.as_secs_f64() / expected;
            assert!((0.79..=1.21).contains(&ratio), "{pause:?} is not about {expected}s");
        };
        near(retry_pause(&options, 0, None), 1.0);
        near(retry_pause(&options, 3, None), 8.0);
        near(retry_pause(&options, 6, None), 60.0);
        near(retry_pause(&options, u32::MAX, None), 60.0);
        near(retry_pause(&options, 6, Some(Duration::from_secs(8))), 2.0);
        near(retry_pause(&options, 6, Some(Duration::ZERO)), 60.0);
    }

    #[test]
    fn a_failure_is_told_with_the_time_left() {
        let told =
            |left: Option<u64>| complaint(left.map(Duration::from_secs), Duration::from_secs(64));
        assert_eq!(
            told(None),
            "cannot get a first certificate: connections of this identity are refused; next \
             attempt in 1m 4s"
        );
        assert_eq!(
            told(Some(43_140)),
            "cannot renew certificate, which expires in 11h 59m; next attempt in 1m 4s"
        );
        assert_eq!(
            told(Some(0)),
            "certificate expired and cannot be renewed: connections of this identity are \
             refused; next attempt in 1m 4s"
        );
    }
}
