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
    /// Although checks of it fail, but for [`TLS_CHECK`] and, with the agent,
    /// [`AGENT_BACKLOG_CHECK`].
    On,
    Off,
}

impl SpliceMode {
    /// Whether a workload may be spliced on an agent of this mode. Both ends of a
    /// connection have to; an agent's `Off` is final.
    pub fn allows(self, workload: Option<Self>, kernel: Fit) -> bool {
        if self == Self::Off || kernel == Fit::Unfit {
            return false;
        }
        match workload.unwrap_or(self) {
            Self::Auto => kernel == Fit::Sound,
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

/// The check without which nothing is spliced, whatever the operator wants: whether an
/// application that turns such a socket into one with TLS of the kernel's is refused, or its
/// data goes in the clear.
pub const TLS_CHECK: &str = "splice_ktls";

/// The check without which no socket of the agent's is spliced, whatever the operator wants:
/// whether it can find out what an application has not read.
pub const AGENT_BACKLOG_CHECK: &str = "splice_agent_backlog";

/// Whom the running kernel was found fit to splice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fitness {
    /// Applications with each other.
    pub applications: Fit,
    /// An application with the agent, too.
    pub agent: Fit,
}

/// How fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fit {
    /// A check fails that nobody overrides, or the kernel is not tested yet.
    #[default]
    Unfit,
    /// A check fails whose consequences an operator may accept.
    OnDemand,
    /// Every check passes.
    Sound,
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

    /// What keeps applications from being spliced with each other, whatever the operator
    /// wants.
    pub fn splice_vetoes(&self) -> Vec<&'static str> {
        self.vetoes(&[TLS_CHECK])
    }

    /// The same of applications with the agent.
    pub fn agent_vetoes(&self) -> Vec<&'static str> {
        self.vetoes(&[TLS_CHECK, AGENT_BACKLOG_CHECK])
    }

    /// Those that did not pass, be it that they were not tried.
    fn vetoes(&self, needed: &[&'static str]) -> Vec<&'static str> {
        let passed = |name| self.checks.iter().any(|check| check.name == name && check.passed);
        needed.iter().copied().filter(|name| !passed(*name)).collect()
    }

    /// What comes of it.
    pub fn fitness(&self) -> Fitness {
        let fit = |vetoes: &[&str], sound| match sound {
            _ if !vetoes.is_empty() => Fit::Unfit,
            true => Fit::Sound,
            false => Fit::OnDemand,
        };
        let passes = self.splice_passes();
        Fitness {
            applications: fit(&self.splice_vetoes(), passes),
            agent: fit(&self.agent_vetoes(), passes && self.agent_failures().is_empty()),
        }
    }

    fn splice_checks(&self) -> impl Iterator<Item = &SelfCheck> {
        self.checks.iter().filter(|check| check.kind == SelfCheckKind::Splice)
    }
}

#[cfg(test)]
mod tests {
    use super::{Fit::*, SpliceMode::*, *};

    fn check(kind: SelfCheckKind, name: &str, passed: bool) -> SelfCheck {
        let (name, detail) = (name.to_owned(), String::new());
        SelfCheck { name, kind, passed, detail, micros: 0 }
    }

    #[test]
    fn who_may_be_spliced() {
        for (agent, workload, kernel, expected) in [
            (Auto, None, Sound, true),
            (Auto, None, OnDemand, false),
            (Auto, Some(On), OnDemand, true),
            (Auto, Some(On), Unfit, false),
            (Auto, Some(Off), Sound, false),
            (On, None, OnDemand, true),
            (On, None, Unfit, false),
            (On, Some(On), Unfit, false),
            (On, Some(Auto), OnDemand, false),
            (On, Some(Off), Sound, false),
            (Off, Some(On), Sound, false),
        ] {
            let found = agent.allows(workload, kernel);
            assert_eq!(found, expected, "agent {agent:?}, workload {workload:?}, {kernel:?}");
        }
    }

    #[test]
    fn a_kernel_passes_only_what_was_tried() {
        let test = |checks: &[SelfCheck]| SelfTest { checks: checks.to_vec(), micros: 0 };
        let check = |kind, passed| check(kind, "", passed);
        let (feature, splice) = (SelfCheckKind::Feature, SelfCheckKind::Splice);
        assert!(!SelfTest::default().splice_passes());
        assert!(!test(&[check(feature, true)]).splice_passes());
        assert!(test(&[check(feature, false), check(splice, true)]).splice_passes());
        assert!(!test(&[check(splice, true), check(splice, false)]).splice_passes());
    }

    /// What a kernel is fit for that passes or fails these checks.
    fn fitness(tls: bool, both: bool, backlog: bool, other: bool) -> (Fit, Fit) {
        let (splice, agent) = (SelfCheckKind::Splice, SelfCheckKind::SpliceAgent);
        let checks = vec![
            check(splice, TLS_CHECK, tls),
            check(splice, "both", both),
            check(agent, AGENT_BACKLOG_CHECK, backlog),
            check(agent, "other", other),
        ];
        let Fitness { applications, agent } = SelfTest { checks, micros: 0 }.fitness();
        (applications, agent)
    }

    #[test]
    fn the_agent_is_spliced_only_where_its_queue_is_bounded() {
        assert_eq!(fitness(true, true, true, true), (Sound, Sound));
        assert_eq!(fitness(true, false, true, true), (OnDemand, OnDemand));
        assert_eq!(fitness(true, true, false, true), (Sound, Unfit));
        assert_eq!(fitness(true, true, true, false), (Sound, OnDemand));
    }

    #[test]
    fn nothing_is_spliced_where_tls_of_the_kernel_could_go_in_the_clear_or_nobody_has_looked() {
        for (both, other) in [(true, true), (false, true), (true, false)] {
            assert_eq!(fitness(false, both, true, other), (Unfit, Unfit));
        }
        let untried = SelfTest {
            checks: vec![
                check(SelfCheckKind::Splice, "both", true),
                check(SelfCheckKind::SpliceAgent, AGENT_BACKLOG_CHECK, true),
            ],
            micros: 0,
        };
        assert_eq!(untried.fitness(), Fitness::default());
        assert_eq!(untried.splice_vetoes(), [TLS_CHECK]);
        assert_eq!(SelfTest::default().fitness(), Fitness::default());
        assert_eq!(SelfTest::default().agent_vetoes(), [TLS_CHECK, AGENT_BACKLOG_CHECK]);
    }
}
