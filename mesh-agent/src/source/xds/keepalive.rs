//! TCP's own probes.
//!
//! Spec: `envoy.config.core.v3.TcpKeepalive`.

use std::fmt;

use envoy_types::pb::{
    envoy::config::{cluster::v3::UpstreamConnectionOptions, core::v3::TcpKeepalive},
    google::protobuf::UInt32Value,
};

use super::reject::{Decoder, unsupported};
use crate::model::cluster::Keepalive;

/// More Linux does not take.
const PROBES_MAX: u8 = 127;
const MAX_SECONDS: u16 = 32_767;

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
        let probes = given(d, "keepalive_probes", keepalive_probes, PROBES_MAX);
        let time_s = given(d, "keepalive_time", keepalive_time, MAX_SECONDS);
        let interval_s = given(d, "keepalive_interval", keepalive_interval, MAX_SECONDS);
        let (probes, time_s, interval_s) = (probes?, time_s?, interval_s?);
        if probes == Some(0) || [time_s, interval_s].contains(&Some(0)) {
            return Some(Keepalive::Off);
        }
        Some(Keepalive::Probes { probes, time_s, interval_s })
    })
}

/// `None`: more than `most`.
fn given<T: Copy + PartialOrd + fmt::Display + TryFrom<u32>>(
    d: &mut Decoder,
    field: &'static str,
    value: Option<UInt32Value>,
    most: T,
) -> Option<Option<T>> {
    let Some(UInt32Value { value }) = value else { return Some(None) };
    match T::try_from(value) {
        Ok(value) if value <= most => Some(Some(value)),
        _ => d.field(field, |d| d.refused(format!("{value} is more than {most}"))),
    }
}
