//! The connection to a control plane, as `mesh_xds_*`.

use std::{
    sync::atomic::Ordering,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{
    Metrics,
    labels::{ByType, ByTypeAndResult},
};

#[derive(Default)]
pub(super) struct XdsFamilies {
    connected: Gauge,
    synced: Gauge,
    streams: Counter,
    responses: Family<ByTypeAndResult, Counter>,
    resources: Family<ByType, Gauge>,
    warming: Family<ByType, Gauge>,
    refusing: Family<ByType, Gauge>,
    last_ack: Family<ByType, Gauge>,
    lookups: Family<ByTypeAndResult, Counter>,
    on_demand_names: Gauge,
    on_demand_held: Gauge,
}

impl XdsFamilies {
    pub(super) fn register(&self, r: &mut Registry) {
        r.register(
            "mesh_xds_connected",
            "1 while every stream has a server it can talk to",
            self.connected.clone(),
        );
        r.register(
            "mesh_xds_synced",
            "1 while every stream's server has answered on the connection it has now",
            self.synced.clone(),
        );
        r.register("mesh_xds_streams", "Streams to control planes tried", self.streams.clone());
        r.register(
            "mesh_xds_responses",
            "Responses of the control plane, by how they were answered",
            self.responses.clone(),
        );
        r.register("mesh_xds_resources", "Resources accepted", self.resources.clone());
        r.register(
            "mesh_xds_warming",
            "Resources that wait for others before they are in force",
            self.warming.clone(),
        );
        r.register(
            "mesh_xds_refusing",
            "1 while something that was refused has not been made good",
            self.refusing.clone(),
        );
        r.register(
            "mesh_xds_last_ack_timestamp_seconds",
            "When a response was accepted last, as Unix time",
            self.last_ack.clone(),
        );
        r.register(
            "mesh_on_demand_lookups",
            "Requests that waited for a resource they asked for, by what came of it",
            self.lookups.clone(),
        );
        r.register(
            "mesh_on_demand_names",
            "Resources that were asked for by requests and are kept",
            self.on_demand_names.clone(),
        );
        r.register(
            "mesh_on_demand_held",
            "Requests that wait for a resource now",
            self.on_demand_held.clone(),
        );
    }
}

/// All streams together.
#[derive(Debug, Clone, Copy)]
pub struct XdsStreams {
    /// Every one has its server.
    pub connected: bool,
    /// Every one's server has answered.
    pub synced: bool,
    /// How many connections were tried.
    pub tries: u64,
}

/// One type of resources, in numbers.
#[derive(Debug, Clone)]
pub struct XdsType {
    pub kind: &'static str,
    pub acks: u64,
    pub nacks: u64,
    pub accepted: usize,
    pub warming: usize,
    pub refusing: bool,
    pub last_ack: Option<SystemTime>,
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

impl Metrics {
    /// A request has waited for a resource of that type.
    pub fn on_demand(&self, kind: &'static str, result: &'static str) {
        let series = ByTypeAndResult { kind, result };
        self.0.own.xds.lookups.get_or_create_owned(&series).inc();
    }

    /// How many names are asked for by requests, and how many requests wait.
    pub fn on_demand_load(&self, names: usize, held: usize) {
        self.0.own.xds.on_demand_names.set(signed(names));
        self.0.own.xds.on_demand_held.set(signed(held));
    }

    /// The connection to the control plane, as it is now.
    pub fn xds(&self, streams: XdsStreams, types: impl IntoIterator<Item = XdsType>) {
        let xds = &self.0.own.xds;
        let XdsStreams { connected, synced, tries } = streams;
        xds.connected.set(i64::from(connected));
        xds.synced.set(i64::from(synced));
        xds.streams.inner().store(tries, Ordering::Relaxed);
        for XdsType { kind, acks, nacks, accepted, warming, refusing, last_ack } in types {
            for (result, total) in [("ack", acks), ("nack", nacks)] {
                let series = ByTypeAndResult { kind, result };
                let counter = xds.responses.get_or_create_owned(&series);
                counter.inner().store(total, Ordering::Relaxed);
            }
            let of = ByType(kind);
            xds.resources.get_or_create_owned(&of).set(signed(accepted));
            xds.warming.get_or_create_owned(&of).set(signed(warming));
            xds.refusing.get_or_create_owned(&of).set(i64::from(refusing));
            let since = last_ack.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
            let seconds = since.map_or(0, |since| since.as_secs());
            let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
            xds.last_ack.get_or_create_owned(&of).set(seconds);
        }
    }
}
