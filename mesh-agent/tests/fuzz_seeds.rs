//! Every fuzz target over its seeds: nothing that was once found comes back.

#[path = "../../fuzz/src/targets.rs"]
#[allow(unreachable_pub, clippy::type_complexity, reason = "the fuzzers share it")]
mod targets;

use std::{
    fs, panic,
    path::Path,
    time::{Duration, Instant},
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

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

/// Seeds that were changed here and there, for a second each, or for
/// `MESH_FUZZ_SECONDS`.
#[test]
fn fuzz_targets_survive_what_is_like_their_seeds() {
    let seconds = std::env::var("MESH_FUZZ_SECONDS").map_or(1, |text| text.parse().unwrap());
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds");
    for (name, target) in targets::ALL {
        let entries = fs::read_dir(seeds.join(name)).expect("a target has seeds");
        let read = |entry: std::io::Result<fs::DirEntry>| fs::read(entry.unwrap().path()).unwrap();
        let corpus: Vec<Vec<u8>> = entries.map(read).collect();
        let first: u64 = rand::random();
        let (begin, mut tried) = (Instant::now(), 0);
        while begin.elapsed() < Duration::from_secs(seconds) {
            let mut dice = StdRng::seed_from_u64(first.wrapping_add(tried));
            let data = mutant(&corpus, &mut dice);
            let began = Instant::now();
            let survived = panic::catch_unwind(|| target(&data));
            assert!(survived.is_ok(), "{name}: {data:02x?}");
            let took = began.elapsed();
            assert!(took < Duration::from_secs(5), "{name} took {took:?}: {data:02x?}");
            tried += 1;
        }
        println!("{name}: {tried} in {:?}", begin.elapsed());
        assert!(tried > 10, "{name}");
    }
}

fn mutant(corpus: &[Vec<u8>], dice: &mut StdRng) -> Vec<u8> {
    let mut data = corpus[dice.random_range(0..corpus.len())].clone();
    for _ in 0..dice.random_range(1..6) {
        let at = dice.random_range(0..=data.len());
        match dice.random_range(0..7) {
            0 => data.truncate(at),
            1 => data.insert(at, dice.random()),
            // The largest varint, and a length that no message has.
            2 => drop(data.splice(at..at, [0xff; 9].into_iter().chain([0x01]))),
            3 if at < data.len() => data[at] = dice.random(),
            4 if at < data.len() => data[at] ^= 1 << dice.random_range(0..8),
            5 => {
                let end = dice.random_range(at..=data.len());
                let part = data[at..end].to_vec();
                let to = dice.random_range(0..=data.len());
                let times = dice.random_range(1..20);
                drop(data.splice(to..to, part.repeat(times).into_iter().take(1 << 16)));
            }
            _ => {
                let other = &corpus[dice.random_range(0..corpus.len())];
                let from = dice.random_range(0..=other.len());
                drop(data.splice(at.., other[from..].iter().copied()));
            }
        }
    }
    data
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
