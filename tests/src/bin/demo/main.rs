//! `cargo xtask demo`: the mesh at work, step by step, each one checked.

mod figure;
mod story;

use std::{
    panic::{self, AssertUnwindSafe},
    process::ExitCode,
};

const HELP: &str = "usage: demo [--keep | --down]\n";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => play(false),
        ["--keep"] => play(true),
        ["--down"] => {
            down();
            ExitCode::SUCCESS
        }
        _ => {
            eprint!("{HELP}");
            ExitCode::from(2)
        }
    }
}

fn down() {
    let removed = tests::remove_kept();
    if removed.is_empty() {
        println!("nothing is up");
    }
    for run in removed {
        println!("removed {run}: processes, namespaces, cgroups, BPF pins, files");
    }
}

fn play(keep: bool) -> ExitCode {
    if !tests::kept_runs().is_empty() {
        println!("an earlier demo is still up: removing it first");
        down();
    }
    // What a check says when it fails is the message; a backtrace would bury it.
    panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let message = payload
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| payload.downcast_ref::<&str>().copied())
            .unwrap_or("failed");
        eprintln!(
            "  ✗ {message}\n    at {}",
            info.location().map_or_else(String::new, |l| l.to_string())
        );
    }));
    match panic::catch_unwind(AssertUnwindSafe(|| story::tell(keep))) {
        Ok(()) => {
            println!("\n✓ everything holds");
            ExitCode::SUCCESS
        }
        Err(_) => {
            eprintln!("\n✗ the demo FAILED: see above; everything it made was removed");
            ExitCode::FAILURE
        }
    }
}
