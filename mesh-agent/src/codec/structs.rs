//! `google.protobuf.Struct` as JSON, and the other way round.

use envoy_types::pb::google::protobuf::{ListValue, Struct, Value as PbValue, value::Kind};
use serde_json::{Map, Value};

use crate::model::metadata::from_json;

/// The same as a message.
pub(super) fn to_struct(fields: &Map<String, Value>) -> Struct {
    let fields = fields.iter().map(|(name, value)| (name.clone(), to_value(value)));
    Struct { fields: fields.collect() }
}

fn to_value(value: &Value) -> PbValue {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(known) => Kind::BoolValue(*known),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(items) => {
            Kind::ListValue(ListValue { values: items.iter().map(to_value).collect() })
        }
        Value::Object(fields) => Kind::StructValue(to_struct(fields)),
    };
    PbValue { kind: Some(kind) }
}

/// The same as JSON; a number without a fraction is an integer.
pub(super) fn from_struct(value: Struct) -> Map<String, Value> {
    value.fields.into_iter().map(|(name, value)| (name, from_value(value))).collect()
}

fn from_value(value: PbValue) -> Value {
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(known)) => known.into(),
        Some(Kind::NumberValue(number)) => from_json(number.into()),
        Some(Kind::StringValue(text)) => text.into(),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(from_value).collect(),
        Some(Kind::StructValue(fields)) => Value::Object(from_struct(fields)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_come_back_as_they_were() {
        let value = json!({ "a": [1, 1.5, true, null, "x", { "b": -3 }] });
        assert_eq!(Value::Object(from_struct(to_struct(value.as_object().unwrap()))), value);
    }
}
