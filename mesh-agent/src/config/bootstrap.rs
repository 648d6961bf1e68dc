//! Envoy's bootstrap files as a setting.

use super::{Origin, absolute, layers::Layers};
use crate::source::{self, Bootstrap};

/// What the bootstrap file says: that has no other setting beside it.
const EXCLUDED: [&str; 10] = [
    "config_dir",
    "xds_server",
    "xds_mode",
    "xds_ca",
    "xds_cert",
    "xds_key",
    "xds_node_id",
    "xds_cluster",
    "xds_metadata",
    "xds_runtime_layer",
];

/// What is in the bootstrap file, if one is given. The outer `None` says it is wrong.
pub(super) fn read(layers: &mut Layers<'_>) -> Option<Option<Bootstrap>> {
    let Some(path) = layers.optional("bootstrap", absolute)? else { return Some(None) };
    for key in EXCLUDED.into_iter().filter(|key| layers.is_given(key)).collect::<Vec<_>>() {
        layers.fail(key, Origin::Default, "excludes bootstrap, which says it".to_owned());
    }
    match source::read_bootstrap(&path) {
        Ok(bootstrap) => Some(Some(bootstrap)),
        Err(faults) => {
            for fault in faults {
                layers.fail("bootstrap", Origin::Default, fault.to_string());
            }
            None
        }
    }
}
