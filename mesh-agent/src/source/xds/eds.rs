//! Endpoints.
//!
//! Spec: `envoy/config/endpoint/v3/endpoint.proto`, `endpoint_components.proto`.

use std::{
    collections::{HashMap, HashSet},
    net::{Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::{HealthStatus, Locality as PbLocality, Metadata},
            endpoint::v3::{
                ClusterLoadAssignment, Endpoint as PbEndpoint, LbEndpoint, LocalityLbEndpoints,
                cluster_load_assignment::{Policy, policy::DropOverload as PbDropOverload},
                lb_endpoint::HostIdentifier,
                locality_lb_endpoints::LbConfig,
            },
        },
        r#type::v3::{FractionalPercent, fractional_percent::DenominatorType},
    },
    google::protobuf::{Struct, UInt32Value, value::Kind},
};

use super::{
    balancing::LB_METADATA,
    common, health_check,
    options::json_of,
    rds::authority,
    reject::{Decoder, IsSet as _, unsupported},
};
use crate::model::{
    cluster::{
        DropOverload, Endpoint, EndpointCheck, Health, LoadAssignment, Locality, Place, Tunnel,
    },
    socket_match::{Labels, SocketLabels},
    workload::WorkloadUid,
};

/// `tunnel: http` here asks for HBONE; clusters' `transport_socket_matches` look at the rest.
const SOCKET_METADATA: &str = "envoy.transport_socket_match";

const TUNNEL: &str = "tunnel";

/// Who the endpoint is: `identity`, `uid`.
const WORKLOAD_METADATA: &str = "mesh.workload";

/// Envoy's lowest priority.
const PRIORITY_MAX: u32 = 128;

/// An assignment's endpoints; its name is the caller's. They grow stale from now on.
pub(super) fn assignment(d: &mut Decoder, value: ClusterLoadAssignment) -> Option<LoadAssignment> {
    let ClusterLoadAssignment { cluster_name: _, endpoints, named_endpoints, policy } = value;
    let assignment = policy.map(|value| d.field("policy", |d| self::policy(d, value)));
    let decoded = d.all("endpoints", endpoints, |d, value| locality(d, value, &named_endpoints));
    let assignment = assignment.unwrap_or_else(|| Some(LoadAssignment::default()));
    Some(LoadAssignment { localities: merged(decoded?), ..assignment? })
}

/// By priority and place. Of an address that is given more than once the first counts,
/// of a locality's weights the last, as with Envoy.
fn merged(decoded: Vec<Locality>) -> Vec<Locality> {
    let mut seen = HashSet::new();
    let mut at: HashMap<(u32, Place), usize> = HashMap::new();
    let mut merged: Vec<Locality> = Vec::new();
    for mut locality in decoded {
        locality.endpoints.retain(|endpoint| seen.insert(endpoint.address));
        let index = *at.entry((locality.priority, locality.place.clone())).or_insert(merged.len());
        match merged.get_mut(index) {
            Some(known) => {
                known.endpoints.append(&mut locality.endpoints);
                if locality.weight > 0 {
                    known.weight = locality.weight;
                }
            }
            None => merged.push(locality),
        }
    }
    merged.sort_by_key(|locality| locality.priority);
    merged
}

/// Everything of an assignment but its localities.
fn policy(d: &mut Decoder, value: Policy) -> Option<LoadAssignment> {
    let Policy {
        drop_overloads,
        overprovisioning_factor,
        endpoint_stale_after,
        weighted_priority_health,
    } = value;
    let drop_overloads = d.all("drop_overloads", drop_overloads, drop_overload);
    let default = LoadAssignment::default();
    let overprovisioning_factor = match overprovisioning_factor {
        None => Some(default.overprovisioning_factor),
        Some(UInt32Value { value: 0 }) => {
            d.field("overprovisioning_factor", |d| d.refused("must be at least 1"))
        }
        Some(UInt32Value { value }) => Some(value),
    };
    let stale_at = match endpoint_stale_after {
        None => Some(None),
        Some(value) => common::duration(d, "endpoint_stale_after", value).and_then(|after| {
            match after {
                Duration::ZERO => {
                    d.field("endpoint_stale_after", |d| d.refused("must be more than zero"))
                }
                // Beyond the clock's end is never.
                after => Some(Instant::now().checked_add(after)),
            }
        }),
    };
    Some(LoadAssignment {
        localities: Vec::new(),
        overprovisioning_factor: overprovisioning_factor?,
        weighted_priority_health,
        drop_overloads: drop_overloads?,
        stale_at: stale_at?,
    })
}

fn drop_overload(d: &mut Decoder, value: PbDropOverload) -> Option<DropOverload> {
    let PbDropOverload { category, drop_percentage } = value;
    if category.is_empty() {
        d.refuse_field("category", "is missing");
    }
    let FractionalPercent { numerator, denominator } = drop_percentage.unwrap_or_default();
    let per_million = d.field("drop_percentage", |d| {
        let scale = match DenominatorType::try_from(denominator) {
            Ok(DenominatorType::Hundred) => 10_000,
            Ok(DenominatorType::TenThousand) => 100,
            Ok(DenominatorType::Million) => 1,
            Err(_) => {
                return d.field("denominator", |d| d.refused(format!("{denominator} is unknown")));
            }
        };
        match numerator.checked_mul(scale).filter(|part| *part <= DropOverload::ALL) {
            Some(per_million) => Some(per_million),
            None => d.refused("is more than everything"),
        }
    });
    Some(DropOverload { category: category.into(), per_million: per_million? })
}

