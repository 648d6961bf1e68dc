//! `mesh-agent unenroll`

use clap::Args;
use hyper::Method;

use super::{
    CliError, Output,
    client::Client,
    output::{self, OutputFormat},
};

/// Give a pod its plain networking back
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mesh-agent unenroll shop.web-1")]
pub(super) struct Unenroll {
    /// As `mesh-agent pods` shows it
    uid: String,

    #[command(flatten)]
    client: Client,
}

impl Unenroll {
    pub(super) fn run(self) -> Result<Output, CliError> {
        let name_byte = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
        if self.uid.is_empty() || !self.uid.bytes().all(name_byte) {
            let reason = format!("uid `{}` must be letters, digits, `.`, `-` or `_`", self.uid);
            return Err(CliError::Usage(reason));
        }
        let path = format!("/pods/{}", self.uid);
        let answer: serde_json::Value = self.client.ask(Method::DELETE, &path, Vec::new())?;
        Ok(match self.client.output {
            OutputFormat::Json => output::json(&answer)?,
            OutputFormat::Table => format!("un-enrolled {}\n", self.uid),
        }
        .into())
    }
}
