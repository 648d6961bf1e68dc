//! `mesh-agent status`

use std::fmt::Write as _;

use clap::Args;

use super::{
    CliError, Output,
    client::Client,
    output::{self, OutputFormat, Table},
};
use crate::{
    admin::{KernelPathView, MapView, MissingView, StatusView, Timestamp, XdsView},
    model::{agent_down::AgentDown, splice::SelfCheckKind},
    observe::printable::printable,
};

/// Show the agent in one page: ready or why not, configuration, certificates
#[derive(Debug, Args)]
pub(super) struct Status {
    #[command(flatten)]
    client: Client,
}

impl Status {
    pub(super) fn run(self) -> Result<Output, CliError> {
        let status: StatusView = self.client.get("/status")?;
        Ok(match self.client.output {
            OutputFormat::Json => output::json(&status)?,
            OutputFormat::Table => page(&status, Timestamp::now()),
        }
        .into())
    }
}

fn page(status: &StatusView, now: Timestamp) -> String {
    let snapshot = &status.snapshot;
    let ready = match (status.draining, status.readiness.ready) {
        (true, _) => "draining".to_owned(),
        (false, true) if status.readiness.notes.is_empty() => "yes".to_owned(),
        (false, true) => format!("yes: {}", status.readiness.notes.join("; ")),
        (false, false) => format!("no: {}", status.readiness.reasons.join("; ")),
    };
    let configuration = match snapshot.applied_at {
        None => "none applied yet".to_owned(),
        Some(at) => format!(
            "version {} ({}), {} ago: {} listeners, {} routes, {} clusters, {} endpoints",
            snapshot.version,
            snapshot.label,
            output::age(at.seconds_until(now)),
            snapshot.listeners,
            snapshot.routes,
            snapshot.clusters,
            snapshot.endpoints,
        ),
    };
    let mut head = Table::new(["Node", ""]);
    head.row(["  name".into(), status.node.clone()]);
    head.row(["  agent".into(), format!("{} (instance {})", status.version, status.instance)]);
    head.row(["  trust domain".into(), status.trust_domain.clone()]);
    head.row([
        "  up".into(),
        output::age(i64::try_from(status.uptime_seconds).unwrap_or(i64::MAX)),
    ]);
    head.row(["  ready".into(), ready]);
    head.row(["  configuration".into(), configuration]);
    head.row(["  pods".into(), status.pods.to_string()]);
    head.row(["  connections".into(), status.connections.to_string()]);
    head.row([
        "  HBONE pool".into(),
        format!("{} connections, {} streams", status.hbone.connections, status.hbone.streams),
    ]);
    let kernel_path = match &status.kernel_path {
        KernelPathView { off: Some(why), .. } => format!("off: {why}"),
        KernelPathView { services, connections, agent_down, .. } => {
            let down = match agent_down {
                AgentDown::Refuse => "refused",
                AgentDown::Keep => "let through by the verdicts last compiled",
            };
            format!(
                "on: {services} services, {connections} connections; new ones without the agent: \
                 {down}"
            )
        }
    };
    head.row(["  kernel path".into(), kernel_path]);
    if let [first, rest @ ..] = &status.off_kernel_path[..] {
        let left_out = format!("not for {} pods: {}: {}", rest.len() + 1, first.pod, first.why);
        head.row([String::new(), left_out]);
    }
    head.row(["  guard".into(), missing(&status.unguarded)]);
    head.row(["  redirect".into(), missing(&status.not_redirected)]);
    let splice = &status.kernel_path.splice;
    for (row, off) in [("  splice", &splice.off), ("  splice agent", &splice.agent_off)] {
        let how = off.as_ref().map_or_else(|| "on".to_owned(), |why| format!("off: {why}"));
        head.row([row.into(), how]);
    }
    head.row(["  maps".into(), maps(&status.maps)]);
    let mut text = head.render();

    // Writing to a String does not fail.
    if let Some(rejected) = &status.last_rejected {
        _ = writeln!(
            text,
            "\nLast refused configuration, {} ago",
            output::age(rejected.at.seconds_until(now))
        );
        for reason in &rejected.reasons {
            _ = writeln!(text, "  {}", printable(reason));
        }
    }
    if let Some(xds) = &status.xds {
        control_plane(&mut text, xds, now);
    }
    if !status.certificates.is_empty() {
        let mut table = Table::new(["Certificates", "EXPIRES IN", "SERIAL", "LAST ERROR"]);
        for certificate in &status.certificates {
            let expires = certificate.not_after.map(|at| match now.seconds_until(at) {
                left if left <= 0 => "EXPIRED".to_owned(),
                left => output::age(left),
            });
            table.row([
                format!("  {}", certificate.identity),
                expires.unwrap_or_else(|| "never issued".to_owned()),
                output::shown(certificate.serial.as_ref()),
                output::shown(certificate.last_error.as_ref()),
            ]);
        }
        _ = write!(text, "\n{}", table.render());
    }
    if let Some(test) = &status.self_test {
        let mut table = Table::new(["Kernel self-test", "", "µs", "SEEN"]);
        for check in &test.checks {
            table.row([
                format!("  {}", check.name),
                match (check.passed, check.kind) {
                    (true, _) => "ok",
                    (false, SelfCheckKind::Feature) => "absent",
                    (false, SelfCheckKind::Splice | SelfCheckKind::SpliceAgent) => "FAILED",
                }
                .to_owned(),
                check.micros.to_string(),
                check.detail.clone(),
            ]);
        }
        _ = write!(text, "\n{}", table.render());
    }
    if status.bpf.iter().any(|verdict| verdict.count > 0) {
        let mut table = Table::new(["Kernel verdicts", "COUNT"]);
        for verdict in status.bpf.iter().filter(|verdict| verdict.count > 0) {
            table.row([format!("  {}", verdict.verdict), verdict.count.to_string()]);
        }
        _ = write!(text, "\n{}", table.render());
    }
    text
}

