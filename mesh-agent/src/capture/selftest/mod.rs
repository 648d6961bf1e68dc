//! What the running kernel really does, tried on sockets made for that: kernels with the
//! same features differ in how spliced sockets behave, some lose or hold back data.
//!
//! Sockets, maps and programs are private; all are gone when it ends. Every check runs
//! on a thread of its own, and every system call in it is bounded by [`PATIENCE`], so
//! that a kernel that hangs is a result and not a hang.

mod blocking;
mod bulk;
mod features;
mod legs;
mod polling;
mod splicer;
mod sys;

use std::{
    collections::BTreeMap,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use self::splicer::{Splicer, Wiring};
use crate::model::splice::{AGENT_BACKLOG_CHECK, SelfCheck, SelfCheckKind, SelfTest, TLS_CHECK};

/// How long a check waits for what has to happen at once.
const PATIENCE: Duration = Duration::from_millis(300);

/// By then every check has said something.
const DEADLINE: Duration = Duration::from_millis(900);

/// What was seen; `Err`: it is not as it should be.
type Seen = Result<String, String>;

/// A check of spliced sockets, which plain TCP passes.
type SpliceCheck = fn(&Wiring) -> Seen;

const SPLICE_CHECKS: [(&str, SpliceCheck); 14] = [
    ("splice_recv_after_shutdown", blocking::recv_after_shutdown),
    ("splice_reset", blocking::reset),
    ("splice_read_by_splice", blocking::read_by_splice),
    ("splice_half_close", bulk::half_close),
    ("splice_close_after_write", bulk::close_after_write),
    ("splice_bounded", bulk::bounded),
    ("splice_large_writes", bulk::large_writes),
    ("splice_early_data", bulk::early_data),
    ("splice_fionread", polling::fionread),
    ("splice_peek", polling::peek),
    ("splice_epoll_level", polling::epoll_level),
    ("splice_epoll_edge", polling::epoll_edge),
    ("splice_zerocopy", polling::zerocopy),
    (TLS_CHECK, splicer::ktls),
];

/// As [`SPLICE_CHECKS`], of an application's socket and one of the agent's: what the agent
/// relies on.
const AGENT_CHECKS: [(&str, SpliceCheck); 3] = [
    ("splice_agent_reset", legs::reset),
    (AGENT_BACKLOG_CHECK, legs::backlog),
    ("splice_agent_fallback", legs::fallback),
];

/// Tries everything. Blocks for a third of a second where the kernel is sound, never
/// for more than one.
pub fn self_test() -> SelfTest {
    let begun = Instant::now();
    let (results, collected) = mpsc::channel();
    for (name, check) in features::CHECKS {
        spawn(name, SelfCheckKind::Feature, &results, check);
    }
    match Splicer::new() {
        Ok(splicer) => {
            let wiring = Wiring(Some(Arc::new(splicer)));
            for (name, kind, check) in spliced() {
                let wiring = wiring.clone();
                spawn(name, kind, &results, move || check(&wiring));
            }
        }
        Err(why) => {
            for (name, kind, _) in spliced() {
                let why = why.clone();
                spawn(name, kind, &results, move || Err(why));
            }
        }
    }
    drop(results);
    let mut found = collect(&collected, begun + DEADLINE);
    let expected = spliced().map(|(name, kind, _)| (name, kind));
    let features = features::CHECKS.map(|(name, _)| (name, SelfCheckKind::Feature));
    let checks = features.into_iter().chain(expected).map(|(name, kind)| {
        found.remove(name).unwrap_or_else(|| SelfCheck {
            name: name.to_owned(),
            kind,
            passed: false,
            detail: "did not come to an end".to_owned(),
            micros: micros(begun),
        })
    });
    SelfTest { checks: checks.collect(), micros: micros(begun) }
}

/// Every check of spliced sockets.
fn spliced() -> impl Iterator<Item = (&'static str, SelfCheckKind, SpliceCheck)> {
    let of = |kind| move |(name, check)| (name, kind, check);
    let both = SPLICE_CHECKS.into_iter().map(of(SelfCheckKind::Splice));
    both.chain(AGENT_CHECKS.into_iter().map(of(SelfCheckKind::SpliceAgent)))
}

fn spawn(
    name: &'static str,
    kind: SelfCheckKind,
    results: &mpsc::Sender<SelfCheck>,
    check: impl FnOnce() -> Seen + Send + 'static,
) {
    let results = results.clone();
    let run = move || {
        let begun = Instant::now();
        let seen = check();
        let passed = seen.is_ok();
        let detail = seen.unwrap_or_else(|why| why);
        let name = name.to_owned();
        // Nobody listens any more after the deadline.
        let _ = results.send(SelfCheck { name, kind, passed, detail, micros: micros(begun) });
    };
    if let Err(error) = thread::Builder::new().name("mesh-selftest".to_owned()).spawn(run) {
        tracing::warn!(check = name, %error, "no thread for a check of the kernel");
    }
}

fn collect(results: &mpsc::Receiver<SelfCheck>, until: Instant) -> BTreeMap<String, SelfCheck> {
    let mut found = BTreeMap::new();
    while let Ok(check) = results.recv_timeout(until.saturating_duration_since(Instant::now())) {
        found.insert(check.name.clone(), check);
    }
    found
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
