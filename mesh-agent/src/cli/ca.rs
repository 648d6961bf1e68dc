//! `mesh-agent ca init`

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueHint};

use super::{CliError, Output};
use crate::{config::settings::DEFAULT_TRUST_DOMAIN, model::identity::TrustDomain};

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
        create(&dir, &trust_domain)?;
        let dir = dir.display();
        Ok(format!("{dir}/root.pem and {dir}/root-key.pem vouch for {trust_domain}\n").into())
    }
}

fn create(dir: &Path, trust_domain: &TrustDomain) -> anyhow::Result<()> {
    // WIRE: crate::identity::ca::DevelopmentCa::create(dir, trust_domain).map(drop)?
    anyhow::bail!("{}: this build has no development CA for {trust_domain}", dir.display())
}
