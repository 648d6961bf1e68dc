//! Scoped routes: which scope a request falls into, as scopes come, change and go.

use tests::{probe::Probe, twins::ADDRESSES};

use super::{
    script::{Check, Play, get, says, status},
    world::{SCOPE, answers},
};

fn of(scope: &str) -> Probe {
    get("/").header(&format!("x-scope: {scope}"))
}

fn the_scopes(name: &str, delta: bool) {
    let mut play = Play::start(name, delta);
    let world = &mut play.world;
    world.scoped("one", &format!("{}:80", ADDRESSES[0]));
    for (routes, text) in [("left", "left"), ("right", "right"), ("third", "third")] {
        world.routes(routes, answers(200, text));
    }
    world.scope("a", "red", "left");
    let nobody = || status(404);
    let expect = |red: Check<'static>, blue: Check<'static>| {
        [(of("red"), red), (of("blue"), blue), (of("none"), nobody()), (get("/"), nobody())]
    };
    play.step("one scope", &expect(says("left"), nobody()));
    play.world.scope("b", "blue", "right");
    play.step("another", &expect(says("left"), says("right")));
    play.world.routes("left", answers(200, "changed"));
    play.step("routes of one change", &expect(says("changed"), says("right")));
    play.world.scope("a", "red", "third");
    play.step("one has other routes", &expect(says("third"), says("right")));
    play.world.scope("a", "green", "third");
    play.step("one has another key", &expect(nobody(), says("right")));
    // One by one: told together, Envoy forgets a key that goes from one scope to another;
    // the agent does not.
    play.world.scope("b", "red", "right");
    play.step("the other as well", &expect(says("right"), nobody()));
    play.world.scope("a", "blue", "third");
    play.step("they have changed keys", &expect(says("right"), says("third")));

    play.world.scope("c", "red", "left");
    play.refused("two have one key", &[SCOPE], &expect(says("right"), says("third")));
    play.world.remove(SCOPE, "c");
    play.step("not any more", &expect(says("right"), says("third")));
    play.world.remove(SCOPE, "b");
    play.step("one goes", &expect(nobody(), says("third")));
    play.world.scope("c", "red", "left");
    play.step("another takes its key", &expect(says("changed"), says("third")));

    play.twins.control_plane.drops_streams();
    play.twins.settle().expect(&[]);
    play.step("on a new stream", &expect(says("changed"), says("third")));
    play.world.remove(SCOPE, "a");
    play.step("another goes", &expect(says("changed"), nobody()));
    play.world.remove(SCOPE, "c");
    play.step("all are gone", &expect(nobody(), nobody()));
    play.world.scope("a", "red", "left");
    play.step("one is back", &expect(says("changed"), nobody()));
    play.twins.control_plane.expect_no_violations();
}

#[test]
fn envoy_and_the_agent_find_the_same_scopes_in_state_of_the_world() {
    the_scopes("diff-scopes-sotw", false);
}

#[test]
fn envoy_and_the_agent_find_the_same_scopes_in_delta() {
    the_scopes("diff-scopes-delta", true);
}
