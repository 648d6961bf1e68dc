//! Filters of the chain at work, both ways. That Envoy does the same is for the differential
//! corpus to show.

use std::sync::Arc;

use http::HeaderName;

use super::harness::{Mesh, Setup, mirror_upstream};
use crate::{
    codec::session,
    model::{
        filter::{
            ChainFilter, CsrfPolicy, FilterMutations, HeaderMutationFilter, HttpFilter, PerFilter,
            RouteFilter, RouteFilterConfig, SessionState, StatefulSession,
        },
        header_mutation::{AppendAction, HeaderAddition, HeaderMutation},
        runtime::{Fraction, RuntimeFraction},
    },
};

/// Appends `value` to what is there, on both ways.
fn appends(value: &str) -> Arc<FilterMutations> {
    let addition = |name: &'static str| HeaderAddition {
        name: HeaderName::from_static(name),
        value: value.parse().unwrap(),
        action: AppendAction::AppendIfExistsOrAdd,
        keep_empty: false,
    };
    let one = |name| {
        let (remove, add) = (Vec::new(), vec![addition(name)]);
        vec![Arc::new(HeaderMutation { remove, add })]
    };
    Arc::new(FilterMutations { request: one("x-way"), response: one("r-way") })
}

fn filter(name: &str, most_specific_wins: bool) -> ChainFilter {
    let mutations = appends(name);
    let filter = HeaderMutationFilter { mutations, most_specific_wins };
    let filter = HttpFilter::HeaderMutation(Arc::new(filter));
    ChainFilter { name: name.into(), disabled: false, filter }
}

fn setup(upstream: std::net::SocketAddr) -> Setup {
    let off = ChainFilter { disabled: true, ..filter("off", false) };
    let on = ChainFilter { disabled: true, ..filter("on", false) };
    let said = |said: &str| RouteFilter::Enabled(RouteFilterConfig::HeaderMutation(appends(said)));
    let per_filter = PerFilter(vec![
        ("gone".into(), RouteFilter::Disabled),
        ("on".into(), said("on-host")),
        ("second".into(), said("second-host")),
    ]);
    let filters =
        vec![filter("first", true), off, on, filter("gone", false), filter("second", false)];
    Setup { filters, per_filter, ..Setup::new(upstream) }
}

/// The values of a header, in order.
fn values<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let lines = text.split("\r\n").filter_map(|line| line.split_once(": "));
    lines.filter(|(found, _)| *found == name).map(|(_, value)| value).collect()
}

#[tokio::test]
async fn a_body_that_a_filter_has_no_room_for_is_refused() {
    let filter = HttpFilter::Buffer(1 << 20);
    let filters = vec![ChainFilter { name: "buffer".into(), disabled: false, filter }];
    let mesh = Mesh::new(Setup { filters, ..Setup::new(mirror_upstream().await) });
    let post = |bytes| {
        let body = "x".repeat(bytes);
        format!("POST /x HTTP/1.1\r\nhost: app.test\r\ncontent-length: {bytes}\r\n\r\n{body}")
    };
    let others = mesh.leave(1000);
    let response = mesh.connect().await.ask(&post(1001)).await;
    assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
    assert_eq!(mesh.record(0).await.flags.to_string(), "OM");
    let get = "GET /x HTTP/1.1\r\nhost: app.test\r\n\r\n";
    assert!(mesh.connect().await.ask(get).await.starts_with("HTTP/1.1 200 "));
    drop(others);
    let response = mesh.connect().await.ask(&post(1001)).await;
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    // What goes on is not kept: there is room for all again.
    drop(mesh.leave(0));
}

const WAY_OUT: [&str; 5] = ["second", "second-host", "on", "on-host", "first"];

#[tokio::test]
async fn filters_run_in_order_and_in_reverse_on_the_way_out() {
    let mesh = Mesh::new(setup(mirror_upstream().await));
    let response = mesh.connect().await.ask("GET /x HTTP/1.1\r\nhost: app.test\r\n\r\n").await;
    let (head, seen) = response.split_once("\r\n\r\n").unwrap();
    assert_eq!(values(seen, "x-way"), ["first", "on", "on-host", "second", "second-host"]);
    assert_eq!(values(head, "r-way"), WAY_OUT);
}

