//! Layers of runtime values.
//!
//! Spec: `envoy/service/runtime/v3/rtds.proto`; Envoy reads a layer as
//! `configuration/operations/runtime` says.

use std::sync::Arc;

use envoy_types::pb::{
    envoy::service::runtime::v3::Runtime as PbRuntime,
    google::protobuf::{Struct, Value, value::Kind},
};

use super::reject::Decoder;
use crate::model::runtime::{Fraction, RUNTIME_DEPTH_MAX, RuntimeLayer, RuntimeValue};

/// How long a key may be once it is flattened, in bytes.
const KEY_MAX_BYTES: usize = 1024;

pub(super) fn layer(d: &mut Decoder, value: PbRuntime) -> Option<(Arc<str>, RuntimeLayer)> {
    let PbRuntime { name, layer } = value;
    if name.is_empty() {
        d.refuse_field("name", "is missing");
    }
    let mut decoded = RuntimeLayer::default();
    d.field("layer", |d| {
        tree(d, "", layer.unwrap_or_default(), &mut decoded, 0);
    });
    Some((name.into(), decoded))
}

/// Flattens a tree of values: keys are joined by dots.
pub(super) fn tree(
    d: &mut Decoder,
    prefix: &str,
    value: Struct,
    layer: &mut RuntimeLayer,
    depth: usize,
) {
    if depth > RUNTIME_DEPTH_MAX {
        return d.refuse(format!("is nested more than {RUNTIME_DEPTH_MAX} deep"));
    }
    let mut fields: Vec<_> = value.fields.into_iter().collect();
    fields.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (name, Value { kind }) in fields {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        d.item("fields", name, |d| {
            if key.len() > KEY_MAX_BYTES {
                return d.refuse(format!("makes a key of more than {KEY_MAX_BYTES} bytes"));
            }
            let value = match kind {
                Some(Kind::BoolValue(flag)) => RuntimeValue::Flag(flag),
                Some(Kind::NumberValue(number)) if number.is_finite() => {
                    RuntimeValue::Number(number)
                }
                Some(Kind::NumberValue(number)) => {
                    return d.refuse(format!("{number} is no value"));
                }
                Some(Kind::StringValue(text)) => of_text(text),
                Some(Kind::StructValue(inner)) if !is_fraction(&inner) => {
                    return tree(d, &key, inner, layer, depth + 1);
                }
                Some(Kind::StructValue(inner)) => match fraction(&inner) {
                    Some(fraction) => RuntimeValue::Fraction(fraction),
                    None => return d.refuse("is not a FractionalPercent"),
                },
                Some(Kind::ListValue(_)) => return d.refuse("a list is no runtime value"),
                Some(Kind::NullValue(_)) | None => return d.refuse("has no value"),
            };
            if layer.values.insert(key, value).is_some() {
                d.refuse("its key is given twice");
            }
        });
    }
}

/// Envoy takes numbers and flags that stand in quotes for what they say.
fn of_text(text: String) -> RuntimeValue {
    match text.trim() {
        flag if flag.eq_ignore_ascii_case("true") => RuntimeValue::Flag(true),
        flag if flag.eq_ignore_ascii_case("false") => RuntimeValue::Flag(false),
        number => match number.parse::<f64>() {
            Ok(number) if number.is_finite() => RuntimeValue::Number(number),
            _ => RuntimeValue::Text(text),
        },
    }
}

/// Whether a part of a tree is a value and not a part: these two names are reserved, and
/// nothing at all is a fraction of nothing, as in Envoy.
fn is_fraction(value: &Struct) -> bool {
    let reserved = |name: &String| name == "numerator" || name == "denominator";
    value.fields.is_empty() || value.fields.keys().any(reserved)
}

/// A `FractionalPercent` as a tree spells it: `{numerator: 5, denominator: TEN_THOUSAND}`.
fn fraction(value: &Struct) -> Option<Fraction> {
    let known = |name: &String| name == "numerator" || name == "denominator";
    if !value.fields.keys().all(known) {
        return None;
    }
    let numerator = match value.fields.get("numerator").and_then(|value| value.kind.as_ref()) {
        None => 0,
        Some(Kind::NumberValue(n)) if n.fract() == 0.0 && (0.0..=4_294_967_295.0).contains(n) => {
            *n as u32
        }
        Some(_) => return None,
    };
    let denominator = match value.fields.get("denominator").and_then(|value| value.kind.as_ref()) {
        None => 100,
        Some(Kind::StringValue(name)) => match name.as_str() {
            "HUNDRED" => 100,
            "TEN_THOUSAND" => 10_000,
            "MILLION" => 1_000_000,
            _ => return None,
        },
        Some(_) => return None,
    };
    Some(Fraction { numerator, denominator })
}