/// On which pods something is missing that they could have.
fn missing(pods: &[MissingView]) -> String {
    match pods {
        [] => "every pod".to_owned(),
        [first, rest @ ..] => {
            format!("missing on {} pods, such as {}: {}", rest.len() + 1, first.pod, first.why)
        }
    }
}

/// The maps that an operator should know of.
fn maps(maps: &[MapView]) -> String {
    let told = |map: &MapView| {
        let MapView { map, entries, capacity, wanted } = map;
        let filling = u64::from(*entries) * 5 >= u64::from(*capacity) * 4;
        let older = capacity != wanted;
        let made =
            if older { format!(" (made for {capacity}, not {wanted})") } else { String::new() };
        (filling || older).then(|| format!("{map} {entries} of {capacity}{made}"))
    };
    let told: Vec<_> = maps.iter().filter_map(told).collect();
    if told.is_empty() { "room in all of them".to_owned() } else { told.join("; ") }
}

fn control_plane(text: &mut String, xds: &XdsView, now: Timestamp) {
    let age = |at: Timestamp| output::age(at.seconds_until(now));
    text.push('\n');
    for source in &xds.sources {
        let of = match (source.carries.as_str(), xds.sources.len()) {
            ("all", 1) => String::new(),
            (carries, _) => format!(" for {carries}"),
        };
        let state = match (source.state.as_str(), source.last_answer) {
            // It may have nothing new to say, or nothing at all.
            ("connected", None) => "connected without any answer".to_owned(),
            ("connected", Some(at)) => {
                format!("connected without a new answer (the last one {} ago)", age(at))
            }
            (state, _) => state.replace('_', " "),
        };
        // Writing to a String does not fail.
        _ = writeln!(
            text,
            "Control plane {}{of} ({}), {} for {}, {} streams so far",
            printable(&source.server),
            source.mode,
            state,
            age(source.since),
            source.streams,
        );
        if let Some(error) = &source.last_error {
            _ = writeln!(text, "  the last stream ended: {}", printable(error));
        }
    }
    let last = |at: Option<Timestamp>| match at {
        Some(at) => format!("{} ago", age(at)),
        None => "never".to_owned(),
    };
    let mut table =
        Table::new(["Resources", "VERSION", "ACCEPTED", "ACKS", "NACKS", "LAST ACK", "LAST NACK"]);
    for of in &xds.types {
        table.row([
            format!("  {}", of.kind),
            of.version.clone(),
            of.accepted.to_string(),
            of.acks.to_string(),
            of.nacks.to_string(),
            last(of.last_ack),
            last(of.last_nack),
        ]);
    }
    text.push_str(&table.render());
    for of in &xds.types {
        if let (false, Some(at), Some(reason)) =
            (of.refusing, of.last_nack, of.nack_reasons.first())
        {
            let line = format!("refused {} ago, and made good since: {reason}", age(at));
            _ = writeln!(text, "  {}", printable(&line));
        }
        for refused in &of.refused {
            for reason in &refused.reasons {
                _ = writeln!(text, "  refused {} ago: {}", age(refused.at), printable(reason));
            }
        }
        for warming in &of.warming {
            let line = format!("{} {} waits for {}", of.kind, warming.name, warming.waits_for);
            _ = writeln!(text, "  {}", printable(&line));
        }
        for name in &of.awaited {
            let line = format!("{}[{name}] was asked for and has not come", of.kind);
            _ = writeln!(text, "  {}", printable(&line));
        }
        for name in &of.withdrawn {
            let line = format!("{} {name}: the server has it no longer, it is in use", of.kind);
            _ = writeln!(text, "  {}", printable(&line));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::{
        CertificateView, HboneView, Readiness, RejectedConfig, SnapshotView, SpliceView,
        XdsRefusedView, XdsSourceView, XdsTypeView, XdsView, XdsWarmingView,
    };
    use crate::model::splice::{SelfCheck, SelfTest};

    #[test]
    fn the_page_says_what_is_wrong() {
        let at: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let now: Timestamp = "2026-01-02T04:04:05Z".parse().unwrap();
        let status = StatusView {
            version: "0.1.0".into(),
            node: "n1".into(),
            instance: "default".into(),
            trust_domain: "cluster.local".into(),
            started_at: at,
            uptime_seconds: 3600,
            readiness: Readiness::from_reasons(vec!["no configuration yet".into()]),
            draining: false,
            snapshot: SnapshotView {
                version: 0,
                label: String::new(),
                applied_at: None,
                listeners: 0,
                routes: 0,
                clusters: 0,
                endpoints: 0,
            },
            last_rejected: Some(RejectedConfig { at, reasons: vec!["lds.yaml: bad".into()] }),
            xds: Some(XdsView {
                server: "http://cp:1".into(),
                mode: "delta".into(),
                state: "connected".into(),
                since: at,
                last_error: None,
                streams: 2,
                sources: vec![XdsSourceView {
                    carries: "all".into(),
                    server: "http://cp:1".into(),
                    mode: "delta".into(),
                    state: "connected".into(),
                    since: at,
                    last_answer: None,
                    last_error: None,
                    streams: 2,
                }],
                types: vec![
                    XdsTypeView {
                        kind: "routes".into(),
                        last_nack: Some(at),
                        nack_reasons: vec!["routes[r]: no\n".into()],
                        ..XdsTypeView::default()
                    },
                    XdsTypeView {
                        kind: "clusters".into(),
                        type_url: String::new(),
                        version: "v7".into(),
                        accepted: 3,
                        acks: 4,
                        nacks: 1,
                        last_ack: Some(at),
                        last_nack: Some(at),
                        nack_reasons: vec!["clusters[a].lb_policy: no".into()],
                        refusing: true,
                        refused: vec![XdsRefusedView {
                            name: "a".into(),
                            at,
                            reasons: vec!["clusters[a].lb_policy: no".into()],
                        }],
                        warming: vec![XdsWarmingView {
                            name: "b".into(),
                            waits_for: "endpoints[b]".into(),
                        }],
                        awaited: vec!["d\n".into()],
                        withdrawn: vec!["c\n".into()],
                    },
                ],
            }),
            certificates: vec![CertificateView {
                identity: "spiffe://cluster.local/ns/a/sa/b".parse().unwrap(),
                serial: None,
                not_before: None,
                not_after: Some(at),
                last_error: Some("the CA is gone".into()),
            }],
            pods: 1,
            connections: 2,
            hbone: HboneView::default(),
            kernel_path: KernelPathView {
                off: Some("switched off".into()),
                splice: SpliceView {
                    off: Some("this kernel fails a, b".into()),
                    ..Default::default()
                },
                ..Default::default()
            },
            self_test: Some(SelfTest {
                checks: vec![SelfCheck {
                    name: "splice_reset".into(),
                    kind: SelfCheckKind::Splice,
                    passed: false,
                    detail: "recv hung".into(),
                    micros: 7,
                }],
                micros: 9,
            }),
            unguarded: vec![MissingView { pod: "p".into(), why: "no tc".into() }],
            not_redirected: Vec::new(),
            off_kernel_path: Vec::new(),
            maps: vec![
                MapView { map: "SERVICES".into(), entries: 8, capacity: 9, wanted: 90 },
                MapView { map: "PODS".into(), entries: 8, capacity: 90, wanted: 90 },
            ],
            bpf: Vec::new(),
        };
        let page = page(&status, now);
        for expected in [
            "no: no configuration yet",
            "Last refused configuration, 1h0m ago\n  lds.yaml: bad",
            "EXPIRED",
            "the CA is gone",
            "none applied yet",
            "off: switched off",
            "missing on 1 pods, such as p: no tc",
            "off: this kernel fails a, b",
            "recv hung",
            "SERVICES 8 of 9 (made for 9, not 90)",
            "http://cp:1 (delta), connected without any answer for 1h0m, 2 streams so far",
            "refused 1h0m ago: clusters[a].lb_policy: no",
            "refused 1h0m ago, and made good since: routes[r]: no\\u000a",
            "b waits for endpoints[b]",
            "clusters c\\u000a: the server has it no longer",
        ] {
            assert!(page.contains(expected), "{expected:?} is missing in:\n{page}");
        }
    }
}
