//! `mesh-agent ca init`

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand, ValueHint};

use super::{CliError, Output};
use crate::{
    config::settings::DEFAULT_TRUST_DOMAIN, identity::DevelopmentCa, model::identity::TrustDomain,
};

/// Make the root of the development CA
#[derive(Debug, Subcommand)]
pub(super) enum Ca {
    Init(Init),
}

/// Make a root certificate and key; all nodes of one mesh need the same
#[derive(Debug, Args)]
#[command(after_help = "\
Writes root.pem and root-key.pem (mode 0600). Roots that are there are left alone:
that is an error.

Examples:
  mesh-agent ca init --dir /var/lib/mesh/ca --trust-domain cluster.local")]
pub(super) struct Init {
    /// Made if it is not there
    #[arg(long, value_name = "PATH", value_hint = ValueHint::DirPath)]
    dir: PathBuf,

    /// The trust domain it vouches for
    #[arg(long, value_name = "DOMAIN", env = "MESH_TRUST_DOMAIN",
          default_value = DEFAULT_TRUST_DOMAIN)]
    trust_domain: TrustDomain,
}

impl Ca {
    pub(super) fn run(self) -> Result<Output, CliError> {
        let Self::Init(Init { dir, trust_domain }) = self;
        DevelopmentCa::create(&dir, &trust_domain)
            .with_context(|| format!("development CA in {}", dir.display()))?;
        let dir = dir.display();
        Ok(format!("{dir}/root.pem and {dir}/root-key.pem vouch for {trust_domain}\n").into())
    }
}
