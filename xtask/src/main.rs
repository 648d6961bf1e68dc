//! The project's commands: `cargo xtask setup | ebpf | demo | test | tidy | ci`.

fn main() {}
