//! What filters note about a request, and matchers of it.
//!
//! Spec: `envoy.config.core.v3.Metadata`, `envoy/type/matcher/v3/{metadata,value,number}.proto`.

use serde::Serialize;
use serde_json::{Map, Value};

use super::authz::StringMatcher;

/// A request's dynamic metadata: by namespace, usually a filter's name, what is a
/// `google.protobuf.Struct` in Envoy. Numbers without a fraction are integers here.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DynamicMetadata(Option<Box<Map<String, Value>>>);

impl DynamicMetadata {
    /// Whether nothing was noted.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Each namespace, and what is in it.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.0.iter().flat_map(|all| all.iter())
    }

    /// What stands there; an empty path means all of the namespace.
    pub fn get<S: AsRef<str>>(&self, namespace: &str, path: &[S]) -> Option<&Value> {
        let start = self.0.as_ref()?.get(namespace)?;
        path.iter().try_fold(start, |value, key| value.as_object()?.get(key.as_ref()))
    }

    /// Adds fields to a namespace, as Envoy's `StructUtil::update` does: structs are merged, lists
    /// joined, everything else replaced.
    pub fn update(&mut self, namespace: &str, fields: &Map<String, Value>) {
        let all = self.0.get_or_insert_default();
        let known = all.entry(namespace).or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(known) = known {
            update(known, fields);
        }
    }

    /// Adds fields to a namespace, as Envoy does: of equal names the new one stays.
    pub fn merge(&mut self, namespace: &str, fields: Map<String, Value>) {
        let all = self.0.get_or_insert_default();
        match all.get_mut(namespace) {
            Some(Value::Object(known)) => known.extend(fields),
            _ => drop(all.insert(namespace.to_owned(), Value::Object(fields))),
        }
    }
}

fn update(known: &mut Map<String, Value>, more: &Map<String, Value>) {
    for (name, more) in more {
        match (known.get_mut(name), more) {
            (Some(Value::Object(known)), Value::Object(more)) => update(known, more),
            (Some(Value::Array(known)), Value::Array(more)) => known.extend(more.iter().cloned()),
            _ => drop(known.insert(name.clone(), more.clone())),
        }
    }
}

/// A value as it reads in metadata: a number without a fraction is an integer.
pub fn from_json(value: Value) -> Value {
    // Beyond, not every integer can be told from the next.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value {
        Value::Number(number) => match number.as_f64() {
            Some(real) if real.fract() == 0.0 && real.abs() < EXACT => (real as i64).into(),
            _ => Value::Number(number),
        },
        Value::Array(items) => items.into_iter().map(from_json).collect(),
        Value::Object(fields) => {
            fields.into_iter().map(|(name, value)| (name, from_json(value))).collect()
        }
        other => other,
    }
}

/// Spec: `envoy.type.matcher.v3.MetadataMatcher`.
#[derive(Debug, Clone, Serialize)]
pub struct MetadataMatcher {
    pub namespace: String,
    /// At least one.
    pub path: Vec<String>,
    pub value: ValueMatcher,
    pub invert: bool,
}

impl MetadataMatcher {
    /// What is not there matches nothing, which may be inverted.
    pub fn matches(&self, metadata: &DynamicMetadata) -> bool {
        let value = metadata.get(&self.namespace, &self.path);
        value.is_some_and(|value| self.value.matches(value)) != self.invert
    }
}

/// Spec: `envoy.type.matcher.v3.ValueMatcher`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ValueMatcher {
    Null,
    /// Inclusive start, exclusive end.
    Range {
        start: f64,
        end: f64,
    },
    Exactly(f64),
    String(StringMatcher),
    Bool(bool),
    /// `false` matches nothing.
    Present(bool),
    /// Any item of a list.
    OneOf(Box<ValueMatcher>),
    Or(Vec<ValueMatcher>),
}

