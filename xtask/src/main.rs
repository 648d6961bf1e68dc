//! The project's commands: `cargo xtask setup | ebpf | demo | test | tidy | ci`.

mod ebpf;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's commands")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the BPF object that the agent embeds
    Ebpf,
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().task {
        Task::Ebpf => {
            let object = ebpf::build()?;
            println!("{}", object.display());
        }
    }
    Ok(())
}
