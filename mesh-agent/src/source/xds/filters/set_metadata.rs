//! Spec: `envoy.extensions.filters.http.set_metadata.v3`.

use envoy_types::pb::{
    envoy::extensions::filters::http::set_metadata::v3::{Config, Metadata},
    google::protobuf::{Any, Struct, Value as PbValue, value::Kind},
};
use serde_json::{Map, Number, Value};

use super::super::{
    common,
    reject::{Decoder, unsupported},
};
use crate::model::{
    filter::{HttpFilter, RouteFilterConfig, SetMetadata},
    metadata,
};

/// How deep a value may be.
const DEPTH_MAX: usize = 100;

pub(super) fn filter(d: &mut Decoder, any: &Any) -> Option<HttpFilter> {
    #[expect(deprecated, reason = "what is deprecated still works in Envoy")]
    let Config { metadata_namespace, value, metadata } = common::unpack(d, any)?;
    let mut all = Vec::new();
    if let (Some(value), false) = (value, metadata_namespace.is_empty()) {
        let fields = d.field("value", |d| fields(d, value, DEPTH_MAX))?;
        all.push(SetMetadata { namespace: metadata_namespace, allow_overwrite: true, fields });
    }
    all.extend(d.all("metadata", metadata, entry)?);
    Some(HttpFilter::SetMetadata(all.into()))
}

/// As Envoy, which has no such configuration either.
pub(super) fn route(d: &mut Decoder, _: &Any) -> Option<RouteFilterConfig> {
    d.refused("routes can't tell set_metadata anything")
}

fn entry(d: &mut Decoder, value: Metadata) -> Option<SetMetadata> {
    let Metadata { metadata_namespace, allow_overwrite, value, typed_value } = value;
    unsupported!(d; typed_value);
    if metadata_namespace.is_empty() {
        d.refuse_field("metadata_namespace", "is missing");
    }
    let fields = d.field("value", |d| fields(d, value.unwrap_or_default(), DEPTH_MAX))?;
    Some(SetMetadata { namespace: metadata_namespace, allow_overwrite, fields })
}

fn fields(d: &mut Decoder, value: Struct, depth: usize) -> Option<Map<String, Value>> {
    let Struct { fields } = value;
    let mut fields: Vec<_> = fields.into_iter().collect();
    fields.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    let mut all = Map::new();
    for (name, value) in fields {
        let value = d.field(&name, |d| self::value(d, value, depth))?;
        all.insert(name, value);
    }
    Some(all)
}

fn value(d: &mut Decoder, value: PbValue, depth: usize) -> Option<Value> {
    let Some(below) = depth.checked_sub(1) else { return d.refused("is too deep") };
    match value.kind {
        None | Some(Kind::NullValue(_)) => Some(Value::Null),
        Some(Kind::BoolValue(flag)) => Some(Value::Bool(flag)),
        Some(Kind::StringValue(text)) => Some(Value::String(text)),
        Some(Kind::NumberValue(number)) => match Number::from_f64(number) {
            Some(number) => Some(metadata::from_json(Value::Number(number))),
            None => d.refused("is not a number"),
        },
        Some(Kind::StructValue(inner)) => fields(d, inner, below).map(Value::Object),
        Some(Kind::ListValue(list)) => {
            let mut all = Vec::new();
            for (i, item) in list.values.into_iter().enumerate() {
                all.push(d.field(&i.to_string(), |d| self::value(d, item, below))?);
            }
            Some(Value::Array(all))
        }
    }
}
