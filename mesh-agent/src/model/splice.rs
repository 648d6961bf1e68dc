//! Whether two sockets of a pod's application and another's, or the agent's, hand each other
//! their data past TCP, and what the running kernel was found to do with such sockets.

use serde::{Deserialize, Serialize};

/// What an operator wants, for an agent or for one workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpliceMode {
    /// Where the self-test of the running kernel passes every check.
    #[default]
    Auto,
    /// Whatever the self-test says.
    On,
    Off,
}

impl SpliceMode {
    /// Whether a workload may be spliced on an agent of this mode. Both ends of a
    /// connection have to; an agent's `Off` is final.
    pub fn allows(self, workload: Option<Self>, kernel_passes: bool) -> bool {
        if self == Self::Off {
            return false;
        }
        match workload.unwrap_or(self) {
            Self::Auto => kernel_passes,
            Self::On => true,
            Self::Off => false,
        }
    }
}

/// What the running kernel does, tried on sockets made for that.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SelfTest {
    pub checks: Vec<SelfCheck>,
    /// For all of them; they run beside each other.
    pub micros: u64,
}

/// One thing tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelfCheck {
    /// Stable, snake_case.
    pub name: String,
    pub kind: SelfCheckKind,
    pub passed: bool,
    /// What was seen.
    pub detail: String,
    pub micros: u64,
}

/// What a check decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SelfCheckKind {
    /// Whether the kernel has something.
    Feature,
    /// Whether spliced sockets behave as TCP does.
    Splice,
    /// Whether they do what the agent needs where one of them is its own.
    SpliceAgent,
}

/// The check without which no socket of the agent's is spliced, whatever the operator wants:
/// whether it can find out what an application has not read.
pub const AGENT_BACKLOG_CHECK: &str = "splice_agent_backlog";

/// What of splicing the running kernel was found fit for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fitness {
    /// Of applications with each other.
    pub applications: bool,
    /// Of an application with the agent, too.
    pub agent: bool,
    /// What is queued for an application that does not read can be bounded.
    pub agent_bounded: bool,
}

impl SelfTest {
    /// What keeps [`SpliceMode::Auto`] off. Nothing was tried: that does, too.
    pub fn splice_failures(&self) -> Vec<&SelfCheck> {
        self.splice_checks().filter(|check| !check.passed).collect()
    }

    /// Whether spliced sockets behave as TCP does in every respect that was tried.
    pub fn splice_passes(&self) -> bool {
        self.splice_checks().next().is_some() && self.splice_failures().is_empty()
    }

    /// What keeps [`SpliceMode::Auto`] from splicing applications with the agent: any check.
    pub fn agent_failures(&self) -> Vec<&SelfCheck> {
        self.checks
            .iter()
            .filter(|check| check.kind != SelfCheckKind::Feature && !check.passed)
            .collect()
    }

    /// What comes of it.
    pub fn fitness(&self) -> Fitness {
        let bounded = |check: &SelfCheck| check.name == AGENT_BACKLOG_CHECK && check.passed;
        let agent_bounded = self.checks.iter().any(bounded);
        let applications = self.splice_passes();
        let agent = applications && agent_bounded && self.agent_failures().is_empty();
        Fitness { applications, agent, agent_bounded }
    }

    fn splice_checks(&self) -> impl Iterator<Item = &SelfCheck> {
        self.checks.iter().filter(|check| check.kind == SelfCheckKind::Splice)
    }
}

#[cfg(test)]
mod tests {
    use super::{SpliceMode::*, *};

    #[test]
    fn who_may_be_spliced() {
        for (agent, workload, passes, expected) in [
            (Auto, None, true, true),
            (Auto, None, false, false),
            (Auto, Some(On), false, true),
            (Auto, Some(Off), true, false),
            (On, None, false, true),
            (On, Some(Auto), false, false),
            (On, Some(Off), true, false),
            (Off, Some(On), true, false),
        ] {
            let found = agent.allows(workload, passes);
            assert_eq!(found, expected, "agent {agent:?}, workload {workload:?}, {passes}");
        }
    }

    #[test]
    fn a_kernel_passes_only_what_was_tried() {
        let check = |kind, passed| SelfCheck {
            name: String::new(),
            kind,
            passed,
            detail: String::new(),
            micros: 0,
        };
        let test = |checks: &[SelfCheck]| SelfTest { checks: checks.to_vec(), micros: 0 };
        let (feature, splice) = (SelfCheckKind::Feature, SelfCheckKind::Splice);
        assert!(!SelfTest::default().splice_passes());
        assert!(!test(&[check(feature, true)]).splice_passes());
        assert!(test(&[check(feature, false), check(splice, true)]).splice_passes());
        assert!(!test(&[check(splice, true), check(splice, false)]).splice_passes());
    }

    #[test]
    fn the_agent_is_spliced_only_where_its_queue_is_bounded() {
        let check = |kind, name: &str, passed| SelfCheck {
            name: name.to_owned(),
            kind,
            passed,
            detail: String::new(),
            micros: 0,
        };
        let (splice, agent) = (SelfCheckKind::Splice, SelfCheckKind::SpliceAgent);
        let fitness = |both, backlog, other| {
            let checks = vec![
                check(splice, "both", both),
                check(agent, AGENT_BACKLOG_CHECK, backlog),
                check(agent, "other", other),
            ];
            let Fitness { applications, agent, agent_bounded } =
                SelfTest { checks, micros: 0 }.fitness();
            (applications, agent, agent_bounded)
        };
        assert_eq!(fitness(true, true, true), (true, true, true));
        assert_eq!(fitness(false, true, true), (false, false, true));
        assert_eq!(fitness(true, false, true), (true, false, false));
        assert_eq!(fitness(true, true, false), (true, false, true));
        assert_eq!(SelfTest::default().fitness(), Fitness::default());
    }
}
