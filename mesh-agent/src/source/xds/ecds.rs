//! Configurations of HTTP filters that arrive by themselves.
//!
//! Spec: `envoy/config/core/v3/extension.proto` (`TypedExtensionConfig`),
//! `envoy/config/core/v3/config_source.proto` (`ExtensionConfigSource`).

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::{ExtensionConfigSource, TypedExtensionConfig};

use super::{ResourceType, common, config_source, filters, reject::Decoder};
use crate::model::extension::{DiscoveredFilter, ExtensionConfig};

pub(super) fn extension(d: &mut Decoder, value: TypedExtensionConfig) -> Option<ExtensionConfig> {
    let TypedExtensionConfig { name, typed_config } = value;
    if name.is_empty() {
        d.refuse_field("name", "is missing");
    }
    let Some(any) = typed_config else {
        return d.field("typed_config", |d| d.refused("is missing"));
    };
    let filter = filters::discovered(d, &name, &any)?;
    Some(ExtensionConfig { name: name.into(), type_name: common::type_name(&any).into(), filter })
}

/// An HTTP filter's place in its chain, and where its configuration comes from.
pub(super) fn discovered(
    d: &mut Decoder,
    name: &str,
    value: ExtensionConfigSource,
) -> Option<DiscoveredFilter> {
    let ExtensionConfigSource {
        config_source,
        default_config,
        apply_default_config_without_warming,
        type_urls,
    } = value;
    if name.is_empty() {
        d.refuse_field("name", "is missing: the configuration is asked for by it");
    }
    let name: Arc<str> = name.into();
    d.field("config_discovery", |d| {
        if config_source.is_none() {
            d.refuse_field("config_source", "is missing");
        }
        let kind = ResourceType::ExtensionConfig;
        config_source::reference(d, "config_source", config_source, kind, &name);
        if type_urls.is_empty() {
            d.refuse_field("type_urls", "is empty");
        }
        let type_names = d.all("type_urls", type_urls, |d, url| {
            let type_name = url.rsplit('/').next().unwrap_or_default();
            if !filters::is_discoverable(type_name) {
                return d.refused(format!("`{url}` is not supported"));
            }
            Some(Arc::from(type_name))
        });
        if apply_default_config_without_warming && default_config.is_none() {
            let reason = "needs a default_config";
            d.refuse_field("apply_default_config_without_warming", reason);
        }
        let default_config = match default_config {
            None => Some(None),
            Some(any) => d.field("default_config", |d| {
                let filter = filters::discovered(d, "", &any)?;
                let (name, type_name) = (Arc::clone(&name), common::type_name(&any).into());
                Some(Some(Arc::new(ExtensionConfig { name, type_name, filter })))
            }),
        };
        let filter = DiscoveredFilter {
            name,
            type_names: type_names?,
            default_config: default_config?,
            warms: !apply_default_config_without_warming,
        };
        match &filter.default_config {
            Some(config) if !filter.takes(&config.type_name) => d.field("default_config", |d| {
                d.refused(format!("{} is not among the type_urls", config.type_name))
            }),
            _ => Some(filter),
        }
    })
}
