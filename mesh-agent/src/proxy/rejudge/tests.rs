use std::sync::Arc;

use super::*;
use crate::{
    model::{
        authz::{Permission, RbacAction},
        cluster::{Discovery, LbPolicy},
        listener::{CodecType, Direction, FilterChain, FilterChainMatch, HttpConnectionManager},
    },
    policy::fixtures::{
        chain, cluster, is_identity, listener, manager, outbound_permit, policy, rbac, snapshot,
        tcp_proxy, with_filters,
    },
};

const VIP: &str = "10.96.0.1:80";

fn of(terminal: TerminalFilter) -> FilterChain {
    FilterChain { terminal, ..chain("c", FilterChainMatch::default()) }
}

fn tcp(clusters: &[(&str, u32)]) -> TerminalFilter {
    TerminalFilter::TcpProxy(Arc::new(tcp_proxy(clusters)))
}

fn http(change: impl FnOnce(&mut HttpConnectionManager)) -> TerminalFilter {
    let mut manager = manager(vec![]);
    change(&mut manager);
    TerminalFilter::Http(Arc::new(manager))
}

fn world(chain: Option<FilterChain>) -> Arc<Snapshot> {
    let clusters = ["a", "b"]
        .map(|name| cluster(name, LbPolicy::RoundRobin, Discovery::Static(Arc::default())));
    let listeners =
        chain.map(|chain| listener(Direction::Outbound, VIP, vec![chain], None)).into_iter();
    snapshot(listeners.collect(), clusters.into())
}

/// How a connection stands that began with `before`, when there is `after`.
fn stands(before: FilterChain, after: Option<FilterChain>, policy: OutboundPolicy) -> &'static str {
    let permit = outbound_permit(VIP, &world(Some(before)));
    let began = permit.flow().terminal().cloned();
    match standing(&permit, began.as_ref(), &world(after), policy) {
        Standing::Holds(_) => "holds",
        Standing::Drains(_) => "drains",
        Standing::Denied(_) => "denied",
    }
}

#[test]
fn a_connection_drains_where_what_it_lives_by_is_gone_or_another() {
    let clusters = |clusters: &[(&str, u32)]| of(tcp(clusters));
    let plain = || of(http(|_| ()));
    for (before, after, expected) in [
        (clusters(&[("a", 1)]), None, "drains"),
        (clusters(&[("a", 1)]), Some(clusters(&[("b", 1)])), "drains"),
        (clusters(&[("a", 1), ("b", 1)]), Some(clusters(&[("a", 1), ("b", 0)])), "drains"),
        (clusters(&[("a", 1)]), Some(plain()), "drains"),
        (plain(), Some(clusters(&[("a", 1)])), "drains"),
        (plain(), None, "drains"),
        (plain(), Some(of(http(|m| m.codec = CodecType::Http2))), "drains"),
        (plain(), Some(of(http(|m| m.max_request_headers_kib = 1))), "drains"),
        // What new requests and connections alone see.
        (clusters(&[("a", 1)]), Some(clusters(&[("a", 1)])), "holds"),
        (clusters(&[("a", 1)]), Some(clusters(&[("a", 9), ("b", 1)])), "holds"),
        (plain(), Some(of(http(|m| m.stat_prefix = "new".to_owned()))), "holds"),
    ] {
        let told = format!("{before:?} -> {after:?}");
        assert_eq!(stands(before, after, OutboundPolicy::AllowAny), expected, "{told}");
    }
}

#[test]
fn a_connection_drains_where_its_first_bytes_would_have_had_to_be_looked_at() {
    let snapshot = |http_inspector: bool| {
        let chains = vec![of(tcp(&[("a", 1)]))];
        let mut listener = listener(Direction::Outbound, VIP, chains, None);
        listener.listener_filters.http_inspector = http_inspector;
        let cluster = cluster("a", LbPolicy::RoundRobin, Discovery::Static(Arc::default()));
        snapshot(vec![listener], vec![cluster])
    };
    let permit = outbound_permit(VIP, &snapshot(false));
    let began = permit.flow().terminal().cloned();
    let stands =
        |snapshot: &Snapshot| standing(&permit, began.as_ref(), snapshot, OutboundPolicy::AllowAny);
    assert!(matches!(stands(&snapshot(false)), Standing::Holds(_)));
    assert!(matches!(stands(&snapshot(true)), Standing::Drains(None)));
}

#[test]
fn policy_does_not_wait_for_a_drain() {
    let before = || of(tcp(&[("a", 1)]));
    let nobody = policy("nobody", vec![Permission::Any], vec![is_identity("nobody")]);
    let denying = |chain| with_filters(chain, vec![rbac(RbacAction::Allow, vec![nobody.clone()])]);
    let any = OutboundPolicy::AllowAny;
    assert_eq!(stands(before(), Some(denying(before())), any), "denied");
    assert_eq!(stands(before(), Some(denying(of(tcp(&[("b", 1)])))), any), "denied");
    // A listener that is gone says nothing of what is allowed.
    assert_eq!(stands(before(), None, OutboundPolicy::RegistryOnly), "drains");
}
