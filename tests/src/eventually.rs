//! Waiting for a condition instead of for a time.

use std::{
    env,
    fmt::Debug,
    sync::LazyLock,
    thread,
    time::{Duration, Instant},
};

/// How long [`eventually`] waits, before [`patience_factor`].
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Where everything takes longer, as under emulation, all patience is multiplied by the
/// environment's `MESH_TEST_PATIENCE`.
pub fn patience_factor() -> u32 {
    static FACTOR: LazyLock<u32> = LazyLock::new(|| {
        let value = env::var("MESH_TEST_PATIENCE").ok();
        value.map_or(1, |value| value.parse().expect("MESH_TEST_PATIENCE is a whole number"))
    });
    *FACTOR
}

/// Retries `attempt` until it succeeds and returns what it gave.
///
/// # Panics
/// With `what` and the last error when [`PATIENCE`] is over.
pub fn eventually<T, E: Debug>(what: &str, attempt: impl FnMut() -> Result<T, E>) -> T {
    eventually_within(PATIENCE, what, attempt)
}

/// As [`eventually`], with its own patience.
///
/// # Panics
/// With `what` and the last error when `patience` is over.
pub fn eventually_within<T, E: Debug>(
    patience: Duration,
    what: &str,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> T {
    let patience = patience * patience_factor();
    let start = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        // One that has taken long may have looked too early.
        let last = start.elapsed() > patience;
        match attempt() {
            Ok(value) => return value,
            Err(error) if last => {
                panic!("{what}: not within {patience:?}; last: {error:?}")
            }
            Err(_) => thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// Watches for `during` that `seen` stays `None`.
///
/// # Panics
/// As soon as `seen` gives something.
pub fn never<T: Debug>(during: Duration, what: &str, mut seen: impl FnMut() -> Option<T>) {
    let start = Instant::now();
    while start.elapsed() < during {
        if let Some(value) = seen() {
            panic!("{what}: must not happen, but after {:?}: {value:?}", start.elapsed());
        }
        thread::sleep(Duration::from_millis(20));
    }
}
