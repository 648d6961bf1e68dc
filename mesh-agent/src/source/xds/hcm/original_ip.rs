//! Who tells a connection manager where requests come from.
//!
//! Spec: `envoy/extensions/http/original_ip_detection/{xff,custom_header}/v3/*.proto`.

use envoy_types::pb::envoy::{
    config::core::v3::TypedExtensionConfig,
    extensions::http::original_ip_detection::{
        custom_header::v3::CustomHeaderConfig,
        xff::v3::{XffConfig, XffTrustedCidrs},
    },
    r#type::v3::HttpStatus,
};

use super::super::{common, matchers, reject::Decoder};
use crate::model::http_options::{OriginalIp, TrustedProxies};

pub(super) fn extension(d: &mut Decoder, value: TypedExtensionConfig) -> Option<OriginalIp> {
    let TypedExtensionConfig { name, typed_config } = value;
    match typed_config {
        Some(any) if common::is::<XffConfig>(&any) => {
            d.field("typed_config", |d| common::unpack(d, &any).and_then(|value| xff(d, value)))
        }
        Some(any) if common::is::<CustomHeaderConfig>(&any) => {
            d.field("typed_config", |d| common::unpack(d, &any).and_then(|value| header(d, value)))
        }
        other => {
            let type_name = other.as_ref().map(common::type_name).unwrap_or_default();
            common::refuse_extension(d, &name, &type_name);
            None
        }
    }
}

fn xff(d: &mut Decoder, value: XffConfig) -> Option<OriginalIp> {
    let XffConfig { xff_num_trusted_hops: hops, xff_trusted_cidrs, skip_xff_append } = value;
    let append = skip_xff_append.is_some_and(|skip| !skip.value);
    let trusted = match xff_trusted_cidrs {
        None => TrustedProxies::Hops(hops),
        Some(_) if hops > 0 => {
            return d.refused("can't have both xff_num_trusted_hops and xff_trusted_cidrs");
        }
        Some(XffTrustedCidrs { cidrs }) => {
            let ranges = d.field("xff_trusted_cidrs", |d| d.all("cidrs", cidrs, common::cidr))?;
            // As Envoy: nobody is named.
            if ranges.is_empty() { TrustedProxies::Hops(0) } else { TrustedProxies::Ranges(ranges) }
        }
    };
    Some(OriginalIp::ForwardedFor { trusted, append })
}

fn header(d: &mut Decoder, value: CustomHeaderConfig) -> Option<OriginalIp> {
    let CustomHeaderConfig {
        header_name,
        // It might make a request internal, which none is here.
        allow_extension_to_set_address_as_trusted: _,
        reject_with_status,
    } = value;
    let name = d.field("header_name", |d| matchers::header_name(d, &header_name))?;
    let rejected = reject_with_status.map(|HttpStatus { code }| {
        u16::try_from(code).ok().filter(|code| (400..=511).contains(code)).unwrap_or(403)
    });
    Some(OriginalIp::Header { name, rejected })
}
