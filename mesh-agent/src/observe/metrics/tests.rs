use std::{sync::atomic::Ordering, time::Duration};

use super::*;
use crate::{
    model::workload::WorkloadUid,
    observe::{
        ConnectionSecurity,
        connections::ConnectionInfo,
        flags::{ResponseFlag, ResponseFlags},
    },
};

fn identity(service_account: &str) -> Identity {
    format!("spiffe://cluster.local/ns/shop/sa/{service_account}").parse().unwrap()
}

fn after(duration: Duration) -> Observed {
    Observed { duration, trace_id: None }
}

fn labels(protocol: RequestProtocol) -> TrafficLabels {
    TrafficLabels {
        reporter: Reporter::Source,
        source: PeerLabels {
            workload: "web-1".into(),
            ..PeerLabels::of_identity(&identity("web"))
        },
        destination: PeerLabels::of_identity(&identity("db")),
        destination_service: "db".into(),
        request_protocol: protocol,
        connection_security_policy: ConnectionSecurity::MutualTls,
    }
}

const SERIES: &str = r#"reporter="source",source_workload="web-1",source_workload_namespace="shop",source_principal="spiffe://cluster.local/ns/shop/sa/web",destination_workload="unknown",destination_workload_namespace="shop",destination_principal="spiffe://cluster.local/ns/shop/sa/db",destination_service="db","#;

fn connection() -> ConnectionInfo {
    ConnectionInfo {
        direction: Direction::Outbound,
        workload: WorkloadUid("u1".into()),
        source: "10.0.0.1:1".parse().unwrap(),
        original_destination: "10.0.0.2:2".parse().unwrap(),
        source_identity: Some(identity("web")),
        destination_identity: None,
        security: ConnectionSecurity::None,
    }
}

fn assert_line(text: &str, line: &str) {
    assert!(text.lines().any(|found| found == line), "no line\n{line}\nin\n{text}");
}

