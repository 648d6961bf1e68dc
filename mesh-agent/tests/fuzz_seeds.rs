//! Every fuzz target over its seeds: nothing that was once found comes back.

#[path = "../../fuzz/src/targets.rs"]
#[allow(unreachable_pub, clippy::type_complexity, reason = "the fuzzers share it")]
mod targets;

use std::{fs, path::Path};

#[test]
fn fuzz_targets_survive_their_seeds() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds");
    for (name, target) in targets::ALL {
        let directory = seeds.join(name);
        let entries = fs::read_dir(&directory).expect("a target has seeds");
        let mut files: Vec<_> = entries.map(|entry| entry.expect("a seed").path()).collect();
        files.sort();
        assert!(!files.is_empty(), "{name} has no seeds");
        for file in files {
            println!("{name}: {}", file.display());
            target(&fs::read(&file).expect("read a seed"));
        }
    }
}

#[test]
fn every_directory_of_seeds_has_its_target() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds");
    let mut found: Vec<_> = fs::read_dir(&seeds)
        .expect("the seeds")
        .map(|entry| entry.expect("a directory").file_name().to_string_lossy().into_owned())
        .collect();
    found.sort();
    let names: Vec<_> = targets::ALL.iter().map(|(name, _)| *name).collect();
    assert_eq!(found, names);
}
