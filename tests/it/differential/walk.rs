//! A random walk over a small universe of resources.
//!
//! `MESH_WALK_SEED` repeats one that failed, `MESH_WALK_STEPS` makes it longer.

use std::{
    env,
    net::SocketAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};
use tests::{
    probe::Probe,
    twins::{ADDRESSES, WEB_PORT, WHO_PORT},
};

use super::{
    script::Play,
    world::{CLUSTER, ENDPOINTS, LISTENER, ROUTES, all_to, answers, assignment},
};

const STEPS: u64 = 110;
/// The clusters whose endpoints are nginx, and the one whose are not.
const CLUSTERS: [&str; 3] = ["red", "green", "blue"];
const OPAQUE: &str = "opaque";
/// Each listener has an address, and the routes that it asks for by RDS.
const LISTENERS: [(&str, &str); 3] = [("one", "first"), ("two", "second"), ("three", "third")];

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

struct Walk {
    play: Play,
    dice: Dice,
}

fn address(listener: usize) -> String {
    format!("{}:80", ADDRESSES[listener])
}

fn opaque() -> String {
    format!("{}:9000", ADDRESSES[3])
}

impl Walk {
    /// Some of the backends, one time in eight none of them.
    fn endpoints(&mut self, cluster: &str) -> Vec<SocketAddr> {
        let port = if cluster == OPAQUE { WHO_PORT } else { WEB_PORT };
        let set = if self.dice.one_in(8) { 0 } else { 1 + self.dice.below(7) };
        let all = self.play.twins.backends.iter().enumerate();
        all.filter(|(i, _)| set >> i & 1 == 1).map(|(_, pod)| pod.at(port)).collect()
    }

    fn has(&self, kind: &'static str, name: &str) -> bool {
        self.play.world.0.contains_key(&(kind, name.to_owned()))
    }

