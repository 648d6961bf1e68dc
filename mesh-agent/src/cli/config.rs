//! `mesh-agent config dump` and `mesh-agent config validate`

use std::{collections::HashSet, path::PathBuf};

use clap::{Args, Subcommand, ValueHint};
use serde_json::{Value, json};

use super::{
    CliError, Output,
    client::Client,
    output::{self, OutputFormat, Table},
};
use crate::{admin::SnapshotView, observe::printable::printable, snapshot::SnapshotCell, source};

/// Look at the configuration in force, or check one before it is
#[derive(Debug, Subcommand)]
pub(super) enum Config {
    Dump(Dump),
    Validate(Validate),
}

/// Show what is applied, with its version; all of it with --output json
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesh-agent config dump
  mesh-agent config dump --output json | jq '.clusters[\"web\"]'")]
pub(super) struct Dump {
    #[command(flatten)]
    client: Client,
}

/// Check a directory of resources, or a bootstrap file, as the agent would, without an agent
#[derive(Debug, Args)]
#[command(after_help = "\
Exit codes:
  0  the agent would apply it
  2  the agent would refuse it: every reason is listed by full field path")]
pub(super) struct Validate {
    /// What `run --config-dir` would watch, or the file that `run --bootstrap` would read
    #[arg(value_name = "PATH", value_hint = ValueHint::AnyPath)]
    path: PathBuf,

    /// How to show the result
    #[arg(long, short, value_enum, default_value_t)]
    output: OutputFormat,
}

impl Config {
    pub(super) fn run(self) -> Result<Output, CliError> {
        match self {
            Self::Dump(command) => command.run(),
            Self::Validate(command) => command.run(),
        }
    }
}

impl Dump {
    fn run(self) -> Result<Output, CliError> {
        let dump: Value = self.client.get("/config_dump")?;
        Ok(match self.client.output {
            OutputFormat::Json => output::json(&dump)?,
            OutputFormat::Table => summary(&dump),
        }
        .into())
    }
}

/// One line a resource. Works on JSON so that an agent of another version can be asked.
fn summary(dump: &Value) -> String {
    let text = |value: &Value| match value {
        Value::Null => String::new(),
        Value::String(s) => s.clone(),
        other => other.to_string(),
    };
    let mut head = format!("version {}", text(&dump["version"]));
    for (name, value) in [("label", &dump["label"]), ("applied at", &dump["applied_at"])] {
        if !text(value).is_empty() {
            head.push_str(&format!(", {name} {}", text(value)));
        }
    }
    let mut table = Table::new(["KIND", "NAME", "VERSION", "UPDATED", "DETAIL"]);
    let count = |value: &Value| value.as_array().map_or(0, Vec::len);
    let version = |key: &str, name: &str| {
        let version = &dump["versions"][key][name];
        (text(&version["version_info"]), text(&version["last_updated"]))
    };
    let types = dump["xds"]["types"].as_array().into_iter().flatten();
    let withdrawn: HashSet<(&str, &str)> = types
        .filter_map(|of| Some((of["kind"].as_str()?, of["withdrawn"].as_array()?)))
        .flat_map(|(kind, names)| names.iter().map(move |name| (kind, name.as_str())))
        .filter_map(|(kind, name)| Some((kind, name?)))
        .collect();
    for (kind, key) in [
        ("listener", "listeners"),
        ("route", "routes"),
        ("cluster", "clusters"),
        ("endpoints", "endpoints"),
        ("secret", "secrets"),
        ("filter", "extension_configs"),
        ("scope", "scoped_routes"),
    ] {
        for (name, value) in dump[key].as_object().into_iter().flatten() {
            let detail = match kind {
                "listener" => format!(
                    "{} {}, {} filter chains",
                    text(&value["direction"]),
                    text(&value["address"]),
                    count(&value["filter_chains"])
                        + usize::from(value["default_filter_chain"].is_object()),
                ),
                "route" => format!("{} virtual hosts", count(&value["virtual_hosts"])),
                "cluster" => match variant(&value["discovery"]).as_str() {
                    // Nothing to balance: the address is the connection's own.
                    "original_destination" => "original_destination".to_owned(),
                    discovery => format!("{discovery}, {}", variant(&value["lb_policy"])),
                },
                "filter" => text(&value["type_name"]),
                "scope" => match value["routes"]["rds"].as_str() {
                    Some(routes) => routes.to_owned(),
                    None => "routes of its own".to_owned(),
                },
                "secret" => variant(&value["kind"]),
                _ => {
                    let localities = value["localities"].as_array().into_iter().flatten();
                    let endpoints = localities.map(|locality| count(&locality["endpoints"]));
                    format!("{} endpoints", endpoints.sum::<usize>())
                }
            };
            let detail = match withdrawn.contains(&(key, name.as_str())) {
                true => format!("{detail}; the server has it no longer"),
                false => detail,
            };
            let (of, at) = version(key, name);
            table.row([kind.to_owned(), name.clone(), of, at, detail]);
        }
    }
    // What is part of something else, and comes by itself.
    for (kind, key, part) in
        [("host", "virtual_hosts", "of its route"), ("layer", "runtime", "of the runtime")]
    {
        for name in dump["versions"][key].as_object().into_iter().flatten().map(|(name, _)| name) {
            let (of, at) = version(key, name);
            table.row([kind.to_owned(), name.clone(), of, at, part.to_owned()]);
        }
    }
    for (key, entry) in dump["runtime"]["entries"].as_object().into_iter().flatten() {
        let value = match &entry["value"]["denominator"] {
            Value::Null => text(&entry["value"]),
            denominator => format!("{}/{}", text(&entry["value"]["numerator"]), text(denominator)),
        };
        let detail = format!("{value}, from layer {}", text(&entry["layer"]));
        let (of, at) = (String::new(), String::new());
        table.row(["runtime".to_owned(), key.clone(), of, at, detail]);
    }
    let mut shown = format!("{}\n{}", printable(&head), table.render());
    if let Some(reasons) = dump["last_rejected"]["reasons"].as_array() {
        shown.push_str(&format!("\nrefused at {}:\n", text(&dump["last_rejected"]["at"])));
        for reason in reasons {
            shown.push_str(&format!("  {}\n", printable(&text(reason))));
        }
    }
    shown
}

