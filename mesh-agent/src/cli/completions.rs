//! `mesh-agent completions`

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, Output};

/// Print completions for a shell
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesh-agent completions bash > /etc/bash_completion.d/mesh-agent
  source <(mesh-agent completions zsh)")]
pub(super) struct Completions {
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self) -> Output {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "mesh-agent", &mut script);
        String::from_utf8_lossy(&script).into_owned().into()
    }
}