    fn any_cluster(&mut self) -> &'static str {
        self.dice.pick(&[CLUSTERS[0], CLUSTERS[1], CLUSTERS[2], OPAQUE])
    }

    fn leads_to(&self, cluster: &str) -> bool {
        let names = format!("\"cluster\":\"{cluster}\"");
        let kinds = [LISTENER, ROUTES];
        let resources = self.play.world.only(&kinds);
        resources.iter().any(|resource| resource.to_string().contains(&names))
    }

    fn some_routes(&mut self) -> Value {
        let (a, b) = (self.dice.pick(&CLUSTERS), self.dice.pick(&CLUSTERS));
        let number = 200 + self.dice.below(99) as u16;
        let to = |path: &str, cluster: &str| json!({ "match": { "prefix": path }, "route": { "cluster": cluster } });
        let header = json!([{ "name": "x-way", "string_match": { "exact": "left" } }]);
        match self.dice.below(5) {
            0 => answers(number, "by itself"),
            1 => all_to(a),
            2 => json!([to("/a", a), to("/", b)]),
            3 => json!([to("/a", a)]),
            _ => json!([
                { "match": { "prefix": "/", "headers": header }, "route": { "cluster": a } },
                to("/", b),
            ]),
        }
    }

    fn put_cluster(&mut self) -> String {
        let name = self.any_cluster();
        let endpoints = self.endpoints(name);
        if self.dice.one_in(3) {
            self.play.world.remove(ENDPOINTS, name).fixed(name, &endpoints);
            return format!("{name} is static: {endpoints:?}");
        }
        self.play.world.eds(name, &endpoints);
        format!("{name} by EDS: {endpoints:?}")
    }

    fn put_listener(&mut self) -> String {
        if self.dice.one_in(4) {
            self.play.world.tcp(OPAQUE, &opaque(), OPAQUE);
            return "the opaque listener".to_owned();
        }
        let at = self.dice.below(LISTENERS.len());
        let (name, routes) = LISTENERS[at];
        if self.dice.one_in(3) {
            // Routes of a listener's own have to lead somewhere.
            let routes = match CLUSTERS.into_iter().find(|cluster| self.has(CLUSTER, cluster)) {
                Some(cluster) => all_to(cluster),
                None => answers(200, "nobody is there"),
            };
            self.play.world.remove(ROUTES, LISTENERS[at].1);
            self.play.world.inline(name, &address(at), routes.clone());
            return format!("{name} with its own: {routes}");
        }
        if !self.has(ROUTES, routes) {
            let table = self.some_routes();
            self.play.world.routes(routes, table);
        }
        self.play.world.by_rds(name, &address(at), routes);
        format!("{name} by RDS")
    }

    /// One step; what it was.
    fn change(&mut self) -> String {
        match self.dice.below(10) {
            0 | 1 => {
                let name = self.any_cluster();
                if !self.has(ENDPOINTS, name) {
                    return self.put_cluster();
                }
                let endpoints = self.endpoints(name);
                self.play.world.put(ENDPOINTS, name, assignment(&endpoints));
                format!("endpoints of {name}: {endpoints:?}")
            }
            2 => self.put_cluster(),
            3 => {
                // What a route leads to goes after a while only: the script does that.
                let name = self.any_cluster();
                if self.leads_to(name) {
                    return self.put_cluster();
                }
                self.play.world.remove(CLUSTER, name).remove(ENDPOINTS, name);
                format!("{name} goes")
            }
            4 | 5 => {
                let routes = self.dice.pick(&LISTENERS).1;
                if !self.has(ROUTES, routes) {
                    return self.put_listener();
                }
                let table = self.some_routes();
                self.play.world.routes(routes, table.clone());
                format!("routes {routes}: {table}")
            }
            6 | 7 => self.put_listener(),
            8 => {
                let (name, routes) = self.dice.pick(&LISTENERS);
                self.play.world.remove(LISTENER, name).remove(ROUTES, routes);
                format!("{name} goes")
            }
            _ => {
                self.play.world.remove(LISTENER, OPAQUE);
                "the opaque listener goes".to_owned()
            }
        }
    }

    /// A resource that nobody can take, and its type.
    fn spoil(&mut self) -> &'static str {
        match self.dice.below(3) {
            0 => {
                let at = (0..3).find(|at| self.has(LISTENER, LISTENERS[*at].0));
                let Some(at) = at else { return self.bad_cluster() };
                self.play.world.inline("clash", &address(at), answers(500, "never"));
                LISTENER
            }
            1 => {
                let routes = LISTENERS
                    .iter()
                    .find(|(name, routes)| self.has(ROUTES, routes) && self.has(LISTENER, name));
                let Some((_, routes)) = routes else { return self.bad_cluster() };
                let path = json!({ "safe_regex": { "regex": "[" } });
                let route = json!({ "match": path, "direct_response": { "status": 500 } });
                self.play.world.routes(routes, json!([route]));
                ROUTES
            }
            _ => self.bad_cluster(),
        }
    }

    fn bad_cluster(&mut self) -> &'static str {
        self.play.world.fixed("bad", &[]);
        self.play.world.at(CLUSTER, "bad")["connect_timeout"] = "-1s".into();
        CLUSTER
    }

    fn compare(&mut self, what: &str) {
        let mut probes = vec![Probe::tcp(&opaque()).times(4)];
        for at in 0..LISTENERS.len() {
            let of = address(at);
            probes.push(Probe::get(&of, "/").times(4));
            probes.push(Probe::get(&of, "/a").times(4));
            probes.push(Probe::get(&of, "/").header("x-way: left").times(4));
        }
        self.play.twins.agree(what, &probes, |_| Ok(()));
    }

    fn step(&mut self, number: u64) {
        match self.dice.below(12) {
            0 => {
                let good = self.play.world.clone();
                let kind = self.spoil();
                println!("{number}: a bad {kind}");
                self.play.push().expect(&[kind]);
                self.compare(&format!("{number}: a bad {kind}"));
                self.play.world = good;
                self.play.push().expect(&[]);
            }
            1 => {
                println!("{number}: the stream is dropped");
                self.play.twins.control_plane.drops_streams();
                self.play.twins.settle().expect(&[]);
            }
            2 if self.dice.one_in(3) => {
                println!("{number}: another control plane");
                self.play.twins.restart_control_plane(&format!("salt {number}"));
            }
            _ => {
                // Now and then several changes at once.
                let changes: Vec<String> =
                    (0..=self.dice.below(8) / 6).map(|_| self.change()).collect();
                println!("{number}: {}", changes.join("; "));
                self.play.push().expect(&[]);
            }
        }
        self.compare(&format!("step {number}"));
    }
}

fn from_environment(name: &str) -> Option<u64> {
    let value = env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|e| panic!("{name}={value}: {e}")))
}

fn a_walk(name: &str, delta: bool) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = from_environment("MESH_WALK_SEED").unwrap_or(now.as_nanos() as u64);
    println!("MESH_WALK_SEED={seed}");
    let mut walk = Walk { play: Play::start(name, delta), dice: Dice(seed) };
    for number in 0..from_environment("MESH_WALK_STEPS").unwrap_or(STEPS) {
        walk.step(number);
    }
    walk.play.twins.control_plane.expect_no_violations();
}

#[test]
fn a_random_walk_leads_envoy_and_the_agent_to_the_same_in_state_of_the_world() {
    a_walk("diff-walk-sotw", false);
}

#[test]
fn a_random_walk_leads_envoy_and_the_agent_to_the_same_in_delta() {
    a_walk("diff-walk-delta", true);
}