/// The name of an enum's variant in serde's usual form.
fn variant(value: &Value) -> String {
    match value {
        Value::Object(map) => map.keys().next().cloned().unwrap_or_default(),
        Value::String(name) => name.clone(),
        _ => String::new(),
    }
}

impl Validate {
    fn run(self) -> Result<Output, CliError> {
        let cell = SnapshotCell::default();
        let is_bootstrap = self.path.is_file();
        let judged = match is_bootstrap {
            true => source::read_bootstrap(&self.path).map(drop),
            false => source::validate(&self.path)
                .and_then(|delivery| cell.replace(delivery.resources, delivery.label))
                .map(drop),
        };
        let (reasons, code) = match judged {
            Ok(()) => (Vec::new(), 0),
            Err(rejected) => (rejected.iter().map(ToString::to_string).collect::<Vec<_>>(), 2),
        };
        let found = SnapshotView::from(&*cell.load());
        let text = match self.output {
            OutputFormat::Json => {
                output::json(&json!({"valid": code == 0, "found": found, "reasons": reasons}))?
            }
            OutputFormat::Table if code == 0 && is_bootstrap => {
                format!("{} is a good bootstrap\n", self.path.display())
            }
            OutputFormat::Table if code == 0 => format!(
                "{} is good: {} listeners, {} routes, {} clusters, {} endpoints\n",
                self.path.display(),
                found.listeners,
                found.routes,
                found.clusters,
                found.endpoints
            ),
            OutputFormat::Table => {
                let heading = format!("{} would be refused:\n", self.path.display());
                let line = |text, reason: &String| format!("{text}  {}\n", printable(reason));
                reasons.iter().fold(heading, line)
            }
        };
        Ok(Output { text, code })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_names_every_resource() {
        let dump = json!({
            "version": 3, "label": "abc", "applied_at": "2026-01-02T03:04:05Z",
            "listeners": {"out": {"direction": "outbound", "address": "10.0.0.1:80",
                                  "filter_chains": [{}], "default_filter_chain": null}},
            "routes": {"web": {"virtual_hosts": [{}, {}]}},
            "clusters": {"app": {"discovery": "original_destination", "lb_policy": "round_robin"},
                         "web": {"discovery": {"eds": {}}, "lb_policy": "round_robin"}},
            "endpoints": {"web": {"localities": [{"endpoints": [{}]}, {"endpoints": [{}, {}]}]}},
            "secrets": {"roots": {"name": "roots", "kind": {"validation_context": {}}}},
            "extension_configs": {"rbac": {"type_name": "a.b.RBAC"}},
            "runtime": {"entries": {
                "canary": {"value": {"numerator": 5, "denominator": 10000}, "layer": "pushed"},
                "on": {"value": true, "layer": "fixed"}}},
            "versions": {"clusters": {"web": {"version_info": "7\u{202e}",
                                              "last_updated": "2026-01-02T03:04:00Z"}},
                         "runtime": {"pushed": {"version_info": "8",
                                                "last_updated": "2026-01-02T03:04:01Z"}},
                         "virtual_hosts": {"web/a": {"version_info": "9",
                                                     "last_updated": "2026-01-02T03:04:02Z"}}},
            "xds": {"types": [{"kind": "endpoints", "withdrawn": ["web"]},
                              {"kind": "clusters", "withdrawn": []}]},
            "last_rejected": {"at": "2026-01-02T03:05:05Z", "reasons": ["cds.yaml: no\nx"]},
        });
        assert_eq!(
            summary(&dump),
            "version 3, label abc, applied at 2026-01-02T03:04:05Z\n\
             KIND       NAME    VERSION  UPDATED               DETAIL\n\
             listener   out     -        -                     outbound 10.0.0.1:80, 1 filter chains\n\
             route      web     -        -                     2 virtual hosts\n\
             cluster    app     -        -                     original_destination\n\
             cluster    web     7\\u202e  2026-01-02T03:04:00Z  eds, round_robin\n\
             endpoints  web     -        -                     3 endpoints; the server has it no longer\n\
             secret     roots   -        -                     validation_context\n\
             filter     rbac    -        -                     a.b.RBAC\n\
             host       web/a   9        2026-01-02T03:04:02Z  of its route\n\
             layer      pushed  8        2026-01-02T03:04:01Z  of the runtime\n\
             runtime    canary  -        -                     5/10000, from layer pushed\n\
             runtime    on      -        -                     true, from layer fixed\n\
             \nrefused at 2026-01-02T03:05:05Z:\n  cds.yaml: no\\u000ax\n"
        );
    }
}
