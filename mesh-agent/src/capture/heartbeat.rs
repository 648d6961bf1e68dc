//! Signs of life for the programs: a process that is stopped, and not dead, keeps its
//! listeners, and verdicts that nobody keeps up to date any more.
#![forbid(unsafe_code)]

use std::{
    path::Path,
    sync::mpsc::{self, RecvTimeoutError},
    thread::{self, JoinHandle},
    time::Duration,
};

use aya::maps::{Array, MapData};
use mesh_common::abi::map;

use super::{
    error::CaptureError,
    maps::{monotonic_ns, pinned},
};

/// How often a sign is given, at least.
const EVERY: Duration = Duration::from_secs(1);

/// Gives signs of life until it is dropped; a thread of its own, which waits for nothing else
/// that the agent does.
#[derive(Debug)]
pub(super) struct Heartbeat(Option<(mpsc::Sender<()>, JoinHandle<()>)>);

impl Heartbeat {
    /// Gives the first sign, and from then on others. The programs take an agent for dead that
    /// has given none for `hung_after`; `None`: never.
    pub(super) fn start(maps: &Path, hung_after: Option<Duration>) -> Result<Self, CaptureError> {
        let failed = |source| CaptureError::Map { map: map::ALIVE_UNTIL, source };
        let until = pinned(maps, map::ALIVE_UNTIL)?;
        let mut until: Array<MapData, u64> = until.try_into().map_err(failed)?;
        let Some(hung_after) = hung_after else {
            until.set(0, u64::MAX, 0).map_err(failed)?;
            return Ok(Self(None));
        };
        let for_ns = u64::try_from(hung_after.as_nanos()).unwrap_or(u64::MAX);
        let mut alive_until = monotonic_ns().saturating_add(for_ns);
        until.set(0, alive_until, 0).map_err(failed)?;
        let (stop, stopped) = mpsc::channel();
        let beat = move || {
            while stopped.recv_timeout(EVERY.min(hung_after / 4)) == Err(RecvTimeoutError::Timeout)
            {
                let now = monotonic_ns();
                if now >= alive_until {
                    tracing::warn!(
                        late_ms = (now - alive_until) / 1_000_000,
                        "the agent was held up: new connections were refused meanwhile"
                    );
                }
                alive_until = now.saturating_add(for_ns);
                if let Err(error) = until.set(0, alive_until, 0) {
                    tracing::error!(%error, "the kernel cannot be told that the agent lives");
                }
            }
        };
        let thread = thread::Builder::new()
            .name("mesh-heartbeat".to_owned())
            .spawn(beat)
            .map_err(CaptureError::Thread)?;
        Ok(Self(Some((stop, thread))))
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.0.take() {
            drop(stop);
            // One that panicked said so already.
            let _ = thread.join();
        }
    }
}
