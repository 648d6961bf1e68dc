use super::{Sample, Settings, html, markdown, row, tables, targets};
use crate::compare::{machine::Machine, report::Report, sample::Figure};

/// A sample of a second with `requests` answered.
fn sample(lane: &str, round: u32, requests: u64, disturbed: bool) -> Sample {
    Sample {
        settings: Settings::Equal,
        lane: lane.to_owned(),
        load: "http1-16".to_owned(),
        round,
        attempt: 1,
        disturbed,
        seconds: 1.0,
        requests,
        errors: 0,
        error: None,
        bytes: 0,
        latency_us: vec![(50.0, 100), (99.0, 200)],
        bed_cpu_us: 1e6,
        mesh_cpu_us: 0.0,
        machine_cpu_us: 1e6,
        foreign: 0.0,
    }
}

/// Requests without a mesh and by the kernel path, and whether they were disturbed.
type Round = [(u64, bool); 2];

/// Of no mesh and of the kernel path on one node: requests, and whether disturbed, by round.
fn rounds(of: &[Round]) -> Vec<Sample> {
    let both = |(round, [plain, mesh]): (usize, &Round)| {
        let round = u32::try_from(round).unwrap();
        [
            sample("no-mesh/same-node", round, plain.0, plain.1),
            sample("mesh-l4/same-node", round, mesh.0, mesh.1),
        ]
    };
    of.iter().enumerate().flat_map(both).collect()
}

/// Ratio, pairs, whether disturbed, of the kernel path.
fn ratio(of: &[Round]) -> (f64, usize, bool) {
    let samples = rounds(of);
    let of = |lane: &str| samples.iter().filter(|s| s.lane == lane).collect::<Vec<_>>();
    let row = row("mesh-l4/same-node", &of("mesh-l4/same-node"), &of("no-mesh/same-node"));
    (row.ratio, row.pairs, row.pairs_disturbed)
}

#[test]
fn a_ratio_is_of_two_calm_samples() {
    let (calm, disturbed) = (false, true);
    // A disturbed baseline, and then a disturbed lane, do not count beside a calm pair.
    let one = [(100, calm), (90, calm)];
    assert_eq!(ratio(&[[(50, disturbed), (90, calm)], one]), (0.9, 1, false));
    assert_eq!(ratio(&[[(100, calm), (10, disturbed)], one]), (0.9, 1, false));
    // Where there is no calm pair, they count and are told of.
    assert_eq!(ratio(&[[(50, disturbed), (90, calm)]]), (1.8, 1, true));
    let crossed = [[(100, disturbed), (80, calm)], [(100, calm), (60, disturbed)]];
    assert_eq!(ratio(&crossed), (0.7, 2, true));
    // A round without a baseline is no pair.
    let alone = sample("mesh-l4/same-node", 3, 90, calm);
    let row = row("mesh-l4/same-node", &[&alone], &[]);
    assert!(row.ratio.is_nan() && row.pairs == 0 && !row.pairs_disturbed && row.rounds == 1);
}

/// All forms of the report of `samples`.
fn forms(samples: &[Sample]) -> [String; 3] {
    let samples: Vec<&Sample> = samples.iter().collect();
    let tables = tables(&samples);
    let report = Report {
        machine: &Machine::default(),
        targets: targets::all(&tables, &[]),
        alike: Some(super::Part::new(Settings::Equal, &samples, Vec::new())),
        as_shipped: None,
        figures: &[] as &[Figure],
        failures: Vec::new(),
    };
    let json = serde_json::to_string(&report).unwrap();
    [markdown::page(&report), html::page(&report), json]
}

#[test]
fn every_form_says_what_a_verdict_stands_on() {
    let [markdown, html, json] = forms(&rounds(&[[(50, true), (90, false)]]));
    assert!(markdown.contains("| reached, by one disturbed round |"), "{markdown}");
    assert!(markdown.contains("| 1 | 1 disturbed | 0 |"), "{markdown}");
    assert!(html.contains(">reached, by one disturbed round</td>"), "{html}");
    assert!(html.contains("<td>1</td><td>1 disturbed</td><td>0</td>"), "{html}");
    assert!(json.contains(r#""reached":true,"rounds":1,"disturbed":true"#), "{json}");
    assert!(json.contains(r#""pairs":1,"pairs_disturbed":true"#), "{json}");

    let calm = [(100, false), (90, false)];
    let [markdown, html, _] = forms(&rounds(&[calm]));
    assert!(markdown.contains("| **missed**, by a single round |"), "{markdown}");
    assert!(html.contains(">missed, by a single round</td>"), "{html}");
    let [markdown, html, json] = forms(&rounds(&[calm, calm]));
    assert!(markdown.contains("| **missed** |") && !markdown.contains("by a single"), "{markdown}");
    assert!(html.contains(">missed</td>") && !html.contains("by disturbed"), "{html}");
    assert!(json.contains(r#""rounds":2,"disturbed":false"#), "{json}");
}
