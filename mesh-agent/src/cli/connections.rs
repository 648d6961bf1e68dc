//! `mesh-agent connections`

use clap::Args;

use super::{
    CliError, Output,
    client::Client,
    output::{self, OutputFormat, Table},
};
use crate::admin::{ConnectionView, Timestamp};

/// List the live connections: who, to whom, and which policy decided
#[derive(Debug, Args)]
#[command(after_help = "RECEIVED came from the side that opened the connection, SENT went to it.")]
pub(super) struct Connections {
    /// Only those of this pod
    #[arg(long, value_name = "UID")]
    workload: Option<String>,

    #[command(flatten)]
    client: Client,
}

impl Connections {
    pub(super) fn run(self) -> Result<Output, CliError> {
        let mut connections: Vec<ConnectionView> = self.client.get("/connections")?;
        if let Some(uid) = &self.workload {
            connections.retain(|connection| *connection.workload.0 == **uid);
        }
        Ok(match self.client.output {
            OutputFormat::Json => output::json(&connections)?,
            OutputFormat::Table => table(&connections, Timestamp::now()),
        }
        .into())
    }
}

fn table(connections: &[ConnectionView], now: Timestamp) -> String {
    let mut table = Table::new([
        "ID",
        "DIRECTION",
        "PROTOCOL",
        "AGE",
        "SOURCE",
        "SOURCE IDENTITY",
        "ORIGINAL DESTINATION",
        "DESTINATION IDENTITY",
        "UPSTREAM",
        "SECURITY",
        "POLICY",
        "RECEIVED",
        "SENT",
    ]);
    for connection in connections {
        table.row([
            connection.id.to_string(),
            connection.direction.clone(),
            connection.protocol.clone(),
            output::age(connection.started_at.seconds_until(now)),
            connection.source.to_string(),
            output::shown(connection.source_identity.as_ref()),
            connection.original_destination.to_string(),
            output::shown(connection.destination_identity.as_ref()),
            output::shown(connection.upstream),
            connection.connection_security_policy.clone(),
            output::shown(connection.policy.as_ref()),
            output::bytes(connection.bytes_received),
            output::bytes(connection.bytes_sent),
        ]);
    }
    table.render()
}
