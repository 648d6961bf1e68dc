//! Clusters whose endpoints are names.
//!
//! Spec: `envoy/config/cluster/v3/cluster.proto` (`STRICT_DNS`, `LOGICAL_DNS`).

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use envoy_types::pb::{
    envoy::config::{
        cluster::v3::cluster::{DnsLookupFamily, RefreshRate},
        core::v3::{SocketAddress, address::Address, socket_address::PortSpecifier},
        endpoint::v3::{
            ClusterLoadAssignment, Endpoint as PbEndpoint, lb_endpoint::HostIdentifier,
        },
    },
    google::protobuf::Duration as PbDuration,
};

use super::{address::is_host, common, eds, reject::Decoder};
use crate::model::cluster::{Dns, DnsFamily, DnsName};

const REFRESH_DEFAULT: Duration = Duration::from_secs(5);

/// What a cluster says of it.
pub(super) struct Fields {
    pub(super) load_assignment: Option<ClusterLoadAssignment>,
    pub(super) dns_refresh_rate: Option<PbDuration>,
    pub(super) dns_failure_refresh_rate: Option<RefreshRate>,
    pub(super) dns_jitter: Option<PbDuration>,
    pub(super) dns_lookup_family: i32,
    pub(super) respect_dns_ttl: bool,
}

impl Fields {
    /// Refuses what is for clusters of names only.
    pub(super) fn refuse(&self, d: &mut Decoder) {
        for (field, set) in [
            ("dns_refresh_rate", self.dns_refresh_rate.is_some()),
            ("dns_failure_refresh_rate", self.dns_failure_refresh_rate.is_some()),
            ("dns_jitter", self.dns_jitter.is_some()),
            ("dns_lookup_family", self.dns_lookup_family != 0),
            ("respect_dns_ttl", self.respect_dns_ttl),
        ] {
            if set {
                d.refuse_field(field, "is for STRICT_DNS and LOGICAL_DNS");
            }
        }
    }
}

pub(super) fn dns(d: &mut Decoder, cluster: &str, fields: Fields, logical: bool) -> Option<Dns> {
    let Fields {
        load_assignment,
        dns_refresh_rate,
        dns_failure_refresh_rate,
        dns_jitter,
        dns_lookup_family,
        respect_dns_ttl,
    } = fields;
    if respect_dns_ttl {
        let reason = "is not supported: the node's resolver tells no TTL; use dns_refresh_rate";
        d.refuse_field("respect_dns_ttl", reason);
    }
    let refresh = common::period(d, "dns_refresh_rate", dns_refresh_rate, REFRESH_DEFAULT)?;
    let jitter = match dns_jitter {
        None => Some(Duration::ZERO),
        Some(value) => common::duration(d, "dns_jitter", value),
    };
    let failure_refresh = match dns_failure_refresh_rate {
        None => Some((refresh, refresh)),
        Some(RefreshRate { base_interval, max_interval }) => {
            d.field("dns_failure_refresh_rate", |d| {
                if base_interval.is_none() {
                    return d.field("base_interval", |d| d.refused("is missing"));
                }
                let base = common::period(d, "base_interval", base_interval, refresh)?;
                // As Envoy: ten times as long, unless that is said.
                let most =
                    common::period(d, "max_interval", max_interval, base.saturating_mul(10))?;
                match most < base {
                    true => d.field("max_interval", |d| d.refused("is less than base_interval")),
                    false => Some((base, most)),
                }
            })
        }
    };
    let family = match DnsLookupFamily::try_from(dns_lookup_family) {
        Ok(DnsLookupFamily::Auto) => Some(DnsFamily::Auto),
        Ok(DnsLookupFamily::V4Only) => Some(DnsFamily::V4Only),
        Ok(DnsLookupFamily::V6Only) => Some(DnsFamily::V6Only),
        Ok(DnsLookupFamily::V4Preferred) => Some(DnsFamily::V4Preferred),
        Ok(DnsLookupFamily::All) => Some(DnsFamily::All),
        Err(_) => {
            d.field("dns_lookup_family", |d| d.refused(format!("{dns_lookup_family} is unknown")))
        }
    };
    let Some(mut assignment) = load_assignment else {
        return d.field("load_assignment", |d| d.refused("is missing"));
    };
    let (template, names) = d.field("load_assignment", |d| {
        let names = take_names(d, &mut assignment, logical);
        let template = eds::assignment(d, assignment)?;
        if template.stale_at.is_some() {
            let reason = "is for EDS: nothing would renew these";
            d.field("policy", |d| d.refuse_field("endpoint_stale_after", reason));
        }
        Some((template, names?))
    })?;
    let assignment = format!("dns://{cluster}").into();
    Some(Dns {
        assignment,
        template,
        names,
        logical,
        family: family?,
        refresh,
        jitter: jitter?,
        failure_refresh: failure_refresh?,
    })
}

/// Puts addresses in the place of names, which are told apart by them: the rest is as with
/// endpoints that have one.
fn take_names(
    d: &mut Decoder,
    assignment: &mut ClusterLoadAssignment,
    logical: bool,
) -> Option<HashMap<SocketAddr, DnsName>> {
    if !assignment.named_endpoints.is_empty() {
        return d.field("named_endpoints", |d| d.refused("are not supported with names"));
    }
    let count: usize = assignment.endpoints.iter().map(|of| of.lb_endpoints.len()).sum();
    if logical && (assignment.endpoints.len() != 1 || count != 1) {
        return d.field("endpoints", |d| d.refused("LOGICAL_DNS has one endpoint of one locality"));
    }
    let mut names = Some(HashMap::new());
    let mut number = 0_u32;
    for (i, locality) in assignment.endpoints.iter_mut().enumerate() {
        for (j, endpoint) in locality.lb_endpoints.iter_mut().enumerate() {
            let Some(HostIdentifier::Endpoint(PbEndpoint {
                address: Some(address), hostname, ..
            })) = &mut endpoint.host_identifier
            else {
                continue;
            };
            let Some(Address::SocketAddress(address)) = &mut address.address else { continue };
            number += 1;
            let name = d.item("endpoints", i, |d| {
                d.item("lb_endpoints", j, |d| {
                    d.field("endpoint", |d| {
                        d.field("address", |d| d.field("socket_address", |d| name(d, address)))
                    })
                })
            });
            // Reserved addresses (RFC 1112 §4): none of them is a host's.
            let stands_for = std::net::Ipv4Addr::from(0xf000_0000 | number);
            address.address = stands_for.to_string();
            match (&mut names, name) {
                (Some(names), Some(name)) => {
                    if hostname.is_empty() {
                        hostname.push_str(&name.host);
                    }
                    names.insert(SocketAddr::from((stands_for, name.port)), name);
                }
                _ => names = None,
            }
        }
    }
    names
}

fn name(d: &mut Decoder, address: &SocketAddress) -> Option<DnsName> {
    let port = match address.port_specifier {
        Some(PortSpecifier::PortValue(port)) => d.field("port_value", |d| common::port(d, port)),
        Some(PortSpecifier::NamedPort(_)) => d.not_supported("named_port"),
        None => d.field("port_value", |d| d.refused("is missing")),
    };
    if !is_host(&address.address) {
        let reason = format!("`{}` is not a host", address.address);
        return d.field("address", |d| d.refused(reason));
    }
    let host: Arc<str> = address.address.as_str().into();
    Some(DnsName { host, port: port? })
}
