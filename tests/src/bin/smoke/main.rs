//! What works on this kernel, one line for each feature: `cargo xtask vm` runs it in its
//! guests. It can be run anywhere as root.
//!
//! ```text
//! feature: <name>\t<works | off | failed>\t<why>
//! ```
//! Exits with 0 if nothing failed.

mod features;

use std::{
    any::Any,
    panic::{self, AssertUnwindSafe},
    process::ExitCode,
};

/// How a feature does on this kernel, if it does not work.
pub(crate) enum Shortfall {
    /// The agent does without it here, and says why.
    Off(String),
    Failed(String),
}

/// Prints a feature's line. What `check` panics with is why it failed.
pub(crate) fn show(feature: &str, check: impl FnOnce() -> Result<(), Shortfall>) -> bool {
    let outcome = panic::catch_unwind(AssertUnwindSafe(check))
        .unwrap_or_else(|payload| Err(Shortfall::Failed(message(&*payload).to_owned())));
    let (state, why) = match &outcome {
        Ok(()) => ("works", ""),
        Err(Shortfall::Off(why)) => ("off", why.as_str()),
        Err(Shortfall::Failed(why)) => ("failed", why.as_str()),
    };
    let why = why.split_whitespace().collect::<Vec<_>>().join(" ");
    println!("feature: {feature}\t{state}\t{why}");
    !matches!(outcome, Err(Shortfall::Failed(_)))
}

fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("panicked")
}

fn main() -> ExitCode {
    if features::all() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
