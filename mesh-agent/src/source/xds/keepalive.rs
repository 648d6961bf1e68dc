//! TCP's own probes.
//!
//! Spec: `envoy.config.core.v3.TcpKeepalive`.

use std::time::Duration;

use envoy_types::pb::{
    envoy::config::{cluster::v3::UpstreamConnectionOptions, core::v3::TcpKeepalive},
    google::protobuf::UInt32Value,
};

use super::reject::{Decoder, unsupported};
use crate::model::cluster::Keepalive;

/// More Linux does not take.
const PROBES_MAX: u32 = 127;
const MAX_SECONDS: u32 = 32_767;

/// As Envoy: none where one of them is 0.
pub(super) fn of_cluster(d: &mut Decoder, value: UpstreamConnectionOptions) -> Option<Keepalive> {
    let UpstreamConnectionOptions {
        tcp_keepalive,
        set_local_interface_name_on_upstream_connections,
        happy_eyeballs_config,
    } = value;
    unsupported!(d; set_local_interface_name_on_upstream_connections, happy_eyeballs_config);
    let Some(value) = tcp_keepalive else { return Some(Keepalive::Usual) };
    let TcpKeepalive { keepalive_probes, keepalive_time, keepalive_interval } = value;
    d.field("tcp_keepalive", |d| {
        let mut given = |field, value: Option<UInt32Value>, most| match value.map(|of| of.value) {
            Some(value) if value > most => {
                d.field(field, |d| d.refused(format!("{value} is more than {most}")))
            }
            value => Some(value),
        };
        let probes = given("keepalive_probes", keepalive_probes, PROBES_MAX);
        let time = given("keepalive_time", keepalive_time, MAX_SECONDS);
        let interval = given("keepalive_interval", keepalive_interval, MAX_SECONDS);
        let (probes, time, interval) = (probes?, time?, interval?);
        if [probes, time, interval].contains(&Some(0)) {
            return Some(Keepalive::Off);
        }
        let seconds = |value: u32| Duration::from_secs(value.into());
        let (time, interval) = (time.map(seconds), interval.map(seconds));
        Some(Keepalive::Probes { probes, time, interval })
    })
}