#[expect(deprecated, reason = "a deprecated field that is set is refused too")]
fn locality(
    d: &mut Decoder,
    value: LocalityLbEndpoints,
    named: &HashMap<String, PbEndpoint>,
) -> Option<Locality> {
    let LocalityLbEndpoints {
        locality,
        metadata,
        lb_endpoints,
        load_balancing_weight,
        priority,
        proximity,
        lb_config,
    } = value;
    unsupported!(d; proximity);
    match lb_config {
        None => {}
        Some(LbConfig::LoadBalancerEndpoints(_)) => {
            d.refuse_field("load_balancer_endpoints", "is not supported: use lb_endpoints");
        }
        Some(LbConfig::LedsClusterLocalityConfig(_)) => {
            d.refuse_field(
                "leds_cluster_locality_config",
                "LEDS is not supported: use lb_endpoints",
            );
        }
    }
    if priority > PRIORITY_MAX {
        d.refuse_field("priority", format!("must be at most {PRIORITY_MAX}"));
    }
    let weight = match load_balancing_weight {
        None => Some(0),
        given => weight(d, given),
    };
    // Envoy reads the weights of localities that have a name.
    let weight = if locality.is_some() { weight } else { weight.map(|_| 0) };
    let PbLocality { region, zone, sub_zone } = locality.unwrap_or_default();
    let labels = match metadata {
        Some(metadata) => d.field("metadata", |d| locality_labels(d, metadata)),
        None => Some(Labels::default()),
    };
    let given = labels.clone().unwrap_or_default();
    let endpoints = d.all("lb_endpoints", lb_endpoints, |d, value| {
        lb_endpoint(d, value, named, &given).map(Arc::new)
    });
    labels?;
    let place = Place { region, zone, sub_zone };
    Some(Locality { place, priority, weight: weight?, endpoints: endpoints? })
}

fn weight(d: &mut Decoder, value: Option<UInt32Value>) -> Option<u32> {
    match value {
        None => Some(1),
        Some(UInt32Value { value: 0 }) => {
            d.field("load_balancing_weight", |d| d.refused("must be at least 1"))
        }
        Some(UInt32Value { value }) => Some(value),
    }
}

fn lb_endpoint(
    d: &mut Decoder,
    value: LbEndpoint,
    named: &HashMap<String, PbEndpoint>,
    locality: &Labels,
) -> Option<Endpoint> {
    let LbEndpoint { health_status, metadata, load_balancing_weight, host_identifier } = value;
    let health = match HealthStatus::try_from(health_status) {
        Ok(HealthStatus::Unknown | HealthStatus::Healthy) => Some(Health::Healthy),
        Ok(HealthStatus::Degraded) => Some(Health::Degraded),
        Ok(HealthStatus::Unhealthy | HealthStatus::Draining | HealthStatus::Timeout) => {
            Some(Health::Unhealthy)
        }
        Err(_) => d.field("health_status", |d| d.refused(format!("{health_status} is unknown"))),
    };
    let weight = weight(d, load_balancing_weight);
    let mut lb = Labels::default();
    let reached = match metadata {
        Some(mut metadata) => {
            lb = metadata.filter_metadata.remove(LB_METADATA).map(json_of).unwrap_or_default();
            d.field("metadata", |d| reached(d, metadata))
        }
        None => Some((Tunnel::Direct, Labels::default())),
    };
    let host = match host_identifier {
        Some(HostIdentifier::Endpoint(endpoint)) => {
            d.field("endpoint", |d| self::host(d, endpoint))
        }
        Some(HostIdentifier::EndpointName(name)) => match named.get(&name) {
            Some(endpoint) => d.field("endpoint_name", |d| self::host(d, endpoint.clone())),
            None => {
                let reason = format!("there is no `{name}` among named_endpoints");
                d.field("endpoint_name", |d| d.refused(reason))
            }
        },
        None => d.field("endpoint", |d| d.refused("is missing")),
    };
    let (tunnel, own) = reached?;
    let Host { address, hostname, check } = host?;
    let labels = (!own.is_empty() || !locality.is_empty() || !lb.is_empty())
        .then(|| Arc::new(SocketLabels { own, locality: locality.clone(), lb }));
    Some(Endpoint { address, hostname, tunnel, weight: weight?, health: health?, labels, check })
}

/// Who the endpoint is, whatever it is to its locality.
struct Host {
    address: SocketAddr,
    hostname: Option<Arc<str>>,
    check: Option<Arc<EndpointCheck>>,
}

