//! Envoy's bootstrap files as a setting.

use super::{layers::Layers, values::absolute};
use crate::source::{self, Bootstrap};

/// What the bootstrap file says: that has no other setting beside it.
const EXCLUDED: [&str; 7] = [
    "config_dir",
    "xds_server",
    "xds_mode",
    "xds_metadata",
    "xds_runtime_layer",
    "locality",
    "local_cluster",
];

/// As [`EXCLUDED`], but for an SDS server of its own, which the file does not name.
const EXCLUDED_WITHOUT_SDS: [&str; 5] =
    ["xds_ca", "xds_cert", "xds_key", "xds_node_id", "xds_cluster"];

/// What is in the bootstrap file, if one is given. The outer `None` says it is wrong.
pub(super) fn read(layers: &mut Layers<'_>) -> Option<Option<Bootstrap>> {
    let Some(path) = layers.optional("bootstrap", absolute)? else { return Some(None) };
    let has_sds = layers.is_given("sds_server");
    let further = EXCLUDED_WITHOUT_SDS.into_iter().filter(|_| !has_sds);
    for key in EXCLUDED.into_iter().chain(further) {
        if layers.is_given(key) {
            layers.fail_given(key, "excludes bootstrap, which says it");
        }
    }
    match source::read_bootstrap(&path) {
        Ok(bootstrap) => Some(Some(bootstrap)),
        Err(faults) => {
            for fault in faults {
                layers.fail_given("bootstrap", fault.to_string());
            }
            None
        }
    }
}
