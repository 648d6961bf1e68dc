//! The bootstrap's `layered_runtime`: which layers of runtime values there are.
//!
//! Spec: `envoy/config/bootstrap/v3/bootstrap.proto` (`LayeredRuntime`).

use std::{collections::HashSet, sync::Arc};

use envoy_types::pb::envoy::config::bootstrap::v3::{
    LayeredRuntime as PbLayeredRuntime, RuntimeLayer as PbRuntimeLayer,
    runtime_layer::{AdminLayer, LayerSpecifier, RtdsLayer},
};

use super::{ResourceType, config_source, reject::Decoder, rtds};
use crate::model::runtime::{LayerSource, LayerValues, LayeredRuntime, RuntimeLayer};

/// Where its resources come from is for the decoder's references to say.
pub(super) fn layered_runtime(d: &mut Decoder, value: PbLayeredRuntime) -> Option<LayeredRuntime> {
    let PbLayeredRuntime { layers } = value;
    let mut names = HashSet::new();
    let mut has_admin = false;
    let layers = d.all("layers", layers, |d, value| {
        let PbRuntimeLayer { name, layer_specifier } = value;
        if name.is_empty() {
            d.refuse_field("name", "is missing");
        } else if !names.insert(name.clone()) {
            d.refuse_field("name", format!("`{name}` is given twice"));
        }
        let values = match layer_specifier {
            Some(LayerSpecifier::StaticLayer(tree)) => d.field("static_layer", |d| {
                let mut layer = RuntimeLayer::default();
                rtds::tree(d, "", tree, &mut layer, 0);
                Some(LayerValues::Static(Arc::new(layer)))
            }),
            // Nobody changes values by hand here: it stays empty.
            Some(LayerSpecifier::AdminLayer(AdminLayer {})) => {
                if std::mem::replace(&mut has_admin, true) {
                    d.refuse_field("admin_layer", "is given twice");
                }
                Some(LayerValues::Static(Arc::default()))
            }
            Some(LayerSpecifier::RtdsLayer(value)) => d.field("rtds_layer", |d| resource(d, value)),
            Some(LayerSpecifier::DiskLayer(_)) => d.not_supported("disk_layer"),
            None => d.refused("is none of static_layer, admin_layer and rtds_layer"),
        };
        Some(LayerSource { name: name.into(), values: values? })
    })?;
    Some(LayeredRuntime { layers })
}

fn resource(d: &mut Decoder, value: RtdsLayer) -> Option<LayerValues> {
    let RtdsLayer { name, rtds_config } = value;
    if name.is_empty() {
        d.refuse_field("name", "is missing");
    }
    if rtds_config.is_none() {
        d.refuse_field("rtds_config", "is missing");
    }
    config_source::reference(d, "rtds_config", rtds_config, ResourceType::Runtime, &name);
    Some(LayerValues::Resource(name.into()))
}
