//! Endpoints.
//!
//! Spec: `envoy/config/endpoint/v3/endpoint.proto`, `endpoint_components.proto`.

use std::sync::Arc;

use envoy_types::pb::{
    envoy::config::{
        core::v3::{HealthStatus, Metadata},
        endpoint::v3::{
            ClusterLoadAssignment, Endpoint as PbEndpoint, LbEndpoint, LocalityLbEndpoints,
            lb_endpoint::HostIdentifier,
        },
    },
    google::protobuf::{Struct, UInt32Value, value::Kind},
};

use super::{
    common,
    reject::{Decoder, IsSet as _, unsupported},
};
use crate::model::{
    cluster::{Endpoint, Health, LoadAssignment, Tunnel},
    workload::WorkloadUid,
};

/// `tunnel: http` here asks for HBONE.
const TUNNEL_METADATA: &str = "envoy.transport_socket_match";

/// Who the endpoint is: `identity`, `uid`.
const WORKLOAD_METADATA: &str = "mesh.workload";

/// An assignment's endpoints; its name is the caller's.
pub(super) fn assignment(d: &mut Decoder, value: ClusterLoadAssignment) -> Option<LoadAssignment> {
    let ClusterLoadAssignment { cluster_name: _, endpoints, named_endpoints, policy } = value;
    unsupported!(d; named_endpoints, policy);
    let localities = d.all("endpoints", endpoints, locality)?;
    Some(LoadAssignment { endpoints: localities.into_iter().flatten().collect() })
}

fn locality(d: &mut Decoder, value: LocalityLbEndpoints) -> Option<Vec<Arc<Endpoint>>> {
    let LocalityLbEndpoints {
        // Says where, for zone-aware balancing, which `common_lb_config` would ask for
        // and which is refused there.
        locality: _,
        // As all metadata but an endpoint's own: nothing that reads it is supported.
        metadata: _,
        lb_endpoints,
        load_balancing_weight,
        priority,
        proximity,
        lb_config,
    } = value;
    unsupported!(d; proximity, lb_config);
    if priority != 0 {
        d.refuse_field("priority", "only priority 0 is supported");
    }
    let share = weight(d, load_balancing_weight);
    let endpoints = d.all("lb_endpoints", lb_endpoints, |d, value| {
        let mut endpoint = lb_endpoint(d, value)?;
        match endpoint.weight.checked_mul(share?) {
            Some(weight) => endpoint.weight = weight,
            None => d.refuse_field("load_balancing_weight", "times its locality's is too large"),
        }
        Some(Arc::new(endpoint))
    });
    share.and(endpoints)
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

fn lb_endpoint(d: &mut Decoder, value: LbEndpoint) -> Option<Endpoint> {
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
    let tunnel = match metadata {
        Some(metadata) => d.field("metadata", |d| tunnel(d, metadata)),
        None => Some(Tunnel::Direct),
    };
    let address = match host_identifier {
        Some(HostIdentifier::Endpoint(endpoint)) => d.field("endpoint", |d| host(d, endpoint)),
        Some(HostIdentifier::EndpointName(_)) => d.not_supported("endpoint_name"),
        None => d.field("endpoint", |d| d.refused("is missing")),
    };
    Some(Endpoint { address: address?, tunnel: tunnel?, weight: weight?, health: health? })
}

fn host(d: &mut Decoder, value: PbEndpoint) -> Option<std::net::SocketAddr> {
    let PbEndpoint {
        address,
        health_check_config,
        // Read by `auto_host_rewrite` and health checks alone: both are refused.
        hostname: _,
        additional_addresses,
        // A name in statistics.
        observability_name: _,
    } = value;
    unsupported!(d; health_check_config, additional_addresses);
    let address = common::socket_address(d, "address", address)?;
    if address.ip().is_unspecified() || address.ip().is_multicast() {
        return d.field("address", |d| d.refused(format!("{} can't be dialled", address.ip())));
    }
    Some(address)
}

/// How an endpoint is reached, from its metadata.
///
/// Within the two namespaces that are read, everything unknown is refused: a typing
/// error there would send plaintext. Other namespaces are other programs' notes.
fn tunnel(d: &mut Decoder, value: Metadata) -> Option<Tunnel> {
    let Metadata { mut filter_metadata, typed_filter_metadata } = value;
    for namespace in [TUNNEL_METADATA, WORKLOAD_METADATA] {
        if typed_filter_metadata.contains_key(namespace) {
            let reason = "is not supported: use filter_metadata";
            d.item("typed_filter_metadata", namespace, |d| d.refuse(reason));
        }
    }
    let mut read = |d: &mut Decoder, namespace, keys| {
        let fields = filter_metadata.remove(namespace).unwrap_or_default();
        d.item("filter_metadata", namespace, |d| strings(d, fields, keys))
    };
    let asked = read(d, TUNNEL_METADATA, &["tunnel"]);
    let workload = read(d, WORKLOAD_METADATA, &["identity", "uid"]);
    let ([asked, _], [identity, uid]) = (asked?, workload?);

    match asked.as_deref() {
        Some("http") => {}
        None if !identity.is_set() && !uid.is_set() => return Some(Tunnel::Direct),
        None => {
            return d.item("filter_metadata", WORKLOAD_METADATA, |d| {
                d.refused(format!(
                    "names a workload that would be reached in the clear; \
                     add {TUNNEL_METADATA}: {{tunnel: http}}"
                ))
            });
        }
        Some(other) => {
            return d.item("filter_metadata", TUNNEL_METADATA, |d| {
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
