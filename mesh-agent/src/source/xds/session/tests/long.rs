//! Names and versions that would take memory, log and screen.

use super::{messages::tcp_listener, *};

const MOST: usize = 4096;

impl Bench {
    /// What is refused now, of all types.
    fn refusing(&self) -> Vec<String> {
        let types = self.session.status();
        types.iter().flat_map(|of| of.refused.iter().flat_map(|r| r.reasons.clone())).collect()
    }

    fn longest_shown(&self) -> usize {
        let types = self.session.status();
        let shown = types.iter().flat_map(|of| {
            let warming = of.warming.iter().map(|w| w.name.len().max(w.waits_for.len()));
            warming.chain(of.awaited.iter().map(|name| name.len())).chain([of.version.len()])
        });
        shown.max().unwrap_or_default()
    }
}

#[test]
fn a_version_that_each_resource_would_have_a_copy_of_is_refused_for_all() {
    let mut bench = Bench::new(Variant::Sotw);
    bench.says(CDS, "1", "c1", vec![cluster("a")]);
    let many = (0..100).map(|i| cluster(&format!("c{i}"))).collect();
    bench.says(CDS, &"v".repeat(MOST + 1), "c2", many);
    assert_eq!(bench.refusing(), ["clusters: version_info: is longer than 4096 bytes"]);
    assert!(bench.longest_shown() < 100);
    let accepted = bench.session.status().iter().map(|of| of.accepted).sum::<usize>();
    assert_eq!(accepted, 1, "what was accepted before stays, and nothing else comes");
    bench.says(CDS, &"v".repeat(MOST), "c3", vec![cluster("b")]);
    assert_eq!(bench.refusing(), [""; 0]);
    assert_eq!(bench.longest_shown(), MOST);
}

#[test]
fn a_delta_servers_long_versions_are_refused_one_by_one() {
    let mut bench = Bench::new(Variant::Delta);
    let mut told = Bench::told(CDS, "c1", &[("a", cluster("a")), ("b", cluster("b"))], &[]);
    told.resources[0].version = "v".repeat(MOST + 1);
    bench.session.on_delta(0, told, bench.now);
    assert_eq!(bench.refusing(), ["clusters[a].version: is longer than 4096 bytes"]);
    let mut told = Bench::told(CDS, "c2", &[("a", cluster("a"))], &[]);
    told.system_version_info = "v".repeat(MOST + 1);
    bench.session.on_delta(0, told, bench.now);
    bench.apply();
    assert_eq!(bench.refusing(), ["clusters: system_version_info: is longer than 4096 bytes"]);
    assert_eq!(bench.cell.load().label, "");
    bench.tells(CDS, "c3", &[], &[]);
    assert_eq!(bench.refusing(), [""; 0]);
}

#[test]
fn names_that_long_are_refused_and_not_asked_for() {
    let long = "n".repeat(MOST + 1);
    for variant in [Variant::Sotw, Variant::Delta] {
        let mut bench = Bench::new(variant);
        let shorter = "n".repeat(MOST);
        // Each is named by what comes first; the second one names what is longer.
        for (type_url, good, bad) in [
            (CDS, (shorter.as_str(), cluster(&shorter)), (long.as_str(), cluster(&long))),
            (LDS, ("l", tcp_listener("l", 1, &shorter)), ("long", tcp_listener("long", 2, &long))),
            (LDS, ("h", http_listener("h", 3, &shorter)), ("to", http_listener("to", 4, &long))),
        ] {
            let resources = [good, bad];
            match variant {
                Variant::Sotw => {
                    let resources = resources.into_iter().map(|(_, any)| any).collect();
                    bench.says(type_url, "1", "n", resources);
                }
                Variant::Delta => bench.tells(type_url, "n", &resources, &[]),
            }
            let refused = bench.refusing();
            assert!(refused.iter().all(|r| r.contains("is longer than 4096 bytes")), "{refused:?}");
            assert!(!refused.is_empty(), "{type_url} is not refused");
        }
        assert_eq!(bench.longest_shown(), MOST + "endpoints[]".len());
        while let Some(request) = bench.session.poll_request(0, bench.now) {
            let names = match request {
                Request::Sotw(request) => request.resource_names,
                Request::Delta(request) => request.resource_names_subscribe,
            };
            assert!(names.iter().all(|name| name.len() <= MOST), "asks for a long name");
        }
    }
}
