//! Brings the replies to source-preserving dials home to the agent's sockets.
//!
//! The agent dials the application from the client's address. The application
//! answers to that address, which the pod would route to the wire. The dial
//! carries a mark; with `tcp_fwmark_accept` the application's accepted socket
//! inherits it, and a rule routes everything with the mark to the local stack.
#![forbid(unsafe_code)]

use std::{
    fs, io,
    net::{Ipv4Addr, Ipv6Addr},
};

use mesh_common::abi::{
    APPLICATION_MARK, APPLICATION_RULE_PRIORITY, APPLICATION_TABLE, LOOPBACK_IFINDEX,
};
use rtnetlink::{
    RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        route::{RouteMessage, RouteProtocol, RouteScope, RouteType},
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
};

use super::netns::PodNetns;

const FWMARK_ACCEPT: &str = "/proc/sys/net/ipv4/tcp_fwmark_accept";

/// What could not be set.
#[derive(Debug)]
pub(super) enum RoutingError {
    Netlink { what: &'static str, source: rtnetlink::Error },
    Sysctl { name: &'static str, source: io::Error },
}

/// Whether accepted sockets take over the mark, as the pod has it now.
pub(super) fn fwmark_accept(netns: &PodNetns) -> Result<String, RoutingError> {
    let value = netns.run(|| fs::read_to_string(FWMARK_ACCEPT)).and_then(|result| result);
    value.map(|value| value.trim().to_owned()).map_err(sysctl)
}

/// Sets rules, routes and the sysctl in the pod; what is there already stays.
pub(super) async fn install(netns: &PodNetns, v6: bool) -> Result<(), RoutingError> {
    netns.run(|| fs::write(FWMARK_ACCEPT, "1")).and_then(|result| result).map_err(sysctl)?;
    let netlink = netns.netlink().map_err(sysctl)?;
    let handle = &netlink.handle;
    for family in families(v6) {
        let mut request = handle.route().add(route(family));
        request = request.replace();
        request
            .execute()
            .await
            .map_err(|source| RoutingError::Netlink { what: "route", source })?;
        let mut request = handle.rule().add();
        *request.message_mut() = rule(family);
        match request.execute().await {
            Ok(()) => {}
            Err(error) if is_errno(&error, libc::EEXIST) => {}
            Err(source) => return Err(RoutingError::Netlink { what: "rule", source }),
        }
    }
    Ok(())
}

/// Takes away what [`install`] set; what is gone already is fine.
pub(super) async fn remove(netns: &PodNetns, fwmark_accept: &str) -> Result<(), RoutingError> {
    netns
        .run(|| fs::write(FWMARK_ACCEPT, fwmark_accept))
        .and_then(|result| result)
        .map_err(sysctl)?;
    let netlink = netns.netlink().map_err(sysctl)?;
    let handle = &netlink.handle;
    for family in families(true) {
        let absent = |error: &rtnetlink::Error| {
            [libc::ENOENT, libc::ESRCH, libc::EAFNOSUPPORT, libc::EOPNOTSUPP]
                .iter()
                .any(|errno| is_errno(error, *errno))
        };
        match handle.rule().del(rule(family)).execute().await {
            Err(source) if !absent(&source) => {
                return Err(RoutingError::Netlink { what: "rule", source });
            }
            _ => {}
        }
        match handle.route().del(route(family)).execute().await {
            Err(source) if !absent(&source) => {
                return Err(RoutingError::Netlink { what: "route", source });
            }
            _ => {}
        }
    }
    Ok(())
}

fn sysctl(source: io::Error) -> RoutingError {
    RoutingError::Sysctl { name: "net.ipv4.tcp_fwmark_accept", source }
}

fn families(v6: bool) -> impl Iterator<Item = AddressFamily> {
    [AddressFamily::Inet, AddressFamily::Inet6].into_iter().take(if v6 { 2 } else { 1 })
}

/// `fwmark <mark> lookup <table>`
fn rule(family: AddressFamily) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family;
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::Table(APPLICATION_TABLE),
        RuleAttribute::Priority(APPLICATION_RULE_PRIORITY),
        RuleAttribute::FwMark(APPLICATION_MARK),
        RuleAttribute::FwMask(u32::MAX),
    ];
    rule
}

/// `local default dev lo table <table>`
fn route(family: AddressFamily) -> RouteMessage {
    if family == AddressFamily::Inet {
        RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(Ipv4Addr::UNSPECIFIED, 0)
            .output_interface(LOOPBACK_IFINDEX)
            .table_id(APPLICATION_TABLE)
            .kind(RouteType::Local)
            .scope(RouteScope::Host)
            .protocol(RouteProtocol::Static)
            .build()
    } else {
        RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(Ipv6Addr::UNSPECIFIED, 0)
            .output_interface(LOOPBACK_IFINDEX)
            .table_id(APPLICATION_TABLE)
            .kind(RouteType::Local)
            .protocol(RouteProtocol::Static)
            .build()
    }
}

fn is_errno(error: &rtnetlink::Error, errno: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message)
        if message.code.is_some_and(|code| code.get() == -errno))
}