fn host(d: &mut Decoder, value: PbEndpoint) -> Option<Host> {
    let PbEndpoint {
        address,
        health_check_config,
        hostname,
        additional_addresses,
        // A name in statistics.
        observability_name: _,
    } = value;
    unsupported!(d; additional_addresses);
    let address = common::socket_address(d, "address", address);
    let check = match health_check_config {
        None => Some(None),
        Some(value) => d
            .field("health_check_config", |d| health_check::endpoint_check(d, value, address))
            .map(|check| Some(Arc::new(check))),
    };
    let hostname = match hostname.as_str() {
        "" => Some(None),
        // The form in which it may stand in a request.
        name if name.parse::<Ipv6Addr>().is_ok() => Some(Some(format!("[{name}]").into())),
        _ => d.field("hostname", |d| authority(d, hostname)).map(|name| Some(name.into())),
    };
    let address = address?;
    if address.ip().is_unspecified() || address.ip().is_multicast() {
        return d.field("address", |d| d.refused(format!("{} can't be dialled", address.ip())));
    }
    Some(Host { address, hostname: hostname?, check: check? })
}

/// How an endpoint is reached, from its metadata, and its labels besides.
///
/// What would ask for a tunnel and is not understood is refused: a typing error there
/// would send plaintext. Other namespaces are other programs' notes.
fn reached(d: &mut Decoder, value: Metadata) -> Option<(Tunnel, Labels)> {
    let Metadata { mut filter_metadata, typed_filter_metadata } = value;
    for namespace in [SOCKET_METADATA, WORKLOAD_METADATA] {
        if typed_filter_metadata.contains_key(namespace) {
            let reason = "is not supported: use filter_metadata";
            d.item("typed_filter_metadata", namespace, |d| d.refuse(reason));
        }
    }
    let mut socket = filter_metadata.remove(SOCKET_METADATA).unwrap_or_default();
    let asked = Struct { fields: socket.fields.remove_entry(TUNNEL).into_iter().collect() };
    let asked = d.item("filter_metadata", SOCKET_METADATA, |d| strings(d, asked, &[TUNNEL]));
    let workload = filter_metadata.remove(WORKLOAD_METADATA).unwrap_or_default();
    let workload = d
        .item("filter_metadata", WORKLOAD_METADATA, |d| strings(d, workload, &["identity", "uid"]));
    let ([asked, _], workload) = (asked?, workload?);
    Some((tunnel(d, asked, workload)?, json_of(socket)))
}

/// The labels of a locality's endpoints.
fn locality_labels(d: &mut Decoder, value: Metadata) -> Option<Labels> {
    let Metadata { mut filter_metadata, typed_filter_metadata: _ } = value;
    let labels = json_of(filter_metadata.remove(SOCKET_METADATA).unwrap_or_default());
    if !labels.contains_key(TUNNEL) {
        return Some(labels);
    }
    d.item("filter_metadata", SOCKET_METADATA, |d| {
        d.refuse_field(TUNNEL, "is for endpoints, each of which names its identity");
        None
    })
}

fn tunnel(
    d: &mut Decoder,
    asked: Option<String>,
    [identity, uid]: [Option<String>; 2],
) -> Option<Tunnel> {
    match asked.as_deref() {
        Some("http") => {}
        None if !identity.is_set() && !uid.is_set() => return Some(Tunnel::Direct),
        None => {
            return d.item("filter_metadata", WORKLOAD_METADATA, |d| {
                d.refused(format!(
                    "names a workload that would be reached in the clear; \
                     add {SOCKET_METADATA}: {{tunnel: http}}"
                ))
            });
        }
        Some(other) => {
            return d.item("filter_metadata", SOCKET_METADATA, |d| {
                d.field("tunnel", |d| d.refused(format!("`{other}` is unknown; only http is")))
            });
        }
    }
    d.item("filter_metadata", WORKLOAD_METADATA, |d| {
        let identity = d.field("identity", |d| match identity {
            None => d.refused("is missing: a tunnel has to know whom it must reach"),
            Some(identity) => match identity.parse() {
                Ok(identity) => Some(identity),
                Err(error) => d.refused(format!("{error}")),
            },
        });
        let workload = uid.map(|uid| WorkloadUid(uid.into()));
        Some(Tunnel::Hbone { identity: identity?, workload })
    })
}

/// The values of up to two keys that may be there, all strings that are not empty.
fn strings(d: &mut Decoder, value: Struct, keys: &[&str]) -> Option<[Option<String>; 2]> {
    let mut found = [None, None];
    let mut whole = Some(());
    let mut fields: Vec<_> = value.fields.into_iter().collect();
    fields.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (key, value) in fields {
        let slot = keys.iter().position(|known| *known == key);
        let slot = slot.and_then(|i| found.get_mut(i));
        match (slot, value.kind) {
            (Some(slot), Some(Kind::StringValue(s))) if !s.is_empty() => *slot = Some(s),
            (Some(_), _) => whole = d.field(&key, |d| d.refused("must be a string, not empty")),
            (None, _) => whole = d.field(&key, |d| d.refused("is not supported")),
        }
    }
    whole.map(|()| found)
}
