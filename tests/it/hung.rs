//! An agent that is stopped, and not dead: its process keeps its listeners open.

use nix::sys::signal::Signal;
use tests::{
    Pod,
    conversation::{Conversation, end},
    eventually,
    mesh::SERVER_PORT,
};

use crate::kernel_path::Neighbours;

/// Connects, and says how that ended by its status.
const CONNECTS: &str =
    "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 60)";

/// Two pods on the node of an agent, one of node 2 that has no agent, and one that the mesh
/// does not know.
struct Hung {
    it: Neighbours,
    plain: Pod,
    outsider: Pod,
    /// Over the kernel path, from before.
    talk: Conversation,
    _echo: tests::Process,
}

impl Hung {
    /// Stops the agent, and waits until the kernel takes it for dead.
    fn start(name: &str, flags: &[&str]) -> Self {
        let it = Neighbours::start_with(name, "echo", &[&["--hung-after", "5s"], flags].concat());
        it.wait_for_services(2);
        let plain = it.bed.node(2).pod("plain").start();
        let outsider = it.bed.node(1).pod("outsider").start();
        let echo = plain.serves("echo", 7000);
        it.client.connects(plain.at(7000)).echoes("through the agent");
        let mut talk = it.talk();
        talk.echoes("before");
        it.agent.process().signal(Signal::SIGSTOP);
        // What is captured waits for the agent until it is given up.
        let address = plain.at(7000).ip().to_string();
        eventually("nobody is let wait for it any more", || {
            match it.client.run(&["python3", "-c", CONNECTS, &address, "7000"]).code() {
                Some(0) => Err("still"),
                _ => Ok(()),
            }
        });
        Self { it, plain, outsider, talk, _echo: echo }
    }

    /// What holds whatever becomes of the kernel path.
    fn refuses_what_is_the_agents(&mut self) {
        self.it.client.connects(self.plain.at(7000)).expect_refused();
        self.outsider.connects(self.it.server.at(SERVER_PORT)).expect_refused();
        self.talk.echoes("while it hangs");
    }

    /// Lets it go on, and waits until it is believed again.
    fn goes_on(&mut self) {
        self.it.agent.process().signal(Signal::SIGCONT);
        eventually("the agent is back", || {
            let mut talk = self.it.client.connects(self.plain.at(7000));
            talk.half_closes();
            match talk.rest().1 {
                end::CLOSED => Ok(()),
                other => Err(other),
            }
        });
        self.it.client.connects(self.plain.at(7000)).echoes("through the agent again");
        self.it.talk().echoes("by the kernel path again");
        self.talk.echoes("after");
        self.it.agent.logs(&["the agent was held up"]);
        assert!(self.it.verdict("outbound_no_agent") > 0, "{}", self.it.agent.status());
    }
}

#[test]
fn a_hung_agent_is_taken_for_dead_until_it_goes_on() {
    let mut hung = Hung::start("hung", &[]);
    hung.refuses_what_is_the_agents();
    hung.it.talk().expect_refused();
    hung.goes_on();
    assert!(hung.it.verdict("kernel_path_no_agent") > 0, "{}", hung.it.agent.status());
}

#[test]
fn verdicts_that_are_kept_without_an_agent_are_kept_while_it_hangs() {
    let mut hung = Hung::start("hung-keep", &["--agent-down", "keep"]);
    hung.refuses_what_is_the_agents();
    hung.it.talk().echoes("by a verdict that is kept");
    hung.goes_on();
}