impl ValueMatcher {
    fn matches(&self, value: &Value) -> bool {
        match self {
            Self::Null => value.is_null(),
            Self::Range { start, end } => {
                value.as_f64().is_some_and(|number| (*start..*end).contains(&number))
            }
            #[expect(clippy::float_cmp, reason = "Envoy compares them so")]
            Self::Exactly(exactly) => value.as_f64().is_some_and(|number| number == *exactly),
            Self::String(matcher) => {
                value.as_str().is_some_and(|text| matcher.matches(text.as_bytes()))
            }
            Self::Bool(wanted) => value.as_bool() == Some(*wanted),
            Self::Present(present) => *present,
            Self::OneOf(matcher) => {
                value.as_array().is_some_and(|items| items.iter().any(|item| matcher.matches(item)))
            }
            Self::Or(matchers) => matchers.iter().any(|matcher| matcher.matches(value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::authz::StringPattern;

    fn metadata(value: Value) -> DynamicMetadata {
        let mut metadata = DynamicMetadata::default();
        let Value::Object(fields) = json!({ "a": { "b": value } }) else { unreachable!() };
        metadata.merge("ns", fields);
        metadata
    }

    fn check(matcher: ValueMatcher, value: Value, expected: bool) {
        let path = vec!["a".to_owned(), "b".to_owned()];
        let mut matcher =
            MetadataMatcher { namespace: "ns".to_owned(), path, value: matcher, invert: false };
        let metadata = metadata(value);
        assert_eq!(matcher.matches(&metadata), expected, "{matcher:?}");
        matcher.invert = true;
        assert_eq!(matcher.matches(&metadata), !expected, "{matcher:?}");
        // What is not there.
        assert!(matcher.matches(&DynamicMetadata::default()));
        matcher.path.push("c".to_owned());
        assert!(matcher.matches(&metadata));
        matcher.invert = false;
        assert!(!matcher.matches(&metadata));
    }

    fn exactly(text: &str) -> ValueMatcher {
        let pattern = StringPattern::Exact(text.to_owned());
        ValueMatcher::String(StringMatcher { pattern, ignore_case: false })
    }

    #[test]
    fn values_match_by_kind() {
        check(ValueMatcher::Null, Value::Null, true);
        check(ValueMatcher::Null, json!(0), false);
        check(ValueMatcher::Exactly(2.0), json!(2), true);
        check(ValueMatcher::Exactly(2.0), json!("2"), false);
        check(ValueMatcher::Range { start: 1.0, end: 2.0 }, json!(1), true);
        check(ValueMatcher::Range { start: 1.0, end: 2.0 }, json!(2), false);
        check(exactly("x"), json!("x"), true);
        check(exactly("x"), json!(["x"]), false);
        check(ValueMatcher::Bool(false), json!(false), true);
        check(ValueMatcher::Bool(false), Value::Null, false);
        check(ValueMatcher::Present(true), json!([]), true);
        check(ValueMatcher::Present(false), json!(1), false);
        check(ValueMatcher::OneOf(Box::new(exactly("x"))), json!([1, "x"]), true);
        check(ValueMatcher::OneOf(Box::new(exactly("x"))), json!("x"), false);
        check(ValueMatcher::Or(vec![exactly("y"), ValueMatcher::Null]), Value::Null, true);
        check(ValueMatcher::Or(vec![exactly("y"), ValueMatcher::Null]), json!("x"), false);
    }

    #[test]
    fn later_fields_go_before_earlier_ones() {
        let mut metadata = metadata(json!(1));
        let fields = |value| match value {
            Value::Object(fields) => fields,
            _ => unreachable!(),
        };
        metadata.merge("ns", fields(json!({ "a": 2, "c": 3 })));
        metadata.merge("other", fields(json!({ "a": 4 })));
        assert_eq!(metadata.get("ns", &["a"]), Some(&json!(2)));
        assert_eq!(metadata.get::<&str>("ns", &[]), Some(&json!({ "a": 2, "c": 3 })));
        assert_eq!(metadata.iter().count(), 2);
    }
}
