//! Brings the replies to source-preserving dials home to the agent's sockets.
//!
//! The agent dials the application from the client's address. The application
//! answers to that address, which the pod would route to the wire. The dial
//! carries a mark; with `tcp_fwmark_accept` the application's accepted socket
//! inherits it, and a rule routes everything with the mark to the local stack. Where no
//! application listens, it is the kernel that answers, with the mark by `fwmark_reflect`:
//! otherwise the refusal would leave the pod, and the dial would wait for its timeout.
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
use serde::{Deserialize, Serialize};

use super::netns::{NetnsError, PodNetns};

const FWMARK_ACCEPT: &str = "net/ipv4/tcp_fwmark_accept";
const FWMARK_REFLECT: [&str; 2] = ["net/ipv4/fwmark_reflect", "net/ipv6/fwmark_reflect"];

/// What these are in a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sysctls {
    /// `net.ipv4.tcp_fwmark_accept`: accepted sockets take over the mark.
    fwmark_accept: String,
    /// `net.ipv4.fwmark_reflect` and IPv6's, which is empty where there is no IPv6: what the
    /// kernel answers by itself takes over the mark.
    #[serde(default = "off")]
    fwmark_reflect: [String; 2],
}

/// As the kernel makes them.
impl Default for Sysctls {
    fn default() -> Self {
        Self { fwmark_accept: "0".to_owned(), fwmark_reflect: off() }
    }
}

fn off() -> [String; 2] {
    ["0".to_owned(), "0".to_owned()]
}

impl Sysctls {
    /// As the pod has them now.
    pub(super) fn read(netns: &PodNetns) -> Result<Self, RoutingError> {
        let fwmark_accept = get(netns, FWMARK_ACCEPT)?;
        let [v4, v6] = FWMARK_REFLECT;
        let v6 = match get(netns, v6) {
            Err(RoutingError::Sysctl { source, .. }) if is_absent(&source) => String::new(),
            value => value?,
        };
        Ok(Self { fwmark_accept, fwmark_reflect: [get(netns, v4)?, v6] })
    }

    fn all_on(v6: bool) -> Self {
        let reflect_v6 = if v6 { "1" } else { "" };
        Self {
            fwmark_accept: "1".to_owned(),
            fwmark_reflect: ["1".to_owned(), reflect_v6.to_owned()],
        }
    }

    fn write(&self, netns: &PodNetns) -> Result<(), RoutingError> {
        put(netns, FWMARK_ACCEPT, &self.fwmark_accept)?;
        for (name, value) in FWMARK_REFLECT.into_iter().zip(&self.fwmark_reflect) {
            match put(netns, name, value) {
                // IPv6 may be switched off.
                Err(RoutingError::Sysctl { source, .. }) if is_absent(&source) => {}
                put => put?,
            }
        }
        Ok(())
    }
}

fn get(netns: &PodNetns, name: &'static str) -> Result<String, RoutingError> {
    let value = netns.run(|| fs::read_to_string(format!("/proc/sys/{name}")));
    let value = value.and_then(|result| result).map_err(|source| sysctl(name, source))?;
    Ok(value.trim().to_owned())
}

fn put(netns: &PodNetns, name: &'static str, value: &str) -> Result<(), RoutingError> {
    if value.is_empty() {
        return Ok(());
    }
    let written = netns.run(|| fs::write(format!("/proc/sys/{name}"), value));
    written.and_then(|result| result).map_err(|source| sysctl(name, source))
}

fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

/// What could not be set.
#[derive(Debug)]
pub(super) enum RoutingError {
    Netns(NetnsError),
    Netlink { what: &'static str, source: rtnetlink::Error },
    Sysctl { name: &'static str, source: io::Error },
}

/// Sets rules, routes and sysctls in the pod; what is there already stays.
pub(super) async fn install(netns: &PodNetns, v6: bool) -> Result<(), RoutingError> {
    Sysctls::all_on(v6).write(netns)?;
    let netlink = netns.netlink().map_err(|source| entering(netns, source))?;
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
pub(super) async fn remove(netns: &PodNetns, before: &Sysctls) -> Result<(), RoutingError> {
    before.write(netns)?;
    let netlink = netns.netlink().map_err(|source| entering(netns, source))?;
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

fn sysctl(name: &'static str, source: io::Error) -> RoutingError {
    RoutingError::Sysctl { name, source }
}

fn entering(netns: &PodNetns, source: io::Error) -> RoutingError {
    RoutingError::Netns(NetnsError::Enter { path: netns.path().to_owned(), source })
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
