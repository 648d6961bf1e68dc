//! `cargo xtask demo`: the mesh at work, step by step, each one checked.

mod figure;
mod story;

use std::{
    any::Any,
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
        eprintln!(
            "  ✗ {}\n    at {}",
            message(info.payload()),
            info.location().map_or_else(String::new, |l| l.to_string())
        );
    }));
    match panic::catch_unwind(AssertUnwindSafe(|| story::tell(keep))) {
        Ok(()) => {
            println!("\n✓ everything holds");
            ExitCode::SUCCESS
        }
        Err(payload) => {
            // Once more, below the logs that the bed printed on its way out.
            let what = message(&*payload).lines().next().unwrap_or_default();
            eprintln!("\n✗ the demo FAILED: {what}\n  see above; everything it made was removed");
            ExitCode::FAILURE
        }
    }
}

/// What a check said when it failed.
fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("failed")
}
