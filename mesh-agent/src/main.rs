//! The `mesh-agent` command.

fn main() -> std::process::ExitCode {
    mesh_agent::cli::main(std::env::args_os())
}