#[tokio::test]
async fn own_replies_take_the_whole_way_out_whoever_makes_them() {
    let mesh = Mesh::new(setup(mirror_upstream().await));
    for (path, status) in [("/direct", "418"), ("/none", "503"), ("/secret", "403")] {
        let ask = format!("GET {path} HTTP/1.1\r\nhost: app.test\r\n\r\n");
        let response = mesh.connect().await.ask(&ask).await;
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{response}");
        assert_eq!(values(&response, "r-way"), WAY_OUT, "{path}");
    }
    // Without a route the chain is as the listener has it.
    let response = mesh.connect().await.ask("GET /x HTTP/1.1\r\nhost: other\r\n\r\n").await;
    assert!(response.starts_with("HTTP/1.1 404 "), "{response}");
    assert_eq!(values(&response, "r-way"), ["second", "gone", "first"]);
}

#[tokio::test]
async fn a_session_goes_to_its_endpoint_or_nowhere_else() {
    let upstream = mirror_upstream().await;
    let mesh = |strict| {
        let state = Some(SessionState::Header(HeaderName::from_static("x-session")));
        let config = StatefulSession { state, strict, status_not_found: 410 };
        let filter = HttpFilter::StatefulSession(Arc::new(config));
        let filters = vec![ChainFilter { name: "session".into(), disabled: false, filter }];
        Mesh::new(Setup { filters, ..Setup::new(upstream) })
    };
    let ask = |session: &str| {
        format!("GET /x HTTP/1.1\r\nhost: app.test\r\nx-session: {session}\r\n\r\n")
    };
    let there = session::header(&upstream.to_string());
    let gone = session::header("192.0.2.1:80");
    for (strict, session, status, told) in [
        (true, &there, 200, None),
        (false, &there, 200, None),
        (false, &gone, 200, Some(&there)),
        (true, &gone, 410, None),
        (true, &session::header("nobody"), 410, None),
        (true, &"?".to_owned(), 200, Some(&there)),
    ] {
        let response = mesh(strict).connect().await.ask(&ask(session)).await;
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{session}: {response}");
        let (head, _) = response.split_once("\r\n\r\n").unwrap();
        assert_eq!(values(head, "x-session").first().copied(), told.map(String::as_str), "{head}");
    }
}

fn csrf(percent: u32) -> Arc<CsrfPolicy> {
    let enabled = RuntimeFraction { key: String::new(), default: Fraction::percent(percent) };
    Arc::new(CsrfPolicy { enabled, shadow: None, additional_origins: Vec::new() })
}

#[tokio::test]
async fn csrf_answers_in_its_place_and_routes_replace_its_policy() {
    let forged =
        "POST /x HTTP/1.1\r\nhost: app.test\r\norigin: http://b\r\ncontent-length: 0\r\n\r\n";
    let upstream = mirror_upstream().await;
    let filter = HttpFilter::Csrf(csrf(100));
    let filter = ChainFilter { name: "csrf".into(), disabled: false, filter };
    let setup = |said: Option<u32>| {
        let said = said.map(|percent| {
            let config = RouteFilterConfig::Csrf(csrf(percent));
            ("csrf".into(), RouteFilter::Enabled(config))
        });
        let per_filter = PerFilter(said.into_iter().collect());
        Setup { filters: vec![filter.clone()], per_filter, ..Setup::new(upstream) }
    };
    let mesh = Mesh::new(setup(None));
    let response = mesh.connect().await.ask(forged).await;
    assert!(response.starts_with("HTTP/1.1 403 "), "{response}");
    assert!(response.ends_with("Invalid origin"), "{response}");
    let response = mesh.connect().await.ask(&forged.replace("//b", "//app.test")).await;
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    let response = Mesh::new(setup(Some(0))).connect().await.ask(forged).await;
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
}
