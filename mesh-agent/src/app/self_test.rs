//! Finds out what the kernel does with spliced sockets, beside everything else that
//! happens at start; the kernel's plan is made anew when it is known.

use std::sync::Arc;

use tokio::task::JoinHandle;

use super::Agent;
use crate::{
    admin::SpliceView,
    model::splice::{AGENT_BACKLOG_CHECK, Fitness, SelfTest, SpliceMode},
};

/// Waits for the test and says what came of it.
pub(super) async fn finish(agent: Arc<Agent>, test: JoinHandle<SelfTest>) {
    let test = match test.await {
        Ok(test) => test,
        Err(error) => {
            return tracing::error!(%error, "the kernel was not tested: splice stays off");
        }
    };
    let failed = test.agent_failures();
    match agent.config.capture.splice {
        SpliceMode::On => {
            for check in &failed {
                tracing::warn!(
                    check = check.name,
                    seen = check.detail,
                    "splice is on although this kernel fails a check of it"
                );
            }
        }
        SpliceMode::Auto if !failed.is_empty() => {
            let failed: Vec<_> = failed.iter().map(|check| check.name.as_str()).collect();
            tracing::info!(?failed, "splice stays off: this kernel fails its self-test");
        }
        SpliceMode::Auto | SpliceMode::Off => {}
    }
    agent.dataplane.metrics.self_test(&test);
    if agent.self_test.set(test).is_ok() {
        agent.pods.changed.notify_one();
    }
}

impl Agent {
    /// What the kernel was tested and found fit for.
    pub(super) fn fitness(&self) -> Fitness {
        self.self_test.get().map(SelfTest::fitness).unwrap_or_default()
    }

    /// Whether applications and the agent are spliced, and why not.
    fn agent_spliced(&self) -> Result<(), String> {
        self.capture.splice_attached()?;
        let test = self.self_test.get().ok_or("the kernel is not tested yet")?;
        let fitness = test.fitness();
        if !fitness.agent_bounded {
            return Err(format!("this kernel fails {AGENT_BACKLOG_CHECK}: no bound for the queue"));
        }
        if self.config.capture.splice == SpliceMode::On || fitness.agent {
            return Ok(());
        }
        let failed = test.agent_failures();
        let names: Vec<_> = failed.iter().map(|check| check.name.as_str()).collect();
        Err(format!("this kernel fails {}", names.join(", ")))
    }

    pub(super) fn splice(&self) -> SpliceView {
        let mode = self.config.capture.splice;
        let off = match self.capture.splice_attached() {
            Err(why) => Some(why.to_owned()),
            Ok(()) if mode == SpliceMode::On => None,
            Ok(()) => match self.self_test.get() {
                None => Some("the kernel is not tested yet".to_owned()),
                Some(test) if test.splice_passes() => None,
                Some(test) => {
                    let failed = test.splice_failures();
                    let names: Vec<_> = failed.iter().map(|check| check.name.as_str()).collect();
                    Some(format!("this kernel fails {}", names.join(", ")))
                }
            },
        };
        SpliceView { mode, off, agent_off: self.agent_spliced().err() }
    }
}
