//! Clusters whose endpoints are names.
//!
//! Spec: `envoy.config.cluster.v3.Cluster` (`STRICT_DNS`, `LOGICAL_DNS`).

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use serde::Serialize;

use super::{Endpoint, LoadAssignment};

#[derive(Debug, Clone, Serialize)]
pub struct Dns {
    /// What its endpoints are called among all assignments.
    pub assignment: Arc<str>,
    /// Its endpoints; their addresses stand for names.
    #[serde(skip)]
    pub template: LoadAssignment,
    /// Of the template's endpoints.
    #[serde(skip)]
    pub names: HashMap<SocketAddr, DnsName>,
    /// The name has one endpoint, its first address.
    pub logical: bool,
    pub family: DnsFamily,
    /// From one answer to the next question; more than zero.
    pub refresh: Duration,
    /// Added at random.
    pub jitter: Duration,
    /// After failures: at first, and at most.
    pub failure_refresh: (Duration, Duration),
}

/// What is asked for, and the port that goes with whatever comes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct DnsName {
    pub host: Arc<str>,
    pub port: u16,
}

/// Spec: `envoy.config.cluster.v3.Cluster.DnsLookupFamily`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DnsFamily {
    /// IPv6, and IPv4 where there is none.
    Auto,
    V4Only,
    V6Only,
    /// IPv4, and IPv6 where there is none.
    V4Preferred,
    All,
}

impl DnsFamily {
    /// Of a name's addresses, those that are used.
    pub fn of(self, addresses: &[IpAddr]) -> Vec<IpAddr> {
        let only = |v4: bool| -> Vec<IpAddr> {
            addresses.iter().copied().filter(|address| address.is_ipv4() == v4).collect()
        };
        let first = |v4: bool| match only(v4) {
            none if none.is_empty() => only(!v4),
            some => some,
        };
        match self {
            Self::Auto => first(false),
            Self::V4Preferred => first(true),
            Self::V4Only => only(true),
            Self::V6Only => only(false),
            Self::All => addresses.to_vec(),
        }
    }
}

impl Dns {
    /// Every name, once.
    pub fn hosts(&self) -> HashSet<Arc<str>> {
        self.names.values().map(|name| Arc::clone(&name.host)).collect()
    }

    /// The endpoints, where names have these addresses. Of an address that comes more than
    /// once, the first counts.
    pub fn resolved(&self, addresses: &HashMap<Arc<str>, Vec<IpAddr>>) -> LoadAssignment {
        let mut resolved = self.template.clone();
        let mut seen = HashSet::new();
        for locality in &mut resolved.localities {
            let named = std::mem::take(&mut locality.endpoints);
            for endpoint in named {
                let Some(name) = self.names.get(&endpoint.address) else { continue };
                let all = addresses.get(&name.host).map_or(&[][..], Vec::as_slice);
                let used = self.family.of(all);
                let used = used.into_iter().take(if self.logical { 1 } else { usize::MAX });
                for ip in used.filter(|ip| !ip.is_unspecified() && !ip.is_multicast()) {
                    let address = SocketAddr::new(ip.to_canonical(), name.port);
                    if seen.insert(address) {
                        let endpoint = Endpoint { address, ..Endpoint::clone(&endpoint) };
                        locality.endpoints.push(Arc::new(endpoint));
                    }
                }
            }
        }
        resolved
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::cluster::{Health, Locality, Tunnel};

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_family_says_which_addresses_are_used() {
        let (both, v4) = (ips(&["10.0.0.1", "fd00::1", "10.0.0.2"]), ips(&["10.0.0.1"]));
        for (family, of_both, of_v4) in [
            (DnsFamily::Auto, &["fd00::1"][..], &["10.0.0.1"][..]),
            (DnsFamily::V4Only, &["10.0.0.1", "10.0.0.2"], &["10.0.0.1"]),
            (DnsFamily::V6Only, &["fd00::1"], &[]),
            (DnsFamily::V4Preferred, &["10.0.0.1", "10.0.0.2"], &["10.0.0.1"]),
            (DnsFamily::All, &["10.0.0.1", "fd00::1", "10.0.0.2"], &["10.0.0.1"]),
        ] {
            assert_eq!(family.of(&both), ips(of_both), "{family:?}");
            assert_eq!(family.of(&v4), ips(of_v4), "{family:?}");
        }
    }

    #[test]
    fn names_become_their_addresses_each_once() {
        let stands_for = |n: u16| SocketAddr::from(([240, 0, 0, 1], n));
        let endpoint = |n: u16| {
            Arc::new(Endpoint {
                address: stands_for(n),
                hostname: None,
                tunnel: Tunnel::Direct,
                weight: n.into(),
                health: Health::Healthy,
                labels: None,
                check: None,
            })
        };
        let name = |host: &str, port| DnsName { host: host.into(), port };
        let localities = vec![Locality {
            endpoints: vec![endpoint(1), endpoint(2), endpoint(3)],
            ..Locality::default()
        }];
        let mut dns = Dns {
            assignment: "dns".into(),
            template: LoadAssignment { localities, ..LoadAssignment::default() },
            names: [
                (stands_for(1), name("a", 80)),
                (stands_for(2), name("b", 81)),
                (stands_for(3), name("a", 80)),
            ]
            .into(),
            logical: false,
            family: DnsFamily::All,
            refresh: Duration::from_secs(5),
            jitter: Duration::ZERO,
            failure_refresh: (Duration::from_secs(5), Duration::from_secs(5)),
        };
        assert_eq!(dns.hosts().len(), 2);
        let addresses = HashMap::from([
            ("a".into(), ips(&["10.0.0.1", "10.0.0.2", "0.0.0.0", "224.0.0.1"])),
            ("b".into(), ips(&["10.0.0.1"])),
        ]);
        let shown = |dns: &Dns, addresses| -> Vec<String> {
            let resolved = dns.resolved(addresses);
            resolved.endpoints().map(|e| format!("{} {}", e.address, e.weight)).collect()
        };
        assert_eq!(shown(&dns, &addresses), ["10.0.0.1:80 1", "10.0.0.2:80 1", "10.0.0.1:81 2"]);
        dns.logical = true;
        assert_eq!(shown(&dns, &addresses), ["10.0.0.1:80 1", "10.0.0.1:81 2"]);
        assert_eq!(shown(&dns, &HashMap::new()), [""; 0]);
    }
}
