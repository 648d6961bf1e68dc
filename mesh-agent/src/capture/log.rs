//! What the programs log, while `--bpf-log` asks for it.
#![forbid(unsafe_code)]

use std::time::Duration;

use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::task::JoinHandle;

/// How late a record may be.
const POLL: Duration = Duration::from_millis(50);

/// Forwards records to the `log` facade until the task is aborted. Without a log
/// buffer there is nothing to forward, which is not worth failing for.
pub(super) fn pump(ebpf: &mut Ebpf) -> Option<JoinHandle<()>> {
    let mut logger = match EbpfLogger::init(ebpf) {
        Ok(logger) => logger,
        Err(error) => {
            tracing::warn!(%error, "BPF programs cannot log");
            return None;
        }
    };
    Some(tokio::spawn(async move {
        let mut poll = tokio::time::interval(POLL);
        loop {
            poll.tick().await;
            logger.flush();
        }
    }))
}
