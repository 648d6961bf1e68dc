//! Configurations of HTTP filters that arrive by themselves.
//!
//! Spec: `envoy/config/core/v3/extension.proto` (`TypedExtensionConfig`).

use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;

use super::{common, hcm, reject::Decoder};
use crate::model::extension::ExtensionConfig;

pub(super) fn extension(d: &mut Decoder, value: TypedExtensionConfig) -> Option<ExtensionConfig> {
    let TypedExtensionConfig { name, typed_config } = value;
    if name.is_empty() {
        d.refuse_field("name", "is missing");
    }
    let Some(any) = typed_config else {
        return d.field("typed_config", |d| d.refused("is missing"));
    };
    let filter = hcm::discovered_filter(d, &name, &any)?;
    Some(ExtensionConfig { name: name.into(), type_name: common::type_name(&any).into(), filter })
}