#[test]
fn tcp_series_have_istios_names_and_follow_a_live_connection() {
    let (metrics, connections) = (Metrics::new(), Connections::default());
    let guard = connections.open(connection());
    let tcp = metrics.tcp(&labels(RequestProtocol::Tcp));
    guard.count_tcp(tcp.clone());
    guard.count_tcp(tcp);
    guard.counters().sent_bytes.store(7, Ordering::Relaxed);
    guard.counters().received_bytes.store(5, Ordering::Relaxed);

    let rest = r#"request_protocol="tcp",connection_security_policy="mutual_tls",response_flags="#;
    let line = |name: &str, flags: &str, value: u64| {
        format!("{name}{{{SERIES}{rest}\"{flags}\"}} {value}")
    };
    let text = metrics.encode(&connections);
    assert_line(&text, &line("istio_tcp_connections_opened_total", "-", 1));
    assert_line(&text, &line("istio_tcp_sent_bytes_total", "-", 7));
    assert_line(&text, &line("istio_tcp_received_bytes_total", "-", 5));
    assert!(!text.contains("istio_tcp_connections_closed_total{"));
    assert_line(&text, r#"mesh_open_connections{direction="outbound"} 1"#);

    guard.counters().sent_bytes.store(10, Ordering::Relaxed);
    guard.add_flag(ResponseFlag::UpstreamConnectionTermination);
    drop(guard);
    let text = metrics.encode(&connections);
    assert_line(&text, &line("istio_tcp_connections_opened_total", "-", 1));
    assert_line(&text, &line("istio_tcp_connections_closed_total", "UC", 1));
    assert_line(&text, &line("istio_tcp_sent_bytes_total", "-", 10));
    assert_line(&text, &line("istio_tcp_received_bytes_total", "-", 5));
    assert_line(&text, r#"mesh_open_connections{direction="outbound"} 0"#);
}

#[test]
fn http_series_have_istios_names_and_milliseconds() {
    let metrics = Metrics::new();
    let http = metrics.http(&labels(RequestProtocol::Http));
    http.observe(200, ResponseFlags::NONE, after(Duration::from_millis(7)));
    http.observe(
        200,
        ResponseFlags::NONE,
        Observed { duration: Duration::from_millis(70), trace_id: Some(0x1f) },
    );
    http.observe(403, ResponseFlag::Denied.into(), after(Duration::from_micros(300)));

    let rest = r#"request_protocol="http",connection_security_policy="mutual_tls","#;
    let text = metrics.encode(&Connections::default());
    let ok = format!(r#"{SERIES}{rest}response_code="200",response_flags="-""#);
    assert_line(&text, &format!("istio_requests_total{{{ok}}} 2"));
    assert_line(&text, &format!("istio_request_duration_milliseconds_count{{{ok}}} 2"));
    assert_line(&text, &format!("istio_request_duration_milliseconds_sum{{{ok}}} 77.0"));
    let name = "istio_request_duration_milliseconds_bucket";
    for (le, count) in [("5.0", 0), ("10.0", 1), ("+Inf", 2)] {
        assert_line(&text, &format!("{name}{{le=\"{le}\",{ok}}} {count}"));
    }
    // The trace of one that fell into it.
    let exemplar = format!("# {{trace_id=\"{:032x}\"}} 70.0 ", 0x1f);
    let line = format!("{name}{{le=\"100.0\",{ok}}} 2 {exemplar}");
    assert!(text.lines().any(|known| known.starts_with(&line)), "{line}\n{text}");
    assert!(!Exposition::Text.of(text.clone()).contains("trace_id"));
    let denied = format!(r#"{SERIES}{rest}response_code="403",response_flags="UAEX""#);
    assert_line(&text, &format!("istio_requests_total{{{denied}}} 1"));
    assert_line(&text, "# TYPE istio_request_duration_milliseconds histogram");
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn an_upstream_can_not_make_up_series() {
    let metrics = Metrics::new();
    let http = metrics.http(&labels(RequestProtocol::Http));
    for code in 200..999 {
        http.observe(code, ResponseFlags::NONE, after(Duration::ZERO));
    }
    let text = metrics.encode(&Connections::default());
    let series = text.lines().filter(|line| line.starts_with("istio_requests_total")).count();
    assert!(series < 64, "{series} series");
    let total: u64 = text
        .lines()
        .filter(|line| line.starts_with("istio_requests_total"))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum();
    assert_eq!(total, 799);
}

#[test]
fn label_sets_beyond_the_limit_are_counted_together() {
    let metrics = Metrics::with_limit(3);
    for i in 0..10 {
        let labels = TrafficLabels {
            destination_service: format!("s{i}").into(),
            ..labels(RequestProtocol::Tcp)
        };
        metrics.tcp(&labels).opened();
    }
    let text = metrics.encode(&Connections::default());
    let overflow = text
        .lines()
        .find(|line| {
            line.starts_with("istio_tcp_connections_opened_total")
                && line.contains(r#"destination_service="overflow""#)
        })
        .unwrap();
    assert!(overflow.ends_with(" 7"), "{overflow}");
    assert_line(&text, "mesh_metrics_overflowed_total 7");
}

#[test]
fn our_own_series_read_well() {
    let metrics = Metrics::new();
    metrics.captured(Direction::Inbound);
    metrics.denied(Direction::Inbound, "policy");
    metrics.shadow(Direction::Inbound, 0, 2);
    metrics.handshake_failed(Direction::Outbound, "wrong_identity");
    metrics.config_applied(4);
    metrics.config_rejected();
    let expiry = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    metrics.certificate(&identity("web"), expiry);
    metrics.certificate(&identity("gone"), expiry);
    metrics.rotation_failed(&identity("gone"));
    metrics.forget_identity(&identity("gone"));
    metrics.pods_enrolled(2);
    metrics.bpf_verdicts([("redirected", 9_u64)]);
    metrics.bpf_verdicts([("redirected", 12_u64)]);
    metrics.hbone_pool(1, 16);
    metrics.origin_shadow(Direction::Inbound, "csrf", false);
    metrics.access_log_dropped().inc();
    metrics.ready(true);

    let text = metrics.encode(&Connections::default());
    for line in [
        r#"mesh_captured_connections_total{direction="inbound"} 1"#,
        r#"mesh_denied_total{direction="inbound",reason="policy"} 1"#,
        r#"mesh_rbac_shadow_total{direction="inbound",result="denied"} 2"#,
        r#"mesh_origin_shadow_total{direction="inbound",filter="csrf",result="denied"} 1"#,
        r#"mesh_handshake_failures_total{direction="outbound",reason="wrong_identity"} 1"#,
        r#"mesh_config_updates_total{result="applied"} 1"#,
        r#"mesh_config_updates_total{result="rejected"} 1"#,
        "mesh_snapshot_version 4",
        r#"mesh_certificate_expiry_timestamp_seconds{identity="spiffe://cluster.local/ns/shop/sa/web"} 1800000000"#,
        "mesh_pods_enrolled 2",
        r#"mesh_bpf_verdicts_total{verdict="redirected"} 12"#,
        "mesh_hbone_pool_connections 1",
        "mesh_hbone_pool_streams 16",
        "mesh_access_log_dropped_total 1",
        "mesh_ready 1",
        concat!("mesh_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
    ] {
        assert_line(&text, line);
    }
    assert!(!text.contains("sa/gone"));
}

#[test]
fn accounts_of_memory_tell_what_is_taken_and_what_may_be() {
    static ACCOUNT: Budget = Budget::new("test", 1000);
    let metrics = Metrics::new();
    let shown = |used: u64| {
        metrics.memory_account(&ACCOUNT);
        let text = metrics.encode(&Connections::default());
        for line in [
            format!("mesh_memory_account_bytes{{account=\"test\"}} {used}\n"),
            "mesh_memory_account_limit_bytes{account=\"test\"} 1000\n".to_owned(),
        ] {
            assert!(text.contains(&line), "{line} is missing in:\n{text}");
        }
    };
    let some = ACCOUNT.take(700).unwrap();
    shown(700);
    assert!(ACCOUNT.take(301).is_none());
    drop(some);
    shown(0);
    // Those that the agent has are told apart.
    let names = Budget::all().map(Budget::name);
    assert_eq!(names, ["hash_tables", "regexes", "request_bodies"]);
}
