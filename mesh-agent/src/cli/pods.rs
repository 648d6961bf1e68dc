//! `mesh-agent pods`

use clap::Args;

use super::{
    CliError, Output,
    client::Client,
    enroll::addresses,
    output::{self, OutputFormat, Table},
};
use crate::{
    admin::{PodView, Timestamp},
    model::workload::MtlsMode,
};

/// List the enrolled pods
#[derive(Debug, Args)]
pub(super) struct Pods {
    #[command(flatten)]
    client: Client,
}

impl Pods {
    pub(super) fn run(self) -> Result<Output, CliError> {
        let pods: Vec<PodView> = self.client.get("/pods")?;
        Ok(match self.client.output {
            OutputFormat::Json => output::json(&pods)?,
            OutputFormat::Table => table(&pods, Timestamp::now()),
        }
        .into())
    }
}

fn table(pods: &[PodView], now: Timestamp) -> String {
    let mut table = Table::new([
        "UID",
        "NAME",
        "IDENTITY",
        "ADDRESSES",
        "MTLS",
        "CAPTURED",
        "CONNECTIONS",
        "AGE",
        "NETNS",
    ]);
    for pod in pods {
        let mtls = match pod.mtls {
            MtlsMode::Strict => "strict",
            MtlsMode::Permissive => "permissive",
        };
        table.row([
            pod.uid.to_string(),
            pod.name.clone(),
            pod.identity.to_string(),
            addresses(pod),
            mtls.to_owned(),
            if pod.captured { "yes" } else { "no" }.to_owned(),
            pod.connections.to_string(),
            output::age(pod.enrolled_at.seconds_until(now)),
            pod.netns.clone(),
        ]);
    }
    table.render()
}
