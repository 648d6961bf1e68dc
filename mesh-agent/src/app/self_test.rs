//! Finds out what the kernel does with spliced sockets, beside everything else that
//! happens at start; the kernel's plan is made anew when it is known.

use std::sync::{Arc, atomic::Ordering};

use tokio::task::JoinHandle;

use super::Agent;
use crate::{
    admin::SpliceView,
    model::splice::{Fit, Fitness, SelfCheck, SelfTest, SpliceMode},
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
            let vetoes = test.agent_vetoes();
            for check in &failed {
                let (check, seen) = (check.name.as_str(), check.detail.as_str());
                if vetoes.contains(&check) {
                    tracing::warn!(
                        check,
                        seen,
                        "splice can't be on, for this kernel fails a check that is final"
                    );
                } else {
                    tracing::warn!(
                        check,
                        seen,
                        "splice is on although this kernel fails a check of it"
                    );
                }
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

    pub(super) fn splice(&self) -> SpliceView {
        let mode = self.config.capture.splice;
        let of = |off: Result<(), String>| {
            let attached = self.capture.splice_attached().map_err(str::to_owned);
            attached.and(off).err()
        };
        let test = self.self_test.get();
        // Known, and acted on.
        let test = test.filter(|_| self.tested.load(Ordering::Acquire));
        let Some(test) = test else {
            let off = of(Err("the kernel is not tested yet".to_owned()));
            return SpliceView { mode, agent_off: off.clone(), off };
        };
        let Fitness { applications, agent } = test.fitness();
        SpliceView {
            mode,
            off: of(spliced(mode, applications, &test.splice_vetoes(), &test.splice_failures())),
            agent_off: of(spliced(mode, agent, &test.agent_vetoes(), &test.agent_failures())),
        }
    }
}

/// Whether sockets are spliced, and why not.
fn spliced(
    mode: SpliceMode,
    kernel: Fit,
    vetoes: &[&str],
    failures: &[&SelfCheck],
) -> Result<(), String> {
    if mode.allows(None, kernel) {
        return Ok(());
    }
    let failed: Vec<_> = match mode {
        SpliceMode::On => vetoes.to_vec(),
        _ => failures.iter().map(|check| check.name.as_str()).collect(),
    };
    Err(format!("this kernel fails {}", failed.join(", ")))
}
