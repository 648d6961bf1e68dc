//! `upgrade_configs` of connection managers and routes.

use std::collections::BTreeMap;

use envoy_types::pb::{
    envoy::{
        config::route::v3::route_action::{
            UpgradeConfig as OfRoute, upgrade_config::ConnectConfig,
        },
        extensions::filters::network::http_connection_manager::v3::http_connection_manager::UpgradeConfig as OfManager,
    },
    google::protobuf::BoolValue,
};

use super::reject::{Decoder, unsupported};
use crate::model::upgrade::{CONNECT, Upgrades};

pub(super) fn of_manager(d: &mut Decoder, configs: Vec<OfManager>) -> Option<Upgrades> {
    decode(d, configs, |d, config| {
        let OfManager { upgrade_type, filters, enabled } = config;
        unsupported!(d; filters);
        (upgrade_type, enabled)
    })
}

/// And whether CONNECT ends here.
pub(super) fn of_route(d: &mut Decoder, configs: Vec<OfRoute>) -> Option<(Upgrades, bool)> {
    let mut terminates = false;
    let upgrades = decode(d, configs, |d, config| {
        let OfRoute { upgrade_type, enabled, connect_config } = config;
        if let Some(ConnectConfig { proxy_protocol_config, allow_post }) = connect_config {
            d.field("connect_config", |d| {
                unsupported!(d; proxy_protocol_config, allow_post);
                if upgrade_type.as_bytes().eq_ignore_ascii_case(CONNECT) {
                    terminates = enabled.is_none_or(|enabled| enabled.value);
                } else {
                    d.refuse("is only for the upgrade_type CONNECT");
                }
            });
        }
        (upgrade_type, enabled)
    })?;
    Some((upgrades, terminates))
}

fn decode<C>(
    d: &mut Decoder,
    configs: Vec<C>,
    mut read: impl FnMut(&mut Decoder, C) -> (String, Option<BoolValue>),
) -> Option<Upgrades> {
    let mut upgrades = BTreeMap::new();
    d.all("upgrade_configs", configs, |d, config| {
        let (name, enabled) = read(d, config);
        let known =
            upgrades.keys().any(|known: &std::sync::Arc<str>| known.eq_ignore_ascii_case(&name));
        let flaw = match name.to_ascii_lowercase().as_str() {
            "" => "is missing".to_owned(),
            "connect-udp" => format!("{name} is not supported"),
            _ if known => format!("`{name}` is given twice"),
            _ => {
                let enabled = enabled.is_none_or(|enabled| enabled.value);
                upgrades.insert(name.into(), enabled);
                return Some(());
            }
        };
        d.refuse_field("upgrade_type", flaw);
        None
    })?;
    Some(Upgrades(upgrades))
}
